"""An outlet for tests of sources: it keeps what it is given, and takes valid events only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from enum import StrEnum
from typing import Any

from streammon.broker import Outgoing
from streammon.errors import StreammonError
from streammon.events import EventType
from streammon.wire import Density, decode, encode
from streammon_agents.source import Event


class Kept:
    """A `streammon_agents.source.Outlet`. ``failure``: what `send` and `append` raise."""

    def __init__(self, failure: StreammonError | None = None) -> None:
        self.failure = failure
        self.backlog = 0
        self.events: list[tuple[EventType, dict[str, Any]]] = []
        """In the order they came, as a reader of the log has them."""
        self.records: list[Outgoing] = []
        """What came by `append`."""
        self.dropped: Counter[StrEnum] = Counter()
        self.refused: Counter[StrEnum] = Counter()
        self.states: list[str | None] = []
        """What was said by `degraded`, repetitions left out."""

    def put(self, event_type: EventType, events: Sequence[Event]) -> None:
        [value] = encode(event_type, events, Density.PACKED)
        [batch] = decode(event_type, value)
        assert not batch.rows.faults(), "a source sends valid events only"
        assert len(batch.rows) == len(events) > 0
        self.events += [(event_type, batch.rows.event(row)) for row in range(len(batch.rows))]

    async def send(self, event_type: EventType, events: Sequence[Event]) -> None:
        if self.failure is not None:
            raise self.failure
        self.put(event_type, events)

    async def append(self, records: Sequence[Outgoing]) -> None:
        if self.failure is not None:
            raise self.failure
        self.records += records

    async def backlog_bytes(self) -> int:
        return self.backlog

    def drop(self, reason: StrEnum, events: int = 1) -> None:
        self.dropped[reason] += events

    def refuse(self, reason: StrEnum, inputs: int = 1) -> None:
        self.refused[reason] += inputs

    def degraded(self, why: str | None) -> None:
        if not self.states or self.states[-1] != why:
            self.states.append(why)

    def of(self, event_type: EventType) -> list[dict[str, Any]]:
        """The events of one type."""
        return [event for kind, event in self.events if kind is event_type]
