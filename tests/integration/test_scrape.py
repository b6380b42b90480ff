"""A Flask service with `prometheus_client`, not changed at all, becomes windows with the totals that it counted."""

from __future__ import annotations

import contextlib
import random
import signal
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from streammon.broker import Broker, connect
from streammon.config import Settings
from streammon.sketch import Sketch, merge
from streammon.tick import TICK
from streammon.topics import topic_specs
from tests.faults.judge import read_all
from tests.support import cli, eventually

SHOP = Path(__file__).parents[1] / "agents" / "scrape" / "shop.py"
PRICES = (0.5, 3, 7, 20, 60, 200)


@contextlib.contextmanager
def stopped(process: subprocess.Popen[bytes], how: signal.Signals = signal.SIGTERM) -> Iterator[None]:
    try:
        yield
    finally:
        process.send_signal(how)
        process.wait(15)


async def windows_of(broker: Broker, service: str) -> list[dict[str, Any]]:
    records = await read_all(broker, "windows")
    windows = [msgspec.json.decode(record.value or b"") for record in records if record.value != TICK]
    return [window for window in windows if window["series"].get("id") == service and window["size_s"] == 2]


async def totals(broker: Broker, service: str) -> tuple[dict[str, float], dict[str, list[dict[str, Any]]]]:
    """Of all windows of a service, by name: sums of counters, and distributions."""
    counters, distributions = defaultdict[str, float](float), defaultdict[str, list[dict[str, Any]]](list)
    for window in await windows_of(broker, service):
        for name, counter in window.get("counters", {}).items():
            counters[name] += counter["sum"]
        for name, distribution in window.get("distributions", {}).items():
            distributions[name].append(distribution)
    return counters, distributions


@pytest.mark.timeout(120)
async def test_a_flask_service_becomes_windows_with_the_same_totals(tmp_path: Path, free_port: int) -> None:
    job = {
        "job_name": "shop",
        "scrape_interval": "500ms",
        "static_configs": [{"targets": [f"127.0.0.1:{free_port}"]}],
    }
    config = {"data_dir": str(tmp_path / "data"), "agent": {"sources": ["scrape"], "scrape": {"jobs": [job]}}}
    file = tmp_path / "streammon.json"  # JSON is YAML
    file.write_bytes(msgspec.json.encode(config))
    broker = await connect(Settings(data_dir=tmp_path / "data"))
    await broker.create_topics(topic_specs(partitions=1))
    random.seed(11)
    orders = [(random.choice("ab"), random.choice(PRICES), random.randint(1, 9)) for _ in range(100)]

    async def seen(up: float) -> bool:
        gauges = [window.get("gauges", {}).get("up", {}) for window in await windows_of(broker, "shop")]
        return any(gauge.get("last") == up for gauge in gauges)

    async def all_counted() -> bool:
        return (await totals(broker, "shop"))[0]["order_size_count"] >= len(orders)

    with stopped(cli("process", "windows", "--config", file)), stopped(cli("agent", "--config", file)):
        await eventually(lambda: seen(0.0), 40, what="a window of the service that is not there yet")
        service = subprocess.Popen([sys.executable, str(SHOP), str(free_port)], stderr=subprocess.DEVNULL)  # noqa: ASYNC220
        with stopped(service, signal.SIGKILL):
            await eventually(lambda: seen(1.0), 40, what="a window of the service")
            async with aiohttp.ClientSession() as session:
                for kind, price, size in orders:
                    url = f"http://127.0.0.1:{free_port}/order/{kind}?price={price}&size={size}"
                    async with session.post(url) as answer:
                        assert answer.status == 200
            await eventually(all_counted, 40, what="windows with all orders")
    counters, distributions = await totals(broker, "shop")
    await broker.close()
    assert counters["orders_total"] == counters["order_size_count"] == len(orders)
    assert counters["order_size_sum"] == sum(size for *_, size in orders)
    prices = distributions["price_eur"]
    assert sum(each["count"] for each in prices) == len(orders)
    assert sum(each["sum"] for each in prices) == pytest.approx(sum(price for _, price, _ in orders))
    sketch = merge(Sketch.from_wire(each["sketch"]) for each in prices)
    for bound in (1, 5, 10, 50):
        over = sum(price > bound for _, price, _ in orders)
        assert sketch.above(bound * 1.012) <= over <= sketch.above(bound / 1.012), "a bucket is as wide as that"
