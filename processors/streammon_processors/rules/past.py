"""The past of a series: what ``avg_over(error_rate, "10m")`` and its like look back on.

Each window of a series has a slot, by its number since 1970, in a ring as long as the longest look back. A function
sees the windows whose end is within the last so many seconds, the newest included, in order of time; a window that
is not there, or does not say, is left out:

=====================================  =========================================================================
``avg_over(x, d)`` ``sum_over``        mean, sum, least and greatest of the windows' values
``min_over`` ``max_over``
``delta(x, d)``                        the newest value less the oldest
``rate(x, d)``                         the growth of a counter a second: falls are resets (Prometheus' rule)
``quantile(q, d)``                     of all events of these windows, from their merged sketches; of ``duration_s``,
``quantile(field, q, d)``              or of another distribution: at most 0.55 % from exact
``burn_rate(objective, d)``            the share of failed requests, in multiples of 1 - objective
``burn_rate(field, t, objective, d)``  the same for the share of values above ``t``: a latency SLO
``share_above(field, t)``              the share of values above ``t`` in this window alone (no past)
=====================================  =========================================================================

``delta`` and ``rate`` need two values, ``burn_rate`` one event. The argument may be any calculation, and holds no
function of the past itself. Sums are made in order of time, so equal windows give equal bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from streammon.durations import seconds
from streammon.sketch import Sketch, merge
from streammon_processors.rules.cel import (
    DISTRIBUTION,
    NUMBER,
    TEXT,
    Call,
    Constant,
    ExpressionError,
    Function,
    Node,
    Variable,
)
from streammon_processors.rules.expression import Floats, calls_of

Ints: TypeAlias = NDArray[np.int64]
_OVER: Final = ("avg_over", "sum_over", "min_over", "max_over", "delta", "rate")
FUNCTIONS: Final = (
    *(Function(name, ((NUMBER, TEXT),)) for name in _OVER),
    Function("quantile", ((NUMBER, TEXT), (DISTRIBUTION, NUMBER, TEXT))),
    Function("burn_rate", ((NUMBER, TEXT), (DISTRIBUTION, NUMBER, NUMBER, TEXT))),
    Function("share_above", ((DISTRIBUTION, NUMBER),)),
)
NAMES: Final = tuple(each.name for each in FUNCTIONS)


@dataclass(frozen=True)
class Look:
    """A call, understood: which numbers of a window it keeps, how far it looks back, and what it makes of them."""

    call: Call
    tracks: tuple[Node, ...]
    """Numbers of a window that are kept; none for a function of the window itself."""
    sketches: str | None
    """The distribution whose sketches are kept or looked at."""
    span_s: float
    parameters: tuple[float, ...] = ()


def understand(call: Call) -> Look:
    """Raises ExpressionError: an argument that must be a constant is none, or says something impossible."""
    name, arguments = call.function, call.arguments
    if name == "share_above":
        return Look(call, (), _field(arguments[0]), 0.0, (_constant(call, arguments[1]),))
    span_s = _span(call, arguments[-1])
    if name == "quantile":
        field = _field(arguments[0]) if len(arguments) == 3 else "duration_s"
        q = _constant(call, arguments[-2])
        if not 0 <= q <= 1:
            raise ExpressionError(f"quantile({q:g}): a quantile is from 0 to 1")
        return Look(call, (), field, span_s, (q,))
    if name == "burn_rate":
        return _burn_rate(call, span_s)
    if next(calls_of(arguments[0], dict.fromkeys(NAMES)), None):
        raise ExpressionError(f"{name}: its argument may not hold a function of the past")
    return Look(call, arguments[:1], None, span_s)


def _burn_rate(call: Call, span_s: float) -> Look:
    objective = _constant(call, call.arguments[-2])
    if not 0 < objective < 1:
        raise ExpressionError(f"burn_rate: the objective is a fraction such as 0.999, not {objective:g}")
    if len(call.arguments) == 2:
        return Look(call, (Variable("error_count"), Variable("count")), None, span_s, (objective,))
    field, threshold = _field(call.arguments[0]), _constant(call, call.arguments[1])
    slow = Call("share_above", (Variable(field), Constant(threshold)))
    events = Variable(f"{field}.count")
    return Look(call, (Call("_*_", (slow, events)), events), field, span_s, (objective,))


def _field(node: Node) -> str:
    assert isinstance(node, Variable), "the type check lets only a field be a distribution"
    return node.name


def _constant(call: Call, node: Node) -> float:
    if not isinstance(node, Constant) or not isinstance(node.value, float):
        raise ExpressionError(f"{call.function}: a number that is written out is wanted here")
    return node.value


def _span(call: Call, node: Node) -> float:
    if not isinstance(node, Constant) or not isinstance(node.value, str):
        raise ExpressionError(f'{call.function}: how far to look back must be written out, as "10m"')
    try:
        found = seconds(node.value)
    except ValueError as error:
        raise ExpressionError(f"{call.function}: {error}") from None
    if not found:
        raise ExpressionError(f"{call.function}: it looks back on nothing")
    return found


# ---------------------------------------------------------------- what a function makes of the past


def _mean(seen: Floats) -> Floats:
    count = np.sum(~np.isnan(seen), axis=1)
    return _ratio(np.nansum(seen, axis=1), count)


def _ratio(part: Floats, whole: Floats) -> Floats:
    ratio: Floats = np.divide(part, whole, out=np.full(len(part), np.nan), where=whole > 0)
    return ratio


def _sum(seen: Floats) -> Floats:
    return np.where(np.all(np.isnan(seen), axis=1), np.nan, np.nansum(seen, axis=1))


def _ends(seen: Floats) -> tuple[Ints, Ints]:
    """Where the oldest and the newest value of each row are; the same place if there are not two."""
    there = ~np.isnan(seen)
    oldest, newest = np.argmax(there, axis=1), seen.shape[1] - 1 - np.argmax(there[:, ::-1], axis=1)
    return oldest, np.where(there.any(axis=1), newest, oldest)


def _delta(seen: Floats) -> Floats:
    oldest, newest = _ends(seen)
    rows = np.arange(len(seen))
    return np.where(newest > oldest, seen[rows, newest] - seen[rows, oldest], np.nan)


def _growth(seen: Floats, step_s: float) -> Floats:
    oldest, newest = _ends(seen)
    before = np.full(len(seen), np.nan)
    grown = np.zeros(len(seen))
    for now in seen.T:
        step = np.where(now >= before, now - before, now)
        grown += np.where(np.isnan(now) | np.isnan(before), 0.0, step)
        before = np.where(np.isnan(now), before, now)
    return _ratio(grown, np.asarray((newest - oldest) * step_s, dtype=float))


def _burnt(bad: Floats, total: Floats, objective: float) -> Floats:
    known = ~np.isnan(bad) & ~np.isnan(total)
    bad_sum = np.sum(np.where(known, bad, 0.0), axis=1)
    total_sum = np.sum(np.where(known, total, 0.0), axis=1)
    return _ratio(bad_sum, total_sum) / (1 - objective)


def share_above(sketch: Sketch | None, threshold: float) -> float:
    """The share of a sketch's values above a threshold; NaN without any."""
    return sketch.above(threshold) / sketch.count if sketch and sketch.count else np.nan


_RESULTS: Final[Mapping[str, Callable[[Sequence[Floats], float, Look], Floats]]] = {
    "avg_over": lambda seen, step_s, look: _mean(seen[0]),
    "sum_over": lambda seen, step_s, look: _sum(seen[0]),
    "min_over": lambda seen, step_s, look: np.fmin.reduce(seen[0], axis=1),
    "max_over": lambda seen, step_s, look: np.fmax.reduce(seen[0], axis=1),
    "delta": lambda seen, step_s, look: _delta(seen[0]),
    "rate": lambda seen, step_s, look: _growth(seen[0], step_s),
    "burn_rate": lambda seen, step_s, look: _burnt(seen[0], seen[1], look.parameters[0]),
}
"""What is made of the tracks of a look, one row a series and one column a window, the newest last."""


# ---------------------------------------------------------------- rings


class Past:
    """The rings of many series. Rows are the caller's; one that is reused has to be given to `forget` first."""

    def __init__(self, looks: Iterable[Look], step_s: float) -> None:
        self.looks = tuple(dict.fromkeys(looks))
        self._step_s = step_s
        self._slots = {look: max(1, round(look.span_s / step_s)) for look in self.looks}
        tracks: dict[Node, int] = {}
        sketches: dict[str, int] = {}
        for look, slots in self._slots.items():
            for track in look.tracks:
                tracks[track] = max(slots, tracks.get(track, 0))
            if look.call.function == "quantile" and look.sketches:
                sketches[look.sketches] = max(slots, sketches.get(look.sketches, 0))
        self.tracks = tracks
        self._sketch_slots = sketches
        self.row_bytes = 8 * sum(tracks.values()) + _SKETCH_BYTES * sum(sketches.values())
        self._rings = {track: np.full((0, slots), np.nan) for track, slots in tracks.items()}
        self._newest = np.full(0, -1, dtype=np.int64)
        self._sketches: dict[tuple[str, int], dict[int, Sketch]] = {}

    @cached_property
    def name(self) -> str:
        """Equal for rings of the same numbers, as long."""
        return blake2b(
            repr([(str(track), slots) for track, slots in self.tracks.items()]).encode(), digest_size=8
        ).hexdigest()

    @property
    def keeps(self) -> bool:
        """Whether anything has to be remembered at all."""
        return bool(self.row_bytes)

    def forget(self, row: int) -> None:
        """The row will be another series'."""
        if row < len(self._newest):
            self._newest[row] = -1
            for ring in self._rings.values():
                ring[row] = np.nan
        for field in self._sketch_slots:
            self._sketches.pop((field, row), None)

    def put(
        self, rows: Ints, number: int, values: Mapping[Node, Floats], sketches: Mapping[str, Sequence[Any]]
    ) -> None:
        """Windows of one start, number ``number``, one of each row."""
        self._grow(int(rows.max()) + 1)
        newest = self._newest[rows]
        passed = np.where(newest < 0, 0, number - newest)
        for track, ring in self._rings.items():
            self._clear(ring, rows, newest, passed, number)
            ring[rows, number % ring.shape[1]] = values[track]
        self._newest[rows] = number
        for field, slots in self._sketch_slots.items():
            for row, sketch in zip(rows.tolist(), sketches[field], strict=True):
                kept = self._sketches.setdefault((field, row), {})
                if sketch is not None:
                    kept[number] = sketch
                while kept and next(iter(kept)) <= number - slots:
                    del kept[next(iter(kept))]

    def of(self, look: Look, rows: Ints, number: int) -> Floats:
        """What a call gives for these rows, whose newest window is number ``number``."""
        slots = self._slots[look]
        if look.call.function == "quantile":
            return np.array([self._quantile(look, row, number - slots) for row in rows.tolist()])
        seen = []
        for track in look.tracks:
            ring = self._rings[track]
            places = np.arange(number - slots + 1, number + 1) % ring.shape[1]
            seen.append(ring[rows[:, np.newaxis], places])
        with np.errstate(invalid="ignore"):  # infinity less infinity is not known
            return _RESULTS[look.call.function](seen, self._step_s, look)

    def _quantile(self, look: Look, row: int, after: int) -> float:
        kept = self._sketches.get((look.sketches or "", row), {})
        merged = merge([sketch for number, sketch in kept.items() if number > after])
        return merged.quantile(look.parameters[0]) if merged.count else np.nan

    def _grow(self, rows: int) -> None:
        if rows > len(self._newest):
            more = max(rows, 2 * len(self._newest), 16) - len(self._newest)
            self._newest = np.concatenate((self._newest, np.full(more, -1, dtype=np.int64)))
            for track, ring in self._rings.items():
                self._rings[track] = np.concatenate((ring, np.full((more, ring.shape[1]), np.nan)))

    @staticmethod
    def _clear(ring: Floats, rows: Ints, newest: Ints, passed: Ints, number: int) -> None:
        """Empty the slots of the windows that were passed over."""
        slots = ring.shape[1]
        for at in np.flatnonzero(passed > 1).tolist():
            if passed[at] >= slots:
                ring[rows[at]] = np.nan
            else:
                ring[rows[at], np.arange(newest[at] + 1, number) % slots] = np.nan

    # -- what a snapshot keeps

    def dump(self, row: int) -> bytes:
        """The past of a row; its sketches are not in it."""
        if row >= len(self._newest):
            return b""
        parts = [self._newest[row : row + 1], *(ring[row] for ring in self._rings.values())]
        return np.concatenate(parts).astype("<f8").tobytes()

    def load(self, row: int, dumped: bytes) -> None:
        """Take over what `dump` gave, of rings of the same `name`."""
        if dumped:
            self._grow(row + 1)
            values = np.frombuffer(dumped, "<f8")
            self._newest[row] = round(values[0])
            at = 1
            for ring in self._rings.values():
                ring[row] = values[at : at + ring.shape[1]]
                at += ring.shape[1]


_SKETCH_BYTES: Final = 1500
