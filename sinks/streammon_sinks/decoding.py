"""What sinks read: records of the result topics, decoded, with those that cannot be set apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from streammon.errors import Reason, Rejected
from streammon.events import SCHEMA
from streammon.results import RESULTS, Result
from streammon.tick import TICK
from streammon_sinks.delivery import Item, Refused

_DECODERS: dict[str, msgspec.json.Decoder[Any]] = {
    topic: msgspec.json.Decoder(result) for topic, result in RESULTS.items()
}


class Decoded(NamedTuple):
    """An item and the result in it; None for a tombstone."""

    item: Item
    result: Result | None


def decode_all(items: Sequence[Item]) -> tuple[list[Decoded], list[Refused]]:
    """The items that are results of their topic, in order, and those that are not. Ticks are for processors only."""
    decoded, refused = list[Decoded](), list[Refused]()
    for item in (item for item in items if item.record.value != TICK):
        try:
            decoded.append(Decoded(item, _decode(item)))
        except Rejected as error:
            refused.append(Refused(item, error.detail, error.reason))
    return decoded, refused


def _decode(item: Item) -> Result | None:
    if item.record.value is None:
        return None
    try:
        result: Result = _DECODERS[item.where.topic].decode(item.record.value)
    except msgspec.ValidationError as error:
        raise Rejected(Reason.INVALID_EVENT, f"not a result of {item.where.topic}: {error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Rejected(Reason.INVALID_JSON, str(error)) from None
    if result.schema != SCHEMA:
        raise Rejected(Reason.UNKNOWN_SCHEMA, f"schema is {result.schema}; this version reads {SCHEMA}")
    return result
