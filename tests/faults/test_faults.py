"""Exactly once under faults: nothing missing, nothing wrong, nothing twice, on a real Kafka."""

from __future__ import annotations

import pytest

from tests.faults import scenarios
from tests.faults.faults import Kill, KillInRestore, KillInTransaction
from tests.faults.harness import Scenario, run, table
from tests.faults.stage import Grounds

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(240)]


async def play(grounds: Grounds, scenario: Scenario) -> None:
    report = await run(grounds, scenario, print)
    print(table([report]), *report.gave_up, sep="\n")
    assert not report.failure


def test_processors_are_killed_in_twenty_rounds_and_more() -> None:
    played = (*(scenarios.alone(name, seed=1) for name in scenarios.ALONE), scenarios.together(seed=1))
    faults = [fault for scenario in played for fault in scenario.rounds]
    assert sum(isinstance(fault, Kill | KillInTransaction | KillInRestore) for fault in faults) >= 20
    assert all(scenario.events >= 200_000 for scenario in played)


@pytest.mark.parametrize("name", scenarios.ALONE)
async def test_what_is_published_is_exact_under_one_kind_of_fault(grounds: Grounds, name: str) -> None:
    await play(grounds, scenarios.alone(name, seed=1))


async def test_what_is_published_is_exact_under_all_faults_together(grounds: Grounds) -> None:
    await play(grounds, scenarios.together(seed=1))
