"""The source ``gpu``: GPUs on the beat, from NVML or from a page of dcgm-exporter's.

The driver is asked in a thread of its own, because it may hang with a GPU that dies, and neither the other sources nor
the end of the agent wait for that. A beat without an answer is told after `HUNG_S`; the next comes with the answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import suppress
from enum import StrEnum
from threading import Thread
from typing import Final, Protocol, TypeVar

from streammon.clock import Clock, system_clock
from streammon.config import Settings
from streammon.events import EventType
from streammon.heartbeat import host_name
from streammon_agents.containers.labels import Known
from streammon_agents.gpu.gpus import Gpus, Seen
from streammon_agents.source import Finding, Outlet, Source, until_beat_s

HUNG_S: Final = 10.0
Value = TypeVar("Value")


class Loss(StrEnum):
    """Why events of GPUs are not told."""

    TOO_MANY_PROCESSES = "too_many_processes"


class Eye(Protocol):
    """Something that sees GPUs; may block, and is asked in a thread."""

    def measure(self) -> Seen: ...

    def check(self) -> Iterable[Finding]: ...

    def close(self) -> None: ...


class GpuSource:
    """A `streammon_agents.source.Source` over an `Eye`."""

    name = "gpu"

    def __init__(
        self, eye: Eye, host: str, interval_s: float, clock: Clock = system_clock, hung_s: float = HUNG_S
    ) -> None:
        self._eye, self._host, self._interval_s, self._clock, self._hung_s = eye, host, interval_s, clock, hung_s

    def check(self) -> Iterable[Finding]:
        return self._eye.check()

    async def run(self, out: Outlet) -> None:
        now = asyncio.get_running_loop().time
        started = now()
        try:
            while True:
                self._tell(await self._measured(out), out)
                await asyncio.sleep(until_beat_s(now() - started, self._interval_s))
        finally:
            aside(self._eye.close)

    async def _measured(self, out: Outlet) -> Seen:
        seen = aside(self._eye.measure)
        if not (await asyncio.wait({seen}, timeout=self._hung_s))[0]:
            out.degraded(f"the driver has not answered for {self._hung_s:g} s")
        return await seen

    def _tell(self, seen: Seen, out: Outlet) -> None:
        now = self._clock()
        if seen.things:
            out.put(EventType.RESOURCE, [thing.event(self._host, now) for thing in seen.things])
        if seen.left_out:
            out.drop(Loss.TOO_MANY_PROCESSES, seen.left_out)
        out.degraded(seen.why)


def aside(call: Callable[[], Value]) -> asyncio.Future[Value]:
    """``call()`` in a thread that nobody has to wait for, not even the end of the process."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[Value] = loop.create_future()

    def run() -> None:
        done: Future[Value] = Future()
        try:
            done.set_result(call())
        except Exception as error:
            done.set_exception(error)
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(_pass_on, done, answer)

    Thread(target=run, name="streammon-gpu", daemon=True).start()
    return answer


def _pass_on(done: Future[Value], answer: asyncio.Future[Value]) -> None:
    error = done.exception()
    if answer.done():
        return  # cancelled meanwhile
    if error is None:
        answer.set_result(done.result())
    else:
        answer.set_exception(error)


def gpu_source(settings: Settings, clock: Clock = system_clock) -> Source:
    """The GPUs of this host, on every ``agent.interval_s``; a page of DCGM's is newer every ten seconds at most."""
    agent, host = settings.agent, host_name(settings)
    if agent.gpu.dcgm_url is not None:
        from streammon_agents.gpu.dcgm import Dcgm

        return GpuSource(Dcgm(agent.gpu.dcgm_url), host, agent.gpu.slow_s, clock)
    names = Known(str(agent.rootfs), agent.containers)
    named = "sources" in agent.model_fields_set
    eye = Gpus(agent.gpu, agent.interval_s, agent.procfs, agent.sysfs, of_container=names.labels, expected=named)
    return GpuSource(eye, host, agent.interval_s, clock)
