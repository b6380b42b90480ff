"""The decision whom to tell what: one pure task over the one order in `pages`.

A page is the newest record of an alert, what may be behind one, a silence or its end, or what became of a notification
that could not be delivered. Each is taken in, and then every group that is due is decided::

    group → route → inhibit → silence → deduplicate → explain → escalate → record

Time is the broker's time of the records and ticks of `pages`, and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from math import inf
from typing import Any, Final

import msgspec
from cramjam import zstd
from msgspec import Struct

from streammon.broker import Outgoing, Record
from streammon.commands import Silence, Unsilence
from streammon.deadletter import dead_letter_of
from streammon.errors import Rejected
from streammon.notifications import Cause, Delivery, Notification
from streammon.results import Alert, AlertState, Evidence
from streammon.tick import TICK
from streammon.wire import SCHEMA_HEADER
from streammon_processors.notifier.causes import Early, only_causes
from streammon_processors.notifier.description import CONSOLE, Leaf, Plan
from streammon_processors.notifier.following import ALERTS_BYTES, LIMITED, OWN, Followed, Following, Limit
from streammon_processors.notifier.gather import PAGES, decode
from streammon_processors.notifier.groups import (
    GROUPS_BYTES,
    MAX_GROUPS,
    MOST_OPENED,
    STORM,
    STORM_S,
    Group,
    Key,
    Member,
    Seen,
    deduplicate,
    escalate,
    is_urgent,
    next_look,
)
from streammon_processors.notifier.quiet import Inhibitions, Silences
from streammon_processors.rules.description import digest

NOTIFICATIONS: Final = "notifications"
MOST_TOLD: Final = 20
"""So many alerts are told in a message; it says how many more there are."""
TOLD_BYTES: Final = 600_000
"""Of the alerts in a message; evidence, but for likely causes, is left out beyond that."""
EXPLAIN_S: Final = 2.0
"""So soon after causes have come to light they are added to what was told: those of one trouble come together."""
SETTLE_S, MOST_SETTLE_S = 10.0, 300.0
"""Alerts that are read late are told once no more of them has come for so long, and after so long in any case: their
ends may come right behind."""
LOOK_AGAIN_S: Final = 1.0
"""So soon after a silence or an inhibition has changed, all groups have been looked at."""
MUTED_LOOK_S: Final = 60.0
COPIED: Final = 500


class Trouble(Struct, array_like=True):
    """Since when a channel cannot be reached, or refuses, and the alert about it."""

    since_unix_s: float
    alert_id: str


class _State(Struct, kw_only=True, omit_defaults=True):
    plan: str = ""
    next_offset: int | None = None
    now: float = 0.0
    lives: int = 0
    next_number: int = 0
    alerts: list[Followed] = []
    early: Early = {}
    groups: list[Group] = []
    silences: Silences = msgspec.field(default_factory=Silences)
    troubles: dict[str, Trouble] = {}
    copied: list[str] = []
    openings: dict[str, list[float]] = {}
    storms: dict[str, float] = {}
    stale_since: float = 0.0
    settled_at: float = 0.0
    overflow: str = ""


class DecideTask:
    """Reads `pages` and writes to the same partition of `notifications`."""

    def __init__(self, plan: Plan, partition: int) -> None:
        self._plan = plan
        self._plan_digest = digest(repr(plan), size=8)
        self._partition = partition
        self._take_over(_State(plan=self._plan_digest))

    def process(self, topic: str, records: Sequence[Record]) -> list[Outgoing]:
        """What is to be told because of these pages; a record that is no page becomes a dead letter."""
        return [outgoing for record in records for outgoing in self._process_one(topic, record)]

    @property
    def waiting(self) -> Sequence[str]:
        """While there is a group, time alone may bring a message."""
        return (PAGES,) if self._groups else ()

    def offsets(self) -> Mapping[str, int]:
        return {} if self._state.next_offset is None else {PAGES: self._state.next_offset}

    def watermarks(self) -> Mapping[str, float]:
        return {}

    def snapshot(self) -> bytes:
        state = self._state
        state.alerts, state.groups = list(self._following), list(self._groups.values())
        state.next_number = self._following.next_number
        return bytes(zstd.compress(msgspec.msgpack.encode(state), 1))

    def restore(self, snapshot: bytes) -> None:
        """Go on from a snapshot. By another plan, alerts are routed anew, and whoever was told is told the end."""
        self._take_over(msgspec.msgpack.decode(bytes(zstd.decompress(snapshot)), type=_State))
        if self._state.plan != self._plan_digest:
            self._go_over_to_the_plan()

    def _go_over_to_the_plan(self) -> None:
        state = self._state
        state.plan, state.openings, state.storms = self._plan_digest, {}, {}
        for channel in [each for each in state.troubles if each not in self._plan.channels]:
            self._end_trouble(channel, f"channel {channel} is in the file no more")
        for group in self._groups.values():
            if group.channels and not any(channel in self._plan.channels for channel in group.channels):
                self._forget_told(group)
        for alert in list(self._following):
            self._route(alert)

    def _forget_told(self, group: Group) -> None:
        """Nobody who was told is in the file any more: whoever is now knows nothing of it."""
        for member in group.members.values():
            member.told, member.rank, member.acknowledged = -1, Member().rank, False
        group.rank = Member().rank

    def _take_over(self, state: _State) -> None:
        self._state, self._silences = state, state.silences
        self._following = Following(state.alerts, state.next_number, state.early)
        self._inhibitions = Inhibitions(self._plan.inhibit, self._following)
        self._groups = {group.key: group for group in state.groups}
        self._groups_bytes = sum(group.size for group in state.groups)
        self._groups_of: dict[int, list[Key]] = {}
        for key, group in self._groups.items():
            for number in group.members:
                self._groups_of.setdefault(number, []).append(key)
        self._next_due = min((group.due for group in state.groups), default=inf)
        self._quiet_changes_at = self._silences.next_change(state.now)

    # --- a page -------------------------------------------------------------------------------------------------------

    @property
    def _now(self) -> float:
        return self._state.now

    def _process_one(self, topic: str, record: Record) -> Iterator[Outgoing]:
        self._state.next_offset = record.offset + 1
        self._state.now = max(self._state.now, record.timestamp / 1000)
        try:
            if record.value != TICK:
                yield from map(self._outgoing, self._take_in(record.value or b""))
        except Rejected as error:
            yield dead_letter_of(topic, record, error, to_partition=self._partition)
        yield from map(self._outgoing, self._decide_due())

    def _take_in(self, value: bytes) -> Iterator[Notification]:
        match decode(value):
            case Alert(state="pending"):
                pass  # it may come to nothing
            case Alert() as alert:
                self._follow(alert)
            case Evidence() as evidence:
                self._explain(evidence)
            case Silence() | Unsilence() as command:
                if self._silences.take(command, self._now):
                    self._quiet_changes_at = self._silences.next_change(self._now)
                    self._look_at_all_again()
            case Delivery(outcome="recovered") as delivery:
                self._end_trouble(delivery.channel, f"channel {delivery.channel} delivers again")
            case Delivery() as delivery:
                yield from self._trouble(delivery)

    def _follow(self, alert: Alert) -> None:
        before = self._following.get(alert.id)
        followed = self._following.take(alert, self._now)
        if followed is None:
            if before is None and alert.state != "resolved":
                self._overflow()
            return
        changed = self._inhibitions.count(before, -1) if before else False
        if self._inhibitions.count(followed, 1) != changed:
            self._look_at_all_again()
        if followed.stale and followed.active:
            self._wait_until_settled()
        self._route(followed)

    def _explain(self, evidence: Evidence) -> None:
        """Whatever is told of the alert from now on says why. No message waits for that, and none is sent for it.

        Where people know of the alert already, channels may add it to what they have said.
        """
        alert = self._following.explain(evidence)
        if alert is None:
            return
        for group in (self._groups[key] for key in self._groups_of.get(alert.number, ())):
            if alert.active and group.members[alert.number].known:
                group.explain_at = min(group.explain_at, self._now + EXPLAIN_S)
                self._look(group, group.explain_at)

    def _wait_until_settled(self) -> None:
        state = self._state
        if state.settled_at <= self._now:
            state.stale_since = self._now
        state.settled_at = min(self._now + SETTLE_S, state.stale_since + MOST_SETTLE_S)

    def _overflow(self) -> None:
        if not self._state.overflow:
            self._state.overflow = f"{OWN}{digest(('overflow', self._now), size=16)}"
            self._follow(
                self._own(self._state.overflow, "firing", {}, "more alerts fire than it can follow: look at all")
            )

    def _own(self, id_: str, state: AlertState, labels: dict[str, str], problem: str) -> Alert:
        """An alert about the notifier itself."""
        since = self._following.get(id_)
        return Alert(
            id=id_,
            rule="notifier",
            rule_version="",
            state=state,
            severity="critical",
            labels=labels,
            value=None,
            condition="",
            summary=f"notifier: {problem}",
            started_unix_s=since.started_unix_s if since else self._now,
            updated_unix_s=self._now,
            ended_unix_s=self._now if state == "resolved" else None,
            transition=1 if state == "firing" else 2,
        )

    # --- group and route ----------------------------------------------------------------------------------------------

    def _route(self, alert: Followed) -> None:
        """Into the groups where its labels belong now; where it was told before, only its end still is."""
        was_in = {key: self._groups[key] for key in self._groups_of.get(alert.number, ())}
        if alert.acknowledged:
            self._note_acknowledged(alert, was_in.values())
        now_in = {group.key: group for group in self._belongs(alert)} if alert.active else was_in
        for group in now_in.values():
            group.members.setdefault(alert.number, Member())
        for key, group in (now_in | was_in).items():
            group.members[alert.number].left = key not in now_in
        self._groups_of[alert.number] = list(now_in | was_in)
        for group in (now_in | was_in).values():
            self._look_because_of(alert, group)

    def _look_because_of(self, alert: Followed, group: Group) -> None:
        """To look at a group takes as long as it is large, so not for what is no news: a storm may be silenced."""
        member, leaf = group.members[alert.number], self._leaf(group)
        if not member.known and (member.left or not alert.active):
            self._leave(group, alert)
        unheard = member.left or not self._is_heard(alert) or self._plan.is_muted(leaf, self._now)
        if alert.active and unheard and group.members:
            self._look(group, self._recheck(leaf))
        elif member.known or alert.active or not group.members:
            worse = bool(group.channels) and alert.active and alert.rank < group.rank
            self._look(group, self._now if worse else max(group.not_before, self._now))

    def _note_acknowledged(self, alert: Followed, groups: Iterable[Group]) -> None:
        """Before it is told: it may fire again before it is."""
        for group in groups:
            group.members[alert.number].acknowledged = True

    def _belongs(self, alert: Followed) -> list[Group]:
        return [self._group(leaf, alert) for leaf in self._leaves(alert)]

    def _leaves(self, alert: Followed) -> list[Leaf]:
        if alert.id.startswith(OWN) and "channel" in alert.labels:
            return [self._leaf_about(alert.labels["channel"])]
        return self._plan.routes_of(alert.matched)

    def _leaf(self, group: Group) -> Leaf:
        """The route of a group; of one that is in the file no more, nothing but that it ends."""
        about = group.route.removeprefix(OWN)
        if about != group.route:
            return self._leaf_about(about)
        return self._plan.by_name.get(group.route) or replace(self._plan.root, to=(), escalate=())

    def _leaf_about(self, channel: str) -> Leaf:
        """The route of alerts about a channel: to whoever is told in its place, at once."""
        root, to = self._plan.root, self._well(channel, self._plan.fallbacks_of(channel))
        return Leaf(
            f"{OWN}{channel}",
            to=to,
            group_by=("rule", "channel"),
            group_wait_s=0.0,
            group_interval_s=root.group_interval_s,
            repeat_interval_s=root.repeat_interval_s,
        )

    def _group(self, leaf: Leaf, alert: Followed) -> Group:
        labels = leaf.group_labels(alert.matched)
        key: Key = leaf.name, tuple(sorted(labels.items()))
        storm: Key = leaf.name, STORM
        if storm in self._groups_of.get(alert.number, ()):
            return self._groups[storm]  # where it was told
        if key not in self._groups and self._folds(leaf):
            LIMITED.labels(Limit.GROUPS).inc()
            labels, key = {}, storm
        group = self._groups.get(key)
        if group is None or (not group.members and group.messages):  # one that was not told yet goes on to wait
            group = self._begin(leaf, labels, storm=key == storm, after=group)
            self._groups[key] = group
        return group

    def _folds(self, leaf: Leaf) -> bool:
        """Whether so many groups begin that the next is told with others."""
        state, now = self._state, self._now
        opened = [time for time in state.openings.get(leaf.name, ()) if time > now - STORM_S]
        full = len(self._groups) >= MAX_GROUPS or self._groups_bytes >= GROUPS_BYTES
        if full or len(opened) >= MOST_OPENED or state.storms.get(leaf.name, 0.0) > now:
            state.storms[leaf.name] = now + STORM_S
            return True
        state.openings[leaf.name] = [*opened, now]
        return False

    def _begin(self, leaf: Leaf, labels: dict[str, str], *, storm: bool, after: Group | None) -> Group:
        """A group, or its next life: that of a flapping series waits as long as any other message about it."""
        self._state.lives += 1
        wait_until = max(self._now + leaf.group_wait_s, after.not_before if after else 0.0)
        id_ = digest((leaf.name, labels, self._state.lives, self._now), size=16)
        group = Group(route=leaf.name, labels=labels, id=id_, storm=storm, not_before=wait_until, due=wait_until)
        self._groups_bytes += group.size - (after.size if after else 0)
        return group

    def _begin_again(self, group: Group, leaf: Leaf) -> Group:
        """Of a group whose end was told, what goes on unheard is another life; else nothing goes on."""
        if not group.members:
            return group
        again = self._begin(leaf, group.labels, storm=group.storm, after=group)
        again.members = group.members
        self._groups[again.key] = again
        return again

    # --- when ---------------------------------------------------------------------------------------------------------

    def _look(self, group: Group, at: float) -> None:
        group.due = min(group.due, at)
        self._next_due = min(self._next_due, group.due)

    def _look_at_all_again(self) -> None:
        for group in self._groups.values():
            self._look(group, max(group.not_before, self._now + LOOK_AGAIN_S))

    def _decide_due(self) -> Iterator[Notification]:
        if self._now >= self._quiet_changes_at:
            self._silences.forget_past(self._now)
            self._quiet_changes_at = self._silences.next_change(self._now)
            self._look_at_all_again()
        if self._now < self._next_due:
            return
        for group in [group for group in self._groups.values() if group.due <= self._now]:
            yield from self._decide(group)
        self._next_due = min((group.due for group in self._groups.values()), default=inf)
        self._end_overflow()

    def _end_overflow(self) -> None:
        if self._state.overflow and self._following.bytes < ALERTS_BYTES // 2:
            id_, self._state.overflow = self._state.overflow, ""
            self._follow(self._own(id_, "resolved", {}, "it follows all alerts again"))

    # --- the decision -------------------------------------------------------------------------------------------------

    def _decide(self, group: Group) -> Iterator[Notification]:
        """inhibit → silence → deduplicate → explain → escalate → record."""
        leaf, now = self._leaf(group), self._now
        seen = self._hear(group, leaf)
        cause = deduplicate(group, seen, leaf, now)
        urgent = bool(group.channels) and is_urgent(group, seen)
        if cause and not urgent and now >= group.not_before and group.waits(seen, leaf, now):
            group.not_before = now + leaf.group_interval_s
        if cause and (urgent or now >= group.not_before):
            told = leaf.to if cause != "resolved" else ()  # who is told by now, should the file have changed
            yield from self._tell(group, leaf, seen, cause, (*group.channels, *told))
            self._note_told(group, leaf, seen)
            if cause == "resolved":
                group = self._begin_again(group, leaf)
        if now >= group.explain_at:
            yield from self._tell_why(group, seen)
        for to in list(escalate(group, seen, leaf, now)):
            group.escalated += 1
            yield from self._tell(group, leaf, seen, "escalation", to)
        self._record(group, leaf, seen)

    def _hear(self, group: Group, leaf: Leaf) -> list[Seen]:
        """The alerts of a group, and which of them may be news."""
        muted = self._plan.is_muted(leaf, self._now)
        alerts = ((self._following.by_number[number], member) for number, member in group.members.items())
        return [Seen(alert, member, not muted and self._is_heard(alert)) for alert, member in alerts]

    def _is_heard(self, alert: Followed) -> bool:
        if not alert.active or (alert.stale and self._now < self._state.settled_at):
            return False
        labels = alert.matched
        return not self._inhibitions.keep_quiet(labels) and not self._silences.keep_quiet(labels, self._now)

    def _tell(
        self, group: Group, leaf: Leaf, seen: Iterable[Seen], cause: Cause, channels: Iterable[str]
    ) -> Iterator[Notification]:
        """One message to each channel, and to those in place of one that is in trouble."""
        to = self._reached(channels, leaf)
        self._add_channels(group, to)
        yield from self._messages(group, (each for each in seen if each.opens or each.goes_on or each.ends), cause, to)

    def _tell_why(self, group: Group, seen: Iterable[Seen]) -> Iterator[Notification]:
        """To those who were told, just what they know and its causes. If there is more to tell, that says it, too."""
        group.explain_at = inf
        known = [each for each in seen if each.member.known]
        same = not group.told_end and all(each.is_as_told for each in known)
        if same and any(each.heard for each in known):
            there = (each for each in group.channels if each in self._plan.channels)
            yield from self._messages(
                group, known, "explained", [each for each in there if each not in self._state.troubles]
            )

    def _messages(self, group: Group, about: Iterable[Seen], cause: Cause, to: Iterable[str]) -> Iterator[Notification]:
        news_since = group.told_at if cause == "explained" else inf  # in the order of the last message
        told = sorted(about, key=lambda each: _by_importance(each, news_since))
        group.messages += 1
        alerts = list(_fitting(each.alert.told() for each in told[:MOST_TOLD]))
        for channel in to:
            yield Notification(
                id=digest((group.id, channel, group.messages), size=16),
                channel=channel,
                group=group.id,
                group_labels=group.labels,
                cause=cause,
                status="firing" if any(each.alert.active for each in told) else "resolved",
                alerts=alerts,
                omitted=len(told) - len(alerts),
                created_unix_s=self._now,
            )

    def _add_channels(self, group: Group, channels: Iterable[str]) -> None:
        self._groups_bytes -= group.size
        group.channels = list(dict.fromkeys((*group.channels, *channels)))
        self._groups_bytes += group.size

    def _note_told(self, group: Group, leaf: Leaf, seen: Iterable[Seen]) -> None:
        """What people know from now on."""
        begin = [each for each in seen if each.begins]
        if begin and all(each.attended for each in seen if each.goes_on and not each.begins):
            group.escalated = 0
        for each in begin:
            each.member.at_unix_s = self._now
        for alert, member, _ in [each for each in seen if each.opens or each.goes_on]:
            member.told, member.rank, member.acknowledged = alert.transition, alert.rank, alert.acknowledged
            self._following.has_been_told(alert)
        ends = [each.alert for each in seen if each.ends]
        for alert in ends:
            self._leave(group, alert)
        group.told_end = bool(ends)
        known = (self._following.by_number[number] for number, member in group.members.items() if member.known)
        group.rank = min((alert.rank for alert in known), default=9)
        group.told_at, group.not_before, group.explain_at = self._now, self._now + leaf.group_interval_s, inf

    def _record(self, group: Group, leaf: Leaf, seen: Sequence[Seen]) -> None:
        """Forget what is over and nobody knew of, and note when to look again."""
        for alert, member, _ in seen:
            if alert.number in group.members and not member.known and (not alert.active or member.left):
                self._leave(group, alert)
        left = [each for each in seen if each.alert.number in group.members]
        if not left and self._now >= group.not_before:
            del self._groups[group.key]
            self._groups_bytes -= group.size
            return
        unheard = any(each.alert.active and not each.heard for each in left)
        due = next_look(group, left, leaf, self._now, self._recheck(leaf) if unheard else inf)
        group.due = min(due, group.explain_at)

    def _recheck(self, leaf: Leaf) -> float:
        """When time alone may bring about that what is not heard is."""
        settles = self._state.settled_at if self._state.settled_at > self._now else inf
        muted = self._now // MUTED_LOOK_S * MUTED_LOOK_S + MUTED_LOOK_S if leaf.mute or leaf.active else inf
        return min(settles, muted)

    def _leave(self, group: Group, alert: Followed) -> None:
        """An alert leaves a group; one that is in no group is not followed."""
        del group.members[alert.number]
        keys = [key for key in self._groups_of[alert.number] if key != group.key]
        self._groups_of[alert.number] = keys
        if not keys:
            del self._groups_of[alert.number]
            self._following.forget(alert)

    # --- channels in trouble ------------------------------------------------------------------------------------------

    def _reached(self, channels: Iterable[str], leaf: Leaf) -> list[str]:
        """The channels, and whoever is told in place of those in trouble; what is in the file no more is left out."""
        there = [each for each in channels if each in self._plan.channels]
        instead = [other for each in there if each in self._state.troubles for other in self._others(each, leaf)]
        return list(dict.fromkeys((*there, *instead)))

    def _others(self, channel: str, leaf: Leaf) -> tuple[str, ...]:
        """Who is told in place of a channel: those that are in no trouble themselves, as far as there are any."""
        return self._well(channel, self._plan.fallbacks(channel, leaf))

    def _well(self, channel: str, others: Iterable[str]) -> tuple[str, ...]:
        well = tuple(each for each in others if each not in self._state.troubles)
        return well or tuple(each for each in (CONSOLE,) if each != channel)

    def _trouble(self, delivery: Delivery) -> Iterator[Notification]:
        """A channel cannot be reached, or refuses: say so elsewhere, and there tell what it was to tell."""
        state, channel = self._state, delivery.channel
        if channel not in self._plan.channels or delivery.id in state.copied:
            return
        state.copied = [*state.copied[1 - COPIED :], delivery.id]
        first = channel not in state.troubles
        if first:
            about = f"{OWN}{digest((channel, self._now), size=16)}"
            state.troubles[channel] = Trouble(self._now, about)
            what = "refused a message" if delivery.outcome == "refused" else "cannot be reached"
            labels = {"channel": channel}
            self._follow(
                self._own(about, "firing", labels, f"channel {channel} {what}: {delivery.detail or 'no answer'}")
            )
        told = delivery.notification
        if told is not None and told.created_unix_s <= state.troubles[channel].since_unix_s:
            yield from self._copy(told)
            if first and delivery.outcome == "failing":
                yield from self._tell_all_since(told, channel)

    def _copy(self, told: Notification) -> Iterator[Notification]:
        group = next((group for group in self._groups.values() if group.id == told.group), None)
        leaf = self._leaf(group) if group else self._plan.root
        known = group.channels if group else ()
        for other in self._others(told.channel, leaf):
            if other not in known or other not in self._plan.channels:
                copy = msgspec.structs.replace(
                    told, id=digest((told.id, other), size=16), channel=other, created_unix_s=self._now
                )
                yield copy
                if group and group.members:
                    self._add_channels(group, [other])
                elif told.status == "firing":
                    yield _ended(copy)

    def _tell_all_since(self, first: Notification, channel: str) -> Iterator[Notification]:
        """What waits behind that message, group by group."""
        for group in [*self._groups.values()]:
            behind = group.told_at >= first.created_unix_s and group.id != first.group
            if behind and channel in group.channels and not group.route.startswith(OWN):
                leaf = self._leaf(group)
                others = [each for each in self._others(channel, leaf) if each not in group.channels]
                seen = [each for each in self._hear(group, leaf) if each.goes_on]
                if others and seen:
                    yield from self._tell(group, leaf, seen, "new", others)

    def _end_trouble(self, channel: str, why: str) -> None:
        if trouble := self._state.troubles.pop(channel, None):
            self._follow(self._own(trouble.alert_id, "resolved", {"channel": channel}, why))

    # --- out ----------------------------------------------------------------------------------------------------------

    def _outgoing(self, notification: Notification) -> Outgoing:
        value = msgspec.json.encode(notification)
        return Outgoing(NOTIFICATIONS, notification.group.encode(), value, (SCHEMA_HEADER,), self._partition)


def _ended(told: Notification) -> Notification:
    """The end of what was handed on after it was over: the records of that are on their way to another channel."""
    over: dict[str, Any] = {"state": "resolved", "updated_unix_s": told.created_unix_s}
    alerts = [
        msgspec.structs.replace(each, **over, ended_unix_s=told.created_unix_s, transition=each.transition + 1)
        for each in told.alerts
    ]
    id_ = digest((told.id, "ended"), size=16)
    return msgspec.structs.replace(told, id=id_, cause="resolved", status="resolved", alerts=alerts)


def _by_importance(each: Seen, news_since: float) -> tuple[bool, int, bool, float, str]:
    """Firing ones first, the most severe of those first, and what is new before what is known."""
    alert = each.alert
    is_known = each.goes_on and not each.changes and each.member.at_unix_s < news_since
    return not alert.active, alert.rank, is_known, alert.started_unix_s, alert.id


def _fitting(alerts: Iterable[Alert]) -> Iterator[Alert]:
    """The alerts, of their evidence nothing but likely causes once there is no room for more."""
    left = TOLD_BYTES
    for alert in alerts:
        whole, plain = len(msgspec.json.encode(alert)), only_causes(alert)
        fits = whole <= left
        left -= whole if fits else len(msgspec.json.encode(plain))
        yield alert if fits else plain
