"""Every measure against a plain computation over all pairs, and against River's metrics."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import product
from math import log
from statistics import fmean
from typing import Any

import numpy as np
import pytest
from river import metrics as river_metrics

from streammon.models import LabelPolicy
from streammon.outcomes import CONFIDENCE_BINS, Value, class_name
from streammon_processors.quality.classes import Classes
from streammon_processors.quality.intervals import auc_of
from streammon_processors.quality.measures import Measured, disparity, measured
from streammon_processors.quality.sums import MAX_CLASSES, Sums, grouped
from tests.quality_pairs import Pair, outcomes, random_pairs

metrics: Any = river_metrics  # which has no types
BINARY, TEXTS = ("0", "1"), ("cat", "dog", "eel", "fox")


def sums_of(pairs: Sequence[Pair], classes: Classes, cut: int = 50) -> Sums:
    """All of them, added some at a time."""
    sums = Sums()
    for start in range(0, len(pairs), cut):
        part = outcomes(pairs[start : start + cut])
        for found in grouped(classes.pairs(part, None), [np.zeros(part.count, dtype=np.int64)]):
            sums.add(*found[1:])
    return sums


def values_of(pairs: Sequence[Pair], **policy: Any) -> dict[str, float]:
    classes = Classes(LabelPolicy(**policy))
    sums = sums_of(pairs, classes)
    return {name: value for name, (value, _) in measured(sums, classes.view).items()}


def random_classes(names: Sequence[str], seed: int, count: int = 400, accuracy: float = 0.7) -> list[Pair]:
    rng = random.Random(seed)
    pairs = []
    for _ in range(count):
        label = rng.choice(names)
        prediction = label if rng.random() < accuracy else rng.choice(names)
        pairs.append(Pair(prediction, label, confidence=rng.choice([None, rng.random(), 0.0, 1.0])))
    return pairs


# --- classes


@pytest.mark.parametrize("seed", range(4))
def test_binary_measures_are_rivers(seed: int) -> None:
    pairs = random_pairs(500, random.Random(seed), over_s=10, delay_s=1)
    river = {
        "accuracy": metrics.Accuracy(),
        "precision": metrics.Precision(),
        "recall": metrics.Recall(),
        "f1": metrics.F1(),
    }
    for pair, metric in product(pairs, river.values()):
        metric.update(pair.label, pair.prediction)
    found = values_of(pairs)
    assert {name: found[name] for name in river} == pytest.approx({name: each.get() for name, each in river.items()})


@pytest.mark.parametrize("seed", range(4))
def test_measures_of_many_classes_are_rivers_means_over_classes(seed: int) -> None:
    pairs = random_classes(TEXTS, seed)
    river = {
        "accuracy": metrics.Accuracy(),
        "precision": metrics.MacroPrecision(),
        "recall": metrics.MacroRecall(),
        "f1": metrics.MacroF1(),
    }
    for pair, metric in product(pairs, river.values()):
        metric.update(pair.label, pair.prediction)
    found = values_of(pairs)
    assert {name: found[name] for name in river} == pytest.approx({name: each.get() for name, each in river.items()})


def test_a_declared_class_is_the_one_that_precision_is_of() -> None:
    pairs = random_classes(TEXTS, 1)
    found = values_of(pairs, positive="dog")
    predicted = [pair for pair in pairs if pair.prediction == "dog"]
    actual = [pair for pair in pairs if pair.label == "dog"]
    hits = sum(pair.label == "dog" for pair in predicted)
    assert found["precision"] == pytest.approx(hits / len(predicted))
    assert found["recall"] == pytest.approx(hits / len(actual))
    assert found["f1"] == pytest.approx(2 * hits / (len(predicted) + len(actual)))
    assert "auc" not in found  # of four classes, confidence does not tell the probability of one


@pytest.mark.parametrize("seed", range(4))
def test_log_loss_is_rivers_where_there_are_two_classes(seed: int) -> None:
    pairs = random_pairs(300, random.Random(seed), over_s=10, delay_s=1)
    river = metrics.LogLoss()
    for pair in pairs:
        assert pair.confidence is not None
        chance = min(pair.confidence, 1 - 1e-7)
        river.update(pair.label, chance if pair.prediction else 1 - chance)
    assert values_of(pairs)["log_loss"] == pytest.approx(river.get(), rel=1e-6)


def test_log_loss_of_many_classes_is_that_of_being_right() -> None:
    pairs = [pair._replace(confidence=0.8) for pair in random_classes(TEXTS, 2)]
    right = fmean(pair.prediction == pair.label for pair in pairs)
    assert values_of(pairs)["log_loss"] == pytest.approx(-right * log(0.8) - (1 - right) * log(0.2))


@pytest.mark.parametrize("seed", range(4))
def test_calibration_error_is_that_of_ten_bins(seed: int) -> None:
    pairs = random_classes(BINARY, seed)
    sure = [pair for pair in pairs if pair.confidence is not None]
    bins: list[list[Pair]] = [[] for _ in range(10)]
    for pair in sure:
        bins[min(9, int((pair.confidence or 0.0) * 10))].append(pair)
    gaps = [
        abs(sum(each.confidence or 0.0 for each in part) - sum(each.prediction == each.label for each in part))
        for part in bins
    ]
    assert values_of(pairs)["calibration_error"] == pytest.approx(sum(gaps) / len(sure))


def exact_auc(scored: Sequence[tuple[float, bool]]) -> float:
    """Of all pairs of a positive and a negative."""
    positive = [score for score, is_positive in scored if is_positive]
    negative = [score for score, is_positive in scored if not is_positive]
    return fmean(0.5 * (a == b) + (a > b) for a in positive for b in negative)


def score(pair: Pair, *, binned: bool) -> float:
    """The probability of the positive class, by its bin if so."""
    confidence = pair.confidence or 0.0
    place = min(int(confidence * CONFIDENCE_BINS), CONFIDENCE_BINS - 1)
    if binned:
        return place if pair.prediction else CONFIDENCE_BINS - 1 - place
    return confidence if pair.prediction else 1 - confidence


@pytest.mark.parametrize("seed", range(4))
def test_auc_is_exact_for_bins_and_off_by_half_the_pairs_in_one_at_most(seed: int) -> None:
    pairs = random_pairs(300, random.Random(seed), over_s=10, delay_s=1)
    found = values_of(pairs)["auc"]
    assert found == pytest.approx(exact_auc([(score(pair, binned=True), bool(pair.label)) for pair in pairs]))
    plain = exact_auc([(score(pair, binned=False), bool(pair.label)) for pair in pairs])
    together = fmean(
        score(one, binned=True) == score(other, binned=True)
        for one in pairs
        for other in pairs
        if one.label and not other.label
    )
    assert abs(found - plain) <= together / 2 + 1e-12


def test_auc_does_not_depend_on_which_of_two_classes_is_called_positive() -> None:
    pairs = [
        pair._replace(prediction="yes" if pair.prediction else "no", label="yes" if pair.label else "no")
        for pair in random_pairs(300, random.Random(3), over_s=10, delay_s=1)
    ]
    one, other, undeclared = (values_of(pairs, positive=name)["auc"] for name in ("yes", "no", None))
    assert one == pytest.approx(other) == pytest.approx(undeclared)


def test_classes_beyond_the_cap_count_for_accuracy_and_for_nothing_else() -> None:
    names = [f"class {number}" for number in range(2 * MAX_CLASSES)]
    known = [Pair(name, name) for name in names[:MAX_CLASSES]]
    beyond = [Pair(name, name) for name in names[MAX_CLASSES:]]
    wrong = [Pair(names[-1], names[-2])]
    found = values_of([*known, *beyond, *wrong])
    assert found["accuracy"] == pytest.approx(40 / 41)
    assert found["f1"] == 1.0


def test_a_class_is_the_same_as_number_truth_and_text() -> None:
    same: list[tuple[Value, Value]] = [
        (1.0, True),
        ("1", 1.0),
        (False, 0.0),
        ("false", "0"),
        ("2.50", 2.5),
        (-0.0, 0.0),
    ]
    assert [class_name(one or False) == class_name(other or False) for one, other in same] == [True] * len(same)
    assert class_name("nan") == "nan"
    assert [class_name(each) for each in ("1_2", "1\u0662")] == ["1_2", "1\u0662"]  # though Python reads 12
    assert class_name(1e300) == "1e+300"
    assert values_of([Pair(True, 1.0), Pair(False, 0.0), Pair(True, "0")])["accuracy"] == pytest.approx(2 / 3)


# --- numbers


@pytest.mark.parametrize("seed", range(4))
def test_measures_of_numbers_are_rivers(seed: int) -> None:
    rng = random.Random(seed)
    pairs = [Pair(label + rng.gauss(0.3, 2.0), label) for label in (rng.uniform(-10, 1e3) for _ in range(300))]
    river = {"mae": metrics.MAE(), "rmse": metrics.RMSE()}
    for pair, metric in product(pairs, river.values()):
        metric.update(pair.label, pair.prediction)
    found = values_of(pairs)
    assert {name: found[name] for name in river} == pytest.approx({name: each.get() for name, each in river.items()})
    assert found["bias"] == pytest.approx(fmean(pair.prediction - pair.label for pair in pairs))  # type: ignore[operator]
    assert found.keys() == {"mae", "rmse", "bias"}


def test_whole_numbers_are_classes_until_there_are_fractions_or_too_many() -> None:
    few = [Pair(float(number % 3), float(number % 2)) for number in range(30)]
    assert "accuracy" in values_of(few)
    assert values_of([*few, Pair(0.5, 1.0)]).keys() == {"mae", "rmse", "bias"}
    assert values_of([*few, *(Pair(float(number), 1.0) for number in range(30))]).keys() == {"mae", "rmse", "bias"}
    assert values_of(few, task="regression")["mae"] == pytest.approx(
        fmean(abs(pair.prediction - pair.label) for pair in few)  # type: ignore[operator]
    )
    assert "accuracy" in values_of([*few, Pair(0.5, 1.0)], task="classification")


def test_a_measure_that_overflows_is_none() -> None:
    assert values_of([Pair(1e200, -1e200)] * 5, task="regression").keys() == {"mae", "bias"}


# --- satisfaction, and what is missing


def test_scores_and_ratings_are_means_of_those_that_were_given() -> None:
    pairs = [Pair(score=0.5), Pair(score=1.0), Pair(rating=4.0), Pair("a", None)]
    assert values_of(pairs) == {"score": 0.75, "rating": 4.0}


def test_without_confidence_nothing_is_told_of_it() -> None:
    found = values_of([Pair("a", "b"), Pair("a", "a", confidence=7.0), Pair("b", "b", confidence=-0.1)])
    assert found.keys() == {"accuracy", "precision", "recall", "f1"}


def test_pairs_without_prediction_or_label_are_not_judged() -> None:
    assert values_of([Pair("a", None), Pair(None, "a"), Pair("a", "a")])["accuracy"] == 1.0


# --- slices


def test_everybody_else_is_the_difference_and_disparity_is_how_far_one_is_from_them() -> None:
    pairs = random_pairs(600, random.Random(5), over_s=10, delay_s=1)
    classes = Classes(LabelPolicy())
    mine, others = ([pair for pair in pairs if (pair.slices["country"] == "a") == inside] for inside in (True, False))
    whole, part, rest = (sums_of(each, classes) for each in (pairs, mine, others))
    view = classes.view
    left = measured(whole.without(part), view)
    plain = measured(rest, view)
    assert _values(left) == pytest.approx(_values(plain))
    gaps = disparity(measured(part, view), left)
    assert _values(gaps) == pytest.approx({name: measured(part, view)[name][0] - plain[name][0] for name in gaps})
    assert {"accuracy", "precision", "recall", "f1", "log_loss", "auc"} == gaps.keys()
    for value, where in gaps.values():
        assert where is not None
        assert where.low <= value <= where.high


def _values(found: Measured) -> dict[str, float]:
    return {name: value for name, (value, _) in found.items()}


def test_sums_survive_packing() -> None:
    classes = Classes(LabelPolicy())
    sums = sums_of(random_pairs(300, random.Random(1), over_s=10, delay_s=1), classes)
    again = Sums.unpack(sums.pack())
    assert (again.floats == sums.floats).all()
    assert (again.counts == sums.counts).all()
    assert sums.weight < 500


def test_auc_of_bins_is_the_share_of_pairs_in_order() -> None:
    assert auc_of(np.array([0, 3]), np.array([2, 0])) == 1.0
    assert auc_of(np.array([1, 1]), np.array([1, 1])) == 0.5
    assert auc_of(np.array([1, 0]), np.array([0, 0])) is None
