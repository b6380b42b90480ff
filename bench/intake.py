"""What the gateway and StatsD take per core: ``python -m bench intake``.

Each source runs in a process of its own, with an outlet that takes everything at once; this process sends. "Per core"
is what was taken by the CPU seconds of the source's process, which senders on the other cores do not touch. Latency is
from sending to the answer, of requests sent at fixed times at half of what the gateway took before; where the sender
itself was late, the machine was busy with others. "Embedded log" is the same gateway through the agent's carrier into a
log on disk.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import selectors
import socket
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

from streammon.broker import Outgoing
from streammon.broker.embedded import EmbeddedBroker
from streammon.config import load
from streammon.events import EventType
from streammon.topics import topic_specs
from streammon.wire import Density, encode
from streammon_agents.carrier import Carrier
from streammon_agents.gateway import cloudevents, events
from streammon_agents.gateway.serving import Gateway
from streammon_agents.packing import Packer
from streammon_agents.source import Event, Outlet
from streammon_agents.statsd.serving import Statsd

SECONDS = 3.0
CONNECTIONS = 16
BATCH = 200


class Nowhere:
    """An outlet that takes everything."""

    def put(self, event_type: EventType, events: Sequence[Event]) -> None: ...
    async def send(self, event_type: EventType, events: Sequence[Event]) -> None: ...
    async def append(self, records: Sequence[Outgoing]) -> None: ...
    async def backlog_bytes(self) -> int:
        return 0

    def drop(self, reason: StrEnum, events: int = 1) -> None: ...
    def refuse(self, reason: StrEnum, inputs: int = 1) -> None: ...
    def degraded(self, why: str | None) -> None: ...


# --- the source, in its process -------------------------------------------------------------------------------


def serve(kind: str, told: Connection) -> None:
    asyncio.run(_serve(kind, told))


async def _serve(kind: str, told: Connection) -> None:
    """Tell the port; then answer every question with the CPU seconds so far, until the question is None."""
    with tempfile.TemporaryDirectory() as path:
        settings = load(data_dir=Path(path), agent={"gateway": {"port": 0}, "statsd": {"port": 0}})
        out: Outlet = Nowhere()
        if kind == "embedded":
            broker = await EmbeddedBroker.open(settings)
            await broker.create_topics(topic_specs(partitions=4))
            out = Carrier(broker, Packer("bench")).outlet("gateway")
        limits = settings.agent.gateway
        source: Any = Gateway(
            limits, lambda out: [*events.routes(out, limits), *cloudevents.routes(out, limits)], told.send
        )
        if kind == "statsd":
            source = Statsd(settings.agent.statsd, "bench", listening=told.send)
        running = asyncio.create_task(source.run(out))
        while await asyncio.to_thread(told.recv) is not None:
            told.send(time.process_time())
        running.cancel()
        await asyncio.wait({running})


class Served(NamedTuple):
    port: int
    cpu_s: Callable[[], float]


@contextmanager
def served(kind: str) -> Iterator[Served]:
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(kind, theirs), daemon=True)
    process.start()

    def cpu_s() -> float:
        ours.send("cpu")
        return float(ours.recv())

    yield Served(ours.recv(), cpu_s)
    ours.send(None)
    process.join(10)


# --- the senders ----------------------------------------------------------------------------------------------


def request(body: bytes, path: str = events.PATH, headers: str = "Content-Type: application/json\r\n") -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: bench\r\n{headers}Content-Length: {len(body)}\r\n\r\n".encode() + body


def inference(number: int) -> dict[str, Any]:
    return {
        "time_unix_s": 1.7e9 + number / 1000,
        "service": "shop",
        "model": "ranker",
        "endpoint": "/rank",
        "duration_s": 0.012 + number % 97 / 1e4,
        "status": "ok",
        "event_id": f"e{number}",
    }


class Paced(NamedTuple):
    """Seconds that each request waited for its answer, and by which it was sent later than it was due."""

    waited: list[float]
    late: list[float]

    def __str__(self) -> str:
        p50, p99 = (statistics.quantiles(self.waited, n=100)[at - 1] * 1e3 for at in (50, 99))
        late = statistics.quantiles(self.late, n=100)[98] * 1e3
        return f"p50 {p50:.2f} ms, p99 {p99:.2f} ms (p99 of the sender's own lateness {late:.2f} ms)"


class Senders:
    """Connections that each have one request under way."""

    def __init__(self, port: int) -> None:
        self.selector = selectors.DefaultSelector()
        self.idle: deque[socket.socket] = deque()
        for _ in range(CONNECTIONS):
            opened = socket.create_connection(("127.0.0.1", port))
            opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.selector.register(opened, selectors.EVENT_READ)
            self.idle.append(opened)

    def answered(self, wait_s: float) -> list[socket.socket]:
        found = []
        for key, _ in self.selector.select(wait_s):
            opened: Any = key.fileobj
            answer = opened.recv(65_536)
            if not answer.startswith((b"HTTP/1.1 202", b"HTTP/1.1 200")):
                raise RuntimeError(answer[:300].decode(errors="replace"))
            found.append(opened)
        return found

    def flood(self, requests: Sequence[bytes], seconds: float = SECONDS) -> int:
        """As many as go; the number answered."""
        sent = answers = 0
        end = time.monotonic() + seconds
        while time.monotonic() < end or len(self.idle) < CONNECTIONS:
            while self.idle and time.monotonic() < end:
                self.idle.popleft().sendall(requests[sent % len(requests)])
                sent += 1
            back = self.answered(0.1)
            answers += len(back)
            self.idle.extend(back)
        return answers

    def paced(self, requests: Sequence[bytes], per_s: float, seconds: float = SECONDS) -> Paced:
        started, sent = time.monotonic(), 0
        under_way: dict[socket.socket, float] = {}
        waited: list[float] = []
        late: list[float] = []
        while (now := time.monotonic()) < started + seconds or under_way:
            while self.idle and (due := started + sent / per_s) <= now < started + seconds:
                opened = self.idle.popleft()
                under_way[opened] = time.monotonic()
                late.append(under_way[opened] - due)
                opened.sendall(requests[sent % len(requests)])
                sent += 1
            for opened in self.answered(max(min(started + sent / per_s - time.monotonic(), 0.1), 0.0)):
                waited.append(time.monotonic() - under_way.pop(opened))
                self.idle.append(opened)
        return Paced(waited, late)


def rate(served: Served, requests: Sequence[bytes], events_each: float = 1) -> tuple[float, float]:
    """Events by CPU second of the source's process, and by second."""
    senders = Senders(served.port)
    senders.flood(requests, 0.5)  # the start is not what is asked
    before, started = served.cpu_s(), time.monotonic()
    answers = senders.flood(requests)
    elapsed, cpu = time.monotonic() - started, served.cpu_s() - before
    return answers * events_each / cpu, answers * events_each / elapsed


def pairs() -> list[bytes]:
    """Requests and responses as KServe sends them; an id comes again only after it was forgotten."""
    found = []
    for number in range(20_000):
        for kind, body in (("request", {"instances": [[5.1, 3.5, 1.4, 0.2]]}), ("response", {"predictions": [2]})):
            attributes = {
                "specversion": "1.0",
                "id": f"r{number}",
                "source": "http://localhost:9081/",
                "type": f"org.kubeflow.serving.inference.{kind}",
                "time": "2023-11-14T22:13:20.123456789Z",
                "inferenceservicename": "iris",
                "namespace": "default",
                "component": "predictor",
                "endpoint": "default",
            }
            headers = "".join(f"Ce-{name.capitalize()}: {value}\r\n" for name, value in attributes.items())
            data = json.dumps(body).encode()
            found.append(request(data, cloudevents.PATH, f"Content-Type: application/json\r\n{headers}"))
    return found


def gateway() -> None:
    single = [request(json.dumps({"type": "inference", **inference(n)}).encode()) for n in range(1000)]
    sample = [inference(n) for n in range(BATCH)]
    lines = b"\n".join(json.dumps({"type": "inference", **event}).encode() for event in sample)
    with served("gateway") as source:
        cores, seconds = rate(source, single)
        print(f"single events by HTTP                {cores:9,.0f}/s per core  {seconds:9,.0f}/s")
        print(f"  at half of that, {seconds / 2:,.0f}/s: {Senders(source.port).paced(single, seconds / 2)}")
        for density in (Density.PACKED, Density.ARRAY):
            [value] = encode(EventType.INFERENCE, sample, density)
            cores, seconds = rate(source, [request(value)], BATCH)
            print(f"batches of {BATCH}, {density.value:<25} {cores:9,.0f}/s per core  {seconds:9,.0f}/s")
        ndjson = [request(lines, headers=f"Content-Type: {events.NDJSON}\r\n")]
        cores, seconds = rate(source, ndjson, BATCH)
        print(f"batches of {BATCH}, lines                     {cores:9,.0f}/s per core  {seconds:9,.0f}/s")
        cores, seconds = rate(source, pairs())
        print(f"CloudEvents of KServe, two a prediction {cores:6,.0f}/s per core  {seconds:9,.0f}/s")
    with served("embedded") as source:
        cores, seconds = rate(source, single)
        print(f"single events into the embedded log  {cores:9,.0f}/s per core  {seconds:9,.0f}/s")
        print(f"  at half of that, {seconds / 2:,.0f}/s: {Senders(source.port).paced(single, seconds / 2)}")


def statsd() -> None:
    line = b"shop.%s:%d|%s|#service:shop,env:prod,endpoint:/e%d"
    kinds = ((b"hits", b"c"), (b"latency", b"ms"), (b"queue", b"g"))
    lines = [line % (name, n, kind, n % 50) for n in range(300) for name, kind in kinds]
    packed = [b"\n".join(lines[at : at + 20]) for at in range(0, len(lines), 20)]
    for what, packets, each in (("one line", lines, 1), ("20 lines", packed, 20)):
        with served("statsd") as source, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.connect(("127.0.0.1", source.port))
            per_s, before, started = 10_000 / each**0.5, source.cpu_s(), time.monotonic()  # well below what it takes
            sent = 0
            while (now := time.monotonic()) < started + SECONDS:
                while sent < (now - started) * per_s:
                    sender.send(packets[sent % len(packets)])
                    sent += 1
                time.sleep(0.001)
            cpu = source.cpu_s() - before
            print(
                f"StatsD packets of {what}           {sent / cpu:9,.0f}/s per core "
                f"({sent * each / cpu:,.0f} lines/s), at {per_s:,.0f}/s"
            )


if __name__ == "__main__":
    gateway()
    statsd()
