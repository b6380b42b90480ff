"""The host: what is measured, against /proc."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import psutil
import pytest

from streammon_agents import host as host_sources
from streammon_agents.host import probes
from streammon_agents.source import Beat, Measured
from tests.support import wait_until

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
def probe() -> Beat:
    return Beat("here", probes("here"))


@on_linux
def test_sizes_load_and_uptime_equal_proc(probe: Beat) -> None:
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
def test_cpu_utilization_equals_proc_while_busy(probe: Beat) -> None:
    probe.measure()
    idle, all_ = cpu_ticks()
    busy_until = time.monotonic() + 0.5
    wait_until(lambda: sum(range(10_000)) and time.monotonic() > busy_until)
    cpu = found(probe.measure(), "cpu", "total")
    idle_now, all_now = cpu_ticks()
    assert cpu["utilization"] == pytest.approx(1 - (idle_now - idle) / (all_now - all_), abs=0.1)
    assert sum(value for name, value in cpu.items() if name.endswith("_fraction")) == pytest.approx(1)


@on_linux
def test_network_rate_equals_proc(probe: Beat) -> None:
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
def test_disk_writes_are_seen(probe: Beat, tmp_path: Path) -> None:
    probe.measure()
    if not any(event["entity"] == "disk" for event in probe.measure()):
        pytest.skip("no disk of this machine has ever been used")
    with (tmp_path / "file").open("wb") as file:
        file.write(os.urandom(4_000_000))
        os.fsync(file.fileno())
    events = probe.measure()
    written = [event["metrics"]["write_bytes_per_s"] for event in events if event["entity"] == "disk"]
    assert sum(written) > 0


def test_every_metric_of_this_machine_is_finite_and_not_negative(probe: Beat) -> None:
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
