"""GPUs through the real binding and a library of our own in place of the driver's."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from streammon.backoff import Backoff
from streammon.config import GpuSettings
from streammon_agents.gpu.gpus import Gpus, Increases, Seen
from streammon_agents.gpu.session import Session
from streammon_agents.source import Measured
from tests.gpus import FULL, Line, Nvml, gpu, uuid
from tests.support import POLL_S, wait_until


class Host:
    """Gpus with a clock that moves a second a beat; NVML is opened anew on the next beat after it failed."""

    def __init__(self, procfs: Path, **settings: Any) -> None:
        self.now_s = 0.0
        session = Session(Backoff(first_s=0.0))
        self.gpus = Gpus(
            GpuSettings(pod_resources=None, **settings), 1.0, procfs, session=session, monotonic=lambda: self.now_s
        )

    def beat(self) -> Seen:
        self.now_s += 1
        return self.gpus.measure()

    def of(self, id_: str, seen: Seen | None = None) -> Measured:
        [found] = [thing for thing in (seen or self.beat()).things if thing.id == id_]
        return found


@pytest.fixture
def host(nvml: Nvml, tmp_path: Path) -> Iterator[Host]:
    host = Host(tmp_path)
    yield host
    host.gpus.close()


def test_machine_without_a_driver_misses_nothing_unless_gpus_are_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streammon_agents.gpu.session.LIBRARY", "libno-such-driver.so.1")
    settings = GpuSettings(pod_resources=None)
    assert Gpus(settings, 1.0, tmp_path, expected=False).measure() == Seen([], None, 0)
    why = Gpus(settings, 1.0, tmp_path).measure().why
    assert why is not None
    assert "no NVIDIA driver" in why


def test_every_answer_is_told_under_its_name_and_in_our_units(nvml: Nvml, host: Host) -> None:
    nvml.say({"count": 1} | gpu(0, **FULL))
    first = host.of(uuid(0))
    assert first.entity == "gpu"
    assert first.labels == {"index": "0", "name": "NVIDIA H100 80GB HBM3", "pci_bus_id": "00000000:01:00.0"}
    expected = {
        "up": 1,
        "utilization": 0.87,
        "memory_busy_fraction": 0.41,
        "encoder_utilization": 0.12,
        "decoder_utilization": 0.03,
        "jpg_utilization": 0.01,
        "ofa_utilization": 0.02,
        "memory_total_bytes": 80 * 2**30,
        "memory_used_bytes": 60 * 2**30,
        "memory_free_bytes": 20937965568,
        "memory_reserved_bytes": 512 * 2**20,
        "memory_utilization": 0.75,
        "temperature_celsius": 67,
        "memory_temperature_celsius": 74,
        "temperature_slowdown_celsius": 89,
        "power_w": 612.345,
        "power_limit_w": 700,
        "clock_graphics_hz": 1.755e9,
        "clock_sm_hz": 1.740e9,
        "clock_memory_hz": 2.619e9,
        "clock_video_hz": 1.545e9,
        "throttled_fraction": 0,
        "throttled_power_cap_fraction": 1,
        "throttled_hw_slowdown_fraction": 0,
        "throttled_sync_boost_fraction": 0,
        "throttled_sw_thermal_fraction": 0,
        "throttled_hw_thermal_fraction": 0,
        "throttled_power_brake_fraction": 0,
        "performance_state": 0,
        "fan_fraction": 0.3,
        "remapped_rows_correctable": 2,
        "remapped_rows_uncorrectable": 1,
        "remapped_rows_pending": 1,
        "remapped_rows_failed": 0,
        "retired_pages_single_bit": 1,
        "retired_pages_double_bit": 0,
        "retired_pages_pending": 0,
        "pcie_link_width": 16,
        "pcie_link_width_max": 16,
        "pcie_link_generation": 4,
        "pcie_link_generation_max": 5,
        "pcie_transmit_bytes_per_s": 1.2e6,
        "pcie_receive_bytes_per_s": 3.4e6,
        "nvlink_links": 3,
        "nvlink_active_links": 2,
        "recovery_action": 0,
    }
    assert first.metrics == pytest.approx(expected)
    assert first.counters == {"xid_errors": 0, "xid_hardware_errors": 0}, "totals begin to count with their first sight"


def test_totals_are_told_as_increases_through_a_reset(nvml: Nvml, host: Host) -> None:
    totals = {"field__83": 5_000_000, "ecc__1__0": 2, "field__138__4294967295": 1000, "field__74": 10**9}
    nvml.say({"count": 1} | gpu(0, **FULL | totals))
    host.beat()
    nvml.say(gpu(0, field__83=5_250_000, ecc__1__0=5, field__138__4294967295=1010, field__74=2 * 10**9, field__163=8))
    seen = [host.of(uuid(0)) for _ in range(10)]
    assert seen[0].counters == pytest.approx({"energy_j": 250.0})
    counters: dict[str, float] = {}
    for thing in seen[1:]:
        counters |= {name: count for name, count in (thing.counters or {}).items() if count}
    assert counters == pytest.approx(
        {
            "ecc_volatile_uncorrected_errors": 3,
            "nvlink_transmit_bytes": 10 * 1024,
            "nvlink_link_crc_errors": 2,
            "throttled_power_s": 1,
        }
    )
    nvml.say(gpu(0, field__83=7_000))  # the driver was loaded anew
    assert host.of(uuid(0)).counters == pytest.approx({"energy_j": 7.0})


def test_what_changes_seldom_is_asked_seldom_and_not_of_all_gpus_at_once(nvml: Nvml, host: Host) -> None:
    nvml.say({"count": 2} | gpu(0, **FULL) | gpu(1, **FULL))
    beats = [host.beat() for _ in range(21)]
    asked = [
        [beat for beat, seen in enumerate(beats) if "fan_fraction" in host.of(uuid(n), seen).metrics] for n in (0, 1)
    ]
    assert asked == [[0, 10, 20], [0, 9, 19]]


def test_what_is_not_supported_is_absent_and_asked_again_later(nvml: Nvml, host: Host) -> None:
    nvml.say({"count": 1} | gpu(0, utilization="50 0", temperature="!3", power="!4", field__82="!3"))
    seen = host.beat()
    assert host.of(uuid(0), seen).metrics == {"up": 1, "utilization": 0.5, "memory_busy_fraction": 0}
    assert seen.why is None, "what a GPU cannot tell is nothing that is wrong"
    nvml.say(gpu(0, temperature=50, power=100_000, field__82=70))
    assert "power_w" not in host.of(uuid(0)).metrics
    host.now_s += 600
    assert {"temperature_celsius", "power_w", "memory_temperature_celsius"} <= host.of(uuid(0)).metrics.keys()


def test_call_that_fails_by_itself_costs_its_own_metric_only(nvml: Nvml, host: Host) -> None:
    nvml.say({"count": 1} | gpu(0, **FULL | {"temperature": "!999"}))
    found = host.of(uuid(0)).metrics
    assert "temperature_celsius" not in found
    assert "power_w" in found
    nvml.say(gpu(0, temperature=50))
    host.now_s += 10
    assert host.of(uuid(0)).metrics["temperature_celsius"] == 50


def test_older_library_tells_memory_in_its_older_form(nvml: Nvml, host: Host) -> None:
    nvml.say({"count": 1} | gpu(0, memory="1000 400 600"))
    assert host.of(uuid(0)).metrics == {
        "up": 1, "memory_total_bytes": 1000, "memory_used_bytes": 400, "memory_free_bytes": 600,
        "memory_utilization": 0.4,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("reasons", "throttled", "named"),
    [
        (0x1, 0, set()),  # idle
        (0x4, 0, {"power_cap"}),
        (0x8 | 0x40, 1, {"hw_slowdown", "hw_thermal"}),
        (0x20, 1, {"sw_thermal"}),
        (0x88, 1, {"hw_slowdown", "power_brake"}),
        (0x10, 0, {"sync_boost"}),
    ],
)
def test_heat_and_power_delivery_throttle_and_a_power_cap_does_not(
    nvml: Nvml, host: Host, reasons: int, throttled: float, named: set[str]
) -> None:
    nvml.say({"count": 1} | gpu(0, throttle=reasons))
    found = host.of(uuid(0)).metrics
    assert found.pop("throttled_fraction") == throttled
    assert {name for name, value in found.items() if value and name != "up"} == {
        f"throttled_{n}_fraction" for n in named
    }


def test_gpu_that_falls_off_the_bus_is_told_and_the_others_go_on(nvml: Nvml, host: Host) -> None:
    nvml.say({"count": 2} | gpu(0, **FULL) | gpu(1, **FULL))
    before = host.of(uuid(1))
    nvml.say({"1.lost": 15, "0.field.83": 6_000_000})
    lost = host.beat()
    assert host.of(uuid(0), lost).counters == pytest.approx({"energy_j": 1000})
    gone = host.of(uuid(1), lost)
    assert (gone.metrics, gone.labels) == ({"up": 0}, before.labels), "the same series as before"
    assert lost.why is not None
    assert lost.why.startswith("GPU 1 (NVIDIA H100 80GB HBM3): ")

    nvml.say({"count": 1, "0.field.83": 7_000_000})  # NVML was opened anew, and counts one less
    for _ in range(3):
        seen = host.beat()
        assert host.of(uuid(1), seen).metrics == {"up": 0}
        assert seen.why == "GPU 1 (NVIDIA H100 80GB HBM3) is gone"
    assert host.of(uuid(0), seen).metrics["utilization"] == 0.87

    nvml.say({"count": 2, "1.lost": None, "1.field.83": 5_000_500})
    back = host.beat()
    assert back.why is None
    assert host.of(uuid(1), back).metrics["up"] == 1
    assert (host.of(uuid(1), back).counters or {})["energy_j"] == pytest.approx(0.5), "nothing was lost in between"


def test_driver_that_is_loaded_anew_is_opened_anew(nvml: Nvml, host: Host) -> None:
    nvml.say({"count": 1} | gpu(0, **FULL))
    host.beat()
    nvml.say({"reloads": 1, "init": "!9"})
    for _ in range(3):
        seen = host.beat()
        assert host.of(uuid(0), seen).metrics == {"up": 0}
        assert seen.why is not None
    nvml.say({"init": 0, "0.field.83": 40_000})
    seen = host.beat()
    assert (host.of(uuid(0), seen).metrics["up"], seen.why) == (1, None)
    assert (host.of(uuid(0), seen).counters or {})["energy_j"] == pytest.approx(40), "a total that fell began anew"


@pytest.mark.parametrize(("code", "says"), [(9, "Driver Not Loaded"), (18, "restart it"), (999, "NVML")])
def test_without_a_driver_that_fits_nothing_is_seen_and_said_why(nvml: Nvml, host: Host, code: int, says: str) -> None:
    nvml.say({"init": f"!{code}"})
    seen = host.beat()
    assert seen.things == []
    assert says in (seen.why or "")


def test_host_without_gpus_says_so(nvml: Nvml, host: Host) -> None:
    assert host.beat() == Seen([], "the driver knows no GPU here")


def test_gpu_that_answers_nothing_is_not_passed_over(nvml: Nvml, host: Host) -> None:
    nvml.say({"count": 1} | gpu(0))
    why = host.beat().why or ""
    assert why.startswith("GPU 0 (NVIDIA H100 80GB HBM3) answers nothing: ")


def test_mig_instances_are_gpus_of_their_own_that_come_and_go(nvml: Nvml, host: Host) -> None:
    first, second = "MIG-1111", "MIG-2222"
    nvml.say(
        {"count": 1}
        | gpu(0, **FULL | {"utilization": "!3", "mig": 1, "migs_max": 7})
        | {"0/0.uuid": first, "0/0.name": "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "0/0.gi": 7, "0/0.ci": 0}
        | {"0/0.memory_v2": "1000 250 700 50", "0/0.attributes": 16}
        | {"0/3.uuid": second, "0/3.name": "NVIDIA H100 80GB HBM3 MIG 3g.40gb", "0/3.gi": 2, "0/3.ci": 0}
    )
    seen = host.beat()
    assert "utilization" not in host.of(uuid(0), seen).metrics
    instance = host.of(first, seen)
    assert instance.labels == {
        **(host.of(uuid(0), seen).labels or {}), "parent": uuid(0), "mig_profile": "1g.10gb", "mig_instance": "7"
    }  # fmt: skip
    assert instance.metrics == {
        "up": 1, "memory_total_bytes": 1000, "memory_used_bytes": 250, "memory_free_bytes": 700,
        "memory_reserved_bytes": 50, "memory_utilization": 0.25, "multiprocessors": 16,
    }  # fmt: skip
    assert host.of(second, seen).metrics == {"up": 1}
    nvml.say({"0/0.uuid": None})
    later = [host.beat() for _ in range(10)][-1]
    assert {thing.id for thing in later.things} == {uuid(0), second}, "taken apart on purpose: it is not missed"


def test_xids_are_counted_by_number_and_where_they_belong(nvml: Nvml, host: Host) -> None:
    nvml.say(
        {"count": 3}
        | gpu(0, **FULL)
        | gpu(1, **FULL | {"mig": 1, "migs_max": 7})
        | {"1/0.uuid": "MIG-1", "1/0.name": "A MIG 1g.5gb", "1/0.gi": 9}
        | gpu(2, **FULL | {"events": "!3"})
    )
    host.beat()
    for gpu_, number, instance in (
        (0, 31, None),
        (0, 79, None),
        (0, 79, None),
        (1, 43, 9),
        (1, 94, None),
        (2, 13, None),
    ):
        nvml.xid(gpu_, number, instance)
    counted: dict[str, dict[str, float]] = {}

    def seen() -> float:
        for thing in host.beat().things:
            for name, count in (thing.counters or {}).items():
                if name.startswith("xid") and count:
                    of = counted.setdefault(thing.id, {})
                    of[name] = of.get(name, 0) + count
        return sum(each["xid_errors"] for each in counted.values())

    wait_until(lambda: seen() == 5, what="every XID of the GPUs that tell them")
    assert counted == {
        uuid(0): {"xid_errors": 3, "xid_hardware_errors": 2, "xid_31_errors": 1, "xid_79_errors": 2},
        uuid(1): {"xid_errors": 1, "xid_hardware_errors": 1, "xid_94_errors": 1},
        "MIG-1": {"xid_errors": 1, "xid_43_errors": 1},
    }


def test_xid_of_a_gpu_that_is_lost_by_it_is_told_all_the_same(nvml: Nvml, host: Host) -> None:
    nvml.say({"count": 1} | gpu(0, **FULL))
    host.beat()
    nvml.xid(0, 79)
    nvml.say({"0.lost": 15})
    told = [host.of(uuid(0))]
    while not told[-1].counters and len(told) < 500:
        time.sleep(POLL_S)
        told.append(host.of(uuid(0)))
    assert told[-1].metrics == {"up": 0}
    assert told[-1].counters == {"xid_errors": 1, "xid_hardware_errors": 1, "xid_79_errors": 1}


def test_gpu_that_is_lost_halfway_through_a_beat_loses_nothing_that_was_counted(nvml: Nvml, host: Host) -> None:
    part: dict[str, Line] = {"0/0.uuid": "MIG-1", "0/0.name": "A MIG 1g.5gb", "0/0.gi": 9, "0/0.memory_v2": "10 1 9 0"}
    nvml.say({"count": 2} | gpu(0, **FULL, mig=1, migs_max=7) | part | gpu(1, **FULL))
    host.beat()
    nvml.xid(0, 79)
    nvml.say(gpu(0, field__83=6_000_000) | {"0/0.memory_v2": "!15"})
    watcher = host.gpus._session._watcher
    assert watcher is not None
    wait_until(lambda: watcher._seen)
    lost = host.of(uuid(0))
    assert (lost.metrics, (lost.counters or {})["xid_79_errors"]) == ({"up": 0}, 1)
    nvml.say({"0/0.memory_v2": "10 1 9 0"})
    assert (host.of(uuid(0)).counters or {})["energy_j"] == pytest.approx(1000)


def test_no_gpu_is_told_to_be_there_and_gone_at_once(nvml: Nvml, host: Host) -> None:
    nvml.say({"count": 2} | gpu(0, **FULL) | gpu(1, **FULL))
    host.beat()
    nvml.say({"1.lost": 9})  # the driver goes while the second is asked
    assert [(thing.id, thing.metrics["up"]) for thing in host.beat().things] == [(uuid(0), 1), (uuid(1), 0)]


def test_gpus_are_watched_where_xids_cannot_be_had(nvml: Nvml, host: Host) -> None:
    nvml.say({"count": 1} | gpu(0, **FULL) | {"event_sets": "!17"})
    first = host.of(uuid(0))
    assert (first.metrics["up"], first.counters) == (1, None)


def test_source_that_is_started_again_opens_nvml_again_and_forgets_nothing(nvml: Nvml, host: Host) -> None:
    nvml.say({"count": 1} | gpu(0, **FULL))
    host.beat()
    nvml.xid(0, 94)
    nvml.say(gpu(0, field__83=5_002_000))
    watcher = host.gpus._session._watcher
    assert watcher is not None
    wait_until(lambda: watcher._seen)
    host.gpus.close()
    again = host.of(uuid(0))
    assert again.metrics["up"] == 1
    assert (again.counters or {}).items() >= {"energy_j": pytest.approx(2), "xid_94_errors": 1}.items()


def test_increases_add_up_to_what_was_counted_whatever_the_resets() -> None:
    increases = Increases()
    told = [increases.of("g", {"x": total}).get("x", 0.0) for total in (100, 150, 150, 20, 25, 0, 3)]
    assert told == [0, 50, 0, 20, 5, 0, 3]
    assert not math.fsum(told) - 78


def test_processes_are_told_with_memory_and_work_and_who_they_are(nvml: Nvml, tmp_path: Path) -> None:
    container, pod = "ab" * 32, "11111111-2222-3333-4444-555555555555"
    for pid, comm, cgroup in (
        (
            4242,
            "python3",
            f"0::/kubepods.slice/kubepods-pod{pod.replace('-', '_')}.slice/cri-containerd-{container}.scope",
        ),
        (77, "Xorg", "0::/system.slice/gdm.service"),
    ):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "comm").write_text(comm + "\n")
        (tmp_path / str(pid) / "cgroup").write_text(cgroup + "\n")
    processes = {
        "compute__0": "4242 5000",
        "compute__1": "9 -1",
        "compute__2": "10 1",
        "graphics__0": "77 300",
        "graphics__1": "4242 5000",
    }
    samples = {
        "sample__0": "100 4242 60 20",
        "sample__1": "200 4242 80 40",
        "sample__2": "150 9 10 0",
        "sample__3": "150 5 900 0",
    }
    nvml.say({"count": 1} | gpu(0, **processes, **samples))
    host = Host(tmp_path, max_processes=3)
    seen = host.beat()
    found = {thing.id.partition("/")[2]: thing for thing in seen.things if thing.entity == "gpu_process"}
    assert seen.left_out == 1, "of four, the smallest"
    assert found["4242"].labels == {
        "gpu": uuid(0), "pid": "4242", "name": "python3", "container_id": container[:12], "pod_uid": pod,
            "qos": "guaranteed", "runtime": "containerd",
    }  # fmt: skip
    assert found["4242"].metrics == pytest.approx(
        {"memory_used_bytes": 5000, "utilization": 0.7, "memory_busy_fraction": 0.3, "encoder_utilization": 0,
         "decoder_utilization": 0}
    )  # fmt: skip
    assert (found["77"].labels, found["77"].metrics) == (
        {"gpu": uuid(0), "pid": "77", "name": "Xorg"}, {"memory_used_bytes": 300}
    )  # fmt: skip
    nvml.say(gpu(0, sample__4="300 4242 10 0"))
    host.beat()
    [later] = [thing for thing in host.beat().things if thing.id.endswith("/4242")]
    assert later.metrics["utilization"] == 0.1, "samples are told once"
    host.gpus.close()
