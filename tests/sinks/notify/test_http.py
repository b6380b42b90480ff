"""The one way in which channels talk HTTP: how long to wait, what is read, and where secrets do not go."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from streammon.errors import Backpressure, ConfigError, Rejected, Retryable, StreammonError
from streammon_sinks.notify.http import LONGEST_WAIT_S, MAX_BODY_BYTES, Http, Reply, Unanswered, judge, retry_after_s
from streammon_sinks.notify.secrets import Secret, SecretValue
from streammon_sinks.notify.webhook import Webhook, WebhookChannel
from tests.sinks.notify.builders import notification
from tests.sinks.notify.counterparts import PATIENCE_S, Fault
from tests.sinks.notify.fake_http import FakeHttp, fake_http

NOW = 1_700_000_000.0


@pytest.fixture
async def fake(tmp_path: Path) -> AsyncIterator[FakeHttp]:
    async with fake_http(lambda _request, _body: web.Response(text="ok"), tmp_path) as fake:
        yield fake


def http(fake: FakeHttp) -> Http:
    return Http("ops", fake.session, PATIENCE_S, lambda: NOW)


@pytest.mark.parametrize(
    ("header", "wait_s"),
    [
        (None, None),
        ("7", 7.0),
        ("0.5", 1.0),
        ("-3", 1.0),
        ("1e9", LONGEST_WAIT_S),
        ("inf", LONGEST_WAIT_S),
        ("nan", None),
        ("soon", None),
        ("", None),
        (format_datetime(datetime.fromtimestamp(NOW + 90, UTC), usegmt=True), 90.0),
        (format_datetime(datetime.fromtimestamp(NOW - 90, UTC), usegmt=True), 1.0),
        ("Fri, 99 Nov 2023 00:00:00 GMT", None),
    ],
)
def test_retry_after_is_seconds_or_a_date_within_bounds(header: str | None, wait_s: float | None) -> None:
    assert retry_after_s(header, NOW) == wait_s


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        (Reply(200, b""), None),
        (Reply(299, b""), None),
        (Reply(302, b""), Retryable),
        (Reply(400, b""), Rejected),
        (Reply(404, b""), Rejected),
        (Reply(408, b""), Unanswered),
        (Reply(413, b""), Rejected),
        (Reply(425, b""), Retryable),
        (Reply(429, b""), Backpressure),
        (Reply(500, b""), Unanswered),
        (Reply(503, b"", 30.0), Backpressure),
        (Reply(504, b""), Unanswered),
        (Reply(599, b""), Unanswered),
    ],
    ids=lambda value: str(getattr(value, "status", "")),
)
def test_a_status_is_one_of_five_outcomes(reply: Reply, verdict: type[StreammonError] | None) -> None:
    try:
        judge("channel ops: host", reply, [])
        raised = None
    except StreammonError as error:
        raised = type(error)
    assert raised is verdict


def test_a_reason_is_scrubbed_before_it_is_cut() -> None:
    secret = SecretValue("s" * 40)
    with pytest.raises(Rejected) as raised:
        judge("channel ops: host", Reply(400, b"x" * 490 + b"s" * 40 + b"y" * 100), [secret])
    assert "sss" not in raised.value.detail
    assert raised.value.detail.endswith("***" + "y" * 7)


async def test_a_redirect_is_not_followed(fake: FakeHttp) -> None:
    fake.fault = Fault.REDIRECTING
    with pytest.raises(Retryable, match="redirects"):
        await http(fake).post(fake.address, b"{}")
    assert fake.requests == 1


async def test_an_endless_answer_is_read_to_its_bound_and_no_further(fake: FakeHttp) -> None:
    fake.fault = Fault.ENDLESS
    reply = await http(fake).post(fake.address, b"{}")
    assert len(reply.body) == MAX_BODY_BYTES
    assert fake.sent_bytes < 16 * 2**20, "what the sockets hold, and not more"


async def test_nobody_there_is_tried_again(fake: FakeHttp) -> None:
    with pytest.raises(Retryable, match=r"channel ops: 127\.0\.0\.1 cannot be reached: .+"):
        await http(fake).post(SecretValue("http://127.0.0.1:1/secret-path-of-a-hook"), b"{}")


@pytest.mark.parametrize("url", ["hooks.example.com/x", "ftp://host/", "http://", "", "http://[", "https://a:b/c"])
async def test_what_is_no_url_is_said_without_showing_it(fake: FakeHttp, url: str) -> None:
    with pytest.raises(Retryable, match="channel ops: its URL does not begin") as raised:
        await http(fake).post(SecretValue(url), b"{}")
    assert "hooks" not in str(raised.value)


async def test_a_secret_that_is_gone_for_a_moment_is_tried_again(fake: FakeHttp, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("one")
    channel = WebhookChannel("ops", Webhook(url=fake.address, token=Secret(file=str(file))), fake.session)
    file.unlink()
    with pytest.raises(Retryable, match=r"channel ops: token: file .* cannot be read"):
        await channel.deliver(notification(), {})
    with pytest.raises(ConfigError, match="channel ops: token"):
        WebhookChannel("ops", Webhook(url=fake.address, token=Secret(file=str(file))), fake.session)


@pytest.mark.parametrize("timeout", [0, "-1s", "6m", "soon"])
def test_a_timeout_is_within_bounds(timeout: float | str) -> None:
    with pytest.raises(ValueError, match=r"timeout|duration"):
        Webhook(url="http://host", timeout=timeout)


async def test_a_session_of_the_caller_stays_open(fake: FakeHttp) -> None:
    await WebhookChannel("ops", Webhook(url=fake.address), fake.session).close()
    assert not fake.session.closed
    assert isinstance(fake.session, aiohttp.ClientSession)
