"""The results store as the page sees it: each window is read once, whatever the number of readers.

A `Live` keeps a `Board` for every time range that somebody looks at. A board is filled from the store once,
and from then on only fed with the rows that were written since, so a late supplement of an old window is added like
any other. Reading blocks, and happens in threads; a reader of a new range waits for it (6 h of one busy
machine: a few seconds), and whoever asks meanwhile waits with them.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, NamedTuple

import msgspec

from streammon.alert_log import AlertLog
from streammon.clock import Clock
from streammon.results import Drift, Loop, Quality
from streammon_sinks.sqlite import Place, ResultStore, Snapshot
from streammon_sinks.web.models import Point, Said
from streammon_sinks.web.overview import SOURCES, Board, People, Status

POLL_S: Final = 0.3
"""How often the store is looked at, at most, while anybody looks at the page."""
FRESH_S: Final = 1.0
"""An answer is given again for so long, unless something was written: time passes on the page too."""
IDLE_S: Final = 60.0
"""A range nobody asked for during this time is forgotten."""
MAX_ROWS: Final = 250_000
"""Windows of one source that are read for a new range; the oldest are left out beyond."""
MAX_STORED_ALERTS: Final = 1000
MAX_SERIES: Final = 5000
"""Of what is said of models, the series that are looked at: the last that ended."""
MAX_HISTORIES: Final = 60
MAX_HISTORY: Final = 2200
"""Versions of which it is read how good they were before, and how many times of each: 6 h of 10 s."""

StatusOf = Callable[[], Status | Awaitable[Status]]


class _Answer(NamedTuple):
    place: Place
    people: int
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
        people: AlertLog | None = None,
    ) -> None:
        self._store, self._status, self._clock, self._monotonic = store, status, clock, monotonic
        self._log = people
        self._lock = asyncio.Lock()
        self._place = Place()
        self._version = 0
        self._looked_at = float("-inf")
        self._boards: dict[int, Board] = {}
        self._asked_at: dict[int, float] = {}
        self._answers: dict[int, _Answer] = {}
        self._said: dict[int, tuple[float, Said]] = {}

    async def version(self) -> int:
        """A number that grows when windows or alerts were written, or people did something. Raises `Retryable`."""
        async with self._lock:
            if self._monotonic() - self._looked_at >= POLL_S:
                await asyncio.to_thread(self._catch_up)
            return self._version + (self._log.version if self._log else 0)

    async def overview(self, range_s: int) -> bytes:
        """The `Overview` of the last ``range_s`` seconds, as JSON. Raises `Retryable`."""
        status = self._status()
        if inspect.isawaitable(status):
            status = await status
        people = self._people()
        async with self._lock:
            return await asyncio.to_thread(self._overview, range_s, status, people)

    def _people(self) -> People | None:
        if self._log is None:
            return None
        return People(self._log, self._log.active_silences(self._clock()), self._log.version)

    # ------------------------------------------------------------------ in a thread

    def _overview(self, range_s: int, status: Status, people: People | None) -> bytes:
        self._asked_at[range_s] = self._monotonic()
        self._catch_up()
        now, known = self._monotonic(), self._answers.get(range_s)
        version = people.version if people else 0
        if known and (known.place, known.people) == (self._place, version) and now - known.at < FRESH_S:
            return known.body
        alerts = self._store.alerts(MAX_STORED_ALERTS)
        said = self._said_of_models(range_s)
        body = msgspec.json.encode(self._boards[range_s].overview(self._clock(), status, alerts, people, said))
        self._answers[range_s] = _Answer(self._place, version, now, body)
        return body

    def _said_of_models(self, range_s: int) -> Said:
        """What was said of models, read again when there is more of it."""
        known = self._said.get(range_s)
        if known is None or known[0] != self._place.models:
            known = self._said[range_s] = self._place.models, _said(self._store, self._clock() - range_s)
        return known[1]

    def _catch_up(self) -> None:
        """Feed the boards with what was written since the last time, and fill those that are missing."""
        self._forget_idle()
        with self._store.snapshot() as snapshot:
            place = snapshot.place()
            if place.row < self._place.row:  # emptied, and row numbers started again
                self._boards.clear()
            if place != self._place:
                self._feed(snapshot)
                self._place, self._version = place, self._version + 1
            for range_s in self._asked_at.keys() - self._boards.keys():
                self._boards[range_s] = _filled(snapshot, range_s, self._clock())
        self._looked_at = self._monotonic()

    def _feed(self, snapshot: Snapshot) -> None:
        boards, self._boards = self._boards, {}  # what fails on the way is filled anew, never fed twice
        for window in snapshot.windows_after(self._place) if boards else ():
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
            self._said.pop(range_s, None)


def _filled(snapshot: Snapshot, range_s: int, now_unix_s: float, size_s: float = 1.0) -> Board:
    """A board with all windows of the range."""
    board = Board(range_s, size_s)
    since = now_unix_s - range_s - 2 * board.step_s
    for source in SOURCES:
        for rows, window in enumerate(snapshot.windows_since(source, since, MAX_ROWS), start=1):
            if window.size_s > board.size_s:
                return _filled(snapshot, range_s, now_unix_s, window.size_s)
            board.add(window)
            if rows == MAX_ROWS:
                board.cut(window.start_unix_s)
    return board


def _said(store: ResultStore, since_unix_s: float) -> Said:
    quality = store.newest(Quality, MAX_SERIES)
    return Said(
        drift=store.newest(Drift, MAX_SERIES),
        quality=quality,
        measured=store.newest(Quality, MAX_SERIES, notable=True),
        loops=store.newest(Loop, MAX_SERIES),
        history=_history(store, quality, since_unix_s),
    )


def _history(
    store: ResultStore, newest: Sequence[Quality], since_unix_s: float
) -> dict[tuple[tuple[str | None, str], str | None], list[Point]]:
    """By version, how good it was in each time: by prediction where that is known, else by label."""
    whole = [each for each in newest if not each.slice and each.end_unix_s > since_unix_s][:MAX_HISTORIES]
    chosen = {((each.service, each.model), each.model_version): each for each in whole if each.by == "label"}
    chosen |= {((each.service, each.model), each.model_version): each for each in whole if each.by == "prediction"}
    return {key: store.before(quality, Point, since_unix_s, MAX_HISTORY)[::-1] for key, quality in chosen.items()}
