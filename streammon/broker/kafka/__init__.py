"""The broker seam over Apache Kafka (2.5 or newer), by aiokafka and, for group members, librdkafka.

What it promises, beside the protocols in `streammon.broker`:

- Nothing waits for ever on a broker that is away: every call ends, by an answer or by a `Retryable` that names
  the address. A poll just stays empty, and goes on when the broker is back.
- An append that failed is given up together with its producer: it does not turn up minutes later, after its
  retry. What was on the wire at that moment may have arrived; senders number their batches for that case.
- A rebalance meets the event loop within `Member.poll` alone; `member` says how.

What it cannot do: keep a deleted topic deleted where the broker creates topics on demand (aiokafka's metadata
requests allow that; we ask only for topics we have seen), or tell a transaction that timed out from one that
was fenced, since Kafka answers both with one code: both are `Fenced`, and the process starts anew.

aiokafka has no public name for some things we need, such as a position that can be read without waiting.
`partition_state`, `_tasks`, `_is_dead`, `getmany`, `stop`, `discard` and `_failure` are the only places that reach into
it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from aiokafka.errors import (
    GroupCoordinatorNotAvailableError,
    GroupLoadInProgressError,
    KafkaError,
    NotCoordinatorForGroupError,
)

from streammon.broker import AssignmentCallback, ClockOffset, Outgoing, Start, TopicPartition
from streammon.broker.kafka.appender import Appender
from streammon.broker.kafka.catalog import Catalog
from streammon.broker.kafka.cluster import CONNECT_S, REQUEST_S, RETRY_MS, Cluster, check_address, quieten
from streammon.broker.kafka.diagnosis import refusal
from streammon.broker.kafka.reader import KafkaReader, started, starts
from streammon.broker.kafka.transactor import KafkaTransactor
from streammon.errors import ConfigError
from streammon.topics import TopicSpec

if TYPE_CHECKING:
    from streammon.broker.kafka.member import KafkaMember
    from streammon.config import Settings

NO_COORDINATOR = (GroupCoordinatorNotAvailableError, GroupLoadInProgressError, NotCoordinatorForGroupError)


class KafkaBroker:
    """`streammon.broker.Broker` over Kafka. Open it with `connect`."""

    def __init__(self, cluster: Cluster, admin: Any) -> None:
        self._cluster = cluster
        self._admin = admin
        self._catalog = Catalog(cluster, admin)
        self._appender = Appender(cluster)

    @classmethod
    async def connect(cls, settings: Settings) -> KafkaBroker:
        """Raises `ConfigError` for an address that is none and for brokers that say why they do not let us in,
        `Retryable` after CONNECT_S if nobody answers."""
        assert settings.bootstrap, "without bootstrap there is no Kafka to connect to"
        check_address(settings.bootstrap)
        quieten(settings.log_level)
        topics = settings.topics
        cluster = Cluster(settings.bootstrap, topics.prefix, topics.replication, settings.kafka)
        broker = cls(cluster, cluster.admin())
        try:
            with cluster.errors("connecting"):
                async with asyncio.timeout(CONNECT_S):
                    await broker._admin.start()
                    await broker._catalog.refresh()
        except BaseException as error:
            await broker.close()
            if isinstance(error.__cause__, KafkaError) and (reason := await refusal(cluster)):
                raise ConfigError(reason) from error
            raise
        return broker

    async def create_topics(self, specs: Iterable[TopicSpec], *, if_permitted: bool = False) -> list[str]:
        return await self._catalog.create(specs, if_permitted=if_permitted)

    async def topics(self, *, exact: bool = False) -> Mapping[str, TopicSpec]:
        return await (self._catalog.known() if exact else self._catalog.refresh())

    async def append(self, records: Sequence[Outgoing]) -> list[int]:
        return await self._appender.append(records, await self._catalog.check(records))

    async def backlog_bytes(self) -> int:
        return self._appender.backlog_bytes

    def clock_offset(self) -> ClockOffset | None:
        return self._appender.clock.offset

    async def reader(self, topics: Sequence[str], start: Start = "earliest") -> KafkaReader:
        ours = await self._catalog.partitions(topics)
        partitions = [self._cluster.theirs(each) for each in (start if isinstance(start, Mapping) else ours)]
        consumer = self._cluster.consumer(None, await self._largest(topics))
        consumer.assign(partitions)
        async with started(self._cluster, consumer, "opening a reader"):
            for partition, offset in (await starts(self._cluster, consumer, partitions, start)).items():
                consumer.seek(partition, offset)
        return KafkaReader(self._cluster, consumer)

    async def committed(self, group: str, topics: Sequence[str]) -> Mapping[TopicPartition, int]:
        wanted = await self._catalog.partitions(topics)
        with self._cluster.errors("reading a group's offsets"):
            async with asyncio.timeout(REQUEST_S):
                found = await self._group_offsets(self._cluster.name(group))
        offsets = {self._cluster.ours(partition): each.offset for partition, each in found.items()}
        return {each: offsets[each] for each in wanted if offsets.get(each, -1) >= 0}

    async def member(
        self,
        group: str,
        topics: Sequence[str],
        *,
        on_assign: AssignmentCallback,
        on_revoke: AssignmentCallback,
    ) -> KafkaMember:
        from streammon.broker.kafka.member import KafkaMember  # librdkafka: 4 MB that agents do without

        await self._catalog.require(topics)
        return KafkaMember(self._cluster, group, topics, on_assign=on_assign, on_revoke=on_revoke)

    async def transactor(self, group: str, state_topic: str, partition: int, inputs: Sequence[str]) -> KafkaTransactor:
        await self._catalog.require({state_topic, *inputs})
        return await KafkaTransactor.open(
            self._cluster, self._catalog, group, TopicPartition(state_topic, partition), inputs
        )

    async def close(self) -> None:
        await self._appender.close()
        await self._admin.close()

    async def _group_offsets(self, group: str) -> Mapping[Any, Any]:
        """Asks again while the group has no coordinator, as before the first group of a new cluster."""
        while True:
            try:
                found: Mapping[Any, Any] = await self._admin.list_consumer_group_offsets(group)
            except NO_COORDINATOR:
                await asyncio.sleep(RETRY_MS / 1000)
            else:
                return found

    async def _largest(self, topics: Sequence[str]) -> int:
        return max(spec.max_record_bytes for spec in await self._catalog.require(topics))
