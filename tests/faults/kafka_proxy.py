"""A TCP proxy in front of Kafka that misbehaves on demand, and rewrites nothing.

Clients come to it because a listener of the broker advertises its port. It reads just enough of the protocol to
tell requests apart: every request begins with its length, kind and correlation id, and names its client; a
connection's answers come in the order of its requests. So a fault can be aimed: at the next commit of this client,
before it reaches the broker, or behind it, where the acknowledgement is lost and the work is done.
"""

from __future__ import annotations

import asyncio
import struct
from collections import deque
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import Any

STALL_POLL_S = 0.02


class Api(IntEnum):
    """The kinds of requests that faults are aimed at, by Kafka's numbers."""

    PRODUCE = 0
    INIT_PRODUCER_ID = 22
    ADD_PARTITIONS_TO_TXN = 24
    END_TXN = 26
    TXN_OFFSET_COMMIT = 28


class Way(Enum):
    """Which way a message goes."""

    REQUEST = "request"
    ANSWER = "answer"


class Header:
    """The beginning of a request: what is asked, and by whom."""

    _FIXED = struct.Struct(">hhih")  # kind, version, correlation id, length of the client's name

    def __init__(self, request: bytes) -> None:
        self.api, _, _, length = self._FIXED.unpack_from(request)
        name = request[self._FIXED.size : self._FIXED.size + max(0, length)]
        self.client = name.decode()


@dataclass(frozen=True)
class Trap:
    """Waits for one message: its kind, its way, and whose it is ("": anybody's)."""

    api: Api
    way: Way
    client: str = ""
    caught: asyncio.Future[Caught] = field(default_factory=lambda: asyncio.get_running_loop().create_future())

    def fits(self, way: Way, header: Header) -> bool:
        alike = (way, header.api) == (self.way, self.api) and header.client.startswith(self.client)
        return alike and not self.caught.done()


class Caught:
    """A message in the proxy's hand. Nothing else moves that way on its connection until it is let go."""

    def __init__(self, header: Header) -> None:
        self.client = header.client
        self.passes: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    def pass_on(self) -> None:
        self._let_go(passes=True)

    def lose(self) -> None:
        """Swallow it, and cut the connection."""
        self._let_go(passes=False)

    def _let_go(self, *, passes: bool) -> None:
        if not self.passes.done():  # its connection may have ended meanwhile
            self.passes.set_result(passes)


class _Lost(Exception):  # noqa: N818 - names what happened
    """A message was swallowed: the connection ends here."""


class KafkaProxy:
    """Connections through ``port`` to the broker's ``target`` port, both on loopback."""

    def __init__(self, port: int, target: int) -> None:
        self.delay_s = 0.0
        """By how much every answer is late."""
        self.stalled: str | None = None
        """The client, by the beginning of its name, whose messages all wait."""
        self._port, self._target = port, target
        self._traps: list[Trap] = []
        self._connections: set[asyncio.Task[None]] = set()

    def trap(self, trap: Trap) -> asyncio.Future[Caught]:
        self._traps.append(trap)
        return trap.caught

    async def cut(self) -> None:
        """End every connection; new ones are welcome."""
        ending = [*self._connections]
        for connection in ending:
            connection.cancel()
        await asyncio.gather(*ending, return_exceptions=True)

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[KafkaProxy]:
        server = await asyncio.start_server(self._accept, "127.0.0.1", self._port)
        try:
            yield self
        finally:
            server.close()
            await self.cut()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.current_task()
        assert connection is not None, "asyncio runs this as a task"
        self._connections.add(connection)
        try:
            with suppress(OSError):
                inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", self._target)
                try:
                    await self._connect(reader, writer, inner_reader, inner_writer)
                finally:
                    inner_writer.transport.abort()
        except asyncio.CancelledError:
            pass  # cut: nobody waits for this task
        finally:
            writer.transport.abort()
            self._connections.discard(connection)

    async def _connect(
        self,
        client_reader: asyncio.StreamReader,
        client_writer: asyncio.StreamWriter,
        broker_reader: asyncio.StreamReader,
        broker_writer: asyncio.StreamWriter,
    ) -> None:
        """Until either side ends, or a message is lost."""
        asked: deque[Header] = deque()

        async def requests() -> None:
            while True:
                message = await _read(client_reader)
                asked.append(Header(message[4:]))
                await self._pass(Way.REQUEST, asked[-1], message, broker_writer)

        async def answers() -> None:
            while True:
                message = await _read(broker_reader)
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                await self._pass(Way.ANSWER, asked.popleft(), message, client_writer)

        with suppress(asyncio.IncompleteReadError, _Lost, OSError):
            await _first_to_end(requests(), answers())

    async def _pass(self, way: Way, header: Header, message: bytes, writer: asyncio.StreamWriter) -> None:
        while self.stalled and header.client.startswith(self.stalled):  # noqa: ASYNC110 - nobody waits in the usual case
            await asyncio.sleep(STALL_POLL_S)
        if trap := next((each for each in self._traps if each.fits(way, header)), None):
            self._traps.remove(trap)
            caught = Caught(header)
            trap.caught.set_result(caught)
            if not await caught.passes:
                raise _Lost
        writer.write(message)
        await writer.drain()


async def _read(reader: asyncio.StreamReader) -> bytes:
    """One message with the length before it."""
    length = await reader.readexactly(4)
    return length + await reader.readexactly(int.from_bytes(length))


async def _first_to_end(*work: Coroutine[Any, Any, None]) -> None:
    tasks = [asyncio.create_task(each) for each in work]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
