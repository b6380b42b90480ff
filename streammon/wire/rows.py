"""The rows of a batch, in the two forms they come in: as objects, or as columns."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from msgspec.structs import astuple

from streammon.errors import Reason
from streammon.events import Event
from streammon.lazy_numpy import NDArray, np
from streammon.wire.batch import Coded, Fault, Floats
from streammon.wire.columns import FieldSpec, fields_of
from streammon.wire.values import all_finite, coded, coded_alike, entries_of_histograms, frozen, items

_FEW = 16
"""Rows that are checked faster one by one than by numpy."""


class ObjectRows:
    """Rows that came as objects. They are turned into columns at once: that is how they are read."""

    def __init__(self, events: Sequence[Event] = ()) -> None:
        self._fields: Mapping[str, FieldSpec] = {}
        self._columns: dict[str, Sequence[Any]] = {}
        self._floats: dict[str, Floats | None] = {}
        self._count = len(events)
        if events:
            self._fields = fields_of(type(events[0]))
            names = events[0].__struct_fields__
            self._columns = dict(zip(names, map(list, zip(*map(astuple, events), strict=True)), strict=True))

    def __len__(self) -> int:
        return self._count

    def floats(self, name: str) -> Floats | None:
        if name not in self._floats:
            values = self.objects(name)
            self._floats[name] = None if values is None else np.array(values, dtype=np.float64)
        return self._floats[name]

    def coded(self, name: str) -> Coded:
        field, values = self._fields[name], self._columns[name]
        return coded(list(map(frozen, values))) if field.mixed or field.numeric else coded_alike(values)

    def present(self, name: str) -> NDArray[np.bool_]:
        return which_are(self._columns[name])

    def objects(self, name: str) -> Sequence[Any] | None:
        values = self._columns.get(name, [])
        return None if values.count(None) == len(values) else values

    def value(self, name: str, index: int) -> Any:
        return self._columns[name][index]

    def event(self, index: int) -> dict[str, Any]:
        return {name: value for name in self._fields if (value := self._columns[name][index]) is not None}

    def faults(self) -> list[Fault]:
        found: dict[int, Fault] = {}
        for spec in self._fields.values():
            if spec.numeric:
                for row in range(len(self)) if len(self) <= _FEW else self._suspects(spec):
                    value = self._columns[spec.name][row]
                    if value is not None and (fault := spec.fault(row, value)):
                        found.setdefault(row, fault)
            elif spec.mixed and (values := self.objects(spec.name)) is not None:
                _mixed_faults(spec, Coded(list(values), np.arange(len(values))), found)
        return [found[index] for index in sorted(found)]

    def _suspects(self, spec: FieldSpec) -> list[int]:
        """Rows to look at closely; NaN is mostly just absent, unless there is more of it than of None."""
        column = self.floats(spec.name)
        if column is None:
            return []
        suspect = spec.out_of_range(column)
        absent = np.isnan(column)
        if absent.any() and self._columns[spec.name].count(None) < absent.sum():
            suspect |= absent
        return np.flatnonzero(suspect).tolist()


class ColumnRows:
    """Rows that came as columns."""

    _may_hold_nan = True

    def __init__(self, fields: Mapping[str, FieldSpec], count: int) -> None:
        self._fields = fields
        self._count = count
        self.columns: dict[str, Floats | Coded] = {}
        self.value_faults: defaultdict[str, list[Fault]] = defaultdict(list)  # found while reading a column

    def __len__(self) -> int:
        return self._count

    def _column(self, name: str) -> Floats | Coded | None:
        return self.columns.get(name)

    def floats(self, name: str) -> Floats | None:
        column = self._column(name)
        return column if isinstance(column, np.ndarray) else None

    def coded(self, name: str) -> Coded:
        column = self._column(name)
        if column is None:
            return Coded([None], np.zeros(self._count, dtype=np.int64))
        if isinstance(column, Coded):
            if not self._fields[name].mixed:
                return column
            distinct, numbers = coded([frozen(value) for value in column.dictionary])
            return Coded(distinct, numbers[column.codes])
        return coded(_present(column))

    def present(self, name: str) -> NDArray[np.bool_]:
        if self._column(name) is None:
            return np.zeros(self._count, dtype=np.bool_)
        dictionary, codes = self.coded(name)
        return np.array([value is not None for value in dictionary], dtype=np.bool_)[codes]

    def objects(self, name: str) -> Sequence[Any] | None:
        column = self._column(name)
        if column is None:
            return None
        if isinstance(column, Coded):
            return [column.dictionary[code] for code in column.codes]
        return _present(column)

    def event(self, index: int) -> dict[str, Any]:
        found = {}
        for name in self.columns:
            value = self.value(name, index)
            if value is not None:
                found[name] = value
        return found

    def value(self, name: str, index: int) -> Any:
        column = self.columns.get(name)
        if column is None:
            return None
        if isinstance(column, Coded):
            return column.dictionary[column.codes[index]]
        value = float(column[index])
        return None if math.isnan(value) and index not in self._refused[name] else value

    @cached_property
    def _refused(self) -> defaultdict[str, set[int]]:
        """By field, the rows whose value there is refused: NaN in them was given, elsewhere it means absent."""
        rows = {name: {fault.row for fault in faults} for name, faults in self.value_faults.items()}
        return defaultdict(set, rows)

    def entries(self) -> int:
        """How many entries the maps and lists of all rows have together."""
        total = 0
        for name, column in self.columns.items():
            if isinstance(column, Coded) and (spec := self._fields[name]).mixed:
                if spec.histograms:
                    sizes = np.array(list(map(entries_of_histograms, column.dictionary)), np.int64)
                else:
                    sizes = np.array([len(v) if isinstance(v, dict | list) else 0 for v in column.dictionary], np.int64)
                total += int(sizes[column.codes].sum())
        return total

    def faults(self) -> list[Fault]:
        found: dict[int, Fault] = {}
        for name, spec in self._fields.items():  # in the order of `ObjectRows`, because the first fault counts
            if (column := self.columns.get(name)) is None:
                continue
            if isinstance(column, np.ndarray):
                suspects = spec.out_of_range(column).nonzero()[0].tolist()
                outside = [spec.fault(row, float(column[row])) for row in suspects]
                for fault in (*outside, *self.value_faults[name]):
                    if fault is not None:
                        found.setdefault(fault.row, fault)
            elif spec.mixed and (self._may_hold_nan or spec.non_negative):
                _mixed_faults(spec, column, found)
        return [found[index] for index in sorted(found)]


def which_are(values: Sequence[Any]) -> NDArray[np.bool_]:
    """Which values are not None."""
    if None not in values:
        return np.ones(len(values), dtype=np.bool_)
    return np.array([value is not None for value in values], dtype=np.bool_)


def _present(column: Floats) -> list[float | None]:
    return [None if math.isnan(value) else value for value in column.tolist()]


def _mixed_faults(spec: FieldSpec, column: Coded, found: dict[int, Fault]) -> None:
    bad = {
        code: (Reason.NON_FINITE, _not_finite(spec.name, value))
        for code, value in enumerate(column.dictionary)
        if not all_finite(value)
    }
    for code, value in enumerate(column.dictionary) if spec.non_negative else ():
        if value and code not in bad and min(value.values()) < 0:
            bad[code] = Reason.NEGATIVE, _negative(spec.name, value)
    for row in np.flatnonzero(np.isin(column.codes, list(bad))).tolist() if bad else ():
        found.setdefault(row, Fault(row, *bad[column.codes[row]]))


def _negative(name: str, value: dict[str, float]) -> str:
    key = next(key for key, number in value.items() if number < 0)
    return f"{name}.{key} is {value[key]}, expected 0 or more"


def _not_finite(name: str, value: Any) -> str:
    """Where in a value its first NaN or infinity is."""
    if isinstance(value, float):
        return f"{name} is {value}"
    key, inner = next((key, inner) for key, inner in items(value) if not all_finite(inner))
    return _not_finite(f"{name}.{key}", inner)
