"""Records of one partition, side by side: who needs one thing of every record, such as its value, need not touch it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from streammon.broker import Headers, Record

Ints = NDArray[np.int64]


class OneRecord(NamedTuple):
    """`streammon.broker.Record`."""

    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Headers


class Records(Sequence[Record]):
    """A sequence of `streammon.broker.Record`, kept as columns of equal length. An element is made when asked for.

    ``offsets`` and ``timestamps`` (milliseconds) have shape (n,).
    """

    def __init__(
        self,
        partition: int,
        offsets: Ints,
        timestamps: Ints,
        keys: list[bytes | None],
        values: list[bytes | None],
        headers: list[Headers],
    ) -> None:
        self.partition = partition
        self.offsets = offsets
        self.timestamps = timestamps
        self.keys = keys
        self.values = values
        self.headers = headers

    @classmethod
    def of(cls, records: Sequence[Record]) -> Records:
        """Any records of one partition as columns; those that are so already, as they are."""
        if isinstance(records, Records):
            return records
        return cls(
            records[0].partition if records else 0,
            np.array([record.offset for record in records], dtype=np.int64),
            np.array([record.timestamp for record in records], dtype=np.int64),
            [record.key for record in records],
            [record.value for record in records],
            [record.headers for record in records],
        )

    @classmethod
    def joined(cls, parts: Sequence[Records]) -> Records:
        """Records of one partition that follow each other."""
        if len(parts) == 1:
            return parts[0]
        return cls(
            parts[0].partition,
            np.concatenate([part.offsets for part in parts]),
            np.concatenate([part.timestamps for part in parts]),
            list(chain.from_iterable(part.keys for part in parts)),
            list(chain.from_iterable(part.values for part in parts)),
            list(chain.from_iterable(part.headers for part in parts)),
        )

    def __len__(self) -> int:
        return len(self.values)

    @overload
    def __getitem__(self, index: int) -> OneRecord: ...
    @overload
    def __getitem__(self, index: slice) -> Records: ...
    def __getitem__(self, index: int | slice) -> OneRecord | Records:
        rest: Any = (self.keys[index], self.values[index], self.headers[index])
        if isinstance(index, slice):
            return Records(self.partition, self.offsets[index], self.timestamps[index], *rest)
        return OneRecord(self.partition, int(self.offsets[index]), int(self.timestamps[index]), *rest)
