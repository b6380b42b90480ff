"""Histograms of others become our sketches: exactly where they are exponential, as Prometheus guesses where not."""

from __future__ import annotations

import math
import re
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streammon.histograms import from_buckets
from streammon.sketch import MAX_COUNT, SCALE, Sketch, SketchError, bucket_index, merge


def prometheus_quantile(q: float, bounds: list[float], counts: list[int]) -> float:
    """``histogram_quantile`` of Prometheus 2.42, ``bucketQuantile``, for one set of buckets."""
    cumulated = np.cumsum(counts)
    rank = q * cumulated[-1]
    bucket = int(np.searchsorted(cumulated[:-1], rank))
    if bucket == len(bounds):
        return bounds[-1]
    start = 0.0 if bucket == 0 else bounds[bucket - 1]
    before = 0 if bucket == 0 else cumulated[bucket - 1]
    return float(start + (bounds[bucket] - start) * (rank - before) / counts[bucket])


@given(
    st.lists(st.floats(0.001, 1000), min_size=1, max_size=12, unique=True).map(sorted),
    st.data(),
    st.sampled_from([0.5, 0.9, 0.99]),
)
def test_quantiles_are_those_of_prometheus(bounds: list[float], data: st.DataObject, q: float) -> None:
    size = len(bounds) + 1
    counts = data.draw(st.lists(st.integers(0, 5000), min_size=size, max_size=size).filter(any))
    sketch = from_buckets(bounds, counts)
    assert sketch.count == sum(counts)
    expected = prometheus_quantile(q, bounds, counts)
    rank = math.ceil(q * sum(counts)) or 1
    bucket = int(np.searchsorted(np.cumsum(counts), rank))
    if bucket < len(bounds):
        width = bounds[bucket] - (0.0 if bucket == 0 else bounds[bucket - 1])
        room = width / min(counts[bucket], 256)  # a sketch gives a value that was there, Prometheus one between
        found = sketch.quantile(q)
        assert abs(found - expected) <= room + 0.0112 * max(found, expected)
    else:
        assert sketch.quantile(q) == pytest.approx(bounds[-1], rel=0.0112)


@given(
    st.lists(st.floats(0.001, 1000), min_size=1, max_size=6, unique=True).map(sorted),
    st.data(),
    st.sampled_from([0.5, 0.9, 0.99]),
)
@settings(max_examples=30, deadline=None)
def test_histograms_of_few_values_each_merge_into_what_prometheus_says_of_all(
    bounds: list[float], data: st.DataObject, q: float
) -> None:
    """Or a service with one request a second would have its percentiles at the bounds, or between."""
    size = len(bounds) + 1
    each = data.draw(st.lists(st.integers(0, 3), min_size=size, max_size=size).filter(any))
    times = 200
    parts = [from_buckets(bounds, each, [count * time for count in each]) for time in range(times)]
    together, counts = merge(parts), [count * times for count in each]
    rank = math.ceil(q * sum(counts))
    bucket = int(np.searchsorted(np.cumsum(counts), rank))
    if bucket < len(bounds):
        expected = prometheus_quantile(q, bounds, counts)
        width = bounds[bucket] - (0.0 if bucket == 0 else bounds[bucket - 1])
        assert abs(together.quantile(q) - expected) <= 0.02 * width + 0.0112 * bounds[bucket]


def test_very_many_buckets_take_one_step_each() -> None:
    bounds = np.geomspace(1e-3, 1e3, 4000).tolist()
    sketch = from_buckets(bounds, [10**6] * 4001)
    assert sketch.count == 4001 * 10**6
    assert sketch.quantile(0.5) == pytest.approx(1.0, rel=0.0112)


def test_the_most_values_there_can_be_and_the_widest_buckets_are_counted_exactly() -> None:
    most = sys.float_info.max
    sketch = from_buckets([-most, most], [0, MAX_COUNT - 1, 0])
    assert sketch.count == MAX_COUNT - 1
    assert sketch.quantile(0.0) < 0 < sketch.quantile(1.0)


def test_first_bucket_begins_at_zero_and_the_last_bound_stands_for_what_is_above() -> None:
    sketch = from_buckets([1.0], [100, 100])
    assert sketch.quantile(0.25) == pytest.approx(0.5, rel=0.02)
    assert sketch.quantile(1.0) == pytest.approx(1.0, rel=0.0112)
    assert from_buckets([1.0, math.inf], [100, 100]) == sketch


def test_bounds_below_zero_are_kept() -> None:
    sketch = from_buckets([-1.0, 0.0, 1.0], [1, 10, 10, 0])
    assert sketch.quantile(0.25) < 0 < sketch.quantile(0.9)


def test_without_bounds_only_the_count_is_known() -> None:
    assert from_buckets([], [7]).count == 7
    assert from_buckets([], [0]).count == 0


@pytest.mark.parametrize(
    ("bounds", "counts", "named"),
    [
        ([1.0, 1.0], [1, 1, 1], "ascend"),
        ([math.nan], [1, 1], "finite"),
        ([-math.inf], [1, 1], "finite"),
        ([1.0], [1], "1 counts"),
        ([1.0], [1, -1], "-1"),
        ([1.0], [2**60, 0], "2^53"),
    ],
)
def test_buckets_that_cannot_be_are_refused(bounds: list[float], counts: list[int], named: str) -> None:
    with pytest.raises(SketchError, match=re.escape(named)):
        from_buckets(bounds, counts)


VALUES = st.lists(st.floats(1e-3, 1e6), min_size=1, max_size=100)


@given(VALUES, st.integers(0, 6))
def test_exponential_histogram_of_our_scales_is_taken_over_exactly(values: list[float], scale: int) -> None:
    ours = Sketch.of(np.array(values)).downscale(scale)
    indices = bucket_index(np.array(values), scale)
    counts = np.bincount(indices - indices.min()).tolist()
    assert Sketch.of_buckets(scale, 0, int(indices.min()), counts) == ours


@given(VALUES, st.integers(7, 20))
def test_finer_histogram_is_joined_without_loss(values: list[float], scale: int) -> None:
    bounds = [math.floor(math.log2(value) * 2**12) for value in values]  # where a value of these buckets lies
    finer = sorted((index << scale >> 12) for index in bounds)
    finer = [index for index in finer if index - finer[0] < 50_000]
    counts = np.bincount(np.array(finer) - finer[0]).tolist()
    sketch = Sketch.of_buckets(scale, 3, finer[0], counts)
    expected = sorted(index >> (scale - SCALE) for index in finer)
    exact = Sketch.of_buckets(SCALE, 3, expected[0], np.bincount(np.array(expected) - expected[0]).tolist())
    assert sketch == exact
    assert sketch.count == len(finer) + 3


@pytest.mark.parametrize("scale", [-1, -4, -10, -11])
def test_wider_buckets_keep_their_counts(scale: int) -> None:
    sketch = Sketch.of_buckets(scale, 2, -1, [5, 7], -1, [3, 1])
    assert sketch.count == 18
    assert sketch.scale == 0
    width = 2.0 ** min(2**-scale, 1023)
    assert sketch.quantile(1.0) <= width
    assert sketch.quantile(0.0) >= -width


@pytest.mark.parametrize(
    "lie",
    [
        (6, 0, 0, [-1]),
        (6, -1, 0, [1]),
        (6, 0, 2**31 - 1, [1]),
        (20, 0, 2**31 - 1, [1] * 3),
        (20, 0, 2**70, [1]),
        (40, 0, -(2**62), [1, 1]),
        (0, 0, -(2**31), [1]),
        (-1, 0, 2**31 - 1, [1]),
        (-12, 0, 0, [1]),
        (6, 0, 0, [2**63]),
        (6, 0, 0, [2**62, 2**62]),
    ],
)
def test_exponential_histogram_that_lies_is_refused(lie: tuple[int, int, int, list[int]]) -> None:
    with pytest.raises(SketchError):
        Sketch.of_buckets(*lie)
