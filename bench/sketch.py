"""What a sketch costs: ns a value added, and ms to close a window of 10,000 series."""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec
import numpy as np

from streammon.sketch import PENDING_KEYS, Sketch, SketchBag, bucket_index, merge


def seconds(work: Callable[[], object], repeat: int = 5) -> float:
    """The best of some runs, because the others shared the machine."""
    best = float("inf")
    for _ in range(repeat):
        started = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - started)
    return best


def filled(series: int, values: int, per_call: int) -> SketchBag:
    """Lognormal latencies spread evenly over the series, added in calls of `per_call`."""
    random = np.random.default_rng(1)
    slots = random.integers(0, series, values)
    latencies = random.lognormal(-3, 0.5, values)
    bag = SketchBag()
    for state in ("fresh", "again"):
        started = time.perf_counter()
        for start in range(0, values, per_call):
            bag.add(slots[start : start + per_call], latencies[start : start + per_call])
        cost = (time.perf_counter() - started) / values
        print(f"add, {series:>6} series, {per_call:>7} values a call, {state}: {cost * 1e9:6.1f} ns a value")
    return bag


def main() -> None:
    latencies = np.random.default_rng(0).lognormal(-3, 1, 100_000)
    print(f"bucket_index: {seconds(lambda: bucket_index(latencies)) / len(latencies) * 1e9:.1f} ns a value")
    for series in (1, 100, 10_000):
        for per_call in (1_000, 10_000, 100_000):
            bag = filled(series, 32 * PENDING_KEYS, per_call)
    print(f"close, 10,000 series, p50/p90/p99: {seconds(bag.summaries) * 1e3:.0f} ms")
    summaries = bag.summaries()
    print(f"10,000 sketches: {seconds(summaries.sketches) * 1e3:.0f} ms")
    sketches = list(summaries.sketches().values())
    encoded = msgspec.json.encode(sketches)
    as_json = seconds(lambda: msgspec.json.encode(sketches)) * 1e3
    print(f"  as JSON: {as_json:.0f} ms, {len(encoded) / len(sketches):.0f} B each")
    decoder = msgspec.json.Decoder(list[Sketch])
    print(f"  read back: {seconds(lambda: decoder.decode(encoded)) * 1e3:.0f} ms")
    print(f"merge of 60: {seconds(lambda: merge(sketches[:60])) * 1e6:.0f} us")
    print(f"quantiles of one: {seconds(lambda: sketches[0].quantiles((0.5, 0.9, 0.99))) * 1e6:.0f} us")


if __name__ == "__main__":
    main()
