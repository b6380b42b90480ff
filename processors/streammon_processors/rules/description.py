"""What a rule is: which number of which windows, when it is a breach, and what a person should know then."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from typing import Annotated, Final, Literal, get_args

import msgspec
from msgspec import Meta, Struct

from streammon.results import DISTRIBUTIONS, Completeness, Distribution, Gauge, Severity

Source = Literal["inference", "resource"]

_NUMBERS: Final[Mapping[str, tuple[str, ...]]] = {
    "inference": ("count", "throughput_per_s", "error_count", "error_rate"),
    "resource": ("count", "throughput_per_s"),
}
_DISTRIBUTIONS: Final[Mapping[str, tuple[str, ...]]] = {"inference": DISTRIBUTIONS, "resource": ()}
_STATISTICS: Final = tuple(name for name in Distribution.__struct_fields__ if name != "sketch")
_GAUGE: Final = Gauge.__struct_fields__
_COMPLETENESS: Final = tuple(name for name in Completeness.__struct_fields__ if name != "watermark_unix_s")


class Rule(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, dict=True):
    """What is wrong when, how bad that is, and what the person who is woken should know."""

    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=100)]
    source: Source
    """Which windows."""
    field: str
    """A number in the window: ``error_rate``, ``duration_s.p99``, ``gauges.utilization.last`` …"""
    severity: Severity
    summary: str
    """One line for a person; ``{label}`` and ``{value}`` are filled in."""
    above: float | None = None
    below: float | None = None
    """Breached on that side of the number; a rule has one of the two."""
    clear: float | None = None
    """Firing ends at this value or better; the threshold itself if not given."""
    for_s: Annotated[float, Meta(ge=0)] = 0.0
    """Seconds of event time that the breach must last."""
    where: dict[str, str] = {}
    """Labels that a series must have; every other label is free."""
    resolution_steps: tuple[str, ...] = ()
    contact: str | None = None
    escalation: tuple[str, ...] = ()
    runbook_url: str | None = None

    def __post_init__(self) -> None:
        for name in ("above", "below", "clear", "for_s"):
            if not math.isfinite(getattr(self, name) or 0.0):
                raise ValueError(f"`{name}` must be a finite number")
        if not _path(self.source, self.field):
            raise ValueError(f"`field` is not a number in {self.source} windows; {_fields_of(self.source)}")
        if (self.above is None) == (self.below is None):
            raise ValueError("`above` or `below`: exactly one of them must be given")
        if self._sign * self.clears_at > self._sign * self.threshold:
            side = "at most `above`" if self.above is not None else "at least `below`"
            raise ValueError(f"`clear` lies on the breaching side; it must be {side}, {self.threshold:g}")

    @cached_property
    def path(self) -> tuple[str, ...]:
        """Where the field is in a window's JSON object."""
        return _path(self.source, self.field)

    @cached_property
    def version(self) -> str:
        """Names what decides whether the rule fires; equal for rules that differ in their texts only."""
        decides = (self.name, self.source, self.field, self.where, self.above, self.below, self.clear)
        return digest((*decides, self.for_s, self.severity), size=6)

    @cached_property
    def threshold(self) -> float:
        return next(bound for bound in (self.above, self.below) if bound is not None)

    @property
    def clears_at(self) -> float:
        return self.threshold if self.clear is None else self.clear

    @property
    def _sign(self) -> int:
        return 1 if self.above is not None else -1

    def breached(self, value: float) -> bool:
        return self._sign * value > self._sign * self.threshold

    def cleared(self, value: float) -> bool:
        return self._sign * value <= self._sign * self.clears_at


@dataclass(frozen=True)
class Rules:
    """Rules with distinct names, in the order of their files."""

    rules: tuple[Rule, ...] = ()

    @cached_property
    def by_name(self) -> Mapping[str, Rule]:
        return {rule.name: rule for rule in self.rules}

    @cached_property
    def by_source(self) -> Mapping[str, Sequence[Rule]]:
        return {source: [rule for rule in self.rules if rule.source == source] for source in get_args(Source)}


def _path(source: str, field: str) -> tuple[str, ...]:
    """The keys that lead to the field, or none if such windows cannot have it. Gauge names may hold dots."""
    match field.split("."):
        case [number] if number in _NUMBERS[source]:
            return (number,)
        case [name, statistic] if source == "inference" and name in DISTRIBUTIONS and statistic in _STATISTICS:
            return (name, statistic)
        case ["gauges", *name, statistic] if name and statistic in _GAUGE:
            return ("gauges", ".".join(name), statistic)
        case ["completeness", number] if number in _COMPLETENESS:
            return ("completeness", number)
        case ["cost", *name] if name and source == "inference":
            return ("cost", ".".join(name))
    return ()


def _fields_of(source: str) -> str:
    gauges = f"gauges.NAME.{'|'.join(_GAUGE)}"
    numbers = [*_NUMBERS[source], gauges, f"completeness.{'|'.join(_COMPLETENESS)}"]
    if source == "inference":
        numbers += [f"{'|'.join(DISTRIBUTIONS)} with .{'|'.join(_STATISTICS)}", "cost.CURRENCY"]
    return f"allowed: {', '.join(numbers)}"


def digest(parts: object, size: int) -> str:
    """A name of ``2 * size`` hex digits for equal parts, whatever the order of their labels."""
    return blake2b(msgspec.json.encode(parts, order="sorted"), digest_size=size).hexdigest()
