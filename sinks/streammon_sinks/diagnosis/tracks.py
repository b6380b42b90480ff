"""Windows of many series as numbers on one grid of time, so that what moved together can be seen.

A *track* is one field of one series: the mean of what its windows say, in each bin of a `Grid`. Of quantiles that is no
quantile any more, but it moves when they do, and nothing else is asked of it.

Bounded: a `Tracks` keeps `MAX_RELATED` tracks of series that share a label with an alert, and `MAX_OTHERS` of others.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

Floats = NDArray[np.float64]

MAX_RELATED: Final = 4000
MAX_OTHERS: Final = 2000
JOINING: Final = ("host", "service", "model", "job")
"""Labels by which series belong together."""


class Grid(NamedTuple):
    """``bins`` bins of ``step_s`` seconds from ``start_unix_s`` on."""

    start_unix_s: float
    step_s: float
    bins: int

    @property
    def end_unix_s(self) -> float:
        return self.start_unix_s + self.bins * self.step_s

    def bin_of(self, unix_s: float) -> int:
        """Below 0, or `bins` and above: outside."""
        return int((unix_s - self.start_unix_s) // self.step_s)

    def time_of(self, bin_: int) -> float:
        return self.start_unix_s + bin_ * self.step_s


class _Distribution(Struct, gc=False):
    mean: float
    p50: float
    p99: float


class _Gauge(Struct, gc=False):
    mean: float


class _Counter(Struct, gc=False):
    per_s: float


class Seen(Struct, gc=False):
    """Of a window, what is looked at here; the rest of it is not even decoded."""

    source: str
    part: str
    series: dict[str, str]
    start_unix_s: float
    end_unix_s: float
    size_s: float
    count: int
    throughput_per_s: float = 0.0
    error_rate: float | None = None
    duration_s: _Distribution | None = None
    ttft_s: _Distribution | None = None
    tpot_s: _Distribution | None = None
    queue_s: _Distribution | None = None
    queue_length: _Distribution | None = None
    input_tokens: _Distribution | None = None
    output_tokens: _Distribution | None = None
    confidence: _Distribution | None = None
    gauges: dict[str, _Gauge] | None = None
    counters: dict[str, _Counter] | None = None
    distributions: dict[str, _Distribution] | None = None
    of_s: float | None = None
    kind: str = "tumbling"

    def fields(self) -> Iterator[tuple[str, float]]:
        """Name and value of each track."""
        if self.source != "resource":
            yield "throughput_per_s", self.throughput_per_s
        if self.error_rate is not None:
            yield "error_rate", self.error_rate
        for name in ("duration_s", "ttft_s", "tpot_s", "queue_s"):
            if (found := getattr(self, name)) is not None:
                yield f"{name}.p50", found.p50
                yield f"{name}.p99", found.p99
        for name in ("queue_length", "input_tokens", "output_tokens", "confidence"):
            if (found := getattr(self, name)) is not None:
                yield f"{name}.mean", found.mean
        for name, gauge in (self.gauges or {}).items():
            yield f"gauges.{name}", gauge.mean
        for name, counter in (self.counters or {}).items():
            yield f"counters.{name}", counter.per_s
        for name, found in (self.distributions or {}).items():
            yield f"distributions.{name}.p50", found.p50
            yield f"distributions.{name}.p99", found.p99


decode_seen = msgspec.json.Decoder(Seen).decode


def track_of(field: str) -> str:
    """The track that shows what a rule's field does."""
    head, _, tail = field.partition(".")
    if head in ("count", "throughput_per_s"):
        return "throughput_per_s"
    if head == "error_count":
        return "error_rate"
    if head in ("gauges", "counters"):
        return f"{head}.{tail.rpartition('.')[0]}"
    if head == "distributions":
        name, _, statistic = tail.rpartition(".")
        return f"{head}.{name}.{_quantile(statistic)}"
    if head in ("queue_length", "input_tokens", "output_tokens", "confidence"):
        return f"{head}.mean"
    return f"{head}.{_quantile(tail)}" if tail else field


def _quantile(statistic: str) -> str:
    """The quantile that moves as a statistic of a distribution does."""
    return "p50" if statistic in ("p50", "mean", "min") else "p99"


class Track(NamedTuple):
    """``values``: one a bin, NaN where there were no windows."""

    source: str
    series: Mapping[str, str]
    field: str
    values: Floats


class Tracks:
    """Takes in windows one by one."""

    def __init__(self, grid: Grid, labels: Sequence[Mapping[str, str]]) -> None:
        """``labels``: of the alerts to explain; series that share one with them are kept first."""
        self._grid = grid
        self._wanted = {(name, each[name]) for each in labels for name in JOINING if name in each}
        self._series: dict[tuple[Any, ...], tuple[bool, dict[str, tuple[Floats, Floats]]]] = {}
        self._room = {True: MAX_RELATED, False: MAX_OTHERS}
        self.left_out = 0
        """Values for which there was no room."""

    def add(self, seen: Seen) -> None:
        """Base windows only, which come first and add up to all the others; and no supplements."""
        if seen.of_s is not None or seen.part != "main" or not seen.series:
            return
        middle = (seen.start_unix_s + seen.end_unix_s) / 2
        bin_ = self._grid.bin_of(middle)
        if not 0 <= bin_ < self._grid.bins:
            return
        key = (seen.source, *sorted(seen.series.items()))
        known = self._series.get(key)
        if known is None:
            related = not self._wanted.isdisjoint(seen.series.items())
            if self._room[related] <= 0:
                self.left_out += 1
                return
            if related and "host" in seen.series:  # and then whatever else that host tells
                self._wanted.add(("host", seen.series["host"]))
            known = self._series[key] = (related, {})
        related, tracks = known
        for field, value in seen.fields():
            track = tracks.get(field)
            if track is None:
                if self._room[related] <= 0:
                    self.left_out += 1
                    continue
                self._room[related] -= 1
                track = tracks[field] = (np.zeros(self._grid.bins), np.zeros(self._grid.bins))
            track[0][bin_] += value
            track[1][bin_] += 1

    def all(self) -> list[Track]:
        """In an order that does not depend on how partitions were read."""
        found = []
        for (source, *labels), (_, tracks) in sorted(self._series.items(), key=lambda item: str(item[0])):
            for field, (total, count) in sorted(tracks.items()):
                with np.errstate(invalid="ignore", divide="ignore"):
                    found.append(Track(source, dict(labels), field, total / count))
        return found
