"""What a container has of a GPU that it holds alone, told under the container's names.

A GPU itself is told without them: its series stays the same whoever holds it, so that what is learned of it, and the
alerts about it, outlive pods. What is asked of pods (use, memory, energy) is asked of containers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from streammon_agents.source import Measured

VALUES: Final = (
    "utilization",
    "memory_busy_fraction",
    "memory_total_bytes",
    "memory_used_bytes",
    "memory_utilization",
    "power_w",
    "engine_active_fraction",
    "tensor_active_fraction",
)
COUNTERS: Final = ("energy_j",)


def of_holder(gpu: Measured, holder: Mapping[str, str]) -> list[Measured]:
    """The same for the container: names begin with ``gpu_``. Nothing where nobody holds it, or there is nothing."""
    values = {f"gpu_{name}": gpu.metrics[name] for name in VALUES if name in gpu.metrics}
    counters = {f"gpu_{name}": gpu.counters[name] for name in COUNTERS if gpu.counters and name in gpu.counters}
    if not holder or not (values or counters):
        return []
    id_ = "/".join((holder["namespace"], holder["pod"], holder["container"]))
    return [Measured("container", id_, values, {**holder, "gpu": gpu.id}, counters or None)]
