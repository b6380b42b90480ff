"""How far time has come by what was told, and by the broker's clock where nothing is told any more."""

from __future__ import annotations

from math import ceil, floor
from typing import Final

from msgspec import Struct

PATIENCE_S: Final = 10.0
"""How long nothing may be told until time passes by the broker's clock."""
MOST_S: Final = 60.0
"""As how much time a longer gap in the log counts, in which nobody was there to write."""


class LogTime(Struct, array_like=True):
    """The time that has passed in the log."""

    broker_ms: int = 0
    """The broker's time of the last record."""
    passed_ms: int = 0

    def pass_to(self, broker_ms: int) -> None:
        if self.broker_ms:
            self.passed_ms += min(max(0, broker_ms - self.broker_ms), round(MOST_S * 1000))
        self.broker_ms = max(self.broker_ms, broker_ms)


class Clock(Struct, array_like=True):
    """The newest time that was told, and when, as the log counts time. It never goes back."""

    newest_unix_s: float = 0.0
    moved_ms: int = 0

    def observe(self, unix_s: float, now_ms: int) -> None:
        if unix_s > self.at(now_ms):  # else time has come further already, and goes on
            self.newest_unix_s, self.moved_ms = unix_s, now_ms

    def at(self, now_ms: int) -> float:
        """How far time has come; 0 before anything was told."""
        silent_s = (now_ms - self.moved_ms) / 1000 - PATIENCE_S
        return self.newest_unix_s + max(0.0, silent_s) if self.newest_unix_s else 0.0


def number_of(unix_s: float, size_s: float) -> int:
    """Of the window of that length that a time lies in."""
    return floor(unix_s / size_s)


def ended_before(unix_s: float, size_s: float) -> int:
    """Windows of that length with lower numbers ended before that time."""
    return ceil(unix_s / size_s) - 1
