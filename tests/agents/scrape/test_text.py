"""The text parser: against the official one on whatever pages, on real ones, and on bad ones."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Enum, Gauge, Histogram, Info, Summary, exposition, parser
from prometheus_client.openmetrics import exposition as openmetrics_exposition
from prometheus_client.openmetrics import parser as openmetrics_parser

from streammon_agents.scrape.pages import LIMITS, NO_LIMITS, Fault, Limits, Page, PageError, Type
from streammon_agents.scrape.text import parse

Values = list[tuple[str, dict[str, str], float, float | None]]

EXPOSITION: Any = exposition  # without types
PARSER: Any = parser
OPENMETRICS_EXPOSITION: Any = openmetrics_exposition
OPENMETRICS_PARSER: Any = openmetrics_parser

NAMES = st.from_regex(r"[a-zA-Z_:][a-zA-Z0-9_:]{0,8}", fullmatch=True)
LABEL_NAMES = st.from_regex(r"[a-zA-Z_][a-zA-Z0-9_]{0,8}", fullmatch=True).filter(
    lambda name: not name.startswith("__")
)
LABELS = st.dictionaries(LABEL_NAMES, st.text(st.characters(exclude_categories=["Cs"]), max_size=12), max_size=4)
ROWS = st.lists(st.tuples(NAMES, LABELS, st.floats(), st.none() | st.integers(0, 2**41)), min_size=1, max_size=8)


def values(page: Page) -> Values:
    return [
        (series.name, dict(series.labels), value, time)
        for series, value, time in page.samples
        if isinstance(value, float)
    ]


def of_library(families: Iterable[Any]) -> Values:
    return [
        (sample.name, sample.labels, sample.value, None if sample.timestamp is None else float(sample.timestamp))
        for family in families
        for sample in family.samples
    ]


def text_of(rows: Iterable[tuple[str, dict[str, str], float, int | None]]) -> str:
    lines = []
    for name, labels, value, time in rows:
        escaped = {
            key: text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n") for key, text in labels.items()
        }
        inside = ",".join(f'{key}="{text}"' for key, text in escaped.items())
        lines.append(f"{name}{{{inside}}} {value!r}" + ("" if time is None else f" {time}"))
    return "".join(f"{line}\n" for line in lines)


def refused(page: bytes | str, *, openmetrics: bool = False, limits: Limits = LIMITS) -> PageError:
    with pytest.raises(PageError) as failure:
        parse(page if isinstance(page, bytes) else page.encode(), openmetrics=openmetrics, limits=limits)
    return failure.value


@given(ROWS)
def test_any_page_is_read_as_it_was_written(rows: list[tuple[str, dict[str, str], float, int | None]]) -> None:
    expected = [(*row[:3], None if row[3] is None else row[3] / 1000) for row in rows]
    page = text_of(rows).encode()
    first = parse(page)
    again = parse(page, known=first.known)
    assert repr(values(first)) == repr(values(again)) == repr(expected)
    assert [sample.series for sample in again.samples] == [sample.series for sample in first.samples]
    official = of_library(PARSER.text_string_to_metric_families(page.decode()))
    assert sorted(map(repr, official)) == sorted(map(repr, expected))


def a_registry() -> CollectorRegistry:
    registry = CollectorRegistry()
    requests = Counter("requests", "How many.\nIn two lines", ["path"], registry=registry)
    requests.labels('/"quoted"\\and}{,= braces\nand lines').inc(3)
    requests.labels("/").inc(0.5, exemplar={"trace_id": "ab # c}"})
    Gauge("temperature", "Now", registry=registry).set(-1e-7)
    Gauge("unset", "No number", registry=registry).set(math.nan)
    Gauge("full", "Infinite", registry=registry).set(-math.inf)
    Histogram("latency_seconds", "h", ["path"], registry=registry).labels("/").observe(0.3, {"trace_id": "x"})
    Summary("size_bytes", "s", registry=registry).observe(20)
    Info("build", "b", registry=registry).info({"version": "1.2.3"})
    Enum("state", "e", states=["on", "off"], registry=registry).state("off")
    return registry


def test_pages_of_the_official_client_are_read_as_its_own_parsers_read_them() -> None:
    registry = a_registry()
    plain = EXPOSITION.generate_latest(registry)
    expected = of_library(PARSER.text_string_to_metric_families(plain.decode()))
    assert repr(sorted(values(parse(plain)), key=repr)) == repr(sorted(expected, key=repr))
    measured = OPENMETRICS_EXPOSITION.generate_latest(registry)
    expected = of_library(OPENMETRICS_PARSER.text_string_to_metric_families(measured.decode()))
    page = parse(measured, openmetrics=True)
    assert repr(values(page)) == repr(values(parse(measured, openmetrics=True, known=page.known))) == repr(expected)
    assert page.types == {
        "requests": Type.COUNTER, "temperature": Type.GAUGE, "unset": Type.GAUGE, "full": Type.GAUGE,
        "latency_seconds": Type.HISTOGRAM, "size_bytes": Type.SUMMARY, "build": Type.INFO, "state": Type.STATESET,
    }  # fmt: skip


def test_names_in_quotes_blanks_and_trailing_commas_are_read() -> None:
    page = parse(
        b'# TYPE "my.requests" counter\n'
        b'{"my.requests","my.path"="/",code="200",} 1\n'
        b'\t spaced  { a = "1" , } \t 2   1700000000500 \r\n'
        b"bare\t3\n"
        b"\n"
        b"# just a comment\n# HELP bare with\\nescapes\n"
        b'kept{a="\\x \\\\ \\" \\n"} +Inf'
    )
    assert values(page) == [
        ("my.requests", {"my.path": "/", "code": "200"}, 1.0, None),
        ("spaced", {"a": "1"}, 2.0, 1700000000.5),
        ("bare", {}, 3.0, None),
        ("kept", {"a": '\\x \\ " \n'}, math.inf, None),
    ]
    assert page.types == {"my.requests": Type.COUNTER}


def test_times_are_milliseconds_in_one_format_and_seconds_in_the_other() -> None:
    assert parse(b"a 1 1700000000000\n").samples[0].time_s == 1.7e9
    assert parse(b"a 1 1700000000.25\n# EOF\n", openmetrics=True).samples[0].time_s == 1700000000.25


def test_a_type_counts_wherever_it_stands_and_the_first_one_at_that() -> None:
    assert parse(b"a 1\n# TYPE a counter\n# TYPE a gauge\n# TYPE b untyped\n").types == {
        "a": Type.COUNTER,
        "b": Type.UNKNOWN,
    }


@pytest.mark.parametrize(
    "page",
    [
        "a", "a ", "a 1 2 3", "a one", "a 1_000", "a 1 1.5", "a 1 NaN", "a 0x1p-2", "1a 1", "a{ 1", 'a{b="1" 1',
        'a{b="1"c="2"} 1', 'a{b="1",b="2"} 1', 'a{b=1} 1', 'a{b} 1', 'a{"b"} 1', 'a{="1"} 1', 'a{,} 1', '{b="1"} 1',
        '{"a","b"} 1', 'a{__name__="b"} 1', 'a{b:c="1"} 1', "# TYPE a gizmo", "# TYPE a", "# TYPE a counter x",
        'a{b="1"}1}', 'a{b="\\"} 1', "{} 1", "a-b 1", "a 1 # {} 1", "<html>", "a\x001 1",
    ],
)  # fmt: skip
def test_a_line_that_cannot_be_read_ends_the_page_and_is_named(page: str) -> None:
    error = refused(f"good 1\n{page}\n")
    assert error.fault is Fault.MALFORMED
    assert str(error).startswith("line 2: ")


def test_a_value_may_follow_the_brace_at_once() -> None:
    assert values(parse(b'a{b="1"}2\n')) == [("a", {"b": "1"}, 2.0, None)]


def test_openmetrics_says_where_it_ends() -> None:
    assert refused("a 1\n", openmetrics=True).fault is Fault.TRUNCATED
    assert refused("a 1\n# EOF\na 2\n", openmetrics=True).fault is Fault.MALFORMED
    assert values(parse(b"a 1\n# EOF", openmetrics=True)) == [("a", {}, 1.0, None)]


def test_what_is_not_utf8_is_refused() -> None:
    assert refused(b'a{b="\xff"} 1\n').fault is Fault.NOT_UTF8


def test_reaching_a_limit_refuses_the_page() -> None:
    limits = Limits(samples=2, labels=1, label_name_length=3, label_value_length=4)
    assert len(parse(b'a{bbb="1234"} 1\nb 1\n', limits=limits).samples) == 2
    assert refused("a 1\nb 1\nc 1\n", limits=limits).fault is Fault.TOO_MANY_SAMPLES
    assert refused("".join(f"# TYPE a{i} gauge\n" for i in range(3)), limits=limits).fault is Fault.TOO_MANY_SAMPLES
    assert refused('a{b="1",c="2"} 1', limits=limits).fault is Fault.TOO_MANY_LABELS
    assert refused('a{bbbb="1"} 1', limits=limits).fault is Fault.LABEL_TOO_LONG
    assert refused('a{b="äää"} 1', limits=limits).fault is Fault.LABEL_TOO_LONG
    known = parse(b"a 1\n", limits=limits).known
    with pytest.raises(PageError):
        parse(b"a 1\na 2\na 3\n", limits=limits, known=known)


@pytest.mark.parametrize("page", [b"\n" * 1_000_000, b"# x\n" * 250_000, b'a{b="' + b"x" * 1_000_000, b"a" * 1_000_000])
def test_a_page_costs_little_more_than_its_own_size(page: bytes) -> None:
    tracemalloc.start()
    try:
        refused(page)
        assert tracemalloc.get_traced_memory()[1] < 4 * len(page)
    finally:
        tracemalloc.stop()


@settings(max_examples=300)
@given(st.binary(max_size=60) | st.text('a{}="\\, 1\n#\t', max_size=30).map(str.encode), st.booleans())
def test_garbage_is_read_or_refused_never_more(page: bytes, openmetrics: bool) -> None:
    try:
        first = parse(page, openmetrics=openmetrics)
    except PageError:
        return
    assert repr(values(parse(page, openmetrics=openmetrics, known=first.known))) == repr(values(first))


def test_a_known_series_is_never_found_in_a_bad_line() -> None:
    known = parse(b'a{b="}"} 1\na 1\n').known
    for line in ('a{b="}"} 1 }', 'a{b="}"} 1_0', 'a{b="}"}', "a", "a 1_0", "a 1 2 3"):
        with pytest.raises(PageError):
            parse(line.encode(), known=known)
    assert values(parse(b'a{b="}"} 2 5000\n', known=known)) == [("a", {"b": "}"}, 2.0, 5.0)]


def test_without_limits_all_is_taken() -> None:
    page = "".join(f'a{{b="{number}"}} 1\n' for number in range(30_000)).encode()
    assert len(parse(page, limits=NO_LIMITS).samples) == 30_000
    assert refused(page).fault is Fault.TOO_MANY_SAMPLES
