"""The history: snapshots kept beside the newest one, so that a replay can begin in the middle of the log.

The newest snapshot says where a task stands now. To repeat what it did between two times, one needs its memory as of
the first of them: whom it had heard before, what was firing, how far event time had come. Therefore the runtime writes
a snapshot into the topic `snapshots`, too, whenever broker time enters a new half hour or a new day, in the transaction
that commits it. Its key is its slot, ``windows/day-17``, and slots are taken in turn: the topic, which is compacted,
holds two days of half hours and 32 days of each partition, and no more.
"""

from __future__ import annotations

from math import inf

from streammon.broker import Outgoing
from streammon.topics import DAY_S, SNAPSHOTS

SLOTS = {"day": (DAY_S, 32), "half-hour": (1800.0, 96)}
"""Length and number of each kind of slots; the days outlast the retention of what processors read."""


class History:
    """Decides which snapshots of one partition of a processor are kept."""

    def __init__(self, processor: str, partition: int, *, goes_on: bool = False) -> None:
        """``goes_on`` from what was committed: then nothing is kept until `begin` says where."""
        self._processor, self._partition = processor, partition
        self._now_s = inf if goes_on else 0.0

    def begin(self, read_from_s: float) -> None:
        """Whoever goes on reads again from this broker time: of the slots that began before it, none is kept again."""
        if self._now_s == inf:
            self._now_s = read_from_s

    def is_due(self, now_s: float) -> bool:
        """Whether a snapshot of broker time ``now_s`` is to be kept."""
        return slot_entered(self._now_s, now_s) is not None

    def keep(self, snapshot: bytes, now_s: float) -> list[Outgoing]:
        """The record that keeps this snapshot, if one is due at broker time ``now_s``."""
        slot, self._now_s = slot_entered(self._now_s, now_s), max(self._now_s, now_s)
        key = f"{self._processor}/{slot}".encode()
        return [Outgoing(SNAPSHOTS, key, snapshot, (), self._partition)] if slot else []


def slot_entered(before_s: float, now_s: float) -> str | None:
    """The slot that begins between two times; a day rather than its first half hour."""
    for kind, (length_s, count) in SLOTS.items():
        number = int(now_s // length_s)
        if before_s < inf and number > before_s // length_s:
            return f"{kind}-{number % count}"
    return None
