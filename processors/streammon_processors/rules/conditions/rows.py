"""Fixed-size state of many series, one a row, as arrays of records; what baselines and forecasts have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Rows = NDArray[np.intp]
Records = NDArray[np.void]

T = TypeVar("T")


class RowStates:
    """Rows that each begin blank and can be carried away as bytes; a row has one record in each of the parts."""

    def __init__(self, blank: Sequence[Records], capacity: int) -> None:
        self._blank = blank
        self.parts = [np.repeat(each, capacity) for each in blank]

    def __len__(self) -> int:
        return len(self.parts[0])

    @property
    def row_bytes(self) -> int:
        """The length of a `dump`, and what a row takes in memory."""
        return sum(part.dtype.itemsize for part in self.parts)

    def grow(self, capacity: int) -> None:
        """Room for `capacity` series; those that are there stay."""
        more = max(0, capacity - len(self))
        self.parts = [
            np.concatenate([part, np.repeat(each, more)]) for part, each in zip(self.parts, self._blank, strict=True)
        ]

    def reset(self, row: int) -> None:
        """Forget what is known of a row."""
        for part, each in zip(self.parts, self._blank, strict=True):
            part[row] = each[0]

    def dump(self, row: int) -> bytes:
        """All that is known of a row; equal histories are equal bytes."""
        return b"".join(part[row : row + 1].tobytes() for part in self.parts)

    def load(self, row: int, state: bytes) -> None:
        """Take over a `dump`, made with the same description."""
        if len(state) != self.row_bytes:
            raise ValueError(f"a state of {len(state)} bytes, where {self.row_bytes} are needed: of another version?")
        begin = 0
        for part in self.parts:
            part[row] = np.frombuffer(state, part.dtype, count=1, offset=begin)[0]
            begin += part.dtype.itemsize


def in_rounds(update: Callable[[Rows, Floats, Floats], T], rows: Rows, end_unix_s: Floats, values: Floats) -> T:
    """What `update`, which takes a row once, answers for rows that may come more than once, in the order given."""
    order = list(_rounds(rows))
    answers = [update(rows[at], end_unix_s[at], values[at]) for at in order]
    if len(order) == 1:
        return answers[0]
    empty = update(rows[:0], end_unix_s[:0], values[:0])
    return _joined([*answers, empty], np.argsort(np.concatenate([*order, rows[:0]]), kind="stable"))


def _rounds(rows: Rows) -> Iterator[Rows]:
    """Positions in which no row comes twice: all first ones, all second ones, …"""
    order = np.argsort(rows, kind="stable")
    first = np.flatnonzero(np.diff(rows[order], prepend=-1))
    if len(first) == len(rows):
        yield from [np.arange(len(rows))] if len(rows) else []
        return
    turn = np.arange(len(rows)) - np.repeat(first, np.diff(first, append=len(rows)))
    for number in range(int(turn.max()) + 1):
        yield np.sort(order[turn == number])


def _joined(answers: list[T], back: Rows) -> T:
    kind = type(answers[0])
    assert is_dataclass(kind)
    columns: list[Any] = [np.concatenate([getattr(one, field.name) for one in answers]) for field in fields(kind)]
    return kind(*(column[back] for column in columns))
