"""OTLP/HTTP: ``POST /v1/traces``, ``/v1/metrics`` and ``/v1/logs``.

====  ====================================================================================================
200   Everything is durable, but for what the partial success counts.
400   Garbage; sending it again cannot help. Likewise 403 (from a web page), 405, 408 (the body came too
      slowly), 413 (too large) and 415 (another content type or encoding).
503   There is no room now, or the log cannot be reached. Come back after ``Retry-After`` seconds. (429 would be
      as good by the specification, but older SDKs for Python then throw away what they have.)
====  ====================================================================================================

The body of an answer is protobuf or JSON, as the request's was; of a refusal it is a ``google.rpc.Status``.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

from aiohttp import web
from google.protobuf.json_format import MessageToJson
from google.protobuf.message import Message
from google.rpc.code_pb2 import DEADLINE_EXCEEDED, INVALID_ARGUMENT, PERMISSION_DENIED, UNIMPLEMENTED
from google.rpc.status_pb2 import Status

from streammon.errors import Reason, Rejected, Retryable
from streammon_agents.gateway.otlp import PATHS
from streammon_agents.gateway.otlp.intake import Intake, Signal
from streammon_agents.gateway.otlp.refusals import retry_after_s, status_of
from streammon_agents.gateway.otlp.values import Refusal

PROTOBUF = "application/x-protobuf"
JSON = "application/json"
CODINGS = ("identity", "gzip", "deflate")
BODY_S = 10.0
"""How long a body may take to come."""
IDLE_S = 75.0
"""A connection without a request is closed after this long: longer than the minute after which SDKs send again."""
LINGER_S = 2.0
"""How long the rest of a body that was refused is read and thrown away, so that its sender hears the answer."""
MAX_CONNECTIONS = 512


async def answered(intake: Intake, request: web.Request) -> web.Response:
    """The answer to a request on one of the three paths."""
    if (refusal := _wrong_kind(request)) is not None:
        intake.refuse(Refusal.GARBAGE)
        return refusal
    try:
        body = await _body(intake, request)
        signal = Signal(request.path.rpartition("/")[2])
        return _answer(request, 200, await intake.take(signal, body, json=request.content_type == JSON))
    except Rejected as error:
        return _unread(request, _answer(request, 413 if error.reason is Reason.TOO_LARGE else 400, status_of(error)))
    except TimeoutError:
        intake.refuse(Refusal.GARBAGE)
        late = Status(code=DEADLINE_EXCEEDED, message=f"the body did not come within {BODY_S:g} s")
        return _unread(request, _answer(request, 408, late))
    except Retryable as error:
        answer = _answer(request, 503, status_of(error))
        answer.headers["Retry-After"] = str(math.ceil(retry_after_s(error)))
        return answer


def _wrong_kind(request: web.Request) -> web.Response | None:
    """The refusal that a request earns by its headers."""
    if request.method != "POST":
        message = f"{request.method} {request.path}: telemetry is sent with POST"
        answer = _answer(request, 405, Status(code=UNIMPLEMENTED, message=message))
        answer.headers["Allow"] = "POST"
        return answer
    if request.headers.get("Origin") is not None:
        return _answer(request, 403, Status(code=PERMISSION_DENIED, message="web pages may not send"))
    if request.content_type not in (PROTOBUF, JSON):
        message = f"Content-Type is {request.content_type!r}, expected {PROTOBUF} or {JSON}"
        return _answer(request, 415, Status(code=INVALID_ARGUMENT, message=message))
    if (coding := request.headers.get("Content-Encoding", "identity").lower()) not in CODINGS:
        message = f"Content-Encoding is {coding!r}, expected one of {', '.join(CODINGS)}"
        return _answer(request, 415, Status(code=INVALID_ARGUMENT, message=message))
    return None


async def _body(intake: Intake, request: web.Request) -> bytes:
    """The body, decompressed by aiohttp piece by piece and given up as soon as it is too large."""
    limit = intake.max_message_bytes
    if (request.content_length or 0) > limit:
        raise _too_large(intake, limit)
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_S):
            while chunk := await request.content.readany():
                body += chunk
                if len(body) > limit:
                    raise _too_large(intake, limit)
    except web.RequestPayloadError as error:
        request.content.feed_eof()  # or aiohttp reads on, and logs this error as its own
        intake.refuse(Refusal.GARBAGE)
        raise Rejected(Reason.INVALID_EVENT, f"the body cannot be read: {' '.join(str(error).split())}") from None
    return bytes(body)


def _too_large(intake: Intake, limit: int) -> Rejected:
    intake.refuse(Refusal.TOO_LARGE)
    return Rejected(Reason.TOO_LARGE, f"the body has more than {limit} bytes")


def _answer(request: web.Request, status: int, message: Message) -> web.Response:
    if request.content_type == JSON:
        body = MessageToJson(message, indent=None).encode()
        return web.Response(status=status, body=body, content_type=JSON)
    return web.Response(status=status, body=message.SerializeToString(), content_type=PROTOBUF)


def _unread(request: web.Request, answer: web.Response) -> web.Response:
    """Where the body was not read to its end, nobody knows where the next request begins."""
    if not request.content.at_eof():
        answer.force_close()
    return answer


# --- a server of our own --------------------------------------------------------------------------------------


@asynccontextmanager
async def serving(intake: Intake, host: str, port: int) -> AsyncIterator[int]:
    """Serve the routes until the block ends; yields the port. Raises OSError where nobody can listen there."""
    app = web.Application()
    app.add_routes([web.route("*", path, partial(answered, intake)) for path in PATHS])
    runner = web.AppRunner(
        app, access_log=None, keepalive_timeout=IDLE_S, lingering_time=LINGER_S, shutdown_timeout=0.5
    )
    await runner.setup()
    try:
        assert runner.server is not None
        server = await asyncio.get_running_loop().create_server(partial(_admitted, intake, runner.server), host, port)
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            server.close()
    finally:
        await runner.cleanup()


def _admitted(intake: Intake, server: web.Server) -> asyncio.Protocol:
    if len(server.connections) < MAX_CONNECTIONS:
        return server()
    intake.refuse(Refusal.TOO_MANY_CONNECTIONS)
    return _Closed()


class _Closed(asyncio.Protocol):
    """A connection for which there is no room."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()
