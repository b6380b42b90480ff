"""Forecasts: exact answers where there is one, the stated share elsewhere, and the same bytes however they are fed."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streammon.errors import ConfigError
from streammon_processors.rules.conditions.forecast import Forecast, Forecasts, Outlook
from tests.series import BEGIN_UNIX_S, DAY_S, Floats, autoregressive

HOUR_S = 3600.0
STEP_S = 60.0
HISTORY_S = 6 * HOUR_S

values = st.one_of(
    st.floats(-1e6, 1e6), st.sampled_from([0.0, 1.0, 5e-324, -1e-311, float("nan"), float("inf"), 1e300, -1e100])
)
updates = st.lists(st.tuples(st.integers(0, 3), st.floats(0, 2_000), values), max_size=150)


def every(step_s: float, seconds: float) -> Floats:
    """The ends of windows."""
    return BEGIN_UNIX_S + np.arange(1.0, round(seconds / step_s) + 1) * step_s


def fed(forecasts: Forecasts, ends: Floats, series: Floats) -> Outlook:
    """What is said after the last of them."""
    rows = np.arange(len(series))
    for end, column in zip(ends, series.T, strict=True):
        outlook = forecasts.update(rows, np.full(len(rows), end), column)
    return outlook


def of(series: Floats, ends: Floats, forecast: Forecast | None = None) -> tuple[Forecasts, Outlook]:
    many = np.atleast_2d(series)
    forecasts = (forecast or Forecast(HISTORY_S)).open(len(many))
    return forecasts, fed(forecasts, ends, many)


def until(forecasts: Forecasts, level: float, *, falling: bool = False) -> tuple[float, float, float]:
    found = forecasts.time_until(np.array([0]), np.array([level]), falling=falling)
    return float(found.seconds[0]), float(found.soonest[0]), float(found.latest[0])


def line(ends: Floats, level: float, per_s: float) -> Floats:
    """A line that is at `level` at the last end."""
    values: Floats = level + per_s * (ends - ends[-1])
    return values


# ---------------------------------------------------------------- exact answers


@pytest.mark.parametrize(("level", "per_s"), [(0.8, 1e-6), (-40.0, 0.01), (3.2e12, 5e6)])
def test_an_exact_line_is_forecast_exactly(level: float, per_s: float) -> None:
    ends = every(STEP_S, HISTORY_S)
    forecasts, outlook = of(line(ends, level, per_s), ends)
    assert outlook.trending[0]
    assert outlook.per_second[0] == pytest.approx(per_s, rel=1e-6)
    assert outlook.expected[0] == pytest.approx(level + per_s * HISTORY_S, rel=1e-9)
    assert until(forecasts, level + per_s * 12_345)[0] == pytest.approx(12_345, rel=1e-6)


def test_a_falling_line_reaches_what_is_below_and_nothing_above() -> None:
    ends = every(STEP_S, HISTORY_S)
    forecasts, _ = of(line(ends, 50.0, -0.001), ends)
    assert until(forecasts, 49.0, falling=True)[0] == pytest.approx(1000, rel=1e-6)
    assert until(forecasts, 51.0) == (np.inf, np.inf, np.inf)


def test_a_line_is_exact_whenever_its_windows_come() -> None:
    random = np.random.default_rng(2)
    ends = np.sort(BEGIN_UNIX_S + random.uniform(0, HISTORY_S, 400))
    forecasts, _ = of(line(ends, 5.0, 0.001), ends)
    assert until(forecasts, 6.0)[0] == pytest.approx(1000, rel=1e-6)


def test_missing_windows_leave_a_line_exact() -> None:
    ends = every(STEP_S, HISTORY_S)
    there = (ends < BEGIN_UNIX_S + 2 * HOUR_S) | (ends > BEGIN_UNIX_S + 3.5 * HOUR_S)
    forecasts, _ = of(line(ends, 5.0, 0.001)[there], ends[there])
    assert until(forecasts, 6.0)[0] == pytest.approx(1000, rel=1e-6)


def test_a_level_that_was_reached_takes_no_time_even_before_there_is_a_forecast() -> None:
    forecasts, _ = of(np.array([0.95]), every(STEP_S, STEP_S))
    assert until(forecasts, 0.9) == (0, 0, 0)
    assert until(forecasts, 1.0, falling=True) == (0, 0, 0)
    assert np.isnan(until(forecasts, 0.96)).all()


def test_nothing_is_known_before_half_of_the_history_is_there() -> None:
    ends = every(STEP_S, HISTORY_S)
    series, forecasts = line(ends, 5.0, 0.001), Forecast(HISTORY_S).open(1)
    said = [forecasts.update(np.array([0]), ends[at : at + 1], series[at : at + 1]) for at in range(len(ends))]
    first = [bool(outlook.ready[0]) for outlook in said].index(True)
    assert ends[first] - BEGIN_UNIX_S == pytest.approx(HISTORY_S / 2, abs=HISTORY_S / 16)
    for outlook in said[:first]:
        assert np.isnan([outlook.expected[0], outlook.lower[0], outlook.upper[0]]).all()
        assert not outlook.trending[0]


def test_after_a_gap_longer_than_the_history_nothing_is_known_until_half_of_it_is_there_again() -> None:
    ends = every(STEP_S, 4 * HISTORY_S)
    there = (ends <= BEGIN_UNIX_S + HISTORY_S) | (ends > BEGIN_UNIX_S + 2.5 * HISTORY_S)
    series, forecasts = line(ends, 5.0, 0.001), Forecast(HISTORY_S).open(1)
    ready = {}
    for end, value in zip(ends[there], series[there], strict=True):
        outlook = forecasts.update(np.array([0]), np.array([end]), np.array([value]))
        ready[end] = bool(outlook.ready[0])
        assert np.isfinite(outlook.expected[0]) == ready[end]
    after = [known for end, known in ready.items() if end > BEGIN_UNIX_S + 2.6 * HISTORY_S]
    assert not after[0]
    assert after[-1]
    assert until(forecasts, 6.0)[0] == pytest.approx(1000, rel=1e-6)


def test_the_longest_windows_are_enough() -> None:
    forecast = Forecast(HISTORY_S)
    ends = every(forecast.longest_window_s, HISTORY_S + forecast.longest_window_s)
    assert until(of(line(ends, 5.0, 0.001), ends)[0], 6.0)[0] == pytest.approx(1000, rel=1e-6)


def test_a_constant_series_stays_and_reaches_nothing() -> None:
    ends = every(STEP_S, HISTORY_S)
    forecasts, outlook = of(np.full(len(ends), 7.0), ends)
    assert (outlook.lower[0], outlook.expected[0], outlook.upper[0]) == (7, 7, 7)
    assert not outlook.trending[0]
    assert until(forecasts, 7.1) == until(forecasts, 6.9, falling=True) == (np.inf, np.inf, np.inf)


@pytest.mark.parametrize("step", [1e-311, 1e-307])
def test_what_grows_too_slowly_for_any_number_of_seconds_reaches_nothing(step: float) -> None:
    ends = every(STEP_S, HISTORY_S)
    forecasts, outlook = of(np.arange(float(len(ends))) * step, ends)
    assert outlook.trending[0]
    assert until(forecasts, 1.0) == (np.inf, np.inf, np.inf)


def test_growth_that_speeds_up_is_reached_sooner_than_by_the_line() -> None:
    ends = every(STEP_S, HISTORY_S)
    hours = (ends - ends[-1]) / HOUR_S + 6
    forecasts, outlook = of(hours**2, ends)
    in_3_hours = (9.0**2 - 36) / (12.0 * 1)  # by the tangent: 3.75 h
    assert 2.5 * HOUR_S < until(forecasts, 81.0)[0] < 0.95 * in_3_hours * HOUR_S
    assert outlook.expected[0] == pytest.approx(12.0**2, rel=0.15)


# ---------------------------------------------------------------- what noise may do


NOISE: dict[str, Callable[[np.random.Generator, int, int], Floats]] = {
    "normal": lambda random, rows, count: random.standard_normal((rows, count)),
    "Student's t, 3": lambda random, rows, count: random.standard_t(3, (rows, count)),
    "lognormal": lambda random, rows, count: np.exp(random.standard_normal((rows, count))) - np.exp(0.5),
    "AR(1), 0.9": lambda random, rows, count: autoregressive(random, rows, count, 0.9),
}


@pytest.mark.parametrize("per_history", [0.0, 20.0])
@pytest.mark.parametrize("kind", NOISE)
def test_the_value_at_the_horizon_lies_between_the_bounds_as_often_as_stated(kind: str, per_history: float) -> None:
    rows, ends = 500, every(STEP_S, 2 * HISTORY_S)
    series = NOISE[kind](np.random.default_rng(6), rows, len(ends)) + line(ends, 100.0, per_history / HISTORY_S)
    seen = len(ends) // 2
    _, outlook = of(series[:, :seen], ends[:seen])
    assert 0.87 <= np.mean((outlook.lower <= series[:, -1]) & (series[:, -1] <= outlook.upper)) <= 0.98


@pytest.mark.parametrize("kind", NOISE)
def test_the_time_to_full_lies_between_soonest_and_latest_as_often_as_stated(kind: str) -> None:
    rows, ends = 500, every(STEP_S, HISTORY_S)
    series = NOISE[kind](np.random.default_rng(8), rows, len(ends)) + line(ends, 100.0, 20 / HISTORY_S)
    forecasts, outlook = of(series, ends)
    found = forecasts.time_until(np.arange(rows), np.full(rows, 120.0))
    assert np.mean(outlook.trending) >= 0.99
    assert np.mean((found.soonest <= HISTORY_S) & (found.latest >= HISTORY_S)) >= 0.87
    assert np.nanmedian(found.seconds) == pytest.approx(HISTORY_S, rel=0.1)


@pytest.mark.parametrize("kind", NOISE)
def test_noise_alone_has_hardly_ever_a_trend(kind: str) -> None:
    rows, ends = 1000, every(STEP_S, HISTORY_S)
    series = 100 + NOISE[kind](np.random.default_rng(3), rows, len(ends))
    assert np.mean(of(series, ends)[1].trending) <= 0.01


def test_a_fifth_of_outliers_turns_no_line() -> None:
    random, ends = np.random.default_rng(4), every(STEP_S, HISTORY_S)
    series = line(ends, 100.0, 0.01) + 0.1 * random.standard_normal(len(ends))
    blocks = np.ceil((ends - BEGIN_UNIX_S) / (HISTORY_S / 32)) - 1
    series[np.isin(blocks, random.permutation(32)[:6])] += 1e5
    assert until(of(series, ends)[0], 200.0)[0] == pytest.approx(10_000, rel=0.02)


@pytest.mark.parametrize("teeth", [3, 5, 8])
def test_a_sawtooth_is_never_full(teeth: int) -> None:
    ends = every(STEP_S, 4 * HISTORY_S)
    saw = 0.3 + 0.5 * ((ends - BEGIN_UNIX_S) / HISTORY_S * teeth % 1)
    forecasts, full = Forecast(HISTORY_S).open(1), []
    for end, value in zip(ends, saw, strict=True):
        forecasts.update(np.array([0]), np.array([end]), np.array([value]))
        full.append(until(forecasts, 1.0)[0])
    assert np.nanmin(full) == np.inf


def test_a_step_is_no_trend() -> None:
    ends = every(STEP_S, HISTORY_S)
    noise = np.random.default_rng(5).standard_normal((200, len(ends)))
    series = 100 + noise + 30 * (ends > BEGIN_UNIX_S + 0.6 * HISTORY_S)
    assert np.mean(of(series, ends)[1].trending) <= 0.02


def test_whole_days_of_history_hold_a_daily_season_to_be_no_trend() -> None:
    ends = every(900.0, 10 * DAY_S)
    series = 100 + 10 * np.sin(2 * np.pi * ends / DAY_S) + np.random.default_rng(5).standard_normal((50, len(ends)))
    _, outlook = of(series, ends, Forecast(DAY_S, 4 * DAY_S))
    assert np.mean(outlook.trending) <= 0.04


# ---------------------------------------------------------------- state


def batch(part: list[tuple[int, float, float]]) -> tuple[np.ndarray, Floats, Floats]:
    rows, times, numbers = zip(*part, strict=True) if part else ((), (), ())
    return np.array(rows, np.intp), np.array(times, float), np.array(numbers, float)


@given(updates, st.lists(st.integers(0, 150), max_size=6), st.data())
@settings(deadline=None, max_examples=60)
def test_forecasts_and_state_do_not_depend_on_how_windows_are_cut_or_where_they_are_restored(
    given_updates: list[tuple[int, float, float]], cuts: list[int], data: st.DataObject
) -> None:
    elapsed = itertools.accumulate(step for _, step, _ in given_updates)
    taken = [(row, BEGIN_UNIX_S + time, x) for (row, _, x), time in zip(given_updates, elapsed, strict=True)]
    one, other = Forecast(HOUR_S).open(4), Forecast(HOUR_S).open(4)
    singly = [one.update(*batch([update])) for update in taken]
    cut_outlooks = []
    bounds = sorted({0, len(taken), *(min(cut, len(taken)) for cut in cuts)})
    for begin, end in itertools.pairwise(bounds):
        cut_outlooks.append(other.update(*batch(taken[begin:end])))
        if data.draw(st.booleans()):
            states = [other.dump(row) for row in range(4)]
            other = Forecast(HOUR_S).open(0)
            other.grow(4)
            for row, state in enumerate(states):
                other.load(row, state)
    names = ("expected", "lower", "upper", "per_second", "trending", "ready")
    for name in names if taken else ():
        assert b"".join(getattr(each, name).tobytes() for each in singly) == b"".join(
            getattr(each, name).tobytes() for each in cut_outlooks
        )
    assert [one.dump(row) for row in range(4)] == [other.dump(row) for row in range(4)]


@given(updates)
@settings(deadline=None, max_examples=60)
def test_bounds_are_in_order_and_times_are_not_negative(given_updates: list[tuple[int, float, float]]) -> None:
    elapsed = itertools.accumulate(step for _, step, _ in given_updates)
    taken = [(row, BEGIN_UNIX_S + time, x) for (row, _, x), time in zip(given_updates, elapsed, strict=True)]
    forecasts = Forecast(HOUR_S).open(4)
    outlook = forecasts.update(*batch(taken))
    known = outlook.ready
    assert (outlook.lower[known] <= outlook.expected[known]).all()
    assert (outlook.expected[known] <= outlook.upper[known]).all()
    found = forecasts.time_until(np.arange(4), np.full(4, 1.0))
    known = np.isfinite(found.seconds)
    assert (found.soonest[known] >= 0).all()
    assert (found.soonest[known] <= found.seconds[known]).all()
    assert (found.seconds[known] <= found.latest[known]).all()


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf"), 1e300])
def test_what_is_no_usable_number_or_too_old_is_not_learned(wrong: float) -> None:
    ends = every(STEP_S, HISTORY_S)
    forecasts, outlook = of(line(ends, 5.0, 0.001), ends)
    before = forecasts.dump(0)
    again = forecasts.update(np.array([0, 0]), ends[-1] + np.array([STEP_S, -STEP_S]), np.array([wrong, 1e6]))
    assert forecasts.dump(0) == before
    assert again.expected[0] == pytest.approx(outlook.expected[0] + 0.001 * STEP_S)


def test_state_is_of_fixed_size_and_a_thousand_fit_into_one_record() -> None:
    assert Forecast(HOUR_S).open(1).row_bytes * 1000 < 900_000


def test_a_row_that_was_reset_is_unknown_again() -> None:
    forecasts = Forecast(HISTORY_S).open(2)
    blank, ends = forecasts.dump(0), every(STEP_S, HISTORY_S)
    fed(forecasts, ends, np.stack([line(ends, 5.0, 0.001)] * 2))
    forecasts.reset(0)
    assert forecasts.dump(0) == blank != forecasts.dump(1)


@pytest.mark.parametrize(("horizon_s", "history_s"), [(0.0, None), (float("nan"), None), (60.0, 1.0), (1e9, 60.0)])
def test_a_horizon_or_a_history_that_makes_no_sense_is_refused(horizon_s: float, history_s: float | None) -> None:
    with pytest.raises(ConfigError, match="_s is"):
        Forecast(horizon_s, history_s)
