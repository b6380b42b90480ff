"""Log files and what containers say: `streammon_agents.logs.source`. Without inputs nothing of it is loaded."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

from streammon.clock import Clock, system_clock
from streammon.config import Settings
from streammon_agents.source import Finding, Outlet, Source


class Unasked:
    """What the source is until something is configured: nothing, at no cost."""

    name = "logs"

    def check(self) -> Iterable[Finding]:
        return [Finding("log files", False, "no inputs are configured", "set agent.logs.inputs")]

    async def run(self, out: Outlet) -> None:
        await asyncio.Event().wait()


def log_source(settings: Settings, clock: Clock = system_clock) -> Source:
    """The log files of this node."""
    if not settings.agent.logs.inputs:
        return Unasked()
    from streammon_agents.logs.source import LogSource

    return LogSource(settings, clock)
