"""The host agent: measures this machine on the beat, whether or not the broker is there; publishes in order.

Measuring and delivering are two tasks with a bounded buffer between them. While the broker is away the buffer
fills; beyond ``agent.buffer_batches`` measurements the oldest is dropped, and its events are counted in the next
batch that is sent. A batch that was sent once keeps its bytes, so one that did arrive although nobody heard of it is
recognised when it is sent again. The end of the process loses what could not be sent within `FLUSH_S`.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from streammon.broker import Broker
from streammon.clock import Clock, system_clock
from streammon.config import Settings
from streammon.errors import Rejected, Retryable
from streammon.events import EventType
from streammon.telemetry import DROPPED, log
from streammon_agents.host_sources import Measured, Source, sources
from streammon_agents.packing import Batch, Packer, pause_s

FLUSH_S = 5.0
"""How long the end of the agent may wait for the broker."""
_CHUNK = 100
"""Measurements of one append while catching up: about 300 kB."""


async def run_host_agent(
    broker: Broker, settings: Settings, *, stop: asyncio.Event, clock: Clock = system_clock
) -> None:
    """Measure and publish until ``stop`` is set, then flush.

    Raises:
        ConfigError: the topic ``resources`` does not exist.
    """
    host = settings.agent.host or socket.gethostname()
    probe = Probe(host, sources(host), clock)
    buffer = Buffer(settings.agent.buffer_batches, Packer(f"host@{host}"))
    stopped, delivery = asyncio.create_task(stop.wait()), asyncio.create_task(buffer.deliver(broker))
    now = asyncio.get_running_loop().time
    started = now()
    try:
        while not (stop.is_set() or delivery.done()):
            events = await asyncio.to_thread(probe.measure)  # a file system may hang
            buffer.put(events)
            pause = until_beat_s(now() - started, settings.agent.interval_s)
            await asyncio.wait({stopped, delivery}, timeout=pause, return_when=asyncio.FIRST_COMPLETED)
        buffer.close()
        await asyncio.wait_for(delivery, FLUSH_S)
    except TimeoutError:
        log.warning("the host agent ends with measurements unsent", batches=buffer.waiting)
    finally:
        stopped.cancel()
        delivery.cancel()


def until_beat_s(since_start_s: float, interval_s: float) -> float:
    """Beats lie on a grid, so nothing drifts; those that were slept through are left out."""
    return interval_s - since_start_s % interval_s


class Probe:
    """Keeps the previous reading of every source, from which rates are made."""

    def __init__(
        self,
        host: str,
        sources: Sequence[Source],
        clock: Clock = system_clock,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._host = host
        self._sources = sources
        self._clock = clock
        self._monotonic = monotonic
        self._previous: dict[str, tuple[Any, float]] = {}
        self._failing: set[str] = set()

    def measure(self) -> list[dict[str, Any]]:
        """The resource events of now. A source that fails is left out, and logged the first time."""
        now = self._clock()
        return [self._event(measured, now) for source in self._sources for measured in self._one(source)]

    def _one(self, source: Source) -> list[Measured]:
        try:
            reading, at = source.read(), self._monotonic()
            before, before_at = self._previous.get(source.name, (None, at))
            measured = list(source.measure(reading, before, at - before_at))
        except Exception as error:  # whatever it is, the other sources go on
            if source.name not in self._failing:
                self._failing.add(source.name)
                log.warning("a source of host metrics fails and is left out", name=source.name, error=repr(error))
            return []
        self._previous[source.name] = reading, at
        return measured

    def _event(self, measured: Measured, now: float) -> dict[str, Any]:
        event = {"time_unix_s": now, "host": self._host, **measured._asdict()}
        return {name: value for name, value in event.items() if value is not None}


class Buffer:
    """Measurements between the host and the broker, oldest first; beyond ``bound`` the oldest is dropped.

    Batches are numbered when they are sent, so what is dropped leaves no gap. From then on they are not dropped,
    because they may have arrived, and are sent again as they are.
    """

    def __init__(self, bound: int, packer: Packer) -> None:
        self._bound = bound
        self._packer = packer
        self._measured: deque[bytes] = deque()  # as JSON, which takes a fraction of the memory of the events
        self._in_flight: list[Batch] = []
        self._changed = asyncio.Event()
        self._closed = False
        self._dropped = 0

    @property
    def waiting(self) -> int:
        """Measurements not yet acknowledged."""
        return len(self._measured) + len(self._in_flight)

    def put(self, events: list[dict[str, Any]]) -> None:
        if self._measured and self.waiting >= self._bound:
            self._drop(len(msgspec.json.decode(self._measured.popleft())))
        self._measured.append(msgspec.json.encode(events))
        self._changed.set()

    def close(self) -> None:
        """Let `deliver` return once everything is delivered."""
        self._closed = True
        self._changed.set()

    async def deliver(self, broker: Broker) -> None:
        """Append in order, for ever."""
        while self._measured or not self._closed:
            await self._changed.wait()
            self._changed.clear()
            while self._measured:
                taken = [self._measured.popleft() for _ in range(min(_CHUNK, len(self._measured)))]
                self._in_flight = [batch for events in taken for batch in self._pack(msgspec.json.decode(events))]
                await self._append(broker)
                self._in_flight = []

    def _pack(self, events: list[dict[str, Any]]) -> list[Batch]:
        """The first batch reports what was dropped since the last."""
        batches, self._dropped = self._packer.pack(EventType.RESOURCE, events, self._dropped)
        return batches

    async def _append(self, broker: Broker) -> None:
        failures = 0
        while True:
            try:
                await broker.append([batch.outgoing for batch in self._in_flight])
            except Retryable as failure:
                if not failures:
                    log.warning("the broker is away, measurements are kept", error=str(failure))
                await asyncio.sleep(pause_s(failure, failures))
                failures += 1
                continue
            except Rejected as refusal:
                log.error("the broker refused measurements", error=str(refusal))
                for batch in self._in_flight:
                    self._drop(batch.events, batch.dropped)
            if failures:
                log.info("the broker is back", batches=self.waiting)
            return

    def _drop(self, events: int, unreported: int = 0) -> None:
        self._dropped += events + unreported
        DROPPED.labels("host").inc(events)
