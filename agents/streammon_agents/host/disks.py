"""Disks, from ``/proc/diskstats``: what they do, how long it takes, and how much waits for them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping

from streammon_agents.kernel_files import increases, number, rates, whole_lines
from streammon_agents.source import Measured

SECTOR_BYTES = 512
"""Of ``/proc/diskstats``, whatever the disk has."""

_FIELDS = (
    "reads", "reads_merged", "read_sectors", "read_ms", "writes", "writes_merged", "write_sectors", "write_ms",
    "in_flight", "busy_ms", "weighted_ms", "discards", "discards_merged", "discard_sectors", "discard_ms",
    "flushes", "flush_ms",
)  # fmt: skip
_RATES = {
    "read_bytes": "read_bytes_per_s",
    "write_bytes": "write_bytes_per_s",
    "discard_bytes": "discard_bytes_per_s",
    "reads": "read_operations_per_s",
    "writes": "write_operations_per_s",
    "discards": "discard_operations_per_s",
    "flushes": "flush_operations_per_s",
}
_LATENCIES = {
    "reads": ("read_ms", "read_latency_s"),
    "writes": ("write_ms", "write_latency_s"),
    "discards": ("discard_ms", "discard_latency_s"),
    "flushes": ("flush_ms", "flush_latency_s"),
}

Disk = Mapping[str, int]


class WholeDisks:
    """Disks without their partitions, which would count everything twice; where nobody says, all."""

    def __init__(self, sysfs: str) -> None:
        self._directory = f"{sysfs}/block"
        self._known: dict[str, bool] = {}

    def has(self, name: str) -> bool:
        """Looked up when a device is first seen."""
        if name not in self._known:
            directory = f"{self._directory}/{name.replace('/', '!')}"
            self._known[name] = os.path.isdir(directory) or not os.path.isdir(self._directory)
        return self._known[name]


def parse(data: bytes, is_whole: Callable[[str], bool]) -> dict[str, Disk]:
    """``8  0 sda 11 0 3 …``: counters since the machine started, of disks that were ever used.

    Old kernels have fewer fields.
    """
    disks = {}
    for line in whole_lines(data):
        fields = line.split()
        name = fields[2].decode(errors="replace") if len(fields) >= 14 else ""
        never_used = fields[3:4] == fields[7:8] == [b"0"]
        if name and not never_used and is_whole(name):
            counted = zip(_FIELDS, map(number, fields[3:]), strict=False)
            disks[name] = _disk({field: value for field, value in counted if value is not None})
    return disks


def _disk(disk: dict[str, int]) -> Disk:
    sectors = {f"{what}_bytes": disk.get(f"{what}_sectors") for what in ("read", "write", "discard")}
    return disk | {name: count * SECTOR_BYTES for name, count in sectors.items() if count is not None}


def measure(now: Mapping[str, Disk], before: Mapping[str, Disk] | None, elapsed_s: float) -> Iterator[Measured]:
    """All that were read, which are those that were ever used."""
    for name, disk in now.items():
        old = (before or {}).get(name)
        metrics = rates(disk, old, elapsed_s, _RATES)
        if metrics:
            metrics |= _times(increases(disk, old), elapsed_s)
            if "in_flight" in disk:
                metrics["in_flight"] = disk["in_flight"]
            yield Measured("disk", name, metrics)


def _times(grown: Mapping[str, float], elapsed_s: float) -> dict[str, float]:
    """Latencies are means over the operations that ended meanwhile: without any there is none."""
    metrics = {
        latency: grown[ms] / grown[operations] / 1000
        for operations, (ms, latency) in _LATENCIES.items()
        if grown.get(operations) and ms in grown
    }
    if "busy_ms" in grown:
        metrics["io_time_fraction"] = min(grown["busy_ms"] / 1000 / elapsed_s, 1.0)
    if "weighted_ms" in grown:
        metrics["queue_length"] = grown["weighted_ms"] / 1000 / elapsed_s
    return metrics
