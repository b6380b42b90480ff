"""Alerts in a real Alertmanager: there while they fire, gone when they are over; and what is repeated, when."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest
from aiohttp import web
from structlog.testing import capture_logs

from streammon.errors import Rejected, Retryable
from streammon.results import Alert
from streammon.servers import ALERTMANAGER_FILE, Server
from streammon_sinks.notify import alertmanager as module
from streammon_sinks.notify.alertmanager import Alertmanager, AlertmanagerChannel, labels_for_prometheus
from streammon_sinks.notify.channel import Resuming
from tests.contracts.test_channel import HOSTILE, hostile
from tests.sinks.builders import START, alert
from tests.sinks.notify.alertmanagers import active
from tests.sinks.notify.builders import TOLD, notification, resolved
from tests.sinks.notify.fake_http import FakeHttp, fake_http
from tests.support import eventually


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


class Open:
    """Opens channels, and closes them after the test."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self._session = session
        self._channels: list[AlertmanagerChannel] = []

    def __call__(self, *urls: str, clock: Callable[[], float] | None = None, **changes: Any) -> AlertmanagerChannel:
        given: dict[str, Any] = {"clock": clock, "sleep": never} if clock else {}
        self._channels.append(
            AlertmanagerChannel("ops", Alertmanager(urls=list(urls), **changes), self._session, **given)
        )
        return self._channels[-1]

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close()


async def never(_seconds: float) -> None:
    """The pause of a channel whose repetitions the test makes itself."""
    await asyncio.Future()


@pytest.fixture
async def opened(session: aiohttp.ClientSession) -> AsyncIterator[Open]:
    opened = Open(session)
    yield opened
    await opened.close()


# ---------------------------------------------------------------- with the real one


@pytest.mark.alertmanager
async def test_an_alert_is_there_under_its_names_with_all_that_a_person_needs(
    alertmanager: Server, session: aiohttp.ClientSession, opened: Open, unique: str
) -> None:
    told = msgspec.structs.replace(TOLD, labels={"service": unique, "hw.gpu.id": "3"})
    await opened(alertmanager.address, generator_url="https://streammon.example.com/").deliver(notification(told), {})
    (shown,) = await active(session, alertmanager.address, service=unique)
    assert shown["labels"] == {"alertname": "slow", "severity": "critical", "service": unique, "hw_gpu_id": "3"}
    assert shown["annotations"] == {
        "summary": "shop is slow",
        "condition": "p99 > 1 s for 10 s",
        "value": "4.5",
        "state": "firing",
        "resolution_steps": "1. Look at the traces\n2. Roll back",
        "likely_causes": "deploy of ranker 3: 20 s before the onset",
        "contact": "#ml-oncall",
        "runbook_url": "https://runbooks.example.com/slow",
        "alert_id": TOLD.id,
    }
    assert datetime.fromisoformat(shown["startsAt"]).timestamp() == START
    assert shown["generatorURL"] == "https://streammon.example.com/"


@pytest.mark.alertmanager
async def test_an_alert_stays_while_it_is_repeated_and_ends_when_nobody_repeats_it(
    alertmanager: Server, session: aiohttp.ClientSession, opened: Open, unique: str
) -> None:
    channel = opened(alertmanager.address, resend="1s", hold="2s", labels={"run": unique})
    await channel.deliver(notification(), {})
    loop = asyncio.get_running_loop()
    ends = loop.time() + 4.5
    while loop.time() < ends:
        assert await active(session, alertmanager.address, run=unique)
        await asyncio.sleep(0.1)
    await channel.close()

    async def gone() -> bool:
        return not await active(session, alertmanager.address, run=unique)

    await eventually(gone, 5, "the end of an alert that nobody repeats")


@pytest.mark.alertmanager
async def test_a_silence_there_covers_our_alerts(
    alertmanager: Server, session: aiohttp.ClientSession, opened: Open, unique: str
) -> None:
    matcher = {"name": "service", "value": unique, "isRegex": False}
    silence = {"matchers": [matcher], "startsAt": "2020-01-01T00:00:00Z", "endsAt": "2100-01-01T00:00:00Z"}
    said = {"createdBy": "a test", "comment": "maintenance"}
    async with session.post(f"{alertmanager.address}/api/v2/silences", json=silence | said, raise_for_status=True):
        pass
    told = msgspec.structs.replace(TOLD, labels={"service": unique})
    await opened(alertmanager.address).deliver(notification(told), {})

    async def silenced() -> bool:
        (shown,) = await active(session, alertmanager.address, service=unique)
        return bool(shown["status"]["silencedBy"])

    await eventually(silenced, 5, "the silence")


@pytest.mark.alertmanager
async def test_its_receivers_hear_of_the_group_once_and_of_its_end(
    servers_directory: Path, start_server: Callable[..., Server], opened: Open, tmp_path: Path
) -> None:
    heard: list[dict[str, Any]] = []

    def hear(_request: web.Request, body: bytes) -> web.Response:
        heard.append(json.loads(body))
        return web.Response()

    pair = [msgspec.structs.replace(TOLD, id=host, labels={"host": host}) for host in ("web-1", "web-2")]
    async with fake_http(hear, tmp_path) as receiver:
        (servers_directory / ALERTMANAGER_FILE).write_text(
            "route: {receiver: us, group_by: [alertname], group_wait: 0s, group_interval: 1s}\n"
            f"receivers: [{{name: us, webhook_configs: [{{url: '{receiver.address}'}}]}}]\n"
        )
        with await asyncio.to_thread(start_server, "alertmanager", servers_directory) as server:
            channel = opened(server.address)
            memory = await channel.deliver(notification(*pair), {})
            await eventually(lambda: heard, 10, "a notification")
            await channel.resend()
            await channel.deliver(resolved(*pair), memory)
            await eventually(lambda: heard[-1]["status"] == "resolved", 10, "the end")
    assert {each["groupKey"] for each in heard} == {'{}:{alertname="slow"}'}
    assert sorted(each["labels"]["host"] for each in heard[-1]["alerts"]) == ["web-1", "web-2"]
    assert [each["status"] for each in heard].count("resolved") == 1


@pytest.mark.alertmanager
async def test_of_two_one_may_be_away_and_knows_everything_when_it_is_back(
    servers_directory: Path, start_server: Callable[..., Server], session: aiohttp.ClientSession, opened: Open
) -> None:
    with (
        await asyncio.to_thread(start_server, "alertmanager", servers_directory / "one") as first,
        await asyncio.to_thread(start_server, "alertmanager", servers_directory / "two") as second,
    ):
        channel = opened(first.address, second.address)
        second.kill()
        with capture_logs() as logs:
            await channel.deliver(notification(), {})
            await channel.resend()
        assert [entry["log_level"] for entry in logs] == ["warning"]
        await asyncio.to_thread(second.restart)
        await channel.resend()
        assert len(await active(session, second.address, service="shop")) == 1
        first.kill()
        second.kill()
        with pytest.raises(Retryable, match=r"channel ops: 127\.0\.0\.1 (cannot be reached|closed the connection)"):
            await channel.deliver(notification(id="n2"), {})


@pytest.mark.alertmanager
@pytest.mark.parametrize("what", HOSTILE)
async def test_it_refuses_nothing_that_an_alert_may_say(
    alertmanager: Server, session: aiohttp.ClientSession, opened: Open, unique: str, what: str
) -> None:
    channel = opened(alertmanager.address, labels={"run": unique})
    await channel.deliver(notification(hostile(HOSTILE[what])), {})
    assert len(await active(session, alertmanager.address, run=unique)) == 1


@pytest.mark.alertmanager
@pytest.mark.parametrize(
    ("started", "ended"), [(-5.0, None), (1e12, None), (1e300, None), (START, START), (START, 0.0)]
)
async def test_it_refuses_no_time_that_an_alert_may_have(
    alertmanager: Server, opened: Open, started: float, ended: float | None
) -> None:
    state = "firing" if ended is None else "resolved"
    told = msgspec.structs.replace(TOLD, started_unix_s=started, ended_unix_s=ended, state=state)
    await opened(alertmanager.address).deliver(notification(told), {})


# ---------------------------------------------------------------- what is sent, to the second


class Sent:
    """What was posted, to a fake that takes everything; time stands still until it is moved."""

    def __init__(self) -> None:
        self.now = START + 10
        self.posts: list[list[dict[str, Any]]] = []
        self.status = 200
        self.fake: FakeHttp

    def clock(self) -> float:
        return self.now

    def take(self, _request: web.Request, body: bytes) -> web.Response:
        self.posts.append(json.loads(body))
        return web.Response(status=self.status)

    def last(self) -> list[tuple[str, str, float]]:
        """Severity, host, and for how many seconds it goes on (or since when it is over)."""
        return [
            (
                each["labels"]["severity"],
                each["labels"].get("host", ""),
                round(datetime.fromisoformat(each["endsAt"]).timestamp() - self.now, 3),
            )
            for each in self.posts[-1]
        ]


@pytest.fixture
async def sent(tmp_path: Path) -> AsyncIterator[Sent]:
    sent = Sent()
    async with fake_http(sent.take, tmp_path) as sent.fake:
        yield sent


def on(host: str, **changes: Any) -> Alert:
    return alert(1, id=host, labels={"host": host}, **changes)


async def test_what_fires_is_said_to_go_on_and_what_is_over_is_repeated_for_five_minutes(
    sent: Sent, opened: Open
) -> None:
    channel = opened(sent.fake.address, clock=sent.clock)
    memory = await channel.deliver(notification(on("a")), {})
    assert sent.last() == [("critical", "a", 900.0)]
    await channel.deliver(notification(on("a", state="resolved", ended_unix_s=sent.now - 1), id="n2"), memory)
    assert sent.last() == [("critical", "a", -1.0)]
    for later_s, repeated in ((299, True), (2, False)):
        sent.now += later_s
        sent.posts.clear()
        await channel.resend()
        assert bool(sent.posts) == repeated


async def test_an_alert_that_gets_worse_ends_under_its_old_severity(sent: Sent, opened: Open) -> None:
    channel = opened(sent.fake.address, clock=sent.clock)
    memory = await channel.deliver(notification(on("a", severity="warning")), {})
    worse = notification(on("a"), id="n2", created_unix_s=sent.now - 2)
    await channel.deliver(worse, memory)
    assert sent.last() == [("critical", "a", 900.0), ("warning", "a", -2.0)]
    await opened(sent.fake.address, clock=sent.clock).deliver(worse, memory)
    assert sent.last() == [("critical", "a", 900.0), ("warning", "a", -2.0)]


async def test_an_alert_that_a_notification_leaves_out_goes_on_until_its_group_ends(sent: Sent, opened: Open) -> None:
    channel = opened(sent.fake.address, clock=sent.clock)
    memory = await channel.deliver(notification(on("a"), on("b")), {})
    memory = await channel.deliver(notification(on("a"), id="n2", omitted=1), memory)
    await channel.resend()
    assert sorted(sent.last()) == [("critical", "a", 900.0), ("critical", "b", 900.0)]
    await channel.deliver(resolved(on("a"), created_unix_s=sent.now - 3), memory)
    assert all(goes_on_s <= 0 for _, _, goes_on_s in sent.last())
    assert [host for _, host, _ in sent.last()] == ["a", "b"]


async def test_a_restart_goes_on_with_what_fires_and_forgets_what_was_over_long_ago(sent: Sent, opened: Open) -> None:
    before = opened(sent.fake.address, clock=sent.clock)
    firing = await before.deliver(notification(on("a")), {})
    over = await before.deliver(resolved(on("b"), group="other"), {})
    sent.now += 1000
    after = opened(sent.fake.address, clock=sent.clock)
    assert isinstance(after, Resuming)
    after.resume([firing, over])
    sent.posts.clear()
    await after.resend()
    assert sent.last() == [("critical", "a", 900.0)]
    await after.deliver(resolved(on("a")), firing)
    await after.resend()
    assert sent.last() == [("critical", "a", -950.0)]


async def test_it_repeats_by_itself_until_it_is_closed(sent: Sent, session: aiohttp.ClientSession) -> None:
    pauses: asyncio.Queue[float] = asyncio.Queue()
    go_on = asyncio.Semaphore(0)

    async def sleep(seconds: float) -> None:
        pauses.put_nowait(seconds)
        await go_on.acquire()

    description = Alertmanager(urls=[sent.fake.address], resend="30s")
    channel = AlertmanagerChannel("ops", description, session, clock=sent.clock, sleep=sleep)
    await channel.deliver(notification(on("a")), {})
    assert await pauses.get() == 30
    for posts in (2, 3):
        go_on.release()
        await pauses.get()
        assert len(sent.posts) == posts
    right, sent.now = sent.now, float("inf")  # something that nobody has thought of
    with capture_logs() as logs:
        go_on.release()
        await pauses.get()
    assert [(entry["event"], entry["error"]) for entry in logs] == [("alerts could not be sent again", "OverflowError")]
    sent.now = right
    go_on.release()
    await pauses.get()
    assert len(sent.posts) == 4
    await channel.close()
    await channel.close()
    assert pauses.empty()


async def test_a_delivery_that_nobody_took_is_neither_remembered_nor_repeated(sent: Sent, opened: Open) -> None:
    channel = opened(sent.fake.address, clock=sent.clock)
    sent.status = 400
    with pytest.raises(Rejected, match="answered 400"):
        await channel.deliver(notification(on("a")), {})
    sent.posts.clear()
    await channel.resend()
    assert sent.posts == []


async def test_when_one_refuses_and_the_other_is_away_it_is_tried_again(
    sent: Sent, opened: Open, free_port: int
) -> None:
    sent.status = 400
    channel = opened(sent.fake.address, f"http://127.0.0.1:{free_port}", clock=sent.clock)
    with pytest.raises(Retryable):
        await channel.deliver(notification(on("a")), {})


async def test_what_is_repeated_is_bounded_and_the_newest_is_kept(
    sent: Sent, opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_KEPT", 3)
    monkeypatch.setattr(module, "PER_POST", 2)
    channel = opened(sent.fake.address, clock=sent.clock)
    with capture_logs() as logs:
        await channel.deliver(notification(*(on(host) for host in "abcde")), {})
    assert [len(post) for post in sent.posts] == [2, 2, 1]
    assert [(entry["count"], entry["log_level"]) for entry in logs] == [(2, "warning")]
    sent.posts.clear()
    await channel.resend()
    assert [each["labels"]["host"] for post in sent.posts for each in post] == ["c", "d", "e"]


async def test_the_memory_of_a_storm_fits_into_a_record(sent: Sent, opened: Open) -> None:
    storm = [on(f"web-{n:05}", summary=f"web-{n} is slow " * 20) for n in range(2000)]
    memory = await opened(sent.fake.address, clock=sent.clock).deliver(notification(*storm), {})
    assert sum(map(len, memory.values())) < 200_000


def test_label_names_are_made_valid_and_none_hides_another() -> None:
    told = alert(labels={"a.b": "1", "a_b": "2", "9": "3", "severity": "4", "alertname": "5", "ü": "6"})
    assert labels_for_prometheus(told, {"cluster": "eu"}) == {
        "alertname": "slow",
        "severity": "critical",
        "cluster": "eu",
        "a_b": "1",
        "a_b_": "2",
        "_9": "3",
        "severity_": "4",
        "alertname_": "5",
        "_": "6",
    }


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"urls": []}, "length >= 1"),
        ({"urls": ["alertmanager:9093"]}, "is no address such as"),
        ({"urls": ["http://user:pass@alertmanager"]}, "'alertmanager' is no address"),
        ({"resend": "10m"}, "at least twice `resend`"),
        ({"resend": 0}, "at least 1s"),
        ({"username": "u"}, "together"),
        ({"username": "u", "password": {"env": "P"}, "token": {"env": "T"}}, "together"),
        ({"url": "http://x"}, "unknown field `url`"),
    ],
)
def test_a_description_that_cannot_work_is_refused(changes: dict[str, Any], problem: str) -> None:
    good = {"type": "alertmanager", "urls": ["http://alertmanager:9093"]}
    msgspec.convert(good, Alertmanager)
    with pytest.raises(msgspec.ValidationError, match=problem) as raised:
        msgspec.convert(good | changes, Alertmanager)
    assert "pass@" not in str(raised.value)
