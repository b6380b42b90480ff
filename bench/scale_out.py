"""More processes, fewer processes, how fresh the results are, and what a process holds, on a real Kafka.

* Scale-out: wall seconds and CPU seconds from a backlog to all its windows, with 1, 2 and 4 processes. CPU seconds say
  what sharing costs; wall seconds can only shrink as far as there are cores, and Kafka uses one of them.
* Hand-over: the longest silence of any partition, as seen by a reader of `windows`, when a process joins (clean), is
  stopped by SIGTERM, or is killed by -9 (then the session, 6 s, has to pass first).
* Close to visible: from the append of the event that closes a window until that window can be read (`read_committed`),
  at a steady rate of packed batches.
* Memory: the peak of one whole process that has 10,000 series with one distribution, or five, in two open windows, and
  publishes one of them; all in one partition, or in eight. Once more with the rollups beside it, as
  `streammon process` runs them: minutes, of which one is published, five minutes and hours.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from bench import series
from streammon import servers, wire
from streammon.broker import Broker, Outgoing, Record, connect
from streammon.config import Settings
from streammon.events import EventType
from streammon.topics import topic_specs
from streammon.wire import Density

PARTITIONS = 8
BACKLOG = 60_000  # events a partition
WARM_UP_S, STEADY_S = 3.0, 14.0
RATE = 80  # batches a second and partition
BATCH = 50
SERIES, PER_SERIES = 10_000, 20
PROGRAM = "from streammon.cli import main; main()"


def event(partition: int, number: int, time_unix_s: float) -> dict[str, object]:
    return {
        "time_unix_s": time_unix_s,
        "service": "shop",
        "model": f"model-{partition}",
        "endpoint": f"/v1/{number % 10}",
        "duration_s": random.lognormvariate(-3, 1),
        "status": "error" if number % 50 == 0 else "ok",
    }


@contextmanager
def processes(count: int, settings: Settings, directory: Path, *names: str) -> Iterator[list[subprocess.Popen[bytes]]]:
    config = directory / "streammon.json"
    config.write_text(settings.model_dump_json(include={"bootstrap", "topics", "windows"}))
    running = [start(config, *names) for _ in range(count)]
    try:
        yield running
    finally:
        for process in running:
            process.kill()
            process.wait()


def start(config: Path, *names: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", PROGRAM, "process", *(names or ("windows",)), "--config", str(config)]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL)


def cpu_s(process: subprocess.Popen[bytes]) -> float:
    fields = Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def peak_bytes(process: subprocess.Popen[bytes]) -> int:
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


async def fresh(kafka: servers.Server, partitions: int = PARTITIONS, **windows: float) -> tuple[Broker, Settings]:
    topics = {"prefix": f"{uuid.uuid4().hex[:8]}.", "partitions": partitions}
    settings = Settings(bootstrap=kafka.address, topics=topics, windows={"size_s": 10.0, **windows})
    broker = await connect(settings)
    await broker.create_topics(topic_specs(partitions=partitions))
    return broker, settings


async def scale_out(kafka: servers.Server, count: int, directory: Path) -> None:
    broker, settings = await fresh(kafka)
    for partition in range(PARTITIONS):
        events = [event(partition, number, 1_700_000_000 + number * 0.01) for number in range(BACKLOG)]
        values = wire.encode(EventType.INFERENCE, events, Density.OBJECT)
        for first in range(0, BACKLOG, 5000):
            part = values[first : first + 5000]
            await broker.append([Outgoing("inference", b"key", value, partition=partition) for value in part])
    reader = await broker.reader(["windows"])
    counted, began = 0, time.monotonic()
    with processes(count, settings, directory) as running:
        while counted < BACKLOG * PARTITIONS:
            for records in (await reader.poll(0.1)).values():
                counted += sum(json.loads(record.value or b"")["count"] for record in records)
        wall, cpu = time.monotonic() - began, sum(map(cpu_s, running))
    print(
        f"{count} process(es): {wall:5.1f} s wall, {cpu:5.1f} s CPU, {counted / cpu:8,.0f} events / CPU s", flush=True
    )
    await reader.close()
    await broker.close()


async def steady(broker: Broker, stop: asyncio.Event, appended: dict[tuple[int, float], float]) -> None:
    """Batches of now in every partition; notes when the first event at or after each second was appended."""
    while not stop.is_set():
        began = time.time()
        records = []
        for partition in range(PARTITIONS):
            events = [event(partition, number, began) for number in range(BATCH)]
            [value] = wire.encode(EventType.INFERENCE, events, Density.PACKED)
            records.append(Outgoing("inference", b"key", value, partition=partition))
            appended.setdefault((partition, float(int(began))), began)
        await broker.append(records)
        await asyncio.sleep(max(0.0, began + 1 / RATE - time.time()))


async def hand_over(kafka: servers.Server, directory: Path) -> None:
    broker, settings = await fresh(kafka, size_s=0.5, lateness_s=0.0)
    stop = asyncio.Event()
    feeding = asyncio.create_task(steady(broker, stop, {}))
    reader = await broker.reader(["windows"], "latest")
    newest: dict[int, float] = {}

    async def longest_silence(seconds: float) -> float:
        """Over the partitions, the longest time between two windows."""
        silence, until = 0.0, time.monotonic() + seconds
        while time.monotonic() < until:
            for place in await reader.poll(0.02):
                silence = max(silence, time.monotonic() - newest.get(place.partition, time.monotonic()))
                newest[place.partition] = time.monotonic()
        return max([silence, *(time.monotonic() - at for at in newest.values())])

    with processes(1, settings, directory) as running:
        while len(newest) < PARTITIONS:
            await longest_silence(0.2)
        print(
            f"undisturbed:       {await longest_silence(4):.2f} s between two windows (their size is 0.5 s)", flush=True
        )
        for what, strike in (
            ("one more joins", lambda: running.append(start(directory / "streammon.json"))),
            ("one is stopped", lambda: running.pop().send_signal(signal.SIGTERM)),
            ("one more joins", lambda: running.append(start(directory / "streammon.json"))),
            ("one is killed -9", lambda: running.pop().kill()),
        ):
            strike()  # type: ignore[no-untyped-call]  # lambdas that do one thing
            print(f"{what + ':':<18} {await longest_silence(12):.2f} s", flush=True)
    stop.set()
    await feeding
    await reader.close()
    await broker.close()


async def close_to_visible(kafka: servers.Server, directory: Path) -> None:
    broker, settings = await fresh(kafka, size_s=1.0, lateness_s=0.0)
    stop, appended = asyncio.Event(), dict[tuple[int, float], float]()
    feeding = asyncio.create_task(steady(broker, stop, appended))
    reader = await broker.reader(["windows"], "latest")
    delays: list[float] = []

    def note(records: list[Record]) -> None:
        now = time.time()
        for record in records:
            window = json.loads(record.value or b"")
            closing = appended.get((record.partition, window["end_unix_s"]))
            if closing is not None:
                delays.append(now - closing)

    with processes(1, settings, directory) as [process]:
        while not delays:
            note([record for records in (await reader.poll(0.02)).values() for record in records])
        for seconds in (WARM_UP_S, STEADY_S):
            delays.clear()
            began, used = time.monotonic(), cpu_s(process)
            while time.monotonic() < began + seconds:
                note([record for records in (await reader.poll(0.02)).values() for record in records])
        load = (cpu_s(process) - used) / STEADY_S
    stop.set()
    await feeding
    await reader.close()
    await broker.close()
    p50, p99, worst = np.quantile(delays, (0.5, 0.99, 1.0))
    rate = RATE * BATCH * PARTITIONS
    print(f"close to visible at {rate:,} events/s ({load:.0%} of a core): ", end="")
    print(f"p50 {p50:.3f} s, p99 {p99:.3f} s, worst {worst:.3f} s of {len(delays):,} windows")


async def memory(kafka: servers.Server, partitions: int, fields: int, rollups: bool, directory: Path) -> None:
    broker, settings = await fresh(kafka, partitions, size_s=series.SETTINGS.size_s, lateness_s=10.0)
    own = SERIES // partitions
    for window in range(9 if rollups else 3):  # the last but one closes a minute, or the first window
        made = list(series.events(own, own * PER_SERIES, window, fields))
        values = series.values(made, Density.PACKED)
        for partition in range(partitions):
            await broker.append([Outgoing("inference", b"key", value, partition=partition) for value in values])
    reader = await broker.reader(["windows"])
    found = 0
    with processes(1, settings, directory, *(("windows", "rollups") if rollups else ())) as [process]:
        while found < SERIES:
            for records in (await reader.poll(0.1)).values():
                found += sum(not rollups or b'"of_s"' in (record.value or b"") for record in records)
        peak = peak_bytes(process) / 1e6
    what = f"{SERIES:,} series in {partitions} partition(s), {fields} distribution(s)"
    print(f"{what}{', rollups too' if rollups else ''}: peak {peak:.0f} MB", flush=True)
    await reader.close()
    await broker.close()


async def main() -> None:
    with tempfile.TemporaryDirectory() as directory, servers.start("kafka", Path(directory) / "kafka") as kafka:
        for count in (1, 2, 4):
            await scale_out(kafka, count, Path(directory))
        await hand_over(kafka, Path(directory))
        await close_to_visible(kafka, Path(directory))
        for fields in (1, len(series.SHAPES)):
            for partitions in (1, PARTITIONS):
                for rollups in (False, True):
                    await memory(kafka, partitions, fields, rollups, Path(directory))


if __name__ == "__main__":
    asyncio.run(main())
