"""Rules on drift results and runs that anybody publishes, from the log to the alert, with a crash, on both brokers."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

from streammon.broker import Broker, Outgoing, connect
from streammon.config import Settings
from streammon.results import Drift, Run
from streammon.topics import topic_specs
from tests.faults.judge import read_all
from tests.support import cli, eventually

PARTITIONS = 2
RULES: Final = """
rules:
  - {name: drifted, source: drift, expr: drifted && sample_size > 1000, severity: warning, summary: "{target}: {value}"}
  - {name: failed, source: run, expr: 'state in ["failed", "lost"]', clear: state == "succeeded", severity: warning,
     summary: "{job}: {value}"}
"""


@pytest.fixture(params=["embedded", "kafka"])
def settings(request: pytest.FixtureRequest, tmp_path: Path, unique: str) -> Settings:
    topics: dict[str, Any] = {"partitions": PARTITIONS}
    if request.param == "embedded":
        return Settings(data_dir=tmp_path / "data", topics=topics)
    kafka = request.getfixturevalue("kafka")
    return Settings(bootstrap=kafka.address, topics={**topics, "prefix": f"{unique}."})


@pytest.fixture
async def broker(settings: Settings) -> AsyncIterator[Broker]:
    broker = await connect(settings)
    await broker.create_topics(topic_specs(partitions=PARTITIONS))
    yield broker
    await broker.close()


class Program:
    """The program, as people run it on this log."""

    def __init__(self, settings: Settings, directory: Path) -> None:
        self._config = directory / "streammon.json"
        self._rules = directory / "rules.yaml"
        said = settings.model_dump(mode="json", include={"bootstrap", "data_dir", "topics"}, exclude_none=True)
        self._config.write_text(json.dumps(said))
        self._rules.write_text(RULES)

    def rules(self) -> subprocess.Popen[bytes]:
        return cli("rules", "run", "--rules", self._rules, "--config", self._config)

    def alerts(self) -> list[Any]:
        """What `tail` prints."""
        line = [sys.executable, "-c", "from streammon.cli import main; main()", "tail", "alerts"]
        line += ["--from", "earliest", "--exit", "--config", str(self._config)]
        done = subprocess.run(line, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        return [json.loads(each) for each in done.stdout.splitlines()]


def result(topic: str, fields: Drift | Run | bytes) -> Outgoing:
    value = fields if isinstance(fields, bytes) else msgspec.json.encode(fields)
    return Outgoing(topic, b"key", value, (), 1)


def drift(at: float, drifted: bool) -> Drift:
    return Drift(
        service="shop", model="ranker", target="age", detector="psi", statistic=0.3 if drifted else 0.1,
        threshold=0.2, drifted=drifted, sample_size=5000, start_unix_s=at - 60, end_unix_s=at,
    )  # fmt: skip


@pytest.mark.timeout(180)
async def test_drift_and_a_failed_run_are_told_of_once_and_their_end_also_after_a_crash(
    broker: Broker, settings: Settings, tmp_path: Path
) -> None:
    program, now = Program(settings, tmp_path), time.time()

    async def told(count: int) -> list[Any]:
        await eventually(partial(_has, broker, "alerts", count), 60, what=f"{count} transitions")
        alerts = await asyncio.to_thread(program.alerts)
        return [(each["rule"], each["state"], each["labels"], each["summary"]) for each in alerts]

    series = {"service": "shop", "model": "ranker", "target": "age", "detector": "psi"}
    firing = [
        ("drifted", "firing", series, "age: 0.3"),
        ("failed", "firing", {"job": "train"}, "train: failed"),
    ]
    process = program.rules()
    try:
        failed = Run(job="train", run_id="a", state="failed", started_unix_s=now - 600, ended_unix_s=now - 60)
        await broker.append([result("drift", drift(now - 60, True)), result("drift", b"{"), result("runs", failed)])
        assert sorted(await told(2)) == firing
        process.kill()
        process.wait()
        good = Run(job="train", run_id="b", state="succeeded", updated_unix_s=now)
        late = Run(job="train", run_id="c", state="failed", updated_unix_s=now - 30)
        await broker.append([result("drift", drift(now, False)), result("runs", good), result("runs", late)])
        process = program.rules()
        resolved = [(rule, "resolved", labels, summary) for rule, _, labels, summary in firing]
        assert sorted(await told(4)) == sorted([*firing, *resolved])
        await eventually(partial(_has, broker, "deadletter", 2), 30, what="two dead letters")
        letters = [dict(each.headers) for each in await read_all(broker, "deadletter")]
        assert {each["reason"] for each in letters} == {b"invalid_json", b"too_late"}
    finally:
        process.kill()
        process.wait()


async def _has(broker: Broker, topic: str, count: int) -> bool:
    return len(await read_all(broker, topic)) >= count
