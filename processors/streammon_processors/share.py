"""A member's share of the work: a partition number of all inputs, its task, and the writing of what the task puts out.

Writing goes on beside the task, one transaction at a time: who is behind writes seldom and much. Nothing is written any
more once the task or a transaction has raised: outputs and snapshot may not belong together then.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from streammon.broker import Outgoing, Record, TopicPartition, Transactor
from streammon.broker.records import Records
from streammon.deadletter import TOPIC as DEADLETTER
from streammon.errors import Fatal
from streammon_processors.history import History
from streammon_processors.task import Journaled, Step, Task, close, in_steps

BATCH_RECORDS, BATCH_BYTES = 4000, 1024 * 1024
"""About the most given to a task at once: bounds the time for which the event loop is blocked."""
FIRST_RECORDS, QUICK_S, SLOW_S = 250, 0.2, 1.0
"""How many are given to a new task, for a short record may hold very many events; twice as many after a batch that was
quick, half as many after one that was slow."""
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
CLOSE_S = 2.0
"""How long a transaction that is under way may still take when its share is closed."""


@dataclass
class Share:
    """One partition number of all inputs: a task, and what it has put out and is not yet written."""

    number: int
    task: Task
    transactor: Transactor
    history: History
    committed: Mapping[str, int]
    committed_at: float
    topics: frozenset[str] = frozenset()
    """To which the task may write, beside the dead letters; any, if there is none."""
    journal: str | None = None
    """The one of them that nobody waits for."""
    last_record_at: dict[str, float] = field(default_factory=dict)
    outputs: list[Outgoing] = field(default_factory=list)
    waiting_bytes: int = 0
    wanted: bool = False  # somebody waits for what is among the outputs
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
        if topic in self.committed:
            self.history.begin(batch[0].timestamp / 1000)
        steps = in_steps(self.task, topic, batch)
        while (step := self._next(steps, batch)) is not None:
            yield step.taken
        self.last_record_at[topic] = time.monotonic()
        self.newest_s = batch[-1].timestamp / 1000
        self.write()
        yield len(batch)

    def _next(self, steps: Iterator[Step], batch: Sequence[Record]) -> Step | None:
        """The next step, and its outputs among those to be written. Whatever is raised here leaves a failed share."""
        try:
            if step := next(steps, None):
                self._take(step, batch)
        except BaseException:
            self.failed = True
            raise
        return step

    def _take(self, step: Step, batch: Sequence[Record]) -> None:
        outputs = list(step.outputs)
        self._check(outputs)
        self.outputs += outputs
        self.wanted = self.wanted or any(output.topic != self.journal for output in outputs)
        self.waiting_bytes += sum(len(output.value or b"") for output in outputs)
        if self.is_full:
            self.write()
        if step.taken:
            self.newest_s = batch[step.taken - 1].timestamp / 1000

    def _check(self, outputs: Sequence[Outgoing]) -> None:
        """A record in the topic of another processor cannot be taken back."""
        wrong = {output.topic for output in outputs} - self.topics - {DEADLETTER} if self.topics else ()
        for topic in sorted(wrong):
            raise Fatal(f"it writes to the topic {topic}, which is not among the outputs of its Processor")

    def write(self) -> None:
        """Start writing what is there to be written, unless that is under way or something has failed."""
        if not self.failed and not self.is_writing and self._is_due:
            self.writing = asyncio.create_task(self._write())

    @property
    def is_full(self) -> bool:
        """Whether so much waits to be written that nothing more should be read."""
        return self.waiting_bytes > WAITING_BYTES

    @property
    def is_writing(self) -> bool:
        return self.writing is not None and not self.writing.done()

    @property
    def _is_due(self) -> bool:
        """Outputs are due at once, but for who is behind; a journal, or a position without outputs, is now and then."""
        now = time.monotonic()
        if not self.wanted and not self.is_full:
            moved_on = bool(self.outputs) or self.task.offsets() != self.committed
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
        outputs, self.outputs, self.wanted = self.outputs, [], False
        written_bytes, offsets = self.waiting_bytes, dict(self.task.offsets())
        snapshot = self.task.snapshot()
        kept = self.history.keep(snapshot, self.newest_s)
        positions = {TopicPartition(topic, self.number): offset for topic, offset in offsets.items()}
        await self.transactor.transact([*outputs, *kept], snapshot, positions)
        self.waiting_bytes -= written_bytes
        self.committed, self.committed_at = offsets, time.monotonic()
        if isinstance(self.task, Journaled):
            self.task.committed()

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
        """Let what is being written be written; what fails now is for the next owner to repeat.

        Whatever comes in between, the task lets go of what it holds: the next one, of this process perhaps, needs it.
        """
        try:
            if self.writing is not None:
                await asyncio.wait({self.writing}, timeout=CLOSE_S)
                self.writing.cancel()
                await asyncio.gather(self.writing, return_exceptions=True)
        finally:
            if self.writing is not None:
                self.writing.cancel()
            close(self.task)
            await self.transactor.close()


class Intake:
    """What one poll brought of a partition, and how far its task is with it."""

    def __init__(self, partition: TopicPartition, share: Share, records: Records) -> None:
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
