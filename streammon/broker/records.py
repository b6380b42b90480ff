"""Records of one partition, side by side: who needs one thing of every record, such as its value, need not touch it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import repeat
from typing import Any, NamedTuple, TypeAlias, overload

from streammon.broker import Headers, Record
from streammon.lazy_numpy import NDArray, np

Ints: TypeAlias = "NDArray[np.int64]"


class StoredRecord(NamedTuple):
    """`streammon.broker.Record`."""

    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Headers


class Records(Sequence[Record]):
    """A sequence of `streammon.broker.Record`, kept as columns of equal length. An element is made when asked for.

    ``offsets``, ``timestamps`` (milliseconds) and ``sizes`` (bytes of the values) have shape (n,).
    """

    def __init__(
        self,
        partition: int,
        offsets: Ints,
        timestamps: Ints,
        sizes: Ints,
        keys: list[bytes | None],
        values: list[bytes | None],
        headers: list[Headers],
    ) -> None:
        self.partition = partition
        self.offsets = offsets
        self.timestamps = timestamps
        self.sizes = sizes
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
            np.array([len(record.value or b"") for record in records], dtype=np.int64),
            [record.key for record in records],
            [record.value for record in records],
            [record.headers for record in records],
        )

    def __len__(self) -> int:
        return len(self.values)

    def __iter__(self) -> Iterator[Record]:
        columns = (self.offsets.tolist(), self.timestamps.tolist(), self.keys, self.values, self.headers)
        return map(StoredRecord, repeat(self.partition), *columns)

    @overload
    def __getitem__(self, index: int) -> StoredRecord: ...
    @overload
    def __getitem__(self, index: slice) -> Records: ...
    def __getitem__(self, index: int | slice) -> StoredRecord | Records:
        if isinstance(index, slice) and index.indices(len(self)) == (0, len(self), 1):
            return self  # most slices are of all, and a copy touches every value
        rest: Any = (self.keys[index], self.values[index], self.headers[index])
        if isinstance(index, slice):
            arrays = (self.offsets[index], self.timestamps[index], self.sizes[index])
            return Records(self.partition, *arrays, *rest)
        return StoredRecord(self.partition, int(self.offsets[index]), int(self.timestamps[index]), *rest)
