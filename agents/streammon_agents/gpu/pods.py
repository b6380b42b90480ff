"""Which pod holds which GPU: the kubelet says it on a socket of its node (PodResources v1, ``List``).

No rights in the cluster are needed for it, only the socket's directory as a host mount. Names of devices are the
device plugin's own; what the plugins of NVIDIA and of Google's Kubernetes call GPUs, MIG instances and shares of both
is understood. A device that several pods share is held by none of them alone, and gets no names.

Claims of dynamic resource allocation name no device that NVML knows, and are not followed.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple

from streammon_agents.gpu.devices import Device

TIMEOUT_S: Final = 2.0
MAX_BYTES: Final = 16 * 1024**2
METHOD: Final = "/v1.PodResourcesLister/List"


class Holder(NamedTuple):
    """A container of a pod, by its names."""

    namespace: str
    pod: str
    container: str


class Held(NamedTuple):
    """A device of a plugin, and who holds it."""

    resource: str
    device_id: str
    holder: Holder


class Pods:
    """The kubelet's answer of the last `refresh`."""

    def __init__(self, socket: Path | None, list_: Callable[[Path], Iterable[Held]] | None = None) -> None:
        self._socket, self._list = socket, list_ or held
        self._holders: dict[str, set[Holder]] = {}
        self.why: str | None = None
        """Why nothing is known, where there is a kubelet."""

    def refresh(self) -> None:
        """Ask again. On a node without a kubelet nothing is known, and nothing is wrong."""
        if self._socket is None or not self._socket.exists():
            self._holders, self.why = {}, None
            return
        try:
            self._holders, self.why = _by_device(self._list(self._socket)), None
        except Exception as error:  # whatever it is, GPUs are seen without the names of pods
            self._holders, self.why = {}, f"{self._socket}: the kubelet does not say who holds what: {_short(error)}"

    def labels(self, device: Device) -> dict[str, str]:
        """Names of the only container that holds this device; an instance of a GPU held whole is held, too."""
        holders = set().union(*(self._holders.get(name, set()) for name in names(device)))
        return next(iter(holders))._asdict() if len(holders) == 1 else {}


def names(device: Device) -> list[str]:
    """What plugins call a device, as `name_of` puts it."""
    if device.parent is None:
        return [device.id, device.labels.get("index", device.id)]
    parts = [f"{name}/{device.instance}" for name in names(device.parent)]
    return [device.id, *parts, *names(device.parent)]


_UUID = re.compile(r"(?:GPU|MIG)-[0-9a-fA-F-]{36}")
_OLD_INSTANCE = re.compile(r"MIG-(GPU-[0-9a-fA-F-]{36})/(\d+)/\d+")
_GKE = re.compile(r"nvidia(\d+)(?:/gi(\d+))?(?:/vgpu\d+)?")


def name_of(device_id: str) -> str | None:
    """A GPU or a MIG instance by its UUID or index: ``UUID``, ``INDEX``, ``UUID/INSTANCE`` or ``INDEX/INSTANCE``.

    >>> name_of("GPU-5fd4f087-0000-0000-0000-98d15cbe6f5f::2")  # a share of it
    'GPU-5fd4f087-0000-0000-0000-98d15cbe6f5f'
    >>> name_of("nvidia0/gi3/vgpu1")
    '0/3'
    """
    whole = device_id.partition("::")[0]
    if _UUID.fullmatch(whole) or whole.isdecimal():
        return whole
    found = _OLD_INSTANCE.fullmatch(whole) or _GKE.fullmatch(whole)
    return "/".join(filter(None, found.groups())) if found else None


def _by_device(all_held: Iterable[Held]) -> dict[str, set[Holder]]:
    holders: dict[str, set[Holder]] = defaultdict(set)
    for one in all_held:
        if one.resource.startswith("nvidia.com/") and (name := name_of(one.device_id)) is not None:
            holders[name].add(one.holder)
    return holders


def _short(error: Exception) -> str:
    """gRPC's errors fill a screen; their details are a line."""
    details = getattr(error, "details", None)
    return str(details() if callable(details) else error) or repr(error)


# --- the kubelet ------------------------------------------------------------------------------------------


def held(socket: Path) -> list[Held]:
    """Ask the kubelet. Raises ImportError without grpcio, and what gRPC raises."""
    import grpc

    options = [
        ("grpc.max_receive_message_length", MAX_BYTES),
        ("grpc.default_authority", "localhost"),  # else the path of the socket, which a server of Go's may refuse
    ]
    with grpc.insecure_channel(f"unix:{socket}", options=options) as channel:
        ask: Any = channel.unary_unary(METHOD, lambda _: b"", _message("ListPodResourcesResponse").FromString)
        answer = ask(None, timeout=TIMEOUT_S)
    return [
        Held(devices.resource_name, device_id, Holder(pod.namespace, pod.name, container.name))
        for pod in answer.pod_resources
        for container in pod.containers
        for devices in container.devices
        for device_id in devices.device_ids
    ]


_MESSAGES: Final[Mapping[str, tuple[tuple[str, int, str], ...]]] = {
    "ContainerDevices": (("resource_name", 1, "string"), ("device_ids", 2, "string*")),
    "ContainerResources": (("name", 1, "string"), ("devices", 2, "ContainerDevices*")),
    "PodResources": (("name", 1, "string"), ("namespace", 2, "string"), ("containers", 3, "ContainerResources*")),
    "ListPodResourcesResponse": (("pod_resources", 1, "PodResources*"),),
}
"""The part of ``k8s.io/kubelet/pkg/apis/podresources/v1`` that is read here; ``*``: repeated."""


@cache
def _message(name: str) -> Any:
    """The class of a message, made without a compiler."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    kinds = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="streammon/podresources.proto", package="v1", syntax="proto3")
    for message, fields in _MESSAGES.items():
        described = file.message_type.add(name=message)
        for field, number, kind in fields:
            type_ = kind.removesuffix("*")
            label = kinds.LABEL_REPEATED if kind.endswith("*") else kinds.LABEL_OPTIONAL
            if type_ == "string":
                described.field.add(name=field, number=number, label=label, type=kinds.TYPE_STRING)
            else:
                named = f".v1.{type_}"
                described.field.add(name=field, number=number, label=label, type=kinds.TYPE_MESSAGE, type_name=named)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"v1.{name}"))
