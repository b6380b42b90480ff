"""The source ``scrape``: fetches the pages of targets on their beat, and publishes what they add up to.

::

    jobs ─► discovery ─► relabelling ─► targets ─► fetch ─► parse ─► add up ─► events
                                                     └─ `up`, and why not ─────┘

Targets do not wait for each other: each has a task of its own and a place of its own within the interval. Pages are
read one at a time in one thread beside the event loop, so that at most one costs CPU and its own size again.

After each scrape a target's event carries ``up`` (1, or 0 where the page was not had or not taken), with
``scrape_duration_seconds``, ``scrape_samples_scraped``, ``scrape_samples_post_metric_relabeling`` and
``scrape_series_added``, as Prometheus names them. A page that was not taken counts in ``scrape_failures_total`` with
its reason as a label, and as refused input of the source.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from enum import StrEnum
from functools import partial
from itertools import chain, islice
from time import monotonic
from typing import Any, Final, NamedTuple

import aiohttp

from streammon.clock import Clock, system_clock
from streammon.events import EventType
from streammon.telemetry import log
from streammon_agents.scrape.accounts import Accounts, Identity, Taken
from streammon_agents.scrape.discovery import Discovery, Files, Report, Static
from streammon_agents.scrape.fetching import Fetched, Fetcher, FetchError, Format, Room, open_session
from streammon_agents.scrape.jobs import Job
from streammon_agents.scrape.pages import Page, PageError, Series
from streammon_agents.scrape.relabel import relabelling
from streammon_agents.scrape.targets import Found, Target, targets_of
from streammon_agents.scrape.text import parse
from streammon_agents.source import Event, Finding, Outlet, until_beat_s

NAME: Final = "scrape"
CHECK_S: Final = 3.0
CHECKED: Final = 50
"""Targets that `check` tries at most."""
_SHOWN: Final = 3


class Scraper:
    """A `streammon_agents.source.Source`."""

    def __init__(self, jobs: Sequence[Job], host: str, *, node: str = "", clock: Clock = system_clock) -> None:
        self._jobs, self._host, self._node, self._clock = jobs, host, node or host, clock

    @property
    def name(self) -> str:
        return NAME

    def check(self) -> Iterable[Finding]:
        """Which targets there are, and whether their pages can be had."""
        with ThreadPoolExecutor(1) as pool:  # the caller may have an event loop of its own
            return pool.submit(asyncio.run, self._checked()).result()

    async def _checked(self) -> list[Finding]:
        async with open_session() as session:
            findings = await asyncio.gather(*(self._check_job(job, session) for job in self._jobs))
        return [finding for job in findings for finding in job]

    async def _check_job(self, job: Job, session: aiohttp.ClientSession) -> list[Finding]:
        found, findings = list[dict[str, str]](), list[Finding]()
        for discovery in self._discoveries(job, session):
            try:
                found += await asyncio.wait_for(discovery.once(), CHECK_S / 2)
            except (OSError, ValueError) as error:
                findings.append(Finding(f"job {job.job_name}", False, str(error) or "not known in time"))
        targets = targets_of(job, found)
        findings += [Finding("target", False, fault) for fault in _faults(targets)]
        findings += await asyncio.gather(
            *(self._check_target(job, target, session) for target in targets.targets[:CHECKED])
        )
        return findings or [Finding(f"job {job.job_name}", False, "it has no targets now")]

    async def _check_target(self, job: Job, target: Target, session: aiohttp.ClientSession) -> Finding:
        target = target._replace(timeout_s=min(target.timeout_s, CHECK_S / 2))
        try:
            with Room().share() as share:
                page = parsed(await Fetcher(job, session).fetch(target, share), job, {})
        except (FetchError, PageError) as error:
            return Finding(f"target {target.name}", False, f"{error.fault}: {error}")
        return Finding(f"target {target.name}", True, f"{len(page.samples)} samples")

    async def run(self, out: Outlet) -> None:
        reader = ThreadPoolExecutor(1, thread_name_prefix=NAME)
        try:
            async with open_session() as session, asyncio.TaskGroup() as group:
                shared = _Shared(
                    out, group, Room(), reader, _Trouble(out), Watch(self._host, self._clock(), self._clock)
                )
                for job in self._jobs:
                    pool = _Pool(job, Fetcher(job, session), shared)
                    for number, discovery in enumerate(self._discoveries(job, session)):
                        group.create_task(discovery.run(partial(pool.discovered, number)))
                await asyncio.Event().wait()  # there may be nothing to do for now
        finally:
            reader.shutdown(wait=False, cancel_futures=True)

    def _discoveries(self, job: Job, session: aiohttp.ClientSession) -> list[Discovery]:
        from streammon_agents.scrape.kubernetes import Pods

        return [
            *([Static(job.static_configs)] if job.static_configs else []),
            *(Files(config) for config in job.file_sd_configs),
            *(Pods(config, self._node, session) for config in job.kubernetes_sd_configs),
        ]


class Watch(NamedTuple):
    """Who watches, and since when."""

    host: str
    since_unix_s: float
    clock: Clock


class _Shared(NamedTuple):
    """What all targets of a source have in common."""

    out: Outlet
    group: asyncio.TaskGroup
    room: Room
    reader: Executor
    trouble: _Trouble
    watch: Watch


class _Trouble:
    """All that is not well now, by whom it befell; said in one line."""

    def __init__(self, out: Outlet) -> None:
        self._out = out
        self._of: dict[object, str] = {}

    def say(self, who: object, why: str | None) -> None:
        if self._of.get(who) == why:
            return
        if why is None:
            del self._of[who]
        else:
            self._of[who] = why
        shown = "; ".join(islice(self._of.values(), _SHOWN))
        more = len(self._of) - _SHOWN
        self._out.degraded(f"{shown}; and {more} more" if more > 0 else shown or None)


class _Pool:
    """The targets of one job, as they come and go."""

    def __init__(self, job: Job, fetcher: Fetcher, shared: _Shared) -> None:
        self._job, self._fetcher, self._shared = job, fetcher, shared
        self._found: dict[int, list[dict[str, str]]] = {}
        self._running: dict[Target, asyncio.Task[None]] = {}

    def discovered(self, way: int, report: Report) -> None:
        """Take up what one way of discovery knows."""
        name = self._job.job_name
        self._shared.trouble.say((name, way), report.failing and f"{name}: {report.failing}")
        if report.found is not None:
            self._found[way] = report.found
            self._adjust(targets_of(self._job, chain.from_iterable(self._found.values())))

    def _adjust(self, found: Found) -> None:
        self._shared.trouble.say(self._job.job_name, "; ".join(_faults(found)[:_SHOWN]) or None)
        for target in self._running.keys() - set(found.targets):
            self._running.pop(target).cancel()
            self._shared.trouble.say(target, None)
        for target in found.targets:
            if target not in self._running:
                self._running[target] = self._shared.group.create_task(self._scrapes(target))

    async def _scrapes(self, target: Target) -> None:
        """On the beat of the target, for as long as it is one."""
        now, reading = asyncio.get_running_loop().time, Reading(self._job, target, self._shared.watch)
        offset_s = _fraction(target) * target.interval_s
        await asyncio.sleep(offset_s)
        started = now()
        while True:
            await self._scrape(target, reading)
            await asyncio.sleep(until_beat_s(now() - started, target.interval_s))

    async def _scrape(self, target: Target, reading: Reading) -> None:
        shared, at_unix_s = self._shared, self._shared.watch.clock()
        started = monotonic()
        try:
            with shared.room.share() as share:
                fetched = await self._fetcher.fetch(target, share)
                read = asyncio.get_running_loop().run_in_executor(shared.reader, reading.take, fetched, at_unix_s)
                taken = await read
        except (FetchError, PageError) as error:
            fault: StrEnum = error.fault
            why = str(error)
        except Exception as error:  # whatever it is, the other targets go on
            log.exception("a page could not be read", target=target.name)
            fault, why = Unforeseen.FAILED, repr(error)
        else:
            shared.trouble.say(target, None)
            self._publish(reading.events(taken, at_unix_s, monotonic() - started))
            for oddity, number in taken.oddities.items():
                shared.out.refuse(oddity, number)
            return
        shared.trouble.say(target, f"{target.name}: {why}")
        shared.out.refuse(fault)
        self._publish(reading.failed(fault, at_unix_s, monotonic() - started))

    def _publish(self, events: Sequence[Event]) -> None:
        self._shared.out.put(EventType.RESOURCE, events)


class Unforeseen(StrEnum):
    """A mistake of ours."""

    FAILED = "failed"


class Reading:
    """What is remembered of one target from page to page."""

    def __init__(self, job: Job, target: Target, watch: Watch) -> None:
        self._job = job
        self._known: dict[bytes, Series] = {}
        self._accounts = Accounts(
            Identity(watch.host, dict(target.labels)),
            watching_since_unix_s=watch.since_unix_s,
            relabel=relabelling(job.metric_relabel_configs),
            honor_labels=job.honor_labels,
            honor_timestamps=job.honor_timestamps,
            max_series=job.max_samples,
        )
        self._scraped = 0

    def take(self, fetched: Fetched, at_unix_s: float) -> Taken:
        """What a page comes to. Raises PageError."""
        page = parsed(fetched, self._job, self._known)
        self._known, self._scraped = page.known, len(page.samples)
        return self._accounts.take(page, at_unix_s)

    def events(self, taken: Taken, at_unix_s: float, duration_s: float) -> list[Event]:
        """Those of the page, and of its scrape."""
        own = self._accounts.of_scrape(
            at_unix_s,
            {
                "up": 1.0,
                "scrape_duration_seconds": duration_s,
                "scrape_samples_scraped": float(self._scraped),
                "scrape_samples_post_metric_relabeling": float(taken.samples),
                "scrape_series_added": float(taken.series_added),
            },
        )
        same = [event for event in taken.events if _about(event) == _about(own)]
        for event in same:
            event["metrics"] |= own["metrics"]
        return [*([] if same else [own]), *taken.events]

    def failed(self, fault: StrEnum, at_unix_s: float, duration_s: float) -> list[Event]:
        """Those of a scrape that brought no page."""
        down = self._accounts.of_scrape(at_unix_s, {"up": 0.0, "scrape_duration_seconds": duration_s})
        counted = {**down, "labels": {**down["labels"], "reason": str(fault)}, "metrics": {}}
        return [down, {**counted, "counters": {"scrape_failures_total": 1.0}}]


def _about(event: Event) -> Any:
    return event["id"], event["labels"], event["time_unix_s"]


def parsed(fetched: Fetched, job: Job, known: Mapping[bytes, Series]) -> Page:
    """The page in its format. Raises PageError."""
    if fetched.format is Format.PROTOBUF:
        from streammon_agents.scrape.protobuf import parse_protobuf  # only who asks for it loads it

        return parse_protobuf(fetched.body, limits=job.limits, known=known)
    return parse(fetched.body, openmetrics=fetched.format is Format.OPENMETRICS, limits=job.limits, known=known)


def _faults(found: Found) -> list[str]:
    omitted = [f"{found.omitted} targets more than target_limit"] if found.omitted else []
    return [*omitted, *found.faults]


def _fraction(target: Target) -> float:
    """Where in the interval a target has its place: always the same one, each target another."""
    return int.from_bytes(hashlib.blake2b(repr(target).encode(), digest_size=4).digest(), "big") / 2**32
