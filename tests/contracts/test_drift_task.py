"""The contract of every pure task, on the drift task; and what its windows say, held against the raw values."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace

from streammon.broker import Outgoing
from streammon.config import Settings
from streammon.profiles import PROFILES, REFERENCES
from streammon_processors.builtin import drift_processor
from streammon_processors.contract import PARTITION, Logs, ProcessorContract, run, run_with_crashes
from streammon_processors.task import Task
from tests.drifting import logs, task, with_references

SEEDS = range(4)


class TestDriftOfProfiles(ProcessorContract):
    """References are known: what profiles bring depends on profiles alone."""

    seeds = SEEDS
    processor = replace(drift_processor(Settings()), inputs=(PROFILES,), task=with_references)

    def logs(self, seed: int) -> Logs:
        return {PROFILES: logs(0 if seed == 0 else seed)[PROFILES]}


def by_bytes(outputs: Mapping[str, list[Outgoing]]) -> list[tuple[str, bytes]]:
    """All of them, whichever topic they follow from."""
    return sorted((each.topic, each.value or b"") for some in outputs.values() for each in some)


def fresh() -> Task:
    return task(PARTITION)


def test_references_may_be_read_before_their_profiles_or_after_and_crashes_change_nothing() -> None:
    for seed in SEEDS:
        log = logs(seed)
        expected = by_bytes(run(fresh(), log))
        assert expected == by_bytes(run(fresh(), {PROFILES: log[PROFILES], REFERENCES: log[REFERENCES]}))
        for longest in (1, 7, 40):
            rng = random.Random(seed)
            assert by_bytes(run(fresh(), log, rng, longest)) == expected, f"seed {seed}, at most {longest}"
            assert by_bytes(run_with_crashes(fresh, log, rng, longest=longest)) == expected, f"seed {seed}, {longest}"
