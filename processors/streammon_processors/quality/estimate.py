"""How often predictions are right, told from their confidence while there are no labels: an estimate, no measurement.

Confidence-based performance estimation (CBPE, as in NannyML): of past pairs it is known how often a prediction of such
a confidence was right; then as many of today's are expected to be, whatever mixture of confidences today brings. So it
sees what a shift of inputs does to quality, as far as confidence moves with it. **It cannot see concept drift**: where
the same confidence is right less often than before, only labels say so, and then `Quality.estimation_error` does.
"""

from __future__ import annotations

from math import sqrt
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from streammon.outcomes import CONFIDENCE_BINS
from streammon.results import Interval
from streammon_processors.quality.intervals import Z, auc_of
from streammon_processors.quality.measures import by_score
from streammon_processors.quality.sums import Floats, Ints

LEAST: Final = 100
"""Pairs with a confidence that must have been labelled before anything is estimated."""
MEMORY: Final = 20_000.0
"""Pairs that are remembered, about: with more, all of them weigh less, so that the newest count most."""
CELL: Final = 40.0
"""Pairs that tell one chance: with fewer, neighbouring bins of confidence are put together."""
FAITH: Final = 0.1
"""As so many pairs it counts, in each bin, that confidence is what it says: decides only where nothing is known."""
_MIDDLES: Final = (np.arange(CONFIDENCE_BINS) + 0.5) / CONFIDENCE_BINS


class Estimate(NamedTuple):
    """What is expected of some predictions."""

    accuracy: float
    where: Interval
    others: dict[str, float]
    """Of two classes: precision, recall, F1 and AUC."""


class Calibration:
    """How often predictions of each group and confidence were right, in the labelled past."""

    def __init__(self, pairs: Floats | None = None) -> None:
        self.pairs = np.zeros((2, CONFIDENCE_BINS, 2)) if pairs is None else pairs

    def learn(self, reliability: Ints) -> None:
        """Take in pairs, by group, confidence, and whether they were wrong or right; shape (2, 50, 2)."""
        self.pairs += reliability
        total = self.pairs.sum()
        if total > MEMORY:
            self.pairs *= MEMORY / total

    def estimate(self, confidence: Ints, *, two: bool = False, positive: bool = False) -> Estimate | None:
        """Of predictions, by group and confidence, shape (2, 50). None: too little is known, of them or of the past.

        ``two``: of two classes; ``positive``: one of which is the positive one.
        """
        total = float(confidence.sum())
        if not total or self.pairs.sum() < LEAST:
            return None
        right, variance, moved = np.zeros(confidence.shape), 0.0, 0.0
        for group in range(2):
            past = _Past.of(self.pairs[group])
            shares = confidence[group] / total
            right[group] = past.chances
            variance += past.variance(shares)
            moved += past.moved(shares)
        accuracy = float((confidence * right).sum() / total)
        variance += float((confidence * right * (1 - right)).sum()) / total**2
        half = Z * sqrt(variance + moved**2)
        where = Interval(max(0.0, accuracy - half), min(1.0, accuracy + half))
        return Estimate(accuracy, where, _of_two(confidence, right, positive) if two else {})


class _Past(NamedTuple):
    """How often predictions of one group were right, by bin of confidence: rising with it, alike within a *block*."""

    chances: Floats
    block: Ints
    """By bin."""
    doubts: Floats
    """By block, the variance of its chance."""
    centres: Floats
    """By block, the mean confidence of its pairs."""

    @classmethod
    def of(cls, pairs: Floats) -> _Past:
        """``pairs``: by bin, wrong and right; shape (50, 2)."""
        weights = pairs.sum(axis=1) + FAITH
        cell = _cells(weights)
        in_cell = np.bincount(cell, weights=weights).astype(np.float64)
        right = np.bincount(cell, weights=pairs[:, 1] + FAITH * _MIDDLES)
        chances, block_of = isotonic(right / in_cell, in_cell)
        block = block_of[cell]
        total = np.bincount(block, weights=weights)
        centres = np.bincount(block, weights=_MIDDLES * weights) / total
        mean = np.bincount(block, weights=chances[cell] * weights) / total
        mean = (mean * total + 1) / (total + 2)  # one that was never wrong may be, still
        return cls(chances[cell], block, mean * (1 - mean) / (total + 3), centres)

    def variance(self, shares: Floats) -> float:
        """Of the accuracy, because the past is a sample. ``shares``: of today's predictions, by bin."""
        in_block = np.bincount(self.block, weights=shares)
        return float((in_block**2 * self.doubts).sum())

    def moved(self, shares: Floats) -> float:
        """By how much the accuracy may be off because today's confidence lies elsewhere in a block than the past's.

        Within a block nothing is known of where its pairs were right: taken is that it may go as confidence does.
        """
        away = np.bincount(self.block, weights=shares * (_MIDDLES - self.centres[self.block]))
        return float(np.abs(away).sum())


def _cells(weights: Floats) -> Ints:
    """Neighbouring bins put together until `CELL` pairs are in each: single pairs at the ends pull what rises."""
    cells, at, inside = np.zeros(len(weights), dtype=np.int64), 0, 0.0
    for place, weight in enumerate(weights.tolist()):
        cells[place] = at
        inside += weight
        if inside >= CELL:
            at, inside = at + 1, 0.0
    cells[cells == at] = max(0, at - 1) if inside < CELL else at
    return cells


def _of_two(confidence: Ints, right: Floats, positive: bool) -> dict[str, float]:
    """Expected precision, recall and F1 of the positive class, and AUC, from the expected confusion matrix."""
    reliability = np.stack([confidence * (1 - right), confidence * right], axis=-1)
    area = auc_of(*by_score(reliability))
    found = {} if area is None else {"auc": area}
    (_, _), (false_yes, true_yes) = reliability.sum(axis=1)
    false_no = float(reliability[0, :, 0].sum())
    if positive and true_yes > 0:
        found["precision"] = float(true_yes / (true_yes + false_yes))
        found["recall"] = float(true_yes / (true_yes + false_no))
        found["f1"] = float(2 * true_yes / (2 * true_yes + false_yes + false_no))
    return found


def isotonic(values: Floats, weights: Floats) -> tuple[Floats, NDArray[Any]]:
    """The nearest values that never fall, by weighted squares, and by value the number of its block of equals.

    Pools neighbours that fall until none do.
    """
    blocks: list[tuple[float, float, int]] = []  # mean, weight, how many values
    for value, weight in zip(values.tolist(), weights.tolist(), strict=True):
        mean, total, size = value, weight, 1
        while blocks and blocks[-1][0] >= mean:
            before, before_total, before_size = blocks.pop()
            mean = (before * before_total + mean * total) / (before_total + total)
            total, size = before_total + total, before_size + size
        blocks.append((mean, total, size))
    sizes = [size for _, _, size in blocks]
    return np.repeat([mean for mean, _, _ in blocks], sizes), np.repeat(np.arange(len(blocks)), sizes)
