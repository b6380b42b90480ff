"""Processes on GPUs: how much memory each holds, and how busy it keeps what it shares.

NVML knows processes by their number on the host. The largest `agent.gpu.max_processes` of each GPU or MIG instance are
told; the others are counted as dropped.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, Final

from streammon_agents.gpu.devices import Device
from streammon_agents.gpu.questions import Handle, Nvml, Values

LISTS: Final = ("Compute", "Graphics", "MPSCompute")
"""A process is in one, or in several with the same memory."""


def memory_of_processes(device: Device, now_s: float) -> dict[int, float | None]:
    """By process, the bytes it holds; None: it is there, and the driver does not say."""
    found: dict[int, float | None] = {}
    for kind in LISTS:
        for process in device.try_(f"{kind.lower()}_processes", now_s, _list(kind)) or ():
            found[process.pid] = max(filter(None, (process.usedGpuMemory, found.get(process.pid))), default=None)
    return found


def _list(kind: str) -> Callable[[Nvml, Handle], Any]:
    return lambda nvml, handle: getattr(nvml, f"nvmlDeviceGet{kind}RunningProcesses")(handle)


class Utilization:
    """What processes used of a GPU, from the samples that the driver took since the last look."""

    def __init__(self) -> None:
        self._last_us: dict[str, int] = {}

    def of(self, device: Device, now_s: float) -> dict[int, Values]:
        samples = [
            sample
            for sample in device.try_("process_utilization", now_s, lambda nvml, _: self._samples(nvml, device)) or ()
            if max(sample.smUtil, sample.memUtil, sample.encUtil, sample.decUtil) <= 100  # drivers return rubbish, too
        ]
        if samples:
            self._last_us[device.id] = max(sample.timeStamp for sample in samples)
        return {pid: _mean(each) for pid, each in _by_process(samples).items()}

    def _samples(self, nvml: Nvml, device: Device) -> Any:
        """No sample since the last look is an error of its own, and so is no sample at all."""
        try:
            return nvml.nvmlDeviceGetProcessUtilization(device.handle, self._last_us.get(device.id, 0))
        except nvml.NVMLError as error:
            if error.value in (nvml.NVML_SUCCESS, nvml.NVML_ERROR_NOT_FOUND):
                return []
            raise


def _by_process(samples: Iterable[Any]) -> dict[int, list[Any]]:
    groups: dict[int, list[Any]] = defaultdict(list)
    for sample in samples:
        groups[sample.pid].append(sample)
    return groups


def _mean(samples: list[Any]) -> Values:
    def mean(field: str) -> float:
        return float(sum(getattr(sample, field) for sample in samples)) / len(samples) / 100

    return {
        "utilization": mean("smUtil"),
        "memory_busy_fraction": mean("memUtil"),
        "encoder_utilization": mean("encUtil"),
        "decoder_utilization": mean("decUtil"),
    }
