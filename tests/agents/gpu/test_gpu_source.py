"""The source ``gpu`` as the agent runs it."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from streammon.config import GpuSettings, load
from streammon.events import EventType
from streammon_agents.agent import sources_of
from streammon_agents.gpu.checking import check, gpus_on_bus
from streammon_agents.gpu.dcgm import Dcgm
from streammon_agents.gpu.gpus import Gpus, Seen
from streammon_agents.gpu.source import GpuSource, Loss
from streammon_agents.source import Finding, Measured
from tests import gpus
from tests.gpus import FULL, Nvml, gpu, uuid
from tests.outlets import Kept
from tests.support import eventually


async def test_driver_that_hangs_is_told_and_neither_blocks_nor_ends_the_source(nvml: Nvml, tmp_path: Path) -> None:
    nvml.say({"count": 1} | gpu(0, **FULL))
    source = GpuSource(Gpus(GpuSettings(pod_resources=None), 0.05, tmp_path), "here", 0.05, hung_s=0.05)
    out = Kept()
    running = asyncio.create_task(source.run(out))
    await eventually(lambda: out.events)
    nvml.say({"hang_ms": 200})
    await eventually(lambda: out.states[-1] and "has not answered" in out.states[-1])
    nvml.say({"hang_ms": 0})
    told = len(out.events)
    await eventually(lambda: len(out.events) > told and out.states[-1] is None, 30)
    nvml.say({"hang_ms": 1000})
    await eventually(lambda: out.states[-1] is not None)
    running.cancel()
    ended, _ = await asyncio.wait({running}, timeout=0.5)
    assert ended, "the end waits for no driver"
    nvml.say({"hang_ms": 0})


class Crowd:
    """Sees more than there is room for."""

    def measure(self) -> Seen:
        return Seen([Measured("gpu", "GPU-1", {"up": 1.0})], "so many", 7)

    def check(self) -> Iterable[Finding]:
        return ()

    def close(self) -> None:
        pass


async def test_processes_that_are_left_out_are_counted_as_dropped() -> None:
    out = Kept()
    running = asyncio.create_task(GpuSource(Crowd(), "here", 60.0, lambda: 5.0).run(out))
    await eventually(lambda: out.states == ["so many"])
    running.cancel()
    assert out.dropped == {Loss.TOO_MANY_PROCESSES: 7}
    [event] = out.of(EventType.RESOURCE)
    assert (event["host"], event["time_unix_s"], event["metrics"]) == ("here", 5.0, {"up": 1.0})


def test_page_is_read_where_the_settings_name_one(tmp_path: Path) -> None:
    agent = {"sources": ["gpu"], "gpu": {"dcgm_url": "http://127.0.0.1:1/metrics"}}
    [source] = sources_of(load(data_dir=tmp_path, agent=agent))
    assert isinstance(source, GpuSource)
    assert isinstance(source._eye, Dcgm)


def test_check_says_what_each_gpu_tells_and_what_not(nvml: Nvml, tmp_path: Path) -> None:
    told = {name: value for name, value in FULL.items() if name not in ("fan", "events")}
    nvml.say({"count": 2} | gpu(0, **told, compute__0="!4") | gpu(1, lost=15))
    settings = GpuSettings(pod_resources=tmp_path / "kubelet.sock")
    findings = {finding.what: finding for finding in check(settings, tmp_path, 0.0)}
    assert "GPU 1: " in findings["GPUs"].detail
    name = "GPU 0 (NVIDIA H100 80GB HBM3)"
    assert findings[name].seen
    assert findings[name].detail == f"{uuid(0)}: 61 measurements"
    absent = {what: found.detail for what, found in findings.items() if what.startswith(f"{name}: ")}
    assert "fan_fraction" in next(what for what, why in absent.items() if why == "Not Supported")
    assert absent[f"{name}: compute_processes"] == "Insufficient Permissions"
    assert not findings[f"XID errors of {name}"].seen
    assert findings["which pods hold GPUs"].fix


def test_check_says_what_to_do_where_there_are_gpus_and_no_driver(nvml: Nvml, tmp_path: Path) -> None:
    for number, (vendor, class_) in enumerate([("0x10de", "0x030200"), ("0x10de", "0x040300"), ("0x1002", "0x030000")]):
        device = tmp_path / "bus/pci/devices" / f"0000:0{number}:00.0"
        device.mkdir(parents=True)
        (device / "vendor").write_text(vendor + "\n")
        (device / "class").write_text(class_ + "\n")
    assert gpus_on_bus(tmp_path) == 1
    nvml.say({"init": "!9"})
    [finding] = check(GpuSettings(), tmp_path, 0.0)
    assert (finding.seen, finding.detail) == (False, "NVML: Driver Not Loaded")
    assert "NVIDIA_DRIVER_CAPABILITIES" in (finding.fix or "")
    [finding] = check(GpuSettings(), tmp_path / "none", 0.0)
    assert finding.fix is None


PROGRAM = """
import os, sys
from pathlib import Path
from streammon.config import GpuSettings
from streammon_agents.gpu.gpus import Gpus
from streammon.backoff import Backoff
from streammon_agents.gpu.session import Session

gpus = Gpus(GpuSettings(pod_resources=None), 1.0, Path("/proc"), session=Session(Backoff(first_s=0.0)))
def told():
    seen = gpus.measure()
    return [(thing.id, thing.metrics["up"]) for thing in seen.things], seen.why
print(told(), "pynvml" in sys.modules)
"""


def test_driver_is_found_as_the_loader_finds_libraries_and_costs_nothing_where_there_is_none(tmp_path: Path) -> None:
    said = Nvml(tmp_path / "nvml")
    said.say({"count": 1} | gpu(0, **FULL))
    environment = {**os.environ, "NVML_STUB": str(said.path)}

    def printed(**more: str) -> str:
        command = [sys.executable, "-c", PROGRAM]
        return subprocess.run(command, env=environment | more, capture_output=True, text=True, check=True).stdout

    assert printed(LD_LIBRARY_PATH=str(gpus.library().parent)) == f"([('{uuid(0)}', 1.0)], None) True\n"
    none = printed()
    assert none.startswith("([], 'there is no NVIDIA driver here: libnvidia-ml.so.1: ")
    assert none.endswith(" False\n"), "the binding is not even loaded"
