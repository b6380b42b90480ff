"""The contract of every processor as a test suite: inherit it, say how to make the processor and logs, run pytest.

::

    class TestMine(ProcessorContract):
        processor = my_processor(Settings())

        def logs(self, seed):
            rng = random.Random(seed)
            events = [{"time_unix_s": 1.7e9 + second, ...} for second in range(100)]
            return {"inference": random_log(EventType.INFERENCE, events, rng)}

It runs the task on the logs of several seeds: cut into batches anywhere, topics interleaved, crashed before and after
commits, restored, replayed from old snapshots, in another decade. What is published must be the same bytes; of a topic
whose `Output` has ``elements``, the same elements. A `Journaled` task is given its journal whenever it is restored. The
logs have to make the task work: give it late events, duplicates, records that are none; `random_log` mixes some in.

It needs no more than pytest. What it cannot show: that the results are right.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple
from unittest import mock

from streammon import wire
from streammon.broker import Headers, Outgoing, Record
from streammon.deadletter import TOPIC as DEADLETTER
from streammon.events import EventType
from streammon.tick import TICK
from streammon.topics import MAX_RECORD_BYTES
from streammon.wire import Density, Identity
from streammon_processors.replay import Kept, is_before
from streammon_processors.task import Journaled, Processor, Task, in_steps

PARTITION = 3
MAX_FUTURE_S = 60.0
DELAY_S = 0.05

Logs = Mapping[str, Sequence[Record]]
"""By topic, the records of one partition, with offsets from 0 and the broker's time."""
Outputs = dict[str, list[Outgoing]]
"""By the topic that they follow from."""


class Promised(NamedTuple):
    """What of some outputs has to be the same whenever it is made again."""

    records: Outputs
    """In order."""
    elements: Counter[tuple[str, float, bytes]]
    """Of topics of which no more is promised, with the time that each is about: of all outputs together."""


class ProcessorContract:
    """Inherit it as ``TestMine``, set `processor`, and define `logs`."""

    processor: Processor
    seeds: Iterable[int] = range(6)

    def logs(self, seed: int) -> Logs:
        """A log of every input topic; another one for another seed."""
        raise NotImplementedError

    def task(self) -> Task:
        """A fresh task of partition `PARTITION`."""
        return self.processor.task(PARTITION)

    # --- what it publishes ----------------------------------------------------------------------------------------

    def test_the_logs_make_it_write_all_its_topics_and_no_other(self) -> None:
        written = {output.topic for _, _, outputs in self._undisturbed() for output in outputs} - {self._journal}
        declared = self.processor.written_topics
        assert declared <= written <= declared | {DEADLETTER}

    def test_what_it_publishes_stays_in_its_partition(self) -> None:
        moving = [each for each in self.processor.outputs if each.by_key or each.partition is not None]
        elsewhere = {each.topic: each.partition for each in moving}
        for seed, _, outputs in self._undisturbed():
            for output in outputs:
                assert output.partition == elsewhere.get(output.topic, PARTITION), f"seed {seed}: {output}"
                assert output.key or output.partition is not None, f"seed {seed}: {output}"

    def test_every_result_says_what_time_it_is_about(self) -> None:
        for seed, _, outputs in self._undisturbed():
            for output in outputs:
                timeless = output.topic in (DEADLETTER, self._journal)
                assert timeless or self._time(output) is not None, f"seed {seed}: {output}"

    def test_nothing_is_published_before_its_time_has_passed(self) -> None:
        for seed in self.seeds:
            task = self.task()
            for topic, records in self.logs(seed).items():
                for record in records:
                    had_one = topic in task.watermarks()
                    times = [self._time(output) for output in task.process(topic, [record])]
                    newest = max((time for time in times if time is not None), default=0.0)
                    assert not had_one or newest < task.watermarks()[topic], f"seed {seed}, {topic}/{record.offset}"

    # --- the log decides ------------------------------------------------------------------------------------------

    def test_the_same_log_gives_the_same_bytes_in_another_decade(self) -> None:
        for seed, topic_outputs in self._by_topic():
            logs = self.logs(seed)
            random.seed(seed)
            with mock.patch("time.time", return_value=0.0), mock.patch("time.time_ns", return_value=0):
                assert self.promised(run(self.task(), logs)) == self.promised(topic_outputs), f"seed {seed}"

    def test_batches_may_be_cut_and_topics_interleaved_anywhere(self) -> None:
        for seed, topic_outputs in self._by_topic():
            for longest in (1, 7, 40):
                found = run(self.task(), self.logs(seed), random.Random(seed), longest)
                same = self.promised(found) == self.promised(topic_outputs)
                assert same, f"seed {seed}, batches of at most {longest} records"

    def test_a_batch_may_end_wherever_a_step_says_that_records_are_taken(self) -> None:
        for seed, topic_outputs in self._by_topic():
            found = run_in_pieces(self.task(), self.logs(seed), random.Random(seed))
            assert self.promised(found) == self.promised(topic_outputs), f"seed {seed}"

    def test_crashes_lose_nothing_and_repeat_nothing(self) -> None:
        for seed, topic_outputs in self._by_topic():
            for longest in (1, 7, 20):
                rng = random.Random(seed)
                found = run_with_crashes(self.task, self.logs(seed), rng, longest=longest, journal=self._journal)
                same = self.promised(found) == self.promised(topic_outputs)
                assert same, f"seed {seed}, batches of at most {longest} records"

    def test_a_replay_from_an_old_snapshot_gives_what_was_published_from_then_on(self) -> None:
        for seed in self.seeds:
            rng = random.Random(seed)
            kept, published, journal = self._kept(seed, rng)
            times = [time for outputs in published.values() for output in outputs if (time := self._time(output))]
            for start in rng.sample(times, min(5, len(times))):
                snapshot = self._newest_before(kept, start)
                replayed = run(*self._restored(snapshot, self.logs(seed), journal))
                assert self.promised(replayed, start) == self.promised(published, start), f"seed {seed}, from {start}"

    # --- snapshots and offsets ------------------------------------------------------------------------------------

    def test_a_snapshot_survives_the_round_trip_and_fits_into_a_record(self) -> None:
        for seed in self.seeds:
            task = self.task()
            for topic, records in self.logs(seed).items():
                task.process(topic, records[: (seed + 1) * len(records) // 7])
            again = self.task()
            again.restore(task.snapshot())
            assert again.snapshot() == task.snapshot(), f"seed {seed}"
            assert dict(again.offsets()) == dict(task.offsets()), f"seed {seed}"
            assert len(task.snapshot()) <= MAX_RECORD_BYTES

    def test_offsets_never_go_back_and_never_beyond_what_was_given(self) -> None:
        for seed in self.seeds:
            task = self.task()
            for topic, records in self.logs(seed).items():
                before = 0
                for record in records:
                    task.process(topic, [record])
                    offset = task.offsets().get(topic, 0)
                    assert before <= offset <= record.offset + 1, f"seed {seed}, {topic}/{record.offset}"
                    before = offset

    def test_no_records_are_nothing(self) -> None:
        task = self.task()
        for topic in self.processor.inputs:
            assert task.process(topic, []) == []
        assert not task.waiting

    # --- helpers --------------------------------------------------------------------------------------------------

    def _by_topic(self) -> Iterator[tuple[int, Outputs]]:
        for seed in self.seeds:
            yield seed, run(self.task(), self.logs(seed))

    def _undisturbed(self) -> Iterator[tuple[int, str, list[Outgoing]]]:
        for seed, topic_outputs in self._by_topic():
            for topic, outputs in topic_outputs.items():
                yield seed, topic, outputs

    def _time(self, output: Outgoing) -> float | None:
        return self.processor.time_of(output.topic, output.value)

    @property
    def _journal(self) -> str | None:
        return self.processor.journal

    def promised(self, topic_outputs: Outputs, since: float | None = None) -> Promised:
        """What has to be the same, of all of them or of those about ``since`` or later. A journal has not."""
        promised = Promised({topic: [] for topic in topic_outputs}, Counter())
        for topic, outputs in topic_outputs.items():
            for output in outputs:
                elements = self.processor.elements(output.topic, output.value)
                if elements is not None:
                    promised.elements.update((output.topic, *each) for each in elements if each[0] >= (since or 0.0))
                elif output.topic != self._journal and (since is None or (self._time(output) or -1.0) >= since):
                    promised.records[topic].append(output)
        return promised

    def _kept(self, seed: int, rng: random.Random) -> tuple[list[Kept], Outputs, Journal]:
        """Snapshots from all along the way, what was published, and the journal."""
        task, logs, kept = self.task(), self.logs(seed), list[Kept]()
        published: Outputs = {topic: [] for topic in logs}
        journal, now_ms = Journal(self._journal), 0
        for topic, batch in cut(logs, rng, longest=5):
            outputs = task.process(topic, batch)
            published[topic] += outputs
            now_ms = max(now_ms, batch[-1].timestamp)
            journal.take(outputs, now_ms)
            kept.append(Kept(now_ms / 1000, task.snapshot()))
        return kept, published, journal

    def _newest_before(self, kept: Sequence[Kept], start: float) -> bytes | None:
        for taken_unix_s, snapshot in reversed(kept):
            task = self.task()
            task.restore(snapshot)
            if is_before(task, self.processor.inputs, start, taken_unix_s + MAX_FUTURE_S):
                return snapshot
        return None

    def _restored(self, snapshot: bytes | None, logs: Logs, journal: Sequence[Record]) -> tuple[Task, Logs]:
        task = self.task()
        if snapshot is not None:
            task.restore(snapshot)
        give_journal(task, journal)
        return task, {topic: records[task.offsets().get(topic, 0) :] for topic, records in logs.items()}


# --- logs -----------------------------------------------------------------------------------------------------------


class Stored(NamedTuple):
    """A record as a broker returns it."""

    value: bytes | None
    offset: int
    timestamp: int
    partition: int = PARTITION
    key: bytes | None = None
    headers: Headers = ()


JUNK = (None, b"", b"{", b'{"schema":9}', b"\xff\xfe", b"[1,2]")


def random_log(event_type: EventType, events: Iterable[Mapping[str, Any]], rng: random.Random) -> list[Stored]:
    """A log that holds these events in this order: in any density, re-sent, with ticks and junk between them."""
    left, values = list(events), list[tuple[float, bytes | None]]()
    now, sent = 0.0, list[bytes]()
    while left:
        batch, left = left[: (size := rng.randint(1, 8))], left[size:]
        now = max(now, *(event["time_unix_s"] for event in batch))
        density = rng.choice(list(Density))
        identity = None if density is Density.OBJECT else Identity("agent", "boot", len(sent))
        packed = wire.encode(event_type, batch, density, identity)
        again = [rng.choice(sent)] if sent and rng.random() < 0.1 else []
        junk = [rng.choice(JUNK)] if rng.random() < 0.1 else []
        ticks = [TICK] if rng.random() < 0.2 else []
        values += [(now, value) for value in [*packed, *again, *junk]] + [(now + 1.0, value) for value in ticks]
        sent += packed if identity else []
    return [Stored(value, offset, round((at + DELAY_S) * 1000)) for offset, (at, value) in enumerate(values)]


# --- running and crashing -------------------------------------------------------------------------------------------


def cut(logs: Logs, rng: random.Random, longest: int) -> Iterator[tuple[str, Sequence[Record]]]:
    """All records in random batches, the topics interleaved."""
    done = dict.fromkeys(logs, 0)
    while left := [topic for topic in logs if done[topic] < len(logs[topic])]:
        topic = rng.choice(left)
        start, done[topic] = done[topic], done[topic] + rng.randint(1, longest)
        yield topic, logs[topic][start : done[topic]]


def run(task: Task, logs: Logs, rng: random.Random | None = None, longest: int = 10) -> Outputs:
    """All outputs by topic: each log at once, or interleaved in random cuts."""
    if rng is None:
        return {topic: task.process(topic, records) for topic, records in logs.items()}
    outputs: Outputs = {topic: [] for topic in logs}
    for topic, batch in cut(logs, rng, longest):
        outputs[topic] += task.process(topic, batch)
    return outputs


def run_in_pieces(task: Task, logs: Logs, rng: random.Random, longest: int = 10) -> Outputs:
    """All outputs by topic of batches that may end after any step that has taken records: the rest comes later."""
    outputs: Outputs = {topic: [] for topic in logs}
    for topic, batch in cut(logs, rng, longest):
        left = batch
        while left:
            taken = 0
            for step in in_steps(task, topic, left):
                outputs[topic] += step.outputs
                assert taken <= (step.taken or taken) <= len(left), "steps take records in order, of the batch only"
                taken = step.taken or taken
                if step.taken and rng.random() < 0.5:
                    break
            else:
                taken = len(left)
            left = left[taken:]
    return outputs


class Journal(list[Stored]):
    """The journal as its topic has it: what tasks have put out for it, if they have one."""

    def __init__(self, topic: str | None) -> None:
        self._topic = topic

    def take(self, outputs: Iterable[Outgoing], now_ms: int) -> None:
        self.extend(
            Stored(output.value, offset, now_ms)
            for offset, output in enumerate((each for each in outputs if each.topic == self._topic), len(self))
        )


def give_journal(task: Task, journal: Sequence[Record]) -> None:
    """What the runtime does after it has restored a task, or made one anew: see `streammon_processors.journal`."""
    for _ in range(2):
        if not isinstance(task, Journaled) or task.recover_from() is None:
            return
        task.recover(journal)
        if task.recovered():
            return
    raise AssertionError("the journal does not lead to the snapshot")


def run_with_crashes(
    make: Callable[[], Task],
    logs: Logs,
    rng: random.Random,
    crashes: int = 20,
    longest: int = 10,
    journal: str | None = None,
) -> Outputs:
    """What is committed by a task that is thrown away ``crashes`` times, between any two of its steps.

    A commit is outputs, snapshot and offsets together; whoever takes over restores, reads the journal, if there is one,
    and then from the offsets.
    """
    committed: Outputs = {topic: [] for topic in logs}
    written, now_ms = Journal(journal), 0
    snapshot: bytes | None = None
    offsets: Mapping[str, int] = {}
    for life in (*(rng.randint(1, 12) for _ in range(crashes)), None):
        task = make()
        if snapshot is not None:
            task.restore(snapshot)
        give_journal(task, written)
        left = {topic: records[offsets.get(topic, 0) :] for topic, records in logs.items()}
        batches = cut(left, rng, longest)
        pieces = ((topic, batch, step) for topic, batch in batches for step in in_steps(task, topic, batch))
        for topic, batch, step in islice(pieces, life):
            now_ms = max(now_ms, batch[-1].timestamp)
            if step.outputs or rng.random() < 0.2:  # else the crash comes before the commit
                committed[topic] += step.outputs
                written.take(step.outputs, now_ms)
                snapshot, offsets = task.snapshot(), dict(task.offsets())
                if isinstance(task, Journaled):
                    task.committed()
    return committed
