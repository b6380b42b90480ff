"""The gateway: ``POST /v1/events``, where a service that does not speak Kafka hands over its events.

=============================  ===========================================================================
``application/json``           one value of any of the four densities
``application/x-ndjson``       one such value a line; a bad line is named and does not spoil the others
``?type=inference``            the type of events that do not name it themselves
``Content-Encoding``           gzip or deflate; the size limit is for what comes out
=============================  ===========================================================================

====  ====================================================================================================
202   The events are durable: ``{"accepted": 2, "rejected": 1, "reasons": {"negative": 1}}``. The rejected are
      in the log as well, where the windows count them; only the ``errors`` of refused *lines* are not.
400   Nothing was taken: ``{"reason": …, "detail": …}``. Sending it again cannot help. Likewise 403, 405,
      413 (too large) and 415 (another content type).
429   The broker is behind; nothing was taken. Come back after ``Retry-After`` seconds. Likewise 503: it cannot be
      reached. After a 503 the events may be durable all the same; with an identity, sending them again is safe.
====  ====================================================================================================

There is no authentication, so the address it listens on must be local or behind a proxy. A web page that somebody
looks at on the same machine must not reach it either: a form cannot send the content types asked for, and a
request with an ``Origin``, which browsers put on every POST, is refused.

A request takes no more memory than a few times ``web.max_body_bytes``; how many there are at once is the proxy's
to bound.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import msgspec
from aiohttp import web
from prometheus_client import Counter

from streammon.broker import Broker
from streammon.config import Settings, WebSettings
from streammon.errors import Backpressure, Reason, Rejected, StreammonError
from streammon.events import EventType
from streammon.telemetry import log
from streammon.wire import Routed, claimed_events, route
from streammon_agents.gateway.ndjson import RoutedLines, route_lines

PATH = "/v1/events"
JSON = "application/json"
NDJSON = "application/x-ndjson"
CODINGS = ("identity", "gzip", "deflate")
THREAD_BYTES = 65_536
"""A larger body is parsed beside the event loop, so that other requests and heartbeats need not wait for it."""
RETRY_AFTER_S = 1.0

EVENTS = Counter("streammon_gateway_events", "Events that came by HTTP, by what became of them", ["outcome"])
"""``outcome``: accepted, or the `Reason` of a refusal."""
REQUESTS = Counter("streammon_gateway_requests", "Requests to the HTTP intake, by answer", ["status"])

Parse = Callable[[bytes, EventType | None], Routed | RoutedLines]


def routes(broker: Broker, settings: Settings) -> list[web.RouteDef]:
    """``POST /v1/events``; to be added to any aiohttp application."""
    return [
        web.post(PATH, partial(_post, broker, settings.web)),
        web.route("*", PATH, _wrong_method),
    ]


async def _post(broker: Broker, limits: WebSettings, request: web.Request) -> web.Response:
    if (response := _wrong_kind(request)) is not None:
        return response
    try:
        return await _take(broker, limits, request)
    except Rejected as refusal:
        return _refuse(request, refusal)
    except Backpressure as full:
        return _come_back(429, "backpressure", str(full), full.retry_after_s)
    except StreammonError as failure:
        log.warning("events that came by HTTP could not be written", error=str(failure))
        return _come_back(503, "unavailable", str(failure), RETRY_AFTER_S)


async def _take(broker: Broker, limits: WebSettings, request: web.Request) -> web.Response:
    event_type = _event_type(request)
    await _check_backlog(broker, limits)
    body = await _body(request, limits.max_body_bytes)
    routed = await _routed(route_lines if request.content_type == NDJSON else route, body, event_type)
    if routed.records:
        await broker.append(routed.records)
    return _taken(routed)


def _wrong_kind(request: web.Request) -> web.Response | None:
    """The refusal that a request earns by its headers."""
    if (origin := request.headers.get("Origin")) is not None:
        return _answer(403, reason="browser", detail=f"from a web page ({origin}): pages may not send events")
    if request.content_type not in (JSON, NDJSON):
        detail = f"Content-Type is {request.content_type!r}, expected {JSON} or {NDJSON}"
        return _answer(415, reason="content_type", detail=detail)
    if (coding := request.headers.get("Content-Encoding", "identity").lower()) not in CODINGS:
        detail = f"Content-Encoding is {coding!r}, expected one of {', '.join(CODINGS)}"
        return _answer(415, reason="content_encoding", detail=detail)
    return None


async def _wrong_method(request: web.Request) -> web.Response:
    detail = f"{request.method} {PATH}: events are sent with POST"
    return _answer(405, {"Allow": "POST"}, reason="method", detail=detail)


def _event_type(request: web.Request) -> EventType | None:
    if (name := request.query.get("type")) is None:
        return None
    if name not in list(EventType):
        raise Rejected(Reason.WRONG_TYPE, f"?type= is {name!r}, expected one of {', '.join(EventType)}")
    return EventType(name)


async def _check_backlog(broker: Broker, limits: WebSettings) -> None:
    if (backlog := await broker.backlog_bytes()) > limits.max_backlog_bytes:
        raise Backpressure(f"{backlog} bytes wait to be written, at most {limits.max_backlog_bytes} may")


async def _body(request: web.Request, max_bytes: int) -> bytes:
    """The body, decompressed by aiohttp piece by piece and given up as soon as it is too large."""
    body = bytearray()
    if (request.content_length or 0) > max_bytes:
        raise Rejected(Reason.TOO_LARGE, f"the body has {request.content_length} bytes, at most {max_bytes}")
    try:
        while chunk := await request.content.readany():
            body += chunk
            if len(body) > max_bytes:
                raise Rejected(Reason.TOO_LARGE, f"the body has more than {max_bytes} bytes")
    except web.RequestPayloadError as error:
        request.content.feed_eof()  # or aiohttp reads on, and logs this error as its own
        said = " ".join(str(error).split())
        raise Rejected(Reason.INVALID_JSON, f"the body cannot be read: {said}") from None
    if not body:
        raise Rejected(Reason.INVALID_JSON, "the body is empty")
    return bytes(body)


async def _routed(parse: Parse, body: bytes, event_type: EventType | None) -> Routed | RoutedLines:
    try:
        if len(body) > THREAD_BYTES:
            return await asyncio.to_thread(parse, body, event_type)
        return parse(body, event_type)
    except Rejected as refusal:
        EVENTS.labels(refusal.reason).inc(claimed_events(body))
        raise


def _taken(routed: Routed | RoutedLines) -> web.Response:
    counts: dict[str, Any] = {"accepted": routed.accepted, "rejected": routed.rejected, "reasons": routed.reasons}
    for outcome, events in (("accepted", routed.accepted), *routed.reasons.items()):
        EVENTS.labels(outcome).inc(events)
    errors = routed.errors if isinstance(routed, RoutedLines) else []
    if errors:
        counts["errors"] = [error._asdict() for error in errors]
    if errors and not routed.records:
        first = errors[0]
        return _answer(400, reason=first.reason, detail=f"line {first.line}: {first.detail}", **counts)
    return _answer(202, **counts)


def _refuse(request: web.Request, refusal: Rejected) -> web.Response:
    status = 413 if refusal.reason is Reason.TOO_LARGE else 400
    answer = _answer(status, reason=refusal.reason, detail=refusal.detail)
    if request.content.exception() is not None:
        answer.force_close()  # where the next request begins cannot be told
    return answer


def _come_back(status: int, reason: str, detail: str, after_s: float) -> web.Response:
    return _answer(status, {"Retry-After": str(math.ceil(after_s))}, reason=reason, detail=detail)


def _answer(status: int, headers: Mapping[str, str] | None = None, **content: Any) -> web.Response:
    REQUESTS.labels(status).inc()
    body = msgspec.json.encode(content) + b"\n"
    return web.Response(status=status, headers=headers, body=body, content_type=JSON)
