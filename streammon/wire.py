"""The wire: bytes to events and back, in the four densities of one record.

========  =======================================================================================
object    ``{"type":"inference","time_unix_s":…}``: one event
array     ``[{…},{…}]``
columns   ``{"type":…,"count":N,"constant":{field:value},"columns":{field:[N values]}}``
packed    as columns, where a numeric column may be ``{"f8":"<base64>"}`` (also f4 i8 i4 u2 u1, little
          endian) and a string column ``{"dictionary":[…],"index":{"u1":"<base64>"}}``
========  =======================================================================================

`decode` accepts all four for every event type. What it promises:

* A record is accepted or rejected **whole** for its form: broken JSON, an unknown schema, unequal lengths, an index
  past its dictionary, a wrong type. The `Rejected` it raises says which part is wrong.
* A single event is refused for its **values** (`Fault`: NaN or infinity, a negative duration, an impossible time) and
  its neighbours are kept.
* Unknown fields are ignored. Memory is bounded by the record's size: a lying ``count`` is checked before it is used.

Rows stay in columns (numpy) from here on: no Python object per event where a sender packs.

A batch may carry ``agent``, ``boot`` and ``seq``, its `Identity`: ``seq`` counts the batches of one (agent, boot) to
one topic partition, from 0, without gaps. A sender that does not know partitions uses one boot id per record key.
Python's ``json.dumps`` writes ``NaN``, which is not JSON; such records are read all the same, event by event.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache, cached_property
from itertools import groupby
from operator import attrgetter
from types import GenericAlias, NoneType
from typing import Any, NamedTuple, Protocol

import msgspec
import numpy as np
from msgspec import UNSET, Raw, Struct, UnsetType
from numpy.typing import NDArray

from streammon.broker import Outgoing
from streammon.errors import Reason, Rejected
from streammon.events import KEYS, SCHEMA, STRUCTS, Event, EventType, NonNegative, record_key
from streammon.topics import MAX_RECORD_BYTES, TOPIC_OF

MAX_EVENTS = 100_000
"""The most events one record may hold."""
MAX_ENTRIES = 1_000_000
"""The most entries of maps and lists the events of one record may have together; a constant counts once an event."""
MAX_SPLIT_BYTES = 64 * MAX_RECORD_BYTES
"""The most bytes one record may become when it is split by key, because every key gets the constants."""
MAX_TIME_UNIX_S = 1e11
"""Times from here on (the year 5138) are refused: a number of milliseconds, most likely."""
SCHEMA_HEADER = ("streammon-schema", str(SCHEMA).encode())
"""On every record that streammon writes."""

Floats = NDArray[np.float64]
Codes = NDArray[np.int64]


class Density(StrEnum):
    """How tightly events are packed into a record."""

    OBJECT = "object"
    ARRAY = "array"
    COLUMNS = "columns"
    PACKED = "packed"


class Identity(NamedTuple):
    """Which batch of which life of which agent this is."""

    agent: str
    boot: str
    seq: int


class Fault(NamedTuple):
    """One event refused for its values."""

    row: int
    reason: Reason
    detail: str


@dataclass(frozen=True, slots=True)
class Batch:
    """Events that were sent together. ``dropped``: events the agent gave up on since its last batch.

    ``sparse``: the numbers of this stream may skip, because it is a share of a batch that was split by key.
    """

    rows: Rows
    identity: Identity | None = None
    dropped: int = 0
    sparse: bool = False


class Rows(Protocol):
    """The events of a batch, by column."""

    def __len__(self) -> int: ...

    def floats(self, name: str) -> Floats | None:
        """A numeric field of every row, NaN where absent; None if no row has it."""
        ...

    def coded(self, name: str) -> Coded:
        """A field as few values: None where absent, a mapping as its sorted items.

        A value may be listed twice, or for no row: senders write the dictionaries.
        """
        ...

    def present(self, name: str) -> NDArray[np.bool_]:
        """Which rows have a text or object field."""
        ...

    def objects(self, name: str) -> Sequence[Any] | None:
        """Any field of every row as Python values, None where absent; None if no row has it."""
        ...

    def event(self, index: int) -> dict[str, Any]:
        """One event as it would be in an object, without ``schema``, ``type`` and identity."""
        ...

    def faults(self) -> list[Fault]:
        """The events to refuse for their values, at most one fault each, in order."""
        ...


# --- decoding -------------------------------------------------------------------------------------------------


def decode(event_type: EventType, value: bytes) -> list[Batch]:
    """The batches in one record of any density.

    Most records are one batch. An array whose events carry identities of their own is several.

    Raises:
        Rejected: the whole record, with the reason and what is wrong where.
    """
    codec = codec_of(event_type)
    event = codec.event(value)
    if event is not None:
        return [Batch(ObjectRows([event]), _identity(event))]
    try:
        return codec.batches(value)
    except RecursionError:
        raise Rejected(Reason.INVALID_JSON, "nested too deeply") from None


def _check_utf8(value: bytes) -> None:
    try:
        value.decode()
    except UnicodeDecodeError as error:
        raise Rejected(Reason.INVALID_UNICODE, str(error)) from None


def codec_of(event_type: EventType) -> Codec:
    """The decoder of one event type; cached, because building one is slow."""
    return _codec(event_type)


class _Head(Struct, gc=False):
    """What tells records apart before their type is known."""

    schema: Any = SCHEMA
    type: str | None = None
    columns: Raw | UnsetType = UNSET


class _Columns(Struct, kw_only=True, gc=False):
    """The envelope of the densities ``columns`` and ``packed``."""

    count: int
    schema: int = SCHEMA
    type: str | None = None
    agent: str | None = None
    boot: str | None = None
    seq: int | None = None
    dropped: int = 0
    sparse: bool = False
    constant: dict[str, Any] = {}
    columns: dict[str, Any] = {}  # Raw for JSON, Python values where the record held NaN


class _RawColumns(_Columns, kw_only=True, gc=False):
    constant: dict[str, Raw] = {}
    columns: dict[str, Raw] = {}


class Codec:
    """Decodes the records of one event type."""

    def __init__(self, event_type: EventType) -> None:
        self.type = event_type
        self.struct = STRUCTS[event_type]
        self.fields = _fields(self.struct)
        self.order = {name: index for index, name in enumerate(self.fields)}
        self._one = msgspec.json.Decoder(self.struct)
        self._many = msgspec.json.Decoder(_list_of(self.struct))
        self._columns = msgspec.json.Decoder(_RawColumns)

    def event(self, value: bytes) -> Event | None:
        """The fast path: the event, if the record is one well-formed object; None means "look closer"."""
        try:
            value.decode()  # the JSON decoder skips ignored fields, but a record is passed on as it came
            event = self._one.decode(value)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
        return event if event.schema == SCHEMA else None

    def batches(self, value: bytes) -> list[Batch]:
        """Any density, with the reason when it is none."""
        _check_utf8(value)
        head = _head(value)
        if isinstance(head, _NotQuiteJson):
            return self._python(head.value)
        if isinstance(head, list):
            for index, one in enumerate(head):
                self._check_head(one, f"event {index}: ")
            return self._runs(self._typed(self._many.decode, value))
        self._check_head(head, "")
        if head.columns is not UNSET:
            return [self._column_batch(self._typed(self._columns.decode, value))]
        event = self._typed(self._one.decode, value)
        return [Batch(ObjectRows([event]), _identity(event))]

    def _python(self, parsed: Any) -> list[Batch]:
        """Records with NaN or Infinity in them, already parsed by the more tolerant standard library."""
        if isinstance(parsed, list):
            for index, one in enumerate(parsed):
                self._check_head(_python_head(one), f"event {index}: ")
            return self._runs(self._typed(msgspec.convert, parsed, _list_of(self.struct)))
        if not isinstance(parsed, dict):
            raise Rejected(Reason.INVALID_EVENT, f"expected an object or an array, got {parsed}")
        self._check_head(_python_head(parsed), "")
        if "columns" in parsed:
            return [self._column_batch(self._typed(msgspec.convert, parsed, _Columns))]
        event = self._typed(msgspec.convert, parsed, self.struct)
        return [Batch(ObjectRows([event]), _identity(event))]

    def _typed(self, convert: Callable[..., Any], *args: Any) -> Any:
        try:
            return convert(*args)
        except msgspec.ValidationError as error:
            reason = Reason.WRONG_TYPE if str(error).endswith(".type`") else Reason.INVALID_EVENT
            raise Rejected(reason, str(error)) from None

    def _check_head(self, head: _Head, where: str) -> None:
        if head.schema != SCHEMA or isinstance(head.schema, bool):
            raise Rejected(Reason.UNKNOWN_SCHEMA, f"{where}schema is {head.schema!r}, this version reads {SCHEMA}")
        if head.type is not None and head.type != self.type:
            raise Rejected(Reason.WRONG_TYPE, f"{where}type is {head.type!r}, expected {self.type.value!r}")

    def _runs(self, events: list[Event]) -> list[Batch]:
        if len(events) > MAX_EVENTS:
            raise Rejected(Reason.TOO_LARGE, f"{len(events)} events in one record, at most {MAX_EVENTS}")
        return [Batch(ObjectRows(list(run)), identity) for identity, run in groupby(events, _identity)]

    def _column_batch(self, envelope: _Columns) -> Batch:
        count = envelope.count
        if not 0 <= count <= MAX_EVENTS:
            raise Rejected(Reason.TOO_LARGE, f"count is {count}, allowed are 0 to {MAX_EVENTS}")
        if envelope.dropped < 0:
            raise Rejected(Reason.INVALID_EVENT, f"dropped is {envelope.dropped}, expected 0 or more")
        rows = ColumnRows(self, count)
        for name, raw in envelope.constant.items():
            if name in self.fields:
                rows.columns[name] = self.fields[name].constant(raw, count, rows.value_faults[name])
        for name, raw in envelope.columns.items():
            if name in self.fields:
                rows.columns[name] = self.fields[name].column(raw, count, rows.value_faults[name])
        missing = [name for name, spec in self.fields.items() if spec.required and name not in rows.columns]
        if missing and count:
            raise Rejected(Reason.INVALID_EVENT, f"no column or constant for required {', '.join(missing)}")
        if (entries := rows.entries()) > MAX_ENTRIES:
            raise Rejected(Reason.TOO_LARGE, f"{entries} entries in maps and lists, at most {MAX_ENTRIES}")
        return Batch(rows, _identity(envelope), envelope.dropped, envelope.sparse)


_codec = cache(Codec)


def _python_head(parsed: Any) -> _Head:
    return _Head(parsed.get("schema", SCHEMA), parsed.get("type")) if isinstance(parsed, dict) else _Head()


class _NotQuiteJson(NamedTuple):
    """JSON but for NaN and Infinity."""

    value: Any


def _head(value: bytes) -> _Head | list[_Head] | _NotQuiteJson:
    try:
        return _HEADS.decode(value)
    except msgspec.ValidationError as error:
        raise Rejected(Reason.INVALID_EVENT, str(error)) from None
    except UnicodeDecodeError as error:
        raise Rejected(Reason.INVALID_UNICODE, str(error)) from None
    except msgspec.DecodeError as error:
        return _tolerant(value, str(error))


_HEADS: msgspec.json.Decoder[_Head | list[_Head]] = msgspec.json.Decoder(_Head | list[_Head])
_TOLERATED = re.compile(rb"\b(?:NaN|Infinity)\b")
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def _tolerant(value: bytes, problem: str) -> _NotQuiteJson:
    if _SURROGATE.search(value):
        try:
            json.dumps(json.loads(value), ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise Rejected(Reason.INVALID_UNICODE, "a lone surrogate in a string") from None
        except ValueError:
            raise Rejected(Reason.INVALID_JSON, problem) from None
    if not _TOLERATED.search(value):
        raise Rejected(Reason.INVALID_JSON, problem)
    try:
        return _NotQuiteJson(json.loads(value))
    except ValueError:
        raise Rejected(Reason.INVALID_JSON, problem) from None


def _identity(carrier: Event | _Columns) -> Identity | None:
    if carrier.seq is None or carrier.agent is None or carrier.boot is None:
        return None
    if not 0 <= carrier.seq < 2**63:
        raise Rejected(Reason.INVALID_EVENT, f"seq is {carrier.seq}, expected 0 or more")
    return Identity(carrier.agent, carrier.boot, carrier.seq)


def claimed_events(value: bytes) -> int:
    """How many events a record that was rejected whole claims to hold; 1 where that cannot be told.

    Completeness counts events, so a refused batch of 200 must count as 200.
    """
    try:
        claim = json.loads(value)  # which reads more than `decode` does, NaN for one
    except (ValueError, RecursionError):
        return 1
    size: Any = len(claim) if isinstance(claim, list) else 1
    if isinstance(claim, dict) and not claim.keys().isdisjoint(("constant", "columns")):
        size = claim.get("count")
    return max(1, min(size, MAX_EVENTS)) if isinstance(size, int) else 1


# --- one column -----------------------------------------------------------------------------------------------


class _Packed(Struct, forbid_unknown_fields=True, gc=False):
    """A packed column; exactly one of the number formats, or a dictionary with its index."""

    f8: bytes | None = None
    f4: bytes | None = None
    i8: bytes | None = None
    i4: bytes | None = None
    u2: bytes | None = None
    u1: bytes | None = None
    dictionary: list[Any] | None = None
    index: _Packed | None = None

    def given(self) -> list[str]:
        """The names of what is here."""
        values = _PACKED_VALUES(self)
        return [name for name, value in zip(_PACKED_NAMES, values, strict=True) if value is not None]

    def numbers(self, name: str, count: int) -> NDArray[Any]:
        """The ``count`` numbers packed here."""
        code, *more = self.given() or ["nothing"]
        if more or code not in _FORMATS:
            got = ", ".join((code, *more))
            raise Rejected(Reason.BAD_PACKING, f"column {name}: expected one of {', '.join(_FORMATS)}, got {got}")
        data: bytes = getattr(self, code)
        if len(data) != count * _FORMATS[code].itemsize:
            raise Rejected(
                Reason.UNEQUAL_LENGTHS,
                f"column {name}: {len(data)} bytes of {code} are not {count} values",
            )
        return np.frombuffer(data, dtype=_FORMATS[code])


_PACKED_NAMES = _Packed.__struct_fields__
_PACKED_VALUES = attrgetter(*_PACKED_NAMES)
_FORMATS = {code: np.dtype(f"<{code}") for code in ("f8", "f4", "i8", "i4", "u2", "u1")}


class Coded(NamedTuple):
    """A column of few distinct values: ``dictionary[codes[i]]``."""

    dictionary: list[Any]
    codes: Codes


class _Reader:
    """Reads values of one type from JSON, or from Python values where the record held NaN (see `_NotQuiteJson`)."""

    def __init__(self, of: Any) -> None:
        self._type = of
        self._json = msgspec.json.Decoder(of)

    def __call__(self, raw: Any) -> Any:
        return self._json.decode(raw) if isinstance(raw, Raw) else msgspec.convert(raw, self._type)


@dataclass(frozen=True)
class FieldSpec:
    """One field of an event: how its columns are read."""

    name: str
    type: Any
    required: bool
    numeric: bool
    non_negative: bool
    mixed: bool  # not a number, but numbers may be in it
    _column: _Reader = field(repr=False)
    _list: _Reader = field(repr=False)
    _value: _Reader = field(repr=False)

    def constant(self, raw: Any, count: int, faults: list[Fault]) -> Floats | Coded:
        """The column of ``count`` equal values; a value to refuse is added to ``faults``, for each of them."""
        value = self._read(self._value, raw)
        if self.required and value is None:
            raise Rejected(Reason.INVALID_EVENT, f"constant {self.name} is null but required")
        if self.numeric:
            column = np.full(count, math.nan if value is None else value, dtype=np.float64)
            if value is not None:
                self._refuse(~np.isfinite(column), faults)
            return column
        return Coded([value], np.zeros(count, dtype=np.int64))

    def column(self, raw: Any, count: int, faults: list[Fault]) -> Floats | Coded:
        """The column, checked for its form; values to refuse are added to ``faults``."""
        values = self._read(self._column, raw)
        if not isinstance(values, _Packed):
            return self._listed(values, count, faults)
        if values.dictionary is not None:
            return self._dictionary(values, count, faults)
        numbers = values.numbers(self.name, count)
        if not self.numeric:
            return self._listed(self._read(self._list, numbers.tolist()), count, faults)
        column = numbers.astype(np.float64)
        self._refuse(~np.isfinite(column), faults)
        return column

    def _listed(self, values: list[Any], count: int, faults: list[Fault]) -> Floats | Coded:
        if len(values) != count:
            raise Rejected(Reason.UNEQUAL_LENGTHS, f"column {self.name} has {len(values)} values, count is {count}")
        if self.required and None in values:
            raise Rejected(Reason.INVALID_EVENT, f"column {self.name}: value {values.index(None)} is null but required")
        if any(isinstance(value, dict | list) for value in values):
            return Coded(values, np.arange(count))
        if not self.numeric:
            return _coded(values)
        column = np.array(values, dtype=np.float64)
        bad = ~np.isfinite(column)
        if bad.any():
            self._refuse(bad & np.array([value is not None for value in values]), faults)
        return column

    def _dictionary(self, packed: _Packed, count: int, faults: list[Fault]) -> Floats | Coded:
        dictionary = self._read(self._list, packed.dictionary)
        if packed.index is None or len(packed.given()) != 2:
            got = ", ".join(packed.given())
            raise Rejected(Reason.BAD_PACKING, f"column {self.name}: expected a dictionary and its index, got {got}")
        codes = packed.index.numbers(self.name, count)
        if codes.dtype.kind == "f":
            raise Rejected(Reason.BAD_PACKING, f"column {self.name}: an index holds integers, not floats")
        if count and not 0 <= int(codes.min()) <= int(codes.max()) < len(dictionary):
            raise Rejected(
                Reason.BAD_INDEX,
                f"column {self.name}: index {int(codes.min())} to {int(codes.max())}, "
                f"the dictionary has {len(dictionary)} entries",
            )
        if self.required and None in dictionary and None in {dictionary[code] for code in np.unique(codes)}:
            raise Rejected(Reason.INVALID_EVENT, f"column {self.name} has a null but is required")
        if self.numeric:
            return self._listed([dictionary[code] for code in codes], count, faults)
        return Coded(dictionary, codes.astype(np.int64))

    def _read(self, reader: _Reader, raw: Any) -> Any:
        try:
            return reader(raw)
        except msgspec.ValidationError as error:
            raise self._rejected(error) from None

    def _rejected(self, error: msgspec.ValidationError) -> Rejected:
        reason = Reason.BAD_PACKING if "base64" in str(error) else Reason.INVALID_EVENT
        return Rejected(reason, f"column {self.name}: {error}")

    def out_of_range(self, column: Floats) -> NDArray[np.bool_]:
        """The values that `fault` would refuse, but for NaN, which stands for absent in a column."""
        if self.name == "time_unix_s":
            return (column < 0) | (column >= MAX_TIME_UNIX_S)
        return np.isinf(column) | (column < 0) if self.non_negative else np.isinf(column)

    def fault(self, row: int, value: float) -> Fault | None:
        """What is wrong with a value that was given, if anything."""
        if not math.isfinite(value):
            return Fault(row, Reason.NON_FINITE, f"{self.name} is {value}")
        if self.name == "time_unix_s" and not 0 <= value < MAX_TIME_UNIX_S:
            hint = "; is it in milliseconds?" if value >= MAX_TIME_UNIX_S else ""
            return Fault(row, Reason.BAD_TIME, f"time_unix_s {value} is not in Unix seconds{hint}")
        if self.non_negative and value < 0:
            return Fault(row, Reason.NEGATIVE, f"{self.name} is {value}, expected 0 or more")
        return None

    def _refuse(self, bad: NDArray[np.bool_], faults: list[Fault]) -> None:
        detail = f"{self.name} is not a finite number"
        faults += [Fault(row, Reason.NON_FINITE, detail) for row in np.flatnonzero(bad).tolist()]


def _list_of(item: Any) -> Any:
    return GenericAlias(list, (item,))  # spelled so, because the item is a value here


def _fields(struct: type[Event]) -> dict[str, FieldSpec]:
    identity = {"schema", "agent", "boot", "seq"}
    hints = msgspec.inspect.type_info(struct)
    assert isinstance(hints, msgspec.inspect.StructType)
    return {
        spec.name: FieldSpec(
            name=spec.name,
            type=spec.type,
            required=spec.required,
            numeric=_is_numeric(info.type),
            non_negative=_is_non_negative(spec.type),
            mixed=_is_mixed(info.type),
            _column=_Reader(_list_of(spec.type | None) | _Packed),
            _list=_Reader(_list_of(spec.type | None)),
            _value=_Reader(spec.type),
        )
        for spec, info in zip(msgspec.structs.fields(struct), hints.fields, strict=True)
        if spec.name not in identity
    }


_NONE = msgspec.inspect.NoneType
_NUMBERS = (msgspec.inspect.FloatType, msgspec.inspect.IntType)
_TEXTS = (msgspec.inspect.StrType, msgspec.inspect.BoolType, msgspec.inspect.LiteralType)


def _is_numeric(info: msgspec.inspect.Type) -> bool:
    return all(isinstance(part, (*_NUMBERS, _NONE)) for part in _parts(info))


def _is_mixed(info: msgspec.inspect.Type) -> bool:
    return not _is_numeric(info) and not all(isinstance(part, (*_TEXTS, _NONE)) for part in _parts(info))


def _parts(info: msgspec.inspect.Type) -> list[msgspec.inspect.Type]:
    parts = info.types if isinstance(info, msgspec.inspect.UnionType) else (info,)
    return [part.type if isinstance(part, msgspec.inspect.Metadata) else part for part in parts]


def _is_non_negative(hint: Any) -> bool:
    return hint == NonNegative or NonNegative in getattr(hint, "__args__", ())


def _frozen(value: Any) -> Any:
    """A value that can be a key: maps as their sorted items, lists as tuples."""
    if isinstance(value, str):
        return value
    if isinstance(value, Struct):
        return _frozen(msgspec.structs.asdict(value))
    if isinstance(value, dict):
        return tuple((key, _frozen(value[key])) for key in sorted(value))
    return tuple(map(_frozen, value)) if isinstance(value, list) else value


def _coded(values: Sequence[Any]) -> Coded:
    """Values as codes, numbered by first appearance; 1, 1.0 and True are kept apart only where types are mixed."""
    seen: dict[Any, int] = {}
    if len(set(map(type, values)) - {type(None)}) > 1:
        values = [(type(value), value) for value in values]
        codes = [seen.setdefault(value, len(seen)) for value in values]
        return Coded([value for _, value in seen], np.array(codes, dtype=np.int64))
    codes = [seen.setdefault(value, len(seen)) for value in values]
    return Coded(list(seen), np.array(codes, dtype=np.int64))


def combinations(columns: Sequence[Coded]) -> tuple[list[tuple[Any, ...]], Codes]:
    """The combinations of values that occur in some columns, and for every row which one it has."""
    size = len(columns[0].codes)
    combined = np.zeros(size, dtype=np.int64)
    for dictionary, codes in columns:
        if len(dictionary) > 1:
            _, combined = _dense(combined * len(dictionary) + codes)
    used, combined = _dense(combined)
    firsts = np.empty(len(used), dtype=np.int64)
    firsts[combined[::-1]] = np.arange(size)[::-1]
    return [tuple(d[c[row]] for d, c in columns) for row in firsts.tolist()], combined


_SMALL = 1 << 20


def _dense(codes: Codes) -> tuple[Codes, Codes]:
    """The distinct codes, ascending, and every code's number among them; without sorting where they are small."""
    top = int(codes.max(initial=0)) + 1
    if top > _SMALL:
        used, dense = np.unique(codes, return_inverse=True)
        return used, dense
    flags = np.zeros(top, dtype=np.bool_)
    flags[codes] = True
    used = np.flatnonzero(flags)
    return used, (np.cumsum(flags) - 1)[codes]


# --- rows -----------------------------------------------------------------------------------------------------


_FEW = 16
"""Rows that are checked faster one by one than by numpy."""


class ObjectRows:
    """Rows that came as objects."""

    def __init__(self, events: Sequence[Event]) -> None:
        self.events = events
        self._floats: dict[str, Floats | None] = {}

    def __len__(self) -> int:
        return len(self.events)

    @cached_property
    def _specs(self) -> Mapping[str, FieldSpec]:
        return codec_of(EventType(str(self.events[0].__struct_config__.tag))).fields if self.events else {}

    def floats(self, name: str) -> Floats | None:
        if name not in self._floats:
            values = list(map(attrgetter(name), self.events))
            absent = values.count(None) == len(values)
            self._floats[name] = None if absent else np.array(values, dtype=np.float64)
        return self._floats[name]

    def coded(self, name: str) -> Coded:
        values = list(map(attrgetter(name), self.events))
        if values.count(values[0]) == len(values):
            return Coded([_frozen(values[0])], np.zeros(len(values), dtype=np.int64))
        return _coded(list(map(_frozen, values)))

    def present(self, name: str) -> NDArray[np.bool_]:
        return np.array([value is not None for value in map(attrgetter(name), self.events)], dtype=np.bool_)

    def objects(self, name: str) -> Sequence[Any] | None:
        values = list(map(attrgetter(name), self.events))
        return None if values.count(None) == len(values) else values

    def event(self, index: int) -> dict[str, Any]:
        event = self.events[index]
        return {name: value for name in self._specs if (value := getattr(event, name)) is not None}

    def faults(self) -> list[Fault]:
        found: dict[int, Fault] = {}
        for spec in self._specs.values():
            if spec.numeric:
                for row in range(len(self)) if len(self) <= _FEW else self._suspects(spec):
                    value = getattr(self.events[row], spec.name)
                    if value is not None and (fault := spec.fault(row, value)):
                        found.setdefault(row, fault)
            elif spec.mixed and (values := self.objects(spec.name)) is not None:
                _mixed_faults(spec.name, Coded(list(values), np.arange(len(values))), found)
        return [found[index] for index in sorted(found)]

    def _suspects(self, spec: FieldSpec) -> list[int]:
        """Rows to look at closely; NaN is mostly just absent, unless there is more of it than of None."""
        column = self.floats(spec.name)
        if column is None:
            return []
        suspect = spec.out_of_range(column)
        absent = np.isnan(column)
        if absent.any() and list(map(attrgetter(spec.name), self.events)).count(None) < absent.sum():
            suspect |= absent
        return np.flatnonzero(suspect).tolist()


class ColumnRows:
    """Rows that came as columns."""

    def __init__(self, codec: Codec, count: int) -> None:
        self._codec = codec
        self._count = count
        self.columns: dict[str, Floats | Coded] = {}
        self.value_faults: defaultdict[str, list[Fault]] = defaultdict(list)  # found while reading a column

    def __len__(self) -> int:
        return self._count

    def floats(self, name: str) -> Floats | None:
        column = self.columns.get(name)
        return column if isinstance(column, np.ndarray) else None

    def coded(self, name: str) -> Coded:
        column = self.columns.get(name)
        if column is None:
            return Coded([None], np.zeros(self._count, dtype=np.int64))
        if isinstance(column, Coded):
            if not self._codec.fields[name].mixed:
                return column
            distinct, numbers = _coded([_frozen(value) for value in column.dictionary])
            return Coded(distinct, numbers[column.codes])
        return _coded(_present(column))

    def present(self, name: str) -> NDArray[np.bool_]:
        if name not in self.columns:
            return np.zeros(self._count, dtype=np.bool_)
        dictionary, codes = self.coded(name)
        return np.array([value is not None for value in dictionary], dtype=np.bool_)[codes]

    def objects(self, name: str) -> Sequence[Any] | None:
        column = self.columns.get(name)
        if column is None:
            return None
        if isinstance(column, Coded):
            return [column.dictionary[code] for code in column.codes]
        return _present(column)

    def event(self, index: int) -> dict[str, Any]:
        found = {}
        for name, column in self.columns.items():
            value = self._value(name, column, index)
            if value is not None:
                found[name] = value
        return found

    def _value(self, name: str, column: Floats | Coded, index: int) -> Any:
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
            if isinstance(column, Coded) and self._codec.fields[name].mixed:
                sizes = np.array([len(v) if isinstance(v, dict | list) else 0 for v in column.dictionary], np.int64)
                total += int(sizes[column.codes].sum())
        return total

    def faults(self) -> list[Fault]:
        found: dict[int, Fault] = {}
        for name in sorted(self.columns, key=self._codec.order.__getitem__):  # as `ObjectRows`: the first fault counts
            column, spec = self.columns[name], self._codec.fields[name]
            if isinstance(column, np.ndarray):
                suspects = spec.out_of_range(column).nonzero()[0].tolist()
                outside = [spec.fault(row, float(column[row])) for row in suspects]
                for fault in (*outside, *self.value_faults[name]):
                    if fault is not None:
                        found.setdefault(fault.row, fault)
            elif spec.mixed:
                _mixed_faults(name, column, found)
        return [found[index] for index in sorted(found)]


def _present(column: Floats) -> list[float | None]:
    return [None if math.isnan(value) else value for value in column.tolist()]


def _mixed_faults(name: str, column: Coded, found: dict[int, Fault]) -> None:
    bad = {code: value for code, value in enumerate(column.dictionary) if not _all_finite(value)}
    for row in np.flatnonzero(np.isin(column.codes, list(bad))).tolist() if bad else ():
        found.setdefault(row, Fault(row, Reason.NON_FINITE, _not_finite(name, bad[column.codes[row]])))


def _not_finite(name: str, value: Any) -> str:
    """Where in a value its first NaN or infinity is."""
    if isinstance(value, float):
        return f"{name} is {value}"
    key, inner = next((key, inner) for key, inner in _items(value) if not _all_finite(inner))
    return _not_finite(f"{name}.{key}", inner)


def _items(value: Any) -> Iterable[tuple[Any, Any]]:
    if isinstance(value, Struct):
        return msgspec.structs.asdict(value).items()
    if isinstance(value, dict):
        return value.items()
    return enumerate(value) if isinstance(value, list) else ()


def _all_finite(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return all(_all_finite(inner) for _, inner in _items(value))


# --- encoding -------------------------------------------------------------------------------------------------


def encode(
    event_type: EventType,
    events: Sequence[Mapping[str, Any]],
    density: Density = Density.PACKED,
    identity: Identity | None = None,
    dropped: int = 0,
    *,
    sparse: bool = False,
) -> list[bytes]:
    """Record values for ``events`` (wire names, without ``schema`` and ``type``).

    OBJECT gives one value per event, the other densities exactly one. An identity belongs to one value, so several
    objects cannot carry it. ``dropped`` and ``sparse`` need an envelope: columns or packed.
    """
    head: dict[str, Any] = {"schema": SCHEMA, "type": event_type.value}
    if identity is not None:
        head |= identity._asdict()
    if density is Density.OBJECT:
        assert identity is None or len(events) <= 1, "one identity, one value"
        return [_dumps({**head, **event}) for event in events]
    if density is Density.ARRAY:
        return [_dumps([{**head, **event} for event in events])]
    if dropped:
        head["dropped"] = dropped
    if sparse:
        head["sparse"] = True
    constant, columns = _columns(events, _pack if density is Density.PACKED else list)
    return [_dumps({**head, "count": len(events), "constant": constant, "columns": columns})]


def _columns(
    events: Sequence[Mapping[str, Any]], pack: Callable[[list[Any]], Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    names = dict.fromkeys(name for event in events for name in event)
    constant: dict[str, Any] = {}
    columns: dict[str, Any] = {}
    for name in names:
        values = [event.get(name) for event in events]
        if _is_constant(values):
            constant[name] = values[0]
        else:
            columns[name] = pack(values)
    return constant, columns


def _is_constant(values: list[Any]) -> bool:
    first = values[0]
    if isinstance(first, str):
        return values.count(first) == len(values)
    return isinstance(first, dict | list) and all(value is first for value in values)


def _pack(values: list[Any]) -> Any:
    kinds = set(map(type, values))
    if kinds <= {float, int}:
        return _pack_numbers(values, integers=kinds == {int})
    if kinds <= {str, type(None)}:
        dictionary, codes = _coded(values)
        return {"dictionary": dictionary, "index": _pack_index(codes, len(dictionary))}
    return _pack_shared(values)


def _pack_shared(values: list[Any]) -> Any:
    """Maps and lists that rows share are written once, as they came: a split must not write them for every row."""
    shared = {id(value): value for value in values}
    if not set(map(type, shared.values())) <= {dict, list, NoneType} or len(shared) == len(values):
        return values
    numbers = {identity: number for number, identity in enumerate(shared)}
    codes = np.array([numbers[id(value)] for value in values])
    return {"dictionary": list(shared.values()), "index": _pack_index(codes, len(shared))}


def _pack_numbers(values: list[float], *, integers: bool) -> Any:
    if not integers:
        return {"f8": np.array(values, dtype="<f8").tobytes()}
    low, high = min(values), max(values)
    if -(2**31) <= low <= high < 2**31:
        return {"i4": np.array(values, dtype="<i4").tobytes()}
    if -(2**63) <= low <= high < 2**63:
        return {"i8": np.array(values, dtype="<i8").tobytes()}
    return values


def _pack_index(codes: Codes, size: int) -> dict[str, bytes]:
    code = "u1" if size <= 2**8 else "u2" if size <= 2**16 else "i4"
    return {code: codes.astype(_FORMATS[code]).tobytes()}


def _dumps(value: Any) -> bytes:
    """JSON; with Python's NaN where a number is not finite, so that the reader can say which event it was."""
    encoded = msgspec.json.encode(value)
    if b"null" in encoded and not _all_finite(value):
        return json.dumps(value, separators=(",", ":"), default=_base64).encode()
    return encoded


def _base64(value: Any) -> Any:
    return msgspec.to_builtins(value)


# --- routing --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Routed:
    """One value, cut by record key and ready for `Broker.append`.

    ``rejected`` events are in the records too: the processor refuses and counts them where it counts the rest.
    """

    records: list[Outgoing]
    accepted: int
    rejected: int
    reasons: Counter[Reason]


def route(value: bytes, event_type: EventType | None = None) -> Routed:
    """Check a value of any density and address it; used wherever events enter streammon.

    ``event_type`` None: what the value's ``type`` says. A value whose events share a key is passed on unchanged.

    Raises:
        Rejected: the whole value.
    """
    if len(value) > MAX_RECORD_BYTES:
        raise Rejected(Reason.TOO_LARGE, f"{len(value)} bytes, at most {MAX_RECORD_BYTES}")
    try:
        return _route(value, event_type or _sniff(value))
    except RecursionError:
        raise Rejected(Reason.INVALID_JSON, "nested too deeply") from None


def _route(value: bytes, event_type: EventType) -> Routed:
    event = codec_of(event_type).event(value)
    if event is not None:
        return _route_one(event_type, value, event)
    batches = decode(event_type, value)
    faults = [fault for batch in batches for fault in batch.rows.faults()]
    count = sum(len(batch.rows) for batch in batches)
    return Routed(
        records=_addressed(event_type, value, batches),
        accepted=count - len(faults),
        rejected=len(faults),
        reasons=Counter(fault.reason for fault in faults),
    )


def _route_one(event_type: EventType, value: bytes, event: Event) -> Routed:
    """The short way for one object: numpy would cost more than the event."""
    _identity(event)
    faults = ObjectRows([event]).faults()
    key = record_key(event_type, tuple(getattr(event, name) for name in KEYS[event_type]))
    return Routed(
        records=[Outgoing(TOPIC_OF[event_type], key, value, (SCHEMA_HEADER,))],
        accepted=1 - len(faults),
        rejected=len(faults),
        reasons=Counter(fault.reason for fault in faults),
    )


def _sniff(value: bytes) -> EventType:
    head = _head(value)
    if isinstance(head, _NotQuiteJson):
        parsed = head.value[0] if isinstance(head.value, list) and head.value else head.value
        name = parsed.get("type") if isinstance(parsed, dict) else None
    else:
        first = (head[0] if head else _Head()) if isinstance(head, list) else head
        name = first.type
    if name not in list(EventType):
        raise Rejected(
            Reason.WRONG_TYPE if name else Reason.INVALID_EVENT,
            f"`type` is {name!r}, expected one of {', '.join(EventType)}",
        )
    return EventType(name)


def _addressed(event_type: EventType, value: bytes, batches: list[Batch]) -> list[Outgoing]:
    topic = TOPIC_OF[event_type]
    shares = [_by_key(event_type, batch) for batch in batches]
    keys = {key for share in shares for key in share}
    if len(keys) <= 1:
        key = next(iter(keys), None)
        return [Outgoing(topic, key, value, (SCHEMA_HEADER,))]
    records: list[Outgoing] = []
    total = 0
    for batch, share in zip(batches, shares, strict=True):
        for key in share:
            part = _share(event_type, batch, share, key)
            total += len(part)
            if len(part) > MAX_RECORD_BYTES or total > MAX_SPLIT_BYTES:
                raise Rejected(Reason.TOO_LARGE, f"split by key, it grows to over {max(len(part), total)} bytes")
            records.append(Outgoing(topic, key, part, (SCHEMA_HEADER,)))
    return records


def _by_key(event_type: EventType, batch: Batch) -> dict[bytes, list[int]]:
    if not len(batch.rows):
        return {}
    names, codes = combinations([batch.rows.coded(name) for name in KEYS[event_type]])
    keys = [record_key(event_type, values) for values in names]
    rows: dict[bytes, list[int]] = {}
    for index, code in enumerate(codes.tolist()):
        rows.setdefault(keys[code], []).append(index)
    return rows


def _share(event_type: EventType, batch: Batch, rows: dict[bytes, list[int]], key: bytes) -> bytes:
    """What one key gets of a batch, as a batch of its own.

    The identity stays, so that a batch sent twice is still counted once, but under a boot id of the key's own:
    another key's share may go to the same partition.
    """
    events = [batch.rows.event(index) for index in rows[key]]
    shared = len(rows) > 1
    identity = batch.identity
    if identity is not None and shared:
        identity = identity._replace(boot=f"{identity.boot}/{key.decode()}")
    dropped = batch.dropped if key == next(iter(rows)) else 0
    [value] = encode(event_type, events, Density.PACKED, identity, dropped, sparse=batch.sparse or shared)
    return value
