"""What is known of some pairs of prediction and label: sums, which add, and from which every measure is read.

A `Sums` is two vectors: one of floats (`SUMS`, then the confidence by tenths), one of integers: pairs by their
prediction's group, confidence and whether it was right (the *reliability*), then the confusion matrix. So the sum of
two is a sum of vectors, and everybody who is not in a slice is a difference. Classes are numbered up to `MAX_CLASSES`;
the rest is one more, of which nothing but its accuracy can be told.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeAlias

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from streammon.outcomes import CONFIDENCE_BINS

Ints: TypeAlias = NDArray[np.int64]
Floats: TypeAlias = NDArray[np.float64]

MAX_CLASSES: Final = 20
"""Classes of a model version that are told apart; of others only whether they were right."""
OTHER_CLASS: Final = MAX_CLASSES
TENTHS: Final = 10
"""Bins of the expected calibration error, of equal width."""
SUREST: Final = 1e-7
"""A confidence of 0 or 1 is taken for this far from it: one wrong answer would make a mean log loss infinite."""

SUMS: Final = (
    "labelled", "scored", "score", "score_squares", "rated", "rating", "rating_squares",
    "judged", "right", "sure", "log_loss", "log_loss_squares",
    "numbers", "error", "distance", "squares", "fourth_powers",
)  # fmt: skip
"""``judged``: pairs with a prediction and a label; ``sure``: those with a confidence, too; ``numbers``: those whose
prediction and label are numbers; ``error``: prediction minus label; ``distance``: its magnitude."""
_AT: Final = {name: index for index, name in enumerate(SUMS)}
_FLOATS: Final = len(SUMS) + TENTHS
_RELIABILITY: Final = 2 * CONFIDENCE_BINS * 2
_CLASSES: Final = MAX_CLASSES + 1
_COUNTS: Final = _RELIABILITY + _CLASSES**2


def absurd_values() -> np.errstate:
    """Sums of the squares of absurd values become infinite, or no number: a measure made of them is none."""
    return np.errstate(over="ignore", invalid="ignore")


class Packed(NamedTuple):
    """A `Sums` without its zeros: a bit for each number, whether it is another one, and those."""

    float_mask: bytes
    floats: bytes
    count_mask: bytes
    counts: bytes
    width: str


def _mask(numbers: NDArray[Any]) -> bytes:
    """A bit for each number: whether it is not 0; without the bytes at the end that say so of none."""
    return np.packbits(numbers != 0).tobytes().rstrip(b"\0")


def _places(mask: bytes) -> Ints:
    """Where the numbers are that are not 0."""
    return np.flatnonzero(np.unpackbits(np.frombuffer(mask, dtype="u1")))


class Sums:
    """What some pairs add up to."""

    __slots__ = ("_packed", "counts", "floats")

    def __init__(self, floats: Floats | None = None, counts: Ints | None = None) -> None:
        self.floats = np.zeros(_FLOATS) if floats is None else floats
        self.counts = np.zeros(_COUNTS, dtype=np.int64) if counts is None else counts
        self._packed: Packed | None = None

    def __getitem__(self, name: str) -> float:
        return float(self.floats[_AT[name]])

    @property
    def confidence(self) -> Floats:
        """The sum of confidence by tenths of it; shape (10,)."""
        return self.floats[len(SUMS) :]

    @property
    def reliability(self) -> Ints:
        """Pairs by group of the prediction, confidence, and whether it was wrong (0) or right (1); shape (2, 50, 2)."""
        return self.counts[:_RELIABILITY].reshape(2, CONFIDENCE_BINS, 2)

    @property
    def confusion(self) -> Ints:
        """Pairs by class of the prediction and class of the label; shape (21, 21)."""
        return self.counts[_RELIABILITY:].reshape(_CLASSES, _CLASSES)

    def add(self, floats: Floats, places: Ints, counts: Ints) -> None:
        """Add floats, and counts at some places."""
        with absurd_values():
            self.floats += floats
        self.counts[places] += counts
        self._packed = None

    def without(self, others: Sums) -> Sums:
        """Of the pairs that are not among the others."""
        with absurd_values():
            return Sums(self.floats - others.floats, self.counts - others.counts)

    def pack(self) -> Packed:
        """All of it, in few bytes."""
        if self._packed is None:
            counts = self.counts[self.counts != 0]
            width = np.min_scalar_type(int(counts.max())).str if len(counts) else "|u1"
            self._packed = Packed(
                _mask(self.floats),
                self.floats[self.floats != 0].tobytes(),
                _mask(self.counts),
                counts.astype(width).tobytes(),
                width,
            )
        return self._packed

    @property
    def weight(self) -> int:
        """How many bytes it takes, packed."""
        return sum(map(len, self.pack())) + 16

    @classmethod
    def unpack(cls, packed: Packed) -> Sums:
        sums = cls()
        sums.floats[_places(packed.float_mask)] = np.frombuffer(packed.floats)
        sums.counts[_places(packed.count_mask)] = np.frombuffer(packed.counts, packed.width)
        return sums


class Pairs(Struct):
    """Pairs of one model version, as arrays of shape (n,); NaN, or -1, where there is none."""

    labelled: NDArray[np.bool_]
    score: Floats
    rating: Floats
    predicted: Ints
    """The number of its class."""
    actual: Ints
    right: NDArray[np.bool_]
    """Whether they are the same, whatever their numbers."""
    group: Ints
    """1: it predicts the positive class."""
    confidence: Floats
    error: Floats

    def columns(self) -> Floats:
        """What each adds to `Sums.floats`; shape (n, 27)."""
        judged = (self.predicted >= 0) & (self.actual >= 0)
        sure = judged & ~np.isnan(self.confidence)
        confidence = np.where(sure, self.confidence, 0.0)
        # A wrong prediction's confidence leaves 1 - c to all other classes: exact for two, the least loss for more.
        chance = np.where(self.right, confidence, 1 - confidence).clip(SUREST, 1 - SUREST)
        loss = np.where(sure, -np.log(chance), 0.0)
        error = np.nan_to_num(self.error)
        score, rating = np.nan_to_num(self.score), np.nan_to_num(self.rating)
        with absurd_values():
            square = error**2
            plain = (
                self.labelled, ~np.isnan(self.score), score, score**2, ~np.isnan(self.rating), rating, rating**2,
                judged, judged & self.right, sure, loss, loss**2,
                ~np.isnan(self.error), error, np.abs(error), square, square**2,
            )  # fmt: skip
        table = np.zeros((len(error), _FLOATS))
        for column, values in enumerate(plain):
            table[:, column] = values
        rows = np.flatnonzero(sure)
        table[rows, len(SUMS) + _bins(confidence[rows], TENTHS)] = confidence[rows]
        return table

    def places(self) -> tuple[Ints, Ints]:
        """Which rows count in `Sums.counts`, and where."""
        judged = np.flatnonzero((self.predicted >= 0) & (self.actual >= 0))
        sure = judged[~np.isnan(self.confidence[judged])]
        bins = self.group[sure] * CONFIDENCE_BINS + _bins(self.confidence[sure], CONFIDENCE_BINS)
        reliability = bins * 2 + self.right[sure]
        confusion = _RELIABILITY + self.predicted[judged] * _CLASSES + self.actual[judged]
        return np.concatenate([sure, judged]), np.concatenate([reliability, confusion])


def _bins(shares: Floats, bins: int) -> Ints:
    """Of equal width over [0, 1]; 1 is in the last."""
    return np.minimum((shares * bins).astype(np.int64), bins - 1)


class Grouped(NamedTuple):
    """What the pairs of one group add."""

    group: int
    floats: Floats
    places: Ints
    counts: Ints


def grouped(pairs: Pairs, groups: Sequence[Ints]) -> Iterator[Grouped]:
    """What each group adds up to. Each of ``groups`` puts each pair into one, or none (-1)."""
    table, (rows, places) = pairs.columns(), pairs.places()
    belongs = np.concatenate(groups)
    row_of = np.tile(np.arange(len(table)), len(groups))
    order = np.argsort(belongs, kind="stable")
    order = order[belongs[order] >= 0]
    if not len(order):
        return
    names, starts = np.unique(belongs[order], return_index=True)
    with absurd_values():
        floats = np.add.reduceat(table[row_of[order]], starts, axis=0)
    keys = np.concatenate([each[rows][each[rows] >= 0] * _COUNTS + places[each[rows] >= 0] for each in groups])
    distinct, counts = np.unique(keys, return_counts=True)
    cuts = np.searchsorted(distinct, np.append(names, names[-1] + 1) * _COUNTS)
    for index, name in enumerate(names.tolist()):
        part = slice(cuts[index], cuts[index + 1])
        yield Grouped(name, floats[index], distinct[part] - name * _COUNTS, counts[part])


def columns_of_classes(known: Mapping[Any, int], values: Sequence[Any]) -> Ints:
    """The number of each value's class."""
    return np.fromiter(map(known.__getitem__, values), dtype=np.int64, count=len(values))
