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
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from decimal import Decimal, localcontext
from typing import Any, Final, Literal, NamedTuple, TypeAlias

import msgspec
import numpy as np
from numpy.typing import ArrayLike, NDArray

Ints: TypeAlias = NDArray[np.int64]
Floats: TypeAlias = NDArray[np.float64]

SCALE: Final = 6
"""The finest scale: 64 buckets an octave; worst relative error (base - 1) / (base + 1) = 0.542 %."""

MAX_BUCKETS: Final = 4096
"""64 octaves (19 decades: a nanosecond to three centuries) at full resolution, 5.5 kB packed. All of float64
is 2,098 octaves, so scale 0 always fits; OpenTelemetry's default of 160 coarsens all beyond 2.5 octaves."""

PACK_ABOVE: Final = 32
"""Shorter lists stay lists, so that people can read them."""

MAX_COUNT: Final = 2**53
"""Totals below this are kept exactly by every JSON reader."""

PENDING_VALUES: Final = 1 << 16
"""Values a `SketchBag` holds before it counts them: numpy calls are then nearly free, and it fits a cache."""

ROWS: Final = 1 << 14
"""Slots of a `SketchBag` that get a row of counters: at most 64 MB."""
_ROW: Final = 512


class SketchError(ValueError):
    """A sketch that cannot be: the message names the field, what it holds and what would be right."""


# -- values to buckets -----------------------------------------------------------------------------


def _correctly_rounded_octave() -> Floats:
    """The bounds 2^(j/64), j = 0..63, each the float64 nearest to the true number."""
    with localcontext() as context:
        context.prec = 50
        return np.array([float(Decimal(2) ** (Decimal(j) / 2**SCALE)) for j in range(2**SCALE)])


_OCTAVE: Final = _correctly_rounded_octave()
_MANTISSA_BITS: Final = 52
_CELL_BITS: Final = SCALE + 1  # cells half as wide as a mean bucket hold at most one bound each
_CELL_SHIFT: Final = _MANTISSA_BITS - _CELL_BITS
_BUCKET_SHIFT: Final = _MANTISSA_BITS - SCALE
_MIN_NORMAL: Final = 2.0**-1022


def _carries() -> Ints:
    """For each linear cell of an octave, what to add to a float's bits so that its bound falls on a carry.

    The bits of a positive float grow with it: exponent, then mantissa. Of `bits + carry`, the part above
    `_BUCKET_SHIFT` is the bucket: it steps up exactly where the bits pass the one bound a cell may contain.
    """
    bounds = np.append(_OCTAVE, 2.0).view(np.int64) - np.float64(1.0).view(np.int64)
    starts = np.arange(2**_CELL_BITS) << _CELL_SHIFT
    bucket = np.searchsorted(bounds, starts + (1 << _CELL_SHIFT) - 1) - 1  # of the last value in the cell
    first = np.maximum(bounds[bucket] + 1, starts)  # value of that bucket in the cell
    carry: Ints = ((bucket - (1023 << SCALE)) << _BUCKET_SHIFT) - first
    return carry


_CARRY: Final = _carries()


def _indices(values: Floats) -> Ints:
    """Bucket indices at `SCALE` of positive values; anything for zeros."""
    bits = values.view(np.int64)
    indices: Ints = (bits + _CARRY[(bits >> _CELL_SHIFT) & (2**_CELL_BITS - 1)]) >> _BUCKET_SHIFT
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
        return np.asarray(np.ldexp(_OCTAVE[index & (2**SCALE - 1)], index >> SCALE))


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
    counts: Ints

    @property
    def end(self) -> int:
        return self.offset + len(self.counts)

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
            return _NO_BUCKETS
        used = np.flatnonzero(self.counts)
        return _Range(self.offset + int(used[0]), self.counts[used[0] : used[-1] + 1])


_NO_BUCKETS: Final = _Range(0, np.zeros(0, dtype=np.int64))


def _sum(ranges: Iterable[_Range]) -> _Range:
    used = [each for each in ranges if len(each.counts)]
    if not used:
        return _NO_BUCKETS
    offset = min(each.offset for each in used)
    counts = np.zeros(max(each.end for each in used) - offset, dtype=np.int64)
    for each in used:
        counts[each.offset - offset : each.end - offset] += each.counts
    return _Range(offset, counts)


def _span(*ranges: _Range) -> int:
    """How many buckets lie between the smallest and the largest magnitude."""
    used = [each for each in ranges if len(each.counts)]
    return max(each.end for each in used) - min(each.offset for each in used) if used else 0


# -- counts on the wire ----------------------------------------------------------------------------

Width: TypeAlias = Literal["u1", "i4", "i8"]
Counts: TypeAlias = list[int] | dict[Width, str]


def _pack(counts: Ints) -> Counts:
    """A list where it is short or no longer than base64 of the narrowest integers that hold the counts."""
    if len(counts) <= PACK_ABOVE:
        plain: list[int] = counts.tolist()
        return plain
    largest = int(counts.max())
    width: Width = "u1" if largest < 2**8 else "i4" if largest < 2**31 else "i8"
    packed: Counts = {width: base64.b64encode(counts.astype(f"<{width}").tobytes()).decode("ascii")}
    if width == "u1":  # four characters for three counts; a list takes at least six
        return packed
    plain = counts.tolist()
    return plain if len(msgspec.json.encode(plain)) <= len(msgspec.json.encode(packed)) else packed


def _unpack(name: str, counts: Counts) -> Ints:
    if not counts and isinstance(counts, list):
        return _NO_BUCKETS.counts
    try:
        if isinstance(counts, list):
            return np.array(counts, dtype=np.int64)
        ((width, text),) = counts.items()
        return np.frombuffer(base64.b64decode(text, validate=True), dtype=f"<{width}").astype(np.int64)
    except (ValueError, TypeError, OverflowError, binascii.Error) as error:
        raise SketchError(
            f'{name} cannot be read ({error}); it must be integers, or one of "u1", "i4", "i8" with base64'
        ) from error


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
        for name, (offset, counts) in (("counts", self._positive), ("negative_counts", self._negative)):
            if len(counts) > MAX_BUCKETS:
                raise SketchError(f"{name} has {len(counts)} buckets, over {MAX_BUCKETS}: downscale first")
            if not -1075 << SCALE <= offset << steps <= (1024 << SCALE) - (len(counts) << steps):
                raise SketchError(f"{name} starts at {offset}; at scale {self.scale} float64 does not reach there")
            if len(counts):
                if (smallest := int(counts.min())) < 0:
                    raise SketchError(f"{name} holds {smallest}; a count must not be negative")
                total += sum(counts.tolist())  # Python's integers do not overflow
        if total >= MAX_COUNT:
            raise SketchError(f"the counts add to {total}; below 2^53 they can be counted exactly")

    @classmethod
    def of(cls, values: Floats) -> Sketch:
        """The sketch of finite `values`; NaN is ignored."""
        bag = SketchBag()
        bag.add(np.zeros(len(values), dtype=np.int64), values)
        return bag.sketches().get(0, EMPTY)

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
    def count(self) -> int:
        """How many values it holds."""
        return self.zero_count + int(self._positive.counts.sum() + self._negative.counts.sum())

    def quantile(self, q: float, minimum: float | None = None, maximum: float | None = None) -> float:
        """The value at rank ceil(q * count); see `quantiles`."""
        return self.quantiles((q,), minimum, maximum)[0]

    def quantiles(self, qs: Sequence[float], minimum: float | None = None, maximum: float | None = None) -> list[float]:
        """The values at the ranks ceil(q * count), within 0.55 % at scale 6, clamped to the exact extremes.

        NaN for an empty sketch. Raises SketchError for a q outside 0..1.
        """
        positive, negative = self._positive, self._negative
        counts = np.concatenate([negative.counts[::-1], [self.zero_count], positive.counts])
        codes = np.concatenate([-negative.indices[::-1] - _BIAS, [0], positive.indices + _BIAS])
        cumulated = counts.cumsum()
        ranks = _ranks(qs, cumulated[-1])
        if not cumulated[-1]:
            return [float("nan")] * len(qs)
        found = _representatives(codes[cumulated.searchsorted(ranks)], _steps_to(self.scale))
        low, high = -np.inf if minimum is None else minimum, np.inf if maximum is None else maximum
        clamped: list[float] = found.clip(low, high).tolist()
        return clamped

    def merge(self, other: Sketch) -> Sketch:
        """The sketch of both sets of values."""
        return merge((self, other))

    def downscale(self, to_scale: int) -> Sketch:
        """The sketch of the same values at a coarser scale. Raises SketchError if `to_scale` is finer."""
        if to_scale > self.scale:
            raise SketchError(f"scale {self.scale} cannot become {to_scale}: what was merged cannot be taken apart")
        steps = self.scale - to_scale
        return _sketch(to_scale, self.zero_count, self._positive.coarser(steps), self._negative.coarser(steps))


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


def merge(sketches: Iterable[Sketch]) -> Sketch:
    """The sketch of all their values together, at the coarsest of their scales; `EMPTY` for none."""
    parts = list(sketches)
    scale = min((part.scale for part in parts), default=SCALE)
    return _sketch(
        scale,
        sum(part.zero_count for part in parts),
        _sum(part._positive.coarser(part.scale - scale) for part in parts),
        _sum(part._negative.coarser(part.scale - scale) for part in parts),
    )


# -- many series at once ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Summaries:
    """What a `SketchBag` held: quantiles of every series at once, and its sketches one by one.

    `slots` has shape (S,), ascending; `counts` (S,) values each; `values` (S, Q), the quantiles asked for.
    """

    slots: Ints
    counts: Ints
    values: Floats
    _steps: Ints  # (S,): how much coarser than SCALE
    _cuts: Ints  # (S, 4): where its negative codes start, its zero, its positive codes, and where they end
    _codes: Ints
    _bucket_counts: Ints

    def sketch(self, row: int) -> Sketch:
        """The sketch of `slots[row]`."""
        start, zero, positive, end = self._cuts[row].tolist()
        codes, counts = self._codes, self._bucket_counts
        return _sketch(
            SCALE - int(self._steps[row]),
            int(counts[zero]) if zero < positive else 0,
            _scattered(codes[positive:end] - _BIAS, counts[positive:end]),
            _scattered(-codes[start:zero][::-1] - _BIAS, counts[start:zero][::-1]),
        )

    def sketches(self) -> dict[int, Sketch]:
        return {slot: self.sketch(row) for row, slot in enumerate(self.slots.tolist())}


def _scattered(indices: Ints, counts: Ints) -> _Range:
    if not len(indices):
        return _NO_BUCKETS
    offset = int(indices[0])
    dense = np.zeros(int(indices[-1]) - offset + 1, dtype=np.int64)
    dense[indices - offset] = counts
    return _Range(offset, dense)


class SketchBag:
    """Counts of (slot, bucket) for many series, added in pooled numpy calls.

    A slot is the caller's index of a series: 0 <= slot < 2^43, best small and dense. Values wait in a buffer
    and are counted together: those near the first value of their slot (a factor of 16 either way) in a row of
    counters, which needs no sorting; the others, and slots from `ROWS` on, as sorted pairs. Memory: 1 MB of
    buffer, 4 kB a row and 16 bytes for each distinct pair.
    """

    def __init__(self) -> None:
        self._pending_slots = np.empty(PENDING_VALUES, dtype=np.int64)
        self._pending_values = np.empty(PENDING_VALUES, dtype=np.float64)
        self._pending = 0
        self._origins: Ints = np.zeros(0, dtype=np.int64)  # code of a row's first counter; 0: not known yet
        self._rows: Ints = np.zeros((0, _ROW), dtype=np.int64)
        self._keys: Ints = np.zeros(0, dtype=np.int64)  # slot, then code: ascending
        self._counts: Ints = np.zeros(0, dtype=np.int64)

    def add(self, slots: NDArray[np.integer[Any]], values: Floats) -> None:
        """Count `values[i]` in series `slots[i]`, shape (N,) both; NaN is absent, infinities never come."""
        if len(slots) != len(values):
            raise SketchError(f"{len(slots)} slots came with {len(values)} values; each value needs its slot")
        if len(slots) and (slots.min() < 0 or slots.max() >= _MAX_SLOT):
            raise SketchError(f"slots are {slots.min()} to {slots.max()}; they must be from 0 to below 2^43")
        done = 0
        while done < len(values):
            taken = min(len(values) - done, PENDING_VALUES - self._pending)
            room = slice(self._pending, self._pending + taken)
            self._pending_slots[room] = slots[done : done + taken]
            self._pending_values[room] = values[done : done + taken]
            self._pending, done = room.stop, done + taken
            if self._pending == PENDING_VALUES:
                self._count_pending()

    def sketches(self) -> dict[int, Sketch]:
        """The sketch of each slot, by ascending slot, however the adds were cut."""
        return self.summaries(()).sketches()

    def summaries(self, quantiles: Sequence[float] = (0.5, 0.9, 0.99)) -> Summaries:
        """All so far, in one pass; adding may go on. Raises SketchError for a quantile outside 0..1."""
        steps, keys, counts = _within_max_buckets(*self._table())
        slots = (keys >> _CODE_BITS)[_first_of_each(keys >> _CODE_BITS)]
        cuts = keys.searchsorted(_keys_of(slots[:, None], np.array([0, _CODE_ZERO, _CODE_ZERO + 1, 2**_CODE_BITS])))
        codes, cumulated = _codes_of(keys), np.append(0, counts.cumsum())
        before, after = cumulated[cuts[:, 0]], cumulated[cuts[:, 3]]
        ranks = _ranks(quantiles, (after - before)[:, None]) + before[:, None]
        values = _representatives(codes[cumulated.searchsorted(ranks) - 1], steps[:, None])
        return Summaries(slots, after - before, values, steps, cuts, codes, counts)

    def _count_pending(self) -> None:
        values = self._pending_values[: self._pending]
        slots = self._pending_slots[: self._pending]
        self._pending = 0
        present = ~np.isnan(values)
        if not present.all():
            values, slots = values[present], slots[present]
        if len(values):
            self._count(slots, _codes(values) + _CODE_ZERO)

    def _count(self, slots: Ints, codes: Ints) -> None:
        self._grow(int(slots.max()) + 1)
        rows = np.minimum(slots, len(self._origins) - 1)
        new = self._origins[rows] == 0
        if new.any():
            self._origins[rows[new]] = codes[new] - _ROW // 2
        at = codes - self._origins[rows]
        near = (at >= 0) & (at < _ROW) & (slots < ROWS)
        if not near.all():
            far = ~near
            self._absorb(*np.unique(_keys_of(slots[far], codes[far]), return_counts=True))
            rows, at = rows[near], at[near]
        np.add.at(self._rows.reshape(-1), rows * _ROW + at, 1)

    def _grow(self, slots: int) -> None:
        """Rows for so many slots, at least doubling, at most `ROWS`."""
        have = len(self._origins)
        if have < min(slots, ROWS):
            more = min(max(slots, 2 * have), ROWS) - have
            self._origins = np.append(self._origins, np.zeros(more, dtype=np.int64))
            self._rows = np.concatenate([self._rows, np.zeros((more, _ROW), dtype=np.int64)])

    def _table(self) -> tuple[Ints, Ints]:
        """All keys, ascending, and their counts. A pair is in a row or among the sorted, never in both."""
        self._count_pending()
        used = np.flatnonzero(self._rows)
        slots = used // _ROW
        keys = np.concatenate([_keys_of(slots, self._origins[slots] + used % _ROW), self._keys])
        counts = np.concatenate([self._rows.reshape(-1)[used], self._counts])
        order = keys.argsort(kind="stable") if len(self._keys) else slice(None)
        return keys[order], counts[order]

    def _absorb(self, keys: Ints, counts: Ints) -> None:
        """Add sorted, distinct keys: most are known after a while, and only new ones move memory."""
        if not len(self._keys):
            self._keys, self._counts = keys, counts
            return
        at = self._keys.searchsorted(keys)
        known = self._keys.take(at, mode="clip") == keys
        self._counts[at[known]] += counts[known]
        if not known.all():
            new = ~known
            self._keys = np.insert(self._keys, at[new], keys[new])
            self._counts = np.insert(self._counts, at[new], counts[new])


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


def _first_of_each(ascending: Ints) -> Ints:
    return np.flatnonzero(np.diff(ascending, prepend=ascending[:1] - 1))


def _keys_of(slots: Ints, codes: Ints) -> Ints:
    return (slots << _CODE_BITS) + codes


def _codes_of(keys: Ints) -> Ints:
    return (keys & (2**_CODE_BITS - 1)) - _CODE_ZERO
