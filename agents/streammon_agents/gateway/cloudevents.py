"""CloudEvents over HTTP, as KServe's and Seldon's payload loggers send them, and our own events in their envelope.

``POST /v1/cloudevents`` takes the three modes of the HTTP binding, told by the content type: an
``application/cloudevents+json`` (structured), an ``application/cloudevents-batch+json`` (batch), or anything else with
the attributes in ``ce-`` headers (binary, what KServe, Seldon and Knative send).

====================================================  =========================================================
``org.kubeflow.serving.inference.request|response``   KServe: both become ``inference`` events (`pairs`)
``io.seldon.serving.inference.request|response``      Seldon Core 1: likewise, joined by ``requestid``
``io.seldon.serving.feedback``                        a ``label`` for each row of ``truth``; ``reward`` is its score
``streammon.TYPE``, such as ``streammon.inference``   ``data`` is a value of `streammon.wire`, durable when answered
====================================================  =========================================================

200 says that all of it was taken, without a body, which Knative would take for a reply. Failures are those of
``POST /v1/events``. CloudEvents of other types are refused with 400: the subscription is wrong.

The envelope is parsed by msgspec rather than by the ``cloudevents`` package: eight attributes are needed of it, at the
speed of the rest of the gateway; tests send with that package.

Sources: CloudEvents 1.0.2, "HTTP Protocol Binding" and "JSON Event Format"; KServe, ``pkg/logger``; Seldon Core 1,
``executor/logger``.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Any
from urllib.parse import unquote

import msgspec
from aiohttp import web

from streammon.clock import Clock, system_clock
from streammon.config import GatewaySettings
from streammon.errors import Reason, Rejected
from streammon.events import EventType
from streammon.wire import route
from streammon_agents.gateway.events import EVENTS, THREAD_BYTES
from streammon_agents.gateway.http import REQUESTS, body_of, check_backlog, judged, wrong_kind, wrong_method
from streammon_agents.gateway.pairs import Half, Id, Loss, Pairs, event_id, inferences
from streammon_agents.gateway.payloads import MAX_CLASSES, Payload, payload, payload_of
from streammon_agents.source import Outlet

PATH = "/v1/cloudevents"
STRUCTURED = "application/cloudevents+json"
BATCH = "application/cloudevents-batch+json"
MAX_BATCH = 1000
REQUESTED = frozenset({"org.kubeflow.serving.inference.request", "io.seldon.serving.inference.request"})
RESPONDED = frozenset({"org.kubeflow.serving.inference.response", "io.seldon.serving.inference.response"})
FEEDBACK = frozenset({"io.seldon.serving.feedback", "io.seldon.serving.inference.feedback"})
OWN = "streammon."

Text = str | int | float | bool | None
"""Attributes are text, numbers or truth values; as text they are all the same."""


class CloudEvent(msgspec.Struct):
    """The attributes that are used; ``data`` is JSON as it came."""

    specversion: str
    id: str
    source: str
    type: str
    time: datetime | None = None
    datacontenttype: str | None = None
    data: msgspec.Raw = msgspec.Raw()
    data_base64: str | None = None
    inferenceservicename: Text = None
    namespace: Text = None
    component: Text = None
    endpoint: Text = None
    modelid: Text = None
    requestid: Text = None
    traceparent: Text = None


_ATTRIBUTES = frozenset(CloudEvent.__struct_fields__) - {"data", "data_base64", "datacontenttype"}
_ONE: msgspec.json.Decoder[CloudEvent] = msgspec.json.Decoder(CloudEvent)
_MANY: msgspec.json.Decoder[list[CloudEvent]] = msgspec.json.Decoder(list[CloudEvent])


def cloud_events(content_type: str, headers: Mapping[str, str], body: bytes) -> list[CloudEvent]:
    """The CloudEvents of a request, in any mode. Raises Rejected."""
    try:
        body.decode()
        if content_type == STRUCTURED:
            events = [_ONE.decode(body)]
        elif content_type == BATCH:
            events = _MANY.decode(body)
        else:
            events = [_binary(content_type, headers, body)]
    except msgspec.ValidationError as error:
        raise Rejected(Reason.INVALID_EVENT, f"no CloudEvent: {error}") from None
    except UnicodeDecodeError as error:
        raise Rejected(Reason.INVALID_UNICODE, str(error)) from None
    except (msgspec.DecodeError, RecursionError) as error:
        raise Rejected(Reason.INVALID_JSON, f"no CloudEvent: {error}") from None
    if len(events) > MAX_BATCH:
        raise Rejected(Reason.TOO_LARGE, f"{len(events)} CloudEvents in one batch, at most {MAX_BATCH}")
    for event in events:
        if not event.specversion.startswith("1."):
            raise Rejected(Reason.UNKNOWN_SCHEMA, f"specversion is {event.specversion!r}, expected 1.0")
    return events


def _binary(content_type: str, headers: Mapping[str, str], body: bytes) -> CloudEvent:
    attributes: dict[str, Any] = {}
    for name, value in headers.items():
        if (lower := name.lower()).startswith("ce-") and lower[3:] in _ATTRIBUTES:
            attributes[lower[3:]] = unquote(value)
    event = msgspec.convert(attributes, CloudEvent)
    event.datacontenttype, event.data = content_type, msgspec.Raw(body)
    return event


def data_of(event: CloudEvent) -> bytes:
    """The data, which has to be JSON. Raises Rejected."""
    kind = (event.datacontenttype or "application/json").partition(";")[0].strip().lower()
    if "json" not in kind and kind not in ("application/octet-stream", "text/plain", ""):
        raise Rejected(Reason.INVALID_EVENT, f"the data is {kind!r}, only JSON can be read")
    if event.data_base64 is None:
        return bytes(event.data)
    try:
        return base64.b64decode(event.data_base64, validate=True)
    except binascii.Error as error:
        raise Rejected(Reason.INVALID_JSON, f"data_base64 cannot be read: {error}") from None


def routes(out: Outlet, settings: GatewaySettings, clock: Clock = system_clock) -> list[web.RouteDef]:
    """``POST /v1/cloudevents``."""
    return [
        web.post(PATH, judged(CloudEvents(out, settings, clock).post)),
        web.route("*", PATH, wrong_method),
    ]


class CloudEvents:
    """What waits for its other half, and what is done with the rest."""

    def __init__(self, out: Outlet, settings: GatewaySettings, clock: Clock = system_clock) -> None:
        self._out, self._settings, self._clock = out, settings, clock
        self._pairs = Pairs(settings.answer_within_s, settings.max_unanswered)
        self._timer: asyncio.TimerHandle | None = None

    async def post(self, request: web.Request) -> web.Response:
        if (response := wrong_kind(request, ())) is not None:
            return response
        await check_backlog(self._out, self._settings)
        body = await body_of(request, self._settings.max_body_bytes)
        try:
            events = cloud_events(request.content_type, request.headers, body)
        except Rejected as refusal:
            self._count(refusal)
            raise
        if (first := await self._take_all(events)) is not None:
            raise first
        REQUESTS.labels(200).inc()
        return web.Response()

    async def _take_all(self, events: list[CloudEvent]) -> Rejected | None:
        """Each is judged by itself; the first refusal, if any."""
        first: Rejected | None = None
        for event in events:
            try:
                await self._take(event)
            except Rejected as refusal:
                self._count(refusal)
                first = first or refusal
        return first

    def _count(self, refusal: Rejected) -> None:
        self._out.refuse(refusal.reason)
        EVENTS.labels(refusal.reason).inc()

    async def _take(self, event: CloudEvent) -> None:
        if event.type in REQUESTED or event.type in RESPONDED:
            await self._pair(event)
        elif event.type in FEEDBACK:
            self._put(EventType.LABEL, labels(event, self._at(event)))
        elif event.type.startswith(OWN) and event.type.removeprefix(OWN) in list(EventType):
            await self._own(event)
        else:
            raise Rejected(Reason.WRONG_TYPE, f"CloudEvents of type {event.type[:200]!r} mean nothing here")

    async def _own(self, event: CloudEvent) -> None:
        routed = route(data_of(event), EventType(event.type.removeprefix(OWN)))
        await self._out.append(routed.records)
        EVENTS.labels("accepted").inc(routed.accepted)
        for reason, events in routed.reasons.items():
            EVENTS.labels(reason).inc(events)

    async def _pair(self, event: CloudEvent) -> None:
        of, found = id_of(event), await self._read(event)
        half = Half(event.type in REQUESTED, self._at(event), found, trace_of(event))
        both = self._pairs.add(of, half, self._now())
        self._give_up()
        if both is not None:
            events, more = inferences(of, *both)
            self._put(EventType.INFERENCE, events)
            if more:
                self._out.drop(Loss.INSTANCES, more)

    async def _read(self, event: CloudEvent) -> Payload:
        """What is in it. A payload that cannot be read is counted, and is still one prediction: of images, and whatever
        else models of one's own take, one wants to know how many there are and how long they take."""
        try:
            data = data_of(event)
            read = partial(payload_of, data, self._settings.max_features if event.type in REQUESTED else MAX_CLASSES)
            return await asyncio.to_thread(read) if len(data) > THREAD_BYTES else read()
        except Rejected as refusal:
            self._count(refusal)
            return Payload([], 1)

    def _put(self, event_type: EventType, events: list[dict[str, Any]]) -> None:
        self._out.put(event_type, events)
        EVENTS.labels("accepted").inc(len(events))

    def _at(self, event: CloudEvent) -> float:
        """When it was sent; where it does not say so, now."""
        if event.time is None:
            return self._clock()
        return (event.time if event.time.tzinfo else event.time.replace(tzinfo=UTC)).timestamp()

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def _give_up(self) -> None:
        for loss, predictions in self._pairs.give_up(self._now()):
            self._out.drop(loss, predictions)
        if self._timer is None and self._pairs.waiting:
            self._timer = asyncio.get_running_loop().call_later(self._settings.answer_within_s, self._look_again)

    def _look_again(self) -> None:
        self._timer = None
        self._give_up()


# --- what the attributes say ----------------------------------------------------------------------------------


def id_of(event: CloudEvent) -> Id:
    """What a request has in common with its response. Raises Rejected where they do not say whose they are."""
    name = _text(event.inferenceservicename)
    if not name:
        raise Rejected(Reason.INVALID_EVENT, f"the CloudEvent {event.id[:100]!r} has no inferenceservicename")
    return Id(
        service=_service(name, _text(event.namespace)),
        model=_text(event.modelid) or name,
        endpoint="/".join(filter(None, (_text(event.endpoint), _text(event.component)))),
        id=_text(event.requestid) or event.id,
    )


def _service(name: str, namespace: str) -> str:
    """As Kubernetes' DNS tells services of several namespaces apart."""
    return name if namespace in ("", "default") else f"{name}.{namespace}"


def trace_of(event: CloudEvent) -> str | None:
    """Of the extension "distributed tracing", a W3C ``traceparent``."""
    parts = _text(event.traceparent).split("-")
    return parts[1] if len(parts) == 4 and len(parts[1]) == 32 else None


def _text(value: Text) -> str:
    return "" if value is None else str(value)


def labels(event: CloudEvent, at_unix_s: float) -> list[dict[str, Any]]:
    """Seldon's feedback: a label for each row of the truth, or one of the reward alone. Raises Rejected."""
    of = id_of(event)
    body = _json(data_of(event))
    puid = _inside(body, "response", "meta", "puid")
    reward = body.get("reward") if isinstance(body, dict) else None
    truth = _inside(body, "truth")
    rows = (payload(truth, 1).rows if isinstance(truth, dict) and truth.keys() - {"meta", "status"} else []) or [{}]
    shared = {
        "time_unix_s": at_unix_s,
        "service": of.service,
        "model": of.model,
        "source": "seldon",
        "score": float(reward) if isinstance(reward, int | float) else None,
    }
    request_id = puid if isinstance(puid, str) and puid else of.id
    events = [
        {**shared, "event_id": event_id(request_id, at, len(rows)), "label": next(iter(row.values()), None)}
        for at, row in enumerate(rows)
    ]
    return [{name: value for name, value in one.items() if value is not None} for one in events]


def _json(data: bytes) -> Any:
    try:
        return msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Rejected(Reason.INVALID_JSON, f"the payload cannot be read: {error}") from None


def _inside(body: Any, *names: str) -> Any:
    for name in names:
        body = body.get(name) if isinstance(body, dict) else None
    return body
