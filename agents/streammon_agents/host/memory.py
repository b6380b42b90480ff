"""Memory and swap, from ``/proc/meminfo`` and ``/proc/vmstat``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

from streammon_agents.kernel_files import added, number, numbers_of, rates, whole_lines
from streammon_agents.source import Measured

_SIZES = {
    "Buffers": "buffers_bytes",
    "Cached": "cached_bytes",
    "Shmem": "shared_bytes",
    "Dirty": "dirty_bytes",
    "Writeback": "writeback_bytes",
    "AnonPages": "anonymous_bytes",
    "Mapped": "mapped_bytes",
    "Slab": "slab_bytes",
    "SReclaimable": "slab_reclaimable_bytes",
    "KernelStack": "kernel_stack_bytes",
    "PageTables": "page_tables_bytes",
    "Committed_AS": "committed_bytes",
    "CommitLimit": "commit_limit_bytes",
    "MemFree": "free_bytes",
    "Hugetlb": "huge_pages_bytes",
}
_RAM_COUNTERS = {b"pgfault": "page_faults", b"pgmajfault": "major_page_faults"}
_SWAP_COUNTERS = {b"pswpin": "in", b"pswpout": "out"}
_OOM = {b"oom_kill": "oom_kills"}
_RAM_RATES = {name: f"{name}_per_s" for name in _RAM_COUNTERS.values()}
_SWAP_RATES = {"in": "in_pages_per_s", "out": "out_pages_per_s"}


class Reading(NamedTuple):
    bytes: dict[str, int]
    """What ``/proc/meminfo`` tells, under its names."""
    faults: dict[str, int]
    swapped: dict[str, int]
    kills: dict[str, int]


def parse(meminfo: bytes, vmstat: bytes | None) -> Reading:
    return Reading(
        parse_meminfo(meminfo),
        numbers_of(vmstat, _RAM_COUNTERS),
        numbers_of(vmstat, _SWAP_COUNTERS),
        numbers_of(vmstat, _OOM),
    )


def parse_meminfo(data: bytes) -> dict[str, int]:
    """``MemTotal:  49367308 kB`` in bytes. What is counted in pages has no unit, and is left out."""
    found = {}
    for line in whole_lines(data):
        fields = line.split()
        if len(fields) == 3 and fields[2] == b"kB" and (size := number(fields[1])) is not None:
            found[fields[0].rstrip(b":").decode(errors="replace")] = size * 1024
    return found


def measure(now: Reading, before: Reading | None, elapsed_s: float) -> Iterator[Measured]:
    """RAM, and swap if there is any. ``available_bytes`` is what programs can have without swapping.

    ``oom_kills`` is counted: as many processes were killed because there was no memory, here or in a container.
    """
    if ram := _sizes(now.bytes, "MemTotal", "MemAvailable"):
        ram |= {name: now.bytes[theirs] for theirs, name in _SIZES.items() if theirs in now.bytes}
        ram |= rates(now.faults, before and before.faults, elapsed_s, _RAM_RATES)
        yield Measured("memory", "ram", ram, counters=added(now.kills, before and before.kills) or None)
    if swap := _sizes(now.bytes, "SwapTotal", "SwapFree"):
        swap |= rates(now.swapped, before and before.swapped, elapsed_s, _SWAP_RATES)
        yield Measured("memory", "swap", swap)


def _sizes(sizes: Mapping[str, int], total_name: str, available_name: str) -> dict[str, float]:
    total, available = sizes.get(total_name), sizes.get(available_name)
    if not total or available is None:
        return {}
    free = [sizes.get(name, 0) for name in ("MemFree", "Buffers", "Cached", "SReclaimable")]
    used = total - (sum(free) if total_name == "MemTotal" else available)
    if not 0 <= used <= total:  # some kernels in containers count what is cached outside of it
        used = total - available
    return {
        "total_bytes": total,
        "used_bytes": max(used, 0),
        "available_bytes": available,
        "utilization": min(max(1 - available / total, 0.0), 1.0),
    }
