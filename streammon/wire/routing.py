"""Where a value goes: split by record key, and addressed."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from streammon.broker import Outgoing
from streammon.errors import Reason, Rejected
from streammon.events import KEYS, Event, EventType, record_key
from streammon.topics import MAX_RECORD_BYTES, TOPIC_OF
from streammon.wire.batch import MAX_SPLIT_BYTES, SCHEMA_HEADER, Batch, Density
from streammon.wire.decoding import Head, NotQuiteJson, batch_of, codec_of, head_of
from streammon.wire.encoding import encode
from streammon.wire.values import combinations


@dataclass(frozen=True)
class Routed:
    """One value, cut by record key and ready for `Broker.append`.

    ``rejected`` events are in the records too: the processor refuses and counts them where it counts the rest.
    """

    records: list[Outgoing]
    accepted: int
    rejected: int
    reasons: Counter[Reason]


def route(value: bytes, event_type: EventType | None = None) -> Routed:
    """Check a value of any density and address it; used wherever events enter streammon.

    ``event_type`` None: what the value's ``type`` says. A value whose events share a key is passed on unchanged.

    Raises:
        Rejected: the whole value.
    """
    if len(value) > MAX_RECORD_BYTES:
        raise Rejected(Reason.TOO_LARGE, f"{len(value)} bytes, at most {MAX_RECORD_BYTES}")
    try:
        return _route(value, event_type or _sniff(value))
    except RecursionError:
        raise Rejected(Reason.INVALID_JSON, "nested too deeply") from None


def _route(value: bytes, event_type: EventType) -> Routed:
    codec = codec_of(event_type)
    event = codec.event(value)
    if event is not None:
        return _route_one(event_type, value, event)
    batches = codec.batches(value)
    faults = [fault for batch in batches for fault in batch.rows.faults()]
    count = sum(len(batch.rows) for batch in batches)
    return Routed(
        records=_addressed(event_type, value, batches),
        accepted=count - len(faults),
        rejected=len(faults),
        reasons=Counter(fault.reason for fault in faults),
    )


def _route_one(event_type: EventType, value: bytes, event: Event) -> Routed:
    """The short way for one object: numpy would cost more than the event."""
    faults = batch_of(event).rows.faults()
    key = record_key(event_type, tuple(getattr(event, name) for name in KEYS[event_type]))
    return Routed(
        records=[Outgoing(TOPIC_OF[event_type], key, value, (SCHEMA_HEADER,))],
        accepted=1 - len(faults),
        rejected=len(faults),
        reasons=Counter(fault.reason for fault in faults),
    )


def _sniff(value: bytes) -> EventType:
    head = head_of(value)
    if isinstance(head, NotQuiteJson):
        parsed = head.value[0] if isinstance(head.value, list) and head.value else head.value
        name = parsed.get("type") if isinstance(parsed, dict) else None
    else:
        first = (head[0] if head else Head()) if isinstance(head, list) else head
        name = first.type
    if name not in list(EventType):
        raise Rejected(
            Reason.WRONG_TYPE if name else Reason.INVALID_EVENT,
            f"`type` is {name!r}, expected one of {', '.join(EventType)}",
        )
    return EventType(name)


def _addressed(event_type: EventType, value: bytes, batches: list[Batch]) -> list[Outgoing]:
    topic = TOPIC_OF[event_type]
    shares = [_by_key(event_type, batch) for batch in batches]
    keys = {key for share in shares for key in share}
    if len(keys) <= 1:
        key = next(iter(keys), None)
        return [Outgoing(topic, key, value, (SCHEMA_HEADER,))]
    records: list[Outgoing] = []
    total = 0
    for batch, share in zip(batches, shares, strict=True):
        for key in share:
            part = _share(event_type, batch, share, key)
            total += len(part)
            if len(part) > MAX_RECORD_BYTES or total > MAX_SPLIT_BYTES:
                raise Rejected(Reason.TOO_LARGE, f"split by key, it grows to over {max(len(part), total)} bytes")
            records.append(Outgoing(topic, key, part, (SCHEMA_HEADER,)))
    return records


def _by_key(event_type: EventType, batch: Batch) -> dict[bytes, list[int]]:
    if not len(batch.rows):
        return {}
    names, codes = combinations([batch.rows.coded(name) for name in KEYS[event_type]])
    keys = [record_key(event_type, values) for values in names]
    rows: dict[bytes, list[int]] = {}
    for index, code in enumerate(codes.tolist()):
        rows.setdefault(keys[code], []).append(index)
    return rows


def _share(event_type: EventType, batch: Batch, rows: dict[bytes, list[int]], key: bytes) -> bytes:
    """What one key gets of a batch, as a batch of its own.

    The identity stays, so that a batch sent twice is still counted once, but under a boot id of the key's own:
    another key's share may go to the same partition.
    """
    events = [batch.rows.event(index) for index in rows[key]]
    shared = len(rows) > 1
    identity = batch.identity
    if identity is not None and shared:
        identity = identity._replace(boot=f"{identity.boot}/{key.decode()}")
    dropped = batch.dropped if key == next(iter(rows)) else 0
    [value] = encode(event_type, events, Density.PACKED, identity, dropped, sparse=batch.sparse or shared)
    return value
