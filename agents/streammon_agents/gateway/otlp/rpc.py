"""OTLP/gRPC: ``Export`` of the three services.

====================  ====================================================================================
OK                    Everything is durable, but for what the partial success counts.
INVALID_ARGUMENT      Garbage; sending it again cannot help.
RESOURCE_EXHAUSTED    There is no room now: come back after the `RetryInfo`. Without one, the message is too large.
UNAVAILABLE           The log cannot be reached: come back, after the `RetryInfo`.
====================  ====================================================================================

gRPC itself would decompress a message to any size before anybody looked, so it is told not to, and we do, up to the
bound. What compression was used is seen by how the message begins: no request begins as gzip or zlib do.
"""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import NoReturn

import grpc
from google.rpc.status_pb2 import Status

from streammon.errors import Reason, Rejected, Retryable
from streammon_agents.gateway.otlp.intake import KINDS, Intake, Signal
from streammon_agents.gateway.otlp.refusals import status_of
from streammon_agents.gateway.otlp.values import Refusal

MAX_CALLS = 2048
"""Calls at one time. gRPC turns further ones away without saying when to come back, so it is high: what bounds the work
is ``agent.otlp.max_in_flight_bytes``."""
MAX_STREAMS = 32
"""Calls at one time on one connection; further ones wait at the sender."""
MAX_CONNECTIONS = 512
_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.so_reuseport", 0),  # or a second process would share the port without a word
    ("grpc.per_message_decompression", 0),
    ("grpc.max_concurrent_streams", MAX_STREAMS),
    ("grpc.max_allowed_incoming_connections", MAX_CONNECTIONS),
    ("grpc.server_handshake_timeout_ms", 10_000),
    ("grpc.max_connection_idle_ms", 600_000),
    ("grpc.max_metadata_size", 16_384),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 10_000),
)
_CODES = {code.value[0]: code for code in grpc.StatusCode}

Context = grpc.aio.ServicerContext[bytes, bytes]


@asynccontextmanager
async def serving(intake: Intake, host: str, port: int) -> AsyncIterator[int]:
    """Serve until the block ends; yields the port. Raises OSError where nobody can listen there."""
    options = (*_OPTIONS, ("grpc.max_receive_message_length", intake.max_message_bytes))
    server = grpc.aio.server(options=options, maximum_concurrent_rpcs=MAX_CALLS)
    server.add_generic_rpc_handlers(tuple(_handler(intake, signal) for signal in Signal))
    try:
        bound = server.add_insecure_port(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
    except RuntimeError as error:
        raise OSError(f"gRPC cannot listen there: {error}") from None
    await server.start()
    try:
        yield bound
    finally:
        await server.stop(None)


def _handler(intake: Intake, signal: Signal) -> grpc.GenericRpcHandler:
    export: grpc.RpcMethodHandler[bytes, bytes] = grpc.unary_unary_rpc_method_handler(partial(_export, intake, signal))
    return grpc.method_handlers_generic_handler(KINDS[signal].service, {"Export": export})


async def _export(intake: Intake, signal: Signal, message: bytes, context: Context) -> bytes:
    try:
        body = decompressed(message, intake.max_message_bytes)
    except Rejected as error:
        intake.refuse(Refusal.TOO_LARGE if error.reason is Reason.TOO_LARGE else Refusal.GARBAGE)
        await _abort(context, status_of(error))
    try:
        return (await intake.take(signal, body)).SerializeToString()
    except (Rejected, Retryable) as error:
        await _abort(context, status_of(error))


async def _abort(context: Context, status: Status) -> NoReturn:
    metadata = (("grpc-status-details-bin", status.SerializeToString()),)
    await context.abort(_CODES[status.code], status.message, metadata)


def decompressed(message: bytes, limit: int) -> bytes:
    """The message, whatever compression it came in. Raises Rejected."""
    if message[:2] == b"\x1f\x8b":
        return _inflated(message, limit, zlib.MAX_WBITS | 16)
    if len(message) > 1 and message[0] == 0x78 and int.from_bytes(message[:2], "big") % 31 == 0:
        return _inflated(message, limit, zlib.MAX_WBITS)
    return message


def _inflated(message: bytes, limit: int, window: int) -> bytes:
    inflater = zlib.decompressobj(window)
    try:
        body = inflater.decompress(message, limit)
    except zlib.error as error:
        raise Rejected(Reason.INVALID_EVENT, f"the message cannot be decompressed: {error}") from None
    if inflater.unconsumed_tail:
        raise Rejected(Reason.TOO_LARGE, f"the message has more than {limit} bytes")
    if not inflater.eof:
        raise Rejected(Reason.INVALID_EVENT, "the message is cut short")
    return body
