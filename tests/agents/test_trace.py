"""Trace context: what is a `traceparent`, what belongs to it, and where it is passed on."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streammon.events import EventType
from streammon_agents.packing import Packer
from streammon_agents.sdk import http_headers, kafka_headers, traced
from streammon_agents.sdk.trace import Trace, current, parse

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
HEADER = f"00-{TRACE}-{SPAN}-01"


@pytest.mark.parametrize(
    ("header", "is_one"),
    [
        (HEADER, True),
        (f" {HEADER}\t", True),
        (f"cc-{TRACE}-{SPAN}-00-what-the-future-brings", True),
        (f"cc-{TRACE}-{SPAN}-00", True),
        (f"{HEADER}-more", False),
        (f"ff-{TRACE}-{SPAN}-01", False),
        (f"00-{'0' * 32}-{SPAN}-01", False),
        (f"00-{TRACE}-{'0' * 16}-01", False),
        (HEADER.upper(), False),
        (HEADER[:-1], False),
        (f"cc-{TRACE}-{SPAN}-00.", False),
        ("", False),
    ],
)
def test_header_is_read_as_the_recommendation_says(header: str, is_one: bool) -> None:
    assert (parse(header) is not None) is is_one


@given(st.text() | st.binary().map(lambda raw: raw.decode("latin-1")))
def test_any_text_is_a_trace_or_none(text: str) -> None:
    found = parse(text)
    assert found is None or parse(found.header) is not None


@pytest.mark.parametrize(
    "headers",
    [{"traceparent": HEADER}, {"TraceParent": HEADER}, [("traceparent", HEADER.encode())], [(b"traceparent", HEADER)]],
)
def test_trace_is_found_in_headers_of_http_and_of_kafka_and_passed_on(headers: Any) -> None:
    with traced(headers) as trace:
        assert trace == current() == Trace(TRACE, SPAN, "01")
        assert http_headers() == {"traceparent": HEADER}
        assert kafka_headers() == [("traceparent", HEADER.encode())]
    assert current() is None
    assert http_headers() == {}


@pytest.mark.parametrize("headers", [None, {}, {"traceparent": "nonsense"}, [("traceparent", HEADER)] * 2])
def test_without_a_sound_header_there_is_no_trace(headers: Any) -> None:
    with traced({"traceparent": HEADER}), traced(headers):
        assert current() is None, "nor that of a request around it"


def test_span_of_opentelemetry_is_the_one_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    span = SimpleNamespace(is_valid=True, trace_id=10, span_id=11, trace_flags=1)
    fake = SimpleNamespace(get_current_span=lambda: SimpleNamespace(get_span_context=lambda: span))
    monkeypatch.setitem(sys.modules, "opentelemetry.trace", fake)
    with traced({"traceparent": HEADER}):
        assert current() == Trace(f"{10:032x}", f"{11:016x}", "01")
        span.is_valid = False
        assert current() == Trace(TRACE, SPAN, "01")


def event(**fields: str) -> dict[str, Any]:
    return {"time_unix_s": 1.0, "service": "s", "model": "m", "duration_s": 0.1, "status": "ok", **fields}


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ([event(trace_id=TRACE, span_id=SPAN)] * 2, [("traceparent", HEADER.encode())]),
        ([event(trace_id=TRACE, span_id=SPAN), event(trace_id=TRACE, span_id="a" * 16)], []),
        ([event(trace_id=TRACE, span_id=SPAN), event()], []),
        ([event(trace_id="of another kind", span_id="1")], []),
        ([event()], []),
    ],
)
def test_record_has_the_header_where_all_its_events_are_of_one_span(events: list[Any], expected: list[Any]) -> None:
    [batch] = Packer("a").pack(EventType.INFERENCE, events).batches
    assert list(batch.outgoing.headers[1:]) == expected
