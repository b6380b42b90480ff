"""How soon a person is told: from an event that makes an alert to the page at its receiver, on a real Kafka.

Three processes, as one runs them, ``process windows``, ``rules run`` and ``notify``, and a receiver of webhooks, which
is this one. Services send ten good events a second; now and then one more service, which nobody has heard of before,
sends a failing one, and a rule with ``for_s: 0`` and a route with ``group_wait: 0`` make a page of it. Counted is from
the moment at which the window of that event may close (its end and the lateness): the bar is 2 s, p99. Also where the
time goes.

* busy: all partitions are written to all the time, so that the next event closes a window;
* quiet: nothing but the failing service is written to, and ticks let the time pass.
"""

from __future__ import annotations

import asyncio
import json
import random
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from aiohttp import web

from streammon import servers
from streammon.broker import Broker, Outgoing, connect
from streammon.broker.reading import read
from streammon.config import Settings
from streammon.notifications import Notification
from streammon.results import Alert
from streammon.topics import topic_specs

PARTITIONS = 4
SIZE_S, LATENESS_S = 2.0, 1.0
STEADY = 8
EVENTS_S = 10.0
PAGES, EVERY_S = 150, 0.6
QUIET_PAGES, QUIET_EVERY_S = 12, 8.0
PATIENCE_S = 30.0
PROGRAM = "from streammon.cli import main; main()"
RULE = {
    "name": "failing",
    "source": "inference",
    "field": "error_rate",
    "above": 0.5,
    "for_s": 0,
    "severity": "critical",
    "summary": "{service} fails",
    "resolution_steps": ["look"],
    "contact": "#ops",
    "escalation": ["lead"],
    "runbook_url": "https://runbooks.example.com/failing",
}


def main() -> None:
    with tempfile.TemporaryDirectory() as directory, servers.start("kafka", Path(directory) / "kafka") as kafka:
        for name, pages, every_s, steady in (
            ("busy", PAGES, EVERY_S, STEADY),
            ("quiet", QUIET_PAGES, QUIET_EVERY_S, 0),
        ):
            asyncio.run(measure(name, kafka, Path(directory), pages, every_s, steady))


async def measure(name: str, kafka: servers.Server, directory: Path, pages: int, every_s: float, steady: int) -> None:
    settings = Settings(
        bootstrap=kafka.address,
        topics={"prefix": f"{uuid.uuid4().hex[:8]}.", "partitions": PARTITIONS},
        windows={"size_s": SIZE_S, "lateness_s": LATENESS_S},
    )
    broker = await connect(settings)
    await broker.create_topics(topic_specs(partitions=PARTITIONS))
    victims = [f"victim-{number}" for number in range(-1, pages)]
    paged: dict[str, float] = {}
    async with receiver(paged) as url:
        with programs(settings, directory, url, victims):
            due = await play(broker, victims, paged, every_s, steady)
    report(name, due, paged, await stages(broker))
    await broker.close()


@asynccontextmanager
async def receiver(paged: dict[str, float]) -> AsyncIterator[str]:
    """When the first page about each service came."""

    async def take(request: web.Request) -> web.Response:
        now, told = time.time(), msgspec.json.decode(await request.read(), type=Notification)
        for alert in told.alerts:
            paged.setdefault(alert.labels.get("service", ""), now)
        return web.Response(status=204)

    app = web.Application()
    app.router.add_post("/", take)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        await web.SockSite(runner, listener).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        await runner.cleanup()


@contextmanager
def programs(settings: Settings, directory: Path, url: str, victims: list[str]) -> Iterator[None]:
    """Each victim has a route of its own: many groups of one route in a minute would be told as a storm."""
    routes = [{"matchers": [f'service="{victim}"']} for victim in victims]
    route = {"to": ["hook"], "group_wait": 0, "routes": routes}
    files = {
        "streammon": json.loads(settings.model_dump_json(include={"bootstrap", "topics", "windows"})),
        "rules": {"rules": [RULE]},
        "notify": {"channels": {"hook": {"type": "webhook", "url": url}}, "route": route},
    }
    for name, content in files.items():
        (directory / f"{name}.json").write_text(json.dumps(content))  # JSON is YAML
    config, rules, notify = (str(directory / f"{name}.json") for name in files)
    commands = (["process", "windows"], ["rules", "run", "--rules", rules], ["notify", "--notify", notify])
    running = [
        subprocess.Popen([sys.executable, "-c", PROGRAM, *each, "--config", config], stderr=subprocess.DEVNULL)
        for each in commands
    ]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


async def play(
    broker: Broker, victims: list[str], paged: dict[str, float], every_s: float, steady: int
) -> dict[str, float]:
    """When each page was due, of those that count: the first victim is there to see everything started."""
    due: dict[str, float] = {}
    going = asyncio.create_task(_steady(broker, steady))
    try:
        first, *others = victims
        while first not in paged:
            await _send(broker, first, "error")
            await asyncio.sleep(1.0)
        for victim in others:
            await asyncio.sleep(every_s * random.uniform(0.5, 1.5))
            at = await _send(broker, victim, "error")
            due[victim] = (at // SIZE_S + 1) * SIZE_S + LATENESS_S
        async with asyncio.timeout(PATIENCE_S):
            while len(paged) < len(victims):  # noqa: ASYNC110 - a dict sets no event
                await asyncio.sleep(0.1)
    finally:
        going.cancel()
    return due


async def _steady(broker: Broker, services: int) -> None:
    while services:
        for number in range(services):
            await _send(broker, f"steady-{number}", "ok")
            await asyncio.sleep(1 / EVENTS_S / services)
    await asyncio.Event().wait()


async def _send(broker: Broker, service: str, status: str) -> float:
    now = time.time()
    event = {
        "schema": 1,
        "type": "inference",
        "time_unix_s": now,
        "service": service,
        "model": "m",
        "duration_s": 0.1,
        "status": status,
    }
    await broker.append([Outgoing("inference", f"{service}/m".encode(), json.dumps(event).encode())])
    return now


async def stages(broker: Broker) -> dict[str, dict[str, float]]:
    """By topic, when what concerns each service was written, in Unix seconds."""
    found: dict[str, dict[str, float]] = {}
    async for (topic, _), records in read(broker, ["alerts", "pages", "notifications"]):
        for record in records:
            for service in _services(topic, record.value or b""):
                found.setdefault(topic, {}).setdefault(service, record.timestamp / 1000)
    return found


def _services(topic: str, value: bytes) -> list[str]:
    try:
        decoded: Any = msgspec.json.decode(value, type=Notification if topic == "notifications" else Alert)
    except msgspec.ValidationError:  # a tick
        return []
    alerts = decoded.alerts if isinstance(decoded, Notification) else [decoded]
    return [alert.labels.get("service", "") for alert in alerts if alert.state == "firing"]


def report(name: str, due: dict[str, float], paged: dict[str, float], found: dict[str, dict[str, float]]) -> None:
    late = np.array([paged[victim] - at for victim, at in due.items()])
    p50, p99 = np.percentile(late, (50, 99))
    print(
        f"{name}: {len(late)} pages, after window end + lateness: p50 {p50:.2f} s, p99 {p99:.2f} s, {late.max():.2f} s"
    )
    before, hops = due, []
    for topic in ("alerts", "pages", "notifications", "page"):
        after = {**found, "page": paged}[topic]
        hop = np.median([after[victim] - before[victim] for victim in due if victim in after])
        hops.append(f"{topic} {hop:.2f} s")
        before = after
    print(f"  median of each step: {', '.join(hops)}", flush=True)


if __name__ == "__main__":
    main()
