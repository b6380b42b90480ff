"""The spool: batches on disk while the log cannot be reached, in segments, oldest first.

::

    put ──► 0000000007.free ┐                        of what nobody waits for, the oldest segment gives way
    keep ─► 0000000008.kept ┴─► take ─► log ─► done  what was acknowledged is never dropped

A segment is a file of *frames*, each with its length and CRC; a frame is whole or it is not there. What is promised:

* **What was written outlives the process**, kill -9 included: it is in the operating system's hands when `put` and
  `keep` return. What `sync` has returned for outlives a power cut, too.
* **A damaged frame costs itself.** Reading goes on at the next frame whose CRC is right. The bytes stepped over are
  counted; which batches they were, the processor says: their numbers are missing.
* **Counted once.** Batches lie here as they will be sent. Every segment numbers what it is given under a boot id of
  its own, so segments that are dropped leave no gap, and what is sent again, after a restart too, is recognised.
* **A drop is counted exactly once**, over kill -9 too. The frame that says how many events were dropped, as empty
  batches that report them by record key, also names the segment it is about: whoever finds both deletes the segment.
* **Bounded.** All segments together take at most ``max_bytes`` (and one frame). Acknowledged batches take at most
  `KEPT_SHARE` of them and are refused beyond that (`Backpressure`), so that room is left for all else.

After a failed write (a full disk) the segment is left alone and the next write begins another.

For one thread at a time, which it may block. One owner: a second process is refused by the lock.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import struct
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field
from io import FileIO, RawIOBase
from pathlib import Path
from typing import BinaryIO, Final, NamedTuple
from zlib import crc32

import msgspec

from streammon.broker import Outgoing
from streammon.clock import Clock, system_clock
from streammon.errors import Backpressure
from streammon.events import EventType
from streammon.file_lock import FileLock
from streammon.topics import INPUT_TOPICS
from streammon.wire import SCHEMA_HEADER, Density, Identity, encode
from streammon_agents.packing import Batch, Event, Packer

KEPT_SHARE: Final = 0.75
"""Of ``max_bytes``, what acknowledged batches may take."""
LARGEST_SEGMENT: Final = 8 * 1024**2
RETRY_AFTER_S: Final = 5.0
"""When whoever is refused may come back."""
SEGMENTS: Final = 16
"""How many segments a small spool has; a large one has more."""
MAGIC: Final = b"\xf5smf"
"""0xf5 is in no UTF-8, so events cannot look like a frame."""
_HEAD: Final = struct.Struct("<4sII")
_PLACE: Final = struct.Struct("<QQI")
_NAME: Final = re.compile(r"(\d{10})\.(free|kept)")
_OVERHEAD: Final = 256
"""Bytes of a frame and an entry beside what they hold, at most."""


class Entry(msgspec.Struct, array_like=True, frozen=True):
    """A record as it will be sent, and how many events are lost if it is dropped (those it reports included)."""

    topic: str
    key: bytes | None
    value: bytes
    headers: list[tuple[str, bytes]]
    events: int

    @classmethod
    def of(cls, record: Outgoing, events: int = 0) -> Entry:
        return cls(record.topic, record.key, record.value or b"", list(record.headers), events)

    @property
    def outgoing(self) -> Outgoing:
        return Outgoing(self.topic, self.key, self.value, self.headers)


class _Frame(msgspec.Struct, array_like=True, frozen=True):
    """``removes``: the segment whose loss these entries report."""

    entries: list[Entry]
    removes: int | None = None


def create_file(path: Path) -> RawIOBase:
    """A new file, written without delay, that only we can read: it may hold what logs and requests hold."""
    return FileIO(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w")


Create = Callable[[Path], RawIOBase]
_DECODER = msgspec.msgpack.Decoder(_Frame)
Losses = Counter[tuple[str, bytes | None]]
"""Events, by topic and record key."""


class Taken(NamedTuple):
    """Entries to send, and what `done` needs to know of them."""

    entries: list[Entry]
    segment: int
    end: int


@dataclass
class _Segment:
    """What is known of a file without reading it."""

    number: int
    path: Path
    kept: bool
    written_unix_s: float
    """When its first frame was written, about."""
    size: int = 0
    start: int = 0
    """Where what was not yet sent begins."""
    records: int = 0
    losses: Losses = field(default_factory=Counter)
    """What is lost if it is dropped now."""

    def add(self, entries: Iterable[Entry], sign: int = 1) -> None:
        for entry in entries:
            self.records += sign
            self.losses[entry.topic, entry.key] += sign * entry.events


@dataclass
class _Writer:
    segment: _Segment
    file: RawIOBase
    packer: Packer
    synced: bool = True


class Status(NamedTuple):
    """How full the spool is, and what became of what was in it."""

    bytes: int
    records: int
    segments: int
    oldest_unix_s: float | None
    dropped: int
    """Events, since this process has it."""
    damaged_bytes: int
    """Stepped over, likewise."""


class Spool:
    """Open it with `Spool.open`."""

    def __init__(
        self, directory: Path, max_bytes: int, agent: str, lock: FileLock, clock: Clock, create: Create
    ) -> None:
        self._create = create
        self._directory, self._max_bytes, self._agent, self._lock, self._clock = (
            directory,
            max_bytes,
            agent,
            lock,
            clock,
        )
        self._segment_bytes = min(LARGEST_SEGMENT, max_bytes // SEGMENTS)
        self._segments: dict[int, _Segment] = {}  # oldest first
        self._writers: dict[bool, _Writer] = {}
        self._next = 1
        self._taken: Taken | None = None
        self._tried: int | None = None
        """The segment that was the oldest at the end of the life before: some of it may have arrived."""
        self._dropped = self._damaged = 0
        self._place = os.open(directory / "position", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    @classmethod
    def open(
        cls, directory: Path, max_bytes: int, agent: str, clock: Clock = system_clock, create: Create = create_file
    ) -> Spool:
        """Take over what is there. Raises OSError: it cannot be written to, or another process has it."""
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = FileLock(directory / "lock")
        if not lock.take():
            lock.release()
            raise BlockingIOError(f"another process has the spool {directory}")
        try:
            spool = cls(directory, max_bytes, agent, lock, clock, create)
            spool._recover()
        except BaseException:
            lock.release()
            raise
        return spool

    @property
    def status(self) -> Status:
        segments = self._segments.values()
        return Status(
            bytes=self._bytes(),
            records=sum(segment.records for segment in segments),
            segments=len(segments),
            oldest_unix_s=min((each.written_unix_s for each in segments if each.records), default=None),
            dropped=self._dropped,
            damaged_bytes=self._damaged,
        )

    # --- writing ------------------------------------------------------------------------------------------

    def put(self, event_type: EventType, events: Sequence[Event], size: int, dropped: int = 0, *, kept: bool) -> int:
        """Number events, about ``size`` bytes of them, and write them down.

        ``dropped``: losses to report with them; those that no batch reports yet are given back.
        ``kept``: as records that are kept, else as what may give way.

        Raises:
            Backpressure: all the room is taken by what must not be dropped.
            OSError: they could not be written; nothing was taken.
        """
        self._make_room(size + _OVERHEAD * 4, within_share=kept)
        writer = self._writer(kept=kept)
        try:
            batches, unreported = writer.packer.pack(event_type, events, dropped)
            self._write(writer, _Frame([_entry(batch) for batch in batches]))
        except BaseException:
            self._leave(writer)  # the numbers are used up, so that nothing more may come under this boot id
            raise
        return unreported

    def keep(self, entries: Sequence[Entry], *, within_share: bool = True) -> None:
        """Write records as they are; they are never dropped.

        ``within_share``: leave room for what `put` brings.

        Raises:
            Backpressure: no room; nothing was taken.
            OSError: they could not be written; nothing was taken.
        """
        size = sum(len(entry.value) + len(entry.key or b"") + _OVERHEAD for entry in entries)
        self._make_room(size, within_share=within_share)
        writer = self._writer(kept=True)
        try:
            self._write(writer, _Frame(list(entries)))
        except BaseException:
            self._leave(writer)
            raise

    def report(self, topic: str, key: bytes, dropped: int) -> None:
        """Write down a loss, to be reported as an empty batch. Raises as `put`."""
        self._write_reports(Counter({(topic, key): dropped}), removes=None)

    def sync(self) -> None:
        """Let everything written so far survive a power cut."""
        for writer in self._writers.values():
            if not writer.synced:
                os.fsync(writer.file.fileno())
                writer.synced = True

    def _bytes(self) -> int:
        return sum(segment.size for segment in self._segments.values())

    def _make_room(self, size: int, *, within_share: bool) -> None:
        kept = sum(segment.size for segment in self._segments.values() if segment.kept)
        if within_share and kept + size > self._max_bytes * KEPT_SHARE:
            raise Backpressure(f"the spool {self._directory} is full", RETRY_AFTER_S)
        while self._bytes() + size > self._max_bytes:
            self._drop_oldest()

    def _drop_oldest(self) -> None:
        victim = next((each for each in self._segments.values() if self._may_go(each)), None)
        if victim is None:
            raise Backpressure(f"the spool {self._directory} is full of what must not be dropped", RETRY_AFTER_S)
        losses = +victim.losses
        self._write_reports(losses, removes=victim.number)
        self._dropped += losses.total()
        self._delete(victim)

    def _may_go(self, segment: _Segment) -> bool:
        written = self._writers.get(segment.kept)
        in_flight = self._taken is not None and self._taken.segment == segment.number
        in_flight = in_flight or segment.number == self._tried
        return not segment.kept and not in_flight and (written is None or written.segment is not segment)

    def _write_reports(self, losses: Losses, removes: int | None) -> None:
        writer = self._writer(kept=False)
        try:
            self._write(writer, _Frame([self._report(*place, lost) for place, lost in losses.items()], removes))
        except BaseException:
            self._leave(writer)
            raise

    def _report(self, topic: str, key: bytes | None, lost: int) -> Entry:
        """An empty batch, under a boot id of its own: whichever partition it reaches, it leaves no gap."""
        identity = Identity(self._agent, f"{secrets.token_hex(8)}/dropped", 0)
        [value] = encode(INPUT_TOPICS[topic], [], Density.PACKED, identity, lost)
        return Entry(topic, key, value, [SCHEMA_HEADER], lost)

    def _writer(self, *, kept: bool) -> _Writer:
        writer = self._writers.get(kept)
        if writer is not None and writer.segment.size < self._segment_bytes:
            return writer
        if writer is not None:
            self._leave(writer)
        return self._begin(kept)

    def _begin(self, kept: bool) -> _Writer:
        number = self._next
        path = self._directory / f"{number:010}.{'kept' if kept else 'free'}"
        self._next += 1  # whatever comes of it: a file that is there already is not made again
        file = self._create(path)
        if kept:
            self._sync_directory()
        segment = self._segments[number] = _Segment(number, path, kept, self._clock())
        writer = self._writers[kept] = _Writer(segment, file, Packer(self._agent))
        return writer

    def _sync_directory(self) -> None:
        directory = os.open(self._directory, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def _write(self, writer: _Writer, frame: _Frame) -> None:
        if not frame.entries and frame.removes is None:
            return
        payload = msgspec.msgpack.encode(frame)
        data = _head(payload) + payload
        written = 0
        while written < len(data):
            written += writer.file.write(memoryview(data)[written:]) or 0
        writer.synced = False
        writer.segment.size += len(data)
        writer.segment.add(frame.entries)

    def _leave(self, writer: _Writer) -> None:
        """Write no more to this segment; half a frame is cut off, if the disk lets us."""
        segment = writer.segment
        with contextlib.suppress(OSError):
            if os.fstat(writer.file.fileno()).st_size > segment.size:
                os.ftruncate(writer.file.fileno(), segment.size)
            if not writer.synced:
                os.fsync(writer.file.fileno())
        writer.file.close()
        del self._writers[segment.kept]
        if not segment.size:
            self._delete(segment)

    # --- reading ------------------------------------------------------------------------------------------

    def take(self, max_bytes: int) -> list[Entry]:
        """The oldest entries, about so many bytes; the same ones again until they are `done`.

        What cannot be read, because the disk fails, is given up with its segment.
        """
        while self._taken is None and self._segments:
            segment = next(iter(self._segments.values()))
            self._taken = self._take_of(segment, max_bytes)
        return self._taken.entries if self._taken else []

    def _take_of(self, segment: _Segment, max_bytes: int) -> Taken | None:
        """Of one segment, which is not written to any more; None once it is used up, and gone."""
        writer = self._writers.get(segment.kept)
        if writer is not None and writer.segment is segment:
            self._leave(writer)
        entries: list[Entry] = []
        end = segment.start
        with contextlib.suppress(OSError), contextlib.closing(_frames(segment.path, segment.start)) as frames:
            for found in frames:
                self._damaged += found.start - end
                entries += found.frame.entries
                end = found.end
                if end - segment.start >= max_bytes:
                    return Taken(entries, segment.number, end)
        self._damaged += max(0, segment.size - end)
        if entries:
            return Taken(entries, segment.number, segment.size)
        self._delete(segment)
        return None

    def done(self) -> None:
        """What was taken has arrived; it is not given again, not even after kill -9."""
        assert self._taken is not None
        taken, self._taken = self._taken, None
        segment = self._segments[taken.segment]
        segment.start = taken.end
        segment.add(taken.entries, -1)
        if segment.start >= segment.size:
            self._delete(segment)
        else:
            self._remember(segment)

    def _remember(self, segment: _Segment) -> None:
        place = struct.pack("<QQ", segment.number, segment.start)
        with contextlib.suppress(OSError):  # then some of it would be sent again, and recognised
            os.pwrite(self._place, place + struct.pack("<I", crc32(place)), 0)

    def _delete(self, segment: _Segment) -> None:
        del self._segments[segment.number]
        with contextlib.suppress(OSError):
            segment.path.unlink(missing_ok=True)

    # --- beginning and end --------------------------------------------------------------------------------

    def _recover(self) -> None:
        found = sorted(
            (int(match[1]), path) for path in self._directory.iterdir() if (match := _NAME.fullmatch(path.name))
        )
        number, start = self._remembered()
        self._tried = found[0][0] if found else None
        self._next = number + 1  # a number that comes again would be taken for the one of which so much was sent
        removed: set[int] = set()
        for each, path in found:
            segment = _Segment(each, path, path.suffix == ".kept", path.stat().st_mtime, path.stat().st_size)
            segment.start = start if each == number else 0
            self._segments[each] = segment
            self._next = max(self._next, each + 1)
            removed |= self._survey(segment)
        for each in removed & self._segments.keys():
            self._delete(self._segments[each])

    def _survey(self, segment: _Segment) -> set[int]:
        """Count what is in a segment; the segments that it says are dropped."""
        removed: set[int] = set()
        with contextlib.suppress(OSError), contextlib.closing(_frames(segment.path, segment.start)) as frames:
            for found in frames:
                segment.add(found.frame.entries)
                if found.frame.removes is not None:
                    removed.add(found.frame.removes)
        return removed

    def _remembered(self) -> tuple[int, int]:
        packed = os.pread(self._place, _PLACE.size, 0)
        if len(packed) == _PLACE.size:
            number, start, check = _PLACE.unpack(packed)
            if crc32(packed[:16]) == check:
                return number, start
        return 0, 0

    def close(self) -> None:
        for writer in list(self._writers.values()):
            self._leave(writer)
        os.close(self._place)
        self._lock.release()


class _Found(NamedTuple):
    start: int
    end: int
    frame: _Frame


def _frames(path: Path, start: int) -> Generator[_Found]:
    """The frames that are whole, in order; what is between them is not."""
    with path.open("rb") as file:
        while (found := _frame_at(file, start) or _next_frame(file, start + 1)) is not None:
            yield found
            start = found.end


def _frame_at(file: BinaryIO, start: int) -> _Found | None:
    file.seek(start)
    head = file.read(_HEAD.size)
    if len(head) < _HEAD.size:
        return None
    magic, length, check = _HEAD.unpack(head)
    if magic != MAGIC or length > os.fstat(file.fileno()).st_size - start:
        return None
    payload = file.read(length)
    if len(payload) < length or crc32(payload, length) != check:
        return None
    try:
        return _Found(start, start + _HEAD.size + length, _DECODER.decode(payload))
    except msgspec.DecodeError:  # of another version
        return None


def _next_frame(file: BinaryIO, start: int) -> _Found | None:
    """The first whole frame from there on, after damage; reads the rest of the segment."""
    file.seek(start)
    rest = file.read()
    at = rest.find(MAGIC)
    while at >= 0:
        if (found := _frame_at(file, start + at)) is not None:
            return found
        at = rest.find(MAGIC, at + 1)
    return None


def _head(payload: bytes) -> bytes:
    return _HEAD.pack(MAGIC, len(payload), crc32(payload, len(payload)))


def _entry(batch: Batch) -> Entry:
    return Entry.of(batch.outgoing, batch.events + batch.dropped)
