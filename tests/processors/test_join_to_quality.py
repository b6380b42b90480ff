"""Predictions and labels through the join and the quality task: what comes out is what a plain computation says."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from statistics import fmean
from typing import Any

import msgspec
import pytest

from streammon import wire
from streammon.config import Settings
from streammon.events import EventType
from streammon.models import LabelPolicy, ModelPolicy, Models
from streammon.outcomes import OUTCOMES
from streammon.results import Quality
from streammon.tick import TICK
from streammon.wire import Density
from streammon_processors.contract import PARTITION, Stored
from streammon_processors.join import JoinTask
from streammon_processors.quality import QualityTask
from tests.quality_pairs import T0

MODELS = Models((ModelPolicy(labels=LabelPolicy(horizon="10m", window="1m", slices=("tenant",))),))
MODEL = {"service": "shop", "model": "ranker"}
TYPES = {"inference": EventType.INFERENCE, "labels": EventType.LABEL}
Event = Mapping[str, Any]
STEP_S, LAST_S = 5.0, 2400.0


def events(rng: random.Random) -> Iterator[tuple[str, Event]]:
    """A prediction each second for 10 minutes; most get a label within minutes, some labels name nobody."""
    for number in range(600):
        at, confidence, tenant = T0 + number, 0.5 + rng.random() / 2, rng.choice("ab")
        positive, right = rng.random() < 0.4, rng.random() < confidence - 0.2 * (tenant == "b")
        name = f"e{number}"
        yield (
            "inference",
            {
                "time_unix_s": at, **MODEL, "model_version": "v1", "duration_s": 0.1, "status": "ok", "event_id": name,
                "prediction": positive, "confidence": confidence, "tenant": tenant,
            },
        )  # fmt: skip
        if rng.random() < 0.8:
            label = {"event_id": name if rng.random() < 0.9 else f"x{number}", "label": positive == right}
            yield "labels", {"time_unix_s": at + min(rng.expovariate(1 / 120), 500.0), **MODEL, **label}


def published(every: list[tuple[str, Event]]) -> list[Quality]:
    """In steps of some seconds, with a tick in each topic after each."""
    join, quality, offsets, found = JoinTask(PARTITION, MODELS, Settings()), QualityTask(MODELS, PARTITION), {}, []
    offsets = dict.fromkeys((*TYPES, OUTCOMES), 0)

    def records(topic: str, values: list[bytes], at_s: float) -> list[Stored]:
        first, offsets[topic] = offsets[topic], offsets[topic] + len(values)
        return [Stored(value, first + place, round(1000 * (T0 + at_s))) for place, value in enumerate(values)]

    for step in range(1, round(LAST_S / STEP_S)):
        until = STEP_S * step
        values = []
        for topic, type_ in TYPES.items():
            mine = [
                each for name, each in every if name == topic and until - STEP_S <= each["time_unix_s"] - T0 < until
            ]
            batch = wire.encode(type_, mine, Density.COLUMNS) if mine else []
            outputs = join.process(topic, records(topic, [*batch, TICK], until))
            values += [each.value or b"" for each in outputs if each.topic == OUTCOMES]
        told = quality.process(OUTCOMES, records(OUTCOMES, [*values, TICK], until))
        found += [msgspec.json.decode(each.value or b"", type=Quality) for each in told if each.topic == "quality"]
    assert not quality.waiting
    return found


def test_what_is_told_is_what_a_plain_computation_says() -> None:
    every = list(events(random.Random(1)))
    predictions = {each["event_id"]: each for topic, each in every if topic == "inference"}
    labels = {each["event_id"]: each for topic, each in every if topic == "labels"}
    matched = [(each, labels[name]) for name, each in predictions.items() if name in labels]
    found = published(every)
    by_label = [each for each in found if each.by == "label" and not each.slice]
    finals = [each for each in found if each.final]
    assert sum(each.labelled for each in by_label) == len(matched)
    assert sum(each.unmatched_labels for each in finals) == len(labels) - len(matched)
    for final in finals:
        if final.model_version is None:  # labels that found nothing, of no version
            continue
        mine = [
            (prediction, label)
            for prediction, label in matched
            if final.start_unix_s <= prediction["time_unix_s"] < final.end_unix_s
            and prediction["tenant"] == final.slice.get("tenant", prediction["tenant"])
        ]
        made = [
            each
            for each in predictions.values()
            if final.start_unix_s <= each["time_unix_s"] < final.end_unix_s
            and each["tenant"] == final.slice.get("tenant", each["tenant"])
        ]
        assert (final.predictions, final.labelled) == (len(made), len(mine))
        assert final.coverage == pytest.approx(len(mine) / len(made))
        assert final.accuracy == pytest.approx(fmean(one["prediction"] == label["label"] for one, label in mine))
    assert {str(each.slice) for each in finals} == {"{}", "{'tenant': 'a'}", "{'tenant': 'b'}"}
    gaps = [each.disparity["accuracy"] for each in finals if each.slice == {"tenant": "b"}]
    assert fmean(gaps) < -0.1
