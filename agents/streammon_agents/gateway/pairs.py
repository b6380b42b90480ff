"""Requests and responses that come apart become predictions: joined by id, in bounded memory and time.

A request and its response are two CloudEvents under one id, sent by queues of their own, so either may come first.
Whichever does waits for the other: ``answer_within_s`` at most, and no more than ``max_unanswered`` of them or
`MAX_BYTES` at one time. Half a prediction is no event, because nobody knows how long it took: it is dropped, counted as
``unanswered`` (a request; KServe tells of no response that failed) or ``unasked`` (a response).

What waits is in memory only; a sender who was answered 200 for one half may lose it with the agent.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import zip_longest
from typing import Any, NamedTuple

import msgspec

from streammon_agents.gateway.payloads import Payload, prediction_of

MAX_BYTES = 64 * 1024**2
"""Of the halves that wait, together."""
OVERHEAD_BYTES = 500
"""About what keeping one costs beside its rows."""


class Loss(StrEnum):
    """Why a prediction was given up."""

    UNANSWERED = "unanswered"
    UNASKED = "unasked"
    INSTANCES = "too_many_instances"


class Id(NamedTuple):
    """What request and response have in common."""

    service: str
    model: str
    endpoint: str
    id: str


@dataclass(frozen=True)
class Half:
    """A request or a response, as it came."""

    of_request: bool
    at_unix_s: float
    payload: Payload
    trace_id: str | None = None


class _Waiting(NamedTuple):
    of_request: bool
    until: float
    instances: int
    packed: bytes


class Pairs:
    """``now`` is any clock that does not go back, in seconds."""

    def __init__(self, within_s: float, most: int, most_bytes: int = MAX_BYTES) -> None:
        self._within_s, self._most, self._most_bytes = within_s, most, most_bytes
        self._waiting: dict[Id, _Waiting] = {}  # in the order they came, as is `_done`
        self._done: dict[Id, None] = {}
        self._bytes = 0

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def add(self, of: Id, half: Half, now: float) -> tuple[Half, Half] | None:
        """Request and response, once both are here. What was seen before is left out: senders may repeat."""
        if of in self._done:
            return None
        other = self._waiting.get(of)
        if other is None:
            self._keep(of, half, now)
            return None
        if other.of_request == half.of_request:
            return None
        self._forget(of)
        self._done[of] = None
        if len(self._done) > self._most:
            del self._done[next(iter(self._done))]
        found = _HALVES.decode(other.packed)
        return (found, half) if found.of_request else (half, found)

    def give_up(self, now: float) -> Iterator[tuple[Loss, int]]:
        """The predictions that are not waited for any longer, by why; and forget them."""
        while self._waiting:
            of, oldest = next(iter(self._waiting.items()))
            full = len(self._waiting) > self._most or self._bytes > self._most_bytes
            if oldest.until > now and not full:
                return
            self._forget(of)
            yield Loss.UNANSWERED if oldest.of_request else Loss.UNASKED, oldest.instances

    def _keep(self, of: Id, half: Half, now: float) -> None:
        packed = _ENCODER.encode(half)  # a fraction of the memory that its objects take
        self._waiting[of] = _Waiting(half.of_request, now + self._within_s, max(half.payload.instances, 1), packed)
        self._bytes += len(packed) + OVERHEAD_BYTES

    def _forget(self, of: Id) -> None:
        self._bytes -= len(self._waiting.pop(of).packed) + OVERHEAD_BYTES


_ENCODER = msgspec.msgpack.Encoder()
_HALVES: msgspec.msgpack.Decoder[Half] = msgspec.msgpack.Decoder(Half)


def inferences(of: Id, request: Half, response: Half) -> tuple[list[dict[str, Any]], int]:
    """One event for each instance, and how many instances are left out because there are too many.

    The duration is the request's, for all of them: the difference of the two times, which are as exact as the sender's
    queues. They may even cross, and then it is 0.
    """
    asked, answered = request.payload, response.payload
    shared = {
        "time_unix_s": request.at_unix_s,
        "service": of.service,
        "model": answered.model or asked.model or of.model,
        "model_version": answered.model_version or asked.model_version,
        "endpoint": of.endpoint or None,
        "request_id": of.id,
        "trace_id": request.trace_id or response.trace_id,
        "duration_s": max(response.at_unix_s - request.at_unix_s, 0.0),
        "status": "ok" if answered.error is None else "error",
        "error_type": answered.error,
        **(answered.tokens or {}),
    }
    instances = max(asked.instances, answered.instances, 1)
    rows = list(zip_longest(asked.rows, answered.rows, fillvalue=None)) or [(None, None)]
    events = []
    for at, (features, outputs) in enumerate(rows):
        said = prediction_of(outputs or {}, answered.named)._asdict()
        own = {"event_id": event_id(of.id, at, instances), "features": features or None}
        events.append({name: value for name, value in (shared | own | said).items() if value is not None})
    return events, instances - len(events)


def event_id(request_id: str, at: int, instances: int) -> str:
    """The id that labels name: that of the request, and the number of the instance where there are several.

    >>> event_id("a1", 0, 1), event_id("a1", 2, 3)
    ('a1', 'a1/2')
    """
    return request_id if instances == 1 else f"{request_id}/{at}"
