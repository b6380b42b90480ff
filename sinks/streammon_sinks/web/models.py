"""What the page says of models beyond their requests: how good they are, what drifts, and what is trained anew.

Pure: from the newest of what was said, `watched` makes one `ModelHealth` a model, those that need somebody first. A
measurement and an estimate are never one number. What an old version was last said to be is left out once its model
goes on without it, so a version that nobody uses any more is not drifted for ever.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from math import floor, inf
from typing import Final, NamedTuple, TypeVar

from msgspec import Struct

from streammon.results import Drift, Loop, Quality
from streammon_sinks.sqlite_models import HEADLINES

MAX_WATCHED: Final = 20
MAX_VERSIONS: Final = 4
MAX_TARGETS: Final = 8
MAX_SLICES: Final = 4
MAX_LOOPS: Final = 3
"""What is shown, of each model where it is of one; the rest is counted."""
MAX_POINTS: Final = 300
"""Of a line in the chart."""
GONE_AFTER: Final = 3.0
"""A target of which nothing was said for so many of its own windows, while the model went on, is over. So is a version,
once it has left the chart, too."""

Name = tuple[str | None, str]
"""Service and model."""


class Measure(Struct, frozen=True, kw_only=True):
    """One number that says how good, with 95 % confidence between ``low`` and ``high``."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    end_unix_s: float
    """Of the time it is about."""


class SliceView(Struct, frozen=True, kw_only=True):
    """A group that fares differently: ``disparity`` is its measure minus that of everybody else."""

    slice: dict[str, str]
    measure: str
    value: float | None
    disparity: float
    low: float | None
    high: float | None
    sure: bool
    """The interval of the disparity does not hold 0."""
    labelled: int


class VersionView(Struct, frozen=True, kw_only=True):
    """One version of a model."""

    version: str | None
    newest_unix_s: float
    """End of the newest time that anything was said of."""
    measured: Measure | None
    others: dict[str, float]
    """Further measures of the same time."""
    labelled: int
    """Predictions with labels that ``measured`` is of."""
    estimated: Measure | None
    """From confidence, of a time that may have no labels yet."""
    coverage: float | None
    label_delay_s: float | None
    """The median."""
    slices: list[SliceView]
    times_unix_s: list[float]
    """Of the chart: ends of the times, oldest first, with what was measured and estimated in each."""
    accuracy: list[float | None]
    estimated_accuracy: list[float | None]


class TargetView(Struct, frozen=True, kw_only=True):
    """What one feature, prediction or measurement is like, against what it was; ``reason``: why that is not known."""

    target: str
    version: str | None
    detector: str
    effect: float
    """What the threshold is of: the statistic, without what chance brings where the test knows that."""
    threshold: float
    drifted: bool
    sample_size: int
    reference: str | None
    reason: str | None
    end_unix_s: float


class LoopView(Struct, frozen=True, kw_only=True):
    """A retraining: where it stands, and what came of it."""

    id: str
    state: str
    outcome: str | None
    requested_unix_s: float
    time_unix_s: float
    old_version: str | None
    new_version: str | None
    because: str
    why: str | None
    difference: float | None
    low: float | None
    high: float | None
    measure: str | None


class ModelHealth(Struct, frozen=True, kw_only=True):
    """One model; everything of it that is bounded says how much was left out."""

    service: str | None
    model: str
    versions: list[VersionView]
    versions_left_out: int
    drift: list[TargetView]
    """Drifted first, then by how near they are to it."""
    drifted: int
    tested: int
    """Targets, without `WHOLE`."""
    whole: list[TargetView]
    """Of each version, by when it was tested last: which share of its targets, by weight, has drifted."""
    loops: list[LoopView]
    """Open ones first, then the last."""
    loops_left_out: int


class Point(Struct, frozen=True, kw_only=True):
    """How good the predictions of one time were: those fields of a `Quality` that the chart is made of."""

    end_unix_s: float
    accuracy: float | None = None
    labelled: int = 0
    estimated_accuracy: float | None = None
    predictions: int = 0


class Said(NamedTuple):
    """The newest of each series, and of whole versions how good they were before."""

    drift: Sequence[Drift] = ()
    quality: Sequence[Quality] = ()
    measured: Sequence[Quality] = ()
    """The newest with labels: labels come late, so there may be newer ones that nothing was measured of."""
    loops: Sequence[Loop] = ()
    history: Mapping[tuple[Name, str | None], Sequence[Point]] = {}


def watched(said: Said, range_s: float) -> tuple[list[ModelHealth], int]:
    """The models, those that need somebody first, and how many more there are."""
    drift, quality, loops = _by_model(said.drift), _by_model(said.quality), _by_model(said.loops)
    names = sorted({*drift, *quality, *loops}, key=lambda name: (name[0] or "", name[1]))
    found = [
        _model(name, drift.get(name, []), quality.get(name, []), loops.get(name, []), said, range_s) for name in names
    ]
    found.sort(key=lambda each: not (each.drifted or any(loop.outcome is None for loop in each.loops)))
    return found[:MAX_WATCHED], max(0, len(found) - MAX_WATCHED)


_Of = TypeVar("_Of", Drift, Quality, Loop)


def _by_model(results: Iterable[_Of]) -> dict[Name, list[_Of]]:
    found: defaultdict[Name, list[_Of]] = defaultdict(list)
    for each in results:
        found[each.service, each.model].append(each)
    return found


def _model(
    name: Name, drift: Sequence[Drift], quality: Sequence[Quality], loops: Sequence[Loop], said: Said, range_s: float
) -> ModelHealth:
    measured = [each for each in said.measured if (each.service, each.model) == name]
    versions = _versions(_going_on(quality, range_s), measured, said, range_s)
    targets, whole = _targets(_going_on(drift))
    shown = sorted(loops, key=lambda loop: (loop.outcome is not None, -loop.time_unix_s))
    return ModelHealth(
        service=name[0],
        model=name[1],
        versions=versions[:MAX_VERSIONS],
        versions_left_out=max(0, len(versions) - MAX_VERSIONS),
        drift=targets[:MAX_TARGETS],
        drifted=sum(target.drifted for target in targets),
        tested=len(targets),
        whole=whole[:MAX_VERSIONS],
        loops=[_loop(each) for each in shown[:MAX_LOOPS]],
        loops_left_out=max(0, len(shown) - MAX_LOOPS),
    )


_Ending = TypeVar("_Ending", Drift, Quality)


def _going_on(results: Sequence[_Ending], at_least_s: float = 0.0) -> list[_Ending]:
    """Those of which something was said lately, by the time of their own model."""
    newest = max((each.end_unix_s for each in results), default=-inf)

    def lately(each: _Ending) -> bool:
        return newest - each.end_unix_s <= max(at_least_s, GONE_AFTER * (each.end_unix_s - each.start_unix_s))

    return [each for each in results if lately(each)]


# -- quality -------------------------------------------------------------------------------------------

_OTHERS: Final = (
    "precision",
    "recall",
    "f1",
    "auc",
    "log_loss",
    "calibration_error",
    "rmse",
    "bias",
    "score",
    "rating",
)


def _versions(quality: Sequence[Quality], measured: Sequence[Quality], said: Said, range_s: float) -> list[VersionView]:
    told: defaultdict[str | None, list[Quality]] = defaultdict(list)
    for each in quality:
        told[each.model_version].append(each)
    found = []
    for version, newest in told.items():
        points = said.history.get(((newest[0].service, newest[0].model), version), ())
        known = [each for each in measured if each.model_version == version]
        found.append(_version(version, newest, known, _thinned(points, range_s)))
    return sorted(found, key=_youth, reverse=True)


def _youth(version: VersionView) -> tuple[float, float, str]:
    """Since when it has been there, as far as the chart goes back."""
    return min(version.times_unix_s, default=version.newest_unix_s), version.newest_unix_s, version.version or ""


def _version(
    version: str | None, told: Sequence[Quality], measured: Sequence[Quality], points: Sequence[Point]
) -> VersionView:
    judged, newest = _whole(measured), _whole(told)
    delayed = max((each for each in measured if each.label_delay_s and not each.slice), key=_end, default=None)
    estimated = newest is not None and newest.estimated_accuracy is not None
    return VersionView(
        version=version,
        newest_unix_s=max(each.end_unix_s for each in told),
        measured=_measure(judged, _headline(judged)) if judged else None,
        others=_others(judged) if judged else {},
        labelled=judged.labelled if judged else 0,
        estimated=_measure(newest, "estimated_accuracy") if newest and estimated else None,
        coverage=judged.coverage if judged else None,
        label_delay_s=delayed.label_delay_s.p50 if delayed and delayed.label_delay_s else None,
        slices=_slices(each for each in measured if each.slice),
        times_unix_s=[point.end_unix_s for point in points],
        accuracy=[point.accuracy for point in points],
        estimated_accuracy=[point.estimated_accuracy for point in points],
    )


def _end(quality: Quality) -> float:
    return quality.end_unix_s


def _whole(told: Sequence[Quality]) -> Quality | None:
    """Of all predictions: by when they were made if that is known, else by when their labels came."""
    whole = (each for each in told if not each.slice)
    return max(whole, key=lambda each: (each.by == "prediction", each.end_unix_s), default=None)


def _headline(quality: Quality) -> str:
    """The name of the measure to judge by; empty if there is none."""
    return next((name for name in HEADLINES if getattr(quality, name) is not None), "")


def _measure(quality: Quality, name: str) -> Measure:
    between = quality.intervals.get(name)
    low, high = (None, None) if between is None else (between.low, between.high)
    return Measure(name=name, value=getattr(quality, name), low=low, high=high, end_unix_s=quality.end_unix_s)


def _others(quality: Quality) -> dict[str, float]:
    named = {name: getattr(quality, name) for name in _OTHERS if name != _headline(quality)}
    return {name: value for name, value in named.items() if value is not None}


def _slices(told: Iterable[Quality]) -> list[SliceView]:
    """Those that fare worst first, if that is sure; and of two ways of counting the one by prediction."""
    newest: dict[tuple[tuple[str, str], ...], Quality] = {}
    for each in sorted(told, key=lambda each: (each.by == "prediction", each.end_unix_s)):
        if each.disparity:
            newest[tuple(sorted(each.slice.items()))] = each
    found = [view for each in newest.values() for view in _slice(each)]
    return sorted(found, key=lambda view: (not view.sure, -_badness(view)))[:MAX_SLICES]


def _badness(view: SliceView) -> float:
    """How much worse than everybody else: by an error that is larger, or by anything else that is smaller."""
    return view.disparity if view.measure == "mae" else -view.disparity


def _slice(quality: Quality) -> Iterable[SliceView]:
    name = next((name for name in HEADLINES if name in quality.disparity), None)
    if name is None:
        return
    between = quality.intervals.get(f"disparity.{name}")
    yield SliceView(
        slice=quality.slice,
        measure=name,
        value=getattr(quality, name),
        disparity=quality.disparity[name],
        low=between.low if between else None,
        high=between.high if between else None,
        sure=between is not None and not between.low <= 0.0 <= between.high,
        labelled=quality.labelled,
    )


def _thinned(points: Sequence[Point], range_s: float) -> Sequence[Point]:
    """At most about `MAX_POINTS`: neighbours become one, each counting for as many predictions as it is of."""
    if len(points) <= MAX_POINTS:
        return points
    step_s = range_s / MAX_POINTS
    together: defaultdict[int, list[Point]] = defaultdict(list)
    for point in points:
        together[floor(point.end_unix_s / step_s)].append(point)
    return [_joined(together[number]) for number in sorted(together)]


def _joined(points: Sequence[Point]) -> Point:
    return Point(
        end_unix_s=points[-1].end_unix_s,
        accuracy=_mean([(point.accuracy, point.labelled) for point in points]),
        labelled=sum(point.labelled for point in points),
        estimated_accuracy=_mean([(point.estimated_accuracy, point.predictions) for point in points]),
        predictions=sum(point.predictions for point in points),
    )


def _mean(weighed: Iterable[tuple[float | None, int]]) -> float | None:
    known = [(value, weight) for value, weight in weighed if value is not None and weight]
    total = sum(weight for _, weight in known)
    return sum(value * weight for value, weight in known) / total if total else None


# -- drift and retraining ------------------------------------------------------------------------------


WHOLE: Final = "dataset"
"""The target that is all of a model."""


def _targets(drift: Iterable[Drift]) -> tuple[list[TargetView], list[TargetView]]:
    """Of each target and version what speaks the loudest, whichever detector said it, drifted first; and of `WHOLE`."""
    loudest: dict[tuple[str | None, str], Drift] = {}
    for each in sorted(drift, key=_loudness):
        loudest[each.model_version, each.target] = each
    views = [_target(each) for each in sorted(loudest.values(), key=_order)]
    whole = sorted((each for each in views if each.target == WHOLE), key=lambda view: -view.end_unix_s)
    return [each for each in views if each.target != WHOLE], whole


def _target(drift: Drift) -> TargetView:
    return TargetView(
        target=drift.target,
        version=drift.model_version,
        detector=drift.detector,
        effect=drift.extent,
        threshold=drift.threshold,
        drifted=drift.drifted,
        sample_size=drift.sample_size,
        reference=drift.reference,
        reason=drift.reason,
        end_unix_s=drift.end_unix_s,
    )


def _order(drift: Drift) -> tuple[bool, float, str, str]:
    drifted, near = _loudness(drift)
    return not drifted, -near, drift.target, drift.model_version or ""


def _loudness(drift: Drift) -> tuple[bool, float]:
    """Whether it drifted, and how near the effect is to the threshold, or how far beyond."""
    return drift.drifted, drift.extent / drift.threshold if drift.threshold > 0 else 0.0


def _loop(loop: Loop) -> LoopView:
    compared = loop.comparison
    return LoopView(
        id=loop.id,
        state=loop.state,
        outcome=loop.outcome,
        requested_unix_s=loop.requested_unix_s,
        time_unix_s=loop.time_unix_s,
        old_version=loop.old_version,
        new_version=loop.new_version,
        because="; ".join(reason.summary or reason.rule for reason in loop.reasons[:2])[:500],
        why=loop.detail or loop.why,
        difference=compared.difference if compared else None,
        low=compared.interval.low if compared else None,
        high=compared.interval.high if compared else None,
        measure=compared.measure if compared else None,
    )
