"""What HTTP and gRPC have in common: a message in, events handed over, an answer out.

`Intake.take` returns once everything is durable, and raises what the two ways then say in their own words:

===============  ================================================================
`Rejected`       The message is garbage, or too large: sending it again cannot help.
`Backpressure`   There is no room now; nothing was taken. Come back.
`Retryable`      It may be durable, or not: send it again.
===============  ================================================================

Items that cannot be taken do not spoil the others: the answer says how many they were, and why (a *partial success*).
What is of no interest here, such as a span of a database, is not refused: its sender has nothing to mend.

A message that is being taken is taken to its end, although its sender may go away meanwhile: what streams of metrics
were before must be in step with what is in the log.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Any, NamedTuple

from google.protobuf.message import DecodeError, Message
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest, ExportLogsServiceResponse
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from prometheus_client import Counter

from streammon.clock import Clock, system_clock
from streammon.config import Settings
from streammon.errors import Backpressure, Reason, Rejected
from streammon.events import EventType
from streammon.heartbeat import host_name
from streammon_agents.gateway.otlp import skim
from streammon_agents.gateway.otlp.json_form import from_json
from streammon_agents.gateway.otlp.logs import Logs
from streammon_agents.gateway.otlp.metrics import Metrics
from streammon_agents.gateway.otlp.spans import Read, Spans
from streammon_agents.gateway.otlp.values import Refusal
from streammon_agents.logs.redaction import redactor_of
from streammon_agents.source import Outlet

ITEMS = Counter("streammon_otlp_items", "Spans, data points and log records, by outcome", ["signal", "outcome"])
"""``outcome``: taken, ignored, or the `Refusal`."""
THREAD_BYTES = 1_000_000
"""A larger message is read beside the event loop; JSON, which takes longer, from a sixteenth of it on."""
FULL_S = 1.0
"""When to come back, where other messages take all the room."""


class Signal(StrEnum):
    """What is sent."""

    TRACES = "traces"
    METRICS = "metrics"
    LOGS = "logs"


class Kind(NamedTuple):
    """How one signal is sent, and what becomes of it."""

    service: str
    """Its gRPC service."""
    request: type[Message]
    response: type[Message]
    rejected: str
    """The field of the partial success that counts."""
    event_type: EventType


KINDS: dict[Signal, Kind] = {
    Signal.TRACES: Kind(
        "opentelemetry.proto.collector.trace.v1.TraceService",
        ExportTraceServiceRequest,
        ExportTraceServiceResponse,
        "rejected_spans",
        EventType.INFERENCE,
    ),
    Signal.METRICS: Kind(
        "opentelemetry.proto.collector.metrics.v1.MetricsService",
        ExportMetricsServiceRequest,
        ExportMetricsServiceResponse,
        "rejected_data_points",
        EventType.RESOURCE,
    ),
    Signal.LOGS: Kind(
        "opentelemetry.proto.collector.logs.v1.LogsService",
        ExportLogsServiceRequest,
        ExportLogsServiceResponse,
        "rejected_log_records",
        EventType.LOG,
    ),
}


class Intake:
    """Takes messages of all three signals, as many at one time as there is room for."""

    def __init__(
        self, out: Outlet, settings: Settings, clock: Clock = system_clock, since_unix_s: float | None = None
    ) -> None:
        limits, host = settings.agent.otlp, host_name(settings)
        self.max_message_bytes = limits.max_message_bytes
        self._out = out
        self._max_bytes = limits.max_in_flight_bytes
        self._bytes = 0
        self._spans = Spans(host, limits.model_attributes, limits.model_version_attributes)
        self._metrics = Metrics(host, limits.max_series, clock, since_unix_s)
        self._logs = Logs(host, clock, redactor_of(settings.agent.logs.redaction))
        self._in_turn = asyncio.Lock()
        self._taking: set[asyncio.Task[Message]] = set()

    async def take(self, signal: Signal, body: bytes, *, json: bool = False) -> Message:
        """The answer, once everything is durable. Raises Rejected, Backpressure, Retryable."""
        task = asyncio.create_task(self._take(signal, body, json))
        self._taking.add(task)
        task.add_done_callback(self._taken)
        return await asyncio.shield(task)

    def _taken(self, task: asyncio.Task[Message]) -> None:
        self._taking.discard(task)
        if not task.cancelled():
            task.exception()  # or asyncio complains of what a sender who went away did not hear

    async def close(self) -> None:
        """Give up what is being taken."""
        for task in list(self._taking):
            task.cancel()
        await asyncio.gather(*self._taking, return_exceptions=True)

    async def _take(self, signal: Signal, body: bytes, json: bool) -> Message:
        with self._room(len(body)):
            if signal is Signal.METRICS:
                async with self._in_turn:  # what is read depends on what became of the message before
                    return await self._take_metrics(body, json)
            request = await self._request(signal, body, json)
            read = await self._beside(len(body), self._reader(signal), request)
            return await self._handed_over(signal, read)

    async def _take_metrics(self, body: bytes, json: bool) -> Message:
        request = await self._request(Signal.METRICS, body, json)
        reading = await self._beside(len(body), self._metrics.read, request)
        answer = await self._handed_over(Signal.METRICS, reading.read(), reading.detail)
        reading.commit()
        return answer

    def _reader(self, signal: Signal) -> Callable[[Any], Read]:
        return self._spans.read if signal is Signal.TRACES else self._logs.read

    async def _handed_over(self, signal: Signal, read: Read, detail: str | None = None) -> Message:
        if read.events:
            await self._out.send(KINDS[signal].event_type, read.events)
        for reason, items in read.refused.items():
            self._out.refuse(reason, items)
            ITEMS.labels(signal, reason).inc(items)
        ITEMS.labels(signal, "taken").inc(len(read.events))
        ITEMS.labels(signal, "ignored").inc(read.ignored)
        return _answer(KINDS[signal], read, detail)

    async def _request(self, signal: Signal, body: bytes, json: bool) -> Any:
        try:
            return await self._beside(len(body) * (16 if json else 1), _parsed, signal, body, json)
        except Rejected as refusal:
            too_large = refusal.reason is Reason.TOO_LARGE
            self.refuse(Refusal.TOO_LARGE if too_large else Refusal.GARBAGE)
            raise

    def refuse(self, reason: Refusal) -> None:
        """Count a message of which nothing was taken."""
        self._out.refuse(reason)

    async def _beside(self, size: int, function: Callable[..., Any], *arguments: Any) -> Any:
        if size > THREAD_BYTES:
            return await asyncio.to_thread(function, *arguments)
        return function(*arguments)

    @contextmanager
    def _room(self, size: int) -> Iterator[None]:
        if self._bytes and self._bytes + size > self._max_bytes:
            raise Backpressure(f"{self._bytes} bytes are being taken already", FULL_S)
        self._bytes += size
        try:
            yield
        finally:
            self._bytes -= size


def _parsed(signal: Signal, body: bytes, json: bool) -> Message:
    request = KINDS[signal].request()
    if json:
        return from_json(body, request)
    skim.check(body, skim.OF_METRICS if signal is Signal.METRICS else skim.OF_OTHERS)
    try:
        request.ParseFromString(body)
    except DecodeError as error:
        raise Rejected(Reason.INVALID_EVENT, f"no {request.DESCRIPTOR.name}: {error}") from None
    return request


def _answer(kind: Kind, read: Read, detail: str | None) -> Message:
    """Fully taken: an empty one. Otherwise it counts what was not, which must not be sent again."""
    answer = kind.response()
    if read.refused:
        partial = answer.partial_success  # type: ignore[attr-defined]  # each response has one
        setattr(partial, kind.rejected, read.refused.total())
        reasons = ", ".join(f"{reason}: {items}" for reason, items in sorted(read.refused.items()))
        partial.error_message = f"{reasons} ({detail})" if detail else reasons
    return answer
