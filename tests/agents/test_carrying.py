"""The carrier with its spool: what becomes of events while the log is away, full, slow, or the agent ends."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY

from streammon.broker import Outgoing
from streammon.broker.embedded import EmbeddedBroker
from streammon.config import load
from streammon.errors import Backpressure, ConfigError, Reason, Rejected, Retryable
from streammon.events import EventType
from streammon.topics import topic_specs
from streammon.wire import Batch, Identity, decode, encode
from streammon_agents.carrier import BACKLOG_BYTES, Carrier
from streammon_agents.packing import Packer
from streammon_agents.ring import Limits
from streammon_agents.spool import Spool
from streammon_agents.spooling import Spooling
from tests.outages import arrived, counted
from tests.support import eventually


class Log:
    """An uplink that can be away, and keeps what it is given; ``arrives``: only the answers are lost."""

    def __init__(self) -> None:
        self.away = self.arrives = False
        self.delay_s: Callable[[Sequence[Outgoing]], float] = lambda _: 0.0
        self.appended: list[Outgoing] = []
        self.attempts = 0

    async def append(self, records: Sequence[Outgoing]) -> None:
        self.attempts += 1
        await asyncio.sleep(self.delay_s(records))
        if self.arrives or not self.away:
            self.appended += records
        if self.away:
            raise Retryable("away")

    @property
    def batches(self) -> list[Batch]:
        return [batch for record in self.appended for batch in decode(EventType.INFERENCE, record.value or b"")]

    @property
    def counted(self) -> list[int]:
        """The events by number, those of a batch once, however often it came."""
        once = {batch.identity or object(): batch for batch in self.batches}
        return sorted(
            int(each.rows.event(row)["request_id"]) for each in once.values() for row in range(len(each.rows))
        )


def event(number: int, size: int = 0) -> dict[str, Any]:
    return {
        "time_unix_s": time.time(), "service": "s", "model": "m", "duration_s": 0.0, "status": "ok",
        "request_id": str(number), "endpoint": os.urandom(size // 2).hex(),
    }  # fmt: skip


def record(number: int) -> Outgoing:
    """As a sender has numbered it."""
    [value] = encode(EventType.INFERENCE, [event(number)], identity=Identity("sdk@h", "boot/s/m", number))
    return Outgoing("inference", b"s/m", value)


def carrier_on(log: Any, path: Path, max_bytes: int = 64 * 1024**2, limits: Limits | None = None) -> Carrier:
    spooling = Spooling(partial(Spool.open, path / "spool", max_bytes, "agent@h"))
    return Carrier(log, Packer("agent@h"), limits, spooling)


@asynccontextmanager
async def running(carrier: Carrier) -> AsyncIterator[asyncio.Task[None]]:
    delivery = asyncio.create_task(carrier.run())
    try:
        yield delivery
    finally:
        await carrier.finish(delivery)


def put(carrier: Carrier, *numbers: int) -> None:
    carrier.put("test", EventType.INFERENCE, [event(number) for number in numbers])


async def spooled(carrier: Carrier, records: int = 1) -> None:
    await eventually(lambda: carrier.spooled_records >= records, 10, "the spool")


async def accepted(carrier: Carrier) -> int:
    """How many records of 20 kB senders can append until they are refused."""
    for number in range(10_000):
        large = record(number)
        try:
            await carrier.append([large._replace(value=b" " * 20_000 + (large.value or b""))])
        except Backpressure:
            return number
    raise AssertionError("it is never full")


async def test_outage_goes_through_the_spool_and_nothing_is_lost(tmp_path: Path) -> None:
    log = Log()
    async with running(carrier := carrier_on(log, tmp_path)):
        put(carrier, 1)
        await eventually(lambda: log.counted == [1])
        log.away = True
        put(carrier, 2)
        await spooled(carrier)
        put(carrier, 3)
        await spooled(carrier, 2)
        await eventually(lambda: REGISTRY.get_sample_value("streammon_agent_spool_records") == 2)
        assert REGISTRY.get_sample_value("streammon_agent_log_reached") == 0
        log.away = False
        await eventually(lambda: log.counted == [1, 2, 3])
        await eventually(lambda: carrier.spooled_records == 0)
    assert not carrier.tallies


async def test_without_an_outage_nothing_touches_the_disk(tmp_path: Path) -> None:
    log = Log()
    async with running(carrier := carrier_on(log, tmp_path)):
        for number in range(5):
            put(carrier, number)
            await carrier.append([record(number)])
        await eventually(lambda: len(log.counted) == 10)
    assert not list((tmp_path / "spool").glob("[0-9]*"))


async def test_batch_whose_answer_was_lost_keeps_its_number_through_the_spool_and_a_restart(tmp_path: Path) -> None:
    log = Log()
    log.away = log.arrives = True
    async with running(carrier := carrier_on(log, tmp_path)):
        put(carrier, 1)
        await carrier.append([record(2)])
        await spooled(carrier, 2)
    log.away = False
    async with running(carrier := carrier_on(log, tmp_path)):
        await eventually(lambda: log.counted == [1, 2])
    assert len(log.appended) > 2, "some of it came twice"
    assert len({each.value for each in log.appended}) == 2, "the very same bytes"


async def test_what_is_new_does_not_wait_for_the_backlog(tmp_path: Path) -> None:
    log = Log()
    log.away = True
    async with running(carrier := carrier_on(log, tmp_path)):
        for number in range(20):
            carrier.put("test", EventType.INFERENCE, [event(number, BACKLOG_BYTES // 2)])
            await eventually(lambda: not carrier.waiting)
        assert carrier.spooled_records == 20
        log.delay_s = lambda records: 0.3 if len(records[0].value or b"") > 1000 else 0.0
        log.away = False
        await eventually(lambda: carrier.away is None)
        waited = []
        for number in range(100, 110):
            began = time.monotonic()
            put(carrier, number)
            await eventually(lambda number=number: number in log.counted)  # type: ignore[misc]  # a default of a lambda
            waited.append(time.monotonic() - began)
        assert carrier.spooled_records > 0, "the backlog is still there"
        assert max(waited) < 0.25


async def test_backlog_is_not_starved_by_what_is_new(tmp_path: Path) -> None:
    log = Log()
    log.away = True
    async with running(carrier := carrier_on(log, tmp_path)):
        for number in range(3):
            carrier.put("test", EventType.INFERENCE, [event(number, BACKLOG_BYTES)])
            await eventually(lambda: not carrier.waiting)
        log.delay_s = lambda _: 0.05
        log.away = False
        await eventually(lambda: carrier.away is None)
        new = 100
        while carrier.spooled_records and new < 1000:
            put(carrier, new)  # there is always something new
            new += 1
            await asyncio.sleep(0.01)
        assert {0, 1, 2} <= set(log.counted)


async def test_log_that_is_slower_than_events_come_is_relieved_by_the_spool(tmp_path: Path) -> None:
    log = Log()
    log.delay_s = lambda _: 0.3
    async with running(carrier := carrier_on(log, tmp_path, limits=Limits(events=40))):
        for number in range(100):
            put(carrier, number)
            await asyncio.sleep(0.02)
        assert not carrier.tallies, "nothing was dropped"
        log.delay_s = lambda _: 0.0
        await eventually(lambda: log.counted == list(range(100)))


@pytest.fixture
def syncs(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often the disk was forced."""
    found = Counter[str]()
    sync = Spool.sync

    def counting(spool: Spool) -> None:
        found["sync"] += 1
        sync(spool)

    monkeypatch.setattr(Spool, "sync", counting)
    return found


async def test_append_is_durable_when_it_returns_and_many_share_one_fsync(tmp_path: Path, syncs: Counter[str]) -> None:
    log = Log()
    log.away = True
    async with running(carrier := carrier_on(log, tmp_path)):
        await asyncio.gather(*(carrier.append([record(number)]) for number in range(200)))
        assert 1 <= syncs["sync"] < 20
        log.away = False
        await eventually(lambda: log.counted == list(range(200)))
    assert [each.value for each in log.appended if each.headers] == [], "senders' records stay as they are"


async def test_send_returns_when_it_is_durable_in_the_spool(tmp_path: Path, syncs: Counter[str]) -> None:
    log = Log()
    log.away = True
    async with running(carrier := carrier_on(log, tmp_path)):
        outlet = carrier.outlet("test")
        await asyncio.wait_for(outlet.send(EventType.INFERENCE, [event(1)]), 5)
        forced = syncs["sync"]
        await asyncio.wait_for(outlet.send(EventType.INFERENCE, [event(2)]), 5)
        assert syncs["sync"] > forced
        assert carrier.spooled_records == 2
        assert list((tmp_path / "spool").glob("*.kept"))
        assert not list((tmp_path / "spool").glob("*.free")), "what was acknowledged is not among what may give way"


async def test_full_spool_refuses_senders_and_drops_the_oldest_of_what_nobody_waits_for(tmp_path: Path) -> None:
    log = Log()
    log.away = True
    async with running(carrier := carrier_on(log, tmp_path, max_bytes=1024**2)):
        number = await accepted(carrier)
        with pytest.raises(Backpressure):
            await carrier.outlet("test").send(EventType.INFERENCE, [event(1, 20_000)])
        for each in range(40):
            carrier.put("test", EventType.INFERENCE, [event(10_000 + each, 20_000)])
            await eventually(lambda: not carrier.waiting)
        log.away = False
        await eventually(lambda: carrier.spooled_records == 0, 20)
    acknowledged = [each for each in log.counted if each < 10_000]
    assert acknowledged == list(range(number))
    assert log.counted[-1] == 10_039
    assert len(log.counted) - number + sum(batch.dropped for batch in log.batches) == 40


async def test_spool_that_cannot_be_used_leaves_memory_and_is_used_once_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streammon_agents.spooling.RETRY_S", 0.1)
    (tmp_path / "spool").write_text("a file where the directory should be")
    log = Log()
    log.away = True
    async with running(carrier := carrier_on(log, tmp_path, limits=Limits(events=3))):
        put(carrier, 0)
        await eventually(lambda: log.attempts >= 2)
        assert "cannot be used" in carrier.details()["spool"]
        with pytest.raises(Retryable):
            await carrier.append([record(1)])
        for number in range(10, 20):
            put(carrier, number)
        assert carrier.tallies["test"].dropped == {"overflow": 7}
        (tmp_path / "spool").unlink()
        await spooled(carrier, 2)
        assert "cannot" not in carrier.details()["spool"]
        log.away = False
        await eventually(lambda: log.counted == [0, 17, 18, 19])
    assert sum(batch.dropped for batch in log.batches) == 7


async def test_losses_are_not_forgotten_when_the_spool_does_not_take_their_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def full(*_: object, **__: object) -> int:
        raise Retryable("no space left")

    log = Log()
    log.away = True
    async with running(carrier := carrier_on(log, tmp_path)):
        put(carrier, 1)
        await spooled(carrier)
        monkeypatch.setattr(Spooling, "put", full)
        carrier.drop("test", Reason.TOO_LARGE, 5)
        put(carrier, 2)
        await eventually(lambda: carrier.spooled_records == 2)
        log.away = False
        await eventually(lambda: log.counted == [1, 2])
    assert sum(batch.dropped for batch in log.batches) == 5


async def test_end_while_the_log_is_away_or_hangs_keeps_everything_for_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streammon_agents.carrier.FLUSH_S", 0.5)
    log = Log()
    log.away, log.delay_s = True, lambda _: 60.0
    carrier = carrier_on(log, tmp_path)
    began = time.monotonic()
    async with running(carrier):
        put(carrier, 1)
        await eventually(lambda: log.attempts)
        put(carrier, 2)
        carrier.drop("test", Reason.TOO_LARGE, 5)
        waiting = asyncio.create_task(carrier.send("test", EventType.INFERENCE, [event(3)]))
    assert time.monotonic() - began < 4
    await waiting
    log = Log()
    async with running(carrier := carrier_on(log, tmp_path)):
        await eventually(lambda: log.counted == [1, 2, 3])
    assert sum(batch.dropped for batch in log.batches) == 5


async def test_losses_that_nothing_reports_any_more_are_reported_by_the_next_life(tmp_path: Path) -> None:
    log = Log()
    async with running(carrier := carrier_on(log, tmp_path)):
        put(carrier, 1)
        await eventually(lambda: log.counted == [1])
        carrier.drop("test", Reason.TOO_LARGE, 7)
    async with running(carrier := carrier_on(log, tmp_path)):
        await eventually(lambda: sum(batch.dropped for batch in log.batches) == 7)


async def test_refused_record_of_the_backlog_is_dropped_alone_and_reported(tmp_path: Path) -> None:
    class Choosy(Log):
        async def append(self, records: Sequence[Outgoing]) -> None:
            if not self.away and any(b'"2"' in (each.value or b"") for each in records):
                raise Rejected(Reason.REFUSED, "not this one")
            await super().append(records)

    log = Choosy()
    log.away = True
    async with running(carrier := carrier_on(log, tmp_path)):
        for number in (1, 2, 3):
            put(carrier, number)
            await spooled(carrier, number)
        log.away = False
        await eventually(lambda: carrier.spooled_records == 0)
        put(carrier, 4)
        await eventually(lambda: log.counted == [1, 3, 4])
    assert sum(batch.dropped for batch in log.batches) == 1


async def test_what_a_person_has_to_change_ends_the_agent_only_if_nothing_ever_arrived(tmp_path: Path) -> None:
    class Wrong(Log):
        wrong = True

        async def append(self, records: Sequence[Outgoing]) -> None:
            if self.wrong:
                raise ConfigError("no topic inference")
            await super().append(records)

    log = Wrong()
    carrier = carrier_on(log, tmp_path)
    delivery = asyncio.create_task(carrier.run())
    put(carrier, 1)
    with pytest.raises(ConfigError):
        await asyncio.wait_for(delivery, 5)
    put(carrier, 5)
    await carrier.finish(delivery)
    async with running(carrier := carrier_on(log, tmp_path)) as delivery:
        await eventually(lambda: "no topic inference" in carrier.details().get("degraded", ""), 5, "the backlog")
        assert not delivery.done(), "what is left of an earlier life does not end this one: what is new decides"
        put(carrier, 6)
        with pytest.raises(ConfigError):
            await asyncio.wait_for(delivery, 5)
    log.wrong = False
    async with running(carrier_on(log, tmp_path)):
        await eventually(lambda: log.counted == [1, 5, 6])
    log.appended.clear()
    async with running(carrier := carrier_on(log, tmp_path / "other")):
        put(carrier, 2)
        await eventually(lambda: log.counted == [2])
        log.wrong = True
        put(carrier, 3)
        await spooled(carrier)
        log.wrong = False
        await eventually(lambda: log.counted == [2, 3])


class Partly(Log):
    """A log that takes nothing for some topics."""

    barred: frozenset[str] = frozenset({"logs"})

    async def append(self, records: Sequence[Outgoing]) -> None:
        if not self.away and (wrong := self.barred & {each.topic for each in records}):
            raise ConfigError(f"not permitted: {sorted(wrong)}")
        await super().append([each for each in records if each.topic == "inference"])


def put_log(carrier: Carrier, number: int) -> None:
    carrier.put("test", EventType.LOG, [{"time_unix_s": float(number), "service": "s", "message": "m"}])


async def test_topic_that_is_not_permitted_keeps_back_its_own_events_only(tmp_path: Path) -> None:
    log = Partly()
    async with running(carrier := carrier_on(log, tmp_path)):
        put(carrier, 1)
        await eventually(lambda: log.counted == [1])
        put_log(carrier, 1)
        await spooled(carrier)
        put(carrier, 2)
        await eventually(lambda: log.counted == [1, 2], 5, "what is new")
        assert carrier.away is None
        assert "logs: not permitted" in carrier.details()["degraded"]
        log.away = True
        put(carrier, 3)
        await spooled(carrier, 2)
        log.away = False
        await eventually(lambda: log.counted == [1, 2, 3], 20, "the backlog behind what is not permitted")
        log.barred = frozenset()
        await eventually(lambda: carrier.details()["spool"] == "empty", 20, "what is permitted now")
        assert "degraded" not in carrier.details()
        assert "dropped" not in carrier.details()


async def test_backlog_of_a_topic_that_is_not_permitted_does_not_keep_the_agent_from_starting(tmp_path: Path) -> None:
    log = Partly()
    log.away = True
    async with running(carrier := carrier_on(log, tmp_path)):
        put_log(carrier, 1)
        await spooled(carrier)
        put(carrier, 1)
        await spooled(carrier, 2)
    log.away = False
    async with running(carrier := carrier_on(log, tmp_path)) as delivery:
        await eventually(lambda: log.counted == [1])
        assert not delivery.done()


async def test_append_to_a_topic_that_is_not_permitted_any_more_is_to_be_tried_again(tmp_path: Path) -> None:
    log = Partly()
    async with running(carrier := carrier_on(log, tmp_path)):
        put(carrier, 1)
        await eventually(lambda: log.counted == [1])
        with pytest.raises(Retryable, match="not permitted"):
            await carrier.append([record(2)._replace(topic="logs")])
        assert carrier.away is None


async def test_send_whose_append_failed_returns_only_once_it_is_on_disk(tmp_path: Path, syncs: Counter[str]) -> None:
    log = Log()
    async with running(carrier := carrier_on(log, tmp_path)):
        put(carrier, 1)
        await eventually(lambda: log.counted == [1])
        log.away = True
        await carrier.send("test", EventType.INFERENCE, [event(2)])
        assert syncs["sync"] == 1


async def test_sender_whose_events_give_way_is_told_and_they_are_not_counted_as_lost(tmp_path: Path) -> None:
    carrier = Carrier(Log(), Packer("agent@h"), Limits(events=10, bytes=2000))
    waiting = asyncio.create_task(carrier.send("sender", EventType.INFERENCE, [event(1, size=1000)]))
    await asyncio.sleep(0)
    carrier.put("host", EventType.INFERENCE, [event(2, size=1000)])
    with pytest.raises(Backpressure):
        await waiting
    assert "dropped" not in carrier.details()


async def test_everything_sent_is_counted_or_reported_as_dropped_by_windows(tmp_path: Path) -> None:
    """Through an outage that overflows the spool, and a restart in the middle of it."""
    settings = load(data_dir=tmp_path, topics={"partitions": 1})
    broker = await EmbeddedBroker.open(settings)
    await broker.create_topics(topic_specs(partitions=1))

    class Away(Log):
        async def append(self, records: Sequence[Outgoing]) -> None:
            await super().append(records)
            await broker.append(records)

    log = Away()
    sent = 0
    for away in (False, True, True, False):
        log.away = away
        async with running(carrier := carrier_on(log, tmp_path, max_bytes=1024**2)):
            for _ in range(60):
                carrier.put("test", EventType.INFERENCE, [event(sent, 8000), event(sent + 1, 8000)])
                sent += 2
                await eventually(lambda: not carrier.waiting)
            if not away:
                await eventually(lambda: carrier.spooled_records == 0, 20)
    end = {**event(-1), "time_unix_s": time.time() + 30, "endpoint": "end"}
    [value] = encode(EventType.INFERENCE, [end])
    await broker.append([Outgoing("inference", b"s/m", value)])
    _, records = await arrived(broker)
    await broker.close()
    sums = counted(records, settings)
    assert sums["dropped"] > 20
    assert sums["missing"] == sums["duplicate"] == sums["rejected"] == 0
    assert sums["count"] + sums["dropped"] == sent
