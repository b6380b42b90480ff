"""How numbers of windows are said to people: ``p99 of duration_s 512 ms``."""

from __future__ import annotations

from math import isfinite, isnan
from typing import Final

from streammon.durations import roughly
from streammon.results import Distribution
from streammon_processors.rules.conditions.cel import NAMED

_UNITS: Final = {"_per_s": "/s", "_s": " s", "_bytes": " B", "_j": " J"}
_FRACTIONS: Final = ("error_rate", "utilization", "accuracy", "coverage")
_STATISTICS: Final = Distribution.__struct_fields__
UNTIL: Final = "until"
"""The quantity of seconds from now, which people want in days or hours."""


def _names(field: str) -> list[str]:
    """``gauges.cpu.utilization.last`` names last of cpu.utilization."""
    first, *rest = field.split(".")
    if first == "intervals" and len(rest) > 1:  # ``intervals.disparity.f1.low``: the low end of the disparity of f1
        return [*_names(".".join(rest[:-1])), f"{rest[-1]} end"]
    if first in ("disparity", "estimates") and rest:
        return [*rest, first.removesuffix("s")]
    if first == "cost" and rest:
        return [".".join(rest)]
    if first in NAMED and len(rest) > 1 and not (first == "distributions" and rest[-1] not in _STATISTICS):
        return [".".join(rest[:-1]), rest[-1]]
    if first in NAMED and rest:
        return [".".join(rest)]
    return rest if first == "completeness" else [first, *rest]


def words_of(field: str) -> str:
    """``duration_s.p99`` is the "p99 of duration_s"."""
    return " of ".join(reversed(_names(field)))


def quantity_of(field: str) -> str:
    """The part of its name that tells the unit."""
    names = _names(field)
    if field.startswith("counters."):  # what is counted is often called so: request_bytes_total
        rate = "_per_s" if names[-1] == "per_s" else ""
        return names[0].removesuffix("_total") + rate
    return "count" if names[-1] == "count" else names[0]


def shown(quantity: str, value: float) -> str:
    """A number with the unit that its name ends with; fractions as per cent."""
    if quantity == UNTIL and not isnan(value):
        return roughly(value) if isfinite(value) else "never"
    if not isfinite(value):
        return f"{value:g}"
    if quantity.endswith(_FRACTIONS):
        return f"{_number(100 * value)} %"
    if quantity.endswith("_s") and not quantity.endswith("_per_s") and 0 < abs(value) < 1:
        return f"{_number(1000 * value)} ms"
    return _number(value) + next((unit for end, unit in _UNITS.items() if quantity.endswith(end)), "")


def _number(value: float) -> str:
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e15 else f"{value:.4g}"
