"""Numbers of the past from a CSV file, as windows.

The file has a header with ``timestamp`` (ISO, UTC if it does not say, or Unix seconds) and ``value``: the number
which the caller names. A further column whose name is a number of such windows, ``error_rate``, is one too; any other
is a label, so that one file may hold many series. A window holds the rows that lie in it: of a gauge their least,
greatest, mean and last; anything else has one row a window.
"""

from __future__ import annotations

import csv
from array import array
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np

from streammon.errors import ConfigError
from streammon_processors.rules.backtest.columns import Panel, panel
from streammon_processors.rules.conditions.cel import DISTRIBUTION, NUMBER
from streammon_processors.rules.conditions.expression import Floats
from streammon_processors.rules.conditions.past import Ints
from streammon_processors.rules.lanes import SortedLabels, joined, sorted_labels
from streammon_processors.rules.sources import SOURCES, SourceName, path_of

MAX_WINDOWS = 100_000_000
"""Of all series together, those without a number included."""
_AT_ONCE: Final = 500


class _Rows(NamedTuple):
    times: Floats
    series: Ints
    labels: Sequence[SortedLabels]
    numbers: Mapping[str, Floats]


def csv_panel(
    file: Path,
    *,
    source: SourceName,
    field: str,
    labels: Mapping[str, str],
    size_s: float | None = None,
) -> Panel:
    """The windows of a file; as long as its rows are usually apart, or ``size_s``.

    Raises:
        ConfigError: naming the file and the line.
    """
    rows = _read(file, source, field, labels)
    if not len(rows.times):
        raise ConfigError(f"{file} has no rows")
    size_s = size_s or _usual_step(file, rows)
    in_slot = np.floor(rows.times / size_s).astype(np.int64)
    begins = np.concatenate(([True], np.diff(in_slot) != 0))  # rows are in order of time
    slots, numbers = in_slot[begins], np.cumsum(begins) - 1
    shape = (len(slots), len(rows.labels))
    if shape[0] * shape[1] > MAX_WINDOWS:
        raise ConfigError(f"{file}: {shape[0]:,} windows of {size_s:g} s for {shape[1]} series are too many")
    cells = numbers * shape[1] + rows.series
    counts = np.bincount(cells, minlength=shape[0] * shape[1]).reshape(shape)
    there = counts > 0
    found = {"count": np.where(there, counts, np.nan)}
    for name, values in rows.numbers.items():
        found |= _in_windows(file, name, cells, values, shape)
    starts: Floats = size_s * slots.astype(float)
    try:
        return panel(source, size_s, [dict(each) for each in rows.labels], starts, found, there)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from None


def _usual_step(file: Path, rows: _Rows) -> float:
    by_series = np.argsort(rows.series.astype(np.min_scalar_type(len(rows.labels))), kind="stable")
    steps = np.diff(rows.times[by_series])[np.diff(rows.series[by_series]) == 0]
    positive = steps[steps > 0]
    if not len(positive):
        raise ConfigError(f"{file}: no series has two rows, so nobody knows how long a window is; give --window")
    return float(np.median(positive))


def _in_windows(file: Path, name: str, cells: Ints, values: Floats, shape: tuple[int, int]) -> dict[str, Floats]:
    known = ~np.isnan(values)
    cells, values = cells[known], values[known]
    last = np.full(shape, np.nan)
    last.flat[cells] = values  # the last of several wins
    if not len(cells) or np.bincount(cells).max() == 1:
        return {name: last}
    if not name.startswith("gauges.") or path_of("resource", name):
        raise ConfigError(f"{file}: several rows of one series lie in one window; only a gauge can hold them")
    least, most, total, count = np.full(shape, np.inf), np.full(shape, -np.inf), np.zeros(shape), np.zeros(shape)
    np.minimum.at(least.reshape(-1), cells, values)
    np.maximum.at(most.reshape(-1), cells, values)
    np.add.at(total.reshape(-1), cells, values)
    np.add.at(count.reshape(-1), cells, 1)
    seen = count > 0
    parts = {"min": least, "max": most, "mean": total / np.maximum(count, 1), "last": last, "count": count}
    return {f"{name}.{part}": np.where(seen, column, np.nan) for part, column in parts.items()}


# ---------------------------------------------------------------- reading


def _read(file: Path, source: SourceName, field: str, labels: Mapping[str, str]) -> _Rows:
    try:
        with file.open(newline="", encoding="utf-8-sig") as opened:  # Excel begins with a mark
            return _rows(file, csv.reader(opened, strict=True), source, field, labels)
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{file} is no CSV: {error}") from None


def _rows(file: Path, lines: Iterator[list[str]], source: SourceName, field: str, labels: Mapping[str, str]) -> _Rows:
    header = [name.strip() for name in next(lines, [])]
    if "timestamp" not in header:
        raise ConfigError(f"{file}:1: there is no column `timestamp`; there are {', '.join(header) or 'none'}")
    if "" in header:
        raise ConfigError(f"{file}:1: column {header.index('') + 1} has no name")
    if twice := sorted({name for name in header if header.count(name) > 1}):
        raise ConfigError(f"{file}:1: two columns are called {twice[0]!r}")
    names = {at: field if name == "value" else name for at, name in enumerate(header) if name != "timestamp"}
    numbers = {at: name for at, name in names.items() if is_number(source, name)}
    if len(set(numbers.values())) < len(numbers):
        raise ConfigError(f"{file}:1: `value` is {field}, and there is a column of that name, too; say --field")
    if "value" in header and not is_number(source, field):
        raise ConfigError(f"--field is {field!r}: {source} windows have no such number")
    if not numbers:
        raise ConfigError(f"{file}:1: there is no column `value`, and none that {source} windows have as a number")
    texts = {at: name for at, name in names.items() if at not in numbers}
    reading = _Reading(file, header, tuple(texts), tuple(numbers))
    while some := list(islice(lines, _AT_ONCE)):
        reading.add(some)
    keys = [sorted_labels({**labels, **dict(zip(texts.values(), each, strict=True))}) for each in reading.known]
    times = joined(reading.times, np.float64)
    order = np.argsort(times, kind="stable")
    columns = {numbers[at]: joined(column, np.float64)[order] for at, column in reading.numbers.items()}
    return _Rows(times[order], joined(reading.series, np.int64)[order], keys, columns)


class _Reading:
    """What has been read of a file: many rows at once, and only where these are not as usual one by one."""

    def __init__(self, file: Path, header: Sequence[str], texts: Sequence[int], numbers: Sequence[int]) -> None:
        self._file, self._header, self._texts = file, header, texts
        self._time = header.index("timestamp")
        self._line = 2
        self.times: list[Floats] = []
        self.series: list[Ints] = []
        self.numbers: dict[int, list[Floats]] = {at: [] for at in numbers}
        self.known: dict[tuple[str, ...], int] = {}
        """The series, in the order in which they came, and their numbers."""

    def add(self, rows: Sequence[Sequence[str]]) -> None:
        """The next rows of the file. Raises ConfigError, naming the line."""
        try:
            times, columns = self._as_usual(rows)
        except ValueError:
            rows, times, columns = self._one_by_one(rows)
        self._line += len(rows)
        if not len(times):
            return
        self.times.append(times)
        self.series.append(np.array(self._numbered(rows), dtype=np.int64))
        for at, column in columns.items():
            self.numbers[at].append(np.where(np.isfinite(column), column, np.nan))

    def _numbered(self, rows: Sequence[Sequence[str]]) -> list[int]:
        labels: list[tuple[str, ...]] = list(zip(*(_column(rows, at) for at in self._texts), strict=True))
        labels = labels or [()] * len(rows)
        for each in dict.fromkeys(labels):
            self.known.setdefault(each, len(self.known))
        return list(map(self.known.__getitem__, labels))

    def _as_usual(self, rows: Sequence[Sequence[str]]) -> tuple[Floats, dict[int, Floats]]:
        """Raises ValueError: a row is empty, too long or too short, or has something else than a number or a time."""
        if set(map(len, rows)) != {len(self._header)}:
            raise ValueError
        said = _column(rows, self._time)
        known = {text: _time(text) for text in dict.fromkeys(said)}
        times = np.array(list(map(known.__getitem__, said)))
        return times, {at: np.array(list(map(float, _column(rows, at)))) for at in self.numbers}

    def _one_by_one(self, rows: Sequence[Sequence[str]]) -> tuple[Sequence[Sequence[str]], Floats, dict[int, Floats]]:
        numbered = [(line, row) for line, row in enumerate(rows, self._line) if row]
        self._line += len(rows) - len(numbered)
        times, numbers = array("d"), {at: array("d") for at in self.numbers}
        for line, row in numbered:
            if len(row) != len(self._header):
                raise ConfigError(f"{self._file}:{line}: {len(row)} columns, and the header has {len(self._header)}")
            try:
                times.append(_time(row[self._time]))
            except ValueError as error:
                raise ConfigError(f"{self._file}:{line}: {error}") from None
            for at, column in numbers.items():
                column.append(_number(self._file, line, self._header[at], row[at]))
        return [row for _, row in numbered], np.array(times), {at: np.array(each) for at, each in numbers.items()}


def _column(rows: Sequence[Sequence[str]], at: int) -> list[str]:
    return list(map(itemgetter(at), rows))


def is_number(source: SourceName, name: str) -> bool:
    """Whether windows have it: a number, or a gauge, a counter or a distribution as a whole."""
    whole = {"gauges": "last", "counters": "sum"}.get(name.partition(".")[0])
    of_whole = path_of(source, f"{name}.{whole}") if whole else ()
    return bool(SOURCES[source].kind_of(name) in (NUMBER, DISTRIBUTION) or of_whole)


def utc(text: str) -> float:
    """Unix seconds of an ISO time, UTC if it does not say, or of a number. Raises ValueError."""
    try:
        return float(text)
    except ValueError:
        time = datetime.fromisoformat(text.strip())
        return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()


def _time(text: str) -> float:
    """Raises ValueError."""
    try:
        found = utc(text)
    except ValueError:
        found = np.nan
    if not 0 <= found < 1e11:
        raise ValueError(f"timestamp {text!r} is neither an ISO time nor Unix seconds")
    return found


def _number(file: Path, line: int, name: str, text: str) -> float:
    try:
        found = float(text) if text.strip() else np.nan
    except ValueError:
        raise ConfigError(f"{file}:{line}: {name} {text!r} is no number") from None
    return found if np.isfinite(found) else np.nan
