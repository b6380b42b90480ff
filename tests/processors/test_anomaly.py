"""Baselines: exact promises on any input, statistical ones on fixed seeds, and the proof on real incidents."""

from __future__ import annotations

import itertools
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streammon.errors import ConfigError
from streammon_processors.rules.conditions.anomaly import KEEP_FIRING_S, Baseline, Baselines, Direction, Scores
from tests.series import (
    BEGIN_UNIX_S,
    DAY_S,
    NAB_STEP_S,
    WEEK_S,
    Floats,
    Incidents,
    autoregressive,
    episodes,
    incidents,
    quiet,
)

HOUR_S = 3600.0
STEP_S = 300.0

finite = st.floats(-1e6, 1e6, width=32)
values = st.one_of(finite, st.sampled_from([0.0, 1.0, float("nan"), float("inf"), 1e300, -1e18, 1e18]))
updates = st.lists(st.tuples(st.integers(0, 3), st.floats(0, 40_000), values), max_size=120)


def alarms(baseline: Baseline, times: Floats, series: Floats) -> list[list[float]]:
    """When each row's alerts begin, by a rule `anomaly(field) > 1`, `for: 0s`, `keep_firing_for: 1h`."""
    baselines, rows = baseline.open(len(series)), np.arange(len(series))
    return episodes(
        lambda end, column: baselines.update(rows, np.full(len(rows), end), column).score, times, series, KEEP_FIRING_S
    )


def feed(baselines: Baselines, times: Floats, series: Floats) -> list[Scores]:
    rows = np.arange(len(series))
    return [
        baselines.update(rows, np.full(len(rows), end), column) for end, column in zip(times, series.T, strict=True)
    ]


def every(step_s: float, seconds: float) -> Floats:
    """The ends of windows."""
    return BEGIN_UNIX_S + np.arange(0, seconds, step_s)


def noise(rows: int, times: Floats, seed: int = 1) -> Floats:
    return 100 + np.random.default_rng(seed).standard_normal((rows, len(times)))


def columns(many: list[Scores]) -> list[bytes]:
    names = ("score", "expected", "lower", "upper", "by_hour", "ready")
    return [np.concatenate([getattr(scores, name) for scores in many]).tobytes() for name in names]


def batch(part: list[tuple[int, float, float]]) -> tuple[np.ndarray, Floats, Floats]:
    rows, times, numbers = zip(*part, strict=True) if part else ((), (), ())
    return np.array(rows, np.intp), np.array(times, float), np.array(numbers, float)


@given(updates, st.lists(st.integers(0, 120), max_size=6), st.data())
@settings(deadline=None, max_examples=60)
def test_scores_and_state_do_not_depend_on_how_windows_are_cut_or_where_they_are_restored(
    given_updates: list[tuple[int, float, float]], cuts: list[int], data: st.DataObject
) -> None:
    elapsed = itertools.accumulate(step for _, step, _ in given_updates)
    taken = [(row, BEGIN_UNIX_S + at, x) for (row, _, x), at in zip(given_updates, elapsed, strict=True)]
    one = Baseline().open(4)
    singly = [one.update(*batch([update])) for update in taken]
    other, cut_scores = Baseline().open(4), []
    bounds = sorted({0, len(taken), *(min(cut, len(taken)) for cut in cuts)})
    for begin, end in itertools.pairwise(bounds):
        cut_scores.append(other.update(*batch(taken[begin:end])))
        if data.draw(st.booleans()):
            states = [other.dump(row) for row in range(4)]
            other = Baseline().open(0)
            other.grow(4)
            for row, state in enumerate(states):
                other.load(row, state)
    assert not taken or columns(singly) == columns(cut_scores)
    assert [one.dump(row) for row in range(4)] == [other.dump(row) for row in range(4)]


@given(updates)
@settings(deadline=None, max_examples=60)
def test_whatever_comes_scores_are_numbers_and_bounds_enclose_what_is_expected(
    given_updates: list[tuple[int, float, float]],
) -> None:
    elapsed = itertools.accumulate(step for _, step, _ in given_updates)
    taken = [(0, BEGIN_UNIX_S + time, x) for (_, _, x), time in zip(given_updates, elapsed, strict=True)]
    scores = Baseline().open(1).update(*batch(taken))
    assert (scores.score[scores.ready] >= 0).all()
    assert np.isfinite(scores.score[scores.ready]).all()
    assert np.isnan(scores.score[~scores.ready]).all()
    assert (scores.lower[scores.ready] < scores.expected[scores.ready]).all()
    assert (scores.expected[scores.ready] < scores.upper[scores.ready]).all()


def test_other_rows_do_not_change_a_row() -> None:
    times = every(STEP_S, 3 * DAY_S)
    series = noise(5, times)
    together, alone = Baseline().open(5), Baseline().open(1)
    feed(together, times, series)
    feed(alone, times, series[3:4])
    assert together.dump(3) == alone.dump(0)


def test_state_is_of_fixed_size_and_a_thousand_fit_into_one_record() -> None:
    assert Baseline().open(1).row_bytes * 1000 < 900_000


def test_a_dump_of_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match="another version"):
        Baseline().open(1).load(0, b"\0" * 10)


@pytest.mark.parametrize("budget", [0.0, -1.0, float("nan"), 51.0])
def test_a_budget_that_makes_no_sense_is_refused(budget: float) -> None:
    with pytest.raises(ConfigError, match="budget_per_week"):
        Baseline(budget_per_week=budget)


@pytest.mark.parametrize("window_s", [-1.0, 3601.0, float("nan")])
def test_a_window_that_is_longer_than_an_hour_is_refused(window_s: float) -> None:
    with pytest.raises(ConfigError, match="window_s"):
        Baseline(window_s=window_s)


def test_a_row_that_was_reset_is_unknown_again() -> None:
    baselines = Baseline().open(2)
    blank = baselines.dump(0)
    feed(baselines, every(STEP_S, DAY_S), noise(2, every(STEP_S, DAY_S)))
    baselines.reset(0)
    assert baselines.dump(0) == blank != baselines.dump(1)


def test_nothing_is_scored_in_the_first_day() -> None:
    times = every(STEP_S, 2 * DAY_S)
    ready = [bool(scores.ready[0]) for scores in feed(Baseline().open(1), times, noise(1, times))]
    assert DAY_S - HOUR_S <= ready.index(True) * STEP_S <= DAY_S + HOUR_S
    assert all(ready[ready.index(True) :])


def test_an_older_value_is_scored_but_not_learned() -> None:
    times = every(STEP_S, 3 * DAY_S)
    baselines = Baseline().open(1)
    feed(baselines, times, noise(1, times))
    before = baselines.dump(0)
    late = baselines.update(np.array([0]), times[-20:-19], np.array([1e6]))
    assert late.score[0] > 1
    assert baselines.dump(0) == before


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf"), 1e300])
def test_what_is_no_usable_number_is_skipped(wrong: float) -> None:
    times = every(STEP_S, 3 * DAY_S)
    baselines = Baseline().open(1)
    feed(baselines, times, noise(1, times))
    before = baselines.dump(0)
    scores = baselines.update(np.array([0]), times[-1:] + STEP_S, np.array([wrong]))
    assert np.isnan(scores.score[0])
    assert (bool(scores.ready[0]), baselines.dump(0)) == (False, before)


def test_one_outlier_of_a_million_does_not_blind() -> None:
    times = every(STEP_S, 5 * DAY_S)
    series = noise(1, times)
    series[0, -400] = 1e6
    series[0, -1] = 110
    assert alarms(Baseline(), times, series) == [[times[-400], times[-1]]]


def test_one_outlier_is_over_within_the_hour() -> None:
    times = every(STEP_S, 5 * DAY_S)
    series = noise(1, times)
    series[0, -100] = 1e6
    scores = [scores.score[0] for scores in feed(Baseline().open(1), times, series)]
    assert scores[-100] > 1
    assert max(scores[-100 + 12 :]) < 1


def test_a_gap_of_a_week_neither_alarms_nor_blinds() -> None:
    times = every(STEP_S, 3 * WEEK_S)
    keep = (times < BEGIN_UNIX_S + WEEK_S) | (times >= BEGIN_UNIX_S + 2 * WEEK_S)
    times = times[keep]
    series = noise(1, times)
    series[0, -1] = 110
    assert alarms(Baseline(), times, series) == [[times[-1]]]


def test_a_new_level_is_one_alarm_and_normal_after_a_day() -> None:
    times = every(STEP_S, 10 * DAY_S)
    series = noise(20, times)
    shifted = times >= BEGIN_UNIX_S + 7 * DAY_S
    series[:, shifted] += 20
    baselines = Baseline().open(20)
    scores = np.stack([scores.score for scores in feed(baselines, times, series)])
    hours = (times - (BEGIN_UNIX_S + 7 * DAY_S)) / HOUR_S
    assert (scores[(hours >= 0) & (hours < 22)] > 1).all()
    assert not (scores[hours >= 28] > 1).any()  # the mean of about an hour forgets the old level last


def test_a_lasting_change_of_the_noise_becomes_normal_within_days() -> None:
    times = every(STEP_S, 21 * DAY_S)
    series = noise(20, times)
    louder = times >= BEGIN_UNIX_S + 10 * DAY_S
    series[:, louder] = 100 + 10 * (series[:, louder] - 100)
    late = [alarm for row in alarms(Baseline(), times, series) for alarm in row if alarm >= BEGIN_UNIX_S + 15 * DAY_S]
    assert len(late) <= 20 * 0.5


@pytest.mark.parametrize(("direction", "up", "down"), [("both", 1, 1), ("above", 1, 0), ("below", 0, 1)])
def test_only_the_direction_that_was_asked_for_alarms(direction: str, up: int, down: int) -> None:
    times = every(STEP_S, 4 * DAY_S)
    series = noise(2, times)
    series[:, -1] = (120, 80)
    found = alarms(Baseline(direction=Direction(direction)), times, series)
    assert [len(row) for row in found] == [up, down]


def test_a_season_is_expected_once_it_has_been_seen() -> None:
    times = every(STEP_S, 5 * WEEK_S)
    series = quiet(np.random.default_rng(4), 5, times)["daily and weekly season"]
    pure = 100 + 10 * (1 + np.sin(2 * np.pi * times / DAY_S)) * np.where((times // DAY_S + 3) % 7 >= 5, 0.3, 1.0)
    expected = np.stack([scores.expected for scores in feed(Baseline().open(5), times, series)], axis=1)
    last_week = times >= BEGIN_UNIX_S + 4 * WEEK_S
    assert np.abs(expected - pure)[:, last_week].mean() < 0.2 * np.abs(pure - pure.mean())[last_week].mean()


def test_windows_of_an_hour_are_held_against_their_own_hour() -> None:
    times = every(HOUR_S, 6 * WEEK_S) - BEGIN_UNIX_S % HOUR_S + HOUR_S
    hour = (times / HOUR_S - 1) % 24  # the hour that ends there
    series = noise(10, times) / 2 + np.where((hour >= 8) & (hour < 18), 20, 0)
    expected = np.stack([scores.expected for scores in feed(Baseline(window_s=HOUR_S).open(10), times, series)], axis=1)
    assert np.abs(expected - series)[:, times > BEGIN_UNIX_S + 5 * WEEK_S].max() < 5


def test_where_there_is_no_season_looking_for_one_costs_nothing() -> None:
    times = every(STEP_S, 4 * WEEK_S)
    expected = np.stack([scores.expected for scores in feed(Baseline().open(5), times, noise(5, times))], axis=1)
    assert np.abs(expected[:, times > BEGIN_UNIX_S + 3 * DAY_S] - 100).mean() < 0.08  # sigma is 1, the hour's 0.29


@pytest.mark.parametrize(("step_s", "weeks", "rows"), [(60.0, 2, 20), (300.0, 8, 40), (3600.0, 8, 40)])
def test_false_alarms_keep_to_the_budget_whatever_the_series_and_the_window(
    step_s: float, weeks: int, rows: int
) -> None:
    """13 million values in which nothing happens; a budget of 0.5 a week."""
    times = every(step_s, weeks * WEEK_S)
    kinds = quiet(np.random.default_rng(21), rows, times)
    found = alarms(Baseline(), times, np.concatenate(list(kinds.values())))
    for at, kind in enumerate(kinds):
        false = sum(map(len, found[at * rows : (at + 1) * rows])) / rows / weeks
        assert false <= {"rare bursts": 1.0}.get(kind, 0.5), kind  # a known excess: docs/anomaly.md


def test_a_larger_budget_is_used() -> None:
    times = every(STEP_S, 3 * WEEK_S)
    rates = [
        sum(map(len, alarms(Baseline(budget_per_week=budget), times, noise(100, times)))) / 100 / 3
        for budget in (0.5, 5.0, 50.0)
    ]
    assert rates == sorted(rates)
    assert 0.3 * 5 <= rates[1] <= 5
    assert 0.3 * 50 <= rates[2] <= 50


def test_missing_windows_are_no_anomalies() -> None:
    times, random = every(STEP_S, 2 * WEEK_S), np.random.default_rng(1)
    series = noise(100, times)
    series[random.random(series.shape) < 0.3] = np.nan
    assert sum(map(len, alarms(Baseline(), times, series))) / 100 / 2 <= 0.5


@pytest.mark.parametrize("value", [0.0, 7.0, 1e12])
def test_a_constant_series_is_normal_until_it_moves(value: float) -> None:
    times = every(STEP_S, 4 * DAY_S)
    series = np.full((1, len(times)), value)
    series[0, -50:] += max(value, 1.0) * 1e-4
    assert alarms(Baseline(), times, series) == [[times[-50]]]


@pytest.mark.parametrize(("sigmas", "share", "within_h"), [(2.0, 1.0, 2.0), (3.0, 1.0, 1.0), (5.0, 1.0, 0.25)])
def test_a_shift_of_the_level_is_found_in_time(sigmas: float, share: float, within_h: float) -> None:
    times = every(STEP_S, 17 * DAY_S + 6 * HOUR_S)
    begin = BEGIN_UNIX_S + 17 * DAY_S
    series = noise(40, times, seed=9)
    series[:, times >= begin] += sigmas
    delays = [min((t - begin for t in row if t >= begin), default=np.inf) for row in alarms(Baseline(), times, series)]
    assert np.mean(np.isfinite(delays)) >= share
    assert np.median(delays) <= within_h * HOUR_S


def test_a_spike_is_found_at_once_even_in_dependent_noise() -> None:
    times = every(STEP_S, 17 * DAY_S)
    series = autoregressive(np.random.default_rng(3), 40, len(times), 0.9)
    series[:, -1] += 8
    assert all(row and row[-1] == times[-1] for row in alarms(Baseline(), times, series))


@pytest.mark.parametrize("series", incidents(), ids=lambda series: series.name)
def test_every_real_incident_is_found_in_its_window_with_at_most_one_false_alarm_a_week(series: Incidents) -> None:
    judged = series.judge(alarms(Baseline(window_s=NAB_STEP_S), series.ends, series.values[None])[0])
    assert judged.found == len(series.windows)
    assert judged.false_per_week <= 1
    assert max(delay or 0 for delay in judged.delays_s) <= 9 * HOUR_S  # the windows begin hours before what is marked


def test_a_real_series_gives_the_same_bytes_when_it_is_restored_again_and_again() -> None:
    series = incidents()[0]
    one, other = Baseline().open(1), Baseline().open(1)
    said = feed(one, series.ends, series.values[None])
    again = []
    for at in range(0, len(series.ends), 97):
        again += feed(other, series.ends[at : at + 97], series.values[None, at : at + 97])
        state, other = other.dump(0), Baseline().open(1)
        other.load(0, state)
    assert columns(said) == columns(again)
    assert one.dump(0) == other.dump(0)


def test_a_season_that_moves_by_an_hour_is_learned_anew() -> None:
    """What daylight saving does to office hours in UTC."""
    times, changed = every(STEP_S, 6 * WEEK_S), BEGIN_UNIX_S + 5 * WEEK_S
    hour = (times / HOUR_S + (times >= changed)) % 24
    series = noise(30, times) + np.where((hour >= 8) & (hour < 18), 10, 0)
    false = [alarm for row in alarms(Baseline(), times, series) for alarm in row if alarm >= changed]
    assert len(false) / 30 <= 0.5
    assert max(false, default=changed) <= changed + DAY_S


def test_seasons_are_those_of_utc_wherever_it_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    times = every(900.0, 3 * WEEK_S)
    series = 100 + 10 * np.sin(2 * np.pi * times / DAY_S)[None] + noise(1, times) / 10
    states = []
    try:
        for zone in ("UTC", "America/New_York", "Asia/Kathmandu"):
            monkeypatch.setenv("TZ", zone)
            time.tzset()
            baselines = Baseline().open(1)
            feed(baselines, times, series)
            states.append(baselines.dump(0))
    finally:
        monkeypatch.undo()
        time.tzset()
    assert states[0] == states[1] == states[2]
