"""Rules on quality: what they look at, and that the shipped one sees concept drift and is silent without it."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import pytest

from streammon.broker import Outgoing
from streammon.models import LabelPolicy, ModelPolicy, Models
from streammon.results import Alert, Distribution, Interval, Quality
from streammon.sketch import EMPTY
from streammon_processors.contract import Stored
from streammon_processors.quality import QualityTask
from streammon_processors.rules import DEFAULT_RULES, Rule, Rules, RulesTask, load_rules
from tests.quality_pairs import T0, Pair, log, outcomes


def rule(**said: Any) -> Rule:
    said = {"for" if name == "for_" else name: value for name, value in said.items()}
    return msgspec.convert({"name": "r", "source": "quality", "severity": "warning", "summary": "{value}"} | said, Rule)


def quality(minute: float, **fields: Any) -> Quality:
    """Of the five minutes that end then."""
    told: dict[str, Any] = {
        "service": "shop",
        "model": "ranker",
        "model_version": "v1",
        "by": "label",
        "start_unix_s": T0 + 60 * minute - 300,
        "end_unix_s": T0 + 60 * minute,
        "size_s": 300.0,
        "partition": 3,
        "labelled": 500,
    }
    return Quality(**(told | fields))


def told(rules: Sequence[Rule], results: Iterable[Quality]) -> tuple[list[Alert], list[Outgoing]]:
    records, newest = list[Stored](), 0.0
    for offset, each in enumerate(results):
        newest = max(newest, each.end_unix_s)
        records.append(Stored(msgspec.json.encode(each), offset, round(1000 * newest)))
    found = RulesTask(Rules(tuple(rules)), 3).process("quality", records)
    alerts = [msgspec.json.decode(each.value or b"", type=Alert) for each in found if each.topic == "alerts"]
    return alerts, [each for each in found if each.topic == "deadletter"]


def states(alerts: Iterable[Alert]) -> list[tuple[str, float]]:
    return [(each.state, round((each.updated_unix_s - T0) / 60, 3)) for each in alerts]


def test_a_rule_holds_a_measure_against_a_bound_and_says_of_which_slice() -> None:
    bad = rule(expr="accuracy < 0.9", summary="{model} {slice}: {value}")
    alerts, _ = told(
        [bad],
        [quality(5, accuracy=0.95), quality(5, accuracy=0.8, slice={"tenant": "acme"}), quality(10, accuracy=0.95)],
    )
    assert states(alerts) == [("firing", 5)]
    assert alerts[0].labels == {
        "service": "shop", "model": "ranker", "model_version": "v1", "slice": "tenant=acme", "by": "label",
    }  # fmt: skip
    assert alerts[0].summary == "ranker tenant=acme: 80 %"
    assert alerts[0].evidence["quality"]["accuracy"] == 0.8


@pytest.mark.parametrize(
    ("expr", "condition"),
    [
        ("intervals.accuracy.high < 0.9", "high end of accuracy 85 % < 90 %"),
        ("disparity.f1 < 0", "disparity of f1 -0.2 < 0"),
        ("intervals.disparity.f1.high < 0", "high end of disparity of f1 -0.1 < 0"),
        ("estimates.auc < 0.8", "estimate of auc 0.7 < 0.8"),
        ("label_delay_s.p90 > 60", "p90 of label_delay_s 100 s > 60 s"),
    ],
)
def test_what_was_wrong_is_said_in_words(expr: str, condition: str) -> None:
    result = quality(
        5,
        intervals={"accuracy": Interval(0.75, 0.85), "disparity.f1": Interval(-0.3, -0.1)},
        disparity={"f1": -0.2},
        estimates={"auc": 0.7},
        label_delay_s=Distribution(
            count=1, sum=100.0, min=100.0, max=100.0, mean=100.0, p50=100.0, p90=100.0, p99=100.0, sketch=EMPTY
        ),
    )
    [fired], _ = told([rule(expr=expr)], [result])
    assert fired.condition == condition


@pytest.mark.parametrize(
    ("expr", "fields"),
    [
        ("intervals.accuracy.high < 0.9", {"accuracy": 0.8, "intervals": {"accuracy": Interval(0.75, 0.85)}}),
        ("intervals.disparity.f1.high < 0", {"intervals": {"disparity.f1": Interval(-0.3, -0.1)}}),
        ("abs(disparity.auc) > 0.1", {"disparity": {"auc": -0.2}}),
        ("estimates.f1 < 0.5", {"estimates": {"f1": 0.4}}),
        ("coverage < 0.5 && predictions > 100", {"coverage": 0.1, "predictions": 1000}),
        ("rmse > 3", {"rmse": 4.0}),
    ],
)
def test_everything_that_is_told_can_be_asked_for_and_what_is_missing_fires_nothing(
    expr: str, fields: dict[str, Any]
) -> None:
    alerts, letters = told([rule(expr=expr)], [quality(5), quality(10, **fields)])
    assert (states(alerts), letters) == ([("firing", 10)], [])


def test_for_and_ladder_are_as_for_every_rule() -> None:
    rules = [
        rule(
            expr="accuracy < 0.9", for_="10m", ladder=[{"severity": "critical", "expr": "accuracy < 0.5", "for": "0s"}]
        )
    ]
    alerts, _ = told(rules, [quality(5, accuracy=0.8), quality(10, accuracy=0.8), quality(15, accuracy=0.4)])
    assert [(each.state, each.severity) for each in alerts] == [
        ("pending", "warning"),
        ("firing", "warning"),
        ("firing", "critical"),
    ]


def test_of_a_cohort_rules_see_the_first_and_the_last_revision_as_series_of_their_own() -> None:
    cohorts = [
        quality(5, by="prediction", estimated_accuracy=0.7),
        quality(10, by="prediction", estimated_accuracy=0.95),
        quality(5, by="prediction", revision=1, estimated_accuracy=0.7, coverage=0.2),
        quality(5, by="prediction", revision=2, estimated_accuracy=0.7, coverage=0.3, final=True),
    ]
    alerts, letters = told([rule(expr="estimated_accuracy < 0.8", where={"by": "prediction"})], cohorts)
    assert states(alerts) == [("firing", 5), ("resolved", 10)]
    assert letters == []
    alerts, letters = told([rule(expr="coverage < 0.5", where={"by": "horizon"})], cohorts)
    assert (states(alerts), letters) == ([("firing", 5)], [])


# --- the shipped rule


def pairs(minutes: int, worse_from: float, seed: int) -> list[Pair]:
    """60 labels a minute; from some minute on, the model is right less often than it thinks."""
    rng = random.Random(seed)
    found = []
    for number in range(60 * minutes):
        at, confidence = 1.0 * number, 0.5 + rng.random() / 2
        right = rng.random() < confidence - 0.15 * (at >= 60 * worse_from)
        positive = rng.random() < 0.5
        found.append(Pair(positive, positive if right else not positive, confidence, at, at))
    return found


def shipped(every: Sequence[Pair]) -> list[Alert]:
    policy = Models((ModelPolicy(labels=LabelPolicy(window="5m")),))
    records = log(
        [(part[-1].labelled_s, outcomes(part)) for part in (every[at : at + 10] for at in range(0, len(every), 10))]
    )
    published = QualityTask(policy, 3).process("outcomes", records)
    results = (msgspec.json.decode(each.value or b"", type=Quality) for each in published)
    [mine] = [each for each in load_rules([DEFAULT_RULES]) if each.name == "quality-below-expected"]
    return [each for each in told([mine], results)[0] if each.state == "firing"]


def test_the_shipped_rule_sees_that_a_model_is_right_less_often_than_it_thinks() -> None:
    [fired] = shipped(pairs(180, worse_from=120, seed=1))
    assert fired.labels["model"] == "ranker"
    assert 125 <= (fired.updated_unix_s - T0) / 60 <= 140


def test_the_shipped_rule_asks_nothing_of_predictions_without_a_confidence() -> None:
    rng, every = random.Random(3), pairs(180, worse_from=1e9, seed=3)
    fallback = [each._replace(confidence=None, label=rng.random() < 0.5) for each in every]
    mixed = [rng.choice(both) for both in zip(every, fallback, strict=True)]
    assert shipped(mixed) == []


def test_the_shipped_rule_is_silent_where_nothing_has_changed() -> None:
    assert [shipped(pairs(480, worse_from=1e9, seed=seed)) for seed in range(2)] == [[]] * 2
