"""The host agent: what it measures against /proc, and what it does while the broker is away."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import psutil
import pytest
from structlog.testing import capture_logs

from streammon.broker import Broker, Outgoing, connect
from streammon.broker.embedded import EmbeddedBroker
from streammon.config import Settings, load
from streammon.errors import ConfigError, Retryable
from streammon.events import EventType
from streammon.servers import Server
from streammon.topics import topic_specs
from streammon.wire import Batch, decode
from streammon_agents import host_sources
from streammon_agents.host import Buffer, Probe, run_host_agent, until_beat_s
from streammon_agents.host_sources import Measured, Source, sources
from streammon_agents.packing import Packer
from tests.support import eventually, wait_until

on_linux = pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="compares with Linux's /proc")


def found(events: list[dict[str, Any]], entity: str, id_: str) -> dict[str, float]:
    [event] = [event for event in events if (event["entity"], event["id"]) == (entity, id_)]
    return cast(dict[str, float], event["metrics"])


# --- against /proc ----------------------------------------------------------------------------------------


def meminfo(name: str) -> int:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":"))


def cpu_ticks() -> tuple[float, float]:
    """Idle (waiting included) and all time of all CPUs."""
    ticks = list(map(float, Path("/proc/stat").read_text().splitlines()[0].split()[1:9]))
    return ticks[3] + ticks[4], sum(ticks)


def received_bytes(interface: str) -> int:
    lines = Path("/proc/net/dev").read_text().splitlines()
    return next(int(line.split(":")[1].split()[0]) for line in lines if line.strip().startswith(interface + ":"))


@pytest.fixture
def probe() -> Probe:
    return Probe("here", sources("here"))


@on_linux
def test_sizes_load_and_uptime_equal_proc(probe: Probe) -> None:
    events = probe.measure()
    ram, root, host = (found(events, *which) for which in (("memory", "ram"), ("filesystem", "/"), ("host", "here")))
    assert ram["total_bytes"] == meminfo("MemTotal")
    assert ram["available_bytes"] == pytest.approx(meminfo("MemAvailable"), rel=0.05)
    assert ram["utilization"] == pytest.approx(1 - meminfo("MemAvailable") / meminfo("MemTotal"), abs=0.05)
    vfs = os.statvfs("/")
    assert root["total_bytes"] == vfs.f_blocks * vfs.f_frsize
    assert root["free_bytes"] == pytest.approx(vfs.f_bavail * vfs.f_frsize, rel=0.05)
    assert 0 <= root["utilization"] <= 1
    loads = Path("/proc/loadavg").read_text().split()
    assert host["load_1m"] == pytest.approx(float(loads[0]), abs=1)
    assert host["load_15m"] == pytest.approx(float(loads[2]), abs=0.5)
    assert host["uptime_s"] == pytest.approx(float(Path("/proc/uptime").read_text().split()[0]), abs=2)
    [labels] = [event["labels"] for event in events if "labels" in event]
    assert labels == {"boot_id": Path("/proc/sys/kernel/random/boot_id").read_text().strip()}


@on_linux
def test_cpu_utilization_equals_proc_while_busy(probe: Probe) -> None:
    probe.measure()
    idle, all_ = cpu_ticks()
    busy_until = time.monotonic() + 0.5
    wait_until(lambda: sum(range(10_000)) and time.monotonic() > busy_until)
    cpu = found(probe.measure(), "cpu", "total")
    idle_now, all_now = cpu_ticks()
    assert cpu["utilization"] == pytest.approx(1 - (idle_now - idle) / (all_now - all_), abs=0.1)
    assert sum(value for name, value in cpu.items() if name.endswith("_fraction")) == pytest.approx(1)


@on_linux
def test_network_rate_equals_proc(probe: Probe) -> None:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
    ):
        receiver.bind(("127.0.0.1", 0))
        before = received_bytes("lo")
        probe.measure()
        started = time.monotonic()
        for _ in range(200):
            sender.sendto(bytes(5000), receiver.getsockname())
        metrics = found(probe.measure(), "network", "lo")
        elapsed, received = time.monotonic() - started, received_bytes("lo") - before
    assert received > 1_000_000
    assert 1_000_000 < metrics["receive_bytes_per_s"] * elapsed <= received * 1.5
    assert metrics["transmit_bytes_per_s"] == metrics["receive_bytes_per_s"]


@on_linux
def test_disk_writes_are_seen(probe: Probe, tmp_path: Path) -> None:
    probe.measure()
    if not any(event["entity"] == "disk" for event in probe.measure()):
        pytest.skip("no disk of this machine has ever been used")
    with (tmp_path / "file").open("wb") as file:
        file.write(os.urandom(4_000_000))
        os.fsync(file.fileno())
    events = probe.measure()
    written = [event["metrics"]["write_bytes_per_s"] for event in events if event["entity"] == "disk"]
    assert sum(written) > 0


def test_every_metric_of_this_machine_is_finite_and_not_negative(probe: Probe) -> None:
    probe.measure()
    for event in probe.measure():
        for name, value in event["metrics"].items():
            assert 0 <= value < float("inf"), (event["entity"], event["id"], name)
            if name.endswith(("utilization", "_fraction")):
                assert value <= 1


# --- two readings -----------------------------------------------------------------------------------------


def disk(**changed: float) -> dict[str, Any]:
    usual = {"read_bytes": 100, "write_bytes": 10, "read_count": 5, "write_count": 1, "busy_time": 100}
    return {"sda": SimpleNamespace(**{**usual, **changed})}


def one(measured: Iterator[Measured]) -> Measured:
    [only] = measured
    return only


def test_rate_is_the_increase_over_the_time() -> None:
    now = disk(read_bytes=300, write_count=2, busy_time=600)
    assert one(host_sources.disks(now, disk(), 2.0)).metrics == {
        "read_bytes_per_s": 100,
        "write_bytes_per_s": 0,
        "read_operations_per_s": 0,
        "write_operations_per_s": 0.5,
        "io_time_fraction": 0.25,
    }


def test_first_reading_has_no_rates() -> None:
    assert list(host_sources.disks(disk(), None, 0.0)) == []
    assert list(host_sources.networks(psutil.net_io_counters(pernic=True), None, 0.0)) == []
    assert list(host_sources.cpu(psutil.cpu_times(), None, 0.0)) == []


def test_counter_that_was_reset_is_absent_and_the_others_stay() -> None:
    metrics = one(host_sources.disks(disk(read_bytes=3, write_bytes=20), disk(), 1.0)).metrics
    assert "read_bytes_per_s" not in metrics
    assert metrics["write_bytes_per_s"] == 10


def test_counter_the_system_lacks_is_absent() -> None:
    lacking = SimpleNamespace(read_bytes=1, write_bytes=1, read_count=1, write_count=1)
    metrics = one(host_sources.disks({"sda": lacking}, {"sda": lacking}, 1.0)).metrics
    assert "io_time_fraction" not in metrics
    assert metrics["read_bytes_per_s"] == 0


def test_disk_never_used_and_disk_just_plugged_in_are_left_out() -> None:
    idle = disk(read_count=0, write_count=0)
    assert list(host_sources.disks(idle, idle, 1.0)) == []
    assert list(host_sources.disks(disk(), {}, 1.0)) == []


def test_busy_fraction_stays_below_one_when_the_clocks_disagree() -> None:
    assert one(host_sources.disks(disk(busy_time=1103), disk(), 1.0)).metrics["io_time_fraction"] == 1


def test_cpu_mode_that_ran_backwards_is_absent() -> None:
    before = psutil.cpu_times()._replace(user=10.0, idle=10.0, iowait=5.0)
    now = before._replace(user=11.0, idle=13.0, iowait=4.0)
    metrics = one(host_sources.cpu(now, before, 1.0)).metrics
    assert (metrics["user_fraction"], metrics["idle_fraction"], metrics["utilization"]) == (0.25, 0.75, 0.25)
    assert "iowait_fraction" not in metrics


def test_time_of_guests_is_not_counted_twice() -> None:
    before = psutil.cpu_times()
    now = before._replace(user=before.user + 1, guest=before.guest + 1, idle=before.idle + 1)
    assert one(host_sources.cpu(now, before, 1.0)).metrics["user_fraction"] == pytest.approx(0.5)


def test_filesystem_counts_once_and_root_always() -> None:
    def mounted(device: str, mountpoint: str, fstype: str = "ext4") -> SimpleNamespace:
        return SimpleNamespace(device=device, mountpoint=mountpoint, fstype=fstype)

    partitions = [
        mounted("/dev/sdb", "/data/bind/deep"),
        mounted("/dev/sdb", "/data"),
        mounted("/dev/loop1", "/snap/core", "squashfs"),
    ]
    assert host_sources.mountpoints(partitions) == ["/", "/data"]
    assert host_sources.mountpoints([*partitions, mounted("/dev/sda", "/")]) == ["/", "/data"]


def test_host_without_swap_has_no_swap() -> None:
    nothing = SimpleNamespace(total=0, used=0, free=0)
    reading = host_sources.MemoryReading(psutil.virtual_memory(), nothing)
    assert [measured.id for measured in host_sources.memory(reading, None, 0.0)] == ["ram"]


def test_failing_source_is_left_out_alone_and_logged_once() -> None:
    def broken() -> Any:
        raise PermissionError("no")

    works = Source("works", lambda: 1, lambda now, before, elapsed: [Measured("host", "h", {"x": now})])
    probe = Probe("h", [Source("broken", broken, works.measure), works], clock=lambda: 5.0)
    with capture_logs() as logs:
        events = [probe.measure() for _ in range(3)]
    expected = {"time_unix_s": 5.0, "host": "h", "entity": "host", "id": "h", "metrics": {"x": 1}}
    assert events == [[expected]] * 3
    assert [log["name"] for log in logs] == ["broken"]


def test_rate_after_a_failure_is_over_the_whole_gap() -> None:
    readings: list[Any] = [disk(), OSError("no"), disk(read_bytes=400)]
    moments = iter([10.0, 13.0])

    def read() -> Any:
        reading = readings.pop(0)
        if isinstance(reading, OSError):
            raise reading
        return reading

    probe = Probe("h", [Source("disks", read, host_sources.disks)], monotonic=lambda: next(moments))
    probe.measure()
    probe.measure()
    assert found(probe.measure(), "disk", "sda")["read_bytes_per_s"] == 100


def test_beats_lie_on_a_grid_and_skipped_ones_are_left_out() -> None:
    assert until_beat_s(0.25, 1.0) == 0.75
    assert until_beat_s(3.5, 1.0) == 0.5
    assert until_beat_s(1.0, 1.0) == 1.0


# --- while the broker is away -----------------------------------------------------------------------------


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


def fast(**agent: Any) -> Settings:
    return load(agent={"interval_s": 0.02, "host": "here", **agent})


@contextlib.asynccontextmanager
async def agent(broker: object, settings: Settings) -> AsyncIterator[None]:
    stop = asyncio.Event()
    task = asyncio.create_task(run_host_agent(cast(Broker, broker), settings, stop=stop))
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
    assert {batch.identity[:1] for batch in broker.batches if batch.identity} == {("host@here",)}
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
    times = [batch.rows.event(0)["time_unix_s"] for batch in broker.batches]
    assert broker.numbers == list(range(len(broker.numbers)))
    assert times == sorted(times)
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
        await eventually(lambda: len(broker.appended) >= 15)
    times = [batch.rows.event(0)["time_unix_s"] for batch in broker.batches]
    assert times[14] - times[0] < 1.2


async def test_batch_whose_answer_was_lost_is_sent_again_with_the_same_bytes() -> None:
    broker = FakeBroker()
    broker.away = broker.arrives = True
    async with agent(broker, fast()):
        await eventually(lambda: broker.attempts >= 3)
        broker.away = False
    values = [record.value for record in broker.appended]
    assert values[0] == values[1] == values[2]
    assert sorted(set(broker.numbers)) == list(range(len(set(broker.numbers))))


async def test_full_buffer_drops_the_oldest_and_reports_every_event() -> None:
    broker, buffer = FakeBroker(), Buffer(3, Packer("host@h"))

    def put(number: int) -> None:
        buffer.put([{"time_unix_s": float(number), "host": "h", "entity": "host", "id": "h", "metrics": {}}] * 2)

    for number in range(10):
        put(number)
    assert buffer.waiting == 3
    delivery = asyncio.create_task(buffer.deliver(cast(Broker, broker)))
    await eventually(lambda: len(broker.appended) == 3)
    put(10)
    buffer.close()
    await asyncio.wait_for(delivery, 5)
    assert broker.numbers == [0, 1, 2, 3], (
        "what is dropped leaves no gap: the events are counted as dropped, not missing"
    )
    sent = sum(len(batch.rows) for batch in broker.batches)
    assert sent + sum(batch.dropped for batch in broker.batches) == 11 * 2


async def test_batches_in_flight_are_not_dropped() -> None:
    broker, buffer = FakeBroker(), Buffer(2, Packer("host@h"))
    broker.away = True
    delivery = asyncio.create_task(buffer.deliver(cast(Broker, broker)))
    for number in range(5):
        buffer.put([{"time_unix_s": float(number), "host": "h", "entity": "host", "id": "h", "metrics": {}}])
        await eventually(lambda: broker.attempts)
    broker.away = False
    buffer.close()
    await asyncio.wait_for(delivery, 5)
    assert broker.numbers == [0, 1]


async def test_stop_gives_up_on_a_broker_that_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streammon_agents.host.FLUSH_S", 0.2)
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
    task = asyncio.create_task(run_host_agent(cast(Broker, broker), fast(), stop=stop))
    await asyncio.sleep(0.2)
    stop.set()
    await asyncio.sleep(0.1)
    assert not task.done()
    released.set()
    await asyncio.wait_for(task, 5)
    assert len(broker.appended) >= 3


async def test_missing_topic_ends_the_agent_with_its_name(tmp_path: Path) -> None:
    settings = load(data_dir=tmp_path, agent={"interval_s": 0.02})
    broker = await EmbeddedBroker.open(settings)
    with pytest.raises(ConfigError, match="resources"):
        await asyncio.wait_for(run_host_agent(broker, settings, stop=asyncio.Event()), 10)
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


@pytest.mark.kafka
async def test_frozen_kafka_is_caught_up_in_order_with_nothing_missing(kafka: Server, unique: str) -> None:
    settings = load(
        bootstrap=kafka.address,
        topics={"prefix": f"{unique}."},
        kafka={"delivery_timeout_s": 1.0},
        agent={"interval_s": 0.05, "host": "here"},
    )
    broker = await connect(settings)
    await broker.create_topics(topic_specs(partitions=1))
    reader = await broker.reader(["resources"])
    found: dict[int, float] = {}

    async def read() -> int:
        for records in (await reader.poll(0.1)).values():
            for record in records:
                [batch] = decode(EventType.RESOURCE, record.value or b"")
                assert batch.identity is not None
                found.setdefault(batch.identity.seq, batch.rows.event(0)["time_unix_s"])  # may come twice
        return len(found)

    async def has_read(count: int) -> None:
        await eventually(partial(_reached, read, count), 30, f"{count} batches")

    async with agent(broker, settings):
        await has_read(5)
        os.kill(kafka.pid, signal.SIGSTOP)
        try:
            frozen = time.time()
            await asyncio.sleep(3)  # longer than an append is tried
        finally:
            os.kill(kafka.pid, signal.SIGCONT)
        thawed = time.time()
        await has_read(len(found) + 70)
    during = [moment for moment in found.values() if frozen < moment < thawed]
    assert len(during) > 40
    assert list(found) == list(range(len(found)))
    await reader.close()
    await broker.close()


async def _reached(read: Callable[[], Awaitable[int]], count: int) -> bool:
    return await read() >= count
