"""What is estimated without labels, on data whose true accuracy is known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

from streammon.outcomes import CONFIDENCE_BINS
from streammon_processors.quality.estimate import LEAST, MEMORY, Calibration, Estimate, isotonic

Generator = np.random.Generator


def chances(confidence: NDArray[Any]) -> NDArray[Any]:
    """How often a prediction of such a confidence is right: overconfident, as networks are."""
    return 0.2 + 0.65 * confidence


def pairs(rng: Generator, count: int, *, sure: float = 2.0, worse: float = 0.0) -> tuple[NDArray[Any], float]:
    """Pairs by group, confidence and whether they were right; and how often they were. ``sure``: how near 1 it is."""
    confidence = 0.5 + rng.beta(sure, 2.0, count) / 2
    right = rng.random(count) < chances(confidence) - worse
    group = (rng.random(count) < 0.4).astype(int)
    reliability = np.zeros((2, CONFIDENCE_BINS, 2), dtype=np.int64)
    np.add.at(reliability, (group, np.minimum((confidence * CONFIDENCE_BINS).astype(int), 49), right.astype(int)), 1)
    return reliability, float(right.mean())


def learnt(rng: Generator, count: int, **how: float) -> Calibration:
    calibration = Calibration()
    calibration.learn(pairs(rng, count, **how)[0])
    return calibration


def estimated(calibration: Calibration, reliability: NDArray[Any], **how: bool) -> Estimate:
    found = calibration.estimate(reliability.sum(axis=2), **how)
    assert found is not None
    return found


@pytest.mark.parametrize("seed", range(20))
def test_rising_values_are_those_of_scipy(seed: int) -> None:
    rng = np.random.default_rng(seed)
    values, weights = rng.random(30).round(1), rng.random(30) + 0.01
    rising, blocks = isotonic(values, weights)
    exact = isotonic_regression(values, weights=weights)
    assert rising == pytest.approx(exact.x)
    assert [len(set(rising[blocks == block].round(12))) for block in set(blocks)] == [1] * len(set(blocks))


def test_confidence_that_is_not_what_it_says_is_calibrated() -> None:
    rng = np.random.default_rng(1)
    today, truth = pairs(rng, 20_000)
    bins = (np.arange(CONFIDENCE_BINS) + 0.5) / CONFIDENCE_BINS
    plain = float((today.sum(axis=(0, 2)) * bins).sum() / today.sum())
    found = estimated(learnt(rng, 5000), today)
    assert plain - truth > 0.02 > abs(found.accuracy - truth)


@pytest.mark.parametrize(
    ("past", "sure"),
    [(200, 2.0), (5000, 2.0), (500, 6.0), (500, 0.7), (5000, 0.7)],
    ids=["few", "alike", "surer", "less sure", "many, less sure"],
)
def test_its_interval_holds_also_where_inputs_have_shifted(past: int, sure: float) -> None:
    """Covariate shift: confidence has another distribution today, and means what it did."""
    rng = np.random.default_rng(5)
    hits = 0
    for _ in range(300):
        calibration = learnt(rng, past)
        today, truth = pairs(rng, 1000, sure=sure)
        where = estimated(calibration, today).where
        hits += where.low <= truth <= where.high
    assert 0.93 <= hits / 300 <= 0.99


def test_concept_drift_is_not_seen() -> None:
    """The same confidence is right less often than before: only labels tell, and then the error of the estimate."""
    rng = np.random.default_rng(3)
    calibration = learnt(rng, 5000)
    today, truth = pairs(rng, 5000, worse=0.2)
    found = estimated(calibration, today)
    assert found.where.low > truth + 0.1


def test_after_concept_drift_new_labels_count_more_than_old_ones() -> None:
    rng = np.random.default_rng(4)
    calibration = learnt(rng, 100_000)
    calibration.learn(pairs(rng, 40_000, worse=0.2)[0])
    today, truth = pairs(rng, 5000, worse=0.2)
    assert calibration.pairs.sum() == pytest.approx(MEMORY)
    assert abs(estimated(calibration, today).accuracy - truth) < 0.2 * (MEMORY / (MEMORY + 40_000)) + 0.02


def test_of_two_classes_precision_recall_f1_and_auc_are_estimated_too() -> None:
    rng = np.random.default_rng(6)
    today, _ = pairs(rng, 50_000)
    found = estimated(learnt(rng, 50_000), today, two=True, positive=True).others
    (false_no, true_no), (false_yes, true_yes) = today.sum(axis=1)
    assert true_no > 0
    assert found["precision"] == pytest.approx(true_yes / (true_yes + false_yes), abs=0.02)
    assert found["recall"] == pytest.approx(true_yes / (true_yes + false_no), abs=0.02)
    assert found["f1"] == pytest.approx(2 * true_yes / (2 * true_yes + false_yes + false_no), abs=0.02)
    assert 0.6 < found["auc"] < 0.9
    assert estimated(learnt(rng, 5000), today, two=True).others.keys() == {"auc"}


def test_of_too_little_nothing_is_estimated() -> None:
    rng = np.random.default_rng(7)
    today, _ = pairs(rng, 100)
    assert learnt(rng, LEAST - 1).estimate(today.sum(axis=2)) is None
    assert learnt(rng, LEAST).estimate(np.zeros((2, CONFIDENCE_BINS), dtype=np.int64)) is None


def test_where_no_label_was_its_interval_says_how_little_that_is_worth() -> None:
    calibration = Calibration()
    calibration.pairs[1, 45] = 10, 490
    elsewhere, other_group = np.zeros((2, 2, CONFIDENCE_BINS), dtype=np.int64)
    elsewhere[1, 30] = other_group[0, 45] = 1000
    for unseen in (elsewhere, other_group):
        found = calibration.estimate(unseen)
        assert found is not None
        assert found.where.high - found.where.low > 0.5
    seen = calibration.estimate(other_group[::-1])
    assert seen is not None
    assert seen.accuracy == pytest.approx(0.98, abs=0.01)
    assert seen.where.high - seen.where.low < 0.04
