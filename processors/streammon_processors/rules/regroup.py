"""The regrouping: from each partition of `windows`, what counts for a group, to the partition of its group.

Copies only rollups that a rule with ``by`` looks at; they are known by a header, and all else is not even decoded.
Supplements are left out, since rules look at none. Apart from its place in the log it remembers nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain

import msgspec
from msgspec import Struct
from msgspec.structs import asdict

from streammon.broker import Outgoing, Record
from streammon.deadletter import dead_letter_of
from streammon.errors import Rejected
from streammon.results import Window
from streammon.topics import ROLLUP_HEADER
from streammon.wire import SCHEMA_HEADER
from streammon_processors.rollups.task import read_window
from streammon_processors.rules.groups import REGROUPED, Grouping, GroupWindow, by_windows
from streammon_processors.shapes import Shape
from streammon_processors.windows import encode_window


class _Place(Struct, array_like=True):
    next: int | None = None
    newest_end: float = 0.0


class RegroupTask:
    """Copies one partition of `windows` to all partitions of `regrouped`."""

    waiting: Sequence[str] = ()

    def __init__(self, groupings: Iterable[Grouping], partition: int) -> None:
        self._groupings = by_windows(groupings)
        self._names = {shape.name.encode() for _, shape in self._groupings}
        self._partition = partition
        self._place = _Place()

    def process(self, topic: str, records: Sequence[Record]) -> list[Outgoing]:
        """The parts that these windows are of groups."""
        return list(chain.from_iterable(self._process_one(topic, record) for record in records))

    def snapshot(self) -> bytes:
        return msgspec.json.encode(self._place)

    def restore(self, snapshot: bytes) -> None:
        self._place = msgspec.json.decode(snapshot, type=_Place)

    def offsets(self) -> Mapping[str, int]:
        return {} if self._place.next is None else {"windows": self._place.next}

    def watermarks(self) -> Mapping[str, float]:
        """When the newest window ends that was copied."""
        return {"windows": self._place.newest_end} if self._place.newest_end else {}

    def _process_one(self, topic: str, record: Record) -> Iterator[Outgoing]:
        self._place.next = record.offset + 1
        if not any(name == ROLLUP_HEADER and value in self._names for name, value in record.headers):
            return
        try:
            window = read_window(record.value or b"")
        except Rejected as error:
            yield dead_letter_of(topic, record, error, to_partition=self._partition)
            return
        if window.part == "main":
            yield from self._parts(window)

    def _parts(self, window: Window) -> Iterator[Outgoing]:
        for grouping in self._groupings.get((window.source, Shape.of(window)), ()):
            if grouping.is_about(window.series):
                self._place.newest_end = max(self._place.newest_end, window.end_unix_s)
                group = grouping.group(window.series)
                part = GroupWindow(**asdict(window) | {"grouping": grouping.name, "series": group})
                yield Outgoing(REGROUPED, grouping.key(group), encode_window(part), (SCHEMA_HEADER,))
