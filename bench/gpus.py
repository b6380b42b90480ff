"""What watching GPUs costs: CPU time a beat, by number of GPUs, and what it adds to the memory of the agent.

The driver is the stub of the tests, through the real binding: what is measured is our own work and the binding's, not
that of a real driver, whose calls take from microseconds to some milliseconds each, mostly waiting.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from streammon.config import GpuSettings
from streammon.events import EventType
from streammon_agents.gpu.gpus import Gpus
from streammon_agents.packing import Packer
from tests.gpus import FULL, Nvml, gpu, nvml

PROCESSES = 4
BEATS = 200


def full(index: int) -> dict[str, float | str | None]:
    """A GPU that answers everything, with processes."""
    own = os.getpid()
    processes = {f"compute__{number}": f"{own + number} 1000000" for number in range(PROCESSES)}
    samples = {f"sample__{number}": f"{number + 1} {own + number} 50 20" for number in range(PROCESSES)}
    return gpu(index, **FULL, **processes, **samples)


def beats(said: Nvml, number: int) -> None:
    said.say({"count": number} | {key: value for index in range(number) for key, value in full(index).items()})
    gpus, packer = Gpus(GpuSettings(pod_resources=None), 1.0, Path("/proc")), Packer("bench")
    gpus.measure()
    things, packed, started = 0, 0, time.process_time()
    for _ in range(BEATS):
        events = [thing.event("bench", 0.0) for thing in gpus.measure().things]
        things += len(events)
        packed += sum(len(batch.value) for batch in packer.pack(EventType.RESOURCE, events).batches)
    spent = (time.process_time() - started) / BEATS
    gpus.close()
    print(
        f"  {number:>2} GPUs, {PROCESSES} processes each: {spent * 1e3:.2f} ms a beat, {spent:.3%} of a core at 1 Hz; "
        f"{things / BEATS:.1f} events, {packed / BEATS:.0f} bytes"
    )


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


if __name__ == "__main__":
    with TemporaryDirectory() as directory, nvml(Path(directory)) as said:
        before = resident_bytes()
        for number in (1, 8, 16):
            beats(said, number)
        print(f"  {(resident_bytes() - before) / 2**20:.1f} MB of memory, the binding included")
