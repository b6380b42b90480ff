"""The transitions that rules make of windows of the past: it is the rules task itself that runs, from nothing.

It begins a while before the range that is asked for, so that the past that rules look back on is there
(`look_back_s`); rollups that rules look at are made anew, whoever made which at the time.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice

import msgspec

from streammon.broker import Outgoing, Record
from streammon.config import WindowSettings
from streammon.errors import ConfigError
from streammon.results import Alert
from streammon.topics import ROLLUP_HEADER
from streammon_processors import rollups
from streammon_processors.rollups import RollupTask
from streammon_processors.rules import group
from streammon_processors.rules.backtest.columns import TICK_S, ColumnTask, Panel, Written, as_log, records_of
from streammon_processors.rules.description import Rule, Rules
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
    return any(name == ROLLUP_HEADER for name, _ in record.headers)


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
