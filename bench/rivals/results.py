"""Rows as the contestants publish them, and how they compare with the truth."""

from __future__ import annotations

import math
from collections.abc import Mapping

import msgspec

from bench.rivals.workload import WINDOW_S, Truth, Window
from streammon.results import Window as StreammonWindow

ROUNDING = 1e-9


class Row(msgspec.Struct):
    """One row of the result."""

    model: str
    endpoint: str
    start_unix_s: float
    count: int
    error_count: int
    error_rate: float
    throughput_per_s: float
    p50: float
    p90: float
    p99: float

    @property
    def window(self) -> Window:
        return Window(self.model, self.endpoint, int(self.start_unix_s))


read_row = msgspec.json.Decoder(Row).decode
_read_window = msgspec.json.Decoder(StreammonWindow).decode


def read_streammon(value: bytes) -> Row:
    """From a record of the topic `windows`. A supplement (no event is late) would count as a duplicate."""
    window = _read_window(value)
    duration = window.duration_s
    assert duration is not None, "an inference window has a duration"
    return Row(
        **window.series,
        start_unix_s=window.start_unix_s,
        count=window.count,
        error_count=window.error_count or 0,
        error_rate=window.error_rate or 0.0,
        throughput_per_s=window.throughput_per_s,
        p50=duration.p50,
        p90=duration.p90,
        p99=duration.p99,
    )


class Score:
    """The rows published so far against the truth. Quantiles may be off by `quantile_error`, relatively."""

    def __init__(self, truth: Mapping[Window, Truth], quantile_error: float) -> None:
        self._truth = truth
        self._error = quantile_error + ROUNDING
        self._end_unix_s = max(window.start_unix_s for window in truth) + WINDOW_S
        self._seen: set[Window] = set()
        self._wrong: set[Window] = set()
        self.duplicate = 0

    def add(self, row: Row) -> None:
        if row.start_unix_s >= self._end_unix_s:  # of the events that close the log
            return
        self.duplicate += row.window in self._seen
        self._seen.add(row.window)
        truth = self._truth.get(row.window)
        if truth is None or not self._agrees(row, truth):
            self._wrong.add(row.window)

    @property
    def seen(self) -> int:
        return len(self._seen)

    @property
    def missing(self) -> int:
        return len(self._truth.keys() - self._seen)

    @property
    def wrong(self) -> int:
        return len(self._wrong)

    def _agrees(self, row: Row, truth: Truth) -> bool:
        return (
            (row.count, row.error_count) == (truth.count, truth.errors)
            and math.isclose(row.error_rate, truth.errors / truth.count, rel_tol=ROUNDING)
            and math.isclose(row.throughput_per_s, truth.count / WINDOW_S, rel_tol=ROUNDING)
            and all(
                low * (1 - self._error) <= quantile <= high * (1 + self._error)
                for quantile, (low, high) in zip((row.p50, row.p90, row.p99), truth.quantiles, strict=True)
            )
        )
