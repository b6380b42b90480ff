"""What pages add up to: exact increases over resets, restarts, new, lost and odd series."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Enum, Gauge, Histogram, Info, Summary, exposition
from prometheus_client.openmetrics import exposition as openmetrics

from streammon.sketch import Sketch
from streammon_agents.scrape.accounts import FORGET_S, Accounts, Identity, Oddity, Taken
from streammon_agents.scrape.native import Native
from streammon_agents.scrape.pages import Page, PageError, Sample, Series, Type
from streammon_agents.scrape.protobuf import parse_protobuf
from streammon_agents.scrape.text import parse

TEXT: Any = exposition
OPENMETRICS: Any = openmetrics
NOW = 1_700_000_000.0


class Target:
    """Pages of one target, 15 s apart."""

    def __init__(self, labels: Mapping[str, str] | None = None, **options: Any) -> None:
        identity = Identity("node1", labels or {"job": "shop", "instance": "a:80"})
        self.accounts = Accounts(identity, watching_since_unix_s=NOW - 100, **options)
        self.known: dict[bytes, Series] = {}
        self.now = NOW

    def shows(self, page: str | bytes, *, openmetrics: bool = False, after_s: float = 15.0) -> Taken:
        text = page if isinstance(page, bytes) else page.encode()
        parsed = parse(text, openmetrics=openmetrics, known=self.known)
        self.known = parsed.known
        return self.takes(parsed, after_s)

    def takes(self, page: Page, after_s: float = 15.0) -> Taken:
        self.now += after_s
        return self.accounts.take(page, self.now)


def told(taken: Taken, field: str) -> dict[tuple[str, str], Any]:
    """By name and labels beside the instance."""
    return {
        (name, ",".join(f"{key}={text}" for key, text in event["labels"].items() if key != "instance")): value
        for event in taken.events
        for name, value in event.get(field, {}).items()
    }


def test_an_event_is_all_of_one_label_set_at_one_moment() -> None:
    taken = Target().shows('a 1\nb 2\na{x="1"} 3\n')
    common = {"time_unix_s": NOW + 15, "host": "node1", "entity": "service", "id": "shop"}
    assert taken.events == [
        {**common, "labels": {"instance": "a:80"}, "metrics": {"a": 1.0, "b": 2.0}},
        {**common, "labels": {"instance": "a:80", "x": "1"}, "metrics": {"a": 3.0}},
    ]
    assert (taken.samples, taken.series_added) == (3, 3)


def test_counters_are_increases_over_restarts_and_new_series() -> None:
    target = Target()
    head = "# TYPE a_total counter\n"
    assert target.shows(head + 'a_total{x="1"} 100\n').events == []
    assert told(target.shows(head + 'a_total{x="1"} 103\n'), "counters") == {("a_total", "x=1"): 3}
    assert told(target.shows(head + 'a_total{x="1"} 103\na_total{x="2"} 7\n'), "counters") == {
        ("a_total", "x=1"): 0,
        ("a_total", "x=2"): 7,
    }
    assert told(target.shows(head + 'a_total{x="1"} 2\na_total{x="2"} 8\n'), "counters") == {
        ("a_total", "x=1"): 2,
        ("a_total", "x=2"): 1,
    }


def test_a_series_that_is_away_for_a_while_is_not_new_when_it_is_back() -> None:
    target = Target()
    head = "# TYPE a counter\nup 1\n"
    target.shows(head + "a 100\n")
    target.shows(head)
    assert told(target.shows(head + "a 101\n"), "counters") == {("a", ""): 1}
    for _ in range(5):
        target.shows(head, after_s=FORGET_S / 4)
    assert told(target.shows(head + "a 102\n"), "counters") == {("a", ""): 102}


def test_the_first_page_counts_what_began_while_we_watched() -> None:
    page = (
        '# TYPE a counter\na_total{x="old"} 5\na_created{x="old"} %f\n'
        'a_total{x="new"} 7\na_created{x="new"} %f\n# EOF\n'
    )
    taken = Target().shows(page % (NOW - 101, NOW), openmetrics=True)
    assert told(taken, "counters") == {("a_total", "x=new"): 7}
    assert told(taken, "metrics") == {}
    assert told(Target().shows(page % (NOW - 101, NOW + 3600), openmetrics=True), "counters") == {}, "not yet"


def test_a_newer_created_time_is_a_restart_though_the_value_rose() -> None:
    target = Target()
    page = "# TYPE a counter\na_total %d\na_created %f\n# EOF\n"
    target.shows(page % (5, NOW - 1000), openmetrics=True)
    assert told(target.shows(page % (9, NOW), openmetrics=True), "counters") == {("a_total", ""): 9}
    assert told(target.shows(page % (10, NOW), openmetrics=True), "counters") == {("a_total", ""): 1}


def registry() -> tuple[CollectorRegistry, Callable[[float], None]]:
    made = CollectorRegistry()
    counter = Counter("requests", "r", ["path"], registry=made)
    histogram = Histogram("latency_seconds", "h", registry=made)
    summary = Summary("size_bytes", "s", registry=made)
    Gauge("temperature", "t", registry=made).set(21.5)
    Info("build", "b", registry=made).info({"version": "1"})
    Enum("state", "e", states=["on", "off"], registry=made).state("off")

    def request(value: float) -> None:
        counter.labels("/").inc()
        histogram.observe(value)
        summary.observe(value * 100)

    return made, request


@pytest.mark.parametrize("is_openmetrics", [False, True], ids=["text", "openmetrics"])
def test_what_the_official_client_shows_is_told_exactly(is_openmetrics: bool) -> None:
    made, request = registry()
    generate = (OPENMETRICS if is_openmetrics else TEXT).generate_latest
    target = Target()
    request(0.02)
    target.shows(generate(made), openmetrics=is_openmetrics)
    for value in (0.003, 0.03, 0.03, 20.0):
        request(value)
    taken = target.shows(generate(made), openmetrics=is_openmetrics)
    assert told(taken, "counters") == {
        ("requests_total", "path=/"): 4,
        ("size_bytes_count", ""): 4,
        ("size_bytes_sum", ""): pytest.approx(2006.3),
    }
    histogram = told(taken, "histograms")["latency_seconds", ""]
    sketch = Sketch.from_wire(histogram["sketch"])
    assert (histogram["sum"], sketch.count) == (pytest.approx(20.063), 4)
    assert [sketch.above(bound) for bound in (0.005, 0.025, 0.05, 10.0)] == [3, 3, 1, 0], "above 10 is taken for 10"
    assert told(taken, "metrics") == {
        ("temperature", ""): 21.5,
        ("build_info", "version=1"): 1.0,
        ("state", "state=off"): 1.0,
        ("state", "state=on"): 0.0,
    }
    assert not taken.oddities
    assert told(target.shows(generate(made), openmetrics=is_openmetrics), "histograms") == {}, "nothing was added"


def buckets(counts: Mapping[str, float], total: float, name: str = "h") -> str:
    lines = [f'{name}_bucket{{le="{bound}"}} {count}\n' for bound, count in counts.items()]
    return f"# TYPE {name} histogram\n{''.join(lines)}{name}_sum {total}\n"


def of_histogram(taken: Taken, name: str = "h") -> tuple[float, int] | None:
    found = told(taken, "histograms").get((name, ""))
    return found and (found["sum"], Sketch.from_wire(found["sketch"]).count)


def test_a_histogram_begins_anew_when_a_bucket_fell() -> None:
    target = Target()
    target.shows(buckets({"1": 5, "2": 6, "+Inf": 6}, 8.0))
    assert of_histogram(target.shows(buckets({"1": 3, "2": 7, "+Inf": 7}, 9.0))) == (9.0, 7)
    assert of_histogram(target.shows(buckets({"1": 3, "2": 7, "+Inf": 8}, 12.0))) == (3.0, 1)


def test_buckets_may_be_left_out_while_they_are_empty() -> None:
    target = Target()
    target.shows(buckets({"1": 5, "+Inf": 6}, 8.0))
    assert of_histogram(target.shows(buckets({"0.5": 1, "1": 6, "2": 7, "+Inf": 8}, 11.0))) == (3.0, 2)


def test_fractions_of_counts_add_up() -> None:
    target, counted = Target(), 0
    target.shows(buckets({"1": 0, "+Inf": 0}, 0))
    for number in range(1, 11):
        counted += (of_histogram(target.shows(buckets({"1": number * 0.7, "+Inf": number * 0.7}, 1))) or (0, 0))[1]
    assert counted == 7


@pytest.mark.parametrize(
    "page",
    [
        buckets({"1": 5, "2": 4, "+Inf": 6}, 1.0),
        buckets({"1": 5, "2": 7}, 1.0),
        buckets({"1": 5, "+Inf": 6}, math.nan),
        buckets({"1": -5, "+Inf": 6}, 1.0),
        buckets({"1": 5, "+Inf": math.inf}, 1.0),
        '# TYPE h histogram\nh_bucket{le="1"} 1\nh_bucket{le="+Inf"} 1\n',
    ],
)
def test_a_histogram_that_cannot_be_is_absent_and_counted(page: str) -> None:
    target = Target()
    target.shows("a 1\n")
    taken = target.shows(page)
    assert told(taken, "histograms") == {}
    assert taken.oddities == {Oddity.BAD_HISTOGRAM: 1}
    good = buckets({"1": 5, "2": 6, "+Inf": 7}, 9.0)
    assert of_histogram(target.shows(good)) == (9.0, 7), "a good one is taken again"


def test_a_histogram_without_bounds_tells_its_count_and_sum() -> None:
    target = Target()
    target.shows(buckets({"+Inf": 5}, 8.0) + "h_count 5\n")
    taken = target.shows(buckets({"+Inf": 7}, 9.0) + "h_count 7\n")
    assert told(taken, "counters") == {("h_count", ""): 2, ("h_sum", ""): 1}
    assert told(target.shows(buckets({"1": 7, "+Inf": 8}, 9.0)), "histograms") == {}, "of another shape, a baseline"


def test_the_sum_of_a_summary_may_fall_and_is_no_counter_then() -> None:
    target = Target()
    page = '# TYPE s summary\ns{quantile="0.5"} %f\ns_sum %f\ns_count %d\n'
    target.shows(page % (1, 10, 5))
    taken = target.shows(page % (math.nan, 7, 6))
    assert told(taken, "counters") == {("s_count", ""): 1}
    assert (told(taken, "metrics"), taken.oddities) == ({}, {Oddity.NOT_FINITE: 1, Oddity.NEGATIVE: 1})
    taken = target.shows(page % (2, math.nan, 7))
    assert told(taken, "counters") == {("s_count", ""): 1}
    assert told(taken, "metrics") == {("s", "quantile=0.5"): 2}
    assert told(target.shows(page % (2, 8, 7)), "counters") == {("s_sum", ""): 1, ("s_count", ""): 0}


def test_odd_samples_are_absent_and_counted_and_touch_no_others() -> None:
    target = Target()
    target.shows("a 1\n")
    taken = target.shows(
        "# TYPE c counter\n# TYPE h histogram\n# TYPE bare histogram\n"
        'good 1\ngood 2\nnan NaN\ninf +Inf\nc -1\nbare 5\nh_bucket 1\nh_bucket{le="x"} 1\nh_bucket{le="NaN"} 1\n'
    )
    assert told(taken, "metrics") == {("good", ""): 1.0}
    assert taken.oddities == {
        Oddity.DUPLICATE: 1,
        Oddity.NOT_FINITE: 2,
        Oddity.NEGATIVE: 1,
        Oddity.WRONG_TYPE: 4,
    }


def test_times_of_pages_are_believed_within_bounds() -> None:
    def times(taken: Taken) -> list[float]:
        return [event["time_unix_s"] - NOW for event in taken.events]

    target = Target()
    assert times(target.shows(f"a 1 {(NOW + 10) * 1000:.0f}\n")) == [10.0]
    assert times(target.shows(f"a 1 {(NOW + 10) * 1000:.0f}\n")) == [], "it was told already"
    taken = target.shows(f'a 1 {(NOW + 3600) * 1000:.0f}\na{{x="1"}} 1 {(NOW - 3600) * 1000:.0f}\n')
    assert (times(taken), taken.oddities) == ([45.0, 45.0], {Oddity.WRONG_TIME: 2})
    assert times(Target(honor_timestamps=False).shows(f"a 1 {(NOW + 10) * 1000:.0f}\n")) == [15.0]


def test_labels_that_target_or_event_have_are_renamed() -> None:
    labels = {"job": "shop", "instance": "a:80", "zone": "z"}
    page = 'a{job="mine",zone="y",exported_zone="x",host="h",empty=""} 1\n'
    [event] = Target(labels).shows(page).events
    assert (event["id"], event["labels"]) == (
        "shop",
        {
            "instance": "a:80", "zone": "z", "exported_job": "mine", "exported_zone": "x",
            "exported_exported_zone": "y", "exported_host": "h",
        },
    )  # fmt: skip
    [event] = Target(labels, honor_labels=True).shows(page).events
    assert (event["id"], event["labels"]["zone"]) == ("mine", "y")


def test_the_label_service_names_the_service_before_the_job_does() -> None:
    [event] = Target({"job": "pods", "service": "ranker", "instance": "a:80"}).shows("a 1\n").events
    assert (event["id"], event["labels"]) == ("ranker", {"instance": "a:80", "job": "pods"})


def test_relabelling_drops_and_renames_samples_with_their_parts() -> None:
    def relabel(labels: dict[str, str]) -> dict[str, str] | None:
        if labels["__name__"].startswith("no"):
            return None
        return {**labels, "__name__": labels["__name__"].replace("h_", "x_"), "__tmp": "1"}

    target = Target(relabel=relabel)
    target.shows("no 1\n")
    taken = target.shows("no 1\n" + buckets({"1": 5, "+Inf": 6}, 8.0))
    assert of_histogram(taken, "x") == (8.0, 6)
    assert taken.samples == 3


def test_a_change_of_type_is_a_baseline() -> None:
    target = Target()
    target.shows("a 5\n")
    assert told(target.shows("# TYPE a counter\na 6\n"), "counters") == {}
    assert told(target.shows("# TYPE a counter\na 8\n"), "counters") == {("a", ""): 2}


def test_a_page_with_too_many_samples_after_relabelling_is_as_if_it_had_not_been_there() -> None:
    target = Target(max_series=2, relabel=lambda labels: None if labels["__name__"] == "no" else labels)
    with pytest.raises(PageError, match="more than 2 samples"):
        target.shows("# TYPE a counter\na 1\nb 1\nc 1\n")
    assert target.shows("# TYPE a counter\na 2\nno 1\nno 2\n").events == [], "still the first"
    assert told(target.shows("# TYPE a counter\na 5\n"), "counters") == {("a", ""): 3}
    with pytest.raises(PageError):
        target.shows("# TYPE a counter\na 6\nb 1\nc 1\n")
    assert told(target.shows("# TYPE a counter\na 7\n"), "counters") == {("a", ""): 2}


def test_memory_is_bounded_though_all_series_change_all_the_time() -> None:
    target = Target(max_series=100)
    for round_ in range(10):
        target.shows("".join(f'a{{x="{round_}-{number}"}} 1\n' for number in range(100)))
    assert len(target.accounts._accounts) == 200


# --- native histograms ------------------------------------------------------------------------------------


def native_page(native: Native) -> Page:
    return Page({"h": Type.HISTOGRAM}, [Sample(SERIES, native)], {})


SERIES = Series("h", {})


def of_values(values: list[float], schema: int, threshold: float = 0.0) -> Native:
    """As a client counts them, by the definition of the buckets."""
    positive, negative, zeros = dict[int, int](), dict[int, int](), 0
    for value in values:
        if abs(value) <= threshold:
            zeros += 1
            continue
        side = positive if value > 0 else negative
        index = math.ceil(round(math.log2(abs(value)) * 2.0**schema, 9))
        side[index] = side.get(index, 0) + 1
    return Native(schema, threshold, zeros, positive, negative, math.fsum(values))


VALUES = st.lists(st.floats(0.001, 1e6) | st.floats(-1e6, -0.001) | st.just(0.0), max_size=20)


@settings(max_examples=60)
@given(VALUES, VALUES, st.integers(-4, 8), st.integers(-4, 8))
def test_native_histograms_are_held_against_each_other_at_any_resolution(
    first: list[float], second: list[float], schema: int, coarser: int
) -> None:
    schema, coarser = max(schema, coarser), min(schema, coarser)
    target = Target()
    target.takes(native_page(of_values(first, schema)))
    taken = target.takes(native_page(of_values(first + second, coarser)))
    expected = of_values(second, coarser)
    if not second:
        assert taken.events == []
        return
    [event] = taken.events
    assert event["histograms"]["h"]["sketch"] == expected.sketch().to_wire()
    assert event["histograms"]["h"]["sum"] == pytest.approx(expected.sum, abs=1e-6)


def test_native_buckets_become_ours_one_off() -> None:
    sketch = Native(0, 0.0, 2, {1: 3, 3: 1}, {-1: 1}, 9.0).sketch()  # (1, 2], (4, 8], [-0.5, -0.25)
    assert sketch == Sketch(scale=0, zero_count=2, offset=0, counts=[3, 0, 1], negative_offset=-2, negative_counts=[1])


def test_a_wider_bucket_of_zeros_is_no_restart() -> None:
    before = Native(0, 0.0, 1, {-5: 4, 1: 2}, {-5: 1}, 9.0)
    now = Native(0, 2.0**-4, 6, {1: 3}, {}, 10.0)
    assert now.since(before) == Native(0, 2.0**-4, 0, {1: 1}, {}, 1.0)
    assert Native(0, 2.0**-4, 5, {1: 3}, {}, 10.0).since(before) is None, "one is missing: it began anew"


def test_a_native_histogram_that_cannot_be_is_absent_and_counted() -> None:
    target = Target()
    target.shows("a 1\n")
    wide = Native(8, 0.0, 0, {0: 1, 1 << 30: 1}, {}, 1.0)
    assert target.takes(native_page(wide)).oddities == {Oddity.BAD_HISTOGRAM: 1}
    taken = target.takes(Page({"h": Type.GAUGE}, [Sample(SERIES, wide)], {}))
    assert taken.oddities == {Oddity.WRONG_TYPE: 1}


RECORDED = Path(__file__).parents[2] / "data" / "native_histograms"


def test_what_the_official_go_client_shows_is_told_exactly_over_a_change_of_resolution() -> None:
    first, second = (parse_protobuf((RECORDED / f"{name}.pb").read_bytes()) for name in ("first", "second"))
    resolutions = [
        [sample.value.schema for sample in page.samples if isinstance(sample.value, Native)] for page in (first, second)
    ]
    assert resolutions == [[3, 3], [3, 1]], "of the change, and of the latency"
    target = Target()
    target.takes(first)
    taken = target.takes(second)
    latencies = [0.001 * 1.05 ** (number % 200) for number in range(10, 500)]  # as main.go.txt has them
    changes = [float(number % 7 - 3) for number in range(10, 500)]
    histograms = told(taken, "histograms")
    latency, change = histograms["latency_seconds", "path=/"], histograms["change", ""]
    assert latency["sketch"] == of_values(latencies, 1).sketch().to_wire()
    assert change["sketch"] == of_values(changes, 3).sketch().to_wire()
    assert (latency["sum"], change["sum"]) == (pytest.approx(sum(latencies)), sum(changes))
    assert told(taken, "counters") == {("requests_total", ""): 490}
    assert not taken.oddities
