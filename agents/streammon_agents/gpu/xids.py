"""XID errors: what the driver writes about a GPU into the kernel's log, counted as NVML delivers it.

A thread of its own waits for them, so that each is seen with its number and the beat waits for none. NVML does not
deliver all: a GPU that falls off the bus (79) often says nothing any more, and is seen by its silence.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from ctypes import c_void_p, cast
from typing import Any, Final, NamedTuple

from streammon_agents.gpu.devices import LIBRARY_GONE, Device
from streammon_agents.gpu.questions import Nvml, Values

WAIT_MS: Final = 250
"""One wait; so long the end of the agent may wait for the thread."""
PAUSE_S: Final = 1.0
"""After a wait that failed."""
MAX_KINDS: Final = 1000
"""Pairs of a device and an XID that are told apart between two beats."""
OF_APPLICATIONS: Final = frozenset({13, 31, 43, 45, 68, 109})
"""XIDs that a faulty program causes, by which no GPU is any worse. NVIDIA's device plugin for Kubernetes passes over
the same ones."""
_NO_INSTANCE: Final = 0xFFFFFFFF


class Xid(NamedTuple):
    """``instance``: the number of the MIG instance, where it is only about one."""

    gpu: str
    instance: str | None
    number: int


class Watcher:
    """Waits for the XIDs of some GPUs from `start` to `stop`, within one life of NVML."""

    def __init__(self, nvml: Nvml, gpus: Sequence[Device]) -> None:
        self._nvml = nvml
        self._lock, self._stopping = threading.Lock(), threading.Event()
        self._seen: Counter[Xid] = Counter()
        self._events: Any = None
        self.unwatched: dict[str, str] = {}
        """GPUs that tell no XIDs, and why."""
        self._gpus = {_address(gpu.handle): gpu.id for gpu in gpus if self._register(gpu)}
        self._thread = threading.Thread(target=self._run, name="streammon-xids", daemon=True)

    @property
    def watched(self) -> frozenset[str]:
        return frozenset(self._gpus.values())

    def _register(self, gpu: Device) -> bool:
        nvml = self._nvml
        try:
            self._events = self._events or nvml.nvmlEventSetCreate()
            nvml.nvmlDeviceRegisterEvents(gpu.handle, nvml.nvmlEventTypeXidCriticalError, self._events)
        except nvml.NVMLError as error:
            self.unwatched[gpu.id] = str(error)
            return False
        return True

    def start(self) -> None:
        if self._gpus:
            self._thread.start()

    def take(self) -> Counter[Xid]:
        """What was seen since the last call."""
        with self._lock:
            seen, self._seen = self._seen, Counter()
        return seen

    def stop(self) -> bool:
        """End the thread; False: NVML keeps it, and must not be shut down under it."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join(4 * WAIT_MS / 1000)
        if self._thread.is_alive():
            return False
        if self._events is not None:
            with suppress(self._nvml.NVMLError):
                self._nvml.nvmlEventSetFree(self._events)
        return True

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._count(self._nvml.nvmlEventSetWait(self._events, WAIT_MS))
            except self._nvml.NVMLError as error:
                if error.value in LIBRARY_GONE:
                    return  # the beat hears the same, and opens it again
                if error.value != self._nvml.NVML_ERROR_TIMEOUT:
                    self._stopping.wait(PAUSE_S)

    def _count(self, event: Any) -> None:
        gpu = self._gpus.get(_address(event.device))
        if gpu is None:
            return
        instance = None if event.gpuInstanceId == _NO_INSTANCE else str(event.gpuInstanceId)
        xid = Xid(gpu, instance, int(event.eventData))
        with self._lock:
            if xid not in self._seen and len(self._seen) >= MAX_KINDS:
                xid = Xid(gpu, None, 999)  # NVML's own number for one that it does not know
            self._seen[xid] += 1


def counters(xids: Counter[Xid]) -> Values:
    """All XIDs, those that are not an application's fault, and each by its number."""
    values = {"xid_errors": float(xids.total())}
    values["xid_hardware_errors"] = float(
        sum(count for xid, count in xids.items() if xid.number not in OF_APPLICATIONS)
    )
    for xid, count in xids.items():
        name = f"xid_{xid.number}_errors"
        values[name] = values.get(name, 0.0) + count
    return values


def _address(handle: Any) -> int:
    return cast(handle, c_void_p).value or 0
