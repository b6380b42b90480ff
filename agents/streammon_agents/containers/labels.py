"""What people call a container: its name, its pod and the pod's namespace.

A cgroup has only ids. On a node of Kubernetes the names are in the names of files that the kubelet makes::

    /var/log/pods/NAMESPACE_POD_UID/CONTAINER/0.log
    /var/log/containers/POD_NAMESPACE_CONTAINER-ID.log

or in the kubelet's answer to ``/pods``, where ``agent.containers.kubelet_url`` is given; where Docker runs by itself,
in its own files. They are read when somebody asks for a container that is not known, at most every few seconds. Until
they tell, a container has its ids alone.
"""

from __future__ import annotations

import json
import os
import re
import ssl
import threading
import time
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from streammon.config import ContainerSettings
from streammon_agents.containers.identity import Container
from streammon_agents.kernel_files import read_text

Labels = Callable[[Container | None], dict[str, str]]

PAUSE_S = 5.0
"""Not more often than that is looked for who is not known."""
MOST_BYTES = 16 * 1024**2
"""No answer of a kubelet is read further: that of 250 pods has about 2 MB."""
TIMEOUT_S = 2.0


class Names(NamedTuple):
    """By what they are known to runtimes: pods by uid, containers by their whole id."""

    pods: Mapping[str, tuple[str, str]]
    """Namespace and name."""
    containers: Mapping[str, str]


NONE = Names({}, {})


def labels_of(container: Container, names: Names = NONE) -> dict[str, str]:
    """What is known about a container, for events of whoever has something to do with it."""
    namespace, pod = names.pods.get(container.pod_uid or "", (None, None))
    labels = {
        "container": names.containers.get(container.full_id),
        "pod": pod,
        "namespace": namespace,
        "pod_uid": container.pod_uid,
        "qos": container.qos,
        "runtime": container.runtime,
    }
    return {name: _text(value) for name, value in labels.items() if value}


def _text(value: str) -> str:
    """Names of files, and JSON, may hold what cannot be sent."""
    return value if value.isascii() else value.encode(errors="replace").decode()


def no_labels(container: Container | None) -> dict[str, str]:
    """The ids alone."""
    return {} if container is None else {"container_id": container.id, **labels_of(container)}


# --- where names are --------------------------------------------------------------------------------------

_LOG = re.compile(r"([^_]+)_([^_]+)_(.+)-([0-9a-f]{64})[.]log")
_POD_LOGS = re.compile(r"([^_]+)_([^_]+)_([0-9a-f-]{32,36})")


def from_logs(rootfs: str) -> Names:
    """By the names of log files. Nothing where there are none."""
    pods = filter(None, map(_POD_LOGS.fullmatch, _listed(f"{rootfs}/var/log/pods")))
    logs = filter(None, map(_LOG.fullmatch, _listed(f"{rootfs}/var/log/containers")))
    return Names({found[3]: (found[1], found[2]) for found in pods}, {found[4]: found[3] for found in logs})


def _listed(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:
        return []


def from_kubelet(answer: bytes) -> Names:
    """Of the ``PodList`` that a kubelet answers to ``/pods``. Raises ValueError where it is none."""
    pods, containers = {}, {}
    for pod in _items(json.loads(answer), "items"):
        about, status = _dict(pod, "metadata"), _dict(pod, "status")
        uid, namespace, name = (about.get(key) for key in ("uid", "namespace", "name"))
        if isinstance(uid, str) and isinstance(namespace, str) and isinstance(name, str):
            annotations = _dict(about, "annotations")
            pods[uid] = namespace, name
            if isinstance(hash_ := annotations.get("kubernetes.io/config.hash"), str):  # the cgroup of a static pod
                pods[hash_] = namespace, name
        for kind in ("containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses"):
            for one in _items(status, kind):
                id_, called = one.get("containerID"), one.get("name")
                if isinstance(id_, str) and isinstance(called, str):
                    containers[id_.rpartition("//")[2]] = called
    return Names(pods, containers)


def _items(within: Any, name: str) -> list[dict[str, Any]]:
    if not isinstance(within, dict):
        raise ValueError("not a list of pods")  # noqa: TRY004 - as for any answer that is not one
    items = within.get(name) or []
    return [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []


def _dict(within: dict[str, Any], name: str) -> dict[str, Any]:
    found = within.get(name)
    return found if isinstance(found, dict) else {}


def from_docker(rootfs: str, full_id: str) -> str | None:
    """The name of a container that Docker runs by itself. Its file holds more, secrets too: only the name is taken."""
    try:
        name = json.loads(read_text(f"{rootfs}/var/lib/docker/containers/{full_id}/config.v2.json") or "{}").get("Name")
    except (ValueError, AttributeError, RecursionError):
        return None
    return name.removeprefix("/") or None if isinstance(name, str) else None


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """The token is for the kubelet alone."""

    def redirect_request(self, *_: Any) -> None:
        return None


def ask_kubelet(settings: ContainerSettings) -> bytes:
    """What it answers to ``/pods``. Raises OSError or ValueError."""
    request = urllib.request.Request(f"{str(settings.kubelet_url).rstrip('/')}/pods")  # noqa: S310 - settings check it
    if settings.kubelet_token_file is not None:  # read each time: it is renewed every hour
        request.add_header("Authorization", f"Bearer {settings.kubelet_token_file.read_text().strip()}")
    context = ssl.create_default_context(cafile=settings.kubelet_ca_file) if request.type == "https" else None
    handlers = [urllib.request.ProxyHandler({}), _NoRedirects(), urllib.request.HTTPSHandler(context=context)]
    with urllib.request.build_opener(*handlers).open(request, timeout=TIMEOUT_S) as answer:
        body: bytes = answer.read(MOST_BYTES + 1)
    if len(body) > MOST_BYTES:
        raise ValueError(f"the answer is longer than {MOST_BYTES} bytes")
    return body


# --- asked for --------------------------------------------------------------------------------------------


class Known:
    """Looks names up, and keeps them. The kubelet is asked in a thread: nobody waits for it."""

    def __init__(
        self,
        rootfs: str,
        settings: ContainerSettings,
        *,
        ask: Callable[[ContainerSettings], bytes] = ask_kubelet,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rootfs, self._settings, self._ask, self._monotonic = rootfs.rstrip("/"), settings, ask, monotonic
        self._logs, self._kubelet, self._names = NONE, NONE, NONE
        self._looked_at: float | None = None
        self._asking: threading.Thread | None = None
        self._docker: dict[str, str | None] = {}
        self.complaint: str | None = None
        """Why the kubelet does not tell, if it was to."""

    def labels(self, container: Container | None) -> dict[str, str]:
        """With the id: for processes, which are in a container."""
        return {} if container is None else {"container_id": container.id, **self.of(container)}

    def of(self, container: Container) -> dict[str, str]:
        """Without the id: for the container itself."""
        if container.pod_uid is None:
            return labels_of(container, self._of_docker(container.full_id))
        if container.full_id not in self._names.containers or container.pod_uid not in self._names.pods:
            self._look()
        return labels_of(container, self._names)

    def pod(self, uid: str) -> dict[str, str]:
        """Of a pod itself."""
        if uid not in self._names.pods:
            self._look()
        namespace, pod = self._names.pods.get(uid, ("", ""))
        return {name: value for name, value in (("pod", pod), ("namespace", namespace), ("pod_uid", uid)) if value}

    def _of_docker(self, full_id: str) -> Names:
        if full_id not in self._docker:
            if len(self._docker) >= 10_000:
                self._docker.clear()
            self._docker[full_id] = from_docker(self._rootfs, full_id)
        name = self._docker[full_id]
        return Names({}, {full_id: name}) if name else NONE

    def _look(self) -> None:
        now = self._monotonic()
        if self._looked_at is not None and now - self._looked_at < PAUSE_S:
            return
        self._looked_at = now
        self._logs = from_logs(self._rootfs)
        self._put_together()
        if self._settings.kubelet_url is not None and (self._asking is None or not self._asking.is_alive()):
            self._asking = threading.Thread(target=self._ask_kubelet, name="kubelet", daemon=True)
            self._asking.start()

    def _ask_kubelet(self) -> None:
        try:
            self._kubelet = from_kubelet(self._ask(self._settings))
        except (OSError, ValueError, RecursionError) as error:
            self.complaint = f"the kubelet at {self._settings.kubelet_url} does not tell about its pods: {error}"
            return
        self.complaint = None
        self._put_together()

    def _put_together(self) -> None:
        logs, kubelet = self._logs, self._kubelet
        self._names = Names({**logs.pods, **kubelet.pods}, {**logs.containers, **kubelet.containers})
