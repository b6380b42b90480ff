"""Real Alertmanagers as the other side of a channel; faults come from a fake in their place."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aiohttp import ClientSession, web

from streammon.servers import Server
from streammon_sinks.notify.alertmanager import Alertmanager, AlertmanagerChannel
from streammon_sinks.notify.secrets import Secret
from tests.sinks.notify.counterparts import MARKER, PATIENCE_S, Fault, Kind
from tests.sinks.notify.fake_http import HTTP_VERDICTS, FakeHttp, fake_http


async def active(session: ClientSession, url: str, **labels: str) -> list[dict[str, Any]]:
    """The alerts with these labels that have not ended, as Alertmanager shows them."""
    filters = [("filter", f'{name}="{value}"') for name, value in labels.items()]
    async with session.get(f"{url}/api/v2/alerts", params=filters, raise_for_status=True) as reply:
        alerts: list[dict[str, Any]] = await reply.json()
        return alerts


class OneOfMany:
    """Its own alerts among those that a shared Alertmanager holds: they have a label that no other test uses."""

    def __init__(self, directory: Path, server: Server, fake: FakeHttp) -> None:
        self._server, self._fake = server, fake
        self._run = uuid.uuid4().hex
        self._token = directory / "token"
        self._token.write_text(MARKER)
        self._channels: list[AlertmanagerChannel] = []

    def open(self) -> AlertmanagerChannel:
        description = Alertmanager(
            urls=[self._fake.address if self._fake.fault else self._server.address],
            labels={"run": self._run},
            token=Secret(file=str(self._token)),
            timeout=PATIENCE_S if self._fake.fault else 10.0,
        )
        self._channels.append(AlertmanagerChannel("ops", description, self._fake.session))
        return self._channels[-1]

    def misbehave(self, fault: Fault | None) -> None:
        self._fake.fault = fault

    async def messages(self) -> int:
        """It makes one message of one group; here it groups by the rule."""
        return len({alert["labels"]["alertname"] for alert in await self._active()})

    async def status(self) -> str:
        if await self._active():
            return "firing"
        return "resolved" if any(channel._kept for channel in self._channels) else ""

    async def close(self) -> None:
        for channel in self._channels:
            await channel.close()

    async def _active(self) -> list[dict[str, Any]]:
        return await active(self._fake.session, self._server.address, run=self._run)


@asynccontextmanager
async def one_of_many(directory: Path, server: Server) -> AsyncIterator[OneOfMany]:
    async with fake_http(lambda _request, _body: web.Response(), directory) as fake:
        counterpart = OneOfMany(directory, server, fake)
        try:
            yield counterpart
        finally:
            await counterpart.close()


VERDICTS = {**HTTP_VERDICTS, Fault.GARBLED: None, Fault.ENDLESS: None}
"""Its answer is its status; what it says beyond that is not read as anything."""
KINDS = {"alertmanager": Kind(one_of_many, VERDICTS, server="alertmanager")}
