"""Which container a cgroup path or a process belongs to, from the names alone.

Runtimes and kubelets name cgroups in their own ways, and each under two cgroup drivers. What is understood::

    /docker/ID                          /system.slice/docker-ID.scope                        docker
    /libpod_parent/libpod-ID            /machine.slice/libpod-ID.scope/container             podman
    /kubepods/burstable/podUID/ID       /kubepods.slice/kubepods-burstable.slice/
                                         kubepods-burstable-podUID.slice/cri-containerd-ID.scope, crio-ID.scope
    kubepods-podUID.slice:cri-containerd:ID        containerd where drivers disagree
    /ecs/TASK/ID, /ecs/TASK/TASK-NUMBER            Amazon ECS on machines and on Fargate
    /lxc.payload.NAME, /lxc/NAME                   LXC

Containers nest (kind, Docker in Docker): the innermost one counts. What supervises a container (``crio-conmon-ID``) is
not in it. A path that starts with ``/..`` is one seen from within a cgroup namespace: its end is enough for the
container, but the pod may be out of sight.
"""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

SHORT = 12
"""Digits of an id that people see: `docker ps` shows as many."""


class Container(NamedTuple):
    """A container by what its cgroup is called; ``None``: the name does not say."""

    id: str
    """Its id, short; for LXC its name."""
    full_id: str
    runtime: str | None = None
    """``docker``, ``containerd``, ``cri-o``, ``podman``, ``lxc``."""
    pod_uid: str | None = None
    qos: str | None = None
    """Of a pod: ``guaranteed``, ``burstable`` or ``besteffort``."""


_RUNTIMES = {
    "docker": "docker",
    "cri-containerd": "containerd",
    "nerdctl": "containerd",
    "crio": "cri-o",
    "libpod": "podman",
}
_PARENTS = {"docker": "docker", "libpod_parent": "podman", "ecs": "docker"}
"""Runtimes by the cgroup that theirs lie in, where the name of the container's own is the bare id."""

_ID = re.compile(r"(?:.*[.]slice:)?(?:([a-z][a-z-]*)[-:])?([0-9a-f]{64}|[0-9a-f]{32}-[0-9]{5,})(?:[.]scope)?")
_LXC = re.compile(r"lxc[.]payload[./](.+)")
_POD = re.compile(
    r"(?:^|-)pod([0-9a-f]{8}(?:[-_][0-9a-f]{4}){3}[-_][0-9a-f]{12}|[0-9a-f]{32})(?:$|[.]slice)", re.MULTILINE
)
_LONGEST = 4096
"""A path of the kernel is not longer, and no longer one is looked at."""


def container_of(pid: int | str, procfs: Path | str = "/proc") -> Container | None:
    """The container that a process is in; None if it is in none, has ended, or may not be asked about.

    Reads ``PROCFS/PID/cgroup`` once, which costs about 10 µs; it does not change while a process lives, but for the
    moment of its start, so that callers may keep it by process.
    """
    try:
        with Path(f"{procfs}/{pid}/cgroup").open("rb", buffering=0) as file:
            lines = file.read(64 * 1024).decode(errors="replace").splitlines()
    except OSError:
        return None
    paths = dict.fromkeys(line.split(":", 2)[2] for line in lines if line.count(":") >= 2)
    return next((found for path in paths if (found := of_path(path)) is not None), None)


@lru_cache(maxsize=4096)
def of_path(path: str) -> Container | None:
    """The innermost container of a cgroup path."""
    segments = path[:_LONGEST].split("/")
    for depth in range(len(segments) - 1, -1, -1):
        named = _container(segments[depth], segments[depth - 1] if depth else "", segments[:depth])
        if named is not None:
            id_, runtime = named
            uid, qos = _pod("\n".join(segments[: depth + 1]))
            short = id_[:SHORT] if runtime != "lxc" else id_
            return Container(short, id_, runtime, uid, qos)
    return None


def _container(segment: str, parent: str, above: list[str]) -> tuple[str, str | None] | None:
    """Id and runtime, if this is what a container's cgroup is called."""
    if lxc := _LXC.fullmatch(segment):
        return lxc[1], "lxc"
    if parent == "lxc" and segment:
        return segment, "lxc"
    found = _ID.fullmatch(segment)
    if found is None or (found[1] or "").endswith("conmon"):
        return None
    if found[1] is not None:
        return found[2], _RUNTIMES.get(found[1])
    return found[2], _PARENTS.get(parent) or next((_PARENTS[name] for name in above if name in _PARENTS), None)


def pod_uid_of(path: str) -> str | None:
    """The uid of the pod that a cgroup path is in, or is the cgroup of."""
    return _pod(path.replace("/", "\n"))[0]


def _pod(segments: str) -> tuple[str | None, str | None]:
    """Uid and class of the innermost pod; systemd's names have ``_`` for ``-``. Of static pods it has no dashes."""
    uids = _POD.findall(segments)
    if not uids:
        return None, None
    qos = next((name for name in ("burstable", "besteffort") if name in segments), "guaranteed")
    return uids[-1].replace("_", "-"), qos
