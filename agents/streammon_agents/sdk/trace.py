"""Traces: which request of which caller an event belongs to, after the W3C recommendation "Trace Context".

::

    with traced(request.headers):            # of HTTP, or those of a Kafka record
        monitor.record(...)                  # the event has trace_id and span_id
        await producer.send("next", value, headers=kafka_headers())

Where OpenTelemetry is used in the service already, its current span is what events belong to, and nothing has to be
done. A header that is not well-formed is ignored, as the recommendation asks.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple

HEADER = "traceparent"
_FORM = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.ASCII | re.DOTALL)
_NO_TRACE, _NO_SPAN = "0" * 32, "0" * 16

Headers = Mapping[str, Any] | Iterable[tuple[str | bytes, Any]]


class Trace(NamedTuple):
    """A span, as others name it. ``flags``: two hexadecimal digits, ``01`` is sampled."""

    trace_id: str
    span_id: str
    flags: str = "01"

    @property
    def header(self) -> str:
        """The value of ``traceparent``."""
        return f"00-{self.trace_id}-{self.span_id}-{self.flags}"


def parse(header: str) -> Trace | None:
    """A value of ``traceparent``; None if it is none (W3C Trace Context, section 3.2)."""
    found = _FORM.fullmatch(header.strip(" \t"))
    if found is None:
        return None
    version, trace_id, span_id, flags, rest = found.groups()
    if version == "ff" or (version == "00" and rest) or trace_id == _NO_TRACE or span_id == _NO_SPAN:
        return None
    return Trace(trace_id, span_id, flags)


_CURRENT: ContextVar[Trace | None] = ContextVar("streammon_trace", default=None)


@contextmanager
def traced(headers: Headers | None) -> Iterator[Trace | None]:
    """What is recorded in the block belongs to the trace that these headers name, if they do."""
    trace = _found(headers)
    token = _CURRENT.set(trace)
    try:
        yield trace
    finally:
        _CURRENT.reset(token)


def _found(headers: Headers | None) -> Trace | None:
    """The trace of the one header of that name; two of them are none."""
    pairs = headers.items() if isinstance(headers, Mapping) else headers or ()
    values = [_text(value) for name, value in pairs if _text(name).lower() == HEADER]
    return parse(values[0]) if len(values) == 1 else None


def _text(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


def current() -> Trace | None:
    """The span that now is: OpenTelemetry's if there is one, else that of `traced`."""
    opentelemetry = sys.modules.get("opentelemetry.trace")
    if opentelemetry is not None:
        context = opentelemetry.get_current_span().get_span_context()
        if context.is_valid:
            return Trace(f"{context.trace_id:032x}", f"{context.span_id:016x}", f"{context.trace_flags:02x}")
    return _CURRENT.get()


def http_headers() -> dict[str, str]:
    """What a request to another service says, so that its events belong to the same trace."""
    trace = current()
    return {HEADER: trace.header} if trace else {}


def kafka_headers() -> list[tuple[str, bytes]]:
    """The same for a record of Kafka."""
    return [(name, value.encode()) for name, value in http_headers().items()]
