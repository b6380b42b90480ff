"""The rate limit: how many lines of a service may go on, and how many did not."""

from __future__ import annotations

from collections import Counter, OrderedDict
from typing import Final

MAX_SERVICES: Final = 10_000
"""Services whose rate is remembered; of more, the one that was quiet for longest starts anew."""


class RateLimit:
    """A bucket of ``burst`` tokens a service, filled at ``rate_per_s``; ``now``: any clock that never goes back."""

    def __init__(self, rate_per_s: float, burst: int) -> None:
        self._rate_per_s, self._burst = rate_per_s, burst
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()
        self._dropped: Counter[str] = Counter()

    def allows(self, service: str, now: float) -> bool:
        """Whether one more may pass; one that may not is counted."""
        tokens, at = self._buckets.pop(service, (float(self._burst), now))
        tokens = min(self._burst, tokens + (now - at) * self._rate_per_s)
        allowed = tokens >= 1.0
        self._buckets[service] = (tokens - 1.0 if allowed else tokens), now
        if len(self._buckets) > MAX_SERVICES:
            self._buckets.popitem(last=False)
        if not allowed:
            self._dropped[service] += 1
        return allowed

    def take_dropped(self) -> Counter[str]:
        """How many were not allowed since the last call, by service."""
        dropped, self._dropped = self._dropped, Counter()
        return dropped
