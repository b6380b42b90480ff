"""Pauses between tries against somebody who is away or busy."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

_MOST_DOUBLINGS = 64  # a float holds many more, but not those of an outage of days


@dataclass(frozen=True)
class Backoff:
    """``first_s``, doubling up to ``longest_s``; half of each pause is left to chance, so that nobody comes in step."""

    first_s: float = 0.1
    longest_s: float = 10.0

    def pause_s(self, doublings: int) -> float:
        """Seconds to wait after so many doublings; 0 for the first pause."""
        return min(self.first_s * 2.0 ** min(doublings, _MOST_DOUBLINGS), self.longest_s) * random.uniform(0.5, 1.0)

    def pauses(self) -> Iterator[float]:
        """One pause after the other, without end."""
        return map(self.pause_s, count())
