"""The past of a series: what ``avg_over(error_rate, "10m")`` and its like look back on.

Each window of a series has a slot, by its number since 1970, in a ring as long as the longest look back. A function
sees the windows that started within the last ``d``, the newest included; those that never came, or lack the number,
are left out.

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

``delta`` and ``rate`` need two values, ``burn_rate`` one event. The argument may be any calculation over the window,
``share_above`` included, and holds no function of the past itself. Sums are made in order of time, so equal windows
give equal bits.

Functions that learn a series, such as ``anomaly(x)``, are in `learning`: they have a state instead of a ring.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from streammon.sketch import Sketch, merge
from streammon_processors.rules.conditions import learning
from streammon_processors.rules.conditions.arguments import number_in, span_in
from streammon_processors.rules.conditions.cel import (
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
from streammon_processors.rules.conditions.expression import Bools, Floats, calls_of
from streammon_processors.rules.conditions.learning import Learned, Lesson, lesson_of, parameters_of

Ints: TypeAlias = NDArray[np.int64]
_OVER: Final = ("avg_over", "sum_over", "min_over", "max_over", "delta", "rate")
FUNCTIONS: Final = (
    *(Function(name, ((NUMBER, TEXT),)) for name in _OVER),
    Function("quantile", ((NUMBER, TEXT), (DISTRIBUTION, NUMBER, TEXT))),
    Function("burn_rate", ((NUMBER, TEXT), (DISTRIBUTION, NUMBER, NUMBER, TEXT))),
    Function("share_above", ((DISTRIBUTION, NUMBER),)),
    *learning.FUNCTIONS,
)
NAMES: Final = tuple(each.name for each in FUNCTIONS)
_LEARNING: Final = (*(each.name for each in learning.FUNCTIONS), *learning.USUAL)
_OF_THE_PAST: Final = tuple(name for name in NAMES if name != "share_above")


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
    lesson: Lesson | None = None
    """What it learns of a series, instead of keeping its windows."""

    @property
    def keeps_sketches(self) -> bool:
        """Whether it looks back on sketches, which no snapshot holds."""
        return self.call.function == "quantile"


def understand(call: Call) -> Look:
    """Raises ExpressionError: an argument that must be a constant is none, or says something impossible."""
    name, arguments = call.function, call.arguments
    if name == "share_above":
        return Look(call, (), _field(arguments[0]), 0.0, (number_in(call, arguments[1]),))
    if name in (*_OVER, *_LEARNING) and next(calls_of(arguments[0], dict.fromkeys(_OF_THE_PAST)), None):
        raise ExpressionError(f"{name}: its argument may not hold a function of the past")
    if name in _LEARNING:
        lesson = lesson_of(call)
        return Look(call, (), None, lesson.method.remembered_s, parameters_of(call), lesson)
    span_s = span_in(call, arguments[-1])
    if name == "quantile":
        field = _field(arguments[0]) if len(arguments) == 3 else "duration_s"
        q = number_in(call, arguments[-2])
        if not 0 <= q <= 1:
            raise ExpressionError(f"quantile({q:g}): a quantile is from 0 to 1")
        return Look(call, (), field, span_s, (q,))
    if name == "burn_rate":
        return _burn_rate(call, span_s)
    return Look(call, arguments[:1], None, span_s)


def _burn_rate(call: Call, span_s: float) -> Look:
    objective = number_in(call, call.arguments[-2])
    if not 0 < objective < 1:
        raise ExpressionError(f"burn_rate: the objective is a fraction such as 0.999, not {objective:g}")
    if len(call.arguments) == 2:
        return Look(call, (Variable("error_count"), Variable("count")), None, span_s, (objective,))
    field, threshold = _field(call.arguments[0]), number_in(call, call.arguments[1])
    slow = Call("share_above", (Variable(field), Constant(threshold)))
    events = Variable(f"{field}.count")
    return Look(call, (Call("_*_", (slow, events)), events), field, span_s, (objective,))


def _field(node: Node) -> str:
    assert isinstance(node, Variable), "the type check lets only a field be a distribution"
    return node.name


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
    return _ratio(bad_sum, total_sum) / allowed(objective)


def allowed(objective: float) -> float:
    """The share that may be bad. 1 - 0.9 is not quite 0.1, and an objective that is just met would be missed."""
    return round(1 - objective, 15)


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
    """The rings of many series, and what was learned of them.

    Rows are the caller's; one that is reused has to be given to `forget` first.
    """

    def __init__(self, looks: Iterable[Look], step_s: float, size_s: float = 0.0) -> None:
        """``size_s``: how long the windows are, for what learns from them."""
        self.looks = tuple(dict.fromkeys(looks))
        self._step_s, self._size_s = step_s, size_s
        self._slots = {look: max(1, round(look.span_s / step_s)) for look in self.looks}
        tracks: dict[Node, int] = {}
        sketches: dict[str, int] = {}
        for look, slots in self._slots.items():
            for track in look.tracks:
                tracks[track] = max(slots, tracks.get(track, 0))
            if look.keeps_sketches and look.sketches:
                sketches[look.sketches] = max(slots, sketches.get(look.sketches, 0))
        self.tracks = tracks
        self._sketch_slots = sketches
        self._rings = {track: np.full((0, slots), np.nan) for track, slots in tracks.items()}
        lessons = dict.fromkeys(look.lesson for look in self.looks if look.lesson)
        self._learned = {lesson: Learned(lesson, size_s) for lesson in lessons}
        self._said: dict[Look, Floats] = {}
        self.inputs = tuple(dict.fromkeys((*tracks, *(lesson.track for lesson in lessons))))
        """The numbers of a window that `put` wants."""
        self.row_bytes = (
            8 * sum(tracks.values())
            + _SKETCH_BYTES * sum(sketches.values())
            + sum(each.row_bytes for each in self._learned.values())
        )
        self._newest = np.full(0, -1, dtype=np.int64)
        self._sketches: dict[tuple[str, int], dict[int, Sketch]] = {}

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
            for learned in self._learned.values():
                learned.forget(row)
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
        self._learn(rows, number, values, newest < number)
        for field, slots in self._sketch_slots.items():
            for row, sketch in zip(rows.tolist(), sketches[field], strict=True):
                kept = self._sketches.setdefault((field, row), {})
                if sketch is not None:
                    kept[number] = sketch
                while kept and next(iter(kept)) <= number - slots:
                    del kept[next(iter(kept))]

    def _learn(self, rows: Ints, number: int, values: Mapping[Node, Floats], is_new: Bools) -> None:
        """A window that comes again teaches nothing, and nothing is said of it."""
        end_unix_s = number * self._step_s + self._size_s
        for lesson, learned in self._learned.items():
            said = learned.learn(rows[is_new], end_unix_s, values[lesson.track][is_new])
            for look in self.looks:
                if look.lesson == lesson:
                    self._said[look] = np.full(len(rows), np.nan)
                    self._said[look][is_new] = learned.answer(look.call.function, said, rows[is_new], look.parameters)

    def of(self, look: Look, rows: Ints, number: int) -> Floats:
        """What a call gives for the rows of the last `put`, whose newest window is number ``number``."""
        if look.lesson:
            return self._said[look]
        slots = self._slots[look]
        if look.keeps_sketches:
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
            for learned in self._learned.values():
                learned.grow(len(self._newest))

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

    def dump(self, rows: Ints) -> dict[str, bytes]:
        """The past of these rows, each part under a name of its own; sketches are not in it."""
        if len(rows):
            self._grow(int(rows.max()) + 1)
        parts = {_NEWEST: self._newest[rows].astype("<i8").tobytes()}
        parts |= {_name(track, ring): ring[rows].astype("<f8").tobytes() for track, ring in self._rings.items()}
        return parts | {learned.name: learned.dump(rows) for learned in self._learned.values()}

    def load(self, rows: Ints, dumped: Mapping[str, bytes]) -> None:
        """Take over what `dump` gave: the parts that are wanted here, too. Rules may have come and gone since."""
        if not len(rows):
            return
        self._grow(int(rows.max()) + 1)
        self._newest[rows] = np.frombuffer(dumped[_NEWEST], "<i8")
        for track, ring in self._rings.items():
            if part := dumped.get(_name(track, ring)):
                ring[rows] = np.frombuffer(part, "<f8").reshape(len(rows), -1)
        for learned in self._learned.values():
            if part := dumped.get(learned.name):
                learned.load(rows, part)


_SKETCH_BYTES: Final = 1500
_NEWEST: Final = "newest"


def _name(track: Node, ring: Floats) -> str:
    """Equal for rings of the same number, as long."""
    return blake2b(repr((str(track), ring.shape[1])).encode(), digest_size=8).hexdigest()
