"""Rollups that grow and close: tumbling and hopping ones by number, sessions by series."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import blake2b
from math import floor, inf
from typing import NamedTuple, Protocol

from msgspec import Struct

from streammon.results import Window
from streammon_processors.rollups.sums import Sum, Sums
from streammon_processors.shapes import ROUNDING_S, Shape

MAX_SESSION_S = 3600.0
"""Sessions are cut before they become longer: one that never ends would have to be read again from its beginning."""


class Grown(NamedTuple):
    """A rollup to be published."""

    start_unix_s: float
    end_unix_s: float
    sum: Sum
    late: bool


class Memory(Struct, array_like=True, omit_defaults=True):
    """What is to be known of one level of one source at a published place."""

    closed: int | None = None
    """Tumbling and hopping windows with lower numbers were published."""
    first_offset: int | None = None
    """The first record that is in something still open."""
    read: float | None = None
    awaited: tuple[float, str] | None = None
    """See `Readback`."""
    sessions: dict[str, float] = {}
    """When the open sessions began, by the digest of their series: what is older belongs to others."""


class Growing(Protocol):
    """The open rollups of one level and source."""

    late: int
    """Windows taken in that wait to be published in supplements."""

    def advance(self, done: float) -> None:
        """All windows that end by ``done`` have been seen."""
        ...

    def add(self, key: bytes, window: Window, offset: int) -> None:
        """Take in a window of which these rollups are made; ``key`` is that of its record."""
        ...

    def rebuild(self, key: bytes, window: Window, offset: int) -> None:
        """Take in again, after a restore, what belongs to something open."""
        ...

    @property
    def is_open(self) -> bool:
        """Whether something will close as time passes."""
        ...

    @property
    def is_due(self) -> bool:
        """Whether something has closed."""
        ...

    def publish(self) -> list[Grown]:
        """All supplements, and then what has closed."""
        ...

    def memory(self) -> Memory: ...

    def restore(self, memory: Memory) -> None: ...


# --- tumbling and hopping -------------------------------------------------------------------------------------------


@dataclass
class _Open:
    sums: Sums
    first_offset: int


class Rolling:
    """Windows with numbers: number ``n`` starts at ``n * every_s``.

    A window without events, which only tells of what was dropped or refused, is always a supplement: it opens nothing.
    """

    def __init__(self, shape: Shape, sums: Callable[[], Sums]) -> None:
        self._shape = shape
        self._sums = sums
        self._open: dict[int, _Open] = {}
        self._supplements: dict[int, Sums] = {}
        self._closed: int | None = None
        self._readback = Readback()
        self.late = 0

    def advance(self, done: float) -> None:
        if done > -inf:
            closed = floor((done + ROUNDING_S) / self._shape.every_s) - self._shape.overlap + 1
            self._closed = closed if self._closed is None else max(self._closed, closed)

    def add(self, key: bytes, window: Window, offset: int) -> None:
        for number in self._numbers(window):
            if window.count and self._takes_in(number):
                self._grow(number, key, window, offset)
            else:
                self._supplements.setdefault(number, self._sums()).add(key, window)
                self.late += 1

    def rebuild(self, key: bytes, window: Window, offset: int) -> None:
        for number in self._numbers(window):
            if window.count and self._takes_in(number):
                self._grow(number, key, window, offset)

    def read_back(self, key: bytes, window: Window) -> None:
        """A window of this level was read from the log."""
        if window.part == "main":
            self._readback.seen(window.start_unix_s, key)

    @property
    def through(self) -> float:
        """All windows that end by this time were published, and have been read back."""
        if self._readback.awaited is not None:
            return self._readback.read
        return -inf if self._closed is None else min([self._closed, *self._open]) * self._shape.every_s

    @property
    def is_open(self) -> bool:
        return bool(self._open)

    @property
    def is_due(self) -> bool:
        return not all(map(self._takes_in, self._open))

    def publish(self) -> list[Grown]:
        supplements, self._supplements, self.late = self._supplements, {}, 0
        closed = {number: self._open.pop(number).sums for number in sorted(self._open) if not self._takes_in(number)}
        late = [grown for number in sorted(supplements) for grown in self._grown(number, supplements[number], True)]
        mains = [grown for number, sums in closed.items() for grown in self._grown(number, sums, False)]
        return [*late, *mains]

    def await_readback(self, mains: list[tuple[float, bytes]]) -> None:
        """These main windows, by start and key, are on their way into the log."""
        if mains:
            self._readback.expect(mains[0][0], mains[-1])

    def memory(self) -> Memory:
        return Memory(
            closed=self._closed,
            first_offset=min((window.first_offset for window in self._open.values()), default=None),
            read=None if self._readback.read == -inf else self._readback.read,
            awaited=self._readback.awaited,
        )

    def restore(self, memory: Memory) -> None:
        self._closed = memory.closed
        self._readback = Readback(-inf if memory.read is None else memory.read, memory.awaited)

    def _numbers(self, window: Window) -> range:
        """The windows that this one lies in."""
        newest = floor((window.start_unix_s + ROUNDING_S) / self._shape.every_s)
        return range(newest - self._shape.overlap + 1, newest + 1)

    def _takes_in(self, number: int) -> bool:
        return self._closed is None or number >= self._closed

    def _grow(self, number: int, key: bytes, window: Window, offset: int) -> None:
        if number not in self._open:
            self._open[number] = _Open(self._sums(), offset)
        self._open[number].sums.add(key, window)

    def _grown(self, number: int, sums: Sums, late: bool) -> Iterator[Grown]:
        start = number * self._shape.every_s
        end = (number + self._shape.overlap) * self._shape.every_s
        return (Grown(start, end, each, late) for each in sums.results())


@dataclass
class Readback:
    """How far the windows that were published have come back from the log.

    ``awaited`` names the last main window that was published, by start and digest of its key, until it has been read.
    Until then, ``read`` is the time through which all have been.
    """

    read: float = -inf
    awaited: tuple[float, str] | None = None

    def expect(self, first_start: float, last: tuple[float, bytes]) -> None:
        if self.awaited is None:
            self.read = first_start
        self.awaited = last[0], digest(last[1])

    def seen(self, start: float, key: bytes) -> None:
        if self.awaited is None:
            return
        self.read = max(self.read, start)
        last, name = self.awaited
        if start > last + ROUNDING_S or (start > last - ROUNDING_S and digest(key) == name):
            self.awaited = None


# --- sessions -------------------------------------------------------------------------------------------------------


@dataclass
class _Session:
    start: float
    end: float
    first_offset: int
    sum: Sum

    def add(self, window: Window) -> None:
        self.end = max(self.end, window.end_unix_s)
        self.sum.add(window)


@dataclass
class Sessions:
    """Sessions of any number of series, at most ``most`` of them open. Windows without events are left out."""

    gap_s: float
    most: int
    late: int = 0
    _open: dict[bytes, _Session] = field(default_factory=dict)
    _ended: list[_Session] = field(default_factory=list)
    _pieces: dict[bytes, list[Window]] = field(default_factory=dict)
    _done: float = -inf
    _restored: dict[str, float] = field(default_factory=dict)

    def advance(self, done: float) -> None:
        self._done = max(self._done, done)
        for key in [key for key, each in self._open.items() if each.end + self.gap_s <= self._done + ROUNDING_S]:
            self._ended.append(self._open.pop(key))

    def add(self, key: bytes, window: Window, offset: int) -> None:
        if not window.count:
            return
        session = self._open.get(key)
        if session is not None and window.end_unix_s - session.start > MAX_SESSION_S + ROUNDING_S:
            self._ended.append(self._open.pop(key))
            session = None
        if session is not None and window.start_unix_s > session.start - ROUNDING_S:
            session.add(window)
        elif session is None and self._begins_one(window):
            self._begin(key, window, offset)
        else:
            self._pieces.setdefault(key, []).append(window)
            self.late += 1

    def _begins_one(self, window: Window) -> bool:
        """Not if it is late: it may lie beside a session that was published."""
        is_new = window.part == "main" and window.start_unix_s > self._done - ROUNDING_S
        return is_new and len(self._open) < self.most

    def _begin(self, key: bytes, window: Window, offset: int) -> None:
        session = self._open[key] = _Session(window.start_unix_s, window.end_unix_s, offset, Sum(window.series))
        session.sum.add(window)

    def rebuild(self, key: bytes, window: Window, offset: int) -> None:
        if not window.count or window.start_unix_s < self._restored.get(digest(key), inf) - ROUNDING_S:
            return
        if key in self._open:
            self._open[key].add(window)
        else:
            self._begin(key, window, offset)

    @property
    def is_open(self) -> bool:
        return bool(self._open)

    @property
    def is_due(self) -> bool:
        return bool(self._ended)

    def publish(self) -> list[Grown]:
        pieces, self._pieces, self.late = self._pieces, {}, 0
        ended, self._ended = self._ended, []
        late = [grown for _, windows in sorted(pieces.items()) for grown in self._runs(windows)]
        ended.sort(key=lambda each: (each.end, each.start, sorted(each.sum.series.items())))
        return [*late, *(Grown(each.start, each.end, each.sum, False) for each in ended)]

    def _runs(self, windows: list[Window]) -> Iterator[Grown]:
        """Late windows of one series, those together between which it was not silent for the gap."""
        run: _Session | None = None
        for window in sorted(windows, key=lambda window: window.start_unix_s):
            if run is not None and window.start_unix_s - run.end < self.gap_s - ROUNDING_S:
                run.add(window)
                continue
            if run is not None:
                yield Grown(run.start, run.end, run.sum, True)
            run = _Session(window.start_unix_s, window.end_unix_s, 0, Sum(window.series))
            run.sum.add(window)
        if run is not None:
            yield Grown(run.start, run.end, run.sum, True)

    def memory(self) -> Memory:
        return Memory(
            first_offset=min((each.first_offset for each in self._open.values()), default=None),
            read=None if self._done == -inf else self._done,
            sessions={digest(key): each.start for key, each in self._open.items()},
        )

    def restore(self, memory: Memory) -> None:
        self._done = -inf if memory.read is None else memory.read
        self._restored = memory.sessions


def digest(key: bytes) -> str:
    """A short name of a record key."""
    return blake2b(key, digest_size=8).hexdigest()
