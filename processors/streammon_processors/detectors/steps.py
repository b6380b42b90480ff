"""Steps: what was measured of each version of a model in five minutes, all its endpoints, tenants and hosts together.

Made of the rollups of that length, which are there anyway. Why not of base windows: a shift of so many sigmas of five
minutes is found in the same time from sums of 2 s, as long as they are independent; in practice they depend on each
other more the shorter they are, cost 150 times as much, and all that is gained is that an outage, which rules see
within seconds, is seen here sooner.

A step is closed, and given to the detectors, by the first window of a later one; or when nothing more came for
`CLOSE_S` of the log's time. A supplement that comes before that is in it; what comes later is counted, not used.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import exp, isfinite
from typing import Any, Final, NamedTuple

import msgspec
from msgspec import Struct

from streammon.events import SCHEMA
from streammon.models import DETECTABLE, QUALITIES
from streammon.results import DISTRIBUTIONS, OTHER, Kind
from streammon.sketch import Sketch
from streammon_processors.detectors.watching import Measured, Version, transform_of

CLOSE_S: Final = 30.0
GAP_S: Final = 10.0
"""A longer gap in the log counts as this: nobody wrote then, so nobody was late."""
MAX_VERSIONS: Final = 4096
"""Of one step."""
SHORTEST: Final[Mapping[str, float]] = {
    name: 1.0 if name.endswith(("tokens", "length")) else 1e-6 for name in DISTRIBUTIONS
}
"""What is taken for the log of smaller values: a token, a microsecond."""
MEASURED: Final = frozenset(DETECTABLE) - frozenset(QUALITIES)


class _Numbers(Struct, gc=False):
    count: int
    mean: float
    sketch: Sketch | None = None


class Seen(Struct, tag_field="type", tag="window", gc=False):
    """What is read of a rollup; `decoder` adds the distributions that are watched."""

    source: str
    part: str
    series: dict[str, str]
    start_unix_s: float
    end_unix_s: float
    count: int
    error_count: int | None = None
    kind: Kind = "tumbling"
    schema: int = SCHEMA

    @property
    def version(self) -> Version | None:
        """Whose it is; None if it is of no model, or of all that are beyond a cap together."""
        service, model = self.series.get("service", ""), self.series.get("model", "")
        named = service and model and OTHER not in (service, model)
        return Version(service, model, self.series.get("model_version", "")) if named else None


def decoder(targets: Iterable[str]) -> msgspec.json.Decoder[Any]:
    """Reads of windows what these targets need, and no more: sketches are most of them."""
    extra = [(name, _Numbers | None, None) for name in sorted(set(targets) & set(DISTRIBUTIONS))]
    return msgspec.json.Decoder(
        msgspec.defstruct("SeenBy", extra, bases=(Seen,), tag_field="type", tag="window", gc=False)
    )


class _Sum(NamedTuple):
    total: float = 0.0
    events: float = 0.0

    def plus(self, total: float, events: float) -> _Sum:
        return _Sum(self.total + total, self.events + events)


def measured(window: Any, target: str) -> _Sum | None:
    """What a window adds to a step: the sum of errors, logs or values, and of how many events."""
    if target == "error":
        return _Sum(window.error_count, window.count) if window.error_count is not None and window.count else None
    numbers = getattr(window, target, None)
    if numbers is None or not numbers.count:
        return None
    if transform_of(target) != "log":
        return _Sum(numbers.mean * numbers.count, numbers.count)
    return (
        None
        if numbers.sketch is None
        else _Sum(numbers.sketch.mean_log(SHORTEST[target]) * numbers.count, numbers.count)
    )


class Step:
    """An open step: sums by version and target."""

    def __init__(self, start_unix_s: float, end_unix_s: float, offset: int) -> None:
        self.start_unix_s, self.end_unix_s, self.offset = start_unix_s, end_unix_s, offset
        self._sums: dict[Version, dict[str, _Sum]] = {}

    def add(self, version: Version, window: Any, targets: Iterable[str]) -> bool:
        """Whether there was room for it."""
        if version not in self._sums and len(self._sums) >= MAX_VERSIONS:
            return False
        sums = self._sums.setdefault(version, {})
        for target in targets:
            if (more := measured(window, target)) and isfinite(more.total):
                sums[target] = sums.get(target, _Sum()).plus(*more)
        return True

    def values(self) -> list[tuple[Version, dict[str, Measured]]]:
        """What was measured, by version, in an order that does not depend on that of the windows."""
        return [
            (version, {name: _mean(name, each) for name, each in sums.items()})
            for version, sums in sorted(self._sums.items())
        ]


def _mean(target: str, sums: _Sum) -> Measured:
    mean = sums.total / sums.events
    return Measured(exp(min(mean, 700.0)) if transform_of(target) == "log" else mean, sums.events)
