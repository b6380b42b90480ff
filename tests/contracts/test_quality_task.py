"""The contract of tasks, held by the quality task."""

from __future__ import annotations

import random
from dataclasses import replace

import msgspec

from streammon.broker import Outgoing
from streammon.config import Settings
from streammon.models import LabelPolicy, ModelPolicy, Models
from streammon.outcomes import Cohort, Outcomes
from streammon.results import Quality
from streammon.tick import TICK
from streammon_processors.builtin import quality_processor, rules_processor
from streammon_processors.contract import Logs, ProcessorContract, Stored
from streammon_processors.quality import QualityTask
from streammon_processors.rules import Rule, Rules, RulesTask
from tests.quality_pairs import Pair, cohort, log, outcomes, random_pairs

POLICY = Models((ModelPolicy(labels=LabelPolicy(horizon="8m", window="1m")),))


def random_log(seed: int) -> list[Stored]:
    """Two models, one with numbers, one with slices; labels before predictions, junk, ticks, and a silence."""
    rng = random.Random(seed)
    pairs = random_pairs(150, rng, over_s=900, delay_s=120)
    numbers = [
        Pair(
            rng.gauss(0, 1),
            rng.gauss(0, 1),
            None,
            at,
            at + rng.uniform(-30, 300),
            rng.choice(["v1", "v2"]),
            rng.random(),
        )
        for at in range(0, 900, 13)
    ]
    found: list[tuple[float, Outcomes | Cohort | bytes | None]] = []
    for start in range(0, 900, 60):
        mine = [pair for pair in pairs if start <= pair.predicted_s < start + 60]
        acme = [pair for pair in mine if pair.slices["tenant"] == "acme"]
        for each, slice_ in ((mine, {}), (acme, {"tenant": "acme"})):
            found.append((start + 62, cohort(start, each, size_s=60, slice=slice_)))
        found.append((start + 62, cohort(start, size_s=60, count=5, model="price", version="v2")))
    for model, all_ in (("ranker", pairs), ("price", sorted(numbers, key=lambda pair: pair.labelled_s))):
        left = all_
        while left:
            part, left = left[: (size := rng.randint(1, 12))], left[size:]
            found.append((max(part[-1].labelled_s, part[-1].predicted_s) + 1, outcomes(part, model=model)))
    found += [(rng.uniform(0, 1500), rng.choice([TICK, b"{", None, b'{"type":"outcomes"}'])) for _ in range(10)]
    found += [(2000 + 15 * number, TICK) for number in range(10)]
    return log(sorted(found, key=lambda each: each[0]))


class TestQuality(ProcessorContract):
    processor = replace(quality_processor(Settings()), task=lambda number: QualityTask(POLICY, number))
    seeds = range(3)

    def logs(self, seed: int) -> Logs:
        return {"outcomes": random_log(seed)}


class TestQualityWithoutRoom(ProcessorContract):
    """Cohorts that have to go before their time."""

    processor = replace(quality_processor(Settings()), task=lambda number: QualityTask(POLICY, number, max_bytes=4000))
    seeds = range(1)

    def logs(self, seed: int) -> Logs:
        return {"outcomes": random_log(seed)}


def results(outputs: list[Outgoing]) -> list[Quality]:
    return [msgspec.json.decode(each.value or b"", type=Quality) for each in outputs if each.topic == "quality"]


def test_the_logs_make_results_of_all_kinds() -> None:
    found = results(QualityTask(POLICY, 3).process("outcomes", random_log(0)))
    assert {(each.by, each.final) for each in found} == {("label", False), ("prediction", False), ("prediction", True)}
    assert {each.model for each in found} == {"ranker", "price"}
    assert max(each.revision for each in found) > 2
    assert any(each.estimation_error is not None for each in found)
    assert any("accuracy" in each.disparity for each in found)


RULES = Rules(
    (
        msgspec.convert(
            {
                "name": "low", "source": "quality", "expr": "intervals.accuracy.high < 0.95 && labelled > 3",
                "for": "1m", "severity": "warning", "summary": "{value}", "where": {"by": "label"},
            },
            Rule,
        ),
        msgspec.convert(
            {
                "name": "few", "source": "quality", "expr": "coverage < 0.9", "where": {"by": "horizon"},
                "severity": "warning", "summary": "{value}", "no_data": "fire", "no_data_for": "5m", "warm_up": "1m",
            },
            Rule,
        ),
    )
)  # fmt: skip


class TestRulesOnQuality(ProcessorContract):
    """What rules make of what the quality task tells, revisions that they do not look at among it."""

    processor = replace(rules_processor(Settings()), inputs=("quality",), task=lambda number: RulesTask(RULES, number))
    seeds = range(1)

    def logs(self, seed: int) -> Logs:
        task, found = QualityTask(POLICY, 3), list[tuple[bytes | None, int]]()
        for record in random_log(seed):
            told = [each.value for each in task.process("outcomes", [record]) if each.topic == "quality"]
            found += [(value, record.timestamp) for value in told]
        found += [(TICK, found[-1][1] + 5000 * number) for number in range(80)]
        return {"quality": [Stored(value, offset, stamp) for offset, (value, stamp) in enumerate(found)]}

    def test_both_rules_fire(self) -> None:
        outputs = [output for _, _, some in self._undisturbed() for output in some if output.topic == "alerts"]
        alerts = [msgspec.json.decode(each.value or b"") for each in outputs]
        assert {each["rule"] for each in alerts if each["state"] == "firing"} == {"low", "few"}
        assert "no_data" in {each["state"] for each in alerts}
