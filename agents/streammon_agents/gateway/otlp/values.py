"""Attributes and other values of OTLP as Python values, bounded."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Iterator
from enum import StrEnum
from itertools import islice
from typing import Any

from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource

MAX_ATTRIBUTES = 128
"""Attributes of one thing that are looked at; the SDKs send no more unless they are told to."""
MAX_TEXT = 256
"""Characters of a name, such as that of a service or of a model."""
MAX_DEPTH = 8
"""How deep a value is followed; what lies deeper is `CUT`."""
CUT = "…"
UNKNOWN_SERVICE = "unknown_service"
"""The SDKs' own name for a service without one."""
NS = 10**9

SCALARS = frozenset({"string_value", "int_value", "double_value", "bool_value"})

Scalar = str | int | float | bool


class Refusal(StrEnum):
    """Why a request, or an item of one, was not taken. The values are labels: add, never rename."""

    GARBAGE = "garbage"  # neither the protobuf nor the JSON that it claims to be
    TOO_LARGE = "too_large"  # over the bound of a request, or of its items
    BAD_TIME = "bad_time"  # no time, or an end before the start
    NON_FINITE = "non_finite"  # NaN or an infinity
    NO_VALUE = "no_value"  # a point that holds no number
    UNSUPPORTED = "unsupported"  # changes that may fall, and histograms without a sum or a temporality
    INCONSISTENT = "inconsistent"  # a histogram that contradicts itself, or what it was before
    OUT_OF_ORDER = "out_of_order"  # a cumulative point older than one that was taken
    TOO_MANY_LABELS = "too_many_labels"  # on one point
    TOO_MANY_SERIES = "too_many_series"  # at one time
    TOO_MANY_CONNECTIONS = "too_many_connections"  # one that was closed at once


def scalar(value: AnyValue) -> Scalar | None:
    """A text, a number or a truth value; None for anything else."""
    kind = value.WhichOneof("value")
    return getattr(value, kind) if kind in SCALARS else None


def text(value: Scalar | None) -> str | None:
    """A scalar as a bounded name; None for nothing and for the empty text."""
    return None if value is None or value == "" else str(value)[:MAX_TEXT]


def amount(value: Scalar | None) -> float | None:
    """A number that is finite and not negative, else None."""
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf:
        return value
    return None


def scalars(attributes: Iterable[KeyValue]) -> dict[str, Scalar]:
    """The attributes that are scalars, by name; the last of several with one name counts."""
    found = ((each.key, scalar(each.value)) for each in islice(attributes, MAX_ATTRIBUTES))
    return {name: value for name, value in found if value is not None}


class Budget:
    """How much of a value may still be told: entries of lists and maps, and bytes of texts."""

    def __init__(self, entries: int, characters: int) -> None:
        self.entries, self.characters = entries, characters

    def of(self, items: Iterable[Any]) -> Iterator[Any]:
        """As many of them as there is room for."""
        for item in items:
            if self.entries <= 0:
                return
            self.entries -= 1
            yield item

    def told(self, text: str) -> str:
        """As much of a text as there is room for."""
        cut = text if len(text) <= self.characters else text[: self.characters] + CUT
        self.characters = max(0, self.characters - len(text))
        return cut


def plain(value: AnyValue, budget: Budget, depth: int = 0) -> Any:
    """Any value as JSON has it. Bytes become base64; what is not finite becomes a text."""
    kind = value.WhichOneof("value")
    if kind in (None, "string_value_strindex"):
        return None
    found = getattr(value, kind)
    if kind == "array_value":
        return CUT if depth >= MAX_DEPTH else [plain(each, budget, depth + 1) for each in budget.of(found.values)]
    if kind == "kvlist_value":
        return CUT if depth >= MAX_DEPTH else fields(found.values, budget, depth + 1)
    return _simple(found, budget)


def _simple(found: Any, budget: Budget) -> Any:
    if isinstance(found, bytes):
        return budget.told(base64.b64encode(found).decode())
    if isinstance(found, float) and not math.isfinite(found):
        return str(found)
    return budget.told(found) if isinstance(found, str) else found


def fields(attributes: Iterable[KeyValue], budget: Budget, depth: int = 0) -> dict[str, Any]:
    """Attributes of any values, by name; nothing is left out for being empty."""
    return {budget.told(each.key): plain(each.value, budget, depth) for each in budget.of(attributes)}


def hexadecimal(identifier: bytes, size: int) -> str | None:
    """The id of a trace or span; None for one that is invalid by the specification."""
    return identifier.hex() if len(identifier) == size and identifier.strip(b"\0") else None


class Origin:
    """Who sends: a service, on a node, as one of its instances."""

    def __init__(self, resource: Resource, host: str) -> None:
        found = scalars(resource.attributes)
        self.service = text(found.get("service.name")) or UNKNOWN_SERVICE
        self.host = text(found.get("k8s.node.name")) or host
        self.instance = text(found.get("service.instance.id")) or text(found.get("host.name"))
