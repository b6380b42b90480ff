"""The inventory against a real Kafka, its components and itself killed with -9."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
import yaml

from streammon.broker import Broker, Outgoing, connect
from streammon.commands import Acknowledge
from streammon.config import Settings
from streammon.heartbeat import PATIENCE
from streammon.results import Alert
from streammon.servers import Server
from streammon.topics import topic_specs
from tests.faults.judge import read_all
from tests.support import eventually

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(170)]

INTERVAL_S = 0.5
FEW_S = 4.0
"""What reading, looking and writing may add to three intervals, on a busy machine."""
START_S = 40.0


class Grounds:
    """A log, and the commands that run on it."""

    def __init__(self, broker: Broker, settings: Settings, directory: Path) -> None:
        self.broker = broker
        self._directory = directory
        self._ground = directory / "started-here"
        self._ground.mkdir()
        self._config = directory / "streammon.yaml"
        content = settings.model_dump(mode="json", include={"bootstrap", "topics", "heartbeat", "inventory"})
        self._config.write_text(yaml.safe_dump(content | {"data_dir": str(directory / "data")}))
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self, *arguments: object) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(self._command(*arguments), cwd=self._ground)
        self._processes.append(process)
        return process

    def agent(self) -> subprocess.Popen[bytes]:
        return self.start("agent")

    async def inventory(self, expect: str | None = None) -> subprocess.Popen[bytes]:
        options = []
        if expect is not None:
            (file := self._directory / "expected.yaml").write_text(expect)
            options = ["--expect", file]
        return self.start("inventory", "run", *options)

    def listed(self) -> dict[str, str]:
        """State by role."""
        done = subprocess.run(
            self._command("inventory", "list", "--output", "json"), capture_output=True, check=True, timeout=60
        )
        return {row["role"]: row["state"] for row in map(json.loads, done.stdout.splitlines())}

    async def beats(self, role: str, more_than: float = 0.0) -> float:
        """The broker's time of the newest heartbeat of a role, once it is above ``more_than``."""
        newest = 0.0

        async def is_newer() -> bool:
            nonlocal newest
            found = [
                record.timestamp / 1000
                for record in await read_all(self.broker, "heartbeats")
                if record.value and json.loads(record.value)["role"] == role
            ]
            newest = max(found, default=0.0)
            return newest > more_than

        await eventually(is_newer, START_S, f"a heartbeat of {role}")
        return newest

    async def alerts(self) -> list[Alert]:
        records = await read_all(self.broker, "alerts")
        return [msgspec.json.decode(record.value, type=Alert) for record in records if record.value]

    async def told(self) -> list[tuple[str, int]]:
        return [(alert.state, alert.transition) for alert in await self.alerts()]

    async def has_told(self, *transitions: tuple[str, int], within_s: float = START_S) -> list[Alert]:
        async def all_of_them() -> bool:
            return len(await self.told()) >= len(transitions)

        await eventually(all_of_them, within_s, f"alerts {transitions}")
        assert await self.told() == list(transitions)
        return await self.alerts()

    async def looks_on(self, for_s: float) -> None:
        """Until the inventory has looked for so long: heartbeats, its own too, are the clock."""
        begin = time.time()
        await self.beats("inventory", begin + for_s)

    def _command(self, *arguments: object) -> list[str]:
        program = [sys.executable, "-c", "from streammon.cli import main; main()"]
        return [*program, *map(str, arguments), "--config", str(self._config)]

    def close(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
        assert not [*self._ground.iterdir()], "nothing is left where a command was started"


@pytest.fixture
async def grounds(kafka: Server, unique: str, tmp_path: Path) -> AsyncIterator[Grounds]:
    settings = Settings(
        bootstrap=kafka.address,
        topics={"prefix": f"{unique}.", "partitions": 2},
        heartbeat={"interval_s": INTERVAL_S},
        inventory={"grace_s": 2.0},
    )
    broker = await connect(settings)
    await broker.create_topics(topic_specs(partitions=2))
    grounds = Grounds(broker, settings, tmp_path)
    try:
        yield grounds
    finally:
        grounds.close()
        await broker.close()


async def killed(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGKILL)
    await asyncio.to_thread(process.wait)


async def watching(grounds: Grounds) -> None:
    """The inventory has taken over and watched for longer than anybody's patience."""
    await grounds.beats("inventory")
    await grounds.looks_on(PATIENCE * INTERVAL_S + 8.0)


async def test_one_that_is_killed_is_told_in_time_and_so_is_its_return(grounds: Grounds) -> None:
    agent = grounds.agent()
    await grounds.inventory()
    await grounds.beats("agent")
    await watching(grounds)
    assert await grounds.told() == []
    await killed(agent)
    died = time.time()
    [alert] = await grounds.has_told(("firing", 1))
    took_s = time.time() - died
    print(f"told {took_s:.2f} s after kill -9, with heartbeats every {INTERVAL_S} s")
    assert took_s < PATIENCE * INTERVAL_S + FEW_S
    assert (alert.rule, alert.labels["role"], alert.severity) == ("streammon.silent", "agent", "warning")
    assert alert.summary.startswith(f"agent on {alert.labels['host']} is silent: its last heartbeat was at ")
    assert alert.resolution_steps
    assert grounds.listed()["agent"] == "silent"
    grounds.agent()
    *_, ended = await grounds.has_told(("firing", 1), ("resolved", 2))
    assert ended.id == alert.id
    assert ended.condition == "its heartbeats are back"


async def test_an_end_in_order_is_no_alarm(grounds: Grounds) -> None:
    agent = grounds.agent()
    await grounds.inventory()
    await grounds.beats("agent")
    await watching(grounds)
    agent.terminate()
    assert await asyncio.to_thread(agent.wait, 15) == 0
    await grounds.looks_on(2 * PATIENCE * INTERVAL_S + FEW_S)
    assert await grounds.told() == []
    assert grounds.listed()["agent"] == "stopped"


async def test_an_inventory_that_is_killed_tells_nothing_twice_and_still_tells_the_end(grounds: Grounds) -> None:
    agent = grounds.agent()
    inventory = await grounds.inventory()
    await grounds.beats("agent")
    await watching(grounds)
    await killed(agent)
    [alert] = await grounds.has_told(("firing", 1))
    await killed(inventory)
    started = time.time()
    await grounds.inventory()
    await grounds.beats("inventory", started)
    await grounds.looks_on(10 + 2 * PATIENCE * INTERVAL_S)  # a session of 6 s, then the patience, and more
    assert await grounds.told() == [("firing", 1)]
    where = next(r.partition for r in await read_all(grounds.broker, "alerts") if r.key == alert.id.encode())
    ack = Acknowledge(id="a", time_unix_s=time.time(), by="ann", alert_id=alert.id, transition=1)
    await grounds.broker.append([Outgoing("commands", alert.id.encode(), msgspec.json.encode(ack), (), where)])
    await grounds.has_told(("firing", 1), ("acknowledged", 2))
    grounds.agent()
    *_, ended = await grounds.has_told(("firing", 1), ("acknowledged", 2), ("resolved", 3))
    assert ended.id == alert.id


EXPECTED = """
contact: "#platform"
expect:
  - {role: agent, hosts: [nowhere], severity: critical, resolution_steps: [Look for it]}
"""


async def test_a_host_that_never_came_is_told_once_whoever_looks(grounds: Grounds) -> None:
    inventory = await grounds.inventory(EXPECTED)
    [alert] = await grounds.has_told(("firing", 1))
    assert alert.labels == {"role": "agent", "host": "nowhere"}
    assert alert.summary == "agent on nowhere is expected and not there, and never was"
    assert (alert.severity, alert.contact, alert.resolution_steps) == ("critical", "#platform", ["Look for it"])
    inventory.terminate()
    assert await asyncio.to_thread(inventory.wait, 15) == 0
    started = time.time()
    await grounds.inventory(EXPECTED)
    await grounds.beats("inventory", started)
    await watching(grounds)
    assert await grounds.told() == [("firing", 1)]
    nowhere = {"STREAMMON_AGENT__HOST": "nowhere"}
    os.environ.update(nowhere)
    try:
        grounds.agent()
    finally:
        del os.environ["STREAMMON_AGENT__HOST"]
    await grounds.has_told(("firing", 1), ("resolved", 2))


async def test_another_inventory_takes_over_and_accuses_nobody_but_the_dead(grounds: Grounds) -> None:
    grounds.agent()
    first = await grounds.inventory()
    await grounds.beats("agent")
    await watching(grounds)
    await grounds.inventory()
    await grounds.looks_on(10.0)  # the second has joined, and stands by
    assert await grounds.told() == []
    await killed(first)
    [alert] = await grounds.has_told(("firing", 1))
    assert alert.labels["role"] == "inventory"
    await grounds.looks_on(5.0)
    assert await grounds.told() == [("firing", 1)]
