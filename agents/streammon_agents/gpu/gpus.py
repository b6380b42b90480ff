"""All GPUs of this host through NVML, beat by beat.

`Gpus.measure` does not raise over what NVML says. A GPU that is lost costs the others nothing: from then on it is told
as ``up`` 0, under the labels it had, until it is back. Totals become increases; they are remembered by GPU for as long
as the agent lives, so that none is lost where NVML is opened anew.
"""

from __future__ import annotations

import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from itertools import chain, starmap
from pathlib import Path
from typing import NamedTuple

from streammon.config import GpuSettings
from streammon_agents.containers import container_of
from streammon_agents.containers.labels import Labels, no_labels
from streammon_agents.gpu.checking import check
from streammon_agents.gpu.devices import Answers, Device, DeviceGoneError, LibraryGoneError, instances
from streammon_agents.gpu.holding import of_holder
from streammon_agents.gpu.pods import Pods
from streammon_agents.gpu.processes import Utilization, memory_of_processes
from streammon_agents.gpu.questions import EVERYTHING, FIELDS_OFTEN, OF_INSTANCES, OFTEN, Values
from streammon_agents.gpu.session import Session, called
from streammon_agents.gpu.xids import Xid, counters
from streammon_agents.source import Finding, Measured


class Seen(NamedTuple):
    """What was measured, what was not and why, and how many things there was no room for."""

    things: list[Measured]
    why: str | None = None
    left_out: int = 0


class Increases:
    """Totals as what was added since they were last seen. A total that fell has begun anew."""

    def __init__(self) -> None:
        self._last: dict[tuple[str, str], float] = {}

    def of(self, id_: str, totals: Mapping[str, float]) -> Values:
        """The first sight of a total is where it is counted from, and gives nothing."""
        increases = {}
        for name, total in totals.items():
            before = self._last.get((id_, name))
            self._last[id_, name] = total
            if before is not None:
                increases[name] = total - before if total >= before else total
        return increases


class Gpus:
    """May be called from several threads, which wait for each other."""

    def __init__(
        self,
        settings: GpuSettings,
        interval_s: float,
        procfs: Path,
        sysfs: Path = Path("/sys"),
        *,
        of_container: Labels = no_labels,
        session: Session | None = None,
        expected: bool = True,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings, self._procfs, self._sysfs, self._monotonic = settings, procfs, sysfs, monotonic
        self._seldom = max(1, round(settings.slow_s / interval_s))
        self._now_and_then = max(1, round(settings.processes_s / interval_s))
        self._of_container, self._session, self._expected = of_container, session or Session(), expected
        self._pods = Pods(settings.pod_resources)
        self._lock = threading.Lock()
        self._of_pid: dict[int, tuple[dict[str, str], bool]] = {}
        self._increases, self._utilization = Increases(), Utilization()
        self._beats = 0
        # Of the beat at hand:
        self._xids: dict[str, Counter[Xid]] = {}
        self._silent: list[str] = []
        self._left_out = 0

    def measure(self) -> Seen:
        """Everything that is due on this beat."""
        with self._lock:
            now_s = self._monotonic()
            self._silent, self._left_out = [], 0
            self._session.tend(now_s)
            if self._beats % self._seldom == 0 and self._session.gpus:
                self._pods.refresh()
                self._of_pid.clear()
            self._xids = self._xids_by_device()
            things = list(self._present(now_s))
            things += self._missing({thing.id for thing in things})
            self._beats += 1
            why = [*self._session.why, *self._silent, *filter(None, [self._pods.why])]
            if self._session.never_was and not self._expected:
                why = []  # a machine without a GPU misses nothing
            return Seen(things, "; ".join(why) or None, self._left_out)

    def check(self) -> Iterator[Finding]:
        """In a session of its own: it may be asked beside `measure`."""
        return check(self._settings, self._sysfs, self._monotonic())

    def close(self) -> None:
        """Let go of NVML."""
        with self._lock:
            self._session.close()

    def _present(self, now_s: float) -> Iterator[Measured]:
        for position, gpu in enumerate(list(self._session.gpus)):
            try:
                yield from self._gpu(gpu, self._beats + position, now_s)  # not all GPUs on the same beat
            except DeviceGoneError as error:
                self._session.lose(gpu, error, now_s)
            except LibraryGoneError as error:
                self._session.fail(error, now_s)
                return

    def _missing(self, told: set[str]) -> list[Measured]:
        gone = self._session.missing.items()
        return [self._thing(id_, {"up": 0.0}, {}, labels) for id_, labels in gone if id_ not in told]

    def _gpu(self, gpu: Device, beat: int, now_s: float) -> list[Measured]:
        """A GPU with its instances and processes; none of it where the GPU is lost halfway: first all is asked."""
        seldom = not gpu.asked or beat % self._seldom == 0
        if seldom:
            gpu.parts = instances(gpu, now_s)
        questions, fields = EVERYTHING if seldom else (OFTEN, FIELDS_OFTEN)
        answers = gpu.ask(questions, fields, now_s)
        if not answers.values:
            self._silent.append(f"{called(gpu.labels)} answers nothing: {next(iter(gpu.absent.values()), 'no reason')}")
        of_parts = [(part, part.ask(OF_INSTANCES, (), now_s)) for part in gpu.parts]
        due = self._settings.processes and (seldom or beat % self._now_and_then == 0)
        on = (gpu.parts or [gpu]) if due else []
        of_processes = [process for device in on for process in self._processes(device, now_s)]
        gpu.asked = True
        found = self._device(gpu, answers, xids=seldom and gpu.id in self._session.watched)
        return [*found, *chain.from_iterable(starmap(self._device, of_parts)), *of_processes]

    def _device(self, device: Device, answers: Answers, xids: bool = False) -> list[Measured]:
        thing = self._thing(device.id, {"up": 1.0} | answers.values, answers.totals, device.labels, xids)
        return [thing, *of_holder(thing, self._pods.labels(device))]

    def _thing(
        self, id_: str, values: Values, totals: Values, labels: Mapping[str, str], xids: bool = False
    ) -> Measured:
        """``xids``: also say that there were none."""
        added = self._increases.of(id_, totals)
        seen = self._xids.pop(id_, Counter())
        if seen or xids:
            added |= counters(seen)
        return Measured("gpu", id_, values, dict(labels), added or None)

    def _xids_by_device(self) -> dict[str, Counter[Xid]]:
        """What is about one MIG instance is told of that one, all else of the GPU."""
        parts = {(gpu.id, part.instance): part.id for gpu in self._session.gpus for part in gpu.parts}
        seen: dict[str, Counter[Xid]] = defaultdict(Counter)
        for xid, count in self._session.take_xids().items():
            seen[parts.get((xid.gpu, xid.instance), xid.gpu)][xid] += count
        return seen

    # --- processes ----------------------------------------------------------------------------------------

    def _processes(self, device: Device, now_s: float) -> Iterator[Measured]:
        """The largest come first."""
        held, busy = memory_of_processes(device, now_s), self._utilization.of(device, now_s)
        pids = sorted(held.keys() | busy.keys(), key=lambda pid: (-(held.get(pid) or 0.0), pid))
        self._left_out += len(pids[self._settings.max_processes :])
        for pid in pids[: self._settings.max_processes]:
            memory = held.get(pid)
            values = busy.get(pid, {}) | ({} if memory is None else {"memory_used_bytes": memory})
            if values:
                yield Measured("gpu_process", f"{device.id}/{pid}", values, self._labels_of(pid, device))

    def _labels_of(self, pid: int, device: Device) -> dict[str, str]:
        """What is in a pod at all is of the pod that holds the GPU; other processes look after the node."""
        if pid not in self._of_pid:
            self._of_pid[pid] = self._of_process(pid)
        known, in_pod = self._of_pid[pid]
        return {"gpu": device.id, **(self._pods.labels(device) if in_pod else {}), **known}

    def _of_process(self, pid: int) -> tuple[dict[str, str], bool]:
        """Labels that it has on every GPU, and whether it is in a pod."""
        labels = {"pid": str(pid)}
        with suppress(OSError):
            labels["name"] = (self._procfs / str(pid) / "comm").read_text(errors="replace").strip()
        container = container_of(pid, self._procfs)
        return labels | self._of_container(container), container is not None and container.pod_uid is not None
