"""A seeded log with everything that is wrong with real ones, and exactly what has to become of it.

The log: partitions side by side, a tenth of the events out of order, one in a hundred late beyond the lateness,
batches sent again, swapped, or never sent, agents that restart, refused values, broken records, all densities.

The oracle shares no code with the product, not even the reading of records: `expected` adds up the generated events
themselves. It asks the log only how often each record is in it, because a sender that was not answered sends again.
How a window's events are divided over its parts depends on ticks, and so on time; their sum does not.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

from streammon import wire
from streammon.broker import Outgoing, Record, TopicPartition
from streammon.events import EventType
from streammon.tick import TICK
from streammon.wire import Density, Identity

SIZE_S = 2
"""The length of the windows."""
TYPES = {"inference": EventType.INFERENCE, "resources": EventType.RESOURCE}
T0 = 1_700_000_000
STEP_S = 0.02
"""Event time between two events of a partition."""
BROKEN = b'{"type":"inference",'

Event = dict[str, Any]
Series = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Sent:
    """A record as generated, and what is in it. ``refused`` are the rows of events whose values are."""

    where: TopicPartition
    value: bytes
    events: tuple[Event, ...] = ()
    refused: frozenset[int] = frozenset()
    identity: Identity | None = None
    dropped: int = 0

    @property
    def outgoing(self) -> Outgoing:
        return Outgoing(self.where.topic, b"key", self.value, partition=self.where.partition)


class WindowKey(NamedTuple):
    """One series and window, whatever its parts."""

    where: TopicPartition
    series: Series
    start_unix_s: float


class BookKey(NamedTuple):
    """One series of one partition."""

    where: TopicPartition
    series: Series


@dataclass
class Sums:
    """What is published in total, part added to part.

    Durations are multiples of 2^-10 s, so that their sums are exact in any order.
    """

    windows: dict[WindowKey, list[float]] = field(default_factory=lambda: defaultdict(lambda: [0, 0, 0.0]))
    """Events, errors, sum of durations (of a gauge, for resources)."""
    books: dict[BookKey, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    missing: Counter[TopicPartition] = field(default_factory=Counter)

    @property
    def total(self) -> Counter[str]:
        """All of it in a few numbers, to see how far it has come."""
        totals = Counter(missing=self.missing.total(), count=int(sum(each[0] for each in self.windows.values())))
        for book in self.books.values():
            totals.update(book)
        return totals


def expected(sent: Iterable[Sent], log: Iterable[Record], topic: str) -> Sums:
    """What has to be published of one topic's log."""
    times = Counter((record.partition, record.value) for record in log if record.value != TICK)
    sums = Sums()
    seqs: dict[tuple[TopicPartition, str, str], set[int]] = defaultdict(set)
    for each in {(each.where, each.value): each for each in sent if each.where.topic == topic}.values():
        found = times.pop((each.where.partition, each.value), 0)
        assert found, f"an acknowledged record is not in the log: {each}"
        _add(sums, each, found)
        if each.identity is not None:
            seqs[each.where, each.identity.agent, each.identity.boot].add(each.identity.seq)
    assert not times, "somebody else wrote into the log"
    for (where, *_), known in seqs.items():
        sums.missing[where] += max(known) + 1 - len(known)
    return sums


def _add(sums: Sums, sent: Sent, found: int) -> None:
    """A record with an identity counts once, however often it is found."""
    counted, repeated = (1, found - 1) if sent.identity is not None else (found, 0)
    if not sent.events:
        sums.books[BookKey(sent.where, ())]["rejected"] += found
    for row, event in enumerate(sent.events):
        series = series_of(event)
        book = sums.books[BookKey(sent.where, series)]
        if repeated:
            book["duplicate"] += repeated
        if row in sent.refused:
            book["rejected"] += counted
            continue
        window = sums.windows[WindowKey(sent.where, series, event["time_unix_s"] // SIZE_S * SIZE_S)]
        window[0] += counted
        window[1] += counted * (event.get("status") == "error")
        window[2] += counted * _measured(event)
    if sent.dropped:
        sums.books[BookKey(sent.where, series_of(sent.events[0]))]["dropped"] += sent.dropped


def _measured(event: Event) -> float:
    return float(event["duration_s"] if "duration_s" in event else event["metrics"]["used_bytes"])


def series_of(event: Event) -> Series:
    names = ("service", "model", "endpoint") if "model" in event else ("host", "entity", "id")
    return tuple(sorted((name, event[name]) for name in names))


def published(windows: Iterable[Mapping[str, Any]]) -> Sums:
    """The same sums of what was published: decoded window records of one source."""
    sums = Sums()
    for window in windows:
        where = TopicPartition(TOPIC_OF[window["source"]], window["partition"])
        series = tuple(sorted(window["series"].items()))
        if window["count"]:
            sum_of = sums.windows[WindowKey(where, series, window["start_unix_s"])]
            sum_of[0] += window["count"]
            sum_of[1] += window.get("error_count") or 0
            sum_of[2] += _sum(window)
        completeness = window["completeness"]
        assert completeness["late"] == (window["count"] if window["part"] == "late" else 0), window
        sums.missing[where] += completeness["missing"]
        for name in ("duplicate", "rejected", "dropped"):
            if completeness[name]:
                sums.books[BookKey(where, series)][name] += completeness[name]
    return sums


TOPIC_OF = {"inference": "inference", "resource": "resources"}


def _sum(window: Mapping[str, Any]) -> float:
    """Gauges are published as means; of whole numbers, so rounding gives the sum back."""
    if window["source"] == "inference":
        return float(window["duration_s"]["sum"])
    return float(round(window["gauges"]["used_bytes"]["mean"] * window["count"]))


# --- making the log -----------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)  # most scenarios of a run share a seed
def log_of(seed: int, events: int, partitions: int) -> Sequence[Sent]:
    """About ``events`` events, one in eight of them of the topic ``resources``, partitions taking turns."""
    sources = [
        _Source(random.Random(f"{seed} {topic} {number}"), TopicPartition(topic, number))
        for topic in TYPES
        for number in range(partitions)
    ]
    rng = random.Random(seed)
    weights = [7 if source.where.topic == "inference" else 1 for source in sources]
    log: list[Sent] = []
    left = events
    while left > 0:
        [source] = rng.choices(sources, weights)
        for sent in source.step():
            log.append(sent)
            left -= len(sent.events)
    return log


class _Source:
    """The senders of one partition."""

    def __init__(self, rng: random.Random, where: TopicPartition) -> None:
        self.where = where
        self._rng = rng
        self._made = 0
        self._boots = Counter[str]()
        self._seqs = Counter[str]()
        self._recent: list[Sent] = []

    def step(self) -> Iterator[Sent]:
        """The next records: mostly one new batch."""
        chance = self._rng.random()
        if chance < 0.01:
            yield Sent(self.where, BROKEN)
        elif chance < 0.05:
            yield self._single()
        elif chance < 0.06:
            self._batch()  # never sent
        elif chance < 0.08:
            yield from reversed((self._batch(), self._batch()))
        else:
            yield self._batch()
        if self._recent and self._rng.random() < 0.05:
            yield self._rng.choice(self._recent)

    def _single(self) -> Sent:
        """One object, which nobody numbered."""
        event, good = self._event()
        [value] = wire.encode(TYPES[self.where.topic], [event], Density.OBJECT)
        return Sent(self.where, value, (event,), frozenset() if good else frozenset({0}))

    def _batch(self) -> Sent:
        density = self._rng.choices((Density.PACKED, Density.COLUMNS, Density.ARRAY), (80, 15, 5))[0]
        made = [self._event() for _ in range(self._rng.randint(20, 50))]
        events = tuple(event for event, _ in made)
        dropped = 3 if density is not Density.ARRAY and self._rng.random() < 0.02 else 0
        identity = self._identity()
        [value] = wire.encode(TYPES[self.where.topic], events, density, identity, dropped)
        refused = frozenset(row for row, (_, good) in enumerate(made) if not good)
        sent = Sent(self.where, value, events, refused, identity, dropped)
        self._recent = [*self._recent[-9:], sent]
        return sent

    def _identity(self) -> Identity:
        agent = self._rng.choice(("a", "b"))
        if self._rng.random() < 0.02:
            self._boots[agent] += 1
        boot = str(self._boots[agent])
        self._seqs[agent + boot] += 1
        return Identity(agent, boot, self._seqs[agent + boot] - 1)

    def _event(self) -> tuple[Event, bool]:
        rng = self._rng
        self._made += 1
        ago = rng.choices((0.0, rng.uniform(0, 0.9), rng.uniform(5, 60)), (89, 10, 1))[0]
        event: Event = {"time_unix_s": T0 + self._made * STEP_S - ago}
        good = rng.random() >= 0.002
        if self.where.topic == "resources":
            event |= {"host": f"host-{self.where.partition}", "entity": "disk", "id": rng.choice("ab")}
            event["metrics"] = {"used_bytes": rng.randrange(2**30) if good else float("nan")}
        else:
            event |= {"service": "shop", "model": f"model-{self.where.partition}", "endpoint": rng.choice(("/a", "/b"))}
            event |= {"duration_s": rng.randrange(1, 2**12) / 2**10 if good else -1.0}
            event["status"] = "error" if rng.random() < 0.02 else "ok"
        return event, good
