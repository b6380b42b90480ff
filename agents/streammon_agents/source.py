"""Sources: what an agent observes, each one module behind the same two methods.

::

    check() ──► findings: what it will and will not see here, and why      (`streammon agent --check`)
    run(out) ─► events, through its outlet, until it is cancelled          (`streammon agent`)

Whatever is asked for what it knows at certain times (a host, containers, GPUs) is a list of *probes*, and `Polled`
makes a source of them. Whatever is told something (gateways, files that grow) writes `run` by itself.

``tests/contracts/test_source.py`` is what every source has to keep: it publishes valid events only, survives
whatever it observes, says by `Outlet.degraded` when it cannot see, and stops at once when it is cancelled.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from enum import StrEnum
from typing import Any, NamedTuple, Protocol

from streammon.broker import Outgoing
from streammon.clock import Clock, system_clock
from streammon.events import EventType
from streammon.telemetry import log

Event = Mapping[str, Any]
"""An event as an object, without ``schema``, ``type`` and identity."""


class Finding(NamedTuple):
    """One thing that a source will see here, or will not.

    ``detail`` says what was found or why not, ``fix`` what a person could do about it, if anything.
    """

    what: str
    seen: bool
    detail: str = ""
    fix: str | None = None


class Outlet(Protocol):
    """How a source hands over what it has; each has its own, so that losses and states are told by source.

    For one thread only, that of the event loop.
    """

    def put(self, event_type: EventType, events: Sequence[Event]) -> None:
        """Hand over events that nobody waits for. Never waits, never raises: what has no room is dropped, counted."""
        ...

    async def send(self, event_type: EventType, events: Sequence[Event]) -> None:
        """Hand over events; returns once they are durable, in the log or in the spool.

        Raises:
            Backpressure: there is no room; nothing was taken.
            Retryable: they may be durable, or not.
        """
        ...

    async def append(self, records: Sequence[Outgoing]) -> None:
        """The same for records that their senders have made, and perhaps numbered: they stay as they are.

        Raises also `Rejected`: a record that the log will never take.
        """
        ...

    async def backlog_bytes(self) -> int:
        """Bytes given to `append` and not yet durable: what back-pressure on senders is judged by."""
        ...

    def drop(self, reason: StrEnum, events: int = 1) -> None:
        """Count events that were lost on the way; the next batch reports them, and windows count them as dropped."""
        ...

    def refuse(self, reason: StrEnum, inputs: int = 1) -> None:
        """Count inputs that could not be understood: nobody knows how many events they were."""
        ...

    def degraded(self, why: str | None) -> None:
        """Say that part of what is to be observed is not seen now, and why; None: all is well (again)."""
        ...


class Source(Protocol):
    """One thing that is observed."""

    @property
    def name(self) -> str: ...

    def check(self) -> Iterable[Finding]:
        """What it will see here, and what not. Changes nothing, is done within seconds, and does not raise."""
        ...

    async def run(self, out: Outlet) -> None:
        """Observe and publish until cancelled. Raises ConfigError where a person has to change something first."""
        ...


# --- what is asked, on the beat ---------------------------------------------------------------------------


class Measured(NamedTuple):
    """What one thing measured: the fields of a `streammon.events.Resource`."""

    entity: str
    id: str
    metrics: dict[str, float]
    labels: dict[str, str] | None = None
    counters: dict[str, float] | None = None


class Probe(NamedTuple):
    """``read`` does the I/O; ``measure(now, before, elapsed_s)`` is pure, ``before`` None the first time."""

    name: str
    read: Callable[[], Any]
    measure: Callable[[Any, Any, float], Iterable[Measured]]


class Beat:
    """Keeps the previous reading of every probe, from which rates are made."""

    def __init__(
        self,
        host: str,
        probes: Sequence[Probe],
        clock: Clock = system_clock,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._host = host
        self._probes = probes
        self._clock = clock
        self._monotonic = monotonic
        self._previous: dict[str, tuple[Any, float]] = {}
        self.failing: dict[str, str] = {}
        """Why, by probe, the last reading failed."""

    def measure(self) -> list[dict[str, Any]]:
        """The resource events of now. A probe that fails is left out, and logged the first time."""
        now = self._clock()
        return [self._event(measured, now) for probe in self._probes for measured in self._one(probe)]

    def _one(self, probe: Probe) -> list[Measured]:
        try:
            reading, at = probe.read(), self._monotonic()
            before, before_at = self._previous.get(probe.name, (None, at))
            measured = list(probe.measure(reading, before, at - before_at))
        except Exception as error:  # whatever it is, the other probes go on
            if probe.name not in self.failing:
                log.warning("a probe fails and is left out", name=probe.name, error=repr(error))
            self.failing[probe.name] = repr(error)
            return []
        self.failing.pop(probe.name, None)
        self._previous[probe.name] = reading, at
        return measured

    def _event(self, measured: Measured, now: float) -> dict[str, Any]:
        event = {"time_unix_s": now, "host": self._host, **measured._asdict()}
        return {name: value for name, value in event.items() if value is not None}


class Polled:
    """A source made of probes, all read on one beat in a thread of their own (a file system may hang)."""

    def __init__(
        self,
        name: str,
        host: str,
        probes: Sequence[Probe],
        *,
        interval_s: float,
        check: Callable[[], Iterable[Finding]] = tuple,
        clock: Clock = system_clock,
    ) -> None:
        self._name, self._interval_s, self._check = name, interval_s, check
        self._beat = Beat(host, probes, clock)

    @property
    def name(self) -> str:
        return self._name

    def check(self) -> Iterable[Finding]:
        return self._check()

    async def run(self, out: Outlet) -> None:
        now = asyncio.get_running_loop().time
        started = now()
        while True:
            events = await asyncio.to_thread(self._beat.measure)
            if events:
                out.put(EventType.RESOURCE, events)
            out.degraded("; ".join(f"{name}: {why}" for name, why in self._beat.failing.items()) or None)
            await asyncio.sleep(until_beat_s(now() - started, self._interval_s))


def until_beat_s(since_start_s: float, interval_s: float) -> float:
    """Beats lie on a grid, so nothing drifts; those that were slept through are left out."""
    return interval_s - since_start_s % interval_s


async def ended(task: asyncio.Task[Any]) -> None:
    """Cancel a task and wait for its end, whatever that is."""
    task.cancel()
    with suppress(asyncio.CancelledError, Exception):
        await task
