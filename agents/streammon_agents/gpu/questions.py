"""What is asked of a GPU, and what each answer is called: the table behind ``docs/gpu.md``.

Every question is one call of NVML (`Question`), or one of the field values that a single call answers (`Field`). What
is cumulative (``total``) is told as an increase. `OFTEN` is asked on every beat; `SELDOM` is what changes seldom, or
takes the driver milliseconds: PCIe throughput is measured over 20 ms by the call itself. Nothing here needs more
rights than to open the device; profiling counters, which need SYS_ADMIN, are not asked for.

Ids of fields above 250 are left out: the binding and drivers of CUDA 12 disagree about their numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

Nvml = Any
"""The module ``pynvml``, which has no types."""
Handle = Any
Values = dict[str, float]


class Question(NamedTuple):
    """``name``: what is told, in short, where the answer is missing. ``ask`` raises ``NVMLError``."""

    name: str
    ask: Callable[[Nvml, Handle], Values]
    total: bool = False


class Field(NamedTuple):
    """``field``: its name in ``nvml.h`` after ``NVML_FI_DEV_``; ``scale``: what its unit is in ours."""

    metric: str
    field: str
    scale: float = 1.0
    total: bool = False
    scope: int = 0


def _one(call: str, metric: str, scale: float = 1.0, *constants: str, total: bool = False) -> Question:
    """A call that answers with one number; further arguments are constants of the binding."""

    def ask(nvml: Nvml, handle: Handle) -> Values:
        return {metric: getattr(nvml, call)(handle, *(getattr(nvml, name) for name in constants)) * scale}

    return Question(metric, ask, total)


def _newer(nvml: Nvml, old: str, new: str) -> Callable[..., Any]:
    """A call by the name that every driver of today has, and by the one that replaces it where that is gone."""

    def call(*arguments: Any) -> Any:
        try:
            return getattr(nvml, old)(*arguments)
        except nvml.NVMLError_FunctionNotFound:
            return getattr(nvml, new)(*arguments)

    return call


# --- on every beat --------------------------------------------------------------------------------------


def _utilization(nvml: Nvml, handle: Handle) -> Values:
    rates = nvml.nvmlDeviceGetUtilizationRates(handle)
    return {"utilization": rates.gpu / 100, "memory_busy_fraction": rates.memory / 100}


def _engine(engine: str) -> Question:
    """Encoder, decoder and their like; the answer comes with the time it is measured over, of no use here."""
    call, metric = f"nvmlDeviceGet{engine.capitalize()}Utilization", f"{engine}_utilization"
    return Question(metric, lambda nvml, handle: {metric: getattr(nvml, call)(handle)[0] / 100})


def memory(nvml: Nvml, handle: Handle) -> Values:
    """What is reserved is neither used nor free; only newer drivers tell it apart."""
    try:
        sizes = nvml.nvmlDeviceGetMemoryInfo(handle, version=nvml.nvmlMemory_v2)
        values = {"memory_reserved_bytes": sizes.reserved}
    except nvml.NVMLError as error:
        if error.value not in _OTHER_VERSION:
            raise
        sizes, values = nvml.nvmlDeviceGetMemoryInfo(handle), {}
    values |= {"memory_total_bytes": sizes.total, "memory_used_bytes": sizes.used, "memory_free_bytes": sizes.free}
    return values | ({"memory_utilization": sizes.used / sizes.total} if sizes.total else {})


_OTHER_VERSION: Final = frozenset({3, 13, 25})
"""NOT_SUPPORTED, FUNCTION_NOT_FOUND, ARGUMENT_VERSION_MISMATCH: a library that knows the older form only."""


def _temperature(nvml: Nvml, handle: Handle) -> Values:
    ask = _newer(nvml, "nvmlDeviceGetTemperature", "nvmlDeviceGetTemperatureV")
    return {"temperature_celsius": ask(handle, nvml.NVML_TEMPERATURE_GPU)}


THROTTLED: Final[Mapping[str, int]] = {
    "power_cap": 0x4,
    "hw_slowdown": 0x8,
    "sync_boost": 0x10,
    "sw_thermal": 0x20,
    "hw_thermal": 0x40,
    "power_brake": 0x80,
}
"""Why clocks are lower than they could be, by the bits of ``nvmlClocksEventReason…``."""
HARMFUL: Final = 0x8 | 0x20 | 0x40 | 0x80
"""Heat and power delivery. A GPU at its power cap works as it was bought, and one that idles may clock down."""


def throttled(reasons: int) -> Values:
    """1 for each reason that holds now, 0 for the others; the mean of a window is the fraction of its time."""
    each = {f"throttled_{name}_fraction": float(bool(reasons & bit)) for name, bit in THROTTLED.items()}
    return {"throttled_fraction": float(bool(reasons & HARMFUL)), **each}


def _throttled(nvml: Nvml, handle: Handle) -> Values:
    ask = _newer(nvml, "nvmlDeviceGetCurrentClocksThrottleReasons", "nvmlDeviceGetCurrentClocksEventReasons")
    return throttled(ask(handle))


OFTEN: Final = (
    Question("utilization", _utilization),
    _engine("encoder"),
    _engine("decoder"),
    Question("memory", memory),
    Question("temperature_celsius", _temperature),
    _one("nvmlDeviceGetPowerUsage", "power_w", 1e-3),
    _one("nvmlDeviceGetClockInfo", "clock_sm_hz", 1e6, "NVML_CLOCK_SM"),
    _one("nvmlDeviceGetClockInfo", "clock_memory_hz", 1e6, "NVML_CLOCK_MEM"),
    Question("throttled", _throttled),
)

FIELDS_OFTEN: Final = (
    Field("energy_j", "TOTAL_ENERGY_CONSUMPTION", 1e-3, total=True),
    Field("memory_temperature_celsius", "MEMORY_TEMP"),
)

# --- seldom ---------------------------------------------------------------------------------------------


def _performance_state(nvml: Nvml, handle: Handle) -> Values:
    state = nvml.nvmlDeviceGetPerformanceState(handle)
    return {"performance_state": state} if state != nvml.NVML_PSTATE_UNKNOWN else {}


def _remapped_rows(nvml: Nvml, handle: Handle) -> Values:
    names = ("correctable", "uncorrectable", "pending", "failed")
    return {
        f"remapped_rows_{name}": value
        for name, value in zip(names, nvml.nvmlDeviceGetRemappedRows(handle), strict=True)
    }


def _nvlinks(nvml: Nvml, handle: Handle) -> Values:
    """How many links there are and are up. The first that is not there ends the search."""
    active: list[int] = []
    for link in range(nvml.NVML_NVLINK_MAX_LINKS):
        try:
            active.append(nvml.nvmlDeviceGetNvLinkState(handle, link))
        except (nvml.NVMLError_NotSupported, nvml.NVMLError_InvalidArgument):
            if not active:
                raise
            break
    return {"nvlink_links": len(active), "nvlink_active_links": sum(map(bool, active))}


MAX_LINKS: Final = 18
OF_LINKS: Final = {
    "nvlink_link_crc_errors": "NVLINK_ERROR_DL_CRC",
    "nvlink_link_replay_errors": "NVLINK_ERROR_DL_REPLAY",
    "nvlink_link_recovery_errors": "NVLINK_ERROR_DL_RECOVERY",
}
"""What Hopper's links count, each for itself."""


def _link_errors(nvml: Nvml, handle: Handle) -> Values:
    """The sums over the links that there are."""
    fields = [Field(metric, name, scope=link) for link in range(MAX_LINKS) for metric, name in OF_LINKS.items()]
    answers = list(values_of(nvml, handle, fields))
    if all(answer.error for answer in answers):
        raise nvml.NVMLError(answers[0].error)
    sums = dict.fromkeys((answer.field.metric for answer in answers if not answer.error), 0.0)
    for answer in answers:
        if not answer.error:
            sums[answer.field.metric] += answer.value
    return sums


def _ecc(counter: str, kind: str) -> Question:
    return _one(
        "nvmlDeviceGetTotalEccErrors",
        f"ecc_{counter}_{kind}_errors",
        1.0,
        f"NVML_MEMORY_ERROR_TYPE_{kind.upper()}",
        f"NVML_{counter.upper()}_ECC",
        total=True,
    )


SELDOM: Final = (
    _engine("jpg"),
    _engine("ofa"),
    _one("nvmlDeviceGetClockInfo", "clock_graphics_hz", 1e6, "NVML_CLOCK_GRAPHICS"),
    _one("nvmlDeviceGetClockInfo", "clock_video_hz", 1e6, "NVML_CLOCK_VIDEO"),
    _one("nvmlDeviceGetEnforcedPowerLimit", "power_limit_w", 1e-3),
    _one(
        "nvmlDeviceGetTemperatureThreshold",
        "temperature_slowdown_celsius",
        1.0,
        "NVML_TEMPERATURE_THRESHOLD_SLOWDOWN",
    ),
    _one("nvmlDeviceGetFanSpeed", "fan_fraction", 1e-2),
    Question("performance_state", _performance_state),
    _ecc("volatile", "corrected"),
    _ecc("volatile", "uncorrected"),
    _ecc("aggregate", "corrected"),
    _ecc("aggregate", "uncorrected"),
    Question("remapped_rows", _remapped_rows),
    _one("nvmlDeviceGetPcieReplayCounter", "pcie_replays", total=True),
    _one("nvmlDeviceGetCurrPcieLinkWidth", "pcie_link_width"),
    _one("nvmlDeviceGetMaxPcieLinkWidth", "pcie_link_width_max"),
    _one("nvmlDeviceGetCurrPcieLinkGeneration", "pcie_link_generation"),
    _one("nvmlDeviceGetMaxPcieLinkGeneration", "pcie_link_generation_max"),
    _one("nvmlDeviceGetPcieThroughput", "pcie_transmit_bytes_per_s", 1e3, "NVML_PCIE_UTIL_TX_BYTES"),
    _one("nvmlDeviceGetPcieThroughput", "pcie_receive_bytes_per_s", 1e3, "NVML_PCIE_UTIL_RX_BYTES"),
    Question("nvlinks", _nvlinks),
    Question("nvlink_link_errors", _link_errors, total=True),
)

ALL_LINKS: Final = 0xFFFFFFFF
"""Of a field that NVML keeps for each NVLink: the sum of all."""

FIELDS_SELDOM: Final = (
    Field("throttled_power_s", "PERF_POLICY_POWER", 1e-9, total=True),
    Field("throttled_thermal_s", "PERF_POLICY_THERMAL", 1e-9, total=True),
    Field("throttled_sync_boost_s", "PERF_POLICY_SYNC_BOOST", 1e-9, total=True),
    Field("throttled_board_limit_s", "PERF_POLICY_BOARD_LIMIT", 1e-9, total=True),
    Field("throttled_low_utilization_s", "PERF_POLICY_LOW_UTILIZATION", 1e-9, total=True),
    Field("throttled_reliability_s", "PERF_POLICY_RELIABILITY", 1e-9, total=True),
    Field("retired_pages_single_bit", "RETIRED_SBE"),
    Field("retired_pages_double_bit", "RETIRED_DBE"),
    Field("retired_pages_pending", "RETIRED_PENDING"),
    Field("nvlink_transmit_bytes", "NVLINK_THROUGHPUT_DATA_TX", 1024, total=True, scope=ALL_LINKS),
    Field("nvlink_receive_bytes", "NVLINK_THROUGHPUT_DATA_RX", 1024, total=True, scope=ALL_LINKS),
    Field("nvlink_crc_flit_errors", "NVLINK_CRC_FLIT_ERROR_COUNT_TOTAL", total=True),
    Field("nvlink_crc_data_errors", "NVLINK_CRC_DATA_ERROR_COUNT_TOTAL", total=True),
    Field("nvlink_replay_errors", "NVLINK_REPLAY_ERROR_COUNT_TOTAL", total=True),
    Field("nvlink_recovery_errors", "NVLINK_RECOVERY_ERROR_COUNT_TOTAL", total=True),
    Field("recovery_action", "GET_GPU_RECOVERY_ACTION"),
)

EVERYTHING: Final = ((*OFTEN, *SELDOM), (*FIELDS_OFTEN, *FIELDS_SELDOM))

# --- of a MIG instance ----------------------------------------------------------------------------------


def _attributes(nvml: Nvml, handle: Handle) -> Values:
    return {"multiprocessors": nvml.nvmlDeviceGetAttributes_v2(handle).multiprocessorCount}


OF_INSTANCES: Final = (Question("memory", memory), Question("multiprocessors", _attributes))
"""An instance has memory of its own; utilisation, power and heat are those of the whole GPU."""


class FieldValue(NamedTuple):
    """``error``: why there is no value, as NVML numbers it; 0: there is."""

    field: Field
    value: float
    error: int


def values_of(nvml: Nvml, handle: Handle, fields: Sequence[Field]) -> Iterator[FieldValue]:
    """All of them with one call."""
    wanted = [(getattr(nvml, f"NVML_FI_DEV_{field.field}"), field.scope) for field in fields]
    for field, found in zip(fields, nvml.nvmlDeviceGetFieldValues(handle, wanted), strict=True):
        ok = found.nvmlReturn == nvml.NVML_SUCCESS
        value = getattr(found.value, _VALUES[found.valueType]) * field.scale if ok else 0.0
        yield FieldValue(field, value, found.nvmlReturn)


_VALUES: Final = ("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal")
"""Where a value is, by ``nvmlValueType_t``."""
