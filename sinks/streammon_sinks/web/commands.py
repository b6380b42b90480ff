"""The routes by which people act: buttons of the page, and what they press in Slack and PagerDuty.

==================================  ==================================================================
``POST /v1/commands``               one command as JSON: ``{"type": "ack", "alert_id": …, "transition": 1,
                                    "by": "ann", "note": …}``, ``silence`` with ``matchers`` and
                                    ``for_s``, or ``unsilence`` with ``silence_id``
``POST /v1/callbacks/slack``        interactivity of a Slack app; off without its signing secret
``POST /v1/callbacks/pagerduty``    webhooks (v3) of PagerDuty; off without their secret
==================================  ==================================================================

====  ================================================================================================
202   The command is durable; what it does is seen on the alert a moment later.
400   It is no command: ``{"reason": …, "detail": …}``. Likewise 403 (from another web page), 413 and 415.
401   A call-back that is not signed with the secret.
404   There is no such alert or silence.
409   There is, but not so: resolved, acknowledged by somebody else, changed since.
429   Too many commands: come back after ``Retry-After`` seconds. Likewise 503: the broker cannot be reached.
====  ================================================================================================

There is no authentication, and ``by`` is what the person says. What is kept out is a web page of somebody else that
a person looks at while this one is within reach of the browser: JSON alone is taken, which another origin may send
only if it is allowed to, and the ``Origin`` that browsers put on a POST must be this page's own. The address it names
must be a number, ``localhost``, ``web.host`` or one of ``web.origins``: any other name may be made to lead here.

Call-backs are signed, and a signature is looked at before anything else.
"""

from __future__ import annotations

import asyncio
import ipaddress
import math
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any, Final

import msgspec
from aiohttp import web
from msgspec import Meta, Struct
from prometheus_client import Counter
from yarl import URL

from streammon import alert_log
from streammon.alert_log import AlertLog, Person, Ready, Refusal, Why
from streammon.broker import Broker, Outgoing, Record
from streammon.clock import Clock, system_clock
from streammon.commands import AnyCommand, Command, Matcher
from streammon.config import WebSettings
from streammon.errors import Backpressure, Reason, Rejected, StreammonError
from streammon.results import Alert
from streammon.telemetry import log as logger
from streammon.visible import visible
from streammon_sinks.notify.pagerduty import dedup_key
from streammon_sinks.notify.secrets import SecretValue

COMMANDS: Final = "/v1/commands"
CALLBACKS: Final = "/v1/callbacks"
MAX_BODY_BYTES: Final = 65_536
MAX_CALLBACK_BYTES: Final = 524_288
"""A Slack press repeats the whole message; a PagerDuty event the whole incident."""
PER_S: Final = 2.0
BURST: Final = 100
"""Commands at once; after that `PER_S`. A person who acknowledges all that is shown stays below."""
MAX_GROUPS: Final = 10_000

TAKEN = Counter("streammon_commands", "Commands of people that came by HTTP, by what became of them", ["via", "answer"])

_Name = Annotated[str, Meta(min_length=1, max_length=200)]
_Note = Annotated[str, Meta(max_length=10_000)]


class _Order(Struct, kw_only=True, forbid_unknown_fields=True, tag_field="type"):
    by: _Name
    note: _Note | None = None


class _Ack(_Order, kw_only=True, tag="ack"):
    alert_id: _Name
    transition: int


class _Silence(_Order, kw_only=True, tag="silence"):
    matchers: Annotated[list[Matcher], Meta(min_length=1, max_length=50)]
    for_s: float


class _Unsilence(_Order, kw_only=True, tag="unsilence"):
    silence_id: _Name


_AnyOrder = _Ack | _Silence | _Unsilence
_ORDER: Final = msgspec.json.Decoder[_AnyOrder](_AnyOrder)


@dataclass
class Limit:
    """A bucket of `BURST` tokens that fills by `PER_S` a second."""

    monotonic: Callable[[], float] = time.monotonic
    _tokens: float = float(BURST)
    _looked_at: float = -math.inf

    def take(self) -> None:
        """Raises `Backpressure`, with when there will be enough."""
        now = self.monotonic()
        filled = BURST if self._looked_at == -math.inf else self._tokens + PER_S * (now - self._looked_at)
        self._tokens, self._looked_at = min(float(BURST), filled), now
        if self._tokens < 1:
            raise Backpressure(f"more than {PER_S:g} commands a second", (1 - self._tokens) / PER_S)
        self._tokens -= 1


# -- the page's buttons --------------------------------------------------------------------------------


def command_routes(
    broker: Broker, log: AlertLog, settings: WebSettings, *, clock: Clock = system_clock, limit: Limit | None = None
) -> list[web.RouteDef]:
    """``POST /v1/commands``. Somebody has to `alert_log.follow` the log."""
    bucket = limit or Limit()

    async def post(request: web.Request) -> web.Response:
        async def take() -> web.Response:
            _check_sender(request, settings)
            order = _order(await _body(request, MAX_BODY_BYTES))
            bucket.take()
            return await _carry_out(broker, log, order, clock())

        return await _answered("page", take)

    return [web.post(COMMANDS, post)]


def _check_sender(request: web.Request, settings: WebSettings) -> None:
    if request.content_type != "application/json":
        raise _Answer(415, "content_type", f"Content-Type is {request.content_type!r}, expected application/json")
    origin = request.headers.get("Origin")
    if origin is not None and origin not in settings.origins and not _is_ours(origin, request.host, settings.host):
        detail = f"from a web page at {origin}; if that is this page, put the address into web.origins"
        raise _Answer(403, "origin", detail)


def _is_ours(origin: str, host: str, listening: str) -> bool:
    """Whether a page of this origin was served by us, under an address that nobody else can make lead here."""
    with suppress(ValueError):
        name = URL(origin).host or ""
        return origin.partition("://")[2] == host and (name in ("localhost", listening) or _is_number(name))
    return False


def _is_number(host: str) -> bool:
    with suppress(ValueError):
        ipaddress.ip_address(host)
        return True
    return False


def _order(body: bytes) -> _AnyOrder:
    try:
        order: _AnyOrder = _ORDER.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Rejected(Reason.INVALID_EVENT, str(error)) from None
    order.by = order.by.strip()
    if not order.by or not order.by.isprintable():
        raise Rejected(Reason.INVALID_EVENT, "`by` is who you are, in letters")
    return order


async def _carry_out(broker: Broker, log: AlertLog, order: _AnyOrder, now_unix_s: float) -> web.Response:
    if not log.complete:
        raise Backpressure("the alerts have not been read yet")
    person = Person(by=order.by, via="page", note=order.note or None, now_unix_s=now_unix_s)
    ready = _decide(log, order, person)
    if isinstance(ready, Refusal):
        raise _Answer(_STATUS.get(ready.why, 409), ready.why, ready.detail)
    await broker.append([ready.record])
    return web.Response(status=202, body=msgspec.json.encode(ready.command), content_type="application/json")


_STATUS: Final = {Why.UNKNOWN: 404, Why.AMBIGUOUS: 400, Why.TOO_LONG: 400, Why.TOO_LARGE: 400}


def _decide(log: AlertLog, order: _AnyOrder, person: Person) -> Ready | Refusal:
    match order:
        case _Ack():
            return alert_log.acknowledge(log, order.alert_id, person, order.transition)
        case _Silence():
            silence = alert_log.silence(order.matchers, order.for_s, person)
            return alert_log.if_obeyed(log, silence, person.now_unix_s)
        case _Unsilence():
            return alert_log.unsilence(log, order.silence_id, person)


# -- call-backs ----------------------------------------------------------------------------------------


class Groups:
    """Which alerts the groups hold that PagerDuty knows by their `dedup_key`: the topic `notifications`, folded."""

    TOPICS: Final = ("notifications",)

    def __init__(self) -> None:
        self.complete = False
        self._ids: dict[str, tuple[str, ...]] = {}

    def add(self, topic: str, record: Record) -> None:
        """Take in a notification; what is none is passed over."""
        with suppress(msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            told = _GROUP.decode(record.value or b"")
            key = dedup_key(told.group)
            self._ids.pop(key, None)
            self._ids[key] = tuple(alert.id for alert in told.alerts)
        if len(self._ids) > MAX_GROUPS:
            del self._ids[next(iter(self._ids))]

    def alerts_of(self, log: AlertLog, key: str) -> list[Alert]:
        return [log.alerts[id_].alert for id_ in self._ids.get(key, ()) if id_ in log.alerts]


class _Id(Struct):
    id: str


class _Group(Struct):
    group: str
    alerts: list[_Id]


_GROUP: Final = msgspec.json.Decoder(_Group)
Read = Callable[[Mapping[str, str], bytes, float], Iterable[Command]]
"""Headers, body and the time to commands. Raises `Rejected`."""


def callback_routes(
    broker: Broker,
    log: AlertLog,
    groups: Groups,
    *,
    slack: SecretValue | None,
    pagerduty: SecretValue | None,
    clock: Clock = system_clock,
    limit: Limit | None = None,
) -> list[web.RouteDef]:
    """``POST /v1/callbacks/slack`` and ``…/pagerduty``: those whose secret there is."""
    bucket = limit or Limit()
    routes = []
    if slack is not None:
        from streammon_sinks.notify.slack_inbound import slack_commands

        def pressed(headers: Mapping[str, str], body: bytes, now: float) -> Iterable[Command]:
            return slack_commands(headers, body, slack, now)

        routes.append(_callback(broker, log, "slack", pressed, clock, bucket))
    if pagerduty is not None:
        from streammon_sinks.notify.pagerduty_inbound import pagerduty_commands

        def happened(headers: Mapping[str, str], body: bytes, now: float) -> Iterable[Command]:
            return pagerduty_commands(headers, body, pagerduty, now, alerts_of=lambda key: groups.alerts_of(log, key))

        routes.append(_callback(broker, log, "pagerduty", happened, clock, bucket))
    return routes


def _callback(broker: Broker, log: AlertLog, name: str, read: Read, clock: Clock, bucket: Limit) -> web.RouteDef:
    async def post(request: web.Request) -> web.Response:
        async def take() -> web.Response:
            body = await _body(request, MAX_CALLBACK_BYTES)
            if not log.complete:
                raise Backpressure("the alerts have not been read yet")
            records = _records(log, name, read(request.headers, body, clock()))
            bucket.take()  # one press, however many alerts it is about
            if records:
                await broker.append(records)
            return web.Response()  # Slack shows the person whatever else there is

        return await _answered(name, take)

    return web.post(f"{CALLBACKS}/{name}", post)


def _records(log: AlertLog, name: str, commands: Iterable[Command]) -> list[Outgoing]:
    """Those that make sense: an alert may have been forgotten since the message about it."""
    records = []
    for command in commands:
        assert isinstance(command, AnyCommand)
        record = alert_log.record_of(log, command)
        if isinstance(record, Refusal):
            logger.warning("a call-back that does nothing", via=name, by=command.by, detail=record.detail)
        else:
            records.append(record)
    return records


# -- answers -------------------------------------------------------------------------------------------


class _Answer(StreammonError):  # noqa: N818 - an answer, not a failure
    """A refusal with its HTTP status."""

    def __init__(self, status: int, reason: str, detail: str, retry_after_s: float | None = None) -> None:
        super().__init__(detail)
        self.status, self.reason, self.detail, self.retry_after_s = status, reason, detail, retry_after_s

    def response(self) -> web.Response:
        after = {} if self.retry_after_s is None else {"Retry-After": str(max(1, math.ceil(self.retry_after_s)))}
        body = msgspec.json.encode(
            {"reason": self.reason, "detail": visible(self.detail)}
        )  # a header may hold any byte
        return web.Response(status=self.status, body=body, content_type="application/json", headers=after)


async def _answered(via: str, take: Callable[[], Any]) -> web.Response:
    response: web.Response
    try:
        response = await take()
    except StreammonError as error:
        response = _as_answer(error).response()
    TAKEN.labels(via, response.status).inc()
    return response


_REJECTED: Final = {Reason.TOO_LARGE: 413, Reason.REFUSED: 401}


def _as_answer(error: StreammonError) -> _Answer:
    match error:
        case _Answer():
            return error
        case Rejected():
            return _Answer(_REJECTED.get(error.reason, 400), error.reason, error.detail)
        case Backpressure():
            return _Answer(429, "backpressure", str(error), error.retry_after_s)
    logger.warning("a command could not be written", error=str(error))
    return _Answer(503, "unavailable", str(error), 1.0)


async def _body(request: web.Request, max_bytes: int) -> bytes:
    """The body, given up as soon as it is too large or too slow."""
    body = bytearray()
    try:
        async with asyncio.timeout(10.0):
            while chunk := await request.content.readany():
                body += chunk
                if len(body) > max_bytes:
                    raise Rejected(Reason.TOO_LARGE, f"the body has more than {max_bytes} bytes")
    except TimeoutError:
        raise _Answer(408, "timeout", "the body did not come within 10 s") from None
    except web.RequestPayloadError as error:
        raise Rejected(Reason.INVALID_JSON, f"the body cannot be read: {error}") from None
    return bytes(body)
