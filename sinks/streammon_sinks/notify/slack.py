"""Slack: a message a notification, in blocks, with the colour of the severity and buttons to acknowledge and silence.

With a bot token the end of a group *edits* its messages, so that nothing in the channel looks as if it still fired, and
causes that come to light later are edited into the last of them; ``memory`` holds their ``ts``. With a webhook's URL,
which can only post, an end is a message of its own. Everything else is a new message, because people are not told of
edits.

Slack cannot recognise a message that it has taken before. Memory says which notification was the last, so that one
that comes again after it was remembered is not posted again; one whose answer was lost is. Twice is better than never.

The messages are posted by `Http`, as those of all channels, and not by slack_sdk's client: its errors hold whole
responses, it reads bodies without bound, and what it retries by itself the notifier would retry again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any, Final

import aiohttp
import msgspec
from msgspec import Struct

from streammon.errors import Backpressure, Reason, Rejected, Retryable
from streammon.results import Alert
from streammon_sinks.notify.channel import Channel, Memory, Notification
from streammon_sinks.notify.http import HttpChannel, HttpDescription, Reply
from streammon_sinks.notify.secrets import Secret, SecretValue, scrub
from streammon_sinks.notify.told import (
    address,
    headline,
    labels_of,
    length,
    likely_causes,
    line,
    others,
    over,
    state_of,
    steps,
    title,
    trace_ids,
    when,
)

ACKNOWLEDGE: Final = "streammon_acknowledge"
SILENCE: Final = "streammon_silence"

MAX_HEADER_CHARS: Final = 150
MAX_FIELDS: Final = 10
MAX_VALUE_CHARS: Final = 2000
_MAX_EDITED: Final = 10
"""Messages of one group that are remembered: the first and the newest."""

_COLORS: Final = {
    "critical": "#d4111e",
    "warning": "#e8a317",
    "info": "#2c7be5",
    "resolved": "#2e9e44",
    "acknowledged": "#7a6ff0",
}
_BUSY: Final = {"ratelimited", "rate_limited"}
_PASSING: Final = {"internal_error", "fatal_error", "service_unavailable", "request_timeout"}
_GONE: Final = frozenset({"message_not_found", "edit_window_closed", "cant_update_message"})
_BUSY_S: Final = 5.0
"""How long to wait when Slack is asked too often and does not say for how long; it takes one message a second."""


class Slack(HttpDescription, frozen=True, tag="slack"):
    """Messages in a Slack channel: by an incoming webhook, or by an app with a bot token."""

    webhook_url: Secret | None = None
    """URL of an *incoming webhook*, which belongs to one channel. Either this, or `token` and `channel`."""
    token: Secret | None = None
    """Bot token (`xoxb-…`) of an app that may `chat:write` and is in the channel."""
    channel: str | None = None
    """The channel to post to, best by its id (`C0123456789`); with `token`."""
    signing_secret: Secret | None = None
    """Signing secret of the app whose *interactivity* request URL leads to streammon: adds the buttons "Acknowledge"
    and "Silence 1 h"."""
    api_url: str = "https://slack.com/api"
    """Where Slack's Web API is, for a proxy before it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        by_token = self.token is not None and bool(self.channel)
        if by_token == (self.webhook_url is not None) or (self.webhook_url and (self.token or self.channel)):
            raise ValueError("a Slack channel needs either `webhook_url`, or `token` and `channel`")

    def open(self, name: str, session: aiohttp.ClientSession) -> Channel:
        return SlackChannel(name, self, session)


class _Answer(Struct):
    ok: bool
    error: str = ""
    ts: str = ""
    channel: str = ""


class SlackChannel(HttpChannel[Slack]):
    """Posts the messages of one `Slack`."""

    async def deliver(self, notification: Notification, memory: Memory) -> Memory:
        if memory.get("last") == notification.id:
            return memory
        content = message(notification, buttons=self._description.signing_secret is not None)
        if self._description.webhook_url:
            url = self._http.secret("webhook_url", self._description.webhook_url)
            await self._http.post(url, msgspec.json.encode(content))
            return {"last": notification.id}
        return {"last": notification.id, **await self._say(notification, content, memory)}

    async def amend(self, notification: Notification, memory: Memory) -> Memory:
        """The last message once more, as an edit; there is none where only a webhook is known."""
        content = message(notification, buttons=self._description.signing_secret is not None)
        if told := memory.get("ts", "").split():
            await self._edit_all(memory.get("channel", ""), told[-1:], content)
        return memory

    async def _say(self, notification: Notification, content: dict[str, Any], memory: Memory) -> Memory:
        """Edit what there is of a group that is over; post what is news."""
        where, told = memory.get("channel", ""), memory.get("ts", "").split()
        if notification.status == "resolved" and await self._edit_all(where, told, content):
            return {"channel": where, "ts": " ".join(told)}
        answer = await self._call("chat.postMessage", {"channel": self._description.channel, **content})
        kept = [*told, answer.ts] if answer.channel == where else [answer.ts]
        return {"channel": answer.channel, "ts": " ".join(_first_and_newest(kept))}

    async def _edit_all(self, where: str, told: Sequence[str], content: dict[str, Any]) -> bool:
        """Whether the newest could be edited; of the others, those that are still there."""
        edited = False
        for ts in told:
            answer = await self._call("chat.update", {"channel": where, "ts": ts, **content}, but=_GONE)
            edited = answer.ok
        return edited

    async def _call(self, method: str, body: dict[str, Any], but: frozenset[str] = frozenset()) -> _Answer:
        assert self._description.token, "what is posted without a token goes to the webhook"
        token = self._http.secret("token", self._description.token)
        headers: dict[str, str | SecretValue] = {
            "Authorization": SecretValue(f"Bearer {token.reveal()}"),
            "Content-Type": "application/json; charset=utf-8",
        }
        url = f"{self._description.api_url.rstrip('/')}/{method}"
        reply = await self._http.post(url, msgspec.json.encode(body), headers, secrets=[token])
        return _judge(f"{self._http.where(url)} {method}", reply, but, token)


def _judge(where: str, reply: Reply, but: frozenset[str], token: SecretValue) -> _Answer:
    """Slack's own verdict: its errors come with a status of 200."""
    answer = reply.read(_Answer)
    if answer is None:
        raise Retryable(f"{where}: did not answer as Slack does")
    if answer.ok or answer.error in but:
        return answer
    said = f"{where}: {line(scrub(answer.error, [token]), 200)}"
    if answer.error in _BUSY:
        raise Backpressure(said, reply.retry_after_s or _BUSY_S)
    if answer.error in _PASSING:
        raise Retryable(said)
    raise Rejected(Reason.REFUSED, said)


def _first_and_newest(told: list[str]) -> list[str]:
    return told if len(told) <= _MAX_EDITED else [told[0], *told[1 - _MAX_EDITED :]]


# ---------------------------------------------------------------- the message


def message(notification: Notification, *, buttons: bool) -> dict[str, Any]:
    """Text for notifications on screens, and the blocks in an attachment, which alone has a colour."""
    state = state_of(notification)
    color = _COLORS[notification.severity if state == "firing" else state]
    blocks = list(_blocks(notification, buttons=buttons and state == "firing"))
    return {
        "text": _escaped(headline(notification, 500), 1000),
        "attachments": [{"color": color, "blocks": blocks}],
        "unfurl_links": False,
        "unfurl_media": False,
    }


def _blocks(notification: Notification, *, buttons: bool) -> Iterator[dict[str, Any]]:
    """At most eight, of at most 3000 characters each; Slack takes fifty."""
    first = notification.alerts[0]
    header = headline(notification, MAX_HEADER_CHARS)
    yield {"type": "header", "text": {"type": "plain_text", "text": header, "emoji": False}}
    condition = _escaped(line(first.condition, 1000), 1800)
    yield _section(f"*{_escaped(title(first, 500), 1000)}*", over(first), condition)
    if labels := labels_of(first, MAX_FIELDS, 500):
        yield {"type": "section", "fields": [_mrkdwn(each) for each in _fields(labels)]}
    if causes := likely_causes(first):
        yield _section("*Likely causes*", *(f"• {_escaped(cause.text, 700)}" for cause in causes))
    if told := steps(first, 10, 250):
        yield _section("*What to do*", *(f"{n}. {_escaped(step, 280)}" for n, step in enumerate(told, 1)))
    if rest := list(others(notification, 10, 200)):
        yield _section("*Also in this group*", *(f"• {_escaped(each, 250)}" for each in rest))
    if elements := list(_buttons(notification, commands=buttons)):
        yield {"type": "actions", "elements": elements}
    yield {"type": "context", "elements": [_mrkdwn(_footer(notification, first))]}


def _fields(labels: dict[str, str]) -> Iterator[str]:
    yield from (f"*{_escaped(name, 200)}*\n{_escaped(value, 1500)}" for name, value in labels.items())


def _footer(notification: Notification, first: Alert) -> str:
    """Small print: why this message, since when, whom to ask, which traces to open."""
    parts = [
        notification.cause,
        line(first.rule, 100),
        when(first.started_unix_s) or "",
        line(first.contact or "", 200),
    ]
    traces = ", ".join(trace_ids(first))
    return _escaped(" · ".join(part for part in [*parts, f"traces {traces}" if traces else ""] if part), 2900)


def _buttons(notification: Notification, *, commands: bool) -> Iterator[dict[str, Any]]:
    seen = button_value(notification.alerts) if commands else ""
    if seen:
        yield {**_button("Acknowledge", ACKNOWLEDGE), "value": seen, "style": "primary"}
        yield {**_button("Silence 1 h", SILENCE), "value": seen}
    if runbook := address(notification.alerts[0].runbook_url):
        yield {**_button("Runbook", "streammon_runbook"), "url": runbook}


def button_value(alerts: Sequence[Alert]) -> str:
    """The alerts that a button is about, as the message told them: ``[[id, transition], …]``, as many as fit."""
    seen = [msgspec.json.encode((each.id, each.transition)).decode() for each in alerts if each.state != "resolved"]
    ends = accumulate(length(each) + 1 for each in seen)
    fitting = [each for each, end in zip(seen, ends, strict=True) if end + 1 <= MAX_VALUE_CHARS]
    return f"[{','.join(fitting)}]" if fitting else ""


def _button(text: str, action: str) -> dict[str, Any]:
    return {"type": "button", "text": {"type": "plain_text", "text": text}, "action_id": action}


def _section(*lines: str) -> dict[str, Any]:
    return {"type": "section", "text": _mrkdwn("\n".join(each for each in lines if each))}


def _mrkdwn(text: str) -> dict[str, Any]:
    """Of text that is short enough: cut here, a quotation might be cut in two."""
    return {"type": "mrkdwn", "text": text, "verbatim": True}


def _escaped(text: str, limit: int) -> str:
    """The text as Slack wants it quoted, whole quotations only, at most ``limit`` long."""
    quoted = [_QUOTED.get(each, each) for each in text]
    ends = list(accumulate(map(length, quoted)))
    if not ends or ends[-1] <= limit:
        return "".join(quoted)
    return "".join(each for each, end in zip(quoted, ends, strict=True) if end < limit) + "…"


_QUOTED: Final = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
