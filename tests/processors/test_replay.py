"""Replay equals what was published, byte for byte: random logs, a processor that is restarted, any range."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from random import Random
from typing import Any, Generic, TypeVar

import pytest

from streammon.broker import Broker, Outgoing, Record, TopicPartition
from streammon.broker.embedded import EmbeddedBroker
from streammon.broker.kafka import KafkaBroker
from streammon.broker.reading import read
from streammon.config import Settings
from streammon.servers import Server
from streammon.topics import state_topics, topic_specs
from streammon_processors import history
from streammon_processors.builtin import join_processor, rollups_processor, rules_processor, windows_processor
from streammon_processors.contract import Stored
from streammon_processors.replay import Beginning, Range, _oldest, prepare
from streammon_processors.rules import Rules, RulesTask
from streammon_processors.runtime import run_processor
from streammon_processors.task import Output, Processor, Step, Stepwise, Task, time_field
from streammon_processors.verification import DIFFERENCES, Expected, Fingerprint, Verdict, compare, verify
from tests.joins import join_logs, join_task
from tests.logs import HOT, SLOW, T0, TYPES, RandomLog
from tests.support import eventually

PARTITIONS = 2
MAX_FUTURE_S = 60.0
B = TypeVar("B", bound=Broker)


class World(Generic[B]):
    """A log on a clock of its own, and a processor that can be run on it for a while."""

    def __init__(self, broker: B, settings: Settings, clock: list[float]) -> None:
        self.broker, self.settings, self.clock = broker, settings, clock

    async def append(self, entries: Sequence[tuple[int, Outgoing]]) -> None:
        for at_ms, group in groupby(entries, lambda entry: entry[0]):
            self.clock[0] = max(self.clock[0], at_ms / 1000)
            await self.broker.append([record for _, record in group])

    async def run(self, processor: Processor) -> None:
        """Let a processor read all there is; again, while it reads what it has written itself."""
        before: Mapping[TopicPartition, int] = {}
        while (lasts := await self._lasts(processor)) != before:
            await self._live(processor, lasts)
            before = lasts

    async def _lasts(self, processor: Processor) -> Mapping[TopicPartition, int]:
        """The last record of each input."""
        batches = [each async for each in read(self.broker, processor.inputs)]
        return {partition: records[-1].offset for partition, records in batches if records}

    async def _live(self, processor: Processor, lasts: Mapping[TopicPartition, int]) -> None:
        """One life of a processor: from start to SIGTERM, with everything read that was there."""
        read_to = dict(await self.broker.committed(processor.group, processor.inputs))
        observed = replace(processor, task=lambda number: watched(processor.task(number), number, read_to))
        stop = asyncio.Event()
        running = asyncio.create_task(run_processor(self.broker, observed, self.settings, stop=stop))

        async def all_read() -> bool:
            if running.done():
                await running
            return all(read_to.get(each, 0) > last for each, last in lasts.items())

        try:
            await eventually(all_read, 30, what=f"{processor.name} to read its inputs")
        finally:
            stop.set()
            await running

    async def published(self, processor: Processor, range_: Range) -> dict[int, list[Outgoing]]:
        found: dict[int, list[Outgoing]] = {number: [] for number in range(PARTITIONS)}
        topics = sorted({output.topic for output in processor.outputs})
        async for (topic, number), records in read(self.broker, topics):
            for record in records:
                time = processor.time_of(topic, record.value)
                if time is not None and time in range_:
                    found[number].append(outgoing(topic, record))
        return found

    async def replayed(self, processor: Processor, range_: Range) -> dict[int, dict[str, list[Outgoing]]]:
        plan = await prepare(self.broker, processor, range_, max_future_s=MAX_FUTURE_S)
        found: dict[int, dict[str, list[Outgoing]]] = {}
        for number in plan.origins:
            by_input: dict[str, list[Outgoing]] = {topic: [] for topic in processor.inputs}
            async for each in plan.partition(number):
                by_input[each.input.topic].append(each.record._replace(partition=None))
            found[number] = by_input
        return found


def outgoing(topic: str, record: Record) -> Outgoing:
    return Outgoing(topic, record.key, record.value, tuple(record.headers))


def watched(task: Task, number: int, read_to: dict[TopicPartition, int]) -> Task:
    """A task that says how far it has read."""
    steps = task.steps if isinstance(task, Stepwise) else None

    def watching(topic: str, records: Sequence[Record]) -> Iterator[Step]:
        for step in steps(topic, records) if steps else [Step(task.process(topic, records), len(records))]:
            yield step
            if step.taken:
                read_to[TopicPartition(topic, number)] = records[step.taken - 1].offset + 1

    setattr(task, "steps", watching)  # noqa: B010 - how the runtime calls it
    return task


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    # The logs hold ticks of their own; one that the runtime wrote last would be read by the replay alone.
    windows = {"size_s": 1.0, "lateness_s": 0.5, "max_late_s": 60.0, "max_series": 3, "rollups_s": (4.0, 12.0)}
    windows |= {"idle_tick_s": 1000.0}
    return Settings(data_dir=tmp_path, topics={"partitions": PARTITIONS}, windows=windows)


@pytest.fixture
async def world(settings: Settings) -> AsyncIterator[World[EmbeddedBroker]]:
    clock = [T0]
    broker = await EmbeddedBroker.open(settings, clock=lambda: clock[0])
    await broker.create_topics(topic_specs(partitions=PARTITIONS))
    yield World(broker, settings, clock)
    await broker.close()


@pytest.fixture
async def on_kafka(
    settings: Settings, kafka: Server, unique: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[World[KafkaBroker]]:
    """On a real Kafka, whose clock nobody sets: there, snapshots are kept as often as the processor commits."""
    monkeypatch.setattr(history, "SLOTS", {"half-hour": (0.05, 1000)})
    elsewhere = {"bootstrap": kafka.address, "topics": settings.topics.model_copy(update={"prefix": f"{unique}."})}
    broker = await KafkaBroker.connect(settings.model_copy(update=elsewhere))
    await broker.create_topics(topic_specs(partitions=PARTITIONS))
    yield World(broker, settings, [T0])
    await broker.close()


@pytest.fixture(autouse=True)
def snapshots_every_few_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "SLOTS", {"day": (20.0, 32), "half-hour": (4.0, 96)})


def random_entries(seed: int, batches: int = 60) -> list[tuple[int, Outgoing]]:
    """Of every input and partition a log with all kinds of trouble, in the order of time."""
    entries = [
        (entry.timestamp, Outgoing(topic, b"key", entry.value, (), number))
        for number in range(PARTITIONS)
        for topic in TYPES
        for entry in RandomLog(seed + 10 * number + len(topic), batches, topic).entries
    ]
    return sorted(entries, key=lambda entry: entry[0])


def slow_rules(settings: Settings) -> Processor:
    made = rules_processor(settings)
    return replace(made, task=lambda number: RulesTask(Rules((SLOW, HOT)), number))


RANGES = [
    Range(T0 + start, T0 + end) for start, end in ((-500, 500), (0, 10), (10, 11), (17.5, 31), (30, 45), (40, 500))
]


async def live(world: World[Any], seed: int, processors: Sequence[Processor], lives: int = 3) -> None:
    """What happens before anybody thinks of a replay: records come, and processors are started and stopped."""
    entries = random_entries(seed)
    for life in range(lives):
        await world.append(entries[life * len(entries) // lives : (life + 1) * len(entries) // lives])
        for processor in processors:
            await world.run(processor)


def equal_in_order(replayed: Mapping[str, Sequence[Outgoing]], published: Sequence[Outgoing]) -> bool:
    """Each input's results are there in their order; between inputs there is none."""
    of_inputs = [each for results in replayed.values() for each in results]
    assert sorted(of_inputs, key=repr) == sorted(published, key=repr)
    return all([each for each in published if each in set(results)] == results for results in replayed.values())


@pytest.mark.parametrize("seed", [1, 2])
async def test_a_replay_of_any_range_equals_what_was_published(
    world: World[EmbeddedBroker], settings: Settings, seed: int
) -> None:
    processors = [windows_processor(settings), rollups_processor(settings), slow_rules(settings)]
    await live(world, seed, processors)
    for processor in processors:
        for range_ in RANGES:
            published, replayed = await world.published(processor, range_), await world.replayed(processor, range_)
            assert all(equal_in_order(replayed[number], published[number]) for number in range(PARTITIONS))
        assert sum(map(len, (await world.published(processor, RANGES[0])).values())) > 10


async def test_a_late_range_begins_at_a_snapshot_and_an_early_one_with_the_log(
    world: World[EmbeddedBroker], settings: Settings
) -> None:
    processor = windows_processor(settings)
    await live(world, 1, [processor])
    late = await prepare(world.broker, processor, Range(T0 + 30, T0 + 40), max_future_s=MAX_FUTURE_S)
    early = await prepare(world.broker, processor, Range(T0, T0 + 1), max_future_s=MAX_FUTURE_S)
    assert {origin.beginning for origin in late.origins.values()} == {Beginning.SNAPSHOT}
    assert {origin.beginning for origin in early.origins.values()} == {Beginning.START}
    assert sum(late.origins[0].offsets.values()) > sum(early.origins[0].offsets.values()) == 0


LATE = Range(T0 + 150, T0 + 2000)


async def joining(world: World[EmbeddedBroker], **options: Any) -> Processor:
    """A join that lives three times while its predictions and labels come."""
    join = replace(join_processor(world.settings), task=join_task, **options)
    own = [spec for spec in join.topics(PARTITIONS) if spec.name in (join.journal, "state.join")]
    await world.broker.create_topics(own)
    entries = [
        (record.timestamp, Outgoing(topic, b"key", record.value, (), number))
        for number in range(PARTITIONS)
        for topic, records in join_logs(number).items()
        for record in records
    ]
    entries.sort(key=lambda entry: entry[0])
    for life in range(3):
        await world.append(entries[life * len(entries) // 3 : (life + 1) * len(entries) // 3])
        await world.run(join)
    return join


async def test_a_replay_of_a_join_is_given_its_journal_and_equals_what_was_published(
    world: World[EmbeddedBroker],
) -> None:
    join = await joining(world)
    for range_ in (*RANGES, LATE):
        assert set(await judged(world, join, range_)) <= {Verdict.IDENTICAL}
    assert (await judged(world, join, LATE)).total() > 50
    plan = await prepare(world.broker, join, LATE, max_future_s=MAX_FUTURE_S)
    assert {origin.beginning for origin in plan.origins.values()} == {Beginning.SNAPSHOT}
    lost = [output for some in (await world.published(join, LATE)).values() for output in some][7]
    change(world, "DELETE FROM records WHERE value = ?", lost.value)
    assert (await judged(world, join, LATE))[Verdict.MISSING] >= 1


async def test_a_journal_that_retention_has_cut_into_is_confessed(world: World[EmbeddedBroker]) -> None:
    join = await joining(world, journal_s=3600.0)
    mine = "id = (SELECT first_partition FROM topics WHERE name = 'journal.join')"
    change(world, f"UPDATE partitions SET first_offset = 1 WHERE {mine}")
    plan = await prepare(world.broker, join, LATE, max_future_s=MAX_FUTURE_S)
    assert plan.origins[0].beginning is Beginning.CUT


@pytest.mark.kafka
async def test_a_replay_from_kafka_equals_what_was_published_there(
    on_kafka: World[KafkaBroker], settings: Settings
) -> None:
    windows, rules = windows_processor(settings), slow_rules(settings)
    await live(on_kafka, 1, [windows, rules])
    for processor in (windows, rules):
        for range_ in (RANGES[0], RANGES[3]):
            published, replayed = (
                await on_kafka.published(processor, range_),
                await on_kafka.replayed(processor, range_),
            )
            assert all(equal_in_order(replayed[number], published[number]) for number in range(PARTITIONS))
            identical = Counter({Verdict.IDENTICAL: sum(map(len, published.values()))})
            assert await judged(on_kafka, processor, range_) == identical
    late = await prepare(on_kafka.broker, windows, Range(T0 + 300, T0 + 400), max_future_s=MAX_FUTURE_S)
    assert {origin.beginning for origin in late.origins.values()} == {Beginning.SNAPSHOT}


async def test_retention_that_took_what_had_been_read_is_confessed(
    world: World[EmbeddedBroker], settings: Settings
) -> None:
    processor = windows_processor(settings)
    await live(world, 1, [processor])
    world.clock[0] += 2 * 86_400
    await world.broker.retain()  # the events of a day ago go, the snapshots stay
    plan = await prepare(world.broker, processor, RANGES[3], max_future_s=MAX_FUTURE_S)
    assert {origin.beginning for origin in plan.origins.values()} == {Beginning.CUT}
    assert not any(origin.exact for origin in plan.origins.values())


async def test_a_snapshot_that_this_version_cannot_read_is_passed_over(
    world: World[EmbeddedBroker], settings: Settings
) -> None:
    processor = windows_processor(settings)
    await live(world, 1, [processor])
    await world.broker.append([Outgoing("snapshots", b"windows/other", b"of another version", (), 0)])
    plan = await prepare(world.broker, processor, RANGES[4], max_future_s=MAX_FUTURE_S)
    assert plan.origins[0].beginning is Beginning.SNAPSHOT
    assert plan.origins[0].snapshot != b"of another version"
    assert set(await judged(world, processor, RANGES[4])) == {Verdict.IDENTICAL}


async def test_a_replay_leaves_no_trace(world: World[EmbeddedBroker], settings: Settings) -> None:
    processor = windows_processor(settings)
    await live(world, 2, [processor], lives=1)

    async def everything() -> object:
        reader = await world.broker.reader([*await world.broker.topics()])
        try:
            return await reader.ends(), await world.broker.committed(processor.group, processor.inputs)
        finally:
            await reader.close()

    before = await everything()
    await world.replayed(processor, RANGES[0])
    await judged(world, processor, RANGES[0])
    assert await everything() == before


# --- verification ---------------------------------------------------------------------------------------------------


async def judged(world: World[Any], processor: Processor, range_: Range) -> Counter[Verdict]:
    verification = await verify(world.broker, processor, range_, max_future_s=MAX_FUTURE_S)
    found = [await verification.partition(number) for number in range(PARTITIONS)]
    return Counter(each.verdict for some in found for each in some)


def change(world: World[EmbeddedBroker], statement: str, *parameters: object) -> None:
    """Do to the file of the log what nothing of ours would."""
    with closing(sqlite3.connect(world.settings.data_dir / "log.sqlite")) as db, db:
        assert db.execute(statement, parameters).rowcount == 1


async def nth_window(world: World[EmbeddedBroker], processor: Processor, place: int) -> bytes:
    windows = [each for some in (await world.published(processor, RANGES[0])).values() for each in some]
    return windows[place].value or b""


async def test_what_was_published_is_found_identical(world: World[EmbeddedBroker], settings: Settings) -> None:
    processors = [windows_processor(settings), rollups_processor(settings), slow_rules(settings)]
    await live(world, 3, processors)
    for processor in processors:
        for range_ in RANGES:
            assert set(await judged(world, processor, range_)) <= {Verdict.IDENTICAL}
        assert (await judged(world, processor, RANGES[0])).total() > 10


async def test_a_changed_record_is_found(world: World[EmbeddedBroker], settings: Settings) -> None:
    processor = windows_processor(settings)
    await live(world, 1, [processor], lives=1)
    value = await nth_window(world, processor, 20)
    changed = value.replace(b'"count":', b'"count":1', 1)
    change(world, "UPDATE records SET value = ? WHERE value = ?", changed, value)
    found = await judged(world, processor, RANGES[0])
    assert (found[Verdict.MISSING], found[Verdict.UNEXPECTED]) == (1, 1)


async def test_a_lost_record_is_found(world: World[EmbeddedBroker], settings: Settings) -> None:
    processor = windows_processor(settings)
    await live(world, 1, [processor], lives=1)
    change(world, "DELETE FROM records WHERE value = ?", await nth_window(world, processor, 20))
    found = await judged(world, processor, RANGES[0])
    assert (found[Verdict.MISSING], found[Verdict.UNEXPECTED]) == (1, 0)


async def test_a_record_published_twice_is_found(world: World[EmbeddedBroker], settings: Settings) -> None:
    processor = windows_processor(settings)
    await live(world, 1, [processor], lives=1)
    [first, *_] = (await world.published(processor, RANGES[0]))[0]
    await world.broker.append([first._replace(partition=0)])
    assert (await judged(world, processor, RANGES[0]))[Verdict.UNEXPECTED] == 1


async def test_records_that_the_processor_has_not_reached_are_pending(
    world: World[EmbeddedBroker], settings: Settings
) -> None:
    processor = windows_processor(settings)
    entries = random_entries(1)
    await world.append(entries[:200])
    await world.run(processor)
    await world.append(entries[200:])
    found = await judged(world, processor, RANGES[0])
    assert found[Verdict.PENDING] > 10
    assert not any(found[verdict] for verdict in DIFFERENCES)


async def test_alerts_that_compaction_removed_are_not_missed(world: World[EmbeddedBroker], settings: Settings) -> None:
    windows, rules = windows_processor(settings), slow_rules(settings)
    await live(world, 1, [windows, rules])
    before = await judged(world, rules, RANGES[0])
    world.clock[0] += 2 * 3600
    await world.broker.retain()
    after = await judged(world, rules, RANGES[0])
    assert set(after) == {Verdict.IDENTICAL, Verdict.REPLACED}
    assert after.total() == before.total()


IN, OTHER_IN = TopicPartition("inference", 0), TopicPartition("resources", 0)


def result(name: str) -> Fingerprint:
    return Fingerprint("windows", 0, name.encode(), 1.0, name.encode())


def verdicts(expected: str, published: str, due: int = 99, replaced: str = "") -> str:
    """Of results named by letters, capitals from the other input, those that `compare` finds wrong, and how.

    Digits are elements: of any input, in any order.
    """
    inputs = [None if name.isdigit() else OTHER_IN if name.isupper() else IN for name in expected]
    wanted = [
        Expected(result(name), input_, at < due) for at, (name, input_) in enumerate(zip(expected, inputs, strict=True))
    ]
    found = compare(wanted, map(result, published), {name.encode() for name in replaced})
    return " ".join(
        f"{(each.result.key or b'').decode()}:{each.verdict}" for each in found if each.verdict is not Verdict.IDENTICAL
    )


@pytest.mark.parametrize(
    ("expected", "published", "options", "found"),
    [
        ("abc", "abc", {}, ""),
        ("aBcD", "acBD", {}, ""),
        ("abc", "acb", {}, "b:misplaced"),
        ("abc", "ac", {}, "b:missing"),
        ("abc", "abxc", {}, "x:unexpected"),
        ("abc", "abbc", {}, "b:unexpected"),
        ("abbc", "abc", {}, "b:missing"),
        ("abc", "a", {"due": 2}, "b:missing c:pending"),
        ("abc", "c", {"replaced": "b"}, "a:missing b:replaced"),
        ("", "", {}, ""),
        ("1a23b", "3a12b", {}, ""),
        ("1123", "312", {"due": 9}, "1:missing"),
        ("12", "122", {}, "2:unexpected"),
    ],
)
def test_the_comparison_says_what_is_wrong(expected: str, published: str, options: Any, found: str) -> None:
    assert verdicts(expected, published, **options) == found


# --- a task without event time --------------------------------------------------------------------------------------


class Lines:
    """Repeats what it reads with the number of lines so far; knows nothing of time."""

    waiting: Sequence[str] = ()

    def __init__(self, partition: int) -> None:
        self._partition, self._count = partition, 0

    def process(self, topic: str, records: Sequence[Record]) -> list[Outgoing]:
        return [self._numbered(json.loads(record.value or b"null")) for record in records]

    def _numbered(self, line: Any) -> Outgoing:
        self._count += 1
        value = json.dumps({"at": line["time_unix_s"], "line": self._count}).encode()
        return Outgoing("runs", None, value, (), self._partition)

    def snapshot(self) -> bytes:
        return b"%d" % self._count

    def restore(self, snapshot: bytes) -> None:
        self._count = int(snapshot)

    def offsets(self) -> Mapping[str, int]:
        return {"logs": self._count} if self._count else {}

    def watermarks(self) -> Mapping[str, float]:
        return {}


async def test_the_time_of_the_snapshot_decides_where_a_task_has_none(world: World[EmbeddedBroker]) -> None:
    await world.broker.create_topics(state_topics(["lines"], PARTITIONS))
    processor = Processor("lines", ("logs",), Lines, (Output("runs", time_field("at")),))
    for second in range(0, 300, 5):
        line = json.dumps({"time_unix_s": T0 + second}).encode()
        await world.append([(round((T0 + second) * 1000), Outgoing("logs", None, line, (), 0))])
        if second % 50 == 0:
            await world.run(processor)
    await world.run(processor)
    range_ = Range(T0 + 200, T0 + 230)
    plan = await prepare(world.broker, processor, range_, max_future_s=MAX_FUTURE_S)
    taken = plan.origins[0].taken_unix_s
    assert taken is not None
    assert T0 < taken <= T0 + 140
    assert await judged(world, processor, range_) == {Verdict.IDENTICAL: 6}


def test_partitions_are_merged_in_one_order_however_they_are_fetched() -> None:
    random = Random(1)
    logs = {
        TopicPartition("windows", number): [
            Stored(b"", offset, at, partition=number)
            for offset, at in enumerate(sorted(random.randrange(30_000) for _ in range(100)))
        ]
        for number in range(3)
    }
    orders = {tuple(merged_in_pieces(logs, Random(seed))) for seed in range(20)}
    assert len(orders) == 1
    seconds = [at // 1000 for _, at in orders.pop()]
    assert seconds == sorted(seconds)
    assert len(seconds) == 300


def merged_in_pieces(
    logs: Mapping[TopicPartition, Sequence[Record]], random: Random
) -> Iterator[tuple[TopicPartition, int]]:
    """What `_oldest` takes, where a fetch brings a few records of a partition that has none left."""
    left = {partition: deque(records) for partition, records in logs.items()}
    waiting = {partition: deque[Record]() for partition in logs}
    while any((*left.values(), *waiting.values())):
        for partition, queue in waiting.items():
            while left[partition] and (not queue or random.random() < 0.5):
                queue.append(left[partition].popleft())
        partition, batch = _oldest(waiting, {})
        yield from ((partition, record.timestamp) for record in batch)
