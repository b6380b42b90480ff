"""Processes: those that use most CPU and most memory, from raw ``/proc``.

All processes are looked at, and the top by each measure are told. Command lines are not read, because people put
secrets there: a process is known by the name that the kernel has (15 characters), its number, and its container.

How that is cheap: ``/proc/PID/stat`` of every process is kept open, and compared with what it said before, so that of a
process that slept there is nothing to parse. One that slept for a while is looked at every `SELDOM` times only; what it
spends after that is told as a mean over the time since it was looked at last. New ones are looked for every other time,
and what they spent before is theirs, too. The more processes there are beyond `AT_ONCE`, the less often all of that is
done, so that their number does not matter.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from heapq import nlargest
from operator import attrgetter
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
LISTED = 2
"""New processes are looked for every so many times."""
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
    """Of those at the top, and what is looked up for them alone."""

    stat: Stat
    cores: float | None
    """CPU time a second since it was looked at before."""
    open_files: int | None
    io: dict[str, int]
    labels: dict[str, str]


class Reading(NamedTuple):
    at_s: float
    details: dict[int, Detail]


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


class _Process:
    """One that is looked at again and again."""

    __slots__ = ("_container", "_data", "_io", "_looked_s", "_stat", "last", "pid", "quiet", "rss_pages")

    def __init__(self, procfs: str, pid: int, since_s: float) -> None:
        """It is not older than ``since_s``, or, if that is negative, nobody knows how old."""
        self.pid = pid
        self._stat = File(f"{procfs}/{pid}/stat")
        self._io: File | None = File(f"{procfs}/{pid}/io")
        self._data = b""
        self._looked_s = since_s
        self.last: Stat | None = None
        self.rss_pages = 0
        self.quiet = 0
        """How often in succession it had done nothing."""
        self._container: tuple[str, Container | None] | None = None

    def look(self, now_s: float) -> float:
        """Cores it used since it was looked at. Raises OSError."""
        data = self._stat.read()
        since_s, self._looked_s = self._looked_s, now_s
        if data == self._data:
            self.quiet += 1
            return 0.0
        self._data, old, self.last = data, self.last, parse_stat(data)
        self.quiet = 0
        self.rss_pages = self.last.rss_pages if self.last else 0
        if self.last is None or not 0 <= since_s < now_s:
            return 0.0
        began_with = old.ticks if old is not None and old.started == self.last.started else 0
        return max(self.last.ticks - began_with, 0) / _TICKS_PER_S / (now_s - since_s)

    def container(self, procfs: str) -> Container | None:
        """Looked up anew when its name changes: a runtime moves into the container, then becomes its program."""
        name = self.last.name if self.last else ""
        if self._container is None or self._container[0] != name:
            self._container = name, container_of(self.pid, procfs)
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
        self._listed_s = -1.0
        self._last: Reading | None = None
        self._skipped = self._round = 0

    def read(self) -> Reading:
        """The same reading again if it is not time yet for another."""
        if self._last is not None and self._skipped < (len(self._known) - 1) // self._at_once:
            self._skipped += 1
            return self._last
        now_s = self._monotonic()
        if self._round % LISTED == 0:
            self._list(now_s)
        cores = self._look(now_s)
        self._skipped, self._round = 0, self._round + 1
        told = {process.pid: self._detail(process, cores) for process in self._top_of(cores)}
        self._last = Reading(now_s, {pid: detail for pid, detail in told.items() if detail is not None})
        return self._last

    def _list(self, now_s: float) -> None:
        """Who is there now; the others are forgotten."""
        there = set(map(int, filter(str.isdecimal, os.listdir(self._procfs))))
        for pid in self._known.keys() - there:
            del self._known[pid]
        for pid in there - self._known.keys():
            self._known[pid] = _Process(self._procfs, pid, self._listed_s)
        self._listed_s = now_s

    def _look(self, now_s: float) -> dict[int, float]:
        """Cores of those who used any."""
        told, cores = self._last.details if self._last else {}, {}
        due = [
            process
            for process in self._known.values()
            if process.quiet < QUIET or process.pid in told or (process.pid + self._round) % SELDOM == 0
        ]
        for process in due:
            try:
                used = process.look(now_s)
            except (FileNotFoundError, ProcessLookupError):  # it ended
                del self._known[process.pid]
                continue
            except OSError:  # no more files can be opened, say: it goes on from where it was seen last
                continue
            if used > 0:
                cores[process.pid] = used
        return cores

    def _top_of(self, cores: Mapping[int, float]) -> Iterable[_Process]:
        """By CPU, then by memory."""
        by_cpu = [self._known[pid] for pid in nlargest(self._top, cores, key=cores.__getitem__)]
        by_memory = nlargest(self._top, self._known.values(), key=_rss_pages)
        return dict.fromkeys((*by_cpu, *(process for process in by_memory if process.rss_pages > 0)))

    def _detail(self, process: _Process, cores: Mapping[int, float]) -> Detail | None:
        if process.last is None:
            return None
        return Detail(
            process.last,
            cores.get(process.pid, 0.0) if self._last else None,
            _open_files(f"{self._procfs}/{process.pid}/fd"),
            process.io(),
            self._labels(process.container(self._procfs)),
        )


_rss_pages = attrgetter("rss_pages")


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
        stat, old = detail.stat, before.details.get(pid) if before else None
        same = old is not None and old.stat.started == stat.started
        metrics: dict[str, float] = {"rss_bytes": stat.rss_pages * _PAGE_BYTES, "threads": stat.threads}
        if detail.cores is not None:
            metrics["cpu_cores"] = detail.cores
        if detail.open_files is not None:
            metrics["open_files"] = detail.open_files
        metrics |= rates(detail.io, old.io if old and same else None, passed_s, _IO)
        yield Measured("process", str(pid), metrics, {"name": stat.name, **detail.labels})
