"""What the name of a measurement says about it: a cause by its nature, such as throttling, or rather a symptom.

The table is read from the top; the first line that fits decides. ``weight`` orders kinds of causes among each other
when all else is equal: what comes from outside (traffic) before what wears out (CPU), and that before what suffers.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple


class Signal(NamedTuple):
    """``rises``: whether only a rise is suspect (True), only a fall (False), or both (None).

    ``least``: the level from which on it hurts; below it a shift is no cause. ``spikes``: it comes as single events.
    ``says``: how a person calls it.
    """

    kind: str
    pattern: re.Pattern[str]
    weight: float
    says: str
    rises: bool | None = True
    least: float | None = None
    spikes: bool = False


def _signal(
    kind: str,
    pattern: str,
    weight: float,
    says: str,
    *,
    rises: bool | None = True,
    least: float | None = None,
    spikes: bool = False,
) -> Signal:
    return Signal(kind, re.compile(pattern), weight, says, rises, least, spikes)


RESOURCE: Final = (
    _signal("oom", r"oom", 1.0, "processes killed for want of memory", spikes=True),
    _signal("gpu", r"gpu.*throttled_(power_cap|sync_boost)", 0.5, "GPU power limit"),
    _signal("gpu_throttling", r"gpu.*throttl", 1.0, "GPU throttling"),
    _signal("cpu_throttling", r"throttl", 0.95, "CPU throttling"),
    _signal("gpu_errors", r"gpu.*(ecc|xid|error)", 0.95, "GPU errors", spikes=True),
    _signal("gpu_errors", r"^gpu .* gauges\.up$", 1.0, "GPU presence", rises=False),
    _signal("network", r"network.*(errors|drops|retrans)", 0.95, "network errors", least=5.0),
    _signal("disk_errors", r"disk.*error", 0.95, "disk errors"),
    _signal("disk_full", r"filesystem.*utilization", 0.95, "file system use", least=0.9),
    _signal("memory", r"memory ram gauges\.utilization", 0.9, "memory use", least=0.85),
    _signal("swap", r"memory swap gauges\.(utilization|used)", 0.6, "swap use", least=0.05),
    _signal("memory", r"gpu.*memory.*utilization", 0.85, "GPU memory use", least=0.9),
    _signal("disk", r"disk.*io_time_fraction", 0.85, "disk use", least=0.7),
    _signal("cpu", r"cpu.*(steal_fraction)", 0.8, "stolen CPU time", least=0.1),
    _signal("cpu", r"cpu.*utilization", 0.8, "CPU use", least=0.8),
    _signal("cpu", r"cpu.*iowait_fraction", 0.6, "time waiting for disks", least=0.2),
    _signal("restart", r"uptime_s", 0.9, "uptime", rises=False, spikes=True),
    _signal("gpu", r"gpu.*clock", 0.7, "GPU clock", rises=False),
    _signal("gpu", r"gpu.*temperature", 0.6, "GPU temperature"),
    _signal("gpu", r"gpu.*utilization", 0.5, "GPU use", least=0.9),
    _signal("load", r"load_1m", 0.4, "load"),
)  # fmt: skip
"""Fitted to ``ENTITY ID FIELD`` of a resource series."""

OWN: Final = (
    _signal("traffic", r"^throughput_per_s$", 0.85, "traffic"),
    _signal("input_size", r"^input_tokens", 0.8, "the size of requests"),
    _signal("output_size", r"^output_tokens", 0.65, "the size of answers"),
)
"""Fitted to the field of inference series of the alert's own service and model: what comes from outside."""

OTHER: Final = (
    _signal("dependency", r"^error_rate$", 0.8, "errors"),
    _signal("dependency", r"^duration_s\.", 0.75, "latency"),
)
"""Fitted to the field of inference series of other services: what the alert's may wait for."""

ANYTHING: Final = _signal("metric", "", 0.25, "", rises=None)
"""A measurement that nobody here has heard of."""

EVENTS: Final = {
    "deploy": (0.95, 300.0),
    "rollback": (0.95, 300.0),
    "config": (0.95, 300.0),
    "retrain": (0.4, 300.0),  # it is asked for, or begins; what serves changes with the deploy that follows
    "scale": (0.85, 300.0),
    "run_failed": (0.9, 3600.0),
    "run_late": (0.9, 3600.0),
    "drift": (0.8, 1200.0),
}
"""Weight, and in how many seconds suspicion falls to a third."""


def signal_of(signals: tuple[Signal, ...], name: str) -> Signal | None:
    return next((each for each in signals if each.pattern.search(name)), None)
