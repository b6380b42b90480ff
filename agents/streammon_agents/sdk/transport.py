"""How a batch leaves a service: by the HTTP intake, or into the log. For one thread, which it may block."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Protocol
from urllib.parse import urlsplit

from streammon.broker import Broker, Outgoing
from streammon.errors import ConfigError, Retryable
from streammon.events import EventType
from streammon_agents.packing import Batch, judge, pause_s

HTTP_TIMEOUT_S = 5.0
_LONGEST_ANSWER_BYTES = 65_536


class Transport(Protocol):
    """Delivers one batch at a time. The same batch may be given again after a failure."""

    def send(self, batch: Batch) -> None:
        """Return once the batch is durable at the other side; raises `Retryable` or `Rejected`."""
        ...

    def close(self) -> None: ...


class HttpTransport:
    """``POST /v1/events`` of ``streammon up`` or the gateway, over one connection that is kept open."""

    def __init__(self, url: str, timeout_s: float = HTTP_TIMEOUT_S) -> None:
        self._connection, self._path = _connection(url, timeout_s)
        self._url = url

    def send(self, batch: Batch) -> None:
        try:
            answer, text = self._post(batch)
        except (OSError, HTTPException) as error:
            self.close()  # the next request opens it again
            raise Retryable(f"{self._url}: {error!r}") from error
        judge(answer.status, answer.reason, answer.headers.get("Retry-After", ""), text)

    def _post(self, batch: Batch) -> tuple[HTTPResponse, str]:
        headers = {"Content-Type": "application/json", **{name: value.decode() for name, value in batch.headers}}
        self._connection.request("POST", self._path, batch.value, headers)
        answer = self._connection.getresponse()
        text = answer.read(_LONGEST_ANSWER_BYTES).decode(errors="replace").strip()
        if not answer.isclosed():
            self.close()
        return answer, text

    def close(self) -> None:
        self._connection.close()


def _connection(url: str, timeout_s: float) -> tuple[HTTPConnection, str]:
    parts = urlsplit(url)
    kinds = {"http": HTTPConnection, "https": HTTPSConnection}
    try:
        kind, port = kinds[parts.scheme], parts.port
    except (KeyError, ValueError):
        raise ConfigError(f"url is {url!r}, expected http://HOST:PORT or https://HOST:PORT") from None
    if not parts.hostname:
        raise ConfigError(f"url is {url!r}: it names no host")
    return kind(parts.hostname, port, timeout=timeout_s), parts.path.rstrip("/") + "/v1/events"


PATIENCE_S = 30.0


def send_patiently(
    transport: Transport, event_type: EventType, record: Outgoing, patience_s: float = PATIENCE_S
) -> None:
    """Send one record, again and again for so long. Raises what the last try raised."""
    batch = Batch(event_type, record.key or b"", record.value or b"", events=1, dropped=0)
    deadline = time.monotonic() + patience_s
    for attempt in itertools.count():
        try:
            transport.send(batch)
        except Retryable as failure:
            pause = pause_s(failure, attempt)
            if time.monotonic() + pause > deadline:
                raise
            time.sleep(pause)
        else:
            return


class BrokerTransport:
    """Any `Broker`, driven by an event loop that runs only while a batch is being sent."""

    def __init__(self, connect: Callable[[], Awaitable[Broker]]) -> None:
        self._connect = connect
        self._runner = asyncio.Runner()
        self._broker: Broker | None = None

    def send(self, batch: Batch) -> None:
        self._runner.run(self._append(batch))

    async def _append(self, batch: Batch) -> None:
        if self._broker is None:
            self._broker = await self._connect()
        await self._broker.append([batch.outgoing])

    def close(self) -> None:
        if self._broker is not None:
            self._runner.run(self._close(self._broker))
        self._runner.close()

    async def _close(self, broker: Broker) -> None:
        await broker.close()


def kafka_transport(bootstrap: str) -> BrokerTransport:
    """The log itself; aiokafka and the configuration are loaded by the first batch."""

    async def open_broker() -> Broker:
        from streammon.broker import connect
        from streammon.config import load

        return await connect(load(bootstrap=bootstrap))

    return BrokerTransport(open_broker)
