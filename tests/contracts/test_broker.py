"""What every broker promises: one body, run on the embedded log and on a real Apache Kafka."""

from __future__ import annotations

import asyncio
import os
import random
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from pathlib import Path

import pytest

from streammon.broker import (
    Broker,
    Member,
    Outgoing,
    Polled,
    Reader,
    Record,
    Restored,
    TopicPartition,
    connect,
)
from streammon.config import Settings, TopicSettings
from streammon.errors import ConfigError, Fenced, RecordTooLarge
from streammon.topics import DAY_S, TopicSpec
from tests.support import eventually

DEADLINE_S = 30.0
PARTITIONS = 3
EVENTS = TopicSpec("events", PARTITIONS, DAY_S, log_append_time=True)
RESULTS = TopicSpec("results", PARTITIONS, 30 * DAY_S)
STATE = TopicSpec("state.count", PARTITIONS, None, compact=True)
SPECS = [EVENTS, RESULTS, STATE]

Open = Callable[[], Awaitable[Broker]]


@pytest.fixture(params=["embedded", pytest.param("kafka", marks=pytest.mark.kafka)])
def settings(request: pytest.FixtureRequest, tmp_path: Path, unique: str) -> Settings:
    """A namespace of this test's own, in the log that is tested."""
    bootstrap = request.getfixturevalue("kafka").address if request.param == "kafka" else None
    return Settings(bootstrap=bootstrap, data_dir=tmp_path, topics=TopicSettings(prefix=f"{unique}."))


@pytest.fixture
async def open_broker(settings: Settings) -> AsyncIterator[Open]:
    """Opens one more broker on the same log, as another process would."""
    opened: list[Broker] = []

    async def open_one() -> Broker:
        opened.append(await connect(settings))
        return opened[-1]

    yield open_one
    for broker in opened:
        await broker.close()


@pytest.fixture
async def broker(open_broker: Open) -> Broker:
    """A broker on a log with the topics of `SPECS`, empty."""
    broker = await open_broker()
    await broker.create_topics(SPECS)
    return broker


@pytest.fixture
def group(unique: str) -> str:
    return f"{unique}-group"


def at(partition: int, topic: str = "events") -> TopicPartition:
    return TopicPartition(topic, partition)


def event(value: str, partition: int | None = 0, key: bytes | None = None, topic: str = "events") -> Outgoing:
    return Outgoing(topic, key, value.encode(), partition=partition)


def texts(records: Iterable[Record]) -> list[str]:
    return [record.value.decode() for record in records if record.value is not None]


def flat(polled: Polled) -> list[Record]:
    return [record for records in polled.values() for record in records]


async def take(source: Reader | Member, count: int) -> list[Record]:
    """Poll until `count` records have come; more is a failure."""
    records: list[Record] = []
    async with asyncio.timeout(DEADLINE_S):
        while len(records) < count:
            records += flat(await source.poll())
    assert len(records) == count
    return records


async def read_to_end(broker: Broker, topic: str) -> list[Record]:
    reader, records = await broker.reader([topic]), list[Record]()
    try:
        async with asyncio.timeout(DEADLINE_S):
            ends = await reader.ends()
            while any(reader.positions()[each] < end for each, end in ends.items()):
                records += flat(await reader.poll())
    finally:
        await reader.close()
    return records


async def ignore(_: Sequence[TopicPartition]) -> None:
    """A callback for who does not care."""


async def join(broker: Broker, group: str, *topics: str) -> Member:
    return await broker.member(group, topics or ["events"], on_assign=ignore, on_revoke=ignore)


async def nothing_comes(source: Reader | Member) -> None:
    assert flat(await source.poll(max_wait_s=1.0)) == []


# ---------------------------------------------------------------- topics


async def test_topics_are_created_once_and_left_as_they_are(broker: Broker) -> None:
    other = TopicSpec("other", 1, DAY_S)
    assert await broker.create_topics([*SPECS, other]) == ["other"]
    assert await broker.create_topics([TopicSpec("other", 7, 1.0)]) == []
    assert (await broker.topics())["other"].partitions == 1


async def test_topics_are_reported_as_they_were_specified(broker: Broker, open_broker: Open) -> None:
    def essence(spec: TopicSpec) -> tuple[object, ...]:
        return spec.name, spec.partitions, spec.retention_s, spec.compact, spec.log_append_time

    found = await (await open_broker()).topics()
    assert {name: essence(spec) for name, spec in found.items()} == {spec.name: essence(spec) for spec in SPECS}


async def test_an_unknown_topic_is_named_with_what_to_do(broker: Broker, group: str) -> None:
    attempts = [
        broker.append([event("x", topic="nowhere")]),
        broker.reader(["nowhere"]),
        join(broker, group, "nowhere"),
        broker.transactor(group, "nowhere", 0, ["events"]),
    ]
    for attempt in attempts:
        with pytest.raises(ConfigError, match=r"(?s)nowhere.*streammon topics create"):
            await attempt


# ---------------------------------------------------------------- appending and reading


async def test_records_of_a_partition_come_in_the_order_they_were_appended(broker: Broker) -> None:
    sent = [f"{number}" for number in range(500)]
    for first in range(0, 500, 50):
        await broker.append([event(text, int(text) % 2) for text in sent[first : first + 50]])
    records = await read_to_end(broker, "events")
    for partition in (0, 1):
        of_partition = [record for record in records if record.partition == partition]
        assert texts(of_partition) == sent[partition::2]
        assert [record.offset for record in of_partition] == list(range(250))


async def test_concurrent_appends_keep_the_order_in_which_they_were_started(broker: Broker) -> None:
    sent = [f"{number}" for number in range(200)]
    await asyncio.gather(*(broker.append([event(text)]) for text in sent))
    assert texts(await read_to_end(broker, "events")) == sent


async def test_append_returns_the_offsets_the_records_are_read_at(broker: Broker) -> None:
    await broker.append([event("before", 1)])
    offsets = await broker.append([event("a", 0), event("b", 1), event("c", 0), event("d", 2)])
    assert offsets == [0, 1, 1, 0]
    read = {record.value: (record.partition, record.offset) for record in await read_to_end(broker, "events")}
    assert read == {b"before": (1, 0), b"a": (0, 0), b"b": (1, 1), b"c": (0, 1), b"d": (2, 0)}


async def test_appending_nothing_is_allowed(broker: Broker) -> None:
    assert await broker.append([]) == []


MURMUR2 = {
    b"21": -973932308,
    b"foobar": -790332482,
    b"a-little-bit-long-string": -985981536,
    b"a-little-bit-longer-string": -1486304829,
    b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
    b"abc": 479470107,
}
"""Keys and their hashes from Apache Kafka's own unit tests (UtilsTest.testMurmur2)."""


async def test_a_key_goes_to_the_partition_that_every_client_of_the_protocol_chooses(broker: Broker) -> None:
    await broker.append([Outgoing("events", key, b"x") for key in MURMUR2 for _ in range(3)])
    found = Counter((record.key, record.partition) for record in await read_to_end(broker, "events"))
    assert found == {(key, (hash_ & 0x7FFFFFFF) % PARTITIONS): 3 for key, hash_ in MURMUR2.items()}


async def test_records_without_a_key_are_spread(broker: Broker) -> None:
    for _ in range(10):
        await broker.append([event("x", partition=None) for _ in range(10)])
    records = await read_to_end(broker, "events")
    assert len(records) == 100
    assert {record.partition for record in records} <= set(range(PARTITIONS))


async def test_headers_missing_keys_and_tombstones_come_back_as_they_were(broker: Broker) -> None:
    headers = [("streammon-schema", b"1"), ("reason", "zu groß".encode()), ("reason", b"")]
    await broker.append([
        Outgoing("events", b"key", b"value", headers, partition=0),
        Outgoing("events", None, b"", partition=0),
        Outgoing("events", b"gone", None, partition=0),
    ])  # fmt: skip
    full, keyless, tombstone = await read_to_end(broker, "events")
    assert (full.key, full.value, list(map(tuple, full.headers))) == (b"key", b"value", headers)
    assert (keyless.key, keyless.value, list(keyless.headers)) == (None, b"", [])
    assert (tombstone.key, tombstone.value) == (b"gone", None)


async def test_records_carry_the_brokers_time_in_milliseconds(broker: Broker) -> None:
    before = time.time()
    await broker.append([event("x") for _ in range(10)])
    stamps = [record.timestamp / 1000 for record in await read_to_end(broker, "events")]
    assert stamps == sorted(stamps)
    assert before - 1 <= stamps[0]
    assert stamps[-1] <= time.time() + 1


async def test_a_record_over_the_limit_is_refused_and_nothing_of_its_call_is_written(broker: Broker) -> None:
    too_large = Outgoing("events", None, bytes(EVENTS.max_record_bytes + 1), partition=0)
    with pytest.raises(RecordTooLarge, match="events"):
        await broker.append([event("before"), too_large, event("after")])
    assert await read_to_end(broker, "events") == []


async def test_a_record_of_almost_the_limit_is_accepted(broker: Broker) -> None:
    value = os.urandom(EVENTS.max_record_bytes - 4096)
    await broker.append([Outgoing("events", b"key", value)])
    assert [record.value for record in await read_to_end(broker, "events")] == [value]


async def test_nothing_waits_once_everything_is_appended(broker: Broker) -> None:
    await broker.append([event("x")])
    assert await broker.backlog_bytes() == 0


# ---------------------------------------------------------------- readers


async def test_a_reader_from_the_earliest_sees_everything_and_from_the_latest_what_follows(
    broker: Broker,
) -> None:
    await broker.append([event("old", 0), event("old", 1)])
    earliest, latest = await broker.reader(["events"]), await broker.reader(["events"], "latest")
    await broker.append([event("new", 1)])
    assert sorted(texts(await take(earliest, 3))) == ["new", "old", "old"]
    assert texts(await take(latest, 1)) == ["new"]
    await earliest.close()
    await latest.close()


async def test_a_reader_from_a_time_begins_with_the_first_record_at_or_after_it(broker: Broker) -> None:
    await broker.append([event("old", 0), event("old", 1)])
    newest_ms = max(record.timestamp for record in await read_to_end(broker, "events"))
    await eventually(lambda: time.time() * 1000 > newest_ms + 5)
    await broker.append([event("new", 0), event("newer", 0)])
    new_ms = min(record.timestamp for record in await read_to_end(broker, "events") if record.value == b"new")
    reader = await broker.reader(["events"], new_ms / 1000)
    assert texts(await take(reader, 2)) == ["new", "newer"]
    await reader.close()


async def test_a_reader_from_offsets_reads_only_the_partitions_that_have_one(broker: Broker) -> None:
    await broker.append([event(f"{number}", number % 2) for number in range(10)])
    reader = await broker.reader(["events", "results"], {at(1): 3, at(0, "results"): 0})
    assert texts(await take(reader, 2)) == ["7", "9"]
    assert await reader.ends() == {at(1): 5, at(0, "results"): 0}
    assert reader.positions() == {at(1): 5, at(0, "results"): 0}
    await reader.close()


async def test_a_reader_from_a_time_to_come_begins_at_the_end(broker: Broker) -> None:
    await broker.append([event("old", number) for number in range(PARTITIONS)])
    reader = await broker.reader(["events"], time.time() + 3600)
    await broker.append([event("new")])
    assert texts(await take(reader, 1)) == ["new"]
    await reader.close()


async def test_positions_reach_the_ends_when_all_is_read(broker: Broker) -> None:
    await broker.append([event("x", 0), event("x", 0), event("x", 2)])
    reader = await broker.reader(["events"])
    assert await reader.ends() == {at(0): 2, at(1): 0, at(2): 1}
    assert reader.positions() == {at(0): 0, at(1): 0, at(2): 0}
    await take(reader, 3)
    assert reader.positions() == {at(0): 2, at(1): 0, at(2): 1}
    await reader.close()


async def test_a_poll_returns_no_more_than_asked_and_the_next_goes_on(broker: Broker) -> None:
    await broker.append([event(str(number), number % PARTITIONS) for number in range(100)])
    reader = await broker.reader(["events"])
    seen: list[str] = []
    async with asyncio.timeout(DEADLINE_S):
        while len(seen) < 100:
            polled = flat(await reader.poll(max_records=7))
            assert len(polled) <= 7
            seen += texts(polled)
    assert sorted(seen, key=int) == [str(number) for number in range(100)]
    await reader.close()


async def test_two_readers_do_not_disturb_each_other(broker: Broker, open_broker: Open) -> None:
    first, second = await broker.reader(["events"]), await (await open_broker()).reader(["events"])
    await broker.append([event("a"), event("b")])
    assert texts(await take(first, 2)) == ["a", "b"]
    assert texts(await take(second, 2)) == ["a", "b"]
    await first.close()
    await second.close()


async def test_a_waiting_poll_is_woken_by_an_append(broker: Broker, open_broker: Open) -> None:
    reader = await broker.reader(["events"])
    waiting = asyncio.create_task(reader.poll(max_wait_s=DEADLINE_S))
    await asyncio.sleep(0)
    await (await open_broker()).append([event("woken")])
    async with asyncio.timeout(DEADLINE_S / 2):
        assert texts(flat(await waiting)) == ["woken"]
    await reader.close()


async def test_a_poll_without_records_is_empty_after_its_time(broker: Broker) -> None:
    reader = await broker.reader(["events"])
    async with asyncio.timeout(DEADLINE_S):
        assert not await reader.poll(max_wait_s=0.2)
    await reader.close()


# ---------------------------------------------------------------- members


async def test_a_new_group_starts_at_the_earliest_record(broker: Broker, group: str) -> None:
    await broker.append([event("a", 0), event("b", 1)])
    member = await join(broker, group)
    assert sorted(texts(await take(member, 2))) == ["a", "b"]
    await member.close()


async def test_a_group_goes_on_where_it_committed(broker: Broker, group: str) -> None:
    await broker.append([event(str(number)) for number in range(5)])
    first = await join(broker, group)
    assert len(await take(first, 5)) == 5
    await first.commit({at(0): 3})
    await first.close()
    second = await join(broker, group)
    assert texts(await take(second, 2)) == ["3", "4"]
    await second.close()


async def test_what_one_group_commits_is_nothing_to_another(broker: Broker, group: str) -> None:
    await broker.append([event("a")])
    first = await join(broker, group)
    await take(first, 1)
    await first.commit({at(0): 1})
    await first.close()
    other = await join(broker, f"{group}-other")
    assert texts(await take(other, 1)) == ["a"]
    await other.close()


async def test_a_member_learns_its_partitions_before_their_first_record(broker: Broker, group: str) -> None:
    assigned: set[TopicPartition] = set()

    async def on_assign(partitions: Sequence[TopicPartition]) -> None:
        assigned.update(partitions)

    await broker.append([event("a", number) for number in range(PARTITIONS)])
    member = await broker.member(group, ["events", "results"], on_assign=on_assign, on_revoke=ignore)
    async with asyncio.timeout(DEADLINE_S):
        while not (polled := await member.poll()):
            pass
    assert set(polled) <= assigned
    assert assigned == {at(number, topic) for topic in ("events", "results") for number in range(PARTITIONS)}
    await member.close()


async def test_a_seek_on_assignment_decides_where_to_start(broker: Broker, group: str) -> None:
    await broker.append([event(str(number)) for number in range(5)])
    first = await join(broker, group)
    await take(first, 5)
    await first.commit({at(0): 5})
    await first.close()

    async def rewind(_: Sequence[TopicPartition]) -> None:
        second.seek(at(0), 3)

    second = await broker.member(group, ["events"], on_assign=rewind, on_revoke=ignore)
    assert texts(await take(second, 2)) == ["3", "4"]
    await second.close()


async def test_a_paused_partition_waits_and_the_others_go_on(broker: Broker, group: str) -> None:
    member = await join(broker, group)
    await broker.append([event("first", 0)])
    await take(member, 1)
    member.pause(at(0))
    await broker.append([event("held", 0), event("free", 1)])
    assert texts(await take(member, 1)) == ["free"]
    await nothing_comes(member)
    member.resume(at(0))
    assert texts(await take(member, 1)) == ["held"]
    await member.close()


@pytest.mark.timeout(60)
async def test_what_is_paused_as_it_is_assigned_waits(broker: Broker, group: str) -> None:
    """As a sink does whose partitions move while it writes."""
    assigned = list[TopicPartition]()

    async def hold(partitions: Sequence[TopicPartition]) -> None:
        assigned.extend(partitions)
        for each in partitions:
            member.pause(each)

    await broker.append([event("held", 0), event("free", 1)])
    member = await broker.member(group, ["events"], on_assign=hold, on_revoke=ignore)
    async with asyncio.timeout(DEADLINE_S):
        while not assigned:
            assert await member.poll() == {}
    await nothing_comes(member)
    member.resume(at(1))
    assert texts(await take(member, 1)) == ["free"]
    member.resume(at(0))
    assert texts(await take(member, 1)) == ["held"]
    await member.close()


async def test_lag_counts_what_poll_has_not_returned(broker: Broker, group: str) -> None:
    await broker.append([event(str(number)) for number in range(10)])
    member = await join(broker, group)
    polled: list[Record] = []
    async with asyncio.timeout(DEADLINE_S):
        while not polled:
            polled = flat(await member.poll(max_records=4))
    assert (await member.lag())[at(0)] == 10 - len(polled)
    await take(member, 10 - len(polled))
    assert (await member.lag())[at(0)] == 0
    await member.close()


async def test_another_member_takes_over_after_close(broker: Broker, open_broker: Open, group: str) -> None:
    async def poll_and_commit(member: Member) -> list[str]:
        polled = await member.poll(max_wait_s=0.2)
        if polled:
            await member.commit({each: records[-1].offset + 1 for each, records in polled.items()})
        return texts(flat(polled))

    first, second = await join(broker, group), await join(await open_broker(), group)
    seen: list[str] = []
    await broker.append([event(f"before {number}", number) for number in range(PARTITIONS)])
    async with asyncio.timeout(DEADLINE_S):
        while len(seen) < PARTITIONS:  # both poll at once: a group changes only while all of it polls
            one, other = await asyncio.gather(poll_and_commit(first), poll_and_commit(second))
            seen += one + other
    await first.close()
    await broker.append([event(f"after {number}", number) for number in range(PARTITIONS)])
    async with asyncio.timeout(DEADLINE_S):
        while len(seen) < 2 * PARTITIONS:
            seen += await poll_and_commit(second)
    assert sorted(seen) == sorted(f"{when} {number}" for when in ("before", "after") for number in range(PARTITIONS))
    await second.close()


# ---------------------------------------------------------------- transactions


async def test_an_empty_partition_restores_to_nothing(broker: Broker, group: str) -> None:
    transactor = await broker.transactor(group, "state.count", 0, ["events"])
    assert await transactor.restore() == Restored(None, {})
    await transactor.close()


async def test_outputs_snapshot_and_offsets_are_there_together(broker: Broker, open_broker: Open, group: str) -> None:
    transactor = await broker.transactor(group, "state.count", 1, ["events", "results"])
    outputs = [event(str(number), number % PARTITIONS, topic="results") for number in range(30)]
    await transactor.transact(outputs, b"one", {at(1): 3})
    await transactor.transact([], b"two", {at(1): 7, at(1, "results"): 10})
    await transactor.close()

    other = await open_broker()
    assert sorted(texts(await read_to_end(other, "results")), key=int) == [str(n) for n in range(30)]
    successor = await other.transactor(group, "state.count", 1, ["events", "results"])
    assert await successor.restore() == Restored(b"two", {at(1): 7, at(1, "results"): 10})
    await successor.close()


async def test_partitions_of_a_processor_do_not_see_each_others_state(broker: Broker, group: str) -> None:
    for number in range(PARTITIONS):
        transactor = await broker.transactor(group, "state.count", number, ["events"])
        await transactor.transact([], f"of {number}".encode(), {at(number): number})
        await transactor.close()
    for number in range(PARTITIONS):
        transactor = await broker.transactor(group, "state.count", number, ["events"])
        assert await transactor.restore() == Restored(f"of {number}".encode(), {at(number): number})
        await transactor.close()


async def test_a_member_starts_where_the_transaction_left_the_group(broker: Broker, group: str) -> None:
    await broker.append([event(str(number)) for number in range(5)])
    transactor = await broker.transactor(group, "state.count", 0, ["events"])
    await transactor.transact([], b"", {at(0): 4})
    await transactor.close()
    member = await join(broker, group)
    assert texts(await take(member, 1)) == ["4"]
    await member.close()


async def test_anybody_may_ask_how_far_a_group_is(broker: Broker, open_broker: Open, group: str) -> None:
    assert await broker.committed(group, ["events"]) == {}
    transactor = await broker.transactor(group, "state.count", 1, ["events"])
    await transactor.transact([], b"", {at(1): 4})
    await transactor.close()
    asker = await open_broker()
    assert await asker.committed(group, ["events", "results"]) == {at(1): 4}
    assert await asker.committed(group, ["results"]) == {}


async def test_a_transaction_with_a_record_over_the_limit_leaves_nothing(broker: Broker, group: str) -> None:
    too_large = Outgoing("results", None, bytes(RESULTS.max_record_bytes + 1), partition=1)
    transactor = await broker.transactor(group, "state.count", 0, ["events"])
    await transactor.transact([event("first", topic="results")], b"one", {at(0): 1})
    with pytest.raises(RecordTooLarge):
        await transactor.transact(
            [event("a", topic="results"), too_large, event("b", 2, topic="results")], b"two", {at(0): 2}
        )
    assert texts(await read_to_end(broker, "results")) == ["first"]
    await transactor.transact([event("second", topic="results")], b"three", {at(0): 3})
    assert texts(await read_to_end(broker, "results")) == ["first", "second"]
    await transactor.close()
    successor = await broker.transactor(group, "state.count", 0, ["events"])
    assert await successor.restore() == Restored(b"three", {at(0): 3})
    await successor.close()


async def test_an_earlier_owner_is_fenced_and_writes_nothing(broker: Broker, open_broker: Open, group: str) -> None:
    zombie = await broker.transactor(group, "state.count", 0, ["events"])
    await zombie.transact([event("alive", topic="results")], b"one", {at(0): 1})
    owner = await (await open_broker()).transactor(group, "state.count", 0, ["events"])
    assert await owner.restore() == Restored(b"one", {at(0): 1})
    with pytest.raises(Fenced):
        await zombie.transact([event("dead", topic="results")], b"lost", {at(0): 9})
    await owner.transact([event("next", topic="results")], b"two", {at(0): 2})
    assert texts(await read_to_end(broker, "results")) == ["alive", "next"]
    await zombie.close()
    await owner.close()


async def test_the_owner_of_one_partition_does_not_fence_another(broker: Broker, group: str) -> None:
    first = await broker.transactor(group, "state.count", 0, ["events"])
    second = await broker.transactor(group, "state.count", 1, ["events"])
    other_group = await broker.transactor(f"{group}-other", "state.count", 2, ["events"])
    for transactor in (first, second, other_group):
        await transactor.transact([event("x", topic="results")], b"", {})
        await transactor.close()
    assert len(await read_to_end(broker, "results")) == 3


# ---------------------------------------------------------------- kill -9


COUNTING = """
import asyncio, sys
from streammon.broker import Outgoing, TopicPartition, connect
from streammon.config import load
from streammon.errors import Retryable

async def count(broker, group):
    transactor = await broker.transactor(group, "state.count", 0, ["events"])
    restored = await transactor.restore()
    number = int(restored.snapshot or 0)
    while True:
        number += 1
        outputs = [Outgoing("results", None, str(number).encode(), partition=each) for each in (0, 1, 2)]
        await transactor.transact(outputs, str(number).encode(), {TopicPartition("events", 0): number})
        print(number, flush=True)

async def main():
    broker = await connect(load())
    while True:
        try:
            await count(broker, sys.argv[1])
        except Retryable as error:
            print(error, file=sys.stderr)

asyncio.run(main())
"""
"""Each transaction writes the next number to all partitions of `results`, as snapshot and as input offset."""


@pytest.mark.timeout(180)
async def test_kill_9_leaves_exactly_the_committed_transactions(broker: Broker, settings: Settings, group: str) -> None:
    chance = random.Random(20240607)
    done = 0
    for _ in range(3 if settings.bootstrap else 5):
        acknowledged = await _count_until_killed(settings, group, chance)
        transactor = await broker.transactor(group, "state.count", 0, ["events"])
        snapshot, offsets = await transactor.restore()
        await transactor.close()
        assert snapshot is not None
        assert offsets == {at(0): int(snapshot)}
        assert done < acknowledged <= int(snapshot)
        done = int(snapshot)
        written = Counter((each.partition, each.value) for each in await read_to_end(broker, "results"))
        expected = [(each, str(number).encode()) for each in range(3) for number in range(1, done + 1)]
        assert written == Counter(expected)


async def _count_until_killed(settings: Settings, group: str, chance: random.Random) -> int:
    """Kill the counting process at some moment of some transaction; the last number it said was done."""
    environment = {
        **os.environ,
        "STREAMMON_BOOTSTRAP": settings.bootstrap or "",
        "STREAMMON_DATA_DIR": str(settings.data_dir),
        "STREAMMON_TOPICS__PREFIX": settings.topics.prefix,
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", COUNTING, group, stdout=asyncio.subprocess.PIPE, env=environment
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(DEADLINE_S):
            said = [await process.stdout.readline() for _ in range(chance.randint(1, 100))]
            await asyncio.sleep(chance.uniform(0, 0.005))
    finally:
        process.kill()
    said += (await process.stdout.read()).splitlines()
    await process.wait()
    return int(said[-1])
