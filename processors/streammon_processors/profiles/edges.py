"""The bins in which numbers are counted: frozen once, from the values of a reference.

About as many values lie in each bin, so that a test on the counts sees a shift wherever the values are, whatever their
unit, offset and shape. Where there are few distinct values, each has a bin of its own; so has a value that is very
frequent. An edge between two values is the shortest decimal number there is, for people and for the size of records.
"""

from __future__ import annotations

import math
import sys

import numpy as np

from streammon.wire import Floats

BINS = 64
LARGEST = sys.float_info.max
MAX_DIGITS = 308
"""Powers of ten that a float can hold."""


def edges_of(values: Floats) -> list[float]:
    """Ascending edges; bin ``i`` holds the values in ``(edges[i - 1], edges[i]]``.

    The first is just below the smallest value and the last is the largest: what lies outside is seen as such. None for
    no values, and two for values that are all the same.
    """
    if not len(values):
        return []
    ordered = np.sort(values)
    distinct = np.unique(ordered)
    inner = distinct[:-1] if len(distinct) <= BINS else _quantiles(ordered, distinct)
    below = math.nextafter(float(distinct[0]), -LARGEST)  # JSON has no infinity
    edges: list[float] = np.unique(np.concatenate(([below], inner, distinct[-1:]))).tolist()
    return edges


def bins_of(values: Floats, edges: list[float]) -> list[int]:
    """How many values each bin holds; one more than there are edges."""
    counts: list[int] = np.bincount(np.searchsorted(edges, values), minlength=len(edges) + 1).tolist()
    return counts


def _quantiles(ordered: Floats, distinct: Floats) -> Floats:
    """Edges behind the values at `BINS` equal steps through them, and before those that fill a step alone."""
    at = np.arange(1, BINS) * len(ordered) // BINS
    last = np.unique(distinct.searchsorted(ordered[at - 1]))
    frequent = np.flatnonzero(np.diff(ordered.searchsorted(np.append(distinct, np.inf))) >= len(ordered) / BINS)
    behind = np.unique(np.concatenate([last, frequent, frequent - 1]))
    behind = behind[(behind >= 0) & (behind < len(distinct) - 1)]
    return _shortest(distinct[behind], distinct[behind + 1])


def _shortest(low: Floats, high: Floats) -> Floats:
    """In each ``[low, high)`` a number of the fewest decimals."""
    found = low.copy()
    missing = np.ones(len(low), dtype=np.bool_)
    magnitude = int(np.floor(np.log10(np.abs([low, high]).max())))
    for digits in range(max(-magnitude - 1, -MAX_DIGITS), min(17 - magnitude, MAX_DIGITS)):
        with np.errstate(over="ignore", invalid="ignore"):
            candidate = _rounded_below(high, digits)
            fits = missing & (candidate >= low) & (candidate < high)
        found[fits] = candidate[fits]
        missing &= ~fits
    return found


def _rounded_below(values: Floats, digits: int) -> Floats:
    """The largest number of so many decimals that is smaller; with a power of ten that is exact, so is it."""
    if digits >= 0:
        step = 10.0**digits
        return np.asarray((np.ceil(values * step) - 1) / step)
    step = 10.0**-digits
    return np.asarray((np.ceil(values / step) - 1) * step)
