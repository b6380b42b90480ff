"""What one window holds of each model version: the counts of a profile.

Everything depends on the order of the events only, never on how they were cut into calls: sums of floats are made one
value after the other, and whoever comes beyond a cap is decided in the order of the log.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from streammon.models import DriftPolicy
from streammon.profiles import Numbers, Reference, TargetProfile, TargetReference
from streammon.results import OTHER
from streammon.sketch import Sketch, SketchBag
from streammon.wire import Floats
from streammon_processors.aggregate import sortable
from streammon_processors.chunk import Chunk, Ints, Series
from streammon_processors.profiles.sample import Sample
from streammon_processors.profiles.sums import Counts, Moments, Pair, finite
from streammon_processors.profiles.targets import ALWAYS, MAX_NAME_CHARS, MAX_TARGETS, Column, Events, Fields, by_series

MAX_VERSIONS = 100
"""Model versions kept apart in one window of a partition; the others are only counted, as ``__other__``. A target takes
about 10 kB while its window is open."""
MAX_LEFT_OUT = 1000
"""So far left-out targets are counted."""
MAX_UNSEEN = 50
"""Categories that the reference does not know, of one target; more are counted as ``other``."""
SKETCH_BUCKETS = 256
"""Of the sketch of a target: beside bins it has to be mergeable, not fine. A profile stays below 4 kB a target."""

Policies = Callable[[Series], DriftPolicy]
References = Callable[[Series, int], Reference | None]
"""The reference that holds for a series in the window of that number."""


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
    """One model version in one window. ``sample``: of one without a reference, its first events as they are."""

    def __init__(self, number: int, policy: DriftPolicy, reference: Reference | None) -> None:
        self.policy = policy
        self.count = 0
        self._reference = reference
        self._first_cell = number * (MAX_TARGETS + len(ALWAYS))
        self._targets: dict[str, _Target] = {}
        self._pairs = {pair: Pair(self._centers(*pair)) for pair in policy.pairs}
        self._left_out: set[str] = set()
        self.sample = Sample(policy) if reference is None else None
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
        if self.sample is not None and self.sample.lacking:
            if len(events) > self.sample.lacking:
                events = events.first(self.sample.lacking)
                columns = events.columns(columns)
            self.sample.add(columns, len(events))

    def _admit(self, name: str) -> bool:
        """Whether there is room for a feature: for the first ones, whatever they hold."""
        if name not in self._targets:
            if len(name) <= MAX_NAME_CHARS and len(self._targets.keys() - set(ALWAYS)) < MAX_TARGETS:
                self._new(name)
            elif len(self._left_out) < MAX_LEFT_OUT:
                self._left_out.add(name[:MAX_NAME_CHARS])
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
            "sample": self.sample,
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
