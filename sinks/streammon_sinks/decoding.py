"""What sinks read: records of the result topics, decoded, with those that cannot be set apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from streammon.errors import Rejected
from streammon.results import RESULTS, Result
from streammon.tick import TICK
from streammon.wire import read_message
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
    topic = item.where.topic
    result: Result = read_message(_DECODERS[topic].decode, item.record.value, f"not a result of {topic}: ")
    return result
