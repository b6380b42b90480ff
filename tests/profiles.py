"""Logs of predictions with features, references between them, and what profiles of them must say: worked out slowly."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import numpy as np
import pytest

from streammon.broker import Outgoing
from streammon.config import WindowSettings
from streammon.models import DriftPolicy, ModelPolicy, Models, ReferencePolicy
from streammon.profiles import Profile, Reference, TargetProfile, TargetReference
from streammon.reference_ticks import in_ticks
from streammon_processors.profiles.sample import Sample
from streammon_processors.profiles.targets import Events
from tests.logs import RandomLog
from tests.oracle import COUNTERS, Entry, Event, Expected, Labels, Oracle

POLICY = DriftPolicy(
    window=4.0,
    reference=ReferencePolicy(first=20),
    text=("features.query",),
    categorical=("features.store",),
    pairs=(("features.price", "features.size"), ("confidence", "features.query")),
)
MODELS = Models(models=(ModelPolicy(drift=POLICY),), profile_window=2.0)
SETTINGS = WindowSettings(size_s=2.0, max_late_s=60.0, inference_by=("service", "model", "model_version"))


class FeatureLog(RandomLog):
    """Versions come and go, features change their type, and somebody publishes references."""

    def __init__(self, seed: int, batches: int = 60) -> None:
        self.published: list[Reference] = []
        self._often = 0.04 if seed % 3 == 0 else 0.0
        super().__init__(seed, batches)

    def _step(self) -> None:
        if self._random.random() < self._often:
            self._publish()
        super()._step()

    def _publish(self) -> None:
        rng = self._random
        events = [self._inference() for _ in range(30)]
        version = rng.choice((None, None, "v1"))
        reference = reference_of(events, model=rng.choice(("ranker", "scorer")), version=version)
        again = [rng.choice(self.published)] if self.published and rng.random() < 0.3 else []
        for each in (reference, *again):
            self.published.append(each)
            for tick in in_ticks(each):
                self.entries.append(ReferenceEntry(self._broker_ms(), tick.value, None, each))

    def _inference(self) -> Event:
        rng = self._random
        price = rng.choice((rng.gauss(300, 1), rng.gauss(300, 1), 0.0, 1e6))
        features: dict[str, Any] = {
            "price": price,
            "size": rng.choice((price * 2 + rng.random(), None)),
            "rooms": float(rng.randrange(5)),
            "city": rng.choice(("Rome", "Oslo", "Bern", f"village {rng.randrange(200)}", "x" * 200)),
            "new": rng.choice((True, False, None)),
            "query": rng.choice(("", "a", "shoes", "red shoes for a child", None)),
            "store": float(rng.randrange(3)),
            "odd": rng.choice((1.0, "one", True, None)),
        }
        gone = rng.choice(list(features))
        return {
            **super()._inference(),
            "model_version": rng.choice((None, "v1", "v2")),
            "prediction": rng.choice((rng.random(), rng.random(), "cat", True, None)),
            "features": rng.choice((None, {}, *[{k: v for k, v in features.items() if k != gone}] * 8)),
        }

    def _faults(self) -> list[Event]:
        return [*super()._faults(), {"features": {"price": math.nan}}]


class ReferenceEntry(Entry):
    """A tick that brings a reference."""

    def __new__(cls, timestamp: int, value: bytes | None, refused: None, reference: Reference) -> ReferenceEntry:
        made = super().__new__(cls, timestamp, value, refused)
        made.reference = reference
        return made

    reference: Reference


def reference_of(events: Sequence[Event], *, model: str = "ranker", version: str | None = None) -> Reference:
    """A reference that somebody makes of these events."""
    sample = Sample(POLICY)
    held = held_events(events)
    sample.add(sample.columns(held), len(held))
    return sample.reference("shop", model, version, origin="a test", made_unix_s=1.0)


def held_events(events: Sequence[Event]) -> Events:
    confidence = [event.get("confidence") for event in events]
    features = [event.get("features") for event in events]
    predictions = [event.get("prediction") for event in events]
    return Events(features, predictions, np.array(confidence, dtype=np.float64), POLICY)


class ProfileOracle(Oracle):
    """Which events belong to which profile, and in the bins of which reference they are counted."""

    def __init__(self) -> None:
        super().__init__("inference", SETTINGS)
        self.first: dict[Labels, list[Event]] = {}
        self.complete: dict[Labels, int] = {}
        self.told: list[tuple[int, Reference]] = []

    def _tick(self, offset: int, entry: Entry) -> None:
        if isinstance(entry, ReferenceEntry):
            self._tell(entry.reference)
        super()._tick(offset, entry)

    def _tell(self, reference: Reference) -> None:
        same = [each for _, each in self.told if self._of(each) == self._of(reference)]
        if same[-1:] and same[-1].id == reference.id:
            return
        self.told.append((self._next_window(self.newest), reference))
        for series in list(self.first):
            if series not in self.complete and self._covers(reference, dict(series)):
                del self.first[series]

    def _publish(self, offset: int) -> None:
        super()._publish(offset)
        for each in self.publications[-1].windows:
            held = not each.series or any(self._covers(reference, each.series) for _, reference in self.told)
            if each.part == "main" and not held and self.expected_reference(each) is None:
                series = tuple(each.series.items())
                if series not in self.complete:
                    self.first.setdefault(series, []).extend(each.events[: POLICY.reference.first])
        for series, events in self.first.items():
            if series not in self.complete and len(events) >= POLICY.reference.first:
                self.complete[series] = self._next_window(self.newest)

    def _next_window(self, newest: float) -> int:
        return 0 if newest == -math.inf else math.floor(newest / self.settings.size_s) + 1

    @staticmethod
    def _of(reference: Reference) -> tuple[Any, ...]:
        return reference.service, reference.model, reference.model_version

    @staticmethod
    def _covers(reference: Reference, series: dict[str, str]) -> bool:
        mine = (reference.service, reference.model) == (series["service"], series["model"])
        return mine and reference.model_version in (None, series.get("model_version"))

    def expected_reference(self, expected: Expected) -> str | None:
        """The id of a published one, ``first`` for that of the first events, None for none."""
        series = expected.series
        told = [each for window, each in self.told if window <= expected.number and self._covers(each, series)]
        if own := [each for each in told if each.model_version == series.get("model_version")]:
            return own[-1].id
        if told:
            return told[-1].id
        window = self.complete.get(tuple(series.items()))
        return "first" if window is not None and window <= expected.number else None


def decoded(outputs: Iterable[Outgoing], topic: str, type_: Any) -> list[Any]:
    return [msgspec.json.decode(output.value or b"", type=type_) for output in outputs if output.topic == topic]


def check_profile(profile: Profile, expected: Expected, reference: Reference | None) -> None:
    """Every number of a profile against its events."""
    events = expected.events
    assert profile.count == len(events)
    assert {name: getattr(profile.completeness, name) for name in COUNTERS} == expected.counters
    assert profile.completeness.watermark_unix_s == expected.watermark
    values = values_by_target(events)
    known = reference.targets if reference is not None and events else {}
    assert set(profile.targets) == values.keys() | known.keys()
    for name, target in profile.targets.items():
        check_target(name, target, values.get(name, []), len(events), known.get(name))
    for x, y in POLICY.pairs:
        both = [
            (a[x], b[y])
            for a, b in zip(numbers_by_event(events), numbers_by_event(events), strict=True)
            if x in a and y in b
        ]
        check_pair(profile.pairs.get(f"{x},{y}"), both)


def values_by_target(events: Sequence[Event]) -> dict[str, list[Any]]:
    values: dict[str, list[Any]] = {}
    for event in events:
        for name, value in (event.get("features") or {}).items():
            values.setdefault(f"features.{name}", []).append(value)
        for name in ("prediction", "confidence"):
            if event.get(name) is not None:
                values.setdefault(name, []).append(event[name])
    return {name: [value for value in some if value is not None] for name, some in values.items()}


def as_read(name: str, value: Any) -> Any:
    """A number, or the name of a category; None for a value that is not looked at."""
    if name in POLICY.text:
        return float(len(value)) if isinstance(value, str) else None
    if name in POLICY.categorical or not isinstance(value, float):
        return value if isinstance(value, str) else f"{value:g}" if isinstance(value, float) else str(value).lower()
    return value


def numbers_by_event(events: Sequence[Event]) -> list[dict[str, float]]:
    found = []
    for event in events:
        flat = {f"features.{name}": value for name, value in (event.get("features") or {}).items()}
        flat |= {name: event.get(name) for name in ("prediction", "confidence")}
        read = {name: as_read(name, value) for name, value in flat.items() if value is not None}
        found.append({name: value for name, value in read.items() if isinstance(value, float)})
    return found


def check_target(
    name: str, target: TargetProfile, values: Sequence[Any], events: int, known: TargetReference | None
) -> None:
    kinds = Counter({float: "number", str: "text", bool: "truth"}[type(value)] for value in values)
    assert target.types == dict(kinds), name
    assert target.missing == events - len(values), name
    read = [as_read(name, value) for value in values]
    check_numbers(name, target, [value for value in read if isinstance(value, float)], known)
    categories = [value for value in read if isinstance(value, str)]
    expected, other = first_categories(categories, set(known.values or ()) if known is not None else set())
    assert (target.values or {}, target.other) == (expected, other), name


def first_categories(values: Sequence[str], known: set[str]) -> tuple[dict[str, int], int]:
    counts: dict[str, int] = {}
    other = unseen = 0
    for value in values:
        if value in known or value in counts:
            counts[value] = counts.get(value, 0) + 1
        elif unseen < 50 and len(value) <= 120:
            unseen, counts[value] = unseen + 1, 1
        else:
            other += 1
    return counts, other


def check_numbers(name: str, target: TargetProfile, values: Sequence[float], known: TargetReference | None) -> None:
    numbers = target.numbers
    if not values:
        assert numbers is None, name
        return
    assert numbers is not None, name
    total = squares = 0.0
    for value in values:  # in log order: sums of floats depend on it
        total += value
        away = value - (known.center if known is not None else 0.0)
        squares += away * away
    assert (numbers.count, numbers.min, numbers.max) == (len(values), min(values), max(values)), name
    assert (numbers.sum, numbers.sum_of_squares) == (total, squares), name
    assert numbers.sketch.count == len(values), name
    assert numbers.bins == (binned(values, known.edges) if known is not None and known.edges else None), name


def binned(values: Sequence[float], edges: Sequence[float]) -> list[int]:
    """Bin ``i`` holds what is above edge ``i - 1`` and at most edge ``i``."""
    counts = [0] * (len(edges) + 1)
    for value in values:
        counts[bisect_left(edges, value)] += 1
    return counts


def check_pair(found: Any, both: Sequence[tuple[float, float]]) -> None:
    if not both:
        assert found is None
        return
    n = len(both)
    mean_x, mean_y = sum(x for x, _ in both) / n, sum(y for _, y in both) / n
    exact = {
        "mean_x": mean_x,
        "mean_y": mean_y,
        "m2_x": sum((x - mean_x) ** 2 for x, _ in both),
        "m2_y": sum((y - mean_y) ** 2 for _, y in both),
        "c_xy": sum((x - mean_x) * (y - mean_y) for x, y in both),
    }
    assert found.count == n
    for name, value in exact.items():
        assert getattr(found, name) == pytest.approx(value, rel=1e-9, abs=0.01), name  # of 1e12, squared


def check_reference(reference: Reference, events: Sequence[Event]) -> None:
    """What a reference says of its targets, against its events."""
    values = {name: some for name, some in values_by_target(events).items() if some}
    assert reference.sample_size == len(events)
    assert set(reference.targets) == set(values)
    for name, target in reference.targets.items():
        read = [as_read(name, value) for value in values[name]]
        numbers = [value for value in read if isinstance(value, float)]
        assert (target.count, target.missing) == (len(read), len(events) - len(read)), name
        if target.kind != "categorical":
            assert target.edges is not None, name
            assert target.bins == binned(numbers, target.edges), name
            assert target.bins[0] == target.bins[-1] == 0, name
            assert (target.min, target.max) == (min(numbers), max(numbers)), name
        if target.kind == "categorical":
            counts = Counter(value for value in read if isinstance(value, str) and len(value) <= 120)
            assert target.values == dict(counts), name
