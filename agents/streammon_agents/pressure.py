"""Pressure stall information: the part of the time in which work waited for CPU, memory or disks.

``some``: at least one task waited; ``full``: all of them did. The kernel gives it for the host and for each cgroup of
version 2: ``some avg10=0.07 avg60=2.34 avg300=9.92 total=16418850270``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

KINDS = ("cpu", "memory", "io")


class Stall(NamedTuple):
    avg10_percent: float
    total_us: int


Stalls = Mapping[str, Stall]
"""By metric: ``cpu_pressure_some``."""


def parse(kind: str, data: bytes | None) -> dict[str, Stall]:
    """What one file tells; nothing where the kernel has none."""
    found = {}
    for line in (data or b"").splitlines():
        who, _, rest = line.partition(b" ")
        if who in (b"some", b"full") and (stall := _stall(rest)) is not None:
            found[f"{kind}_pressure_{who.decode()}"] = stall
    return found


def _stall(text: bytes) -> Stall | None:
    fields = dict(pair.split(b"=", 1) for pair in text.split() if b"=" in pair)
    try:
        stall = Stall(float(fields[b"avg10"]), int(fields[b"total"]))
    except (KeyError, ValueError):
        return None
    return stall if 0 <= stall.avg10_percent <= 100 and stall.total_us >= 0 else None


def measure(now: Stalls, before: Stalls | None, elapsed_s: float) -> dict[str, float]:
    """Fractions of the time: as the kernel averages over 10 s, and since the reading before."""
    metrics = {}
    for name, stall in now.items():
        metrics[f"{name}_avg10_fraction"] = stall.avg10_percent / 100
        old = (before or {}).get(name)
        if old is not None and elapsed_s > 0 and stall.total_us >= old.total_us:
            metrics[f"{name}_fraction"] = min((stall.total_us - old.total_us) / 1e6 / elapsed_s, 1.0)
    return metrics
