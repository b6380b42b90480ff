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
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cache, cached_property
from itertools import groupby
from operator import attrgetter
from types import GenericAlias
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
        """A field as few distinct values: None where absent, a mapping as its sorted items."""
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
        self._one = msgspec.json.Decoder(self.struct)
        self._many = msgspec.json.Decoder(_list_of(self.struct))
        self._columns = msgspec.json.Decoder(_RawColumns)

    def event(self, value: bytes) -> Event | None:
        """The fast path: the event, if the record is one well-formed object; None means "look closer"."""
        try:
            event = self._one.decode(value)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None
        return event if event.schema == SCHEMA else None

    def batches(self, value: bytes) -> list[Batch]:
        """Any density, with the reason when it is none."""
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
            return self._runs(self._typed(msgspec.convert, parsed, _list_of(self.struct)))
        if not isinstance(parsed, dict):
            raise Rejected(Reason.INVALID_EVENT, f"expected an object or an array, got {parsed}")
        self._check_head(_Head(parsed.get("schema", SCHEMA), parsed.get("type")), "")
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
            raise Rejected(
                Reason.UNKNOWN_SCHEMA, f"{where}schema is {head.schema!r}, this version reads {SCHEMA}"
            )
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
                rows.columns[name] = self.fields[name].constant(raw, count)
        for name, raw in envelope.columns.items():
            if name in self.fields:
                rows.columns[name] = self.fields[name].column(raw, count, rows.value_faults)
        missing = [name for name, spec in self.fields.items() if spec.required and name not in rows.columns]
        if missing and count:
            raise Rejected(Reason.INVALID_EVENT, f"no column or constant for required {', '.join(missing)}")
        return Batch(rows, _identity(envelope), envelope.dropped, envelope.sparse)


_codec = cache(Codec)


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
        return max(1, min(_CLAIMS.decode(value).count, MAX_EVENTS))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass
    try:
        return max(1, len(_ELEMENTS.decode(value)))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return 1


class _Claim(Struct, gc=False):
    count: int = 1


_CLAIMS = msgspec.json.Decoder(_Claim)
_ELEMENTS = msgspec.json.Decoder(list[Raw])


# --- one column -----------------------------------------------------------------------------------------------


class _Packed(Struct, forbid_unknown_fields=True, gc=False):
    """A packed column; exactly one of the number formats, or a dictionary with its index."""

    f8: bytes | None = None
    f4: bytes | None = None
    i8: bytes | None = None
    i4: bytes | None = None
    u2: bytes | None = None
    u1: bytes | None = None
    dictionary: Raw | UnsetType = UNSET
    index: _Packed | None = None

    def numbers(self, name: str, count: int) -> NDArray[Any]:
        """The ``count`` numbers packed here."""
        given = [(code, data) for code in _FORMATS if (data := getattr(self, code)) is not None]
        if len(given) != 1:
            raise Rejected(
                Reason.BAD_PACKING, f"column {name}: expected one of {', '.join(_FORMATS)}, got {len(given)}"
            )
        code, data = given[0]
        if len(data) != count * _FORMATS[code].itemsize:
            raise Rejected(
                Reason.UNEQUAL_LENGTHS,
                f"column {name}: {len(data)} bytes of {code} are not {count} values",
            )
        return np.frombuffer(data, dtype=_FORMATS[code])


_FORMATS = {code: np.dtype(f"<{code}") for code in ("f8", "f4", "i8", "i4", "u2", "u1")}


class Coded(NamedTuple):
    """A column of few distinct values: ``dictionary[codes[i]]``."""

    dictionary: list[Any]
    codes: Codes


@dataclass(frozen=True)
class FieldSpec:
    """One field of an event: how its columns are read."""

    name: str
    type: Any
    required: bool
    numeric: bool
    non_negative: bool
    _column: msgspec.json.Decoder[Any] = field(repr=False)
    _list: msgspec.json.Decoder[Any] = field(repr=False)
    _value: msgspec.json.Decoder[Any] = field(repr=False)

    def constant(self, raw: Any, count: int) -> Floats | Coded:
        """The column of ``count`` equal values."""
        value = self._convert(raw, self._value)
        if self.required and value is None:
            raise Rejected(Reason.INVALID_EVENT, f"constant {self.name} is null but required")
        if self.numeric:
            return np.full(count, math.nan if value is None else value, dtype=np.float64)
        return Coded([value], np.zeros(count, dtype=np.int64))

    def column(self, raw: Any, count: int, faults: list[Fault]) -> Floats | Coded:
        """The column, checked for its form; values to refuse are added to ``faults``."""
        values = self._convert(raw, self._column)
        if not isinstance(values, _Packed):
            return self._listed(values, count, faults)
        if values.dictionary is not UNSET:
            return self._dictionary(values.dictionary, values.index, count)
        numbers = values.numbers(self.name, count)
        if not self.numeric:
            return self._listed(
                self._decoded(self._list, Raw(msgspec.json.encode(numbers.tolist()))), count, faults
            )
        column = numbers.astype(np.float64)
        self._refuse(~np.isfinite(column), faults)
        return column

    def _listed(self, values: list[Any], count: int, faults: list[Fault]) -> Floats | Coded:
        if len(values) != count:
            raise Rejected(
                Reason.UNEQUAL_LENGTHS, f"column {self.name} has {len(values)} values, count is {count}"
            )
        if self.required and None in values:
            raise Rejected(
                Reason.INVALID_EVENT, f"column {self.name}: value {values.index(None)} is null but required"
            )
        if any(isinstance(value, dict) for value in values):
            return Coded(values, np.arange(count))
        if not self.numeric:
            return _coded(values)
        column = np.array(values, dtype=np.float64)
        bad = ~np.isfinite(column)
        if bad.any():
            self._refuse(bad & np.array([value is not None for value in values]), faults)
        return column

    def _dictionary(self, raw: Raw, index: _Packed | None, count: int) -> Floats | Coded:
        dictionary = self._decoded(self._list, raw)
        if index is None:
            raise Rejected(Reason.BAD_PACKING, f"column {self.name}: a dictionary needs an index")
        codes = index.numbers(self.name, count)
        if codes.dtype.kind == "f":
            raise Rejected(Reason.BAD_PACKING, f"column {self.name}: an index holds integers, not floats")
        if count and not 0 <= int(codes.min()) <= int(codes.max()) < len(dictionary):
            raise Rejected(
                Reason.BAD_INDEX,
                f"column {self.name}: index {int(codes.min())} to {int(codes.max())}, "
                f"the dictionary has {len(dictionary)} entries",
            )
        coded = Coded(dictionary, codes.astype(np.int64))
        if self.required and None in dictionary and (coded.codes == dictionary.index(None)).any():
            raise Rejected(Reason.INVALID_EVENT, f"column {self.name} has a null but is required")
        if self.numeric:
            return np.array(dictionary, dtype=np.float64)[coded.codes]
        return coded

    def _convert(self, raw: Any, decoder: msgspec.json.Decoder[Any]) -> Any:
        """A column or constant; Python values where the record held NaN (see `_NotQuiteJson`)."""
        if isinstance(raw, Raw):
            return self._decoded(decoder, raw)
        packed = isinstance(raw, dict) and raw.keys() <= set(_Packed.__struct_fields__)
        if decoder is self._column and packed:
            return self._decoded(decoder, Raw(msgspec.json.encode(raw)))
        try:
            return msgspec.convert(raw, self.type if decoder is self._value else _list_of(self.type | None))
        except msgspec.ValidationError as error:
            raise self._rejected(error) from None

    def _decoded(self, decoder: msgspec.json.Decoder[Any], raw: Raw) -> Any:
        try:
            return decoder.decode(raw)
        except msgspec.ValidationError as error:
            raise self._rejected(error) from None

    def _rejected(self, error: msgspec.ValidationError) -> Rejected:
        reason = Reason.BAD_PACKING if "base64" in str(error) else Reason.INVALID_EVENT
        return Rejected(reason, f"column {self.name}: {error}")

    def _refuse(self, bad: NDArray[np.bool_], faults: list[Fault]) -> None:
        for index in np.flatnonzero(bad):
            faults.append(Fault(int(index), Reason.NON_FINITE, f"{self.name} is not a finite number"))


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
            _column=msgspec.json.Decoder(_list_of(spec.type | None) | _Packed),
            _list=msgspec.json.Decoder(_list_of(spec.type | None)),
            _value=msgspec.json.Decoder(spec.type),
        )
        for spec, info in zip(msgspec.structs.fields(struct), hints.fields, strict=True)
        if spec.name not in identity
    }


def _is_numeric(info: msgspec.inspect.Type) -> bool:
    parts = info.types if isinstance(info, msgspec.inspect.UnionType) else (info,)
    known = [part.type if isinstance(part, msgspec.inspect.Metadata) else part for part in parts]
    numbers = (msgspec.inspect.FloatType, msgspec.inspect.IntType, msgspec.inspect.NoneType)
    return all(isinstance(part, numbers) for part in known)


def _is_non_negative(hint: Any) -> bool:
    return hint == NonNegative or NonNegative in getattr(hint, "__args__", ())


def _frozen(value: Any) -> Any:
    return tuple(sorted(value.items())) if isinstance(value, dict) else value


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
            if spec.numeric and (column := self.floats(spec.name)) is not None:
                for fault in _value_faults(spec, column):
                    found.setdefault(fault.row, fault)
                self._explicit_nan(spec.name, column, found)
        for name in ("metrics", "features"):
            if name in self._specs:
                _map_faults(name, self.objects(name), found)
        return [found[index] for index in sorted(found)]

    def _explicit_nan(self, name: str, column: Floats, found: dict[int, Fault]) -> None:
        for index in np.flatnonzero(np.isnan(column)).tolist():
            if getattr(self.events[index], name) is not None:
                found.setdefault(index, Fault(index, Reason.NON_FINITE, f"{name} is NaN"))


class ColumnRows:
    """Rows that came as columns."""

    def __init__(self, codec: Codec, count: int) -> None:
        self._codec = codec
        self._count = count
        self.columns: dict[str, Floats | Coded] = {}
        self.value_faults: list[Fault] = []

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
            return Coded([_frozen(value) for value in column.dictionary], column.codes)
        return _coded(_present(column))

    def present(self, name: str) -> NDArray[np.bool_]:
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
        explicit = {fault.row for fault in self.value_faults}
        found = {}
        for name, column in self.columns.items():
            value = (
                column.dictionary[column.codes[index]] if isinstance(column, Coded) else float(column[index])
            )
            absent = value is None or (value != value and index not in explicit)
            if not absent:
                found[name] = value
        return found

    def faults(self) -> list[Fault]:
        found: dict[int, Fault] = {}
        for fault in self.value_faults:
            found.setdefault(fault.row, fault)
        for name, column in self.columns.items():
            if isinstance(column, np.ndarray):
                for fault in _value_faults(self._codec.fields[name], column):
                    found.setdefault(fault.row, fault)
            elif name in ("metrics", "features"):
                _map_faults(name, self.objects(name), found)
        return [found[index] for index in sorted(found)]


def _present(column: Floats) -> list[float | None]:
    return [None if value != value else value for value in column.tolist()]


def _value_faults(spec: FieldSpec, column: Floats) -> Iterator[Fault]:
    """Faults of one numeric column; NaN here means absent."""
    if not len(column):
        return
    if spec.name == "time_unix_s":
        bad = ~((column >= 0) & (column < MAX_TIME_UNIX_S))
        for index in np.flatnonzero(bad):
            value = column[index]
            if not math.isfinite(value):
                yield Fault(int(index), Reason.NON_FINITE, f"time_unix_s is {value}")
                continue
            hint = "; is it in milliseconds?" if value >= MAX_TIME_UNIX_S else ""
            yield Fault(int(index), Reason.BAD_TIME, f"time_unix_s {value} is not in Unix seconds{hint}")
        return
    if np.isinf(column).any():
        for index in np.flatnonzero(np.isinf(column)):
            yield Fault(int(index), Reason.NON_FINITE, f"{spec.name} is infinite")
    if spec.non_negative and (column < 0).any():
        for index in np.flatnonzero(column < 0):
            yield Fault(int(index), Reason.NEGATIVE, f"{spec.name} is {column[index]}, expected 0 or more")


def _map_faults(name: str, column: Sequence[Any] | None, found: dict[int, Fault]) -> None:
    for index, mapping in enumerate(column or ()):
        for key, value in (mapping or {}).items():
            if isinstance(value, float) and not math.isfinite(value):
                found.setdefault(index, Fault(index, Reason.NON_FINITE, f"{name}.{key} is {value}"))


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
        first = values[0]
        if isinstance(first, str) and values.count(first) == len(values):
            constant[name] = first
        else:
            columns[name] = pack(values)
    return constant, columns


def _pack(values: list[Any]) -> Any:
    kinds = set(map(type, values))
    if kinds <= {float, int}:
        return _pack_numbers(values, integers=kinds == {int})
    if kinds <= {str, type(None)}:
        dictionary, codes = _coded(values)
        return {"dictionary": dictionary, "index": _pack_index(codes, len(dictionary))}
    return values


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


def _all_finite(value: Any) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, Mapping):
        return all(map(_all_finite, value.values()))
    return all(map(_all_finite, value)) if isinstance(value, list) else True


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
    if event_type is None:
        event_type = _sniff(value)
    batches = decode(event_type, value)
    faults = [fault for batch in batches for fault in batch.rows.faults()]
    count = sum(len(batch.rows) for batch in batches)
    return Routed(
        records=_addressed(event_type, value, batches),
        accepted=count - len(faults),
        rejected=len(faults),
        reasons=Counter(fault.reason for fault in faults),
    )


def _sniff(value: bytes) -> EventType:
    try:
        head = _head(value)
    except RecursionError:
        raise Rejected(Reason.INVALID_JSON, "nested too deeply") from None
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
    return [
        Outgoing(topic, key, _share(event_type, batch, share, key), (SCHEMA_HEADER,))
        for batch, share in zip(batches, shares, strict=True)
        for key in share
    ]


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
