"""The records of the join's journal: what came to be known of some keys, packed in columns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import NamedTuple

import msgspec
import numpy as np
from msgspec import Struct

from streammon_processors.chunk import Ints
from streammon_processors.join.entries import ALONE, HEAD
from streammon_processors.join.models import KEY_BYTES
from streammon_processors.journal import Link

MAX_ENTRIES = 4096
"""Of one record; an entry is seldom larger than 200 bytes."""
LARGE_BYTES = 512 * 1024
"""A record is closed when it is about as large as this."""


class Page(Struct, array_like=True):
    """One record. Applied in order: what it says of a key is all that is known of it."""

    before: Link
    came_s: float
    generation: int
    keys: bytes = b""
    heads: bytes = b""
    tails: list[bytes] = []
    codes: bytes = b""
    """Of predictions that are alone: their keys, heads, and which of the tails each has (u2)."""
    entries: list[tuple[bytes, bytes]] = []
    """Everything else."""

    def known(self) -> dict[bytes, bytes]:
        """What it says, by key."""
        codes = np.frombuffer(self.codes, dtype="<u2").tolist()
        alone = Alone(split(self.keys, KEY_BYTES), self.heads, self.tails, np.array(codes, dtype=np.int64))
        return dict(zip(alone.keys, alone.values(), strict=True)) | dict(self.entries)


class Alone(NamedTuple):
    """Predictions of which nothing else is known: their keys, heads, and which of the tails each has."""

    keys: Sequence[bytes]
    heads: bytes
    tails: Sequence[bytes]
    codes: Ints

    def values(self) -> list[bytes]:
        """What is known, as bytes: see `streammon_processors.join.entries`."""
        size, heads, tails = HEAD.size, self.heads, [*self.tails]
        codes = self.codes.tolist()
        return [
            ALONE + heads[at : at + size] + tails[code]
            for at, code in zip(range(0, size * len(codes), size), codes, strict=True)
        ]

    def parts(self) -> Iterator[Alone]:
        """As many as fit into one record."""
        sizes = np.array([len(tail) for tail in self.tails], dtype=np.int64)
        start = 0
        while start < len(self.keys):
            end = min(start + MAX_ENTRIES, len(self.keys))
            used, codes = np.unique(self.codes[start:end], return_inverse=True)
            if sizes[used].sum() > LARGE_BYTES and end - start > 1:
                end = start + max(1, int(LARGE_BYTES // sizes.max()))
                used, codes = np.unique(self.codes[start:end], return_inverse=True)
            size = HEAD.size
            tails = [self.tails[code] for code in used.tolist()]
            yield Alone(self.keys[start:end], self.heads[start * size : end * size], tails, codes)
            start = end


def pages(
    place: Link, came_s: float, generation: int, alone: Alone | None, entries: Mapping[bytes, bytes]
) -> Iterator[tuple[Link, bytes]]:
    """The records that say all this, each with the place after it."""
    for part in alone.parts() if alone is not None else ():
        codes = part.codes.astype("<u2").tobytes()
        page = Page(place, came_s, generation, b"".join(part.keys), part.heads, [*part.tails], codes)
        value = msgspec.msgpack.encode(page)
        place = place.next(value)
        yield place, value
    left = iter(entries.items())
    while some := list(_some(left)):
        value = msgspec.msgpack.encode(Page(place, came_s, generation, entries=some))
        place = place.next(value)
        yield place, value


def _some(left: Iterator[tuple[bytes, bytes]]) -> Iterator[tuple[bytes, bytes]]:
    size = 0
    for entry in islice(left, MAX_ENTRIES):
        yield entry
        size += len(entry[1])
        if size > LARGE_BYTES:
            return


def split(packed: bytes, size: int) -> list[bytes]:
    return [packed[at : at + size] for at in range(0, len(packed), size)]
