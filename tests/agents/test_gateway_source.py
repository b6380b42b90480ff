"""The gateway as a source of the agent: what it writes, and what a sender cannot do to it."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from streammon.broker import Outgoing
from streammon.broker.embedded import EmbeddedBroker
from streammon.config import load
from streammon.errors import Backpressure, Retryable, StreammonError
from streammon.topics import INPUT_TOPICS, topic_specs
from streammon.wire import Fault, decode
from streammon_agents.agent import run_agent
from streammon_agents.gateway import cloudevents, http
from streammon_agents.gateway import events as gateway
from streammon_agents.gateway.gathering import Gathering
from streammon_agents.gateway.ndjson import single_of
from streammon_agents.gateway.serving import Gateway
from tests.outlets import Kept
from tests.support import eventually


def typed(**fields: Any) -> dict[str, Any]:
    event = {"time_unix_s": 1.7e9, "service": "shop", "model": "ranker", "duration_s": 0.01, "status": "ok"}
    return {"type": "inference", **event, **fields}


@asynccontextmanager
async def listening(out: Kept, **gateway_settings: Any) -> AsyncIterator[int]:
    """The port of a gateway that writes to ``out``."""
    limits = load(agent={"gateway": {"port": 0, **gateway_settings}}).agent.gateway
    port: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    source = Gateway(limits, lambda into: gateway.routes(into, limits), port.set_result)
    running = asyncio.create_task(source.run(out))
    try:
        yield await asyncio.wait_for(port, 5)
    finally:
        running.cancel()
        await asyncio.wait({running}, timeout=5)
        assert running.cancelled()


async def answers(port: int, *events: dict[str, Any]) -> list[tuple[int, dict[str, Any]]]:
    """To as many requests at the same time."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:

        async def one(event: dict[str, Any]) -> tuple[int, dict[str, Any]]:
            async with session.post(f"http://127.0.0.1:{port}/v1/events", json=event) as response:
                return response.status, await response.json()

        return await asyncio.gather(*map(one, events))


async def post(port: int, *events: dict[str, Any]) -> list[int]:
    """The statuses alone."""
    return [status for status, _ in await answers(port, *events)]


def sent(records: list[Outgoing]) -> list[list[dict[str, Any]]]:
    values = [json.loads(record.value or b"") for record in records]
    return [value if isinstance(value, list) else [value] for value in values]


class Held(Kept):
    """An outlet whose appends wait until they are let go."""

    def __init__(self, failure: StreammonError | None = None) -> None:
        super().__init__(failure)
        self.go = asyncio.Event()
        self.appends = 0

    async def append(self, records: Any) -> None:
        self.appends += 1
        await self.go.wait()
        await super().append(records)


def take(gathering: Gathering, **fields: Any) -> asyncio.Task[Fault | None]:
    value = json.dumps(typed(**fields)).encode()
    event = single_of(value, None)
    assert event is not None
    return asyncio.create_task(gathering.take(value, event))


async def test_events_that_come_while_an_append_is_under_way_are_the_next_one() -> None:
    out = Held()
    gathering = Gathering(out)
    first = take(gathering, event_id="first")
    await eventually(lambda: out.appends == 1)
    others = [take(gathering, event_id=f"e{n}", model=f"m{n % 2}", duration_s=-(n % 3 == 1)) for n in range(40)]
    await asyncio.sleep(0)  # each has its turn
    out.go.set()
    faults = [fault and fault.reason for fault in await asyncio.gather(first, *others)]
    assert out.appends == 2
    [[alone], *groups] = sent(out.records)
    assert (alone["event_id"], [len(group) for group in groups]) == ("first", [20, 20])
    assert [{event["model"] for event in group} for group in groups] == [{"m0"}, {"m1"}]
    ids = sorted(int(event["event_id"][1:]) for group in groups for event in group)
    assert ids == list(range(40))
    assert faults == [None, *("negative" if n % 3 == 1 else None for n in range(40))], "each its own"


async def test_an_event_with_an_identity_is_a_record_of_its_own() -> None:
    out = Held()
    async with listening(out) as port:
        first = asyncio.create_task(post(port, typed()))
        await eventually(lambda: out.appends == 1)
        numbered = asyncio.create_task(post(port, typed(agent="a", boot="b", seq=0)))
        await eventually(lambda: out.appends == 2)  # it waits for nobody
        out.go.set()
        assert (await first, await numbered) == ([202], [202])
    assert sent(out.records) == [[typed()], [typed(agent="a", boot="b", seq=0)]]


async def test_what_is_wrong_with_an_event_is_told_to_its_own_sender() -> None:
    async with listening(Kept()) as port:
        told = await answers(port, typed(), typed(duration_s=-1), typed())
    good = {"accepted": 1, "rejected": 0, "reasons": {}}
    assert [answer for _, answer in told] == [good, {"accepted": 0, "rejected": 1, "reasons": {"negative": 1}}, good]


async def test_a_failed_append_is_told_to_everybody_whose_events_were_in_it() -> None:
    out = Held(Backpressure("full", 2.0))
    async with listening(out) as port:
        told = asyncio.create_task(post(port, *[typed()] * 5))
        await eventually(lambda: out.appends)
        out.go.set()
        assert await told == [429] * 5
        out.failure = Retryable("away")
        assert await post(port, typed()) == [503]
        out.failure = None
        assert await post(port, typed()) == [202]
    assert out.records


async def test_a_backlog_is_answered_with_429() -> None:
    out = Kept()
    async with listening(out, max_backlog_bytes=2000) as port:
        out.backlog = 2001
        assert await post(port, typed()) == [429]
        out.backlog = 2000
        assert await post(port, typed()) == [202]


async def test_in_an_agent_events_and_predictions_and_metrics_reach_the_log(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.bind(("127.0.0.1", 0))
        port, udp = free.getsockname()[1], sender.getsockname()[1]
    settings = load(
        data_dir=tmp_path,
        agent={
            "host": "here",
            "sources": ["gateway", "statsd"],
            "gateway": {"port": port},
            "statsd": {"port": udp, "flush_s": 0.1},
        },
    )
    broker, stop = await EmbeddedBroker.open(settings), asyncio.Event()
    await broker.create_topics(topic_specs(partitions=1))
    agent = asyncio.create_task(run_agent(broker, settings, stop=stop))
    try:

        async def taken() -> bool:
            try:
                return await post(port, typed()) == [202]
            except aiohttp.ClientConnectionError:
                return False

        await eventually(taken)
        attributes = {"id": "a1", "source": "/", "specversion": "1.0", "inferenceservicename": "iris"}
        async with aiohttp.ClientSession() as session:
            for kind, data in (("request", {"instances": [1]}), ("response", {"predictions": [2]})):
                event = {**attributes, "type": f"org.kubeflow.serving.inference.{kind}", "data": data}
                headers = {"Content-Type": cloudevents.STRUCTURED}
                url = f"http://127.0.0.1:{port}{cloudevents.PATH}"
                assert (await session.post(url, data=json.dumps(event), headers=headers)).status == 200
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"shop.sold:3|c|@0.5", ("127.0.0.1", udp))
    finally:
        stop.set()  # and what came until then is published
        await asyncio.wait_for(agent, 10)
    reader = await broker.reader(["inference", "resources"])
    found: dict[str, list[dict[str, Any]]] = {}
    while reader.positions() != await reader.ends():
        for partition, records in (await reader.poll()).items():
            for record in records:
                for batch in decode(INPUT_TOPICS[partition.topic], record.value or b""):
                    rows = [batch.rows.event(row) for row in range(len(batch.rows))]
                    found.setdefault(partition.topic, []).extend(rows)
    await broker.close()
    assert [event["service"] for event in found["inference"]] == ["shop", "iris"]
    [sold] = found["resources"]
    assert (sold["host"], sold["id"], sold["counters"]) == ("here", "shop", {"shop.sold": 6.0})


async def test_a_taken_port_is_a_degraded_state_and_tried_again() -> None:
    out, port = Kept(), asyncio.get_running_loop().create_future()
    with socket.create_server(("127.0.0.1", 0)) as other:
        limits = load(agent={"gateway": {"port": other.getsockname()[1]}}).agent.gateway
        source = Gateway(limits, lambda into: gateway.routes(into, limits), port.set_result)
        [finding] = source.check()
        assert (finding.seen, finding.detail) == (False, "another process listens there")
        running = asyncio.create_task(source.run(out))
        await eventually(lambda: out.states)
    try:
        assert "another process listens there" in (out.states[0] or "")
        await asyncio.wait_for(port, 10)
        assert out.states[-1] is None
        assert await post(port.result(), typed()) == [202]
    finally:
        running.cancel()
        await asyncio.wait({running})


async def test_connections_beyond_the_limit_are_told_so_and_the_others_work() -> None:
    out = Kept()
    async with listening(out, max_connections=2) as port:
        idle = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        assert b"503" in await asyncio.wait_for(reader.read(), 5)
        for _, one in idle:
            one.close()

        async def taken() -> bool:
            return await post(port, typed()) == [202]

        await eventually(taken)
        writer.close()


async def test_half_open_and_slow_connections_are_closed(monkeypatch: Any) -> None:
    monkeypatch.setattr(http, "BODY_S", 0.3)
    async with listening(Kept(), idle_timeout_s=0.3) as port:
        silent, _ = await asyncio.open_connection("127.0.0.1", port)
        header, half = await asyncio.open_connection("127.0.0.1", port)
        half.write(b"POST /v1/events HTTP/1.1\r\nHost: ")
        body, slow = await asyncio.open_connection("127.0.0.1", port)
        slow.write(
            b"POST /v1/events HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 10\r\n\r\n{"
        )
        assert await asyncio.wait_for(silent.read(), 5) == b""
        assert await asyncio.wait_for(header.read(), 5) == b""
        assert (await asyncio.wait_for(body.readline(), 5)).startswith(b"HTTP/1.1 408 ")
