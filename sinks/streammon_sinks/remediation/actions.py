"""The actions in the file of actions, and how each is done, or in a dry run looked at without changing anything.

    actions:
      page-autoscaler: {type: webhook, url: "https://example.org/scale", signing_secret: {env: SCALE_KEY}}
      undo-ranker: {type: kubernetes, do: rollout_undo, deployment: ranker, namespace: ml, mode: approve}
      drain: {type: kafka, topic: drains}

`do` either returns what was done, in words without secrets, or raises: `Unanswered` and TimeoutError where it may have
happened all the same; any other error of ours where it has not.
"""

from __future__ import annotations

import ssl
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
from streammon_sinks.remediation.kubernetes import MOST_BYTES, Cluster

_ACCOUNT: Final = "/var/run/secrets/kubernetes.io/serviceaccount"
Name = Annotated[str, Meta(pattern=r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?\Z")]
"""As Kubernetes has it: it goes into a path."""


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
        body = msgspec.json.encode(remediation if self.body is None else self.body)
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
    """A change of one deployment through the API server, with the token of a service account."""

    do_: Literal["rollout_undo", "scale", "restart"] = msgspec.field(name="do")
    """As ``kubectl rollout undo``, ``kubectl scale`` and ``kubectl rollout restart`` do it."""
    deployment: Name
    namespace: Name
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
        if self.to_revision is not None and self.do_ != "rollout_undo":
            raise ValueError("`to_revision` goes with `do: rollout_undo`")
        if not self.server.startswith(("https://", "http://")):
            raise ValueError("`server` has to begin with https://")

    async def do(self, tools: Tools, remediation: Remediation) -> str:
        token = _read(remediation, "token", self.token)
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=self._trusting(remediation))) as session:
            http = Http(remediation.action, session, self.timeout_s, tools.clock, kind="action", most_bytes=MOST_BYTES)
            cluster = Cluster(http, self.server.rstrip("/"), token, self.namespace, remediation.dry_run)
            match self.do_:
                case "rollout_undo":
                    return await cluster.rollout_undo(self.deployment, self.to_revision)
                case "scale":
                    return await cluster.scale(self.deployment, self.replicas or 0)
                case "restart":
                    return await cluster.restart(self.deployment, tools.clock())

    def _trusting(self, remediation: Remediation) -> ssl.SSLContext:
        try:
            return ssl.create_default_context(cafile=self.ca_file)
        except (OSError, ssl.SSLError) as error:
            problem = error.strerror or type(error).__name__
            raise ConfigError(
                f"action {remediation.action}: ca_file {self.ca_file} cannot be read: {problem}"
            ) from None


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
        value = msgspec.json.encode(remediation if self.value is None else self.value)
        key = (self.key or remediation.id).encode()
        if remediation.dry_run:
            return f"would write {len(value)} bytes to the topic {self.topic}"
        try:
            offset = (await tools.broker.append([Outgoing(self.topic, key, value, (SCHEMA_HEADER,))]))[0]
        except Retryable as error:
            raise Unanswered(str(error)) from None
        return f"written to the topic {self.topic}, offset {offset}"


_OURS: Final = frozenset(spec.name for spec in topic_specs(partitions=1))
AnyAction = Webhook | Kubernetes | Kafka


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


def _read(remediation: Remediation, field: str, secret: Secret) -> SecretValue:
    return secret.read(f"action {remediation.action}: {field}")
