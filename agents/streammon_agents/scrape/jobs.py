"""What is scraped, and how: ``agent.scrape.jobs``, each shaped as one of Prometheus' ``scrape_configs``.

Fields are named and mean what they do there, so that a job may be taken over as it is. A field that we do not
understand is an error that names it; nothing is passed over in silence. What is different: the interval is 15 s where
none is given, and there always are limits: 0 asks for the default, not for none.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Struct
from pydantic import SecretStr

from streammon.durations import Duration, seconds
from streammon.errors import ConfigError
from streammon_agents.scrape.pages import LIMITS, Limits
from streammon_agents.scrape.relabel import Rule

INTERVAL: Final = "15s"
TIMEOUT_S: Final = 10.0
SHORTEST_INTERVAL_S: Final = 0.05
MAX_BODY_BYTES: Final = 8 * 1024**2
MAX_TARGETS: Final = 200
"""Of one job."""

Name = Annotated[str, Meta(min_length=1, max_length=256)]
Count = Annotated[int, Meta(ge=0)]
Protocol = Literal[
    "PrometheusProto", "OpenMetricsText1.0.0", "OpenMetricsText0.0.1", "PrometheusText1.0.0", "PrometheusText0.0.4"
]
TEXTS: Final[tuple[Protocol, ...]] = (
    "OpenMetricsText1.0.0",
    "OpenMetricsText0.0.1",
    "PrometheusText1.0.0",
    "PrometheusText0.0.4",
)
_UNITS: Final = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3}


class _Given(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A part of a job."""


class BasicAuth(_Given, frozen=True):
    """User and password."""

    username: str = ""
    username_file: str | None = None
    password: SecretStr | None = None
    password_file: str | None = None


class Authorization(_Given, frozen=True):
    """Any other ``Authorization``, such as a bearer token."""

    type: Name = "Bearer"
    credentials: SecretStr | None = None
    credentials_file: str | None = None


class TlsConfig(_Given, frozen=True):
    """How the target is trusted, and who we are to it."""

    ca_file: str | None = None
    cert_file: str | None = None
    key_file: str | None = None
    server_name: str | None = None
    insecure_skip_verify: bool = False


class StaticConfig(_Given, frozen=True):
    """Targets, ``HOST:PORT`` each, that have labels in common. Files of targets hold lists of these."""

    targets: list[Name]
    labels: dict[str, str] = {}


class FileSdConfig(_Given, frozen=True):
    """Files of targets, JSON or YAML; the last part of a path may hold ``*``."""

    files: Annotated[list[Name], Meta(min_length=1)]
    refresh_interval: Duration = "5s"

    def __post_init__(self) -> None:
        _seconds("refresh_interval", self.refresh_interval)


class Namespaces(_Given, frozen=True):
    """Of which namespaces pods are wanted; without names, of all."""

    names: list[Name] = []


class KubernetesSdConfig(_Given, frozen=True):
    """The pods of this node, by the API server of the cluster that we run in."""

    role: Literal["pod"]
    namespaces: Namespaces = Namespaces()


class Job(_Given, frozen=True):
    """One job."""

    job_name: Name
    scrape_interval: Duration = INTERVAL
    scrape_timeout: Duration | None = None
    scrape_protocols: list[Protocol] = []
    scrape_native_histograms: bool = False
    fallback_scrape_protocol: Protocol | None = None
    metrics_path: Name = "/metrics"
    scheme: Literal["http", "https"] = "http"
    params: dict[str, list[str]] = {}
    honor_labels: bool = False
    honor_timestamps: bool = True
    enable_compression: bool = True
    follow_redirects: bool = True
    basic_auth: BasicAuth | None = None
    authorization: Authorization | None = None
    bearer_token: SecretStr | None = None
    bearer_token_file: str | None = None
    tls_config: TlsConfig = TlsConfig()
    static_configs: list[StaticConfig] = []
    file_sd_configs: list[FileSdConfig] = []
    kubernetes_sd_configs: list[KubernetesSdConfig] = []
    relabel_configs: list[Rule] = []
    metric_relabel_configs: list[Rule] = []
    body_size_limit: Count | str = 0
    sample_limit: Count = 0
    label_limit: Count = 0
    label_name_length_limit: Count = 0
    label_value_length_limit: Count = 0
    target_limit: Count = 0

    def __post_init__(self) -> None:
        if self.interval_s < SHORTEST_INTERVAL_S:
            raise ValueError(f"scrape_interval = {self.scrape_interval!r} has to be at least {SHORTEST_INTERVAL_S} s")
        if not 0 < self.timeout_s <= self.interval_s:
            raise ValueError(f"scrape_timeout = {self.scrape_timeout!r} has to be at most the interval, and above 0")
        given = [self.basic_auth, self.authorization, self.bearer_token, self.bearer_token_file]
        if sum(each is not None for each in given) > 1:
            raise ValueError("of basic_auth, authorization, bearer_token and bearer_token_file only one may be given")
        _bytes(self.body_size_limit)

    @property
    def interval_s(self) -> float:
        return _seconds("scrape_interval", self.scrape_interval)

    @property
    def timeout_s(self) -> float:
        if self.scrape_timeout is None:
            return min(TIMEOUT_S, self.interval_s)
        return _seconds("scrape_timeout", self.scrape_timeout)

    @property
    def protocols(self) -> Sequence[Protocol]:
        """In the order in which they are preferred."""
        return self.scrape_protocols or (("PrometheusProto", *TEXTS) if self.scrape_native_histograms else TEXTS)

    @property
    def max_body_bytes(self) -> int:
        return _bytes(self.body_size_limit) or MAX_BODY_BYTES

    @property
    def max_targets(self) -> int:
        return self.target_limit or MAX_TARGETS

    @property
    def max_samples(self) -> int:
        """Of a page, after relabelling."""
        return self.sample_limit or LIMITS.samples

    @property
    def limits(self) -> Limits:
        """Of a page as it comes: it may hold more samples than relabelling leaves."""
        given = (
            max(self.max_samples, LIMITS.samples),
            self.label_limit,
            self.label_name_length_limit,
            self.label_value_length_limit,
        )
        return Limits(*(limit or default for limit, default in zip(given, LIMITS, strict=True)))


def _bytes(size: int | str) -> int:
    """``10MB`` and ``10MiB`` are the same in Prometheus."""
    found = re.fullmatch(r"(\d+)\s*([KMG]?)(?:iB|B)?", str(size))
    if found is None:
        raise ValueError(f"body_size_limit = {size!r} is no size; write bytes, or a text such as 10MB")
    return int(found[1]) * _UNITS[found[2]]


ANNOTATED_PODS: Final[Mapping[str, Any]] = {
    "job_name": "kubernetes-pods",
    "kubernetes_sd_configs": [{"role": "pod"}],
    "relabel_configs": [
        {
            "source_labels": ["__meta_kubernetes_pod_annotation_prometheus_io_scrape"],
            "action": "keep",
            "regex": "true",
        },
        {
            "source_labels": ["__meta_kubernetes_pod_phase"],
            "action": "drop",
            "regex": "Pending|Succeeded|Failed|Completed",
        },
        {
            "source_labels": ["__meta_kubernetes_pod_container_init"],
            "action": "drop",
            "regex": "true",
        },
        {
            "source_labels": ["__meta_kubernetes_pod_annotation_prometheus_io_scheme"],
            "regex": "(https?)",
            "target_label": "__scheme__",
        },
        {
            "source_labels": ["__meta_kubernetes_pod_annotation_prometheus_io_path"],
            "regex": "(.+)",
            "target_label": "__metrics_path__",
        },
        {
            "source_labels": [
                "__meta_kubernetes_pod_ip",
                "__meta_kubernetes_pod_annotation_prometheus_io_port",
            ],
            "regex": r"([^:]+);(\d+)",
            "replacement": "$1:$2",
            "target_label": "__address__",
        },
        {
            "source_labels": [
                "__meta_kubernetes_pod_ip",
                "__meta_kubernetes_pod_annotation_prometheus_io_port",
            ],
            "regex": r"(.*:.*);(\d+)",
            "replacement": "[$1]:$2",
            "target_label": "__address__",
        },
        {"source_labels": ["__meta_kubernetes_namespace"], "target_label": "namespace"},
        {"source_labels": ["__meta_kubernetes_pod_name"], "target_label": "pod"},
        {
            "source_labels": ["__meta_kubernetes_pod_label_app"],
            "regex": "(.+)",
            "target_label": "service",
        },
        {
            "source_labels": ["__meta_kubernetes_pod_label_app_kubernetes_io_name"],
            "regex": "(.+)",
            "target_label": "service",
        },
    ],
}
"""The well-known job that scrapes pods which ask for it by ``prometheus.io/scrape``, ``port``, ``path``, ``scheme``."""


def jobs_of(given: Sequence[Any]) -> list[Job]:
    """The jobs as they are given.

    Raises:
        ConfigError: naming the job, the field and what is wrong with it; never a value that may be a secret.
    """
    jobs = [_job(number, each) for number, each in enumerate(given)]
    for job in jobs:
        if "PrometheusProto" in (*job.protocols, job.fallback_scrape_protocol) and find_spec("google.protobuf") is None:
            raise ConfigError(f"agent.scrape.jobs: {job.job_name} asks for protobuf: pip install 'streammon[agent]'")
    names = [job.job_name for job in jobs]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"agent.scrape.jobs: job_name = {name!r} is given twice; names tell jobs apart")
    return jobs


def _job(number: int, given: Any) -> Job:
    try:
        return msgspec.convert(given, Job, strict=False, dec_hook=_secret)
    except msgspec.ValidationError as error:
        what, _, path = str(error).partition(" - at `$")
        name = given.get("job_name") if isinstance(given, Mapping) else None
        named = f" (job_name = {name!r})" if isinstance(name, str) else ""
        raise ConfigError(f"agent.scrape.jobs[{number}]{path.rstrip('`')}{named}: {what}{_hint(what)}") from None


def _seconds(field: str, duration: Duration) -> float:
    try:
        return seconds(duration)
    except ValueError as error:
        raise ValueError(f"{field} = {error}") from None


def _hint(what: str) -> str:
    return "; see docs/scrape.md for what there is of Prometheus' fields" if "unknown field" in what else ""


def _secret(_: type[Any], value: Any) -> SecretStr:
    if not isinstance(value, str):
        raise ValueError("a secret has to be a text")  # noqa: TRY004 - msgspec turns it into a ValidationError
    return SecretStr(value)
