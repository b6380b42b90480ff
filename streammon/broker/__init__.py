"""The broker seam: what streammon needs of a log, in four small protocols.

Two implementations keep it, under one contract suite (``tests/contracts/test_broker.py``): Apache Kafka
(`streammon.broker.kafka`) and an embedded log in one SQLite file (`streammon.broker.embedded`).

* `Broker` appends, and opens the other three.
* `Reader` follows topics from a chosen place, for itself alone (tail, page, replay).
* `Member` is one member of a consumer group (processors and sinks).
* `Transactor` is the exactly-once end of one partition of one processor: results, snapshot and input position
  are written together or not at all, and an earlier owner of the partition is fenced.

All reads are *read committed*. Topic names carry no prefix here; the implementations add it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

if TYPE_CHECKING:
    from streammon.config import Settings
    from streammon.topics import TopicSpec

Headers = Sequence[tuple[str, bytes]]


class TopicPartition(NamedTuple):
    """One partition of one topic (name without prefix)."""

    topic: str
    partition: int


class Record(Protocol):
    """A record as read: an element of `streammon.broker.records.Records`, or aiokafka's ``ConsumerRecord``.

    ``timestamp`` is the broker's time of the record, in milliseconds since 1970.
    """

    @property
    def partition(self) -> int: ...
    @property
    def offset(self) -> int: ...
    @property
    def timestamp(self) -> int: ...
    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...
    @property
    def headers(self) -> Headers: ...


class Outgoing(NamedTuple):
    """A record to write. ``partition`` None: chosen from the key (murmur2, as every Kafka client does).

    ``value`` None is a tombstone.
    """

    topic: str
    key: bytes | None
    value: bytes | None
    headers: Headers = ()
    partition: int | None = None


class ClockOffset(NamedTuple):
    """By how much our clock is ahead of the broker's, in seconds, and how far off that may be."""

    offset_s: float
    uncertainty_s: float


Polled = Mapping[TopicPartition, Sequence[Record]]
Start = Literal["earliest", "latest"] | float | Mapping[TopicPartition, int]
"""Where a `Reader` begins: an end of the log, the first record at or after a Unix time in seconds, or the offsets of
some partitions, and then only those are read."""

AssignmentCallback = Callable[[Sequence[TopicPartition]], Awaitable[None]]


class Reader(Protocol):
    """Follows the partitions of some topics, without a group."""

    async def poll(self, max_wait_s: float = 0.5, max_records: int = 2000) -> Polled:
        """The next records by partition, in offset order; empty after ``max_wait_s`` without any."""
        ...

    async def ends(self) -> Mapping[TopicPartition, int]:
        """One past the last committed offset of each partition now: read until `positions` reaches them."""
        ...

    def positions(self) -> Mapping[TopicPartition, int]:
        """The offset of the next record that `poll` would return, per partition."""
        ...

    async def close(self) -> None: ...


class Member(Protocol):
    """One member of a consumer group; partitions come and go through the callbacks given at `Broker.member`.

    The callbacks run inside `poll`, never beside it: revoke is awaited before the partitions may move on, assign
    before the first record of a new partition is returned. A new partition starts at the group's committed offset,
    or at the earliest record, unless `seek` is called in the assign callback.
    """

    async def poll(self, max_wait_s: float = 0.5, max_records: int = 2000) -> Polled: ...

    async def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        """Store, for the group, the next offset to read of each partition. Raises `Retryable`."""
        ...

    def seek(self, partition: TopicPartition, offset: int) -> None: ...
    def pause(self, partition: TopicPartition) -> None: ...
    def resume(self, partition: TopicPartition) -> None: ...

    async def lag(self) -> Mapping[TopicPartition, int]:
        """Records of each assigned partition not yet returned by `poll` (cheap: from what is known locally)."""
        ...

    async def close(self) -> None:
        """Leave the group, so that others take the partitions over at once."""
        ...


class Restored(NamedTuple):
    """Where a partition stands: its newest snapshot, and the group's offsets of its input partitions."""

    snapshot: bytes | None
    offsets: Mapping[TopicPartition, int]


class Transactor(Protocol):
    """Exactly-once writes of one partition of one processor. Opening it fences every earlier owner."""

    async def restore(self) -> Restored: ...

    async def transact(
        self,
        outputs: Sequence[Outgoing],
        snapshot: bytes,
        offsets: Mapping[TopicPartition, int],
    ) -> None:
        """Write outputs, snapshot and input offsets, all or none.

        Raises:
            Fenced: another process owns the partition; stop.
            Retryable: the outcome may be unknown; open a new transactor and `restore`.
            RecordTooLarge: nothing was written.
        """
        ...

    async def close(self) -> None: ...


class Broker(Protocol):
    """A log with topics. One per process; everything else is opened from it."""

    async def create_topics(self, specs: Iterable[TopicSpec], *, if_permitted: bool = False) -> list[str]:
        """Create what does not exist yet; the names created. Existing topics are left as they are.

        ``if_permitted``: those we may not create are left to somebody who may; else they are a `ConfigError`.
        """
        ...

    async def topics(self, *, exact: bool = False) -> Mapping[str, TopicSpec]:
        """The topics with our prefix, as they are; where we may not ask, as we create them.

        ``exact``: not being allowed to ask is a `ConfigError`.
        """
        ...

    async def append(self, records: Sequence[Outgoing]) -> list[int]:
        """Append durably (all replicas; SQLite commit), keeping order per partition; the offsets given.

        Raises `RecordTooLarge`, `Retryable` (unreachable, after the configured time), `ConfigError` (no such topic).
        """
        ...

    async def reader(self, topics: Sequence[str], start: Start = "earliest") -> Reader: ...

    async def committed(self, group: str, topics: Sequence[str]) -> Mapping[TopicPartition, int]:
        """The group's offsets, of the partitions that have one; without joining it."""
        ...

    async def member(
        self,
        group: str,
        topics: Sequence[str],
        *,
        on_assign: AssignmentCallback,
        on_revoke: AssignmentCallback,
    ) -> Member: ...

    async def transactor(self, group: str, state_topic: str, partition: int, inputs: Sequence[str]) -> Transactor:
        """The exactly-once end of partition number ``partition`` of all ``inputs`` topics for this group."""
        ...

    async def backlog_bytes(self) -> int:
        """Bytes accepted by `append` and not yet durable in this process: what back-pressure is judged by."""
        ...

    def clock_offset(self) -> ClockOffset | None:
        """As appends to topics that the broker stamps have shown it; None: not known, or it is the same clock."""
        ...

    async def close(self) -> None: ...


async def connect(settings: Settings) -> Broker:
    """The broker that the settings name: Kafka when ``bootstrap`` is set, else the embedded log."""
    if settings.bootstrap:
        from streammon.broker.kafka import KafkaBroker

        return await KafkaBroker.connect(settings)
    from streammon.broker.embedded import EmbeddedBroker

    return await EmbeddedBroker.open(settings)
