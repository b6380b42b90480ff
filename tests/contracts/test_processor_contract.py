"""The contract suite itself: a task that keeps it passes, and whoever breaks it is found by the test that says so."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from streammon.broker import Outgoing, Record
from streammon.events import EventType
from streammon_processors.contract import Logs, ProcessorContract, random_log
from streammon_processors.journal import BEGINNING, Link, Trail, Turn
from streammon_processors.task import Output, Processor, Step, time_field

TESTS = {name.removeprefix("test_") for name in vars(ProcessorContract) if name.startswith("test_")}


class Sums:
    """Sums up the sizes of records, second by second of the broker's time; keeps the contract."""

    def __init__(self, partition: int) -> None:
        self.partition = partition
        self.next_offset, self.second, self.total = 0, 0.0, 0

    def process(self, topic: str, records: Sequence[Record]) -> list[Outgoing]:
        return [output for record in records for output in self.take(record)]

    def take(self, record: Record) -> list[Outgoing]:
        self.next_offset = record.offset + 1
        second, outputs = record.timestamp // 1000, list[Outgoing]()
        if second > self.second:
            outputs = [self.output()] if self.second else []
            self.second, self.total = second, 0
        self.total += len(record.value or b"")
        return outputs

    def output(self, **more: object) -> Outgoing:
        value = json.dumps({"time": self.second, "total": self.total, **more}).encode()
        return Outgoing("sums", None, value, (), self.partition)

    def snapshot(self) -> bytes:
        return json.dumps([self.next_offset, self.second, self.total]).encode()

    def restore(self, snapshot: bytes) -> None:
        self.next_offset, self.second, self.total = json.loads(snapshot)

    def offsets(self) -> Mapping[str, int]:
        return {"inference": self.next_offset} if self.next_offset else {}

    @property
    def waiting(self) -> Sequence[str]:
        return ["inference"] if self.total else []

    def watermarks(self) -> Mapping[str, float]:
        return {"inference": self.second} if self.second else {}


class Sound(ProcessorContract):
    processor = Processor("sums", ("inference",), Sums, (Output("sums", time_field("time")),))
    seeds = range(4)

    def logs(self, seed: int) -> Logs:
        common = {"service": "s", "model": "m", "duration_s": 0.1, "status": "ok"}
        events = [{"time_unix_s": 1.7e9 + 0.3 * number, **common} for number in range(200)]
        return {"inference": random_log(EventType.INFERENCE, events, random.Random(seed))}


class Clock(Sums):
    def output(self, **more: object) -> Outgoing:
        return super().output(at=time.time())


class Chance(Sums):
    def output(self, **more: object) -> Outgoing:
        return super().output(chance=random.random())


class PerCall(Sums):
    def process(self, topic: str, records: Sequence[Record]) -> list[Outgoing]:
        outputs = super().process(topic, records)
        return [*outputs, self.output()] if len(records) > 20 else outputs


class Forgetful(Sums):
    def restore(self, snapshot: bytes) -> None:
        super().restore(snapshot)
        self.total = 0


class Ahead(Sums):
    """Its snapshot says that a record was taken in which it has not seen."""

    def offsets(self) -> Mapping[str, int]:
        return {"inference": self.next_offset + 1}


class Elsewhere(Sums):
    def output(self, **more: object) -> Outgoing:
        return super().output()._replace(partition=None)


class Undeclared(Sums):
    def output(self, **more: object) -> Outgoing:
        return super().output()._replace(topic="totals")


class Timeless(Sums):
    def output(self, **more: object) -> Outgoing:
        return super().output()._replace(value=b"{}")


class Hasty(Sums):
    """Says that time stands still."""

    def watermarks(self) -> Mapping[str, float]:
        return {"inference": 1.0}


class Restless(Sums):
    @property
    def waiting(self) -> Sequence[str]:
        return ["inference"]


class Hoarding(Sums):
    """Says that records are taken while what follows from them is still in its hands."""

    def steps(self, topic: str, records: Sequence[Record]) -> Iterator[Step]:
        outputs: list[Outgoing] = []
        for number, record in enumerate(records, 1):
            outputs += self.take(record)
            yield Step([], number)
        yield Step(outputs, len(records))


class Large(Sums):
    def snapshot(self) -> bytes:
        return super().snapshot() + b" " * 2**20


class Journalling(Sums):
    """Says with each sum what all before it come to; that is in its journal, not in its snapshot."""

    def __init__(self, partition: int) -> None:
        super().__init__(partition)
        self.before, self.place, self.trail = 0, BEGINNING, Trail(None, BEGINNING)

    def take(self, record: Record) -> list[Outgoing]:
        outputs = super().take(record)
        return [*outputs, *(self.write(output) for output in outputs)]

    def output(self, **more: object) -> Outgoing:
        return super().output(before=self.before)

    def write(self, output: Outgoing) -> Outgoing:
        self.before += json.loads(output.value or b"")["total"]
        value = msgspec.msgpack.encode((self.place, self.before))
        self.place = self.place.next(value)
        return Outgoing("journal.sums", None, value, (), self.partition)

    def snapshot(self) -> bytes:
        return msgspec.msgpack.encode((self.place, super().snapshot()))

    def restore(self, snapshot: bytes) -> None:
        self.place, rest = msgspec.msgpack.decode(snapshot, type=tuple[Link, bytes])
        super().restore(rest)

    def keep_in(self, directory: Path) -> None: ...

    def recover_from(self) -> float | None:
        self.trail = Trail(None, self.place)
        return None if self.place == BEGINNING else 0.0

    def recover(self, records: Sequence[Record]) -> None:
        for record in records:
            before, known = msgspec.msgpack.decode(record.value or b"", type=tuple[Link, int])
            if self.trail.follow(before, record.value or b"") is not Turn.SKIP:
                self.before = known

    def recovered(self) -> bool:
        return self.trail.is_done

    def committed(self) -> None: ...
    def close(self) -> None: ...


class HalfJournalling(Journalling):
    """Writes down less than it knows."""

    def write(self, output: Outgoing) -> Outgoing:
        known = self.before
        self.before = 0
        written = super().write(output)
        self.before += known
        return written


class Bundling(Sums):
    """Packs what a call brings into one record."""

    def process(self, topic: str, records: Sequence[Record]) -> list[Outgoing]:
        outputs = super().process(topic, records)
        values = [json.loads(output.value or b"") for output in outputs]
        return [Outgoing("sums", None, json.dumps(values).encode(), (), self.partition)] if values else []


class LosingWhatDoesNotFit(Bundling):
    def process(self, topic: str, records: Sequence[Record]) -> list[Outgoing]:
        outputs = super().process(topic, records)
        return outputs if len(outputs and json.loads(outputs[0].value or b"")) < 20 else []


def failing(task: type[Sums]) -> set[str]:
    """The tests of the suite that this task fails."""
    subject = Sound()
    subject.processor = replace(Sound.processor, task=task)
    if issubclass(task, Journalling):
        subject.processor = replace(subject.processor, journal_s=3600.0)
    if issubclass(task, Bundling):
        subject.processor = replace(subject.processor, outputs=(Output("sums", newest, elements=bundled),))

    def fails(test: str) -> bool:
        try:
            getattr(subject, f"test_{test}")()
        except AssertionError:
            return True
        return False

    return set(filter(fails, TESTS))


def bundled(value: bytes) -> list[tuple[float, bytes]]:
    return [(each["time"], json.dumps(each).encode()) for each in json.loads(value)]


def newest(value: bytes) -> float:
    return max(time for time, _ in bundled(value))


@pytest.mark.parametrize("task", [Sums, Journalling, Bundling])
def test_a_task_that_keeps_the_contract_passes(task: type[Sums]) -> None:
    assert failing(task) == set()


BROKEN: list[tuple[type[Sums], str]] = [
    (Clock, "the_same_log_gives_the_same_bytes_in_another_decade"),
    (Chance, "the_same_log_gives_the_same_bytes_in_another_decade"),
    (PerCall, "batches_may_be_cut_and_topics_interleaved_anywhere"),
    (Forgetful, "crashes_lose_nothing_and_repeat_nothing"),
    (Forgetful, "a_replay_from_an_old_snapshot_gives_what_was_published_from_then_on"),
    (Forgetful, "a_snapshot_survives_the_round_trip_and_fits_into_a_record"),
    (Ahead, "offsets_never_go_back_and_never_beyond_what_was_given"),
    (Ahead, "crashes_lose_nothing_and_repeat_nothing"),
    (Elsewhere, "what_it_publishes_stays_in_its_partition"),
    (Undeclared, "the_logs_make_it_write_all_its_topics_and_no_other"),
    (Timeless, "every_result_says_what_time_it_is_about"),
    (Hasty, "nothing_is_published_before_its_time_has_passed"),
    (Hasty, "a_replay_from_an_old_snapshot_gives_what_was_published_from_then_on"),
    (Restless, "no_records_are_nothing"),
    (Hoarding, "a_batch_may_end_wherever_a_step_says_that_records_are_taken"),
    (HalfJournalling, "crashes_lose_nothing_and_repeat_nothing"),
    (HalfJournalling, "a_replay_from_an_old_snapshot_gives_what_was_published_from_then_on"),
    (LosingWhatDoesNotFit, "batches_may_be_cut_and_topics_interleaved_anywhere"),
    (Large, "a_snapshot_survives_the_round_trip_and_fits_into_a_record"),
]


@pytest.mark.parametrize(("task", "found_by"), BROKEN)
def test_a_task_that_breaks_it_is_found(task: type[Sums], found_by: str) -> None:
    assert found_by in failing(task)


def test_every_test_of_the_suite_finds_something() -> None:
    assert {found_by for _, found_by in BROKEN} == TESTS
