"""The contract of every pure task, on ours: the log decides their output, whatever is cut, restored or crashed."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

from streammon.broker import Outgoing
from streammon.config import Settings, WindowSettings
from streammon_processors.builtin import rollups_processor, rules_processor, windows_processor
from streammon_processors.contract import PARTITION, Logs, ProcessorContract, Stored, run
from streammon_processors.rollups import RollupTask
from streammon_processors.rules import Rules, RulesTask
from streammon_processors.shapes import Asked, hopping, session
from tests.logs import HOT, SLOW, TYPES, RandomLog, stored
from tests.rollup_oracle import windows_log

SETTINGS = Settings(windows=WindowSettings(max_late_s=60.0, max_series=3))
ROLLUPS = Settings(windows=WindowSettings(max_late_s=60.0, max_series=3, rollups_s=(4, 12, 36)))


@cache
def event_logs(seed: int) -> Logs:
    return {topic: stored(RandomLog(seed + i, 25, topic).entries) for i, topic in enumerate(TYPES)}


@cache
def window_logs(seed: int) -> Logs:
    """Real windows with supplements, and records that are none."""
    windows = windows_processor(SETTINGS).task(PARTITION)
    outputs = [each for some in run(windows, event_logs(seed)).values() for each in some if each.topic == "windows"]
    broken = [Outgoing("windows", None, b"{"), Outgoing("windows", None, None)]
    records = [*outputs[:10], *broken, *outputs[10:]]
    return {"windows": [Stored(output.value, offset, _broker_ms(output)) for offset, output in enumerate(records)]}


def _broker_ms(window: Outgoing) -> int:
    """The broker gets a window a little after its end."""
    start = windows_processor(SETTINGS).time_of("windows", window.value)
    return round(((start or 0.0) + 4.0) * 1000)


class TestWindows(ProcessorContract):
    processor = windows_processor(SETTINGS)

    def logs(self, seed: int) -> Logs:
        return event_logs(seed)


def rollups_task(partition: int) -> RollupTask:
    shapes = (hopping(12, 4), session(6))
    return RollupTask(partition, ROLLUPS.windows, [Asked(shape, "inference", "a rule") for shape in shapes])


@cache
def rollup_logs(seed: int) -> Logs:
    records = windows_log(seed, ROLLUPS.windows, rollups_task(PARTITION), batches=25)
    broken = Stored(b"{", len(records), records[-1].timestamp)
    return {"windows": [*records, broken]}


class TestRollups(ProcessorContract):
    processor = replace(rollups_processor(ROLLUPS), task=rollups_task)

    def logs(self, seed: int) -> Logs:
        return rollup_logs(seed)


class TestRules(ProcessorContract):
    processor = replace(rules_processor(SETTINGS), task=lambda number: RulesTask(Rules((SLOW, HOT)), number))

    def logs(self, seed: int) -> Logs:
        return window_logs(seed)
