"""Series to judge detectors on: real ones with labelled incidents, and made ones in which nothing happens."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

DATA = Path(__file__).parent / "data"
DAY_S, WEEK_S = 86_400.0, 604_800.0
NAB_STEP_S = 300.0
BEGIN_UNIX_S = 1_400_000_000.0

Floats = NDArray[np.float64]
Random = np.random.Generator


@dataclass(frozen=True)
class Incidents:
    """One real series, and the windows in which people saw its incidents."""

    name: str
    ends: Floats
    """Of the 5 minutes that each value is about, Unix seconds."""
    values: Floats
    windows: tuple[tuple[float, float], ...]

    def judge(self, alarms: list[float]) -> Judged:
        """An incident is found by an alert that begins in its window; an alert that begins in none is false."""
        delays = tuple(
            min((time - begin for time in alarms if begin <= time <= end), default=None) for begin, end in self.windows
        )
        false = [time for time in alarms if not any(begin <= time <= end for begin, end in self.windows)]
        return Judged(delays, len(false) / ((self.ends[-1] - self.ends[0]) / WEEK_S))


@dataclass(frozen=True)
class Judged:
    delays_s: tuple[float | None, ...]
    """From the begin of each incident window to the first alarm in it; None: not found."""
    false_per_week: float

    @property
    def found(self) -> int:
        return sum(delay is not None for delay in self.delays_s)


def _unix_s(text: str) -> float:
    return datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()


def incidents() -> list[Incidents]:
    """The three series of the Numenta Anomaly Benchmark in `tests/data`."""
    found = []
    for name, windows in json.loads((DATA / "nab_windows.json").read_text()).items():
        with (DATA / f"nab_{name}").open() as file:
            rows = list(csv.DictReader(file))
        ends = np.array([_unix_s(row["timestamp"]) for row in rows]) + NAB_STEP_S
        values = np.array([float(row["value"]) for row in rows])
        labelled = tuple((_unix_s(begin), _unix_s(end)) for begin, end in windows)
        found.append(Incidents(name.removesuffix(".csv"), ends, values, labelled))
    return found


def episodes(
    score: Callable[[float, Floats], Floats], times: Floats, values: Floats, hold_s: float
) -> list[list[float]]:
    """When the alarms of each row of `values` begin; scores above 1 less than `hold_s` apart are one alarm."""
    begun: list[list[float]] = [[] for _ in values]
    last = np.full(len(values), -np.inf)
    for time, column in zip(times.tolist(), values.T, strict=True):
        anomaly = score(time, column) > 1
        for row in np.flatnonzero(anomaly & (time - last > hold_s)):
            begun[row].append(time)
        last[anomaly] = time
    return begun


def autoregressive(random: Random, seeds: int, count: int, coefficient: float) -> Floats:
    """AR(1) with a standard deviation of 1."""
    noise = random.standard_normal((seeds, count))
    for at in range(1, count):
        noise[:, at] = coefficient * noise[:, at - 1] + noise[:, at] * np.sqrt(1 - coefficient**2)
    return noise


def quiet(random: Random, seeds: int, times: Floats) -> dict[str, Floats]:
    """Series of every kind in which nothing happens: `seeds` rows of each."""
    shape = (seeds, len(times))
    daily = np.sin(2 * np.pi * times / DAY_S)
    weekday = np.where((times // DAY_S + 3) % 7 >= 5, 0.3, 1.0)
    bursts = np.where(random.random(shape) < 0.002, random.exponential(50, shape), 0)
    kinds: dict[str, Any] = {
        "normal": 100 + random.standard_normal(shape),
        "lognormal": np.exp(1 + random.standard_normal(shape)),
        "AR(1), 0.9": 50 + autoregressive(random, *shape, 0.9),
        "daily season": 100 + 10 * daily + random.standard_normal(shape),
        "daily and weekly season": 100 + 10 * (1 + daily) * weekday + random.standard_normal(shape),
        "counts of traffic": random.poisson(50 * (1.1 + daily) * weekday, shape).astype(float),
        "counts, mean 0.3": random.poisson(0.3, shape).astype(float),
        "counts, mean 0.01": random.poisson(0.01, shape).astype(float),
        "counts, mean 0.001": random.poisson(0.001, shape).astype(float),
        "rare bursts": bursts,
        "constant": np.full(shape, 7.0),
        "trend of 2 sigma a day": 100 + 2 * (times - times[0]) / DAY_S + random.standard_normal(shape),
    }
    return kinds
