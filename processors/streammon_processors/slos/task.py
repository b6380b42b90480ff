"""The slos task: one partition of `windows`, and what is left of the error budgets of the series in it.

Every window of 5 minutes of a series that an objective is about, supplements too, gives a record on `slos`: what there
was in the objective's window until the end of the newest one, how much of the budget is left, and how fast it goes.

Promises
- Counts are sums of what the windows hold: exact for errors; for latencies as near as the sketch, see `requests_of`.
- The same windows give the same records, byte for byte, wherever the log is cut and a snapshot restored.
- State is bounded: two rings a series, 6 h in slots of 5 min and the objective's window in at most `SLOTS` slots of
  whole hours; at most `MAX_SERIES` of them. What lies before the oldest slot is forgotten a slot at a time, so the time
  counted is the window, or up to one slot less: each record says from when to when.

A new objective counts from when it is there; ``streammon slo report`` looks back at the log.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping, Sequence
from enum import StrEnum
from math import ceil, floor
from typing import Final

import msgspec
import numpy as np
from msgspec import Struct
from prometheus_client import Counter

from streammon.broker import Outgoing, Record
from streammon.deadletter import dead_letter_of
from streammon.errors import Rejected
from streammon.results import Slo
from streammon.tick import TICK
from streammon.topics import ROLLUP_HEADER
from streammon.wire import SCHEMA_HEADER, read_message
from streammon_processors.rules import ServiceLevel
from streammon_processors.rules.lanes import Seen, window_decoder
from streammon_processors.shapes import ROUNDING_S, tumbling
from streammon_processors.slos.requests import Requests, is_about, requests_of
from streammon_processors.windows import series_key

STEP_S: Final = 300.0
"""The windows that are read: long enough to be few, short enough to tell the last hour."""
RECENT: Final = 72
"""So many of them are kept one by one."""
SLOTS: Final = 720
"""Hours in 30 days; a slot of a longer window is some hours."""
HOUR: Final = 12  # steps
MAX_SERIES: Final = 128
"""Of all objectives together, in one partition: their snapshot has to fit into a record, 6.3 kB each."""
MAX_SERIES_BYTES: Final = 1000
MAX_EVENTS: Final = 2**32 - 1

SKIPPED = Counter("streammon_slos_skipped", "Windows that objectives are about and did not count, by why", ["reason"])


class Skipped(StrEnum):
    """Why a window was not counted. The values are labels: add, never rename."""

    TOO_MANY_SERIES = "too_many_series"
    LABELS_TOO_LONG = "labels_too_long"
    TOO_OLD = "too_old"
    TOO_MANY_EVENTS = "too_many_events"


class Ring:
    """Requests by slot of time, the newest ``slots`` of them."""

    def __init__(self, slot_s: float, slots: int) -> None:
        self.slot_s = slot_s
        self.slots = slots
        self.newest = -1
        self._counts = np.zeros((2, slots), dtype="<u4")

    def add(self, start_unix_s: float, requests: Requests) -> Skipped | None:
        """Count the requests of a window that starts there; or why not."""
        number = floor((start_unix_s + ROUNDING_S) / self.slot_s)
        if number <= self.newest - self.slots:
            return Skipped.TOO_OLD
        self._come_to(number)
        at = number % self.slots
        if int(self._counts[1, at]) + requests.total > MAX_EVENTS:
            return Skipped.TOO_MANY_EVENTS
        self._counts[:, at] += np.array(requests, dtype="<u4")
        return None

    def _come_to(self, number: int) -> None:
        """Empty the slots from the newest one on to this one."""
        if number > self.newest:
            emptied = np.arange(max(self.newest, number - self.slots) + 1, number + 1) % self.slots
            self._counts[:, emptied] = 0
            self.newest = number

    def newest_sum(self, slots: int) -> Requests:
        places = np.arange(self.newest - slots + 1, self.newest + 1) % self.slots
        return Requests(*self._counts[:, places].sum(axis=1, dtype=np.int64).tolist())

    @property
    def start_unix_s(self) -> float:
        """When the oldest slot starts."""
        return (self.newest - self.slots + 1) * self.slot_s

    def dump(self) -> tuple[int, bytes]:
        return self.newest, self._counts.tobytes()

    def load(self, dumped: tuple[int, bytes]) -> None:
        self.newest = dumped[0]
        self._counts = np.frombuffer(dumped[1], "<u4").reshape(2, self.slots).copy()


class Budget:
    """The requests of one series, for one objective."""

    def __init__(self, level: ServiceLevel, series: dict[str, str], step_s: float) -> None:
        self.level, self.series = level, series
        hour_s = HOUR * step_s
        slot_s = hour_s * ceil(level.window_s / (SLOTS * hour_s))
        self.end_unix_s = 0.0
        self._recent = Ring(step_s, RECENT)
        self._all = Ring(slot_s, ceil(level.window_s / slot_s))
        self._spans = {
            "1h": (self._recent, HOUR),
            "6h": (self._recent, 6 * HOUR),
            "3d": (self._all, max(1, round(72 * hour_s / slot_s))),
        }

    def add(self, window: Seen, requests: Requests) -> Skipped | None:
        skipped = self._all.add(window.start_unix_s, requests)
        if skipped is None:
            self._recent.add(window.start_unix_s, requests)  # late ones may be too old for it
            self.end_unix_s = max(self.end_unix_s, window.end_unix_s)
        return skipped

    def result(self, partition: int) -> Slo:
        level, seen = self.level, self._all.newest_sum(self._all.slots)
        rates = {name: ring.newest_sum(slots).burn_rate(level) for name, (ring, slots) in self._spans.items()}
        return Slo(
            slo=level.name,
            series=self.series,
            objective=level.objective,
            indicator=level.good,
            window_s=level.window_s,
            partition=partition,
            start_unix_s=self._all.start_unix_s,
            end_unix_s=self.end_unix_s,
            good=seen.good,
            total=seen.total,
            budget_left=seen.budget_left(level),
            burn_rates={name: rate for name, rate in rates.items() if rate is not None},
        )

    def dump(self) -> _Kept:
        return _Kept(self.level.counted, self.series, self.end_unix_s, self._recent.dump(), self._all.dump())

    def load(self, kept: _Kept) -> None:
        self.end_unix_s = kept.end_unix_s
        self._recent.load(kept.recent)
        self._all.load(kept.all)


class _Kept(Struct, array_like=True):
    counted: str
    series: dict[str, str]
    end_unix_s: float
    recent: tuple[int, bytes]
    all: tuple[int, bytes]


class _Snapshot(Struct, array_like=True):
    next_offset: int
    step_s: float
    budgets: list[_Kept]


class SloTask:
    """Keeps the error budgets of one partition of `windows`, and writes them to the same partition of `slos`."""

    def __init__(
        self,
        levels: Iterable[ServiceLevel],
        partition: int,
        *,
        base_s: float = 2.0,
        step_s: float = STEP_S,
        max_series: int = MAX_SERIES,
    ) -> None:
        self._levels = {level.counted: level for level in levels}
        self._decoder = window_decoder(rule for level in self._levels.values() for rule in level.rules)
        self._partition = partition
        self._base = tumbling(base_s).name
        self._step_s = step_s
        self._max_series = max_series
        self._next = 0
        self._budgets: dict[tuple[str, bytes], Budget] = {}

    waiting: Sequence[str] = ()

    def process(self, topic: str, records: Sequence[Record]) -> list[Outgoing]:
        """The budgets that these windows change; what is no window becomes a dead letter."""
        return [outgoing for record in records for outgoing in self._take_in(topic, record)]

    def _take_in(self, topic: str, record: Record) -> Sequence[Outgoing]:
        self._next = record.offset + 1
        if not self._levels or not self._is_step(record):
            return ()
        try:
            window = read_message(self._decoder.decode, record.value or b"")
        except Rejected as error:
            return [dead_letter_of(topic, record, error, to_partition=self._partition)]
        if window.kind != "tumbling" or window.end_unix_s <= window.start_unix_s:
            return ()
        told = (self._count(level, window) for level in self._levels.values() if is_about(level, window))
        return [self._outgoing(budget.result(self._partition)) for budget in told if budget]

    def _is_step(self, record: Record) -> bool:
        """What a record says to be, without decoding it: base windows say nothing, and a tick is nothing."""
        if record.value == TICK:
            return False
        names = (value.decode(errors="replace") for name, value in record.headers if name == ROLLUP_HEADER)
        return next(names, self._base) == tumbling(self._step_s).name

    def _count(self, level: ServiceLevel, window: Seen) -> Budget | None:
        """The budget that changed; None if it did not."""
        requests = requests_of(window, level)
        if requests is None:
            return None
        budget = self._budget(level, window.series)
        skipped = budget if isinstance(budget, Skipped) else budget.add(window, requests)
        if skipped is not None:
            SKIPPED.labels(skipped).inc()
            return None
        assert isinstance(budget, Budget)
        return budget

    def _budget(self, level: ServiceLevel, series: dict[str, str]) -> Budget | Skipped:
        key = (level.counted, series_key(series))
        if key not in self._budgets:
            if len(key[1]) > MAX_SERIES_BYTES:
                return Skipped.LABELS_TOO_LONG
            if len(self._budgets) >= self._max_series:
                return Skipped.TOO_MANY_SERIES
            self._budgets[key] = Budget(level, series, self._step_s)
        return self._budgets[key]

    def _outgoing(self, slo: Slo) -> Outgoing:
        key = f"{slo.slo} ".encode() + series_key(slo.series)
        return Outgoing("slos", key, msgspec.json.encode(slo), (SCHEMA_HEADER,), self._partition)

    # --- what is remembered -----------------------------------------------------------------------------------------

    def snapshot(self) -> bytes:
        budgets = [budget.dump() for _, budget in sorted(self._budgets.items())]
        return zlib.compress(msgspec.msgpack.encode(_Snapshot(self._next, self._step_s, budgets)), 1)

    def restore(self, snapshot: bytes) -> None:
        """Go on from a `snapshot`; objectives that are gone, or count other requests now, are forgotten."""
        state = msgspec.msgpack.decode(zlib.decompress(snapshot), type=_Snapshot)
        self._next = state.next_offset
        self._budgets = {}
        for kept in state.budgets:
            level = self._levels.get(kept.counted)
            if level and state.step_s == self._step_s:
                budget = Budget(level, kept.series, self._step_s)
                budget.load(kept)
                self._budgets[kept.counted, series_key(kept.series)] = budget

    def offsets(self) -> Mapping[str, int]:
        return {"windows": self._next} if self._next else {}

    def watermarks(self) -> Mapping[str, float]:
        """It follows the time of the windows, and keeps none of its own."""
        return {}
