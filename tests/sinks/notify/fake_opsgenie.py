"""A strict FAKE of Opsgenie's Alert API, after the fields and limits of its documentation.

Where the real one cuts a text that is too long, this one refuses it: what is cut is ours to choose.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import unquote

import msgspec
from aiohttp import web
from msgspec import Meta, Struct

from streammon.errors import Retryable
from streammon_sinks.notify.channel import Channel
from streammon_sinks.notify.opsgenie import Opsgenie, OpsgenieChannel
from streammon_sinks.notify.secrets import Secret
from tests.sinks.notify.counterparts import MARKER, PATIENCE_S, Fault, Kind
from tests.sinks.notify.fake_http import HTTP_VERDICTS, FakeHttp, fake_http

KEY = f"key-{MARKER}"
Tag = Annotated[str, Meta(min_length=1, max_length=50)]


class Team(Struct, forbid_unknown_fields=True):
    type: Literal["team", "user", "escalation", "schedule"]
    name: str


class Create(Struct, forbid_unknown_fields=True):
    message: Annotated[str, Meta(min_length=1)]
    alias: Annotated[str, Meta(max_length=512)] | None = None
    description: str | None = None
    responders: Annotated[list[Team], Meta(max_length=50)] = []
    tags: Annotated[list[Tag], Meta(max_length=20)] = []
    details: dict[str, str] = {}
    entity: Annotated[str, Meta(max_length=512)] | None = None
    source: Annotated[str, Meta(max_length=100)] | None = None
    priority: Literal["P1", "P2", "P3", "P4", "P5"] = "P3"

    def __post_init__(self) -> None:
        details = sum(units(name) + units(value) for name, value in self.details.items())
        for name, count, limit in (
            ("message", units(self.message), 130),
            ("description", units(self.description or ""), 15_000),
            ("details", details, 8_000),
        ):
            if count > limit:
                raise ValueError(f"{name} is longer than {limit}")


class Act(Struct, forbid_unknown_fields=True):
    user: Annotated[str, Meta(max_length=100)] | None = None
    source: Annotated[str, Meta(max_length=100)] | None = None
    note: Annotated[str, Meta(max_length=25_000)] | None = None


def units(text: str) -> int:
    return len(text.encode("utf-16-le")) // 2


class FakeOpsgenie:
    """Alerts of one integration, by alias."""

    def __init__(self, directory: Path) -> None:
        self.http: FakeHttp
        self.alerts: dict[str, str] = {}
        self.created = 0
        self.bodies: list[Any] = []
        self._file = directory / "api_key"
        self._file.write_text(KEY)

    def open(self, **changes: Any) -> Channel:
        key = Secret(file=str(self._file))
        description = Opsgenie(api_key=key, url=self.http.address, timeout=PATIENCE_S, **changes)
        return OpsgenieChannel("ops", description, self.http.session)

    def misbehave(self, fault: Fault | None) -> None:
        self.http.fault = fault

    async def messages(self) -> int:
        return self.created

    async def status(self) -> str:
        last = list(self.alerts.values())[-1:]
        return "" if not last else "resolved" if last == ["close"] else "firing"

    def answer(self, request: web.Request, body: bytes) -> web.Response:
        if request.headers.get("Authorization") != f"GenieKey {KEY}":
            return _answer(403, message="You are not authorized for this request")
        try:
            self._keep(request, body)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            return _answer(422, message="Request body is not processable", errors={"body": str(error)})
        return _answer(202, result="Request will be processed", took=0.1, requestId="43a29c5c")

    def _keep(self, request: web.Request, body: bytes) -> None:
        match request.raw_path.partition("?")[0].split("/")[1:]:
            case ["v2", "alerts"]:
                create = msgspec.json.decode(body, type=Create)
                self._create(create.alias or "")
            case ["v2", "alerts", alias, ("acknowledge" | "close") as action]:
                msgspec.json.decode(body, type=Act)
                if request.query["identifierType"] == "alias" and self.alerts.get(unquote(alias), "close") != "close":
                    self.alerts[unquote(alias)] = action
            case other:
                raise msgspec.DecodeError(f"no such path: {other}")
        self.bodies.append(msgspec.json.decode(body))

    def _create(self, alias: str) -> None:
        if self.alerts.get(alias, "close") == "close":
            self.created += 1
            self.alerts[alias] = "create"


def _answer(status: int, **content: Any) -> web.Response:
    return web.Response(status=status, body=msgspec.json.encode(content), content_type="application/json")


@asynccontextmanager
async def opsgenie(directory: Path) -> AsyncIterator[FakeOpsgenie]:
    fake = FakeOpsgenie(directory)
    async with fake_http(fake.answer, directory) as fake.http:
        yield fake


KINDS = {"opsgenie": Kind(opsgenie, {**HTTP_VERDICTS, Fault.GARBLED: Retryable, Fault.ENDLESS: Retryable})}
