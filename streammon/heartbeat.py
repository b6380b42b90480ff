"""Heartbeats: every long-running role says every few seconds on the topic ``heartbeats`` that it is there.

The topic is compacted and its key is the component, so that its end is a list of who is there. It has one partition,
because whoever judges by it has to see everybody, and is stamped by the broker, so that one clock judges all.

What `beating` promises:

* It never blocks or ends the role beside which it runs. While the broker is away heartbeats are lost, not queued: the
  next one says the same.
* An end in order says ``stopping``. An end by an error says nothing, nor does kill -9: both are silence.
* A component has the same id after a restart: its role, host and data directory, and a number that tells those alike
  apart, the first that is free on this machine. Where no file can be locked, the number is that of the process, which
  in a container is always the same.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from hashlib import blake2b
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta, Struct

from streammon import __version__
from streammon.broker import Broker, Outgoing
from streammon.clock import Clock, system_clock
from streammon.config import Settings
from streammon.errors import Retryable, StreammonError
from streammon.events import SCHEMA, _schema
from streammon.file_lock import FileLock
from streammon.telemetry import log
from streammon.topics import HEARTBEATS
from streammon.wire import SCHEMA_HEADER

PATIENCE: Final = 3
"""Who says nothing for this many intervals is silent."""
LAST_WORDS_S: Final = 2.0
"""How long the end of a role may wait for the broker to hear of it."""
MOST_ALIKE: Final = 1000
"""Components of one role and data directory on one machine that are told apart."""

State = Literal["starting", "running", "stopping"]
WaitingFor = Callable[[], str | None]
Details = Mapping[str, str] | Callable[[], Mapping[str, str]]
"""What a role adds to its heartbeats; a function is asked anew for each."""
Name = Annotated[str, Meta(min_length=1, max_length=500)]


class Heartbeat(Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="type", tag="heartbeat"):
    """What a component says of itself. ``time_unix_s`` is its own clock; silence is judged by the broker's."""

    schema: int = msgspec.field(default_factory=_schema)
    id: Name
    role: Name
    host: Name
    version: str
    started_unix_s: float
    time_unix_s: float
    state: State
    interval_s: Annotated[float, Meta(gt=0)]
    """When the next one comes."""
    details: dict[str, str] = {}
    """``waiting_for``, and what the role adds."""

    def outgoing(self) -> Outgoing:
        return Outgoing(HEARTBEATS, self.id.encode(), msgspec.json.encode(self), (SCHEMA_HEADER,))


def decode_heartbeat(value: bytes) -> Heartbeat:
    """Raises msgspec.DecodeError; an unknown schema is one, too."""
    heartbeat = _DECODER.decode(value)
    if heartbeat.schema != SCHEMA:
        raise msgspec.ValidationError(f"schema is {heartbeat.schema}; this version reads {SCHEMA}")
    return heartbeat


_DECODER = msgspec.json.Decoder(Heartbeat)


def host_name(settings: Settings) -> str:
    """The name of this machine, as its metrics have it."""
    return settings.agent.host or socket.gethostname()


@asynccontextmanager
async def beating(
    broker: Broker,
    settings: Settings,
    role: str,
    waiting_for: WaitingFor = lambda: None,
    *,
    details: Details | None = None,
    every_s: float | None = None,
    clock: Clock = system_clock,
) -> AsyncIterator[str]:
    """Publish heartbeats until the block ends; yields the id of this component.

    ``every_s``: to come more often than they promise, for whom heartbeats are a clock.
    """
    with _identity(settings, role) as id_:
        heart = _Heart(broker, settings, role, id_, waiting_for, details or {}, every_s, clock)
        pulse = asyncio.create_task(heart.beat())
        try:
            yield id_
        except BaseException:
            await _cancelled(pulse)
            raise
        await _cancelled(pulse)
        with suppress(StreammonError, TimeoutError):
            async with asyncio.timeout(LAST_WORDS_S):
                await heart.say("stopping")


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait({task})
    if not task.cancelled() and (error := task.exception()):
        log.error("heartbeats ended", error=repr(error))


class _Heart:
    def __init__(
        self,
        broker: Broker,
        settings: Settings,
        role: str,
        id_: str,
        waiting_for: WaitingFor,
        details: Details,
        every_s: float | None,
        clock: Clock,
    ) -> None:
        self._broker = broker
        interval_s = settings.heartbeat.interval_s
        self._every_s = min(interval_s, every_s or interval_s)
        self._waiting_for = waiting_for
        self._details = details
        self._clock = clock
        self._template = Heartbeat(
            id=id_,
            role=role,
            host=host_name(settings),
            version=__version__,
            started_unix_s=clock(),
            time_unix_s=clock(),
            state="starting",
            interval_s=interval_s,
        )

    async def beat(self) -> None:
        """For ever, or until the broker says that it never will take one."""
        away = False
        while True:
            try:
                await self.say("starting" if self._waiting_for() else "running")
                away = False
            except Retryable as error:
                if not away:
                    log.warning("no heartbeat: the broker is away", error=str(error))
                away = True
            except StreammonError as error:  # such as: no such topic, or not permitted
                log.error("no heartbeats: the inventory will not know of this process", error=str(error))
                return
            await asyncio.sleep(self._every_s)

    async def say(self, state: State) -> None:
        waiting = {"waiting_for": name} if (name := self._waiting_for()) and state == "starting" else {}
        details = self._details() if callable(self._details) else self._details
        now = msgspec.structs.replace(
            self._template, state=state, time_unix_s=self._clock(), details={**details, **waiting}
        )
        await self._broker.append([now.outgoing()])


@contextmanager
def _identity(settings: Settings, role: str) -> Iterator[str]:
    """The id of this component, ours alone until the block ends."""
    name = f"{role}@{host_name(settings)}"
    if settings.bootstrap and settings.kafka.instance_id:
        yield f"{name}/{settings.kafka.instance_id}"
        return
    directory = settings.data_dir.expanduser().absolute()
    number, lock = _first_free(directory / "instances", role)
    try:
        yield f"{name}/{blake2b(str(directory).encode(), digest_size=3).hexdigest()}.{number}"
    finally:
        if lock is not None:
            lock.release()


def _first_free(directory: Path, role: str) -> tuple[int, FileLock | None]:
    """The first number that no other process has taken there, and the lock on it; ours where no file can be locked."""
    with suppress(OSError):
        directory.mkdir(parents=True, exist_ok=True)
        for number in range(MOST_ALIKE):
            lock = FileLock(directory / f"{role}.{number}")
            try:
                if lock.take():
                    return number, lock
            except OSError:  # a file system without locks
                lock.release()
                break
            lock.release()
    return os.getpid(), None
