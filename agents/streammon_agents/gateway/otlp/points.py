"""Data points of OTLP against what their stream was before: what was added since.

A stream is one metric of one sender with one set of attributes. The functions here are pure: a point and the state
before give the increase and the state after, or a `Refused`.

- **Cumulative** points count since a start. A newer start, or a value that fell, is a restart of the sender: the new
  value is the increase. A stream seen for the first time is a baseline, unless it is known that it began here.
- **Delta** points are increases already. The same interval twice is a point sent again.

Source: OpenTelemetry metrics data model, "Resets and gaps", "Exponential histogram".
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeVar

from opentelemetry.proto.metrics.v1.metrics_pb2 import (
    ExponentialHistogramDataPoint,
    HistogramDataPoint,
    NumberDataPoint,
    SummaryDataPoint,
)

from streammon.histograms import from_buckets
from streammon.sketch import Sketch, SketchError
from streammon_agents.gateway.otlp.values import Refusal

MAX_BUCKETS = 4096
"""Of one exponential histogram: float64 has 2,098 octaves, and a sketch no more than this many buckets."""
MAX_EXPLICIT = 512
"""Buckets of one explicit histogram, the values of each of which are spread."""
_REMEMBERED_INTERVALS = 4


class Refused(Exception):  # noqa: N818 - a verdict on a point, not a failure of ours
    """A point that is not taken."""

    def __init__(self, reason: Refusal, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class Repeated(Exception):  # noqa: N818 - as above
    """A point that was taken already."""


class Stamps(NamedTuple):
    """When a point's stream began, 0 where its sender does not say, and when the point was made; in ns."""

    start: int
    time: int


class Total(Protocol):
    """What a cumulative point holds; what two of one stream differ by is one, too."""

    def fell(self, before: Any) -> bool:
        """Whether this cannot be what ``before`` grew to."""
        ...

    def since(self, before: Any) -> Any:
        """What was added."""
        ...


class Cumulative(NamedTuple):
    stamps: Stamps
    total: Any


class Intervals(NamedTuple):
    """The last intervals of a delta stream."""

    last: tuple[Stamps, ...]


Labels: TypeAlias = tuple[tuple[str, str], ...]
State: TypeAlias = Cumulative | Intervals
T = TypeVar("T", bound=Total)


def grown(stamps: Stamps, total: T, before: State | None, *, whole: bool) -> tuple[State, T | None]:
    """The increase of a cumulative stream; None where it is not known. ``whole``: it began under our eyes."""
    after = Cumulative(stamps, total)
    if not isinstance(before, Cumulative) or type(before.total) is not type(total):
        return after, total if whole else None
    was = before.stamps
    if stamps.time == was.time and stamps.start == was.start:
        raise Repeated
    if stamps.time <= was.time or (0 < stamps.start < was.start):
        raise Refused(Refusal.OUT_OF_ORDER, "a newer point of this stream was there before")
    if stamps.start > was.start and was.start:
        return after, None if stamps.start == stamps.time else total  # equal: by the model, an unknown beginning
    if total.fell(before.total):
        return after, total
    return after, total.since(before.total)


def interval(stamps: Stamps, before: State | None) -> State:
    """The state after a delta point."""
    last = before.last if isinstance(before, Intervals) else ()
    if stamps in last:
        raise Repeated
    return Intervals((*last, stamps)[-_REMEMBERED_INTERVALS:])


# --- what points hold -----------------------------------------------------------------------------------------


class Number(NamedTuple):
    value: float

    def fell(self, before: Number) -> bool:
        return self.value < before.value

    def since(self, before: Number) -> Number:
        return Number(self.value - before.value)


def number(point: NumberDataPoint) -> Number:
    if (kind := point.WhichOneof("value")) is None:
        raise Refused(Refusal.NO_VALUE, "a point without a value")
    value = point.as_int if kind == "as_int" else point.as_double
    return Number(finite("a value", value))


def finite(name: str, value: float) -> float:
    if not math.isfinite(value):
        raise Refused(Refusal.NON_FINITE, f"{name} is {value}")
    return value


class Observed(NamedTuple):
    """A number of observations and their sum, without a distribution."""

    observations: int
    sum: float

    def fell(self, before: Observed) -> bool:
        return self.observations < before.observations

    def since(self, before: Observed) -> Observed:
        grew_by = finite("what a sum grew by", self.sum - before.sum)
        return Observed(self.observations - before.observations, grew_by)


def observed(point: SummaryDataPoint | HistogramDataPoint) -> Observed:
    return Observed(point.count, finite("a sum", point.sum) if isinstance(point, SummaryDataPoint) else sum_of(point))


class Extremes(NamedTuple):
    """Of all values since the start, where the sender says so."""

    least: float | None
    most: float | None

    def since(self, before: Extremes) -> Extremes:
        """An extreme that has moved is one of the new values; of one that has not nothing is known."""
        least = self.least if self.least is not None and (before.least is None or self.least < before.least) else None
        most = self.most if self.most is not None and (before.most is None or self.most > before.most) else None
        return Extremes(least, most)


def extremes(point: HistogramDataPoint | ExponentialHistogramDataPoint) -> Extremes:
    return Extremes(
        finite("min", point.min) if point.HasField("min") else None,
        finite("max", point.max) if point.HasField("max") else None,
    )


class Explicit(NamedTuple):
    """Counts of explicit buckets."""

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    sum: float
    extremes: Extremes
    before: tuple[int, ...] = ()
    """What each bucket held before, of a stream that is told in totals: values are spread over the totals."""

    def fell(self, before: Explicit) -> bool:
        return sum(self.counts) < sum(before.counts)

    def since(self, before: Explicit) -> Explicit:
        if self.bounds != before.bounds:
            raise Refused(Refusal.INCONSISTENT, "a histogram has other buckets than before, and no new start")
        counts = tuple(_grew(now, was) for now, was in zip(self.counts, before.counts, strict=True))
        extremes = self.extremes.since(before.extremes)
        return Explicit(self.bounds, counts, self.sum - before.sum, extremes, before.counts)

    @property
    def observations(self) -> int:
        return sum(self.counts)

    def sketch(self) -> Sketch:
        return from_buckets(self.bounds, self.counts, self.before)


def explicit(point: HistogramDataPoint) -> Explicit:
    bounds, counts = tuple(point.explicit_bounds), tuple(point.bucket_counts)
    if len(counts) > MAX_EXPLICIT:
        raise Refused(Refusal.TOO_LARGE, f"a histogram has {len(counts)} buckets, at most {MAX_EXPLICIT}")
    if len(counts) != len(bounds) + 1:
        raise Refused(Refusal.INCONSISTENT, f"a histogram of {len(bounds)} bounds has {len(counts)} counts")
    if sum(counts) != point.count:
        raise Refused(Refusal.INCONSISTENT, f"a histogram's count is {point.count}, its buckets hold {sum(counts)}")
    return Explicit(bounds, counts, sum_of(point), extremes(point))


def sum_of(point: HistogramDataPoint | ExponentialHistogramDataPoint) -> float:
    if not point.HasField("sum"):
        raise Refused(Refusal.UNSUPPORTED, "a histogram without a sum")
    return finite("a sum", point.sum)


def _grew(now: int, was: int) -> int:
    if now < was:
        raise Refused(Refusal.INCONSISTENT, "a bucket of a histogram fell, its count did not")
    return now - was


class Side(NamedTuple):
    """The buckets of one sign: ``counts[i]`` in bucket ``offset + i``."""

    offset: int
    counts: tuple[int, ...]

    def coarser(self, steps: int) -> Side:
        """Each 2^steps neighbours as one."""
        if not steps or not self.counts:
            return self
        low = self.offset >> steps
        counts = [0] * (((self.offset + len(self.counts) - 1) >> steps) - low + 1)
        for index, count in enumerate(self.counts, self.offset):
            counts[(index >> steps) - low] += count
        return Side(low, tuple(counts))

    def from_bucket(self, first: int) -> tuple[Side, int]:
        """The buckets from one on, and how many values lie below it."""
        cut = min(max(0, first - self.offset), len(self.counts))
        return Side(self.offset + cut, self.counts[cut:]), sum(self.counts[:cut])

    def since(self, before: Side) -> Side:
        counts = list(self.counts)
        for index, count in enumerate(before.counts, before.offset - self.offset):
            if count:
                if not 0 <= index < len(counts):
                    raise Refused(Refusal.INCONSISTENT, "a bucket of a histogram fell, its count did not")
                counts[index] = _grew(counts[index], count)
        return Side(self.offset, tuple(counts))


class Exponential(NamedTuple):
    """Counts of exponential buckets, at the scale they came in."""

    scale: int
    zero_count: int
    zero_threshold: float
    positive: Side
    negative: Side
    sum: float
    extremes: Extremes

    def fell(self, before: Exponential) -> bool:
        return self.observations < before.observations

    def since(self, before: Exponential) -> Exponential:
        """Senders join buckets as values spread, and widen what they take for zero; so is done to ``before``."""
        if self.scale > before.scale or self.zero_threshold < before.zero_threshold:
            raise Refused(Refusal.INCONSISTENT, "a histogram is finer than before, and has no new start")
        was = before.at(self.scale, self.zero_threshold)
        return Exponential(
            self.scale,
            _grew(self.zero_count, was.zero_count),
            self.zero_threshold,
            self.positive.since(was.positive),
            self.negative.since(was.negative),
            self.sum - before.sum,
            self.extremes.since(before.extremes),
        )

    def at(self, scale: int, zero_threshold: float) -> Exponential:
        """The same values at a scale that is no finer, and with a zero that is no narrower."""
        positive, negative = (side.coarser(self.scale - scale) for side in (self.positive, self.negative))
        zeros = self.zero_count
        if zero_threshold > self.zero_threshold:
            first = _first_beyond(zero_threshold, scale)
            positive, joined = positive.from_bucket(first)
            negative, too = negative.from_bucket(first)
            zeros += joined + too
        return self._replace(
            scale=scale, zero_count=zeros, zero_threshold=zero_threshold, positive=positive, negative=negative
        )

    @property
    def observations(self) -> int:
        return self.zero_count + sum(self.positive.counts) + sum(self.negative.counts)

    def sketch(self) -> Sketch:
        return Sketch.of_buckets(self.scale, self.zero_count, *self.positive, *self.negative)


def _first_beyond(threshold: float, scale: int) -> int:
    """The first bucket that does not end at or below a threshold; thresholds are bounds of buckets."""
    return round(math.log2(threshold) * 2.0**scale)


def exponential(point: ExponentialHistogramDataPoint) -> Exponential:
    positive, negative = (Side(side.offset, tuple(side.bucket_counts)) for side in (point.positive, point.negative))
    if max(len(positive.counts), len(negative.counts)) > MAX_BUCKETS:
        raise Refused(Refusal.TOO_LARGE, f"a histogram has more than {MAX_BUCKETS} buckets")
    if not -_FINEST <= point.scale <= _FINEST:
        raise Refused(Refusal.INCONSISTENT, f"a histogram's scale is {point.scale}")
    threshold = finite("zero_threshold", point.zero_threshold)
    found = Exponential(point.scale, point.zero_count, threshold, positive, negative, sum_of(point), extremes(point))
    if found.observations != point.count:
        raise Refused(
            Refusal.INCONSISTENT, f"a histogram's count is {point.count}, its buckets hold {found.observations}"
        )
    return found


_FINEST = 20
"""The finest scale of the SDKs; coarser than -11 one bucket holds all of float64."""


def told(histogram: Explicit | Exponential) -> dict[str, Any]:
    """As `streammon.events.Histogram`."""
    try:
        sketch = histogram.sketch()
    except SketchError as error:
        raise Refused(Refusal.INCONSISTENT, f"a histogram cannot be: {error}") from None
    found = {"sum": finite("what a sum grew by", histogram.sum), "sketch": sketch.to_wire()}
    least, most = histogram.extremes
    return found | ({} if least is None else {"min": least}) | ({} if most is None else {"max": most})
