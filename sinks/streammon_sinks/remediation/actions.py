"""The actions in the file of actions, and how each is done, or in a dry run looked at without changing anything.

    actions:
      page-autoscaler: {type: webhook, url: "https://example.org/scale", signing_secret: {env: SCALE_KEY}}
      undo-ranker: {type: kubernetes, do: rollout_undo, deployment: ranker, namespace: ml, mode: approve}
      drain: {type: kafka, topic: drains}
      train: {type: command, command: [/opt/train.sh, ranker], retrain: {service: shop, model: ranker}}
      log: {type: mlflow, server: "https://mlflow.example.org", experiment: ranker}

`do` either returns what was done, in words without secrets, or raises: `Unanswered` and TimeoutError where it may have
happened all the same; any other error of ours where it has not.
"""

from __future__ import annotations

import ssl
from base64 import b64encode
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple

import aiohttp
import msgspec
from msgspec import Meta

from streammon.broker import Broker, Outgoing
from streammon.clock import Clock, system_clock
from streammon.errors import ConfigError, Retryable
from streammon.remediation import Policy, Remediation, versions
from streammon.topics import topic_specs
from streammon.wire import SCHEMA_HEADER
from streammon.yaml_files import parse_yaml, text_of
from streammon_sinks.notify.http import Http, Unanswered, address_of
from streammon_sinks.notify.secrets import Secret, SecretValue
from streammon_sinks.notify.webhook import signature
from streammon_sinks.remediation import command, mlflow
from streammon_sinks.remediation.kubernetes import MOST_BYTES, Cluster

_ACCOUNT: Final = "/var/run/secrets/kubernetes.io/serviceaccount"
Name = Annotated[str, Meta(pattern=r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?\Z")]
"""As Kubernetes has it: it goes into a path."""


EnvName = Annotated[str, Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_]*\Z")]


class Tools(NamedTuple):
    """The ways out."""

    session: aiohttp.ClientSession
    broker: Broker
    clock: Clock = system_clock


class Action(Policy, frozen=True, kw_only=True, tag_field="type", forbid_unknown_fields=True):
    """What every action has beside its `Policy`."""

    async def do(self, tools: Tools, remediation: Remediation) -> str:
        """Do it; as a dry run if the remediation says so. What was done, for the audit."""
        raise NotImplementedError

    def about(self, remediation: Remediation) -> bytes:
        """What it is about, for the other side, as JSON."""
        content: dict[str, Any] = msgspec.to_builtins(remediation)
        if self.retrain is not None:
            content["retrain"] = {"id": remediation.id, "service": self.retrain.service, "model": self.retrain.model}
        return msgspec.json.encode(content)

    def variables(self, remediation: Remediation) -> dict[str, str]:
        """The same as environment variables; nothing of it was chosen by an event."""
        found = {"STREAMMON_REMEDIATION_ID": remediation.id, "STREAMMON_ACTION": remediation.action}
        if self.retrain is not None:
            found |= {
                "STREAMMON_RETRAIN_ID": remediation.id,
                "STREAMMON_RETRAIN_SERVICE": self.retrain.service,
                "STREAMMON_RETRAIN_MODEL": self.retrain.model,
            }
        return found


class Webhook(Action, frozen=True, tag="webhook"):
    """A POST of the remediation as JSON, or of a ``body`` of your own, signed as the channel's are."""

    url: Secret | str
    """Where to; a `Secret` if whoever knows it may post there."""
    signing_secret: Secret | None = None
    """Key of the signature ``Streammon-Signature``; without it the request is not signed."""
    token: Secret | None = None
    """Sent as `Authorization: Bearer …`."""
    body: dict[str, Any] | None = None
    """JSON to send instead of the remediation."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.url, str) and address_of(self.url) is None:
            raise ValueError("`url` has to begin with http:// or https:// and a host")

    async def do(self, tools: Tools, remediation: Remediation) -> str:
        http = Http(remediation.action, tools.session, self.timeout_s, tools.clock, kind="action")
        url = _read(remediation, "url", self.url) if isinstance(self.url, Secret) else self.url
        body = self.about(remediation) if self.body is None else msgspec.json.encode(self.body)
        headers = self._headers(remediation, body, int(tools.clock()))
        where = http.where(url)
        if remediation.dry_run:
            return f"would post {len(body)} bytes: {where}"
        reply = await http.send("POST", url, body, headers)
        return f"{where} answered {reply.status}"

    def _headers(self, remediation: Remediation, body: bytes, unix_s: int) -> dict[str, str | SecretValue]:
        headers: dict[str, str | SecretValue] = {"Idempotency-Key": remediation.id}
        if self.token:
            headers["Authorization"] = SecretValue(f"Bearer {_read(remediation, 'token', self.token).reveal()}")
        if self.signing_secret:
            key = _read(remediation, "signing_secret", self.signing_secret)
            headers["Streammon-Signature"] = signature(key, body, unix_s)
        return headers


class Kubernetes(Action, frozen=True, tag="kubernetes"):
    """A change of one deployment, or a new job, through the API server, with the token of a service account."""

    do_: Literal["rollout_undo", "scale", "restart", "create_job"] = msgspec.field(name="do")
    """As ``kubectl rollout undo``, ``kubectl scale``, ``kubectl rollout restart`` and ``kubectl create job`` do it."""
    namespace: Name
    deployment: Name | None = None
    """Which; of all but ``create_job``."""
    cron_job: Name | None = None
    """Of which the job is made; of ``create_job``, unless ``job`` says it."""
    job: dict[str, Any] | None = None
    """The manifest of the job; its name gets the id of the remediation behind it."""
    replicas: Annotated[int, Meta(ge=0, le=10_000)] | None = None
    """How many; of ``scale``."""
    to_revision: Annotated[int, Meta(ge=1)] | None = None
    """To which; of ``rollout_undo``. The one before the newest if not given."""
    server: str = "https://kubernetes.default.svc"
    token: Secret = Secret(file=f"{_ACCOUNT}/token")
    ca_file: str | None = f"{_ACCOUNT}/ca.crt"
    """Certificates that the server's is checked against; null: those of the system."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.do_ == "scale") != (self.replicas is not None):
            raise ValueError("`replicas` goes with `do: scale`, and has to be there")
        if (self.do_ == "create_job") != (self.deployment is None):
            raise ValueError("`deployment` goes with all but `do: create_job`, and has to be there")
        given = (self.cron_job is not None) + (self.job is not None)
        if given != (self.do_ == "create_job"):
            raise ValueError("either `cron_job` or `job` goes with `do: create_job`, and has to be there")
        if self.job is not None:
            _check_job(self.job)
        if self.to_revision is not None and self.do_ != "rollout_undo":
            raise ValueError("`to_revision` goes with `do: rollout_undo`")
        if not self.server.startswith(("https://", "http://")):
            raise ValueError("`server` has to begin with https://")

    async def do(self, tools: Tools, remediation: Remediation) -> str:
        token = _read(remediation, "token", self.token)
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=self._trusting(remediation))) as session:
            http = Http(remediation.action, session, self.timeout_s, tools.clock, kind="action", most_bytes=MOST_BYTES)
            cluster = Cluster(http, self.server.rstrip("/"), token, self.namespace, remediation.dry_run)
            if self.deployment is None:
                return await self._create_job(cluster, remediation)
            match self.do_:
                case "rollout_undo":
                    return await cluster.rollout_undo(self.deployment, self.to_revision)
                case "scale":
                    return await cluster.scale(self.deployment, self.replicas or 0)
                case _:
                    return await cluster.restart(self.deployment, tools.clock())

    async def _create_job(self, cluster: Cluster, remediation: Remediation) -> str:
        """Under a name that is the same whenever it is done, so that it cannot be there twice."""
        job = self.job if self.cron_job is None else await cluster.job_of(self.cron_job)
        assert job is not None
        base = self.cron_job or str((job.get("metadata") or {}).get("name") or remediation.action)
        name = f"{base[:38].rstrip('-.')}-{remediation.id}"
        labels = {"streammon/remediation": remediation.id}
        return await cluster.create_job(name, job, labels, self.variables(remediation))

    def _trusting(self, remediation: Remediation) -> ssl.SSLContext:
        try:
            return ssl.create_default_context(cafile=self.ca_file)
        except (OSError, ssl.SSLError) as error:
            problem = error.strerror or type(error).__name__
            raise ConfigError(
                f"action {remediation.action}: ca_file {self.ca_file} cannot be read: {problem}"
            ) from None


class Command(Action, frozen=True, tag="command"):
    """A program beside us: an exit status of 0 is done, any other failed. It starts a training, and does not wait."""

    command: Annotated[list[str], Meta(min_length=1, max_length=100)]
    """The program and its arguments, as they are; no shell looks at them."""
    env: dict[EnvName, str | Secret] = msgspec.field(default_factory=dict)
    """Beside these it has PATH, HOME and the like, and STREAMMON_… that say what it is about."""
    cwd: str | None = None
    """In which directory; ours if not given."""

    async def do(self, tools: Tools, remediation: Remediation) -> str:
        values = {
            name: _read(remediation, f"env.{name}", value) if isinstance(value, Secret) else value
            for name, value in self.env.items()
        }
        secrets = [value for value in values.values() if isinstance(value, SecretValue)]
        own = {name: value.reveal() if isinstance(value, SecretValue) else value for name, value in values.items()}
        env = command.environment({**own, **self.variables(remediation)})
        if remediation.dry_run:
            command.find(self.command[0], env, self.cwd)
            return f"would run {self.command[0]} with {len(self.command) - 1} arguments"
        return await command.run(self.command, env, self.cwd, self.about(remediation), secrets)


class Mlflow(Action, frozen=True, tag="mlflow"):
    """A run of MLflow, for a training that takes it up to log to."""

    server: str
    """Address of the tracking server."""
    experiment: Annotated[str, Meta(min_length=1, max_length=250)]
    """By its name; it has to be there."""
    token: Secret | None = None
    """Sent as `Authorization: Bearer …`."""
    username: str | None = None
    password: Secret | None = None
    tags: dict[str, str] = msgspec.field(default_factory=dict)
    """More of the run than what it is about."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if address_of(self.server) is None:
            raise ValueError("`server` has to begin with http:// or https:// and a host")
        if (self.username is None) != (self.password is None) or (self.username and self.token):
            raise ValueError("either `token`, or `username` and `password`")

    async def do(self, tools: Tools, remediation: Remediation) -> str:
        http = Http(remediation.action, tools.session, self.timeout_s, tools.clock, kind="action", most_bytes=2**20)
        tracking = mlflow.Tracking(http, self.server.rstrip("/"), self._headers(remediation), remediation.dry_run)
        about = {"streammon.action": remediation.action, "streammon.rule": remediation.rule}
        if self.retrain is not None:
            about |= {"streammon.service": self.retrain.service, "streammon.model": self.retrain.model}
        name = f"{remediation.action}-{remediation.id[:7]}"
        return await tracking.run(self.experiment, remediation.id, name, tools.clock(), {**self.tags, **about})

    def _headers(self, remediation: Remediation) -> dict[str, str | SecretValue]:
        if self.token is not None:
            return {"Authorization": SecretValue(f"Bearer {_read(remediation, 'token', self.token).reveal()}")}
        if self.password is None:
            return {}
        password = _read(remediation, "password", self.password).reveal()
        given = b64encode(f"{self.username}:{password}".encode()).decode()
        return {"Authorization": SecretValue(f"Basic {given}")}


class Kafka(Action, frozen=True, tag="kafka"):
    """A record on a topic of yours: the remediation as JSON, or a ``value`` of your own."""

    topic: Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]{1,200}\Z")]
    """Without ``topics.prefix``, which comes before it. It has to exist, and must not be one of streammon's own."""
    key: str | None = None
    """The remediation's id if not given."""
    value: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.topic in _OURS or self.topic.startswith("state."):
            raise ValueError(f"`topic`: {self.topic} is one of streammon's own")

    async def do(self, tools: Tools, remediation: Remediation) -> str:
        value = self.about(remediation) if self.value is None else msgspec.json.encode(self.value)
        key = (self.key or remediation.id).encode()
        if remediation.dry_run:
            return f"would write {len(value)} bytes to the topic {self.topic}"
        try:
            offset = (await tools.broker.append([Outgoing(self.topic, key, value, (SCHEMA_HEADER,))]))[0]
        except Retryable as error:
            raise Unanswered(str(error)) from None
        return f"written to the topic {self.topic}, offset {offset}"


_OURS: Final = frozenset(spec.name for spec in topic_specs(partitions=1))
AnyAction = Webhook | Kubernetes | Kafka | Command | Mlflow


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    actions: dict[str, AnyAction]


def load_actions(file: Path) -> dict[str, tuple[AnyAction, str]]:
    """The actions in a file, each with its version.

    Raises:
        ConfigError: naming the file, line and column, the field, its value, and what is allowed.
    """
    text = text_of(file)
    actions = parse_yaml(text, _File, str(file)).actions
    return {name: (actions[name], version) for name, version in versions(text, str(file)).items()}


def _check_job(job: dict[str, Any]) -> None:
    """What is filled in has to have its place; whether the rest is a job, the server knows."""
    try:
        containers = job["spec"]["template"]["spec"]["containers"]
        good = [*map(dict, containers)] and isinstance(job.get("metadata") or {}, dict)
    except (KeyError, TypeError, ValueError):
        good = False
    if not good:
        raise ValueError("`job` has to be a manifest with spec.template.spec.containers")


def _read(remediation: Remediation, field: str, secret: Secret) -> SecretValue:
    return secret.read(f"action {remediation.action}: {field}")
