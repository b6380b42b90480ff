"""The runtime: runs pure tasks on the partitions of a consumer group, exactly once.

A task knows neither broker nor clock nor how it is committed. For each partition number of its input topics the
runtime opens a transactor (which fences an earlier owner), restores the task from its newest snapshot, rewinds the
input to where the task needs it, and then, again and again: fetches, calls `Task.process`, and writes outputs,
snapshot and input position in one transaction (`share`). Partitions take turns. One whose writing is slow is paused;
the others, and the membership, know nothing of it.

When a transaction fails and its outcome is unknown, the task is thrown away and restored from what the log says.
When even that fails, all tasks are, and the group is joined anew: a partition is never left out quietly.
When a transactor is fenced, the process stops: going on would repeat somebody else's work.
"""

from __future__ import annotations

import asyncio
import gc
import random
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from streammon.backoff import Backoff
from streammon.broker import Broker, Member, Polled, TopicPartition
from streammon.broker.records import Records
from streammon.config import Settings
from streammon.errors import ConfigError, Fatal, RecordTooLarge, Retryable, StreammonError
from streammon.reloading import LOOK_S, reloading
from streammon.telemetry import CONSUMER_LAG, RECORDS, WATERMARK_LAG, log
from streammon.tick import tick
from streammon.topics import state_topic
from streammon_processors.history import History
from streammon_processors.journal import recover
from streammon_processors.share import BATCH_BYTES, Intake, Share
from streammon_processors.task import Journaled, Processor, Task, close

POLL_S, POLL_RECORDS = 0.1, 10_000
"""The longest wait for records, also how often idle partitions are looked at; and the most taken at once."""
WORK_S, MOST_WORK_S = 10.0, 30.0
"""After this long, and a turn of each partition, the rest of a poll is given back, to be fetched again: who does not
poll loses its partitions. After the second, whoever had no turn is given back, too, and is first the next time."""
BREATH_S = 0.02
"""How long a task may work between two looks at everything else, if it works in steps."""
MEASURE_S = 1.0
BACKOFF = Backoff(longest_s=5.0)
REJOIN_S = 1.0
GARBAGE_S = 1.0
GRACE_S = 2.0
"""After ``stop``, how long a call to the broker may still take."""


async def run_processor(broker: Broker, processor: Processor, settings: Settings, *, stop: asyncio.Event) -> None:
    """Be one member of the processor's group until ``stop``; of one without inputs, there is nothing to do till then.

    Raises:
        Fatal: going on could lose or repeat work; start the process anew.
        ConfigError: the state in the log is another version's; says what to do.
    """
    if not processor.inputs:
        await stop.wait()
        return
    await _until_stopped(_memberships(broker, processor, settings, stop), stop)


async def run_reloading(
    broker: Broker, make: Callable[[], Processor], settings: Settings, *, stop: asyncio.Event, look_s: float = LOOK_S
) -> None:
    """Run the processor that ``make`` gives, and another one whenever its files have changed and it gives one.

    The next goes on from the state of the last, after a clean stop: nothing is lost or decided twice.

    Raises:
        ConfigError: the files are bad at the start; and what `run_processor` raises.
    """

    def run(processor: Processor, over: asyncio.Event) -> Coroutine[Any, Any, None]:
        return run_processor(broker, processor, settings, stop=over)

    first = make()
    if first.files:
        await reloading(first.name, first.files, make, run, stop=stop, every_s=look_s)
    else:
        await run(first, stop)


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


class _Runtime:
    member: Member

    def __init__(self, broker: Broker, processor: Processor, settings: Settings, stop: asyncio.Event) -> None:
        self._broker = broker
        self._processor = processor
        self._stop = stop
        self._idle_s = processor.idle_tick_s or settings.windows.idle_tick_s
        self._data_dir = settings.data_dir
        self._session_s = settings.kafka.session_timeout_s
        self._shares: dict[int, Share] = {}
        self._without_turn: set[TopicPartition] = set()  # of the last poll
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
            if isinstance(task, Journaled):
                task.keep_in(self._data_dir / "state" / name / str(number))
            snapshot, offsets = await transactor.restore()
            if snapshot is not None:
                _restore(task, snapshot, name, number)
            await recover(self._broker, self._processor, number, task)
            for partition, offset in offsets.items():
                self.member.seek(partition, offset)
        except BaseException:
            close(task)
            await transactor.close()
            raise
        committed = {partition.topic: offset for partition, offset in offsets.items()}
        history, topics = History(name, number, goes_on=bool(committed)), self._processor.own_topics
        share = Share(number, task, transactor, history, committed, time.monotonic(), topics)
        share.journal = self._processor.journal
        self._shares[number] = share

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
        now = time.monotonic()
        until, at_the_latest = now + WORK_S, now + MOST_WORK_S
        order = sorted(polled, key=lambda partition: partition not in self._without_turn)
        intakes = deque(Intake(each, self._shares[each.partition], polled[each]) for each in order)
        turns = len(intakes)
        while intakes and not self._stop.is_set() and not any(share.failed for share in self._shares.values()):
            if time.monotonic() > (until if turns <= 0 else at_the_latest):
                self._log.warning("busy: records are fetched again", partitions=len(intakes))
                break
            intake = intakes.popleft()
            turns -= 1
            await self._work(intake, until)
            if intake.left:
                intakes.append(intake)
        for intake in intakes:
            self.member.seek(intake.partition, int(intake.records.offsets[intake.start]))
        self._without_turn = {intake.partition for intake in intakes if not intake.start}

    async def _work(self, intake: Intake, until: float) -> None:
        """Give a task its next batch; of one that takes too long, as much as it has been through by then."""
        share, batch = intake.share, intake.next_batch()
        began = breath = time.monotonic()
        taken = 0
        for taken_now in self._steps(share, intake.partition, batch):
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

    def _steps(self, share: Share, partition: TopicPartition, batch: Records) -> Iterator[int | None]:
        """Those of `Share.process`; what a task raises is told with where that was."""
        try:
            yield from share.process(partition.topic, batch)
        except Exception as error:
            topic, number = partition
            where = f"{topic}, partition {number}, records {batch[0].offset} to {batch[-1].offset}"
            raise self._raised(error, where) from error

    def _raised(self, error: Exception, where: str) -> Fatal:
        self._log.error("a task raised", where=where, exc_info=error)
        return Fatal(
            f"the processor {self._processor.name} raised {error!r} at {where}; nothing is published after the last "
            "commit, and the next start goes on from there"
        )

    async def _look_after(self, share: Share) -> None:
        """Where writing has failed, another task takes its place; where it is slow, its partition is not read on."""
        try:
            share.written()
        except RecordTooLarge as error:
            raise Fatal(f"{self._processor.name} made a record that the broker refuses: {error}") from error
        except Retryable as error:
            self._log.warning("transaction failed, restoring from the log", partition=share.number, error=str(error))
            await self._reopen(share)
        except StreammonError:
            raise
        except Exception as error:
            raise self._raised(error, f"partition {share.number}, as its snapshot was taken") from error
        else:
            share.write()  # what came just as writing ended, and a position that is due
            self._pause(share, share.is_full)

    def _pause(self, share: Share, paused: bool) -> None:
        if share.paused != paused:
            share.paused = paused
            for topic in self._processor.inputs:
                (self.member.pause if paused else self.member.resume)(TopicPartition(topic, share.number))

    async def _reopen(self, share: Share) -> None:
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
                WATERMARK_LAG.labels(self._processor.group, topic, number).set(lag)

    def _forget_measures(self, number: int) -> None:
        """Somebody else's from now on: a gauge left behind would show an old lag for ever."""
        for topic in self._processor.inputs:
            CONSUMER_LAG.remove(self._processor.group, topic, number)
            WATERMARK_LAG.remove(self._processor.group, topic, number)


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
