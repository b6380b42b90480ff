"""The rows of a chunk of predictions or labels, as the join sees them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from math import isnan, nan
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from streammon import wire
from streammon.config import WindowSettings
from streammon.errors import Reason
from streammon.events import EventType
from streammon.outcomes import Value, bounded_text, class_of, slice_value
from streammon.results import OTHER
from streammon_processors.chunk import Chunk, Fate, Ints, Refusal
from streammon_processors.dedupe import Dedupe
from streammon_processors.join.cohorts import Group, Series
from streammon_processors.join.entries import LABEL, RATING, SCORE, Label, Tail, pack_tail
from streammon_processors.join.models import KnownModels, Model

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
FEATURES = "features."


def wanted(event_type: EventType, slices: Sequence[str] = ()) -> wire.Wanted:
    """What is asked of every event, beside numbers."""
    if event_type is EventType.LABEL:
        return wire.Wanted(("service", "model", "event_id", "label"))
    fields = ("service", "model", "model_version", "event_id", "prediction")
    sliced = dict.fromkeys("features" if name.startswith(FEATURES) else name for name in slices)
    return wire.Wanted((*fields, *(name for name in sliced if name not in fields)))


class Rows:
    """What both have in common. Arrays have shape (n,)."""

    def __init__(self, chunk: Chunk, heard_ms: int, dedupe: Dedupe, settings: WindowSettings) -> None:
        """``heard_ms``: the broker's time of the newest record before these."""
        self.chunk = chunk
        stamps = np.rint(chunk.broker_time * 1000).astype(np.int64)
        self.came_ms: Ints = np.maximum(np.maximum.accumulate(stamps), heard_ms)
        """The broker's time; never less than before."""
        self.time: Floats = chunk.time
        self.future: Mask = chunk.time > chunk.broker_time + settings.max_future_s
        self.duplicate = self._duplicates(dedupe)
        self.accepted: Mask = (chunk.fate == Fate.EVENT) & ~self.duplicate & ~self.future

    def __len__(self) -> int:
        return len(self.chunk)

    def _duplicates(self, dedupe: Dedupe) -> Mask:
        duplicate = np.zeros(len(self.chunk), dtype=np.bool_)
        for header in self.chunk.headers:
            if header.identity is not None:
                stamp = self.chunk.record(header.row).timestamp
                if dedupe.judge(header.identity, stamp).duplicate:
                    duplicate[header.row : header.row + header.rows] = True
        return duplicate

    @cached_property
    def event_ids(self) -> list[str]:
        """Of every row; empty where there is none."""
        names, codes = self.chunk.labels(("event_id",))
        ids = [bounded_text(name) if name else "" for (name,) in names]
        return [ids[code] for code in codes.tolist()]


class _Kind(NamedTuple):
    """What many predictions have in common: their model, version and slices."""

    model: Model
    version: str | None
    slices: dict[str, str]

    @property
    def group(self) -> Group:
        names = (self.model.service, self.model.model, self.version)
        sliced = [Series(*names, name, value) for name, value in self.slices.items()]
        return Group(self.model.window_s, (Series(*names), *sliced))


class PredictionRows(Rows):
    """Predictions."""

    def __init__(
        self, chunk: Chunk, heard_ms: int, dedupe: Dedupe, settings: WindowSettings, models: KnownModels
    ) -> None:
        super().__init__(chunk, heard_ms, dedupe, settings)
        self._models = models
        self.confidence: Floats = chunk.floats("confidence")
        self.kinds, self.kind = self._kinds()

    def _kinds(self) -> tuple[list[_Kind], Ints]:
        names = ("service", "model", "model_version", *self._sliced_fields)
        values, codes = self.chunk.labels(names)
        if self._sliced_features:
            extra, more = self._features()
            both, codes = np.unique(codes * len(extra) + more, return_inverse=True)
            pairs = [divmod(code, len(extra)) for code in both.tolist()]
            return [self._kind(dict(zip(names, values[a], strict=True)) | extra[b]) for a, b in pairs], codes
        return [self._kind(dict(zip(names, each, strict=True))) for each in values], codes

    def _kind(self, fields: dict[str, Any]) -> _Kind:
        model = self._models.of(fields["service"] or "", fields["model"] or "")
        given = ((name, fields.get(name)) for name in model.slices)
        slices = {name: bounded_text(slice_value(value)) for name, value in given if value is not None}
        version = fields["model_version"]
        return _Kind(model, None if version is None else bounded_text(version), slices)

    @property
    def _sliced_fields(self) -> tuple[str, ...]:
        known = wire.codec_of(EventType.INFERENCE).fields
        return tuple(name for name in self._models.slices if name in known and name != "model_version")

    @property
    def _sliced_features(self) -> tuple[str, ...]:
        return tuple(name for name in self._models.slices if name.startswith(FEATURES))

    def _features(self) -> tuple[list[dict[str, Value]], Ints]:
        """The values of the features that are slices of any model, and which each row has."""
        known: dict[tuple[Any, ...], int] = {(): 0}
        codes = np.zeros(len(self), dtype=np.int64)
        names = self._sliced_features
        for row, features in self.chunk.objects("features"):
            values = tuple(
                (name, type(value), value) for name in names if (value := features.get(name[9:])) is not None
            )
            codes[row] = known.setdefault(values, len(known))
        return [{name: value for name, _, value in values} for values in known], codes

    @cached_property
    def predicted(self) -> tuple[list[Value], Ints, Floats]:
        """What is predicted: values that are no numbers, which of them each row has (0: none), and numbers, or NaN."""
        known: dict[Value, int] = {None: 0}
        codes, numbers = [0] * len(self), [nan] * len(self)
        for row, value in self.chunk.objects("prediction"):
            if isinstance(value, float):
                numbers[row] = value
            else:
                codes[row] = known.setdefault(value, len(known))
        values = [bounded_text(value) if isinstance(value, str) else value for value in known]
        return values, np.array(codes, dtype=np.int64), np.array(numbers)

    def tails(self) -> tuple[list[bytes], Ints]:
        """What many predictions have in common, as bytes, and which each row has."""
        values, predicted, _ = self.predicted
        both, codes = np.unique(self.kind * len(values) + predicted, return_inverse=True)
        pairs = (divmod(code, len(values)) for code in both.tolist())
        found = [(self.kinds[kind], values[number]) for kind, number in pairs]
        return [pack_tail(Tail(value, kind.version, kind.slices)) for kind, value in found], codes

    def prediction(self, row: int) -> Value:
        values, codes, numbers = self.predicted
        return values[codes[row]] if np.isnan(numbers[row]) else float(numbers[row])

    def classes(self, rows: Ints) -> tuple[list[str], Ints]:
        """What some rows predict, as classes, for those that say how sure that is; the others' class is any."""
        values, codes, numbers = self.predicted
        names: dict[str, int] = {OTHER: 0}  # of what predicts nothing, too
        found = np.array([names.setdefault(class_of(value), len(names)) for value in values])[codes[rows]]
        own = np.flatnonzero(~np.isnan(numbers[rows]) & ~np.isnan(self.confidence[rows]))
        if len(own):
            distinct, which = np.unique(numbers[rows][own], return_inverse=True)
            own_names = [names.setdefault(class_of(float(value)), len(names)) for value in distinct]
            found[own] = np.array(own_names, dtype=np.int64)[which]
        return list(names), found


class LabelRows(Rows):
    """Labels, scores and ratings."""

    def __init__(
        self, chunk: Chunk, heard_ms: int, dedupe: Dedupe, settings: WindowSettings, models: KnownModels
    ) -> None:
        super().__init__(chunk, heard_ms, dedupe, settings)
        names, self.model_of = chunk.labels(("service", "model"))
        self.models = [models.of(service or "", model or "") for service, model in names]
        self._labels: dict[int, Value] = {
            row: bounded_text(value) if isinstance(value, str) else value for row, value in chunk.objects("label")
        }
        labelled = np.zeros(len(self), dtype=np.int64)
        labelled[list(self._labels)] = LABEL
        scores, ratings = chunk.floats("score"), chunk.floats("rating")
        self._kinds = labelled + SCORE * ~np.isnan(scores) + RATING * ~np.isnan(ratings)
        self._scores, self._ratings = _numbers(scores), _numbers(ratings)
        named = np.array(list(map(bool, self.event_ids)), dtype=np.bool_)
        self.empty: Mask = self.accepted & ~(named & (self._kinds > 0))
        self.accepted &= ~self.empty

    def label_events(self, rows: Ints) -> list[Label]:
        """The label events of some rows."""
        columns = (each[rows].tolist() for each in (self.came_ms, self.time, self._kinds))
        label, scores, ratings = self._labels.get, self._scores, self._ratings
        return [
            Label(came_ms, time, label(row), scores[row], ratings[row], 0.0, kinds, kinds)
            for row, came_ms, time, kinds in zip(rows.tolist(), *columns, strict=True)
        ]

    @cached_property
    def refusals(self) -> dict[int, Refusal]:
        """The rows that go to the dead letters, and why, in order."""
        refused = {row: why for row, why in self.chunk.refusals.items() if not self.duplicate[row]}
        for row in np.flatnonzero(self.future & (self.chunk.fate == Fate.EVENT) & ~self.duplicate).tolist():
            ahead = self.chunk.time[row] - self.chunk.broker_time[row]
            refused[row] = Refusal(Reason.FUTURE, f"{ahead:.3f} s ahead of the broker, more than allowed")
        for row in np.flatnonzero(self.empty).tolist():
            refused[row] = Refusal(Reason.INVALID_EVENT, "no event_id, or neither label nor score nor rating")
        return {row: refused[row] for row in sorted(refused)}


def _numbers(values: Floats) -> list[float | None]:
    return [None if isnan(value) else value for value in values.tolist()]
