"""What the page says of models: the newest of everything, an estimate never as a measurement, and bounded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from streammon.clock import Clock
from streammon.results import Comparison, Drift, Interval, Loop, Quality
from streammon_sinks.sqlite import ResultStore
from streammon_sinks.sqlite_models import ModelResult
from streammon_sinks.web import models
from streammon_sinks.web.live import Live
from streammon_sinks.web.models import ModelHealth, Point, Said, VersionView, watched
from streammon_sinks.web.overview import Status
from tests.sinks.builders import START, distribution, drift, loop, quality, quality_of_slice

HOUR_S = 3600.0


def said(*results: ModelResult) -> Said:
    """As if all of them were the newest of their series."""
    qualities = [each for each in results if isinstance(each, Quality)]
    return Said(
        drift=[each for each in results if isinstance(each, Drift)],
        quality=qualities,
        measured=[each for each in qualities if each.accuracy is not None or each.mae is not None],
        loops=[each for each in results if isinstance(each, Loop)],
    )


def only(*results: ModelResult) -> ModelHealth:
    (model,), _ = watched(said(*results), HOUR_S)
    return model


def only_version(*results: ModelResult) -> VersionView:
    (version,) = only(*results).versions
    return version


def test_where_nothing_was_said_of_models_there_is_nothing() -> None:
    assert watched(Said(), HOUR_S) == ([], 0)


def test_the_newest_measured_and_the_newest_estimated_stand_side_by_side() -> None:
    measured = quality(0, estimated_accuracy=None)
    newer = quality(5, accuracy=None, f1=None, coverage=0.0, labelled=0, intervals={}, estimated_accuracy=0.88)
    found = Said(quality=[newer], measured=[measured])
    (model,), _ = watched(found, HOUR_S)
    (version,) = model.versions
    assert version.measured is not None
    assert version.estimated is not None
    assert (version.measured.value, version.measured.low, version.measured.high) == (0.9, 0.85, 0.94)
    assert (version.measured.end_unix_s, version.estimated.end_unix_s) == (START + 60, START + 360)
    assert (version.estimated.value, version.estimated.name) == (0.88, "estimated_accuracy")
    assert (version.coverage, version.labelled, version.others) == (0.75, 150, {"f1": 0.85})
    assert version.label_delay_s == pytest.approx(2.0, rel=0.01)


def test_without_labels_there_is_an_estimate_and_no_measurement() -> None:
    version = only_version(quality(accuracy=None, f1=None, labelled=0, coverage=0.0, intervals={}, label_delay_s=None))
    assert version.measured is None
    assert version.estimated is not None
    assert (version.coverage, version.label_delay_s) == (None, None)


def test_a_model_of_numbers_is_judged_by_its_error() -> None:
    version = only_version(quality(accuracy=None, f1=None, estimated_accuracy=None, mae=3.5, rmse=4.0, bias=-1.0))
    assert version.measured is not None
    assert (version.measured.name, version.measured.value, version.measured.low) == ("mae", 3.5, None)
    assert version.others == {"rmse": 4.0, "bias": -1.0}


def test_predictions_by_when_they_were_made_are_preferred_to_those_by_label() -> None:
    version = only_version(quality(0, accuracy=0.9), quality(3, by="label", accuracy=0.8))
    assert version.measured is not None
    assert version.measured.value == 0.9


def test_the_version_that_came_last_is_first_however_long_the_one_before_it_goes_on() -> None:
    history: dict[tuple[tuple[str | None, str], str | None], list[Point]] = {
        (("shop", "ranker"), "1"): [Point(end_unix_s=START + 60 * n) for n in range(6)],
        (("shop", "ranker"), "2"): [Point(end_unix_s=START + 60 * n) for n in range(3, 5)],
    }
    told = [quality(5, model_version="1"), quality(4, model_version="2")]
    (model,), _ = watched(Said(quality=told, history=history), HOUR_S)
    assert [each.version for each in model.versions] == ["2", "1"]


def test_versions_come_newest_first_and_those_that_are_over_are_left_out() -> None:
    told = [quality(0, model_version="1"), quality(100, model_version="3"), quality(99, model_version="2")]
    (model,), _ = watched(said(*told), range_s=600)
    assert [each.version for each in model.versions] == ["3", "2"]
    (model,), _ = watched(said(*told), range_s=36_000)
    assert [each.version for each in model.versions] == ["3", "2", "1"], "it is still in the chart"


def test_of_drift_the_loudest_detector_of_a_target_speaks_and_drifted_ones_come_first() -> None:
    model = only(
        drift(target="a", statistic=0.1, drifted=False),
        drift(target="a", detector="ks", statistic=0.3, threshold=0.2),
        drift(target="b", statistic=0.19, drifted=False),
        drift(target="c", statistic=0.01, drifted=False),
        drift(target="d", statistic=0.25),
    )
    assert [(each.target, each.detector, each.drifted) for each in model.drift] == [
        ("a", "ks", True),
        ("d", "psi", True),
        ("b", "psi", False),
        ("c", "psi", False),
    ]
    assert (model.drifted, model.tested) == (2, 4)


def test_all_of_a_model_is_told_beside_its_targets_and_what_was_not_tested_with_the_reason() -> None:
    model = only(
        drift(1, target="dataset", statistic=0.3, threshold=0.5, drifted=False),
        drift(0, target="dataset", model_version="2", drifted=False, reason="no_reference"),
        drift(target="few", drifted=False, statistic=0.0, reason="too_few_samples"),
        drift(target="sure", statistic=0.15, effect=0.05, drifted=False),
        drift(target="rare", statistic=0.3, effect=0.01, drifted=False),
    )
    assert [(each.version, each.effect, each.reason) for each in model.whole] == [
        ("3", 0.3, None),
        ("2", 0.31, "no_reference"),
    ]
    assert [each.target for each in model.drift] == ["sure", "rare", "few"], "by what chance alone does not explain"
    assert (model.tested, model.drift[-1].reason) == (3, "too_few_samples")


def test_what_was_last_said_of_a_version_that_nobody_uses_any_more_is_not_drift() -> None:
    model = only(drift(0, model_version="1"), drift(10, model_version="2", drifted=False))
    assert (model.drifted, [each.version for each in model.drift]) == (0, ["2"])
    assert only(drift(0)).drifted == 1, "a model that is silent stays as it was"


def test_slices_that_surely_fare_worst_come_first() -> None:
    def slice_(name: str, disparity: float, low: float, high: float, **changes: Any) -> Quality:
        intervals = {"disparity.accuracy": Interval(low, high)}
        return quality_of_slice(
            slice={"tenant": name}, disparity={"accuracy": disparity}, intervals=intervals, **changes
        )

    version = only_version(
        quality(),
        slice_("small", -0.4, -0.9, 0.1),
        slice_("worse", -0.1, -0.12, -0.08),
        slice_("worst", -0.2, -0.22, -0.18),
        slice_("better", 0.2, 0.18, 0.22),
        slice_("worst", 0.3, 0.29, 0.31, by="label"),
        quality_of_slice(slice={"tenant": "untold"}, disparity={}),
    )
    assert [(each.slice["tenant"], each.disparity, each.sure) for each in version.slices] == [
        ("worst", -0.2, True),
        ("worse", -0.1, True),
        ("better", 0.2, True),
        ("small", -0.4, False),
    ]


def test_of_errors_the_larger_one_is_worse() -> None:
    plain = quality_of_slice(accuracy=None, mae=2.0, intervals={})
    told = [replace(plain, slice={"tenant": name}, disparity={"mae": gap}) for name, gap in (("a", -1.0), ("b", 0.5))]
    assert [each.slice["tenant"] for each in only_version(quality(), *told).slices] == ["b", "a"]


def test_how_late_labels_are_is_known_by_when_they_came() -> None:
    version = only_version(
        quality(3, label_delay_s=None), quality(2, by="label"), quality_of_slice(4, label_delay_s=distribution(9.0))
    )
    assert version.label_delay_s == pytest.approx(2.0, rel=0.01)


def test_of_retraining_the_open_ones_come_first_and_then_the_last() -> None:
    compared = Comparison(
        measure="accuracy", way="side_by_side", old=0.8, new=0.9, old_count=1, new_count=1, difference=0.1,
        interval=Interval(0.05, 0.15), windows=1, start_unix_s=START, end_unix_s=START,
    )  # fmt: skip
    model = only(
        loop(9, id="helped", state="closed", outcome="helped", new_version="4", comparison=compared),
        loop(1, id="open"),
        loop(2, id="failed", state="closed", outcome="failed", why="no_run"),
    )
    assert [each.id for each in model.loops] == ["open", "helped", "failed"]
    helped = model.loops[1]
    assert (helped.old_version, helped.new_version, helped.difference, helped.low) == ("3", "4", 0.1, 0.05)
    assert (model.loops[0].because, model.loops[2].why) == ("age drifted", "no_run")


def test_models_that_need_somebody_come_first_and_all_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MAX_WATCHED", "MAX_TARGETS", "MAX_VERSIONS", "MAX_LOOPS", "MAX_SLICES"):
        monkeypatch.setattr(models, name, 2)
    busy: list[ModelResult] = [
        *(drift(model="z", target=f"t{n}") for n in range(5)),
        *(quality(model="z", model_version=f"v{n}") for n in range(5)),
        *(quality_of_slice(model="z", model_version="v4", slice={"tenant": f"t{n}"}) for n in range(5)),
        *(loop(model="z", id=f"l{n}") for n in range(5)),
    ]
    found, left_out = watched(said(quality(model="a"), quality(model="b"), loop(model="y"), *busy), HOUR_S)
    assert ([each.model for each in found], left_out) == (["y", "z"], 2)
    shown = found[1]
    assert [len(each) for each in (shown.drift, shown.versions, shown.loops, shown.versions[0].slices)] == [2] * 4
    assert (shown.tested, shown.versions_left_out, shown.loops_left_out) == (5, 3, 3)


def test_a_long_history_is_joined_to_few_points_that_say_the_same() -> None:
    points = [
        Point(end_unix_s=START + 10 * n, accuracy=0.9 if n % 2 else 0.6, labelled=30 if n % 2 else 10)
        for n in range(2000)
    ]
    joined = models._thinned(points, 20_000)
    assert len(joined) <= models.MAX_POINTS + 1
    assert sum(point.labelled for point in joined) == sum(point.labelled for point in points)
    whole = sum((point.accuracy or 0) * point.labelled for point in points)
    assert sum((point.accuracy or 0) * point.labelled for point in joined) == pytest.approx(whole)
    assert {point.estimated_accuracy for point in joined} == {None}
    assert models._thinned(points[:10], 100) == points[:10]


@pytest.mark.parametrize("threshold", [0.0, -1.0])
def test_a_threshold_that_is_none_is_no_trouble(threshold: float) -> None:
    assert only(drift(threshold=threshold)).drifted == 1


async def test_the_page_follows_what_the_store_is_told(tmp_path: Path) -> None:
    store = ResultStore.open(tmp_path / "results.sqlite")
    now = START + 400
    clock: Clock = lambda: now  # noqa: E731 - a clock is a function
    live = Live(store, lambda: Status(consumer_lag=0), clock, monotonic=iter(range(10_000)).__next__)

    async def shown() -> Any:
        return json.loads(await live.overview(300))["quality"]

    assert await shown() == []
    store.write(of_models=[quality(n, revision=0, labelled=1) for n in range(4)])
    store.write(of_models=[quality(5, accuracy=None, f1=None, labelled=0, intervals={})])
    [model] = await shown()
    [version] = model["versions"]
    assert version["times_unix_s"] == [START + 60 * n for n in (2, 3, 4, 6)], "what ended in the range"
    assert version["accuracy"] == [0.9, 0.9, 0.9, None]
    assert version["measured"]["end_unix_s"] == START + 240
    store.write(of_models=[quality(5, revision=1, accuracy=0.7), drift(), loop()])
    [model] = await shown()
    assert model["versions"][0]["accuracy"] == [0.9, 0.9, 0.9, 0.7]
    assert (model["drifted"], model["loops"][0]["state"]) == (1, "awaiting_approval")
    store.close()
