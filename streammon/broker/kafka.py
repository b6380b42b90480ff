"""The broker seam over Apache Kafka (2.5 or newer), by aiokafka.

What it promises, beside the protocols in `streammon.broker`:

- Nothing waits for ever on a broker that is away: every call ends, by an answer or by a `Retryable` that names
  the address. A poll just stays empty, and goes on when the broker is back.
- An append that failed is given up together with its producer: it does not turn up minutes later, after its
  retry. What was on the wire at that moment may have arrived; senders number their batches for that case.
- A rebalance meets `Member.poll` at one place, `_Handover`, which says why nothing deadlocks there.

What it cannot do: keep a deleted topic deleted where the broker creates topics on demand (aiokafka's metadata
requests allow that; we ask only for topics we have seen), or tell a transaction that timed out from one that
was fenced, since Kafka answers both with one code: both are `Fenced`, and the process starts anew.

aiokafka has no public name for some things we need, such as a position that can be read without waiting.
`_state`, `_tasks`, `_is_dead`, `_getmany`, `_stop` and `_discard` are the only places that reach into it.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, ConsumerRebalanceListener
from aiokafka import TopicPartition as KafkaPartition
from aiokafka import errors as kafka_errors
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.coordinator.assignors.range import RangePartitionAssignor
from aiokafka.partitioner import murmur2

from streammon.broker import AssignmentCallback, Outgoing, Polled, Record, Restored, Start, TopicPartition
from streammon.errors import ConfigError, Fatal, Fenced, RecordTooLarge, Retryable, StreammonError
from streammon.topics import TopicSpec

if TYPE_CHECKING:
    from streammon.config import KafkaSettings, Settings

CONNECT_S = 8.0
REQUEST_S = 20.0
REBALANCE_S = 15.0
"""How long a group waits for a member that works on a batch. Joining may take as long, so REQUEST_S is more."""
STOP_S = 3.0
FETCH_WAIT_MS = 100
LINGER_MS = 5
RETRY_MS = 50
LAG_FRESH_S = 2.0
ENVELOPE_BYTES = 64 * 1024
"""Room beside a record's value for key, headers and framing; also the size of a batch, so that all topics take it."""
LARGEST_RECORD_BYTES = 2 * 1024 * 1024 + ENVELOPE_BYTES
FETCH_BYTES = 16 * 1024 * 1024
"""Most bytes of one fetch answer, however many partitions it covers."""
FIRST_LOOK_BACK = 16

FENCED = (
    kafka_errors.ProducerFenced,
    kafka_errors.InvalidProducerEpoch,
    kafka_errors.InvalidProducerIdMapping,
    kafka_errors.TransactionCoordinatorFenced,
)
TOO_LARGE = (kafka_errors.MessageSizeTooLargeError, kafka_errors.RecordListTooLargeError)
REFUSED = (
    kafka_errors.TopicAuthorizationFailedError,
    kafka_errors.GroupAuthorizationFailedError,
    kafka_errors.ClusterAuthorizationFailedError,
    kafka_errors.AuthenticationFailedError,
)


# ---------------------------------------------------------------- reaching Kafka


@dataclass(frozen=True)
class _Cluster:
    """Where Kafka is, how we speak to it, and what its errors mean to us."""

    address: str
    prefix: str
    replication: int
    settings: KafkaSettings

    def name(self, topic: str) -> str:
        return self.prefix + topic

    def theirs(self, partition: TopicPartition) -> Any:
        return KafkaPartition(self.name(partition.topic), partition.partition)

    def ours(self, partition: Any) -> TopicPartition:
        return TopicPartition(partition.topic.removeprefix(self.prefix), partition.partition)

    def admin(self) -> Any:
        return AIOKafkaAdminClient(**self._common())

    def producer(self, **options: Any) -> Any:
        return AIOKafkaProducer(
            **self._common(),
            enable_idempotence=True,
            max_batch_size=ENVELOPE_BYTES,
            max_request_size=LARGEST_RECORD_BYTES,
            partitioner=_partition,
            **options,
        )

    def consumer(self, group: str | None, largest_record_bytes: int) -> Any:
        """A fetch must hold the largest record: aiokafka steps over one that does not fit."""
        return AIOKafkaConsumer(
            **self._common(),
            group_id=group,
            isolation_level="read_committed",
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            partition_assignment_strategy=(RangePartitionAssignor,),
            session_timeout_ms=_ms(self.settings.session_timeout_s),
            heartbeat_interval_ms=_ms(self.settings.heartbeat_s),
            rebalance_timeout_ms=_ms(REBALANCE_S),
            # Heartbeats come from the loop that processes, so they prove life. aiokafka's own idle check
            # would lock a member out for good: who does not fetch cannot rejoin, and we fetch only when joined.
            max_poll_interval_ms=2**31 - 1,
            fetch_max_wait_ms=FETCH_WAIT_MS,
            fetch_max_bytes=FETCH_BYTES,
            max_partition_fetch_bytes=largest_record_bytes + ENVELOPE_BYTES,
        )

    @contextmanager
    def errors(self, doing: str, *, as_owner: bool = False) -> Iterator[None]:
        """Turns what aiokafka raises into our own errors; ``doing`` says what failed, as in "writing".

        ``as_owner``: under a transactional id, where a stale epoch means that another has taken it over.
        """
        try:
            yield
        except (kafka_errors.KafkaError, OSError, TimeoutError) as error:
            raise self._explain(doing, error, as_owner) from error

    def _explain(self, doing: str, error: BaseException, as_owner: bool) -> StreammonError:
        what = f"{doing} at Kafka {self.address}: {str(error) or type(error).__name__}"
        if as_owner and _caused_by(error, FENCED):
            return Fenced(f"{what}; another process owns this partition now")
        if isinstance(error, TOO_LARGE):
            return RecordTooLarge(what)
        if isinstance(error, REFUSED):
            return ConfigError(f"{what}; check the permissions")
        if isinstance(error, kafka_errors.UnknownTopicOrPartitionError):
            # The catalog has seen the topic, and aiokafka says this whenever nobody tells it where a topic is.
            return Retryable(f"{what}; check that the broker runs, and the topics with `streammon topics check`")
        return Retryable(f"{what}; check that the broker runs and that `bootstrap` names it")

    def _common(self) -> dict[str, Any]:
        return {
            "bootstrap_servers": self.address,
            "client_id": self.settings.client_id,
            "request_timeout_ms": _ms(REQUEST_S),
            "retry_backoff_ms": RETRY_MS,
        }


@lru_cache(maxsize=1024)
def _hash(key: bytes) -> int:
    return int(murmur2(key)) & 0x7FFFFFFF


def _partition(key: bytes | None, every: Sequence[int], available: Sequence[int]) -> int:
    """As Kafka's own clients choose. Keys repeat, and the hash, in Python, is a fifth of the cost of a record."""
    if key is None:
        return random.choice(available or every)
    return every[_hash(key) % len(every)]


def _ms(seconds: float) -> int:
    return round(seconds * 1000)


def _caused_by(error: BaseException | None, kinds: tuple[type[BaseException], ...]) -> bool:
    return error is not None and (isinstance(error, kinds) or _caused_by(error.__cause__, kinds))


def _check_address(address: str) -> None:
    for each in address.split(","):
        host, colon, port = each.strip().rpartition(":")
        if not (host and colon and port.isdecimal() and 0 < int(port) < 65536):
            raise ConfigError(f"bootstrap = {address!r}: expected HOST:PORT, several separated by commas")


def _quieten(level: str) -> None:
    """aiokafka logs as errors what it retries by itself; what it cannot retry, it raises, and we explain."""
    logging.getLogger("aiokafka").setLevel(logging.DEBUG if level == "debug" else logging.CRITICAL)


# ---------------------------------------------------------------- topics


class _Catalog:
    """The topics as they are, asked for again when one is missing."""

    def __init__(self, cluster: _Cluster, admin: Any) -> None:
        self._cluster = cluster
        self._admin = admin
        self._specs: dict[str, TopicSpec] = {}

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
            raise ConfigError(f"Kafka {self._cluster.address} has no topic {names}; `streammon topics create` makes it")
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

    async def create(self, specs: Iterable[TopicSpec]) -> list[str]:
        existing = await self.refresh()
        missing = [spec for spec in specs if spec.name not in existing]
        if not missing:
            return []
        with self._cluster.errors("creating topics"):
            async with asyncio.timeout(REQUEST_S):
                reply = await self._admin.create_topics([_new_topic(self._cluster, spec) for spec in missing])
        created = [self._created(name, code, message) for name, code, message in reply.topic_errors]
        await self._await_leaders(missing)
        return [name for name in created if name]

    def _created(self, name: str, code: int, message: str | None) -> str | None:
        error = kafka_errors.for_code(code)
        if error is kafka_errors.NoError:
            return name.removeprefix(self._cluster.prefix)
        if error is kafka_errors.TopicAlreadyExistsError:
            return None
        raise ConfigError(
            f"Kafka {self._cluster.address} refuses to create {name}: {message or error.__name__}; "
            f"check topics.partitions and topics.replication = {self._cluster.replication}"
        )

    async def _await_leaders(self, specs: Sequence[TopicSpec]) -> None:
        """A topic exists when the controller says so, and takes records when its partitions have leaders."""
        names = {self._cluster.name(spec.name) for spec in specs}
        with self._cluster.errors("waiting for the new topics' leaders"):
            async with asyncio.timeout(REQUEST_S):
                while not names <= await self._led():  # noqa: ASYNC110 - Kafka announces it nowhere
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
        return [
            _spec(
                name.removeprefix(self._cluster.prefix),
                partitions[name],
                {key: value for key, value, *_ in config},
            )
            for code, _, _, name, config in reply.resources
            if code == 0
        ]


_DESCRIBED = ("retention.ms", "cleanup.policy", "message.timestamp.type", "max.message.bytes")


def _new_topic(cluster: _Cluster, spec: TopicSpec) -> Any:
    retention_ms = -1 if spec.retention_s is None else _ms(spec.retention_s)
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


# ---------------------------------------------------------------- the broker


class KafkaBroker:
    """`streammon.broker.Broker` over Kafka. Open it with `connect`."""

    def __init__(self, cluster: _Cluster, admin: Any) -> None:
        self._cluster = cluster
        self._admin = admin
        self._catalog = _Catalog(cluster, admin)
        self._appender = _Appender(cluster)

    @classmethod
    async def connect(cls, settings: Settings) -> KafkaBroker:
        """Raises `ConfigError` for an address that is none, `Retryable` after CONNECT_S if nobody answers."""
        assert settings.bootstrap, "without bootstrap there is no Kafka to connect to"
        _check_address(settings.bootstrap)
        _quieten(settings.log_level)
        topics = settings.topics
        cluster = _Cluster(settings.bootstrap, topics.prefix, topics.replication, settings.kafka)
        broker = cls(cluster, cluster.admin())
        try:
            with cluster.errors("connecting"):
                async with asyncio.timeout(CONNECT_S):
                    await broker._admin.start()
                    await broker._catalog.refresh()
        except BaseException:
            await broker.close()
            raise
        return broker

    async def create_topics(self, specs: Iterable[TopicSpec]) -> list[str]:
        return await self._catalog.create(specs)

    async def topics(self) -> Mapping[str, TopicSpec]:
        return await self._catalog.refresh()

    async def append(self, records: Sequence[Outgoing]) -> list[int]:
        return await self._appender.append(records, await self._catalog.check(records))

    async def backlog_bytes(self) -> int:
        return self._appender.backlog_bytes

    async def reader(self, topics: Sequence[str], start: Start = "earliest") -> KafkaReader:
        partitions = [self._cluster.theirs(each) for each in await self._catalog.partitions(topics)]
        consumer = self._cluster.consumer(None, await self._largest(topics))
        consumer.assign(partitions)
        async with _started(self._cluster, consumer, "opening a reader"):
            for partition, offset in (await _starts(consumer, partitions, start)).items():
                consumer.seek(partition, offset)
        return KafkaReader(self._cluster, consumer)

    async def member(
        self,
        group: str,
        topics: Sequence[str],
        *,
        on_assign: AssignmentCallback,
        on_revoke: AssignmentCallback,
    ) -> KafkaMember:
        consumer = self._cluster.consumer(self._cluster.name(group), await self._largest(topics))
        handover = _Handover(self._cluster, on_assign, on_revoke)
        async with _started(self._cluster, consumer, "joining a group"):
            # After the start, which would else wait for the first assignment: other members of this very
            # process may first have to poll for that.
            consumer.subscribe([self._cluster.name(topic) for topic in topics], listener=handover)
        return KafkaMember(self._cluster, consumer, handover)

    async def transactor(self, group: str, state_topic: str, partition: int, inputs: Sequence[str]) -> KafkaTransactor:
        await self._catalog.require({state_topic, *inputs})
        return await KafkaTransactor.open(
            self._cluster, self._catalog, group, TopicPartition(state_topic, partition), inputs
        )

    async def close(self) -> None:
        await self._appender.close()
        await self._admin.close()

    async def _largest(self, topics: Sequence[str]) -> int:
        return max(spec.max_record_bytes for spec in await self._catalog.require(topics))


# ---------------------------------------------------------------- appending


class _Appender:
    """One idempotent producer, opened at the first append, and the count of bytes it has not delivered yet.

    Appends hand over in turn, which keeps their order; they wait for their acknowledgements side by side.
    aiokafka takes one batch a partition beyond those on the wire, so what waits is in the callers' hands.

    aiokafka retries an idempotent batch for ever, and when the broker refuses one, the next of that partition
    is out of sequence. Either way the producer is beyond use: it is discarded with all it holds, every append
    that waits for it fails as retryable, and the next append opens another.
    """

    def __init__(self, cluster: _Cluster) -> None:
        self.backlog_bytes = 0
        self._cluster = cluster
        self._producer: Any = None
        self._turn = asyncio.Lock()

    async def append(self, records: Sequence[Outgoing], size: int) -> list[int]:
        self.backlog_bytes += size
        try:
            with self._cluster.errors("writing"):
                return await self._deliver(records)
        finally:
            self.backlog_bytes -= size

    async def close(self) -> None:
        await self._give_up(self._producer)

    async def _deliver(self, records: Sequence[Outgoing]) -> list[int]:
        producer: Any = None
        sent: list[asyncio.Future[Any]] = []
        try:
            async with asyncio.timeout(self._cluster.settings.delivery_timeout_s):
                async with self._turn:
                    producer = await self._open()
                    for record in records:
                        sent.append(await _send(self._cluster, producer, record))  # noqa: PERF401 - see except
                return [done.offset for done in await asyncio.gather(*sent)]
        except Exception:
            for future in sent:  # also those handed over before the one that failed
                future.cancel()
            await self._give_up(producer)
            raise

    async def _open(self) -> Any:
        if self._producer is None:
            producer = self._cluster.producer(linger_ms=LINGER_MS)
            await _start(producer)
            self._producer = producer
        return self._producer

    async def _give_up(self, producer: Any) -> None:
        """The first to find it broken discards it; to the others it is already gone."""
        if producer is not None and producer is self._producer:
            self._producer = None
            await _discard(producer)


async def _send(cluster: _Cluster, producer: Any, record: Outgoing) -> asyncio.Future[Any]:
    """Hands the record over; the future given back ends when the record is durable."""
    future: asyncio.Future[Any] = await producer.send(
        cluster.name(record.topic),
        value=record.value,
        key=record.key,
        partition=record.partition,
        headers=list(record.headers),
    )
    return future


async def _start(producer: Any) -> None:
    try:
        await producer.start()
    except AssertionError as error:  # its metadata names no broker yet: Kafka is just coming back
        await _discard(producer)
        raise kafka_errors.KafkaConnectionError("Kafka answers, but names no broker yet") from error
    except BaseException:
        await _discard(producer)
        raise


async def _discard(producer: Any) -> None:
    """Stop without delivering what the producer holds; its own ``stop`` would try that for as long as it takes."""
    with suppress(TimeoutError):
        async with asyncio.timeout(STOP_S):
            await producer._sender.close()
    accumulator = producer._message_accumulator
    held = [batch for batches in accumulator._batches.values() for batch in batches]
    accumulator._pending_batches.update(held)  # else the end of a batch sent before stumbles over its absence
    accumulator.fail_all(kafka_errors.KafkaConnectionError("the producer was given up"))
    for batch in held:
        batch._drain_waiter.exception()  # nobody waits for it, and asyncio reports errors nobody looked at
    await producer.stop()


# ---------------------------------------------------------------- reading


@asynccontextmanager
async def _started(cluster: _Cluster, consumer: Any, doing: str) -> AsyncIterator[None]:
    """Start the consumer and run the body, all within CONNECT_S; a failure leaves nothing open."""
    try:
        with cluster.errors(doing):
            async with asyncio.timeout(CONNECT_S):
                await consumer.start()
                yield
    except BaseException:
        await _stop(consumer)
        raise


async def _stop(consumer: Any) -> None:
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


async def _getmany(cluster: _Cluster, consumer: Any, wait_s: float, max_records: int) -> dict[Any, list[Record]]:
    """As aiokafka's, which would stay silent for ever after its fetching task had died."""
    if consumer._fetcher.error_future.done() or _is_dead(consumer._coordinator):
        raise Fatal(f"reading from Kafka {cluster.address} broke down inside aiokafka; start again")
    with cluster.errors("reading"):
        fetched: dict[Any, list[Record]] = await consumer.getmany(timeout_ms=_ms(wait_s), max_records=max_records)
    return fetched


def _is_dead(coordinator: Any) -> bool:
    task = getattr(coordinator, "_coordination_task", None)  # only in a group
    return task is not None and task.done()


async def _starts(consumer: Any, partitions: Sequence[Any], start: Start) -> Mapping[Any, int]:
    if start == "earliest":
        beginnings: Mapping[Any, int] = await consumer.beginning_offsets(partitions)
        return beginnings
    ends: Mapping[Any, int] = await consumer.end_offsets(partitions)
    if start == "latest":
        return ends
    found = await consumer.offsets_for_times(dict.fromkeys(partitions, max(0, _ms(float(start)))))
    # A time after the newest record finds nothing; what it finds may be part of a transaction still open.
    return {each: min(found[each].offset, ends[each]) if found[each] else ends[each] for each in partitions}


def _state(consumer: Any, partition: Any) -> Any:
    """What aiokafka knows of a partition: position, lso (last stable offset), timestamp (ms, of the last fetch)."""
    return consumer._subscription.subscription.assignment.state_value(partition)


class KafkaReader:
    """`streammon.broker.Reader`. Positions step over transaction markers and aborted records, to the very ends."""

    def __init__(self, cluster: _Cluster, consumer: Any) -> None:
        self._cluster = cluster
        self._consumer = consumer
        self._known: dict[TopicPartition, int] = {}

    async def poll(self, max_wait_s: float = 0.5, max_records: int = 2000) -> Polled:
        fetched = await _getmany(self._cluster, self._consumer, max_wait_s, max_records)
        return {self._cluster.ours(partition): records for partition, records in fetched.items()}

    async def ends(self) -> Mapping[TopicPartition, int]:
        with self._cluster.errors("asking for the ends"):
            ends = await self._consumer.end_offsets(list(self._consumer.assignment()))
        return {self._cluster.ours(partition): end for partition, end in ends.items()}

    def positions(self) -> Mapping[TopicPartition, int]:
        for partition in self._consumer.assignment():
            state = _state(self._consumer, partition)
            if state.has_valid_position:  # not while retention has just removed where we stood
                self._known[self._cluster.ours(partition)] = state.position
        return dict(self._known)

    async def close(self) -> None:
        await _stop(self._consumer)


# ---------------------------------------------------------------- groups


class _Handover(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka is untyped
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

    def __init__(self, cluster: _Cluster, on_assign: AssignmentCallback, on_revoke: AssignmentCallback) -> None:
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

    def __init__(self, cluster: _Cluster, consumer: Any, handover: _Handover) -> None:
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
        await _stop(self._consumer)

    def _is_stale(self, partition: Any) -> bool:
        fetched_ms = _state(self._consumer, partition).timestamp
        return fetched_ms is None or time.time() - fetched_ms / 1000 > LAG_FRESH_S

    async def _fetch(self, wait_s: float, max_records: int) -> dict[Any, list[Record]]:
        if not self._handover.open:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._handover.changed.wait(), wait_s)
            return {}
        buffered = await _getmany(self._cluster, self._consumer, 0, max_records)
        if buffered or not wait_s:
            return buffered
        return await self._fetch_interruptibly(wait_s, max_records)

    async def _fetch_interruptibly(self, wait_s: float, max_records: int) -> dict[Any, list[Record]]:
        fetch = asyncio.create_task(_getmany(self._cluster, self._consumer, wait_s, max_records))
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


# ---------------------------------------------------------------- exactly once


class KafkaTransactor:
    """`streammon.broker.Transactor`: one transactional producer for one partition of the state topic.

    The transactional id names the group and the partition of the state topic, because that is what must have
    one writer. (Not the inputs: after an upgrade, an owner that reads one topic more must fence the older one.)

    After any failure but a record refused before it was sent, the transactor is spent.
    """

    def __init__(
        self, cluster: _Cluster, catalog: _Catalog, group: str, state: TopicPartition, inputs: Sequence[str]
    ) -> None:
        self._cluster = cluster
        self._catalog = catalog
        self._group = cluster.name(group)
        self._state = state
        self._inputs = [TopicPartition(topic, state.partition) for topic in inputs]
        self._key = str(state.partition).encode()
        self._spent = False
        self._producer = cluster.producer(
            transactional_id=f"{self._group}-{state.topic}-{state.partition}",
            transaction_timeout_ms=_ms(cluster.settings.transaction_timeout_s),
        )

    @classmethod
    async def open(
        cls, cluster: _Cluster, catalog: _Catalog, group: str, state: TopicPartition, inputs: Sequence[str]
    ) -> KafkaTransactor:
        """Starting the producer fences the earlier owner and ends the transaction it left open."""
        transactor = cls(cluster, catalog, group, state, inputs)
        with cluster.errors("opening a transactor", as_owner=True):
            async with asyncio.timeout(cluster.settings.delivery_timeout_s):
                await _start(transactor._producer)
        return transactor

    async def restore(self) -> Restored:
        [spec] = await self._catalog.require([self._state.topic])
        state = self._cluster.theirs(self._state)
        consumer = self._cluster.consumer(self._group, spec.max_record_bytes)
        consumer.assign([state])
        try:
            with self._cluster.errors("restoring"):
                async with asyncio.timeout(self._cluster.settings.delivery_timeout_s):
                    await consumer.start()
                    return Restored(await self._newest_snapshot(consumer, state), await self._committed(consumer))
        finally:
            await _stop(consumer)

    async def transact(
        self, outputs: Sequence[Outgoing], snapshot: bytes, offsets: Mapping[TopicPartition, int]
    ) -> None:
        if self._spent:
            raise Retryable("this transactor failed before; open a new one and restore")
        state = Outgoing(self._state.topic, self._key, snapshot, partition=self._state.partition)
        records = [*outputs, state]
        await self._catalog.check(records)
        self._spent = True
        with self._cluster.errors(f"writing a transaction of {self._state}", as_owner=True):
            async with asyncio.timeout(self._cluster.settings.transaction_timeout_s):
                await self._write(records, offsets)
        self._spent = False

    async def close(self) -> None:
        await _discard(self._producer)

    async def _write(self, records: Sequence[Outgoing], offsets: Mapping[TopicPartition, int]) -> None:
        """Awaits every record before the commit: aiokafka would commit without one that the broker refused."""
        await self._producer.begin_transaction()
        try:
            waiting: list[Any] = [await _send(self._cluster, self._producer, record) for record in records]
            if offsets:
                theirs = {self._cluster.theirs(each): at for each, at in offsets.items()}
                waiting.append(self._producer.send_offsets_to_transaction(theirs, self._group))
            await asyncio.gather(*waiting)
        except kafka_errors.KafkaError:
            await self._abort()
            raise
        await self._producer.commit_transaction()

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


async def _read(consumer: Any, partition: Any, start: int, end: int) -> list[Record]:
    consumer.seek(partition, start)
    records: list[Record] = []
    while await consumer.position(partition) < end:
        fetched = await consumer.getmany(timeout_ms=FETCH_WAIT_MS)
        records.extend(fetched.get(partition, ()))
    return records
