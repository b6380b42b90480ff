"""Which settings keep to a budget of false alarms on a history of one's own, and how soon they would find a change.

A month of a history is too short to see one false alarm in twelve. So many months are made of it that behave as it
does: a *stationary bootstrap* (Politis & Romano 1994) in which blocks, of a day on average and of random length,
follow each other, each beginning at the same time of the day (or of the week) at which the last one ended. What
remains is the season, the distribution, and how values hang together within about a block; what is lost is anything
slower, such as a trend. Incidents in the history count as normal: leave them out of the range.

Of each candidate, the most sensitive settings are chosen of which the months made show, with 95 % confidence, no more
alarms than its share of the budget. The delay is measured on other months, into which a shift is built.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import ceil, floor, inf, log
from typing import Final, NamedTuple

import numpy as np
from msgspec import Struct
from numpy.typing import NDArray

from streammon.errors import ConfigError
from streammon_processors.detectors.budget import MONTH_S, interval, upper_bound
from streammon_processors.detectors.detector import Watch
from streammon_processors.detectors.preparation import Transform
from streammon_processors.detectors.season import DAY, WEEK

Floats = NDArray[np.float64]
MONTHS: Final = 60
DELAYS: Final = 20
"""Months that are made to count false alarms in, and runs in which a shift is to be found."""
LEAST_DAYS: Final = 3
DAYS_BEFORE: Final = 7.0
DAYS_AFTER: Final = 7.0
_GRIDS: Final[Mapping[str, tuple[str, Sequence[float]]]] = {
    "adwin": ("delta", (1e-2, 1e-3, 1e-4, 1e-5, 1e-6, 1e-8, 1e-10, 1e-14)),
    "hddm_a": ("drift_confidence", (1e-2, 1e-3, 1e-4, 1e-6, 1e-8, 1e-12, 1e-16)),
}
"""What else is tried, from the most sensitive on; `page_hinkley` needs no grid."""

_NOTHING: Final = -1  # the row without a value, of times of the day at which the history has none


class History(NamedTuple):
    """Values of one target, in steps of equal length; NaN where there is none."""

    name: str
    starts: Floats
    values: Floats
    counts: Floats
    step_s: float

    @property
    def days(self) -> float:
        return float(np.isfinite(self.values).sum()) * self.step_s / DAY.period_s


class Delay(Struct, frozen=True):
    """How soon a shift was found."""

    effect: float
    """In standard deviations of the history, its season aside."""
    found: float
    """In how many of the runs, within a week."""
    median_s: float | None


class Candidate(Struct, frozen=True):
    """A detector, and the settings that were chosen for it."""

    detector: str
    settings: dict[str, float]
    months: int
    alarms: int
    """In all months that were made, of the settings chosen."""
    false_alarms_per_month: float
    low: float
    high: float
    """Between which, with 95 % confidence, it lies."""
    within_budget: bool
    delays: list[Delay]

    @property
    def merit(self) -> tuple[float, ...]:
        """Less is better: what keeps to the budget, and then what finds more, and sooner."""
        unfound = sum(1.0 - each.found for each in self.delays)
        slow = sum(each.median_s if each.median_s is not None else 30 * 86_400.0 for each in self.delays)
        return (not self.within_budget, round(unfound, 3), slow)


class Calibration(Struct, frozen=True):
    """What was found for one target."""

    target: str
    history_days: float
    allowed_per_month: float
    candidates: list[Candidate]

    @property
    def best(self) -> Candidate:
        return min(self.candidates, key=lambda each: each.merit)

    @property
    def warning(self) -> str | None:
        """What a person has to know of it."""
        needed = ceil(upper_bound(0, 1.0) / self.allowed_per_month)
        if self.best.months < needed:
            return f"too few months were made to show that the budget is kept: --months {needed} or more can"
        if not self.best.within_budget:
            return f"no candidate keeps to {self.allowed_per_month:.3f} false alarms a month"
        if self.best.delays and max(each.found for each in self.best.delays) < 0.75:
            return "these shifts are mostly not found in a week: the history shifts itself; take one without incidents"
        return None


Progress = Callable[[str], None]


@dataclass(frozen=True)
class Plan:
    """How thoroughly it is done."""

    allowed_per_month: float
    effects: Sequence[float] = (0.5, 1.0, 2.0)
    months: int = MONTHS
    runs: int = DELAYS
    block_s: float = DAY.period_s
    seed: int = 1


def calibrate(history: History, watch: Watch, candidates: Sequence[str], plan: Plan, progress: Progress) -> Calibration:
    """Try candidates on months made of a history; ``watch`` says how the target is prepared.

    Raises:
        ConfigError: the history is too short to make anything of.
    """
    _check(history, watch)
    made = Bootstrap(history, watch, plan)
    found = []
    for detector in candidates:
        own = replace(watch, detector=detector, settings={})
        progress(f"{history.name}: {detector}: false alarms in {plan.months} months")
        settings, alarms = _chosen(own, made, plan)
        progress(f"{history.name}: {detector}: delays of {len(plan.effects)} shifts")
        delays = list(_delays(replace(own, settings=settings), made, plan))
        found.append(_candidate(detector, settings, alarms, delays, plan))
    return Calibration(history.name, history.days, plan.allowed_per_month, found)


def _check(history: History, watch: Watch) -> None:
    least = LEAST_DAYS if watch.preparation.season != "week" else 21
    if history.days < least:
        raise ConfigError(
            f"{history.name}: the history has {history.days:.1f} days of values, and {least} are needed to learn "
            f"the season (detectors.season {watch.preparation.season}); take a longer range"
        )


def _candidate(detector: str, settings: Mapping[str, float], alarms: int, delays: list[Delay], plan: Plan) -> Candidate:
    low, high = interval(alarms, plan.months)
    within = upper_bound(alarms, plan.months) <= plan.allowed_per_month
    return Candidate(
        detector, dict(settings), plan.months, alarms, alarms / plan.months, low, high, within, delays
    )  # fmt: skip


# --- months that behave as the history ------------------------------------------------------------------------------


class Bootstrap:
    """Makes as much as is wanted of a history, always the same."""

    def __init__(self, history: History, watch: Watch, plan: Plan) -> None:
        self._plan = plan
        self._history = history
        self._slots = np.floor(history.starts / history.step_s + 0.5).astype(np.int64)
        week = watch.preparation.season == "week"
        self._period = max(1, floor((WEEK if week else DAY).period_s / history.step_s + 0.5))
        self._warm_up = floor(watch.preparation.warm_up_s / history.step_s) + 1
        self._values, self._counts = np.append(history.values, np.nan), np.append(history.counts, 0.0)
        self._phases = self._by_phase()

    @property
    def step_s(self) -> float:
        return self._history.step_s

    @property
    def warm_up(self) -> int:
        return self._warm_up

    def of_days(self, days: float) -> int:
        return floor(days * DAY.period_s / self.step_s + 0.5)

    def month(self, number: int) -> tuple[Floats, Floats, Floats]:
        """Ends, values and counts of a month, after as long as the detector warms up."""
        return self.make(number, self._warm_up + floor(MONTH_S / self.step_s))

    def make(self, number: int, steps: int) -> tuple[Floats, Floats, Floats]:
        """The same of any length; another one for another number."""
        rows = self._rows(np.random.default_rng([self._plan.seed, number]), steps)
        ends = (self._slots[0] + np.arange(steps) + 1) * self.step_s
        return ends, self._values[rows], self._counts[rows]

    def _by_phase(self) -> list[NDArray[np.int64]]:
        """Where in the history each time of the day is."""
        phases = self._slots % self._period
        order = np.argsort(phases, kind="stable")
        cuts = np.searchsorted(phases[order], np.arange(self._period + 1))
        return [order[low:high] for low, high in pairwise(cuts)]

    def _rows(self, random: np.random.Generator, steps: int) -> NDArray[np.int64]:
        """Blocks of the history, one after the other, each beginning at the time of the day at which the last ended."""
        found: list[NDArray[np.int64]] = []
        total, phase = 0, int(self._slots[0] % self._period)
        while total < steps:
            length = int(random.geometric(self.step_s / max(self._plan.block_s, self.step_s)))
            there = self._phases[phase % self._period]
            if not len(there):
                found.append(np.array([_NOTHING]))
                total, phase = total + 1, phase + 1
                continue
            start = int(random.choice(there))
            block = np.arange(start, min(start + length, len(self._slots), start + steps - total))
            block = block[: self._until_gap(block)]
            found.append(block)
            total, phase = total + len(block), phase + len(block)
        return np.concatenate(found)[:steps]

    def _until_gap(self, block: NDArray[np.int64]) -> int:
        """A block ends where rows of the history are missing: the time of the day would be another one after it."""
        gaps = np.flatnonzero(np.diff(self._slots[block]) != 1)
        return int(gaps[0]) + 1 if len(gaps) else len(block)


# --- false alarms ---------------------------------------------------------------------------------------------------


def _chosen(watch: Watch, made: Bootstrap, plan: Plan) -> tuple[dict[str, float], int]:
    """The most sensitive settings that keep to the budget, and how often they alarmed."""
    if watch.detector == "page_hinkley":
        return _chosen_threshold(watch, made, plan)
    name, grid = _GRIDS[watch.detector]
    low, high = 0, len(grid) - 1
    tried: dict[int, int] = {}
    while low < high:
        middle = (low + high) // 2
        tried[middle] = _alarms(replace(watch, settings={name: grid[middle]}), made, plan)
        low, high = (low, middle) if _fits(tried[middle], plan) else (middle + 1, high)
    settings = {name: grid[low]}
    alarms = tried[low] if low in tried else _alarms(replace(watch, settings=settings), made, plan)
    return settings, alarms


def _fits(alarms: int, plan: Plan) -> bool:
    return alarms <= _most_alarms(plan)


def _most_alarms(plan: Plan) -> int:
    """As many alarms in all months as prove, with 95 % confidence, that the budget is kept; 0 if nothing can."""
    most = 0
    while upper_bound(most + 1, plan.months) <= plan.allowed_per_month:
        most += 1
    return most


def _alarms(watch: Watch, made: Bootstrap, plan: Plan) -> int:
    return sum(len(_alarms_of(watch, made.month(number))) for number in range(plan.months))


def _alarms_of(watch: Watch, series: tuple[Floats, Floats, Floats]) -> list[float]:
    watcher, found = watch.open(), []
    for end, value, count in zip(*(column.tolist() for column in series), strict=True):
        verdict = watcher.update(end, value, count)
        if verdict and verdict.changed and verdict.drifted:
            found.append(end)
    return found


def _chosen_threshold(watch: Watch, made: Bootstrap, plan: Plan) -> tuple[dict[str, float], int]:
    """By the heights that the sums reach in each month: what would have alarmed below a threshold follows from them."""
    tops = sorted((top for number in range(plan.months) for top in _tops(watch, made.month(number))), reverse=True)
    most = _most_alarms(plan)
    if len(tops) <= most:
        return {"threshold": 1.0}, len(tops)
    threshold = float(np.ceil(tops[most] * 10.0 + 1.0) / 10.0)
    if not most and upper_bound(0, plan.months) > plan.allowed_per_month:
        threshold = round(threshold + _further(watch, plan), 1)
    return {"threshold": threshold}, sum(top > threshold for top in tops)


def _further(watch: Watch, plan: Plan) -> float:
    """How much higher than all that was seen, where too little was made to see one in so many months.

    The rate of a sum's reaching a height falls as exp(-2 k h), k being about half the smallest shift that matters.
    """
    return log(upper_bound(0, plan.months) / plan.allowed_per_month) / max(watch.effect, 0.1)


def _tops(watch: Watch, series: tuple[Floats, Floats, Floats]) -> Iterator[float]:
    """The greatest height of each excursion of the sums, that is until they are low again for a cool-down."""
    watcher = replace(watch, settings={"threshold": 1e12}).open()
    top, since = 0.0, -inf
    for end, value, count in zip(*(column.tolist() for column in series), strict=True):
        verdict = watcher.update(end, value, count)
        if verdict is None:
            continue
        if verdict.statistic > top:
            top, since = verdict.statistic, end
        elif top and verdict.statistic < top / 2.0 and end - since >= watch.cool_down_s:
            yield top
            top, since = verdict.statistic, end
    if top:
        yield top


# --- delays ---------------------------------------------------------------------------------------------------------


def _delays(watch: Watch, made: Bootstrap, plan: Plan) -> Iterator[Delay]:
    """How soon shifts of some sizes are found, from a moment at which the detector knows what is usual.

    An alarm that comes without the shift, too, has not found it.
    """
    anyway = [_delay(watch, made, plan, number, 0.0) for number in range(plan.runs)]
    for effect in plan.effects:
        delays = [_delay(watch, made, plan, number, effect) for number in range(plan.runs)]
        own = [mine if mine < other else inf for mine, other in zip(delays, anyway, strict=True)]
        median = float(np.median(own))
        yield Delay(effect, float(np.mean(np.isfinite(own))), None if median == inf else median)


def _delay(watch: Watch, made: Bootstrap, plan: Plan, number: int, effect: float) -> float:
    """From a shift to the first alarm after it; infinite if there is none in a week."""
    before = made.warm_up + made.of_days(DAYS_BEFORE)
    ends, values, counts = made.make(plan.months + number, before + made.of_days(DAYS_AFTER))
    at = float(ends[before]) - made.step_s
    shifted = shift(ends, values, counts, effect, watch.preparation.transform, before)
    return min((each - at for each in _alarms_of(watch, (ends, shifted, counts)) if each > at), default=inf)


def shift(ends: Floats, values: Floats, counts: Floats, effect: float, transform: Transform, first: int) -> Floats:
    """The same values, but that from one on they are so many standard deviations worse.

    Durations and tokens, of which logs are looked at, are longer; confidence is less. The season of a day is no
    deviation.
    """
    known = np.isfinite(values) & (counts > 0)
    seen = transformed(transform, np.where(known, values, 0.5))
    seen[first:] += effect * _deviation(ends, seen, known) * (-1.0 if transform == "logit" else 1.0)
    back = np.exp(seen) if transform == "log" else 1.0 / (1.0 + np.exp(-seen)) if transform == "logit" else seen
    changed = np.clip(back, 0.0, 1.0) if transform == "rate" else back
    return np.where(known & (np.arange(len(values)) >= first), changed, values)


def transformed(transform: Transform, values: Floats) -> Floats:
    """As `preparation` sees them."""
    if transform == "log":
        return np.log(np.maximum(values, 1e-9))
    if transform == "logit":
        inside = np.clip(values, 1e-4, 1.0 - 1e-4)
        return np.log(inside / (1.0 - inside))
    return values.copy()


def _deviation(ends: Floats, values: Floats, known: NDArray[np.bool_]) -> float:
    """Standard deviation about the mean of the hour of the day; of a constant, a hundredth of its size."""
    hours = np.floor(ends / 3600.0).astype(np.int64) % 24
    by_hour = (values[known & (hours == hour)] for hour in range(24))
    spread = [float(each.var()) for each in by_hour if len(each) > 1]
    deviation = float(np.sqrt(np.mean(spread))) if spread else 0.0
    return deviation or max(0.01 * abs(float(values[known].mean())) if known.any() else 0.0, 1e-6)
