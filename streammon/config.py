"""Configuration: one frozen tree, read from flags, ``STREAMMON_*`` variables and ``streammon.yaml``, in that order.

Every field has a default that works on one machine, says its unit in its name, and is explained in one sentence, for
``docs/generate.py``. (pydantic could collect the sentences; to read its own source would be a tenth of a start.)
Unknown keys are refused. In the environment, levels are separated by ``__``: ``STREAMMON_WINDOWS__SIZE_S=10``;
a variable without ``__`` that names no field is left alone, it may be another program's.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from itertools import chain
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, Self, get_args

import msgspec
import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, Secret, SecretStr, ValidationError, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    YamlConfigSettingsSource,
)

from streammon.errors import ConfigError
from streammon.events import Inference
from streammon.results import DISTRIBUTIONS
from streammon.topics import DAY_S, MAX_RECORD_BYTES


def _default_data_dir() -> Path:
    state = os.environ.get("XDG_STATE_HOME")
    return (Path(state) if state else Path.home() / ".local" / "state") / "streammon"


def _known_distributions(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        if name not in DISTRIBUTIONS:
            raise ValueError(f"{name!r} is no distribution; allowed: {', '.join(DISTRIBUTIONS)}")
    return names


TEXT_FIELDS = tuple(
    field.name
    for field in msgspec.structs.fields(Inference)
    if {str, *(get_args(field.type) or [field.type])} <= {str, NoneType}
)


def _text_fields(names: tuple[str, ...]) -> tuple[str, ...]:
    for name in names:
        if name not in TEXT_FIELDS:
            raise ValueError(f"{name!r} is no text field of an inference event; allowed: {', '.join(TEXT_FIELDS)}")
    return names


TextFields = Annotated[tuple[str, ...], Field(min_length=1), AfterValidator(_text_fields)]
UserPath = Annotated[Path, AfterValidator(Path.expanduser)]


class Section(BaseModel):
    """A part of the configuration: frozen, and strict about its keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


IMPOSSIBLE = "impossible"
"""The type of error that says which fields of a section do not go together."""


class TlsSettings(Section):
    """TLS to the brokers, and who we are to those that ask for a certificate."""

    enabled: bool = False
    """Whether the brokers are spoken to over TLS."""
    ca_file: UserPath | None = None
    """PEM file with the authorities that sign the brokers' certificates; the system's if not given."""
    verify_hostname: bool = True
    """Whether a broker's certificate must name the host it was reached at."""
    certificate_file: UserPath | None = None
    """PEM file with our own certificate, and those between it and the authority, for brokers that ask for one."""
    key_file: UserPath | None = None
    """PEM file with the key of our certificate, if it is not in ``certificate_file``."""
    key_password: SecretStr | None = None
    """What an encrypted key is opened with."""
    key_password_file: UserPath | None = None
    """File to read ``key_password`` from."""

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        given = _given(self)
        if given and not self.enabled:
            raise _impossible(self, given[0], "has no effect while enabled = false")
        of_key = [name for name in given if name.startswith("key_")]
        if of_key and self.certificate_file is None:
            raise _impossible(self, of_key[0], "needs certificate_file")
        if {"key_password", "key_password_file"} <= set(given):
            raise _impossible(self, "key_password_file", "is given, and so is key_password: remove one of them")
        return self


class SaslSettings(Section):
    """How we prove to the brokers who we are: a user name and a password, or a bearer token."""

    mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"] | None = None
    """How the proof is given; none: not at all, or by the certificate of ``kafka.tls``."""
    username: str | None = None
    """Name of the user (PLAIN, SCRAM)."""
    password: SecretStr | None = None
    """Password of the user; PLAIN sends it as it is, so use it over TLS only."""
    password_file: UserPath | None = None
    """File to read ``password`` from."""
    token_file: UserPath | None = None
    """File with a token that somebody else renews; it is read again before the token expires (OAUTHBEARER)."""
    token_endpoint: str | None = Field(None, pattern="^https?://")
    """URL that gives tokens for client credentials (OAUTHBEARER)."""
    token_ca_file: UserPath | None = None
    """PEM file with the authorities that sign the certificate of ``token_endpoint``; the system's if not given."""
    client_id: str | None = None
    """Who we are to ``token_endpoint``."""
    client_secret: SecretStr | None = None
    """Password of ``client_id``."""
    client_secret_file: UserPath | None = None
    """File to read ``client_secret`` from."""
    scope: str | None = None
    """What the token shall be good for, in the words of ``token_endpoint``."""

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        needed, optional = self._expected()
        fitting = [*chain.from_iterable(needed), *optional]
        for name in _given(self):
            if name not in ("mechanism", *fitting):
                takes = ", ".join(fitting) or "no other field"
                raise _impossible(self, name, f"does not fit mechanism = {self.mechanism!r}, which takes {takes}")
        for names in needed:
            given = [name for name in names if name in _given(self)]
            if len(given) != 1:
                raise _impossible(self, "mechanism", f"needs {'only one of ' if given else ''}{' or '.join(names)}")
        return self

    def _expected(self) -> tuple[list[tuple[str, ...]], list[str]]:
        """What the mechanism needs, of some fields one, and what it also takes."""
        if self.mechanism is None:
            return [], []
        if self.mechanism != "OAUTHBEARER":
            return [("username",), ("password", "password_file")], []
        if self.token_file is not None:
            return [("token_file",)], []
        secret = ("client_secret", "client_secret_file")
        return [("token_endpoint", "token_file"), ("client_id",), secret], ["scope", "token_ca_file"]


def _given(section: Section) -> list[str]:
    return [name for name, field in type(section).model_fields.items() if getattr(section, name) != field.default]


def _impossible(section: Section, name: str, why: str) -> PydanticCustomError:
    value = getattr(section, name)
    shown = "" if isinstance(value, SecretStr) else f" = {str(value)!r}"
    return PydanticCustomError(IMPOSSIBLE, "{what}", {"what": f"{name}{shown} {why}"})


class KafkaSettings(Section):
    """How Kafka is spoken to (when ``bootstrap`` is set)."""

    tls: TlsSettings = TlsSettings()
    sasl: SaslSettings = SaslSettings()
    client_id: str = "streammon"
    """Name of this client in the broker's logs and quotas."""
    instance_id: str | None = Field(None, min_length=1)
    """Unique name: who is back under it within ``session_timeout_s`` (make that 10 s) keeps its partitions."""
    session_timeout_s: float = Field(6.0, gt=0)
    """A member silent for this long loses its partitions."""
    heartbeat_s: float = Field(1.0, gt=0)
    """How often a member tells the group that it lives."""
    delivery_timeout_s: float = Field(30.0, gt=0)
    """How long one append may be retried before it fails."""
    compression: Literal["none", "gzip", "snappy", "lz4", "zstd"] = "zstd"
    """How appends are compressed; zstd makes packed events 1.7 to 2.9 times smaller, for 2 to 7 µs a kilobyte."""
    transaction_timeout_s: float = Field(10.0, gt=0)
    """A transaction left open by a dead process is aborted after this long."""


class EmbeddedSettings(Section):
    """The embedded log (when ``bootstrap`` is not set)."""

    max_bytes: int = Field(2 * 1024**3, ge=16 * 1024**2)
    """The oldest records of the largest topics are dropped when all records together exceed this."""
    retention_interval_s: float = Field(30.0, gt=0)
    """How often retention is applied."""


class TopicSettings(Section):
    """How topics are made."""

    prefix: str = Field("streammon.", pattern=r"^[a-zA-Z0-9._-]*$")
    """Put before every topic name."""
    partitions: int = Field(4, ge=1, le=1000)
    """Partitions of every topic: the most processes that can share the work of one processor."""
    replication: int = Field(1, ge=1)
    """Replicas of every topic (Kafka only)."""


class WindowSettings(Section):
    """The windows task."""

    size_s: float = Field(2.0, gt=0)
    """Length of the base windows, aligned to the epoch."""
    lateness_s: float = Field(1.0, ge=0)
    """How far the watermark stays behind the newest event; later events go into supplements, never lost."""
    max_future_s: float = Field(60.0, ge=0)
    """An event further ahead of its record's broker time is quarantined in the dead letter topic."""
    max_late_s: float = Field(DAY_S, ge=0)
    """An event further behind the watermark goes to the dead letter topic as too_late."""
    max_series: int = Field(10_000, ge=1)
    """Series kept apart in one window of one partition; the rest is summed in the series ``__other__``."""
    inference_by: TextFields = (
        "service",
        "model",
        "model_version",
        "endpoint",
    )
    """The fields of an inference event that make its series."""
    inference_distributions: Annotated[tuple[str, ...], AfterValidator(_known_distributions)] = DISTRIBUTIONS
    """The fields of an inference event of which windows have quantiles; each costs time, memory and disk by series."""
    idle_tick_s: float = Field(0.25, gt=0)
    """A partition with open windows and no new record for this long gets a tick record."""
    rollups_s: tuple[Annotated[float, Field(gt=0)], ...] = (60.0, 300.0, 3600.0)
    """Lengths of the longer windows made of the base windows; those that are no multiple of them are left out."""


SourceName = Literal["host", "containers", "gpu", "scrape", "logs", "gateway", "otlp", "statsd"]


def _default_procfs() -> Path:
    return Path(os.environ.get("PROCFS_PATH") or "/proc")


class HostMetricsSettings(Section):
    """What the source ``host`` measures; see [host metrics](host.md)."""

    per_core: bool = False
    """Whether each core is told of, too, besides all of them together."""
    top_processes: int = Field(5, ge=0, le=100)
    """As many processes are told of by CPU, and as many by memory; 0: none, and none are looked at."""
    ignored_interfaces: tuple[str, ...] = ("veth*", "cali*", "lxc*", "tap*", "nodelocaldns")
    """Network interfaces left out, with ``*`` and ``?`` as in names of files: by default those of single containers."""
    rtt_targets: tuple[Annotated[str, Field(pattern=r"^.+:[0-9]{1,5}$")], ...] = Field((), max_length=100)
    """HOST:PORT to which the time of a TCP connect is measured."""
    rtt_interval_s: float = Field(10.0, ge=0.1)
    """How often."""
    rtt_timeout_s: float = Field(2.0, gt=0)
    """A connect that takes longer has failed."""


class ContainerSettings(Section):
    """How the source ``containers`` finds containers and their names; see [containers](containers.md)."""

    discovery_s: float = Field(5.0, ge=0)
    """How often is looked for new ones."""
    max_containers: int = Field(500, ge=1)
    """As many are told of; what is beyond is left out, and the heartbeat says so."""
    kubelet_url: str | None = Field(None, pattern="^https?://")
    """URL of the kubelet, such as https://127.0.0.1:10250, which then tells the names of pods; log files do, too."""
    kubelet_token_file: UserPath | None = None
    """File with the token that the kubelet wants, such as /var/run/secrets/kubernetes.io/serviceaccount/token."""
    kubelet_ca_file: UserPath | None = None
    """PEM file with the authorities that sign the kubelet's certificate; the system's if not given."""


class GpuSettings(Section):
    """GPUs, through NVIDIA's driver or an exporter that speaks to it."""

    slow_s: float = Field(10.0, gt=0)
    """How often what changes seldom, or costs the driver milliseconds, is asked: errors, links, limits, MIG, pods."""
    processes: bool = True
    """Whether processes on GPUs are told, each with its memory and its share of the work."""
    processes_s: float = Field(2.0, gt=0)
    """How often processes are asked for."""
    max_processes: int = Field(64, ge=1)
    """Processes of one GPU or MIG instance that are told, the largest first; the rest is counted as dropped."""
    pod_resources: UserPath | None = Path("/var/lib/kubelet/pod-resources/kubelet.sock")
    """The kubelet's socket that says which pod holds which GPU; on a node without a kubelet it is not there."""
    dcgm_url: str | None = Field(None, pattern="^https?://")
    """Address of a dcgm-exporter's page, such as http://127.0.0.1:9400/metrics, to be read instead of asking NVML."""


class OtlpSettings(Section):
    """The source ``otlp``: what services send by the protocol of OpenTelemetry."""

    host: str = "127.0.0.1"
    """Address to listen on; there is no authentication, so keep it local or behind a proxy."""
    grpc_port: int | None = Field(4317, ge=0, le=65535)
    """Port for OTLP/gRPC; 0 takes a free one, null does not listen."""
    http_port: int | None = Field(4318, ge=0, le=65535)
    """Port for OTLP/HTTP; 0 takes a free one, null does not listen."""
    max_message_bytes: int = Field(4 * 1024**2, ge=1024)
    """A larger message, after decompression, is refused; it is what senders expect of gRPC."""
    max_in_flight_bytes: int = Field(32 * 1024**2, ge=1024)
    """With more than this being taken at one time, senders are told to come back."""
    max_series: int = Field(10_000, ge=1)
    """Metric streams (a metric of a sender with one label set) remembered at one time; points of further ones are
    refused."""
    model_attributes: tuple[str, ...] = ("ml.model.name", "model.name", "model_name")
    """Span attributes that name the model, where ``gen_ai`` ones do not; a span that has one is an inference event."""
    model_version_attributes: tuple[str, ...] = ("ml.model.version", "model.version", "model_version")
    """Span attributes that name the version of the model."""


class GatewaySettings(Section):
    """The gateway of a node: events and CloudEvents over HTTP."""

    host: str = "127.0.0.1"
    """Address to listen on; there is no authentication, so keep it within the node, or behind a proxy."""
    port: int = Field(4319, ge=0, le=65535)
    """Port of ``POST /v1/events`` and ``/v1/cloudevents``; 0 takes a free one."""
    max_body_bytes: int = Field(MAX_RECORD_BYTES, ge=1024)
    """A larger request body (unpacked) is answered with 413."""
    max_backlog_bytes: int = Field(64 * 1024**2, ge=1024)
    """With more accepted bytes than this not yet durable, senders are answered 429."""
    max_connections: int = Field(1000, ge=1)
    """Connections at one time; one more is answered 503 and closed."""
    idle_timeout_s: float = Field(30.0, gt=0)
    """A connection on which no request becomes complete for this long is closed."""
    answer_within_s: float = Field(60.0, gt=0)
    """How long a CloudEvent of a request waits for that of its response, or the other way round."""
    max_unanswered: int = Field(10_000, ge=1)
    """Requests and responses that wait for their other half at one time; the oldest are given up, and counted."""
    max_features: int = Field(64, ge=0)
    """Features taken from one instance of a request; further ones are left out."""


class StatsdSettings(Section):
    """StatsD and DogStatsD."""

    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int | None = Field(8125, ge=0, le=65535)
    """UDP port; 0 takes a free one, null listens on none."""
    socket_path: UserPath | None = None
    """Path of a Unix datagram socket to listen on as well, as DogStatsD's clients know it."""
    tcp_port: int | None = Field(None, ge=0, le=65535)
    """TCP port to listen on as well, for lines without packets."""
    flush_s: float = Field(1.0, gt=0)
    """Over how long values are added up into one event."""
    service: str | None = None
    """Service of metrics without a tag ``service``; if not given, what their names begin with, up to the first dot."""
    max_series: int = Field(10_000, ge=1)
    """Names and tag sets kept apart; further ones are summed by name in a series tagged ``__other__``, and counted."""
    max_names: int = Field(1_000, ge=1)
    """Names that have such a series; what is of further names is refused, and counted."""
    expire_s: float = Field(300.0, gt=0)
    """A series that is silent for this long is forgotten; a gauge's deltas then begin at 0 again."""
    receive_buffer_bytes: int = Field(4 * 1024**2, ge=4096)
    """Receive buffer asked of the kernel, which gives at most ``net.core.rmem_max``."""


class SpoolSettings(Section):
    """What an agent keeps on disk while Kafka, or the gateway before it, is away."""

    directory: UserPath | None = None
    """Where; ``data_dir``/spool if not given. It has to outlive the process: in Kubernetes, a ``hostPath``."""
    max_bytes: int = Field(1024**3, ge=16 * 1024**2)
    """How much. Beyond it, the oldest of what nobody waits for is dropped, and counted; who waits is refused."""
    after_s: float = Field(5.0, gt=0)
    """An append that takes longer is given up, and what comes goes to the spool until Kafka answers again."""


class ScrapeSettings(Section):
    """Prometheus scraping by the agent (docs/scrape.md)."""

    jobs: Secret[tuple[dict[str, Any], ...]] = Field(default_factory=lambda: Secret(()))
    """What is scraped: a list of jobs, each shaped as one of Prometheus' ``scrape_configs``; may hold secrets."""
    annotated_pods: bool = False
    """Whether pods of this node are scraped that ask for it by the annotation ``prometheus.io/scrape: "true"``."""
    node_name: str | None = None
    """Name of this node in Kubernetes, whose pods are looked for; ``agent.host`` if not given."""


def _expression(pattern: str) -> str:
    import re2  # only who uses regular expressions loads it

    options = re2.Options()
    options.log_errors = False
    try:
        re2.compile(pattern, options)
    except re2.error as error:
        said = error.args[0] if error.args else error
        why = said.decode() if isinstance(said, bytes) else said
        raise ValueError(f"{pattern!r} is no regular expression (RE2): {why}") from None
    return pattern


Expression = Annotated[str, AfterValidator(_expression)]
LogCategory = Literal["app", "audit", "authentication", "authorization", "data_access", "security"]
Personal = Literal["email", "card", "iban", "ip", "phone"]


class LogInput(Section):
    """Files that are read alike."""

    paths: tuple[str, ...] = Field(min_length=1)
    """Glob patterns of the files, ``**`` for any directories; symbolic links are followed."""
    exclude: tuple[str, ...] = ()
    """Glob patterns of files that are left out; one without a slash is compared with the name alone."""
    service: str | None = Field(None, min_length=1, max_length=200)
    """The service that writes them; if not given: what the line says, the pod's workload, or the file's name."""
    category: LogCategory | None = None
    """What kind of lines they are; if not given: what the line says, or names such as audit.log, else ``app``."""
    format: Literal["auto", "json", "text"] = "auto"
    """How a line is read; ``auto`` looks whether it is a JSON object."""
    container: Literal["auto", "docker", "cri", "none"] = "auto"
    """What a container runtime has put around each line; ``auto`` looks at the first line."""
    multiline_start: Expression | None = None
    """Regular expression (RE2) of an event's first line; if not given, stack traces are put together by rules."""
    start: Literal["beginning", "end"] = "beginning"
    """Where a file is begun that was there when this input was first seen; later ones are read from the beginning."""
    timezone: Literal["utc", "local"] = "utc"
    """Of the times that name none."""


class RedactionSettings(Section):
    """What is taken out of log lines before they leave the node, besides secrets, which always are."""

    personal: tuple[Personal, ...] = ("email", "card", "iban")
    """Personal data that is taken out."""
    patterns: Mapping[Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")], Expression] = {}
    """More to take out: a name, and a regular expression (RE2)."""
    key_file: UserPath | None = None
    """File with a key: replacements then carry a keyed hash, so that one value can be followed unseen."""


class LogSettings(Section):
    """Log files: which are read, and what of them leaves the node."""

    inputs: tuple[LogInput, ...] = ()
    """The files, by input; a file that several name belongs to the first. None: nothing is read."""
    poll_s: float = Field(0.5, gt=0)
    """How often files that changed of late are looked at."""
    discover_s: float = Field(5.0, gt=0)
    """How often files are looked for; less often where that takes more than a fiftieth of the time."""
    multiline_s: float = Field(1.0, gt=0)
    """How long the next line of an event is waited for."""
    partial_s: float = Field(5.0, gt=0)
    """How long the end of a line is waited for."""
    max_line_bytes: int = Field(65_536, ge=1024, le=524_288)
    """What is beyond that in a line, or in lines put together, is cut off, and said in the event."""
    max_event_lines: int = Field(1000, ge=1)
    """Lines of one event at most."""
    max_files: int = Field(20_000, ge=1)
    """Files followed at one time; further ones wait, and the source says that it is degraded."""
    max_open_files: int = Field(500, ge=1)
    """Files held open; what is written to others and deleted before the next look at them is lost."""
    batch_events: int = Field(2000, ge=1, le=100_000)
    """Events handed over at a time."""
    rate_per_s: float = Field(1000.0, gt=0)
    """Lines of category ``app`` that one service may log a second; more are dropped, and counted."""
    burst: int = Field(10_000, ge=1)
    """Lines that may come at once, after quiet."""
    redaction: RedactionSettings = RedactionSettings()


class AgentSettings(Section):
    """The agent of a node: what it observes, and how it carries that into the log."""

    host: str | None = None
    """Name of this host in the events; the system's host name if not given."""
    sources: tuple[SourceName, ...] = ("host", "containers", "gpu", "scrape", "logs")
    """What is observed; what is not there is left out, and `streammon agent --check` says why. ``gateway``, ``otlp``
    and ``statsd`` open ports, and have to be asked for; the page of `streammon up` takes what they take over HTTP."""
    interval_s: float = Field(1.0, gt=0)
    """How often what is asked (hosts, containers, GPUs) is asked."""
    procfs: UserPath = Field(default_factory=_default_procfs)
    """Where the host's ``/proc`` is, for an agent in a container; ``PROCFS_PATH`` in the environment says it, too."""
    sysfs: UserPath = Path("/sys")
    """Where the host's ``/sys`` is."""
    rootfs: UserPath = Path("/")
    """Where the host's file systems are mounted (read-only will do), for their sizes and for names of containers."""
    host_metrics: HostMetricsSettings = HostMetricsSettings()
    containers: ContainerSettings = ContainerSettings()
    gpu: GpuSettings = GpuSettings()
    otlp: OtlpSettings = OtlpSettings()
    gateway: GatewaySettings = GatewaySettings()
    """The source ``gateway``."""
    statsd: StatsdSettings = StatsdSettings()
    """The source ``statsd``."""
    url: str | None = Field(None, pattern="^https?://")
    """Address of a gateway (``http://HOST:PORT``) through which everything goes, instead of ``bootstrap``."""
    buffer_events: int = Field(100_000, ge=1)
    """Events kept in memory until the log or the spool takes them; beyond, the oldest are dropped, and counted."""
    buffer_bytes: int = Field(16 * 1024**2, ge=1)
    """Bytes of them."""
    spool: SpoolSettings = SpoolSettings()
    """What is kept on disk."""
    max_skew_s: float = Field(1.0, gt=0)
    """A clock that is further from the broker's degrades the agent: its events come late, or are refused."""
    scrape: ScrapeSettings = ScrapeSettings()
    logs: LogSettings = LogSettings()


class ElasticsearchSettings(Section):
    """The Elasticsearch sink."""

    url: str = "http://127.0.0.1:9200"
    """Address of the cluster."""
    api_key: SecretStr | None = None
    """API key, if the cluster wants one."""
    namespace: str = Field("default", pattern=r"^[^-A-Z\s*,\"\\<>|?/#:]+$")
    """Last part of the data stream names, ``metrics-streammon.window-NAMESPACE``."""
    bulk_documents: int = Field(1000, ge=1)
    """Documents of one bulk request."""
    bulk_bytes: int = Field(5 * 1024**2, ge=1024)
    """Size of one bulk request, about."""
    request_timeout_s: float = Field(30.0, gt=0)
    """How long one request may take."""
    max_backoff_s: float = Field(10.0, gt=0)
    """Longest pause between two tries; there is no limit to their number."""


class SqliteSettings(Section):
    """The results store that the page and ``query`` read."""

    retention_s: float = Field(2 * DAY_S, gt=0)
    """Windows older than this are deleted."""
    max_rows: int = Field(1_000_000, ge=1000)
    """The oldest windows are deleted beyond this many; a row takes 1 to 5 kB."""
    alert_retention_s: float = Field(184 * DAY_S, gt=0)
    """What happened to alerts longer ago than this is deleted from their history."""
    max_transitions: int = Field(200_000, ge=1000)
    """The oldest transitions of alerts are deleted beyond this many; a row takes about 1 kB."""
    model_retention_s: float = Field(31 * DAY_S, gt=0)
    """What was said about models (drift, quality, retraining) longer ago than this is deleted."""
    max_model_rows: int = Field(200_000, ge=1000)
    """Of each kind of that, the oldest are deleted beyond this many; a row takes 0.5 to 2 kB."""


class RuleSettings(Section):
    """Alert rules."""

    files: tuple[UserPath, ...] = ()
    """YAML files with rules."""


class ModelSettings(Section):
    """What is expected of models."""

    file: UserPath | None = None
    """YAML file that says how models are watched; without it, all are, by the defaults."""


class LabelSettings(Section):
    """The join of predictions and labels; how long they wait for each other is said by model, in ``models.file``."""

    max_predictions: int = Field(10_000_000, ge=1000)
    """Predictions, and labels, remembered in one partition: some 100 bytes of disk each. Beyond, the oldest are
    forgotten, and counted."""


class NotifySettings(Section):
    """Whom to tell about alerts."""

    file: UserPath | None = None
    """YAML file with the channels and the routes to them; without it, alerts are printed."""
    failing_after_s: float = Field(60.0, gt=0)
    """After this long without a channel having taken a notification, others are told, and that it fails."""
    give_up_s: float = Field(86_400.0, gt=0)
    """A notification that is older is not delivered to its channel any more; others are told."""


class RemediationSettings(Section):
    """What is done about alerts without a person, or after one has approved it."""

    file: UserPath | None = None
    """YAML file with the actions that rules may name."""


class HeartbeatSettings(Section):
    """What every long-running command says of itself on the topic ``heartbeats``."""

    interval_s: float = Field(10.0, ge=0.05)
    """How often; who says nothing for three of these intervals is silent."""


class InventorySettings(Section):
    """The inventory, ``streammon inventory run``: who fell silent."""

    file: UserPath | None = None
    """YAML file that says who is expected; without it, whoever was there once is."""
    grace_s: float = Field(60.0, ge=0)
    """How long the inventory watches before it misses somebody whom it has never seen."""
    blind_s: float = Field(60.0, gt=0)
    """An inventory that does not even see its own heartbeats for this long ends, to be started anew."""


class PingSettings(Section):
    """The ping to somebody outside who calls when it stays away, such as healthchecks.io or Dead Man's Snitch."""

    url: SecretStr | None = None
    """Where to send a GET request while all is well; whoever knows it can keep the alarm off, so it is a secret."""
    url_file: UserPath | None = None
    """File to read ``url`` from."""
    interval_s: float = Field(60.0, gt=0)
    """How often; let the service outside wait at least twice as long."""
    timeout_s: float = Field(10.0, gt=0)
    """How long one request may take; there are three at most an interval."""
    stale_s: float = Field(60.0, gt=0)
    """Without a new window for this long, ``up`` and ``notify`` send no ping."""
    roles: tuple[str, ...] = ("process", "rules", "notify")
    """The inventory sends a ping only while somebody of each of these roles is alive."""

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        if self.url is not None and self.url_file is not None:
            raise _impossible(self, "url_file", "is given, and so is url: remove one of them")
        return self


class WebSettings(Section):
    """The page and the HTTP intake of ``streammon up``."""

    host: str = "127.0.0.1"
    """Address to listen on; there is no authentication, so keep it local or behind a proxy."""
    port: int = Field(8080, ge=0, le=65535)
    """Port of the page and of ``POST /v1/events``; 0 takes a free one."""
    max_body_bytes: int = Field(MAX_RECORD_BYTES, ge=1024)
    """A larger request body is answered with 413."""
    max_backlog_bytes: int = Field(64 * 1024**2, ge=1024)
    """With more accepted bytes than this not yet durable, the intake answers 429."""
    origins: tuple[Annotated[str, Field(pattern="^https?://[^/]+$")], ...] = ()
    """Other addresses the page is reached at, such as https://monitor.example.com: there too people may act."""


class CallbackSettings(Section):
    """Slack's and PagerDuty's calls to us: what people do there becomes commands. Each is off without its secret."""

    slack_signing_secret: SecretStr | None = None
    """Signing secret of the Slack app, whose interactivity URL is ``/v1/callbacks/slack``."""
    slack_signing_secret_file: UserPath | None = None
    """File to read ``slack_signing_secret`` from."""
    pagerduty_signing_secret: SecretStr | None = None
    """Secret of the PagerDuty webhook subscription (v3), which calls ``/v1/callbacks/pagerduty``."""
    pagerduty_signing_secret_file: UserPath | None = None
    """File to read ``pagerduty_signing_secret`` from."""

    @model_validator(mode="after")
    def _is_possible(self) -> Self:
        for name in ("slack_signing_secret", "pagerduty_signing_secret"):
            if {name, f"{name}_file"} <= set(_given(self)):
                raise _impossible(self, f"{name}_file", f"is given, and so is {name}: remove one of them")
        return self


class Settings(BaseSettings):
    """All of streammon's configuration."""

    model_config = SettingsConfigDict(
        frozen=True,
        extra="forbid",
        env_prefix="STREAMMON_",
        env_nested_delimiter="__",
        allow_inf_nan=False,
        # STREAMMON_REQUIRE_SERVERS and friends belong to the tests, not to this tree.
        env_ignore_empty=True,
    )

    bootstrap: str | None = None
    """HOST:PORT of a Kafka broker, several separated by commas; without it the embedded log is used."""
    data_dir: UserPath = Field(default_factory=_default_data_dir)
    """Directory of the embedded log and of the results in SQLite."""
    metrics_port: int | None = Field(None, ge=0, le=65535)
    """Port of /healthz, /readyz and /metrics; off if not given, 0 takes a free one."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """The least important log message that is shown."""

    topics: TopicSettings = TopicSettings()
    kafka: KafkaSettings = KafkaSettings()
    embedded: EmbeddedSettings = EmbeddedSettings()
    windows: WindowSettings = WindowSettings()
    agent: AgentSettings = AgentSettings()
    elasticsearch: ElasticsearchSettings = ElasticsearchSettings()
    sqlite: SqliteSettings = SqliteSettings()
    rules: RuleSettings = RuleSettings()
    models: ModelSettings = ModelSettings()
    labels: LabelSettings = LabelSettings()
    notify: NotifySettings = NotifySettings()
    remediation: RemediationSettings = RemediationSettings()
    heartbeat: HeartbeatSettings = HeartbeatSettings()
    inventory: InventorySettings = InventorySettings()
    ping: PingSettings = PingSettings()
    web: WebSettings = WebSettings()
    callbacks: CallbackSettings = CallbackSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Flags, then the environment; the file is added by `load`, which knows its name."""
        return init_settings, env_settings


def load(file: Path | None = None, **flags: Any) -> Settings:
    """The configuration from ``flags`` (None: not given), the environment and ``file``.

    Raises:
        ConfigError: naming each wrong field, its value and what is allowed.
    """
    given = {name: value for name, value in flags.items() if value is not None}
    _check_environment()
    try:
        return _settings_class(file)(**given)
    except ValidationError as error:
        raise ConfigError(_explain(error, file)) from None
    except SettingsError as error:
        raise ConfigError(
            f'{error}: lists and sections are given as JSON, such as \'["service", "model"]\' ({error.__cause__})'
        ) from None


def _check_environment() -> None:
    sections = {name for name, field in Settings.model_fields.items() if isinstance(field.default, Section)}
    for variable in os.environ:
        section, nested, _ = variable.lower().removeprefix("streammon_").partition("__")
        if variable.lower().startswith("streammon_") and nested and section not in sections:
            raise ConfigError(f"{variable}: no section {section!r}, expected one of {', '.join(sorted(sections))}")


def _settings_class(file: Path | None) -> type[Settings]:
    if file is None:
        return Settings
    _check_yaml(file)

    class FromFile(Settings):
        @classmethod
        def settings_customise_sources(
            cls, settings_cls: type[BaseSettings], *args: Any, **kwargs: Any
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            above = super().settings_customise_sources(settings_cls, *args, **kwargs)
            return *above, YamlConfigSettingsSource(settings_cls, yaml_file=file)

    return FromFile


def _check_yaml(file: Path) -> None:
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the configuration file {file}: {error.strerror}") from None
    except yaml.MarkedYAMLError as error:  # its own text quotes the line, which may hold a secret
        mark = error.problem_mark
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        raise ConfigError(f"{file}{where} is not valid YAML: {error.problem}") from None
    except (yaml.YAMLError, UnicodeDecodeError, ValueError) as error:
        raise ConfigError(f"{file} is not valid YAML: {error}") from None
    if content is not None and not (isinstance(content, Mapping) and all(isinstance(key, str) for key in content)):
        raise ConfigError(f"{file}: expected fields such as `windows:` at the top, got {_kind(content)}")


def _kind(content: Any) -> str:
    wrong = [key for key in content if not isinstance(key, str)] if isinstance(content, Mapping) else []
    return f"the key {wrong[0]!r}" if wrong else type(content).__name__


def _explain(error: ValidationError, file: Path | None) -> str:
    where = f" ({file}, environment or flags)" if file else " (environment or flags)"
    lines = [f"the configuration is wrong{where}:"]
    for problem in error.errors():
        field = ".".join(str(part) for part in problem["loc"])
        value = "" if _is_private(problem) else f" = {problem['input']!r}"
        lines.append(f"  {field}{value}: {_verdict(problem)}")
    return "\n".join(lines)


def _verdict(problem: ErrorDetails) -> str:
    """What is wrong, in words that help someone who has not read the types."""
    if problem["type"] == "extra_forbidden":
        *section, name = map(str, problem["loc"])
        return f"there is no such field{_suggestion(name, _fields(section))}"
    if problem["type"] == "model_type":
        return f"expected a section with fields such as `{_fields(map(str, problem['loc']))[0]}:`"
    return problem["msg"]


def _fields(section: Iterable[str]) -> list[str]:
    model: Any = Settings
    for name in section:
        model = model.model_fields[name].annotation
    return list(model.model_fields)


def _suggestion(name: str, known: list[str]) -> str:
    similar = get_close_matches(name, known, n=1)
    return f"; did you mean {similar[0]!r}?" if similar else f", expected one of {', '.join(known)}"


def _is_private(problem: ErrorDetails) -> bool:
    """Whether the value may be or hold a secret: of a secret field, of an unknown one, or in place of a section."""
    inside: Any = Settings
    for part in problem["loc"]:
        field = getattr(inside, "model_fields", {}).get(part)
        inside = field.annotation if field else inside
    return (
        problem["type"] in ("extra_forbidden", "model_type", IMPOSSIBLE)  # the last names its values itself
        or "Secret" in repr(inside)
    )
