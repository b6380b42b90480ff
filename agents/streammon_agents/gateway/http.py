"""What every HTTP endpoint of the gateway shares: who may send, how a body is read, and how failures are answered.

A request takes no more memory than a few times the largest body. A body that does not come within `BODY_S` is given
up, and a request with an ``Origin``, which browsers put on every POST, is refused: a web page that somebody looks at on
the same machine must not reach endpoints without authentication.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import wraps
from typing import Any, Protocol

import msgspec
from aiohttp import web
from prometheus_client import Counter

from streammon.broker import Outgoing
from streammon.errors import Backpressure, Reason, Rejected, StreammonError
from streammon.telemetry import log

JSON = "application/json"
CODINGS = ("identity", "gzip", "deflate")
BODY_S = 10.0
"""How long the body of a request may take."""
RETRY_AFTER_S = 1.0

REQUESTS = Counter("streammon_gateway_requests", "Requests to the HTTP intake, by answer", ["status"])


class Log(Protocol):
    """Where events go: a `streammon.broker.Broker`, or the outlet of a source."""

    async def append(self, records: Sequence[Outgoing]) -> object: ...
    async def backlog_bytes(self) -> int: ...


class Limits(Protocol):
    """What one request may be, and how much may wait: `WebSettings`, or `GatewaySettings`."""

    @property
    def max_body_bytes(self) -> int: ...
    @property
    def max_backlog_bytes(self) -> int: ...


Handler = Callable[[web.Request], Awaitable[web.Response]]


def judged(handler: Handler) -> Handler:
    """The handler, with an answer to whatever it raises."""

    @wraps(handler)
    async def answering(request: web.Request) -> web.Response:
        try:
            return await handler(request)
        except Rejected as refusal:
            return _refuse(request, refusal)
        except Backpressure as full:
            return _come_back(429, "backpressure", str(full), full.retry_after_s)
        except StreammonError as failure:
            log.warning("events that came by HTTP could not be written", error=str(failure))
            return _come_back(503, "unavailable", str(failure), RETRY_AFTER_S)
        except TimeoutError:
            slow = answer(408, reason="slow", detail=f"the body did not come within {BODY_S:g} s")
            slow.force_close()
            return slow

    return answering


def wrong_kind(request: web.Request, kinds: Sequence[str]) -> web.Response | None:
    """The refusal that a request earns by its headers. No ``kinds``: any content type."""
    headers = request.headers
    if (origin := headers.get("Origin")) is not None:
        return answer(403, reason="browser", detail=f"from a web page ({origin}): pages may not send events")
    if kinds and request.content_type not in kinds:
        detail = f"Content-Type is {request.content_type!r}, expected {' or '.join(kinds)}"
        return answer(415, reason="content_type", detail=detail)
    if (coding := headers.get("Content-Encoding", "identity").lower()) not in CODINGS:
        detail = f"Content-Encoding is {coding!r}, expected one of {', '.join(CODINGS)}"
        return answer(415, reason="content_encoding", detail=detail)
    return None


async def check_backlog(into: Log, limits: Limits) -> None:
    """Raises Backpressure where too much waits already."""
    if (backlog := await into.backlog_bytes()) > limits.max_backlog_bytes:
        raise Backpressure(f"{backlog} bytes wait to be written, at most {limits.max_backlog_bytes} may")


async def body_of(request: web.Request, max_bytes: int) -> bytes:
    """The body, decompressed by aiohttp piece by piece and given up as soon as it is too large, or too slow."""
    if (request.content_length or 0) > max_bytes:
        raise Rejected(Reason.TOO_LARGE, f"the body has {request.content_length} bytes, at most {max_bytes}")
    try:
        async with asyncio.timeout(BODY_S):
            body = await _read(request, max_bytes)
    except web.RequestPayloadError as error:
        request.content.feed_eof()  # or aiohttp reads on, and logs this error as its own
        said = " ".join(str(error).split())
        raise Rejected(Reason.INVALID_JSON, f"the body cannot be read: {said}") from None
    if not body:
        raise Rejected(Reason.INVALID_JSON, "the body is empty")
    return body


async def _read(request: web.Request, max_bytes: int) -> bytes:
    body = bytearray()
    while chunk := await request.content.readany():
        body += chunk
        if len(body) > max_bytes:
            raise Rejected(Reason.TOO_LARGE, f"the body has more than {max_bytes} bytes")
    return bytes(body)


async def wrong_method(request: web.Request) -> web.Response:
    detail = f"{request.method} {request.path}: events are sent with POST"
    return answer(405, {"Allow": "POST"}, reason="method", detail=detail)


def _refuse(request: web.Request, refusal: Rejected) -> web.Response:
    status = 413 if refusal.reason is Reason.TOO_LARGE else 400
    refused = answer(status, reason=refusal.reason, detail=refusal.detail)
    if request.content.exception() is not None:
        refused.force_close()  # where the next request begins cannot be told
    return refused


def _come_back(status: int, reason: str, detail: str, after_s: float) -> web.Response:
    return answer(status, {"Retry-After": str(math.ceil(after_s))}, reason=reason, detail=detail)


def answer(status: int, headers: Mapping[str, str] | None = None, **content: Any) -> web.Response:
    REQUESTS.labels(status).inc()
    body = msgspec.json.encode(content) + b"\n"
    return web.Response(status=status, headers=headers, body=body, content_type=JSON)
