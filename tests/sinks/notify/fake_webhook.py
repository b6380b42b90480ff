"""A receiver of our webhook: real HTTP, and it takes nothing that is not signed, or that it cannot decode."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import web

from streammon_sinks.notify.channel import Channel, Notification
from streammon_sinks.notify.secrets import Secret
from streammon_sinks.notify.webhook import Webhook, WebhookChannel
from tests.sinks.notify.counterparts import MARKER, PATIENCE_S, Fault, Kind
from tests.sinks.notify.fake_http import HTTP_VERDICTS, FakeHttp, fake_http

NOW = 1_700_000_042.0


def verified(secret: str, header: str, body: bytes, now: float) -> bool:
    """As the page on channels tells a receiver to do it."""
    t, v1 = (part.split("=", 1)[1] for part in header.split(","))
    expected = hmac.new(secret.encode(), f"{t}.".encode() + body, hashlib.sha256).hexdigest()
    return hmac.compare_digest(expected, v1) and abs(now - int(t)) < 300


class FakeWebhook:
    """Keeps what it has taken, by idempotency key."""

    def __init__(self, directory: Path) -> None:
        self.http: FakeHttp
        self.taken: dict[str, Any] = {}
        self.headers: dict[str, str] = {}
        self._directory = directory

    def description(self, **changes: Any) -> Webhook:
        plain: dict[str, Any] = {
            "url": self.secret("url", f"{self.http.address}/hooks/{MARKER}?key={MARKER}"),
            "signing_secret": self.secret("signing", f"sign-{MARKER}"),
            "token": self.secret("token", f"token-{MARKER}"),
            "headers": {"X-Key": self.secret("header", f"header-{MARKER}"), "X-Team": "ml"},
            "timeout": PATIENCE_S,
        }
        return Webhook(**(plain | changes))

    def secret(self, name: str, value: str) -> Secret:
        file = self._directory / name
        file.write_text(value + "\n")
        return Secret(file=str(file))

    def open(self, **changes: Any) -> Channel:
        return WebhookChannel("ops", self.description(**changes), self.http.session, clock=lambda: NOW)

    def misbehave(self, fault: Fault | None) -> None:
        self.http.fault = fault

    async def messages(self) -> int:
        return len(self.taken)

    async def status(self) -> str:
        return list(self.taken.values())[-1].status if self.taken else ""

    def answer(self, request: web.Request, body: bytes) -> web.Response:
        self.headers = dict(request.headers)
        if request.headers.get("Authorization") != f"Bearer token-{MARKER}":
            return web.Response(status=401)
        if not verified(f"sign-{MARKER}", request.headers.get("Streammon-Signature", ""), body, NOW):
            return web.Response(status=403)
        self.taken[request.headers["Idempotency-Key"]] = msgspec.json.decode(body, type=Notification)
        return web.Response(status=204)


@asynccontextmanager
async def webhook(directory: Path) -> AsyncIterator[FakeWebhook]:
    fake = FakeWebhook(directory)
    async with fake_http(fake.answer, directory) as fake.http:
        yield fake


KINDS = {"webhook": Kind(webhook, {**HTTP_VERDICTS, Fault.GARBLED: None, Fault.ENDLESS: None})}
"""Its answer is its status; what it says beyond that is not read as anything."""
