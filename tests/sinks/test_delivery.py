"""The delivery loop against a strict fake of the broker seam, driven into every corner.

The fake holds the loop to the seam's contract: polls never overlap, commits are for assigned partitions only,
callbacks run inside `poll`, paused partitions return nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
from prometheus_client import REGISTRY

from streammon.backoff import Backoff
from streammon.broker import AssignmentCallback, Broker, Member, Outgoing, Polled, Record, TopicPartition
from streammon.errors import Backpressure, Fatal, Retryable
from streammon_sinks.delivery import Item, PartlyWritten, Refused, deliver
from tests.sinks.builders import StoredRecord
from tests.support import eventually

P0, P1 = TopicPartition("windows", 0), TopicPartition("windows", 1)
QUICK = Backoff(first_s=0.001, longest_s=0.01)
SLOW = Backoff(first_s=60, longest_s=60)


class FakeMember:
    """One member: partitions of given lengths, in memory."""

    def __init__(self, lengths: Mapping[TopicPartition, int]) -> None:
        self.logs: dict[TopicPartition, list[Record]] = {
            each: [StoredRecord(each.partition, n, b"%d/%d" % (each.partition, n)) for n in range(length)]
            for each, length in lengths.items()
        }
        self.positions: dict[TopicPartition, int] = {}
        self.committed: dict[TopicPartition, int] = {}
        self.paused: set[TopicPartition] = set()
        self.polls = 0
        self.commit_errors = 0
        self.commit_hangs = False
        self.poll_errors = 0
        self.leaks = 0
        self.closed = False
        self.on_assign: AssignmentCallback
        self.on_revoke: AssignmentCallback
        self._polling = False
        self._changes: list[tuple[str, list[TopicPartition]]] = [("assign", list(self.logs))]

    def revoke(self, *partitions: TopicPartition) -> None:
        self._changes.append(("revoke", list(partitions)))

    def assign(self, *partitions: TopicPartition) -> None:
        self._changes.append(("assign", list(partitions)))

    async def poll(self, max_wait_s: float = 0.5, max_records: int = 2000) -> Polled:
        assert not self._polling, "two polls at once"
        assert not self.closed, "poll after close"
        self._polling = True
        self.polls += 1
        try:
            if self.poll_errors:
                self.poll_errors -= 1
                raise Retryable("the disk does not answer")
            while self._changes:
                await self._rebalance(*self._changes.pop(0))
            polled = self._take(max_records)
            if not polled:
                await asyncio.sleep(min(max_wait_s, 0.01))
            return polled
        finally:
            self._polling = False

    async def _rebalance(self, change: str, partitions: list[TopicPartition]) -> None:
        if change == "revoke":
            await self.on_revoke(partitions)
            for each in partitions:
                del self.positions[each]
                self.paused.discard(each)
        else:
            self.positions |= {each: self.committed.get(each, 0) for each in partitions}
            await self.on_assign(partitions)

    def _take(self, max_records: int) -> dict[TopicPartition, list[Record]]:
        polled: dict[TopicPartition, list[Record]] = {}
        for each, position in self.positions.items():
            records = self.logs[each][position : position + max_records]
            if records and each in self.paused:
                if not self.leaks:
                    continue
                self.leaks -= 1  # fetched before the pause, returned after it
            if records:
                polled[each] = records
                self.positions[each] = records[-1].offset + 1
        return polled

    async def commit(self, offsets: Mapping[TopicPartition, int]) -> None:
        assert set(offsets) <= set(self.positions), f"commit for {offsets}, assigned are {self.positions}"
        if self.commit_hangs:
            self.commit_hangs = False
            await asyncio.Event().wait()
        if self.commit_errors:
            self.commit_errors -= 1
            raise Retryable("the coordinator is moving")
        self.committed |= offsets

    def seek(self, partition: TopicPartition, offset: int) -> None:
        self.positions[partition] = offset

    def pause(self, partition: TopicPartition) -> None:
        assert partition in self.positions, f"{partition} paused, but not assigned"
        self.paused.add(partition)

    def resume(self, partition: TopicPartition) -> None:
        assert partition in self.positions, f"{partition} resumed, but not assigned"
        self.paused.discard(partition)

    async def lag(self) -> Mapping[TopicPartition, int]:
        return {each: len(self.logs[each]) - position for each, position in self.positions.items()}

    async def close(self) -> None:
        self.closed = True


class FakeBroker:
    """Of the broker seam, what the delivery uses."""

    def __init__(self, member: FakeMember) -> None:
        self._member = member
        self.appended: list[Outgoing] = []
        self.append_errors = 0

    async def append(self, records: Sequence[Outgoing]) -> list[int]:
        if self.append_errors:
            self.append_errors -= 1
            raise Retryable("no leader")
        self.appended += records
        return list(range(len(records)))

    async def member(
        self,
        group: str,
        topics: Sequence[str],
        *,
        on_assign: AssignmentCallback,
        on_revoke: AssignmentCallback,
    ) -> Member:
        self._member.on_assign, self._member.on_revoke = on_assign, on_revoke
        return self._member


Script = Callable[[Sequence[Item]], Awaitable[list[Refused]]]


async def accept(_: Sequence[Item]) -> list[Refused]:
    return []


class ScriptedSink:
    """Does what its script says, write by write, and accepts when the script is over."""

    def __init__(self, *script: Script | Exception) -> None:
        self._script = list(script)
        self.calls: list[list[str]] = []
        self.written: list[str] = []
        self.closed = 0

    async def write(self, records: Sequence[Item]) -> list[Refused]:
        self.calls.append(values(records))
        step = self._script.pop(0) if self._script else accept
        if isinstance(step, Exception):
            raise step
        refused = await step(records)
        gone = {each.item for each in refused}
        self.written += values(each for each in records if each not in gone)
        return refused

    async def close(self) -> None:
        self.closed += 1


def values(items: Iterable[Item]) -> list[str]:
    return [(each.record.value or b"").decode() for each in items]


class Run:
    """A delivery under way."""

    def __init__(self, member: FakeMember, sink: ScriptedSink, broker: FakeBroker, task: asyncio.Task[None]):
        self.member, self.sink, self.broker, self.task = member, sink, broker, task


@asynccontextmanager
async def delivering(
    sink: ScriptedSink, *, group: str = "sink-test", backoff: Backoff = QUICK, **lengths: Any
) -> AsyncIterator[Run]:
    """Run it beside the block; afterwards stop it, which must take at most two seconds."""
    member = lengths.pop("member", None) or FakeMember({P0: 3, P1: 2})
    broker = lengths.pop("broker", None) or FakeBroker(member)
    stop = asyncio.Event()
    task = asyncio.create_task(
        deliver(cast(Broker, broker), group, ["windows"], sink, stop=stop, backoff=backoff, grace_s=0.2)
    )
    try:
        yield Run(member, sink, broker, task)
    finally:
        stop.set()
        async with asyncio.timeout(2):
            await task


ALL = {P0: 3, P1: 2}


async def test_everything_is_written_in_order_and_then_committed() -> None:
    async with delivering(ScriptedSink()) as run:
        await eventually(lambda: run.member.committed == ALL)
    assert run.sink.written == ["0/0", "0/1", "0/2", "1/0", "1/1"]


async def test_nothing_is_committed_before_the_destination_has_acknowledged() -> None:
    acknowledge = asyncio.Event()

    async def wait(_: Sequence[Item]) -> list[Refused]:
        await acknowledge.wait()
        return []

    async with delivering(ScriptedSink(wait)) as run:
        await eventually(lambda: run.member.polls > 5)
        assert run.member.committed == {}
        acknowledge.set()
        await eventually(lambda: run.member.committed == ALL)


async def test_a_destination_that_is_away_is_tried_until_it_is_back() -> None:
    away = [Retryable("connection refused")] * 5
    async with delivering(ScriptedSink(*away), group="sink-away") as run:
        await eventually(lambda: run.member.committed == ALL)
    assert run.sink.calls == [["0/0", "0/1", "0/2", "1/0", "1/1"]] * 6
    assert REGISTRY.get_sample_value("streammon_sink_retries_total", {"group": "sink-away"}) == 5


async def test_polling_goes_on_with_everything_paused_while_a_write_takes_long() -> None:
    done = asyncio.Event()

    async def slow(_: Sequence[Item]) -> list[Refused]:
        await done.wait()
        return []

    async with delivering(ScriptedSink(slow)) as run:
        await eventually(lambda: run.member.polls > 5)
        assert run.member.paused == {P0, P1}
        run.member.logs[P0].append(StoredRecord(0, 3, b"0/3"))
        done.set()
        await eventually(lambda: run.member.committed == {P0: 4, P1: 2})
        assert run.member.paused == set()


async def test_a_record_that_comes_in_spite_of_the_pause_is_put_back() -> None:
    done = asyncio.Event()

    async def slow(_: Sequence[Item]) -> list[Refused]:
        await done.wait()
        return []

    async with delivering(ScriptedSink(slow)) as run:
        await eventually(lambda: run.member.polls > 5)
        run.member.leaks = 2
        run.member.logs[P0].append(StoredRecord(0, 3, b"0/3"))
        await eventually(lambda: not run.member.leaks)
        done.set()
        await eventually(lambda: run.member.committed == {P0: 4, P1: 2})
    assert run.sink.written.count("0/3") == 1


async def test_refused_records_go_to_the_dead_letter_and_the_rest_is_kept() -> None:
    async def refuse_second(records: Sequence[Item]) -> list[Refused]:
        return [Refused(records[1], "field [x] is not a number")]

    async with delivering(ScriptedSink(refuse_second), group="sink-refused") as run:
        await eventually(lambda: run.member.committed == ALL)
    (letter,) = run.broker.appended
    assert (letter.topic, letter.key, letter.value) == ("deadletter", b"windows", b"0/1")
    assert dict(letter.headers) == {
        "streammon-schema": b"1",
        "reason": b"refused",
        "topic": b"windows",
        "partition": b"0",
        "offset": b"1",
        "error": b"field [x] is not a number",
    }
    assert run.sink.written == ["0/0", "0/2", "1/0", "1/1"]
    labels = {"group": "sink-refused"}
    assert REGISTRY.get_sample_value("streammon_sink_delivered_records_total", labels) == 4
    assert REGISTRY.get_sample_value("streammon_sink_refused_records_total", labels | {"reason": "refused"}) == 1


async def test_offsets_wait_for_the_dead_letter_too() -> None:
    async def refuse_all(records: Sequence[Item]) -> list[Refused]:
        return [Refused(each, "no") for each in records]

    member = FakeMember(ALL)
    broker = FakeBroker(member)
    broker.append_errors = 3
    async with delivering(ScriptedSink(refuse_all), member=member, broker=broker) as run:
        await eventually(lambda: run.member.committed == ALL)
    assert broker.append_errors == 0
    assert len(broker.appended) == 5


async def test_only_what_is_left_of_a_partly_written_batch_is_tried_again() -> None:
    async def partly(records: Sequence[Item]) -> list[Refused]:
        raise PartlyWritten("busy", left=records[3:], refused=[Refused(records[0], "no")])

    async with delivering(ScriptedSink(partly)) as run:
        await eventually(lambda: run.member.committed == ALL)
    assert run.sink.calls[1:] == [["1/0", "1/1"]]
    assert [letter.value for letter in run.broker.appended] == [b"0/0"]


async def test_a_destination_that_says_when_to_come_back_is_obeyed() -> None:
    loop = asyncio.get_running_loop()
    times: list[float] = []

    async def note(_: Sequence[Item]) -> list[Refused]:
        times.append(loop.time())
        return []

    busy = Backpressure("full", retry_after_s=0.2)
    began = loop.time()
    async with delivering(ScriptedSink(busy, note)) as run:
        await eventually(lambda: run.member.committed == ALL)
    assert times[0] - began >= 0.2


async def test_a_failed_commit_is_made_up_for() -> None:
    member = FakeMember(ALL)
    member.commit_errors = 2
    async with delivering(ScriptedSink(), member=member) as run:
        await eventually(lambda: run.member.committed == ALL)
    assert len(run.sink.calls) == 1


async def test_a_commit_that_is_never_answered_is_made_up_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streammon_sinks.delivery.COMMIT_S", 0.05)
    member = FakeMember(ALL)
    member.commit_hangs = True
    async with delivering(ScriptedSink(), member=member) as run:
        await eventually(lambda: run.member.committed == ALL)
    assert len(run.sink.calls) == 1


async def test_a_log_that_cannot_be_read_for_a_moment_ends_no_delivery() -> None:
    member = FakeMember(ALL)
    member.poll_errors = 2
    async with delivering(ScriptedSink(), member=member) as run:
        await eventually(lambda: run.member.committed == ALL)


async def test_a_partition_revoked_during_a_write_is_left_to_its_next_owner() -> None:
    done = asyncio.Event()

    async def refuse_after(records: Sequence[Item]) -> list[Refused]:
        await done.wait()
        return [Refused(each, "no") for each in records]

    async with delivering(ScriptedSink(refuse_after)) as run:
        await eventually(lambda: run.member.polls > 3)
        run.member.revoke(P1)
        await eventually(lambda: P1 not in run.member.positions)
        done.set()
        await eventually(lambda: run.member.committed == {P0: 3})
    assert [letter.value for letter in run.broker.appended] == [b"0/0", b"0/1", b"0/2"]


async def test_a_partition_that_comes_back_during_a_write_is_written_again_from_its_commit() -> None:
    done = asyncio.Event()

    async def slow(_: Sequence[Item]) -> list[Refused]:
        await done.wait()
        return []

    async with delivering(ScriptedSink(slow)) as run:
        await eventually(lambda: run.member.polls > 3)
        run.member.revoke(P1)
        run.member.assign(P1)
        await eventually(lambda: P1 in run.member.paused and run.member.positions[P1] == 0)
        done.set()
        await eventually(lambda: run.member.committed == ALL)
    assert run.sink.calls == [["0/0", "0/1", "0/2", "1/0", "1/1"], ["1/0", "1/1"]]


async def test_stop_does_not_wait_for_the_next_try() -> None:
    async with delivering(ScriptedSink(Retryable("away")), backoff=SLOW) as run:
        await eventually(lambda: run.sink.calls)
    assert run.member.committed == {}
    assert run.member.closed


async def test_stop_abandons_a_write_that_hangs_and_commits_nothing_of_it() -> None:
    cancelled = asyncio.Event()

    async def hang(_: Sequence[Item]) -> list[Refused]:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        return []

    async with delivering(ScriptedSink(hang)) as run:
        await eventually(lambda: run.sink.calls)
    assert cancelled.is_set()
    assert run.member.committed == {}


async def test_stop_lets_a_write_finish_and_commits_it() -> None:
    started = asyncio.Event()

    async def finish(_: Sequence[Item]) -> list[Refused]:
        started.set()
        await asyncio.sleep(0.1)
        return []

    async with delivering(ScriptedSink(finish)) as run:
        await started.wait()
    assert run.member.committed == ALL


async def test_a_fatal_error_ends_the_delivery_without_a_commit() -> None:
    member = FakeMember(ALL)
    sink = ScriptedSink(Fatal("damaged"))
    broker = cast(Broker, FakeBroker(member))
    delivery = deliver(broker, "sink-test", ["windows"], sink, stop=asyncio.Event())
    with pytest.raises(Fatal, match="damaged"):
        async with asyncio.timeout(5):
            await delivery
    assert (member.committed, member.closed, sink.closed) == ({}, True, 1)


async def test_lag_is_shown_while_the_partition_is_ours() -> None:
    def lag() -> float | None:
        labels = {"group": "sink-lag", "topic": "windows", "partition": "0"}
        return REGISTRY.get_sample_value("streammon_consumer_lag_records", labels)

    async with delivering(ScriptedSink(), group="sink-lag"):
        await eventually(lambda: lag() == 0)
    assert lag() is None


def test_pauses_double_up_to_the_longest_and_keep_half_to_chance() -> None:
    pauses = Backoff(first_s=1, longest_s=5).pauses()
    for expected in (1, 2, 4, 5, 5):
        assert expected / 2 <= next(pauses) <= expected
    first = {next(Backoff().pauses()) for _ in range(10)}
    assert len(first) > 1, "all members would come back at the same moment"
