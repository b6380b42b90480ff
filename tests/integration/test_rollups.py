"""Rollups through the whole of `streammon process`, on an embedded log and over kill -9."""

from __future__ import annotations

import asyncio
import json
import random
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from streammon.broker import Broker, Record, connect
from streammon.cli.data import Emitter
from streammon.config import Settings
from streammon.events import EventType
from streammon.topics import ROLLUP_HEADER, topic_specs
from streammon.wire import Density
from streammon_processors.builtin import rollups_processor
from tests.faults.judge import read_all
from tests.support import cli, eventually

EVENTS = 4000
LIVES = 5


def lines(seed: int) -> list[bytes]:
    """A hundred seconds of events, one in fifty late."""
    rng = random.Random(seed)
    return [
        json.dumps(
            {
                "time_unix_s": 1_700_000_000 + number * 0.025 - rng.choices((0.0, rng.uniform(5, 60)), (49, 1))[0],
                "service": "shop",
                "model": f"model-{number % 5}",
                "duration_s": rng.lognormvariate(-3, 1),
                "status": "ok",
            }
        ).encode()
        for number in range(EVENTS)
    ]


async def counted(broker: Broker, size_s: float) -> int:
    windows: list[dict[str, Any]] = [json.loads(record.value or b"") for record in await read_all(broker, "windows")]
    return sum(window["count"] for window in windows if window.get("size_s") == size_s)


@pytest.mark.timeout(240)
async def test_killing_the_processor_neither_loses_nor_repeats_a_rollup(tmp_path: Path) -> None:
    rng = random.Random(5)
    sizes = {"rollups_s": (4, 20), "size_s": 2}
    settings = Settings(data_dir=tmp_path / "data", topics={"partitions": 2}, windows=sizes)
    file = tmp_path / "streammon.json"  # JSON is YAML
    file.write_text(settings.model_dump_json(include={"data_dir", "topics", "windows"}))
    broker = await connect(settings)
    await broker.create_topics(topic_specs(partitions=2))
    emitter = Emitter(EventType.INFERENCE, Density.PACKED, batch=20)
    records = [*emitter.take(lines(1)), *emitter.flush()]

    async def more_than(before: int) -> bool:
        return await counted(broker, 4) > before

    *parts, last = (records[len(records) * part // LIVES : len(records) * (part + 1) // LIVES] for part in range(LIVES))
    for kill, part in enumerate(parts):
        before = await counted(broker, 4)
        process = cli("process", "windows", "rollups", "--config", file)
        try:
            await broker.append(part)
            await eventually(partial(more_than, before), 60, what=f"rollups before kill {kill}")
            await asyncio.sleep(rng.uniform(0, 0.3))  # not synchronisation: the moment of the kill is the experiment
        finally:
            process.kill()
            process.wait()

    async def all_closed() -> bool:
        return [await counted(broker, size_s) for size_s in (2, 4, 20)] == [emitter.sent] * 3

    process = cli("process", "windows", "rollups", "--config", file)
    try:
        await broker.append(last)  # so that it has begun to work when it is told to stop
        await eventually(all_closed, 120, what="every event in a rollup of each length")
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    log = await read_all(broker, "windows")
    for partition in range(2):
        mine = [record for record in log if record.partition == partition]
        task = rollups_processor(settings).task(partition)
        follow = [output.value for output in task.process("windows", mine)]
        assert [record.value for record in mine if is_rollup(record)] == follow, "what follows from the log, once"
    await broker.close()


def is_rollup(record: Record) -> bool:
    return any(name == ROLLUP_HEADER for name, _ in record.headers)
