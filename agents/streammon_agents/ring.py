"""What waits in memory until it is numbered: bounded by events and by bytes, the oldest gives way."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import msgspec

from streammon.events import EventType
from streammon_agents.packing import Event

CHUNK_EVENTS = 1000
CHUNK_BYTES = 512 * 1024
FILLING = 0.25
"""Of the limits: beyond that it is not a moment's wait any more."""


@dataclass(frozen=True)
class Limits:
    """How much the ring holds; a single item more than that is taken when it is empty."""

    events: int = 100_000
    bytes: int = 16 * 1024**2


class Waiting(NamedTuple):
    """Events that one source handed over at once, as JSON, which takes a fraction of their memory."""

    number: int
    source: str
    event_type: EventType
    events: bytes
    size: int
    durable: asyncio.Future[None] | None


class Chunk(NamedTuple):
    """Events of one type to be packed together: those that somebody waits for, or those that nobody does."""

    event_type: EventType
    items: list[Waiting]

    @property
    def events(self) -> list[dict[str, Any]]:
        return [event for item in self.items for event in msgspec.json.decode(item.events)]

    @property
    def bytes(self) -> int:
        return sum(len(item.events) for item in self.items)

    @property
    def awaited(self) -> bool:
        return self.items[0].durable is not None

    def settle(self, failure: BaseException | None = None) -> None:
        """Tell those who wait."""
        for item in self.items:
            if item.durable is not None and not item.durable.done():
                item.durable.set_result(None) if failure is None else item.durable.set_exception(failure)


def _cut(events: Sequence[Event]) -> Iterator[Sequence[Event]]:
    for start in range(0, len(events), CHUNK_EVENTS):
        yield events[start : start + CHUNK_EVENTS]


class Ring:
    """First in, first out among events of one type; those of different types do not wait for each other."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._queues: dict[tuple[EventType, bool], deque[Waiting]] = {}
        self._next = 0
        self.events = self.bytes = 0

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    def has_room(self, events: int, size: int) -> bool:
        limits = self._limits
        return not self.events or (self.events + events <= limits.events and self.bytes + size <= limits.bytes)

    @property
    def is_filling(self) -> bool:
        """Whether more comes than goes."""
        return self.events > self._limits.events * FILLING or self.bytes > self._limits.bytes * FILLING

    def put(
        self, source: str, event_type: EventType, events: Sequence[Event], durable: asyncio.Future[None] | None = None
    ) -> list[Waiting]:
        """Add events; gives what had to give way for them.

        Many that nobody waits for are cut up, so that the event loop is not held up by them later. Raises what
        `msgspec.json.encode` raises, and takes nothing then.
        """
        parts = [events] if durable is not None else list(_cut(events))
        encoded = [msgspec.json.encode(part) for part in parts]
        given_up = []
        while not self.has_room(len(events), sum(map(len, encoded))):
            given_up.append(self._pop(self._oldest()))
        for part, data in zip(parts, encoded, strict=True):
            self._next += 1
            self._push(Waiting(self._next, source, event_type, data, len(part), durable))
        return given_up

    def take(self) -> Chunk:
        """The oldest events, and others of the same kind; the ring must not be empty."""
        queue = self._oldest()
        items = [self._pop(queue)]
        events, size = items[0].size, len(items[0].events)
        while queue and events + queue[0].size <= CHUNK_EVENTS and size + len(queue[0].events) <= CHUNK_BYTES:
            items.append(self._pop(queue))
            events += items[-1].size
            size += len(items[-1].events)
        return Chunk(items[0].event_type, items)

    def _push(self, item: Waiting) -> None:
        self._queues.setdefault((item.event_type, item.durable is not None), deque()).append(item)
        self.events += item.size
        self.bytes += len(item.events)

    def _pop(self, queue: deque[Waiting]) -> Waiting:
        item = queue.popleft()
        self.events -= item.size
        self.bytes -= len(item.events)
        return item

    def _oldest(self) -> deque[Waiting]:
        return min(filter(None, self._queues.values()), key=lambda queue: queue[0].number)
