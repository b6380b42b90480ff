"""How often the runtime writes: seldom while there is much to read, at once when there is not."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from streammon import wire
from streammon.broker import Outgoing, connect
from streammon.broker.embedded import EmbeddedBroker
from streammon.config import Settings
from streammon.events import EventType
from streammon.topics import topic_specs
from streammon_processors import runtime
from streammon_processors import share as share_module
from streammon_processors.builtin import windows_processor
from streammon_processors.contract import Stored
from streammon_processors.history import History
from streammon_processors.runtime import run_processor
from streammon_processors.share import Share
from streammon_processors.windows import WindowTask
from tests.joins import join_task
from tests.support import eventually

START = 1_700_000_000.0
WINDOWS, EACH = 400, 40


def events() -> Iterator[Outgoing]:
    """Enough for several polls, closing a window every few records."""
    rows = [
        {
            "time_unix_s": START + number / EACH,
            "service": "shop",
            "model": "ranker",
            "duration_s": 0.1,
            "status": "ok",
            "request_id": "r" * 400,
        }
        for number in range(WINDOWS * EACH)
    ]
    for value in wire.encode(EventType.INFERENCE, rows, wire.Density.OBJECT):
        yield Outgoing("inference", b"shop/ranker", value)


async def published(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int]:
    """Of a processor that has all of the log to read: its windows, and the transactions that wrote them."""
    broker = await connect(settings)
    assert isinstance(broker, EmbeddedBroker)
    await broker.create_topics(topic_specs(partitions=1, processors=["windows"]))
    await broker.append(list(events()))
    written: list[int] = []
    open_transactor = broker.transactor

    async def counted(*args: Any) -> Any:
        transactor = await open_transactor(*args)
        transact = transactor.transact

        async def transact_counted(outputs: Any, *rest: Any) -> None:
            await transact(outputs, *rest)
            written.append(sum(output.topic == "windows" for output in outputs))

        monkeypatch.setattr(transactor, "transact", transact_counted)
        return transactor

    monkeypatch.setattr(broker, "transactor", counted)
    stop = asyncio.Event()
    running = asyncio.create_task(run_processor(broker, windows_processor(settings), settings, stop=stop))

    async def all_but_the_open_ones() -> bool:
        return running.done() or sum(written) >= WINDOWS - 1

    await eventually(all_but_the_open_ones, 20, what="the windows of the log")
    stop.set()
    await running
    await broker.close()
    return sum(written), sum(map(bool, written))


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path, topics={"partitions": 1}, windows={"size_s": 1.0, "lateness_s": 0.0})


@pytest.fixture(autouse=True)
def _small_polls(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(share_module, "COMMIT_S", 3600.0)
    monkeypatch.setattr(runtime, "POLL_RECORDS", 1000)
    monkeypatch.setattr(share_module, "BATCH_BYTES", 100_000)
    monkeypatch.setattr(runtime, "BATCH_BYTES", 100_000)


async def test_who_is_behind_writes_when_the_reading_is_done(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(share_module, "BEHIND_S", 3600.0)
    windows, transactions = await published(settings, monkeypatch)
    assert windows >= WINDOWS - 1
    assert transactions <= 3


async def test_who_is_behind_writes_before_memory_is_short(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(share_module, "BEHIND_S", 3600.0)
    monkeypatch.setattr(share_module, "WAITING_BYTES", 20_000)
    windows, transactions = await published(settings, monkeypatch)
    assert windows >= WINDOWS - 1
    assert transactions > 3


class Noting:
    """A transactor that only notes: how many records of each topic were written together."""

    def __init__(self) -> None:
        self.written: list[Counter[str]] = []

    async def transact(self, outputs: Sequence[Outgoing], *_: Any) -> None:
        await asyncio.sleep(0)
        self.written.append(Counter(output.topic for output in outputs))

    async def close(self) -> None: ...


@pytest.fixture
def share_behind(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> tuple[Share, Noting]:
    """It would write by itself after an hour."""
    monkeypatch.setattr(share_module, "BEHIND_S", 3600.0)
    transactor: Any = Noting()
    task = WindowTask(0, settings.windows)
    share = Share(0, task, transactor, History("windows", 0), {}, time.monotonic(), behind=True)
    return share, transactor


def batches(every_s: float, count: int, **fields: str) -> Iterator[list[Stored]]:
    """One event each; of broker time, too."""
    for number in range(count):
        at = START + number * every_s
        event = {"time_unix_s": at, "service": "shop", "model": "ranker", "duration_s": 0.1, "status": "ok", **fields}
        [value] = wire.encode(EventType.INFERENCE, [event], wire.Density.OBJECT)
        yield [Stored(value, number, round(at * 1000))]


async def test_who_is_behind_and_has_to_leave_writes_what_waits(
    share_behind: tuple[Share, Noting],
) -> None:
    share, transactor = share_behind
    for batch in batches(1.0, 20):
        list(share.process("inference", batch))
        await asyncio.sleep(0.001)
    assert sum(each["windows"] for each in transactor.written) < 5
    await share.finish()
    assert sum(each["windows"] for each in transactor.written) == 19
    assert share.committed == share.task.offsets()


async def test_who_is_behind_keeps_as_many_snapshots_as_one_that_never_was(
    share_behind: tuple[Share, Noting],
) -> None:
    share, transactor = share_behind
    for batch in batches(1800.0, 96):
        list(share.process("inference", batch))
        if share.writing is not None:
            await share.writing
        share.written()
    assert sum(each["snapshots"] for each in transactor.written) >= 95


async def test_who_goes_on_after_a_restart_does_not_keep_the_beginning_of_the_day_again(
    share_behind: tuple[Share, Noting],
) -> None:
    share, transactor = share_behind
    share.committed = {"inference": 0}
    share.history = History("windows", 0, goes_on=True)
    for batch in batches(60.0, 29):
        list(share.process("inference", batch))
    await share.finish()
    assert sum(each["snapshots"] for each in transactor.written) <= 1, "a half hour may begin on the way"
    assert sum(each["windows"] for each in transactor.written) == 28


async def test_a_journal_alone_waits_for_results_or_the_next_commit(settings: Settings) -> None:
    transactor: Any = Noting()
    share = Share(0, join_task(0), transactor, History("join", 0), {}, time.monotonic(), journal="journal.join")
    for number, batch in enumerate(batches(0.1, 20)):
        [named] = batches(0.1, 1, event_id=f"id-{number}")
        list(share.process("inference", [named[0]._replace(offset=batch[0].offset)]))
        await asyncio.sleep(0.001)
    assert not transactor.written
    label = {"time_unix_s": START, "service": "shop", "model": "ranker", "event_id": "id-7", "label": 1.0}
    [value] = wire.encode(EventType.LABEL, [label], wire.Density.OBJECT)
    list(share.process("labels", [Stored(value, 0, round(START * 1000))]))
    await share.finish()
    assert [(each["journal.join"], each["outcomes"]) for each in transactor.written] == [(21, 1)]
