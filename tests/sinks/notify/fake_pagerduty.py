"""A strict FAKE of PagerDuty's Events API v2, after its OpenAPI document and its stated limits.

It keeps incidents by ``dedup_key``, drops what it does not know, and answers 400 for what its schema does not allow.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from aiohttp import web
from msgspec import Meta, Struct

from streammon.errors import Retryable
from streammon_sinks.notify.channel import Channel
from streammon_sinks.notify.pagerduty import PagerDuty, PagerDutyChannel
from streammon_sinks.notify.secrets import Secret
from tests.sinks.notify.counterparts import MARKER, PATIENCE_S, Fault, Kind
from tests.sinks.notify.fake_http import HTTP_VERDICTS, FakeHttp, fake_http

KEY = f"key-{MARKER}"
_ADDRESS = re.compile(r"https?://[\x21-\x7e]+")


class Payload(Struct, forbid_unknown_fields=True):
    summary: Annotated[str, Meta(min_length=1, max_length=1024)]
    source: Annotated[str, Meta(min_length=1)]
    severity: Literal["critical", "warning", "error", "info"]
    timestamp: datetime | None = None
    component: str | None = None
    group: str | None = None
    class_: str | None = msgspec.field(default=None, name="class")
    custom_details: dict[str, Any] | None = None


class Link(Struct, forbid_unknown_fields=True):
    href: str
    text: str | None = None


class Event(Struct, forbid_unknown_fields=True):
    routing_key: str
    event_action: Literal["trigger", "acknowledge", "resolve"]
    dedup_key: Annotated[str, Meta(min_length=1, max_length=255)] | None = None
    payload: Payload | None = None
    client: str | None = None
    client_url: str | None = None
    links: list[Link] = []
    images: list[dict[str, str]] = []

    def __post_init__(self) -> None:
        if self.event_action == "trigger" and self.payload is None:
            raise ValueError("'payload' is missing or blank")
        if self.event_action != "trigger" and self.dedup_key is None:
            raise ValueError("'dedup_key' is missing or blank")
        if any(not _ADDRESS.fullmatch(link.href) for link in self.links):
            raise ValueError("link 'href' is invalid")


class FakePagerDuty:
    """Incidents of one integration."""

    def __init__(self, directory: Path) -> None:
        self.http: FakeHttp
        self.incidents: dict[str, str] = {}
        self.opened = 0
        self.bodies: list[dict[str, Any]] = []
        self._file = directory / "routing_key"
        self._file.write_text(KEY)

    def open(self) -> Channel:
        description = PagerDuty(routing_key=Secret(file=str(self._file)), url=self.http.address, timeout=PATIENCE_S)
        return PagerDutyChannel("ops", description, self.http.session)

    def misbehave(self, fault: Fault | None) -> None:
        self.http.fault = fault

    async def messages(self) -> int:
        return self.opened

    async def status(self) -> str:
        last = list(self.incidents.values())[-1:]
        return "" if not last else "resolved" if last == ["resolve"] else "firing"

    def answer(self, request: web.Request, body: bytes) -> web.Response:
        if request.path != "/v2/enqueue" or len(body) > 512_000:
            return web.Response(status=404 if len(body) <= 512_000 else 413)
        try:
            event = msgspec.json.decode(body, type=Event)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return _answer(400, status="invalid event", message="Event object is invalid", errors=[str(error)])
        if event.routing_key != KEY:
            return _answer(400, status="invalid event", message="Invalid routing key")
        self.bodies.append(msgspec.json.decode(body))
        key = event.dedup_key or f"made-up-{len(self.bodies)}"
        self._keep(key, event.event_action)
        return _answer(202, status="success", message="Event processed", dedup_key=key)

    def _keep(self, key: str, action: str) -> None:
        is_open = self.incidents.get(key, "resolve") != "resolve"
        if action == "trigger" and not is_open:
            self.opened += 1
            self.incidents[key] = action
        elif action != "trigger" and is_open:
            self.incidents[key] = action


def _answer(code: int, **content: Any) -> web.Response:
    return web.Response(status=code, body=msgspec.json.encode(content), content_type="application/json")


@asynccontextmanager
async def pagerduty(directory: Path) -> AsyncIterator[FakePagerDuty]:
    fake = FakePagerDuty(directory)
    async with fake_http(fake.answer, directory) as fake.http:
        yield fake


KINDS = {"pagerduty": Kind(pagerduty, {**HTTP_VERDICTS, Fault.GARBLED: Retryable, Fault.ENDLESS: Retryable})}
