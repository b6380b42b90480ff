"""The embedded log: every topic in one SQLite file, ``DATA_DIR/log.sqlite``, for everything on one machine.

What it promises:

* Any number of processes read and write one data directory at the same time.
* What `append` or `transact` returned from survives the death of the process, kill -9 included. A power
  failure or a crash of the kernel may take back the last seconds (``synchronous = NORMAL``: the disk is
  forced at checkpoints, not at commits). The log is then whole, as it was a moment ago; sinks may be ahead.
* `transact` is one SQLite transaction: records, snapshot and offsets together.
* The event loop never waits for the disk. One thread writes, and commits together whatever gathered while it
  was busy; another reads. Writes of this process wake its pollers at once, those of others within `WATCH_S`.
* Disk is bounded by retention. The file does not shrink, because the next records fill the pages of dropped
  ones: it stays at its largest size ever, ``embedded.max_bytes`` and what arrived between two passes.

What it cannot do: share the work of a group (one member is active, the others stand by), replicate, or live
on a network file system. The data directory is the namespace; the topic prefix is for clusters, and ignored.
"""

from __future__ import annotations

import asyncio
import fcntl
import sqlite3
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import count
from pathlib import Path
from typing import IO, Any, NamedTuple, Self, TypeVar
from urllib.parse import quote
from weakref import WeakSet

from streammon.broker import (
    AssignmentCallback,
    Outgoing,
    Polled,
    Restored,
    Start,
    TopicPartition,
    sqlite_log,
)
from streammon.broker.sqlite_log import Incoming, Place, Topic
from streammon.clock import Clock, system_clock
from streammon.config import Settings
from streammon.errors import Backpressure, ConfigError, Fatal, RecordTooLarge, Retryable, StreammonError
from streammon.file_lock import FileLock
from streammon.telemetry import log
from streammon.topics import DAY_S, TopicSpec

WATCH_S = 0.05
"""How often another process's writes are looked for."""
RETRY_S = 1.0
"""The pause after a failed look."""
STANDBY_S = 0.1
"""How often a member standing by tries to become the active one."""
MAX_GROUP_BYTES = 8 * 1024**2
"""About the most that is committed together."""
MAX_BACKLOG_BYTES = 256 * 1024**2
"""Appends beyond this many bytes not yet durable are refused."""
COMPACTION_LAG_S = 3600.0
"""A replaced record stays this long, so that a follower which is not far behind sees every state."""
TOMBSTONE_S = DAY_S
"""A tombstone stays this long, so that a follower learns of the deletion."""
REMOVE_RECORDS = 500
"""Replaced records removed in one transaction."""

T = TypeVar("T")
Statement = Callable[[sqlite3.Connection], T]
"""What one of the two threads is asked to do with its connection."""


class EmbeddedBroker:
    """A `streammon.broker.Broker` on one SQLite file. Made by `open`."""

    def __init__(self, directory: Path, settings: Settings, clock: Clock, log_: _Log) -> None:
        self._directory = directory
        self._settings = settings.embedded
        self._clock = clock
        self._log = log_
        self._topics: dict[str, Topic] = {}
        self._keyless = count()
        self._backlog = 0
        self._members = WeakSet[_Member]()
        self._retention = asyncio.create_task(self._retain_for_ever())

    @classmethod
    async def open(cls, settings: Settings, *, clock: Clock = system_clock) -> Self:
        """Open the log below ``settings.data_dir``, creating both if need be.

        Raises:
            ConfigError: the directory or the file cannot be used; the message names it.
        """
        directory = settings.data_dir
        try:
            (directory / "groups").mkdir(parents=True, exist_ok=True)
            opened = await _Log.open(directory)
        except OSError as error:
            raise ConfigError(f"data_dir: cannot write below {directory}: {error.strerror}") from None
        return cls(directory, settings, clock, opened)

    # ------------------------------------------------------------ topics

    async def create_topics(self, specs: Iterable[TopicSpec], *, if_permitted: bool = False) -> list[str]:
        return await self._log.write(partial(sqlite_log.create_topics, specs=list(specs)))

    async def topics(self, *, exact: bool = False) -> Mapping[str, TopicSpec]:
        self._topics = await self._log.read(sqlite_log.topics)
        return {name: topic.spec for name, topic in self._topics.items()}

    async def _topic(self, name: str) -> Topic:
        if name not in self._topics:
            await self.topics()
        if name not in self._topics:
            raise ConfigError(
                f"there is no topic {name!r}: check the name, and create what is missing with `streammon topics create`"
            )
        return self._topics[name]

    async def _partitions(self, topics: Iterable[str]) -> dict[TopicPartition, int]:
        found = {name: await self._topic(name) for name in topics}
        return {
            TopicPartition(name, number): id_
            for name, topic in found.items()
            for number, id_ in enumerate(topic.partition_ids())
        }

    # ------------------------------------------------------------ writing

    async def append(self, records: Sequence[Outgoing]) -> list[int]:
        incoming = await self._incoming(records)
        size = sum(record.size for record in incoming)
        if self._backlog and self._backlog + size > MAX_BACKLOG_BYTES:
            raise Backpressure(f"{self._backlog} bytes wait to be written to {self._log.path}")
        self._backlog += size
        try:
            return await self._log.write(lambda db: sqlite_log.append(db, incoming, self._now_ms()), size)
        finally:
            self._backlog -= size

    async def _incoming(self, records: Sequence[Outgoing]) -> list[Incoming]:
        topics = {name: await self._topic(name) for name in {record.topic for record in records}}
        return [self._route(record, topics[record.topic]) for record in records]

    def _route(self, record: Outgoing, topic: Topic) -> Incoming:
        size = len(record.value or b"")
        if size > topic.spec.max_record_bytes:
            limit = f"{topic.spec.name} accepts {topic.spec.max_record_bytes}"
            raise RecordTooLarge(f"a record of {size} bytes, {limit}")
        headers = sqlite_log.pack_headers(tuple(record.headers))
        return Incoming(self._partition_id(record, topic), record.key, headers, record.value)

    def _partition_id(self, record: Outgoing, topic: Topic) -> int:
        if record.partition is not None:
            return _partition_id(topic, record.partition)
        if record.key is not None:
            return topic.first_partition + sqlite_log.partition_of(record.key, topic.spec.partitions)
        return topic.first_partition + next(self._keyless) % topic.spec.partitions

    def _now_ms(self) -> int:
        return int(self._clock() * 1000)

    def clock_offset(self) -> None:
        return None

    async def backlog_bytes(self) -> int:
        return self._backlog

    # ------------------------------------------------------------ what is opened from it

    async def reader(self, topics: Sequence[str], start: Start = "earliest") -> _Reader:
        ids = await self._partitions(topics)
        if isinstance(start, Mapping):
            ids = {each: ids[each] for each in start}
        positions = await self._log.read(partial(_start_positions, ids=ids, start=start))
        return _Reader(_Cursor(self._log, ids, positions))

    async def committed(self, group: str, topics: Sequence[str]) -> Mapping[TopicPartition, int]:
        ids = await self._partitions(topics)
        committed = await self._log.read(partial(sqlite_log.committed, group=group, partitions=ids.values()))
        return {each: committed[id_] for each, id_ in ids.items() if id_ in committed}

    async def member(
        self,
        group: str,
        topics: Sequence[str],
        *,
        on_assign: AssignmentCallback,
        on_revoke: AssignmentCallback,
    ) -> _Member:
        """``on_revoke`` is never called: an active member stays active until it is closed."""
        lock = FileLock(self._directory / "groups" / f"{quote(group, safe='')}.lock")
        member = _Member(self._log, group, await self._partitions(topics), lock, on_assign)
        self._members.add(member)
        return member

    async def transactor(self, group: str, state_topic: str, partition: int, inputs: Sequence[str]) -> _Transactor:
        state = _partition_id(await self._topic(state_topic), partition)
        ids = {TopicPartition(name, partition): _partition_id(await self._topic(name), partition) for name in inputs}
        epoch = await self._log.write(partial(sqlite_log.take_over, group=group, number=partition))
        return _Transactor(self, _Owner(group, partition, epoch), _State(state_topic, state), ids)

    async def close(self) -> None:
        """Write what has been accepted, leave all groups, and close the file."""
        await _end(self._retention)
        for member in list(self._members):
            await member.close()
        await self._log.close()

    # ------------------------------------------------------------ retention

    async def _retain_for_ever(self) -> None:
        while True:
            await asyncio.sleep(self._settings.retention_interval_s)
            try:
                await self.retain()
            except StreammonError as error:
                log.warning("retention failed, trying again", error=str(error))

    async def retain(self) -> None:
        """Apply retention now, chunk by chunk; appends go on between the chunks.

        What may go never has to stay again, so it is chosen by reading, without holding up the writer.
        """
        for topic in (await self._log.read(sqlite_log.topics)).values():
            for partition in topic.partition_ids():
                await self._retain_partition(topic.spec, partition)
        await self._retain_size()

    async def _retain_partition(self, spec: TopicSpec, partition: int) -> None:
        if spec.compact:
            await self._compact(partition)
        if spec.retention_s is not None:
            oldest_ms = self._now_ms() - spec.retention_s * 1000
            offset = await self._log.read(partial(sqlite_log.offset_at, partition=partition, ms=oldest_ms))
            drop = partial(sqlite_log.drop_before, partition=partition, offset=offset)
            while await self._log.write(drop):
                pass

    async def _compact(self, partition: int) -> None:
        before, tombstones_before = (self._now_ms() - int(age * 1000) for age in (COMPACTION_LAG_S, TOMBSTONE_S))
        ids = await self._log.read(
            lambda db: sqlite_log.outdated(db, partition, before, tombstones_before),
        )
        for first in range(0, len(ids), REMOVE_RECORDS):
            chunk = ids[first : first + REMOVE_RECORDS]
            await self._log.write(partial(sqlite_log.remove, partition=partition, ids=chunk))

    async def _retain_size(self) -> None:
        while await self._log.read(sqlite_log.used_bytes) > self._settings.max_bytes:
            topic = await self._log.read(sqlite_log.largest_topic)
            if topic is None:
                log.warning("compacted topics alone exceed embedded.max_bytes", file=str(self._log.path))
                return
            partition = await self._log.read(partial(sqlite_log.oldest_partition, topic=topic))
            await self._log.write(partial(sqlite_log.drop_before, partition=partition, offset=sqlite_log.OFFSET_MASK))


def _partition_id(topic: Topic, number: int) -> int:
    if not 0 <= number < topic.spec.partitions:
        raise ConfigError(f"topic {topic.spec.name} has {topic.spec.partitions} partitions, none is {number}")
    return topic.first_partition + number


# ---------------------------------------------------------------- the file and its two threads


class _Log:
    """The file, the thread that writes it, the thread that reads it, and where each partition ends."""

    def __init__(self, path: Path, writer: _Connection, reader: _Connection) -> None:
        self.path = path
        self.ends: dict[int, int] = {}
        self._writer, self._reader = writer, reader
        self._jobs: deque[_Job] = deque()
        self._submitted = asyncio.Event()
        self._committed = asyncio.Event()
        self._grown = asyncio.Event()
        self._closing = False
        self._writing = asyncio.create_task(self._write_groups())
        self._watching = asyncio.create_task(self._watch())

    @classmethod
    async def open(cls, directory: Path) -> Self:
        path = directory / "log.sqlite"
        with await asyncio.to_thread(_locked, directory / "open.lock"):
            writer = await _Connection.open(path, "streammon-log-write")
            reader = await _Connection.open(path, "streammon-log-read")
        opened = cls(path, writer, reader)
        opened.ends = await reader.run(sqlite_log.ends)
        return opened

    async def read(self, statement: Statement[T]) -> T:
        self._check_open()
        return await self._reader.run(statement)

    async def write(self, statement: Statement[T], size: int = 0) -> T:
        """Run in the next group's transaction; returns when it is committed.

        A ``statement`` that raises a `StreammonError` has changed nothing, and the others of its group go on.
        """
        self._check_open()
        job = _Job(statement, size, asyncio.get_running_loop().create_future())
        self._jobs.append(job)
        self._submitted.set()
        outcome: T = await job.done
        return outcome

    async def wait(self, timeout_s: float) -> None:
        """Until a partition has grown, or the time is over."""
        await _wait(self._grown, timeout_s)

    def _check_open(self) -> None:
        if self._closing:
            raise Fatal(f"{self.path} has been closed by this process")

    async def close(self) -> None:
        if self._closing:
            return
        self._closing = True
        self._submitted.set()
        await self._writing
        await _end(self._watching)
        await self._reader.close()
        await self._writer.close()

    async def _write_groups(self) -> None:
        while self._jobs or not self._closing:
            await self._submitted.wait()
            self._submitted.clear()
            while self._jobs:
                await self._commit(list(self._next_group()))

    def _next_group(self) -> Iterator[_Job]:
        size = 0
        while self._jobs and size < MAX_GROUP_BYTES:
            job = self._jobs.popleft()
            size += job.size
            yield job

    async def _commit(self, group: Sequence[_Job]) -> None:
        try:
            outcomes = await self._writer.run(partial(_commit_group, group=group))
        except Exception as error:
            outcomes = [error] * len(group)
        self._committed.set()
        for job, outcome in zip(group, outcomes, strict=True):
            job.finish(outcome)

    async def _watch(self) -> None:
        seen = -1
        while True:
            try:
                seen = await self._look(seen)
            except Exception as error:  # a watcher that died would leave every poller waiting
                log.error("the log cannot be read, trying again", error=str(error))
                await asyncio.sleep(RETRY_S)
            await _wait(self._committed, WATCH_S)
            self._committed.clear()

    async def _look(self, seen: int) -> int:
        """Wake the pollers if anything was committed since version ``seen``; the version now."""
        version = await self._reader.run(sqlite_log.version)
        if version != seen:
            self.ends = await self._reader.run(sqlite_log.ends)
            self._wake()
        return version

    def _wake(self) -> None:
        self._grown.set()
        self._grown = asyncio.Event()


class _Connection:
    """One SQLite connection in a thread of its own."""

    def __init__(self, path: Path, thread: ThreadPoolExecutor, db: sqlite3.Connection) -> None:
        self._path, self._thread, self._db = path, thread, db

    @classmethod
    async def open(cls, path: Path, name: str) -> Self:
        thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        try:
            db = await asyncio.get_running_loop().run_in_executor(thread, sqlite_log.connect, path)
        except BaseException:
            thread.shutdown(wait=False)
            raise
        return cls(path, thread, db)

    async def run(self, statement: Statement[T]) -> T:
        def run() -> T:
            with sqlite_log.errors_named(self._path):
                return statement(self._db)

        return await asyncio.get_running_loop().run_in_executor(self._thread, run)

    async def close(self) -> None:
        await self.run(sqlite3.Connection.close)
        self._thread.shutdown(wait=False)


class _Job(NamedTuple):
    """A write waiting for its group, and for whom."""

    statement: Statement[Any]
    size: int
    done: asyncio.Future[Any]

    def finish(self, outcome: Any) -> None:
        if self.done.cancelled():
            return
        if isinstance(outcome, Exception):
            self.done.set_exception(outcome)
        else:
            self.done.set_result(outcome)


def _commit_group(db: sqlite3.Connection, group: Sequence[_Job]) -> list[Any]:
    """All jobs in one transaction: what each returned, or the `StreammonError` with which it declined."""
    db.execute("BEGIN IMMEDIATE")
    try:
        outcomes = [_outcome(db, job) for job in group]
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise
    return outcomes


def _outcome(db: sqlite3.Connection, job: _Job) -> Any:
    try:
        return job.statement(db)
    except StreammonError as declined:
        return declined


# ---------------------------------------------------------------- reading


def _start_positions(
    db: sqlite3.Connection, ids: Mapping[TopicPartition, int], start: Start
) -> dict[TopicPartition, int]:
    if isinstance(start, Mapping):
        return dict(start)

    def position(id_: int) -> int:
        first, end = sqlite_log.bounds(db, id_)
        match start:
            case "earliest":
                return first
            case "latest":
                return end
            case unix_s:
                return sqlite_log.offset_at(db, id_, round(unix_s * 1000))

    return {partition: position(id_) for partition, id_ in ids.items()}


class _Cursor:
    """Positions in some partitions, and the polling that moves them."""

    def __init__(self, log_: _Log, ids: Mapping[TopicPartition, int], positions: dict[TopicPartition, int]) -> None:
        self.positions = positions
        self.paused: set[TopicPartition] = set()
        self._log, self._ids = log_, ids

    async def poll(self, max_wait_s: float, max_records: int) -> Polled:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + max_wait_s
        while True:
            if (wanted := self._wanted()) and (polled := await self._read(wanted, max_records)):
                return polled
            if not wanted:
                await self._log.wait(deadline - loop.time())
            if loop.time() >= deadline and not self._wanted():
                return {}

    def lag(self) -> dict[TopicPartition, int]:
        ends = self._log.ends
        return {each: max(0, ends.get(self._ids[each], 0) - at) for each, at in self.positions.items()}

    async def ends(self) -> dict[TopicPartition, int]:
        ends = await self._log.read(sqlite_log.ends)
        return {partition: ends[id_] for partition, id_ in self._ids.items()}

    def _wanted(self) -> dict[TopicPartition, Place]:
        ends = self._log.ends
        return {
            each: Place(self._ids[each], at)
            for each, at in self.positions.items()
            if at < ends.get(self._ids[each], 0) and each not in self.paused
        }

    async def _read(self, wanted: Mapping[TopicPartition, Place], max_records: int) -> Polled:
        chunks = await self._log.read(partial(sqlite_log.read, wanted=wanted, max_records=max_records))
        polled = {}
        for partition, chunk in chunks.items():
            if self.positions.get(partition) != wanted[partition].offset or partition in self.paused:
                continue  # moved or paused while we read
            if chunk.skipped:
                _warn_of_loss(partition, chunk.skipped)
            # Last in line now: a busy partition must not starve the others.
            self.positions.pop(partition)
            self.positions[partition] = chunk.next_offset
            if chunk.records:
                polled[partition] = chunk.records
        return polled


def _warn_of_loss(partition: TopicPartition, records: int) -> None:
    topic, number = partition
    log.warning("retention took records before they were read", topic=topic, partition=number, lost=records)


class _Reader:
    """A `streammon.broker.Reader`."""

    def __init__(self, cursor: _Cursor) -> None:
        self._cursor = cursor

    async def poll(self, max_wait_s: float = 0.5, max_records: int = 2000) -> Polled:
        return await self._cursor.poll(max_wait_s, max_records)

    async def ends(self) -> Mapping[TopicPartition, int]:
        return await self._cursor.ends()

    def positions(self) -> Mapping[TopicPartition, int]:
        return dict(self._cursor.positions)

    async def close(self) -> None:
        """It holds nothing."""


class _Member:
    """A `streammon.broker.Member`: with all partitions while it holds the group's lock, else standing by."""

    def __init__(
        self,
        log_: _Log,
        group: str,
        ids: Mapping[TopicPartition, int],
        lock: FileLock,
        on_assign: AssignmentCallback,
    ) -> None:
        self._log, self._group, self._ids = log_, group, ids
        self._lock, self._on_assign = lock, on_assign
        self._cursor = _Cursor(log_, ids, {})

    async def poll(self, max_wait_s: float = 0.5, max_records: int = 2000) -> Polled:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + max_wait_s
        while not self._cursor.positions:
            if self._lock.take():
                await self._assign()
            elif (left := deadline - loop.time()) > 0:
                await asyncio.sleep(min(left, STANDBY_S))
            else:
                return {}
        return await self._cursor.poll(max(0.0, deadline - loop.time()), max_records)

    async def _assign(self) -> None:
        self._cursor.positions = await self._log.read(self._committed_positions)
        try:
            await self._on_assign(list(self._ids))
        except BaseException:
            self._cursor.positions = {}  # the next poll assigns again
            raise

    def _committed_positions(self, db: sqlite3.Connection) -> dict[TopicPartition, int]:
        committed = sqlite_log.committed(db, self._group, self._ids.values())
        earliest = _start_positions(db, self._ids, "earliest")
        return {each: committed.get(id_, earliest[each]) for each, id_ in self._ids.items()}

    async def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        if not self._cursor.positions:
            raise Retryable(f"this member of {self._group} stands by: another one commits")
        places = [Place(self._ids[partition], offset) for partition, offset in offsets.items()]
        await self._log.write(partial(sqlite_log.commit, group=self._group, places=places))

    def seek(self, partition: TopicPartition, offset: int) -> None:
        self._cursor.positions[partition] = offset

    def pause(self, partition: TopicPartition) -> None:
        self._cursor.paused.add(partition)

    def resume(self, partition: TopicPartition) -> None:
        self._cursor.paused.discard(partition)

    async def lag(self) -> Mapping[TopicPartition, int]:
        return self._cursor.lag()

    async def close(self) -> None:
        self._cursor.positions = {}
        self._lock.release()


# ---------------------------------------------------------------- writing exactly once


class _Owner(NamedTuple):
    """Who writes a partition of a processor: its group, the partition's number, and since which epoch."""

    group: str
    number: int
    epoch: int


class _State(NamedTuple):
    """Where its snapshots are: the topic, and the id of the partition."""

    topic: str
    partition: int


class _Transactor:
    """A `streammon.broker.Transactor`: each call is one SQLite transaction."""

    def __init__(self, broker: EmbeddedBroker, owner: _Owner, state: _State, ids: Mapping[TopicPartition, int]) -> None:
        self._broker, self._owner, self._state, self._ids = broker, owner, state, ids
        self._state_key = str(owner.number).encode()

    async def restore(self) -> Restored:
        return await self._broker._log.read(self._restore)

    def _restore(self, db: sqlite3.Connection) -> Restored:
        committed = sqlite_log.committed(db, self._owner.group, self._ids.values())
        offsets = {each: committed[id_] for each, id_ in self._ids.items() if id_ in committed}
        return Restored(sqlite_log.newest_value(db, self._state.partition, self._state_key), offsets)

    async def transact(
        self, outputs: Sequence[Outgoing], snapshot: bytes, offsets: Mapping[TopicPartition, int]
    ) -> None:
        state = Outgoing(self._state.topic, self._state_key, snapshot, partition=self._owner.number)
        *results, newest = await self._broker._incoming([*outputs, state])
        places = [Place(self._ids[partition], offset) for partition, offset in offsets.items()]

        def write(db: sqlite3.Connection) -> None:
            sqlite_log.check_owner(db, *self._owner)
            now_ms = self._broker._now_ms()
            sqlite_log.append(db, results, now_ms)
            sqlite_log.replace(db, newest, now_ms)
            sqlite_log.commit(db, self._owner.group, places)

        await self._broker._log.write(write)

    async def close(self) -> None:
        """It holds nothing; the next owner fences it."""


# ---------------------------------------------------------------- small tools


def _locked(path: Path) -> IO[bytes]:
    """Wait for the lock on this file; closing it releases the lock."""
    file = path.open("ab")
    fcntl.flock(file, fcntl.LOCK_EX)
    return file


async def _wait(event: asyncio.Event, timeout_s: float) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(timeout_s):
            await event.wait()


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task
