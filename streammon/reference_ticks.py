"""How a reference gets to whoever counts in its bins: in the headers of tick records, in the partition of its model.

A reference changes how the events after it are counted, so it needs a place among them: in another topic, nobody could
say which came first. Whoever else reads the partition sees ticks, and passes over them. Headers have little room, so a
large reference comes in several parts, one after the other.
"""

from __future__ import annotations

import re
import zlib
from itertools import pairwise
from typing import Final

import msgspec
from msgspec import Struct

from streammon.broker import Outgoing, Record
from streammon.errors import Reason, Rejected
from streammon.events import EventType, record_key
from streammon.profiles import Reference, TargetReference, reference_key
from streammon.tick import TICK
from streammon.topics import TOPIC_OF
from streammon.wire import SCHEMA_HEADER, read_message

HEADER: Final = "streammon-reference"
PART_BYTES: Final = 24 * 1024
MAX_PARTS: Final = 12
MAX_BYTES: Final = 1_000_000
"""Of a reference as JSON."""
MAX_KEY_BYTES: Final = 4096
_HEAD: Final = re.compile(rb"([0-9a-f]{1,32}) (\d{1,2})/(\d{1,2})\n")
_read: Final = msgspec.json.Decoder(Reference).decode


def in_ticks(reference: Reference) -> list[Outgoing]:
    """The records that bring a reference to the partition of its model. Raises Rejected: it is too large."""
    packed = zlib.compress(msgspec.json.encode(reference), 9)
    parts = [packed[at : at + PART_BYTES] for at in range(0, len(packed), PART_BYTES)]
    if len(parts) > MAX_PARTS:
        raise Rejected(Reason.TOO_LARGE, f"{len(packed)} bytes packed, at most {MAX_PARTS * PART_BYTES}")
    key = record_key(EventType.INFERENCE, (reference.service, reference.model))
    heads = [f"{reference.id} {number}/{len(parts)}\n".encode() for number in range(1, len(parts) + 1)]
    return [
        Outgoing(TOPIC_OF[EventType.INFERENCE], key, TICK, (SCHEMA_HEADER, (HEADER, head + part)))
        for head, part in zip(heads, parts, strict=True)
    ]


class PartsMemory(Struct, array_like=True, frozen=True):
    """The parts of a reference that have come, in order."""

    id: bytes
    of: int
    parts: tuple[bytes, ...]


class Parts:
    """Puts references together, one at a time: where another begins, what is not complete is forgotten."""

    def __init__(self, memory: PartsMemory | None = None) -> None:
        self.memory = memory

    def take(self, tick: Record) -> Reference | None:
        """The reference that is complete with this record, if one is. Raises Rejected for one that cannot be read."""
        for name, content in tick.headers:
            if name == HEADER:
                return self._take(content)
        return None

    def _take(self, content: bytes) -> Reference | None:
        head = _HEAD.match(content)
        if head is None or not 1 <= int(head[2]) <= int(head[3]) <= MAX_PARTS:
            raise Rejected(Reason.INVALID_EVENT, f"the header {HEADER} begins with {content[:40]!r}, not ID PART/PARTS")
        number, of, known = int(head[2]), int(head[3]), self.memory
        before = known.parts if known and (known.id, known.of) == (head[1], of) else ()
        if number > len(before) + 1:
            self.memory = None
            raise Rejected(Reason.INVALID_EVENT, f"part {number} of {of} of a reference came, but none before it")
        parts = (*before[: number - 1], content[head.end() :])
        self.memory = PartsMemory(head[1], of, parts) if number < of else None
        return read_reference(b"".join(parts)) if number == of else None


def read_reference(packed: bytes) -> Reference:
    """Raises Rejected: it is none, or its bins cannot be."""
    unpacking = zlib.decompressobj()
    try:
        value = unpacking.decompress(packed, MAX_BYTES + 1)
    except zlib.error as error:
        raise Rejected(Reason.INVALID_EVENT, f"a reference cannot be unpacked: {error}") from None
    if len(value) > MAX_BYTES:
        raise Rejected(Reason.TOO_LARGE, f"a reference has more than {MAX_BYTES} bytes")
    reference = read_message(_read, value, "no reference: ")
    if len(reference_key(reference)) > MAX_KEY_BYTES:
        raise Rejected(Reason.TOO_LARGE, f"the names of its service and model have more than {MAX_KEY_BYTES} bytes")
    for name, target in reference.targets.items():
        _check(name, target)
    return reference


def _check(name: str, target: TargetReference) -> None:
    edges = target.edges or []
    if any(low >= high for low, high in pairwise(edges)):
        raise Rejected(Reason.INVALID_EVENT, f"the edges of {name} do not ascend")
    if target.bins is not None and len(target.bins) != len(edges) + 1:
        raise Rejected(Reason.INVALID_EVENT, f"{name} has {len(target.bins)} bins between {len(edges)} edges")
