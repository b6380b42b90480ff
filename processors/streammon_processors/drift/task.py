"""The drift task: one partition of `profiles` and `references`, and what has drifted in each window of a model version.

Semantics
---------
* A *test window* is ``drift.window`` long and aligned to the epoch: the sum of the profiles that start in it, of one
  version and counted in the bins of one reference. A reference that takes effect within a window makes two of it.
* It is closed when the profiles have come `PATIENCE_S` past its end, or as long as it lasts if that is less, and tested
  once. A supplement that comes later is counted (`streammon_drift_late_events`), and changes nothing: a test that was
  told is not taken back.
* It is tested against the reference that its profiles name, or against earlier windows counted in the same bins. While
  that reference has not been read, it waits, and later windows of the version behind it; at most `MAX_WAITING`, then it
  is told as ``unknown_reference``. So nothing depends on which of the two topics is read first.
* For each window there is a record for every target of the reference, and one of the target ``dataset``. What the
  checks of schema and quality find is told in the windows in which it is wrong, and in the first one thereafter.
* Windows of which nothing can be tested are one record, of ``dataset``, which says why.

How time passes is in `_Clock`. Recovery is as that of windows: the snapshot is of the last place where windows were
closed, and holds no sums of open ones; `offsets` names the first profile of the oldest window that was not tested, and
the first reference in use. What is read again only rebuilds.
"""

from __future__ import annotations

import zlib
from collections import Counter as Tally
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise
from math import floor
from typing import Final

import msgspec
from msgspec import Struct
from prometheus_client import Counter

from streammon.broker import Outgoing, Record
from streammon.deadletter import dead_letter_of
from streammon.errors import Reason, Rejected
from streammon.events import MAX_COUNT, EventType, record_key
from streammon.models import ONLINE_SHARE, ModelPolicy, Models
from streammon.profiles import PROFILES, REFERENCES, Profile, Reference
from streammon.results import Drift
from streammon.tick import TICK
from streammon.wire import MAX_TIME_UNIX_S, SCHEMA_HEADER, read_message
from streammon_processors.drift.compare import Finding, NotTested, compare, judge, untested
from streammon_processors.drift.multiplicity import alpha_of
from streammon_processors.drift.past import ROUNDING_S, Kept, Past, coarse, coarse_frame, slot_s_of
from streammon_processors.drift.sample import Sample, of_profile, of_reference
from streammon_processors.task import Step, outputs_of, time_field

PATIENCE_S: Final = 120.0
"""How long after its end a window waits for what is late."""
SILENCE_S: Final = 60.0
"""How long profiles may be under way; and as how much time a longer gap in the log counts, in which nobody wrote."""
MAX_WAITING: Final = 24
"""Windows of one model version that wait for a reference."""
MAX_OPEN: Final = 2000
"""Windows that are open or wait, of all versions in a partition."""
MAX_REFERENCES: Final = 500
"""References held in a partition; beyond it, the one that was read first is let go."""
MAX_SERIES: Final = 200
MAX_WRONG: Final = 50
"""Versions, and checks of each, of which it is remembered that something was wrong; of others its end is not told."""
FORGET_S: Final = 14 * 86_400.0
"""A version of which nothing is heard for so long is forgotten."""

LATE = Counter("streammon_drift_late_events", "Events in profiles that came after their window had been tested")
SKIPPED = Counter("streammon_drift_skipped", "Profiles that were not taken in, by why", ["reason"])


class Skipped(StrEnum):
    """Why a profile was not taken in. The values are labels: add, never rename."""

    TOO_MANY_WINDOWS = "too_many_windows"
    TOO_MANY_EVENTS = "too_many_events"


class _Clock(Struct, array_like=True):
    """How far the profiles of the partition have come.

    They are published in the order of their starts, so whatever starts before the newest one is here. If nothing comes
    for `SILENCE_S`, time passes by the broker's stamps, from the watermark that the last one told. (Not at once: it may
    be hours ahead of the profile that tells it, and others come with that.)
    """

    newest_start: float = 0.0
    newest_end: float = 0.0
    watermark: float = 0.0
    now_ms: int = 0
    moved_ms: int = 0
    broker_ms: int = 0

    def let_pass(self, stamp_ms: int) -> None:
        if self.broker_ms:
            self.now_ms += min(max(0, stamp_ms - self.broker_ms), round(1000 * SILENCE_S))
        self.broker_ms = max(self.broker_ms, stamp_ms)

    def observe(self, profile: Profile) -> None:
        if profile.part == "main":
            self.newest_start = max(self.newest_start, profile.start_unix_s)
            self.newest_end = max(self.newest_end, profile.end_unix_s)
        if profile.completeness.watermark_unix_s > self.watermark:
            self.watermark, self.moved_ms = profile.completeness.watermark_unix_s, self.now_ms

    @property
    def done(self) -> float:
        """All windows that end by this time are to be closed."""
        silent_s = (self.now_ms - self.moved_ms) / 1000 - SILENCE_S
        by_time = self.watermark + silent_s if self.watermark and silent_s >= 0 else 0.0
        return max(self.newest_start, by_time) - PATIENCE_S


class _Key(Struct, array_like=True, frozen=True):
    """What a test window is of."""

    start: float
    end: float
    service: str
    model: str
    model_version: str | None
    reference: str | None

    @property
    def series(self) -> str:
        return msgspec.json.encode((self.service, self.model, self.model_version)).decode()

    @property
    def due(self) -> float:
        """What `_Clock.done` has to come to: a short window waits no longer than it lasts."""
        return self.end - max(0.0, PATIENCE_S - (self.end - self.start))

    @property
    def order(self) -> tuple[float, float, str, str]:
        return self.end, self.start, self.series, self.reference or ""


class _Place(Struct, array_like=True):
    """A test window in the snapshot: of which records it is made."""

    key: _Key
    first_offset: int
    closed_at: int | None = None
    versions: int = 1
    """Of the model, that have a window which was closed with it; known when it is closed."""

    def has(self, offset: int) -> bool:
        return self.first_offset <= offset and (self.closed_at is None or offset < self.closed_at)


@dataclass
class _Growing:
    """A test window, and what is in it."""

    place: _Place
    sample: Sample = field(default_factory=Sample)


class _Snapshot(Struct, array_like=True):
    places: dict[str, int]
    rewind_to: dict[str, int]
    clock: _Clock
    done: float
    open: list[_Place]
    waiting: list[_Place]
    references: dict[str, int]
    wrong: dict[str, _Wrong]
    past: dict[str, Kept]


class _Wrong(Struct, array_like=True):
    """The checks of a model version that found something in its last window, which ended then."""

    end: float
    checks: list[tuple[str, str]]


class DriftTask:
    """Tests the profiles of one partition, and writes to the same partition of `drift`."""

    def __init__(self, models: Models, partition: int) -> None:
        self._models = models
        self._partition = partition
        self._places: dict[str, int] = {}  # by topic, the next record
        self._clock = _Clock()
        self._done = 0.0
        self._open: dict[_Key, _Growing] = {}
        self._waiting: dict[_Key, _Growing] = {}  # closed, in the order in which they are to be tested
        self._held: dict[str, int] = {}  # references by where they are in the log, in that order
        self._references: dict[str, Reference] = {}  # of these, the ones that have been read (again)
        self._seen = -1  # the last profile that was read (again)
        self._wrong: dict[str, _Wrong] = {}  # by series
        self._past = Past()
        self._published: _Snapshot | None = None
        self._packed: bytes | None = None  # what was published, once it was asked for
        self._letters: list[Outgoing] = []

    # --- the contract -----------------------------------------------------------------------------------------------

    def process(self, topic: str, records: Sequence[Record]) -> list[Outgoing]:
        """The tests of the windows that these records close."""
        return list(outputs_of(self.steps(topic, records)))

    def steps(self, topic: str, records: Sequence[Record]) -> Iterator[Step]:
        """The same, a window at a time: of many models, the windows of an hour are closed at once."""
        take_in = self._take_in_profile if topic == PROFILES else self._take_in_reference
        for number, record in enumerate(records, 1):
            is_due = False
            for tests in take_in(record):
                is_due = True
                self._publish()  # before this record, which will be read again, and closes what is left
                yield Step(tests)
            self._places[topic] = max(record.offset + 1, self._places.get(topic, 0))
            letters, self._letters = self._letters, []
            if is_due or letters:
                self._publish()
            yield Step(letters, number)

    def snapshot(self) -> bytes:
        """All that has to be remembered, as of the last place where windows were closed."""
        if self._published is None:
            return b""
        if self._packed is None:
            self._packed = zlib.compress(msgspec.msgpack.encode(self._published), 1)
        return self._packed

    def restore(self, snapshot: bytes) -> None:
        """Go on from a snapshot; the records from `offsets` on have to be given again."""
        if not snapshot:
            return
        state = msgspec.msgpack.decode(zlib.decompress(snapshot), type=_Snapshot)
        self._published, self._packed = state, snapshot
        self._places = dict(state.places)
        self._clock = msgspec.structs.replace(state.clock)
        self._done = state.done
        self._open = {place.key: _Growing(place) for place in state.open}
        self._waiting = {place.key: _Growing(place) for place in state.waiting}
        self._held = dict(state.references)
        self._wrong = dict(state.wrong)
        self._past = Past(state.past)

    def offsets(self) -> Mapping[str, int]:
        """The first records that a restored task needs."""
        return {} if self._published is None else self._published.rewind_to

    @property
    def waiting(self) -> Sequence[str]:
        """`profiles`, while a window is open: time passing closes it."""
        return (PROFILES,) if self._open else ()

    def watermarks(self) -> Mapping[str, float]:
        """When the newest profile ends; no test is of a window that starts later."""
        return {PROFILES: self._clock.newest_end} if self._clock.newest_end else {}

    # --- the story of a reference -----------------------------------------------------------------------------------

    def _take_in_reference(self, record: Record) -> Iterator[list[Outgoing]]:
        again = record.offset < self._places.get(REFERENCES, 0)
        if record.value is None or record.value == TICK:
            return
        try:
            reference = read_reference(record.value)
        except Rejected as error:
            self._refuse(REFERENCES, record, error, again)
            return
        if not again and reference.id not in self._references:
            self._hold(reference.id, record.offset)
        if self._held.get(reference.id) == record.offset:
            self._references[reference.id] = reference
            yield from self._test_waiting()

    def _refuse(self, topic: str, record: Record, error: Rejected, again: bool = False) -> None:
        if not again:
            self._letters.append(dead_letter_of(topic, record, error, to_partition=self._partition))

    def _hold(self, name: str, offset: int) -> None:
        self._held.pop(name, None)
        self._held[name] = offset
        if len(self._held) > MAX_REFERENCES:
            oldest = next(iter(self._held))
            del self._held[oldest]
            self._references.pop(oldest, None)

    # --- the story of a profile -------------------------------------------------------------------------------------

    def _take_in_profile(self, record: Record) -> Iterator[list[Outgoing]]:
        self._seen = record.offset
        if record.offset < self._places.get(PROFILES, 0):
            self._rebuild(record)
            yield from self._test_closed(record.offset)  # a reference may have come before this
            return
        self._clock.let_pass(record.timestamp)
        profile = None
        if record.value != TICK:
            try:
                profile = read_profile(record.value or b"")
                self._clock.observe(profile)
            except Rejected as error:
                self._refuse(PROFILES, record, error)
        self._close_due(record.offset)
        yield from self._test_closed(record.offset)
        if profile is not None:
            self._add(profile, record.offset)

    def _add(self, profile: Profile, offset: int) -> None:
        key = self._key_of(profile)
        if key.due <= self._done:
            LATE.inc(profile.count)
            return
        if key not in self._open:
            if len(self._open) + len(self._waiting) >= MAX_OPEN:
                SKIPPED.labels(Skipped.TOO_MANY_WINDOWS).inc()
                return
            self._open[key] = _Growing(_Place(key, offset))
        _grow(self._open[key].sample, profile)

    def _rebuild(self, record: Record) -> None:
        """A profile read again: put it back where it belongs to a window that was not tested."""
        try:
            profile = read_profile(record.value or b"")
        except Rejected:
            return
        key = self._key_of(profile)
        growing = self._waiting.get(key) or self._open.get(key)
        if growing is not None and growing.place.has(record.offset):
            _grow(growing.sample, profile)

    def _key_of(self, profile: Profile) -> _Key:
        window_s = self._policy(profile.service, profile.model).drift.window_s
        start = floor((profile.start_unix_s + ROUNDING_S) / window_s) * window_s
        return _Key(start, start + window_s, profile.service, profile.model, profile.model_version, profile.reference)

    def _policy(self, service: str, model: str) -> ModelPolicy:
        return self._models.policy(service, model)

    # --- closing and testing ----------------------------------------------------------------------------------------

    def _close_due(self, offset: int) -> None:
        """What is complete waits to be tested; the record at this offset is not in it."""
        self._done = max(self._done, self._clock.done)
        due = sorted((key for key in self._open if key.due <= self._done), key=lambda key: key.order)
        versions: dict[tuple[str, str], set[str | None]] = {}
        for key in due:
            versions.setdefault((key.service, key.model), set()).add(key.model_version)
        for key in due:
            growing = self._waiting[key] = self._open.pop(key)
            growing.place.closed_at = offset
            growing.place.versions = len(versions[key.service, key.model])

    def _test_closed(self, offset: int) -> Iterator[list[Outgoing]]:
        """Test what can be, if the record at this offset is one that closed windows, now or when it was read before."""
        if any(growing.place.closed_at == offset for growing in self._waiting.values()):
            yield from self._test_waiting()

    def _test_waiting(self) -> Iterator[list[Outgoing]]:
        """Test what waits and can be, those of a version in order."""
        left = Tally(key.series for key in self._waiting)
        blocked = set[str]()
        for key in list(self._waiting):
            is_known = key.reference is None or key.reference in self._references
            is_whole = self._seen >= (self._waiting[key].place.closed_at or 0)
            if key.series not in blocked and is_whole and (is_known or left[key.series] > MAX_WAITING):
                left[key.series] -= 1
                yield self._test(key, self._waiting.pop(key))
            else:
                blocked.add(key.series)

    def _test(self, key: _Key, growing: _Growing) -> list[Outgoing]:
        tests = self._tests(key, growing)
        telling = [each for each in tests if not each.is_check or each.drifted]
        if tests[-1].reason is None:
            telling += self._over(key, growing, tests)
        return [self._outgoing(key, each) for each in telling]

    def _over(self, key: _Key, growing: _Growing, tests: Sequence[Finding]) -> list[Finding]:
        """The checks that found something in the window before, and not in this one any more."""
        known = {(each.target, each.detector): each for each in tests if each.is_check}
        found = sorted(name for name, each in known.items() if each.drifted)
        before = self._wrong.pop(key.series, _Wrong(0.0, []))
        if found and len(self._wrong) < MAX_SERIES:
            self._wrong[key.series] = _Wrong(key.end, found[:MAX_WRONG])
        nothing = (Finding(*name, 0.0, growing.sample.count, 0) for name in before.checks if name not in found)
        return [known.get((each.target, each.detector), each) for each in nothing]

    def _tests(self, key: _Key, growing: _Growing) -> list[Finding]:
        """What there is to say of a window; what it is like is kept, for those who are held against it."""
        policy, sample = self._policy(key.service, key.model), growing.sample
        frame = self._references.get(key.reference or "")
        if frame is None:
            reason = NotTested.UNKNOWN_REFERENCE if key.reference else NotTested.NO_REFERENCE
            return [untested(reason, sample.count, 0, policy.drift)]
        has_past = slot_s_of(policy.drift) is not None
        before = self._past.before(key.series, key.start, frame.id, policy.drift) if has_past else of_reference(frame)
        self._past.add(key.series, key.start, frame.id, sample, policy.drift)
        if has_past:
            frame, sample = coarse_frame(frame), coarse(sample)
        if before is None:
            return [untested(NotTested.NO_PAST, sample.count, 0, policy.drift)]
        if sample.count < policy.drift.min_samples:
            return [untested(NotTested.TOO_FEW_SAMPLES, sample.count, before.count, policy.drift)]
        allowed = policy.max_false_alarms_per_month * (1 - ONLINE_SHARE)
        alpha = alpha_of(allowed, policy.drift.window_s, growing.place.versions)
        return judge(compare(sample, before, frame, policy.drift), policy.drift, alpha)

    def _outgoing(self, key: _Key, test: Finding) -> Outgoing:
        drift = Drift(
            service=key.service,
            model=key.model,
            model_version=key.model_version,
            target=test.target,
            detector=test.detector,
            statistic=test.statistic,
            threshold=test.threshold,
            drifted=test.drifted,
            sample_size=test.sample_size,
            start_unix_s=key.start,
            end_unix_s=key.end,
            p_value=test.p_value,
            q_value=test.q_value,
            effect=test.effect,
            weight=test.weight,
            reference=key.reference,
            reference_size=test.reference_size,
            reason=test.reason,
        )
        record = record_key(EventType.INFERENCE, (key.service, key.model))
        return Outgoing("drift", record, msgspec.json.encode(drift), (SCHEMA_HEADER,), self._partition)

    # --- publishing -------------------------------------------------------------------------------------------------

    def _publish(self) -> None:
        """Remember this place: everything before it is done, but for what is open or waits."""
        self._forget()
        opened = [growing.place for growing in self._open.values()]
        waiting = [growing.place for growing in self._waiting.values()]
        firsts = {
            PROFILES: [place.first_offset for place in (*opened, *waiting)],
            REFERENCES: list(self._held.values()),
        }
        self._published = _Snapshot(
            places=dict(self._places),
            rewind_to={topic: min([place, *firsts[topic]]) for topic, place in self._places.items()},
            clock=msgspec.structs.replace(self._clock),
            done=self._done,
            open=opened,
            waiting=waiting,
            references=dict(self._held),
            wrong=dict(sorted(self._wrong.items())),
            past=dict(sorted(self._past.kept.items())),
        )
        self._packed = None

    def _forget(self) -> None:
        """Versions that are gone."""
        self._past.trim(self._done)
        self._wrong = {name: wrong for name, wrong in self._wrong.items() if wrong.end > self._done - FORGET_S}


def _grow(sample: Sample, profile: Profile) -> None:
    if sample.count + profile.count > MAX_COUNT:
        SKIPPED.labels(Skipped.TOO_MANY_EVENTS).inc()
    else:
        sample.add(of_profile(profile))


def read_profile(value: bytes) -> Profile:
    """Raises Rejected."""
    profile = read_message(_PROFILE.decode, value)
    if not 0 <= profile.start_unix_s < profile.end_unix_s < MAX_TIME_UNIX_S:
        raise Rejected(Reason.BAD_TIME, f"the profile is [{profile.start_unix_s}, {profile.end_unix_s})")
    for name, target in profile.targets.items():
        bins = [] if target.numbers is None else target.numbers.bins or []
        _check(name, profile.count, target.types, target.values, bins)
    return profile


def read_reference(value: bytes) -> Reference:
    """Raises Rejected."""
    reference = read_message(_REFERENCE.decode, value)
    for name, target in reference.targets.items():
        bins, edges = target.bins or [], target.edges or []
        _check(name, MAX_COUNT, target.types, target.values, bins)
        if target.bins is not None and len(bins) != len(edges) + 1:
            raise Rejected(
                Reason.INVALID_EVENT, f"{name} has {len(edges)} edges and {len(bins)} bins: one more is right"
            )
        if any(low > high for low, high in pairwise(edges)):
            raise Rejected(Reason.INVALID_EVENT, f"the edges of {name} do not ascend")
    return reference


def _check(name: str, most: int, *counts: Mapping[str, int] | Sequence[int] | None) -> None:
    for some in counts:
        values = list(some.values() if isinstance(some, Mapping) else some or ())
        if values and (min(values) < 0 or sum(values) > most):
            raise Rejected(Reason.INVALID_EVENT, f"counts of {name} are below 0, or add to more than {most}")


test_time: Final = time_field("start_unix_s", having="weight")
"""When the window of a record of `drift` starts; None if it is a detector's, which have no weight."""


def each_test(value: bytes) -> list[tuple[float, bytes]]:
    """A record is one test. In which order they come depends on when a reference is read; what they say does not."""
    time = test_time(value)
    return [] if time is None else [(time, value)]


_PROFILE = msgspec.json.Decoder(Profile)
_REFERENCE = msgspec.json.Decoder(Reference)
