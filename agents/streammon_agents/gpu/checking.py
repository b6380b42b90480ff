"""What the source ``gpu`` will see on this host, and what not, and why: for ``streammon agent --check``."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from streammon.config import GpuSettings
from streammon_agents.gpu.devices import Device, DeviceGoneError, LibraryGoneError, instances
from streammon_agents.gpu.pods import Pods
from streammon_agents.gpu.processes import Utilization, memory_of_processes
from streammon_agents.gpu.questions import EVERYTHING
from streammon_agents.gpu.session import Session, called
from streammon_agents.source import Finding

NVIDIA: Final = "0x10de"
_DISPLAY = "0x03"
"""The class of PCI devices that GPUs are of."""


def check(settings: GpuSettings, sysfs: Path, now_s: float) -> Iterator[Finding]:
    """Asks everything once."""
    session = Session()
    try:
        session.tend(now_s)
        for why in session.why:
            yield Finding("GPUs", False, why, _fix(sysfs) if not session.gpus else None)
        for gpu in session.gpus:
            yield from _gpu(gpu, settings, now_s)
        for gpu in session.gpus:
            if gpu.id in session.unwatched:
                yield Finding(f"XID errors of {called(gpu.labels)}", False, session.unwatched[gpu.id])
        if session.gpus:
            yield from _pods(settings)
    finally:
        session.close()


def _fix(sysfs: Path) -> str | None:
    """What to do where there are GPUs, and no driver to ask."""
    number = gpus_on_bus(sysfs)
    if not number:
        return None
    return (
        f"there are {number} GPUs of NVIDIA's on the PCI bus: install the driver; in a container, run it with the "
        "runtime class nvidia and NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=utility"
    )


def gpus_on_bus(sysfs: Path) -> int:
    """How many GPUs of NVIDIA's are plugged in, whatever driver they have."""
    return sum(
        _first_word(device / "vendor") == NVIDIA and _first_word(device / "class").startswith(_DISPLAY)
        for device in (sysfs / "bus/pci/devices").glob("*")
    )


def _first_word(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError:
        return ""


def _gpu(gpu: Device, settings: GpuSettings, now_s: float) -> Iterator[Finding]:
    try:
        answers = gpu.ask(*EVERYTHING, now_s)
        parts = instances(gpu, now_s)
        if settings.processes:
            for device in parts or [gpu]:
                memory_of_processes(device, now_s)
                Utilization().of(device, now_s)
    except (DeviceGoneError, LibraryGoneError) as error:
        yield Finding(called(gpu.labels), False, str(error))
        return
    told = len(answers.values) + len(answers.totals)
    with_parts = f", {len(parts)} MIG instances" if parts else ""
    yield Finding(called(gpu.labels), True, f"{gpu.id}: {told} measurements{with_parts}")
    absent = defaultdict(list)
    for device in (gpu, *parts):
        for name, why in device.absent.items():
            absent[why].append(name)
    for why, names in absent.items():
        yield Finding(f"{called(gpu.labels)}: {', '.join(dict.fromkeys(names))}", False, why)


def _pods(settings: GpuSettings) -> Iterator[Finding]:
    what, pods = "which pods hold GPUs", Pods(settings.pod_resources)
    if settings.pod_resources is None:
        yield Finding(what, False, "agent.gpu.pod_resources is not set")
    elif not settings.pod_resources.exists():
        yield Finding(
            what,
            False,
            f"there is no {settings.pod_resources}",
            "on a node of Kubernetes, mount its directory into the agent's container",
        )
    else:
        pods.refresh()
        yield Finding(what, pods.why is None, pods.why or str(settings.pod_resources))
