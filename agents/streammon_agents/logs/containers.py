"""What container runtimes put around a line, and what the names of their files tell.

==========  ==========================================================================================
docker      ``{"log":"text\\n","stream":"stdout","time":"2026-11-29T17:20:29.1Z"}``; without ``\\n`` it goes on
CRI         ``2026-11-29T17:20:29.1Z stdout F text``; ``P`` instead of ``F``: it goes on (containerd, CRI-O)
==========  ==========================================================================================

Names follow the kubelet: ``/var/log/pods/NAMESPACE_POD_UID/CONTAINER/N.log`` and
``/var/log/containers/POD_NAMESPACE_CONTAINER-ID.log``. Labels are not in them, so the service is the *workload*: the
pod's name without what a ReplicaSet, a DaemonSet, a StatefulSet or a Job appends. This is a guess by form, and wrong
where a workload's own name ends like that; ``service`` of an input says better.
"""

from __future__ import annotations

import re
from pathlib import PurePath
from typing import Final, NamedTuple

import msgspec


class Framed(NamedTuple):
    """One line as its runtime has it."""

    text: bytes
    stream: str = ""
    time: str = ""
    partial: bool = False
    """The next one of the stream goes on where this ends."""


class _Docker(msgspec.Struct, gc=False):
    log: str
    stream: str = ""
    time: str = ""


_decode_docker = msgspec.json.Decoder(_Docker).decode
_CRI: Final = re.compile(rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[^ ]{0,20}) (stdout|stderr) ([A-Z:]{1,10}) ?", re.DOTALL)
_STREAMS: Final = {b"stdout": "stdout", b"stderr": "stderr"}


def framing(line: bytes) -> str:
    """Of a first line: ``docker``, ``cri`` or ``none``."""
    if _CRI.match(line):
        return "cri"
    if line.startswith(b'{"log":'):
        try:
            return "docker" if _decode_docker(line).time else "none"
        except msgspec.DecodeError:
            pass
    return "none"


def unframed(line: bytes, kind: str) -> Framed:
    """What is inside; a line that is not framed as it should be is taken as it is."""
    if kind == "cri" and (match := _CRI.match(line)):
        time, stream, tags = match.groups()
        return Framed(line[match.end() :], _STREAMS[stream], time.decode("ascii", "replace"), tags[:1] == b"P")
    if kind == "docker":
        try:
            entry = _decode_docker(line)
        except msgspec.DecodeError:
            return Framed(line)
        text = entry.log.encode("utf-8", "replace")
        return Framed(text.removesuffix(b"\n"), entry.stream, entry.time, not text.endswith(b"\n"))
    return Framed(line)


class Origin(NamedTuple):
    """Whose file it is, by its name."""

    service: str
    fields: dict[str, str] = {}  # noqa: RUF012 - a NamedTuple, and nobody changes it


_POD: Final = re.compile(r"(?P<namespace>[a-z0-9.-]+)_(?P<pod>[a-z0-9.-]+)_(?P<uid>[0-9a-fA-F-]+)")
_LINK: Final = re.compile(
    r"(?P<pod>[a-z0-9.-]+)_(?P<namespace>[a-z0-9.-]+)_(?P<container>[a-z0-9.-]+)-(?P<container_id>[0-9a-f]{64})\.log"
)
_DOCKER_ID: Final = re.compile(r"(?P<container_id>[0-9a-f]{64})-json\.log")
_ROTATED: Final = re.compile(r"(?:[.-](?:\d{1,10}|\d{4}-\d\d-\d\d|\d{8}-\d{6}|log|out|err|txt|json|jsonl))+$")


def origin(path: str) -> Origin:
    """
    >>> origin("/var/log/pods/shop_ranker-6d4b75cb6d-x2x7k_0f1e/web/0.log").service
    'ranker'
    >>> origin("/var/log/nginx/access.log.1").service
    'access'
    """
    parts = PurePath(path).parts
    name = parts[-1]
    if len(parts) >= 3 and (pod := _POD.fullmatch(parts[-3])):
        fields = {**pod.groupdict(), "container": parts[-2]}
        return Origin(workload(fields["pod"]), _kubernetes(fields))
    if link := _LINK.fullmatch(name):
        return Origin(workload(link["pod"]), _kubernetes(link.groupdict()))
    if container := _DOCKER_ID.fullmatch(name):
        id_ = container["container_id"]
        return Origin(id_[:12], {"container.id": id_})
    return Origin(_ROTATED.sub("", name)[:200] or name)


def _kubernetes(found: dict[str, str]) -> dict[str, str]:
    names = {"namespace": "kubernetes.namespace", "pod": "kubernetes.pod.name", "uid": "kubernetes.pod.uid",
             "container": "kubernetes.container.name", "container_id": "container.id"}  # fmt: skip
    return {names[name]: value for name, value in found.items()}


_RANDOM: Final = "[bcdfghjklmnpqrstvwxz2456789]"
"""The letters of Kubernetes' random names: no vowels, so that they make no words."""
_APPENDED: Final = re.compile(
    rf"-{_RANDOM}{{6,10}}-{_RANDOM}{{5}}$"  # a ReplicaSet's hash, and the pod's own
    rf"|-\d{{7,10}}-{_RANDOM}{{5}}$"  # a CronJob's time
    rf"|-(?:\d+-)?{_RANDOM}{{5}}$"  # a DaemonSet, a Job (with an index)
    r"|-\d{1,4}$"  # a StatefulSet
)


def workload(pod: str) -> str:
    """
    >>> workload("ranker-6d4b75cb6d-x2x7k"), workload("node-agent-4jx9w"), workload("kafka-0"), workload("debug")
    ('ranker', 'node-agent', 'kafka', 'debug')
    """
    return _APPENDED.sub("", pod) or pod
