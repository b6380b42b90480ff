"""The carrier: takes what the sources of an agent hand over, and brings it into the log.

::

    put, send ─► ring ─┬─ the log answers ──────────────► numbered, appended
                       └─ it is away ─► numbered ─► spool ─► appended once it is back, beside what is new
    append ────────────┬────────────────────────────────► appended as it is
                       └─ it is away ─► spool, fsync ─►

* **Live first.** While the log answers, and as fast as events come, nothing touches the disk. What waits in the spool
  is sent beside what is new, which it never has to wait for: the backlog takes at most `BACKLOG_SHARE` of the time,
  and waits while something new waits, though not for more than `PATIENCE_S` at once.
* **Numbered once.** An append whose answer did not come may have arrived. Its batches keep their bytes and their
  numbers wherever they go from there: tried again from memory, or through the spool and a restart of the agent. What
  was not yet tried is numbered when it is written to the spool, under a boot id of its segment's own (docs/adr/0035).
* **Every loss is counted and reported**: what has to give way in the ring, by the next batch; what has to give way in
  the spool, by a batch in its place.
* **Without a spool** (the embedded log is on the same disk), or while it cannot be used, the ring is all there is:
  batches in flight are tried again as they are, and beyond the ring's bound the oldest events are dropped, before
  they are numbered."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, Protocol

import msgspec
from prometheus_client import Counter as Metric
from prometheus_client import Gauge

from streammon.broker import Outgoing
from streammon.clock import Clock, system_clock
from streammon.errors import Backpressure, ConfigError, Rejected, Retryable, StreammonError
from streammon.events import EventType
from streammon.telemetry import DROPPED, log
from streammon.topics import TOPIC_OF
from streammon.wire import claimed_events
from streammon_agents.packing import BACKOFF, Batch, Packer, pause_s
from streammon_agents.ring import Chunk, Limits, Ring, Waiting
from streammon_agents.source import Event
from streammon_agents.spool import Entry
from streammon_agents.spooling import Spooling

FLUSH_S = 2.0
"""How long the end of the agent may wait for the log; as long again for the disk."""
BACKLOG_BYTES: Final = 256 * 1024
"""Of one append from the spool."""
BACKLOG_SHARE: Final = 0.5
"""Of the time, what the backlog may take."""
PATIENCE_S: Final = 1.0
"""How long the backlog waits for a moment without anything new."""

DROPPED_BY = Metric(
    "streammon_agent_dropped_events", "Events lost on the node, by source and reason", ["source", "reason"]
)
REFUSED_BY = Metric("streammon_agent_refused_inputs", "Inputs nobody could understand, by source", ["source", "reason"])
DEGRADED = Gauge("streammon_agent_degraded", "1 while a source does not see everything", ["source"])
RING_EVENTS = Gauge("streammon_agent_ring_events", "Events in memory, not yet numbered")
RING_BYTES = Gauge("streammon_agent_ring_bytes", "Bytes of them")
SPOOL_BYTES = Gauge("streammon_agent_spool_bytes", "Bytes on disk that the log does not have yet, about")
SPOOL_RECORDS = Gauge("streammon_agent_spool_records", "Records on disk that the log does not have yet")
SPOOL_DAMAGED = Gauge(
    "streammon_agent_spool_damaged_bytes", "Bytes of the spool that could not be read, since the start"
)
SPOOL_USABLE = Gauge("streammon_agent_spool_usable", "0 while the spool cannot be written or read, or there is none")
BACKLOG_AGE = Gauge("streammon_agent_backlog_age_seconds", "Since the oldest batch in the spool was written, about")
REACHED = Gauge("streammon_agent_log_reached", "1 while the log, or the gateway before it, takes what is sent")

LONGEST_DETAIL: Final = 1000
OURS: Final = "carrier"
"""The carrier itself, as the source of losses."""


class Loss(StrEnum):
    """Why the carrier itself gave events up."""

    OVERFLOW = "overflow"  # the ring was full, and the log and the spool took nothing
    SPOOL_FULL = "spool_full"
    REFUSED = "refused"
    UNENCODABLE = "unencodable"
    UNSENT = "unsent"  # at the end, and there is no spool


class Barred(Retryable):
    """The log is there, and takes nothing for this topic until a person changes something."""


class Uplink(Protocol):
    """Where everything goes: a `streammon.broker.Broker`, or a gateway."""

    async def append(self, records: Sequence[Outgoing]) -> object:
        """Append durably, in order. Raises `Rejected`, `Retryable`, `ConfigError`."""
        ...


@dataclass
class Tally:
    """What became of one source's work."""

    dropped: Counter[str] = field(default_factory=Counter)
    """Events, by reason."""
    refused: Counter[str] = field(default_factory=Counter)
    """Inputs, by reason."""
    degraded: str | None = None


class Carrier:
    """``spooling`` None: memory is all there is. `run` does the work, `finish` ends it."""

    def __init__(
        self,
        uplink: Uplink,
        packer: Packer,
        limits: Limits | None = None,
        spooling: Spooling | None = None,
        clock: Clock = system_clock,
    ) -> None:
        self._uplink = uplink
        self._packer = packer
        self._ring = Ring(limits or Limits())
        self._spooling = spooling
        self._clock = clock
        self._in_flight: list[Batch] = []
        self._carried = 0
        self._appending: asyncio.Future[object] | None = None
        self._changed = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._closed = False
        self._hurry = asyncio.Event()
        self._ever_reached = False
        self._unreported = 0
        self._last: Batch | None = None
        self._spool_dropped = 0
        self._tallies: dict[str, Tally] = {}
        self._barred: dict[str, str] = {}
        self.away: str | None = None
        """Why the log cannot be reached; None while it can, as far as we know."""
        self.backlog_bytes = 0
        """Given to `append`, and not yet durable."""

    @property
    def waiting(self) -> int:
        """What is in memory only: hand-overs, and batches not yet acknowledged."""
        return len(self._ring) + max(self._carried, len(self._in_flight))

    @property
    def waiting_for(self) -> str | None:
        """What has to be there before anything can arrive; None once something has."""
        return None if self._ever_reached else "the broker"

    @property
    def tallies(self) -> Mapping[str, Tally]:
        """By source."""
        return self._tallies

    def outlet(self, source: str) -> CarrierOutlet:
        """The outlet of one source."""
        return CarrierOutlet(self, source, self._tally(source))

    def _tally(self, source: str) -> Tally:
        return self._tallies.setdefault(source, Tally())

    # --- what sources hand over ---------------------------------------------------------------------------

    def put(self, source: str, event_type: EventType, events: Sequence[Event]) -> None:
        if events:
            self._into_ring(source, event_type, events)

    async def send(self, source: str, event_type: EventType, events: Sequence[Event]) -> None:
        if not events:
            return
        if not self._ring.has_room(len(events), 0):
            raise Backpressure("the agent's memory is full of what neither the log nor the spool takes")
        durable = asyncio.get_running_loop().create_future()
        self._into_ring(source, event_type, events, durable)
        await durable

    def _into_ring(
        self,
        source: str,
        event_type: EventType,
        events: Sequence[Event],
        durable: asyncio.Future[None] | None = None,
    ) -> None:
        try:
            given_up = self._ring.put(source, event_type, events, durable)
        except (TypeError, ValueError, RecursionError):
            given_up = self._ring.put(source, event_type, self._encodable(source, events), durable)
        for oldest in given_up:
            self._give_up(oldest)
        self._idle.clear()
        self._changed.set()

    def _encodable(self, source: str, events: Sequence[Event]) -> list[Event]:
        """Those that can be written as JSON; the others are dropped."""
        good = [event for event in events if _is_encodable(event)]
        log.error("events that are no JSON are dropped", source=source, events=len(events) - len(good))
        self.drop(source, Loss.UNENCODABLE, len(events) - len(good))
        return good

    async def append(self, records: Sequence[Outgoing]) -> None:
        size = sum(len(record.value or b"") for record in records)
        self.backlog_bytes += size
        try:
            await self._append_as_it_is(records)
        finally:
            self.backlog_bytes -= size

    async def _append_as_it_is(self, records: Sequence[Outgoing]) -> None:
        if self.away is None or not self._can_spool():
            try:
                await self._uplink.append(records)
            except ConfigError as wrong:
                raise self._may_pass(wrong) from wrong
            except Retryable as failure:
                self._lost_touch(failure)
                if not self._can_spool():
                    raise
            else:
                return self._in_touch({record.topic for record in records})
        assert self._spooling is not None
        await self._spooling.keep([Entry.of(record) for record in records])
        self._observe()
        return None

    def _give_up(self, oldest: Waiting) -> None:
        """Whoever waits is told, and comes again: nothing is lost then."""
        if oldest.durable is None:
            self.drop(oldest.source, Loss.OVERFLOW, oldest.size)
        Chunk(oldest.event_type, [oldest]).settle(Backpressure("the agent's memory is full"))

    def drop(self, source: str, reason: StrEnum, events: int, *, reported: bool = False) -> None:
        """Count events as lost; the next batch reports them, unless they are ``reported`` otherwise."""
        if not events:
            return
        self._tally(source).dropped[reason] += events
        DROPPED.labels(source).inc(events)
        DROPPED_BY.labels(source, reason).inc(events)
        if not reported:
            self._unreported += events

    # --- into the log -------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Carry everything, until `finish`; raises ConfigError if the log has never taken anything and never will."""
        working = {asyncio.create_task(self._deliver())}
        if self._spooling is not None:
            working.add(asyncio.create_task(self._catch_up(self._spooling)))
        try:
            ended, _ = await asyncio.wait(working, return_when=asyncio.FIRST_COMPLETED)
            for task in ended:
                task.result()
        finally:
            for task in working:
                task.cancel()
            await asyncio.wait(working)

    async def finish(self, delivery: asyncio.Task[None]) -> None:
        """Let `run`, of which ``delivery`` is the task, end: what the log does not take soon goes to the spool."""
        self._closed = True
        self._changed.set()
        await asyncio.wait({delivery}, timeout=FLUSH_S)
        if not delivery.done():
            self._hurry.set()
            if self._appending is not None:
                self._appending.cancel()
            await asyncio.wait({delivery}, timeout=FLUSH_S)
        if self._spooling is not None:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._leave_in(self._spooling), FLUSH_S)

    async def _leave_in(self, spooling: Spooling) -> None:
        """What an error has left in memory, and losses that no batch reports."""
        if self._in_flight:
            await self._held(self._in_flight)
        while self._ring and await self._into_spool(self._ring.take()):
            pass
        if self._unreported and self._last is not None:
            with suppress(Retryable):
                await spooling.report(TOPIC_OF[self._last.event_type], self._last.key, self._unreported)
        await spooling.close()

    async def _deliver(self) -> None:
        """In the order of events of one type."""
        while self._ring or not self._closed:
            await self._changed.wait()
            self._changed.clear()
            while self._ring:
                chunk = self._ring.take()
                self._carried = len(chunk.items)
                await self._carry(chunk)
                self._carried = 0
                self._observe()
            self._idle.set()
            if self._closed:
                return

    async def _carry(self, chunk: Chunk) -> None:
        if (self.away is not None or self._ring.is_filling) and self._can_spool() and await self._into_spool(chunk):
            return
        await self._into_log(self._pack(chunk), awaited=chunk.awaited)
        chunk.settle()

    def _can_spool(self) -> bool:
        return self._spooling is not None and self._spooling.usable

    async def _into_spool(self, chunk: Chunk) -> bool:
        assert self._spooling is not None
        reporting, self._unreported = self._unreported, 0
        try:
            reporting = await self._spooling.put(
                chunk.event_type, chunk.events, chunk.bytes, reporting, kept=chunk.awaited
            )
        except Backpressure as full:
            chunk.settle(full)
            return chunk.awaited
        except Retryable:
            return False
        finally:
            self._unreported += reporting
        chunk.settle()
        return True

    def _pack(self, chunk: Chunk) -> list[Batch]:
        """The first batch reports what was dropped since the last."""
        events = chunk.events
        batches, self._unreported = self._packer.pack(chunk.event_type, events, self._unreported)
        lost = len(events) - sum(batch.events for batch in batches)
        self._last = batches[-1] if batches else self._last
        self.drop(OURS, Loss.UNENCODABLE, lost, reported=True)  # the packer has added them to what is not reported
        return batches

    async def _into_log(self, batches: list[Batch], *, awaited: bool) -> None:
        """Until they are there, or in the spool; durable on return if ``awaited``."""
        self._in_flight = batches
        failures = 0
        while self._in_flight and not await self._try(failures, awaited=awaited):
            failures += 1
        self._in_flight = []

    async def _try(self, failures: int, *, awaited: bool) -> bool:
        topics = {batch.outgoing.topic for batch in self._in_flight}
        try:
            await self._append([batch.outgoing for batch in self._in_flight])
        except Retryable as failure:
            if isinstance(failure, Barred):
                self._bar(topics, failure)
            else:
                self._lost_touch(failure)
            if await self._held(self._in_flight, synced=awaited):
                return True
            if self._hurry.is_set():
                self._leave_unsent()
                return True
            await self._pause(pause_s(failure, failures))
            return False
        except Rejected as refusal:
            await self._one_by_one(refusal, awaited=awaited)
            return not self._in_flight
        self._in_touch(topics)
        return True

    async def _append(self, records: Sequence[Outgoing]) -> None:
        if self._hurry.is_set():
            raise Retryable("the agent ends")
        self._appending = asyncio.ensure_future(self._uplink.append(records))
        try:
            await self._appending
        except asyncio.CancelledError:
            if self._hurry.is_set():
                raise Retryable("the agent ends") from None
            raise
        except ConfigError as wrong:
            raise self._may_pass(wrong) from wrong
        finally:
            self._appending = None

    def _may_pass(self, wrong: ConfigError) -> StreammonError:
        """What worked before may work again, once a person has put it right; what never did ends the start."""
        return Barred(str(wrong)) if self._ever_reached else wrong

    async def _held(self, batches: Sequence[Batch], *, synced: bool = False) -> bool:
        """Whether they are in the spool now, as they are."""
        if not self._can_spool():
            return False
        assert self._spooling is not None
        try:
            entries = [Entry.of(batch.outgoing, batch.events + batch.dropped) for batch in batches]
            await self._spooling.hold(entries, synced=synced)
        except Retryable:
            return False
        return True

    async def _one_by_one(self, refusal: Rejected, *, awaited: bool) -> None:
        """One record that is refused must not take others along."""
        if len(self._in_flight) == 1:
            [batch] = self._in_flight
            log.error("the log refused events", error=str(refusal))
            self._unreported += batch.dropped
            self.drop(OURS, Loss.REFUSED, batch.events)
            self._in_flight = []
            return
        batches, self._in_flight = self._in_flight, []
        for batch in batches:
            await self._into_log([batch], awaited=awaited)

    def _leave_unsent(self) -> None:
        for batch in self._in_flight:
            self.drop(OURS, Loss.UNSENT, batch.events)
        log.warning("the agent ends with events unsent", batches=self.waiting)

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._hurry.wait(), seconds)

    # --- the backlog --------------------------------------------------------------------------------------

    async def _catch_up(self, spooling: Spooling) -> None:
        """Send what is in the spool, oldest first; while the log is away, this is what tries it.

        To take over a large spool takes seconds; what is new does not wait for that.
        """
        await spooling.start()
        self._observe()
        failures = 0
        now = asyncio.get_running_loop().time
        while True:
            await spooling.filled.wait()
            try:
                entries = await spooling.take(BACKLOG_BYTES)
                if not entries:
                    self._not_away()  # nothing is left to try it with but what is new
                    continue
                await self._let_pass()
                started = now()
                barred = await self._append_backlog(entries)
                await self._put_aside(spooling, barred)
                await spooling.done()
                failures = failures + 1 if len(barred) == len(entries) else 0
                pause = BACKOFF.pause_s(failures - 1) if failures else (now() - started) * (1 / BACKLOG_SHARE - 1)
            except Retryable as failure:
                self._lost_touch(failure)
                pause = pause_s(failure, failures)
                failures += 1
            self._observe()
            await asyncio.sleep(pause)

    async def _let_pass(self) -> None:
        if self.away is None:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._idle.wait(), PATIENCE_S)

    async def _append_backlog(self, entries: Sequence[Entry]) -> list[Entry]:
        """Gives those whose topics the log does not take now."""
        topics = {entry.topic for entry in entries}
        try:
            await self._uplink.append([entry.outgoing for entry in entries])
        except Rejected as refusal:
            if len(entries) > 1:
                return [barred for entry in entries for barred in await self._append_backlog([entry])]
            log.error("the log refused a record of the spool", topic=entries[0].topic, error=str(refusal))
            self.drop(OURS, Loss.REFUSED, _events_in(entries[0]))
        except ConfigError as wrong:
            if len(topics) > 1:
                apart = [[entry for entry in entries if entry.topic == topic] for topic in sorted(topics)]
                return [barred for alike in apart for barred in await self._append_backlog(alike)]
            self._bar(topics, wrong)
            return list(entries)
        self._in_touch(topics)
        return []

    async def _put_aside(self, spooling: Spooling, barred: list[Entry]) -> None:
        """To the end of the spool, so that what goes to other topics does not wait for a person."""
        if not barred:
            return
        try:
            await spooling.hold(barred)
        except Backpressure:
            lost = sum(map(_events_in, barred))
            log.error("the spool is full of what the log does not take: given up", events=lost, topic=barred[0].topic)
            self.drop(OURS, Loss.REFUSED, lost)

    # --- what is known of the log and the spool -----------------------------------------------------------

    def _lost_touch(self, failure: Retryable) -> None:
        if self.away is None:
            log.warning("the broker is away, events are kept", error=str(failure), spool=self._can_spool())
        self.away = str(failure)
        REACHED.set(0)

    def _in_touch(self, topics: set[str]) -> None:
        self._not_away()
        self._ever_reached = True
        if topics & self._barred.keys():
            for topic in topics:
                self._barred.pop(topic, None)
            self._tell_barred()

    def _not_away(self) -> None:
        if self.away is not None:
            log.info("the broker is back", batches=self.waiting)
        self.away = None
        REACHED.set(1)

    def _bar(self, topics: set[str], why: StreammonError) -> None:
        """The log is there, and takes nothing for these topics."""
        self._not_away()
        self._barred |= dict.fromkeys(topics, str(why))
        self._tell_barred()

    def _tell_barred(self) -> None:
        self.outlet(OURS).degraded("; ".join(f"{topic}: {why}" for topic, why in self._barred.items()) or None)

    def _observe(self) -> None:
        RING_EVENTS.set(self._ring.events)
        RING_BYTES.set(self._ring.bytes)
        if self._spooling is None:
            return
        status = self._spooling.status
        SPOOL_USABLE.set(self._spooling.failure is None)
        SPOOL_BYTES.set(status.bytes)
        SPOOL_RECORDS.set(status.records)
        SPOOL_DAMAGED.set(status.damaged_bytes)
        BACKLOG_AGE.set(self.backlog_age_s)
        self.drop(OURS, Loss.SPOOL_FULL, status.dropped - self._spool_dropped, reported=True)
        self._spool_dropped = status.dropped

    @property
    def spool_bytes(self) -> int:
        """On disk, not yet in the log."""
        return 0 if self._spooling is None else self._spooling.status.bytes

    @property
    def spooled_records(self) -> int:
        """In the spool."""
        return 0 if self._spooling is None else self._spooling.status.records

    @property
    def backlog_age_s(self) -> float:
        """Since the oldest batch in the spool was written, about."""
        oldest = self._spooling.status.oldest_unix_s if self._spooling is not None else None
        return 0.0 if oldest is None else max(0.0, self._clock() - oldest)

    def details(self) -> dict[str, str]:
        """What heartbeats say: of the log and the spool, of sources that do not see everything, and of losses."""
        degraded = "; ".join(f"{name}: {each.degraded}" for name, each in self._tallies.items() if each.degraded)
        said = {
            "log": "reached" if self.away is None else f"away: {self.away}",
            "spool": self._said_of_spool(),
            "degraded": degraded,
            "dropped": _listed({name: each.dropped for name, each in self._tallies.items()}),
            "refused": _listed({name: each.refused for name, each in self._tallies.items()}),
        }
        return {name: text[:LONGEST_DETAIL] for name, text in said.items() if text}

    def _said_of_spool(self) -> str:
        if self._spooling is None:
            return "none"
        if self._spooling.failure is not None:
            return f"cannot be used: {self._spooling.failure}"
        status = self._spooling.status
        if not status.records:
            return "empty"
        return f"{status.records} records, {status.bytes} bytes, {self.backlog_age_s:.0f} s old"


def _is_encodable(event: Event) -> bool:
    try:
        msgspec.json.encode(event)
    except (TypeError, ValueError, RecursionError):
        return False
    return True


def _events_in(entry: Entry) -> int:
    """Those that are lost with it; of what senders have made it is known only by looking."""
    return entry.events or claimed_events(entry.value)


def _listed(counts: Mapping[str, Counter[str]]) -> str:
    return " ".join(f"{name}.{reason}={count}" for name, each in counts.items() for reason, count in each.items())


class CarrierOutlet:
    """The `streammon_agents.source.Outlet` of one source."""

    def __init__(self, carrier: Carrier, source: str, tally: Tally) -> None:
        self._carrier, self._source, self._tally = carrier, source, tally

    def put(self, event_type: EventType, events: Sequence[Event]) -> None:
        self._carrier.put(self._source, event_type, events)

    async def send(self, event_type: EventType, events: Sequence[Event]) -> None:
        await self._carrier.send(self._source, event_type, events)

    async def append(self, records: Sequence[Outgoing]) -> None:
        await self._carrier.append(records)

    async def backlog_bytes(self) -> int:
        return self._carrier.backlog_bytes

    def drop(self, reason: StrEnum, events: int = 1) -> None:
        self._carrier.drop(self._source, reason, events)

    def refuse(self, reason: StrEnum, inputs: int = 1) -> None:
        self._tally.refused[reason] += inputs
        REFUSED_BY.labels(self._source, reason).inc(inputs)

    def degraded(self, why: str | None) -> None:
        if why == self._tally.degraded:
            return
        if why is None:
            log.info("a source sees everything again", source=self._source)
        else:
            log.warning("a source does not see everything", source=self._source, why=why)
        DEGRADED.labels(self._source).set(why is not None)
        self._tally.degraded = why
