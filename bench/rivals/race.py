"""One contestant on one log: a Kafka of its own, its CPU time until the last row is published, and its rows."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from bench.rivals import environment
from bench.rivals.contestants import ALL, SOURCE, Contestant, Site
from bench.rivals.results import Score
from bench.rivals.workload import PARTITIONS, Truth, Window, Workload
from streammon import servers

POLL_MS = 50
PATIENCE_S = 90.0
"""Without a new row for this long, what is missing does not come any more. (A killed member of a group may hold its
partitions for a minute: Faust's default session.)"""
SETTLE_S = 10.0
"""After a kill: how long rows that are too many may take to come."""
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Course:
    """A Kafka's data with the log in it, to be copied for each race, and the result to be reached."""

    workload: Workload
    truth: Mapping[Window, Truth]
    data: Path


@dataclass(frozen=True)
class Usage:
    """What a group of processes has used so far."""

    cpu_s: float
    peak_rss_bytes: int


@dataclass(frozen=True)
class Outcome:
    """`usage` and `wall_s` are as of the last row."""

    usage: Usage
    wall_s: float
    missing: int
    wrong: int
    duplicate: int


class Failed(Exception):  # noqa: N818 - names what happened
    """The contestant ended by itself or published nothing; the message carries the end of its output."""


@contextmanager
def course(events: int) -> Iterator[Course]:
    """The log lies a little in the past: nobody waits for it, and no broker takes it for outdated."""
    length_s = int(events / 1000) + 120
    workload = Workload(events, (int(time.time()) - length_s) // 60 * 60)
    with tempfile.TemporaryDirectory(prefix="rivals-course-") as directory:
        with servers.start("kafka", Path(directory)) as kafka:
            asyncio.run(_create_topics(kafka.address))
            fill = [environment.python(), "-m", "bench.rivals.fill", kafka.address, SOURCE]
            subprocess.run([*fill, str(events), str(workload.start_unix_s)], cwd=environment.ROOT, check=True)
        yield Course(workload, workload.truth(), Path(directory))


async def _create_topics(bootstrap: str) -> None:
    """Those that are read or filled here; the contestants make what else they use."""
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap)
    await admin.start()
    results = [NewTopic(name, PARTITIONS, 1) for name in {each.results for each in ALL}]
    source = NewTopic(SOURCE, PARTITIONS, 1, topic_configs={"message.timestamp.type": "LogAppendTime"})
    await admin.create_topics([source, *results])
    await admin.close()


def race(contestant: Contestant, course: Course, *, kill: bool = False) -> Outcome:
    """From spawn to the last row. With `kill`, SIGKILL in the middle and a second start, whose CPU is not told.

    Raises `Failed` if the program ends by itself or publishes nothing, `environment.Unavailable` if it cannot be had.
    """
    with tempfile.TemporaryDirectory(prefix=f"rivals-{contestant.name}-") as scratch:
        data, own = Path(scratch) / "kafka", Path(scratch) / "own"
        own.mkdir()
        shutil.copytree(course.data, data)
        with servers.start("kafka", data) as kafka:
            site = Site(kafka.address, own)
            return asyncio.run(_race(contestant, course, site, kill=kill))


async def _race(contestant: Contestant, course: Course, site: Site, *, kill: bool) -> Outcome:
    command = contestant.command(site)  # prepares what it needs, which takes no part in the race
    reader = AIOKafkaConsumer(bootstrap_servers=site.bootstrap, isolation_level="read_committed")
    await reader.start()
    reader.assign([TopicPartition(contestant.results, partition) for partition in range(PARTITIONS)])
    await reader.seek_to_beginning()
    score = Score(course.truth, contestant.quantile_error)
    watch = _Watch(command, site.directory, reader, lambda value: score.add(contestant.read(value)))
    try:
        if kill:
            await watch.until(lambda: score.seen >= len(course.truth) // 3)
            watch.restart()
            await watch.until(lambda: not score.missing and watch.quiet_s > SETTLE_S)
        else:
            await watch.until(lambda: not score.missing)
    finally:
        watch.kill()
        await reader.stop()
    if not score.seen:
        raise Failed(f"published nothing within {PATIENCE_S:.0f} s: {watch.output}")
    return Outcome(watch.usage, watch.wall_s, score.missing, score.wrong, score.duplicate)


class _Watch:
    """Starts the contestant, reads what it publishes, and notes what it had used when the last row came."""

    def __init__(
        self, command: Sequence[str], directory: Path, reader: AIOKafkaConsumer, take: Callable[[bytes], None]
    ) -> None:
        self._command, self._log = command, directory / "output.log"
        self._reader, self._take = reader, take
        self.usage = Usage(0.0, 0)
        self._started = self._last_row = time.monotonic()
        self._process = self._spawn()

    @property
    def wall_s(self) -> float:
        return self._last_row - self._started

    @property
    def quiet_s(self) -> float:
        return time.monotonic() - self._last_row

    @property
    def output(self) -> str:
        return self._log.read_text(errors="replace")[-2000:]

    async def until(self, done: Callable[[], bool]) -> None:
        """Read on, or until nothing has come for so long that nothing will."""
        while not done() and self.quiet_s < PATIENCE_S:
            if self._process.poll() is not None:
                raise Failed(f"ended with status {self._process.returncode}: {self.output}")
            polled = await self._reader.getmany(timeout_ms=POLL_MS)
            for record in chain.from_iterable(polled.values()):
                self._take(record.value or b"")
            if polled:
                self._last_row, self.usage = time.monotonic(), _usage(self._process.pid)

    def restart(self) -> None:
        self.kill()
        self._process = self._spawn()

    def kill(self) -> None:
        """SIGKILL to all of it. Results are read as committed: what was to be published, was."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _spawn(self) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            return subprocess.Popen(
                self._command, cwd=self._log.parent, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                start_new_session=True, env=_environment(),
            )  # fmt: skip


def _environment() -> dict[str, str]:
    """Installed programs keep their bytecode, whatever the one who starts the race has said about his own."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**inherited, "PYTHONPATH": str(environment.ROOT)}


def _usage(group: int) -> Usage:
    """Of the processes of a group now, and of their children that have ended (proc(5), `stat`)."""
    cpu_s, rss_bytes = 0.0, 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has just ended
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[2]) == group:
                cpu_s += sum(map(int, fields[11:15])) / TICKS_PER_S
                rss_bytes += _peak_rss_bytes(stat.with_name("status").read_text())
    return Usage(cpu_s, rss_bytes)


def _peak_rss_bytes(status: str) -> int:
    return next((int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM:")), 0)
