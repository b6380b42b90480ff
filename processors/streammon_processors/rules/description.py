"""What a rule is: which number of which windows, when it is a breach, and what a person should know then."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta, Struct

from streammon.durations import Duration, seconds
from streammon.results import COUNTERS, DISTRIBUTIONS, Distribution, Gauge, Severity
from streammon_processors.shapes import MAX_OVERLAP, Asked, Shape, hopping, session, tumbling

Source = Literal["inference", "resource"]

_NUMBERS: Final[Mapping[str, tuple[str, ...]]] = {
    "inference": ("count", "throughput_per_s", "error_count", "error_rate"),
    "resource": ("count", "throughput_per_s"),
}
_DISTRIBUTIONS: Final[Mapping[str, tuple[str, ...]]] = {"inference": DISTRIBUTIONS, "resource": ()}
_STATISTICS: Final = tuple(name for name in Distribution.__struct_fields__ if name != "sketch")
_GAUGE: Final = Gauge.__struct_fields__


class WindowOf(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Windows that are not simply so long: ``{size: 10m, every: 1m}`` or ``{session_gap: 30s}``."""

    size: Duration | None = None
    """How long a window is."""
    every: Duration | None = None
    """How often one starts; they overlap."""
    session_gap: Duration | None = None
    """The silence that ends a session; a session is as long as it is."""

    def __post_init__(self) -> None:
        if (self.session_gap is None) == (self.size is None) or (self.session_gap is not None and self.every):
            raise ValueError("`window` is a duration, {size, every} or {session_gap}")


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
    window: Duration | WindowOf | None = None
    """Which windows it looks at: longer ones, ``5m``, overlapping ones or sessions; the base windows if not given."""
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
        _ = self.shape  # raises ValueError
        if (self.above is None) == (self.below is None):
            raise ValueError("`above` or `below`: exactly one of them must be given")
        if self._sign * self.clears_at > self._sign * self.threshold:
            side = "at most `above`" if self.above is not None else "at least `below`"
            raise ValueError(f"`clear` lies on the breaching side; it must be {side}, {self.threshold:g}")

    @cached_property
    def path(self) -> tuple[str, ...]:
        """Where the field is in a window's JSON object."""
        return _path(self.source, self.field)

    @property
    def distribution(self) -> str | None:
        """The distribution it looks at, if it looks at one."""
        return self.path[0] if self.path[0] in _DISTRIBUTIONS[self.source] else None

    @cached_property
    def shape(self) -> Shape | None:
        """The windows it looks at; None: the base windows."""
        match self.window:
            case None:
                return None
            case WindowOf(session_gap=None, size=size, every=every):
                size_s = _seconds(size)
                return _hopping(size_s, size_s if every is None else _seconds(every))
            case WindowOf(session_gap=gap):
                return session(_seconds(gap))
            case length:
                return tumbling(_seconds(length))

    @cached_property
    def version(self) -> str:
        """Names what decides whether the rule fires; equal for rules that differ in their texts only."""
        decides = (self.name, self.source, self.field, self.where, self.above, self.below, self.clear)
        windows = () if self.shape is None else (self.shape.name,)
        return digest((*decides, self.for_s, self.severity, *windows), size=6)

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

    def looking_at(self, source: str, shape: Shape | None) -> Sequence[Rule]:
        """The rules for such windows; None: for base windows, however long they are."""
        return self._by_windows.get((source, shape), ())

    @cached_property
    def _by_windows(self) -> Mapping[tuple[str, Shape | None], Sequence[Rule]]:
        found: dict[tuple[str, Shape | None], list[Rule]] = {}
        for rule in self.rules:
            found.setdefault((rule.source, rule.shape), []).append(rule)
        return found

    @cached_property
    def asked(self) -> Sequence[Asked]:
        """The rollups that rules look at."""
        return [Asked(rule.shape, rule.source, f"rule {rule.name!r}") for rule in self.rules if rule.shape]


def _seconds(duration: Duration | None) -> float:
    """Raises ValueError."""
    try:
        found = seconds(duration or 0.0)
    except ValueError as error:
        raise ValueError(f"`window`: {error}") from None
    if not found:
        raise ValueError(f"`window` says {duration!r}; a window is longer than that")
    return found


def _hopping(size_s: float, every_s: float) -> Shape:
    overlap = size_s / every_s
    if abs(overlap - round(overlap)) > 1e-9 or not 1 <= overlap <= MAX_OVERLAP:
        raise ValueError(f"`window`: `size` must be 1 to {MAX_OVERLAP} times `every`, a whole number of times")
    return hopping(size_s, every_s)


def _path(source: str, field: str) -> tuple[str, ...]:
    """The keys that lead to the field, or none if such windows cannot have it. Gauge names may hold dots."""
    match field.split("."):
        case [number] if number in _NUMBERS[source]:
            return (number,)
        case [name, statistic] if source == "inference" and name in DISTRIBUTIONS and statistic in _STATISTICS:
            return (name, statistic)
        case ["gauges", *name, statistic] if name and statistic in _GAUGE:
            return ("gauges", ".".join(name), statistic)
        case ["completeness", number] if number in COUNTERS:
            return ("completeness", number)
        case ["cost", *name] if name and source == "inference":
            return ("cost", ".".join(name))
    return ()


def _fields_of(source: str) -> str:
    gauges = f"gauges.NAME.{'|'.join(_GAUGE)}"
    numbers = [*_NUMBERS[source], gauges, f"completeness.{'|'.join(COUNTERS)}"]
    if source == "inference":
        numbers += [f"{'|'.join(DISTRIBUTIONS)} with .{'|'.join(_STATISTICS)}", "cost.CURRENCY"]
    return f"allowed: {', '.join(numbers)}"


def digest(parts: object, size: int) -> str:
    """A name of ``2 * size`` hex digits for equal parts, whatever the order of their labels."""
    return blake2b(msgspec.json.encode(parts, order="sorted"), digest_size=size).hexdigest()
