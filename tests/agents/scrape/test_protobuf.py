"""The protobuf format: against what the text format says of the same, and on broken pages."""

from __future__ import annotations

import math
from typing import Any

import pytest
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st

from streammon_agents.scrape.native import Native
from streammon_agents.scrape.pages import Fault, Limits, Page, PageError, Type
from streammon_agents.scrape.protobuf import family_class, parse_protobuf

FAMILY: Any = family_class()


def delimited(*families: Message) -> bytes:
    return b"".join(varint(len(text)) + text for text in (family.SerializeToString() for family in families))


def varint(number: int) -> bytes:
    low, rest = number & 0x7F, number >> 7
    return bytes([low | 0x80]) + varint(rest) if rest else bytes([low])


def values(page: Page) -> list[tuple[str, dict[str, str], Any, float | None]]:
    return [(series.name, dict(series.labels), value, time) for series, value, time in page.samples]


def label(name: str, value: str) -> dict[str, str]:
    return {"name": name, "value": value}


def test_families_come_out_as_the_text_format_has_them() -> None:
    created = {"seconds": 1_700_000_000, "nanos": 500_000_000}
    page = delimited(
        FAMILY(
            name="a_total",
            type=0,
            metric=[{"label": [label("x", "1")], "counter": {"value": 3, "created_timestamp": created}}],
        ),
        FAMILY(name="bare", type=0, metric=[{"counter": {"value": 4, "created_timestamp": created}}]),
        FAMILY(name="g", type=1, metric=[{"gauge": {"value": -0.5}, "timestamp_ms": 1_700_000_000_250}]),
        FAMILY(name="u", type=3, metric=[{"untyped": {"value": math.inf}}]),
        FAMILY(
            name="s",
            type=2,
            metric=[
                {
                    "summary": {
                        "sample_count": 2,
                        "sample_sum": 7,
                        "quantile": [{"quantile": 0.5, "value": 3}],
                        "created_timestamp": created,
                    }
                }
            ],
        ),
        FAMILY(
            name="h",
            type=4,
            metric=[
                {
                    "histogram": {
                        "sample_count": 3,
                        "sample_sum": 2.5,
                        "bucket": [{"cumulative_count": 2, "upper_bound": 0.5}],
                    }
                }
            ],
        ),
        FAMILY(name="gh", type=5, metric=[{"histogram": {"sample_count_float": 1.5, "sample_sum": 2}}]),
    )
    parsed = parse_protobuf(page)
    assert values(parsed) == [
        ("a_total", {"x": "1"}, 3.0, None),
        ("a_created", {"x": "1"}, 1_700_000_000.5, None),
        ("bare", {}, 4.0, None),
        ("bare_created", {}, 1_700_000_000.5, None),
        ("g", {}, -0.5, 1_700_000_000.25),
        ("u", {}, math.inf, None),
        ("s", {"quantile": "0.5"}, 3.0, None),
        ("s_sum", {}, 7.0, None),
        ("s_count", {}, 2.0, None),
        ("s_created", {}, 1_700_000_000.5, None),
        ("h_sum", {}, 2.5, None),
        ("h_count", {}, 3.0, None),
        ("h_bucket", {"le": "0.5"}, 2.0, None),
        ("gh_gsum", {}, 2.0, None),
        ("gh_gcount", {}, 1.5, None),
    ]
    assert parsed.types["gh"] is Type.GAUGEHISTOGRAM
    again = parse_protobuf(page, known=parsed.known)
    assert [sample.series for sample in again.samples] == [sample.series for sample in parsed.samples]


def histogram(**fields: Any) -> bytes:
    return delimited(FAMILY(name="h", type=4, metric=[{"histogram": fields}]))


def native(page: bytes) -> Native:
    [found] = [sample.value for sample in parse_protobuf(page).samples if isinstance(sample.value, Native)]
    return found


def test_spans_and_deltas_give_the_buckets() -> None:
    spans = [{"offset": -2, "length": 2}, {"offset": 3, "length": 1}]
    found = native(
        histogram(
            schema=3, zero_threshold=1e-128, zero_count=2, sample_sum=9.5,
            positive_span=spans, positive_delta=[3, -1, 4], negative_span=[{"length": 1}], negative_delta=[1],
        )
    )  # fmt: skip
    assert found == Native(3, 1e-128, 2, {-2: 3, -1: 2, 3: 6}, {0: 1}, 9.5)


def test_counts_that_are_fractions_are_rounded_down() -> None:
    found = native(
        histogram(schema=0, zero_count_float=1.9, positive_span=[{"offset": 1, "length": 2}], positive_count=[0.5, 2.5])
    )
    assert found == Native(0, 0.0, 1, {1: 0, 2: 2}, {}, 0.0)


def test_custom_buckets_are_left_to_the_classic_ones() -> None:
    spans = {"positive_span": [{"offset": 0, "length": 1}], "positive_delta": [3]}
    page = histogram(schema=-53, bucket=[{"cumulative_count": 3, "upper_bound": 1}], sample_count=3, **spans)
    assert not any(isinstance(sample.value, Native) for sample in parse_protobuf(page).samples)


@pytest.mark.parametrize(
    ("page", "fault"),
    [
        (b"\x05abc", Fault.TRUNCATED),
        (b"\x80", Fault.TRUNCATED),
        (b"\xff\xff\xff\xff\xff\xff", Fault.MALFORMED),
        (b"\x03\xff\xff\xff", Fault.MALFORMED),
        (delimited(FAMILY(name="", type=1)), Fault.MALFORMED),
        (delimited(FAMILY(name="a", type=77)), Fault.MALFORMED),
        (histogram(positive_span=[{"offset": 0, "length": 4_000_000_000}], positive_delta=[1]), Fault.MALFORMED),
        (histogram(positive_span=[{"offset": 0, "length": 1}], positive_delta=[1, 1]), Fault.MALFORMED),
        (histogram(positive_span=[{"length": 1}], positive_count=[math.nan]), Fault.MALFORMED),
        (histogram(positive_span=[{"length": 100}], positive_delta=[0] * 100), Fault.TOO_MANY_SAMPLES),
        (delimited(*(FAMILY(name=f"a{number}", type=1) for number in range(7))), Fault.TOO_MANY_SAMPLES),
        (delimited(FAMILY(name="a", type=1, metric=[{}] * 7)), Fault.TOO_MANY_SAMPLES),
        (delimited(FAMILY(name="a", type=1, metric=[{"label": [label("x", "1")] * 2}])), Fault.MALFORMED),
        (delimited(FAMILY(name="a", type=1, metric=[{"label": [label("x", "12345")]}])), Fault.LABEL_TOO_LONG),
    ],
)
def test_a_page_that_cannot_be_is_refused(page: bytes, fault: Fault) -> None:
    with pytest.raises(PageError) as refusal:
        parse_protobuf(page, limits=Limits(samples=6, label_value_length=4))
    assert refusal.value.fault is fault


GOOD = histogram(schema=3, sample_count=3, positive_span=[{"offset": 1, "length": 2}], positive_delta=[1, 1])


@settings(max_examples=300)
@given(st.binary(max_size=40) | st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)))
def test_garbage_is_read_or_refused_never_more(change: bytes | tuple[int, int]) -> None:
    page = change if isinstance(change, bytes) else GOOD[: change[0]] + bytes([change[1]]) + GOOD[change[0] + 1 :]
    try:
        parse_protobuf(page)
    except PageError:
        return
