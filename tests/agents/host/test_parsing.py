"""What is made of the kernel's files: exact values, two readings, odd files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streammon.config import load
from streammon.events import EventType
from streammon_agents import pressure
from streammon_agents.containers.labels import no_labels
from streammon_agents.host import cpu, disks, filesystems, memory, network, processes, system, temperatures
from streammon_agents.host.linux import Roots, check, network_directory, probes_of
from streammon_agents.host.processes import Processes, Stat
from streammon_agents.kernel_files import Budget, File, added, number_of
from streammon_agents.source import Beat, Measured
from tests.outlets import Kept

STAT = b"""cpu  1000 10 500 8000 100 0 20 30 400 5
cpu0 500 5 250 4000 50 0 10 15 200 0
cpu1 500 5 250 4000 50 0 10 15 200 5
intr 5000 1 2 3
ctxt 9000
btime 1666933600
processes 700
procs_running 3
procs_blocked 1
"""
DISKSTATS = b"""   8       0 sda 100 5 2000 400 50 3 800 600 2 700 1000 7 0 56 21 4 8
   8       1 sda1 99 5 1990 399 50 3 800 600 0 700 999 7 0 56 21
   7       0 loop0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0
 104       0 cciss/c0d0 1 0 8 1 0 0 0 0 0 1 1
"""
DEV = b"""Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier
  eth0: 1296     17    1    2    0     0          0         0     4000      40    3    4    0     0       0          0
veth01:100 1 0 0 0 0 0 0 100 1 0 0 0 0 0 0
"""
SNMP = b"""Ip: Forwarding DefaultTTL InReceives
Ip: 1 64 57740232
Tcp: RtoAlgorithm RtoMin MaxConn ActiveOpens PassiveOpens AttemptFails EstabResets CurrEstab InSegs OutSegs RetransSegs
Tcp: 1 200 -1 3556 230 5 161 7 4834000 4743000 28
Udp: InDatagrams NoPorts InErrors OutDatagrams RcvbufErrors SndbufErrors
Udp: 88542 120 5 53028 9 8
"""
NETSTAT = b"""TcpExt: SyncookiesSent ListenOverflows ListenDrops TCPTimeouts
TcpExt: 0 4 6 115
"""
SOCKSTAT = b"sockets: used 1602\nTCP: inuse 35 orphan 1 tw 4 alloc 59 mem 22\nUDP: inuse 12 mem 62\n"
MEMINFO = b"""MemTotal:        1000 kB
MemFree:          200 kB
MemAvailable:     600 kB
Buffers:           50 kB
Cached:           300 kB
Dirty:              4 kB
SReclaimable:      50 kB
HugePages_Total:    0
SwapTotal:        500 kB
SwapFree:         400 kB
"""
VMSTAT = b"nr_free_pages 5\npswpin 10\npswpout 20\npgfault 1000\npgmajfault 3\noom_kill 2\n"


def by_id(measured: Iterator[Measured]) -> dict[str, Measured]:
    return {one.id: one for one in measured}


# --- exact values -----------------------------------------------------------------------------------------


def test_cpu_time_of_guests_counts_once_and_modes_are_fractions() -> None:
    now = STAT.replace(b"cpu  1000 10 500 8000 100", b"cpu  1030 10 520 8040 110").replace(b"ctxt 9000", b"ctxt 9500")
    measured = by_id(cpu.measure(cpu.parse(now), cpu.parse(STAT), 2.0, per_core=True))
    assert measured["total"].metrics == {
        "user_fraction": 0.3, "nice_fraction": 0.0, "system_fraction": 0.2, "idle_fraction": 0.4,
        "iowait_fraction": 0.1, "irq_fraction": 0.0, "softirq_fraction": 0.0, "steal_fraction": 0.0, "utilization": 0.5,
        "context_switches_per_s": 250, "interrupts_per_s": 0, "forks_per_s": 0,
        "running_processes": 3, "blocked_processes": 1, "cores": 2,
    }  # fmt: skip
    assert set(measured) == {"total"}, "cores that did nothing at all tell nothing"


def test_mode_that_ran_backwards_is_absent() -> None:
    now = STAT.replace(b"cpu  1000 10 500 8000 100", b"cpu  1010 10 500 8030 99")
    metrics = by_id(cpu.measure(cpu.parse(now), cpu.parse(STAT), 1.0))["total"].metrics
    assert (metrics["user_fraction"], metrics["idle_fraction"], metrics["utilization"]) == (0.25, 0.75, 0.25)
    assert "iowait_fraction" not in metrics


def is_whole(name: str) -> bool:
    return name != "sda1"


def test_disks_have_rates_latencies_and_queues() -> None:
    now = DISKSTATS.replace(
        b"sda 100 5 2000 400 50 3 800 600 2 700 1000 7 0 56 21 4 8",
        b"sda 104 5 2008 412 52 3 816 610 1 1700 3000 7 0 56 21 6 18",
    )
    measured = by_id(disks.measure(disks.parse(now, is_whole), disks.parse(DISKSTATS, is_whole), 2.0))
    assert measured["sda"].metrics == {
        "read_bytes_per_s": 2048, "write_bytes_per_s": 4096, "discard_bytes_per_s": 0,
        "read_operations_per_s": 2, "write_operations_per_s": 1, "discard_operations_per_s": 0,
        "flush_operations_per_s": 1, "read_latency_s": 0.003, "write_latency_s": 0.005, "flush_latency_s": 0.005,
        "io_time_fraction": 0.5, "queue_length": 1.0, "in_flight": 1,
    }  # fmt: skip
    assert set(measured) == {"sda", "cciss/c0d0"}, "no partition, and none that was never used"
    assert not {name for name in measured["cciss/c0d0"].metrics if "discard" in name or "flush" in name}


def test_disk_that_was_reset_or_has_just_come_has_no_rates() -> None:
    before, now = (disks.parse(data, is_whole) for data in (DISKSTATS, DISKSTATS.replace(b"sda 100", b"sda 3")))
    metrics = by_id(disks.measure(now, before, 1.0))["sda"].metrics
    assert "read_operations_per_s" not in metrics
    assert metrics["write_operations_per_s"] == 0
    assert not by_id(disks.measure(now, {}, 1.0))
    assert not by_id(disks.measure(now, None, 0.0))


def test_busy_fraction_stays_below_one_when_the_clocks_disagree() -> None:
    now = DISKSTATS.replace(b"2 700 1000", b"2 1703 1000")
    measured = by_id(disks.measure(disks.parse(now, is_whole), disks.parse(DISKSTATS, is_whole), 1.0))
    assert measured["sda"].metrics["io_time_fraction"] == 1


def read_network(dev: bytes, snmp: bytes, netstat: bytes) -> network.Reading:
    return network.Reading(
        network.parse_interfaces(dev, lambda name: not name.startswith("veth")),
        network.parse_protocols(snmp) | network.parse_protocols(netstat),
        network.parse_sockets(SOCKSTAT),
    )


def test_network_has_interfaces_and_protocols() -> None:
    before = read_network(DEV, SNMP, NETSTAT)
    now = read_network(
        DEV.replace(b"1296     17    1    2", b"3296     21    2    4").replace(
            b"4000      40    3    4", b"4200      44    4    8"
        ),
        SNMP.replace(b"4743000 28", b"4743010 32").replace(b"161 7", b"163 9").replace(b"9 8\n", b"11 8\n"),
        NETSTAT.replace(b"4 6 115", b"5 8 115"),
    )
    measured = by_id(network.measure(now, before, 2.0))
    assert measured["eth0"].metrics == {
        "receive_bytes_per_s": 1000, "receive_packets_per_s": 2, "receive_errors_per_s": 0.5, "receive_drops_per_s": 1,
        "transmit_bytes_per_s": 100, "transmit_packets_per_s": 2,
        "transmit_errors_per_s": 0.5, "transmit_drops_per_s": 2,
    }  # fmt: skip
    tcp = measured["tcp"].metrics
    told = ("retransmits", "transmit_segments", "connection_resets", "listen_overflows", "listen_drops", "timeouts")
    assert [tcp[f"{name}_per_s"] for name in told] == [2, 5, 1, 0.5, 1, 0]
    assert [tcp[name] for name in ("established", "sockets", "time_wait", "orphans", "allocated")] == [9, 35, 4, 1, 59]
    assert "transmit_resets_per_s" not in tcp, "this kernel does not count them"
    assert measured["udp"].metrics["receive_buffer_errors_per_s"] == 1
    assert set(measured) == {"eth0", "tcp", "udp"}


def test_memory_and_swap() -> None:
    before, now = (memory.parse(MEMINFO, data) for data in (VMSTAT, VMSTAT.replace(b"oom_kill 2", b"oom_kill 5")))
    measured = by_id(memory.measure(now, before, 1.0))
    assert measured["ram"].metrics == {
        "total_bytes": 1000 * 1024, "available_bytes": 600 * 1024, "used_bytes": 400 * 1024, "utilization": 0.4,
        "free_bytes": 200 * 1024, "buffers_bytes": 50 * 1024, "cached_bytes": 300 * 1024, "dirty_bytes": 4 * 1024,
        "slab_reclaimable_bytes": 50 * 1024, "page_faults_per_s": 0, "major_page_faults_per_s": 0,
    }  # fmt: skip
    assert measured["ram"].counters == {"oom_kills": 3}
    assert measured["swap"].metrics["used_bytes"] == 100 * 1024
    assert measured["swap"].metrics["utilization"] == pytest.approx(0.2)
    assert measured["swap"].metrics["in_pages_per_s"] == 0
    without = memory.parse(MEMINFO.replace(b"SwapTotal:        500", b"SwapTotal:          0"), None)
    assert set(by_id(memory.measure(without, None, 0.0))) == {"ram"}


def test_no_limit_of_open_files_is_no_limit() -> None:
    parsed = system.parse_file_descriptors(b"3168\t0\t9223372036854775807\n")
    assert parsed == {"file_descriptors": 3168}
    assert system.parse_file_descriptors(b"100 0 1000\n")["file_descriptors_utilization"] == 0.1


def test_counters_count_from_nothing_after_a_reset_and_begin_with_a_baseline() -> None:
    assert added({"kills": 5}, None) == {}
    assert added({"kills": 5}, {"kills": 3}) == {"kills": 2}
    assert added({"kills": 1}, {"kills": 3}) == {"kills": 1}
    assert added({"kills": 1, "new": 7}, {"kills": 1}) == {"kills": 0}


def test_pressure_is_the_time_that_was_lost() -> None:
    text = b"some avg10=12.50 avg60=0.00 avg300=0.00 total=1000000\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=5\n"
    before, now = pressure.parse("io", text), pressure.parse("io", text.replace(b"1000000", b"1500000"))
    assert pressure.measure(now, before, 2.0) == {
        "io_pressure_some_avg10_fraction": 0.125, "io_pressure_some_fraction": 0.25,
        "io_pressure_full_avg10_fraction": 0.0, "io_pressure_full_fraction": 0.0,
    }  # fmt: skip


def test_name_is_found_at_the_beginning_of_a_line_alone() -> None:
    assert number_of(b"oom 1\noom_kill 2\n", b"oom_kill") == 2
    assert number_of(b"oom_kill 2\n", b"oom") is None
    assert number_of(b"a_oom 3\n", b"oom") is None
    assert number_of(b"oom 12", b"oom") is None, "it may be cut"


# --- file systems -----------------------------------------------------------------------------------------

MOUNTS = r"""overlay / overlay rw,relatime,lowerdir=/a 0 0
tmpfs /dev/shm tmpfs rw,nosuid 0 0
tmpfs /run tmpfs rw 0 0
/dev/sdb /data/bind/deep ext4 rw 0 0
/dev/sdb /data ext4 ro,relatime 0 0
/dev/loop1 /snap/core squashfs ro 0 0
nas:/models /mnt/my\040models nfs4 rw 0 0
proc /proc proc rw 0 0
broken
"""


def test_each_file_system_counts_once_and_remote_ones_are_asked_last() -> None:
    mounts = filesystems.watched(filesystems.parse_mounts(MOUNTS), frozenset({"ext4", "squashfs"}))
    assert [mount.path for mount in mounts] == ["/", "/data", "/dev/shm", "/mnt/my models"]
    assert [mount.read_only for mount in mounts] == [False, True, False, False]


def host(tmp_path: Path, mounts: str) -> tuple[str, str]:
    """A ``/proc`` and a root of a host."""
    (tmp_path / "proc/1").mkdir(parents=True)
    (tmp_path / "proc/1/mounts").write_text(mounts)
    (tmp_path / "proc/filesystems").write_text("nodev\ttmpfs\n\text4\n")
    for path in ("data", "dev/shm", "mnt/my models"):
        (tmp_path / "root" / path).mkdir(parents=True)
    return str(tmp_path / "proc"), str(tmp_path / "root")


def test_file_systems_of_the_host_are_looked_at_below_its_root(tmp_path: Path) -> None:
    reading = filesystems.FileSystems(*host(tmp_path, MOUNTS)).read()
    assert list(reading) == ["/", "/data", "/dev/shm", "/mnt/my models"]
    measured = by_id(filesystems.measure(reading, None, 0.0))
    assert measured["/data"].metrics["read_only"] == 1
    assert measured["/data"].metrics["total_bytes"] == os.statvfs(tmp_path).f_blocks * os.statvfs(tmp_path).f_frsize
    assert list(filesystems.FileSystems(*host(tmp_path / "other", "/dev/gone /gone ext4 rw 0 0\n")).read()) == []


def test_file_system_without_blocks_or_inodes_has_none() -> None:
    mount = filesystems.Mount("d", "/", "ext4", read_only=False)
    empty, full = filesystems.Usage(0, 0, 0, 0, 0), filesystems.Usage(100, 10, 0, 0, 0)
    assert not by_id(filesystems.measure({"/": (mount, empty)}, None, 0.0))
    metrics = by_id(filesystems.measure({"/": (mount, full)}, None, 0.0))["/"].metrics
    assert metrics["utilization"] == 1
    assert "inodes" not in metrics


# --- temperatures -----------------------------------------------------------------------------------------


def files(root: Path, contents: dict[str, str]) -> str:
    for path, content in contents.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(content)
    return str(root)


def test_temperatures_are_those_of_the_sensors_and_impossible_ones_are_left_out(tmp_path: Path) -> None:
    sysfs = files(tmp_path, {
        "class/hwmon/hwmon0/name": "coretemp\n",
        "class/hwmon/hwmon0/temp1_input": "45500\n",
        "class/hwmon/hwmon0/temp1_label": "Package id 0\n",
        "class/hwmon/hwmon0/temp1_crit": "100000\n",
        "class/hwmon/hwmon0/temp2_input": "-128000\n",
        "class/hwmon/hwmon1/name": "nvme\n",
        "class/hwmon/hwmon1/temp1_input": "38000\n",
        "class/hwmon/hwmon2/name": "nvme\n",
        "class/hwmon/hwmon2/temp1_input": "39000\n",
        "class/thermal/thermal_zone0/temp": "50000\n",
    })  # fmt: skip
    measured = temperatures.measure("h", temperatures.Temperatures(sysfs).read(), None, 0.0)
    assert {one.labels["sensor"]: one.metrics for one in measured if one.labels} == {
        "coretemp/Package id 0": {"temperature_celsius": 45.5, "temperature_limit_celsius": 100.0},
        "nvme/temp1": {"temperature_celsius": 38.0},
        "nvme/temp1 2": {"temperature_celsius": 39.0},
    }


def test_thermal_zones_do_where_there_are_no_other_sensors(tmp_path: Path) -> None:
    sysfs = files(
        tmp_path, {"class/thermal/thermal_zone0/temp": "50000\n", "class/thermal/thermal_zone0/type": "cpu\n"}
    )
    assert temperatures.Temperatures(sysfs).read() == {"cpu": (50.0, None)}
    assert temperatures.Temperatures(str(tmp_path / "nothing")).read() == {}


# --- processes --------------------------------------------------------------------------------------------


def stat(name: str = "python", ticks: int = 0, rss: int = 10, started: int = 5) -> str:
    return (
        f"1 ({name}) S 1 1 1 0 -1 4194560 1 1 0 0 {ticks} 0 0 0 20 0 2 0 {started} 1000 {rss} 18446744073709551615 1\n"
    )


class Machine:
    """Processes that a test makes, and a clock."""

    def __init__(self, procfs: Path, top: int = 2, **given: Any) -> None:
        self.procfs, self.now = procfs, 100.0
        self.processes = Processes(str(procfs), top, no_labels, lambda: self.now, **given)
        self.beat = Beat("h", [processes_probe(self.processes)], lambda: 0.0, lambda: self.now)

    def set(self, pid: int, text: str) -> None:
        (self.procfs / str(pid)).mkdir(exist_ok=True)
        (self.procfs / str(pid) / "stat").write_text(text)

    def measure(self, after_s: float = 1.0) -> dict[str, dict[str, float]]:
        self.now += after_s
        events = self.beat.measure()
        assert not self.beat.failing
        return {event["labels"]["name"]: event["metrics"] for event in events}


def processes_probe(of: Processes) -> Any:
    from streammon_agents.source import Probe

    return Probe("processes", of.read, processes.measure)


def test_names_may_hold_anything() -> None:
    parsed = processes.parse_stat(stat("a) R 1 (b\n c", ticks=7).encode())
    assert parsed == Stat("a) R 1 (b\n c", 7, 2, 5, 10)


def test_the_top_by_cpu_and_by_memory_are_told(tmp_path: Path) -> None:
    machine = Machine(tmp_path, top=1)
    for pid, name in enumerate(("big", "busy", "idle"), 10):
        machine.set(pid, stat(name, rss=1000 if name == "big" else 1))
    (tmp_path / "self").mkdir()
    (tmp_path / "99").mkdir()  # a process that is gone, or may not be seen
    assert set(machine.measure()) == {"big"}, "nobody's CPU time is known yet"
    machine.set(11, stat("busy", ticks=50))
    told = machine.measure(2.0)
    assert set(told) == {"big", "busy"}
    assert told["busy"]["cpu_cores"] == pytest.approx(50 / os.sysconf("SC_CLK_TCK") / 2)
    assert told["big"]["cpu_cores"] == 0
    assert told["big"]["rss_bytes"] == 1000 * os.sysconf("SC_PAGE_SIZE")


def test_processes_are_labelled_with_their_container_even_if_they_come_into_it_later(tmp_path: Path) -> None:
    machine, id_ = Machine(tmp_path), "ab" * 32
    machine.set(10, stat("runc:[2:INIT]"))
    (tmp_path / "10/cgroup").write_text("0::/system.slice\n")
    machine.measure()
    (tmp_path / "10/cgroup").write_text(f"0::/system.slice/docker-{id_}.scope\n")
    machine.set(10, stat("python"))
    machine.now += 1
    [event] = machine.beat.measure()
    assert event["labels"] == {"name": "python", "container_id": id_[:12], "runtime": "docker"}


def test_another_process_of_the_same_number_begins_anew(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.set(10, stat(ticks=5000))
    machine.measure()
    machine.set(10, stat("other", ticks=30, started=6))
    machine.set(11, stat("new", ticks=40, started=7))
    ticks_per_s = os.sysconf("SC_CLK_TCK")
    assert machine.measure()["other"]["cpu_cores"] == pytest.approx(30 / ticks_per_s)
    assert machine.measure()["new"]["cpu_cores"] == pytest.approx(40 / ticks_per_s / 2), "since it was not there"


def test_quiet_processes_are_looked_at_seldom_and_no_time_of_theirs_is_lost(tmp_path: Path) -> None:
    machine = Machine(tmp_path, top=1)
    machine.set(10, stat("big", rss=1000))
    machine.set(11, stat("quiet", ticks=0))
    for _ in range(12):
        machine.measure()
    machine.set(11, stat("quiet", ticks=80))
    seen = [machine.measure().get("quiet") for _ in range(processes.SELDOM)]
    [metrics] = [each for each in seen if each]
    assert metrics["cpu_cores"] == pytest.approx(80 / os.sysconf("SC_CLK_TCK") / processes.SELDOM)
    for ticks in (110, 140):
        machine.set(11, stat("quiet", ticks=ticks))
        told = machine.measure()["quiet"]
    assert told["cpu_cores"] == pytest.approx(30 / os.sysconf("SC_CLK_TCK")), "the busy are looked at every time"


def test_many_processes_are_looked_at_less_often(tmp_path: Path) -> None:
    machine = Machine(tmp_path, at_once=2)
    for pid in range(5):
        machine.set(pid + 10, stat(f"p{pid}", rss=pid))
    assert [bool(machine.measure()) for _ in range(7)] == [True, False, False, True, False, False, True]


def test_thousands_of_processes_that_vanish_are_forgotten_with_their_files(tmp_path: Path) -> None:
    before = len(list(Path("/dev/fd").iterdir()))
    machine = Machine(tmp_path, at_once=10_000)
    for pid in range(1000):
        machine.set(pid + 10, stat(f"p{pid}", rss=pid))
    machine.measure()
    for pid in range(1000):
        (tmp_path / str(pid + 10) / "stat").unlink()
        (tmp_path / str(pid + 10)).rmdir()
    machine.measure()
    assert machine.measure() == {}
    assert len(list(Path("/dev/fd").iterdir())) <= before + 5


def test_no_more_files_are_kept_open_than_the_budget_has(tmp_path: Path) -> None:
    budget, paths = Budget(3), [tmp_path / str(number) for number in range(5)]
    for path in paths:
        path.write_text("1")
    kept = [File(str(path), budget) for path in paths]
    assert [file.read() for file in kept] == [b"1"] * 5
    assert budget.left == 0
    del kept
    assert budget.left == 3


def test_file_that_came_back_is_opened_again_and_long_ones_are_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x" * 300_000)
    file = File(str(path), Budget(1))
    assert len(file.read()) == 300_000
    path.write_bytes(b"y")
    assert file.read() == b"y"
    file.close()
    path.unlink()
    with pytest.raises(FileNotFoundError):
        file.read()
    assert file.read_or_none() is None


# --- where the host is ------------------------------------------------------------------------------------


def test_the_environment_may_say_where_proc_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROCFS_PATH", "/host/proc")
    assert load(agent={}).agent.procfs == Path("/host/proc")
    assert load(agent={"procfs": "/mine"}).agent.procfs == Path("/mine")


def test_network_is_that_of_process_one_if_it_can_be_seen(tmp_path: Path) -> None:
    assert network_directory(str(tmp_path)) == f"{tmp_path}/self/net"
    files(tmp_path, {"1/net/dev": "x"})
    assert network_directory(str(tmp_path)) == f"{tmp_path}/1/net"


def test_check_says_that_mounts_of_a_host_need_its_root() -> None:
    what = "sizes of the host's filesystems"
    assert what in [finding.what for finding in check(Roots("/host/proc", "/host/sys", "")) if not finding.seen]
    for roots in (Roots("/proc", "/sys", ""), Roots("/host/proc", "/host/sys", "/host/root")):
        assert what not in [finding.what for finding in check(roots)]


def test_host_of_which_nothing_can_be_seen_is_said_to_be_so(tmp_path: Path) -> None:
    nothing = str(tmp_path / "nothing")
    findings = list(check(Roots(nothing, nothing, nothing)))
    assert not [finding.what for finding in findings if finding.seen]
    assert all(finding.detail for finding in findings)
    beat = Beat("h", probes_of("h", load(agent=dict.fromkeys(("procfs", "sysfs", "rootfs"), nothing)).agent)[0])
    assert beat.measure() == []
    assert "cpu" in beat.failing


# --- odd files --------------------------------------------------------------------------------------------

PARSERS: list[tuple[bytes, Callable[[bytes], list[Measured]]]] = [
    (STAT, lambda data: [*cpu.measure(cpu.parse(data), cpu.parse(STAT), 1.0, per_core=True)]),
    (DISKSTATS, lambda data: [*disks.measure(disks.parse(data, is_whole), disks.parse(DISKSTATS, is_whole), 1.0)]),
    (MEMINFO, lambda data: [*memory.measure(memory.parse(data, VMSTAT), None, 1.0)]),
    (VMSTAT, lambda data: [*memory.measure(memory.parse(MEMINFO, data), memory.parse(MEMINFO, VMSTAT), 1.0)]),
    (DEV, lambda data: [*network.measure(read_network(data, SNMP, b""), read_network(DEV, SNMP, b""), 1.0)]),
    (SNMP, lambda data: [*network.measure(read_network(DEV, data, b""), read_network(DEV, SNMP, b""), 1.0)]),
    (SOCKSTAT, lambda data: [Measured("network", "s", {**network.parse_sockets(data)})]),
    (b"0.93 1.60 1.53 2/350 12345\n", lambda data: [Measured("host", "h", system.parse_load(data))]),
    (b"100 0 1000\n", lambda data: [Measured("host", "h", system.parse_file_descriptors(data))]),
    (b"62723.15 120400.13\n", lambda data: [Measured("host", "h", system.parse_uptime(data))]),
    (
        b"some avg10=0.07 avg60=2.34 avg300=9.92 total=16418850270\n",
        lambda data: [Measured("host", "h", pressure.measure(pressure.parse("io", data), None, 1.0))],
    ),
    (stat().encode(), lambda data: [Measured("process", str(processes.parse_stat(data)), {})]),
    (b"read_bytes: 4096\nwrite_bytes: 5\n", lambda data: [Measured("process", "p", {**processes.parse_io(data)})]),
    (MOUNTS.encode(), lambda data: [
        Measured("filesystem", mount.path, {}) for mount in filesystems.watched(
            filesystems.parse_mounts(data.decode(errors="replace")), frozenset({"ext4"})
        )
    ]),
]  # fmt: skip


@settings(max_examples=300)
@given(st.sampled_from(PARSERS), st.data())
def test_garbled_and_cut_files_give_valid_metrics_or_none(
    parser: tuple[bytes, Callable[[bytes], list[Measured]]], data: st.DataObject
) -> None:
    whole, parse = parser
    at, to = sorted(data.draw(st.tuples(*[st.integers(0, len(whole))] * 2)))
    middle = data.draw(
        st.binary(max_size=20) | st.sampled_from([b"-1", b"9" * 40, b"\n", b" ", b"nan", b"1e999", b"("])
    )
    for measured in parse(whole[:at] + middle + whole[to:]):
        for name, value in (measured.metrics | (measured.counters or {})).items():
            assert 0 <= value < 2**74, name
            assert value <= 1 or not name.endswith(("_fraction", "utilization")), name
        event = {"time_unix_s": 0.0, "host": "h", **measured._asdict()}
        Kept().put(EventType.RESOURCE, [{name: value for name, value in event.items() if value is not None}])
