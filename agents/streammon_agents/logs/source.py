"""The source ``logs``: files that grow, and what containers say, as `log` events.

::

    files ──► Assembly (lines, frames, traces) ──► event ──► rate limit ──► redaction ──► records ──┐
      ▲  Reader, in a thread of its own                                                             │
      └────── Positions: how far, and what is on its way, in one transaction ──► Outlet.append ◄────┘

What it promises:

* While it lives, every line comes once, through rotation by renaming and by copying. After a kill -9, too, for whoever
  counts by the numbers of batches: what was on its way is handed over again as it was (see `positions`).
* It reads no further than it gets rid of: while there is no room, the files are the buffer. Nothing is dropped but what
  the rate limit drops of category ``app``, and that is counted, by service.
* Nothing leaves `Reader` that was not redacted, and no text of a line is ever logged by the agent itself.
* It never blocks the event loop, and whatever lies among the files (FIFOs, binaries, lines without an end) is counted
  and passed by.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import count
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

from prometheus_client import Counter

from streammon.clock import Clock, system_clock
from streammon.config import LogInput, Settings
from streammon.errors import Rejected, Retryable
from streammon.events import EventType
from streammon.file_lock import FileLock
from streammon.heartbeat import host_name
from streammon.telemetry import log
from streammon_agents.logs.positions import Positions, Sending
from streammon_agents.logs.reader import Collected, Loss, Reader, looked_at
from streammon_agents.logs.redaction import redactor_of, unusable
from streammon_agents.logs.tail import Skipped, shown
from streammon_agents.packing import Packer, pause_s
from streammon_agents.source import Finding, Outlet

T = TypeVar("T")

LOCK_S: Final = 0.1
"""How often a data directory that somebody else reads for is asked for."""
PATIENCE: Final = 10
"""After so many times it is no former life of ours that is about to end."""
FORGETFUL: Final = "after a restart files are read again, because their positions cannot be written"
KEEP: Final = "let data_dir be a directory that the agent may write to, and that outlives it"
TOLD: Final = 5
"""Files that cannot be read are named up to this number."""

LIMITED = Counter("streammon_logs_rate_limited_lines", "Log lines dropped by the rate limit", ["service"])


class Undelivered(NamedTuple):
    """Records that are on their way, and events that cannot become one."""

    sending: Sequence[Sending]
    lost: int


class LogSource:
    """A `streammon_agents.source.Source`."""

    name = "logs"

    def __init__(self, settings: Settings, clock: Clock = system_clock) -> None:
        self._settings = settings.agent.logs
        self._directory = settings.data_dir / "logs"
        self._agent = f"agent@{host_name(settings)}"
        self._clock = clock
        self._forgetful: str | None = None
        """Why positions cannot be kept."""

    def check(self) -> Iterable[Finding]:
        """Which files each input has, and which of them cannot be read."""
        kept = () if _is_writable(self._directory) else [Finding("positions of log files", False, FORGETFUL, KEEP)]
        found = (finding for each in looked_at(self._settings) for finding in _findings(*each))
        return [*unusable(self._settings.redaction), *found, *kept]

    async def run(self, out: Outlet) -> None:
        redact = redactor_of(self._settings.redaction)
        with _Thread() as thread:
            positions = await self._positions(out, thread)
            reader = await thread(lambda: Reader(self._settings, positions, redact, clock=self._clock))
            thread.at_end(reader.close)
            await self._follow(out, thread, positions, reader)

    async def _positions(self, out: Outlet, thread: _Thread) -> Positions:
        """What was remembered. Where nothing can be written, it is as long as the process lives."""
        self._forgetful = None
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            thread.at_end((await self._locked(out)).release)
            positions = await thread(lambda: open_positions(self._directory / "positions.sqlite"))
        except (OSError, sqlite3.OperationalError) as error:
            self._forgetful = f"{FORGETFUL}: {self._directory}: {getattr(error, 'strerror', None) or error}"
            positions = Positions(None)
        thread.at_end(positions.close)
        return positions

    async def _follow(self, out: Outlet, thread: _Thread, positions: Positions, reader: Reader) -> None:
        """Read, remember, hand over; for ever."""
        packer = Packer(self._agent)
        await self._send(out, await thread(positions.outbox))
        await thread(positions.sent)
        while True:
            collected = await thread(reader.collect)
            undelivered = await thread(partial(self._prepare, positions, packer, collected))
            _account(out, collected, undelivered)
            await self._send(out, undelivered.sending)
            if undelivered.sending:
                await thread(positions.sent)
            out.degraded("; ".join(filter(None, [self._forgetful, _named(reader.skipped)])) or None)
            if not collected.more:
                await asyncio.sleep(self._settings.poll_s)

    def _prepare(self, positions: Positions, packer: Packer, collected: Collected) -> Undelivered:
        """Number what was read, and remember it and how far that is, both or neither."""
        batches, lost = packer.pack(EventType.LOG, collected.events)
        sending = [Sending(batch.key, batch.value, batch.events) for batch in batches]
        if sending or collected.files or collected.inputs:
            positions.commit(collected.files, sending, self._clock(), collected.inputs)
        return Undelivered(sending, lost)

    async def _send(self, out: Outlet, sending: Sequence[Sending]) -> None:
        """Hand over until they are taken. They keep their numbers, so one that comes twice is recognised."""
        attempt = 0
        while sending:
            try:
                await out.append([each.outgoing for each in sending])
            except Retryable as failure:
                out.degraded(f"events wait in their files: {failure}")
                await asyncio.sleep(pause_s(failure, attempt))
                attempt += 1
            except Rejected as refusal:
                return await self._refused(out, sending, refusal)
            else:
                return None
        return None

    async def _refused(self, out: Outlet, sending: Sequence[Sending], refusal: Rejected) -> None:
        """One of them will never be taken: the others are."""
        if len(sending) > 1:
            for each in sending:
                await self._send(out, [each])
        else:
            log.error("the log refused events of log files", reason=refusal.reason)
            out.drop(refusal.reason, sending[0].events)

    async def _locked(self, out: Outlet) -> FileLock:
        """Two processes that read for one directory would say everything twice."""
        lock = FileLock(self._directory / "lock")
        for tries in count():
            if lock.take():
                break
            if tries >= PATIENCE:
                out.degraded(f"another process reads log files for {self._directory}")
            await asyncio.sleep(LOCK_S)
        return lock


def open_positions(path: Path) -> Positions:
    """What is remembered; a file that is no database any more is put aside, and everything is read again."""
    try:
        return Positions(path)
    except sqlite3.DatabaseError as error:
        if isinstance(error, sqlite3.OperationalError):
            raise
        log.error("the remembered positions of log files are broken; files are read again", error=str(error))
        path.replace(path.with_suffix(".broken"))
        return Positions(path)


class _Thread:
    """One thread, in which everything about files happens, in order. What was begun is ended in it, too."""

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="logs")
        self._at_end: list[Callable[[], None]] = []

    def at_end(self, act: Callable[[], None]) -> None:
        self._at_end.append(act)

    async def __call__(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._executor, work)

    def __enter__(self) -> _Thread:
        return self

    def __exit__(self, *_: object) -> None:
        for act in reversed(self._at_end):  # behind whatever is still being read
            self._executor.submit(act)
        self._executor.shutdown(wait=False)


def _account(out: Outlet, collected: Collected, undelivered: Undelivered) -> None:
    for reason, inputs in collected.refused.items():
        out.refuse(reason, inputs)
    if collected.failed:
        out.drop(Loss.FAILED, collected.failed)
    for service, lines in collected.dropped.items():
        out.drop(Loss.RATE_LIMIT, lines)
        LIMITED.labels(service).inc(lines)
    if undelivered.lost:
        out.drop(Loss.UNSENDABLE, undelivered.lost)


def _is_writable(directory: Path) -> bool:
    """Whether it is, or could be made, a directory to write in."""
    there = next(each for each in (directory, *directory.parents) if each.exists())
    return there.is_dir() and os.access(there, os.W_OK)


def _named(skipped: dict[str, Skipped]) -> str:
    told = [f"{shown(path)}: {why.detail}" for path, why in list(skipped.items())[:TOLD]]
    return "; ".join([*told, *([f"and {len(skipped) - TOLD} more"] if len(skipped) > TOLD else [])])


def _findings(each: LogInput, files: int, refused: dict[str, Skipped]) -> Iterator[Finding]:
    what = f"log files {', '.join(each.paths)}"
    if files or not refused:
        yield Finding(
            what, files > 0, f"{files} files" if files else "no file matches", None if files else "look at its paths"
        )
    if refused:
        yield Finding(
            what,
            False,
            f"{len(refused)} cannot be read: {_named(refused)}",
            "exclude them, or permit the agent to read",
        )
