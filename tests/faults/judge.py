"""The judge: everything published (read committed) against what has to be, in two comparisons.

- Byte for byte with what one undisturbed task makes of the log as it now lies in Kafka, ticks included: base windows,
  supplements, dead letters, and rollups.
- In sums with the generated events themselves, by an oracle that shares no code with the product: `workload`. Counts,
  errors and durations of every window, and the books: duplicate, rejected, dropped, missing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from streammon.broker import Broker, Outgoing, Record
from streammon.config import Settings
from streammon.deadletter import TOPIC as DEADLETTER
from streammon_processors.builtin import rollups_processor, windows_processor
from streammon_processors.task import Processor
from tests.faults.workload import SIZE_S, TYPES, Sent, Sums, expected, published


@dataclass(frozen=True)
class Verdict:
    """What is wrong with what was published: nothing, if all is well. ``examples`` are for a person."""

    missing: int = 0
    wrong: int = 0
    duplicate: int = 0
    examples: tuple[str, ...] = field(default=(), repr=False)

    def __add__(self, other: Verdict) -> Verdict:
        return Verdict(
            self.missing + other.missing,
            self.wrong + other.wrong,
            self.duplicate + other.duplicate,
            (self.examples + other.examples)[:10],
        )

    def __bool__(self) -> bool:
        """Whether there is anything wrong."""
        return bool(self.missing or self.wrong or self.duplicate)


Named = Iterable[tuple[str, Any]]
"""Things to compare, by what identifies them."""


def compare(found: Named, wanted: Named) -> Verdict:
    """Each wanted thing as often as it is wanted, exactly so, and no other."""
    have, want = _by_name(found), _by_name(wanted)
    missing = [name for name in want if len(have.get(name, ())) < len(want[name])]
    wrong = [name for name in have if any(each not in want.get(name, ()) for each in have[name])]
    twice = [name for name in have if name in want and len(have[name]) > len(want[name])]
    return Verdict(
        len(missing),
        len(wrong),
        len(twice),
        (
            *(f"missing: {name}" for name in missing[:3]),
            *(f"wrong: {name}: found {have[name]}, wanted {want.get(name)}"[:2000] for name in wrong[:3]),
            *(f"duplicate: {name}" for name in twice[:3]),
        ),
    )


def _by_name(things: Named) -> dict[str, list[Any]]:
    grouped: dict[str, list[Any]] = {}
    for name, content in things:
        grouped.setdefault(name, []).append(content)
    return grouped


def compare_sums(found: Sums, wanted: Sums) -> Verdict:
    """Sums cannot tell a duplicate from another wrong sum."""
    verdict = Verdict()
    for mine, its in ((found.windows, wanted.windows), (found.books, wanted.books), (found.missing, wanted.missing)):
        verdict += compare(((str(k), v) for k, v in mine.items() if v), ((str(k), v) for k, v in its.items() if v))
    return verdict


def replayed(log: Sequence[Record], topic: str, settings: Settings) -> list[Outgoing]:
    """What one undisturbed task per partition makes of a log of events, ticks included."""
    return replayed_by(windows_processor(settings), log, topic)


def replayed_by(processor: Processor, log: Sequence[Record], topic: str) -> list[Outgoing]:
    """The same of any processor with one input."""
    outputs = []
    for partition in sorted({record.partition for record in log}):
        task = processor.task(partition)
        outputs += task.process(topic, [record for record in log if record.partition == partition])
    return outputs


def _windows(records: Iterable[Record | Outgoing], *, base: bool = True) -> Named:
    """Base windows, or rollups, by what no two of them may have in common, byte for byte."""
    names = ("source", "partition", "series", "size_s", "start_unix_s", "part", "revision")
    for record in records:
        window = json.loads(record.value or b"")
        if "size_s" in window and (window["size_s"] == SIZE_S) is base:
            yield json.dumps([window[name] for name in names]), record.value


def _letters(records: Iterable[Record | Outgoing]) -> Named:
    """Dead letters have no name: one is identified by all that it says."""
    return [(str((each.partition, *each.headers, each.value)), None) for each in records]


async def judge(broker: Broker, sent: Sequence[Sent], settings: Settings) -> Verdict:
    """Everything published, in both comparisons."""
    records, letters = await read_all(broker, "windows"), await read_all(broker, DEADLETTER)
    windows = base_windows(records)
    outputs: list[Outgoing] = []
    verdict = Verdict()
    for topic, kind in TYPES.items():
        log = await read_all(broker, topic)
        outputs += replayed(log, topic, settings)
        mine = [window for window in windows if window["source"] == kind.value]
        verdict += compare_sums(published(mine), expected(sent, log, topic))
    wanted = [output for output in outputs if output.topic == "windows"]
    verdict += compare(_windows(records), _windows(wanted))
    return verdict + compare(_letters(letters), _letters(each for each in outputs if each.topic == DEADLETTER))


async def judge_rollups(broker: Broker, settings: Settings) -> Verdict:
    """Rollups against those of an undisturbed task; they are made of the very log that they are written to.

    While processors run, the newest may be missing for a moment.
    """
    log = await read_all(broker, "windows")
    wanted = replayed_by(rollups_processor(settings), log, "windows")
    return compare(_windows(log, base=False), _windows(wanted, base=False))


# --- reading ----------------------------------------------------------------------------------------------------


def base_windows(records: Iterable[Record]) -> list[dict[str, Any]]:
    """What is made of events; a rollup holds them a second time."""
    windows = [json.loads(record.value or b"") for record in records]
    return [window for window in windows if window.get("size_s") == SIZE_S]


async def read_all(broker: Broker, topic: str) -> list[Record]:
    """Everything committed in a topic, in the order of its partitions."""
    reader = await broker.reader([topic])
    try:
        ends = await reader.ends()
        found: list[Record] = []
        while any(reader.positions().get(partition, 0) < end for partition, end in ends.items()):
            for records in (await reader.poll(0.1)).values():
                found += records
        return found
    finally:
        await reader.close()
