"""The runtime: runs pure tasks on the partitions of a consumer group, exactly once.

A task knows neither broker nor clock nor how it is committed. For each partition number of its input topics the
runtime opens a transactor (which fences an earlier owner), restores the task from its newest snapshot, rewinds the
input to where the task needs it, and then, again and again: fetches, calls `Task.process`, and writes outputs,
snapshot and input position in one transaction.

When a transaction fails and its outcome is unknown, the task is thrown away and restored from what the log says.
When even that fails, all tasks are, and the group is joined anew: a partition is never left out quietly.
When a transactor is fenced, the process stops: going on would repeat somebody else's work.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from streammon.backoff import Backoff
from streammon.broker import Broker, Member, Outgoing, Polled, Record, TopicPartition, Transactor
from streammon.config import Settings
from streammon.errors import Fatal, RecordTooLarge, Retryable
from streammon.telemetry import CONSUMER_LAG, RECORDS, WATERMARK_LAG, log
from streammon.tick import tick
from streammon.topics import state_topic
from streammon_processors.rules import RulesTask, load_rules
from streammon_processors.windows import WindowTask, sources

POLL_S = 0.1
"""The longest wait for records; also how often idle partitions are looked at."""
BATCH_RECORDS, BATCH_BYTES = 500, 512 * 1024
"""About the most given to a task at once, and committed together: bounds the time the loop is blocked, and the
transaction, which has to end within its timeout. (Kafka takes some 10,000 windows a second; few bytes make many.)"""
COMMIT_S = 1.0
"""A task that only moves on, without output, commits its position this often."""
MEASURE_S = 1.0
BACKOFF = Backoff(longest_s=5.0)
REJOIN_S = 1.0
GRACE_S = 2.0
"""After ``stop``, how long a call to the broker may still take."""


class Task(Protocol):
    """A pure, deterministic computation over the records of one partition number.

    No clock, no I/O, no randomness: the same records in the same order give the same bytes out, however they are cut
    into calls. `tests/contracts/test_task.py` holds every task to that.
    """

    def process(self, topic: str, records: Sequence[Record]) -> list[Outgoing]:
        """Take in the next records of one input topic; what is to be published because of them."""
        ...

    def snapshot(self) -> bytes:
        """What `restore` needs, as of the last published output."""
        ...

    def restore(self, snapshot: bytes) -> None: ...

    def offsets(self) -> Mapping[str, int]:
        """By topic, the first record that has to be given again after `restore`."""
        ...

    @property
    def waiting(self) -> Sequence[str]:
        """The topics in which the passing of time alone would bring output; idle ones get tick records."""
        ...

    def watermarks(self) -> Mapping[str, float]:
        """By topic, how far event time has come, Unix seconds; shown to people, decides nothing."""
        ...


@dataclass(frozen=True)
class Processor:
    """A task, where it reads, and under which name it remembers."""

    name: str
    inputs: tuple[str, ...]
    task: Callable[[int], Task]
    """Makes the task of one partition number."""

    @property
    def group(self) -> str:
        return self.name


def windows_processor(settings: Settings) -> Processor:
    """Events to windows."""
    inputs = tuple(sources(settings.windows))
    return Processor("windows", inputs, lambda partition: WindowTask(partition, settings.windows))


def rules_processor(settings: Settings) -> Processor:
    """Windows to alerts."""
    rules = load_rules(settings.rules.files)
    return Processor("rules", ("windows",), lambda partition: RulesTask(rules, partition))


async def run_processor(broker: Broker, processor: Processor, settings: Settings, *, stop: asyncio.Event) -> None:
    """Be one member of the processor's group until ``stop``.

    Raises:
        Fatal: going on could lose or repeat work; start the process anew.
    """
    await _until_stopped(_memberships(broker, processor, settings, stop), stop)


async def _memberships(broker: Broker, processor: Processor, settings: Settings, stop: asyncio.Event) -> None:
    """One after the other, each with fresh tasks, for as long as the broker is away."""
    while not stop.is_set():
        try:
            await _membership(broker, processor, settings, stop)
        except (_NotRestored, Retryable) as error:
            log.warning("joining the group anew", processor=processor.name, error=str(error))
            await asyncio.sleep(REJOIN_S * random.uniform(0.5, 1.0))


async def _membership(broker: Broker, processor: Processor, settings: Settings, stop: asyncio.Event) -> None:
    runtime = _Runtime(broker, processor, settings)
    member = await broker.member(
        processor.group, processor.inputs, on_assign=runtime.assigned, on_revoke=runtime.revoked
    )
    runtime.member = member
    try:
        while not stop.is_set():
            await runtime.step()
    finally:
        await runtime.revoked(runtime.assignment)
        await member.close()


class _NotRestored(Exception):  # noqa: N818 - names what happened
    """A task was thrown away and could not be restored: to poll on would skip the records of its partition."""


async def _until_stopped(work: Coroutine[Any, Any, None], stop: asyncio.Event) -> None:
    """Do work that ends soon after ``stop``. A call that hangs then is given up, which harms no more than a kill."""
    working, stopped = asyncio.create_task(work), asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({working, stopped}, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.wait({working}, timeout=GRACE_S)
        if working.done():
            await working
        else:
            log.warning("the broker does not answer; what was under way will be repeated")
    finally:
        stopped.cancel()
        working.cancel()
        await asyncio.gather(working, return_exceptions=True)


@dataclass
class _Share:
    """One partition number of all inputs: a task and its transactor."""

    task: Task
    transactor: Transactor
    committed: Mapping[str, int]
    committed_at: float
    last_record_at: dict[str, float] = field(default_factory=dict)


class _Runtime:
    member: Member

    def __init__(self, broker: Broker, processor: Processor, settings: Settings) -> None:
        self._broker = broker
        self._processor = processor
        self._idle_s = settings.windows.idle_tick_s
        self._shares: dict[int, _Share] = {}
        self._failures = 0
        self._measured_at = 0.0
        self._log = log.bind(processor=processor.name)

    # --- assignment -----------------------------------------------------------------------------------------------

    @property
    def assignment(self) -> list[TopicPartition]:
        return [TopicPartition(topic, number) for number in self._shares for topic in self._processor.inputs]

    async def assigned(self, partitions: Sequence[TopicPartition]) -> None:
        """Range assignment gives us the same partition numbers of all inputs."""
        try:
            for number in _numbers(partitions):
                await self._open(number)
        except BaseException:  # all of them are assigned again, perhaps to others: keep none
            await self.revoked(partitions)
            raise
        self._log.info("partitions assigned", partitions=sorted(self._shares))

    async def revoked(self, partitions: Sequence[TopicPartition]) -> None:
        for number in _numbers(partitions):
            share = self._shares.pop(number, None)
            if share is not None:
                await share.transactor.close()
                self._forget_measures(number)

    async def _open(self, number: int) -> None:
        name = self._processor.name
        transactor = await self._broker.transactor(
            self._processor.group, state_topic(name), number, self._processor.inputs
        )
        task = self._processor.task(number)
        try:
            snapshot, offsets = await transactor.restore()
            if snapshot is not None:
                task.restore(snapshot)
        except BaseException:
            await transactor.close()
            raise
        for partition, offset in offsets.items():
            self.member.seek(partition, offset)
        committed = {partition.topic: offset for partition, offset in offsets.items()}
        self._shares[number] = _Share(task, transactor, committed, time.monotonic())

    # --- the loop ---------------------------------------------------------------------------------------------------

    async def step(self) -> None:
        """Fetch once and work through what came; wait and go on when the broker is away."""
        try:
            polled = await self.member.poll(POLL_S)
            shares = dict(self._shares)
            for partition, records in polled.items():
                await self._take_in(shares[partition.partition], partition, records)
            await self._write_ticks(polled)
            await self._measure()
            self._failures = 0
        except Retryable as error:
            self._failures += 1
            pause = BACKOFF.pause_s(self._failures)
            self._log.warning("broker unavailable, trying again", error=str(error), pause_s=round(pause, 2))
            await asyncio.sleep(pause)

    async def _take_in(self, share: _Share, partition: TopicPartition, records: Sequence[Record]) -> None:
        for batch in _batches(records):
            if self._shares[partition.partition] is not share:  # restored since, and rewound: all this comes again
                return
            outputs = share.task.process(partition.topic, batch)
            share.last_record_at[partition.topic] = time.monotonic()
            RECORDS.labels(partition.topic).inc(len(batch))
            await self._commit(partition.partition, share, outputs)

    async def _commit(self, number: int, share: _Share, outputs: list[Outgoing]) -> None:
        """Write what the task has published; if that fails, another task takes its place."""
        offsets = share.task.offsets()
        due = time.monotonic() - share.committed_at >= COMMIT_S and offsets != share.committed
        if not outputs and not due:
            return
        positions = {TopicPartition(topic, number): offset for topic, offset in offsets.items()}
        try:
            await share.transactor.transact(outputs, share.task.snapshot(), positions)
        except RecordTooLarge as error:
            raise Fatal(f"{self._processor.name} made a record that the broker refuses: {error}") from error
        except Retryable as error:
            self._log.warning("transaction failed, restoring from the log", partition=number, error=str(error))
            await self._reopen(number)
        else:
            share.committed, share.committed_at = dict(offsets), time.monotonic()

    async def _reopen(self, number: int) -> None:
        """Forget the task; what the log says happened is what happened."""
        share = self._shares.pop(number)
        await share.transactor.close()
        try:
            await self._open(number)
        except Retryable as error:
            raise _NotRestored(f"partition {number} could not be restored: {error}") from error
        for topic in self._processor.inputs:
            if topic not in self._shares[number].committed:
                self.member.seek(TopicPartition(topic, number), 0)

    async def _write_ticks(self, polled: Polled) -> None:
        """Let time pass in partitions whose task waits for it, and that have nothing left to read."""
        now = time.monotonic()
        idle = [
            TopicPartition(topic, number)
            for number, share in self._shares.items()
            for topic in share.task.waiting
            if TopicPartition(topic, number) not in polled
            and now - share.last_record_at.get(topic, now - self._idle_s) >= self._idle_s
        ]
        if not idle:
            return
        lag = await self.member.lag()
        ticks = [tick(*partition) for partition in idle if not lag.get(partition)]
        if ticks:
            await self._broker.append(ticks)

    async def _measure(self) -> None:
        if time.monotonic() - self._measured_at < MEASURE_S:
            return
        self._measured_at = time.monotonic()
        for partition, records in (await self.member.lag()).items():
            CONSUMER_LAG.labels(self._processor.group, partition.topic, partition.partition).set(records)
        for number, share in self._shares.items():
            waiting = share.task.waiting
            for topic, watermark in share.task.watermarks().items():
                lag = time.time() - watermark if topic in waiting else 0.0  # nothing open: nothing is behind
                WATERMARK_LAG.labels(topic, number).set(lag)

    def _forget_measures(self, number: int) -> None:
        """Somebody else's from now on: a gauge left behind would show an old lag for ever."""
        for topic in self._processor.inputs:
            CONSUMER_LAG.remove(self._processor.group, topic, number)
            WATERMARK_LAG.remove(topic, number)


def _batches(records: Iterable[Record]) -> Iterator[Sequence[Record]]:
    """The records in order, cut where a batch is full."""
    batch: list[Record] = []
    size = 0
    for record in records:
        batch.append(record)
        size += len(record.value or b"")
        if len(batch) >= BATCH_RECORDS or size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _numbers(partitions: Iterable[TopicPartition]) -> list[int]:
    return sorted({partition.partition for partition in partitions})
