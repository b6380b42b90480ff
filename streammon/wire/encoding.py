"""Events to bytes, in any density."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from types import NoneType
from typing import Any

import msgspec
import numpy as np

from streammon.events import SCHEMA, EventType
from streammon.wire.batch import Codes, Density, Identity
from streammon.wire.columns import FORMATS
from streammon.wire.values import all_finite, coded


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
        dictionary, codes = coded(values)
        return {"dictionary": dictionary, "index": _pack_index(codes, len(dictionary))}
    return _pack_shared(values)


def _pack_shared(values: list[Any]) -> Any:
    """Maps and lists that rows share are written once, as they came: a split must not write them for every row."""
    shared = {id(value): value for value in values}
    if not set(map(type, shared.values())) <= {dict, list, NoneType} or len(shared) == len(values):
        return values
    numbers = {identity: number for number, identity in enumerate(shared)}
    codes = np.array([numbers[id(value)] for value in values])
    return {"dictionary": list(shared.values()), "index": _pack_index(codes, len(shared))}


def _pack_numbers(values: list[float], *, integers: bool) -> Any:
    if not integers:
        return {"f8": np.array(values, dtype="<f8").tobytes()}
    low, high = min(values), max(values)
    if -(2**31) <= low <= high < 2**31:
        return {"i4": np.array(values, dtype="<i4").tobytes()}
    if -(2**63) <= low <= high < 2**63:
        return {"i8": np.array(values, dtype="<i8").tobytes()}
    return values


def _pack_index(codes: Codes, size: int) -> dict[str, bytes]:
    code = "u1" if size <= 2**8 else "u2" if size <= 2**16 else "i4"
    return {code: codes.astype(FORMATS[code]).tobytes()}


def _dumps(value: Any) -> bytes:
    """JSON; with Python's NaN where a number is not finite, so that the reader can say which event it was."""
    encoded = msgspec.json.encode(value)
    if b"null" in encoded and not all_finite(value):
        return json.dumps(value, separators=(",", ":"), default=_base64).encode()
    return encoded


def _base64(value: Any) -> Any:
    return msgspec.to_builtins(value)
