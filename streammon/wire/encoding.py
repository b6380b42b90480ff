"""Events to bytes, in any density."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping, Sequence
from types import NoneType
from typing import Any

import msgspec

from streammon.events import SCHEMA, EventType
from streammon.wire.batch import Density, Identity
from streammon.wire.values import all_finite, numbered


def encode(
    event_type: EventType,
    events: Sequence[Mapping[str, Any]],
    density: Density = Density.PACKED,
    identity: Identity | None = None,
    dropped: int = 0,
    *,
    sparse: bool = False,
) -> list[bytes]:
    """Record values for ``events`` (wire names, without ``schema`` and ``type``).

    OBJECT gives one value per event, the other densities exactly one. An identity belongs to one value, so several
    objects cannot carry it. ``dropped`` and ``sparse`` need an envelope: columns or packed.
    """
    head: dict[str, Any] = {"schema": SCHEMA, "type": event_type.value}
    if identity is not None:
        head |= identity._asdict()
    if density is Density.OBJECT:
        assert identity is None or len(events) <= 1, "one identity, one value"
        return [_dumps({**head, **event}) for event in events]
    if density is Density.ARRAY:
        return [_dumps([{**head, **event} for event in events])]
    if dropped:
        head["dropped"] = dropped
    if sparse:
        head["sparse"] = True
    constant, columns = _columns(events, _pack if density is Density.PACKED else list)
    return [_dumps({**head, "count": len(events), "constant": constant, "columns": columns})]


def _columns(
    events: Sequence[Mapping[str, Any]], pack: Callable[[list[Any]], Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    names = dict.fromkeys(name for event in events for name in event)
    constant: dict[str, Any] = {}
    columns: dict[str, Any] = {}
    for name in names:
        values = [event.get(name) for event in events]
        if _is_constant(values):
            constant[name] = values[0]
        else:
            columns[name] = pack(values)
    return constant, columns


def _is_constant(values: list[Any]) -> bool:
    first = values[0]
    if isinstance(first, str):
        return values.count(first) == len(values)
    return isinstance(first, dict | list) and all(value is first for value in values)


def _pack(values: list[Any]) -> Any:
    kinds = set(map(type, values))
    if kinds <= {float, int}:
        return _pack_numbers(values, integers=kinds == {int})
    if kinds <= {str, type(None)}:
        codes = numbered(values)
        return {"dictionary": list(codes), "index": _pack_index([codes[value] for value in values], len(codes))}
    return _pack_shared(values)


def _pack_shared(values: list[Any]) -> Any:
    """Maps and lists that rows share are written once, as they came: a split must not write them for every row."""
    shared = {id(value): value for value in values}
    if not set(map(type, shared.values())) <= {dict, list, NoneType} or len(shared) == len(values):
        return values
    numbers = {identity: number for number, identity in enumerate(shared)}
    codes = [numbers[id(value)] for value in values]
    return {"dictionary": list(shared.values()), "index": _pack_index(codes, len(shared))}


def _pack_numbers(values: list[float], *, integers: bool) -> Any:
    if not integers:
        return _packed("f8", values)
    low, high = min(values), max(values)
    if -(2**31) <= low <= high < 2**31:
        return _packed("i4", values)
    if -(2**63) <= low <= high < 2**63:
        return _packed("i8", values)
    return values


def _pack_index(codes: Sequence[int], size: int) -> dict[str, bytes]:
    return _packed("u1" if size <= 2**8 else "u2" if size <= 2**16 else "i4", codes)


_LETTERS = {"f8": "d", "i8": "q", "i4": "i", "u2": "H", "u1": "B"}
"""What `struct` calls the formats. numpy would pack no faster, and agents do without it."""


def _packed(code: str, numbers: Sequence[float]) -> dict[str, bytes]:
    return {code: struct.pack(f"<{len(numbers)}{_LETTERS[code]}", *numbers)}


def _dumps(value: Any) -> bytes:
    """JSON; with Python's NaN where a number is not finite, so that the reader can say which event it was."""
    encoded = msgspec.json.encode(value)
    if b"null" in encoded and not all_finite(value):
        return json.dumps(value, separators=(",", ":"), default=_base64).encode()
    return encoded


def _base64(value: Any) -> Any:
    return msgspec.to_builtins(value)
