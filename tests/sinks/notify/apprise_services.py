"""Apprise's own plugins, which speak HTTP to a service of ours: one that takes what they are documented to send."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import web
from msgspec import Struct

from streammon.errors import Rejected, Retryable
from streammon_sinks.notify.apprise import MAX_BODY_CHARS, MAX_TITLE_CHARS, Apprise, AppriseChannel
from streammon_sinks.notify.secrets import Secret
from tests.sinks.notify.counterparts import MARKER, Fault, Kind
from tests.sinks.notify.fake_http import HTTP_VERDICTS, FakeHttp, fake_http

_ENDLESS = (Fault.SILENT, Fault.SLOW, Fault.ENDLESS)
"""Faults that only the time limit ends; the others are told by Apprise, however slowly its process starts."""


class Taken(Struct, frozen=True, forbid_unknown_fields=True):
    """What the plugin for ``json://`` sends, version 1.0."""

    version: str
    title: str
    message: str
    attachments: list[Any]
    type: str


class JsonService:
    """A service that Apprise reaches with ``json://``; nobody gets in without the password, path and header."""

    def __init__(self, directory: Path) -> None:
        self.http: FakeHttp
        self.taken: list[Taken] = []
        self._directory = directory

    def url(self) -> str:
        scheme, _, host = self.http.address.partition("://")
        secrets = f"user:pass-{MARKER}@{host}/hooks/path-{MARKER}?+X-Key=key-{MARKER}"
        return f"json{'s' * (scheme == 'https')}://{secrets}"

    def description(self, url: str = "", **changes: Any) -> Apprise:
        file = self._directory / "url"
        file.write_text(url or self.url())
        timeout = 1.5 if self.http.fault in _ENDLESS else 30.0
        return Apprise(**{"url": Secret(file=str(file)), "timeout": timeout, **changes})

    def open(self) -> AppriseChannel:
        return AppriseChannel("ops", self.description())

    def misbehave(self, fault: Fault | None) -> None:
        self.http.fault = fault

    async def messages(self) -> int:
        return len(self.taken)

    async def status(self) -> str:
        if not self.taken:
            return ""
        return "resolved" if self.taken[-1].type == "success" else "firing"

    def answer(self, request: web.Request, body: bytes) -> web.Response:
        right = request.headers.get("X-Key") == f"key-{MARKER}" and "Authorization" in request.headers
        if not right or request.path != f"/hooks/path-{MARKER}":
            return web.Response(status=403)
        taken = msgspec.json.decode(body, type=Taken)
        fits = len(taken.title) <= MAX_TITLE_CHARS and len(taken.message) <= MAX_BODY_CHARS
        if taken.version != "1.0" or not taken.title or not fits:
            return web.Response(status=422)
        self.taken.append(taken)
        return web.Response()


@asynccontextmanager
async def json_service(directory: Path) -> AsyncIterator[JsonService]:
    service = JsonService(directory)
    async with fake_http(service.answer, directory) as service.http:
        yield service


VERDICTS = {
    **HTTP_VERDICTS,
    Fault.BUSY: Retryable,  # it does not tell how long to wait
    Fault.REFUSING: Rejected,
    Fault.GARBLED: None,  # the status is its answer
    Fault.ENDLESS: Retryable,
}
KINDS = {"apprise": Kind(json_service, VERDICTS)}
