"""What people are told of an absence: alerts of the rule ``streammon.silent``, one record a transition.

The id of an alert is made of who is absent and of the last heartbeat there was, so that whoever looks, and however
often, speaks of the same alert. Who told whom of what is in the topic ``alerts`` itself: `Book` is read from there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from hashlib import blake2b
from itertools import islice
from typing import Any, Final

import msgspec
from msgspec import Struct

from streammon.commands import Acknowledge
from streammon.results import Alert
from streammon_processors.inventory.expected import Expected, severity_of
from streammon_processors.inventory.roster import Absence, Kind, Roster, Watch

RULE: Final = "streammon.silent"
VERSION: Final = "1"
REMEMBERED: Final = 10_000
"""Alerts that ended of which the last transition is known."""

_STEPS: Final = (
    "See who is there: streammon inventory list",
    "Look at the process on that host, its last log lines, and whether it reaches Kafka",
    "Start it again; the alert ends with its next heartbeat. If it is gone for good, take it out of the inventory",
)


class _Head(Struct):
    """What tells an alert of ours apart, without reading the rest."""

    rule: str = ""


_HEADS = msgspec.json.Decoder(_Head)
_ALERTS = msgspec.json.Decoder(Alert)


def our_alert(value: bytes | None) -> Alert | None:
    """The alert, if it is one of absence."""
    try:
        return _ALERTS.decode(value) if value and _HEADS.decode(value).rule == RULE else None
    except msgspec.DecodeError:
        return None


class Book:
    """What has been told: the newest transition of each alert that is open, and of those that ended.

    An alert opens again where others did the work of a silent one, and fell silent too; or where nobody ever was there.
    """

    def __init__(self, told: Iterable[Alert] = ()) -> None:
        self.open: dict[tuple[str, ...], Alert] = {}
        self._ended: dict[str, int] = {}
        for alert in told:
            self.note(alert)

    def note(self, alert: Alert) -> None:
        """The alert has been written. An older transition changes nothing."""
        key = tuple(alert.evidence.get("key", ()))
        current = self.open.get(key)
        if current and current.id == alert.id and current.transition > alert.transition:
            return
        if alert.state != "resolved":
            self.open[key] = alert
        else:
            if current and current.id == alert.id:
                del self.open[key]
            self._ended[alert.id] = alert.transition
            for oldest in list(islice(self._ended, max(0, len(self._ended) - REMEMBERED))):
                del self._ended[oldest]

    def next_transition(self, id_: str) -> int:
        return self._ended.get(id_, 0) + 1

    def by_id(self, id_: str) -> Alert | None:
        return next((alert for alert in self.open.values() if alert.id == id_), None)


def news(book: Book, absent: Sequence[Absence], roster: Roster, expected: Expected, watch: Watch) -> Iterator[Alert]:
    """The transitions to write now: who is back, and who is newly absent."""
    assert watch.now is not None
    now, by_key = watch.now, {each.key: each for each in absent}
    for key, alert in list(book.open.items()):
        absence = by_key.get(key)
        if absence is None or not _tells(alert, absence):
            yield _resolved(alert, now, _ending(alert, roster, now))
    for key, absence in by_key.items():
        told = key in book.open and _tells(book.open[key], absence)
        if not told and watch.watched_s > absence.shown_s:
            yield _fired(absence, expected, now, book.next_transition(alert_id(absence)))


def _tells(alert: Alert, absence: Absence) -> bool:
    """Whether the alert is about this very absence: a component that was back in between is absent anew."""
    return absence.kind is Kind.MISSING or absence.since_unix_s <= _since(alert)


def alert_id(absence: Absence) -> str:
    parts = msgspec.json.encode((RULE, absence.key, absence.since_unix_s))
    return blake2b(parts, digest_size=16).hexdigest()


def acknowledged(alert: Alert, command: Acknowledge) -> Alert | None:
    """What the command makes of it, if it is about this transition."""
    if alert.state != "firing" or command.transition != alert.transition:
        return None
    by = {"by": command.by, "via": command.via, "note": command.note}
    return msgspec.structs.replace(
        alert,
        state="acknowledged",
        transition=alert.transition + 1,
        updated_unix_s=max(alert.updated_unix_s, command.time_unix_s),
        evidence=alert.evidence | {"acknowledged": {name: value for name, value in by.items() if value}},
    )


def _fired(absence: Absence, expected: Expected, now: float, transition: int) -> Alert:
    own: Any = absence.expectation or expected
    return Alert(
        id=alert_id(absence),
        rule=RULE,
        rule_version=VERSION,
        state="firing",
        severity=getattr(own, "severity", None) or severity_of(absence.role),
        labels=_labels(absence),
        value=absence.silent_s if absence.since_unix_s else None,
        condition=_condition(absence),
        summary=_summary(absence),
        started_unix_s=absence.since_unix_s or now,
        updated_unix_s=now,
        transition=transition,
        resolution_steps=list(own.resolution_steps or expected.resolution_steps or _STEPS),
        contact=own.contact or expected.contact,
        escalation=list(own.escalation or expected.escalation),
        runbook_url=own.runbook_url or expected.runbook_url,
        evidence={"key": list(absence.key), "last_heartbeat_unix_s": absence.since_unix_s},
    )


def _resolved(alert: Alert, now: float, ending: str) -> Alert:
    ended = max(alert.updated_unix_s, now)
    return msgspec.structs.replace(
        alert,
        state="resolved",
        transition=alert.transition + 1,
        condition=ending,
        updated_unix_s=ended,
        ended_unix_s=ended,
    )


def _ending(alert: Alert, roster: Roster, now: float) -> str:
    """Why it is over."""
    id_ = alert.labels.get("id")
    seen = roster.get(id_ or "")
    if id_ is None:
        return "those expected are there"
    if seen is None:
        return "it has been silent for so long that it is forgotten"
    if seen.stopped:
        return "it came back and was stopped in order"
    return "its heartbeats are back" if seen.is_alive(now) or seen.at_unix_s > _since(alert) else "others do its work"


def _since(alert: Alert) -> float:
    return float(alert.evidence.get("last_heartbeat_unix_s", 0.0))


def _labels(absence: Absence) -> dict[str, str]:
    where: Mapping[str, str] = absence.expectation.where if absence.expectation else {}
    labels = {"role": absence.role, "host": absence.host, "id": absence.id}
    return {**where, **{name: value for name, value in labels.items() if value}}


def _summary(absence: Absence) -> str:
    who = f"{absence.role} on {absence.host}" if absence.host else absence.role
    if absence.kind is Kind.SILENT:
        return f"{who} is silent: its last heartbeat was at {_when(absence.since_unix_s)}"
    if absence.host is None:
        return f"{who}: {absence.there} of at least {absence.of} are there"
    when = f"since it was stopped at {_when(absence.since_unix_s)}" if absence.since_unix_s else "and never was"
    return f"{who} is expected and not there, {when}"


def _condition(absence: Absence) -> str:
    if absence.kind is Kind.SILENT:
        return f"no heartbeat for {absence.silent_s:.4g} s > {absence.shown_s:.4g} s"
    return f"{absence.there} of {absence.of} expected"


def _when(unix_s: float) -> str:
    return f"{datetime.fromtimestamp(unix_s, UTC):%Y-%m-%d %H:%M:%S} UTC"
