"""Which windows there are: base windows, and what is made of them, by how they lie in time.

A `Shape` describes the windows that a rule asks for or that the configuration lists; `plan` decides of what each is
made. A *tumbling* window of a minute is the sum of the base windows in it, one of five minutes the sum of the minutes,
and so on: each of the longest windows of which a whole number fills it, so that little has to be read again.
A *hopping* window starts every ``every_s`` and overlaps its neighbours. A *session* is as long as a series is busy.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import astuple, dataclass
from typing import Protocol

from streammon.errors import ConfigError
from streammon.results import Kind

ROUNDING_S = 1e-6
"""Times of today resolve 2.4e-7 s; two that differ by less than this are the same."""
MAX_OVERLAP = 120
"""Hopping windows that one moment may be in: each of them costs as much as a tumbling one."""


class Shaped(Protocol):
    """What a window record says of its shape."""

    @property
    def kind(self) -> Kind: ...
    @property
    def size_s(self) -> float: ...
    @property
    def every_s(self) -> float | None: ...
    @property
    def gap_s(self) -> float | None: ...


@dataclass(frozen=True)
class Shape:
    """Windows of one kind and length. ``of_s`` is not part of it: it says how they are made, not what they are."""

    kind: Kind
    size_s: float = 0.0
    every_s: float = 0.0
    gap_s: float = 0.0

    @classmethod
    def of(cls, window: Shaped) -> Shape:
        """The shape that this record has."""
        if window.kind == "session":
            return session(window.gap_s or 0.0)
        return hopping(window.size_s, window.every_s or window.size_s)

    @property
    def name(self) -> str:
        """For people, and for a record header: ``60s``, ``600s every 60s``, ``sessions of 30s``."""
        if self.kind == "session":
            return f"sessions of {self.gap_s:g}s"
        return f"{self.size_s:g}s" + (f" every {self.every_s:g}s" if self.kind == "hopping" else "")

    @property
    def overlap(self) -> int:
        """How many windows a moment is in."""
        return round(self.size_s / self.every_s)


def tumbling(size_s: float) -> Shape:
    return Shape("tumbling", size_s, size_s)


def hopping(size_s: float, every_s: float) -> Shape:
    """Windows that start every ``every_s``; tumbling ones where that is their length."""
    return tumbling(size_s) if every_s == size_s else Shape("hopping", size_s, every_s)


def session(gap_s: float) -> Shape:
    return Shape("session", gap_s=gap_s)


@dataclass(frozen=True)
class Level:
    """Windows that are to be made, and the length of the windows they are made of (tumbling, or the base ones).

    ``source`` None: of every source.
    """

    shape: Shape
    of_s: float
    source: str | None = None

    @property
    def name(self) -> str:
        return f"{self.shape.name} of {self.of_s:g}s"


@dataclass(frozen=True)
class Asked:
    """A shape that somebody wants, of one source, and who: to be named when it cannot be had."""

    shape: Shape
    source: str
    by: str


def plan(base_s: float, rollups_s: Iterable[float], asked: Iterable[Asked] = ()) -> tuple[Level, ...]:
    """What to make, such that all of which a level is made come before it.

    Lengths of ``rollups_s`` that are no multiple of the base windows are left out.

    Raises:
        ConfigError: a shape that was asked for cannot be made of base windows of this length.
    """
    wanted = [each for each in asked if each.shape != tumbling(base_s)]
    for each in wanted:
        _check(base_s, each)
    everywhere = {size_s for size_s in rollups_s if size_s > base_s and _fills(base_s, size_s)}
    levels = [Level(tumbling(size_s), _part(base_s, everywhere, size_s)) for size_s in sorted(everywhere)]
    for each in sorted(wanted, key=lambda each: (astuple(each.shape), each.source)):
        shape = each.shape
        if shape.kind == "session":
            levels.append(Level(shape, base_s, each.source))
        elif shape.kind == "hopping" or shape.size_s not in everywhere:
            levels.append(Level(shape, _part(base_s, everywhere, shape.every_s, whole=True), each.source))
    return tuple(dict.fromkeys(levels))


def _part(base_s: float, sizes: Iterable[float], size_s: float, *, whole: bool = False) -> float:
    """The longest windows of which a whole number fills ``size_s``; shorter than it, unless ``whole`` will do."""
    fitting = [part for part in sizes if (part < size_s or (whole and part == size_s)) and _fills(part, size_s)]
    return max(fitting, default=base_s)


def _fills(part_s: float, size_s: float) -> bool:
    number = size_s / part_s
    return number >= 1 and abs(number - round(number)) * part_s < ROUNDING_S


def _check(base_s: float, asked: Asked) -> None:
    shape = asked.shape
    if shape.kind == "session":
        return
    if not _fills(base_s, shape.every_s):
        raise ConfigError(
            f"{asked.by}: windows of {shape.name} cannot be made of the base windows of {base_s:g} s (windows.size_s; "
            "of a CSV file --window, or as its rows are apart); ask for multiples of that"
        )
