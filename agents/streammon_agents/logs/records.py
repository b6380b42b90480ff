"""Lines to `log` events: JSON objects by the names that loggers give their fields, logfmt alike, and text by its form.

What has a name that means something is put where it belongs (`NAMES`); everything else stays, as it is and in bounds,
in ``fields``. The message of a text is the whole line, its time and level included: nothing is lost by a wrong guess.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NamedTuple, get_args

import msgspec

from streammon.config import LogCategory
from streammon_agents.logs import levels, times
from streammon_agents.logs.assembly import whole_words
from streammon_agents.logs.times import Zone

MAX_FIELDS: Final = 100
"""Values in ``fields``, those of nested objects included."""
MAX_TEXT: Final = 8192
"""Characters of one string in ``fields``, and of every other text but the message and a stack trace."""
MAX_DEPTH: Final = 6
FUTURE_S: Final = 60.0
"""A line from further ahead has the wrong zone or clock: it gets the time at which it was read."""

CATEGORIES: Final = frozenset(get_args(LogCategory))

# What loggers call things, the best name first: ECS, OpenTelemetry, structlog, python-json-logger, zap, zerolog,
# logback, log4j2, bunyan, pino, slog, Serilog, GCP, Datadog.
NAMES: Final[Mapping[str, tuple[str, ...]]] = {
    "message": ("message", "msg", "event", "body", "@message", "@m", "short_message", "log", "text",
                "body.stringValue"),
    "level": ("log.level", "level", "severity", "severity_text", "severityText", "levelname", "level_name", "lvl",
              "loglevel", "log_level", "@l"),
    "levelno": ("levelno",),
    "severity_number": ("severity_number", "severityNumber"),
    "time": ("@timestamp", "timestamp", "time", "ts", "asctime", "datetime", "date", "eventTime", "timeUnixNano",
             "observedTimeUnixNano", "timeMillis", "created", "@t", "t"),
    "service": ("service.name", "service", "serviceName", "service_name", "dd.service", "otelServiceName"),
    "trace_id": ("trace.id", "trace_id", "traceId", "traceID", "dd.trace_id", "otelTraceID", "@tr",
                 "logging.googleapis.com/trace", "trace"),
    "span_id": ("span.id", "span_id", "spanId", "spanID", "dd.span_id", "otelSpanID", "@sp",
                "logging.googleapis.com/spanId", "span"),
    "request_id": ("http.request.id", "request_id", "requestId", "request.id", "requestID", "req_id", "reqId", "req.id",
                   "x_request_id", "x-request-id", "correlation_id", "correlationId"),
    "user": ("user.name", "user.id", "user", "user_id", "userId", "username", "user.email", "enduser.id", "usr.id"),
    "operation": ("event.action", "operation", "action"),
    "outcome": ("event.outcome", "outcome"),
    "category": ("event.category", "log_type", "category", "log.type"),
    "error_type": ("error.type", "exception.type", "err.type", "err.name", "error.kind", "error.class", "exc_type",
                   "error.name", "exception.class", "thrown.name", "exception_class"),
    "error_message": ("error.message", "exception.message", "err.message", "error_message", "thrown.message", "error",
                      "exception_message", "err"),
    "error_stack": ("error.stack_trace", "exception.stacktrace", "err.stack", "error.stack", "exc_info", "exception",
                    "stack_trace", "stacktrace", "stack", "@x", "thrown.extendedStackTrace", "exc_text"),
}  # fmt: skip
_WANTED: Final = {name: (target, at) for target, names in NAMES.items() for at, name in enumerate(names)}
_OPENED: Final = {name[:at] for name in _WANTED for at, letter in enumerate(name) if letter == "." and at} | {
    "attributes",
    "resource",
}
"""Objects whose members are looked at, too."""


class Line(NamedTuple):
    """One event as its file has it."""

    text: str
    read_unix_s: float
    framed_time: str = ""
    stream: str = ""
    cut_bytes: int = 0


class Reading(NamedTuple):
    """How the lines of one file are understood."""

    service: str
    fixed_service: bool = False
    category: str | None = None
    """Of all lines, whatever they say."""
    usual_category: str = "app"
    format: str = "auto"
    local: bool = False
    fields: Mapping[str, str] = {}


def event(line: Line, reading: Reading) -> dict[str, Any]:
    """A `streammon.events.Log`, without what is None."""
    zone = Zone(reading.local, line.read_unix_s)
    found = _structured(line.text, reading.format)
    made = _of_text(line.text, zone) if found is None else _of_fields(found, zone)
    fields = dict(reading.fields)
    if line.stream:
        fields["log.iostream"] = line.stream
    if line.cut_bytes:
        fields["log.cut_bytes"] = line.cut_bytes  # type: ignore[assignment]  # the one number among them
    made["fields"] = {**made.get("fields", {}), **fields}
    _set_time(made, line, zone)
    made["service"] = reading.service if reading.fixed_service else made.get("service") or reading.service
    made["category"] = reading.category or made.get("category") or reading.usual_category
    return {name: value for name, value in made.items() if value not in (None, "", {})} | {"message": made["message"]}


def _set_time(made: dict[str, Any], line: Line, zone: Zone) -> None:
    """What the line says, else its runtime, else when it was read."""
    said = made.pop("time", None)
    framed = times.in_text(line.framed_time, zone) if said is None and line.framed_time else None
    time_unix_s = said if said is not None else framed if framed is not None else line.read_unix_s
    if time_unix_s > line.read_unix_s + FUTURE_S:
        made["fields"]["log.claimed_time_unix_s"] = time_unix_s
        time_unix_s = line.read_unix_s
    made["time_unix_s"] = time_unix_s


# --- fields -------------------------------------------------------------------------------------------------

_decode = msgspec.json.Decoder().decode
_LOGFMT: Final = re.compile(r"([A-Za-z_@][\w.@/-]*)=(?:\"((?:[^\"\\]|\\.)*)\"|([^\s\"]*))(?:\s|$)")
_LOGFMT_HINT: Final = re.compile(r"(?:^|\s)(?:level|lvl|severity)=\S+")


def _structured(text: str, format_: str) -> dict[str, Any] | None:
    """The fields of a JSON object or of logfmt; None: it is text."""
    if format_ == "text":
        return None
    stripped = text.strip()
    if stripped[:1] == "{":
        return _json(stripped)
    if format_ == "auto" and _LOGFMT_HINT.search(text, 0, 300) and ("msg=" in text or "message=" in text):
        return _logfmt(text)
    return None


def _json(text: str) -> dict[str, Any] | None:
    try:
        decoded = _decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        decoded = _with_nan(text)
    return decoded if isinstance(decoded, dict) else None


_NAN: Final = re.compile(r"[:\[,]\s*-?(?:NaN|Infinity)\b")


def _with_nan(text: str) -> Any:
    """Python's own `json` writes NaN, which is no JSON, and what trains models writes it often."""
    if _NAN.search(text) is None or "\\ud" in text.lower():
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _logfmt(text: str) -> dict[str, Any]:
    return {name: _unquoted(quoted) if quoted else plain for name, quoted, plain in _LOGFMT.findall(text)}


def _unquoted(text: str) -> str:
    try:
        return str(_decode(f'"{text}"'))
    except (msgspec.DecodeError, UnicodeError):
        return text


def _of_fields(found: dict[str, Any], zone: Zone) -> dict[str, Any]:
    chosen: dict[str, tuple[int, str, Any]] = {}
    for name, value in _candidates(found, "", 0):
        target, rank = _WANTED[name]
        if target == "time":
            value = times.of_value(value, zone)  # noqa: PLW2901 - what it says, not how
        if _ACCEPTS[target](value) and (target not in chosen or rank < chosen[target][0]):
            chosen[target] = rank, name, value
    values = {target: value for target, (_, _, value) in chosen.items()}
    used = {name for _, name, _ in chosen.values()}
    made = _made(values)
    made["fields"] = Bounded().object(_without(found, used, ""), 0)
    if not made["message"]:
        made["message"] = (made.get("error") or {}).get("message") or ""
    return made


def _candidates(found: Mapping[str, Any], prefix: str, depth: int) -> Iterator[tuple[str, Any]]:
    """Names, dotted where nested, that mean something; those of OpenTelemetry's attributes have no prefix."""
    for name, value in found.items():
        dotted = prefix + name
        if dotted in _WANTED:
            yield dotted, value
        if type(value) is dict and depth < 3:
            if name in {"attributes", "resource"}:
                yield from _candidates(value, "", depth + 1)
            elif dotted in _OPENED:
                yield from _candidates(value, f"{dotted}.", depth + 1)


def _without(found: Mapping[str, Any], used: set[str], prefix: str) -> dict[str, Any]:
    """What is left; objects that are empty thereby go, too."""
    left: dict[str, Any] = {}
    for name, value in found.items():
        dotted = prefix + name
        if dotted in used:
            continue
        if type(value) is dict and (dotted in _OPENED or name in {"attributes", "resource"}):
            inner = _without(value, used, "" if name in {"attributes", "resource"} else f"{dotted}.")
            if inner:
                left[name] = inner
        else:
            left[name] = value
    return left


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _is_id(value: Any) -> bool:
    return (isinstance(value, str) and bool(value)) or (isinstance(value, int) and not isinstance(value, bool))


def _is_category(value: Any) -> bool:
    return _category(value) is not None


_ACCEPTS: Final[Mapping[str, Callable[[Any], bool]]] = {
    "message": lambda value: isinstance(value, str),
    "level": lambda value: levels.level(value) is not None,
    "levelno": lambda value: isinstance(value, int | float) and levels.python(value) is not None,
    "severity_number": lambda value: isinstance(value, int) and levels.otel(value) is not None,
    "time": lambda value: value is not None,
    "service": _is_text,
    "trace_id": _is_id,
    "span_id": _is_id,
    "request_id": _is_id,
    "user": _is_id,
    "operation": _is_text,
    "outcome": _is_text,
    "category": _is_category,
    "error_type": _is_text,
    "error_message": _is_text,
    "error_stack": _is_text,
}
"""A field of another type than it should have keeps its name, and its place among the others."""


def _made(values: Mapping[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = {
        name: str(values[name])[:MAX_TEXT]
        for name in ("service", "trace_id", "span_id", "request_id", "user", "operation", "outcome")
        if name in values
    }
    made["message"] = values.get("message", "")
    made["level"] = _level(values)
    if "time" in values:
        made["time"] = values["time"]
    if "category" in values:
        made["category"] = _category(values["category"])
    made["error"] = _error(values)
    return made


def _level(values: Mapping[str, Any]) -> str | None:
    if "level" in values:
        return levels.level(values["level"])
    if "levelno" in values:
        return levels.python(values["levelno"])
    return levels.otel(values["severity_number"]) if "severity_number" in values else None


_OTHER_NAMES: Final = {"iam": "authorization", "application": "app", "auth": "authentication",
                       "data-access": "data_access",
                       "intrusion_detection": "security", "malware": "security", "threat": "security"}  # fmt: skip


def _category(value: Any) -> str | None:
    """ECS has lists of them, and names of its own; the first that is known."""
    for each in value if isinstance(value, list) else [value]:
        name = each.lower() if isinstance(each, str) else ""
        if (known := _OTHER_NAMES.get(name, name)) in CATEGORIES:
            return known
    return None


def _error(values: Mapping[str, Any]) -> dict[str, Any] | None:
    error = {name: values[f"error_{name}"] for name in ("type", "message", "stack") if f"error_{name}" in values}
    if "stack" in error and "type" not in error:
        error = {**trace(error["stack"]), **error}
    return error or None


class Bounded:
    """Copies what is left of an event, so much of it as is allowed."""

    def __init__(self) -> None:
        self._left = MAX_FIELDS

    def object(self, value: Mapping[str, Any], depth: int) -> dict[str, Any]:
        copy: dict[str, Any] = {}
        for name, each in value.items():
            if self._left <= 0:
                copy["log.cut_fields"] = True
                break
            copy[name[:256]] = self._value(each, depth + 1)
        return copy

    def _value(self, value: Any, depth: int) -> Any:
        kind = type(value)
        if kind is dict:
            return self.object(value, depth) if depth < MAX_DEPTH else "[too deep]"
        if kind is list:
            return (
                [self._value(each, depth + 1) for each in value[: max(self._left, 0)]]
                if depth < MAX_DEPTH
                else "[too deep]"
            )
        self._left -= 1
        if kind is str:
            return value if len(value) <= MAX_TEXT else f"{whole_words(value[:MAX_TEXT])}…"
        if kind is float and not math.isfinite(value):
            return str(value)
        return value if kind is not int or -(2**53) <= value <= 2**53 else str(value)


# --- text ---------------------------------------------------------------------------------------------------

_ACCESS: Final = re.compile(
    r"\S{1,200} \S{1,100} (\S{1,200}) \[[^\]]{20,40}\] "
    r'"(?:([A-Z]{3,10}) (\S{1,2000}) HTTP/[\d.]{1,3}|[^"]{0,2000})" (\d{3}) (\d{1,15}|-)'
)
_KLOG_LEVELS: Final = {"I": "info", "W": "warn", "E": "error", "F": "fatal"}
_KLOG: Final = re.compile(r"[IWEF]\d{4} \d\d:\d\d:\d\d")
_APACHE_LEVEL: Final = re.compile(r"\[[\w-]{0,30}:(\w{3,10})\] ")
_LOGFMT_LEVEL: Final = re.compile(r"(?:^|\s)(?:level|lvl|severity)=\"?(\w{1,15})")


def _of_text(text: str, zone: Zone) -> dict[str, Any]:
    made: dict[str, Any] = {"message": text, "time": times.in_text(text, zone)}
    if (access := _ACCESS.match(text)) is not None:
        return made | _of_access(access)
    made["level"] = _text_level(text)
    if "\n" in text and (error := trace(text)):
        made["error"] = error
        made["level"] = made["level"] or "error"
    return made


def _text_level(text: str) -> str | None:
    if text[:1] in _KLOG_LEVELS and _KLOG.match(text):
        return _KLOG_LEVELS[text[0]]
    if (level := levels.in_text(text)) is not None:
        return level
    match = _APACHE_LEVEL.search(text, 0, 120) or _LOGFMT_LEVEL.search(text, 0, 300)
    return levels.named(match[1]) if match else None


def _of_access(access: re.Match[str]) -> dict[str, Any]:
    """Common and combined log format, as nginx, Apache and others write it."""
    user, method, path, status, size = access.groups()
    code = int(status)
    fields: dict[str, Any] = {"http.response.status_code": code}
    if method:
        fields |= {"http.request.method": method, "url.path": path.partition("?")[0]}
    if size.isdecimal():
        fields["http.response.body.bytes"] = int(size)
    made = {"level": "error" if code >= 500 else "warn" if code >= 400 else "info", "fields": fields,
            "outcome": "failure" if code >= 400 else "success"}  # fmt: skip
    return made if user == "-" else made | {"user": user}


_PYTHON_END: Final = re.compile(r"^([A-Za-z_][\w.]{0,200})(?:: (.*))?$", re.MULTILINE)
_JAVA_HEAD: Final = re.compile(
    r"^(?:Exception in thread \"[^\"\n]{0,200}\" )?((?:[a-z_][\w$]{0,100}\.){1,20}[A-Z][\w$]{0,100})(?:: (.*))?$",
    re.MULTILINE,
)
_GO_HEAD: Final = re.compile(r"^(panic|fatal error): (.*)$", re.MULTILINE)


def trace(text: str) -> dict[str, str]:
    """Type, message and stack of what a stack trace tells, empty if it is none."""
    if (at := text.find("Traceback (most recent call last):")) >= 0:
        ends = [match for match in _PYTHON_END.finditer(text, at) if match.start() > at]
        return _told(ends[-1] if ends else None, text[at:])
    if "\n\tat " in text or "\n    at " in text:
        match = _JAVA_HEAD.search(text)
        return _told(match, text[match.start() :] if match else text)
    if (match := _GO_HEAD.search(text)) and "goroutine " in text:
        return _told(match, text[match.start() :])
    return {}


def _told(match: re.Match[str] | None, stack: str) -> dict[str, str]:
    if match is None:
        return {"stack": stack}
    return {"type": match[1], **({"message": match[2]} if match[2] else {}), "stack": stack}
