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
      408 (the body took too long), 413 (too large) and 415 (another content type).
429   The broker is behind; nothing was taken. Come back after ``Retry-After`` seconds. Likewise 503: it cannot be
      reached. After a 503 the events may be durable all the same; with an identity, sending them again is safe.
====  ====================================================================================================

There is no authentication, so the address it listens on must be local or behind a proxy; web pages do not
reach it either (`streammon_agents.gateway.http`).

Events that come one a request are written together (`streammon_agents.gateway.gathering`).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Any

from aiohttp import web
from prometheus_client import Counter as Metric

from streammon.broker import Headers
from streammon.errors import Reason, Rejected
from streammon.events import Event, EventType
from streammon.wire import Routed, claimed_events, route
from streammon_agents.gateway.gathering import Gathering
from streammon_agents.gateway.http import (
    JSON,
    Limits,
    Log,
    answer,
    body_of,
    check_backlog,
    judged,
    wrong_kind,
    wrong_method,
)
from streammon_agents.gateway.ndjson import RoutedLines, route_lines, single_of
from streammon_agents.packing import TRACE_HEADER, TRACEPARENT

PATH = "/v1/events"
NDJSON = "application/x-ndjson"
THREAD_BYTES = 65_536
"""A larger body is parsed beside the event loop, so that other requests and heartbeats need not wait for it."""

EVENTS = Metric("streammon_gateway_events", "Events that came by HTTP, by what became of them", ["outcome"])
"""``outcome``: accepted, or the `Reason` of a refusal."""

Parse = Callable[[bytes, EventType | None], Routed | RoutedLines]


def routes(into: Log, limits: Limits) -> list[web.RouteDef]:
    """``POST /v1/events``; to be added to any aiohttp application."""
    return [
        web.post(PATH, judged(_Intake(into, limits).post)),
        web.route("*", PATH, wrong_method),
    ]


class _Intake:
    def __init__(self, into: Log, limits: Limits) -> None:
        self._into, self._limits = into, limits
        self._gathering = Gathering(into)

    async def post(self, request: web.Request) -> web.Response:
        if (response := wrong_kind(request, (JSON, NDJSON))) is not None:
            return response
        event_type = _event_type(request)
        await check_backlog(self._into, self._limits)
        body = await body_of(request, self._limits.max_body_bytes)
        if request.content_type == NDJSON:
            return await self._write(route_lines, body, event_type)
        if len(body) <= THREAD_BYTES and (event := single_of(body, event_type)) is not None and event.seq is None:
            return await self._gather(body, event)
        return await self._write(route, body, event_type, _trace_of(request))

    async def _gather(self, value: bytes, event: Event) -> web.Response:
        fault = await self._gathering.take(value, event)
        reasons = Counter([fault.reason] if fault else [])
        return _taken(Routed([], 1 - len(reasons), len(reasons), reasons))

    async def _write(
        self, parse: Parse, body: bytes, event_type: EventType | None, trace: Headers = ()
    ) -> web.Response:
        routed = await _routed(parse, body, event_type)
        if trace and len(routed.records) == 1:
            routed.records[0] = routed.records[0]._replace(headers=(*routed.records[0].headers, *trace))
        if routed.records:
            await self._into.append(routed.records)
        return _taken(routed)


def _trace_of(request: web.Request) -> Headers:
    """The header of W3C Trace Context that a batch of one span came with: its record has it, too."""
    value = request.headers.get(TRACE_HEADER, "")
    return ((TRACE_HEADER, value.encode()),) if TRACEPARENT.fullmatch(value) else ()


def _event_type(request: web.Request) -> EventType | None:
    if not request.query_string or (name := request.query.get("type")) is None:
        return None
    if name not in list(EventType):
        raise Rejected(Reason.WRONG_TYPE, f"?type= is {name!r}, expected one of {', '.join(EventType)}")
    return EventType(name)


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
        return answer(400, reason=first.reason, detail=f"line {first.line}: {first.detail}", **counts)
    return answer(202, **counts)
