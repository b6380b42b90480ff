"""The host as a whole: load, uptime, boot id, file descriptors, and how long work waited."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from streammon_agents import pressure
from streammon_agents.kernel_files import number
from streammon_agents.source import Measured

_UNBOUNDED = 2**53
"""A limit beyond that is none: kernels give 2^63 - 1."""


class Reading(NamedTuple):
    levels: dict[str, float]
    stalls: pressure.Stalls
    boot_id: str | None


def parse_load(data: bytes | None) -> dict[str, float]:
    """``0.93 1.60 1.53 2/350 12345``: load, runnable and all threads, the newest process."""
    fields = (data or b"").split()
    if len(fields) < 4:
        return {}
    metrics = dict(zip(("load_1m", "load_5m", "load_15m"), map(_decimal, fields), strict=False))
    metrics["threads"] = number(fields[3].partition(b"/")[2])
    return {name: value for name, value in metrics.items() if value is not None}


def parse_uptime(data: bytes | None) -> dict[str, float]:
    """``62723.15 120400.13``: since the start, and how long the cores were idle together."""
    fields = (data or b"").split()
    uptime = _decimal(fields[0]) if fields else None
    return {} if uptime is None else {"uptime_s": uptime}


def parse_file_descriptors(data: bytes | None) -> dict[str, float]:
    """``3168	0	9223372036854775807``: in use, of no meaning, and how many there may be."""
    fields = [number(field) for field in (data or b"").split()]
    if len(fields) < 3 or fields[0] is None:
        return {}
    used, most = fields[0], fields[2]
    metrics: dict[str, float] = {"file_descriptors": used}
    if most and most < _UNBOUNDED:
        metrics |= {"file_descriptors_limit": most, "file_descriptors_utilization": min(used / most, 1.0)}
    return metrics


def _decimal(text: bytes) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 <= value < _UNBOUNDED else None


def measure(name: str, now: Reading, before: Reading | None, elapsed_s: float) -> Iterator[Measured]:
    metrics = now.levels | pressure.measure(now.stalls, before and before.stalls, elapsed_s)
    if metrics:
        yield Measured("host", name, metrics, {"boot_id": now.boot_id} if now.boot_id else None)
