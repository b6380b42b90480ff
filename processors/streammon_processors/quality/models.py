"""What is known of one model: its clocks, its versions, and what is due to be told of them.

By label: pairs count in the window of time that is under way when they become known, told once when it is over. By
prediction: pairs count in their cohort, told when its time is over, again as labels come, and once more at the horizon.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import StrEnum
from typing import Any, Final, Literal, NamedTuple

import numpy as np
from msgspec import Struct
from prometheus_client import Counter

from streammon.models import LabelPolicy
from streammon.outcomes import MAX_TEXT_BYTES, Cohort, Outcomes
from streammon.results import OTHER, Interval, Quality
from streammon_processors.quality.classes import Classes
from streammon_processors.quality.clock import Clock, ended_before, number_of
from streammon_processors.quality.estimate import Estimate
from streammon_processors.quality.measures import Measured, disparity, measured
from streammon_processors.quality.series import TRUSTED, KeptSeries, Series
from streammon_processors.quality.series import Cohort as Waiting
from streammon_processors.quality.sums import Ints, Sums, grouped

MAX_SERIES: Final = 128
"""Versions and slices of one partition, of all models: their snapshot has to fit into a record."""
MAX_SLICES: Final = 8
"""Fields by which one model is sliced."""
MAX_VALUES: Final = 20
"""Values of a slice that are told apart, first come first served; the rest is one, ``__other__``."""

SKIPPED = Counter("streammon_quality_skipped", "Pairs and cohorts that quality does not count, by why", ["reason"])


class Skipped(StrEnum):
    """Why something was not counted. The values are labels: add, never rename."""

    TOO_MANY_SERIES = "too_many_series"
    TOO_LATE = "too_late"
    FUTURE = "future"
    CLOSED_EARLY = "closed_early"
    """Cohorts that could not wait for their labels until the horizon: there was no room."""


class Room:
    """How many more series there may be."""

    def __init__(self, series: int = MAX_SERIES) -> None:
        self.left = series


_WHOLE: Final = ("", "")


class Version:
    """One version of a model: what it predicts, all of its predictions as one series, and its slices."""

    def __init__(self, classes: Classes, series: Iterable[Series] = ()) -> None:
        """``series``: that of all predictions among them."""
        self.classes = classes
        self.series = {next(iter(each.slice.items()), _WHOLE): each for each in series}
        self._values: dict[str, int] = {}  # of each slice, how many are told apart
        for name, _ in self.series:
            self._values[name] = self._values.get(name, 0) + 1

    def of(self, name: str, value: str, room: Room) -> Series | None:
        """The series of a slice; None where there is no room."""
        found = self.series.get((name, value))
        if found is None and (self._values.get(name, 0) >= MAX_VALUES or len(value) > MAX_TEXT_BYTES):
            value = OTHER
            found = self.series.get((name, value))
        if found is not None or not room.left or (name not in self._values and len(self._values) > MAX_SLICES):
            return found
        room.left -= 1
        self._values[name] = self._values.get(name, 0) + 1
        self.series[name, value] = Series(name, value)
        return self.series[name, value]

    @property
    def whole(self) -> Series:
        """All of its predictions."""
        return self.series[_WHOLE]

    def forget_idle(self, room: Room) -> None:
        """Series in which nothing waits; that of all predictions is the last one."""
        for name, value in [key for key, series in self.series.items() if series.is_idle and key != _WHOLE]:
            self._forget(name, value, room)
        if self.series.keys() == {_WHOLE} and self.whole.is_idle:
            self._forget(*_WHOLE, room)

    def _forget(self, name: str, value: str, room: Room) -> None:
        del self.series[name, value]
        self._values[name] -= 1
        room.left += 1

    def cohorts(self, low: int | None, high: int) -> Iterator[tuple[Series, int, Waiting]]:
        """Those with numbers from ``low`` to below ``high``, the oldest first; of one number, slices last."""
        numbers = {number for each in self.series.values() for number in each.cohorts if number < high}
        for number in sorted(number for number in numbers if low is None or number >= low):
            for series in self.series.values():
                if number in series.cohorts:
                    yield series, number, series.cohorts[number]


class Names(NamedTuple):
    """What a result is about."""

    service: str
    model: str
    partition: int


class Model:
    """Everything that is known of one model in one partition."""

    def __init__(self, names: Names, policy: LabelPolicy, room: Room) -> None:
        self.names = names
        self._policy = policy
        self._room = room
        self.window_s, self.cohort_s, self._horizon_s = policy.window_s, policy.cohort_s, policy.horizon_s
        self.labels, self.predictions = Clock(), Clock()
        self.window: int | None = None
        """The number of the window of labels under way."""
        self.told_before = self.finished_before = 0
        """Cohorts before these have been told, and are not waited for any more."""
        self.versions: dict[str | None, Version] = {}

    @property
    def is_idle(self) -> bool:
        """Nothing waits here."""
        return not self.versions

    def newest_unix_s(self, now_ms: int) -> float:
        """How far its time has come."""
        return max(self.labels.at(now_ms), self.predictions.at(now_ms))

    # --- what comes -------------------------------------------------------------------------------------------------

    def take_in(self, outcomes: Outcomes, now_ms: int, latest: float) -> Iterator[Quality]:
        """Pairs, in the order in which they became known; what that makes due. None is later than ``latest``."""
        times = np.minimum(np.array(outcomes.labelled_unix_s), latest)
        times = np.maximum.accumulate(np.append(self.labels.at(now_ms), times))[1:]
        numbers = np.floor(times / self.window_s).astype(np.int64)
        starts = np.flatnonzero(np.diff(numbers, prepend=numbers[0] - 1))
        for start, end in zip(starts.tolist(), [*starts[1:].tolist(), len(numbers)], strict=True):
            self.labels.observe(float(times[start]), now_ms)
            yield from self.advance(now_ms)
            self.window = int(numbers[start])
            self._add(outcomes, None if end - start == len(numbers) else np.arange(start, end), latest)
        self.labels.observe(float(times[-1]), now_ms)
        yield from self.advance(now_ms)

    def count(self, cohort: Cohort, now_ms: int, latest: float) -> Iterator[Quality]:
        """Predictions of some time; what that makes due."""
        self.predictions.observe(min(cohort.end_unix_s, latest), now_ms)
        number = number_of(cohort.start_unix_s, self.cohort_s)
        if cohort.end_unix_s > latest:
            skip(Skipped.FUTURE)
        elif number < self.finished_before:
            skip(Skipped.TOO_LATE)
        elif version := self._version(cohort.model_version):
            self._count(version, number, cohort)
        yield from self.advance(now_ms)

    def _count(self, version: Version, number: int, cohort: Cohort) -> None:
        found = version.of(*next(iter(cohort.slice.items())), self._room) if cohort.slice else version.whole
        if found is None:
            skip(Skipped.TOO_MANY_SERIES)
            return
        mine = found.cohort(number, self.told_before)
        mine.count(cohort)
        if number >= self.told_before and cohort.confidence:
            mine.expect(cohort.confidence, version.classes.is_positive)

    def _version(self, name: str | None, count: int = 1) -> Version | None:
        """That of a name; None where there is no room, for ``count`` pairs."""
        if name is not None and len(name) > MAX_TEXT_BYTES:  # as none of ours is
            name = OTHER
        if name not in self.versions:
            if not self._room.left:
                skip(Skipped.TOO_MANY_SERIES, count)
                return None
            self._room.left -= 1
            self.versions[name] = Version(Classes(self._policy), [Series()])
        return self.versions[name]

    def _add(self, outcomes: Outcomes, rows: Ints | None, latest: float) -> None:
        """Pairs that became known in one window."""
        every = outcomes.model_version
        names = dict.fromkeys(every if rows is None else (every[row] for row in rows.tolist()))
        for name in names:
            mine = rows
            if len(names) > 1:
                chosen = range(outcomes.count) if rows is None else rows.tolist()
                mine = np.array([row for row in chosen if every[row] == name])
            count = outcomes.count if mine is None else len(mine)
            if version := self._version(name, count):
                self._add_version(version, outcomes, mine, latest)

    def _add_version(self, version: Version, outcomes: Outcomes, rows: Ints | None, latest: float) -> None:
        whole = version.whole
        predicted = np.array(outcomes.predicted_unix_s)
        labelled = np.array(outcomes.labelled_unix_s)
        if rows is not None:
            predicted, labelled = predicted[rows], labelled[rows]
        pairs = version.classes.pairs(outcomes, rows)
        if whole.delays is not None:
            whole.delays.add((labelled - predicted)[pairs.labelled])
        numbers, places = np.unique(self._cohorts_of(predicted, latest), return_inverse=True)
        every, members = self._members(version, outcomes, rows)
        groups = [np.where(member < 0, -1, member * len(numbers) + places) for member in members]
        for found in grouped(pairs, groups):
            series, number = every[found.group // len(numbers)], int(numbers[found.group % len(numbers)])
            if series.window is None:
                series.window = Sums()
            series.window.add(*found[1:])
            if number >= 0:
                cohort = series.cohort(number, self.told_before)
                cohort.sums.add(*found[1:])
                cohort.changed = True

    def _cohorts_of(self, predicted: Any, latest: float) -> Ints:
        """The cohort of each prediction; -1 where it is not waited for."""
        numbers: Ints = np.floor(predicted / self.cohort_s).astype(np.int64)
        late, ahead = numbers < self.finished_before, predicted > latest
        skip(Skipped.TOO_LATE, int(late.sum()))
        skip(Skipped.FUTURE, int(ahead.sum()))
        return np.where(late | ahead, -1, numbers)

    def _members(self, version: Version, outcomes: Outcomes, rows: Ints | None) -> tuple[list[Series], list[Ints]]:
        """The series that pairs are in, and by slice, in which of them each pair is; -1: in none."""
        count = outcomes.count if rows is None else len(rows)
        every, members = [version.whole], [np.zeros(count, dtype=np.int64)]
        for name, column in outcomes.slices.items():
            values = column if rows is None else [column[row] for row in rows.tolist()]
            place: dict[str | None, int] = {None: -1}
            for value in dict.fromkeys(values):
                found = None if value is None else version.of(name, value, self._room)
                if value is not None and found is None:
                    skip(Skipped.TOO_MANY_SERIES)
                place[value] = -1 if found is None else _place(every, found)
            members.append(np.fromiter(map(place.__getitem__, values), np.int64, count))
        return every, members

    # --- what is due ------------------------------------------------------------------------------------------------

    def advance(self, now_ms: int) -> Iterator[Quality]:
        """What is due by now: windows and cohorts that are over, revisions, and cohorts that are done with."""
        labels, predictions = self.labels.at(now_ms), self.predictions.at(now_ms)
        if self.window is not None and number_of(labels, self.window_s) > self.window:
            yield from self._close_window(self.window)
            self.window = None
            yield from self._revise(labels)
        over = ended_before(predictions, self.cohort_s)
        if over > self.told_before:
            yield from self._tell(self.told_before, over, labels)
            self.told_before = over
        yield from self.finish(ended_before(self._done(labels, predictions), self.cohort_s))

    def _done(self, labels: float, predictions: float) -> float:
        """Labels of predictions before this time are not waited for any more.

        Where one of both clocks is behind, it is waited for, for another horizon.
        """
        slow, fast = min(labels, predictions), max(labels, predictions)
        if not labels:
            slow = fast
        return max(slow, fast - self._horizon_s) - self._horizon_s - self.cohort_s

    def _close_window(self, number: int) -> Iterator[Quality]:
        """A window of labels is over: tell it, and learn from it for the estimates that follow."""
        start = number * self.window_s
        for name, version in self.versions.items():
            whole = version.whole.window
            for series in version.series.values():
                if series.window is not None and whole is not None:
                    others = whole.without(series.window) if series.slice else None
                    result = self._result(name, version, series, series.window, others, by="label", start=start)
                    _add_estimate(
                        result, _estimate(version, series, series.window.reliability.sum(axis=2)), series.window
                    )
                    yield result
            for series in version.series.values():
                series.end_window()

    def _tell(self, low: int, high: int, labels: float) -> Iterator[Quality]:
        """Cohorts whose time is over, for the first time; with what can be expected of them."""
        for name, version in self.versions.items():
            for series, number, cohort in version.cohorts(low, high):
                if cohort.confidence is not None:
                    cohort.kept.estimate = _estimate(version, series, cohort.confidence)
                    cohort.confidence = None
                yield self._revision(name, version, series, number, labels)

    def _revise(self, labels: float) -> Iterator[Quality]:
        for name, version in self.versions.items():
            for series, number, cohort in version.cohorts(None, self.told_before):
                if cohort.is_due(labels, self.cohort_s):
                    yield self._revision(name, version, series, number, labels)

    def finish(self, before: int) -> Iterator[Quality]:
        """Tell the cohorts with lower numbers for the last time, and forget them; and who has nothing left, too."""
        if before <= self.finished_before:
            return
        for name, version in self.versions.items():
            for series, number, _ in version.cohorts(None, before):
                yield self._revision(name, version, series, number, 0.0, final=True)
        self.finished_before, self.told_before = before, max(self.told_before, before)
        for name, version in list(self.versions.items()):
            for series in version.series.values():
                series.cohorts = {number: each for number, each in series.cohorts.items() if number >= before}
            version.forget_idle(self._room)
            if not version.series:
                del self.versions[name]

    def begin_anew(self, policy: LabelPolicy, now_ms: int) -> Iterator[Quality]:
        """Tell everything for the last time: from now on it is understood in another way."""
        if self.window is not None:
            yield from self._close_window(self.window)
            self.window = None
        yield from self.finish(max(self._numbers, default=-1) + 1)
        self.follow(policy)
        self.window_s, self.cohort_s = policy.window_s, policy.cohort_s
        self.finished_before = self.told_before = number_of(self.newest_unix_s(now_ms), self.cohort_s) + 1

    def is_like(self, policy: LabelPolicy) -> bool:
        """Whether what is known would be understood alike with this policy."""
        mine, other = self._policy, policy
        sizes = (self.window_s, self.cohort_s) == (other.window_s, other.cohort_s)
        return sizes and (mine.task, mine.positive) == (other.task, other.positive)

    def follow(self, policy: LabelPolicy) -> None:
        """Go on with a policy that it `is_like`."""
        self._policy, self._horizon_s = policy, policy.horizon_s

    @property
    def _series(self) -> Iterator[Series]:
        return (series for version in self.versions.values() for series in version.series.values())

    @property
    def _numbers(self) -> Iterator[int]:
        return (number for series in self._series for number in series.cohorts)

    def oldest(self, now_ms: int) -> int | None:
        """The cohort that has waited for longest, of those whose time has begun."""
        begun = self.newest_unix_s(now_ms) / self.cohort_s
        return min((number for number in self._numbers if number < begun), default=None)

    @property
    def weight(self) -> int:
        """How many bytes a snapshot of it takes, at most."""
        return sum(series.weight for series in self._series)

    # --- what is remembered -----------------------------------------------------------------------------------------

    def keep(self) -> KeptModel:
        return KeptModel(
            service=self.names.service,
            model=self.names.model,
            policy=self._policy,
            labels=self.labels,
            predictions=self.predictions,
            window=self.window,
            told_before=self.told_before,
            finished_before=self.finished_before,
            versions=[
                KeptVersion(
                    name=name,
                    classes=version.classes.names,
                    text=version.classes.text,
                    continuous=version.classes.continuous,
                    series=[series.keep() for series in version.series.values()],
                )
                for name, version in self.versions.items()
            ],
        )

    @classmethod
    def restored(cls, kept: KeptModel, partition: int, room: Room) -> Model:
        model = cls(Names(kept.service, kept.model, partition), kept.policy, room)
        model.labels, model.predictions = kept.labels, kept.predictions
        model.window, model.told_before, model.finished_before = kept.window, kept.told_before, kept.finished_before
        for each in kept.versions:
            classes = Classes(kept.policy, each.classes, text=each.text, continuous=each.continuous)
            model.versions[each.name] = Version(classes, map(Series.restored, each.series))
            room.left -= len(each.series)
        return model

    # --- results ----------------------------------------------------------------------------------------------------

    def _revision(
        self, name: str | None, version: Version, series: Series, number: int, labels: float, *, final: bool = False
    ) -> Quality:
        cohort, others = series.cohorts[number], None
        if series.slice and number in version.whole.cohorts:
            others = version.whole.cohorts[number].sums.without(cohort.sums)
        kept = cohort.kept
        start = number * self.cohort_s
        result = self._result(name, version, series, cohort.sums, others, by="prediction", start=start)
        result.revision = kept.revision
        result.predictions, result.coverage, result.unmatched_labels = kept.predictions, cohort.coverage, kept.unmatched
        result.final = final
        _add_estimate(result, kept.estimate, cohort.sums)
        if result.estimation_error is not None and not kept.judged and (result.coverage or 0.0) >= TRUSTED:
            series.note_error(cohort, result.estimation_error)
        if kept.estimate is not None and series.errors:
            result.mean_estimation_error = series.error
        kept.revision += 1
        kept.told, kept.told_predictions, kept.told_unix_s = cohort.known, kept.predictions, labels
        cohort.changed = False
        return result

    def _result(
        self,
        name: str | None,
        version: Version,
        series: Series,
        sums: Sums,
        others: Sums | None,
        *,
        by: Literal["prediction", "label"],
        start: float,
    ) -> Quality:
        view = version.classes.view
        mine = measured(sums, view)
        away = {} if others is None else disparity(mine, measured(others, view))
        size_s = self.window_s if by == "label" else self.cohort_s
        result = Quality(
            service=self.names.service,
            model=self.names.model,
            model_version=name,
            slice=series.slice,
            by=by,
            start_unix_s=start,
            end_unix_s=start + size_s,
            size_s=size_s,
            partition=self.names.partition,
            labelled=int(sums["labelled"]),
            judged=int(sums["numbers" if view.task == "regression" else "judged"]),
            confident=int(sums.reliability.sum()),
            scored=int(sums["scored"]),
            rated=int(sums["rated"]),
            label_delay_s=series.delays.distribution() if by == "label" and series.delays else None,
            average=("macro" if view.positive is None else "binary") if "f1" in mine else None,
            disparity={measure: value for measure, (value, _) in away.items()},
            intervals=_intervals(mine) | {f"disparity.{each}": where for each, where in _intervals(away).items()},
        )
        for measure, (value, _) in mine.items():
            setattr(result, measure, value)
        return result


class KeptVersion(Struct, array_like=True):
    """A `Version` in a snapshot."""

    name: str | None
    classes: list[str]
    text: bool
    continuous: bool
    series: list[KeptSeries]


class KeptModel(Struct, array_like=True):
    """A `Model` in a snapshot."""

    service: str
    model: str
    policy: LabelPolicy
    labels: Clock
    predictions: Clock
    window: int | None
    told_before: int
    finished_before: int
    versions: list[KeptVersion]


def _estimate(version: Version, series: Series, confidence: Ints) -> Estimate | None:
    view = version.classes.view
    if view.task != "classification":
        return None
    return series.calibration.estimate(confidence, two=view.two, positive=view.positive is not None)


def _add_estimate(result: Quality, estimate: Estimate | None, sums: Sums) -> None:
    """What was expected, and what that was off by: of predictions with a confidence, for of others nothing was."""
    if estimate is None:
        return
    result.estimated_accuracy, result.estimates = estimate.accuracy, estimate.others
    result.intervals["estimated_accuracy"] = estimate.where
    if result.confident:
        result.estimation_error = estimate.accuracy - int(sums.reliability[:, :, 1].sum()) / result.confident


def _intervals(found: Measured) -> dict[str, Interval]:
    return {name: where for name, (_, where) in found.items() if where is not None}


def _place(every: list[Series], found: Series) -> int:
    """Where it is among them; at the end, if it was not."""
    for place, each in enumerate(every):
        if each is found:
            return place
    every.append(found)
    return len(every) - 1


def skip(reason: Skipped, count: int = 1) -> None:
    if count:
        SKIPPED.labels(reason).inc(count)
