"""kill -9 on the embedded log: what is published equals, byte for byte, what an undisturbed run makes of the same log.

On Kafka, with all other faults: `tests.faults.test_faults`.
"""

from __future__ import annotations

import asyncio
import json
import random
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from streammon import wire
from streammon.broker import Broker, Outgoing, connect
from streammon.cli.data import Emitter
from streammon.config import Settings
from streammon.events import EventType
from streammon.topics import topic_specs
from streammon.wire import Density, Identity
from streammon_processors.builtin import profiles_processor
from tests.faults.judge import base_windows, read_all, replayed, replayed_by
from tests.support import cli, eventually, wait_until

EVENTS = 60_000
KILLS = 5
PROCESSORS = ("windows", "rollups", "profiles")


def disordered_log(seed: int) -> list[bytes]:
    """Lines of 600 s of events: a tenth out of order, one in a hundred late beyond the lateness."""
    rng = random.Random(seed)
    lines = []
    for number in range(EVENTS):
        shift = rng.choices((0.0, rng.uniform(0, 0.9), rng.uniform(5, 60)), (89, 10, 1))[0]
        event = {
            "time_unix_s": 1_700_000_000 + number * 0.01 - shift,
            "service": "shop",
            "model": f"model-{number % 7}",
            "duration_s": rng.lognormvariate(-3, 1),
            "status": "error" if rng.random() < 0.02 else "ok",
            "features": {"price": round(rng.gauss(300, 1), 3), "city": rng.choice(("Rome", "Oslo"))},
        }
        lines.append(json.dumps(event).encode())
    return lines


def resent(records: list[Outgoing], seed: int) -> list[Outgoing]:
    """The same log with one batch in twenty sent again a little later."""
    rng = random.Random(seed)
    log: list[Outgoing] = []
    for record in records:
        log.append(record)
        if rng.random() < 0.05:
            log.append(rng.choice(log[-10:]))
    return log


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    (models := tmp_path / "models.yaml").write_text("{profile_window: 10s, models: [{drift: {window: 10s}}]}")
    return Settings(data_dir=tmp_path / "data", topics={"partitions": 2}, models={"file": models})


def config_file(settings: Settings, directory: Path) -> Path:
    file = directory / "streammon.json"  # JSON is YAML
    file.write_text(settings.model_dump_json(include={"data_dir", "topics", "models"}))
    return file


@pytest.mark.timeout(240)
async def test_killing_the_processor_changes_no_byte_of_what_it_publishes(settings: Settings, tmp_path: Path) -> None:
    rng = random.Random(7)
    broker = await connect(settings)
    await broker.create_topics(topic_specs(partitions=2))
    emitter = Emitter(EventType.INFERENCE, Density.PACKED, batch=20)
    records = resent([*emitter.take(disordered_log(1)), *emitter.flush()], 2)
    file = config_file(settings, tmp_path)

    async def more_than(before: int) -> bool:
        return len(await read_all(broker, "windows")) > before

    for kill in range(KILLS):
        part = records[len(records) * kill // KILLS : len(records) * (kill + 1) // KILLS]
        before = len(await read_all(broker, "windows"))
        process = cli("process", *PROCESSORS, "--config", file)
        try:
            await broker.append(part[: len(part) // 2])
            await eventually(partial(more_than, before), 60, what=f"windows before kill {kill}")
            await broker.append(part[len(part) // 2 :])
            await asyncio.sleep(rng.uniform(0, 0.3))  # not synchronisation: the moment of the kill is the experiment
        finally:
            process.kill()
            process.wait()

    process = cli("process", *PROCESSORS, "--config", file)
    try:
        await eventually(lambda: all_counted(broker, emitter.sent), 90, what="every event in a window")
        await eventually(lambda: all_profiled(broker, emitter.sent), 90, what="and in a profile")
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    log = await read_all(broker, "inference")
    outputs = replayed(log, "inference", settings)
    undisturbed = [output.value or b"" for output in outputs if output.topic == "windows"]
    found = [record.value or b"" for record in await read_all(broker, "windows") if base_windows([record])]
    assert len(found) == len(set(found)), "no window twice"
    assert sorted(found) == sorted(undisturbed)
    profiled = replayed_by(profiles_processor(settings), log, "inference")
    for topic in ("profiles", "references"):
        undisturbed = [output.value or b"" for output in profiled if output.topic == topic]
        assert sorted(record.value or b"" for record in await read_all(broker, topic)) == sorted(undisturbed)
        assert len(undisturbed) >= 7
    await broker.close()


async def all_counted(broker: Broker, sent: int) -> bool:
    return bool(sum(window["count"] for window in base_windows(await read_all(broker, "windows"))) == sent)


async def all_profiled(broker: Broker, sent: int) -> bool:
    return bool(sum(json.loads(each.value or b"")["count"] for each in await read_all(broker, "profiles")) == sent)


# --- the whole of `up` ----------------------------------------------------------------------------------------------


@contextmanager
def up(data_dir: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    process = cli("up", "--data-dir", data_dir, "--port", port)
    try:
        wait_until(lambda: answers(port), 30, what="the page answers")
        yield process
    finally:
        process.kill()
        process.wait()


def answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=1) as response:
            return bool(response.status == 200)
    except OSError:
        return False


def post(port: int, body: bytes) -> bool:
    """Whether the batch was acknowledged; if not, nobody knows whether it arrived."""
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/events", body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=5) as response:
            return bool(response.status == 202)
    except (urllib.error.URLError, OSError):
        return False


@pytest.mark.timeout(240)
async def test_killing_up_loses_and_repeats_no_acknowledged_event(tmp_path: Path, free_port: int) -> None:
    """A sender that repeats a batch until it is acknowledged, as the SDK does, is counted exactly once."""
    rng = random.Random(3)
    data_dir = tmp_path / "data"
    batches = iter(range(400))
    seq, sent = 0, 0
    waiting: bytes | None = None
    for _ in range(4):
        with up(data_dir, free_port) as process:
            deadline = time.monotonic() + rng.uniform(1.0, 3.0)
            while time.monotonic() < deadline and (waiting or (seq := next(batches, -1)) >= 0):
                waiting = waiting or one_batch(seq)
                if post(free_port, waiting):
                    waiting, sent = None, sent + 25
            process.kill()
    with up(data_dir, free_port) as process:
        while waiting and not post(free_port, waiting):
            pass
        sent += 25 if waiting else 0
        settings = Settings(data_dir=data_dir)
        broker = await connect(settings)

        async def counted() -> bool:
            windows = base_windows(await read_all(broker, "windows"))
            mine = [window for window in windows if window["series"].get("service") == "shop"]
            return bool(sum(window["count"] for window in mine) == sent)

        await eventually(counted, 30, what=f"{sent} events counted exactly once")
        await broker.close()
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


def one_batch(seq: int) -> bytes:
    now = time.time()
    events = [
        {"time_unix_s": now, "service": "shop", "model": "ranker", "duration_s": 0.01, "status": "ok"}
        for _ in range(25)
    ]
    [value] = wire.encode(EventType.INFERENCE, events, Density.PACKED, Identity("test", "one", seq))
    return value
