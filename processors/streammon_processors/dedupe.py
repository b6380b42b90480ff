"""Which batches were counted before, and which never came: by agent, boot and sequence number.

``seq`` counts the batches of one (agent, boot) in this partition, from 0, without gaps. A number seen before is a
duplicate; a jump leaves a gap, whose batches are *missing* until they turn up.

Memory is bounded, because all of it is in every snapshot. Streams silent for a day of broker time are forgotten, and
the longest silent one beyond `MAX_STREAMS`. A stream remembers at most `MAX_GAPS` gaps, all of them together
`MAX_GAPS_TOGETHER`: beyond that the longest silent stream that has gaps forgets its oldest. A batch from a forgotten
gap is taken for a duplicate, and counted as one.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from typing import Annotated, NamedTuple

from msgspec import Meta, Struct

from streammon.wire import Identity

MAX_STREAMS = 4096
MAX_GAPS, MAX_GAPS_TOGETHER = 32, 512
"""Of one stream, and of all: a gap takes up to 42 bytes, and the snapshot of two topics has to fit into a record."""
FORGET_AFTER_MS = 24 * 3_600_000


class Verdict(NamedTuple):
    """``missing``: by how much the number of missing batches changed; -1 when one turned up late."""

    duplicate: bool
    missing: int


class Stream(Struct, array_like=True):
    """One (agent, boot): the highest number seen, and the ranges below it that were not.

    ``name`` is a digest: senders may choose names of any length, and this is kept in every snapshot.
    """

    name: Annotated[str, Meta(min_length=16, max_length=16)]
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
        self._streams: dict[str, Stream] = {}  # longest silent first
        self._with_gaps: dict[str, Stream] = {}  # those of them that have gaps, likewise
        self._gaps = 0
        for stream in streams:
            self._remember(stream)

    def judge(self, identity: Identity, now_ms: int) -> Verdict:
        """Whether this batch was seen before; ``now_ms``: the broker's time of its record."""
        self._forget_silent(now_ms)
        name = blake2b(f"{identity.agent}\0{identity.boot}".encode(), digest_size=8).hexdigest()
        stream = self._forget(name) or Stream(name, now_ms)
        if len(self._streams) >= MAX_STREAMS:
            self._forget(next(iter(self._streams)))
        stream.last_ms = now_ms
        verdict = stream.judge(identity.seq)
        self._remember(stream)
        return verdict

    def _forget_silent(self, now_ms: int) -> None:
        while self._streams:
            oldest = next(iter(self._streams.values()))
            if now_ms - oldest.last_ms <= FORGET_AFTER_MS:
                return
            self._forget(oldest.name)

    def _forget(self, name: str) -> Stream | None:
        stream = self._streams.pop(name, None)
        if stream is not None and stream.gaps:
            del self._with_gaps[name]
            self._gaps -= len(stream.gaps)
        return stream

    def _remember(self, stream: Stream) -> None:
        self._streams[stream.name] = stream
        if stream.gaps:
            self._with_gaps[stream.name] = stream
            self._gaps += len(stream.gaps)
            self._forget_gaps()

    def _forget_gaps(self) -> None:
        while self._gaps > MAX_GAPS_TOGETHER:
            stream = next(iter(self._with_gaps.values()))
            stream.gaps = stream.gaps[1:]
            self._gaps -= 1
            if not stream.gaps:
                del self._with_gaps[stream.name]

    def streams(self) -> list[Stream]:
        """All that has to be remembered, longest silent first."""
        return list(self._streams.values())
