"""The rules task: evaluates rules on windows, in event time, many windows at once.

A batch is gone through twice. First every record brings its lanes forward: their time, their series, who has fallen
silent (`_Intake`). Then each rule is evaluated over all windows of its lane at once, and only where it is breached, or
followed already, an episode takes a step. What comes of both is put in the order of the records.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from enum import StrEnum
from functools import lru_cache, partial
from itertools import chain, pairwise
from operator import attrgetter
from typing import Final, NamedTuple

import msgspec
import numpy as np
from msgspec import Struct
from prometheus_client import Counter

from streammon.broker import Outgoing, Record
from streammon.broker.records import Ints, Records
from streammon.commands import Acknowledge, AnyCommand
from streammon.deadletter import dead_letter_of
from streammon.errors import Rejected
from streammon.results import Alert
from streammon.tick import TICK
from streammon.topics import LARGE_RECORD_BYTES
from streammon.wire import SCHEMA_HEADER, read_message
from streammon_processors.rules.alerts import Sight, never_fired, of_command, of_silence, of_window, orphaned
from streammon_processors.rules.conditions.expression import Bools
from streammon_processors.rules.description import Rule, Rules
from streammon_processors.rules.episodes import Episode, Step, Verdict, acknowledged, follow, given_up, silent
from streammon_processors.rules.lanes import (
    MAX_KEPT_BYTES,
    Batch,
    Kept,
    Lane,
    LogTime,
    LogTimes,
    Seen,
    Silence,
    SortedLabels,
    lanes_of,
    reader,
    sorted_labels,
)
from streammon_processors.shapes import Shape

SKIPPED = Counter("streammon_rules_skipped", "Windows that rules did not look at, by why", ["reason"])
MAX_STATE_BYTES: Final = LARGE_RECORD_BYTES - MAX_KEPT_BYTES - 64 * 1024
"""What is pending or firing in one partition; with what is kept of the past, it has to fit into one snapshot.
So many that a storm of 10,000 alerts on four partitions is followed whole."""

_MAX_SERIES_BYTES: Final = 4096
_EPISODE_BYTES: Final = 350  # of an episode, beside its series: numbers, and what it says
_Key = tuple[str, SortedLabels]  # the rule's name and the series


class Skipped(StrEnum):
    """Why a rule did not look at a window, or nobody at a command. The values are labels: add, never rename."""

    SUPPLEMENT = "supplement"
    NOT_ASKED_FOR = "not_asked_for"
    NO_SERIES = "no_series"
    BACK_IN_TIME = "back_in_time"
    TOO_MANY_EPISODES = "too_many_episodes"
    TOO_MANY_SERIES = "too_many_series"
    LABELS_TOO_LONG = "labels_too_long"
    NOTHING_TO_ACKNOWLEDGE = "nothing_to_acknowledge"


class _Snapshot(Struct, array_like=True):
    offsets: dict[str, int]
    times: dict[str, LogTime]
    lanes: dict[str, Kept]
    episodes: list[Episode]


class Change(NamedTuple):
    """Something that may alter episodes, and where it stands among the others."""

    place: tuple[int, int, int, int]
    """The record in the batch; then, of one record: what kind of change, which lane, which rule."""
    alerts: Callable[[], Iterable[Alert]]


_EXPIRED, _RETIRED, _SILENT, _STEPPED = range(4)


class Log:
    """A topic of windows or results: the lanes that they are in, and how far its time has come."""

    def __init__(self, topic: str, lanes: Iterable[Lane]) -> None:
        self.topic = topic
        self.lanes = [lane for lane in lanes if lane.topic == topic]
        self.read = reader(self.lanes)
        """What a value says. Raises Rejected."""
        self.results = next((lane for lane in self.lanes if lane.is_of_results), None)
        """The lane of a topic of results, which is the only one."""
        self.time = LogTime()  # of the record that was read last
        self.decided = LogTime()  # of the newest record that was ever read: another one while some are read again
        self._lanes_of: dict[tuple[str, Shape | None], list[Lane]] = {}
        for lane in self.lanes:
            self._lanes_of.setdefault(lane.key[:2], []).append(lane)

    @property
    def waits(self) -> bool:
        """Whether the passing of time alone could say something."""
        return any(lane.waits for lane in self.lanes)

    def likeness(self, windows: Sequence[Seen | None]) -> Sequence[object]:
        """Of each window, what is equal for those that differ in their series only, as far as their way to a rule goes.

        What a result says depends on the one before it; none is like another.
        """
        return [each and place for place, each in enumerate(windows)] if self.results else list(map(_likeness, windows))

    def lanes_for(self, window: Seen) -> Sequence[Lane]:
        asked_for = self._lanes_of.get((window.stream, Shape.of(window)), [])
        return asked_for if window.of_s else [*self._lanes_of.get((window.stream, None), []), *asked_for]

    def load(self, lanes: Mapping[str, Kept], next_offset: int, decided: LogTime) -> None:
        """Go on from what a snapshot says; with the time of the first record that is read again."""
        loaded = [(lane, lane.load(lanes.get(str(lane.key), Kept()), next_offset)) for lane in self.lanes]
        times = [time for _, time in sorted((lane.begins_at, time) for lane, time in loaded if time)]
        self.decided = decided
        self.time = times[0] if times else decided

    def first_needed(self) -> int | None:
        """The first record that has to be read again; None if the next one will do."""
        return min((lane.marks[0].offset for lane in self.lanes if lane.marks), default=None)


class RulesTask:
    """Evaluates rules on one partition of what they look at and writes to the same partition of `alerts`.

    ``met`` is for those who want to know of which series there were windows: it grows with each.
    """

    def __init__(
        self,
        rules: Rules,
        partition: int,
        *,
        base_s: float = 2.0,
        max_future_s: float = 60.0,
        max_state_bytes: int = MAX_STATE_BYTES,
        met: set[SortedLabels] | None = None,
    ) -> None:
        self._rules = rules
        self._partition = partition
        self._max_future_s = max_future_s
        self._max_state_bytes = max_state_bytes
        self._state_bytes = 0
        self._next: dict[str, int] = {}
        lanes = lanes_of(rules, base_s, met)
        self._lanes = [lanes[key] for key in sorted(lanes, key=str)]
        self._logs = {topic: Log(topic, self._lanes) for topic in rules.topics}
        self._order = {rule.name: place for place, rule in enumerate(rules)}
        self._episodes: dict[str, dict[SortedLabels, Episode]] = {rule.name: {} for rule in rules}
        self._orphans: list[Episode] = []  # their rule is gone, or decides otherwise now

    @property
    def waiting(self) -> Sequence[str]:
        """Time passing alone changes something where the silence of a series is one."""
        return [topic for topic, log in self._logs.items() if log.waits]

    def process(self, topic: str, records: Sequence[Record]) -> list[Outgoing]:
        """The alerts that these records fire, acknowledge or resolve; what is no message becomes a dead letter."""
        if topic == "commands":
            return [outgoing for record in records for outgoing in self._command(record)]
        return self._windows(self._logs[topic], records)

    # ------------------------------------------------------------------ what is remembered

    def snapshot(self) -> bytes:
        """The state after the last output; equal states are equal bytes."""
        followed = chain.from_iterable(of_rule.values() for of_rule in self._episodes.values())
        state = _Snapshot(
            offsets=dict(sorted(self._next.items())),
            times={topic: log.decided for topic, log in self._logs.items()},
            lanes={str(lane.key): lane.dump() for lane in self._lanes if lane.marks or lane.clock.newest_end},
            episodes=sorted([*followed, *self._orphans], key=_key),
        )
        return msgspec.msgpack.encode(state)

    def restore(self, snapshot: bytes) -> None:
        """Go on from a `snapshot`, also with other rules than it was taken with."""
        state = msgspec.msgpack.decode(snapshot, type=_Snapshot)
        self._next = state.offsets
        for topic, log in self._logs.items():
            log.load(state.lanes, self._next.get(topic, 0), state.times.get(topic, LogTime()))
        known = [episode for episode in state.episodes if self._still_decides(episode)]
        self._episodes = {rule.name: {} for rule in self._rules}
        for episode in known:
            self._episodes[episode.rule][sorted_labels(episode.series)] = episode
        self._orphans = [each for each in state.episodes if not self._still_decides(each)]
        self._state_bytes = sum(_size_bytes(_key(episode)) for episode in known)

    def offsets(self) -> Mapping[str, int]:
        """The next record to read; of windows, as far back as rules look. Nothing is decided twice."""
        needed = {topic: log.first_needed() for topic, log in self._logs.items()}
        again = {topic: offset for topic, offset in needed.items() if offset is not None}
        read = {"commands", *self._logs}  # a topic that only former rules have read stays where it was
        return {topic: offset for topic, offset in (self._next | again).items() if topic in read}

    def watermarks(self) -> Mapping[str, float]:
        """Rules follow the time of the windows; they keep none of their own."""
        return {}

    # ------------------------------------------------------------------ windows

    def _windows(self, log: Log, records: Sequence[Record]) -> list[Outgoing]:
        if not records:
            return []
        news, given = News([], set(), []), Records.of(records)
        for run in self._runs(log, given, news):
            self._take_in(log, run, news)
        return self._tell(news, Lane.batch, lambda batch, at: given.values[batch.places[at]] or b"")

    def _tell(
        self, news: News, batch_of: Callable[[Lane], Batch], value_of: Callable[[Batch, int], bytes]
    ) -> list[Outgoing]:
        """All that the windows bring which the lanes have taken in, in the order of the records."""
        steps = self._steps(news.silenced, batch_of, value_of)
        changes = sorted([*news.changes, *steps], key=lambda each: each.place)
        told = [(change.place[0], self._outgoing(alert)) for change in changes for alert in change.alerts()]
        return [outgoing for _, outgoing in sorted([*news.refused, *told], key=lambda each: each[0])]

    def _runs(self, log: Log, records: Records, news: News) -> Iterator[Run]:
        """The records, cut wherever one is not like the one before it, or more than its series has to be looked at."""
        next_offset = self._next.get(log.topic, 0)
        again, times = records.offsets < next_offset, log.time.through(records.timestamps)
        windows = self._read(log, records, next_offset, news)
        alike = log.likeness(windows)
        apart = times.turns | np.concatenate(([True], again[1:] != again[:-1]))
        for cut in {lane.begins_at for lane in log.lanes if again[0]}:
            apart |= records.offsets == cut
        cuts = [at for at, cut in enumerate(apart.tolist()) if cut or alike[at] != alike[at - 1]]
        for first, after in pairwise([*cuts, len(windows)]):
            yield Run(first, after, windows[first:after], records, times, bool(again[first]))

    def _read(self, log: Log, records: Records, next_offset: int, news: News) -> list[Seen | None]:
        """None where it is a tick, no window, or nothing that a rule looks at."""
        windows: list[Seen | None] = []
        for place, value in enumerate(records.values):
            try:
                windows.append(None if value == TICK else log.read(value or b""))
            except Rejected as error:
                windows.append(None)
                if records.offsets[place] >= next_offset:
                    self._refuse(log, records, place, error, news)
        return windows

    def _refuse(self, log: Log, records: Records, place: int, error: Rejected, news: News) -> None:
        refused = dead_letter_of(log.topic, records[place], error, to_partition=self._partition)
        news.refused.append((place, refused))

    def _take_in(self, log: Log, run: Run, news: News) -> None:
        """Bring time and lanes forward; what was decided on before is only remembered."""
        log.time = run.times.after(run.first)
        if run.again:
            news = News([], set(), [])
        if run.times.turns[run.first]:
            self._pass_time(log, run.first, news)
        if run.windows[0] is not None:
            self._take_windows(log, run, run.windows, news)  # type: ignore[arg-type]  # one is, so all are
        log.time = run.times.after(run.after - 1)
        if not run.again:
            self._next[log.topic], log.decided = int(run.offsets[run.after - 1]) + 1, log.time

    def _take_windows(self, log: Log, run: Run, windows: Sequence[Seen], news: News) -> None:
        try:
            windows = self._news(log, run, windows)
        except Rejected as error:
            self._refuse(log, run.records, run.first, error, news)
            return
        lanes = log.lanes_for(windows[0])
        if reason := self._reason_to_skip(windows[0], lanes):
            SKIPPED.labels(reason).inc(0 if run.again else len(windows))
            return
        if self._orphans:
            news.changes.append(Change((run.first, _RETIRED, 0, 0), lambda: self._retire(windows[0])))
        labels = [labels_of_series(tuple(window.series.items())) for window in windows]
        places = np.full(len(windows), -1) if run.again else np.arange(run.first, run.after)
        for lane in lanes:
            if run.offsets[run.first] >= lane.begins_at and not lane.is_back_in_time(windows[0]):
                self._advance(log, lane, run, windows, news)
                if (misfits := lane.take(places, windows, labels)) and not run.again:
                    SKIPPED.labels(Skipped.TOO_MANY_SERIES).inc(misfits)

    def _news(self, log: Log, run: Run, windows: Sequence[Seen]) -> Sequence[Seen]:
        """Windows as they are; of a result, what lies after the one before it. Raises Rejected."""
        if log.results is None:
            return windows
        latest_unix_s = int(run.records.timestamps[run.first]) / 1000 + self._max_future_s
        return [log.results.news(each, latest_unix_s) for each in windows]

    def _advance(self, log: Log, lane: Lane, run: Run, windows: Sequence[Seen], news: News) -> None:
        """Bring a lane to the time of a run.

        The first window does, the second may be one to read again from, and the last is the newest; others add nothing.
        """
        before_end, last = lane.clock.newest_end, len(windows) - 1
        for place in sorted({0, min(1, last), last} if lane.remembers else {0, last}):
            at = run.first + place
            if lane.advance(windows[place], int(run.offsets[at]), run.times.after(at - 1), run.times.after(at)):
                self._begin(log, at, lane, windows[place], news)
        lane.sweep(before_end)

    def _pass_time(self, log: Log, place: int, news: News) -> None:
        for lane in log.lanes:
            self._hear_silence(log, place, lane, news)
            lane.forget_if_idle(log.time)

    def _begin(self, log: Log, place: int, lane: Lane, window: Seen, news: News) -> None:
        """The lane has come to windows that start later."""
        number = self._lanes.index(lane)
        news.changes.append(Change((place, _EXPIRED, number, 0), lambda: self._expire(lane.rules, window.start_unix_s)))
        self._hear_silence(log, place, lane, news)

    def _hear_silence(self, log: Log, place: int, lane: Lane, news: News) -> None:
        number = self._lanes.index(lane)
        for each in lane.silent(log.time):
            at = (place, _SILENT, number, self._order[each.rule.name])
            news.silenced.add((each.rule.name, each.labels))
            news.changes.append(Change(at, partial(self._fall_silent, each)))

    def _reason_to_skip(self, window: Seen, lanes: Sequence[Lane]) -> Skipped | None:
        if window.part != "main":
            return Skipped.SUPPLEMENT
        if window.of_s and not lanes:
            return Skipped.NOT_ASKED_FOR
        if not window.series and not window.count:
            return Skipped.NO_SERIES
        if lanes and all(lane.is_back_in_time(window) for lane in lanes):
            return Skipped.BACK_IN_TIME
        return None

    # ------------------------------------------------------------------ episodes

    def _steps(
        self, silenced: Set[_Key], batch_of: Callable[[Lane], Batch], value_of: Callable[[Batch, int], bytes]
    ) -> Iterator[Change]:
        """What the windows that were taken in may change: those of series that are in breach, or followed already."""
        for number, lane in enumerate(self._lanes):
            batch = batch_of(lane)
            for rule in lane.rules if len(batch.rows) else ():
                verdicts = Verdicts(rule, batch)
                followed = {labels for name, labels in silenced if name == rule.name} | self._episodes[rule.name].keys()
                for at in self._candidates(rule, batch, verdicts, followed):
                    place = int(batch.places[at])
                    step = partial(self._step, rule, batch, at, verdicts.of(at), value_of)
                    yield Change((place, _STEPPED, number, self._order[rule.name]), step)
            lane.release()

    @staticmethod
    def _candidates(rule: Rule, batch: Batch, verdicts: Verdicts, followed: Set[SortedLabels]) -> Sequence[int]:
        about = batch.places >= 0
        if (where := batch.lane.where(rule)) is not None:
            about &= where[batch.rows]
        breached = set(batch.rows[about & verdicts.breached].tolist())
        rows = [*breached, *batch.lane.rows_of(followed | batch.lane.given_up(breached))]
        if not rows:
            return ()
        touched = np.zeros(len(batch.lane.heard), dtype=bool)
        touched[rows] = True
        found: list[int] = np.flatnonzero(about & touched[batch.rows]).tolist()
        return found

    def _step(
        self,
        rule: Rule,
        batch: Batch,
        at: int,
        verdicts: Sequence[Verdict],
        value_of: Callable[[Batch, int], bytes],
    ) -> Iterable[Alert]:
        window = batch.window(at)
        labels = sorted_labels(window.series)
        before = self._episodes[rule.name].get(labels)
        step = follow(rule, before, verdicts, window.series, window.start_unix_s, window.end_unix_s)
        return self._keep(
            rule, labels, step, lambda told: of_window(rule, told, Sight(batch.evaluation, at, value_of(batch, at)))
        )

    def _fall_silent(self, silence: Silence) -> Iterable[Alert]:
        rule, labels, heard, now = silence
        step = silent(rule, self._episodes[rule.name].get(labels), dict(labels), heard, now)
        return self._keep(rule, labels, step, lambda told: of_silence(rule, told))

    def _expire(self, rules: Sequence[Rule], start: float) -> Iterable[Alert]:
        """What was pending and has not been heard of for too long is given up."""
        for rule in rules:
            followed = self._episodes[rule.name]
            unheard = [
                labels
                for labels, episode in followed.items()
                if not episode.fired and start - episode.through_unix_s > rule.patience_s
            ]
            for labels in sorted(unheard):  # and not as they came, which a snapshot does not know
                yield from self._keep(rule, labels, given_up(followed[labels]), partial(never_fired, rule))

    def _retire(self, window: Seen) -> Iterable[Alert]:
        """Resolve what goes on without its rule."""
        orphans, self._orphans = self._orphans, []
        return [orphaned(episode, self._rules.by_name.get(episode.rule), window.end_unix_s) for episode in orphans]

    def _command(self, record: Record) -> Iterable[Outgoing]:
        self._next["commands"] = record.offset + 1
        if record.value == TICK:
            return ()
        try:
            command = read_message(_COMMANDS.decode, record.value or b"")
        except Rejected as error:
            return (dead_letter_of("commands", record, error, to_partition=self._partition),)
        return map(self._outgoing, self._acknowledge(command)) if isinstance(command, Acknowledge) else ()

    def _acknowledge(self, command: Acknowledge) -> Iterable[Alert]:
        followed = chain.from_iterable(of_rule.items() for of_rule in self._episodes.values())
        for labels, episode in list(followed):
            if episode.alert_id == command.alert_id:
                rule = self._rules.by_name[episode.rule]
                step = acknowledged(episode, command.transition)
                if told := self._keep(rule, labels, step, partial(of_command, rule, command)):
                    return told
        SKIPPED.labels(Skipped.NOTHING_TO_ACKNOWLEDGE).inc()
        return ()

    def _keep(
        self, rule: Rule, labels: SortedLabels, step: Step, tell: Callable[[Episode], tuple[Episode, Alert]]
    ) -> Sequence[Alert]:
        """Follow the episode from here on, or no more; the alert, if it is news."""
        followed = self._episodes[rule.name]
        if step.episode and labels not in followed and not self._has_room_for((rule.name, labels)):
            return ()
        told, alert = tell(step.told) if step.told else (None, None)
        after = told if told and step.episode is step.told else step.episode
        if after:
            followed[labels] = after
        elif followed.pop(labels, None):
            self._state_bytes -= _size_bytes((rule.name, labels))
        return [alert] if alert else []

    def _has_room_for(self, key: _Key) -> bool:
        size_bytes = _size_bytes(key)
        if size_bytes > _MAX_SERIES_BYTES:
            SKIPPED.labels(Skipped.LABELS_TOO_LONG).inc()
            return False
        if self._state_bytes + size_bytes > self._max_state_bytes:
            SKIPPED.labels(Skipped.TOO_MANY_EPISODES).inc()
            return False
        self._state_bytes += size_bytes
        return True

    def _still_decides(self, episode: Episode) -> bool:
        rule = self._rules.by_name.get(episode.rule)
        return rule is not None and rule.version == episode.version

    def _outgoing(self, alert: Alert) -> Outgoing:
        return Outgoing("alerts", alert.id.encode(), msgspec.json.encode(alert), (SCHEMA_HEADER,), self._partition)


class Run(NamedTuple):
    """Consecutive records of one second whose windows are alike but for their series, or that are no windows."""

    first: int
    after: int
    """Their places in the batch, from the first to before the second."""
    windows: Sequence[Seen | None]
    records: Records
    times: LogTimes
    """Both of the whole batch."""
    again: bool
    """They were decided on before, and are read again for the past that they are part of."""

    @property
    def offsets(self) -> Ints:
        return self.records.offsets


class News(NamedTuple):
    """What a batch brings before any rule is evaluated."""

    changes: list[Change]
    silenced: set[_Key]
    refused: list[tuple[int, Outgoing]]


class Verdicts:
    """What each window of a batch says of each level of a rule."""

    def __init__(self, rule: Rule, batch: Batch) -> None:
        truth, shape = batch.evaluation.truth, batch.rows.shape
        self._levels = [
            [np.broadcast_to(known, shape) for known in (*truth(level.breach), *truth(level.clear))]
            for level in rule.levels
        ]
        self.breached: Bools = np.logical_or.reduce([level[0] for level in self._levels])

    def of(self, at: int) -> Sequence[Verdict]:
        return [Verdict(_known(a[at], b[at]), _known(c[at], d[at])) for a, b, c, d in self._levels]


def _known(yes: bool, no: bool) -> bool | None:
    return True if yes else False if no else None


def _key(episode: Episode) -> _Key:
    return episode.rule, sorted_labels(episode.series)


@lru_cache(maxsize=2**16)
def labels_of_series(items: tuple[tuple[str, str], ...]) -> SortedLabels:
    """As `sorted_labels`, of those that come again and again in one order."""
    return tuple(sorted(items))


def _likeness(window: Seen | None) -> object:
    return window and (*_TIME_AND_KIND(window), not window.series and not window.count)


def _size_bytes(key: _Key) -> int:
    """What an episode adds to the snapshot at most: its rule and labels, and everything else."""
    return len(msgspec.msgpack.encode(key)) + _EPISODE_BYTES


_COMMANDS: Final = msgspec.json.Decoder(AnyCommand)
_TIME_AND_KIND: Final = attrgetter(
    "start_unix_s", "end_unix_s", "source", "part", "size_s", "of_s", "kind", "every_s", "gap_s", "grouping"
)
