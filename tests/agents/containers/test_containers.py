"""Containers: what is read from cgroups of both versions, recorded and live."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streammon.config import ContainerSettings, load
from streammon.events import EventType
from streammon_agents.containers import cgroups
from streammon_agents.containers.cgroups import Limits, cores_in, parse_blkio, parse_cpu_max, parse_io_stat, tree_at
from streammon_agents.containers.identity import Container
from streammon_agents.containers.labels import Known
from streammon_agents.containers.source import Containers, check, containers_source, measure
from streammon_agents.source import Beat, Probe
from tests.agents.containers.trees import (
    DOCKER_ID,
    DOCKER_PATH,
    V1_ID,
    V1_PATH,
    V1_POD,
    V2_ID,
    V2_PATH,
    V2_POD,
    V2_POD_PATH,
    change,
    tree,
)  # fmt: skip
from tests.outlets import Kept
from tests.support import eventually

OWN = Container("me", "me")


class Watching:
    """Containers of a tree, measured once a second of its own clock."""

    def __init__(self, sysfs: Path, rootfs: Path, **given: Any) -> None:
        found = tree_at(str(sysfs))
        assert found is not None
        self.now = 1000.0
        wanted = ContainerSettings(**{"discovery_s": 0, **given})
        self.known = Known(str(rootfs), wanted, monotonic=lambda: self.now)
        self.containers = Containers(found, self.known, lambda: OWN, wanted, lambda: self.now)
        self.beat = Beat("here", [Probe("containers", self.containers.read, measure)], lambda: 0.0, lambda: self.now)

    def measure(self, after_s: float = 1.0) -> dict[str, dict[str, Any]]:
        """The events, by id."""
        self.now += after_s
        events = self.beat.measure()
        assert not self.beat.failing
        return {event["id"]: event for event in events}


@pytest.fixture
def v2(tmp_path: Path) -> Path:
    return tree("v2_kubernetes", tmp_path / "sys")


@pytest.fixture
def v1(tmp_path: Path) -> Path:
    return tree("v1_kubernetes", tmp_path / "sys")


# --- version 2 --------------------------------------------------------------------------------------------


def test_version_2_tells_usage_and_limits_in_effect(v2: Path, tmp_path: Path) -> None:
    events = Watching(v2, tmp_path).measure()
    assert set(events) == {V2_ID[:12], DOCKER_ID[:12]}
    event = events[V2_ID[:12]]
    assert event["labels"] == {"pod_uid": V2_POD, "qos": "burstable", "runtime": "containerd"}
    assert event["metrics"] == {
        "memory_usage_bytes": 100 * 2**20,
        "memory_swap_bytes": 0,
        "memory_anonymous_bytes": 50 * 2**20,
        "memory_cached_bytes": 40 * 2**20,
        "memory_kernel_bytes": 3 * 2**20,
        "memory_shared_bytes": 36864,
        "memory_working_set_bytes": 80 * 2**20,  # without the 20 MiB of files that nobody uses
        "memory_limit_bytes": 128 * 2**20,  # its own, tighter than the pod's
        "memory_utilization": 80 / 128,
        "pids": 17,
        "pids_limit": 1024,
        "pids_utilization": 17 / 1024,
        "cpu_limit_cores": 0.5,  # the pod's: its own two cores do not count
        "cpu_pressure_some_avg10_fraction": 0.125,
        "cpu_pressure_full_avg10_fraction": 0.04,
        "memory_pressure_some_avg10_fraction": 0.004,
        "memory_pressure_full_avg10_fraction": 0.001,
        "io_pressure_some_avg10_fraction": 0.01,
        "io_pressure_full_avg10_fraction": 0.005,
    }
    assert "counters" not in event, "what was counted before we came is not ours"


def test_version_2_tells_rates_and_counts_from_two_readings(v2: Path, tmp_path: Path) -> None:
    watching, own = Watching(v2, tmp_path), v2 / "fs/cgroup" / V2_PATH
    watching.measure()
    change(own / "cpu.stat", "usage_usec 60000000", "usage_usec 60500000")
    change(own / "cpu.stat", "user_usec 45000000", "user_usec 45400000")
    change(own / "cpu.stat", "nr_periods 1000", "nr_periods 1020")
    change(own / "cpu.stat", "nr_throttled 250", "nr_throttled 255")
    change(own / "cpu.stat", "throttled_usec 12500000", "throttled_usec 13500000")
    change(own / "io.stat", "259:0 rbytes=6911345664 wbytes=14245536256", "259:0 rbytes=6911349760 wbytes=14245544448")
    change(own / "io.stat", "254:1 rbytes=6901432320 wbytes=14245535744", "254:1 rbytes=6901436416 wbytes=14245543936")
    change(own / "io.stat", "wios=244914", "wios=244918")
    change(own / "memory.events", "max 100\noom 2\noom_kill 1", "max 130\noom 4\noom_kill 2")
    change(own / "cpu.pressure", "total=30000000", "total=30600000")
    event = watching.measure(2.0)[V2_ID[:12]]
    metrics = event["metrics"]
    assert metrics["cpu_cores"] == pytest.approx(0.25)
    assert metrics["cpu_user_cores"] == pytest.approx(0.2)
    assert metrics["cpu_system_cores"] == 0
    assert metrics["cpu_utilization"] == pytest.approx(0.5), "a quarter of a core, of half a core"
    assert metrics["cpu_throttled_fraction"] == 0.25
    assert metrics["cpu_throttled_s_per_s"] == pytest.approx(0.5)
    assert metrics["read_bytes_per_s"] == 2048, "of the disk alone, not of the volume on it again"
    assert metrics["write_bytes_per_s"] == 4096
    assert metrics["write_operations_per_s"] == 2
    assert metrics["cpu_pressure_some_fraction"] == pytest.approx(0.3)
    assert metrics["io_pressure_full_fraction"] == 0
    assert event["counters"] == {"oom_kills": 1, "ooms": 2, "memory_limit_hits": 30, "memory_high_hits": 0}


def test_what_is_not_limited_and_what_a_kernel_lacks_is_absent(v2: Path, tmp_path: Path) -> None:
    watching = Watching(v2, tmp_path)
    watching.measure()
    metrics = watching.measure()[DOCKER_ID[:12]]["metrics"]
    assert metrics["memory_usage_bytes"] == 32 * 2**20
    lacking = ("limit", "utilization", "pressure", "throttled_fraction", "swap", "read_", "write_")
    assert not [name for name in metrics if any(what in name for what in lacking)]


def test_more_files_unused_than_memory_is_a_working_set_of_nothing(v2: Path, tmp_path: Path) -> None:
    (v2 / "fs/cgroup" / DOCKER_PATH / "memory.current").write_text("4096\n")
    assert Watching(v2, tmp_path).measure()[DOCKER_ID[:12]]["metrics"]["memory_working_set_bytes"] == 0


def test_oom_kill_of_a_container_that_is_gone_is_counted_for_its_pod(v2: Path, tmp_path: Path) -> None:
    watching, pod = Watching(v2, tmp_path), v2 / "fs/cgroup" / V2_POD_PATH
    watching.measure()
    shutil.rmtree(pod / f"cri-containerd-{V2_ID}.scope")
    change(pod / "memory.events", "oom_kill 3", "oom_kill 4")
    events = watching.measure()
    assert V2_ID[:12] not in events
    assert events[f"pod/{V2_POD}"]["counters"] == {"oom_kills": 1}
    assert events[f"pod/{V2_POD}"]["metrics"] == {}


def test_oom_kills_of_a_pod_that_is_new_count_from_its_beginning(v2: Path, tmp_path: Path) -> None:
    watching, pod = Watching(v2, tmp_path), v2 / "fs/cgroup" / V2_POD_PATH
    watching.measure()
    uid = "11111111-2222-3333-4444-555555555555"
    new = pod.with_name(f"kubepods-burstable-pod{uid.replace('-', '_')}.slice")
    new.mkdir()
    shutil.copy(pod / "memory.events", new)
    assert watching.measure()[f"pod/{uid}"]["counters"] == {"oom_kills": 3}
    assert watching.measure()[f"pod/{uid}"]["counters"] == {"oom_kills": 0}


def test_counters_that_fell_began_anew(v2: Path, tmp_path: Path) -> None:
    watching, own = Watching(v2, tmp_path), v2 / "fs/cgroup" / V2_PATH
    watching.measure()
    change(own / "memory.events", "oom_kill 1", "oom_kill 0")
    change(own / "memory.events", "max 100", "max 7")
    change(own / "cpu.stat", "usage_usec 60000000", "usage_usec 1")
    event = watching.measure()[V2_ID[:12]]
    assert event["counters"]["oom_kills"] == 0
    assert event["counters"]["memory_limit_hits"] == 7
    assert "cpu_cores" not in event["metrics"], "of a rate nobody knows when it began anew"


def test_container_that_was_made_meanwhile_is_found_and_counted_from_its_beginning(v2: Path, tmp_path: Path) -> None:
    watching, pod = Watching(v2, tmp_path), v2 / "fs/cgroup" / V2_POD_PATH
    watching.measure()
    new = "ab" * 32
    shutil.copytree(pod / f"cri-containerd-{V2_ID}.scope", pod / f"cri-containerd-{new}.scope")
    event = watching.measure()[new[:12]]
    assert event["counters"]["oom_kills"] == 1
    assert "cpu_cores" not in event["metrics"]
    assert watching.measure()[new[:12]]["counters"]["oom_kills"] == 0


def test_containers_whose_ids_begin_alike_are_not_taken_for_one(v2: Path, tmp_path: Path) -> None:
    pod, alike = v2 / "fs/cgroup" / V2_POD_PATH, f"{V2_ID[:12]}{'0' * 52}"
    shutil.copytree(pod / f"cri-containerd-{V2_ID}.scope", pod / f"cri-containerd-{alike}.scope")
    watching = Watching(v2, tmp_path)
    assert len(watching.containers.read().containers) == 3


def test_limits_that_change_are_seen(v2: Path, tmp_path: Path) -> None:
    watching = Watching(v2, tmp_path)
    watching.measure()
    (v2 / "fs/cgroup" / V2_POD_PATH / "cpu.max").write_text("max 100000\n")
    for _ in range(6):
        metrics = watching.measure()[V2_ID[:12]]["metrics"]
    assert metrics["cpu_limit_cores"] == 2.0


def test_fewer_cores_than_there_are_limit_too(v2: Path, tmp_path: Path) -> None:
    (v2 / "fs/cgroup" / DOCKER_PATH / "cpuset.cpus.effective").write_text("0,2-3\n")
    assert Watching(v2, tmp_path).measure()[DOCKER_ID[:12]]["metrics"]["cpu_limit_cores"] == 3


def test_containers_beyond_the_bound_are_left_out_and_told_of(v2: Path, tmp_path: Path) -> None:
    watching = Watching(v2, tmp_path, max_containers=1)
    assert len(watching.measure()) == 1
    assert watching.containers.complaint == "1 containers beyond agent.containers.max_containers"


# --- version 1 --------------------------------------------------------------------------------------------


def test_version_1_tells_the_same(v1: Path, tmp_path: Path) -> None:
    watching, root = Watching(v1, tmp_path), v1 / "fs/cgroup"
    first = watching.measure()[V1_ID[:12]]
    assert first["labels"] == {"pod_uid": V1_POD, "qos": "burstable"}
    assert first["metrics"]["memory_limit_bytes"] == 96 * 2**20, "the pod's, tighter than its own"
    assert first["metrics"]["cpu_limit_cores"] == pytest.approx(0.2)
    assert first["metrics"]["pids"] == 1
    assert first["metrics"]["pids_limit"] == 100
    assert first["metrics"]["memory_usage_bytes"] > first["metrics"]["memory_anonymous_bytes"] > 20 * 2**20
    change(root / "memory" / V1_PATH / "memory.oom_control", "oom_kill 1", "oom_kill 3")
    (root / "memory" / V1_PATH / "memory.failcnt").write_text("42\n")
    used = root / "cpuacct" / V1_PATH / "cpuacct.usage"
    used.write_text(f"{int(used.read_text()) + 400_000_000}\n")
    blkio = root / "blkio" / V1_PATH / "blkio.throttle.io_service_bytes_recursive"
    for device in ("254:0", "253:0"):  # of two disks
        change(blkio, f"{device} Write 176160768", f"{device} Write 176164864")
    throttled = root / "cpu" / V1_PATH / "cpu.stat"
    lines = dict(line.split() for line in throttled.read_text().splitlines())
    change(throttled, f"nr_periods {lines['nr_periods']}", f"nr_periods {int(lines['nr_periods']) + 10}")
    change(throttled, f"nr_throttled {lines['nr_throttled']}", f"nr_throttled {int(lines['nr_throttled']) + 4}")
    change(
        throttled, f"throttled_time {lines['throttled_time']}", f"throttled_time {int(lines['throttled_time']) + 10**9}"
    )
    event = watching.measure(2.0)[V1_ID[:12]]
    metrics = event["metrics"]
    assert metrics["cpu_cores"] == pytest.approx(0.2)
    assert metrics["cpu_utilization"] == pytest.approx(1.0)
    assert metrics["cpu_throttled_fraction"] == 0.4
    assert metrics["cpu_throttled_s_per_s"] == pytest.approx(0.5)
    assert metrics["write_bytes_per_s"] == 4096
    assert metrics["read_bytes_per_s"] == 0
    assert event["counters"] == {"oom_kills": 2, "memory_limit_hits": 42}


def test_no_limit_is_none_in_version_1_too(v1: Path, tmp_path: Path) -> None:
    root = v1 / "fs/cgroup"
    for path in (V1_PATH, str(Path(V1_PATH).parent)):
        (root / "memory" / path / "memory.limit_in_bytes").write_text("9223372036854771712\n")
        (root / "cpu" / path / "cpu.cfs_quota_us").write_text("-1\n")
        (root / "pids" / path / "pids.max").write_text("max\n")
    metrics = Watching(v1, tmp_path).measure()[V1_ID[:12]]["metrics"]
    assert not {name for name in metrics if "limit" in name or "utilization" in name}


def test_cpu_and_cpuacct_may_be_one_hierarchy(v1: Path, tmp_path: Path) -> None:
    root = v1 / "fs/cgroup"
    shutil.copytree(root / "cpuacct", root / "cpu,cpuacct")
    shutil.copytree(root / "cpu", root / "cpu,cpuacct", dirs_exist_ok=True)
    shutil.rmtree(root / "cpu")
    shutil.rmtree(root / "cpuacct")
    watching = Watching(v1, tmp_path)
    watching.measure()
    metrics = watching.measure()[V1_ID[:12]]["metrics"]
    assert metrics["cpu_cores"] == 0
    assert metrics["cpu_limit_cores"] == pytest.approx(0.2)


# --- inside a container -----------------------------------------------------------------------------------


def test_inside_a_container_there_is_that_one_alone(v2: Path, v1: Path, tmp_path: Path) -> None:
    for number, own in enumerate((v2 / "fs/cgroup" / V2_PATH, v1 / "fs/cgroup/memory" / V1_PATH)):
        inside = tmp_path / f"inside{number}/fs/cgroup"
        if number == 0:
            shutil.copytree(own, inside)
            (inside / "cgroup.controllers").write_text("cpu io memory pids\n")
        else:
            shutil.copytree(own, inside / "memory")
        watching = Watching(tmp_path / f"inside{number}", tmp_path)
        metrics = watching.measure()["me"]["metrics"]
        assert metrics["memory_limit_bytes"] == 128 * 2**20, "the limit of the root, which is its own"
        assert metrics["memory_usage_bytes"] > 20 * 2**20


# --- names ------------------------------------------------------------------------------------------------


def logs(rootfs: Path) -> None:
    (rootfs / f"var/log/pods/shop_ranker-7c9f_{V2_POD}/server").mkdir(parents=True)
    (rootfs / "var/log/containers").mkdir(parents=True)
    (rootfs / f"var/log/containers/ranker-7c9f_shop_server-{V2_ID}.log").symlink_to("/nowhere")


def test_names_come_from_the_names_of_log_files(v2: Path, tmp_path: Path) -> None:
    watching = Watching(v2, tmp_path)
    assert "pod" not in watching.measure()[V2_ID[:12]]["labels"]
    logs(tmp_path)
    labels = watching.measure(10.0)[V2_ID[:12]]["labels"]
    assert labels == {
        "container": "server", "pod": "ranker-7c9f", "namespace": "shop", "pod_uid": V2_POD, "qos": "burstable",
        "runtime": "containerd",
    }  # fmt: skip
    assert watching.known.pod(V2_POD) == {"pod": "ranker-7c9f", "namespace": "shop", "pod_uid": V2_POD}


def pods(*names: str) -> bytes:
    status = {"containerStatuses": [{"name": "server", "containerID": f"containerd://{V2_ID}"}]}
    metadata = {"uid": V2_POD, "namespace": "shop", "annotations": None}
    return json.dumps(
        {"items": [{"metadata": {**metadata, "name": name}, "status": status} for name in names]}
    ).encode()


async def test_names_come_from_the_kubelet_and_nobody_waits_for_it(tmp_path: Path) -> None:
    answers: list[Any] = [OSError("connection refused"), b"[]", b"\xff{", pods("ranker-7c9f")]
    now = 0.0

    def ask(_: ContainerSettings) -> bytes:
        answer = answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return bytes(answer)

    known = Known(str(tmp_path), ContainerSettings(kubelet_url="http://k"), ask=ask, monotonic=lambda: now)
    container = Container(V2_ID[:12], V2_ID, "containerd", V2_POD)
    complaints = []
    while answers:
        left = len(answers)
        known.of(container)
        await eventually(lambda: len(answers) < left and not (known._asking and known._asking.is_alive()))  # noqa: B023
        complaints.append(known.complaint)
        now += 10
    assert [bool(complaint) for complaint in complaints] == [True, True, True, False]
    assert "connection refused" in str(complaints[0])
    assert known.labels(container) == {
        "container_id": V2_ID[:12], "container": "server", "pod": "ranker-7c9f", "namespace": "shop",
        "pod_uid": V2_POD, "runtime": "containerd",
    }  # fmt: skip


def test_docker_by_itself_tells_the_name_and_nothing_else(v2: Path, tmp_path: Path) -> None:
    about = tmp_path / f"var/lib/docker/containers/{DOCKER_ID}/config.v2.json"
    about.parent.mkdir(parents=True)
    about.write_text(json.dumps({"Name": "/ranker_1", "Config": {"Env": ["PASSWORD=secret"]}}))
    event = Watching(v2, tmp_path).measure()[DOCKER_ID[:12]]
    assert event["labels"] == {"container": "ranker_1", "runtime": "docker"}


@pytest.mark.parametrize("content", ['{"Name": "/\\ud800"}', '{"Name": 5}', "[]", "{", '{"Name": "/"}', "[" * 100_000])
def test_odd_names_of_docker_are_no_names(v2: Path, tmp_path: Path, content: str) -> None:
    about = tmp_path / f"var/lib/docker/containers/{DOCKER_ID}/config.v2.json"
    about.parent.mkdir(parents=True)
    about.write_text(content)
    event = Watching(v2, tmp_path).measure()[DOCKER_ID[:12]]
    Kept().put(EventType.RESOURCE, [event])
    assert event["labels"].get("container") in {None, "?"}


# --- live -------------------------------------------------------------------------------------------------


@pytest.fixture
def live() -> Iterator[dict[str, Path]]:
    """A container's cgroup of this machine's version 1, with limits; by controller."""
    root, path = Path("/sys/fs/cgroup"), f"streammon-test/{os.getpid():064x}"
    made = {name: root / name / path for name in ("memory", "cpu", "cpuacct", "pids")}
    try:
        for directory in made.values():
            if not directory.parents[1].is_dir():
                raise PermissionError
            directory.mkdir(parents=True)
        (made["memory"] / "memory.limit_in_bytes").write_text(str(64 * 2**20))
        (made["cpu"] / "cpu.cfs_quota_us").write_text("50000")
    except OSError:
        pytest.skip("no cgroups of version 1 here that we may make others in")
    try:
        yield made
    finally:
        for directory in made.values():
            for one in (directory, directory.parent):
                with contextlib.suppress(OSError):
                    one.rmdir()


LOAD = """
import sys, time
blob = b"x" * (16 * 2**20)
while time.process_time() < 0.2: pass
print(time.process_time(), flush=True)
sys.stdin.read()
"""


def test_live_container_uses_what_it_was_made_to_use(live: dict[str, Path], tmp_path: Path) -> None:
    watching, id_ = Watching(Path("/sys"), tmp_path), f"{os.getpid():064x}"[:12]
    watching.measure()
    started = time.monotonic()
    enter = "; ".join(f"echo $$ > {directory}/cgroup.procs" for directory in live.values())
    process = subprocess.Popen(
        ["sh", "-c", f'{enter}; exec "$0" -I -S -c "$1"', sys.executable, LOAD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        spent_s = float(process.stdout.readline())
        event = watching.measure(time.monotonic() - started)[id_]
    finally:
        process.communicate()
    metrics = event["metrics"]
    assert metrics["memory_limit_bytes"] == 64 * 2**20
    assert metrics["cpu_limit_cores"] <= 0.5
    assert 16 * 2**20 < metrics["memory_anonymous_bytes"] <= metrics["memory_usage_bytes"] < 64 * 2**20
    assert metrics["pids"] == 1
    assert metrics["cpu_cores"] * (watching.now - 1001.0) == pytest.approx(spent_s, abs=0.1)
    assert event["counters"] == {"oom_kills": 0, "memory_limit_hits": 0}


def test_live_cgroups_can_be_checked_and_read_without_complaint(tmp_path: Path) -> None:
    found = tree_at("/sys")
    findings = list(check(found, OWN, "/sys", str(tmp_path)))
    assert findings[0].seen == (found is not None)
    if found is not None:
        Watching(Path("/sys"), tmp_path).measure()


# --- the source -------------------------------------------------------------------------------------------


async def test_source_tells_of_containers_by_the_settings(v2: Path, tmp_path: Path) -> None:
    logs(tmp_path)
    agent = {"sysfs": str(v2), "rootfs": str(tmp_path), "interval_s": 0.05, "host": "here"}
    source, out = containers_source(load(agent=agent)), Kept()
    running = asyncio.create_task(source.run(out))
    await eventually(lambda: len(out.of(EventType.RESOURCE)) >= 4)
    running.cancel()
    event = next(event for event in out.of(EventType.RESOURCE) if event["labels"].get("pod") == "ranker-7c9f")
    assert (event["entity"], event["host"], event["id"]) == ("container", "here", V2_ID[:12])
    assert out.states[-1] is None
    findings = {finding.what: finding for finding in source.check()}
    assert findings["containers"].detail == f"cgroup version 2 at {v2}/fs/cgroup; 2 now"
    assert findings["pressure of containers"].seen
    assert findings["names of pods"].seen


async def test_without_cgroups_it_says_so_and_goes_on(tmp_path: Path) -> None:
    source = containers_source(load(agent={"sysfs": str(tmp_path), "interval_s": 0.01}))
    [finding] = source.check()
    assert not finding.seen
    assert str(tmp_path) in finding.detail
    running = asyncio.create_task(source.run(Kept()))
    await asyncio.sleep(0.05)
    assert not running.done()
    running.cancel()


# --- odd files --------------------------------------------------------------------------------------------


def test_tables_are_parsed_as_the_kernel_writes_them() -> None:
    assert [parse_cpu_max(text) for text in ("max 100000\n", "50000 100000\n", "", None, "1", "x y", "5 0")] == [
        None, 0.5, None, None, None, None, None,
    ]  # fmt: skip
    assert [cores_in(text) for text in ("0-3\n", "0,2-3", "", None, "3-1", "x", "0-99999999")] == [
        4, 3, None, None, None, None, None,
    ]  # fmt: skip
    assert parse_blkio(b"8:0 Read 5\n8:16 Read 6\n8:0 Write 1\nTotal 12\n8:0 Read") == {b"Read": 11, b"Write": 1}
    assert parse_io_stat(b"8:0 rbytes=5 wbytes=x rios\n8:16 rbytes=6\n\n8:32 rbytes=1") == {"read_bytes": 11}
    assert cgroups.smallest([Limits(5, None, 7), Limits(3, 1.5), Limits()]) == Limits(3, 1.5, 7)


FILES = (
    "cpu.stat",
    "memory.stat",
    "memory.events",
    "memory.current",
    "io.stat",
    "pids.current",
    "cpu.pressure",
    "cpu.max",
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.sampled_from(FILES), st.data())
def test_garbled_and_cut_files_mean_that_metrics_are_absent(
    v2: Path, tmp_path: Path, name: str, data: st.DataObject
) -> None:
    file = v2 / "fs/cgroup" / V2_PATH / name
    whole = file.read_bytes()
    at = data.draw(st.integers(0, len(whole)))
    middle = data.draw(st.binary(max_size=20) | st.just(b"-1") | st.just(b"9" * 30) | st.just(b"\n"))
    file.write_bytes(whole[:at] + middle + data.draw(st.sampled_from([whole[at:], b""])))
    try:
        watching = Watching(v2, tmp_path)
        for _ in range(2):
            metrics = watching.measure()[V2_ID[:12]]["metrics"]
            event = {"time_unix_s": 0.0, "host": "h", "entity": "container", "id": "i", "metrics": metrics}
            Kept().put(EventType.RESOURCE, [event])
            assert all(0 <= value < 2**70 for value in metrics.values())
    finally:
        file.write_bytes(whole)
