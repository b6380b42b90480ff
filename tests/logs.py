"""Logs to feed to pure tasks: random ones with every kind of trouble in them, by topic."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache
from typing import Any

import msgspec
import numpy as np

from streammon.broker import Outgoing
from streammon.errors import Reason
from streammon.events import EventType
from streammon.sketch import Sketch
from streammon.tick import TICK
from streammon.wire import Density, Identity, encode
from streammon_processors.contract import Stored
from streammon_processors.rules import Rule
from tests.oracle import Entry, Event, Refused

T0 = 1_700_000_000.0
TYPES = {"inference": EventType.INFERENCE, "resources": EventType.RESOURCE}
NAN, INF = float("nan"), float("inf")

# --- rules that fire and resolve on them --------------------------------------------------------------------------

SLOW = Rule(
    name="slow",
    source="inference",
    field="duration_s.p99",
    above=0.3,
    clear=0.2,
    for_s=2.0,
    severity="critical",
    summary="{model} is slow: {value}",
)
HOT = Rule(
    name="hot",
    source="resource",
    field="gauges.temperature.max",
    above=1.0,
    severity="warning",
    summary="{id} is hot",
)


# --- records ------------------------------------------------------------------------------------------------------


def stored(log: Sequence[Entry]) -> list[Stored]:
    return [Stored(entry.value, offset, entry.timestamp) for offset, entry in enumerate(log)]


def at(after_s: float, value: bytes, refused: Refused | None = None) -> Entry:
    """A record that the broker got ``after_s`` seconds after `T0`."""
    return Entry(round((T0 + after_s) * 1000), value, refused)


def tick_at(after_s: float) -> Entry:
    return at(after_s, TICK)


def inference(after_s: float, duration_s: float = 0.1, **fields: Any) -> Event:
    """An inference event ``after_s`` seconds after `T0`."""
    event = {"time_unix_s": T0 + after_s, "service": "shop", "model": "ranker", "duration_s": duration_s}
    return {**event, "status": "ok", **fields}


def resource(after_s: float, metrics: dict[str, float], **fields: Any) -> Event:
    entity = {"host": "h1", "entity": "cpu", "id": "0"}
    return {"time_unix_s": T0 + after_s, **entity, "metrics": metrics, **fields}


def packed(*events: Event, topic: str = "inference", density: Density = Density.PACKED, **how: Any) -> bytes:
    """One record value."""
    (value,) = encode(TYPES[topic], events, density, **how)
    return value


def identity(seq: int, agent: str = "a", boot: str = "b") -> Identity:
    return Identity(agent, boot, seq)


# --- broken records -------------------------------------------------------------------------------------------

_HEAD = b'{"schema":1,"type":"inference","count":3,"constant":{"service":"s","model":"m","status":"ok"},"columns":'
BROKEN: list[tuple[bytes | None, Refused]] = [
    (None, Refused(Reason.INVALID_JSON)),
    (b"", Refused(Reason.INVALID_JSON)),
    (b'{"type":"inference",', Refused(Reason.INVALID_JSON)),
    (b"[" * 1000, Refused(Reason.INVALID_EVENT)),
    (b'{"x":' * 50_000, Refused(Reason.INVALID_JSON)),
    (b'{"type":"inference","service":"\\ud800"}', Refused(Reason.INVALID_UNICODE)),
    (b'{"type":"inference","count":77,"service":"s"}', Refused(Reason.INVALID_EVENT)),
    (b'[{"type":"inference"},{"type":"inference"}]', Refused(Reason.INVALID_EVENT, 2)),
    (b'[{"type":"inference","time_unix_s":NaN},1]', Refused(Reason.INVALID_EVENT, 2)),
    (b'{"type":"change"}', Refused(Reason.WRONG_TYPE)),
    (b'{"schema":2,"type":"inference"}', Refused(Reason.UNKNOWN_SCHEMA)),
    (_HEAD + b'{"time_unix_s":[1,2,3],"duration_s":[1,2]}}', Refused(Reason.UNEQUAL_LENGTHS, 3)),
    (_HEAD + b'{"time_unix_s":[1,2,3],"duration_s":[1,NaN]}}', Refused(Reason.UNEQUAL_LENGTHS, 3)),
    (_HEAD + b'{"time_unix_s":{"f8":"AAAA"},"duration_s":[1,2,3]}}', Refused(Reason.UNEQUAL_LENGTHS, 3)),
    (
        _HEAD + b'{"time_unix_s":[1,2,3],"duration_s":[1,2,3],"endpoint":{"dictionary":["/"],"index":{"u1":"AAAB"}}}}',
        Refused(Reason.BAD_INDEX, 3),
    ),
    (_HEAD + b'{"time_unix_s":{"f8":"!"},"duration_s":[1,2,3]}}', Refused(Reason.BAD_PACKING, 3)),
    (_HEAD.replace(b":3,", b":2000000000,") + b"{}}", Refused(Reason.TOO_LARGE, 100_000)),
]
_BROKEN = {
    "inference": BROKEN,
    "resources": [each for each in BROKEN if b"inference" not in (each[0] or b"")],
}


# --- random logs ----------------------------------------------------------------------------------------------


class RandomLog:
    """A partition's log with out-of-order, late, future, broken, re-sent, lost and dropped events, and ticks.

    ``entries`` is the log; ``sent`` how many events the agents say they have sent, counting what they dropped.
    """

    def __init__(
        self, seed: int, batches: int = 30, topic: str = "inference", *, density: Density | None = None
    ) -> None:
        self.entries: list[Entry] = []
        self.sent = 0
        self._random = random.Random(seed)
        self._topic = topic
        self._density = density
        self._now = T0 + self._random.uniform(0, 3)
        self._seqs: dict[tuple[str, str], int] = {}
        self._sent_before: list[tuple[bytes, int]] = []
        self._withheld: list[tuple[list[bytes], int, int]] = []
        for _ in range(batches):
            self._step()

    def _step(self) -> None:
        rng = self._random
        self._now += rng.choice((0.0, 0.1, 0.5, 1.0, rng.expovariate(0.5)))
        kind = rng.random()
        if kind < 0.08:
            self.entries.append(Entry(self._broker_ms(), TICK))
        elif kind < 0.12:
            value, refused = rng.choice(_BROKEN[self._topic])
            self._append(value, 0, refused)
            self.sent += refused.events
        elif kind < 0.2 and self._sent_before:
            value, count = rng.choice(self._sent_before)
            self._append(value, count)
        elif kind < 0.24 and self._withheld:
            self._send(*self._withheld.pop())
        else:
            self._batch(lost=kind > 0.95)

    def _batch(self, *, lost: bool) -> None:
        rng = self._random
        density = self._density or rng.choice(list(Density))
        events = [self._event() for _ in range(rng.choice((0, 1, 1, 2, 5, 12)))]
        known = density is not Density.OBJECT and rng.random() < 0.7
        own = self._identity() if known else None
        dropped = rng.choice((0, 0, 0, 4)) if density in (Density.COLUMNS, Density.PACKED) else 0
        values = encode(TYPES[self._topic], events, density, own, dropped)
        if density is Density.ARRAY and own and rng.random() < 0.3:  # two batches in one record
            more = [self._event()]
            (second,) = encode(TYPES[self._topic], more, density, self._identity())
            values, events = [_joined(values[0], second)], events + more
        if lost:
            self._withheld += [(values, len(events), dropped)] if own is not None else []
            return
        self._send(values, len(events), dropped)
        if own is not None:
            self._sent_before.append((values[0], len(events)))

    def _send(self, values: list[bytes], count: int, dropped: int) -> None:
        self.sent += dropped
        for value in values:
            self._append(value, count if len(values) == 1 else 1)

    def _append(self, value: bytes | None, count: int, refused: Refused | None = None) -> None:
        self.entries.append(Entry(self._broker_ms(), value, refused))
        self.sent += count

    def _broker_ms(self) -> int:
        return round((self._now + 0.05) * 1000)

    def _identity(self) -> Identity:
        stream = self._random.choice(("a", "b")), self._random.choice(("1", "2"))
        seq = self._seqs[stream] = self._seqs.get(stream, -1) + 1
        return Identity(*stream, seq)

    def _event(self) -> Event:
        event = self._inference() if self._topic == "inference" else self._resource()
        if self._random.random() < 0.04:
            event |= self._random.choice(self._faults())
        return {name: value for name, value in event.items() if value is not None}

    def _faults(self) -> list[Event]:
        always: list[Event] = [
            {"time_unix_s": NAN},
            {"time_unix_s": self._now * 1000},
            {"time_unix_s": -1.0},
            {"metrics": {"gpu": NAN}},
            {"metrics": {"gpu": INF}},
        ]
        inference: list[Event] = [{"duration_s": NAN}, {"duration_s": -0.5}, {"ttft_s": INF}, {"ttft_s": NAN}]
        histogram = {"sum": INF, "sketch": _sketches()[0]}
        resource: list[Event] = [
            {"counters": {"requests": 1.0, "errors": -1.0}},
            {"counters": {"seconds": NAN}},
            {"histograms": {"latency": histogram}},
        ]
        return always + (inference if self._topic == "inference" else resource)

    def _time(self) -> float:
        rng = self._random
        ago = rng.choices(
            (rng.uniform(0, 0.2), rng.uniform(0, 1.5), rng.uniform(3, 30), rng.uniform(80, 200), -90.0, -4.0),
            (80, 12, 6, 1, 1, 0.5),
        )[0]
        return round(self._now - ago, 3)

    def _inference(self) -> Event:
        rng = self._random
        return {
            "time_unix_s": self._time(),
            "service": "shop",
            "model": rng.choice(("ranker", "scorer")),
            "endpoint": rng.choice((None, None, "/a", "/b", "/c")),
            "duration_s": rng.choice((0.0, rng.lognormvariate(-2, 1.5), 0.25)),
            "status": rng.choice(("ok", "ok", "ok", "error")),
            "ttft_s": rng.choice((None, rng.random())),
            "input_tokens": rng.choice((None, rng.randrange(5000))),
            "confidence": rng.choice((None, rng.uniform(-1, 1))),
            "trace_id": rng.choice((None, f"t{rng.randrange(1000)}")),
            "event_id": rng.choice((None, f"e{rng.randrange(1000)}")),
            "cost_amount": rng.choice((None, rng.random())),
            "cost_currency": rng.choice((None, "EUR", "USD")),
            "metrics": rng.choice((None, None, {"gpu": rng.random()})),
        }

    def _resource(self) -> Event:
        rng = self._random
        names = ("utilization", "temperature", "used_bytes")
        return {
            "time_unix_s": self._time(),
            "host": "h1",
            "entity": rng.choice(("cpu", "disk")),
            "id": rng.choice(("0", "1")),
            "metrics": {name: rng.uniform(-5, 5) for name in names if rng.random() < 0.7},
            "labels": rng.choice((None, None, {}, {"mount": "/"}, {"mount": "/", "a": "b"}, {"id": "x"})),
            "counters": rng.choice((None, {}, {"requests": rng.randrange(9), "seconds": rng.random()}, {"errors": 0})),
            "histograms": rng.choice((None, None, {"latency": _histogram(rng), "size": _histogram(rng)})),
        }


@cache
def _sketches() -> list[dict[str, Any]]:
    """Of few values and of many, of both signs and of none, and coarser ones."""
    values = np.random.default_rng(5).lognormal(0, 1, 400)
    some = [values[:3], values, -values[:50], np.concatenate([values[:9], [0.0], -values[:5]]), values[:0], 0 * values]
    return [Sketch.of(each).downscale(scale).to_wire() for each, scale in zip(some, (6, 6, 5, 3, 6, 6), strict=True)]


def _histogram(rng: random.Random) -> dict[str, Any]:
    extremes = {"min": rng.uniform(-9, 0), "max": rng.uniform(0, 9)}
    known = {name: value for name, value in extremes.items() if rng.random() < 0.4}
    return {"sum": rng.uniform(-100, 100), "sketch": rng.choice(_sketches()), **known}


def _joined(one: bytes, other: bytes) -> bytes:
    return (one[:-1] + b"," + other[1:]) if len(one) > 2 else other


def decoded(outputs: Sequence[Outgoing], kind: type[Any]) -> list[Any]:
    return [msgspec.json.decode(output.value or b"", type=kind) for output in outputs]
