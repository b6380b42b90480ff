"""What a log source remembers: how far each file is done, and the records that are on their way.

Both are written in one transaction, *before* the records are handed over. So after a kill -9 the next process finds
either neither (the lines are read again) or both (the records are handed over again, as they were: the same bytes under
the same numbers, which everybody who counts recognises). Nothing is lost, and nothing counts twice.

SQLite, in WAL mode: a commit survives the death of the process, and the file is whole after that of the machine; what
was committed in the last moments before a power failure may be read, and sent, a second time under new numbers.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterable, Sequence
from contextlib import closing, suppress
from hashlib import blake2b
from pathlib import Path
from typing import Final, NamedTuple

from streammon.broker import Outgoing
from streammon.events import EventType
from streammon.topics import DAY_S, TOPIC_OF
from streammon.wire import SCHEMA_HEADER

REMEMBERED_S: Final = 7 * DAY_S
"""A file that nobody has seen for so long is forgotten."""

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS files (
    device INTEGER, inode INTEGER, path TEXT NOT NULL, position INTEGER NOT NULL, read INTEGER NOT NULL,
    head INTEGER NOT NULL, mark BLOB NOT NULL, seen_unix_s REAL NOT NULL, PRIMARY KEY (device, inode)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS outbox (number INTEGER PRIMARY KEY, key BLOB, value BLOB, events INTEGER);
CREATE TABLE IF NOT EXISTS inputs (paths TEXT PRIMARY KEY) WITHOUT ROWID;
"""


class Remembered(NamedTuple):
    """How far a file is done.

    ``position``: everything before it was handed out. ``read``: it was read so far; ``mark`` is a digest of its first
    ``head`` bytes and of the `TAIL` bytes before ``read``, by which it is known again.
    """

    device: int
    inode: int
    path: str
    position: int
    read: int
    head: int
    mark: bytes


class Sending(NamedTuple):
    """A record on its way."""

    key: bytes
    value: bytes
    events: int

    @property
    def outgoing(self) -> Outgoing:
        return Outgoing(TOPIC_OF[EventType.LOG], self.key, self.value, (SCHEMA_HEADER,))


def digest(head: bytes, tail: bytes) -> bytes:
    """The mark of a file."""
    return blake2b(len(head).to_bytes(2, "big") + head + tail, digest_size=12).digest()


class Positions:
    """Not for two threads at a time, and not for two processes. ``path`` None: in memory, for as long as it lasts."""

    def __init__(self, path: Path | None) -> None:
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(path or ":memory:", timeout=10, isolation_level=None, check_same_thread=False)
        try:
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = NORMAL")
            self._db.executescript(_SCHEMA)
        except sqlite3.Error:
            self._db.close()
            raise

    def files(self) -> list[Remembered]:
        rows = self._db.execute("SELECT device, inode, path, position, read, head, mark FROM files")
        return [Remembered(device, inode, os.fsdecode(path), *rest) for device, inode, path, *rest in rows]

    def outbox(self) -> list[Sending]:
        """What was on its way, in order."""
        return [Sending(*row) for row in self._db.execute("SELECT key, value, events FROM outbox ORDER BY number")]

    def is_known(self, paths: Sequence[str]) -> bool:
        """Whether an input of these patterns was ever begun."""
        row = self._db.execute("SELECT 1 FROM inputs WHERE paths = ?", ("\n".join(paths),)).fetchone()
        return row is not None

    def commit(
        self,
        files: Iterable[Remembered],
        sending: Iterable[Sending],
        now_unix_s: float,
        inputs: Iterable[Sequence[str]] = (),
    ) -> None:
        """All or nothing. ``inputs``: the patterns of those that are begun."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            rows = [(*file[:2], os.fsencode(file.path), *file[3:], now_unix_s) for file in files]  # may be no UTF-8
            self._db.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
            self._db.executemany("INSERT INTO outbox (key, value, events) VALUES (?, ?, ?)", sending)
            self._db.executemany("INSERT OR IGNORE INTO inputs VALUES (?)", [("\n".join(paths),) for paths in inputs])
            self._db.execute("COMMIT")
        except BaseException:
            self._db.execute("ROLLBACK")
            raise

    def sent(self) -> None:
        """What was on its way has arrived."""
        self._db.execute("DELETE FROM outbox")

    def seen(self, keys: Iterable[tuple[int, int]], now_unix_s: float) -> None:
        """These files are still there; forget those that have not been for long."""
        self._db.execute("BEGIN IMMEDIATE")
        self._db.executemany(
            "UPDATE files SET seen_unix_s = ? WHERE device = ? AND inode = ?", [(now_unix_s, *key) for key in keys]
        )
        self._db.execute("DELETE FROM files WHERE seen_unix_s < ?", (now_unix_s - REMEMBERED_S,))
        self._db.execute("COMMIT")

    def close(self) -> None:
        with suppress(sqlite3.Error), closing(self._db):
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
