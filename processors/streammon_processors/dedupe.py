"""Which batches were counted before, and which never came: by agent, boot and sequence number.

``seq`` counts the batches of one (agent, boot) in this partition, from 0, without gaps. A number seen before is a
duplicate; a jump leaves a gap, whose batches are *missing* until they turn up. Memory is bounded three ways: streams
silent for a day of broker time are forgotten, so is the longest silent one beyond `MAX_STREAMS`, and a stream
remembers at most `MAX_GAPS` gaps (a batch from a forgotten gap is taken for a duplicate, and counted as one).
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from typing import NamedTuple

from msgspec import Struct

from streammon.wire import Identity

MAX_STREAMS = 4096
MAX_GAPS = 32
FORGET_AFTER_MS = 24 * 3_600_000


class Verdict(NamedTuple):
    """``missing``: by how much the number of missing batches changed; -1 when one turned up late."""

    duplicate: bool
    missing: int


class Stream(Struct, array_like=True):
    """One (agent, boot): the highest number seen, and the ranges below it that were not.

    ``name`` is a digest: senders may choose names of any length, and this is kept in every snapshot.
    """

    name: str
    last_ms: int
    highest: int = -1
    gaps: list[tuple[int, int]] = []

    def judge(self, seq: int) -> Verdict:
        """Record ``seq`` as seen."""
        if seq > self.highest:
            skipped = seq - self.highest - 1
            if skipped:
                self.gaps = [*self.gaps, (self.highest + 1, seq - 1)][-MAX_GAPS:]
            self.highest = seq
            return Verdict(duplicate=False, missing=skipped)
        for index, (low, high) in enumerate(self.gaps):
            if low <= seq <= high:
                rest = [gap for gap in ((low, seq - 1), (seq + 1, high)) if gap[0] <= gap[1]]
                self.gaps = [*self.gaps[:index], *rest, *self.gaps[index + 1 :]][-MAX_GAPS:]
                return Verdict(duplicate=False, missing=-1)
        return Verdict(duplicate=True, missing=0)


class Dedupe:
    """The streams of one partition."""

    def __init__(self, streams: Iterable[Stream] = ()) -> None:
        self._streams = {stream.name: stream for stream in streams}  # longest silent first

    def judge(self, identity: Identity, now_ms: int) -> Verdict:
        """Whether this batch was seen before; ``now_ms``: the broker's time of its record."""
        self._forget_silent(now_ms)
        name = blake2b(f"{identity.agent}\0{identity.boot}".encode(), digest_size=12).hexdigest()
        stream = self._streams.pop(name, None) or Stream(name, now_ms)
        if len(self._streams) >= MAX_STREAMS:
            del self._streams[next(iter(self._streams))]
        stream.last_ms = now_ms
        self._streams[name] = stream
        return stream.judge(identity.seq)

    def _forget_silent(self, now_ms: int) -> None:
        while self._streams:
            oldest = next(iter(self._streams.values()))
            if now_ms - oldest.last_ms <= FORGET_AFTER_MS:
                return
            del self._streams[oldest.name]

    def streams(self) -> list[Stream]:
        """All that has to be remembered, longest silent first."""
        return list(self._streams.values())
