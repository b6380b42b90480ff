"""Backtests: what rules would have told on a stretch of history, and how good that would have been.

`alerts_of` gives the transitions that rules make of a panel of numbers, and `streammon_processors.rules.backtest_log`
what they make of the windows and results on a log. `fired` folds transitions into what a person would have got,
`compare` says how two sets of rules differ, and `judge` how one fares against incidents that are known. All of it is
pure: same log, same bytes.

It is the rules task itself that runs, from a while before the range, so that the past that rules look back on is there
(`look_back_s`). What it cannot know: who acknowledged what, and an alert that had been firing for longer than that.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from math import inf
from statistics import median

import msgspec
from msgspec import Struct

from streammon.broker import Outgoing, Record
from streammon.config import WindowSettings
from streammon.errors import ConfigError
from streammon.results import Alert, Severity
from streammon_processors import rollups
from streammon_processors.replay import Range
from streammon_processors.rollups import RollupTask
from streammon_processors.rollups.task import LEVEL_HEADER
from streammon_processors.rules import group
from streammon_processors.rules.columns import TICK_S, ColumnTask, Panel, Written, as_log, records_of
from streammon_processors.rules.description import SEVERITIES, Rule, Rules
from streammon_processors.rules.lanes import SortedLabels
from streammon_processors.rules.task import RulesTask
from streammon_processors.shapes import Asked, Shape, plan, tumbling
from streammon_processors.task import Task

PATIENCE_S = 300.0
"""Beyond all that a rule looks back on: so long a breach may wait for its next window."""
BATCH = 500
CLOSING_S = rollups.PATIENCE_S + group.PATIENCE_S + 3 * TICK_S
"""So long after the last window, whatever it counts for is closed, also groups: each wait ends with a tick."""


# ---------------------------------------------------------------- which windows


def asked_beyond(rules: Rules, base_s: float) -> list[Asked]:
    """The windows that rules look at and that are no base windows."""
    return [each for each in rules.asked if each.shape != tumbling(base_s)]


def about(rules: Rules, sources: Collection[str]) -> Rules:
    """The rules that look at windows of these sources."""
    return Rules(tuple(rule for rule in rules if rule.source in sources))


def look_back_s(rules: Iterable[Rule]) -> float:
    """How long before a range to begin, so that all is known that rules ask for in it."""
    each = [
        rule.past_s
        + max(level.hold_s for level in rule.levels)
        + rule.keep_firing_s
        + (rule.shape.size_s if rule.shape else 0.0)
        for rule in rules
    ]
    return max(each, default=0.0) + PATIENCE_S


def _parts_of(asked: Sequence[Asked], settings: WindowSettings) -> tuple[float, ...]:
    """The configured lengths of which the windows are made that are asked for, so that they add up as they did live."""
    made_of = {level.shape: level.of_s for level in plan(settings.size_s, settings.rollups_s, asked)}
    found: set[float] = set()
    shapes: list[Shape] = [each.shape for each in asked]
    while shapes:
        part = tumbling(made_of.get(shapes.pop(), settings.size_s))
        if part in made_of and part.size_s not in found:
            found.add(part.size_s)
            shapes.append(part)
    sizes = found | {each.shape.size_s for each in asked if each.shape.kind == "tumbling"}
    return tuple(sorted(sizes & set(settings.rollups_s)))


class Rollups:
    """The windows that rules look at, made anew of the base windows of one partition; those of the log are left out."""

    def __init__(self, rules: Rules, partition: int, settings: WindowSettings) -> None:
        asked = asked_beyond(rules, settings.size_s)
        lean = settings.model_copy(update={"rollups_s": _parts_of(asked, settings)})
        self._task = RollupTask(partition, lean, asked)
        self._offset = 0
        self.refused: list[Outgoing] = []
        """Dead letters, until somebody takes them."""

    @property
    def waiting(self) -> Sequence[str]:
        return self._task.waiting

    def grown(self, record: Record) -> Iterator[Written]:
        """A record, and the rollups that it completes, and those that they complete; nothing of a rollup."""
        queue = [] if _is_rollup(record) else [(record.value or b"", record.headers)]
        while queue:
            value, headers = queue.pop(0)
            written = Written(self._offset, record.timestamp, value, headers, record.partition)
            self._offset += 1
            yield written
            for made in self._task.process("windows", [written]):
                if made.topic == "windows":
                    queue.append((made.value or b"", tuple(made.headers)))
                else:
                    self.refused.append(made)


def _is_rollup(record: Record) -> bool:
    return any(name == LEVEL_HEADER for name, _ in record.headers)


class Afresh:
    """A task of a backtest: it is begun anew, and remembers nothing."""

    def snapshot(self) -> bytes:
        raise NotImplementedError("a backtest is begun anew")

    def restore(self, snapshot: bytes) -> None:
        raise NotImplementedError("a backtest is begun anew")

    def offsets(self) -> Mapping[str, int]:
        return {}

    def watermarks(self) -> Mapping[str, float]:
        return {}


class _WithRollups(Afresh):
    """A rules task, and before it the rollups that it looks at."""

    def __init__(self, rules: Rules, partition: int, settings: WindowSettings, met: set[SortedLabels] | None) -> None:
        self.rules = _plain(rules, partition, settings, met)
        self._rollups = Rollups(rules, partition, settings)

    @property
    def waiting(self) -> Sequence[str]:
        return [*self.rules.waiting, *self._rollups.waiting]

    def process(self, topic: str, records: Sequence[Record]) -> list[Outgoing]:
        if topic != "windows":
            return self.rules.process(topic, records)
        outputs = self.rules.process(topic, list(chain.from_iterable(map(self._rollups.grown, records))))
        refused, self._rollups.refused = self._rollups.refused, []
        return [*outputs, *refused]


def task_of(rules: Rules, partition: int, settings: WindowSettings, met: set[SortedLabels] | None = None) -> Task:
    """The task that decides on base windows, with what it needs to know of longer ones."""
    if asked_beyond(rules, settings.size_s):
        return _WithRollups(rules, partition, settings, met)
    return _plain(rules, partition, settings, met)


def _plain(rules: Rules, partition: int, settings: WindowSettings, met: set[SortedLabels] | None = None) -> RulesTask:
    return RulesTask(rules, partition, base_s=settings.size_s, max_future_s=settings.max_future_s, met=met)


# ---------------------------------------------------------------- transitions


def alerts_of(
    rules: Rules,
    given: Panel,
    settings: WindowSettings,
    *,
    until_unix_s: float | None = None,
    progress: Callable[[float], None] = lambda time_unix_s: None,
) -> Iterator[Alert]:
    """The transitions that rules make of the windows of a panel, which are base windows.

    Raises:
        ConfigError: a rule looks at windows that cannot be made of these.
    """
    rules = about(rules, {given.source})
    settings = settings.model_copy(update={"size_s": given.size_s})
    if asked_beyond(rules, given.size_s) or until_unix_s is not None:
        yield from _by_records(task_of(rules, 0, settings), log_of(given, until_unix_s), progress)
        return
    task = ColumnTask(rules, 0, base_s=given.size_s)
    for block in given.blocks():
        yield from decoded(task.take(block))
        progress(float(block.starts[-1]))


def alerts_of_results(
    rules: Rules, topic: str, results: Iterable[tuple[float, bytes]], settings: WindowSettings, until_unix_s: float
) -> Iterator[Alert]:
    """The transitions that rules make of results, which are in the order of the times at which they come."""
    task = _plain(rules, 0, settings)
    for batch in batches(as_log(results, until_unix_s + CLOSING_S)) if topic in rules.topics else ():
        yield from decoded(task.process(topic, batch))


def log_of(given: Panel, until_unix_s: float | None = None) -> Iterator[Written]:
    """The panel as a log of `windows`, with ticks behind it, until all is decided on of what it holds."""
    ends = given.starts[given.there.any(axis=1)] + given.size_s
    return records_of(given, max([until_unix_s or 0.0, *ends[-1:].tolist()]) + CLOSING_S)


def _by_records(task: Task, log: Iterable[Record], progress: Callable[[float], None]) -> Iterator[Alert]:
    for batch in batches(log):
        yield from alerts_of_numbers(task.process("windows", batch))
        progress(batch[-1].timestamp / 1000)


def batches(log: Iterable[Record]) -> Iterator[list[Record]]:
    """Records as they are given to a task."""
    records = iter(log)
    while batch := list(islice(records, BATCH)):
        yield batch


def alerts_of_numbers(outputs: Sequence[Outgoing]) -> Iterator[Alert]:
    """Raises ConfigError: they are of windows that do not say enough."""
    if any(each.topic == "deadletter" for each in outputs):
        raise ConfigError(
            "longer windows, or those of groups, cannot be made of these: give whole distributions and gauges "
            "(duration_s, gauges.used), not single statistics of them (duration_s.p99)"
        )
    return decoded(outputs)


def decoded(outputs: Iterable[Outgoing]) -> Iterator[Alert]:
    """The alerts among what a task puts out."""
    return (_ALERT.decode(each.value or b"") for each in outputs if each.topic == "alerts")


_ALERT = msgspec.json.Decoder(Alert)


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
