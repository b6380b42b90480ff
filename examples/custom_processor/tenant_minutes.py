"""How many requests each tenant made in each minute: a processor of one's own, in one file.

A minute is published when event time is `LATENESS_S` past its end, as one record for each tenant, on the topic
``tenant-minutes``. Requests that come later are published with the next minute, in a further record of their own minute
and tenant: counts add. Batches that are sent again are counted once. The senders' clocks are trusted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import msgspec
from msgspec import Struct

from streammon import wire
from streammon.broker import Outgoing, Record
from streammon.config import Settings
from streammon.deadletter import dead_letter_of
from streammon.errors import Rejected
from streammon.events import EventType
from streammon.tick import TICK
from streammon_processors.dedupe import Dedupe, Stream
from streammon_processors.task import Output, Processor, time_field

TOPIC = "tenant-minutes"
MINUTE_S = 60.0
LATENESS_S = 5.0


class TenantMinute(Struct, tag_field="type", tag="tenant_minute"):
    """What is published: requests of one tenant in the minute that begins at ``start_unix_s``."""

    tenant: str
    start_unix_s: float
    count: int


class Memory(Struct):
    """All that the task knows. It is small, so a snapshot simply holds all of it."""

    next_offset: int | None = None
    newest_unix_s: float | None = None
    broker_ms: int = 0
    counts: list[TenantMinute] = []
    streams: list[Stream] = []


class TenantMinutes:
    """A `streammon_processors.task.Task`: no clock, no I/O, and nothing that depends on how records are cut."""

    def __init__(self, partition: int) -> None:
        self._partition = partition
        self._next_offset: int | None = None
        self._newest: float | None = None
        self._broker_ms = 0
        self._counts: Counter[tuple[int, str]] = Counter()
        self._dedupe = Dedupe()

    def process(self, topic: str, records: Sequence[Record]) -> list[Outgoing]:
        return [output for record in records for output in self._take(topic, record)]

    def _take(self, topic: str, record: Record) -> Iterator[Outgoing]:
        """Every decision is made record by record."""
        self._next_offset = record.offset + 1
        closed_before = self._closed_before
        if record.value == TICK:
            self._let_pass(record.timestamp - self._broker_ms)
        else:
            try:
                self._count(record)
            except Rejected as error:
                yield dead_letter_of(topic, record, error, to_partition=self._partition)
        self._broker_ms = record.timestamp
        if self._closed_before != closed_before or record.value == TICK:
            yield from self._publish()

    def _count(self, record: Record) -> None:
        for batch in wire.decode(EventType.INFERENCE, record.value or b""):
            if batch.identity and self._dedupe.judge(batch.identity, record.timestamp).duplicate:
                continue
            refused = {fault.row for fault in batch.rows.faults()}
            for row in set(range(len(batch.rows))) - refused:
                event = batch.rows.event(row)
                time = event["time_unix_s"]
                self._counts[int(time // MINUTE_S), event.get("tenant", "")] += 1
                self._newest = time if self._newest is None else max(self._newest, time)

    def _let_pass(self, ms: int) -> None:
        """In an idle partition event time follows the broker's clock, as the tick records tell."""
        if self._newest is not None:
            self._newest += max(0, ms) / 1000

    @property
    def _closed_before(self) -> int:
        """The number of the first minute that is still open."""
        return 0 if self._newest is None else int((self._newest - LATENESS_S) // MINUTE_S)

    def _publish(self) -> Iterator[Outgoing]:
        for minute, tenant in sorted(due for due in self._counts if due[0] < self._closed_before):
            result = TenantMinute(tenant, minute * MINUTE_S, self._counts.pop((minute, tenant)))
            yield Outgoing(TOPIC, tenant.encode(), msgspec.json.encode(result), (), self._partition)

    # --- memory -------------------------------------------------------------------------------------------------

    def snapshot(self) -> bytes:
        counts = [TenantMinute(tenant, minute * MINUTE_S, n) for (minute, tenant), n in sorted(self._counts.items())]
        memory = Memory(self._next_offset, self._newest, self._broker_ms, counts, self._dedupe.streams())
        return msgspec.json.encode(memory)

    def restore(self, snapshot: bytes) -> None:
        memory = msgspec.json.decode(snapshot, type=Memory)
        self._next_offset, self._newest, self._broker_ms = memory.next_offset, memory.newest_unix_s, memory.broker_ms
        self._counts = Counter({(int(c.start_unix_s // MINUTE_S), c.tenant): c.count for c in memory.counts})
        self._dedupe = Dedupe(memory.streams)

    def offsets(self) -> Mapping[str, int]:
        """Nothing is read twice: what was read is in the snapshot."""
        return {} if self._next_offset is None else {"inference": self._next_offset}

    @property
    def waiting(self) -> Sequence[str]:
        return ["inference"] if self._counts else []

    def watermarks(self) -> Mapping[str, float]:
        return {} if self._newest is None else {"inference": self._newest - LATENESS_S}


def tenant_minutes_processor(settings: Settings) -> Processor:
    """What the entry point names."""
    outputs = (Output(TOPIC, time_field("start_unix_s")),)
    return Processor("tenant-minutes", ("inference",), TenantMinutes, outputs)
