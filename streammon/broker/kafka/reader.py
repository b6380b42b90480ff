"""Reading without a group, and what every aiokafka consumer of ours needs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

from aiokafka import errors as kafka_errors

from streammon.broker import Polled, Record, Start, TopicPartition
from streammon.broker.kafka.cluster import CONNECT_S, STOP_S, Cluster, ms
from streammon.errors import Fatal


@asynccontextmanager
async def started(cluster: Cluster, consumer: Any, doing: str) -> AsyncIterator[None]:
    """Start the consumer and run the body, all within CONNECT_S; a failure leaves nothing open."""
    try:
        with cluster.errors(doing, needs="Read on the topics"):
            async with asyncio.timeout(CONNECT_S):
                await consumer.start()
                yield
    except BaseException:
        await stop(consumer)
        raise


async def stop(consumer: Any) -> None:
    """Leave the group if the broker answers in time; else drop the requests that hang, and what waits for them."""
    stopping = asyncio.create_task(consumer.stop())
    await asyncio.wait({stopping}, timeout=STOP_S)
    if not stopping.done():
        hanging = {stopping, *_tasks(consumer)}
        for task in hanging:
            task.cancel()
        await asyncio.wait(hanging, timeout=STOP_S)
        await consumer._client.close()
    with suppress(asyncio.CancelledError, kafka_errors.KafkaError):
        await stopping


def _tasks(consumer: Any) -> list[asyncio.Task[Any]]:
    """What aiokafka runs for a consumer that has started: coordination, heartbeats, fetches."""
    parts = [part for part in (consumer._coordinator, consumer._fetcher) if part is not None]
    tasks = [task for part in parts for task in vars(part).values() if isinstance(task, asyncio.Task)]
    return [*tasks, *getattr(consumer._fetcher, "_pending_tasks", ())]


async def getmany(cluster: Cluster, consumer: Any, wait_s: float, max_records: int) -> dict[Any, list[Record]]:
    """As aiokafka's, which would stay silent for ever after its fetching task had died."""
    if consumer._fetcher.error_future.done() or _is_dead(consumer._coordinator):
        raise Fatal(f"reading from Kafka {cluster.address} broke down inside aiokafka; start again")
    with cluster.errors("reading", needs="Read on the topic"):
        fetched: dict[Any, list[Record]] = await consumer.getmany(timeout_ms=ms(wait_s), max_records=max_records)
    return fetched


def _is_dead(coordinator: Any) -> bool:
    task = getattr(coordinator, "_coordination_task", None)  # only in a group
    return task is not None and task.done()


async def starts(cluster: Cluster, consumer: Any, partitions: Sequence[Any], start: Start) -> Mapping[Any, int]:
    if isinstance(start, Mapping):
        return {cluster.theirs(partition): offset for partition, offset in start.items()}
    if start == "earliest":
        beginnings: Mapping[Any, int] = await consumer.beginning_offsets(partitions)
        return beginnings
    ends: Mapping[Any, int] = await consumer.end_offsets(partitions)
    if start == "latest":
        return ends
    found = await consumer.offsets_for_times(dict.fromkeys(partitions, max(0, ms(float(start)))))
    # A time after the newest record finds nothing; what it finds may be part of a transaction still open.
    return {each: min(found[each].offset, ends[each]) if found[each] else ends[each] for each in partitions}


def partition_state(consumer: Any, partition: Any) -> Any:
    """What aiokafka knows of a partition: position, lso (last stable offset), timestamp (ms, of the last fetch)."""
    return consumer._subscription.subscription.assignment.state_value(partition)


class KafkaReader:
    """`streammon.broker.Reader`. Positions step over transaction markers and aborted records, to the very ends."""

    def __init__(self, cluster: Cluster, consumer: Any) -> None:
        self._cluster = cluster
        self._consumer = consumer
        self._known: dict[TopicPartition, int] = {}

    async def poll(self, max_wait_s: float = 0.5, max_records: int = 2000) -> Polled:
        fetched = await getmany(self._cluster, self._consumer, max_wait_s, max_records)
        return {self._cluster.ours(partition): records for partition, records in fetched.items()}

    async def ends(self) -> Mapping[TopicPartition, int]:
        with self._cluster.errors("asking for the ends"):
            ends = await self._consumer.end_offsets(list(self._consumer.assignment()))
        return {self._cluster.ours(partition): end for partition, end in ends.items()}

    def positions(self) -> Mapping[TopicPartition, int]:
        for partition in self._consumer.assignment():
            state = partition_state(self._consumer, partition)
            if state.has_valid_position:  # not while retention has just removed where we stood
                self._known[self._cluster.ours(partition)] = state.position
        return dict(self._known)

    async def close(self) -> None:
        await stop(self._consumer)
