"""What every source of an agent has to keep, one body for all of them."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import aiohttp
import pytest

from streammon.config import load
from streammon_agents.agent import sources_of
from streammon_agents.gateway import events
from streammon_agents.gateway.serving import Gateway
from streammon_agents.source import Source
from streammon_agents.statsd.serving import Statsd
from tests import gpus
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


SOURCES: Mapping[str, Callable[[Path], Source]] = {
    "host": by_name("host"),
    "gpu": by_name("gpu"),
    "otlp": otlp,
    "gateway": gateway,
    "statsd": statsd,
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
