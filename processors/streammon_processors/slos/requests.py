"""Of a window, how many requests an objective is about, and how many of them are bad."""

from __future__ import annotations

from typing import Any, NamedTuple

from streammon_processors.rules import ServiceLevel


class Requests(NamedTuple):
    """How many were bad, of how many."""

    bad: int = 0
    total: int = 0

    def __add__(self, other: object) -> Requests:
        if not isinstance(other, Requests):
            return NotImplemented
        return Requests(self.bad + other.bad, self.total + other.total)

    @property
    def good(self) -> int:
        return self.total - self.bad

    def burn_rate(self, level: ServiceLevel) -> float | None:
        """How many times as many are bad as may be; None of none."""
        return self.bad / self.total / level.allowed if self.total else None

    def budget_left(self, level: ServiceLevel) -> float:
        """The share of what may be bad that is not; all of it of none."""
        return 1.0 - (self.burn_rate(level) or 0.0)


def requests_of(window: Any, level: ServiceLevel) -> Requests | None:
    """Those of a window, of ``count`` and ``error_count``, or of a distribution's sketch; None if it does not say.

    Of a latency, exact but for the values in the sketch's bucket of the threshold, which are taken as good: what lies
    within 1.1 % above it.
    """
    if level.latency is None:
        bad, total = window.error_count, window.count
    else:
        distribution = getattr(window, level.latency.field)
        sketch = distribution.sketch if distribution else None
        bad, total = (sketch.above(level.latency.under), sketch.count) if sketch else (None, 0)
    return Requests(int(bad), total) if bad is not None and 0 <= bad <= total else None


def is_about(level: ServiceLevel, window: Any) -> bool:
    """Whether the objective is about the requests in this window."""
    return bool(window.source == level.source and window.series and level.where.items() <= window.series.items())
