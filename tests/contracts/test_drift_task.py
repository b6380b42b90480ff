"""The contract of every pure task, on the drift task: references may be read at any time, before profiles or after."""

from __future__ import annotations

from dataclasses import replace

from streammon.config import Settings
from streammon.profiles import PROFILES
from streammon_processors.builtin import drift_processor
from streammon_processors.contract import Logs, ProcessorContract
from tests.drifting import logs, task, with_references


class TestDrift(ProcessorContract):
    seeds = range(4)
    processor = replace(drift_processor(Settings()), task=task)

    def logs(self, seed: int) -> Logs:
        return logs(seed)


class TestDriftOfProfiles(ProcessorContract):
    """References are known: what profiles bring depends on profiles alone, and comes in one order."""

    seeds = range(2)
    processor = replace(drift_processor(Settings()), inputs=(PROFILES,), task=with_references)

    def logs(self, seed: int) -> Logs:
        return {PROFILES: logs(seed)[PROFILES]}
