"""Exactly once: results, snapshot and offsets in one transaction."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from aiokafka import errors as kafka_errors

from streammon.broker import Outgoing, Record, Restored, TopicPartition
from streammon.broker.kafka.appender import discard, send, start
from streammon.broker.kafka.catalog import Catalog
from streammon.broker.kafka.cluster import FETCH_WAIT_MS, FIRST_LOOK_BACK, STOP_S, Cluster, ms
from streammon.broker.kafka.reader import stop
from streammon.errors import Retryable


class KafkaTransactor:
    """`streammon.broker.Transactor`: one transactional producer for one partition of the state topic.

    The transactional id names the group and the partition of the state topic, because that is what must have
    one writer. (Not the inputs: after an upgrade, an owner that reads one topic more must fence the older one.)

    After any failure but a record refused before it was sent, the transactor is spent.
    """

    def __init__(
        self, cluster: Cluster, catalog: Catalog, group: str, state: TopicPartition, inputs: Sequence[str]
    ) -> None:
        self._cluster = cluster
        self._catalog = catalog
        self._group = cluster.name(group)
        self._state = state
        self._inputs = [TopicPartition(topic, state.partition) for topic in inputs]
        self._key = str(state.partition).encode()
        self._spent = False
        transactional_id = f"{self._group}-{state.topic}-{state.partition}"
        self._id = f"transactional id {transactional_id}"
        self._producer = cluster.producer(
            transactional_id=transactional_id,
            transaction_timeout_ms=ms(cluster.settings.transaction_timeout_s),
        )

    @classmethod
    async def open(
        cls, cluster: Cluster, catalog: Catalog, group: str, state: TopicPartition, inputs: Sequence[str]
    ) -> KafkaTransactor:
        """Starting the producer fences the earlier owner and ends the transaction it left open."""
        transactor = cls(cluster, catalog, group, state, inputs)
        with cluster.errors("opening a transactor", needs=f"Write on {transactor._id}", as_owner=True):
            async with asyncio.timeout(cluster.settings.delivery_timeout_s):
                await start(transactor._producer)
        return transactor

    async def restore(self) -> Restored:
        [spec] = await self._catalog.require([self._state.topic])
        state = self._cluster.theirs(self._state)
        consumer = self._cluster.consumer(self._group, spec.max_record_bytes)
        consumer.assign([state])
        try:
            with self._cluster.errors("restoring", needs=self._needs("Read", [self._state.topic])):
                async with asyncio.timeout(self._cluster.settings.delivery_timeout_s):
                    await consumer.start()
                    return Restored(await self._newest_snapshot(consumer, state), await self._committed(consumer))
        finally:
            await stop(consumer)

    async def transact(
        self, outputs: Sequence[Outgoing], snapshot: bytes, offsets: Mapping[TopicPartition, int]
    ) -> None:
        if self._spent:
            raise Retryable("this transactor failed before; open a new one and restore")
        state = Outgoing(self._state.topic, self._key, snapshot, partition=self._state.partition)
        records = [*outputs, state]
        await self._catalog.check(records)
        self._spent = True
        needs = f"{self._needs('Write', {record.topic for record in records})}, Write on {self._id}"
        with self._cluster.errors(f"writing a transaction of {self._state}", needs=needs, as_owner=True):
            async with asyncio.timeout(self._cluster.settings.transaction_timeout_s):
                await self._write(records, offsets)
        self._spent = False

    async def close(self) -> None:
        await discard(self._producer)

    def _needs(self, operation: str, topics: Iterable[str]) -> str:
        inputs = self._cluster.names(each.topic for each in self._inputs)
        ours = f"{operation} on topic {self._cluster.names(topics)}"
        return f"{ours}, Read on topic {inputs}, Read on group {self._group}"

    async def _write(self, records: Sequence[Outgoing], offsets: Mapping[TopicPartition, int]) -> None:
        """Awaits every record before the commit: aiokafka would commit without one that the broker refused."""
        await self._producer.begin_transaction()
        try:
            waiting: list[Any] = [await self._send(record) for record in records]
            if offsets:
                theirs = {self._cluster.theirs(each): at for each, at in offsets.items()}
                waiting.append(self._producer.send_offsets_to_transaction(theirs, self._group))
            await asyncio.gather(*waiting)
        except (kafka_errors.KafkaError, kafka_errors.IllegalOperation) as error:
            failure = self._failure(error)
            await self._abort()
            raise failure from None
        await self._producer.commit_transaction()

    async def _send(self, record: Outgoing) -> asyncio.Future[Any]:
        sent = await send(self._cluster, self._producer, record)
        sent.add_done_callback(_look_at)
        return sent

    def _failure(self, error: Exception) -> BaseException:
        """What has ended the transaction: the records after it are only told that there is none, "illegal"."""
        ended = self._producer._txn_manager.wait_for_transaction_end()
        ended_by = ended.exception() if ended.done() else None
        return ended_by if ended_by and isinstance(error, kafka_errors.IllegalOperation) else error

    async def _abort(self) -> None:
        """At once if possible; else the next owner ends the transaction, or its timeout does."""
        with suppress(kafka_errors.KafkaError, TimeoutError, AssertionError):
            async with asyncio.timeout(STOP_S):
                await self._producer.abort_transaction()

    async def _newest_snapshot(self, consumer: Any, state: Any) -> bytes | None:
        """The partition holds one key, so its newest record is the one: look back from the end, ever further.

        Markers and aborted records take offsets too, so the last offset alone is not enough.
        """
        begin = (await consumer.beginning_offsets([state]))[state]
        end = (await consumer.end_offsets([state]))[state]
        start, reach = end, FIRST_LOOK_BACK
        while start > begin:
            start = max(begin, end - reach)
            reach *= reach
            if records := [each for each in await _read(consumer, state, start, end) if each.key == self._key]:
                return records[-1].value
        return None

    async def _committed(self, consumer: Any) -> dict[TopicPartition, int]:
        committed = {each: await consumer.committed(self._cluster.theirs(each)) for each in self._inputs}
        return {each: offset for each, offset in committed.items() if offset is not None}


def _look_at(ended: asyncio.Future[Any]) -> None:
    """The first failure is the one to raise; asyncio would report those of the records after it as overlooked."""
    if not ended.cancelled():
        ended.exception()


async def _read(consumer: Any, partition: Any, start: int, end: int) -> list[Record]:
    consumer.seek(partition, start)
    records: list[Record] = []
    while await consumer.position(partition) < end:
        fetched = await consumer.getmany(timeout_ms=FETCH_WAIT_MS)
        records.extend(fetched.get(partition, ()))
    return records
