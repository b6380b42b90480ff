"""Prometheus scraping: what services and exporters show on their pages of metrics becomes events.

| module | does |
|---|---|
| `jobs` | what is scraped, as Prometheus' ``scrape_configs`` say it |
| `discovery`, `kubernetes` | which targets there are |
| `relabel`, `targets` | what they are called, and which of them are wanted |
| `fetching` | one page, within its bounds |
| `text`, `protobuf` over `pages` | what a page says |
| `accounts`, `native` | what pages add up to |
| `scraper` | the source: all of it on the beat |
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Final

from streammon.clock import Clock, system_clock
from streammon.config import Settings
from streammon.heartbeat import host_name
from streammon_agents.source import Finding, Outlet, Source

NAME: Final = "scrape"


def scrape_source(settings: Settings, clock: Clock = system_clock) -> Source:
    """The source as it is configured. Raises ConfigError where a job cannot be understood."""
    given = settings.agent.scrape
    if not given.jobs.get_secret_value() and not given.annotated_pods:
        return Nothing()
    from streammon_agents.scrape.jobs import ANNOTATED_PODS, jobs_of  # only who scrapes loads what it takes
    from streammon_agents.scrape.scraper import Scraper

    host = host_name(settings)
    jobs = jobs_of([*given.jobs.get_secret_value(), *([ANNOTATED_PODS] if given.annotated_pods else [])])
    return Scraper(jobs, host, node=given.node_name or host, clock=clock)


class Nothing:
    """The source while there is nothing to scrape: it costs nothing, and says what to do."""

    name = NAME

    def check(self) -> Iterable[Finding]:
        return [Finding("targets", False, "no jobs are configured", "list some in agent.scrape.jobs")]

    async def run(self, out: Outlet) -> None:
        await asyncio.Event().wait()
