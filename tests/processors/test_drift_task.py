"""The drift task: which profiles make a test window, when it is tested, against what, and what is told."""

from __future__ import annotations

import random
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import numpy as np
import pytest
from scipy import stats

from streammon.broker import Outgoing
from streammon.models import DriftPolicy, ModelPolicy, Models, ReferencePolicy
from streammon.profiles import PROFILES, REFERENCES, Profile, Reference
from streammon.results import Completeness, Drift
from streammon.tick import TICK
from streammon.topics import MAX_RECORD_BYTES
from streammon_processors.contract import Stored
from streammon_processors.drift import DriftTask
from streammon_processors.drift import past as past_module
from streammon_processors.drift import task as task_module
from streammon_processors.drift.sample import Sample, Side
from tests.profiled import Value, Values, profile, reference

HOUR_S = 3600.0
PART_S = 300.0
BEGIN = 1_700_000_000.0 // HOUR_S * HOUR_S
DAY_S = 24 * HOUR_S


def policy(**fields: Any) -> Models:
    return Models(models=(ModelPolicy(drift=DriftPolicy(**fields)),))


class Log:
    """A partition, and the task that reads it; a record each time."""

    def __init__(self, models: Models | None = None) -> None:
        self.task = DriftTask(models or Models(), 3)
        self.models = models or Models()
        self.records: dict[str, list[Stored]] = {PROFILES: [], REFERENCES: []}
        self.letters: list[str] = []

    def append(self, topic: str, value: bytes | None, at: float) -> list[Drift]:
        record = Stored(value, len(self.records[topic]), round(1000 * at))
        self.records[topic].append(record)
        return self._told(self.task.process(topic, [record]))

    def _told(self, outputs: Iterable[Outgoing]) -> list[Drift]:
        found = []
        for each in outputs:
            if each.topic == "drift":
                found.append(msgspec.json.decode(each.value or b"", type=Drift))
            else:
                self.letters.append(dict(each.headers)["reason"].decode())
        return found

    def refer(self, frame: Reference) -> list[Drift]:
        return self.append(REFERENCES, msgspec.json.encode(frame), BEGIN)

    def profile(self, made: Profile, at: float | None = None) -> list[Drift]:
        return self.append(PROFILES, msgspec.json.encode(made), made.end_unix_s + 1 if at is None else at)

    def hour(self, number: int, values: Values, frame: Reference | None, **fields: Any) -> list[Drift]:
        """Profiles of twelve parts of an hour, and what they bring."""
        size = max(map(len, values.values()))
        found = []
        for part in range(12):
            cut = slice(part * size // 12, (part + 1) * size // 12)
            start = BEGIN + number * HOUR_S + part * PART_S
            found += self.profile(profile({name: each[cut] for name, each in values.items()}, frame, start, **fields))
        return found

    def restart(self) -> None:
        """From the snapshot, and with what has to be read again."""
        before, self.task = self.task, DriftTask(self.models, 3)
        self.task.restore(before.snapshot())
        for topic, records in self.records.items():
            assert self.task.process(topic, records[before.offsets().get(topic, 0) :]) == []


def normal(rng: random.Random, size: int, shift: float = 0.0) -> list[Value]:
    return [rng.gauss(shift, 1) for _ in range(size)]


def by_target(found: Sequence[Drift]) -> dict[str, Drift]:
    assert len({each.target for each in found}) == len(found), "a record a target"
    return {each.target: each for each in found}


# ---------------------------------------------------------------- the whole path, by a naive second way


def traffic(rng: random.Random, size: int, shift: float) -> dict[str, list[Value]]:
    return {
        "features.age": [None if rng.random() < 0.1 else rng.gauss(30 + 10 * shift, 10) for _ in range(size)],
        "features.country": [rng.choice("aab" if rng.random() < shift else "abc") for _ in range(size)],
        "prediction": [rng.random() < 0.3 for _ in range(size)],
    }


def expected_ks(before: Sequence[Value], now: Sequence[Value], edges: Sequence[float]) -> tuple[float, float]:
    rows = [[bisect_left(edges, each) for each in side if isinstance(each, float)] for side in (before, now)]
    found = stats.ks_2samp(*rows, method="asymp")
    return float(found.statistic), float(found.pvalue)


def expected_chi_square(before: Sequence[Value], now: Sequence[Value]) -> tuple[float, float]:
    counts = [Counter(before), Counter(now)]
    known = sorted(set(before) | set(now), key=str)
    rows = [[each[value] for value in known] for each in counts]
    shares = [[count / sum(row) for count in row] for row in rows]
    distance = (sum((p - q) ** 2 / (p + q) for p, q in zip(*shares, strict=True)) / 2) ** 0.5
    return distance, float(stats.chi2_contingency(rows, correction=False).pvalue)


def test_each_window_is_tested_once_and_says_what_the_raw_values_say() -> None:
    rng, log = random.Random(1), Log(policy(min_samples=50))
    before = traffic(rng, 900, 0.0)
    frame = reference(before)
    log.refer(frame)
    hours = [traffic(rng, size, shift) for size, shift in ((360, 0.0), (480, 0.8), (12, 0.0), (12, 0.0))]
    told = [log.hour(number, values, frame) for number, values in enumerate(hours)]
    assert told[0] == []
    for number, values in enumerate(hours[:2]):
        found = [each for each in told[number + 1] if each.start_unix_s == BEGIN + number * HOUR_S]
        tests = {each.target: each for each in found if each.detector in ("ks", "chi_square")}
        assert {each.end_unix_s - each.start_unix_s for each in found} == {HOUR_S}
        assert {each.reference for each in found} == {"r1"}
        ks = expected_ks(before["features.age"], values["features.age"], frame.targets["features.age"].edges or [])
        assert tests["features.age"].statistic == pytest.approx(ks[0])
        assert tests["features.age"].p_value == pytest.approx(ks[1], rel=0.15)
        for name in ("features.country", "prediction"):
            chi_square = expected_chi_square(before[name], values[name])
            assert (tests[name].statistic, tests[name].p_value) == pytest.approx(chi_square)
            assert (tests[name].sample_size, tests[name].reference_size) == (len(values[name]), 900)
    assert not any(each.drifted for each in told[1])
    assert {each.target for each in told[2] if each.drifted} >= {"features.age", "features.country", "dataset"}
    assert not by_target([each for each in told[2] if each.target == "prediction"])["prediction"].drifted
    assert [(each.target, each.reason) for each in told[3]] == [("dataset", "too_few_samples")]


def test_parts_that_come_in_time_are_in_the_test_and_later_ones_are_counted_and_change_nothing() -> None:
    rng, log = random.Random(2), Log()
    frame = reference({"x": normal(rng, 500)})
    log.refer(frame)
    log.hour(0, {"x": normal(rng, 240)}, frame)
    in_time = profile({"x": normal(rng, 60)}, frame, BEGIN + 600, revision=1)
    assert log.profile(in_time, BEGIN + HOUR_S + 30) == []
    [test, _] = log.profile(profile({"x": normal(rng, 20)}, frame, BEGIN + HOUR_S + PART_S))
    assert (test.target, test.sample_size) == ("x", 300)
    before = task_module.LATE._value.get()
    too_late = profile({"x": normal(rng, 70)}, frame, BEGIN + 600, revision=2)
    assert log.profile(too_late, BEGIN + HOUR_S + 900) == []
    assert task_module.LATE._value.get() - before == 70


def test_profiles_of_several_models_that_come_after_a_silence_are_all_taken_in() -> None:
    """They are published at once, and the watermark that the first of them tells is far ahead."""
    rng, log = random.Random(3), Log()
    frame = reference({"x": normal(rng, 500)})
    log.refer(frame)
    start = BEGIN + 11 * PART_S
    for model in "abc":
        made = profile({"x": normal(rng, 200)}, frame, start, model=model, watermark=BEGIN + 5 * HOUR_S)
        assert log.profile(made, BEGIN + 5 * HOUR_S) == []
    found = log.profile(profile({"x": normal(rng, 20)}, frame, BEGIN + 5 * HOUR_S), BEGIN + 6 * HOUR_S)
    assert {(each.model, each.sample_size) for each in found if each.target == "x"} == {(m, 200) for m in "abc"}


def test_time_closes_a_window_when_nothing_comes_any_more() -> None:
    rng, log = random.Random(4), Log()
    frame = reference({"x": normal(rng, 500)})
    log.refer(frame)
    log.hour(0, {"x": normal(rng, 240)}, frame)
    assert [*log.task.waiting] == [PROFILES]
    closed = [second for second in range(30, 600, 30) if log.append(PROFILES, TICK, BEGIN + HOUR_S + 1 + second)]
    assert closed == [180]  # two minutes of patience, and one that profiles may be under way
    assert not log.task.waiting


# ---------------------------------------------------------------- references


def test_a_window_waits_for_its_reference_and_those_behind_it_wait_too() -> None:
    rng, log = random.Random(5), Log()
    frame = reference({"x": normal(rng, 500)})
    for number in range(4):
        assert log.hour(number, {"x": normal(rng, 240)}, frame) == []
    log.profile(profile({"x": normal(rng, 60)}, frame, BEGIN + 600, revision=1))  # too late, though it was not tested
    log.append(PROFILES, b"{", BEGIN + 4 * HOUR_S)  # a dead letter, with which all of it is remembered
    log.restart()
    found = log.refer(frame)
    assert [each.start_unix_s for each in found if each.target == "x"] == [BEGIN + at * HOUR_S for at in range(3)]
    assert {each.sample_size for each in found} == {240}


def test_a_reference_that_never_comes_is_told_of_after_so_many_windows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_module, "MAX_WAITING", 2)
    rng, log = random.Random(6), Log()
    frame = reference({"x": normal(rng, 500)})
    found = [each for number in range(5) for each in log.hour(number, {"x": normal(rng, 240)}, frame)]
    assert [(each.target, each.reason, each.reference) for each in found] == 2 * [
        ("dataset", "unknown_reference", "r1")
    ]


def test_profiles_of_before_the_first_reference_are_said_to_have_none() -> None:
    rng, log = random.Random(7), Log()
    log.hour(0, {"x": normal(rng, 240)}, None)
    found = log.hour(1, {"x": normal(rng, 240)}, None)
    assert [(each.target, each.reason, each.drifted) for each in found] == [("dataset", "no_reference", False)]


def test_another_reference_makes_two_tests_of_the_window_in_which_it_takes_effect() -> None:
    rng, log = random.Random(8), Log()
    old, new = (reference({"x": normal(rng, 500, shift)}, name=name) for name, shift in (("old", 0.0), ("new", 2.0)))
    log.refer(old)
    log.refer(new)
    for part in range(12):
        frame, shift = (old, 0.0) if part < 6 else (new, 2.0)
        log.profile(profile({"x": normal(rng, 30, shift)}, frame, BEGIN + part * PART_S))
    found = log.hour(1, {"x": normal(rng, 240, 2.0)}, new)
    tests = [(each.reference, each.sample_size, each.drifted) for each in found if each.target == "x"]
    assert tests == [("new", 180, False), ("old", 180, False)]


@pytest.mark.parametrize("frame", [b'{"type":"reference"}', b"{", "ragged", "falling", "negative"])
def test_a_reference_that_contradicts_itself_is_a_dead_letter(frame: bytes | str) -> None:
    log = Log()
    made = reference({"x": normal(random.Random(9), 100)})
    target = made.targets["x"]
    if frame == "ragged":
        target.bins = [1]
    if frame == "falling":
        target.edges = (target.edges or [])[::-1]
    if frame == "negative":
        target.bins = [-1, *(target.bins or [])[1:]]
    assert log.append(REFERENCES, msgspec.json.encode(made) if isinstance(frame, str) else frame, BEGIN) == []
    assert log.letters in (["invalid_event"], ["invalid_json"])


@pytest.mark.parametrize("spoil", ["negative", "too_many", "no_time", "other_bins"])
def test_a_profile_that_contradicts_itself_harms_nobody(spoil: str) -> None:
    rng, log = random.Random(10), Log()
    frame = reference({"x": normal(rng, 500), "y": normal(rng, 500)})
    log.refer(frame)
    log.hour(0, {"x": normal(rng, 240), "y": normal(rng, 240)}, frame)
    made = profile({"x": normal(rng, 20), "y": normal(rng, 20)}, frame, BEGIN + 300, revision=1)
    numbers = made.targets["x"].numbers
    assert numbers is not None
    assert numbers.bins is not None
    match spoil:
        case "negative":
            numbers.bins[0] = -3
        case "too_many":
            numbers.bins[0] = 2**60
        case "no_time":
            made.start_unix_s = made.end_unix_s
        case "other_bins":
            numbers.bins = [20]
    log.profile(made, BEGIN + HOUR_S)
    assert log.letters == ([] if spoil == "other_bins" else ["bad_time" if spoil == "no_time" else "invalid_event"])
    found = by_target(log.hour(1, {"x": normal(rng, 240), "y": normal(rng, 240)}, frame))
    assert not any(each.drifted for each in found.values())


# ---------------------------------------------------------------- references that are earlier windows


def test_a_rolling_reference_follows_what_a_fixed_one_calls_drift() -> None:
    rng = random.Random(11)
    frame = reference({"x": normal(rng, 500)})
    verdicts = {}
    for name, models in (
        ("fixed", policy()),
        ("rolling", policy(reference=ReferencePolicy(rolling="3h"))),
    ):
        log = Log(models)
        log.refer(frame)
        found = []
        for number in range(12):
            found += log.hour(number, {"x": normal(random.Random(number), 600, 0.0 if number < 5 else 1.0)}, frame)
            log.restart()
        tests = {round((each.start_unix_s - BEGIN) / HOUR_S): each for each in found if each.target != "dataset"}
        verdicts[name] = [number for number, each in tests.items() if each.drifted]
        reasons = [each.reason for each in found if each.reason]
        assert reasons == ([] if name == "fixed" else ["no_past"])
    assert verdicts["fixed"] == [5, 6, 7, 8, 9, 10]
    assert verdicts["rolling"] == [5, 6]  # then most of its three hours are like it


def test_the_same_hour_last_week_knows_the_season() -> None:
    """An hour of the day is like that of a week ago, and not like the one before it."""
    rng = random.Random(12)
    frame = reference({"x": normal(rng, 500)})
    log = Log(policy(reference=ReferencePolicy(same_hour_last_week=True)))
    log.refer(frame)
    found = []
    for number in range(9 * 24):
        shift = 2.0 * (number % 24 > 11) + (1.5 if number == 200 else 0.0)
        found += log.hour(number, {"x": normal(rng, 120, shift)}, frame)
    log.restart()
    tests = {round((each.start_unix_s - BEGIN) / HOUR_S): each for each in found}
    assert [number for number, each in tests.items() if each.reason] == list(range(168))
    assert [number for number, each in tests.items() if each.drifted] == [200]


def test_what_is_kept_of_earlier_windows_is_bounded_and_what_is_dropped_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(past_module, "MAX_BYTES", 600)
    rng, log = random.Random(13), Log(policy(reference=ReferencePolicy(rolling="7d")))
    frame = reference({"x": normal(rng, 500)})
    log.refer(frame)
    dropped = past_module.DROPPED._value.get()
    for number in range(0, 24 * 7, 3):
        log.hour(number, {"x": normal(rng, 120)}, frame)
    assert past_module.DROPPED._value.get() > dropped
    assert len(log.task.snapshot()) < 4000


def test_a_hundred_features_are_kept_for_a_week_and_the_snapshot_fits_into_a_record() -> None:
    """Numbers in 64 bins, 10,000 values an hour."""
    rng, models = np.random.default_rng(14), policy(reference=ReferencePolicy(same_hour_last_week=True))
    log, kept = Log(models), past_module.Past()
    for number in range(24 * 7):
        bins = rng.multinomial(10_000, [0.0, *([1 / 64] * 64), 0.0], 100).tolist()
        sides = {f"features.number_{at}": Side(10_000, 0, {"number": 10_000}, row) for at, row in enumerate(bins)}
        kept.add("a", number * HOUR_S, "r1", Sample(10_000, sides), models.models[0].drift)
    kept.trim(24 * 7 * HOUR_S)
    assert len(kept.kept["a"].slots) == 24 * 7
    log.task._past = kept
    log.append(PROFILES, b"{", BEGIN)
    assert len(log.task.snapshot()) < MAX_RECORD_BYTES * 0.7


# ---------------------------------------------------------------- what is told


def test_a_check_is_told_while_something_is_wrong_and_once_thereafter() -> None:
    rng, log = random.Random(15), Log()
    frame = reference({"x": normal(rng, 500)})
    log.refer(frame)
    found = []
    for number, missing in enumerate((0.0, 0.5, 0.5, 0.0, 0.0, 0.0)):
        values: list[Value] = [None if rng.random() < missing else value for value in normal(rng, 600)]
        found += log.hour(number, {"x": values}, frame)
        log.restart()
    checks = [(each.start_unix_s, each.drifted) for each in found if each.detector == "missing"]
    assert checks == [(BEGIN + HOUR_S, True), (BEGIN + 2 * HOUR_S, True), (BEGIN + 3 * HOUR_S, False)]


def test_of_a_target_that_was_lost_or_new_it_is_told_that_it_is_as_before() -> None:
    rng, log = random.Random(19), Log()
    frame = reference({"x": normal(rng, 500), "y": normal(rng, 500)})
    log.refer(frame)
    usual, other = ("x", "y"), ("x", "z")
    found = []
    for number, names in enumerate((usual, other, usual, usual, usual)):
        found += log.hour(number, {name: normal(rng, 600) for name in names}, frame)
    told = [(each.target, each.detector, each.drifted) for each in found if each.detector.endswith("_target")]
    assert told == [
        ("y", "lost_target", True), ("z", "new_target", True), ("y", "lost_target", False), ("z", "new_target", False),
    ]  # fmt: skip


def test_versions_that_are_tested_together_share_the_false_alarms() -> None:
    rng = random.Random(16)
    frame = reference({"x": normal(rng, 1000)})
    values = {"x": normal(random.Random(20), 500, 0.155)}  # sure enough for one version, too little for three
    drifted = {}
    for versions in (["1"], ["1", "2", "3"]):
        log = Log(policy(threshold=0.01))
        log.refer(frame)
        for version in versions:
            log.profile(profile(values, frame, BEGIN, HOUR_S, version=version), BEGIN + HOUR_S)
        found = log.profile(profile(values, frame, BEGIN + HOUR_S + PART_S))
        drifted[len(versions)] = [each.drifted for each in found if each.target == "x"]
        assert all(1 / 720 / 2 / 3 < (each.q_value or 0) < 1 / 720 / 2 for each in found if each.target == "x")
    assert drifted == {1: [True], 3: [False] * 3}


def test_more_windows_than_there_is_room_for_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(task_module, "MAX_OPEN", 2)
    rng, log = random.Random(17), Log()
    frame = reference({"x": normal(rng, 500)})
    log.refer(frame)
    skipped = task_module.SKIPPED.labels(task_module.Skipped.TOO_MANY_WINDOWS)._value.get
    before = skipped()
    for version in "1234":
        log.profile(profile({"x": normal(rng, 200)}, frame, BEGIN, version=version))
    assert skipped() - before == 2
    found = log.profile(profile({"x": normal(rng, 200)}, frame, BEGIN + 2 * HOUR_S))
    assert {each.model_version for each in found} == {"1", "2"}


def test_records_that_are_none_are_dead_letters_and_time_goes_on() -> None:
    log = Log()
    assert log.append(PROFILES, b"{", BEGIN) == []
    assert log.append(PROFILES, None, BEGIN) == []
    assert log.append(PROFILES, b'{"schema":9}', BEGIN) == []
    assert log.letters == ["invalid_json", "invalid_json", "invalid_event"]
    assert log.task.offsets() == {PROFILES: 3}


def test_a_watermark_is_when_the_newest_profile_ends() -> None:
    log = Log()
    assert log.task.watermarks() == {}
    made = profile({"x": normal(random.Random(18), 5)}, None, BEGIN)
    log.profile(msgspec.structs.replace(made, completeness=Completeness(watermark_unix_s=BEGIN + DAY_S)))
    assert log.task.watermarks() == {PROFILES: BEGIN + PART_S}


def test_a_short_window_waits_no_longer_than_it_lasts() -> None:
    rng = random.Random(4)
    frame = reference({"features.age": normal(rng, 500)})
    models = Models(
        models=(ModelPolicy(drift=DriftPolicy(window="20s")),),
        profile_window="10s",
    )
    log, told = Log(models), []
    log.refer(frame)
    for part in range(8):
        made = profile({"features.age": normal(rng, 200)}, frame, BEGIN + 10 * part)
        made = msgspec.structs.replace(made, end_unix_s=made.start_unix_s + 10, size_s=10.0)
        told.append({each.start_unix_s - BEGIN for each in log.profile(made)})
    assert told == [set(), set(), set(), set(), {0.0}, set(), {20.0}, set()]
