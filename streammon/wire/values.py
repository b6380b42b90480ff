"""What is done with any value: compare it, code it, look for NaN in it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from msgspec import Struct

from streammon.events import Histogram
from streammon.lazy_numpy import np
from streammon.wire.batch import Coded, Codes


def frozen(value: Any) -> Any:
    """A value that can be a key: maps as their sorted items, lists as tuples."""
    if isinstance(value, str):
        return value
    if isinstance(value, Struct):
        return frozen(msgspec.structs.asdict(value))
    if isinstance(value, dict):
        return tuple((key, frozen(value[key])) for key in sorted(value))
    return tuple(map(frozen, value)) if isinstance(value, list) else value


def coded(values: Sequence[Any]) -> Coded:
    """Values as codes, numbered by first appearance; 1, 1.0 and True are kept apart only where types are mixed."""
    if len(set(map(type, values)) - {type(None)}) > 1:
        dictionary, codes = coded_alike([(type(value), value) for value in values])
        return Coded([value for _, value in dictionary], codes)
    return coded_alike(values)


def numbered(values: Sequence[Any]) -> dict[Any, int]:
    """The distinct values, of one type and None, in the order of their first appearance; each with its number."""
    return {value: number for number, value in enumerate(dict.fromkeys(values))}


def coded_alike(values: Sequence[Any]) -> Coded:
    """The same for values of one type, None beside it."""
    numbers = numbered(values)
    if len(numbers) == 1:
        return Coded(list(numbers), np.zeros(len(values), dtype=np.int64))
    return Coded(list(numbers), np.array(list(map(numbers.__getitem__, values)), dtype=np.int64))


def combinations(columns: Sequence[Coded]) -> tuple[list[tuple[Any, ...]], Codes]:
    """The combinations of values that occur in some columns, and for every row which one it has."""
    size = len(columns[0].codes)
    combined = np.zeros(size, dtype=np.int64)
    for dictionary, codes in columns:
        if len(dictionary) > 1:
            _, combined = _dense(combined * len(dictionary) + codes)
    used, combined = _dense(combined)
    firsts = np.empty(len(used), dtype=np.int64)
    firsts[combined[::-1]] = np.arange(size)[::-1]
    values = ([dictionary[code] for code in codes[firsts].tolist()] for dictionary, codes in columns)
    return list(zip(*values, strict=True)), combined


_SMALL = 1 << 20


def _dense(codes: Codes) -> tuple[Codes, Codes]:
    """The distinct codes, ascending, and every code's number among them; without sorting where they are small."""
    top = int(codes.max(initial=0)) + 1
    if top > _SMALL:
        used, dense = np.unique(codes, return_inverse=True)
        return used, dense
    flags = np.zeros(top, dtype=np.bool_)
    flags[codes] = True
    used = np.flatnonzero(flags)
    return used, (np.cumsum(flags) - 1)[codes]


def items(value: Any) -> Iterable[tuple[Any, Any]]:
    if isinstance(value, Struct):
        return msgspec.structs.asdict(value).items()
    if isinstance(value, dict):
        return value.items()
    return enumerate(value) if isinstance(value, list) else ()


_ENTRIES_OF_HISTOGRAM = 16
"""A histogram takes as long as so many numbers, beside its buckets."""


def entries_of_histograms(value: dict[str, Histogram] | None) -> int:
    """As how many entries a map of them counts."""
    return sum(_ENTRIES_OF_HISTOGRAM + histogram.sketch.buckets for histogram in (value or {}).values())


_FLAT = {float, int, str, bool, type(None)}


def all_finite(value: Any) -> bool:
    """Whether a value holds no NaN and no infinity, however deep."""
    if isinstance(value, float):
        return math.isfinite(value)
    if value is None or isinstance(value, str | int):
        return True
    if isinstance(value, Histogram):  # its sketch holds whole numbers alone
        return all(map(math.isfinite, (value.sum, value.min or 0.0, value.max or 0.0)))
    inner = value.values() if isinstance(value, dict) else [each for _, each in items(value)]
    floats = [each for each in inner if type(each) is float]  # one sum is faster than many looks
    if not math.isfinite(sum(floats)) and not all(map(math.isfinite, floats)):
        return False
    return _FLAT.issuperset(map(type, inner)) or all(map(all_finite, inner))
