"""What well-known Prometheus metrics are in the windows of streammon, for rules that are imported.

The host agent measures hosts (`streammon_agents.host`), and requests come from the SDK or the gateway:
only what they really publish is here. Whoever publishes more says so:
``--metric DCGM_FI_DEV_GPU_TEMP=gauges.temperature``, and of what services are scraped for or send themselves
``--metric http_requests_total=counters.http_requests_total``.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Final, Literal

from streammon.results import DISTRIBUTIONS, Gauge
from streammon_processors.rules.conditions.cel import DISTRIBUTION, NAMED, as_field
from streammon_processors.rules.sources import SOURCES, SourceName, path_of

Kind = Literal["gauge", "rate", "amount", "histogram", "constant"]

REQUEST_LABELS: Final[Mapping[str, str]] = {
    "service": "service", "service_name": "service", "model": "model", "model_name": "model",
    "gen_ai_request_model": "model", "model_version": "model_version", "version": "model_version",
    "endpoint": "endpoint", "handler": "endpoint", "path": "endpoint", "route": "endpoint", "http_route": "endpoint",
    "tenant": "tenant", "host": "host",
}  # fmt: skip
HOST_LABELS: Final[Mapping[str, str]] = {
    "instance": "host",
    "host": "host",
    "nodename": "host",
    "node": "host",
    "job": "",
}
SERVICE_LABELS: Final[Mapping[str, str]] = {"job": "id", "service_name": "id", "instance": "instance"}
"""Of what services count themselves: there is a series for each of their own labels, which `--label` names."""
LEFT_OUT: Final = ""
"""Instead of a label of ours: matchers of that label are left out, and that is told."""


@dataclass(frozen=True)
class Meaning:
    """What a metric is in our windows.

    ``kind``: a *gauge* is a value; a *rate* is a gauge of ours that already counts a second; an *amount* is what a
    window holds of what Prometheus counts since the start; a *histogram* is a distribution; a *constant* is a number.
    """

    field: str
    kind: Kind
    source: SourceName
    where: Mapping[str, str] = dataclasses.field(default_factory=dict)
    labels: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Labels there, and what they are here."""
    merges: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Labels that tell apart there what is one here, and how it has to be put together there."""
    has_status: bool = False
    """Whether ``code="5xx"`` on it makes it the number of errors."""
    is_users: bool = False


def _host(entity: str, gauge: str, kind: Kind = "gauge", *, id_: str = "", label: str = "") -> Meaning:
    where = {"entity": entity, **({"id": id_} if id_ else {})}
    labels = {**HOST_LABELS, **({label: "id"} if label else {})}
    return Meaning(f"gauges.{gauge}", kind, "resource", where, labels)


def _memory(gauge: str, id_: str = "ram") -> Meaning:
    return _host("memory", gauge, id_=id_)


def _filesystem(gauge: str) -> Meaning:
    return _host("filesystem", gauge, label="mountpoint")


def _rate(entity: str, gauge: str) -> Meaning:
    return _host(entity, gauge, "rate", label="device")


def _requests(field_: str, kind: Kind, *, has_status: bool = False) -> Meaning:
    return Meaning(field_, kind, "inference", {}, REQUEST_LABELS, {ANY: "sum"}, has_status)


ANY: Final = "*"
"""Of `Meaning.merges`: labels that nobody knows beforehand, as those of requests."""

CPU_MODES: Final = ("user", "system", "idle", "nice", "iowait", "irq", "softirq", "steal")

KNOWN: Final[Mapping[str, Meaning]] = {
    "node_load1": _host("host", "load_1m"),
    "node_load5": _host("host", "load_5m"),
    "node_load15": _host("host", "load_15m"),
    "node_memory_MemTotal_bytes": _memory("total_bytes"),
    "node_memory_MemAvailable_bytes": _memory("available_bytes"),
    "node_memory_SwapTotal_bytes": _memory("total_bytes", "swap"),
    "node_memory_SwapFree_bytes": _memory("available_bytes", "swap"),
    "node_filesystem_size_bytes": _filesystem("total_bytes"),
    "node_filesystem_avail_bytes": _filesystem("free_bytes"),
    "node_network_receive_bytes_total": _rate("network", "receive_bytes_per_s"),
    "node_network_transmit_bytes_total": _rate("network", "transmit_bytes_per_s"),
    "node_network_receive_packets_total": _rate("network", "receive_packets_per_s"),
    "node_network_transmit_packets_total": _rate("network", "transmit_packets_per_s"),
    "node_network_receive_errs_total": _rate("network", "receive_errors_per_s"),
    "node_network_transmit_errs_total": _rate("network", "transmit_errors_per_s"),
    "node_network_receive_drop_total": _rate("network", "receive_drops_per_s"),
    "node_network_transmit_drop_total": _rate("network", "transmit_drops_per_s"),
    "node_disk_read_bytes_total": _rate("disk", "read_bytes_per_s"),
    "node_disk_written_bytes_total": _rate("disk", "write_bytes_per_s"),
    "node_disk_reads_completed_total": _rate("disk", "read_operations_per_s"),
    "node_disk_writes_completed_total": _rate("disk", "write_operations_per_s"),
    "node_disk_io_time_seconds_total": _rate("disk", "io_time_fraction"),
    "node_cpu_seconds_total": replace(
        _host("cpu", "{mode}_fraction", "rate", id_="total"), merges={"cpu": "avg", "mode": "sum"}
    ),
    "http_requests_total": _requests("count", "amount", has_status=True),
    "http_request_duration_seconds": _requests("duration_s", "histogram"),
    "http_server_request_duration_seconds": _requests("duration_s", "histogram"),
    "gen_ai_server_request_duration_seconds": _requests("duration_s", "histogram"),
    "gen_ai_server_time_to_first_token_seconds": _requests("ttft_s", "histogram"),
    "gen_ai_server_time_per_output_token_seconds": _requests("tpot_s", "histogram"),
    "gen_ai_client_operation_duration_seconds": _requests("duration_s", "histogram"),
    "vllm:e2e_request_latency_seconds": _requests("duration_s", "histogram"),
    "vllm:time_to_first_token_seconds": _requests("ttft_s", "histogram"),
    "vllm:time_per_output_token_seconds": _requests("tpot_s", "histogram"),
    "vllm:request_queue_time_seconds": _requests("queue_s", "histogram"),
    "vllm:request_prompt_tokens": _requests("input_tokens", "histogram"),
    "vllm:request_generation_tokens": _requests("output_tokens", "histogram"),
    "vllm:prompt_tokens_total": _requests("input_tokens.sum", "amount"),
    "vllm:generation_tokens_total": _requests("output_tokens.sum", "amount"),
    "nv_inference_request_success": _requests("count - error_count", "amount"),
    "nv_inference_request_failure": _requests("error_count", "amount"),
}
UPTIME: Final = _host("host", "uptime_s")
"""``time() - node_boot_time_seconds``."""

_SILENCE: Final = "who falls silent is told by `streammon inventory`, or by a rule with `no_data: fire`"
HINTS: Final[Mapping[str, str]] = {
    "up": f"it says whether Prometheus reached somebody; {_SILENCE}",
    "ALERTS": "it is Prometheus' own list of alerts",
    "kube_": "streammon does not watch the objects of Kubernetes",
    "DCGM_": 'say where you publish it: --metric NAME=gauges.NAME{entity="gpu"}',
    "nv_gpu_": 'say where you publish it: --metric NAME=gauges.NAME{entity="gpu"}',
    "node_filesystem_readonly": "the host agent does not measure it; if all of yours can be written, --metric NAME=0",
    "node_": "the host agent does not measure it",
}
"""Why a metric is not known, by how its name begins."""

_SPEC: Final = re.compile(r"(?:(resource|inference):)?([\w.:-]+)(?:\{(.*)\})?")
_WHERE: Final = re.compile(r'\s*([A-Za-z_]\w*)\s*=\s*"([^"\\]*)"\s*(?:,|$)')
_AMOUNTS: Final = ("count", "error_count", *(f"{name}.{part}" for name in DISTRIBUTIONS for part in ("sum", "count")))


def meaning_of(text: str) -> Meaning:
    """Of ``gauges.temperature{entity="gpu"}``, ``inference:gauges.queue``, ``ttft_s``, ``count`` or a number.

    Raises:
        ValueError: it is none of that; says what may stand there.
    """
    try:
        number = float(text)
    except ValueError:
        return _of_field(text)
    if not abs(number) < float("inf"):
        raise ValueError(f"{text!r} is no finite number")
    return Meaning(f"{number:g}", "constant", "resource", is_users=True)


def _of_field(text: str) -> Meaning:
    found = _SPEC.fullmatch(text.strip())
    if not found:
        raise ValueError(f'{text!r} is no field; write gauges.NAME, ttft_s, count … or gauges.NAME{{entity="gpu"}}')
    name, where = found[2], _where(found[3] or "", text)
    parts = name.split(".")
    source: SourceName = "resource" if parts[0] in NAMED else "inference"
    source = found[1] or source  # type: ignore[assignment]  # the pattern allows no other
    if parts[0] == "gauges" and parts[-1] in Gauge.__struct_fields__ and len(parts) > 2:
        name = ".".join(parts[:-1])  # which statistic is the expression's to say
    labels, merges = (REQUEST_LABELS, {ANY: "sum"}) if source == "inference" else ({**HOST_LABELS, "id": "id"}, {})
    if parts[0] in ("counters", "distributions"):
        labels = SERVICE_LABELS
    kind: Kind
    if SOURCES[source].kind_of(name) == DISTRIBUTION:
        name, kind = as_field(name), "histogram"
    elif parts[0] == "counters" and not path_of(source, name) and path_of(source, f"{name}.sum"):
        name, kind = as_field(f"{name}.sum"), "amount"
    elif path_of(source, f"{name}.last" if parts[0] == "gauges" else name):
        kind = "amount" if name in _AMOUNTS or (labels is SERVICE_LABELS and parts[-1] in ("sum", "count")) else "gauge"
    else:
        raise ValueError(f"{name!r} is not a field of {source} windows")
    return Meaning(name, kind, source, where, labels, merges, is_users=True)


def _where(text: str, whole: str) -> dict[str, str]:
    found = dict(_WHERE.findall(text))
    if _WHERE.sub("", text).strip():
        raise ValueError(f'{whole!r}: between the braces stands label="value"')
    return found
