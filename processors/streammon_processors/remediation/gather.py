"""From all partitions of `alerts` and `commands` into the one order in which remediation is decided.

One order, because a cool-down and a limit are of an action, whichever partition the alerts lie in. An approval can lie
in any partition, too: it comes after what it approves, which somebody has read before.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import msgspec
from msgspec.structs import replace

from streammon.broker import Outgoing, Record
from streammon.commands import Acknowledge, Approve, Silence, Unsilence
from streammon.errors import Rejected
from streammon.remediation import REMEDIES, Execution
from streammon.results import Alert
from streammon.wire import SCHEMA_HEADER, read_message
from streammon_processors.copying import CopyTask

_Input = Alert | Acknowledge | Approve | Silence | Unsilence
_DECODER: Final[msgspec.json.Decoder[_Input]] = msgspec.json.Decoder(_Input)
_REMEDY: Final[msgspec.json.Decoder[Alert | Approve | Execution]] = msgspec.json.Decoder(Alert | Approve | Execution)


class GatherRemediesTask(CopyTask):
    """Copies what remediation is decided by from one partition of `alerts` and of `commands` into `remedies`."""

    def copies(self, record: Record, value: bytes) -> Iterator[Outgoing]:
        match read_message(_DECODER.decode, value):
            case Alert() as alert if _concerns(alert):
                # what was seen is evidence for people, and large
                without = msgspec.json.encode(replace(alert, evidence={}))
                yield Outgoing(REMEDIES, record.key, without, (SCHEMA_HEADER,), 0)
            case Approve() as approve:
                # how old it is must not depend on the clock of whoever gave it
                taken = msgspec.json.encode(replace(approve, time_unix_s=record.timestamp / 1000))
                yield Outgoing(REMEDIES, record.key, taken, (SCHEMA_HEADER,), 0)


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
