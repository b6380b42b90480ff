"""What metrics become: increases of what counts, samples of what does not, and distributions without loss."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("opentelemetry.proto")

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.metrics.v1.metrics_pb2 import (
    ExponentialHistogramDataPoint,
    HistogramDataPoint,
    Metric,
    NumberDataPoint,
    SummaryDataPoint,
)

from streammon.histograms import from_buckets
from streammon.sketch import Sketch, bucket_index
from streammon_agents.gateway.otlp import metrics, points
from streammon_agents.gateway.otlp.metrics import Metrics
from streammon_agents.gateway.otlp.values import Refusal
from tests.agents.test_otlp_spans import key_values

S = 10**9
NOW = 1_700_000_000
DELTA, CUMULATIVE = 1, 2


class Memory:
    """A `Metrics` whose requests become durable, and what it refused last."""

    def __init__(self, max_series: int = 100) -> None:
        self.now = float(NOW)
        self.metrics = Metrics("here", max_series, lambda: self.now)
        self.refused: dict[Refusal, int] = {}
        self.ignored = 0

    def take(self, *metrics: Metric, durable: bool = True, of: dict[str, str] | None = None) -> list[dict[str, Any]]:
        request = ExportMetricsServiceRequest()
        resource_metrics = request.resource_metrics.add()
        resource_metrics.resource.attributes.extend(key_values({"service.name": "shop", **(of or {})}))
        resource_metrics.scope_metrics.add().metrics.extend(metrics)
        reading = self.metrics.read(request)
        self.refused, self.ignored = dict(reading.refused), reading.ignored
        if durable:
            reading.commit()
        return reading.read().events

    def counters(self, *metrics: Metric, **more: Any) -> list[dict[str, float]]:
        return [event["counters"] for event in self.take(*metrics, **more)]


def point(value: float | None, at: float, start: float = 0, **labels: str) -> NumberDataPoint:
    held: dict[str, Any] = {} if value is None else {"as_int" if isinstance(value, int) else "as_double": value}
    return NumberDataPoint(attributes=key_values(labels), **_times(at, start), **held)


def _times(at: float, start: float) -> dict[str, Any]:
    return {"time_unix_nano": int((NOW + at) * S), "start_time_unix_nano": int((NOW + start) * S) if start else 0}


def counter(*data_points: NumberDataPoint, temporality: int = CUMULATIVE, monotonic: bool = True) -> Metric:
    metric = Metric(name="n")
    metric.sum.aggregation_temporality = temporality  # type: ignore[assignment]  # an enum's number
    metric.sum.is_monotonic = monotonic
    metric.sum.data_points.extend(data_points)
    return metric


def gauge(*data_points: NumberDataPoint, name: str = "g") -> Metric:
    metric = Metric(name=name)
    metric.gauge.data_points.extend(data_points)
    return metric


# --- counters -------------------------------------------------------------------------------------------------


def test_the_first_value_of_a_counter_that_began_before_us_is_a_baseline() -> None:
    for start in (0, -100, 1):  # a start at the point itself is an unknown one
        memory = Memory()
        assert memory.counters(counter(point(70, 1, start))) == []
        assert memory.counters(counter(point(75, 2, start))) == [{"n": 5.0}]
        assert not memory.refused


def test_the_first_value_of_a_counter_that_began_after_us_counts() -> None:
    memory = Memory()
    assert memory.counters(counter(point(70, 11, 1))) == [{"n": 70.0}]
    assert memory.counters(counter(point(70, 12, 1))) == [{"n": 0.0}]


def test_a_new_label_set_of_a_counter_that_is_known_counts_from_its_first_value() -> None:
    memory = Memory()
    assert memory.counters(counter(point(70, 1, -9, route="/a"))) == []
    assert memory.counters(counter(point(3, 1.0001, -9, route="/b"))) == [], "of the same collection, in two requests"
    assert memory.counters(counter(point(70, 2, -9, route="/a"), point(4, 2, -9, route="/c"))) == [{"n": 0}, {"n": 4}]


def test_a_newer_start_is_a_restart_even_where_the_value_grew() -> None:
    memory = Memory()
    memory.take(counter(point(5, 2, 1)))
    assert memory.counters(counter(point(9, 4, 3))) == [{"n": 9.0}]
    assert memory.counters(counter(point(9, 3, 1))) == [], "the old process speaks late"
    assert memory.refused == {Refusal.OUT_OF_ORDER: 1}


def test_a_value_that_fell_is_a_restart() -> None:
    memory = Memory()
    memory.take(counter(point(50, 1)))
    assert memory.counters(counter(point(7, 2))) == [{"n": 7.0}]


def test_a_restart_with_an_unknown_beginning_is_a_baseline() -> None:
    memory = Memory()
    memory.take(counter(point(50, 2, 1)))
    assert memory.counters(counter(point(40, 3, 3))) == []
    assert memory.counters(counter(point(42, 4, 3))) == [{"n": 2.0}]


def test_a_point_sent_again_is_ignored_and_an_older_one_is_refused() -> None:
    memory = Memory()
    memory.take(counter(point(1, 2, 1)))
    memory.take(counter(point(5, 4, 1)))
    assert memory.counters(counter(point(5, 4, 1))) == []
    assert (memory.ignored, memory.refused) == (1, {})
    assert memory.counters(counter(point(3, 3, 1))) == []
    assert memory.refused == {Refusal.OUT_OF_ORDER: 1}
    assert memory.counters(counter(point(6, 5, 1), point(8, 6, 1), point(8, 6, 1))) == [{"n": 1}, {"n": 2}]
    assert memory.ignored == 1


def test_what_was_not_durable_can_be_sent_again() -> None:
    memory = Memory()
    memory.take(counter(point(1, 2, 1)))
    for _ in range(3):
        assert memory.counters(counter(point(5, 3, 1)), durable=False) == [{"n": 4.0}]
    assert memory.counters(counter(point(5, 3, 1))) == [{"n": 4.0}]


def test_deltas_are_taken_as_they_are_in_any_order_but_not_twice() -> None:
    memory = Memory()
    sent = [counter(point(value, at, at - 1), temporality=DELTA) for value, at in ((4, 2), (6, 4), (5, 3))]
    assert [memory.counters(each) for each in sent] == [[{"n": 4.0}], [{"n": 6.0}], [{"n": 5.0}]]
    assert [memory.counters(each) for each in sent] == [[], [], []]


def test_counters_of_one_name_in_two_scopes_both_count() -> None:
    request = ExportMetricsServiceRequest()
    resource_metrics = request.resource_metrics.add()
    for scope, value in (("a", 3), ("b", 4)):
        resource_metrics.scope_metrics.add(scope={"name": scope}).metrics.append(counter(point(value, 2, 1)))
    [event] = Memory().metrics.read(request).read().events
    assert event["counters"] == {"n": 7.0}


def test_senders_that_share_a_name_are_streams_of_their_own() -> None:
    memory = Memory()
    for pid in ("1", "2"):
        memory.take(counter(point(10, 1)), of={"process.pid": pid})
    assert memory.counters(counter(point(11, 2)), of={"process.pid": "1"}) == [{"n": 1.0}]
    assert memory.counters(counter(point(14, 2)), of={"process.pid": "2"}) == [{"n": 4.0}]


@pytest.mark.parametrize(
    ("metric", "reason"),
    [
        (counter(point(math.nan, 1)), Refusal.NON_FINITE),
        (counter(point(math.inf, 1)), Refusal.NON_FINITE),
        (counter(point(-1, 1)), Refusal.INCONSISTENT),
        (counter(point(None, 1)), Refusal.NO_VALUE),
        (counter(NumberDataPoint(as_int=1)), Refusal.BAD_TIME),
        (counter(point(1, 1), temporality=0), Refusal.UNSUPPORTED),
        (counter(point(1, 1), temporality=DELTA, monotonic=False), Refusal.UNSUPPORTED),
        (gauge(point(math.nan, 1)), Refusal.NON_FINITE),
        (gauge(point(1, 1, 0, **{f"l{n}": "" for n in range(metrics.MAX_LABELS + 1)})), Refusal.TOO_MANY_LABELS),
        (gauge(point(1, 1, 0, long="x" * 1000)), Refusal.TOO_LARGE),
    ],
)
def test_what_cannot_be_taken_is_refused_by_the_point(metric: Metric, reason: Refusal) -> None:
    memory = Memory()
    [event] = memory.take(metric, gauge(point(3, 1), name="fine"))
    assert (event["metrics"], memory.refused) == ({"fine": 3.0}, {reason: 1})


def test_a_point_that_says_it_has_no_value_is_ignored() -> None:
    memory = Memory()
    stale = NumberDataPoint(time_unix_nano=NOW * S, flags=1)
    assert memory.take(counter(stale)) == []
    assert (memory.ignored, memory.refused) == (1, {})


# --- samples, and events --------------------------------------------------------------------------------------


def test_metrics_with_the_same_labels_and_time_are_one_event() -> None:
    memory = Memory()
    found = memory.take(
        gauge(point(1, 5, 0, room="a"), point(2, 5, 0, room="b"), point(3, 6, 0, room="a")),
        gauge(point(0.5, 5, 0, room="a"), name="h"),
        counter(point(-4, 5, 0, room="a"), monotonic=False),
        counter(point(9, 5, 1, room="a")),
        of={"service.instance.id": "i1"},
    )
    assert found == [
        {
            "time_unix_s": NOW + 5.0,
            "host": "here",
            "entity": "service",
            "id": "shop",
            "labels": {"instance": "i1", "room": "a"},
            "metrics": {"g": 1.0, "h": 0.5, "n": -4.0},
            "counters": {"n": 9.0},
        },
        _sample("b", 5, 2.0),
        _sample("a", 6, 3.0),
    ]


def _sample(room: str, at: int, value: float) -> dict[str, Any]:
    labels = {"instance": "i1", "room": room}
    return {
        "time_unix_s": float(NOW + at),
        "host": "here",
        "entity": "service",
        "id": "shop",
        "labels": labels,
        "metrics": {"g": value},
    }


def test_an_event_holds_no_more_than_a_record_can() -> None:
    found = Memory(1000).take(*(gauge(point(n, 1), name=f"g{n}") for n in range(metrics.MAX_WEIGHT * 2 + 1)))
    assert [len(event["metrics"]) for event in found] == [metrics.MAX_WEIGHT, metrics.MAX_WEIGHT, 1]


def test_label_values_are_told_as_texts() -> None:
    data_point = NumberDataPoint(as_int=1, time_unix_nano=NOW * S)
    data_point.attributes.extend(key_values({"ok": True, "code": 7, "share": 0.5, "list": ["x"]}))
    [event] = Memory().take(gauge(data_point))
    assert event["labels"] == {"ok": "true", "code": "7", "share": "0.5", "list": ""}


def test_streams_beyond_the_bound_are_refused_and_the_known_ones_go_on() -> None:
    memory = Memory(max_series=3)
    labels = [{"user": str(n)} for n in range(5)]
    assert len(memory.take(gauge(*(point(1, 1, 0, **each) for each in labels)))) == 3
    assert memory.refused == {Refusal.TOO_MANY_SERIES: 2}
    assert len(memory.take(gauge(*(point(1, 2, 0, **each) for each in labels)))) == 3
    assert memory.refused == {Refusal.TOO_MANY_SERIES: 2}
    memory.now += metrics.FORGET_S + metrics.SWEEP_S
    silent = point(1, metrics.FORGET_S + 100, 0, user="9")
    assert len(memory.take(gauge(silent))) == 1, "who is silent is forgotten"


def test_a_sender_may_change_its_labels_for_ever() -> None:
    memory = Memory(max_series=3)
    for n in range(20):
        memory.now += metrics.FORGET_S / 2
        at = memory.now - NOW
        assert memory.counters(counter(point(1, at, at - 1, user=str(n)), temporality=DELTA)) == [{"n": 1.0}]


# --- distributions --------------------------------------------------------------------------------------------


def explicit(counts: list[int], total: float, at: float, start: float = 0, **more: Any) -> Metric:
    metric = Metric(name="h")
    metric.histogram.aggregation_temporality = more.pop("temporality", CUMULATIVE)
    given = {"count": sum(counts), "sum": total, "bucket_counts": counts, "explicit_bounds": [1.0, 2.0], **more}
    metric.histogram.data_points.append(HistogramDataPoint(**_times(at, start), **given))
    return metric


def test_explicit_buckets_become_a_sketch_of_the_increase() -> None:
    memory = Memory()
    [first] = memory.take(explicit([1, 2, 0], 3.5, 2, 1, min=0.5, max=1.75))
    [second] = memory.take(explicit([1, 4, 1], 11.5, 3, 1, min=0.5, max=5.0))
    [third] = memory.take(explicit([0, 1, 0], 1.5, 5, 4, min=1.5, max=1.5))
    found = [event["histograms"]["h"] for event in (first, second, third)]
    assert [each["sketch"] for each in found] == [
        from_buckets([1.0, 2.0], counts, before).to_wire()
        for counts, before in (([1, 2, 0], []), ([0, 2, 1], [1, 2, 0]), ([0, 1, 0], []))
    ]
    assert [{name: each.get(name) for name in ("sum", "min", "max")} for each in found] == [
        {"sum": 3.5, "min": 0.5, "max": 1.75},
        {"sum": 8.0, "min": None, "max": 5.0},
        {"sum": 1.5, "min": 1.5, "max": 1.5},
    ]


def test_a_histogram_without_new_values_says_nothing() -> None:
    memory = Memory()
    memory.take(explicit([1, 0, 0], 0.5, 2, 1))
    assert memory.take(explicit([1, 0, 0], 0.5, 3, 1)) == []
    assert not memory.refused


def test_a_histogram_without_buckets_counts_and_sums() -> None:
    memory = Memory()
    for at, (count, total) in enumerate([(3, 1.5), (5, 4.0)], 2):
        metric = explicit([], total, at, 1, count=count, bucket_counts=[], explicit_bounds=[])
        found = memory.counters(metric)
    assert found == [{"h_count": 2.0, "h_sum": 2.5}]


@pytest.mark.parametrize(
    ("metric", "reason"),
    [
        (explicit([1, 2], 1.0, 2, 1), Refusal.INCONSISTENT),
        (explicit([1, 2, 3], 1.0, 2, 1, count=7), Refusal.INCONSISTENT),
        (explicit([1, 2, 3], math.nan, 2, 1), Refusal.NON_FINITE),
        (explicit([1, 2, 3], 1.0, 2, 1, explicit_bounds=[2.0, 1.0]), Refusal.INCONSISTENT),
        (explicit([1, 2, 3], 1.0, 2, 1, temporality=0), Refusal.UNSUPPORTED),
    ],
)
def test_a_histogram_that_lies_is_refused(metric: Metric, reason: Refusal) -> None:
    memory = Memory()
    assert memory.take(metric) == []
    assert memory.refused == {reason: 1}


def test_a_histogram_without_a_sum_is_refused() -> None:
    metric = explicit([1, 2, 3], 1.0, 2, 1)
    metric.histogram.data_points[0].ClearField("sum")
    memory = Memory()
    assert memory.take(metric) == []
    assert memory.refused == {Refusal.UNSUPPORTED: 1}


def test_a_histogram_of_too_many_explicit_buckets_is_refused() -> None:
    memory, many = Memory(), points.MAX_EXPLICIT + 1
    bounds = [float(n) for n in range(many - 1)]
    assert memory.take(explicit([1] * many, 1.0, 2, 1, explicit_bounds=bounds)) == []
    assert memory.refused == {Refusal.TOO_LARGE: 1}


def test_sums_that_leave_what_a_number_can_hold_are_refused() -> None:
    memory = Memory()
    memory.take(explicit([1, 0, 0], -1.7e308, 2, 1))
    assert memory.take(explicit([2, 0, 0], 1.7e308, 3, 1)) == []
    assert memory.refused == {Refusal.NON_FINITE: 1}
    request = ExportMetricsServiceRequest()
    resource_metrics = request.resource_metrics.add()
    for scope in ("a", "b"):
        resource_metrics.scope_metrics.add(scope={"name": scope}).metrics.append(counter(point(1.7e308, 2, 1)))
    reading = Memory().metrics.read(request)
    assert (len(reading.read().events), reading.refused) == (1, {Refusal.NON_FINITE: 1})


def test_buckets_that_fell_or_changed_without_a_restart_are_refused() -> None:
    for changed in (explicit([0, 5, 0], 9.0, 3, 1), explicit([2, 2, 0], 9.0, 3, 1, explicit_bounds=[1.0, 3.0])):
        memory = Memory()
        memory.take(explicit([1, 2, 0], 3.5, 2, 1))
        assert memory.take(changed) == []
        assert memory.refused == {Refusal.INCONSISTENT: 1}


Side = tuple[int, list[int]]


def exponential(
    scale: int, zeros: int, positive: Side, at: float, start: float = 1, negative: Side = (0, []), **more: Any
) -> Metric:
    metric = Metric(name="e")
    metric.exponential_histogram.aggregation_temporality = more.pop("temporality", CUMULATIVE)
    data_point = ExponentialHistogramDataPoint(
        **_times(at, start), scale=scale, zero_count=zeros, **{"sum": 1.0, **more}
    )
    data_point.count = zeros + sum(positive[1]) + sum(negative[1])
    for side, (offset, counts) in ((data_point.positive, positive), (data_point.negative, negative)):
        side.offset = offset
        side.bucket_counts.extend(counts)
    metric.exponential_histogram.data_points.append(data_point)
    return metric


def sketch_of(memory: Memory, metric: Metric) -> Sketch:
    [event] = memory.take(metric)
    return Sketch.from_wire(event["histograms"]["e"]["sketch"])


@given(
    st.lists(
        st.tuples(st.integers(-3, 8), st.lists(st.floats(-100, 100).filter(lambda v: abs(v) > 0.01), max_size=9)),
        min_size=1,
        max_size=4,
    ),
    st.sampled_from([DELTA, CUMULATIVE]),
)
@settings(max_examples=60, deadline=None)
def test_exponential_histograms_of_any_scales_add_up_without_loss(
    parts: list[tuple[int, list[float]]], temporality: int
) -> None:
    """A sender only coarsens; all intervals together are what is known of all values at the coarsest scale."""
    memory, whole, values, scale = Memory(), Sketch.of_equal(0.0, 0), list[float](), 20
    for number, (wanted, more) in enumerate(parts):
        scale = min(scale, wanted)
        values += more
        told = more if temporality == DELTA else values
        metric = exponential(scale, 0, buckets(told, 1, scale), number + 2, negative=buckets(told, -1, scale))
        metric.exponential_histogram.aggregation_temporality = temporality  # type: ignore[assignment]  # its number
        for event in memory.take(metric):
            whole = whole.merge(Sketch.from_wire(event["histograms"]["e"]["sketch"]))
        assert not memory.refused
    assert whole.count == len(values)
    if values and scale >= 0:
        expected = Sketch.of_buckets(
            whole.scale, 0, *buckets(values, 1, whole.scale), *buckets(values, -1, whole.scale)
        )
        assert whole == expected


def buckets(values: list[float], sign: int, scale: int) -> Side:
    """The buckets of the values of one sign, made by the bounds of the data model alone."""
    of_sign = [abs(value) for value in values if value * sign > 0]
    if not of_sign:
        return 0, []
    fine = bucket_index(np.array(of_sign), min(max(scale, 0), 6)) >> max(0, -scale)
    indices = (fine << (scale - 6)) if scale > 6 else fine  # finer ones: anywhere within the bucket that it is in
    low = int(indices.min())
    return low, np.bincount(indices - low).tolist()


def test_the_scale_may_fall_between_two_points() -> None:
    memory = Memory()
    assert sketch_of(memory, exponential(6, 1, (4, [1, 0, 2]), 2)) == Sketch.of_buckets(6, 1, 4, [1, 0, 2])
    found = sketch_of(memory, exponential(5, 1, (1, [0, 2, 4]), 3))
    assert found == Sketch.of_buckets(5, 0, 2, [1, 2])


def test_the_zero_may_widen_between_two_points() -> None:
    memory = Memory()
    memory.take(exponential(0, 1, (-2, [3, 1, 1]), 2, negative=(-2, [2])))
    found = sketch_of(memory, exponential(0, 7, (-1, [1, 1]), 3, zero_threshold=0.5))
    assert (found.zero_count, found.count) == (1, 1)


@pytest.mark.parametrize(
    "metric",
    [
        exponential(5, 0, (2, [0, 4]), 3),
        exponential(7, 0, (2, [2, 4]), 3),
        exponential(6, 0, (100, [9]), 3),
        exponential(6, 0, (2**30, [9]), 3, start=2),
        exponential(-30, 0, (0, [9]), 3, start=2),
        exponential(2**30, 0, (0, [9]), 3, start=2),
    ],
)
def test_an_exponential_histogram_that_lies_is_refused(metric: Metric) -> None:
    memory = Memory()
    memory.take(exponential(6, 0, (4, [1, 0, 2]), 2))
    assert memory.take(metric) == []
    assert memory.refused == {Refusal.INCONSISTENT: 1}


def test_a_histogram_of_too_many_buckets_is_refused() -> None:
    memory = Memory()
    assert memory.take(exponential(6, 0, (0, [1] * (points.MAX_BUCKETS + 1)), 2)) == []
    assert memory.refused == {Refusal.TOO_LARGE: 1}


def test_a_summary_counts_sums_and_samples_its_quantiles() -> None:
    memory = Memory()
    found = []
    for at, count in ((2, 10), (3, 14)):
        metric = Metric(name="rpc")
        data_point = SummaryDataPoint(**_times(at, 1), count=count, sum=count / 2)
        data_point.quantile_values.add(quantile=0.5, value=0.25)
        data_point.quantile_values.add(quantile=0.99, value=math.nan)
        metric.summary.data_points.append(data_point)
        found = memory.take(metric)
    assert [event.get("counters") for event in found] == [{"rpc_count": 4.0, "rpc_sum": 2.0}, None]
    assert (found[1]["labels"], found[1]["metrics"]) == ({"quantile": "0.5"}, {"rpc": 0.25})
