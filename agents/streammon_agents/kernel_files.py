"""Small files that the kernel writes at the moment they are read: ``/proc``, ``/sys``, cgroups.

A `File` is kept open and read from its beginning again, which costs a third of opening it anew. A file that went away
(a process ended, a container was removed) and came back is opened again. How many are kept open is bounded by `KEPT`
together; beyond that files are opened for each reading.

The parsers take what they understand and leave out the rest: a truncated or garbled file means that metrics are absent.
"""

from __future__ import annotations

import os
import resource
import threading
from collections.abc import Mapping

LONGEST = 4 * 1024**2
"""No file is read further than that."""
_WHOLE = 1024
"""Less than that is a whole file. The kernel hands out longer ones in pieces, which end between lines."""
_FIRST = 8192


class Budget:
    """How many files may be kept open, by all threads."""

    def __init__(self, most: int) -> None:
        self.left = most
        self._lock = threading.Lock()

    def take(self) -> bool:
        """Whether there is room for one more."""
        with self._lock:
            self.left -= (taken := self.left > 0)
        return taken

    def give_back(self) -> None:
        with self._lock:
            self.left += 1


def _budget() -> Budget:
    """Half of what this process may have open: services it shares the process with need some, too."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return Budget(4096 if soft == resource.RLIM_INFINITY else min(soft // 2, 4096))


KEPT = _budget()


class File:
    """One file, read again and again. Closed by `close`, or when nobody has it any more."""

    __slots__ = ("_budget", "_fd", "path")

    def __init__(self, path: str, budget: Budget = KEPT) -> None:
        self.path, self._budget, self._fd = path, budget, -1

    def read(self) -> bytes:
        """Everything that is in it now. Raises OSError."""
        if self._fd >= 0:
            try:
                return _everything(self._fd)
            except OSError:  # what it told of is gone; perhaps there is another of that name
                self.close()
        fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            data = _everything(fd)
        except OSError:
            os.close(fd)
            raise
        if self._budget.take():
            self._fd = fd
        else:
            os.close(fd)
        return data

    def read_or_none(self) -> bytes | None:
        """The same; None where it is not there or may not be read."""
        try:
            return self.read()
        except OSError:
            return None

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
            self._budget.give_back()

    def __del__(self) -> None:
        self.close()


def _everything(fd: int) -> bytes:
    data = os.pread(fd, _FIRST, 0)
    if len(data) < _WHOLE:
        return data
    pieces = [data]
    size = len(data)
    while size < LONGEST and (data := os.pread(fd, 64 * 1024, size)):
        pieces.append(data)
        size += len(data)
    return b"".join(pieces)


def read_text(path: str) -> str | None:
    """A file that is looked at once; None where it is not there or may not be read."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        return _everything(fd).decode(errors="replace")
    except OSError:
        return None
    finally:
        os.close(fd)


# --- what is in them --------------------------------------------------------------------------------------


_BEYOND = 2**64


def number(text: bytes | str) -> int | None:
    """A whole number that the kernel can count to; None if it is none."""
    try:
        value = int(text)
    except ValueError:
        return None
    return value if 0 <= value < _BEYOND else None


def whole_lines(data: bytes) -> list[bytes]:
    """Without the last one if it has no end: it may be cut."""
    return data.split(b"\n")[:-1]


def number_of(data: bytes, name: bytes) -> int | None:
    """What stands behind ``name`` at the beginning of a line: ``name 123``.

    Twenty times as fast as to read all of a long file of names and numbers.
    """
    if data.startswith(name + b" "):
        start = len(name) + 1
    elif (at := data.find(b"\n" + name + b" ")) >= 0:
        start = at + len(name) + 2
    else:
        return None
    end = data.find(b"\n", start)
    return number(data[start:end]) if end >= 0 else None  # without its end a number may be cut


def numbers_of(data: bytes | None, names: Mapping[bytes, str]) -> dict[str, int]:
    """Those of the numbers that are there, under the names they shall have."""
    found = {ours: number_of(data, theirs) for theirs, ours in names.items()} if data else {}
    return {name: value for name, value in found.items() if value is not None}


def only_number(data: bytes | None) -> int | None:
    """Of a file with one number and nothing else; ``max`` is none."""
    return None if data is None else number(data)


# --- two readings -----------------------------------------------------------------------------------------


def increases(now: Mapping[str, float], before: Mapping[str, float] | None) -> dict[str, float]:
    """By how much counters grew; one that fell was reset and is left out, as one that was not there."""
    if not before:
        return {}
    pairs = ((name, value, before.get(name)) for name, value in now.items())
    return {name: value - old for name, value, old in pairs if old is not None and value >= old}


def rates(
    now: Mapping[str, float], before: Mapping[str, float] | None, elapsed_s: float, names: Mapping[str, str]
) -> dict[str, float]:
    """Increase per second of the counters ``names`` (counter: metric)."""
    if elapsed_s <= 0:
        return {}
    grown = increases(now, before)
    return {metric: grown[name] / elapsed_s for name, metric in names.items() if name in grown}


def added(now: Mapping[str, float], before: Mapping[str, float] | None) -> dict[str, float]:
    """What counters grew by, for `streammon.events.Resource.counters`: one that fell began anew, at nothing."""
    if before is None:
        return {}
    return {
        name: value - old if value >= (old := before[name]) else value for name, value in now.items() if name in before
    }


def present(values: Mapping[str, float | None]) -> dict[str, float]:
    """Without what is not there."""
    return {name: value for name, value in values.items() if value is not None}
