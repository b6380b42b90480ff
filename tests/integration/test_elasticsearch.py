"""The Elasticsearch sink against a real Elasticsearch, directly and through a proxy that misbehaves."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web
from elasticsearch import AsyncElasticsearch
from pydantic import SecretStr

from streammon.config import ElasticsearchSettings, SqliteSettings
from streammon.errors import ConfigError, Retryable
from streammon.results import Gauge
from streammon.servers import Server
from streammon_sinks.delivery import Item, PartlyWritten
from streammon_sinks.elasticsearch import ElasticsearchSink, Verdict, judge, open_client, setup
from streammon_sinks.es_documents import ALERTS, DRIFT, QUALITY, RESOURCES, WINDOWS, window_document
from streammon_sinks.ids import window_id
from streammon_sinks.sqlite import ResultStore, SqliteSink
from tests.sinks.builders import START, alert, drift, item, quality, quality_of_slice, resource_window, window
from tests.sinks.fault_proxy import FaultProxy, answer, fault_proxy

pytestmark = pytest.mark.elasticsearch

Json = dict[str, Any]
NEVER_UNIX_S = 1e18
"""Elasticsearch has no date so late."""
"""Valid for us; Elasticsearch has no fields without a name."""


@pytest.fixture
async def client(elasticsearch: Server) -> AsyncIterator[AsyncElasticsearch]:
    async with AsyncElasticsearch(elasticsearch.address) as client:
        yield client


@pytest.fixture
async def proxy(elasticsearch: Server) -> AsyncIterator[FaultProxy]:
    async with fault_proxy(elasticsearch.address) as proxy:
        yield proxy


Opener = Callable[..., ElasticsearchSink]


@pytest.fixture
async def open_sink(elasticsearch: Server, unique: str) -> AsyncIterator[Opener]:
    """Opens sinks of this test's own namespace, with settings as given, and closes them."""
    opened: list[ElasticsearchSink] = []

    def opener(**settings: Any) -> ElasticsearchSink:
        given = {"url": elasticsearch.address, "namespace": unique} | settings
        opened.append(ElasticsearchSink.connect(ElasticsearchSettings(**given)))
        return opened[-1]

    yield opener
    for sink in opened:
        await sink.close()


Documents = Callable[[str], Awaitable[dict[str, Json]]]


@pytest.fixture
def documents(client: AsyncElasticsearch, unique: str) -> Documents:
    """All documents of one of this test's data streams, by id."""

    async def fetch(stream: str) -> dict[str, Json]:
        index = f"{stream}-{unique}"
        await client.indices.refresh(index=index, ignore_unavailable=True)
        found = await client.search(index=index, size=10_000, ignore_unavailable=True)
        return {hit["_id"]: hit["_source"] for hit in found["hits"]["hits"]}

    return fetch


def as_json(document: Json) -> Json:
    decoded: Json = json.loads(msgspec.json.encode(document))
    return decoded


def items(*results: Any) -> list[Item]:
    return [item(offset, result) for offset, result in enumerate(results)]


async def test_documents_equal_the_rows_in_sqlite(open_sink: Opener, documents: Documents, tmp_path: Path) -> None:
    windows = [window(n, part=part, revision=r) for n in range(50) for part, r in (("main", 0), ("late", 1))]
    records = items(*windows, *(resource_window(n) for n in range(20)))
    store = ResultStore.open(tmp_path / "results.sqlite")
    assert await SqliteSink(store, SqliteSettings()).write(records) == []
    assert await open_sink(bulk_documents=7).write(records) == []
    for source, stream in (("inference", WINDOWS), ("resource", RESOURCES)):
        rows = {window_id(row): as_json(window_document(row)) for row in store.windows(source, 0)}
        assert await documents(stream) == rows
    store.close()


async def test_a_redelivery_writes_nothing_twice(open_sink: Opener, documents: Documents) -> None:
    records = items(*(window(n) for n in range(5)))
    for _ in range(2):
        assert await open_sink().write(records) == []
    assert len(await documents(WINDOWS)) == 5


async def test_every_transition_of_an_alert_is_a_document(open_sink: Opener, documents: Documents) -> None:
    states = [alert(0), alert(1, state="resolved")]
    records = [item(n, state, topic="alerts") for n, state in enumerate(states)]
    assert await open_sink().write([*records, item(2, None, topic="alerts")]) == []
    found = sorted((await documents(ALERTS)).values(), key=lambda each: each["@timestamp"])
    assert [each["event.action"] for each in found] == ["firing", "resolved"]


async def test_a_refused_document_is_named_with_the_reason_and_the_rest_is_kept(
    open_sink: Opener, documents: Documents
) -> None:
    records = items(window(0), window(1, end_unix_s=NEVER_UNIX_S), b"{", window(2))
    refused = await open_sink().write(records)
    assert {each.item.record.offset: each.error.split(":")[0] for each in refused} == {
        1: "document_parsing_exception",
        2: "Input data was truncated",
    }
    assert sorted(each["@timestamp"] for each in (await documents(WINDOWS)).values()) == [
        START * 1000,
        START * 1000 + 4000,
    ]


async def test_tokens_percentiles_labels_and_gauges_can_be_aggregated(
    open_sink: Opener, client: AsyncElasticsearch, documents: Documents, unique: str
) -> None:
    await open_sink().write(items(*(window(n) for n in range(3))))
    await documents(WINDOWS)
    found = await client.search(
        index=f"{WINDOWS}-{unique}",
        size=0,
        query={"term": {"labels.model_version": "3"}},
        aggs={
            "tokens": {"sum": {"field": "gen_ai.usage.input_tokens"}},
            "slowest": {"max": {"field": "gen_ai.server.request.duration.p99"}},
            "models": {"terms": {"field": "gen_ai.request.model"}},
            "gauge": {"avg": {"field": "streammon.gauges.batch_size.mean"}},
            "cost": {"sum": {"field": "streammon.cost.EUR"}},
            "minute": {"date_histogram": {"field": "@timestamp", "fixed_interval": "1m"}},
        },
    )
    results = found["aggregations"]
    assert {name: results[name]["value"] for name in ("tokens", "gauge", "cost")} == {
        "tokens": 1050,
        "gauge": 4.5,
        "cost": 0.375,
    }
    assert results["slowest"]["value"] == pytest.approx(window().duration_s.p99)  # type: ignore[union-attr] # set
    assert results["models"]["buckets"] == [{"key": "ranker", "doc_count": 3}]
    assert [each["doc_count"] for each in results["minute"]["buckets"]] == [3]


async def test_counters_and_distributions_of_resources_can_be_aggregated_and_sketches_are_only_kept(
    open_sink: Opener, client: AsyncElasticsearch, documents: Documents, unique: str
) -> None:
    assert await open_sink().write(items(*(resource_window(n) for n in range(3)))) == []
    (document, *_) = (await documents(RESOURCES)).values()
    assert document["streammon"]["distributions"]["http.request.duration"]["sketch"]["counts"]
    name = "streammon.distributions.http.request.duration"
    found = await client.search(
        index=f"{RESOURCES}-{unique}",
        size=0,
        aggs={
            "requests": {"sum": {"field": "streammon.counters.requests_total.sum"}},
            "slowest": {"max": {"field": f"{name}.p99"}},
            "seconds": {"sum": {"field": f"{name}.sum"}},
        },
    )
    values = {each: result["value"] for each, result in found["aggregations"].items()}
    assert values == {"requests": 21.0, "slowest": pytest.approx(4.0, rel=0.0055), "seconds": pytest.approx(12.9)}
    fields = (await client.field_caps(index=f"{RESOURCES}-{unique}", fields=f"{name}.*"))["fields"]
    assert {each.removeprefix(f"{name}.") for each, kinds in fields.items() if "object" not in kinds} == {
        *("count", "sum", "min", "max", "mean", "p50", "p90", "p99")
    }


async def test_of_a_model_the_newest_revision_is_found_and_its_intervals_are_numbers(
    open_sink: Opener, client: AsyncElasticsearch, documents: Documents, unique: str
) -> None:
    told = [quality(n, revision=revision, labelled=10 * revision) for revision in range(3) for n in range(2)]
    results = [("quality", each) for each in [*told, quality_of_slice(0, revision=3)]] + [("drift", drift(0))]
    records = [item(n, each, topic=topic) for n, (topic, each) in enumerate(results)]
    assert await open_sink().write(records) == []
    assert await open_sink().write(records) == []
    assert (len(await documents(QUALITY)), len(await documents(DRIFT))) == (7, 1)
    found = await client.search(
        index=f"{QUALITY}-{unique}",
        query={"bool": {"must_not": {"exists": {"field": "streammon.slice"}}}},
        collapse={"field": "event.id"},
        sort=[{"streammon.revision": "desc"}, "@timestamp"],
        aggs={"low": {"min": {"field": "streammon.intervals.accuracy.low"}}},
    )
    newest = [hit["_source"]["streammon"] for hit in found["hits"]["hits"]]
    assert [(each["revision"], each["labelled"]) for each in newest] == [(2, 20), (2, 20)]
    assert found["aggregations"]["low"]["value"] == 0.85


async def test_any_number_of_gauge_names_is_kept_and_the_mapping_stays_bounded(
    open_sink: Opener, client: AsyncElasticsearch, documents: Documents, unique: str
) -> None:
    gauges = {f"g{n}": Gauge(min=1.0, max=2.0, mean=1.5, last=2.0) for n in range(1500)}
    assert await open_sink().write(items(window(0, gauges=gauges))) == []
    (document,) = (await documents(WINDOWS)).values()
    assert len(document["streammon"]["gauges"]) == 1500
    fields = await client.field_caps(index=f"{WINDOWS}-{unique}", fields="*")
    assert len(fields["fields"]) < 1100


async def test_setup_says_what_it_made_and_what_this_cluster_lacks(
    elasticsearch: Server, client: AsyncElasticsearch, unique: str
) -> None:
    settings = ElasticsearchSettings(url=elasticsearch.address, namespace=unique)
    said = await setup(client, settings)
    assert said == await setup(client, settings), "setting up again must be harmless"
    assert [line for line in said if WINDOWS in line] == [
        f"{WINDOWS}-{unique}: index template {WINDOWS}",
        f"{WINDOWS}: left out data_stream.*, this cluster has no constant_keyword",
        f"{WINDOWS}: documents stay until deleted, this cluster has no metrics@settings",
    ]


async def test_requests_are_bounded_in_documents_and_bytes(open_sink: Opener, proxy: FaultProxy) -> None:
    records = items(*(window(n) for n in range(20)))
    await open_sink(url=proxy.address, bulk_documents=8).write(records)
    assert [body.count(b'{"create"') for body in proxy.bulks] == [8, 8, 4]
    proxy.requests.clear()
    await open_sink(url=proxy.address, bulk_bytes=10_000).write(records)
    assert max(map(len, proxy.bulks)) <= 10_000
    assert sum(body.count(b'{"create"') for body in proxy.bulks) == 20


async def test_a_request_that_is_too_large_is_halved_and_one_such_document_refused(
    open_sink: Opener, proxy: FaultProxy, documents: Documents
) -> None:
    huge = window(3, series={"service": "x" * 20_000})

    def limit(_: web.Request, body: bytes) -> web.Response | None:
        return web.Response(status=413) if len(body) > 15_000 else None

    proxy.always = limit
    records = items(*(window(n) for n in (0, 1, 2)), huge, *(window(n) for n in range(4, 12)))
    refused = await open_sink(url=proxy.address).write(records)
    assert [each.item.record.offset for each in refused] == [3]
    assert "413" in refused[0].error
    assert len(await documents(WINDOWS)) == 11


@pytest.mark.parametrize("status", [401, 403, 404, 429, 500, 502, 503])
async def test_an_error_of_the_whole_request_is_tried_again(
    open_sink: Opener, proxy: FaultProxy, documents: Documents, status: int
) -> None:
    sink = open_sink(url=proxy.address)
    proxy.faults.append(answer(status, "busy"))
    with pytest.raises(PartlyWritten, match=f"{proxy.address} answered .*{status}") as caught:
        await sink.write(items(window(0), window(1)))
    assert await sink.write(caught.value.left) == []
    assert len(await documents(WINDOWS)) == 2


async def test_only_documents_put_off_and_those_not_sent_yet_are_left(
    open_sink: Opener, proxy: FaultProxy, documents: Documents
) -> None:
    """The second of three is put off, as a full write queue does; another is refused for good."""

    def put_off(_: web.Request, body: bytes) -> web.Response:
        full = {"type": "es_rejected_execution_exception", "reason": "queue is full"}
        bad = {"type": "document_parsing_exception", "reason": "no"}
        answers = [{"status": 201}, {"status": 429, "error": full}, {"status": 400, "error": bad}]
        reply = {"items": [{"create": each} for each in answers]}
        return web.json_response(reply, headers={"X-Elastic-Product": "Elasticsearch"})

    proxy.faults.append(put_off)
    records = items(*(window(n) for n in range(5)))
    sink = open_sink(url=proxy.address, bulk_documents=3)
    with pytest.raises(PartlyWritten, match=r"put off 1 documents: .*queue is full") as caught:
        await sink.write(records)
    assert [each.record.offset for each in caught.value.left] == [1, 3, 4]
    assert [each.item.record.offset for each in caught.value.refused] == [2]
    assert await sink.write(caught.value.left) == []
    assert len(await documents(WINDOWS)) == 3


async def test_templates_are_put_again_when_documents_find_none(open_sink: Opener, proxy: FaultProxy) -> None:
    def puts() -> int:
        return sum(path == f"/_index_template/{WINDOWS}" for path, _ in proxy.requests)

    gone = {"type": "index_not_found_exception", "reason": "no matching index template"}
    reply = json.dumps({"items": [{"create": {"status": 404, "error": gone}}]})
    proxy.faults.append(answer(200, reply, "application/json", **{"X-Elastic-Product": "Elasticsearch"}))
    sink = open_sink(url=proxy.address)
    with pytest.raises(PartlyWritten, match="no matching index template"):
        await sink.write(items(window(0)))
    assert puts() == 1
    assert await sink.write(items(window(0))) == []
    assert puts() == 2


async def test_a_lost_answer_is_tried_again_without_a_double(
    open_sink: Opener, proxy: FaultProxy, documents: Documents
) -> None:
    """Written, but the answer is no JSON any more: nobody knows, so it is sent again and found to be there."""
    sink = open_sink(url=proxy.address)
    records = items(window(0), window(1))
    assert await open_sink().write(records[:1]) == []
    proxy.faults.append(answer(200, "<html>", **{"X-Elastic-Product": "Elasticsearch"}))
    with pytest.raises(PartlyWritten, match="sent no bulk reply"):
        await sink.write(records)
    assert await sink.write(records) == []
    assert len(await documents(WINDOWS)) == 2


async def test_a_request_without_an_answer_in_time_is_tried_again(open_sink: Opener) -> None:
    async def silent(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(5)
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    with pytest.raises(Retryable, match=f"http://127.0.0.1:{port} cannot be used: .*timed out"):
        await open_sink(url=f"http://127.0.0.1:{port}", request_timeout_s=0.1).write(items(window(0)))
    server.close()


async def test_a_wrong_port_is_named(open_sink: Opener) -> None:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{reserved.getsockname()[1]}"
        with pytest.raises(Retryable, match=f"{url} cannot be used: .*; check elasticsearch.url"):
            await open_sink(url=url).write(items(window(0)))


async def test_a_server_that_is_not_elasticsearch_is_named(open_sink: Opener, proxy: FaultProxy) -> None:
    proxy.always = answer(200, "hello")
    with pytest.raises(Retryable, match=f"{proxy.address} answered .*not Elasticsearch"):
        await open_sink(url=proxy.address).write(items(window(0)))


@pytest.mark.parametrize("url", ["localhost:9200", "http://localhost", "http://localhost:port", ""])
def test_a_url_that_is_none_is_a_configuration_error(url: str) -> None:
    with pytest.raises(ConfigError, match=r"elasticsearch\.url"):
        open_client(ElasticsearchSettings(url=url))


async def test_the_api_key_is_sent_and_never_logged(
    open_sink: Opener, proxy: FaultProxy, caplog: pytest.LogCaptureFixture
) -> None:
    sink = open_sink(url=proxy.address, api_key=SecretStr("c2VjcmV0OmtleQ=="))
    proxy.faults += [answer(401, "security_exception")]
    with caplog.at_level(logging.DEBUG), pytest.raises(Retryable, match=r"check elasticsearch\.api_key") as caught:
        await sink.write(items(window(0)))
    assert proxy.authorizations == {"ApiKey c2VjcmV0OmtleQ=="}
    assert "c2VjcmV0" not in caplog.text + str(caught.value) + repr(caught.value.__cause__)


async def test_a_password_in_the_url_is_not_in_the_message(open_sink: Opener, proxy: FaultProxy) -> None:
    proxy.always = answer(503)
    with pytest.raises(Retryable, match=proxy.address) as caught:
        await open_sink(url=proxy.address.replace("http://", "http://ann:hunter2@")).write(items(window(0)))
    assert "hunter2" not in str(caught.value)


async def test_closing_twice_is_allowed(open_sink: Opener) -> None:
    sink = open_sink()
    await sink.write(items(window(0)))
    await sink.close()
    await sink.close()


@pytest.mark.parametrize(
    ("status", "error_type", "verdict"),
    [
        (201, "", Verdict.WRITTEN),
        (409, "version_conflict_engine_exception", Verdict.WRITTEN),
        (400, "document_parsing_exception", Verdict.REFUSED),
        (400, "illegal_argument_exception", Verdict.REFUSED),
        (400, "validation_exception", Verdict.AGAIN),  # no room for another shard
        (403, "cluster_block_exception", Verdict.AGAIN),
        (404, "index_not_found_exception", Verdict.AGAIN),  # somebody deleted the template
        (429, "es_rejected_execution_exception", Verdict.AGAIN),
        (503, "unavailable_shards_exception", Verdict.AGAIN),
    ],
)
def test_only_what_is_wrong_with_the_document_itself_is_refused(status: int, error_type: str, verdict: Verdict) -> None:
    assert judge(status, error_type) is verdict
