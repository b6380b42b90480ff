"""Functions that learn a series: what is out of the ordinary for it, and where it is going.

They remember weeks, which no ring of windows holds, so each keeps a state of fixed size of every series: see
`anomaly` and `forecast` for what it is. It is as old as the series, and therefore in the snapshot.

==============================================  ================================================================
``anomaly(x)`` ``anomaly(x, "above")``          the deviation from what is usual, in units of its bound: above 1 is
``anomaly(x, "above", budget)``                 an anomaly; ``budget``: false alarms a week and series, 0.5
``forecast(x, "6h")``                           the value in 6 h; the line goes through as much of the past
``forecast(x, "6h", history)``                  or through so much
``time_until(x, level, "6h")``                  seconds until it has risen to a level, by a line through the last 6 h;
``time_until(x, level, "6h", "falling")``       or fallen; infinite where it is not on the way there
==============================================  ================================================================

The argument may be any calculation over the window. What is not known yet (a day for anomalies, half of the history
for forecasts) decides nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Final, TypeAlias

import numpy as np

from streammon.errors import ConfigError
from streammon_processors.rules.conditions.anomaly import Baseline, Baselines, Direction
from streammon_processors.rules.conditions.arguments import choice_in, number_in, span_in
from streammon_processors.rules.conditions.cel import NUMBER, TEXT, Call, ExpressionError, Function, Node
from streammon_processors.rules.conditions.forecast import Forecast, Forecasts
from streammon_processors.rules.conditions.rows import Floats, Rows

Method: TypeAlias = Baseline | Forecast
FUNCTIONS: Final = (
    Function("anomaly", ((NUMBER,), (NUMBER, TEXT), (NUMBER, TEXT, NUMBER))),
    Function("forecast", ((NUMBER, TEXT), (NUMBER, TEXT, TEXT))),
    Function("time_until", ((NUMBER, NUMBER, TEXT), (NUMBER, NUMBER, TEXT, TEXT))),
)


_DIRECTIONS: Final = tuple(each.value for each in Direction)


@dataclass(frozen=True)
class Lesson:
    """What is learned, and of which number. Calls with equal lessons share their state."""

    track: Node
    method: Method


def lesson_of(call: Call) -> Lesson:
    """Raises ExpressionError: an argument says something impossible."""
    try:
        return Lesson(call.arguments[0], _METHODS[call.function](call))
    except ConfigError as error:
        raise ExpressionError(f"{call.function}: {error}") from None


def _baseline(call: Call) -> Baseline:
    _, *direction = call.arguments[:2]
    chosen = [Direction(choice_in(call, each, _DIRECTIONS)) for each in direction] or [Direction.BOTH]
    budget = [number_in(call, each) for each in call.arguments[2:]] or [Baseline().budget_per_week]
    return Baseline(budget[0], chosen[0])


def _forecast(call: Call) -> Forecast:
    spans = [span_in(call, each) for each in call.arguments[1:]]
    return Forecast(spans[0], spans[-1])


def _way(call: Call) -> Forecast:
    history_s = span_in(call, call.arguments[2])
    return Forecast(history_s, history_s)


USUAL: Final = ("anomaly_lower", "anomaly_upper")
"""Between which values a number is usual: not for rules, but for what is told of them."""


def told_with(call: Call) -> tuple[Call, ...]:
    """What else has to be known of a call to tell people what came out of it."""
    return tuple(Call(name, call.arguments) for name in USUAL) if call.function == "anomaly" else ()


_METHODS: Final[Mapping[str, Callable[[Call], Method]]] = {
    "anomaly": _baseline, **dict.fromkeys(USUAL, _baseline), "forecast": _forecast, "time_until": _way,
}  # fmt: skip


def parameters_of(call: Call) -> tuple[float, ...]:
    """What else its answer depends on: of `time_until`, the level, and 1 if it is fallen to."""
    if call.function != "time_until":
        return ()
    falling = [choice_in(call, each, ["falling", "rising"]) == "falling" for each in call.arguments[3:]]
    return number_in(call, call.arguments[1]), float(any(falling))


class Learned:
    """The states of many series, one a row, of one lesson over windows of one length."""

    def __init__(self, lesson: Lesson, window_s: float) -> None:
        self.track = lesson.track
        method = lesson.method.of_windows(window_s)
        self._states: Baselines | Forecasts = method.open()
        layout = (str(lesson.track), repr(method), self._states.row_bytes)
        self.name = blake2b(repr(layout).encode(), digest_size=8).hexdigest()
        """Equal for states that can be taken over."""

    @property
    def row_bytes(self) -> int:
        return self._states.row_bytes

    def grow(self, rows: int) -> None:
        self._states.grow(rows)

    def forget(self, row: int) -> None:
        self._states.reset(row)

    def learn(self, rows: Rows, end_unix_s: float, values: Floats) -> Any:
        """Windows that end then, one of each row; what `answer` is made of."""
        return self._states.update(rows, np.full(len(rows), end_unix_s), values)

    def answer(self, function: str, said: Any, rows: Rows, parameters: tuple[float, ...]) -> Floats:
        """What a function gives for the rows that `learn` was last called with."""
        return _ANSWERS[function](self._states, said, rows, parameters)

    def dump(self, rows: Rows) -> bytes:
        return b"".join(self._states.dump(row) for row in rows.tolist())

    def load(self, rows: Rows, dumped: bytes) -> None:
        size = self.row_bytes
        for at, row in enumerate(rows.tolist()):
            self._states.load(row, dumped[at * size : (at + 1) * size])


def _until(states: Any, said: Any, rows: Rows, parameters: tuple[float, ...]) -> Floats:
    level, falling = parameters
    reached: Floats = states.time_until(rows, np.full(len(rows), level), falling=bool(falling)).seconds
    return reached


_ANSWERS: Final[Mapping[str, Callable[[Any, Any, Rows, tuple[float, ...]], Floats]]] = {
    "anomaly": lambda states, said, rows, parameters: said.score,
    "anomaly_lower": lambda states, said, rows, parameters: said.lower,
    "anomaly_upper": lambda states, said, rows, parameters: said.upper,
    "forecast": lambda states, said, rows, parameters: said.expected,
    "time_until": _until,
}
