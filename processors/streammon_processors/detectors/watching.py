"""The detectors on the series of one topic: a series is one version of a model.

What they say becomes `Drift` records: at every alarm, when it is over, and a heartbeat now and then. Everything is
decided value by value, in the order of the log; `dump` is all of it.

The budget of a model is shared: its online part (`ONLINE_SHARE`) by all detectors that its policy names, and by the
versions of it that were heard of within a day. When a version comes or goes, thresholds follow.
"""

from __future__ import annotations

import zlib
from collections import Counter as Count
from collections.abc import Iterator, Mapping
from enum import StrEnum
from math import floor
from typing import Final, NamedTuple

import msgspec
from msgspec import Struct
from prometheus_client import Counter

from streammon.broker import Outgoing
from streammon.errors import ConfigError
from streammon.events import EventType, record_key
from streammon.models import ONLINE_SHARE, RATES, ModelPolicy, Models, Use
from streammon.results import Drift
from streammon.wire import SCHEMA_HEADER
from streammon_processors.detectors.detector import Verdict, Watch, Watcher
from streammon_processors.detectors.preparation import Preparation, Transform

HOUR_S: Final = 3600.0
HEARD_OF_S: Final = 24 * HOUR_S
FORGET_S: Final = 7 * 24 * HOUR_S
"""A version of which nothing was heard for so long is forgotten when another one needs its place."""
MAX_NAME_BYTES: Final = 1024

SKIPPED = Counter("streammon_detectors_skipped", "Series and values that detectors did not look at, by why", ["reason"])
IGNORED = Counter("streammon_detectors_ignored", "Values that were none: NaN, infinite, impossible", ["target"])


class Skipped(StrEnum):
    """Why something is not watched. The values are labels: add, never rename."""

    TOO_MANY_SERIES = "too_many_series"
    NAME_TOO_LONG = "name_too_long"
    TOO_LATE = "too_late"


class Version(NamedTuple):
    """A series: one version of a model. What has none is a version of its own, ""."""

    service: str
    model: str
    version: str


class Measured(NamedTuple):
    """A value of a target, of so many events."""

    value: float
    events: float


_TRANSFORMS: Final[Mapping[str, Transform]] = {
    **dict.fromkeys(RATES, "rate"), "confidence": "logit", "score": "identity",
}  # fmt: skip


def transform_of(target: str) -> Transform:
    """Durations, tokens and errors of numbers are compared by their ratios: in logs."""
    return _TRANSFORMS.get(target, "log")


def watch_of(policy: ModelPolicy, target: str, use: Use, seed: int = 1) -> Watch:
    """How a policy wants a target to be watched. Raises ConfigError."""
    online = policy.detectors
    preparation = Preparation(transform_of(target), online.season, online.warm_up_s)
    return Watch(use.detector, preparation, use.settings, online.cool_down_s, online.effect, seed=seed)


def sees_events(models: Models) -> bool:
    """Whether any policy asks for detectors that are given every event; and that all policies can be had.

    Raises:
        ConfigError: naming the model, the target, the detector, and what is wrong with its settings.
    """
    found = False
    for policy in models.models:
        for target, uses in policy.detectors.watched.items():
            for use in uses:
                found = found or use.per_event
                _check(policy, target, use)
    return found


def _check(policy: ModelPolicy, target: str, use: Use) -> None:
    try:
        watch_of(policy, target, use)
    except ConfigError as error:
        of = f"{policy.service or '(any)'}/{policy.model or '(any)'}"
        raise ConfigError(f"models: {of}: detectors.targets.{target}: {error}") from None


def number_of_detectors(policy: ModelPolicy) -> int:
    """How many share the budget of a model, if it has one version; 1 at least."""
    return sum(map(len, policy.detectors.watched.values())) or 1


class _Track:
    """One detector on one target of one series."""

    def __init__(self, watcher: Watcher, told_s: float = 0.0) -> None:
        self.watcher, self.told_s = watcher, told_s


class _Series:
    def __init__(self, policy: ModelPolicy, tracks: Mapping[tuple[str, str], _Track], last_s: float) -> None:
        self.policy, self.tracks, self.last_s = policy, tracks, last_s


class _Kept(Struct, array_like=True):
    name: Version
    last_s: float
    tracks: list[tuple[str, str, float, bytes]]


class _Dump(Struct, array_like=True):
    hour: int
    versions: list[tuple[str, str, int]]
    series: list[_Kept]


class Watching:
    """Detectors on all series of one topic; at most ``max_bytes`` of state."""

    def __init__(
        self, models: Models, partition: int, *, per_event: bool, targets: frozenset[str], max_bytes: int
    ) -> None:
        self._models, self._partition = models, partition
        self._per_event, self._targets, self._max_bytes = per_event, targets, max_bytes
        self._series: dict[Version, _Series] = {}
        self._bytes = 0
        self._hour = 0
        self._versions: Count[tuple[str, str]] = Count()
        self._dumped: bytes | None = None

    def watched(self, service: str, model: str) -> list[tuple[str, Use]]:
        """What is watched of a model here."""
        uses = self._models.policy(service, model).detectors.watched
        here = sorted(self._targets & uses.keys())
        return [(target, use) for target in here for use in uses[target] if use.per_event == self._per_event]

    def take(self, name: Version, end_unix_s: float, values: Mapping[str, Measured]) -> Iterator[Outgoing]:
        """Take in what was measured of a series until then; what its detectors have to say."""
        self._dumped = None
        self._turn(end_unix_s)
        series = self._series.get(name) or self._begin(name, end_unix_s)
        if series is None:
            return
        # Events come a little out of order; results of a series do not.
        series.last_s = end_unix_s = max(series.last_s, end_unix_s)
        allowed = self._allowed(name, series.policy)
        for (target, detector), track in series.tracks.items():
            if target in values:
                track.watcher.allow(allowed)
                yield from self._told(name, target, detector, track, end_unix_s, values[target])

    def _told(
        self, name: Version, target: str, detector: str, track: _Track, end_unix_s: float, measured: Measured
    ) -> Iterator[Outgoing]:
        ignored = track.watcher.ignored
        verdict = track.watcher.update(end_unix_s, *measured)
        if track.watcher.ignored > ignored:
            IGNORED.labels(target).inc()
        every_s = self._series[name].policy.detectors.heartbeat_s
        if verdict and (verdict.changed or floor(end_unix_s / every_s) > floor(track.told_s / every_s)):
            track.told_s = end_unix_s
            yield self._outgoing(name, target, detector, verdict)

    def _outgoing(self, name: Version, target: str, detector: str, verdict: Verdict) -> Outgoing:
        drift = Drift(
            service=name.service,
            model=name.model,
            model_version=name.version or None,
            target=target,
            detector=detector,
            statistic=verdict.statistic,
            threshold=verdict.threshold,
            p_value=verdict.p_value,
            drifted=verdict.drifted,
            sample_size=verdict.sample_size,
            start_unix_s=verdict.start_unix_s,
            end_unix_s=verdict.end_unix_s,
        )
        key = record_key(EventType.INFERENCE, (name.service, name.model))
        return Outgoing("drift", key, msgspec.json.encode(drift), (SCHEMA_HEADER,), self._partition)

    # --- which series there are -------------------------------------------------------------------------------------

    def _begin(self, name: Version, now_s: float) -> _Series | None:
        if sum(map(len, name)) > MAX_NAME_BYTES:
            SKIPPED.labels(Skipped.NAME_TOO_LONG).inc()
            return None
        series = self._fresh(name, now_s)
        needed = _bytes_of(name, series)
        if self._bytes + needed > self._max_bytes:
            self._forget(now_s - FORGET_S)
        if self._bytes + needed > self._max_bytes:
            SKIPPED.labels(Skipped.TOO_MANY_SERIES).inc()
            return None
        self._bytes += needed
        self._series[name] = series
        self._count_versions()
        return series

    def _fresh(self, name: Version, now_s: float) -> _Series:
        policy = self._models.policy(name.service, name.model)
        seed = zlib.crc32("\0".join(name).encode())
        uses = self.watched(name.service, name.model)
        tracks: dict[tuple[str, str], _Track] = {
            (target, use.detector): _Track(watch_of(policy, target, use, seed).open()) for target, use in uses
        }
        return _Series(policy, tracks, now_s)

    def _forget(self, before_s: float) -> None:
        for name in [name for name, series in self._series.items() if series.last_s < before_s]:
            self._bytes -= _bytes_of(name, self._series.pop(name))

    def _turn(self, now_s: float) -> None:
        """Once an hour, look which versions are still there."""
        hour = floor(now_s / HOUR_S)
        if hour > self._hour:
            self._hour = hour
            self._count_versions()

    def _count_versions(self) -> None:
        since_s = self._hour * HOUR_S - HEARD_OF_S
        self._versions = Count(
            (name.service, name.model) for name, each in self._series.items() if each.last_s >= since_s
        )

    def _allowed(self, name: Version, policy: ModelPolicy) -> float:
        """False alarms a month, of each detector of a version."""
        versions = max(self._versions[name.service, name.model], 1)
        return ONLINE_SHARE * policy.max_false_alarms_per_month / (number_of_detectors(policy) * versions)

    # --- what is remembered -----------------------------------------------------------------------------------------

    def dump(self) -> bytes:
        if self._dumped is None:
            kept = [
                _Kept(
                    name,
                    series.last_s,
                    [(*key, each.told_s, each.watcher.dump()) for key, each in series.tracks.items()],
                )
                for name, series in self._series.items()
            ]
            versions = [(*model, number) for model, number in self._versions.items()]
            self._dumped = zlib.compress(msgspec.msgpack.encode(_Dump(self._hour, versions, kept)), 1)
        return self._dumped

    def load(self, dumped: bytes) -> None:
        """Go on from a `dump`. What the policy does not name any more is forgotten, what is new in it begins."""
        dump = msgspec.msgpack.decode(zlib.decompress(dumped), type=_Dump)
        self._hour, self._bytes, self._series = dump.hour, 0, {}
        for kept in dump.series:
            series = self._fresh(kept.name, kept.last_s)
            for target, detector, told_s, state in kept.tracks:
                if track := series.tracks.get((target, detector)):
                    track.told_s = told_s
                    track.watcher.load(state)
            self._series[kept.name] = series
            self._bytes += _bytes_of(kept.name, series)
        self._versions = Count({(service, model): number for service, model, number in dump.versions})
        self._dumped = dumped


def _bytes_of(name: Version, series: _Series) -> int:
    return 64 + sum(map(len, name)) + sum(64 + track.watcher.watch.state_bytes for track in series.tracks.values())
