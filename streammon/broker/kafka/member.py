"""A member of a consumer group."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Any

from aiokafka import ConsumerRebalanceListener
from aiokafka import errors as kafka_errors

from streammon.broker import AssignmentCallback, Polled, Record, TopicPartition
from streammon.broker.kafka.cluster import LAG_FRESH_S, REBALANCE_S, Cluster
from streammon.broker.kafka.reader import getmany, stop
from streammon.broker.kafka.reader import partition_state as _state


class Handover(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka is untyped
    """Where aiokafka's coordinator task, which runs rebalances, meets `KafkaMember.poll`, which runs callbacks.

    The coordinator calls `on_partitions_revoked` before it rejoins and `on_partitions_assigned` after. Both
    leave a note for `settle`, which poll calls first of all. Why this neither deadlocks nor leaks records:

    - *Revoke* waits for poll, so the group moves on only when on_revoke is done; heartbeats continue meanwhile.
      Who never polls is dropped from the group after REBALANCE_S; on_revoke runs at its next poll all the same.
    - *Assign* does not wait: aiokafka sends no heartbeat until it returns, and on_assign may take longer than
      a session. Poll announces the partitions before it returns a record of them.
    - Poll never sits in a fetch meanwhile: aiokafka's ``getmany`` waits without limit for the end of a
      rebalance, which waits for us. So a revoke closes the gate and cancels the fetch that is under way.
    - on_revoke may commit: that goes straight to the broker, under the old generation, which is still valid.
    - Closing the member releases a coordinator that waits.
    """

    def __init__(self, cluster: Cluster, on_assign: AssignmentCallback, on_revoke: AssignmentCallback) -> None:
        self.open = False
        self.changed = asyncio.Event()
        self.fetch: asyncio.Task[Any] | None = None
        self._cluster = cluster
        self._on_assign = on_assign
        self._on_revoke = on_revoke
        self._arrived: list[TopicPartition] | None = None
        self._announced: list[TopicPartition] = []
        self._released: asyncio.Event | None = None
        self._closed = False

    async def on_partitions_revoked(self, revoked: Collection[Any]) -> None:
        self.open, self._arrived = False, None
        if self.fetch is not None:
            self.fetch.cancel()
        if self._announced and not self._closed:
            self._released = asyncio.Event()
            self.changed.set()
            await self._released.wait()

    async def on_partitions_assigned(self, assigned: Collection[Any]) -> None:
        self._arrived = sorted(map(self._cluster.ours, assigned))
        self.changed.set()

    async def settle(self) -> None:
        """Run the callbacks that are due. An assign that raises stays due; a revoke happens once."""
        self.changed.clear()
        if self._released is not None:
            await self._revoke()
        if self._arrived is not None:
            await self._assign(self._arrived)

    async def _revoke(self) -> None:
        released, revoked = self._released, self._announced
        self._released, self._announced = None, []
        try:
            await self._on_revoke(revoked)
        finally:
            if released is not None:
                released.set()

    async def _assign(self, arrived: list[TopicPartition]) -> None:
        self._arrived, self._announced = None, arrived
        try:
            if arrived:
                await self._on_assign(arrived)
        except BaseException:
            if self._released is None:
                self._arrived, self._announced = arrived, []
            raise
        self.open = self._released is None and self._announced is arrived

    def close(self) -> None:
        self._closed, self.open = True, False
        if self._released is not None:
            self._released.set()


class KafkaMember:
    """`streammon.broker.Member`. Assigned by range: one member has the same partition numbers of all its topics."""

    def __init__(self, cluster: Cluster, consumer: Any, handover: Handover) -> None:
        self._cluster = cluster
        self._consumer = consumer
        self._handover = handover

    async def poll(self, max_wait_s: float = 0.5, max_records: int = 2000) -> Polled:
        deadline = time.monotonic() + max_wait_s
        await asyncio.sleep(0)  # buffered records come without waiting: let heartbeats and fetches have their turn
        while True:
            await self._handover.settle()
            wait_s = max(0.0, deadline - time.monotonic())
            fetched = await self._fetch(wait_s, max_records)
            if fetched or not wait_s:
                return {self._cluster.ours(partition): records for partition, records in fetched.items()}

    async def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        with self._cluster.errors("committing"):
            async with asyncio.timeout(REBALANCE_S):
                await self._consumer.commit({self._cluster.theirs(each): at for each, at in offsets.items()})

    def seek(self, partition: TopicPartition, offset: int) -> None:
        self._consumer.seek(self._cluster.theirs(partition), offset)

    def pause(self, partition: TopicPartition) -> None:
        self._consumer.pause(self._cluster.theirs(partition))

    def resume(self, partition: TopicPartition) -> None:
        self._consumer.resume(self._cluster.theirs(partition))

    async def lag(self) -> Mapping[TopicPartition, int]:
        """From the last fetch where that is recent; the broker is asked about paused and new partitions."""
        assigned = list(self._consumer.assignment())
        ends = {each: _state(self._consumer, each).lso for each in assigned}
        if stale := [each for each in assigned if self._is_stale(each)]:
            with suppress(TimeoutError, kafka_errors.KafkaError):
                async with asyncio.timeout(1.0):
                    ends |= await self._consumer.end_offsets(stale)
        return {
            self._cluster.ours(each): max(0, end - state.position)
            for each, end in ends.items()
            if end is not None and (state := _state(self._consumer, each)) and state.has_valid_position
        }

    async def close(self) -> None:
        self._handover.close()
        await stop(self._consumer)

    def _is_stale(self, partition: Any) -> bool:
        fetched_ms = _state(self._consumer, partition).timestamp
        return fetched_ms is None or time.time() - fetched_ms / 1000 > LAG_FRESH_S

    async def _fetch(self, wait_s: float, max_records: int) -> dict[Any, list[Record]]:
        if not self._handover.open:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._handover.changed.wait(), wait_s)
            return {}
        buffered = await getmany(self._cluster, self._consumer, 0, max_records)
        if buffered or not wait_s:
            return buffered
        return await self._fetch_interruptibly(wait_s, max_records)

    async def _fetch_interruptibly(self, wait_s: float, max_records: int) -> dict[Any, list[Record]]:
        fetch = asyncio.create_task(getmany(self._cluster, self._consumer, wait_s, max_records))
        self._handover.fetch = fetch
        try:
            await asyncio.wait({fetch})
        except asyncio.CancelledError:
            self._put_back(fetch)
            raise
        finally:
            self._handover.fetch = None
        # What came in as the gate closed is dropped: its partitions start again at the committed offset.
        return fetch.result() if self._handover.open and not fetch.cancelled() else {}

    def _put_back(self, fetch: asyncio.Task[Any]) -> None:
        """Our poll is cancelled, perhaps just as the fetch got records: the next poll shall return them."""
        if not fetch.done():
            fetch.cancel()
        elif self._handover.open and not fetch.cancelled() and not fetch.exception():
            for partition, records in fetch.result().items():
                self._consumer.seek(partition, records[0].offset)
