"""Appending: an idempotent producer, and what every producer of ours needs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from aiokafka import errors as kafka_errors

from streammon.broker import ClockOffset, Outgoing
from streammon.broker.kafka.cluster import LINGER_MS, STOP_S, Cluster

LOG_APPEND_TIME = 1
REMEMBERED_S = 300.0
"""How long a good look at the broker's clock counts."""


class BrokerClock:
    """How far our clock is from the broker's, by the stamps it gives.

    A stamp was given between the beginning of an append and its end, so the quickest of the last minutes tells most,
    unless a newer one contradicts it: then a clock was set.
    """

    def __init__(self) -> None:
        self._best: tuple[ClockOffset, float] | None = None

    def saw(self, stamp: float, began: float, ended: float) -> None:
        seen = ClockOffset((began + ended) / 2 - stamp, abs(ended - began) / 2 + 0.001)  # stamps are whole milliseconds
        if self._best is None or _tells_more(seen, self._best[0]) or abs(ended - self._best[1]) > REMEMBERED_S:
            self._best = seen, ended

    @property
    def offset(self) -> ClockOffset | None:
        return self._best[0] if self._best else None


class Appender:
    """One idempotent producer, opened at the first append, and the count of bytes it has not delivered yet.

    Appends hand over in turn, which keeps their order; they wait for their acknowledgements side by side.
    aiokafka takes one batch a partition beyond those on the wire, so what waits is in the callers' hands.

    aiokafka retries an idempotent batch for ever, and when the broker refuses one, the next of that partition
    is out of sequence. Either way the producer is beyond use: it is discarded with all it holds, every append
    that waits for it fails as retryable, and the next append opens another.
    """

    def __init__(self, cluster: Cluster) -> None:
        self.backlog_bytes = 0
        self.clock = BrokerClock()
        self._cluster = cluster
        self._producer: Any = None
        self._turn = asyncio.Lock()

    async def append(self, records: Sequence[Outgoing], size: int) -> list[int]:
        self.backlog_bytes += size
        try:
            topics = self._cluster.names(record.topic for record in records)
            with self._cluster.errors("writing", needs=f"Write on topic {topics}"):
                return await self._deliver(records)
        finally:
            self.backlog_bytes -= size

    async def close(self) -> None:
        await self._give_up(self._producer)

    async def _deliver(self, records: Sequence[Outgoing]) -> list[int]:
        producer: Any = None
        began = time.time()
        sent: list[asyncio.Future[Any]] = []
        try:
            async with asyncio.timeout(self._cluster.settings.delivery_timeout_s):
                async with self._turn:
                    producer = await self._open()
                    for record in records:
                        sent.append(await send(self._cluster, producer, record))  # noqa: PERF401 - see except
                written = await asyncio.gather(*sent)
        except Exception:
            for future in sent:  # also those handed over before the one that failed
                future.cancel()
            await self._give_up(producer)
            raise
        if written and written[-1].timestamp_type == LOG_APPEND_TIME:
            self.clock.saw(written[-1].timestamp / 1000, began, time.time())
        return [each.offset for each in written]

    async def _open(self) -> Any:
        if self._producer is None:
            compression = self._cluster.settings.compression
            producer = self._cluster.producer(
                linger_ms=LINGER_MS, compression_type=None if compression == "none" else compression
            )
            await start(producer)
            self._producer = producer
        return self._producer

    async def _give_up(self, producer: Any) -> None:
        """The first to find it broken discards it; to the others it is already gone."""
        if producer is not None and producer is self._producer:
            self._producer = None
            await discard(producer)


def _tells_more(seen: ClockOffset, best: ClockOffset) -> bool:
    contradicts = abs(seen.offset_s - best.offset_s) > seen.uncertainty_s + best.uncertainty_s
    return contradicts or seen.uncertainty_s <= best.uncertainty_s


async def send(cluster: Cluster, producer: Any, record: Outgoing) -> asyncio.Future[Any]:
    """Hands the record over; the future given back ends when the record is durable."""
    future: asyncio.Future[Any] = await producer.send(
        cluster.name(record.topic),
        value=record.value,
        key=record.key,
        partition=record.partition,
        headers=list(record.headers),
    )
    return future


async def start(producer: Any) -> None:
    try:
        await producer.start()
    except AssertionError as error:  # its metadata names no broker yet: Kafka is just coming back
        await discard(producer)
        raise kafka_errors.KafkaConnectionError("Kafka answers, but names no broker yet") from error
    except BaseException:
        await discard(producer)
        raise


async def discard(producer: Any) -> None:
    """Stop without delivering what the producer holds; its own ``stop`` would try that for as long as it takes."""
    with suppress(TimeoutError):
        async with asyncio.timeout(STOP_S):
            await producer._sender.close()
    accumulator = producer._message_accumulator
    held = [batch for batches in accumulator._batches.values() for batch in batches]
    accumulator._pending_batches.update(held)  # else the end of a batch sent before stumbles over its absence
    accumulator.fail_all(kafka_errors.KafkaConnectionError("the producer was given up"))
    for batch in held:
        batch._drain_waiter.exception()  # nobody waits for it, and asyncio reports errors nobody looked at
    await producer.stop()
