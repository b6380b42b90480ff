"""The embedded log beyond the contract: retention, several processes, and files that cannot be used."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import structlog

from streammon.broker import Outgoing, Record, Restored, TopicPartition, sqlite_log
from streammon.broker import embedded as module
from streammon.broker.embedded import EmbeddedBroker
from streammon.config import EmbeddedSettings, Settings
from streammon.errors import Backpressure, ConfigError, Fatal, Fenced, Retryable
from streammon.topics import TopicSpec
from tests.support import eventually

DEADLINE_S = 20.0
HOUR_S = 3600.0
EVENTS = TopicSpec("events", 2, HOUR_S, log_append_time=True)
KEPT = TopicSpec("kept", 2, 100 * HOUR_S)
NEWEST = TopicSpec("newest", 2, None, compact=True)
MAX_BYTES = 16 * 1024**2


class FakeClock:
    """Unix time that moves when a test says so."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data", embedded=EmbeddedSettings(max_bytes=MAX_BYTES))


Open = Callable[[], Awaitable[EmbeddedBroker]]


@pytest.fixture
async def open_broker(settings: Settings, clock: FakeClock) -> AsyncIterator[Open]:
    opened: list[EmbeddedBroker] = []

    async def open_one() -> EmbeddedBroker:
        opened.append(await EmbeddedBroker.open(settings, clock=clock))
        await opened[-1].create_topics([EVENTS, KEPT, NEWEST])
        return opened[-1]

    yield open_one
    for broker in opened:
        await broker.close()


@pytest.fixture
async def broker(open_broker: Open) -> EmbeddedBroker:
    return await open_broker()


def event(value: bytes | None, partition: int = 0, topic: str = "events", key: bytes | None = None) -> Outgoing:
    return Outgoing(topic, key, value, partition=partition)


async def read_all(broker: EmbeddedBroker, topic: str) -> list[Record]:
    reader = await broker.reader([topic])
    records: list[Record] = []
    while reader.positions() != await reader.ends():
        records += [each for polled in (await reader.poll()).values() for each in polled]
    return records


def values(records: Iterable[Record]) -> list[bytes | None]:
    return [record.value for record in records]


async def ignore(_: Sequence[TopicPartition]) -> None:
    """A callback for who does not care."""


def file_of(settings: Settings) -> Path:
    return settings.data_dir / "log.sqlite"


# ---------------------------------------------------------------- time


async def test_time_never_falls_within_a_partition_when_the_clock_does(
    broker: EmbeddedBroker, clock: FakeClock
) -> None:
    await broker.append([event(b"a")])
    clock.now -= 60
    await broker.append([event(b"b", 0), event(b"c", 1)])
    stamps = {record.value: record.timestamp / 1000 - clock.now for record in await read_all(broker, "events")}
    assert stamps == {b"a": 60, b"b": 60, b"c": 0}


async def test_a_reader_finds_a_time_among_many_records_with_gaps(broker: EmbeddedBroker, clock: FakeClock) -> None:
    start = clock.now
    for number in range(50):
        clock.now = start + number * HOUR_S
        await broker.append([event(b"%d" % number, topic="newest", key=b"%d" % (number % 7 == 0))])
    await broker.retain()
    remaining = [int(record.value or b"") for record in await read_all(broker, "newest")]
    assert len(remaining) < 50
    for number in range(50):
        reader = await broker.reader(["newest"], start + number * HOUR_S)
        [[first, *_]] = (await reader.poll()).values()
        assert int(first.value or b"") == min(each for each in remaining if each >= number)


# ---------------------------------------------------------------- retention


async def test_records_older_than_the_topic_keeps_are_dropped_and_offsets_go_on(
    broker: EmbeddedBroker, clock: FakeClock
) -> None:
    await broker.append([event(b"old") for _ in range(2500)] + [event(b"old", topic="kept")])
    clock.now += HOUR_S / 2
    await broker.append([event(b"young")])
    clock.now += HOUR_S / 2 + 1
    await broker.retain()
    [record] = await read_all(broker, "events")
    assert (record.value, record.offset) == (b"young", 2500)
    assert values(await read_all(broker, "kept")) == [b"old"]
    assert await broker.append([event(b"new")]) == [2501]


async def test_offsets_go_on_when_everything_was_dropped(
    broker: EmbeddedBroker, open_broker: Open, clock: FakeClock
) -> None:
    await broker.append([event(b"old") for _ in range(10)])
    clock.now += 2 * HOUR_S
    await broker.retain()
    assert await read_all(broker, "events") == []
    assert await (await open_broker()).append([event(b"new")]) == [10]


async def test_retention_is_applied_by_itself_and_tried_again_after_a_failure(
    settings: Settings, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_log, "BUSY_TIMEOUT_S", 0.05)
    often = settings.model_copy(update={"embedded": EmbeddedSettings(retention_interval_s=0.01)})
    broker = await EmbeddedBroker.open(often, clock=clock)
    await broker.create_topics([EVENTS])
    await broker.append([event(b"old")])
    with (
        closing(sqlite3.connect(file_of(settings), isolation_level=None)) as other,
        structlog.testing.capture_logs() as logs,
    ):
        other.execute("BEGIN IMMEDIATE")
        clock.now += 2 * HOUR_S
        await eventually(lambda: logs, what="a failed pass")
        assert logs[0]["event"] == "retention failed, trying again"

    async def gone() -> bool:
        return await read_all(broker, "events") == []

    await eventually(gone)
    await broker.close()


async def test_compaction_keeps_the_newest_of_each_key(broker: EmbeddedBroker, clock: FakeClock) -> None:
    for value in (b"1", b"2", b"3"):
        await broker.append([event(value, 0, "newest", b"a"), event(value, 0, "newest", b"b")])
    clock.now += module.COMPACTION_LAG_S + 1
    await broker.append([event(b"4", 0, "newest", b"a")])
    await broker.retain()
    records = await read_all(broker, "newest")
    assert [(record.key, record.value, record.offset) for record in records] == [
        (b"b", b"3", 5),
        (b"a", b"4", 6),
    ]


async def test_a_replaced_record_stays_for_followers_that_are_a_little_behind(
    broker: EmbeddedBroker, clock: FakeClock
) -> None:
    await broker.append([event(b"1", 0, "newest", b"a"), event(b"2", 0, "newest", b"a")])
    clock.now += module.COMPACTION_LAG_S / 2
    await broker.retain()
    assert values(await read_all(broker, "newest")) == [b"1", b"2"]


async def test_a_tombstone_replaces_at_once_and_goes_after_a_day(broker: EmbeddedBroker, clock: FakeClock) -> None:
    await broker.append([event(b"1", 0, "newest", b"a"), event(None, 0, "newest", b"a")])
    clock.now += module.TOMBSTONE_S / 2
    await broker.retain()
    assert values(await read_all(broker, "newest")) == [None]
    clock.now += module.TOMBSTONE_S
    await broker.retain()
    assert await read_all(broker, "newest") == []


async def test_snapshots_do_not_pile_up(broker: EmbeddedBroker) -> None:
    transactor = await broker.transactor("group", "newest", 0, ["events"])
    for number in range(20):
        await transactor.transact([], b"%d" % number, {})
    assert values(await read_all(broker, "newest")) == [b"19"]


async def test_the_oldest_records_of_the_largest_topic_make_room(
    broker: EmbeddedBroker, settings: Settings, clock: FakeClock
) -> None:
    await broker.append([event(b"small", topic="kept"), event(b"small", topic="newest", key=b"a")])
    largest = 0
    for round_ in range(30):
        clock.now += 1
        await broker.append([event(b"%4d" % round_ + bytes(10_000), number % 2) for number in range(200)])
        await broker.retain()
        largest = max(largest, file_of(settings).stat().st_size)
    used = await broker._log.read(sqlite_log.used_bytes)
    assert MAX_BYTES / 2 < used <= MAX_BYTES
    assert largest <= MAX_BYTES + 200 * 15_000
    assert values(await read_all(broker, "kept")) == values(await read_all(broker, "newest")) == [b"small"]
    rounds = [int((record.value or b"")[:4]) for record in await read_all(broker, "events")]
    assert max(rounds) == 29
    assert set(rounds) == set(range(min(rounds), 30))


async def test_compacted_topics_alone_over_the_bound_are_kept_and_reported(
    broker: EmbeddedBroker,
) -> None:
    keys = [b"%d" % number for number in range(20)]
    await broker.append([event(bytes(10**6), 0, "newest", key) for key in keys])
    with structlog.testing.capture_logs() as logs:
        await broker.retain()
    assert "max_bytes" in logs[0]["event"]
    assert [record.key for record in await read_all(broker, "newest")] == keys


async def test_the_write_ahead_log_stays_small_under_steady_reading(broker: EmbeddedBroker, settings: Settings) -> None:
    wal = settings.data_dir / "log.sqlite-wal"
    reader = await broker.reader(["events"])
    largest = 0
    for _ in range(100):
        await asyncio.gather(broker.append([event(bytes(100_000)) for _ in range(10)]), reader.poll(max_records=5))
        largest = max(largest, wal.stat().st_size)
    assert largest < 2 * sqlite_log.WAL_BYTES


async def test_a_member_whose_place_was_dropped_goes_on_at_the_first_record_and_says_what_it_lost(
    broker: EmbeddedBroker, clock: FakeClock
) -> None:
    await broker.append([event(b"old") for _ in range(10)])
    member = await broker.member("group", ["events"], on_assign=ignore, on_revoke=ignore)
    await member.poll()
    await member.commit({TopicPartition("events", 0): 3})
    await member.close()
    clock.now += 2 * HOUR_S
    await broker.append([event(b"new")])
    await broker.retain()
    late = await broker.member("group", ["events"], on_assign=ignore, on_revoke=ignore)
    with structlog.testing.capture_logs() as logs:
        [[record]] = (await late.poll()).values()
    assert (record.value, record.offset) == (b"new", 10)
    assert [(each["topic"], each["partition"], each["lost"]) for each in logs] == [("events", 0, 7)]


# ---------------------------------------------------------------- polling


async def test_partitions_just_created_have_no_lag_before_their_ends_were_looked_at(broker: EmbeddedBroker) -> None:
    async def assigned(_: Sequence[TopicPartition]) -> None: ...

    member = await broker.member("group", ["events"], on_assign=assigned, on_revoke=assigned)
    assert await member.poll(0.01) == {}
    broker._log.ends = {}
    assert await member.lag() == {TopicPartition("events", 0): 0, TopicPartition("events", 1): 0}


async def test_one_poll_takes_a_bounded_amount_of_memory(broker: EmbeddedBroker) -> None:
    for _ in range(3):
        await broker.append([event(bytes(10**6), number % 2) for number in range(10)])
    reader = await broker.reader(["events"])
    seen = 0
    while seen < 30:
        records = [record for polled in (await reader.poll()).values() for record in polled]
        assert sum(len(record.value or b"") for record in records) <= 9 * 1024**2
        seen += len(records)


async def test_a_busy_partition_does_not_starve_another(broker: EmbeddedBroker) -> None:
    await broker.append([event(bytes(10**6), 0) for _ in range(20)] + [event(b"other", 1)])
    reader = await broker.reader(["events"])
    first_two = [*(await reader.poll()).values(), *(await reader.poll()).values()]
    assert [b"other"] in [values(records) for records in first_two]


async def test_writes_of_this_process_wake_its_pollers_without_looking_for_them(
    open_broker: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WATCH_S", 1000.0)
    broker = await open_broker()
    reader = await broker.reader(["events"])
    waiting = asyncio.create_task(reader.poll(max_wait_s=1000.0))
    await asyncio.sleep(0)
    await broker.append([event(b"x")])
    async with asyncio.timeout(DEADLINE_S):
        assert await waiting


async def test_assignment_that_fails_is_tried_again_by_the_next_poll(broker: EmbeddedBroker) -> None:
    failures = [Retryable("not yet")]
    assigned: list[TopicPartition] = []

    async def on_assign(partitions: Sequence[TopicPartition]) -> None:
        if failures:
            raise failures.pop()
        assigned.extend(partitions)

    await broker.append([event(b"x")])
    member = await broker.member("group", ["events"], on_assign=on_assign, on_revoke=ignore)
    with pytest.raises(Retryable, match="not yet"):
        await member.poll()
    assert await member.poll()
    assert assigned == [TopicPartition("events", 0), TopicPartition("events", 1)]


async def test_a_member_standing_by_may_not_commit(broker: EmbeddedBroker, open_broker: Open) -> None:
    active = await broker.member("group", ["events"], on_assign=ignore, on_revoke=ignore)
    await active.poll(0)
    other = await (await open_broker()).member("group", ["events"], on_assign=ignore, on_revoke=ignore)
    assert await other.poll(0.1) == {}
    with pytest.raises(Retryable, match="stands by"):
        await other.commit({TopicPartition("events", 0): 1})


# ---------------------------------------------------------------- writing together


async def test_a_fenced_transaction_does_not_hurt_the_appends_it_is_committed_with(
    broker: EmbeddedBroker,
) -> None:
    zombie = await broker.transactor("group", "newest", 0, ["events"])
    await broker.transactor("group", "newest", 0, ["events"])
    before, dead, after = await asyncio.gather(
        broker.append([event(b"before")]),
        zombie.transact([event(b"dead")], b"", {}),
        broker.append([event(b"after")]),
        return_exceptions=True,
    )
    assert (before, after) == ([0], [1])
    assert isinstance(dead, Fenced)
    assert values(await read_all(broker, "events")) == [b"before", b"after"]


async def test_a_write_that_breaks_leaves_nothing_and_the_log_goes_on(broker: EmbeddedBroker) -> None:
    def breaks(db: sqlite3.Connection) -> None:
        db.execute("DELETE FROM topics")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await broker._log.write(breaks)
    assert set(await broker.topics()) == {"events", "kept", "newest"}
    assert await broker.append([event(b"x")]) == [0]


async def test_a_kill_before_any_statement_of_a_transaction_leaves_all_of_it_or_nothing(
    broker: EmbeddedBroker, settings: Settings, tmp_path: Path
) -> None:
    """What a kill leaves is what the files hold at that moment: copy them before each statement."""
    copies: list[Path] = []

    def copy(_: str) -> None:
        copies.append(tmp_path / f"copy-{len(copies)}")
        shutil.copytree(settings.data_dir, copies[-1], ignore=shutil.ignore_patterns("*-shm"))

    async def standing(directory: Path) -> tuple[int, Restored]:
        copied = await EmbeddedBroker.open(Settings(data_dir=directory))
        transactor = await copied.transactor("group", "newest", 0, ["events"])
        found = len(await read_all(copied, "kept")), await transactor.restore()
        await copied.close()
        return found

    place = TopicPartition("events", 0)
    outputs = [event(b"x", 0, "kept"), event(b"y", 1, "kept")]
    transactor = await broker.transactor("group", "newest", 0, ["events"])
    await transactor.transact(outputs, b"one", {place: 1})
    await broker._log.write(lambda db: db.set_trace_callback(copy))
    await transactor.transact(outputs, b"two", {place: 2})
    await broker._log.write(lambda db: db.set_trace_callback(None))
    found = [await standing(directory) for directory in copies]
    before, after = (2, Restored(b"one", {place: 1})), (4, Restored(b"two", {place: 2}))
    done = found.index(after)
    assert done > 8
    assert found == [before] * done + [after] * (len(found) - done)


async def test_what_was_accepted_is_written_before_close_returns(open_broker: Open) -> None:
    broker = await open_broker()
    await broker.topics()
    appends = [asyncio.create_task(broker.append([event(b"x")])) for _ in range(50)]
    await asyncio.sleep(0)
    await broker.close()
    assert [await each for each in appends] == [[offset] for offset in range(50)]
    with pytest.raises(Fatal, match=r"log\.sqlite has been closed"):
        await broker.append([event(b"late")])
    assert len(await read_all(await open_broker(), "events")) == 50


async def test_a_partition_that_the_topic_does_not_have_is_refused(broker: EmbeddedBroker) -> None:
    with pytest.raises(ConfigError, match="events has 2 partitions, none is 2"):
        await broker.append([event(b"x", 2)])
    with pytest.raises(ConfigError, match="newest has 2 partitions, none is 9"):
        await broker.transactor("group", "newest", 9, [])


# ---------------------------------------------------------------- a log that cannot be written


async def test_a_full_disk_is_retryable_and_passes(broker: EmbeddedBroker, settings: Settings) -> None:
    await broker._log.write(lambda db: db.execute("PRAGMA max_page_count = 100").fetchone())
    with pytest.raises(Retryable, match=rf"full.*{file_of(settings)}"):
        await broker.append([event(bytes(10**6))])
    assert await read_all(broker, "events") == []
    await broker._log.write(lambda db: db.execute("PRAGMA max_page_count = 1000000").fetchone())
    assert await broker.append([event(bytes(10**6))]) == [0]


async def test_a_log_locked_for_long_is_retryable_and_the_event_loop_goes_on(
    settings: Settings, open_broker: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite_log, "BUSY_TIMEOUT_S", 0.3)
    broker = await open_broker()
    with closing(sqlite3.connect(file_of(settings), isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        appending = asyncio.create_task(broker.append([event(b"x")]))
        turns = 0
        while not appending.done():
            await asyncio.sleep(0.01)
            turns += 1
        with pytest.raises(Retryable, match=rf"{file_of(settings)} has been locked"):
            await appending
    assert turns > 10
    assert await broker.append([event(b"x")]) == [0]


async def test_appends_beyond_the_backlog_are_refused_until_it_is_written(
    broker: EmbeddedBroker, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_BACKLOG_BYTES", 1000)
    await broker.topics()
    with closing(sqlite3.connect(file_of(settings), isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        waiting = asyncio.create_task(broker.append([event(bytes(900))]))
        await asyncio.sleep(0)
        assert await broker.backlog_bytes() == 900
        with pytest.raises(Backpressure, match="900 bytes wait"):
            await broker.append([event(bytes(101))])
    assert await waiting == [0]
    assert await broker.backlog_bytes() == 0
    assert await broker.append([event(bytes(2000))]) == [1], "a single large append is let through"


def _foreign(path: Path) -> None:
    with closing(sqlite3.connect(path)) as db:
        db.execute("CREATE TABLE theirs (x)")


def _newer(path: Path) -> None:
    with closing(sqlite_log.connect(path)) as db:
        db.execute("PRAGMA user_version = 99")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.write_bytes(b"not a database" * 1000), "is damaged or no SQLite file"),
        (_foreign, "another program"),
        (_newer, "format 99"),
        (Path.mkdir, "cannot write"),
    ],
)
async def test_a_file_that_is_not_our_log_is_named_and_left_alone(
    settings: Settings, spoil: Callable[[Path], Any], message: str
) -> None:
    settings.data_dir.mkdir()
    spoil(file_of(settings))
    before = file_of(settings).read_bytes() if file_of(settings).is_file() else None
    with pytest.raises(ConfigError, match=rf"{file_of(settings)}.*{message}|{message} {file_of(settings)}"):
        await EmbeddedBroker.open(settings)
    assert (file_of(settings).read_bytes() if file_of(settings).is_file() else None) == before


async def test_a_data_directory_that_cannot_be_made_is_named(settings: Settings) -> None:
    settings.data_dir.write_text("a file")
    with pytest.raises(ConfigError, match=rf"data_dir: cannot write below {settings.data_dir}"):
        await EmbeddedBroker.open(settings)


# ---------------------------------------------------------------- several processes


APPENDING = """
import asyncio, sys
from pathlib import Path
from streammon.broker import Outgoing
from streammon.broker.embedded import EmbeddedBroker
from streammon.config import Settings

async def main():
    broker = await EmbeddedBroker.open(Settings(data_dir=Path(sys.argv[1])))
    for number in range(200):
        value = f"{sys.argv[2]} {number}".encode()
        await broker.append([Outgoing("events", None, value, partition=each) for each in (0, 1)])
    await broker.close()

asyncio.run(main())
"""

MEMBER = """
import asyncio, sys
from pathlib import Path
from streammon.broker.embedded import EmbeddedBroker
from streammon.config import Settings

async def ignore(partitions):
    pass

async def main():
    broker = await EmbeddedBroker.open(Settings(data_dir=Path(sys.argv[1])))
    member = await broker.member("group", ["events"], on_assign=ignore, on_revoke=ignore)
    while True:
        for partition, records in (await member.poll()).items():
            await member.commit({partition: records[-1].offset + 1})
            print(records[-1].offset, flush=True)

asyncio.run(main())
"""


async def _start(script: str, *arguments: object) -> asyncio.subprocess.Process:
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)


async def test_processes_that_append_at_once_lose_nothing_and_keep_their_order(
    broker: EmbeddedBroker, settings: Settings
) -> None:
    processes = [await _start(APPENDING, settings.data_dir, name) for name in "abc"]
    reader = await broker.reader(["events"])
    seen: dict[int, list[Record]] = {0: [], 1: []}
    async with asyncio.timeout(DEADLINE_S):
        while min(map(len, seen.values())) < 600:
            for partition, records in (await reader.poll()).items():
                seen[partition.partition] += records
    assert [await each.wait() for each in processes] == [0, 0, 0]
    for records in seen.values():
        assert [record.offset for record in records] == list(range(600))
        for name in (b"a", b"b", b"c"):
            own = [value for value in values(records) if value and value.startswith(name)]
            assert own == [b"%s %d" % (name, number) for number in range(200)]


async def test_a_standby_takes_over_when_the_active_process_is_killed(
    broker: EmbeddedBroker, settings: Settings
) -> None:
    process = await _start(MEMBER, settings.data_dir)
    assert process.stdout is not None
    await broker.append([event(b"0"), event(b"1")])
    async with asyncio.timeout(DEADLINE_S):
        assert await process.stdout.readline() == b"1\n"
    standby = await broker.member("group", ["events"], on_assign=ignore, on_revoke=ignore)
    assert await standby.poll(0.3) == {}
    process.kill()
    await process.wait()
    await broker.append([event(b"2")])
    async with asyncio.timeout(DEADLINE_S):
        while not (polled := await standby.poll()):
            pass
    assert [values(records) for records in polled.values()] == [[b"2"]]


async def test_processes_that_open_a_new_directory_at_once_all_succeed(settings: Settings) -> None:
    brokers = await asyncio.gather(*(EmbeddedBroker.open(settings) for _ in range(8)))
    created = await asyncio.gather(*(each.create_topics([EVENTS]) for each in brokers))
    assert sorted(created) == [*[[]] * 7, ["events"]]
    assert [await each.append([event(b"x")]) for each in brokers] == [[offset] for offset in range(8)]
    for each in brokers:
        await each.close()
