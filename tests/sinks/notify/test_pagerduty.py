"""PagerDuty: the same events as its own client sends, and what people do there."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pagerduty as pagerduty_client
import pytest

from streammon.commands import Acknowledge
from streammon.errors import Rejected
from streammon.results import Alert
from streammon_sinks.notify.pagerduty import dedup_key, event
from streammon_sinks.notify.pagerduty_inbound import pagerduty_commands
from streammon_sinks.notify.secrets import SecretValue
from tests.sinks.builders import START, alert
from tests.sinks.notify.builders import TOLD, changed, notification, resolved
from tests.sinks.notify.fake_pagerduty import KEY, FakePagerDuty, pagerduty

NOW = START + 100
SECRET = SecretValue("hush-hush")
TAKEN = changed(state="acknowledged", transition=2)


@pytest.fixture
async def fake(tmp_path: Path) -> AsyncIterator[FakePagerDuty]:
    async with pagerduty(tmp_path) as fake:
        yield fake


# ---------------------------------------------------------------- events


@pytest.mark.parametrize("told", [notification(), notification(TAKEN), resolved()], ids=["trigger", "ack", "resolve"])
async def test_pagerdutys_own_client_sends_the_same_body(fake: FakePagerDuty, tmp_path: Path, told: Any) -> None:
    await fake.open().deliver(told, {})
    trusting = ssl.create_default_context(cafile=str(tmp_path / "nobody.pem"))
    client = pagerduty_client.EventsApiV2Client(KEY, base_url=fake.http.tls_address, verify=trusting)
    parts = event(told)
    action, key = parts.pop("event_action"), parts.pop("dedup_key")
    assert await asyncio.to_thread(client.send_event, action, dedup_key=key, **parts) == key
    ours, theirs = fake.bodies
    assert ours == theirs


def test_a_trigger_tells_what_a_person_needs() -> None:
    told = event(notification(omitted=11))
    payload = told["payload"]
    assert payload["summary"] == "CRITICAL: shop is slow (+ 11 more)"
    assert (payload["severity"], payload["source"], payload["component"]) == ("critical", "shop", "ranker")
    assert payload["timestamp"] == "2023-11-14T22:13:20+00:00"
    assert payload["custom_details"]["likely_causes"] == ["deploy of ranker 3: 20 s before the onset"]
    assert payload["custom_details"]["alerts"][-1] == "… and 11 more"
    assert told["links"] == [{"href": "https://runbooks.example.com/slow", "text": "Runbook"}]


async def test_an_incident_is_triggered_acknowledged_and_resolved_under_one_key(fake: FakePagerDuty) -> None:
    channel = fake.open()
    for told, action in ((notification(), "trigger"), (notification(TAKEN), "acknowledge"), (resolved(), "resolve")):
        await channel.deliver(told, {})
        assert fake.incidents == {"shop/slow#1": action}
    assert fake.opened == 1


@pytest.mark.parametrize(
    ("told", "action"),
    [
        (notification(TAKEN, alert(1, id="b")), "trigger"),
        (notification(TAKEN, changed(state="resolved")), "acknowledge"),
        (notification(TAKEN, omitted=1), "trigger"),
    ],
)
def test_a_group_is_acknowledged_once_every_alert_of_it_is(told: Any, action: str) -> None:
    assert event(told)["event_action"] == action


def test_a_group_with_a_long_name_has_a_key_that_fits() -> None:
    assert dedup_key("g" * 255) == "g" * 255
    assert len(dedup_key("g" * 256)) == 64
    assert dedup_key("g" * 256) != dedup_key("g" * 257)


# ---------------------------------------------------------------- what people do there


def delivery(event_type: str = "incident.acknowledged", **data: Any) -> bytes:
    """As PagerDuty's page on webhooks shows one, shortened."""
    content = {
        "id": "5ac64822-4adc-4fda-ade0-410becf0de4f",
        "event_type": event_type,
        "resource_type": "incident",
        "occurred_at": "2023-11-14T22:14:50.000Z",
        "agent": {"id": "PLH1HKV", "summary": "Ada", "type": "user_reference"},
        "client": {"name": "PagerDuty"},
        "data": {"id": "PGR0VU2", "type": "incident", "status": "acknowledged", "incident_key": "shop/slow#1", **data},
    }
    return msgspec.json.encode({"event": content})


def signed(body: bytes, secret: SecretValue = SECRET) -> dict[str, str]:
    mac = hmac.new(secret.reveal().encode(), body, hashlib.sha256).hexdigest()
    return {"x-pagerduty-signature": f"v1={'0' * 64},v1={mac}", "content-type": "application/json"}


def alerts_of(key: str) -> list[Alert]:
    later = alert(1, id="later", updated_unix_s=START + 95)
    group = [TOLD, changed(id="taken", state="acknowledged"), changed(id="over", state="resolved"), later]
    return group if key == "shop/slow#1" else []


def test_who_acknowledges_there_acknowledges_what_fired_then() -> None:
    body = delivery()
    (command,) = pagerduty_commands(signed(body), body, SECRET, NOW, alerts_of=alerts_of)
    assert isinstance(command, Acknowledge)
    assert (command.alert_id, command.transition) == (TOLD.id, 1)
    assert (command.by, command.via, command.time_unix_s) == ("Ada (PLH1HKV)", "pagerduty", NOW)
    assert pagerduty_commands(signed(body), body, SECRET, NOW + 9, alerts_of=alerts_of)[0].id == command.id


@pytest.mark.parametrize(
    "body",
    [
        delivery(incident_key="other"),
        delivery(incident_key=None),
        delivery("incident.resolved"),
        delivery("pagey.ping"),
    ],
)
def test_what_is_about_others_or_about_something_else_is_no_command(body: bytes) -> None:
    assert pagerduty_commands(signed(body), body, SECRET, NOW, alerts_of=alerts_of) == []


@pytest.mark.parametrize(
    "headers",
    [
        {},
        signed(delivery(), SecretValue("x")),
        signed(b"x"),
        {"X-PagerDuty-Signature": "v1=é"},
        {"X-PagerDuty-Signature": ""},
    ],
)
def test_what_pagerduty_did_not_sign_is_rejected(headers: dict[str, str]) -> None:
    with pytest.raises(Rejected, match="webhook_secret") as raised:
        pagerduty_commands(headers, delivery(), SECRET, NOW, alerts_of=alerts_of)
    assert SECRET.reveal() not in str(raised.value)


@pytest.mark.parametrize("body", [b"", b"{}", b"[]", b"\xff", b'{"event":{"event_type":"incident.acknowledged"}}'])
def test_what_is_signed_and_yet_no_event_is_rejected(body: bytes) -> None:
    with pytest.raises(Rejected):
        pagerduty_commands(signed(body), body, SECRET, NOW, alerts_of=alerts_of)
