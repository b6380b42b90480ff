"""A Linux host: its probes, and what can be seen here."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterable, Iterator
from fnmatch import fnmatchcase
from functools import lru_cache, partial
from typing import NamedTuple

from streammon.clock import Clock, system_clock
from streammon.config import AgentSettings, Settings
from streammon.heartbeat import host_name
from streammon_agents import pressure
from streammon_agents.containers.labels import Known
from streammon_agents.host import cpu, disks, filesystems, memory, network, processes, system, temperatures
from streammon_agents.host.rtt import RoundTrips
from streammon_agents.kernel_files import File, read_text
from streammon_agents.source import Finding, Outlet, Polled, Probe


class Roots(NamedTuple):
    """Where the host's file systems are, without ``/`` at the end."""

    procfs: str
    sysfs: str
    rootfs: str

    @classmethod
    def of(cls, agent: AgentSettings) -> Roots:
        return cls(str(agent.procfs).rstrip("/"), str(agent.sysfs).rstrip("/"), str(agent.rootfs).rstrip("/"))


class HostSource:
    """Probes on the beat, and beside them the round trips, which take as long as they take."""

    name = "host"

    def __init__(self, polled: Polled, round_trips: RoundTrips | None) -> None:
        self._polled, self._round_trips = polled, round_trips

    def check(self) -> Iterable[Finding]:
        return self._polled.check()

    async def run(self, out: Outlet) -> None:
        async with asyncio.TaskGroup() as both:
            both.create_task(self._polled.run(out))
            if self._round_trips is not None:
                both.create_task(self._round_trips.run(out))


def linux_source(settings: Settings, clock: Clock = system_clock) -> HostSource:
    """What ``agent`` and ``agent.host_metrics`` ask for."""
    agent, host, roots = settings.agent, host_name(settings), Roots.of(settings.agent)
    probes, complaint = probes_of(host, agent)
    polled = Polled(
        "host",
        host,
        probes,
        interval_s=agent.interval_s,
        check=lambda: check(roots),
        complaint=complaint,
        clock=clock,
    )
    targets = agent.host_metrics.rtt_targets
    return HostSource(polled, RoundTrips(host, agent.host_metrics, clock) if targets else None)


def probes_of(
    host: str, agent: AgentSettings, monotonic: Callable[[], float] = time.monotonic
) -> tuple[list[Probe], Callable[[], str | None]]:
    """All that is measured, and what says why some of it is not."""
    roots, wanted = Roots.of(agent), agent.host_metrics
    mounted = filesystems.FileSystems(roots.procfs, roots.rootfs)
    sensors = temperatures.Temperatures(roots.sysfs)
    known = Known(roots.rootfs, agent.containers)
    probes = [
        Probe("host", _system(roots.procfs), partial(system.measure, host)),
        Probe("cpu", _cpu(roots.procfs), partial(cpu.measure, per_core=wanted.per_core)),
        Probe("memory", _memory(roots.procfs), memory.measure),
        Probe("disks", _disks(roots), disks.measure),
        Probe("networks", _networks(roots.procfs, wanted.ignored_interfaces), network.measure),
        Probe("filesystems", mounted.read, filesystems.measure),
        Probe("temperatures", sensors.read, partial(temperatures.measure, host)),
    ]
    if wanted.top_processes:
        running = processes.Processes(roots.procfs, wanted.top_processes, known.labels, monotonic)
        probes.append(Probe("processes", running.read, processes.measure))
    return probes, lambda: _complaint([*mounted.hanging, *sensors.hanging], known.complaint)


def _complaint(hanging: list[str], names: str | None) -> str | None:
    silent = f"no answer from {', '.join(hanging)}" if hanging else None
    return "; ".join(filter(None, (silent, names))) or None


# --- the readings -----------------------------------------------------------------------------------------


def _system(procfs: str) -> Callable[[], system.Reading]:
    load, uptime, files = (File(f"{procfs}/{name}") for name in ("loadavg", "uptime", "sys/fs/file-nr"))
    stalls = {kind: File(f"{procfs}/pressure/{kind}") for kind in pressure.KINDS}
    boot_id = (read_text(f"{procfs}/sys/kernel/random/boot_id") or "").strip() or None

    def read() -> system.Reading:
        levels = {
            **system.parse_load(load.read_or_none()),
            **system.parse_uptime(uptime.read_or_none()),
            **system.parse_file_descriptors(files.read_or_none()),
        }
        stalled = {
            name: stall
            for kind, file in stalls.items()
            for name, stall in pressure.parse(kind, file.read_or_none()).items()
            if name != "cpu_pressure_full"  # of a whole machine the kernel does not know it, and says nought
        }
        return system.Reading(levels, stalled, boot_id)

    return read


def _cpu(procfs: str) -> Callable[[], cpu.Reading]:
    stat = File(f"{procfs}/stat")
    return lambda: cpu.parse(stat.read())


def _memory(procfs: str) -> Callable[[], memory.Reading]:
    meminfo, vmstat = File(f"{procfs}/meminfo"), File(f"{procfs}/vmstat")
    return lambda: memory.parse(meminfo.read(), vmstat.read_or_none())


def _disks(roots: Roots) -> Callable[[], dict[str, disks.Disk]]:
    diskstats = File(f"{roots.procfs}/diskstats")
    whole = disks.WholeDisks(roots.sysfs)
    return lambda: disks.parse(diskstats.read(), whole.has)


def _networks(procfs: str, ignored: tuple[str, ...]) -> Callable[[], network.Reading]:
    net = network_directory(procfs)
    interfaces, snmp, netstat, sockets = (File(f"{net}/{name}") for name in ("dev", "snmp", "netstat", "sockstat"))

    @lru_cache(maxsize=4096)
    def wanted(interface: str) -> bool:
        return not any(fnmatchcase(interface, pattern) for pattern in ignored)

    def read() -> network.Reading:
        return network.Reading(
            network.parse_interfaces(interfaces.read(), wanted),
            network.parse_protocols(snmp.read_or_none()) | network.parse_protocols(netstat.read_or_none()),
            network.parse_sockets(sockets.read_or_none()),
        )

    return read


def network_directory(procfs: str) -> str:
    """That of process 1, which is in the network of the host; else our own."""
    return f"{procfs}/1/net" if os.access(f"{procfs}/1/net/dev", os.R_OK) else f"{procfs}/self/net"


# --- what can be seen -------------------------------------------------------------------------------------


def check(roots: Roots) -> Iterator[Finding]:
    """What of this host can be seen, and why not."""
    mount = "mount the host's /proc and set agent.procfs or PROCFS_PATH"
    for what, file in (("cpu", "stat"), ("memory", "meminfo"), ("disks", "diskstats"), ("load", "loadavg")):
        yield _readable(what, f"{roots.procfs}/{file}", mount)
    yield _readable("network", f"{network_directory(roots.procfs)}/dev", mount)
    yield _readable("pressure", f"{roots.procfs}/pressure/cpu", "start the kernel with psi=1, if it is 4.20 or newer")
    vmstat = read_text(f"{roots.procfs}/vmstat") or ""
    kills = "\noom_kill " in vmstat
    yield Finding("oom kills", kills, "" if kills else f"{roots.procfs}/vmstat does not count them (Linux 4.13 does)")
    yield _check_filesystems(roots)
    if roots.procfs != "/proc" and not roots.rootfs:
        detail = "the mounts are the host's, their sizes those of what lies at the same places in this container"
        yield Finding("sizes of the host's filesystems", False, detail, "mount the host's / and set agent.rootfs")
    found = temperatures.sensors(roots.sysfs)
    detail = ", ".join(sensor.name for sensor in found) or f"no sensors in {roots.sysfs}/class/hwmon or thermal"
    yield Finding("temperature", bool(found), detail)
    yield from _check_processes(roots.procfs)


def _readable(what: str, path: str, fix: str) -> Finding:
    try:
        File(path).read()
    except OSError as error:
        return Finding(what, False, f"{path}: {error.strerror}", fix)
    return Finding(what, True, path)


def _check_filesystems(roots: Roots) -> Finding:
    try:
        mounts = filesystems.FileSystems(roots.procfs, roots.rootfs).mounts()
    except OSError as error:
        return Finding("filesystems", False, f"{roots.procfs}/1/mounts: {error.strerror}")
    return Finding("filesystems", True, ", ".join(mount.path for mount in mounts))


def _check_processes(procfs: str) -> Iterator[Finding]:
    mine = str(os.getpid()) if procfs == "/proc" else None
    others = [name for name in _listed(procfs) if name.isdecimal() and name != mine]
    fix = "mount the host's /proc without hidepid, or share its process namespace (hostPID)"
    yield Finding(
        "processes", len(others) > 1, f"{len(others)} besides this one in {procfs}", None if len(others) > 1 else fix
    )
    readable = next((name for name in others if _has_io(f"{procfs}/{name}")), None)
    why = "" if readable else "no permission to read /proc/PID/io of others"
    yield Finding(
        "disks and files by process", bool(readable), why, None if readable else "needs CAP_SYS_PTRACE, or root"
    )


def _listed(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:
        return []


def _has_io(directory: str) -> bool:
    return read_text(f"{directory}/io") is not None
