"""The job: the same log for everybody, and the exact answer to compare their results with.

Inference events of about 350 B, 1,667 for each second of event time, from 12 models with 5 endpoints: 60 series, which
in 10 s windows makes 3,600 rows of a million events. One event in ten arrives up to 3 s out of order, and everybody
waits 5 s, so nobody may lose one. The records are keyed by series, so nobody has to repartition; three models share
each of 4 partitions. One event of each series, a minute after the last, closes what is open; its own window
(`Workload.end_unix_s` and later) is not part of the result.

This file needs numpy alone: it also runs in the rivals' environment, where it fills the topic.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

MODELS, ENDPOINTS, PARTITIONS = 12, 5, 4
WINDOW_S, LATENESS_S = 10, 5
PER_SECOND = 1_000_000 / 600
DISORDERED, DELAY_MS = 0.1, 3_000
ERRORS = 0.02
QUANTILES = (0.5, 0.9, 0.99)
CLOSE_AFTER_MS = 60_000


class Window(NamedTuple):
    """Which row of the result."""

    model: str
    endpoint: str
    start_unix_s: int


@dataclass(frozen=True, slots=True)
class Truth:
    """What its row must say: by quantile, the two neighbouring durations between which every definition of it lies."""

    count: int
    errors: int
    quantiles: tuple[tuple[float, float], ...]


class Message(NamedTuple):
    partition: int
    key: str
    value: str


def model_name(number: int) -> str:
    return f"ranker-{number:02d}"


def endpoint_name(number: int) -> str:
    return f"/v1/rank/{number}"


@dataclass(frozen=True)
class Workload:
    """So many events from a second that is a multiple of ten; the same for the same numbers."""

    events: int
    start_unix_s: int
    seed: int = 1

    @property
    def end_unix_s(self) -> int:
        """The first multiple of ten seconds that no event reaches, but the closing ones."""
        return self.start_unix_s + int(-(-self.events // (PER_SECOND * WINDOW_S)) * WINDOW_S)

    def messages(self) -> Iterator[Message]:
        """The log, in the order of arrival."""
        columns = self._columns()
        late = np.random.default_rng(self.seed + 1).random(self.events) < DISORDERED
        delay = np.random.default_rng(self.seed + 2).integers(1, DELAY_MS, self.events)
        order = np.argsort(columns.time_ms + late * delay, kind="stable")
        arrived = (column[order].tolist() for column in columns)
        for number, event in enumerate(zip(*arrived, strict=True)):
            yield _message(number, *event)
        closing_ms = self.end_unix_s * 1000 + CLOSE_AFTER_MS
        for series in range(MODELS * ENDPOINTS):
            yield _message(self.events + series, closing_ms, series, 1000, False)

    def truth(self) -> dict[Window, Truth]:
        """The result, computed from all events at once."""
        columns = self._columns()
        starts = columns.time_ms // (WINDOW_S * 1000) * WINDOW_S
        order = np.lexsort((columns.duration_us, columns.series, starts))
        starts, series = starts[order], columns.series[order]
        cuts = np.flatnonzero(np.diff(starts, prepend=-1) | np.diff(series, prepend=-1))
        durations = np.split(columns.duration_us[order] / 1e6, cuts[1:])
        errors = np.add.reduceat(columns.failed[order], cuts, dtype=np.int64)
        return {
            Window(model_name(which // ENDPOINTS), endpoint_name(which % ENDPOINTS), start): _truth(values, failed)
            for which, start, values, failed in zip(
                series[cuts].tolist(), starts[cuts].tolist(), durations, errors.tolist(), strict=True
            )
        }

    def _columns(self) -> _Columns:
        """All events by event time. Whole milliseconds and microseconds: as text, they are what they are."""
        rng = np.random.default_rng(self.seed)
        return _Columns(
            self.start_unix_s * 1000 + (np.arange(self.events) * (1000 / PER_SECOND)).astype(np.int64),
            rng.integers(0, MODELS * ENDPOINTS, self.events),
            (rng.lognormal(-3, 1, self.events) * 1e6).astype(np.int64) + 1,
            rng.random(self.events) < ERRORS,
        )


class _Columns(NamedTuple):
    time_ms: np.ndarray[tuple[int], np.dtype[np.int64]]
    series: np.ndarray[tuple[int], np.dtype[np.int64]]
    duration_us: np.ndarray[tuple[int], np.dtype[np.int64]]
    failed: np.ndarray[tuple[int], np.dtype[np.bool_]]


def _truth(durations: np.ndarray[tuple[int], np.dtype[np.float64]], errors: int) -> Truth:
    """Of sorted durations."""
    last = len(durations) - 1
    between = ((durations[int(q * last)], durations[int(np.ceil(q * last))]) for q in QUANTILES)
    return Truth(len(durations), errors, tuple((float(low), float(high)) for low, high in between))


def _message(number: int, time_ms: int, series: int, duration_us: int, failed: bool) -> Message:
    model, endpoint = divmod(series, ENDPOINTS)
    outcome = '"status":"error","http_status":503' if failed else '"status":"ok","http_status":200'
    value = (
        f'{{"schema":1,"type":"inference","time_unix_s":{time_ms // 1000}.{time_ms % 1000:03d},"service":"shop",'
        f'"model":"{model_name(model)}","model_version":"2026-11-02","endpoint":"{endpoint_name(endpoint)}",'
        f'"host":"gpu-{number % 40:02d}.eu-west","request_id":"req-{number:012x}",'
        f'"trace_id":"{number * 0x9E3779B97F4A7C15F39CC0605CEDC835 % 2**128:032x}",'
        f'"duration_s":{duration_us // 1_000_000}.{duration_us % 1_000_000:06d},{outcome},'
        f'"input_tokens":{100 + number % 900},"output_tokens":{20 + number % 180}}}'
    )
    return Message(model % PARTITIONS, f"{model_name(model)} {endpoint_name(endpoint)}", value)
