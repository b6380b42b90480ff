"""The gathering: from all partitions of `alerts`, `commands` and `evidence` into the one order of the decision.

Records are passed on as they are, but for evidence: of that, the first causes. What is left out: alerts that only may
come to something (pending), the ends of those that never did, evidence without a cause, and commands that are no
business of the notifier (an acknowledgement comes as an alert).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import msgspec

from streammon.broker import Outgoing, Record
from streammon.commands import Acknowledge, Approve, Silence, Unsilence
from streammon.errors import Rejected
from streammon.notifications import Delivery
from streammon.results import Alert, Evidence
from streammon.wire import SCHEMA_HEADER, read_message
from streammon_processors.copying import CopyTask
from streammon_processors.notifier.causes import in_brief

PAGES: Final = "pages"
_Input = Alert | Evidence | Silence | Unsilence | Acknowledge | Approve | Delivery
_DECODER: Final[msgspec.json.Decoder[_Input]] = msgspec.json.Decoder(_Input)


class GatherTask(CopyTask):
    """Copies what is to be decided from one partition of `alerts`, `commands` and `evidence` into `pages`."""

    def copies(self, topic: str, record: Record, value: bytes) -> Iterator[Outgoing]:
        content = decode(value)
        if _is_to_be_decided(content):
            page = msgspec.json.encode(in_brief(content)) if isinstance(content, Evidence) else value
            yield Outgoing(PAGES, record.key, page, (SCHEMA_HEADER,), 0)


def _is_to_be_decided(content: _Input) -> bool:
    if isinstance(content, Alert):
        never_fired = content.state == "resolved" and content.transition <= 1
        return content.state != "pending" and not never_fired
    if isinstance(content, Evidence):
        return bool(content.causes)
    return isinstance(content, Silence | Unsilence)


def decode(value: bytes) -> _Input:
    """What stands in a record of `alerts`, `commands`, `evidence` or `pages`. Raises Rejected."""
    return read_message(_DECODER.decode, value)


def page_time(value: bytes) -> float | None:
    """The time that a page is about: of the newest change of an alert, of evidence or a command. None: not gathered."""
    try:
        content = decode(value)
    except Rejected:
        return None
    if isinstance(content, Delivery):
        return None
    if isinstance(content, Evidence):
        return content.made_unix_s
    return content.updated_unix_s if isinstance(content, Alert) else content.time_unix_s
