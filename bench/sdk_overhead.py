"""What a watched call costs: `python bench/sdk_overhead.py` prints ns a call, a plain decorator's beside it.

The monitor's thread runs and really packs; its transport takes every batch at once. Calls come at full speed,
far beyond any service, so the thread competes for the interpreter all the time: ``wall`` is with the waiting for
it, ``CPU`` is what the caller's thread itself spends.
"""

from __future__ import annotations

import functools
import logging
import os
import socket
import statistics
import time
from array import array
from collections.abc import Callable, Coroutine
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from streammon_agents import Monitor
from streammon_agents.packing import Batch
from streammon_agents.sdk.courier import Limits

CALLS = 5_000
ROUNDS = 20
OUTAGE_S = float(os.environ.get("OUTAGE_S", "20"))


class Nowhere:
    """Takes every batch."""

    def send(self, batch: Batch) -> None:
        pass

    def close(self) -> None:
        pass


class Cost(NamedTuple):
    """Of one call, in ns, the median of some rounds in which the ring never fills."""

    cpu: float
    wall: float


def cost(call: Callable[[], object], settle: Callable[[], None]) -> Cost:
    rounds = []
    for _ in range(ROUNDS):
        wall, cpu = time.perf_counter(), time.thread_time()
        for _ in range(CALLS):
            call()
        rounds.append((time.thread_time() - cpu, time.perf_counter() - wall))
        settle()
    return Cost(*(statistics.median(column) / CALLS * 1e9 for column in zip(*rounds, strict=True)))


def no_op(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapped


def work() -> None:
    """The call that is watched."""


def main() -> None:
    monitor = Monitor(service="bench", model="m", model_version="1", transport=Nowhere)

    def settle() -> None:
        while monitor.stats.waiting:
            time.sleep(0.005)

    def measured() -> None:
        with monitor.measure(endpoint="/rank") as call:
            call.set(input_tokens=310, prediction=0.7, event_id="a1")

    async def work_async() -> None:
        pass

    def stepped(function: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
        """Runs a coroutine that never waits, without an event loop's own cost."""

        def call() -> None:
            with suppress(StopIteration):
                function().send(None)

        return call

    calls: dict[str, Callable[[], object]] = {
        "the function alone": work,
        "no-op decorator": no_op(work),
        "@monitor.watch": monitor.watch(work),
        "the coroutine alone": stepped(work_async),
        "@monitor.watch, async": stepped(monitor.watch(work_async)),
        "with monitor.measure(), 4 fields": measured,
        "monitor.record()": lambda: monitor.record(duration_s=0.01),
        "monitor.record(), 4 fields": lambda: monitor.record(
            duration_s=0.01, endpoint="/rank", input_tokens=310, prediction=0.7, event_id="a1"
        ),
    }
    print(f"{'':<36} {'CPU':>7} {'wall':>10}")
    for name, call in calls.items():
        cpu, wall = cost(call, settle)
        print(f"{name:<36} {cpu:7.0f} ns {wall:7.0f} ns")
    monitor.close()
    while_kafka_is_down()
    background()
    print(f"dropped: {monitor.stats.dropped}")


PACE_S = 0.001
"""Between calls while Kafka is down: 1,000 a second."""


def while_kafka_is_down(seconds: float = OUTAGE_S) -> None:
    """What each single call costs, and what the process grows by, while nobody takes an event."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monitor = Monitor(service="bench", model="m", bootstrap=f"127.0.0.1:{unused.getsockname()[1]}")
    logging.disable()
    took = array("q")
    sizes = []
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        at = time.perf_counter_ns()
        monitor.record(duration_s=0.01, endpoint="/rank", input_tokens=310, prediction=0.7, event_id="a1")
        took.append(time.perf_counter_ns() - at)
        if len(took) % 5000 == 0:
            sizes.append(resident_bytes() - 8 * len(took))
        time.sleep(PACE_S)
    ranked = sorted(took)
    quantiles = {name: ranked[int(q * (len(took) - 1))] / 1000 for name, q in (("p50", 0.5), ("p99.9", 0.999))}
    print(f"Kafka down for {seconds:g} s, {len(took)} calls of record(), 4 fields: {quantiles} us")
    if len(sizes) > 2:
        third = len(sizes) // 3
        print(f"  RSS after a third {sizes[third] / 2**20:.1f} MB, at the end {sizes[-1] / 2**20:.1f} MB")
    monitor.close(timeout_s=0.1)


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def background() -> None:
    """CPU of the thread for each event: cleaned, packed, numbered."""
    monitor = Monitor(service="bench", model="m", model_version="1", transport=Nowhere, limits=Limits(capacity=200_000))
    for call in range(100_000):
        monitor.record(duration_s=0.01, endpoint="/rank", input_tokens=310, prediction=0.7, event_id=str(call))
    started, left = time.process_time(), monitor.stats.waiting
    monitor.close(timeout_s=60)
    print(f"{'in the thread, an event of 4 fields':<36} {(time.process_time() - started) / left * 1e9:8.0f} ns")


if __name__ == "__main__":
    main()
