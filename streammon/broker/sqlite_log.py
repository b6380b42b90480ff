"""The embedded log as tables: every statement that `streammon.broker.embedded` asks of SQLite.

Functions over one connection, without threads, tasks or clocks. Those that write expect to run inside the
caller's transaction and check before they write, so that one which raises a `StreammonError` changed nothing.

A record's primary key is its partition's id and its offset in one integer, ``id << 40 | offset``. A partition
is therefore one range of one b-tree: appending, reading on and dropping the oldest all touch neighbouring
pages, no second index exists, and the pages of dropped records are free as a whole.
"""

from __future__ import annotations

import sqlite3
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from functools import lru_cache
from itertools import accumulate, takewhile
from math import inf
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
from aiokafka.partitioner import murmur2

from streammon.broker import Headers, TopicPartition
from streammon.broker.records import StoredRecord
from streammon.errors import ConfigError, Fenced, Retryable
from streammon.topics import TopicSpec

OFFSET_BITS = 40
OFFSET_MASK = (1 << OFFSET_BITS) - 1
BUSY_TIMEOUT_S = 10.0
"""How long a write waits for those of other processes."""
CHECKPOINT_PAGES, WAL_BYTES = 2000, 32 * 1024**2
"""The write-ahead log is copied into the file at so many pages, and cut to so many bytes after that."""
POLL_BYTES = 8 * 1024**2
"""About the most that one poll reads."""
DROP_RECORDS, DROP_BYTES = 1000, 8 * 1024**2
"""The most that retention drops in one transaction."""

APPLICATION_ID = 0x73_6D_6F_6E  # "smon" in the file's header
VERSION = 1
SCHEMA = f"""
BEGIN;
CREATE TABLE topics (
    name TEXT PRIMARY KEY,
    partitions INTEGER NOT NULL,
    retention_s REAL,
    compact INTEGER NOT NULL,
    log_append_time INTEGER NOT NULL,
    max_record_bytes INTEGER NOT NULL,
    first_partition INTEGER NOT NULL          -- its partitions have consecutive ids from here
);
CREATE TABLE partitions (
    id INTEGER PRIMARY KEY,
    first_offset INTEGER NOT NULL DEFAULT 0,  -- what came before was dropped by retention
    next_offset INTEGER NOT NULL DEFAULT 0,
    newest_ms INTEGER NOT NULL DEFAULT 0,
    bytes INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE records (
    id INTEGER PRIMARY KEY,                   -- partition id << {OFFSET_BITS} | offset
    timestamp INTEGER NOT NULL,               -- ms since 1970, never falling within a partition
    key BLOB,
    headers BLOB,
    value BLOB                                -- last, so that the others are read without its overflow pages
);
CREATE TABLE commits (
    consumer TEXT, partition INTEGER, next_offset INTEGER NOT NULL, PRIMARY KEY (consumer, partition)
) WITHOUT ROWID;
CREATE TABLE epochs (
    consumer TEXT, number INTEGER, epoch INTEGER NOT NULL, PRIMARY KEY (consumer, number)
) WITHOUT ROWID;
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {VERSION};
COMMIT;
"""
RECORD_BYTES = "coalesce(length(key), 0) + coalesce(length(headers), 0) + coalesce(length(value), 0)"


class Topic(NamedTuple):
    """A topic and the id of its partition 0."""

    spec: TopicSpec
    first_partition: int

    def partition_ids(self) -> range:
        return range(self.first_partition, self.first_partition + self.spec.partitions)


class Incoming(NamedTuple):
    """A record on its way in, with the id of its partition."""

    partition: int
    key: bytes | None
    headers: bytes | None
    value: bytes | None

    @property
    def size(self) -> int:
        return len(self.key or b"") + len(self.headers or b"") + len(self.value or b"")


class Chunk(NamedTuple):
    """Consecutive records of one partition, where to read on, and how many retention took unread."""

    records: list[StoredRecord]
    next_offset: int
    skipped: int
    size: int


class Place(NamedTuple):
    """An offset in the partition with this id."""

    partition: int
    offset: int


# ---------------------------------------------------------------- the file


def connect(path: Path) -> sqlite3.Connection:
    """Open the log, creating it if need be; call it under a lock that all processes share.

    Raises:
        ConfigError: the file cannot be opened, is damaged, or is not ours.
    """
    with errors_named(path):
        db = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
        try:
            _prepare(db, path)
        except BaseException:
            db.close()
            raise
        return db


def _prepare(db: sqlite3.Connection, path: Path) -> None:
    _check_ours(db, path)
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = NORMAL")
    db.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
    db.execute(f"PRAGMA journal_size_limit = {WAL_BYTES}")
    if not _number(db, "PRAGMA user_version"):
        db.executescript(SCHEMA)


def _check_ours(db: sqlite3.Connection, path: Path) -> None:
    if not _number(db, "SELECT count(*) FROM sqlite_master"):
        return
    if _number(db, "PRAGMA application_id") != APPLICATION_ID:
        raise ConfigError(f"{path} is an SQLite file of another program; choose another data directory")
    if (version := _number(db, "PRAGMA user_version")) != VERSION:
        raise ConfigError(f"{path} has format {version}, this streammon reads format {VERSION}: update it")


@contextmanager
def errors_named(path: Path) -> Iterator[None]:
    """SQLite's errors as ours, with the file's name and what to do."""
    try:
        yield
    except sqlite3.DatabaseError as error:
        raise _translated(error, path) from error


def _translated(error: sqlite3.DatabaseError, path: Path) -> Exception:
    match getattr(error, "sqlite_errorcode", 0) & 0xFF:
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return Retryable(f"{path} has been locked by another process for {BUSY_TIMEOUT_S:.0f} s")
        case sqlite3.SQLITE_FULL:
            return Retryable(f"the disk is full, so {path} cannot grow: free some space")
        case sqlite3.SQLITE_IOERR:
            return Retryable(f"reading or writing {path} failed: {error}")
        case sqlite3.SQLITE_NOTADB | sqlite3.SQLITE_CORRUPT:
            return ConfigError(f"{path} is damaged or no SQLite file ({error}): move it away, or restore it")
        case sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM:
            return ConfigError(f"cannot write {path} ({error}): check the directory and its permissions")
        case _:
            return error


def _number(db: sqlite3.Connection, query: str, parameters: Sequence[int | str] = ()) -> int:
    """The first column of the first row, 0 without one."""
    row = db.execute(query, parameters).fetchone()
    return int(row[0]) if row and row[0] is not None else 0


def version(db: sqlite3.Connection) -> int:
    """Changes whenever another connection, of any process, has committed."""
    return _number(db, "PRAGMA data_version")


def used_bytes(db: sqlite3.Connection) -> int:
    """What the file needs on disk, without the free pages that the next records will fill."""
    pages = _number(db, "PRAGMA page_count") - _number(db, "PRAGMA freelist_count")
    return pages * _number(db, "PRAGMA page_size")


# ---------------------------------------------------------------- topics


def create_topics(db: sqlite3.Connection, specs: Iterable[TopicSpec]) -> list[str]:
    known = topics(db)
    new = [spec for spec in specs if spec.name not in known]
    for spec in new:
        first = _number(db, "SELECT max(id) FROM partitions") + 1
        db.execute("INSERT INTO topics VALUES (?, ?, ?, ?, ?, ?, ?)", (*astuple(spec), first))
        ids = ((first + number,) for number in range(spec.partitions))
        db.executemany("INSERT INTO partitions (id) VALUES (?)", ids)
    return [spec.name for spec in new]


def topics(db: sqlite3.Connection) -> dict[str, Topic]:
    rows = db.execute("SELECT * FROM topics")
    return {row[0]: Topic(_spec(row[:-1]), row[-1]) for row in rows}


def _spec(row: Sequence[Any]) -> TopicSpec:
    name, partitions, retention_s, compact, log_append_time, max_record_bytes = row
    return TopicSpec(name, partitions, retention_s, bool(compact), bool(log_append_time), max_record_bytes)


@lru_cache(maxsize=65_536)
def partition_of(key: bytes, partitions: int) -> int:
    """The partition number of a key, as every Kafka client computes it."""
    return int((murmur2(key) & 0x7FFFFFFF) % partitions)


# ---------------------------------------------------------------- records

_decode_headers = msgspec.msgpack.Decoder(tuple[tuple[str, bytes], ...]).decode


@lru_cache(maxsize=1024)
def pack_headers(headers: tuple[tuple[str, bytes], ...]) -> bytes | None:
    return msgspec.msgpack.encode(headers) if headers else None


@lru_cache(maxsize=1024)
def unpack_headers(packed: bytes | None) -> Headers:
    return () if packed is None else _decode_headers(packed)


@dataclass(slots=True)
class _Head:
    """Where the next record of one partition goes."""

    partition: int
    next_offset: int
    ms: int
    size: int = 0

    def place(self, record: Incoming) -> tuple[int, int, bytes | None, bytes | None, bytes | None]:
        slot = self.partition << OFFSET_BITS | self.next_offset
        self.next_offset += 1
        self.size += record.size
        return slot, self.ms, record.key, record.headers, record.value


def append(db: sqlite3.Connection, records: Sequence[Incoming], now_ms: int) -> list[int]:
    """Append in order; the offsets. Time never falls within a partition, whatever the clock does."""
    heads = {id_: _head(db, id_, now_ms) for id_ in {record.partition for record in records}}
    rows = [heads[record.partition].place(record) for record in records]
    db.executemany("INSERT INTO records VALUES (?, ?, ?, ?, ?)", rows)
    db.executemany(
        "UPDATE partitions SET next_offset = ?, newest_ms = ?, bytes = bytes + ? WHERE id = ?",
        [(head.next_offset, head.ms, head.size, id_) for id_, head in heads.items()],
    )
    return [row[0] & OFFSET_MASK for row in rows]


def _head(db: sqlite3.Connection, partition: int, now_ms: int) -> _Head:
    query = "SELECT next_offset, newest_ms FROM partitions WHERE id = ?"
    next_offset, newest_ms = db.execute(query, (partition,)).fetchone()
    return _Head(partition, next_offset, max(now_ms, newest_ms))


def read(
    db: sqlite3.Connection, wanted: Mapping[TopicPartition, Place], max_records: int
) -> dict[TopicPartition, Chunk]:
    """The next records of the wanted partitions, from one state of the log.

    Each partition gets an equal share of ``max_records``; some get nothing once ``POLL_BYTES`` are read.
    """
    share = max(1, max_records // len(wanted))
    chunks: dict[TopicPartition, Chunk] = {}
    db.execute("BEGIN")
    try:
        room, budget = max_records, POLL_BYTES
        for partition, place in wanted.items():
            if room <= 0 or budget <= 0:
                break
            chunk = _read_partition(db, partition.partition, place, min(share, room), budget)
            chunks[partition] = chunk
            room, budget = room - len(chunk.records), budget - chunk.size
    finally:
        db.execute("COMMIT")
    return chunks


def _read_partition(db: sqlite3.Connection, number: int, place: Place, limit: int, budget: int) -> Chunk:
    first, end = bounds(db, place.partition)
    base = place.partition << OFFSET_BITS
    query = "SELECT id, timestamp, key, value, headers FROM records WHERE id >= ? AND id < ? ORDER BY id LIMIT ?"
    records: list[StoredRecord] = []
    size = 0
    for id_, ms, key, value, headers in db.execute(query, (base | place.offset, base | end, limit)):
        records.append(StoredRecord(number, id_ & OFFSET_MASK, ms, key, value, unpack_headers(headers)))
        size += len(value or b"")
        if size >= budget:
            break
    stopped = len(records) == limit or size >= budget
    next_offset = records[-1].offset + 1 if stopped else max(end, place.offset)
    return Chunk(records, next_offset, max(0, first - place.offset), size)


def bounds(db: sqlite3.Connection, partition: int) -> tuple[int, int]:
    """The first retained offset and the next one to be written."""
    query = "SELECT first_offset, next_offset FROM partitions WHERE id = ?"
    first, end = db.execute(query, (partition,)).fetchone()
    return first, end


def ends(db: sqlite3.Connection) -> dict[int, int]:
    """The next offset to be written of every partition, by id."""
    return dict(db.execute("SELECT id, next_offset FROM partitions"))


def offset_at(db: sqlite3.Connection, partition: int, ms: float) -> int:
    """The first offset with a record at or after this time; the end if there is none."""

    def time_from(offset: int) -> float:
        query = "SELECT timestamp FROM records WHERE id >= ? AND id < ? ORDER BY id LIMIT 1"
        row = db.execute(query, (base | offset, base | end)).fetchone()
        return inf if row is None else row[0]

    first, end = bounds(db, partition)
    base = partition << OFFSET_BITS
    return first + bisect_left(range(first, end), ms, key=time_from)


# ---------------------------------------------------------------- groups and transactions


def commit(db: sqlite3.Connection, group: str, places: Iterable[Place]) -> None:
    rows = [(group, *place) for place in places]
    db.executemany("INSERT OR REPLACE INTO commits VALUES (?, ?, ?)", rows)


def committed(db: sqlite3.Connection, group: str, partitions: Iterable[int]) -> dict[int, int]:
    """The group's offsets by partition id, of those that have one."""
    every: dict[int, int] = dict(db.execute("SELECT partition, next_offset FROM commits WHERE consumer = ?", (group,)))
    return {id_: every[id_] for id_ in partitions if id_ in every}


def take_over(db: sqlite3.Connection, group: str, number: int) -> int:
    """Fence every earlier owner of this partition number; the new owner's epoch."""
    db.execute("INSERT OR IGNORE INTO epochs VALUES (?, ?, 0)", (group, number))
    db.execute("UPDATE epochs SET epoch = epoch + 1 WHERE consumer = ? AND number = ?", (group, number))
    return _epoch(db, group, number)


def _epoch(db: sqlite3.Connection, group: str, number: int) -> int:
    return _number(db, "SELECT epoch FROM epochs WHERE consumer = ? AND number = ?", (group, number))


def check_owner(db: sqlite3.Connection, group: str, number: int, epoch: int) -> None:
    if (newest := _epoch(db, group, number)) != epoch:
        raise Fenced(f"partition {number} of {group} was taken over (epoch {newest}, ours is {epoch}): stop")


def newest_value(db: sqlite3.Connection, partition: int, key: bytes) -> bytes | None:
    base = partition << OFFSET_BITS
    query = "SELECT value FROM records WHERE id >= ? AND id <= ? AND key = ? ORDER BY id DESC LIMIT 1"
    row: tuple[bytes | None] | None = db.execute(query, (base, base | OFFSET_MASK, key)).fetchone()
    return row[0] if row else None


def replace(db: sqlite3.Connection, record: Incoming, now_ms: int) -> None:
    """Append a record and compact its key at once: snapshots are large, and written many times a second."""
    [offset] = append(db, [record], now_ms)
    base = record.partition << OFFSET_BITS
    query = "SELECT id FROM records WHERE id >= ? AND id < ? AND key = ?"
    older = [id_ for (id_,) in db.execute(query, (base, base | offset, record.key))]
    remove(db, record.partition, older)


# ---------------------------------------------------------------- retention


def drop_before(db: sqlite3.Connection, partition: int, offset: int) -> bool:
    """Drop the oldest records below ``offset``, at most one chunk; whether it has to be called again."""
    first, end = bounds(db, partition)
    base = partition << OFFSET_BITS
    query = f"SELECT id, {RECORD_BYTES} FROM records WHERE id >= ? AND id < ? ORDER BY id LIMIT ?"  # noqa: S608 - a constant
    rows = db.execute(query, (base | first, base | min(offset, end), DROP_RECORDS)).fetchall()
    sizes = list(takewhile(lambda total: total < DROP_BYTES, accumulate(size for _, size in rows)))
    chosen = rows[: len(sizes) + 1]
    up_to = (chosen[-1][0] & OFFSET_MASK) + 1 if chosen else min(offset, end)
    db.execute("DELETE FROM records WHERE id >= ? AND id < ?", (base, base | up_to))
    dropped = sum(size for _, size in chosen)
    statement = "UPDATE partitions SET first_offset = max(first_offset, ?), bytes = bytes - ? WHERE id = ?"
    db.execute(statement, (up_to, dropped, partition))
    return up_to < min(offset, end)


def outdated(db: sqlite3.Connection, partition: int, before_ms: int, tombstones_before_ms: int) -> list[int]:
    """Of a compacted partition: the ids of records replaced by a newer one, and of old tombstones."""
    base = partition << OFFSET_BITS
    query = """
        SELECT id FROM (
            SELECT id, timestamp, value IS NULL AS tombstone, max(id) OVER (PARTITION BY key) AS newest
            FROM records WHERE id >= ? AND id <= ?
        ) WHERE (id < newest AND timestamp < ?) OR (tombstone AND timestamp < ?)
    """
    rows = db.execute(query, (base, base | OFFSET_MASK, before_ms, tombstones_before_ms))
    return [id_ for (id_,) in rows]


def remove(db: sqlite3.Connection, partition: int, ids: Sequence[int]) -> None:
    """Remove single records; the partition's first offset stays, because compaction loses nothing."""
    query = f"SELECT {RECORD_BYTES} FROM records WHERE id = ?"  # noqa: S608 - a constant
    removed = sum(_number(db, query, (id_,)) for id_ in ids)
    db.executemany("DELETE FROM records WHERE id = ?", [(id_,) for id_ in ids])
    db.execute("UPDATE partitions SET bytes = bytes - ? WHERE id = ?", (removed, partition))


def largest_topic(db: sqlite3.Connection) -> Topic | None:
    """The topic with most bytes whose oldest records may be dropped."""
    sizes: dict[int, int] = dict(db.execute("SELECT id, bytes FROM partitions"))
    candidates = [topic for topic in topics(db).values() if not topic.spec.compact]

    def size(topic: Topic) -> int:
        return sum(sizes[id_] for id_ in topic.partition_ids())

    largest = max(candidates, key=size, default=None)
    return largest if largest and size(largest) > 0 else None


def oldest_partition(db: sqlite3.Connection, topic: Topic) -> int:
    """The partition whose first record is the oldest of the topic."""

    def time_of_first(partition: int) -> float:
        first, end = bounds(db, partition)
        base = partition << OFFSET_BITS
        query = "SELECT timestamp FROM records WHERE id >= ? AND id < ? ORDER BY id LIMIT 1"
        row = db.execute(query, (base | first, base | end)).fetchone()
        return inf if row is None else row[0]

    return min(topic.partition_ids(), key=time_of_first)
