"""A lock on a file, which the system gives back when a process is gone."""

from __future__ import annotations

import fcntl
from pathlib import Path


class FileLock:
    """An exclusive lock on a file, held until released or until the process is gone, however it ended."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab")

    def take(self) -> bool:
        """Whether we hold it now; once released it is never taken again."""
        if self._file.closed:
            return False
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def release(self) -> None:
        self._file.close()
