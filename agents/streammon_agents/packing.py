"""Events into numbered batches, and when to try again: what every agent shares.

A `Packer` promises that the batches of one record key are numbered 0, 1, 2, … without gaps, and that no
batch is larger than a record may be. Agents do not know partitions, so each record key gets a boot id of
its own, ``BOOT/KEY``: sending the same bytes again is then always safe, because the processor recognises
the number.
"""

from __future__ import annotations

import logging
import re
import secrets
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from streammon.backoff import Backoff
from streammon.broker import Headers, Outgoing
from streammon.errors import Backpressure, Reason, Rejected, Retryable
from streammon.events import KEYS, EventType, record_key
from streammon.topics import MAX_RECORD_BYTES, TOPIC_OF
from streammon.wire import SCHEMA_HEADER, Density, Identity, encode

log = logging.getLogger("streammon.agents")

MAX_KEYS = 1000
"""Record keys numbered at one time; one more, and all start over under a new boot id."""
BACKOFF = Backoff(longest_s=5.0)
LONGEST_RETRY_AFTER_S = 60.0
_REFUSALS = frozenset({400, 413, 415, 422})

Event = Mapping[str, Any]

TRACE_HEADER = "traceparent"
TRACEPARENT = re.compile(r"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}", re.ASCII)


class Batch(NamedTuple):
    """Events on their way: the bytes, and what is lost if they never arrive."""

    event_type: EventType
    key: bytes
    value: bytes
    events: int
    dropped: int
    """Events lost before, which this batch reports."""
    headers: Headers = ()
    """Beside the version of the schema: ``traceparent``, where all events are of one span."""

    @property
    def outgoing(self) -> Outgoing:
        """The batch as a record."""
        return Outgoing(TOPIC_OF[self.event_type], self.key, self.value, (SCHEMA_HEADER, *self.headers))


class Packed(NamedTuple):
    """Batches in sending order, and the losses that none of them reports yet."""

    batches: list[Batch]
    unreported: int


class Packer:
    """Numbers the batches of one life of one agent."""

    def __init__(self, agent: str) -> None:
        self._agent = agent
        self._start_over()

    def pack(self, event_type: EventType, events: Sequence[Event], dropped: int = 0) -> Packed:
        """One batch a record key, more if too large; the first one reports ``dropped``.

        An event that cannot be encoded, or is too large by itself, is left out and counted as dropped.
        """
        batches: list[Batch] = []
        for key, group in _by_key(event_type, events).items():
            dropped = self._add(batches, event_type, key, group, dropped)
        return Packed(batches, dropped)

    def _add(self, batches: list[Batch], event_type: EventType, key: bytes, events: list[Event], dropped: int) -> int:
        """Add the events as one batch, or as their halves; the losses not yet reported."""
        value = self._encode(event_type, key, events, dropped)
        if value is not None:
            batches.append(Batch(event_type, key, value, len(events), dropped, _trace_headers(events)))
            self._next[event_type, key] += 1
            return 0
        if len(events) == 1:
            return dropped + 1
        middle = len(events) // 2
        dropped = self._add(batches, event_type, key, events[:middle], dropped)
        return self._add(batches, event_type, key, events[middle:], dropped)

    def _encode(self, event_type: EventType, key: bytes, events: list[Event], dropped: int) -> bytes | None:
        identity = self._identity(event_type, key)
        try:
            [value] = encode(event_type, events, Density.PACKED, identity, dropped)
        except Exception:
            log.exception("%s events cannot be encoded; those at fault are dropped", event_type)
            return None
        return value if len(value) <= MAX_RECORD_BYTES else None

    def _identity(self, event_type: EventType, key: bytes) -> Identity:
        if (event_type, key) not in self._next and len(self._next) >= MAX_KEYS:
            self._start_over()
        seq = self._next.setdefault((event_type, key), 0)
        return Identity(self._agent, f"{self._boot}/{key.decode()}", seq)

    def _start_over(self) -> None:
        self._boot = secrets.token_hex(8)
        self._next: dict[tuple[EventType, bytes], int] = {}


def _trace_headers(events: Sequence[Event]) -> Headers:
    """W3C Trace Context, for consumers that go on with the trace; ids of another form are left out."""
    trace_id, span_id = events[0].get("trace_id"), events[0].get("span_id")
    if not (trace_id and span_id) or any(
        event.get("span_id") != span_id or event.get("trace_id") != trace_id for event in events
    ):
        return ()
    value = f"00-{trace_id}-{span_id}-01"
    return ((TRACE_HEADER, value.encode()),) if TRACEPARENT.fullmatch(value) else ()


def _by_key(event_type: EventType, events: Sequence[Event]) -> dict[bytes, list[Event]]:
    groups: dict[bytes, list[Event]] = {}
    for event in events:
        key = record_key(event_type, tuple(event[name] for name in KEYS[event_type]))
        groups.setdefault(key, []).append(event)
    return groups


def judge(status: int, reason: str, retry_after: str, text: str) -> None:
    """Raise what an answer by HTTP says of a batch.

    Anything but a refusal of this very batch may pass, even a 404 while a proxy is being set up.
    """
    if status < 300:
        return
    said = f"HTTP {status} {reason}: {text[:500]}"
    if status in _REFUSALS:
        raise Rejected(Reason.REFUSED, said)
    if status == 429:
        raise Backpressure(said, float(retry_after) if retry_after.isdecimal() else 1.0)
    raise Retryable(said)


def pause_s(failure: Retryable, attempt: int) -> float:
    """Seconds until the next try after so many in vain: as the other side asks, else jittered backoff."""
    if isinstance(failure, Backpressure):
        return min(max(failure.retry_after_s, 0.0), LONGEST_RETRY_AFTER_S)
    return BACKOFF.pause_s(attempt)
