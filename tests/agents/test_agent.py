"""The agent: supervision, what it says of itself, and what it will see."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from enum import StrEnum
from pathlib import Path
from typing import Any

import pytest

from streammon.broker import ClockOffset
from streammon.broker.embedded import EmbeddedBroker
from streammon.broker.kafka.appender import BrokerClock
from streammon.broker.reading import read
from streammon.config import load
from streammon.errors import ConfigError
from streammon.events import EventType
from streammon.heartbeat import beating, decode_heartbeat
from streammon.topics import HEARTBEATS, topic_specs
from streammon_agents import agent as agents
from streammon_agents.agent import carrier_of, details_of, run_agent, sources_of
from streammon_agents.carrier import Carrier
from streammon_agents.check import blind, check
from streammon_agents.source import Finding, Outlet, Source
from tests.agents.test_carrier import FakeBroker, event
from tests.support import cli, eventually, wait_until


class Why(StrEnum):
    BAD = "bad"


class Told:
    """A source that does what it is told to."""

    def __init__(self, name: str = "told", error: Exception | None = None, findings: Iterable[Finding] = ()) -> None:
        self.name, self.error, self.findings = name, error, findings
        self.runs = 0

    def check(self) -> Iterable[Finding]:
        return self.findings

    async def run(self, out: Outlet) -> None:
        self.runs += 1
        if self.error is not None and self.runs < 3:
            raise self.error
        out.degraded(None)
        out.put(EventType.RESOURCE, [event(self.runs)])
        await asyncio.Event().wait()


@asynccontextmanager
async def running(uplink: FakeBroker, *sources: Source, **agent: Any) -> AsyncIterator[Carrier]:
    stop, settings = asyncio.Event(), load(agent={"host": "here", **agent})
    carrier = carrier_of(uplink, settings)
    task = asyncio.create_task(run_agent(uplink, settings, stop=stop, sources=sources, carrier=carrier))
    try:
        yield carrier
    finally:
        stop.set()
        await asyncio.wait_for(task, 10)


async def test_source_that_fails_is_started_again_and_does_not_touch_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(agents.BACKOFF.__class__, "pause_s", lambda *_: 0.05)
    failing, well, broker = Told("failing", RuntimeError("no")), Told("well"), FakeBroker()
    async with running(broker, failing, well) as carrier:
        await eventually(lambda: "degraded" in carrier.details())
        assert carrier.details()["degraded"] == "failing: failed: RuntimeError('no')"
        await eventually(lambda: failing.runs == 3)
        await eventually(lambda: "degraded" not in carrier.details())
        await eventually(lambda: len(broker.moments) == 2)
    assert well.runs == 1


async def test_source_that_needs_a_person_ends_the_agent() -> None:
    unheard: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unheard.append(context))
    with pytest.raises(ConfigError, match="port"):
        async with running(FakeBroker(), *(Told(name, ConfigError("port taken")) for name in ("one", "two"))):
            await asyncio.sleep(0.1)
    gc.collect()
    assert not unheard, "a second one is no accident"


async def test_source_that_does_not_end_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agents, "END_S", 0.1)
    released = asyncio.Event()

    class Stubborn(Told):
        async def run(self, out: Outlet) -> None:
            while not released.is_set():
                try:
                    await released.wait()
                except asyncio.CancelledError:
                    continue

    began = time.monotonic()
    async with running(FakeBroker(), Stubborn()):
        await asyncio.sleep(0)
    assert time.monotonic() - began < 2
    released.set()


async def test_losses_and_states_are_told_by_source() -> None:
    broker = FakeBroker()
    async with running(broker) as carrier:
        one, other = carrier.outlet("one"), carrier.outlet("other")
        one.drop(Why.BAD, 3)
        one.refuse(Why.BAD)
        other.drop(Why.BAD)
        other.degraded("half of it")
        said = carrier.details()
        one.put(EventType.RESOURCE, [event(1)])
        await eventually(lambda: broker.appended)
    assert said == {
        "log": "reached", "spool": "none", "degraded": "other: half of it", "dropped": "one.bad=3 other.bad=1",
        "refused": "one.bad=1",
    }  # fmt: skip
    assert [batch.dropped for batch in broker.batches] == [4]


async def test_details_of_an_agent_are_those_of_each_moment(tmp_path: Path) -> None:
    settings = load(data_dir=tmp_path, agent={"host": "here"}, heartbeat={"interval_s": 0.05})
    broker = await EmbeddedBroker.open(settings)
    await broker.create_topics(topic_specs(partitions=1))
    carrier = carrier_of(broker, settings)
    seen: list[str | None] = []

    async def last() -> str | None:
        async for _, records in read(broker, [HEARTBEATS]):
            seen.extend(decode_heartbeat(record.value or b"").details.get("dropped") for record in records)
        return seen[-1] if seen else None

    async with beating(broker, settings, "agent", details=lambda: details_of(carrier, settings, None)):
        carrier.outlet("one").drop(Why.BAD, 3)
        await eventually(last)
    await broker.close()
    assert seen[-1] == "one.bad=3"


def test_clock_that_is_off_degrades_the_agent_and_one_that_may_be_right_does_not() -> None:
    settings = load(agent={"host": "here"})
    carrier = carrier_of(FakeBroker(), settings)
    said = details_of(carrier, settings, ClockOffset(3600.0, 0.004))
    assert said["clock_skew_s"] == "+3600.000 ± 0.004"
    assert "clock: this clock is 3600.0 s ahead of the broker's" in said["degraded"]
    said = details_of(carrier, settings, ClockOffset(-1.2, 0.5))
    assert "degraded" not in said
    assert "behind" in details_of(carrier, settings, ClockOffset(-1.6, 0.5))["degraded"]


def test_brokers_clock_is_known_as_well_as_the_quickest_append_tells() -> None:
    clock = BrokerClock()
    assert clock.offset is None
    clock.saw(stamp=1000.5, began=1002.0, ended=1004.0)
    assert clock.offset == pytest.approx((2.5, 1.001))
    clock.saw(stamp=1010.0, began=1013.0, ended=1013.02)
    assert clock.offset == pytest.approx((3.01, 0.011))
    clock.saw(stamp=1020.0, began=1022.0, ended=1024.0)
    assert clock.offset == pytest.approx((3.01, 0.011)), "a slow one tells less"
    clock.saw(stamp=1030.0, began=4630.0, ended=4632.0)
    assert clock.offset == pytest.approx((3601.0, 1.001)), "the clock was set: what was known is wrong"
    clock.saw(stamp=2000.0, began=5600.0, ended=5603.0)
    assert clock.offset == pytest.approx((3601.5, 1.501)), "what is minutes old counts no more"


def test_sources_that_open_ports_run_only_where_they_are_asked_for() -> None:
    assert not {"gateway", "otlp", "statsd"} & {source.name for source in sources_of(load())}
    asked = load(agent={"sources": ["host", "statsd"]})
    assert [source.name for source in sources_of(asked)] == ["host", "statsd"]


# --- what it will see -------------------------------------------------------------------------------------


async def test_check_says_what_each_source_and_the_way_into_the_log_will_see(tmp_path: Path) -> None:
    class Broken(Told):
        def check(self) -> Iterable[Finding]:
            raise OSError("surprise")

    seen, unseen = Finding("a", seen=True), Finding("b", seen=False, detail="why", fix="how")
    (tmp_path / "file").touch()
    settings = load(bootstrap="127.0.0.1:1", data_dir=tmp_path / "file", agent={"host": "here"})
    checked = await check(settings, [Told("one", findings=[seen, unseen]), Broken("two")])
    assert [each[:3] for each in checked] == [
        ("one", "a", True), ("one", "b", False), ("two", "two", False), ("carrying", "log", False),
        ("carrying", "spool", False),
    ]  # fmt: skip
    assert checked[1][3:] == ("why", "how")
    assert "surprise" in checked[2].detail
    assert "127.0.0.1:1" in checked[3].detail
    assert "agent.spool.directory" in checked[4].fix
    assert blind(checked, ["one", "two", "three"]) == ["two"]


@pytest.mark.parametrize("agent", [{}, {"url": "http://127.0.0.1:1"}])
def test_check_changes_nothing(tmp_path: Path, agent: dict[str, Any]) -> None:
    assert asyncio.run(check(load(data_dir=tmp_path / "none", agent=agent), []))
    assert not list(tmp_path.iterdir())


def test_check_is_a_command(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    process = cli("agent", "--check", "--output", "json", "--data-dir", tmp_path / "none")
    assert process.wait(30) == 0
    rows = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert {"source", "what", "seen", "detail", "fix"} == rows[0].keys()
    assert {row["source"] for row in rows} >= {"carrying"}


async def test_inventory_lists_what_an_agent_says_of_itself(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    agent = cli("agent", "--data-dir", tmp_path)
    try:
        await asyncio.to_thread(wait_until, lambda: _listed(tmp_path, capfd), 30, "the agent in the list")
    finally:
        agent.terminate()
    assert await asyncio.to_thread(agent.wait, 10) == 0


def _listed(directory: Path, capfd: pytest.CaptureFixture[str]) -> bool:
    """Whether there is an agent in the list, in the words of its last heartbeat."""
    capfd.readouterr()
    list_ = ("inventory", "list", "--output", "json")
    if not (directory / "log.sqlite").exists() or cli(*list_, "--data-dir", directory).wait(30):
        return False
    said = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    return any(each["state"] == "running" and "log: reached; spool: none" in each["says"] for each in said)


HANGING = """
import asyncio, threading
from streammon.cli import main
from streammon_agents import agent

class Hanging:
    name = "host"
    def check(self):
        return ()
    async def run(self, out):
        print("runs", flush=True)
        await asyncio.to_thread(threading.Event().wait)

agent._maker = lambda name: lambda settings, clock: Hanging()
main()
"""


@pytest.mark.timeout(60)
def test_thread_that_hangs_does_not_keep_the_process(tmp_path: Path) -> None:
    line = [sys.executable, "-c", HANGING, "agent", "--data-dir", str(tmp_path)]
    with subprocess.Popen(
        line, env={**os.environ, "STREAMMON_AGENT__SOURCES": '["host"]'}, stdout=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"runs\n"
            process.terminate()
            assert process.wait(15) == 1
        finally:
            process.kill()
