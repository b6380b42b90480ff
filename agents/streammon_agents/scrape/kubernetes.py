"""Discovery of the pods of this node, by the API server of the cluster that the agent runs in.

The server is asked for the pods whose ``spec.nodeName`` is this node, then told to say what changes (list and watch),
so it has no more work than with the node's own kubelet. The service account of the agent needs ``list`` and ``watch``
on ``pods``, and nothing else. Its token is read anew for each request, because Kubernetes renews it.

A pod is one label set a port that its containers declare, or one without a port; the labels are those of Prometheus'
``kubernetes_sd_configs`` with ``role: pod``, so its rules work here.
"""

from __future__ import annotations

import asyncio
import os
import re
import ssl
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Final, TypeVar

import aiohttp
import msgspec
from msgspec import Raw, Struct, field

from streammon.backoff import Backoff
from streammon_agents.scrape.discovery import LabelSets, Report, Reporter
from streammon_agents.scrape.jobs import KubernetesSdConfig

ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
MAX_PODS: Final = 1000
"""Of one node; Kubernetes itself means at most 110."""
MAX_BYTES: Final = 32 * 1024**2
"""Of one answer, or of one change."""
PAGE: Final = 250
REQUEST_S: Final = 30.0
WATCH_S: Final = 300
"""How long the server may keep one watch open before it is asked again."""
BACKOFF: Final = Backoff(longest_s=60.0)
SOUND_S: Final = 10.0
"""What went on for this long is begun again at once."""
_NOT_A_LABEL: Final = re.compile(r"[^a-zA-Z0-9_]")
_EXPIRED: Final = 410
T = TypeVar("T")


class _Object(Struct, rename="camel", frozen=True, gc=False):
    """A part of what the API server answers; all else of it is not kept."""


class Owner(_Object, frozen=True):
    kind: str = ""
    name: str = ""
    controller: bool | None = None


class Metadata(_Object, frozen=True):
    name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    proceed: str | None = field(default=None, name="continue")
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None
    owner_references: list[Owner] | None = None


class Port(_Object, frozen=True):
    container_port: int
    name: str = ""
    protocol: str = "TCP"


class Container(_Object, frozen=True):
    name: str = ""
    image: str = ""
    ports: list[Port] | None = None


class Spec(_Object, frozen=True):
    node_name: str = ""
    containers: list[Container] = []
    init_containers: list[Container] | None = None


class Condition(_Object, frozen=True):
    type: str = ""
    status: str = ""


class Status(_Object, frozen=True):
    pod_ip: str = field(default="", name="podIP")
    host_ip: str = field(default="", name="hostIP")
    phase: str = ""
    conditions: list[Condition] | None = None


class Pod(_Object, frozen=True):
    metadata: Metadata
    spec: Spec = Spec()
    status: Status = Status()


class PodList(_Object, frozen=True):
    metadata: Metadata
    items: list[Pod] | None = None


class Change(_Object, frozen=True):
    type: str
    object: Raw = Raw(b"{}")


class Trouble(_Object, frozen=True):
    code: int = 0
    message: str = ""


class NotInClusterError(ValueError):
    """There is no service account, or no address of an API server."""


class Expired(Exception):  # noqa: N818 - what the server says, not a failure
    """The server has forgotten what came after what we know: list again."""


class Pods:
    """The pods of one node."""

    def __init__(
        self,
        config: KubernetesSdConfig,
        node: str,
        session: aiohttp.ClientSession,
        *,
        account: Path = ACCOUNT,
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        self._namespaces = config.namespaces.names or [""]
        self._node, self._session, self._account, self._environment = node, session, account, environment
        self._known: dict[str, dict[str, Pod]] = {namespace: {} for namespace in self._namespaces}
        self._failing: dict[str, str] = {}

    async def run(self, report: Reporter) -> None:
        async with asyncio.TaskGroup() as group:
            for namespace in self._namespaces:
                group.create_task(self._follow(namespace, report))

    async def once(self) -> LabelSets:
        try:
            for namespace in self._namespaces:
                await self._list(namespace)
        except aiohttp.ClientError as error:
            raise ValueError(_why(error)) from None
        return self._found()

    async def _follow(self, namespace: str, report: Reporter) -> None:
        """List, then watch for as long as the server lets us; again when it forgot where we were, or fails."""
        version, failures, now = "", 0, asyncio.get_running_loop().time
        while True:
            started = now()
            try:
                version = version or await self._list(namespace)
                self._failing.pop(namespace, None)
                report(self._report())
                version = await self._watch(namespace, version, report)
            except Expired:
                version = ""
            except (aiohttp.ClientError, OSError, ValueError) as error:
                version, self._failing[namespace] = "", _why(error)
                report(Report(None, self._failing[namespace]))
            failures = 0 if now() - started > SOUND_S else failures + 1
            await asyncio.sleep(BACKOFF.pause_s(failures))

    async def _list(self, namespace: str) -> str:
        """All pods, page by page; the version from which changes are to be watched."""
        pods, proceed = dict[str, Pod](), ""
        while True:
            asked = {"limit": str(PAGE), **({"continue": proceed} if proceed else {})}
            async with asyncio.timeout(REQUEST_S), self._get(namespace, asked) as response:
                _check(response)
                answer = _decoded(await _whole(response), PodList)
            pods |= {pod.metadata.uid: pod for pod in answer.items or []}
            if len(pods) > MAX_PODS:
                raise ValueError(f"the API server tells of more than {MAX_PODS} pods on {self._node}")
            proceed = answer.metadata.proceed or ""
            if not proceed:
                self._known[namespace] = pods
                return answer.metadata.resource_version

    async def _watch(self, namespace: str, version: str, report: Reporter) -> str:
        """Follow the changes until the server ends it, as it does after a while; the version that was reached."""
        asked = {
            "watch": "true",
            "resourceVersion": version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(WATCH_S),
        }
        async with asyncio.timeout(WATCH_S + REQUEST_S), self._get(namespace, asked) as response:
            _check(response)
            async for change in _lines(response):
                version = self._apply(namespace, change) or version
                if change.type != "BOOKMARK":
                    report(self._report())
        return version

    def _apply(self, namespace: str, change: Change) -> str:
        """Take up a change; the version after it."""
        if change.type == "ERROR":
            trouble = _decoded(change.object, Trouble)
            if trouble.code == _EXPIRED:
                raise Expired
            raise ValueError(f"the API server says: {trouble.message[:200]}")
        pods, pod = self._known[namespace], _decoded(change.object, Pod)
        if change.type == "DELETED":
            pods.pop(pod.metadata.uid, None)
        elif change.type in ("ADDED", "MODIFIED") and (len(pods) < MAX_PODS or pod.metadata.uid in pods):
            pods[pod.metadata.uid] = pod
        return pod.metadata.resource_version

    def _report(self) -> Report:
        return Report(self._found(), next(iter(self._failing.values()), None))

    def _found(self) -> LabelSets:
        return [labels for pods in self._known.values() for pod in pods.values() for labels in label_sets(pod)]

    def _get(self, namespace: str, asked: Mapping[str, str]) -> aiohttp.client._RequestContextManager:
        """Raises NotInClusterError."""
        host, port = self._environment.get("KUBERNETES_SERVICE_HOST"), self._environment.get("KUBERNETES_SERVICE_PORT")
        try:
            token = (self._account / "token").read_text(encoding="utf-8").strip()
            trusted = ssl.create_default_context(cafile=str(self._account / "ca.crt"))
        except (OSError, ssl.SSLError) as error:
            raise NotInClusterError(f"the service account in {self._account} cannot be used: {error}") from None
        if not host:
            raise NotInClusterError("KUBERNETES_SERVICE_HOST is not set: the agent runs in no cluster")
        host = f"[{host}]" if ":" in host else host
        path = f"namespaces/{namespace}/pods" if namespace else "pods"
        return self._session.get(
            f"https://{host}:{port or 443}/api/v1/{path}",
            params={"fieldSelector": f"spec.nodeName={self._node}", **asked},
            headers={"Authorization": f"Bearer {token}", "Accept": "application/json"},
            ssl=trusted,
            allow_redirects=False,
        )


def _check(response: aiohttp.ClientResponse) -> None:
    if response.status == _EXPIRED:
        raise Expired
    if response.status != 200:
        raise ValueError(
            f"the API server answered {response.status}"
            + (": the service account needs list and watch on pods" if response.status in (401, 403) else "")
        )


async def _whole(response: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    async for chunk in response.content.iter_chunked(64 * 1024):
        body += chunk
        if len(body) > MAX_BYTES:
            raise ValueError(f"the API server answers with more than {MAX_BYTES} bytes")
    return bytes(body)


async def _lines(response: aiohttp.ClientResponse) -> AsyncIterator[Change]:
    """The changes of a watch, one a line."""
    waiting = bytearray()
    async for chunk in response.content.iter_any():
        waiting += chunk
        *lines, rest = waiting.split(b"\n")
        waiting = rest
        if len(waiting) > MAX_BYTES:
            raise ValueError(f"a change has more than {MAX_BYTES} bytes")
        for line in filter(None, lines):
            yield _decoded(line, Change)


def _decoded(text: bytes | bytearray | Raw, type_: type[T]) -> T:
    try:
        return msgspec.json.decode(text, type=type_)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise ValueError(f"the API server does not answer as it should: {error}") from None


def _why(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "the API server did not answer in time"
    return f"the API server cannot be asked: {error}" if isinstance(error, aiohttp.ClientError) else str(error)


def label_sets(pod: Pod) -> Iterator[dict[str, str]]:
    """What may be scraped of a pod. One without an address yet is nothing.

    Source: Prometheus, ``discovery/kubernetes/pod.go``.
    """
    if not pod.status.pod_ip:
        return
    common = _of_pod(pod)
    for is_init, containers in ((False, pod.spec.containers), (True, pod.spec.init_containers or [])):
        for container in containers:
            own = {
                **common,
                "__meta_kubernetes_pod_container_name": container.name,
                "__meta_kubernetes_pod_container_image": container.image,
                "__meta_kubernetes_pod_container_init": str(is_init).lower(),
            }
            if not container.ports:  # the port has to come by relabelling
                yield {**own, "__address__": _joined(pod.status.pod_ip, None)}
            for port in container.ports or []:
                yield {
                    **own,
                    "__address__": _joined(pod.status.pod_ip, port.container_port),
                    "__meta_kubernetes_pod_container_port_name": port.name,
                    "__meta_kubernetes_pod_container_port_number": str(port.container_port),
                    "__meta_kubernetes_pod_container_port_protocol": port.protocol,
                }


def _of_pod(pod: Pod) -> dict[str, str]:
    owner = next((each for each in pod.metadata.owner_references or [] if each.controller), Owner())
    ready = next((each.status.lower() for each in pod.status.conditions or [] if each.type == "Ready"), "unknown")
    meta = {
        "namespace": pod.metadata.namespace,
        "pod_name": pod.metadata.name,
        "pod_uid": pod.metadata.uid,
        "pod_ip": pod.status.pod_ip,
        "pod_host_ip": pod.status.host_ip,
        "pod_node_name": pod.spec.node_name,
        "pod_phase": pod.status.phase,
        "pod_ready": ready,
        "pod_controller_kind": owner.kind,
        "pod_controller_name": owner.name,
    }
    labels = {f"__meta_kubernetes_{name}": value for name, value in meta.items() if value}
    for kind, given in (("label", pod.metadata.labels), ("annotation", pod.metadata.annotations)):
        for name, value in (given or {}).items():
            safe = _NOT_A_LABEL.sub("_", name)
            labels[f"__meta_kubernetes_pod_{kind}_{safe}"] = value
            labels[f"__meta_kubernetes_pod_{kind}present_{safe}"] = "true"
    return labels


def _joined(address: str, port: int | None) -> str:
    host = f"[{address}]" if ":" in address else address
    return host if port is None else f"{host}:{port}"
