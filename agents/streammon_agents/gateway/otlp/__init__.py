"""OTLP: what services send that speak OpenTelemetry, over HTTP and over gRPC.

::

    HTTP POST /v1/traces … ──► http ─┐                 ┌─► spans    model calls, requests  ──► inference events
                                     ├─► intake ─► read┼─► metrics  one event a label set  ──► resource events
    gRPC …Service/Export ────► rpc ──┘                 └─► logs     one event a record     ──► log events

``intake`` is what both ways have in common: it makes room, reads, hands over, and answers once the events are durable.
The readers are pure but for what they have to remember. ``docs/otlp.md`` says what becomes what.

The modules need the extra ``streammon[otlp]``, which takes memory, and are imported when they are first used.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from functools import cache
from typing import TYPE_CHECKING

from streammon.clock import Clock, system_clock
from streammon.config import Settings
from streammon_agents.source import Finding, Outlet, Source

if TYPE_CHECKING:
    from aiohttp import web

    from streammon_agents.gateway.otlp.intake import Intake

PATHS = ("/v1/traces", "/v1/metrics", "/v1/logs")
INSTALL = "pip install 'streammon[otlp]'"


def routes(out: Outlet, settings: Settings, clock: Clock = system_clock) -> list[web.RouteDef]:
    """OTLP/HTTP; to be added to any aiohttp application."""
    from aiohttp import web

    from streammon_agents.logs.redaction import redactor_of

    redactor_of(settings.agent.logs.redaction)  # a key that cannot be read is told now, and not to the first sender
    since_unix_s = clock()

    @cache
    def intake() -> Intake:
        from streammon_agents.gateway.otlp.intake import Intake

        return Intake(out, settings, clock, since_unix_s)

    async def answered(request: web.Request) -> web.StreamResponse:
        try:
            from streammon_agents.gateway.otlp.http import answered
        except ImportError as error:
            return web.Response(status=501, text=f"OTLP is not installed here ({error}): {INSTALL}\n")
        return await answered(intake(), request)

    return [web.route("*", path, answered) for path in PATHS]


def otlp_source(settings: Settings, clock: Clock = system_clock) -> Source:
    """The source ``otlp``, or one that says why it cannot be."""
    try:
        from streammon_agents.gateway.otlp.source import OtlpSource
    except ImportError as error:
        return Absent(str(error))
    return OtlpSource(settings, clock)


class Absent:
    """What cannot be observed without what is not installed; the other sources go on."""

    name = "otlp"

    def __init__(self, why: str) -> None:
        self._why = why

    def check(self) -> Iterator[Finding]:
        yield Finding("OTLP", False, self._why, INSTALL)

    async def run(self, out: Outlet) -> None:
        out.degraded(f"{self._why}: {INSTALL}")
        await asyncio.Event().wait()
