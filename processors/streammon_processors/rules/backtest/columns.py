"""Windows that are columns from the start: what a file of numbers holds, without a record for each window.

A `Panel` is the windows of one source and length, a row a start and a column a series. `records_of` writes it as the
log would hold it, and a `ColumnTask` takes it in as it is: the same rules, lanes and episodes, and the same alerts byte
for byte, at a fraction of the cost, because nothing is encoded, decoded, or looked at window by window.

A log has a broker's time, and a file has not: each window is taken to be written when it ends. Where none comes for
longer than `TICK_S` and a rule waits for one, ticks let the time pass, as the runtime does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any, Final, NamedTuple, overload

import msgspec
import numpy as np

from streammon.broker import Headers, Outgoing
from streammon.errors import ConfigError
from streammon.events import SCHEMA
from streammon.results import Gauge
from streammon.sketch import MAX_COUNT, Sketch
from streammon.tick import TICK
from streammon_processors.rules.conditions.cel import DISTRIBUTION
from streammon_processors.rules.conditions.expression import Bools, Floats
from streammon_processors.rules.conditions.past import Ints, Look
from streammon_processors.rules.lanes import PATIENCE_S, Batch, Lane, LogTime, Seen, SortedLabels, joined, sorted_labels
from streammon_processors.rules.sources import SOURCES, path_of, sketch_path
from streammon_processors.rules.task import Log, News, RulesTask

TICK_S: Final = PATIENCE_S / 2
"""Half of what a gap in the log may count as, so that all of its time passes."""
BLOCK: Final = 8_000
"""Windows that are evaluated together."""
EVENTS_WITH_ERRORS: Final = 1000.0
"""So many events a window has where somebody says which share of them failed, and not how many there were."""
_ALIKE: Final = ("sum", "min", "max", "mean", "p50", "p90", "p99")


@dataclass(frozen=True)
class Panel:
    """The windows of one source and length.

    ``starts`` has shape (T,), ascending; ``there`` (which windows exist) and each of ``numbers`` have (T, N); NaN
    where a
    window lacks the number. In ``alike`` are the distributions of which all values in a window are the same.
    """

    source: str
    size_s: float
    series: tuple[Mapping[str, str], ...]
    starts: Floats
    numbers: Mapping[str, Floats]
    there: Bools
    alike: frozenset[str] = frozenset()

    @cached_property
    def keys(self) -> list[SortedLabels]:
        return [sorted_labels(each) for each in self.series]

    @cached_property
    def paths(self) -> dict[str, tuple[str, ...]]:
        return {name: path_of(self.source, name) for name in self.numbers}

    def __getitem__(self, rows: slice) -> Panel:
        numbers = {name: column[rows] for name, column in self.numbers.items()}
        return replace(self, starts=self.starts[rows], numbers=numbers, there=self.there[rows])

    def blocks(self) -> Iterator[Panel]:
        """The panel in pieces that are worth a calculation each."""
        step = max(1, BLOCK // max(1, len(self.series)))
        return (self[first : first + step] for first in range(0, len(self.starts), step))

    def sketch(self, field: str, row: int, column: int) -> Sketch | None:
        if field not in self.alike:
            return None
        value, count = (float(self.numbers[f"{field}.{name}"][row, column]) for name in ("p50", "count"))
        return None if np.isnan(value) or count <= 0 else Sketch.of_equal(value, int(count))

    def window(self, row: int, column: int) -> dict[str, Any]:
        """The window as a record holds it."""
        start = float(self.starts[row])
        found: dict[str, Any] = {
            "type": "window",
            "schema": SCHEMA,
            "source": self.source,
            "part": "main",
            "revision": 0,
            "series": dict(self.series[column]),
            "start_unix_s": start,
            "end_unix_s": start + self.size_s,
            "size_s": self.size_s,
            "partition": 0,
            "completeness": {"watermark_unix_s": start + self.size_s},
        }
        for name, path in self.paths.items():
            value = float(self.numbers[name][row, column])
            if not np.isnan(value):
                _put(found, path, int(value) if path[-1].endswith("count") and value.is_integer() else value)
        for field in sorted(self.alike):
            if (sketch := self.sketch(field, row, column)) is not None:
                _put(found, sketch_path(field), sketch)
        return found


def panel(  # what people give, completed by what follows from it
    source: str,
    size_s: float,
    series: Sequence[Mapping[str, str]],
    starts: Floats,
    numbers: Mapping[str, Floats],
    there: Bools | None = None,
) -> Panel:
    """A panel of numbers of windows.

    ``gauges.NAME`` alone, or a distribution alone, stands for all its statistics: every value in a window was that one.
    ``counters.NAME`` alone is what was added in a window.
    Where ``count`` does not say, a window holds one event, and 1,000 where there is an error rate. Errors, which are a
    whole number, and throughput follow from it.

    Raises:
        ConfigError: windows of this source have no such number, or it cannot be one.
    """
    known = np.logical_or.reduce([~np.isnan(column) for column in numbers.values()]) if numbers else None
    exists = there if there is not None else known
    assert exists is not None, "numbers, or which windows there are"
    found = {name: np.asarray(column, dtype=float) for name, column in numbers.items() if path_of(source, name)}
    events = np.where(exists, EVENTS_WITH_ERRORS if "error_rate" in found else 1.0, np.nan)
    given = found.get("count", events)
    found["count"] = np.where(np.isnan(given), events, given)
    for each in found.keys() & {"count", "error_count"}:
        _check_counts(each, found[each])
    alike = frozenset(name for name in numbers if _is_distribution(source, name))
    for name in numbers.keys() - found.keys():
        found |= _spread(source, name, np.asarray(numbers[name], dtype=float), found["count"])
    if source == "inference":
        count = np.where(found["count"] > 0, found["count"], np.nan)
        if "error_rate" in found:
            found.setdefault("error_count", np.round(found["error_rate"] * found["count"]))
        found.setdefault("error_count", np.where(exists, 0.0, np.nan))
        found.setdefault("error_rate", found["error_count"] / count)
    found.setdefault("throughput_per_s", found["count"] / size_s)
    for name in [name for name in found if name.startswith("counters.") and name.endswith(".sum")]:
        found.setdefault(f"{name.removesuffix('sum')}per_s", found[name] / size_s)
    ordered = {name: found[name] for name in sorted(found)}
    labels = tuple(series)
    if len({sorted_labels(each) for each in labels}) < len(labels):
        raise ConfigError("two series have the same labels")
    return Panel(source, size_s, labels, np.asarray(starts, dtype=float), ordered, exists, alike)


def _check_counts(name: str, column: Floats) -> None:
    known = column[~np.isnan(column)]
    wrong = known[(known < 0) | (known >= MAX_COUNT) | (known != np.floor(known))]
    if len(wrong):
        raise ConfigError(f"a {name} is {wrong[0]:g}, and has to be a whole number from 0 to below 2^53")


def _spread(source: str, name: str, column: Floats, count: Floats) -> dict[str, Floats]:
    """All statistics of values that are alike."""
    known = np.where(np.isnan(column), np.nan, count)
    if _is_distribution(source, name):
        alike = {f"{name}.{each}": column * known if each == "sum" else column for each in _ALIKE}
        return alike | {f"{name}.count": known}
    if path_of(source, f"{name}.last"):
        return {f"{name}.{each}": known if each == "count" else column for each in Gauge.__struct_fields__}
    if path_of(source, f"{name}.sum"):
        return {f"{name}.sum": column}
    raise ConfigError(f"{source} windows have no number {name!r}")


def _is_distribution(source: str, name: str) -> bool:
    return SOURCES[source].kind_of(name) == DISTRIBUTION


def _put(into: dict[str, Any], path: Sequence[str], value: float | Sketch) -> None:
    for key in path[:-1]:
        into = into.setdefault(key, {})
    into[path[-1]] = value


# ---------------------------------------------------------------- as records


class Written(NamedTuple):
    """A record as a log would hold it."""

    offset: int
    timestamp: int
    value: bytes
    headers: Headers = ()
    partition: int = 0
    key: bytes | None = None


def records_of(panel_: Panel, until_unix_s: float | None = None, tick_s: float = TICK_S) -> Iterator[Written]:
    """The panel as a log of `windows`, to which time goes on up to ``until_unix_s``."""
    windows = (
        (start + panel_.size_s, msgspec.json.encode(panel_.window(row, column)))
        for row, start in enumerate(panel_.starts.tolist())
        for column in np.flatnonzero(panel_.there[row]).tolist()
    )
    return as_log(windows, until_unix_s, tick_s)


def as_log(
    values: Iterable[tuple[float, bytes]], until_unix_s: float | None = None, tick_s: float = TICK_S
) -> Iterator[Written]:
    """A log that got these values at these times; ticks wherever it got none, at the end up to ``until_unix_s``."""
    offset, newest = 0, None
    for at, value in values:
        for stamp in ticks(newest, at, tick_s):
            yield Written(offset, stamp, TICK)
            offset += 1
        yield Written(offset, ms(at), value)
        offset, newest = offset + 1, at
    for stamp in ticks(newest, newest if until_unix_s is None else until_unix_s, tick_s):
        yield Written(offset, stamp, TICK)
        offset += 1


def ticks(newest: float | None, next_: float | None, tick_s: float = TICK_S) -> Sequence[int]:
    """When time passes in the log between two records, as far as they are apart; milliseconds."""
    if newest is None or next_ is None or next_ - newest <= 2 * tick_s:
        return ()
    return range(ms(newest + tick_s), ms(next_), ms(tick_s))


def ms(time_s: float) -> int:
    return round(1000 * time_s)


# ---------------------------------------------------------------- as they are


class ColumnTask(RulesTask):
    """A `RulesTask` that also takes windows in columns. What it is given has to go on where it was left."""

    _newest_end: float | None = None

    def take(self, block: Panel) -> list[Outgoing]:
        """What `process` puts out for `records_of` these windows."""
        news = News([], set(), [])
        probe = Seen(block.source, "main", {}, 0.0, 0.0, 1, block.size_s)
        takings = {lane: _Taking(lane, block) for lane in self._log.lanes_for(probe)}
        rows, columns = np.nonzero(block.there)
        bounds = np.searchsorted(rows, np.arange(len(block.starts) + 1)).tolist()
        place = 0
        for row, (first, after) in enumerate(pairwise(bounds)):
            if first == after:
                continue
            place = self._let_time_pass(place, float(block.starts[row]) + block.size_s, news)
            self._take_wave(place, row, columns[first:after], takings, news)
            place += after - first
        return self._tell(
            news,
            lambda lane: ColumnBatch(takings[lane]) if lane in takings else lane.batch(),
            lambda batch, at: msgspec.json.encode(block.window(*_cell(batch, at))),
        )

    def _let_time_pass(self, place: int, end: float, news: News) -> int:
        """The ticks before a wave; while nobody waits, none could say anything, and they pass at once."""
        stamps = ticks(self._newest_end, end) if self._silences else ()
        for stamp in stamps:
            self._pass(place, stamp, news)
            place += 1
            if not self._log.waits:
                before, last = self._log.time, stamps[-1]
                self._log.time = LogTime(before.passed_ms + last - before.newest_ms, last)
                self._pass(place, last, news)
                break
        self._newest_end = end
        return place

    @property
    def _log(self) -> Log:
        return self._logs["windows"]

    @cached_property
    def _silences(self) -> bool:
        return any(lane.silences for lane in self._log.lanes)

    def _pass(self, place: int, stamp: int, news: News) -> None:
        log = self._log
        before = log.time
        log.time = log.decided = before.after(stamp)
        if log.time.is_another_second(before):
            self._pass_time(log, place, news)

    def _take_wave(self, place: int, row: int, columns: Ints, takings: Mapping[Lane, _Taking], news: News) -> None:
        before, offset = self._log.time, self._next.get("windows", 0)
        self._next["windows"] = offset + len(columns)
        for number, (lane, taking) in enumerate(takings.items()):
            seen = taking.seen(row)
            if not number:
                self._pass(place, ms(seen.end_unix_s), news)
            if not lane.is_back_in_time(seen):
                before_end = lane.clock.newest_end
                if lane.advance(seen, offset, before, self._log.time):
                    self._begin(self._log, place, lane, seen, news)
                lane.sweep(before_end)
                taking.take(place, row, columns)


def _cell(batch: Batch, at: int) -> tuple[int, int]:
    assert isinstance(batch, ColumnBatch)
    return int(batch.panel_rows[at]), int(batch.panel_columns[at])


class _Taking:
    """What one lane takes of a block, wave by wave."""

    def __init__(self, lane: Lane, block: Panel) -> None:
        self.lane, self.panel = lane, block
        self._rows = np.array([lane._rows.get(labels, -1) for labels in block.keys], dtype=np.int64)

    def seen(self, row: int, column: int | None = None) -> Seen:
        """What every rule needs of a window; of all windows of a row alike, but for the series."""
        panel_ = self.panel
        start = float(panel_.starts[row])
        series = {} if column is None else dict(panel_.series[column])
        count = 1 if column is None else int(panel_.numbers["count"][row, column])
        return Seen(panel_.source, "main", series, start, start + panel_.size_s, count, panel_.size_s)

    def take(self, place: int, row: int, columns: Ints) -> None:
        start, places = float(self.panel.starts[row]), np.arange(place, place + len(columns))
        windows = Cells(self, row, columns)
        self.lane.take_wave(start, start + self.panel.size_s, self._lane_rows(columns), places, windows)

    def _lane_rows(self, columns: Ints) -> Ints:
        """The rows of these series; of those that have none, or were given up, new ones."""
        rows = self._rows[columns]
        lost = rows < 0
        lost[~lost] = self.lane.heard[rows[~lost]] < 0
        for at in np.flatnonzero(lost).tolist():
            rows[at] = self._rows[columns[at]] = self.lane.row_of(self.panel.keys[columns[at]])
        return rows


class Cells(Sequence[Seen]):
    """The windows of a wave, each made when it is looked at: few are."""

    def __init__(self, taking: _Taking, row: int, columns: Ints) -> None:
        self.taking, self.row, self.columns = taking, row, columns

    def __len__(self) -> int:
        return len(self.columns)

    @overload
    def __getitem__(self, at: int) -> Seen: ...
    @overload
    def __getitem__(self, at: slice) -> Cells: ...
    def __getitem__(self, at: int | slice) -> Seen | Cells:
        if isinstance(at, slice):
            return Cells(self.taking, self.row, self.columns[at])
        return self.taking.seen(self.row, int(self.columns[at]))


class ColumnBatch(Batch):
    """A batch that never was records."""

    def __init__(self, taking: _Taking) -> None:
        self._taking = taking
        waves = taking.lane.taken()
        cells = [wave.windows for wave in waves if isinstance(wave.windows, Cells)]
        self.panel_rows: Ints = joined([np.full(len(each), each.row) for each in cells], np.int64)
        self.panel_columns: Ints = joined([each.columns for each in cells], np.int64)
        super().__init__(taking.lane, waves)

    def _column(self, name: str) -> Floats:
        column = self._taking.panel.numbers.get(name)
        if column is None:
            return np.full(len(self.rows), np.nan)
        found: Floats = column[self.panel_rows, self.panel_columns]
        return found

    def _sketches(self, look: Look) -> Iterator[Sketch | None]:
        sketch, field = self._taking.panel.sketch, look.sketches or ""
        cells = zip(self.panel_rows.tolist(), self.panel_columns.tolist(), strict=True)
        return (sketch(field, row, column) for row, column in cells)

    def window(self, at: int) -> Seen:
        return self._taking.seen(*_cell(self, at))
