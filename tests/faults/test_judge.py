"""The judge of the fault suite can tell right from wrong: no Kafka needed."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pytest

from streammon.broker import Headers
from streammon.config import Settings
from streammon.tick import TICK
from tests.faults.judge import Verdict, base_windows, compare, compare_sums, replayed
from tests.faults.workload import SIZE_S, TYPES, Sent, expected, log_of, published

PARTITIONS = 2
NOW_MS = 1_800_000_000_000


class Stored(NamedTuple):
    """A record as a broker returns it."""

    partition: int
    offset: int
    value: bytes | None
    timestamp: int = NOW_MS
    key: bytes | None = None
    headers: Headers = ()


Window = dict[str, Any]


def stored(log: Sequence[Sent], topic: str) -> list[Stored]:
    """One topic's log as Kafka would hold it, and a tick after a while that closes every window."""
    mine = [(each.where.partition, each.value) for each in log if each.where.topic == topic]
    records = [Stored(partition, offset, value) for offset, (partition, value) in enumerate(mine)]
    return [*records, *(Stored(partition, len(mine), TICK, NOW_MS + 60_000) for partition in range(PARTITIONS))]


def judged(topic: str, change: Callable[[list[Window]], list[Window]] = list) -> Verdict:
    """The oracle's verdict on what a task makes of a log, changed."""
    log = log_of(5, 6_000, PARTITIONS)
    records = stored(log, topic)
    outputs = replayed(records, topic, Settings())
    windows = base_windows(Stored(0, 0, output.value) for output in outputs if output.topic == "windows")
    return compare_sums(published(change(windows)), expected(log, records, topic))


@pytest.mark.parametrize("topic", TYPES)
def test_the_oracle_agrees_with_the_task_on_a_log_without_faults(topic: str) -> None:
    assert not judged(topic)


def test_the_log_holds_everything_that_is_wrong_with_real_ones() -> None:
    log = log_of(5, 40_000, PARTITIONS)
    total = expected(log, stored(log, "inference"), "inference").total
    assert min(total[name] for name in ("count", "duplicate", "rejected", "dropped", "missing")) > 0
    assert len({each.identity.boot for each in log if each.identity}) > 1, "an agent restarts"


def without_one(windows: list[Window]) -> list[Window]:
    return [window for window in windows if window["count"]][1:]


def with_one_event_more(windows: list[Window]) -> list[Window]:
    return [{**windows[0], "count": windows[0]["count"] + 1}, *windows[1:]]


def with_one_twice(windows: list[Window]) -> list[Window]:
    return [*windows, next(window for window in windows if window["count"])]


def with_a_duplicate_forgotten(windows: list[Window]) -> list[Window]:
    guilty = next(each for each in windows if each["completeness"]["duplicate"])
    honest = {**guilty, "completeness": {**guilty["completeness"], "duplicate": 0}}
    return [honest if window is guilty else window for window in windows]


@pytest.mark.parametrize("change", [without_one, with_one_event_more, with_one_twice, with_a_duplicate_forgotten])
def test_the_oracle_sees(change: Callable[[list[Window]], list[Window]]) -> None:
    assert judged("inference", change)


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        ("abbc", (0, 0, 0)),
        ("abb", (1, 0, 0)),
        ("abc", (1, 0, 0)),
        ("abbcd", (0, 1, 0)),
        ("abbcc", (0, 0, 1)),
        ("aBbc", (0, 1, 0)),
    ],
)
def test_records_are_compared_one_by_one(found: str, verdict: tuple[int, int, int]) -> None:
    """A letter is a record: its name in any case, its content as it is."""
    judgement = compare(((each.lower(), each) for each in found), ((each, each) for each in "abbc"))
    assert (judgement.missing, judgement.wrong, judgement.duplicate) == verdict


def test_rollups_and_ticks_are_not_taken_for_base_windows() -> None:
    values = [TICK, *(json.dumps({"size_s": size}).encode() for size in (SIZE_S, 60))]
    assert base_windows(Stored(0, 0, value) for value in values) == [{"size_s": SIZE_S}]
