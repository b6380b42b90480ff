"""Heartbeats: what is said, by whom, and that nothing of it hinders the role."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from streammon.broker import Broker, Outgoing, connect
from streammon.config import Settings
from streammon.errors import ConfigError, Retryable
from streammon.heartbeat import Heartbeat, beating, decode_heartbeat
from streammon.topics import topic_specs
from tests.faults.judge import read_all
from tests.support import cli, eventually


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data", heartbeat={"interval_s": 0.05})


@pytest.fixture
async def broker(settings: Settings) -> AsyncIterator[Broker]:
    broker = await connect(settings)
    await broker.create_topics(topic_specs(partitions=2))
    yield broker
    await broker.close()


async def said(broker: Broker) -> list[Heartbeat]:
    return [decode_heartbeat(record.value or b"") for record in await read_all(broker, "heartbeats")]


async def states(broker: Broker) -> list[str]:
    return [heartbeat.state for heartbeat in await said(broker)]


async def test_a_role_says_that_it_is_there_until_it_is_stopped(broker: Broker, settings: Settings) -> None:
    async def is_running() -> bool:
        return "running" in await states(broker)

    waiting: list[str | None] = ["the broker"]
    async with beating(broker, settings, "agent", lambda: waiting[0], details={"x": "y"}) as id_:
        await eventually(lambda: said(broker), 5, "the first heartbeat")
        waiting[0] = None
        await eventually(is_running, 5, "a role that waits for nothing")
    first, *_, last = await said(broker)
    assert (first.state, last.state) == ("starting", "stopping")
    assert first.details == {"x": "y", "waiting_for": "the broker"}
    assert (last.id, last.role, last.interval_s, last.details) == (id_, "agent", 0.05, {"x": "y"})
    assert {record.key for record in await read_all(broker, "heartbeats")} == {id_.encode()}


async def test_an_end_by_an_error_is_not_announced(broker: Broker, settings: Settings) -> None:
    async def failing() -> None:
        async with beating(broker, settings, "agent"):
            await eventually(lambda: said(broker), 5, "the first heartbeat")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await failing()
    assert "stopping" not in await states(broker)


class Away:
    """A broker that takes nothing."""

    def __init__(self, error: Exception | None) -> None:
        self.error = error
        self.tries = 0

    async def append(self, records: Sequence[Outgoing]) -> list[int]:
        self.tries += 1
        if self.error is None:
            await asyncio.Event().wait()
        assert self.error is not None
        raise self.error


@pytest.mark.parametrize(("error", "tries"), [(Retryable("away"), 4), (ConfigError("no such topic"), 2), (None, 2)])
async def test_a_broker_that_takes_nothing_neither_ends_nor_holds_up_the_role(
    error: Exception | None, tries: int, settings: Settings
) -> None:
    """What may pass is tried again; what may not is not. One try more are the last words."""
    broker: Any = Away(error)
    began = time.monotonic()
    async with beating(broker, settings, "agent"):
        await eventually(lambda: broker.tries >= tries - 1, 5, "the tries")
    assert broker.tries >= tries
    assert time.monotonic() - began < 4


async def test_an_id_is_the_same_after_a_restart_and_never_that_of_two(broker: Broker, settings: Settings) -> None:
    async with beating(broker, settings, "process") as one, beating(broker, settings, "process") as other:
        assert one != other
        async with beating(broker, settings, "rules") as third:
            assert third not in (one, other)
    async with beating(broker, settings, "process") as again:
        assert again == one


async def test_where_no_file_can_be_locked_there_is_an_id_all_the_same(broker: Broker, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    async with beating(broker, Settings(data_dir=tmp_path / "file"), "agent") as id_:
        assert id_.startswith("agent@")


async def test_a_static_member_goes_by_its_name(broker: Broker, tmp_path: Path) -> None:
    named = Settings(bootstrap="x:1", data_dir=tmp_path, kafka={"instance_id": "seven"}, agent={"host": "h"})
    async with beating(broker, named, "process") as id_:
        assert id_ == "process@h/seven"


def test_an_unknown_schema_is_no_heartbeat() -> None:
    about = {"id": "a", "role": "r", "host": "h", "version": "1", "started_unix_s": 0, "time_unix_s": 0}
    value = json.dumps({**about, "type": "heartbeat", "state": "running", "interval_s": 1, "schema": 2}).encode()
    with pytest.raises(msgspec.ValidationError, match="schema is 2"):
        decode_heartbeat(value)


async def test_up_is_listed_while_it_runs_and_after_it_was_stopped(tmp_path: Path) -> None:
    """On the embedded log, without a service."""
    directory = tmp_path / "data"
    process = cli("up", "--data-dir", directory, "--port", 0)
    try:
        await eventually(lambda: listed(directory).get("up") == "running", 40, "a heartbeat of up")
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, 15) == 0
        assert listed(directory) == {"up": "stopped"}
    finally:
        process.kill()
        process.wait()


def listed(directory: Path) -> dict[str, str]:
    from typer.testing import CliRunner

    from streammon.cli import inventory  # noqa: F401 - importing registers the commands
    from streammon.cli.base import app

    if not directory.exists():
        return {}
    done = run_beside(
        lambda: CliRunner().invoke(app, ["inventory", "list", "--output", "json", "--data-dir", str(directory)])
    )
    return (
        {row["role"]: row["state"] for row in map(json.loads, done.stdout.splitlines())} if not done.exit_code else {}
    )


def run_beside(function: Any) -> Any:
    """In a thread, because the command has an event loop of its own."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result()
