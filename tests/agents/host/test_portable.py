"""The host where there is no /proc: psutil's readings, and what is made of two of them."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from streammon_agents.host import portable as host_sources
from streammon_agents.source import Beat, Measured


def test_every_metric_of_this_machine_is_finite_and_not_negative() -> None:
    beat = Beat("here", host_sources.probes("here"))
    beat.measure()
    events = beat.measure()
    assert {event["entity"] for event in events} >= {"host", "memory", "filesystem"}
    for event in events:
        for name, value in event["metrics"].items():
            assert 0 <= value < float("inf"), (event["entity"], event["id"], name)
            if name.endswith(("utilization", "_fraction")):
                assert value <= 1


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
