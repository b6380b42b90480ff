"""One wrapper for every detector of River: a `Watch` describes, and opens a `Watcher`, which has the state.

Promises, for every detector (`tests/contracts/test_detector.py`)
- NaN, infinity and impossible values are ignored and counted; they change nothing.
- It sees what `preparation` gives: season, dependence and scale taken off. Detectors of rates see the rate itself,
  from 0 to 1, its season taken off. Whatever alarms, restarts after a cool-down in which the new level is learned.
- `dump` is all of it, and small; a watcher that has loaded it goes on byte for byte. Random detectors are seeded.

It cannot promise that false alarms are seldom: that is up to the settings. With `page_hinkley`, and no ``threshold``
given, they follow from a budget (`budget`).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from math import inf, sqrt
from typing import Any, Final, NamedTuple

import msgspec
from msgspec import Struct
from river import drift
from river.drift import binary

from streammon.errors import ConfigError
from streammon.models import OF_RATES
from streammon_processors.detectors import river_state
from streammon_processors.detectors.budget import allowance, threshold
from streammon_processors.detectors.preparation import Preparation, Preparing, State


class Reading(NamedTuple):
    """How far a detector is from an alarm. Those that tell nothing of it are 0, or 1 when they have alarmed."""

    statistic: float
    threshold: float
    p_value: float | None = None


class Kind(NamedTuple):
    """A detector of River."""

    make: Callable[..., Any]
    defaults: Mapping[str, float]
    """Chosen so that false alarms are seldom on prepared values (`python -m bench detectors`)."""
    reading: Callable[[Any], Reading]
    state_bytes: int
    """The most of a snapshot that it takes."""
    seeded: bool = False


def _heights(detector: Any) -> tuple[float, float]:
    up = detector._sum_increase - detector._min_increase
    down = detector._max_decrease - detector._sum_decrease
    return up, down


def _of_page_hinkley(detector: Any) -> Reading:
    return Reading(max(0.0, *_heights(detector)), detector.threshold)


def _of_kswin(detector: Any) -> Reading:
    p_value = float(detector.p_value) if detector.n >= detector.window_size else 1.0
    return Reading(1.0 - p_value, 1.0 - detector.alpha, p_value)


def _of_ddm(detector: Any) -> Reading:
    if not detector._s_min:
        return Reading(0.0, detector.drift_threshold)
    rate, number = detector._p.get(), detector._p.n
    height = rate + sqrt(rate * (1 - rate) / number) - detector._p_min
    return Reading(height / detector._s_min, detector.drift_threshold)


def _of_silent(detector: Any) -> Reading:
    return Reading(float(detector.drift_detected), 0.5)


KINDS: Final[Mapping[str, Kind]] = {
    "page_hinkley": Kind(drift.PageHinkley, {"alpha": 1.0}, _of_page_hinkley, 400),
    "adwin": Kind(drift.ADWIN, {"delta": 1e-5, "clock": 1}, _of_silent, 6000),
    "kswin": Kind(
        drift.KSWIN, {"alpha": 1e-9, "window_size": 288, "stat_size": 72}, _of_kswin, 6500, seeded=True
    ),
    "ddm": Kind(binary.DDM, {"drift_threshold": 6.0}, _of_ddm, 400),
    "eddm": Kind(binary.EDDM, {"alpha": 0.7, "beta": 0.6}, _of_silent, 400),
    "hddm_a": Kind(binary.HDDMA, {"drift_confidence": 1e-6, "two_sided_test": 1}, _of_silent, 400),
    "hddm_w": Kind(
        binary.HDDMW, {"drift_confidence": 1e-6, "lambda_val": 0.01, "two_sided_test": 1}, _of_silent, 1000
    ),
    "fhddm": Kind(binary.FHDDM, {}, _of_silent, 1200),
}  # fmt: skip


class Verdict(Struct, frozen=True):
    """What a detector makes of a value."""

    drifted: bool
    changed: bool
    """It has alarmed, or is over it, with this value."""
    statistic: float
    threshold: float
    p_value: float | None
    sample_size: int
    start_unix_s: float
    """Of an alarm by `page_hinkley`, when the change probably began."""
    end_unix_s: float


@dataclass(frozen=True)
class Watch:
    """A detector on a target: which, and on what it may count."""

    detector: str
    preparation: Preparation
    settings: Mapping[str, float] = field(default_factory=dict)
    cool_down_s: float = 6 * 3600.0
    effect: float = 0.5
    per_month: float = 0.1
    """How many false alarms it may give; see `Watcher.allow`."""
    seed: int = 1

    def __post_init__(self) -> None:
        if self.detector not in KINDS:
            raise ConfigError(f"there is no detector {self.detector!r}; there are {', '.join(KINDS)}")
        self.make()

    @property
    def kind(self) -> Kind:
        return KINDS[self.detector]

    @property
    def of_rates(self) -> bool:
        return self.detector in OF_RATES

    @property
    def state_bytes(self) -> int:
        """The most that it takes of a snapshot."""
        return 900 + 18 * self.preparation.shape.nodes + self.kind.state_bytes

    def make(self) -> Any:
        """River's detector. Raises ConfigError: a setting that it does not have, or does not take."""
        known = _parameters(self.kind.make)
        for name in self.settings:
            if name not in known or name in ("window", "mode"):
                raise ConfigError(f"{self.detector} has no setting {name!r}; River's are {', '.join(known)}")
        given = {**self.kind.defaults, **self.settings}
        settings = {name: _like(known[name].default, value) for name, value in given.items()}
        try:
            return self.kind.make(**settings, **({"seed": self.seed} if self.kind.seeded else {}))
        except (ValueError, TypeError, OverflowError) as error:
            raise ConfigError(f"{self.detector} does not take {settings}: {error}") from None

    @property
    def made(self) -> str:
        """What River's part of a state depends on."""
        return f"{river_state.VERSION} {sorted(self.settings.items())}"

    @property
    def prepared(self) -> str:
        """What the other part depends on."""
        return f"{self.preparation.transform} {self.preparation.season}"

    def open(self) -> Watcher:
        return Watcher(self)


@cache
def _parameters(make: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    return inspect.signature(make).parameters


def _like(default: object, value: float) -> float | int | bool:
    """A number from a file as River wants it."""
    if isinstance(default, bool):
        return bool(value)
    return int(value) if isinstance(default, int) and float(value).is_integer() else float(value)


class _Kept(Struct, array_like=True):
    preparing: State
    prepared: str
    """How, or it is none of ours."""
    river: dict[str, Any]
    made: str
    """By which version of River, and with which settings."""
    cooling_until: float
    since: float
    onsets: tuple[float, float]
    sample_size: int


class Watcher:
    """One detector on one series."""

    def __init__(self, watch: Watch) -> None:
        self.watch = watch
        self._per_month = watch.per_month
        self._preparing = Preparing(watch.preparation)
        self._river = watch.make()
        self._cooling_until = -inf
        self._since = 0.0  # what the detector has seen begins then
        self._onsets = (0.0, 0.0)  # when the sums upwards and downwards were last at their lowest
        self._sample_size = 0

    @property
    def ignored(self) -> int:
        """Values that were none."""
        return self._preparing.state.ignored

    @property
    def last_s(self) -> float:
        """When the last value came that was one."""
        return self._preparing.state.last_s

    def allow(self, per_month: float) -> None:
        """From now on, so many false alarms a month, because more or fewer share a budget."""
        self._per_month = per_month

    def update(self, time_unix_s: float, value: float, count: float = 1.0) -> Verdict | None:
        """Take in a value of so many events; None while it learns what is usual, or if there is nothing to say."""
        if time_unix_s < self._cooling_until:
            self._preparing.learn_anew(time_unix_s, value, count)
            return self._verdict(time_unix_s, changed=False)
        recovered = self._cooling_until > -inf
        if recovered:
            self._begin_again()
        ignored, before_s = self.ignored, self.last_s
        sigmas = self._preparing.update(time_unix_s, value, count)
        seen = sigmas if not self.watch.of_rates or self.ignored > ignored else self._rate(time_unix_s, value)
        if seen is not None:
            self._feed(time_unix_s, before_s, seen, count)
        if self._river.drift_detected and seen is not None:
            self._cooling_until = time_unix_s + self.watch.cool_down_s
            return self._verdict(time_unix_s, changed=True)
        return self._verdict(time_unix_s, changed=recovered) if recovered or seen is not None else None

    def _rate(self, time_unix_s: float, value: float) -> float | None:
        """What detectors of rates see: the share without its season; of a single event, whether it is an error."""
        usual = self._preparing.usual_rate(time_unix_s)
        if usual is None or not self._preparing.is_warm(time_unix_s):
            return None
        rate = min(max(value - (usual[0] - usual[1]), 0.0), 1.0) if 0.0 < value < 1.0 else value
        return 1.0 - rate if self.watch.detector == "fhddm" else rate  # which counts successes

    def _feed(self, time_unix_s: float, before_s: float, seen: float, count: float) -> None:
        if not self._since:
            self._since, self._onsets = before_s, (before_s, before_s)
        self._sample_size = min(self._sample_size + int(count), 2**53)
        self._tune()
        self._river.update(seen)
        if self.watch.detector == "page_hinkley":
            up, down = _heights(self._river)
            at_up, at_down = self._onsets
            self._onsets = time_unix_s if up <= 0.0 else at_up, time_unix_s if down <= 0.0 else at_down

    def _tune(self) -> None:
        """Let what is not given follow from the budget, and from what is known of the series by now."""
        if self.watch.detector == "page_hinkley":
            settings = self.watch.settings
            k = settings.get("delta") or allowance(self.watch.effect, self._preparing.passes)
            self._river.delta = k
            if "threshold" not in settings:
                self._river.threshold = threshold(self._per_month, self._preparing.interval_s, k)

    def _begin_again(self) -> None:
        self._preparing.settle()
        self._river = self.watch.make()
        self._tune()
        self._cooling_until = -inf
        self._since, self._sample_size = 0.0, 0

    def _verdict(self, time_unix_s: float, *, changed: bool) -> Verdict:
        statistic, bound, p_value = self.watch.kind.reading(self._river)
        drifted = self._cooling_until > -inf
        return Verdict(
            drifted,
            changed,
            statistic,
            bound,
            p_value,
            self._sample_size,
            self._start(time_unix_s, drifted),
            time_unix_s,
        )

    def _start(self, time_unix_s: float, drifted: bool) -> float:
        since = self._since or time_unix_s
        if drifted and self.watch.detector == "page_hinkley":
            up, down = _heights(self._river)
            since = self._onsets[0] if up > down else self._onsets[1]
        return min(since, time_unix_s)

    # --- what is remembered -----------------------------------------------------------------------------------------

    def dump(self) -> bytes:
        """All of it."""
        kept = _Kept(
            self._preparing.state, self.watch.prepared, river_state.dump(self._river), self.watch.made,
            self._cooling_until, self._since, self._onsets, self._sample_size,
        )  # fmt: skip
        return msgspec.msgpack.encode(kept)

    def load(self, dumped: bytes) -> None:
        """Go on from a `dump`. What was made in another way begins anew: River's part, or all of it."""
        kept = msgspec.msgpack.decode(dumped, type=_Kept)
        if kept.prepared != self.watch.prepared:
            return
        self._preparing.state = kept.preparing
        if kept.made != self.watch.made:
            return
        river_state.load(self._river, kept.river)
        self._cooling_until, self._since, self._onsets = kept.cooling_until, kept.since, kept.onsets
        self._sample_size = kept.sample_size
