"""Pages of dcgm-exporter's: the same names, units and meanings as NVML's."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from math import isfinite
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streammon_agents.gpu.dcgm import PROFILED, TOTALS, VALUES, Dcgm, blank, fetched
from streammon_agents.gpu.gpus import Seen
from streammon_agents.gpu.questions import FIELDS_OFTEN, FIELDS_SELDOM, OFTEN, SELDOM
from streammon_agents.source import Measured

GPU0, GPU1 = "GPU-6ad7ea4c-5517-05e7-43d4-8d1f2fa26ef5", "GPU-1f027ee8-6e1e-2b8c-0108-3d370e5f0418"
WHO = 'gpu="0",UUID="{}",pci_bus_id="00000000:06:00.0",device="nvidia0",modelName="NVIDIA H100 80GB HBM3",Hostname="n1"'
HELD = ',DCGM_FI_DRIVER_VERSION="570.86.15",container="server",namespace="ml",pod="ranker-0",pod_uid=""'
MIG = ',GPU_I_PROFILE="2g.20gb",GPU_I_ID="{}",DCGM_FI_DRIVER_VERSION="535.129.03"'


def line(name: str, value: object, uuid: str = GPU0, more: str = HELD) -> str:
    return f"DCGM_FI_{name}{{{WHO.format(uuid)}{more}}} {value}"


PAGE = [
    "# HELP DCGM_FI_DEV_SM_CLOCK SM clock frequency (in MHz).",
    "# TYPE DCGM_FI_DEV_SM_CLOCK gauge",
    line("DEV_SM_CLOCK", 1740),
    line("DEV_MEM_CLOCK", 2619),
    line("DEV_MEMORY_TEMP", 9223372036854775794),  # not supported
    line("DEV_GPU_TEMP", 67),
    line("DEV_POWER_USAGE", 612.345),
    "# HELP DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION Total energy consumption since boot (in mJ).",
    "# TYPE DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION counter",
    line("DEV_TOTAL_ENERGY_CONSUMPTION", 5000000),
    line("DEV_PCIE_REPLAY_COUNTER", 5),
    line("DEV_GPU_UTIL", 87),
    line("DEV_MEM_COPY_UTIL", 41),
    line("DEV_XID_ERRORS", 31, more=HELD + ',err_code="31",err_msg="GPU memory page fault"'),
    line("DEV_POWER_VIOLATION", 7000000000),
    line("DEV_CLOCKS_EVENT_REASONS", 0x4),
    line("DEV_FB_FREE", 19968),
    line("DEV_FB_USED", 61440),
    line("DEV_FB_RESERVED", 512),
    line("DEV_UNCORRECTABLE_REMAPPED_ROWS", 1),
    line("DEV_VGPU_LICENSE_STATUS", 0),
    line("PROF_PIPE_TENSOR_ACTIVE", 0.62),
    "go_goroutines 12",
]


class Exporter:
    """Its page, as it is now."""

    def __init__(self, lines: list[str]) -> None:
        self.lines = lines
        self.eye = Dcgm("http://node:9400/metrics", lambda _: ("\n".join(self.lines) + "\n").encode())

    def change(self, name: str, value: object, **more: str) -> None:
        self.lines = [each for each in self.lines if not each.startswith(f"DCGM_FI_{name}{{")]
        self.lines.append(line(name, value, **more))

    def one(self, seen: Seen | None = None) -> Measured:
        [thing] = [thing for thing in (seen or self.eye.measure()).things if thing.entity == "gpu"]
        return thing


def test_page_is_told_in_the_names_and_units_of_nvml() -> None:
    first = Exporter(PAGE).one()
    assert (first.entity, first.id) == ("gpu", GPU0)
    assert first.labels == {
        "index": "0", "name": "NVIDIA H100 80GB HBM3", "pci_bus_id": "00000000:06:00.0"
    }  # fmt: skip
    throttled = {name: 0 for name in first.metrics if name.startswith("throttled_")} | {
        "throttled_power_cap_fraction": 1
    }
    assert first.metrics == pytest.approx(
        {
            "up": 1, "utilization": 0.87, "memory_busy_fraction": 0.41, "clock_sm_hz": 1.74e9,
            "clock_memory_hz": 2.619e9, "temperature_celsius": 67, "power_w": 612.345, "memory_used_bytes": 60 * 2**30,
            "memory_free_bytes": 19968 * 2**20, "memory_reserved_bytes": 512 * 2**20, "memory_total_bytes": 80 * 2**30,
            "memory_utilization": 0.75, "remapped_rows_uncorrectable": 1, "tensor_active_fraction": 0.62,
        } | throttled
    )  # fmt: skip
    assert len(throttled) == 7
    assert first.counters == {"xid_errors": 0, "xid_hardware_errors": 0}, "an XID of before is none of now"


def test_every_name_is_one_of_nvmls_unless_only_dcgm_has_it() -> None:
    ours = {question.name for question in (*OFTEN, *SELDOM)} | {each.metric for each in (*FIELDS_OFTEN, *FIELDS_SELDOM)}
    parts = ("memory_", "remapped_rows_", "utilization")
    for metric, _ in (*VALUES.values(), *TOTALS.values()):
        assert metric in ours or metric.startswith(parts), metric
    assert not ours & {metric for metric, _ in PROFILED.values()}


def test_totals_and_xids_are_told_as_what_came_since_the_page_before() -> None:
    exporter = Exporter(PAGE)
    exporter.eye.measure()
    exporter.change("DEV_TOTAL_ENERGY_CONSUMPTION", 5250000)
    exporter.change("DEV_POWER_VIOLATION", 8500000000)
    exporter.change("DEV_XID_ERRORS", 79)
    assert exporter.one().counters == pytest.approx(
        {"energy_j": 250, "pcie_replays": 0, "throttled_power_s": 1.5, "xid_errors": 1, "xid_hardware_errors": 1,
         "xid_79_errors": 1}
    )  # fmt: skip
    exporter.change("DEV_TOTAL_ENERGY_CONSUMPTION", 1000)
    told = exporter.one().counters or {}
    assert (told["energy_j"], told["xid_errors"]) == (1, 0), "begun anew; and the same XID as before is no new one"


def test_instances_have_their_memory_and_the_gpu_what_is_measured_of_all_of_it() -> None:
    lines = []
    for instance, used in (("3", 100), ("5", 200)):
        more = MIG.format(instance) + f',container="c",namespace="ml",pod="p{instance}"'
        lines += [
            line("DEV_POWER_USAGE", 300, more=more),
            line("DEV_TOTAL_ENERGY_CONSUMPTION", 1000, more=more),
            line("DEV_FB_USED", used, more=more),
            line("PROF_GR_ENGINE_ACTIVE", 0.5, more=more),
        ]
    things = {thing.id: thing for thing in Exporter(lines).eye.measure().things}
    assert things.keys() == {GPU0, f"{GPU0}/3", f"{GPU0}/5", "ml/p3/c", "ml/p5/c"}, "the whole is held by none of them"
    assert things[GPU0].metrics == {"up": 1, "power_w": 300}
    part = things[f"{GPU0}/3"]
    assert part.metrics == {"up": 1, "memory_used_bytes": 100 * 2**20, "engine_active_fraction": 0.5}
    assert (part.labels or {}).items() >= {
        "parent": GPU0, "mig_profile": "2g.20gb", "mig_instance": "3"
    }.items()  # fmt: skip
    assert things["ml/p3/c"].metrics == {"gpu_memory_used_bytes": 100 * 2**20, "gpu_engine_active_fraction": 0.5}
    assert (things["ml/p3/c"].labels or {})["gpu"] == f"{GPU0}/3"


def test_gpu_that_is_gone_from_the_page_is_told_and_a_page_that_is_away_tells_nothing() -> None:
    exporter = Exporter([line("DEV_GPU_UTIL", 1), line("DEV_GPU_UTIL", 2, GPU1)])
    labels = {thing.id: thing.labels for thing in exporter.eye.measure().things}
    exporter.lines = [line("DEV_GPU_UTIL", 1)]
    seen = exporter.eye.measure()
    assert [thing for thing in seen.things if thing.id == GPU1] == [Measured("gpu", GPU1, {"up": 0}, labels[GPU1])]
    assert seen.why == "GPU 0 (NVIDIA H100 80GB HBM3) is gone"

    def away(_: str) -> bytes:
        raise ConnectionRefusedError("connection refused")

    assert Dcgm("http://u:secret@node:9400/metrics", away).measure() == Seen(
        [], "http://node:9400/metrics: connection refused"
    )


@pytest.mark.parametrize("page", [b"\x00\xff", b"DCGM_FI_DEV_GPU_UTIL{", b"", b"a b c d e"])
def test_page_that_is_none_is_said_to_be_none(page: bytes) -> None:
    seen = Dcgm("http://node:9400/metrics", lambda _: page).measure()
    assert not seen.things
    assert (seen.why or "").startswith("http://node:9400/metrics: ")


@settings(max_examples=100, deadline=None)
@given(st.lists(st.one_of(st.sampled_from(PAGE), st.text(max_size=40)), max_size=12), st.binary(max_size=20))
def test_no_page_ends_the_source(lines: list[str], tail: bytes) -> None:
    eye = Dcgm("http://node:9400/metrics", lambda _: "\n".join(lines).encode("utf-8", "surrogatepass") + tail)
    for _ in range(2):
        seen = eye.measure()
        assert seen.things or seen.why
        assert all(isfinite(value) for thing in seen.things for value in thing.metrics.values())


def test_blank_values_of_every_type_are_absent() -> None:
    assert all(
        blank(value) for value in (2.0**63 - 16, 2.0**63 - 14, 2.0**47, 2.0**47 + 3, float("nan"), float("inf"), -1.0)
    )
    assert not any(blank(value) for value in (0.0, 100.0, 319159391.0, 2.0**40))


@contextmanager
def served(answer: Any) -> Iterator[str]:
    """A page over HTTP; ``answer(handler)`` writes it."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            answer(self)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/metrics"
    finally:
        server.shutdown()
        server.server_close()


def test_page_comes_over_http_whole_or_not_at_all() -> None:
    def endless(handler: BaseHTTPRequestHandler) -> None:
        try:
            while True:
                handler.wfile.write(b"# nothing\n" * 10_000)
        except OSError:
            pass

    with served(lambda handler: handler.wfile.write("\n".join(PAGE).encode())) as url:
        first = Dcgm(url).measure().things[0]
        assert first.metrics["power_w"] == 612.345
        assert [finding.seen for finding in Dcgm(url).check()] == [True]
    with served(endless) as url:
        assert "more than 8388608 bytes" in (Dcgm(url).measure().why or "")
        ticks = iter([0.0, 0.1, 9.0, 9.0])
        with pytest.raises(TimeoutError, match="within 5 s"):
            fetched(url, monotonic=lambda: next(ticks))
    [finding] = Dcgm(url).check()
    assert (finding.seen, bool(finding.detail)) == (False, True)
