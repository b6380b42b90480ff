"""A retraining judged by what the quality task makes of predictions and labels, not by records made for it."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping

from msgspec.structs import replace

from streammon.models import Models
from streammon.remediation import Known, Policies, Policy
from streammon_processors.quality.task import QualityTask
from streammon_processors.remediation.gather import GatherRemediesTask
from tests import quality_pairs, remedies
from tests.loops import RETRAIN, Looping, deploy, said
from tests.quality_pairs import Pair, cohort, log, outcomes

HOUR_S, STEP_S, DELAY_S = 3600.0, 300.0, 700.0
LATER_S = quality_pairs.T0 - remedies.T0
PATIENT = replace(RETRAIN, labels_within="4h", confirm=replace(RETRAIN.confirm, within="1d"))
POLICIES: Policies = {"retrain": Known(Policy(mode="auto", retrain=PATIENT), "v")}


class Shop:
    """Versions that predict, labels that come later, and everything that is made of them."""

    def __init__(self) -> None:
        self.looping = Looping(POLICIES, labels=0)
        self._quality, self._gather = QualityTask(Models(), 3), GatherRemediesTask(3, POLICIES, "60s")
        self._rng, self._offset, self._now = random.Random(5), 0, 0.0
        self._pairs: list[Pair] = []

    def serves(self, hours: float, versions: Mapping[str, tuple[int, float]]) -> None:
        """So many predictions of each version in five minutes, and how often they are right."""
        for _ in range(round(hours * HOUR_S / STEP_S)):
            made = [pair for version, (count, share) in versions.items() for pair in self._made(version, count, share)]
            self._pairs += made
            start, self._now = self._now, self._now + STEP_S
            come = [pair for pair in self._pairs if pair.labelled_s < self._now]
            self._pairs = [pair for pair in self._pairs if pair.labelled_s >= self._now]
            cohorts = [cohort(start, count=count, version=version) for version, (count, _) in versions.items()]
            self._read([(self._now, each) for each in [*cohorts, outcomes(come)]])

    def _made(self, version: str, count: int, share: float) -> Iterator[Pair]:
        for number in range(count):
            at, label = self._now + STEP_S * number / count, self._rng.random() < 0.5
            right = self._rng.random() < share
            yield Pair(label == right, label, None, at, at + DELAY_S, version=version)

    def _read(self, messages: list[tuple[float, object]]) -> None:
        records = log(messages, self._offset)  # type: ignore[arg-type]  # of the two that there are
        self._offset += len(records)
        told = [each.value for each in self._quality.process("outcomes", records)]
        gathered = self._gather.process("quality", log([(self._now, value) for value in told]))
        if gathered:
            self.looping.at(LATER_S + self._now, *(each.value for each in gathered))

    def retrains(self) -> None:
        now = LATER_S + self._now
        self.looping.approved(now)
        self.looping.done(now + 1)
        self.looping.at(now + 2, deploy(now + 2))


def test_a_better_version_that_takes_over_has_helped() -> None:
    shop = Shop()
    shop.serves(4, {"7": (50, 0.7)})
    shop.retrains()
    shop.serves(8, {"8": (50, 0.9)})
    loop = shop.looping.loops[-1]
    assert said(loop) == "closed: helped (measured)"
    assert loop.comparison
    assert loop.comparison.way == "before_after"
    assert abs(loop.comparison.old - 0.7) < 0.03
    assert loop.comparison.old_count > 1000


def test_a_better_version_beside_the_old_one_has_helped() -> None:
    shop = Shop()
    shop.serves(4, {"7": (50, 0.7)})
    shop.retrains()
    shop.serves(8, {"7": (40, 0.8), "8": (10, 0.95)})
    loop = shop.looping.loops[-1]
    assert said(loop) == "closed: helped (measured)"
    assert loop.comparison
    assert loop.comparison.way == "side_by_side"
    assert abs(loop.comparison.old - 0.8) < 0.05  # as it is now, not as it was


def test_one_that_is_worse_is_told_within_hours() -> None:
    shop = Shop()
    shop.serves(4, {"7": (50, 0.7)})
    shop.retrains()
    shop.serves(8, {"8": (50, 0.5)})
    loop = shop.looping.loops[-1]
    assert said(loop) == "closed: worse (measured)"
    assert loop.times["closed"] - loop.times["deployed"] < 3 * HOUR_S


def test_a_model_whose_labels_do_not_come_is_not_trained_anew() -> None:
    shop = Shop()
    shop.serves(0.15, {"7": (50, 0.7)})
    shop.looping.approved(LATER_S + 0.15 * HOUR_S)
    assert shop.looping.loops == []
