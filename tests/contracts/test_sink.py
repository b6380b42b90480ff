"""The contract of every sink, delivered from a real embedded log: nothing lost, nothing twice, nothing stuck.

One body for all of them. A new sink joins by adding a `Destination` to `DESTINATIONS`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest
from elasticsearch import AsyncElasticsearch

from streammon.backoff import Backoff
from streammon.broker import Outgoing, TopicPartition
from streammon.broker.embedded import EmbeddedBroker
from streammon.config import ElasticsearchSettings, Settings, SqliteSettings
from streammon.errors import Retryable
from streammon.results import Drift, Loop, Quality
from streammon.topics import state_topic, topic_specs
from streammon_sinks.delivery import Item, Refused, Sink, deliver
from streammon_sinks.elasticsearch import ElasticsearchSink
from streammon_sinks.es_documents import ALERTS, DRIFT, LOOPS, QUALITY, WINDOWS
from streammon_sinks.sqlite import ResultStore, SqliteSink
from tests.sinks.builders import START, alert, drift, loop, quality, window
from tests.support import eventually

GROUP = "sink-contract"
PARTITIONS = 2
QUICK = Backoff(first_s=0.001, longest_s=0.01)


class Held(NamedTuple):
    """What a destination holds: the starts of its windows, and the newest state of alerts, qualities and loops."""

    windows: list[float]
    alerts: Mapping[str, str]
    drift: Sequence[float]
    """Statistics, by time."""
    quality: Mapping[float, int]
    """By the start of its time, how many predictions had labels."""
    loops: Mapping[str, str]


class Destination(NamedTuple):
    """A place to deliver to: opens sinks, one after the other as restarts do, and says what it holds."""

    open: Callable[[], Sink]
    held: Callable[[], Awaitable[Held]]


# ---------------------------------------------------------------- the destinations


@asynccontextmanager
async def sqlite(request: pytest.FixtureRequest) -> AsyncIterator[Destination]:
    path: Path = request.getfixturevalue("tmp_path") / "results.sqlite"
    ResultStore.open(path).close()
    store = ResultStore.open(path, read_only=True)

    async def held() -> Held:
        starts = [each.start_unix_s for each in store.windows("inference", 0)]
        drifts = [each.statistic for each in reversed(store.ended(Drift, 0))]
        qualities = {each.start_unix_s: each.labelled for each in store.ended(Quality, 0)}
        loops = {each.id: each.state for each in store.newest(Loop)}
        return Held(starts, {each.id: each.state for each in store.alerts()}, drifts, qualities, loops)

    yield Destination(lambda: SqliteSink(ResultStore.open(path), SqliteSettings()), held)
    store.close()


@asynccontextmanager
async def elasticsearch(request: pytest.FixtureRequest) -> AsyncIterator[Destination]:
    address, namespace = request.getfixturevalue("elasticsearch").address, request.getfixturevalue("unique")
    client = AsyncElasticsearch(address)

    async def documents(stream: str, order: str) -> list[dict[str, Any]]:
        index = f"{stream}-{namespace}"
        await client.indices.refresh(index=index, ignore_unavailable=True)
        sort = [{order: {"unmapped_type": "long"}}]
        found = await client.search(index=index, size=10_000, sort=sort, ignore_unavailable=True)
        return [hit["_source"]["streammon"] for hit in found["hits"]["hits"]]

    async def held() -> Held:
        windows = await documents(WINDOWS, "streammon.start_unix_s")
        alerts = await documents(ALERTS, "streammon.transition")
        drifts = [each["statistic"] for each in await documents(DRIFT, "streammon.start_unix_s")]
        qualities = {each["start_unix_s"]: each["labelled"] for each in await documents(QUALITY, "streammon.revision")}
        starts, states = [each["start_unix_s"] for each in windows], {each["id"]: each["state"] for each in alerts}
        loops = {each["id"]: each["state"] for each in await documents(LOOPS, "streammon.transition")}
        return Held(starts, states, drifts, qualities, loops)

    settings = ElasticsearchSettings(url=address, namespace=namespace)
    yield Destination(lambda: ElasticsearchSink.connect(settings), held)
    await client.close()


DESTINATIONS: dict[str, Callable[[pytest.FixtureRequest], AbstractAsyncContextManager[Destination]]] = {
    "sqlite": sqlite,
    "elasticsearch": elasticsearch,
}


@pytest.fixture(
    params=["sqlite", pytest.param("elasticsearch", marks=pytest.mark.elasticsearch)],
)
async def destination(request: pytest.FixtureRequest) -> AsyncIterator[Destination]:
    async with DESTINATIONS[request.param](request) as opened:
        yield opened


# ---------------------------------------------------------------- the log, and what is in it


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[EmbeddedBroker]:
    broker = await EmbeddedBroker.open(Settings(data_dir=tmp_path / "log"))
    await broker.create_topics(topic_specs(partitions=PARTITIONS))
    yield broker
    await broker.close()


WINDOWS_SENT = [window(n, partition=n % PARTITIONS) for n in range(20)]
ALERTS_SENT = [alert(0, state="pending"), alert(1), alert(2, state="acknowledged"), alert(3, state="resolved")]
DRIFT_SENT = [drift(n, statistic=n / 10) for n in range(5)]
QUALITY_SENT = [quality(n, revision=revision, labelled=10 * revision) for revision in range(3) for n in range(2)]
LOOP_SENT = [loop(0), loop(1, state="started"), loop(2, state="closed")]
TOPICS = ["windows", "alerts", "drift", "quality", "loops"]
EVERYTHING = Held(
    [each.start_unix_s for each in WINDOWS_SENT],
    {"a1": "resolved"},
    [each.statistic for each in DRIFT_SENT],
    {START: 20, START + 60: 20},
    {"l1": "closed"},
)


async def publish(broker: EmbeddedBroker) -> None:
    await broker.append(
        [Outgoing("windows", b"s", msgspec.json.encode(each), (), each.partition) for each in WINDOWS_SENT]
        + [Outgoing("alerts", each.id.encode(), msgspec.json.encode(each)) for each in ALERTS_SENT]
        + [Outgoing("drift", b"shop/ranker", msgspec.json.encode(each)) for each in DRIFT_SENT]
        + [Outgoing("quality", b"shop/ranker", msgspec.json.encode(each)) for each in QUALITY_SENT]
        + [Outgoing("loops", each.id.encode(), msgspec.json.encode(each)) for each in LOOP_SENT]
    )


@asynccontextmanager
async def delivering(broker: EmbeddedBroker, sink: Sink, group: str = GROUP) -> AsyncIterator[None]:
    stop = asyncio.Event()
    task = asyncio.create_task(deliver(broker, group, TOPICS, sink, stop=stop, backoff=QUICK))
    try:
        yield
    finally:
        stop.set()
        async with asyncio.timeout(10):
            await task


class Troubled:
    """A sink that fails: first before it writes, then after, so that nobody knows what was written."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self.troubles = ["before", "after", "before", "after"]

    async def write(self, records: Sequence[Item]) -> list[Refused]:
        trouble = self.troubles.pop(0) if self.troubles else None
        if trouble == "before":
            raise Retryable("away")
        refused = await self._sink.write(records)
        if trouble == "after":
            raise Retryable("the answer was lost")
        return refused

    async def close(self) -> None:
        await self._sink.close()


# ---------------------------------------------------------------- the contract


async def test_everything_arrives_and_an_alert_ends_in_its_newest_state(
    broker: EmbeddedBroker, destination: Destination
) -> None:
    await publish(broker)
    async with delivering(broker, destination.open()):
        await eventually(lambda: caught_up(broker, GROUP), 30)
    assert await destination.held() == EVERYTHING


async def test_what_comes_while_delivering_arrives_too(broker: EmbeddedBroker, destination: Destination) -> None:
    async with delivering(broker, destination.open()):
        await publish(broker)
        await eventually(lambda: caught_up(broker, GROUP), 30)
    assert await destination.held() == EVERYTHING


async def test_a_redelivery_from_the_start_changes_nothing(broker: EmbeddedBroker, destination: Destination) -> None:
    await publish(broker)
    for group in ("sink-first", "sink-again"):
        async with delivering(broker, destination.open(), group):
            await eventually(partial(caught_up, broker, group))
        assert await destination.held() == EVERYTHING


async def test_trouble_before_and_after_writing_loses_and_doubles_nothing(
    broker: EmbeddedBroker, destination: Destination
) -> None:
    await publish(broker)
    sink = Troubled(destination.open())
    async with delivering(broker, sink):
        await eventually(lambda: caught_up(broker, GROUP), 30)
    assert sink.troubles == []
    assert await destination.held() == EVERYTHING


async def test_a_refused_record_is_a_dead_letter_and_the_rest_is_kept(
    broker: EmbeddedBroker, destination: Destination
) -> None:
    await broker.append([Outgoing("windows", b"s", b'{"type":"window"}', (), 0)])
    await publish(broker)
    async with delivering(broker, destination.open()):
        await eventually(lambda: caught_up(broker, GROUP), 30)
    assert await destination.held() == EVERYTHING
    (letter,) = await dead_letters(broker)
    assert letter["value"] == b'{"type":"window"}'
    assert (letter["topic"], letter["partition"], letter["offset"]) == (b"windows", b"0", b"0")
    assert b"missing required field" in (letter["error"] or b"")


async def test_a_delivery_that_was_stopped_goes_on_where_it_was(
    broker: EmbeddedBroker, destination: Destination
) -> None:
    for number in range(3):
        await broker.append([Outgoing("windows", b"s", msgspec.json.encode(window(number)), (), 0)])
        async with delivering(broker, destination.open()):
            await eventually(lambda: caught_up(broker, GROUP), 30)
        assert (await destination.held()).windows == [START + 2 * n for n in range(number + 1)]


async def test_closing_twice_is_allowed(destination: Destination) -> None:
    sink = destination.open()
    await sink.close()
    await sink.close()


# ---------------------------------------------------------------- helpers


async def caught_up(broker: EmbeddedBroker, group: str) -> bool:
    """Whether the group has committed everything there is."""
    committed: dict[TopicPartition, int] = {}
    for number in range(PARTITIONS):
        topics = [topic for topic in TOPICS if topic != "loops" or number == 0]  # it has one partition
        end = await broker.transactor(group, state_topic("windows"), number, topics)
        committed |= (await end.restore()).offsets
        await end.close()
    ends = await (await broker.reader(TOPICS)).ends()
    return all(committed.get(partition, 0) == end for partition, end in ends.items())


async def dead_letters(broker: EmbeddedBroker) -> list[dict[str, bytes | None]]:
    reader = await broker.reader(["deadletter"])
    polled = await reader.poll(max_wait_s=1)
    return [{"value": record.value, **dict(record.headers)} for records in polled.values() for record in records]
