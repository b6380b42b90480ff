"""The detectors task: windows, qualities and, where a policy says so, events; and what River says of them.

Recovery
--------
Detectors are never given a value twice. What they know is in the snapshot, and changes

* of windows: only where a step closes. `offsets` names the first record of the step that was open then, which is
  summed again;
* of qualities and events: record by record; `offsets` names the next.

The state of each topic depends on that topic alone, so how they interleave does not matter.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import isfinite
from typing import Any, Final

import msgspec
from msgspec import Struct

from streammon.broker import Outgoing, Record
from streammon.broker.records import Records
from streammon.deadletter import dead_letter_of
from streammon.errors import Reason, Rejected
from streammon.events import EventType
from streammon.models import QUALITIES, Models
from streammon.results import Quality
from streammon.tick import TICK
from streammon.topics import ROLLUP_HEADER
from streammon.wire import MAX_TIME_UNIX_S, Wanted, read_message
from streammon_processors.chunk import Chunk, Fate
from streammon_processors.detectors.lengths import STEP_S
from streammon_processors.detectors.steps import (
    CLOSE_S,
    GAP_S,
    MEASURED,
    SHORTEST,
    Step,
    decoder,
)
from streammon_processors.detectors.watching import SKIPPED, Measured, Skipped, Version, Watching
from streammon_processors.shapes import ROUNDING_S, tumbling

WINDOWS_BYTES: Final = 640 * 1024
QUALITY_BYTES: Final = 128 * 1024
EVENTS_BYTES: Final = 128 * 1024
"""Of the snapshot, at most; all of it has to fit into a record of 1 MiB."""
AFTER_S: Final = 1.0
"""What is said at a time was said when the watermark had passed it."""
CHUNK_ROWS: Final = 20_000
LAYOUT: Final = 1
"""Of the snapshot: another number for what an older one cannot be read as."""


class DetectorsTask:
    """One partition of `windows` and `quality`, and of `inference` where something is watched event by event."""

    def __init__(self, models: Models, partition: int, *, step_s: float = STEP_S, per_event: bool = False) -> None:
        self._partition = partition
        self._topics: dict[str, _Windows | _Qualities | _Events] = {
            "windows": _Windows(models, partition, step_s),
            "quality": _Qualities(models, partition),
        }
        if per_event:
            self._topics["inference"] = _Events(models, partition)

    def process(self, topic: str, records: Sequence[Record]) -> list[Outgoing]:
        """What the detectors say because of these records."""
        return list(self._topics[topic].process(records))

    @property
    def waiting(self) -> Sequence[str]:
        """`windows`, while a step is open: time passing closes it."""
        return [topic for topic, each in self._topics.items() if each.is_waiting]

    def offsets(self) -> Mapping[str, int]:
        return {topic: each.offset for topic, each in self._topics.items() if each.offset}

    def watermarks(self) -> Mapping[str, float]:
        """Until when the detectors have been given what there was."""
        return {topic: each.watermark + AFTER_S for topic, each in self._topics.items() if each.watermark}

    def snapshot(self) -> bytes:
        dumps = {topic: each.dump() for topic, each in self._topics.items()}
        return msgspec.msgpack.encode((LAYOUT, msgspec.msgpack.encode(dumps)))

    def restore(self, snapshot: bytes) -> None:
        """Go on from a `snapshot`; the records from `offsets` on have to be given again.

        One of another layout teaches nothing: the detectors learn anew, from where the log goes on.
        """
        layout, dumps = msgspec.msgpack.decode(snapshot, type=tuple[int, bytes])
        if layout != LAYOUT:
            return
        for topic, dumped in msgspec.msgpack.decode(dumps, type=dict[str, _Dump]).items():
            if topic in self._topics:
                self._topics[topic].load(dumped)


class _Dump(Struct, array_like=True):
    """What is remembered of one topic."""

    offset: int
    watermark: float
    place: int
    """Records before it have given their dead letters."""
    watching: bytes


class _Windows:
    """Closes steps of windows."""

    def __init__(self, models: Models, partition: int, step_s: float) -> None:
        self._watching = Watching(models, partition, per_event=False, targets=MEASURED, max_bytes=WINDOWS_BYTES)
        self._models, self._partition, self._step_s = models, partition, step_s
        self._name = tumbling(step_s).name.encode()
        self._decode = decoder(MEASURED).decode
        self._step: Step | None = None
        self._silent_ms = 0  # since the open step last grew
        self._broker_ms = 0
        self._place = 0
        self.offset = 0
        self.watermark = 0.0

    @property
    def is_waiting(self) -> bool:
        return self._step is not None

    def process(self, records: Sequence[Record]) -> Iterator[Outgoing]:
        for record in records:
            yield from self._let_time_pass(record)
            if self._is_step(record):
                yield from self._take(record)

    def _let_time_pass(self, record: Record) -> Iterator[Outgoing]:
        """Time in which nothing at all was written is time in which nobody was late."""
        gap_ms = record.timestamp - self._broker_ms
        self._broker_ms = record.timestamp
        if self._step is not None:
            self._silent_ms += min(max(0, gap_ms), round(GAP_S * 1000))
            if self._silent_ms >= CLOSE_S * 1000:
                yield from self._close(record.offset)

    def _is_step(self, record: Record) -> bool:
        """What a record says to be, without decoding it; a tick says nothing."""
        return any(name == ROLLUP_HEADER and value == self._name for name, value in record.headers)

    def _take(self, record: Record) -> Iterator[Outgoing]:
        try:
            window = read_message(self._decode, record.value or b"")
            _check_times(window)
        except Rejected as error:
            if record.offset >= self._place:
                self._place = record.offset + 1
                yield dead_letter_of("windows", record, error, to_partition=self._partition)
            return
        version = window.version
        if window.source != "inference" or version is None or not window.count:
            return
        if self._step is not None and window.start_unix_s > self._step.start_unix_s + ROUNDING_S:
            yield from self._close(record.offset)
        if self._step is None and window.start_unix_s > self.watermark - ROUNDING_S:
            self._step = Step(window.start_unix_s, window.end_unix_s, record.offset)
        self._add(version, window)

    def _add(self, version: Version, window: Any) -> None:
        step = self._step
        if step is None or window.start_unix_s < step.start_unix_s - ROUNDING_S:
            SKIPPED.labels(Skipped.TOO_LATE).inc()
            return
        targets = [target for target, _ in self._watching.watched(version.service, version.model)]
        if not step.add(version, window, dict.fromkeys(targets)):
            SKIPPED.labels(Skipped.TOO_MANY_SERIES).inc()
        self._silent_ms = 0

    def _close(self, offset: int) -> Iterator[Outgoing]:
        """Give the open step to the detectors; what comes next is from ``offset`` on."""
        step, self._step = self._step, None
        assert step is not None
        self.watermark, self.offset = step.end_unix_s, offset
        for version, values in step.values():
            yield from self._watching.take(version, step.end_unix_s, values)

    def dump(self) -> _Dump:
        return _Dump(self.offset, self.watermark, self._place, self._watching.dump())

    def load(self, dumped: _Dump) -> None:
        self.offset, self.watermark, self._place = dumped.offset, dumped.watermark, dumped.place
        self._watching.load(dumped.watching)


class _Qualities:
    """What is known of predictions when their labels come: of each time once, in the order in which they came."""

    is_waiting = False

    def __init__(self, models: Models, partition: int) -> None:
        targets = frozenset(QUALITIES)
        self._watching = Watching(models, partition, per_event=False, targets=targets, max_bytes=QUALITY_BYTES)
        self._partition = partition
        self._decode = msgspec.json.Decoder(Quality).decode
        self.offset = 0
        self.watermark = 0.0

    def process(self, records: Sequence[Record]) -> Iterator[Outgoing]:
        for record in records:
            self.offset = record.offset + 1
            if record.value is not None and record.value != TICK:
                yield from self._take(record, record.value)

    def _take(self, record: Record, value: bytes) -> Iterator[Outgoing]:
        try:
            quality = read_message(self._decode, value)
            _check_times(quality)
        except Rejected as error:
            yield dead_letter_of("quality", record, error, to_partition=self._partition)
            return
        if quality.by != "label" or quality.slice or not quality.labelled:
            return
        version = Version(quality.service, quality.model, quality.model_version or "")
        known = {name: getattr(quality, name) for name in QUALITIES}
        values = {name: Measured(each, quality.labelled) for name, each in known.items() if each is not None}
        self.watermark = max(self.watermark, quality.end_unix_s)
        yield from self._watching.take(version, quality.end_unix_s, values)

    def dump(self) -> _Dump:
        return _Dump(self.offset, self.watermark, 0, self._watching.dump())

    def load(self, dumped: _Dump) -> None:
        self.offset, self.watermark = dumped.offset, dumped.watermark
        self._watching.load(dumped.watching)


class _Events:
    """Event by event, of the models whose policy says so. What cannot be read is in the dead letters of `windows`."""

    is_waiting = False

    def __init__(self, models: Models, partition: int) -> None:
        self._watching = Watching(models, partition, per_event=True, targets=MEASURED, max_bytes=EVENTS_BYTES)
        self.offset = 0
        self.watermark = 0.0

    def process(self, records: Sequence[Record]) -> Iterator[Outgoing]:
        columns, start = Records.of(records), 0
        while start < len(columns):
            if columns.values[start] == TICK:
                start += 1
            else:
                chunk = Chunk(EventType.INFERENCE, columns[start:], CHUNK_ROWS, _WANTED)
                start += chunk.records
                yield from self._chunk(chunk)
            self.offset = columns[start - 1].offset + 1

    def _chunk(self, chunk: Chunk) -> Iterator[Outgoing]:
        names, codes = chunk.labels(("service", "model", "model_version"))
        rows = (chunk.fate == Fate.EVENT).tolist()
        watched = [
            dict.fromkeys(target for target, _ in self._watching.watched(*name[:2])) if name[0] else {}
            for name in names
        ]
        read = {target: self._column(chunk, target) for targets in watched for target in targets}
        for row, code in enumerate(codes.tolist()):
            if rows[row] and watched[code]:
                version = Version(*(value or "" for value in names[code]))
                values = {target: Measured(read[target][row], 1.0) for target in watched[code]}
                yield from self._event(version, float(chunk.time[row]), values)

    def _event(self, version: Version, time_unix_s: float, values: Mapping[str, Measured]) -> Iterator[Outgoing]:
        there = {target: each for target, each in values.items() if isfinite(each.value)}
        self.watermark = max(self.watermark, time_unix_s)
        yield from self._watching.take(version, time_unix_s, there)

    @staticmethod
    def _column(chunk: Chunk, target: str) -> list[float]:
        if target == "error":
            return [float(each) for each in chunk.is_error]
        values = chunk.floats(target)
        return [float(each) for each in (values.clip(min=SHORTEST[target]) if target in SHORTEST else values)]

    def dump(self) -> _Dump:
        return _Dump(self.offset, self.watermark, 0, self._watching.dump())

    def load(self, dumped: _Dump) -> None:
        self.offset, self.watermark = dumped.offset, dumped.watermark
        self._watching.load(dumped.watching)


_WANTED: Final = Wanted(("service", "model", "model_version", "status"), ())


def _check_times(result: Any) -> None:
    if not 0 <= result.start_unix_s < result.end_unix_s < MAX_TIME_UNIX_S:
        raise Rejected(Reason.BAD_TIME, f"it is about [{result.start_unix_s}, {result.end_unix_s})")
