"""What rules told, as a person would have got it: how two sets of rules differ, and how one fares against incidents.

`fired` folds transitions into alerts from when they fired to when they were resolved; `compare` pairs those of two sets
of rules; `judge` says which known incidents they found, how soon, and how often they were wrong.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import inf
from statistics import median

import msgspec
from msgspec import Struct

from streammon.results import Alert, Severity
from streammon_processors.replay import Range
from streammon_processors.rules.description import SEVERITIES

# ---------------------------------------------------------------- what a person would have got


class Fired(Struct, frozen=True, kw_only=True):
    """An alert that fired: since when it was breached, from when to when it fired (None: it still does), how bad."""

    id: str
    rule: str
    severity: Severity
    labels: dict[str, str]
    since_unix_s: float
    from_unix_s: float
    to_unix_s: float | None = None
    summary: str = ""
    condition: str = ""

    @property
    def series(self) -> tuple[str, tuple[tuple[str, str], ...]]:
        return self.rule, tuple(sorted(self.labels.items()))

    @property
    def told(self) -> tuple[Severity, float, float | None]:
        """What two alerts of the same trouble may differ in."""
        return self.severity, self.from_unix_s, self.to_unix_s


def fired(transitions: Iterable[Alert], range_: Range) -> list[Fired]:
    """The alerts that began to fire in the range, as bad as they got, in order of time."""
    found: dict[str, Fired] = {}
    for alert in transitions:
        before = found.get(alert.id)
        if before is None and alert.has_fired:
            found[alert.id] = _begun(alert)
        elif before is not None:
            worse = max(before.severity, alert.severity, key=SEVERITIES.index)
            found[alert.id] = msgspec.structs.replace(before, severity=worse, to_unix_s=alert.ended_unix_s)
    return in_order(each for each in found.values() if each.from_unix_s in range_)


def in_order(alerts: Iterable[Fired]) -> list[Fired]:
    """By time, and of those that began at once by rule and series."""
    return sorted(alerts, key=lambda each: (each.from_unix_s, *each.series, each.id))


def _begun(alert: Alert) -> Fired:
    return Fired(
        id=alert.id,
        rule=alert.rule,
        severity=alert.severity,
        labels=dict(sorted(alert.labels.items())),
        since_unix_s=alert.started_unix_s,
        from_unix_s=alert.updated_unix_s,
        summary=alert.summary,
        condition=alert.condition,
    )


# ---------------------------------------------------------------- two sets of rules


class Changed(Struct, frozen=True):
    """The same trouble, told otherwise."""

    old: Fired
    new: Fired


class Difference(Struct, frozen=True, kw_only=True):
    """What new rules tell, and old ones do not, and the reverse."""

    only_new: list[Fired]
    only_old: list[Fired]
    changed: list[Changed]
    same: int

    @property
    def is_any(self) -> bool:
        return bool(self.only_new or self.only_old or self.changed)


def compare(new: Sequence[Fired], old: Sequence[Fired]) -> Difference:
    """Alerts of one rule and series that overlap in time are the same trouble; each is paired once, the first first."""
    left = list(old)
    pairs: list[Changed] = []
    only_new: list[Fired] = []
    for each in new:
        match = next((other for other in left if other.series == each.series and _overlap(each, other)), None)
        if match is None:
            only_new.append(each)
        else:
            left.remove(match)
            pairs.append(Changed(match, each))
    changed = [pair for pair in pairs if pair.old.told != pair.new.told]
    return Difference(only_new=only_new, only_old=left, changed=changed, same=len(pairs) - len(changed))


def _overlap(one: Fired, other: Fired) -> bool:
    return one.from_unix_s <= _end(other) and other.from_unix_s <= _end(one)


def _end(each: Fired) -> float:
    return inf if each.to_unix_s is None else each.to_unix_s


# ---------------------------------------------------------------- known incidents


class Incident(Struct, frozen=True, kw_only=True):
    """Trouble that is known to have been; alerts on series with these labels should have told of it."""

    from_unix_s: float
    to_unix_s: float
    labels: dict[str, str] = {}
    name: str = ""

    def is_told_by(self, alert: Fired) -> bool:
        """Whether the alert began to fire in it. One that was firing before would have called nobody."""
        return self.labels.items() <= alert.labels.items() and self.from_unix_s <= alert.from_unix_s <= self.to_unix_s


class Detection(Struct, frozen=True, kw_only=True):
    """What became of an incident; no delay: nobody was told."""

    incident: Incident
    delay_s: float | None = None
    rule: str | None = None


class Judgement(Struct, frozen=True, kw_only=True):
    """How good the alerts were. ``precision`` None: there were none; ``recall`` None: nothing had happened."""

    incidents: list[Detection]
    false_alarms: list[Fired]
    alerts: int
    missed: int
    precision: float | None
    recall: float | None
    median_delay_s: float | None
    days: float
    series: int
    false_alarms_a_day: float
    false_alarms_a_week_a_series: float


def judge(alerts: Sequence[Fired], incidents: Iterable[Incident], range_: Range, series: int) -> Judgement:
    """Alerts against incidents, of those that overlap the range. ``series``: how many were looked at."""
    known = [each for each in incidents if each.from_unix_s < range_.to_unix_s and each.to_unix_s >= range_.from_unix_s]
    found = [_detection(each, alerts) for each in known]
    wrong = [alert for alert in alerts if not any(each.is_told_by(alert) for each in known)]
    delays = [each.delay_s for each in found if each.delay_s is not None]
    days = (range_.to_unix_s - range_.from_unix_s) / 86_400
    return Judgement(
        incidents=found,
        false_alarms=wrong,
        alerts=len(alerts),
        missed=len(found) - len(delays),
        precision=1 - len(wrong) / len(alerts) if alerts else None,
        recall=len(delays) / len(found) if found else None,
        median_delay_s=median(delays) if delays else None,
        days=days,
        series=series,
        false_alarms_a_day=len(wrong) / days,
        false_alarms_a_week_a_series=7 * len(wrong) / days / max(1, series),
    )


def _detection(incident: Incident, alerts: Sequence[Fired]) -> Detection:
    first = next((alert for alert in alerts if incident.is_told_by(alert)), None)
    if first is None:
        return Detection(incident=incident)
    return Detection(incident=incident, delay_s=first.from_unix_s - incident.from_unix_s, rule=first.rule)
