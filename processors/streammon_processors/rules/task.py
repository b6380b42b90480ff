"""The rules task: evaluates rules on windows, in event time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from typing import Annotated, Any, Final, NamedTuple

import msgspec
from msgspec import Meta, Struct
from prometheus_client import Counter

from streammon.broker import Outgoing, Record
from streammon.deadletter import dead_letter_of
from streammon.errors import Rejected
from streammon.events import SCHEMA
from streammon.results import Alert, Kind
from streammon.tick import TICK
from streammon.topics import MAX_RECORD_BYTES
from streammon.wire import MAX_TIME_UNIX_S, SCHEMA_HEADER, read_message
from streammon_processors.rules.alerts import Episode, Labels, firing, orphaned, resolved
from streammon_processors.rules.description import Rule, Rules
from streammon_processors.shapes import Shape

SKIPPED = Counter("streammon_rules_skipped", "Windows that rules did not look at, by why", ["reason"])
MAX_STATE_BYTES: Final = MAX_RECORD_BYTES * 9 // 10
"""What is pending or firing in one partition must fit into one record: 3,000 series with ordinary labels."""

_PATIENCE_S: Final = 300.0  # as long as Prometheus takes a silent series to be there still
_MAX_SERIES_BYTES: Final = 4096
_ROUNDING_S: Final = 1e-6  # times of today resolve 2.4e-7 s, so ten windows of 0.1 s may seem shorter than 1 s

_SortedLabels = tuple[tuple[str, str], ...]
_Key = tuple[str, _SortedLabels]  # the rule's name and the series


class Skipped(StrEnum):
    """Why a rule did not look at a window. The values are labels: add, never rename."""

    SUPPLEMENT = "supplement"
    NOT_ASKED_FOR = "not_asked_for"
    NO_SERIES = "no_series"
    BACK_IN_TIME = "back_in_time"
    TOO_MANY_EPISODES = "too_many_episodes"
    LABELS_TOO_LONG = "labels_too_long"


_Time = Annotated[float, Meta(ge=0, lt=MAX_TIME_UNIX_S)]


class _Window(Struct, tag_field="type", tag="window", gc=False):
    """What every rule needs of a `results.Window`: reading one with its sketches takes six times as long."""

    source: str
    part: str
    series: Labels
    start_unix_s: _Time
    end_unix_s: _Time
    count: int
    size_s: float = 0.0
    of_s: float | None = None
    kind: Kind = "tumbling"
    every_s: float | None = None
    gap_s: float | None = None
    schema: int = SCHEMA


def step(
    rule: Rule, episode: Episode | None, window: _Window, value: float, content: Mapping[str, Any]
) -> tuple[Episode | None, Alert | None]:
    """What one value makes of an episode (None: inactive), and the alert to announce, if that is news."""
    if episode and episode.firing:
        episode = msgspec.structs.replace(episode, through_unix_s=window.end_unix_s)
        return (None, resolved(rule, episode, value, content)) if rule.cleared(value) else (episode, None)
    if not rule.breached(value):
        return None, None
    since = episode.since_unix_s if episode else window.start_unix_s
    held = window.end_unix_s - since >= rule.for_s - _ROUNDING_S
    episode = Episode(
        rule=rule.name,
        version=rule.version,
        severity=rule.severity,
        series=window.series,
        since_unix_s=since,
        through_unix_s=window.end_unix_s,
        value=float(value),
        transition=1 if held else 0,
    )
    return episode, firing(rule, episode, value, content) if held else None


class _Snapshot(Struct, omit_defaults=True):
    next_offset: int | None
    newest_start_unix_s: dict[str, float]
    episodes: list[Episode]


class RulesTask:
    """Evaluates rules on one partition of `windows` and writes to the same partition of `alerts`."""

    waiting: Sequence[str] = ()
    """No topic: time passing alone changes nothing here."""

    def __init__(self, rules: Rules, partition: int, *, max_state_bytes: int = MAX_STATE_BYTES) -> None:
        self._rules = rules
        self._partition = partition
        self._max_state_bytes = max_state_bytes
        self._state_bytes = 0
        self._next_offset: int | None = None
        self._newest_start: dict[str, float] = {}  # see _windows_like
        self._episodes: dict[_Key, Episode] = {}
        self._orphans: list[Episode] = []  # firing, but their rule is gone or decides otherwise now

    def process(self, topic: str, records: Sequence[Record]) -> list[Outgoing]:
        """The alerts that these windows fire or resolve; a record that is no window becomes a dead letter."""
        return [outgoing for record in records for outgoing in self._process_one(topic, record)]

    def snapshot(self) -> bytes:
        """The state after the last output; equal states are equal bytes."""
        episodes = sorted([*self._episodes.values(), *self._orphans], key=_key)
        newest_start = dict(sorted(self._newest_start.items()))
        return msgspec.json.encode(_Snapshot(self._next_offset, newest_start, episodes))

    def restore(self, snapshot: bytes) -> None:
        """Go on from a `snapshot`, also with other rules than it was taken with."""
        state = msgspec.json.decode(snapshot, type=_Snapshot)
        known = [episode for episode in state.episodes if self._still_decides(episode)]
        self._next_offset, self._newest_start = state.next_offset, state.newest_start_unix_s
        self._episodes = {_key(episode): episode for episode in known}
        self._orphans = [e for e in state.episodes if e.firing and not self._still_decides(e)]
        self._state_bytes = sum(map(_size_bytes, self._episodes))

    def offsets(self) -> Mapping[str, int]:
        """The next record of `windows` to read: nothing is read twice."""
        return {} if self._next_offset is None else {"windows": self._next_offset}

    def watermarks(self) -> Mapping[str, float]:
        """Rules follow the time of the windows; they keep none of their own."""
        return {}

    def _process_one(self, topic: str, record: Record) -> Iterator[Outgoing]:
        self._next_offset = record.offset + 1
        if record.value == TICK:
            return
        try:
            window, content = read_message(_decode, record.value or b"")
        except Rejected as error:
            yield dead_letter_of(topic, record, error, to_partition=self._partition)
            return
        rules = self._rules_for(window)
        if reason := self._reason_to_skip(window, rules):
            SKIPPED.labels(reason).inc()
            return
        self._advance(window, rules)
        alerts = [*self._retire(window), *self._evaluate(rules, window, content)]
        yield from (self._outgoing(alert) for alert in alerts)

    def _rules_for(self, window: _Window) -> Sequence[Rule]:
        asked_for = self._rules.looking_at(window.source, Shape.of(window))
        return asked_for if window.of_s else [*self._rules.looking_at(window.source, None), *asked_for]

    def _reason_to_skip(self, window: _Window, rules: Sequence[Rule]) -> Skipped | None:
        if window.part != "main":
            return Skipped.SUPPLEMENT
        if window.of_s and not rules:
            return Skipped.NOT_ASKED_FOR
        if not window.series and not window.count:
            return Skipped.NO_SERIES
        if window.start_unix_s < self._newest_start.get(_windows_like(window), 0.0):
            return Skipped.BACK_IN_TIME
        return None

    def _advance(self, window: _Window, rules: Sequence[Rule]) -> None:
        """Note how far windows of this kind are, and forget what was pending and has been silent for too long."""
        if window.start_unix_s == self._newest_start.get(_windows_like(window)):
            return
        if window.kind != "session":  # those end in order, and do not begin so
            self._newest_start[_windows_like(window)] = window.start_unix_s
        for key, episode in list(self._episodes.items()):
            rule = self._rules.by_name[episode.rule]
            silent_s = window.start_unix_s - episode.through_unix_s
            if rule in rules and not episode.firing and silent_s > max(rule.for_s, _PATIENCE_S):
                self._forget(key)

    def _retire(self, window: _Window) -> list[Alert]:
        """Resolve what is firing without its rule."""
        orphans, self._orphans = self._orphans, []
        return [orphaned(episode, self._rules.by_name.get(episode.rule), window.end_unix_s) for episode in orphans]

    def _evaluate(self, rules: Iterable[Rule], window: _Window, content: Mapping[str, Any]) -> Iterator[Alert]:
        labels = _sorted(window.series)
        for rule in rules:
            if rule.where.items() <= window.series.items():
                value = _value(content, rule.path)
                key = rule.name, labels
                if value is not None and (alert := self._step(key, rule, window, value, content)):
                    yield alert

    def _step(self, key: _Key, rule: Rule, window: _Window, value: float, content: Mapping[str, Any]) -> Alert | None:
        before = self._episodes.get(key)
        after, alert = step(rule, before, window, value, content)
        if after is None:
            self._forget(key)
        elif before or self._has_room_for(key):
            self._episodes[key] = after
        else:
            return None
        return alert

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

    def _forget(self, key: _Key) -> None:
        if self._episodes.pop(key, None):
            self._state_bytes -= _size_bytes(key)

    def _still_decides(self, episode: Episode) -> bool:
        rule = self._rules.by_name.get(episode.rule)
        return rule is not None and rule.version == episode.version

    def _outgoing(self, alert: Alert) -> Outgoing:
        return Outgoing("alerts", alert.id.encode(), msgspec.json.encode(alert), (SCHEMA_HEADER,), self._partition)


def _windows_like(window: _Window) -> str:
    """The windows that come in order of start: the base windows of a source, or its rollups of one shape."""
    return f"{window.source} {Shape.of(window).name}" if window.of_s else window.source


def _key(episode: Episode) -> _Key:
    return episode.rule, _sorted(episode.series)


def _sorted(series: Labels) -> _SortedLabels:
    return tuple(sorted(series.items()))


def _size_bytes(key: _Key) -> int:
    """What an episode adds to the snapshot at most: its rule and labels as JSON, and everything else."""
    return len(msgspec.json.encode(key)) + 200


class _Read(NamedTuple):
    window: _Window
    content: dict[str, Any]

    @property
    def schema(self) -> int:
        return self.window.schema


def _decode(value: bytes) -> _Read:
    """What every rule needs of the record, and all of it."""
    content = msgspec.json.decode(value)
    return _Read(msgspec.convert(content, _Window), content)


def _value(content: Any, path: Iterable[str]) -> float | None:
    """The number at the path, or None: the window does not say."""
    for key in path:
        content = content.get(key) if isinstance(content, dict) else None
    return content if isinstance(content, int | float) else None
