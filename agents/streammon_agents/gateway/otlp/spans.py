"""Spans to inference events: which spans are requests to a model, and what they say.

A span counts if it is

1. a **model call**: it has ``gen_ai.*`` attributes, and its operation is none of `NOT_MODELS`;
2. a span that **names a model** by one of ``agent.otlp.model_attributes``, of any kind;
3. a **request served**: a span of kind SERVER with HTTP or RPC attributes. Its model is ``-``.

Every other span is ignored: internal steps, calls to databases, what a client sees of a request served elsewhere.

One request may well count several times, as different series: the HTTP request, and the model call inside it, which
has a model of its own. Within one series it counts once: libraries wrap each other, so a model call that contains one
of the same service and model is a wrapper, and is ignored. The inner span ends and comes first; it is remembered by
its parent's id, for the last `MAX_REMEMBERED` model calls.

Attributes with what people wrote or were answered are never read.

Sources: OpenTelemetry semantic conventions 1.38 (gen_ai, http, rpc) and those before 1.21; vLLM and SGLang (latencies).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from threading import Lock
from typing import Any, NamedTuple

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from streammon_agents.gateway.otlp.values import (
    MAX_ATTRIBUTES,
    NS,
    SCALARS,
    Origin,
    Refusal,
    Scalar,
    amount,
    hexadecimal,
    scalar,
    text,
)

NO_MODEL = "-"
"""The model of a request that names none."""
NOT_MODELS = frozenset({"create_agent", "invoke_agent", "execute_tool", "invoke_workflow", "retrieval"})
"""Operations of the conventions that call models, or have nothing to do with one."""
MAX_REMEMBERED = 16_384
OK, ERROR = Status.STATUS_CODE_OK, Status.STATUS_CODE_ERROR
SERVER = Span.SPAN_KIND_SERVER

_CURRENT = {
    "gen_ai.operation.name": "operation",
    "gen_ai.provider.name": "provider",
    "gen_ai.request.model": "asked_model",
    "gen_ai.response.model": "gave_model",
    "gen_ai.response.id": "event_id",
    "gen_ai.response.finish_reasons": "finish_reasons",
    "gen_ai.response.time_to_first_chunk": "ttft_s",
    "gen_ai.usage.input_tokens": "input_tokens",
    "gen_ai.usage.output_tokens": "output_tokens",
    "gen_ai.usage.cache_read.input_tokens": "cache_read_tokens",
    "gen_ai.usage.cache_creation.input_tokens": "cache_write_tokens",
    "gen_ai.usage.reasoning.output_tokens": "reasoning_tokens",
    "http.request.method": "http_method",
    "http.route": "http_route",
    "http.response.status_code": "http_status",
    "rpc.system.name": "rpc_system",
    "rpc.method": "rpc_method",
    "rpc.service": "rpc_service",
    "rpc.response.status_code": "rpc_status",
    "error.type": "error_type",
}
_OLDER = {
    "gen_ai.system": "provider",
    "gen_ai.request.id": "request_id",
    "gen_ai.usage.prompt_tokens": "input_tokens",
    "gen_ai.usage.completion_tokens": "output_tokens",
    "gen_ai.usage.cache_read_input_tokens": "cache_read_tokens",
    "gen_ai.usage.cached_tokens": "cache_read_tokens",
    "gen_ai.usage.cache_creation_input_tokens": "cache_write_tokens",
    "gen_ai.usage.reasoning_tokens": "reasoning_tokens",
    "gen_ai.latency.time_to_first_token": "ttft_s",
    "gen_ai.server.time_to_first_token": "ttft_s",
    "gen_ai.server.time_per_output_token": "tpot_s",
    "gen_ai.latency.time_in_queue": "queue_s",
    "http.method": "http_method",
    "http.status_code": "http_status",
    "rpc.system": "rpc_system",
    "rpc.grpc.status_code": "rpc_status",
}
"""Of two attributes for one thing the current one counts."""

_OF_MODEL_CALLS = frozenset({"asked_model", "gave_model", "input_tokens", "output_tokens"})

Found = dict[str, Scalar]


class Read(NamedTuple):
    """What was in a request: the events, and what became of the other items."""

    events: list[dict[str, Any]]
    refused: Counter[Refusal]
    ignored: int


class Spans:
    """Reads spans; remembers the parents of the last model calls."""

    def __init__(self, host: str, model_attributes: Iterable[str] = (), version_attributes: Iterable[str] = ()) -> None:
        self._host = host
        named = dict.fromkeys(model_attributes, "named_model") | dict.fromkeys(version_attributes, "model_version")
        self._slots: Mapping[str, str] = {**_CURRENT, **_OLDER, **named}
        self._wrappers: dict[tuple[bytes, str, str], None] = {}
        self._one_at_a_time = Lock()  # large messages are read in threads

    def read(self, request: ExportTraceServiceRequest) -> Read:
        """The events of a request."""
        read, calls = Read([], Counter(), 0), []
        ignored = 0
        for resource_spans in request.resource_spans:
            origin = Origin(resource_spans.resource, self._host)
            for scope_spans in resource_spans.scope_spans:
                for span in scope_spans.spans:
                    found = self._found(span)
                    if (model := _model(span, found)) is None:
                        ignored += 1
                    elif not 0 < span.start_time_unix_nano <= span.end_time_unix_nano:
                        read.refused[Refusal.BAD_TIME] += 1
                    elif _is_model_call(found):
                        calls.append((span, found, model, origin))
                    else:
                        read.events.append(_event(span, found, model, origin))
        outer = self._outermost(calls)
        read.events.extend(_event(*call) for call in outer)
        return read._replace(ignored=ignored + len(calls) - len(outer))

    def _outermost(self, calls: list[Any]) -> list[Any]:
        """The model calls that are no wrappers of others, of this request or of one before."""
        with self._one_at_a_time:
            for span, _, model, origin in calls:
                if span.parent_span_id:
                    self._wrappers[span.parent_span_id, origin.service, model] = None
            kept = [call for call in calls if (call[0].span_id, call[3].service, call[2]) not in self._wrappers]
            for key in list(islice(self._wrappers, max(0, len(self._wrappers) - MAX_REMEMBERED))):
                del self._wrappers[key]
            return kept

    def _found(self, span: Span) -> Found:
        """What the span says, by the names of `_CURRENT`."""
        found: Found = {}
        slots = self._slots
        for attribute in islice(span.attributes, MAX_ATTRIBUTES):
            key = attribute.key
            if (slot := slots.get(key)) is None or (slot in found and key in _OLDER):
                continue
            value = attribute.value
            if (kind := value.WhichOneof("value")) in SCALARS:
                found[slot] = getattr(value, kind)
            elif slot == "finish_reasons" and (first := _first(value)) is not None:
                found[slot] = first
        return found


def _first(value: AnyValue) -> Scalar | None:
    values = value.array_value.values
    return scalar(values[0]) if values else None


def _is_model_call(found: Found) -> bool:
    if (operation := found.get("operation")) is not None:
        return operation not in NOT_MODELS
    return not _OF_MODEL_CALLS.isdisjoint(found)


def _model(span: Span, found: Found) -> str | None:
    """The model of a span that counts; None of one that does not."""
    if _is_model_call(found):
        return text(found.get("asked_model")) or text(found.get("gave_model")) or NO_MODEL
    if (named := text(found.get("named_model"))) is not None:
        return named
    served = span.kind == SERVER and ("http_method" in found or "rpc_system" in found)
    return NO_MODEL if served else None


def _event(span: Span, found: Found, model: str, origin: Origin) -> dict[str, Any]:
    start_ns, end_ns = span.start_time_unix_nano, span.end_time_unix_nano
    error_type = _error_type(span, found)
    event = {
        "time_unix_s": end_ns / NS,
        "service": origin.service,
        "model": model,
        "model_version": _version(found, model),
        "endpoint": _endpoint(found),
        "host": origin.host,
        "duration_s": (end_ns - start_ns) / NS,
        "status": "ok" if error_type is None else "error",
        "error_type": error_type,
        "trace_id": hexadecimal(span.trace_id, 16),
        "span_id": hexadecimal(span.span_id, 8),
    }
    for slot, value in found.items():
        if (told := _AS_THEY_ARE.get(slot)) is not None:
            event[slot] = told(value)
    if "finish_reasons" in found:
        event["features"] = {"finish_reason": text(found["finish_reasons"]) or NO_MODEL}
    return {name: value for name, value in event.items() if value is not None}


_AS_THEY_ARE: Mapping[str, Callable[[Scalar], Any]] = {
    **dict.fromkeys(("provider", "event_id", "request_id"), text),
    **dict.fromkeys(("input_tokens", "output_tokens", "reasoning_tokens", "http_status"), amount),
    **dict.fromkeys(("cache_read_tokens", "cache_write_tokens", "ttft_s", "tpot_s", "queue_s"), amount),
}


def _version(found: Found, model: str) -> str | None:
    """What the provider made of the model that was asked for, such as ``gpt-4o-2024-08-06`` of ``gpt-4o``."""
    gave = text(found.get("gave_model"))
    return text(found.get("model_version")) or (gave if gave != model else None)


def _endpoint(found: Found) -> str | None:
    """What was asked of the service; never a raw path, of which there are too many."""
    if (named := text(found.get("http_route")) or text(found.get("operation"))) is not None:
        return named
    method = text(found.get("rpc_method"))
    if method is None:
        return None
    service = text(found.get("rpc_service"))
    return method if service is None or method.startswith(service) else f"{service}/{method}"[:512]


def _error_type(span: Span, found: Found) -> str | None:
    """What went wrong; None if nothing did. A 4xx is the client's fault, and no error of the service."""
    status = span.status.code
    if status == OK:
        return None
    if "error_type" in found and (named := text(found["error_type"])) is not None:
        return named
    if "http_status" in found and (http_status := amount(found["http_status"]) or 0) >= 500:
        return f"{http_status:g}"
    if status == ERROR:
        return _exception(span) or text(found.get("rpc_status")) or "error"
    return None


def _exception(span: Span) -> str | None:
    for event in islice(span.events, MAX_ATTRIBUTES):
        if event.name == "exception":
            for attribute in islice(event.attributes, MAX_ATTRIBUTES):
                if attribute.key == "exception.type":
                    return text(scalar(attribute.value))
    return None
