"""Replay: what a processor says about a range of time, once more from the log, beside everything that runs.

`prepare` decides for each partition where to begin. `Replay.partition` feeds the processor's own task from there to
where the log ended, and gives those of its results that are about the range; `streammon_processors.verification`
compares them with what was published. Nothing joins a group, and nothing is written.

How a replay equals what was published, byte for byte
-----------------------------------------------------
* A task is a function of the log and of its memory, so it is given the memory that it had: the newest snapshot of the
  `history` before which nothing about the range was published. That is so where event time, as the restored task knows
  it of every input, had not passed the start of the range.
* A task without event time publishes nothing that is further ahead of the broker's clock than an event may be
  (``windows.max_future_s``); for it the time of the snapshot decides.
* Where no snapshot is old enough, a fresh task begins with the first record there is, as the processor once did.
* The log is read to its end, because a late event may add to any window.

What it cannot do: repeat what retention has taken (`Beginning.CUT`; it says so), or what other settings or another
version would have published. Dead letters are not part of it: they are about records, not about times.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncGenerator, Collection, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType
from typing import NamedTuple

from streammon.broker import Broker, Outgoing, Record, Start, TopicPartition
from streammon.broker.reading import Places, read, unread
from streammon.telemetry import log
from streammon.topics import SNAPSHOTS
from streammon_processors.journal import recover
from streammon_processors.task import Processor, Task, close, in_steps, outputs_of

BATCH_RECORDS = 500
MERGE_MS = 1000
"""What is read together is merged by the broker's time, in whole seconds: batches stay long."""


@dataclass(frozen=True)
class Range:
    """The times from the first to before the second, Unix seconds."""

    from_unix_s: float
    to_unix_s: float

    def __contains__(self, time_unix_s: float) -> bool:
        return self.from_unix_s <= time_unix_s < self.to_unix_s


class Beginning(StrEnum):
    """Where the replay of a partition begins, and whether it therefore equals what was published."""

    SNAPSHOT = "snapshot"  # of before the range: equal
    START = "start of the log"  # all there ever was: equal
    CUT = "cut log"  # retention took records that the processor had read: an approximation


@dataclass(frozen=True)
class Origin:
    """Where one partition begins: a snapshot, if there is one, and the first record of each input."""

    beginning: Beginning
    offsets: Places
    snapshot: bytes | None = None
    taken_unix_s: float | None = None

    @property
    def exact(self) -> bool:
        return self.beginning is not Beginning.CUT


class Replayed(NamedTuple):
    """A result about the range; the input it came from, and how far that had been read."""

    record: Outgoing
    time_unix_s: float
    input: TopicPartition
    read_to: int
    beyond: bool
    """Something behind one of the cuts had been read, of any input."""


# ---------------------------------------------------------------- the replay


async def prepare(broker: Broker, processor: Processor, range_: Range, *, max_future_s: float) -> Replay:
    """Decide where each partition begins and ends."""
    kept = await _snapshots(broker, processor.name)
    journals = await _journals(broker, processor)
    firsts, ends = await bounds(broker, processor.inputs, "earliest")
    origins = {}
    for number in sorted({partition.partition for partition in ends}):
        mine = {each: first for each, first in firsts.items() if each.partition == number}
        known_from = journals.get(number, 0.0)
        origins[number] = _origin(processor, number, kept.get(number, ()), known_from, mine, range_, max_future_s)
    return Replay(broker, processor, range_, origins, ends)


class Kept(NamedTuple):
    """A snapshot of the history, and when the broker got it."""

    taken_unix_s: float
    snapshot: bytes


def _origin(
    processor: Processor,
    number: int,
    kept: Iterable[Kept],
    known_from: float,
    firsts: Places,
    range_: Range,
    max_future_s: float,
) -> Origin:
    for taken_unix_s, snapshot in sorted(kept, reverse=True):
        task = _restored(processor.task(number), snapshot)
        if task and is_before(task, processor.inputs, range_.from_unix_s, taken_unix_s + max_future_s):
            offsets = {each: task.offsets().get(each.topic, 0) for each in firsts}
            whole = _holds(firsts, offsets) and taken_unix_s >= known_from
            beginning = Beginning.SNAPSHOT if whole else Beginning.CUT
            there = {each: max(offset, firsts[each]) for each, offset in offsets.items()}
            return Origin(beginning, there, snapshot, taken_unix_s)
    whole = _holds(firsts, dict.fromkeys(firsts, 0))
    return Origin(Beginning.START if whole else Beginning.CUT, firsts)


def _restored(task: Task, snapshot: bytes) -> Task | None:
    """The task as of the snapshot; None where another version has left one that this one cannot read."""
    try:
        task.restore(snapshot)
    except Exception as error:  # whatever a task may make of it
        log.warning("a kept snapshot cannot be read, looking for an older one", error=str(error))
        return None
    return task


def is_before(task: Task, inputs: Iterable[str], start_unix_s: float, latest_unix_s: float) -> bool:
    """Whether a task has published nothing about ``start`` or later: at ``latest``, where it cannot say."""
    heard = [topic for topic in inputs if topic in task.offsets()]
    return all(task.watermarks().get(topic, latest_unix_s) <= start_unix_s for topic in heard)


def _holds(firsts: Places, offsets: Places) -> bool:
    return all(firsts[each] <= offset for each, offset in offsets.items())


async def _journals(broker: Broker, processor: Processor) -> Mapping[int, float]:
    """By partition, from which time on the journal holds all that a task knew; always, where it is not listed."""
    if processor.journal is None or processor.journal not in await broker.topics():
        return {}
    firsts, ends = await bounds(broker, [processor.journal], "earliest")
    cut = {place: first for place, first in firsts.items() if 0 < first < ends[place]}
    since = {place.partition: await _first_time(broker, place, first) for place, first in cut.items()}
    return {number: time + (processor.journal_s or 0.0) for number, time in since.items()}


async def _first_time(broker: Broker, place: TopicPartition, first: int) -> float:
    """The broker's time of the first record from an offset on."""
    async with aclosing(read(broker, [place.topic], {place: first})) as batches:
        async for _, records in batches:
            if records:
                return records[0].timestamp / 1000
    return 0.0


async def _snapshots(broker: Broker, processor: str) -> Mapping[int, Collection[Kept]]:
    """By partition, the snapshots that are kept of a processor."""
    if SNAPSHOTS not in await broker.topics():
        return {}
    kept: dict[int, dict[bytes, Kept]] = {}
    async with aclosing(read(broker, [SNAPSHOTS])) as batches:
        async for partition, records in batches:
            for record in records:
                if record.key and record.key.startswith(f"{processor}/".encode()):
                    slots = kept.setdefault(partition.partition, {})
                    slots[record.key] = Kept(record.timestamp / 1000, record.value or b"")
    return {number: slots.values() for number, slots in kept.items()}


@dataclass(frozen=True)
class Replay:
    """A prepared replay: where it begins (`origins`, by partition) and ends. See `prepare`."""

    broker: Broker
    processor: Processor
    range: Range
    origins: Mapping[int, Origin]
    ends: Places

    async def partition(self, number: int, cuts: Places = MappingProxyType({})) -> AsyncGenerator[Replayed]:
        """The results about the range, in the order in which they follow from each input.

        No batch goes across one of the ``cuts``, so it is known which results follow from what was before it.
        """
        origin = self.origins[number]
        task = self.processor.task(number)
        if origin.snapshot is not None:
            task.restore(origin.snapshot)
            await recover(self.broker, self.processor, number, task)
        beyond = False
        try:
            async with aclosing(merged(self.broker, origin.offsets, self.ends, cuts)) as batches:
                async for partition, records in batches:
                    beyond = beyond or records[0].offset >= cuts.get(partition, 0)
                    for output in outputs_of(in_steps(task, partition.topic, records)):
                        time = self._time(output)
                        if time is not None:
                            yield Replayed(output, time, partition, records[-1].offset + 1, beyond)
        finally:
            close(task)

    def _time(self, output: Outgoing) -> float | None:
        """The time that a result is about, or one of its elements; None if that is not in the range."""
        elements = self.processor.elements(output.topic, output.value)
        times = [self.processor.time_of(output.topic, output.value)] if elements is None else [at for at, _ in elements]
        return next((time for time in times if time is not None and time in self.range), None)


# ---------------------------------------------------------------- reading


async def bounds(broker: Broker, topics: Sequence[str], start: Start) -> tuple[Places, Places]:
    """Where ``start`` is in each partition, and where they end now."""
    reader = await broker.reader(topics, start)
    try:
        ends = await reader.ends()
        return {each: reader.positions().get(each, 0) for each in ends}, ends
    finally:
        await reader.close()


async def merged(
    broker: Broker, offsets: Places, ends: Places, cuts: Places = MappingProxyType({})
) -> AsyncGenerator[tuple[TopicPartition, list[Record]]]:
    """Batches of the records of some partitions, about in the order in which the broker got them."""
    reader = await broker.reader([each.topic for each in offsets], offsets)
    waiting = {each: deque[Record]() for each in offsets}
    try:
        while True:
            if any(not waiting[each] for each in unread(reader, ends)):
                for partition, records in (await reader.poll()).items():
                    waiting[partition].extend(record for record in records if record.offset < ends[partition])
            elif any(waiting.values()):
                yield _oldest(waiting, cuts)
            else:
                return
    finally:
        await reader.close()


def _oldest(waiting: Mapping[TopicPartition, deque[Record]], cuts: Places) -> tuple[TopicPartition, list[Record]]:
    """A batch of the partition whose next record is the oldest. However it is fetched, records come in one order."""
    heads = sorted((_second(queue[0]), partition) for partition, queue in waiting.items() if queue)
    partition = heads[0][1]
    queue, cut = waiting[partition], cuts.get(partition, 0)
    batch = [queue.popleft()]
    while queue and len(batch) < BATCH_RECORDS and all((_second(queue[0]), partition) < each for each in heads[1:2]):
        if batch[-1].offset < cut <= queue[0].offset:
            break
        batch.append(queue.popleft())
    return partition, batch


def _second(record: Record) -> int:
    return record.timestamp // MERGE_MS
