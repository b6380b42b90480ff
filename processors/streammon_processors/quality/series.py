"""One series, a model version or a slice of it: its window of labels under way, and cohorts that wait for theirs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
from msgspec import Struct

from streammon import outcomes
from streammon.events import MAX_COUNT
from streammon.outcomes import CONFIDENCE_BINS
from streammon.results import Distribution, bounded
from streammon.sketch import Sketch, merge
from streammon_processors.quality.estimate import Calibration, Estimate
from streammon_processors.quality.sums import Floats, Ints, Packed, Sums

QUANTILES: Final = (0.5, 0.9, 0.99)
POOLED: Final = 5000
"""Delays that are counted at once."""
MOVED: Final = 0.01
"""By how much coverage has to move for another revision."""
TRUSTED: Final = 0.5
"""The coverage from which on a measured accuracy tells what an estimate was off by, for the mean of such errors."""
NEWEST: Final = 20
"""Errors of estimates that their mean is of, about."""
COHORT_BYTES: Final = 80
"""What a cohort takes in a snapshot beside its sums, about."""


class Delays:
    """How long labels took, exactly as sketches add: pooled, for making one takes long."""

    def __init__(self, kept: KeptDelays | None = None) -> None:
        self._kept = kept or KeptDelays()
        self._pending: list[Floats] = []

    def add(self, values: Floats) -> None:
        if not len(values):
            return
        kept = self._kept
        kept.count += len(values)
        kept.sum += float(values.sum())
        kept.min, kept.max = min(kept.min, float(values.min())), max(kept.max, float(values.max()))
        self._pending.append(values)
        if sum(map(len, self._pending)) >= POOLED:
            self.keep()

    def keep(self) -> KeptDelays:
        """All of them, counted."""
        if self._pending:
            new = Sketch.of(np.concatenate(self._pending))
            self._kept.sketch = new if self._kept.sketch is None else merge((self._kept.sketch, new))
            self._pending = []
        return self._kept

    def distribution(self) -> Distribution | None:
        kept = self.keep()
        if kept.sketch is None:
            return None
        p50, p90, p99 = kept.sketch.quantiles(QUANTILES, kept.min, kept.max)
        mean = min(max(kept.sum / kept.count, kept.min), kept.max)
        return Distribution(
            count=kept.count,
            sum=kept.sum,
            min=kept.min,
            max=kept.max,
            mean=mean,
            p50=p50,
            p90=p90,
            p99=p99,
            sketch=kept.sketch,
        )


class KeptDelays(Struct, array_like=True):
    count: int = 0
    sum: float = 0.0
    min: float = np.inf
    max: float = -np.inf
    sketch: Sketch | None = None


class Cohort:
    """The predictions of one stretch of time, and what their labels say so far."""

    def __init__(self, kept: KeptCohort | None = None, sums: Sums | None = None) -> None:
        self.kept = kept or KeptCohort()
        self.sums = sums or Sums()
        self.confidence: Ints | None = None
        """By group and bin, shape (2, 50), until it has been estimated."""
        self.changed = True
        """Whether there is anything that has not been told."""

    def count(self, counted: outcomes.Cohort) -> None:
        """Take in how many predictions there were, and labels without one."""
        kept = self.kept
        kept.predictions = bounded(kept.predictions + counted.count)
        kept.with_id = bounded(kept.with_id + counted.with_id)
        kept.unmatched = bounded(kept.unmatched + counted.unmatched_labels)
        self.changed = True

    def expect(self, confidence: Mapping[str, list[int]], is_positive: Callable[[str], bool]) -> None:
        """Take in how sure they were, by prediction: what an estimate is made of."""
        if self.confidence is None:
            self.confidence = np.zeros((2, CONFIDENCE_BINS), dtype=np.int64)
        for name, counts in confidence.items():
            mine = self.confidence[int(is_positive(name))]
            np.minimum(mine + np.array(counts, dtype=np.int64), MAX_COUNT, out=mine)

    @property
    def known(self) -> int:
        """How much has come for its predictions: labels, scores, ratings."""
        return int(self.sums["labelled"] + self.sums["scored"] + self.sums["rated"])

    @property
    def coverage(self) -> float | None:
        """The share of predictions that have a label, of those that can have one."""
        return min(1.0, self.sums["labelled"] / self.kept.with_id) if self.kept.with_id else None

    def is_due(self, now_unix_s: float, size_s: float) -> bool:
        """Whether another revision is worth its while: at most one in its own length of time."""
        if not self.changed or now_unix_s - self.kept.told_unix_s < size_s:
            return False
        moved = abs(self.known - self.kept.told) + abs(self.kept.predictions - self.kept.told_predictions)
        return moved >= MOVED * max(self.kept.with_id, self.kept.told, 1)


class KeptCohort(Struct, array_like=True):
    """What is remembered of a `Cohort` beside its sums."""

    predictions: int = 0
    with_id: int = 0
    unmatched: int = 0
    revision: int = 0
    """The next one."""
    told: int = 0
    """How much was known in the last one, and how many predictions; and when that was."""
    told_predictions: int = 0
    told_unix_s: float = 0.0
    estimate: Estimate | None = None
    judged: bool = False
    """Whether its estimate counts in the mean of errors."""


class Series:
    """What is known of a model version, or of those of its predictions with some value of a slice."""

    def __init__(self, name: str = "", value: str = "") -> None:
        self.slice = {name: value} if name else {}
        self.window: Sums | None = None
        self.delays: Delays | None = None if name else Delays()
        self.cohorts: dict[int, Cohort] = {}
        self.calibration = Calibration()
        self.error = 0.0
        self.errors = 0

    @property
    def is_idle(self) -> bool:
        """Nothing waits here."""
        return self.window is None and not self.cohorts

    def cohort(self, number: int, told_before: int) -> Cohort:
        """That of a number. The first revision, 0, is told when its time is over: one that comes later has none."""
        if number not in self.cohorts:
            self.cohorts[number] = Cohort(KeptCohort(revision=int(number < told_before)))
        return self.cohorts[number]

    def note_error(self, cohort: Cohort, error: float) -> None:
        """Count, once a cohort, what its estimate was off by."""
        cohort.kept.judged = True
        self.errors = min(self.errors + 1, NEWEST)
        self.error += (abs(error) - self.error) / self.errors

    def end_window(self) -> None:
        """Learn from the window of labels, and begin another one."""
        if self.window is not None:
            self.calibration.learn(self.window.reliability)
        self.window = None
        self.delays = None if self.delays is None else Delays()

    @property
    def weight(self) -> int:
        """How many bytes a snapshot of it takes, at most."""
        cohorts = sum(each.sums.weight + COHORT_BYTES for each in self.cohorts.values())
        histograms = 800 * sum(each.confidence is not None for each in self.cohorts.values())
        window = self.window.weight if self.window else 0
        return cohorts + histograms + window + 10 * int(np.count_nonzero(self.calibration.pairs)) + 200

    # --- what is remembered -----------------------------------------------------------------------------------------

    def keep(self) -> KeptSeries:
        places = np.flatnonzero(self.calibration.pairs)
        return KeptSeries(
            slice=self.slice,
            window=self.window.pack() if self.window else None,
            delays=self.delays.keep() if self.delays else None,
            cohorts=[_kept(number, cohort) for number, cohort in self.cohorts.items()],
            calibration=(places.astype("<u2").tobytes(), self.calibration.pairs.ravel()[places].tobytes()),
            error=self.error,
            errors=self.errors,
        )

    @classmethod
    def restored(cls, kept: KeptSeries) -> Series:
        series = cls(*next(iter(kept.slice.items()), ()))
        series.window = Sums.unpack(kept.window) if kept.window else None
        series.delays = Delays(kept.delays) if kept.delays else None
        for number, part, sums, confidence, changed in kept.cohorts:
            series.cohorts[number] = cohort = Cohort(part, Sums.unpack(sums))
            cohort.confidence = np.frombuffer(confidence, dtype="<i8").reshape(2, -1).copy() if confidence else None
            cohort.changed = changed
        places, values = kept.calibration
        series.calibration.pairs.ravel()[np.frombuffer(places, dtype="<u2")] = np.frombuffer(values)
        series.error, series.errors = kept.error, kept.errors
        return series


def _kept(number: int, cohort: Cohort) -> tuple[int, KeptCohort, Packed, bytes, bool]:
    confidence = b"" if cohort.confidence is None else cohort.confidence.astype("<i8").tobytes()
    return number, cohort.kept, cohort.sums.pack(), confidence, cohort.changed


class KeptSeries(Struct, array_like=True):
    """A `Series` in a snapshot."""

    slice: dict[str, str]
    window: Packed | None
    delays: KeptDelays | None
    cohorts: list[tuple[int, KeptCohort, Packed, bytes, bool]]
    calibration: tuple[bytes, bytes]
    error: float
    errors: int
