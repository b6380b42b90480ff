"""Rollups: longer windows are the exact sums of the base windows, whatever happens on the way."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, Literal

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from streammon.broker import Outgoing
from streammon.config import WindowSettings
from streammon.errors import ConfigError
from streammon.results import OTHER, Completeness, Exemplar, Gauge, Window
from streammon.sketch import Sketch
from streammon.topics import MAX_RECORD_BYTES, ROLLUP_HEADER
from streammon_processors.contract import run, run_with_crashes
from streammon_processors.rollups import PATIENCE_S, RollupTask
from streammon_processors.shapes import Asked, Level, hopping, plan, session, tumbling
from streammon_processors.windows import series_key
from tests.rollup_oracle import Loop, parts_of, runs, totals, windows_in, windows_log
from tests.sinks.builders import distribution

SETTINGS = WindowSettings(rollups_s=(4, 12, 36), max_late_s=60.0)
ASKED = [
    Asked(hopping(12, 4), "inference", "a rule"),
    Asked(hopping(10, 2), "resource", "a rule"),
    Asked(session(6), "inference", "a rule"),
]
seeds = st.integers(0, 2**32 - 1)
examples = hypothesis_settings(max_examples=10, deadline=None)


def task() -> RollupTask:
    return RollupTask(3, SETTINGS, ASKED)


# --- on random logs -------------------------------------------------------------------------------------------------


@given(seed=seeds)
@examples
def test_the_parts_of_every_length_add_up_to_the_base_windows(seed: int) -> None:
    windows = windows_in(windows_log(seed, SETTINGS, task()))
    base = [window for window in windows if window.is_base]
    for size_s in SETTINGS.rollups_s:
        rollups = [window for window in windows if window.of_s and (window.kind, window.size_s) == ("tumbling", size_s)]
        expected, found = totals(base, size_s), parts_of(rollups, size_s)
        assert found.keys() == expected.keys()
        for key in expected:
            found[key].check(expected[key])


@given(seed=seeds)
@examples
def test_hopping_windows_add_up_like_tumbling_ones(seed: int) -> None:
    windows = windows_in(windows_log(seed, SETTINGS, task()))
    for asked in ASKED[:2]:
        shape = asked.shape
        base = [window for window in windows if window.is_base and window.source == asked.source]
        rollups = [window for window in windows if window.kind == "hopping" and window.size_s == shape.size_s]
        expected, found = totals(base, shape.size_s, shape.every_s), parts_of(rollups, shape.every_s)
        assert {window.source for window in rollups} == {asked.source}
        assert found.keys() == expected.keys()
        for key in expected:
            found[key].check(expected[key])


@given(seed=seeds)
@examples
def test_sessions_hold_every_event_once(seed: int) -> None:
    windows = windows_in(windows_log(seed, SETTINGS, task()))
    base = [window for window in windows if window.is_base and window.source == "inference" and window.count]
    sessions = [window for window in windows if window.kind == "session"]
    whole = 10.0**10
    expected, found = totals(base, whole), parts_of(sessions, whole)
    assert found.keys() == expected.keys()
    for key in expected:
        found[key].check(expected[key])


@given(seed=seeds)
@examples
def test_reading_the_log_again_gives_the_same_rollups(seed: int) -> None:
    log = windows_log(seed, SETTINGS, task())
    live = [record.value for record in log if any(name == ROLLUP_HEADER for name, _ in record.headers)]
    assert [output.value for output in task().process("windows", log)] == live


@given(seed=seeds, crashes=st.integers(1, 30), longest=st.integers(1, 40))
@examples
def test_crashes_lose_nothing_and_repeat_nothing(seed: int, crashes: int, longest: int) -> None:
    logs = {"windows": windows_log(seed, SETTINGS, task())}
    assert run_with_crashes(task, logs, random.Random(seed), crashes, longest) == run(task(), logs)


# --- closing --------------------------------------------------------------------------------------------------------

T = 1_700_000_040.0  # a full minute
MINUTES = WindowSettings(rollups_s=(60, 300))
RANKER = {"service": "shop", "model": "ranker"}


def base(
    after_s: float, values: Sequence[float] = (0.1,), *, part: Literal["main", "late"] = "main", **fields: Any
) -> Outgoing:
    """A base window that starts ``after_s`` seconds after `T`."""
    start = T + after_s
    made: dict[str, Any] = {
        "source": "inference",
        "series": RANKER,
        "completeness": Completeness(watermark_unix_s=start + 2.0, late=len(values) if part == "late" else 0),
        "error_count": 0,
        "error_rate": 0.0,
        "duration_s": distribution(*values) if values else None,
    }
    window = Window(
        part=part,
        revision=int(part == "late"),
        start_unix_s=start,
        end_unix_s=start + 2.0,
        size_s=2.0,
        partition=3,
        count=len(values),
        throughput_per_s=len(values) / 2.0,
        **(made | fields),
    )
    return Outgoing("windows", series_key(window.series), msgspec.json.encode(window))


def cpu(after_s: float) -> Outgoing:
    """A base window of the other source."""
    return base(after_s, source="resource", series={"host": "h1"}, duration_s=None, error_count=None, error_rate=None)


def at_ms(after_s: float) -> int:
    return round((T + after_s) * 1000)


def loop(settings: WindowSettings = MINUTES, *asked: Asked) -> Loop:
    return Loop(RollupTask(3, settings, asked))


def feed(log: Loop, *windows: tuple[float, Outgoing]) -> None:
    """Windows and when the broker gets them, seconds after `T`."""
    for after_s, window in windows:
        log.append(window, at_ms(after_s))
        log.read_back()


def written(log: Loop, size_s: float) -> list[Window]:
    return [window for window in windows_in(log.written) if window.size_s == size_s]


def test_a_minute_closes_when_the_next_one_begins() -> None:
    log = loop()
    feed(log, (3, base(0, [0.1, 0.3])), (33, base(30, [0.2])), (61, base(58, [0.4])))
    assert written(log, 60) == []
    feed(log, (63, base(60)))
    [minute] = written(log, 60)
    assert (minute.part, minute.start_unix_s - T, minute.end_unix_s - T, minute.of_s) == ("main", 0, 60, 2.0)
    assert (minute.count, minute.throughput_per_s) == (4, 4 / 60)
    assert minute.duration_s is not None
    assert minute.duration_s.sketch == Sketch.of(np.array([0.1, 0.3, 0.2, 0.4]))
    assert (minute.duration_s.min, minute.duration_s.max, minute.duration_s.p50) == pytest.approx(
        (0.1, 0.4, 0.2), rel=6e-3
    )


def test_five_minutes_close_when_their_last_minute_has_come_back_from_the_log() -> None:
    log = loop()
    full = 300 - T % 300
    for minute in range(6):
        log.append(base(full + 60 * minute), at_ms(full + 60 * minute + 3))
    log.append(base(full + 302), at_ms(full + 305))
    assert len(written(log, 60)) == 5
    log.read_back(4)
    assert written(log, 300) == [], "the fifth is on its way into the log"
    log.read_back()
    assert [(window.start_unix_s - T, window.count) for window in written(log, 300)] == [(full, 5)]


def test_a_source_that_falls_silent_is_closed_by_the_broker_time_of_the_other() -> None:
    log = loop()
    feed(log, (3, base(0)), (5, cpu(2)))
    feed(log, *((after_s + 3, cpu(after_s)) for after_s in range(4, 68, 2)))
    assert [window.source for window in written(log, 60)] == ["resource"]
    silent_until = 60 + PATIENCE_S + 1  # its watermark was one second behind the broker
    feed(log, (silent_until - 0.5, cpu(68)))
    assert [window.source for window in written(log, 60)] == ["resource"]
    feed(log, (silent_until + 0.5, cpu(70)))
    assert [window.source for window in written(log, 60)] == ["resource", "inference"]


def test_a_partition_where_nothing_comes_any_more_is_closed_by_ticks() -> None:
    log = loop()
    feed(log, (3, base(0)))
    assert log.task.waiting == ["windows"]
    for _ in range(13):  # its watermark was one second behind the broker
        log.tick(5_000)
    assert written(log, 60) == []
    log.tick(5_000)
    log.tick(5_000)
    assert len(written(log, 60)) == 1
    log.settle()
    assert (len(written(log, 300)), log.task.waiting) == (1, [])


def test_nothing_closes_early_after_an_outage_of_the_processors() -> None:
    log = loop()
    feed(log, (3, base(0)), (5, cpu(2)))
    feed(log, (203, cpu(4)), (203, base(2)), (203, base(58)), (203, base(60)))
    minutes = [window for window in written(log, 60) if window.source == "inference"]
    assert [(window.part, window.count) for window in minutes] == [("main", 3)]


def test_a_late_window_of_an_open_minute_is_part_of_it() -> None:
    log = loop()
    feed(log, (3, base(0)), (40, base(0, [9.0], part="late")), (63, base(60)))
    [minute] = written(log, 60)
    assert (minute.part, minute.count, minute.completeness.late) == ("main", 2, 1)


def test_late_windows_of_a_closed_minute_are_supplements_of_all_its_rollups() -> None:
    log = loop()
    feed(log, (3, base(0)), (603, base(600)), (605, base(0, [9.0], part="late")), (606, base(2, [8.0], part="late")))
    log.settle()
    minutes = [window for window in written(log, 60) if window.start_unix_s == T]
    assert [(window.part, window.revision, window.count) for window in minutes] == [("main", 0, 1), ("late", 1, 2)]
    start = T // 300 * 300
    fives = [(window.part, window.count) for window in written(log, 300) if window.start_unix_s == start]
    assert fives == [("main", 1), ("late", 2)]


def test_supplements_of_one_rollup_have_revisions_of_their_own() -> None:
    log = loop()
    feed(log, (3, base(0)), (63, base(60)))
    for after_s in (70, 90, 110):
        feed(log, (after_s, base(0, part="late")))
        log.tick(12_000)
    assert [window.revision for window in written(log, 60) if window.part == "late"] == [1, 2, 3]


def test_a_window_that_only_tells_of_drops_opens_nothing() -> None:
    log = loop()
    feed(log, (3, base(0, [], part="late", completeness=Completeness(dropped=4))))
    log.tick(10_000)
    [minute] = written(log, 60)
    assert (minute.part, minute.count, minute.completeness.dropped) == ("late", 0, 4)
    log.settle()
    assert [window.completeness.dropped for window in written(log, 300)] == [4]


def test_a_gauges_mean_is_weighted_by_its_samples() -> None:
    def gauge(mean: float, count: int, last: float) -> dict[str, Gauge]:
        return {"gpu": Gauge(min=0.0, max=mean, mean=mean, last=last, count=count)}

    log = loop()
    feed(log, (3, base(0, gauges=gauge(1.0, 1, 0.5))), (5, base(2, gauges=gauge(2.0, 3, 0.7))), (7, base(4)))
    feed(log, (8, base(0, part="late", gauges=gauge(0.5, 1, 0.1))), (63, base(60)))
    [minute] = written(log, 60)
    assert minute.gauges == {"gpu": Gauge(min=0.0, max=2.0, mean=1.5, last=0.7, count=5)}


def test_the_three_slowest_requests_stay() -> None:
    def slow(*durations: float) -> list[Exemplar]:
        return [Exemplar(duration_s=each, trace_id=f"t{each}") for each in durations]

    log = loop()
    feed(log, (3, base(0, exemplars=slow(5.0, 1.0))), (5, base(2, exemplars=slow(4.0, 3.0, 2.0))), (63, base(60)))
    [minute] = written(log, 60)
    assert minute.exemplars == slow(5.0, 4.0, 3.0)


def test_series_beyond_the_cap_are_summed() -> None:
    log = loop(WindowSettings(rollups_s=(60,), max_series=2))
    for number in range(4):
        feed(log, (3, base(0, series={"service": "shop", "model": f"m{number}"})))
    feed(log, (63, base(60)))
    other = dict.fromkeys(("service", "model", "model_version", "endpoint"), OTHER)
    assert [(window.series, window.count) for window in written(log, 60)] == [
        (other, 2),
        ({"service": "shop", "model": "m0"}, 1),
        ({"service": "shop", "model": "m1"}, 1),
    ]


# --- hopping windows and sessions -----------------------------------------------------------------------------------


def test_hopping_windows_start_every_so_often_and_overlap() -> None:
    log = loop(MINUTES, Asked(hopping(120, 60), "inference", "a rule"))
    for after_s in range(0, 360, 60):
        feed(log, (after_s + 3, base(after_s)))
    found = [window for window in windows_in(log.written) if window.kind == "hopping"]
    assert {(window.every_s, window.of_s, window.end_unix_s - window.start_unix_s) for window in found} == {
        (60, 60, 120)
    }
    assert [(window.start_unix_s - T, window.count) for window in found] == [
        (-60, 1),
        (0, 2),
        (60, 2),
        (120, 2),
        (180, 2),
    ]


@given(numbers=st.sets(st.integers(0, 200), min_size=1), gap_s=st.sampled_from((2.0, 3.0, 10.0)))
@examples
def test_sessions_are_the_runs_between_silences(numbers: set[int], gap_s: float) -> None:
    log = loop(WindowSettings(rollups_s=()), Asked(session(gap_s), "inference", "a rule"))
    feed(log, *((2 * number + 3, base(2 * number)) for number in sorted(numbers)))
    log.settle()
    sessions = [window for window in windows_in(log.written) if window.kind == "session"]
    base_windows = [window for window in windows_in(log.records) if window.is_base]
    assert [(each.start_unix_s, each.end_unix_s, each.count) for each in sessions] == runs(base_windows, gap_s)
    assert {(each.part, each.gap_s, each.size_s == each.end_unix_s - each.start_unix_s) for each in sessions} == {
        ("main", gap_s, True)
    }


def test_a_session_that_never_ends_is_cut() -> None:
    log = loop(WindowSettings(rollups_s=()), Asked(session(30), "inference", "a rule"))
    feed(log, *((after_s + 3, base(after_s)) for after_s in range(0, 4000, 20)))
    log.settle()
    sessions = windows_in(log.written)
    assert [(each.start_unix_s - T, each.count) for each in sessions] == [(0, 180), (3600, 20)]


def test_a_late_window_joins_the_open_session_that_began_before_it() -> None:
    log = loop(WindowSettings(rollups_s=()), Asked(session(30), "inference", "a rule"))
    feed(log, (13, base(10)), (33, base(30)), (34, base(20, part="late")), (35, base(0, part="late")))
    log.settle()
    parts = [(each.part, each.start_unix_s - T, each.count) for each in windows_in(log.written)]
    assert sorted(parts) == [("late", 0, 1), ("main", 10, 3)]


# --- the plan -------------------------------------------------------------------------------------------------------


def made_of(*levels: Level) -> dict[str, float]:
    return {level.shape.name: level.of_s for level in levels}


def test_each_length_is_made_of_the_longest_that_fills_it() -> None:
    asked = [
        Asked(tumbling(90), "inference", "a"),
        Asked(hopping(600, 60), "resource", "b"),
        Asked(session(5), "resource", "c"),
    ]
    assert made_of(*plan(2.0, (3600, 60, 300), asked)) == {
        "60s": 2,
        "300s": 60,
        "3600s": 300,
        "90s": 2,
        "600s every 60s": 60,
        "sessions of 5s": 2,
    }


def test_what_a_rule_asks_for_is_made_once_and_of_its_source_only() -> None:
    asked = [Asked(tumbling(90), "inference", name) for name in ("a", "b")]
    assert [(level.shape, level.source) for level in plan(2.0, (), asked)] == [(tumbling(90), "inference")]


def test_base_windows_need_not_be_made() -> None:
    assert plan(60.0, (60, 300), [Asked(tumbling(60), "inference", "a")]) == (Level(tumbling(300), 60.0),)


def test_configured_lengths_that_do_not_fit_are_left_out_and_asked_for_ones_refused() -> None:
    assert made_of(*plan(7.0, (60, 300, 3600))) == {}
    with pytest.raises(ConfigError, match="rule 'slow': windows of 60s cannot be made of the base windows of 7 s"):
        plan(7.0, (), [Asked(tumbling(60), "inference", "rule 'slow'")])


def test_the_order_of_the_plan_does_not_depend_on_that_of_the_rules() -> None:
    asked = [Asked(shape, source, "a") for shape in (session(5), session(9), tumbling(8)) for source in ("x", "y")]
    assert plan(2.0, (4,), asked) == plan(2.0, (4,), asked[::-1])


# --- recovery -------------------------------------------------------------------------------------------------------


def test_a_level_that_is_new_begins_where_the_task_stands() -> None:
    log = loop(WindowSettings(rollups_s=(60,)))
    feed(log, (3, base(0)), (63, base(60)), (123, base(120)))
    task = RollupTask(3, MINUTES)
    task.restore(log.task.snapshot())
    assert task.process("windows", log.records[task.offsets()["windows"] :]) == []
    log.task = task
    log.settle()
    assert [window.count for window in written(log, 60)] == [1, 1, 1]
    assert 1 <= sum(window.count for window in written(log, 300)) <= 3, "no event twice"


def test_what_is_not_needed_after_a_restart_is_not_decoded() -> None:
    log = loop()
    for minute in range(4):
        feed(log, *((60 * minute + second + 3, base(60 * minute + second)) for second in (0, 20, 40)))
    task = RollupTask(3, MINUTES)
    task.restore(log.task.snapshot())
    [from_] = task.offsets().values()
    again = [record for record in log.records if record.offset >= from_]
    needed = [record for record in again if record.offset >= len(log.records) - 4 or record.headers]
    spoilt = [record if record in needed else record._replace(value=b"broken") for record in again]
    assert len(needed) < len(again)
    assert task.process("windows", spoilt) == []
    log.task = task
    log.settle()
    assert sum(window.count for window in written(log, 300)) == 12


def test_a_snapshot_of_ten_thousand_sessions_fits_into_a_record() -> None:
    log = loop(WindowSettings(), Asked(session(30), "inference", "a rule"))
    for number in range(10_000):
        log.append(base(0, series={"service": "shop", "model": f"model-{number}"}), at_ms(3))
    log.append(base(60), at_ms(63))
    assert len(log.task.snapshot()) < MAX_RECORD_BYTES
