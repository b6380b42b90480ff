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
        right, variance = np.zeros(confidence.shape), 0.0
        for group in range(2):
            chances, block_of, doubts = self._chances(group)
            right[group] = chances
            shares = np.bincount(block_of, weights=confidence[group] / total)
            variance += float((shares**2 * doubts).sum())
        accuracy = float((confidence * right).sum() / total)
        variance += float((confidence * right * (1 - right)).sum()) / total**2
        half = Z * sqrt(variance)
        where = Interval(max(0.0, accuracy - half), min(1.0, accuracy + half))
        return Estimate(accuracy, where, _of_two(confidence, right, positive) if two else {})

    def _chances(self, group: int) -> tuple[Floats, Ints, Floats]:
        """By bin, how often a prediction is right, rising with confidence; its block; and the variance of blocks."""
        wrong, right = self.pairs[group].T
        weights = wrong + right + FAITH
        chances, block_of = isotonic((right + FAITH * _MIDDLES) / weights, weights)
        pairs = np.bincount(block_of, weights=weights)
        mean = np.bincount(block_of, weights=chances * weights) / pairs
        mean = (mean * pairs + 1) / (pairs + 2)  # one that was never wrong may be, still
        return chances, block_of, mean * (1 - mean) / (pairs + 3)


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
