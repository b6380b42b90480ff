"""The tables of the results file that are about models: drift, the quality of predictions, and retraining.

Each row is the newest that is known under its id, so a record delivered again changes nothing, and one that replaces
another (a later revision of the same window) does so whenever it comes. ``series`` is what rows of different times have
in common; the newest of each is found without reading the others, by stepping through the index.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, TypeVar

import msgspec

from streammon.results import Drift, Loop, Quality, Result
from streammon_sinks.ids import drift_id, drift_series, quality_id, quality_series

ModelResult = Drift | Quality | Loop
M = TypeVar("M", Drift, Quality, Loop)


HEADLINES: Final = ("accuracy", "mae", "score", "rating")
"""What a model is judged by, the first that there is: of classes, of numbers, by users."""


class Row(NamedTuple):
    """Where a result belongs. Of the same ``id``, the highest ``revision`` stays.

    ``notable``: it is one of those that are asked for by themselves: something drifted, was measured, is over.
    """

    id: str
    series: str
    end_unix_s: float
    revision: int
    notable: bool


@dataclass(frozen=True)
class Table:
    """How results of one kind are kept. ``columns``: what people look for, by name its type and path in the body."""

    name: str
    kind: type[Result]
    row: Callable[[Any], Row]
    columns: Mapping[str, str]

    @property
    def schema(self) -> str:
        """The number grows with every writing: `AUTOINCREMENT`, because a row that is replaced may be the last one."""
        name = self.name
        columns = [f"{column} {kind} AS (json_extract(body, '$.{column}'))" for column, kind in self.columns.items()]
        return f"""
CREATE TABLE IF NOT EXISTS {name} (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,
    series TEXT NOT NULL,
    end_unix_s REAL NOT NULL,
    revision INTEGER NOT NULL,
    notable INTEGER NOT NULL,
    written_unix_s REAL NOT NULL,
    body TEXT NOT NULL,
    {", ".join(columns)}
);
CREATE INDEX IF NOT EXISTS {name}_by_series ON {name} (series, end_unix_s);
CREATE INDEX IF NOT EXISTS {name}_notable ON {name} (series, end_unix_s) WHERE notable;
CREATE INDEX IF NOT EXISTS {name}_by_time ON {name} (end_unix_s);
CREATE INDEX IF NOT EXISTS {name}_by_age ON {name} (written_unix_s);
"""

    @property
    def upsert(self) -> str:
        return f"""
INSERT OR REPLACE INTO {self.name} (id, series, end_unix_s, revision, notable, written_unix_s, body)
SELECT ?1, ?2, ?3, ?4, ?5, ?6, ?7 WHERE NOT EXISTS (SELECT 1 FROM {self.name} WHERE id = ?1 AND revision >= ?4)
"""  # noqa: S608 - built from constants

    def newest(self, notable: bool) -> str:
        """The newest row of each series, or the newest notable one; the last first."""
        return f"""
WITH RECURSIVE each(series) AS (
    SELECT min(series) FROM {self.name}
    UNION ALL
    SELECT (SELECT min(series) FROM {self.name} WHERE series > each.series) FROM each WHERE each.series IS NOT NULL
)
SELECT found.body FROM each JOIN {self.name} AS found ON found.number = (
    SELECT number FROM {self.name} AS one WHERE one.series = each.series {"AND notable" * notable}
    ORDER BY end_unix_s DESC, number DESC LIMIT 1
) ORDER BY found.end_unix_s DESC, found.number DESC LIMIT ?
"""  # noqa: S608 - built from constants

    @property
    def ended(self) -> str:
        """All that ended in a time, the last first."""
        return f"""
SELECT body FROM {self.name} WHERE end_unix_s > ? AND end_unix_s <= ? ORDER BY end_unix_s DESC, number DESC LIMIT ?
"""  # noqa: S608 - built from constants

    @property
    def of_series(self) -> str:
        """What one series had to say since a time, the last first."""
        return f"""
SELECT body FROM {self.name} WHERE series = ? AND end_unix_s > ? ORDER BY end_unix_s DESC, number DESC LIMIT ?
"""  # noqa: S608 - built from constants

    @property
    def too_old(self) -> str:
        name = self.name
        return f"""
DELETE FROM {name} WHERE number IN
    (SELECT number FROM {name} WHERE written_unix_s < ? ORDER BY written_unix_s LIMIT ?)
"""  # noqa: S608 - built from constants

    @property
    def too_many(self) -> str:
        """Numbers grow in the order of writing, so this keeps at most that many rows, and never fewer by itself."""
        name = self.name
        return f"""
DELETE FROM {name} WHERE number IN
    (SELECT number FROM {name} WHERE number <= (SELECT max(number) FROM {name}) - ? ORDER BY number LIMIT ?)
"""  # noqa: S608 - built from constants

    def values(self, result: Result, now_unix_s: float) -> tuple[Any, ...]:
        """What `upsert` takes."""
        return (*self.row(result), now_unix_s, msgspec.json.encode(result).decode())


def _drift(drift: Drift) -> Row:
    return Row(drift_id(drift), drift_series(drift), drift.end_unix_s, drift.sample_size, drift.drifted)


def _quality(quality: Quality) -> Row:
    measured = any(getattr(quality, name) is not None for name in HEADLINES)
    return Row(quality_id(quality), quality_series(quality), quality.end_unix_s, quality.revision, measured)


def _loop(loop: Loop) -> Row:
    return Row(loop.id, loop.id, loop.time_unix_s, loop.transition, loop.state == "closed")


_OF_A_MODEL: Final = {"service": "TEXT", "model": "TEXT", "model_version": "TEXT"}
TABLES: Final[dict[type[Result], Table]] = {
    Drift: Table(
        "drift",
        Drift,
        _drift,
        _OF_A_MODEL
        | {"target": "TEXT", "detector": "TEXT", "statistic": "REAL", "threshold": "REAL", "drifted": "INTEGER"},
    ),
    Quality: Table(
        "quality",
        Quality,
        _quality,
        _OF_A_MODEL
        | {"slice": "TEXT", "by": "TEXT", "labelled": "INTEGER", "coverage": "REAL", "accuracy": "REAL"}
        | {"estimated_accuracy": "REAL"},
    ),
    Loop: Table(
        "loops",
        Loop,
        _loop,
        {"service": "TEXT", "model": "TEXT", "action": "TEXT", "state": "TEXT", "outcome": "TEXT"}
        | {"old_version": "TEXT", "new_version": "TEXT"},
    ),
}
"""By what they hold."""
