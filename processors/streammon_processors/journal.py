"""Journals: the memory of a task that is too large for a snapshot, as records of a topic.

A `Journaled` task puts every change of its memory into the topic ``journal.NAME``, same partition, in the transaction
of its outputs and snapshot. The records of a partition are a *chain*: each has its number and the digest of the one
before, and the snapshot has the number and the digest of the last. So a task that reads the journal knows when it has
all, and that it is what belongs to its snapshot: not that of another life (a state topic that was deleted), of another
cluster, or with a gap. A chain may begin anywhere, because retention takes what is too old to matter.
"""

from __future__ import annotations

from contextlib import aclosing
from enum import Enum, auto
from hashlib import blake2b

from msgspec import Struct

from streammon.broker import Broker, TopicPartition
from streammon.broker.reading import read
from streammon.errors import ConfigError
from streammon.topics import state_topic
from streammon_processors.task import Journaled, Processor, Task

DIGEST_BYTES = 16


class Link(Struct, array_like=True, frozen=True):
    """A place in a chain: the number of a record, from 1, and its digest. The first has the `BEGINNING` before it."""

    number: int
    digest: bytes

    def next(self, value: bytes) -> Link:
        """The place after one more record."""
        return Link(self.number + 1, blake2b(value, digest_size=DIGEST_BYTES).digest())


BEGINNING = Link(0, bytes(DIGEST_BYTES))


class Turn(Enum):
    """What a record is to whoever follows a chain."""

    SKIP = auto()  # known already, of another chain, or of later
    BEGIN = auto()  # where all that is known begins
    NEXT = auto()


class Trail:
    """Follows a chain to its ``target``: from a place, or, if that is None, from wherever it begins."""

    def __init__(self, at: Link | None, target: Link) -> None:
        self.at = at
        self._from_anywhere = at is None
        self._target = target

    def follow(self, before: Link, value: bytes) -> Turn:
        """What the next record is, which says that it stands after ``before``."""
        if self.is_done or before.number >= self._target.number or not (before == self.at or self._from_anywhere):
            return Turn.SKIP
        turn = Turn.NEXT if before == self.at else Turn.BEGIN
        self.at = before.next(value)
        return turn

    @property
    def is_done(self) -> bool:
        return self.at == self._target

    @property
    def is_empty(self) -> bool:
        """There was no record at all."""
        return self._from_anywhere and self.at is None


async def recover(broker: Broker, processor: Processor, number: int, task: Task) -> None:
    """Give a restored task its journal, if it has one: what it lacks, and everything if that is not enough.

    Raises:
        ConfigError: the journal does not lead to the snapshot.
        Retryable: the broker is away.
    """
    if processor.journal is None or not isinstance(task, Journaled):
        return
    place = TopicPartition(processor.journal, number)
    for _ in range(2):
        since = task.recover_from()
        if since is None:
            return
        start, end = await _bounds(broker, place, since)
        if start < end:
            async with aclosing(read(broker, [place.topic], {place: start}, {place: end})) as batches:
                async for _, records in batches:
                    task.recover(records)
        if task.recovered():
            return
    raise ConfigError(
        f"the topic {place.topic} does not lead to what the snapshot of partition {number} in "
        f"{state_topic(processor.name)} says: one of them was deleted or is another cluster's. Stop all members, "
        f"delete both topics and the group {processor.name} (topics.prefix before each), and start: it begins anew"
    )


async def _bounds(broker: Broker, place: TopicPartition, since: float) -> tuple[int, int]:
    """Where a time is in a partition, and where that ends now."""
    reader = await broker.reader([place.topic], since or "earliest")
    try:
        return reader.positions().get(place, 0), (await reader.ends())[place]
    finally:
        await reader.close()
