"""Elasticsearch is away for long, or its answers are: bounded memory, and every document once."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path

import msgspec
import numpy as np
import pytest
from aiokafka.admin import AIOKafkaAdminClient
from elasticsearch import AsyncElasticsearch

from streammon.broker import Broker, Outgoing, connect
from streammon.config import ElasticsearchSettings, Settings
from streammon.errors import Retryable
from streammon.servers import Server, free_ports
from streammon.topics import topic_specs
from streammon_sinks.elasticsearch import ElasticsearchSink
from streammon_sinks.es_documents import WINDOWS
from tests.sinks.builders import distribution, item, window
from tests.support import cli, eventually

pytestmark = [pytest.mark.elasticsearch, pytest.mark.kafka]

BEFORE, BACKLOG = 1_000, 50_000
OUTAGE_S = 120.0
"""Long enough for a hundred tries, whatever each leaves behind."""
GROWTH_BYTES = 48 * 1024**2
"""What the outage may cost the sink in memory, far less than the backlog holds."""


class Line:
    """TCP to a server, byte for byte, that can be taken down: nobody listens, and every connection ends."""

    def __init__(self, target: int) -> None:
        [self._port] = free_ports(1)
        self.address = f"http://127.0.0.1:{self._port}"
        self.loses_answers = 0
        self._target = target
        self._writers: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None

    async def up(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self._port)

    def down(self) -> None:
        if self._server is not None:
            self._server.close()
        for writer in self._writers:
            writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", self._target)
        self._writers |= {writer, inner_writer}
        with suppress(OSError):  # either end may go at any time
            await asyncio.gather(self._copy(reader, inner_writer), self._copy(inner_reader, writer, answers=True))
        self._writers -= {writer, inner_writer}

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, answers: bool = False) -> None:
        while some := await reader.read(2**16):
            if answers and self.loses_answers:
                self.loses_answers -= 1
                break
            writer.write(some)
            await writer.drain()
        writer.transport.abort()


@pytest.fixture
async def line(elasticsearch: Server) -> AsyncIterator[Line]:
    line = Line(int(elasticsearch.address.rpartition(":")[2]))
    await line.up()
    yield line
    line.down()


@pytest.fixture
async def client(elasticsearch: Server) -> AsyncIterator[AsyncElasticsearch]:
    async with AsyncElasticsearch(elasticsearch.address) as client:
        yield client


async def documents(client: AsyncElasticsearch, namespace: str) -> int:
    """As of Elasticsearch's last refresh, which comes once a second."""
    patient = client.options(ignore_status=503)  # while the shard of a new index starts
    answer = await patient.count(index=f"{WINDOWS}-{namespace}", ignore_unavailable=True)
    return int(answer.body.get("count", 0))


WIDE = distribution(*np.geomspace(1e-3, 1e3, 1500).tolist())
"""Its sketch makes a record large, and is the one thing that costs Elasticsearch nothing."""


def windows(numbers: range) -> list[Outgoing]:
    """Window records of about 2.5 kB."""
    bare = dict.fromkeys(("ttft_s", "input_tokens", "output_tokens", "confidence", "gauges", "exemplars", "cost"))
    values = (msgspec.json.encode(window(number, duration_s=WIDE, **bare)) for number in numbers)
    return [Outgoing("windows", b"key", value, partition=n % 4) for n, value in zip(numbers, values, strict=True)]


def peak_bytes(pid: int) -> int:
    """The most memory that the process ever had."""
    [line] = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


async def members(settings: Settings) -> list[str]:
    """The ids of the sink's group: a member that was lost comes back under another."""
    admin = AIOKafkaAdminClient(bootstrap_servers=settings.bootstrap)
    await admin.start()
    try:
        [reply] = await admin.describe_consumer_groups([f"{settings.topics.prefix}sink-elasticsearch"])
        [(*_, found, _)] = reply.groups
        return [member[0] for member in found]
    finally:
        await admin.close()


@pytest.mark.timeout(420)
async def test_an_outage_costs_neither_memory_nor_membership_nor_a_document(
    kafka: Server, line: Line, client: AsyncElasticsearch, unique: str, tmp_path: Path
) -> None:
    settings = Settings(
        bootstrap=kafka.address,
        topics={"prefix": f"{unique}."},
        kafka={"compression": "none"},  # as processors write results
        elasticsearch={"url": line.address, "namespace": unique, "max_backoff_s": 0.5},
    )
    config = tmp_path / "streammon.json"
    config.write_text(settings.model_dump_json(include={"bootstrap", "topics", "elasticsearch"}, exclude_none=True))
    broker = await connect(settings)
    await broker.create_topics(topic_specs(partitions=4))
    sink = cli("sink", "elasticsearch", "--config", config)
    try:
        await append(broker, range(BEFORE))
        await eventually(lambda: holds(client, unique, BEFORE), 40, "the first documents")
        before_bytes, before_members = peak_bytes(sink.pid), await members(settings)

        line.down()
        began = time.monotonic()
        backlog_bytes = await append(broker, range(BEFORE, BEFORE + BACKLOG))
        await eventually(lambda: time.monotonic() - began > OUTAGE_S, 2 * OUTAGE_S, "the end of the outage")
        assert sink.poll() is None
        assert await members(settings) == before_members
        await line.up()

        await eventually(lambda: holds(client, unique, BEFORE + BACKLOG), 150, "every document")
        grown = peak_bytes(sink.pid) - before_bytes
        print(f"backlog {backlog_bytes / 2**20:.0f} MiB, memory {before_bytes / 2**20:.0f} + {grown / 2**20:.0f} MiB")
        assert grown < GROWTH_BYTES < backlog_bytes / 2
        assert await members(settings) == before_members
        sink.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(sink.wait, 10) == 0
    finally:
        sink.kill()
        sink.wait()
        await broker.close()


async def append(broker: Broker, numbers: range) -> int:
    """Their bytes."""
    size = 0
    for start in range(numbers.start, numbers.stop, 1000):
        records = windows(range(start, min(numbers.stop, start + 1000)))
        await broker.append(records)
        size += sum(len(record.value or b"") for record in records)
    return size


async def holds(client: AsyncElasticsearch, namespace: str, wanted: int) -> bool:
    found = await documents(client, namespace)
    assert found <= wanted, "a document too many"
    return found == wanted


async def test_documents_that_were_written_before_the_connection_broke_are_not_written_again(
    line: Line, client: AsyncElasticsearch, unique: str
) -> None:
    sink = ElasticsearchSink.connect(ElasticsearchSettings(url=line.address, namespace=unique))
    try:
        assert await sink.write([item(0, window(0))]) == []
        line.loses_answers = 2  # aiohttp itself tries once more where a connection was kept open
        records = [item(number, window(number)) for number in range(500)]
        with pytest.raises(Retryable):
            await sink.write(records)
        await eventually(lambda: holds(client, unique, 500), what="documents that nobody heard of")
        assert await sink.write(records) == []
        await client.indices.refresh(index=f"{WINDOWS}-{unique}")
        assert await documents(client, unique) == 500
    finally:
        await sink.close()
