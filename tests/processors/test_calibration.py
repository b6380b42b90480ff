"""Calibration: settings that keep to a budget on a history, and the months that are made of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from streammon.errors import ConfigError
from streammon.models import ModelPolicy, Use
from streammon_processors.detectors.budget import threshold
from streammon_processors.detectors.calibration import Bootstrap, History, Plan, calibrate, shift
from streammon_processors.detectors.histories import history_of_csv
from streammon_processors.detectors.watching import watch_of
from tests.series import BEGIN_UNIX_S, DATA, DAY_S, Floats, autoregressive

STEP_S = 300.0
DAY = 288
WATCH = watch_of(ModelPolicy(), "score", Use())
PLAN = Plan(allowed_per_month=4.0, effects=(3.0,), months=4, runs=2)
BEGIN_S = DAY_S * (BEGIN_UNIX_S // DAY_S)


def silent(_: str) -> None:
    pass


def history(values: Any, counts: float = 100.0) -> History:
    numbers = np.asarray(values, dtype=np.float64)
    starts: Floats = BEGIN_S + np.arange(len(numbers), dtype=np.float64) * STEP_S
    return History("score", starts, numbers, np.full(len(numbers), counts), STEP_S)


def season(days: int) -> Floats:
    return np.asarray(5.0 * np.sin(np.arange(days * DAY) * 2 * np.pi / DAY))


def test_the_months_made_have_the_season_of_the_history_to_the_step() -> None:
    made = Bootstrap(history(season(6)), WATCH, PLAN)
    ends, values, counts = made.make(3, 10 * DAY)
    assert np.allclose(values, np.tile(season(1), 10))
    assert np.allclose(np.diff(ends), STEP_S)
    assert (counts == 100.0).all()


def test_they_have_its_dependence_and_its_distribution() -> None:
    dependent = autoregressive(np.random.default_rng(1), 1, 20 * DAY, 0.9)[0]
    _, values, _ = Bootstrap(history(dependent), WATCH, PLAN).make(1, 60 * DAY)
    assert np.corrcoef(values[:-1], values[1:])[0, 1] == pytest.approx(0.9, abs=0.03)
    assert np.quantile(values, (0.1, 0.5, 0.9)) == pytest.approx(np.quantile(dependent, (0.1, 0.5, 0.9)), abs=0.25)


def test_hours_without_values_have_none_in_the_months_made() -> None:
    full = history(season(8))
    night = np.arange(8 * DAY) % DAY < 60
    gaps = full._replace(starts=full.starts[~night], values=full.values[~night], counts=full.counts[~night])
    _, values, _ = Bootstrap(gaps, WATCH, PLAN).make(0, 5 * DAY)
    missing = np.isnan(values).reshape(5, DAY)
    assert missing.sum() == 5 * 60
    assert (missing == missing[0]).all()
    assert np.allclose(values[~np.isnan(values)].reshape(5, -1), full.values[:DAY][~night[:DAY]])


def test_the_same_seed_makes_the_same_and_another_number_another_month() -> None:
    made = Bootstrap(history(np.random.default_rng(2).random(5 * DAY)), WATCH, PLAN)
    again = Bootstrap(history(np.random.default_rng(2).random(5 * DAY)), WATCH, PLAN)
    assert (made.make(1, 1000)[1] == again.make(1, 1000)[1]).all()
    assert (made.make(1, 1000)[1] != made.make(2, 1000)[1]).any()


def test_of_independent_values_the_threshold_is_near_that_of_the_formula() -> None:
    values = np.random.default_rng(3).standard_normal(14 * DAY)
    plan = replace(PLAN, allowed_per_month=2.0, months=12)
    found = calibrate(history(values), WATCH, ["page_hinkley"], plan, silent)
    height = found.best.settings["threshold"]
    assert threshold(8.0, STEP_S, 0.25) / 2 < height < threshold(0.1, STEP_S, 0.25) * 1.5
    assert found.best.within_budget
    assert found.best.alarms / 12 <= 2.0
    assert found.best.delays[0].found == 1.0
    assert (found.best.delays[0].median_s or 0) < 2 * 3600.0
    assert found.warning is None


def test_a_season_costs_no_alarms_and_a_history_that_shifts_is_told() -> None:
    values = season(14) + np.random.default_rng(4).standard_normal(14 * DAY)
    calm = calibrate(history(values), WATCH, ["page_hinkley"], PLAN, silent)
    assert calm.best.settings["threshold"] < 60.0
    values[5 * DAY : 8 * DAY] += 6.0
    shifting = calibrate(history(values), WATCH, ["page_hinkley"], replace(PLAN, effects=(0.1,)), silent)
    assert shifting.best.settings["threshold"] > 2 * calm.best.settings["threshold"]
    assert "the history shifts itself" in (shifting.warning or "")


def test_of_several_candidates_the_one_that_finds_more_within_the_budget_is_best() -> None:
    rng = np.random.default_rng(5)
    of = rng.poisson(100, 4 * DAY)
    errors = history(rng.binomial(of, 0.02) / np.maximum(of, 1))._replace(name="error", counts=of.astype(float))
    watch = watch_of(ModelPolicy(), "error", Use())
    found = calibrate(errors, watch, ["page_hinkley", "hddm_a"], replace(PLAN, months=1, runs=1), silent)
    assert {each.detector for each in found.candidates} == {"page_hinkley", "hddm_a"}
    assert found.best.merit == min(each.merit for each in found.candidates)
    for each in found.candidates:
        assert each.low <= each.false_alarms_per_month <= each.high


def test_too_short_a_history_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"score: the history has 2\.0 days of values, and 3 are needed"):
        calibrate(history(np.zeros(2 * DAY)), WATCH, ["page_hinkley"], PLAN, silent)
    weekly = replace(WATCH, preparation=replace(WATCH.preparation, season="week"))
    with pytest.raises(ConfigError, match="21 are needed"):
        calibrate(history(np.zeros(14 * DAY)), weekly, ["page_hinkley"], PLAN, silent)


@pytest.mark.parametrize(
    ("transform", "value", "shifted"),
    [("identity", 2.0, 2.02), ("log", 4.0, 4.0 * np.exp(0.01 * np.log(4.0))), ("rate", 0.5, 0.505)],
)
def test_a_shift_is_in_standard_deviations_of_what_the_detector_sees(
    transform: Any, value: float, shifted: float
) -> None:
    values = np.full(DAY, value)
    ends: Floats = np.arange(DAY, dtype=np.float64) * STEP_S
    found = shift(ends, values, np.ones(DAY), 1.0, transform, 100)
    assert (found[:100] == value).all()
    assert found[100:] == pytest.approx(np.full(DAY - 100, shifted))


def test_a_real_series_is_read_and_its_months_are_like_it() -> None:
    found = history_of_csv(DATA / "nab_ec2_request_latency_system_failure.csv", "duration_s")
    assert found.step_s == STEP_S
    assert found.days == pytest.approx(14, abs=0.1)
    _, values, _ = Bootstrap(found, WATCH, PLAN).make(0, 20 * DAY)
    assert np.nanmedian(values) == pytest.approx(np.nanmedian(found.values), rel=0.02)
    assert set(np.unique(values[np.isfinite(values)])) <= set(np.unique(found.values))
