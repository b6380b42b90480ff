"""Profiles and references against a plain computation over the same events, and under the contract of all tasks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import pytest

from streammon.broker import Outgoing
from streammon.config import Settings
from streammon.profiles import Profile, Reference
from streammon.reference_ticks import in_ticks
from streammon_processors.builtin import profiles_processor
from streammon_processors.contract import PARTITION, Logs, ProcessorContract, Stored, run
from streammon_processors.profiles import ProfileTask
from tests.oracle import Entry
from tests.profiles import (
    MODELS,
    SETTINGS,
    FeatureLog,
    ProfileOracle,
    ReferenceEntry,
    check_profile,
    check_reference,
    decoded,
)


def make(partition: int = PARTITION) -> ProfileTask:
    return ProfileTask(partition, SETTINGS, MODELS)


def stored(log: Sequence[Entry]) -> list[Stored]:
    records = []
    for offset, entry in enumerate(log):
        headers = in_ticks(entry.reference)[0].headers if isinstance(entry, ReferenceEntry) else ()
        records.append(Stored(entry.value, offset, entry.timestamp, headers=headers))
    return records


@cache
def feature_log(seed: int) -> list[Entry]:
    return FeatureLog(seed).entries


class TestProfiles(ProcessorContract):
    processor = replace(profiles_processor(Settings()), task=make)

    def logs(self, seed: int) -> Logs:
        return {"inference": stored(feature_log(seed))}


@pytest.mark.parametrize("seed", range(12))
def test_every_number_is_what_a_plain_computation_says(seed: int) -> None:
    log = feature_log(seed)
    outputs = make().process("inference", stored(log))
    oracle = ProfileOracle()
    expected = {each.key: each for publication in oracle.feed(log) for each in publication.windows}
    profiles: list[Profile] = decoded(outputs, "profiles", Profile)
    references: dict[str, Reference] = {each.id: each for each in decoded(outputs, "references", Reference)}
    assert len(profiles) == len(expected)
    for profile in profiles:
        series = {name: value for name in SETTINGS.inference_by if (value := getattr(profile, name))}
        number = round(profile.start_unix_s / SETTINGS.size_s)
        found = expected[number, profile.part, profile.revision, tuple(sorted(series.items()))]
        named = oracle.expected_reference(found) if found.events else None
        reference = references[profile.reference] if profile.reference else None
        assert (reference and ("first" if reference.automatic else reference.id)) == named
        check_profile(profile, found, reference)
    automatic = [each for each in references.values() if each.automatic]
    for reference in automatic:
        names = (reference.service, reference.model, reference.model_version)
        series_of = tuple((n, v) for n, v in zip(SETTINGS.inference_by, names, strict=True) if v is not None)
        check_reference(reference, oracle.first[series_of])


def test_the_random_logs_hold_what_they_are_to_show() -> None:
    outputs: list[Outgoing] = [
        each for seed in range(12) for each in run(make(), {"inference": stored(feature_log(seed))})["inference"]
    ]
    profiles = decoded(outputs, "profiles", Profile)
    references = decoded(outputs, "references", Reference)
    assert {each.automatic for each in references} == {True, False}
    assert {each.part for each in profiles} == {"main", "late"}
    assert any(each.pairs for each in profiles)
    assert any(each.reference is None and each.count for each in profiles)
    assert any(each.part == "late" and each.reference and each.targets for each in profiles)
