"""What the join of predictions and labels costs: CPU, memory, disk, and how long a restart takes.

Without a broker: from the bytes of records to those of outcomes and the journal, and a commit now and then. Half of the
predictions get their labels while they are all waited for, in an order that has nothing to do with theirs.
"""

from __future__ import annotations

import gc
import os
import random
import struct
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from bench.pipeline import Stored
from streammon import wire
from streammon.broker.records import Records
from streammon.config import Settings
from streammon.events import EventType
from streammon.models import Models
from streammon.topics import journal_topic
from streammon_processors.join import JoinTask

PREDICTIONS = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
EVENTS, BATCH = 200, 50
"""Events in a record, and records given to the task at once."""
STEP_MS = 600_000_000 // PREDICTIONS * EVENTS
"""Between two records: a week of predictions, but for a few hours."""
START_MS = 1_700_000_000_000
JOURNAL = journal_topic("join")


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        before_mib = rss_mib()
        task = JoinTask(0, Models(), Settings())
        task.keep_in(directory / "state")
        assert task.recover_from() is None
        with (directory / "journal").open("wb") as journal:
            cost("predictions", PREDICTIONS, run(task, "inference", predictions(), journal))
            told(directory, journal.tell(), before_mib)
            cost("labels", PREDICTIONS // 2, run(task, "labels", labels(), journal))
            snapshot = task.snapshot()
            task.committed()
            task.close()  # which writes out what is in buffers
            told(directory, journal.tell(), before_mib)
            print(f"  snapshot {len(snapshot):,} B")
        restart("with what is on disk", snapshot, directory / "state", directory / "journal")
        restart("from the journal alone", snapshot, directory / "elsewhere", directory / "journal")


def told(directory: Path, journal_bytes: int, before_mib: float) -> None:
    used = sum(file.stat().st_size for file in (directory / "state").rglob("*") if file.is_file())
    memory = f"memory {rss_mib():,.0f} MiB, {rss_mib() - before_mib:,.0f} more than before"
    print(f"  disk {used / 1e6:,.0f} MB, journal {journal_bytes / 1e6:,.0f} MB, {memory}", flush=True)


def predictions() -> Iterator[bytes]:
    rng = random.Random(1)
    for first in range(0, PREDICTIONS, EVENTS):
        at = (START_MS + first // EVENTS * STEP_MS) / 1000
        events = [
            {
                "time_unix_s": at,
                "service": "shop",
                "model": "ranker",
                "model_version": "2026-11-29",
                "event_id": event_id(number),
                "duration_s": 0.01,
                "status": "ok",
                "prediction": rng.choice(("cat", "dog", "bird")),
                "confidence": rng.random(),
            }
            for number in range(first, first + EVENTS)
        ]
        yield wire.encode(EventType.INFERENCE, events)[0]


def labels() -> Iterator[bytes]:
    rng = random.Random(2)
    numbers = rng.sample(range(PREDICTIONS), PREDICTIONS // 2)
    at = (START_MS + PREDICTIONS // EVENTS * STEP_MS) / 1000
    for first in range(0, len(numbers), EVENTS):
        events = [
            {"time_unix_s": at, "service": "shop", "model": "ranker", "event_id": event_id(number), "label": "cat"}
            for number in numbers[first : first + EVENTS]
        ]
        yield wire.encode(EventType.LABEL, events)[0]


def event_id(number: int) -> str:
    return f"{number * 0x9E3779B97F4A7C15 % 2**64:016x}-{number:019d}"  # as long as a UUID


def batches(topic: str, values: Iterable[bytes]) -> Iterator[Records]:
    """As the broker gives them; labels come in the last hours of a week."""
    start_ms, step_ms = (START_MS, STEP_MS) if topic == "inference" else (START_MS + 600_100_000, 1)
    batch: list[Stored] = []
    for offset, value in enumerate(values):
        batch.append(Stored(0, offset, start_ms + offset * step_ms, None, value))
        if len(batch) == BATCH:
            yield Records.of(batch)
            batch = []
    if batch:
        yield Records.of(batch)


def run(task: JoinTask, topic: str, values: Iterable[bytes], journal: object) -> float:
    """CPU seconds of all threads, but for making the records; commits with every batch."""
    gc.collect()
    gc.disable()  # as the runtime has it
    total = 0.0
    for records in batches(topic, values):
        began = time.process_time()
        outputs = task.process(topic, records)
        task.snapshot()
        task.committed()
        total += time.process_time() - began
        for output in outputs:
            if output.topic == JOURNAL and output.value:
                journal.write(struct.pack("<I", len(output.value)) + output.value)  # type: ignore[attr-defined]
    gc.enable()
    return total


def cost(what: str, count: int, seconds: float) -> None:
    print(
        f"{count:,} {what}: {1e6 * seconds / count:.2f} µs of CPU each, {count / seconds:,.0f}/s and core", flush=True
    )


def restart(how: str, snapshot: bytes, state: Path, journal: Path) -> None:
    began, used = time.perf_counter(), time.process_time()
    task = JoinTask(0, Models(), Settings())
    task.keep_in(state)
    task.restore(snapshot)
    if task.recover_from() is not None:
        for record in read(journal):
            task.recover([record])
        assert task.recovered()
    took_s, cpu_s = time.perf_counter() - began, time.process_time() - used
    print(f"restart {how}: {took_s:.2f} s, {cpu_s:.2f} s of CPU", flush=True)
    task.close()


def read(journal: Path) -> Iterator[Stored]:
    with journal.open("rb") as file:
        while head := file.read(4):
            yield Stored(0, 0, START_MS, None, file.read(struct.unpack("<I", head)[0]))


def rss_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


if __name__ == "__main__":
    main()
