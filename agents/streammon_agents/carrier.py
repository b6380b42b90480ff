"""The carrier: takes what the sources of an agent hand over, and brings it into the log, in order.

Taking and delivering are apart, with a bounded buffer between them. While the broker is away the buffer fills; beyond
``agent.buffer_batches`` the oldest batch is dropped, and its events are counted in the next one that is sent. A batch
that was sent once keeps its bytes, so one that did arrive although nobody heard of it is recognised when it is sent
again. The end of the process loses what could not be sent within `FLUSH_S`.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import NamedTuple

import msgspec

from streammon.broker import Broker, Outgoing
from streammon.errors import Backpressure, Rejected, Retryable
from streammon.events import EventType
from streammon.telemetry import DROPPED, log
from streammon_agents.packing import Batch, Packer, pause_s
from streammon_agents.source import Event

FLUSH_S = 5.0
"""How long the end of the agent may wait for the broker."""
_CHUNK = 100
"""Measurements of one append while catching up: about 300 kB."""


class _Waiting(NamedTuple):
    """Events not yet numbered, as JSON, which takes a fraction of their memory."""

    event_type: EventType
    events: bytes
    size: int
    durable: asyncio.Future[None] | None


class Loss(StrEnum):
    """Why the carrier itself gave events up."""

    OVERFLOW = "overflow"
    REFUSED = "refused"


@dataclass
class Tally:
    """What became of one source's work."""

    dropped: Counter[str] = field(default_factory=Counter)
    """Events, by reason."""
    refused: Counter[str] = field(default_factory=Counter)
    """Inputs, by reason."""
    degraded: str | None = None


class Carrier:
    """Batches are numbered when they are sent, so what is dropped leaves no gap. From then on they are not dropped,
    because they may have arrived, and are sent again as they are.
    """

    def __init__(self, broker: Broker, packer: Packer, bound: int) -> None:
        self._broker = broker
        self._packer = packer
        self._bound = bound
        self._waiting: deque[_Waiting] = deque()
        self._in_flight: list[Batch] = []
        self._changed = asyncio.Event()
        self._closed = False
        self._unreported = 0
        self._tallies: dict[str, Tally] = {}

    @property
    def waiting(self) -> int:
        """Batches not yet acknowledged."""
        return len(self._waiting) + len(self._in_flight)

    @property
    def tallies(self) -> Mapping[str, Tally]:
        """By source."""
        return self._tallies

    def outlet(self, source: str) -> CarrierOutlet:
        """The outlet of one source."""
        return CarrierOutlet(self, source, self._tallies.setdefault(source, Tally()))

    def put(self, event_type: EventType, events: Sequence[Event], durable: asyncio.Future[None] | None = None) -> None:
        if self._waiting and self.waiting >= self._bound:
            self._give_up(self._waiting.popleft())
        self._waiting.append(_Waiting(event_type, msgspec.json.encode(events), len(events), durable))
        self._changed.set()

    def _give_up(self, oldest: _Waiting) -> None:
        self.lost(oldest.size)
        DROPPED.labels("agent").inc(oldest.size)
        if oldest.durable is not None and not oldest.durable.done():
            oldest.durable.set_exception(Backpressure("the agent's buffer is full"))

    def lost(self, events: int) -> None:
        """Let the next batch report these."""
        self._unreported += events

    async def append(self, records: Sequence[Outgoing]) -> None:
        await self._broker.append(records)

    async def backlog_bytes(self) -> int:
        return await self._broker.backlog_bytes()

    def close(self) -> None:
        """Let `deliver` return once everything is delivered."""
        self._closed = True
        self._changed.set()

    async def deliver(self) -> None:
        """Append in order, for ever."""
        while self._waiting or not self._closed:
            await self._changed.wait()
            self._changed.clear()
            while self._waiting:
                taken = [self._waiting.popleft() for _ in range(min(_CHUNK, len(self._waiting)))]
                self._in_flight = [batch for each in taken for batch in self._pack(each)]
                await self._append()
                self._in_flight = []
                for each in taken:
                    if each.durable is not None and not each.durable.done():
                        each.durable.set_result(None)

    def _pack(self, waiting: _Waiting) -> list[Batch]:
        """The first batch reports what was dropped since the last."""
        events = msgspec.json.decode(waiting.events)
        batches, self._unreported = self._packer.pack(waiting.event_type, events, self._unreported)
        return batches

    async def _append(self) -> None:
        failures = 0
        while True:
            try:
                await self._broker.append([batch.outgoing for batch in self._in_flight])
            except Retryable as failure:
                if not failures:
                    log.warning("the broker is away, events are kept", error=str(failure))
                await asyncio.sleep(pause_s(failure, failures))
                failures += 1
                continue
            except Rejected as refusal:
                log.error("the broker refused events", error=str(refusal))
                for batch in self._in_flight:
                    self.lost(batch.events + batch.dropped)
                    DROPPED.labels("agent").inc(batch.events)
            if failures:
                log.info("the broker is back", batches=self.waiting)
            return


class CarrierOutlet:
    """The `streammon_agents.source.Outlet` of one source."""

    def __init__(self, carrier: Carrier, source: str, tally: Tally) -> None:
        self._carrier, self._source, self._tally = carrier, source, tally

    def put(self, event_type: EventType, events: Sequence[Event]) -> None:
        self._carrier.put(event_type, events)

    async def send(self, event_type: EventType, events: Sequence[Event]) -> None:
        durable = asyncio.get_running_loop().create_future()
        self._carrier.put(event_type, events, durable)
        await durable

    async def append(self, records: Sequence[Outgoing]) -> None:
        await self._carrier.append(records)

    async def backlog_bytes(self) -> int:
        return await self._carrier.backlog_bytes()

    def drop(self, reason: StrEnum, events: int = 1) -> None:
        self._tally.dropped[reason] += events
        self._carrier.lost(events)
        DROPPED.labels(self._source).inc(events)

    def refuse(self, reason: StrEnum, inputs: int = 1) -> None:
        self._tally.refused[reason] += inputs

    def degraded(self, why: str | None) -> None:
        if why != self._tally.degraded:
            if why is None:
                log.info("a source sees everything again", source=self._source)
            else:
                log.warning("a source does not see everything", source=self._source, why=why)
        self._tally.degraded = why
