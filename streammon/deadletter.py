"""Dead letters: what could not be used, kept whole with the reason, so that nothing is lost silently."""

from __future__ import annotations

from typing import Protocol

from streammon.broker import Outgoing
from streammon.errors import Reason, Rejected
from streammon.topics import LARGE_RECORD_BYTES
from streammon.wire import SCHEMA_HEADER

TOPIC = "deadletter"
MAX_VALUE_BYTES = LARGE_RECORD_BYTES - 64 * 1024
"""What is larger is cut off, and the error says so: only what never was in a topic can be."""
_MAX_ERROR_CHARACTERS = 2000


def dead_letter(
    reason: Reason,
    detail: str,
    *,
    topic: str,
    value: bytes | None,
    partition: int | None = None,
    offset: int | None = None,
    to_partition: int | None = None,
) -> Outgoing:
    """The record that keeps ``value`` and says why it was refused and where it stood.

    ``topic`` has no prefix. ``partition`` and ``offset`` are absent for what never reached a topic.
    """
    if value is not None and len(value) > MAX_VALUE_BYTES:
        detail = f"the first {MAX_VALUE_BYTES} of {len(value)} bytes: {detail}"
        value = value[:MAX_VALUE_BYTES]
    where = {"partition": partition, "offset": offset}
    headers = (
        SCHEMA_HEADER,
        ("reason", reason.value.encode()),
        ("topic", topic.encode()),
        *((name, str(number).encode()) for name, number in where.items() if number is not None),
        ("error", detail[:_MAX_ERROR_CHARACTERS].encode(errors="replace")),
    )
    return Outgoing(TOPIC, topic.encode(), value, headers, to_partition)


class Placed(Protocol):
    """A record as it was read, by us or by Faust."""

    @property
    def partition(self) -> int: ...
    @property
    def offset(self) -> int: ...
    @property
    def value(self) -> bytes | None: ...


def dead_letter_of(topic: str, record: Placed, error: Rejected, *, to_partition: int | None = None) -> Outgoing:
    """The `dead_letter` of a whole record of a topic."""
    return dead_letter(
        error.reason,
        error.detail,
        topic=topic,
        value=record.value,
        partition=record.partition,
        offset=record.offset,
        to_partition=to_partition,
    )
