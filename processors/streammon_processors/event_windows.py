"""Events of one partition to tumbling event-time windows, exactly and in any number of tries.

`EventWindows` decides which event belongs where, and what is published when. What is counted of the events, and what
is written of that, a `Product` says: `streammon_processors.windows` has one, `streammon_processors.profiles` another.

Semantics
---------
* Windows are ``[start, end)``, aligned to the epoch. The watermark is the newest accepted event time minus
  ``lateness_s``; a window closes when the watermark reaches its end, is published once, and never changes.
* An event of a closed window is *late*: late events of a series and window make a supplement (``part`` "late",
  ``revision`` 1, 2, …), published with the next close. Older than ``max_late_s``: dead letter, ``too_late``.
* An event more than ``max_future_s`` ahead of its record's broker time is a dead letter, ``future``, and never
  moves the watermark. (Of several products of a topic, one writes the dead letters; the others only count them.)
* A tick record moves the watermark by the broker time since the previous record, and publishes what is pending.
* Batches seen before (agent, boot, seq) are not counted again.
* Everything that is not in a main window is reported in the completeness of a result, once.

The order of events decides everything, not their packing: the same events in the same order give the same windows
in any density, however the records are cut into calls of `process`.

Recovery
--------
Output is *published* at certain places of the log, always between two rows. The snapshot is taken there and is
small: it holds no window. `offsets` names the first record of the oldest window that was still open; reading from
there, rows before the published place only rebuild open windows, and everything else about them is known to be done.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from math import floor, inf
from typing import Any, Protocol

import msgspec
import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from streammon import wire
from streammon.broker import Outgoing, Record
from streammon.broker.records import Records
from streammon.config import WindowSettings
from streammon.deadletter import dead_letter
from streammon.errors import Reason
from streammon.events import EventType
from streammon.results import Completeness, bounded
from streammon.tick import TICK
from streammon.topics import MAX_RECORD_BYTES
from streammon.wire import Density, Identity
from streammon_processors.aggregate import sortable
from streammon_processors.chunk import (
    Chunk,
    Fate,
    Ints,
    Position,
    Refusal,
    Series,
    pack_positions,
    unpack_positions,
)
from streammon_processors.dedupe import Dedupe, Stream, Verdict
from streammon_processors.revisions import Revisions, RevisionsMemory
from streammon_processors.task import Step

Mask = NDArray[np.bool_]

CHUNK_RECORDS = 4000
CHUNK_ROWS = 200_000
"""Records pooled at once, and the rows from which on no more are: bounds the memory of one `process` call."""
MAX_DUPLICATES = 100_000
"""Batches sent again while windows are open that a restart leaves out again; it would count older ones."""
PENDING_LIMIT = 20_000
"""Weight of late and refused events and of batches (see `_weights`) after which they are published without a close."""
KNOWN_SERIES = 20_000
"""Series that keep their number; with more than these at once, all are numbered anew."""


class Counting(Protocol):
    """What one window holds of its events, by series."""

    def add(self, chunk: Chunk, rows: Ints, keys: list[Series], codes: Ints) -> None:
        """Count these rows of the chunk; row ``i`` belongs to the series ``keys[codes[i]]``.

        Numbers may be remembered: while ``keys`` is the same list, it only grows.
        """
        ...

    def results(self) -> Iterator[tuple[Series, dict[str, Any]]]:
        """For each series, in the order of its labels, what depends on its events; at least their ``count``."""
        ...


class Product:
    """What is made of the events of one topic: which belong together, what is counted of them, and what is written.

    One that remembers more than its open windows also says what, below; `EventWindows` does not look at it.
    """

    event_type: EventType
    by: tuple[str, ...]
    """The fields whose values make a series."""
    wanted: wire.Wanted
    """What is asked of every event, beside numbers."""
    writes_letters = True
    """Whether refused events become dead letters; else they are only counted."""

    def series(self, values: Series) -> Series:
        """The series of these values of ``by``; one and the same for all that are published alike."""
        return values

    def counting(self, number: int) -> Counting:
        """To count the events of the window with this number, or late ones of it."""
        raise NotImplementedError

    def key(self, series: Series | None) -> bytes:
        """What tells a series from all others; None: of events whose series is not known."""
        raise NotImplementedError

    def record(
        self, number: int, series: Series | None, revision: int, counters: Completeness, fields: dict[str, Any]
    ) -> Outgoing:
        """What is published of a series in a window; a revision from 1 on is a supplement."""
        raise NotImplementedError

    # --- of those that remember more ------------------------------------------------------------------------------

    def tell(self, tick: Record, newest: float) -> None:
        """A tick record, as it comes; ``newest`` is the highest event time before it."""

    def is_due(self, closed: float) -> bool:
        """Whether there is something to publish, beside windows, once those before number ``closed`` are closed."""
        return False

    @property
    def is_waiting(self) -> bool:
        """Whether there will be, as time passes."""
        return False

    def publish(self, closed: float, oldest: float, newest: float) -> Iterator[Outgoing]:
        """That. What it remembers then has to be in the snapshot. Nothing is added to windows before ``oldest``."""
        yield from ()


class Published(Struct, array_like=True):
    """A topic's memory at a published place. Windows of ``size_s`` with numbers below ``closed`` were published."""

    place: Position
    size_s: float
    closed: float | None
    rewind_to: int
    newest: float | None
    broker_ms: int | None
    streams: list[Stream]
    duplicates: bytes  # see `pack_positions`
    revisions: RevisionsMemory


@dataclass
class _OpenWindow:
    """A window, or a supplement, that is still growing."""

    counting: Counting
    first_offset: int


class _Pending:
    """What is to be published beside main windows: supplements, counters, dead letters."""

    def __init__(self) -> None:
        self.supplements: dict[int, _OpenWindow] = {}
        self.counters: dict[Series | None, Completeness] = {}
        self.letters: list[Outgoing] = []
        self.judged: list[tuple[Identity, int]] = []
        self.weight = 0  # see PENDING_LIMIT

    def of(self, series: Series | None) -> Completeness:
        """The counters of a series; None: of events whose series is not known."""
        return self.counters.setdefault(series, Completeness())

    def __bool__(self) -> bool:
        return bool(self.supplements or self.counters or self.letters)


class EventWindows:
    """The windows of one topic partition."""

    def __init__(self, topic: str, product: Product, partition: int, settings: WindowSettings) -> None:
        self._topic = topic
        self._product = product
        self._known = _KnownSeries(product)
        self._partition = partition
        self._settings = settings
        self._open: dict[int, _OpenWindow] = {}  # by number: start = number * size_s
        self._newest = -inf  # the highest accepted event time
        self._closed_before = -inf  # the windows closed by an earlier run, whatever its settings were
        self._broker_ms: int | None = None  # the broker's time of the last record
        self._dedupe = Dedupe()  # of all records read: may be ahead of what is published
        self._published_dedupe = Dedupe()
        self._duplicates: list[Position] = []  # batches found to be duplicates that may be read again
        self._revisions = Revisions()
        self._pending = _Pending()
        self.published: Published | None = None

    def restore(self, published: Published) -> None:
        self._newest = -inf if published.newest is None else published.newest
        self._broker_ms = published.broker_ms
        self._dedupe = Dedupe(msgspec.convert(msgspec.to_builtins(published.streams), list[Stream]))
        self._published_dedupe = Dedupe(published.streams)
        self._duplicates = unpack_positions(published.duplicates)
        self.published = published
        closed = -inf if published.closed is None else published.closed
        self._revisions = Revisions(published.revisions)
        if published.size_s == self._settings.size_s:
            self._closed_before = closed
        else:  # what the old windows hold of a new one was published: the rest of it comes in supplements
            self._closed_before = _renumbered(closed, published.size_s / self._settings.size_s)
            seen_s = max(self._newest, (published.broker_ms or 0) / 1000)
            self._revisions = self._revisions.of_another_size(floor(seen_s / self._settings.size_s) + 1)

    @property
    def waiting(self) -> bool:
        return bool(self._open or self._pending or self._product.is_waiting)

    @property
    def watermark(self) -> float:
        return self._newest - self._settings.lateness_s

    # --- the story of a record ----------------------------------------------------------------------------------

    def steps(self, records: Records) -> Iterator[Step]:
        """What is published, a place at a time, and nothing at the end of each chunk."""
        start = 0
        while start < len(records):
            if records.values[start] == TICK:
                start += 1
                yield Step(self._tick(records[start - 1]), start)
            else:
                some = records[start : start + CHUNK_RECORDS]
                chunk = Chunk(self._product.event_type, some, CHUNK_ROWS, self._product.wanted)
                yield from map(Step, self._chunk(chunk))
                start += chunk.records
                yield Step([], start)

    def _tick(self, record: Record) -> list[Outgoing]:
        if self.published is not None and record.offset < self.published.place.offset:
            return []
        self._product.tell(record, self._newest)
        if self._broker_ms is not None:
            self._newest += max(0, record.timestamp - self._broker_ms) / 1000
        self._broker_ms = record.timestamp
        due = bool(self._pending) or self._can_close()
        return self._publish(Position(record.offset + 1, 0)) if due else []

    def _chunk(self, chunk: Chunk) -> Iterator[list[Outgoing]]:
        rows = _Rows(chunk, self._known, self._settings)
        done = chunk.rows_before(self.published.place) if self.published is not None else 0
        if done:
            self._rebuild(rows, done)
        if done < len(rows):
            yield from self._advance(rows, done)

    def _rebuild(self, rows: _Rows, end: int) -> None:
        """Rows read again: put back what belongs to windows that were open at the published place."""
        known = set(self._duplicates)
        for header in rows.chunk.headers:
            if header.row < end and rows.chunk.position(header.row) in known:
                rows.duplicate[header.row : header.row + header.rows] = True
        assert self.published is not None
        unpublished = rows.events & ~rows.duplicate & ~rows.future
        unpublished[end:] = False
        if self.published.closed is not None:
            unpublished &= np.floor(rows.chunk.time / self.published.size_s) >= self.published.closed
        self._count(self._open, rows, np.flatnonzero(unpublished))

    def _advance(self, rows: _Rows, start: int) -> Iterator[list[Outgoing]]:
        """New rows: decide each by what came before it, and publish wherever that lets a window close."""
        if self._can_close():  # begun with windows of another size
            yield self._publish(rows.chunk.position(start))
        verdicts = self._judge_batches(rows, start)
        accepted = rows.events & ~rows.duplicate & ~rows.future
        accepted[:start] = False
        newest = np.maximum.accumulate(np.append(self._newest, np.where(accepted, rows.chunk.time, -inf)))
        closed = self._closed(newest)
        late = accepted & (rows.window < closed[:-1])
        oldest = newest[:-1] - self._settings.lateness_s - self._settings.max_late_s
        too_late = late & (rows.chunk.time < oldest)
        supplement = late & ~too_late
        refused = self._refusals(rows, start, too_late)
        letters = list(refused)
        closing = np.flatnonzero(closed[:-1] < closed[1:])
        weights = self._weights(rows, supplement, refused)

        while start < len(rows):
            last = self._next_place(start, closing, weights)
            part = np.arange(start, last + 1)
            self._count(self._open, rows, part[(accepted & ~late)[part]])
            self._count(self._pending.supplements, rows, part[supplement[part]])
            refused_here = letters[bisect_left(letters, start) : bisect_right(letters, last)]
            self._note(rows, part, verdicts, {row: refused[row] for row in refused_here})
            self._pending.weight += int(weights[last + 1] - weights[start])
            self._newest = float(newest[last + 1])
            self._broker_ms = rows.chunk.record(last).timestamp
            if self._can_close() or self._is_full or (self._pending and closed[last] < closed[last + 1]):
                yield self._publish(rows.chunk.position_after(last))
            start = last + 1

    # --- decisions ------------------------------------------------------------------------------------------------

    def _closed(self, newest: Any) -> Any:
        """The number of the first window still open when ``newest`` is the newest event time."""
        closed = np.floor((newest - self._settings.lateness_s) / self._settings.size_s)
        return np.maximum(closed, self._closed_before)

    def _can_close(self) -> bool:
        closed = self._closed(self._newest)
        return any(number < closed for number in self._open) or self._product.is_due(closed)

    @property
    def _is_full(self) -> bool:
        return self._pending.weight >= PENDING_LIMIT

    def _next_place(self, start: int, closing: Ints, weights: Ints) -> int:
        """The next row after which something may have to be published; the last one if there is none."""
        at = np.searchsorted(closing, start)
        close = int(closing[at]) if at < len(closing) else len(weights) - 2
        full = weights[start] + PENDING_LIMIT - self._pending.weight
        return min(close, int(np.searchsorted(weights, full)) - 1, len(weights) - 2)

    def _judge_batches(self, rows: _Rows, start: int) -> dict[int, Verdict]:
        """By first row of each new batch with an identity: was it seen before?"""
        verdicts = {}
        for header in rows.chunk.headers:
            if header.identity is None or header.row < start:
                continue
            verdict = self._dedupe.judge(header.identity, rows.chunk.record(header.row).timestamp)
            verdicts[header.row] = verdict
            if verdict.duplicate:
                rows.duplicate[header.row : header.row + header.rows] = True
                self._duplicates.append(rows.chunk.position(header.row))
        del self._duplicates[:-MAX_DUPLICATES]
        return verdicts

    def _refusals(self, rows: _Rows, start: int, too_late: Mask) -> dict[int, Refusal]:
        """The rows that go to the dead letters, in order."""
        chunk, settings = rows.chunk, self._settings
        refused = {row: why for row, why in chunk.refusals.items() if row >= start}
        for row in np.flatnonzero(rows.future & rows.events).tolist():
            ahead = chunk.time[row] - chunk.broker_time[row]
            refused[row] = Refusal(
                Reason.FUTURE,
                f"{ahead:.3f} s ahead of the broker, at most {settings.max_future_s:g} s allowed",
            )
        for row in np.flatnonzero(too_late).tolist():
            refused[row] = Refusal(
                Reason.TOO_LATE, f"more than {settings.max_late_s:g} s behind the watermark of its partition"
            )
        return {row: refused[row] for row in sorted(refused) if row >= start and not rows.duplicate[row]}

    def _weights(self, rows: _Rows, supplement: Mask, refused: Mapping[int, Refusal]) -> Ints:
        """What publishing will cost, cumulated: element ``i`` is the weight of the rows before row ``i``."""
        elsewhere = np.append(True, (np.diff(rows.window) != 0) | (np.diff(rows.chunk.offset) != 0))
        weights = supplement * np.where(elsewhere, 50, 1)  # a window costs as much as 50 events
        for row in refused:
            weights[row] = 4 + rows.chunk.bytes_of(row) // 256  # a kilobyte, as much as four
        for header in rows.chunk.headers:
            weights[header.row] += header.identity is not None  # judged, and to be remembered
        return np.append(0, weights.cumsum())

    # --- what becomes of rows ---------------------------------------------------------------------------------------

    def _count(self, windows: dict[int, _OpenWindow], rows: _Rows, counted: Ints) -> None:
        """Add rows to their windows."""
        numbers = rows.window[counted]
        for number in np.unique(numbers):
            mine = counted[numbers == number]
            window = windows.get(int(number))
            if window is None:
                first_offset = int(rows.chunk.offset[mine[0]])
                window = windows[int(number)] = _OpenWindow(self._product.counting(int(number)), first_offset)
            window.counting.add(rows.chunk, mine, rows.series, rows.codes)

    def _note(self, rows: _Rows, part: Ints, verdicts: Mapping[int, Verdict], refused: Mapping[int, Refusal]) -> None:
        """Keep the books on everything that is not in a main window."""
        first, last = int(part[0]), int(part[-1])
        for header in rows.chunk.headers_between(first, last):
            verdict = verdicts.get(header.row, Verdict(duplicate=False, missing=0))
            if header.identity is not None and header.row in verdicts:
                self._pending.judged.append((header.identity, rows.chunk.record(header.row).timestamp))
            missing = 0 if header.sparse else verdict.missing
            dropped = 0 if verdict.duplicate else header.dropped
            if missing or dropped:
                counters = self._pending.of(rows.series_of(header.row))
                counters.missing = bounded(counters.missing + missing)
                counters.dropped = bounded(counters.dropped + dropped)
        codes, counts = np.unique(rows.codes[part[rows.duplicate[part]]], return_counts=True)
        for code, count in zip(codes.tolist(), counts.tolist(), strict=True):
            self._pending.of(rows.series[code]).duplicate += count
        self._dead_letters(rows, refused)

    def _dead_letters(self, rows: _Rows, refused: Mapping[int, Refusal]) -> None:
        for row, refusal in refused.items():
            self._pending.of(rows.series_of(row)).rejected += refusal.events
        if not self._product.writes_letters:
            return
        chunk = rows.chunk
        for (offset, reason), group in groupby(refused, lambda row: (int(chunk.offset[row]), refused[row].reason)):
            members = list(group)
            first = refused[members[0]]
            if chunk.fate[members[0]] == Fate.UNREADABLE:
                value, detail = chunk.record(members[0]).value, first.detail
            else:
                value = self._refused_events(chunk, members)
                detail = first.detail + (f" (the first of {len(members)} events)" if len(members) > 1 else "")
            self._pending.letters.append(
                dead_letter(
                    reason,
                    detail,
                    topic=self._topic,
                    value=value,
                    partition=self._partition,
                    offset=offset,
                    to_partition=self._partition,
                )
            )

    def _refused_events(self, chunk: Chunk, rows: list[int]) -> bytes | None:
        """These events of one record as an array; all of the record where that is larger than a record may be."""
        values, size = [], 0
        for row in rows:
            values += wire.encode(self._product.event_type, [chunk.event(row)], Density.OBJECT)
            size += len(values[-1]) + 1
            if size >= MAX_RECORD_BYTES:
                return chunk.record(row).value
        return b"[%b]" % b",".join(values)

    # --- publishing -----------------------------------------------------------------------------------------------

    def _publish(self, place: Position) -> list[Outgoing]:
        """Everything that is due here, and the memory of it."""
        pending, self._pending = self._pending, _Pending()
        closed, oldest = float(self._closed(self._newest)), self._oldest_window()
        outputs = [
            *pending.letters,
            *self._main_windows(pending),
            *self._supplements(pending),
            *self._counters_left(pending),
            *self._product.publish(closed, oldest, self._newest),
        ]
        self._revisions.forget_before(oldest)  # only after numbering: what is published here may be older
        for identity, now_ms in pending.judged:
            self._published_dedupe.judge(identity, now_ms)
        rewind_to = min([place.offset, *(window.first_offset for window in self._open.values())])
        self._duplicates = [duplicate for duplicate in self._duplicates if duplicate.offset >= rewind_to]
        self.published = Published(
            place=place,
            size_s=self._settings.size_s,
            closed=None if closed == -inf else closed,
            rewind_to=rewind_to,
            newest=None if self._newest == -inf else self._newest,
            broker_ms=self._broker_ms,
            streams=self._published_dedupe.streams(),
            duplicates=pack_positions([duplicate for duplicate in self._duplicates if duplicate < place]),
            revisions=self._revisions.memory,
        )
        return outputs

    def _oldest_window(self) -> int:
        """The first one to which anything can still be added; 0 while nobody knows."""
        if self._newest == -inf:
            return 0
        return self._window_at(self._newest - self._settings.lateness_s - self._settings.max_late_s) - 1

    def _main_windows(self, pending: _Pending) -> Iterator[Outgoing]:
        closed = self._closed(self._newest)
        for number in sorted(number for number in self._open if number < closed):
            for series, fields in self._open.pop(number).counting.results():
                counters = pending.counters.pop(series, None) or Completeness()
                yield self._record(number, series, 0, counters, fields)

    def _supplements(self, pending: _Pending) -> Iterator[Outgoing]:
        for number in sorted(pending.supplements):
            for series, fields in pending.supplements.pop(number).counting.results():
                counters = pending.counters.pop(series, None) or Completeness()
                counters.late = fields["count"]
                yield self._record(number, series, self._next_revision(number, series), counters, fields)

    def _counters_left(self, pending: _Pending) -> Iterator[Outgoing]:
        """What was counted for series without a window now: empty supplements of the last closed window."""
        number = max(0, self._window_at(self.watermark) - 1)
        for series, counters in sorted(pending.counters.items(), key=lambda item: sortable(item[0] or ())):
            yield self._record(number, series, self._next_revision(number, series), counters, {"count": 0})

    def _window_at(self, time: float) -> int:
        """The number of a time's window; of the last record's, while no event was accepted."""
        return floor((time if time > -inf else (self._broker_ms or 0) / 1000) / self._settings.size_s)

    def _next_revision(self, number: int, series: Series | None) -> int:
        return self._revisions.next(number, self._product.key(series))

    def _record(
        self, number: int, series: Series | None, revision: int, counters: Completeness, fields: dict[str, Any]
    ) -> Outgoing:
        counters.watermark_unix_s = max(self.watermark, 0.0)
        return self._product.record(number, series, revision, counters, fields)


def _renumbered(number: float, factor: float) -> float:
    """The first window of another size that begins no earlier; three of 0.1 s end where one of 0.3 s does."""
    if number == -inf:
        return number
    exact = number * factor
    return float(np.ceil(exact - 4 * np.spacing(exact)))


class _KnownSeries:
    """Series by number, as long as ``series`` is the same list: what knows a number need not look at labels again."""

    def __init__(self, product: Product) -> None:
        self.product = product
        self.series: list[Series] = []
        self._numbers: dict[Series, int] = {}

    def numbered(self, values: list[Series], codes: Ints) -> tuple[list[Series], Ints]:
        """All series so far, and each row's number among them; row ``i`` has the ``values[codes[i]]``."""
        if len(self.series) > KNOWN_SERIES:
            self.series, self._numbers = [], {}
        numbers = [self._numbers.get(each, -1) for each in values]
        for index, each in enumerate(values) if -1 in numbers else ():
            if numbers[index] < 0:
                numbers[index] = self._number(self.product.series(each))
        return self.series, np.array(numbers, dtype=np.int64)[codes]

    def _number(self, series: Series) -> int:
        number = self._numbers.setdefault(series, len(self.series))
        if number == len(self.series):
            self.series.append(series)
        return number


class _Rows:
    """A chunk's rows as the windows see them."""

    def __init__(self, chunk: Chunk, known: _KnownSeries, settings: WindowSettings) -> None:
        self.chunk = chunk
        self.series, self.codes = known.numbered(*chunk.labels(known.product.by))
        self.events: Mask = chunk.fate == Fate.EVENT
        self.window = np.floor(chunk.time / settings.size_s)
        self.future: Mask = chunk.time > chunk.broker_time + settings.max_future_s
        self.duplicate: Mask = np.zeros(len(chunk), dtype=np.bool_)

    def __len__(self) -> int:
        return len(self.chunk)

    def series_of(self, row: int) -> Series | None:
        """A row's series; None for a row that stands for something without one."""
        known = self.chunk.fate[row] not in (Fate.UNREADABLE, Fate.EMPTY)
        return self.series[int(self.codes[row])] if known else None
