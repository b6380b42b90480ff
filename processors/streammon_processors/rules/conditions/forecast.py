"""Where a series is going: a robust online trend with an interval, and the time until a level is reached.

A forecast looks back over `history_s` (as long as it looks ahead, unless said otherwise) in 32 blocks of equal length:

1. A **block** is the mean of its values. One outlier spoils one block.
2. The **slope** is Theil and Sen's: the median of the slopes between all pairs of blocks. 29 % of the blocks may be
   anything. The line goes through the median of what remains.
3. **How sure**: the spread s of the blocks around the line (1.4826 MAD), their lag-1 correlation phi, and from these
   the number of independent ones, n' = n (1 - phi) / (1 + phi), at least 4:

       sd(slope) = s sqrt(12 / n') / span     var(value) = (sd(slope) (t - mean))^2 + pi/2 s^2 / n' + s^2 + w^2

   where w is the spread within blocks. Intervals are Student's, n' - 2 degrees of freedom, 90 %.
   The spread is a median, which knows as much as 37 % of the blocks would, and loses degrees of freedom accordingly.
4. **Trending** means: the slope is not zero with 99.8 %; or the blocks are in order (Kendall's tau of at least 0.9). A
   step, a sawtooth (log rotation, garbage collection), a wandering mean have remains that look alike from one block to
   the next, hence few independent ones, hence no trend. Without a trend nothing is ever reached.
5. **Bend**: where the blocks are in order and the slopes of the two halves differ by 4 standard errors, the newer half
   counts; and if it is the steeper one, the slope goes on growing as it did from half to half.

Sources: Theil 1950; Sen, "Estimates of the regression coefficient based on Kendall's tau", JASA 1968; Bayley and
Hammersley 1946 (the number of independent observations); Kendall 1954 (the bias of phi). Measured: docs/anomaly.md.

State: 792 bytes a series, of fixed size. Time: O(1) a value, and once a block 736 slopes and a sort of them. The same
values give the same bytes however they are cut into calls.

What it cannot do: know of a sawtooth of which it has not seen a tooth and a half (choose `history_s` of at least that);
hold its 90 % where values depend on each other over more than a twentieth of the history (57 to 75 % on a random walk),
or just after a step; know seasons (take whole days of history); say anything before half of the history is there, or
of windows longer than `longest_window_s`. `time_until` is the time of the line: single values come there earlier.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from streammon.durations import shown
from streammon.errors import ConfigError
from streammon_processors.rules.conditions.rows import Flags, Floats, Records, Rows, RowStates, in_rounds

BLOCKS: Final = 32
_HALF: Final = BLOCKS // 2
_PAIRS: Final[dict[int, tuple[Rows, Rows]]] = {count: np.triu_indices(count, 1) for count in (_HALF, BLOCKS)}
_DEGREES: Final = np.array([2.0, 3.0, 4.0, 6.0, 10.0, 30.0])
_WITHIN_90: Final = np.array([2.920, 2.353, 2.132, 1.943, 1.812, 1.697])  # Student's t, two sides
_WITHIN_998: Final = np.array([22.33, 10.21, 7.173, 5.208, 4.144, 3.385])
_MAD: Final = 1.4826
_MEDIAN_VARIANCE: Final = np.pi / 2  # of that of the mean
_MAD_EFFICIENCY: Final = 0.37  # of what the standard deviation makes of normal numbers
_BENT: Final = 4.0  # standard errors between the slopes of the halves
_IN_ORDER: Final = 0.9  # of Kendall's tau; a step has 0.5
_LARGEST: Final = 1e100  # squares of it are numbers, however short the time between two
_LARGEST_SPREAD: Final = 1e37  # kept in single precision
_AT_ONCE: Final = 256  # rows to fit together: their slopes fit into the cache


@dataclass(frozen=True)
class Forecast:
    """What one rule asks for; makes the `Forecasts` that hold the state of all its series."""

    horizon_s: float
    """How far ahead."""
    history_s: float | None = None
    """How far back; by default as far as ahead."""

    def __post_init__(self) -> None:
        for name, value in (("horizon_s", self.horizon_s), ("history_s", self.back_s)):
            if not 60 <= value <= 366 * 86_400:
                raise ConfigError(f"{name} is {value}: choose between a minute and a year")

    @property
    def back_s(self) -> float:
        """The history that counts."""
        return self.horizon_s if self.history_s is None else self.history_s

    @property
    def longest_window_s(self) -> float:
        """Each block needs a window; of longer ones there are too few within the history to say anything."""
        return self.back_s / BLOCKS

    @property
    def remembered_s(self) -> float:
        """After a longer silence nothing of it counts any more."""
        return self.back_s

    def of_windows(self, window_s: float) -> Forecast:
        """The same, if windows of this length are short enough. Raises ConfigError."""
        if window_s > self.longest_window_s:
            raise ConfigError(
                f"a history of {shown(self.back_s)} is too short for windows of {shown(window_s)}: it must hold "
                f"{BLOCKS} of them, {shown(BLOCKS * window_s)}"
            )
        return self

    def open(self, capacity: int = 0) -> Forecasts:
        """State for `capacity` series, all unknown yet."""
        return Forecasts(self, capacity)


@dataclass(frozen=True)
class Outlook:
    """One element a value, in the order given; about `horizon_s` after it."""

    expected: Floats
    """NaN while not ready."""
    lower: Floats
    upper: Floats
    """Between these with 90 %."""
    per_second: Floats
    """The slope."""
    trending: Flags
    """The slope is real."""
    ready: Flags
    """Half of the history is there."""


@dataclass(frozen=True)
class TimeUntil:
    """Seconds from the end of a series' last window until it reaches a level.

    Infinite without a trend towards it; NaN while not ready.
    """

    seconds: Floats
    soonest: Floats
    latest: Floats
    """Between these with 90 %, as far as the slope goes."""


class Forecasts(RowStates):
    """The forecasts of many series, one a row."""

    def __init__(self, forecast: Forecast, capacity: int) -> None:
        super().__init__(_blank(), capacity)
        self._ahead_s = forecast.horizon_s
        self._block_s = forecast.back_s / BLOCKS

    def update(self, rows: Rows, end_unix_s: Floats, values: Floats) -> Outlook:
        """Learn the value of a window that ended, for each row, and look ahead from there.

        A row may come more than once: its values are taken in the order given.
        Values older than the last one of their row, and what is no number, are not learned.
        """
        return in_rounds(self._update, rows, end_unix_s, values)

    @np.errstate(over="ignore")  # what takes longer than any number of seconds never comes
    def time_until(self, rows: Rows, level: Floats, *, falling: bool = False) -> TimeUntil:
        """How long until the series rise (or fall) to their levels; 0 where they are there already."""
        now, sign = self.parts[0][rows], -1.0 if falling else 1.0
        ready = _ready(now)
        here = np.where(ready, now["last"] / self._block_s, now["middle"])
        there = sign * (level - np.where(ready, _at(now, here), now["value"])) <= 0
        way, pace, bend = sign * (level - now["level"]), sign * now["slope"], np.maximum(sign * now["bend"], 0)
        student = _student(now, _WITHIN_90)
        near, error, straight = now["level_error"] * student, now["slope_error"] * student, np.zeros(len(rows))
        reaches, since = _trending(now) & (pace > 0), here - now["middle"]
        paths = (way, pace, bend), (way - near, pace + error, bend), (way + near, pace - error, straight)
        times = (np.maximum(_time(*path) - since, 0) * self._block_s for path in paths)
        never = np.where(ready, np.inf, np.nan)
        return TimeUntil(*(np.where(there, 0, np.where(reaches, time, never)) for time in times))

    def _update(self, rows: Rows, end: Floats, values: Floats) -> Outlook:
        (all_now, ring), time = self.parts, end / self._block_s
        now = all_now[rows]
        block = np.ceil(time) - 1  # the block that ends with a window is the window's
        learned = (np.abs(values) < _LARGEST) & (end >= now["last"])
        turned = np.flatnonzero(learned & (block > now["block"]) & (now["count"] > 0))
        for some in np.split(turned, range(_AT_ONCE, len(turned), _AT_ONCE)):
            now[some], ring[rows[some]] = _fitted(*_kept(now[some], ring[rows[some]]))
        _add(now, learned, block, end, time, np.where(learned, values, 0))
        all_now[rows] = now
        return self._ahead(now, time + self._ahead_s / self._block_s)

    def _ahead(self, now: Records, then: Floats) -> Outlook:
        since = then - now["middle"]
        spread = np.hypot(now["slope_error"] * since, now["value_error"]) * _student(now, _WITHIN_90)
        spread += np.abs(now["bend"]) * since * since / 4  # a bend may go on, or end
        ready = _ready(now)
        expected = np.where(ready, _at(now, then), np.nan)
        slope = np.where(ready, now["slope"], 0) / self._block_s
        return Outlook(expected, expected - spread, expected + spread, slope, _trending(now), ready)


def _blank() -> tuple[Records, Records]:
    """A series nobody knows: what each value needs, and the ring of blocks. Times are in blocks."""
    now = np.zeros(1, [
        ("block", "f8"), ("last", "f8"), ("value", "f8"), ("kept", "f8"),
        ("count", "f8"), ("first", "f8"), ("total", "f8"), ("squares", "f8"), ("within", "f8"),
        ("fitted", "f8"), ("middle", "f8"), ("level", "f8"), ("slope", "f8"), ("bend", "f8"),
        ("slope_error", "f8"), ("level_error", "f8"), ("value_error", "f8"), ("degrees", "f8"), ("order", "f8"),
    ])  # fmt: skip
    ring = np.zeros(1, [("means", "f8", BLOCKS), ("times", "f8", BLOCKS), ("spreads", "f4", BLOCKS)])
    now["value"], now["degrees"], ring["means"] = np.nan, 2, np.nan
    now["block"] = now["last"] = -np.inf
    return now, ring


def _add(now: Records, learned: Flags, block: Floats, end: Floats, time: Floats, values: Floats) -> None:
    """Add values to the sums of their blocks, as differences to the first: those of large values keep their digits."""
    begins = learned & (block > now["block"])
    for name in ("count", "total", "squares", "within"):
        now[name] = np.where(begins, 0, now[name])
    now["first"], now["block"] = np.where(begins, values, now["first"]), np.where(begins, block, now["block"])
    difference = np.where(learned, values - now["first"], 0)
    now["count"] += learned
    now["total"] += difference
    now["squares"] += difference * difference
    now["within"] += np.where(learned, time - now["block"], 0)
    now["last"], now["value"] = np.where(learned, end, now["last"]), np.where(learned, values, now["value"])


def _kept(now: Records, ring: Records) -> tuple[Records, Records]:
    """The block that ends, in the ring."""
    at, slot = np.arange(len(now)), now["kept"].astype(np.int64) % BLOCKS
    mean = now["total"] / now["count"]
    ring["means"][at, slot] = now["first"] + mean
    ring["times"][at, slot] = now["block"] + now["within"] / now["count"]
    ring["spreads"][at, slot] = np.minimum(
        np.sqrt(np.maximum(now["squares"] / now["count"] - mean * mean, 0)), _LARGEST_SPREAD
    )
    now["kept"] += 1
    return now, ring


def _fitted(now: Records, ring: Records) -> tuple[Records, Records]:
    """Line and errors, from the blocks that are within the history; where they bend, from the newer half of it."""
    if not len(now):
        return now, ring
    order = (now["kept"].astype(np.int64)[:, None] + np.arange(BLOCKS)) % BLOCKS
    times = np.take_along_axis(ring["times"], order, axis=1) - (now["block"][:, None] + 1)
    recent = (times > -BLOCKS) & (np.arange(BLOCKS) >= BLOCKS - np.minimum(now["kept"], BLOCKS)[:, None])
    means, spreads = (
        np.where(recent, np.take_along_axis(ring[of], order, axis=1), np.nan) for of in ("means", "spreads")
    )
    times = np.where(recent, times, np.nan)
    line, older, newer = (
        _line(times[:, part], means[:, part]) for part in (slice(None), slice(_HALF), slice(_HALF, None))
    )
    bends = (np.abs(line.ordered) >= _IN_ORDER) & _differ(older, newer)
    for name in ("slope", "level", "middle"):
        now[name] = np.where(bends, getattr(newer, name), getattr(line, name))
    faster = bends & (np.abs(newer.slope) > np.abs(older.slope)) & (newer.slope * older.slope >= 0)
    now["bend"] = np.where(faster, (newer.slope - older.slope) / np.where(faster, newer.middle - older.middle, 1), 0)
    now["middle"] += now["block"] + 1
    now["fitted"], now["order"] = line.blocks, line.ordered
    count, rest = np.where(bends, newer.blocks, line.blocks), line.rest
    rest[bends] = np.concatenate([np.full_like(newer.rest, np.nan), newer.rest], axis=1)[bends]
    _judge(now, rest, count, np.where(bends, newer.spread, line.spread), spreads)
    return now, ring


def _differ(older: _Line, newer: _Line) -> Flags:
    """The slopes of the halves differ by more than chance."""
    errors = [half.spread * np.sqrt(12) / np.maximum(half.blocks, 1) ** 1.5 for half in (older, newer)]
    enough = np.minimum(older.blocks, newer.blocks) >= _HALF // 2
    differ: Flags = enough & (np.abs(newer.slope - older.slope) > _BENT * np.hypot(*errors))
    return differ


class _Line(NamedTuple):
    slope: Floats
    level: Floats
    """In the middle."""
    middle: Floats
    rest: Floats
    spread: Floats
    ordered: Floats
    """Kendall's tau: 1 if each block is above all before it, -1 if below."""
    blocks: Rows


def _line(times: Floats, means: Floats) -> _Line:
    """Through the blocks whose time is not NaN."""
    count = np.isfinite(times).sum(axis=1)
    first, second = _PAIRS[times.shape[1]]
    slopes = np.take(means, second, axis=1) - np.take(means, first, axis=1)
    slopes /= np.take(times, second, axis=1) - np.take(times, first, axis=1)
    slope, middle = _median(slopes), np.nansum(times, axis=1) / np.maximum(count, 1)
    flat = means - slope[:, None] * (times - middle[:, None])
    level = _median(flat)
    rest = flat - level[:, None]
    spread = _MAD * _median(np.abs(rest)) * np.sqrt(count / np.maximum(count - 2, 1))
    order = (np.sum(slopes > 0, axis=1) - np.sum(slopes < 0, axis=1)) / np.maximum(count * (count - 1) / 2, 1)
    return _Line(slope, level, middle, rest, spread, order, count)


def _judge(now: Records, rest: Floats, count: Rows, spread: Floats, within: Floats) -> None:
    """How far what remains lets the line be trusted."""
    clipped = np.nan_to_num(np.clip(rest, -3 * spread[:, None], 3 * spread[:, None]))
    squares = (clipped * clipped).sum(axis=1)
    lagged = (clipped[:, 1:] * clipped[:, :-1]).sum(axis=1)
    alike = np.divide(lagged, squares, out=np.zeros(len(rest)), where=squares > 0)
    alike = np.clip(alike + (1 + 4 * alike) / np.maximum(count, 1), 0, 0.97)
    independent = np.clip(count * (1 - alike) / (1 + alike), 4, BLOCKS)
    usual = np.minimum(within, 3 * _median(within)[:, None]).astype(np.float64)
    within_squared = np.nansum(usual * usual, axis=1) / np.maximum(np.isfinite(usual).sum(axis=1), 1)
    now["degrees"] = np.maximum(_MAD_EFFICIENCY * (independent - 2), _DEGREES[0])
    now["slope_error"] = spread * np.sqrt(12 / independent) / np.maximum(count, 1)
    now["level_error"] = spread * np.sqrt(_MEDIAN_VARIANCE / independent)
    now["value_error"] = np.sqrt(spread * spread * (1 + _MEDIAN_VARIANCE / independent) + within_squared)


def _median(values: Floats) -> Floats:
    """Of each row, without its NaN; 0 of none."""
    ordered, at = np.sort(values, axis=1), np.arange(len(values))
    count = np.isfinite(values).sum(axis=1)
    middle = (ordered[at, np.maximum(count - 1, 0) // 2] + ordered[at, np.minimum(count // 2, values.shape[1] - 1)]) / 2
    return np.where(count > 0, middle, 0.0)


def _at(now: Records, time: Floats) -> Floats:
    since = time - now["middle"]
    line: Floats = now["level"] + since * (now["slope"] + now["bend"] * since / 2)
    return line


def _student(now: Records, quantiles: Floats) -> Floats:
    """Quantiles of Student's t are nearly straight over one by the degrees of freedom."""
    return np.interp(-1 / now["degrees"], -1 / _DEGREES, quantiles)


def _ready(now: Records) -> Flags:
    ready: Flags = now["fitted"] >= _HALF
    return ready


def _trending(now: Records) -> Flags:
    sure = np.abs(now["slope"]) > now["slope_error"] * _student(now, _WITHIN_998)
    trending: Flags = _ready(now) & (sure | (np.abs(now["order"]) >= _IN_ORDER))
    return trending


def _time(missing: Floats, pace: Floats, bend: Floats) -> Floats:
    """The t at which pace t + bend t^2 / 2 makes up for what is missing."""
    root = np.sqrt(np.maximum(pace * pace + 2 * bend * np.maximum(missing, 0), 0))
    time = np.divide(2 * missing, pace + root, out=np.full(len(missing), np.inf), where=pace > 0)
    return np.where(missing <= 0, 0, time)
