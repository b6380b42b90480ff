"""What an agent of a node costs, beside others on the same machine at the same time: ``python -m bench node_agent``.

Starts 250 processes that sleep, then all agents, each a process of its own, at one measurement a second, for
``--seconds``; prints the share of a core (CPU time of the process, by the kernel) and the memory it holds at the end.

* streammon with host, containers and processes, into a Kafka (``--kafka``: one is started), and into the embedded log,
  which is then in its process.
* node_exporter (``prometheus-node-exporter`` on the PATH, or ``--node-exporter``), scraped once a second: as it is, and
  with its collector of processes, which sums them up by state. It has no containers.
* the OpenTelemetry Collector (``--collector``) with ``hostmetrics``, each process included. It has no containers.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from streammon import servers
from streammon.config import load
from streammon.events import EventType
from streammon_agents.containers.source import probes_of as container_probes
from streammon_agents.host.linux import probes_of as host_probes
from streammon_agents.packing import Packer
from streammon_agents.source import Beat

PROCESSES = 250
WARM_S = 8.0
_TICKS_PER_S, _PAGE_BYTES = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")

COLLECTOR = """
receivers:
  hostmetrics:
    collection_interval: 1s
    scrapers: {cpu: {}, disk: {}, filesystem: {}, load: {}, memory: {}, network: {}, paging: {}, processes: {},
      process: {mute_process_all_errors: true}}
processors: {batch: {}}
exporters: {nop: {}}
service:
  telemetry: {metrics: {level: none}, logs: {level: error}}
  pipelines: {metrics: {receivers: [hostmetrics], processors: [batch], exporters: [nop]}}
"""


class Cost(NamedTuple):
    cpu_s: float
    rss_bytes: int


def cost_of(pid: int) -> Cost:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    return Cost((int(fields[11]) + int(fields[12])) / _TICKS_PER_S, int(fields[21]) * _PAGE_BYTES)


@contextmanager
def started(*command: str | Path, **environment: str) -> Iterator[int]:
    process = subprocess.Popen(
        [*map(str, command)],
        env={**os.environ, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process.pid
    finally:
        process.terminate()
        process.wait()


@contextmanager
def sleeping(count: int) -> Iterator[None]:
    processes = [subprocess.Popen(["sleep", "100000"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()


@contextmanager
def scraped(address: str) -> Iterator[None]:
    """Once a second, by a thread of ours: what it costs us is not theirs."""
    over = threading.Event()

    def scrape() -> None:
        while not over.wait(1.0):
            with urllib.request.urlopen(f"http://{address}/metrics", timeout=5) as page:
                page.read()

    thread = threading.Thread(target=scrape)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def free_address() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return f"127.0.0.1:{server.getsockname()[1]}"


def streammon_agent(within: ExitStack, *arguments: str | Path) -> int:
    directory = within.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
    program = "from streammon.cli import main; main()"
    return within.enter_context(started(sys.executable, "-c", program, "agent", "--data-dir", directory, *arguments))


def node_exporter(within: ExitStack, program: str, *arguments: str) -> int:
    address = free_address()
    pid = within.enter_context(started(program, f"--web.listen-address={address}", *arguments))
    within.enter_context(scraped(address))
    return pid


def contestants(given: argparse.Namespace, within: ExitStack) -> Iterator[tuple[str, int]]:
    """What is measured, and its process."""
    if given.kafka:
        directory = within.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
        kafka = within.enter_context(servers.start("kafka", Path(directory)))
        yield "streammon agent, into Kafka", streammon_agent(within, "--bootstrap", kafka.address)
    yield "streammon agent, with the embedded log", streammon_agent(within)
    if program := given.node_exporter or shutil.which("prometheus-node-exporter") or shutil.which("node_exporter"):
        yield "node_exporter, scraped", node_exporter(within, program)
        yield "node_exporter with processes, scraped", node_exporter(within, program, "--collector.processes")
    if program := given.collector:
        file = Path(within.enter_context(tempfile.TemporaryDirectory())) / "collector.yaml"
        file.write_text(COLLECTOR)
        pid = within.enter_context(started(program, "--config", file))
        yield "OpenTelemetry Collector with processes", pid


def compare(given: argparse.Namespace) -> None:
    with ExitStack() as within:
        within.enter_context(sleeping(given.processes))
        pids = dict(contestants(given, within))
        time.sleep(WARM_S)
        count = sum(name.isdecimal() for name in os.listdir("/proc"))  # noqa: PTH208
        before, at = {name: cost_of(pid) for name, pid in pids.items()}, time.monotonic()
        time.sleep(given.seconds)
        elapsed_s = time.monotonic() - at
        print(f"{count} processes, one measurement a second, {elapsed_s:.0f} s")
        for name, pid in pids.items():
            now = cost_of(pid)
            share = (now.cpu_s - before[name].cpu_s) / elapsed_s
            print(f"  {name:<40} {share:7.2%} of a core  {now.rss_bytes / 1e6:5.0f} MB")


def parts(repeat: int = 100) -> None:
    """What each probe costs, without the process around it."""
    agent = load().agent
    with sleeping(PROCESSES):
        events = []
        for probe in (*host_probes("bench", agent)[0], *container_probes(agent, "bench")[0]):
            beat = Beat("bench", [probe])
            beat.measure()
            begun_s = time.process_time()
            for _ in range(repeat):
                measured = beat.measure()
            print(f"  {probe.name:<14} {(time.process_time() - begun_s) / repeat * 1e6:6.0f} us")
            events += measured
    packer, begun_s = Packer("host@bench"), time.process_time()
    for _ in range(repeat):
        packer.pack(EventType.RESOURCE, events)
    print(f"  {'packing':<14} {(time.process_time() - begun_s) / repeat * 1e6:6.0f} us, {len(events)} events")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench node_agent", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long each is watched")
    parser.add_argument("--processes", type=int, default=PROCESSES, help="that sleep; there are others here")
    parser.add_argument("--kafka", action="store_true", help="also into a Kafka, which is started")
    parser.add_argument("--node-exporter", help="its program, if it is not on the PATH")
    parser.add_argument("--collector", help="a program of the OpenTelemetry Collector with hostmetrics and nop")
    compare(parser.parse_args(arguments))
    parts()


if __name__ == "__main__":
    main()
