"""Evidence on a real Kafka: however often `streammon diagnose` is killed, every alert that fired gets its evidence."""

from __future__ import annotations

import asyncio
import itertools
import random
import signal
import subprocess
from collections import defaultdict
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from streammon.broker import Broker, Outgoing
from streammon.broker.reading import read
from streammon.results import Alert, Evidence
from tests.diagnosing import records
from tests.faults.harness import own_log
from tests.faults.stage import Grounds
from tests.incidents import build
from tests.support import cli, eventually

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(240)]

PARTITIONS = 2
BORN_S = 60.0
KILLS = 6
NEEDED = ("windows", "changes", "pipelines", "drift", "alerts", "evidence", "deadletter", "heartbeats")


class Diagnosing:
    """A log on Kafka with an incident in it, and processes of ``streammon diagnose``."""

    def __init__(self, broker: Broker, config: Path) -> None:
        self.broker = broker
        self.running: list[subprocess.Popen[bytes]] = []
        self._config, self._log = config, config.with_suffix(".log")
        self._incident = build("bad deploy", 2)
        self._numbers = itertools.count()

    async def happens(self) -> None:
        found = [
            Outgoing(topic, b"k", each.value, (), each.offset % PARTITIONS)
            for topic, of_topic in records(self._incident).items()
            for each in of_topic
        ]
        await self.broker.append(found)

    def start(self) -> subprocess.Popen[bytes]:
        with self._log.open("ab") as log:
            self.running.append(cli("diagnose", "--config", self._config, stderr=log))
        return self.running[-1]

    async def fires(self) -> Alert:
        alert = msgspec.structs.replace(self._incident.alert, id=f"alert-{next(self._numbers)}")
        value, partition = msgspec.json.encode(alert), random.randrange(PARTITIONS)
        await self.broker.append([Outgoing("alerts", alert.id.encode(), value, (), partition)])
        return alert

    async def evidence(self) -> dict[str, list[Evidence]]:
        found = defaultdict[str, list[Evidence]](list)
        async for _, batch in read(self.broker, ["evidence"]):
            for each in batch:
                evidence = msgspec.json.decode(each.value or b"", type=Evidence)
                assert each.key == evidence.alert_id.encode()
                found[evidence.alert_id].append(evidence)
        return found

    async def explained(self, alerts: list[Alert]) -> None:
        async def all_of_them() -> bool:
            return {each.id for each in alerts} <= (await self.evidence()).keys()

        try:
            await eventually(all_of_them, BORN_S)
        except AssertionError:
            missing = {each.id for each in alerts} - (await self.evidence()).keys()
            raise AssertionError(f"without evidence: {missing}\n{self._log.read_text()[-4000:]}") from None


@pytest.fixture
async def diagnosing(grounds: Grounds, tmp_path: Path) -> AsyncIterator[Diagnosing]:
    async with own_log(grounds, "diagnosing", PARTITIONS, NEEDED, tmp_path) as (broker, config):
        one = Diagnosing(broker, config)
        try:
            yield one
        finally:
            for process in one.running:
                process.kill()
                process.wait()


async def test_however_often_it_is_killed_every_alert_that_fired_gets_its_evidence(diagnosing: Diagnosing) -> None:
    """Killed while it starts, settles, reads or writes, or just before it commits; two run, so that partitions move."""
    await diagnosing.happens()
    fired: list[Alert] = []
    processes = [diagnosing.start(), diagnosing.start()]
    for number in range(KILLS):
        for _ in range(random.randrange(1, 4)):
            fired.append(await diagnosing.fires())
            await asyncio.sleep(random.uniform(0, 1.5))  # the moment of the kill is what is tried here
        if number % 3 == 2:
            await diagnosing.explained(fired[-1:])
        processes[number % 2].kill()
        assert processes[number % 2].wait() == -signal.SIGKILL
        processes[number % 2] = diagnosing.start()
    await diagnosing.explained(fired)
    for process in processes:
        process.terminate()
    ends = {await asyncio.to_thread(process.wait, 15) for process in processes}
    assert ends <= {0, -signal.SIGTERM}  # one that has only just begun ends by any signal
    found = await diagnosing.evidence()
    assert found.keys() == {each.id for each in fired}
    for told in found.values():  # what is written again says the same
        assert len({msgspec.json.encode(msgspec.structs.replace(each, made_unix_s=0.0)) for each in told}) == 1
        assert told[0].causes[0].kind == "deploy"
        assert told[0].notes == []


async def test_who_ends_by_itself_leaves_nothing_to_be_written_again(diagnosing: Diagnosing) -> None:
    await diagnosing.happens()
    process = diagnosing.start()
    fired = [await diagnosing.fires() for _ in range(3)]
    await diagnosing.explained(fired)
    process.terminate()
    assert await asyncio.to_thread(process.wait, 15) == 0
    diagnosing.start()
    fired.append(await diagnosing.fires())
    await diagnosing.explained(fired)
    assert {id_: len(told) for id_, told in (await diagnosing.evidence()).items()} == dict.fromkeys(
        (each.id for each in fired), 1
    )
