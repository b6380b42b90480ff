"""From an alert to a page that says what may be behind it: rules, diagnosis and notifier, on the embedded log."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from streammon.broker import Broker, Outgoing, connect
from streammon.config import Settings
from streammon.events import Change, Inference
from streammon.results import Alert
from streammon_sinks import diagnosis
from streammon_sinks.delivery import deliver
from streammon_sinks.diagnosis import Diagnosis
from tests import incidents
from tests.diagnosing import publish
from tests.incidents import Built, build
from tests.integration.test_notify import notifying
from tests.paging import Receiver, hook, notifier_file, receiver
from tests.sinks.notify.fake_slack import FakeSlack, slack
from tests.support import cli, eventually

RULE = {
    "name": "failing",
    "source": "inference",
    "field": "error_rate",
    "above": 0.5,
    "for_s": 0,
    "severity": "critical",
    "summary": "{service} fails",
    "resolution_steps": ["look"],
    "contact": "#ops",
    "escalation": ["lead"],
    "runbook_url": "https://runbooks.example.com/failing",
}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data", topics={"partitions": 2})


@pytest.fixture
async def ops(tmp_path: Path) -> AsyncIterator[Receiver]:
    async with receiver(tmp_path) as one:
        yield one


@pytest.fixture
async def fake(tmp_path: Path) -> AsyncIterator[FakeSlack]:
    async with slack(tmp_path, "token") as one:
        yield one


def incident_of_now(monkeypatch: pytest.MonkeyPatch) -> Built:
    """A deploy that makes a model slow, as if its alert fired now."""
    ago = time.time() - build("bad deploy", 2).alert.updated_unix_s
    monkeypatch.setattr(incidents, "START", incidents.START + ago // incidents.STEP_S * incidents.STEP_S)
    return build("bad deploy", 2)


@asynccontextmanager
async def diagnosing(broker: Broker) -> AsyncIterator[None]:
    stop = asyncio.Event()
    task = asyncio.create_task(deliver(broker, diagnosis.GROUP, ["alerts"], Diagnosis(broker), stop=stop))
    yield
    stop.set()
    await asyncio.wait_for(task, 10)


def causes_of(told: Alert) -> list[str]:
    return [each["what"] for each in told.evidence.get("causes", ())]


async def test_without_a_diagnosis_a_page_comes_at_its_time_and_after_it_with_the_next(
    settings: Settings, ops: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = notifier_file(tmp_path, {"ops": hook(ops.http.address)}, group_wait=1, repeat_interval=6)
    async with notifying(settings, file) as broker:
        fired = await publish(broker, incident_of_now(monkeypatch))
        began = time.time()
        await eventually(lambda: ops.taken, 20)
        [first] = ops.taken.values()
        assert causes_of(first.alerts[0]) == []
        assert ops.at[first.id] - began < 6
        async with diagnosing(broker):
            await eventually(lambda: len(ops.taken) == 2, 40)
    *_, second = ops.taken.values()
    assert (second.cause, second.alerts[0].id) == ("repeat", fired.id)
    assert causes_of(second.alerts[0])[0] == "deploy of shop/ranker 8 by ci"


async def test_causes_that_come_after_the_page_are_edited_into_slack_and_page_nobody(
    settings: Settings, fake: FakeSlack, ops: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    described = fake.description(buttons=False)
    channels = {"chat": msgspec.to_builtins(described), "ops": hook(ops.http.address)}
    file = notifier_file(tmp_path, channels, to=["chat", "ops"])
    async with notifying(settings, file) as broker, diagnosing(broker):
        await publish(broker, incident_of_now(monkeypatch))
        await eventually(lambda: fake.calls == ["chat.postMessage", "chat.update"], 40)
    [shown] = fake.shown.values()
    assert "deploy of shop/ranker 8 by ci" in json.dumps(shown)
    [page] = ops.taken.values()
    assert causes_of(page.alerts[0]) == []


async def test_the_first_page_of_up_says_what_may_be_behind_it(
    ops: Receiver, tmp_path: Path, free_port: int, capfd: pytest.CaptureFixture[str]
) -> None:
    """Events in, one page out: a model is well for a while, is deployed, and fails."""
    (rules := tmp_path / "rules.json").write_text(json.dumps({"rules": [RULE]}))
    channels = {"ops": hook(ops.http.address, timeout=5)}
    file = notifier_file(tmp_path, channels, to=["ops", "console"], group_wait="10s")
    data = tmp_path / "data"
    broker = await connect(Settings(data_dir=data))
    process = cli("up", "--notify", file, "--rules", rules, "--data-dir", data, "--port", free_port)
    try:
        await eventually(lambda: "page at" in capfd.readouterr().err, 30)
        await a_deploy_that_fails(broker)
        await eventually(lambda: ops.taken, 60)
    finally:
        process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(process.wait, 15)
        await broker.close()
    [first] = ops.taken.values()
    assert (first.cause, first.alerts[0].rule) == ("new", "failing")
    assert causes_of(first.alerts[0])[0] == "deploy of shop/ranker 8 by ci"
    assert "perhaps   deploy of shop/ranker 8 by ci: " in capfd.readouterr().out


async def test_where_there_is_no_file_up_prints_causes_when_they_come_to_light(
    tmp_path: Path, free_port: int, capfd: pytest.CaptureFixture[str]
) -> None:
    (rules := tmp_path / "rules.json").write_text(json.dumps({"rules": [RULE]}))
    data = tmp_path / "data"
    broker = await connect(Settings(data_dir=data))
    process = cli("up", "--rules", rules, "--data-dir", data, "--port", free_port)
    printed = list[str]()

    def explained() -> bool:
        printed.append(capfd.readouterr().out)
        return "perhaps" in "".join(printed)

    try:
        await eventually(lambda: "page at" in capfd.readouterr().err, 30)
        await a_deploy_that_fails(broker)
        await eventually(explained, 60)
    finally:
        process.send_signal(signal.SIGTERM)
        await asyncio.to_thread(process.wait, 15)
        await broker.close()
    firing, why, perhaps, *_ = "".join(printed).splitlines()
    assert "CRITICAL firing    shop fails" in firing
    assert "CRITICAL why       shop fails" in why
    assert "perhaps   deploy of shop/ranker 8 by ci: " in perhaps


async def a_deploy_that_fails(broker: Broker) -> None:
    now = time.time()
    plain = Inference(time_unix_s=now, service="shop", model="ranker", duration_s=0.1, status="ok")
    well = [msgspec.structs.replace(plain, time_unix_s=now - 1200 + 2 * each) for each in range(598)]
    ill = [msgspec.structs.replace(plain, time_unix_s=now - 3 + each, status="error") for each in range(4)]
    deploy = Change(time_unix_s=now - 6, service="shop", kind="deploy", model="ranker", model_version="8", actor="ci")
    await broker.append(
        [
            Outgoing("changes", b"shop", msgspec.json.encode(deploy)),
            Outgoing("inference", b"shop/ranker", msgspec.json.encode(well)),
            Outgoing("inference", b"shop/ranker", msgspec.json.encode(ill)),
        ]
    )
