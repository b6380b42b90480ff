"""Rules that change under a running processor."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import msgspec
import pytest
from prometheus_client import REGISTRY

from streammon.broker import Broker, Outgoing, connect
from streammon.config import Settings
from streammon.errors import ConfigError
from streammon.topics import ROLLUP_HEADER, topic_specs
from streammon_processors.builtin import regroup_processor, rules_processor, windows_processor
from streammon_processors.runtime import run_reloading
from streammon_processors.task import Processor
from tests.processors.test_rules import window
from tests.processors.test_runtime import contents
from tests.support import eventually

RULE = {"name": "slow", "source": "inference", "expr": "duration_s.p99 > 0.3", "severity": "critical", "summary": "x"}


def write(file: Path, *rules: Mapping[str, Any]) -> None:
    """As a ConfigMap changes: all at once."""
    new = file.with_suffix(".new")
    new.write_text(json.dumps({"rules": rules}))
    new.replace(file)


def reloads(outcome: str) -> float:
    labels = {"what": "rules", "outcome": outcome}
    return REGISTRY.get_sample_value("streammon_reloads_total", labels) or 0.0


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write(tmp_path / "rules.yaml", RULE)
    return tmp_path / "rules.yaml"


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Broker]:
    broker = await connect(Settings(data_dir=tmp_path))
    await broker.create_topics(topic_specs(partitions=1, processors=["windows", "rollups", "regroup", "rules"]))
    yield broker
    await broker.close()


async def see(broker: Broker, index: int, p99: float) -> None:
    await broker.append([Outgoing("windows", b"x", msgspec.json.encode(window(index, p99)))])


async def told(broker: Broker) -> list[tuple[str, int, str]]:
    return [(alert["state"], alert["transition"], alert["summary"]) for alert in await contents(broker, "alerts")]


async def test_a_changed_file_is_taken_over_while_an_alert_fires_and_a_bad_one_changes_nothing(
    broker: Broker, file: Path, tmp_path: Path
) -> None:
    settings = Settings(data_dir=tmp_path, rules={"files": [file]})
    stop = asyncio.Event()
    running = asyncio.create_task(
        run_reloading(broker, partial(rules_processor, settings), settings, stop=stop, look_s=0.05)
    )
    try:
        await see(broker, 0, 0.5)
        await eventually(lambda: _is(broker, [("firing", 1, "x")]), 10, what="the alert")

        refused = reloads("refused")
        write(file, {**RULE, "expr": "duration_s.p95 > 1"})
        await eventually(lambda: _counted("refused", refused + 1), 10, what="the bad file is refused")

        taken = reloads("taken")
        write(file, {**RULE, "summary": "y"})
        await eventually(lambda: _counted("taken", taken + 1), 10, what="the good file is taken")
        await see(broker, 1, 0.5)
        await see(broker, 2, 0.1)
        await eventually(lambda: _is(broker, [("firing", 1, "x"), ("resolved", 2, "y")]), 10, what="its end, once")
    finally:
        stop.set()
        await running


async def test_copies_for_groups_are_made_as_soon_as_a_rule_says_by(broker: Broker, file: Path, tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, rules={"files": [file]})
    stop, make = asyncio.Event(), partial(regroup_processor, settings)
    running = asyncio.create_task(run_reloading(broker, make, settings, stop=stop, look_s=0.05))
    try:
        minute = window(0, size_s=4.0, end_unix_s=4.0, of_s=2.0)
        rollup = Outgoing("windows", b"x", msgspec.json.encode(minute), ((ROLLUP_HEADER, b"4s"),))
        await broker.append([rollup])
        write(file, {**RULE, "by": ["service"], "window": "4s"})
        await eventually(lambda: _copied(broker, [{"service": "shop"}]), 10, what="the copy")
    finally:
        stop.set()
        await running


async def _copied(broker: Broker, groups: list[dict[str, str]]) -> bool:
    return [part["series"] for part in await contents(broker, "regrouped")] == groups


async def _is(broker: Broker, expected: list[tuple[str, int, str]]) -> bool:
    found = await told(broker)
    assert len(found) <= len(expected), found
    return found == expected


async def _counted(outcome: str, expected: float) -> bool:
    return reloads(outcome) == expected


async def test_a_bad_file_at_the_start_is_an_error_and_one_without_files_just_runs(
    broker: Broker, file: Path, tmp_path: Path
) -> None:
    settings = Settings(data_dir=tmp_path, rules={"files": [file]})
    write(file, {"name": "no more"})
    with pytest.raises(ConfigError, match="no more"):
        await run_reloading(broker, lambda: rules_processor(settings), settings, stop=asyncio.Event(), look_s=0.05)
    stop = asyncio.Event()
    running = asyncio.create_task(
        run_reloading(broker, partial(windows_processor, settings), settings, stop=stop, look_s=0.05)
    )
    stop.set()
    await asyncio.wait_for(running, 10)


async def test_what_ends_the_processor_ends_the_watching(broker: Broker, file: Path, tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, rules={"files": [file]})

    def breaks(partition: int) -> Any:
        raise RuntimeError("cannot be made")

    processor = Processor("rules", ("windows",), breaks, files=(file,))
    with pytest.raises(RuntimeError, match="cannot be made"):
        await run_reloading(broker, lambda: processor, settings, stop=asyncio.Event(), look_s=0.05)
