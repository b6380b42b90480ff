"""The compliance report: whether objectives were met in a range of time, worked out from the windows in the log.

Exactly what is counted, for an objective, a series and the whole minutes of the range:

* The requests of a minute are those of its rollup of 1 min, with its supplements; where there is none (yet), those of
  the base windows in it. Never both. A supplement of the last 10 s may not be in its rollup yet.
* ``achieved``: good requests over all. ``budget_used``: bad requests over those that are allowed *of all in the
  range*, so that beyond 1 the objective is missed.
* A *minute in breach* has a smaller share of good requests than the objective. A *breach* is a run of such minutes;
  one without requests is none, and ends it.
* ``worst_hour``: of the clock, with the smallest share of good requests; of equals, the first.

Latency is as near as sketches are: see `requests_of`. What is kept of an objective and series is 17 bytes a minute,
0.7 MB for 30 days.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import ceil, floor
from typing import Final

import numpy as np
from msgspec import Struct

from streammon.broker import Record
from streammon.errors import ConfigError, Rejected
from streammon.tick import TICK
from streammon.topics import ROLLUP_HEADER
from streammon.wire import Floats, read_message
from streammon_processors.chunk import Ints
from streammon_processors.rules import ServiceLevel
from streammon_processors.rules.lanes import Seen, window_decoder
from streammon_processors.shapes import ROUNDING_S, tumbling
from streammon_processors.slos.requests import Requests, is_about, requests_of
from streammon_processors.windows import series_key

MINUTE_S: Final = 60.0
MAX_RANGE_S: Final = 92 * 86_400.0
_ROLLUP: Final = tumbling(MINUTE_S).name.encode()


class Hour(Struct, frozen=True):
    """An hour of the clock, and how it went."""

    start_unix_s: float
    good: int
    total: int
    achieved: float


class Compliance(Struct, frozen=True, kw_only=True):
    """One objective and series in the range: see the module."""

    slo: str
    series: dict[str, str]
    objective: float
    indicator: str
    from_unix_s: float
    to_unix_s: float
    good: int
    total: int
    achieved: float
    met: bool
    budget_used: float
    budget_left: float
    breaches: int
    breach_minutes: int
    worst_hour: Hour


class Report:
    """Takes in records of `windows` in any order of partitions, and then says how it was."""

    def __init__(self, levels: Sequence[ServiceLevel], from_unix_s: float, to_unix_s: float) -> None:
        """Raises ConfigError: no whole minute is in the range, or too many."""
        self._levels = levels
        self._first = ceil(from_unix_s / MINUTE_S - ROUNDING_S)
        self._minutes = floor(to_unix_s / MINUTE_S + ROUNDING_S) - self._first
        if not 1 <= self._minutes <= MAX_RANGE_S / MINUTE_S:
            raise ConfigError("--from and --to: the report is about 1 minute to 92 days")
        self._decoder = window_decoder(rule for level in levels for rule in level.rules)
        self._found: dict[tuple[str, bytes], _Minutes] = {}

    def take(self, record: Record) -> None:
        """Count a window; what is none is in the dead letters already."""
        rollup = next((value for name, value in record.headers if name == ROLLUP_HEADER), None)
        if record.value == TICK or rollup not in (None, _ROLLUP):
            return
        try:
            window = read_message(self._decoder.decode, record.value or b"")
        except Rejected:
            return
        minute = floor((window.start_unix_s + ROUNDING_S) / MINUTE_S) - self._first
        if 0 <= minute < self._minutes:
            self._count(window, minute)

    def _count(self, window: Seen, minute: int) -> None:
        for level in self._levels:
            requests = requests_of(window, level) if is_about(level, window) else None
            if requests:
                key = (level.name, series_key(window.series))
                if key not in self._found:
                    self._found[key] = _Minutes(level, window.series, self._first, self._minutes)
                self._found[key].add(minute, requests, is_rollup=window.of_s is not None)

    def rows(self) -> Iterator[Compliance]:
        """By objective, in the order of the files, and then by series; those without requests are left out."""
        order = {level.name: place for place, level in enumerate(self._levels)}
        for _, minutes in sorted(self._found.items(), key=lambda each: (order[each[0][0]], each[0][1])):
            yield from minutes.compliance()


class _Minutes:
    """The requests of one series in each minute of the range."""

    def __init__(self, level: ServiceLevel, series: dict[str, str], first: int, count: int) -> None:
        self._level, self._series, self._first = level, series, first
        self._counts = np.zeros((2, count), dtype=np.int64)
        self._has_rollup = np.zeros(count, dtype=bool)
        self._of_base: dict[int, Requests] = {}

    def add(self, minute: int, requests: Requests, *, is_rollup: bool) -> None:
        if is_rollup:
            self._has_rollup[minute] = True
            self._of_base.pop(minute, None)
            self._counts[:, minute] += requests
        elif not self._has_rollup[minute]:
            self._of_base[minute] = self._of_base.get(minute, Requests()) + requests

    def compliance(self) -> Iterator[Compliance]:
        for minute, requests in self._of_base.items():
            self._counts[:, minute] = requests
        seen = Requests(*self._counts.sum(axis=1).tolist())
        if not seen.total:
            return
        breached = self._shares(self._counts) < self._level.objective
        yield Compliance(
            slo=self._level.name,
            series=self._series,
            objective=self._level.objective,
            indicator=self._level.good,
            from_unix_s=self._first * MINUTE_S,
            to_unix_s=(self._first + self._counts.shape[1]) * MINUTE_S,
            good=seen.good,
            total=seen.total,
            achieved=seen.good / seen.total,
            met=seen.good / seen.total >= self._level.objective,
            budget_used=1 - seen.budget_left(self._level),
            budget_left=seen.budget_left(self._level),
            breaches=int(np.sum(np.diff(breached, prepend=False) & breached)),
            breach_minutes=int(breached.sum()),
            worst_hour=self._worst_hour(),
        )

    def _worst_hour(self) -> Hour:
        before, count = self._first % 60, self._counts.shape[1]
        padded = np.pad(self._counts, ((0, 0), (before, -(before + count) % 60)))
        hours = padded.reshape(2, -1, 60).sum(axis=2)
        worst = int(np.nanargmin(self._shares(hours)))
        bad, total = hours[:, worst].tolist()
        start = (self._first - before + 60 * worst) * MINUTE_S
        return Hour(start, total - bad, total, (total - bad) / total)

    @staticmethod
    def _shares(counts: Ints) -> Floats:
        """The share of good requests in each column; NaN, which is no breach, without any."""
        bad, total = counts
        shares: Floats = np.divide(total - bad, total, out=np.full(len(total), np.nan), where=total > 0)
        return shares
