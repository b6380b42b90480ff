"""Bytewax: a dataflow with its Kafka connector, its event clock, and its windows collected into lists.

It starts from the beginning whenever it is started, which is its default without a recovery store. Its watermark also
moves with the wall clock, from the newest event of each key: there is no setting to leave that out.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime, timedelta

import bytewax.operators as op
import bytewax.operators.windowing as win
from bytewax.connectors.kafka import KafkaSink, KafkaSinkMessage, KafkaSource, KafkaSourceMessage
from bytewax.dataflow import Dataflow
from bytewax.testing import cluster_main

from bench.rivals.programs.by_hand import LATENESS_S, WINDOW_S, Event, Series, decode, encode, row

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
CLOCK = win.EventClock(
    ts_getter=lambda event: datetime.fromtimestamp(event.time_unix_s, UTC),
    wait_for_system_duration=timedelta(seconds=LATENESS_S),
    to_system_utc=lambda _: None,  # the log is of the past: do not wake up for times that are long gone
)
WINDOWS = win.TumblingWindower(align_to=EPOCH, length=timedelta(seconds=WINDOW_S))


def keyed(message: KafkaSourceMessage) -> tuple[str, Event]:
    event = decode(message.value)
    return f"{event.model} {event.endpoint}", event


def counted(series: Series, event: Event) -> Series:
    series.durations.append(event.duration_s)
    if event.status == "error":
        series.errors += 1
    return series


def merged(one: Series, other: Series) -> Series:
    one.durations += other.durations
    one.errors += other.errors
    return one


def published(item: tuple[str, tuple[int, Series]]) -> KafkaSinkMessage:
    key, (window_id, series) = item
    model, _, endpoint = key.partition(" ")
    return KafkaSinkMessage(None, encode(row(model, endpoint, window_id * WINDOW_S, series)))


def flow(bootstrap: str, source: str, target: str) -> Dataflow:
    dataflow = Dataflow("windows")
    messages = op.input("source", dataflow, KafkaSource([bootstrap], [source]))
    events = op.map("decode", messages, keyed)
    windows = win.fold_window("windows", events, CLOCK, WINDOWS, Series, counted, merged)
    op.output("target", op.map("encode", windows.down, published), KafkaSink([bootstrap], target))
    return dataflow


if __name__ == "__main__":
    cluster_main(flow(*sys.argv[1:]), [], 0)
