"""What ten thousand series cost: CPU an event, CPU to close a window, and memory while windows are open.

CPU time is that of this process, from the bytes of records to the bytes of windows, without a broker. The memory is
that of a fresh process which holds nothing but the tasks and the records that it makes for them.
"""

from __future__ import annotations

import gc
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from bench.pipeline import Stored
from streammon import wire
from streammon.broker import Outgoing
from streammon.config import WindowSettings
from streammon.events import EventType
from streammon.tick import tick
from streammon.wire import Density
from streammon_processors.windows import WindowTask

EVENTS = 100_000
BATCH = 200
START_UNIX_S = 1_700_000_000.0
BROKER_MS = 1_700_000_100_000
SETTINGS = WindowSettings(size_s=10.0, lateness_s=10.0)  # the window before is open, too
SHAPES = {"duration_s": (-3, 1), "ttft_s": (-4, 1), "queue_s": (-6, 1), "input_tokens": (6, 1), "output_tokens": (5, 1)}


def events(series: int, count: int, window: int, fields: int) -> Iterator[dict[str, object]]:
    """Spread evenly over the series and over one window; the first ``fields`` of a language model's distributions."""
    random = np.random.default_rng(window)
    columns = {name: random.lognormal(*shape, count) for name, shape in list(SHAPES.items())[:fields]}
    for row, endpoint in enumerate(random.permutation(count) % series):
        event = {name: int(column[row]) if "tokens" in name else float(column[row]) for name, column in columns.items()}
        time_unix_s = START_UNIX_S + SETTINGS.size_s * (window + row / count)
        yield event | {
            "time_unix_s": time_unix_s,
            "service": "shop",
            "model": "ranker",
            "endpoint": f"/v1/{endpoint}",
            "status": "error" if row % 50 == 0 else "ok",
        }


def values(made: list[dict[str, object]], density: Density) -> list[bytes]:
    size = BATCH if density is Density.PACKED else len(made)
    return [
        value
        for first in range(0, len(made), size)
        for value in wire.encode(EventType.INFERENCE, made[first : first + size], density)
    ]


class Partition:
    """A task and the end of its log."""

    def __init__(self) -> None:
        self._task = WindowTask(0, SETTINGS)
        self._offset = 0

    def take(self, values: list[bytes], broker_ms: int = BROKER_MS) -> list[Outgoing]:
        records = [Stored(0, self._offset + i, broker_ms, None, value) for i, value in enumerate(values)]
        self._offset += len(records)
        return self._task.process("inference", records)

    def close(self) -> list[Outgoing]:
        """Time passes until all windows are closed."""
        value = tick("inference", 0).value
        assert value is not None
        return self.take([value]) + self.take([value], BROKER_MS + 60_000)


def cost(series: int, density: Density, fields: int) -> tuple[float, float]:
    """CPU nanoseconds an event, and microseconds a series when the window closes: the best of three runs."""
    log = values(list(events(series, EVENTS, 0, fields)), density)
    call = 500 if density is Density.OBJECT else 4000 // BATCH
    best = (float("inf"), float("inf"))
    for _ in range(3):
        partition = Partition()
        gc.collect()
        started = time.process_time()
        for first in range(0, len(log), call):
            partition.take(log[first : first + call])
        opened = time.process_time()
        assert len(partition.close()) == series
        closed = time.process_time()
        best = min(best[0], (opened - started) / EVENTS * 1e9), min(best[1], (closed - opened) / series * 1e6)
    return best


def megabytes(name: str) -> float:
    """A line of ``/proc/self/status``: VmRSS is the memory in use, VmHWM its peak so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def memory(partitions: int, series: int, per_series: int) -> None:
    """Open two windows of so many series in all, with five distributions each, then publish them."""
    tasks = [Partition() for _ in range(partitions)]
    print(f"{partitions} partitions, {series:,} series, {per_series} events each: {megabytes('VmRSS'):.0f} MB", end="")
    own = series // partitions
    for window in range(2):
        made = [events(own, own * per_series, window, len(SHAPES)) for _ in tasks]
        for _ in range(0, own * per_series, BATCH):
            for task, some in zip(tasks, made, strict=True):
                task.take(values(list(islice(some, BATCH)), Density.PACKED))
    print(f" → two windows open: {megabytes('VmRSS'):.0f} MB (peak {megabytes('VmHWM'):.0f} MB)", end="")
    assert sum(len(task.close()) for task in tasks) == 2 * series
    print(f" → published: {megabytes('VmRSS'):.0f} MB (peak {megabytes('VmHWM'):.0f} MB)")


def main() -> None:
    if sys.argv[1:2] == ["memory"]:
        memory(*map(int, sys.argv[2:]))
        return
    print(f"{'':8}{'CPU ns an event':^32}{'CPU us a series to close':^32}")
    cases = [(density, fields) for fields in (1, len(SHAPES)) for density in (Density.OBJECT, Density.PACKED)]
    print(f"{'series':>8}" + 2 * "".join(f"{density[:6] + f' x{fields}':>16}" for density, fields in cases))
    for series in (10, 100, 1_000, 10_000):
        measured = [cost(series, *case) for case in cases]
        print(f"{series:>8,}" + "".join(f"{figure:>16.0f}" for kind in zip(*measured, strict=True) for figure in kind))
    for partitions in (8, 1):
        for per_series in (2, 20):
            subprocess.run(
                [sys.executable, "-m", "bench.series", "memory", str(partitions), "10000", str(per_series)], check=True
            )


if __name__ == "__main__":
    main()
