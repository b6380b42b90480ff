"""Verification: a replay compared with what was published, record by record and byte for byte.

A processor may be at work meanwhile. What is published follows from what had been read before, so `verify` asks first
how far the processor is, then where its results end, and last where the log does. What follows from records before the
first of these places must be there; what is there must follow from the log; what is in between is `Verdict.PENDING`.

Order is that of each partition and input topic: between the topics that a task reads, or writes, there is none. Of a
topic whose `Output` has ``elements``, those are compared, in any order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Hashable, Iterable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from enum import StrEnum
from hashlib import blake2b
from typing import NamedTuple

import msgspec

from streammon.broker import Broker, Outgoing, TopicPartition
from streammon.broker.reading import Places, read
from streammon.errors import ConfigError
from streammon_processors.replay import Range, Replay, bounds, prepare
from streammon_processors.task import Processor

CLOCKS_S = 60.0
"""How far the clocks of brokers and processors may be apart, when the published records are looked for by time."""


class Verdict(StrEnum):
    """What a record is, of those that were published or should have been. Only the first three are differences."""

    MISSING = "missing"  # follows from the log, and is not there
    UNEXPECTED = "unexpected"  # is there, and does not follow from the log; or once more than it should
    MISPLACED = "misplaced"  # is there, but before a record that it follows
    IDENTICAL = "identical"
    PENDING = "pending"  # the processor has not come so far yet
    REPLACED = "replaced"  # compaction may have removed it: there is a record with its key


DIFFERENCES = (Verdict.MISSING, Verdict.UNEXPECTED, Verdict.MISPLACED)


class Fingerprint(NamedTuple):
    """A result without its value: what it takes to find it among the others, and to tell a person of it."""

    topic: str
    partition: int
    key: bytes | None
    time_unix_s: float
    digest: bytes

    @classmethod
    def of(cls, record: Outgoing, partition: int, time_unix_s: float) -> Fingerprint:
        content = msgspec.msgpack.encode((record.value, tuple(record.headers)))
        return cls(record.topic, partition, record.key, time_unix_s, blake2b(content, digest_size=16).digest())


class Expected(NamedTuple):
    """What should have been published, after what else, and whether it should be there by now."""

    result: Fingerprint
    order: Hashable | None
    """After whatever else has the same; None: in any order."""
    due: bool


class Judged(NamedTuple):
    """One result about the range, and what was found."""

    verdict: Verdict
    result: Fingerprint


def compare(
    expected: Sequence[Expected], published: Iterable[Fingerprint], replaced: Collection[bytes | None]
) -> Iterator[Judged]:
    """What became of each result of a partition; ``replaced``: the keys whose older records may be gone."""
    places: dict[Fingerprint, deque[int]] = {}
    for place, each in enumerate(expected):
        places.setdefault(each.result, deque()).append(place)
    newest: dict[Hashable, int] = {}
    for result in published:
        if not places.get(result):
            yield Judged(Verdict.UNEXPECTED, result)
            continue
        place = places[result].popleft()
        order = expected[place].order
        before = newest.get(order, -1) if order is not None else -1
        if order is not None:
            newest[order] = max(place, before)
        yield Judged(Verdict.IDENTICAL if place > before else Verdict.MISPLACED, result)
    for place in sorted(place for left in places.values() for place in left):
        yield Judged(_absence(expected[place], replaced), expected[place].result)


def _absence(expected: Expected, replaced: Collection[bytes | None]) -> Verdict:
    if not expected.due:
        return Verdict.PENDING
    return Verdict.REPLACED if expected.result.key in replaced else Verdict.MISSING


@dataclass(frozen=True)
class Verification:
    """A prepared comparison: the replay, how far the processor is, and where its results lie. See `verify`."""

    replay: Replay
    committed: Places
    starts: Places
    ends: Places

    async def partition(self, number: int) -> list[Judged]:
        """What became of each result of a partition; some 500 bytes of memory each."""
        expected = []
        async with aclosing(self.replay.partition(number, cuts=self.committed)) as replayed:
            async for each in replayed:
                if (elements := self._elements(each.record, number)) is not None:
                    expected += [Expected(element, None, not each.beyond) for element in elements]
                    continue
                due = each.read_to <= self.committed.get(each.input, 0)
                order = self._order(each.input, each.record)
                expected.append(Expected(Fingerprint.of(each.record, number, each.time_unix_s), order, due))
        published, replaced = await self._published(number)
        return list(compare(expected, published, replaced))

    def _order(self, source: TopicPartition, record: Outgoing) -> Hashable:
        """That of each topic that follows from one; where keys choose the partitions, of each key."""
        moving = any(each.by_key for each in self.replay.processor.outputs if each.topic == record.topic)
        return source, record.topic, record.key if moving else None

    def _elements(self, record: Outgoing, number: int) -> list[Fingerprint] | None:
        """Those of a result that are about the range, if no more than elements is promised of its topic."""
        elements = self.replay.processor.elements(record.topic, record.value)
        if elements is None:
            return None
        parts = ((time, record._replace(value=part, headers=())) for time, part in elements)
        return [Fingerprint.of(part, number, time) for time, part in parts if time in self.replay.range]

    async def _published(self, number: int) -> tuple[list[Fingerprint], set[bytes | None]]:
        """The results that are there, and the keys for which compaction may have left only the newest."""
        processor, range_ = self.replay.processor, self.replay.range
        compacted = {output.topic for output in processor.outputs if output.compact}
        published, replaced = [], set()
        alone = len(self.replay.origins) == 1  # then all that it writes follows from the one, wherever it lies
        starts = {each: start for each, start in self.starts.items() if alone or each.partition == number}
        topics = [each.topic for each in starts]
        async with aclosing(read(self.replay.broker, topics, starts, self.ends)) as batches:
            async for partition, records in batches:
                for record in records:
                    there = Outgoing(partition.topic, record.key, record.value, record.headers)
                    time = processor.time_of(partition.topic, record.value)
                    if (elements := self._elements(there, number)) is not None:
                        published += elements
                    elif time is not None and time in range_:
                        published.append(Fingerprint.of(there, number, time))
                    if partition.topic in compacted:
                        replaced.add(record.key)
        return published, replaced


async def verify(broker: Broker, processor: Processor, range_: Range, *, max_future_s: float) -> Verification:
    """Prepare to compare; the order of the questions matters.

    Raises:
        ConfigError: its results cannot be told apart by the partition that they follow from.
    """
    moving = next((each for each in processor.outputs if each.by_key or each.partition is not None), None)
    specs = await broker.topics()
    if moving and {specs[name].partitions for name in processor.inputs if name in specs} != {1}:
        where = "the partitions of its keys" if moving.by_key else f"partition {moving.partition}"
        raise ConfigError(
            f"{processor.name} writes to {where}, so that each partition of {moving.topic} "
            "follows from all partitions of its inputs; it cannot be verified, but replayed"
        )
    committed = await broker.committed(processor.group, processor.inputs)
    topics = sorted(processor.written_topics)
    starts, ends = await bounds(broker, topics, max(0.0, range_.from_unix_s - max_future_s - CLOCKS_S))
    replay = await prepare(broker, processor, range_, max_future_s=max_future_s)
    return Verification(replay, committed, starts, ends)
