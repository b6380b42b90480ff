"""The measures of quality, read from `Sums`, each with where it lies; and how far a slice is from everybody else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import isfinite
from typing import Any, Final, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from streammon.results import Interval
from streammon_processors.quality import intervals
from streammon_processors.quality.sums import OTHER_CLASS, TENTHS, Floats, Sums

Task = Literal["classification", "regression"]
Value: TypeAlias = tuple[float | None, Interval | None]
Measured: TypeAlias = dict[str, tuple[float, Interval | None]]
NOTHING: Final[Value] = (None, None)


class View(NamedTuple):
    """How pairs are to be read."""

    task: Task | None
    """None: nothing is known yet."""
    positive: int | None = None
    """The class that precision and its like are of; None: the mean over classes."""
    two: bool = False
    """Whether there are just two classes, so that confidence tells the probability of each."""


def measured(sums: Sums, view: View) -> Measured:
    """By name, what can be told of these pairs."""
    values = {name: measure(sums, view) for name, measure in _MEASURES[view.task].items()}
    return {name: (value, where) for name, (value, where) in values.items() if value is not None and isfinite(value)}


def disparity(mine: Measured, others: Measured) -> Measured:
    """How far the measures of a slice are from those of everybody else."""
    found: Measured = {}
    for name in mine.keys() & others.keys():
        (value, where), (other, of_other) = mine[name], others[name]
        if where is not None and of_other is not None:
            found[name] = value - other, intervals.difference_interval(value, where, other, of_other)
    return {name: found[name] for name in mine if name in found}


# --- classes


def _accuracy(sums: Sums, view: View) -> Value:
    return _share(sums["right"], sums["judged"])


def _precision(sums: Sums, view: View) -> Value:
    hits, predicted, _ = _per_class(sums)
    if view.positive is not None:
        return _share(float(hits[view.positive]), float(predicted[view.positive]))
    return _macro(sums, of_predicted=True)


def _recall(sums: Sums, view: View) -> Value:
    hits, _, actual = _per_class(sums)
    if view.positive is not None:
        return _share(float(hits[view.positive]), float(actual[view.positive]))
    return _macro(sums, of_actual=True)


def _f1(sums: Sums, view: View) -> Value:
    hits, predicted, actual = _per_class(sums)
    if view.positive is not None:
        good, all_ = float(hits[view.positive]), float(predicted[view.positive] + actual[view.positive])
        return (2 * good / all_, intervals.f1_interval(good, all_ - 2 * good)) if all_ else NOTHING
    return _macro(sums, of_predicted=True, of_actual=True)


def _share(part: float, whole: float) -> Value:
    return (part / whole, intervals.wilson(part, whole)) if whole else NOTHING


def _per_class(sums: Sums) -> tuple[Floats, Floats, Floats]:
    """By class: predicted and right, predicted, actual."""
    confusion = sums.confusion.astype(float)
    return confusion.diagonal(), confusion.sum(axis=1), confusion.sum(axis=0)


def _macro(sums: Sums, *, of_predicted: bool = False, of_actual: bool = False) -> Value:
    """The mean over classes of the share that is right: of the predictions, of the labels, or of both together (F1).

    Over those that are predicted or actual; where there is nothing to have a share of, it is 0.
    """
    hits, predicted, actual = _per_class(sums)
    used = (predicted + actual > 0) & (np.arange(len(hits)) != OTHER_CLASS)
    if not used.any():
        return NOTHING
    weight = of_predicted + of_actual
    whole = predicted * of_predicted + actual * of_actual
    there = used & (whole > 0)
    share = np.divide(weight * hits, whole, out=np.zeros_like(whole), where=there)
    # By each cell of the confusion matrix: a pair that is right adds above the line, each pair below it.
    up = np.divide(weight, whole, out=np.zeros_like(whole), where=there)
    down = np.divide(-share, whole, out=np.zeros_like(whole), where=there)
    gradient = np.diag(up) + down[:, None] * of_predicted + down[None, :] * of_actual
    value = float(share[used].mean())
    return value, intervals.multinomial_interval(value, gradient / used.sum(), sums.confusion)


# --- confidence


def _log_loss(sums: Sums, view: View) -> Value:
    return _mean(sums["sure"], sums["log_loss"], sums["log_loss_squares"])


def _calibration_error(sums: Sums, view: View) -> Value:
    """Over tenths of confidence, weighted by how many are in each: | mean confidence - accuracy |."""
    if not sums["sure"]:
        return NOTHING
    right = sums.reliability[:, :, 1].sum(axis=0).reshape(TENTHS, -1).sum(axis=1)
    return float(np.abs(sums.confidence - right).sum() / sums["sure"]), None


def _auc(sums: Sums, view: View) -> Value:
    if not view.two:
        return NOTHING
    positive, negative = by_score(sums.reliability)
    return intervals.auc_of(positive, negative), intervals.auc_interval(positive, negative)


def by_score(reliability: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Of two classes, positives and negatives by bins of the score, the probability of the positive class."""
    (wrong_no, right_no), (wrong_yes, right_yes) = reliability[0].T, reliability[1].T
    return right_yes + wrong_no[::-1], wrong_yes + right_no[::-1]


# --- numbers


def _mae(sums: Sums, view: View) -> Value:
    return _mean(sums["numbers"], sums["distance"], sums["squares"])


def _rmse(sums: Sums, view: View) -> Value:
    count = sums["numbers"]
    if not count:
        return NOTHING
    where = intervals.root_interval(count, sums["squares"], sums["fourth_powers"])
    return (abs(sums["squares"]) / count) ** 0.5, where


def _bias(sums: Sums, view: View) -> Value:
    return _mean(sums["numbers"], sums["error"], sums["squares"])


def _score(sums: Sums, view: View) -> Value:
    return _mean(sums["scored"], sums["score"], sums["score_squares"])


def _rating(sums: Sums, view: View) -> Value:
    return _mean(sums["rated"], sums["rating"], sums["rating_squares"])


def _mean(count: float, total: float, squares: float) -> Value:
    return (total / count, intervals.mean_interval(count, total, squares)) if count else NOTHING


Measure: TypeAlias = Callable[[Sums, View], Value]
_CLASSIFICATION: Final[dict[str, Measure]] = {
    "accuracy": _accuracy,
    "precision": _precision,
    "recall": _recall,
    "f1": _f1,
    "log_loss": _log_loss,
    "calibration_error": _calibration_error,
    "auc": _auc,
}
_REGRESSION: Final[dict[str, Measure]] = {"mae": _mae, "rmse": _rmse, "bias": _bias}
_SATISFACTION: Final[dict[str, Measure]] = {"score": _score, "rating": _rating}
_MEASURES: Final[Mapping[Task | None, Mapping[str, Measure]]] = {
    "classification": _CLASSIFICATION | _SATISFACTION,
    "regression": _REGRESSION | _SATISFACTION,
    None: _SATISFACTION,
}
