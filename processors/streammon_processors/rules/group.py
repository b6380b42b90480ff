"""The grouping: one partition of `regrouped`, read to be added up into the windows of groups.

All parts of a group and start lie in one partition, but come from several, which are not equally far. So a start is
closed `PATIENCE_S` of the broker's time after its first part, or when a later start of the same grouping is: rules
want the windows of a group in order. What comes after that is left out, and counted.

Promises
- The window of a group is the sum of the parts that came in time: counts, sums and sketches add exactly.
- The same log gives the same bytes, wherever it is cut and whoever dies.
- Memory is bounded: `MAX_GROUPS` of a grouping and start are kept apart, and the others are one group, ``__other__``;
  with more than `MAX_SUMS` in all, the oldest start is closed at once.

The snapshot holds no sums. `offsets` names the first part of the oldest start that is open, and what is read again only
rebuilds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, Final

import msgspec
from msgspec import Struct
from prometheus_client import Counter

from streammon.broker import Outgoing, Record
from streammon.deadletter import dead_letter_of
from streammon.errors import Rejected
from streammon.results import OTHER
from streammon.tick import TICK
from streammon.wire import SCHEMA_HEADER
from streammon_processors.rollups.sums import Sum, Sums
from streammon_processors.rules.groups import GROUPED, REGROUPED, Grouping, GroupWindow, read_part
from streammon_processors.rules.lanes import LogTime
from streammon_processors.windows import encode_window, series_key

PATIENCE_S: Final = 20.0
"""How long a start is open. Rollups of a source that falls silent wait 10 s for it, 5 s for a tick to tell the time,
and a little for `windows`: so much later one partition may be than another."""
MAX_GROUPS: Final = 1000
MAX_SUMS: Final = 10_000

LATE = Counter("streammon_group_late_parts", "Windows that came when their group had been closed")

_Start = tuple[str, float]  # the grouping's name, and when the window starts


class _Open(Struct, array_like=True):
    """A start that is open, in the snapshot."""

    grouping: str
    start: float
    since_ms: int
    first_offset: int


class _Snapshot(Struct, array_like=True):
    next: int | None
    time: LogTime
    newest_end: float
    closed: dict[str, float]
    open: list[_Open]


@dataclass
class _Growing:
    """The groups of a start."""

    since_ms: int
    first_offset: int
    sums: Sums


class GroupTask:
    """Adds up one partition of `regrouped` and writes to the same partition of `grouped`."""

    def __init__(
        self, groupings: Iterable[Grouping], partition: int, *, max_groups: int = MAX_GROUPS, max_sums: int = MAX_SUMS
    ) -> None:
        self._groupings = {grouping.name: grouping for grouping in groupings}
        self._partition = partition
        self._max_groups, self._max_sums = max_groups, max_sums
        self._next: int | None = None
        self._time = LogTime()
        self._newest_end = 0.0
        self._closed: dict[str, float] = {}  # by grouping, the newest start that was closed
        self._open: dict[_Start, _Growing] = {}  # the one with the oldest first part first
        self._held = 0  # sums, in all that is open

    # --- the contract -----------------------------------------------------------------------------------------------

    def process(self, topic: str, records: Sequence[Record]) -> list[Outgoing]:
        """The windows of the groups that these records close."""
        return [output for record in records for output in self._process_one(topic, record)]

    def snapshot(self) -> bytes:
        """Where everything stands; equal states are equal bytes."""
        opened = [_Open(*start, each.since_ms, each.first_offset) for start, each in self._open.items()]
        closed = dict(sorted(self._closed.items()))
        return msgspec.msgpack.encode(_Snapshot(self._next, self._time, self._newest_end, closed, opened))

    def restore(self, snapshot: bytes) -> None:
        """Go on from a snapshot, also with other groupings; the records from `offsets` on have to be given again."""
        state = msgspec.msgpack.decode(snapshot, type=_Snapshot)
        self._next, self._time, self._newest_end = state.next, state.time, state.newest_end
        self._closed = {name: start for name, start in state.closed.items() if name in self._groupings}
        for each in state.open:
            if grouping := self._groupings.get(each.grouping):
                growing = self._growing(grouping, each.since_ms, each.first_offset)
                self._open[each.grouping, each.start] = growing

    def offsets(self) -> Mapping[str, int]:
        """The first part of the oldest start that is open."""
        if self._next is None:
            return {}
        return {REGROUPED: min([self._next, *(each.first_offset for each in self._open.values())])}

    @property
    def waiting(self) -> Sequence[str]:
        """`regrouped`, while something is open: time passing closes it."""
        return (REGROUPED,) if self._open else ()

    def watermarks(self) -> Mapping[str, float]:
        """When the newest part ends."""
        return {REGROUPED: self._newest_end} if self._newest_end else {}

    # --- the story of a record --------------------------------------------------------------------------------------

    def _process_one(self, topic: str, record: Record) -> Iterator[Outgoing]:
        again = self._next is not None and record.offset < self._next
        if not again:
            self._next, self._time = record.offset + 1, self._time.after(record.timestamp)
            yield from self._close_due()
        if record.value == TICK:
            return
        try:
            part = read_part(record.value or b"")
        except Rejected as error:
            if not again:
                yield dead_letter_of(topic, record, error, to_partition=self._partition)
            return
        self._newest_end = max(self._newest_end, part.end_unix_s)
        if grouping := self._groupings.get(part.grouping):
            self._take_in(grouping, part, record.offset, again)
            while self._held > self._max_sums:
                yield from self._close(next(iter(self._open)))

    def _take_in(self, grouping: Grouping, part: GroupWindow, offset: int, again: bool) -> None:
        if part.start_unix_s <= self._closed.get(grouping.name, -inf):
            LATE.inc(not again)
            return
        start = grouping.name, part.start_unix_s
        if start not in self._open:
            self._open[start] = self._growing(grouping, self._time.passed_ms, offset)
        growing = self._open[start]
        before = len(growing.sums)
        growing.sums.add(series_key(part.series), part)
        self._held += len(growing.sums) - before

    def _growing(self, grouping: Grouping, since_ms: int, first_offset: int) -> _Growing:
        return _Growing(since_ms, first_offset, Sums(self._max_groups, dict.fromkeys(grouping.by, OTHER)))

    # --- closing ----------------------------------------------------------------------------------------------------

    def _close_due(self) -> Iterator[Outgoing]:
        before_ms = self._time.passed_ms - 1000 * PATIENCE_S
        for start in [start for start, each in self._open.items() if each.since_ms <= before_ms]:
            yield from self._close(start)

    def _close(self, last: _Start) -> Iterator[Outgoing]:
        """Close a start, and before it all earlier ones of its grouping."""
        name, newest = last
        for start in sorted(start for start in self._open if start[0] == name and start[1] <= newest):
            growing = self._open.pop(start)
            self._held -= len(growing.sums)
            self._closed[name] = start[1]
            for each in growing.sums.results():
                yield self._window(self._groupings[name], start[1], each)

    def _window(self, grouping: Grouping, start_unix_s: float, total: Sum) -> Outgoing:
        size_s = grouping.shape.size_s
        fields: dict[str, Any] = total.fields(size_s)
        window = GroupWindow(
            grouping=grouping.name,
            source=grouping.source,
            part="main",
            revision=0,
            series=total.series,
            start_unix_s=start_unix_s,
            end_unix_s=start_unix_s + size_s,
            size_s=size_s,
            partition=self._partition,
            throughput_per_s=total.count / size_s,
            of_s=size_s,
            **fields,
        )
        return Outgoing(GROUPED, grouping.key(total.series), encode_window(window), (SCHEMA_HEADER,), self._partition)
