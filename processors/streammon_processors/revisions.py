"""Numbers for supplements: 1, 2, … for every window and series, never one twice."""

from __future__ import annotations

from hashlib import blake2b

from msgspec import Struct

MAX_REVISIONS = 5000
"""Revisions remembered one by one; beyond, the oldest windows number their supplements together."""


class RevisionsMemory(Struct, array_like=True):
    """What `Revisions` remembers. ``shared`` numbers the supplements of the windows before ``shared_before``."""

    by_window: dict[int, dict[str, int]] = {}
    shared_before: int = 0
    shared: int = 0


class Revisions:
    """The last revision of every (window, series) that has supplements.

    Beyond `MAX_REVISIONS` the oldest windows are forgotten, and all their further supplements numbered by one
    counter: still unique and rising, no longer consecutive.
    """

    def __init__(self, memory: RevisionsMemory | None = None) -> None:
        self.memory = memory or RevisionsMemory()
        self._size = sum(map(len, self.memory.by_window.values()))

    def next(self, window: int, series: bytes) -> int:
        """The next revision, from 1."""
        memory = self.memory
        if window < memory.shared_before:
            memory.shared += 1
            return memory.shared
        known = memory.by_window.setdefault(window, {})
        name = blake2b(series, digest_size=8).hexdigest()
        self._size += name not in known
        revision = known[name] = known.get(name, 0) + 1
        while self._size > MAX_REVISIONS:
            self._share(min(memory.by_window))
        return revision

    def _share(self, oldest: int) -> None:
        known = self.memory.by_window.pop(oldest)
        self._size -= len(known)
        self.memory.shared_before = oldest + 1
        self.memory.shared = max(self.memory.shared, *known.values())

    def of_another_size(self, first: int) -> Revisions:
        """To go on with windows of another size, of which nothing before number ``first`` is new.

        All before it share a counter that goes on from the highest number so far: there may have been windows of this
        size before, with supplements of their own.
        """
        numbers = (number for known in self.memory.by_window.values() for number in known.values())
        return Revisions(RevisionsMemory({}, first, max([self.memory.shared, *numbers])))

    def forget_before(self, window: int) -> None:
        """Windows so old that nothing is added to them any more."""
        for old in [number for number in self.memory.by_window if number < window]:
            self._size -= len(self.memory.by_window.pop(old))
