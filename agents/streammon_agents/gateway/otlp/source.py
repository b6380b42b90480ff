"""The source ``otlp``: listens for OTLP by gRPC and by HTTP, each on a port of its own.

A port that is taken is tried again, ever more seldom, and said to be so; the other one listens meanwhile.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, suppress

from streammon.backoff import Backoff
from streammon.clock import Clock, system_clock
from streammon.config import Settings
from streammon.telemetry import log
from streammon_agents.gateway.otlp import http
from streammon_agents.gateway.otlp.intake import Intake
from streammon_agents.logs.redaction import unusable
from streammon_agents.source import Finding, Outlet

BACKOFF = Backoff(longest_s=30.0)

Serving = Callable[[Intake, str, int], AbstractAsyncContextManager[int]]


def _grpc() -> Serving:
    from streammon_agents.gateway.otlp import rpc  # 20 MB, which whoever takes HTTP alone does not need

    return rpc.serving


_SERVING: dict[str, Callable[[], Serving]] = {"gRPC": _grpc, "HTTP": lambda: http.serving}


class OtlpSource:
    """Whatever services send by OTLP."""

    def __init__(self, settings: Settings, clock: Clock = system_clock) -> None:
        self._settings, self._clock = settings, clock
        otlp = settings.agent.otlp
        self._host = otlp.host
        self._wanted = {
            way: port for way, port in (("gRPC", otlp.grpc_port), ("HTTP", otlp.http_port)) if port is not None
        }
        self.ports: dict[str, int] = {}
        """Where it listens now."""

    @property
    def name(self) -> str:
        return "otlp"

    def check(self) -> Iterator[Finding]:
        yield from unusable(self._settings.agent.logs.redaction)
        for way, port in self._wanted.items():
            why = _why_taken(self._host, port)
            fix = None if why is None else f"set agent.otlp.{way.lower()}_port to another port, or to null"
            yield Finding(f"OTLP by {way} on {self._host}:{port}", why is None, why or "", fix)

    async def run(self, out: Outlet) -> None:
        intake = Intake(out, self._settings, self._clock)
        failing: dict[str, str] = {}
        try:
            async with asyncio.TaskGroup() as ways:
                for way in self._wanted:
                    ways.create_task(self._listen(way, intake, out, failing))
                await asyncio.Event().wait()
        finally:
            await intake.close()

    async def _listen(self, way: str, intake: Intake, out: Outlet, failing: dict[str, str]) -> None:
        failures = 0
        while True:
            try:
                async with _SERVING[way]()(intake, self._host, self._wanted[way]) as port:
                    failing.pop(way, None)
                    out.degraded("; ".join(failing.values()) or None)
                    self.ports[way] = port
                    log.info("OTLP is taken", by=way, address=f"{self._host}:{port}")
                    await asyncio.Event().wait()
            except OSError as error:
                failing[way] = f"{way}: cannot listen on {self._host}:{self._wanted[way]}: {_said(error)}"
                out.degraded("; ".join(failing.values()))
            finally:
                self.ports.pop(way, None)
            await asyncio.sleep(BACKOFF.pause_s(failures))
            failures += 1


def _why_taken(host: str, port: int) -> str | None:
    """Why nobody can listen there now."""
    try:
        [(family, kind, protocol, _, address), *_] = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen(1)
    except OSError as error:
        return _said(error)
    return None


def _said(error: OSError) -> str:
    with suppress(ValueError, OverflowError):
        if error.errno and error.errno > 0:
            return os.strerror(error.errno)
    return str(error)
