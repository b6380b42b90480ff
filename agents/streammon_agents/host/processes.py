"""Processes: those that use most CPU and most memory, from raw ``/proc``.

All processes are looked at, and the top by each measure are told. Command lines are not read, because people put
secrets there: a process is known by the name that the kernel has (15 characters), its number, and its container.

How that is cheap: ``/proc/PID/stat`` of every process is kept open, and compared with what it said before, so that of a
process that slept there is nothing to parse. One that slept for a while is looked at every `SELDOM` times only; what it
spends after that is told as a mean over the time since it was looked at last, at most so many beats later. The more
processes there are beyond `AT_ONCE`, the less often all of that is done, so that their number does not matter.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from heapq import nlargest
from typing import NamedTuple

from streammon_agents.containers import Container, container_of
from streammon_agents.containers.labels import Labels, no_labels
from streammon_agents.kernel_files import File, number, rates, whole_lines
from streammon_agents.source import Measured

AT_ONCE = 1000
"""Processes for which there is time at every beat; for twice as many it is every other beat, and so on."""
QUIET = 3
"""Who did nothing that often is quiet."""
SELDOM = 4
"""Quiet processes are looked at every so many times."""
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096
_TICKS_PER_S = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
_IO = {"read_bytes": "read_bytes_per_s", "write_bytes": "write_bytes_per_s"}


class Stat(NamedTuple):
    """What ``/proc/PID/stat`` says."""

    name: str
    ticks: int
    """CPU time of all its threads."""
    threads: int
    started: int
    """In ticks since the machine started: another process of the same number has another start."""
    rss_pages: int


class Detail(NamedTuple):
    """What is looked up for those at the top."""

    open_files: int | None
    io: dict[str, int]
    labels: dict[str, str]


class Reading(NamedTuple):
    stats: dict[int, Stat]
    cores: dict[int, float]
    """What those used that did something, in cores, since they were looked at before."""
    details: dict[int, Detail]
    at_s: float


def parse_stat(data: bytes) -> Stat | None:
    """``42 (name) S 1 …``: a name may hold anything, brackets, blanks and line ends too. None if it is not so."""
    opened, closed = data.find(b"("), data.rfind(b")")
    fields = data[closed + 2 :].split(b" ", 22)
    if opened < 0 or closed < opened or len(fields) < 23:
        return None
    try:
        return Stat(
            data[opened + 1 : closed].decode(errors="replace"),
            int(fields[11]) + int(fields[12]),
            int(fields[17]),
            int(fields[19]),
            int(fields[21]),
        )
    except ValueError:
        return None


def parse_io(data: bytes) -> dict[str, int]:
    """``read_bytes: 4096``: what really went to and came from disks."""
    pairs = (line.partition(b": ") for line in whole_lines(data))
    found = {name.decode(errors="replace"): number(text) for name, _, text in pairs}
    return {name: value for name in _IO if (value := found.get(name)) is not None}


def chosen(stats: Mapping[int, Stat], cores: Mapping[int, float], top: int) -> list[int]:
    """The top by CPU and the top by memory."""
    by_memory = nlargest(top, ((stat.rss_pages, pid) for pid, stat in stats.items() if stat.rss_pages > 0))
    by_cpu = nlargest(top, ((used, pid) for pid, used in cores.items()))
    return list(dict.fromkeys(pid for _, pid in (*by_cpu, *by_memory)))


class _Process:
    """One that is looked at again and again."""

    __slots__ = ("_container", "_data", "_io", "_looked_s", "_stat", "last", "quiet")

    def __init__(self, directory: str) -> None:
        self._stat = File(f"{directory}/stat")
        self._io: File | None = File(f"{directory}/io")
        self._data = b""
        self._looked_s = 0.0
        self.last: Stat | None = None
        self.quiet = 0
        """How often in succession it had done nothing."""
        self._container: tuple[str, Container | None] | None = None

    def look(self, now_s: float, before_s: float) -> float:
        """Cores it used since it was looked at, or, if it is new, since all were at ``before_s``. Raises OSError."""
        data = self._stat.read()
        since_s, self._looked_s = self._looked_s or before_s, now_s
        if data == self._data:
            self.quiet += 1
            return 0.0
        self._data, old, self.last = data, self.last, parse_stat(data)
        self.quiet = 0
        if self.last is None or not 0 <= since_s < now_s:
            return 0.0
        began_with = old.ticks if old is not None and old.started == self.last.started else 0
        return max(self.last.ticks - began_with, 0) / _TICKS_PER_S / (now_s - since_s)

    def container(self, pid: int, procfs: str) -> Container | None:
        """Looked up anew when its name changes: a runtime moves into the container, then becomes its program."""
        name = self.last.name if self.last else ""
        if self._container is None or self._container[0] != name:
            self._container = name, container_of(pid, procfs)
        return self._container[1]

    def io(self) -> dict[str, int]:
        """Nothing if it may not be asked, which holds for good."""
        if self._io is None:
            return {}
        try:
            return parse_io(self._io.read())
        except PermissionError:
            self._io = None
        except OSError:
            pass
        return {}


class Processes:
    """Looks at all processes of a ``/proc``."""

    def __init__(
        self,
        procfs: str,
        top: int,
        labels: Labels = no_labels,
        monotonic: Callable[[], float] = time.monotonic,
        at_once: int = AT_ONCE,
    ) -> None:
        self._procfs, self._top, self._labels, self._monotonic = procfs, top, labels, monotonic
        self._at_once = at_once
        self._known: dict[int, _Process] = {}
        self._last: Reading | None = None
        self._skipped = self._round = 0

    def read(self) -> Reading:
        """The same reading again if it is not time yet for another."""
        if self._last is not None and self._skipped < (len(self._known) - 1) // self._at_once:
            self._skipped += 1
            return self._last
        self._skipped, self._round = 0, self._round + 1
        now_s = self._monotonic()
        stats, cores = self._look_at_all(now_s)
        details = {pid: self._detail(pid) for pid in chosen(stats, cores, self._top)}
        self._last = Reading(stats, cores, details, now_s)
        return self._last

    def _look_at_all(self, now_s: float) -> tuple[dict[int, Stat], dict[int, float]]:
        """What is known of those there are, and what those used that did something. The others are forgotten."""
        told = self._last.details if self._last else {}
        before_s = self._last.at_s if self._last else -1.0
        known, self._known = self._known, {}
        stats: dict[int, Stat] = {}
        cores: dict[int, float] = {}
        for name in os.listdir(self._procfs):
            if not name.isdecimal():
                continue
            pid = int(name)
            process = known.get(pid) or _Process(f"{self._procfs}/{name}")
            if process.quiet < QUIET or pid in told or (pid + self._round) % SELDOM == 0:
                try:
                    used = process.look(now_s, before_s)
                except (FileNotFoundError, ProcessLookupError):  # it ended
                    continue
                except OSError:  # no more files can be opened, say: it goes on from where it was seen last
                    used = 0.0
                if used > 0:
                    cores[pid] = used
            self._known[pid] = process
            if process.last is not None:
                stats[pid] = process.last
        return stats, cores

    def _detail(self, pid: int) -> Detail:
        process = self._known[pid]
        labels = self._labels(process.container(pid, self._procfs))
        return Detail(_open_files(f"{self._procfs}/{pid}/fd"), process.io(), labels)


def _open_files(directory: str) -> int | None:
    """Their number, if we may know. Linux 6.2 and newer has it as the size of the directory."""
    try:
        return os.stat(directory).st_size or len(os.listdir(directory))
    except OSError:
        return None


def measure(now: Reading, before: Reading | None, elapsed_s: float) -> Iterator[Measured]:
    """Nothing if nothing was read since. CPU time is told in cores: 2.0 are two cores, all the time."""
    if now is before:
        return
    passed_s = now.at_s - before.at_s if before else 0.0
    for pid, detail in now.details.items():
        stat = now.stats[pid]
        metrics: dict[str, float] = {"rss_bytes": stat.rss_pages * _PAGE_BYTES, "threads": stat.threads}
        if before is not None:
            metrics["cpu_cores"] = now.cores.get(pid, 0.0)
        if detail.open_files is not None:
            metrics["open_files"] = detail.open_files
        metrics |= rates(detail.io, _io_before(before, pid, stat), passed_s, _IO)
        yield Measured("process", str(pid), metrics, {"name": stat.name, **detail.labels})


def _io_before(before: Reading | None, pid: int, stat: Stat) -> dict[str, int] | None:
    same = before is not None and pid in before.details and before.stats[pid].started == stat.started
    return before.details[pid].io if before is not None and same else None
