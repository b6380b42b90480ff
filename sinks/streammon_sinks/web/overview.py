"""What the page shows, computed from windows: no I/O and no clock, so every number has an exact answer.

A `Board` takes in windows in any order, each exactly once, and sums them in at most `MAX_POINTS` buckets over
its range; `Board.overview` reads it at a moment in time. Counts and sketches add: endpoints, versions and late
supplements of a model become one distribution, and no percentile is ever averaged. A bucket without windows
is None, never zero and never a guess.

A throughput is per second of the time that the source's windows span, so the buckets at the two ends of the data are
not too low; a bucket in which the processor stood still for a part of the time is.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil, floor, inf
from typing import Final, Literal, NamedTuple, TypeVar

import msgspec
from msgspec import Struct

from streammon.alert_log import AlertLog, Quiet
from streammon.results import Alert, Distribution, Severity, Window
from streammon.sketch import Sketch, merge
from streammon_sinks.web.models import ModelHealth, Said, watched

RANGES_S: Final = (300, 900, 3600, 21600)
"""The time ranges a reader may choose."""
MAX_POINTS: Final = 300
MAX_MODELS: Final = 20
MAX_HOSTS: Final = 20
"""Groups beyond these are counted, not charted: the busiest models, the first hosts by name."""
MAX_ACTIVE: Final = 100
MAX_ENDED: Final = 5
MAX_SILENCES: Final = 20
"""Alerts and silences that are shown; the others are counted."""
MAX_CAUSES: Final = 5

SOURCES: Final = ("inference", "resource")

# -- what goes over the wire ---------------------------------------------------------------------------

Points = list[float | None]
"""One number a bucket, None where there was nothing."""
Level = Literal["good", "warn", "bad", "unknown"]


class Status(Struct, frozen=True, kw_only=True):
    """What only the running process knows; ``up`` gives it to the page.

    ``consumer_lag``: records that were published and not yet read by the processors. ``watermark_lag_s``: now
    minus the oldest watermark of the partitions with data; None: the newest that a window tells of is taken.
    ``components``: what each part of the process is doing, in a word or two.
    """

    consumer_lag: int
    watermark_lag_s: float | None = None
    components: dict[str, str] = {}


class Indicator(Struct, frozen=True, kw_only=True):
    """One tile of the health strip. ``rule`` says in words when it is good, warn or bad."""

    name: str
    value: float | None
    unit: str
    level: Level
    rule: str


class Figures(Struct, frozen=True, kw_only=True):
    """A model in one span of time: requests, requests per second, fraction of errors, seconds."""

    count: int
    throughput_per_s: float | None
    error_rate: float | None
    p50_s: float | None
    p90_s: float | None
    p99_s: float | None


class ModelView(Struct, frozen=True, kw_only=True):
    """All series of one service and model, together."""

    service: str
    model: str
    newest_unix_s: float
    """End of its newest window."""
    newest: Figures
    total: Figures
    throughput_per_s: Points
    error_rate: Points
    p50_s: Points
    p90_s: Points
    p99_s: Points


class HostView(Struct, frozen=True, kw_only=True):
    """One machine: means of each bucket, summed over its disks and network interfaces."""

    name: str
    newest_unix_s: float
    cpu_utilization: Points
    memory_utilization: Points
    filesystem_utilization: Points
    disk_read_bytes_per_s: Points
    disk_write_bytes_per_s: Points
    network_receive_bytes_per_s: Points
    network_transmit_bytes_per_s: Points


class Deed(Struct, frozen=True, kw_only=True):
    """Somebody acknowledged an alert. ``waiting``: a moment ago, and the alert does not show it yet."""

    by: str
    via: str
    time_unix_s: float
    note: str | None = None
    waiting: bool = False


class SilenceView(Struct, frozen=True, kw_only=True):
    """A silence that holds now."""

    id: str
    matchers: list[str]
    by: str
    note: str | None
    ends_unix_s: float


class People(NamedTuple):
    """What people did, at one moment. ``log`` is asked for single alerts only, because it may be growing."""

    log: AlertLog
    silences: Sequence[Quiet]
    version: int


class Overview(Struct, frozen=True, kw_only=True):
    """Everything on the page, as ``GET /api/overview`` returns it. Points belong to ``times_unix_s``, one each."""

    now_unix_s: float
    range_s: int
    step_s: float
    times_unix_s: list[float]
    """Starts of the buckets, oldest first."""
    complete_since_unix_s: float | None
    """There was too much to read: points before this time are left out. None: nothing is missing."""
    latest_unix_s: float | None
    """End of the newest window."""
    indicators: list[Indicator]
    components: dict[str, str]
    alerts: list[Alert]
    """Active ones first, by severity, then the last resolved; of their evidence, the likely causes alone."""
    alerts_left_out: int
    can_act: bool
    """Whether the page takes commands."""
    acknowledged: dict[str, Deed]
    """Who works on what, by the id of the alert."""
    silenced: dict[str, str]
    """The silence that holds for an alert."""
    silences: list[SilenceView]
    silences_left_out: int
    models: list[ModelView]
    models_left_out: int
    quality: list[ModelHealth]
    """How good models are and what drifts, those that need somebody first; empty where nothing was said of that."""
    quality_left_out: int
    hosts: list[HostView]
    hosts_left_out: int


# -- buckets -------------------------------------------------------------------------------------------


class ModelKey(NamedTuple):
    service: str
    model: str


class _Duration:
    """Values that add; quantiles are read once, until more comes in."""

    def __init__(self) -> None:
        self._sketches: list[Sketch] = []
        self._min, self._max = inf, -inf
        self._quantiles: tuple[float | None, ...] | None = None

    def add(self, distribution: Distribution) -> None:
        if distribution.count:
            self._merge([distribution.sketch], distribution.min, distribution.max)

    def join(self, other: _Duration) -> None:
        self._merge(other._sketches, other._min, other._max)

    def _merge(self, sketches: Sequence[Sketch], minimum: float, maximum: float) -> None:
        self._sketches += sketches
        self._min, self._max = min(self._min, minimum), max(self._max, maximum)
        self._quantiles = None

    def quantiles(self) -> tuple[float | None, ...]:
        """p50, p90 and p99 in seconds."""
        if not self._sketches:
            return None, None, None
        if self._quantiles is None:
            self._sketches = [merge(self._sketches)]
            self._quantiles = tuple(self._sketches[0].quantiles((0.5, 0.9, 0.99), self._min, self._max))
        return self._quantiles


class _Requests:
    """One model in one bucket, or in many."""

    def __init__(self) -> None:
        self.count = self.errors = 0
        self.duration = _Duration()

    def add(self, window: Window) -> None:
        self.count += window.count
        self.errors += window.error_count or 0
        if window.duration_s is not None:
            self.duration.add(window.duration_s)

    def join(self, other: _Requests) -> None:
        self.count += other.count
        self.errors += other.errors
        self.duration.join(other.duration)

    def figures(self, seconds: float) -> Figures:
        p50, p90, p99 = self.duration.quantiles()
        return Figures(
            count=self.count,
            throughput_per_s=self.count / seconds if seconds > 0 else None,
            error_rate=self.errors / self.count if self.count else None,
            p50_s=p50,
            p90_s=p90,
            p99_s=p99,
        )


class _Gauge(NamedTuple):
    """Where a field of `HostView` comes from. ``ids``: a pattern of the ids that are summed."""

    field: str
    entity: str
    metric: str
    ids: re.Pattern[str]


# A logical disk repeats what the disks below it do, and a bridge what its interfaces do.
_DISKS: Final = re.compile(r"(?!loop|ram|zram|dm-|md\d)")
_INTERFACES: Final = re.compile(r"(?!lo\d*$|veth|docker|br-|cni|virbr)")
_GAUGES: Final = (
    _Gauge("cpu_utilization", "cpu", "utilization", re.compile("total$")),
    _Gauge("memory_utilization", "memory", "utilization", re.compile("ram$")),
    _Gauge("filesystem_utilization", "filesystem", "utilization", re.compile("/$")),
    _Gauge("disk_read_bytes_per_s", "disk", "read_bytes_per_s", _DISKS),
    _Gauge("disk_write_bytes_per_s", "disk", "write_bytes_per_s", _DISKS),
    _Gauge("network_receive_bytes_per_s", "network", "receive_bytes_per_s", _INTERFACES),
    _Gauge("network_transmit_bytes_per_s", "network", "transmit_bytes_per_s", _INTERFACES),
)
_ENTITIES: Final = frozenset(gauge.entity for gauge in _GAUGES)


def _is_of_machine(window: Window) -> bool:
    """Services, containers and GPUs say on which host they are; that alone is nothing to draw of it."""
    return window.series.get("entity") in _ENTITIES


class _Measured:
    """One host in one bucket: of each field and each of its ids, the sum over samples and their number."""

    def __init__(self) -> None:
        self._sums: defaultdict[str, dict[str, tuple[float, int]]] = defaultdict(dict)

    def add(self, window: Window) -> None:
        entity, thing = window.series.get("entity"), window.series.get("id", "")
        for gauge in _GAUGES:
            if gauge.entity == entity and gauge.ids.match(thing):
                found = (window.gauges or {}).get(gauge.metric)
                if found is not None:
                    total, count = self._sums[gauge.field].get(thing, (0.0, 0))
                    self._sums[gauge.field][thing] = (
                        total + found.mean * window.count,
                        count + window.count,
                    )

    def value(self, name: str) -> float | None:
        """The field's means, summed over its ids."""
        means = [total / count for total, count in self._sums.get(name, {}).values() if count]
        return sum(means) if means else None


@dataclass
class _Bucket:
    models: defaultdict[ModelKey, _Requests] = field(default_factory=lambda: defaultdict(_Requests))
    hosts: defaultdict[str, _Measured] = field(default_factory=lambda: defaultdict(_Measured))
    counts: Counter[str] = field(default_factory=Counter)


_Key = TypeVar("_Key")
_Part = TypeVar("_Part")


class Board:
    """The windows of the last ``range_s`` seconds, in buckets of a whole number of windows."""

    def __init__(self, range_s: int, size_s: float) -> None:
        self.range_s, self.size_s = range_s, size_s
        self.step_s = size_s * ceil(range_s / size_s / MAX_POINTS)
        self._buckets: defaultdict[int, _Bucket] = defaultdict(_Bucket)
        self._first = -inf
        self._cut_unix_s: float | None = None
        self._spans: dict[str, tuple[float, float]] = {}
        self._newest: dict[ModelKey | str, float] = {}
        self._watermark = 0.0

    def add(self, window: Window) -> None:
        """Take in a window, which has not been added before."""
        number = self._number(window.start_unix_s + window.size_s / 2)
        if number < self._first:  # a replay of old data, perhaps long, of which nothing would be shown
            return
        bucket = self._buckets[number]
        self._watermark = max(self._watermark, window.completeness.watermark_unix_s)
        counters = msgspec.structs.asdict(window.completeness)
        bucket.counts.update({name: counters[name] for name in _COUNTERS} | {"counted": window.count})
        if not window.count:  # counters alone: nothing happened in its series
            return
        start, end = self._spans.get(window.source, (inf, -inf))
        self._spans[window.source] = min(start, window.start_unix_s), max(end, window.end_unix_s)
        if window.source == "inference":
            key = ModelKey(window.series.get("service", ""), window.series.get("model", ""))
            bucket.models[key].add(window)
            self._newest[key] = max(self._newest.get(key, -inf), window.end_unix_s)
        elif window.source == "resource" and (host := window.series.get("host")) and _is_of_machine(window):
            bucket.hosts[host].add(window)
            self._newest[host] = max(self._newest.get(host, -inf), window.end_unix_s)

    def cut(self, before_unix_s: float) -> None:
        """Windows that start at ``before_unix_s`` or earlier are not all known: leave their bucket out, and say so."""
        self._first = self._number(before_unix_s) + 1
        self._cut_unix_s = self._first * self.step_s
        self._drop_old()

    def overview(
        self,
        now_unix_s: float,
        status: Status,
        alerts: Sequence[Alert],
        people: People | None = None,
        said: Said | None = None,
    ) -> Overview:
        """The board as of now; buckets that have left the range are forgotten."""
        last = self._number(now_unix_s)
        self._first = max(self._first, last - ceil(self.range_s / self.step_s) + 1)
        self._drop_old()
        numbers = range(last - ceil(self.range_s / self.step_s) + 1, last + 1)
        counts = Counter[str]()
        for number in numbers:
            if number in self._buckets:
                counts.update(self._buckets[number].counts)
        models = self._group(numbers, lambda bucket: bucket.models)
        hosts = self._group(numbers, lambda bucket: bucket.hosts)
        busiest = sorted(models, key=lambda key: (-sum(part.count for part in models[key].values()), key))
        alerts = [alert for alert in alerts if alert.has_fired or alert.state == "pending"]
        shown = shown_alerts(alerts)
        silences = people.silences if people else []
        cut = self._cut_unix_s
        quality, quality_left_out = watched(said or Said(), self.range_s)
        return Overview(
            now_unix_s=now_unix_s,
            range_s=self.range_s,
            step_s=self.step_s,
            times_unix_s=[number * self.step_s for number in numbers],
            complete_since_unix_s=cut if cut is not None and cut > numbers[0] * self.step_s else None,
            latest_unix_s=max((end for _, end in self._spans.values()), default=None),
            indicators=indicators(counts, self._with_lag(status, now_unix_s), alerts),
            components=status.components,
            alerts=shown,
            alerts_left_out=len(alerts) - len(shown),
            can_act=people is not None,
            acknowledged=_acknowledged(shown, people, now_unix_s),
            silenced=_silenced(shown, silences),
            silences=list(map(_silence_view, silences[:MAX_SILENCES])),
            silences_left_out=max(0, len(silences) - MAX_SILENCES),
            models=[self._model(key, numbers, models[key]) for key in busiest[:MAX_MODELS]],
            models_left_out=max(0, len(models) - MAX_MODELS),
            quality=quality,
            quality_left_out=quality_left_out,
            hosts=[self._host(name, numbers, hosts[name]) for name in sorted(hosts)[:MAX_HOSTS]],
            hosts_left_out=max(0, len(hosts) - MAX_HOSTS),
        )

    def _with_lag(self, status: Status, now_unix_s: float) -> Status:
        if status.watermark_lag_s is not None or not self._watermark:
            return status
        return msgspec.structs.replace(status, watermark_lag_s=max(0.0, now_unix_s - self._watermark))

    def _number(self, time_unix_s: float) -> int:
        return floor(time_unix_s / self.step_s)

    def _drop_old(self) -> None:
        for number in [number for number in self._buckets if number < self._first]:
            del self._buckets[number]
        self._newest = {key: end for key, end in self._newest.items() if end > self._first * self.step_s}

    def _group(
        self, numbers: Iterable[int], of: Callable[[_Bucket], Mapping[_Key, _Part]]
    ) -> dict[_Key, dict[int, _Part]]:
        groups: defaultdict[_Key, dict[int, _Part]] = defaultdict(dict)
        for number in numbers:
            if number in self._buckets:
                for key, part in of(self._buckets[number]).items():
                    groups[key][number] = part
        return groups

    def _model(self, key: ModelKey, numbers: Sequence[int], buckets: Mapping[int, _Requests]) -> ModelView:
        figures = {number: part.figures(self._seconds("inference", number)) for number, part in buckets.items()}
        total = _Requests()
        for part in buckets.values():
            total.join(part)

        def points(name: str) -> Points:
            return [getattr(figures.get(number), name, None) for number in numbers]

        return ModelView(
            service=key.service,
            model=key.model,
            newest_unix_s=self._newest[key],
            newest=figures[max(figures)],
            total=total.figures(sum(self._seconds("inference", number) for number in numbers)),
            throughput_per_s=points("throughput_per_s"),
            error_rate=points("error_rate"),
            p50_s=points("p50_s"),
            p90_s=points("p90_s"),
            p99_s=points("p99_s"),
        )

    def _host(self, name: str, numbers: Sequence[int], buckets: Mapping[int, _Measured]) -> HostView:
        points: dict[str, Points] = {
            gauge.field: [buckets[number].value(gauge.field) if number in buckets else None for number in numbers]
            for gauge in _GAUGES
        }
        return HostView(name=name, newest_unix_s=self._newest[name], **points)

    def _seconds(self, source: str, number: int) -> float:
        """How much of a bucket the source's windows span."""
        start, end = self._spans.get(source, (inf, -inf))
        return max(0.0, min((number + 1) * self.step_s, end) - max(number * self.step_s, start))


# -- alerts and health ---------------------------------------------------------------------------------

_STATES: Final = ("firing", "no_data", "acknowledged", "pending", "resolved")
_SEVERITIES: Final[tuple[Severity, ...]] = ("critical", "warning", "info")


def shown_alerts(alerts: Iterable[Alert]) -> list[Alert]:
    """What is active, by state and severity, then the last that ended; bounded, and with likely causes alone."""

    def urgency(alert: Alert) -> tuple[int, int, float]:
        severity = 0 if alert.state == "resolved" else _SEVERITIES.index(alert.severity)
        return _STATES.index(alert.state), severity, -alert.updated_unix_s

    ordered = sorted(alerts, key=urgency)
    active = [alert for alert in ordered if alert.state != "resolved"][:MAX_ACTIVE]
    ended = [alert for alert in ordered if alert.state == "resolved"][:MAX_ENDED]
    return [msgspec.structs.replace(alert, evidence=_causes(alert)) for alert in active + ended]


class Cause(Struct, frozen=True, omit_defaults=True):
    """What may be behind an alert, and why it is suspected: the ``causes`` of its evidence."""

    what: str
    why: str
    score: float | None = None
    lag_s: float | None = None


def _causes(alert: Alert) -> dict[str, list[Cause]]:
    try:
        causes = msgspec.convert(alert.evidence.get("causes", []), list[Cause])
    except msgspec.ValidationError:
        return {}
    cut = (msgspec.structs.replace(each, what=each.what[:500], why=each.why[:500]) for each in causes[:MAX_CAUSES])
    return {"causes": list(cut)} if causes else {}


def _acknowledged(alerts: Iterable[Alert], people: People | None, now_unix_s: float) -> dict[str, Deed]:
    if people is None:
        return {}
    given = {alert.id: _deed(people.log, alert, now_unix_s) for alert in alerts}
    return {id_: deed for id_, deed in given.items() if deed}


def _deed(log: AlertLog, alert: Alert, now_unix_s: float) -> Deed | None:
    waiting = log.waiting(alert, now_unix_s) if alert.state in ("firing", "no_data") else None
    given = waiting or log.acknowledgement(alert)
    if given is None:
        return None
    return Deed(by=given.by, via=given.via, time_unix_s=given.time_unix_s, note=given.note, waiting=waiting is not None)


def _silenced(alerts: Iterable[Alert], silences: Sequence[Quiet]) -> dict[str, str]:
    active = [alert for alert in alerts if alert.state != "resolved"]
    found = {alert.id: next((each.silence.id for each in silences if each.matches(alert)), None) for alert in active}
    return {alert_id: silence_id for alert_id, silence_id in found.items() if silence_id}


def _silence_view(quiet: Quiet) -> SilenceView:
    silence = quiet.silence
    matchers = [str(matcher) for matcher in silence.matchers]
    return SilenceView(
        id=silence.id, matchers=matchers, by=silence.by, note=silence.note, ends_unix_s=quiet.ends_unix_s
    )


_COUNTERS: Final = ("late", "rejected", "duplicate", "dropped", "missing")


def indicators(counts: Mapping[str, int], status: Status, alerts: Iterable[Alert]) -> list[Indicator]:
    """The health strip. ``counts``: `Completeness` summed over all windows shown, and events ``counted``."""
    sent = sum(counts.get(name, 0) for name in ("counted", "late", "duplicate", "rejected", "dropped"))

    def counter(name: str, unit: str, what: str, warn: float, bad: float) -> Indicator:
        value = max(0, counts.get(name, 0))  # missing batches may turn up after the range has begun
        part = value / sent if sent else float(value > 0)
        limits = f"good up to {warn:.0%} of all events, bad above {bad:.0%}"
        return Indicator(
            name=name.capitalize(),
            value=value,
            unit=unit,
            level=_level(part, warn, bad),
            rule=f"{what}, in the range shown; {limits}",
        )

    return [
        _lag("Watermark lag", status.watermark_lag_s, "s", 10, 60, "How far results are behind the clock"),
        _lag("Consumer lag", status.consumer_lag, "records", 1000, 100_000, "Records not yet processed"),
        counter("late", "events", "Events that came after their window had closed, and were added to it", 0.01, 0.1),
        counter("rejected", "events", "Events that could not be accepted; see the dead letter topic", 0, 0.01),
        counter("duplicate", "events", "Events that came twice and were counted once", 0.05, 0.5),
        counter("dropped", "events", "Events that agents gave up on", 0, 0.01),
        counter("missing", "batches", "Batches that were sent and have not arrived", 0, 0.01),
        _firing([alert.severity for alert in alerts if alert.state in ("firing", "acknowledged")]),
    ]


def _lag(name: str, value: float | None, unit: str, warn: float, bad: float, what: str) -> Indicator:
    rule = f"{what}; good up to {warn:,g} {unit}, bad above {bad:,g} {unit}"
    return Indicator(name=name, value=value, unit=unit, level=_level(value, warn, bad), rule=rule)


def _firing(severities: Sequence[Severity]) -> Indicator:
    return Indicator(
        name="Firing alerts",
        value=len(severities),
        unit="",
        level="bad" if "critical" in severities else "warn" if severities else "good",
        rule="Alerts firing or acknowledged; good with none, bad with a critical one",
    )


def _level(value: float | None, warn: float, bad: float) -> Level:
    if value is None:
        return "unknown"
    return "bad" if value > bad else "warn" if value > warn else "good"
