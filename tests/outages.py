"""An agent under load whose Kafka goes away: what was sent, what arrived, and how long it took."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from streammon.broker import Broker, Record
from streammon.broker.reading import read
from streammon.config import Settings
from streammon.events import EventType
from streammon.wire import decode
from streammon_agents.source import Finding, Outlet
from streammon_processors.builtin import windows_processor

MODELS = 3
STEP_S = 0.02


class Load:
    """A source of so many inference events a second, numbered in ``request_id`` from ``first`` on.

    ``awaited``: each hand-over waits until it is durable.
    """

    def __init__(self, per_second: int, *, first: int = 0, awaited: bool = False) -> None:
        self.name = f"load-{first}"
        self._per_second, self._first, self._awaited = per_second, first, awaited
        self.sent = 0
        self.latest_s = 0.0
        """The longest that handing events over has taken: what a service would wait."""

    def check(self) -> Iterable[Finding]:
        return ()

    async def run(self, out: Outlet) -> None:
        began, given = asyncio.get_running_loop().time(), 0
        while True:
            due = int((asyncio.get_running_loop().time() - began) * self._per_second) - given
            events = [self._event(number) for number in range(self._first + self.sent, self._first + self.sent + due)]
            self.sent += due
            given += due
            if events:
                before = time.perf_counter()
                if self._awaited:
                    await out.send(EventType.INFERENCE, events)
                else:
                    out.put(EventType.INFERENCE, events)
                self.latest_s = max(self.latest_s, time.perf_counter() - before)
            await asyncio.sleep(STEP_S)

    @property
    def numbers(self) -> range:
        return range(self._first, self._first + self.sent)

    @staticmethod
    def _event(number: int) -> dict[str, Any]:
        return {
            "time_unix_s": time.time(), "service": "shop", "model": f"m{number % MODELS}",
            "duration_s": 0.001 * (number % 100), "status": "ok", "request_id": str(number), "endpoint": "/rank",
        }  # fmt: skip


@dataclass
class Arrived:
    """What the log holds of a load."""

    requests: Counter[str] = field(default_factory=Counter)
    """How often each event is there."""
    delays: list[tuple[float, float]] = field(default_factory=list)
    """Of each event: its time, and seconds from there to the broker's stamp of its record."""

    def slowest_s(self, since: float, share: float = 1.0) -> float:
        """Of events since then; ``share`` of them took no longer."""
        delays = sorted(delay for at, delay in self.delays if at >= since)
        return delays[min(len(delays) - 1, int(len(delays) * share))] if delays else 0.0


async def arrived(broker: Broker) -> tuple[Arrived, list[Record]]:
    """All of the topic ``inference`` as it is now."""
    found, log = Arrived(), list[Record]()
    async for _, records in read(broker, ["inference"]):
        for record in records:
            log.append(record)
            for batch in decode(EventType.INFERENCE, record.value or b""):
                for row in range(len(batch.rows)):
                    event = batch.rows.event(row)
                    found.requests[event["request_id"]] += 1
                    found.delays.append((event["time_unix_s"], record.timestamp / 1000 - event["time_unix_s"]))
    return found, log


def counted(log: Sequence[Record], settings: Settings) -> Counter[str]:
    """What the windows of this log say, when all of them are closed; rollups are not among them."""
    sums: Counter[str] = Counter()
    processor = windows_processor(settings)
    for partition in {record.partition for record in log}:
        task = processor.task(partition)
        for output in task.process("inference", [record for record in log if record.partition == partition]):
            if output.topic == "windows":
                window = json.loads(output.value or b"")
                sums["count"] += window["count"]
                for name in ("late", "duplicate", "missing", "rejected", "dropped"):
                    sums[name] += window["completeness"][name]
    return sums
