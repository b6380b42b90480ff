"""GPUs from a page of dcgm-exporter's, under the names and units that NVML's answers have here.

For nodes where that exporter runs already, or where only it may open the driver: it has profiling counters, too, which
need more rights than this agent wants. What its values mean is said by DCGM's field (``dcgm_fields.h``), not by the
help texts of its page, which are wrong about the unit of violations (nanoseconds) and call a rate of PCIe a counter.

Rows of MIG instances repeat what is measured of the whole GPU; here it is told once, of the GPU. A value that DCGM
calls blank is absent. The exporter shows the last XID only, so that one of the same number as before is not seen.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from http.client import HTTPException
from math import isfinite
from typing import Final
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from streammon_agents.gpu.gpus import Increases, Seen
from streammon_agents.gpu.holding import of_holder
from streammon_agents.gpu.questions import Values, throttled
from streammon_agents.gpu.session import called
from streammon_agents.gpu.xids import Xid, counters
from streammon_agents.scrape.pages import PageError, Sample, Series
from streammon_agents.scrape.text import parse
from streammon_agents.source import Finding, Measured

TIMEOUT_S: Final = 5.0
MAX_BYTES: Final = 8 * 1024**2
MIB: Final = 2**20
_CHUNK = 64 * 1024

VALUES: Final[Mapping[str, tuple[str, float]]] = {
    "GPU_UTIL": ("utilization", 1e-2),
    "MEM_COPY_UTIL": ("memory_busy_fraction", 1e-2),
    "ENC_UTIL": ("encoder_utilization", 1e-2),
    "DEC_UTIL": ("decoder_utilization", 1e-2),
    "FB_TOTAL": ("memory_total_bytes", MIB),
    "FB_USED": ("memory_used_bytes", MIB),
    "FB_FREE": ("memory_free_bytes", MIB),
    "FB_RESERVED": ("memory_reserved_bytes", MIB),
    "GPU_TEMP": ("temperature_celsius", 1.0),
    "MEMORY_TEMP": ("memory_temperature_celsius", 1.0),
    "SLOWDOWN_TEMP": ("temperature_slowdown_celsius", 1.0),
    "POWER_USAGE": ("power_w", 1.0),
    "ENFORCED_POWER_LIMIT": ("power_limit_w", 1.0),
    "SM_CLOCK": ("clock_sm_hz", 1e6),
    "MEM_CLOCK": ("clock_memory_hz", 1e6),
    "VIDEO_CLOCK": ("clock_video_hz", 1e6),
    "FAN_SPEED": ("fan_fraction", 1e-2),
    "PSTATE": ("performance_state", 1.0),
    "PCIE_TX_THROUGHPUT": ("pcie_transmit_bytes_per_s", 1e3),
    "PCIE_RX_THROUGHPUT": ("pcie_receive_bytes_per_s", 1e3),
    "PCIE_LINK_WIDTH": ("pcie_link_width", 1.0),
    "PCIE_MAX_LINK_WIDTH": ("pcie_link_width_max", 1.0),
    "PCIE_LINK_GEN": ("pcie_link_generation", 1.0),
    "PCIE_MAX_LINK_GEN": ("pcie_link_generation_max", 1.0),
    "CORRECTABLE_REMAPPED_ROWS": ("remapped_rows_correctable", 1.0),
    "UNCORRECTABLE_REMAPPED_ROWS": ("remapped_rows_uncorrectable", 1.0),
    "ROW_REMAP_PENDING": ("remapped_rows_pending", 1.0),
    "ROW_REMAP_FAILURE": ("remapped_rows_failed", 1.0),
    "RETIRED_SBE": ("retired_pages_single_bit", 1.0),
    "RETIRED_DBE": ("retired_pages_double_bit", 1.0),
    "RETIRED_PENDING": ("retired_pages_pending", 1.0),
}
"""Fields ``DCGM_FI_DEV_…``: what they are called here, and what their unit is in ours."""

PROFILED: Final[Mapping[str, tuple[str, float]]] = {
    "GR_ENGINE_ACTIVE": ("engine_active_fraction", 1.0),
    "SM_ACTIVE": ("sm_active_fraction", 1.0),
    "SM_OCCUPANCY": ("sm_occupancy_fraction", 1.0),
    "PIPE_TENSOR_ACTIVE": ("tensor_active_fraction", 1.0),
    "DRAM_ACTIVE": ("dram_active_fraction", 1.0),
}
"""Fields ``DCGM_FI_PROF_…``, which NVML does not have."""

TOTALS: Final[Mapping[str, tuple[str, float]]] = {
    "TOTAL_ENERGY_CONSUMPTION": ("energy_j", 1e-3),
    "PCIE_REPLAY_COUNTER": ("pcie_replays", 1.0),
    "ECC_SBE_VOL_TOTAL": ("ecc_volatile_corrected_errors", 1.0),
    "ECC_DBE_VOL_TOTAL": ("ecc_volatile_uncorrected_errors", 1.0),
    "ECC_SBE_AGG_TOTAL": ("ecc_aggregate_corrected_errors", 1.0),
    "ECC_DBE_AGG_TOTAL": ("ecc_aggregate_uncorrected_errors", 1.0),
    "POWER_VIOLATION": ("throttled_power_s", 1e-9),
    "THERMAL_VIOLATION": ("throttled_thermal_s", 1e-9),
    "SYNC_BOOST_VIOLATION": ("throttled_sync_boost_s", 1e-9),
    "BOARD_LIMIT_VIOLATION": ("throttled_board_limit_s", 1e-9),
    "LOW_UTIL_VIOLATION": ("throttled_low_utilization_s", 1e-9),
    "RELIABILITY_VIOLATION": ("throttled_reliability_s", 1e-9),
    "NVLINK_CRC_FLIT_ERROR_COUNT_TOTAL": ("nvlink_crc_flit_errors", 1.0),
    "NVLINK_CRC_DATA_ERROR_COUNT_TOTAL": ("nvlink_crc_data_errors", 1.0),
    "NVLINK_REPLAY_ERROR_COUNT_TOTAL": ("nvlink_replay_errors", 1.0),
    "NVLINK_RECOVERY_ERROR_COUNT_TOTAL": ("nvlink_recovery_errors", 1.0),
}
"""Fields ``DCGM_FI_DEV_…`` that only grow."""

REASONS: Final = frozenset({"CLOCK_THROTTLE_REASONS", "CLOCKS_EVENT_REASONS"})
"""The bits of `streammon_agents.gpu.questions.THROTTLED`, by their older and their newer name."""
XID: Final = "XID_ERRORS"
_DEV, _PROF = "DCGM_FI_DEV_", "DCGM_FI_PROF_"
_HOLDER: Final = {"namespace": "pod_namespace", "pod": "pod_name", "container": "container_name"}
"""Labels of who holds the GPU, by what they are called in the exporter's old namespace."""


@dataclass
class Row:
    """What a page says of one GPU or MIG instance."""

    labels: dict[str, str]
    values: Values = field(default_factory=dict)
    totals: Values = field(default_factory=dict)
    xid: int | None = None
    holders: set[tuple[tuple[str, str], ...]] = field(default_factory=set)

    def holder(self) -> dict[str, str]:
        """The names of the only one; shared, it is held by none of them."""
        return dict(*self.holders) if len(self.holders) == 1 else {}

    def with_sums(self) -> Values:
        """Memory as NVML tells it, where the page has only its parts."""
        values = {"up": 1.0} | self.values
        used, free = values.get("memory_used_bytes"), values.get("memory_free_bytes")
        if used is not None and free is not None:
            total = values.setdefault("memory_total_bytes", used + free + values.get("memory_reserved_bytes", 0.0))
            if total:
                values["memory_utilization"] = used / total
        return values


def rows(samples: Iterable[Sample]) -> dict[str, Row]:
    """By id: the UUID of a GPU, or ``UUID/INSTANCE``. What is no field of DCGM's is passed over."""
    found: dict[str, Row] = {}
    for sample in samples:
        name, labels, value = sample.series.name, sample.series.labels, sample.value
        profiled = name.startswith(_PROF)
        key = name.removeprefix(_PROF if profiled else _DEV)
        if key == name or "UUID" not in labels or not isinstance(value, float) or blank(value):
            continue
        instance = labels.get("GPU_I_ID") if profiled or key.startswith("FB_") or key == XID else None
        row = _row(found, labels, instance)
        if names := _holder(labels):
            row.holders.add(names)
        _take(row, key, value, PROFILED if profiled else VALUES)
    return found


def _row(found: dict[str, Row], labels: Mapping[str, str], instance: str | None) -> Row:
    gpu = labels["UUID"]
    id_ = gpu if instance is None else f"{gpu}/{instance}"
    if id_ not in found:
        named = {"index": "gpu", "name": "modelName", "pci_bus_id": "pci_bus_id"}
        kept = {ours: labels[theirs] for ours, theirs in named.items() if labels.get(theirs)}
        if instance is not None:
            kept |= {"parent": gpu, "mig_profile": labels.get("GPU_I_PROFILE", ""), "mig_instance": instance}
        found[id_] = Row(kept)
    return found[id_]


def _holder(labels: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    names = {name: labels.get(name) or labels.get(old, "") for name, old in _HOLDER.items()}
    return tuple(names.items()) if names["pod"] else ()


def _take(row: Row, key: str, value: float, values: Mapping[str, tuple[str, float]]) -> None:
    if key in values:
        metric, scale = values[key]
        row.values[metric] = value * scale
    elif values is PROFILED:
        return
    elif key in TOTALS:
        metric, scale = TOTALS[key]
        row.totals[metric] = value * scale
    elif key in REASONS:
        row.values |= throttled(int(value))
    elif key == XID:
        row.xid = int(value)


def blank(value: float) -> bool:
    """Whether DCGM means that there is no value: not found, not supported, not permitted, or a broken one.

    >>> blank(9223372036854775794.0), blank(140737488355330.0), blank(67.0)
    (True, True, False)
    """
    return not isfinite(value) or value < 0 or value >= 2.0**63 - 4096 or 2**47 <= value < 2**47 + 16


class Dcgm:
    """Reads the page whenever it is asked; an `streammon_agents.gpu.source.Eye`."""

    def __init__(self, url: str, fetch: Callable[[str], bytes] | None = None) -> None:
        self._url, self._fetch = url, fetch or fetched
        self._increases = Increases()
        self._series: Mapping[bytes, Series] = {}
        self._known: dict[str, dict[str, str]] = {}
        self._xids: dict[str, int] = {}

    def measure(self) -> Seen:
        """A page that cannot be had says nothing about GPUs; one without a GPU that was on it, that it is gone."""
        try:
            page = parse(self._fetch(self._url), known=self._series)
        except (OSError, HTTPException, PageError, ValueError) as error:
            return Seen([], f"{_where(self._url)}: {error}")
        self._series, found = page.known, rows(page.samples)
        gone = {id_: labels for id_, labels in self._known.items() if id_ not in found}
        things = [thing for id_, row in found.items() for thing in self._things(id_, row)]
        things += [Measured("gpu", id_, {"up": 0.0}, labels) for id_, labels in gone.items()]
        self._known |= {id_: row.labels for id_, row in found.items() if "parent" not in row.labels}
        why = [f"{called(labels)} is gone" for labels in gone.values()]
        return Seen(things, "; ".join(why) or (None if things else f"{_where(self._url)}: there is no GPU on the page"))

    def _things(self, id_: str, row: Row) -> list[Measured]:
        added = self._increases.of(id_, row.totals)
        if row.xid is not None:
            added |= counters(self._new_xid(id_, row.xid))
        thing = Measured("gpu", id_, row.with_sums(), row.labels, added or None)
        return [thing, *of_holder(thing, row.holder())]

    def _new_xid(self, id_: str, number: int) -> Counter[Xid]:
        before = self._xids.get(id_, number)
        self._xids[id_] = number
        return Counter([Xid(id_, None, number)]) if number not in (0, before) else Counter()

    def check(self) -> Iterator[Finding]:
        """One look at the page."""
        seen = Dcgm(self._url, self._fetch).measure()
        for thing in (thing for thing in seen.things if thing.entity == "gpu"):
            yield Finding(called(thing.labels or {}), True, f"{thing.id}: {len(thing.metrics)} measurements")
        if seen.why:
            yield Finding("GPUs", False, seen.why, "see that dcgm-exporter runs, and agent.gpu.dcgm_url names its page")

    def close(self) -> None:
        """Nothing is kept open."""


def fetched(url: str, timeout_s: float = TIMEOUT_S, monotonic: Callable[[], float] = time.monotonic) -> bytes:
    """The page, whole. Raises OSError or HTTPException: also where it is too long, or takes too long to come."""
    until_s = monotonic() + timeout_s
    request = Request(url, headers={"Accept": "text/plain;version=0.0.4"})  # noqa: S310 - the settings take http only
    page = bytearray()
    with urlopen(request, timeout=timeout_s) as response:  # noqa: S310
        while chunk := response.read1(_CHUNK):
            page += chunk
            if len(page) > MAX_BYTES:
                raise OSError(f"the page has more than {MAX_BYTES} bytes")
            if monotonic() > until_s:
                raise TimeoutError(f"the page did not come within {timeout_s:g} s")
    return bytes(page)


def _where(url: str) -> str:
    """Without a password that somebody may have put there."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.hostname}{f':{parts.port}' if parts.port else ''}{parts.path}"
