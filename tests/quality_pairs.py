"""Pairs of predictions and labels for tests, as the topic `outcomes` has them."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from math import floor
from typing import Any, NamedTuple

import msgspec

from streammon.outcomes import CONFIDENCE_BINS, Cohort, Outcomes, Value, class_name
from streammon_processors.contract import Stored

T0 = 1_700_006_400.0
"""The beginning of an hour, and of a time of 5 minutes."""


class Pair(NamedTuple):
    """A prediction, and what its label event said."""

    prediction: Value = None
    label: Value = None
    confidence: float | None = None
    predicted_s: float = 0.0
    """Seconds after `T0`."""
    labelled_s: float = 0.0
    version: str | None = "v1"
    score: float | None = None
    rating: float | None = None
    slices: Mapping[str, str | None] = {}


def outcomes(pairs: Sequence[Pair], service: str = "shop", model: str = "ranker") -> Outcomes:
    names = sorted({name for pair in pairs for name in pair.slices})
    return Outcomes(
        service=service,
        model=model,
        partition=3,
        count=len(pairs),
        event_id=[f"e{number}" for number in range(len(pairs))],
        model_version=[pair.version for pair in pairs],
        predicted_unix_s=[T0 + pair.predicted_s for pair in pairs],
        labelled_unix_s=[T0 + pair.labelled_s for pair in pairs],
        prediction=[pair.prediction for pair in pairs],
        confidence=[pair.confidence for pair in pairs],
        label=[pair.label for pair in pairs],
        score=[pair.score for pair in pairs],
        rating=[pair.rating for pair in pairs],
        slices={name: [pair.slices.get(name) for pair in pairs] for name in names},
    )


def cohort(
    start_s: float,
    pairs: Iterable[Pair] = (),
    *,
    count: int | None = None,
    size_s: float = 300.0,
    version: str | None = "v1",
    **fields: Any,
) -> Cohort:
    """The cohort of the predictions of ``size_s`` from then on, with what ``pairs`` say of their confidence."""
    mine = list(pairs)
    confidence: dict[str, list[int]] = {}
    for pair in mine:
        if pair.confidence is not None and pair.prediction is not None:
            counts = confidence.setdefault(class_name(pair.prediction), [0] * CONFIDENCE_BINS)
            counts[min(floor(pair.confidence * CONFIDENCE_BINS), CONFIDENCE_BINS - 1)] += 1
    total = len(mine) if count is None else count
    told: dict[str, Any] = {
        "service": "shop",
        "model": "ranker",
        "model_version": version,
        "part": "main",
        "revision": 0,
        "start_unix_s": T0 + start_s,
        "end_unix_s": T0 + start_s + size_s,
        "size_s": size_s,
        "partition": 3,
        "count": total,
        "with_id": total,
        "confidence": confidence,
    }
    return Cohort(**(told | fields))


def log(messages: Iterable[tuple[float, Outcomes | Cohort | bytes | None]], first: int = 0) -> list[Stored]:
    """Each with when the broker gets it, in seconds after `T0`."""
    return [
        Stored(
            message if isinstance(message, bytes | None) else msgspec.json.encode(message),
            offset,
            round(1000 * (T0 + at_s)),
        )
        for offset, (at_s, message) in enumerate(messages, first)
    ]


def random_pairs(count: int, rng: random.Random, *, over_s: float, delay_s: float, **fields: Any) -> list[Pair]:
    """Of a model that is as often right as its confidence says, in the order in which labels come."""
    pairs = []
    for number in range(count):
        predicted_s = over_s * number / count
        positive = rng.random() < 0.3
        confidence = rng.choice([0.5 + rng.random() / 2, 1.0])
        right = rng.random() < confidence
        pairs.append(
            Pair(
                prediction=positive,
                label=positive if right else not positive,
                confidence=confidence,
                predicted_s=predicted_s,
                labelled_s=predicted_s + rng.expovariate(1 / delay_s),
                slices={"tenant": rng.choice(["acme", "globex", None]), "country": rng.choice("abc")},
                **fields,
            )
        )
    return sorted(pairs, key=lambda pair: pair.labelled_s)
