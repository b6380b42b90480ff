"""The contract of every online detector: one body, all of River's that streammon wraps."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import pytest

from streammon.models import OF_RATES
from streammon_processors.detectors.detector import KINDS, Verdict, Watch, Watcher
from streammon_processors.detectors.preparation import Preparation

STEP_S = 300.0
WARM_UP_S = 100 * STEP_S
COOL_DOWN_S = 50 * STEP_S


def watch(detector: str, seed: int = 7) -> Watch:
    transform = "rate" if detector in OF_RATES else "identity"
    preparation = Preparation(transform, "none", WARM_UP_S)  # type: ignore[arg-type]  # mypy does not see the literals
    return Watch(detector, preparation, cool_down_s=COOL_DOWN_S, seed=seed)


def series(detector: str, before: int, after: int, seed: int = 1) -> list[float]:
    """Values without a change, and values after a large one: what a detector of that kind is for."""
    rng = np.random.default_rng(seed)
    if detector == "eddm":  # single events
        found = np.concatenate([rng.random(before) < 0.05, rng.random(after) < 0.5]).astype(float)
    elif detector in OF_RATES:
        found = np.concatenate([rng.binomial(500, 0.05, before), rng.binomial(500, 0.6, after)]) / 500
    else:
        found = np.concatenate([rng.normal(size=before), rng.normal(4.0, size=after)])
    return [float(each) for each in found]


def run(watcher: Watcher, values: Iterable[float], first: int = 0, count: float = 500.0) -> list[Verdict | None]:
    events = 1.0 if watcher.watch.detector == "eddm" else count
    return [watcher.update((first + number) * STEP_S, value, events) for number, value in enumerate(values)]


def alarms(verdicts: Iterable[Verdict | None]) -> list[Verdict]:
    return [each for each in verdicts if each and each.changed and each.drifted]


@pytest.fixture(params=sorted(KINDS))
def detector(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_a_large_change_is_found_once_and_not_before_it_is_there(detector: str) -> None:
    before = 1500
    found = alarms(run(watch(detector).open(), series(detector, before, 400)))
    assert found
    at = found[0].end_unix_s / STEP_S
    assert before <= at < before + 300
    again = [each for each in found[1:] if each.end_unix_s < found[0].end_unix_s + COOL_DOWN_S]
    assert not again


def test_nothing_is_said_while_it_learns_what_is_usual(detector: str) -> None:
    verdicts = run(watch(detector).open(), series(detector, 100, 0))
    assert not any(verdicts)


def test_a_constant_is_no_change(detector: str) -> None:
    assert not alarms(run(watch(detector).open(), [0.25] * 800))
    assert not alarms(run(watch(detector).open(), [0.0] * 800))


def test_a_step_of_a_constant_is_found_where_scale_is_nothing() -> None:
    found = alarms(run(watch("page_hinkley").open(), [0.25] * 500 + [0.5] * 100))
    assert found


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_ignored_and_counted(detector: str, bad: float) -> None:
    values = series(detector, 1500, 300)
    plain, spoilt = watch(detector).open(), watch(detector).open()
    expected = run(plain, values)
    for number, value in enumerate(values):
        spoilt.update(number * STEP_S, bad, 500.0)
        events = 1.0 if detector == "eddm" else 500.0
        assert spoilt.update(number * STEP_S, value, events) == expected[number] or number in _ends(expected)
    assert spoilt.ignored == len(values)
    assert plain.ignored == 0


def _ends(verdicts: list[Verdict | None]) -> set[int]:
    """Where a cool-down is over: whoever comes first hears of it, even what is no number."""
    return {number for number, each in enumerate(verdicts) if each and each.changed and not each.drifted}


def test_impossible_rates_and_windows_without_events_are_ignored(detector: str) -> None:
    watcher = watch(detector).open()
    assert watcher.update(0.0, 0.5, 0.0) is None
    assert watcher.update(0.0, 0.5, math.nan) is None
    assert watcher.update(0.0, 0.5, -1.0) is None
    assert watcher.ignored == 3
    if detector in OF_RATES:
        watcher.update(0.0, 1.5, 10.0)
        assert watcher.ignored == 4


def test_a_restored_watcher_goes_on_to_the_bit(detector: str) -> None:
    values = series(detector, 1200, 400)
    expected_watcher = watch(detector).open()
    expected = run(expected_watcher, values)
    for cut in (1, 150, 1201, 1240):
        first = watch(detector).open()
        head = run(first, values[:cut])
        dumped = first.dump()
        again = watch(detector).open()
        again.load(dumped)
        assert again.dump() == dumped
        assert head + run(again, values[cut:], first=cut) == expected, cut
        assert again.dump() == expected_watcher.dump(), cut


def test_the_same_seed_finds_the_same(detector: str) -> None:
    values = series(detector, 800, 200)
    one, other = watch(detector, seed=3).open(), watch(detector, seed=3).open()
    assert run(one, values) == run(other, values)
    assert one.dump() == other.dump()


def test_its_state_is_bounded_however_long_it_runs(detector: str) -> None:
    watcher = watch(detector).open()
    bound = watcher.watch.state_bytes
    for start in range(0, 2400, 600):
        run(watcher, series(detector, 600, 0, seed=start), first=start)
        assert len(watcher.dump()) <= bound
    assert not KINDS[detector].state_bytes > 8192


def test_after_the_cool_down_it_says_so_and_watches_the_new_level(detector: str) -> None:
    values = series(detector, 1200, 1200)
    verdicts = run(watch(detector).open(), values)
    changes = [each for each in verdicts if each and each.changed]
    assert [each.drifted for each in changes[:2]] == [True, False]
    lasted = changes[1].end_unix_s - changes[0].end_unix_s
    assert COOL_DOWN_S <= lasted <= COOL_DOWN_S + STEP_S
    during = [each for each in verdicts if each and changes[0].end_unix_s <= each.end_unix_s < changes[1].end_unix_s]
    assert all(each.drifted for each in during)
    assert len(alarms(verdicts)) <= 2, "the new level is the usual one"


def test_another_setting_begins_anew_but_knows_what_is_usual(detector: str) -> None:
    first = watch(detector).open()
    run(first, series(detector, 400, 0))
    named = {"page_hinkley": "threshold", "adwin": "grace_period", "kswin": "alpha", "fhddm": "confidence_level"}
    name = named.get(detector, "warm_start" if detector in ("ddm", "eddm") else "drift_confidence")
    changed = Watch(detector, first.watch.preparation, {name: 0.1 if detector in ("kswin", "fhddm") else 9})
    if detector.startswith("hddm"):
        changed = Watch(detector, first.watch.preparation, {name: 0.01})
    again = changed.open()
    again.load(first.dump())
    assert getattr(again._river, name) == changed.settings[name]
    verdict = run(again, series(detector, 1, 0), first=400)[0]
    assert verdict is not None, "it need not warm up again"
