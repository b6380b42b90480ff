"""The runtime over the embedded broker: ticks, restarts, failing transactions, fencing."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakSet

import pytest

from streammon import wire
from streammon.broker import Broker, Outgoing, Record, Restored, TopicPartition, Transactor, connect
from streammon.config import Settings
from streammon.errors import ConfigError, Fatal, Fenced, RecordTooLarge, Retryable
from streammon.events import EventType
from streammon.telemetry import CONSUMER_LAG
from streammon.tick import TICK
from streammon.topics import topic_specs
from streammon.wire import Density
from streammon_processors.builtin import windows_processor
from streammon_processors.registry import processor
from streammon_processors.runtime import BACKOFF, run_processor
from streammon_processors.task import Output, Processor, Step, Task, time_field
from tests.support import eventually


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path, topics={"partitions": 2}, windows={"size_s": 1.0, "lateness_s": 0.2})


@pytest.fixture
async def broker(settings: Settings) -> AsyncIterator[Broker]:
    broker = await connect(settings)
    await broker.create_topics(topic_specs(partitions=2, processors=["windows", "rollups", "rules", "echo"]))
    yield broker
    await broker.close()


def events(times: Sequence[float]) -> list[Outgoing]:
    rows = [
        {"time_unix_s": at, "service": "shop", "model": "ranker", "duration_s": 0.1, "status": "ok"} for at in times
    ]
    return [
        Outgoing("inference", b"shop/ranker", value) for value in wire.encode(EventType.INFERENCE, rows, Density.OBJECT)
    ]


async def contents(broker: Broker, topic: str) -> list[Any]:
    reader = await broker.reader([topic])
    try:
        ends, found = await reader.ends(), []
        while any(reader.positions().get(partition, 0) < end for partition, end in ends.items()):
            for records in (await reader.poll(0)).values():
                found += [json.loads(record.value or b"null") for record in records]
        return found
    finally:
        await reader.close()


async def running(
    broker: Broker, processor: Processor, settings: Settings, until: Callable[[], Awaitable[bool]], what: str
) -> None:
    """Run a processor until a condition holds."""
    stop = asyncio.Event()
    task = asyncio.create_task(run_processor(broker, processor, settings, stop=stop))
    try:

        async def condition() -> bool:
            if task.done():
                await task
            return await until()

        await eventually(condition, 10, what=what)
    finally:
        stop.set()
        await task


async def test_a_partition_that_falls_idle_is_closed_by_a_tick_record_in_the_log(
    broker: Broker, settings: Settings
) -> None:
    now = time.time()
    await broker.append(events([now, now + 0.01]))

    async def counted() -> bool:
        return [window["count"] for window in await contents(broker, "windows")] in ([2], [1, 1])

    await running(broker, windows_processor(settings), settings, counted, "both events in a window")
    assert json.loads(TICK) in await contents(broker, "inference")


async def test_a_processor_says_itself_how_long_a_partition_is_idle(broker: Broker, settings: Settings) -> None:
    now = time.time()
    await broker.append(events([now]))
    looked = 0

    async def a_while() -> bool:
        nonlocal looked
        looked += 1
        return looked > 40

    patient = dataclasses.replace(windows_processor(settings), idle_tick_s=60.0)
    await running(broker, patient, settings, a_while, "some looks")
    assert json.loads(TICK) not in await contents(broker, "inference")


async def test_an_idle_partition_without_open_windows_gets_no_ticks(broker: Broker, settings: Settings) -> None:
    looked = 0

    async def a_while() -> bool:
        nonlocal looked
        looked += 1
        return looked > 40

    await running(broker, windows_processor(settings), settings, a_while, "some looks at an empty log")
    assert await contents(broker, "inference") == []


async def test_a_restart_goes_on_where_the_last_run_published(broker: Broker, settings: Settings) -> None:
    start = 1_700_000_000.0
    for part in range(3):
        await broker.append(events([start + part * 5 + number * 0.1 for number in range(50)]))

        async def counted(expected: int = 50 * (part + 1)) -> bool:
            windows = await contents(broker, "windows")
            return bool(sum(window["count"] for window in windows) == expected)

        await running(broker, windows_processor(settings), settings, counted, f"part {part} counted")
    windows = await contents(broker, "windows")
    assert len({(window["start_unix_s"], window["part"], window["revision"]) for window in windows}) == len(windows)


class Echo:
    """A task that repeats every record, and remembers only how far it is."""

    def __init__(self, partition: int) -> None:
        self._partition = partition
        self._next: dict[str, int] = {}

    def process(self, topic: str, records: Sequence[Record]) -> list[Outgoing]:
        self._next[topic] = records[-1].offset + 1
        return [Outgoing("windows", record.key, record.value, (), self._partition) for record in records]

    def snapshot(self) -> bytes:
        return json.dumps(self._next).encode()

    def restore(self, snapshot: bytes) -> None:
        self._next = json.loads(snapshot)

    def offsets(self) -> Mapping[str, int]:
        return self._next

    @property
    def waiting(self) -> Sequence[str]:
        return ()

    def watermarks(self) -> Mapping[str, float]:
        return {}


def echo(partition: int) -> Task:
    return Echo(partition)


async def all_repeated(
    broker: Broker, settings: Settings, records: int, task: Callable[[int], Task] = echo, *outputs: Output
) -> None:
    """Run until every record is repeated: each once, and in order."""

    async def all_there() -> bool:
        return len(await contents(broker, "windows")) >= records

    await running(broker, Processor("echo", ("inference",), task, outputs), settings, all_there, "all records repeated")
    assert await contents(broker, "windows") == await contents(broker, "inference")


class Failing:
    """A broker whose transactors fail as told, before or after the write: nobody is told which."""

    def __init__(self, broker: Broker, failures: Sequence[tuple[bool, Exception | None]]) -> None:
        self._broker = broker
        self.failures = list(failures)
        self.written: list[int] = []  # bytes
        self.openings: list[Exception | None] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._broker, name)

    async def transactor(self, *arguments: Any) -> Transactor:
        if self.openings and (refused := self.openings.pop(0)):
            raise refused
        real = await self._broker.transactor(*arguments)
        transact = real.transact

        async def failing(*written: Any) -> None:
            self.written.append(sum(len(output.value or b"") for output in written[0]))
            happens, error = self.failures.pop(0) if self.failures else (True, None)
            if happens:
                await transact(*written)
            if error:
                raise error

        setattr(real, "transact", failing)  # noqa: B010 - the one call that fails
        return real


@pytest.mark.parametrize("happens", [False, True], ids=["not written", "written, but not acknowledged"])
async def test_a_transaction_that_fails_is_neither_lost_nor_repeated(
    happens: bool, broker: Broker, settings: Settings
) -> None:
    await broker.append(events([1_700_000_000.0 + number for number in range(20)]))
    failing = Failing(broker, [(happens, Retryable("the answer was lost"))])

    await all_repeated(failing, settings, 20)
    assert not failing.failures


async def test_a_broker_that_stays_away_is_waited_for(
    broker: Broker, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The transaction fails, the partition cannot be restored, the group not be joined; then all is well again."""
    monkeypatch.setattr("streammon_processors.runtime.REJOIN_S", 0.01)
    await broker.append(events([1_700_000_000.0 + number for number in range(20)]))
    failing = Failing(broker, [(False, Retryable("nobody there"))])
    failing.openings = [None, None, Retryable("nobody there"), Retryable("nobody there")]

    await all_repeated(failing, settings, 20)
    assert not failing.failures
    assert not failing.openings


@pytest.mark.parametrize("refusals", [0, 1], ids=["restored", "joined anew"])
async def test_a_task_that_was_thrown_away_is_gone_with_all_its_windows(
    refusals: int, broker: Broker, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In our programs garbage is collected seldom; here, never by itself."""
    monkeypatch.setattr("streammon_processors.runtime.REJOIN_S", 0.01)
    monkeypatch.setattr("streammon_processors.runtime.GARBAGE_S", 0.1)
    await broker.append(events([1_700_000_000.0 + number for number in range(20)]))
    failing = Failing(broker, [(False, Retryable("nobody there"))])
    failing.openings = [None, None, *[Retryable("nobody there") for _ in range(refusals)]]
    made, left = 0, WeakSet[Echo]()

    def watched(partition: int) -> Task:
        nonlocal made
        made += 1
        left.add(task := Echo(partition))
        return task

    async def only_two_are_left() -> bool:
        return made > 2 and len(left) == 2

    gc.disable()
    try:
        await running(failing, Processor("echo", ("inference",), watched), settings, only_two_are_left, "two tasks")
    finally:
        gc.enable()


async def test_what_was_fetched_before_a_task_was_restored_is_not_given_to_it_twice(
    broker: Broker, settings: Settings
) -> None:
    """One fetch brings records of two topics; the transaction of the first fails, and both are rewound."""
    numbers = [{"number": number} for number in range(20)]
    labels = [Outgoing("labels", None, json.dumps(each).encode(), (), 0) for each in numbers]
    await broker.append([*(record._replace(topic="inference") for record in labels), *labels])
    failing = Failing(broker, [(False, Retryable("the answer was lost"))])

    async def all_there() -> bool:
        return len(await contents(broker, "windows")) >= 40

    processor = Processor("echo", ("inference", "labels"), echo)
    await running(failing, processor, settings, all_there, "all records repeated")
    assert await contents(broker, "windows") == [*numbers, *numbers]
    assert not failing.failures


class Slow:
    """A broker that writes nothing of partition 0 until it is let."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self.let = asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._broker, name)

    async def transactor(self, group: str, topic: str, partition: int, inputs: Sequence[str]) -> Transactor:
        real = await self._broker.transactor(group, topic, partition, inputs)
        transact = real.transact

        async def slow(*written: Any) -> None:
            await self.let.wait()
            await transact(*written)

        if partition == 0:
            setattr(real, "transact", slow)  # noqa: B010 - the one call that is slow
        return real


async def test_a_partition_that_is_written_slowly_is_not_read_on_and_the_others_are(
    broker: Broker, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streammon_processors.share.WAITING_BYTES", 1000)
    monkeypatch.setattr("streammon_processors.runtime.POLL_RECORDS", 10)
    records = [Outgoing("inference", None, b"%010d" % number, (), number % 2) for number in range(1000)]
    await broker.append(records)
    slow = Slow(broker)
    tasks: dict[int, Echo] = {}

    def remembered(partition: int) -> Task:
        return tasks.setdefault(partition, Echo(partition))

    async def as_it_should_be() -> bool:
        if not slow.let.is_set() and len(await contents_of(broker, 1)) == 500:
            read = tasks[0].offsets()["inference"]
            assert 100 < read <= 120, "10 bytes a record: a thousand, and what one more poll brings"
            assert await contents_of(broker, 0) == []
            slow.let.set()
        return slow.let.is_set() and len(await contents_of(broker, 0)) == 500

    await running(slow, Processor("echo", ("inference",), remembered), settings, as_it_should_be, "all repeated")
    for partition in (0, 1):
        assert await contents_of(broker, partition) == [
            record.value for record in records if record.partition == partition
        ]


@pytest.mark.parametrize(
    ("error", "raised"),
    [(Fenced("somebody else owns it"), Fenced), (RecordTooLarge("2 MB"), Fatal)],
    ids=["fenced", "too large"],
)
async def test_going_on_would_be_wrong_so_the_process_stops(
    error: Exception, raised: type[Exception], broker: Broker, settings: Settings
) -> None:
    await broker.append(events([1_700_000_000.0]))
    failing = Failing(broker, [(False, error)])
    with pytest.raises(raised):
        await asyncio.wait_for(
            run_processor(failing, Processor("echo", ("inference",), echo), settings, stop=asyncio.Event()),
            10,
        )
    assert await contents(broker, "windows") == []
    await all_repeated(broker, settings, 1)


async def test_of_a_task_that_raises_nothing_is_committed_that_it_has_not_put_out(
    broker: Broker, settings: Settings
) -> None:
    await broker.append(events([1_700_000_000.0 + number for number in range(50)]))

    class Raising(Echo):
        def process(self, topic: str, records: Sequence[Record]) -> list[Outgoing]:
            outputs = super().process(topic, records)
            if any(b"1700000030" in (record.value or b"") for record in records):
                raise MemoryError("half way")  # offsets() has moved on, the outputs are gone
            return outputs

    with pytest.raises(
        Fatal, match=r"echo raised MemoryError\('half way'\) at inference, partition [01], records 0 to 49"
    ):
        await asyncio.wait_for(
            run_processor(broker, Processor("echo", ("inference",), Raising), settings, stop=asyncio.Event()), 10
        )
    await all_repeated(broker, settings, 50)


async def test_who_was_silent_for_a_session_joins_anew_instead_of_fencing_whoever_took_over(
    broker: Broker, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The partition may be another's by then; only the group knows."""
    monkeypatch.setattr("streammon_processors.runtime.REJOIN_S", 0.01)
    short = settings.model_copy(update={"kafka": settings.kafka.model_copy(update={"session_timeout_s": 0.05})})
    await broker.append(events([1_700_000_000.0 + number for number in range(20)]))
    joined: list[int] = []
    members = broker.member

    async def counted(*arguments: Any, **more: Any) -> Any:
        joined.append(len(failing.written))
        return await members(*arguments, **more)

    class Silent(Failing):
        async def transactor(self, *arguments: Any) -> Transactor:
            real = await super().transactor(*arguments)
            transact = real.transact

            async def slow(*written: Any) -> None:
                await asyncio.sleep(0.1 if self.failures else 0)
                await transact(*written)

            setattr(real, "transact", slow)  # noqa: B010 - the one call that is slow
            return real

    failing = Silent(broker, [(False, Retryable("nobody there"))])
    monkeypatch.setattr(broker, "member", counted)

    await all_repeated(failing, short, 20)
    assert joined == [0, 1], "the group was asked before the partition was opened again"


async def test_what_goes_to_a_topic_that_is_not_declared_stops_the_process(broker: Broker, settings: Settings) -> None:
    await broker.append(events([1_700_000_000.0]))
    mistaken = Processor("echo", ("inference",), echo, (Output("alerts", time_field("t")),))
    with pytest.raises(Fatal, match="it writes to the topic windows, which is not among the outputs"):
        await asyncio.wait_for(run_processor(broker, mistaken, settings, stop=asyncio.Event()), 10)
    assert await contents(broker, "windows") == []
    await all_repeated(broker, settings, 1)


class Lazy(Echo):
    """Its `process` is a generator, which is not what was asked for, but what it gives is plain."""

    def process(self, topic: str, records: Sequence[Record]) -> list[Outgoing]:
        return (each for each in super().process(topic, records))  # type: ignore[return-value]


class LazySteps(Echo):
    """Steps that do not say how many records they have taken, with outputs made as one looks at them."""

    def steps(self, topic: str, records: Sequence[Record]) -> Iterator[Step]:
        for record in records:
            outputs = self.process(topic, [record])
            yield Step(each for each in outputs)  # type: ignore[arg-type]


@pytest.mark.parametrize("task", [Lazy, LazySteps])
async def test_outputs_that_are_made_late_are_published_once(
    task: type[Echo], broker: Broker, settings: Settings
) -> None:
    await broker.append(events([1_700_000_000.0 + number for number in range(50)]))

    await all_repeated(broker, settings, 50, task, Output("windows", time_field("t")))


@pytest.mark.parametrize("wrong", [{"topic": "windows"}, None, b"bytes"], ids=repr)
async def test_outputs_of_a_wrong_type_stop_the_process_and_nothing_is_lost(
    wrong: Any, broker: Broker, settings: Settings
) -> None:
    class Wrong(Echo):
        def process(self, topic: str, records: Sequence[Record]) -> list[Outgoing]:
            super().process(topic, records)
            return [wrong]

    await broker.append(events([1_700_000_000.0 + number for number in range(20)]))
    with pytest.raises(Fatal, match=r"echo raised .* at inference, partition ., records 0 to 19"):
        await asyncio.wait_for(
            run_processor(broker, Processor("echo", ("inference",), Wrong), settings, stop=asyncio.Event()), 10
        )
    await all_repeated(broker, settings, 20)


async def test_a_snapshot_that_cannot_be_taken_stops_the_process_and_nothing_is_lost(
    broker: Broker, settings: Settings
) -> None:
    class Wrong(Echo):
        def snapshot(self) -> bytes:
            raise ValueError("no snapshot today")

    await broker.append(events([1_700_000_000.0 + number for number in range(20)]))
    with pytest.raises(Fatal, match=r"no snapshot today.* at partition ., as its snapshot was taken"):
        await asyncio.wait_for(
            run_processor(broker, Processor("echo", ("inference",), Wrong), settings, stop=asyncio.Event()), 10
        )
    await all_repeated(broker, settings, 20)


class Stepping(Echo):
    """Takes long, and puts out much, a record at a time."""

    def steps(self, topic: str, records: Sequence[Record]) -> Iterator[Step]:
        for number, record in enumerate(records, 1):
            yield Step(self.process(topic, [record]), number)


async def test_a_batch_with_much_output_becomes_many_transactions(
    broker: Broker, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streammon_processors.share.WAITING_BYTES", 1000)
    monkeypatch.setattr("streammon_processors.share.STEPS_BYTES", 4000)
    monkeypatch.setattr("streammon_processors.runtime.BREATH_S", 0.0)
    await broker.append(events([1_700_000_000.0 + number for number in range(200)]))
    failing = Failing(broker, [(True, None)] * 5 + [(True, Retryable("the answer was lost"))])
    written = failing.written

    await all_repeated(failing, settings, 200, Stepping)
    assert not failing.failures
    assert max(written) < 4000 + 1000
    assert len(written) > 6


class Toiling(Stepping):
    """A millisecond a record."""

    def process(self, topic: str, records: Sequence[Record]) -> list[Outgoing]:
        time.sleep(0.001 * len(records))
        return super().process(topic, records)


class ToilingAtOnce(Toiling):
    steps = None  # type: ignore[assignment]  # a task without


class Watched:
    """A broker whose members note where they are sought to, and fail to seek as often as told."""

    def __init__(self, broker: Broker, failures: int = 0) -> None:
        self._broker = broker
        self.failures = failures
        self.sought: list[TopicPartition] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._broker, name)

    async def member(self, *arguments: Any, on_assign: Any, **more: Any) -> Any:
        assigning = False

        async def assigned(partitions: Sequence[TopicPartition]) -> None:
            nonlocal assigning
            assigning = True
            await on_assign(partitions)
            assigning = False

        member = await self._broker.member(*arguments, on_assign=assigned, **more)
        seek = member.seek

        def noting(partition: TopicPartition, offset: int) -> None:
            if not assigning:
                self.sought.append(partition)
                if self.failures:
                    self.failures -= 1
                    raise Retryable("cannot seek now")
            seek(partition, offset)

        setattr(member, "seek", noting)  # noqa: B010 - the one call that is watched
        return member


@pytest.fixture
def short_of_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streammon_processors.runtime.WORK_S", 0.02)
    monkeypatch.setattr("streammon_processors.runtime.BREATH_S", 0.002)
    monkeypatch.setattr("streammon_processors.share.FIRST_RECORDS", 16)
    monkeypatch.setattr("streammon_processors.share.QUICK_S", 0.0)
    monkeypatch.setattr("streammon_processors.runtime.REJOIN_S", 0.01)


@pytest.mark.usefixtures("short_of_time")
@pytest.mark.parametrize("task", [Toiling, ToilingAtOnce], ids=["in steps", "at once"])
@pytest.mark.parametrize("failures", [0, 1], ids=["", "and cannot be at first"])
async def test_what_takes_too_long_is_given_back_and_given_again(
    failures: int, task: type[Echo], broker: Broker, settings: Settings
) -> None:
    """Whoever does not poll loses its partitions; what was fetched and not looked at is fetched again."""
    await broker.append(events([1_700_000_000.0 + number for number in range(200)]))
    watched = Watched(broker, failures)

    await all_repeated(watched, settings, 200, task)
    assert len(watched.sought) >= 3
    assert not watched.failures


@pytest.mark.usefixtures("short_of_time")
@pytest.mark.parametrize("task", [Toiling, ToilingAtOnce], ids=["in steps", "at once"])
async def test_a_partition_with_too_much_work_does_not_keep_the_others_from_theirs(
    task: type[Echo], broker: Broker, settings: Settings
) -> None:
    records = events([1_700_000_000.0 + number for number in range(2000)])
    await broker.append([record._replace(partition=0) for record in records])
    await broker.append([record._replace(partition=1) for record in records[:20]])
    done: dict[int, int] = {}

    async def the_small_one_is_through() -> bool:
        done.update({p: len(await contents_of(broker, p)) for p in (0, 1)})
        return done[1] == 20

    processor = Processor("echo", ("inference",), task)
    await running(broker, processor, settings, the_small_one_is_through, "the small partition")
    assert done[0] < 2000, "else nothing was tested"


async def contents_of(broker: Broker, partition: int) -> list[Any]:
    reader = await broker.reader(["windows"])
    try:
        found, ends = [], await reader.ends()
        while any(reader.positions().get(each, 0) < end for each, end in ends.items()):
            polled = await reader.poll(0)
            found += [record.value for each, some in polled.items() if each.partition == partition for record in some]
        return found
    finally:
        await reader.close()


@pytest.mark.usefixtures("short_of_time")
async def test_a_partition_that_cannot_be_resumed_is_not_left_out(
    broker: Broker, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its transaction has failed, its task is to be made anew, and the broker goes away in the midst of that."""
    monkeypatch.setattr("streammon_processors.share.WAITING_BYTES", 100)
    await broker.append(events([1_700_000_000.0 + number for number in range(20)]))
    failing = Failing(broker, [(False, Retryable("the answer was lost"))])
    members, refused = broker.member, [Retryable("cannot resume now")]

    async def member(*arguments: Any, **more: Any) -> Any:
        made = await members(*arguments, **more)
        resume = made.resume

        def resuming(partition: TopicPartition) -> None:
            if refused:
                raise refused.pop()
            resume(partition)

        setattr(made, "resume", resuming)  # noqa: B010 - the one call that fails
        return made

    monkeypatch.setattr(broker, "member", member)

    await all_repeated(failing, settings, 20)
    assert not refused


@pytest.mark.parametrize("name", ["windows", "rollups", "rules"])
async def test_a_snapshot_of_another_version_is_named_with_what_to_do(
    name: str, broker: Broker, settings: Settings
) -> None:
    earlier = await broker.transactor(name, f"state.{name}", 1, ["windows"])
    await earlier.transact([], b'["of", "old"]', {})
    await earlier.close()
    run = run_processor(broker, processor(name, settings), settings, stop=asyncio.Event())
    with pytest.raises(
        ConfigError, match=rf"partition 1 in the topic state\.{name}: ValidationError.*the group {name}"
    ):
        await asyncio.wait_for(run, 10)


class Opening:
    """A broker that fails to open the transactor of partition 1, then to restore it; counts those that are open."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._failures = ["open", "restore"]
        self.open = {0: 0, 1: 0}

    def __getattr__(self, name: str) -> Any:
        return getattr(self._broker, name)

    async def transactor(self, group: str, state_topic: str, partition: int, inputs: Sequence[str]) -> Transactor:
        failure = self._failures.pop(0) if partition == 1 and self._failures else None
        if failure == "open":
            raise Retryable("the coordinator is moving")
        real = await self._broker.transactor(group, state_topic, partition, inputs)
        close = real.close

        async def closing() -> None:
            self.open[partition] -= 1
            await close()

        async def failing() -> Restored:
            raise Retryable("the partition has no leader")

        setattr(real, "close", closing)  # noqa: B010 - the call that is counted
        if failure == "restore":
            setattr(real, "restore", failing)  # noqa: B010 - the call that fails
        self.open[partition] += 1
        return real


async def test_an_assignment_that_fails_half_way_is_given_back_whole_and_taken_again(
    broker: Broker, settings: Settings
) -> None:
    await broker.append([record._replace(partition=n % 2) for n, record in enumerate(events([1_700_000_000.0] * 20))])
    opening = Opening(broker)
    most = 0

    async def all_there() -> bool:
        nonlocal most
        most = max(most, *opening.open.values())
        return len(await contents(broker, "windows")) == 20

    await running(opening, Processor("echo", ("inference",), echo), settings, all_there, "all records repeated")
    assert most == 1
    assert opening.open == {0: 0, 1: 0}


async def test_a_partition_given_away_leaves_no_lag_behind(broker: Broker, settings: Settings) -> None:
    await broker.append(events([1_700_000_000.0 + number for number in range(20)]))

    async def measured() -> bool:
        return bool(lags())

    def lags() -> list[dict[str, str]]:
        samples = [sample for metric in CONSUMER_LAG.collect() for sample in metric.samples]
        return [sample.labels for sample in samples if sample.labels["group"] == "echo"]

    await running(broker, Processor("echo", ("inference",), echo), settings, measured, "a lag")
    assert lags() == []


class Hanging:
    """A broker whose transactions never end."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self.hangs = asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._broker, name)

    async def transactor(self, *arguments: Any) -> Transactor:
        real = await self._broker.transactor(*arguments)

        async def hanging(*_: Any) -> None:
            self.hangs.set()
            await asyncio.Event().wait()

        setattr(real, "transact", hanging)  # noqa: B010 - the one call that hangs
        return real


async def test_a_broker_that_hangs_does_not_keep_the_process_from_stopping(
    broker: Broker, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streammon_processors.runtime.GRACE_S", 0.05)
    monkeypatch.setattr("streammon_processors.share.CLOSE_S", 0.05)
    await broker.append(events([1_700_000_000.0]))
    hanging, stop = Hanging(broker), asyncio.Event()
    task = asyncio.create_task(run_processor(hanging, Processor("echo", ("inference",), echo), settings, stop=stop))
    await asyncio.wait_for(hanging.hangs.wait(), 10)
    stop.set()
    await asyncio.wait_for(task, 5)
    assert await contents(broker, "windows") == []


async def test_a_task_lets_go_of_its_disk_even_if_its_share_is_not_closed_in_time(
    broker: Broker, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next one, made in the same process because a file has changed, is to find it free."""
    monkeypatch.setattr("streammon_processors.runtime.GRACE_S", 0.5)  # in the midst of closing
    await broker.append(events([1_700_000_000.0]))
    hanging, stop, closed = Hanging(broker), asyncio.Event(), list[Task]()
    monkeypatch.setattr("streammon_processors.share.close", closed.append)
    task = asyncio.create_task(run_processor(hanging, Processor("echo", ("inference",), echo), settings, stop=stop))
    await asyncio.wait_for(hanging.hangs.wait(), 10)
    stop.set()
    await asyncio.wait_for(task, 5)
    assert len(closed) == 2  # partitions


async def test_records_with_many_events_are_committed_a_few_at_a_time(
    broker: Broker, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few bytes make many windows, and a transaction has to end within its timeout."""
    monkeypatch.setattr("streammon_processors.share.BATCH_BYTES", 1000)
    await broker.append(events([1_700_000_000.0 + number for number in range(40)]))
    sizes: list[int] = []

    class Counting(Echo):
        def process(self, topic: str, records: Sequence[Record]) -> list[Outgoing]:
            sizes.append(sum(len(record.value or b"") for record in records))
            return super().process(topic, records)

    await all_repeated(broker, settings, 40, Counting)
    assert len(sizes) > 4
    assert max(sizes) < 1000 + 150


async def test_what_a_task_puts_out_just_as_writing_ends_is_written_too(broker: Broker, settings: Settings) -> None:
    """In one poll: the transaction of the first batch ends while the last is processed, and no record comes after."""
    written: list[bytes | None] = []

    class Quick:
        async def restore(self) -> Restored:
            return Restored(None, {})

        async def transact(self, outputs: Sequence[Outgoing], snapshot: bytes, offsets: Mapping[Any, int]) -> None:
            written.extend(output.value for output in outputs if output.topic == "windows")

        async def close(self) -> None: ...

    async def quick(*_: Any) -> Quick:
        return Quick()

    broker.transactor = quick  # type: ignore[method-assign, assignment]  # nothing else of the broker matters here
    records = events([float(number) for number in range(9000)])
    await broker.append([record._replace(partition=0) for record in records])

    async def all_written() -> bool:
        return len(written) == 9000

    await running(broker, Processor("echo", ("inference",), echo), settings, all_written, "everything written")


def test_pauses_grow_to_the_longest_and_an_outage_of_days_is_no_overflow() -> None:
    assert 0.1 <= BACKOFF.pause_s(1) <= 0.2
    longest_s = BACKOFF.longest_s
    assert all(longest_s / 2 <= BACKOFF.pause_s(failures) <= longest_s for failures in (6, 100, 100_000))
