"""Online detectors: what they are given, when they alarm, and what becomes of windows, qualities and events."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streammon.broker import Outgoing
from streammon.config import Settings
from streammon.errors import ConfigError
from streammon.models import ONLINE_SHARE, DetectorPolicy, ModelPolicy, Models, Use
from streammon.results import Drift
from streammon.sketch import Sketch
from streammon.topics import MAX_RECORD_BYTES, ROLLUP_HEADER
from streammon_processors.builtin import detectors_processor
from streammon_processors.contract import PARTITION, Stored
from streammon_processors.detectors.budget import MONTH_S, SAFETY, average_run_length, interval, threshold, upper_bound
from streammon_processors.detectors.lengths import step_s
from streammon_processors.detectors.preparation import CLIP, Preparation, Preparing
from streammon_processors.detectors.season import DAY, Profile
from streammon_processors.detectors.task import DetectorsTask
from streammon_processors.detectors.watching import Measured, Version, Watching, sees_events
from tests.detecting import BEGIN_S, MODELS, POLICY, QUICK, STEP_S, window
from tests.series import autoregressive

STEP = 300.0
DAYS = 288
RNG = np.random.default_rng


def prepared(values: Any, *, season: str = "day", transform: str = "identity") -> tuple[Preparing, list[float]]:
    preparing = Preparation(transform, season).open()  # type: ignore[arg-type]  # the literals
    found = [preparing.update((at + 1) * STEP, float(value), 100.0) for at, value in enumerate(values)]
    return preparing, [each for each in found if each is not None]


# --- preparation ----------------------------------------------------------------------------------------------------


def daily(count: int, height: float) -> Any:
    return height * np.sin(np.arange(count) * 2 * np.pi / DAYS)


@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("normal", lambda random, count: random.standard_normal(count)),
        ("dependent", lambda random, count: autoregressive(random, 1, count, 0.9)[0]),
        ("daily", lambda random, count: random.standard_normal(count) + daily(count, 5.0)),
        ("heavy", lambda random, count: random.standard_t(3, count)),
        ("far from 0", lambda random, count: 1e6 + 1e-3 * random.standard_normal(count)),
    ],
)
def test_what_a_detector_is_given_is_independent_and_of_variance_one(name: str, made: Any) -> None:
    _, sigmas = prepared(made(RNG(3), 20 * DAYS))
    late = np.array(sigmas[5 * DAYS :])
    assert abs(late.mean()) < 0.05
    assert late.std() == pytest.approx(1.0, abs=0.15)
    assert abs(np.corrcoef(late[:-1], late[1:])[0, 1]) < 0.04
    by_hour = late[: len(late) // DAYS * DAYS].reshape(-1, 24, 12).mean(axis=(0, 2))
    assert np.abs(by_hour).max() < 0.35


def test_slow_dependence_under_noise_is_seen_in_sums() -> None:
    random = RNG(4)
    values = (autoregressive(random, 1, 30 * DAYS, 0.9)[0] + random.standard_normal(30 * DAYS)) / math.sqrt(2)
    preparing, sigmas = prepared(values)
    assert preparing.dependence.phi == pytest.approx(0.9, abs=0.05)
    sums = np.array(sigmas[10 * DAYS :])
    of_half_days = sums[: len(sums) // 144 * 144].reshape(-1, 144).sum(axis=1)
    assert of_half_days.std() / 12.0 < 1.1, "sums spread as those of independent values do, at most"


def test_an_outlier_counts_as_far_as_the_clip_and_spoils_nothing() -> None:
    values = RNG(5).standard_normal(10 * DAYS)
    plain, before = prepared(values)
    values[5 * DAYS] = 1e12
    spoilt, after = prepared(values)
    changed = np.array(after) - np.array(before)
    assert max(after) <= CLIP / min(plain.dependence.wide, spoilt.dependence.wide) + 1.0
    assert np.abs(changed[4 * DAYS :]).max() < 0.25
    assert spoilt.dependence.phi == pytest.approx(plain.dependence.phi, abs=0.02)


def test_nothing_is_made_of_values_before_the_warm_up_is_over() -> None:
    preparing = Preparation("identity", "day", 2 * 86_400.0).open()
    found = [preparing.update(at * STEP, float(at % 7), 1.0) for at in range(3 * DAYS)]
    assert all(each is None for each in found[: 2 * DAYS])
    assert all(each is not None for each in found[2 * DAYS :])


def test_after_a_gap_the_value_before_says_nothing() -> None:
    preparing = Preparation("identity", "none", 100 * STEP).open()
    for at in range(500):
        preparing.update(at * STEP, float(at % 5), 1.0)
    assert preparing.update(800 * STEP, 2.0, 1.0) is None
    assert preparing.update(801 * STEP, 2.0, 1.0) is not None


def test_errors_are_gathered_until_there_are_enough_of_them() -> None:
    preparing = Preparation("rate", "none", 0.0).open()
    random = RNG(6)
    found = []
    for at in range(4000):
        of = int(random.integers(5, 20))
        found.append(preparing.update(at * STEP, random.binomial(of, 0.02) / of, of))
    given = [each for each in found if each is not None]
    assert 100 < len(given) < 400, "some 12 events come at once, and 200 make 4 errors"
    assert abs(np.mean(given[20:])) < 0.25


@given(st.lists(st.tuples(st.floats(allow_nan=True), st.floats(0, 1e9)), max_size=300))
@settings(max_examples=30, deadline=None)
def test_whatever_comes_is_survived_and_the_result_is_finite(values: list[tuple[float, float]]) -> None:
    for transform in ("log", "rate", "logit", "identity"):
        preparing = Preparation(transform, "day", 0.0).open()
        for at, (value, count) in enumerate(values):
            found = preparing.update(at * STEP, value, count)
            assert found is None or math.isfinite(found)


def test_a_profile_knows_a_season_and_nothing_before_it_has_seen_it() -> None:
    profile = Profile.empty(DAY)
    assert profile.expected(DAY, 0.0) is None
    for at in range(3 * DAYS):
        profile.learn(DAY, at * STEP, math.sin(2 * math.pi * at / DAYS), 1000.0)
    for at in range(DAYS):
        assert profile.expected(DAY, at * STEP) == pytest.approx(math.sin(2 * math.pi * at / DAYS), abs=0.05)
    assert profile.level == pytest.approx(0.0, abs=1e-6)


# --- the budget -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("k", "h"), [(0.25, 4.0), (0.5, 3.0), (0.1, 6.0)])
def test_run_lengths_are_those_of_independent_normal_values(k: float, h: float) -> None:
    random, lengths = RNG(7), []
    for _ in range(400):
        height, steps = 0.0, 0
        while height <= h:
            height, steps = max(0.0, height + float(random.standard_normal()) - k), steps + 1
        lengths.append(steps)
    assert np.mean(lengths) == pytest.approx(average_run_length(h, k), rel=0.2)


@given(st.floats(0.001, 100), st.sampled_from((0.02, 0.1, 0.25, 0.5)))
@settings(max_examples=30, deadline=None)
def test_a_threshold_gives_the_run_length_of_the_budget(per_month: float, k: float) -> None:
    expected = 2 * MONTH_S / STEP / per_month * SAFETY
    if expected > 4:
        assert average_run_length(threshold(per_month, STEP, k), k) == pytest.approx(expected, rel=0.08, abs=3)


def test_a_smaller_budget_is_a_higher_threshold() -> None:
    heights = [threshold(budget, STEP, 0.25) for budget in (10.0, 1.0, 0.1, 0.01)]
    assert heights == sorted(heights)
    assert len(set(heights)) == 4


def test_bounds_of_counts_are_the_exact_ones() -> None:
    assert upper_bound(0, 1.0) == pytest.approx(-math.log(0.05))
    low, high = interval(10, 2.0)
    assert low == pytest.approx(4.7954 / 2, abs=1e-3)
    assert high == pytest.approx(18.3904 / 2, abs=1e-3)


# --- the task -------------------------------------------------------------------------------------------------------


def stored(values: Sequence[bytes | None], every_s: float = STEP_S) -> list[Stored]:
    header = ((ROLLUP_HEADER, b"4s"),)
    return [Stored(each, at, round((BEGIN_S + at * every_s) * 1000), headers=header) for at, each in enumerate(values)]


def drifts(outputs: list[Outgoing]) -> list[Drift]:
    return [msgspec.json.decode(each.value or b"", type=Drift) for each in outputs if each.topic == "drift"]


def steps(number: int, **fields: Any) -> Iterator[bytes]:
    random = RNG(8)
    for at in range(number):
        series = {"service": "shop", "model": "ranker", "model_version": "1"}
        yield msgspec.json.encode(window(BEGIN_S + at * STEP_S, series, random, changed=False, **fields))


def test_endpoints_of_a_version_are_one_series_and_its_versions_are_two() -> None:
    random, values = RNG(9), []
    for at in range(120):
        for version, endpoint in (("1", "/a"), ("1", "/b"), ("2", "/a")):
            series = {"service": "shop", "model": "ranker", "model_version": version, "endpoint": endpoint}
            values.append(window(BEGIN_S + at * STEP_S, series, random, changed=False))
    task = DetectorsTask(MODELS, PARTITION, step_s=STEP_S)
    found = drifts(task.process("windows", stored([msgspec.json.encode(each) for each in values], 1.0)))
    sizes = {each.model_version: each.sample_size for each in found if each.target == "duration_s"}
    assert sizes.keys() == {"1", "2"}
    first = [each for each in found if each.target == "duration_s" and each.sample_size < 200]
    of_one = {each.model_version: each.sample_size for each in first}
    assert of_one["1"] > of_one["2"], "twice the events"


def test_heartbeats_are_as_often_as_the_policy_says_and_say_that_nothing_changed() -> None:
    task = DetectorsTask(MODELS, PARTITION, step_s=STEP_S)
    found = drifts(task.process("windows", stored(list(steps(200)))))
    of_one = [each for each in found if each.target == "error"]
    assert not any(each.drifted for each in found)
    gaps = np.diff([each.end_unix_s for each in of_one])
    assert len(of_one) >= 9
    assert all(abs(each - 60.0) <= STEP_S for each in gaps[1:])
    assert all(each.start_unix_s < each.end_unix_s for each in of_one)


def test_an_open_step_closes_when_the_log_says_that_time_has_passed() -> None:
    task = DetectorsTask(MODELS, PARTITION, step_s=STEP_S)
    (first,) = steps(1)
    task.process("windows", stored([first]))
    assert list(task.waiting) == ["windows"]
    assert not task.watermarks()
    ticks = [Stored(None, 1 + at, round((BEGIN_S + 9.0 * (at + 1)) * 1000)) for at in range(5)]
    task.process("windows", ticks[:3])
    assert list(task.waiting) == ["windows"]
    task.process("windows", ticks[3:])
    assert task.watermarks()["windows"] > BEGIN_S + STEP_S
    assert list(task.waiting) == []


def test_what_comes_after_its_step_is_counted_and_not_used() -> None:
    def run(late: bool) -> list[Drift]:
        values: list[bytes | None] = list(steps(150))
        if late:
            values.insert(100, values[20])
        task = DetectorsTask(MODELS, PARTITION, step_s=STEP_S)
        return drifts(task.process("windows", stored(values)))

    assert run(late=True) == run(late=False)


def test_the_budget_of_a_model_is_shared_by_its_detectors_and_its_versions() -> None:
    policy = msgspec.structs.replace(POLICY, max_false_alarms_per_month=8.0)
    watching = Watching(
        Models((policy,)), PARTITION, per_event=False, targets=frozenset({"error", "duration_s"}), max_bytes=10**6
    )
    names = [Version("shop", "ranker", each) for each in "12"]
    list(watching.take(names[0], BEGIN_S, {"error": Measured(0.1, 10)}))
    assert watching._allowed(names[0], policy) == pytest.approx(ONLINE_SHARE * 8.0 / 6)
    list(watching.take(names[1], BEGIN_S, {"error": Measured(0.1, 10)}))
    assert watching._allowed(names[0], policy) == pytest.approx(ONLINE_SHARE * 8.0 / 6 / 2)
    list(watching.take(names[0], BEGIN_S + 2 * 86_400.0, {"error": Measured(0.1, 10)}))
    assert watching._allowed(names[0], policy) == pytest.approx(ONLINE_SHARE * 8.0 / 6), "the other one is gone"


def test_series_are_bounded_and_a_new_one_takes_the_place_of_one_long_silent() -> None:
    watching = Watching(MODELS, PARTITION, per_event=False, targets=frozenset({"error"}), max_bytes=20_000)
    for number in range(50):
        list(watching.take(Version("shop", "ranker", str(number)), BEGIN_S, {"error": Measured(0.1, 10)}))
    known = len(watching._series)
    assert 5 < known < 20
    list(watching.take(Version("shop", "ranker", "new"), BEGIN_S + 8 * 86_400.0, {"error": Measured(0.1, 10)}))
    assert Version("shop", "ranker", "new") in watching._series
    long = Version("shop", "ranker", "x" * 5000)
    list(watching.take(long, BEGIN_S, {"error": Measured(0.1, 10)}))
    assert long not in watching._series


def test_a_full_snapshot_fits_into_a_record() -> None:
    every = tuple(Use(name) for name in ("page_hinkley", "adwin", "kswin"))
    policy = msgspec.structs.replace(QUICK, season="week", targets={"duration_s": every, "input_tokens": every})
    models = Models((msgspec.structs.replace(POLICY, detectors=policy),))
    task, random = DetectorsTask(models, PARTITION, step_s=STEP_S), RNG(10)
    values = []
    for at in range(8):
        for number in range(60):
            series = {"service": "shop", "model": "ranker", "model_version": str(number)}
            values.append(msgspec.json.encode(window(BEGIN_S + at * STEP_S, series, random, changed=False)))
    task.process("windows", stored(values, 0.01))
    assert len(task.snapshot()) < MAX_RECORD_BYTES


def test_a_changed_policy_goes_on_with_what_it_still_names() -> None:
    task = DetectorsTask(MODELS, PARTITION, step_s=STEP_S)
    values = list(steps(150))
    task.process("windows", stored(values[:100]))
    less = msgspec.structs.replace(QUICK, targets={"error": (Use(), Use("hddm_a"))})
    other = DetectorsTask(Models((msgspec.structs.replace(POLICY, detectors=less),)), PARTITION, step_s=STEP_S)
    other.restore(task.snapshot())
    offset = other.offsets()["windows"]
    found = drifts(other.process("windows", stored(values)[offset:]))
    assert {(each.target, each.detector) for each in found} == {("error", "page_hinkley")}, "the new one warms up"


def test_a_snapshot_of_another_layout_is_not_read_and_the_detectors_learn_anew() -> None:
    task = DetectorsTask(MODELS, PARTITION, step_s=STEP_S)
    values = list(steps(150))
    task.process("windows", stored(values))
    layout, dumps = msgspec.msgpack.decode(task.snapshot())
    other = DetectorsTask(MODELS, PARTITION, step_s=STEP_S)
    other.restore(msgspec.msgpack.encode((layout + 1, dumps)))
    assert not other.offsets()
    assert drifts(other.process("windows", stored(values)))


# --- policies -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (lambda: Use("kswin", per_event=True), "takes too long for every event"),
        (lambda: DetectorPolicy(targets={"latency": (Use(),)}), "'latency' is none that can be watched"),
        (lambda: DetectorPolicy(targets={"duration_s": (Use("ddm"),)}), "ddm is about error and accuracy only"),
        (lambda: DetectorPolicy(targets={"error": (Use(), Use())}), "named twice"),
        (lambda: DetectorPolicy(targets={"accuracy": (Use("eddm", per_event=True),)}), "comes with labels"),
        (lambda: DetectorPolicy(warm_up="soon"), "'soon' is no duration"),
    ],
)
def test_an_impossible_policy_says_what_is_wrong(made: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        made()


@pytest.mark.parametrize(
    ("use", "said"),
    [
        (Use("adwin", {"threshold": 3}), "adwin has no setting 'threshold'; River's are delta"),
        (Use("kswin", {"alpha": 3}), "kswin does not take"),
    ],
)
def test_a_wrong_setting_is_found_before_anything_runs(use: Use, said: str) -> None:
    policy = ModelPolicy(service="shop", detectors=DetectorPolicy(targets={"duration_s": (use,)}))
    with pytest.raises(ConfigError, match=said) as raised:
        sees_events(Models((policy,)))
    assert "shop/(any): detectors.targets.duration_s" in str(raised.value)


def test_events_are_read_only_where_a_policy_says_so() -> None:
    assert detectors_processor(Settings()).inputs == ("windows", "quality")
    use = (Use("adwin", per_event=True),)
    assert sees_events(Models((ModelPolicy(detectors=DetectorPolicy(targets={"error": use})),)))


def test_steps_are_five_minutes_or_the_next_time_that_windows_fill() -> None:
    assert [step_s(size) for size in (2.0, 1.0, 0.5, 7.0, 600.0)] == [300.0, 300.0, 300.0, 301.0, 600.0]


@given(st.lists(st.floats(1e-9, 1e9), min_size=1, max_size=50))
@settings(max_examples=50, deadline=None)
def test_the_mean_log_of_a_sketch_is_near_the_exact_one(values: list[float]) -> None:
    exact = np.log(np.maximum(values, 1e-6)).mean()
    assert Sketch.of(np.array(values)).mean_log(1e-6) == pytest.approx(exact, abs=0.0055)
    assert math.isnan(Sketch.of(np.array([])).mean_log(1.0))
    assert Sketch.of(np.array([0.0, -2.0])).mean_log(2.0) == pytest.approx(math.log(2.0))
