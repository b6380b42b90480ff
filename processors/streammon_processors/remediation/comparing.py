"""A new version of a model against the one before it, by one measure: a difference, and an interval that always holds.

Labels come for days, and somebody looks at every window. An interval made for one look would be wrong ever more often
(`tests/processors/test_comparing.py` counts how often). This one is a *confidence sequence*: it holds at all looks
together with 95 %, so whoever stops as soon as zero is outside is wrong at most once in twenty.

    half width = √V · √( 2 (tρ² + 1) / (tρ²) · ln( √(tρ² + 1) / α ) )

with V the variance of the difference, t = n₀n₁ / (n₀ + n₁), and ρ² such that it is narrowest where both have twice the
labels of the first look (Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas, "Time-uniform central limit theory and
asymptotic confidence sequences", Annals of Statistics 52, 2024: theorem 2.2 and appendix B.2). Estimates of a
difference move as a Brownian motion does in their information, also where one sample is complete before the other
begins: Jennison and Turnbull's canonical distribution (Group Sequential Methods, 2000, chapter 3). The price is width:
about 1.6 times that of an interval for one look.

It holds for predictions that are independent. Whatever else has changed between before and after, the season above all,
is in the difference, too: only versions that serve side by side can be told apart from that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final, Literal

from msgspec import Struct

from streammon.remediation import Requests
from streammon.results import Comparison, Interval, Quality
from streammon.retraining import LABELLED, SMALLER_IS_BETTER, Confirm, Measure

ALPHA: Final = 0.05
SHARE: Final = 0.1
"""Versions are compared side by side if the old one has at least this share of the predictions since the deploy."""
SETTLE_S: Final = 7200.0
"""So long after the deploy, or a quarter of the time there is, word is awaited of who makes the predictions."""
SILENCE_S: Final = 3600.0
"""An old version that was not heard of for so long, and for two more of its windows, serves no longer."""
MOST_RECENT: Final = 8
"""So many windows may be open in which only one version was heard of."""
Way = Literal["side_by_side", "before_after"]
Side = Literal["old", "new"]


class Moments(Struct, frozen=True, array_like=True):
    """A number of values, their sum, and that of their squares; they add."""

    count: int = 0
    sum: float = 0.0
    squares: float = 0.0

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.count + other.count, self.sum + other.sum, self.squares + other.squares)

    @property
    def mean(self) -> float:
        return self.sum / self.count


NOTHING: Final = Moments()


def proportion(count: int, share: float) -> Moments:
    """So many times yes or no, with this share of yes. An estimated share varies no more than a counted one."""
    return Moments(count, count * share, count * share)


def measured(quality: Quality, wanted: Measure | None) -> dict[str, Moments]:
    """What a record says of the measure that is wanted, or the first by labels; each label and prediction once."""
    found = dict[str, Moments]()
    if quality.by == "label" and quality.labelled:
        count = quality.judged or quality.labelled  # what was written before it said so
        if quality.accuracy is not None:
            found["accuracy"] = proportion(count, quality.accuracy)
        if quality.mae is not None and quality.rmse is not None:
            found["mae"] = Moments(count, count * quality.mae, count * quality.rmse**2)
    elif quality.by == "prediction" and quality.predictions and quality.estimated_accuracy is not None:
        found["estimated_accuracy"] = proportion(quality.predictions, quality.estimated_accuracy)
    name = wanted or next((each for each in LABELLED if each in found), None)
    return {name: found[name]} if name in found else {}


def requested(requests: Requests) -> dict[str, Moments]:
    """What a record says of requests: the shares that failed and, if anybody asks, that were slow."""
    counts = {"error_rate": requests.error_count, "slow_rate": requests.slow_count}
    return {
        name: proportion(requests.count, count / requests.count)
        for name, count in counts.items()
        if requests.count and count is not None
    }


def interval(measure: str, old: Moments, new: Moments, least: int) -> Interval:
    """Where new minus old lies; ``least``: values of each at the first look."""
    variance = _variance(measure, old) / old.count + _variance(measure, new) / new.count
    t = old.count * new.count / (old.count + new.count)
    grown = t * _rho2(least) + 1
    half = math.sqrt(variance * 2 * grown / (grown - 1) * math.log(math.sqrt(grown) / ALPHA))
    difference = new.mean - old.mean
    return Interval(difference - half, difference + half)


def _variance(measure: str, of: Moments) -> float:
    """Of one value. A share of 0 or 1 is not known to have none: one more of each is added to what was counted."""
    if measure == "mae":
        return max(of.squares - of.sum**2 / of.count, 0.0) / (of.count - 1)
    share = (of.sum + 1) / (of.count + 2)
    return share * (1 - share)


def _rho2(t: float) -> float:
    return (-2 * math.log(ALPHA) + math.log(-2 * math.log(ALPHA)) + 1) / t


def verdict(compared: Comparison, smallest: float) -> Literal["helped", "worse", "equivalent"] | None:
    """What the interval says; None: not yet anything."""
    low, high = compared.interval.low, compared.interval.high
    if compared.measure in SMALLER_IS_BETTER:
        low, high = -high, -low
    matters = smallest * compared.old if compared.measure == "mae" else smallest
    if low > 0:
        return "helped"
    if high < 0:
        return "worse"
    return "equivalent" if -matters <= low and high <= matters else None


def is_worse(guard: Comparison, smallest: float) -> bool:
    """Of a large number of requests, a difference is sure that does not matter."""
    return verdict(guard, smallest) == "worse" and guard.difference > smallest


# --- what is watched --------------------------------------------------------------------------------------------------


class Sums(Struct):
    """Of one measure, since the deploy and, of the old version, before it."""

    before: Moments = NOTHING
    old: Moments = NOTHING
    new: Moments = NOTHING
    windows: int = 0
    old_beside: Moments = NOTHING
    """In windows in which both were heard of."""
    new_beside: Moments = NOTHING
    windows_beside: int = 0
    recent: dict[float, tuple[Moments, Moments]] = {}
    """Old and new, by the start of the newest windows."""

    def add(self, side: Side, start: float, values: Moments) -> None:
        old, new = (values, NOTHING) if side == "old" else (NOTHING, values)
        self.old, self.new = self.old + old, self.new + new
        had = self.recent.get(start, (NOTHING, NOTHING))
        now = self.recent[start] = (had[0] + old, had[1] + new)
        self.windows += bool(new.count and not had[1].count)
        if now[0].count and now[1].count:
            first = not (had[0].count and had[1].count)
            self.windows_beside += first
            add = now if first else (old, new)
            self.old_beside, self.new_beside = self.old_beside + add[0], self.new_beside + add[1]
        if len(self.recent) > MOST_RECENT:
            del self.recent[min(self.recent)]

    def sides(self, way: Way) -> tuple[Moments, Moments, int]:
        if way == "side_by_side":
            return self.old_beside, self.new_beside, self.windows_beside
        return self.before + self.old, self.new, self.windows


class Watch(Struct, kw_only=True):
    """Two versions, from the deploy of the new one on."""

    since_unix_s: float
    until_unix_s: float
    """How far the windows go that were looked at."""
    settled_unix_s: float = 0.0
    """From then on the new version is taken to serve alone, unless the old one was heard of."""
    served: tuple[int, int] = (0, 0)
    """Predictions of old and new since then."""
    old_until_unix_s: float = 0.0
    """How long the old one may serve, as far as it was heard of."""
    way: Way | None = None
    """By numbers of predictions alone, so that it chooses no result; see `_decide`."""
    sums: dict[str, Sums] = {}

    def add(self, side: Side, start: float, end: float, found: Mapping[str, Moments], predictions: int) -> None:
        self.until_unix_s = max(self.until_unix_s, end)
        if start >= self.since_unix_s:
            old, new = (predictions, 0) if side == "old" else (0, predictions)
            self.served = (self.served[0] + old, self.served[1] + new)
            if old:
                self.old_until_unix_s = max(self.old_until_unix_s, end + 2 * (end - start) + SILENCE_S)
        for measure, values in found.items():
            self.sums.setdefault(measure, Sums()).add(side, start, values)

    def measure(self, confirm: Confirm) -> str | None:
        """By which the new version is judged; None: it has none yet."""
        if confirm.measure is not None:
            return confirm.measure
        return next((each for each in LABELLED if each in self.sums and self.sums[each].new.count), None)

    def compare(self, measure: str, least: int) -> Comparison | None:
        """None: there is too little of either."""
        sums = self.sums.get(measure)
        if sums is None or sums.new.count < least:
            return None
        self.way = self._decide()
        if self.way is None:
            return None
        old, new, windows = sums.sides(self.way)
        if old.count < least or new.count < least:
            return None
        return Comparison(
            measure=measure,
            way=self.way,
            old=old.mean,
            new=new.mean,
            old_count=old.count,
            new_count=new.count,
            difference=new.mean - old.mean,
            interval=interval(measure, old, new, least),
            windows=windows,
            start_unix_s=self.since_unix_s,
            end_unix_s=self.until_unix_s,
        )

    def _decide(self) -> Way | None:
        """Side by side as long as both serve, else before and after, and then for good; None: nobody knows yet.

        A deploy that goes from one to the other bit by bit looks as if both served, until the old one is silent.
        """
        old, new = self.served
        if self.way is None and not new and self.until_unix_s < self.settled_unix_s:
            return None
        both = bool(old) and old >= SHARE * (old + new) and self.until_unix_s <= self.old_until_unix_s
        return "side_by_side" if both and self.way != "before_after" else "before_after"
