"""What the windows task must publish, worked out the slow and obvious way: event by event, in dicts and lists.

It shares no code with the task but the settings, the enums and the shape of a result. It does not validate
records: whoever breaks one says so in its `Entry`. It does not know the task's bounds (streams, gaps, revisions).
"""

from __future__ import annotations

import base64
import json
import math
import struct
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import msgspec
import pytest

from streammon.config import WindowSettings
from streammon.errors import Reason
from streammon.results import DISTRIBUTIONS, OTHER, Distribution, Window
from streammon.tick import TICK

Labels = tuple[tuple[str, str], ...]
Event = dict[str, Any]

QUANTILE_ERROR = 0.0055
COUNTERS = ("late", "duplicate", "missing", "rejected", "dropped")


class Refused(NamedTuple):
    """That a record is refused whole, why, and how many events it claims to hold."""

    reason: Reason
    events: int = 1


class Entry(NamedTuple):
    """One record of the log, by its broker's time in milliseconds; its offset is its place in the log."""

    timestamp: int
    value: bytes | None
    refused: Refused | None = None


class Letter(NamedTuple):
    """A dead letter: some events of a record, or all its bytes."""

    reason: Reason
    offset: int
    events: list[Event] | None
    value: bytes | None


@dataclass
class Expected:
    """One window record: everything it says follows from its events, in log order."""

    part: str
    revision: int
    series: dict[str, str]
    number: int
    events: list[Event]
    counters: dict[str, int]
    watermark: float

    @property
    def key(self) -> tuple[Any, ...]:
        return self.number, self.part, self.revision, tuple(sorted(self.series.items()))


@dataclass
class Publication:
    """What is written at one place of the log."""

    offset: int  # of the record behind which, or within which, it happens
    windows: list[Expected]
    letters: list[Letter]


@dataclass
class _Batch:
    events: list[Event]
    identity: tuple[str, str, int] | None
    dropped: int = 0
    sparse: bool = False


# --- reading ------------------------------------------------------------------------------------------------


def read(value: bytes) -> list[_Batch]:
    """The batches of a well-formed record of any density."""
    content = json.loads(value)
    if isinstance(content, dict) and "columns" in content:
        return [_from_columns(content)]
    if isinstance(content, dict):
        return [_Batch([_bare(content)], _identity(content))]
    batches: list[_Batch] = []
    for event in content:
        if not batches or _identity(event) != batches[-1].identity:
            batches.append(_Batch([], _identity(event)))
        batches[-1].events.append(_bare(event))
    return batches or [_Batch([], None)]


def _from_columns(content: Event) -> _Batch:
    columns = {name: _unpacked(column) for name, column in content["columns"].items()}
    for name, constant in content["constant"].items():
        columns[name] = [constant] * content["count"]
    events = [_bare({name: values[row] for name, values in columns.items()}) for row in range(content["count"])]
    return _Batch(events, _identity(content), content.get("dropped", 0), content.get("sparse", False))


def _unpacked(column: Any) -> list[Any]:
    if isinstance(column, list):
        return column
    if "dictionary" in column:
        return [column["dictionary"][code] for code in _unpacked(column["index"])]
    ((code, text),) = column.items()
    letter, size = {
        "f8": ("d", 8),
        "f4": ("f", 4),
        "i8": ("q", 8),
        "i4": ("i", 4),
        "u2": ("H", 2),
        "u1": ("B", 1),
    }[code]
    data = base64.b64decode(text)
    return list(struct.unpack(f"<{len(data) // size}{letter}", data))


def _bare(event: Event) -> Event:
    envelope = ("schema", "type", "agent", "boot", "seq")
    return {name: value for name, value in event.items() if value is not None and name not in envelope}


def _identity(carrier: Event) -> tuple[str, str, int] | None:
    return (carrier["agent"], carrier["boot"], carrier["seq"]) if "seq" in carrier else None


def fault(event: Event) -> Reason | None:
    """Why an event is refused for its values."""
    numbers = {name: value for name, value in event.items() if type(value) in (int, float)}
    nested = {**event.get("metrics", {}), **event.get("features", {}), **event.get("counters", {})}
    nested |= {name: histogram["sum"] for name, histogram in event.get("histograms", {}).items()}
    if any(isinstance(v, float) and not math.isfinite(v) for v in [*numbers.values(), *nested.values()]):
        return Reason.NON_FINITE
    if not 0 <= event["time_unix_s"] < 1e11:
        return Reason.BAD_TIME
    free = ("time_unix_s", "confidence", "prediction")
    if any(value < 0 for name, value in numbers.items() if name not in free):
        return Reason.NEGATIVE
    if any(value < 0 for value in event.get("counters", {}).values()):
        return Reason.NEGATIVE
    return None


# --- the semantics ------------------------------------------------------------------------------------------


class _Stream:
    def __init__(self) -> None:
        self.seen: set[int] = set()

    def judge(self, seq: int) -> tuple[bool, int]:
        """Whether this number is a duplicate, and by how much the number of missing ones changes."""
        before = self._missing()
        if seq in self.seen:
            return True, 0
        self.seen.add(seq)
        return False, self._missing() - before

    def _missing(self) -> int:
        return max(self.seen, default=-1) + 1 - len(self.seen)


@dataclass
class _Pending:
    supplements: dict[int, dict[Labels, list[Event]]] = field(default_factory=dict)
    counters: dict[Labels | None, dict[str, int]] = field(default_factory=dict)
    letters: list[Letter] = field(default_factory=list)
    weight: int = 0

    def count(self, series: Labels | None, name: str, number: int) -> None:
        if number:
            self.counters.setdefault(series, dict.fromkeys(COUNTERS, 0))[name] += number

    def refuse(self, reason: Reason, offset: int, event: Event) -> None:
        last = self.letters[-1] if self.letters else None
        if last is not None and last.events is not None and (last.reason, last.offset) == (reason, offset):
            last.events.append(event)
        else:
            self.letters.append(Letter(reason, offset, [event], None))

    def __bool__(self) -> bool:
        return bool(self.supplements or self.counters or self.letters)


class Oracle:
    """One topic of one partition. Feed it the log; `publications` is what must be written, and when."""

    def __init__(self, topic: str, settings: WindowSettings, pending_limit: int = 20_000) -> None:
        self.topic = topic
        self.settings = settings
        self.pending_limit = pending_limit
        self.newest = -math.inf
        self.broker_ms: int | None = None
        self.open: dict[int, dict[Labels, list[Event]]] = {}
        self.pending = _Pending()
        self.streams: dict[tuple[str, str], _Stream] = {}
        self.revisions: dict[tuple[int, Labels], int] = {}
        self.publications: list[Publication] = []
        self._previous = -1, 0.0  # offset and event time of the last event

    def feed(self, log: Iterable[Entry]) -> list[Publication]:
        for offset, entry in enumerate(log):
            if entry.value == TICK:
                self._tick(offset, entry)
            elif entry.refused is not None:
                self._broken(offset, entry, entry.refused)
            else:
                for batch in read(entry.value or b""):
                    self._batch(offset, entry, batch)
        return self.publications

    @property
    def watermark(self) -> float:
        return self.newest - self.settings.lateness_s

    def _first_open(self) -> float:
        """The number of the first window that is not closed."""
        size = self.settings.size_s
        return math.floor(self.watermark / size) if self.newest > -math.inf else -math.inf

    def _tick(self, offset: int, entry: Entry) -> None:
        if self.broker_ms is not None:
            self.newest += max(0, entry.timestamp - self.broker_ms) / 1000
        self.broker_ms = entry.timestamp
        if self.pending or any(number < self._first_open() for number in self.open):
            self._publish(offset)

    def _broken(self, offset: int, entry: Entry, refused: Refused) -> None:
        self.broker_ms = entry.timestamp
        self.pending.count(None, "rejected", refused.events)
        self.pending.letters.append(Letter(refused.reason, offset, None, entry.value))
        self.pending.weight += 4 + len(entry.value or b"") // 256
        self._publish_if_due(offset, self._first_open())

    def _batch(self, offset: int, entry: Entry, batch: _Batch) -> None:
        duplicate, missing = False, 0
        if batch.identity is not None:
            agent, boot, seq = batch.identity
            duplicate, missing = self.streams.setdefault((agent, boot), _Stream()).judge(seq)
            self.pending.weight += 1
        first = self._series(batch.events[0]) if batch.events else None
        self.broker_ms = entry.timestamp
        self.pending.count(first, "missing", 0 if batch.sparse else missing)
        self.pending.count(first, "dropped", 0 if duplicate else batch.dropped)
        share = len(entry.value or b"") // max(1, len(batch.events))
        for event in batch.events:
            before = self._first_open()
            if duplicate:
                self.pending.count(self._series(event), "duplicate", 1)
            else:
                self._event(offset, entry, event, share)
            self._previous = offset, event["time_unix_s"]
            self._publish_if_due(offset, before)
        if not batch.events:
            self._publish_if_due(offset, self._first_open())

    def _is_beside_previous(self, offset: int, time: float) -> bool:
        """Whether the event before this one is of the same record and window."""
        there, then = self._previous
        size = self.settings.size_s
        return there == offset and math.isfinite(then) and math.floor(then / size) == math.floor(time / size)

    def _event(self, offset: int, entry: Entry, event: Event, share: int) -> None:
        time, settings = event["time_unix_s"], self.settings
        reason = fault(event)
        if reason is None and time > entry.timestamp / 1000 + settings.max_future_s:
            reason = Reason.FUTURE
        late = reason is None and math.floor(time / settings.size_s) < self._first_open()
        if late and time < self.watermark - settings.max_late_s:
            reason = Reason.TOO_LATE
        if reason is not None:
            self.pending.count(self._series(event), "rejected", 1)
            self.pending.refuse(reason, offset, event)
            self.pending.weight += 4 + share // 256
            return
        windows = self.pending.supplements if late else self.open
        self._add(windows.setdefault(math.floor(time / settings.size_s), {}), event)
        self.pending.weight += (1 if self._is_beside_previous(offset, time) else 50) if late else 0
        self.newest = max(self.newest, time)

    def _add(self, window: dict[Labels, list[Event]], event: Event) -> None:
        series = self._series(event)
        if series not in window and len(window) >= self.settings.max_series:
            series = self._other()
        window.setdefault(series, []).append(event)

    def _series(self, event: Event) -> Labels:
        if self.topic == "inference":
            return tuple((name, event[name]) for name in self.settings.inference_by if name in event)
        own = [(name, event[name]) for name in ("host", "entity", "id")]
        free = sorted(event.get("labels", {}).items())
        return (*own, *((k, v) for k, v in free if k not in ("host", "entity", "id", "labels")))

    def _other(self) -> Labels:
        names = self.settings.inference_by if self.topic == "inference" else ("host", "entity", "id")
        return tuple((name, OTHER) for name in names)

    def _publish_if_due(self, offset: int, first_open_before: float) -> None:
        crossed = self._first_open() > first_open_before
        closes = any(number < self._first_open() for number in self.open)
        full = self.pending.weight >= self.pending_limit
        if closes or full or (self.pending and crossed):
            self._publish(offset)

    def _publish(self, offset: int) -> None:
        pending, self.pending = self.pending, _Pending()
        windows: list[Expected] = []

        def say(number: int, part: str, series: Labels | None, events: list[Event]) -> None:
            key = (number, tuple(sorted(series or ())))
            if part == "late":
                self.revisions[key] = self.revisions.get(key, 0) + 1
            counters = pending.counters.pop(series, None) or dict.fromkeys(COUNTERS, 0)
            counters["late"] = len(events) if part == "late" else 0
            revision = self.revisions[key] if part == "late" else 0
            mark = self.watermark if self.newest > -math.inf else 0.0
            windows.append(Expected(part, revision, dict(series or ()), number, events, counters, mark))

        for number in sorted(number for number in self.open if number < self._first_open()):
            for series, events in self.open.pop(number).items():
                say(number, "main", series, events)
        for number in sorted(pending.supplements):
            for series, events in pending.supplements[number].items():
                say(number, "late", series, events)
        for left in list(pending.counters):
            say(self._last_closed(), "late", left, [])
        self.publications.append(Publication(offset, windows, pending.letters))

    def _last_closed(self) -> int:
        now = self.watermark if self.newest > -math.inf else (self.broker_ms or 0) / 1000
        return math.floor(now / self.settings.size_s) - 1


# --- comparing ----------------------------------------------------------------------------------------------


def nearest_rank(values: Sequence[float], q: float) -> float:
    """The exact quantile."""
    return sorted(values)[max(1, math.ceil(q * len(values))) - 1]


def check(window: Window, expected: Expected, topic: str, settings: WindowSettings) -> None:
    """Every number of a window record against the events it must hold."""
    events, size = expected.events, settings.size_s
    assert window.source == {"inference": "inference", "resources": "resource"}[topic]
    assert (window.start_unix_s, window.end_unix_s) == (expected.number * size, (expected.number + 1) * size)
    assert (window.size_s, window.series) == (size, expected.series)
    assert (window.count, window.throughput_per_s) == (len(events), len(events) / size)
    completeness = window.completeness
    assert {name: getattr(completeness, name) for name in COUNTERS} == expected.counters
    assert completeness.watermark_unix_s == expected.watermark
    if topic == "inference":
        errors = sum(event["status"] == "error" for event in events)
        assert window.error_count == errors
        assert window.error_rate == (errors / len(events) if events else 0.0)
    else:
        assert (window.error_count, window.error_rate) == (None, None)
    for name in DISTRIBUTIONS:
        kept = name in settings.inference_distributions
        _check_distribution(getattr(window, name), [event[name] for event in events if kept and name in event])
    _check_gauges(window, events)
    _check_counters(window, events)
    _check_histograms(window, events)
    _check_exemplars(window, events)
    assert window.cost == (_costs(events) or None)


def _check_distribution(found: Distribution | None, values: list[float]) -> None:
    if not values:
        assert found is None
        return
    assert found is not None
    total = 0.0
    for value in values:  # in log order: sums of floats depend on it
        total += value
    assert (found.count, found.sum, found.min, found.max) == (len(values), total, min(values), max(values))
    assert found.mean == total / len(values)
    for q, estimate in ((0.5, found.p50), (0.9, found.p90), (0.99, found.p99)):
        exact = nearest_rank(values, q)
        assert abs(estimate - exact) <= QUANTILE_ERROR * abs(exact), (q, estimate, exact)
    assert found.sketch.count == len(values)


def _check_gauges(window: Window, events: list[Event]) -> None:
    names = {name for event in events for name in event.get("metrics", {})}
    assert set(window.gauges or {}) == names
    for name in names:
        samples = [(e["time_unix_s"], e["metrics"][name]) for e in events if name in e.get("metrics", {})]
        values = [value for _, value in samples]
        total = 0.0
        for value in values:
            total += value
        newest = max(time for time, _ in samples)
        last = [value for time, value in samples if time == newest][-1]
        gauge = (window.gauges or {})[name]
        assert (gauge.min, gauge.max, gauge.last) == (min(values), max(values), last)
        assert gauge.mean == total / len(values)


def _check_counters(window: Window, events: list[Event]) -> None:
    sums: dict[str, float] = {}
    for event in events:
        for name, more in event.get("counters", {}).items():
            sums[name] = sums.get(name, 0.0) + more
    assert {name: counter.sum for name, counter in (window.counters or {}).items()} == sums
    for counter in (window.counters or {}).values():
        assert counter.per_s == counter.sum / window.size_s


def _check_histograms(window: Window, events: list[Event]) -> None:
    sent: dict[str, list[Event]] = {}
    for event in events:
        for name, histogram in event.get("histograms", {}).items():
            if sum(_buckets(histogram["sketch"], 0).values()):
                sent.setdefault(name, []).append(histogram)
    assert set(window.distributions or {}) == set(sent)
    for name, histograms in sent.items():
        _check_merged((window.distributions or {})[name], histograms)


def _check_merged(found: Distribution, histograms: list[Event]) -> None:
    scale = min(histogram["sketch"]["scale"] for histogram in histograms)
    buckets: Counter[tuple[int, int]] = Counter()
    total = 0.0
    for histogram in histograms:
        buckets += _buckets(histogram["sketch"], scale)
        total += histogram["sum"]
    ours = msgspec.to_builtins(found.sketch)
    assert (ours["scale"], _buckets(ours, scale), found.count) == (scale, buckets, sum(buckets.values()))
    low = min(histogram.get("min", _outermost(histogram)[0]) for histogram in histograms)
    high = max(histogram.get("max", _outermost(histogram)[1]) for histogram in histograms)
    assert found.sum == total
    assert [found.min, found.max] == pytest.approx([low, high], rel=1e-12)
    assert found.mean == pytest.approx(min(max(total / found.count, low), high))
    for q, estimate in ((0.5, found.p50), (0.9, found.p90), (0.99, found.p99)):
        lower, upper = _bounds(sorted(buckets.elements(), key=_by_value)[max(1, math.ceil(q * found.count)) - 1], scale)
        assert min(max(lower, low), high) * (1 - 1e-12) - 1e-9 <= estimate <= min(max(upper, low), high) + 1e-9


def _buckets(sketch: Mapping[str, Any], scale: int) -> Counter[tuple[int, int]]:
    """By sign and number at a scale, how many values; zeros have sign and number 0."""
    found = Counter({(0, 0): sketch["zero_count"]})
    for sign, before in ((1, ""), (-1, "negative_")):
        for place, count in enumerate(_unpacked(sketch.get(f"{before}counts", []))):
            found[sign, (sketch.get(f"{before}offset", 0) + place) >> (sketch["scale"] - scale)] += count
    return +found


def _by_value(bucket: tuple[int, int]) -> tuple[int, int]:
    sign, number = bucket
    return sign, sign * number


def _bounds(bucket: tuple[int, int], scale: int) -> tuple[float, float]:
    sign, number = bucket
    ends = sorted(sign * 2.0 ** ((number + step) / 2**scale) for step in (0, 1))
    return ends[0], ends[1]


def _outermost(histogram: Event) -> tuple[float, float]:
    """Between which its values lie as far as is known: its buckets, its mean and the extreme that was sent."""
    buckets = _buckets(histogram["sketch"], histogram["sketch"]["scale"])
    ends = [end for bucket in buckets for end in _bounds(bucket, histogram["sketch"]["scale"])]
    ends += [histogram["sum"] / sum(buckets.values())]
    ends += [histogram[name] for name in ("min", "max") if name in histogram]
    return min(ends), max(ends)


def _check_exemplars(window: Window, events: list[Event]) -> None:
    found = [(e.duration_s, e.trace_id, e.event_id) for e in window.exemplars or ()]
    traced = [e for e in events if "duration_s" in e and ("trace_id" in e or "event_id" in e)]
    slowest = sorted(traced, key=lambda event: -event["duration_s"])[:3]
    assert found == [(e["duration_s"], e.get("trace_id"), e.get("event_id")) for e in slowest]


def _costs(events: list[Event]) -> dict[str, float]:
    costs: dict[str, float] = {}
    for event in events:
        if "cost_amount" in event:
            currency = event.get("cost_currency", "")
            costs[currency] = costs.get(currency, 0.0) + event["cost_amount"]
    return costs


def same_event(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Equal, where NaN equals NaN."""
    return repr(_floats(one)) == repr(_floats(other))


def _floats(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _floats(value[name]) for name in sorted(value)}
    return float(value) if type(value) in (int, float) else value
