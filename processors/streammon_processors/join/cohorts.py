"""Cohorts: how many predictions were made in each window, labelled or not, by version and slice.

The watermark of the inference partition closes windows, and late predictions make supplements, both row by row, as in
`streammon_processors.windows`. What is open is small and in every snapshot: it is bounded by `MAX_SERIES` and
`MAX_HISTOGRAMS`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import floor, inf
from typing import Any, NamedTuple

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from streammon.outcomes import CONFIDENCE_BINS, Cohort
from streammon.results import OTHER
from streammon_processors.chunk import Ints
from streammon_processors.revisions import Revisions, RevisionsMemory
from streammon_processors.windows import series_key

Mask = NDArray[np.bool_]
Floats = NDArray[np.float64]

MAX_SERIES = 1000
"""Versions and slices of models that are counted apart at once, in all open windows; beyond, one for each window."""
MAX_NAMES_BYTES = 256 * 1024
"""Of all their names together, likewise: names may be of any length, and this is in every snapshot."""
MAX_HISTOGRAMS = 1000
"""Classes of theirs that are, likewise; beyond, one for each series."""
MAX_CLASSES, MAX_SLICE_VALUES = 50, 50
"""Of one series, and of one slice of a model in a window."""


class Series(NamedTuple):
    """Whose predictions are counted together: of a version, all or those with a value of a slice."""

    service: str
    model: str
    version: str | None
    slice: str | None = None
    value: str | None = None

    @property
    def slices(self) -> dict[str, str]:
        return {} if self.slice is None or self.value is None else {self.slice: self.value}

    @property
    def key(self) -> bytes:
        labels = {"service": self.service, "model": self.model, "model_version": self.version or "", **self.slices}
        return series_key(labels)

    @property
    def size(self) -> int:
        """The bytes of its names."""
        return sum(len(name.encode(errors="surrogatepass")) for name in self if name)


BEYOND = Series(OTHER, OTHER, OTHER)


class Place(NamedTuple):
    """A window, and whether it is of those that came after it had closed."""

    start_s: float
    size_s: float
    late: bool

    @property
    def end_s(self) -> float:
        return self.start_s + self.size_s


@dataclass
class Sums:
    """What is counted of one series in one window."""

    count: int = 0
    with_id: int = 0
    repeated: int = 0
    confidence: dict[str, Ints] = field(default_factory=dict)


class Predictions(NamedTuple):
    """Predictions that are counted, in the order of the log. Arrays have shape (n,)."""

    time: Floats
    late: Mask
    with_id: Mask
    repeated: Mask
    groups: Sequence[Group]
    group: Ints
    """Which of the groups each belongs to."""
    classes: Sequence[str]
    label: Ints
    """Which of the classes it predicts."""
    confidence: Floats


class Group(NamedTuple):
    """Predictions that are counted in the same series."""

    window_s: float
    series: tuple[Series, ...]


class CohortsMemory(Struct, array_like=True):
    """What `Cohorts` remembers."""

    newest: float | None = None
    windows: list[tuple[float, float, bool, list[SumsMemory]]] = []
    revisions: RevisionsMemory = msgspec.field(default_factory=RevisionsMemory)


class SumsMemory(Struct, array_like=True):
    """A series and its sums; of each class the bins that are not empty, and how much is in them."""

    series: Series
    count: int
    with_id: int
    repeated: int
    confidence: dict[str, tuple[list[int], list[int]]]


class Cohorts:
    """The open windows of a partition."""

    def __init__(
        self, partition: int, *, lateness_s: float, max_late_s: float, sizes_s: Sequence[float], told_after_s: float
    ) -> None:
        """``sizes_s``: of the windows there are; ``told_after_s``: how long after its end one may have a supplement."""
        self._partition = partition
        self._lateness_s, self._max_late_s = lateness_s, max_late_s
        self._told_after_s = told_after_s
        self._sizes = np.array(sizes_s)
        self.newest = -inf
        self._open: dict[Place, dict[Series, Sums]] = {}
        self._series = self._names_bytes = self._histograms = 0  # of all of them
        self._values: dict[tuple[Any, ...], int] = {}  # series of a window that differ in the value of a slice only
        self._revisions = Revisions()

    # --- decisions ------------------------------------------------------------------------------------------------

    def newest_after(self, time: Floats, accepted: Mask) -> Floats:
        """The newest event time before the first row, and after each."""
        return np.maximum.accumulate(np.append(self.newest, np.where(accepted, time, -inf)))

    def is_too_late(self, time: Floats, newest: Floats) -> Mask:
        """Rows so late that nobody counts them; ``newest``: before each."""
        return time < newest - self._lateness_s - self._max_late_s

    def is_late(self, time: Floats, size_s: Floats, newest: Floats) -> Mask:
        """Rows whose window has closed; ``newest``: before each."""
        return (np.floor(time / size_s) + 1) * size_s <= newest - self._lateness_s

    @property
    def waiting(self) -> bool:
        return bool(self._open)

    @property
    def watermark(self) -> float:
        return self.newest - self._lateness_s

    # --- what becomes of rows -------------------------------------------------------------------------------------

    def advance(self, rows: Predictions, row: Ints, newest: Floats) -> Iterator[Cohort]:
        """Count predictions that stand at these ``row``s of a chunk, and publish wherever one of its rows closes a
        window; ``newest`` is of all rows of the chunk, as `newest_after` says."""
        closed = np.floor((newest[:, np.newaxis] - self._lateness_s) / self._sizes)
        start = 0
        for place in np.flatnonzero((closed[:-1] < closed[1:]).any(axis=1)).tolist():
            end = int(np.searchsorted(row, place, side="right"))
            self._count(rows, np.arange(start, end))
            start, self.newest = end, float(newest[place + 1])
            yield from self._publish()
        self._count(rows, np.arange(start, len(row)))
        self.newest = float(newest[-1])

    def pass_time(self, seconds: float) -> Iterator[Cohort]:
        """A tick: time has passed, and what waits is due."""
        self.newest += seconds
        return self._publish() if any(place.late or self._is_closed(place) for place in self._open) else iter(())

    def _count(self, rows: Predictions, part: Ints) -> None:
        if not len(part):
            return
        group = rows.group[part]
        size = np.array([each.window_s for each in rows.groups])[group]
        start = np.floor(rows.time[part] / size) * size
        starts, which = np.unique(start, return_inverse=True)
        cells, cell = np.unique((which * 2 + rows.late[part]) * len(rows.groups) + group, return_inverse=True)
        counts = [
            np.bincount(cell, weights, len(cells)).astype(np.int64).tolist()
            for weights in (None, rows.with_id[part], rows.repeated[part])
        ]
        binned = self._bins(rows, part, cell)
        for index, (code, *three) in enumerate(zip(cells.tolist(), *counts, strict=True)):
            place, number = divmod(code, len(rows.groups))
            each = rows.groups[number]
            window = Place(float(starts[place // 2]), each.window_s, bool(place % 2))
            for series in each.series:
                self._add(self._sums(window, series), three, binned.get(index, {}))

    def _bins(self, rows: Predictions, part: Ints, cell: Ints) -> dict[int, dict[str, tuple[Ints, Ints]]]:
        """By cell and class, the bins of confidence that anything is in, and how much."""
        confidence = rows.confidence[part]
        known = np.flatnonzero((confidence >= 0) & (confidence <= 1))
        if not len(known):
            return {}
        bins = np.minimum((confidence[known] * CONFIDENCE_BINS).astype(np.int64), CONFIDENCE_BINS - 1)
        codes, counts = np.unique(
            (cell[known] * len(rows.classes) + rows.label[part][known]) * CONFIDENCE_BINS + bins, return_counts=True
        )
        pairs, firsts = np.unique(codes // CONFIDENCE_BINS, return_index=True)
        found: dict[int, dict[str, tuple[Ints, Ints]]] = {}
        for pair, first, end in zip(pairs.tolist(), firsts, np.append(firsts[1:], len(codes)), strict=True):
            index, number = divmod(pair, len(rows.classes))
            found.setdefault(index, {})[rows.classes[number]] = codes[first:end] % CONFIDENCE_BINS, counts[first:end]
        return found

    def _sums(self, place: Place, series: Series) -> Sums:
        window = self._open.setdefault(place, {})
        sums = window.get(series)
        if sums is None:
            series = self._within_bounds(place, series)
            sums = window.get(series) or self._begin(place, series, Sums())
        return sums

    def _begin(self, place: Place, series: Series, sums: Sums) -> Sums:
        self._open[place][series] = sums
        self._series += 1
        self._names_bytes += series.size
        same = place, *series[:-1]
        self._values[same] = self._values.get(same, 0) + 1
        return sums

    def _within_bounds(self, place: Place, series: Series) -> Series:
        if self._series >= MAX_SERIES or self._names_bytes + series.size > MAX_NAMES_BYTES:
            return BEYOND if series.slice is None else BEYOND._replace(slice=series.slice, value=OTHER)
        values = self._values.get((place, *series[:-1]), 0) if series.slice is not None else 0
        return series._replace(value=OTHER) if values >= MAX_SLICE_VALUES else series

    def _add(self, sums: Sums, counts: Sequence[int], binned: dict[str, tuple[Ints, Ints]]) -> None:
        count, with_id, repeated = counts
        sums.count += count
        sums.with_id += with_id
        sums.repeated += repeated
        for name, (bins, amounts) in binned.items():
            self._histogram(sums, name)[bins] += amounts

    def _histogram(self, sums: Sums, name: str) -> Ints:
        if name not in sums.confidence and (len(sums.confidence) >= MAX_CLASSES or self._histograms >= MAX_HISTOGRAMS):
            name = OTHER
        self._histograms += name not in sums.confidence
        return sums.confidence.setdefault(name, np.zeros(CONFIDENCE_BINS, dtype=np.int64))

    # --- publishing -----------------------------------------------------------------------------------------------

    def _is_closed(self, place: Place) -> bool:
        return not place.late and place.end_s <= self.watermark

    def _publish(self) -> Iterator[Cohort]:
        for place in sorted(place for place in self._open if place.late or self._is_closed(place)):
            window = self._open.pop(place)
            for series in sorted(window, key=repr):
                sums = window[series]
                self._end(place, series, sums)
                yield self._cohort(place, series, sums)
        if self.newest > -inf:
            self._revisions.forget_before(floor(self.watermark - self._told_after_s - max(self._sizes)) - 1)

    def _end(self, place: Place, series: Series, sums: Sums) -> None:
        self._series -= 1
        self._names_bytes -= series.size
        self._histograms -= len(sums.confidence)
        self._values.pop((place, *series[:-1]), None)

    def _cohort(self, place: Place, series: Series, sums: Sums) -> Cohort:
        cohort = self.supplement(series, place) if place.late else self._main(series, place)
        cohort.count, cohort.with_id, cohort.repeated = sums.count, sums.with_id, sums.repeated
        cohort.confidence = {name: sums.confidence[name].tolist() for name in sorted(sums.confidence)}
        return cohort

    def _main(self, series: Series, place: Place) -> Cohort:
        return Cohort(
            service=series.service, model=series.model, model_version=series.version, slice=series.slices,
            part="main", revision=0, start_unix_s=place.start_s, end_unix_s=place.end_s, size_s=place.size_s,
            partition=self._partition, count=0, with_id=0,
        )  # fmt: skip

    def supplement(self, series: Series, place: Place) -> Cohort:
        """An empty one, with a number of its own."""
        cohort = self._main(series, place)
        # By its start, in whole seconds: models may have windows of different lengths.
        cohort.part, cohort.revision = "late", self._revisions.next(floor(place.start_s), series.key)
        return cohort

    # --- memory ---------------------------------------------------------------------------------------------------

    @property
    def memory(self) -> CohortsMemory:
        windows = [
            (*place, [self._remembered(series, sums) for series, sums in window.items()])
            for place, window in self._open.items()
        ]
        return CohortsMemory(None if self.newest == -inf else self.newest, windows, self._revisions.memory)

    def _remembered(self, series: Series, sums: Sums) -> SumsMemory:
        confidence = {
            name: ((bins := np.flatnonzero(counts)).tolist(), counts[bins].tolist())
            for name, counts in sums.confidence.items()
        }
        return SumsMemory(series, sums.count, sums.with_id, sums.repeated, confidence)

    def restore(self, memory: CohortsMemory) -> None:
        self.newest = -inf if memory.newest is None else memory.newest
        self._revisions = Revisions(memory.revisions)
        for start_s, size_s, late, window in memory.windows:
            for each in window:
                sums = Sums(each.count, each.with_id, each.repeated)
                for name, (bins, counts) in each.confidence.items():
                    sums.confidence[name] = np.zeros(CONFIDENCE_BINS, dtype=np.int64)
                    sums.confidence[name][bins] = counts
                place = Place(start_s, size_s, late)
                self._open.setdefault(place, {})
                self._begin(place, each.series, sums)
                self._histograms += len(sums.confidence)
