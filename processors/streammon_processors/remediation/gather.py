"""From all partitions of `alerts` and `commands` into the one order in which remediation is decided.

One order, because a cool-down and a limit are of an action, whichever partition the alerts lie in. An approval can lie
in any partition, too: it comes after what it approves, which somebody has read before.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import msgspec
from msgspec.structs import replace

from streammon.broker import Outgoing, Record
from streammon.commands import Acknowledge, Approve, Silence, Unsilence
from streammon.deadletter import dead_letter_of
from streammon.errors import Rejected
from streammon.remediation import REMEDIES, Execution
from streammon.results import Alert
from streammon.tick import TICK
from streammon.wire import SCHEMA_HEADER, read_message

_Input = Alert | Acknowledge | Approve | Silence | Unsilence
_DECODER: Final[msgspec.json.Decoder[_Input]] = msgspec.json.Decoder(_Input)
_REMEDY: Final[msgspec.json.Decoder[Alert | Approve | Execution]] = msgspec.json.Decoder(Alert | Approve | Execution)


class GatherRemediesTask:
    """Copies what remediation is decided by from one partition of `alerts` and of `commands` into `remedies`."""

    waiting: Sequence[str] = ()

    def __init__(self, partition: int) -> None:
        self._partition = partition
        self._next: dict[str, int] = {}

    def process(self, topic: str, records: Sequence[Record]) -> list[Outgoing]:
        return [outgoing for record in records for outgoing in self._process_one(topic, record)]

    def snapshot(self) -> bytes:
        return msgspec.json.encode(self._next, order="sorted")

    def restore(self, snapshot: bytes) -> None:
        self._next = msgspec.json.decode(snapshot, type=dict[str, int])

    def offsets(self) -> Mapping[str, int]:
        return dict(self._next)

    def watermarks(self) -> Mapping[str, float]:
        return {}

    def _process_one(self, topic: str, record: Record) -> Iterator[Outgoing]:
        self._next[topic] = record.offset + 1
        if record.value is None or record.value == TICK:  # the tombstone of an alert that ended long ago
            return
        try:
            content = read_message(_DECODER.decode, record.value)
        except Rejected as error:
            yield dead_letter_of(topic, record, error, to_partition=self._partition)
            return
        match content:
            case Alert() if _concerns(content):
                # what was seen is evidence for people, and large
                yield Outgoing(
                    REMEDIES, record.key, msgspec.json.encode(replace(content, evidence={})), (SCHEMA_HEADER,), 0
                )
            case Approve():
                yield Outgoing(REMEDIES, record.key, record.value, (SCHEMA_HEADER,), 0)


def _concerns(alert: Alert) -> bool:
    """An alert that asks for something; or the end of any, since its rule may name no action any more."""
    return alert.has_fired and (alert.action is not None or alert.state == "resolved")


def decode_remedy(value: bytes) -> Alert | Approve | Execution:
    """What stands in a record of `remedies`. Raises Rejected."""
    return read_message(_REMEDY.decode, value)


def remedy_time(value: bytes) -> float | None:
    """The time that a record of `remedies` is about."""
    try:
        content = decode_remedy(value)
    except Rejected:
        return None
    return content.updated_unix_s if isinstance(content, Alert) else content.time_unix_s
