"""Many tests at once: which may be believed, if a model that is as it was may be called drifted only so often.

*Family*: all tests of one model version in one window. Under q-values of Benjamini and Hochberg, the probability that
any test of a family of true hypotheses is rejected is at most ``alpha``, if the tests are independent or go together
(Simes' inequality holds for such); and, among what is rejected, the expected share of mistakes is. Whoever wants that
for tests of any dependence asks for Benjamini and Yekutieli, and pays with a factor of 1 + 1/2 + … + 1/m.

*Weights*: a p-value is divided by the weight of its target, the weights being 1 on average: what matters more is found
sooner, and the promise stays (Genovese, Roeder and Wasserman 2006).

*Budget*: see `alpha_of`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

import numpy as np

from streammon.topics import DAY_S

FalseDiscovery = Literal["bh", "by"]

MONTH_S: Final = 30 * DAY_S
MAX_ALPHA: Final = 0.05
"""However rare the windows are."""


def alpha_of(false_alarms_per_month: float, window_s: float, versions: int) -> float:
    """The level of a family: the false alarms allowed, shared by all windows of a month and all versions of the model.

    A family raises a false alarm with at most this probability, so a month has at most as many as allowed, on average:
    expectations add, however the windows depend on each other.
    """
    return min(MAX_ALPHA, false_alarms_per_month * window_s / MONTH_S / max(1, versions))


def q_values(p_values: Sequence[float], weights: Sequence[float], method: FalseDiscovery = "bh") -> list[float]:
    """The smallest level at which each would be rejected; at most 1. ``weights`` are above 0."""
    if not len(p_values):
        return []
    weighing = np.asarray(weights, dtype=np.float64)
    weighted = np.asarray(p_values, dtype=np.float64) * weighing.mean() / weighing
    size = len(weighted)
    harmonic = (1 / np.arange(1, size + 1)).sum() if method == "by" else 1.0
    order = np.argsort(weighted, kind="stable")
    scaled = weighted[order] * size * harmonic / np.arange(1, size + 1)
    found = np.empty(size)
    found[order] = np.minimum.accumulate(scaled[::-1])[::-1].clip(0, 1)
    values: list[float] = found.tolist()
    return values
