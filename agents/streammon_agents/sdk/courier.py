"""The courier: takes events from any thread in a fraction of a microsecond, and carries them off in its own.

::

    put ──► ring (capacity) ──► packed batches (capacity) ──► transport
            full: the newest                 full: the ring fills
            is dropped, counted

It promises the caller's thread that `put` takes no lock, never waits and never raises. It promises the
other end that the batches of a record key come in order and without gaps in their numbers, apart from
batches it refused, and that every loss is counted and reported with the next batch.

The newest events are dropped, not the oldest, because what is numbered may have arrived already. It cannot
keep anything beyond the end of the process: what `close` could not send by its deadline is lost, and
logged.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple

from streammon.errors import ConfigError, Rejected, Retryable
from streammon.events import EventType
from streammon_agents.packing import Batch, Packer, pause_s
from streammon_agents.sdk.fields import admit
from streammon_agents.sdk.metrics import Metrics, Sample
from streammon_agents.sdk.transport import Transport

log = logging.getLogger("streammon.sdk")


@dataclass(frozen=True)
class Limits:
    """How much waits, and for how long."""

    capacity: int = 10_000
    """Events in the ring, and as many again in batches not yet sent."""
    flush_events: int = 1000
    """Events of one batch at most; as many waiting are sent at once."""
    flush_interval_s: float = 0.2
    """Fewer are sent this often."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise ConfigError(f"{name} is {value}, expected more than 0")


class Stats(NamedTuple):
    """What became of the events, as of the last flush: all of them are sent, dropped or waiting."""

    sent: int
    dropped: int
    waiting: int
    bad_fields: int


class Tally:
    """A count that any thread, signal handler or destructor may raise: one call into C, and no lock."""

    def __init__(self) -> None:
        self._steps = itertools.count()
        self._reads = 0

    def add(self) -> None:
        next(self._steps)

    def total(self) -> int:
        """For one thread only."""
        self._reads += 1
        return next(self._steps) - self._reads + 1


class Courier:
    """The ring, the batches and the thread of one process. A fork needs a new one.

    The thread starts with the first event, so that a process which only forks workers has none.
    """

    def __init__(
        self,
        agent: str,
        constant: Mapping[EventType, Mapping[str, Any]],
        connect: Callable[[], Transport],
        limits: Limits,
    ) -> None:
        self._constant = constant
        self._transport = connect()
        self._limits = limits
        self._capacity = limits.capacity
        self._ring: deque[tuple[EventType, dict[str, Any] | Sample]] = deque()
        self._overflow = Tally()
        self._wake: SimpleQueue[None] = SimpleQueue()  # reentrant, unlike threading.Event
        self._starting = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closing = self._given_up = False
        # From here on, what the thread alone changes.
        self._metrics = Metrics()
        self._packer = Packer(agent)
        self._outbox: deque[Batch] = deque()
        self._unsent = self._sent = self._dropped = self._unreported = self._overflowed = 0
        self._bad_fields = self._failures = 0
        self._retry_at = 0.0
        self._said: set[str] = set()

    @property
    def stats(self) -> Stats:
        """What became of the events so far."""
        return Stats(self._sent, self._dropped, len(self._ring) + self._unsent, self._bad_fields)

    def put(self, event_type: EventType, fields: dict[str, Any] | Sample) -> None:
        """Take an event, or a sample of a metric; what is in it is read later, and must not be changed any more."""
        if len(self._ring) >= self._capacity:
            self._overflow.add()
            return
        self._ring.append((event_type, fields))
        if len(self._ring) % self._limits.flush_events == 0:
            self._wake.put(None)
        if self._thread is None:
            self._start()

    def close(self, timeout_s: float) -> None:
        """Send what waits, for at most ``timeout_s`` seconds; later events are dropped."""
        self._capacity = 0
        self._closing = True
        self._wake.put(None)
        if self._thread is not None:
            self._thread.join(timeout_s)
        self._given_up = True
        if waiting := self.stats.waiting:
            log.warning("%d events were not sent within the %g s that close() may take", waiting, timeout_s)

    def _start(self) -> None:
        if not self._starting.acquire(blocking=False):
            return  # another thread is at it
        thread = threading.Thread(target=self._run, name="streammon", daemon=True)
        try:
            thread.start()
            self._thread = thread  # for good, and so the lock is kept
        except RuntimeError as error:  # out of threads, or the interpreter is ending
            self._say(f"no thread for sending events: {error}")
            self._starting.release()

    # --- in the thread ------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._finished():
            self._wait()
            self._step(self._pack)
            self._step(self._deliver)
        self._count_overflow()
        self._step(self._transport.close)

    def _finished(self) -> bool:
        waiting = self._ring or self._outbox or self._metrics
        return self._given_up or (self._closing and not waiting)

    def _wait(self) -> None:
        with suppress(Empty):
            self._wake.get(timeout=self._limits.flush_interval_s)

    def _step(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception:  # the thread must outlive any mistake of ours
            log.exception("sending events to streammon failed unexpectedly")

    def _count_overflow(self) -> None:
        overflowed = self._overflow.total()
        self._drop(overflowed - self._overflowed)
        self._overflowed = overflowed

    def _pack(self) -> None:
        self._count_overflow()
        while self._ring and self._unsent < self._limits.capacity:
            count = min(len(self._ring), self._limits.flush_events)
            taken = [self._ring.popleft() for _ in range(count)]
            for event_type, events in self._admitted(taken).items():
                self._enqueue(event_type, events)
        if self._unsent < self._limits.capacity:
            self._pack_metrics()

    def _pack_metrics(self) -> None:
        constant = self._constant[EventType.RESOURCE]
        events = self._metrics.take(time.time(), all_=self._closing)
        if events:
            present = [{name: value for name, value in event.items() if value is not None} for event in events]
            self._enqueue(EventType.RESOURCE, [{**constant, **event} for event in present])

    def _admitted(
        self, taken: Iterable[tuple[EventType, dict[str, Any] | Sample]]
    ) -> dict[EventType, list[dict[str, Any]]]:
        admitted: dict[EventType, list[dict[str, Any]]] = {}
        for event_type, fields in taken:
            if isinstance(fields, Sample):
                if not self._metrics.add(fields):
                    self._drop(1)
                    self._say(f"metrics that are no numbers are dropped, such as {fields.name!r}")
                continue
            event, refused = admit(event_type, {**self._constant[event_type], **fields})
            self._bad_fields += len(refused)
            for name in refused:
                self._say(f"the field {name!r} of {event_type} events cannot be sent, it is left out")
            if event is None:
                self._drop(1)
                self._say(f"{event_type} events without a valid required field are dropped")
            else:
                admitted.setdefault(event_type, []).append(event)
        return admitted

    def _enqueue(self, event_type: EventType, events: list[dict[str, Any]]) -> None:
        batches, self._unreported = self._packer.pack(event_type, events, self._unreported)
        packed = sum(batch.events for batch in batches)
        self._dropped += len(events) - packed
        self._unsent += packed
        self._outbox.extend(batches)

    def _deliver(self) -> None:
        while self._outbox and not self._given_up and time.monotonic() >= self._retry_at:
            batch = self._outbox[0]
            try:
                self._transport.send(batch)
            except Rejected as refusal:
                self._drop(batch.events, batch.dropped)
                self._say(f"{batch.event_type} events were refused, and are dropped: {refusal.detail}")
            except Retryable as failure:
                return self._back_off(failure)
            except Exception as error:
                return self._back_off(Retryable(repr(error)))
            else:
                self._sent += batch.events
                self._recovered()
            self._outbox.popleft()
            self._unsent -= batch.events
        return None

    def _drop(self, events: int, reported_in_vain: int = 0) -> None:
        self._dropped += events
        self._unreported += events + reported_in_vain

    def _back_off(self, failure: Retryable) -> None:
        if not self._failures:
            log.warning("events cannot be sent, %d are kept and tried again: %s", self._unsent, failure)
        self._retry_at = time.monotonic() + pause_s(failure, self._failures)
        self._failures += 1

    def _recovered(self) -> None:
        if self._failures:
            log.warning("events are being sent again")
        self._failures = 0

    def _say(self, message: str) -> None:
        """Log a message the first time only; after 100 different ones, none."""
        if message not in self._said and len(self._said) < 100:
            self._said.add(message)
            log.warning(message)
