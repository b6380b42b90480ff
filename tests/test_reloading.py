"""Files that change while something runs by them."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import msgspec
import pytest
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from streammon.broker import Outgoing, connect
from streammon.broker.reading import read
from streammon.config import Settings
from streammon.errors import ConfigError
from streammon.notifications import Notification
from streammon.reloading import reloading
from streammon.topics import topic_specs
from streammon_processors.builtin import notify_processor
from streammon_processors.runtime import run_processor
from streammon_processors.task import Processor
from tests.processors.test_notifier_decide import alert
from tests.support import eventually

LOOK_S = 0.02
CHANNELS = "channels: {chat: {type: x}, page: {type: x}}"


class Runner:
    """Runs by texts; notes by which, and how often it ended."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.ended = 0

    async def __call__(self, text: str, over: asyncio.Event) -> None:
        self.ran.append(text)
        await over.wait()
        self.ended += 1


def load(file: Path) -> str:
    if "bad" in (text := file.read_text()):
        raise ConfigError(f"{file}:1:1: it is bad")
    return text


def refused() -> float | None:
    return REGISTRY.get_sample_value("streammon_reload_refused", {"what": "notify.file"})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (file := tmp_path / "notify.yaml").write_text("one")
    return file


@pytest.fixture
def runner() -> Runner:
    return Runner()


async def run(file: Path, runner: Runner, stop: asyncio.Event) -> None:
    await reloading("notify.file", [file], lambda: load(file), runner, stop=stop, every_s=LOOK_S)


def replace(file: Path, text: str) -> None:
    """Another file in its place, at once."""
    (new := file.with_suffix(".new")).write_text(text)
    new.rename(file)


async def test_what_runs_ends_and_begins_anew_by_the_changed_file(file: Path, runner: Runner) -> None:
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(run(file, runner, stop))
        await eventually(lambda: runner.ran == ["one"])
        replace(file, "two")
        await eventually(lambda: runner.ran == ["one", "two"])
        assert runner.ended == 1
        stop.set()
    assert runner.ended == 2


async def test_a_bad_file_changes_nothing_and_says_why(file: Path, runner: Runner) -> None:
    stop = asyncio.Event()
    with capture_logs() as logged:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(run(file, runner, stop))
            await eventually(lambda: runner.ran == ["one"])
            replace(file, "bad")
            await eventually(lambda: refused() == 1)
            replace(file, "three")
            await eventually(lambda: runner.ran == ["one", "three"])
            assert refused() == 0
            stop.set()
    assert f"{file}:1:1: it is bad" in [each.get("error") for each in logged]


async def test_a_file_that_says_the_same_again_ends_nothing(file: Path, runner: Runner) -> None:
    stop = asyncio.Event()
    looked: list[None] = []

    def counted() -> str:
        looked.append(None)
        return load(file)

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(reloading("x", [file], counted, runner, stop=stop, every_s=LOOK_S))
        await eventually(lambda: runner.ran)
        replace(file, "one")
        await eventually(lambda: len(looked) == 2)
        stop.set()
    assert (runner.ran, runner.ended) == (["one"], 1)


async def test_a_bad_file_at_the_start_stops_at_once(file: Path, runner: Runner) -> None:
    replace(file, "bad")
    with pytest.raises(ConfigError, match="it is bad"):
        await run(file, runner, asyncio.Event())
    assert runner.ran == []


async def test_what_it_raises_is_raised(file: Path) -> None:
    async def failing(_: str, over: asyncio.Event) -> None:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        await reloading("x", [file], lambda: load(file), failing, stop=asyncio.Event(), every_s=LOOK_S)


async def test_the_decision_goes_on_by_a_changed_file_and_tells_nothing_twice(tmp_path: Path) -> None:
    file = tmp_path / "notify.yaml"
    replace(file, f"{CHANNELS}\nroute: {{to: [chat], group_wait: 0}}")
    settings = Settings(data_dir=tmp_path, notify={"file": file})
    broker = await connect(settings)
    await broker.create_topics(topic_specs(partitions=1, processors=["notify"]))
    stop, made = asyncio.Event(), list[Processor]()

    def fresh() -> bytes:
        return file.read_bytes() if notify_processor(settings) else b""

    async def decide(_: bytes, over: asyncio.Event) -> None:
        made.append(notify_processor(settings))
        await run_processor(broker, made[-1], settings, stop=over)

    async def told() -> list[tuple[str, str]]:
        records = [record async for _, some in read(broker, ["notifications"]) for record in some]
        found = [msgspec.json.decode(record.value or b"", type=Notification) for record in records]
        return [(each.channel, each.alerts[0].id) for each in found]

    async def is_told(*expected: tuple[str, str]) -> None:
        async def so() -> bool:
            return await told() == [*expected]

        await eventually(so)

    async def page(id_: str, rule: str) -> None:
        fired = alert(id_, rule=rule, updated_unix_s=time.time())  # of long ago, it would be told later
        await broker.append([Outgoing("pages", id_.encode(), msgspec.json.encode(fired), (), 0)])

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(reloading("notify.file", [file], fresh, decide, stop=stop, every_s=LOOK_S))
        await page("a1", "slow")
        await is_told(("chat", "a1"))
        replace(file, "channels: {chat: {type: x}}\nroute: {to: [nobody]}")
        await eventually(lambda: refused() == 1)
        assert len(made) == 1
        routes = "[{matchers: ['rule=\"new\"'], to: [page]}]"
        replace(file, f"{CHANNELS}\nroute: {{to: [chat], group_wait: 0, routes: {routes}}}")
        await eventually(lambda: len(made) == 2)
        await page("a2", "new")
        await is_told(("chat", "a1"), ("page", "a2"))
        stop.set()
    await broker.close()
