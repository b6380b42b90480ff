"""The vocabulary of the wire: batches, their rows, identities and faults, and the limits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, NamedTuple, Protocol, TypeAlias

from streammon.errors import Reason
from streammon.events import SCHEMA
from streammon.lazy_numpy import NDArray, np
from streammon.topics import MAX_RECORD_BYTES

MAX_EVENTS = 100_000
"""The most events one record may hold."""
MAX_ENTRIES = 1_000_000
"""The most entries of maps and lists the events of one record may have together; a constant counts once an event."""
MAX_SPLIT_BYTES = 64 * MAX_RECORD_BYTES
"""The most bytes one record may become when it is split by key, because every key gets the constants."""
MAX_TIME_UNIX_S = 1e11
"""Times from here on (the year 5138) are refused: a number of milliseconds, most likely."""
SCHEMA_HEADER = ("streammon-schema", str(SCHEMA).encode())
"""On every record that streammon writes."""

Floats: TypeAlias = "NDArray[np.float64]"
Codes: TypeAlias = "NDArray[np.int64]"


class Coded(NamedTuple):
    """A column of few distinct values: ``dictionary[codes[i]]``."""

    dictionary: list[Any]
    codes: Codes


class Density(StrEnum):
    """How tightly events are packed into a record."""

    OBJECT = "object"
    ARRAY = "array"
    COLUMNS = "columns"
    PACKED = "packed"


class Identity(NamedTuple):
    """Which batch of which life of which agent this is."""

    agent: str
    boot: str
    seq: int


class Fault(NamedTuple):
    """One event refused for its values."""

    row: int
    reason: Reason
    detail: str


@dataclass(frozen=True, slots=True)
class Batch:
    """Events that were sent together. ``dropped``: events the agent gave up on since its last batch.

    ``sparse``: the numbers of this stream may skip, because it is a share of a batch that was split by key.
    """

    rows: Rows
    identity: Identity | None = None
    dropped: int = 0
    sparse: bool = False


class Rows(Protocol):
    """The events of a batch, by column."""

    def __len__(self) -> int: ...

    def floats(self, name: str) -> Floats | None:
        """A numeric field of every row, NaN where absent; None if no row has it."""
        ...

    def coded(self, name: str) -> Coded:
        """A field as few values: None where absent, a mapping as its sorted items.

        A value may be listed twice, or for no row: senders write the dictionaries.
        """
        ...

    def present(self, name: str) -> NDArray[np.bool_]:
        """Which rows have a text or object field."""
        ...

    def objects(self, name: str) -> Sequence[Any] | None:
        """Any field of every row as Python values, None where absent; None if no row has it."""
        ...

    def value(self, name: str, index: int) -> Any:
        """Any field of one row as a Python value, None where absent."""
        ...

    def event(self, index: int) -> dict[str, Any]:
        """One event as it would be in an object, without ``schema``, ``type`` and identity."""
        ...

    def faults(self) -> list[Fault]:
        """The events to refuse for their values, at most one fault each, in order."""
        ...
