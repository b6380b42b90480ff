"""A random log of profiles and references with every kind of trouble in it, for the contract of the drift task.

Three versions of two models: one with a reference that changes, one held against its last hours, one whose reference is
not there. Hours without traffic, supplements in time and too late, ticks, and records that are none.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any, Final

import msgspec

from streammon.broker import Record
from streammon.models import DriftPolicy, ModelPolicy, Models, ReferencePolicy
from streammon.profiles import PROFILES, REFERENCES, Reference
from streammon.results import Completeness
from streammon.tick import TICK
from streammon_processors.contract import Stored
from streammon_processors.drift import DriftTask
from tests.profiled import Value, profile, reference

BEGIN: Final = 1_700_000_000.0 // 3600 * 3600
PART_S: Final = 300.0
WINDOW_S: Final = 900.0
PAIRS: Final = (("features.age", "features.price"),)
MODELS: Final = Models(
    models=(
        ModelPolicy(
            model="rolling",
            max_false_alarms_per_month=50.0,
            drift=DriftPolicy(window="15m", min_samples=20, reference=ReferencePolicy(rolling="2h")),
        ),
        ModelPolicy(max_false_alarms_per_month=50.0, drift=DriftPolicy(window="15m", min_samples=20)),
    )
)


def values(
    rng: random.Random, count: int, shift: float = 0.0, missing: float = 0.1, lost: bool = False
) -> dict[str, list[Value]]:
    age: list[Value] = [None if rng.random() < missing else rng.gauss(30 + 10 * shift, 10) for _ in range(count)]
    return {
        "features.age": age,
        "features.price": [each * (1 - shift) + rng.gauss(0, 1) if isinstance(each, float) else None for each in age],
        "features.country": [rng.choice("abc" if shift else "aaabc") for _ in range(count)],
        "features.new" if lost else "features.old": [rng.random() for _ in range(count)],
        "prediction": [rng.random() < 0.3 + 0.4 * shift for _ in range(count)],
    }


def frames(rng: random.Random) -> list[Reference]:
    made = [("r1", "ranker", 0.0), ("r2", "ranker", 1.0), ("r3", "rolling", 0.0)]
    found = [
        reference(values(rng, 200, shift), name=name, model=model, pairs=PAIRS, bins=6) for name, model, shift in made
    ]
    found[0].automatic, found[0].since_unix_s = True, BEGIN - 86_400.0  # so what is usual is learned
    return found


@cache
def logs(seed: int) -> dict[str, Sequence[Record]]:
    rng = random.Random(seed)
    known = frames(rng)
    references = [*map(msgspec.json.encode, known), b"{", TICK, None]
    at = BEGIN
    stored = list[Stored]()
    for number in range(42):
        at += PART_S * rng.choice((1, 1, 1, 1, 1, 1, 1, 6))
        stamp = at + PART_S + rng.random()
        for value in _at(at, number, known, rng):
            stored.append(Stored(value, len(stored), round(1000 * stamp)))
        while rng.random() < 0.3:
            stamp += rng.choice((30.0, 30.0, 200.0))
            stored.append(Stored(rng.choice((TICK, TICK, TICK, b"{", None)), len(stored), round(1000 * stamp)))
    return {
        REFERENCES: [Stored(value, offset, round(1000 * BEGIN)) for offset, value in enumerate(references)],
        PROFILES: stored,
    }


def _at(at: float, number: int, known: list[Reference], rng: random.Random) -> Iterator[bytes]:
    """What is published when the watermark reaches the end of a part."""

    def record(frame: Reference | None, model: str, start: float = at, **fields: Any) -> bytes:
        shift = 0.5 if number % 14 > 8 else 0.0
        count = rng.choice((5, 20, 40))
        found = values(rng, count, shift, rng.choice((0.1, 0.1, 0.5)), lost=number % 20 > 16)
        made = profile(found, frame, start, PART_S, model=model, pairs=PAIRS, **fields)
        return msgspec.json.encode(
            msgspec.structs.replace(made, completeness=Completeness(watermark_unix_s=at + PART_S))
        )

    r1, r2, r3 = known
    yield record(r1 if number < 20 else r2, "ranker")
    yield record(r3, "rolling", version=None)
    if rng.random() < 0.5:
        yield record(r1, "ranker", version="2")
    if number < 3:
        yield record(None, "ranker", version="3")
    if rng.random() < 0.4:
        late = at - PART_S * rng.choice((1, 1, 2, 4))
        yield record(r3, "rolling", late, version=None, revision=number + 1)


def task(partition: int) -> DriftTask:
    return DriftTask(MODELS, partition)


def with_references(partition: int, seed: int = 0) -> DriftTask:
    """A task that has read all references."""
    made = task(partition)
    made.process(REFERENCES, logs(seed)[REFERENCES])
    return made
