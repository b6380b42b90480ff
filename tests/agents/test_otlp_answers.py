"""What OTLP answers, by HTTP and by gRPC: to senders in the right, in the wrong, and to those who mean no good."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import random
import socket
import sys
import zlib
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession, web
from aiohttp.test_utils import TestClient, TestServer

pytest.importorskip("grpc")

import grpc
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import RetryInfo
from google.rpc.status_pb2 import Status
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)

from streammon.backoff import Backoff
from streammon.errors import Backpressure, Rejected, Retryable, StreammonError
from streammon.events import EventType
from streammon_agents.gateway import otlp
from streammon_agents.gateway.otlp import http, intake, json_form, rpc, skim, source
from streammon_agents.gateway.otlp.intake import KINDS, Intake, Signal
from streammon_agents.gateway.otlp.source import OtlpSource
from streammon_agents.gateway.otlp.values import Refusal
from tests.agents.otlp_senders import Listening, listening, settings_of
from tests.agents.test_otlp_metrics import CUMULATIVE, counter, explicit, exponential, gauge, point
from tests.agents.test_otlp_spans import CHAT, GET, any_value, key_values, span, traces
from tests.outlets import Kept
from tests.support import eventually

MAX_MESSAGE = 100_000
PROTOBUF = {"Content-Type": "application/x-protobuf"}
JSON = {"Content-Type": "application/json"}


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[Listening]:
    async with listening(tmp_path, max_message_bytes=MAX_MESSAGE) as here:
        yield here


async def post(
    here: Listening, body: Any, headers: dict[str, str] = PROTOBUF, signal: str = "traces", method: str = "POST"
) -> tuple[int, bytes, dict[str, str]]:
    url = f"http://127.0.0.1:{here.port('HTTP')}/v1/{signal}"
    async with ClientSession() as session, session.request(method, url, data=body, headers=headers) as answer:
        return answer.status, await answer.read(), dict(answer.headers)


async def call(
    here: Listening, body: bytes, signal: Signal = Signal.TRACES, compression: grpc.Compression | None = None
) -> bytes:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{here.port('gRPC')}", compression=compression) as channel:
        export: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"/{KINDS[signal].service}/Export")
        return await export(body, timeout=10)


async def refused(here: Listening, body: bytes, compression: grpc.Compression | None = None) -> tuple[str, Status]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(here, body, compression=compression)
    details = dict(caught.value.trailing_metadata() or ()).get("grpc-status-details-bin", b"")
    return caught.value.code().name, Status.FromString(bytes(details))


def retry_after_s(status: Status) -> float | None:
    for detail in status.details:
        info = RetryInfo()
        if detail.Unpack(info):
            return float(info.retry_delay.ToNanoseconds() / 1e9)
    return None


GOOD = traces(span(GET), span(CHAT, "CLIENT"))
LATE = span(GET, start_time_unix_nano=0)


# --- taken ----------------------------------------------------------------------------------------------------


async def test_what_is_fully_taken_is_answered_with_nothing(here: Listening) -> None:
    assert (await post(here, GOOD.SerializeToString()))[:2] == (200, b"")
    assert (await post(here, as_json(GOOD), JSON))[:2] == (200, b"{}")
    assert await call(here, GOOD.SerializeToString()) == b""
    assert await call(here, b"") == b"", "an empty request is none to complain of"
    assert len(here.out.of(EventType.INFERENCE)) == 6


async def test_what_is_partly_taken_is_answered_with_how_much_was_not(here: Listening) -> None:
    request = traces(LATE, span(GET), LATE)
    answers = [
        ExportTraceServiceResponse.FromString((await post(here, request.SerializeToString()))[1]),
        ExportTraceServiceResponse.FromString(await call(here, request.SerializeToString())),
    ]
    assert [(each.partial_success.rejected_spans, each.partial_success.error_message) for each in answers] == [
        (2, "bad_time: 2")
    ] * 2
    _, body, headers = await post(here, as_json(request), JSON)
    assert json.loads(body) == {"partialSuccess": {"rejectedSpans": "2", "errorMessage": "bad_time: 2"}}
    assert headers["Content-Type"].startswith("application/json")
    assert here.out.refused == {Refusal.BAD_TIME: 6}


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
async def test_compressed_messages_are_taken_both_ways(here: Listening, coding: str) -> None:
    body = GOOD.SerializeToString()
    packed = gzip.compress(body, mtime=0) if coding == "gzip" else zlib.compress(body)
    assert (await post(here, packed, {**PROTOBUF, "Content-Encoding": coding}))[0] == 200
    compression = grpc.Compression.Gzip if coding == "gzip" else grpc.Compression.Deflate
    large = traces(*[span(GET)] * 50).SerializeToString()  # smaller ones gRPC leaves as they are
    await call(here, large, compression=compression)
    assert len(here.out.events) == 52


def as_json(request: Message) -> bytes:
    """OTLP/JSON, made of protobuf's by its rules."""
    value = MessageToDict(request, use_integers_for_enums=True)
    for resource_spans in value.get("resourceSpans", []):
        for scope_spans in resource_spans["scopeSpans"]:
            for each in scope_spans["spans"]:
                for name in ("traceId", "spanId", "parentSpanId"):
                    if name in each:
                        each[name] = base64.b64decode(each[name]).hex().upper()
    return json.dumps(value).encode()


def test_json_and_protobuf_mean_the_same() -> None:
    request = traces(span(CHAT, "CLIENT", trace_id=b"\xab" * 16, span_id=b"\xcd" * 8, parent_span_id=b"\xef" * 8))
    assert json_form.from_json(as_json(request), ExportTraceServiceRequest()) == request


async def test_names_that_protobuf_knows_and_ones_it_does_not_are_taken_as_json(here: Listening) -> None:
    value = {"resource_spans": [], "resourceSpans": [{"new": {"traceId": "00"}, "scopeSpans": [{"spans": None}]}]}
    assert (await post(here, json.dumps(value).encode(), JSON))[0] in (200, 400)
    assert (await post(here, b'{"resourceSpans": [{"unknown": [1, {"x": null}]}]}', JSON))[0] == 200


# --- refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b"\xff\xff\xff", PROTOBUF),
        (b"\x0a\x7f\x01", PROTOBUF),
        (GOOD.SerializeToString()[:-3], PROTOBUF),
        (b"{", JSON),
        (b"[1]", JSON),
        (b'{"resourceSpans": 7}', JSON),
        (b'{"resourceSpans": [{"scopeSpans": [{"spans": [{"traceId": "xyz"}]}]}]}', JSON),
        (b"[" * 50_000, JSON),
        (b'{"a":' * 10_000, JSON),
        (b"not gzip", {**PROTOBUF, "Content-Encoding": "gzip"}),
        (gzip.compress(GOOD.SerializeToString(), mtime=0)[:60], {**PROTOBUF, "Content-Encoding": "gzip"}),
    ],
)
async def test_garbage_is_answered_with_400_and_a_status(here: Listening, body: bytes, headers: dict[str, str]) -> None:
    status, answer, _ = await post(here, body, headers)
    assert status == 400
    assert json.loads(answer)["message"] if headers is JSON else Status.FromString(answer).message
    assert here.out.refused[Refusal.GARBAGE] == 1


@pytest.mark.parametrize(
    ("status", "headers", "method"),
    [
        (415, {"Content-Type": "text/plain"}, "POST"),
        (415, {**PROTOBUF, "Content-Encoding": "snappy"}, "POST"),
        (403, {**JSON, "Origin": "https://evil.example"}, "POST"),
        (405, PROTOBUF, "GET"),
    ],
)
async def test_other_requests_are_answered_by_their_headers(
    here: Listening, status: int, headers: dict[str, str], method: str
) -> None:
    found, _, answered = await post(here, GOOD.SerializeToString(), headers, method=method)
    assert found == status
    assert answered.get("Allow") == ("POST" if status == 405 else None)


async def test_what_is_too_large_is_refused_before_it_is_all_there(here: Listening) -> None:
    bomb = gzip.compress(bytes(50_000_000), mtime=0)
    assert len(bomb) < MAX_MESSAGE
    assert (await post(here, bytes(MAX_MESSAGE + 1)))[0] == 413
    assert (await post(here, bomb, {**PROTOBUF, "Content-Encoding": "gzip"}))[0] == 413
    for body, compression in ((bytes(MAX_MESSAGE + 1), None), (bytes(50_000_000), grpc.Compression.Gzip)):
        code, status = await refused(here, body, compression)
        assert (code, retry_after_s(status)) == ("RESOURCE_EXHAUSTED", None), "sending it again cannot help"
    assert here.out.refused[Refusal.TOO_LARGE] == 3, "gRPC itself turned one away"
    assert (await post(here, GOOD.SerializeToString()))[0] == 200


async def test_garbage_by_grpc_is_an_invalid_argument(here: Listening) -> None:
    for body in (b"\xff\xff", b"\x1f\x8bgarbage", b"\x78\x9cgarbage", gzip.compress(b"\x0a", mtime=0)[:-1]):
        code, status = await refused(here, body)
        assert (code, bool(status.message)) == ("INVALID_ARGUMENT", True)
    assert here.out.refused == {Refusal.GARBAGE: 4}


async def test_methods_we_do_not_have_are_unimplemented(here: Listening) -> None:
    async with grpc.aio.insecure_channel(f"127.0.0.1:{here.port('gRPC')}") as channel:
        other: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/a.B/C")
        with pytest.raises(grpc.aio.AioRpcError, match="UNIMPLEMENTED"):
            await other(b"")


@pytest.mark.parametrize(
    ("failure", "code", "after_s"),
    [(Backpressure("full", 2.5), "RESOURCE_EXHAUSTED", 2.5), (Retryable("away"), "UNAVAILABLE", 1.0)],
)
async def test_under_pressure_senders_are_told_when_to_come_back(
    here: Listening, failure: StreammonError, code: str, after_s: float
) -> None:
    here.out.failure = failure
    found, _, headers = await post(here, GOOD.SerializeToString())
    assert (found, headers["Retry-After"]) == (503, "3" if after_s == 2.5 else "1")
    name, said = await refused(here, GOOD.SerializeToString())
    assert (name, retry_after_s(said)) == (code, after_s)
    here.out.failure = None
    assert (await post(here, GOOD.SerializeToString()))[0] == 200
    assert len(here.out.events) == 2


async def test_counters_are_exact_through_refusals(here: Listening) -> None:
    def body(value: int) -> bytes:
        request = ExportMetricsServiceRequest()
        request.resource_metrics.add().scope_metrics.add().metrics.append(counter(point(value, 2e9 + value, 2e9)))
        return request.SerializeToString()

    for value in (3, 7, 12):
        here.out.failure = Backpressure("full")
        for _ in range(2):
            assert (await post(here, body(value), signal="metrics"))[0] == 503
        here.out.failure = None
        assert (await post(here, body(value), signal="metrics"))[0] == 200
        assert (await post(here, body(value), signal="metrics"))[0] == 200, "its answer was lost, it came again"
    assert [event["counters"]["n"] for event in here.out.of(EventType.RESOURCE)] == [3, 4, 5]


async def test_more_than_there_is_room_for_at_one_time_is_told_to_come_back(tmp_path: Path) -> None:
    out = Slow()
    taking = Intake(out, settings_of(tmp_path, max_in_flight_bytes=1024))
    body = traces(*[span(GET)] * 10).SerializeToString()
    first = asyncio.create_task(taking.take(Signal.TRACES, body))
    await eventually(lambda: out.waiting)
    with pytest.raises(Backpressure):
        await asyncio.wait_for(taking.take(Signal.LOGS, body), 5)
    out.go.set()
    await first
    await taking.take(Signal.TRACES, body)


async def test_a_sender_that_goes_away_does_not_undo_what_is_being_taken(tmp_path: Path) -> None:
    out = Slow()
    taking = Intake(out, settings_of(tmp_path))
    request = ExportMetricsServiceRequest()
    request.resource_metrics.add().scope_metrics.add().metrics.append(counter(point(5, 2e9 + 1, 2e9)))
    first = asyncio.create_task(taking.take(Signal.METRICS, request.SerializeToString()))
    await eventually(lambda: out.waiting)
    first.cancel()
    await asyncio.wait({first})
    out.go.set()
    await taking.take(Signal.METRICS, request.SerializeToString())
    assert [event["counters"] for event in out.of(EventType.RESOURCE)] == [{"n": 5.0}]


class Slow(Kept):
    """Takes its time to say that it has taken something, until it may go on."""

    def __init__(self) -> None:
        super().__init__()
        self.go = asyncio.Event()
        self.waiting = 0

    async def send(self, event_type: EventType, events: Any) -> None:
        await super().send(event_type, events)
        self.waiting += 1
        await self.go.wait()


# --- no good --------------------------------------------------------------------------------------------------


async def test_a_body_that_does_not_come_is_given_up(here: Listening, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "BODY_S", 0.1)
    reader, writer = await asyncio.open_connection("127.0.0.1", here.port("HTTP"))
    head = "POST /v1/traces HTTP/1.1\r\nHost: x\r\nContent-Type: application/x-protobuf\r\nContent-Length: 9\r\n\r\n"
    writer.write(head.encode() + b"abc")
    assert await asyncio.wait_for(reader.readline(), 5) == b"HTTP/1.1 408 Request Timeout\r\n"
    writer.close()


async def test_connections_are_bounded_and_those_that_are_there_go_on(
    here: Listening, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "MAX_CONNECTIONS", 3)
    async with ClientSession() as session:
        url = f"http://127.0.0.1:{here.port('HTTP')}/v1/traces"
        async with session.post(url, data=b"", headers=PROTOBUF) as answer:
            assert answer.status == 200
        open_ = [await asyncio.open_connection("127.0.0.1", here.port("HTTP")) for _ in range(2)]
        more, writer = await asyncio.open_connection("127.0.0.1", here.port("HTTP"))
        assert await asyncio.wait_for(more.read(), 5) == b"", "closed at once"
        assert here.out.refused == {Refusal.TOO_MANY_CONNECTIONS: 1}
        async with session.post(url, data=b"", headers=PROTOBUF) as answer:
            assert answer.status == 200
        for each in (*(opened for _, opened in open_), writer):
            each.close()


async def test_noise_on_the_ports_does_not_disturb_others(here: Listening) -> None:
    noise = random.Random(7)
    preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    for port in here.source.ports.values():
        for said in (noise.randbytes(3000), preface, preface + noise.randbytes(500), b"POST /v1/traces HTTP/1.1\r\n"):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(said)
            await writer.drain()
            writer.close()
    assert (await post(here, GOOD.SerializeToString()))[0] == 200
    assert await call(here, GOOD.SerializeToString()) == b""


async def test_a_port_that_is_taken_is_said_and_taken_once_it_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "BACKOFF", Backoff(first_s=0.05, longest_s=0.05))
    with socket.create_server(("127.0.0.1", 0), reuse_port=True) as taken:
        port = taken.getsockname()[1]
        here, out = OtlpSource(settings_of(tmp_path, grpc_port=port)), Kept()
        assert [(each.seen, bool(each.fix)) for each in here.check()] == [(False, True), (True, False)]
        running = asyncio.create_task(here.run(out))
        await eventually(lambda: out.states and "HTTP" in here.ports)
        assert f"gRPC: cannot listen on 127.0.0.1:{port}" in str(out.states[-1])
    await eventually(lambda: "gRPC" in here.ports)
    assert out.states[-1:] == [None]
    running.cancel()
    await asyncio.wait({running}, timeout=2)


def test_a_message_with_too_many_items_is_refused_before_it_is_made() -> None:
    many = b"\x0a" + length(4_000_004) + b"\x12" + length(4_000_000) + b"\x12\x00" * 2_000_000
    with pytest.raises(Rejected, match="too_large"):
        skim.check(many, skim.OF_OTHERS)
    skim.check(traces(*[span(CHAT)] * 2000).SerializeToString(), skim.OF_OTHERS)


def length(size: int) -> bytes:
    said = b""
    while size >= 0x80:
        said += bytes([size & 0x7F | 0x80])
        size >>= 7
    return said + bytes([size])


METRICS = ExportMetricsServiceRequest()
METRICS.resource_metrics.add().scope_metrics.add().metrics.extend(
    [
        counter(point(5, 2, 1), temporality=CUMULATIVE),
        gauge(point(0.5, 3, 0, room="a")),
        explicit([1, 2, 0], 3.5, 2, 1),
        exponential(6, 1, (4, [1, 0, 2]), 2),
    ]
)
LOG_RECORDS = ExportLogsServiceRequest()
LOG_RECORDS.resource_logs.add().scope_logs.add().log_records.add(
    body=any_value({"what": ["deep", {"er": b"\x00"}]}),
    attributes=key_values({"user.id": "u", "n": 0.5}),
    time_unix_nano=1,
)
SAMPLES = {
    Signal.TRACES: GOOD.SerializeToString(),
    Signal.METRICS: METRICS.SerializeToString(),
    Signal.LOGS: LOG_RECORDS.SerializeToString(),
}


@pytest.fixture(scope="module")
def taking(tmp_path_factory: pytest.TempPathFactory) -> Intake:
    async def made() -> Intake:
        return Intake(Kept(), settings_of(tmp_path_factory.mktemp("fuzz")))

    return asyncio.run(made())


@given(st.sampled_from(Signal), st.data(), st.booleans())
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_no_message_takes_it_down(taking: Intake, signal: Signal, data: st.DataObject, as_text: bool) -> None:
    """Random bytes, real requests with some bits flipped, and such as are cut: taken, or refused as they should be."""
    sample = bytearray(data.draw(st.sampled_from([b"", *SAMPLES.values()])) or data.draw(st.binary(max_size=300)))
    for _ in range(data.draw(st.integers(0, 6)) if sample else 0):
        sample[data.draw(st.integers(0, len(sample) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    body = bytes(sample[: data.draw(st.integers(0, len(sample)))])
    with suppress(Rejected):
        asyncio.run(_take(taking, signal, body, as_text))


async def _take(taking: Intake, signal: Signal, body: bytes, as_text: bool) -> None:
    taking._in_turn = asyncio.Lock()  # of this event loop
    await taking.take(signal, body, json=as_text)


_NAMES = st.sampled_from(["resourceSpans", "scopeSpans", "spans", "traceId", "attributes", "key", "value", "kind"])
_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_NAMES, inner, max_size=3),
    max_leaves=12,
)


@given(st.dictionaries(_NAMES, _VALUES, max_size=4))
@settings(max_examples=100, deadline=None)
def test_no_json_takes_it_down(value: dict[str, Any]) -> None:
    with suppress(Rejected):
        json_form.from_json(json.dumps(value).encode(), ExportTraceServiceRequest())


@given(st.binary(max_size=200))
def test_no_bytes_stop_the_decompression(message: bytes) -> None:
    for start in (b"", b"\x1f\x8b\x08\x00", b"\x78\x9c"):
        with suppress(Rejected):
            assert len(rpc.decompressed(start + message, 1000)) <= 1000


async def test_items_are_counted_by_what_became_of_them(tmp_path: Path) -> None:
    def count(outcome: str) -> float:
        return float(intake.ITEMS.labels(Signal.TRACES, outcome)._value.get())

    before = [count(outcome) for outcome in ("taken", "ignored", "bad_time")]
    request = traces(LATE, span(GET), span({}), span(GET))
    await Intake(Kept(), settings_of(tmp_path)).take(Signal.TRACES, request.SerializeToString())
    after = [count(outcome) for outcome in ("taken", "ignored", "bad_time")]
    assert [now - was for now, was in zip(after, before, strict=True)] == [2, 1, 1]


async def test_the_paths_can_be_added_to_any_application(tmp_path: Path) -> None:
    out, app, now = Kept(), web.Application(), [1.7e9]
    app.add_routes(otlp.routes(out, settings_of(tmp_path), lambda: now[0]))
    now[0] += 10
    request = ExportMetricsServiceRequest()
    request.resource_metrics.add().scope_metrics.add().metrics.append(counter(point(5, 9, 5)))
    async with TestClient(TestServer(app)) as client:
        for path, body in (("/v1/traces", GOOD), ("/v1/metrics", request)):
            answer = await client.post(path, data=body.SerializeToString(), headers=PROTOBUF)
            assert answer.status == 200
    assert len(out.of(EventType.INFERENCE)) == 2
    [event] = out.of(EventType.RESOURCE)
    assert event["counters"] == {"n": 5.0}, "it began before the first request, but nothing was missed"


async def test_what_is_not_installed_is_said_and_stops_nobody(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for module in ("source", "http"):
        monkeypatch.setitem(sys.modules, f"streammon_agents.gateway.otlp.{module}", None)
    out, app = Kept(), web.Application()
    absent = otlp.otlp_source(settings_of(tmp_path))
    [finding] = absent.check()
    assert (finding.seen, finding.fix) == (False, otlp.INSTALL)
    running = asyncio.create_task(absent.run(out))
    await eventually(lambda: out.states)
    running.cancel()
    assert otlp.INSTALL in str(out.states[0])
    app.add_routes(otlp.routes(out, settings_of(tmp_path)))
    async with TestClient(TestServer(app)) as client:
        assert (await client.post("/v1/traces")).status == 501
