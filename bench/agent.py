"""The agent under trouble: ``python -m bench agent``; ``--part NAME`` for one part.

``outage``: Kafka is killed for ``--seconds`` under ``--rate`` events a second, and started again. Prints what was
lost, what was counted twice, how long the backlog took, how long new data took meanwhile, and the memory of the
process (of which the load is a part)."""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from streammon import servers
from streammon.broker import Broker, Outgoing, connect
from streammon.config import Settings, load
from streammon.topics import topic_specs
from streammon_agents.agent import carrier_of, run_agent
from streammon_agents.carrier import Carrier
from tests.outages import Load, arrived, counted

WARM_S, AFTER_S = 5.0, 5.0


def rss_bytes() -> int:
    [line] = [each for each in Path("/proc/self/status").read_text().splitlines() if each.startswith("VmRSS")]
    return int(line.split()[1]) * 1024


class Watch:
    """The most that was seen of memory and spool."""

    def __init__(self, carrier: Carrier) -> None:
        self._carrier = carrier
        self.rss, self.spool = rss_bytes(), 0

    async def run(self) -> None:
        while True:
            self.rss = max(self.rss, rss_bytes())
            self.spool = max(self.spool, self._carrier.spool_bytes)
            await asyncio.sleep(0.5)


async def until(condition: Callable[[], bool]) -> float:
    """When it came about."""
    while not condition():  # noqa: ASYNC110 - arbitrary conditions set no event
        await asyncio.sleep(0.05)
    return time.time()


async def outage(seconds: float, rate: int, kafka: servers.Server, directory: Path) -> None:
    settings = load(
        bootstrap=kafka.address,
        data_dir=directory,
        topics={"partitions": 1},
        agent={"host": "bench"},
        kafka={"delivery_timeout_s": 5.0},
    )
    broker = await connect(settings)
    await broker.create_topics(topic_specs(partitions=1))
    stop, source, carrier = asyncio.Event(), Load(rate), carrier_of(broker, settings)
    agent = asyncio.create_task(run_agent(broker, settings, stop=stop, sources=[source], carrier=carrier))
    await asyncio.sleep(WARM_S)
    before = rss_bytes()
    watch = Watch(carrier)
    watching = asyncio.create_task(watch.run())
    await asyncio.to_thread(kafka.kill)
    down = time.time()
    await asyncio.sleep(seconds)
    await asyncio.to_thread(kafka.restart)
    up = time.time()
    reached = await until(lambda: carrier.away is None)
    done = await until(lambda: carrier.spool_bytes == 0)
    await asyncio.sleep(AFTER_S)
    watching.cancel()
    stop.set()
    await agent
    print(f"Kafka down for {up - down:.0f} s at {rate} events/s; the spool held up to {watch.spool / 1e6:.1f} MB")
    print(f"  found again after {reached - up:.1f} s, caught up after {done - reached:.1f} s more")
    print(f"  memory: {before / 1e6:.0f} MB before, at most {watch.rss / 1e6:.0f} MB until the end")
    print(f"  the longest that handing events over took: {source.latest_s * 1e3:.1f} ms")
    await judge(broker, settings, source, reached, done)
    await broker.close()


async def judge(broker: Broker, settings: Settings, source: Load, reached: float, done: float) -> None:
    end = b'{"time_unix_s":%f,"service":"end","model":"end","duration_s":0,"status":"ok","request_id":"end"}'
    await broker.append([Outgoing("inference", b"end/end", end % (time.time() + 30))])
    found, log = await arrived(broker)
    sums = counted(log, settings)
    lost = source.sent - len(found.requests.keys() - {"end"})
    print(f"  {source.sent} events sent, lost {lost}, counted by windows {sums['count']} ({sums['late']} as late)")
    print(f"  came twice {sums['duplicate']}, missing {sums['missing']}, dropped {sums['dropped']}")
    during = sorted(delay for at, delay in found.delays if reached + 0.5 <= at <= done)
    before = sorted(delay for at, delay in found.delays if at >= done + 1)
    for name, delays in (("while catching up", during), ("afterwards", before)):
        if delays:
            at = [delays[min(len(delays) - 1, int(len(delays) * share))] * 1e3 for share in (0.5, 0.99, 1.0)]
            print(f"  new data {name}: {at[0]:.0f} ms p50, {at[1]:.0f} ms p99, {at[2]:.0f} ms at most ({len(delays)})")


def run_outage(arguments: argparse.Namespace) -> None:
    with (
        tempfile.TemporaryDirectory(prefix="streammon-bench-", ignore_cleanup_errors=True) as directory,
        servers.start("kafka", Path(directory) / "kafka") as kafka,
    ):
        asyncio.run(outage(arguments.seconds, arguments.rate, kafka, Path(directory) / "agent"))


PARTS = {"outage": run_outage}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m bench agent", description=__doc__)
    parser.add_argument("--part", choices=PARTS, action="append", help="all of them if not given")
    parser.add_argument("--seconds", type=float, default=30.0, help="how long Kafka is down")
    parser.add_argument("--rate", type=int, default=1000, help="events a second")
    given = parser.parse_args()
    for part in given.part or PARTS:
        PARTS[part](given)
