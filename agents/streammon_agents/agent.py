"""The agent: one process a node that runs sources side by side, and carries what they say into the log.

A source that fails is started again, ever more slowly, and does not touch the others. Only what a person has to
change (`ConfigError`) ends the agent, and only at its start. It does not wait for the log: it observes from its first
second, and what the log does not take yet is in memory and in the spool (`streammon_agents.carrier`).

The end of the agent takes at most 10 s, and loses nothing where there is a spool: sources are ended, then what they
handed over goes to the log, or into the spool for the next start."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Final

from prometheus_client import Gauge

from streammon.backoff import Backoff
from streammon.broker import ClockOffset
from streammon.clock import Clock, system_clock
from streammon.config import Settings, SourceName
from streammon.errors import ConfigError
from streammon.heartbeat import host_name
from streammon.telemetry import log
from streammon_agents.carrier import Carrier, CarrierOutlet, Uplink
from streammon_agents.packing import Packer
from streammon_agents.ring import Limits
from streammon_agents.source import Source
from streammon_agents.spool import Spool
from streammon_agents.spooling import Spooling

BACKOFF = Backoff(longest_s=60.0)
CLOCK_SKEW = Gauge("streammon_agent_clock_skew_seconds", "By how much this clock is ahead of the broker's")
END_S: Final = 2.0
"""How long sources may take to end; those that take longer are left behind."""


SOURCES: Mapping[SourceName, str] = {
    "host": "host:host_source",
    "containers": "containers.source:containers_source",
    "gpu": "gpu.source:gpu_source",
    "scrape": "scrape:scrape_source",
    "logs": "logs:log_source",
    "gateway": "gateway.serving:gateway_source",
    "otlp": "gateway.otlp:otlp_source",
    "statsd": "statsd.serving:statsd_source",
}
"""By the name that ``agent.sources`` has for it, who makes a source of settings and a clock. Each is imported when it
is asked for."""


def sources_of(settings: Settings, clock: Clock = system_clock) -> list[Source]:
    """The sources that are asked for."""
    return [_maker(name)(settings, clock) for name in settings.agent.sources]


def _maker(name: SourceName) -> Callable[[Settings, Clock], Source]:
    module, _, maker = SOURCES[name].partition(":")
    found: Callable[[Settings, Clock], Source] = getattr(import_module(f"{__package__}.{module}"), maker)
    return found


def agent_name(settings: Settings) -> str:
    """Who sends, in the envelope of batches."""
    return f"agent@{host_name(settings)}"


def spool_directory(settings: Settings) -> Path | None:
    """Where the spool is; None where there is none, because the log is a file on this very disk."""
    if settings.bootstrap is None and settings.agent.url is None:
        return None
    return settings.agent.spool.directory or settings.data_dir / "spool"


def spooling_of(settings: Settings, clock: Clock = system_clock) -> Spooling | None:
    """The spool, if there is one; opened when the carrier runs."""
    directory = spool_directory(settings)
    if directory is None:
        return None
    return Spooling(partial(Spool.open, directory, settings.agent.spool.max_bytes, agent_name(settings), clock))


def carrier_of(uplink: Uplink, settings: Settings, clock: Clock = system_clock) -> Carrier:
    """What brings everything into the log, as the settings want it."""
    limits = Limits(settings.agent.buffer_events, settings.agent.buffer_bytes)
    return Carrier(uplink, Packer(agent_name(settings)), limits, spooling_of(settings, clock), clock)


def details_of(carrier: Carrier, settings: Settings, offset: ClockOffset | None) -> dict[str, str]:
    """What heartbeats say of an agent, beside what is true of every role. A clock that is off degrades it."""
    said = {"sources": " ".join(settings.agent.sources)}
    if offset is not None:
        CLOCK_SKEW.set(offset.offset_s)
        carrier.outlet("clock").degraded(_skew(offset, settings.agent.max_skew_s))
        said["clock_skew_s"] = f"{offset.offset_s:+.3f} ± {offset.uncertainty_s:.3f}"
    return said | carrier.details()


def _skew(offset: ClockOffset, most_s: float) -> str | None:
    if abs(offset.offset_s) - offset.uncertainty_s <= most_s:
        return None
    direction = "ahead of" if offset.offset_s > 0 else "behind"
    return f"this clock is {abs(offset.offset_s):.1f} s {direction} the broker's, more than {most_s:g} s: set it (NTP)"


async def run_agent(
    uplink: Uplink,
    settings: Settings,
    *,
    stop: asyncio.Event,
    sources: Sequence[Source] | None = None,
    clock: Clock = system_clock,
    carrier: Carrier | None = None,
) -> None:
    """Observe and publish until ``stop`` is set, then flush.

    Raises:
        ConfigError: an input topic does not exist.
    """
    carrier = carrier or carrier_of(uplink, settings, clock)
    running = [
        asyncio.create_task(_supervised(source, carrier.outlet(source.name)), name=source.name)
        for source in (sources_of(settings, clock) if sources is None else sources)
    ]
    stopped, delivery = asyncio.create_task(stop.wait()), asyncio.create_task(carrier.run())
    try:
        await asyncio.wait({stopped, delivery, *running}, return_when=asyncio.FIRST_COMPLETED)
        await _end(running)
        await carrier.finish(delivery)
        ended = [task.exception() for task in (delivery, *running) if task.done() and not task.cancelled()]
        for failure in filter(None, ended):
            raise failure  # a ConfigError: nothing else ends a source, or the carrier
    finally:
        await _end([stopped, delivery, *running])


async def _end(tasks: Iterable[asyncio.Task[object]]) -> None:
    left = {task for task in tasks if not task.done()}
    for task in left:
        task.cancel()
    if left:
        _, late = await asyncio.wait(left, timeout=END_S)
        for task in late:
            log.error("a source does not end, and is left behind", source=task.get_name())


async def _supervised(source: Source, out: CarrierOutlet) -> None:
    now, failures = asyncio.get_running_loop().time, 0
    while True:
        started = now()
        try:
            await source.run(out)
            out.degraded("ended by itself")
        except ConfigError:
            raise
        except Exception as error:  # the other sources go on
            log.exception("a source failed, and is started again", source=source.name)
            out.degraded(f"failed: {error!r}")
        failures = 0 if now() - started > BACKOFF.longest_s else failures + 1  # what ran for long is not to blame
        await asyncio.sleep(BACKOFF.pause_s(max(0, failures - 1)))
