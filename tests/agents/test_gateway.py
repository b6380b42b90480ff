"""The HTTP intake over a real embedded log: what it takes, what it refuses, and what is then in the log."""

from __future__ import annotations

import asyncio
import gzip
import json
import time
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientResponse, StreamReader, web
from aiohttp.test_utils import TestClient, TestServer
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from streammon.broker import Outgoing, Record
from streammon.broker.embedded import EmbeddedBroker
from streammon.config import Settings, load
from streammon.errors import Backpressure, ConfigError, RecordTooLarge, Retryable, StreammonError
from streammon.events import EventType
from streammon.topics import INPUT_TOPICS, topic_specs
from streammon.wire import SCHEMA_HEADER, Density, Identity, decode, encode
from streammon_agents.gateway import events as gateway
from streammon_agents.gateway import ndjson

JSON = {"Content-Type": "application/json"}
NDJSON = {"Content-Type": "application/x-ndjson"}
MAX_BODY = 200_000


def inference(**fields: Any) -> dict[str, Any]:
    event = {"time_unix_s": 1.7e9, "service": "shop", "model": "ranker", "duration_s": 0.01, "status": "ok"}
    return event | fields


def typed(**fields: Any) -> dict[str, Any]:
    return {"type": "inference", **inference(**fields)}


def lines(*values: Any) -> bytes:
    return b"\n".join(value if isinstance(value, bytes) else json.dumps(value).encode() for value in values)


class Log:
    """An embedded log that can be told to fail, and the events in it."""

    def __init__(self, broker: EmbeddedBroker) -> None:
        self.broker = broker
        self.failure: StreammonError | None = None
        self.backlog: int | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.broker, name)

    async def append(self, records: Sequence[Outgoing]) -> list[int]:
        if self.failure is not None:
            raise self.failure
        return await self.broker.append(records)

    async def backlog_bytes(self) -> int:
        return await self.broker.backlog_bytes() if self.backlog is None else self.backlog

    async def records(self, topic: str = "inference") -> list[Record]:
        reader = await self.broker.reader([topic])
        ends = await reader.ends()
        found: list[Record] = []
        while reader.positions() != ends:
            found += [record for chunk in (await reader.poll()).values() for record in chunk]
        return found

    async def events(self, topic: str = "inference") -> list[dict[str, Any]]:
        values = [record.value or b"" for record in await self.records(topic)]
        batches = [batch for value in values for batch in decode(INPUT_TOPICS[topic], value)]
        return [batch.rows.event(index) for batch in batches for index in range(len(batch.rows))]


Client = TestClient[web.Request, web.Application]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load(data_dir=tmp_path, web={"max_body_bytes": MAX_BODY, "max_backlog_bytes": 50_000})


@pytest.fixture
async def log(settings: Settings) -> AsyncIterator[Log]:
    broker = await EmbeddedBroker.open(settings)
    await broker.create_topics(topic_specs(partitions=2))
    yield Log(broker)
    await broker.close()


@pytest.fixture
async def client(log: Log, settings: Settings) -> AsyncIterator[Client]:
    app = web.Application()
    app.add_routes(gateway.routes(log, settings.web))
    async with TestClient(TestServer(app)) as client:
        yield client


async def post(client: Client, body: Any, headers: dict[str, str] = JSON, query: str = "") -> ClientResponse:
    data = body if hasattr(body, "__aiter__") or isinstance(body, bytes) else json.dumps(body).encode()
    return await client.post(f"/v1/events{query}", data=data, headers=headers)


async def refusal(response: ClientResponse) -> tuple[int, str, str]:
    answer = await response.json()
    return response.status, answer["reason"], answer["detail"]


def counted(outcome: str) -> float:
    return REGISTRY.get_sample_value("streammon_gateway_events_total", {"outcome": outcome}) or 0.0


# --- what is taken --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("density", Density)
async def test_a_value_of_any_density_is_in_the_log_when_answered(client: Client, log: Log, density: Density) -> None:
    sent = [inference(event_id=f"e{n}", duration_s=n / 8) for n in range(1 if density == "object" else 9)]
    [value] = encode(EventType.INFERENCE, sent, density, Identity("sdk", "b", 0) if len(sent) == 1 else None)
    response = await post(client, value)
    assert response.status == 202
    assert await response.json() == {"accepted": len(sent), "rejected": 0, "reasons": {}}
    [record] = await log.records()
    assert (record.key, record.value, list(record.headers)) == (b"shop/ranker", value, [SCHEMA_HEADER])
    assert await log.events() == sent


@pytest.mark.parametrize(("trace", "kept"), [(f"00-{'a' * 32}-{'b' * 16}-01", True), ("nonsense", False)])
async def test_a_batch_of_one_span_keeps_its_trace_in_its_record(
    client: Client, log: Log, trace: str, kept: bool
) -> None:
    [value] = encode(EventType.INFERENCE, [inference()] * 2, Density.PACKED, Identity("sdk", "b", 0))
    assert (await post(client, value, JSON | {"traceparent": trace})).status == 202
    [record] = await log.records()
    assert list(record.headers) == [SCHEMA_HEADER, *([("traceparent", trace.encode())] if kept else [])]


async def test_events_that_name_no_type_take_it_from_the_query(client: Client, log: Log) -> None:
    label = {"time_unix_s": 1.7e9, "service": "s", "model": "m", "event_id": "e", "label": 1.0}
    assert (await post(client, label, query="?type=label")).status == 202
    assert (await post(client, lines(label, label), NDJSON, query="?type=label")).status == 202
    assert await log.events("labels") == [label] * 3


async def test_an_event_with_a_bad_value_is_counted_as_rejected_and_left_to_the_windows(
    client: Client, log: Log
) -> None:
    response = await post(client, [typed(), typed(duration_s=-1), typed()])
    assert response.status == 202
    assert await response.json() == {"accepted": 2, "rejected": 1, "reasons": {"negative": 1}}
    assert len(await log.events()) == 3


@pytest.mark.parametrize(("coding", "compress"), [("gzip", gzip.compress), ("deflate", zlib.compress)])
async def test_a_compressed_body_is_taken(client: Client, log: Log, coding: str, compress: Any) -> None:
    body = compress(lines(*[typed(event_id=f"e{n}") for n in range(700)]))
    response = await post(client, body, NDJSON | {"Content-Encoding": coding})
    assert response.status == 202
    assert len(await log.events()) == 700


async def test_a_chunked_body_is_taken(client: Client, log: Log) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"["
        yield json.dumps(typed()).encode()
        yield b"]"

    assert (await post(client, pieces())).status == 202
    assert await log.events() == [inference()]


async def test_what_was_taken_and_refused_is_counted(client: Client) -> None:
    before = counted("accepted"), counted("negative"), counted("unknown_schema")
    await post(client, [typed(), typed(), typed(duration_s=-1)])
    await post(client, [typed(schema=9)] * 5)
    after = counted("accepted"), counted("negative"), counted("unknown_schema")
    assert [b - a for a, b in zip(before, after, strict=True)] == [2, 1, 5]


# --- lines ----------------------------------------------------------------------------------------------------


async def test_lines_of_one_key_share_a_record(client: Client, log: Log) -> None:
    sent = [inference(model=f"m{n % 3}", event_id=f"e{n}") for n in range(30)]
    response = await post(client, lines(*[{"type": "inference", **event} for event in sent]), NDJSON)
    assert (await response.json())["accepted"] == 30
    assert Counter(record.key for record in await log.records()) == {b"shop/m0": 1, b"shop/m1": 1, b"shop/m2": 1}
    found = await log.events()
    assert sorted(found, key=str) == sorted(sent, key=str)
    for model in ("m0", "m1", "m2"):
        order = [event for event in sent if event["model"] == model]
        assert [event for event in found if event["model"] == model] == order


async def test_lines_of_different_types_and_densities_share_a_body(client: Client, log: Log) -> None:
    label = {"type": "label", "time_unix_s": 1.7e9, "service": "s", "model": "m", "event_id": "e"}
    [packed] = encode(EventType.INFERENCE, [inference(event_id=f"p{n}") for n in range(5)])
    body = lines(typed(), label, packed, b"", [typed(), typed()], b"  ")
    response = await post(client, body, NDJSON)
    assert await response.json() == {"accepted": 9, "rejected": 0, "reasons": {}}
    assert (len(await log.events()), len(await log.events("labels"))) == (8, 1)


async def test_a_bad_line_is_named_and_does_not_spoil_the_others(client: Client, log: Log) -> None:
    nan = json.dumps(typed(duration_s=float("nan"))).encode()
    raw = json.dumps(typed(endpoint="?")).encode()
    unicode = [raw.replace(b"?", b"\xff"), raw.replace(b"?", b"\\ud800")]
    bad = [b"{", typed(schema=7), typed(status="so-so"), b'{"type":"inference"}', *unicode, nan]
    body = lines(typed(time_unix_s=1.7e12), *bad, {"type": "cat"}, [typed(service=1)] * 3, typed(), typed())
    response = await post(client, body, NDJSON)
    answer = await response.json()
    assert response.status == 202
    assert [(error["line"], error["reason"]) for error in answer["errors"]] == [
        (1, "bad_time"),
        (2, "invalid_json"),
        (3, "unknown_schema"),
        (4, "invalid_event"),
        (5, "invalid_event"),
        (6, "invalid_unicode"),
        (7, "invalid_unicode"),
        (8, "non_finite"),
        (9, "wrong_type"),
        (10, "invalid_event"),
    ]
    assert (answer["accepted"], answer["rejected"]) == (2, 12)
    assert sum(answer["reasons"].values()) == 12
    good_and_faulty = [inference(time_unix_s=1.7e12), inference(), inference()]
    assert [event for event in await log.events() if event["duration_s"] > 0] == good_and_faulty


async def test_broken_text_in_an_ignored_field_spoils_its_own_line_alone(client: Client, log: Log) -> None:
    bad = json.dumps(typed(note="?")).encode().replace(b"?", b"\xff")
    response = await post(client, lines(typed(), bad, typed()), NDJSON)
    answer = await response.json()
    assert (answer["accepted"], answer["reasons"]) == (2, {"invalid_unicode": 1})
    assert await log.events() == [inference(), inference()]


async def test_two_halves_of_an_event_on_two_lines_are_two_bad_lines(client: Client, log: Log) -> None:
    whole = json.dumps(typed()).encode()
    middle = whole.index(b", ")
    response = await post(client, whole[:middle] + b"\n" + whole[middle + 2 :], NDJSON)
    assert (response.status, (await response.json())["rejected"]) == (400, 2)
    assert await log.records() == []


async def test_lines_none_of_which_can_be_read_are_refused_with_the_first_reason(client: Client) -> None:
    response = await post(client, lines(b"{", typed(schema=3)), NDJSON)
    status, reason, detail = await refusal(response)
    assert (status, reason) == (400, "invalid_json")
    assert detail.startswith("line 1: ")
    assert (await response.json())["reasons"] == {"invalid_json": 1, "unknown_schema": 1}


async def test_of_many_bad_lines_only_some_are_told_and_all_are_counted(client: Client) -> None:
    answer = await (await post(client, lines(typed(), *[b"nonsense"] * 5000), NDJSON)).json()
    assert len(answer["errors"]) == ndjson.MAX_ERRORS
    assert answer["reasons"] == {"invalid_json": 5000}


async def test_lines_with_an_identity_stay_records_of_their_own(client: Client, log: Log) -> None:
    twice = typed(agent="a", boot="b", seq=4)
    await post(client, lines(twice, twice, typed(), typed()), NDJSON)
    assert len(await log.records()) == 3


def test_lines_of_one_key_are_cut_into_records_of_bounded_size() -> None:
    many = ndjson.route_lines(lines(*[typed()] * 2500))
    assert [len(json.loads(record.value or b"")) for record in many.records] == [1000, 1000, 500]
    large = typed(event_id="x" * 100_000)
    few = ndjson.route_lines(lines(*[large] * 7))
    assert [len(decode(EventType.INFERENCE, record.value or b"")[0].rows) for record in few.records] == [2, 2, 2, 1]
    assert all(len(record.value or b"") <= ndjson.ARRAY_BYTES for record in few.records)


async def test_too_many_lines_are_refused(client: Client) -> None:
    assert (await refusal(await post(client, b"\n" * 100_000, NDJSON)))[:2] == (413, "too_large")


# --- what is refused ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "reason", "says"),
    [
        (b"", "invalid_json", "empty"),
        (b'{"type":', "invalid_json", "truncated"),
        (b'{"type":"inference","service":"\xff"}', "invalid_unicode", "utf-8"),
        (b'{"x":' * 20_000, "invalid_json", "nested"),
        (lines({"time_unix_s": 1.0}), "invalid_event", "`type` is None"),
        (lines(typed(schema=2)), "unknown_schema", "this version reads 1"),
        (lines({"type": "inference", "count": 3, "columns": {"duration_s": [1.0]}}), "unequal_lengths", "3"),
    ],
)
async def test_a_value_that_cannot_be_read_is_refused_with_its_reason(
    client: Client, log: Log, body: bytes, reason: str, says: str
) -> None:
    status, got, detail = await refusal(await post(client, body))
    assert (status, got) == (400, reason)
    assert says in detail
    assert await log.records() == []


async def test_an_unknown_type_is_refused_with_the_ones_there_are(client: Client) -> None:
    status, reason, detail = await refusal(await post(client, typed(), query="?type=inferences"))
    assert (status, reason) == (400, "wrong_type")
    assert "'inferences', expected one of inference, resource, label" in detail


async def test_a_type_that_contradicts_the_query_is_refused(client: Client) -> None:
    assert (await refusal(await post(client, typed(), query="?type=label")))[:2] == (400, "wrong_type")
    assert (await refusal(await post(client, lines(typed()), NDJSON, "?type=label")))[:2] == (400, "wrong_type")


async def chunks(body: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(body), 10_000):
        yield body[start : start + 10_000]


async def test_a_body_over_the_limit_is_refused_however_it_comes(client: Client, log: Log) -> None:
    body = b" " * MAX_BODY + lines(typed())
    bomb = gzip.compress(b" " * 50_000_000)
    assert len(bomb) < MAX_BODY
    for sent, headers in ((body, JSON), (chunks(body), JSON), (bomb, JSON | {"Content-Encoding": "gzip"})):
        assert (await refusal(await post(client, sent, headers)))[:2] == (413, "too_large")
    assert await log.records() == []
    assert (await post(client, typed())).status == 202


async def test_a_zip_bomb_is_not_unpacked(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    unpacked: list[int] = []
    feed = StreamReader.feed_data

    def feed_data(self: StreamReader, data: bytes, *args: Any) -> Any:
        unpacked.append(len(data))
        return feed(self, data, *args)

    monkeypatch.setattr(StreamReader, "feed_data", feed_data)
    bomb = gzip.compress(b" " * 100_000_000)
    assert (await post(client, bomb, JSON | {"Content-Encoding": "gzip"})).status == 413
    assert max(unpacked) <= 2 * MAX_BODY


@pytest.mark.parametrize("body", [b"not gzip at all", gzip.compress(lines(typed()))[:-12]])
async def test_a_broken_compressed_body_is_refused_and_is_no_error_of_ours(
    client: Client, log: Log, body: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    status, reason, _ = await refusal(await post(client, body, JSON | {"Content-Encoding": "gzip"}))
    assert (status, reason) == (400, "invalid_json")
    assert await log.records() == []
    assert (await post(client, typed())).status == 202
    assert not caplog.records


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""]
)
async def test_what_a_form_could_send_is_refused(client: Client, log: Log, kind: str) -> None:
    status, reason, detail = await refusal(await post(client, typed(), {"Content-Type": kind}))
    assert (status, reason) == (415, "content_type")
    assert "expected application/json or application/x-ndjson" in detail
    assert await log.records() == []


async def test_a_request_from_a_web_page_is_refused(client: Client, log: Log) -> None:
    response = await post(client, typed(), JSON | {"Origin": "http://evil.example"})
    assert (await refusal(response))[:2] == (403, "browser")
    assert await log.records() == []


async def test_an_unknown_compression_is_refused(client: Client) -> None:
    response = await post(client, typed(), JSON | {"Content-Encoding": "lzma"})
    assert (await refusal(response))[:2] == (415, "content_encoding")


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "OPTIONS"])
async def test_another_method_is_told_to_post(client: Client, method: str) -> None:
    response = await client.request(method, "/v1/events")
    assert (await refusal(response))[:2] == (405, "method")
    assert response.headers["Allow"] == "POST"


# --- when the broker is not well ------------------------------------------------------------------------------


async def test_a_backlog_is_answered_with_429_before_the_body_is_read(client: Client, log: Log) -> None:
    log.backlog = 50_001
    response = await post(client, b"this is not even JSON")
    assert (await refusal(response))[:2] == (429, "backpressure")
    assert response.headers["Retry-After"] == "1"
    log.backlog = 50_000
    assert (await post(client, typed())).status == 202


@pytest.mark.parametrize(
    ("failure", "status", "retry_after"),
    [
        (Backpressure("full", 2.3), 429, "3"),
        (Retryable("no leader"), 503, "1"),
        (ConfigError("there is no topic 'inference'"), 503, "1"),
        (RecordTooLarge("300 bytes, at most 200"), 413, None),
    ],
)
async def test_a_failed_append_says_whether_to_come_back(
    client: Client, log: Log, failure: StreammonError, status: int, retry_after: str | None
) -> None:
    log.failure = failure
    response = await post(client, typed())
    got, _, detail = await refusal(response)
    assert (got, response.headers.get("Retry-After")) == (status, retry_after)
    assert detail in str(failure)
    log.failure = None
    assert (await post(client, typed())).status == 202


async def test_events_sent_together_fail_by_type(client: Client, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    append = log.append

    async def without_labels(records: Sequence[Outgoing]) -> list[int]:
        if any(record.topic == "labels" for record in records):
            raise ConfigError("not permitted: labels")
        return await append(records)

    monkeypatch.setattr(log, "append", without_labels)
    label = {"type": "label", "event_id": "e", "time_unix_s": time.time(), "service": "s", "model": "m", "label": 1}
    responses = await asyncio.gather(*(post(client, each) for each in [typed(), label] * 5))
    assert [response.status for response in responses] == [202, 503] * 5


# --- fuzz -----------------------------------------------------------------------------------------------------


@examples(max_examples=100)
@given(st.lists(st.binary(max_size=40) | st.sampled_from([lines(typed()), lines([typed()]), b"", b"NaN"]), max_size=8))
def test_any_lines_are_taken_or_refused_and_all_are_counted(values: list[bytes]) -> None:
    body = b"\n".join(values)
    routed = ndjson.route_lines(body)
    assert routed.accepted + routed.rejected >= sum(bool(line.strip()) for line in body.split(b"\n"))
    assert routed.accepted == sum(
        len(batch.rows) for record in routed.records for batch in decode(EventType.INFERENCE, record.value or b"")
    )
