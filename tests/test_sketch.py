"""Sketches against exact answers: integer arithmetic for buckets, numpy's `inverted_cdf` for quantiles."""

from __future__ import annotations

import base64
import math
import sys
import tracemalloc
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from streammon import sketch as module
from streammon.sketch import (
    EMPTY,
    MAX_BUCKETS,
    MAX_COUNT,
    SCALE,
    Accumulator,
    Sketch,
    SketchBag,
    SketchError,
    bucket_bounds,
    bucket_index,
    merge,
)

Floats = NDArray[np.float64]

WORST = (2 ** (1 / 64) - 1) / (2 ** (1 / 64) + 1) * (1 + 1e-12)  # 0.5415 %, and the rounding of the arithmetic
QS = (0.0, 0.001, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 0.999, 1.0)

numbers = st.floats(allow_nan=False, allow_infinity=False)
positive = st.floats(min_value=5e-324, allow_infinity=False, allow_nan=False)
moderate = st.floats(-1e6, 1e6).filter(lambda value: value == 0 or abs(value) > 1e-6)
arrays = st.lists(numbers | moderate, max_size=40).map(lambda values: np.array(values, dtype=np.float64))


# -- buckets ---------------------------------------------------------------------------------------


def exceeds(value: float, octaves: int, numerator: int, denominator: int) -> bool:
    """value > 2^(octaves + numerator/denominator), in integers."""
    top, bottom = value.as_integer_ratio()
    left, right = top**denominator, bottom**denominator
    exponent = octaves * denominator + numerator
    return bool(left > right << exponent if exponent >= 0 else left << -exponent > right)


def test_bounds_of_an_octave_are_the_floats_nearest_to_the_true_bounds() -> None:
    lower, _ = bucket_bounds(np.arange(64))
    for j, bound in enumerate(lower.tolist()):
        half_ulp = math.ulp(bound) / 2
        top, bottom = bound.as_integer_ratio()
        half_top, half_bottom = half_ulp.as_integer_ratio()
        below = (top * half_bottom - half_top * bottom) ** 64
        above = (top * half_bottom + half_top * bottom) ** 64
        assert below < (bottom * half_bottom) ** 64 << j < above


@pytest.mark.parametrize("octave", [-1074, -1073, -1030, -1023, -1022, -1021, -40, -1, 0, 1, 50, 1000, 1023])
@pytest.mark.parametrize("scale", range(SCALE + 1))
def test_a_bound_is_the_last_value_of_its_bucket(octave: int, scale: int) -> None:
    indices = np.arange(octave << scale, (octave + 1) << scale)
    if octave < -1021:  # below, neighbouring bounds round to the same subnormal: only whole octaves are exact
        indices = indices[:1]
    bounds = bucket_bounds(indices, scale)[0]
    assert bucket_index(bounds, scale).tolist() == (indices - 1).tolist()
    if octave >= -1021:
        assert bucket_index(np.nextafter(bounds, np.inf), scale).tolist() == indices.tolist()
        assert bucket_index(np.nextafter(bounds, 0), scale).tolist() == (indices - 1).tolist()


@given(positive)
@settings(max_examples=500)
def test_bucket_index_agrees_with_integer_arithmetic(value: float) -> None:
    index = int(bucket_index(np.array([value]))[0])
    octaves, j = divmod(index, 64)
    above = exceeds(value, octaves, j, 64)
    within = not exceeds(value, octaves, j + 1, 64)
    rounded_bound = float(bucket_bounds(index)[1])
    assert above
    assert within or value == rounded_bound


@given(st.integers(-1022 * 64, 1024 * 64 - 2), st.integers(-3, 3))
@settings(max_examples=500)
def test_values_next_to_a_bound_fall_on_the_right_side(index: int, ulps: int) -> None:
    upper = bucket_bounds(index)[1]
    value = np.float64((upper.view(np.int64) + ulps).view(np.float64))
    assert int(bucket_index(np.array([value]))[0]) == index + (ulps > 0)


@given(st.lists(positive, min_size=1), st.integers(0, SCALE))
def test_a_coarser_index_is_the_finer_one_shifted(values: list[float], scale: int) -> None:
    array = np.array(values)
    assert (bucket_index(array, scale) == bucket_index(array) >> (SCALE - scale)).all()


def test_more_than_can_be_counted_are_merged_by_their_shares() -> None:
    """Whoever claims to have them must not stop those who add them up."""
    low, high = Sketch.of_equal(1.0, MAX_COUNT - 1), Sketch.of_equal(100.0, MAX_COUNT - 1)
    for few, many in ((1, 3), (5, 40)):
        merged = merge([low] * few + [high] * many)
        assert merged.quantile(few / (few + many) - 0.01) == pytest.approx(1.0, rel=WORST)
        assert merged.quantile(few / (few + many) + 0.01) == pytest.approx(100.0, rel=WORST)


@given(st.lists(st.tuples(moderate, st.integers(0, 5))))
def test_values_that_are_counted_give_the_sketch_of_all_of_them(counted: list[tuple[float, int]]) -> None:
    values, counts = (np.array(each) for each in ([value for value, _ in counted], [count for _, count in counted]))
    assert Sketch.of_counted(values.astype(float), counts.astype(int)) == Sketch.of(
        np.repeat(values, counts.astype(int))
    )


@given(st.lists(moderate, min_size=1), st.integers(0, SCALE))
def test_bounds_of_a_sketch_are_those_of_its_outermost_buckets(values: list[float], scale: int) -> None:
    sketch = Sketch.of(np.array(values)).downscale(scale)
    low, high = sketch.bounds
    assert low <= min(values) <= max(values) <= high
    for bound, value in ((low, min(values)), (high, max(values))):
        bucket = bucket_index(np.array([abs(value) or 1.0]), scale)
        assert bound in np.sign(value) * np.array(bucket_bounds(bucket, scale))


def test_bounds_of_a_sketch_reach_to_the_ends_of_the_floats() -> None:
    largest = Sketch.of(np.array([1.79e308, -1.79e308]))
    assert largest.bounds == (-sys.float_info.max, sys.float_info.max)
    assert Sketch.of(np.array([5e-324])).bounds == (5e-324, 5e-324)
    assert all(map(math.isnan, EMPTY.bounds))


@given(positive)
def test_a_value_lies_within_the_bounds_of_its_bucket(value: float) -> None:
    lower, upper = bucket_bounds(bucket_index(np.array([value])))
    assert lower[0] <= value <= upper[0]


def test_index_at_the_ends_of_float64() -> None:
    ends = np.array([5e-324, 2.0**-1022, np.finfo(np.float64).max])
    assert bucket_index(ends).tolist() == [-1074 * 64 - 1, -1022 * 64 - 1, 1024 * 64 - 1]
    assert bucket_index(ends).dtype == np.int32


def test_index_reads_strided_input() -> None:
    values = np.linspace(0.1, 100, 1000)
    assert (bucket_index(values[::7]) == bucket_index(values)[::7]).all()


def test_a_scale_finer_than_ours_is_refused() -> None:
    with pytest.raises(SketchError, match="scale is 7"):
        bucket_index(np.ones(1), 7)


# -- quantiles -------------------------------------------------------------------------------------

random = np.random.default_rng(20)
DISTRIBUTIONS: dict[str, Callable[[int], Any]] = {
    "lognormal": lambda n: random.lognormal(-3, 1, n),
    "pareto of infinite mean": lambda n: random.pareto(0.7, n) + 1e-3,
    "pareto": lambda n: 0.01 * (1 + random.pareto(1.5, n)),
    "uniform": lambda n: random.uniform(0, 1, n),
    "constant": lambda n: np.full(n, 0.37),
    "bimodal": lambda n: np.where(random.random(n) < 0.9, random.normal(0.02, 0.002, n), random.normal(3, 0.1, n)),
    "tiny": lambda n: random.exponential(1e-12, n),
    "huge": lambda n: random.exponential(1e15, n),
    "integers": lambda n: random.integers(0, 5000, n).astype(np.float64),
    "powers of two": lambda n: 2.0 ** random.integers(-20, 20, n),
    "bucket bounds": lambda n: bucket_bounds(random.integers(-1000, 1000, n))[0],
    "just above bucket bounds": lambda n: np.nextafter(bucket_bounds(random.integers(-1000, 1000, n))[0], np.inf),
    "mostly zeros": lambda n: np.where(random.random(n) < 0.7, 0.0, random.exponential(1, n)),
    "normal, both signs": lambda n: random.normal(0, 10, n),
    "negative": lambda n: -random.lognormal(0, 2, n),
    "signs and zeros": lambda n: random.integers(-3, 4, n) * random.exponential(1, n),
}


def relative_errors(found: Any, exact: Any) -> Any:
    found, exact = np.asarray(found), np.asarray(exact)
    return np.abs(found - exact) / np.where(exact == 0, 1e-300, np.abs(exact))


@pytest.mark.parametrize("size", [1, 2, 10, 999, 20_000])
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_quantiles_are_within_the_promised_error(name: str, size: int) -> None:
    values = DISTRIBUTIONS[name](size)
    exact = np.quantile(values, QS, method="inverted_cdf")
    assert relative_errors(Sketch.of(values).quantiles(QS), exact).max() <= WORST


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_quantiles_clamped_to_known_extremes_are_exact_at_both_ends(name: str) -> None:
    values = DISTRIBUTIONS[name](500)
    sketch, low, high = Sketch.of(values), float(values.min()), float(values.max())
    clamped = sketch.quantiles(QS, minimum=low, maximum=high)
    assert low <= min(clamped) <= max(clamped) <= high
    assert relative_errors(clamped, np.quantile(values, QS, method="inverted_cdf")).max() <= WORST
    if name == "constant":
        assert set(clamped) == {0.37}


@given(st.lists(moderate, min_size=1, max_size=60), st.floats(0, 1))
def test_any_quantile_of_anything_is_within_the_promised_error(values: list[float], q: float) -> None:
    exact = np.quantile(values, q, method="inverted_cdf")
    assert relative_errors(Sketch.of(np.array(values)).quantile(q), exact) <= WORST


@pytest.mark.parametrize("scale", range(SCALE))
def test_a_coarser_sketch_keeps_the_error_of_its_scale(scale: int) -> None:
    values = random.lognormal(0, 1, 5000)
    base = 2 ** (2.0**-scale)
    found = Sketch.of(values).downscale(scale).quantiles(QS)
    exact = np.quantile(values, QS, method="inverted_cdf")
    assert relative_errors(found, exact).max() <= (base - 1) / (base + 1) * (1 + 1e-12)


def test_the_worst_case_of_a_bucket_is_reached_at_both_bounds_alike() -> None:
    lower, upper = bucket_bounds(5)
    value = Sketch.of(np.array([upper])).quantile(1)
    assert 1 - value / upper == pytest.approx(0.0054150, rel=1e-4)
    assert value / lower - 1 == pytest.approx(0.0054150, rel=1e-4)


def test_quantiles_of_an_empty_sketch_are_nan() -> None:
    assert np.isnan(EMPTY.quantiles((0, 0.5, 1))).all()
    assert EMPTY.count == 0


@pytest.mark.parametrize("q", [-0.1, 1.1, math.nan])
def test_a_quantile_outside_0_to_1_is_refused(q: float) -> None:
    with pytest.raises(SketchError, match="from 0 to 1"):
        Sketch.of(np.ones(3)).quantile(q)


def test_the_largest_and_the_smallest_float_have_finite_quantiles() -> None:
    values = np.array([np.finfo(np.float64).max, 5e-324, -np.finfo(np.float64).max])
    assert np.isfinite(Sketch.of(values).quantiles((0, 0.5, 1))).all()


# -- addition --------------------------------------------------------------------------------------


@given(st.lists(arrays, max_size=5))
def test_merging_equals_sketching_the_union(parts: list[Floats]) -> None:
    whole = Sketch.of(np.concatenate([*parts, np.zeros(0)]))
    assert msgspec.json.encode(merge(map(Sketch.of, parts))) == msgspec.json.encode(whole)


@given(st.lists(arrays, max_size=6), st.lists(st.integers(0, SCALE), min_size=6, max_size=6))
def test_an_accumulator_holds_what_merge_gives(parts: list[Floats], scales: list[int]) -> None:
    sketches = [Sketch.of(part) for part in parts]
    mixed = [each.downscale(min(scale, each.scale)) for each, scale in zip(sketches, scales, strict=False)]
    total = Accumulator()
    for each in mixed:
        total.add(each, each.count)
    assert total.sketch() == merge(mixed)
    assert repr(total.quantiles([0.0, 0.5, 1.0])) == repr(merge(mixed).quantiles([0.0, 0.5, 1.0]))


@pytest.mark.parametrize("count", [255, 256, 2**16, 2**32 - 1, 2**32, 2**52])
def test_an_accumulator_counts_as_far_as_a_sketch_does(count: int) -> None:
    many = Sketch(scale=6, zero_count=0, offset=3, counts=[count, 1])
    total = Accumulator()
    total.add(many, many.count)
    total.add(Sketch.of(np.array([1e300])), 1)
    assert total.sketch() == many.merge(Sketch.of(np.array([1e300])))


@given(arrays, arrays, arrays)
def test_merging_is_associative_and_commutative(a: Floats, b: Floats, c: Floats) -> None:
    x, y, z = map(Sketch.of, (a, b, c))
    assert x.merge(y).merge(z) == z.merge(x.merge(y)) == merge((y, z, x))


@given(arrays, arrays, st.integers(0, SCALE))
def test_downscaling_commutes_with_merging(a: Floats, b: Floats, scale: int) -> None:
    x, y = Sketch.of(a), Sketch.of(b)
    scale = min(scale, x.merge(y).scale)
    assert x.downscale(scale).merge(y.downscale(scale)) == x.merge(y).downscale(scale)
    assert x.downscale(scale).merge(y) == x.merge(y).downscale(scale)


def test_downscaling_to_a_finer_scale_is_refused() -> None:
    with pytest.raises(SketchError, match="cannot be taken apart"):
        Sketch.of(np.ones(1)).downscale(4).downscale(5)


def test_a_sketch_over_the_bucket_bound_is_downscaled_exactly() -> None:
    values = np.float64(10) ** np.arange(-150, 150)
    sketch = Sketch.of(values)
    assert sketch.scale == 2
    assert sketch.count == 300
    assert merge(Sketch.of(values[i::3]) for i in range(3)) == sketch
    assert relative_errors(sketch.quantile(0.5), 1e-1) < 0.09


@pytest.mark.parametrize(("buckets", "scale"), [(MAX_BUCKETS, SCALE), (MAX_BUCKETS + 1, SCALE - 1)])
def test_the_bucket_bound_is_kept_to_the_bucket(buckets: int, scale: int) -> None:
    ends = bucket_bounds(np.array([-7, buckets - 8]))[1]
    assert Sketch.of(ends).scale == scale
    assert Sketch.of(ends[:1]).merge(Sketch.of(ends[1:])) == Sketch.of(ends)
    assert Sketch.of(ends * [-1, 1]).scale == scale
    bag = SketchBag()
    bag.add(np.zeros(2, dtype=np.int64), ends)
    assert bag.summaries(QS).values[0].tolist() == Sketch.of(ends).quantiles(QS)


# -- the wire --------------------------------------------------------------------------------------


@given(arrays)
def test_the_wire_gives_back_the_same_sketch(values: Floats) -> None:
    sketch = Sketch.of(values)
    assert Sketch.from_wire(sketch.to_wire()) == sketch
    assert msgspec.json.decode(msgspec.json.encode(sketch), type=Sketch) == sketch


def test_a_short_sketch_is_readable_and_leaves_out_negatives() -> None:
    wire = msgspec.json.encode(Sketch.of(np.array([0.0, 1.0, 1.0, 1.02, np.nan])))
    assert wire == b'{"scale":6,"zero_count":1,"offset":-1,"counts":[2,0,1]}'


def test_negative_values_have_fields_of_their_own() -> None:
    assert Sketch.of(np.array([-1.0, -1.02, -1.02])).to_wire() == {
        "scale": 6,
        "zero_count": 0,
        "offset": 0,
        "counts": [],
        "negative_offset": -1,
        "negative_counts": [1, 0, 2],
    }


@pytest.mark.parametrize(("largest", "form"), [(255, "u1"), (10**6, "i4"), (2**31 - 1, "i4"), (2**31, "i8")])
def test_long_counts_are_packed_as_narrow_as_they_fit(largest: int, form: str) -> None:
    counts = np.full(100, largest)
    packed = module._pack(counts)
    assert isinstance(packed, dict)
    assert list(packed) == [form]
    assert (module._unpack("counts", packed) == counts).all()


def test_long_counts_stay_a_list_where_that_is_shorter() -> None:
    counts = np.zeros(100, dtype=np.int64)
    counts[[0, 99]] = 300
    assert module._pack(counts) == counts.tolist()


def test_list_and_packed_counts_mean_the_same() -> None:
    counts = list(range(50))
    packed = base64.b64encode(np.array(counts, dtype="<i4").tobytes()).decode()
    sketches = [
        Sketch.from_wire({"scale": 6, "zero_count": 0, "offset": 3, "counts": form})
        for form in (counts, {"i4": packed})
    ]
    assert sketches[0].merge(EMPTY) == sketches[1].merge(EMPTY)
    assert sketches[0].quantiles(QS) == sketches[1].quantiles(QS)


GOOD: dict[str, Any] = {"scale": 6, "zero_count": 0, "offset": 0, "counts": [1]}


@pytest.mark.parametrize(
    ("lie", "complaint"),
    [
        ({"scale": 7}, "scale is 7"),
        ({"scale": -1}, "scale is -1"),
        ({"scale": "6"}, "scale"),
        ({"zero_count": -1}, "zero_count is -1"),
        ({"counts": [1, -1]}, "counts holds -1"),
        ({"negative_counts": [1, -2]}, "negative_counts holds -2"),
        ({"counts": [1.5]}, "counts"),
        ({"counts": [2**70]}, "counts cannot be read"),
        ({"counts": [2**62, 2**62, 2**62]}, "counted exactly"),
        ({"zero_count": MAX_COUNT}, "zero_count is"),
        ({"zero_count": MAX_COUNT - 1}, "counted exactly"),
        ({"zero_count": 10**400}, "zero_count"),
        ({"counts": [0] * (MAX_BUCKETS + 1)}, "4097 buckets"),
        ({"counts": {"u1": "AQ"}}, "counts cannot be read"),
        ({"counts": {"u1": "A?=="}}, "counts cannot be read"),
        ({"counts": {"u1": "é"}}, "counts cannot be read"),
        ({"counts": {"i4": "AQI="}}, "counts cannot be read"),
        ({"counts": {"f8": "AAAAAAAAAAA="}}, "f8"),
        ({"counts": {}}, "counts cannot be read"),
        ({"counts": {"u1": "", "i4": ""}}, "counts cannot be read"),
        ({"offset": 1024 * 64}, "float64 does not reach"),
        ({"offset": -(10**15)}, "float64 does not reach"),
        ({"offset": 10**30}, "float64 does not reach"),
        ({"offset": None}, "offset"),
    ],
)
def test_a_lying_sketch_is_refused_by_name(lie: dict[str, Any], complaint: str) -> None:
    with pytest.raises(SketchError, match=complaint):
        Sketch.from_wire(GOOD | lie)


def test_empty_buckets_at_the_ends_are_trimmed_by_the_next_merge() -> None:
    padded = {"scale": 6, "zero_count": 0, "offset": -2, "counts": [0, 2, 0], "negative_offset": 9}
    assert Sketch.from_wire(padded).merge(EMPTY) == Sketch.of(np.ones(2))


def test_the_error_for_a_missing_field_names_it() -> None:
    with pytest.raises(SketchError, match="zero_count"):
        Sketch.from_wire({"scale": 6})


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["u1", "i4", "i8", "x"]), inner, max_size=2)
    ),
    max_leaves=6,
)


@given(st.fixed_dictionaries({}, optional=dict.fromkeys((*GOOD, "negative_offset", "negative_counts"), json_values)))
@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
def test_any_json_is_read_or_refused_and_nothing_else(fields: dict[str, Any]) -> None:
    try:
        sketch = Sketch.from_wire(GOOD | fields)
    except SketchError:
        return
    assert sketch.merge(EMPTY).count == sketch.count


# -- many series -----------------------------------------------------------------------------------


@given(
    st.lists(st.tuples(st.integers(0, 5), numbers | moderate | st.just(math.nan)), max_size=60),
    st.lists(st.integers(0, 60), max_size=6),
)
def test_sketches_do_not_depend_on_how_adds_were_cut(pairs: list[tuple[int, float]], cuts: list[int]) -> None:
    slots = np.array([slot for slot, _ in pairs], dtype=np.int32)
    values = np.array([value for _, value in pairs], dtype=np.float64)
    cut = SketchBag()
    for slots_part, values_part in zip(np.split(slots, sorted(cuts)), np.split(values, sorted(cuts)), strict=True):
        cut.add(slots_part, values_part)
        cut.summaries(())  # looking in between changes nothing
    present = ~np.isnan(values)
    expected = {int(s): Sketch.of(values[slots == s]) for s in sorted(set(slots[present].tolist()))}
    assert cut.sketches() == expected
    assert list(cut.sketches()) == list(expected)


@given(st.lists(st.tuples(st.integers(0, 3), numbers | moderate), max_size=60))
def test_quantiles_of_a_bag_are_those_of_its_sketches(pairs: list[tuple[int, float]]) -> None:
    bag = SketchBag()
    bag.add(np.array([s for s, _ in pairs], dtype=np.int64), np.array([v for _, v in pairs], dtype=np.float64))
    summaries = bag.summaries(QS)
    assert summaries.values.shape == (len(summaries.slots), len(QS))
    for row, sketch in enumerate(summaries.sketches().values()):
        assert summaries.values[row].tolist() == sketch.quantiles(QS)
        assert summaries.counts[row] == sketch.count


def test_more_values_than_the_buffer_holds_are_all_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PENDING_KEYS", 1000)
    slots = random.integers(0, 50, 25_300)
    values = random.lognormal(0, 3, 25_300)
    bag = SketchBag()
    for start in range(0, len(values), 2999):
        bag.add(slots[start : start + 2999], values[start : start + 2999])
    assert bag.sketches() == {slot: Sketch.of(values[slots == slot]) for slot in range(50)}


def test_quantiles_of_ten_thousand_series_are_within_the_promised_error() -> None:
    slots = np.repeat(np.arange(10_000), 20)
    values = random.lognormal(0, 2, 200_000)
    bag = SketchBag()
    shuffled = random.permutation(len(values))
    bag.add(slots[shuffled], values[shuffled])
    exact = np.quantile(values.reshape(10_000, 20), (0.5, 0.9, 0.99), axis=1, method="inverted_cdf").T
    assert relative_errors(bag.summaries().values, exact).max() <= WORST


def test_one_wide_series_does_not_coarsen_the_others() -> None:
    bag = SketchBag()
    bag.add(np.array([1, 1, 2, 3, 3]), np.array([1e-200, 1e200, 5.0, 0.0, -4.0]))
    assert {slot: sketch.scale for slot, sketch in bag.sketches().items()} == {1: 1, 2: 6, 3: 6}


def test_an_empty_bag_has_no_sketches() -> None:
    bag = SketchBag()
    bag.add(np.zeros(1, dtype=np.int64), np.array([np.nan]))
    assert bag.sketches() == {}
    assert bag.summaries().values.shape == (0, 3)


def test_slots_and_values_of_unequal_length_are_refused() -> None:
    with pytest.raises(SketchError, match="2 slots came with 3 values"):
        SketchBag().add(np.zeros(2, dtype=np.int64), np.zeros(3))


@pytest.mark.parametrize("slot", [-3, 2**43])
def test_a_slot_out_of_range_is_refused(slot: int) -> None:
    with pytest.raises(SketchError, match=f"slots are .*{slot}"):
        SketchBag().add(np.array([1, slot]), np.ones(2))


def test_slots_of_any_size_are_counted() -> None:
    slots = np.repeat([0, 63, 2**13 - 1, 2**13, 10**9, 2**43 - 1], 300)
    values = random.lognormal(0, 4, len(slots))
    bag = SketchBag()
    for start in range(0, len(slots), 500):
        bag.add(slots[start : start + 500], values[start : start + 500])
        bag.summaries(())
    assert bag.sketches() == {slot: Sketch.of(values[slots == slot]) for slot in np.unique(slots).tolist()}


def test_a_series_that_moves_far_from_its_first_value_is_counted() -> None:
    values = np.array([1e-6, 1.0, 1e6, 1e-6 * 16, 1e-6 / 16, -1e-6, 0.0] * 3)
    expected = merge(Sketch.of(value) for value in values[:, None])
    assert Sketch.of(values) == expected
    assert expected.count == 21


@pytest.mark.parametrize("count", [255, 256, 2**32 - 1, 2**32, 2**52])
def test_counts_of_any_size_are_exact(count: int) -> None:
    bag = SketchBag()
    one = np.ones(1)
    bag.add(np.zeros(1, dtype=np.int64), one)
    bag.sketches()
    ((number, shard),) = bag._shards.items()
    bag._shards[number] = shard.plus(shard.keys.astype(np.int64), np.array([count - 1]))
    bag.add(np.zeros(1, dtype=np.int64), one)
    assert bag.sketches()[0].count == count + 1


def test_a_series_takes_memory_for_the_buckets_it_uses() -> None:
    series, values, batch = 10_000, 200_000, 20_000
    latencies = random.lognormal(-3, 1, values)
    slots = np.arange(values) % series
    tracemalloc.start()
    try:
        bag = SketchBag()
        for first in range(0, values, batch):
            bag.add(slots[first : first + batch], latencies[first : first + batch])
        held, _ = tracemalloc.get_traced_memory()
        bag.sketches()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 10 * values, "5 bytes a pair, and half as much again for what waits"
    assert peak < 40e6, "10,000 sketches of half a kilobyte, and the work on one shard"


@pytest.mark.parametrize("value", [0.0, -0.0, 1.0, 0.3, -0.3, 5e-324, -1e308, 2.0 ** (1 / 64), 1e9])
@pytest.mark.parametrize("count", [0, 1, 3, 70_000])
def test_equal_values_give_the_sketch_that_they_give_one_by_one(value: float, count: int) -> None:
    found, expected = Sketch.of_equal(value, count), Sketch.of(np.full(count, value))
    assert msgspec.json.encode(found) == msgspec.json.encode(expected)
    assert Sketch.of_equal(value, 2**52).count == 2**52
