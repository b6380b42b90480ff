"""Tasks that pass records on: of the log they remember nothing but how far they have come."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence

import msgspec

from streammon.broker import Outgoing, Record
from streammon.deadletter import dead_letter_of
from streammon.errors import Rejected
from streammon.tick import TICK


class CopyTask:
    """Copies what its `copies` gives, a record at a time; what that refuses becomes a dead letter."""

    waiting: Sequence[str] = ()

    def __init__(self, partition: int) -> None:
        self._partition = partition
        self._next: dict[str, int] = {}

    @abstractmethod
    def copies(self, topic: str, record: Record, value: bytes) -> Iterator[Outgoing]:
        """What to write because of a record of this topic with this value. Raises Rejected."""

    def process(self, topic: str, records: Sequence[Record]) -> list[Outgoing]:
        return [outgoing for record in records for outgoing in self._process_one(topic, record)]

    def snapshot(self) -> bytes:
        return msgspec.json.encode(self._next, order="sorted")

    def restore(self, snapshot: bytes) -> None:
        self._next = msgspec.json.decode(snapshot, type=dict[str, int])

    def offsets(self) -> Mapping[str, int]:
        return dict(self._next)

    def watermarks(self) -> Mapping[str, float]:
        return {}

    def _process_one(self, topic: str, record: Record) -> Iterator[Outgoing]:
        self._next[topic] = record.offset + 1
        if record.value is None or record.value == TICK:  # the tombstone of an alert that ended long ago
            return
        try:
            yield from self.copies(topic, record, record.value)
        except Rejected as error:
            yield dead_letter_of(topic, record, error, to_partition=self._partition)
