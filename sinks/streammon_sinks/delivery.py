"""Delivery: from result topics to a destination, at least once and in order.

Every sink shares this loop, and differs only in its `Sink.write`::

    poll a batch → write it → dead letters for what was refused → commit the offsets

What it promises:

* An offset is committed only after the destination has acknowledged, or refused, every record below it. A
  crash at any moment repeats records and loses none; as ids derive from the record, repeating has no effect.
* A destination that is away or busy is tried again for ever, with growing, jittered pauses. Meanwhile the
  partitions are paused and polling goes on: the group keeps its member, and memory stays at one batch.
* A refused record goes to the dead letter topic with the destination's reason; its neighbours are kept.
* After ``stop`` it ends within seconds: a write in flight gets ``grace_s``, a pause between two tries none.
  What was not acknowledged is not committed.

What it cannot do: exactly once. A partition that moves to another member during a write is written by both.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple, Protocol, TypeVar

from prometheus_client import Counter

from streammon.backoff import Backoff
from streammon.broker import Broker, Member, Outgoing, Polled, Record, TopicPartition
from streammon.deadletter import dead_letter
from streammon.errors import Backpressure, Reason, Retryable
from streammon.telemetry import CONSUMER_LAG, log

DELIVERED = Counter("streammon_sink_delivered_records", "Records a destination acknowledged", ["group"])
REFUSED = Counter("streammon_sink_refused_records", "Records sent to the dead letter topic", ["group", "reason"])
RETRIES = Counter("streammon_sink_retries", "Writes that failed and were tried again", ["group"])

BATCH_RECORDS = 2000
PATIENCE_S = 0.5
"""A write that takes longer than this is waited for with the partitions paused."""
POLL_S = 0.2
COMMIT_S = 3.0
"""How long a commit may take, so that neither a rebalance nor the end waits for a broker that is gone."""
GRACE_S = 5.0
PATIENT = Backoff()

T = TypeVar("T")


class Item(NamedTuple):
    """A record, and where it was read."""

    where: TopicPartition
    record: Record


class Refused(NamedTuple):
    """An item that its destination will never take, and why, in the destination's words."""

    item: Item
    error: str
    reason: Reason = Reason.REFUSED


class PartlyWritten(Retryable):
    """A write of which only ``left`` must be tried again; what it refused so far is in ``refused``."""

    def __init__(self, message: str, left: Sequence[Item], refused: Sequence[Refused]) -> None:
        super().__init__(message)
        self.left, self.refused = left, refused


class Sink(Protocol):
    """A destination of results."""

    async def write(self, records: Sequence[Item]) -> list[Refused]:
        """Write records, which are in offset order within each partition; those that were refused.

        Returns only when the destination has made the others durable. Writing one again must change nothing.
        Raises `Retryable` (nothing, or nobody knows what, was written), `PartlyWritten`, or `Fatal`.
        """
        ...

    async def close(self) -> None:
        """Release what is held. Closing twice is allowed."""
        ...


async def deliver(
    broker: Broker,
    group: str,
    topics: Sequence[str],
    sink: Sink,
    *,
    stop: asyncio.Event,
    backoff: Backoff = PATIENT,
    grace_s: float = GRACE_S,
) -> None:
    """Deliver ``topics`` to ``sink`` as one member of ``group`` until ``stop`` is set; closes the sink.

    Raises `Fatal` as the sink or the broker does, and `ConfigError` if a topic does not exist.
    """
    try:
        await _Delivery(broker, group, sink, stop=stop, backoff=backoff, grace_s=grace_s).run(topics)
    finally:
        await sink.close()


class _Stopped(Exception):  # noqa: N818 - not a failure
    """``stop`` came while waiting to try again."""


class _Delivery:
    """One membership: the partitions that are ours, what is in flight, what is to be committed."""

    def __init__(
        self,
        broker: Broker,
        group: str,
        sink: Sink,
        *,
        stop: asyncio.Event,
        backoff: Backoff,
        grace_s: float,
    ) -> None:
        self._broker, self._group, self._sink = broker, group, sink
        self._stop, self._backoff, self._grace_s = stop, backoff, grace_s
        self._member: Member
        self._assigned: set[TopicPartition] = set()
        self._holding = False
        self._in_flight: dict[TopicPartition, int] = {}
        self._acknowledged: dict[TopicPartition, int] = {}

    async def run(self, topics: Sequence[str]) -> None:
        self._member = await self._broker.member(
            self._group, topics, on_assign=self._on_assign, on_revoke=self._on_revoke
        )
        try:
            while not self._stop.is_set():
                polled = await self._poll(BATCH_RECORDS)
                if batch := [Item(where, record) for where, records in polled.items() for record in records]:
                    await self._deliver(batch)
                await self._commit()
                await self._report_lag()
        finally:
            await self._member.close()
            self._forget(self._assigned)

    async def _poll(self, max_records: int) -> Polled:
        """A log that cannot be read just now has nothing new."""
        try:
            return await self._member.poll(POLL_S, max_records)
        except Retryable as error:
            log.warning("nothing can be read, will try again", group=self._group, problem=str(error))
            await asyncio.sleep(POLL_S)
            return {}

    # ------------------------------------------------------------------ partitions come and go

    async def _on_assign(self, partitions: Sequence[TopicPartition]) -> None:
        self._assigned.update(partitions)
        if self._holding:
            self._pause()

    async def _on_revoke(self, partitions: Sequence[TopicPartition]) -> None:
        """Give them up with what is in flight: the next owner starts at the committed offset."""
        for partition in partitions:
            self._in_flight.pop(partition, None)
            self._acknowledged.pop(partition, None)
        self._forget(partitions)
        self._assigned.difference_update(partitions)

    def _forget(self, partitions: Sequence[TopicPartition] | set[TopicPartition]) -> None:
        for topic, partition in partitions:
            CONSUMER_LAG.remove(self._group, topic, partition)

    def _pause(self) -> None:
        for partition in self._assigned:
            self._member.pause(partition)

    # ------------------------------------------------------------------ one batch

    async def _deliver(self, batch: Sequence[Item]) -> None:
        self._in_flight = {item.where: item.record.offset + 1 for item in batch}
        writing = asyncio.create_task(self._settle(batch))
        try:
            await self._keep_membership_during(writing)
            await writing
        except _Stopped:
            self._in_flight.clear()
        finally:
            writing.cancel()
            await asyncio.gather(writing, return_exceptions=True)
        self._acknowledged |= self._in_flight
        self._in_flight = {}

    async def _settle(self, batch: Sequence[Item]) -> None:
        """Until every record is written, or in the dead letter topic."""
        refused = await self._write(batch)
        DELIVERED.labels(self._group).inc(len(batch) - len(refused))
        if mine := [each for each in refused if each.item.where in self._in_flight]:
            await self._until_done(lambda: self._bury(mine))

    async def _write(self, batch: Sequence[Item]) -> list[Refused]:
        left, refused = batch, list[Refused]()

        async def attempt() -> None:
            nonlocal left
            try:
                refused.extend(await self._sink.write(left))
            except PartlyWritten as error:
                refused.extend(error.refused)
                left = error.left
                raise

        await self._until_done(attempt)
        return refused

    async def _bury(self, refused: Sequence[Refused]) -> None:
        await self._broker.append([_dead_letter(each) for each in refused])
        for each in refused:
            REFUSED.labels(self._group, each.reason).inc()
        log.warning("records refused", group=self._group, count=len(refused), first=refused[0].error)

    async def _until_done(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """Try until it succeeds, and leave nothing behind that has not.

        A client's exception and the frame that keeps it are a reference cycle, on which hang the megabytes of the
        request. Garbage is collected seldom in our programs: an outage of minutes would cost the memory of all tries.
        """
        for pause_s in self._backoff.pauses():
            try:
                return await attempt()
            except Retryable as error:
                RETRIES.labels(self._group).inc()
                gc.collect()
                asked_s = error.retry_after_s if isinstance(error, Backpressure) else 0.0
                await self._pause_after(error, max(pause_s, asked_s))
        raise AssertionError("pauses never end")

    async def _pause_after(self, error: Retryable, pause_s: float) -> None:
        log.warning("will try again", group=self._group, problem=str(error), pause_s=round(pause_s, 2))
        try:
            await asyncio.wait_for(self._stop.wait(), pause_s)
        except TimeoutError:
            return
        raise _Stopped

    async def _keep_membership_during(self, writing: asyncio.Task[None]) -> None:
        """Poll paused partitions until the write is done; after ``stop``, give it ``grace_s`` and no more."""
        await asyncio.wait({writing}, timeout=PATIENCE_S)
        if writing.done():
            return
        self._holding = True
        self._pause()
        while not writing.done() and not self._stop.is_set():
            await self._poll_nothing()
        if self._stop.is_set():
            await self._end_within_grace(writing)
        self._holding = False
        for partition in self._assigned:
            self._member.resume(partition)

    async def _poll_nothing(self) -> None:
        """A record that slips through all the same is put back, not kept: memory stays at one batch."""
        for where, records in (await self._poll(1)).items():
            self._member.seek(where, records[0].offset)

    async def _end_within_grace(self, writing: asyncio.Task[None]) -> None:
        done, _ = await asyncio.wait({writing}, timeout=self._grace_s)
        if not done:
            log.warning("a write was abandoned; it will be repeated", group=self._group)
            raise _Stopped

    # ------------------------------------------------------------------ bookkeeping

    async def _commit(self) -> None:
        """A commit that fails is made up for by the next: only a crash in between repeats records."""
        if not self._acknowledged:
            return
        try:
            async with asyncio.timeout(COMMIT_S):
                await self._member.commit(dict(self._acknowledged))
        except (Retryable, TimeoutError) as error:
            log.warning("offsets not committed yet", group=self._group, problem=str(error) or "no answer")
        else:
            self._acknowledged.clear()

    async def _report_lag(self) -> None:
        for (topic, partition), records in (await self._member.lag()).items():
            CONSUMER_LAG.labels(self._group, topic, partition).set(records)


def _dead_letter(refused: Refused) -> Outgoing:
    (topic, partition), record = refused.item
    return dead_letter(
        refused.reason,
        refused.error,
        topic=topic,
        value=record.value,
        partition=partition,
        offset=record.offset,
        to_partition=partition,
    )
