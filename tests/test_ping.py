"""The ping to somebody outside: sent while all is well, bounded, and silent about where it goes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web
from structlog.testing import capture_logs

from streammon.broker import Outgoing, connect
from streammon.config import PingSettings, Settings
from streammon.errors import ConfigError
from streammon.ping import TRIES, Flow, ping_url, pinging
from streammon.telemetry import serve_http
from streammon.tick import tick
from streammon.topics import ROLLUP_HEADER, topic_specs
from tests.support import eventually

SECRET = "s3cr3t-check"


class Outside:
    """The service outside: what came, and what it answers."""

    def __init__(self) -> None:
        self.came: list[str] = []
        self.statuses: list[int] = []
        self.hangs = False
        self.closing = asyncio.Event()
        self.url = ""

    async def answer(self, request: web.Request) -> web.Response:
        self.came.append(request.method)
        if self.hangs:
            await self.closing.wait()
        return web.Response(status=self.statuses.pop(0) if self.statuses else 200)


@pytest.fixture
async def outside() -> AsyncIterator[Outside]:
    service = Outside()
    app = web.Application()
    app.add_routes([web.get(f"/{SECRET}", service.answer)])
    async with serve_http(app, "127.0.0.1", 0) as port:
        service.url = f"http://127.0.0.1:{port}/{SECRET}"
        yield service
        service.closing.set()


@asynccontextmanager
async def running(url: str, healthy: Callable[[], str | None], **settings: float) -> AsyncIterator[None]:
    async def complaint() -> str | None:
        return healthy()

    stop = asyncio.Event()
    options = {"url": url, "interval_s": 0.05, "timeout_s": 0.2, **settings}
    task = asyncio.create_task(pinging(PingSettings.model_validate(options), complaint, stop=stop))
    try:
        yield
        assert not task.done()
    finally:
        stop.set()
        async with asyncio.timeout(2):
            await task


async def test_a_ping_is_sent_every_interval_but_only_while_all_is_well(outside: Outside) -> None:
    complaints: list[str | None] = [None]
    asked = 0

    def healthy() -> str | None:
        nonlocal asked
        asked += 1
        return complaints[0]

    async with running(outside.url, healthy):
        await eventually(lambda: len(outside.came) >= 3, 5, "three pings")
        assert set(outside.came) == {"GET"}
        complaints[0] = "nobody is alive of: process"
        await eventually(lambda: asked > 5, 5, "a look after the complaint")
        before, looks = len(outside.came), asked
        await eventually(lambda: asked > looks + 3, 5, "more looks")
        assert len(outside.came) == before
        complaints[0] = None
        await eventually(lambda: len(outside.came) > before, 5, "pings again")


async def test_a_ping_that_fails_is_tried_again_within_its_interval(outside: Outside) -> None:
    outside.statuses = [500, 503]
    async with running(outside.url, lambda: None, interval_s=100.0):
        await eventually(lambda: len(outside.came) == TRIES, 10, "the third try")


async def test_no_trouble_outside_reaches_us_and_no_log_holds_the_url(outside: Outside) -> None:
    refused = f"http://127.0.0.1:9/{SECRET}"
    with capture_logs() as logs:
        outside.hangs = True
        async with running(outside.url, lambda: None):
            await eventually(lambda: len(outside.came) >= 2, 10, "a second try after a time-out")
        async with running(refused, lambda: None):
            await eventually(lambda: any("ClientConnector" in str(each) for each in logs), 10, "the complaint")
        outside.hangs, outside.statuses = False, [404] * 9
        async with running(outside.url, lambda: None):
            await eventually(lambda: any("404" in str(each) for each in logs), 10, "the complaint")
    assert SECRET not in str(logs)


async def test_without_a_url_nothing_is_sent() -> None:
    stop = asyncio.Event()

    async def healthy() -> str | None:
        raise AssertionError("nobody asks")

    task = asyncio.create_task(pinging(PingSettings(), healthy, stop=stop))
    stop.set()
    await asyncio.wait_for(task, 2)


@pytest.mark.parametrize("url", ["ftp://x/s3cr3t-check", "s3cr3t-check", "http://[s3cr3t-check"])
def test_a_wrong_url_is_a_configuration_error_that_does_not_show_it(url: str, tmp_path: Path) -> None:
    (file := tmp_path / "url").write_text(f"{url}\n")
    for settings in (PingSettings.model_validate({"url": url}), PingSettings(url_file=file)):
        with pytest.raises(ConfigError, match=r"ping\.url") as caught:
            ping_url(settings)
        assert SECRET not in str(caught.value)
        assert SECRET not in repr(settings)


def test_the_url_may_be_in_a_file_of_its_own(tmp_path: Path) -> None:
    (file := tmp_path / "url").write_text("https://hc.example/uuid\n")
    assert ping_url(PingSettings(url_file=file)) == "https://hc.example/uuid"


async def test_events_flow_while_windows_keep_coming(tmp_path: Path) -> None:
    broker = await connect(Settings(data_dir=tmp_path))
    await broker.create_topics(topic_specs(partitions=2))
    flow = Flow(broker, stale_s=0.2)
    try:
        assert await flow() == "no new window yet"
        assert await flow() == "no new window yet"
        await broker.append([Outgoing("windows", b"k", b"{}")])
        assert await flow() is None

        async def is_stale() -> bool:
            return await flow() is not None

        await eventually(is_stale, 5, "the complaint")
        await broker.append([Outgoing("windows", b"k", b"{}")])
        assert await flow() is None
    finally:
        await broker.close()


async def test_what_time_alone_brings_is_no_flow(tmp_path: Path) -> None:
    """Rules that wait for silence have ticks written into `windows`, and those end rollups."""
    broker = await connect(Settings(data_dir=tmp_path))
    await broker.create_topics(topic_specs(partitions=2))
    flow = Flow(broker, stale_s=60.0)
    try:
        assert await flow() == "no new window yet"
        await broker.append([tick("windows", 0), Outgoing("windows", b"k", b"{}", ((ROLLUP_HEADER, b"1m"),))])
        assert await flow() == "no new window yet"
        await broker.append([tick("windows", 0), Outgoing("windows", b"k", b"{}"), tick("windows", 1)])
        assert await flow() is None
    finally:
        await broker.close()
