"""What scraping costs: the parser beside the official one, and targets in % of a core: ``python -m bench scrape``.

Pages are as services show them: counters, gauges and histograms with a few labels, every value another at each scrape.
"""

from __future__ import annotations

import asyncio
import resource
import time
from collections.abc import Callable
from itertools import count
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, cast

from aiohttp import web
from prometheus_client import parser

from bench.otlp import Nowhere
from streammon.broker import Broker
from streammon.config import load
from streammon.events import EventType
from streammon_agents.agent import run_agent
from streammon_agents.packing import Packer
from streammon_agents.scrape.accounts import Accounts, Identity
from streammon_agents.scrape.pages import NO_LIMITS
from streammon_agents.scrape.text import parse

TARGETS, INTERVAL_S = 10, 15.0
SECONDS = 2 * INTERVAL_S


def page(samples: int, scrape: int = 0) -> bytes:
    """Of 20 samples 15 are of a histogram, 3 counters, 2 gauges."""
    lines = []
    for number in range(samples // 20):
        labels = f'service="shop",path="/api/v1/things/{number}",method="GET",code="200"'
        values = [(number + 1) * (bucket + 1) * (scrape + 1) for bucket in range(13)]
        bounds = [*(0.001 * 2**bucket for bucket in range(12)), "+Inf"]
        lines += [
            f'http_seconds_bucket{{{labels},le="{bound}"}} {value}' for bound, value in zip(bounds, values, strict=True)
        ]
        lines += [f"http_seconds_sum{{{labels}}} {values[-1] * 0.731}", f"http_seconds_count{{{labels}}} {values[-1]}"]
        lines += [f"http_{name}_total{{{labels}}} {values[3] * 1.5}" for name in ("requests", "bytes", "errors")]
        lines += [f"http_{name}{{{labels}}} {scrape % 7}" for name in ("open", "waiting")]
    kinds = {"http_seconds": "histogram", "http_open": "gauge", "http_waiting": "gauge"}
    kinds |= {f"http_{name}_total": "counter" for name in ("requests", "bytes", "errors")}
    head = "".join(f"# HELP {name} It is so.\n# TYPE {name} {kind}\n" for name, kind in kinds.items())
    return (head + "\n".join(lines) + "\n").encode()


def best_s(work: Callable[[], Any], repeat: int = 5) -> float:
    def once() -> float:
        started = time.process_time()
        work()
        return time.process_time() - started

    return min(once() for _ in range(repeat))


def parsers(samples: int = 10_000) -> None:
    text = page(samples)
    measured = text + b"# EOF\n"
    known = parse(text, limits=NO_LIMITS).known
    official: Any = parser  # without types
    print(f"one page, {samples} samples, {len(text) / 1e6:.2f} MB")
    for name, work in (
        ("first time", lambda: parse(text, limits=NO_LIMITS)),
        ("again", lambda: parse(text, limits=NO_LIMITS, known=known)),
        ("again, OpenMetrics", lambda: parse(measured, openmetrics=True, limits=NO_LIMITS, known=known)),
        ("prometheus_client", lambda: list(official.text_string_to_metric_families(text.decode()))),
    ):
        took_s = best_s(work)
        speed = f"{len(text) / took_s / 1e6:6.1f} MB/s  {samples / took_s:10,.0f} samples/s"
        print(f"  {name:<20} {took_s * 1e3:7.1f} ms  {speed}")


def accounts(samples: int = 1000) -> None:
    """One target, page after page."""
    target = Accounts(Identity("bench", {"job": "shop", "instance": "a:80"}), watching_since_unix_s=0)
    pages, known = [page(samples, scrape) for scrape in range(6)], parse(page(samples)).known
    events: list[Any] = []
    took_s, packer = [], Packer("agent@bench")
    for number, text in enumerate(pages):
        started = time.process_time()
        events = target.take(parse(text, known=known), float(number)).events
        took_s.append(time.process_time() - started)
    packing_s = best_s(lambda: packer.pack(EventType.RESOURCE, events))
    print(f"one scrape of {samples} samples: {min(took_s) * 1e3:.1f} ms for {len(events)} events", end=", ")
    print(f"packing {packing_s * 1e3:.1f} ms")


def serve(samples: int, told: Connection) -> None:
    """A server of pages that change, on a port that it tells."""
    scrapes = count()

    async def show(_: web.Request) -> web.Response:
        return web.Response(body=page(samples, next(scrapes)), headers={"Content-Type": "text/plain; version=0.0.4"})

    async def run() -> None:
        app = web.Application()
        app.router.add_get("/{path:.*}", show)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        told.send(runner.addresses[0][1])
        await asyncio.Event().wait()

    asyncio.run(run())


async def share(port: int, samples: int) -> None:
    """The whole agent with this source alone."""
    job = {
        "job_name": "bench",
        "scrape_interval": f"{INTERVAL_S}s",
        "static_configs": [
            {"targets": [f"127.0.0.1:{port}"], "labels": {"n": str(number)}} for number in range(TARGETS)
        ],
    }
    broker, stop = Nowhere(), asyncio.Event()
    settings = load(agent={"sources": ["scrape"], "scrape": {"jobs": [job]}})
    agent = asyncio.create_task(run_agent(cast(Broker, broker), settings, stop=stop))
    await asyncio.sleep(2 * INTERVAL_S)  # what series there are is learnt at the first page
    started, cpu, before = time.monotonic(), time.process_time(), len(broker.sizes)
    await asyncio.sleep(SECONDS)
    spent = (time.process_time() - cpu) / (time.monotonic() - started)
    stop.set()
    await agent
    rss = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"{TARGETS} targets of {samples} samples every {INTERVAL_S:g} s: {spent:.2%} of a core, {rss:.0f} MB at most")
    print(f"  {len(broker.sizes) - before} records, {sum(broker.sizes[before:]) / SECONDS / 1e3:.0f} kB/s")


def main() -> None:
    parsers()
    accounts()
    forked = get_context("fork")
    here, there = forked.Pipe()
    server = forked.Process(target=serve, args=(1000, there), daemon=True)
    server.start()
    try:
        asyncio.run(share(here.recv(), 1000))
    finally:
        server.kill()


if __name__ == "__main__":
    main()
