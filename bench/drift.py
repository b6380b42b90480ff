"""What tests of drift cost, and how often they are wrong: a window of 100 targets, and months in which nothing happens.

`python -m bench.drift` measures the cost, and simulates some months; `python -m bench.drift months 20` as many as you
like; `python -m bench.drift levels` counts the windows in which nothing happened and anything was called drifted, over
what the level allows, for levels that are reached more often than that of a month.

In a simulated month every hour is tested against the reference of 1,000 or 5,000 values, by the default policy, whose
share of the budget is half a false alarm a month. A false alarm is an hour in which anything is called drifted.

Where values of an hour are like each other (AR(1), φ = 0.9), or change with the time of day, something has changed from
hour to hour; the table says what the ways to live with that are worth.
"""

from __future__ import annotations

import sys
import time
from typing import Any, NamedTuple, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter

from streammon.models import ONLINE_SHARE, DriftPolicy, ModelPolicy, Models, ReferencePolicy
from streammon.profiles import PROFILES, REFERENCES, Reference, TargetReference
from streammon_processors.contract import Stored
from streammon_processors.drift import DriftTask
from streammon_processors.drift.compare import compare, judge
from streammon_processors.drift.multiplicity import alpha_of
from streammon_processors.drift.past import Past, coarse, coarse_frame
from streammon_processors.drift.sample import Sample, Side, of_reference
from streammon_processors.drift.usual import Usual
from tests.profiled import profile, reference

Floats: TypeAlias = NDArray[np.float64]

HOUR_S = 3600.0
HOURS = 30 * 24
WEEK = 7 * 24
TARGETS = 20
BINS = 64
PHI = 0.9
SEASON = 0.5  # standard deviations, up and down in a day

# ---------------------------------------------------------------- months in which nothing happens


class Case(NamedTuple):
    name: str
    values: str
    reference: int
    size: int
    """Values an hour."""
    policy: DriftPolicy = DriftPolicy()
    automatic: bool = False
    """The reference is of the first values, and what is usual is learned."""


SAME_HOUR = DriftPolicy(reference=ReferencePolicy(same_hour_last_week=True))
ROLLING = DriftPolicy(reference=ReferencePolicy(rolling="7d"))
NO_FLOOR = DriftPolicy(threshold=1e-9, share_threshold=1e-9)
CASES = (
    *(
        Case(f"iid, reference of {n:,}, {m:,} an hour{', no floor' * bool(policy is NO_FLOOR)}", "iid", n, m, policy)
        for policy in (DriftPolicy(), NO_FLOOR)
        for n in (1000, 5000)
        for m in (200, 3000)
    ),
    Case("heavy tails (Cauchy), no floor", "heavy", 1000, 1000, NO_FLOOR),
    Case("iid, automatic", "iid", 1000, 300, automatic=True),
    Case("heavy tails (Cauchy), automatic", "heavy", 1000, 300, automatic=True),
    *(Case(f"AR(1), {size:,} an hour, automatic", "ar1", 1000, size, automatic=True) for size in (300, 1000, 3000)),
    *(Case(f"daily season, {size:,} an hour, automatic", "season", 1000, size, automatic=True) for size in (300, 3000)),
    *(Case(f"daily season × {times}, automatic", f"season{times}", 1000, 1000, automatic=True) for times in (2, 4)),
    Case("AR(1), 3,000 an hour", "ar1", 5000, 3000),
    Case("AR(1), 3,000 an hour, threshold 0.3", "ar1", 5000, 3000, DriftPolicy(threshold=0.3)),
    Case("AR(1), 300 an hour", "ar1", 5000, 300),
    Case("AR(1), 300 an hour, against 7 d", "ar1", 5000, 300, ROLLING),
    Case("daily season, against the first 5,000", "season", 5000, 1000),
    Case("daily season, against 7 d", "season", 5000, 1000, ROLLING),
    Case("daily season, against the same hour last week", "season", 5000, 1000, SAME_HOUR),
)


def drawn(kind: str, rng: np.random.Generator, first_hour: float, size: int, hours: float) -> Floats:
    """Values of a target, so many hours of ``size`` each."""
    count = round(size * hours)
    if kind == "heavy":
        return rng.standard_cauchy(count)
    noise = rng.normal(size=count)
    if kind == "ar1":
        return np.asarray(lfilter([np.sqrt(1 - PHI**2)], [1, -PHI], noise))
    if kind.startswith("season"):
        at = first_hour + np.arange(count) / size
        return np.asarray(noise + SEASON * float(kind[6:] or 1) * np.sin(2 * np.pi * at / 24))
    return noise


def frame_of(values: list[Floats]) -> Reference:
    return Reference(
        id="r", service="s", model="m", origin="made", made_unix_s=0.0, sample_size=len(values[0]),
        targets={f"t{at:02}": _target(each) for at, each in enumerate(values)},
    )  # fmt: skip


def _target(values: Floats) -> TargetReference:
    low, high = values.min(), values.max()
    inner = np.quantile(values, np.arange(1, BINS) / BINS, method="inverted_cdf")
    edges = np.unique([np.nextafter(low, -np.inf), *inner, high])
    return TargetReference(
        kind="numeric", count=len(values), types={"number": len(values)}, edges=edges.tolist(),
        bins=_counted(edges, values), min=float(low), max=float(high), mean=float(values.mean()),
        std=float(values.std()),
    )  # fmt: skip


def _counted(edges: Floats, values: Floats) -> list[int]:
    counts: list[int] = np.bincount(np.searchsorted(edges, values), minlength=len(edges) + 1).tolist()
    return counts


def month(case: Case, seed: int) -> int:
    """False alarms in 30 days; of a rolling reference, after its first week."""
    rng, kind = np.random.default_rng(seed), case.values
    hours = case.reference / case.size
    frame = frame_of([drawn(kind, rng, 0.0, case.size, hours) for _ in range(TARGETS)])
    frame.automatic, frame.since_unix_s = case.automatic, 0.0
    past, has_past, usual = Past(), case.policy.reference != ReferencePolicy(), Usual()
    alpha = alpha_of(1 - ONLINE_SHARE, case.policy.window_s, 1)
    alarms = 0
    series = [drawn(kind, rng, hours, case.size, HOURS + WEEK * has_past) for _ in range(TARGETS)]
    for hour in range(HOURS + WEEK * has_past):
        now = _sample(frame, [each[hour * case.size : (hour + 1) * case.size] for each in series])
        start = hour * HOUR_S
        before = past.before("s", start, "r", case.policy) if has_past else of_reference(frame)
        past.add("s", start, "r", now, case.policy)
        if before is not None and hour >= WEEK * has_past:
            bins, current = (coarse_frame(frame), coarse(now)) if has_past else (frame, now)
            tests = usual.raised(compare(current, before, bins, case.policy), frame, start, case.policy)
            judged = judge(tests, case.policy, alpha)
            usual.learn(judged, frame, start, case.policy, alpha)
            alarms += any(each.drifted for each in judged)
    return alarms


def _sample(frame: Reference, values: list[Floats]) -> Sample:
    sides = {}
    for (name, target), each in zip(frame.targets.items(), values, strict=True):
        sides[name] = Side(len(each), 0, {"number": len(each)}, _counted(np.array(target.edges), each))
    return Sample(len(values[0]), sides)


LEVELS = (0.05, 0.005, 0.0007)


def print_levels(references: int = 200, windows: int = 40) -> None:
    """Of independent values, each reference anew: windows that are wrongly told of, as a multiple of the level."""
    for case in CASES:
        if case.values not in ("iid", "heavy"):
            continue
        rng, found = np.random.default_rng(5), []
        for _ in range(references):
            frame = frame_of([drawn(case.values, rng, 0.0, case.reference, 1) for _ in range(TARGETS)])
            before = of_reference(frame)
            for _ in range(windows):
                now = _sample(frame, [drawn(case.values, rng, 0.0, case.size, 1) for _ in range(TARGETS)])
                tests = judge(compare(now, before, frame, case.policy), case.policy, 1.0)
                found.append(min((each.q_value or 0.0 for each in tests if each.drifted and each.p_value), default=1.0))
        ratios = [f"{np.mean(np.array(found) <= level) / level:.2f} at {level:g}" for level in LEVELS]
        print(f"  {case.name:<58} {', '.join(ratios)}", flush=True)


def print_months(months: int) -> None:
    print(f"{TARGETS} numeric targets, tests hourly; allowed: 0.5 false alarms a month; {months} months each")
    for case in CASES:
        alarms = [month(case, 1000 * at + 7) for at in range(months)]
        print(f"  {case.name:<58} {np.mean(alarms):>8.2f} a month, at most {max(alarms)}", flush=True)


# ---------------------------------------------------------------- cost


def print_cost() -> None:
    """100 targets: 60 numbers in 64 bins, 30 categories, 10 that are true or false; 12 profiles an hour."""
    rng = np.random.default_rng(1)

    def values(size: int) -> dict[str, Any]:
        numbers = {f"features.n{at:02}": rng.normal(size=size).tolist() for at in range(60)}
        names = {f"features.c{at:02}": [f"c{x}" for x in rng.geometric(0.1, size)] for at in range(30)}
        return numbers | names | {f"features.b{at}": (rng.random(size) < 0.3).tolist() for at in range(10)}

    for rows in (1000, 5000):
        frame = reference(values(rows), bins=BINS)
        task = DriftTask(Models(models=(ModelPolicy(),)), 0)
        task.process(REFERENCES, [Stored(msgspec.json.encode(frame), 0, 0)])
        parts = [msgspec.json.encode(profile(values(500), frame, at * 300.0)) for at in range(36)]
        taken, tested = list[float](), list[float]()
        for offset, part in enumerate(parts):
            started = time.perf_counter()
            outputs = task.process(PROFILES, [Stored(part, offset, round(300_000 * (offset + 1)))])
            (tested if outputs else taken).append(time.perf_counter() - started)
        print(
            f"reference of {rows:,}: {np.median(taken) * 1e3:.1f} ms a profile of {len(parts[0]) / 1e3:.0f} kB, "
            f"{np.median(tested) * 1e3:.0f} ms a test of a window of 100 targets, "
            f"{len(task.snapshot())} bytes of snapshot"
        )


def main() -> None:
    if sys.argv[1:2] == ["months"]:
        print_months(int(sys.argv[2]))
    elif sys.argv[1:2] == ["levels"]:
        print_levels()
    else:
        print_cost()
        print_months(1)


if __name__ == "__main__":
    main()
