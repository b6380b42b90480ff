"""The topics as they are, and how ours are made."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from aiokafka import errors as kafka_errors
from aiokafka.admin import NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType

from streammon.broker import Outgoing, TopicPartition
from streammon.broker.kafka.cluster import ENVELOPE_BYTES, REFUSED, REQUEST_S, RETRY_MS, Cluster, ms
from streammon.errors import ConfigError, RecordTooLarge
from streammon.topics import TopicSpec, state_topic, topic_specs


class Catalog:
    """The topics as they are, asked for again when one is missing."""

    def __init__(self, cluster: Cluster, admin: Any) -> None:
        self._cluster = cluster
        self._admin = admin
        self._specs: dict[str, TopicSpec] = {}
        self._assumed: set[str] = set()  # where DescribeConfigs is denied

    async def refresh(self) -> Mapping[str, TopicSpec]:
        with self._cluster.errors("reading the topics"):
            async with asyncio.timeout(REQUEST_S):
                self._specs = {spec.name: spec for spec in await self._describe()}
        return self._specs

    async def require(self, topics: Collection[str]) -> list[TopicSpec]:
        """The specs of ``topics``; raises `ConfigError` naming those that do not exist."""
        if not self._specs.keys() >= set(topics):
            await self.refresh()
        if missing := sorted(set(topics) - self._specs.keys()):
            names = ", ".join(map(self._cluster.name, missing))
            raise ConfigError(
                f"Kafka {self._cluster.address} has no topic {names}, or does not show it: `streammon topics create` "
                f"makes it; where permissions are asked for, {self._cluster.needs('Describe, Read or Write on it')}"
            )
        return [self._specs[topic] for topic in topics]

    async def partitions(self, topics: Collection[str]) -> list[TopicPartition]:
        return [
            TopicPartition(spec.name, number)
            for spec in await self.require(topics)
            for number in range(spec.partitions)
        ]

    async def check(self, records: Sequence[Outgoing]) -> int:
        """The size of all records in bytes; raises, before any is sent, if one of them cannot be written."""
        specs = {spec.name: spec for spec in await self.require({record.topic for record in records})}
        return sum(_checked_size(record, specs[record.topic]) for record in records)

    async def known(self) -> Mapping[str, TopicSpec]:
        """The topics as they are, and not as we think they are."""
        await self.refresh()
        if self._assumed:
            needs = self._cluster.needs(f"DescribeConfigs on topic {self._cluster.names(self._assumed)}")
            raise ConfigError(f"reading the settings of topics at Kafka {self._cluster.address}: {needs}")
        return self._specs

    async def create(self, specs: Iterable[TopicSpec], *, if_permitted: bool) -> list[str]:
        existing = await self.refresh()
        missing = [spec for spec in specs if spec.name not in existing]
        if not missing:
            return []
        with self._cluster.errors("creating topics"):
            async with asyncio.timeout(REQUEST_S):
                reply = await self._admin.create_topics([_new_topic(self._cluster, spec) for spec in missing])
        outcomes = {name: kafka_errors.for_code(code) for name, code, _ in reply.topic_errors}
        denied = {name for name, outcome in outcomes.items() if if_permitted and outcome in REFUSED}
        for name, _, message in reply.topic_errors:
            if name not in denied:
                self._check_created(name, outcomes[name], message)
        await self._await_leaders(outcomes.keys() - denied)
        created = [name for name, outcome in outcomes.items() if outcome is kafka_errors.NoError]
        return [name.removeprefix(self._cluster.prefix) for name in created]

    def _check_created(self, name: str, outcome: type[Exception], message: str | None) -> None:
        if outcome in (kafka_errors.NoError, kafka_errors.TopicAlreadyExistsError):
            return
        if outcome in REFUSED:
            remedy = self._cluster.needs(f"Create on topic {name}")
        else:
            remedy = f"check topics.partitions and topics.replication = {self._cluster.replication}"
        raise ConfigError(
            f"Kafka {self._cluster.address} refuses to create {name}: {message or outcome.__name__}; {remedy}"
        )

    async def _await_leaders(self, names: Collection[str]) -> None:
        """A topic exists when the controller says so, and takes records when its partitions have leaders."""
        with self._cluster.errors("waiting for the new topics' leaders"):
            async with asyncio.timeout(REQUEST_S):
                while not set(names) <= await self._led():  # noqa: ASYNC110 - Kafka announces it nowhere
                    await asyncio.sleep(RETRY_MS / 1000)
        await self.refresh()

    async def _led(self) -> set[str]:
        return {each["topic"] for each in await self._layout() if _is_led(each)}

    async def _layout(self) -> list[dict[str, Any]]:
        prefix = self._cluster.prefix
        topics: list[dict[str, Any]] = await self._admin.describe_topics()
        return [each for each in topics if each["topic"].startswith(prefix) and not each["is_internal"]]

    async def _describe(self) -> list[TopicSpec]:
        partitions = {each["topic"]: len(each["partitions"]) for each in await self._layout()}
        if not partitions:
            return []
        wanted = dict.fromkeys(_DESCRIBED, "")
        resources = [ConfigResource(ConfigResourceType.TOPIC, name, wanted) for name in partitions]
        [reply] = await self._admin.describe_configs(resources)
        self._assumed.clear()
        specs = [self._described(name, partitions[name], code, config) for code, _, _, name, config in reply.resources]
        return [spec for spec in specs if spec is not None]

    def _described(self, name: str, partitions: int, code: int, config: Iterable[Sequence[Any]]) -> TopicSpec | None:
        ours, outcome = name.removeprefix(self._cluster.prefix), kafka_errors.for_code(code)
        if outcome is kafka_errors.NoError:
            return _spec(ours, partitions, {key: value for key, value, *_ in config})
        if outcome not in REFUSED:  # it was deleted meanwhile
            return None
        self._assumed.add(ours)
        return _assumed(ours, partitions)


_DESCRIBED = ("retention.ms", "cleanup.policy", "message.timestamp.type", "max.message.bytes")


def _new_topic(cluster: Cluster, spec: TopicSpec) -> Any:
    retention_ms = -1 if spec.retention_s is None else ms(spec.retention_s)
    config = {
        "retention.ms": str(retention_ms),
        "cleanup.policy": "compact" if spec.compact else "delete",
        "message.timestamp.type": "LogAppendTime" if spec.log_append_time else "CreateTime",
        "max.message.bytes": str(spec.max_record_bytes + ENVELOPE_BYTES),
    }
    if spec.compact:
        # Only closed segments are cleaned, and a snapshot is written every second: close them early.
        config |= {
            "segment.ms": "600000",
            "segment.bytes": str(64 * 1024**2),
            "min.cleanable.dirty.ratio": "0.1",
        }
    return NewTopic(cluster.name(spec.name), spec.partitions, cluster.replication, topic_configs=config)


def _spec(name: str, partitions: int, config: Mapping[str, str]) -> TopicSpec:
    retention_ms = int(config["retention.ms"])
    return TopicSpec(
        name,
        partitions,
        retention_s=retention_ms / 1000 if retention_ms >= 0 else None,
        compact="compact" in config["cleanup.policy"],
        log_append_time=config["message.timestamp.type"] == "LogAppendTime",
        max_record_bytes=int(config["max.message.bytes"]) - ENVELOPE_BYTES,
    )


def _assumed(name: str, partitions: int) -> TopicSpec:
    """As we create it, where we may not ask how it is."""
    processor = name.removeprefix(state_topic(""))
    ours = {spec.name: spec for spec in topic_specs(partitions=partitions, processors=[processor])}
    return ours.get(name) or TopicSpec(name, partitions, retention_s=None)


def _is_led(topic: Mapping[str, Any]) -> bool:
    return bool(topic["partitions"]) and all(each["leader"] >= 0 for each in topic["partitions"])


def _checked_size(record: Outgoing, spec: TopicSpec) -> int:
    beside = len(record.key or b"") + sum(len(name) + len(value) + 8 for name, value in record.headers)
    value = len(record.value or b"")
    if value > spec.max_record_bytes or beside > ENVELOPE_BYTES // 2:
        raise RecordTooLarge(
            f"a record of {value} bytes, with {beside} bytes of key and headers, for topic {spec.name}, "
            f"which takes {spec.max_record_bytes} and {ENVELOPE_BYTES // 2}"
        )
    if record.partition is not None and not 0 <= record.partition < spec.partitions:
        raise ConfigError(f"topic {spec.name} has {spec.partitions} partitions, none numbered {record.partition}")
    if record.key is None and record.value is None:
        raise ConfigError(f"a tombstone for topic {spec.name} needs the key it deletes")
    return value + beside
