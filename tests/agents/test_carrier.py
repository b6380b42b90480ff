"""The carrier: what an agent does while the broker is away."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from streammon.broker import Broker, Outgoing
from streammon.broker.embedded import EmbeddedBroker
from streammon.config import Settings, load
from streammon.errors import ConfigError, Reason, Rejected, Retryable
from streammon.events import EventType
from streammon.topics import topic_specs
from streammon.wire import Batch, decode
from streammon_agents.agent import run_agent
from streammon_agents.carrier import Carrier
from streammon_agents.packing import Packer
from streammon_agents.ring import Limits
from tests.support import eventually

# --- while the broker is away -----------------------------------------------------------------------------


def event(number: int) -> dict[str, Any]:
    return {"time_unix_s": float(number), "host": "h", "entity": "host", "id": "h", "metrics": {}}


class FakeBroker:
    """Keeps what is appended; ``away`` makes it fail, and `arrives` lets the lost answer be the failure."""

    def __init__(self) -> None:
        self.appended: list[Outgoing] = []
        self.attempts = 0
        self.away = False
        self.arrives = False

    async def append(self, records: Sequence[Outgoing]) -> list[int]:
        self.attempts += 1
        if self.arrives or not self.away:
            self.appended.extend(records)
        if self.away:
            raise Retryable("away")
        return [0] * len(records)

    @property
    def batches(self) -> list[Batch]:
        values = [record.value or b"" for record in self.appended]
        return [batch for value in values for batch in decode(EventType.RESOURCE, value)]

    @property
    def numbers(self) -> list[int]:
        return [batch.identity.seq for batch in self.batches if batch.identity]

    @property
    def moments(self) -> list[float]:
        """The times of the events that arrived, once each, in the order they came."""
        rows = [(batch.rows, row) for batch in self.batches for row in range(len(batch.rows))]
        return list(dict.fromkeys(rows.event(row)["time_unix_s"] for rows, row in rows))


def fast(**agent: Any) -> Settings:
    return load(agent={"interval_s": 0.02, "host": "here", **agent})


@contextlib.asynccontextmanager
async def agent(broker: object, settings: Settings) -> AsyncIterator[None]:
    stop = asyncio.Event()
    task = asyncio.create_task(run_agent(cast(Broker, broker), settings, stop=stop))
    try:
        yield
    finally:
        stop.set()
        await task


async def test_batches_are_keyed_by_host_and_numbered_without_gaps() -> None:
    broker = FakeBroker()
    async with agent(broker, fast()):
        await eventually(lambda: len(broker.appended) >= 5)
    assert {(record.topic, record.key) for record in broker.appended} == {("resources", b"here")}
    assert {batch.identity[:1] for batch in broker.batches if batch.identity} == {("agent@here",)}
    assert broker.numbers == list(range(len(broker.numbers)))
    assert not any(batch.rows.faults() for batch in broker.batches)


async def test_outage_is_caught_up_in_order_with_nothing_lost() -> None:
    broker = FakeBroker()
    async with agent(broker, fast()):
        await eventually(lambda: len(broker.appended) >= 2)
        broker.away = True
        await eventually(lambda: broker.attempts >= len(broker.appended) + 4)
        broker.away = False
        count = len(broker.appended)
        await eventually(lambda: len(broker.appended) > count + 10)
    assert broker.numbers == list(range(len(broker.numbers)))
    assert broker.moments == sorted(broker.moments)
    assert sum(batch.dropped for batch in broker.batches) == 0


async def test_measuring_keeps_its_beat_while_an_append_hangs() -> None:
    hanging = asyncio.Event()

    class Hanging(FakeBroker):
        async def append(self, records: Sequence[Outgoing]) -> list[int]:
            await hanging.wait()
            return await super().append(records)

    broker = Hanging()
    async with agent(broker, fast(interval_s=0.05)):
        await asyncio.sleep(1.0)  # the time itself is what is tested
        hanging.set()
        await eventually(lambda: len(broker.moments) >= 15)
    assert broker.moments[14] - broker.moments[0] < 1.2


async def test_batch_whose_answer_was_lost_is_sent_again_with_the_same_bytes() -> None:
    broker = FakeBroker()
    broker.away = broker.arrives = True
    async with agent(broker, fast()):
        await eventually(lambda: broker.attempts >= 3)
        broker.away = False
    values = [record.value for record in broker.appended]
    assert values[0] == values[1] == values[2]
    assert sorted(set(broker.numbers)) == list(range(len(set(broker.numbers))))


@contextlib.asynccontextmanager
async def carrying(carrier: Carrier) -> AsyncIterator[asyncio.Task[None]]:
    delivery = asyncio.create_task(carrier.run())
    try:
        yield delivery
    finally:
        await carrier.finish(delivery)


def put(carrier: Carrier, *numbers: int) -> None:
    carrier.put("test", EventType.RESOURCE, [event(number) for number in numbers])


async def test_full_ring_drops_the_oldest_and_reports_every_event() -> None:
    broker = FakeBroker()
    carrier = Carrier(broker, Packer("agent@h"), Limits(events=6))
    for number in range(10):
        put(carrier, number, number)
    assert carrier.waiting == 3
    async with carrying(carrier):
        await eventually(lambda: broker.appended)
        put(carrier, 10, 10)
    assert broker.numbers == list(range(len(broker.numbers))), "dropped before they were numbered: no gap, not missing"
    sent = sum(len(batch.rows) for batch in broker.batches)
    assert sent == 4 * 2
    assert sent + sum(batch.dropped for batch in broker.batches) == 11 * 2
    assert carrier.tallies["test"].dropped == {"overflow": 14}


async def test_full_ring_of_bytes_drops_the_oldest() -> None:
    carrier = Carrier(FakeBroker(), Packer("agent@h"), Limits(bytes=300))
    for number in range(10):
        put(carrier, number)
    assert 2 <= carrier.waiting <= 4


@pytest.mark.parametrize("bad", ["\ud800", object()])
async def test_event_that_is_no_json_is_dropped_alone_and_reported(bad: object) -> None:
    broker = FakeBroker()
    carrier = Carrier(broker, Packer("agent@h"))
    async with carrying(carrier):
        carrier.put("test", EventType.RESOURCE, [event(1), {**event(2), "id": bad}, event(3)])
        await asyncio.wait_for(carrier.send("test", EventType.RESOURCE, [{**event(4), "id": bad}]), 5)
        put(carrier, 5)
        await eventually(lambda: broker.moments == [1, 3, 5])
    assert carrier.tallies["test"].dropped == {"unencodable": 2}
    assert sum(batch.dropped for batch in broker.batches) == 2


async def test_many_events_at_once_are_taken_whole_and_packed_in_parts() -> None:
    broker = FakeBroker()
    carrier = Carrier(broker, Packer("agent@h"), Limits(events=100))
    async with carrying(carrier):
        put(carrier, *range(2500))
        await eventually(lambda: broker.moments == [*range(2500)])
    assert [len(batch.rows) for batch in broker.batches] == [1000, 1000, 500]


async def test_batches_in_flight_are_not_dropped() -> None:
    broker = FakeBroker()
    carrier = Carrier(broker, Packer("agent@h"), Limits(events=2))
    broker.away = True
    async with carrying(carrier):
        for number in range(5):
            put(carrier, number)
            await eventually(lambda: broker.attempts)
        broker.away = False
        await eventually(lambda: broker.numbers == [0, 1])
    assert [batch.dropped for batch in broker.batches] == [0, 2]


async def test_one_refused_record_does_not_take_others_along() -> None:
    class Choosy(FakeBroker):
        async def append(self, records: Sequence[Outgoing]) -> list[int]:
            if any(record.key == b"bad" for record in records):
                raise Rejected(Reason.REFUSED, "not this one")
            return await super().append(records)

    broker = Choosy()
    carrier = Carrier(broker, Packer("agent@h"))
    async with carrying(carrier):
        carrier.put("test", EventType.RESOURCE, [event(1), {**event(2), "host": "bad"}, {**event(3), "host": "good"}])
        await eventually(lambda: len(broker.appended) == 2)
        put(carrier, 4)
    assert [record.key for record in broker.appended] == [b"h", b"good", b"h"]
    assert sum(batch.dropped for batch in broker.batches) == 1


async def test_stop_gives_up_on_a_broker_that_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streammon_agents.carrier.FLUSH_S", 0.2)
    broker = FakeBroker()
    broker.away = True
    with capture_logs() as logs:
        async with agent(broker, fast()):
            await eventually(lambda: broker.attempts >= 2)
        stopped = time.monotonic()
    assert time.monotonic() - stopped < 2
    assert any("unsent" in log["event"] and log["batches"] > 0 for log in logs)


async def test_stop_flushes_what_was_measured() -> None:
    released = asyncio.Event()

    class Slow(FakeBroker):
        async def append(self, records: Sequence[Outgoing]) -> list[int]:
            await released.wait()
            return await super().append(records)

    broker, stop = Slow(), asyncio.Event()
    task = asyncio.create_task(run_agent(cast(Broker, broker), fast(), stop=stop))
    await asyncio.sleep(0.2)
    stop.set()
    await asyncio.sleep(0.1)
    assert not task.done()
    released.set()
    await asyncio.wait_for(task, 5)
    assert len(broker.moments) >= 3


async def test_missing_topic_ends_the_agent_with_its_name(tmp_path: Path) -> None:
    settings = load(data_dir=tmp_path, agent={"interval_s": 0.02})
    broker = await EmbeddedBroker.open(settings)
    with pytest.raises(ConfigError, match="resources"):
        await asyncio.wait_for(run_agent(broker, settings, stop=asyncio.Event()), 10)
    await broker.close()


async def test_measurements_arrive_in_the_embedded_log(tmp_path: Path) -> None:
    settings = load(data_dir=tmp_path, agent={"interval_s": 0.02, "host": "here"})
    broker = await EmbeddedBroker.open(settings)
    await broker.create_topics(topic_specs(partitions=2))
    reader = await broker.reader(["resources"])
    records: list[Any] = []

    async def read() -> bool:
        records.extend(record for polled in (await reader.poll(0.1)).values() for record in polled)
        return len(records) >= 3

    async with agent(broker, settings):
        await eventually(read)
    [batch] = decode(EventType.RESOURCE, records[2].value)
    events = [batch.rows.event(index) for index in range(len(batch.rows))]
    assert {"host", "cpu", "memory", "filesystem", "network"} <= {event["entity"] for event in events}
    await reader.close()
    await broker.close()
