"""What is remembered of one event id, and which label goes with which prediction. Pure.

The rule
--------
All times here are the broker's times of the records, so nobody's clock matters; *H* is the horizon.

* A prediction is *repeated* if one with its id came up to H before it, and that was not repeated. Likewise a label, a
  score, a rating, each kind by itself.
* What is not repeated is matched: the earliest prediction with the earliest label of a kind that came up to H before
  or after it and is still free.

Predictions that are not repeated are more than H apart, and so are labels: hence each has at most one neighbour within
H on either side, the neighbours of an id form chains in time, and matching the earliest first gives the same pairs
whichever topic is read first.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Mapping
from math import isnan
from typing import NamedTuple

import msgspec
from msgspec import Struct

from streammon.outcomes import Value

LABEL, SCORE, RATING = KINDS = (1, 2, 4)
ALONE, ENTRY = b"P", b"E"
HEAD = struct.Struct("<qddd")
"""Of a prediction that is alone: when it came (ms), its time, its confidence, and its value if that is a number."""


class Prediction(Struct, array_like=True):
    """A prediction that is waited for."""

    came_ms: int
    time_unix_s: float
    value: Value
    confidence: float | None
    version: str | None
    slices: Mapping[str, str]
    taken: int = 0
    """The kinds of which it has one."""


class Label(Struct, array_like=True):
    """A label event."""

    came_ms: int
    time_unix_s: float
    label: Value
    score: float | None
    rating: float | None
    window: float
    """Where it is counted while it has found nothing: the start of its window."""
    kinds: int
    """Those it has, and no label had before it."""
    free: int
    """Those of them that wait for a prediction."""
    matched: bool = False


class Entry(Struct, array_like=True):
    """All that is known of one id; nearly always one prediction."""

    predictions: list[Prediction] = []
    labels: list[Label] = []


class Match(NamedTuple):
    """A pair, and of which kinds."""

    prediction: Prediction
    label: Label
    kinds: int


class Tail(Struct, array_like=True):
    """What many predictions have in common."""

    value: Value
    """None if it is a number, or there is none."""
    version: str | None
    slices: dict[str, str]


def add_prediction(entry: Entry, new: Prediction, horizon_ms: int) -> list[Match] | None:
    """Add a prediction; what it is matched with. None: it is repeated."""
    if any(new.came_ms - each.came_ms <= horizon_ms for each in entry.predictions):
        return None
    entry.predictions.append(new)
    matches = []
    for label in entry.labels:
        kinds = label.free & ~new.taken if _near(new, label, horizon_ms) else 0
        if kinds:
            matches.append(_match(new, label, kinds))
    return matches


def add_label(entry: Entry, new: Label, horizon_ms: int) -> tuple[list[Match], int]:
    """Add a label event that has the kinds `Label.kinds`; what it is matched with, and which of them are repeated."""
    before = 0
    for label in entry.labels:
        if new.came_ms - label.came_ms <= horizon_ms:
            before |= label.kinds
    repeated = new.kinds & before
    new.kinds &= ~before
    new.free = new.kinds
    matches = []
    for prediction in entry.predictions:
        kinds = new.free & ~prediction.taken if _near(prediction, new, horizon_ms) else 0
        if kinds:
            matches.append(_match(prediction, new, kinds))
    if new.kinds:
        entry.labels.append(new)
    return matches, repeated


def _near(prediction: Prediction, label: Label, horizon_ms: int) -> bool:
    return abs(prediction.came_ms - label.came_ms) <= horizon_ms


def _match(prediction: Prediction, label: Label, kinds: int) -> Match:
    prediction.taken |= kinds
    label.free &= ~kinds
    return Match(prediction, label, kinds)


def pruned(entry: Entry, heard_ms: int, horizon_ms: int) -> Entry:
    """Without what nothing can be matched or compared with any more: all that is still to come, on either topic,
    came after ``heard_ms``."""
    oldest = heard_ms - horizon_ms
    return Entry(
        [each for each in entry.predictions if each.came_ms >= oldest],
        [_slim(each) for each in entry.labels if each.came_ms >= oldest],
    )


def _slim(label: Label) -> Label:
    """Of a label that waits for nothing, only its kinds and time matter."""
    return label if label.free else msgspec.structs.replace(label, label=None, score=None, rating=None)


# --- bytes ----------------------------------------------------------------------------------------------------------

_TAIL, _ENTRY = msgspec.msgpack.Decoder(Tail), msgspec.msgpack.Decoder(Entry)


def pack(entry: Entry) -> bytes:
    return ENTRY + msgspec.msgpack.encode(entry)


def pack_tail(tail: Tail) -> bytes:
    return msgspec.msgpack.encode(tail)


def unpack(value: bytes | None) -> Entry:
    """What `pack` made, or the bytes of a prediction that is alone: `ALONE`, its head, its tail."""
    if value is None:
        return Entry()
    if value[:1] == ENTRY:
        return _ENTRY.decode(memoryview(value)[1:])
    came_ms, time_unix_s, confidence, number = HEAD.unpack_from(value, 1)
    tail = _TAIL.decode(memoryview(value)[1 + HEAD.size :])
    prediction = Prediction(
        came_ms,
        time_unix_s,
        tail.value if isnan(number) else number,
        None if isnan(confidence) else confidence,
        tail.version,
        tail.slices,
    )
    return Entry([prediction])


def rows(matches: Iterable[Match]) -> Iterator[tuple[Value, float | None, float | None]]:
    """Of each match, label, score and rating; None what it is not about."""
    for _, label, kinds in matches:
        yield (
            label.label if kinds & LABEL else None,
            label.score if kinds & SCORE else None,
            label.rating if kinds & RATING else None,
        )
