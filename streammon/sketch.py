"""Distributions that add: exponential histograms, written for many series at once and read one at a time.

Bucket k holds the values in (2^(k/2^scale), 2^((k+1)/2^scale)]; at scale 6 (OpenTelemetry's scale 6,
Prometheus' native histogram schema 6) a quantile is off by at most 0.55 % of its value, whatever the shape of
the distribution.

Promises
- **Addition is exact.** The sketch of a union equals the merge of the sketches, byte for byte, in any order.
- **Buckets are exact.** A value is placed by its bits against the correctly rounded bound, never a logarithm.
- **Size is bounded.** A sketch that spans more than `MAX_BUCKETS` buckets joins neighbours, as often as
  needed and exactly: it then equals the sketch of the same values made at that coarser scale.
- **A sketch that exists is valid.** Input that lies about itself is refused with a `SketchError`.

It cannot give back exact minima, maxima or sums (keep those beside it), and values below 2^-1022 keep only
the precision that subnormal numbers have.

Source: OpenTelemetry metrics data model, "ExponentialHistogram"; Prometheus native histograms.
"""

from __future__ import annotations

import base64
import binascii
import math
import sys
from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import dataclass
from decimal import Decimal, localcontext
from functools import cache
from itertools import pairwise
from typing import Any, Final, Literal, NamedTuple, TypeAlias

import msgspec
from msgspec.structs import force_setattr

from streammon.lazy_numpy import ArrayLike, NDArray, np

Ints: TypeAlias = "NDArray[np.int64]"
Floats: TypeAlias = "NDArray[np.float64]"
_Counters: TypeAlias = "NDArray[np.unsignedinteger[Any]]"

SCALE: Final = 6
"""The finest scale: 64 buckets an octave; worst relative error (base - 1) / (base + 1) = 0.542 %."""

MAX_BUCKETS: Final = 4096
"""64 octaves (19 decades: a nanosecond to three centuries) at full resolution, 5.5 kB packed. All of float64
is 2,098 octaves, so scale 0 always fits; OpenTelemetry's default of 160 coarsens all beyond 2.5 octaves."""

PACK_ABOVE: Final = 32
"""Shorter lists stay lists, so that people can read them."""

MAX_COUNT: Final = 2**53
"""Totals below this are kept exactly by every JSON reader."""

PENDING_KEYS: Final = 1 << 15
"""Values a `SketchBag` holds at least before it counts them: numpy calls are then nearly free, and it fits a cache."""


class SketchError(ValueError):
    """A sketch that cannot be: the message names the field, what it holds and what would be right."""


# -- values to buckets -----------------------------------------------------------------------------


@cache
def _octave() -> list[float]:
    """The bounds 2^(j/64), j = 0..63, each the float64 nearest to the true number."""
    with localcontext() as context:
        context.prec = 50
        return [float(Decimal(2) ** (Decimal(j) / 2**SCALE)) for j in range(2**SCALE)]


@cache
def _octave_array() -> Floats:
    return np.array(_octave())


_MANTISSA_BITS: Final = 52
_CELL_BITS: Final = SCALE + 1  # cells half as wide as a mean bucket hold at most one bound each
_CELL_SHIFT: Final = _MANTISSA_BITS - _CELL_BITS
_BUCKET_SHIFT: Final = _MANTISSA_BITS - SCALE
_MIN_NORMAL: Final = 2.0**-1022


@cache
def _carries() -> Ints:
    """For each linear cell of an octave, what to add to a float's bits so that its bound falls on a carry.

    The bits of a positive float grow with it: exponent, then mantissa. Of `bits + carry`, the part above
    `_BUCKET_SHIFT` is the bucket: it steps up exactly where the bits pass the one bound a cell may contain.
    """
    bounds = np.append(_octave_array(), 2.0).view(np.int64) - np.float64(1.0).view(np.int64)
    starts = np.arange(2**_CELL_BITS) << _CELL_SHIFT
    bucket = np.searchsorted(bounds, starts + (1 << _CELL_SHIFT) - 1) - 1  # of the last value in the cell
    first = np.maximum(bounds[bucket] + 1, starts)  # value of that bucket in the cell
    carry: Ints = ((bucket - (1023 << SCALE)) << _BUCKET_SHIFT) - first
    return carry


def _indices(values: Floats) -> Ints:
    """Bucket indices at `SCALE` of positive values; anything for zeros."""
    bits = values.view(np.int64)
    indices: Ints = (bits + _carries()[(bits >> _CELL_SHIFT) & (2**_CELL_BITS - 1)]) >> _BUCKET_SHIFT
    subnormal = values < _MIN_NORMAL
    if subnormal.any():  # times 2^64 they are normal, and the product is exact
        indices[subnormal] = _indices(values[subnormal] * 2.0**64 + (values[subnormal] == 0)) - (64 << SCALE)
    return indices


def bucket_index(values: Floats, scale: int = SCALE) -> NDArray[np.int32]:
    """The bucket of each value: shape of `values`, which are finite and > 0; `scale` from 0 to `SCALE`.

    Exact with respect to the correctly rounded bounds: `bucket_bounds(k)[1]` itself is in bucket k.
    """
    return (_indices(np.ascontiguousarray(values, dtype=np.float64)) >> _steps_to(scale)).astype(np.int32)


def bucket_bounds(index: ArrayLike, scale: int = SCALE) -> tuple[Floats, Floats]:
    """The lower (exclusive) and upper (inclusive) bound of each bucket, in the unit of the values."""
    index, steps = np.asarray(index, dtype=np.int64), _steps_to(scale)
    return _bound(index << steps), _bound((index + 1) << steps)


def _bound(index: Ints) -> Floats:
    with np.errstate(over="ignore"):  # the last bucket's upper bound is 2^1024
        return np.asarray(np.ldexp(_octave_array()[index & (2**SCALE - 1)], index >> SCALE))


def _steps_to(scale: int) -> int:
    if not 0 <= scale <= SCALE:
        raise SketchError(f"scale is {scale}; it must be from 0 to {SCALE}: downscale finer histograms first")
    return SCALE - scale


# -- codes: signed buckets in the order of the values ----------------------------------------------
#
# A code is 0 for zero, `_BIAS + index` for a positive value and minus that for a negative one. Codes sort as
# the values do, so that a quantile is one search in cumulated counts.

_BIAS: Final = 1 << 17  # above every -index: float64 starts at 2^-1074, index -68,737
_CODE_BITS: Final = 19
_CODE_ZERO: Final = 1 << 18
_MAX_SLOT: Final = 1 << 43  # slot and code share an int64
_SHARD_BITS: Final = 32  # what is left of a key within its shard: 2^13 slots


def _codes(values: Floats) -> Ints:
    codes = _indices(np.abs(values)) + _BIAS
    if values.size and values.min() <= 0:
        codes *= np.sign(values).astype(np.int64)
    return codes


def _representatives(codes: Ints, steps: ArrayLike) -> Floats:
    """The value of least worst relative error in each bucket (l, u]: 2lu / (l + u) = l * 2 / (1 + l/u)."""
    ratio = np.exp2(-np.ldexp(1.0 / 2**SCALE, steps))
    magnitudes = _bound((np.abs(codes) - _BIAS) << np.asarray(steps)) * (2 / (1 + ratio))
    return np.asarray(np.sign(codes) * np.where(codes == 0, 0.0, magnitudes))


def _ranks(quantiles: ArrayLike, counts: ArrayLike) -> Ints:
    """Nearest ranks from 1: ceil(q * n), as numpy's `inverted_cdf`."""
    q = np.asarray(quantiles, dtype=np.float64)
    if not ((q >= 0) & (q <= 1)).all():
        raise SketchError(f"quantiles are {q.tolist()}; each must be from 0 to 1")
    ranks: Ints = np.maximum(np.ceil(q * np.asarray(counts)), 1).astype(np.int64)
    return ranks


# -- ranges: consecutive buckets of one sign -------------------------------------------------------


class _Range(NamedTuple):
    offset: int
    counts: Ints | _Counters

    @property
    def end(self) -> int:
        return self.offset + len(self.counts)

    @property
    def total(self) -> int:
        return int(np.add.reduce(self.counts)) if len(self.counts) else 0

    @property
    def indices(self) -> Ints:
        return np.arange(self.offset, self.end)

    def coarser(self, steps: int) -> _Range:
        if not steps or not len(self.counts):
            return self
        indices = self.indices >> steps
        offset = self.offset >> steps
        counts = np.zeros(int(indices[-1]) - offset + 1, dtype=np.int64)
        np.add.at(counts, indices - offset, self.counts)
        return _Range(offset, counts)

    def trimmed(self) -> _Range:
        if len(self.counts) and self.counts[0] and self.counts[-1]:  # nearly always
            return self
        if not self.counts.any():
            return _no_buckets()
        used = np.flatnonzero(self.counts)
        return _Range(self.offset + int(used[0]), self.counts[used[0] : used[-1] + 1])


@cache
def _no_buckets() -> _Range:
    return _Range(0, np.zeros(0, dtype=np.int64))


_FARTHEST: Final = 1 << 48
"""No scale that there is has buckets as far from 1; beyond, int64 would not hold their numbers."""
_WIDEST: Final = 11
"""Scale -11: one bucket of 2,048 octaves on each side of 1 is all of float64."""


def _in_octaves(part: _Range, log_width: int) -> _Range:
    """Buckets that are 2^``log_width`` octaves wide as octaves, the values of each spread evenly."""
    if log_width <= 0 or not len(part.counts):
        return part
    if log_width > _WIDEST or not -(2 << _WIDEST) <= part.offset <= 2 << _WIDEST or len(part.counts) > MAX_BUCKETS:
        raise SketchError(f"scale is {-log_width}, with buckets from {part.offset}; float64 does not reach there")
    octaves = np.arange(1 << log_width)
    each, more = np.divmod(part.counts[:, None], 1 << log_width)
    first, lowest = part.offset << log_width, -1075
    spread = _Range(first, (each + (octaves < more)).ravel())
    low, high = max(0, lowest - first), max(0, 1024 - first)  # buckets at the ends reach beyond float64
    outside = int(spread.counts[:low].sum()), int(spread.counts[high:].sum())
    kept = spread.counts[low:high].copy()
    if not len(kept):
        raise SketchError(f"scale is {-log_width}, with buckets from {part.offset}; float64 does not reach there")
    kept[0] += outside[0]
    kept[-1] += outside[1]
    return _Range(first + low, kept)


def _sum(ranges: Iterable[_Range]) -> _Range:
    used = [each for each in ranges if len(each.counts)]
    if not used:
        return _no_buckets()
    offset = min(each.offset for each in used)
    counts = np.zeros(max(each.end for each in used) - offset, dtype=np.int64)
    for each in used:
        counts[each.offset - offset : each.end - offset] += each.counts
    return _Range(offset, counts)


def _counted(values: Floats, counts: Ints) -> _Range:
    """The positive ones among some values, each as often as its count says."""
    mine = values > 0
    if not mine.any():
        return _no_buckets()
    indices = _indices(values[mine])
    found = _Range(int(indices.min()), np.zeros(int(indices.max() - indices.min()) + 1, dtype=np.int64))
    np.add.at(found.counts, indices - found.offset, counts[mine])
    return found


def _span(*ranges: _Range) -> int:
    """How many buckets lie between the smallest and the largest magnitude."""
    used = [each for each in ranges if len(each.counts)]
    return max(each.end for each in used) - min(each.offset for each in used) if used else 0


# -- counts on the wire ----------------------------------------------------------------------------

Width: TypeAlias = Literal["u1", "i4", "i8"]
Counts: TypeAlias = list[int] | dict[Width, str]


def _pack(counts: NDArray[np.integer[Any]]) -> Counts:
    """A list where it is short or no longer than base64 of the narrowest integers that hold the counts."""
    if len(counts) <= PACK_ABOVE:
        plain: list[int] = counts.tolist()
        return plain
    largest = 0 if counts.dtype == np.uint8 else int(counts.max())
    width: Width = "u1" if largest < 2**8 else "i4" if largest < 2**31 else "i8"
    packed: Counts = {width: base64.b64encode(counts.astype(f"<{width}").tobytes()).decode("ascii")}
    if width == "u1":  # four characters for three counts; a list takes at least six
        return packed
    plain = counts.tolist()
    return plain if len(msgspec.json.encode(plain)) <= len(msgspec.json.encode(packed)) else packed


def _unpack(name: str, counts: Counts) -> Ints | _Counters:
    if not counts and isinstance(counts, list):
        return _no_buckets().counts
    try:
        if isinstance(counts, list):
            return np.array(counts, dtype=np.int64)
        ((width, text),) = counts.items()
        packed = np.frombuffer(binascii.a2b_base64(text, strict_mode=True), dtype=f"<{width}")
        return packed if width == "u1" else packed.astype(np.int64)  # bytes need no room, nor a look at their sign
    except (ValueError, TypeError, OverflowError, binascii.Error) as error:
        raise SketchError(
            f'{name} cannot be read ({error}); it must be integers, or one of "u1", "i4", "i8" with base64'
        ) from error


def _length(counts: Counts) -> int:
    """How many there are, of any that `_unpack` reads."""
    if isinstance(counts, list):
        return len(counts)
    ((width, text),) = counts.items()
    return len(text) * 3 // 4 // int(width[1])


def _total(name: str, counts: Ints | _Counters) -> int:
    """Their sum. Raises SketchError where one is negative."""
    if counts.dtype == np.uint8:
        return int(counts.sum())
    if (smallest := int(counts.min())) < 0:
        raise SketchError(f"{name} holds {smallest}; a count must not be negative")
    return sum(counts.tolist())  # Python's integers do not overflow


class Unpacked(NamedTuple):
    """What a sketch holds."""

    scale: int
    zero_count: int
    positive: _Range
    negative: _Range

    @property
    def total(self) -> int:
        """See `Sketch.count`."""
        return self.zero_count + self.positive.total + self.negative.total

    @property
    def bounds(self) -> tuple[float, float]:
        """See `Sketch.bounds`."""
        ends = [0.0] * bool(self.zero_count)
        for part, sign in ((self.positive.trimmed(), 1), (self.negative.trimmed(), -1)):
            if len(part.counts):
                ends += [sign * self._bound(part.offset), sign * self._bound(part.end)]
        return (min(ends), max(ends)) if ends else (math.nan, math.nan)

    def halved(self, times: int) -> Unpacked:
        """With all counts halved so often, rounded down."""
        sides = (_Range(part.offset, part.counts.astype(np.int64) >> times) for part in (self.positive, self.negative))
        return Unpacked(self.scale, self.zero_count >> times, *sides)

    def _bound(self, index: int) -> float:
        """The lower bound of a bucket; `bucket_bounds` of one takes ten times as long."""
        finest = index << (SCALE - self.scale)
        octave, mantissa = finest >> SCALE, _octave()[finest & (2**SCALE - 1)]
        return math.ldexp(mantissa, octave) if octave < 1024 else sys.float_info.max


class Sketch(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A distribution in its wire form: `counts[i]` values in bucket `offset + i`, and `zero_count` zeros.

    Negative values are in `negative_counts`, by magnitude; its two fields are left out where there are none.
    What this module builds is canonical (no empty buckets at the ends): equal distributions, equal sketches.
    Raises SketchError (inside msgspec's ValidationError while decoding) if it contradicts itself.
    """

    scale: int
    zero_count: int
    offset: int
    counts: Counts
    negative_offset: int = 0
    negative_counts: Counts = []

    def __post_init__(self) -> None:
        steps = _steps_to(self.scale)
        if not 0 <= self.zero_count < MAX_COUNT:
            raise SketchError(f"zero_count is {self.zero_count}; it must be from 0 to below 2^53")
        total = self.zero_count
        for name, offset, given in (
            ("counts", self.offset, self.counts),
            ("negative_counts", self.negative_offset, self.negative_counts),
        ):
            counts: Any = () if given == [] else _unpack(name, given)  # `EMPTY` is made without numpy
            if len(counts) > MAX_BUCKETS:
                raise SketchError(f"{name} has {len(counts)} buckets, over {MAX_BUCKETS}: downscale first")
            if not -1075 << SCALE <= offset << steps <= (1024 << SCALE) - (len(counts) << steps):
                raise SketchError(f"{name} starts at {offset}; at scale {self.scale} float64 does not reach there")
            if len(counts):
                total += _total(name, counts)
        if total >= MAX_COUNT:
            raise SketchError(f"the counts add to {total}; below 2^53 they can be counted exactly")

    @classmethod
    def of(cls, values: Floats) -> Sketch:
        """The sketch of finite `values`; NaN is ignored."""
        bag = SketchBag()
        bag.add(np.zeros(len(values), dtype=np.int64), np.asarray(values, dtype=np.float64))
        return bag.sketches().get(0, EMPTY)

    @classmethod
    def of_counted(cls, values: Floats, counts: Ints) -> Sketch:
        """The sketch of finite `values`, each as often as `counts` says. Raises SketchError: they are too many."""
        zero_count = int(counts[values == 0].sum())
        return _sketch(SCALE, zero_count, _counted(values, counts), _counted(-values, counts))

    @classmethod
    def of_equal(cls, value: float, count: int) -> Sketch:
        """The sketch of so many values that are finite and all the same."""
        if not value or not count:
            return cls(scale=SCALE, zero_count=count, offset=0, counts=[])
        offset = int(bucket_index(np.array([abs(value)]))[0])
        if value > 0:
            return cls(scale=SCALE, zero_count=0, offset=offset, counts=[count])
        return cls(scale=SCALE, zero_count=0, offset=0, counts=[], negative_offset=offset, negative_counts=[count])

    @classmethod
    def of_buckets(
        cls,
        scale: int,
        zero_count: int,
        offset: int,
        counts: Sequence[int],
        negative_offset: int = 0,
        negative_counts: Sequence[int] = (),
    ) -> Sketch:
        """The sketch of an exponential histogram as OpenTelemetry has them, of any scale: bucket ``offset + i`` holds
        ``counts[i]``. Nothing is lost: finer buckets are joined. Of scales below 0, whose buckets are wider than an
        octave, the values are spread evenly over the octaves.

        Raises SketchError where they lie about themselves, or lie beyond float64.
        """
        positive, negative = (
            _Range(start, _unpack(name, list(given)))
            for name, start, given in (
                ("counts", offset, counts),
                ("negative_counts", negative_offset, negative_counts),
            )
        )
        for name, part in (("counts", positive), ("negative_counts", negative)):
            if abs(part.offset) >= _FARTHEST:
                raise SketchError(f"{name} starts at {part.offset}; float64 does not reach there")
            if len(part.counts) and _total(name, part.counts) >= MAX_COUNT:
                raise SketchError(f"{name} add to 2^53 or more; below that they can be counted exactly")
        steps = max(0, scale - SCALE)
        positive, negative = (_in_octaves(part.coarser(steps), -scale) for part in (positive, negative))
        return _sketch(min(max(scale, 0), SCALE), zero_count, positive, negative)

    @classmethod
    def from_wire(cls, wire: dict[str, Any]) -> Sketch:
        """Read a decoded JSON object. Raises SketchError."""
        try:
            return msgspec.convert(wire, cls)
        except msgspec.ValidationError as error:
            raise SketchError(f"not a sketch: {error}") from error

    def to_wire(self) -> dict[str, Any]:
        wire: dict[str, Any] = msgspec.to_builtins(self)
        return wire

    @property
    def _positive(self) -> _Range:
        return _Range(self.offset, _unpack("counts", self.counts))

    @property
    def _negative(self) -> _Range:
        return _Range(self.negative_offset, _unpack("negative_counts", self.negative_counts))

    @property
    def unpacked(self) -> Unpacked:
        """To ask for several things without unpacking its counts each time."""
        negative = self._negative if self.negative_counts else _no_buckets()
        return Unpacked(self.scale, self.zero_count, self._positive, negative)

    @property
    def count(self) -> int:
        """How many values it holds."""
        return self.unpacked.total

    @property
    def buckets(self) -> int:
        """How many buckets it takes, without looking into them."""
        return _length(self.counts) + _length(self.negative_counts)

    @property
    def bounds(self) -> tuple[float, float]:
        """Between which its values lie, as far as it knows: the outer bounds of its outermost buckets.

        NaN for an empty sketch.
        """
        return self.unpacked.bounds

    def quantile(self, q: float, minimum: float | None = None, maximum: float | None = None) -> float:
        """The value at rank ceil(q * count); see `quantiles`."""
        return self.quantiles((q,), minimum, maximum)[0]

    def quantiles(self, qs: Sequence[float], minimum: float | None = None, maximum: float | None = None) -> list[float]:
        """The values at the ranks ceil(q * count), within 0.55 % at scale 6, clamped to the exact extremes.

        NaN for an empty sketch. Raises SketchError for a q outside 0..1.
        """
        return _quantiles(qs, self.scale, self.zero_count, self._positive, self._negative, minimum, maximum)

    def above(self, threshold: float) -> int:
        """How many values are greater; those in the bucket of the threshold, within 1.1 % of it, are not counted."""
        if not threshold:
            return int(self._positive.counts.sum())
        bucket = int(bucket_index(np.array([abs(threshold)]), self.scale)[0])
        if threshold > 0:
            return int(self._positive.counts[max(0, bucket + 1 - self.offset) :].sum())
        smaller = self._negative.counts[: max(0, bucket - self.negative_offset)].sum()
        return int(smaller + self._positive.counts.sum()) + self.zero_count

    def mean_log(self, floor: float) -> float:
        """The mean of the natural logs of the values, those below ``floor`` taken for it; within 0.0055 at scale 6.

        NaN for an empty sketch.
        """
        positive, scale = self._positive, 2.0**self.scale
        lowest, total = math.log(floor), int(positive.counts.sum())
        logs = np.maximum((positive.indices + 0.5) * (math.log(2.0) / scale), lowest)
        return float(logs @ positive.counts + (self.count - total) * lowest) / self.count if self.count else math.nan

    def merge(self, other: Sketch) -> Sketch:
        """The sketch of both sets of values."""
        return merge((self, other))

    def times(self, factor: int) -> Sketch:
        """The sketch of every value so many times, once at least. Raises SketchError where that is too many."""
        if factor == 1:
            return self
        if self.count * factor >= MAX_COUNT:
            raise SketchError(f"{self.count} values {factor} times; below 2^53 they can be counted exactly")
        positive, negative = (
            _Range(part.offset, part.counts.astype(np.int64) * factor) for part in (self._positive, self._negative)
        )
        return _sketch(self.scale, self.zero_count * factor, positive, negative)

    def within(self, buckets: int) -> Sketch:
        """The sketch of the same values in at most so many buckets, as fine as that allows."""
        steps, parts = 0, (self._positive, self._negative)
        while sum(len(part.counts) for part in parts) > buckets and steps < self.scale:
            steps, parts = steps + 1, (parts[0].coarser(1), parts[1].coarser(1))
        return self.downscale(self.scale - steps) if steps else self

    def downscale(self, to_scale: int) -> Sketch:
        """The sketch of the same values at a coarser scale. Raises SketchError if `to_scale` is finer."""
        if to_scale > self.scale:
            raise SketchError(f"scale {self.scale} cannot become {to_scale}: what was merged cannot be taken apart")
        steps = self.scale - to_scale
        return _sketch(to_scale, self.zero_count, self._positive.coarser(steps), self._negative.coarser(steps))


def _quantiles(
    qs: Sequence[float],
    scale: int,
    zero_count: int,
    positive: _Range,
    negative: _Range,
    minimum: float | None,
    maximum: float | None,
) -> list[float]:
    counts = np.concatenate([negative.counts[::-1], [zero_count], positive.counts])
    codes = np.concatenate([-negative.indices[::-1] - _BIAS, [0], positive.indices + _BIAS])
    cumulated = counts.cumsum()
    ranks = _ranks(qs, cumulated[-1])
    if not cumulated[-1]:
        return [float("nan")] * len(qs)
    found = _representatives(codes[cumulated.searchsorted(ranks)], _steps_to(scale))
    low, high = -np.inf if minimum is None else minimum, np.inf if maximum is None else maximum
    clamped: list[float] = found.clip(low, high).tolist()
    return clamped


def _sketch(scale: int, zero_count: int, positive: _Range, negative: _Range) -> Sketch:
    """The canonical sketch: trimmed, within MAX_BUCKETS, packed."""
    positive, negative = positive.trimmed(), negative.trimmed()
    while _span(positive, negative) > MAX_BUCKETS:
        scale, positive, negative = scale - 1, positive.coarser(1), negative.coarser(1)
    return Sketch(
        scale=scale,
        zero_count=zero_count,
        offset=positive.offset,
        counts=_pack(positive.counts),
        negative_offset=negative.offset,
        negative_counts=_pack(negative.counts),
    )


EMPTY: Final = Sketch(scale=SCALE, zero_count=0, offset=0, counts=[])


def _trusted(**fields: Any) -> Sketch:
    """A sketch that was counted here: it cannot lie, and checking it takes longer than making it."""
    sketch = copy(EMPTY)
    for name, value in fields.items():
        force_setattr(sketch, name, value)
    return sketch


def merge(sketches: Iterable[Sketch]) -> Sketch:
    """The sketch of all their values together, at the coarsest of their scales; `EMPTY` for none.

    Of 2^53 values and more, which somebody may claim to have, it keeps the shares and not the number.
    """
    parts = [sketch.unpacked for sketch in sketches]
    try:
        return _merged(parts)
    except SketchError:
        excess = (sum(part.total for part in parts) // MAX_COUNT).bit_length()
        return _merged([part.halved(excess) for part in parts])


def _merged(parts: Sequence[Unpacked]) -> Sketch:
    scale = min((part.scale for part in parts), default=SCALE)
    return _sketch(
        scale,
        sum(part.zero_count for part in parts),
        _sum(part.positive.coarser(part.scale - scale) for part in parts),
        _sum(part.negative.coarser(part.scale - scale) for part in parts),
    )


class Accumulator:
    """A sum of sketches that grows in place: what `merge` would give, without keeping any of them.

    Memory: for each bucket between the lowest and the highest one byte, two from 256 values on, and so on.
    """

    __slots__ = ("_count", "_negative", "_positive", "_scale", "_zero_count")

    def __init__(self) -> None:
        self._scale: int = SCALE
        self._count = self._zero_count = 0
        self._positive = self._negative = _no_buckets()

    def add(self, sketch: Sketch, count: int) -> None:
        """Add a sketch of ``count`` values. With them it has to stay below `MAX_COUNT`."""
        self.add_unpacked(sketch.unpacked, count)

    def add_unpacked(self, sketch: Unpacked, count: int) -> None:
        self._count += count
        self._zero_count += sketch.zero_count
        if sketch.scale < self._scale:
            self._coarsen(self._scale - sketch.scale)
        steps = sketch.scale - self._scale
        self._positive = self._plus(self._positive, sketch.positive.coarser(steps))
        if len(sketch.negative.counts):
            self._negative = self._plus(self._negative, sketch.negative.coarser(steps))
        if len(sketch.negative.counts) or len(self._positive.counts) > MAX_BUCKETS:
            while _span(self._positive, self._negative) > MAX_BUCKETS:
                self._coarsen(1)

    def sketch(self) -> Sketch:
        """The sum so far."""
        return _sketch(self._scale, self._zero_count, self._positive, self._negative)

    def quantiles(self, qs: Sequence[float], minimum: float | None = None, maximum: float | None = None) -> list[float]:
        """Those of `sketch`."""
        return _quantiles(qs, self._scale, self._zero_count, self._positive, self._negative, minimum, maximum)

    def _coarsen(self, steps: int) -> None:
        self._scale -= steps
        self._positive, self._negative = self._positive.coarser(steps), self._negative.coarser(steps)

    def _plus(self, mine: _Range, more: _Range) -> _Range:
        if not len(more.counts):
            return mine
        dtype = np.min_scalar_type(self._count) if self._count < 2**32 else np.dtype(np.int64)
        low, high = more.offset, more.end
        if len(mine.counts):
            low, high = min(low, mine.offset), max(high, mine.end)
        if high - low > len(mine.counts) or mine.counts.dtype != dtype:
            counts = np.zeros(high - low, dtype=dtype)
            counts[mine.offset - low : mine.end - low] = mine.counts
            mine = _Range(low, counts)
        part = mine.counts[more.offset - low : more.end - low]
        np.add(part, more.counts, out=part, casting="unsafe")
        return mine


# -- many series at once ---------------------------------------------------------------------------


class _Place(NamedTuple):
    """What a `Summaries` knows of one sketch; its counts are `dense[start:end]`, of the buckets from `offset` on."""

    shard: int
    steps: int  # how much coarser than SCALE
    zero_count: int
    offset: int
    start: int
    end: int
    negative_offset: int
    negative_start: int
    negative_end: int


@dataclass(frozen=True, slots=True)
class Summaries:
    """What a `SketchBag` held: quantiles of every series at once, and its sketches one by one.

    `slots` has shape (S,), ascending; `counts` (S,) values each; `values` (S, Q), the quantiles asked for.
    """

    slots: Ints
    counts: Ints
    values: Floats
    _places: Ints  # (S, 9): a `_Place` each
    _dense: list[_Counters]  # by shard: the counts of all its sketches, empty buckets between them included

    def sketch(self, row: int) -> Sketch:
        """The sketch of `slots[row]`."""
        at = _Place(*self._places[row].tolist())
        dense = self._dense[at.shard]
        return _trusted(
            scale=SCALE - at.steps,
            zero_count=at.zero_count,
            offset=at.offset,
            counts=_pack(dense[at.start : at.end]),
            negative_offset=at.negative_offset,
            negative_counts=_pack(dense[at.negative_start : at.negative_end]),
        )

    def sketches(self) -> dict[int, Sketch]:
        return {slot: self.sketch(row) for row, slot in enumerate(self.slots.tolist())}


class _Shard(NamedTuple):
    """The pairs of 2^13 neighbouring slots: ascending keys (slot within the shard, then code), and their counts."""

    keys: NDArray[np.uint32]
    counts: _Counters

    def plus(self, keys: Ints, counts: Ints) -> _Shard:
        """With further keys and counts."""
        more, sums = _summed(
            np.concatenate([self.keys, keys.astype(np.uint32)]),
            np.concatenate([self.counts, counts], dtype=np.int64, casting="same_kind"),
        )
        return _Shard(more, _narrow(sums))


@cache
def _no_pairs() -> _Shard:
    return _Shard(np.zeros(0, dtype=np.uint32), np.zeros(0, dtype=np.uint8))


class SketchBag:
    """Counts of (slot, bucket) for many series, added in pooled numpy calls.

    A slot is the caller's index of a series: 0 <= slot < 2^43, best small and dense. Values become keys, which wait
    until there are enough to be sorted and merged. Memory: 5 bytes for each distinct pair (6 where a count passes
    255, and so on), and 8 for each key that waits. Slots are sharded, so that the work needs little beside.
    """

    def __init__(self) -> None:
        self._pending: list[Ints] = []
        self._waiting = 0
        self._shards: dict[int, _Shard] = {}
        self._pairs = 0

    def add(self, slots: NDArray[np.integer[Any]], values: Floats) -> None:
        """Count `values[i]` in series `slots[i]`, shape (N,) both; NaN is absent, infinities never come."""
        if len(slots) != len(values):
            raise SketchError(f"{len(slots)} slots came with {len(values)} values; each value needs its slot")
        if len(slots) and (slots.min() < 0 or slots.max() >= _MAX_SLOT):
            raise SketchError(f"slots are {slots.min()} to {slots.max()}; they must be from 0 to below 2^43")
        present = ~np.isnan(values)
        if not present.all():
            slots, values = slots[present], values[present]
        self._pending.append(_keys_of(slots.astype(np.int64, copy=False), _codes(values) + _CODE_ZERO))
        self._waiting += len(values)
        if self._waiting >= max(PENDING_KEYS, self._pairs // 2):  # a value's share of merging stays the same
            self._count_pending()

    def sketches(self) -> dict[int, Sketch]:
        """The sketch of each slot, by ascending slot, however the adds were cut."""
        return self.summaries(()).sketches()

    def summaries(self, quantiles: Sequence[float] = (0.5, 0.9, 0.99)) -> Summaries:
        """All so far; adding may go on. Raises SketchError for a quantile outside 0..1."""
        self._count_pending()
        shards = sorted(self._shards.items()) or [(0, _no_pairs())]
        parts = [_summaries(index, number, shard, quantiles) for index, (number, shard) in enumerate(shards)]
        return Summaries(
            slots=np.concatenate([part.slots for part in parts]),
            counts=np.concatenate([part.counts for part in parts]),
            values=np.concatenate([part.values for part in parts]),
            _places=np.concatenate([part._places for part in parts]),
            _dense=[dense for part in parts for dense in part._dense],
        )

    def _count_pending(self) -> None:
        if self._waiting:
            narrow = _narrow(np.concatenate(self._pending))  # of few series they fit 4 bytes, and sort twice as fast
            keys, counts = np.unique(narrow, return_counts=True)
            self._absorb(keys.astype(np.int64), counts)
            self._pending, self._waiting = [], 0

    def _absorb(self, keys: Ints, counts: Ints) -> None:
        """Add the counts of distinct, ascending keys."""
        cuts = np.append(_first_of_each(keys >> _SHARD_BITS), len(keys)).tolist()
        for first, end in pairwise(cuts):
            number = int(keys[first]) >> _SHARD_BITS
            shard = self._shards.get(number, _no_pairs())
            self._shards[number] = shard.plus(keys[first:end], counts[first:end])
            self._pairs += len(self._shards[number].keys) - len(shard.keys)


def _summaries(index: int, number: int, shard: _Shard, quantiles: Sequence[float]) -> Summaries:
    """Of one shard."""
    keys = shard.keys.astype(np.int64) + (number << _SHARD_BITS)
    steps, keys, counts = _within_max_buckets(keys, shard.counts.astype(np.int64))
    codes, firsts = _codes_of(keys), _first_of_each(keys >> _CODE_BITS)
    totals = np.add.reduceat(counts, firsts)
    ranks = _ranks(quantiles, totals[:, None]) + (totals.cumsum() - totals)[:, None]
    values = _representatives(codes[counts.cumsum().searchsorted(ranks)], steps[:, None])
    rows = np.repeat(np.arange(len(firsts)), np.diff(firsts, append=len(keys)))
    ranges, dense = _laid_out(rows, codes, counts, len(firsts))
    places = np.column_stack([np.full(len(firsts), index), steps, ranges])
    return Summaries(keys[firsts] >> _CODE_BITS, totals, values, places, [dense])


def _laid_out(rows: Ints, codes: Ints, counts: Ints, size: int) -> tuple[Ints, _Counters]:
    """For `size` rows the rest of their `_Place`, and the counts of all, empty buckets between them included."""
    zeros = np.zeros(size, dtype=np.int64)
    zeros[rows[codes == 0]] = counts[codes == 0]
    signed = codes != 0
    sides, indices = (2 * rows + (codes < 0))[signed], (np.abs(codes) - _BIAS)[signed]
    low, high = np.full(2 * size, _BIAS), np.full(2 * size, -_BIAS)
    np.minimum.at(low, sides, indices)
    np.maximum.at(high, sides, indices)
    spans = np.maximum(high - low + 1, 0)
    ends = spans.cumsum()
    starts = ends - spans
    dense = np.zeros(spans.sum(), dtype=np.min_scalar_type(counts.max(initial=0)))
    dense[(starts - low)[sides] + indices] = counts[signed]
    ranges = np.column_stack([np.where(spans > 0, low, 0), starts, ends]).reshape(size, 6)  # positive, then negative
    return np.column_stack([zeros, ranges]), dense


def _within_max_buckets(keys: Ints, counts: Ints) -> tuple[Ints, Ints, Ints]:
    """The halvings each slot needs to keep to MAX_BUCKETS, and the keys and counts after them."""
    slots, codes = keys >> _CODE_BITS, _codes_of(keys)
    starts = _first_of_each(slots)
    magnitudes = np.abs(codes) - _BIAS
    low = np.minimum.reduceat(np.where(codes == 0, _BIAS, magnitudes), starts)
    high = np.maximum.reduceat(magnitudes, starts)
    steps = _steps_to_fit(low, high)
    if steps.any():
        halvings = np.repeat(steps, np.diff(starts, append=len(keys)))
        codes = np.sign(codes) * ((magnitudes >> halvings) + _BIAS)
        keys = _keys_of(slots, codes + _CODE_ZERO)
        starts = _first_of_each(keys)
        keys, counts = keys[starts], np.add.reduceat(counts, starts)
    return steps, keys, counts


def _steps_to_fit(low: Ints, high: Ints) -> Ints:
    """How often the buckets from `low` to `high` must be halved in number to be at most `MAX_BUCKETS`."""
    steps = np.zeros(low.shape, dtype=np.int64)
    while (over := (high >> steps) - (low >> steps) >= MAX_BUCKETS).any():
        steps += over
    return steps


def _summed(keys: NDArray[Any], counts: Ints) -> tuple[NDArray[Any], Ints]:
    """The distinct keys, ascending, and the sums of their counts."""
    order = keys.argsort(kind="stable")
    keys, counts = keys[order], counts[order]
    starts = _first_of_each(keys)
    return keys[starts], np.add.reduceat(counts, starts) if len(starts) else counts


def _first_of_each(ascending: Ints) -> Ints:
    first = np.ones(len(ascending), dtype=np.bool_)
    np.not_equal(ascending[1:], ascending[:-1], out=first[1:])
    return np.flatnonzero(first)


def _keys_of(slots: Ints, codes: Ints) -> Ints:
    return (slots << _CODE_BITS) + codes


def _codes_of(keys: Ints) -> Ints:
    return (keys & (2**_CODE_BITS - 1)) - _CODE_ZERO


def _narrow(counts: Ints) -> _Counters:
    """In the narrowest integers that hold them."""
    return counts.astype(np.min_scalar_type(counts.max(initial=0)))
