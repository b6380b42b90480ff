"""Metrics to resource events: one event for each label set and moment, with all metrics that have exactly these labels.

==========================================  ==========================================================================
gauge, cumulative sum that may fall         ``metrics``: the value
sum that only grows                         ``counters``: what was added since the point before
explicit and exponential histogram          ``histograms``: the values since the point before; sum exact
summary, and a histogram without buckets    ``counters`` ``NAME_count`` and ``NAME_sum``; quantiles are ``metrics`` of a
                                            label set with ``quantile``, as Prometheus has them
==========================================  ==========================================================================

What streams were before is remembered, at most ``agent.otlp.max_series`` of them, until their metric has been silent
for `FORGET_S`. It changes only once the events of a request are durable (`Reading.commit`), so that a request which
was turned away can be sent again without losing or repeating anything.

A stream that is new but whose metric has been seen before began in between, so its first value counts; so it does if
its sender says that it began after we did. All other first values are baselines.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.metrics.v1.metrics_pb2 import AggregationTemporality, DataPointFlags, Metric

from streammon.clock import Clock
from streammon.sketch import Sketch
from streammon_agents.gateway.otlp.points import (
    Intervals,
    Labels,
    Observed,
    Refused,
    Repeated,
    Stamps,
    State,
    explicit,
    exponential,
    finite,
    grown,
    interval,
    number,
    observed,
    told,
)
from streammon_agents.gateway.otlp.spans import Read
from streammon_agents.gateway.otlp.values import MAX_TEXT, NS, Origin, Refusal, scalar

FORGET_S = 1800.0
"""A metric that is silent for so long is forgotten."""
SWEEP_S = 60.0
MAX_LABELS = 64
"""Labels of one point."""
MAX_WEIGHT = 64
"""Metrics of one event; a histogram counts as several. The largest event is still smaller than a record may be."""
HISTOGRAM_WEIGHT = 4
ONE_COLLECTION_NS = NS // 2
"""Points of one metric that are no further apart are of one collection, cut into several requests perhaps."""

DELTA = AggregationTemporality.AGGREGATION_TEMPORALITY_DELTA
CUMULATIVE = AggregationTemporality.AGGREGATION_TEMPORALITY_CUMULATIVE
NO_VALUE = DataPointFlags.DATA_POINT_FLAGS_NO_RECORDED_VALUE_MASK

MetricKey = tuple[bytes, str, str]


@dataclass
class _Metric:
    """One metric of one sender."""

    first_ns: int
    """The time of its first point."""
    seen: float
    streams: dict[Labels, State] = field(default_factory=dict)

    def forget(self, older_ns: int) -> None:
        """Streams whose senders may forget them, too. Cumulative ones are told as long as their metric is."""
        for labels, state in list(self.streams.items()):
            if isinstance(state, Intervals) and state.last[-1].time < older_ns:
                del self.streams[labels]


class Metrics:
    """Reads metrics, and remembers what streams were before."""

    def __init__(self, host: str, max_series: int, clock: Clock, since_unix_s: float | None = None) -> None:
        """``since_unix_s``: from when on nothing was missed; now, if not given."""
        self._host, self._max_series, self._clock = host, max_series, clock
        self._since_ns = int((clock() if since_unix_s is None else since_unix_s) * NS)
        self._metrics: dict[MetricKey, _Metric] = {}
        self._series = 0
        self._swept = clock()

    def read(self, request: ExportMetricsServiceRequest) -> Reading:
        """The events of a request; what is remembered changes by its `Reading.commit` only."""
        self._sweep()
        reading = Reading(self)
        for resource_metrics in request.resource_metrics:
            origin = Origin(resource_metrics.resource, self._host)
            sender = blake2b(resource_metrics.resource.SerializeToString(deterministic=True), digest_size=16).digest()
            for scope_metrics in resource_metrics.scope_metrics:
                for metric in scope_metrics.metrics:
                    reading.take(metric, (sender, scope_metrics.scope.name, metric.name), origin)
        return reading

    def known(self, key: MetricKey) -> _Metric | None:
        return self._metrics.get(key)

    def began_here(self, stamps: Stamps, metric: _Metric | None) -> bool:
        """Whether all of a stream's first total is new: then it is an increase."""
        if self._since_ns <= stamps.start < stamps.time:
            return True
        return metric is not None and stamps.time - metric.first_ns > ONE_COLLECTION_NS

    def room(self, more: int) -> bool:
        """Whether so many new streams can be remembered, too."""
        return self._series + more <= self._max_series

    def commit(self, changes: dict[MetricKey, dict[Labels, tuple[Stamps, State]]]) -> None:
        now = self._clock()
        for key, streams in changes.items():
            first_ns = min(stamps.time for stamps, _ in streams.values())
            metric = self._metrics.setdefault(key, _Metric(first_ns, now))
            metric.seen = now
            before = len(metric.streams)
            metric.streams.update((labels, state) for labels, (_, state) in streams.items())
            self._series += len(metric.streams) - before

    def _sweep(self) -> None:
        now = self._clock()
        if now - self._swept < SWEEP_S:
            return
        self._swept = now
        for key in [key for key, metric in self._metrics.items() if now - metric.seen > FORGET_S]:
            del self._metrics[key]
        for metric in self._metrics.values():
            metric.forget(int((now - FORGET_S) * NS))
        self._series = sum(len(metric.streams) for metric in self._metrics.values())


class Reading:
    """One request, while it is read and until its events are durable."""

    def __init__(self, memory: Metrics) -> None:
        self._memory = memory
        self._changes: dict[MetricKey, dict[Labels, tuple[Stamps, State]]] = {}
        self._added = 0
        self._events: list[dict[str, Any]] = []
        self._open: dict[Any, dict[str, Any]] = {}
        self.refused: Counter[Refusal] = Counter()
        self.ignored = 0
        self.detail: str | None = None

    def read(self) -> Read:
        return Read(self._events, self.refused, self.ignored)

    def commit(self) -> None:
        """The events are durable."""
        self._memory.commit(self._changes)

    def take(self, metric: Metric, key: MetricKey, origin: Origin) -> None:
        """All points of one metric, each judged by itself."""
        kind = metric.WhichOneof("data")
        if kind is None:
            return
        data = getattr(metric, kind)
        temporality = getattr(data, "aggregation_temporality", CUMULATIVE)
        for point in data.data_points:
            if point.flags & NO_VALUE:
                self.ignored += 1
                continue
            try:
                _TAKE[kind](_Stream(self, key, origin, point, temporality), data)
            except Repeated:
                self.ignored += 1
            except Refused as refusal:
                self.refused[refusal.reason] += 1
                self.detail = self.detail or f"{metric.name}: {refusal}"

    def before(self, key: MetricKey, labels: Labels) -> State | None:
        if (changed := self._changes.get(key, {}).get(labels)) is not None:
            return changed[1]
        metric = self._memory.known(key)
        return None if metric is None else metric.streams.get(labels)

    def began_here(self, key: MetricKey, stamps: Stamps) -> bool:
        return self._memory.began_here(stamps, self._memory.known(key))

    def check_room(self, key: MetricKey, labels: Labels) -> None:
        """Raises Refused."""
        if self.before(key, labels) is None and not self._memory.room(self._added + 1):
            raise Refused(Refusal.TOO_MANY_SERIES, "agent.otlp.max_series are remembered already")

    def remember(self, key: MetricKey, labels: Labels, stamps: Stamps, state: State) -> None:
        self._added += self.before(key, labels) is None
        self._changes.setdefault(key, {})[labels] = stamps, state

    def event(self, origin: Origin, labels: Labels, time_ns: int) -> dict[str, Any]:
        """The event of a label set and moment; another one where that has all it can hold."""
        key = origin.service, origin.host, origin.instance, labels, time_ns
        if (event := self._open.get(key)) is None or _weight(event) >= MAX_WEIGHT:
            event = self._open[key] = _event(origin, labels, time_ns)
            self._events.append(event)
        return event


def _event(origin: Origin, labels: Labels, time_ns: int) -> dict[str, Any]:
    instance = {} if origin.instance is None else {"instance": origin.instance}
    event = {
        "time_unix_s": time_ns / NS,
        "host": origin.host,
        "entity": "service",
        "id": origin.service,
        "metrics": {},
    }
    return event | ({"labels": every} if (every := {**instance, **dict(labels)}) else {})


def _weight(event: dict[str, Any]) -> int:
    """About how much of `MAX_WEIGHT` an event takes."""
    histograms = event.get("histograms", ())
    return len(event["metrics"]) + len(event.get("counters", ())) + HISTOGRAM_WEIGHT * len(histograms)


class _Stream:
    """One point, and its stream."""

    def __init__(self, reading: Reading, key: MetricKey, origin: Origin, point: Any, temporality: int) -> None:
        if not point.time_unix_nano:
            raise Refused(Refusal.BAD_TIME, "a point without a time")
        self._reading, self._key, self._origin, self._temporality = reading, key, origin, temporality
        self.point, self.name = point, key[2][:MAX_TEXT]
        self._stamps = Stamps(point.start_time_unix_nano, point.time_unix_nano)
        self._labels = _labels(point)
        reading.check_room(key, self._labels)

    def sampled(self, name: str, value: float, *more: tuple[str, str]) -> None:
        """A value of ``metrics``."""
        self._event(*more)["metrics"][name] = float(value)

    def added(self, name: str, value: float) -> None:
        """A value of ``counters``. Two scopes may have a counter of one name; then both count."""
        counters = self._event().setdefault("counters", {})
        counters[name] = finite("the sum of two scopes", counters.get(name, 0.0) + float(value))

    def distributed(self, histogram: dict[str, Any]) -> None:
        histograms = self._event().setdefault("histograms", {})
        before = histograms.get(self.name)
        histograms[self.name] = histogram if before is None else _merged(before, histogram)

    def seen(self) -> None:
        """Remember a stream whose points stand for themselves."""
        self._remember(interval(self._stamps, self._before()))

    def increase(self, total: Any) -> Iterator[Any]:
        """What the stream grew by, if that is known."""
        if self._temporality == DELTA:
            self.seen()
            yield total
        elif self._temporality == CUMULATIVE:
            whole = self._reading.began_here(self._key, self._stamps)
            state, increase = grown(self._stamps, total, self._before(), whole=whole)
            self._remember(state)
            if increase is not None:
                yield increase
        else:
            raise Refused(Refusal.UNSUPPORTED, "no temporality is given")

    @property
    def is_cumulative(self) -> bool:
        return self._temporality == CUMULATIVE

    def _before(self) -> State | None:
        return self._reading.before(self._key, self._labels)

    def _remember(self, state: State) -> None:
        self._reading.remember(self._key, self._labels, self._stamps, state)

    def _event(self, *more: tuple[str, str]) -> dict[str, Any]:
        return self._reading.event(self._origin, self._labels + more, self._stamps.time)


def _labels(point: Any) -> Labels:
    if len(point.attributes) > MAX_LABELS:
        raise Refused(Refusal.TOO_MANY_LABELS, f"a point has {len(point.attributes)} attributes")
    found = [(each.key, _label(scalar(each.value))) for each in point.attributes]
    if any(len(name) > MAX_TEXT or len(value) > MAX_TEXT for name, value in found):
        raise Refused(Refusal.TOO_LARGE, f"a label is longer than {MAX_TEXT} characters")
    return tuple(sorted(found))


def _label(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None else str(value)


def _merged(before: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    sketch = Sketch.from_wire(before["sketch"]).merge(Sketch.from_wire(more["sketch"]))
    found = {"sum": finite("the sum of two scopes", before["sum"] + more["sum"]), "sketch": sketch.to_wire()}
    for name, choose in (("min", min), ("max", max)):
        if name in before and name in more:
            found[name] = choose(before[name], more[name])
    return found


# --- the kinds of metric --------------------------------------------------------------------------------------


def _gauge(stream: _Stream, data: Any) -> None:
    value = number(stream.point).value
    stream.seen()
    stream.sampled(stream.name, value)


def _sum(stream: _Stream, data: Any) -> None:
    total = number(stream.point)
    if data.is_monotonic:
        if total.value < 0:
            raise Refused(Refusal.INCONSISTENT, f"a sum that only grows is {total.value}")
        for increase in stream.increase(total):
            stream.added(stream.name, increase.value)
    elif stream.is_cumulative:
        stream.seen()
        stream.sampled(stream.name, total.value)
    else:
        raise Refused(Refusal.UNSUPPORTED, "changes of a sum that may fall; send it as cumulative")


def _histogram(stream: _Stream, data: Any) -> None:
    if not stream.point.bucket_counts:
        _observed(stream)
        return
    for increase in stream.increase(explicit(stream.point)):
        _distributed(stream, increase)


def _exponential(stream: _Stream, data: Any) -> None:
    for increase in stream.increase(exponential(stream.point)):
        _distributed(stream, increase)


def _distributed(stream: _Stream, increase: Any) -> None:
    histogram = told(increase)
    if increase.observations:
        stream.distributed(histogram)


def _summary(stream: _Stream, data: Any) -> None:
    _observed(stream)
    for quantile in list(stream.point.quantile_values)[:MAX_LABELS]:
        if quantile.value == quantile.value:  # NaN: nothing was observed lately
            value = finite("a quantile", quantile.value)
            stream.sampled(stream.name, value, ("quantile", f"{quantile.quantile:g}"))


def _observed(stream: _Stream) -> None:
    increase: Observed
    for increase in stream.increase(observed(stream.point)):
        stream.added(f"{stream.name}_count", increase.observations)
        stream.added(f"{stream.name}_sum", increase.sum)


_TAKE: dict[str, Callable[[_Stream, Any], None]] = {
    "gauge": _gauge,
    "sum": _sum,
    "histogram": _histogram,
    "exponential_histogram": _exponential,
    "summary": _summary,
}
