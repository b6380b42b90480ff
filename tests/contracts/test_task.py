"""The contract of every pure task: the log decides its output, whatever is cut, replayed, restored or crashed."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streammon.broker import Outgoing
from streammon.config import WindowSettings
from streammon_processors.rules import Rule, Rules, RulesTask
from streammon_processors.windows import WindowTask
from tests.logs import TYPES, Logs, RandomLog, Stored, Task, run, run_with_crashes, stored

PARTITION = 3


class Subject(NamedTuple):
    """A task, and logs that make it work."""

    make: Callable[[], Task]
    logs: Callable[[int], Logs]


def window_task() -> WindowTask:
    return WindowTask(PARTITION, WindowSettings(max_late_s=60.0, max_series=3))


def event_logs(seed: int) -> Logs:
    return {topic: stored(RandomLog(seed + i, 25, topic).entries) for i, topic in enumerate(TYPES)}


def rules_task() -> RulesTask:
    slow = Rule(
        name="slow",
        source="inference",
        field="duration_s.p99",
        above=0.3,
        clear=0.2,
        for_s=2.0,
        severity="critical",
        summary="{model} is slow: {value}",
    )
    hot = Rule(
        name="hot",
        source="resource",
        field="gauges.temperature.max",
        above=1.0,
        severity="warning",
        summary="{id} is hot",
    )
    return RulesTask(Rules((slow, hot)), PARTITION)


def window_logs(seed: int) -> Logs:
    """Real windows with supplements, and records that are none."""
    outputs = [each for some in run(window_task(), event_logs(seed)).values() for each in some]
    broken = [Outgoing("windows", None, b"{"), Outgoing("windows", None, None)]
    records = [*outputs[:10], *broken, *outputs[10:]]
    return {"windows": [Stored(output.value, offset, 0) for offset, output in enumerate(records)]}


SUBJECTS = {"windows": Subject(window_task, event_logs), "rules": Subject(rules_task, window_logs)}
seeds = st.integers(0, 2**32 - 1)
examples = settings(max_examples=8, deadline=None)


@pytest.fixture(params=SUBJECTS, scope="module")
def subject(request: pytest.FixtureRequest) -> Subject:
    return SUBJECTS[request.param]


def test_the_logs_make_the_task_say_something(subject: Subject) -> None:
    outputs = [each for some in run(subject.make(), subject.logs(1)).values() for each in some]
    assert len({output.topic for output in outputs}) == 2, "results and dead letters"
    assert {output.partition for output in outputs} == {PARTITION}


@given(seed=seeds)
@examples
def test_a_replay_gives_the_same_bytes(subject: Subject, seed: int) -> None:
    logs = subject.logs(seed)
    assert run(subject.make(), logs) == run(subject.make(), logs)


@given(seed=seeds, longest=st.integers(1, 40))
@examples
def test_batches_may_be_cut_and_topics_interleaved_anywhere(subject: Subject, seed: int, longest: int) -> None:
    logs = subject.logs(seed)
    assert run(subject.make(), logs, random.Random(seed), longest) == run(subject.make(), logs)


@given(seed=seeds, crashes=st.integers(1, 15), longest=st.integers(1, 20))
@examples
def test_crashes_lose_nothing_and_repeat_nothing(subject: Subject, seed: int, crashes: int, longest: int) -> None:
    logs = subject.logs(seed)
    rng = random.Random(seed)
    assert run_with_crashes(subject.make, logs, rng, crashes, longest) == run(subject.make(), logs)


@given(seed=seeds, cut=st.integers(0, 30))
@examples
def test_a_snapshot_survives_the_round_trip(subject: Subject, seed: int, cut: int) -> None:
    task = subject.make()
    for topic, records in subject.logs(seed).items():
        task.process(topic, records[:cut])
    again = subject.make()
    again.restore(task.snapshot())
    assert again.snapshot() == task.snapshot()
    assert dict(again.offsets()) == dict(task.offsets())


@given(seed=seeds)
@examples
def test_offsets_never_go_back_and_never_beyond_what_was_given(subject: Subject, seed: int) -> None:
    task = subject.make()
    for topic, records in subject.logs(seed).items():
        before = 0
        for record in records:
            task.process(topic, [record])
            offset = task.offsets().get(topic, 0)
            assert before <= offset <= record.offset + 1
            before = offset


def test_no_records_are_nothing(subject: Subject) -> None:
    task = subject.make()
    for topic in subject.logs(0):
        assert task.process(topic, []) == []
    assert not task.waiting
