"""Profiles and references against a plain computation over the same events, and under the contract of all tasks."""

from __future__ import annotations

import random
import zlib
from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import msgspec
import numpy as np
import pytest

from streammon.broker import Outgoing
from streammon.config import Settings
from streammon.models import DriftPolicy, Models, ReferencePolicy
from streammon.profiles import Profile, Reference, TargetReference
from streammon.reference_ticks import HEADER, in_ticks
from streammon.tick import TICK
from streammon.topics import LARGE_RECORD_BYTES, MAX_RECORD_BYTES
from streammon_processors.builtin import profiles_processor
from streammon_processors.contract import PARTITION, Logs, ProcessorContract, Stored, run, run_with_crashes
from streammon_processors.profiles import ProfileTask, references
from streammon_processors.profiles import task as task_module
from streammon_processors.profiles.references import References
from streammon_processors.profiles.sample import Sample
from streammon_processors.profiles.targets import column_of
from tests.logs import T0, inference, packed
from tests.oracle import Entry, Event
from tests.processors.test_dedupe import largest
from tests.profiles import (
    MODELS,
    POLICY,
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
    seeds = range(4)

    def logs(self, seed: int) -> Logs:
        return {"inference": stored(feature_log(seed))}


@pytest.mark.parametrize("seed", range(8))
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
        each for seed in range(8) for each in run(make(), {"inference": stored(feature_log(seed))})["inference"]
    ]
    profiles = decoded(outputs, "profiles", Profile)
    references = decoded(outputs, "references", Reference)
    assert {each.automatic for each in references} == {True, False}
    assert {each.part for each in profiles} == {"main", "late"}
    assert any(each.pairs for each in profiles)
    assert any(each.reference is None and each.count for each in profiles)
    assert any(each.part == "late" and each.reference and each.targets for each in profiles)


# --- limits ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_at_its_limits_too_the_log_alone_decides(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """So little is held that versions make do with less, and that references cease to hold."""
    monkeypatch.setattr(references, "HELD_VALUES", 900)
    monkeypatch.setattr(references, "FEWEST", 5)
    monkeypatch.setattr(references, "HELD_BYTES", 3_000)
    logs = {"inference": stored(feature_log(seed))}
    expected = run(make(), logs)
    for longest in (1, 20):
        assert run(make(), logs, random.Random(seed), longest) == expected
        assert run_with_crashes(make, logs, random.Random(seed), longest=longest) == expected
    made = decoded(expected["inference"], "references", Reference)
    if seed:  # in the first, most references are published
        assert any(each.automatic and each.sample_size < POLICY.reference.first for each in made)
        kinds = {(each.service, each.model, each.model_version, each.automatic) for each in made}
        assert len(made) > len(kinds)  # some of one version came anew


def given(events: Sequence[Event], task: ProfileTask) -> list[Outgoing]:
    """200 events a record."""
    values = [packed(*events[at : at + 200]) for at in range(0, len(events), 200)]
    return task.process("inference", [Stored(value, at, round((T0 + 1e4) * 1000)) for at, value in enumerate(values)])


def profiles_of(events: Sequence[Event]) -> list[Profile]:
    """Those of the first window."""
    outputs = given([*events, inference(3600.0)], ProfileTask(PARTITION, SETTINGS, Models()))
    return [each for each in decoded(outputs, "profiles", Profile) if each.count]


def test_features_beyond_the_cap_are_left_out_and_counted() -> None:
    (profile,) = profiles_of([inference(0.0, prediction=1.0, features={f"f{n}": 1.0 for n in range(250)})])
    assert (len(profile.targets), profile.left_out) == (201, 50)
    assert "features.f199" in profile.targets
    assert "features.f200" not in profile.targets


def test_names_that_are_too_long_are_left_out_and_counted() -> None:
    (profile,) = profiles_of([inference(0.0, features={"x" * 40_000: 1.0, "a": 1.0})])
    assert (list(profile.targets), profile.left_out) == (["features.a"], 1)
    (profile,) = profiles_of([inference(0.0, service="x" * 40_000, features={"a": 1.0})])
    assert (profile.service, profile.count, profile.targets) == ("__other__", 1, {})


def test_versions_beyond_the_cap_are_only_counted() -> None:
    profiles = profiles_of([inference(0.0, model_version=str(n), features={"a": 1.0}) for n in range(130)])
    assert len(profiles) == 101
    (rest,) = (each for each in profiles if each.service == "__other__")
    assert (rest.count, rest.targets) == (30, {})


def test_a_profile_that_no_record_can_hold_gives_up_its_largest_targets() -> None:
    names = [f"{n:0>110}" for n in range(50)]
    features = [{f"f{n}": name for n in range(200)} | {"small": 1.0} for name in names]
    (profile,) = profiles_of([inference(0.0, features=each) for each in features])
    assert len(msgspec.json.encode(profile)) <= MAX_RECORD_BYTES
    assert profile.left_out > 10
    assert len(profile.targets) > 100


def test_ten_thousand_categories_and_a_feature_that_changes_its_type_harm_no_other() -> None:
    events = [
        inference(0.0, features={"id": f"user {n}", "age": "old" if n % 2 else 40.0, "price": float(n)})
        for n in range(10_000)
    ]
    (profile,) = profiles_of(events)
    targets = profile.targets
    assert (len(targets["features.id"].values or ()), targets["features.id"].other) == (50, 9950)
    assert targets["features.age"].types == {"number": 5000, "text": 5000}
    assert targets["features.age"].values == {"old": 5000}
    price = targets["features.price"].numbers
    assert price is not None
    assert (price.count, price.min, price.max, price.sum) == (10_000, 0.0, 9999.0, 49_995_000.0)


def test_a_target_takes_less_than_4_kb_however_many_events_there_are() -> None:
    rng = random.Random(1)
    events = [inference(0.0, features={"wild": rng.gauss(0, 1) * 10 ** rng.uniform(-9, 9)}) for _ in range(20_000)]
    (profile,) = profiles_of(events)
    numbers = profile.targets["features.wild"].numbers
    assert numbers is not None
    assert numbers.sketch.count == 20_000
    assert len(msgspec.json.encode(profile.targets["features.wild"])) < 2000


def test_the_largest_snapshot_fits_into_a_record() -> None:
    """Full of references, of first events, of streams, gaps, duplicates and revisions."""
    rng = np.random.default_rng(1)
    task = make()
    held = References(MODELS, PARTITION, 2.0)
    for number in range(40):
        sample = Sample(DriftPolicy(reference=ReferencePolicy(first=1000)))
        values = {f"features.f{n}": rng.normal(size=80) for n in range(22)}
        sample.add({name: column_of(each.tolist()) for name, each in values.items()}, 80)
        held.collect(("shop", "ranker", f"v{number}"), sample)
    for number in range(60):
        sample = Sample(DriftPolicy())
        sample.add({f"features.f{n}": column_of(rng.normal(size=1000).tolist()) for n in range(22)}, 1000)
        held._take_over(sample.reference("shop", "scorer", f"v{number}", origin="x", made_unix_s=T0), T0)
    list(held.publish(0.0, 0.0, T0))
    memory = held.memory()
    assert sum(each.until_window is None for each in memory.holdings) > 40
    assert sum(sample.count for _, sample in memory.samples) * 22 > 40_000
    memory = msgspec.structs.replace(memory, holdings=[each for each in memory.holdings if each.until_window is None])
    task._restore(task_module._Snapshot(largest(2.0), memory))
    assert len(task.snapshot()) < 1.25 * MAX_RECORD_BYTES < LARGE_RECORD_BYTES
    assert dict(task.offsets())


# --- references that come in ticks --------------------------------------------------------------------------------


def large() -> Reference:
    rng = np.random.default_rng(2)
    sample = Sample(DriftPolicy())
    names = [f"features.{rng.bytes(8).hex()}" for _ in range(200)]
    sample.add({name: column_of(rng.normal(size=2000).tolist()) for name in names}, 2000)
    return sample.reference("shop", "ranker", None, origin="a test", made_unix_s=1.0)


def told(ticks: Sequence[Outgoing], task: ProfileTask) -> list[Outgoing]:
    stamped = [Stored(each.value, at, round(T0 * 1000), headers=each.headers) for at, each in enumerate(ticks)]
    return task.process("inference", stamped)


def test_a_large_reference_comes_in_parts_and_any_restart_between_them_is_survived() -> None:
    reference = large()
    ticks = in_ticks(reference)
    assert len(ticks) > 1
    (written,) = decoded(told(ticks, make()), "references", Reference)
    assert written == msgspec.structs.replace(reference, since_unix_s=0.0)
    assert told([*ticks[:1], *ticks], make()) == told(ticks, make())


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (b"nonsense", "begins with b'nonsense', not ID PART/PARTS"),
        (b"ab 2/3\nxx", "part 2 of 3 of a reference came, but none before it"),
        (b"ab 1/1\nxx", "cannot be unpacked"),
        (b"ab 1/1\n" + zlib.compress(b'{"type":"profile"}'), "no reference"),
        (b"ab 1/99\nxx", "not ID PART/PARTS"),
    ],
)
def test_a_tick_that_brings_no_reference_is_a_dead_letter_and_a_tick(header: bytes, said: str) -> None:
    (letter,) = told([Outgoing("inference", None, TICK, ((HEADER, header),))], make())
    assert letter.topic == "deadletter"
    assert said in dict(letter.headers)["error"].decode()


def test_a_reference_of_more_features_than_are_looked_at_is_refused() -> None:
    reference = large()
    reference.targets = {f"features.f{n}": TargetReference(kind="numeric", count=0) for n in range(201)}
    (letter,) = told(in_ticks(reference), make())
    assert "201 features, at most 200" in dict(letter.headers)["error"].decode()


def test_bins_that_cannot_be_are_refused() -> None:
    reference = large()
    target = next(iter(reference.targets.values()))
    assert target.edges
    target.edges = target.edges[::-1]
    (letter,) = told(in_ticks(reference), make())
    assert "do not ascend" in dict(letter.headers)["error"].decode()
