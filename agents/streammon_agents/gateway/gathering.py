"""Gathering: events that come one a request are written together.

While one append is under way, whoever comes waits, and all of them are the next append: at rest an event is written at
once, under load a few large records are. A record of its own for each event would cost the log more than the event.

Events of one record key are written as an array of the very bytes that came, as lines of one body are. How many wait is
bounded by the number of connections, each of which has one request at a time.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import NamedTuple

from streammon.events import Event
from streammon.wire import Fault, ObjectRows
from streammon_agents.gateway.http import Log
from streammon_agents.gateway.ndjson import TYPE_OF, Line, records_of


class _Waiting(NamedTuple):
    value: bytes
    event: Event
    done: asyncio.Future[Fault | None]


class Gathering:
    """For one event loop. Nothing is kept once everybody has an answer."""

    def __init__(self, into: Log) -> None:
        self._into = into
        self._waiting: list[_Waiting] = []
        self._writing: asyncio.Task[None] | None = None

    async def take(self, value: bytes, event: Event) -> Fault | None:
        """Write the event, which is ``value``; what is wrong with it, if anything, once it is durable.

        Raises what `Log.append` raises.
        """
        done: asyncio.Future[Fault | None] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Waiting(value, event, done))
        if self._writing is None:
            self._writing = asyncio.create_task(self._write_all())  # begins after all that is ready has come
        return await done

    async def _write_all(self) -> None:
        try:
            while self._waiting:
                taken, self._waiting = self._waiting, []
                await self._write(taken)
        finally:
            self._writing = None

    async def _write(self, taken: list[_Waiting]) -> None:
        """Each type by itself: a topic that takes nothing does not concern those who send to another."""
        by_type: defaultdict[type[Event], list[_Waiting]] = defaultdict(list)
        for each in taken:
            by_type[type(each.event)].append(each)
        await asyncio.gather(*(self._write_alike(kind, alike) for kind, alike in by_type.items()))

    async def _write_alike(self, kind: type[Event], alike: list[_Waiting]) -> None:
        try:
            await self._into.append(records_of(TYPE_OF[kind], [Line(0, each.value, each.event) for each in alike]))
        except BaseException as failure:
            _tell(alike, failure)
            if not isinstance(failure, Exception):
                raise
        else:
            _answer(alike)


def _answer(alike: list[_Waiting]) -> None:
    faults = {fault.row: fault for fault in ObjectRows([each.event for each in alike]).faults()}
    for row, each in enumerate(alike):
        if not each.done.done():
            each.done.set_result(faults.get(row))


def _tell(taken: list[_Waiting], failure: BaseException) -> None:
    for each in taken:
        if each.done.done():
            continue
        if isinstance(failure, Exception):
            each.done.set_exception(failure)
        else:
            each.done.cancel()
