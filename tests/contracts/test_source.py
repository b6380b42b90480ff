"""What every source of an agent has to keep, one body for all of them."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import aiohttp
import pytest

from streammon.broker import Outgoing
from streammon.config import load
from streammon.errors import Backpressure, Reason, Rejected, Retryable, StreammonError
from streammon.events import EventType
from streammon_agents.agent import sources_of
from streammon_agents.gateway import events
from streammon_agents.gateway.serving import Gateway
from streammon_agents.source import Event, Source
from streammon_agents.statsd.serving import Statsd
from tests import gpus
from tests.agents.containers.trees import tree
from tests.outlets import Kept
from tests.support import eventually


def by_name(name: str) -> Callable[[Path], Source]:
    """A source as the agent makes it, with the settings it has by default."""

    def make(path: Path) -> Source:
        settings = load(data_dir=path, agent={"sources": [name], "interval_s": 0.05, "host": "here"})
        [source] = sources_of(settings)
        return source

    return make


@contextmanager
def _a_gpu(path: Path) -> Iterator[None]:
    with gpus.nvml(path) as nvml:
        nvml.say({"count": 1} | gpus.gpu(0, **gpus.FULL))
        yield


SURROUNDINGS: Mapping[str, Callable[[Path], AbstractContextManager[object]]] = {"gpu": _a_gpu}
"""By name, what a source needs around it."""


def otlp(path: Path) -> Source:
    """One that is sent a span again and again: it publishes what it is told."""
    from tests.agents.otlp_senders import Told

    return Told(path)


def gateway(path: Path) -> Source:
    """With a sender."""
    limits = load(data_dir=path, agent={"gateway": {"port": 0}}).agent.gateway
    sending: list[asyncio.Task[None]] = []  # a task that nobody holds may be collected

    async def send(port: int) -> None:
        event = {"type": "change", "time_unix_s": 1.7e9, "service": "shop", "kind": "deploy"}
        async with aiohttp.ClientSession() as session:
            await session.post(f"http://127.0.0.1:{port}{events.PATH}", json=event)

    def listening(port: int) -> None:
        sending.append(asyncio.get_running_loop().create_task(send(port)))

    return Gateway(limits, lambda out: events.routes(out, limits), listening)


def statsd(path: Path) -> Source:
    """With a sender."""

    def listening(port: int) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"shop.sold:1|c", ("127.0.0.1", port))

    return Statsd(
        load(data_dir=path, agent={"statsd": {"port": 0, "flush_s": 0.05}}).agent.statsd, "here", listening=listening
    )


def containers(path: Path) -> Source:
    """With a recorded tree of cgroups: there may be none here."""
    sysfs = tree("v2_kubernetes", path / "sys")
    agent = {"sources": ["containers"], "interval_s": 0.05, "host": "here", "sysfs": str(sysfs)}
    [source] = sources_of(load(data_dir=path, agent=agent))
    return source


def scrape(path: Path) -> Source:
    """A target that is away is published, too."""
    given = {"job_name": "away", "scrape_interval": "50ms", "static_configs": [{"targets": ["127.0.0.1:1"]}]}
    [source] = sources_of(load(data_dir=path, agent={"sources": ["scrape"], "scrape": {"jobs": [given]}}))
    return source


def logs(path: Path) -> Source:
    """Log files, of which there is one."""
    (path / "app.log").write_text("ready\n")
    inputs = {"inputs": [{"paths": [str(path / "*.log")]}], "multiline_s": 0.05}
    [source] = sources_of(load(data_dir=path, agent={"sources": ["logs"], "host": "here", "logs": inputs}))
    return source


SOURCES: Mapping[str, Callable[[Path], Source]] = {
    "host": by_name("host"),
    "containers": containers,
    "gpu": by_name("gpu"),
    "otlp": otlp,
    "gateway": gateway,
    "statsd": statsd,
    "scrape": scrape,
    "logs": logs,
}
"""By name, a source that publishes soon after it was started, without further help."""


@pytest.fixture(params=SOURCES)
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Source]:
    with SURROUNDINGS.get(request.param, nullcontext)(tmp_path):
        yield SOURCES[request.param](tmp_path)


def test_check_says_what_will_be_seen_and_why_not(source: Source) -> None:
    started = time.monotonic()
    findings = list(source.check())
    assert time.monotonic() - started < 5
    assert all(finding.what for finding in findings)
    assert all(finding.detail for finding in findings if not finding.seen), "what is not seen says why"


async def test_publishes_valid_events_until_it_is_cancelled(source: Source) -> None:
    out = Kept()  # takes valid events only
    running = asyncio.create_task(source.run(out))
    try:
        await eventually(lambda: out.events or out.records or running.done(), 20)
        assert not running.done(), "a source runs until it is cancelled"
    finally:
        running.cancel()
        _, late = await asyncio.wait({running}, timeout=2)
        assert not late, "a source ends at once"


@pytest.mark.parametrize("failure", [Retryable("away"), Backpressure("full", 0.01), Rejected(Reason.REFUSED, "never")])
async def test_goes_on_when_nothing_is_taken_from_it(source: Source, failure: StreammonError) -> None:
    """Its senders are told, or it tries again, or drops and counts: what never happens is that it ends."""
    out = Failing(failure)
    running = asyncio.create_task(source.run(out))
    try:
        await eventually(lambda: out.tried or running.done(), 20)
        await asyncio.wait({running}, timeout=0.1)
        assert not running.done(), "a source runs until it is cancelled"
    finally:
        await _ends(running)


async def test_ends_at_once_at_whatever_moment_it_is_cancelled_and_can_run_again(source: Source) -> None:
    for delay_s in (None, 0.0, 0.001, 0.01, 0.1):
        running = asyncio.create_task(source.run(Kept()))
        if delay_s is not None:
            await asyncio.wait({running}, timeout=delay_s)
            assert not running.done(), "it runs again as it ran before"
        await _ends(running)


async def test_check_may_be_asked_while_it_runs(source: Source) -> None:
    running = asyncio.create_task(source.run(Kept()))
    try:
        await asyncio.wait({running}, timeout=0.05)
        assert all(finding.what for finding in await asyncio.to_thread(lambda: list(source.check())))
        assert not running.done()
    finally:
        await _ends(running)


async def test_does_not_say_that_it_is_degraded_while_it_sees_everything(source: Source) -> None:
    out = Kept()
    running = asyncio.create_task(source.run(out))
    try:
        await eventually(lambda: out.events or out.records or running.done(), 20)
        if all(finding.seen for finding in await asyncio.to_thread(lambda: list(source.check()))):
            assert not out.states or out.states[-1] is None
    finally:
        await _ends(running)


class Failing(Kept):
    """Nothing is taken but by `put`."""

    def __init__(self, failure: StreammonError) -> None:
        super().__init__(failure)
        self.tried = 0

    def put(self, event_type: EventType, events: Sequence[Event]) -> None:
        self.tried += 1
        super().put(event_type, events)

    async def send(self, event_type: EventType, events: Sequence[Event]) -> None:
        self.tried += 1
        await super().send(event_type, events)

    async def append(self, records: Sequence[Outgoing]) -> None:
        self.tried += 1
        await super().append(records)


async def _ends(running: asyncio.Task[None]) -> None:
    running.cancel()
    _, late = await asyncio.wait({running}, timeout=2)
    assert not late, "a source ends at once"
    assert running.cancelled(), "a source does not end otherwise than by being cancelled"
