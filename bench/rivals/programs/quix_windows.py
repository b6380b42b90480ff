"""Quix Streams: a streaming dataframe with its own windows, state in RocksDB and its changelog topic.

Called with a fourth argument, the directory of its state, and a fifth, its processing guarantee.
"""

from __future__ import annotations

import sys
from datetime import timedelta
from typing import Any

import quixstreams.dataframe.windows.aggregations as agg
from quixstreams import Application

from bench.rivals.programs.by_hand import LATENESS_S, WINDOW_S, Series, row


def to_row(window: dict[str, Any], key: bytes, _timestamp: int, _headers: object) -> dict[str, object]:
    series = Series()
    series.durations, series.errors = window["durations"], window["errors"]
    model, _, endpoint = key.decode().partition(" ")
    return row(model, endpoint, window["start"] / 1000, series)


def main(bootstrap: str, source: str, target: str, state: str, guarantee: str) -> None:
    app = Application(
        broker_address=bootstrap,
        consumer_group="quix",
        auto_offset_reset="earliest",
        state_dir=state,
        processing_guarantee=guarantee,
        loglevel="WARNING",
    )
    events = app.topic(source, timestamp_extractor=lambda event, *_: round(event["time_unix_s"] * 1000))
    frame = app.dataframe(events)
    frame = frame.apply(lambda event: {"duration_s": event["duration_s"], "failed": event["status"] == "error"})
    windows = frame.tumbling_window(timedelta(seconds=WINDOW_S), timedelta(seconds=LATENESS_S))
    frame = windows.agg(durations=agg.Collect("duration_s"), errors=agg.Sum("failed")).final()
    frame.apply(to_row, metadata=True).to_topic(app.topic(target))
    app.run()


if __name__ == "__main__":
    main(*sys.argv[1:])
