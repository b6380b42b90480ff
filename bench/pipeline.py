"""Events per second of CPU, from bytes to windows: in memory, through a real Kafka, through the embedded log.

Each figure is events divided by the CPU time of this process, so that a busy machine disturbs it little; Kafka's own
CPU is not in it. Every run checks that all events were counted.
"""

from __future__ import annotations

import asyncio
import gc
import json
import random
import sys
import tempfile
import time
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

from streammon import servers, wire
from streammon.broker import Broker, Outgoing, Record, connect
from streammon.cli.base import together
from streammon.config import Settings
from streammon.events import EventType
from streammon.tick import tick
from streammon.topics import topic_specs
from streammon.wire import Density
from streammon_processors.builtin import windows_processor
from streammon_processors.runtime import run_processor
from streammon_processors.windows import WindowTask

SINGLES = 200_000
PACKED = 2_000_000
BATCH = 200


class Stored(NamedTuple):
    """A record as a broker would give it back."""

    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()


def events(count: int) -> list[dict[str, object]]:
    """A hundred seconds of one model with thirty endpoints: one record key, as the SDK sends it."""
    rng = random.Random(1)
    start, step = 1_700_000_000.0, 100.0 / count
    return [
        {
            "time_unix_s": start + number * step,
            "service": "shop",
            "model": "ranker",
            "endpoint": f"/v1/{number % 30}",
            "duration_s": rng.lognormvariate(-3, 1),
            "status": "error" if number % 50 == 0 else "ok",
        }
        for number in range(count)
    ]


def singles() -> list[bytes]:
    return wire.encode(EventType.INFERENCE, events(SINGLES), Density.OBJECT)


def packed() -> list[bytes]:
    made = events(PACKED)
    return [
        wire.encode(EventType.INFERENCE, made[first : first + BATCH], Density.PACKED)[0]
        for first in range(0, PACKED, BATCH)
    ]


def in_memory(values: list[bytes], expected: int, settings: Settings) -> float:
    log: list[Record] = [Stored(0, offset, 1_800_000_000_000, None, value) for offset, value in enumerate(values)]
    task = WindowTask(0, settings.windows)
    started = time.process_time()
    outputs = [
        output for first in range(0, len(log), 500) for output in task.process("inference", log[first : first + 500])
    ]
    took = time.process_time() - started
    last = Stored(0, len(log), 1_800_000_000_000, None, tick("inference", 0).value)
    later = last._replace(offset=len(log) + 1, timestamp=1_800_000_060_000)
    outputs += task.process("inference", [last, later])
    assert counted(output.value for output in outputs) == expected
    return took


def counted(windows: object) -> int:
    return sum(json.loads(window)["count"] for window in windows)  # type: ignore[attr-defined]  # any iterable of bytes


async def through(broker: Broker, values: list[bytes], expected: int, settings: Settings, *, intake: bool) -> float:
    """CPU seconds from the log to published windows; with ``intake`` also those of checking and appending."""
    await broker.create_topics(topic_specs(partitions=1))
    started = time.process_time()
    for first in range(0, len(values), 1000):
        part = values[first : first + 1000]
        if intake:
            await broker.append([record for value in part for record in wire.route(value).records])
        else:
            await broker.append([Outgoing("inference", b"key", value) for value in part])
    if not intake:
        started = time.process_time()
    stop = asyncio.Event()

    async def until_counted() -> None:
        reader = await broker.reader(["windows"])
        found = 0
        while found < expected:
            for records in (await reader.poll(0.2)).values():
                found += counted(record.value for record in records)
        assert found == expected
        await reader.close()

    await together(stop, run_processor(broker, windows_processor(settings), settings, stop=stop), until_counted())
    return time.process_time() - started


async def main() -> None:
    settings = Settings(windows={"size_s": 10.0})
    rows: list[tuple[str, str, int, float]] = []

    async def measure(name: str, run: Callable[[list[bytes], int], Awaitable[float]]) -> None:
        for density, make, count in (("single JSON", singles, SINGLES), (f"packed by {BATCH}", packed, PACKED)):
            print(f"{name}, {density} …", file=sys.stderr, flush=True)
            values = make()
            gc.collect()  # two million events were made for this; they are not to be cleared up on its time
            rows.append((name, density, count, await run(values, count)))

    async def memory(values: list[bytes], count: int) -> float:
        return in_memory(values, count, settings)

    async def embedded(values: list[bytes], count: int) -> float:
        with tempfile.TemporaryDirectory() as directory:
            broker = await connect(settings.model_copy(update={"data_dir": Path(directory)}))
            try:
                return await through(broker, values, count, settings, intake=True)
            finally:
                await broker.close()

    await measure("decode + window", memory)
    await measure("intake → embedded log → window", embedded)
    with tempfile.TemporaryDirectory() as directory, servers.start("kafka", Path(directory)) as kafka:

        async def over_kafka(values: list[bytes], count: int) -> float:
            topics = settings.topics.model_copy(update={"prefix": f"{uuid.uuid4().hex[:8]}."})
            broker = await connect(settings.model_copy(update={"bootstrap": kafka.address, "topics": topics}))
            try:
                return await through(broker, values, count, settings, intake=False)
            finally:
                await broker.close()

        await measure("Kafka → window, exactly once", over_kafka)
    print(f"{'path':<34}{'density':<16}{'events':>10}{'events / CPU s':>18}")
    for name, density, count, took in rows:
        print(f"{name:<34}{density:<16}{count:>10,}{count / took:>18,.0f}")


if __name__ == "__main__":
    asyncio.run(main())
