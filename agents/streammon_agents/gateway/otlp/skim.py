"""A look at a message before it is parsed, because parsing is what takes memory.

An empty item takes two bytes of a message and two hundred of memory. So the items of a message are counted by their
lengths alone, which reads a few bytes of each, and those of a message with too many are never made.
"""

from __future__ import annotations

from streammon.errors import Reason, Rejected

MAX_ITEMS = 50_000
"""Spans, log records, metrics and data points of one message, and what contains them."""
SMALL_BYTES = 65_536
"""A message that cannot hold enough of anything to be looked at."""
OF_OTHERS = 3
"""How deep it is looked: request, resource, scope; in them are spans and log records."""
OF_METRICS = 5
"""Also metric, and kind; in them are data points."""


def check(message: bytes, deep: int) -> None:
    """Raises Rejected where a message holds too many items; whether it can be parsed is not looked at."""
    if len(message) <= SMALL_BYTES:
        return
    left = MAX_ITEMS
    waiting = [(0, len(message), 1)]
    while waiting:
        start, end, depth = waiting.pop()
        for first, last in _inner(message, start, end):
            left -= 1
            if left < 0:
                raise Rejected(Reason.TOO_LARGE, f"the message holds more than {MAX_ITEMS} items")
            if depth < deep:
                waiting.append((first, last, depth + 1))


def _inner(message: bytes, at: int, end: int) -> list[tuple[int, int]]:
    """Where the length-delimited fields between two places are, up to the first thing that is none we know."""
    found = []
    try:
        while at < end:
            tag, at = _varint(message, at)
            if tag & 7 == 2:
                size, at = _varint(message, at)
                found.append((at, min(at + size, end)))
                at += size
            elif tag & 7 == 0:
                _, at = _varint(message, at)
            elif tag & 7 in (1, 5):
                at += 8 if tag & 7 == 1 else 4
            else:
                return found
            if len(found) > MAX_ITEMS:
                return found
    except IndexError:  # cut short; the parser will say so
        pass
    return found


def _varint(message: bytes, at: int) -> tuple[int, int]:
    byte = message[at]
    at += 1
    if byte < 0x80:
        return byte, at
    value, shift = byte & 0x7F, 7
    while byte >= 0x80 and shift < 70:
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
    return value, at
