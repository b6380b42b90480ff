"""Backtests on a log: the rules task over the windows and results of each partition, one partition a core at a time.

A partition is whole in itself, as it is for the rules that run, so partitions may be read by processes of their own;
but for rules with ``by``, about which `backtest_groups` reads all of them together.
Each reads from long enough before the range to where the log ended, and gives what would have fired in the range.
Nothing that the running rules remember is used: other rules would not remember the same.
"""

from __future__ import annotations

import asyncio
import gc
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import active_children, get_context, parent_process
from typing import Final, NamedTuple

from streammon.broker import Broker, connect
from streammon.broker.reading import Places, read
from streammon.config import Settings
from streammon.results import Alert
from streammon_processors.replay import Range, bounds
from streammon_processors.rules.backtest.by_groups import group_alerts_on, of_groups, of_series
from streammon_processors.rules.backtest.judging import Fired, fired, in_order
from streammon_processors.rules.backtest.running import decoded, look_back_s, task_of
from streammon_processors.rules.description import Rules
from streammon_processors.rules.groups import refuse_base_windows
from streammon_processors.rules.lanes import SortedLabels

WORTH_PROCESSES: Final = 200_000
"""Records: a process takes about as long to start as these take to read."""

GARBAGE_OBJECTS: Final = 100_000
"""Records are many small objects without cycles: looking for cycles every 700 of them takes a fifth of the time."""

Progress = Callable[[int, float], None]
"""Told now and then of a partition, and the broker's time of the records that were read last."""


class Stretch(NamedTuple):
    """What one partition holds of the windows and results that a backtest reads."""

    partition: int
    begins: Places
    ends: Places
    is_cut: bool
    """Retention has taken what rules would have looked at."""

    @property
    def records(self) -> int:
        return sum(end - self.begins[each] for each, end in self.ends.items())


class Found(NamedTuple):
    """The alerts of a backtest, and the series that rules looked at."""

    alerts: list[Fired]
    series: set[SortedLabels]
    is_cut: bool = False


def quiet(partition: int, time_unix_s: float) -> None:
    """Nobody is told."""


async def backtest_log(settings: Settings, rules: Rules, range_: Range, progress: Progress = quiet) -> Found:
    """What rules would have told of a range. ``progress`` is pickled where processes share the work.

    Raises:
        ConfigError: a rule with ``by`` looks at base windows.
    """
    refuse_base_windows(rules.groupings, settings.windows.size_s)
    broker = await connect(settings)
    try:
        parts = [
            await tell(broker, some, range_, settings, progress)
            for some, tell in ((of_series(rules), _of_series), (of_groups(rules), _of_groups))
            if some.rules
        ]
    finally:
        await broker.close()
    return _together(parts)


def _together(parts: Sequence[Found]) -> Found:
    alerts = in_order(alert for part in parts for alert in part.alerts)
    return Found(alerts, set().union(*(part.series for part in parts)), any(part.is_cut for part in parts))


async def _of_series(broker: Broker, rules: Rules, range_: Range, settings: Settings, progress: Progress) -> Found:
    found = await stretches(broker, rules, range_)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = min(cores, sum(each.records > 0 for each in found))
    if workers > 1 and sum(each.records for each in found) >= WORTH_PROCESSES:
        parts = await _by_processes(workers, settings, rules, found, range_, progress)
    else:
        parts = [await backtest_partition(broker, each, rules, range_, settings, progress) for each in found]
    return _together([*parts, Found([], set(), any(each.is_cut for each in found))])


async def _of_groups(broker: Broker, rules: Rules, range_: Range, settings: Settings, progress: Progress) -> Found:
    """A group lies in several partitions: they are read together, by one process."""
    found = await stretches(broker, rules, range_)
    begins = {place: offset for each in found for place, offset in each.begins.items()}
    ends = {place: offset for each in found for place, offset in each.ends.items()}
    groups: set[SortedLabels] = set()
    transitions = await group_alerts_on(broker, rules, begins, ends, settings.windows, progress=progress, seen=groups)
    return Found(fired(transitions, range_), groups, any(each.is_cut for each in found))


async def stretches(broker: Broker, rules: Rules, range_: Range) -> list[Stretch]:
    """From where to where each partition is to be read, of what rules look at."""
    topics = sorted({rule.origin.topic for rule in rules}) or ["windows"]
    found = [each for topic in topics for each in await _stretches(broker, rules, topic, range_.from_unix_s)]
    return [
        Stretch(
            number,
            {each: begin for part in parts for each, begin in part.begins.items()},
            {each: end for part in parts for each, end in part.ends.items()},
            any(part.is_cut for part in parts),
        )
        for number in sorted({each.partition for each in found})
        for parts in [[each for each in found if each.partition == number]]
    ]


async def _stretches(broker: Broker, rules: Rules, topic: str, from_unix_s: float) -> list[Stretch]:
    """Of one topic. Results are few, so they are read for as long as series are known; windows, for what is needed."""
    looking = [rule for rule in rules if rule.origin.topic == topic]
    needed_s = look_back_s(looking)
    known_s = max([needed_s, *(rule.origin.kept_s for rule in looking)])
    firsts, ends = await bounds(broker, [topic], "earliest")
    needed, _ = await bounds(broker, [topic], from_unix_s - needed_s)
    begins, _ = await bounds(broker, [topic], from_unix_s - known_s)
    return [
        Stretch(each.partition, {each: begin}, {each: ends[each]}, 0 < firsts[each] == needed[each])
        for each, begin in sorted(begins.items())
    ]


async def backtest_partition(
    broker: Broker, stretch: Stretch, rules: Rules, range_: Range, settings: Settings, progress: Progress
) -> Found:
    """What rules would have told of one partition."""
    series: set[SortedLabels] = set()
    task = task_of(rules, stretch.partition, settings.windows, series)
    transitions: list[Alert] = []
    async for partition, records in read(broker, [each.topic for each in stretch.ends], stretch.begins, stretch.ends):
        if records:
            transitions += list(decoded(task.process(partition.topic, records)))
            progress(stretch.partition, records[-1].timestamp / 1000)
    return Found(fired(transitions, range_), series)


async def _by_processes(
    workers: int, settings: Settings, rules: Rules, stretches: Sequence[Stretch], range_: Range, progress: Progress
) -> Sequence[Found]:
    loop = asyncio.get_running_loop()
    pool = ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=end_with_parent)
    longest_first = sorted(stretches, key=lambda each: -each.records)
    try:
        jobs = [loop.run_in_executor(pool, _job, settings, rules, each, range_, progress) for each in longest_first]
        return await asyncio.gather(*jobs)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for each in active_children():  # done; or, if this was interrupted, nobody waits for what they find
            each.terminate()


def end_with_parent() -> None:
    """Of a process of a pool: end when that which made the pool ends, even if it is killed."""
    parent = parent_process()
    assert parent is not None, "of a process of the pool"

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _job(settings: Settings, rules: Rules, stretch: Stretch, range_: Range, progress: Progress) -> Found:
    gc.set_threshold(GARBAGE_OBJECTS)

    async def run() -> Found:
        broker = await connect(settings)
        try:
            return await backtest_partition(broker, stretch, rules, range_, settings, progress)
        finally:
            await broker.close()

    return asyncio.run(run())
