"""The rollups task: one partition of the topic `windows`, read to be added up and written to again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import floor, inf

import msgspec
from msgspec import Struct

from streammon.broker import Outgoing, Record
from streammon.config import WindowSettings
from streammon.deadletter import dead_letter_of
from streammon.errors import Reason, Rejected
from streammon.results import OTHER, Window
from streammon.tick import TICK
from streammon.topics import ROLLUP_HEADER
from streammon.wire import MAX_TIME_UNIX_S, SCHEMA_HEADER, read_message
from streammon_processors.revisions import Revisions, RevisionsMemory
from streammon_processors.rollups.growing import Growing, Grown, Memory, Rolling, Sessions
from streammon_processors.rollups.sums import Sums
from streammon_processors.shapes import Asked, Level, Shape, plan, tumbling
from streammon_processors.task import Step, outputs_of
from streammon_processors.windows import encode_window, series_key, sources

PATIENCE_S = 10.0
"""How long a source may be silent beyond what is due until it is taken to have nothing to say; how long a supplement
waits for others; and as how much time a longer gap in the log counts, in which nobody was there to write."""
PENDING_LIMIT = 5000
"""Windows that wait for a supplement; with more they are published at once."""
MAX_SESSIONS = 10_000
"""Open sessions of one partition, all sources and gaps together: they have to fit into the snapshot."""


class _Published(Struct, array_like=True):
    """The task's memory at a published place: records before ``place`` are done with, except for what is open."""

    place: int
    rewind_to: int
    broker_ms: int
    now_ms: int
    newest_end: float
    sources: dict[str, _SourceMemory]
    revisions: RevisionsMemory


class _SourceMemory(Struct, array_like=True):
    clock: _Clock
    done: float | None
    levels: dict[str, Memory]


class _Clock(Struct, array_like=True, omit_defaults=True):
    """How far the base windows of a source have come, by its own words and, when it is silent, by broker time."""

    newest_start: float = 0.0
    watermark: float = 0.0
    moved_ms: int = 0
    """When the watermark last moved, as the task counts time."""

    def observe(self, window: Window, now_ms: int) -> None:
        if window.part == "main":
            self.newest_start = max(self.newest_start, window.start_unix_s)
        if window.completeness.watermark_unix_s > self.watermark:
            self.watermark, self.moved_ms = window.completeness.watermark_unix_s, now_ms

    def done(self, now_ms: int, base_s: float) -> float:
        """All base windows that end by this time have been seen."""
        if not self.watermark:
            return self.newest_start or -inf
        silent_s = (now_ms - self.moved_ms) / 1000
        by_time = floor((self.watermark + silent_s - PATIENCE_S) / base_s) * base_s
        return max(self.newest_start, by_time)


class RollupTask:
    """One partition of `windows`: makes what `plan` says of each source."""

    def __init__(self, partition: int, settings: WindowSettings, asked: Iterable[Asked] = ()) -> None:
        """Raises ConfigError where something is asked for that cannot be made."""
        self._partition = partition
        levels = plan(settings.size_s, settings.rollups_s, asked)
        self._sources = {
            source.name: _Source(source.name, levels, settings, source.labels((OTHER,) * len(source.by)))
            for source in sources(settings).values()
        }
        self._base = tumbling(settings.size_s).name
        self._inputs = {tumbling(level.of_s).name for level in levels}
        self._needed: dict[str, int] = {}  # by input, the first record that is in something open
        self._memory_s = settings.max_late_s + 2 * max((level.shape.size_s for level in levels), default=0.0)
        self._revisions = Revisions()
        self._broker_ms: int | None = None  # the broker's time of the last record
        self._now_ms = 0  # the time that has passed in the log
        self._newest_end = 0.0
        self._late_since_ms: int | None = None
        self._letters: list[Outgoing] = []
        self._published: _Published | None = None

    # --- the contract -----------------------------------------------------------------------------------------------

    def process(self, topic: str, records: Sequence[Record]) -> list[Outgoing]:
        """Take in the next records of `windows`; the rollups to publish."""
        return list(outputs_of(self.steps(topic, records)))

    def steps(self, topic: str, records: Sequence[Record]) -> Iterator[Step]:
        """The same, a record at a time."""
        return (Step(self._process_one(topic, record), number) for number, record in enumerate(records, 1))

    def snapshot(self) -> bytes:
        """All that has to be remembered, as of the last published place."""
        return msgspec.json.encode(self._published)

    def restore(self, snapshot: bytes) -> None:
        """Go on from a snapshot; the records from `offsets` on have to be given again."""
        published = msgspec.json.decode(snapshot, type=_Published | None)
        if published is None:
            return
        self._published = published
        self._broker_ms, self._now_ms = published.broker_ms, published.now_ms
        self._newest_end = published.newest_end
        self._revisions = Revisions(published.revisions)
        for name, source in self._sources.items():
            if name in published.sources:
                source.restore(published.sources[name])
        self._needed = dict.fromkeys(self._inputs, published.place)
        for name, offset in [each for source in self._sources.values() for each in source.needed]:
            self._needed[name] = min(offset, self._needed[name])

    def offsets(self) -> Mapping[str, int]:
        """The first record that a restored task needs."""
        return {} if self._published is None else {"windows": self._published.rewind_to}

    @property
    def waiting(self) -> Sequence[str]:
        """`windows`, while something is open: time passing closes it."""
        return ["windows"] if any(source.is_waiting for source in self._sources.values()) else []

    def watermarks(self) -> Mapping[str, float]:
        """When the newest base window ends that was taken in: no rollup begins later."""
        return {"windows": self._newest_end} if self._newest_end else {}

    # --- the story of a record --------------------------------------------------------------------------------------

    def _process_one(self, topic: str, record: Record) -> list[Outgoing]:
        input_name = self._input_of(record)
        if self._published is not None and record.offset < self._published.place:
            if record.offset >= self._needed.get(input_name, self._published.place):
                self._rebuild(record)
            return []
        self._let_time_pass(record.timestamp)
        window = self._read(topic, record) if input_name in self._inputs else None
        source = None if window is None else self._sources.get(window.source)
        if source is not None and window is not None:
            self._newest_end = max(self._newest_end, window.end_unix_s if window.is_base else 0.0)
            source.observe(window, self._now_ms)
        for each in self._sources.values():
            each.advance(self._now_ms)
        if source is not None and window is not None:
            source.take_in(series_key(window.series), window, record.offset)
        return self._publish(record.offset + 1) if self._is_due() else []

    def _let_time_pass(self, broker_ms: int) -> None:
        """Time in which nothing at all was written is time in which no processor ran: no source was silent then."""
        if self._broker_ms is not None:
            self._now_ms += min(max(0, broker_ms - self._broker_ms), round(PATIENCE_S * 1000))
        self._broker_ms = max(broker_ms, self._broker_ms or broker_ms)

    def _input_of(self, record: Record) -> str:
        """What a record says to be, without decoding it. Base windows say nothing; a tick is nothing."""
        if record.value == TICK:
            return ""
        names = (value.decode(errors="replace") for name, value in record.headers if name == ROLLUP_HEADER)
        return next(names, self._base)

    def _read(self, topic: str, record: Record) -> Window | None:
        try:
            return read_window(record.value or b"")
        except Rejected as error:
            self._letters.append(dead_letter_of(topic, record, error, to_partition=self._partition))
            return None

    def _rebuild(self, record: Record) -> None:
        """A record read again: put back what belongs to rollups that were open at the published place."""
        try:
            window = read_window(record.value or b"")
        except Rejected:
            return
        if window.source in self._sources:
            self._sources[window.source].rebuild(series_key(window.series), window, record.offset)

    def _is_due(self) -> bool:
        late = sum(source.late for source in self._sources.values())
        if not late:
            self._late_since_ms = None
        elif self._late_since_ms is None:
            self._late_since_ms = self._now_ms
        waited_s = 0.0 if self._late_since_ms is None else (self._now_ms - self._late_since_ms) / 1000
        closed = any(source.is_due for source in self._sources.values())
        return closed or bool(self._letters) or late >= PENDING_LIMIT or waited_s >= PATIENCE_S

    # --- publishing -------------------------------------------------------------------------------------------------

    def _publish(self, place: int) -> list[Outgoing]:
        """Everything that is due here, and the memory of it."""
        letters, self._letters = self._letters, []
        self._late_since_ms = None
        outputs = [
            each for source in self._sources.values() for each in source.publish(self._partition, self._revisions)
        ]
        self._forget_revisions()
        memories = {name: source.memory() for name, source in self._sources.items()}
        firsts = [
            level.first_offset
            for memory in memories.values()
            for level in memory.levels.values()
            if level.first_offset is not None
        ]
        self._published = _Published(
            place=place,
            rewind_to=min([place, *firsts]),
            broker_ms=self._broker_ms or 0,
            now_ms=self._now_ms,
            newest_end=self._newest_end,
            sources=memories,
            revisions=self._revisions.memory,
        )
        return [*letters, *outputs]

    def _forget_revisions(self) -> None:
        """Of windows to which nothing is added any more."""
        done = [source.done for source in self._sources.values() if source.done > -inf]
        if done:
            self._revisions.forget_before(floor(min(done) - self._memory_s))


class _Source:
    """All levels of one source: which of them each window is for, and how far each has come."""

    def __init__(self, name: str, levels: Sequence[Level], settings: WindowSettings, other: dict[str, str]) -> None:
        mine = [level for level in levels if level.source in (None, name)]
        sessions = sum(level.shape.kind == "session" for level in levels)

        def growing(shape: Shape) -> Growing:
            if shape.kind == "session":
                return Sessions(shape.gap_s, MAX_SESSIONS // (2 * sessions))
            return Rolling(shape, lambda: Sums(settings.max_series, other))

        self._name = name
        self._base_s = settings.size_s
        self._levels = {level: growing(level.shape) for level in mine}
        self._rolling = {
            level.shape: each
            for level, each in self._levels.items()
            if isinstance(each, Rolling) and level.shape.kind == "tumbling"
        }
        self._clock = _Clock()
        self.done = -inf
        self.needed: list[tuple[str, int]] = []  # inputs, and the first records that are in something open

    @property
    def late(self) -> int:
        return sum(each.late for each in self._levels.values())

    @property
    def is_due(self) -> bool:
        return any(each.is_due for each in self._levels.values())

    @property
    def is_waiting(self) -> bool:
        return any(each.is_open or each.late for each in self._levels.values())

    def observe(self, window: Window, now_ms: int) -> None:
        """See how far the base windows have come; before `advance`, lest time speak for a source that is awake."""
        if window.is_base:
            self._clock.observe(window, now_ms)

    def advance(self, now_ms: int) -> None:
        """Close what is complete by now."""
        done = self._clock.done(now_ms, self._base_s)
        if done > self.done:
            self.done = done
            self._close()

    def _close(self) -> None:
        for level, each in self._levels.items():
            each.advance(self._through(level.of_s))

    def _through(self, size_s: float) -> float:
        """All windows of this length that end by this time have been seen."""
        return self.done if size_s == self._base_s else self._rolling[tumbling(size_s)].through

    def take_in(self, key: bytes, window: Window, offset: int) -> None:
        for each in self._made_of(window):
            each.add(key, window, offset)
        rolling = self._rolling.get(Shape.of(window))
        if rolling is not None and not window.is_base:
            rolling.read_back(key, window)
            self._close()

    def rebuild(self, key: bytes, window: Window, offset: int) -> None:
        for each in self._made_of(window):
            each.rebuild(key, window, offset)

    def _made_of(self, window: Window) -> list[Growing]:
        if window.is_base:
            return [each for level, each in self._levels.items() if level.of_s == self._base_s]
        if window.kind != "tumbling":
            return []
        return [each for level, each in self._levels.items() if level.of_s == window.size_s]

    def publish(self, partition: int, revisions: Revisions) -> Iterator[Outgoing]:
        """The supplements and the closed rollups of all levels."""
        for level, each in self._levels.items():
            windows = [self._window(level, grown, partition, revisions) for grown in each.publish()]
            mains = [(each.start_unix_s, series_key(each.series)) for each in windows if each.part == "main"]
            if level.shape in self._rolling:
                self._rolling[level.shape].await_readback(mains)
            yield from (_record(window, level.shape, partition) for window in windows)

    def _window(self, level: Level, grown: Grown, partition: int, revisions: Revisions) -> Window:
        shape = level.shape
        size_s = shape.size_s or grown.end_unix_s - grown.start_unix_s
        revision = 0
        if grown.late:
            name = f"{self._name} {shape.name} ".encode() + series_key(grown.sum.series)
            revision = revisions.next(floor(grown.start_unix_s), name)
        return Window(
            source=self._name,
            part="late" if revision else "main",
            revision=revision,
            series=grown.sum.series,
            start_unix_s=grown.start_unix_s,
            end_unix_s=grown.end_unix_s,
            size_s=size_s,
            partition=partition,
            throughput_per_s=grown.sum.count / size_s,
            of_s=level.of_s,
            kind=shape.kind,
            every_s=shape.every_s if shape.kind == "hopping" else None,
            gap_s=shape.gap_s or None,
            **grown.sum.fields(size_s),
        )

    def memory(self) -> _SourceMemory:
        levels = {level.name: each.memory() for level, each in self._levels.items()}
        return _SourceMemory(msgspec.structs.replace(self._clock), None if self.done == -inf else self.done, levels)

    def restore(self, memory: _SourceMemory) -> None:
        self._clock = msgspec.structs.replace(memory.clock)
        self.done = -inf if memory.done is None else memory.done
        for level, each in self._levels.items():
            known = memory.levels.get(level.name, Memory())
            each.restore(known)
            if known.first_offset is not None:
                self.needed.append((tumbling(level.of_s).name, known.first_offset))


def read_window(value: bytes) -> Window:
    """Raises Rejected."""
    window = read_message(_WINDOW.decode, value)
    if not 0 <= window.start_unix_s < window.end_unix_s < MAX_TIME_UNIX_S:
        raise Rejected(Reason.BAD_TIME, f"the window is [{window.start_unix_s}, {window.end_unix_s})")
    return window


_WINDOW = msgspec.json.Decoder(Window)


def _record(window: Window, shape: Shape, partition: int) -> Outgoing:
    headers = (SCHEMA_HEADER, (ROLLUP_HEADER, shape.name.encode()))
    return Outgoing("windows", series_key(window.series), encode_window(window), headers, partition)
