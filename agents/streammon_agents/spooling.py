"""The spool beside the event loop: one thread that does its I/O, and what happens when it cannot be used.

A disk that is full, or hangs, or belongs to another process never stops the agent: `Spooling` says that it is not
`usable`, and tries again every `RETRY_S`. Many who wait for their records to be durable share one fsync.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from streammon.errors import Backpressure, Retryable, StreammonError
from streammon.events import EventType
from streammon.telemetry import log
from streammon_agents.packing import Event
from streammon_agents.spool import Entry, Spool, Status

RETRY_S = 5.0
_EMPTY = Status(0, 0, 0, None, 0, 0)

T = TypeVar("T")


class Spooling:
    """For one event loop. Its methods raise `Backpressure` (full) and `Retryable` (not usable now)."""

    def __init__(self, open_spool: Callable[[], Spool]) -> None:
        self._open = open_spool
        self._spool: Spool | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="spool")
        self._waiting: list[tuple[Sequence[Entry], asyncio.Future[None]]] = []
        self._commit: asyncio.Task[None] | None = None
        self._retry_at = 0.0
        self.failure: str | None = None
        self.status = _EMPTY
        self.filled = asyncio.Event()
        """Set while something may wait in it."""

    @property
    def usable(self) -> bool:
        """Whether it is worth trying."""
        return self.failure is None or asyncio.get_running_loop().time() >= self._retry_at

    async def start(self) -> None:
        """Open it; one that cannot be opened is tried again later."""
        try:
            await self._do(lambda _: None)
        except Retryable:
            return

    async def put(self, event_type: EventType, events: Sequence[Event], size: int, dropped: int, *, kept: bool) -> int:
        """See `Spool.put`; durable on return if ``kept``."""

        def put(spool: Spool) -> int:
            unreported = spool.put(event_type, events, size, dropped, kept=kept)
            if kept:
                spool.sync()
            return unreported

        return await self._do(put)

    async def hold(self, batches: Sequence[Entry], *, synced: bool = True) -> None:
        """Keep batches that may have arrived, under the numbers that they have; durable on return if ``synced``."""

        def hold(spool: Spool) -> None:
            spool.keep(batches, within_share=False)
            if synced:
                spool.sync()

        await self._do(hold)

    async def keep(self, records: Sequence[Entry]) -> None:
        """Keep records, together with those of all others who wait now; durable on return."""
        done = asyncio.get_running_loop().create_future()
        self._waiting.append((records, done))
        if self._commit is None or self._commit.done():
            self._commit = asyncio.create_task(self._keep_all())
        await done

    async def _keep_all(self) -> None:
        while self._waiting:
            taken, self._waiting = self._waiting, []
            try:
                outcomes = await self._do(lambda spool, taken=taken: _keep_each(spool, [each for each, _ in taken]))  # type: ignore[misc]  # mypy infers no default of a lambda
            except StreammonError as failure:
                outcomes = [failure] * len(taken)
            for (_, done), outcome in zip(taken, outcomes, strict=True):
                if not done.done():
                    done.set_result(None) if outcome is None else done.set_exception(outcome)

    async def report(self, topic: str, key: bytes, dropped: int) -> None:
        await self._do(lambda spool: spool.report(topic, key, dropped))

    async def take(self, max_bytes: int) -> list[Entry]:
        return await self._do(lambda spool: spool.take(max_bytes))

    async def done(self) -> None:
        await self._do(lambda spool: spool.done())

    async def close(self) -> None:
        """Everything written is durable on return."""
        if self._spool is not None:
            await asyncio.get_running_loop().run_in_executor(self._thread, self._spool.close)
        self._thread.shutdown(wait=False)

    async def _do(self, work: Callable[[Spool], T]) -> T:
        try:
            result = await asyncio.get_running_loop().run_in_executor(self._thread, self._work, work)
        except OSError as error:
            raise self._failed(error) from error
        if self.failure is not None:
            log.info("the spool can be used again")
            self.failure = None
        if self.status.segments:
            self.filled.set()
        else:
            self.filled.clear()
        return result

    def _work(self, work: Callable[[Spool], T]) -> T:
        """In the thread."""
        if self._spool is None:
            self._spool = self._open()
        try:
            return work(self._spool)
        finally:
            self.status = self._spool.status

    def _failed(self, error: OSError) -> Retryable:
        self._retry_at = asyncio.get_running_loop().time() + RETRY_S
        if self.failure is None:
            log.error(
                "the spool cannot be used: until it can, only memory holds what the log does not take", error=str(error)
            )
        self.failure = str(error)
        return Retryable(f"the spool cannot be used: {error}")


def _keep_each(spool: Spool, all_records: Sequence[Sequence[Entry]]) -> list[StreammonError | None]:
    """What became of each."""
    outcomes = [_keep(spool, records) for records in all_records]
    spool.sync()
    return outcomes


def _keep(spool: Spool, records: Sequence[Entry]) -> StreammonError | None:
    try:
        spool.keep(records)
    except Backpressure as full:
        return full
    return None
