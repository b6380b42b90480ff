"""How far a sample is from its reference, and how often chance alone puts it that far: statistics of binned counts.

Every statistic is a function of a `Table`: two rows of counts in the same bins. What it says is an `Outcome`: the
statistic itself; the p-value, which knows that the reference is a sample, too; and the effect, which is the statistic
without what two samples of these sizes differ by on average when nothing has changed. With n values in the reference,
m in the window, and 1/e = 1/n + 1/m:

=================  ==========================================  =======  ================================================
test               statistic                                   range    law if nothing has changed
=================  ==========================================  =======  ================================================
`ks`               max |F - G| at the edges of the bins        0 to 1   √e D: Kolmogorov's
`wasserstein`      ∫ |F - G| dx / std of the reference         0 to ∞   gamma with the mean and variance that it has, as
                                                                        √e (F - G) is a Brownian bridge; in the tail
                                                                        normal, as √e ∫ (F - G) dx is
`chi_square`       Cramér's V as if n = m:                     0 to 1   4 e V² is Pearson's X²: χ² with k - 1 degrees of
                   √(½ Σ (p - q)² / (p + q))                            freedom
`psi`              Σ (q - p) ln(q / p)                         0 to ∞   e D: χ² with k - 1 degrees of freedom
`kl`               Σ p ln(p / q), nats                         0 to ∞   2 e D: as well
`jensen_shannon`   √(½ KL(p, m) + ½ KL(q, m)), m = (p + q)/2,  0 to     8 e D²: as well
                   nats: a distance                            0.83
`hellinger`        √(1 - Σ √(p q))                             0 to 1   8 e D²: as well
=================  ==========================================  =======  ================================================

p is the share of each bin in the reference, q in the window. `ks` and `wasserstein` look at the numbers alone; all
others at all bins: of a category each, "missing" and "of another type" are bins, too. Those that are χ² near 0 are the
same there, and the p-value of all of them is Pearson's, whose law holds from the smallest samples on (Read and Cressie
1988).

Bins
- *Frozen*: the edges are the reference's, so no value of the window moves them. Values beyond the reference's smallest
  and largest count at those: one value of a million is one value in the last bin, and neither hides a shift nor is one.
- *Empty*: `psi` and `kl` are infinite if a bin is empty in one row only, so both rows are given half a value more in
  each bin (Krichevsky-Trofimov). The others need nothing.
- *Sparse*: laws by χ² hold from some values a bin on. Their p-values are of a table in which bins are merged until each
  is expected to hold `MIN_EXPECTED` values in either row: neighbours if they are in order, else all that are sparse.
  So are their effects, as what chance brings is known of such bins only.
- *Blind*: what moves within a bin is not seen. `ks` is at most that of the raw values and less by at most
  `ks_error`; `wasserstein` is within `wasserstein_error` of that of the raw values, if these are within the
  reference's range; every other one is at most that of any finer bins (they are f-divergences).

Sources: Smirnov 1948 (ks); del Barrio, Giné and Matrán 1999 (wasserstein); Cramér 1946; Yurdakul 2018 (psi);
Csiszár 1967 and Pardo 2006, theorem 3.1 (f-divergences: 2 e D / f''(1) is χ²); Lin 1991 (jensen_shannon).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from math import log, pi, sqrt
from typing import Final, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import special  # not scipy.stats, which takes a second to import

from streammon.models import TestName

Ints: TypeAlias = NDArray[np.int64]
Floats: TypeAlias = NDArray[np.float64]

MIN_EXPECTED: Final = 10.0
"""Cochran's rule is 5, for p-values of some percent. Among many tests much smaller ones count, which 5 make five times
too small."""
_FARTHEST: Final = 1e100
"""What is farther is as far as this, lest squares be infinite."""
KOLMOGOROV_MEAN: Final = sqrt(pi / 2) * log(2)
"""Of Kolmogorov's distribution."""


class Outcome(NamedTuple):
    """What a test says."""

    statistic: float
    p_value: float
    effect: float
    """In the unit of the statistic, and at most as large."""


@dataclass(frozen=True)
class Table:
    """Two samples in the same bins; each has values. Arrays have shape (k,)."""

    reference: Ints
    current: Ints
    ordered: int = 0
    """So many bins, the first ones, are of numbers, and ascend."""
    places: Floats | None = None
    """Of these, where their values are taken to be: see `places_of`."""
    scale: float = 1.0
    """What `wasserstein` is divided by."""

    @cached_property
    def sizes(self) -> tuple[int, int]:
        return int(self.reference.sum()), int(self.current.sum())

    @property
    def effective_size(self) -> float:
        n, m = self.sizes
        return n * m / (n + m)

    @property
    def numbers(self) -> Table:
        """Its ordered bins alone."""
        return Table(
            self.reference[: self.ordered], self.current[: self.ordered], self.ordered, self.places, self.scale
        )

    @property
    def widths(self) -> Floats:
        """How far it is from the place of each bin to the next, in the unit of the scale."""
        assert self.places is not None, "bins of numbers have places"
        with np.errstate(over="ignore"):
            return np.asarray((np.diff(self.places) / self.scale).clip(max=_FARTHEST))

    @cached_property
    def rows(self) -> tuple[Floats, Floats]:
        """The shares of the bins."""
        return shares(self.reference), shares(self.current)

    @cached_property
    def merged(self) -> Table:
        """Without sparse bins."""
        groups = _groups(self.reference + self.current, self.ordered, MIN_EXPECTED * sum(self.sizes) / min(self.sizes))
        size = int(groups.max()) + 1
        reference, current = (np.bincount(groups, row, size).astype(np.int64) for row in (self.reference, self.current))
        return Table(reference, current)


Test: TypeAlias = Callable[[Table], Outcome]


def shares(counts: Ints, smoothing: float = 0.0) -> Floats:
    """Counts to shares, each bin with so many values more."""
    more = counts + smoothing
    return np.asarray(more / more.sum())


def _groups(pooled: Ints, ordered: int, least: float) -> Ints:
    """For each bin, the number of the one that it is merged into, so that each holds ``least`` if all together do."""
    alone = ordered + np.arange(len(pooled) - ordered)
    groups = _numbered(np.concatenate([_neighbours(pooled[:ordered], least), alone]))
    held = np.bincount(groups, pooled)
    sparse = held < least
    if sparse.any() and not sparse.all() and held[sparse].sum() < least:
        sparse[np.where(sparse, np.inf, held).argmin()] = True
    return _numbered(np.where(sparse, -1, np.arange(len(held)))[groups])


def _neighbours(pooled: Ints, least: float) -> Ints:
    """Bins in order: one after the other until they hold enough; what is left at the end goes to the ones before it."""
    groups = np.zeros(len(pooled), dtype=np.int64)
    group, held = 0, 0
    for at, count in enumerate(pooled.tolist()):
        if held >= least:
            group, held = group + 1, 0
        groups[at] = group
        held += count
    if held < least:
        groups[groups == group] = max(0, group - 1)
    return groups


def _numbered(groups: Ints) -> Ints:
    """The same groups, numbered from 0."""
    return np.asarray(np.unique(groups, return_inverse=True)[1], dtype=np.int64)


# -- distances of shares ---------------------------------------------------------------------------


def psi(p: Floats, q: Floats) -> float:
    """Population stability index: Jeffreys' divergence, KL(p, q) + KL(q, p). Infinite if a bin is empty in one."""
    return kl(p, q) + kl(q, p)


def kl(p: Floats, q: Floats) -> float:
    """Kullback-Leibler divergence of p from q in nats."""
    return float(special.rel_entr(p, q).sum())


def jensen_shannon(p: Floats, q: Floats) -> float:
    """Jensen-Shannon distance: the square root of the divergence in nats; at most √ln 2 = 0.83."""
    middle = (p + q) / 2
    return sqrt(max(0.0, (kl(p, middle) + kl(q, middle)) / 2))


def hellinger(p: Floats, q: Floats) -> float:
    """Hellinger distance. From ½ Σ (√p - √q)², which is the same as 1 - Σ √(p q) and loses no digits near 0."""
    return sqrt(float(((np.sqrt(p) - np.sqrt(q)) ** 2).sum()) / 2)


def cramers_v(p: Floats, q: Floats) -> float:
    """Cramér's V of a table of two rows of equal weight."""
    both = p + q
    used = both > 0
    return sqrt(float(((p - q)[used] ** 2 / both[used]).sum()) / 2)


def ks(p: Floats, q: Floats) -> float:
    """The largest difference of the distributions at an edge."""
    return float(np.abs((p - q).cumsum()[:-1]).max(initial=0.0))


def wasserstein(p: Floats, q: Floats, widths: Floats) -> float:
    """The earth mover's distance, in the unit of the widths: how far it is from each bin to the next."""
    return float((np.abs((p - q).cumsum()[:-1]) * widths).sum())


def ks_error(p: Floats, q: Floats) -> float:
    """How much more `ks` may be of the raw values: within a bin, one may come wholly before the other."""
    above, below = p.cumsum(), q.cumsum()
    most = np.maximum(above - (below - q), below - (above - p)).max(initial=0.0)
    return max(0.0, float(most) - ks(p, q))


def wasserstein_error(p: Floats, q: Floats, reach: Floats) -> float:
    """How far `wasserstein` may be from that of the raw values: each was moved by at most the reach of its bin."""
    return float(((p + q) * reach).sum())


def bounds_of(edges: Floats, low: float, high: float) -> Floats:
    """Where bins begin and end, the outer ones at the least and the largest value of the reference: k + 1 numbers."""
    least, most = min([low, *edges[:1]]), max([high, *edges[-1:]])
    return np.concatenate([[least], edges, [most]])


def places_of(edges: Floats, low: float, high: float) -> Floats:
    """Where the values of each bin are taken to be: in its middle.

    But the first and the last one between edges reach into the tails, where most values are near the others: no farther
    than the neighbouring bin is wide.
    """
    bounds = bounds_of(edges, low, high)
    places, widths = bounds[:-1] / 2 + bounds[1:] / 2, np.diff(bounds)
    if len(edges) > 2:
        places[1] = max(places[1], bounds[2] - widths[2])
        places[-2] = min(places[-2], bounds[-3] + widths[-3])
    return np.asarray(places)


def reach_of(edges: Floats, low: float, high: float) -> Floats:
    """How far a value may be from the place of its bin, if it is within the range."""
    bounds, places = bounds_of(edges, low, high), places_of(edges, low, high)
    return np.maximum(places - bounds[:-1], bounds[1:] - places)


# -- tests -----------------------------------------------------------------------------------------


def _without(statistic: float, noise: float, power: int) -> float:
    """The effect: what is left of a statistic. Divergences are squares of distances; of these, the squares add."""
    return float(max(0.0, statistic**power - noise**power) ** (1 / power))


def _ks(table: Table) -> Outcome:
    numbers = table.numbers
    statistic, root = ks(*numbers.rows), sqrt(numbers.effective_size)
    return Outcome(
        statistic, float(special.kolmogorov(root * statistic)), _without(statistic, KOLMOGOROV_MEAN / root, 2)
    )


def _wasserstein(table: Table) -> Outcome:
    numbers = table.numbers
    statistic = wasserstein(*numbers.rows, numbers.widths)
    mean, variance, most = _chance_wasserstein(numbers)
    if not variance:
        return Outcome(statistic, 1.0, statistic)
    body = special.gammaincc(mean**2 / variance, statistic * mean / variance)
    tail = special.erfc(statistic / sqrt(2 * most))
    return Outcome(statistic, float(max(body, tail)), _without(statistic, mean, 2))


def _chance_wasserstein(table: Table) -> tuple[float, float, float]:
    """Mean and variance of the statistic if nothing has changed, and the variance of ∫ (F - G) dx.

    The differences of the distributions at the edges are then jointly normal with the covariances of a Brownian bridge;
    for standard normal X, Y of correlation r, E|X| = √(2/π) and E|XY| = 2/π (r asin r + √(1 - r²)). As none of these
    covariances is negative, no other signs than all alike give a larger variance, which is what rules the tail.
    """
    below = shares(table.reference + table.current).cumsum()[:-1]
    inner = (below > 0) & (below < 1)
    below, widths = below[inner], table.widths[inner]
    spread = np.sqrt(below * (1 - below) / table.effective_size)
    weights = widths * spread
    covariance = (np.minimum.outer(below, below) - np.outer(below, below)) / table.effective_size
    r = np.clip(covariance / np.outer(spread, spread), -1, 1)
    excess = 2 / pi * (r * np.arcsin(r) + np.sqrt(1 - r**2) - 1)
    return sqrt(2 / pi) * float(weights.sum()), float(weights @ excess @ weights), float(widths @ covariance @ widths)


def _divergence(distance: Callable[[Floats, Floats], float], factor: float, power: int, smoothing: float = 0) -> Test:
    """A test by an f-divergence; ``factor`` × effective size × statistic ** power is χ²."""

    def test(table: Table) -> Outcome:
        statistic, of_merged = (
            distance(shares(each.reference, smoothing), shares(each.current, smoothing))
            for each in (table, table.merged)
        )
        noise = ((len(table.merged.reference) - 1) / (factor * table.effective_size)) ** (1 / power)
        return Outcome(statistic, pearson(table), min(statistic, _without(of_merged, noise, power)))

    return test


def pearson(table: Table) -> float:
    """The p-value of Pearson's X² of homogeneity, sparse bins merged."""
    merged = table.merged
    n, m = merged.sizes
    pooled = merged.reference + merged.current
    expected = np.outer([n, m], pooled / (n + m))
    observed = np.stack([merged.reference, merged.current])
    freedom = len(pooled) - 1
    return float(special.chdtrc(freedom, ((observed - expected) ** 2 / expected).sum())) if freedom else 1.0


TESTS: Final[Mapping[TestName, Test]] = {
    "ks": _ks,
    "wasserstein": _wasserstein,
    "chi_square": _divergence(cramers_v, 4, 2),
    "psi": _divergence(psi, 1, 1, smoothing=0.5),
    "kl": _divergence(kl, 2, 1, smoothing=0.5),
    "jensen_shannon": _divergence(jensen_shannon, 8, 2),
    "hellinger": _divergence(hellinger, 8, 2),
}
OF_NUMBERS: Final = frozenset({"ks", "wasserstein"})
"""Tests that look at numbers alone."""
