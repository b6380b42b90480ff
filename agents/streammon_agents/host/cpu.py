"""CPU, from ``/proc/stat``: in what it spends its time, and how often it changes what it does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from streammon_agents.kernel_files import increases, number, rates, whole_lines
from streammon_agents.source import Measured

MODES = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")
"""In the kernel's order. Time of guests, which follows, is part of ``user`` and ``nice`` already."""

_COUNTERS = {b"ctxt": "context_switches", b"intr": "interrupts", b"processes": "forks"}
_LEVELS = {b"procs_running": "running_processes", b"procs_blocked": "blocked_processes"}
_RATES = {name: f"{name}_per_s" for name in _COUNTERS.values()}


class Reading(NamedTuple):
    ticks: dict[str, dict[str, int]]
    """By core, and ``total``: time spent in each mode."""
    counters: dict[str, int]
    levels: dict[str, int]


def parse(stat: bytes) -> Reading:
    """``cpu  38 0 27 …``, ``cpu0 …``, ``ctxt 1990473``; lines that are not so are left out."""
    reading = Reading({}, {}, {})
    for line in whole_lines(stat):
        name, _, rest = line.partition(b" ")
        if name.startswith(b"cpu"):
            if ticks := _ticks(rest):
                reading.ticks[name[3:].decode(errors="replace") or "total"] = ticks
        elif name in _COUNTERS or name in _LEVELS:
            value = number(rest.split(maxsplit=1)[0] if rest.strip() else b"")
            if value is not None:
                (reading.counters if name in _COUNTERS else reading.levels)[(_COUNTERS | _LEVELS)[name]] = value
    return reading


def _ticks(text: bytes) -> dict[str, int]:
    numbers = [number(field) for field in text.split()]
    return {mode: ticks for mode, ticks in zip(MODES, numbers, strict=False) if ticks is not None}


def measure(now: Reading, before: Reading | None, elapsed_s: float, *, per_core: bool = False) -> Iterator[Measured]:
    """Fractions of the time of all cores, or of one."""
    for core, ticks in now.ticks.items():
        if core == "total" or per_core:
            metrics = _fractions(ticks, before.ticks.get(core) if before else None)
            if core == "total":
                metrics |= rates(now.counters, before and before.counters, elapsed_s, _RATES)
                metrics |= now.levels | {"cores": len(now.ticks) - 1} if len(now.ticks) > 1 else now.levels
            if metrics:
                yield Measured("cpu", core, metrics)


def _fractions(now: dict[str, int], before: dict[str, int] | None) -> dict[str, float]:
    spent = increases(now, before)
    total = sum(spent.values())
    if total <= 0:
        return {}
    metrics = {f"{mode}_fraction": ticks / total for mode, ticks in spent.items()}
    if "idle" in spent:
        metrics["utilization"] = 1 - (spent["idle"] + spent.get("iowait", 0)) / total
    return metrics
