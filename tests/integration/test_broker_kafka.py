"""What only Kafka does: brokers that are away, rebalances, fenced zombies, markers that take offsets.

What both brokers promise is in ``tests/contracts/test_broker.py``.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence

import pytest
from aiokafka import AIOKafkaProducer

from streammon import servers
from streammon.broker import Member, Outgoing, Polled, Reader, TopicPartition
from streammon.broker.kafka import KafkaBroker
from streammon.broker.kafka.cluster import STOP_S
from streammon.broker.kafka.member import KafkaMember
from streammon.broker.kafka.messages import Fetched
from streammon.config import KafkaSettings, Settings, TopicSettings
from streammon.errors import ConfigError, Fatal, Fenced, RecordTooLarge, Retryable
from streammon.topics import TopicSpec
from tests.support import eventually, overlooked

pytestmark = pytest.mark.kafka

SESSION_S = KafkaSettings().session_timeout_s
IN, OTHER, OUT, STATE = "in", "other", "out", "state.p"
SPECS = [
    TopicSpec(IN, 4, 3600.0, log_append_time=True),
    TopicSpec(OTHER, 4, 3600.0),
    TopicSpec(OUT, 4, 3600.0),
    TopicSpec(STATE, 4, None, compact=True),
]


def settings_for(address: str, prefix: str, **kafka: float) -> Settings:
    return Settings(bootstrap=address, topics=TopicSettings(prefix=f"{prefix}."), kafka=KafkaSettings(**kafka))


@contextlib.asynccontextmanager
async def connected(settings: Settings) -> AsyncIterator[KafkaBroker]:
    broker = await KafkaBroker.connect(settings)
    try:
        yield broker
    finally:
        await broker.close()


@pytest.fixture
def settings(kafka: servers.Server, unique: str) -> Settings:
    return settings_for(kafka.address, unique)


@pytest.fixture
async def broker(settings: Settings) -> AsyncIterator[KafkaBroker]:
    async with connected(settings) as broker:
        await broker.create_topics(SPECS)
        yield broker


def numbered(topic: str, numbers: Sequence[int], partition: int | None = 0) -> list[Outgoing]:
    return [Outgoing(topic, b"key", b"%d" % number, partition=partition) for number in numbers]


def values(polled: Polled) -> list[int]:
    return [int(record.value or b"") for records in polled.values() for record in records]


async def read_to_end(reader: Reader, within_s: float = 10) -> list[int]:
    """All values until the positions have reached the ends as they are now."""
    found: list[int] = []
    ends = await reader.ends()
    async with asyncio.timeout(within_s):
        while any(reader.positions()[each] < end for each, end in ends.items()):
            found += values(await reader.poll(0.2))
    return found


async def all_of(broker: KafkaBroker, topic: str) -> list[int]:
    reader = await broker.reader([topic])
    try:
        return await read_to_end(reader)
    finally:
        await reader.close()


class Watched:
    """A group member that writes down what happens to it, in a list it may share with other members."""

    def __init__(self, name: str, events: list[tuple[str, str, list[TopicPartition]]]) -> None:
        self.name, self.events = name, events
        self.owned: list[TopicPartition] = []
        self.values: list[int] = []
        self.before_revoke: Callable[[], Awaitable[None]] | None = None
        self.member: Member

    async def join(self, broker: KafkaBroker, topics: Sequence[str] = (IN,)) -> Watched:
        self.member = await broker.member("group", topics, on_assign=self._on_assign, on_revoke=self._on_revoke)
        return self

    async def poll(self, max_wait_s: float = 0.1, max_records: int = 2000) -> Polled:
        polled = await self.member.poll(max_wait_s, max_records)
        assert polled.keys() <= set(self.owned), "a record of a partition that is not ours"
        self.values += values(polled)
        return polled

    async def _on_assign(self, partitions: Sequence[TopicPartition]) -> None:
        self.events.append((self.name, "assigned", list(partitions)))
        self.owned = list(partitions)

    async def _on_revoke(self, partitions: Sequence[TopicPartition]) -> None:
        if self.before_revoke:
            await self.before_revoke()
        self.events.append((self.name, "revoked", list(partitions)))
        self.owned = []


async def poll_until(condition: Callable[[], object], *members: Watched, deadline_s: float = 20) -> None:
    async def polled() -> bool:
        await asyncio.gather(*(member.poll() for member in members))
        return bool(condition())

    await eventually(polled, deadline_s)


async def rebalancing(broker: KafkaBroker) -> bool:
    """Whether the group waits for its members to let go of their partitions."""
    [reply] = await broker._admin.describe_consumer_groups([broker._cluster.name("group")])
    return b"PreparingRebalance" in str(reply).encode()


# ---------------------------------------------------------------- reaching it


@pytest.mark.parametrize("address", ["nonsense", "host:port", "127.0.0.1:0", ":9092"])
async def test_address_that_is_none_is_a_configuration_error(address: str) -> None:
    with pytest.raises(ConfigError, match="expected HOST:PORT"):
        await KafkaBroker.connect(settings_for(address, "x"))


async def test_nobody_on_the_port_is_retryable_and_names_the_address() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(Retryable, match=f"connecting at Kafka {address}.*bootstrap"):
            await KafkaBroker.connect(settings_for(address, "x"))


async def test_server_that_never_answers_is_retryable_within_ten_seconds() -> None:
    started = time.monotonic()
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(Retryable, match=address):
            await KafkaBroker.connect(settings_for(address, "x"))
    assert time.monotonic() - started < 10


# ---------------------------------------------------------------- topics


async def test_topics_are_described_as_they_were_created(settings: Settings) -> None:
    specs = [*SPECS, TopicSpec("small", 1, 60.0, max_record_bytes=1000)]
    async with connected(settings) as broker:
        assert await broker.create_topics(specs) == [spec.name for spec in specs]
        assert await broker.create_topics(specs) == []
        assert await broker.topics() == {spec.name: spec for spec in specs}


async def test_more_replicas_than_brokers_is_a_configuration_error(settings: Settings) -> None:
    topics = settings.topics.model_copy(update={"replication": 3})
    async with connected(settings.model_copy(update={"topics": topics})) as broker:
        with pytest.raises(ConfigError, match=r"topics.replication = 3"):
            await broker.create_topics(SPECS)


async def test_unknown_topic_is_named_and_not_created_by_asking(broker: KafkaBroker, unique: str) -> None:
    with pytest.raises(ConfigError, match=f"{unique}.absent.*streammon topics create"):
        await broker.append([Outgoing("absent", b"k", b"v")])
    with pytest.raises(ConfigError, match=f"{unique}.absent"):
        await broker.reader(["absent"])
    assert "absent" not in await broker.topics()


async def test_partition_that_does_not_exist_is_a_configuration_error(broker: KafkaBroker) -> None:
    with pytest.raises(ConfigError, match="4 partitions, none numbered 4"):
        await broker.append(numbered(IN, [1], partition=4))


# ---------------------------------------------------------------- appending


async def test_many_concurrent_appends_keep_their_order_and_their_offsets(broker: KafkaBroker) -> None:
    batches = [range(start, start + 500) for start in range(0, 5000, 500)]
    offsets = await asyncio.gather(*(broker.append(numbered(IN, list(batch))) for batch in batches))
    assert sorted(offset for each in offsets for offset in each) == list(range(5000))
    assert all(each == sorted(each) for each in offsets)
    found = await all_of(broker, IN)
    assert all([value for value in found if value in batch] == list(batch) for batch in batches)
    assert await broker.backlog_bytes() == 0


async def test_largest_record_is_read_back_and_a_larger_one_is_refused(broker: KafkaBroker) -> None:
    largest = SPECS[0].max_record_bytes
    await broker.append([Outgoing(IN, b"k" * 100, b"1" * largest, [("header", b"x" * 1000)], 0)])
    with pytest.raises(RecordTooLarge, match=str(largest + 1)):
        await broker.append([*numbered(IN, [1]), Outgoing(IN, b"k", b"1" * (largest + 1), partition=0)])
    reader = await broker.reader([IN])
    try:
        [[record]] = (await reader.poll(10)).values()
        assert record.value == b"1" * largest
        assert (await reader.ends())[TopicPartition(IN, 0)] == 1
    finally:
        await reader.close()


async def test_record_the_broker_refuses_does_not_spoil_those_after_it(broker: KafkaBroker, settings: Settings) -> None:
    """The limit was lowered behind our back. The refused batch leaves a gap in the producer's numbers."""
    await broker.append(numbered(IN, [1]))
    broker._catalog._specs[IN] = TopicSpec(IN, 4, 3600.0, max_record_bytes=2 * 1024 * 1024)
    with pytest.raises(RecordTooLarge):
        await broker.append([Outgoing(IN, b"k", os.urandom(3 * 1024 * 1024 // 2), partition=0)])  # nothing to compress
    await broker.append(numbered(IN, [2]))
    assert await all_of(broker, IN) == [1, 2]


# ---------------------------------------------------------------- reading


async def test_positions_step_over_transaction_markers_to_the_ends(broker: KafkaBroker) -> None:
    transactor = await broker.transactor("group", STATE, 0, [IN])
    for number in range(3):
        await transactor.transact(numbered(OUT, [number]), b"s", {})
    await transactor.close()
    reader = await broker.reader([OUT])
    try:
        assert await read_to_end(reader) == [0, 1, 2]
        assert reader.positions()[TopicPartition(OUT, 0)] == 6  # each record is followed by its marker
    finally:
        await reader.close()


async def test_latest_starts_behind_the_marker_and_a_time_at_its_record(broker: KafkaBroker) -> None:
    await broker.append(numbered(IN, [1]))
    await asyncio.sleep(0.01)  # the broker's clock has to move on
    between = time.time()
    await broker.append(numbered(IN, [2, 3]))
    for start, expected in ((between, [2, 3]), ("earliest", [1, 2, 3]), (between + 3600, [])):
        reader = await broker.reader([IN], start)  # type: ignore[arg-type]  # parametrised by hand
        assert await read_to_end(reader) == expected
        await reader.close()
    latest = await broker.reader([IN], "latest")
    await broker.append(numbered(IN, [4]))
    assert values(await latest.poll(10)) == [4]
    await latest.close()


# ---------------------------------------------------------------- groups


async def test_member_has_the_same_partition_numbers_of_all_its_topics(broker: KafkaBroker) -> None:
    every = {TopicPartition(topic, number) for topic in (IN, OTHER) for number in range(4)}
    members = [await Watched(name, []).join(broker, [IN, OTHER]) for name in "abc"]
    await poll_until(lambda: all(each.owned for each in members), *members)
    for each in members:
        assert {(OTHER, number) for topic, number in each.owned if topic == IN} < set(each.owned)
    assert {partition for each in members for partition in each.owned} == every
    *leaving, last = members
    for each in leaving:
        await each.member.close()
    await poll_until(lambda: set(last.owned) == every, last)
    await last.member.close()


class Rewinding(Watched):
    """Begins every assignment but the first at 60."""

    async def _on_assign(self, partitions: Sequence[TopicPartition]) -> None:
        if self.owned:
            self.member.seek(TopicPartition(IN, 0), 60)
        await super()._on_assign(partitions)


async def test_what_was_fetched_before_an_assignment_is_dropped(
    broker: KafkaBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """librdkafka may return records from before a rebalance, and have run its callback, in one call."""
    await broker.append(numbered(IN, range(100)))
    watched = await Rewinding("a", []).join(broker)
    member = watched.member
    assert isinstance(member, KafkaMember)
    take, dropped = member._take, 0

    def interrupted(wait_s: float, max_records: int) -> Fetched:
        nonlocal dropped
        found = take(wait_s, 40)
        if found.records() and not dropped:
            dropped = sum(map(len, found.records().values()))
            member._assigned(member._consumer, [member._theirs(each) for each in watched.owned])
        return found

    monkeypatch.setattr(member, "_take", interrupted)
    await poll_until(lambda: len(watched.values) >= 40, watched)
    assert dropped > 0
    assert watched.values == list(range(60, 100))
    await member.close()


async def test_partition_moves_only_after_its_owner_has_let_go(broker: KafkaBroker) -> None:
    """The slow revoke commits; the new owner goes on from there, not a record earlier or later."""
    events: list[tuple[str, str, list[TopicPartition]]] = []
    await broker.append([record for number in range(4) for record in numbered(IN, range(100), number)])
    a, b = Watched("a", events), Watched("b", events)
    done: dict[TopicPartition, int] = {}

    async def commit_slowly() -> None:
        await asyncio.sleep(0.5)
        await a.member.commit(done)

    a.before_revoke = commit_slowly
    await a.join(broker)
    while len(a.values) < 250:
        for partition, records in (await a.poll(max_records=50)).items():
            done[partition] = records[-1].offset + 1
    for partition in a.owned:
        a.member.pause(partition)  # until the rebalance
    await b.join(broker)
    await poll_until(lambda: len(a.values) + len(b.values) >= 400, a, b)
    moved = [(name, what) for name, what, _ in events]
    assert moved.index(("a", "revoked")) < moved.index(("b", "assigned"))
    assert sorted(a.values + b.values) == sorted([*range(100)] * 4)
    await a.member.close()
    await b.member.close()


async def test_a_poll_of_large_records_brings_few_of_them(broker: KafkaBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streammon.broker.kafka.member.POLL_BYTES", 1000)
    await broker.append([Outgoing(IN, None, b"%03d" % number + b" " * 400, partition=0) for number in range(20)])
    a = await Watched("a", []).join(broker)
    found: list[bytes] = []

    async def read() -> bool:
        polled = await a.member.poll(0.1)
        values = [record.value or b"" for records in polled.values() for record in records]
        assert sum(map(len, values)) <= 1000
        found.extend(values)
        return len(found) >= 20

    await eventually(read, 20, "all records")
    assert [int(value) for value in found] == list(range(20))
    await a.member.close()


async def test_callbacks_run_only_inside_poll(broker: KafkaBroker) -> None:
    events: list[tuple[str, str, list[TopicPartition]]] = []
    a = await Watched("a", events).join(broker)
    b = Watched("b", events)
    assert events == []
    await poll_until(lambda: a.owned, a)
    await b.join(broker)
    await eventually(lambda: rebalancing(broker), what="a rebalance")
    assert len(events) == 1
    await poll_until(lambda: a.owned and b.owned, a, b)
    await a.member.close()
    await b.member.close()


async def test_assign_that_fails_is_repeated_before_any_record_comes(broker: KafkaBroker) -> None:
    await broker.append(numbered(IN, [1]))
    calls: list[int] = []

    async def fail_once(partitions: Sequence[TopicPartition]) -> None:
        calls.append(len(partitions))
        if len(calls) == 1:
            raise Retryable("the state cannot be read now")

    async def nothing(_: Sequence[TopicPartition]) -> None: ...

    member = await broker.member("group", [IN], on_assign=fail_once, on_revoke=nothing)
    with pytest.raises(Retryable, match="the state"):
        await member.poll(10)
    assert values(await member.poll(10)) == [1]
    assert calls == [4, 4]
    await member.close()


async def test_slow_assign_does_not_cost_the_membership(broker: KafkaBroker) -> None:
    """Slower than the session timeout: heartbeats go on meanwhile, and the commit afterwards is accepted."""
    await broker.append(numbered(IN, [1]))
    calls: list[str] = []

    async def slow(_: Sequence[TopicPartition]) -> None:
        calls.append("assign")
        await asyncio.sleep(SESSION_S + 2)

    async def revoked(_: Sequence[TopicPartition]) -> None:
        calls.append("revoke")

    member = await broker.member("group", [IN], on_assign=slow, on_revoke=revoked)
    assert values(await member.poll(20)) == [1]
    await member.commit({TopicPartition(IN, 0): 1})
    assert calls == ["assign"]
    await member.close()


async def test_a_blocked_event_loop_does_not_cost_the_membership(broker: KafkaBroker) -> None:
    """For longer than the session timeout: heartbeats go on beside Python."""
    events: list[tuple[str, str, list[TopicPartition]]] = []
    a = await Watched("a", events).join(broker)
    await poll_until(lambda: a.owned, a)
    time.sleep(SESSION_S + 2)  # noqa: ASYNC251 - that is the point
    await broker.append(numbered(IN, [1]))
    await poll_until(lambda: a.values == [1], a)
    await a.member.commit({TopicPartition(IN, 0): 1})
    assert [what for _, what, _ in events] == ["assigned"]
    await a.member.close()


async def test_a_member_that_closes_has_left_the_group(broker: KafkaBroker) -> None:
    """Others need not wait for its session to end."""
    a = await Watched("a", []).join(broker)
    await poll_until(lambda: a.owned, a)
    assert await members(broker) == 1
    await a.member.close()
    assert await members(broker) == 0


async def members(broker: KafkaBroker) -> int:
    [reply] = await broker._admin.describe_consumer_groups([broker._cluster.name("group")])
    [(_, _, _, _, _, found, *_)] = reply.groups  # error, group, state, protocol type, protocol, members
    return len(found)


async def test_a_static_member_whose_name_is_taken_says_so_and_ends(settings: Settings, broker: KafkaBroker) -> None:
    """For good: librdkafka would return nothing from then on, and nobody would serve the group."""
    named = settings.model_copy(update={"kafka": settings.kafka.model_copy(update={"instance_id": "one"})})
    async with connected(named) as first, connected(named) as second:
        a = await Watched("a", []).join(first)
        await poll_until(lambda: a.owned, a)
        b = await Watched("b", []).join(second)
        polling = asyncio.create_task(poll_until(lambda: b.owned, b))
        with pytest.raises(Fatal, match=r"kafka\.instance_id"):
            await poll_until(lambda: False, a)
        await polling
        await a.member.close()
        await b.member.close()


async def test_cancelled_poll_loses_no_record(broker: KafkaBroker) -> None:
    member = await Watched("a", []).join(broker)
    await poll_until(lambda: member.owned, member)
    writing = asyncio.create_task(write_slowly(broker, range(300)))
    found: list[int] = []
    async with asyncio.timeout(30):
        while len(found) < 300:
            polling = asyncio.create_task(member.member.poll(5))
            await asyncio.wait({polling}, timeout=0.003)
            polling.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                found += values(await polling)
    await writing
    assert found == list(range(300))
    await member.member.close()


async def write_slowly(broker: KafkaBroker, numbers: Sequence[int]) -> None:
    for number in numbers:
        await broker.append(numbered(IN, [number]))


async def test_lag_counts_what_poll_has_not_returned_also_while_paused(broker: KafkaBroker) -> None:
    first = TopicPartition(IN, 0)
    await broker.append(numbered(IN, range(100)))
    member = await Watched("a", []).join(broker)
    await poll_until(lambda: member.owned, member)
    while len(member.values) < 30:
        await member.poll(max_records=30)
    assert (await member.member.lag())[first] == 100 - len(member.values)
    member.member.pause(first)
    await member.poll(0.5)  # a fetch that was under way has ended
    await broker.append(numbered(IN, range(1000)))
    returned = len(member.values)

    async def seen() -> bool:
        await member.poll()
        return (await member.member.lag())[first] == 1100 - returned

    await eventually(seen)
    assert len(member.values) == returned
    member.member.resume(first)
    await poll_until(lambda: len(member.values) == 1100, member)
    assert sum((await member.member.lag()).values()) == 0
    await member.member.close()


async def test_member_closes_at_once_while_the_group_waits_for_it(broker: KafkaBroker) -> None:
    events: list[tuple[str, str, list[TopicPartition]]] = []
    a, b = await Watched("a", events).join(broker), Watched("b", events)
    await poll_until(lambda: a.owned, a)
    await b.join(broker)
    await eventually(lambda: rebalancing(broker), what="a rebalance")
    started = time.monotonic()
    await a.member.close()
    assert time.monotonic() - started < STOP_S
    await poll_until(lambda: len(b.owned) == 4, b)
    await b.member.close()


# ---------------------------------------------------------------- exactly once


async def test_zombie_is_fenced_and_what_it_left_open_is_never_seen(
    broker: KafkaBroker, settings: Settings, unique: str
) -> None:
    zombie = await broker.transactor("group", STATE, 0, [IN])
    await zombie.transact(numbered(OUT, [1]), b"one", {TopicPartition(IN, 0): 1})
    producer: AIOKafkaProducer = zombie._producer
    await producer.begin_transaction()
    await producer.send_and_wait(f"{unique}.{OUT}", b"666", b"key", partition=0)
    heir = await broker.transactor("group", STATE, 0, [IN])
    restored = await heir.restore()
    assert (restored.snapshot, restored.offsets) == (b"one", {TopicPartition(IN, 0): 1})
    with contextlib.suppress(Exception):
        await producer.abort_transaction()
    await heir.transact(numbered(OUT, [2]), b"two", {TopicPartition(IN, 0): 2})
    assert await all_of(broker, OUT) == [1, 2]
    for transactor in (zombie, heir):
        await transactor.close()


async def test_transaction_of_a_fenced_owner_raises_fenced(broker: KafkaBroker) -> None:
    old = await broker.transactor("group", STATE, 0, [IN])
    await old.transact(numbered(OUT, [1]), b"one", {TopicPartition(IN, 0): 1})
    new = await broker.transactor("group", STATE, 0, [IN])
    with pytest.raises(Fenced, match="another process"):
        await old.transact(numbered(OUT, [666]), b"zombie", {TopicPartition(IN, 0): 666})
    with pytest.raises(Retryable, match="open a new one"):
        await old.transact([], b"again", {})
    assert (await new.restore()).snapshot == b"one"
    assert await all_of(broker, OUT) == [1]
    await old.close()
    await new.close()


MANY = [Outgoing(OUT, b"key", b"7" * 20_000, partition=number % 4) for number in range(200)]
"""More than one request takes: some are refused while others are still handed over."""


async def test_a_fenced_transaction_leaves_no_failure_for_asyncio_to_report(
    broker: KafkaBroker, caplog: pytest.LogCaptureFixture
) -> None:
    old = await broker.transactor("group", STATE, 0, [IN])
    await old.transact([], b"one", {TopicPartition(IN, 0): 1})
    new = await broker.transactor("group", STATE, 0, [IN])
    with pytest.raises(Fenced):
        await old.transact(MANY, b"zombie", {TopicPartition(IN, 0): 666})
    await old.close()
    await new.close()
    del old
    assert overlooked(caplog) == []


async def test_too_large_output_writes_nothing_and_the_transactor_goes_on(broker: KafkaBroker) -> None:
    transactor = await broker.transactor("group", STATE, 0, [IN])
    large = Outgoing(OUT, b"k", b"1" * (SPECS[2].max_record_bytes + 1), partition=0)
    with pytest.raises(RecordTooLarge):
        await transactor.transact([*numbered(OUT, [1]), large], b"one", {TopicPartition(IN, 0): 1})
    assert await transactor.restore() == (None, {})
    await transactor.transact(numbered(OUT, [2]), b"two", {TopicPartition(IN, 0): 2})
    assert await all_of(broker, OUT) == [2]
    await transactor.close()


async def test_output_the_broker_refuses_aborts_the_transaction(broker: KafkaBroker) -> None:
    broker._catalog._specs[OUT] = TopicSpec(OUT, 4, 3600.0, max_record_bytes=2 * 1024 * 1024)
    transactor = await broker.transactor("group", STATE, 0, [IN])
    large = Outgoing(OUT, b"k", b"1" * (3 * 1024 * 1024 // 2), partition=0)
    with pytest.raises(RecordTooLarge):
        await transactor.transact([*numbered(OUT, [1]), large], b"one", {TopicPartition(IN, 0): 1})
    await transactor.close()
    heir = await broker.transactor("group", STATE, 0, [IN])
    assert await heir.restore() == (None, {})
    assert await all_of(broker, OUT) == []
    await heir.close()


async def test_newest_snapshot_is_found_behind_many_aborted_ones(broker: KafkaBroker, unique: str) -> None:
    transactor = await broker.transactor("group", STATE, 1, [IN])
    await transactor.transact([], b"good", {TopicPartition(IN, 1): 7})
    producer: AIOKafkaProducer = transactor._producer
    for _ in range(30):
        await producer.begin_transaction()
        await producer.send_and_wait(f"{unique}.{STATE}", b"bad", b"1", partition=1)
        await producer.abort_transaction()
    assert await transactor.restore() == (b"good", {TopicPartition(IN, 1): 7})
    await transactor.close()


# ---------------------------------------------------------------- a broker that dies


@pytest.fixture(scope="module")
def mortal(kafka: servers.Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Server]:
    """A Kafka of our own, to be killed. (The shared one is asked for so that its absence skips these tests too.)"""
    with servers.start("kafka", tmp_path_factory.mktemp("mortal")) as server:
        yield server


@pytest.fixture
def killable(mortal: servers.Server) -> servers.Server:
    if not mortal.running:
        mortal.restart()
    return mortal


async def test_everything_goes_on_after_the_broker_was_killed(
    killable: servers.Server, unique: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with connected(settings_for(killable.address, unique)) as broker:
        await broker.create_topics(SPECS)
        member = await Watched("a", []).join(broker)
        transactor = await broker.transactor("group", STATE, 0, [IN])
        await broker.append(numbered(IN, range(10)))
        await transactor.transact(numbered(OUT, [1]), b"one", {})
        await poll_until(lambda: len(member.values) == 10, member)

        await asyncio.to_thread(killable.kill)
        appending = asyncio.create_task(broker.append(numbered(IN, range(10, 20))))
        assert values(await member.poll(0.5)) == []
        await asyncio.to_thread(killable.restart)

        assert len(await appending) == 10
        await poll_until(lambda: len(member.values) >= 20, member, deadline_s=40)
        assert sorted(set(member.values)) == list(range(20))
        await eventually(lambda: commits(member, {TopicPartition(IN, 0): 20}), 40, "a commit")
        await transactor.transact(numbered(OUT, [2]), b"two", {TopicPartition(IN, 0): 20})
        await eventually(lambda: holds(broker, OUT, [1, 2]), 20, "what was committed to be readable")
        assert await all_of(broker, IN) == list(range(20))
        assert len(await broker.topics()) == len(SPECS)
        await transactor.close()
        await member.member.close()
    refused = [record for record in caplog.records if "Connection refused" in record.getMessage()]
    assert 0 < len([record for record in refused if record.name == "streammon.librdkafka"]) <= 3, "one a connection"


async def holds(broker: KafkaBroker, topic: str, expected: list[int]) -> bool:
    """A commit is answered before its markers are written: a moment later, all of it can be read."""
    return await all_of(broker, topic) == expected


async def commits(member: Watched, offsets: dict[TopicPartition, int]) -> bool:
    """It polls, too: whom the broker has forgotten joins again in a poll, and cannot commit before."""
    await member.poll()
    try:
        await member.member.commit(offsets)
    except Retryable:
        return False
    return True


async def test_append_that_failed_does_not_turn_up_later(
    killable: servers.Server, unique: str, caplog: pytest.LogCaptureFixture
) -> None:
    # Long enough for the first append to a server that has only just started, on a busy machine.
    settings = settings_for(killable.address, unique, delivery_timeout_s=4.0)
    async with connected(settings) as broker:
        await broker.create_topics(SPECS)
        await broker.append(numbered(IN, [1]))
        await asyncio.to_thread(killable.kill)
        for _ in range(2):
            with pytest.raises(Retryable, match=f"writing at Kafka {killable.address}"):
                await broker.append(numbered(IN, [666]))
        assert await broker.backlog_bytes() == 0
        await asyncio.to_thread(killable.restart)
        await eventually(lambda: appends(broker, numbered(IN, [2])), 20, "an append")
        assert await all_of(broker, IN) == [1, 2]
    assert [record.message for record in caplog.records if record.name == "asyncio"] == []


async def test_a_broker_that_dies_before_it_said_where_a_topic_is_may_come_back(
    killable: servers.Server, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streammon.broker.kafka.catalog.REQUEST_S", 1.0)
    async with connected(settings_for(killable.address, unique)) as broker:
        await broker.create_topics(SPECS)
        await broker.append(numbered(IN, [1]))
        await asyncio.to_thread(killable.kill)
        with pytest.raises(Retryable, match=r"UnknownTopicOrPartitionError|TimeoutError"):  # whichever is first
            await broker.append(numbered(OUT, [2]))


async def appends(broker: KafkaBroker, records: list[Outgoing]) -> bool:
    try:
        await broker.append(records)
    except Retryable:
        return False
    return True


async def test_closing_takes_less_than_ten_seconds_with_the_broker_gone(killable: servers.Server, unique: str) -> None:
    broker = await KafkaBroker.connect(settings_for(killable.address, unique))
    await broker.create_topics(SPECS)
    member = await Watched("a", []).join(broker)
    await poll_until(lambda: member.owned, member)
    transactor = await broker.transactor("group", STATE, 0, [IN])
    await broker.append(numbered(IN, [1]))
    await asyncio.to_thread(killable.kill)
    started = time.monotonic()
    for each in (transactor, member.member, broker):
        await each.close()
    assert time.monotonic() - started < 10


async def test_kafka_that_answers_but_names_no_broker_yet_is_away(
    kafka: servers.Server, unique: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What aiokafka finds right after a broker comes back; it says so with an assertion."""

    async def start(_: object) -> None:
        raise AssertionError("Did we not perform bootstrap?")

    async with connected(settings_for(kafka.address, unique)) as broker:
        await broker.create_topics(SPECS)
        monkeypatch.setattr("aiokafka.AIOKafkaProducer.start", start)
        with pytest.raises(Retryable, match="names no broker yet"):
            await broker.append(numbered(IN, [1]))
