"""The source ``host``: what this machine measures about itself (`docs/host.md`).

On Linux it is read raw from ``/proc`` and ``/sys``, which an agent in a container may have mounted elsewhere; on other
systems (`portable`) psutil tells a part of it. Each module beside this one knows one area: it parses what the kernel
wrote, and makes metrics of two readings. What the kernel does not tell is absent.
"""

from __future__ import annotations

import sys

from streammon.clock import Clock, system_clock
from streammon.config import Settings
from streammon_agents.source import Source


def host_source(settings: Settings, clock: Clock = system_clock) -> Source:
    """This host, once ``agent.interval_s``."""
    if is_linux():
        from streammon_agents.host.linux import linux_source

        return linux_source(settings, clock)
    from streammon_agents.host.portable import portable_source

    return portable_source(settings, clock)


def is_linux() -> bool:
    """Not written where it is asked: checkers of types would leave out what is for other systems."""
    return sys.platform == "linux"
