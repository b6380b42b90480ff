"""Where a measure lies with 95 % confidence, from sums alone: no resampling, and nothing that has to be kept.

Each is the usual one whose coverage is near 95 % for small samples and values near the ends of their range, too.
`tests/processors/test_quality_intervals.py` holds each to 93–97 % in simulations. None: too little is known.
"""

from __future__ import annotations

from math import exp, inf, isfinite, log, sqrt
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from streammon.results import Interval

Ints: TypeAlias = NDArray[np.int64]
Floats: TypeAlias = NDArray[np.float64]

Z: Final = 1.959963984540054
"""The 97.5 % quantile of the normal distribution."""


def t_quantile(degrees: float) -> float:
    """The 97.5 % quantile of Student's t (Cornish-Fisher); from 3 degrees on within 0.3 %."""
    z, n = Z, degrees
    return (
        z
        + (z**3 + z) / (4 * n)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3)
        + (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / (92160 * n**4)
    )


def wilson(successes: float, trials: float) -> Interval | None:
    """Of a proportion: Wilson's score interval."""
    if trials <= 0:
        return None
    share = successes / trials
    centre = share + Z**2 / (2 * trials)
    half = Z * sqrt(max(0.0, share * (1 - share) / trials + Z**2 / (4 * trials**2)))
    scale = 1 + Z**2 / trials
    return Interval(max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale))


def f1_interval(hits: float, misses: float) -> Interval | None:
    """Of F1 = 2h / (2h + m), m false positives and negatives: Wilson's of h / (h + m), which F1 rises with."""
    share = wilson(hits, hits + misses)
    return None if share is None else Interval(2 * share.low / (1 + share.low), 2 * share.high / (1 + share.high))


def mean_interval(count: float, total: float, squares: float) -> Interval | None:
    """Of a mean: Student's t. ``squares`` is the sum of squares."""
    if count < 4:
        return None
    mean, half = total / count, _half(count, total, squares)
    return _finite(mean - half, mean + half)


def root_interval(count: float, total: float, squares: float) -> Interval | None:
    """Of the root of a mean of values >= 0: delta method on its logarithm, for squares are skewed."""
    if count < 4 or total <= 0:
        return None
    mean = total / count
    half = _half(count, total, squares) / mean / 2
    return _finite(sqrt(mean) * exp(-half), sqrt(mean) * exp(half)) if half < 300 else None


def _half(count: float, total: float, squares: float) -> float:
    """Half of the interval of a mean; infinite, or no number, where the sums are."""
    mean = total / count
    variance = (squares / count - mean * mean) * count / (count - 1)
    return t_quantile(count - 1) * sqrt(max(0.0, variance) / count) if isfinite(variance) else inf


def auc_of(positive: Ints, negative: Ints) -> float | None:
    """The area under the ROC curve of scores in bins, ascending: P(positive above negative) + half P(same bin).

    Exact for the binned scores. Of the scores themselves it is off by at most half the share of pairs in one bin.
    """
    if not positive.any() or not negative.any():
        return None
    below = np.cumsum(negative) - negative
    return float((positive * (below + negative / 2)).sum() / (positive.sum() * negative.sum()))


def auc_interval(positive: Ints, negative: Ints) -> Interval | None:
    """Of `auc_of`: DeLong's variance, which bins give exactly, on the scale of log odds, lest it leave [0, 1]."""
    auc = auc_of(positive, negative)
    if auc is None or not 0 < auc < 1 or min(positive.sum(), negative.sum()) < 2:
        return None
    negative_below = (np.cumsum(negative) - negative / 2) / negative.sum()
    positive_above = 1 - (np.cumsum(positive) - positive / 2) / positive.sum()
    variance = (
        _variance(negative_below, positive) / positive.sum() + _variance(positive_above, negative) / negative.sum()
    )
    odds, half = log(auc / (1 - auc)), Z * sqrt(variance) / (auc * (1 - auc))
    return Interval(1 / (1 + exp(min(700.0, half - odds))), 1 / (1 + exp(max(-700.0, -half - odds))))


def _variance(values: Floats, counts: Ints) -> float:
    """Of values that occur so often, unbiased."""
    total = int(counts.sum())
    mean = float((values * counts).sum()) / total
    return float((counts * (values - mean) ** 2).sum()) / (total - 1)


def multinomial_interval(value: float, gradient: Floats, counts: Ints) -> Interval | None:
    """Of a function of a confusion matrix that lies in [0, 1]: delta method, on the scale of log odds.

    ``gradient``: of the function by each count, shape of ``counts``.
    """
    total = float(counts.sum())
    if total < 4 or not 0 < value < 1:
        return None
    shares, per_share = counts / total, gradient * total
    variance = float((shares * per_share**2).sum() - (shares * per_share).sum() ** 2) / total
    odds, half = log(value / (1 - value)), Z * sqrt(max(0.0, variance)) / (value * (1 - value))
    return Interval(1 / (1 + exp(min(700.0, half - odds))), 1 / (1 + exp(max(-700.0, -half - odds))))


def difference_interval(one: float, of_one: Interval, other: float, of_other: Interval) -> Interval | None:
    """Of ``one`` minus ``other``, of two independent samples, from their own intervals.

    For proportions it is Newcombe's from Wilson's; it holds for any two measures alike (MOVER, Zou and Donner 2008).
    """
    below = sqrt((one - of_one.low) ** 2 + (of_other.high - other) ** 2)
    above = sqrt((of_one.high - one) ** 2 + (other - of_other.low) ** 2)
    return _finite(one - other - below, one - other + above)


def _finite(low: float, high: float) -> Interval | None:
    return Interval(low, high) if isfinite(low) and isfinite(high) else None
