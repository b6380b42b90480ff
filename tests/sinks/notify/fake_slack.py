"""A strict FAKE of Slack: an incoming webhook, and chat.postMessage and chat.update of the Web API.

Blocks are checked by slack_sdk's own models, and by the limits of Slack's pages that those do not know; control
sequences (``<!channel>``, links) in them are refused, because nothing that we send is meant to have any.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import web
from slack_sdk.errors import SlackObjectFormationError
from slack_sdk.models.blocks import Block

from streammon.errors import Retryable
from streammon_sinks.notify.channel import Channel
from streammon_sinks.notify.secrets import Secret
from streammon_sinks.notify.slack import Slack, SlackChannel
from tests.sinks.notify.counterparts import MARKER, PATIENCE_S, Fault, Kind
from tests.sinks.notify.fake_http import HTTP_VERDICTS, FakeHttp, fake_http

TOKEN, PATH = f"xoxb-{MARKER}", f"/services/T0123456789/B0123456789/{MARKER}"
_RESOLVED = "#2e9e44"
_FIELDS = {"channel", "ts", "text", "attachments", "unfurl_links", "unfurl_media"}


class FakeSlack:
    """One channel, C1, and its messages by ``ts``. ``errors`` are given out first, one a call."""

    def __init__(self, directory: Path, by: str) -> None:
        self.http: FakeHttp
        self.shown: dict[str, Any] = {}
        self.posted = 0
        self.calls: list[str] = []
        self.errors: list[str] = []
        self._by = by
        for name, value in (("token", TOKEN), ("signing", f"sign-{MARKER}")):
            (directory / name).write_text(value)
        self._directory = directory

    def open(self, *, buttons: bool = True) -> Channel:
        return SlackChannel("ops", self.description(buttons=buttons), self.http.session)

    def description(self, *, buttons: bool = True) -> Slack:
        (self._directory / "url").write_text(self.http.address + PATH)
        signing = self._secret("signing") if buttons else None
        if self._by == "webhook":
            return Slack(webhook_url=self._secret("url"), signing_secret=signing, timeout=PATIENCE_S)
        return Slack(
            token=self._secret("token"),
            channel="C1",
            signing_secret=signing,
            api_url=f"{self.http.address}/api",
            timeout=PATIENCE_S,
        )

    def _secret(self, name: str) -> Secret:
        return Secret(file=str(self._directory / name))

    def misbehave(self, fault: Fault | None) -> None:
        self.http.fault = fault

    async def messages(self) -> int:
        return self.posted

    async def status(self) -> str:
        """Any message that looks as if it still fired counts, where messages can be edited."""
        colors = [message["attachments"][0]["color"] for message in self.shown.values()]
        seen = colors if self._by == "token" else colors[-1:]
        return "" if not seen else "resolved" if set(seen) == {_RESOLVED} else "firing"

    def answer(self, request: web.Request, body: bytes) -> web.Response:
        if self._by == "webhook":
            return self._webhook(request, body)
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            return _json(ok=False, error="invalid_auth")
        if not request.headers["Content-Type"].startswith("application/json; charset=utf-8"):
            return _json(ok=False, error="invalid_post_type", warning="missing_charset")
        return self._api(request.path, msgspec.json.decode(body))

    def _webhook(self, request: web.Request, body: bytes) -> web.Response:
        if request.path != PATH:
            return web.Response(status=404, text="no_team")
        if problem := problem_of(content := msgspec.json.decode(body)):
            return web.Response(status=400, text=f"invalid_attachments: {problem}")
        self._post(content)
        return web.Response(text="ok")

    def _api(self, path: str, content: dict[str, Any]) -> web.Response:
        self.calls.append(path.rpartition("/")[2])
        if self.errors:
            return _json(ok=False, error=self.errors.pop(0))
        if problem := problem_of(content):
            return _json(ok=False, error="invalid_attachments", problem=problem)
        if content.get("channel") != "C1":
            return _json(ok=False, error="channel_not_found")
        if path == "/api/chat.update":
            if content["ts"] not in self.shown:
                return _json(ok=False, error="message_not_found")
            self.shown[content["ts"]] = content
            return _json(ok=True, channel="C1", ts=content["ts"])
        return _json(ok=True, channel="C1", ts=self._post(content))

    def _post(self, content: dict[str, Any]) -> str:
        self.posted += 1
        ts = f"1700000000.{self.posted:06}"
        self.shown[ts] = content
        return ts


def problem_of(content: dict[str, Any]) -> str:
    """What Slack would not take of a message; empty if it takes it."""
    if unknown := set(content) - _FIELDS:
        return f"unknown {unknown}"
    if not 0 < len(content["text"]) <= 40_000:
        return "no_text"
    (attachment,) = content["attachments"]
    blocks = attachment["blocks"]
    if not re.fullmatch("#[0-9a-f]{6}", attachment["color"]) or not 0 < len(blocks) <= 50:
        return "color, or number of blocks"
    try:
        known = [each.to_dict() for each in Block.parse_all(blocks)]
    except SlackObjectFormationError as error:
        return str(error)
    if [each["type"] for each in known] != [each["type"] for each in blocks]:
        return "a block of no known type"
    return next((problem for text in _texts(content) if (problem := _problem_of_text(text))), "")


def _problem_of_text(text: dict[str, Any]) -> str:
    limit = text["limit"]
    if not 0 < len(text["text"].encode("utf-16-le")) // 2 <= limit:
        return f"text of 1 to {limit}: {text['text'][:80]!r}"
    if text.get("type") == "mrkdwn" and re.search(r"[<>]|&(?!amp;|lt;|gt;)", text["text"]):
        return f"not escaped: {text['text'][:200]!r}"
    return "" if all(each.isprintable() or each in "\n\u200d" for each in text["text"]) else "control characters"


def _texts(content: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield {"type": "mrkdwn", "text": content["text"], "limit": 4000}
    for block in content["attachments"][0]["blocks"]:
        limit = 150 if block["type"] == "header" else 3000
        yield from ({**block["text"], "limit": limit} for _ in [0] if "text" in block)
        yield from ({**field, "limit": 2000} for field in block.get("fields", []))
        for element in block.get("elements", []):
            button = element["type"] == "button"
            yield {**element["text"], "limit": 75} if button else {**element, "limit": 3000}
            yield from ({"text": element[n], "limit": m} for n, m in (("value", 2000), ("url", 3000)) if n in element)
        assert len(block.get("fields", [])) <= 10
        assert len(block.get("elements", [])) <= (10 if block["type"] == "context" else 25)


def _json(**content: Any) -> web.Response:
    return web.Response(body=msgspec.json.encode(content), content_type="application/json")


@asynccontextmanager
async def slack(directory: Path, by: str) -> AsyncIterator[FakeSlack]:
    fake = FakeSlack(directory, by)
    async with fake_http(fake.answer, directory) as fake.http:
        yield fake


def kind(by: str) -> Kind:
    """A webhook's answer is its status; that of the Web API has to be read."""
    unread = None if by == "webhook" else Retryable
    return Kind(lambda directory: slack(directory, by), {**HTTP_VERDICTS, Fault.GARBLED: unread, Fault.ENDLESS: unread})


KINDS = {"slack webhook": kind("webhook"), "slack token": kind("token")}
