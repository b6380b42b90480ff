"""Remediation on a real Kafka: who is killed between start and outcome leaves ``unknown``; nothing is done twice."""

from __future__ import annotations

import asyncio
import random
import signal
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from aiohttp import web

from streammon.broker import Broker, Outgoing
from streammon.broker.reading import read
from streammon.events import Change
from streammon.remediation_log import read_loops, read_remediations
from tests.faults.harness import own_log
from tests.faults.stage import Grounds
from tests.remedies import T0, alert
from tests.sinks.notify.fake_http import FakeHttp, fake_http
from tests.support import cli, eventually

pytestmark = [pytest.mark.kafka, pytest.mark.timeout(180)]

BORN_S = 40.0
KILLS = 6
TOLD = ("quality", "changes", "pipelines", "runs", "windows", "loops")
NEEDED = ("alerts", "commands", "remedies", "remediations", "deadletter", "snapshots", "heartbeats", *TOLD)
TRAIN = """
  train:
    type: command
    command: [sh, -c, 'echo "$STREAMMON_RETRAIN_ID" >> started; kill -9 $PPID']
    mode: auto
    cwd: CWD
    retrain: {service: shop, model: ranker, min_labels: 0}
"""


class Remedying:
    """A log on Kafka, what is acted on, and processes of ``streammon remediate run``."""

    def __init__(self, broker: Broker, config: Path) -> None:
        self.broker, self.posts, self.http = broker, list[str](), FakeHttp(self._answer)
        self.victim: subprocess.Popen[bytes] | None = None
        self.running: list[subprocess.Popen[bytes]] = []
        self._config, self._log = config, config.with_suffix(".log")

    @property
    def directory(self) -> Path:
        return self._config.parent

    def _answer(self, request: web.Request, _: bytes) -> web.Response:
        self.posts.append(request.headers["Idempotency-Key"])
        if self.victim:
            self.victim.kill()
        return web.Response(status=204)

    def start(self) -> subprocess.Popen[bytes]:
        file = self._config.with_name("actions.yaml")
        webhook = f"type: webhook, url: '{self.http.address}', mode: auto, cool_down: 0"
        actions = f"  restart: {{{webhook}}}\n  often: {{{webhook}, at_most: {{count: 100}}}}"
        file.write_text(f"actions:\n{actions}{TRAIN.replace('CWD', str(file.parent))}")
        with self._log.open("ab") as log:
            command = ("remediate", "run", "--config", self._config, "--actions", file)
            self.running.append(cli(*command, stderr=log))
        return self.running[-1]

    async def fires(self, id_: str, action: str = "restart") -> None:
        value = msgspec.json.encode(alert(id_, time.time() - T0, action=action))
        await self.broker.append([Outgoing("alerts", id_.encode(), value)])

    async def comes_to(self, alert_id: str, *states: str) -> None:
        async def so() -> bool:
            return await self.states(alert_id) == [*states]

        try:
            await eventually(so, BORN_S)
        except AssertionError:
            raise AssertionError(f"{await self.states(alert_id)}\n{self._log.read_text()[-4000:]}") from None

    async def states(self, alert_id: str) -> list[str]:
        return [each.state for each in await read_remediations(self.broker) if each.alert_id == alert_id]


@pytest.fixture
async def remedying(grounds: Grounds, tmp_path: Path) -> AsyncIterator[Remedying]:
    async with own_log(grounds, "remedying", 2, NEEDED, tmp_path) as (broker, config):
        one = Remedying(broker, config)
        try:
            async with fake_http(one._answer, tmp_path) as one.http:
                yield one
        finally:
            for process in one.running:
                process.kill()
                process.wait()


async def test_who_is_killed_between_start_and_outcome_leaves_unknown_and_it_is_not_done_again(
    remedying: Remedying,
) -> None:
    first = remedying.victim = remedying.start()
    await remedying.fires("a")
    assert await asyncio.to_thread(first.wait, BORN_S) == -signal.SIGKILL
    remedying.victim = None
    remedying.start()
    await remedying.comes_to("a", "due", "started", "unknown")
    await remedying.fires("b")  # and the next one is done
    await remedying.comes_to("b", "due", "started", "done")
    assert len(remedying.posts) == 2
    assert len(set(remedying.posts)) == 2


async def test_however_often_they_are_killed_nothing_is_done_twice_and_nothing_is_forgotten(
    remedying: Remedying,
) -> None:
    """Killed at any moment; what the one who died had begun is unknown, and whatever else was due is done."""
    processes = [remedying.start(), remedying.start()]
    fired = 0
    for number in range(KILLS):
        for _ in range(random.randrange(1, 4)):
            await remedying.fires(f"a{fired}", "often")
            fired += 1
            await asyncio.sleep(random.uniform(0, 1.0))  # the moment of the kill is what is tried here
        processes[number % 2].kill()
        processes[number % 2].wait()
        processes[number % 2] = remedying.start()
    await remedying.fires("last", "often")

    async def all_have_ended() -> bool:
        newest = {each.alert_id: each.state for each in await read_remediations(remedying.broker)}
        return len(newest) == fired + 1 and set(newest.values()) <= {"done", "unknown"}

    await eventually(all_have_ended, 2 * BORN_S)
    assert len(remedying.posts) == len(set(remedying.posts))
    done = {each.id for each in await read_remediations(remedying.broker) if each.state == "done"}
    assert done <= set(remedying.posts)
    for number in range(fired):
        assert await remedying.states(f"a{number}") in (["due", "started", "done"], ["due", "started", "unknown"])


async def test_two_that_run_side_by_side_do_everything_once(remedying: Remedying) -> None:
    both = [remedying.start(), remedying.start()]
    for number in range(3):
        await remedying.fires(f"a{number}")
        await remedying.comes_to(f"a{number}", "due", "started", "done")
    both[0].terminate()
    assert await asyncio.to_thread(both[0].wait, 15) == 0
    await remedying.fires("last")
    await remedying.comes_to("last", "skipped")  # three a day are enough
    assert len(remedying.posts) == len(set(remedying.posts)) == 3


async def test_a_training_whose_start_killed_us_is_started_once_and_followed_all_the_same(remedying: Remedying) -> None:
    """The hook itself kills who runs it: nobody knows whether it was done, so it is never done again."""
    first = remedying.start()
    await remedying.fires("a", "train")
    assert await asyncio.to_thread(first.wait, BORN_S) == -signal.SIGKILL
    remedying.start()
    await remedying.comes_to("a", "due", "started", "unknown")
    [loop] = (await read_loops(remedying.broker)).values()
    assert (loop.state, loop.outcome) == ("started", None)
    await remedying.fires("b", "train")
    await remedying.comes_to("b", "skipped")  # one of a model is open at a time
    [loop] = (await read_loops(remedying.broker)).values()
    assert [each.alert_id for each in loop.reasons] == ["a", "b"]
    started = remedying.directory / "started"
    assert started.read_text() == f"{loop.id}\n"
    requested = [
        msgspec.json.decode(record.value or b"", type=Change)
        async for _, records in read(remedying.broker, ["changes"])
        for record in records
    ]
    assert [(each.kind, each.ref) for each in requested] == [("retrain", loop.id)]
