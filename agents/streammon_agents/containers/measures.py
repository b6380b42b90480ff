"""What a container measured, from two readings of its cgroup. Pure, and the same for both versions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from streammon_agents import pressure
from streammon_agents.containers.cgroups import Limits, Reading
from streammon_agents.kernel_files import added, increases, rates

_RATES = {
    "throttled_s": "cpu_throttled_s_per_s",
    "read_bytes": "read_bytes_per_s",
    "write_bytes": "write_bytes_per_s",
    "reads": "read_operations_per_s",
    "writes": "write_operations_per_s",
    "page_faults": "page_faults_per_s",
    "major_page_faults": "major_page_faults_per_s",
    "cpu_s": "cpu_cores",
    "user_s": "cpu_user_cores",
    "system_s": "cpu_system_cores",
}
"""A second of CPU time a second is a core."""


class Sample(NamedTuple):
    """One container at one moment."""

    id: str
    labels: Mapping[str, str]
    reading: Reading
    limits: Limits
    is_new: bool
    """Made while we watched: its counters began at nothing not long ago."""


def metrics_of(now: Sample, before: Sample | None, elapsed_s: float) -> dict[str, float]:
    """Sampled values, rates, and parts of what is allowed."""
    metrics = _levels(now) | rates(now.reading.counters, before and before.reading.counters, elapsed_s, _RATES)
    metrics |= pressure.measure(now.reading.stalls, before and before.reading.stalls, elapsed_s)
    grown = increases(now.reading.counters, before and before.reading.counters)
    if grown.get("periods"):
        metrics["cpu_throttled_fraction"] = min(grown.get("throttled_periods", 0) / grown["periods"], 1.0)
    if now.limits.cpu_cores and "cpu_cores" in metrics:
        metrics["cpu_utilization"] = metrics["cpu_cores"] / now.limits.cpu_cores
    return metrics


def _levels(now: Sample) -> dict[str, float]:
    metrics = {name: value for name, value in now.reading.levels.items() if name != "memory_inactive_bytes"}
    limits = {
        "cpu_limit_cores": now.limits.cpu_cores,
        "memory_limit_bytes": now.limits.memory_bytes,
        "pids_limit": now.limits.pids,
    }
    metrics |= {name: value for name, value in limits.items() if value is not None}
    if (usage := metrics.get("memory_usage_bytes")) is not None and "memory_inactive_bytes" in now.reading.levels:
        metrics["memory_working_set_bytes"] = max(usage - now.reading.levels["memory_inactive_bytes"], 0)
    if now.limits.memory_bytes and "memory_working_set_bytes" in metrics:
        metrics["memory_utilization"] = metrics["memory_working_set_bytes"] / now.limits.memory_bytes
    if now.limits.pids and "pids" in metrics:
        metrics["pids_utilization"] = metrics["pids"] / now.limits.pids
    return metrics


def counters_of(now: Sample, before: Sample | None) -> dict[str, float]:
    """What happened since. Of a container that is new, since it was made."""
    if before is None:
        return dict(now.reading.events) if now.is_new else {}
    return added(now.reading.events, before.reading.events)
