"""What a channel remembers: kept in the log with its position, so that whoever delivers next knows it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import msgspec
from msgspec import Struct

from streammon.notifications import Memory, Notification

MOST_GROUPS: Final = 2000
MOST_BYTES: Final = 500_000
"""Of all memories together; a snapshot has to fit into a record."""


class Kept(Struct, array_like=True, frozen=True):
    """Of one group. ``ended``: the last message was about its end, so that there may be no other."""

    memory: dict[str, str]
    ended: bool = False

    @property
    def size(self) -> int:
        return sum(len(name) + len(value.encode()) + 8 for name, value in self.memory.items())


class Remembered(Struct, kw_only=True, omit_defaults=True):
    """The snapshot of a channel's delivery."""

    schema: int = 1
    groups: dict[str, Kept] = {}
    """By group, the one that was told of longest ago first."""
    in_trouble: bool = False
    """Whether `failing` or `refused` was told, and nothing was delivered since."""

    def of(self, notification: Notification) -> Memory:
        kept = self.groups.get(notification.group)
        return kept.memory if kept else {}

    def after(self, notification: Notification, memory: Memory) -> Remembered:
        """What is to be remembered once this has been delivered: the rest is as it was, within the bounds."""
        others = {name: kept for name, kept in self.groups.items() if name != notification.group}
        mine = Kept(dict(memory), notification.status == "resolved")
        groups = dict(_within_bounds({**others, notification.group: mine} if memory else others))
        return Remembered(groups=groups, in_trouble=False)

    def amended(self, notification: Notification, memory: Memory) -> Remembered:
        """What is to be remembered once a message was amended, which is no proof that the channel takes another."""
        return msgspec.structs.replace(self.after(notification, memory), in_trouble=self.in_trouble)

    def in_trouble_now(self) -> Remembered:
        return msgspec.structs.replace(self, in_trouble=True)

    def living(self) -> Iterator[Memory]:
        """Of the groups that have not ended."""
        return (kept.memory for kept in self.groups.values() if not kept.ended)


def _within_bounds(groups: dict[str, Kept]) -> Iterator[tuple[str, Kept]]:
    """Without those that ended longest ago, and then without the oldest, as far as there are too many."""
    order = sorted(groups, key=lambda name: not groups[name].ended)  # stable: the oldest first among equals
    too_many, too_large = len(groups) - MOST_GROUPS, sum(kept.size for kept in groups.values()) - MOST_BYTES
    gone = set[str]()
    for name in order:
        if len(gone) >= too_many and too_large <= 0:
            break
        gone.add(name)
        too_large -= groups[name].size
    return ((name, kept) for name, kept in groups.items() if name not in gone)
