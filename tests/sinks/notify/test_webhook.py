"""The webhook: what is sent, how it is signed, and what a template can and cannot do."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from streammon_sinks.notify.channel import Notification
from streammon_sinks.notify.secrets import SecretValue
from streammon_sinks.notify.webhook import NAMES, Webhook, body_of, signature
from tests.sinks.notify.builders import TOLD, changed, notification, resolved
from tests.sinks.notify.counterparts import MARKER
from tests.sinks.notify.fake_webhook import NOW, FakeWebhook, verified, webhook


@pytest.fixture
async def fake(tmp_path: Path) -> AsyncIterator[FakeWebhook]:
    async with webhook(tmp_path) as fake:
        yield fake


async def test_the_receiver_gets_the_notification_as_it_is(fake: FakeWebhook) -> None:
    told = notification(omitted=3)
    await fake.open().deliver(told, {})
    assert fake.taken == {"n1": told}


async def test_headers_are_sent_secret_or_not(fake: FakeWebhook) -> None:
    await fake.open().deliver(notification(), {})
    assert (fake.headers["X-Key"], fake.headers["X-Team"]) == (f"header-{MARKER}", "ml")
    assert fake.headers["Content-Type"] == "application/json"


def test_a_signature_is_of_this_secret_this_body_and_this_time() -> None:
    header = signature(SecretValue("s"), b"{}", int(NOW))
    assert verified("s", header, b"{}", NOW)
    assert not verified("other", header, b"{}", NOW)
    assert not verified("s", header, b"{ }", NOW)
    assert not verified("s", header, b"{}", NOW + 301)
    assert not verified("s", header.replace("t=1", "t=2"), b"{}", NOW)


def test_a_template_stays_json_whatever_a_label_holds() -> None:
    hostile = 'x", "admin": true, "y": "\\ $text ${id} $$'
    told = notification(changed(summary=hostile, rule=hostile))
    template = {"a": ["$rule", 1, None], "b": {"c": "costs $$5", "d": "${id}-$count"}, "$id": True}
    assert msgspec.json.decode(body_of(told, template)) == {
        "a": [hostile, 1, None],
        "b": {"c": "costs $5", "d": "n1-1"},
        "$id": True,
    }


def test_what_is_over_says_so_since_when_and_for_how_long_it_was_not() -> None:
    told = msgspec.json.decode(body_of(resolved(), {name: f"${name}" for name in ("summary", "text")}))
    assert told["summary"] == "RESOLVED after 1 min: shop is slow"
    assert "Over since 2023-11-14T22:14:20+00:00, after 1 min" in told["text"].splitlines()


def test_every_name_says_something() -> None:
    told = msgspec.json.decode(body_of(notification(), {name: f"${name}" for name in NAMES}), type=dict[str, str])
    assert all(told.values())
    assert told["summary"] == "CRITICAL: shop is slow"
    assert "Likely cause: deploy of ranker 3: 20 s before the onset" in told["text"].splitlines()


@pytest.mark.parametrize("text", ["$nothing", "$", "100 $ ", "${id", "$1"])
def test_a_template_with_an_unknown_name_is_refused_at_once(text: str) -> None:
    with pytest.raises(ValueError, match=r"write \$\$ for a dollar sign, or one of \$id"):
        Webhook(url="https://host", body={"a": [{"b": text}]})


@pytest.mark.parametrize(
    "headers",
    [{"Host": "x"}, {"authorization": "x"}, {"Idempotency-Key": "x"}, {"A B": "x"}, {"": "x"}, {"A": "x\r\nB: y"}],
)
def test_headers_that_would_break_the_request_are_refused(headers: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="headers"):
        Webhook(url="https://host", headers=headers)


def test_the_body_is_versioned() -> None:
    told = msgspec.json.decode(body_of(notification(), None))
    assert told["schema"] == 1
    assert told["type"] == "notification"
    assert msgspec.convert(told, Notification).alerts == [TOLD]
