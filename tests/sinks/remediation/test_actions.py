"""What each kind of action does to the other side, in earnest and as a dry run, and what is told of it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from streammon.broker import Broker, Outgoing, connect
from streammon.broker.reading import read
from streammon.config import Settings
from streammon.errors import ConfigError, Rejected, Retryable
from streammon.remediation import Remediation, load_policies
from streammon.topics import TopicSpec
from streammon_sinks.notify.http import Unanswered
from streammon_sinks.notify.secrets import Secret
from streammon_sinks.remediation.actions import Kafka, Kubernetes, Tools, Webhook, load_actions
from tests.remedies import T0, Decision, alert
from tests.sinks.notify.counterparts import Fault
from tests.sinks.notify.fake_http import FakeHttp, fake_http
from tests.sinks.notify.fake_webhook import verified
from tests.sinks.remediation.fake_kubernetes import TOKEN, FakeKubernetes, fake_kubernetes

KEY = "key-of-the-signature"


def due(*, dry_run: bool = False) -> Remediation:
    return Decision().at(0, alert(action="scale" if dry_run else "restart"))[0]


class NoBroker:
    """What no action but Kafka's needs."""

    async def append(self, records: Any) -> list[int]:
        raise AssertionError(f"written: {records}")


def tools(session: aiohttp.ClientSession, broker: Any = None) -> Tools:
    any_broker: Any = broker or NoBroker()
    return Tools(session, any_broker, clock=lambda: T0)


# --- Kubernetes -------------------------------------------------------------------------------------------------------


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[FakeKubernetes]:
    (tmp_path / "token").write_text(TOKEN)
    async with fake_kubernetes(tmp_path) as fake:
        yield fake


async def at(cluster: FakeKubernetes, tmp_path: Path, *, dry_run: bool = False, **how: Any) -> str:
    action = Kubernetes(
        deployment="ranker",
        namespace="ml",
        server=cluster.http.address,
        token=Secret(file=str(tmp_path / "token")),
        ca_file=None,
        timeout="2s",
        **how,
    )
    return await action.do(tools(cluster.http.session), due(dry_run=dry_run))


async def test_a_rollout_is_undone_to_the_revision_before_the_newest(cluster: FakeKubernetes, tmp_path: Path) -> None:
    assert await at(cluster, tmp_path, do_="rollout_undo") == "rolled ml/ranker back to revision 2"
    assert cluster.image == "ranker:2"
    assert cluster.deployment["metadata"]["annotations"] == {
        "deployment.kubernetes.io/revision": "3",  # the controller's to count
        "change-cause": "release 2",
    }


async def test_a_rollout_is_undone_to_a_revision_that_is_named(cluster: FakeKubernetes, tmp_path: Path) -> None:
    await at(cluster, tmp_path, do_="rollout_undo", to_revision=1)
    assert cluster.image == "ranker:1"
    with pytest.raises(Rejected, match=r"ml/ranker has no revision 7; it has 1, 2, 3"):  # another deployment's
        await at(cluster, tmp_path, do_="rollout_undo", to_revision=7)


async def test_nothing_is_undone_where_there_is_nothing_to_undo(cluster: FakeKubernetes, tmp_path: Path) -> None:
    assert "already" in await at(cluster, tmp_path, do_="rollout_undo", to_revision=3)
    cluster.deployment["spec"]["paused"] = True
    with pytest.raises(Rejected, match="is paused"):
        await at(cluster, tmp_path, do_="rollout_undo")
    cluster.deployment["spec"]["paused"] = False
    cluster.replica_sets = cluster.replica_sets[:1]
    with pytest.raises(Rejected, match="no earlier revision"):
        await at(cluster, tmp_path, do_="rollout_undo")
    assert cluster.changes == 0


async def test_a_deployment_is_scaled_and_restarted(cluster: FakeKubernetes, tmp_path: Path) -> None:
    assert await at(cluster, tmp_path, do_="scale", replicas=5) == "scaled ml/ranker to 5"
    assert cluster.deployment["spec"]["replicas"] == 5
    assert await at(cluster, tmp_path, do_="restart") == "restarted ml/ranker"
    annotations = cluster.deployment["spec"]["template"]["metadata"]["annotations"]
    assert annotations == {"kubectl.kubernetes.io/restartedAt": "2023-11-14T22:13:20+00:00"}


@pytest.mark.parametrize("how", [{"do_": "rollout_undo"}, {"do_": "scale", "replicas": 5}, {"do_": "restart"}])
async def test_a_dry_run_asks_the_server_and_changes_nothing(
    cluster: FakeKubernetes, tmp_path: Path, how: dict[str, Any]
) -> None:
    before = json.dumps(cluster.deployment)
    assert (await at(cluster, tmp_path, dry_run=True, **how)).startswith("the server would have ")
    assert cluster.requests[-1].endswith("fieldManager=streammon&dryRun=All")
    assert (json.dumps(cluster.deployment), cluster.changes) == (before, 0)


@pytest.mark.parametrize("verb", ["get", "list", "patch"])
async def test_a_missing_permission_is_told_in_the_words_of_the_server(
    cluster: FakeKubernetes, tmp_path: Path, verb: str
) -> None:
    cluster.permitted = frozenset(each for each in cluster.permitted if each[0] != verb)
    with pytest.raises(Rejected, match=f"action restart: 127.0.0.1 answered 403: .*cannot {verb}"):
        await at(cluster, tmp_path, do_="rollout_undo")
    assert cluster.changes == 0


async def test_the_token_is_in_no_error(cluster: FakeKubernetes, tmp_path: Path) -> None:
    cluster.http.fault = Fault.REFUSING  # it repeats all that it was sent
    with pytest.raises(Rejected, match=r"\*\*\*") as error:
        await at(cluster, tmp_path, do_="restart")
    assert TOKEN not in str(error.value)


async def test_who_has_only_looked_has_changed_nothing(cluster: FakeKubernetes, tmp_path: Path) -> None:
    cluster.http.fault = Fault.RESET
    with pytest.raises(Retryable) as looked:
        await at(cluster, tmp_path, do_="rollout_undo")
    assert not isinstance(looked.value, Unanswered)
    with pytest.raises(Unanswered):
        await at(cluster, tmp_path, do_="restart")


async def test_a_server_that_is_not_there_is_known_not_to_have_done_it(cluster: FakeKubernetes, tmp_path: Path) -> None:
    cluster.http.fault = Fault.UNTRUSTED
    with pytest.raises(Retryable, match="certificate that is not trusted") as error:
        await at(cluster, tmp_path, do_="restart")
    assert not isinstance(error.value, Unanswered)


# --- webhook ----------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def receiver(tmp_path: Path) -> AsyncIterator[tuple[FakeHttp, list[tuple[dict[str, str], bytes]]]]:
    taken: list[tuple[dict[str, str], bytes]] = []

    def answer(request: web.Request, body: bytes) -> web.Response:
        if not verified(KEY, request.headers["Streammon-Signature"], body, T0):
            return web.Response(status=403)
        taken.append((dict(request.headers), body))
        return web.Response(status=204)

    (tmp_path / "key").write_text(KEY)
    async with fake_http(answer, tmp_path) as fake:
        yield fake, taken


def hook(fake: FakeHttp, tmp_path: Path, **changes: Any) -> Webhook:
    return Webhook(
        url=f"{fake.address}/hook", signing_secret=Secret(file=str(tmp_path / "key")), timeout="2s", **changes
    )


async def test_a_webhook_is_signed_and_carries_the_remediation_under_its_id(tmp_path: Path) -> None:
    async with receiver(tmp_path) as (fake, taken):
        assert await hook(fake, tmp_path).do(tools(fake.session), due()) == "action restart: 127.0.0.1 answered 204"
        await hook(fake, tmp_path, body={"replicas": 3}).do(tools(fake.session), due())
    [(headers, body), (_, own)] = taken
    assert headers["Idempotency-Key"] == due().id
    assert json.loads(body)["alert_id"] == "a1"
    assert json.loads(own) == {"replicas": 3}


async def test_a_webhook_is_not_posted_in_a_dry_run(tmp_path: Path) -> None:
    async with receiver(tmp_path) as (fake, taken):
        said = await hook(fake, tmp_path).do(tools(fake.session), due(dry_run=True))
    assert said.startswith("would post ")
    assert taken == []


async def test_a_webhook_that_is_refused_says_so_without_the_secret(tmp_path: Path) -> None:
    async with receiver(tmp_path) as (fake, _):
        (tmp_path / "token").write_text("token-of-the-hook")
        fake.fault = Fault.REFUSING
        with pytest.raises(Rejected, match="answered 400") as error:
            await hook(fake, tmp_path, token=Secret(file=str(tmp_path / "token"))).do(tools(fake.session), due())
    assert "token-of-the-hook" not in str(error.value)
    assert KEY not in str(error.value)


async def test_a_gateway_that_fails_may_have_passed_it_on(cluster: FakeKubernetes, tmp_path: Path) -> None:
    async with receiver(tmp_path) as (fake, _):
        fake.fault = Fault.BROKEN
        with pytest.raises(Unanswered, match="answered 500"):
            await hook(fake, tmp_path).do(tools(fake.session), due())
    cluster.http.fault = Fault.BROKEN
    with pytest.raises(Unanswered, match="answered 500"):
        await at(cluster, tmp_path, do_="restart")
    with pytest.raises(Retryable) as looked:
        await at(cluster, tmp_path, do_="rollout_undo")
    assert not isinstance(looked.value, Unanswered)


# --- Kafka ------------------------------------------------------------------------------------------------------------


async def written(broker: Broker, topic: str) -> list[bytes | None]:
    return [each.value async for _, records in read(broker, [topic]) for each in records]


async def test_a_command_is_a_record_on_a_topic_of_yours(tmp_path: Path) -> None:
    broker = await connect(Settings(data_dir=tmp_path))
    await broker.create_topics([TopicSpec("drains", 1, 1000.0)])
    async with aiohttp.ClientSession() as session:
        action = Kafka(topic="drains", value={"drain": "ranker"})
        assert "would write" in await action.do(tools(session, broker), due(dry_run=True))
        assert await written(broker, "drains") == []
        assert await action.do(tools(session, broker), due()) == "written to the topic drains, offset 0"
        with pytest.raises(ConfigError, match="nowhere"):
            await Kafka(topic="nowhere").do(tools(session, broker), due())
    assert await written(broker, "drains") == [b'{"drain":"ranker"}']
    await broker.close()


async def test_a_broker_that_does_not_answer_may_have_taken_the_record() -> None:
    class Silent:
        async def append(self, _: list[Outgoing]) -> list[int]:
            raise Retryable("no answer")

    async with aiohttp.ClientSession() as session:
        with pytest.raises(Unanswered, match="no answer"):
            await Kafka(topic="drains").do(tools(session, Silent()), due())


# --- the file ---------------------------------------------------------------------------------------------------------

GOOD = """
actions:
  restart: {type: kubernetes, do: restart, deployment: ranker, namespace: ml}
  call: {type: webhook, url: {env: HOOK_URL}, signing_secret: {file: /run/secrets/hook}, mode: approve, cool_down: 2h}
  drain: {type: kafka, topic: drains, at_most: {count: 1, per: 1h}}
"""


def test_a_file_of_actions_is_read_with_safe_defaults(tmp_path: Path) -> None:
    (file := tmp_path / "actions.yaml").write_text(GOOD)
    actions = load_actions(file)
    restart = actions["restart"][0]
    assert (restart.mode, restart.cool_down_s) == ("dry_run", 1800)
    assert (restart.at_most.count, restart.at_most.per_s) == (3, 86400)
    assert len({version for _, version in actions.values()}) == 3


@pytest.mark.parametrize(
    ("action", "message"),
    [
        ("{type: ssh}", r":2:\d+: .*Invalid value 'ssh'.*allowed: .*webhook"),
        ("{type: webhook}", r":2:\d+: .*missing required field `url`"),
        ("{type: webhook, url: 'http://x', signing_secret: inline-secret}", r":2:\d+: .*a secret is not written here"),
        ("{type: kubernetes, do: scale, deployment: a, namespace: b}", r":2:\d+: .*`replicas` goes with `do: scale`"),
        ("{type: kubernetes, do: undo, deployment: a, namespace: b}", r":2:\d+: .*allowed: .*rollout_undo"),
        ("{type: kubernetes, do: restart, deployment: a/b, namespace: b}", r":2:\d+: .*deployment.*'a/b'"),
        ("{type: kafka, topic: alerts}", r":2:\d+: .*alerts is one of streammon's own"),
        ("{type: kafka, topic: state.rules}", r"one of streammon's own"),
        ('{type: kubernetes, do: restart, deployment: "a\\n", namespace: b}', r":2:\d+: .*deployment.*'a\\n'"),
        ('{type: kafka, topic: "alerts\\n"}', r":2:\d+: .*topic"),
        ("{type: webhook, url: 'ftp://x'}", r":2:\d+: .*`url` has to begin with http:// or https:// and a host"),
        ("{type: webhook, url: ''}", r":2:\d+: .*`url` has to begin with http:// or https:// and a host"),
        ("{type: kafka, topic: t, modes: auto}", r":2:\d+: .*unknown field `modes`; allowed: .*mode"),
    ],
)
def test_a_bad_file_is_refused_with_its_place(tmp_path: Path, action: str, message: str) -> None:
    (file := tmp_path / "actions.yaml").write_text(f"actions:\n  one: {action}\n")
    with pytest.raises(ConfigError, match=message) as error:
        load_actions(file)
    assert str(error.value).startswith(f"{file}:2:")
    assert "inline-secret" not in str(error.value)


def test_what_json_does_not_have_is_refused_and_stops_no_program(tmp_path: Path) -> None:
    (file := tmp_path / "actions.yaml").write_text("actions: {a: {type: kafka, topic: t, value: {b: {1: x, y: z}}}}")
    with pytest.raises(ConfigError, match=r"actions.yaml: action 'a': .*a key that is no text"):
        load_actions(file)


@pytest.mark.parametrize("load", [load_actions, load_policies])
def test_an_action_and_its_version_are_of_the_same_moment(
    load: Callable[[Path], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is approved is what is done, though the file is replaced while it is read."""
    texts = [f"actions: {{a: {{type: kafka, topic: t, timeout: {number}s}}}}" for number in range(1, 4)]
    (tmp_path / "first.yaml").write_text(texts[0])
    expected = load(tmp_path / "first.yaml")
    coming = iter(texts)
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: next(coming))
    assert load(tmp_path / "replaced.yaml") == expected


def test_the_example_on_the_page_is_a_good_file(tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs" / "remediation.md").read_text(encoding="utf-8")
    (file := tmp_path / "actions.yaml").write_text("actions:" + page.split("```yaml\nactions:")[1].split("```")[0])
    assert {name: action.mode for name, (action, _) in load_actions(file).items()} == {
        "undo-ranker": "approve",
        "more-workers": "dry_run",
        "drain-queue": "auto",
    }
