"""Records that are one event each: most of what comes from senders without our SDK, so this is the hot loop.

Three things make it fast:

* `BLOCK` records at a time are decoded, turned into columns and let go of, while they are in the processor's cache.
* They are decoded with a struct of just the fields that were seen so far (`_Fitted`): the fields of the schema are
  many, those of one sender few.
* Only what the caller names is kept (`Wanted`). Whatever else is asked for is read again from the records.
"""

from __future__ import annotations

import re
import struct
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, TypeAlias, get_args

import msgspec
from msgspec import DecodeError, Struct
from msgspec.structs import FieldInfo, astuple

from streammon.events import SCHEMA, Event
from streammon.lazy_numpy import NDArray, np
from streammon.wire.batch import Coded, Codes, Floats, Rows
from streammon.wire.columns import FieldSpec, fields_of
from streammon.wire.rows import ColumnRows, ObjectRows, which_are
from streammon.wire.values import coded_alike

BLOCK = 256
FEW = 16
"""Records that are read faster one by one than by numpy."""
MAX_ODD, LONGEST_REST = 8, 255
"""Records of a block with a field that is not of our schema; and the blocks for which the fitted struct is not tried
after there have been more, again and again."""
UNREADABLE = (DecodeError, UnicodeDecodeError, RecursionError, TypeError)
"""What decoding raises for a record that is no event of its type; the last for one without a value."""

Mask: TypeAlias = "NDArray[np.bool_]"
Values = Sequence[Any]
"""Of records: bytes, or None where there is none."""
Names = tuple[str, ...]
Row = tuple[Any, ...]
"""The values of one event, by the names of its fields."""


class Wanted(NamedTuple):
    """The fields, beside numbers, of which every row will be asked for its value; or every row for whether it has one,
    and a few for which."""

    values: Sequence[str] = ()
    single: Sequence[str] = ()


class PlainReader:
    """Reads records that are one plain event each: of our schema, and without an identity."""

    def __init__(self, struct: type[Event]) -> None:
        self._fields = fields_of(struct)
        self._decode = msgspec.json.Decoder(struct).decode
        self._fitted = _Fitted(struct, self._decode)

    def read(self, values: Values, start: int, end: int, wanted: Wanted) -> Rows:
        """The rows of the records from ``start`` on, until the first that needs a closer look: it is of another
        density, carries an identity, or something is wrong with it. Sooner where the fields change.
        """
        gathered = _Gathered(self._fields, wanted)
        at = start
        while at < end:
            block = values[at : min(at + BLOCK, end)]
            names, rows = self._fitted.rows(block)
            if at == start and len(rows) < min(FEW, len(block)):  # numpy would take longer
                return ObjectRows(list(map(self._decode, block[: len(rows)])))
            if not rows or not gathered.add(names, rows):
                break
            at += len(rows)
            if len(rows) < len(block):
                break
        return PlainRows(gathered, values if (start, at) == (0, len(values)) else values[start:at], self._decode)


class _Fitted:
    """Decodes with a struct of the fields seen so far, which refuses any other: so nothing is skipped unread."""

    def __init__(self, struct: type[Event], decode_any: Callable[[Any], Event]) -> None:
        self._struct = struct
        self._decode_any = decode_any
        self._infos = {info.name: info for info in msgspec.structs.fields(struct) if info.name not in ("schema", "seq")}
        self._rest, self._next_rest = 0, 1
        self._fit({info.name for info in self._infos.values() if info.required})

    def _fit(self, seen: set[str]) -> None:
        """Fields in the order of the schema: that is how most senders write them, and how they are found fastest."""
        self._names = ("schema", *(name for name in self._infos if name in seen))
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
        decode = msgspec.json.Decoder(fitted).decode
        skips = any(_holds_struct(self._infos[name].type) for name in self._names[1:])  # what is foreign within these
        self._decode = partial(_checked, decode) if skips else decode

    def rows(self, values: Values) -> tuple[Names, list[Row]]:
        """The plain events before the first record that is none, or that has a field not seen before."""
        if self._rest:
            self._rest -= 1
            return self._struct.__struct_fields__, self._unfitted(values)
        rows: list[Row] = []
        odd = 0
        while True:
            problem = self._decode_into(rows, values)
            if problem is None or (event := self._event(values[len(rows)])) is None:
                self._next_rest = 1
                break
            if new := self._new_fields(event, problem):
                if rows:
                    break  # these have other fields
                self._fit(new.union(self._names))
            elif odd < MAX_ODD:
                odd += 1
                rows.append(tuple(getattr(event, name) for name in self._names))
            else:
                self._rest, self._next_rest = self._next_rest, min(2 * self._next_rest + 1, LONGEST_REST)
                break
        return self._names, rows

    def _new_fields(self, event: Event, problem: str) -> set[str]:
        refused = _foreign_field(problem)  # an explicit null, if it is one of ours
        others = self._infos.keys() - set(self._names)
        return {name for name in others if name == refused or getattr(event, name) is not None}

    def _decode_into(self, rows: list[Row], values: Values) -> str | None:
        """Append the values from the next on; why not all of them, in words: an error kept in the frame that caught it
        is a reference cycle, and holds the records until garbage is collected."""
        events: list[Struct] = []
        problem = None
        try:
            # what came before an error is kept
            events.extend(map(self._decode, values[len(rows) :] if rows else values))
        except UNREADABLE as error:
            problem = str(error)
        rows.extend(map(astuple, events))
        return problem

    def _unfitted(self, values: Values) -> list[Row]:
        rows: list[Row] = []
        for value in values:
            if (event := self._event(value)) is None:
                break
            rows.append(astuple(event))
        return rows

    def _event(self, value: Any) -> Event | None:
        """The event of a plain record; what is wrong with one that is none, the closer look will say."""
        try:
            event = self._decode_any(value)
        except UNREADABLE:
            return None
        return event if event.schema == SCHEMA and event.seq is None and _is_utf8(value) else None


def _foreign_field(problem: str) -> str:
    """The field that msgspec complains about, if it does; explicit nulls of absent fields are such, too."""
    found = re.search("unknown field `(.*?)`", problem)
    return found[1] if found else ""


def _holds_struct(kind: Any) -> bool:
    return (isinstance(kind, type) and issubclass(kind, Struct)) or any(map(_holds_struct, get_args(kind)))


def _definition(info: FieldInfo) -> tuple[str, Any] | tuple[str, Any, Any]:
    return (info.name, info.type) if info.required else (info.name, info.type, info.default)


def _is_utf8(value: bytes) -> bool:
    """The decoder skips what it does not know, but a record is passed on as it came."""
    if value.isascii():
        return True
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def _checked(decode: Callable[[Any], Struct], value: Any) -> Struct:
    """Decoded, if all of it is UTF-8; else raises one of `UNREADABLE`."""
    str(value, "utf-8")
    return decode(value)


class _Gathered:
    """What is kept of the columns of block after block, of events with the same fields."""

    def __init__(self, fields: Mapping[str, FieldSpec], wanted: Wanted) -> None:
        self.fields = fields
        self.names: Names = ()
        self._wanted = wanted
        self._codes: defaultdict[str, dict[Any, int]] = defaultdict(dict)  # by field, of each value
        self._numbers: defaultdict[str, list[Floats]] = defaultdict(list)
        self._coded: defaultdict[str, list[Codes]] = defaultdict(list)
        self._objects: defaultdict[str, list[Any]] = defaultdict(list)
        self.single: defaultdict[str, list[Any]] = defaultdict(list)

    def add(self, names: Names, rows: Sequence[Row]) -> bool:
        """Keep what has to be kept; nothing, and False, if these are not the fields of the blocks before."""
        self.names = self.names or names
        if self.names != names:
            return False
        for name, column in zip(names, zip(*rows, strict=True), strict=True):
            if (spec := self.fields.get(name)) is None:
                continue
            if spec.numeric:
                self._numbers[name].append(_floats(column))
            elif name in self._wanted.values:
                if spec.mixed:
                    self._objects[name] += column
                else:
                    self._coded[name].append(_coded(column, self._codes[name]))
            if name in self._wanted.single:
                self.single[name] += column
        return True

    def columns(self) -> dict[str, Floats | Coded]:
        """The numbers that any event has, and the wanted values."""
        numbers = {name: np.concatenate(parts) for name, parts in self._numbers.items()}
        return {
            **{name: column for name, column in numbers.items() if not np.isnan(column).all()},
            **{name: Coded(list(self._codes[name]), np.concatenate(parts)) for name, parts in self._coded.items()},
            **{name: Coded(values, np.arange(len(values))) for name, values in self._objects.items()},
        }


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


class PlainRows(ColumnRows):
    """The rows of records that are one plain event each; see `PlainReader`."""

    _may_hold_nan = False  # the decoder would have refused them

    def __init__(self, gathered: _Gathered, values: Values, decode: Callable[[Any], Event]) -> None:
        super().__init__(gathered.fields, len(values))
        self.columns = gathered.columns()
        self._names = gathered.names
        self._single = gathered.single
        self._values = values
        self._decode = decode

    def _column(self, name: str) -> Floats | Coded | None:
        spec = self._fields.get(name)
        if name not in self.columns and name in self._names and spec is not None and not spec.numeric:
            values = [getattr(event, name) for event in map(self._decode, self._values)]
            self.columns[name] = Coded(values, np.arange(len(values))) if spec.mixed else coded_alike(values)
        return self.columns.get(name)

    def present(self, name: str) -> Mask:
        return which_are(self._single[name]) if name in self._single else super().present(name)

    def value(self, name: str, index: int) -> Any:
        if name in self._single:
            return self._single[name][index]
        return getattr(self._decode(self._values[index]), name) if name in self._names else None

    def event(self, index: int) -> dict[str, Any]:
        event = self._decode(self._values[index])
        return {name: value for name in self._fields if (value := getattr(event, name)) is not None}
