"""Metrics of a service's own: counted, sampled and observed, and added up before they are sent.

They become `resource` events of the entity ``service``, one a second for each set of labels: counts are sums, gauges
the last value, observations a sketch with an exact sum. Beyond `MAX_SERIES` sets of labels, or `MAX_NAMES` metrics in
one, the rest shares the label or name ``__other__``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, Literal, NamedTuple

from streammon.lazy_numpy import np
from streammon.results import OTHER, finite
from streammon.sketch import Sketch

MAX_SERIES = 1000
MAX_NAMES = 200
MAX_VALUES = 10_000
"""Observations of one metric kept until they become a sketch."""
FLUSH_S = 1.0

Kind = Literal["count", "gauge", "observe"]
Labels = tuple[tuple[str, str], ...]


class Sample(NamedTuple):
    """One call of the service's."""

    kind: Kind
    name: str
    value: float
    labels: Mapping[str, Any]


@dataclass
class _Observed:
    """Values of one metric since the last event."""

    sum: float = 0.0
    min: float = math.inf
    max: float = -math.inf
    values: list[float] = field(default_factory=list)
    sketch: Sketch | None = None

    def add(self, value: float) -> None:
        self.sum = finite(self.sum + value)
        self.min, self.max = min(self.min, value), max(self.max, value)
        self.values.append(value)
        if len(self.values) >= MAX_VALUES:
            self._condense()

    def _condense(self) -> None:
        made = Sketch.of(np.array(self.values))
        self.sketch = made if self.sketch is None else self.sketch.merge(made)
        self.values = []

    def event(self) -> dict[str, Any]:
        self._condense()
        assert self.sketch is not None, "condensed just now"
        return {"sum": self.sum, "min": self.min, "max": self.max, "sketch": self.sketch.to_wire()}


@dataclass
class _Series:
    metrics: dict[str, float] = field(default_factory=dict)
    counters: dict[str, float] = field(default_factory=dict)
    histograms: dict[str, _Observed] = field(default_factory=dict)

    def add(self, kind: Kind, name: str, value: float) -> None:
        if kind == "gauge":
            self.metrics[_kept(name, self.metrics)] = value
        elif kind == "count":
            name = _kept(name, self.counters)
            self.counters[name] = finite(self.counters.get(name, 0.0) + value)
        else:
            self.histograms.setdefault(_kept(name, self.histograms), _Observed()).add(value)

    def event(self) -> dict[str, Any]:
        observed = {name: values.event() for name, values in self.histograms.items()}
        return {"metrics": self.metrics, "counters": self.counters or None, "histograms": observed or None}


def _kept(name: str, known: Mapping[str, Any]) -> str:
    return name if name in known or len(known) < MAX_NAMES else OTHER


class Metrics:
    """Adds samples up. For one thread only."""

    def __init__(self) -> None:
        self._series: dict[Labels, _Series] = {}
        self._due = 0.0

    def __bool__(self) -> bool:
        """Whether there is anything to take."""
        return bool(self._series)

    def add(self, sample: Sample) -> bool:
        """Take a sample; False if it is none: not a finite number, or a count below zero."""
        try:
            name, value = str(sample.name), float(sample.value)
            labels = tuple(sorted((str(key), str(label)) for key, label in sample.labels.items()))
            _ = "".join((name, *chain.from_iterable(labels))).encode()  # a lone surrogate cannot travel
        except Exception:  # whatever a service takes for a number
            return False
        if not math.isfinite(value) or (sample.kind == "count" and value < 0):
            return False
        if labels not in self._series and len(self._series) >= MAX_SERIES:
            labels = (("series", OTHER),)
        self._series.setdefault(labels, _Series()).add(sample.kind, name, value)
        return True

    def take(self, now: float, *, all_: bool = False) -> list[dict[str, Any]]:
        """The events that are due: those of the last second, or ``all_`` there is. ``now``: Unix time, seconds."""
        if not self._series or not (all_ or now >= self._due or self._due > now + FLUSH_S):
            return []
        self._due = now + FLUSH_S
        events = [
            {"time_unix_s": now, "labels": dict(labels) or None, **series.event()}
            for labels, series in self._series.items()
        ]
        self._series = {}
        return events
