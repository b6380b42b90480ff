"""Rules that learn their series: what they may say, that a restart or another rule costs nothing, and what is full."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import msgspec
import numpy as np
import pytest
from prometheus_client import REGISTRY

from streammon.results import Alert, Completeness, Window
from streammon.topics import MAX_RECORD_BYTES
from streammon_processors.contract import Stored
from streammon_processors.rules import Rule, Rules, RulesTask, WindowOf
from streammon_processors.rules.lanes import MAX_KEPT_BYTES

STEP_S = 1800.0
DAY = 48
"""Windows."""
RANKER = {"service": "shop", "model": "ranker"}


def rule(expr: str, name: str = "unusual", window: Any = "30m", **fields: Any) -> Rule:
    return Rule(
        name=name, source="inference", expr=expr, window=window, severity="warning", summary="{value}", **fields
    )


UNUSUAL = rule("anomaly(throughput_per_s) > 1")


def window(index: int, value: float, series: dict[str, str] = RANKER) -> Window:
    start = index * STEP_S
    return Window(
        source="inference", part="main", revision=0, series=series, start_unix_s=start, end_unix_s=start + STEP_S,
        size_s=STEP_S, of_s=2.0, partition=0, count=1, throughput_per_s=value, completeness=Completeness(),
    )  # fmt: skip


def usual(first: int, count: int, series: dict[str, str] = RANKER) -> list[Window]:
    random = np.random.default_rng(first)
    return [window(first + at, 10 + random.normal(), series) for at in range(count)]


def follow(task: RulesTask, windows: Iterable[Window]) -> list[Alert]:
    first = task.offsets().get("windows", 0)
    log = [
        Stored(msgspec.json.encode(each), at, round(1000 * each.end_unix_s)) for at, each in enumerate(windows, first)
    ]
    return [msgspec.json.decode(each.value or b"", type=Alert) for each in task.process("windows", log)]


def fires(task: RulesTask, *windows: Window) -> bool:
    return any(each.state == "firing" for each in follow(task, windows))


def restored(task: RulesTask, *rules: Rule) -> RulesTask:
    again = RulesTask(Rules(rules), 0)
    again.restore(task.snapshot())
    return again


def learned(*rules: Rule) -> RulesTask:
    """A task that has seen two days of a series."""
    task = RulesTask(Rules(rules), 0)
    assert not fires(task, *usual(0, 2 * DAY))
    return task


# ---------------------------------------------------------------- what may be said


@pytest.mark.parametrize(
    "expr",
    [
        "anomaly(error_rate) > 1",
        'anomaly(error_count / count, "above") > 1 || anomaly(duration_s.p99, "both", 5) > 2',
        'forecast(throughput_per_s, "1d") < 0',
        'forecast(throughput_per_s, "1h", "1d") < 0',
        'time_until(cost.EUR, 100, "16h") < 3600 && count > 5',
        'time_until(throughput_per_s, -1, "16h", "falling") < 3600',
    ],
)
def test_any_calculation_can_be_learned_and_combined(expr: str) -> None:
    assert rule(expr).is_kept


@pytest.mark.parametrize(
    ("expr", "asked", "said"),
    [
        ("anomaly(error_rate) > 1", None, "windows of 60 s or longer; let the rule look at such, `window: 5m`"),
        ('forecast(error_rate, "6h") > 1', "30s", "windows of 60 s or longer"),
        ("anomaly(error_rate) > 1", "2h", "windows of at most an hour"),
        ('time_until(error_rate, 1, "6h") < 9', "30m", "a history of 6 h is too short for windows of 30 min: .* 16 h"),
        ('anomaly(error_rate, "up") > 1', "5m", "'both' or 'above' or 'below' is wanted here, not 'up'"),
        ('anomaly(error_rate, "above", 100) > 1', "5m", "between 0.001 and 50 false alarms"),
        ('time_until(error_rate, count, "6h") < 9', "5m", "a number that is written out is wanted here"),
        ('time_until(error_rate, 1, "6h", "down") < 9', "5m", "'falling' or 'rising' is wanted here"),
        ('forecast(error_rate, "soon") > 1', "5m", "'soon' is no duration"),
        ('anomaly(avg_over(error_rate, "1h")) > 1', "5m", "may not hold a function of the past"),
        ("avg_over(anomaly(error_rate), '1h') > 1", "5m", "may not hold a function of the past"),
        ("anomaly(error_rate)", "5m", "a condition is true or false"),
        ('anomaly(error_rate) > 1 && quantile(0.9, "10m") > 1', "5m", "`quantile`: .* sketches are not kept"),
        ('quantile(0.9, "10h") > 1', "5m", "`quantile`: .* sketches are not kept"),
    ],
)
def test_what_cannot_be_learned_is_refused_with_what_to_do(expr: str, asked: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        rule(expr, window=asked)


def test_sessions_are_not_learned_from() -> None:
    with pytest.raises(ValueError, match="sessions have no regular past"):
        rule("anomaly(error_rate) > 1", window=WindowOf(session_gap="30s"))


# ---------------------------------------------------------------- what is kept


def test_a_series_is_known_after_a_restart_also_where_other_rules_came_and_went() -> None:
    other = rule('avg_over(throughput_per_s, "2h") > 1e9', "others")
    assert fires(learned(UNUSUAL), window(2 * DAY, 50.0))
    assert fires(restored(learned(UNUSUAL), UNUSUAL), window(2 * DAY, 50.0))
    assert fires(restored(learned(UNUSUAL, other), UNUSUAL), window(2 * DAY, 50.0))
    assert fires(restored(learned(UNUSUAL), other, UNUSUAL), window(2 * DAY, 50.0))


def test_what_is_learned_is_of_one_number_budget_and_direction() -> None:
    for changed in ("anomaly(throughput_per_s * 2) > 1", 'anomaly(throughput_per_s, "above", 1) > 1'):
        assert not fires(restored(learned(UNUSUAL), rule(changed)), window(2 * DAY, 50.0))


def test_another_bound_on_what_is_learned_needs_not_learn_anew() -> None:
    assert fires(restored(learned(UNUSUAL), rule("anomaly(throughput_per_s) > 2", for_="0s")), window(2 * DAY, 50.0))


def test_a_window_that_comes_again_teaches_nothing_and_decides_nothing() -> None:
    once, twice = RulesTask(Rules((UNUSUAL,)), 0), RulesTask(Rules((UNUSUAL,)), 0)
    windows = [*usual(0, 2 * DAY), window(2 * DAY, 50.0), *usual(2 * DAY + 1, 5)]
    again = [each for each in windows for _ in range(2)]
    assert [each.state for each in follow(twice, again)] == [each.state for each in follow(once, windows)]
    mine, others = (msgspec.msgpack.decode(each.snapshot())[2] for each in (once, twice))
    assert [lane[-1] for lane in mine.values()] == [lane[-1] for lane in others.values()]


def test_a_series_that_was_silent_for_over_a_week_is_a_new_one() -> None:
    other = RANKER | {"model": "other"}
    for silent_days, known in ((6, True), (10, False)):
        task = learned(UNUSUAL)
        follow(task, usual(2 * DAY, silent_days * DAY, other))
        assert fires(task, window((2 + silent_days) * DAY, 50.0)) == known


# ---------------------------------------------------------------- what is full


def unlearned() -> float:
    return REGISTRY.get_sample_value("streammon_rules_skipped_total", {"reason": "too_many_series"}) or 0.0


def many(index: int, count: int = 600) -> list[Window]:
    random = np.random.default_rng(index)
    return [window(index, 10 + random.normal(), {"service": "shop", "model": f"m{at:04}"}) for at in range(count)]


def test_series_for_which_there_is_no_room_are_counted_and_the_snapshot_fits_into_a_record() -> None:
    task, before = RulesTask(Rules((UNUSUAL,)), 0), unlearned()
    follow(task, many(0))
    fit = 600 - (unlearned() - before)
    assert 450 <= fit <= 500  # docs/rules.md, docs/operations.md
    for index in range(1, 30):
        follow(task, many(index))
    assert unlearned() - before == 30 * (600 - fit)
    assert len(task.snapshot()) < MAX_KEPT_BYTES < MAX_RECORD_BYTES // 2


def test_room_is_shared_by_all_lanes_and_given_back() -> None:
    task, before = RulesTask(Rules((UNUSUAL, rule("anomaly(count) > 1", "hourly", "1h"))), 0), unlearned()
    follow(task, many(0, 450))
    assert unlearned() == before
    follow(task, many(10 * DAY, 450))
    assert unlearned() == before, "the others are silent for over a week: their room is given back"


def test_series_that_a_rule_is_not_about_take_no_room() -> None:
    task, before = RulesTask(Rules((rule("anomaly(count) > 1", where={"model": "m0001"}),)), 0), unlearned()
    follow(task, many(0))
    assert unlearned() == before


# ---------------------------------------------------------------- what is told


def condition(expr: str, value: float, **fields: Any) -> str:
    [alert] = follow(learned(rule(expr, **fields)), [window(2 * DAY, value)])
    return alert.condition


def test_an_alert_about_something_unusual_says_what_is_usual() -> None:
    said = condition("anomaly(throughput_per_s) > 1", 50.0)
    told = re.fullmatch(r"anomaly\(throughput_per_s 50/s, usual ([\d.]+)/s to ([\d.]+)/s\) ([\d.]+) > 1", said)
    assert told, said
    lower, upper, score = map(float, told.groups())
    assert 0 < lower < 10 < upper < 30
    assert score == pytest.approx((50 - 10) / (upper - 10), rel=0.1)


def test_what_is_usual_has_one_end_where_one_direction_counts() -> None:
    assert re.search(r", usual up to [\d.]+/s\)", condition('anomaly(throughput_per_s, "above") > 1', 50.0))
    assert re.search(r", usual [\d.]+/s or more\)", condition('anomaly(throughput_per_s, "below") > 1', 0.0))


def test_its_end_says_so_too_and_after_a_restart() -> None:
    quick = rule("anomaly(throughput_per_s) > 1", keep_firing_for="0s")
    task = learned(quick)
    follow(task, [window(2 * DAY, 50.0)])
    [ended] = follow(restored(task, quick), [window(2 * DAY + 1, 10.0)])
    assert ended.state == "resolved"
    assert re.search(r"^anomaly\(throughput_per_s 10/s, usual [\d.]+/s to [\d.]+/s\) [\d.]+ ≤ 1$", ended.condition)


def test_a_shift_that_only_an_hour_shows_says_so() -> None:
    """Values up to 15/s are usual, because they come and go; so many above 13/s are not."""
    random = np.random.default_rng(0)
    jumping = [window(at, 10 + (1 if at % 2 else -1) * abs(random.normal())) for at in range(2 * DAY)]
    task = RulesTask(Rules((UNUSUAL,)), 0)
    assert follow(task, jumping) == []
    [alert] = follow(task, [window(2 * DAY + at, 13.5) for at in range(12)])
    assert re.search(r"13\.5/s, usual [\d.]+/s to 15\.\d+/s, but not for an hour\) 1\.\d+ > 1$", alert.condition)
