"""What one window holds of many series: counts, errors, distributions, gauges, cost and exemplars.

A series has a *slot*, a small integer; everything else is arrays indexed by slot, so that any number of series is
updated by one numpy call. All results depend only on the order of the events, never on how they were cut into calls:
sums are accumulated one value after the other (`np.add.at`), and slots are given out in log order.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from streammon.results import OTHER, Distribution, Exemplar, Gauge
from streammon.sketch import SketchBag
from streammon.wire import Floats
from streammon_processors.chunk import Chunk, Ints, Series

QUANTILES = (0.5, 0.9, 0.99)
MAX_GAUGES = 1000
"""Names of metrics kept apart in one window; the rest shares the name ``__other__``."""
EXEMPLARS = 3
"""The slowest requests kept by window and series."""


class Aggregate:
    """The events of one window, by series. ``max_series`` are kept apart; the rest shares one more slot."""

    def __init__(self, max_series: int, distributions: tuple[str, ...]) -> None:
        self._max_series = max_series
        self._slots: dict[Series, int] = {}
        self._counts = _PerSlot(0)
        self._errors = _PerSlot(0)
        self._distributions = {name: _Distribution() for name in distributions}
        self._gauges: dict[str, _Gauge] = {}
        self._exemplars = _Exemplars()
        self._costs: dict[int, dict[str, float]] = {}

    def add(self, chunk: Chunk, rows: Ints, keys: list[Series], codes: Ints) -> None:
        """Count these rows of the chunk; row ``i`` belongs to the series ``keys[codes[i]]``."""
        slots = self._slots_of(keys, codes[rows])
        self._counts.add(slots, 1)
        if chunk.events_have_status:
            self._errors.add(slots, chunk.is_error[rows])
        for name, distribution in self._distributions.items():
            if chunk.has(name):
                distribution.add(slots, chunk.floats(name)[rows])
        position = _Positions(rows)
        for name, (at, values) in chunk.metrics.items():
            mine, own = position.of(at)
            if len(mine):
                if name not in self._gauges and len(self._gauges) >= MAX_GAUGES:
                    name = OTHER  # noqa: PLW2901 - the bound on names, as for series
                gauge = self._gauges.setdefault(name, _Gauge())
                gauge.add(slots[mine], chunk.time[at[own]], values[own])
        self._add_costs(chunk, position, slots)
        self._exemplars.add(chunk, rows, slots)

    def _slots_of(self, keys: list[Series], codes: Ints) -> Ints:
        distinct, firsts, inverse = np.unique(codes, return_index=True, return_inverse=True)
        slots = np.empty(len(distinct), dtype=np.int64)
        for index in np.argsort(firsts):  # in log order, so that the cap cuts the same series every time
            slots[index] = self._slot(keys[distinct[index]])
        return slots[inverse]

    def _slot(self, key: Series) -> int:
        slot = self._slots.get(key)
        if slot is None:
            if len(self._slots) >= self._max_series:
                key = (OTHER,) * len(key)
            slot = self._slots.setdefault(key, len(self._slots))
        return slot

    def _add_costs(self, chunk: Chunk, position: _Positions, slots: Ints) -> None:
        for index, (_, amount, currency) in zip(*position.among(chunk.costs), strict=True):
            costs = self._costs.setdefault(int(slots[index]), {})
            costs[currency] = costs.get(currency, 0.0) + amount

    def results(self) -> Iterator[tuple[Series, dict[str, Any]]]:
        """For each series, in the order of its labels, the fields of its window that depend on the events."""
        tables = {name: table for name, d in self._distributions.items() if (table := d.table())}
        gauges = sorted(self._gauges.items())
        for key, slot in sorted(self._slots.items(), key=lambda item: sortable(item[0])):
            fields: dict[str, Any] = {name: table[slot] for name, table in tables.items() if slot in table}
            fields["count"] = int(self._counts[slot])
            fields["error_count"] = int(self._errors[slot])
            fields["gauges"] = {name: value for name, gauge in gauges if (value := gauge.at(slot)) is not None} or None
            fields["exemplars"] = self._exemplars.at(slot)
            costs = self._costs.get(slot, {})
            fields["cost"] = {currency: _finite(amount) for currency, amount in costs.items()} or None
            yield key, fields


def sortable(key: Series) -> tuple[str, ...]:
    """An order of series that does not depend on when they were first seen."""
    return tuple("" if label is None else str(label) for label in key)


class _Positions:
    """Where rows of the chunk stand among the rows being added."""

    def __init__(self, rows: Ints) -> None:
        self._rows = rows

    def of(self, at: Ints) -> tuple[Ints, Ints]:
        """For those of the ascending chunk rows ``at`` that are added: their index in the rows, and in ``at``."""
        index = np.searchsorted(self._rows, at)
        inside = index < len(self._rows)
        inside[inside] = self._rows[index[inside]] == at[inside]
        return index[inside], np.flatnonzero(inside)

    def among(self, items: list[tuple[Any, ...]]) -> tuple[list[int], list[tuple[Any, ...]]]:
        """The same for items that begin with their chunk row."""
        if not items:
            return [], []
        mine, own = self.of(np.array([item[0] for item in items], dtype=np.int64))
        return mine.tolist(), [items[i] for i in own]


class _PerSlot:
    """One number for each slot; grows as slots are used."""

    def __init__(self, initial: float, ufunc: np.ufunc = np.add) -> None:
        self._initial = initial
        self._ufunc = ufunc
        self.values: Floats = np.empty(0)

    def add(self, slots: Ints, values: Any) -> None:
        if len(slots):
            self.grow(int(slots.max()) + 1)
            with np.errstate(over="ignore"):  # sums of absurd values: see _finite
                self._ufunc.at(self.values, slots, values)

    def grow(self, size: int) -> None:
        if size > len(self.values):
            more = max(size, 2 * len(self.values), 16) - len(self.values)
            self.values = np.concatenate([self.values, np.full(more, self._initial)])

    def __getitem__(self, slot: int) -> float:
        return float(self.values[slot]) if slot < len(self.values) else self._initial


class _Statistics:
    """Count, sum, minimum and maximum for each slot."""

    def __init__(self) -> None:
        self.count = _PerSlot(0)
        self.sum = _PerSlot(0.0)
        self.min = _PerSlot(np.inf, np.minimum)
        self.max = _PerSlot(-np.inf, np.maximum)

    def add(self, slots: Ints, values: Floats) -> None:
        self.count.add(slots, 1)
        for statistic in (self.sum, self.min, self.max):
            statistic.add(slots, values)


def _finite(value: float) -> float:
    """JSON has no infinity: a sum beyond the largest float is given as the largest float."""
    return min(max(value, -sys.float_info.max), sys.float_info.max)


class _Distribution:
    def __init__(self) -> None:
        self._statistics = _Statistics()
        self._bag: SketchBag | None = None  # made when the first value comes: most fields never have one

    def add(self, slots: Ints, values: Floats) -> None:
        present = ~np.isnan(values)
        if not present.all():
            slots, values = slots[present], values[present]
        if len(values):
            self._bag = self._bag or SketchBag()
            self._bag.add(slots, values)
            self._statistics.add(slots, values)

    def table(self) -> Mapping[int, Distribution]:
        """The distribution of each slot that has values."""
        if self._bag is None:
            return {}
        summaries = self._bag.summaries(QUANTILES)
        s = self._statistics
        return {
            slot: Distribution(
                count=(count := int(s.count[slot])),
                sum=(total := _finite(s.sum[slot])),
                min=(low := s.min[slot]),
                max=(high := s.max[slot]),
                mean=min(max(total / count, low), high),
                p50=min(max(p50, low), high),
                p90=min(max(p90, low), high),
                p99=min(max(p99, low), high),
                sketch=summaries.sketch(row),
            )
            for row, (slot, (p50, p90, p99)) in enumerate(
                zip(summaries.slots.tolist(), summaries.values.tolist(), strict=True)
            )
        }


class _Gauge:
    def __init__(self) -> None:
        self._statistics = _Statistics()
        self._last_time = _PerSlot(-np.inf)
        self._last = _PerSlot(np.nan)

    def add(self, slots: Ints, times: Floats, values: Floats) -> None:
        self._statistics.add(slots, values)
        size = int(slots.max()) + 1
        self._last_time.grow(size)
        self._last.grow(size)
        order = np.lexsort((times, slots))  # stable: of equal times the later in the log is last
        newest = order[np.append(np.diff(slots[order]) != 0, True)]
        newer = newest[times[newest] >= self._last_time.values[slots[newest]]]
        self._last_time.values[slots[newer]] = times[newer]
        self._last.values[slots[newer]] = values[newer]

    def at(self, slot: int) -> Gauge | None:
        s = self._statistics
        count = s.count[slot]
        if not count:
            return None
        return Gauge(min=s.min[slot], max=s.max[slot], mean=_finite(s.sum[slot]) / count, last=self._last[slot])


class _Exemplars:
    """The slowest requests that can be found again by a trace or event id."""

    def __init__(self) -> None:
        self._slowest: dict[int, list[Exemplar]] = {}
        self._bar = _PerSlot(-np.inf)  # what a request has to exceed to be kept

    def add(self, chunk: Chunk, rows: Ints, slots: Ints) -> None:
        if not chunk.traced.any() or not chunk.has("duration_s"):
            return
        self._bar.grow(int(slots.max()) + 1)
        durations = chunk.floats("duration_s")[rows]
        candidates = np.flatnonzero(chunk.traced[rows] & (durations > self._bar.values[slots]))
        for index in candidates.tolist():
            self._offer(int(slots[index]), float(durations[index]), chunk, int(rows[index]))

    def _offer(self, slot: int, duration_s: float, chunk: Chunk, row: int) -> None:
        if duration_s <= self._bar[slot]:
            return
        event = chunk.event(row)
        kept = self._slowest.setdefault(slot, [])
        kept.append(Exemplar(duration_s=duration_s, trace_id=event.get("trace_id"), event_id=event.get("event_id")))
        kept.sort(key=lambda exemplar: -exemplar.duration_s)  # stable: of equals the earlier stays ahead
        del kept[EXEMPLARS:]
        if len(kept) == EXEMPLARS:
            self._bar.values[slot] = kept[-1].duration_s

    def at(self, slot: int) -> list[Exemplar] | None:
        return self._slowest.get(slot)
