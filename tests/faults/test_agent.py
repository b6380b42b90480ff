"""An agent, its spool and a Kafka that goes away: nothing is lost, all is counted once, live data do not wait."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from streammon.broker import Broker, Outgoing, connect
from streammon.broker.reading import read
from streammon.config import Settings, load
from streammon.events import EventType
from streammon.servers import Server
from streammon.topics import topic_specs
from streammon.wire import decode
from streammon_agents.agent import carrier_of, run_agent
from streammon_agents.spool import Spool
from tests.outages import Load, arrived, counted
from tests.support import cli, eventually, wait_until

pytestmark = pytest.mark.kafka


@pytest.fixture(scope="module")
def own_kafka(start_server: Callable[..., Server]) -> Iterator[Server]:
    """A Kafka that is stopped and killed."""
    made = tempfile.TemporaryDirectory(prefix="streammon-test-", ignore_cleanup_errors=True)
    with made as directory, start_server("kafka", Path(directory)) as kafka:
        yield kafka


def settings_of(kafka: Server, unique: str, path: Path, **agent: Any) -> Settings:
    return load(
        bootstrap=kafka.address,
        data_dir=path,
        topics={"prefix": f"{unique}.", "partitions": 1},
        kafka={"delivery_timeout_s": 1.0},
        agent={"host": "here", "spool": {"after_s": 1.0}, **agent},
    )


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[Broker]:
    broker = await connect(settings)
    try:
        await broker.create_topics(topic_specs(partitions=1))
        yield broker
    finally:
        await broker.close()


async def close_windows(broker: Broker) -> None:
    """By an event of another series, later than all others, as far as the future is believed."""
    event = b'{"time_unix_s":%f,"service":"end","model":"end","duration_s":0,"status":"ok","request_id":"end"}'
    await broker.append([Outgoing("inference", b"end/end", event % (time.time() + 30))])


async def test_nothing_is_lost_or_counted_twice_while_kafka_freezes_and_dies_and_live_data_do_not_wait(
    own_kafka: Server, unique: str, tmp_path: Path
) -> None:
    settings = settings_of(own_kafka, unique, tmp_path)
    async with opened(settings) as broker:
        stop, source, senders = asyncio.Event(), Load(1000), Load(100, first=10_000_000, awaited=True)
        carrier = carrier_of(broker, settings)
        agent = asyncio.create_task(run_agent(broker, settings, stop=stop, sources=[source, senders], carrier=carrier))
        await eventually(lambda: source.sent > 1000)
        os.kill(own_kafka.pid, signal.SIGSTOP)
        await eventually(lambda: carrier.details()["spool"] != "empty", 20, "the spool")
        await asyncio.sleep(2)
        os.kill(own_kafka.pid, signal.SIGCONT)
        await eventually(lambda: carrier.details()["spool"] == "empty", 30, "the end of the backlog")
        own_kafka.kill()
        await eventually(lambda: carrier.details()["spool"] != "empty", 20, "the spool")
        await asyncio.to_thread(own_kafka.restart)
        await eventually(lambda: carrier.away is None, 30, "Kafka")
        back = time.time()
        await eventually(lambda: carrier.details()["spool"] == "empty", 30, "the end of the backlog")
        await asyncio.sleep(1)
        stop.set()
        await agent
        await close_windows(broker)
        offset = broker.clock_offset()
        assert offset is not None
        assert abs(offset.offset_s) <= offset.uncertainty_s + 0.002, "it is the same clock"
        found, log = await arrived(broker)
    sums = counted(log, settings)
    assert {int(each) for each in found.requests if each != "end"} == {*source.numbers, *senders.numbers}
    assert sums["count"] == source.sent + senders.sent
    assert (sums["missing"], sums["dropped"], sums["rejected"]) == (0, 0, 0)
    assert source.latest_s < 0.5, "whoever hands over does not wait for Kafka"
    assert senders.latest_s < 8, "who waits for it to be durable waits until the disk takes over"
    assert found.slowest_s(back + 0.5, 0.99) < 1.0


async def test_agent_stopped_or_killed_while_kafka_is_away_loses_nothing_of_what_was_spooled(
    own_kafka: Server, unique: str, tmp_path: Path
) -> None:
    settings = settings_of(own_kafka, unique, tmp_path)
    async with opened(settings) as broker:
        config = tmp_path / "streammon.yaml"
        config.write_text(
            f"bootstrap: {own_kafka.address}\ndata_dir: {tmp_path}\ntopics: {{prefix: {unique}., partitions: 1}}\n"
            "agent: {host: here, interval_s: 0.05, sources: [host], spool: {after_s: 0.5}}\n"
        )
        os.kill(own_kafka.pid, signal.SIGSTOP)
        try:
            spool = tmp_path / "spool"
            for ended_by, size in ((signal.SIGTERM, 30_000), (signal.SIGKILL, 100_000)):
                process = cli("agent", "--config", config)
                await asyncio.to_thread(wait_until, partial(_holds, spool, size), 60, "the spool")
                process.send_signal(ended_by)
                status = await asyncio.to_thread(process.wait, 10)
                assert status == (0 if ended_by is signal.SIGTERM else -signal.SIGKILL)
        finally:
            os.kill(own_kafka.pid, signal.SIGCONT)
        spooled = _moments_in(spool, tmp_path / "copy")
        process = cli("agent", "--config", config)
        try:
            await eventually(lambda: not list(spool.glob("[0-9]*")), 60, "the end of the backlog")
        finally:
            process.terminate()
        assert await asyncio.to_thread(process.wait, 10) == 0
        moments = set()
        identities = []
        async for _, records in read(broker, ["resources"]):
            for record in records:
                for batch in decode(EventType.RESOURCE, record.value or b""):
                    identities.append(batch.identity)
                    moments |= {batch.rows.event(row)["time_unix_s"] for row in range(len(batch.rows))}
    assert len(spooled) > 20
    assert spooled <= moments
    assert len(set(identities)) == len(identities)


def _holds(spool: Path, size: int) -> bool:
    return sum(each.stat().st_size for each in spool.glob("[0-9]*")) > size


def _moments_in(directory: Path, copy: Path) -> set[float]:
    """The times of the events in a spool."""
    shutil.copytree(directory, copy)
    spool, moments = Spool.open(copy, 1024**3, "reader"), set()
    while entries := spool.take(1024**2):
        for entry in entries:
            for batch in decode(EventType.RESOURCE, entry.value):
                moments |= {batch.rows.event(row)["time_unix_s"] for row in range(len(batch.rows))}
        spool.done()
    spool.close()
    return moments
