"""GPUs for tests: a ``libnvidia-ml.so.1`` of our own that says what a test wants, loaded by the real binding.

The stub (``agents/gpu/nvml_stub.c``) is compiled once, against NVIDIA's header. It is found by its soname from then on,
as the driver's library would be; while no test uses it, it says that no driver is loaded.
"""

from __future__ import annotations

import atexit
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import CDLL, c_char_p
from functools import cache
from importlib.metadata import distribution
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent / "agents" / "gpu" / "nvml_stub.c"

Line = float | str | None


class Nvml:
    """What the stub says, line by line; `say` changes it at once, as a GPU changes: whenever it likes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lines: dict[str, Line] = {}
        self._xids: list[str] = []

    def say(self, lines: dict[str, Line]) -> None:
        """Change some lines; None takes one away."""
        self._lines |= lines
        text = [f"{key} {value}" for key, value in self._lines.items() if value is not None]
        written = self.path.with_suffix(".new")
        written.write_text("\n".join([*text, *self._xids]) + "\n")
        written.replace(self.path)

    def xid(self, gpu: int, number: int, instance: int | None = None) -> None:
        """Let an XID error happen."""
        self._xids.append(f"xid {gpu} {number}" + ("" if instance is None else f" {instance}"))
        self.say({})


@cache
def library() -> Path:
    """The compiled stub. Without a compiler the test is skipped, or fails where servers are required."""
    compiler = shutil.which("cc")
    if compiler is None:
        why = "there is no C compiler (cc) to make the stub of NVML with"
        if os.environ.get("STREAMMON_REQUIRE_SERVERS") == "1":
            pytest.fail(f"STREAMMON_REQUIRE_SERVERS=1, but: {why}", pytrace=False)
        pytest.skip(why)
    header = distribution("nvidia-nvml-dev-cu12").locate_file("nvidia/nvml_dev/include")
    directory = tempfile.mkdtemp(prefix="streammon-nvml-")
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    made = Path(directory) / "libnvidia-ml.so.1"
    flags = ["-Wall", "-O1", "-shared", "-fPIC", "-Wl,-soname,libnvidia-ml.so.1", "-pthread"]
    subprocess.run([compiler, *flags, f"-I{header}", "-o", made, SOURCE], check=True)
    return made


@cache
def _loaded() -> CDLL:
    stub = CDLL(str(library()))
    stub.stub_use.argtypes = [c_char_p]
    return stub


@contextmanager
def nvml(directory: Path) -> Iterator[Nvml]:
    """The stub in use by this process, with no GPU yet."""
    said = Nvml(directory / "nvml")
    stub = _loaded()
    said.say({"driver": "570.86.15", "count": 0})
    stub.stub_use(bytes(said.path))
    try:
        yield said
    finally:
        stub.stub_use(None)


def gpu(index: int, **more: Line) -> dict[str, Line]:
    """A GPU that has a UUID, a name, a bus and whatever else is given; ``__`` for a dot."""
    lines: dict[str, Line] = {
        "uuid": uuid(index),
        "name": "NVIDIA H100 80GB HBM3",
        "pci": f"00000000:{index + 1:02X}:00.0",
    }
    lines |= {name.replace("__", "."): value for name, value in more.items()}
    return {f"{index}.{name}": value for name, value in lines.items()}


def uuid(index: int) -> str:
    return f"GPU-{index:08x}-0000-4000-8000-000000000000"


FULL: dict[str, Line] = {
    "utilization": "87 41",
    "encoder": 12,
    "decoder": 3,
    "jpg": 1,
    "ofa": 2,
    "memory_v2": "85899345920 64424509440 20937965568 536870912",
    "temperature": 67,
    "threshold__1": 89,
    "power": 612345,
    "power_limit": 700000,
    "clock__0": 1755,
    "clock__1": 1740,
    "clock__2": 2619,
    "clock__3": 1545,
    "throttle": 0x4,
    "pstate": 0,
    "fan": 30,
    "field__83": 5_000_000,
    "field__82": 74,
    "field__74": 7_000_000_000,
    "field__75": 0,
    "field__29": 1,
    "field__30": 0,
    "field__31": 0,
    "field__138__4294967295": 1000,
    "field__139__4294967295": 2000,
    "field__38": 0,
    "field__45": 0,
    "field__52": 4,
    "field__59": 0,
    "field__230": 0,
    "field__163": 6,
    "field__163__1": 7,
    "field__161": 0,
    "field__162": 0,
    "ecc__0__0": 3,
    "ecc__1__0": 0,
    "ecc__0__1": 40,
    "ecc__1__1": 2,
    "remapped": "2 1 1 0",
    "pcie_replays": 5,
    "pcie_width": 16,
    "pcie_width_max": 16,
    "pcie_generation": 4,
    "pcie_generation_max": 5,
    "pcie_throughput__0": 1200,
    "pcie_throughput__1": 3400,
    "nvlink__0": 1,
    "nvlink__1": 1,
    "nvlink__2": 0,
    "events": 0x1F,
}
"""A GPU that answers everything, with figures that are told apart."""
