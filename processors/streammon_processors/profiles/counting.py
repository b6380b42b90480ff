"""What one window holds of each model version: the counts of a profile.

Everything depends on the order of the events only, never on how they were cut into calls: sums of floats are made one
value after the other, and whoever comes beyond a cap is decided in the order of the log.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from math import isnan
from typing import Any, NamedTuple

import numpy as np

from streammon.models import DriftPolicy
from streammon.profiles import CoMoments, Numbers, Reference, TargetProfile, TargetReference
from streammon.results import OTHER
from streammon.sketch import Sketch, SketchBag
from streammon.wire import Floats
from streammon_processors.aggregate import sortable
from streammon_processors.chunk import Chunk, Ints, Series
from streammon_processors.profiles.targets import ALWAYS, MAX_TARGETS, Column, Events, Fields, by_series

MAX_VERSIONS = 100
"""Model versions kept apart in one window of a partition; the others are only counted, as ``__other__``. A target takes
about 10 kB while its window is open."""
MAX_LEFT_OUT = 1000
"""So far left-out targets are counted."""
MAX_UNSEEN, MAX_CATEGORY_CHARS = 50, 120
"""Categories that the reference does not know, of one target; more, and longer ones, are counted as ``other``."""
SKETCH_BUCKETS = 256
"""Of the sketch of a target: beside bins it has to be mergeable, not fine. A profile stays below 4 kB a target."""
LARGEST = sys.float_info.max

Policies = Callable[[Series], DriftPolicy]
References = Callable[[Series, int], Reference | None]
"""The reference that holds for a series in the window of that number."""


class Counts:
    """The categories of one target: those that are known, and the first others."""

    def __init__(self, known: Iterable[str], most: int) -> None:
        self.values = dict.fromkeys(known, 0)
        self.other = 0
        self._room = most

    def add(self, texts: Iterable[str]) -> None:
        for value, count in Counter(texts).items():
            if value in self.values:
                self.values[value] += count
            elif self._room > 0 and len(value) <= MAX_CATEGORY_CHARS:
                self.values[value] = count
                self._room -= 1
            else:
                self.other += count

    def present(self) -> dict[str, int] | None:
        """Those that there are, by name."""
        return {value: count for value, count in sorted(self.values.items()) if count} or None


class Moments:
    """Count, extremes and sums of numbers; squares about a center."""

    def __init__(self, center: float) -> None:
        self.center = center
        self.count = 0
        self.min, self.max = np.inf, -np.inf
        self.sum = self.squares = 0.0

    def add(self, numbers: Floats) -> None:
        self.count += len(numbers)
        self.min, self.max = min(self.min, float(numbers.min())), max(self.max, float(numbers.max()))
        with np.errstate(over="ignore", invalid="ignore"):
            self.sum = one_by_one(self.sum, numbers)
            self.squares = one_by_one(self.squares, (numbers - self.center) ** 2)


def one_by_one(start: float, values: Floats) -> float:
    """A sum from left to right: the same however its values are cut into calls."""
    return float(np.cumsum(np.concatenate(([start], values)))[-1])


def finite(value: float) -> float:
    """JSON has no infinity, and no NaN."""
    return 0.0 if isnan(value) else min(max(value, -LARGEST), LARGEST)


def together(x: Column, y: Column) -> Floats:
    """The numbers of the events that have both; shape (2, n)."""
    if len(x.at) != len(y.at) or (x.at != y.at).any():
        _, mine, other = np.intersect1d(x.at, y.at, assume_unique=True, return_indices=True)
        return np.array([x.numbers[mine], y.numbers[other]])
    return np.array([x.numbers, y.numbers])


class Pair:
    """What two targets have to do with each other, over the events that have both."""

    def __init__(self, centers: tuple[float, float] | None) -> None:
        self._centers = centers  # None: the first values, once they are there
        self._count = 0
        self._sums = np.zeros(5)  # of x, y, xx, yy and xy, about the centers

    def add(self, x: Column, y: Column) -> None:
        numbers = together(x, y)
        if not numbers.size:
            return
        if self._centers is None:
            self._centers = float(numbers[0, 0]), float(numbers[1, 0])
        self._count += numbers.shape[1]
        with np.errstate(over="ignore", invalid="ignore"):
            dx, dy = numbers - np.array(self._centers)[:, None]
            terms = np.array([dx, dy, dx * dx, dy * dy, dx * dy])
            self._sums = np.cumsum(np.column_stack([self._sums, terms]), axis=1)[:, -1]

    def moments(self) -> CoMoments | None:
        if not self._count or self._centers is None:
            return None
        n = self._count
        x, y, xx, yy, xy = self._sums.tolist()
        return CoMoments(
            count=n,
            mean_x=finite(self._centers[0] + x / n),
            mean_y=finite(self._centers[1] + y / n),
            m2_x=max(0.0, finite(xx - x * x / n)),
            m2_y=max(0.0, finite(yy - y * y / n)),
            c_xy=finite(xy - x * y / n),
        )


class _Target:
    """One target of one model version."""

    def __init__(self, cell: int, reference: TargetReference | None) -> None:
        self.cell = cell  # in the sketches
        self._edges = np.array(reference.edges or () if reference else (), dtype=np.float64)
        self._bins = np.zeros(len(self._edges) + 1, dtype=np.int64)
        self._moments = Moments(reference.center if reference else 0.0)
        self._categories = Counts(reference.values or () if reference else (), MAX_UNSEEN)
        self._types: Counter[str] = Counter()

    def add(self, column: Column) -> None:
        self._types.update(column.types)
        if column.texts:
            self._categories.add(column.texts)
        if len(column.numbers):
            self._moments.add(column.numbers)
            if len(self._edges):
                at = self._edges.searchsorted(column.numbers)
                self._bins += np.bincount(at, minlength=len(self._bins))

    def profile(self, events: int, sketch: Sketch | None) -> TargetProfile:
        return TargetProfile(
            missing=events - self._types.total(),
            types=dict(sorted(self._types.items())),
            numbers=self._numbers(sketch) if sketch is not None else None,
            values=self._categories.present(),
            other=self._categories.other,
        )

    def _numbers(self, sketch: Sketch) -> Numbers:
        m = self._moments
        return Numbers(
            count=m.count,
            min=m.min,
            max=m.max,
            sum=finite(m.sum),
            sum_of_squares=finite(m.squares),
            sketch=sketch.within(SKETCH_BUCKETS),
            bins=self._bins.tolist() if len(self._edges) else None,
        )


class _Pooled(NamedTuple):
    """Numbers for the sketches, which take many at once."""

    cells: list[int]
    numbers: list[Floats]


class _Version:
    """One model version in one window."""

    def __init__(self, number: int, policy: DriftPolicy, reference: Reference | None) -> None:
        self.policy = policy
        self.count = 0
        self._reference = reference
        self._first_cell = number * (MAX_TARGETS + len(ALWAYS))
        self._targets: dict[str, _Target] = {}
        self._pairs = {pair: Pair(self._centers(*pair)) for pair in policy.pairs}
        self._left_out: set[str] = set()
        for name in reference.targets if reference is not None else ():
            self._new(name)  # that it is missing has to be seen, too

    def _centers(self, x: str, y: str) -> tuple[float, float] | None:
        targets = {} if self._reference is None else self._reference.targets
        return (targets[x].center, targets[y].center) if x in targets and y in targets else None

    def add(self, events: Events, pooled: _Pooled) -> None:
        self.count += len(events)
        columns = events.columns(name for name in events.names() if name in ALWAYS or self._admit(name))
        for name, column in columns.items():
            target = self._targets.get(name) or self._new(name)
            target.add(column)
            if len(column.numbers):
                pooled.cells.append(target.cell)
                pooled.numbers.append(column.numbers)
        for (x, y), pair in self._pairs.items():
            if x in columns and y in columns:
                pair.add(columns[x], columns[y])

    def _admit(self, name: str) -> bool:
        """Whether there is room for a feature: for the first ones, whatever they hold."""
        if name not in self._targets:
            if len(self._targets.keys() - set(ALWAYS)) < MAX_TARGETS:
                self._new(name)
            elif len(self._left_out) < MAX_LEFT_OUT:
                self._left_out.add(name)
        return name in self._targets

    def _new(self, name: str) -> _Target:
        known = self._reference.targets.get(name) if self._reference is not None else None
        target = self._targets[name] = _Target(self._first_cell + len(self._targets), known)
        return target

    def fields(self, sketches: dict[int, Sketch]) -> dict[str, Any]:
        pairs = {f"{x},{y}": moments for (x, y), pair in self._pairs.items() if (moments := pair.moments())}
        targets = sorted(self._targets.items())
        return {
            "count": self.count,
            "reference": None if self._reference is None else self._reference.id,
            "targets": {name: target.profile(self.count, sketches.get(target.cell)) for name, target in targets},
            "pairs": pairs,
            "left_out": len(self._left_out),
        }


class _Unprofiled:
    """All versions beyond the cap: only how many events they had."""

    def __init__(self) -> None:
        self.count = 0

    def fields(self, _: dict[int, Sketch]) -> dict[str, Any]:
        return {"count": self.count, "targets": {}}


class ProfileCounting:
    """The events of one window, by model version; see `streammon_processors.event_windows.Counting`."""

    def __init__(self, number: int, policies: Policies, references: References) -> None:
        self._number, self._policies, self._references = number, policies, references
        self._versions: dict[Series, _Version | _Unprofiled] = {}
        self._bag = SketchBag()

    def add(self, chunk: Chunk, rows: Ints, keys: list[Series], codes: Ints) -> None:
        fields, pooled = Fields(chunk), _Pooled([], [])
        for series, mine in by_series(chunk, rows, keys, codes):
            version = self._version(series)
            if isinstance(version, _Unprofiled):
                version.count += len(mine)
            else:
                version.add(fields.of(mine, version.policy), pooled)
        if pooled.cells:
            cells = np.repeat(np.array(pooled.cells), [len(numbers) for numbers in pooled.numbers])
            self._bag.add(cells, np.concatenate(pooled.numbers))

    def _version(self, series: Series) -> _Version | _Unprofiled:
        if series not in self._versions and (len(self._versions) >= MAX_VERSIONS or OTHER in series[:1]):
            return self._versions.setdefault((OTHER,) * len(series), _Unprofiled())
        if series not in self._versions:
            reference = self._references(series, self._number)
            self._versions[series] = _Version(len(self._versions), self._policies(series), reference)
        return self._versions[series]

    def results(self) -> Iterator[tuple[Series, dict[str, Any]]]:
        sketches = self._bag.sketches()
        for series, version in sorted(self._versions.items(), key=lambda item: sortable(item[0])):
            yield series, version.fields(sketches)
