"""Which tests there are, what of their results is drift, and the chances that they go by."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from scipy import stats

from streammon.models import DriftPolicy
from streammon.profiles import Reference, TargetKind, TargetReference
from streammon_processors.drift import chances
from streammon_processors.drift.compare import Finding, compare, judge
from streammon_processors.drift.multiplicity import MAX_ALPHA, alpha_of, q_values
from streammon_processors.drift.past import coarse, coarse_frame
from streammon_processors.drift.sample import Sample, Side, of_profile, of_reference
from tests.profiled import Value, Values, profile, reference

ALPHA = 7e-4


def judged(
    before: Values, now: Values, policy: DriftPolicy | None = None, **fields: Any
) -> dict[tuple[str, str], Finding]:
    """All tests of a window, by target and detector."""
    policy = policy or DriftPolicy()
    frame = reference(before, **fields)
    pairs = fields.get("pairs", ())
    found = judge(compare(sample(now, frame, pairs), of_reference(frame), frame, policy), policy, ALPHA)
    return {(each.target, each.detector): each for each in found}


def sample(values: Values, frame: Reference, pairs: Sequence[tuple[str, str]] = ()) -> Sample:
    return of_profile(profile(values, frame, 0.0, pairs=pairs))


def wrong(found: Mapping[tuple[str, str], Finding]) -> set[tuple[str, str]]:
    return {key for key, test in found.items() if test.drifted}


def normal(size: int, shift: float = 0.0, seed: int = 0) -> list[Value]:
    return list(np.random.default_rng([seed, size]).normal(shift, 1, size).tolist())


def names(size: int, shares: Mapping[str, float], seed: int = 0) -> list[Value]:
    return list(np.random.default_rng([seed, size]).choice([*shares], size, p=[*shares.values()]).tolist())


def lacking(values: Sequence[Value], share: float, seed: int = 1) -> list[Value]:
    rng = random.Random(seed)
    return [None if rng.random() < share else value for value in values]


# ---------------------------------------------------------------- which tests


COUNTRIES = {"de": 0.5, "fr": 0.3, "it": 0.2}


@pytest.mark.parametrize(
    ("size", "kind", "expected"),
    [
        (1000, "numeric", "ks"),
        (1001, "numeric", "jensen_shannon"),
        (1000, "categorical", "chi_square"),
        (1001, "categorical", "jensen_shannon"),
        (1000, "text", "ks"),
    ],
)
def test_the_test_is_chosen_by_kind_and_size_of_the_reference(size: int, kind: TargetKind, expected: str) -> None:
    values: list[Value] = normal(size) if kind == "numeric" else [str(each) for each in names(size, COUNTRIES)]
    found = judged({"x": values}, {"x": values[:200]}, kinds={"x": kind})
    assert ("x", expected) in found


def test_a_policy_may_ask_for_any_test_and_any_threshold() -> None:
    values = {"features.a": normal(500), "features.b": normal(500), "features.c": names(500, COUNTRIES)}
    policy = DriftPolicy(
        tests={"features.a": "wasserstein", "features.c": "ks"}, threshold=0.3, thresholds={"features.b": 0.05}
    )
    found = judged(values, values, policy)
    assert found["features.a", "wasserstein"].threshold == 0.3
    assert found["features.b", "ks"].threshold == 0.05
    assert found["features.c", "ks"].reason == "not_for_categories"


def test_with_fewer_values_than_are_needed_nothing_is_tested_and_the_reason_is_told() -> None:
    found = judged({"x": normal(500), "y": normal(99)}, {"x": normal(99), "y": normal(500)})
    assert found["x", "ks"].reason == "too_few_samples"
    assert found["y", "ks"].reason == "too_small_reference"
    assert found["dataset", "share_of_weight"].reason == "too_few_samples"
    assert not wrong(found)


# ---------------------------------------------------------------- what is drift


def test_a_shift_is_drift_and_chance_is_none() -> None:
    before = {"a": normal(1000), "b": normal(1000, seed=1), "c": names(1000, COUNTRIES)}
    now = {"a": normal(800, 0.5), "b": normal(800, seed=2), "c": names(800, COUNTRIES)}
    found = judged(before, now)
    assert wrong(found) == {("a", "ks")}
    assert found["a", "ks"].q_value == pytest.approx((found["a", "ks"].p_value or 0) * 3)
    dataset = found["dataset", "share_of_weight"]
    assert dataset.statistic == pytest.approx(1 / 3)


def test_a_change_that_is_sure_but_trifling_is_no_drift() -> None:
    found = judged({"x": normal(40_000)}, {"x": normal(40_000, 0.06, seed=1)})
    test = found["x", "jensen_shannon"]
    assert (test.q_value or 1) < 1e-6
    assert (test.effect or 0) < 0.1
    assert not test.drifted


def test_the_model_has_drifted_if_enough_of_the_weight_of_its_targets_has() -> None:
    before = {f"features.{name}": normal(1000, seed=at) for at, name in enumerate("abcd")}
    now = {f"features.{name}": normal(500, 1.0 if name == "a" else 0.0, seed=10 + at) for at, name in enumerate("abcd")}
    share = ("dataset", "share_of_weight")
    assert judged(before, now)[share].statistic == 0.25
    weighty = judged(before, now, DriftPolicy(weights={"features.a": 5.0}))
    assert weighty[share].statistic == 5 / 8
    assert share in wrong(weighty)


def test_in_the_bins_of_a_reference_one_value_of_a_million_hides_no_shift_of_a_model() -> None:
    found = judged({"x": normal(2000)}, {"x": [*normal(1000, 1.0), 1e6]})
    assert ("x", "jensen_shannon") in wrong(found)
    calm = judged({"x": normal(2000)}, {"x": [*normal(1000, seed=1), 1e6]})
    assert not wrong(calm)


# ---------------------------------------------------------------- schema and quality


def test_values_that_are_missing_are_told_whichever_the_test_of_the_distribution() -> None:
    before, now = {"x": lacking(normal(1000), 0.01)}, {"x": lacking(normal(1000, seed=1), 0.2)}
    assert wrong(judged(before, now)) == {("x", "missing"), ("dataset", "share_of_weight")}
    test = judged(before, now)["x", "missing"]
    counts = [[sum(each is None for each in side["x"]), 1000] for side in (now, before)]
    assert test.statistic == pytest.approx((counts[0][0] - counts[1][0]) / 1000)
    expected = stats.fisher_exact([[k, n - k] for k, n in counts], alternative="greater").pvalue
    assert test.p_value == pytest.approx(2 * expected)


def test_values_that_are_there_again_are_told_too() -> None:
    assert ("x", "missing") in wrong(judged({"x": lacking(normal(1000), 0.3)}, {"x": normal(1000, seed=1)}))


def test_a_target_that_is_gone_is_told_as_lost_and_not_also_as_missing() -> None:
    before = {"x": normal(500), "y": normal(500)}
    found = judged(before, {"x": normal(500, seed=1)})
    assert wrong(found) == {("y", "lost_target"), ("dataset", "share_of_weight")}
    assert found["y", "ks"].reason == "too_few_samples"


def test_a_target_that_is_new_is_told_if_enough_events_have_it() -> None:
    before = {"x": normal(1000)}
    assert ("z", "new_target") in wrong(judged(before, {"x": normal(500, seed=1), "z": normal(500)}))
    seldom = judged(before, {"x": normal(500, seed=1), "z": lacking(normal(500), 0.99)})
    assert not wrong(seldom)


def test_of_a_target_that_there_was_no_room_for_nothing_is_said() -> None:
    frame = reference({"x": normal(500), "y": normal(500)})
    now = sample({"x": normal(500, seed=1)}, frame)
    now.left_out = 1
    found = compare(now, of_reference(frame), frame, DriftPolicy())
    assert [(each.target, each.reason) for each in found if each.target == "y"] == [("y", "left_out")]


def test_a_feature_that_changes_its_type_is_told_and_the_others_are_as_they_were() -> None:
    before = {"x": normal(1000), "y": normal(1000, seed=5)}
    now: Values = {
        "x": [f"{value:.2f}" for value in normal(1000, seed=1) if isinstance(value, float)],
        "y": normal(1000, seed=6),
    }
    found = judged(before, now)
    assert {key for key in wrong(found) if key[0] != "dataset"} == {("x", "type_change")}
    assert found["x", "type_change"].statistic == 1
    assert found["x", "ks"].reason == "too_few_samples"


def test_values_beyond_the_range_are_told_only_if_they_are_more_than_a_sample_has_by_chance() -> None:
    before = {"x": normal(1000)}
    far: list[Value] = [*normal(950, seed=1), *([9.0] * 50)]
    found = judged(before, {"x": far})
    assert ("x", "range") in wrong(found)
    assert found["x", "range"].statistic == pytest.approx(0.05, abs=0.01)
    assert ("x", "range") not in wrong(judged({"x": normal(200)}, {"x": normal(2000, seed=1)}))


def test_categories_that_the_reference_has_not_are_told_by_their_share() -> None:
    before = {"x": names(1000, COUNTRIES)}
    found = judged(before, {"x": names(1000, {"de": 0.45, "fr": 0.3, "it": 0.2, "xx": 0.05}, seed=1)})
    assert ("x", "unseen") in wrong(found)
    assert found["x", "unseen"].statistic == pytest.approx(0.05, abs=0.02)


def test_ten_thousand_distinct_categories_are_told_and_harm_nobody_else() -> None:
    before = {"x": names(1000, COUNTRIES), "y": normal(1000)}
    found = judged(before, {"x": [f"id-{at}" for at in range(10_000)], "y": normal(10_000, seed=1)})
    assert {("x", "unseen"), ("x", "chi_square")} <= wrong(found)
    assert not any(target == "y" for target, _ in wrong(found))


def test_categories_that_collapse_are_told_as_fewer() -> None:
    rng = np.random.default_rng(1)
    before: list[Value] = [f"store-{at}" for at in rng.integers(0, 50, 1000)]
    now: list[Value] = [f"store-{at}" for at in rng.integers(0, 10, 1000)]
    assert ("x", "distinct") in wrong(judged({"x": before}, {"x": now}))


def test_a_long_tail_of_rare_categories_is_nothing_new() -> None:
    """Half of them are in one of two samples alone; which half is chance."""
    rng = np.random.default_rng(2)
    before, now = ([str(each) for each in rng.zipf(1.5, 1000)] for _ in range(2))
    assert not wrong(judged({"x": before}, {"x": now}))


@pytest.mark.parametrize("factor", [1.0, -1.0])
def test_a_pair_whose_correlation_changes_is_told_though_neither_of_them_does(factor: float) -> None:
    def pair(seed: int, factor: float) -> dict[str, list[Value]]:
        rng = np.random.default_rng(seed)
        x, noise = rng.normal(size=(2, 1000))
        return {"x": x.tolist(), "y": (0.8 * factor * x + 0.6 * noise).tolist()}

    found = judged(pair(1, 1.0), pair(2, factor), pairs=[("x", "y")])
    assert wrong(found) == (set() if factor == 1.0 else {("x,y", "correlation")})
    r = [r_of(np.array([*pair(seed, f).values()], dtype=float)) for seed, f in ((1, 1.0), (2, factor))]
    assert found["x,y", "correlation"].statistic == pytest.approx(abs(r[1] - r[0]))


def r_of(pair: Any) -> float:
    return float(np.asarray(np.corrcoef(pair))[0, 1])


@pytest.mark.parametrize("value", [7.0, 0.0, -1e100, 1e9])
@pytest.mark.parametrize("test", ["ks", "wasserstein", "jensen_shannon", "psi"])
def test_a_reference_that_does_not_vary_tells_what_does_from_what_does_not(value: float, test: Any) -> None:
    policy = DriftPolicy(tests={"features.x": test})
    assert not wrong(judged({"features.x": [value] * 500}, {"features.x": [value] * 200}, policy))
    moved = judged({"features.x": [value] * 500}, {"features.x": [value + abs(value) / 2 + 1] * 200}, policy)
    assert {("features.x", test), ("features.x", "range")} <= wrong(moved) or test == "wasserstein"
    assert ("features.x", "range") in wrong(moved)


# ---------------------------------------------------------------- samples


def test_samples_of_parts_add_to_the_sample_of_all() -> None:
    values: dict[str, list[Value]] = {
        "x": lacking(normal(400), 0.2), "y": names(400, COUNTRIES), "z": [*([None] * 200), *normal(200)],
    }  # fmt: skip
    frame = reference(values, pairs=[("x", "z")])
    whole, sum_ = sample(values, frame, [("x", "z")]), Sample()
    for first in range(0, 400, 50):
        sum_.add(sample({name: each[first : first + 50] for name, each in values.items()}, frame, [("x", "z")]))
    for name in values:
        assert (sum_.of(name).present, sum_.of(name).missing) == (whole.of(name).present, whole.of(name).missing)
        assert sum_.of(name).bins == whole.of(name).bins
        assert sum_.of(name).values == whole.of(name).values
    for moment in ("count", "mean_x", "m2_x", "m2_y", "c_xy"):
        assert getattr(sum_.pairs["x,z"], moment) == pytest.approx(getattr(whole.pairs["x,z"], moment))


@pytest.mark.parametrize("bins", [1, 2, 3, 5, 8, 20, 64])
def test_wider_bins_hold_the_same_values_and_fit_the_wider_frame(bins: int) -> None:
    values = {"x": normal(500)}
    frame = reference(values, bins=bins)
    now = sample({"x": [*normal(300, 1.0), 99.0, -99.0]}, frame)
    wide, edges = coarse(now).of("x").bins or [], coarse_frame(frame).targets["x"].edges or []
    assert len(wide) == len(edges) + 1
    assert sum(wide) == 302
    assert (wide[0], wide[-1]) == ((now.of("x").bins or [])[0], (now.of("x").bins or [])[-1])
    assert of_reference(coarse_frame(frame)).of("x").bins == coarse(of_reference(frame)).of("x").bins


# ---------------------------------------------------------------- chances


@pytest.mark.parametrize("counts", [(0, 1000, 3, 3000), (50, 1000, 80, 1000), (0, 500, 20, 100), (5, 5000, 400, 1000)])
def test_chances_of_shares_are_fishers(counts: tuple[int, int, int, int]) -> None:
    before, n, now, m = counts
    table = [[now, m - now], [before, n - before]]
    greater, less = (stats.fisher_exact(table, alternative=side).pvalue for side in ("greater", "less"))
    assert chances.at_least(*counts) == pytest.approx(greater)
    assert chances.as_far(*counts) == pytest.approx(min(1, 2 * min(greater, less)), rel=1e-6)


@pytest.mark.parametrize("n", [20, 1000, 5000])
@pytest.mark.parametrize("m", [100, 20_000])
def test_the_chance_of_values_beyond_the_range_is_beta_binomial(n: int, m: int) -> None:
    for hits in (0, 1, 5, 40, m):
        expected = stats.betabinom.sf(hits - 1, m, 2, n - 1) if hits * (n + 1) > 2 * m else 1.0
        assert chances.beyond_range(n, hits, m) == pytest.approx(expected, rel=1e-3, abs=1e-9)


@pytest.mark.parametrize("exponent", [1.2, 2.0])
def test_the_chance_of_other_categories_is_never_too_small(exponent: float) -> None:
    rng = np.random.default_rng(3)
    found = []
    for _ in range(200):
        drawn = [rng.zipf(exponent, size) for size in (800, 300)]
        known = np.unique(np.concatenate(drawn))
        rows = [np.array([(each == value).sum() for value in known]) for each in drawn]
        found.append(chances.another_choice(*rows)[1])
    assert (np.array(found) < 0.05).mean() <= 0.05


def test_the_chance_of_another_correlation_is_uniform_for_normal_values() -> None:
    rng = np.random.default_rng(4)
    drawn = [
        [r_of(rng.multivariate_normal([0, 0], [[1, 0.7], [0.7, 1]], n).T) for n in (400, 150)] for _ in range(1500)
    ]
    found = [chances.correlations(before, 400, now, 150) for before, now in drawn]
    assert stats.kstest(found, "uniform").pvalue > 0.01


# ---------------------------------------------------------------- many tests


@pytest.mark.parametrize("method", ["bh", "by"])
def test_q_values_are_scipys_and_the_weights_are_shared_out(method: Any) -> None:
    p_values = np.random.default_rng(5).beta(0.5, 3, 40).tolist()
    expected = stats.false_discovery_control(p_values, method=method)
    assert q_values(p_values, [2.0] * 40, method) == pytest.approx(expected)
    weights = np.random.default_rng(6).uniform(0.2, 5, 40)
    weighted = np.minimum(1, np.array(p_values) / (weights / weights.mean()))
    found = np.array(q_values(p_values, weights.tolist(), method))
    certain = weighted < 1
    order = stats.false_discovery_control(weighted, method=method)
    assert found[certain] == pytest.approx(order[certain])


def test_a_weight_finds_what_matters_sooner_and_keeps_the_promise() -> None:
    rng = np.random.default_rng(7)
    weights = [*([4.0] * 5), *([0.5] * 15)]
    families = [q_values(rng.random(20).tolist(), weights) for _ in range(4000)]
    assert np.mean([min(each) <= 0.05 for each in families]) <= 0.05 + 3 * 0.0035
    assert q_values([0.004, *([0.5] * 19)], weights)[0] < q_values([0.004, *([0.5] * 19)], [1.0] * 20)[0]


def side(numbers: np.typing.NDArray[np.float64], frame: TargetReference) -> Side:
    bins = np.bincount(np.searchsorted(frame.edges or [], numbers), minlength=len(frame.edges or ()) + 1)
    return Side(len(numbers), 0, {"number": len(numbers)}, bins.tolist())


@pytest.mark.parametrize("size", [1000, 1500])
def test_where_nothing_happens_as_many_windows_are_wrong_as_their_level_allows(size: int) -> None:
    """Of references of up to 1,000 values, and of more; each anew, 6 targets, without a floor of the effect."""
    rng, policy = np.random.default_rng(size), DriftPolicy(threshold=1e-9, share_threshold=1e-9)
    wrong_windows = 0
    for _ in range(30):
        frame = reference({f"x{at}": rng.normal(size=size).tolist() for at in range(6)})
        before = of_reference(frame)
        for _ in range(20):
            now = Sample(200, {name: side(rng.normal(size=200), target) for name, target in frame.targets.items()})
            wrong_windows += any(each.drifted for each in judge(compare(now, before, frame, policy), policy, 0.05))
    assert wrong_windows <= 0.05 * 600 + 3 * (2 * 0.05 * 600) ** 0.5
    assert wrong_windows >= 3, "tests that never reject would pass, too"


def test_the_level_of_a_window_is_its_share_of_the_false_alarms_of_a_month() -> None:
    assert alpha_of(1.0, 3600.0, 1) == 1 / 720
    assert alpha_of(1.0, 3600.0, 2) == 1 / 1440
    assert alpha_of(0.5, 86_400.0, 1) == 1 / 60
    assert alpha_of(30.0, 86_400.0, 1) == MAX_ALPHA
    assert alpha_of(0.0, 3600.0, 1) == 0


@pytest.mark.parametrize("reference_size", [100, 1000])
@pytest.mark.parametrize("times", [2.5, 5, 10, 20])
def test_the_range_of_a_huge_window_goes_by_the_distribution(
    reference_size: int, times: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 3000 * reference_size
    hits = round(times * size / reference_size)
    monkeypatch.setattr(chances, "MAX_TERMS", 10**9)
    exact = chances.beyond_range(reference_size, hits, size)
    monkeypatch.setattr(chances, "MAX_TERMS", 1)
    assert chances.beyond_range(reference_size, hits, size) == pytest.approx(exact, rel=0.01)
    monkeypatch.undo()
    assert chances.beyond_range(1000, 2_000_000, 10**12) == 1.0
    assert 0 < chances.beyond_range(1000, 9 * 10**9, 10**12) < 0.01
