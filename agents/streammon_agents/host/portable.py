"""What a host measures where there is no ``/proc``, on macOS above all: psutil reads, pure functions make metrics.

A rate needs two readings of a counter. A counter that went backwards was reset, and a counter the system
lacks is not there: in both cases the metric is absent, never negative and never a stand-in.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from typing import Any, NamedTuple

import psutil

from streammon.clock import Clock, system_clock
from streammon.config import Settings
from streammon.heartbeat import host_name
from streammon_agents.source import Measured, Polled, Probe

Metrics = dict[str, float]

_IMAGES = frozenset({"squashfs", "iso9660", "erofs", "cramfs"})
"""File systems that are files, read-only and always full."""


def rates(now: Any, before: Any, elapsed_s: float, names: Mapping[str, str]) -> Metrics:
    """Increase per second of the counters ``names`` (counter: metric) of two readings."""
    increases = _increases(now, before, names)
    return {names[name]: increase / elapsed_s for name, increase in increases.items()} if elapsed_s > 0 else {}


def _increases(now: Any, before: Any, names: Iterable[str]) -> Metrics:
    pairs = ((name, getattr(now, name, None), getattr(before, name, None)) for name in names)
    return {name: new - old for name, new, old in pairs if new is not None and old is not None and new >= old}


def cpu(now: Any, before: Any, elapsed_s: float) -> Iterator[Measured]:
    """Fractions of all CPU time by mode. Time of guests is part of ``user`` and ``nice`` already."""
    modes = [mode for mode in now._fields if not mode.startswith("guest")]
    spent = _increases(now, before, modes)
    total = sum(spent.values())
    if total <= 0:
        return
    metrics = {f"{mode}_fraction": seconds / total for mode, seconds in spent.items()}
    if "idle" in spent:
        metrics["utilization"] = 1 - (spent["idle"] + spent.get("iowait", 0.0)) / total
    yield Measured("cpu", "total", metrics)


class MemoryReading(NamedTuple):
    ram: Any
    swap: Any


def read_memory() -> MemoryReading:
    return MemoryReading(psutil.virtual_memory(), psutil.swap_memory())


def memory(now: MemoryReading, before: MemoryReading | None, elapsed_s: float) -> Iterator[Measured]:
    """``available_bytes`` is what programs can have without swapping. A host may have no swap."""
    for name, total, used, available in (
        ("ram", now.ram.total, now.ram.used, now.ram.available),
        ("swap", now.swap.total, now.swap.used, now.swap.free),
    ):
        if total:
            sizes = {"total_bytes": total, "used_bytes": used, "available_bytes": available}
            yield Measured("memory", name, {**sizes, "utilization": 1 - available / total})


_DISK_RATES = {
    "read_bytes": "read_bytes_per_s",
    "write_bytes": "write_bytes_per_s",
    "read_count": "read_operations_per_s",
    "write_count": "write_operations_per_s",
}
_DISK_BUSY_MS = {"busy_time": "io_time_fraction"}


def read_disks() -> dict[str, Any]:
    return psutil.disk_io_counters(perdisk=True, nowrap=False) or {}


def disks(now: Mapping[str, Any], before: Mapping[str, Any] | None, elapsed_s: float) -> Iterator[Measured]:
    """Rates of every disk that was ever used; ``io_time_fraction`` is the part of the time it was busy."""
    for name, counters in now.items():
        old = (before or {}).get(name)
        metrics = rates(counters, old, elapsed_s, _DISK_RATES)
        busy = rates(counters, old, elapsed_s * 1000, _DISK_BUSY_MS)
        metrics |= {metric: min(fraction, 1.0) for metric, fraction in busy.items()}
        if metrics and counters.read_count + counters.write_count:
            yield Measured("disk", name, metrics)


def read_filesystems() -> dict[str, Any]:
    usages = {}
    for mountpoint in mountpoints(psutil.disk_partitions()):
        with suppress(OSError):  # unmounted meanwhile, or not ours to look at
            usages[mountpoint] = psutil.disk_usage(mountpoint)
    return usages


def mountpoints(partitions: Iterable[Any]) -> list[str]:
    """The shortest mountpoint of every real device, and ``/`` even where it is a container's overlay."""
    by_device: dict[str, str] = {}
    for partition in sorted(partitions, key=lambda one: len(one.mountpoint)):
        if partition.fstype not in _IMAGES:
            by_device.setdefault(partition.device, partition.mountpoint)
    return list(dict.fromkeys(("/", *by_device.values())))


def filesystems(now: Mapping[str, Any], before: Any, elapsed_s: float) -> Iterator[Measured]:
    """``free_bytes`` and ``utilization`` leave out the blocks reserved for root, as ``df`` does."""
    for mountpoint, usage in now.items():
        if usage.total:
            sizes = {"total_bytes": usage.total, "used_bytes": usage.used, "free_bytes": usage.free}
            utilization = usage.used / ((usage.used + usage.free) or usage.total)
            yield Measured("filesystem", mountpoint, {**sizes, "utilization": utilization})


_NETWORK_RATES = {
    "bytes_recv": "receive_bytes_per_s",
    "bytes_sent": "transmit_bytes_per_s",
    "packets_recv": "receive_packets_per_s",
    "packets_sent": "transmit_packets_per_s",
    "errin": "receive_errors_per_s",
    "errout": "transmit_errors_per_s",
    "dropin": "receive_drops_per_s",
    "dropout": "transmit_drops_per_s",
}


def read_networks() -> Mapping[str, Any]:
    return psutil.net_io_counters(pernic=True, nowrap=False)


def networks(now: Mapping[str, Any], before: Mapping[str, Any] | None, elapsed_s: float) -> Iterator[Measured]:
    for name, counters in now.items():
        metrics = rates(counters, (before or {}).get(name), elapsed_s, _NETWORK_RATES)
        if metrics:
            yield Measured("network", name, metrics)


class HostReading(NamedTuple):
    name: str
    load: tuple[float, float, float]
    uptime_s: float


def read_host(name: str) -> HostReading:
    return HostReading(name, psutil.getloadavg(), time.time() - psutil.boot_time())


def host(now: HostReading, before: HostReading | None, elapsed_s: float) -> Iterator[Measured]:
    metrics = dict(zip(("load_1m", "load_5m", "load_15m"), now.load, strict=True))
    yield Measured("host", now.name, {**metrics, "uptime_s": now.uptime_s})


def portable_source(settings: Settings, clock: Clock = system_clock) -> Polled:
    """What psutil can tell of this host, once ``agent.interval_s``."""
    host = host_name(settings)
    return Polled("host", host, probes(host), interval_s=settings.agent.interval_s, clock=clock)


def probes(name: str) -> list[Probe]:
    """Everything that is measured on this host."""
    return [
        Probe("host", lambda: read_host(name), host),
        Probe("cpu", psutil.cpu_times, cpu),
        Probe("memory", read_memory, memory),
        Probe("disks", read_disks, disks),
        Probe("filesystems", read_filesystems, filesystems),
        Probe("networks", read_networks, networks),
    ]
