"""Where an agent sends: through the real gateway, and to a broker that is not there yet."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from streammon.broker import Outgoing
from streammon.broker.embedded import EmbeddedBroker
from streammon.broker.reading import read
from streammon.config import load
from streammon.errors import Backpressure, Rejected, Retryable
from streammon.events import EventType
from streammon.telemetry import serve_http
from streammon.topics import topic_specs
from streammon.wire import SCHEMA_HEADER, Identity, encode
from streammon_agents.check import check_carrying
from streammon_agents.gateway import events as gateway
from streammon_agents.packing import Packer
from streammon_agents.uplink import Awaited, Gateway

EVENT = {"time_unix_s": 1.0, "service": "s", "model": "m", "duration_s": 0.0, "status": "ok"}


@asynccontextmanager
async def serving(*routes: web.RouteDef) -> AsyncIterator[Gateway]:
    app = web.Application()
    app.add_routes(routes)
    async with serve_http(app, "127.0.0.1", 0) as port, Gateway.open(f"http://127.0.0.1:{port}/", 5.0) as uplink:
        yield uplink


@asynccontextmanager
async def log_at(path: Path) -> AsyncIterator[EmbeddedBroker]:
    broker = await EmbeddedBroker.open(load(data_dir=path))
    await broker.create_topics(topic_specs(partitions=2))
    yield broker
    await broker.close()


async def test_records_arrive_through_a_gateway_as_they_are(tmp_path: Path) -> None:
    batches, _ = Packer("agent@h").pack(EventType.INFERENCE, [EVENT] * 200)
    [untyped] = encode(
        EventType.LOG, [{"time_unix_s": 1.0, "service": "s", "message": "é"}], identity=Identity("a", "b", 0)
    )
    sent = [batches[0].outgoing, Outgoing("logs", b"s", untyped.replace(b'"type":"log",', b""), (SCHEMA_HEADER,))]
    async with log_at(tmp_path) as broker, serving(*gateway.routes(broker, load().web)) as uplink:
        await uplink.append(sent)
        async for partition, records in read(broker, ["inference", "logs"]):
            for record in records:
                [mine] = [each for each in sent if each.topic == partition.topic]
                assert (record.key, record.value) == (mine.key, mine.value)
                sent.remove(mine)
    assert not sent


@pytest.mark.parametrize(
    ("status", "headers", "failure"),
    [
        (429, {"Retry-After": "7"}, Backpressure),
        (503, {}, Retryable),
        (404, {}, Retryable),
        (400, {}, Rejected),
        (413, {}, Rejected),
    ],
)
async def test_answers_become_our_errors(status: int, headers: dict[str, str], failure: type[Exception]) -> None:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(status=status, headers=headers, text="because")

    async with serving(web.post("/v1/events", answer)) as uplink:
        with pytest.raises(failure, match="because") as raised:
            await uplink.append([Outgoing("inference", b"s/m", b"{}")])
    if isinstance(raised.value, Backpressure):
        assert raised.value.retry_after_s == 7


async def test_gateway_that_is_not_there_may_come(free_port: int) -> None:
    async with Gateway.open(f"http://127.0.0.1:{free_port}", 5.0) as uplink:
        with pytest.raises(Retryable, match=str(free_port)):
            await uplink.append([Outgoing("inference", b"s/m", b"{}")])


async def test_password_in_the_address_of_a_gateway_is_shown_nowhere(free_port: int) -> None:
    url = f"http://me:secret@127.0.0.1:{free_port}"
    async with Gateway.open(url, 5.0) as uplink:
        with pytest.raises(Retryable, match=f"http://127.0.0.1:{free_port}/v1/events") as raised:
            await uplink.append([Outgoing("inference", b"s/m", b"{}")])
    found = await check_carrying(load(agent={"url": url}))
    assert "secret" not in f"{raised.value} {found}"


async def test_gateway_that_hangs_is_given_up_after_a_time() -> None:
    async def hang(_: web.Request) -> web.Response:
        await asyncio.sleep(3)
        return web.Response()

    app = web.Application()
    app.add_routes([web.post("/v1/events", hang)])
    async with serve_http(app, "127.0.0.1", 0) as port, Gateway.open(f"http://127.0.0.1:{port}", 0.2) as uplink:
        with pytest.raises(Retryable):
            await uplink.append([Outgoing("inference", b"s/m", b"{}")])


async def test_broker_that_does_not_answer_yet_fails_appends_after_a_time_and_takes_them_once_it_does(
    tmp_path: Path,
) -> None:
    uplink = Awaited(0.1)
    record = Outgoing("inference", b"s/m", b"{}")
    with pytest.raises(Retryable, match="not answered yet"):
        await uplink.append([record])
    async with log_at(tmp_path) as broker:
        uplink.is_there(broker)
        assert await uplink.append([record]) == [0]
