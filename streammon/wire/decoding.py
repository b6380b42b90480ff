"""Bytes to batches: any density, with the reason when it is none."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from functools import cache
from itertools import groupby
from typing import Any, NamedTuple

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from streammon.errors import Reason, Rejected
from streammon.events import MAX_COUNT, SCHEMA, STRUCTS, Event, EventType
from streammon.wire.batch import MAX_ENTRIES, MAX_EVENTS, Batch, Identity, Rows
from streammon.wire.columns import fields_of, list_of
from streammon.wire.plain import PlainReader, Wanted
from streammon.wire.rows import ColumnRows, ObjectRows


def decode(event_type: EventType, value: bytes) -> list[Batch]:
    """The batches in one record of any density.

    Most records are one batch. An array whose events carry identities of their own is several.

    Raises:
        Rejected: the whole record, with the reason and what is wrong where.
    """
    codec = codec_of(event_type)
    event = codec.event(value)
    return [batch_of(event)] if event is not None else codec.batches(value)


def batch_of(event: Event) -> Batch:
    """An event that came alone. Raises Rejected for an impossible ``seq``."""
    return Batch(ObjectRows([event]), identity_of(event))


def well_formed(decoder: msgspec.json.Decoder[Any], value: bytes) -> Event | None:
    """The event, if the value is one well-formed object of our schema; None means "look closer"."""
    try:
        value.decode()  # the JSON decoder skips ignored fields, but a record is passed on as it came
        event: Event = decoder.decode(value)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None
    return event if event.schema == SCHEMA else None


def _check_utf8(value: bytes) -> None:
    try:
        value.decode()
    except UnicodeDecodeError as error:
        raise Rejected(Reason.INVALID_UNICODE, str(error)) from None


class Head(Struct, gc=False):
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
        self.fields = fields_of(self.struct)
        self._plain = PlainReader(self.struct)
        self._one = msgspec.json.Decoder(self.struct)
        self._many = msgspec.json.Decoder(list_of(self.struct))
        self._columns = msgspec.json.Decoder(_RawColumns)

    def event(self, value: bytes) -> Event | None:
        """The fast path, see `well_formed`."""
        return well_formed(self._one, value)

    def plain(self, values: Sequence[bytes | None], start: int, end: int, wanted: Wanted) -> Rows:
        """The fast path of many records, see `PlainReader.read`."""
        return self._plain.read(values, start, end, wanted)

    def batches(self, value: bytes) -> list[Batch]:
        """The closer look: any density, with the reason when it is none. Raises Rejected."""
        try:
            return self._batches(value)
        except RecursionError:
            raise Rejected(Reason.INVALID_JSON, "nested too deeply") from None

    def _batches(self, value: bytes) -> list[Batch]:
        _check_utf8(value)
        head = head_of(value)
        if isinstance(head, NotQuiteJson):
            return self._python(head.value)
        if isinstance(head, list):
            for index, one in enumerate(head):
                self._check_head(one, f"event {index}: ")
            return self._runs(self._typed(self._many.decode, value))
        self._check_head(head, "")
        if head.columns is not UNSET:
            return [self._column_batch(self._typed(self._columns.decode, value))]
        event = self._typed(self._one.decode, value)
        return [batch_of(event)]

    def _python(self, parsed: Any) -> list[Batch]:
        """Records with NaN or Infinity in them, already parsed by the more tolerant standard library."""
        if isinstance(parsed, list):
            for index, one in enumerate(parsed):
                self._check_head(_python_head(one), f"event {index}: ")
            return self._runs(self._typed(msgspec.convert, parsed, list_of(self.struct)))
        if not isinstance(parsed, dict):
            raise Rejected(Reason.INVALID_EVENT, f"expected an object or an array, got {parsed}")
        self._check_head(_python_head(parsed), "")
        if "columns" in parsed:
            return [self._column_batch(self._typed(msgspec.convert, parsed, _Columns))]
        event = self._typed(msgspec.convert, parsed, self.struct)
        return [batch_of(event)]

    def _typed(self, convert: Callable[..., Any], *args: Any) -> Any:
        try:
            return convert(*args)
        except msgspec.ValidationError as error:
            reason = Reason.WRONG_TYPE if str(error).endswith(".type`") else Reason.INVALID_EVENT
            raise Rejected(reason, str(error)) from None

    def _check_head(self, head: Head, where: str) -> None:
        if head.schema != SCHEMA or isinstance(head.schema, bool):
            raise Rejected(Reason.UNKNOWN_SCHEMA, f"{where}schema is {head.schema!r}, this version reads {SCHEMA}")
        if head.type is not None and head.type != self.type:
            raise Rejected(Reason.WRONG_TYPE, f"{where}type is {head.type!r}, expected {self.type.value!r}")

    def _runs(self, events: list[Event]) -> list[Batch]:
        if len(events) > MAX_EVENTS:
            raise Rejected(Reason.TOO_LARGE, f"{len(events)} events in one record, at most {MAX_EVENTS}")
        return [Batch(ObjectRows(list(run)), identity) for identity, run in groupby(events, identity_of)]

    def _column_batch(self, envelope: _Columns) -> Batch:
        count = envelope.count
        if count < 0:
            raise Rejected(Reason.INVALID_EVENT, f"count is {count}, expected 0 or more")
        if count > MAX_EVENTS:
            raise Rejected(Reason.TOO_LARGE, f"count is {count}, at most {MAX_EVENTS} in one record")
        if not 0 <= envelope.dropped <= MAX_COUNT:
            raise Rejected(Reason.INVALID_EVENT, f"dropped is {envelope.dropped}, expected 0 to 2**53")
        rows = ColumnRows(self.fields, count)
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
        return Batch(rows, identity_of(envelope), envelope.dropped, envelope.sparse)


@cache
def codec_of(event_type: EventType) -> Codec:
    """The decoder of one event type; cached, because building one is slow."""
    return Codec(event_type)


def _python_head(parsed: Any) -> Head:
    return Head(parsed.get("schema", SCHEMA), parsed.get("type")) if isinstance(parsed, dict) else Head()


class NotQuiteJson(NamedTuple):
    """JSON but for NaN and Infinity."""

    value: Any


def head_of(value: bytes) -> Head | list[Head] | NotQuiteJson:
    try:
        return _HEADS.decode(value)
    except msgspec.ValidationError as error:
        raise Rejected(Reason.INVALID_EVENT, str(error)) from None
    except UnicodeDecodeError as error:
        raise Rejected(Reason.INVALID_UNICODE, str(error)) from None
    except msgspec.DecodeError as error:
        return _tolerant(value, str(error))


_HEADS: msgspec.json.Decoder[Head | list[Head]] = msgspec.json.Decoder(Head | list[Head])
_TOLERATED = re.compile(rb"\b(?:NaN|Infinity)\b")
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def _tolerant(value: bytes, problem: str) -> NotQuiteJson:
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
        return NotQuiteJson(json.loads(value))
    except ValueError:
        raise Rejected(Reason.INVALID_JSON, problem) from None


def identity_of(carrier: Event | _Columns) -> Identity | None:
    if carrier.seq is None or carrier.agent is None or carrier.boot is None:
        return None
    if not 0 <= carrier.seq <= MAX_COUNT:
        raise Rejected(Reason.INVALID_EVENT, f"seq is {carrier.seq}, expected 0 to 2**53")
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
