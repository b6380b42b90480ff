"""The contract of every pure task, on the detectors; and that what they say is there."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cache

import msgspec

from streammon.broker import Outgoing
from streammon.config import Settings
from streammon.results import Drift
from streammon_processors.builtin import detectors_processor
from streammon_processors.contract import Logs, ProcessorContract
from streammon_processors.detectors.task import DetectorsTask
from tests.detecting import BEGIN_S, CHANGE, EVENTFUL, MODELS, STEP_S, event_log, quality_log, window_log


@cache
def logs(seed: int) -> Logs:
    return {"windows": window_log(seed), "quality": quality_log(seed)}


def drifts(outputs: Iterator[Outgoing]) -> list[Drift]:
    return [msgspec.json.decode(each.value or b"", type=Drift) for each in outputs if each.topic == "drift"]


class TestDetectors(ProcessorContract):
    seeds = range(2)
    processor = replace(
        detectors_processor(Settings()), task=lambda number: DetectorsTask(MODELS, number, step_s=STEP_S)
    )

    def logs(self, seed: int) -> Logs:
        return logs(seed)

    def test_what_changed_is_found_and_what_did_not_is_not(self) -> None:
        for seed, _, outputs in self._undisturbed():
            alarms = [each for each in drifts(iter(outputs)) if each.drifted]
            found = {(each.model, each.model_version, each.target) for each in alarms}
            accuracy = {("ranker", version, "accuracy") for version in "12"}
            expected = {("ranker", "1", "duration_s"), ("ranker", "1", "error"), *accuracy}
            assert found <= expected, f"seed {seed}"
            assert all(each.end_unix_s >= BEGIN_S + CHANGE * STEP_S for each in alarms)
        everything = [each for _, _, outputs in self._undisturbed() for each in drifts(iter(outputs)) if each.drifted]
        assert {each.target for each in everything} == {"duration_s", "error", "accuracy"}


class TestDetectorsOfEvents(ProcessorContract):
    seeds = range(1)
    processor = replace(
        detectors_processor(Settings()),
        inputs=("windows", "quality", "inference"),
        task=lambda number: DetectorsTask(EVENTFUL, number, step_s=STEP_S, per_event=True),
    )

    def logs(self, seed: int) -> Logs:
        return {**logs(seed), "inference": event_log(seed, 1200)}

    def test_events_are_watched_by_those_that_are_declared_for_them(self) -> None:
        found = {
            (each.target, each.detector)
            for _, topic, outputs in self._undisturbed()
            if topic == "inference"
            for each in drifts(iter(outputs))
        }
        assert found == {("error", "eddm"), ("confidence", "page_hinkley"), ("input_tokens", "adwin")}
