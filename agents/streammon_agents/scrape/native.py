"""Native histograms of Prometheus: sparse exponential buckets, cumulative since they began.

Bucket i of schema s holds ``(2^((i-1)/2^s), 2^(i/2^s)]``, one off from OpenTelemetry's and ours. A client that runs
out of buckets goes over to a coarser schema, or to a wider bucket of zeros, and loses no count by it; so the
difference of two of them is taken at the coarser schema and with the wider zeros.

What it makes of them is exact, but for values in the bucket of zeros, which are taken to be 0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final, NamedTuple

from streammon.sketch import Sketch, SketchError

Buckets = Mapping[int, int]

MAX_SPAN: Final = 1 << 16
"""Buckets from the smallest value to the largest; at the finest schema these are 256 octaves."""


class Native(NamedTuple):
    """Counts by bucket. Fractional counts, as recording rules make them, have been rounded down."""

    schema: int
    zero_threshold: float
    zero_count: int
    positive: Buckets
    negative: Buckets
    sum: float

    def sketch(self) -> Sketch:
        """The distribution. Raises SketchError where it cannot be one."""
        offset, counts = _dense(self.positive)
        negative_offset, negative_counts = _dense(self.negative)
        return Sketch.of_buckets(self.schema, self.zero_count, offset, counts, negative_offset, negative_counts)

    @property
    def holds_any(self) -> bool:
        """Whether there is any value in it."""
        return bool(self.zero_count or any(self.positive.values()) or any(self.negative.values()))

    def since(self, before: Native) -> Native | None:
        """What was added since; None if this one began anew."""
        schema, threshold = min(self.schema, before.schema), max(self.zero_threshold, before.zero_threshold)
        now, then = self._coarser(schema, threshold), before._coarser(schema, threshold)
        added = Native(
            schema,
            threshold,
            now.zero_count - then.zero_count,
            _difference(now.positive, then.positive),
            _difference(now.negative, then.negative),
            self.sum - before.sum,
        )
        fell = added.zero_count < 0 or min(added.positive.values(), default=0) < 0
        return None if fell or min(added.negative.values(), default=0) < 0 else added

    def _coarser(self, schema: int, threshold: float) -> Native:
        if schema == self.schema and threshold == self.zero_threshold:
            return self
        positive, zeros = _joined(self.positive, self.schema, schema, threshold)
        negative, more = _joined(self.negative, self.schema, schema, threshold)
        return self._replace(
            schema=schema,
            zero_threshold=threshold,
            zero_count=self.zero_count + zeros + more,
            positive=positive,
            negative=negative,
        )


def _joined(buckets: Buckets, schema: int, coarser: int, threshold: float) -> tuple[Buckets, int]:
    """The buckets at the coarser schema, and how many values lie in those that end at the threshold or below it."""
    joined, zeros = dict[int, int](), 0
    for index, count in buckets.items():
        new = -(-index >> (schema - coarser))  # rounded up: the upper bound is the inclusive one
        if threshold and _upper(new, coarser) <= threshold:
            zeros += count
        else:
            joined[new] = joined.get(new, 0) + count
    return joined, zeros


def _upper(index: int, schema: int) -> float:
    try:
        return math.pow(2.0, index * 2.0**-schema)
    except OverflowError:
        return math.inf


def _difference(now: Buckets, then: Buckets) -> Buckets:
    return {index: now.get(index, 0) - then.get(index, 0) for index in {**now, **then}}


def _dense(buckets: Buckets) -> tuple[int, list[int]]:
    used = [index for index, count in buckets.items() if count]
    if not used:
        return 0, []
    first, last = min(used), max(used)
    if last - first >= MAX_SPAN:
        raise SketchError(f"the buckets go from {first} to {last}; no more than {MAX_SPAN} are taken")
    return first - 1, [buckets.get(index, 0) for index in range(first, last + 1)]
