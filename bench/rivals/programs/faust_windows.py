"""Faust: an agent and a table.

Its own windowed tables close by the wall clock and skip partitions, so the windows are kept in a plain table, by
series, and closed by the watermark of the partition, as one has to. The values of a window are kept as a histogram
of 2 % wide buckets, and written to the table once a batch: every write goes to the changelog in full.
"""

from __future__ import annotations

import math
import sys
from collections import defaultdict
from itertools import accumulate
from typing import Any

import faust

from bench.rivals.programs.by_hand import LATENESS_S, WINDOW_S

BOOTSTRAP, SOURCE, TARGET, STATE = sys.argv[1:]
GAMMA = math.log(1.02)


class Event(faust.Record, serializer="json"):
    time_unix_s: float
    model: str
    endpoint: str
    duration_s: float
    status: str


app = faust.App("faust", broker=f"kafka://{BOOTSTRAP}", datadir=STATE, topic_partitions=4, producer_linger=0.02)
events = app.topic(SOURCE, value_type=Event, key_type=str, key_serializer="raw")
results = app.topic(TARGET)
table = app.Table("windows", default=dict, use_partitioner=True)
"""By series: {start: {"count": …, "errors": …, "buckets": {index: count}}}."""
newest: defaultdict[int, float] = defaultdict(float)
"""By partition."""


@app.agent(events)
async def count(stream: faust.Stream[Event]) -> None:
    async for batch in stream.take_events(1000, within=1.0):
        changed = {}
        for message in batch:
            event, partition = message.value, message.message.partition
            key = f"{event.model} {event.endpoint}"
            windows, _ = changed[key] = changed.get(key) or (table[key], partition)
            start = event.time_unix_s // WINDOW_S * WINDOW_S
            if start >= closed_until(partition):
                add(windows, str(int(start)), event)
            newest[partition] = max(newest[partition], event.time_unix_s)
        for key, (windows, partition) in changed.items():
            for start in [start for start in windows if int(start) < closed_until(partition)]:
                await results.send(value=row(key, int(start), windows.pop(start)))
            table[key] = windows


def closed_until(partition: int) -> float:
    return (newest[partition] - LATENESS_S) // WINDOW_S * WINDOW_S


def add(open_windows: dict[str, Any], start: str, event: Event) -> None:
    window = open_windows.setdefault(start, {"count": 0, "errors": 0, "buckets": {}})
    window["count"] += 1
    window["errors"] += event.status == "error"
    bucket = str(round(math.log(event.duration_s) / GAMMA))
    window["buckets"][bucket] = window["buckets"].get(bucket, 0) + 1


def row(key: str, start: int, window: dict[str, Any]) -> dict[str, object]:
    model, _, endpoint = key.partition(" ")
    count, errors = window["count"], window["errors"]
    buckets = sorted((int(bucket), number) for bucket, number in window["buckets"].items())
    return {
        "model": model,
        "endpoint": endpoint,
        "start_unix_s": start,
        "count": count,
        "error_count": errors,
        "error_rate": errors / count,
        "throughput_per_s": count / WINDOW_S,
        "p50": quantile(buckets, 0.5 * (count - 1)),
        "p90": quantile(buckets, 0.9 * (count - 1)),
        "p99": quantile(buckets, 0.99 * (count - 1)),
    }


def quantile(buckets: list[tuple[int, int]], rank: float) -> float:
    below = accumulate(number for _, number in buckets)
    return next(math.exp(bucket * GAMMA) for (bucket, _), total in zip(buckets, below, strict=True) if total > rank)


if __name__ == "__main__":
    sys.argv[1:] = ["worker", "--without-web", "--loglevel", "warn"]
    app.main()
