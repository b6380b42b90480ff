"""Pages on a real Kafka: replicas that come, go and are killed page nobody twice, and lose no page.

An alert is told by exactly one message, under one id. Only who is killed between the receiver's answer and the end of
the transaction that says so leaves a message that is sent once more, under the same id.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from streammon.broker import Broker
from streammon.broker.reading import read
from streammon.results import Alert
from tests.faults.harness import own_log
from tests.faults.stage import Grounds
from tests.paging import Receiver, ended, explain_alerts, fired, hook, notifier_file, raise_alerts, receiver
from tests.support import cli, eventually

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(180)]

PARTITIONS = 2
NEEDED = (
    "alerts",
    "commands",
    "evidence",
    "pages",
    "notifications",
    "deliveries",
    "deadletter",
    "snapshots",
    "heartbeats",
)
BORN_S = 40.0


class Paging:
    """A log on Kafka, a receiver, and replicas of ``streammon notify`` that tell it about alerts."""

    def __init__(self, broker: Broker, config: Path, file: Path, ops: Receiver) -> None:
        self.broker, self.ops = broker, ops
        self.running: list[subprocess.Popen[bytes]] = []
        self._arguments = ("notify", "--config", config, "--notify", file)
        self._log = config.with_suffix(".log")
        self._numbers = itertools.count()

    def start(self) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            self.running.append(cli(*self._arguments, stderr=log))
        return self.running[-1]

    def start_dying(self, moment: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tests.faults.dying", moment, *map(str, self._arguments)]
        with self._log.open("ab") as log:
            self.running.append(subprocess.Popen(command, stderr=log))
        return self.running[-1]

    async def stop(self, process: subprocess.Popen[bytes]) -> int:
        process.terminate()
        return await asyncio.to_thread(process.wait, 15)

    def alert(self) -> Alert:
        """A new one, each of a label set, and so of a group, of its own."""
        return fired(f"alert-{next(self._numbers)}-" + "x" * random.randrange(2))

    async def raises(self, alerts: Sequence[Alert]) -> None:
        """And what is behind those that fire, which may come before or after their page."""
        await raise_alerts(self.broker, alerts, PARTITIONS)
        await explain_alerts(self.broker, [each for each in alerts if each.state == "firing"], PARTITIONS)

    async def told(self, *alerts: Alert, state: str = "firing") -> None:
        def done() -> bool:
            return all(self.ops.messages_about(each.id, state) for each in alerts)

        try:
            await eventually(done, BORN_S)
        except AssertionError:
            told = {each.id: self.ops.messages_about(each.id, state) for each in alerts}
            raise AssertionError(f"told: {told}\n{self._log.read_text()[-4000:]}") from None

    async def gathered(self, *alerts: Alert) -> None:
        """Wait until what is behind them is among the pages: evidence is in a topic of its own, and may come later."""

        async def done() -> bool:
            pages = [record async for _, records in read(self.broker, ["pages"]) for record in records]
            evidence = {each.key for each in pages if b'"type":"evidence"' in (each.value or b"")}
            return {each.id.encode() for each in alerts} <= evidence

        await eventually(done, BORN_S)

    def ends_say_why(self) -> bool:
        """Whether no cause was lost: each end is told with it."""
        ends = [each for told in self.ops.taken.values() for each in told.alerts if each.state == "resolved"]
        return all(each.evidence["causes"][0]["what"] == f"deploy of {each.id}" for each in ends)

    def once(self, *alerts: Alert, state: str = "firing") -> bool:
        """Whether each of them was told by exactly one message."""
        return all(len(self.ops.messages_about(each.id, state)) == 1 for each in alerts)


@pytest.fixture
async def paging(grounds: Grounds, tmp_path: Path) -> AsyncIterator[Paging]:
    async with (
        own_log(grounds, "paging", PARTITIONS, NEEDED, tmp_path) as (broker, config),
        receiver(tmp_path) as ops,
    ):
        one = Paging(broker, config, notifier_file(tmp_path, {"ops": hook(ops.http.address)}), ops)
        try:
            yield one
        finally:
            for process in one.running:
                process.kill()
                process.wait()


MOMENTS = ("pages", "notifications", "deliveries")


@pytest.mark.parametrize("moment", [f"{when}:{topic}" for topic in MOMENTS for when in ("before", "after")])
async def test_whoever_is_killed_at_any_stage_leaves_a_page_that_is_delivered(paging: Paging, moment: str) -> None:
    alert = paging.alert()
    dying = paging.start_dying(moment)
    await paging.raises([alert])
    assert await asyncio.to_thread(dying.wait, BORN_S) == -signal.SIGKILL
    paging.start()
    await paging.told(alert)
    await paging.gathered(alert)
    after = ended(alert.id)
    await paging.raises([after])
    await paging.told(alert, state="resolved")
    assert paging.once(alert)
    assert paging.once(alert, state="resolved")
    assert paging.ends_say_why()
    again = paging.ops.repeated
    if moment == "before:deliveries":  # the receiver had answered, and nobody knows any more
        assert list(again.items()) == [(paging.ops.messages_about(alert.id, "firing")[0], 2)]
    else:
        assert again == {}


async def test_whoever_is_killed_while_it_sends_leaves_a_page_that_is_sent_again_under_its_id(paging: Paging) -> None:
    alert = paging.alert()
    first = paging.start()
    paging.ops.before_answer = lambda _: first.kill()
    await paging.raises([alert])
    assert await asyncio.to_thread(first.wait, BORN_S) == -signal.SIGKILL
    paging.ops.before_answer = lambda _: None
    assert len(paging.ops.taken) == 1
    paging.start()
    await eventually(lambda: paging.ops.repeated, BORN_S)
    assert paging.once(alert)
    assert set(paging.ops.counts.values()) == {2}


async def test_two_replicas_that_come_and_go_page_nobody_twice(paging: Paging) -> None:
    alerts: list[Alert] = []

    async def more() -> None:
        alerts.append(paging.alert())
        await paging.raises(alerts[-1:])

    replicas = [paging.start()]
    await more()
    await paging.told(*alerts)
    for _ in range(2):
        replicas.append(paging.start())
        await more()
        await paging.told(*alerts)
        await more()
        assert await paging.stop(replicas.pop(0)) == 0
        await paging.told(*alerts)
    await paging.raises([ended(each.id) for each in alerts])
    await paging.told(*alerts, state="resolved")
    assert paging.ops.repeated == {}
    assert paging.once(*alerts)
    assert paging.once(*alerts, state="resolved")


async def test_replicas_that_are_killed_lose_no_page_and_make_no_second_one(paging: Paging) -> None:
    rng = random.Random(5)
    alerts: list[Alert] = []
    replicas = [paging.start(), paging.start()]
    for _ in range(4):
        alerts.append(paging.alert())
        await paging.raises(alerts[-1:])
        await asyncio.sleep(rng.uniform(0.0, 3.0))  # not synchronisation: the moment of the kill is the experiment
        victim = replicas.pop(0)
        victim.kill()
        victim.wait()
        replicas.append(paging.start())
    await paging.told(*alerts)
    await paging.gathered(*alerts)
    await paging.raises([ended(each.id) for each in alerts])
    await paging.told(*alerts, state="resolved")
    assert paging.once(*alerts)
    assert paging.once(*alerts, state="resolved")
    assert paging.ends_say_why()
    assert all(count == 2 for count in paging.ops.repeated.values())
    assert len(paging.ops.repeated) <= 4  # at most one a kill
