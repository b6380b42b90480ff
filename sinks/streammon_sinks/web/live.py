"""The results store as the page sees it: each window is read once, whatever the number of readers.

A `Live` keeps a `Board` for every time range that somebody looks at. A board is filled from the store once,
and from then on only fed with the rows that were written since, so a late supplement of an old window is added like
any other. Reading blocks, and happens in threads; a reader of a new range waits for it (6 h of one busy
machine: a few seconds), and whoever asks meanwhile waits with them.
"""

from __future__ import annotations

import asyncio
import inspect
import sqlite3
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing, contextmanager
from typing import Final, NamedTuple

import msgspec

from streammon.clock import Clock
from streammon.errors import Retryable
from streammon.results import Window
from streammon_sinks.sqlite import BUSY_S, ResultStore
from streammon_sinks.web.overview import SOURCES, Board, Status

POLL_S: Final = 0.3
"""How often the store is looked at, at most, while anybody looks at the page."""
FRESH_S: Final = 1.0
"""An answer is given again for so long, unless something was written: time passes on the page too."""
IDLE_S: Final = 60.0
"""A range nobody asked for during this time is forgotten."""
MAX_ROWS: Final = 250_000
"""Windows of one source that are read for a new range; the oldest are left out beyond."""
MAX_STORED_ALERTS: Final = 1000

_PLACE: Final = """
SELECT (SELECT coalesce(max(rowid), 0) FROM windows), count(*), total(updated_unix_s) FROM alerts
"""
_SINCE: Final = """
SELECT body FROM windows WHERE source = ? AND start_unix_s >= ? ORDER BY start_unix_s DESC LIMIT ?
"""
_AFTER: Final = "SELECT body FROM windows WHERE rowid > ? ORDER BY rowid"
_WINDOW: Final = msgspec.json.Decoder(Window)

StatusOf = Callable[[], Status | Awaitable[Status]]


class Place(NamedTuple):
    """How far the store has been written; differs whenever windows or alerts were."""

    row: int = 0
    alerts: int = 0
    alerts_updated_unix_s: float = 0.0
    """The sum of their times, which an index has at hand."""


class _Answer(NamedTuple):
    place: Place
    at: float
    body: bytes


class Live:
    """What has been read so far. One thread at a time touches it; `version` and `overview` see to that."""

    def __init__(
        self,
        store: ResultStore,
        status: StatusOf,
        clock: Clock,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store, self._status, self._clock, self._monotonic = store, status, clock, monotonic
        self._lock = asyncio.Lock()
        self._place = Place()
        self._version = 0
        self._looked_at = float("-inf")
        self._boards: dict[int, Board] = {}
        self._asked_at: dict[int, float] = {}
        self._answers: dict[int, _Answer] = {}

    async def version(self) -> int:
        """A number that grows when windows or alerts were written. Raises `Retryable`."""
        async with self._lock:
            if self._monotonic() - self._looked_at >= POLL_S:
                await asyncio.to_thread(self._catch_up)
            return self._version

    async def overview(self, range_s: int) -> bytes:
        """The `Overview` of the last ``range_s`` seconds, as JSON. Raises `Retryable`."""
        status = self._status()
        if inspect.isawaitable(status):
            status = await status
        async with self._lock:
            return await asyncio.to_thread(self._overview, range_s, status)

    # ------------------------------------------------------------------ in a thread

    def _overview(self, range_s: int, status: Status) -> bytes:
        self._asked_at[range_s] = self._monotonic()
        self._catch_up()
        now, known = self._monotonic(), self._answers.get(range_s)
        if known and known.place == self._place and now - known.at < FRESH_S:
            return known.body
        alerts = self._store.alerts(MAX_STORED_ALERTS)
        body = msgspec.json.encode(self._boards[range_s].overview(self._clock(), status, alerts))
        self._answers[range_s] = _Answer(self._place, now, body)
        return body

    def _catch_up(self) -> None:
        """Feed the boards with what was written since the last time, and fill those that are missing."""
        self._forget_idle()
        with _snapshot(self._store) as db:
            place = Place(*db.execute(_PLACE).fetchone())
            if place.row < self._place.row:  # emptied, and row numbers started again
                self._boards.clear()
            if place != self._place:
                self._feed(db)
                self._place, self._version = place, self._version + 1
            for range_s in self._asked_at.keys() - self._boards.keys():
                self._boards[range_s] = _filled(db, range_s, self._clock())
        self._looked_at = self._monotonic()

    def _feed(self, db: sqlite3.Connection) -> None:
        boards, self._boards = self._boards, {}  # what fails on the way is filled anew, never fed twice
        for (body,) in db.execute(_AFTER, (self._place.row,)) if boards else ():
            window = _WINDOW.decode(body)
            boards = {range_s: board for range_s, board in boards.items() if board.size_s >= window.size_s}
            for board in boards.values():
                board.add(window)
        self._boards = boards

    def _forget_idle(self) -> None:
        now = self._monotonic()
        for range_s in [each for each, at in self._asked_at.items() if now - at > IDLE_S]:
            del self._asked_at[range_s]
            self._boards.pop(range_s, None)
            self._answers.pop(range_s, None)


def _filled(db: sqlite3.Connection, range_s: int, now_unix_s: float, size_s: float = 1.0) -> Board:
    """A board with all windows of the range."""
    board = Board(range_s, size_s)
    since = now_unix_s - range_s - 2 * board.step_s
    for source in SOURCES:
        window = None
        for rows, (body,) in enumerate(db.execute(_SINCE, (source, since, MAX_ROWS)), start=1):
            window = _WINDOW.decode(body)
            if window.size_s > board.size_s:
                return _filled(db, range_s, now_unix_s, window.size_s)
            board.add(window)
            if rows == MAX_ROWS:
                board.cut(window.start_unix_s)
    return board


@contextmanager
def _snapshot(store: ResultStore) -> Iterator[sqlite3.Connection]:
    """The store as it is at one moment."""
    uri = f"{store.path.resolve().as_uri()}?mode=ro"
    try:
        with closing(sqlite3.connect(uri, uri=True, timeout=BUSY_S, isolation_level=None)) as db:
            db.execute("BEGIN")
            yield db
    except sqlite3.Error as error:
        raise Retryable(f"cannot read {store.path}: {error}") from error
