"""Newline-delimited JSON: many values in one body, each line judged by itself.

Every line is one value of any of the four densities. A bad line is refused and named; the others are taken.

Most lines are single events, and a record for each would cost more than the event. Lines of one record key are
therefore written together, as an array of the very bytes that came. A line that carries an identity stays a
record of its own: two equal identities in one array would be one batch, where sent apart the second is a
duplicate.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import reduce
from operator import attrgetter, or_
from typing import Any, NamedTuple

import msgspec

from streammon.broker import Outgoing
from streammon.errors import Reason, Rejected
from streammon.events import KEYS, STRUCTS, Event, EventType, record_key
from streammon.topics import MAX_RECORD_BYTES, TOPIC_OF
from streammon.wire import MAX_EVENTS, SCHEMA_HEADER, ObjectRows, claimed_events, codec_of, route, well_formed

ARRAY_EVENTS = 1000
"""The most lines written as one record."""
ARRAY_BYTES = MAX_RECORD_BYTES // 4
"""About the most bytes of them; a longer line is a record of its own."""
MAX_ERRORS = 20
"""Refusals that are told in full; all of them are counted."""


class LineError(NamedTuple):
    """One refusal, and the line it is about, counted from 1."""

    line: int
    reason: Reason
    detail: str


@dataclass
class RoutedLines:
    """A body cut by record key, ready for `Broker.append`.

    As in `streammon.wire.Routed`, an event refused for its values is in the records too; a line refused whole is
    not. ``reasons`` counts both, in events.
    """

    records: list[Outgoing] = field(default_factory=list)
    accepted: int = 0
    reasons: Counter[Reason] = field(default_factory=Counter)
    errors: list[LineError] = field(default_factory=list)

    @property
    def rejected(self) -> int:
        """Events that will not be counted."""
        return self.reasons.total()

    def refuse(self, line: int, reason: Reason, detail: str, events: int = 1) -> None:
        self.reasons[reason] += events
        if len(self.errors) < MAX_ERRORS:
            self.errors.append(LineError(line, reason, detail))


class Line(NamedTuple):
    """An event, and the bytes that it came as."""

    number: int
    value: bytes
    event: Event


def route_lines(body: bytes, event_type: EventType | None = None) -> RoutedLines:
    """Check every line and address its events; blank lines are skipped.

    ``event_type`` None: each line's own ``type``.

    Raises:
        Rejected: there are too many lines.
    """
    routed = RoutedLines()
    events: dict[EventType, list[Line]] = defaultdict(list)
    for number, value in _lines(body):
        event = single_of(value, event_type) if len(value) <= ARRAY_BYTES else None
        if event is None or event.seq is not None:
            _route_alone(number, value, event_type, routed)
        else:
            events[TYPE_OF[type(event)]].append(Line(number, value, event))
    for kind, lines in events.items():
        _route_together(kind, lines, routed)
    routed.errors.sort()
    return routed


def _lines(body: bytes) -> Iterator[tuple[int, bytes]]:
    if (breaks := body.count(b"\n")) >= MAX_EVENTS:
        raise Rejected(Reason.TOO_LARGE, f"{breaks + 1} lines, at most {MAX_EVENTS}")
    stripped = enumerate(map(bytes.strip, body.split(b"\n")), start=1)
    return ((number, value) for number, value in stripped if value)


TYPE_OF = {struct: event_type for event_type, struct in STRUCTS.items()}
_ANY_EVENT: msgspec.json.Decoder[Event] = msgspec.json.Decoder(reduce(or_, STRUCTS.values()))


def single_of(value: bytes, event_type: EventType | None) -> Event | None:
    """The event, if the value is one well-formed object, of that type or one that it names itself."""
    return well_formed(_ANY_EVENT, value) if event_type is None else codec_of(event_type).event(value)


def _route_alone(number: int, value: bytes, event_type: EventType | None, routed: RoutedLines) -> None:
    try:
        one = route(value, event_type)
    except Rejected as refusal:
        routed.refuse(number, refusal.reason, refusal.detail, claimed_events(value))
        return
    routed.records += one.records
    routed.accepted += one.accepted
    for reason, events in one.reasons.items():
        routed.refuse(number, reason, f"{events} of the line's events", events)


def _route_together(event_type: EventType, lines: Sequence[Line], routed: RoutedLines) -> None:
    faults = ObjectRows([line.event for line in lines]).faults()
    routed.accepted += len(lines) - len(faults)
    for fault in faults:
        routed.refuse(lines[fault.row].number, fault.reason, fault.detail)
    routed.records += records_of(event_type, lines)


def records_of(event_type: EventType, lines: Sequence[Line]) -> list[Outgoing]:
    """Events without identity as few records, addressed: arrays by key."""
    return [
        Outgoing(TOPIC_OF[event_type], key, array, (SCHEMA_HEADER,))
        for key, values in _by_key(event_type, lines).items()
        for array in _arrays(values)
    ]


def _by_key(event_type: EventType, lines: Sequence[Line]) -> dict[bytes, list[bytes]]:
    fields: Callable[[Event], Any] = attrgetter(*KEYS[event_type])
    groups: dict[Any, list[bytes]] = defaultdict(list)
    for line in lines:
        groups[fields(line.event)].append(line.value)
    return {_key(event_type, found): values for found, values in groups.items()}


def _key(event_type: EventType, found: Any) -> bytes:
    return record_key(event_type, found if isinstance(found, tuple) else (found,))


def _arrays(values: Sequence[bytes]) -> Iterator[bytes]:
    """The values as JSON arrays of bounded length; a single one stays as it is."""
    chunk: list[bytes] = []
    size = 0
    for value in values:
        if chunk and (len(chunk) == ARRAY_EVENTS or size + len(value) > ARRAY_BYTES):
            yield _array(chunk)
            chunk, size = [], 0
        chunk.append(value)
        size += len(value) + 1
    yield _array(chunk)


def _array(values: Sequence[bytes]) -> bytes:
    return values[0] if len(values) == 1 else b"[" + b",".join(values) + b"]"
