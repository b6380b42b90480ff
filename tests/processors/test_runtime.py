"""The runtime over the embedded broker: ticks, restarts, failing transactions, fencing."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from streammon import wire
from streammon.broker import Broker, Outgoing, Record, Transactor, connect
from streammon.config import Settings
from streammon.errors import Fatal, Fenced, RecordTooLarge, Retryable
from streammon.events import EventType
from streammon.tick import TICK
from streammon.topics import topic_specs
from streammon.wire import Density
from streammon_processors.runtime import Processor, Task, run_processor, windows_processor
from tests.support import eventually


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path, topics={"partitions": 2}, windows={"size_s": 1.0, "lateness_s": 0.2})


@pytest.fixture
async def broker(settings: Settings) -> AsyncIterator[Broker]:
    broker = await connect(settings)
    await broker.create_topics(topic_specs(partitions=2, processors=["windows", "rules", "echo"]))
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


class Failing:
    """A broker whose transactors fail as told, before or after the write: nobody is told which."""

    def __init__(self, broker: Broker, failures: list[tuple[bool, Exception]]) -> None:
        self._broker = broker
        self.failures = failures

    def __getattr__(self, name: str) -> Any:
        return getattr(self._broker, name)

    async def transactor(self, *arguments: Any) -> Transactor:
        real = await self._broker.transactor(*arguments)
        transact = real.transact

        async def failing(*written: Any) -> None:
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

    async def all_there() -> bool:
        return len(await contents(broker, "windows")) >= 20

    processor = Processor("echo", ("inference",), echo)
    await running(failing, processor, settings, all_there, "all records repeated")
    assert await contents(broker, "windows") == await contents(broker, "inference")
    assert not failing.failures


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
