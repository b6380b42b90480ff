"""The windows task: what services, models and machines did, in tumbling windows, by series.

`streammon_processors.event_windows` says which event belongs to which window, and when a window is written; this, what
is in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any

import msgspec

from streammon import wire
from streammon.broker import Outgoing, Record
from streammon.broker.records import Records
from streammon.config import WindowSettings
from streammon.events import EventType
from streammon.results import OTHER, Completeness, Window, counters_of
from streammon.topics import MAX_RECORD_BYTES
from streammon.wire import SCHEMA_HEADER
from streammon_processors.aggregate import Aggregate
from streammon_processors.chunk import Series
from streammon_processors.event_windows import EventWindows, Product, Published
from streammon_processors.task import Step, outputs_of

MAX_SERIES_BYTES = 4096
"""Series with longer labels are summed in the series ``__other__``, too: they are the keys of records."""
SHED = ("exemplars", "distributions", "gauges", "counters", "cost")
"""What a window gives up, in this order, while no record can hold it: names and ids are as long as senders like."""


@dataclass(frozen=True)
class Source:
    """What is made of one input topic. A further windowed event type is one more of these."""

    event_type: EventType
    by: tuple[str, ...]
    distributions: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.event_type.value

    @property
    def wanted(self) -> wire.Wanted:
        """What is asked of every event, beside numbers."""
        return wire.Wanted(
            (*self.by, "status", "metrics", "counters", "histograms", "cost_currency"), ("trace_id", "event_id")
        )

    def series(self, values: Series) -> Series:
        """The series of these values of ``by``; one and the same for all that are published alike."""
        series = tuple(self._own(value) if isinstance(value, tuple) else value for value in values)
        return series if len(series_key(self.labels(series))) <= MAX_SERIES_BYTES else (OTHER,) * len(series)

    def _own(self, mapping: Series) -> Series | None:
        return tuple((name, value) for name, value in mapping if name not in self.by) or None

    def labels(self, key: Series | None) -> dict[str, str]:
        """A series as it is published: absent labels left out, mappings merged in."""
        labels: dict[str, str] = {}
        for name, value in zip(self.by, key or (), strict=False):
            if isinstance(value, tuple):
                labels |= dict(value)
            elif value is not None and not (value == OTHER and name == "labels"):
                labels[name] = value
        return labels


def sources(settings: WindowSettings) -> dict[str, Source]:
    """The topics that become windows."""
    return {
        "inference": Source(EventType.INFERENCE, settings.inference_by, settings.inference_distributions),
        "resources": Source(EventType.RESOURCE, ("host", "entity", "id", "labels")),
    }


class Windows(Product):
    """Events to windows."""

    def __init__(self, source: Source, partition: int, settings: WindowSettings) -> None:
        self._source, self._partition, self._settings = source, partition, settings
        self.event_type, self.by, self.wanted = source.event_type, source.by, source.wanted

    def series(self, values: Series) -> Series:
        return self._source.series(values)

    def counting(self, number: int) -> Aggregate:
        return Aggregate(self._settings.max_series, self._source.distributions)

    def key(self, series: Series | None) -> bytes:
        return series_key(self._source.labels(series))

    def record(
        self, number: int, series: Series | None, revision: int, counters: Completeness, fields: dict[str, Any]
    ) -> Outgoing:
        window = self._window(number, series, revision, counters, fields)
        return Outgoing("windows", series_key(window.series), encode_window(window), (SCHEMA_HEADER,), self._partition)

    def _window(
        self, number: int, series: Series | None, revision: int, counters: Completeness, fields: dict[str, Any]
    ) -> Window:
        size, count = self._settings.size_s, fields["count"]
        if self.event_type is EventType.INFERENCE:
            fields.setdefault("error_count", 0)
            fields["error_rate"] = fields["error_count"] / count if count else 0.0
        else:
            fields.pop("error_count", None)
        fields["counters"] = counters_of(fields.pop("counters", None) or {}, size)
        return Window(
            source=self._source.name,
            part="late" if revision else "main",
            revision=revision,
            series=self._source.labels(series),
            start_unix_s=number * size,
            end_unix_s=(number + 1) * size,
            size_s=size,
            partition=self._partition,
            throughput_per_s=count / size,
            completeness=counters,
            **fields,
        )


class WindowTask:
    """One partition number of every windowed topic. The topics do not influence each other."""

    def __init__(self, partition: int, settings: WindowSettings) -> None:
        self._topics = {
            topic: EventWindows(topic, Windows(source, partition, settings), partition, settings)
            for topic, source in sources(settings).items()
        }

    def process(self, topic: str, records: Sequence[Record]) -> list[Outgoing]:
        """Take in the next records of a topic; the records to publish."""
        return list(outputs_of(self.steps(topic, records)))

    def steps(self, topic: str, records: Sequence[Record]) -> Iterator[Step]:
        """The same, a published place at a time."""
        return self._topics[topic].steps(Records.of(records))

    def snapshot(self) -> bytes:
        """All that has to be remembered, as of the last published place of each topic."""
        return msgspec.json.encode({topic: windows.published for topic, windows in self._topics.items()})

    def restore(self, snapshot: bytes) -> None:
        """Go on from a snapshot; the records from `offsets` on have to be given again."""
        for topic, published in msgspec.json.decode(snapshot, type=dict[str, Published | None]).items():
            if topic in self._topics and published is not None:
                self._topics[topic].restore(published)

    def offsets(self) -> Mapping[str, int]:
        """By topic, the first record that a restored task needs; none for topics that published nothing yet."""
        return {
            topic: windows.published.rewind_to
            for topic, windows in self._topics.items()
            if windows.published is not None
        }

    @property
    def waiting(self) -> Sequence[str]:
        """The topics in which the passing of time would publish something."""
        return [topic for topic, windows in self._topics.items() if windows.waiting]

    def watermarks(self) -> Mapping[str, float]:
        """By topic, how far event time has come, Unix seconds; none before the first event."""
        return {topic: windows.watermark for topic, windows in self._topics.items() if windows.watermark > -inf}


def encode_window(window: Window) -> bytes:
    """The value of its record; it gives up what `SHED` says until one can hold it."""
    value = msgspec.json.encode(window)
    for name in SHED:
        if len(value) > MAX_RECORD_BYTES:
            setattr(window, name, None)
            value = msgspec.json.encode(window)
    return value


def series_key(labels: Mapping[str, str]) -> bytes:
    """The record key of a series: its labels as JSON, by name."""
    return msgspec.json.encode(labels, order="sorted")
