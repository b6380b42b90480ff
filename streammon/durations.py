"""Durations as people write them in YAML: seconds, or a text such as ``90s``, ``5m``, ``1h``, ``3d`` or ``1h30m``."""

from __future__ import annotations

import math
import re
from typing import Final

Duration = float | str
"""Seconds, or a text such as ``90s``, ``5m``, ``1h``, ``3d`` or ``1h30m``."""

_UNITS_S: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0}
_PART: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d|w)")


def seconds(duration: Duration) -> float:
    """How long that is, in seconds; 0 is a duration.

    Raises:
        ValueError: it is no duration; says what one looks like.
    """
    if isinstance(duration, str):
        parts = _PART.findall(duration)
        whole = "".join(number + unit for number, unit in parts)
        total = sum(float(number) * _UNITS_S[unit] for number, unit in parts)
        found = total if parts and whole == duration.replace(" ", "") else _number(duration)
    else:
        found = float(duration)
    if not 0 <= found < math.inf:
        raise ValueError(f"{duration!r} is no duration; write a number of seconds, or a text such as 90s, 5m, 1h or 3d")
    return found


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def shown(seconds_: float) -> str:
    """The same the other way, in the largest unit that fills it: 90 s, 5 min, 3 h, 12 d."""
    for unit, size_s in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds_ >= size_s and seconds_ % size_s == 0:
            return f"{seconds_ / size_s:g} {unit}"
    return f"{seconds_:g} s"


def roughly(seconds_: float) -> str:
    """Any duration in one unit, rounded down, for people: 59 s, 2 min, 7 h, 3 d."""
    whole = round(max(0.0, seconds_))
    return shown(whole - whole % next(size_s for size_s in (86_400, 3600, 60, 1) if whole >= size_s or size_s == 1))
