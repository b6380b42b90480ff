"""Histograms with explicit buckets, as Prometheus and OTLP have them, as our sketches.

Within a bucket values are taken to be spread evenly, which is what Prometheus's ``histogram_quantile`` takes them to
be: a quantile is within 1 % of what that function says of the same buckets, or a step of 256 in a bucket's width.
Counts are exact. (Exponential histograms need no guess: see `streammon.sketch.Sketch.of_buckets`.)

Source: Prometheus, ``promql/quantile.go``.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from math import inf, isfinite

from streammon.lazy_numpy import np
from streammon.sketch import MAX_COUNT, Floats, Ints, Sketch, SketchError

MAX_STEPS = 256
"""Into this many equal steps at most the values of one explicit bucket are spread."""
MAX_VALUES = 8192
"""And those of all buckets together: beyond it there is one step a bucket."""
_GOLDEN = (5**0.5 - 1) / 2


def from_buckets(bounds: Sequence[float], counts: Sequence[int], before: Sequence[int] = ()) -> Sketch:
    """The sketch of values in explicit buckets: ``counts[i]`` of them in ``(bounds[i - 1], bounds[i]]``.

    ``bounds`` ascend; there is one count more than bounds, for what is above the last, or a last bound of infinity.
    As in Prometheus, the first bucket begins at 0 if its bound is positive, and what is above the last finite bound
    is taken to be that bound.

    ``before``: how many values each bucket had had before these. Where few come at a time it makes their sum, too,
    spread evenly; without it, a single value is taken for the middle of its bucket, every time.

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
    lows, highs = np.array([min(0.0, finite[0]), *finite]), np.array([*finite, finite[-1]])
    phases = np.array([(0.5 + count * _GOLDEN) % 1 for count in before or [0] * len(counts)])
    return Sketch.of_counted(*_spread(lows, highs, np.array(counts, dtype=np.int64), phases))


def _spread(lows: Floats, highs: Floats, counts: Ints, phases: Floats) -> tuple[Floats, Ints]:
    """Values that stand for those in buckets from a low (exclusive) to a high, and how many each stands for.

    In equal steps, each bucket's shifted by its phase, from 0 to below 1. Phases in golden steps are a sequence of
    lowest discrepancy: so are single values, one a time.
    """
    most = max(1, min(MAX_STEPS, MAX_VALUES // max(1, int(np.count_nonzero(counts)))))
    steps = np.minimum(counts, most)
    buckets = np.repeat(np.arange(len(steps)), steps)
    place = np.arange(len(buckets)) - (steps.cumsum() - steps)[buckets]
    down = (place + phases[buckets]) / steps[buckets]
    low, high = lows[buckets], highs[buckets]
    values = (high * (1 - down) + low * down).clip(low, high)
    count, of = counts[buckets], steps[buckets]
    return values, (place + 1) * count // of - place * count // of


def _shown(bounds: Sequence[float]) -> str:
    shown = ", ".join(f"{bound:g}" for bound in bounds[:8])
    return f"{shown}, …" if len(bounds) > 8 else shown
