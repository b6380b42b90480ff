"""Where an agent sends: a broker that may not answer yet, or a gateway on another machine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from streammon.broker import Broker, Outgoing
from streammon.errors import Retryable
from streammon.topics import INPUT_TOPICS
from streammon_agents.packing import judge

if TYPE_CHECKING:
    import aiohttp  # 6 MB, and most agents do not send by HTTP

PATH = "/v1/events"
COMPRESSED_BYTES = 1024
"""Larger bodies are compressed."""


class Awaited:
    """A broker that somebody else is still connecting to. Until it is there, appends wait ``patience_s``, and fail."""

    def __init__(self, patience_s: float) -> None:
        self._patience_s = patience_s
        self._broker: asyncio.Future[Broker] = asyncio.get_running_loop().create_future()

    @property
    def broker(self) -> Broker | None:
        return self._broker.result() if self._broker.done() and not self._broker.exception() else None

    def is_there(self, broker: Broker) -> None:
        self._broker.set_result(broker)

    def never_will_be(self, error: Exception) -> None:
        """From now on appends raise this."""
        self._broker.set_exception(error)
        self._broker.exception()  # whether anybody ever appends or not

    async def append(self, records: Sequence[Outgoing]) -> list[int]:
        try:
            async with asyncio.timeout(self._patience_s):
                broker = await asyncio.shield(self._broker)
        except TimeoutError:
            raise Retryable("the broker has not answered yet") from None
        return await broker.append(records)


def without_user(url: str) -> str:
    """As it may be logged: a name and a password in it are none of anybody's business."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


class Gateway:
    """``POST /v1/events`` of another agent, or of `streammon up`: a request a record, over connections that stay open.

    A record that carries no identity may be there twice after an answer that did not come.
    """

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self._url = url.rstrip("/") + PATH
        self._shown = without_user(self._url)
        self._session = session

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str, timeout_s: float) -> AsyncIterator[Gateway]:
        import aiohttp

        timeout = aiohttp.ClientTimeout(total=timeout_s)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            yield cls(url, session)

    async def append(self, records: Sequence[Outgoing]) -> None:
        import aiohttp

        for record in records:
            try:
                await self._post(record)
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                raise Retryable(f"{self._shown}: {error!r}") from error

    async def _post(self, record: Outgoing) -> None:
        value = record.value or b""
        request = self._session.post(
            self._url,
            params={"type": INPUT_TOPICS[record.topic].value},
            data=value,
            headers={"Content-Type": "application/json"},
            compress="gzip" if len(value) > COMPRESSED_BYTES else None,
        )
        async with request as answer:
            text = await answer.text(errors="replace")
            judge(answer.status, answer.reason or "", answer.headers.get("Retry-After", ""), text.strip())
