"""Pages in Prometheus' protobuf format, which alone has room for native histograms.

A page is a row of ``io.prometheus.client.MetricFamily`` messages, each behind its length. They come out as the text
format would have them (``_bucket``, ``_sum``, ``_count``, ``_created``), and a native histogram as one sample of its
family's own name. The messages are described here, from Prometheus' ``metrics.proto``, without what is not read; the
``protobuf`` package reads them.

Custom buckets (schema -53) have no place in this format; one that says it has them is taken for broken.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from math import floor, inf
from typing import Any, Final

from streammon_agents.scrape.native import Native
from streammon_agents.scrape.pages import LIMITS, Fault, Limits, Page, PageError, Sample, Series, Type

BUCKETS_A_SAMPLE: Final = 10
"""Buckets of native histograms that a page may have for each sample that it may have."""
SCHEMAS: Final = range(-4, 9)

_TYPES: Final = (Type.COUNTER, Type.GAUGE, Type.SUMMARY, Type.UNKNOWN, Type.HISTOGRAM, Type.GAUGEHISTOGRAM)
"""By number."""
_MESSAGES: Final = {
    "LabelPair": "name:string=1 value:string=2",
    "Timestamp": "seconds:int64=1 nanos:int32=2",
    "Gauge": "value:double=1",
    "Counter": "value:double=1 created_timestamp:Timestamp=3",
    "Quantile": "quantile:double=1 value:double=2",
    "Summary": "sample_count:uint64=1 sample_sum:double=2 quantile:Quantile*=3 created_timestamp:Timestamp=4",
    "Untyped": "value:double=1",
    "Histogram": (
        "sample_count:uint64=1 sample_count_float:double=4 sample_sum:double=2 bucket:Bucket*=3"
        " created_timestamp:Timestamp=15 schema:sint32=5 zero_threshold:double=6 zero_count:uint64=7"
        " zero_count_float:double=8 negative_span:BucketSpan*=9 negative_delta:sint64*=10 negative_count:double*=11"
        " positive_span:BucketSpan*=12 positive_delta:sint64*=13 positive_count:double*=14"
    ),
    "Bucket": "cumulative_count:uint64=1 cumulative_count_float:double=4 upper_bound:double=2",
    "BucketSpan": "offset:sint32=1 length:uint32=2",
    "Metric": (
        "label:LabelPair*=1 gauge:Gauge=2 counter:Counter=3 summary:Summary=4 untyped:Untyped=5 histogram:Histogram=7"
        " timestamp_ms:int64=6"
    ),
    "MetricFamily": "name:string=1 type:int32=3 metric:Metric*=4",
}
_PACKAGE: Final = "io.prometheus.client"


@cache
def family_class() -> Any:
    """The class of ``MetricFamily``. Raises ImportError where ``protobuf`` is not installed."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(name="metrics.proto", package=_PACKAGE, syntax="proto3")
    for name, fields in _MESSAGES.items():
        message = file.message_type.add(name=name)
        for field in fields.split():
            label, _, number = field.partition("=")
            field_name, _, kind = label.partition(":")
            described = message.field.add(name=field_name, number=int(number))
            repeated, kind = kind.endswith("*"), kind.removesuffix("*")
            described.label = described.LABEL_REPEATED if repeated else described.LABEL_OPTIONAL
            if kind in _MESSAGES:
                described.type, described.type_name = described.TYPE_MESSAGE, f".{_PACKAGE}.{kind}"
            else:
                described.type = descriptor_pb2.FieldDescriptorProto.Type.Value(f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()  # of our own: another package may describe the same messages
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.MetricFamily"))


def parse_protobuf(page: bytes, *, limits: Limits = LIMITS, known: Mapping[bytes, Series] | None = None) -> Page:
    """The types and samples of a page.

    Raises:
        PageError: the page is not taken.
    """
    reader = _Reader(limits, known or {})
    for family in _families(page):
        reader.family(family)
    return Page(reader.types, reader.samples, reader.known)


def _families(page: bytes) -> Iterator[Any]:
    from google.protobuf.message import DecodeError

    made, at = family_class(), 0
    while at < len(page):
        start, at = at, _end(page, at)
        length_end, length = _length(page, start)
        try:
            yield made.FromString(page[length_end:at])
        except DecodeError:
            raise PageError(Fault.MALFORMED, f"the message of {length} bytes at {start} cannot be read") from None


def _end(page: bytes, at: int) -> int:
    start, length = _length(page, at)
    if start + length > len(page):
        raise PageError(Fault.TRUNCATED, f"the page ends within the message at {at}")
    return start + length


def _length(page: bytes, at: int) -> tuple[int, int]:
    """Where the message begins whose length is at ``at``, and that length."""
    length = 0
    for shift in range(0, 35, 7):
        if at >= len(page):
            raise PageError(Fault.TRUNCATED, "the page ends within the length of a message")
        length |= (page[at] & 0x7F) << shift
        at += 1
        if page[at - 1] < 0x80:
            return at, length
    raise PageError(Fault.MALFORMED, f"the length of the message before {at} is no number")


class _Reader:
    def __init__(self, limits: Limits, known: Mapping[bytes, Series]) -> None:
        self._limits, self._before, self._buckets = limits.or_none(), known, 0
        self.types: dict[str, Type] = {}
        self.samples: list[Sample] = []
        self.known: dict[bytes, Series] = {}

    def family(self, family: Any) -> None:
        if not family.name or not 0 <= family.type < len(_TYPES):
            raise PageError(Fault.MALFORMED, f"the family {family.name!r} has no name, or no type that there is")
        kind = _TYPES[family.type]
        self.types.setdefault(family.name, kind)
        self._count(len(self.types), "families")
        for metric in family.metric:
            time_s = metric.timestamp_ms / 1000 if metric.timestamp_ms else None
            labels = {pair.name: pair.value for pair in metric.label}
            if len(labels) < len(metric.label):
                raise PageError(Fault.MALFORMED, f"{family.name} has a label twice")
            for name, extra, value in self._values(family.name, kind, metric):
                self._take(name, {**labels, **extra}, value, time_s)

    def _values(self, name: str, kind: Type, metric: Any) -> Iterator[tuple[str, dict[str, str], float | Native]]:
        if kind is Type.COUNTER:
            yield name, {}, metric.counter.value
            base = name.removesuffix("_total")
            if base == name and metric.counter.HasField("created_timestamp"):
                self.types.setdefault(f"{name}_created", Type.GAUGE)  # as in the text format
            yield from _created(base, metric.counter)
        elif kind is Type.SUMMARY:
            for each in metric.summary.quantile:
                yield name, {"quantile": f"{each.quantile:g}"}, each.value
            yield f"{name}_sum", {}, metric.summary.sample_sum
            yield f"{name}_count", {}, float(metric.summary.sample_count)
            yield from _created(name, metric.summary)
        elif kind in (Type.HISTOGRAM, Type.GAUGEHISTOGRAM):
            yield from self._histogram(name, "g" if kind is Type.GAUGEHISTOGRAM else "", metric.histogram)
        else:
            yield name, {}, (metric.gauge if kind is Type.GAUGE else metric.untyped).value

    def _histogram(self, name: str, gauge: str, histogram: Any) -> Iterator[tuple[str, dict[str, str], float | Native]]:
        count = histogram.sample_count_float or float(histogram.sample_count)
        yield f"{name}_{gauge}sum", {}, histogram.sample_sum
        yield f"{name}_{gauge}count", {}, count
        for bucket in histogram.bucket:
            yield (
                f"{name}_bucket",
                {"le": _le(bucket.upper_bound)},
                bucket.cumulative_count_float or float(bucket.cumulative_count),
            )
        if gauge:
            return
        if _is_native(histogram) and (histogram.schema in SCHEMAS or not histogram.bucket):
            yield name, {}, self._native(histogram)
        yield from _created(name, histogram)

    def _native(self, histogram: Any) -> Native:
        return Native(
            histogram.schema,
            histogram.zero_threshold,
            _floors([histogram.zero_count_float])[0] or histogram.zero_count,
            self._counts(histogram.positive_span, histogram.positive_delta, histogram.positive_count),
            self._counts(histogram.negative_span, histogram.negative_delta, histogram.negative_count),
            histogram.sample_sum,
        )

    def _counts(self, spans: Iterable[Any], deltas: Any, floats: Any) -> dict[int, int]:
        """By index. Spans say which indices there are, one after the other."""
        self._buckets += len(deltas) + len(floats)
        self._count(self._buckets / BUCKETS_A_SAMPLE, "buckets, a tenth of a sample each")
        counts = _floors(floats) if floats else _summed(deltas)
        buckets, index, at = dict[int, int](), 0, 0
        for span in spans:
            index += span.offset
            if at + span.length > len(counts):
                raise PageError(Fault.MALFORMED, "a native histogram has fewer counts than buckets")
            for count in counts[at : at + span.length]:
                buckets[index] = count
                index += 1
            at += span.length
        if at < len(counts):
            raise PageError(Fault.MALFORMED, "a native histogram has more counts than buckets")
        return buckets

    def _take(self, name: str, labels: dict[str, str], value: float | Native, time_s: float | None) -> None:
        key = "\xff".join([name, *(text for pair in labels.items() for text in pair)]).encode()
        series = self._before.get(key) or self.known.get(key)
        if series is None:
            self._limits.check(labels, name)
            series = Series(name, labels)
        self.known[key] = series
        self.samples.append(Sample(series, value, time_s))
        self._count(len(self.samples), "samples")

    def _count(self, number: float, what: str) -> None:
        if number > self._limits.samples:
            raise PageError(Fault.TOO_MANY_SAMPLES, f"the page has more than {self._limits.samples} {what}")


def _created(name: str, of: Any) -> Iterator[tuple[str, dict[str, str], float]]:
    if of.HasField("created_timestamp"):
        yield f"{name}_created", {}, of.created_timestamp.seconds + of.created_timestamp.nanos / 1e9


def _is_native(histogram: Any) -> bool:
    """As Prometheus tells them apart."""
    return bool(
        histogram.positive_span
        or histogram.negative_span
        or histogram.zero_threshold
        or histogram.zero_count
        or histogram.zero_count_float
    )


def _floors(counts: Iterable[float]) -> list[int]:
    """Whole counts; rounded so, increases still add up."""
    try:
        return [floor(count) for count in counts]
    except (ValueError, OverflowError):
        raise PageError(Fault.MALFORMED, "a native histogram has a count that is not finite") from None


def _summed(deltas: Iterable[int]) -> list[int]:
    total, counts = 0, list[int]()
    for delta in deltas:
        total += delta
        counts.append(total)
    return counts


def _le(bound: float) -> str:
    return "+Inf" if bound == inf else repr(bound)
