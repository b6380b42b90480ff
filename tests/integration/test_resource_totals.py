"""Counters and histograms from events to windows and rollups: the same totals, over late events and a kill -9."""

from __future__ import annotations

import json
import random
import signal
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from streammon.broker import Broker, connect
from streammon.cli.data import Emitter
from streammon.config import Settings
from streammon.events import EventType
from streammon.results import Window
from streammon.sketch import Sketch, merge
from streammon.tick import TICK
from streammon.topics import topic_specs
from streammon.wire import Density
from tests.faults.judge import read_all
from tests.support import cli, eventually

EVENTS = 1200
SIZES = (2.0, 20.0)


@dataclass
class Total:
    """Of one service: what was counted, by name, and all its latencies; sums in sixteenths, which are exact."""

    counters: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    sketches: list[Sketch] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def says(self) -> tuple[Any, ...]:
        return dict(self.counters), merge(self.sketches), self.seconds


def sent(seed: int) -> tuple[list[dict[str, Any]], dict[str, Total]]:
    """A minute of two services on four hosts, one event in twenty late; and what that adds up to."""
    rng = random.Random(seed)
    events, totals = [], defaultdict[str, Total](Total)
    for number in range(EVENTS):
        service = f"service-{number % 2}"
        latencies = [rng.randrange(1, 64) / 16 for _ in range(rng.randrange(20))]
        counters = {"requests_total": float(len(latencies)), "errors_total": float(rng.randrange(2))}
        sketch = Sketch.of(np.array(latencies))
        late_s = rng.uniform(5, 40) if rng.random() < 0.05 else 0.0
        events.append(
            {
                "time_unix_s": 1_700_000_000 + number * 0.05 - late_s,
                "host": f"host-{number % 4}",
                "entity": "service",
                "id": service,
                "labels": {"route": rng.choice(("/a", "/b"))},
                "metrics": {"queue": rng.random()} if number % 3 else {},
                "counters": counters,
                "histograms": {"latency_s": {"sum": sum(latencies), "sketch": sketch.to_wire()}},
            }
        )
        for name, more in counters.items():
            totals[service].counters[name] += more
        totals[service].sketches.append(sketch)
        totals[service].seconds += sum(latencies)
    return events, totals


async def totals_of(broker: Broker, size_s: float) -> dict[str, Total]:
    """What the windows of a length add up to, main ones and supplements; each says its rate by its length."""
    found = defaultdict[str, Total](Total)
    for window in windows_in(record.value for record in await read_all(broker, "windows")):
        if window.size_s != size_s:
            continue
        total = found[window.series.get("id", "")]
        for name, counter in (window.counters or {}).items():
            assert counter.per_s == counter.sum / size_s
            total.counters[name] += counter.sum
        for distribution in (window.distributions or {}).values():
            assert distribution.count == distribution.sketch.count
            total.sketches.append(distribution.sketch)
            total.seconds += distribution.sum
    return found


def windows_in(values: Iterable[bytes | None]) -> Iterable[Window]:
    return (msgspec.json.decode(value or b"", type=Window) for value in values if value != TICK)


@pytest.mark.timeout(120)
async def test_totals_of_counters_and_histograms_are_those_of_the_events(tmp_path: Path) -> None:
    settings = Settings(
        data_dir=tmp_path / "data", topics={"partitions": 2}, windows={"rollups_s": SIZES[1:], "size_s": SIZES[0]}
    )
    file = tmp_path / "streammon.json"  # JSON is YAML
    file.write_text(settings.model_dump_json(include={"data_dir", "topics", "windows"}))
    broker = await connect(settings)
    await broker.create_topics(topic_specs(partitions=2))
    events, wanted = sent(7)
    emitter = Emitter(EventType.RESOURCE, Density.PACKED, batch=20)
    records = [*emitter.take([json.dumps(event).encode() for event in events]), *emitter.flush()]
    half = len(records) // 2

    async def has_begun() -> bool:
        return bool(await totals_of(broker, SIZES[1]))

    process = cli("process", "windows", "rollups", "--config", file)
    try:
        await broker.append(records[:half])
        await eventually(has_begun, 60, what="rollups before the kill")
    finally:
        process.kill()
        process.wait()

    async def all_add_up(size_s: float) -> bool:
        found = await totals_of(broker, size_s)
        return {service: total.says for service, total in found.items() if total.counters} == {
            service: total.says for service, total in wanted.items()
        }

    process = cli("process", "windows", "rollups", "--config", file)
    try:
        await broker.append(records[half - 3 : half])  # whose sender does not know that they came
        await broker.append(records[half:])
        for size_s in SIZES:
            await eventually(partial(all_add_up, size_s), 60, what=f"the totals in windows of {size_s:g} s")
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    parts = {window.part for window in windows_in(record.value for record in await read_all(broker, "windows"))}
    assert parts == {"main", "late"}
    await broker.close()
