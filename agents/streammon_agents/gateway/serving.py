"""The source ``gateway``: an HTTP server on the node, for whatever speaks JSON or CloudEvents.

It promises that a sender cannot hurt it: connections are bounded, one that says nothing (or half a request) is closed
after ``idle_timeout_s``, bodies are bounded in size and time, and what waits to be written is bounded by
``max_backlog_bytes``, beyond which senders are told to come back. A port that another process has is a degraded state
and is tried again: the agent's other sources have nothing to do with it.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing

from aiohttp import web

from streammon.backoff import Backoff
from streammon.clock import Clock, system_clock
from streammon.config import GatewaySettings, Settings
from streammon.telemetry import log
from streammon_agents.gateway import cloudevents, events
from streammon_agents.gateway.http import REQUESTS
from streammon_agents.source import Finding, Outlet

BACKOFF = Backoff(longest_s=30.0)
SHUTDOWN_S = 1.0
"""How long requests under way may take once the agent stops."""
_FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nConnection: close\r\nContent-Type: application/json\r\n"
    b'Content-Length: 27\r\n\r\n{"reason": "connections"}\r\n'
)


class Gateway:
    """A `streammon_agents.source.Source`. ``listening``: called with the port, once there is one."""

    def __init__(
        self,
        settings: GatewaySettings,
        routes: Callable[[Outlet], Sequence[web.RouteDef]],
        listening: Callable[[int], None] = lambda port: None,
    ) -> None:
        self._settings, self._routes, self._listening = settings, routes, listening

    @property
    def name(self) -> str:
        return "gateway"

    def check(self) -> Iterable[Finding]:
        host, port = self._settings.host, self._settings.port
        what = f"events by HTTP on {host}:{port}"
        try:
            with closing(socket.create_server((host, port), family=_family(host))):
                pass
        except OSError as error:
            return [Finding(what, False, _said(error), "set agent.gateway.port to a free one, or stop who has it")]
        return [Finding(what, True, f"POST {events.PATH} and {cloudevents.PATH}")]

    async def run(self, out: Outlet) -> None:
        app = web.Application(client_max_size=self._settings.max_body_bytes)
        app.add_routes(self._routes(out))
        runner = web.AppRunner(
            app,
            access_log=None,
            keepalive_timeout=self._settings.idle_timeout_s,
            shutdown_timeout=SHUTDOWN_S,
        )
        await runner.setup()
        try:
            server = await self._listen(runner, out)
            try:
                port = server.sockets[0].getsockname()[1]
                log.info("the gateway listens", host=self._settings.host, port=port)
                self._listening(port)
                await asyncio.Event().wait()  # until it is cancelled
            finally:
                server.close()
        finally:
            await runner.cleanup()

    async def _listen(self, runner: web.AppRunner, out: Outlet) -> asyncio.Server:
        failures = 0
        while True:
            try:
                server = await asyncio.get_running_loop().create_server(
                    lambda: self._connection(runner), self._settings.host, self._settings.port
                )
            except OSError as error:
                out.degraded(
                    f"agent.gateway cannot listen on {self._settings.host}:{self._settings.port}: {_said(error)}"
                )
                await asyncio.sleep(BACKOFF.pause_s(failures))
                failures += 1
            else:
                out.degraded(None)
                return server

    def _connection(self, runner: web.AppRunner) -> asyncio.Protocol:
        assert runner.server is not None
        if len(runner.server.connections) >= self._settings.max_connections:
            return _Full()
        return runner.server()


class _Full(asyncio.Protocol):
    """A connection too many: told so, and closed."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        REQUESTS.labels(503).inc()
        transport.write(_FULL)
        transport.close()


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _said(error: OSError) -> str:
    """Without the address, which asyncio repeats."""
    if error.errno == errno.EADDRINUSE:
        return "another process listens there"
    number = error.errno or 0  # a name that is not found is below 0
    return os.strerror(number) if number > 0 else error.strerror or repr(error)


def gateway_source(settings: Settings, clock: Clock = system_clock) -> Gateway:
    """As the settings have it."""
    limits = settings.agent.gateway

    def routes(out: Outlet) -> list[web.RouteDef]:
        return [*events.routes(out, limits), *cloudevents.routes(out, limits, clock)]

    return Gateway(limits, routes)
