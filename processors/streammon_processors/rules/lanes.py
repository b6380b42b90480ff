"""Lanes: the windows of one source and length, with the series in them, as columns for the rules that look at them.

Windows come in *waves*: all that start at one time, each of another series. What a rule wants to know of the window
alone is worked out for many waves at once; what it wants to know of the past, wave by wave, in order.

Results (`sources.Results`) have a lane, too, and each is a wave of its own: they are in order only within a series, by
their ends.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from functools import cache, cached_property, partial
from itertools import chain
from operator import attrgetter
from typing import Annotated, Any, Final, NamedTuple, TypeAlias

import msgspec
import numpy as np
from msgspec import Meta, Struct
from msgspec.structs import replace
from numpy.typing import NDArray

from streammon.errors import Reason, Rejected
from streammon.events import SCHEMA
from streammon.results import Kind
from streammon.sketch import Sketch
from streammon.wire import MAX_TIME_UNIX_S, read_message
from streammon_processors.rules.conditions.cel import NAMED, Call, Node
from streammon_processors.rules.conditions.expression import Bools, Evaluation, Floats, Truth, of_labels, variables_of
from streammon_processors.rules.conditions.past import Ints, Look, Past, share_above, understand
from streammon_processors.rules.description import Rule, Rules
from streammon_processors.rules.episodes import ROUNDING_S, Labels
from streammon_processors.rules.sources import Results, sketch_path
from streammon_processors.shapes import Shape

MAX_PAST_BYTES: Final = 64 * 1024 * 1024
"""What one lane of one partition remembers of its series; of those beyond it, the past is not known."""
MAX_KEPT_BYTES: Final = 448 * 1024
"""The same, for all lanes of a partition together whose past is kept in the snapshot; before it is compressed."""

PATIENCE_S: Final = 10.0
"""How long a window may be under way; and as how much time a longer gap in the log counts, in which nobody wrote."""
_ROW_BYTES: Final = 32  # of a series in the snapshot, beside its past and its labels: its times
SIMULTANEOUS_S: Final = 1e-3
"""Results of a series that end less than this apart are taken in the order of the log."""
_MARKS: Final = 32  # places to read again from, spread over what is looked back on

SortedLabels = tuple[tuple[str, str], ...]
LaneKey: TypeAlias = tuple[str, Shape | None, bool]
"""What the windows are of (`Rule.stream`), shape (None: base windows), and whether its past is in the snapshot."""


def sorted_labels(series: Mapping[str, str]) -> SortedLabels:
    return tuple(sorted(series.items()))


_Time = Annotated[float, Meta(ge=0, lt=MAX_TIME_UNIX_S)]
_Count = Annotated[int, Meta(ge=0, le=2**53)]


class Seen(Struct, tag_field="type", tag="window", gc=False):
    """What every rule needs of a `results.Window`; `decoder` adds the fields that some rules read."""

    source: str
    part: str
    series: Labels
    start_unix_s: _Time
    end_unix_s: _Time
    count: _Count
    size_s: float = 0.0
    of_s: float | None = None
    kind: Kind = "tumbling"
    every_s: float | None = None
    gap_s: float | None = None
    grouping: str | None = None
    schema: int = SCHEMA

    @property
    def stream(self) -> str:
        """What it is a window of: a source, or a grouping."""
        return self.grouping or self.source


class Told(Seen, tag="told"):
    """A result, as if it was a window."""

    result: Any = None


def window_decoder(rules: Iterable[Rule]) -> msgspec.json.Decoder[Seen]:
    """Reads of windows what these rules look at, and no more: one with all its sketches takes six times as long."""
    tree: dict[str, Any] = {}
    for path in sorted({path for rule in rules for path in rule.paths}):
        node = tree
        for key in path[:-1]:
            node = node.setdefault(key, {})
        node[path[-1]] = None
    extra = [(name, _type_of(name, below) | None, None) for name, below in tree.items() if name != "count"]
    kind = msgspec.defstruct("SeenBy", extra, bases=(Seen,), tag_field="type", tag="window", gc=False)
    return msgspec.json.Decoder(kind)


def _type_of(name: str, below: Mapping[str, Any] | None) -> Any:
    if below is None:
        return float
    if name == "cost":
        return dict[str, float]
    if name not in NAMED:
        return _struct_of(name, below)
    named: Any = _struct_of(name, {key for each in below.values() for key in each})
    return dict[str, named]


def _struct_of(name: str, statistics: Iterable[str]) -> Any:
    fields = [(key, Sketch | None if key == "sketch" else float | None, None) for key in sorted(statistics)]
    return msgspec.defstruct(name, fields, gc=False)


@cache
def getter(path: tuple[str, ...]) -> Callable[[Any], Any]:
    """What reads the value at the path of a decoded window; None where there is none."""
    if len(path) == 1:
        return attrgetter(*path)

    def get(window: Any) -> Any:
        for key in path:
            if window is None:
                return None
            window = window.get(key) if isinstance(window, dict) else getattr(window, key)
        return window

    return get


def reader(lanes: Sequence[Lane]) -> Callable[[bytes], Seen | None]:
    """What reads the values of a topic for its lanes; None: no rule looks at such a one. It raises Rejected."""
    for lane in lanes:
        if isinstance(lane.source, Results):
            return partial(_read_result, lane.source, msgspec.json.Decoder(lane.source.type).decode)
    return partial(read_message, window_decoder(rule for lane in lanes for rule in lane.rules).decode)


def _read_result(source: Results, decode: Callable[[bytes], Any], value: bytes) -> Told | None:
    result = read_message(decode, value)
    if not source.is_told(result):
        return None
    start, end = source.span_of(result)
    return Told(source.name, "main", source.series_of(result), start, end, 1, result=result)


class Wave(NamedTuple):
    """Windows that start at one time, each of another series; all arrays have shape (n,)."""

    start_unix_s: float
    rows: Ints
    """Of their series in the lane."""
    places: Ints
    """Of their records in the batch. Negative: decided on before, and here for the past that they are part of."""
    remembered: Bools
    """Whether the past of the series is kept."""
    windows: Sequence[Seen]


class Silence(NamedTuple):
    """A series that a rule waits for in vain."""

    rule: Rule
    labels: SortedLabels
    heard_unix_s: float
    now_unix_s: float


class LogTime(Struct, array_like=True, frozen=True):
    """How much time has passed by the broker's stamps; longer gaps, in which nobody wrote, count as `PATIENCE_S`."""

    passed_ms: int = 0
    newest_ms: int = 0

    def after(self, stamp_ms: int) -> LogTime:
        if not self.newest_ms:
            return LogTime(self.passed_ms, stamp_ms)
        step_ms = min(max(stamp_ms - self.newest_ms, 0), round(1000 * PATIENCE_S))
        return LogTime(self.passed_ms + step_ms, max(stamp_ms, self.newest_ms))

    @property
    def still_ms(self) -> int:
        """How much time does not count, because nobody wrote; only its growth means something."""
        return self.newest_ms - self.passed_ms

    def is_another_second(self, before: LogTime) -> bool:
        return self.passed_ms // 1000 != before.passed_ms // 1000

    def through(self, stamps_ms: Ints) -> LogTimes:
        """What `after` makes of n records, one after the other."""
        newest = np.maximum.accumulate(np.concatenate(([self.newest_ms or stamps_ms[0]], stamps_ms)))
        steps = np.where(newest[:-1] == 0, 0, np.minimum(np.diff(newest), round(1000 * PATIENCE_S)))
        passed = self.passed_ms + np.concatenate(([0], np.cumsum(steps)))
        return LogTimes(self, passed[1:].tolist(), newest[1:].tolist(), np.diff(passed // 1000) != 0)


class LogTimes(NamedTuple):
    """The times after each of some records, and the one before them."""

    before: LogTime
    passed_ms: Sequence[int]
    newest_ms: Sequence[int]
    turns: Bools
    """Of each record: whether it comes in another second than the one before."""

    def after(self, place: int) -> LogTime:
        """After the record at a place; -1: before all."""
        return self.before if place < 0 else LogTime(self.passed_ms[place], self.newest_ms[place])


class Clock(Struct, array_like=True, frozen=True):
    """How far a lane has come, and when by the log its newest window was read."""

    newest_start: float = 0.0
    newest_end: float = 0.0
    read_ms: int = 0
    still_ms: int = 0
    passed_over_s: float = 0.0
    """Of its event time: gaps for all, while the whole log was still."""

    @property
    def counted_s(self) -> float:
        return self.newest_end - self.passed_over_s

    def after(self, start: float, end: float, time: LogTime) -> Clock:
        gap_s = min(start - self.newest_end, (time.still_ms - self.still_ms) / 1000) if self.newest_end else 0.0
        passed_over_s = self.passed_over_s + max(0.0, gap_s)
        return Clock(start, max(self.newest_end, end), time.passed_ms, time.still_ms, passed_over_s)

    def now(self, time: LogTime) -> float:
        """The event time of the lane: that of its windows; where none come, as much later as the log is."""
        idle_s = (time.passed_ms - self.read_ms) / 1000
        return max(self.newest_start, self.newest_end + idle_s - PATIENCE_S) if self.newest_end else 0.0


class Mark(Struct, array_like=True, frozen=True):
    """A place in a topic of windows to read again from, and how things stood before that record."""

    offset: int
    clock: Clock
    time: LogTime


class Row(Struct, array_like=True, frozen=True):
    """A series in the snapshot of a lane."""

    labels: SortedLabels
    heard: float
    streak: float
    quiet: list[str]
    newest: float = -1.0


class Rows(Struct, array_like=True, frozen=True):
    """The series of a lane, and the parts of their past."""

    rows: list[Row]
    past: dict[str, bytes]


class Kept(Struct, array_like=True, frozen=True):
    """A lane in the snapshot: where to read again from, or else all that it knows."""

    marks: list[Mark] = []
    clock: Clock = Clock()
    rows: bytes = b""
    """`Rows`, compressed."""


class Room:
    """What may be remembered: first come, first served."""

    def __init__(self, max_bytes: int) -> None:
        self._left = max_bytes

    def take(self, size_bytes: int) -> bool:
        """Whether there was room for it."""
        if there := size_bytes <= self._left:
            self._left -= size_bytes
        return there

    def give_back(self, size_bytes: int) -> None:
        self._left += size_bytes


class Lane:
    """The windows of one source or grouping, and shape (None: the base windows), and the rules that look at them; or
    the results of one source.

    A lane remembers its series only where a rule asks for their past or their silence. Up to `MAX_LOOK_BACK_S` back,
    that is read again from the log at a start, from the oldest of its marks; what goes further back, or is as old as
    the series, is in the snapshot. Of results, that is how far each series has come.
    """

    def __init__(
        self, key: LaneKey, rules: Sequence[Rule], base_s: float, room: Room, met: set[SortedLabels] | None = None
    ) -> None:
        self.key, self.rules = key, rules
        _, shape, self.is_kept = key
        self.source, self.topic = rules[0].origin, rules[0].topic
        self.is_of_results = isinstance(self.source, Results)
        self.goes_by_ends = self.is_of_results or bool(shape and shape.kind == "session")
        self.step_s = shape.every_s if shape and shape.every_s else base_s
        looks = (look for rule in rules for look in rule.looks if look.span_s)
        self.past = Past(looks, self.step_s, shape.size_s if shape else base_s)
        self.silences = tuple(rule for rule in rules if rule.no_data != "hold")
        self.remembers = self.past.keeps or bool(self.silences) or self.is_of_results
        self.horizon_s = max((rule.horizon_s for rule in rules), default=0.0) + self.step_s
        self._room, self._met = room, met
        self._row_bytes = self.past.row_bytes + _ROW_BYTES + sum(len(rule.name) + 5 for rule in self.silences)
        self._longest_silence_s = max([self.step_s, *(rule.silence_s for rule in self.silences)])
        self.begins_at = 0
        """The first record that it takes in."""
        self.clock = Clock()
        self.marks: list[Mark] = []
        self._rows: dict[SortedLabels, int] = {}
        self.labels: list[SortedLabels] = []
        self._free: list[int] = []
        self._freed: list[int] = []  # since the last batch, whose windows still name them
        self._dumped: bytes | None = None  # while nothing has changed since
        self.heard = np.zeros(0)  # the end of each series' newest window; -1: nobody's row
        self.streak = np.zeros(0)  # since when it has been heard without a silence; -1: not remembered
        self.newest = np.zeros(0)  # of results: the end of its newest; as `heard`, but no gap in the log moves it
        self._quiet = {rule.name: np.zeros(0, dtype=bool) for rule in self.silences}
        self._predicates: dict[Node, Truth] = {}
        asked = [rule.name for rule in rules if rule.where and rule.by is None]
        self._where: dict[str, Bools] = {name: np.zeros(0, dtype=bool) for name in asked}
        self._waves: list[Wave] = []

    # -- series

    def row_of(self, labels: SortedLabels) -> int:
        row = self._rows.get(labels)
        if row is None:
            row = self._rows[labels] = self._free.pop() if self._free else self._new_row()
            self.labels[row] = labels
            self.heard[row] = self.streak[row] = self.newest[row] = -1.0
            self._judge(row)
            if self._met is not None:
                self._met.add(labels)
        return row

    def rows_of(self, series: Set[SortedLabels]) -> set[int]:
        """Their rows, also those that were given up since the last batch."""
        rows = {self._rows[labels] for labels in series & self._rows.keys()}
        return rows | {row for row in self._freed if self.labels[row] in series}

    def given_up(self, rows: Set[int]) -> set[SortedLabels]:
        """The series of these rows, if any was given up since the last batch: it may have had another row since."""
        return {self.labels[row] for row in rows} if self._freed else set()

    def _new_row(self) -> int:
        row = len(self.labels)
        self.labels.append(())
        if row >= len(self.heard):
            more = max(64, len(self.heard))
            self.heard, self.streak, self.newest = (
                np.concatenate((each, np.full(more, -1.0))) for each in (self.heard, self.streak, self.newest)
            )
            self._where = {name: _longer(each, more) for name, each in self._where.items()}
            self._quiet = {name: _longer(each, more) for name, each in self._quiet.items()}
            self._predicates = {
                node: Truth(*(_longer(x, more) for x in each)) for node, each in self._predicates.items()
            }
        return row

    def _judge(self, row: int) -> None:
        """What conditions on labels say of a series: once, and not with every window."""
        labels = dict(self.labels[row])
        for rule in self.rules:
            if rule.name in self._where:
                self._where[rule.name][row] = rule.where.items() <= labels.items()
        for node, truth in self._predicates.items():
            _judge_by(node, truth, row, labels)

    def predicate(self, node: Node) -> Truth:
        """By row, what a condition on labels says."""
        if node not in self._predicates:
            truth = Truth(*(np.zeros(len(self.heard), dtype=bool) for _ in range(2)))
            for row, labels in enumerate(self.labels):
                _judge_by(node, truth, row, dict(labels))
            self._predicates[node] = truth
        return self._predicates[node]

    def where(self, rule: Rule) -> Bools | None:
        """By row, whether a rule is about a series; None: about all. Groups are of such series only."""
        return self._where.get(rule.name)

    def _remember(self, row: int, start: float) -> bool:
        """Take the series among those whose past is kept; whether there is room."""
        if not self._room.take(self._size_bytes(row)):
            return False
        self.streak[row] = start
        self.past.forget(row)
        for quiet in self._quiet.values():
            quiet[row] = False
        return True

    def _size_bytes(self, row: int) -> int:
        """What a series takes in the snapshot, before it is compressed."""
        return self._row_bytes + len(msgspec.msgpack.encode(self.labels[row]))

    def _is_asked_for(self, row: int) -> bool:
        asking = (rule for rule in self.rules if rule.horizon_s)
        return any(rule.name not in self._where or self._where[rule.name][row] for rule in asking)

    def sweep(self, before_end: float) -> None:
        """Give up the series that were not heard for so long that nobody asks for them any more. It was told before."""
        keep_s = max(self.horizon_s, 600.0)
        newest = self.clock.newest_end
        heard = self.newest if self.is_of_results else self.heard  # else nobody who writes seldom is ever forgotten
        if newest // (keep_s / 4) != before_end // (keep_s / 4):
            for row in np.flatnonzero((self.heard >= 0) & (heard < newest - keep_s)).tolist():
                self._drop(row)

    def forget_if_idle(self, time: LogTime) -> None:
        """Give up all series of a lane that nobody writes to any more, so that little has to be read again."""
        if self.marks and self.clock.now(time) > self.clock.newest_end + self.horizon_s + 60.0:
            for row in list(self._rows.values()):
                self._drop(row)
            self.marks = []

    def _drop(self, row: int) -> None:
        del self._rows[self.labels[row]]
        if self.streak[row] >= 0:
            self._room.give_back(self._size_bytes(row))
            self._dumped = None
        self.heard[row] = self.streak[row] = -1.0
        self._freed.append(row)

    # -- time

    @property
    def waits(self) -> bool:
        """Whether the passing of time alone could say something here."""
        there = self.streak >= 0
        return any((there & ~quiet).any() for quiet in self._quiet.values())

    def is_back_in_time(self, window: Seen) -> bool:
        return not self.goes_by_ends and window.start_unix_s < self.clock.newest_start

    def news(self, result: Seen, latest_unix_s: float) -> Seen:
        """A result that nothing newer is known of, as far as it lies after the one before it, of its series.

        It ends later than that one, if only by as much as a number can tell, so that no two alerts begin together.

        Raises:
            Rejected: there is a newer one; or it ends later than anything may.
        """
        if result.end_unix_s > latest_unix_s:
            ahead_s = result.end_unix_s - latest_unix_s
            raise Rejected(Reason.FUTURE, f"it ends {ahead_s:.6g} s later than windows.max_future_s allows")
        row = self._rows.get(sorted_labels(result.series))
        if row is None or self.streak[row] < 0:
            return result
        newest, end = float(self.newest[row]), result.end_unix_s
        if end < newest - SIMULTANEOUS_S:
            said = f"it ends {newest - end:.6g} s before the newest of its series, {newest:.15g}"
            raise Rejected(Reason.TOO_LATE, said)
        start, end = max(result.start_unix_s, newest), max(end, float(np.nextafter(newest, np.inf)))
        return replace(result, start_unix_s=start, end_unix_s=end)

    def advance(self, window: Seen, offset: int, before: LogTime, time: LogTime) -> bool:
        """Take note of the time of a window; whether that goes on. Sessions and results may begin in any order."""
        if self.remembers and not self.is_kept:
            self._mark(Mark(offset, self.clock, before))
        last, start, end = self.clock, window.start_unix_s, window.end_unix_s
        if self.goes_by_ends:
            if end <= last.now(time):
                return False
            start = end
        self.clock = last.after(start, end, time)
        self._pass_over(self.clock.passed_over_s - last.passed_over_s)
        return start != last.newest_start

    def _pass_over(self, gap_s: float) -> None:
        """No series fell silent while nobody wrote anything."""
        if gap_s:
            self.heard[self.heard >= 0] += gap_s
            self.streak[self.streak >= 0] += gap_s
            self._dumped = None

    def _mark(self, mark: Mark) -> None:
        marks, newest = self.marks, mark.clock.counted_s
        if not marks or newest >= marks[-1].clock.counted_s + self.horizon_s / _MARKS:
            marks.append(mark)
        while len(marks) > 1 and marks[1].clock.counted_s <= newest - self.horizon_s:
            del marks[0]

    def silent(self, time: LogTime) -> Iterator[Silence]:
        """The series that have just become silent for longer than a rule waits."""
        now = self.clock.now(time)
        for rule in self.silences:
            quiet = self._quiet[rule.name]
            warm = (self.streak >= 0) & (self.heard - self.streak >= rule.warm_up_s - ROUNDING_S)
            found = warm & ~quiet & (now - self.heard >= rule.silence_s - ROUNDING_S)
            if rule.name in self._where:
                found &= self._where[rule.name]
            for row in sorted(np.flatnonzero(found).tolist(), key=lambda row: self.labels[row]):
                quiet[row] = True
                self._dumped = None
                yield Silence(rule, self.labels[row], float(self.heard[row]), now)

    # -- windows

    def take(self, places: Ints, windows: Sequence[Seen], labels: Sequence[SortedLabels]) -> int:
        """Take windows in that start and end at one time; of how many the past was asked for, and there is no room."""
        rows = list(map(self.row_of, labels))
        start, end = windows[0].start_unix_s, windows[0].end_unix_s
        return sum(
            self.take_wave(
                start, end, np.array(rows[first:after], dtype=np.int64), places[first:after], windows[first:after]
            )
            for first, after in _without_repeats(rows)
        )

    def take_wave(self, start: float, end: float, rows: Ints, places: Ints, windows: Sequence[Seen]) -> int:
        """The same, each window of another row."""
        misfits = 0
        if self.remembers:
            fresh = self.streak[rows] < 0
            self.streak[rows[~fresh & (start - self.heard[rows] >= self._longest_silence_s)]] = start
            misfits = sum(not self._remember(row, start) for row in filter(self._is_asked_for, rows[fresh].tolist()))
            for quiet in self._quiet.values():
                quiet[rows] = False
        self.heard[rows] = end
        self._dumped = None
        remembered = self.streak[rows] >= 0
        self._waves.append(Wave(start, rows, places, remembered, windows))
        if self.is_of_results:
            self.newest[rows] = end
            for row in rows[~remembered].tolist():
                self._drop(row)  # nobody else bounds how many series of them there are
        return misfits

    def batch(self) -> Batch:
        """All that has been taken since, evaluated as far as the past is concerned."""
        return Batch(self, self.taken())

    def taken(self) -> Sequence[Wave]:
        """All that has been taken since, and nothing is any more."""
        waves, self._waves = self._waves, []
        return waves

    def release(self) -> None:
        """The last batch is done with: rows that were given up may be others'."""
        self._free += self._freed
        self._freed.clear()

    # -- what a snapshot keeps

    def dump(self) -> Kept:
        if self.marks:
            return Kept(self.marks, Clock())
        if self._dumped is None:
            self._dumped = self._dump() if self.is_kept else b""
        return Kept([], self.clock, self._dumped)

    def _dump(self) -> bytes:
        rows = [row for _, row in sorted(self._rows.items()) if self.streak[row] >= 0]
        kept = Rows(list(map(self._row, rows)), self.past.dump(np.array(rows, dtype=np.int64)))
        return zlib.compress(msgspec.msgpack.encode(kept), level=1)

    def _row(self, row: int) -> Row:
        quiet = [name for name, each in self._quiet.items() if each[row]]
        return Row(self.labels[row], float(self.heard[row]), float(self.streak[row]), quiet, float(self.newest[row]))

    def load(self, kept: Kept, next_offset: int) -> LogTime | None:
        """Go on from a `dump`; of which log time, if records are to be read again."""
        self.begins_at = next_offset
        if kept.marks and self.remembers and not self.is_kept:
            self.marks = list(kept.marks)
            first = self.marks[0]
            self.begins_at, self.clock = first.offset, first.clock
            return first.time
        self.clock = kept.clock
        if kept.rows and self.is_kept:
            self._load(msgspec.msgpack.decode(zlib.decompress(kept.rows), type=Rows))
        return None

    def _load(self, kept: Rows) -> None:
        rows = np.array([self._load_row(each) for each in kept.rows], dtype=np.int64)
        self.past.load(rows, kept.past)

    def _load_row(self, kept: Row) -> int:
        row = self.row_of(kept.labels)
        self._remember(row, kept.streak)
        self.heard[row], self.newest[row] = kept.heard, kept.newest
        for name in kept.quiet:
            if name in self._quiet:
                self._quiet[name][row] = True
        return row


def lanes_of(rules: Rules, base_s: float, met: set[SortedLabels] | None = None) -> dict[LaneKey, Lane]:
    """A lane for all rules that look at the same windows, and at about as much of their past."""
    found: dict[LaneKey, list[Rule]] = {}
    for rule in rules:
        found.setdefault((rule.stream, rule.shape, rule.is_kept), []).append(rule)
    kept = Room(MAX_KEPT_BYTES)
    return {
        key: Lane(key, of_lane, base_s, kept if key[2] else Room(MAX_PAST_BYTES), met) for key, of_lane in found.items()
    }


def _without_repeats(rows: Sequence[int]) -> Iterator[tuple[int, int]]:
    """The first place of each part without a row twice, and the one after its last."""
    if len(set(rows)) == len(rows):
        yield 0, len(rows)
        return
    first, seen = 0, set[int]()
    for place, row in enumerate(rows):
        if row in seen:
            yield first, place
            first, seen = place, set()
        seen.add(row)
    yield first, len(rows)


def _judge_by(node: Node, truth: Truth, row: int, labels: Labels) -> None:
    said = of_labels(node, labels)
    truth.yes[row], truth.no[row] = said is True, said is False


def _longer(column: Bools, more: int) -> Bools:
    return np.concatenate((column, np.zeros(more, dtype=bool)))


class Batch:
    """Windows of a lane as columns (`expression.Columns`)."""

    def __init__(self, lane: Lane, waves: Sequence[Wave]) -> None:
        self.lane, self._waves = lane, waves
        self.rows: Ints = joined([wave.rows for wave in waves], np.int64)
        self.places: Ints = joined([wave.places for wave in waves], np.int64)
        self._remembered: Bools = joined([wave.remembered for wave in waves], np.bool_)
        self._numbers: dict[str, Floats] = {}
        self._texts: dict[str, list[str | None]] = {}
        self._found: dict[Call, Floats] = {}
        self.evaluation = Evaluation(self)
        if lane.past.keeps:
            self._look_back()

    @cached_property
    def _windows(self) -> Sequence[Seen]:
        return list(chain.from_iterable(wave.windows for wave in self._waves))

    def window(self, at: int) -> Seen:
        return self._windows[at]

    def number(self, name: str) -> Floats:
        if name not in self._numbers:
            self._numbers[name] = self._column(name)
        return self._numbers[name]

    def _column(self, name: str) -> Floats:
        return np.array(self._values(name), dtype=float)

    def text(self, name: str) -> Sequence[str | None]:
        if name not in self._texts:
            self._texts[name] = self._values(name)
        return self._texts[name]

    def _values(self, name: str) -> list[Any]:
        return list(map(getter(self.lane.source.path_of(name)), self._windows))

    def of_labels(self, predicate: Node) -> Truth:
        if fields := set(variables_of(predicate)):
            return self._of_texts(predicate, {name: self.text(name) for name in sorted(fields)})
        yes, no = self.lane.predicate(predicate)
        return Truth(yes[self.rows], no[self.rows])

    def _of_texts(self, predicate: Node, texts: Mapping[str, Sequence[str | None]]) -> Truth:
        """Of each result by itself, since its texts are others than those of the one before."""
        said = [
            of_labels(predicate, each.series, {name: text[at] for name, text in texts.items()})
            for at, each in enumerate(self._windows)
        ]
        return Truth(*(np.array([each is known for each in said], dtype=bool) for known in (True, False)))

    def of_past(self, call: Call) -> Floats:
        if call not in self._found:
            look = understand(call)
            assert not look.span_s, "those are in _found"
            self._found[call] = np.array([share_above(each, look.parameters[0]) for each in self._sketches(look)])
        return self._found[call]

    def _sketches(self, look: Look) -> Iterator[Sketch | None]:
        get = getter(sketch_path(look.sketches or ""))
        return map(get, self._windows)

    def _look_back(self) -> None:
        past = self.lane.past
        values = {track: np.broadcast_to(self.evaluation.number(track), len(self.rows)) for track in past.inputs}
        sketches = {
            look.sketches: list(self._sketches(look)) for look in past.looks if look.keeps_sketches and look.sketches
        }
        found = {look: np.full(len(self.rows), np.nan) for look in past.looks}
        first = 0
        for wave in self._waves:
            rows, room, number = wave.rows, np.flatnonzero(wave.remembered), round(wave.start_unix_s / self.lane.step_s)
            there, first = first + room, first + len(wave.rows)
            if not len(room):
                continue
            kept = {name: [column[at] for at in there] for name, column in sketches.items()}
            past.put(rows[room], number, {track: column[there] for track, column in values.items()}, kept)
            for look, column in found.items():
                column[there] = past.of(look, rows[room], number)
        self._found = {look.call: column for look, column in found.items()}


def joined(parts: Sequence[NDArray[Any]], kind: type[np.generic]) -> Any:
    """One array of all of them, also of none."""
    return np.concatenate(parts) if parts else np.zeros(0, dtype=kind)
