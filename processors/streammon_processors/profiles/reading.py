"""Samples of what somebody has: a CSV or Parquet file, or a range of the log.

A column of a file is a target, and its values become what events with the same values would have: so a reference made
of a file equals one made of those events. What is ambiguous is refused, with its file, row and column.
"""

from __future__ import annotations

import csv
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from streammon.broker import Broker
from streammon.broker.reading import read as read_topics
from streammon.broker.records import Records
from streammon.config import WindowSettings
from streammon.errors import ConfigError
from streammon.events import EventType, record_key
from streammon.models import DriftPolicy
from streammon.tick import TICK
from streammon_processors.chunk import Chunk, Fate
from streammon_processors.dedupe import Dedupe
from streammon_processors.event_windows import CHUNK_ROWS
from streammon_processors.profiles.sample import Sample
from streammon_processors.profiles.targets import (
    CONFIDENCE,
    FEATURES,
    MAX_NAME_CHARS,
    MAX_TARGETS,
    PREDICTION,
    Fields,
    read,
)
from streammon_processors.profiles.task import INFERENCE, Profiles
from streammon_processors.replay import Range

ROWS = 10_000
"""Read at once."""
MAX_VALUES = 50_000_000
"""Of a whole file: they are held, at eight bytes each."""
MISSING = frozenset(("", "nan", "null"))
"""What stands for no value in a cell, in any case."""
_TRUTHS = {"true": True, "false": False}


@dataclass(frozen=True)
class ColumnNames:
    """What the columns of a file are; those that are not named are features of their own name."""

    features: Mapping[str, str] = field(default_factory=dict)
    """By column, the name of the feature."""
    prediction: str | None = None
    confidence: str | None = None
    ignored: frozenset[str] = frozenset()

    def targets(self, file: Path, header: Sequence[str]) -> dict[str, str]:
        """By column, its target. Raises ConfigError."""
        if "" in header:
            raise ConfigError(f"{file}: column {list(header).index('') + 1} has no name")
        if twice := sorted(name for name, count in Counter(header).items() if count > 1):
            raise ConfigError(f"{file}: two columns are called {twice[0]!r}")
        named = {*self.features, *self.ignored, *filter(None, (self.prediction, self.confidence))}
        if unknown := sorted(named - set(header)):
            raise ConfigError(f"{file} has no column {unknown[0]!r}; it has {', '.join(header)}")
        found = {column: self._target(column) for column in header if column not in self.ignored}
        if twice := sorted(target for target, count in Counter(found.values()).items() if count > 1):
            raise ConfigError(f"{file}: two columns are {twice[0]}; leave one out with --ignore")
        if long := [column for column, target in found.items() if len(target) > MAX_NAME_CHARS]:
            raise ConfigError(
                f"{file}: the name of column {long[0][:40]!r}… is too long; --column NAME={long[0][:10]}…"
            )
        if len(found) > MAX_TARGETS:
            raise ConfigError(f"{file} has {len(found)} columns, at most {MAX_TARGETS} are looked at; --ignore some")
        return found

    def _target(self, column: str) -> str:
        special = {self.prediction: PREDICTION, self.confidence: CONFIDENCE}
        return special.get(column) or FEATURES + self.features.get(column, column)


Block = dict[str, list[Any]]
"""By column, the values of some rows: float, str, bool or None."""


def sample_of_file(file: Path, names: ColumnNames, policy: DriftPolicy) -> Sample:
    """All rows of a file: Parquet by its name, else CSV.

    Raises:
        ConfigError: naming the file, and the row and column where there is one.
    """
    blocks = _parquet if file.suffix in (".parquet", ".pq") else _csv
    sample = Sample(policy)
    for targets, block in blocks(file, names, policy):
        rows = len(next(iter(block.values()), ()))
        columns = {targets[column]: read(targets[column], values, policy) for column, values in block.items()}
        sample.add({name: column for name, column in columns.items() if column.types}, rows)
        if sample.count * len(targets) > MAX_VALUES:
            raise ConfigError(
                f"{file} has more than {MAX_VALUES:,} values; take a sample of its rows, or --ignore columns"
            )
    if not sample.count:
        raise ConfigError(f"{file} has no rows")
    return sample


# --- CSV ----------------------------------------------------------------------------------------------------------


def _csv(file: Path, names: ColumnNames, policy: DriftPolicy) -> Iterator[tuple[dict[str, str], Block]]:
    """Twice through the file: what a column holds is known at its end."""
    targets: dict[str, str] = {}
    kinds: dict[str, _Kind] = {}
    for rows in _csv_rows(file):
        if not targets:
            targets = names.targets(file, rows.header)
            kinds = {column: _Kind(file, column, target, policy) for column, target in targets.items()}
        for column, kind in kinds.items():
            kind.look(rows.cells(column), rows.lines)
    readers = {column: kind.reader() for column, kind in kinds.items()}
    for rows in _csv_rows(file):
        yield targets, {column: list(map(read_cell, rows.cells(column))) for column, read_cell in readers.items()}


@dataclass(frozen=True)
class _Rows:
    header: list[str]
    rows: list[list[str]]
    lines: list[int]

    def cells(self, column: str) -> list[str]:
        at = self.header.index(column)
        return [row[at] for row in self.rows]


def _csv_rows(file: Path) -> Iterator[_Rows]:
    try:
        with file.open(newline="", encoding="utf-8-sig") as opened:  # Excel begins with a mark
            reader = csv.reader(opened, strict=True)
            header = [name.strip() for name in next(reader, [])]
            if not header:
                raise ConfigError(f"{file} is empty; its first row names the columns")
            rows, lines = list[list[str]](), list[int]()
            for row in reader:
                if len(row) != len(header):
                    if not row:
                        continue
                    said = f"{len(row)} cells, and {len(header)} columns have a name"
                    raise ConfigError(f"{file}:{reader.line_num}: there are {said}")
                rows.append(row)
                lines.append(reader.line_num)
                if len(rows) == ROWS:
                    yield _Rows(header, rows, lines)
                    rows, lines = [], []
            yield _Rows(header, rows, lines)
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{file} is no CSV: {error}") from None


class _Kind:
    """What the cells of one column are: all numbers, all true or false, or texts."""

    def __init__(self, file: Path, column: str, target: str, policy: DriftPolicy) -> None:
        self._file, self._column, self._target, self._policy = file, column, target, policy
        self._counts: Counter[type] = Counter()
        self._first: dict[type, tuple[int, str]] = {}

    def look(self, cells: Sequence[str], lines: Sequence[int]) -> None:
        for cell, line in zip(cells, lines, strict=True):
            value = typed(cell)
            kind = type(value)
            self._counts[kind] += 1
            self._first.setdefault(kind, (line, cell))
            if isinstance(value, float) and math.isinf(value):
                raise self._error(line, f"{cell!r} is not a finite number")

    def reader(self) -> Callable[[str], Any]:
        """How its cells are read. Raises ConfigError: most are numbers, some are not."""
        if self._target in self._policy.text:
            return _text
        if self._target in self._policy.categorical:
            return typed
        if self._target == CONFIDENCE:
            self._refuse(str, bool, why="a confidence is one")
        numbers, others = self._counts[float], self._counts[str] + self._counts[bool]
        if numbers > others:
            self._refuse(
                str,
                bool,
                why=f"and most others are; leave it empty where there is none, or list {self._target} under "
                "drift.categorical in the file of models",
            )
        return typed if not others or not (numbers or self._counts[str]) else _text

    def _refuse(self, *kinds: type, why: str) -> None:
        first = [self._first[kind] for kind in kinds if kind in self._first]
        if first:
            line, cell = min(first)
            raise self._error(line, f"{cell[:80]!r} is no number, {why}")

    def _error(self, line: int, said: str) -> ConfigError:
        return ConfigError(f"{self._file}:{line}: column {self._column}: {said}")


def typed(cell: str) -> float | bool | str | None:
    """What a cell holds."""
    bare = cell.strip()
    small = bare.lower()
    if small in MISSING:
        return None
    if small in _TRUTHS:
        return _TRUTHS[small]
    try:
        value = float(bare) if "_" not in bare else math.nan
    except ValueError:
        return cell
    return cell if math.isnan(value) else value


def _text(cell: str) -> str | None:
    return None if cell.strip().lower() in MISSING else cell


# --- Parquet ------------------------------------------------------------------------------------------------------


def _parquet(file: Path, names: ColumnNames, policy: DriftPolicy) -> Iterator[tuple[dict[str, str], Block]]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(file) as opened:
            targets = names.targets(file, opened.schema_arrow.names)
            for column in targets:
                _check_type(file, column, opened.schema_arrow.field(column).type)
            before = 0
            for batch in opened.iter_batches(ROWS, columns=list(targets)):
                some = {column: _converted(file, column, batch.column(column), before) for column in targets}
                yield targets, some
                before += batch.num_rows
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror or error}") from None
    except pa.ArrowException as error:
        raise ConfigError(f"{file} is no Parquet: {error}") from None


def _check_type(file: Path, column: str, kind: Any) -> None:
    from pyarrow import types

    if types.is_dictionary(kind):
        kind = kind.value_type
    known = (types.is_integer, types.is_floating, types.is_decimal, types.is_boolean, types.is_string)
    if not any(is_one(kind) for is_one in (*known, types.is_large_string, types.is_null)):
        raise ConfigError(
            f"{file}: column {column} is of type {kind}; numbers, texts and booleans can be looked at; --ignore it"
        )


def _converted(file: Path, column: str, values: Any, before: int) -> list[Any]:
    found = [
        _number(value) if isinstance(value, int | float) or hasattr(value, "as_tuple") else value
        for value in values.to_pylist()
    ]
    for row, value in enumerate(found, start=before + 1):
        if type(value) is float and math.isinf(value):
            raise ConfigError(f"{file}: row {row}: column {column}: {value} is not a finite number")
    return found


def _number(value: Any) -> float | bool | None:
    if isinstance(value, bool):
        return value
    return None if math.isnan(value) else float(value)


# --- the log ------------------------------------------------------------------------------------------------------


async def sample_of_log(
    broker: Broker,
    model: tuple[str, str, str | None],
    range_: Range,
    policy: DriftPolicy,
    settings: WindowSettings,
) -> Sample:
    """The predictions of a model (of all its versions, where none is named) whose event time is in a range.

    They are read from `inference`, which keeps them a day: profiles last longer, but their values are gone.
    """
    sample, dedupe = Sample(policy), Dedupe()
    key = record_key(EventType.INFERENCE, model[:2])
    start = max(0.0, range_.from_unix_s - settings.max_future_s)
    async with aclosing(read_topics(broker, [INFERENCE], start)) as batches:
        async for _, records in batches:
            mine = [each for each in records if each.key == key and each.value != TICK]
            for chunk in _chunks(Records.of(mine)):
                rows = np.flatnonzero(_wanted(chunk, model, range_, dedupe))
                if len(rows):
                    events = Fields(chunk).of(rows, policy)
                    sample.add(sample.columns(events), len(rows))
    return sample


def _chunks(records: Records) -> Iterator[Chunk]:
    while len(records):
        chunk = Chunk(EventType.INFERENCE, records, CHUNK_ROWS, Profiles.wanted)
        yield chunk
        records = records[chunk.records :]


def _wanted(chunk: Chunk, model: tuple[str, str, str | None], range_: Range, dedupe: Dedupe) -> Any:
    wanted = (chunk.fate == Fate.EVENT) & (chunk.time >= range_.from_unix_s) & (chunk.time < range_.to_unix_s)
    for name, value in zip(Profiles.by, model, strict=True):
        if value is not None:
            wanted &= chunk.equals(name, value)
    for header in chunk.headers:
        if header.identity and dedupe.judge(header.identity, chunk.record(header.row).timestamp).duplicate:
            wanted[header.row : header.row + header.rows] = False
    return wanted
