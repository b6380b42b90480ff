"""What a service says about a call, made fit for the wire: a bad field costs itself, not its event.

`admit` never raises, whatever it is given. Numpy scalars become plain numbers. A value of the wrong type,
not finite, negative where that is impossible, or not valid Unicode is left out and named; so is a field
that the event type lacks. Only without one of its required fields is the whole event refused.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import msgspec

from streammon.events import EventType
from streammon.wire import MAX_TIME_UNIX_S, FieldSpec, codec_of

_PLAIN = frozenset({float, int, str, bool})


class Admitted(NamedTuple):
    """The event as it may travel, None if it may not, and the names of the fields left out."""

    event: dict[str, Any] | None
    refused: list[str]


def admit(event_type: EventType, fields: Mapping[str, Any]) -> Admitted:
    """The fields of one event that are fit for the wire; None is absent."""
    present = {name: value for name, value in fields.items() if value is not None}
    return Admitted(present, []) if _all_fit(event_type, present) else _piecewise(event_type, present)


def _all_fit(event_type: EventType, event: dict[str, Any]) -> bool:
    """The usual case, decided many times faster than by looking into each field."""
    codec = codec_of(event_type)
    try:
        msgspec.convert(event, codec.struct)
        return all(_fits(codec.fields[name], value) for name, value in event.items())
    except Exception:  # anything may hide in a value, even a property that raises
        return False


def _piecewise(event_type: EventType, fields: dict[str, Any]) -> Admitted:
    specs = codec_of(event_type).fields
    event: dict[str, Any] = {}
    refused: list[str] = []
    for name, value in fields.items():
        try:
            event[name] = _admitted(specs[name], value, refused)
        except Exception:  # as above; or there is no such field
            refused.append(name)
    whole = all(name in event for name, spec in specs.items() if spec.required)
    return Admitted(event if whole else None, refused)


def _admitted(spec: FieldSpec, value: Any, refused: list[str]) -> Any:
    """The value in the field's own type; of a mapping, what is fit: a missing feature is often a NaN."""
    plain = value if type(value) in _PLAIN else msgspec.to_builtins(value, enc_hook=_scalar)
    typed = msgspec.convert(plain, spec.type)
    if isinstance(typed, dict):
        refused.extend(f"{spec.name}.{name}" for name, entry in typed.items() if not _is_sound(entry))
        typed = {name: entry for name, entry in typed.items() if _is_sound(entry)}
    if not _fits(spec, typed):
        raise ValueError(spec.name)
    return typed


def _scalar(value: Any) -> Any:
    """The Python value of a numpy (or torch) scalar; anything else has no ``item``."""
    return value.item()


def _fits(spec: FieldSpec, value: Any) -> bool:
    """What the type does not say; raises for a lone surrogate, and for what is not plain."""
    if isinstance(value, dict):
        return all(_is_sound(entry) and _is_sound(name) for name, entry in value.items())
    if spec.name == "time_unix_s":
        return bool(0 <= value < MAX_TIME_UNIX_S)
    return _is_sound(value) and not (spec.non_negative and value < 0)


def _is_sound(value: Any) -> bool:
    if type(value) is str:
        return value.isascii() or bool(value.encode())
    return value is None or bool(abs(value) < math.inf)
