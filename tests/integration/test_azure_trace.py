"""Real LLM calls through a real Kafka, in every density, into SQLite and a real Elasticsearch, against numpy."""

from __future__ import annotations

import asyncio
import csv
import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from elasticsearch import AsyncElasticsearch

from streammon.broker import connect
from streammon.cli.base import together
from streammon.cli.data import Emitter
from streammon.config import Settings
from streammon.events import EventType
from streammon.results import Window
from streammon.servers import Server
from streammon.sketch import merge
from streammon.topics import topic_specs
from streammon.wire import Density
from streammon_processors.builtin import windows_processor
from streammon_processors.runtime import run_processor
from streammon_sinks.delivery import deliver
from streammon_sinks.elasticsearch import ElasticsearchSink
from streammon_sinks.es_documents import WINDOWS
from streammon_sinks.ids import window_id
from streammon_sinks.sqlite import ResultStore, SqliteSink
from tests.support import eventually

SIZE_S = 10.0
WORST_RELATIVE_ERROR = 0.0055
TRACE = Path(__file__).parents[1] / "data" / "azure_llm_code_2023.csv"

Calls = dict[str, np.ndarray[Any, np.dtype[np.float64]]]


@pytest.fixture(scope="module")
def calls() -> Calls:
    with TRACE.open() as file:
        rows = list(csv.DictReader(file))
    times = [datetime.fromisoformat(row["TIMESTAMP"][:26]).replace(tzinfo=UTC).timestamp() for row in rows]
    return {
        "time_unix_s": np.array(times),
        "input_tokens": np.array([float(row["ContextTokens"]) for row in rows]),
        "output_tokens": np.array([float(row["GeneratedTokens"]) for row in rows]),
    }


def lines_of(calls: Calls) -> list[bytes]:
    return [
        b'{"time_unix_s":%a,"service":"copilot","model":"code","duration_s":0.5,"status":"ok",'
        b'"input_tokens":%d,"output_tokens":%d}' % (float(time), given, made)
        for time, given, made in zip(*calls.values(), strict=True)
    ]


@pytest.mark.kafka
@pytest.mark.elasticsearch
@pytest.mark.parametrize("density", list(Density))
async def test_every_window_of_the_azure_trace_is_exact(
    density: Density, calls: Calls, kafka: Server, elasticsearch: Server, unique: str, tmp_path: Path
) -> None:
    settings = Settings(
        bootstrap=kafka.address,
        topics={"prefix": f"{unique}."},
        windows={"size_s": SIZE_S},
        elasticsearch={"url": elasticsearch.address, "namespace": unique},
    )
    broker = await connect(settings)
    await broker.create_topics(topic_specs(partitions=2))
    emitter = Emitter(EventType.INFERENCE, density, batch=200)
    await broker.append([*emitter.take(lines_of(calls)), *emitter.flush()])
    assert emitter.sent == len(calls["time_unix_s"]) == 8819

    store = ResultStore.open(tmp_path / "results.sqlite")
    es = AsyncElasticsearch(elasticsearch.address)
    index = f"{WINDOWS}-{unique}"
    found: list[Window] = []
    documents: list[dict[str, Any]] = []
    stop = asyncio.Event()

    async def wait_for_all() -> None:
        async def all_there() -> bool:
            found[:] = store.windows("inference", 0)
            if sum(window.count for window in found) < emitter.sent or not await es.indices.exists(index=index):
                return False
            await es.indices.refresh(index=index)
            answer = await es.search(index=index, size=10_000)
            documents[:] = answer["hits"]["hits"]
            return len(documents) >= len(found)

        await eventually(all_there, 60, what="all windows in SQLite and Elasticsearch")

    await together(
        stop,
        run_processor(broker, windows_processor(settings), settings, stop=stop),
        deliver(broker, f"{unique}-sqlite", ["windows"], SqliteSink(store, settings.sqlite), stop=stop),
        deliver(broker, f"{unique}-es", ["windows"], ElasticsearchSink.connect(settings.elasticsearch), stop=stop),
        wait_for_all(),
    )
    await es.close()
    await broker.close()

    assert_exact(found, calls)
    assert_same_documents(found, documents)


def assert_exact(found: list[Window], calls: Calls) -> None:
    numbers = np.floor(calls["time_unix_s"] / SIZE_S)
    assert sorted({window.start_unix_s for window in found}) == [number * SIZE_S for number in np.unique(numbers)]
    assert all(window.part == "main" for window in found), "the trace is in order: nothing is late"
    for window in found:
        mine = numbers == window.start_unix_s / SIZE_S
        assert window.count == mine.sum()
        for field in ("input_tokens", "output_tokens"):
            distribution, values = getattr(window, field), calls[field][mine]
            assert distribution.sum == values.sum()
            assert (distribution.min, distribution.max) == (values.min(), values.max())
            for q, estimate in ((0.5, distribution.p50), (0.9, distribution.p90), (0.99, distribution.p99)):
                exact = float(np.quantile(values, q, method="inverted_cdf"))
                assert math.isclose(estimate, exact, rel_tol=WORST_RELATIVE_ERROR), (window.start_unix_s, field, q)
    whole = merge(window.input_tokens.sketch for window in found if window.input_tokens)
    exact = float(np.quantile(calls["input_tokens"], 0.99, method="inverted_cdf"))
    assert math.isclose(whole.quantile(0.99), exact, rel_tol=WORST_RELATIVE_ERROR), "sketches add over the hour"


def assert_same_documents(found: list[Window], documents: list[dict[str, Any]]) -> None:
    by_id = {document["_id"]: document["_source"] for document in documents}
    assert by_id.keys() == {window_id(window) for window in found}
    for window in found:
        document = by_id[window_id(window)]
        assert document["@timestamp"] == window.start_unix_s * 1000
        assert document["labels"] == window.series
        assert document["service.name"] == "copilot"
        assert document["streammon"]["count"] == window.count
        assert window.input_tokens is not None
        assert document["gen_ai.usage.input_tokens"] == window.input_tokens.sum
        for name in ("count", "sum", "min", "max", "mean", "p50", "p90", "p99"):
            stored = document["streammon"]["input_tokens"][name]
            assert stored == getattr(window.input_tokens, name), name
