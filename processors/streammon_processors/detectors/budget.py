"""From a budget of false alarms to the threshold of a sum that drifts.

`page_hinkley` with ``alpha`` 1 is the two-sided self-starting CUSUM (Hawkins 1987): deviations from the mean so far,
less an allowance k, are added up, and the height above the lowest sum is compared with a threshold h. Of independent
values of variance 1, it takes on average (Siegmund 1985, with the correction of 1.166 for the overshoot)

    ARL = (exp(2 k b) - 2 k b - 1) / (2 k²),  b = h + 1.166

values to a false alarm on one side. `python -m bench detectors` shows that what `preparation` gives is near enough to
that; `SAFETY` is for what is not.
"""

from __future__ import annotations

from functools import lru_cache
from math import exp
from typing import Final

MONTH_S: Final = 30 * 86_400.0
SAFETY: Final = 8.0
"""Thresholds are for a budget so many times smaller than the one that was given."""
OVERSHOOT: Final = 1.166
LEAST_ALLOWANCE: Final = 0.02
MOST_ALLOWANCE: Final = 0.5


def allowance(effect: float, passes: float) -> float:
    """Half the smallest shift worth an alarm, in sigmas of what the detector is given: the best for a shift of that
    size.

    ``passes``: see `Preparing.passes`. To two digits: the threshold follows it.
    """
    return round(min(max(effect * passes / 2.0, LEAST_ALLOWANCE), MOST_ALLOWANCE), 2)


def threshold(per_month: float, interval_s: float, k: float) -> float:
    """How high the sum has to be so that no more than ``per_month`` alarms are false."""
    return _threshold(float(f"{2.0 * MONTH_S * SAFETY / (per_month * interval_s):.2g}"), k)


@lru_cache(4096)
def _threshold(run_length: float, k: float) -> float:
    """Where one side takes so many values to a false alarm, by bisection."""
    low, high = 0.0, 20.0 / k
    for _ in range(50):
        middle = (low + high) / 2.0
        low, high = (middle, high) if average_run_length(middle, k) < run_length else (low, middle)
    return round(high, 2)


def average_run_length(h: float, k: float) -> float:
    """Values to a false alarm of one side, on average; of independent normal ones, of variance 1."""
    twice = 2.0 * k * (h + OVERSHOOT)
    return (exp(twice) - twice - 1.0) / (2.0 * k * k)


def upper_bound(alarms: int, months: float, confidence: float = 0.95) -> float:
    """The most alarms a month that so few are still likely of (Poisson, one-sided)."""
    from scipy.stats import chi2

    return float(chi2.ppf(confidence, 2 * (alarms + 1)) / 2.0 / months)


def interval(alarms: int, months: float, confidence: float = 0.95) -> tuple[float, float]:
    """Between which rates a month lies, exactly for Poisson counts (Garwood 1936)."""
    from scipy.stats import chi2

    tail = (1.0 - confidence) / 2.0
    low = float(chi2.ppf(tail, 2 * alarms) / 2.0 / months) if alarms else 0.0
    return low, float(chi2.ppf(1.0 - tail, 2 * (alarms + 1)) / 2.0 / months)
