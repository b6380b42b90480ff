"""Slack: what the messages say, what becomes of them, how Slack's own errors end, and what buttons do."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import msgspec
import pytest
from slack_sdk.signature import SignatureVerifier

from streammon.commands import Acknowledge, Matcher, Silence
from streammon.errors import Backpressure, Rejected, Retryable, StreammonError
from streammon_sinks.notify.channel import Amending
from streammon_sinks.notify.secrets import Secret, SecretValue
from streammon_sinks.notify.slack import Slack, button_value, message
from streammon_sinks.notify.slack_inbound import slack_commands
from tests.sinks.builders import alert
from tests.sinks.notify.builders import TOLD, changed, notification, resolved
from tests.sinks.notify.fake_slack import FakeSlack, problem_of, slack

NOW = 1_700_000_100.0
SECRET = SecretValue("8f742231b10e8888abcd99yyyzzz85a5")


@pytest.fixture
async def fake(tmp_path: Path) -> AsyncIterator[FakeSlack]:
    async with slack(tmp_path, "token") as fake:
        yield fake


def text_of(content: dict[str, Any]) -> str:
    return msgspec.json.encode(content["attachments"][0]["blocks"]).decode()


def buttons_of(content: dict[str, Any]) -> dict[str, dict[str, Any]]:
    blocks = content["attachments"][0]["blocks"]
    return {each["action_id"]: each for block in blocks if block["type"] == "actions" for each in block["elements"]}


# ---------------------------------------------------------------- what it says


def test_a_message_tells_what_a_person_needs() -> None:
    content = message(notification(changed(summary="shop is slow & <late>")), buttons=True)
    told = text_of(content)
    for part in (
        *("CRITICAL: shop is slow", "shop is slow &amp; &lt;late&gt;", "p99 &gt; 1 s for 10 s", "ranker", "#ml-oncall"),
        *("deploy of ranker 3: 20 s before the onset", "1. Look at the traces", "2. Roll back"),
        *("4bf92f3577b34da6a3ce929d0e0e4736", "https://runbooks.example.com/slow", "2023-11-14T22:13:20+00:00"),
    ):
        assert part in told
    assert content["attachments"][0]["color"] == "#d4111e"


def test_what_is_over_says_so_since_when_and_for_how_long_it_was_not() -> None:
    content = message(resolved(TOLD, changed(id="other")), buttons=True)
    told = text_of(content)
    assert content["text"] == "RESOLVED after 1 min: shop is slow (+ 1 more)"
    assert "Over since 2023-11-14T22:14:20+00:00, after 1 min" in told
    assert "• resolved after 1 min: shop is slow" in told
    assert "Roll back" not in told, "nobody has to do anything"


def test_only_what_somebody_has_to_do_has_buttons() -> None:
    assert set(buttons_of(message(notification(), buttons=True))) == {
        *("streammon_acknowledge", "streammon_silence", "streammon_runbook")
    }
    taken = notification(changed(state="acknowledged"))
    for quiet in (
        message(notification(), buttons=False),
        message(resolved(), buttons=True),
        message(taken, buttons=True),
    ):
        assert set(buttons_of(quiet)) == {"streammon_runbook"}


@pytest.mark.parametrize(
    "url", ["javascript:alert(1)", "not a url", "https://", "https://a/" + "x" * 3000, "https://a/|b", None]
)
def test_a_runbook_that_cannot_be_opened_is_no_button(url: str | None) -> None:
    assert "streammon_runbook" not in buttons_of(message(notification(changed(runbook_url=url)), buttons=True))


def test_every_text_at_its_longest_is_within_slacks_limits() -> None:
    for character in "&<x\U0001f525é":
        text = character * 3000
        worst = changed(
            rule=text,
            labels={f"{n}{text}": text for n in range(100)},
            condition=text,
            summary=text,
            contact=text,
            resolution_steps=[text] * 100,
            evidence={
                "causes": [{"what": text, "why": text}] * 100,
                "window": {"exemplars": [{"trace_id": text}] * 100},
            },
        )
        storm = notification(*[worst] * 100, omitted=10_000)
        assert problem_of({"channel": "C1", **message(storm, buttons=True)}) == ""


# ---------------------------------------------------------------- what becomes of it


async def test_the_end_edits_all_messages_of_the_group(fake: FakeSlack) -> None:
    memory = await fake.open().deliver(notification(), {})
    memory = await fake.open().deliver(notification(id="n2", cause="repeat"), memory)
    assert await fake.messages() == 2
    await fake.open().deliver(resolved(id="n3"), memory)
    assert fake.calls == ["chat.postMessage"] * 2 + ["chat.update"] * 2
    assert await fake.status() == "resolved"


@pytest.mark.parametrize("deleted", [False, True])
async def test_causes_that_come_later_are_edited_into_the_last_message_and_post_none(
    fake: FakeSlack, deleted: bool
) -> None:
    unknown = changed(evidence={})
    memory = await fake.open().deliver(notification(unknown), {})
    memory = await fake.open().deliver(notification(unknown, id="n2", cause="repeat"), memory)
    if deleted:
        fake.shown.popitem()
    channel = fake.open()
    assert isinstance(channel, Amending)
    assert await channel.amend(notification(id="n3", cause="explained"), memory) == memory
    assert fake.calls == ["chat.postMessage"] * 2 + ["chat.update"]
    told = [text_of(each) for each in fake.shown.values()]
    assert ["deploy of ranker 3" in each for each in told] == [False, True][: len(told)]


async def test_a_webhook_of_slack_can_add_nothing(tmp_path: Path) -> None:
    async with slack(tmp_path, "webhook") as fake:
        memory = await fake.open().deliver(notification(), {})
        channel = fake.open()
        assert isinstance(channel, Amending)
        await channel.amend(notification(id="n2", cause="explained"), memory)
        assert fake.posted == 1


async def test_an_end_whose_messages_were_deleted_is_posted(fake: FakeSlack) -> None:
    memory = await fake.open().deliver(notification(), {})
    fake.shown.clear()
    await fake.open().deliver(resolved(), memory)
    assert await fake.messages() == 2
    assert await fake.status() == "resolved"


async def test_a_group_that_is_repeated_for_ever_is_remembered_within_bounds(fake: FakeSlack) -> None:
    memory = await fake.open().deliver(notification(), {})
    for number in range(30):
        memory = await fake.open().deliver(notification(id=f"again-{number}", cause="repeat"), memory)
    told = memory["ts"].split()
    assert told == list(fake.shown)[:1] + list(fake.shown)[-9:]


@pytest.mark.parametrize(
    ("said", "verdict"),
    [
        ("ratelimited", Backpressure),
        ("rate_limited", Backpressure),
        ("internal_error", Retryable),
        ("fatal_error", Retryable),
        ("service_unavailable", Retryable),
        ("invalid_auth", Rejected),
        ("channel_not_found", Rejected),
        ("message_not_found", Rejected),
        ("something_new", Rejected),
    ],
)
async def test_errors_that_come_as_a_200_are_told_apart(
    fake: FakeSlack, said: str, verdict: type[StreammonError]
) -> None:
    fake.errors = [said]
    with pytest.raises(StreammonError, match=f"channel ops: 127.0.0.1 chat.postMessage: {said}") as raised:
        await fake.open().deliver(notification(), {})
    assert type(raised.value) is verdict


async def test_an_end_that_failed_half_way_is_whole_after_the_next_try(fake: FakeSlack) -> None:
    memory = await fake.open().deliver(notification(), {})
    memory = await fake.open().deliver(notification(id="n2", cause="repeat"), memory)
    fake.errors = ["", "internal_error"]
    fake.errors[0] = "message_not_found"  # the first edit finds nothing, the second fails
    with pytest.raises(Retryable):
        await fake.open().deliver(resolved(id="n3"), memory)
    await fake.open().deliver(resolved(id="n3"), memory)
    assert await fake.status() == "resolved"
    assert await fake.messages() == 2


A, B = Secret(env="A"), Secret(env="B")


@pytest.mark.parametrize(
    "given", [{}, {"token": A}, {"channel": "C1"}, {"webhook_url": A, "token": B}, {"webhook_url": A, "channel": "C1"}]
)
def test_a_slack_channel_is_a_webhook_or_a_token_with_a_channel(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="either `webhook_url`, or `token` and `channel`"):
        Slack(**given)


# ---------------------------------------------------------------- what people press


def press(action: str, value: str, **changes: Any) -> bytes:
    payload = {
        "type": "block_actions",
        "user": {"id": "U1", "username": "ada", "team_id": "T1"},
        "actions": [{"action_id": action, "block_id": "b", "value": value, "type": "button", "action_ts": "1.2"}],
        "container": {"type": "message_attachment"},
    }
    return urlencode({"payload": msgspec.json.encode(payload | changes).decode()}).encode()


def signed(body: bytes, at: float = NOW, secret: SecretValue = SECRET) -> dict[str, str]:
    signature = SignatureVerifier(secret.reveal()).generate_signature(timestamp=str(int(at)), body=body)
    return {"X-Slack-Request-Timestamp": str(int(at)), "X-Slack-Signature": signature or ""}


def test_acknowledge_names_what_the_message_told() -> None:
    buttons = buttons_of(message(notification(TOLD, alert(4, id="other"), changed(state="resolved")), buttons=True))
    body = press("streammon_acknowledge", buttons["streammon_acknowledge"]["value"])
    first, second = slack_commands(signed(body), body, SECRET, NOW)
    assert isinstance(first, Acknowledge)
    assert isinstance(second, Acknowledge)
    assert [(each.alert_id, each.transition) for each in (first, second)] == [(TOLD.id, 1), ("other", 4)]
    assert (first.by, first.via, first.time_unix_s) == ("ada (U1)", "slack", NOW)
    assert slack_commands(signed(body, NOW + 60), body, SECRET, NOW)[0].id == first.id != second.id


@pytest.mark.parametrize("ids", [["a.1"], ["a.1", "b|2"]])
def test_silence_covers_these_alerts_for_an_hour_and_no_others(ids: list[str]) -> None:
    body = press("streammon_silence", button_value([alert(1, id=each) for each in ids]))
    (silence,) = slack_commands(signed(body), body, SECRET, NOW)
    assert isinstance(silence, Silence)
    assert (silence.starts_unix_s, silence.ends_unix_s) == (NOW, NOW + 3600)
    (matcher,) = silence.matchers
    assert isinstance(matcher, Matcher)
    covered = [each for each in ["a.1", "b|2", "b", "ax1", ""] if matcher.matches({"alert_id": each})]
    assert covered == ids


def test_a_storm_fits_into_a_button() -> None:
    value = button_value([alert(1, id=f"slow-{n:030}") for n in range(500)])
    assert 1900 < len(value) <= 2000
    assert msgspec.json.decode(value)[0] == [f"slow-{0:030}", 1]


BODY = press("streammon_acknowledge", '[["a",1]]')


@pytest.mark.parametrize(
    "headers",
    [
        {},
        signed(BODY, secret=SecretValue("another")),
        signed(BODY + b"x"),
        signed(BODY, NOW - 301),
        signed(BODY, NOW + 301),
        {**signed(BODY), "X-Slack-Request-Timestamp": "soon"},
        {**signed(BODY), "X-Slack-Signature": "v0=é"},
    ],
)
def test_what_slack_did_not_sign_just_now_is_rejected(headers: dict[str, str]) -> None:
    with pytest.raises(Rejected, match="signing_secret") as raised:
        slack_commands(headers, BODY, SECRET, NOW)
    assert SECRET.reveal() not in str(raised.value)


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"payload=", b"payload=%7B%7D", b"other=1", b"payload={}&payload={}", b"\xff", b"payload=[[[["),
        *(press("streammon_silence", value) for value in ("", "[]", "x", '[["a"]]', "{}")),
        press("x", "y", user=None),
    ],
)
def test_what_is_signed_and_yet_no_press_of_ours_is_rejected(body: bytes) -> None:
    with pytest.raises(Rejected):
        slack_commands(signed(body) if body != b"\xff" else {}, body, SECRET, NOW)


def test_other_buttons_and_events_are_no_commands() -> None:
    for body in (press("streammon_runbook", ""), press("of_somebody_else", "x"), press("x", "y", actions=[])):
        assert slack_commands(signed(body), body, SECRET, NOW) == []
