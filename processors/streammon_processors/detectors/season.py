"""What a value usually is at a time of the day (or week), learned as it goes.

A `Profile` is a ring of nodes over one period, an hour or so apart; between two of them, a straight line. Each node is
the mean of what was seen around it, newer periods counting at least as much as older ones.

What it costs: two numbers a node, whatever the length of the series.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import floor
from typing import Final, NamedTuple

from msgspec import Struct

ENOUGH: Final = 3.0
"""As many values make a node known."""


class Shape(NamedTuple):
    """Of which period, in how many nodes, and of how many periods a node is the mean: older ones fade."""

    period_s: float
    nodes: int
    periods: float

    def places(self, time_unix_s: float) -> tuple[tuple[int, float], tuple[int, float]]:
        """The two nodes around a time, and how much each counts."""
        at = time_unix_s / self.period_s % 1.0 * self.nodes - 0.5
        below = floor(at)
        share = at - below
        return (below % self.nodes, 1.0 - share), ((below + 1) % self.nodes, share)


DAY: Final = Shape(86_400.0, 24, 28.0)
WEEK: Final = Shape(604_800.0, 168, 8.0)
FLAT: Final = Shape(86_400.0, 1, 28.0)
"""No season: one node, the mean of all."""


class Profile(Struct, array_like=True):
    """The nodes of one series. ``weights``: of how many values each is made, up to what it remembers."""

    means: list[float]
    weights: list[float]

    @classmethod
    def empty(cls, shape: Shape) -> Profile:
        return cls([0.0] * shape.nodes, [0.0] * shape.nodes)

    def expected(self, shape: Shape, time_unix_s: float) -> float | None:
        """What is usual at that time; None where it is not known yet."""
        (left, w_left), (right, w_right) = shape.places(time_unix_s)
        if min(self.weights[left], self.weights[right]) < ENOUGH:
            return None
        return w_left * self.means[left] + w_right * self.means[right]

    def learn(self, shape: Shape, time_unix_s: float, value: float, most: float) -> None:
        """``most``: the most that a node may weigh, in values."""
        for node, share in shape.places(time_unix_s):
            if share > 0.0:
                weight = min(self.weights[node] + share, most)
                self.means[node] += share * (value - self.means[node]) / weight
                self.weights[node] = weight

    def move(self, by: float) -> None:
        """The level is another one, its season is as it was."""
        self.means = [mean + by for mean in self.means]

    @property
    def level(self) -> float:
        """The mean of the nodes that are known."""
        known = list(self._known())
        return sum(known) / len(known) if known else 0.0

    def _known(self) -> Iterator[float]:
        return (mean for mean, weight in zip(self.means, self.weights, strict=True) if weight >= ENOUGH)
