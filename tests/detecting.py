"""Logs for the detectors task: rollups, qualities and events of a few versions of models, some of which change."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import msgspec
import numpy as np

from streammon.events import EventType
from streammon.models import DetectorPolicy, ModelPolicy, Models, Use
from streammon.results import Completeness, Distribution, Quality, Window
from streammon.sketch import Sketch
from streammon.tick import TICK
from streammon.topics import ROLLUP_HEADER
from streammon_processors.contract import PARTITION, Stored, random_log

STEP_S = 4.0
BEGIN_S = 1_700_000_000.0
STEPS = 220
CHANGE = 150
"""From this step on, latency and errors of the first model are others."""
QUICK = DetectorPolicy(season="none", warm_up="200s", cool_down="40s", heartbeat="60s")
POLICY = ModelPolicy(max_false_alarms_per_month=1000.0, detectors=QUICK)
MODELS = Models((POLICY,))
EVERY = msgspec.structs.replace(
    QUICK,
    targets={
        "duration_s": (Use(), Use("adwin", {"delta": 0.01}), Use("kswin", {"window_size": 60, "stat_size": 20})),
        "error": (Use("ddm"), Use("hddm_a"), Use("hddm_w"), Use("fhddm"), Use("eddm", per_event=True)),
        "confidence": (Use("page_hinkley", per_event=True),),
        "input_tokens": (Use("adwin", per_event=True),),
        "accuracy": (Use(), Use("ddm")),
    },
)
EVENTFUL = Models((msgspec.structs.replace(POLICY, detectors=EVERY),))


def distribution(values: Any) -> Distribution:
    numbers = np.asarray(values, dtype=np.float64)
    p50, p90, p99 = (float(each) for each in np.quantile(numbers, (0.5, 0.9, 0.99)))
    return Distribution(
        count=len(numbers), sum=float(numbers.sum()), min=float(numbers.min()), max=float(numbers.max()),
        mean=float(numbers.mean()), p50=p50, p90=p90, p99=p99, sketch=Sketch.of(numbers),
    )  # fmt: skip


def window(start: float, series: dict[str, str], rng: np.random.Generator, *, changed: bool, **fields: Any) -> Window:
    """A rollup of 4 s, with what is usual or, when it has changed, with slower answers and more errors."""
    count = int(rng.integers(20, 60))
    seconds = rng.lognormal(-1.0 if changed else -2.0, 0.3, count)
    given = {
        "part": "main", "revision": 0, "start_unix_s": start, "end_unix_s": start + STEP_S, "size_s": STEP_S,
        "of_s": 2.0, "partition": PARTITION, "count": count, "throughput_per_s": count / STEP_S,
        "error_count": int(rng.binomial(count, 0.3 if changed else 0.05)), "duration_s": distribution(seconds),
        "confidence": distribution(rng.beta(8, 2, count)), "input_tokens": distribution(rng.poisson(40, count)),
        "completeness": Completeness(),
    }  # fmt: skip
    return Window(source="inference", series=series, **{**given, **fields})


SERIES = (
    {"service": "shop", "model": "ranker", "model_version": "1", "endpoint": "/a"},
    {"service": "shop", "model": "ranker", "model_version": "1", "endpoint": "/b"},
    {"service": "shop", "model": "ranker", "model_version": "2", "endpoint": "/a"},
    {"service": "shop", "model": "quiet"},
)


def window_log(seed: int, steps: int = STEPS) -> list[Stored]:
    """Rollups in the order in which they are published, with late parts, other windows, ticks and junk between them."""
    rng, dice = np.random.default_rng(seed), random.Random(seed)
    values: list[tuple[float, bytes | None, bool]] = []
    for number in range(steps):
        start = BEGIN_S + number * STEP_S
        at = start + STEP_S + 1.0 + (200.0 if dice.random() < 0.02 else 0.0)
        for place, series in enumerate(SERIES):
            changed = place < 2 and number >= CHANGE
            if dice.random() < 0.97:
                values.append((at, msgspec.json.encode(window(start, series, rng, changed=changed)), True))
        values += [(at, value, flag) for value, flag in _between(start, rng, dice)]
    return _stored(values)


def _between(start: float, rng: np.random.Generator, dice: random.Random) -> Iterator[tuple[bytes | None, bool]]:
    if dice.random() < 0.1:
        late = window(start - dice.choice((0.0, 40.0)), SERIES[0], rng, changed=False, part="late", revision=1)
        yield msgspec.json.encode(late), True
    if dice.random() < 0.1:
        resource = window(start, {"host": "a"}, rng, changed=False)
        yield msgspec.json.encode(msgspec.structs.replace(resource, source="resource")), True
    if dice.random() < 0.1:
        yield dice.choice((b"{", None, b'{"type":"window"}')), True
    if dice.random() < 0.3:
        yield dice.choice((TICK, b"{", b'{"of":"another length"}')), False


def _stored(values: list[tuple[float, bytes | None, bool]]) -> list[Stored]:
    header = ((ROLLUP_HEADER, b"4s"),)
    return [
        Stored(value, offset, round(at * 1000), headers=header if of_step else ())
        for offset, (at, value, of_step) in enumerate(values)
    ]


def quality_log(seed: int, steps: int = STEPS) -> list[Stored]:
    """What labels say of the first model, prequentially; it falls at the change. Slices, estimates and junk between."""
    rng, dice = np.random.default_rng(seed), random.Random(seed)
    values: list[tuple[float, bytes | None]] = []
    for number in range(steps):
        start = BEGIN_S + number * STEP_S
        share = 0.6 if number >= CHANGE else 0.9
        found = Quality(
            service="shop", model="ranker", model_version=dice.choice(("1", "1", "2")), by="label", start_unix_s=start,
            end_unix_s=start + STEP_S, size_s=STEP_S, partition=PARTITION, labelled=50,
            accuracy=float(rng.binomial(50, share)) / 50,
        )  # fmt: skip
        others = (
            msgspec.structs.replace(found, by="prediction", accuracy=0.1),
            msgspec.structs.replace(found, slice={"tenant": "a"}, accuracy=0.1),
            msgspec.structs.replace(found, labelled=0, accuracy=None),
        )
        values += [(start + 5.0, msgspec.json.encode(each)) for each in (found, dice.choice(others))]
        if dice.random() < 0.1:
            values.append((start + 5.0, dice.choice((TICK, b"{", None))))
    return [Stored(value, offset, round(at * 1000)) for offset, (at, value) in enumerate(values)]


def event_log(seed: int, events: int = 2500) -> list[Stored]:
    rng, dice = np.random.default_rng(seed), random.Random(seed)

    def made() -> Iterator[dict[str, Any]]:
        for number in range(events):
            changed = number > events * 0.7
            yield {
                "time_unix_s": BEGIN_S + number * 0.4,
                "service": "shop",
                "model": dice.choice(("ranker", "ranker", "other")),
                "duration_s": float(rng.lognormal(-2.0, 0.3)),
                "status": "error" if rng.random() < (0.5 if changed else 0.05) else "ok",
                "input_tokens": int(rng.poisson(80 if changed else 40)),
                "confidence": float(rng.beta(4, 4) if changed else rng.beta(8, 2)),
            } | ({"model_version": "1"} if dice.random() < 0.8 else {})

    return random_log(EventType.INFERENCE, made(), dice)
