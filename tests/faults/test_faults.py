"""Exactly once under faults: nothing missing, nothing wrong, nothing twice, on a real Kafka."""

from __future__ import annotations

import pytest

from tests.faults import scenarios
from tests.faults.harness import Scenario, run, table
from tests.faults.stage import Grounds

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(240)]


async def play(grounds: Grounds, scenario: Scenario) -> None:
    report = await run(grounds, scenario, print)
    print(table([report]), *report.gave_up, sep="\n")
    assert not report.failure


@pytest.mark.parametrize("name", scenarios.ALONE)
async def test_what_is_published_is_exact_under_one_kind_of_fault(grounds: Grounds, name: str) -> None:
    await play(grounds, scenarios.alone(name, seed=1))


async def test_what_is_published_is_exact_under_all_faults_together(grounds: Grounds) -> None:
    await play(grounds, scenarios.together(seed=1))
