"""A chunk: the events of many records, side by side in numpy arrays, in log order.

One numpy call costs as much as twenty events, so records are pooled before anything is computed. Every event is a
*row*; a record that cannot be read, or a batch that holds no event, is one row too, so that whatever happens in the
log has a place in the order. A row's `Fate` says what is to become of it as far as the record alone can tell.
"""

from __future__ import annotations

import zlib
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from enum import IntEnum
from functools import cached_property
from itertools import repeat
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from streammon import wire
from streammon.broker import Record
from streammon.broker.records import Records
from streammon.errors import Reason, Rejected
from streammon.events import EventType
from streammon.tick import TICK
from streammon.wire import Batch, Floats, Identity, ObjectRows, Rows

Ints = NDArray[np.int64]
Series = tuple[Any, ...]
"""The values of a series' fields, in the order of the source's ``by``."""


_ONE_ZERO = np.zeros(1, dtype=np.int64)


class Fate(IntEnum):
    """What the record alone says about a row; dedupe and the watermark decide the rest."""

    EVENT = 0
    EMPTY = 1  # stands for a batch without events
    UNREADABLE = 2  # stands for a record that was rejected whole
    FAULTY = 3  # an event refused for its values


class Position(NamedTuple):
    """A place between rows of a partition: before row ``row`` of the record at ``offset``."""

    offset: int
    row: int


def pack_positions(positions: Sequence[Position]) -> bytes:
    """Ascending positions in about two bytes each: their differences, compressed."""
    places = np.array(positions, dtype="<i8").reshape(-1, 2)
    return zlib.compress(np.diff(places, axis=0, prepend=np.zeros((1, 2), dtype="<i8")).tobytes())


def unpack_positions(packed: bytes) -> list[Position]:
    """What `pack_positions` packed."""
    steps = np.frombuffer(zlib.decompress(packed), dtype="<i8").reshape(-1, 2)
    return [Position(offset, row) for offset, row in steps.cumsum(axis=0).tolist()]


class Refusal(NamedTuple):
    """Why a row is not counted, and for how many events it stands."""

    reason: Reason
    detail: str
    events: int = 1


class Header(NamedTuple):
    """What a batch says beside its events; belongs to the batch's first row."""

    row: int
    rows: int
    identity: Identity | None
    dropped: int
    sparse: bool


class Entries(NamedTuple):
    """The entries of mappings, in the order of the rows and, within one, as they were sent. Arrays have shape (n,)."""

    rows: Ints
    names: list[Any]
    codes: Ints
    """Which of the names."""
    values: NDArray[Any]
    """Floats; of histograms, `streammon.events.Histogram`s."""

    def of(self, rows: Ints) -> tuple[Ints, Entries]:
        """Those of some rows, which ascend; and where among these each stands."""
        if not len(self.rows):  # mostly
            return self.rows, self
        first, end = self.rows.searchsorted(rows[0]), self.rows.searchsorted(rows[-1], side="right")
        at = rows.searchsorted(self.rows[first:end])  # none is beyond the last
        found = np.flatnonzero(rows[at] == self.rows[first:end])
        mine = first + found
        return at[found], self._replace(rows=self.rows[mine], codes=self.codes[mine], values=self.values[mine])


NO_ENTRIES = Entries(np.zeros(0, np.int64), [], np.zeros(0, np.int64), np.zeros(0))


class _Piece(NamedTuple):
    """Rows that were decoded together: one batch, or a run of single events."""

    start: int
    rows: Rows | None  # None: one row that stands for something without events
    records: Records  # one for all rows, or one for each

    @property
    def size(self) -> int:
        return 1 if self.rows is None else len(self.rows)

    def record(self, row: int) -> Record:
        return self.records[row - self.start if len(self.records) > 1 else 0]


_USUAL_HEADERS = ((), (wire.SCHEMA_HEADER,))


def _foreign_schemas(records: Records) -> dict[int, bytes]:
    """The schema versions in the records' headers that are not ours."""
    name, ours = wire.SCHEMA_HEADER
    if records.headers.count(()) == len(records):
        return {}
    unusual = ((i, headers) for i, headers in enumerate(records.headers) if headers not in _USUAL_HEADERS)
    last = ((i, reversed(headers)) for i, headers in unusual)
    return {i: value for i, headers in last for header, value in headers if header == name and value != ours}


def _batches(codec: wire.Codec, value: bytes, foreign: bytes | None) -> list[Batch]:
    if foreign is not None:
        raise Rejected(Reason.UNKNOWN_SCHEMA, f"the header {wire.SCHEMA_HEADER[0]} says {foreign!r}")
    event = codec.event(value)
    return [wire.batch_of(event)] if event is not None else codec.batches(value)


class Chunk:
    """Rows of one partition; arrays have shape (n,), one element a row.

    The first ``records`` of those given were taken: all, unless they make at least ``enough`` rows before (a short
    record may hold very many) or a tick comes, which is no event. ``wanted`` names what will be asked of all rows;
    anything else takes longer.
    """

    def __init__(self, event_type: EventType, records: Records, enough: int, wanted: wire.Wanted) -> None:
        self._type = event_type
        self._fields = wire.codec_of(event_type).fields
        self._has: dict[str, bool] = {}
        self._floats: dict[str, Floats] = {}
        self._aligned: dict[str, list[Any]] = {}
        self._pieces: list[_Piece] = []
        self.headers: list[Header] = []
        self.refusals: dict[int, Refusal] = {}
        self._firsts: list[int] = []  # by piece: number of its first row within the record
        self._size = 0
        self._fates: dict[int, Fate] = {}
        self.records = self._read(wire.codec_of(event_type), records, enough, wanted)
        self._note_faults()

    def __len__(self) -> int:
        return self._size

    def _read(self, codec: wire.Codec, records: Records, enough: int, wanted: wire.Wanted) -> int:
        """Take in records; how many."""
        values, foreign = records.values, _foreign_schemas(records)
        at = 0
        while at < len(values) and self._size < enough:
            rows = codec.plain(values, at, next((i for i in foreign if i >= at), len(values)), wanted)
            if len(rows):
                self._add(rows, records[at : at + len(rows)], 0)
                at += len(rows)
            elif values[at] == TICK:
                break
            else:
                self._read_closely(codec, records[at : at + 1], values[at] or b"", foreign.get(at))
                at += 1
        return at

    def _read_closely(self, codec: wire.Codec, record: Records, value: bytes, foreign: bytes | None) -> None:
        """A record that is not just an event."""
        try:
            self._add_batches(record, _batches(codec, value, foreign))
        except Rejected as error:
            self._stand_in(record, Fate.UNREADABLE, 0)
            self.refusals[self._size - 1] = Refusal(error.reason, error.detail, wire.claimed_events(value))

    def _add_batches(self, record: Records, batches: list[Batch]) -> None:
        row = 0
        for batch in batches or [Batch(ObjectRows())]:
            self.headers.append(Header(self._size, len(batch.rows), batch.identity, batch.dropped, batch.sparse))
            if len(batch.rows):
                self._add(batch.rows, record, row)
            else:
                self._stand_in(record, Fate.EMPTY, row)
            row += max(1, len(batch.rows))

    def _stand_in(self, record: Records, fate: Fate, first: int) -> None:
        self._fates[self._size] = fate
        self._add(None, record, first)

    def _add(self, rows: Rows | None, records: Records, first: int) -> None:
        piece = _Piece(self._size, rows, records)
        self._pieces.append(piece)
        self._firsts.append(first)
        self._size += piece.size

    def _note_faults(self) -> None:
        for piece in self._pieces:
            for fault in piece.rows.faults() if piece.rows is not None else ():
                row = piece.start + fault.row
                self._fates[row] = Fate.FAULTY
                self.refusals[row] = Refusal(fault.reason, fault.detail)

    # --- arrays -----------------------------------------------------------------------------------------------

    @cached_property
    def fate(self) -> NDArray[np.int8]:
        fates = np.zeros(self._size, dtype=np.int8)
        for row, fate in self._fates.items():
            fates[row] = fate
        return fates

    @cached_property
    def time(self) -> Floats:
        """Event time, Unix seconds; NaN for rows that stand for something else."""
        return self.floats("time_unix_s")

    @cached_property
    def broker_time(self) -> Floats:
        """The broker's time of each row's record, Unix seconds."""
        return self._spread([piece.records.timestamps for piece in self._pieces]) / 1000

    @cached_property
    def offset(self) -> Ints:
        return self._spread([piece.records.offsets for piece in self._pieces])

    @cached_property
    def row_in_record(self) -> Ints:
        return np.concatenate(
            [
                np.zeros(piece.size, dtype=np.int64) if len(piece.records) > 1 else np.arange(first, first + piece.size)
                for piece, first in zip(self._pieces, self._firsts, strict=True)
            ]
        )

    def position(self, row: int) -> Position:
        """The place before a row."""
        return Position(int(self.offset[row]), int(self.row_in_record[row]))

    def headers_between(self, first: int, last: int) -> list[Header]:
        """The batches whose first row is one of these."""
        low = bisect_left(self.headers, first, key=lambda header: header.row)
        high = bisect_right(self.headers, last, key=lambda header: header.row)
        return self.headers[low:high]

    def position_after(self, row: int) -> Position:
        """The place behind a row: in the same record if that goes on, else before the next record."""
        offset = int(self.offset[row])
        if row + 1 < self._size and int(self.offset[row + 1]) == offset:
            return Position(offset, int(self.row_in_record[row]) + 1)
        return Position(offset + 1, 0)

    def rows_before(self, position: Position) -> int:
        """How many of the rows lie before a position."""
        before = int(np.searchsorted(self.offset, position.offset, side="left"))
        upto = int(np.searchsorted(self.offset, position.offset, side="right"))
        inside = np.searchsorted(self.row_in_record[before:upto], position.row, side="left")
        return before + int(inside)

    def _spread(self, columns: list[Ints]) -> Ints:
        return np.concatenate(
            [
                np.full(piece.size, column[0]) if len(column) == 1 else column
                for piece, column in zip(self._pieces, columns, strict=True)
            ]
        )

    def has(self, name: str) -> bool:
        """Whether any row has this numeric field."""
        if name not in self._has:
            self._has[name] = any(
                piece.rows is not None and piece.rows.floats(name) is not None for piece in self._pieces
            )
        return self._has[name]

    def floats(self, name: str) -> Floats:
        """A numeric field, NaN where absent."""
        if name not in self._floats:
            columns = [None if piece.rows is None else piece.rows.floats(name) for piece in self._pieces]
            self._floats[name] = np.concatenate(
                [
                    np.full(piece.size, np.nan) if column is None else column
                    for piece, column in zip(self._pieces, columns, strict=True)
                ]
            )
        return self._floats[name]

    def labels(self, names: tuple[str, ...]) -> tuple[list[Series], Ints]:
        """The distinct combinations of some fields, and which one each row has."""
        return wire.combinations([self._coded(name) for name in names])

    def _coded(self, name: str) -> wire.Coded:
        known: dict[Any, int] = {}
        codes = []
        for piece in self._pieces:
            dictionary, own = ([None], _ONE_ZERO) if piece.rows is None else piece.rows.coded(name)
            if len(dictionary) == 1:
                codes.append(np.full(piece.size, known.setdefault(dictionary[0], len(known))))
            else:
                numbers = [known.setdefault(value, len(known)) for value in dictionary]
                codes.append(np.array(numbers, dtype=np.int64)[own])
        return wire.Coded(list(known), np.concatenate(codes))

    def equals(self, name: str, value: Any) -> NDArray[np.bool_]:
        """Which rows have this value in this field."""
        dictionary, codes = self._coded(name)
        return np.array([entry == value for entry in dictionary])[codes]

    def objects(self, name: str) -> list[tuple[int, Any]]:
        """The rows that have a field, with its Python value."""
        found = []
        for piece in self._pieces:
            values = piece.rows.objects(name) if piece.rows is not None else None
            found += [(piece.start + i, value) for i, value in enumerate(values or ()) if value is not None]
        return found

    def aligned(self, name: str) -> list[Any]:
        """A field of every row as Python values, None where absent."""
        if name not in self._aligned:
            values = self._aligned[name] = [None] * self._size
            for piece in self._pieces:
                if piece.rows is not None and (own := piece.rows.objects(name)) is not None:
                    values[piece.start : piece.start + piece.size] = own
        return self._aligned[name]

    @cached_property
    def events_have_status(self) -> bool:
        """Whether errors can be told apart at all: only inference events say how they ended."""
        return self._type is EventType.INFERENCE

    @cached_property
    def is_error(self) -> NDArray[np.bool_]:
        return self.equals("status", "error")

    @cached_property
    def metrics(self) -> Entries:
        """All metrics of all rows."""
        return self._entries("metrics", np.float64)

    @cached_property
    def counters(self) -> Entries:
        return self._entries("counters", np.float64)

    @cached_property
    def histograms(self) -> Entries:
        return self._entries("histograms", np.object_)

    def _entries(self, field: str, dtype: type) -> Entries:
        """What the maps in a field of all rows hold."""
        found = self.objects(field) if field in self._fields else ()
        if not found:
            return NO_ENTRIES
        rows: list[int] = []
        names: list[str] = []
        values: list[Any] = []
        for row, entries in found:
            rows += repeat(row, len(entries))
            names += entries
            values += entries.values()
        dictionary, codes = wire.coded_alike(names)
        return Entries(np.array(rows, dtype=np.int64), dictionary, codes, np.array(values, dtype=dtype))

    @cached_property
    def costs(self) -> Entries:
        """What the rows cost, by currency ("" where none is said)."""
        if "cost_amount" not in self._fields or not self.has("cost_amount"):
            return NO_ENTRIES
        currencies = dict(self.objects("cost_currency"))
        amounts = self.floats("cost_amount")
        rows = np.flatnonzero(~np.isnan(amounts))
        names, codes = wire.coded_alike([currencies.get(row, "") for row in rows.tolist()])
        return Entries(rows, names, codes, amounts[rows])

    @cached_property
    def traced(self) -> NDArray[np.bool_]:
        """Which rows can be found again: they have a trace or an event id."""
        traced = np.zeros(self._size, dtype=np.bool_)
        for piece in self._pieces:
            if piece.rows is not None and "trace_id" in self._fields:
                has_id = piece.rows.present("trace_id") | piece.rows.present("event_id")
                traced[piece.start : piece.start + piece.size] = has_id
        return traced

    # --- single rows ------------------------------------------------------------------------------------------

    def _piece(self, row: int) -> _Piece:
        return self._pieces[bisect_right(self._starts, row) - 1]

    @cached_property
    def _starts(self) -> list[int]:
        return [piece.start for piece in self._pieces]

    def record(self, row: int) -> Record:
        """The record a row came in."""
        return self._piece(row).record(row)

    def bytes_of(self, row: int) -> int:
        """A row's share of its record, about."""
        piece = self._piece(row)
        return len(piece.record(row).value or b"") // (1 if len(piece.records) > 1 else piece.size)

    def value(self, row: int, name: str) -> Any:
        """A field of one row; None where it is absent."""
        piece = self._piece(row)
        return None if piece.rows is None else piece.rows.value(name, row - piece.start)

    def event(self, row: int) -> dict[str, Any]:
        """A row's event as an object."""
        piece = self._piece(row)
        assert piece.rows is not None, "only rows that are events have one"
        return piece.rows.event(row - piece.start)
