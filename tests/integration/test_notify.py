"""The whole notifier on the embedded log: from `alerts` to a webhook, and what becomes of every fault of it."""

from __future__ import annotations

import asyncio
import signal
import urllib.error
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest
from prometheus_client import REGISTRY

from streammon.broker import Broker, connect
from streammon.broker.reading import read
from streammon.cli.base import together
from streammon.cli.notify import notifier, with_notify
from streammon.cli.roles import topics_of
from streammon.config import Settings
from streammon.notifications import Delivery
from tests.paging import Receiver, ended, fired, hook, notifier_file, raise_alerts, receiver
from tests.sinks.notify.counterparts import Fault
from tests.support import cli, eventually


@asynccontextmanager
async def notifying(settings: Settings, file: Path) -> AsyncIterator[Broker]:
    """The notifier beside the block, as `streammon notify` runs it."""
    broker, stop = await connect(settings), asyncio.Event()
    async with notifier(with_notify(settings, file)) as telling:
        await broker.create_topics([*topics_of(settings, telling.processors), *telling.topics])
        task = asyncio.create_task(together(stop, *telling.parts(broker, stop, "unused")))
        try:
            yield broker
        finally:
            stop.set()
            await asyncio.wait_for(task, 10)
            await broker.close()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data", topics={"partitions": 2}, notify={"failing_after_s": 1.0}, windows={})


@pytest.fixture
async def ops(tmp_path: Path) -> AsyncIterator[Receiver]:
    async with receiver(tmp_path) as one:
        yield one


@pytest.fixture
async def backup(tmp_path: Path) -> AsyncIterator[Receiver]:
    directory = tmp_path / "backup"
    directory.mkdir()
    async with receiver(directory) as one:
        yield one


async def test_an_alert_is_told_once_and_so_is_its_end(settings: Settings, ops: Receiver, tmp_path: Path) -> None:
    file = notifier_file(tmp_path, {"ops": hook(ops.http.address)})
    async with notifying(settings, file) as broker:
        await raise_alerts(broker, [fired("a"), fired("bb")], 2)
        await eventually(lambda: len(ops.taken) == 2)
        await raise_alerts(broker, [ended("a")], 2)
        await eventually(lambda: len(ops.taken) == 3)
    async with notifying(settings, file) as broker:
        await raise_alerts(broker, [ended("bb")], 2)
        await eventually(lambda: len(ops.taken) == 4)
    assert sorted(ops.told) == sorted(
        [("slow-a", "firing"), ("slow-bb", "firing"), ("slow-a", "resolved"), ("slow-bb", "resolved")]
    )
    assert ops.repeated == {}


FAULTS = (Fault.BROKEN, Fault.BUSY, Fault.SILENT, Fault.RESET, Fault.SLOW, Fault.UNTRUSTED, Fault.REDIRECTING)


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_fault_is_told_elsewhere_with_what_could_not_be_told_and_ends_in_delivery(
    settings: Settings, ops: Receiver, backup: Receiver, tmp_path: Path, fault: Fault
) -> None:
    url = tmp_path / "url"
    ops.http.fault = fault
    url.write_text(ops.http.address)
    file = notifier_file(
        tmp_path, {"ops": hook({"file": str(url)}), "backup": hook(backup.http.address)}, fallback="backup"
    )
    async with notifying(settings, file) as broker:
        await raise_alerts(broker, [fired("a")], 2)
        await _told(backup, ("notifier", "firing"), ("slow-a", "firing"))
        assert ops.taken == {}
        ops.http.fault = None
        url.write_text(ops.http.address)
        await eventually(lambda: ops.told == [("slow-a", "firing")], 30)
        await _told(backup, ("notifier", "firing"), ("notifier", "resolved"), ("slow-a", "firing"))
        await raise_alerts(broker, [ended("a")], 2)
        await eventually(lambda: ("slow-a", "resolved") in ops.told)

        async def outcomes() -> list[str]:
            return [each.outcome for each in await _deliveries(broker) if each.channel == "ops"]

        async def recorded() -> bool:  # which comes after the receiver has answered
            return len(await outcomes()) >= 4

        await eventually(recorded)
        assert await outcomes() == ["failing", "delivered", "recovered", "delivered"]
    assert ops.repeated == backup.repeated == {}


async def _told(one: Receiver, *expected: tuple[str, str]) -> None:
    def done() -> bool:
        return set(expected) <= set(one.told)

    try:
        await eventually(done, 20)
    except AssertionError:
        assert set(one.told) == set(expected)


async def _deliveries(broker: Broker) -> list[Delivery]:
    batches = [records async for _, records in read(broker, ["deliveries"])]
    return [msgspec.json.decode(each.value or b"", type=Delivery) for records in batches for each in records]


async def test_what_a_channel_refuses_is_told_elsewhere_at_once(
    settings: Settings, ops: Receiver, backup: Receiver, tmp_path: Path
) -> None:
    ops.http.fault = Fault.REFUSING
    file = notifier_file(tmp_path, {"ops": hook(ops.http.address), "backup": hook(backup.http.address)})
    async with notifying(settings, file) as broker:
        await raise_alerts(broker, [fired("a")], 2)
        await _told(backup, ("notifier", "firing"), ("slow-a", "firing"))


async def test_a_dead_channel_holds_up_no_other(
    settings: Settings, ops: Receiver, backup: Receiver, tmp_path: Path
) -> None:
    ops.http.fault = Fault.SILENT
    channels = {"ops": hook(ops.http.address, timeout=60), "backup": hook(backup.http.address)}
    file = notifier_file(tmp_path, channels, to=["ops", "backup"])
    async with notifying(settings, file) as broker:
        await raise_alerts(broker, [fired("a"), fired("bb")], 2)
        await _told(backup, ("slow-a", "firing"), ("slow-bb", "firing"))


async def test_a_changed_file_is_gone_by_and_a_bad_one_is_not(
    settings: Settings, ops: Receiver, backup: Receiver, tmp_path: Path
) -> None:
    channels = {"ops": hook(ops.http.address), "backup": hook(backup.http.address)}
    file = notifier_file(tmp_path, channels, to=["ops"])
    async with notifying(settings, file) as broker:
        await raise_alerts(broker, [fired("a")], 2)
        await _told(ops, ("slow-a", "firing"))
        _put(file, "channels: [")
        await eventually(lambda: REGISTRY.get_sample_value("streammon_reload_refused", {"what": "notify.file"}) == 1)
        await raise_alerts(broker, [fired("bb")], 2)
        await _told(ops, ("slow-bb", "firing"))
        new = notifier_file(tmp_path / "backup", channels | {"third": hook(backup.http.address)}, to=["third"])
        _put(file, new.read_text())
        await eventually(lambda: REGISTRY.get_sample_value("streammon_reload_refused", {"what": "notify.file"}) == 0)
        await raise_alerts(broker, [fired("ccc")], 2)
        await _told(backup, ("slow-ccc", "firing"))
    assert sorted(ops.told) == [("slow-a", "firing"), ("slow-bb", "firing")]


def _put(file: Path, text: str) -> None:
    """Another file in its place, at once."""
    (new := file.with_suffix(".new")).write_text(text)
    new.rename(file)


# --- the programs -----------------------------------------------------------------------------------------------------


def _get(url: str, body: bytes | None = None) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body), timeout=2) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, ""
    except OSError:
        return 0, ""


@pytest.mark.parametrize("role", ["notify", "up"])
async def test_a_dead_channel_makes_nobody_unready_and_is_seen_in_the_metrics(
    role: str, tmp_path: Path, free_port: int
) -> None:
    """And Slack's presses come to the port as well: one that is not signed is refused."""
    (secret := tmp_path / "secret").write_text("s3cret")
    chat = {"type": "slack", "webhook_url": {"file": str(secret)}, "signing_secret": {"file": str(secret)}}
    file = notifier_file(tmp_path, {"ops": hook("http://127.0.0.1:1/"), "chat": chat})
    data = tmp_path / "data"
    broker = await connect(Settings(data_dir=data))
    port = ["--metrics-port", free_port] if role == "notify" else ["--port", free_port]
    process = cli(role, "--notify", file, "--data-dir", data, *port)
    address = f"http://127.0.0.1:{free_port}"
    try:
        await eventually(lambda: _get(f"{address}/readyz")[0] == 200, 30)
        await raise_alerts(broker, [fired("a")], 4)
        failed = 'streammon_notify_failed_tries_total{channel="ops"}'
        await eventually(lambda: failed in _get(f"{address}/metrics")[1], 30)
        assert _get(f"{address}/readyz")[0] == 200
        await eventually(lambda: _get(f"{address}/v1/callbacks/slack", b"payload={}")[0] == 401, 30)
        assert _get(f"{address}/v1/callbacks/pagerduty", b"{}")[0] == 404
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, 10) == 0
    finally:
        process.kill()
        process.wait()
        await broker.close()
