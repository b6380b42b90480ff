"""Log records to log events.

The body is the message, as JSON where it is no text; the severity is the level. Attributes with a meaning of their own
become the fields that are for it, all others are in ``fields``, as much of them as a log event may hold.

Secrets and personal data are taken out as of the lines of log files. What is said to language models and by them, which
instrumentations send as log records, too, is left out: the body of an event of ``gen_ai``, and all attributes of
``gen_ai`` but those that tell about a call (`_ABOUT_CALLS`).
"""

from __future__ import annotations

from collections import Counter
from itertools import islice
from typing import Any, get_args

import msgspec
from opentelemetry.proto.collector.logs.v1.logs_service_pb2 import ExportLogsServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue
from opentelemetry.proto.logs.v1.logs_pb2 import LogRecord

from streammon.clock import Clock
from streammon.events import Log
from streammon_agents.gateway.otlp.spans import Read
from streammon_agents.gateway.otlp.values import MAX_ATTRIBUTES, NS, Budget, Origin, hexadecimal, plain, scalar, text
from streammon_agents.logs.redaction import Redactor

MAX_MESSAGE = 16_384
"""Characters of a message; what is cut off ends with an ellipsis."""
MAX_ENTRIES = 256
"""Entries of ``fields``, inner ones included."""
MAX_CHARACTERS = 16_384
"""Of all texts in ``fields``."""

LEVELS = ("trace", "debug", "info", "warn", "error", "fatal")
"""By severity: four numbers each, from 1."""
CATEGORIES = frozenset(
    name for field in msgspec.structs.fields(Log) if field.name == "category" for part in get_args(field.type)
    for name in get_args(part)
)  # fmt: skip

GEN_AI = "gen_ai."
_ABOUT_CALLS = ("gen_ai.request.", "gen_ai.response.", "gen_ai.usage.", "gen_ai.operation.", "gen_ai.provider.")

_MEANT = {
    "request.id": "request_id",
    "http.request.id": "request_id",
    "user.id": "user",
    "enduser.id": "user",
    "event.outcome": "outcome",
    "event.action": "operation",
}
_CATEGORY = frozenset({"event.category", "category", "log.type"})
_ERROR = {"exception.type": "type", "exception.message": "message", "exception.stacktrace": "stack_trace"}


class Logs:
    """Reads log records; ``clock`` gives the time of those that have none."""

    def __init__(self, host: str, clock: Clock, redactor: Redactor) -> None:
        self._host, self._clock, self._redactor = host, clock, redactor

    def read(self, request: ExportLogsServiceRequest) -> Read:
        """The events of a request; every record is one."""
        now_ns = int(self._clock() * NS)
        events = []
        for resource_logs in request.resource_logs:
            origin = Origin(resource_logs.resource, self._host)
            for scope_logs in resource_logs.scope_logs:
                logger = text(scope_logs.scope.name)
                events += [
                    self._redactor.event(_event(record, origin, logger, now_ns)) for record in scope_logs.log_records
                ]
        return Read(events, Counter(), 0)


def _event(record: LogRecord, origin: Origin, logger: str | None, now_ns: int) -> dict[str, Any]:
    event: dict[str, Any] = {
        "time_unix_s": (record.time_unix_nano or record.observed_time_unix_nano or now_ns) / NS,
        "service": origin.service,
        "message": _message(record),
        "level": _level(record),
        "operation": text(record.event_name),
        "trace_id": hexadecimal(record.trace_id, 16),
        "span_id": hexadecimal(record.span_id, 8),
    }
    fields: dict[str, Any] = {"host": origin.host}
    if origin.instance is not None:
        fields["instance"] = origin.instance
    if logger is not None:
        fields["logger"] = logger
    _attributes(record, event, fields)
    event["fields"] = fields
    return {name: value for name, value in event.items() if value is not None}


def _attributes(record: LogRecord, event: dict[str, Any], fields: dict[str, Any]) -> None:
    budget = Budget(MAX_ENTRIES, MAX_CHARACTERS)
    for attribute in islice(record.attributes, MAX_ATTRIBUTES):
        key = attribute.key
        if key.startswith(GEN_AI) and not key.startswith(_ABOUT_CALLS) and key != "gen_ai.system":
            continue
        value = plain(attribute.value, budget)
        if key in _CATEGORY and value in CATEGORIES:
            event["category"] = value
        elif key in _ERROR and isinstance(value, str):
            event.setdefault("error", {})[_ERROR[key]] = value
        elif key in _MEANT and isinstance(value, str | int):
            event[_MEANT[key]] = text(value)
        elif budget.entries > 0:
            budget.entries -= 1
            fields[budget.told(key)] = value


def _message(record: LogRecord) -> str:
    budget = Budget(MAX_ENTRIES, MAX_MESSAGE)
    if (name := _event_name(record)).startswith(GEN_AI) or not record.HasField("body"):
        return name[:MAX_MESSAGE]
    value = plain(record.body, budget)
    if isinstance(value, str):
        return value
    return "" if value is None else msgspec.json.encode(value).decode()


def _event_name(record: LogRecord) -> str:
    """Before there was a field for it, it was an attribute."""
    if record.event_name:
        return record.event_name
    named = (each.value for each in islice(record.attributes, MAX_ATTRIBUTES) if each.key == "event.name")
    return text(scalar(next(named, AnyValue()))) or ""


def _level(record: LogRecord) -> str | None:
    """By the number; a text that is one of ours, or becomes one, where there is no number."""
    if 1 <= (severity := record.severity_number) <= 24:
        return LEVELS[(severity - 1) // 4]
    named = record.severity_text.lower()
    return _NAMES.get(named, text(named))


_NAMES = {"warning": "warn", "critical": "fatal", "information": "info", "notice": "info", "err": "error"}
