"""How often online detectors are wrong, how soon they are right, and what they cost; beside River's with its own
defaults.

`python -m bench detectors` simulates some months; `python -m bench detectors --months 600` as many of each kind, which
takes half an hour; `--only delay` or `--only budget,cost` leaves out the others. Values are means or counts of five
minutes.

*Budget*: one false alarm a month and model, half of it for the online detectors, a sixth of that for each. The table
gives alarms a month where nothing happens, of one detector times six, with the upper end of its 95 % interval.

*Delay*: from the change, after ten days without one, to the first alarm: median, and how many of the runs found it in
seven days. A detector that has alarmed within the day before the change is none the wiser after it.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import numpy as np
from river import drift
from river.drift import binary

from streammon.models import DETECTED, ONLINE_SHARE, ModelPolicy, Use
from streammon_processors.detectors.budget import MONTH_S, interval, upper_bound
from streammon_processors.detectors.detector import KINDS
from streammon_processors.detectors.watching import watch_of
from tests.series import DAY_S, Floats, Random, autoregressive

STEP_S = 300.0
DAY = round(DAY_S / STEP_S)
MONTH = round(MONTH_S / STEP_S)
WARM_UP = 2 * DAY
BEFORE, AFTER = 10 * DAY, 7 * DAY
EVENTS = 100
Series: TypeAlias = Callable[[Random, int], Floats]
Found: TypeAlias = list[int]
"""At which values a detector alarmed."""


# --- series ---------------------------------------------------------------------------------------------------------


def hours(count: int) -> Floats:
    return np.arange(count, dtype=np.float64) * (24.0 / DAY)


def season(count: int) -> Floats:
    return np.asarray(3.0 * np.sin(hours(count) * 2 * np.pi / 24.0))


def office(count: int) -> Floats:
    open_now = (hours(count) % 24 > 8) & (hours(count) % 24 < 18)
    return np.asarray(10.0 * open_now, dtype=np.float64)


def slow(random: Random, count: int) -> Floats:
    found: Floats = autoregressive(random, 1, count, 0.9)[0]
    return found


SERIES: dict[str, Series] = {
    "independent, normal": lambda random, count: random.standard_normal(count),
    "AR(1), 0.9": slow,
    "daily season of 3 sigma": lambda random, count: season(count) + random.standard_normal(count),
    "the same, AR(1) 0.9": lambda random, count: season(count) + slow(random, count),
    "office hours of 10 sigma": lambda random, count: office(count) + random.standard_normal(count),
    "Student t, 3 degrees": lambda random, count: random.standard_t(3, count) / np.sqrt(3.0),
    "lognormal, not logged": lambda random, count: np.exp(random.standard_normal(count)) / 2.16,
    "AR(1) 0.9 under noise": lambda random, count: (slow(random, count) + random.standard_normal(count)) / np.sqrt(2.0),
    "AR(1), 0.98": lambda random, count: autoregressive(random, 1, count, 0.98)[0],
}
"""Of standard deviation 1, the season aside."""
SHIFTED = tuple(name for name in SERIES if name not in ("the same, AR(1) 0.9", "lognormal, not logged", "AR(1), 0.98"))
RATES: dict[str, tuple[float, float]] = {
    "errors, 2 % of 100": (0.02, 100.0),
    "errors, 2 % of 1,000": (0.02, 1000.0),
    "errors, 0.1 % of 100": (0.001, 100.0),
}


def errors(random: Random, count: int, rate: float, events: float) -> tuple[Floats, Floats]:
    """Errors, and events, which come and go with the day."""
    of = random.poisson(events * (1.0 + 0.5 * np.sin(hours(count) * 2 * np.pi / 24.0)))
    return random.binomial(of, rate).astype(float), of.astype(float)


# --- detectors ------------------------------------------------------------------------------------------------------


def ours(target: str, detector: str = "page_hinkley") -> Callable[[Floats, Floats], Found]:
    """As the task has it, with the share of the budget that one of `DETECTED` has by default."""
    policy = ModelPolicy()
    watch = watch_of(policy, target, Use(detector))  # type: ignore[arg-type]  # names of KINDS

    def alarms(values: Floats, events: Floats) -> Found:
        watcher, found = watch.open(), []
        watcher.allow(ONLINE_SHARE * policy.max_false_alarms_per_month / len(DETECTED))
        for at, (value, of) in enumerate(zip(values.tolist(), events.tolist(), strict=True)):
            verdict = watcher.update((at + 1) * STEP_S, value, of)
            if verdict and verdict.changed and verdict.drifted:
                found.append(at)
        return found

    return alarms


def rivers(make: Callable[[], Any]) -> Callable[[Floats, Floats], Found]:
    """As River's documentation uses it: values as they are, settings as they come."""

    def alarms(values: Floats, events: Floats) -> Found:
        detector, found = make(), []
        for at, value in enumerate(values.tolist()):
            detector.update(value)
            if detector.drift_detected and at >= WARM_UP:
                found.append(at)
        return found

    return alarms


RAW: dict[str, Callable[[], Any]] = {
    "PageHinkley()": drift.PageHinkley,
    "ADWIN()": drift.ADWIN,
    "KSWIN()": lambda: drift.KSWIN(seed=1),
}
RAW_RATES: dict[str, Callable[[], Any]] = {
    "PageHinkley()": drift.PageHinkley,
    "ADWIN()": drift.ADWIN,
    "DDM()": binary.DDM,
    "HDDM_A()": binary.HDDMA,
}


# --- measured -------------------------------------------------------------------------------------------------------


def budget(months: int, raw_months: int) -> Iterator[str]:
    """Alarms where nothing happens."""
    share = len(DETECTED)
    cases: list[tuple[str, str, Callable[[Random, int], tuple[Floats, Floats]], dict[str, Callable[[], Any]]]] = []
    cases += [(name, "score", _plain(made), RAW) for name, made in SERIES.items()]
    cases += [(name, "error", _rate(*about), RAW_RATES) for name, about in RATES.items()]
    yield f"{'nothing happens':28}{'ours, a model':>24}" + "raw River, one detector: alarms a month".rjust(64)
    for name, target, made, raw in cases:
        alarms = sum(len(ours(target)(*made(np.random.default_rng(seed), WARM_UP + MONTH))) for seed in range(months))
        rate = f"{share * alarms / months:.2f} (≤ {share * upper_bound(alarms, months, 0.975):.2f})"
        counts = {
            each: sum(
                len(rivers(make)(*made(np.random.default_rng(seed), WARM_UP + MONTH))) for seed in range(raw_months)
            )
            for each, make in raw.items()
            if each != "KSWIN()" or name == "independent, normal"
        }
        others = ", ".join(f"{each} {count / raw_months:.0f}" for each, count in counts.items())
        yield f"{name:28}{rate:>24}{others:>64}"


def _plain(made: Series) -> Callable[[Random, int], tuple[Floats, Floats]]:
    return lambda random, count: (made(random, count), np.full(count, float(EVENTS)))


def _rate(rate: float, events: float) -> Callable[[Random, int], tuple[Floats, Floats]]:
    def made(random: Random, count: int) -> tuple[Floats, Floats]:
        bad, of = errors(random, count, rate, events)
        return np.divide(bad, of, out=np.zeros(count), where=of > 0), of

    return made


def delay(runs: int) -> Iterator[str]:
    """How soon shifts are found."""
    shifts = (0.5, 1.0, 2.0)
    yield f"{'shift of':28}" + "".join(f"{f'{shift:g} sigma':>20}" for shift in shifts)
    others = {f"  {each}": rivers(make) for each, make in RAW.items() if each != "KSWIN()"}
    for name in SHIFTED:
        for whose, alarms in {name: ours("score"), **others}.items():
            told = [_found(runs, _plain(SERIES[name]), alarms, _shifted(shift)) for shift in shifts]
            yield f"{whose:28}" + "".join(f"{each:>20}" for each in told)
    yield "errors from 2 % to 5 %"
    all_of_rates = {"ours": ours("error"), **{each: rivers(make) for each, make in RAW_RATES.items()}}
    for events in (100.0, 1000.0):
        for whose, alarms in all_of_rates.items():
            told_of = f"  {whose}, of {events:g}"
            yield f"{told_of:28}{_found(runs, _changed(events), alarms, _shifted(0.0)):>20}"


def _shifted(by: float) -> Callable[[Floats], Floats]:
    return lambda values: values + np.where(np.arange(len(values)) >= BEFORE, by, 0.0)


def _changed(events: float) -> Callable[[Random, int], tuple[Floats, Floats]]:
    def made(random: Random, count: int) -> tuple[Floats, Floats]:
        before, after = _rate(0.02, events)(random, count), _rate(0.05, events)(random, count)
        late = np.arange(count) >= BEFORE
        return np.where(late, after[0], before[0]), np.where(late, after[1], before[1])

    return made


def _found(
    runs: int,
    made: Callable[[Random, int], tuple[Floats, Floats]],
    alarms: Callable[[Floats, Floats], Found],
    change: Callable[[Floats], Floats],
) -> str:
    delays = []
    for seed in range(runs):
        values, events = made(np.random.default_rng(10_000 + seed), BEFORE + AFTER)
        found = alarms(change(values), events)
        after = [at - BEFORE + 1 for at in found if at >= BEFORE]
        delays.append(min(after) if after else np.inf)
    middle = float(np.median(delays)) * STEP_S / 3600.0
    share = np.mean(np.isfinite(delays))
    return f"{middle:.1f} h ({share:.0%})" if np.isfinite(middle) else f"- ({share:.0%})"


def cost() -> Iterator[str]:
    """Microseconds a value, and bytes of a snapshot."""
    for name in KINDS:
        target = "error" if name in ("ddm", "eddm", "hddm_a", "hddm_w", "fhddm") else "score"
        watcher = watch_of(ModelPolicy(), target, Use(name)).open()  # type: ignore[arg-type]  # names of KINDS
        values = np.random.default_rng(1).random(4000) / 10
        started = time.process_time()
        for at, value in enumerate(values.tolist()):
            watcher.update(at * STEP_S, value, EVENTS)
        spent = (time.process_time() - started) / len(values)
        yield f"{name:16}{spent * 1e6:8.1f} us a value{len(watcher.dump()):10,} bytes"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--months", type=int, default=20)
    parser.add_argument("--raw-months", type=int, default=3)
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--only", default="cost,budget,delay")
    asked = parser.parse_args()
    low, high = interval(0, asked.months)
    print(f"with {asked.months} months, no alarm means {low:.2f} to {high * len(DETECTED):.2f} a month and model")
    parts = {"cost": cost(), "budget": budget(asked.months, asked.raw_months), "delay": delay(asked.runs)}
    for name in asked.only.split(","):
        for line in parts[name]:
            print(line, flush=True)


if __name__ == "__main__":
    main()
