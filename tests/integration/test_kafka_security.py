"""Streammon on a Kafka with TLS, SASL and an authorizer: every way in, every refusal, every role's permissions."""

from __future__ import annotations

import asyncio
import http.server
import json
import logging
import re
import signal
import ssl
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from confluent_kafka import Consumer
from confluent_kafka import TopicPartition as KafkaPartition

from streammon import servers
from streammon.broker import Outgoing, TopicPartition
from streammon.broker.kafka import KafkaBroker
from streammon.broker.kafka.cluster import CONNECT_S
from streammon.broker.kafka.security import librdkafka_options
from streammon.config import Settings
from streammon.errors import ConfigError
from streammon.topics import TopicSpec, topic_specs
from streammon_sinks.sqlite import ResultStore
from tests.certificates import Authority
from tests.remedies import T0, alert
from tests.secured_kafka import ADMIN, PLAIN_PASSWORD, SecuredKafka, password_of, secured_kafka, unsecured_token
from tests.support import overlooked, wait_until

pytestmark = pytest.mark.kafka

PAGE = Path(__file__).parents[2] / "docs" / "operations.md"
OPERATIONS = (("READ", "topic"), ("WRITE", "topic"), ("READ", "group"), ("WRITE", "transactional id"))
"""What the columns of the table of permissions grant."""
IN, OUT, STATE = "in", "out", "state.p"
SPECS = [TopicSpec(IN, 1, 3600.0), TopicSpec(OUT, 1, 3600.0), TopicSpec(STATE, 1, None, compact=True)]

Acl = tuple[str, str, str]


def permissions_on_the_page() -> dict[str, list[Acl]]:
    """By role, the ACLs that the operations page grants it: (operation, kind, name without prefix)."""
    _, _, table = PAGE.read_text(encoding="utf-8").partition("| role | Read on topics |")
    roles: dict[str, list[Acl]] = {}
    for row in table.partition("\n\n")[0].splitlines()[2:]:
        role, *cells = (cell.strip() for cell in row.strip("|").split("|"))
        names = [re.findall(r"`([^`]+)`", cell) for cell in cells]
        roles[role.strip("`")] = [
            (*granted, name) for granted, each in zip(OPERATIONS, names, strict=True) for name in each
        ]
    return roles


def user_of(role: str) -> str:
    return role.replace(" ", "-")


@pytest.fixture(scope="module")
def secured(
    tmp_path_factory: pytest.TempPathFactory, start_server: Callable[..., servers.Server]
) -> Iterator[SecuredKafka]:
    users = ["somebody", "topics-create", *map(user_of, permissions_on_the_page())]
    with secured_kafka(tmp_path_factory.mktemp("secured"), users, start_server) as secured:
        yield secured


@asynccontextmanager
async def connected(settings: Settings) -> AsyncIterator[KafkaBroker]:
    broker = await KafkaBroker.connect(settings)
    try:
        yield broker
    finally:
        await broker.close()


def settings_for(secured: SecuredKafka, prefix: str, kafka: dict[str, Any], listener: str = "PASSWORDS") -> Settings:
    return Settings(
        bootstrap=secured.addresses[listener],
        topics={"prefix": f"{prefix}.", "partitions": 1},
        kafka={"delivery_timeout_s": 5, **kafka},
    )


# ---------------------------------------------------------------- ways in

Way = Callable[[SecuredKafka, Path], dict[str, Any]]
"""The settings of `kafka` for a broker, with files in a directory."""


def by_password(mechanism: str, password: str) -> Way:
    sasl = {"mechanism": mechanism, "username": ADMIN, "password": password}
    return lambda secured, _: {"tls": secured.tls(), "sasl": sasl}


def by_certificate(secured: SecuredKafka, directory: Path) -> dict[str, Any]:
    (directory / "key-password").write_text("open sesame\n")
    certificate = secured.authority.issue(ADMIN, password="open sesame")
    return {"tls": secured.tls(certificate_file=certificate, key_password_file=directory / "key-password")}


def by_token(life_s: float) -> Way:
    def way(secured: SecuredKafka, directory: Path) -> dict[str, Any]:
        (directory / "token").write_text(unsecured_token(ADMIN, life_s))
        return {"tls": secured.tls(), "sasl": {"mechanism": "OAUTHBEARER", "token_file": directory / "token"}}

    return way


WAYS: dict[str, tuple[str, Way]] = {
    "PLAIN": ("PASSWORDS", by_password("PLAIN", PLAIN_PASSWORD)),
    "SCRAM-SHA-256": ("PASSWORDS", by_password("SCRAM-SHA-256", password_of(ADMIN))),
    "SCRAM-SHA-512": ("PASSWORDS", by_password("SCRAM-SHA-512", password_of(ADMIN))),
    "a certificate": ("CERTIFICATES", by_certificate),
    "a token from a file": ("TOKENS", by_token(life_s=600)),
}


@pytest.mark.parametrize("name", WAYS)
async def test_both_clients_get_in_by(name: str, secured: SecuredKafka, tmp_path: Path, unique: str) -> None:
    listener, way = WAYS[name]
    await assert_both_clients_get_in(settings_for(secured, unique, way(secured, tmp_path), listener))


async def assert_both_clients_get_in(settings: Settings) -> None:
    async with connected(settings) as broker:
        await broker.create_topics(SPECS)
        await broker.append([Outgoing(IN, b"k", b"one", partition=0)])
        assert await first_value(broker, IN) == b"one"
    assert consumed(settings, IN) == b"one"


async def first_value(broker: KafkaBroker, topic: str) -> bytes | None:
    reader = await broker.reader([topic])
    try:
        [[record, *_]] = (await reader.poll(10)).values()
        return record.value
    finally:
        await reader.close()


def consumed(settings: Settings, topic: str) -> bytes | None:
    """The first record, as librdkafka's consumer reads it."""
    options = {"bootstrap.servers": settings.bootstrap, "group.id": f"{settings.topics.prefix}group"}
    consumer = Consumer({**options, **librdkafka_options(settings.kafka)}, logger=logging.getLogger("librdkafka"))
    try:
        consumer.assign([KafkaPartition(settings.topics.prefix + topic, 0, 0)])
        message = consumer.poll(20)
        assert message is not None
        assert message.error() is None
        return message.value()
    finally:
        consumer.close()


class TokenEndpoint(http.server.BaseHTTPRequestHandler):
    """Gives tokens for ``ADMIN`` to ``client`` with the secret ``s3:cret``, and remembers what it was asked for."""

    asked: list[str]

    def do_POST(self) -> None:
        self.asked.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
        known = self.headers["Authorization"] == "Basic Y2xpZW50OnMzJTNBY3JldA=="  # client:s3%3Acret
        answer = {"access_token": unsecured_token(ADMIN), "expires_in": 600} if known else {"error": "invalid_client"}
        self.send_response(200 if known else 401)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def token_endpoint(certificate: Path) -> Iterator[tuple[str, list[str]]]:
    asked: list[str] = []
    server = http.server.HTTPServer(("127.0.0.1", 0), type("Endpoint", (TokenEndpoint,), {"asked": asked}))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"https://127.0.0.1:{server.server_port}/token", asked
    finally:
        server.shutdown()
        server.server_close()


def client_credentials(secured: SecuredKafka, url: str, secret: str = "s3:cret") -> dict[str, Any]:
    asking = {"token_endpoint": url, "token_ca_file": secured.authority.file, "client_id": "client", "scope": "kafka"}
    return {"tls": secured.tls(), "sasl": {"mechanism": "OAUTHBEARER", "client_secret": secret, **asking}}


async def test_both_clients_get_in_by_client_credentials_and_ask_once_each(secured: SecuredKafka, unique: str) -> None:
    with token_endpoint(secured.authority.issue("identity")) as (url, asked):
        await assert_both_clients_get_in(settings_for(secured, unique, client_credentials(secured, url), "TOKENS"))
    assert asked == ["grant_type=client_credentials&scope=kafka"] * 2


# ---------------------------------------------------------------- refusals


def with_tls(**changed: Any) -> Way:
    """As the right settings, but for some of `kafka.tls`."""
    return lambda secured, _: {**secured.kafka(ADMIN), "tls": secured.tls(**changed)}


def only(section: str) -> Way:
    return lambda secured, _: {section: secured.kafka(ADMIN)[section]}


def by_another_authority(secured: SecuredKafka, directory: Path) -> dict[str, Any]:
    return with_tls(ca_file=Authority(directory, "stranger").file)(secured, directory)


def by_a_strange_certificate(secured: SecuredKafka, directory: Path) -> dict[str, Any]:
    return {"tls": secured.tls(certificate_file=Authority(directory, "stranger").issue(ADMIN))}


REFUSALS: dict[str, tuple[str, Way, list[str]]] = {
    "a wrong password": (
        "PASSWORDS",
        by_password("SCRAM-SHA-512", "hunter2"),
        ["refuses kafka.sasl.username = 'admin' with this password", "invalid credentials"],
    ),
    "a mechanism it has not": (
        "TOKENS",
        by_password("SCRAM-SHA-512", "hunter2"),
        ["takes OAUTHBEARER", "kafka.sasl.mechanism = 'SCRAM-SHA-512'"],
    ),
    "no SASL where it is asked for": ("PASSWORDS", only("tls"), ["takes PLAIN, SCRAM", "kafka.sasl.mechanism = None"]),
    "SASL where none is asked for": ("OPEN", only("sasl"), ["asks for no SASL", "check the port"]),
    "another authority": ("PASSWORDS", by_another_authority, ["not trusted by kafka.tls.ca_file", "stranger.pem"]),
    "the system's authorities": ("PASSWORDS", with_tls(ca_file=None), ["not trusted", "no kafka.tls.ca_file"]),
    "no certificate": ("CERTIFICATES", only("tls"), ["asks for a certificate", "kafka.tls.certificate_file"]),
    "a strange certificate": ("CERTIFICATES", by_a_strange_certificate, ["refuses kafka.tls.certificate_file", ADMIN]),
    "plaintext at a TLS port": ("PASSWORDS", only("sasl"), ["speaks TLS", "kafka.tls.enabled = false"]),
    "TLS at a plaintext port": ("OPEN", only("tls"), ["does not speak TLS", "kafka.tls.enabled = true"]),
    "an expired token": ("TOKENS", by_token(life_s=-60), ["refuses the token of kafka.sasl.token_file"]),
}


@pytest.mark.parametrize("name", REFUSALS)
async def test_a_refusal_names_what_to_change(name: str, secured: SecuredKafka, tmp_path: Path, unique: str) -> None:
    listener, way, expected = REFUSALS[name]
    started = time.monotonic()
    with pytest.raises(ConfigError) as error:
        await KafkaBroker.connect(settings_for(secured, unique, way(secured, tmp_path), listener))
    message = str(error.value)
    assert [part for part in [secured.addresses[listener], *expected] if part not in message] == [], message
    assert "hunter2" not in message
    assert time.monotonic() - started < CONNECT_S, "a broker that answers is no timeout"


async def test_a_certificate_of_another_host_is_refused_unless_that_is_turned_off(
    secured: SecuredKafka, unique: str
) -> None:
    settings = settings_for(secured, unique, secured.kafka(ADMIN))
    elsewhere = settings.model_copy(
        update={"bootstrap": secured.addresses["PASSWORDS"].replace("127.0.0.1", "localhost")}
    )
    with pytest.raises(ConfigError, match=r"certificate of another host.*kafka.tls.verify_hostname"):
        await KafkaBroker.connect(elsewhere)
    trusting = settings_for(secured, unique, {**secured.kafka(ADMIN), "tls": secured.tls(verify_hostname=False)})
    async with connected(trusting.model_copy(update={"bootstrap": elsewhere.bootstrap})) as broker:
        assert await broker.topics() == {}


async def test_a_token_endpoint_that_refuses_is_named(secured: SecuredKafka, unique: str) -> None:
    with token_endpoint(secured.authority.issue("identity")) as (url, _):
        settings = settings_for(secured, unique, client_credentials(secured, url, "hunter2"), "TOKENS")
        with pytest.raises(ConfigError, match=f"token_endpoint = '{url}': answers 401.*kafka.sasl.client_id") as error:
            await KafkaBroker.connect(settings)
    assert "hunter2" not in str(error.value)


def test_a_command_with_a_wrong_password_ends_with_status_2(secured: SecuredKafka, tmp_path: Path, unique: str) -> None:
    file = config_file(tmp_path / "c.json", secured, unique, secured.kafka("somebody", "hunter2"))
    done = subprocess.run(streammon("process", "--config", file), capture_output=True, text=True, timeout=30)
    assert (done.returncode, "kafka.sasl.username = 'somebody'" in done.stderr) == (2, True), done.stderr
    assert "Traceback" not in done.stderr


def streammon(*arguments: object) -> list[str]:
    return [sys.executable, "-c", "from streammon.cli import main; main()", *map(str, arguments)]


def config_file(file: Path, secured: SecuredKafka, prefix: str, kafka: dict[str, Any]) -> Path:
    topics = {"prefix": f"{prefix}.", "partitions": 1}
    file.write_text(json.dumps({"bootstrap": secured.addresses["PASSWORDS"], "topics": topics, "kafka": kafka}))
    return file


# ---------------------------------------------------------------- permissions

TASK: list[Acl] = [
    ("READ", "topic", IN),
    ("WRITE", "topic", OUT),
    ("READ", "topic", STATE),
    ("WRITE", "topic", STATE),
    ("READ", "group", "group"),
    ("WRITE", "transactional id", "group-…"),
]
SEEING: list[Acl] = [("DESCRIBE", "topic", "…")]


async def task(broker: KafkaBroker) -> None:
    """What a processor does."""
    transactor = await broker.transactor("group", STATE, 0, [IN])
    try:
        await transactor.restore()
        await transactor.transact([Outgoing(OUT, b"k", b"v", partition=0)], b"s", {TopicPartition(IN, 0): 1})
    finally:
        await transactor.close()


async def member(broker: KafkaBroker) -> None:
    """What a sink does."""

    async def ignore(_: object) -> None:
        pass

    member = await broker.member("group", [IN], on_assign=ignore, on_revoke=ignore)
    try:
        async with asyncio.timeout(30):
            while not (polled := await member.poll()):
                pass
        await member.commit({each: records[-1].offset + 1 for each, records in polled.items()})
    finally:
        await member.close()


async def append(broker: KafkaBroker) -> None:
    await broker.append([Outgoing(IN, b"k", b"v")])


async def read(broker: KafkaBroker) -> None:
    await first_value(broker, IN)


async def create(broker: KafkaBroker) -> None:
    await broker.create_topics([TopicSpec("new", 1, 3600.0)])


async def describe(broker: KafkaBroker) -> None:
    await broker.topics(exact=True)


Work = Callable[[KafkaBroker], Awaitable[None]]
DENIED: dict[str, tuple[Work, list[Acl], Acl, str]] = {
    "appending": (append, [], ("WRITE", "topic", IN), "Write on topic {}in"),
    "reading": (read, [], ("READ", "topic", IN), "{}in.*Read on"),
    "seeing": (append, [], ("WRITE", "topic", IN), "no topic {}in, or does not show it.*Describe, Read or Write"),
    "creating": (create, [], ("CREATE", "topic", "new"), "refuses to create {}new.*Create on topic {}new"),
    "describing": (describe, [], ("DESCRIBE_CONFIGS", "topic", "…"), "DescribeConfigs on topic {}in"),
    "reading as a member": (member, TASK[4:5], TASK[0], "Read on topic {}in, Read on group {}group"),
    "joining a group": (member, TASK[0:1], TASK[4], "Read on group {}group"),
    "writing as a task": (task, TASK, TASK[1], "Write on topic {}out"),
    "restoring a task": (task, TASK, TASK[2], "{}state.p.*Read on topic {}state.p"),
    "keeping a snapshot": (task, TASK, TASK[3], "Write on topic {}out, {}state.p"),
    "committing as a task": (task, TASK, TASK[4], "{}group.*Read on group {}group"),
    "owning a task": (task, TASK, TASK[5], "Write on transactional id {}group-state.p-0"),
}


@pytest.mark.parametrize("name", DENIED)
async def test_a_missing_permission_is_named_and_granting_it_helps(
    name: str, secured: SecuredKafka, unique: str, caplog: pytest.LogCaptureFixture
) -> None:
    work, others, missing, expected = DENIED[name]
    async with connected(settings_for(secured, unique, secured.kafka(ADMIN))) as broker:
        await broker.create_topics(SPECS)
        await broker.append([Outgoing(IN, b"k", b"v")] * 2)
        await task(broker)
    granted = [acl for acl in others if acl != missing] + (SEEING if name != "seeing" else [])
    secured.permit("somebody", with_prefix(unique, granted))
    async with connected(settings_for(secured, unique, secured.kafka("somebody"))) as broker:
        with pytest.raises(ConfigError, match=expected.format(*[re.escape(f"{unique}.")] * 2)) as error:
            await work(broker)
    assert "'somebody'" in str(error.value)
    del error  # it holds what was under way
    assert overlooked(caplog) == []
    secured.permit("somebody", with_prefix(unique, [*granted, missing]))
    async with connected(settings_for(secured, unique, secured.kafka("somebody"))) as broker:
        await work(broker)


def with_prefix(prefix: str, acls: Iterable[Acl]) -> list[Acl]:
    return [(operation, kind, f"{prefix}.{name}") for operation, kind, name in acls]


async def test_a_role_leaves_topics_it_may_not_create_to_others(secured: SecuredKafka, unique: str) -> None:
    secured.permit("somebody", [])
    async with connected(settings_for(secured, unique, secured.kafka("somebody"))) as broker:
        assert await broker.create_topics(SPECS, if_permitted=True) == []


async def test_sizes_are_those_of_our_own_topics_where_they_may_not_be_asked(
    secured: SecuredKafka, unique: str
) -> None:
    specs = topic_specs(partitions=1)
    async with connected(settings_for(secured, unique, secured.kafka(ADMIN))) as broker:
        await broker.create_topics(specs)
    secured.permit("somebody", with_prefix(unique, SEEING))
    async with connected(settings_for(secured, unique, secured.kafka("somebody"))) as broker:
        assert await broker.topics() == {spec.name: spec for spec in specs}


RULES = """
rules:
  - {name: busy, source: inference, field: count, above: 0, for_s: 0, severity: info, summary: "{value} requests",
     action: call}
"""
COMMANDS = {
    "agent": ["agent"],
    "process windows": ["process", "windows"],
    "process rollups": ["process", "rollups"],
    "process drift": ["process", "drift"],
    "process profiles": ["process", "profiles"],
    "process join": ["process", "join", "--data-dir", "memory"],
    "process quality": ["process", "quality"],
    "rules run": ["rules", "run", "--rules", "rules.yaml"],
    "process detectors": ["process", "detectors"],
    "diagnose": ["diagnose"],
    "sink sqlite": ["sink", "sqlite", "--data-dir", "results"],
    "notify": ["notify"],
    "notify --notify FILE": ["notify", "--notify", "notify.yaml"],
    "remediate run": ["remediate", "run", "--actions", "actions.yaml"],
}
ONCE = {
    "emit inference": ["emit", "inference"],
    "emit run": ["emit", "run"],
    "drift reference": ["drift", "reference", "--service", "shop", "--model", "ranker", "--from", "train.csv"],
    "drift references": ["drift", "references"],
    "tail windows": ["tail", "windows", "--from", "earliest", "--exit"],
    "replay windows": ["replay", "windows", "--from", "1h", "--to", "1s"],
    "replay windows --verify": ["replay", "windows", "--from", "1h", "--to", "1s", "--verify"],
}


@pytest.mark.timeout(300)
def test_every_role_works_with_the_permissions_on_the_page(
    secured: SecuredKafka, unique: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = permissions_on_the_page()
    assert page.keys() >= {*COMMANDS, *ONCE}
    secured.permit("topics-create", with_prefix(unique, [("CREATE", "topic", "…"), *SEEING]))
    for role in [*COMMANDS, *ONCE]:
        secured.permit(user_of(role), with_prefix(unique, page[role]))
    here = Roles(secured, unique, tmp_path)
    (tmp_path / "rules.yaml").write_text(RULES)
    (tmp_path / "train.csv").write_text("price\n1.5\n2.5\n")
    (tmp_path / "notify.yaml").write_text("route: {group_wait: 0}")
    (tmp_path / "actions.yaml").write_text("actions: {call: {type: webhook, url: 'http://127.0.0.1:1/'}}")
    with monkeypatch.context() as patch:  # the topics of its channels, too
        patch.setenv("STREAMMON_NOTIFY__FILE", "notify.yaml")
        patch.setenv("STREAMMON_REMEDIATION__FILE", "actions.yaml")
        assert here.run("topics create", ["topics", "create"]).count("created ") > 10
    with here.running(COMMANDS):
        event = {"service": "shop", "model": "ranker", "duration_s": 0.1, "status": "ok", "time_unix_s": time.time()}
        here.run("emit inference", ONCE["emit inference"], json.dumps({**event, "event_id": "a"}))
        here.wait_until(lambda: any((tmp_path / "memory" / "state" / "join").glob("*/1")), "a prediction that waits")
        here.wait_until(lambda: "1 requests" in here.said("notify"), "an alert on the console")
        here.wait_until(lambda: "1 requests" in here.said("notify --notify FILE"), "and one that was decided")
        here.wait_until(lambda: "a remediation is begun" in here.said("remediate run"), "a dry run of an action")
        here.wait_until(
            lambda: here.results() == {"inference", "resource", "alert", "evidence"}, "all results in SQLite"
        )
    here.run("emit run", ONCE["emit run"], json.dumps({"job": "train", "run_id": "1", "state": "failed"}))
    assert '"ranker"' in here.run("tail windows", ONCE["tail windows"])
    assert '"ranker"' in here.run("replay windows", ONCE["replay windows"])
    assert "of shop/ranker" in here.run("drift reference", ONCE["drift reference"])
    assert "no references here" in here.run("drift references", ONCE["drift references"])
    assert here.run("replay windows --verify", ONCE["replay windows --verify"])


@pytest.mark.timeout(120)
def test_agent_goes_on_beside_a_topic_that_is_not_permitted(
    secured: SecuredKafka, unique: str, tmp_path: Path, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Events of that topic are there once it is permitted; those of others never wait for it."""
    secured.permit("topics-create", with_prefix(unique, [("CREATE", "topic", "…"), *SEEING]))
    allowed = with_prefix(unique, [("WRITE", "topic", each) for each in ("resources", "inference", "heartbeats")])
    secured.permit("agent", allowed)
    secured.permit("tail-windows", with_prefix(unique, [("READ", "topic", "…")]))
    here = Roles(secured, unique, tmp_path)
    here.run("topics create", ["topics", "create"])
    monkeypatch.setenv("STREAMMON_AGENT__SOURCES", '["host", "otlp"]')
    monkeypatch.setenv("STREAMMON_AGENT__OTLP__GRPC_PORT", "0")
    monkeypatch.setenv("STREAMMON_AGENT__OTLP__HTTP_PORT", str(free_port))
    monkeypatch.setenv("STREAMMON_DATA_DIR", str(tmp_path / "agent"))

    def there(topic: str) -> int:
        return len(here.run("tail windows", ["tail", topic, "--from", "earliest", "--exit"]).splitlines())

    with here.running({"agent": ["agent"]}):
        here.wait_until(lambda: there("resources") > 0, "measurements")
        post_log(free_port)
        here.wait_until(lambda: "logs" in here.said("agent"), "the refusal")
        before = there("resources")
        here.wait_until(lambda: there("resources") > before + 2, "measurements beside it")
        assert there("logs") == 0
        secured.permit("agent", [*allowed, *with_prefix(unique, [("WRITE", "topic", "logs")])])
        here.wait_until(lambda: there("logs") == 1, "what was not permitted before")


def post_log(port: int) -> None:
    record = {"severityNumber": 9, "body": {"stringValue": "hello"}}
    resource = {"attributes": [{"key": "service.name", "value": {"stringValue": "shop"}}]}
    body = {"resourceLogs": [{"resource": resource, "scopeLogs": [{"logRecords": [record]}]}]}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/logs", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=20) as answer:
        assert answer.status == 200


@pytest.mark.timeout(300)
def test_rules_by_groups_work_with_the_permissions_on_the_page(
    secured: SecuredKafka, unique: str, tmp_path: Path
) -> None:
    commands = {
        "process windows": ["process", "windows"],
        "process rollups": ["process", "rollups", "--rules", "rules.yaml"],
        "rules run by": ["rules", "run", "--rules", "rules.yaml"],
        "notify": ["notify"],
    }
    page = permissions_on_the_page()
    secured.permit("topics-create", with_prefix(unique, [("CREATE", "topic", "…"), *SEEING]))
    for role in [*commands, "emit inference"]:
        secured.permit(user_of(role), with_prefix(unique, page[role]))
    here = Roles(secured, unique, tmp_path)
    (tmp_path / "rules.yaml").write_text(RULES.replace("name: busy", "name: busy, by: [service], window: 4s"))
    here.run("topics create", ["topics", "create"])
    with here.running(commands):
        event = {"service": "shop", "model": "ranker", "duration_s": 0.1, "status": "ok", "time_unix_s": time.time()}
        here.run("emit inference", ONCE["emit inference"], json.dumps(event))
        here.wait_until(lambda: "1 requests" in here.said("notify"), "an alert on the console")


RETRAINING = """
actions:
  train:
    {type: command, command: ["true"], mode: auto, retrain: {service: shop, model: ranker, min_labels: 0}}
"""


@pytest.mark.timeout(300)
def test_retraining_works_with_the_permissions_on_the_page(
    secured: SecuredKafka, unique: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = permissions_on_the_page()
    secured.permit("topics-create", with_prefix(unique, [("CREATE", "topic", "…"), *SEEING]))
    for role in ("remediate run retrain", "query loop"):
        secured.permit(user_of(role), with_prefix(unique, page[role]))
    here = Roles(secured, unique, tmp_path)
    (tmp_path / "actions.yaml").write_text(RETRAINING)
    monkeypatch.setenv("STREAMMON_REMEDIATION__FILE", "actions.yaml")
    here.run("topics create", ["topics", "create"])
    asyncio.run(fires(settings_for(secured, unique, secured.kafka(ADMIN))))
    with here.running({"remediate run retrain": ["remediate", "run", "--actions", "actions.yaml"]}):
        here.wait_until(lambda: "started" in here.run("query loop", ["query", "loop"]), "a training that was started")


async def fires(settings: Settings) -> None:
    value = msgspec.json.encode(alert("a", time.time() - T0, action="train"))
    async with connected(settings) as broker:
        await broker.append([Outgoing("alerts", b"a", value)])


def test_the_sinks_need_the_same_permissions() -> None:
    page = permissions_on_the_page()
    sqlite, elasticsearch = (page[f"sink {name}"] for name in ("sqlite", "elasticsearch"))
    assert [acl for acl in sqlite if acl[1] == "topic" and acl[2] != "evidence"] == [
        acl for acl in elasticsearch if acl[1] == "topic"
    ]


class Roles:
    """Commands as processes, each under its own user."""

    def __init__(self, secured: SecuredKafka, prefix: str, directory: Path) -> None:
        self._secured, self._prefix, self._directory = secured, prefix, directory
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def run(self, role: str, command: list[str], given: str = "") -> str:
        """What a command prints that ends by itself, with status 0."""
        done = subprocess.run(
            self._line(role, command), input=given, cwd=self._directory, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def wait_until(self, condition: Callable[[], bool], what: str) -> None:
        def is_so() -> bool:
            for role, process in self._running.items():
                assert process.poll() is None, f"{role} ended by itself: {self.said(role)}"
            return condition()

        wait_until(is_so, 90, what)

    @contextmanager
    def running(self, commands: dict[str, list[str]]) -> Iterator[None]:
        """Commands that run until SIGTERM, and then end with status 0."""
        try:
            for role, command in commands.items():
                with self._output(role).open("wb") as output:
                    line = self._line(role, command)
                    self._running[role] = subprocess.Popen(line, cwd=self._directory, stdout=output, stderr=output)
            yield
            for process in self._running.values():
                process.send_signal(signal.SIGTERM)
            ended = {role: process.wait(20) for role, process in self._running.items()}
            assert ended == dict.fromkeys(commands, 0), [self.said(role) for role, status in ended.items() if status]
        finally:
            for process in self._running.values():
                process.kill()
                process.wait()

    def said(self, role: str) -> str:
        return self._output(role).read_text()

    def results(self) -> set[str]:
        """What is in the results: windows of which sources, alerts."""
        if not (file := self._directory / "results" / "results.sqlite").exists():
            return set()
        store = ResultStore.open(file, read_only=True)
        found = {source: store.windows(source, 0.0) for source in ("inference", "resource")} | {"alert": store.alerts()}
        found["evidence"] = [each for each in store.alerts() if store.evidence(each.id)]
        store.close()
        return {name for name, results in found.items() if results}

    def _line(self, role: str, command: list[str]) -> list[str]:
        file = self._directory / f"{user_of(role)}.json"
        config_file(file, self._secured, self._prefix, self._secured.kafka(user_of(role)))
        return streammon(*command, "--config", file)

    def _output(self, role: str) -> Path:
        return self._directory / f"{user_of(role)}.log"
