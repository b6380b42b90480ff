"""The runtime: runs pure tasks on the partitions of a consumer group, exactly once.

A task knows neither broker nor clock nor how it is committed. For each partition number of its input topics the
runtime opens a transactor (which fences an earlier owner), restores the task from its newest snapshot, rewinds the
input to where the task needs it, and then, again and again: fetches, calls `Task.process`, and writes outputs,
snapshot and input position in one transaction.

Writing goes on beside the task, one transaction at a time for each partition: who is behind writes seldom and much. A
partition whose writing is slow is paused; the others, and the membership, know nothing of it.

When a transaction fails and its outcome is unknown, the task is thrown away and restored from what the log says.
When even that fails, all tasks are, and the group is joined anew: a partition is never left out quietly.
When a transactor is fenced, the process stops: going on would repeat somebody else's work. And nothing is committed
any more of a partition whose task or transaction has raised: its outputs and its snapshot may not belong together.
"""

from __future__ import annotations

import asyncio
import gc
import random
import time
from collections import deque
from collections.abc import Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from streammon.backoff import Backoff
from streammon.broker import Broker, Member, Outgoing, Polled, Record, TopicPartition, Transactor
from streammon.broker.records import Records
from streammon.config import Settings
from streammon.errors import ConfigError, Fatal, RecordTooLarge, Retryable
from streammon.telemetry import CONSUMER_LAG, RECORDS, WATERMARK_LAG, log
from streammon.tick import tick
from streammon.topics import state_topic
from streammon_processors.history import History
from streammon_processors.rollups import RollupTask
from streammon_processors.rules import Rules, RulesTask, load_rules
from streammon_processors.task import Output, Processor, Step, Task, in_steps, time_field
from streammon_processors.windows import WindowTask, sources

POLL_S, POLL_RECORDS = 0.1, 10_000
"""The longest wait for records, also how often idle partitions are looked at; and the most taken at once."""
BATCH_RECORDS, BATCH_BYTES = 4000, 1024 * 1024
"""About the most given to a task at once: bounds the time for which the event loop is blocked."""
FIRST_RECORDS, QUICK_S, SLOW_S = 250, 0.2, 1.0
"""How many are given to a new task, for a short record may hold very many events; twice as many after a batch that was
quick, half as many after one that was slow."""
WORK_S = 10.0
"""After this long, and a turn of each partition, the rest of a poll is given back, to be fetched again: who does not
poll loses its partitions."""
BREATH_S = 0.02
"""How long a task may work between two looks at everything else, if it works in steps."""
BEHIND_S = 2.0
"""How often who is behind writes. A transaction costs 3 ms of CPU time, however little is in it: as much as the windows
of 1,500 events."""
WAITING_BYTES = 4 * 1024 * 1024
"""A partition with more output than this still to be written is not read on: bounds memory, and the transaction,
which has to end within its timeout. (Kafka takes some 10,000 windows of a kilobyte a second.)"""
STEPS_BYTES = 4 * WAITING_BYTES
"""The same within a batch, for tasks that work in steps; all partitions wait then."""
COMMIT_S = 1.0
"""A task that only moves on, without output, commits its position this often."""
ROLLUPS_TICK_S = 5.0
"""Rollups have no use for four ticks a second: an hour's window is open for an hour, and their patience is 10 s."""
MEASURE_S = 1.0
BACKOFF = Backoff(longest_s=5.0)
REJOIN_S = 1.0
GARBAGE_S = 1.0
GRACE_S = 2.0
"""After ``stop``, how long a call to the broker may still take."""


def windows_processor(settings: Settings) -> Processor:
    """Events to windows."""
    inputs = tuple(sources(settings.windows))
    outputs = (Output("windows", time_field("start_unix_s", lacking="of_s")),)
    return Processor("windows", inputs, lambda partition: WindowTask(partition, settings.windows), outputs)


def rollups_processor(settings: Settings) -> Processor:
    """Windows to longer windows: those of the configuration, and those that its rules ask for."""
    asked = _rules(settings).asked
    RollupTask(0, settings.windows, asked)  # what cannot be made is found before anything is started
    outputs = (Output("windows", time_field("start_unix_s", having="of_s")),)
    tick_s = max(settings.windows.idle_tick_s, ROLLUPS_TICK_S)
    return Processor(
        "rollups",
        ("windows",),
        lambda partition: RollupTask(partition, settings.windows, asked),
        outputs,
        idle_tick_s=tick_s,
    )


def rules_processor(settings: Settings) -> Processor:
    """Windows to alerts."""
    rules = _rules(settings)
    outputs = (Output("alerts", time_field("updated_unix_s"), compact=True),)
    return Processor("rules", ("windows",), lambda partition: RulesTask(rules, partition), outputs)


def _rules(settings: Settings) -> Rules:
    return load_rules(settings.rules.files, settings.windows.inference_distributions)


async def run_processor(broker: Broker, processor: Processor, settings: Settings, *, stop: asyncio.Event) -> None:
    """Be one member of the processor's group until ``stop``.

    Raises:
        Fatal: going on could lose or repeat work; start the process anew.
        ConfigError: the state in the log is another version's; says what to do.
    """
    await _until_stopped(_memberships(broker, processor, settings, stop), stop)


async def _memberships(broker: Broker, processor: Processor, settings: Settings, stop: asyncio.Event) -> None:
    """One after the other, each with fresh tasks, for as long as the broker is away."""
    while not stop.is_set():
        try:
            await _membership(broker, processor, settings, stop)
        except (_NotRestored, Retryable) as error:
            log.warning("joining the group anew", processor=processor.name, error=str(error))
            _collect_garbage_soon()
            await asyncio.sleep(REJOIN_S * random.uniform(0.5, 1.0))


async def _membership(broker: Broker, processor: Processor, settings: Settings, stop: asyncio.Event) -> None:
    runtime = _Runtime(broker, processor, settings, stop)
    member = await broker.member(
        processor.group, processor.inputs, on_assign=runtime.assigned, on_revoke=runtime.revoked
    )
    runtime.member = member
    try:
        while not stop.is_set():
            await runtime.step()
    finally:
        try:
            await runtime.revoked(runtime.assignment)
        finally:
            await member.close()


def _collect_garbage_soon() -> None:
    """Once nobody looks at what has failed any more.

    An exception and the frames it came through are a reference cycle, on which a task with all its windows hangs, and
    garbage is collected seldom in our programs.
    """
    asyncio.get_running_loop().call_later(GARBAGE_S, gc.collect)


class _NotRestored(Exception):  # noqa: N818 - names what happened
    """A partition is not where its task is: to poll on would skip records of it."""


@contextmanager
def _nothing_left_out() -> Iterator[None]:
    """Whoever went on after this has failed would skip what was fetched."""
    try:
        yield
    except Retryable as error:
        raise _NotRestored(str(error)) from error


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
    """One partition number of all inputs: a task, and what it has put out and is not yet written."""

    number: int
    task: Task
    transactor: Transactor
    history: History
    committed: Mapping[str, int]
    committed_at: float
    last_record_at: dict[str, float] = field(default_factory=dict)
    outputs: list[Outgoing] = field(default_factory=list)
    waiting_bytes: int = 0
    newest_s: float = 0.0  # the broker's time of the last record
    writing: asyncio.Task[None] | None = None
    paused: bool = False
    behind: bool = False  # the member's last poll brought more than a batch
    leaving: bool = False
    failed: bool = False  # of what this task has made, nothing more may be committed
    most: int = field(default_factory=lambda: FIRST_RECORDS)  # given to the task at once
    began_at: float = field(default_factory=time.monotonic)  # the last transaction

    def process(self, topic: str, batch: Sequence[Record]) -> Iterator[int | None]:
        """Give records to the task, a step at a time: see `Step.taken`. Its snapshot then fits what it has put out."""
        if self.committed and not self.newest_s:
            self.history.begin(batch[0].timestamp / 1000)
        steps = in_steps(self.task, topic, batch)
        while (step := self._next(steps)) is not None:
            self.outputs += step.outputs
            self.waiting_bytes += sum(len(output.value or b"") for output in step.outputs)
            if self.waiting_bytes > WAITING_BYTES:
                self.write()
            if step.taken:
                self.newest_s = batch[step.taken - 1].timestamp / 1000
            yield step.taken
        self.last_record_at[topic] = time.monotonic()
        self.write()

    def _next(self, steps: Iterator[Step]) -> Step | None:
        try:
            return next(steps, None)
        except BaseException:
            self.failed = True
            raise

    def write(self) -> None:
        """Start writing what is there to be written, unless that is under way or something has failed."""
        if not self.failed and not self.is_writing and self._is_due:
            self.writing = asyncio.create_task(self._write())

    @property
    def is_writing(self) -> bool:
        return self.writing is not None and not self.writing.done()

    @property
    def _is_due(self) -> bool:
        """Outputs are due at once, but for who is behind; a position without outputs is now and then."""
        now = time.monotonic()
        if not self.outputs:
            moved_on = self.task.offsets() != self.committed
            return moved_on and (self.leaving or now - self.committed_at >= COMMIT_S)
        may_wait = self.behind and not self.leaving and self.waiting_bytes <= WAITING_BYTES // 2
        return not may_wait or now - self.began_at >= BEHIND_S or self.history.is_due(self.newest_s)

    async def _write(self) -> None:
        """Transactions, one after the other, until all is written: each takes what came during the one before.

        The task goes on meanwhile. It is between two steps whenever this runs, so its snapshot fits the outputs.
        """
        try:
            while self._is_due:
                await self._transact()
        except BaseException:
            self.failed = True
            raise

    async def _transact(self) -> None:
        self.began_at = time.monotonic()
        outputs, self.outputs = self.outputs, []
        written_bytes, offsets = self.waiting_bytes, dict(self.task.offsets())
        snapshot = self.task.snapshot()
        kept = self.history.keep(snapshot, self.newest_s)
        positions = {TopicPartition(topic, self.number): offset for topic, offset in offsets.items()}
        await self.transactor.transact([*outputs, *kept], snapshot, positions)
        self.waiting_bytes -= written_bytes
        self.committed, self.committed_at = offsets, time.monotonic()

    def written(self) -> None:
        """Take note of writing that has ended; raises what it raised."""
        if self.writing is not None and self.writing.done():
            writing, self.writing = self.writing, None
            writing.result()

    def adapt(self, took_s: float) -> None:
        """The next batch to how long the last one took."""
        if took_s < QUICK_S:
            self.most = min(2 * self.most, BATCH_RECORDS)
        elif took_s > SLOW_S:
            self.most = max(self.most // 2, 1)

    async def room(self) -> None:
        """Wait while far too much is to be written."""
        while self.waiting_bytes > STEPS_BYTES and self.writing is not None and self.is_writing:
            await asyncio.wait({self.writing})

    async def finish(self) -> None:
        """Write what waits, so that the next owner need not make it again, and close."""
        self.leaving = True
        self.write()
        await self.close()

    async def close(self) -> None:
        """Let what is being written be written; what fails now is for the next owner to repeat."""
        if self.writing is not None:
            await asyncio.wait({self.writing}, timeout=GRACE_S)
            self.writing.cancel()
            await asyncio.gather(self.writing, return_exceptions=True)
        await self.transactor.close()


class _Intake:
    """What one poll brought of a partition, and how far its task is with it."""

    def __init__(self, partition: TopicPartition, share: _Share, records: Records) -> None:
        self.partition, self.share, self.records = partition, share, records
        self.start = 0
        self._sizes = np.concatenate(([0], np.cumsum(records.sizes)))  # before each record, and of all

    @property
    def left(self) -> int:
        return len(self.records) - self.start

    def next_batch(self) -> Records:
        """About `BATCH_BYTES`, as many records as the task takes at once, and one at least."""
        full = int(np.searchsorted(self._sizes, self._sizes[self.start] + BATCH_BYTES))
        return self.records[self.start : min(max(full, self.start + 1), self.start + self.share.most)]


class _Runtime:
    member: Member

    def __init__(self, broker: Broker, processor: Processor, settings: Settings, stop: asyncio.Event) -> None:
        self._broker = broker
        self._processor = processor
        self._stop = stop
        self._idle_s = processor.idle_tick_s or settings.windows.idle_tick_s
        self._session_s = settings.kafka.session_timeout_s
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
        opened = await asyncio.gather(*map(self._open, _numbers(partitions)), return_exceptions=True)
        if failures := [each for each in opened if each is not None]:
            await self.revoked(partitions)  # all of them are assigned again, perhaps to others: keep none
            raise failures[0]
        self._log.info("partitions assigned", partitions=sorted(self._shares))

    async def revoked(self, partitions: Sequence[TopicPartition]) -> None:
        numbers = [number for number in _numbers(partitions) if number in self._shares]
        ended = await asyncio.gather(*(self._shares.pop(n).finish() for n in numbers), return_exceptions=True)
        for number in numbers:
            self._forget_measures(number)
        for failure in filter(None, ended):
            raise failure

    async def _open(self, number: int) -> None:
        name = self._processor.name
        transactor = await self._broker.transactor(
            self._processor.group, state_topic(name), number, self._processor.inputs
        )
        task = self._processor.task(number)
        try:
            snapshot, offsets = await transactor.restore()
            if snapshot is not None:
                _restore(task, snapshot, name, number)
            for partition, offset in offsets.items():
                self.member.seek(partition, offset)
        except BaseException:
            await transactor.close()
            raise
        committed = {partition.topic: offset for partition, offset in offsets.items()}
        self._shares[number] = _Share(number, task, transactor, History(name, number), committed, time.monotonic())

    # --- the loop ---------------------------------------------------------------------------------------------------

    async def step(self) -> None:
        """Fetch once and work through what came; wait and go on when the broker is away."""
        try:
            found = await self.member.poll(POLL_S, POLL_RECORDS)
            polled = {partition: Records.of(records) for partition, records in found.items()}
            with _nothing_left_out():
                await self._take_in(polled)
                for share in list(self._shares.values()):
                    await self._look_after(share)
            await self._write_ticks(polled)
            await self._measure()
            self._failures = 0
        except Retryable as error:
            self._failures += 1
            pause = BACKOFF.pause_s(self._failures)
            self._log.warning("broker unavailable, trying again", error=str(error), pause_s=round(pause, 2))
            await asyncio.sleep(pause)

    async def _take_in(self, polled: Mapping[TopicPartition, Records]) -> None:
        """A batch of each partition in turn, and a step of each at least.

        What is left when time is over, when we are to stop, or when the writing of one has failed, is fetched again.
        """
        behind = sum(int(records.sizes.sum()) for records in polled.values()) > BATCH_BYTES
        behind = behind or sum(map(len, polled.values())) >= POLL_RECORDS
        for share in self._shares.values():
            share.behind = behind
        until = time.monotonic() + WORK_S
        intakes = deque(
            _Intake(partition, self._shares[partition.partition], each) for partition, each in polled.items()
        )
        waiting = len(intakes)
        while intakes and not self._stop.is_set() and not any(share.failed for share in self._shares.values()):
            if waiting <= 0 and time.monotonic() > until:
                self._log.warning("busy: records are fetched again", partitions=len(intakes))
                break
            intake = intakes.popleft()
            waiting -= 1
            await self._work(intake, until)
            if intake.left:
                intakes.append(intake)
        for intake in intakes:
            self.member.seek(intake.partition, int(intake.records.offsets[intake.start]))

    async def _work(self, intake: _Intake, until: float) -> None:
        """Give a task its next batch; of one that takes too long, as much as it has been through by then."""
        share, batch = intake.share, intake.next_batch()
        began = breath = time.monotonic()
        taken = 0
        for taken_now in share.process(intake.partition.topic, batch):
            taken = taken_now or taken
            if time.monotonic() - breath > BREATH_S:
                await asyncio.sleep(0)  # what is being written goes on
                await share.room()
                breath = time.monotonic()
                if share.failed or (taken_now and (breath > until or self._stop.is_set())):
                    break
        RECORDS.labels(intake.partition.topic).inc(taken)
        intake.start += taken
        share.adapt(time.monotonic() - began)
        await asyncio.sleep(0)

    async def _look_after(self, share: _Share) -> None:
        """Where writing has failed, another task takes its place; where it is slow, its partition is not read on."""
        try:
            share.written()
        except RecordTooLarge as error:
            raise Fatal(f"{self._processor.name} made a record that the broker refuses: {error}") from error
        except Retryable as error:
            self._log.warning("transaction failed, restoring from the log", partition=share.number, error=str(error))
            await self._reopen(share)
        else:
            share.write()  # what came just as writing ended, and a position that is due
            self._pause(share, share.waiting_bytes > WAITING_BYTES)

    def _pause(self, share: _Share, paused: bool) -> None:
        if share.paused != paused:
            share.paused = paused
            for topic in self._processor.inputs:
                (self.member.pause if paused else self.member.resume)(TopicPartition(topic, share.number))

    async def _reopen(self, share: _Share) -> None:
        """Forget the task; what the log says happened is what happened.

        Within a session only: after a longer silence the partition may be another's by now, who would be fenced.
        """
        _collect_garbage_soon()
        self._pause(share, False)
        number = share.number
        del self._shares[number]
        self._forget_measures(number)
        await share.close()
        left_s = self._session_s - (time.monotonic() - share.began_at)
        if left_s <= 0:
            raise _NotRestored(f"partition {number} may be another's: nothing was heard of it for a session")
        try:
            async with asyncio.timeout(left_s):
                await self._open(number)
        except TimeoutError as error:
            raise _NotRestored(f"partition {number} could not be restored within a session") from error
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
        ticks = [tick(*partition) for partition in idle if lag.get(partition, 1) == 0]
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


def _restore(task: Task, snapshot: bytes, processor: str, number: int) -> None:
    try:
        task.restore(snapshot)
    except Exception as error:  # whatever a task may make of it
        topic = state_topic(processor)
        raise ConfigError(
            f"{processor} cannot read its snapshot of partition {number} in the topic {topic}: {error!r}; "
            "another version wrote it: run that one; or have everything computed again from the log: stop all members, "
            f"delete the topic {topic} and the group {processor} (topics.prefix before both), and start; "
            "docs/operations.md, Upgrading, says what readers of the results then see"
        ) from error


def _numbers(partitions: Iterable[TopicPartition]) -> list[int]:
    return sorted({partition.partition for partition in partitions})
