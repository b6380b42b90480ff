"""The loop on the embedded log, through the real tasks and the executor: from drift to whether a new model helped."""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from streammon.alert_log import Person, Ready
from streammon.broker import Broker, Outgoing, connect
from streammon.broker.reading import read
from streammon.cli.remediate import executor_topics, remedies
from streammon.cli.roles import topics_of
from streammon.config import Settings
from streammon.errors import ConfigError
from streammon.events import Change, Pipeline
from streammon.remediation_log import approve, newest, read_loops, read_remediations
from streammon.results import Drift, Loop, Quality
from streammon_processors.builtin import remedies_processor, remedy_processor, rules_processor
from streammon_processors.replay import Range
from streammon_processors.runtime import run_reloading
from streammon_processors.verification import Verdict, verify
from tests.support import eventually

RULES = {
    "rules": [
        {
            "name": "input-drift",
            "source": "drift",
            "expr": "drifted",
            "severity": "warning",
            "summary": "{target} of {model} has drifted",
            "action": "retrain-ranker",
        }
    ]
}
START = "import json, os, sys; open('started', 'a').write(os.environ['STREAMMON_RETRAIN_ID'] + '\\n'); print('queued')"
ACTIONS = {
    "actions": {
        "retrain-ranker": {
            "type": "command",
            "command": [sys.executable, "-c", START],
            "mode": "approve",
            "cool_down": 0,
            "retrain": {
                "service": "shop",
                "model": "ranker",
                "job": "train-ranker",
                "confirm": {"min_labels": 200},
            },
        }
    }
}


class Shop:
    """A log on which everything runs, and a model whose owners say what they do."""

    def __init__(self, broker: Broker, settings: Settings, directory: Path) -> None:
        self.broker, self.settings, self.directory = broker, settings, directory

    async def send(self, topic: str, *contents: Any, key: bytes = b"shop/ranker") -> None:
        await self.broker.append([Outgoing(topic, key, msgspec.json.encode(each)) for each in contents])

    async def serves(self, version: str, accuracy: float, windows: int = 1) -> None:
        """Predictions and labels of a minute, as `quality` has them."""
        for _ in range(windows):
            now = time.time()
            plain: dict[str, Any] = {"service": "shop", "model": "ranker", "model_version": version, "partition": 0}
            plain |= {"start_unix_s": now, "end_unix_s": now + 1, "size_s": 1.0}
            predicted = Quality(**plain, by="prediction", predictions=1000)
            await self.send("quality", predicted, Quality(**plain, by="label", labelled=600, accuracy=accuracy))

    async def labels_are_known(self) -> bool:
        gathered = [each async for _, records in read(self.broker, ["remedies"]) for each in records]
        return len(gathered) == 2

    async def drifts(self) -> None:
        now = time.time()
        plain: dict[str, Any] = {"service": "shop", "model": "ranker", "model_version": "7", "target": "age"}
        plain |= {"detector": "psi", "statistic": 0.4, "threshold": 0.2, "sample_size": 5000}
        await self.send("drift", Drift(**plain, drifted=True, start_unix_s=now - 60, end_unix_s=now))

    async def loops(self) -> list[Loop]:
        return [*(await read_loops(self.broker)).values()]

    async def comes_to(self, state: str) -> Loop:
        async def so() -> bool:
            return [each.state for each in await self.loops()] == [state]

        try:
            await eventually(so, 30)
        except AssertionError:
            raise AssertionError(f"{await self.loops()}\n{await read_remediations(self.broker)}") from None
        return (await self.loops())[0]

    async def approves(self) -> None:
        found = newest(await read_remediations(self.broker))
        [waiting] = [each for each in found.values() if each.state == "awaiting_approval"]
        person = Person("ann", "cli", time.time())
        ready = approve(found, waiting.id, person, approved=True)
        assert isinstance(ready, Ready)
        await self.broker.append([ready.record])

    async def changes(self) -> list[Change]:
        return [
            msgspec.json.decode(each.value or b"", type=Change)
            async for _, records in read(self.broker, ["changes"])
            for each in records
        ]


@pytest.fixture
async def shop(tmp_path: Path) -> AsyncIterator[Shop]:
    rules, actions = tmp_path / "rules.yaml", tmp_path / "actions.yaml"
    rules.write_text(yaml.safe_dump(RULES))
    content = ACTIONS["actions"]["retrain-ranker"] | {"cwd": str(tmp_path)}
    actions.write_text(yaml.safe_dump({"actions": {"retrain-ranker": content}}))
    settings = Settings(
        data_dir=tmp_path / "data",
        rules={"files": [rules]},
        remediation={"file": actions},
        topics={"partitions": 2},
    )
    broker, stop = await connect(settings), asyncio.Event()
    async with remedies(settings) as doing:
        rules_of = rules_processor(settings)
        await broker.create_topics([*topics_of(settings, [*doing.processors, rules_of]), *executor_topics(settings)])
        ruling = run_reloading(broker, partial(rules_processor, settings), settings, stop=stop)
        running = [asyncio.create_task(each) for each in (*doing.parts(broker, stop), ruling)]
        yield Shop(broker, settings, tmp_path)
        stop.set()
        await asyncio.gather(*running)
    await broker.close()


async def until_deployed(shop: Shop) -> Loop:
    await shop.serves("7", 0.7)
    await eventually(shop.labels_are_known, 30)  # they lie in another topic than alerts
    await shop.drifts()
    await shop.comes_to("awaiting_approval")
    await shop.approves()
    loop = await shop.comes_to("started")
    assert (shop.directory / "started").read_text() == f"{loop.id}\n"
    now = time.time()
    plain: dict[str, Any] = {"job": "train-ranker", "run_id": "r1"}
    await shop.send("pipelines", Pipeline(**plain, time_unix_s=now, event="started"), key=b"train-ranker")
    await shop.comes_to("training")
    await shop.send("pipelines", Pipeline(**plain, time_unix_s=now + 1, event="finished"), key=b"train-ranker")
    await shop.comes_to("trained")
    deploy = Change(time_unix_s=time.time(), service="shop", kind="deploy", model="ranker", model_version="8")
    await shop.send("changes", deploy, key=b"shop")
    return await shop.comes_to("deployed")


@pytest.mark.timeout(120)
async def test_drift_is_followed_to_a_new_version_that_has_helped(shop: Shop) -> None:
    loop = await until_deployed(shop)
    assert (loop.by, loop.detail) == ("ann", f"{sys.executable} ended with 0: queued")
    await shop.serves("8", 0.9)
    loop = await shop.comes_to("closed")
    assert (loop.outcome, loop.why, loop.old_version, loop.new_version) == ("helped", "measured", "7", "8")
    assert loop.comparison is not None
    assert (loop.comparison.old, loop.comparison.new) == pytest.approx((0.7, 0.9))
    retrained, _ = sorted(await shop.changes(), key=lambda each: each.time_unix_s)
    assert (retrained.kind, retrained.ref, retrained.actor) == ("retrain", loop.id, "ann")
    assert [*loop.times] == [
        "awaiting_approval",
        "approved",
        "started",
        "training",
        "trained",
        "deployed",
        "confirming",
        "closed",
    ]


@pytest.mark.timeout(120)
async def test_what_was_decided_can_be_verified_beside_the_changes_of_others(shop: Shop) -> None:
    await until_deployed(shop)
    other = Change(time_unix_s=time.time(), service="shop", kind="retrain", model="ranker", actor="ann")
    await shop.send("changes", other, key=b"shop")
    range_ = Range(0.0, time.time() + 60)
    verification = await verify(shop.broker, remedy_processor(shop.settings), range_, max_future_s=60.0)
    verdicts = Counter(each.verdict for each in await verification.partition(0))
    assert verdicts.keys() == {Verdict.IDENTICAL}
    states = ["awaiting_approval", "approved", "started", "training", "trained", "deployed"]
    published = [*await read_remediations(shop.broker), *states, "the change"]
    assert verdicts[Verdict.IDENTICAL] == len(published)
    with pytest.raises(ConfigError, match=r"remedies writes to partition 0, .*cannot be verified"):
        await verify(shop.broker, remedies_processor(shop.settings), range_, max_future_s=60.0)


@pytest.mark.timeout(120)
async def test_drift_is_followed_to_a_new_version_that_is_worse(shop: Shop) -> None:
    await until_deployed(shop)
    await shop.serves("8", 0.5)
    loop = await shop.comes_to("closed")
    assert (loop.outcome, loop.why) == ("worse", "measured")
