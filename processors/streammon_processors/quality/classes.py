"""What a model version predicts, found out from its pairs: classes, and which, or numbers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np

from streammon.models import LabelPolicy
from streammon.outcomes import Outcomes, Value, class_name
from streammon_processors.quality.measures import Task, View
from streammon_processors.quality.sums import MAX_CLASSES, OTHER_CLASS, Floats, Ints, Pairs, absurd_values

MAX_NAME: Final = 64
"""Classes with longer names are not told apart."""
_TRUTH: Final = ("1", "0")
_NO_NUMBER: Final = frozenset({"", "nan", "null", "none", "na", "n/a", "inf", "-inf", "infinity", "-infinity"})
"""Texts that stand where a number is missing: they make no classes of numbers."""


class Classes:
    """What one version predicts. The first class is the positive one, as far as there is one."""

    def __init__(self, policy: LabelPolicy, names: Iterable[str] = (), *, text: bool = False, continuous: bool = False):
        declared = () if policy.positive is None else (class_name(policy.positive),)
        self._declared = bool(declared)
        self._task = policy.task
        self._codes = {name: code for code, name in enumerate(dict.fromkeys((*declared, *names)))}
        self.text = text
        """Whether it has been anything but a number: classes, then, for good."""
        self.continuous = continuous
        """Whether there were fractions, or more numbers than `MAX_CLASSES`: no classes, then, unless there was text."""

    @property
    def names(self) -> list[str]:
        return list(self._codes)

    @property
    def task(self) -> Task | None:
        """What is predicted, as far as it is known."""
        if self._task is not None or not (self.text or self.continuous):
            return self._task or ("classification" if self._codes else None)
        return "classification" if self.text else "regression"

    @property
    def view(self) -> View:
        told = self._declared or set(self._codes) == set(_TRUTH)
        return View(self.task, 0 if told else None, len(self._codes) == 2)

    def is_positive(self, name: str) -> bool:
        """Whether it is the class that confidence is kept apart for."""
        return self._codes.get(class_name(name)) == 0

    def pairs(self, outcomes: Outcomes, rows: Ints | None) -> Pairs:
        """Some pairs as numbers; all for None."""

        def column(values: Sequence[Any]) -> Sequence[Any]:
            return values if rows is None else [values[row] for row in rows.tolist()]

        prediction, label = column(outcomes.prediction), column(outcomes.label)
        confidence = _floats(column(outcomes.confidence))
        confidence[~((confidence >= 0) & (confidence <= 1))] = np.nan
        error = self._errors(prediction, label)
        predicted, actual, right = self._classes(prediction, label)
        return Pairs(
            labelled=np.array([each is not None for each in label], dtype=bool),
            score=_floats(column(outcomes.score)),
            rating=_floats(column(outcomes.rating)),
            predicted=predicted,
            actual=actual,
            right=right,
            group=(predicted == 0).astype(np.int64),
            confidence=confidence,
            error=error,
        )

    # --- numbers ----------------------------------------------------------------------------------------------------

    def _errors(self, prediction: Sequence[Value], label: Sequence[Value]) -> Floats:
        """Prediction minus label, as far as they are numbers; and what that says about the task."""
        kinds = set(map(type, prediction)) | set(map(type, label))
        if kinds & {str, bool}:
            self.text = self.text or bool in kinds or any(map(_names_a_class, {*prediction, *label}))
            prediction, label = _numbers(prediction), _numbers(label)
        if self.task == "classification" and (self.text or self._task):
            return np.full(len(label), np.nan)
        values = _floats(prediction), _floats(label)
        self.continuous = self.continuous or any(
            bool((each != np.rint(each))[~np.isnan(each)].any()) for each in values
        )
        with absurd_values():
            return values[0] - values[1]

    # --- classes ----------------------------------------------------------------------------------------------------

    def _classes(self, prediction: Sequence[Value], label: Sequence[Value]) -> tuple[Ints, Ints, np.ndarray[Any, Any]]:
        """The classes of predictions and labels, and which are the same."""
        none = np.full(len(label), -1)
        if self.task == "regression":
            return none, none, none > 0
        values = [each for each in dict.fromkeys((*prediction, *label)) if each is not None]
        names = {value: class_name(value) for value in values}
        codes = {name: self._code(name) for name in dict.fromkeys(names.values())}
        if self._task is None and self.continuous and not self.text:  # that was one class too many
            return none, none, none > 0
        numbers = {name: number for number, name in enumerate(codes)}
        place: dict[Value, int] = {value: numbers[name] for value, name in names.items()} | {None: -1}
        one, other = (np.fromiter(map(place.__getitem__, each), np.int64, len(each)) for each in (prediction, label))
        code_of = np.array([*codes.values(), -1])
        return code_of[one], code_of[other], one == other

    def _code(self, name: str) -> int:
        if name not in self._codes:
            if not self._codes and name in _TRUTH:
                self._codes = {each: code for code, each in enumerate(_TRUTH)}
            elif len(self._codes) < MAX_CLASSES and len(name) <= MAX_NAME:
                self._codes[name] = len(self._codes)
            else:
                self.continuous = True
        return self._codes.get(name, OTHER_CLASS)


def _names_a_class(value: Value) -> bool:
    return isinstance(value, str) and value.strip().lower() not in _NO_NUMBER


def _floats(values: Sequence[Any]) -> Floats:
    """NaN where there is none."""
    return np.array(values, dtype=np.float64)


def _numbers(values: Sequence[Value]) -> list[float | None]:
    return [value if type(value) is float else None for value in values]
