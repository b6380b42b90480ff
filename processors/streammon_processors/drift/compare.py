"""One window of a model version against its reference: which tests, what they say, and which of them are drift.

`compare` makes all tests, `judge` decides. A test is drift if both hold:

- *it is no chance*: its q-value, among all tests of the window, is at most the level that the budget leaves;
- *it matters*: its effect, which is the statistic without what chance brings on average, reaches the threshold. With
  many values the smallest change is no chance, and nobody wants to be told of it.

Every target has one test of its distribution. Which one is decided by its kind and by the size of the reference, not of
the window, lest the test of a target be another one at night:

===============  ====================================  =====================================================
kind             a reference of up to 1,000            of more
===============  ====================================  =====================================================
numeric, text    `ks`                                  `jensen_shannon`
categorical      `chi_square`                          `jensen_shannon`
===============  ====================================  =====================================================

(`wasserstein` is for who asks for it: divided by the standard deviation, it sees no shift in a heavy tail.)

and, where they apply, checks of schema and quality, of which `check_*` say what each is. Of these nothing is told as
long as nothing is wrong; but all of them are in the family, found or not, as what they find must not decide how many
there are.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from math import inf, sqrt
from typing import Final

import numpy as np

from streammon.models import DriftPolicy, TestName
from streammon.profiles import CoMoments, Reference, TargetReference
from streammon_processors.drift import chances
from streammon_processors.drift.multiplicity import q_values
from streammon_processors.drift.sample import Sample, Side, correlation
from streammon_processors.drift.statistics import OF_NUMBERS, TESTS, Ints, Table, places_of

LARGE: Final = 1000
"""Of more values than this, what matters is how large a difference is; of fewer, whether there is one."""
CORRELATION_THRESHOLD: Final = 0.2
DATASET: Final = "dataset"
SHARE_OF_WEIGHT: Final = "share_of_weight"


class NotTested(StrEnum):
    """Why there is no test. The values are labels: add, never rename."""

    TOO_FEW_SAMPLES = "too_few_samples"
    TOO_SMALL_REFERENCE = "too_small_reference"
    NO_REFERENCE = "no_reference"  # the profiles are of before the first one
    UNKNOWN_REFERENCE = "unknown_reference"  # that of the profiles is not in the log any more
    NO_PAST = "no_past"  # of a rolling reference, or of the same hour last week
    OTHER_BINS = "other_bins"  # the counts are not of the reference's bins
    NOT_FOR_CATEGORIES = "not_for_categories"  # the policy asks for a test of numbers
    LEFT_OUT = "left_out"  # more targets than a profile may have


@dataclass(frozen=True)
class Finding:
    """A test of one target, or why there is none."""

    target: str
    detector: str
    threshold: float
    sample_size: int
    reference_size: int
    weight: float = 1.0
    statistic: float = 0.0
    p_value: float | None = None
    effect: float | None = None
    reason: NotTested | None = None
    q_value: float | None = None
    drifted: bool = False

    @property
    def is_check(self) -> bool:
        """Whether it is told only when something is wrong."""
        return self.detector not in TESTS and self.detector != SHARE_OF_WEIGHT


# ---------------------------------------------------------------- which are drift


def judge(tests: Sequence[Finding], policy: DriftPolicy, alpha: float) -> list[Finding]:
    """The same, with q-values and verdicts, and last what they say of the model as a whole."""
    family = [each for each in tests if each.p_value is not None]
    adjusted = q_values(
        [each.p_value or 0.0 for each in family], [each.weight for each in family], policy.false_discovery
    )
    by_test = {id(each): q for each, q in zip(family, adjusted, strict=True)}
    judged = [_verdict(each, by_test.get(id(each)), alpha) for each in tests]
    return [*judged, _dataset(judged, policy)] if judged else []


def _verdict(test: Finding, q_value: float | None, alpha: float) -> Finding:
    no_chance = q_value is not None and q_value <= alpha
    return replace(test, q_value=q_value, drifted=no_chance and (test.effect or 0.0) >= test.threshold)


def _dataset(judged: Sequence[Finding], policy: DriftPolicy) -> Finding:
    """The share of the weight of all tested targets that has drifted, by any test."""
    drifted = {each.target for each in judged if each.drifted}
    known = [each for each in judged if not each.is_check and (not each.reason or each.target in drifted)]
    weights = {each.target: each.weight for each in known}
    total = sum(weights.values())
    share = sum(weight for target, weight in weights.items() if target in drifted) / total if total else 0.0
    return Finding(
        DATASET,
        SHARE_OF_WEIGHT,
        policy.dataset_share,
        max(each.sample_size for each in judged),
        max(each.reference_size for each in judged),
        statistic=share,
        effect=share,
        reason=None if total else judged[0].reason,
        drifted=total > 0 and share >= policy.dataset_share,
    )


def untested(reason: NotTested, sample_size: int, reference_size: int, policy: DriftPolicy) -> Finding:
    """What there is to say of a window of which nothing can be tested."""
    return Finding(DATASET, SHARE_OF_WEIGHT, policy.dataset_share, sample_size, reference_size, reason=reason)


# ---------------------------------------------------------------- all tests of a window


def compare(now: Sample, before: Sample, frame: Reference, policy: DriftPolicy) -> list[Finding]:
    """``now`` against ``before``, both counted in the bins of ``frame``, by targets in the order of their names."""
    pairs = [_Target(name, frame.targets[name], now, before, policy) for name in sorted(frame.targets)]
    tests = [test for target in pairs for test in target.tests()]
    return [*tests, *_new_targets(now, frame, policy), *_correlations(now, before, policy)]


class _Target:
    """One target of both samples."""

    def __init__(self, name: str, frame: TargetReference, now: Sample, before: Sample, policy: DriftPolicy) -> None:
        self._name = name
        self._frame = frame
        self._now, self._before = now.of(name), before.of(name)
        self._unknown = bool(now.left_out) and name not in now.targets
        self._policy = policy
        self._weight = policy.weights.get(name, 1.0)

    def tests(self) -> Iterator[Finding]:
        if self._unknown:
            yield self._untested(NotTested.LEFT_OUT)
            return
        yield self._distribution()
        if not self._now.present and self._before.present:
            yield from self.check_lost()
            return
        if self._is_enough:
            yield from self.check_missing()
        if self._has_values:
            yield from self.check_type()
            yield from self.check_range()
            yield from self.check_unseen()
            yield from self.check_distinct()

    # --- its distribution -------------------------------------------------------------------------------------------

    @property
    def _is_categorical(self) -> bool:
        return self._frame.kind == "categorical"

    @property
    def test(self) -> TestName:
        """The one that is asked for, or the one of the table above."""
        if self._name in self._policy.tests:
            return self._policy.tests[self._name]
        is_large = sum(self._frame.types.values()) > LARGE
        return "jensen_shannon" if is_large else "chi_square" if self._is_categorical else "ks"

    def _distribution(self) -> Finding:
        reason = self._why_not()
        if reason:
            return self._untested(reason)
        outcome = TESTS[self.test](self._table)
        reference_size, sample_size = self._sizes
        return Finding(self._name, self.test, self._threshold, sample_size, reference_size, self._weight, *outcome)

    def _why_not(self) -> NotTested | None:
        if self._is_categorical and self.test in OF_NUMBERS:
            return NotTested.NOT_FOR_CATEGORIES
        if not self._is_categorical and not self._fit:
            return NotTested.OTHER_BINS
        reference_size, sample_size = self._sizes
        if reference_size < self._policy.min_samples:
            return NotTested.TOO_SMALL_REFERENCE
        return NotTested.TOO_FEW_SAMPLES if sample_size < self._policy.min_samples else None

    @property
    def _fit(self) -> bool:
        size = len(self._frame.edges or ()) + 1
        return all(side.bins is None or len(side.bins) == size for side in (self._now, self._before))

    @property
    def _sizes(self) -> tuple[int, int]:
        """Of the reference and of the window, as the test counts them."""
        if self.test in OF_NUMBERS:
            return self._before.numbers, self._now.numbers
        return self._before.present + self._before.missing, self._now.present + self._now.missing

    @property
    def _table(self) -> Table:
        if self._is_categorical:
            return Table(*_categories(self._before, self._now))
        size = len(self._frame.edges or ()) + 1
        edges = np.array(self._frame.edges or (), dtype=np.float64)
        low, high = self._frame.min or 0.0, self._frame.max or 0.0
        if self._frame.min is None:  # no number in it
            low, high = (float(edges[0]), float(edges[-1])) if len(edges) else (0.0, 0.0)
        rows = [
            np.array([*(side.bins or [0] * size), max(0, side.present - side.numbers), side.missing], dtype=np.int64)
            for side in (self._before, self._now)
        ]
        return Table(rows[0], rows[1], size, places_of(edges, low, high), self._scale)

    @property
    def _scale(self) -> float:
        std = self._frame.std or 0.0
        return std if 0 < std < inf else 1.0

    @property
    def _threshold(self) -> float:
        return self._policy.thresholds.get(self._name, self._policy.threshold)

    def _untested(self, reason: NotTested) -> Finding:
        reference_size, sample_size = self._sizes
        return Finding(self._name, self.test, self._threshold, sample_size, reference_size, self._weight, reason=reason)

    # --- schema and quality -----------------------------------------------------------------------------------------

    @property
    def _is_enough(self) -> bool:
        sides = (self._before, self._now)
        return all(side.present + side.missing >= self._policy.min_samples for side in sides)

    @property
    def _has_values(self) -> bool:
        return all(side.present >= self._policy.min_samples for side in (self._before, self._now))

    def check_lost(self) -> Iterator[Finding]:
        """``lost_target``: no event has it, and enough of the reference's had that this is no chance."""
        before, now = self._before, self._now
        if now.missing < self._policy.min_samples:
            return
        size = before.present + before.missing
        chance = chances.as_far(before.present, size, 0, now.missing)
        share = before.present / size
        yield self._share("lost_target", share, share, chance, now.missing, size)

    def check_missing(self) -> Iterator[Finding]:
        """``missing``: another share of the events lacks it, or has null. Fisher's exact test, both ways."""
        before, now = self._before, self._now
        sizes = before.present + before.missing, now.present + now.missing
        distance = abs(now.missing / sizes[1] - before.missing / sizes[0])
        chance = chances.as_far(before.missing, sizes[0], now.missing, sizes[1])
        yield self._share("missing", distance, distance, chance, sizes[1], sizes[0])

    def check_type(self) -> Iterator[Finding]:
        """``type_change``: more values are of another type than most of the reference's. Fisher's exact test."""
        before, now = self._before, self._now
        usual = max(before.types, key=lambda name: (before.types[name], name))
        others = [side.present - side.types.get(usual, 0) for side in (before, now)]
        excess = others[1] / now.present - others[0] / before.present
        chance = chances.at_least(others[0], before.present, others[1], now.present)
        yield self._share("type_change", others[1] / now.present, excess, chance, now.present, before.present)

    def check_range(self) -> Iterator[Finding]:
        """``range``: more values lie outside the bins that the reference's own values lie in.

        Outside those of a reference that fixed the bins lies none of its own, and to compare with none would be
        unfair: see `chances.beyond_range`. Of another reference, Fisher's exact test.
        """
        if self._is_categorical or not self._fit or not self._frame.edges:
            return
        before, now = self._before, self._now
        outside = [side.bins[0] + side.bins[-1] if side.bins else 0 for side in (before, now)]
        sizes = before.numbers, now.numbers
        if min(sizes) < self._policy.min_samples:
            return
        expected = outside[0] / sizes[0] if outside[0] else 2 / (sizes[0] + 1)
        chance = (
            chances.at_least(outside[0], sizes[0], outside[1], sizes[1])
            if outside[0]
            else chances.beyond_range(sizes[0], outside[1], sizes[1])
        )
        share = outside[1] / sizes[1]
        yield self._share("range", share, share - expected, chance, sizes[1], sizes[0])

    def check_unseen(self) -> Iterator[Finding]:
        """``unseen``: more values are of categories that the reference has not.

        How many are to be expected is told by the categories that it has once (Good 1953): as large a share of new
        values is new. Fisher's exact test against these.
        """
        before, now = self._before, self._now
        if not self._is_categorical or before.other:
            return
        unseen = max(0, now.present - sum(now.values.get(value, 0) for value in before.values))
        once = sum(count == 1 for count in before.values.values())
        chance = chances.at_least(once, before.present, unseen, now.present)
        share = unseen / now.present
        yield self._share("unseen", share, share - once / before.present, chance, now.present, before.present)

    def check_distinct(self) -> Iterator[Finding]:
        """``distinct``: more categories than to be expected are in one of the two alone, as a share of all."""
        before, now = self._before, self._now
        if not self._is_categorical or before.other:
            return
        known = [*dict.fromkeys([*before.values, *now.values])]
        rows = [np.array([side.values.get(value, 0) for value in known], dtype=np.int64) for side in (before, now)]
        if not all(row.sum() for row in rows):
            return
        excess, chance = chances.another_choice(rows[0], rows[1])
        alone = int((rows[0] == 0).sum() + (rows[1] == 0).sum())
        found = alone / len(known), chance, excess / len(known)
        yield Finding(self._name, "distinct", self._policy.threshold, now.present, before.present, self._weight, *found)

    def _share(
        self, detector: str, statistic: float, effect: float, chance: float, sample_size: int, reference_size: int
    ) -> Finding:
        threshold = self._policy.share_threshold
        found = (statistic, chance, max(0.0, effect))
        return Finding(self._name, detector, threshold, sample_size, reference_size, self._weight, *found)


def _categories(before: Side, now: Side) -> tuple[Ints, Ints]:
    """Counts of the categories of both, of all others, and of what is missing.

    Not of the reference's alone: which of many rare ones it has is chance, and the others would seem to be new. Those
    that are rare in both together are merged, which favours neither.
    """
    known = [*dict.fromkeys([*before.values, *now.values])]

    def row(side: Side) -> Ints:
        counts = [side.values.get(value, 0) for value in known]
        return np.array([*counts, max(0, side.present - sum(counts)), side.missing], dtype=np.int64)

    return row(before), row(now)


def _new_targets(now: Sample, frame: Reference, policy: DriftPolicy) -> Iterator[Finding]:
    """``new_target``: events have a target that none of the reference's have. Fisher's exact test."""
    if now.count < policy.min_samples:
        return
    for name in sorted(now.targets.keys() - frame.targets.keys()):
        present, sizes = now.targets[name].present, (now.count, frame.sample_size)
        chance = chances.at_least(0, sizes[1], present, sizes[0])
        share, weight = present / sizes[0], policy.weights.get(name, 1.0)
        yield Finding(name, "new_target", policy.share_threshold, *sizes, weight, share, chance, share)


def _correlations(now: Sample, before: Sample, policy: DriftPolicy) -> Iterator[Finding]:
    """``correlation``: of a declared pair, it is another one. Its target is ``X,Y``."""
    for pair, (first, second) in _pairs(now, before, policy.min_samples):
        r, was = correlation(second), correlation(first)
        if r is None or was is None:
            continue
        chance = chances.correlations(was, first.count, r, second.count)
        noise = sqrt(1 / first.count + 1 / second.count) * (1 - was * was)
        effect = sqrt(max(0.0, (r - was) ** 2 - noise**2))
        sizes = second.count, first.count
        yield Finding(pair, "correlation", CORRELATION_THRESHOLD, *sizes, 1.0, abs(r - was), chance, effect)


def _pairs(now: Sample, before: Sample, least: int) -> Iterator[tuple[str, tuple[CoMoments, CoMoments]]]:
    for pair in sorted(now.pairs.keys() & before.pairs.keys()):
        both = before.pairs[pair], now.pairs[pair]
        if min(each.count for each in both) >= least:
            yield pair, both
