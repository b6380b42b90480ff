"""Sums of windows: everything in a window adds, and what does not is calculated anew from what does.

Counts, sums and sketches are exact in any order. A `Gauge`'s ``last`` is that of the window that starts last, and of
one window's parts that of the one that came first: a supplement does not say how late its events are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from streammon.results import (
    COUNTERS,
    DISTRIBUTIONS,
    LARGEST,
    OTHER,
    Completeness,
    Distribution,
    Exemplar,
    Gauge,
    Window,
    bounded,
    counters_of,
    finite,
)
from streammon_processors.aggregate import EXEMPLARS, Values, name_within

T = TypeVar("T")


class Sum:
    """One series' windows, added up. There are ten thousands of these, of three lengths: hence the slots."""

    __slots__ = (
        "_completeness", "_costs", "_counters", "_distributions", "_error_count", "_exemplars", "_gauges", "_named",
        "count", "series",
    )  # fmt: skip

    def __init__(self, series: dict[str, str]) -> None:
        self.series = series
        self.count = 0
        self._error_count: int | None = None
        self._completeness = Completeness()
        self._distributions: dict[str, Values] = {}
        self._gauges: dict[str, _Samples] = {}
        self._counters: dict[str, float] = {}
        self._named: dict[str, Values] = {}
        self._exemplars: list[Exemplar] = []
        self._costs: dict[str, float] = {}

    def add(self, window: Window) -> None:
        """Add a window of this series."""
        self.count = bounded(self.count + window.count)
        if window.error_count is not None:
            self._error_count = bounded((self._error_count or 0) + window.error_count)
        self._add_completeness(window.completeness)
        for name in DISTRIBUTIONS:
            distribution: Distribution | None = getattr(window, name)
            if distribution is not None and distribution.count > 0:
                self._distributions.setdefault(name, Values()).add(distribution)
        for name, gauge in (window.gauges or {}).items():
            samples = _named(self._gauges, name, _Samples)
            samples.add(gauge, gauge.count or max(1, window.count), window.start_unix_s)
        for name, counter in (window.counters or {}).items():
            kept = name_within(self._counters, name)
            self._counters[kept] = finite(self._counters.get(kept, 0.0) + counter.sum)
        for name, distribution in (window.distributions or {}).items():
            _named(self._named, name, Values).add(distribution)
        if window.exemplars:
            slowest = sorted([*self._exemplars, *window.exemplars], key=lambda exemplar: -exemplar.duration_s)
            self._exemplars = slowest[:EXEMPLARS]  # of equals the earlier: sorting is stable
        for currency, amount in (window.cost or {}).items():
            self._costs[currency] = finite(self._costs.get(currency, 0.0) + amount)

    def _add_completeness(self, more: Completeness) -> None:
        mine = self._completeness
        for name in COUNTERS:
            setattr(mine, name, bounded(getattr(mine, name) + getattr(more, name)))
        mine.watermark_unix_s = max(mine.watermark_unix_s, more.watermark_unix_s)

    def fields(self, size_s: float) -> dict[str, Any]:
        """The fields of a `Window` of this length that follow from the events."""
        fields: dict[str, Any] = {name: values.result() for name, values in self._distributions.items()}
        fields["count"] = self.count
        fields["completeness"] = self._completeness
        if self._error_count is not None:
            fields["error_count"] = self._error_count
            fields["error_rate"] = self._error_count / self.count if self.count else 0.0
        fields["gauges"] = {name: samples.result() for name, samples in sorted(self._gauges.items())} or None
        fields["counters"] = counters_of(self._counters, size_s)
        fields["distributions"] = {name: values.result() for name, values in sorted(self._named.items())} or None
        fields["exemplars"] = self._exemplars or None
        fields["cost"] = self._costs or None
        return fields


class Sums:
    """Many series' windows. ``max_series`` are kept apart, first come first served; the rest is summed in ``other``."""

    def __init__(self, max_series: int, other: dict[str, str]) -> None:
        self._max_series = max_series
        self._other = other
        self._by_key: dict[bytes, Sum] = {}

    def add(self, key: bytes, window: Window) -> None:
        """Add a window of the series with this record key."""
        found = self._by_key.get(key)
        if found is None:
            found = self._new(key, window.series)
        found.add(window)

    def _new(self, key: bytes, series: dict[str, str]) -> Sum:
        if len(self._by_key) < self._max_series:
            return self._by_key.setdefault(key, Sum(series))
        return self._by_key.setdefault(OTHER.encode(), Sum(self._other))

    def __len__(self) -> int:
        return len(self._by_key)

    def results(self) -> Iterator[Sum]:
        """The sums, in the order of their record keys."""
        for _, found in sorted(self._by_key.items()):
            yield found


def _named(those: dict[str, T], name: str, new: Callable[[], T]) -> T:
    """That of a name, or where there are too many, of those that share one."""
    kept = name_within(those, name)
    if kept not in those:
        those[kept] = new()
    return those[kept]


class _Samples:
    """A gauge that grows."""

    __slots__ = ("_count", "_last", "_last_start", "_max", "_min", "_sum")

    def __init__(self) -> None:
        self._count, self._sum = 0, 0.0
        self._min, self._max = LARGEST, -LARGEST
        self._last, self._last_start = 0.0, -LARGEST

    def add(self, more: Gauge, count: int, start_unix_s: float) -> None:
        self._count += count
        self._sum = finite(self._sum + more.mean * count)
        self._min, self._max = min(self._min, more.min), max(self._max, more.max)
        if start_unix_s > self._last_start:
            self._last, self._last_start = more.last, start_unix_s

    def result(self) -> Gauge:
        mean = self._sum / self._count
        return Gauge(min=self._min, max=self._max, mean=mean, last=self._last, count=self._count)
