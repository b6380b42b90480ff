"""Records that are one event each: most of what comes from senders without our SDK, so this is the hot loop.

Three things make it fast:

* `BLOCK` records at a time are decoded, turned into columns and let go of, while they are in the processor's cache.
* They are decoded with a struct of just the fields that were seen so far (`_Fitted`): the fields of the schema are
  many, those of one sender few.
* Only what the caller names is kept (`Wanted`). Whatever else is asked for is read again from the records.
"""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any, Literal, NamedTuple

import msgspec
import numpy as np
from msgspec import DecodeError, Struct
from msgspec.structs import FieldInfo, astuple
from numpy.typing import NDArray

from streammon.events import SCHEMA, Event
from streammon.wire.batch import Coded, Codes, Floats
from streammon.wire.columns import FieldSpec, fields_of
from streammon.wire.rows import ColumnRows
from streammon.wire.values import coded_alike

BLOCK = 256
LONGEST_REST = 255
"""Blocks for which the fitted struct is not tried, after it has failed again and again."""
UNREADABLE = (DecodeError, UnicodeDecodeError, RecursionError, TypeError)
"""What decoding raises for a record that is no event of its type; the last for one without a value."""

Mask = NDArray[np.bool_]
Values = Sequence[Any]
"""Of records: bytes, or None where there is none."""
Columns = Mapping[str, Sequence[Any]]
"""By name of a field, its value in every event."""


class Wanted(NamedTuple):
    """The fields, beside numbers, of which every row will be asked for its value, or only for whether it has one."""

    values: Sequence[str] = ()
    presence: Sequence[str] = ()


class PlainReader:
    """Reads records that are one plain event each: of our schema, and without an identity."""

    def __init__(self, struct: type[Event]) -> None:
        self._fields = fields_of(struct)
        self._decode = msgspec.json.Decoder(struct).decode
        self._fitted = _Fitted(struct)

    def read(self, values: Values, start: int, end: int, wanted: Wanted) -> PlainRows:
        """The rows of the records from ``start`` on, until the first that needs a closer look: it is of another
        density, carries an identity, or something is wrong with it. Sooner where the fields change.
        """
        gathered = _Gathered(self._fields, wanted)
        at = start
        while at < end:
            block = values[at : min(at + BLOCK, end)]
            columns, size = self._columns(block)
            if not size or not gathered.add(columns):
                break
            at += size
            if size < len(block):
                break
        return PlainRows(gathered, values if (start, at) == (0, len(values)) else values[start:at], self._decode)

    def _columns(self, values: Values) -> tuple[Columns, int]:
        """The columns of the events before the first record that is no plain event, and how many these are."""
        columns = self._fitted.columns(values)
        if columns is not None:
            return columns, len(values)
        events = self._events(values)
        self._fitted.learn(events)
        return (_transposed(events[0].__struct_fields__, events) if events else {}), len(events)

    def _events(self, values: Values) -> list[Event]:
        events: list[Event] = []
        try:
            for value in values:
                event = self._decode(value)
                if event.schema != SCHEMA or event.seq is not None or not _is_utf8(value):
                    break
                events.append(event)
        except UNREADABLE:
            pass  # the closer look says what is wrong
        return events


class _Fitted:
    """Decodes with a struct of the fields seen so far, which refuses any other: so nothing is skipped unread."""

    def __init__(self, struct: type[Event]) -> None:
        self._struct = struct
        self._infos = {info.name: info for info in msgspec.structs.fields(struct) if info.name not in ("schema", "seq")}
        self._rest, self._next_rest = 0, 1
        self._fit({info.name for info in self._infos.values() if info.required})

    def _fit(self, seen: set[str]) -> None:
        """Fields in the order of the schema: that is how most senders write them, and how they are found fastest."""
        self._names = ["schema", *(name for name in self._infos if name in seen)]
        schema = ("schema", Literal[SCHEMA], SCHEMA)
        config = self._struct.__struct_config__
        fitted = msgspec.defstruct(
            "Fitted",
            [schema, *map(_definition, map(self._infos.__getitem__, self._names[1:]))],
            kw_only=True,
            tag_field=config.tag_field,
            tag=config.tag,
            forbid_unknown_fields=True,
            gc=False,
        )
        self._decode = msgspec.json.Decoder(fitted).decode

    def columns(self, values: Values) -> Columns | None:
        """The columns of plain events; None if one of them is none, or has a field not seen before."""
        if self._rest:
            return None
        try:
            events = list(map(self._decode, values))
        except UNREADABLE:
            return None
        self._next_rest = 1
        return _transposed(self._names, events)

    def learn(self, events: Sequence[Event]) -> None:
        """From events that were read some other way; failing, but not for want of a field of ours, means a rest."""
        if self._rest:
            self._rest -= 1
            return
        seen = {name for name in self._infos if any(getattr(event, name) is not None for event in events)}
        if seen.issubset(self._names):
            self._rest, self._next_rest = self._next_rest, min(2 * self._next_rest + 1, LONGEST_REST)
        else:
            self._fit(seen.union(self._names))


def _definition(info: FieldInfo) -> tuple[str, Any] | tuple[str, Any, Any]:
    return (info.name, info.type) if info.required else (info.name, info.type, info.default)


def _transposed(names: Sequence[str], events: Sequence[Struct]) -> Columns:
    return dict(zip(names, zip(*map(astuple, events), strict=True), strict=True))


def _is_utf8(value: bytes) -> bool:
    """The decoder skips what it does not know, but a record is passed on as it came."""
    if value.isascii():
        return True
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


class _Gathered:
    """What is kept of the columns of block after block, of events with the same fields."""

    def __init__(self, fields: Mapping[str, FieldSpec], wanted: Wanted) -> None:
        self.fields = fields
        self.names: Set[str] = set()
        self._wanted = wanted
        self._codes: defaultdict[str, dict[Any, int]] = defaultdict(dict)  # by field, of each value
        self._numbers: defaultdict[str, list[Floats]] = defaultdict(list)
        self._coded: defaultdict[str, list[Codes]] = defaultdict(list)
        self._objects: defaultdict[str, list[Any]] = defaultdict(list)
        self._present: defaultdict[str, list[Mask]] = defaultdict(list)

    def add(self, columns: Columns) -> bool:
        """Keep what has to be kept; nothing, and False, if these are not the fields of the blocks before."""
        self.names = self.names or columns.keys()
        if self.names != columns.keys():
            return False
        for name in self.names & self.fields.keys():
            column, spec = columns[name], self.fields[name]
            if spec.numeric:
                self._numbers[name].append(_floats(column))
            elif name in self._wanted.values:
                if spec.mixed:
                    self._objects[name] += column
                else:
                    self._coded[name].append(_coded(column, self._codes[name]))
            if name in self._wanted.presence:
                self._present[name].append(_present(column))
        return True

    def columns(self) -> dict[str, Floats | Coded]:
        """The numbers that any event has, and the wanted values."""
        numbers = {name: np.concatenate(parts) for name, parts in self._numbers.items()}
        return {
            **{name: column for name, column in numbers.items() if not np.isnan(column).all()},
            **{name: Coded(list(self._codes[name]), np.concatenate(parts)) for name, parts in self._coded.items()},
            **{name: Coded(values, np.arange(len(values))) for name, values in self._objects.items()},
        }

    def presence(self) -> dict[str, Mask]:
        return {name: np.concatenate(parts) for name, parts in self._present.items()}


def _floats(column: Sequence[float | None]) -> Floats:
    try:  # four times as fast as numpy reads Python numbers
        return np.frombuffer(struct.pack(f"{len(column)}d", *column), dtype=np.float64)
    except struct.error:  # some are absent
        return np.array(column, dtype=np.float64)


def _coded(column: Sequence[Any], codes: dict[Any, int]) -> Codes:
    """The code of each value; new values get the next."""
    try:
        return np.frombuffer(struct.pack(f"{len(column)}q", *map(codes.__getitem__, column)), dtype=np.int64)
    except KeyError:
        for value in column:
            codes.setdefault(value, len(codes))
        return _coded(column, codes)


def _present(column: Sequence[Any]) -> Mask:
    if None not in column:
        return np.ones(len(column), dtype=np.bool_)
    return np.array([value is not None for value in column], dtype=np.bool_)


class PlainRows(ColumnRows):
    """The rows of records that are one plain event each; see `PlainReader`."""

    def __init__(self, gathered: _Gathered, values: Values, decode: Callable[[Any], Event]) -> None:
        super().__init__(gathered.fields, len(values))
        self.columns = gathered.columns()
        self._names = gathered.names
        self._presence = gathered.presence()
        self._values = values
        self._decode = decode
        self._last: tuple[int, Event] | None = None

    def _column(self, name: str) -> Floats | Coded | None:
        spec = self._fields.get(name)
        if name not in self.columns and name in self._names and spec is not None and not spec.numeric:
            values = [getattr(event, name) for event in map(self._decode, self._values)]
            self.columns[name] = Coded(values, np.arange(len(values))) if spec.mixed else coded_alike(values)
        return self.columns.get(name)

    def present(self, name: str) -> Mask:
        known = self._presence.get(name)
        return known if known is not None else super().present(name)

    def value(self, name: str, index: int) -> Any:
        return getattr(self._event(index), name)

    def event(self, index: int) -> dict[str, Any]:
        event = self._event(index)
        return {name: value for name in self._fields if (value := getattr(event, name)) is not None}

    def _event(self, index: int) -> Event:
        """Who asks for one value of an event mostly asks for another."""
        if self._last is None or self._last[0] != index:
            self._last = index, self._decode(self._values[index])
        return self._last[1]
