"""The container that this process is in: in a namespace of its own a cgroup has no name."""

from __future__ import annotations

import re
import socket

from streammon_agents.containers.identity import Container, container_of, pod_uid_of
from streammon_agents.kernel_files import read_text

_MOUNTED = re.compile(r"/containers/([0-9a-f]{64})/(?:hostname|hosts|resolv[.]conf|userdata)")
"""Docker and Podman mount files from the container's directory."""
_POD = re.compile(r"/pods/([0-9a-f-]{32,36})/(?:etc-hosts|volumes|containers)")
"""The kubelet mounts files from the pod's."""


def own_container(procfs: str = "/proc", host: str | None = None) -> Container:
    """By the path of our cgroup, else by what is mounted here, else by the name of the host, often the same."""
    if (found := container_of("self", procfs)) is not None:
        return found
    mounts = read_text(f"{procfs}/self/mountinfo") or ""
    id_, uid = _MOUNTED.search(mounts), _POD.search(mounts)
    pod_uid = uid[1] if uid else pod_uid_of(read_text(f"{procfs}/self/cgroup") or "")
    name = id_[1] if id_ else host or socket.gethostname()
    return Container(name[:12] if id_ else name, name, None, pod_uid)
