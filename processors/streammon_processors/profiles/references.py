"""Which reference holds for which window, and how references come to be; everything decided by the order of the log.

* The events of the first windows of a version for which nobody has published a reference are its reference, as soon as
  they are enough. While a window is open, its events are read again after a restart; of closed ones they are held here.
* What somebody publishes comes as a tick record in the partition of its model: so it has a place among the events.
* Either takes over from the first window that starts later. It is published once the window in which it came has
  closed; what is published never changes.

What is held is bounded, because it is in every snapshot: see `HELD_VALUES` and `HELD_BYTES`.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import floor, inf
from typing import Any

import msgspec
from msgspec import Struct

from streammon.broker import Outgoing, Record
from streammon.deadletter import dead_letter_of
from streammon.errors import Reason, Rejected
from streammon.models import Models
from streammon.profiles import REFERENCES, Reference, reference_key
from streammon.reference_ticks import Parts, PartsMemory
from streammon.wire import SCHEMA_HEADER
from streammon_processors.aggregate import sortable
from streammon_processors.chunk import Series
from streammon_processors.profiles.sample import Sample, SampleMemory
from streammon_processors.profiles.targets import ALWAYS, MAX_TARGETS

HELD_VALUES = 48_000
"""Numbers of all versions whose first events are not yet enough, eight bytes each; beyond, the largest has enough."""
OF_A_SAMPLE = 200
"""What a collection counts for beside what it holds."""
HELD_BYTES = 1_000_000
"""Of all references that hold, as JSON; beyond, the oldest hold no longer, automatic ones before others."""
FEWEST = 20
"""Of fewer events no reference is made; rather is the collection begun anew."""


class Holding(Struct, array_like=True):
    """A reference, and the windows for which it holds."""

    reference: Reference
    from_window: int
    until_window: int | None = None
    published: bool = False

    def covers(self, version: str | None) -> bool:
        """Whether it is of this version; somebody's own without a version is of all."""
        mine = self.reference
        return mine.model_version == version or (mine.model_version is None and not mine.automatic)

    def holds(self, window: int) -> bool:
        return self.from_window <= window and (self.until_window is None or window < self.until_window)

    @property
    def never_holds(self) -> bool:
        return self.until_window is not None and self.until_window <= self.from_window

    @property
    def rank(self) -> tuple[bool, bool]:
        """Somebody's own goes before an automatic one, and that of a version before that of all."""
        return not self.reference.automatic, self.reference.model_version is not None


class ReferencesMemory(Struct, array_like=True):
    """All of it, as of a published place."""

    holdings: list[Holding] = []
    samples: list[tuple[tuple[Any, ...], SampleMemory]] = []
    parts: PartsMemory | None = None


class References:
    """Of one partition."""

    def __init__(self, models: Models, partition: int, size_s: float) -> None:
        self._models, self._partition, self._size_s = models, partition, size_s
        self._holdings: list[Holding] = []  # the oldest first
        self._samples: dict[Series, Sample] = {}
        self._parts = Parts()
        self._letters: list[Outgoing] = []

    def restore(self, memory: ReferencesMemory) -> None:
        self._holdings = memory.holdings
        self._parts = Parts(memory.parts)
        self._samples = {
            series: Sample(self._models.policy(str(series[0]), str(series[1])).drift, sample)
            for series, sample in memory.samples
        }

    def memory(self) -> ReferencesMemory:
        return ReferencesMemory(
            [msgspec.structs.replace(each) for each in self._holdings],
            [(series, sample.memory()) for series, sample in self._samples.items()],
            self._parts.memory,
        )

    # --- which holds ----------------------------------------------------------------------------------------------

    def of(self, series: Series, window: int) -> Reference | None:
        """The one in whose bins a version is counted in a window; of several, the one that came last."""
        service, model, version = series
        mine = [each for each in self._of_model(service, model) if each.covers(version) and each.holds(window)]
        return max(enumerate(mine), key=lambda each: (each[1].rank, each[0]))[1].reference if mine else None

    def _of_model(self, service: str, model: str) -> Iterator[Holding]:
        for each in self._holdings:
            if (each.reference.service, each.reference.model) == (service, model):
                yield each

    def _is_held(self, series: Series) -> bool:
        """Whether a version has a reference, or will have from the next window on."""
        service, model, version = series
        return any(each.covers(version) and each.until_window is None for each in self._of_model(service, model))

    def _take_over(self, reference: Reference, newest: float) -> None:
        """It holds for the windows that start after the newest event."""
        reference.since_unix_s = newest if newest > -inf else 0.0
        self._holdings.append(Holding(reference, self._next_window(newest)))
        for series in [each for each in self._samples if self._is_held(each)]:
            del self._samples[series]

    def _next_window(self, newest: float) -> int:
        """The first that starts after the newest event; any, while there is none."""
        return floor(newest / self._size_s) + 1 if newest > -inf else 0

    # --- the first events of a version --------------------------------------------------------------------------------

    def collect(self, series: Series, sample: Sample) -> None:
        """What a window that closes has of a version that has no reference."""
        if not self._is_held(series):
            self._samples.setdefault(series, Sample(sample.policy)).append(sample)

    def _make(self, newest: float) -> None:
        """Of those with enough events references; and where too much is held, of the largest others."""
        for series in sorted(self._samples, key=sortable):
            if not self._samples[series].lacking:
                self._finish(series, newest)
        while sum(OF_A_SAMPLE + sample.size for sample in self._samples.values()) > HELD_VALUES:
            self._relieve(newest)

    def _relieve(self, newest: float) -> None:
        """Too much is held: the largest collection ends with what it has."""
        largest = max(self._samples, key=lambda series: (self._samples[series].size, sortable(series)))
        if self._samples[largest].count >= FEWEST:
            self._finish(largest, newest)
        else:
            del self._samples[largest]

    def _finish(self, series: Series, newest: float) -> None:
        sample = self._samples.pop(series)
        reference = sample.reference(
            *series, origin=f"first {sample.count} events", made_unix_s=newest, since_unix_s=newest, automatic=True
        )
        self._take_over(reference, newest)

    # --- what somebody publishes --------------------------------------------------------------------------------------

    def tell(self, tick: Record, newest: float) -> None:
        """A tick may bring a reference, or a part of one."""
        try:
            reference = self._parts.take(tick)
            if reference is not None:
                _check(reference)
        except Rejected as error:
            self._letters.append(dead_letter_of("inference", tick, error, to_partition=self._partition))
            return
        if reference is not None and not self._is_newest(reference):
            self._take_over(reference, newest)

    def _is_newest(self, reference: Reference) -> bool:
        """Published once more: nothing changes."""
        same = [
            each.reference.id
            for each in self._of_model(reference.service, reference.model)
            if each.reference.model_version == reference.model_version
            and not each.reference.automatic
            and each.until_window is None
        ]
        return same[-1:] == [reference.id]

    # --- publishing ---------------------------------------------------------------------------------------------------

    def is_due(self, closed: float) -> bool:
        return bool(self._letters) or any(_is_due(each, closed) for each in self._holdings)

    @property
    def is_waiting(self) -> bool:
        return bool(self._letters) or not all(each.published for each in self._holdings)

    def publish(self, closed: float, oldest: float, newest: float) -> Iterator[Outgoing]:
        """References that hold from now on; new ones are made, and those that hold for no window are forgotten."""
        self._make(newest)
        letters, self._letters = self._letters, []
        yield from letters
        for each in self._holdings:
            if _is_due(each, closed):
                each.published = True
                yield self._record(each.reference)
        self._holdings = [each for each in self._holdings if not self._is_over(each, closed, oldest)]
        self._keep_within(HELD_BYTES, self._next_window(newest))

    def _record(self, reference: Reference) -> Outgoing:
        value = msgspec.json.encode(reference)
        return Outgoing(REFERENCES, reference_key(reference), value, (SCHEMA_HEADER,), self._partition)

    def _is_over(self, holding: Holding, closed: float, oldest: float) -> bool:
        if holding.until_window is not None:
            return holding.published and holding.until_window <= closed
        mine = holding.reference
        others = list(self._of_model(mine.service, mine.model))
        later = others[[each is holding for each in others].index(True) + 1 :]
        same = (mine.model_version, mine.automatic)
        return any(
            (each.reference.model_version, each.reference.automatic) == same and each.from_window <= oldest
            for each in later
        )

    def _keep_within(self, most: int, next_window: int) -> None:
        """The windows that have begun still have theirs."""
        left = [each for each in self._holdings if each.until_window is None]
        sizes = {id(each): len(msgspec.json.encode(each.reference)) for each in left}
        total = sum(sizes.values())
        for each in sorted(left, key=lambda each: not each.reference.automatic):
            if total > most:
                total -= sizes[id(each)]
                each.until_window = max(next_window, each.from_window)
        self._holdings = [each for each in self._holdings if each.published or not each.never_holds]


def _check(reference: Reference) -> None:
    features = len(reference.targets.keys() - set(ALWAYS))
    if features > MAX_TARGETS:
        raise Rejected(Reason.TOO_LARGE, f"a reference of {features} features, at most {MAX_TARGETS} are looked at")


def _is_due(holding: Holding, closed: float) -> bool:
    return not holding.published and (holding.from_window <= closed or not holding.from_window)
