"""The agent: one process a node that runs sources side by side, and carries what they say into the log.

A source that fails is started again, ever more slowly, and does not touch the others. Only what a person has to change
(`ConfigError`) ends the agent, and only at its start.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence

from streammon.backoff import Backoff
from streammon.broker import Broker
from streammon.clock import Clock, system_clock
from streammon.config import Settings
from streammon.errors import ConfigError
from streammon.heartbeat import host_name
from streammon.telemetry import log
from streammon_agents import carrier as carrying
from streammon_agents.carrier import Carrier, CarrierOutlet
from streammon_agents.packing import Packer
from streammon_agents.source import Source, ended

BACKOFF = Backoff(longest_s=60.0)


def _host(settings: Settings, clock: Clock) -> Source:
    from streammon_agents.host import host_source

    return host_source(settings, clock)


def _logs(settings: Settings, clock: Clock) -> Source:
    from streammon_agents.logs import log_source

    return log_source(settings, clock)


SOURCES: Mapping[str, Callable[[Settings, Clock], Source]] = {
    "host": _host,
    "logs": _logs,
}
"""Every source, by the name that ``agent.sources`` knows it by. Each imports what it needs when it is made."""


def sources_of(settings: Settings, clock: Clock = system_clock) -> list[Source]:
    """The sources that are asked for."""
    return [SOURCES[name](settings, clock) for name in settings.agent.sources]


async def run_agent(
    broker: Broker,
    settings: Settings,
    *,
    stop: asyncio.Event,
    sources: Sequence[Source] | None = None,
    clock: Clock = system_clock,
) -> None:
    """Observe and publish until ``stop`` is set, then flush.

    Raises:
        ConfigError: an input topic does not exist.
    """
    agent = f"agent@{host_name(settings)}"
    carrier = Carrier(broker, Packer(agent), settings.agent.buffer_batches)
    running = [
        asyncio.create_task(_supervised(source, carrier.outlet(source.name)), name=source.name)
        for source in (sources_of(settings, clock) if sources is None else sources)
    ]
    stopped, delivery = asyncio.create_task(stop.wait()), asyncio.create_task(carrier.deliver())
    try:
        await asyncio.wait({stopped, delivery, *running}, return_when=asyncio.FIRST_COMPLETED)
        for task in running:
            if task.done():
                task.result()  # a ConfigError: nothing else ends a source
            await ended(task)
        carrier.close()
        await asyncio.wait_for(delivery, carrying.FLUSH_S)
    except TimeoutError:
        log.warning("the agent ends with events unsent", batches=carrier.waiting)
    finally:
        await ended(stopped)
        await ended(delivery)
        for task in running:
            await ended(task)


async def _supervised(source: Source, out: CarrierOutlet) -> None:
    failures = 0
    while True:
        try:
            await source.run(out)
        except ConfigError:
            raise
        except Exception as error:  # the other sources go on
            log.exception("a source failed, and is started again", source=source.name)
            out.degraded(f"failed: {error!r}")
        await asyncio.sleep(BACKOFF.pause_s(failures))
        failures += 1
