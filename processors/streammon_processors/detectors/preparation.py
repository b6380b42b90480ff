"""From measurements to what a detector may be given: independent values of one variance, as long as nothing changes.

Every detector that comes from a text-book counts on independent values of one distribution. Latencies have a daily
season, a tail, and are today as they were five minutes ago; given those, River's detectors alarm all the time. So each
value goes through this, in order:

1. *Guard*: NaN, infinity and windows without events are ignored and counted. One NaN blinds a running mean for ever.
2. *Transformation*: the log of durations and tokens, log-odds of confidence. Of a rate, counts are gathered until
   `MIN_EVENTS` errors are to be expected, or twice as many came: the noise of a handful of errors is not normal.
3. *Season*: what is usual at that time of the day (and week) is taken off (`season.Profile`), learned as it goes.
4. *Autocorrelation*: what follows from the value before is taken off, too: an AR(1) whose coefficient is estimated as
   it goes.
5. *Scale*: in units of the mean deviation at that time of the day (some hours are noisier than others, and a season
   that changes from one minute to the next is so at its edges), clipped to ±`CLIP`; and divided by how much wider than
   those of independent values sums over an hour, or over a day, spread. That covers what no AR(1) knows.

Each value is judged by what was known before it came. As long as nothing changes, what comes out has mean 0 (nearly),
and knows nothing of the values before.

State is of fixed size: some 130 numbers with a daily season. The same values give the same numbers, to the bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, isfinite, log, sqrt
from typing import Final, Literal, TypeAlias

from msgspec import Struct, field

from streammon_processors.detectors.season import DAY, FLAT, WEEK, Profile, Shape

Transform: TypeAlias = Literal["log", "rate", "logit", "identity"]
Season: TypeAlias = Literal["day", "week", "none"]

CLIP: Final = 3.0
MIN_EVENTS: Final = 4.0
"""Of the rarer of errors and successes, to be expected in a value of a rate."""
MAX_PHI: Final = 0.98
FAR: Final = 4
DEPENDENT: Final = 0.15
"""Where a value and the one before correlate less than this, there is no telling slow dependence from noise."""
MEMORY_S: Final = 14 * 86_400.0
"""How long dependence and scale look back."""
CENTRE_S: Final = 86_400.0
"""The same of the level about which dependence is estimated: a shift is not to look like dependence for long."""
BATCH: Final = 12
PRIOR_BATCHES: Final = 48.0
MOST_OF_BATCH: Final = 16.0
PRIOR_DAYS: Final = 4.0
MOST_OF_DAY: Final = 64.0
UNLIKELY: Final = 2.0
"""Sums of days are few: they count when they spread far wider than those of hours would by chance."""
TURN_S: Final = 86_400.0
OF_MEAN_DEVIATION: Final = 1.2533141373155001  # sigma of a normal variable by its mean absolute deviation
SMALLEST: Final = 1e-12
_OUTLIER: Final = 4.0
"""Nothing is learned of what lies further out than so many sigmas; it counts as that far."""
_PRIOR: Final = 24.0  # values, of the scale at one time of the day
_GAP: Final = 3.0


class Mean(Struct, array_like=True):
    """A mean that forgets: of all values at first, then of about ``most``."""

    weight: float = 0.0
    value: float = 0.0

    def learn(self, value: float, most: float) -> None:
        self.weight = min(self.weight + 1.0, most)
        self.value += (value - self.value) / self.weight


class Dependence(Struct, array_like=True, frozen=True):
    """How a series hangs together, as it was estimated at a moment.

    A lasting shift looks like slow dependence, the longer the more. What is used is therefore between one and two
    days old (`TURN_S`): time to find the shift.
    """

    phi: float
    """How much of a deviation is left in the next value."""
    wide: float
    """How many times as wide sums of what is left spread as those of independent values."""


class State(Struct, array_like=True):
    """All that is remembered of one series."""

    profile: Profile
    spread: Profile
    """Mean deviations of what is left, by time."""
    first_s: float = 0.0
    last_s: float = 0.0
    values: int = 0
    ignored: int = 0
    bad: float = 0.0
    of: float = 0.0
    """Of a rate: what is gathered for the next value."""
    before: list[float] = field(default_factory=list)
    """What was left of the `FAR` values before, the newest first, their season taken off."""
    centre: Mean = field(default_factory=Mean)
    deviation: Mean = field(default_factory=Mean)
    variance: Mean = field(default_factory=Mean)
    covariance: Mean = field(default_factory=Mean)
    far_covariance: Mean = field(default_factory=Mean)
    """Of a value and the one before, and of a value and the one `FAR` before it."""
    noise: Mean = field(default_factory=Mean)
    batch: float = 0.0
    batched: int = 0
    batches: Mean = field(default_factory=Mean)
    day: float = 0.0
    day_values: int = 0
    day_began_s: float = 0.0
    days: Mean = field(default_factory=Mean)
    """The same of the sums of whole days: what a level wanders by from one to the next."""
    used: Dependence | None = None
    next: Dependence | None = None
    turned_s: float = 0.0
    moved: Mean = field(default_factory=Mean)
    """While it learns anew: how far the level is from what was usual."""


@dataclass(frozen=True)
class Preparation:
    """What is done to the values of one series."""

    transform: Transform
    season: Season = "day"
    warm_up_s: float = 2 * 86_400.0

    @property
    def shape(self) -> Shape:
        return {"none": FLAT, "day": DAY, "week": WEEK}[self.season]

    def open(self) -> Preparing:
        return Preparing(self)


class Preparing:
    """One series on its way."""

    def __init__(self, description: Preparation) -> None:
        self.description = description
        self._shape = description.shape
        self._rate = description.transform == "rate"
        self.state = State(Profile.empty(self._shape), Profile.empty(DAY))

    @property
    def dependence(self) -> Dependence:
        """What is counted on."""
        return self.state.used or self._estimated()

    @property
    def passes(self) -> float:
        """How many sigmas a shift of the values by one sigma is of what `update` gives."""
        state = self.state
        phi, own = self.dependence.phi, state.noise.value * self.dependence.wide
        return (1.0 - phi) * state.deviation.value / own if own > SMALLEST else 1.0

    def is_warm(self, time_unix_s: float) -> bool:
        """Whether it has been watched for as long as it takes to learn what is usual."""
        return self.state.values > 1 and time_unix_s - self.state.first_s >= self.description.warm_up_s

    @property
    def interval_s(self) -> float:
        """How far values are apart, on average."""
        state = self.state
        return max((state.last_s - state.first_s) / max(state.values - 1, 1), 1e-6)

    def update(self, time_unix_s: float, value: float, count: float) -> float | None:
        """Take in a value of ``count`` events; what a detector may see of it, in sigmas, if anything yet."""
        state = self.state
        if not self._is_one(time_unix_s, value, count):
            state.ignored += 1
            return None
        gathered = self._gathered(value, count)
        return None if gathered is None else self._next(time_unix_s, *gathered)

    def learn_anew(self, time_unix_s: float, value: float, count: float) -> None:
        """Take in a value while only the new level is learned: after an alarm."""
        state = self.state
        if not self._is_one(time_unix_s, value, count):
            state.ignored += 1
            return
        gathered = self._gathered(value, count)
        if gathered is not None:
            usual = self._usual(time_unix_s)
            if usual is not None:
                state.moved.learn(gathered[0] - usual, inf)
            self._count(time_unix_s)

    def settle(self) -> None:
        """The new level is the usual one from now on."""
        state = self.state
        state.profile.move(state.moved.value)
        state.moved = Mean()
        state.before = []
        state.bad = state.of = 0.0
        state.batch, state.batched = 0.0, 0
        state.day, state.day_values, state.day_began_s = 0.0, 0, 0.0
        state.centre = Mean()

    def usual_rate(self, time_unix_s: float) -> tuple[float, float] | None:
        """Of a rate: what is usual at that time, and altogether."""
        usual = self._usual(time_unix_s)
        return None if usual is None else (usual, self.state.profile.level)

    # --- step by step -----------------------------------------------------------------------------------------------

    def _is_one(self, time_unix_s: float, value: float, count: float) -> bool:
        """Whether it is a value at all."""
        possible = not self._rate or 0.0 <= value <= 1.0
        return isfinite(value) and isfinite(time_unix_s) and 0 < count < 2**53 and possible

    def _gathered(self, value: float, count: float) -> tuple[float, float] | None:
        """A value to work with, and of how many events it is; None while more of a rate has to be gathered."""
        if not self._rate:
            return _transformed(self.description.transform, value), count
        state = self.state
        state.bad += value * count
        state.of += count
        if not self._is_whole():
            return None
        gathered = state.bad / state.of, state.of
        state.bad = state.of = 0.0
        return gathered

    def _is_whole(self) -> bool:
        """Whether enough is gathered of a rate."""
        state = self.state
        usual = state.profile.level
        rarer = min(state.bad, state.of - state.bad)
        return (
            state.of * usual * (1.0 - usual) >= MIN_EVENTS
            or rarer >= 2 * MIN_EVENTS
            or (not state.values and rarer >= MIN_EVENTS / 4)
        )

    def _usual(self, time_unix_s: float) -> float | None:
        return self.state.profile.expected(self._shape, time_unix_s)

    def _count(self, time_unix_s: float) -> None:
        state = self.state
        if not state.values:
            state.first_s = time_unix_s
        state.values += 1
        state.last_s = max(state.last_s, time_unix_s)

    def _next(self, time_unix_s: float, value: float, count: float) -> float | None:
        state = self.state
        is_gap = state.values > 2 and time_unix_s - state.last_s > _GAP * self.interval_s
        self._count(time_unix_s)
        usual = self._usual(time_unix_s)
        left = None
        if usual is not None:
            left = (value - usual) * self._weight(usual, count)
        self._learn_season(time_unix_s, value, usual)
        if left is None or is_gap:
            state.before = []
        found = self._whitened(time_unix_s, left) if left is not None and state.before else None
        if left is not None:
            self._learn_dependence(left)
            state.before = [left, *state.before[: FAR - 1]]
        self._turn(time_unix_s)
        return found if self.is_warm(time_unix_s) else None

    def _weight(self, usual: float, count: float) -> float:
        """Turns the deviation of a rate into sigmas of its counting noise."""
        return count / sqrt(max(count * usual * (1.0 - usual), MIN_EVENTS)) if self._rate else 1.0

    def _learn_season(self, time_unix_s: float, value: float, usual: float | None) -> None:
        shape = self._shape
        most = shape.periods * max(shape.period_s / shape.nodes / self.interval_s, 1.0)
        self.state.profile.learn(shape, time_unix_s, value if usual is None else self._not_too_far(value, usual), most)

    def _not_too_far(self, value: float, usual: float) -> float:
        if self._rate or self.state.deviation.weight < _PRIOR:
            return value
        far = _OUTLIER * OF_MEAN_DEVIATION * self.state.deviation.value
        return usual + min(max(value - usual, -far), far)

    def _whitened(self, time_unix_s: float, left: float) -> float:
        state, most = self.state, MEMORY_S / self.interval_s
        known = self.dependence
        new = left - known.phi * state.before[0]
        scale = self._scale(time_unix_s)
        far = _OUTLIER * scale if state.noise.weight >= _PRIOR else abs(new)
        deviation = min(abs(new), max(far, SMALLEST))
        state.noise.learn(deviation, most)
        state.spread.learn(DAY, time_unix_s, deviation, max(most / DAY.nodes, _PRIOR))
        if scale <= SMALLEST:
            scaled = 0.0 if abs(new) <= SMALLEST else CLIP if new > 0 else -CLIP
        else:
            scaled = min(max(new / scale, -CLIP), CLIP)
        self._learn_batch(scaled, most)
        self._learn_day(time_unix_s, scaled)
        return scaled / known.wide

    def _scale(self, time_unix_s: float) -> float:
        """Sigma of what is left, at that time of the day as far as that is known."""
        state = self.state
        (left, share), (right, other) = DAY.places(time_unix_s)
        spread = state.spread
        near = share * spread.means[left] + other * spread.means[right]
        weight = min(spread.weights[left], spread.weights[right])
        return OF_MEAN_DEVIATION * (weight * near + _PRIOR * state.noise.value) / (weight + _PRIOR)

    def _turn(self, time_unix_s: float) -> None:
        """Once a day, count on what was estimated a day ago."""
        state = self.state
        if self.is_warm(time_unix_s) and time_unix_s - state.turned_s >= TURN_S:
            found = self._estimated()
            state.used, state.next = state.next or found, found
            state.turned_s = time_unix_s

    def _estimated(self) -> Dependence:
        hours, days = self.state.batches, self.state.days
        wide = (PRIOR_BATCHES + hours.weight * hours.value) / (PRIOR_BATCHES + hours.weight)
        wider = (PRIOR_DAYS + days.weight * days.value) / (PRIOR_DAYS + days.weight)
        return Dependence(self._phi(), sqrt(max(wide, wider if wider > UNLIKELY else 0.0)))

    def _phi(self) -> float:
        """Of an AR(1) in what is left.

        A slow process under independent noise, as averages of few events are, correlates little with the value before
        and nearly as much with that of some values ago. What is asked is how slow it is.
        """
        near, far = self.state.covariance.value, self.state.far_covariance.value
        if self.state.variance.value <= SMALLEST or near <= 0.0:
            return 0.0
        phi = near / self.state.variance.value
        if phi > DEPENDENT and far > 0.0:
            phi = max(phi, (far / near) ** (1.0 / (FAR - 1)))
        return min(phi, MAX_PHI)

    def _learn_batch(self, scaled: float, most: float) -> None:
        state = self.state
        state.batch += scaled
        state.batched += 1
        if state.batched == BATCH:
            state.batches.learn(min(state.batch * state.batch / BATCH, MOST_OF_BATCH), max(most / BATCH, PRIOR_BATCHES))
            state.batch, state.batched = 0.0, 0

    def _learn_day(self, time_unix_s: float, scaled: float) -> None:
        state = self.state
        if time_unix_s - state.day_began_s >= DAY.period_s:
            if state.day_values >= 4 * BATCH:
                state.days.learn(min(state.day * state.day / state.day_values, MOST_OF_DAY), MEMORY_S / DAY.period_s)
            state.day, state.day_values, state.day_began_s = 0.0, 0, time_unix_s
        state.day += scaled
        state.day_values += 1

    def _learn_dependence(self, left: float) -> None:
        state, most = self.state, MEMORY_S / self.interval_s
        centre = state.centre.value
        bound = _OUTLIER * OF_MEAN_DEVIATION * state.deviation.value if state.deviation.weight >= _PRIOR else inf
        now, *past = (min(max(each - centre, -bound), bound) for each in (left, *state.before))
        if state.centre.weight >= 2:
            state.deviation.learn(abs(now), most)
            state.variance.learn(now * now, most)
            if past:
                state.covariance.learn(now * past[0], most)
            if len(past) == FAR:
                state.far_covariance.learn(now * past[-1], most)
        state.centre.learn(centre + now, CENTRE_S / self.interval_s)


def _transformed(transform: Transform, value: float) -> float:
    if transform == "log":
        return log(max(value, 1e-9))
    if transform == "logit":
        inside = min(max(value, 1e-4), 1.0 - 1e-4)
        return log(inside / (1.0 - inside))
    return value
