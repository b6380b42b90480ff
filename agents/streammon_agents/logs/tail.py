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
    """What the system says of a regular file. Raises Skipped for all else; FileNotFoundError where nothing is."""
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


def shown(path: str) -> str:
    """A path as text that can be sent and printed: names of files are bytes, and may be no UTF-8."""
    return path.encode(errors="replace").decode()


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
            if key_of(os.stat(self.path)) == self.key:
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

    def was_replaced(self) -> bool:
        """Whether it was truncated, and perhaps written anew, since the last look. Must be open."""
        assert self._descriptor is not None
        status, read = os.fstat(self._descriptor), self.assembly.read
        self.size = status.st_size
        if self.size < read:
            return True
        if status.st_mtime_ns == self._verified and self.size == read:
            return False
        self._verified = status.st_mtime_ns
        return digest(*self._marked(len(self._head), read)) != digest(self._head, self._tail)

    def read(self, now: float) -> list[Pile]:
        """The events that are whole in what comes next, in order. Must be open."""
        assert self._descriptor is not None
        if self.size > self.assembly.read:
            self._take(os.pread(self._descriptor, CHUNK, self.assembly.read), now)
        piles = list(self.assembly.ready(now))
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

    def _marked(self, head: int, read: int) -> tuple[bytes, bytes]:
        """Its first bytes, and the last ones before ``read``."""
        assert self._descriptor is not None
        tail = min(TAIL, read)
        return os.pread(self._descriptor, head, 0), os.pread(self._descriptor, tail, read - tail)

    def restart(self, now: float) -> list[Pile]:
        """From the beginning; what was underway, which is returned, is as whole as it will ever be."""
        piles = list(self.assembly.end(now))
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
        head, tail = self._head, self._tail
        return Remembered(
            *self.key, self.first_path, self.assembly.position, self.assembly.read, len(head), digest(head, tail)
        )

    def is_same(self, before: Remembered) -> bool:
        """Whether it has what was read of such a file. Must be open."""
        return digest(*self._marked(before.head, before.read)) == before.mark

    def begins(self, other: Tail) -> bool:
        """Whether it has the beginning of what was read of another one, and no more: it may be being copied."""
        assert self._descriptor is not None
        size = os.fstat(self._descriptor).st_size
        return size < other.assembly.read and self._marked(len(other._head), 0)[0] == other._head[:size]

    def resume(self, before: Remembered) -> bool:
        """Go on where that was left, if it has what was read of it. Must be open."""
        if not self.is_same(before):
            return False
        self._go_on(before.position)
        return True

    def skip_to(self, offset: int) -> None:
        """Begin there, and not before. Must be open."""
        begins_line = offset == 0 or self._marked(0, offset)[1][-1:] == b"\n"
        self._go_on(offset, skip_first=not begins_line)

    def _go_on(self, offset: int, *, skip_first: bool = False) -> None:
        self.assembly = self.assembly.anew(offset, skip_first=skip_first)
        self._head, self._tail = self._marked(min(HEAD, offset), offset)

    def to_its_end(self) -> None:
        """Begin at the end. Must be open."""
        assert self._descriptor is not None
        self.skip_to(os.fstat(self._descriptor).st_size)


def key_of(status: os.stat_result) -> Key:
    return status.st_dev, status.st_ino


def named_after(path: str) -> Iterator[str]:
    """The files in the directory of ``path`` whose names begin with its name: rotated ones, and copies."""
    directory, name = os.path.split(os.path.realpath(path))
    try:
        with os.scandir(directory) as entries:
            yield from [entry.path for entry in entries if entry.name.startswith(name) and entry.name != name]
    except OSError:
        pass


def inodes(directory: str) -> dict[int, str]:
    """The paths of what is in a directory."""
    try:
        with os.scandir(directory) as entries:
            return {entry.inode(): entry.path for entry in entries}
    except OSError:
        return {}


def beside(path: str, key: Key) -> str | None:
    """The file with this key in the directory of ``path``, whatever it is called now."""
    found = inodes(os.path.dirname(os.path.realpath(path))).get(key[1])  # where a link points, the rotated ones are
    try:
        return found if found is not None and key_of(os.lstat(found)) == key else None
    except OSError:
        return None
