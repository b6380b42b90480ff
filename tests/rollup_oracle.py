"""What rollups must add up to, worked out the slow and obvious way from the base windows, and logs to try it on."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import floor
from typing import Any

import msgspec
import pytest

from streammon.broker import Outgoing
from streammon.config import WindowSettings
from streammon.results import DISTRIBUTIONS, OTHER, Window
from streammon.sketch import Sketch, merge
from streammon.tick import TICK
from streammon_processors.contract import Stored
from streammon_processors.rollups import RollupTask
from streammon_processors.windows import WindowTask
from tests.logs import TYPES, RandomLog, stored

Labels = tuple[tuple[str, str], ...]
COUNTERS = ("late", "duplicate", "missing", "rejected", "dropped")


# --- logs -----------------------------------------------------------------------------------------------------------


def base_windows(seed: int, settings: WindowSettings, batches: int = 30) -> list[Outgoing]:
    """What the windows task makes of random logs of both topics, in the order in which it writes them."""
    return [output for _, output in _timed(seed, settings, batches)]


def _timed(seed: int, settings: WindowSettings, batches: int) -> list[tuple[int, Outgoing]]:
    task = WindowTask(3, settings)
    entries = [
        (record.timestamp, topic, record)
        for i, topic in enumerate(TYPES)
        for record in stored(RandomLog(seed + i, batches, topic).entries)
    ]
    entries.sort(key=lambda entry: entry[0])
    written: list[tuple[int, Outgoing]] = []
    for timestamp, topic, record in entries:
        outputs = task.process(topic, [record])
        written += [(timestamp + 50, output) for output in outputs if output.topic == "windows"]
    return written


def windows_log(seed: int, settings: WindowSettings, task: RollupTask, batches: int = 30) -> list[Stored]:
    """A partition of `windows` as base windows, ticks and the rollups of ``task`` come to stand in it."""
    rng = random.Random(seed)
    waiting = _timed(seed, settings, batches)
    log = Loop(task)
    while waiting:
        kind = rng.random()
        if kind < 0.03:
            log.tick(rng.choice((0, 500, 4000, 15_000)))
        elif kind < 0.3:
            log.read_back(rng.randint(1, 5))
        else:
            for timestamp, output in waiting[:4]:
                log.append(output, timestamp)
            del waiting[:4]
    log.settle()
    return log.records


class Loop:
    """A partition of `windows` and the task that reads and writes it."""

    def __init__(self, task: RollupTask) -> None:
        self.task = task
        self.records: list[Stored] = []
        self.written: list[Outgoing] = []
        self._on_their_way: list[Outgoing] = []
        self._now_ms = 0

    def append(self, output: Outgoing, timestamp: int | None = None) -> None:
        self._now_ms = max(self._now_ms, timestamp or 0)
        record = Stored(output.value, len(self.records), self._now_ms, key=output.key, headers=tuple(output.headers))
        self.records.append(record)
        outputs = self.task.process("windows", [record])
        self.written += outputs
        self._on_their_way += [each for each in outputs if each.topic == "windows"]

    def tick(self, after_ms: int) -> None:
        self.append(Outgoing("windows", None, TICK), self._now_ms + after_ms)

    def read_back(self, most: int | None = None) -> None:
        arriving, self._on_their_way = self._on_their_way[:most], self._on_their_way[len(self._on_their_way[:most]) :]
        for output in arriving:
            self.append(output)

    def settle(self) -> None:
        """Let time pass until everything is closed and read."""
        for _ in range(200):
            while self._on_their_way:
                self.read_back()
            if not self.task.waiting:
                return
            self.tick(5000)
        raise AssertionError("rollups stay open although hours have passed")


def windows_in(records: Iterable[Any]) -> list[Window]:
    """Those records that are windows."""
    return [msgspec.json.decode(each.value, type=Window) for each in records if _is_window(each)]


def _is_window(each: Any) -> bool:
    return each.value not in (None, TICK, b"{") and getattr(each, "topic", "windows") == "windows"


# --- sums -----------------------------------------------------------------------------------------------------------


@dataclass
class Total:
    """Everything that adds, of windows of one series."""

    count: int = 0
    errors: int = 0
    counters: dict[str, int] = field(default_factory=lambda: dict.fromkeys(COUNTERS, 0))
    sketches: dict[str, list[Sketch]] = field(default_factory=lambda: defaultdict(list))
    values: dict[str, list[tuple[int, float, float, float]]] = field(default_factory=lambda: defaultdict(list))
    samples: dict[str, list[tuple[int, float, float, float]]] = field(default_factory=lambda: defaultdict(list))
    sums: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    costs: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    def add(self, window: Window) -> None:
        self.count += window.count
        self.errors += window.error_count or 0
        for name in COUNTERS:
            self.counters[name] += getattr(window.completeness, name)
        fields = {name: getattr(window, name) for name in DISTRIBUTIONS}
        named = {f"distributions.{name}": found for name, found in (window.distributions or {}).items()}
        for name, found in (fields | named).items():
            if found is not None:
                self.sketches[name].append(found.sketch)
                self.values[name].append((found.count, found.sum, found.min, found.max))
        for name, counter in (window.counters or {}).items():
            assert counter.per_s == counter.sum / window.size_s
            self.sums[name] += counter.sum
        for name, gauge in (window.gauges or {}).items():
            self.samples[name].append((gauge.count, gauge.mean * gauge.count, gauge.min, gauge.max))
        for currency, amount in (window.cost or {}).items():
            self.costs[currency] += amount

    def check(self, other: Total) -> None:
        """Exactly equal, but for the rounding of sums of floats."""
        assert (self.count, self.errors, self.counters) == (other.count, other.errors, other.counters)
        assert {name: merge(parts) for name, parts in self.sketches.items()} == {
            name: merge(parts) for name, parts in other.sketches.items()
        }
        for mine, others in ((self.values, other.values), (self.samples, other.samples)):
            assert summaries(mine) == {name: pytest.approx(each, rel=1e-12) for name, each in summaries(others).items()}
        assert dict(self.sums) == pytest.approx(dict(other.sums), rel=1e-12)
        assert dict(self.costs) == pytest.approx(dict(other.costs), rel=1e-12)


def summaries(parts: dict[str, list[tuple[int, float, float, float]]]) -> dict[str, tuple[Any, ...]]:
    """Count, sum, minimum and maximum of all parts."""
    return {
        name: (
            sum(count for count, *_ in each),
            sum(total for _, total, *_ in each),
            min(low for *_, low, _ in each),
            max(high for *_, high in each),
        )
        for name, each in parts.items()
    }


def totals(windows: Iterable[Window], size_s: float, every_s: float | None = None) -> dict[tuple[Any, ...], Total]:
    """By source, series and start of the windows that long, what all these windows in them sum up to."""
    every_s = every_s or size_s
    found: dict[tuple[Any, ...], Total] = defaultdict(Total)
    for window in windows:
        newest = floor((window.start_unix_s + 1e-6) / every_s)
        for number in range(newest - round(size_s / every_s) + 1, newest + 1):
            found[window.source, labels(window), number].add(window)
    return found


def parts_of(rollups: Iterable[Window], every_s: float) -> dict[tuple[Any, ...], Total]:
    """The same, of rollups: the sum of their parts."""
    found: dict[tuple[Any, ...], Total] = defaultdict(Total)
    for window in rollups:
        found[window.source, labels(window), round(window.start_unix_s / every_s)].add(window)
    return found


def labels(window: Window) -> Labels:
    return tuple(sorted(window.series.items()))


def runs(windows: Sequence[Window], gap_s: float) -> list[tuple[float, float, int]]:
    """Start, end and events of the sessions of one series, of windows in any order."""
    found: list[list[float]] = []
    for window in sorted((each for each in windows if each.count), key=lambda each: each.start_unix_s):
        if found and window.start_unix_s - found[-1][1] < gap_s:
            found[-1][1] = max(found[-1][1], window.end_unix_s)
            found[-1][2] += window.count
        else:
            found.append([window.start_unix_s, window.end_unix_s, window.count])
    return [(start, end, int(count)) for start, end, count in found]


def is_kept_apart(window: Window) -> bool:
    return OTHER not in window.series.values()
