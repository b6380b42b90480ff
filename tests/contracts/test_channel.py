"""The contract of every channel: what it delivers, how each trouble ends, and that no secret is ever seen.

One body for all of them. A new channel joins by adding a `Kind` to `KINDS`: how its other side is started, and how
each fault has to end. Where the real other side does not run here it is a strict fake, and its module says so.
"""

from __future__ import annotations

import traceback
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from streammon.errors import Backpressure, StreammonError
from streammon.results import Alert
from streammon_sinks.notify.channel import Amending
from tests.sinks.builders import alert
from tests.sinks.notify import (
    alertmanagers,
    apprise_services,
    fake_opsgenie,
    fake_pagerduty,
    fake_slack,
    fake_webhook,
    mail_server,
)
from tests.sinks.notify.builders import TOLD, notification, resolved
from tests.sinks.notify.counterparts import MARKER, RETRY_AFTER_S, Counterpart, Fault, Kind

KINDS: dict[str, Kind] = {
    **alertmanagers.KINDS,
    **apprise_services.KINDS,
    **fake_opsgenie.KINDS,
    **fake_pagerduty.KINDS,
    **fake_slack.KINDS,
    **fake_webhook.KINDS,
    **mail_server.KINDS,
}


def _marks(kind: Kind) -> list[pytest.MarkDecorator]:
    return [getattr(pytest.mark, kind.server)] if kind.server else []


FAULTS = [pytest.param(name, fault, marks=_marks(kind)) for name, kind in KINDS.items() for fault in kind.verdicts]


@pytest.fixture(params=[pytest.param(name, marks=_marks(kind)) for name, kind in KINDS.items()])
async def counterpart(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Counterpart]:
    kind = KINDS[request.param]
    servers = [request.getfixturevalue(kind.server)] if kind.server else []
    async with kind.start(tmp_path, *servers) as counterpart:
        yield counterpart


# ---------------------------------------------------------------- what is delivered

HOSTILE = {
    "control characters": "\x00\x07\x1b[2J\r\n.\r\nQUIT\r\nSubject: hacked\x7f\u2028",
    "mentions": "<!channel> <@U123> <!here|x> @everyone <https://evil.example|click>",
    "markup": "<script>alert(1)</script> & &amp; *bold* `code` ${id} {{7*7}} %s",
    "100 kB": "x" * 100_000,
    "wide": "\U0001f525" * 5_000,
    "right to left": "\u202e\u0627\u0644\u062e\u0627\u062f\u0645 \u05e9\u05e8\u05ea\u202c",
    "empty": "",
    "lone surrogate": "\\ud800",
}


def hostile(text: str) -> Alert:
    """An alert that says ``text`` wherever somebody else chooses what it says."""
    return alert(
        1,
        rule=text or "r",
        labels={"service": text, text[:1000] or "label": text},
        condition=text,
        summary=text,
        resolution_steps=[text] * 50,
        contact=text,
        escalation=[text] * 3,
        runbook_url=f"https://runbooks.example.com/{text}" if text else "",
        evidence={"window": {"exemplars": [{"trace_id": text}]}, "causes": [{"what": text, "why": text}] * 20},
    )


async def test_a_firing_group_arrives_and_is_resolved(counterpart: Counterpart) -> None:
    channel = counterpart.open()
    assert await counterpart.status() == ""
    memory = await channel.deliver(notification(), {})
    assert await counterpart.status() == "firing"
    await channel.deliver(resolved(), memory)
    assert await counterpart.status() == "resolved"


async def test_the_same_notification_twice_is_one_message(counterpart: Counterpart) -> None:
    memory = await counterpart.open().deliver(notification(), {})
    assert await counterpart.open().deliver(notification(), memory) == memory
    assert await counterpart.messages() == 1
    memory = await counterpart.open().deliver(resolved(), memory)
    messages = await counterpart.messages()
    await counterpart.open().deliver(resolved(), memory)
    assert await counterpart.messages() == messages
    assert await counterpart.status() == "resolved"


async def test_a_group_whose_beginning_was_told_elsewhere_is_resolved(counterpart: Counterpart) -> None:
    await counterpart.open().deliver(resolved(), {})
    assert await counterpart.status() in ("resolved", "")


@pytest.mark.parametrize("cause", ["new", "changed", "repeat", "escalation", "test"])
async def test_every_cause_is_delivered(counterpart: Counterpart, cause: Any) -> None:
    memory = await counterpart.open().deliver(notification(), {})
    await counterpart.open().deliver(notification(id="n3", cause=cause), memory)
    assert await counterpart.status() == "firing"


async def test_a_channel_that_can_add_causes_posts_no_message_for_them(counterpart: Counterpart) -> None:
    memory = await counterpart.open().deliver(notification(msgspec.structs.replace(TOLD, evidence={})), {})
    channel = counterpart.open()
    if isinstance(channel, Amending):
        memory = await channel.amend(notification(id="n3", cause="explained"), memory)
    assert await counterpart.messages() == 1
    assert await counterpart.status() == "firing"
    await counterpart.open().deliver(resolved(), memory)
    assert await counterpart.status() == "resolved"


async def test_a_group_that_somebody_works_on_is_still_firing(counterpart: Counterpart) -> None:
    memory = await counterpart.open().deliver(notification(), {})
    taken = msgspec.structs.replace(TOLD, state="acknowledged", transition=2)
    memory = await counterpart.open().deliver(notification(taken, id="n3", cause="changed"), memory)
    assert await counterpart.status() == "firing"
    await counterpart.open().deliver(resolved(), memory)
    assert await counterpart.status() == "resolved"


@pytest.mark.parametrize("state", ["pending", "firing", "no_data"])
@pytest.mark.parametrize("severity", ["critical", "warning", "info"])
async def test_every_state_and_severity_is_delivered(counterpart: Counterpart, state: str, severity: str) -> None:
    await counterpart.open().deliver(notification(msgspec.structs.replace(TOLD, state=state, severity=severity)), {})
    assert await counterpart.status() == "firing"


async def test_a_storm_is_one_message_that_says_how_much_it_omits(counterpart: Counterpart) -> None:
    alerts = [alert(1, id=f"slow-shop-{n}", labels={"service": "shop", "host": f"web-{n}"}) for n in range(200)]
    await counterpart.open().deliver(notification(*alerts, omitted=10_000), {})
    assert await counterpart.status() == "firing"
    assert await counterpart.messages() == 1


async def test_an_alert_that_says_next_to_nothing_is_delivered(counterpart: Counterpart) -> None:
    bare = alert(1, labels={}, value=None, condition="", summary="", evidence={})
    await counterpart.open().deliver(notification(bare, group_labels={}), {})
    assert await counterpart.status() == "firing"


@pytest.mark.parametrize("what", HOSTILE)
async def test_hostile_texts_are_shown_and_not_obeyed(counterpart: Counterpart, what: str) -> None:
    told = hostile(HOSTILE[what])
    labels = {"service": HOSTILE[what]}
    memory = await counterpart.open().deliver(notification(told, group_labels=labels), {})
    assert await counterpart.status() == "firing"
    await counterpart.open().deliver(resolved(told, group_labels=labels), memory)
    assert await counterpart.status() == "resolved"


@pytest.mark.parametrize(
    "evidence",
    [{"causes": "x"}, {"causes": [1, {}, {"what": None}]}, {"window": []}, {"window": {"exemplars": [7, {}]}}],
    ids=str,
)
async def test_evidence_of_another_shape_does_not_keep_an_alert_back(
    counterpart: Counterpart, evidence: dict[str, Any]
) -> None:
    await counterpart.open().deliver(notification(msgspec.structs.replace(TOLD, evidence=evidence)), {})
    assert await counterpart.status() == "firing"


# ---------------------------------------------------------------- trouble


@pytest.mark.parametrize(("counterpart", "fault"), FAULTS, indirect=["counterpart"])
async def test_a_fault_ends_as_the_contract_says_and_shows_no_secret(
    counterpart: Counterpart,
    fault: Fault,
    request: pytest.FixtureRequest,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    expected = KINDS[request.node.callspec.params["counterpart"]].verdicts[fault]
    counterpart.misbehave(fault)
    channel = counterpart.open()
    error = await _error_of(channel.deliver(notification(), {}))
    assert isinstance(error, expected or type(None)), error
    assert isinstance(error, Backpressure) == (expected is Backpressure), error
    if isinstance(error, Backpressure) and fault is Fault.BUSY:
        assert error.retry_after_s == RETRY_AFTER_S
    seen = [*_shown(error), repr(channel), str(channel), repr(vars(channel)), caplog.text, *capfd.readouterr()]
    assert not [text for text in seen if MARKER in text]
    if error:
        assert "channel ops" in str(error)
        assert len(str(error)) < 1000
        assert "\n" not in str(error)
        assert str(error).isprintable()


@pytest.mark.parametrize(("counterpart", "fault"), FAULTS, indirect=["counterpart"])
async def test_after_a_fault_the_next_try_delivers(counterpart: Counterpart, fault: Fault) -> None:
    counterpart.misbehave(fault)
    await _error_of(counterpart.open().deliver(notification(), {}))
    counterpart.misbehave(None)
    await counterpart.open().deliver(notification(), {})
    assert await counterpart.status() == "firing"


async def _error_of(delivery: Any) -> StreammonError | None:
    try:
        await delivery
    except StreammonError as error:
        return error
    return None


def _shown(error: BaseException | None) -> list[str]:
    """All that an error tells anybody, however it is printed: that of the errors behind it, too."""
    if error is None:
        return []
    behind = [*_shown(error.__cause__), *_shown(error.__context__)]
    return [str(error), repr(error), repr(error.args), *traceback.format_exception(error), *behind]


async def test_closing_twice_is_allowed(counterpart: Counterpart) -> None:
    channel = counterpart.open()
    await channel.close()
    await channel.close()
