"""Mail: what arrives at a real mail server, parsed back, and what an address or a network does to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from email.headerregistry import Address
from email.message import EmailMessage
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import pytest
from structlog.testing import capture_logs

from streammon.errors import ConfigError, Rejected, Retryable
from streammon_sinks.notify.channel import Notification
from streammon_sinks.notify.email import Email, EmailChannel
from streammon_sinks.notify.mail_message import IN_BRIEF, IN_FULL, mail, subject
from streammon_sinks.notify.secrets import Secret
from tests.contracts.test_channel import HOSTILE, hostile
from tests.sinks.builders import alert
from tests.sinks.notify.builders import TOLD, notification, resolved
from tests.sinks.notify.mail_server import MailServer, mail_server

SENDER = Address("ML alerts", addr_spec="alerts@example.org")
TO = [Address(addr_spec="oncall@example.org")]


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[MailServer]:
    async with mail_server(tmp_path) as server:
        yield server


def channel(server: MailServer, **changes: Any) -> EmailChannel:
    return EmailChannel("ops", server.settings(**changes))


def written(told: Notification, memory: dict[str, str] | None = None) -> EmailMessage:
    return mail(told, memory or {}, sender=SENDER, to=TO)


def text_of(message: EmailMessage, kind: str) -> str:
    body = message.get_body((kind,))
    assert body is not None
    return str(body.get_content())


class Elements(HTMLParser):
    """The elements of a page, its attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data


# ---------------------------------------------------------------- what arrives


async def test_a_mail_says_everything_that_a_person_needs_in_both_bodies(server: MailServer) -> None:
    await channel(server, cc=["Lead <lead@example.org>"]).deliver(notification(), {})
    arrived = server.mails[0]
    assert arrived["From"] == "ML alerts <alerts@example.org>"
    assert arrived["To"] == "oncall@example.org"
    assert arrived["Cc"] == "Lead <lead@example.org>"
    assert server.envelopes[0].rcpt_tos == ["oncall@example.org", "lead@example.org"]
    assert arrived["Subject"] == "[CRITICAL] shop is slow"
    for body in (text_of(arrived, "plain"), Elements(text_of(arrived, "html")).text):
        for said in (TOLD.condition, TOLD.contact, "ranker", "4.5", "Look at the traces", "Roll back", "22:13:20 UTC"):
            assert str(said) in body
    assert "https://runbooks.example.com/slow" in text_of(arrived, "plain")
    assert ("href", "https://runbooks.example.com/slow") in Elements(text_of(arrived, "html")).attributes


async def test_programs_can_tell_what_it_is_and_sort_it(server: MailServer) -> None:
    await channel(server).deliver(notification(), {})
    headers = server.mails[0]
    assert headers["Auto-Submitted"] == "auto-generated"
    assert headers["List-Id"] == "<ops.streammon.example.org>"
    assert (headers["X-Streammon-Severity"], headers["X-Streammon-Status"]) == ("critical", "firing")
    assert headers["Date"].datetime.timestamp() == notification().created_unix_s


async def test_the_mails_about_a_group_are_one_thread(server: MailServer) -> None:
    memory = await channel(server).deliver(notification(), {})
    memory = await channel(server).deliver(notification(id="n2", cause="repeat"), memory)
    await channel(server).deliver(resolved(id="n3"), memory)
    first, second, third = server.mails
    assert (first["In-Reply-To"], first["References"]) == (None, None)
    assert (second["In-Reply-To"], second["References"]) == (first["Message-ID"], first["Message-ID"])
    assert third["In-Reply-To"] == second["Message-ID"]
    assert third["References"] == f"{first['Message-ID']} {second['Message-ID']}"
    assert third["Subject"] == "[RESOLVED] shop is slow"


def test_the_same_notification_is_the_same_bytes() -> None:
    assert bytes(written(notification())) == bytes(written(notification()))
    assert written(notification())["Message-ID"] != written(notification(id="n2"))["Message-ID"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "[CRITICAL] shop is slow"),
        ({"omitted": 3}, "[CRITICAL] shop is slow (and 3 more)"),
        ({"cause": "repeat"}, "[CRITICAL] Still firing: shop is slow"),
        ({"cause": "escalation"}, "[CRITICAL] Nobody has acknowledged: shop is slow"),
        ({"cause": "test"}, "[TEST] shop is slow"),
        ({"status": "resolved"}, "[RESOLVED] shop is slow"),
    ],
)
def test_the_subject_says_how_bad_and_what(changes: dict[str, Any], expected: str) -> None:
    assert subject(notification(**changes)) == expected


# ---------------------------------------------------------------- what others wrote stays in its place


@pytest.mark.parametrize("what", HOSTILE)
async def test_nothing_that_an_alert_says_becomes_a_header_or_an_element(server: MailServer, what: str) -> None:
    plain = written(notification())
    told = hostile(HOSTILE[what])
    await channel(server).deliver(notification(told, group_labels={"service": HOSTILE[what]}), {})
    arrived = server.mails[0]
    assert arrived.keys() == plain.keys()
    assert len(arrived["Subject"]) <= 200
    page = text_of(arrived, "html")
    assert set(Elements(page).names) <= set(Elements(text_of(plain, "html")).names)
    assert {name for name, _ in Elements(page).attributes} <= {
        name for name, _ in Elements(text_of(plain, "html")).attributes
    }


@pytest.mark.parametrize(
    "url", ["javascript:alert(1)", "https://x.example/ y", "data:text/html,x", "//x", "http://[", "x"]
)
def test_what_is_no_web_address_is_told_and_not_linked(url: str) -> None:
    told = msgspec.structs.replace(TOLD, runbook_url=url, contact=url)
    page = Elements(text_of(written(notification(told)), "html"))
    assert "a" not in page.names
    assert page.text.count(url) >= 2


def test_a_mail_loads_nothing_from_elsewhere() -> None:
    page = Elements(text_of(written(notification()), "html"))
    assert not {"img", "link", "script", "iframe", "object"} & set(page.names)
    assert "url(" not in text_of(written(notification()), "html")
    assert [value for name, value in page.attributes if name in ("src", "background")] == []


def test_a_storm_is_a_mail_of_bounded_size_that_counts_the_rest() -> None:
    storm = [alert(1, id=f"a{n}", labels={"host": f"web-{n}"}) for n in range(200)]
    message = written(notification(*storm, omitted=10_000))
    untold = 10_000 + 200 - IN_FULL - IN_BRIEF
    for body in (text_of(message, "plain"), Elements(text_of(message, "html")).text):
        assert f"{untold} more alerts are in this group." in body
    assert subject(notification(*storm, omitted=10_000)) == "[CRITICAL] shop is slow (and 10199 more)"
    assert len(bytes(message)) < 100_000


# ---------------------------------------------------------------- how it gets there


async def test_it_speaks_tls_from_the_start_where_told(server: MailServer) -> None:
    await channel(server, security="tls", port=server.port("tls")).deliver(notification(), {})
    assert len(server.mails) == 1


async def test_it_speaks_in_the_clear_only_where_told_and_without_a_password(server: MailServer) -> None:
    clear = {"port": server.port("clear"), "username": None, "password": None}
    await channel(server, security="none", **clear).deliver(notification(), {})
    assert len(server.mails) == 1
    with pytest.raises(Retryable, match=r"mail server 127\.0\.0\.1 lacks what .* STARTTLS"):
        await channel(server, **clear).deliver(notification(), {})
    assert len(server.mails) == 1


async def test_a_certificate_that_nobody_signed_is_taken_only_where_told(server: MailServer) -> None:
    other = {"port": server.port("untrusted")}
    with pytest.raises(Retryable, match="certificate that is not trusted"):
        await channel(server, **other).deliver(notification(), {})
    await channel(server, verify=False, **other).deliver(notification(), {})
    assert len(server.mails) == 1


async def test_a_wrong_password_is_told_without_the_password(server: MailServer, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("hunter2-and-more")
    with pytest.raises(Rejected, match="does not accept the username and password: 535") as raised:
        await channel(server, password=Secret(file=str(wrong))).deliver(notification(), {})
    assert "hunter2" not in repr(raised.value)
    assert (raised.value.__cause__, raised.value.__context__) == (None, None)


async def test_a_password_that_was_rotated_is_read_again(server: MailServer) -> None:
    long_lived = channel(server)
    await long_lived.deliver(notification(), {})
    server.password_file.write_text("another")
    await long_lived.deliver(notification(id="n2"), {})
    assert len(server.mails) == 2


async def test_a_greylisted_address_gets_the_mail_later_and_the_others_get_it_once(server: MailServer) -> None:
    both = channel(server, to=["oncall@example.org", "grey@example.org"])
    server.answers["grey@example.org"] = "450 4.2.0 greylisted"
    with pytest.raises(Retryable, match=r"answered 450 about grey@example\.org: 4\.2\.0 greylisted"):
        await both.deliver(notification(), {})
    server.answers.clear()
    await both.deliver(notification(), {})
    assert [each.rcpt_tos for each in server.envelopes] == [["oncall@example.org"], ["grey@example.org"]]
    await both.deliver(notification(id="n2"), {})
    assert server.envelopes[-1].rcpt_tos == ["oncall@example.org", "grey@example.org"]


async def test_an_address_that_does_not_exist_keeps_nothing_from_the_others(server: MailServer) -> None:
    server.answers["gone@example.org"] = "550 5.1.1 no such user"
    with capture_logs() as logs:
        await channel(server, cc=["gone@example.org"]).deliver(notification(), {})
    assert server.envelopes[0].rcpt_tos == ["oncall@example.org"]
    assert [(entry["address"], entry["code"]) for entry in logs] == [("gone@example.org", 550)]


async def test_when_no_address_exists_the_mail_is_rejected(server: MailServer) -> None:
    server.answers["oncall@example.org"] = "550 5.1.1 no such user"
    with pytest.raises(Rejected, match=r"answered 550 about oncall@example\.org: 5\.1\.1 no such user"):
        await channel(server).deliver(notification(), {})


async def test_a_server_that_is_not_there_is_named(free_port: int, server: MailServer) -> None:
    with pytest.raises(Retryable, match=r"channel ops: mail server 127\.0\.0\.1 cannot be reached"):
        await channel(server, port=free_port).deliver(notification(), {})


async def test_a_stop_in_the_middle_of_a_delivery_ends_at_once(server: MailServer) -> None:
    hanging = channel(server, port=server.port("below"), timeout=60)
    delivery = asyncio.create_task(hanging.deliver(notification(), {}))
    _, waiting = await asyncio.wait([delivery], timeout=0.2)
    assert waiting
    delivery.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(delivery, 5)


# ---------------------------------------------------------------- its description

GOOD = {"type": "email", "host": "mail", "from": "a@example.org", "to": ["b@example.org"]}


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"to": []}, "length >= 1"),
        ({"to": ["nobody"]}, "'nobody' is no mail address"),
        ({"to": ["a@example.org\r\nBcc: x@example.org"]}, "is no mail address"),
        ({"to": ["a@example.org, b@example.org"]}, "is no mail address"),
        ({"from": "ü@example.org"}, "is no mail address"),
        ({"username": "u"}, "need each other"),
        ({"username": "u", "password": {"env": "P"}, "security": "none"}, "not sent in the clear"),
        ({"username": "u", "password": "inline"}, "got `str`"),
        ({"security": "ssl"}, "Invalid enum value 'ssl'"),
        ({"timeout": "soon"}, "is no duration"),
        ({"hostname": "x"}, "unknown field `hostname`"),
    ],
)
def test_a_description_that_cannot_work_is_refused(changes: dict[str, Any], problem: str) -> None:
    msgspec.convert(GOOD, Email)
    with pytest.raises(msgspec.ValidationError, match=problem):
        msgspec.convert(GOOD | changes, Email)


def test_a_file_of_authorities_that_is_not_there_is_named() -> None:
    settings = msgspec.convert(GOOD | {"ca_file": "/no/such.pem"}, Email)
    with pytest.raises(ConfigError, match=r"channel ops: ca_file /no/such\.pem cannot be used: No such file"):
        EmailChannel("ops", settings)
