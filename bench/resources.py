"""How many events about resources one core makes windows of: ``python -m bench resources``.

The task alone, in memory: decoding, watermark, adding up, publishing. Fifty series of a service, with ten metrics, or
with five counters, or with a histogram of fifty values beside them; single JSON events, and batches of 200.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np

from bench.profiles import batched
from streammon.config import WindowSettings
from streammon.events import EventType
from streammon.sketch import Sketch
from streammon.wire import Density, encode
from streammon_processors.contract import Stored
from streammon_processors.windows import WindowTask

EVENTS = 20_000
START_S = 1_700_000_000.0
TRIES = 3


def main() -> None:
    print(f"{'of each event':<28} {'density':<8} {'µs an event':>12} {'events / CPU s':>15}")
    for what, fields in KINDS.items():
        events = list(measured(fields))
        for density, of in ((Density.OBJECT, 1), (Density.PACKED, 200)):
            took_s = min(measure(events, density, of) for _ in range(TRIES)) / len(events)
            print(f"{what:<28} {density.value:<8} {1e6 * took_s:>12.1f} {1 / took_s:>15,.0f}")


METRICS = {f"metric_{number}": float(number) for number in range(10)}
COUNTERS = {f"counter_{number}": float(number) for number in range(5)}
KINDS: dict[str, dict[str, Any]] = {
    "10 metrics": {"metrics": METRICS},
    "5 counters": {"metrics": {}, "counters": COUNTERS},
    "5 counters, a histogram": {"metrics": {}, "counters": COUNTERS, "histograms": {}},
}


def measured(fields: dict[str, Any]) -> Iterator[dict[str, Any]]:
    rng = np.random.default_rng(1)
    for number in range(EVENTS):
        event = {
            "time_unix_s": START_S + number / 1000,
            "host": "node-1",
            "entity": "service",
            "id": "shop",
            "labels": {"route": f"/{number % 50}"},
            **fields,
        }
        if "histograms" in fields:
            sketch = Sketch.of(rng.lognormal(-3, 0.5, 50)).to_wire()
            event["histograms"] = {"latency_s": {"sum": 2.5, "sketch": sketch}}
        yield event


def measure(events: list[dict[str, Any]], density: Density, of: int) -> float:
    """The seconds of CPU that all of them take."""
    values = [encode(EventType.RESOURCE, list(some), density)[0] for some in batched(events, of)]
    records = [Stored(value, at, round((START_S + at * of / 1000) * 1000)) for at, value in enumerate(values)]
    task = WindowTask(0, WindowSettings())
    began = time.process_time()
    task.process("resources", records)
    return time.process_time() - began


if __name__ == "__main__":
    main()
