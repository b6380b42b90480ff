"""Cgroups of version 1 and 2: where they are, which are containers, and what one of them tells.

`tree_at` finds out what is mounted below ``/sys/fs/cgroup``: one hierarchy (version 2), or one for each controller
(version 1; in systemd's hybrid set-up a version 2 without controllers lies beside them). Both say the same in other
words, and `Group.read` gives it in one form.

Limits are those in effect: the smallest along the path, because a pod or a slice may be allowed less than the sum of
what is in it. What does not limit (``max``, -1, 2^63 less a page) is absent.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

from streammon_agents import pressure
from streammon_agents.kernel_files import File, number, numbers_of, only_number, read_text, whole_lines

_UNLIMITED = 2**62
"""Version 1 tells of "no limit" as the largest multiple of a page below 2^63."""
_DEEPEST = 32
MOST_DIRECTORIES = 20_000
"""Cgroups that are looked through for containers."""


class Limits(NamedTuple):
    memory_bytes: int | None = None
    cpu_cores: float | None = None
    pids: int | None = None


class Reading(NamedTuple):
    """What a cgroup says at one moment. What its kernel lacks is not in it."""

    counters: dict[str, float]
    """Since it was made: ``cpu_s``, ``user_s``, ``system_s``, ``throttled_s``, ``periods``, ``throttled_periods``,
    ``read_bytes``, ``write_bytes``, ``reads``, ``writes``, ``page_faults``, ``major_page_faults``."""
    events: dict[str, float]
    """Also since then, but rare: ``oom_kills``, ``ooms``, ``memory_limit_hits``."""
    levels: dict[str, float]
    """``memory_usage_bytes``, ``memory_inactive_bytes``, … and ``pids``."""
    stalls: pressure.Stalls


class Group(Protocol):
    """One cgroup, read again and again."""

    def read(self) -> Reading:
        """Raises FileNotFoundError if it is gone."""
        ...

    def limits(self) -> Limits: ...


class Tree(Protocol):
    """All cgroups of a machine, or of what a container sees of it."""

    @property
    def version(self) -> str: ...

    @property
    def is_whole(self) -> bool:
        """False in a cgroup namespace: its root is a container's own cgroup, not that of the machine."""
        ...

    @property
    def controllers(self) -> Collection[str]:
        """Of what they tell: ``cpu``, ``memory``, ``io``, ``pids``."""
        ...

    @property
    def has_pressure(self) -> bool: ...

    def directories(self) -> Iterator[str]:
        """Paths of all cgroups, ``/a/b``; the root is ``""``."""
        ...

    def group(self, path: str) -> Group: ...

    def kills(self, path: str) -> File | None:
        """Where OOM kills in a cgroup and all below it are counted, those of cgroups that are gone too."""
        ...


def tree_at(sysfs: str) -> Tree | None:
    """The cgroups below ``SYSFS/fs/cgroup``; None if none are mounted there."""
    root = f"{sysfs}/fs/cgroup"
    stacked = frozenset(stacked_devices(sysfs))
    if os.path.exists(f"{root}/cgroup.controllers"):
        return TreeV2(root, stacked, cores_online(sysfs))
    controllers = {name: f"{root}/{name}" for name in _CONTROLLERS if os.path.isdir(f"{root}/{name}")}
    for together in ("cpu,cpuacct", "cpuacct,cpu"):
        if os.path.isdir(f"{root}/{together}"):
            controllers |= {name: f"{root}/{together}" for name in ("cpu", "cpuacct") if name not in controllers}
    return TreeV1(controllers, stacked, cores_online(sysfs)) if controllers else None


_CONTROLLERS = ("memory", "cpu", "cpuacct", "cpuset", "blkio", "pids")


def walk(root: str) -> Iterator[str]:
    """Paths below ``root`` of all directories. A cgroup without children has two links, and is not opened."""
    waiting, seen = [""], 0
    while waiting and seen < MOST_DIRECTORIES:
        path = waiting.pop()
        seen += 1
        yield path
        if path.count("/") < _DEEPEST:
            waiting += _children(root, path)


def _children(root: str, path: str) -> list[str]:
    try:
        if os.stat(root + path).st_nlink == 2:
            return []
        with os.scandir(root + path) as entries:
            return [f"{path}/{entry.name}" for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:  # gone meanwhile
        return []


def ancestors(path: str) -> list[str]:
    """``/a/b`` and those above it: ``""``, ``/a``, ``/a/b``."""
    parts = path.split("/")
    return ["/".join(parts[:depth]) for depth in range(1, len(parts) + 1)]


def stacked_devices(sysfs: str) -> Iterator[str]:
    """``MAJOR:MINOR`` of devices that lie on others (LVM, RAID, loops): what they do is counted there, too."""
    try:
        names = os.listdir(f"{sysfs}/block")
    except OSError:
        return
    for name in names:
        try:
            stacked = name.startswith("loop") or bool(os.listdir(f"{sysfs}/block/{name}/slaves"))
        except OSError:
            stacked = False
        if stacked and (device := read_text(f"{sysfs}/block/{name}/dev")):
            yield device.strip()


def cores_online(sysfs: str) -> int | None:
    return cores_in(read_text(f"{sysfs}/devices/system/cpu/online"))


def cores_in(text: str | None) -> int | None:
    """How many there are in ``0-3,8``; None where nothing is said."""
    count = 0
    for part in (text or "").strip().split(","):
        first, dash, last = part.partition("-")
        start, end = number(first), number(last if dash else first)
        if start is None or end is None or not start <= end < 2**16:
            return None
        count += end - start + 1
    return count


def smallest(limits: Sequence[Limits]) -> Limits:
    """Of each, the smallest."""

    def least(values: Iterator[float | None]) -> float | None:
        return min((value for value in values if value is not None), default=None)

    memory, pids = (least(one[at] for one in limits) for at in (0, 2))
    return Limits(_whole(memory), least(one.cpu_cores for one in limits), _whole(pids))


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)


def _cores(allowed: str | None, cores: int | None) -> float | None:
    """Cores of a cpuset, if they are fewer than there are."""
    mine = cores_in(allowed)
    return mine if mine is not None and cores is not None and mine < cores else None


def _limited(text: str | None) -> int | None:
    value = number(text.strip()) if text else None
    return value if value is not None and value < _UNLIMITED else None


# --- version 2 --------------------------------------------------------------------------------------------

_CPU_STAT_US = {
    b"usage_usec": "cpu_s",
    b"user_usec": "user_s",
    b"system_usec": "system_s",
    b"throttled_usec": "throttled_s",
}
_CPU_STAT = {b"nr_periods": "periods", b"nr_throttled": "throttled_periods"}
_MEMORY_STAT = {
    b"anon": "memory_anonymous_bytes",
    b"file": "memory_cached_bytes",
    b"inactive_file": "memory_inactive_bytes",
    b"shmem": "memory_shared_bytes",
    b"kernel": "memory_kernel_bytes",
}
_FAULTS = {b"pgfault": "page_faults", b"pgmajfault": "major_page_faults"}
_MEMORY_EVENTS = {b"oom": "ooms", b"oom_kill": "oom_kills", b"max": "memory_limit_hits", b"high": "memory_high_hits"}
_IO_FIELDS = {b"rbytes": "read_bytes", b"wbytes": "write_bytes", b"rios": "reads", b"wios": "writes"}


class TreeV2:
    version = "2"

    def __init__(self, root: str, stacked: Collection[str], cores: int | None) -> None:
        self._root, self._stacked, self._cores = root, stacked, cores
        self.is_whole = not os.path.exists(f"{root}/cgroup.events")
        self.controllers = (read_text(f"{root}/cgroup.controllers") or "").split()
        self.has_pressure = os.path.exists(f"{root}/memory.pressure")

    def directories(self) -> Iterator[str]:
        return walk(self._root)

    def group(self, path: str) -> Group:
        above = ancestors(path)
        return GroupV2(
            [self._root + each for each in (above[1:] if self.is_whole else above)], self._stacked, self._cores
        )

    def kills(self, path: str) -> File | None:
        return File(f"{self._root}{path}/memory.events")


class GroupV2:
    def __init__(self, path: Sequence[str], stacked: Collection[str], cores: int | None) -> None:
        """``path``: its directory, behind all those above it."""
        self._path, self._stacked, self._cores = path, stacked, cores
        own = path[-1]
        self._cpu = File(f"{own}/cpu.stat")
        self._usage, self._swap = File(f"{own}/memory.current"), File(f"{own}/memory.swap.current")
        self._memory, self._events = File(f"{own}/memory.stat"), File(f"{own}/memory.events")
        self._io, self._pids = File(f"{own}/io.stat"), File(f"{own}/pids.current")
        self._pressure = {kind: File(f"{own}/{kind}.pressure") for kind in pressure.KINDS}

    def read(self) -> Reading:
        cpu = self._cpu.read()  # each has it, even with no controller: it says whether there is still such a cgroup
        memory = self._memory.read_or_none()
        levels = {
            "memory_usage_bytes": only_number(self._usage.read_or_none()),
            "memory_swap_bytes": only_number(self._swap.read_or_none()),
            "pids": only_number(self._pids.read_or_none()),
            **numbers_of(memory, _MEMORY_STAT),
        }
        return Reading(
            {
                **{name: us / 1e6 for name, us in numbers_of(cpu, _CPU_STAT_US).items()},
                **numbers_of(cpu, _CPU_STAT),
                **numbers_of(memory, _FAULTS),
                **parse_io_stat(self._io.read_or_none(), self._stacked),
            },
            {**numbers_of(self._events.read_or_none(), _MEMORY_EVENTS)},
            {name: value for name, value in levels.items() if value is not None},
            {name: stall for kind, file in self._pressure.items() for name, stall in _stalls(kind, file)},
        )

    def limits(self) -> Limits:
        return smallest([self._limits(directory) for directory in self._path])

    def _limits(self, directory: str) -> Limits:
        cores = parse_cpu_max(read_text(f"{directory}/cpu.max"))
        cpuset = _cores(read_text(f"{directory}/cpuset.cpus.effective"), self._cores)
        memory = _limited(read_text(f"{directory}/memory.max"))
        return smallest([Limits(memory, cores, _limited(read_text(f"{directory}/pids.max"))), Limits(None, cpuset)])


def _stalls(kind: str, file: File) -> Iterator[tuple[str, pressure.Stall]]:
    yield from pressure.parse(kind, file.read_or_none()).items()


def parse_cpu_max(text: str | None) -> float | None:
    """``50000 100000``: half a core; ``max 100000``: no limit."""
    quota, _, period = (text or "").strip().partition(" ")
    return _quotient(number(quota), number(period))


def _quotient(quota: int | None, period: int | None) -> float | None:
    return quota / period if quota and period else None


def parse_io_stat(data: bytes | None, stacked: Collection[str] = ()) -> dict[str, float]:
    """``8:0 rbytes=4096 wbytes=0 rios=1 wios=0 dbytes=0 dios=0``, summed over devices."""
    sums: dict[str, float] = {}
    for line in whole_lines(data or b""):
        device, *pairs = line.split() or [b""]
        if device.decode(errors="replace") not in stacked:
            for pair in pairs:
                name, _, text = pair.partition(b"=")
                if name in _IO_FIELDS and (value := number(text)) is not None:
                    sums[_IO_FIELDS[name]] = sums.get(_IO_FIELDS[name], 0) + value
    return sums


# --- version 1 --------------------------------------------------------------------------------------------

_V1_CPU_STAT = {b"nr_periods": "periods", b"nr_throttled": "throttled_periods", b"throttled_time": "throttled_ns"}
_V1_CPUACCT = {b"user": "user", b"system": "system"}
_V1_MEMORY_STAT = {
    b"total_rss": "memory_anonymous_bytes",
    b"total_cache": "memory_cached_bytes",
    b"total_inactive_file": "memory_inactive_bytes",
    b"total_shmem": "memory_shared_bytes",
    b"total_swap": "memory_swap_bytes",
}
_V1_FAULTS = {b"total_pgfault": "page_faults", b"total_pgmajfault": "major_page_faults"}
_TICKS_PER_S = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


class TreeV1:
    version = "1"
    has_pressure = False

    def __init__(self, controllers: Mapping[str, str], stacked: Collection[str], cores: int | None) -> None:
        self._controllers, self._stacked, self._cores = controllers, stacked, cores
        self._first = next(iter(controllers.values()))
        self.is_whole = os.path.exists(f"{self._first}/release_agent")
        self.controllers = ["io" if name == "blkio" else name for name in controllers]

    def directories(self) -> Iterator[str]:
        """By the first controller, memory if there is any: runtimes make the same cgroups in all of them."""
        return walk(self._first)

    def group(self, path: str) -> Group:
        return GroupV1(self._controllers, path, self.is_whole, self._stacked, self._cores)

    def kills(self, path: str) -> File | None:
        return None  # version 1 does not count for those below


class GroupV1:
    def __init__(
        self,
        controllers: Mapping[str, str],
        path: str,
        is_whole: bool,
        stacked: Collection[str],
        cores: int | None,
    ) -> None:
        self._controllers, self._stacked, self._cores = controllers, stacked, cores
        self._above = ancestors(path)[1:] if is_whole else ancestors(path)
        self._files = {
            (controller, name): File(f"{controllers[controller]}{path}/{name}")
            for controller, name in _V1_FILES
            if controller in controllers
        }
        self._own = next(iter(controllers.values())) + path

    def _read(self, controller: str, name: str) -> bytes | None:
        file = self._files.get((controller, name))
        return None if file is None else file.read_or_none()

    def read(self) -> Reading:
        os.stat(self._own)  # a cgroup that is gone says so
        memory, cpu = self._read("memory", "memory.stat"), numbers_of(self._read("cpu", "cpu.stat"), _V1_CPU_STAT)
        levels = {
            "memory_usage_bytes": only_number(self._read("memory", "memory.usage_in_bytes")),
            "pids": only_number(self._read("pids", "pids.current")),
            **numbers_of(memory, _V1_MEMORY_STAT),
        }
        events = {
            "oom_kills": number_of_kills(self._read("memory", "memory.oom_control")),
            "memory_limit_hits": only_number(self._read("memory", "memory.failcnt")),
        }
        throttled_ns = cpu.pop("throttled_ns", None)
        return Reading(
            {
                **cpu,
                **({} if throttled_ns is None else {"throttled_s": throttled_ns / 1e9}),
                **self._cpu_s(),
                **numbers_of(memory, _V1_FAULTS),
                **self._io("io_service_bytes", "read_bytes", "write_bytes"),
                **self._io("io_serviced", "reads", "writes"),
            },
            {name: value for name, value in events.items() if value is not None},
            {name: value for name, value in levels.items() if value is not None},
            {},
        )

    def _cpu_s(self) -> dict[str, float]:
        used_ns = only_number(self._read("cpuacct", "cpuacct.usage"))
        ticks = numbers_of(self._read("cpuacct", "cpuacct.stat"), _V1_CPUACCT)
        used = {} if used_ns is None else {"cpu_s": used_ns / 1e9}
        return {**used, **{f"{mode}_s": spent / _TICKS_PER_S for mode, spent in ticks.items()}}

    def _io(self, file: str, read: str, write: str) -> dict[str, float]:
        """With what is below it, where the kernel can tell."""
        data = self._read("blkio", f"blkio.throttle.{file}_recursive") or self._read("blkio", f"blkio.throttle.{file}")
        found = parse_blkio(data, self._stacked)
        return {ours: found[theirs] for theirs, ours in ((b"Read", read), (b"Write", write)) if theirs in found}

    def limits(self) -> Limits:
        return smallest([self._limits(path) for path in self._above])

    def _limits(self, path: str) -> Limits:
        def text(controller: str, name: str) -> str | None:
            root = self._controllers.get(controller)
            return None if root is None else read_text(f"{root}{path}/{name}")

        quota, period = (number((text("cpu", f"cpu.cfs_{what}_us") or "").strip()) for what in ("quota", "period"))
        cpuset = text("cpuset", "cpuset.effective_cpus") or text("cpuset", "cpuset.cpus")
        return smallest([
            Limits(
                _limited(text("memory", "memory.limit_in_bytes")),
                _quotient(quota, period),
                _limited(text("pids", "pids.max")),
            ),
            Limits(None, _cores(cpuset, self._cores)),
        ])  # fmt: skip


_V1_FILES = (
    ("memory", "memory.usage_in_bytes"), ("memory", "memory.stat"), ("memory", "memory.oom_control"),
    ("memory", "memory.failcnt"), ("cpu", "cpu.stat"), ("cpuacct", "cpuacct.usage"), ("cpuacct", "cpuacct.stat"),
    ("pids", "pids.current"),
    ("blkio", "blkio.throttle.io_service_bytes_recursive"), ("blkio", "blkio.throttle.io_service_bytes"),
    ("blkio", "blkio.throttle.io_serviced_recursive"), ("blkio", "blkio.throttle.io_serviced"),
)  # fmt: skip


OOM_KILL = {b"oom_kill": "oom_kills"}


def number_of_kills(data: bytes | None) -> int | None:
    """Of ``memory.oom_control``; kernels before 4.13 do not count."""
    return numbers_of(data, OOM_KILL).get("oom_kills")


def parse_blkio(data: bytes | None, stacked: Collection[str] = ()) -> dict[bytes, float]:
    """``253:0 Read 4096``, summed over devices; the line ``Total`` has none."""
    sums: dict[bytes, float] = {}
    for line in whole_lines(data or b""):
        fields = line.split()
        if len(fields) == 3 and fields[0].decode(errors="replace") not in stacked:
            value = number(fields[2])
            if value is not None:
                sums[fields[1]] = sums.get(fields[1], 0) + value
    return sums
