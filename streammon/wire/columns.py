"""One column of a batch: how it is read from JSON or from packed bytes, and what is checked about it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from operator import attrgetter
from types import GenericAlias
from typing import Any, get_args

import msgspec
from msgspec import Raw, Struct

from streammon.errors import Reason, Rejected
from streammon.events import Event, Histogram, NonNegative
from streammon.lazy_numpy import NDArray, np
from streammon.wire.batch import MAX_TIME_UNIX_S, Coded, Fault, Floats
from streammon.wire.values import coded

FORMATS = ("f8", "f4", "i8", "i4", "u2", "u1")
"""The packed number formats, little endian: kind and bytes."""


class _Packed(Struct, forbid_unknown_fields=True, gc=False):
    """A packed column; exactly one of the number formats, or a dictionary with its index."""

    f8: bytes | None = None
    f4: bytes | None = None
    i8: bytes | None = None
    i4: bytes | None = None
    u2: bytes | None = None
    u1: bytes | None = None
    dictionary: list[Any] | None = None
    index: _Packed | None = None

    def given(self) -> list[str]:
        """The names of what is here."""
        values = _PACKED_VALUES(self)
        return [name for name, value in zip(_PACKED_NAMES, values, strict=True) if value is not None]

    def numbers(self, name: str, count: int) -> NDArray[Any]:
        """The ``count`` numbers packed here."""
        code, *more = self.given() or ["nothing"]
        if more or code not in FORMATS:
            got = ", ".join((code, *more))
            raise Rejected(Reason.BAD_PACKING, f"column {name}: expected one of {', '.join(FORMATS)}, got {got}")
        data: bytes = getattr(self, code)
        if len(data) != count * int(code[1]):
            raise Rejected(
                Reason.UNEQUAL_LENGTHS,
                f"column {name}: {len(data)} bytes of {code} are not {count} values",
            )
        return np.frombuffer(data, dtype=f"<{code}")


_PACKED_NAMES = _Packed.__struct_fields__
_PACKED_VALUES = attrgetter(*_PACKED_NAMES)


class _Reader:
    """Reads values of one type from JSON, or from Python values where the record held NaN (see `NotQuiteJson`)."""

    def __init__(self, of: Any) -> None:
        self._type = of
        self._json = msgspec.json.Decoder(of)

    def __call__(self, raw: Any) -> Any:
        return self._json.decode(raw) if isinstance(raw, Raw) else msgspec.convert(raw, self._type)


@dataclass(frozen=True)
class FieldSpec:
    """One field of an event: how its columns are read."""

    name: str
    type: Any
    required: bool
    numeric: bool
    non_negative: bool
    mixed: bool  # not a number, but numbers may be in it
    histograms: bool  # a map of them
    _column: _Reader = field(repr=False)
    _list: _Reader = field(repr=False)
    _value: _Reader = field(repr=False)

    def constant(self, raw: Any, count: int, faults: list[Fault]) -> Floats | Coded:
        """The column of ``count`` equal values; a value to refuse is added to ``faults``, for each of them."""
        value = self._read(self._value, raw)
        if self.required and value is None:
            raise Rejected(Reason.INVALID_EVENT, f"constant {self.name} is null but required")
        if self.numeric:
            column = np.full(count, math.nan if value is None else value, dtype=np.float64)
            if value is not None:
                self._refuse(~np.isfinite(column), faults)
            return column
        return Coded([value], np.zeros(count, dtype=np.int64))

    def column(self, raw: Any, count: int, faults: list[Fault]) -> Floats | Coded:
        """The column, checked for its form; values to refuse are added to ``faults``."""
        values = self._read(self._column, raw)
        if not isinstance(values, _Packed):
            return self._listed(values, count, faults)
        if values.dictionary is not None:
            return self._dictionary(values, count, faults)
        numbers = values.numbers(self.name, count)
        if not self.numeric:
            return self._listed(self._read(self._list, numbers.tolist()), count, faults)
        column = numbers.astype(np.float64)
        self._refuse(~np.isfinite(column), faults)
        return column

    def _listed(self, values: list[Any], count: int, faults: list[Fault]) -> Floats | Coded:
        if len(values) != count:
            raise Rejected(Reason.UNEQUAL_LENGTHS, f"column {self.name} has {len(values)} values, count is {count}")
        if self.required and None in values:
            raise Rejected(Reason.INVALID_EVENT, f"column {self.name}: value {values.index(None)} is null but required")
        if any(isinstance(value, dict | list) for value in values):
            return Coded(values, np.arange(count))
        if not self.numeric:
            return coded(values)
        column = np.array(values, dtype=np.float64)
        bad = ~np.isfinite(column)
        if bad.any():
            self._refuse(bad & np.array([value is not None for value in values]), faults)
        return column

    def _dictionary(self, packed: _Packed, count: int, faults: list[Fault]) -> Floats | Coded:
        dictionary = self._read(self._list, packed.dictionary)
        if packed.index is None or len(packed.given()) != 2:
            got = ", ".join(packed.given())
            raise Rejected(Reason.BAD_PACKING, f"column {self.name}: expected a dictionary and its index, got {got}")
        codes = packed.index.numbers(self.name, count)
        if codes.dtype.kind == "f":
            raise Rejected(Reason.BAD_PACKING, f"column {self.name}: an index holds integers, not floats")
        if count and not 0 <= int(codes.min()) <= int(codes.max()) < len(dictionary):
            raise Rejected(
                Reason.BAD_INDEX,
                f"column {self.name}: index {int(codes.min())} to {int(codes.max())}, "
                f"the dictionary has {len(dictionary)} entries",
            )
        if self.required and None in dictionary and None in {dictionary[code] for code in np.unique(codes)}:
            raise Rejected(Reason.INVALID_EVENT, f"column {self.name} has a null but is required")
        if self.numeric:
            return self._listed([dictionary[code] for code in codes], count, faults)
        return Coded(dictionary, codes.astype(np.int64))

    def _read(self, reader: _Reader, raw: Any) -> Any:
        try:
            return reader(raw)
        except msgspec.ValidationError as error:
            raise self._rejected(error) from None

    def _rejected(self, error: msgspec.ValidationError) -> Rejected:
        reason = Reason.BAD_PACKING if "base64" in str(error) else Reason.INVALID_EVENT
        return Rejected(reason, f"column {self.name}: {error}")

    def out_of_range(self, column: Floats) -> NDArray[np.bool_]:
        """The values that `fault` would refuse, but for NaN, which stands for absent in a column."""
        if self.name == "time_unix_s":
            return (column < 0) | (column >= MAX_TIME_UNIX_S)
        return np.isinf(column) | (column < 0) if self.non_negative else np.isinf(column)

    def fault(self, row: int, value: float) -> Fault | None:
        """What is wrong with a value that was given, if anything."""
        if not math.isfinite(value):
            return Fault(row, Reason.NON_FINITE, f"{self.name} is {value}")
        if self.name == "time_unix_s" and not 0 <= value < MAX_TIME_UNIX_S:
            hint = "; is it in milliseconds?" if value >= MAX_TIME_UNIX_S else ""
            return Fault(row, Reason.BAD_TIME, f"time_unix_s {value} is not in Unix seconds{hint}")
        if self.non_negative and value < 0:
            return Fault(row, Reason.NEGATIVE, f"{self.name} is {value}, expected 0 or more")
        return None

    def _refuse(self, bad: NDArray[np.bool_], faults: list[Fault]) -> None:
        detail = f"{self.name} is not a finite number"
        faults += [Fault(row, Reason.NON_FINITE, detail) for row in np.flatnonzero(bad).tolist()]


def list_of(item: Any) -> Any:
    return GenericAlias(list, (item,))  # spelled so, because the item is a value here


@cache
def fields_of(struct: type[Event]) -> Mapping[str, FieldSpec]:
    """How the fields of an event are read, by name; its identity is not among them. Cached: building is slow."""
    identity = {"schema", "agent", "boot", "seq"}
    hints = msgspec.inspect.type_info(struct)
    assert isinstance(hints, msgspec.inspect.StructType)
    return {
        spec.name: FieldSpec(
            name=spec.name,
            type=spec.type,
            required=spec.required,
            numeric=_is_numeric(info.type),
            non_negative=_is_non_negative(spec.type),
            mixed=_is_mixed(info.type),
            histograms=spec.type == dict[str, Histogram] | None,
            _column=_Reader(list_of(spec.type | None) | _Packed),
            _list=_Reader(list_of(spec.type | None)),
            _value=_Reader(spec.type),
        )
        for spec, info in zip(msgspec.structs.fields(struct), hints.fields, strict=True)
        if spec.name not in identity
    }


_NONE = msgspec.inspect.NoneType
_NUMBERS = (msgspec.inspect.FloatType, msgspec.inspect.IntType)
_TEXTS = (msgspec.inspect.StrType, msgspec.inspect.BoolType, msgspec.inspect.LiteralType)


def _is_numeric(info: msgspec.inspect.Type) -> bool:
    return all(isinstance(part, (*_NUMBERS, _NONE)) for part in _parts(info))


def _is_mixed(info: msgspec.inspect.Type) -> bool:
    return not _is_numeric(info) and not all(isinstance(part, (*_TEXTS, _NONE)) for part in _parts(info))


def _parts(info: msgspec.inspect.Type) -> list[msgspec.inspect.Type]:
    parts = info.types if isinstance(info, msgspec.inspect.UnionType) else (info,)
    return [part.type if isinstance(part, msgspec.inspect.Metadata) else part for part in parts]


def _is_non_negative(hint: Any) -> bool:
    """Whether its numbers are, or those in its maps."""
    return hint == NonNegative or any(map(_is_non_negative, get_args(hint)))
