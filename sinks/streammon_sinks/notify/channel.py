"""The seam of the channels: what is delivered, and what a channel has to do with it.

A `Notification` is one message about one group of alerts to one channel, decided once and kept on the topic
`notifications`. A `Channel` turns it into what Slack, PagerDuty or a mail server want, and returns when they took it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Protocol

import msgspec
from msgspec import Struct

from streammon.events import _schema
from streammon.results import Alert

Cause = Literal["new", "changed", "resolved", "repeat", "escalation", "test"]
Memory = Mapping[str, str]
"""What a channel has to know about its earlier message of the same group: the ``ts`` of a Slack message."""


class Notification(Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="type", tag="notification"):
    """One message about one group of alerts to one channel."""

    schema: int = msgspec.field(default_factory=_schema)
    id: str
    """The same whenever the same message is delivered again: channels that can, use it to take it once."""
    channel: str
    """Name of the channel in the notifier's file."""
    group: str
    """Names the group while it lives, for keys such as PagerDuty's ``dedup_key``; a later life has another one."""
    group_labels: dict[str, str]
    """The labels that all its alerts share, because they are grouped by them."""
    cause: Cause
    status: Literal["firing", "resolved"]
    """``firing`` while any alert of the group is."""
    alerts: list[Alert]
    """The newest record of each: firing ones first, the most severe of those first. Never empty."""
    omitted: int = 0
    """So many more alerts are in the group than are told here."""
    created_unix_s: float
    """Broker time of the decision."""

    @property
    def severity(self) -> str:
        """That of its first alert, the most severe."""
        return self.alerts[0].severity


class Channel(Protocol):
    """A way to reach people. One notification at a time, in order.

    `tests/contracts/test_channel.py` holds every channel to this.
    """

    async def deliver(self, notification: Notification, memory: Memory) -> Memory:
        """Deliver, and return when the other side has taken it; what to remember for the group's next message.

        ``memory`` is what the last delivery about this group returned, empty for the first.

        Raises:
            Retryable: it may work later; `Backpressure` when the other side said how long to wait.
            Rejected: it will never work as it is; ``detail`` is the other side's reason, without any secret.
        """
        ...

    async def close(self) -> None: ...
