"""Executing on a real embedded log: at most once, in time, and what is told when nobody knows."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import aiohttp
import msgspec
import pytest
from msgspec.structs import replace

from streammon.broker import Broker, Outgoing, connect
from streammon.broker.reading import read
from streammon.config import Settings
from streammon.errors import ConfigError, Rejected, Retryable
from streammon.errors import Reason as Refusal
from streammon.remediation import Execution, Remediation
from streammon.topics import topic_specs
from streammon_sinks.notify.http import Unanswered
from streammon_sinks.remediation.actions import Action, Tools
from streammon_sinks.remediation.execute import LATE_S, _Owner, execute_remediations, execution_topics
from tests.remedies import Decision, alert
from tests.sinks.builders import StoredRecord
from tests.support import eventually

Doing = Callable[[Remediation], Awaitable[str]]


class Recorded(Action, frozen=True, tag="recorded"):
    """An action that is done by a function of the test."""

    doing: Doing

    async def do(self, tools: Tools, remediation: Remediation) -> str:
        return await self.doing(remediation)


class Execution_:  # noqa: N801 - `Execution` is what it writes
    """A log with remediations, and executors that come and go."""

    def __init__(self, broker: Broker, session: aiohttp.ClientSession) -> None:
        self.broker, self._session = broker, session
        self.done: list[str] = []
        self.doing: Doing = self._succeed
        self.version, self.timeout_s = "v1", 5.0
        self.now: Callable[[], float] = time.time
        self._running: list[tuple[asyncio.Event, asyncio.Task[None]]] = []

    async def _succeed(self, remediation: Remediation) -> str:
        self.done.append(remediation.id)
        return "scaled"

    def actions(self) -> Mapping[str, tuple[Action, str]]:
        return {"restart": (Recorded(doing=self.doing, timeout=self.timeout_s), self.version)}

    async def decide(self, *remediations: Remediation) -> None:
        records = [Outgoing("remediations", each.id.encode(), msgspec.json.encode(each)) for each in remediations]
        await self.broker.append(records)

    def start(self) -> None:
        stop = asyncio.Event()
        tools = Tools(self._session, self.broker, self.now)
        running = execute_remediations(self.broker, self.actions, tools, stop=stop, clock=lambda: self.now())  # type: ignore[arg-type]
        self._running.append((stop, asyncio.create_task(running)))

    async def stop(self) -> None:
        for stop, running in self._running:
            stop.set()
            await running
        self._running.clear()

    async def kill(self) -> None:
        """As kill -9 leaves the log: nothing more is written."""
        for _, running in self._running:
            running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await running
        self._running.clear()

    async def told(self) -> list[Execution]:
        return [
            msgspec.json.decode(each.value or b"", type=Execution)
            async for _, records in read(self.broker, ["remedies"])
            for each in records
        ]

    async def comes_to(self, *states: str) -> list[Execution]:
        async def so() -> bool:
            return [each.state for each in await self.told()] == [*states]

        try:
            await eventually(so, 15)
        except AssertionError:
            raise AssertionError(f"told: {await self.told()}") from None
        return await self.told()


@pytest.fixture
async def execution(tmp_path: Path) -> AsyncIterator[Execution_]:
    broker = await connect(Settings(data_dir=tmp_path))
    await broker.create_topics([*topic_specs(partitions=1), *execution_topics()])
    async with aiohttp.ClientSession() as session:
        one = Execution_(broker, session)
        yield one
        await one.stop()
    await broker.close()


def due(id_: str = "a1") -> Remediation:
    return Decision().at(0, alert(id_))[0]


async def test_what_is_due_is_done_once_and_told(execution: Execution_) -> None:
    execution.start()
    await execution.decide(due())
    _, done = await execution.comes_to("started", "done")
    assert (done.detail, done.remediation) == ("scaled", due())
    await execution.stop()
    execution.start()
    await execution.decide(due("b"))
    await execution.comes_to("started", "done", "started", "done")
    assert execution.done == [due().id, due("b").id]


async def test_what_waits_for_a_person_or_is_over_is_not_done(execution: Execution_) -> None:
    others = ["awaiting_approval", "skipped", "refused", "expired", "started", "done", "failed", "unknown"]
    await execution.decide(*(replace(due(), state=state) for state in others), due("b"))
    execution.start()
    await execution.comes_to("started", "done")
    assert execution.done == [due("b").id]


async def test_what_was_withdrawn_before_it_began_is_not_done(execution: Execution_) -> None:
    await execution.decide(due(), replace(due(), state="withdrawn"), due("b"))
    execution.start()
    expired, *_ = await execution.comes_to("expired", "started", "done")
    assert (expired.reason, execution.done) == ("resolved", [due("b").id])


async def test_what_was_due_too_long_ago_is_not_done(execution: Execution_) -> None:
    execution.now = lambda: time.time() + LATE_S + 1
    await execution.decide(due())
    execution.start()
    [expired] = await execution.comes_to("expired")
    assert (expired.reason, execution.done) == ("late", [])


async def test_an_action_that_is_another_one_now_is_not_done(execution: Execution_) -> None:
    execution.version = "v2"
    await execution.decide(due(), replace(due("b"), action="gone"))
    execution.start()
    changed, gone = await execution.comes_to("failed", "failed")
    assert (changed.reason, gone.reason, execution.done) == ("changed", "changed", [])


async def test_a_file_that_cannot_be_read_is_a_failure_and_the_next_is_tried(
    execution: Execution_, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bad() -> Mapping[str, tuple[Action, str]]:
        raise ConfigError("actions.yaml:3:1: unknown field")

    with monkeypatch.context() as patch:
        patch.setattr(execution, "actions", bad)
        execution.start()
        await execution.decide(due())
        [failed] = await execution.comes_to("failed")
    assert failed.detail == "not begun: actions.yaml:3:1: unknown field"


@pytest.mark.parametrize(
    ("error", "state", "detail"),
    [
        (Rejected(Refusal.REFUSED, "answered 403"), "failed", "answered 403"),
        (Retryable("cannot be reached"), "failed", "cannot be reached"),
        (ConfigError("no such secret"), "failed", "no such secret"),
        (Unanswered("did not answer"), "unknown", "did not answer; it may have been done"),
        (RuntimeError("s3cret"), "unknown", "action restart failed on it: RuntimeError; it may have been done"),
    ],
)
async def test_what_failed_is_told_apart_from_what_nobody_knows_and_is_not_tried_again(
    execution: Execution_, error: Exception, state: str, detail: str
) -> None:
    async def fail(remediation: Remediation) -> str:
        execution.done.append(remediation.id)
        raise error

    execution.doing = fail
    execution.start()
    await execution.decide(due())
    _, ended = await execution.comes_to("started", state)
    assert ended.detail == detail
    assert len(execution.done) == 1


async def test_what_takes_too_long_is_given_up(execution: Execution_) -> None:
    async def hang(_: Remediation) -> str:
        await asyncio.Future()
        return ""

    execution.doing, execution.timeout_s = hang, 0.1
    execution.start()
    await execution.decide(due())
    _, ended = await execution.comes_to("started", "unknown")
    assert ended.detail == "no end within 0.1 s; it may have been done"


async def test_a_dry_run_that_takes_too_long_or_fails_has_done_nothing(execution: Execution_) -> None:
    async def hang(remediation: Remediation) -> str:
        if remediation.id == due().id:
            await asyncio.Future()
        raise Unanswered("did not answer")

    execution.doing, execution.timeout_s = hang, 0.1
    execution.start()
    await execution.decide(replace(due(), dry_run=True), replace(due("b"), dry_run=True))
    _, slow, _, silent = await execution.comes_to("started", "failed", "started", "failed")
    assert (slow.detail, silent.detail) == ("no end within 0.1 s", "did not answer")


async def test_of_what_is_withdrawn_only_what_waits_is_remembered() -> None:
    anything: Any = SimpleNamespace()
    owner = _Owner(anything, anything, None)
    gone = [replace(due(id_), state="withdrawn") for id_ in ("a", "b", "c")]
    for offset, each in enumerate([due("b"), *gone]):
        owner.take([StoredRecord(0, offset, msgspec.json.encode(each), key=each.id.encode())])
    assert owner._withdrawn == {due("b").id}
    owner._working.cancel()


async def test_who_dies_between_start_and_outcome_leaves_unknown_and_it_is_never_done_again(
    execution: Execution_,
) -> None:
    began = asyncio.Event()

    async def hang(remediation: Remediation) -> str:
        execution.done.append(remediation.id)
        began.set()
        await asyncio.Future()
        return ""

    execution.doing = hang
    execution.start()
    await execution.decide(due())
    await began.wait()
    with pytest.MonkeyPatch.context() as patch:  # a killed process waits for nothing, and writes nothing
        patch.setattr("streammon_sinks.remediation.execute.GRACE_S", 0.0)
        patch.setattr("streammon_sinks.remediation.execute.STOP_S", 0.0)
        await execution.kill()
    execution.doing = execution._succeed
    execution.start()
    _, unknown = await execution.comes_to("started", "unknown")
    assert "not done again" in (unknown.detail or "")
    assert execution.done == [due().id]


async def test_who_is_told_to_stop_lets_what_is_under_way_come_to_its_end(execution: Execution_) -> None:
    began, enough = asyncio.Event(), asyncio.Event()

    async def slowly(_: Remediation) -> str:
        began.set()
        await enough.wait()
        return "scaled"

    execution.doing = slowly
    execution.start()
    await execution.decide(due())
    await began.wait()
    stopping = asyncio.create_task(execution.stop())
    await asyncio.sleep(0)
    enough.set()
    await stopping
    await execution.comes_to("started", "done")
