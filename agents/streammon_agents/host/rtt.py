"""Round trips: how long a TCP connect to declared targets takes, which is one round trip and what the other side adds.

Names are resolved before, and that is not measured. A connect that fails or takes too long is counted.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable
from typing import Any

from streammon.clock import Clock, system_clock
from streammon.config import HostMetricsSettings
from streammon.events import EventType
from streammon_agents.source import Outlet, until_beat_s


class RoundTrips:
    """All targets at once, every ``rtt_interval_s``."""

    def __init__(
        self,
        host: str,
        settings: HostMetricsSettings,
        clock: Clock = system_clock,
        precise: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._host, self._settings, self._clock, self._precise = host, settings, clock, precise

    async def run(self, out: Outlet) -> None:
        now = asyncio.get_running_loop().time
        started = now()
        while True:
            events = await asyncio.gather(*map(self._event, dict.fromkeys(self._settings.rtt_targets)))
            out.put(EventType.RESOURCE, events)
            await asyncio.sleep(until_beat_s(now() - started, self._settings.rtt_interval_s))

    async def _event(self, target: str) -> dict[str, Any]:
        at = self._clock()
        took_s = await self._connect_s(target)
        return {
            "time_unix_s": at,
            "host": self._host,
            "entity": "network",
            "id": target,
            "labels": {"target": target},
            "metrics": {} if took_s is None else {"round_trip_s": took_s},
            "counters": {"connects": 1, "failed_connects": int(took_s is None)},
        }

    async def _connect_s(self, target: str) -> float | None:
        """Seconds; None if nobody is there."""
        host, _, port = target.rpartition(":")
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._settings.rtt_timeout_s):
                [(family, kind, protocol, _, address), *_] = await loop.getaddrinfo(
                    host.strip("[]"), int(port), type=socket.SOCK_STREAM
                )
                with socket.socket(family, kind, protocol) as connection:
                    connection.setblocking(False)
                    started = self._precise()
                    await loop.sock_connect(connection, address)
                    return self._precise() - started
        except (OSError, ValueError, OverflowError):
            return None
