"""What one window holds of many series: counts, errors, distributions, gauges, counters, cost and exemplars.

A series has a *slot*, a small integer; everything else is arrays indexed by slot, so that any number of series is
updated by one numpy call. All results depend only on the order of the events, never on how they were cut into calls:
sums are accumulated one value after the other (`np.add.at`), and slots are given out in log order.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable, Collection, Iterator
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from streammon import wire
from streammon.events import Histogram
from streammon.results import LARGEST, OTHER, Distribution, Exemplar, Gauge, finite
from streammon.sketch import MAX_COUNT, Accumulator, SketchBag, Summaries, Unpacked
from streammon.wire import Floats
from streammon_processors.chunk import Chunk, Entries, Ints, Series

QUANTILES = (0.5, 0.9, 0.99)
MAX_GAUGES = 1000
"""Names of metrics kept apart in one window, those of counters and of histograms likewise; the rest shares the name
``__other__``."""
EXEMPLARS = 3
"""The slowest requests kept by window and series."""


class Aggregate:
    """The events of one window, by series. ``max_series`` are kept apart; the rest shares one more slot."""

    def __init__(self, max_series: int, distributions: tuple[str, ...]) -> None:
        self._max_series = max_series
        self._slots: dict[Series, int] = {}
        self._keys: list[Series] = []
        self._numbered = _PerSlot(-1)  # the slots of those keys; -1: none yet
        self._counts = _PerSlot(0)
        self._errors = _PerSlot(0)
        self._distributions = _Distributions(distributions)
        self._gauges = _Named(_Gauge)
        self._counters = _Named(_Counter)
        self._histograms = _Named(_Histograms)
        self._exemplars = _Exemplars()
        self._costs: dict[int, dict[str, float]] = {}

    def add(self, chunk: Chunk, rows: Ints, keys: list[Series], codes: Ints) -> None:
        """Count these rows of the chunk; row ``i`` belongs to the series ``keys[codes[i]]``.

        Numbers are remembered: while ``keys`` is the same list, it only grows.
        """
        slots = self._slots_of(keys, codes[rows])
        self._counts.add(slots, 1)
        if chunk.events_have_status:
            self._errors.add(slots[chunk.is_error[rows]], 1)
        self._distributions.add(chunk, rows, slots)
        for gauge, at, entries in self._gauges.among(chunk.metrics.of(rows)):
            gauge.add(slots[at], chunk.time[entries.rows], entries.values)
        for counter, at, entries in self._counters.among(chunk.counters.of(rows)):
            counter.add(slots[at], entries.values)
        for histograms, at, entries in self._histograms.among(chunk.histograms.of(rows)):
            histograms.add(slots[at], entries.values)
        self._add_costs(chunk, rows, slots)
        self._exemplars.add(chunk, rows, slots)

    def _slots_of(self, keys: list[Series], codes: Ints) -> Ints:
        if keys is not self._keys:
            self._keys, self._numbered = keys, _PerSlot(-1)
        self._numbered.grow(len(keys))
        slot_of = self._numbered.values
        unknown = codes[slot_of[codes] < 0]
        for code in dict.fromkeys(unknown.tolist()):  # in log order, so that the cap cuts the same series every time
            slot_of[code] = self._slot(keys[code])
        slots: Ints = slot_of[codes]
        return slots

    def _slot(self, key: Series) -> int:
        slot = self._slots.get(key)
        if slot is None:
            if len(self._slots) >= self._max_series:
                key = (OTHER,) * len(key)
            slot = self._slots.setdefault(key, len(self._slots))
        return slot

    def _add_costs(self, chunk: Chunk, rows: Ints, slots: Ints) -> None:
        at, entries = chunk.costs.of(rows)
        for slot, code, amount in zip(slots[at].tolist(), entries.codes.tolist(), entries.values.tolist(), strict=True):
            costs, currency = self._costs.setdefault(slot, {}), entries.names[code]
            costs[currency] = costs.get(currency, 0.0) + amount

    def results(self) -> Iterator[tuple[Series, dict[str, Any]]]:
        """For each series, in the order of its labels, the fields of its window that depend on the events."""
        distributions = self._distributions.table()
        for key, slot in sorted(self._slots.items(), key=lambda item: sortable(item[0])):
            fields: dict[str, Any] = distributions.of(slot)
            fields["count"] = self._counts[slot]
            fields["error_count"] = self._errors[slot]
            fields["gauges"] = self._gauges.at(slot)
            fields["counters"] = self._counters.at(slot)
            fields["distributions"] = self._histograms.at(slot)
            fields["exemplars"] = self._exemplars.at(slot)
            costs = self._costs.get(slot, {})
            fields["cost"] = {currency: finite(amount) for currency, amount in costs.items()} or None
            yield key, fields


def sortable(key: Series) -> tuple[str, ...]:
    """An order of series that does not depend on when they were first seen."""
    return tuple("" if label is None else str(label) for label in key)


class _PerSlot:
    """One number for each slot, of the type of its initial value; grows as slots are used."""

    def __init__(self, initial: float, ufunc: np.ufunc = np.add) -> None:
        self._initial = initial
        self._ufunc = ufunc
        self.values: NDArray[Any] = np.full(0, initial)

    def add(self, slots: Ints, values: Any) -> None:
        """``values`` have to be of the same type: numpy takes twenty times as long to convert them here."""
        if len(slots):
            self.grow(int(slots.max()) + 1)
            self._ufunc.at(self.values, slots, values)

    def grow(self, size: int) -> None:
        if size > len(self.values):
            more = max(size, 2 * len(self.values), 16) - len(self.values)
            self.values = np.concatenate([self.values, np.full(more, self._initial)])

    def __getitem__(self, slot: int) -> Any:
        return self.values[slot].item() if slot < len(self.values) else self._initial


class _Statistics:
    """Count, sum, minimum and maximum for each slot."""

    def __init__(self) -> None:
        self.count = _PerSlot(0)
        self.sum = _PerSlot(0.0)
        self.min = _PerSlot(np.inf, np.minimum)
        self.max = _PerSlot(-np.inf, np.maximum)

    def add(self, slots: Ints, values: Floats) -> None:
        self.count.add(slots, 1)
        with np.errstate(over="ignore"):  # sums of absurd values: see LARGEST
            for statistic in (self.sum, self.min, self.max):
                statistic.add(slots, values)


class _Distributions:
    """All distributions of all series, side by side: field ``i`` of a slot is the *cell* ``slot * len(names) + i``."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self._names = names
        self._bag = SketchBag()
        self._statistics = _Statistics()

    def add(self, chunk: Chunk, rows: Ints, slots: Ints) -> None:
        fields = [(index, chunk.floats(name)[rows]) for index, name in enumerate(self._names) if chunk.has(name)]
        if fields:
            values = np.concatenate([values for _, values in fields])
            cells = np.concatenate([slots * len(self._names) + index for index, _ in fields])
            present = ~np.isnan(values)
            self._bag.add(cells[present], values[present])
            self._statistics.add(cells[present], values[present])

    def table(self) -> _Table:
        """All of them, calculated at once."""
        summaries, s = self._bag.summaries(QUANTILES), self._statistics
        cells = summaries.slots
        counts, low, high = s.count.values[cells], s.min.values[cells], s.max.values[cells]
        sums = s.sum.values[cells].clip(-LARGEST, LARGEST)
        within = np.column_stack([sums / counts, summaries.values]).clip(low[:, None], high[:, None])
        return _Table(self._names, summaries, counts, np.column_stack([sums, low, high, within]))


class _Table:
    """Distributions by slot. ``numbers``: sum, minimum, maximum, mean, quantiles."""

    def __init__(self, names: tuple[str, ...], summaries: Summaries, counts: Ints, numbers: Floats) -> None:
        self._names = names
        self._summaries = summaries
        self._counts = counts
        self._numbers = numbers

    def of(self, slot: int) -> dict[str, Any]:
        """By name, the distributions of a slot that have values."""
        cells = self._summaries.slots
        rows = range(*cells.searchsorted([slot * len(self._names), (slot + 1) * len(self._names)]))
        return {self._names[cells[row] % len(self._names)]: self._distribution(row) for row in rows}

    def _distribution(self, row: int) -> Distribution:
        total, low, high, mean, p50, p90, p99 = self._numbers[row].tolist()
        return Distribution(
            count=int(self._counts[row]),
            sum=total,
            min=low,
            max=high,
            mean=mean,
            p50=p50,
            p90=p90,
            p99=p99,
            sketch=self._summaries.sketch(row),
        )


def name_within(kept: Collection[str], name: str) -> str:
    """Under which a name is kept beside others; beyond the bound on names, all share one."""
    return name if name in kept or len(kept) < MAX_GAUGES else OTHER


class _Slots(Protocol):
    """Something for each slot."""

    def at(self, slot: int) -> Any:
        """That of a slot; None where there is none."""
        ...


T = TypeVar("T", bound=_Slots)


class _Named(Generic[T]):
    """What is kept by names that senders give: so many apart, first come first served, and one more for the rest."""

    def __init__(self, new: Callable[[], T]) -> None:
        self._new = new
        self._of: dict[str, T] = {}
        self._sorted: list[tuple[str, T]] = []

    def among(self, found: tuple[Ints, Entries]) -> Iterator[tuple[T, Ints, Entries]]:
        """The entries of each name, in log order; ``found`` says where in the rows each stands, and so does this."""
        at, entries = found
        if not len(at):  # mostly
            return
        present, codes = wire.coded_alike(entries.codes.tolist())  # in log order, as for series
        names, numbers = wire.coded_alike([self._name(entries.names[code]) for code in present])
        mine = numbers[codes]
        order = np.argsort(mine, kind="stable")
        ends = np.cumsum(np.bincount(mine, minlength=len(names)))
        for name, own in zip(names, np.split(order, ends[:-1]), strict=True):
            yield self._of[name], at[own], entries._replace(rows=entries.rows[own], values=entries.values[own])

    def _name(self, name: str) -> str:
        name = name_within(self._of, name)
        if name not in self._of:
            self._of[name] = self._new()
        return name

    def at(self, slot: int) -> dict[str, Any] | None:
        """What a slot has, in the order of the names."""
        if len(self._sorted) != len(self._of):
            self._sorted = sorted(self._of.items())
        return {name: value for name, each in self._sorted if (value := each.at(slot)) is not None} or None


class _Counter:
    def __init__(self) -> None:
        self._sum = _PerSlot(0.0)
        self._times = _PerSlot(0)

    def add(self, slots: Ints, values: Floats) -> None:
        with np.errstate(over="ignore"):  # see LARGEST
            self._sum.add(slots, values)
        self._times.add(slots, 1)

    def at(self, slot: int) -> float | None:
        return finite(self._sum[slot]) if self._times[slot] else None


class _Histograms:
    """Histograms of one name that were sent as such, by slot."""

    def __init__(self) -> None:
        self._values: dict[int, Values] = {}

    def add(self, slots: Ints, histograms: NDArray[Any]) -> None:
        for slot, histogram in zip(slots.tolist(), histograms.tolist(), strict=True):
            self._values.setdefault(slot, Values()).add_histogram(histogram)

    def at(self, slot: int) -> Distribution | None:
        values = self._values.get(slot)
        return values.result() if values else None


class Values:
    """A distribution that grows by others: counts are exact in any order. Falsy: it has none."""

    __slots__ = ("_count", "_max", "_min", "_sketch", "_sum")

    def __init__(self) -> None:
        self._count = 0
        self._sum, self._min, self._max = 0.0, LARGEST, -LARGEST
        self._sketch = Accumulator()

    def __bool__(self) -> bool:
        return self._count > 0

    def add(self, more: Distribution) -> None:
        self._add(more.sketch.unpacked, more.count, more.sum, more.min, more.max)

    def add_histogram(self, more: Histogram) -> None:
        """One without values adds nothing. Unknown extremes are taken as far as the sketch and the mean allow."""
        sketch = more.sketch.unpacked
        if not (count := sketch.total):
            return
        low, high = more.min, more.max
        if low is not None and high is not None and low > high:
            low = high = None
        if low is None or high is None:
            mean = more.sum / count  # where the last bucket has no bound, it tells more than the sketch
            known = [*sketch.bounds, mean, *(each for each in (low, high) if each is not None)]
            low = min(known) if low is None else low
            high = max(known) if high is None else high
        self._add(sketch, count, more.sum, low, high)

    def _add(self, sketch: Unpacked, count: int, total: float, low: float, high: float) -> None:
        if self._count + count >= MAX_COUNT:  # nobody has so many: somebody claims it
            return
        self._count += count
        self._sum = finite(self._sum + total)
        self._min, self._max = min(self._min, low), max(self._max, high)
        self._sketch.add_unpacked(sketch, count)

    def result(self) -> Distribution:
        p50, p90, p99 = self._sketch.quantiles(QUANTILES, self._min, self._max)
        return Distribution(
            count=self._count,
            sum=self._sum,
            min=self._min,
            max=self._max,
            mean=min(max(self._sum / self._count, self._min), self._max),
            p50=p50,
            p90=p90,
            p99=p99,
            sketch=self._sketch.sketch(),
        )


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
        mean = finite(s.sum[slot]) / count
        return Gauge(min=s.min[slot], max=s.max[slot], mean=mean, last=self._last[slot], count=count)


def _slowest_first(exemplar: Exemplar) -> float:
    return -exemplar.duration_s


def _largest(values: Floats, slots: Ints, count: int) -> Ints:
    """The places of the ``count`` largest values of each slot, ascending; of equals, the first ones."""
    order = np.lexsort((-values, slots))
    others = np.zeros(len(order), dtype=np.bool_)  # those that have ``count`` of their slot before them
    others[count:] = slots[order][count:] == slots[order][:-count]
    largest: Ints = np.sort(order[~others])
    return largest


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
        candidates = candidates[_largest(durations[candidates], slots[candidates], EXEMPLARS)]
        found = (each[candidates].tolist() for each in (slots, durations, rows))
        for slot, duration_s, row in zip(*found, strict=True):
            kept = self._slowest.setdefault(slot, [])
            if len(kept) < EXEMPLARS or duration_s > kept[-1].duration_s:
                ids = {name: chunk.value(row, name) for name in ("trace_id", "event_id")}
                insort(kept, Exemplar(duration_s=duration_s, **ids), key=_slowest_first)  # equals: the earlier is ahead
                del kept[EXEMPLARS:]
                if len(kept) == EXEMPLARS:
                    self._bar.values[slot] = kept[-1].duration_s

    def at(self, slot: int) -> list[Exemplar] | None:
        return self._slowest.get(slot)
