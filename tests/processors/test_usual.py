"""What is usual: how far an automatic reference lies from its version by itself, and what is more than that."""

from __future__ import annotations

import random
from dataclasses import replace
from math import log, pi, sin, sqrt

import pytest

from streammon.models import DriftPolicy, ModelPolicy, Models, ReferencePolicy
from streammon.profiles import Reference
from streammon.results import Drift
from streammon.topics import DAY_S
from streammon_processors.drift import usual as usual_module
from streammon_processors.drift.compare import Finding
from streammon_processors.drift.usual import AT_FIRST, LEARNED, MARGIN, Usual
from tests.processors.test_drift_task import BEGIN, HOUR_S, Log
from tests.profiled import Value, profile, reference

ALPHA = 0.001
POLICY = DriftPolicy()
TARGET = "features.age"


def automatic(name: str = "r1", since_unix_s: float = 0.0) -> Reference:
    frame = reference({TARGET: [float(each) for each in range(100)]}, name=name)
    frame.automatic, frame.since_unix_s = True, since_unix_s
    return frame


def finding(detector: str, effect: float = 0.0, threshold: float = 0.1, q_value: float = 0.0) -> Finding:
    return Finding(TARGET, detector, threshold, 1000, 1000, effect=effect, p_value=q_value, q_value=q_value)


class Learning:
    """Effects by the day, and the thresholds thereafter."""

    def __init__(self, policy: DriftPolicy = POLICY, frame: Reference | None = None) -> None:
        self.policy, self.frame, self.usual = policy, frame or automatic(), Usual()

    def day(self, number: float, *found: Finding) -> None:
        self.usual.learn(found, self.frame, number * DAY_S, self.policy, ALPHA)

    def thresholds(self, day: float, *tests: Finding) -> list[float]:
        return [each.threshold for each in self.usual.raised(tests, self.frame, day * DAY_S, self.policy)]


def test_on_the_first_day_only_large_effects_are_told() -> None:
    learning = Learning()
    tests = finding("ks"), finding("range", threshold=0.02), finding("type_change", threshold=0.02)
    assert learning.thresholds(0.99, *tests) == pytest.approx([0.1 * AT_FIRST, 0.02 * AT_FIRST, 0.02])
    assert learning.thresholds(1, *tests) == [0.1, 0.02, 0.02]


def test_what_moved_is_usual_from_then_on_and_more_is_drift() -> None:
    learning = Learning()
    learning.day(2, finding("ks", 0.2))
    assert learning.thresholds(3, finding("ks"), finding("ks", threshold=0.5)) == [0.2 * MARGIN, 0.5]


def test_what_was_told_is_not_usual_and_neither_is_the_smaller_one_that_came_later() -> None:
    learning = Learning()
    learning.day(2, finding("ks", 0.2))
    learning.day(3, replace(finding("ks", 0.45), drifted=True), finding("ks", 0.15))
    assert learning.thresholds(8, finding("ks")) == [0.2 * MARGIN]


def test_after_a_week_nothing_is_learned_any_more() -> None:
    learning = Learning()
    learning.day(7, finding("ks", 0.3))
    assert learning.thresholds(8, finding("ks")) == [0.1]


def test_chance_is_not_learned() -> None:
    learning = Learning()
    learning.day(2, finding("ks", 0.3, q_value=2 * LEARNED * ALPHA), Finding(TARGET, "ks", 0.1, 10, 10, effect=0.3))
    assert learning.thresholds(3, finding("ks")) == [0.1]


def test_checks_of_values_are_raised_with_the_distribution_and_schema_is_not() -> None:
    learning = Learning()
    learning.day(1, finding("ks", 0.2), finding("type_change", 0.5, 0.02))
    tests = finding("ks"), finding("range", threshold=0.02), finding("type_change", threshold=0.02)
    assert learning.thresholds(3, *tests) == pytest.approx([0.4, 0.08, 0.02])


@pytest.mark.parametrize(("detector", "most"), [("ks", 1.0), ("jensen_shannon", sqrt(log(2))), ("missing", 1.0)])
def test_a_total_change_is_always_seen(detector: str, most: float) -> None:
    learning = Learning()
    learning.day(1, finding(detector, 0.9 * most))
    assert 0.9 * most < learning.thresholds(3, finding(detector))[0] < most


def test_a_total_change_is_seen_on_the_first_day_whatever_the_threshold() -> None:
    tests = finding("ks", threshold=0.4), finding("jensen_shannon", threshold=0.3), finding("psi", threshold=0.4)
    assert Learning().thresholds(0, *tests[:1]) == [0.7]
    assert Learning().thresholds(0, *tests[1:2])[0] < sqrt(log(2))
    assert Learning().thresholds(0, *tests[2:]) == [0.4 * AT_FIRST]


def test_a_published_reference_has_nothing_usual_and_neither_has_who_does_not_want_it() -> None:
    frame = automatic()
    frame.automatic = False
    for learning in (Learning(frame=frame), Learning(DriftPolicy(reference=ReferencePolicy(learn=0)))):
        learning.day(0, finding("ks", 0.5))
        assert learning.thresholds(0.5, finding("ks")) == [0.1]
        assert not learning.usual.memory()


def test_without_room_the_oldest_reference_has_nothing_usual_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(usual_module, "MAX_BYTES", 2 * (len("ks features.age") + 11))
    usual = Usual()
    for name, since in (("b", 2.0), ("a", 1.0), ("c", 3.0)):
        usual.learn([finding("ks", 0.5)], automatic(name, since), since, POLICY, ALPHA)
    assert list(usual.memory()) == ["b", "c"]


# ---------------------------------------------------------------- through the task

REFERENCE_HOURS = 2
AN_HOUR = 300


def seasonal(rng: random.Random, hour: int, shift: float = 0.0) -> dict[str, list[Value]]:
    """In a day half a standard deviation up and down."""
    middle = 0.5 * sin(2 * pi * hour / 24) + shift
    return {
        TARGET: [rng.gauss(middle, 1) for _ in range(AN_HOUR)],
        "prediction": [rng.random() for _ in range(AN_HOUR)],
    }


def told(learn: str, *, restarts: bool = False, shift_from: int = 10**9, shift: float = 0.0) -> list[Drift]:
    """What is drift in ten days of a model whose reference is of its first hours."""
    rng = random.Random(5)
    first = [seasonal(rng, hour) for hour in range(REFERENCE_HOURS)]
    frame = reference({name: [value for each in first for value in each[name]] for name in first[0]})
    frame.automatic, frame.since_unix_s = True, BEGIN + REFERENCE_HOURS * HOUR_S
    log, found = Log(Models(models=(ModelPolicy(drift=DriftPolicy(reference=ReferencePolicy(learn=learn))),))), []
    log.refer(frame)
    for hour in range(REFERENCE_HOURS, 10 * 24):
        values = seasonal(rng, hour, shift if hour >= shift_from else 0.0)
        found += log.profile(profile(values, frame, BEGIN + hour * HOUR_S))
        if restarts and hour % 31 == 0:
            log.restart()
    return [each for each in found if each.drifted]


def test_a_season_is_not_drift_from_the_first_hours_of_a_version() -> None:
    assert len({each.start_unix_s for each in told("0s")}) > 60
    assert told("7d") == []


def test_a_shift_beyond_the_season_is_found_within_hours_and_restarts_change_nothing() -> None:
    found = told("7d", shift_from=200, shift=1.5)
    assert 200 <= (found[0].start_unix_s - BEGIN) / HOUR_S < 212
    assert {each.target for each in found} == {TARGET, "dataset"}
    assert told("7d", restarts=True, shift_from=200, shift=1.5) == found
