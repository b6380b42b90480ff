"""The source ``containers``: every container of this node, or the one that the agent is in, once a beat.

Where the whole tree of cgroups can be seen, all containers are found in it, anew every
``agent.containers.discovery_s``. In a container with a cgroup namespace, only its own is there, and is told of.

Of pods the OOM kills are counted, too, because a container that was killed is gone, with its counters, before anybody
could read them (version 2 only).
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from streammon.clock import Clock, system_clock
from streammon.config import AgentSettings, ContainerSettings, Settings
from streammon.heartbeat import host_name
from streammon_agents.containers.cgroups import OOM_KILL, Group, Limits, Tree, tree_at
from streammon_agents.containers.identity import Container, of_path, pod_uid_of
from streammon_agents.containers.labels import Known
from streammon_agents.containers.measures import Sample, counters_of, metrics_of
from streammon_agents.containers.own import own_container
from streammon_agents.kernel_files import File, added, numbers_of
from streammon_agents.source import Finding, Measured, Polled, Probe

LIMITS_EVERY = 6
"""Limits change seldom: they are read again every so many times that is looked for containers."""


class Reading(NamedTuple):
    containers: Mapping[str, Sample]
    """By their whole ids."""
    pods: Mapping[str, tuple[Mapping[str, str], Mapping[str, float]]]
    """By uid, labels and OOM kills."""


class _Watched(NamedTuple):
    container: Container
    group: Group
    limits: Limits
    is_new: bool


class Containers:
    """Finds them, and reads them."""

    def __init__(
        self,
        tree: Tree,
        known: Known,
        own: Callable[[], Container],
        settings: ContainerSettings,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tree, self._known, self._own = tree, known, own
        self._settings, self._monotonic = settings, monotonic
        self._watched: dict[str, _Watched] = {}
        self._pods: dict[str, File] = {}
        self._looked, self._looked_at, self._left_out = 0, -float("inf"), 0

    @property
    def complaint(self) -> str | None:
        """What is not seen now."""
        beyond = f"{self._left_out} containers beyond agent.containers.max_containers" if self._left_out else None
        return "; ".join(filter(None, (beyond, self._known.complaint))) or None

    def read(self) -> Reading:
        now = self._monotonic()
        if now - self._looked_at >= self._settings.discovery_s:
            self._look()
            self._looked, self._looked_at = self._looked + 1, now
        samples = {id_: sample for id_, one in self._watched.items() if (sample := self._sample(one)) is not None}
        self._watched = {id_: self._watched[id_] for id_ in samples}
        pods = {
            uid: (self._known.pod(uid), numbers_of(file.read_or_none(), OOM_KILL)) for uid, file in self._pods.items()
        }
        return Reading(samples, pods)

    def _sample(self, one: _Watched) -> Sample | None:
        """None if it is gone."""
        try:
            reading = one.group.read()
        except OSError:
            return None
        return Sample(one.container.id, self._known.of(one.container), reading, one.limits, one.is_new)

    def _look(self) -> None:
        found, pods = self._found()
        watched = list(found.items())[: self._settings.max_containers]
        self._watched = {container.full_id: self._watch(path, container) for path, container in watched}
        self._pods = {
            uid: file for uid, path in pods.items() if (file := self._pods.get(uid) or self._tree.kills(path))
        }
        self._left_out = len(found) - len(watched)

    def _watch(self, path: str, container: Container) -> _Watched:
        known = self._watched.get(container.full_id)
        if known is None:
            group = self._tree.group(path)
            return _Watched(container, group, group.limits(), is_new=self._looked > 0)
        return known._replace(limits=known.group.limits()) if self._looked % LIMITS_EVERY == 0 else known

    def _found(self) -> tuple[dict[str, Container], dict[str, str]]:
        """Containers by path, and paths of pods by uid."""
        if not self._tree.is_whole:
            return {"": self._own()}, {}
        paths: dict[Container, str] = {}
        pods: dict[str, str] = {}
        for path in self._tree.directories():
            container = of_path(path)
            if container is not None:  # of those in one, and there may be many, the outermost comes first
                paths.setdefault(container, path)
            elif (uid := pod_uid_of(path)) is not None:
                pods.setdefault(uid, path)
        return {path: container for container, path in paths.items()}, pods


def measure(now: Reading, before: Reading | None, elapsed_s: float) -> Iterator[Measured]:
    """Containers; and of pods the OOM kills alone, as ``pod/UID``."""
    for full_id, sample in now.containers.items():
        old = before.containers.get(full_id) if before else None
        metrics, counters = metrics_of(sample, old, elapsed_s), counters_of(sample, old)
        yield Measured("container", sample.id, metrics, dict(sample.labels) or None, counters or None)
    for uid, (labels, kills) in now.pods.items():
        if counters := added(kills, _kills_before(before, uid, kills)):
            yield Measured("container", f"pod/{uid}", {}, dict(labels), counters)


def _kills_before(before: Reading | None, uid: str, kills: Mapping[str, float]) -> Mapping[str, float] | None:
    """Of a pod that was made since then it was none."""
    if before is None:
        return None
    return before.pods[uid][1] if uid in before.pods else dict.fromkeys(kills, 0)


# --- the source -------------------------------------------------------------------------------------------


def containers_source(settings: Settings, clock: Clock = system_clock) -> Polled:
    """The containers of this node, once ``agent.interval_s``."""
    agent, host = settings.agent, host_name(settings)
    sysfs, rootfs = str(agent.sysfs), str(agent.rootfs)
    probes, complaint = probes_of(agent, host)
    return Polled(
        "containers",
        host,
        probes,
        interval_s=agent.interval_s,
        check=lambda: check(tree_at(sysfs), own_container(host=host), sysfs, rootfs),
        complaint=complaint,
        clock=clock,
    )


def probes_of(agent: AgentSettings, host: str) -> tuple[list[Probe], Callable[[], str | None]]:
    """The one that reads them, and what says which it cannot; none where there are no cgroups."""
    tree = tree_at(str(agent.sysfs))
    if tree is None:
        return [], lambda: None
    known = Known(str(agent.rootfs), agent.containers)
    containers = Containers(tree, known, lambda: own_container(host=host), agent.containers)
    return [Probe("containers", containers.read, measure)], lambda: containers.complaint


def check(tree: Tree | None, own: Container, sysfs: str, rootfs: str) -> Iterator[Finding]:
    """What of containers can be seen, and why not."""
    if tree is None:
        yield _no_cgroups(sysfs)
        return
    where = f"cgroup version {tree.version} at {sysfs}/fs/cgroup"
    if tree.is_whole:
        found = {container for path in tree.directories() if (container := of_path(path)) is not None}
        yield Finding("containers", True, f"{where}; {len(found)} now")
    else:
        yield Finding("containers", True, f"{where}; only the one that the agent is in, {own.id}", _MOUNT)
    for what, controller in _CONTROLLERS.items():
        seen = controller in tree.controllers
        yield Finding(f"{what} of containers", seen, "" if seen else f"no controller {controller!r} there")
    yield _pressure(tree)
    yield _names(rootfs)


_MOUNT = "to see all of the node, mount the host's /sys and set agent.sysfs"
_CONTROLLERS = {"cpu": "cpu", "memory": "memory", "io": "io", "number of processes": "pids"}


def _no_cgroups(sysfs: str) -> Finding:
    if sys.platform != "linux":
        return Finding("containers", False, "only Linux has cgroups")
    return Finding("containers", False, f"no cgroups are mounted at {sysfs}/fs/cgroup", _MOUNT)


def _pressure(tree: Tree) -> Finding:
    why = "cgroups of version 1 have none" if tree.version == "1" else "this kernel has none; it may need psi=1"
    return Finding("pressure of containers", tree.has_pressure, "" if tree.has_pressure else why)


def _names(rootfs: str) -> Finding:
    directory = f"{rootfs.rstrip('/')}/var/log/pods"
    seen = os.path.isdir(directory)
    fix = "on a node of Kubernetes, mount the host's /var/log and set agent.rootfs, or set agent.containers.kubelet_url"
    return Finding("names of pods", seen, directory if seen else f"no directory {directory}", None if seen else fix)
