"""Nominal 95 % holds 93 to 97 %, in simulation: for each interval, and for the difference of two."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from streammon.results import Interval
from streammon_processors.quality.intervals import (
    auc_interval,
    auc_of,
    difference_interval,
    f1_interval,
    mean_interval,
    root_interval,
    t_quantile,
    wilson,
)
from streammon_processors.quality.measures import View, measured
from streammon_processors.quality.sums import Sums

Generator = np.random.Generator
TIMES = 2000
"""Draws; the standard error of a share of 95 % is 0.5 % then."""


def coverage(draw: Callable[[Generator], Interval | None], truth: float, times: int = TIMES) -> float:
    rng = np.random.default_rng(7)
    found = [where for _ in range(times) if (where := draw(rng)) is not None]
    assert len(found) > 0.98 * times
    return sum(where.low <= truth <= where.high for where in found) / len(found)


# --- one measure


@pytest.mark.parametrize(("share", "count"), [(0.5, 20), (0.9, 60), (0.97, 200), (0.05, 500)])
def test_wilson_holds_of_proportions(share: float, count: int) -> None:
    """Exactly, by the binomial distribution. A single share and size can be a lattice's bad luck: means over sizes."""
    covered = []
    for size in range(count, count + 20):
        shares = stats.binom.pmf(np.arange(size + 1), size, share)
        wheres = [wilson(successes, size) for successes in range(size + 1)]
        covered.append(
            sum(p for p, where in zip(shares, wheres, strict=True) if where and where.low <= share <= where.high)
        )
    assert 0.93 <= np.mean(covered) <= 0.97


def test_wilson_is_that_of_scipy() -> None:
    for successes, trials in [(0, 5), (3, 7), (99, 100), (500, 1000)]:
        exact = stats.binomtest(successes, trials).proportion_ci(0.95, "wilson")
        where = wilson(successes, trials)
        assert where is not None
        assert (where.low, where.high) == pytest.approx((exact.low, exact.high), abs=1e-9)
    assert wilson(0, 0) is None


def test_the_quantile_of_t_is_that_of_scipy() -> None:
    for degrees in (3, 4, 5, 10, 30, 1000):
        assert t_quantile(degrees) == pytest.approx(stats.t.ppf(0.975, degrees), rel=0.003)


def _normal(rng: Generator, count: int) -> NDArray[Any]:
    return rng.normal(0.3, 2.0, count)


def _laplace(rng: Generator, count: int) -> NDArray[Any]:
    return rng.laplace(0.3, 1.0, count)


Draw = Callable[[Generator, int], NDArray[Any]]


def _truths(draw: Draw) -> tuple[float, float, float]:
    """Bias, MAE and RMSE of the distribution."""
    many = draw(np.random.default_rng(1), 4_000_000)
    return float(many.mean()), float(np.abs(many).mean()), float(np.sqrt((many**2).mean()))


@pytest.mark.parametrize("draw", [_normal, _laplace])
@pytest.mark.parametrize("count", [50, 300])
def test_intervals_of_numbers_hold(draw: Draw, count: int) -> None:
    bias, mae, rmse = _truths(draw)

    def of_bias(rng: Generator) -> Interval | None:
        values = draw(rng, count)
        return mean_interval(count, values.sum(), (values**2).sum())

    def of_mae(rng: Generator) -> Interval | None:
        values = np.abs(draw(rng, count))
        return mean_interval(count, values.sum(), (values**2).sum())

    def of_rmse(rng: Generator) -> Interval | None:
        values = draw(rng, count) ** 2
        return root_interval(count, values.sum(), (values**2).sum())

    assert 0.93 <= coverage(of_bias, bias) <= 0.97
    assert 0.93 <= coverage(of_mae, mae) <= 0.97
    if count >= 300 or draw is _normal:
        assert 0.93 <= coverage(of_rmse, rmse) <= 0.97
    else:  # the squares of 50 heavy-tailed errors are too skewed for any interval from their sums
        assert coverage(of_rmse, rmse) >= 0.90


def _scores(rng: Generator, count: int, share: float, apart: float) -> tuple[NDArray[Any], NDArray[Any]]:
    """Positives and negatives of two normal distributions, by bins of the score."""
    positive = rng.random(count) < share
    scores = 1 / (1 + np.exp(-rng.normal(apart * positive, 1.0)))
    bins = np.minimum((scores * 50).astype(int), 49)
    return np.bincount(bins[positive], minlength=50), np.bincount(bins[~positive], minlength=50)


@pytest.mark.parametrize(("count", "share", "apart"), [(100, 0.5, 1.0), (300, 0.2, 1.5), (1000, 0.05, 2.0)])
def test_intervals_of_auc_hold(count: int, share: float, apart: float) -> None:
    truth = auc_of(*_scores(np.random.default_rng(1), 1_000_000, share, apart))
    assert truth is not None
    assert 0.93 <= coverage(lambda rng: auc_interval(*_scores(rng, count, share, apart)), truth) <= 0.97


@pytest.mark.parametrize(("count", "cells"), [(100, (0.3, 0.1, 0.1, 0.5)), (400, (0.05, 0.03, 0.02, 0.9))])
def test_intervals_of_f1_hold(count: int, cells: tuple[float, ...]) -> None:
    truth = 2 * cells[0] / (2 * cells[0] + cells[1] + cells[2])

    def draw(rng: Generator) -> Interval | None:
        hits, wrong, missed, _ = rng.multinomial(count, cells)
        return f1_interval(hits, wrong + missed)

    assert 0.93 <= coverage(draw, truth) <= 0.97


CONFUSION = np.array([[0.35, 0.05, 0.02], [0.03, 0.25, 0.05], [0.02, 0.05, 0.18]])


def _confusion(rng: Generator, count: int) -> Sums:
    sums = Sums()
    sums.confusion[:3, :3] = rng.multinomial(count, CONFUSION.ravel()).reshape(3, 3)
    return sums


@pytest.mark.parametrize("name", ["precision", "recall", "f1"])
def test_intervals_of_means_over_classes_hold(name: str) -> None:
    hits, predicted, actual = CONFUSION.diagonal(), CONFUSION.sum(axis=1), CONFUSION.sum(axis=0)
    truth = {"precision": hits / predicted, "recall": hits / actual, "f1": 2 * hits / (predicted + actual)}[name].mean()

    def draw(rng: Generator) -> Interval | None:
        return measured(_confusion(rng, 200), View("classification"))[name][1]

    assert 0.93 <= coverage(draw, truth) <= 0.97


# --- the difference of two


def _differences(
    one: Callable[[Generator], tuple[float, Interval | None]],
    other: Callable[[Generator], tuple[float, Interval | None]],
) -> Callable[[Generator], Interval | None]:
    def draw(rng: Generator) -> Interval | None:
        (value, where), (second, of_second) = one(rng), other(rng)
        return difference_interval(value, where, second, of_second) if where and of_second else None

    return draw


def _proportion(rng: Generator, share: float, count: int) -> tuple[float, Interval | None]:
    hits = int(rng.binomial(count, share))
    return hits / count, wilson(hits, count)


def _mean(rng: Generator, at: float, spread: float, count: int) -> tuple[float, Interval | None]:
    values = rng.normal(at, spread, count)
    return float(values.mean()), mean_interval(count, values.sum(), (values**2).sum())


def _rmse(rng: Generator, spread: float, count: int) -> tuple[float, Interval | None]:
    values = rng.normal(0, spread, count) ** 2
    return float(np.sqrt(values.mean())), root_interval(count, values.sum(), (values**2).sum())


def _f1(rng: Generator, cells: tuple[float, ...], count: int) -> tuple[float, Interval | None]:
    hits, wrong, missed, _ = rng.multinomial(count, cells)
    return 2 * hits / max(1, 2 * hits + wrong + missed), f1_interval(hits, wrong + missed)


def _auc(rng: Generator, apart: float, count: int) -> tuple[float, Interval | None]:
    scores = _scores(rng, count, 0.3, apart)
    return auc_of(*scores) or 0.0, auc_interval(*scores)


PAIRS = [
    pytest.param(
        partial(_f1, cells=(0.2, 0.05, 0.05, 0.7), count=100),
        partial(_f1, cells=(0.2, 0.1, 0.1, 0.6), count=600),
        0.8 - 2 / 3,
        id="f1",
    ),
    pytest.param(
        partial(_proportion, share=0.9, count=60), partial(_proportion, share=0.7, count=500), 0.2, id="share"
    ),
    pytest.param(
        partial(_mean, at=0.0, spread=1.0, count=40), partial(_mean, at=0.5, spread=3.0, count=400), -0.5, id="mean"
    ),
    pytest.param(partial(_rmse, spread=1.0, count=100), partial(_rmse, spread=2.0, count=500), -1.0, id="rmse"),
    pytest.param(partial(_auc, apart=1.5, count=150), partial(_auc, apart=1.5, count=600), 0.0, id="auc"),
]


@pytest.mark.parametrize(("one", "other", "truth"), PAIRS)
def test_intervals_of_differences_hold(one: Any, other: Any, truth: float) -> None:
    assert 0.93 <= coverage(_differences(one, other), truth) <= 0.97


def test_the_difference_of_two_proportions_is_newcombes() -> None:
    """Newcombe 1998, table II, method 10: 56/70 against 48/80."""
    one, other = wilson(56, 70), wilson(48, 80)
    assert one is not None
    assert other is not None
    where = difference_interval(56 / 70, one, 48 / 80, other)
    assert where is not None
    assert (where.low, where.high) == pytest.approx((0.0524, 0.3339), abs=1e-4)


# --- too little


def test_of_too_little_there_is_no_interval() -> None:
    assert mean_interval(3, 1.0, 1.0) is None
    assert root_interval(300, 0.0, 0.0) is None
    assert auc_interval(np.array([0, 5]), np.array([5, 0])) is None
    assert auc_interval(np.array([0, 0]), np.array([5, 0])) is None
    assert f1_interval(0, 0) is None
