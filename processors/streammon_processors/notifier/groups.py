"""Groups: alerts that are told together, what people have been told of each, and who they are."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from math import inf
from typing import Final, NamedTuple

import msgspec
from msgspec import Struct

from streammon.notifications import Cause
from streammon_processors.notifier.description import Leaf
from streammon_processors.notifier.following import Followed

MOST_OPENED: Final = 6
STORM_S: Final = 60.0
"""Where more than `MOST_OPENED` groups of a route begin within this time, the others are told as one, the storm, until
none has begun for as long."""
STORM_INTERVALS: Final = 5
"""A storm is told so many times more seldom than another group, unless it has more than doubled."""
MAX_GROUPS: Final = 1000
GROUPS_BYTES: Final = 120_000

Key = tuple[str, tuple[tuple[str, str], ...]]
STORM: Final = (("", "storm"),)
"""In place of the labels of a group."""


class Member(Struct, array_like=True):
    """What people know of an alert in a group. ``told`` is the transition, -1 while they know nothing."""

    told: int = -1
    rank: int = 9
    at_unix_s: float = 0.0
    acknowledged: bool = False
    left: bool = False
    """Its route is another now: only its end is still told here."""

    @property
    def known(self) -> bool:
        return self.told >= 0


class Group(Struct, kw_only=True, omit_defaults=True):
    """Alerts that are told together, until the last has ended; what comes then is another life, with another id."""

    route: str
    labels: dict[str, str]
    id: str
    storm: bool = False
    not_before: float
    """No message before, unless it gets worse."""
    due: float
    """When to look at it again."""
    members: dict[int, Member] = {}
    channels: list[str] = []
    """Who has been told, and so has to be told the end."""
    told_at: float = 0.0
    opened_at: float = 0.0
    explain_at: float = inf
    """When to add causes to what was told, because some have come to light since."""
    told_end: bool = False
    """The last message told an end: who is told its alerts again must not take that away."""
    rank: int = 9
    """Of the worst that was told."""
    messages: int = 0
    escalated: int = 0

    @property
    def key(self) -> Key:
        return self.route, STORM if self.storm else tuple(sorted(self.labels.items()))

    @property
    def size(self) -> int:
        return len(msgspec.msgpack.encode((self.route, self.labels, self.channels))) + 100

    def waits(self, seen: Iterable[Seen], leaf: Leaf, now_unix_s: float) -> bool:
        """Whether it is a storm that was told not long ago, and people know of half of what fires at least."""
        if not self.storm or not self.channels or now_unix_s >= self.told_at + STORM_INTERVALS * leaf.group_interval_s:
            return False
        return sum(each.opens - each.goes_on for each in seen) <= 0


class Seen(NamedTuple):
    """An alert of a group: what is known of it, and whether it may be news now."""

    alert: Followed
    member: Member
    heard: bool
    """Neither silenced nor inhibited nor muted."""

    @property
    def opens(self) -> bool:
        return self.heard and self.alert.active and not self.member.known and not self.member.left

    @property
    def worsens(self) -> bool:
        return self.changes and self.alert.rank < self.member.rank

    @property
    def changes(self) -> bool:
        told = self.member
        return self.heard and self.alert.active and told.known and not told.left and self.alert.transition > told.told

    @property
    def ends(self) -> bool:
        return not self.alert.active and self.member.known

    @property
    def goes_on(self) -> bool:
        """Fires, and people know it."""
        return self.alert.active and self.member.known

    @property
    def is_as_told(self) -> bool:
        """Fires, and people know all of it."""
        return self.goes_on and self.alert.transition == self.member.told

    @property
    def attended(self) -> bool:
        """Fires, people know it, and somebody has acknowledged it."""
        return self.goes_on and self.alert.acknowledged

    @property
    def begins(self) -> bool:
        """Is somebody's to attend to from now on: it is new, or fires again after it was acknowledged."""
        return self.opens or (self.goes_on and self.member.acknowledged and not self.alert.acknowledged)

    @property
    def unattended(self) -> bool:
        """Fires, people know it, may hear of it, and nobody has acknowledged it."""
        acknowledged = self.alert.acknowledged or self.member.acknowledged  # the latter: to be told anew first
        return self.goes_on and self.heard and not acknowledged and not self.member.left


def deduplicate(group: Group, seen: Sequence[Seen], leaf: Leaf, now_unix_s: float) -> Cause | None:
    """Why people have to be told something; None: they know it all."""
    opens = [each for each in seen if each.opens]
    if not any(each.member.known for each in seen):
        return "new" if opens else None
    if any(each.ends for each in seen) and not opens and not any(each.goes_on for each in seen):
        return "resolved"
    if opens or any(each.changes or each.ends for each in seen):
        return "changed"
    repeats = any(each.unattended for each in seen) and now_unix_s >= group.told_at + leaf.repeat_interval_s
    return "repeat" if repeats else None


def is_urgent(group: Group, seen: Iterable[Seen]) -> bool:
    """Whether it has become worse than people know."""
    return any((each.opens or each.worsens) and each.alert.rank < group.rank for each in seen)


def escalate(group: Group, seen: Iterable[Seen], leaf: Leaf, now_unix_s: float) -> Iterator[tuple[str, ...]]:
    """Whom to tell as well, because nobody has acknowledged for so long."""
    since = oldest_unattended(seen)
    for after_s, to in leaf.escalate[group.escalated :]:
        if since + after_s <= now_unix_s:
            yield to


def oldest_unattended(seen: Iterable[Seen]) -> float:
    return min((each.member.at_unix_s for each in seen if each.unattended), default=float("inf"))


def next_look(group: Group, seen: Sequence[Seen], leaf: Leaf, now_unix_s: float, recheck: float) -> float:
    """When time alone may bring a message, or the group is over. ``recheck`` is for what is not heard now."""
    if any(each.opens or each.changes or each.ends for each in seen):
        return max(group.not_before, now_unix_s)
    times = [recheck]
    since = oldest_unattended(seen)
    if since < float("inf"):
        times.append(group.told_at + leaf.repeat_interval_s)
        times += [since + after_s for after_s, _ in leaf.escalate[group.escalated :][:1]]
    if not seen:
        times.append(group.not_before)
    return min(times)
