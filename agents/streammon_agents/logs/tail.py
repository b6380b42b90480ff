"""One file that grows: read piece by piece, through rotation and truncation.

A file is known by device and inode, and by what lies before the place up to which it was read: its first bytes and the
last ones (the *mark*). If those have changed, it was truncated and written anew, or the inode is another file's: it is
read from the beginning. Two contents that are alike there cannot be told apart.

Reading is bounded (`CHUNK` at a time), and opening is careful: without blocking, and never anything but a regular file.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Final

from streammon_agents.logs.assembly import Assembly, Pile
from streammon_agents.logs.positions import Remembered, digest

CHUNK: Final = 65_536
HEAD: Final = 256
TAIL: Final = 64
GONE_S: Final = 30.0
"""A file that was renamed or deleted is read until it has not grown for so long."""
_FLAGS: Final = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY

Key = tuple[int, int]


class Skip(StrEnum):
    """Why a file, or part of it, is not read. The values are labels: add, never rename."""

    NOT_A_FILE = "not_a_file"  # a FIFO, a socket, a device
    UNREADABLE = "unreadable"
    BINARY = "binary"
    TOO_MANY_FILES = "too_many_files"
    VANISHED = "vanished"  # renamed away, with something unread, and nowhere to be found


class Skipped(Exception):  # noqa: N818 - a verdict on a file, not a failure of ours
    """A file that is not read. ``detail`` says why, to people."""

    def __init__(self, reason: Skip, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


def regular(path: str) -> os.stat_result:
    """What the system says of a regular file. Raises Skipped for anything else, FileNotFoundError where there is none."""
    try:
        return _regular(os.stat(path))
    except OSError as error:
        raise _unreadable(error) from None


def open_regular(path: str) -> int:
    """A descriptor for reading. Nothing that is no regular file is opened; raises as `regular`, and OSError."""
    regular(path)  # opening alone does something to some devices
    try:
        descriptor = os.open(path, _FLAGS)
    except OSError as error:
        raise _unreadable(error) from None
    try:
        _regular(os.fstat(descriptor))  # it may have been replaced meanwhile
    except Skipped:
        os.close(descriptor)
        raise
    return descriptor


def _unreadable(error: OSError) -> Exception:
    """What is nobody's fault stays as it is: it vanished, or we have too many open."""
    if isinstance(error, FileNotFoundError) or error.errno in (errno.EMFILE, errno.ENFILE):
        return error
    return Skipped(Skip.UNREADABLE, error.strerror or repr(error))


def _regular(status: os.stat_result) -> os.stat_result:
    if not stat.S_ISREG(status.st_mode):
        raise Skipped(Skip.NOT_A_FILE, f"it is a {_kind(status.st_mode)}")
    return status


def _kind(mode: int) -> str:
    names = {stat.S_IFIFO: "FIFO", stat.S_IFSOCK: "socket", stat.S_IFDIR: "directory",
             stat.S_IFCHR: "character device", stat.S_IFBLK: "block device"}  # fmt: skip
    return names.get(stat.S_IFMT(mode), "special file")


def is_binary(head: bytes) -> bool:
    """Whether this is no text. Zeros at the beginning are a hole, which truncating below a writer leaves."""
    text = head.lstrip(b"\0")
    return b"\0" in text or text[:4] in _COMPRESSED or text[:2] == b"\x1f\x8b"


_COMPRESSED: Final = (b"\x28\xb5\x2f\xfd", b"\xfd7zX", b"BZh9", b"PK\x03\x04", b"\x04\x22\x4d\x18", b"\x7fELF")


class Tail:
    """How far one file is read. ``assembly`` is what is underway of it, and makes another one from an offset."""

    def __init__(self, key: Key, path: str, assembly: Assembly) -> None:
        self.key = key
        self.path = path
        """Where it is now, or was last."""
        self.first_path = path
        """Where it was first seen: its name, whatever becomes of it."""
        self.assembly = assembly
        self.size = 0
        self.changed = 0.0
        self.gone_since: float | None = None
        self.refused: Skipped | None = None
        self.past: tuple[int, bytes, bytes] | None = None
        """Up to where its former content was read, and the mark of that: a copy may go on there."""
        self.dirty = True
        """Whether there is something new to be remembered."""
        self._descriptor: int | None = None
        self._head = b""
        self._tail = b""
        self._verified = 0
        """When, by the file's own clock, it was last seen to be the same."""

    # --- the descriptor ---

    @property
    def is_open(self) -> bool:
        return self._descriptor is not None

    @property
    def unread(self) -> bool:
        return self.refused is None and self.size != self.assembly.read

    def open(self) -> None:
        """Raises Skipped; FileNotFoundError where this file is neither at its path nor beside it."""
        for path in self._places():
            descriptor = open_regular(path)
            status = os.fstat(descriptor)
            if (status.st_dev, status.st_ino) == self.key:
                self._descriptor, self.path = descriptor, path
                self._verified = 0
                return
            os.close(descriptor)
        raise FileNotFoundError(self.path)

    def _places(self) -> Iterator[str]:
        """Where it was, then where a rotation may have put it."""
        try:
            if _key(os.stat(self.path)) == self.key:
                yield self.path
                return
        except OSError:
            pass
        if (found := beside(self.path, self.key)) is not None:
            yield found

    def close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    # --- reading ---

    def read(self, now: float, bytes_: int = CHUNK) -> list[Pile]:
        """The events that are whole in the next ``bytes_``, in order. Must be open."""
        assert self._descriptor is not None
        status = os.fstat(self._descriptor)
        self.size = status.st_size
        piles = self._restart(now) if self._was_replaced(status.st_mtime_ns) else []
        if self.size > self.assembly.read:
            self._take(os.pread(self._descriptor, bytes_, self.assembly.read), now)
        piles += self.assembly.ready(now)
        self.dirty = self.dirty or bool(piles)
        return piles

    def _take(self, chunk: bytes, now: float) -> None:
        if self.assembly.read == 0 and is_binary(chunk[:HEAD]):
            self.refused = Skipped(Skip.BINARY, "it is binary or compressed")
            return
        if len(self._head) < HEAD and len(self._head) == self.assembly.read:
            self._head += chunk[: HEAD - len(self._head)]
        self._tail = (self._tail + chunk)[-TAIL:]
        self.assembly.feed(chunk, now)
        self.changed = now
        self.dirty = True

    def _was_replaced(self, modified_ns: int) -> bool:
        """Whether it was truncated, and perhaps written anew, since the last look."""
        read = self.assembly.read
        if self.size < read:
            return True
        if modified_ns == self._verified and self.size == read:
            return False
        self._verified = modified_ns
        return not self._has(self._head, read, self._tail)

    def _has(self, head: bytes, read: int, tail: bytes) -> bool:
        assert self._descriptor is not None
        return (
            os.pread(self._descriptor, len(head), 0) == head
            and os.pread(self._descriptor, len(tail), read - len(tail)) == tail
        )

    def _restart(self, now: float) -> list[Pile]:
        """From the beginning; what was underway is as whole as it will ever be."""
        piles = list(self.assembly.end(now))
        self.past = (self.assembly.read, self._head, self._tail)
        self.assembly = self.assembly.anew(0)
        self._head = self._tail = b""
        self.refused = None
        self.dirty = True
        return piles

    def finish(self, now: float) -> list[Pile]:
        """The last of it: it is deleted or rotated away, and nothing will follow."""
        self.close()
        self.dirty = True
        return list(self.assembly.end(now))

    # --- remembering ---

    def remembered(self) -> Remembered:
        self.dirty = False
        head, tail = self._head, self._tail
        return Remembered(
            *self.key, self.first_path, self.assembly.position, self.assembly.read, len(head), digest(head, tail)
        )

    def resume(self, before: Remembered) -> bool:
        """Go on where another process has ended, if it is the file that it was. Must be open."""
        assert self._descriptor is not None
        head = os.pread(self._descriptor, before.head, 0)
        tail = os.pread(self._descriptor, min(TAIL, before.read), max(0, before.read - TAIL))
        if digest(head, tail) != before.mark:
            return False
        self._go_on(before.position)
        return True

    def skip_to(self, offset: int) -> None:
        """Begin there, and not before. Must be open."""
        assert self._descriptor is not None
        begins_line = offset == 0 or os.pread(self._descriptor, 1, offset - 1) == b"\n"
        self._go_on(offset, skip_first=not begins_line)

    def _go_on(self, offset: int, *, skip_first: bool = False) -> None:
        assert self._descriptor is not None
        self.assembly = self.assembly.anew(offset, skip_first=skip_first)
        self._head = os.pread(self._descriptor, min(HEAD, offset), 0)
        self._tail = os.pread(self._descriptor, min(TAIL, offset), max(0, offset - TAIL))

    def continues(self, original: Tail) -> int | None:
        """Where this copy of ``original`` goes on: up to there that one was read. None: it is no copy. Must be open."""
        here = (original.assembly.read, original._head, original._tail)
        for read, head, tail in (here, original.past or here):
            if read and self._has(head, read, tail):
                return read
        return None


def _key(status: os.stat_result) -> Key:
    return status.st_dev, status.st_ino


def beside(path: str, key: Key) -> str | None:
    """The file with this key in the directory of ``path``, whatever it is called now."""
    directory = Path(os.path.realpath(path)).parent  # where a link points, the rotated ones are
    try:
        with os.scandir(directory) as entries:
            for entry in entries:
                if entry.inode() == key[1] and _key(entry.stat(follow_symlinks=False)) == key:
                    return entry.path
    except OSError:
        pass
    return None
