"""Delivering, on the embedded log, to channels that do what their script says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from prometheus_client import REGISTRY

from streammon.backoff import Backoff
from streammon.broker import Broker, Outgoing, connect
from streammon.broker.reading import read
from streammon.config import Settings
from streammon.errors import Backpressure, ConfigError, Reason, Rejected, Retryable
from streammon.notifications import Delivery, Memory, Notification
from streammon.topics import topic_specs
from streammon.wire import SCHEMA_HEADER
from streammon_sinks.notify import deliver
from streammon_sinks.notify.channel import Channel
from streammon_sinks.notify.circuit import Circuit, Patience
from streammon_sinks.notify.deliver import channel_topics, deliver_notifications
from streammon_sinks.notify.remembered import MOST_BYTES, MOST_GROUPS, Kept, Remembered
from tests.sinks.builders import alert
from tests.support import eventually

QUICK = Backoff(first_s=0.001, longest_s=0.01)
PATIENCE = Patience(backoff=QUICK, probe_s=0.02)
NOW = 1_700_000_000.0
CHANNELS = ("ops", "chat", "console")

Step = Callable[[Notification, Memory], Awaitable[Memory]] | Exception


class Scripted:
    """Does what its script says, try by try, and delivers when the script is over."""

    def __init__(self, *script: Step) -> None:
        self.script = list(script)
        self.tried: list[str] = []
        self.delivered: list[str] = []
        self.memories: list[Memory] = []
        self.times: list[float] = []
        self.opened = self.closed = 0

    def open(self) -> Channel:
        self.opened += 1
        return self

    async def deliver(self, notification: Notification, memory: Memory) -> Memory:
        self.tried.append(notification.id)
        self.times.append(asyncio.get_running_loop().time())
        step = self.script.pop(0) if self.script else None
        if isinstance(step, Exception):
            raise step
        remembered = await step(notification, memory) if step else {"last": notification.id}
        self.delivered.append(notification.id)
        self.memories.append(memory)
        return remembered

    async def close(self) -> None:
        self.closed += 1


class Amended(Scripted):
    """Can add to what it has said; does as ``amending`` says."""

    def __init__(self, *script: Step, amending: Step | None = None) -> None:
        super().__init__(*script)
        self.amending = amending
        self.amended: list[tuple[str, Memory]] = []

    async def amend(self, notification: Notification, memory: Memory) -> Memory:
        self.amended.append((notification.id, memory))
        if isinstance(self.amending, Exception):
            raise self.amending
        return await self.amending(notification, memory) if self.amending else {**memory, "amended": notification.id}


class Forever(Scripted):
    """Fails until it is told to work."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error: Exception | None = error

    async def deliver(self, notification: Notification, memory: Memory) -> Memory:
        if self.error:
            self.script = [self.error]
        return await super().deliver(notification, memory)


class Place:
    """A log with the topics of the notifier."""

    def __init__(self, settings: Settings, broker: Broker) -> None:
        self.settings, self.broker = settings, broker
        self.stop = asyncio.Event()

    async def tell(self, *ids: str, channel: str = "ops", **changes: Any) -> None:
        plain = Notification(
            id="", channel=channel, group="g1", group_labels={}, cause="new", status="firing",
            alerts=[alert(1, updated_unix_s=NOW)], created_unix_s=NOW,
        )  # fmt: skip
        for id_ in ids:
            await self.append(msgspec.json.encode(msgspec.structs.replace(plain, id=id_, **changes)))

    async def append(self, value: bytes) -> None:
        await self.broker.append([Outgoing("notifications", b"g1", value, (SCHEMA_HEADER,), 0)])

    async def became(self, topic: str = "deliveries") -> list[Delivery]:
        found = []
        async for _, records in read(self.broker, [topic]):
            found += [msgspec.json.decode(each.value or b"", type=Delivery) for each in records]
        return found

    async def outcomes(self, topic: str = "deliveries") -> list[tuple[str, str]]:
        return [(each.id, each.outcome) for each in await self.became(topic)]

    async def until(self, *expected: tuple[str, str], topic: str = "deliveries", within_s: float = 10.0) -> None:
        async def came() -> bool:
            return await self.outcomes(topic) == list(expected)

        try:
            await eventually(came, within_s)
        except AssertionError:
            assert await self.outcomes(topic) == list(expected)

    @asynccontextmanager
    async def delivering(
        self,
        channel: Scripted,
        name: str = "ops",
        patience: Patience = PATIENCE,
        now: float = NOW,
        ends_within_s: float = 2.0,
    ) -> AsyncIterator[None]:
        """One who delivers, beside the block; afterwards it is stopped, which may not take long."""
        broker, stop = await connect(self.settings), asyncio.Event()
        task = asyncio.create_task(
            deliver_notifications(broker, name, channel.open, stop=stop, patience=patience, clock=lambda: now)
        )
        try:
            yield
            assert not task.done() or task.result() is None
        finally:
            stop.set()
            await asyncio.wait_for(task, ends_within_s)
            await broker.close()


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    settings = Settings(data_dir=tmp_path / "data", topics={"partitions": 1})
    broker = await connect(settings)
    await broker.create_topics([*topic_specs(partitions=1), *channel_topics(CHANNELS)])
    yield Place(settings, broker)
    await broker.close()


def metric(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


# --- what is delivered, and in which order --------------------------------------------------------------------------


async def test_notifications_are_delivered_in_order_and_each_once(place: Place) -> None:
    channel = Scripted()
    ids = [f"n{number}" for number in range(70)]
    await place.tell(*ids[:50])
    async with place.delivering(channel):
        await place.tell(*ids[50:])
        await eventually(lambda: len(channel.delivered) == 70)
    assert channel.delivered == ids
    assert await place.outcomes() == [(each, "delivered") for each in ids]
    assert await place.outcomes("pages") == []


async def test_those_for_other_channels_are_passed_over(place: Place) -> None:
    channel = Scripted()
    await place.tell("theirs", channel="chat")
    await place.tell("mine")
    async with place.delivering(channel):
        await place.until(("mine", "delivered"))
    assert channel.tried == ["mine"]


async def test_a_restart_delivers_nothing_again_and_remembers(place: Place) -> None:
    await place.tell("n1")
    async with place.delivering(Scripted()):
        await place.until(("n1", "delivered"))
    await place.tell("n2")
    again = Scripted()
    async with place.delivering(again):
        await place.until(("n1", "delivered"), ("n2", "delivered"))
    assert (again.tried, again.memories) == (["n2"], [{"last": "n1"}])


async def test_each_group_has_a_memory_of_its_own(place: Place) -> None:
    channel = Scripted()
    async with place.delivering(channel):
        await place.tell("a1", group="a")
        await place.tell("b1", group="b")
        await place.tell("a2", group="a")
        await eventually(lambda: len(channel.delivered) == 3)
    assert channel.memories == [{}, {}, {"last": "a1"}]


async def test_what_is_no_notification_is_one_dead_letter_and_holds_up_nobody(place: Place) -> None:
    await place.append(b"{")
    await place.append(b'{"type":"notification","schema":1}')
    await place.tell("about nothing", channel="console", alerts=[])
    await place.tell("n1")
    await place.tell("c1", channel="console")
    async with place.delivering(Scripted()), place.delivering(Scripted(), "console"):
        await eventually(lambda: _count(place.outcomes(), 2))
    letters = [each async for _, records in read(place.broker, ["deadletter"]) for each in records]
    assert [dict(each.headers)["reason"] for each in letters] == [b"invalid_json"] + 2 * [b"invalid_event"]


async def _count(found: Awaitable[list[Any]], number: int) -> bool:
    return len(await found) == number


async def test_a_second_replica_stands_by_and_takes_over(place: Place) -> None:
    one, two = Scripted(), Scripted()
    async with place.delivering(two):
        async with place.delivering(one):
            await place.tell("n1", "n2")
            await eventually(lambda: len(one.delivered + two.delivered) == 2)
        await place.tell("n3", "n4")
        await eventually(lambda: len(one.delivered + two.delivered) == 4)
    assert sorted(one.delivered + two.delivered) == ["n1", "n2", "n3", "n4"]


# --- trouble ----------------------------------------------------------------------------------------------------------


async def test_a_failing_try_is_repeated_and_what_is_behind_waits(place: Place) -> None:
    channel = Scripted(Retryable("500"), Retryable("500"))
    await place.tell("n1", "n2")
    async with place.delivering(channel):
        await place.until(("n1", "delivered"), ("n2", "delivered"))
    assert channel.tried == ["n1", "n1", "n1", "n2"]
    assert [each.tries for each in await place.became()] == [3, 1]


async def test_the_next_try_is_not_before_the_time_that_was_asked_for(place: Place) -> None:
    channel = Scripted(Backpressure("429", retry_after_s=0.5))
    await place.tell("n1")
    async with place.delivering(channel):
        await place.until(("n1", "delivered"))
    assert channel.times[1] - channel.times[0] >= 0.5


async def test_a_dead_channel_holds_up_no_other(place: Place) -> None:
    dead, well = Forever(Retryable("no route")), Scripted()
    async with place.delivering(dead), place.delivering(well, "chat"):
        await place.tell("d1", "d2")
        await place.tell("w1", "w2", "w3", channel="chat")
        await place.until(("w1", "delivered"), ("w2", "delivered"), ("w3", "delivered"))
        await eventually(lambda: len(dead.tried) > 3)
    assert set(dead.tried) == {"d1"}


async def test_what_is_refused_is_told_with_the_notification_at_once_and_the_next_is_delivered(place: Place) -> None:
    channel = Scripted(Rejected(Reason.REFUSED, "no such channel"))
    await place.tell("n1", "n2", "n3")
    async with place.delivering(channel):
        await place.until(("n1", "refused"), ("n2", "delivered"), ("n2", "recovered"), ("n3", "delivered"))
    refused, *_ = await place.became()
    assert refused.detail == "no such channel"
    assert refused.notification
    assert refused.notification.id == "n1"
    assert await place.outcomes("pages") == [("n1", "refused"), ("n2", "recovered")]


async def test_a_mistake_of_a_channel_is_a_refusal_that_repeats_no_secret(place: Place) -> None:
    await place.tell("n1", "n2")
    async with place.delivering(Scripted(KeyError("hunter2"))):
        await place.until(("n1", "refused"), ("n2", "delivered"), ("n2", "recovered"))
    refused, *_ = await place.became()
    assert refused.detail
    assert refused.detail.startswith("channel ops failed on it: KeyError at test_deliver.py:")
    assert "hunter2" not in msgspec.json.encode(refused).decode()


async def test_what_fails_for_too_long_is_told_once_and_so_is_its_end(place: Place) -> None:
    channel = Forever(Retryable("no route to host"))
    patience = Patience(backoff=QUICK, probe_s=0.02, failing_after_s=0.4)
    await place.tell("n1", "n2")
    async with place.delivering(channel, patience=patience):
        await place.until(("n1", "failing"))
        tried = len(channel.tried)
        await eventually(lambda: len(channel.tried) > tried + 20)
        assert await place.outcomes() == [("n1", "failing")]
        channel.error = None
        await place.until(("n1", "failing"), ("n1", "delivered"), ("n1", "recovered"), ("n2", "delivered"))
    failing, *_ = await place.became("pages")
    assert failing.detail == "no route to host"
    assert failing.notification
    assert failing.notification.id == "n1"
    assert await place.outcomes("pages") == [("n1", "failing"), ("n1", "recovered")]


async def test_a_channel_that_never_answers_is_failing_too(place: Place) -> None:
    async def hangs(_: Notification, __: Memory) -> Memory:
        await asyncio.Event().wait()
        return {}

    await place.tell("n1")
    async with place.delivering(Scripted(hangs), patience=Patience(failing_after_s=0.3), ends_within_s=7):
        await place.until(("n1", "failing"))
    assert await place.outcomes() == [("n1", "failing")]


async def test_trouble_is_told_once_over_restarts_and_its_end_is_told(place: Place) -> None:
    patience = Patience(backoff=QUICK, probe_s=0.02, failing_after_s=0.2)
    await place.tell("n1")
    async with place.delivering(Forever(Retryable("away")), patience=patience):
        await place.until(("n1", "failing"))
    still = Forever(Retryable("away"))
    async with place.delivering(still, patience=patience):
        await eventually(lambda: len(still.tried) > 30)
        assert await place.outcomes() == [("n1", "failing")]
    async with place.delivering(Scripted(), patience=patience):
        await place.until(("n1", "failing"), ("n1", "delivered"), ("n1", "recovered"))


async def test_what_has_become_too_old_is_refused_and_not_sent(place: Place) -> None:
    channel = Scripted()
    await place.tell("old", created_unix_s=NOW - 86_401)
    await place.tell("new")
    async with place.delivering(channel):
        await place.until(("old", "refused"), ("new", "delivered"), ("new", "recovered"))
    assert channel.tried == ["new"]
    assert (await place.became())[0].detail == "not delivered within 1 d: no answer yet"


async def test_a_channel_that_cannot_be_opened_now_is_opened_later(place: Place) -> None:
    channel = Scripted()
    real, failures = channel.open, [ConfigError("channel ops: token: file /x cannot be read")] * 3

    def opening() -> Channel:
        if failures:
            raise failures.pop()
        return real()

    channel.open = opening  # type: ignore[method-assign]
    await place.tell("n1")
    async with place.delivering(channel):
        await place.until(("n1", "delivered"))
    assert (channel.opened, channel.closed) == (1, 1)


async def test_a_message_that_is_being_sent_at_the_end_is_sent_and_written(place: Place) -> None:
    started = asyncio.Event()

    async def slow(_: Notification, __: Memory) -> Memory:
        started.set()
        await asyncio.sleep(0.3)  # how long it takes to send
        return {}

    channel = Scripted(slow)
    await place.tell("n1", "n2")
    async with place.delivering(channel):
        await started.wait()
    assert channel.tried == ["n1"]
    assert await place.outcomes() == [("n1", "delivered")]


async def test_what_the_log_did_not_take_is_written_later_and_not_sent_again(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    from streammon.broker import embedded

    transact, failures = embedded._Transactor.transact, [Retryable("no leader")] * 2

    async def failing(self: Any, *arguments: Any) -> None:
        if failures:
            raise failures.pop()
        await transact(self, *arguments)

    monkeypatch.setattr(embedded._Transactor, "transact", failing)
    channel = Scripted()
    await place.tell("n1", "n2")
    async with place.delivering(channel):
        await place.until(("n1", "delivered"), ("n2", "delivered"), within_s=20)
    assert channel.tried == ["n1", "n2"]


async def test_metrics_say_what_became_of_it_and_how_the_channel_is(place: Place) -> None:
    def counted(outcome: str) -> float:
        return metric("streammon_notify_notifications_total", channel="chat", outcome=outcome)

    before = {each: counted(each) for each in ("delivered", "failing", "recovered")}
    channel = Forever(Retryable("500"))
    await place.tell("n1", channel="chat")
    async with place.delivering(
        channel, "chat", patience=Patience(backoff=QUICK, probe_s=0.02, failing_after_s=0.2), now=NOW + 3
    ):
        await place.until(("n1", "failing"))
        assert metric("streammon_notify_circuit_open", channel="chat") == 1
        channel.error = None
        await place.until(("n1", "failing"), ("n1", "delivered"), ("n1", "recovered"))
        assert metric("streammon_notify_circuit_open", channel="chat") == 0
    assert {each: counted(each) - before[each] for each in before} == dict.fromkeys(before, 1.0)
    assert metric("streammon_notify_delivery_seconds_sum", channel="chat") >= 3
    assert metric("streammon_notify_failed_tries_total", channel="chat") > 4


# --- the circuit ------------------------------------------------------------------------------------------------------


def test_the_circuit_opens_after_so_many_failures_in_a_row_and_closes_at_the_first_answer() -> None:
    circuit = Circuit(Patience(failures=3, probe_s=30, backoff=Backoff(first_s=1, longest_s=4)))
    tries = [(circuit.failed(Retryable("500")), circuit.is_open) for _ in range(4)]
    circuit.worked()
    tries.append((circuit.failed(Retryable("500")), circuit.is_open))
    assert [is_open for _, is_open in tries] == [False, False, True, True, False]
    assert [24 <= pause_s <= 30 for pause_s, _ in tries] == [False, False, True, True, False]
    assert tries[-1][0] <= 1


def test_no_try_is_earlier_than_asked_for_and_none_is_held_back_by_less() -> None:
    circuit = Circuit(Patience(failures=2, probe_s=30))
    assert circuit.failed(Backpressure("429", 600)) == 600
    assert circuit.failed(Backpressure("429", 1)) >= 24


# --- memory -----------------------------------------------------------------------------------------------------------


def told(group: str, status: Any = "firing") -> Notification:
    return Notification(
        id="n", channel="ops", group=group, group_labels={}, cause="new", status=status, alerts=[alert(1)],
        created_unix_s=NOW,
    )  # fmt: skip


def test_of_too_many_groups_those_that_have_ended_are_forgotten_first() -> None:
    groups = {f"g{number}": Kept({"ts": "1"}, ended=number == 7) for number in range(MOST_GROUPS)}
    after = Remembered(groups=groups).after(told("new"), {"ts": "2"})
    assert set(groups) - set(after.groups) == {"g7"}
    again = after.after(told("newer"), {"ts": "3"})
    assert set(after.groups) - set(again.groups) == {"g0"}


def test_memories_together_fit_into_a_record() -> None:
    remembered = Remembered()
    for number in range(100):
        remembered = remembered.after(told(f"g{number}"), {"ts": "x" * 10_000})
    assert len(msgspec.json.encode(remembered)) < MOST_BYTES * 1.1
    assert list(remembered.groups)[-1] == "g99"


def test_only_groups_that_have_not_ended_are_resumed() -> None:
    remembered = Remembered().after(told("a"), {"is": "a"}).after(told("b", "resolved"), {"is": "b"})
    assert list(remembered.living()) == [{"is": "a"}]


# --- causes that come to light later --------------------------------------------------------------------------------


async def test_causes_are_added_where_the_channel_can_and_that_is_no_delivery(place: Place) -> None:
    channel = Amended()
    await place.tell("n1")
    await place.tell("why", cause="explained")
    async with place.delivering(channel):
        await place.tell("n2")
        await place.until(("n1", "delivered"), ("n2", "delivered"))
    assert channel.amended == [("why", {"last": "n1"})]
    assert channel.memories == [{}, {"last": "n1", "amended": "why"}]
    assert channel.tried == ["n1", "n2"]


async def test_a_channel_that_can_add_nothing_passes_causes_over(place: Place) -> None:
    channel = Scripted()
    await place.tell("n1")
    await place.tell("why", cause="explained")
    await place.tell("n2")
    async with place.delivering(channel):
        await place.until(("n1", "delivered"), ("n2", "delivered"))
    assert channel.tried == ["n1", "n2"]


async def _hangs(_notification: Notification, _memory: Memory) -> Memory:
    await asyncio.Future()
    return {}


@pytest.mark.parametrize(
    "trouble",
    [Retryable("HTTP 503"), Backpressure("HTTP 429", 3600), Rejected(Reason.REFUSED, "no"), ValueError("x"), _hangs],
    ids=lambda each: getattr(each, "__name__", type(each).__name__),
)
async def test_causes_that_cannot_be_added_are_tried_once_and_hold_up_no_message(
    place: Place, trouble: Step, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(deliver, "AMEND_S", 0.05)
    channel = Amended(amending=trouble)
    await place.tell("n1")
    for number in range(5):
        await place.tell(f"why{number}", cause="explained")
    await place.tell("n2")
    async with place.delivering(channel):
        await place.until(("n1", "delivered"), ("n2", "delivered"), within_s=3.0)
        channel.amending = None
        await place.tell("why", cause="explained")
        await eventually(lambda: len(channel.amended) == 2)
    assert [id_ for id_, _ in channel.amended] == ["why0", "why"]
    assert await place.outcomes("pages") == [], "nobody else is told"
