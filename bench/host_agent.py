"""What the host agent costs: `python bench/host_agent.py` prints its share of a core at 1 Hz, by source."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import cast

from streammon.broker import Broker, Outgoing
from streammon.config import load
from streammon.events import EventType
from streammon_agents.agent import run_agent
from streammon_agents.host import probes
from streammon_agents.packing import Packer

SECONDS = 20


class Nowhere:
    """A broker that takes everything."""

    def __init__(self) -> None:
        self.values: list[int] = []

    async def append(self, records: Sequence[Outgoing]) -> list[int]:
        self.values.extend(len(record.value or b"") for record in records)
        return [0] * len(records)


async def share() -> None:
    broker, stop = Nowhere(), asyncio.Event()
    agent = asyncio.create_task(run_agent(cast(Broker, broker), load(agent={"interval_s": 1.0}), stop=stop))
    await asyncio.sleep(0.5)  # the start is not what is asked
    started, cpu = time.monotonic(), time.process_time()
    await asyncio.sleep(SECONDS)
    spent, elapsed = time.process_time() - cpu, time.monotonic() - started
    stop.set()
    await agent
    print(f"host agent at 1 Hz: {spent / elapsed:.3%} of a core, {spent / SECONDS * 1e3:.2f} ms a measurement")
    print(f"  {len(broker.values)} batches of {broker.values[-1]} bytes")


def parts(repeat: int = 200) -> None:
    events = []
    for source in probes("bench"):
        before = source.read()
        started = time.process_time()
        for _ in range(repeat):
            measured = list(source.measure(source.read(), before, 1.0))
        print(f"  {source.name:<12} {(time.process_time() - started) / repeat * 1e6:6.0f} us")
        events += [{"time_unix_s": 0.0, "host": "bench", **one._asdict()} for one in measured]
    packer, started = Packer("host@bench"), time.process_time()
    for _ in range(repeat):
        packer.pack(EventType.RESOURCE, events)
    print(f"  {'packing':<12} {(time.process_time() - started) / repeat * 1e6:6.0f} us, {len(events)} events")


if __name__ == "__main__":
    asyncio.run(share())
    parts()
