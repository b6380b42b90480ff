"""The targets of inference events, in columns: the features by name, the prediction, the confidence.

Events of one model version mostly have the same features, so they are taken apart by name: what is done for each
value is a lookup, a look at its type, and a copy.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from types import NoneType
from typing import Any, NamedTuple

import numpy as np

from streammon.models import DriftPolicy
from streammon.wire import Floats
from streammon_processors.chunk import Chunk, Ints, Series

FEATURES = "features."
PREDICTION, CONFIDENCE = "prediction", "confidence"
ALWAYS = (PREDICTION, CONFIDENCE)
MAX_TARGETS = 200
"""Features of one model version; more are left out, and how many is told."""
MAX_NAME_CHARS = 200
"""A feature with a longer name is left out, too: names are in every profile, reference and snapshot."""


class Column(NamedTuple):
    """The values of one target in some events. ``at``: which of the events have the numbers."""

    at: Ints
    numbers: Floats
    texts: Sequence[str] = ()
    """Categories, in the order of the events."""
    types: Mapping[str, int] = {}
    """How many values came as ``number``, ``text`` or ``truth``."""


Columns = dict[str, Column]
"""By target; those that no event has are left out."""


@dataclass(frozen=True)
class Events:
    """Some events of one model version: what they hold, and the policy by which it is read."""

    features: Sequence[Mapping[str, Any] | None]
    predictions: Sequence[Any]
    confidence: Floats
    policy: DriftPolicy = field(default_factory=DriftPolicy)

    def __len__(self) -> int:
        return len(self.features)

    def first(self, count: int) -> Events:
        return Events(self.features[:count], self.predictions[:count], self.confidence[:count], self.policy)

    def names(self) -> list[str]:
        """The targets that they may have, in the order in which they appear."""
        return [*ALWAYS, *(FEATURES + name for name in dict.fromkeys(chain(*filter(None, self.features))))]

    def columns(self, names: Iterable[str]) -> Columns:
        return {name: column for name in names if len((column := self._column(name)).at) or column.types}

    def _column(self, name: str) -> Column:
        if name == CONFIDENCE:
            at = np.flatnonzero(~np.isnan(self.confidence))
            return Column(at, self.confidence[at], types=_types(number=len(at)))
        if name == PREDICTION:
            return read(name, self.predictions, self.policy)
        own = name.removeprefix(FEATURES)
        return read(name, [each.get(own) if each else None for each in self.features], self.policy)


def read(name: str, values: Sequence[Any], policy: DriftPolicy) -> Column:
    """The values of a target as the policy wants them seen."""
    if name in policy.text:
        return lengths(values)
    column = column_of(values)
    return names_of(values, column) if name in policy.categorical and len(column.at) else column


def column_of(values: Sequence[Any]) -> Column:
    """Values as the JSON decoder gives them: float, str, bool or None."""
    kinds = set(map(type, values))
    if kinds == {float}:
        return Column(np.arange(len(values)), _floats(values), types=_types(number=len(values)))
    if kinds == {str}:
        return Column(_NONE, _NO_NUMBERS, values, _types(text=len(values)))
    if kinds <= {float, NoneType}:
        numbers = np.array(values, dtype=np.float64)
        at = np.flatnonzero(~np.isnan(numbers))
        return Column(at, numbers[at], types=_types(number=len(at)))
    return _mixed(values)


def _mixed(values: Sequence[Any]) -> Column:
    at = [i for i, value in enumerate(values) if type(value) is float]
    texts = [category(value) for value in values if type(value) in (str, bool)]
    truths = sum(type(value) is bool for value in values)
    numbers = np.array([values[i] for i in at], dtype=np.float64)
    types = _types(number=len(at), text=len(texts) - truths, truth=truths)
    return Column(np.array(at, dtype=np.int64), numbers, texts, types)


def lengths(values: Sequence[Any]) -> Column:
    """Of declared text: how long it is."""
    at = np.array([i for i, value in enumerate(values) if type(value) is str], dtype=np.int64)
    numbers = np.array([float(len(value)) for value in values if type(value) is str])
    return Column(at, numbers, types=column_of(values).types)


def names_of(values: Sequence[Any], column: Column) -> Column:
    """Of numbers that are declared categories: their names."""
    return Column(_NONE, _NO_NUMBERS, [category(value) for value in values if value is not None], column.types)


def category(value: float | str | bool) -> str:
    """A value as the name of a category."""
    if isinstance(value, str):
        return value
    return str(value).lower() if isinstance(value, bool) else f"{value:.15g}"


def _types(**counts: int) -> dict[str, int]:
    return {name: count for name, count in counts.items() if count}


def _floats(values: Sequence[float]) -> Floats:
    return np.frombuffer(struct.pack(f"{len(values)}d", *values), dtype=np.float64)


_NONE: Ints = np.zeros(0, dtype=np.int64)
_NO_NUMBERS: Floats = np.zeros(0)


def by_series(chunk: Chunk, rows: Ints, series: list[Series], codes: Ints) -> Iterator[tuple[Series, Ints]]:
    """Rows of a chunk, which ascend, by their series; the series in the order in which they appear."""
    own = codes[rows]
    order = np.argsort(own, kind="stable")
    cuts = np.flatnonzero(np.diff(own[order])) + 1
    groups = np.split(rows[order], cuts)
    for group in sorted(groups, key=lambda group: int(group[0])):
        yield series[int(codes[group[0]])], group


class Fields:
    """What the events of a chunk hold, taken from it once."""

    def __init__(self, chunk: Chunk) -> None:
        self._features = chunk.aligned("features")
        self._predictions = chunk.aligned("prediction")
        self._confidence = chunk.floats("confidence")

    def of(self, rows: Ints, policy: DriftPolicy) -> Events:
        if len(rows) == len(self._features):
            return Events(self._features, self._predictions, self._confidence, policy)
        numbers = rows.tolist()
        features = [self._features[row] for row in numbers]
        return Events(features, [self._predictions[row] for row in numbers], self._confidence[rows], policy)
