"""NVML opened, lost and opened again: which GPUs are there, and which are missing.

NVML sees a GPU come back, or a driver that was loaded anew, only when it is shut down and opened once more. So it is,
ever more seldom, for as long as a GPU is missing that was there before; the others are asked all the while.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from ctypes import CDLL
from typing import Final

from streammon.backoff import Backoff
from streammon_agents.gpu.devices import Device, LibraryGoneError, NoDriverError, devices, raise_if_gone
from streammon_agents.gpu.questions import Nvml
from streammon_agents.gpu.xids import Watcher, Xid

RETRY: Final = Backoff(first_s=2.0, longest_s=60.0)
LIBRARY: Final = "libnvidia-ml.so.1"


class Session:
    """``gpus``: those that answer now."""

    def __init__(self, retry: Backoff = RETRY) -> None:
        self._retry = retry
        self._nvml: Nvml = None
        self._watcher: Watcher | None = None
        self._xids: Counter[Xid] = Counter()
        self._known: dict[str, Mapping[str, str]] = {}
        self._failures = 0
        self._retry_s: float | None = float("-inf")
        self._why: dict[str, str] = {}
        self.gpus: list[Device] = []
        self.never_was = False
        """Whether there is no driver, and never was a GPU."""

    def tend(self, now_s: float) -> None:
        """Open NVML if it is not, or again where something is missing and it is time."""
        if self._retry_s is None or now_s < self._retry_s:
            return
        self._shut()
        try:
            self._open(load())
            self.never_was = False
        except LibraryGoneError as error:
            self.fail(error, now_s)
            return
        if self.missing or self._why:
            self._try_later(now_s)
        else:
            self._failures, self._retry_s = 0, None

    def _open(self, nvml: Nvml) -> None:
        try:
            nvml.nvmlInit()
            self._nvml = nvml
            self.gpus, not_opened = devices(nvml)
            self._watcher = Watcher(nvml, self.gpus)
        except nvml.NVMLError as error:
            raise_if_gone(error)
            raise LibraryGoneError(f"NVML: {error}") from error
        self._watcher.start()
        self._known |= {gpu.id: gpu.labels for gpu in self.gpus}
        self._why = {id_: f"{called(labels)} is gone" for id_, labels in self.missing.items()}
        self._why |= {why: why for why in not_opened}
        if not self.gpus and not self._why:
            self._why = {"": "the driver knows no GPU here"}

    def lose(self, gpu: Device, error: Exception, now_s: float) -> None:
        """A GPU answers no more."""
        self.gpus.remove(gpu)
        self._why[gpu.id] = f"{called(gpu.labels)}: {error}"
        if self._retry_s is None:
            self._try_later(now_s)

    def fail(self, error: Exception, now_s: float) -> None:
        """None answers any more."""
        self._shut()
        self.never_was = isinstance(error, NoDriverError) and not self._known
        self._why = {"": str(error)}
        self._try_later(now_s)

    def _try_later(self, now_s: float) -> None:
        self._retry_s = now_s + self._retry.pause_s(self._failures)
        self._failures += 1

    @property
    def missing(self) -> Mapping[str, Mapping[str, str]]:
        """The labels of those that were there and are not."""
        there = {gpu.id for gpu in self.gpus}
        return {id_: labels for id_, labels in self._known.items() if id_ not in there}

    @property
    def why(self) -> list[str]:
        """What is not seen now, and why."""
        return list(self._why.values())

    @property
    def watched(self) -> frozenset[str]:
        """GPUs whose XIDs are counted."""
        return self._watcher.watched if self._watcher is not None else frozenset()

    @property
    def unwatched(self) -> Mapping[str, str]:
        """GPUs that tell no XIDs, and why."""
        return self._watcher.unwatched if self._watcher is not None else {}

    def take_xids(self) -> Counter[Xid]:
        """The XIDs since the last call."""
        if self._watcher is not None:
            self._xids += self._watcher.take()
        xids, self._xids = self._xids, Counter()
        return xids

    def close(self) -> None:
        """Let NVML go until it is asked for again. While it is open no GPU can be reset, and no driver be unloaded."""
        self._shut()
        self._retry_s = float("-inf")

    def _shut(self) -> None:
        watcher, self._watcher, nvml, self._nvml, self.gpus = self._watcher, None, self._nvml, None, []
        if watcher is not None:
            ended = watcher.stop()
            self._xids += watcher.take()
            if not ended:
                return
        if nvml is not None:
            with suppress(nvml.NVMLError):
                nvml.nvmlShutdown()


def load() -> Nvml:
    """The binding, where there is a library for it: else it would be megabytes for nothing."""
    try:
        CDLL(LIBRARY)
    except OSError as error:
        raise NoDriverError(f"there is no NVIDIA driver here: {error}") from None
    try:
        import pynvml
    except ImportError:
        raise LibraryGoneError("the package nvidia-ml-py is missing: pip install 'streammon[agent]'") from None
    return pynvml


def called(labels: Mapping[str, str]) -> str:
    """A GPU as people call it."""
    return f"GPU {labels.get('index', '?')} ({labels.get('name', 'unknown')})"
