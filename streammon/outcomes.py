"""What became of predictions: each with the label that came for it, and how many wait for one.

The topic `outcomes` has two kinds of records, both of one model, in the order in which they became known. `Outcomes`
are pairs of a prediction and what its label says. A `Cohort` counts the predictions of one window, labelled or not, so
that everybody knows which share the labels speak for, and what can be said while there are none.
"""

from __future__ import annotations

from collections.abc import Iterator
from hashlib import blake2b
from math import isfinite
from typing import Literal

import msgspec
from msgspec import field

from streammon.results import OTHER, Completeness, Count, Result

OUTCOMES = "outcomes"
CONFIDENCE_BINS = 50
"""Of equal width over [0, 1]; 1 is in the last."""
MAX_TEXT_BYTES = 200
"""Of an event id, a version, a prediction, a label, or the value of a slice: in outcomes, and while it waits."""

Value = float | str | bool | None


def class_name(value: float | str | bool) -> str:
    """How a class is called, whether it came as number, truth or text: 1, 1.0, true and "1" are one class."""
    if isinstance(value, str):
        return _TRUTHS.get(value) or _number_name(value) or value
    return str(int(value)) if abs(value) < 1e15 and value == int(value) else repr(value)


def _number_name(text: str) -> str | None:
    """Of a text that is a number, how the number is called."""
    if not text[:1] or text[0] not in "+-.0123456789" or "_" in text or not text.isascii():
        return None  # Python takes 1_2 for 12, and all digits of Unicode; who names classes so does not
    try:
        number = float(text)
    except ValueError:
        return None
    return class_name(number) if isfinite(number) else None


_TRUTHS = {"true": "1", "True": "1", "false": "0", "False": "0"}


def bounded_text(text: str) -> str:
    """A text of at most `MAX_TEXT_BYTES`: of a longer one its beginning and a digest of it all.

    So equal texts stay equal, different ones different: a label can be compared with a prediction.
    """
    if len(text) * 4 <= MAX_TEXT_BYTES or len(encoded := text.encode(errors="surrogatepass")) <= MAX_TEXT_BYTES:
        return text
    digest = blake2b(encoded, digest_size=8).hexdigest()
    return f"{encoded[: MAX_TEXT_BYTES - 20].decode(errors='ignore')}…{digest}"


def class_of(value: Value) -> str:
    """The same of a prediction, which may be none: `OTHER`."""
    return OTHER if value is None else class_name(value)


def slice_value(value: float | str | bool) -> str:
    """The value of a slice as a text: ``true``, ``1``, or what it is."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return value if isinstance(value, str) else f"{value:g}"


class Outcomes(Result, kw_only=True, omit_defaults=True, tag_field="type", tag="outcomes"):
    """Pairs of one model, in columns of equal length; None where an event had no such field.

    A prediction may be here more than once: with its label, and with a score or rating that came in another event. What
    has been told before is None then, so nothing is counted twice.
    """

    service: str
    model: str
    partition: Count
    count: Count
    event_id: list[str]
    model_version: list[str | None]
    predicted_unix_s: list[float]
    labelled_unix_s: list[float]
    """The time of the label event."""
    prediction: list[Value]
    confidence: list[float | None]
    label: list[Value]
    score: list[float | None]
    rating: list[float | None]
    slices: dict[str, list[str | None]] = field(default_factory=dict)
    """Of the declared slices, the value that the prediction had."""


class Cohort(Result, kw_only=True, omit_defaults=True, tag_field="type", tag="cohort"):
    """The predictions of one model version made in one window ``[start, end)``.

    ``part`` and ``revision`` as in `streammon.results.Window`; counts add.
    """

    service: str
    model: str
    model_version: str | None = None
    slice: dict[str, str] = field(default_factory=dict)
    """Those with this value of a declared slice; empty: all."""
    part: Literal["main", "late"]
    revision: Count
    start_unix_s: float
    end_unix_s: float
    size_s: float
    partition: Count
    count: Count
    """Predictions; of these:"""
    with_id: Count
    """have an ``event_id``, so that a label can find them."""
    repeated: Count = 0
    """Had an ``event_id`` that was there before, and wait for no label of their own; not in ``with_id``."""
    confidence: dict[str, list[int]] = field(default_factory=dict)
    """By prediction (classes up to a cap, the rest under ``__other__``): counts in `CONFIDENCE_BINS` bins."""
    unmatched_labels: Count = 0
    """Labels that came in this window and found no prediction within the horizon; known afterwards, in a supplement
    with a ``count`` of 0."""
    relabelled: Count = 0
    """Labels, scores and ratings that came in this window for an id that had one before; likewise, in a supplement."""
    forgotten: Count = 0
    """Predictions that were waited for no longer from this window on, for want of room; likewise."""
    completeness: Completeness | None = None


Record = Outcomes | Cohort
_DECODER = msgspec.json.Decoder(Record)


def decode(value: bytes) -> Record:
    """A record of the topic `OUTCOMES`. Raises `msgspec.DecodeError`."""
    record: Record = _DECODER.decode(value)
    return record


def outcome_time(value: bytes) -> float | None:
    """The newest time that a record of the topic is about."""
    return max((time for time, _ in elements(value)), default=None)


def elements(value: bytes) -> Iterator[tuple[float, bytes]]:
    """What a record of the topic consists of, each with the time it is about: pairs one by one, and what is counted.

    How pairs are packed together, and which number a supplement has, depends on what is read first, predictions or
    labels; these do not.
    """
    try:
        record = decode(value)
    except msgspec.DecodeError:
        return
    if isinstance(record, Cohort):
        record.revision = min(record.revision, 1)
        yield record.start_unix_s, msgspec.json.encode(record)
    else:
        yield from _pairs(record)


def _pairs(record: Outcomes) -> Iterator[tuple[float, bytes]]:
    names = [name for name in record.__struct_fields__ if isinstance(getattr(record, name), list)]
    constant = (record.service, record.model, record.partition)
    for row in zip(*(getattr(record, name) for name in names), *record.slices.values(), strict=True):
        time: float = row[names.index("labelled_unix_s")]
        yield time, msgspec.json.encode([*constant, names, list(record.slices), row])
