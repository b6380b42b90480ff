"""Apprise: what its own plugins send to a service, and that nothing of it goes on behind our back."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import parse_qs

import msgspec
import psutil
import pytest
from aiohttp import web

from streammon.errors import ConfigError, Rejected, Retryable, StreammonError
from streammon_sinks.notify import installed
from streammon_sinks.notify.apprise import AppriseChannel, order
from streammon_sinks.notify.apprise_process import MODULE
from streammon_sinks.notify.channel import Notification
from streammon_sinks.notify.secrets import SecretValue
from tests.sinks.builders import alert
from tests.sinks.notify.apprise_services import JsonService, json_service
from tests.sinks.notify.builders import TOLD, changed, notification, resolved
from tests.sinks.notify.counterparts import MARKER, Fault
from tests.sinks.notify.fake_http import fake_http
from tests.support import eventually

URL = SecretValue("json://nowhere/token")


@pytest.fixture
async def service(tmp_path: Path) -> AsyncIterator[JsonService]:
    async with json_service(tmp_path) as service:
        yield service


def senders() -> list[psutil.Process]:
    """The processes that send for us now."""
    return [each for each in psutil.Process().children() if MODULE in " ".join(each.cmdline())]


# ---------------------------------------------------------------- what arrives


async def test_a_message_says_everything_that_a_person_needs(service: JsonService) -> None:
    await service.open().deliver(notification(omitted=3), {})
    (taken,) = service.taken
    assert (taken.title, taken.type) == ("CRITICAL: shop is slow (+ 3 more)", "failure")
    for said in (TOLD.condition, "#ml-oncall", "model: ranker", "1. Look at the traces", "and 3 more", "deploy of ran"):
        assert said in taken.message
    assert TOLD.runbook_url in taken.message.split("\n")


async def test_another_of_its_plugins_sends_the_same(tmp_path: Path, service: JsonService) -> None:
    sent: list[dict[str, list[str]]] = []

    def take(_request: web.Request, body: bytes) -> web.Response:
        sent.append(parse_qs(body.decode(), strict_parsing=True))
        return web.Response()

    async with fake_http(take, tmp_path) as form:
        description = service.description(form.address.replace("http", "form", 1))
        await AppriseChannel("ops", description).deliver(notification(), {})
    await service.open().deliver(notification(), {})
    (taken,) = service.taken
    assert (sent[0]["title"], sent[0]["message"], sent[0]["type"]) == ([taken.title], [taken.message], [taken.type])


@pytest.mark.parametrize(
    ("told", "kind"),
    [
        (notification(), "failure"),
        (notification(changed(severity="warning")), "warning"),
        (notification(changed(severity="info")), "info"),
        (notification(changed(state="acknowledged")), "info"),
        (resolved(), "success"),
    ],
    ids=["critical", "warning", "info", "acknowledged", "resolved"],
)
def test_its_kind_is_how_bad_it_is(told: Notification, kind: str) -> None:
    assert order(told, URL, 1).kind == kind


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("@everyone @HERE", "@\u200beveryone @\u200bHERE"),
        ("<!channel> <@U123> <#C1>", "<\u200b!channel> <\u200b@U123> <\u200b#C1>"),
        ("lead@example.com a < b", "lead@example.com a < b"),
    ],
)
def test_nobody_is_called_by_what_an_alert_says(text: str, shown: str) -> None:
    sent = order(notification(alert(1, summary=text, condition=text)), URL, 1)
    assert shown in sent.title
    assert shown in sent.body


async def test_the_same_notification_is_not_sent_again_and_the_next_one_is(service: JsonService) -> None:
    memory = await service.open().deliver(notification(), {})
    assert await service.open().deliver(notification(), memory) == memory
    assert len(service.taken) == 1
    await service.open().deliver(notification(id="n2", cause="repeat"), memory)
    assert len(service.taken) == 2


# ---------------------------------------------------------------- trouble


@pytest.mark.parametrize(
    ("status", "error"),
    [(401, Rejected), (404, Rejected), (408, Retryable), (429, Retryable), (502, Retryable), (307, Retryable)],
)
async def test_its_status_decides_whether_to_try_again(
    tmp_path: Path, service: JsonService, status: int, error: type[StreammonError]
) -> None:
    async with fake_http(lambda _request, _body: web.Response(status=status), tmp_path) as http:
        channel = AppriseChannel("ops", service.description(http.address.replace("http", "json", 1)))
        with pytest.raises(error, match=f"channel ops: JSON did not take the message: .*error={status}") as raised:
            await channel.deliver(notification(), {})
        assert type(raised.value) is error
        assert http.requests == 1


async def test_where_a_redirect_leads_is_not_told_anything(tmp_path: Path, service: JsonService) -> None:
    elsewhere = f"{service.http.address}/elsewhere"
    moved = web.Response(status=307, headers={"Location": elsewhere})
    async with fake_http(lambda _request, _body: moved, tmp_path) as http:
        channel = AppriseChannel("ops", service.description(http.address.replace("http", "json", 1)))
        with pytest.raises(Retryable):
            await channel.deliver(notification(), {})
    assert service.http.requests == 0


@pytest.mark.parametrize("url", [f"nosuch://{MARKER}", MARKER, f"tgram://{MARKER}", f"json://{MARKER}:0x/"])
async def test_a_url_that_it_does_not_understand_is_told_without_the_url(service: JsonService, url: str) -> None:
    with pytest.raises(Retryable, match="channel ops: ") as raised:
        await AppriseChannel("ops", service.description(url)).deliver(notification(), {})
    assert MARKER.lower() not in str(raised.value).lower()


@pytest.mark.parametrize("host", [f"{MARKER}.invalid", MARKER.upper(), f"x:pass@{MARKER}"])
async def test_what_apprise_says_about_a_message_is_told_without_any_part_of_the_url(
    service: JsonService, host: str
) -> None:
    """It names the host, which is a token in the URLs of many services."""
    with pytest.raises(Retryable, match=r"channel ops: JSON did not take the message: .* to \*\*\*") as raised:
        await AppriseChannel("ops", service.description(f"json://{host}/x")).deliver(notification(), {})
    assert MARKER.lower() not in str(raised.value).lower()


async def test_a_url_that_was_replaced_is_read_again(service: JsonService) -> None:
    channel = AppriseChannel("ops", service.description("nosuch://x"))
    with pytest.raises(Retryable, match="does not understand"):
        await channel.deliver(notification(), {})
    service.description(service.url())
    await channel.deliver(notification(), {})


async def test_when_the_time_is_over_nothing_goes_on(service: JsonService) -> None:
    service.misbehave(Fault.SLOW)
    with pytest.raises(Retryable, match=r"not sent the message within 1\.5 s"):
        await service.open().deliver(notification(), {})
    assert senders() == []


async def test_a_stop_in_the_middle_of_a_message_ends_it_and_no_secret_is_on_its_command_line(
    service: JsonService,
) -> None:
    service.misbehave(Fault.SILENT)
    delivery = asyncio.create_task(AppriseChannel("ops", service.description(timeout=60)).deliver(notification(), {}))
    await eventually(lambda: service.http.requests, 20, "the request")
    (sender,) = senders()
    assert MARKER not in " ".join(sender.cmdline())
    assert MARKER not in str(sender.environ())
    delivery.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(delivery, 5)
    assert senders() == []


async def test_an_answer_without_end_takes_bounded_memory(service: JsonService) -> None:
    service.misbehave(Fault.ENDLESS)
    channel = AppriseChannel("ops", service.description(timeout=60))
    with pytest.raises(Retryable, match=r"JSON did not take the message|ended without an answer"):
        await channel.deliver(notification(), {})
    assert service.http.sent_bytes < 2**30


async def test_a_message_ends_by_itself_when_nobody_is_left_to_end_it(service: JsonService) -> None:
    service.misbehave(Fault.SILENT)
    forgotten = msgspec.json.encode(order(notification(), SecretValue(service.url()), timeout_s=1))

    def run() -> subprocess.CompletedProcess[bytes]:
        return subprocess.run([sys.executable, "-P", "-m", MODULE], input=forgotten, capture_output=True, timeout=30)

    done = await asyncio.to_thread(run)
    assert (done.returncode, done.stdout) == (-signal.SIGALRM, b"")


async def test_a_process_that_breaks_is_told_without_what_it_printed(
    service: JsonService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streammon_sinks.notify.apprise.MODULE", "no_such_module")
    with pytest.raises(Retryable, match=r"channel ops: the process .* ended without an answer, status 1"):
        await service.open().deliver(notification(), {})


async def test_without_apprise_the_channel_says_how_to_install_it(
    service: JsonService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(installed, "find_spec", lambda _name: None)
    with pytest.raises(ConfigError, match=r"channel ops: apprise is not installed; pip install 'streammon\[notify\]'"):
        service.open()
