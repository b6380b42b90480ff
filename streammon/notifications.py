"""What the notifier says, and what became of it: exactly as it travels on `notifications`, `deliveries` and `pages`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Literal

import msgspec
from msgspec import Meta, Struct

from streammon.events import _schema
from streammon.results import Alert

Cause = Literal["new", "changed", "resolved", "repeat", "escalation", "test", "explained"]
"""``explained`` is no message: of what was told, likely causes have come to light. Channels that can, add them to their
last message; nobody is told anew."""
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
    alerts: Annotated[list[Alert], Meta(min_length=1)]
    """The newest record of each: firing ones first, the most severe of those first. Never empty."""
    omitted: int = 0
    """So many more alerts are in the group than are told here."""
    created_unix_s: float
    """Broker time of the decision."""

    @property
    def severity(self) -> str:
        """That of its first alert, the most severe."""
        return self.alerts[0].severity


Outcome = Literal["delivered", "failing", "refused", "recovered"]
"""``failing``: not yet, for too long. ``refused``: never. ``recovered``: a channel in trouble has taken one again."""


class Delivery(Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="type", tag="delivery"):
    """What became of a notification."""

    schema: int = msgspec.field(default_factory=_schema)
    id: str
    """Of the notification."""
    channel: str
    group: str
    outcome: Outcome
    time_unix_s: float
    """When, by the clock of who delivered."""
    tries: int = 1
    detail: str | None = None
    """Why not, in the words of the other side, without any secret."""
    memory: dict[str, str] = {}
    """What the channel has to know for the group's next message."""
    notification: Notification | None = None
    """The notification itself, where somebody else has to be told instead."""
