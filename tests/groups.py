"""Logs on the way of groups: windows of several partitions, their parts, and what these add up to."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from functools import cache

from aiokafka.partitioner import murmur2

from streammon.broker import Outgoing
from streammon.config import WindowSettings
from streammon.tick import TICK
from streammon.topics import ROLLUP_HEADER
from streammon_processors.contract import JUNK, Stored
from streammon_processors.rollups import RollupTask
from streammon_processors.rules import Rules
from streammon_processors.rules.group import PATIENCE_S, GroupTask
from streammon_processors.rules.regroup import RegroupTask
from tests.rollup_oracle import windows_log

PARTITIONS = 4


@cache
def rolled_log(seed: int, settings: WindowSettings) -> Sequence[Stored]:
    """A partition of `windows`, rollups and ticks included."""
    return windows_log(seed, settings, RollupTask(3, settings), batches=25)


def copied_log(seed: int, settings: WindowSettings) -> Sequence[Stored]:
    """The same, and records that only say to be rollups."""
    records = rolled_log(seed, settings)
    broken = [(value, ((ROLLUP_HEADER, b"4s"),)) for value in JUNK]
    at_the_end = records[-1].timestamp
    return [
        *records,
        *(Stored(value, len(records) + at, at_the_end, headers=headers) for at, (value, headers) in enumerate(broken)),
    ]


def parts_log(seed: int, rules: Rules, settings: WindowSettings) -> list[Stored]:
    """A partition of `regrouped`: parts of four partitions, some of them long after the others; ticks and junk."""
    rng = random.Random(seed)
    timed = [
        each
        for number in range(PARTITIONS)
        for each in parts(copied_log(PARTITIONS * seed + number, settings), rules, number, rng)
    ]
    log: list[tuple[int, Outgoing]] = []
    for now, part in sorted(timed, key=lambda each: each[0]):
        log.append((now, part))
        if rng.random() < 0.05:
            log.append((now + rng.choice((0, 2000)), Outgoing("regrouped", None, rng.choice((TICK, *JUNK)))))
    return stored(log, [2000] * 15)


def parts(log: Sequence[Stored], rules: Rules, number: int, rng: random.Random) -> list[tuple[int, Outgoing]]:
    """What a partition contributes, and when: now and then it stands still for longer than anybody waits."""
    task = RegroupTask(rules.groupings, number)
    found, now = list[tuple[int, Outgoing]](), 0
    for record in log:
        delay_s = rng.uniform(0, 1) if rng.random() < 0.99 else rng.uniform(0, 2 * PATIENCE_S)
        now = max(now, record.timestamp + round(1000 * delay_s))
        found += [(now, each) for each in task.process("windows", [record]) if each.topic == "regrouped"]
    return found


def stored(log: Iterable[tuple[int, Outgoing]], ticks_ms: Iterable[int] = ()) -> list[Stored]:
    """A partition as the broker keeps it; at its end, ticks so much apart."""
    found, now = list[Stored](), 0
    for timestamp, each in log:
        now = max(now, timestamp)
        found.append(Stored(each.value, len(found), now, key=each.key, headers=tuple(each.headers)))
    for wait_ms in ticks_ms:
        now += wait_ms
        found.append(Stored(TICK, len(found), now))
    return found


def grouped_log(parts: Sequence[Stored], rules: Rules) -> list[Stored]:
    """A partition of `grouped`: what these parts add up to."""
    task = GroupTask(rules.groupings, 3)
    log = [
        (record.timestamp, each)
        for record in parts
        for each in task.process("regrouped", [record])
        if each.topic == "grouped"
    ]
    return stored([*log[:7], (0, Outgoing("grouped", None, b"{")), *log[7:]], [2000] * 15)


def by_key(records: Iterable[tuple[int, Outgoing]]) -> Mapping[int, list[tuple[int, Outgoing]]]:
    """To the partitions that every Kafka client would choose."""
    found: dict[int, list[tuple[int, Outgoing]]] = {number: [] for number in range(PARTITIONS)}
    for each in records:
        found[(murmur2(each[1].key) & 0x7FFFFFFF) % PARTITIONS].append(each)
    return found
