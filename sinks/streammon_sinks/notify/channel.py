"""The seam of the channels: what a way to reach people has to do with a notification.

A `Notification` is one message about one group of alerts to one channel, decided once and kept on the topic
`notifications`. A `Channel` turns it into what Slack, PagerDuty or a mail server want, and returns when they took it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, runtime_checkable

from streammon.notifications import Cause, Memory, Notification

__all__ = ["Amending", "Cause", "Channel", "Memory", "Notification", "Resuming"]


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


@runtime_checkable
class Amending(Protocol):
    """A channel that can add to what it has told without telling anybody anew, as Slack edits a message."""

    async def amend(self, notification: Notification, memory: Memory) -> Memory:
        """Say of what this group's last message told what it says now; what to remember. Tried once, and for seconds.

        Raises: as `Channel.deliver` does.
        """
        ...


@runtime_checkable
class Resuming(Protocol):
    """A channel that goes on by itself with what it has delivered, as Alertmanager wants to hear of it again."""

    def resume(self, memories: Iterable[Memory]) -> None:
        """Called once, before the first `deliver`, with the newest memory of every group that has not ended."""
        ...
