"""What is counted of values: categories, moments, and what two targets have to do with each other.

Sums of floats are made one value after the other, so that they are the same however values are cut into calls.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable
from math import isnan

import numpy as np

from streammon.profiles import CoMoments
from streammon.wire import Floats
from streammon_processors.profiles.targets import Column

MAX_CATEGORY_CHARS = 120
"""Longer categories are counted as ``other``."""
LARGEST = sys.float_info.max


class Counts:
    """The categories of one target: those that are known, and the first others."""

    def __init__(self, known: Iterable[str], most: int) -> None:
        self.values = dict.fromkeys(known, 0)
        self.other = 0
        self._room = most

    def add(self, texts: Iterable[str]) -> None:
        for value, count in Counter(texts).items():
            self._add(value, count)

    def _add(self, value: str, count: int) -> None:
        if value in self.values:
            self.values[value] += count
        elif self._room > 0 and len(value) <= MAX_CATEGORY_CHARS:
            self.values[value] = count
            self._room -= 1
        else:
            self.other += count

    def append(self, other: Counts) -> None:
        """What others have counted behind these."""
        for value, count in other.values.items():
            self._add(value, count)
        self.other += other.other

    def present(self) -> dict[str, int] | None:
        """Those that there are, by name."""
        return {value: count for value, count in sorted(self.values.items()) if count} or None


class Moments:
    """Count, extremes and sums of numbers; squares about a center."""

    def __init__(self, center: float) -> None:
        self.center = center
        self.count = 0
        self.min, self.max = np.inf, -np.inf
        self.sum = self.squares = 0.0

    def add(self, numbers: Floats) -> None:
        self.count += len(numbers)
        self.min, self.max = min(self.min, float(numbers.min())), max(self.max, float(numbers.max()))
        with np.errstate(over="ignore", invalid="ignore"):
            self.sum = one_by_one(self.sum, numbers)
            self.squares = one_by_one(self.squares, (numbers - self.center) ** 2)


def one_by_one(start: float, values: Floats) -> float:
    """A sum from left to right: the same however its values are cut into calls."""
    return float(np.cumsum(np.concatenate(([start], values)))[-1])


def finite(value: float) -> float:
    """JSON has no infinity, and no NaN."""
    return 0.0 if isnan(value) else min(max(value, -LARGEST), LARGEST)


def together(x: Column, y: Column) -> Floats:
    """The numbers of the events that have both; shape (2, n)."""
    if len(x.at) != len(y.at) or (x.at != y.at).any():
        _, mine, other = np.intersect1d(x.at, y.at, assume_unique=True, return_indices=True)
        return np.array([x.numbers[mine], y.numbers[other]])
    return np.array([x.numbers, y.numbers])


class Pair:
    """What two targets have to do with each other, over the events that have both."""

    def __init__(self, centers: tuple[float, float] | None) -> None:
        self._centers = centers  # None: the first values, once they are there
        self._count = 0
        self._sums = np.zeros(5)  # of x, y, xx, yy and xy, about the centers

    def add(self, x: Column, y: Column) -> None:
        numbers = together(x, y)
        if not numbers.size:
            return
        if self._centers is None:
            self._centers = float(numbers[0, 0]), float(numbers[1, 0])
        self._count += numbers.shape[1]
        with np.errstate(over="ignore", invalid="ignore"):
            dx, dy = numbers - np.array(self._centers)[:, None]
            terms = np.array([dx, dy, dx * dx, dy * dy, dx * dy])
            self._sums = np.cumsum(np.column_stack([self._sums, terms]), axis=1)[:, -1]

    def moments(self) -> CoMoments | None:
        if not self._count or self._centers is None:
            return None
        n = self._count
        x, y, xx, yy, xy = self._sums.tolist()
        return CoMoments(
            count=n,
            mean_x=finite(self._centers[0] + x / n),
            mean_y=finite(self._centers[1] + y / n),
            m2_x=max(0.0, finite(xx - x * x / n)),
            m2_y=max(0.0, finite(yy - y * y / n)),
            c_xy=finite(xy - x * y / n),
        )
