"""One GPU, or one MIG instance of one, while NVML is open: what it answers, what it does not, and why.

Any call may fail by itself. What is not supported or not permitted is absent and asked for again after `AGAIN_S`,
because a driver may be told otherwise meanwhile; what fails in another way, sooner. Two kinds of failure are not the
question's but everybody's: `DeviceGoneError` ends this device, `LibraryGoneError` all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from streammon_agents.gpu.questions import Field, Handle, Nvml, Question, Values, values_of

LIBRARY_GONE: Final = frozenset({1, 9, 18})
"""UNINITIALIZED (after a fork, or a reload of the driver), DRIVER_NOT_LOADED, LIB_RM_VERSION_MISMATCH."""
DEVICE_GONE: Final = frozenset({15, 16, 28})
"""GPU_IS_LOST, RESET_REQUIRED, GPU_NOT_FOUND."""
LASTING: Final = frozenset({2, 3, 4, 13, 22, 25, 26})
"""INVALID_ARGUMENT, NOT_SUPPORTED, NO_PERMISSION, FUNCTION_NOT_FOUND and the like: as it is, it stays."""
AGAIN_S: Final = 600.0
SOON_S: Final = 10.0


class LibraryGoneError(Exception):
    """Nothing can be asked any more until NVML is opened anew."""


class NoDriverError(LibraryGoneError):
    """There is no driver: on most machines because there is no GPU."""


class DeviceGoneError(Exception):
    """This GPU is not there any more, or can only be reset."""


def raise_if_gone(error: Any) -> None:
    """Raise what an ``NVMLError`` means for more than the question at hand."""
    if error.value in LIBRARY_GONE:
        hint = "; the agent has the library of another driver: restart it" if error.value == 18 else ""
        raise LibraryGoneError(f"NVML: {error}{hint}") from error
    if error.value in DEVICE_GONE:
        raise DeviceGoneError(str(error)) from error


MAX_INSTANCES: Final = 64
"""MIG instances of one GPU; there are seven at most today."""


class Answers(NamedTuple):
    """Values of now, and totals since some beginning."""

    values: Values
    totals: Values


class Device:
    """``id``: its UUID. ``parent``: of a MIG instance, the GPU it is part of."""

    def __init__(
        self, nvml: Nvml, handle: Handle, id_: str, labels: Mapping[str, str], parent: Device | None = None
    ) -> None:
        self.nvml, self.handle, self.id, self.labels, self.parent = nvml, handle, id_, dict(labels), parent
        self.instance: str | None = None
        """Of a MIG instance, the number of its GPU instance."""
        self.parts: list[Device] = []
        """The MIG instances of a GPU, when it was last asked for them."""
        self.asked = False
        """Whether everything was asked of it once."""
        self._absent: dict[str, tuple[float, str]] = {}

    @property
    def absent(self) -> Mapping[str, str]:
        """What is not told, and why."""
        return {name: why for name, (_, why) in self._absent.items()}

    def ask(self, questions: Sequence[Question], fields: Sequence[Field], now_s: float) -> Answers:
        """Whatever is answered. Raises DeviceGoneError and LibraryGoneError."""
        answers = Answers({}, {})
        for question in questions:
            found = self.try_(question.name, now_s, question.ask)
            (answers.totals if question.total else answers.values).update(found or {})
        for field, value in self._fields(fields, now_s):
            (answers.totals if field.total else answers.values)[field.metric] = value
        return answers

    def try_(self, name: str, now_s: float, ask: Any) -> Any:
        """``ask(nvml, handle)``; None while it is known to be absent."""
        if self._absent and now_s < self._absent.get(name, (0.0, ""))[0]:
            return None
        try:
            answer = ask(self.nvml, self.handle)
        except self.nvml.NVMLError as error:
            raise_if_gone(error)
            self._without(name, now_s, error)
            return None
        self._absent.pop(name, None)
        return answer

    def _fields(self, fields: Sequence[Field], now_s: float) -> Iterator[tuple[Field, float]]:
        due = [field for field in fields if now_s >= self._absent.get(field.metric, (0.0, ""))[0]]
        if not due:
            return
        for field, value, error in (
            self.try_("fields", now_s, lambda nvml, handle: list(values_of(nvml, handle, due))) or ()
        ):
            if error:
                failure = self.nvml.NVMLError(error)
                raise_if_gone(failure)
                self._without(field.metric, now_s, failure)
            else:
                self._absent.pop(field.metric, None)
                yield field, value

    def _without(self, name: str, now_s: float, error: Any) -> None:
        self._absent[name] = now_s + (AGAIN_S if error.value in LASTING else SOON_S), str(error)


def devices(nvml: Nvml) -> tuple[list[Device], list[str]]:
    """All GPUs that can be opened, and what was said of the others. Raises ``NVMLError`` if none can be counted."""
    found, why = [], []
    for index in range(nvml.nvmlDeviceGetCount()):
        try:
            found.append(_device(nvml, index))
        except nvml.NVMLError as error:
            why.append(f"GPU {index}: {error}")
    return found, why


def _device(nvml: Nvml, index: int) -> Device:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    labels = {
        "index": str(index),
        "name": _text(nvml, nvml.nvmlDeviceGetName, handle),
        "pci_bus_id": _text(nvml, lambda gpu: nvml.nvmlDeviceGetPciInfo(gpu).busId, handle),
    }
    return Device(
        nvml, handle, nvml.nvmlDeviceGetUUID(handle), {name: value for name, value in labels.items() if value}
    )


def _text(nvml: Nvml, call: Any, handle: Handle) -> str:
    """Nothing, where it is not told: a GPU is known by its UUID alone."""
    try:
        text = call(handle)
    except nvml.NVMLError:
        return ""
    return text.decode(errors="replace") if isinstance(text, bytes) else str(text)


def instances(gpu: Device, now_s: float) -> list[Device]:
    """The MIG instances of a GPU as they are now; they come and go while NVML is open."""
    if (gpu.try_("mig", now_s, lambda nvml, handle: nvml.nvmlDeviceGetMigMode(handle)) or [0])[0] == 0:
        return []
    most = gpu.try_("instances", now_s, lambda nvml, handle: nvml.nvmlDeviceGetMaxMigDeviceCount(handle)) or 0
    return [found for index in range(min(most, MAX_INSTANCES)) if (found := _instance(gpu, index))]


def _instance(gpu: Device, index: int) -> Device | None:
    nvml = gpu.nvml
    try:
        handle = nvml.nvmlDeviceGetMigDeviceHandleByIndex(gpu.handle, index)
        id_, name = nvml.nvmlDeviceGetUUID(handle), nvml.nvmlDeviceGetName(handle)
        instance = str(nvml.nvmlDeviceGetGpuInstanceId(handle))
    except nvml.NVMLError as error:
        raise_if_gone(error)
        return None  # numbers are not without gaps, and an instance may be taken apart at any moment
    profile = name.rpartition(" MIG ")[2]
    labels = gpu.labels | {"parent": gpu.id, "mig_profile": profile, "mig_instance": instance}
    device = Device(nvml, handle, id_, labels, gpu)
    device.instance = instance
    return device
