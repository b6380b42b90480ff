"""Chances that are known exactly, or bounded: of shares, of ranges, of categories and of correlations.

Schema and quality are about rare things: no value was missing in the reference, none of another type, none so large.
The laws of large samples say nothing there, so these are of finite ones. A p-value here is never too small, but for
`correlations`, whose law is of normal values.
"""

from __future__ import annotations

from math import atanh, erfc, exp, log, sqrt
from typing import Final

import numpy as np
from numpy.typing import NDArray
from scipy import special

MAX_TERMS: Final = 100_000
"""Of the sum in `beyond_range`. A window of which more are possible is some 2,000 times as large as the reference: the
share of its values that lie beyond is the share of the distribution itself, and the chance right to a percent."""
_PERFECT: Final = 1 - 1e-12
"""A correlation of 1 is taken for this, as its transformation is infinite."""


def at_least(reference_hits: int, reference_size: int, hits: int, size: int) -> float:
    """Fisher's exact test: the chance of so many hits or more among ``size``, given how many there are in both samples.

    1 if they are no more than in the reference, in proportion.
    """
    if hits * reference_size <= reference_hits * size:
        return 1.0
    total, all_hits = reference_size + size, reference_hits + hits
    possible = _from(hits, min(size, all_hits), 20 * sqrt(size))
    logs = _choose(size, possible) + _choose(reference_size, all_hits - possible) - _choose(total, all_hits)
    return min(1.0, float(np.exp(logs).sum()))


def as_far(reference_hits: int, reference_size: int, hits: int, size: int) -> float:
    """The same both ways: twice the smaller of "so many or more" and "so few or fewer"."""
    more = at_least(reference_hits, reference_size, hits, size)
    fewer = at_least(reference_size - reference_hits, reference_size, size - hits, size)
    return min(1.0, 2 * min(more, fewer))


def beyond_range(reference_size: int, hits: int, size: int) -> float:
    """The chance of so many values or more outside the range of a reference of two values at least.

    The share of a continuous distribution that lies within the range of n values is Beta(n - 1, 2), whatever the
    distribution (Wilks 1941), so their number is beta-binomial. Where values repeat, it is smaller still.
    """
    within = reference_size - 1
    if hits * (within + 2) <= 2 * size:
        return 1.0
    enough = 20 * sqrt(size) + 50 * size / within
    if enough > MAX_TERMS:
        return float(special.betaincc(2, within, (hits - 1) / size))
    possible = _from(hits, size, enough)
    logs = _choose(size, possible) + special.betaln(2 + possible, within + size - possible) - special.betaln(2, within)
    return min(1.0, float(np.exp(logs).sum()))


def _from(first: int, last: int, enough: float) -> NDArray[np.float64]:
    """The numbers on whose chances a tail depends: it falls by itself long before there are ``enough``."""
    return np.arange(first, min(last, first + 100 + enough) + 1, dtype=np.float64)


def another_choice(reference: NDArray[np.int64], current: NDArray[np.int64]) -> tuple[float, float]:
    """How many categories are in one sample only, less what is to be expected; and the chance of so many.

    If nothing has changed, which values came first is chance, so the number of categories with none in the window (or
    none in the reference) is a sum of indicators of known probabilities, negatively associated. Its tail is below
    Chernoff's bound (Dubhashi and Ranjan 1998), and the p-value twice the smaller one of the two.
    """
    n, m = int(reference.sum()), int(current.sum())
    pooled = (reference + current).astype(np.float64)
    gone, new = int((current == 0).sum()), int((reference == 0).sum())
    expected_gone, expected_new = _none_of(pooled, n, m), _none_of(pooled, m, n)
    chances = [_chernoff(gone, expected_gone), _chernoff(new, expected_new)]
    return max(0.0, gone - expected_gone) + max(0.0, new - expected_new), min(1.0, 2 * min(chances))


def _none_of(pooled: NDArray[np.float64], others: int, size: int) -> float:
    """The expected number of categories of which none is among ``size`` values drawn from all; ``others`` are left."""
    possible = pooled <= others
    return float(np.exp(_choose(others, pooled[possible]) - _choose(others + size, pooled[possible])).sum())


def _chernoff(found: int, expected: float) -> float:
    """A bound of the chance of so many or more."""
    if found <= expected:
        return 1.0
    return exp(found - expected - found * log(found / expected)) if expected > 0 else 0.0


def correlations(reference: float, reference_size: int, current: float, size: int) -> float:
    """Fisher's z of the difference of two correlations. Of heavy tails they vary more than it knows."""
    if min(reference_size, size) <= 3:
        return 1.0
    first, second = (atanh(max(-_PERFECT, min(_PERFECT, each))) for each in (reference, current))
    return erfc(abs(first - second) / sqrt(2 * (1 / (reference_size - 3) + 1 / (size - 3))))


def _choose(n: float, k: float | NDArray[np.float64]) -> NDArray[np.float64]:
    """The logarithm of n choose k."""
    return np.asarray(
        special.gammaln(n + 1) - special.gammaln(np.asarray(k) + 1) - special.gammaln(n - np.asarray(k) + 1)
    )
