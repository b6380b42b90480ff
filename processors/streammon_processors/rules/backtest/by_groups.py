"""Backtests of rules with ``by``: the windows of all partitions, or of all files, added up as they are live::

    of each partition: windows ──► rollups ──regroup──►┐
                                                       ├─ in order of the broker's time ──group──► rules
    of each partition: windows ──► rollups ──regroup──►┘

The very tasks that run live, in one process and without the topics between them, so that a group is told of that
nobody has added up yet. All groups are in one place here, which has as much room as all partitions together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from heapq import merge

from streammon.broker import Broker, Outgoing, Record
from streammon.broker.reading import Places
from streammon.config import WindowSettings
from streammon.results import Alert
from streammon.tick import TICK
from streammon.topics import ROLLUP_HEADER
from streammon_processors.replay import merged
from streammon_processors.rules import group
from streammon_processors.rules.backtest.columns import TICK_S, Panel, Written, ms
from streammon_processors.rules.backtest.running import (
    Afresh,
    Rollups,
    about,
    alerts_of_numbers,
    batches,
    decoded,
    log_of,
)
from streammon_processors.rules.description import Rules
from streammon_processors.rules.group import GroupTask
from streammon_processors.rules.groups import GROUPED, REGROUPED
from streammon_processors.rules.lanes import SortedLabels
from streammon_processors.rules.regroup import RegroupTask
from streammon_processors.rules.task import MAX_STATE_BYTES, RulesTask
from streammon_processors.shapes import tumbling


def of_series(rules: Rules) -> Rules:
    """The rules that look at each series alone."""
    return Rules(tuple(rule for rule in rules if rule.grouping is None))


def of_groups(rules: Rules) -> Rules:
    """The rules that say ``by``."""
    return Rules(tuple(rule for rule in rules if rule.grouping is not None))


# ---------------------------------------------------------------- the task


class GroupsTask(Afresh):
    """Rules about groups, on the base windows of all partitions in order of time."""

    def __init__(
        self, rules: Rules, settings: Mapping[int, WindowSettings], met: set[SortedLabels] | None = None
    ) -> None:
        """``settings``: by partition; those of files may have base windows of other lengths."""
        places = max(1, len(settings))
        self._rules = RulesTask(rules, 0, max_state_bytes=places * MAX_STATE_BYTES, met=met)
        self._parts = {number: _Parts(rules, number, each) for number, each in settings.items()}
        self._group = GroupTask(
            rules.groupings, 0, max_groups=places * group.MAX_GROUPS, max_sums=places * group.MAX_SUMS
        )
        self._next = dict.fromkeys((REGROUPED, GROUPED), 0)
        self._ticked_ms = 0
        self._refused: list[Outgoing] = []

    @property
    def waiting(self) -> Sequence[str]:
        return ()

    def process(self, topic: str, records: Sequence[Record]) -> list[Outgoing]:
        """What the rules say because of these windows, whose partitions they name."""
        outputs = self._rules.process(GROUPED, [each for record in records for each in self._grouped(record)])
        refused, self._refused = self._refused, []
        return [*outputs, *refused]

    def _grouped(self, record: Record) -> Iterator[Written]:
        """The windows of groups that are closed by now, as a log would hold them."""
        for part in self._regrouped(record):
            for closed in self._group.process(REGROUPED, [part]):
                yield self._written(GROUPED, part.timestamp, closed.value)
            if part.value == TICK:
                yield self._written(GROUPED, part.timestamp, TICK)

    def _regrouped(self, record: Record) -> Iterator[Written]:
        """What a record counts for; and a tick now and then, as there are live while a group is open."""
        if record.timestamp >= self._ticked_ms + ms(TICK_S):
            self._ticked_ms = record.timestamp
            yield self._written(REGROUPED, record.timestamp, TICK)
        for part in self._parts[record.partition].of(record):
            if part.topic == REGROUPED:
                yield self._written(REGROUPED, record.timestamp, part.value)
            else:
                self._refused.append(part)

    def _written(self, topic: str, stamp_ms: int, value: bytes | None) -> Written:
        self._next[topic] += 1
        return Written(self._next[topic] - 1, stamp_ms, value or b"")


class _Parts:
    """What the windows of one partition count for."""

    def __init__(self, rules: Rules, partition: int, settings: WindowSettings) -> None:
        self._rollups = Rollups(rules, partition, settings)
        self._regroup = RegroupTask(rules.groupings, partition)
        self._base = ((ROLLUP_HEADER, tumbling(settings.size_s).name.encode()),)

    def of(self, record: Record) -> list[Outgoing]:
        """Base windows are taken for rollups: of a file, they may be as long as those that rules look at."""
        grown = [each if each.headers else each._replace(headers=self._base) for each in self._rollups.grown(record)]
        parts = self._regroup.process("windows", [each for each in grown if each.value != TICK])
        refused, self._rollups.refused = self._rollups.refused, []
        return [*parts, *refused]


# ---------------------------------------------------------------- of files


def group_alerts_of(
    rules: Rules,
    panels: Sequence[Panel],
    settings: WindowSettings,
    *,
    until_unix_s: float | None = None,
    progress: Callable[[float], None] = lambda time_unix_s: None,
    seen: set[SortedLabels] | None = None,
) -> Iterator[Alert]:
    """The transitions that the rules with ``by`` make of the base windows of all panels together.

    As it goes, ``seen`` is filled with the groups.

    Raises:
        ConfigError: a rule looks at windows that cannot be made of these.
    """
    rules = about(of_groups(rules), {each.source for each in panels})
    if not rules.rules:
        return
    sizes = {number: settings.model_copy(update={"size_s": each.size_s}) for number, each in enumerate(panels)}
    task = GroupsTask(rules, sizes, seen)
    logs = [_of_partition(number, log_of(each, until_unix_s)) for number, each in enumerate(panels)]
    for batch in batches(merge(*logs, key=lambda each: (each.timestamp, each.partition))):
        yield from alerts_of_numbers(task.process("windows", batch))
        progress(batch[-1].timestamp / 1000)


def _of_partition(number: int, log: Iterator[Written]) -> Iterator[Written]:
    return (each._replace(partition=number) for each in log)


# ---------------------------------------------------------------- of a log


async def group_alerts_on(
    broker: Broker,
    rules: Rules,
    begins: Places,
    ends: Places,
    settings: WindowSettings,
    *,
    progress: Callable[[int, float], None] = lambda partition, time_unix_s: None,
    seen: set[SortedLabels] | None = None,
) -> list[Alert]:
    """The transitions that rules with ``by`` make of partitions of `windows` together, read once in order of time."""
    of_each = dict.fromkeys((each.partition for each in begins), settings)
    task = GroupsTask(rules, of_each, seen)
    found: list[Alert] = []
    async with aclosing(merged(broker, begins, ends)) as batches_:
        async for partition, records in batches_:
            found += decoded(task.process(partition.topic, records))
            progress(partition.partition, records[-1].timestamp / 1000)
    return found
