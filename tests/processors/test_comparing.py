"""The interval between two versions: how often it is wrong, however often one looks, and what it can tell apart."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from streammon.results import Comparison, Interval
from streammon_processors.remediation.comparing import (
    MOST_RECENT,
    Moments,
    Sums,
    Watch,
    interval,
    measured,
    proportion,
    verdict,
)
from tests.loops import labelled, predicted

LEAST = 200
STUDIES = 1000
LOOKS = 100
Draw = Callable[[np.random.Generator, int], NDArray[np.float64]]
"""The sums and sums of squares of so many values, for every study."""


def shares(p: float) -> Draw:
    def draw(rng: np.random.Generator, count: int) -> NDArray[np.float64]:
        found = rng.binomial(count, p, STUDIES).astype(float)
        return np.stack([found, found])

    return draw


def offs(make: Callable[[np.random.Generator, int], NDArray[np.float64]]) -> Draw:
    """Of how far predictions of numbers are off."""

    def draw(rng: np.random.Generator, count: int) -> NDArray[np.float64]:
        values = np.abs(make(rng, STUDIES * count)).reshape(STUDIES, count)
        return np.stack([values.sum(1), (values**2).sum(1)])

    return draw


def excluded(
    measure: str, old: Draw, new: Draw, *, beside: bool, looks: int = LOOKS, seed: int = 7
) -> NDArray[np.float64]:
    """The look, of each study, at which zero was left out first; infinity if at none."""
    rng = np.random.default_rng(seed)
    sums = {side: np.zeros((2, STUDIES)) for side in ("old", "new")}
    counts = {"old": 0, "new": 0}
    if not beside:
        sums["old"], counts["old"] = old(rng, 5 * LEAST), 5 * LEAST
    first = np.full(STUDIES, np.inf)
    for look in range(looks):
        each = LEAST if look == 0 else LEAST // 4
        for side, draw in (("old", old), ("new", new)) if beside else (("new", new),):
            sums[side] += draw(rng, each)
            counts[side] += each
        found = []
        for study in np.flatnonzero(np.isinf(first)):
            before, after = (Moments(counts[side], *sums[side][:, study]) for side in ("old", "new"))
            found.append(interval(measure, before, after, LEAST))
        left_out = [not each.low <= 0 <= each.high for each in found]
        first[np.flatnonzero(np.isinf(first))[left_out]] = look
    return first


def wrong(measure: str, draw: Draw, *, beside: bool) -> float:
    return float(np.isfinite(excluded(measure, draw, draw, beside=beside)).mean())


# --- how often it is wrong --------------------------------------------------------------------------------------------

ALIKE = {
    "accuracy 0.5": ("accuracy", shares(0.5)),
    "accuracy 0.9": ("accuracy", shares(0.9)),
    "accuracy 0.99": ("accuracy", shares(0.99)),
    "errors 0.002": ("error_rate", shares(0.002)),
    "mae, normal": ("mae", offs(lambda rng, n: rng.normal(size=n))),
    "mae, exponential": ("mae", offs(lambda rng, n: rng.exponential(size=n))),
}


@pytest.mark.parametrize("beside", [True, False], ids=["side by side", "before and after"])
@pytest.mark.parametrize("name", ALIKE)
def test_of_versions_that_are_alike_at_most_one_in_twenty_is_ever_called_different(name: str, beside: bool) -> None:
    """A hundred looks at 1,000 pairs; 0.071 is three standard errors above 0.05."""
    measure, draw = ALIKE[name]
    assert wrong(measure, draw, beside=beside) <= 0.071


def test_an_interval_for_one_look_would_be_wrong_far_more_often(monkeypatch: pytest.MonkeyPatch) -> None:
    def one_look(measure: str, old: Moments, new: Moments, least: int) -> Interval:
        share = (old.sum + new.sum) / (old.count + new.count)
        half = 1.96 * (share * (1 - share) * (1 / old.count + 1 / new.count)) ** 0.5
        return Interval(new.mean - old.mean - half, new.mean - old.mean + half)

    monkeypatch.setitem(globals(), "interval", one_look)
    assert wrong("accuracy", shares(0.9), beside=True) > 0.25


# --- what it can tell apart -------------------------------------------------------------------------------------------


def test_a_difference_that_matters_is_found() -> None:
    """80 % against 90 %: half of the studies are decided with 350 labels of each, nearly all with 800."""
    first = excluded("accuracy", shares(0.8), shares(0.9), beside=True, looks=20)
    labels = LEAST + LEAST // 4 * first
    assert np.quantile(labels, 0.5) <= 350
    assert np.quantile(labels, 0.95) <= 800


def test_it_is_about_the_difference_and_narrows_with_more_labels() -> None:
    few = interval("accuracy", proportion(200, 0.7), proportion(200, 0.8), LEAST)
    many = interval("accuracy", proportion(20_000, 0.7), proportion(20_000, 0.8), LEAST)
    assert (few.low + few.high) / 2 == pytest.approx(0.1) == pytest.approx((many.low + many.high) / 2)
    assert few.low < 0 < many.low
    assert (few.high - few.low) / (2 * 1.96 * (0.7 * 0.3 / 200 + 0.8 * 0.2 / 200) ** 0.5) == pytest.approx(1.6, abs=0.1)


def test_a_share_of_all_or_none_is_not_taken_for_certain() -> None:
    found = interval("accuracy", proportion(200, 1.0), proportion(200, 1.0), LEAST)
    assert found.low < 0 < found.high


def test_a_difference_that_matters_is_absolute_or_of_the_mean_error_a_share() -> None:
    def found(measure: str, old: float, low: float, high: float) -> str | None:
        plain: dict[str, Any] = {"new": 0.0, "old_count": 9, "new_count": 9, "difference": 0.0, "windows": 1}
        plain |= {"way": "before_after", "start_unix_s": 0.0, "end_unix_s": 1.0}
        return verdict(Comparison(measure=measure, old=old, interval=Interval(low, high), **plain), 0.01)

    assert [found("accuracy", 0.5, *each) for each in ((0.1, 0.2), (-0.2, -0.1), (-0.01, 0.01), (-0.02, 0.01))] == [
        "helped",
        "worse",
        "equivalent",
        None,
    ]
    assert [found("mae", 50.0, *each) for each in ((0.1, 0.2), (-0.2, -0.1), (-0.5, 0.5), (-0.6, 0.5))] == [
        "worse",
        "helped",
        "equivalent",
        None,
    ]
    assert found("error_rate", 0.5, 0.001, 0.2) == "worse"


# --- sums -------------------------------------------------------------------------------------------------------------


def test_what_a_record_measures_is_each_label_and_each_prediction_once() -> None:
    both = labelled(0, 10, 0.8, mae=1.0, rmse=2.0)
    estimated = predicted(0, 10, estimated_accuracy=0.5)
    assert measured(both, None) == {"accuracy": Moments(10, 8.0, 8.0)}
    assert measured(both, "mae") == {"mae": Moments(10, 10.0, 40.0)}
    assert measured(estimated, "estimated_accuracy") == {"estimated_accuracy": Moments(10, 5.0, 5.0)}
    assert measured(estimated, None) == measured(predicted(0, 10), None) == measured(labelled(0, 0, None), None) == {}


def test_windows_in_which_both_were_heard_of_are_summed_beside_each_other() -> None:
    sums, one = Sums(), proportion(10, 0.5)
    for side, start in (("old", 0), ("new", 60), ("new", 0), ("old", 120), ("new", 0), ("old", 0)):
        sums.add(side, start, one)  # type: ignore[arg-type]  # a text of the literal
    assert (sums.old.count, sums.new.count, sums.windows) == (30, 30, 2)
    assert (sums.old_beside.count, sums.new_beside.count, sums.windows_beside) == (20, 20, 1)
    for number in range(MOST_RECENT):
        sums.add("new", 1000.0 + number, one)
    assert len(sums.recent) == MOST_RECENT
    assert 0 not in sums.recent


def test_who_serves_alone_once_is_not_compared_side_by_side_later() -> None:
    watch = Watch(since_unix_s=0, until_unix_s=0, settled_unix_s=100)
    watch.sums["accuracy"] = Sums(before=proportion(500, 0.5))
    watch.add("old", -60, 0, {}, 1_000_000)  # before the deploy
    watch.add("new", 0, 60, {"accuracy": proportion(300, 0.5)}, 900)
    watch.add("old", 0, 60, {}, 99)
    found = watch.compare("accuracy", 100)
    assert found
    assert (found.way, found.old_count) == ("before_after", 500)
    watch.add("old", 60, 120, {"accuracy": proportion(300, 0.5)}, 5000)
    again = watch.compare("accuracy", 100)
    assert again
    assert (again.way, again.old_count) == ("before_after", 800)
