"""Which values of a series are out of the ordinary: an online, robust, seasonal baseline with a false-alarm budget.

A baseline learns from one value a window and says, before it learns from it, how far that value is from what was to be
expected. The score is in units of the bound: above 1 is an anomaly. The bound is not a number of sigmas that somebody
chose. It follows from the series' own past and from the *budget*: how many false alarms a week and series are allowed.

Everything is kept by the hour (a block), so it costs and means the same for windows of 2 s and of 1 h, the longest:

1. **Expected** = level + season. The level is the median of the last 48 hourly means with the season taken out. So a
   spike or a bad night does not move it, and a new level is normal after 24 h, when it has the majority. The season is
   a mean by hour of the day plus one by 3 h of the week (UTC), straight lines between. Each is multiplied by a weight
   w = (E[e s] - se) / E[s^2], clipped to 0..1, where e are deviations and s is what the season, before it learned of
   them, said; se is the standard error of E[e s]. Without a season w is about 0, and the season costs nothing.
2. **Two channels** are watched, each upwards and downwards, which makes four tails: the value itself (spikes), and the
   exponential mean of its deviations over an hour (small lasting shifts).
3. **Typical** deviation G of a channel: the geometric mean of the hourly maxima of the last 48 hours in which the
   value moved at all. It follows a change of the noise in days, and ignores hours of zeros.
4. **Bound** of a tail: the peaks-over-threshold estimate of extreme value theory, on hourly maxima r in units of G.
   With u, the 90 % quantile of r (Robbins-Monro), and xi, the mean of ln(r/u) over the r > u (Hill):

       bound = G u max(1, 0.1 m / p)^xi        m: share of hours that moved; p = budget / 168 / number of tails

   Hourly maxima make dependent values, and an alarm of many windows, count once. u and xi remember four weeks.
5. **An ongoing anomaly teaches nothing for 24 h** beyond its first hour, which counts as at most twice the bound; then
   it is learned like anything else. The level does not wait for that: it is the median.

Sources: Siffer et al., "Anomaly detection in streams with extreme value theory", KDD 2017 (SPOT: a threshold from a
probability, by peaks over threshold); Hill 1975 and Weissman 1978 (tail index, extreme quantiles); Robbins and Monro
1951; James and Stein 1961 (shrinkage); Ahmad et al., Neurocomputing 2017 (NAB, the benchmark). The measurements, beside
simpler methods, and what each constant matters: docs/anomaly.md.

State: 856 bytes a series, of fixed size. Time: O(1) a value, and once an hour a sort of 48 numbers. The same values
give the same bytes however they are cut into calls, because no operation joins rows (on one kind of CPU: the last bit
of `exp` may be another elsewhere).

What it cannot do: see a flat line within the bounds (write a rule on min == max); see small shifts of strongly
dependent values (an AR(1) of 0.9 hides 2 sigma); tell real incidents that come more often than the budget from what
is normal; know a week before it has seen two; say anything in the first day. A rise so slow that the level follows is
for `forecast`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from streammon.errors import ConfigError
from streammon_processors.rules.conditions.rows import Flags, Floats, Records, Rows, RowStates, in_rounds

BLOCK_S: Final = 3600.0
KEEP_FIRING_S: Final = 3600.0
"""`keep_firing_for` of a rule on anomalies: what the budget is about are alerts, and one is over an hour after its last
anomalous window. Its `for` is 0: the bounds already take account of single windows."""
_WEEK_S: Final = 604_800.0
_MONDAY: Final = 96  # the epoch is a Thursday: hour of the week 0 is Monday 00:00 UTC
_ROUNDING: Final = 1e-6  # of the level: the state keeps levels in single precision
_SMALLEST: Final = 1e-12
_LARGEST: Final = 1e18  # squares of what is larger do not fit into single precision


class Direction(StrEnum):
    """Which deviations count."""

    BOTH = "both"
    ABOVE = "above"
    BELOW = "below"


_TAILS: Final = {Direction.BOTH: [0, 1, 2, 3], Direction.ABOVE: [0, 2], Direction.BELOW: [1, 3]}
"""The tails: value above, value below, hour above, hour below."""


@dataclass(frozen=True)
class Tuning:
    """The constants of the method; `python -m bench.anomaly constants` shows what 30 % more or less of each does."""

    level_blocks: int = 48
    """Hours whose median is the level; a new level is normal after half of them."""
    warm_up_blocks: int = 24
    """Hours before the first score: one day, all that a daily season shows."""
    hold_s: float = KEEP_FIRING_S
    """Anomalies closer than this are one episode."""
    patience_s: float = 86_400.0
    """How long an ongoing anomaly teaches nothing."""
    typical_blocks: float = 48.0
    """Memory of the typical deviation, in hours that moved."""
    few_moves: float = 2.0
    """A typical deviation known from n hours is taken as exp(this / n) times larger: the large ones may yet come."""
    tail_blocks: float = 672.0
    """Memory of the tails: four weeks."""
    tail_share: float = 0.1
    """Share of the hours that are the tail."""
    tail_index: float = 0.2
    """xi of a tail that has not been seen yet: between a normal (0.15 here) and a lognormal one (0.3)."""
    tail_index_weight: float = 10.0
    """How many exceedances that belief is worth."""
    tail_start: float = 1.5
    """u, in units of the typical deviation, of a tail that has not been seen yet."""
    most_learned: float = 2.0
    """How many times the bound the peak of one hour counts at most."""
    season_days: float = 14.0
    """Memory of the season by hour of the day; that by the week remembers four times as long."""
    hour_s: float = 3600.0
    """Time constant of the slow channel."""
    smallest_tail: float = 0.1
    """u is at least this: a side that hardly ever moves still has a bound."""
    smallest_hour: float = 0.1
    """A shift of the hour's mean below this share of the typical hourly maximum is of no interest."""


@dataclass(frozen=True)
class Baseline:
    """What one rule asks for; makes the `Baselines` that hold the state of all its series."""

    budget_per_week: float = 0.5
    """False alarms that are allowed, a series and week. They are an expectation and an upper bound, not a quota."""
    direction: Direction = Direction.BOTH
    window_s: float = 0.0
    """How long the windows are, at most an hour: a value is about the middle of its window."""
    tuning: Tuning = field(default_factory=Tuning)

    def __post_init__(self) -> None:
        if not 0.001 <= self.budget_per_week <= 50:
            raise ConfigError(
                f"budget_per_week is {self.budget_per_week}: allow between 0.001 and 50 false alarms a week and series"
            )
        if not 0 <= self.window_s <= BLOCK_S:
            raise ConfigError(f"window_s is {self.window_s}: anomalies are looked for in windows of at most an hour")

    @property
    def remembered_s(self) -> float:
        """A series that was silent for longer is a new one."""
        return _WEEK_S

    def of_windows(self, window_s: float) -> Baseline:
        """The same over windows of this length. Raises ConfigError: they are too long."""
        return replace(self, window_s=window_s)

    def open(self, capacity: int = 0) -> Baselines:
        """State for `capacity` series, all unknown yet."""
        return Baselines(self, capacity)


@dataclass(frozen=True)
class Scores:
    """One element a value, in the order given."""

    score: Floats
    """Deviation in units of its bound; above 1 is an anomaly. NaN while not ready, and where the value is no number."""
    expected: Floats
    """Level and season, before the value was learned; NaN in a series' first hour."""
    lower: Floats
    upper: Floats
    """Where the value itself becomes an anomaly; infinite in a direction that was not asked for."""
    by_hour: Flags
    """The mean of about an hour is further out than the value, which may be within `lower` and `upper`."""
    ready: Flags
    """The series is past its warm-up, and the value is a number."""


class Baselines(RowStates):
    """The baselines of many series, one a row."""

    def __init__(self, baseline: Baseline, capacity: int) -> None:
        super().__init__(_blank(baseline.tuning), capacity)
        self._baseline = baseline
        self._tails = _TAILS[baseline.direction]

    def update(self, rows: Rows, end_unix_s: Floats, values: Floats) -> Scores:
        """Score the value of a window that ended, for each row, then learn it.

        A row may come more than once: its values are taken in the order given. A value that is older than the last one
        of its row is scored and not learned; NaN and what is beyond 1e18 is skipped.
        """
        return in_rounds(self._update, rows, end_unix_s, values)

    def _update(self, rows: Rows, end: Floats, values: Floats) -> Scores:
        (all_now, all_past), usable = self.parts, np.abs(values) <= _LARGEST
        now = all_now[rows]
        values = np.where(usable, values, np.nan)
        learned = usable & (end >= now["last"])
        middle = (end - self._baseline.window_s / 2) / BLOCK_S
        block = np.ceil(middle) - 1  # what ends with an hour belongs to it
        if (turned := np.flatnonzero(learned & (block > now["block"]))).size:
            now[turned], all_past[rows[turned]] = self._turn(now[turned], all_past[rows[turned]], block[turned])
        expected = now["level"] + _between(now["knots"], np.clip(middle - now["block"], 0, 1))
        deviation = _sides(values - expected, self._hour(now, end, values - expected))
        scores = self._scores(now, expected, deviation, usable)
        _note(now, learned, end, values, deviation, (scores.score > 1) & learned, self._baseline.tuning.hold_s)
        all_now[rows] = now
        return scores

    def _hour(self, now: Records, end: Floats, residual: Floats) -> Floats:
        """The exponential mean of deviations; a spike counts as no more than its bound, to be forgotten soon."""
        elapsed = np.where(now["count"] + now["blocks"] > 0, np.maximum(end - now["last"], 0), 0)
        share = 1 - np.exp(-elapsed / self._baseline.tuning.hour_s)
        bounds = np.where(now["known"][:, None] > 0, now["bounds"], np.inf)
        clipped = np.clip(residual, -bounds[:, 1], bounds[:, 0])
        return np.where(np.isfinite(clipped), now["hour"] + share * (clipped - now["hour"]), now["hour"])

    def _scores(self, now: Records, expected: Floats, deviation: Floats, usable: Flags) -> Scores:
        ready = usable & (now["blocks"] >= self._baseline.tuning.warm_up_blocks)
        asked = (deviation / now["bounds"])[:, self._tails]
        value, hour = np.split(np.where(ready[:, None], np.maximum(asked, 0), np.nan), 2, axis=1)
        value, hour = value.max(axis=1), hour.max(axis=1)
        bounds = [now["bounds"][:, tail] if tail in self._tails else np.inf for tail in (0, 1)]
        return Scores(
            np.maximum(value, hour), expected, expected - bounds[1], expected + bounds[0], hour > value, ready
        )

    def _turn(self, now: Records, past: Records, block: Floats) -> tuple[Records, Records]:
        """Learn the block that ends, and begin the next one."""
        if (full := np.flatnonzero(now["count"] > 0)).size:
            now[full], past[full] = self._learned(now[full], past[full])
        for name in ("count", "total", "moved"):
            now[name] = 0
        now["block"], now["extremes"] = block, -np.inf
        now["knots"] = _knots(past, (block.astype(np.int64) + _MONDAY) % 168)
        return now, past

    def _learned(self, now: Records, past: Records) -> tuple[Records, Records]:
        tuning, known = self._baseline.tuning, np.isfinite(now["level"])
        mean, hour = now["total"] / now["count"], (now["block"].astype(np.int64) + _MONDAY) % 168
        teaches = known & _teaches(now, tuning.patience_s) & np.isfinite(now["extremes"]).all(axis=1)
        _learn_tails(now, past, teaches, tuning)
        usual = (now["blocks"] < tuning.warm_up_blocks)[:, None] | ~np.isfinite(now["bounds"])
        limits = np.where(usual, np.inf, now["bounds"])
        surprise = np.clip(np.where(known, mean - now["level"], 0), -limits[:, 1], limits[:, 0])
        _learn_season(past, teaches & (now["blocks"] >= 24), surprise, hour, tuning.season_days)
        _learn_level(now, past, mean, hour)
        now["known"], now["bounds"] = past["moves"][:, 0], self._bounds(now, past)
        return now, past

    def _bounds(self, now: Records, past: Records) -> Floats:
        tuning = self._baseline.tuning
        chance = self._baseline.budget_per_week * BLOCK_S / _WEEK_S / len(self._tails)
        reach = np.log(np.maximum(1, past["moving"].astype(np.float64) * tuning.tail_share / chance))[:, None]
        moves = np.maximum(past["moves"], 1).astype(np.float64)
        typical = np.where(past["moves"] > 0, np.exp(past["typical"] + tuning.few_moves / moves), 0)
        bounds = np.repeat(typical, 2, axis=1) * np.exp(past["edge"] + past["index"] * reach)
        bounds[:, 2:] = np.maximum(bounds[:, 2:], tuning.smallest_hour * typical[:, :1])
        floored: Floats = np.maximum(bounds, _rounding(now)[:, None])
        return floored


def _blank(tuning: Tuning) -> tuple[Records, Records]:
    """A series nobody knows: what each value needs (doubles), and what each hour needs (singles)."""
    now = np.zeros(1, [
        ("block", "f8"), ("last", "f8"), ("level", "f8"), ("knots", "f8", 3), ("bounds", "f8", 4), ("known", "f8"),
        ("count", "f8"), ("total", "f8"), ("value", "f8"), ("moved", "f8"), ("extremes", "f8", 4), ("hour", "f8"),
        ("since", "f8"), ("anomaly", "f8"), ("blocks", "f8"),
    ])  # fmt: skip
    past = np.zeros(1, [
        ("means", "f4", tuning.level_blocks), ("hours", "u1", tuning.level_blocks),
        ("day", "f4", 24), ("week", "f4", 56), ("weights", "f4", 2), ("fit", "f4", (2, 3)), ("days", "f4"),
        ("bias", "f4"), ("typical", "f4", 2), ("moves", "f4", 2), ("moving", "f4"), ("taught", "f4"),
        ("edge", "f4", 4), ("index", "f4", 4), ("over", "f4", 4),
    ])  # fmt: skip
    for name in ("last", "since", "anomaly", "extremes"):
        now[name] = -np.inf
    now["block"], now["level"], now["value"], now["bounds"] = -np.inf, np.nan, np.nan, np.inf
    past["means"], past["edge"], past["index"] = np.nan, np.log(tuning.tail_start), tuning.tail_index
    return now, past


def _rounding(now: Records) -> Floats:
    """The smallest deviation that is one."""
    smallest: Floats = _ROUNDING * np.abs(np.nan_to_num(now["level"])) + _SMALLEST
    return smallest


def _between(knots: Floats, share: Floats) -> Floats:
    """The season within an hour: straight lines between its begin, its middle and its end."""
    half, later = 2 * share, share >= 0.5
    begin, end = np.where(later, knots[:, 1], knots[:, 0]), np.where(later, knots[:, 2], knots[:, 1])
    return begin + (end - begin) * (half - later)


def _sides(value: Floats, hour: Floats) -> Floats:
    return np.stack([value, -value, hour, -hour], axis=1)


def _note(
    now: Records,
    learned: Flags,
    end: Floats,
    values: Floats,
    deviation: Floats,
    anomaly: Flags,
    hold_s: float,
) -> None:
    """Add a value to the block, and an anomaly to its episode."""
    now["hour"] = np.where(learned, deviation[:, 2], now["hour"])
    now["since"] = np.where(anomaly & (end - now["anomaly"] > hold_s), end, now["since"])
    now["anomaly"] = np.where(anomaly, end, now["anomaly"])
    now["count"] += learned
    now["total"] += np.where(learned, values, 0)
    now["moved"] = np.where(learned & (values != now["value"]) & np.isfinite(now["value"]), 1, now["moved"])
    now["extremes"] = np.fmax(now["extremes"], np.where(learned[:, None], deviation, -np.inf))
    now["value"], now["last"] = np.where(learned, values, now["value"]), np.where(learned, end, now["last"])


def _teaches(now: Records, patience_s: float) -> Flags:
    """All blocks but those of an ongoing anomaly that began before them, and not yet so long ago that it is normal."""
    begin = now["block"] * BLOCK_S
    ongoing = (now["since"] <= begin) & (now["anomaly"] > begin)
    teaches: Flags = ~ongoing | (begin - now["since"] >= patience_s)
    return teaches


def _learn_tails(now: Records, past: Records, teaches: Flags, tuning: Tuning) -> None:
    """Typical deviation, edge and index of the tails, by the extremes of a block."""
    past["taught"] += teaches
    moved = teaches & (now["moved"] > 0)
    past["moving"] += np.where(teaches, moved - past["moving"], 0) / np.clip(past["taught"], 1, tuning.tail_blocks)
    peaks = np.log(np.maximum(now["extremes"], np.exp(-500.0)))
    largest = peaks.reshape(-1, 2, 2).max(axis=2)
    counts = moved[:, None] & (largest > np.log(_rounding(now))[:, None])
    typical = np.where(past["moves"] > 0, past["typical"].astype(np.float64), largest)
    _learn_edges(
        now, past, np.repeat(counts & (past["moves"] > 0), 2, axis=1), peaks - np.repeat(typical, 2, axis=1), tuning
    )
    past["moves"] += counts
    step = np.clip(largest - typical, -2, 2) / np.clip(past["moves"], 1, tuning.typical_blocks)
    past["typical"] = np.where(counts, typical + step, past["typical"])


def _learn_edges(now: Records, past: Records, counts: Flags, peaks: Floats, tuning: Tuning) -> None:
    """u by Robbins-Monro, xi by the mean excess over it; `peaks` are logarithms, in units of the typical deviation."""
    typical = np.repeat(past["typical"].astype(np.float64), 2, axis=1)
    most = np.log(now["bounds"]) - typical + np.log(tuning.most_learned)
    peaks = np.minimum(peaks, np.where(np.isfinite(most), most, np.inf))
    over = counts & (peaks > past["edge"])
    past["over"] += over
    weight = np.minimum(past["over"], tuning.tail_blocks * tuning.tail_share) + tuning.tail_index_weight
    past["index"] += np.where(over, peaks - past["edge"] - past["index"], 0) / weight
    gain = np.repeat(2 / (np.minimum(past["moves"], tuning.tail_blocks) + 10), 2, axis=1)
    edge = past["edge"] + np.where(counts, gain * (over - tuning.tail_share), 0)
    past["edge"] = np.maximum(edge, np.log(tuning.smallest_tail))


def _learn_season(past: Records, teaches: Flags, surprise: Floats, hour: Rows, memory_days: float) -> None:
    """The means by the hour of the day and by 3 h of the week, around zero; and how much each is to be believed."""
    past["days"] += teaches / 24
    rest = surprise - past["bias"]  # what a trend leaves behind the level is no season
    past["bias"] += np.where(teaches, rest, 0) / np.clip(past["days"] * 24, 1, 168)
    blocks, at = np.minimum(past["days"] * 24 + 1, memory_days * 24), np.arange(len(past))
    for which, (name, bucket, seen, most) in enumerate(
        (("day", hour % 24, past["days"], memory_days), ("week", hour // 3, past["days"] * 3 / 7, memory_days * 6 / 7))
    ):
        said = past[name][at, bucket].astype(np.float64)
        weight = _believed(past["fit"][:, which], teaches & (said != 0), rest, said, blocks)
        past["weights"][:, which] = np.where(past["days"] >= 1, weight, 0)
        past[name][at, bucket] = np.where(teaches, said + (rest - said) / np.clip(seen + 1, 1, most), said)
        past[name] -= np.where(teaches, past[name].mean(axis=1), 0)[:, None]
        rest = rest - past["weights"][:, which] * said


def _believed(fit: NDArray[Any], counts: Flags, rest: Floats, said: Floats, blocks: Floats) -> Floats:
    """Regress deviations on what the season said of them before; one standard error less than the slope, in 0..1."""
    for column, product in enumerate((rest * said, said * said, rest * rest)):
        fit[:, column] += np.where(counts, product - fit[:, column], 0) / blocks
    both, of_season, of_rest = fit.T.astype(np.float64)
    error = np.sqrt(of_season * of_rest / blocks)
    slope: Floats = np.divide(both - error, of_season, out=np.zeros(len(fit)), where=of_season > 0)
    return np.clip(slope, 0, 1)


def _learn_level(now: Records, past: Records, mean: Floats, hour: Rows) -> None:
    """The median of the last hourly means without their season."""
    at, slots = np.arange(len(past)), past["means"].shape[1]
    slot = now["blocks"].astype(np.int64) % slots
    past["means"][at, slot], past["hours"][at, slot] = mean, hour
    now["blocks"] += 1
    hours, weights = past["hours"].astype(np.int64), past["weights"]
    season = (
        weights[:, :1] * past["day"][at[:, None], hours % 24] + weights[:, 1:] * past["week"][at[:, None], hours // 3]
    )
    ordered = np.sort(past["means"] - season, axis=1).astype(np.float64)  # those not there yet are NaN, and last
    count = np.minimum(now["blocks"], slots).astype(np.int64)
    now["level"] = (ordered[at, (count - 1) // 2] + ordered[at, count // 2]) / 2


def _knots(past: Records, hour: Rows) -> Floats:
    """The season at the begin, the middle and the end of an hour of the week."""
    at, day = np.arange(len(past)), past["day"].astype(np.float64)
    before, middle, after = (day[at, (hour + shift) % 24] for shift in (-1, 0, 1))
    of_day = np.stack([(before + middle) / 2, middle, (middle + after) / 2], axis=1)
    of_week = np.stack([_of_week(past["week"], hour + shift) for shift in (0.0, 0.5, 1.0)], axis=1)
    knots: Floats = past["weights"][:, :1] * of_day + past["weights"][:, 1:] * of_week
    return knots


def _of_week(week: NDArray[Any], hour: NDArray[Any]) -> Floats:
    place, at = (hour - 1.5) / 3, np.arange(len(week))
    below = np.floor(place).astype(np.int64)
    share = place - below
    joined: Floats = week[at, below % 56] * (1 - share) + week[at, (below + 1) % 56] * share
    return joined
