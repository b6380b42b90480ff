"""Histograms with explicit buckets, as Prometheus and OTLP have them, as our sketches.

Within a bucket values are taken to be spread evenly, which is what Prometheus's ``histogram_quantile`` takes them to
be: a quantile is within 1 % of what that function says of the same buckets. Counts are exact. (Exponential histograms
need no guess: see `streammon.sketch.Sketch.of_buckets`.)

Source: Prometheus, ``promql/quantile.go``.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import inf, isfinite

import numpy as np

from streammon.sketch import MAX_COUNT, Sketch, SketchError, merge

MAX_STEPS = 256
"""Into this many equal steps at most the values of one explicit bucket are spread."""


def from_buckets(bounds: Sequence[float], counts: Sequence[int]) -> Sketch:
    """The sketch of values in explicit buckets: ``counts[i]`` of them in ``(bounds[i - 1], bounds[i]]``.

    ``bounds`` ascend; there is one count more than bounds, for what is above the last, or a last bound of infinity.
    As in Prometheus, the first bucket begins at 0 if its bound is positive, and what is above the last finite bound
    is taken to be that bound.

    Raises:
        SketchError: bounds that do not ascend, counts that are negative or too many, or another number of them.
    """
    edges = [*bounds] if bounds and bounds[-1] == inf else [*bounds, inf]
    finite = edges[:-1]
    if len(counts) != len(edges):
        raise SketchError(f"{len(counts)} counts came with {len(finite)} finite bounds; there is one more than bounds")
    if not all(map(isfinite, finite)) or any(low >= high for low, high in pairwise(finite)):
        raise SketchError(f"the bounds are {_shown(finite)}; they must be finite and ascend")
    if any(count < 0 for count in counts):
        raise SketchError(f"a count is {min(counts)}; it must not be negative")
    if sum(counts) >= MAX_COUNT:
        raise SketchError(f"the counts add to {sum(counts)}; below 2^53 they can be counted exactly")
    if not finite:
        return Sketch.of_equal(0.0, sum(counts))  # nothing is known of the values
    lows = [min(0.0, finite[0]), *finite]
    parts = [
        _spread(low, high, count) for low, high, count in zip(lows, [*finite, finite[-1]], counts, strict=True) if count
    ]
    return merge(parts)


def _spread(low: float, high: float, count: int) -> Sketch:
    """So many values, evenly from ``low`` (exclusive) to ``high``."""
    steps = min(count, MAX_STEPS) if high > low else 1
    values = high - (high - low) * (np.arange(steps) / steps)
    each = np.diff(np.arange(steps + 1) * count // steps)
    return merge(map(Sketch.of_equal, values.tolist(), each.tolist()))


def _shown(bounds: Sequence[float]) -> str:
    shown = ", ".join(f"{bound:g}" for bound in bounds[:8])
    return f"{shown}, …" if len(bounds) > 8 else shown
