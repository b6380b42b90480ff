"""Changes of a deployment, and new jobs, through the API server of Kubernetes, as kubectl makes them.

A dry run makes the same requests with ``dryRun=All``: the server checks them, permissions and admission too, and keeps
nothing of it.

| | requests | needs on the deployment's namespace |
|---|---|---|
| scale | PATCH of the subresource `scale` | patch on deployments/scale |
| restart | PATCH of the annotation that ``kubectl rollout restart`` sets | patch on deployments |
| rollout undo | GET deployment and replica sets, PATCH the template | get, patch on deployments; list on replicasets |
| create job | GET the cron job if one is named, POST the job | get on cronjobs; create on jobs |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, TypeVar
from urllib.parse import quote

import msgspec
from msgspec import Struct

from streammon.errors import Reason, Rejected, Retryable
from streammon_sinks.notify.http import Http, Unanswered
from streammon_sinks.notify.secrets import SecretValue

T = TypeVar("T")
MOST_BYTES: Final = 8 * 2**20
"""Of an answer; replica sets hold a pod template each."""
APPS, BATCH = "apps", "batch"
Env = Mapping[str, str]
_HASH: Final = "pod-template-hash"
_REVISION: Final = "deployment.kubernetes.io/revision"
_KEPT: Final = (
    "kubectl.kubernetes.io/last-applied-configuration",
    _REVISION,
    "deployment.kubernetes.io/revision-history",
    "deployment.kubernetes.io/desired-replicas",
    "deployment.kubernetes.io/max-replicas",
    "deprecated.deployment.rollback.to",
)
"""Annotations that stay the deployment's: kubectl's ``annotationsToSkip``."""


class _Owner(Struct):
    uid: str
    controller: bool = False


class _Meta(Struct, rename="camel"):
    name: str
    uid: str = ""
    annotations: dict[str, str] = {}
    owner_references: list[_Owner] = []


class _Selector(Struct, rename="camel", frozen=True):
    match_labels: dict[str, str] = {}


class _Spec(Struct):
    template: dict[str, Any]
    paused: bool = False
    selector: _Selector = _Selector()


class _Workload(Struct):
    """A deployment or a replica set, as far as it is read here."""

    metadata: _Meta
    spec: _Spec

    @property
    def revision(self) -> int:
        text = self.metadata.annotations.get(_REVISION, "")
        return int(text) if text.isdecimal() else 0


class _List(Struct):
    items: list[_Workload]


class _JobTemplate(Struct):
    spec: dict[str, Any]
    metadata: dict[str, Any] = {}


class _CronSpec(Struct, rename="camel"):
    job_template: _JobTemplate


class _CronJob(Struct):
    metadata: _Meta
    spec: _CronSpec


@dataclass(frozen=True)
class Cluster:
    """What is in one namespace. What its methods return says what was done; what they raise, `Http` says."""

    http: Http
    server: str
    token: SecretValue
    namespace: str
    dry_run: bool

    async def scale(self, deployment: str, replicas: int) -> str:
        await self._patch(f"deployments/{deployment}/scale", "merge", {"spec": {"replicas": replicas}})
        return self._said(f"scaled {self.namespace}/{deployment} to {replicas}")

    async def restart(self, deployment: str, now_unix_s: float) -> str:
        at = datetime.fromtimestamp(now_unix_s, UTC).isoformat(timespec="seconds")
        annotations = {"kubectl.kubernetes.io/restartedAt": at}
        template = {"metadata": {"annotations": annotations}}
        await self._patch(f"deployments/{deployment}", "strategic-merge", {"spec": {"template": template}})
        return self._said(f"restarted {self.namespace}/{deployment}")

    async def rollout_undo(self, deployment: str, to_revision: int | None) -> str:
        """Back to the template of an earlier replica set; nothing is changed where that is the present one."""
        name = f"{self.namespace}/{deployment}"
        now = await self._get(f"deployments/{deployment}", _Workload)
        if now.spec.paused:
            raise _refused(f"{name} is paused; `kubectl rollout resume` it first")
        labels = ",".join(f"{key}={value}" for key, value in sorted(now.spec.selector.match_labels.items()))
        found = await self._get(f"replicasets?labelSelector={quote(labels)}", _List)
        earlier = _earlier(name, _owned(now, found.items), to_revision)
        template = _without_hash(earlier.spec.template)
        if template == now.spec.template:
            return f"{name} has the template of revision {earlier.revision} already"
        patch = [
            {"op": "replace", "path": "/spec/template", "value": template},
            {"op": "replace", "path": "/metadata/annotations", "value": _annotations(now, earlier)},
        ]
        await self._patch(f"deployments/{deployment}", "json", patch)
        return self._said(f"rolled {name} back to revision {earlier.revision}")

    async def job_of(self, cron_job: str) -> dict[str, Any]:
        """The job that a cron job would make now, as ``kubectl create job --from`` has it; without a name."""
        found = await self._get(f"cronjobs/{cron_job}", _CronJob, BATCH)
        template = found.spec.job_template
        annotations = {"cronjob.kubernetes.io/instantiate": "manual"} | (template.metadata.get("annotations") or {})
        owner = {"apiVersion": "batch/v1", "kind": "CronJob", "name": found.metadata.name, "uid": found.metadata.uid}
        metadata = {
            "annotations": annotations,
            "labels": template.metadata.get("labels") or {},
            "ownerReferences": [owner],
        }
        return {"metadata": metadata, "spec": template.spec}

    async def create_job(self, name: str, job: Mapping[str, Any], labels: Mapping[str, str], env: Env) -> str:
        """Make the job; where there is one of that name, it was made before."""
        body = {
            **job,
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": _named(job.get("metadata") or {}, name, self.namespace, labels),
            "spec": _with_env(job["spec"], env),
        }
        url = self._url("jobs?fieldManager=streammon", BATCH) + ("&dryRun=All" if self.dry_run else "")
        try:
            await self.http.send("POST", url, msgspec.json.encode(body), self._headers("application/json"))
        except Rejected as error:
            if " answered 409" in error.detail and "AlreadyExists" in error.detail:
                return f"job {self.namespace}/{name} is there already"
            raise
        return self._said(f"made job {self.namespace}/{name}")

    async def _get(self, path: str, type_: type[T], group: str = APPS) -> T:
        try:
            reply = await self.http.send("GET", self._url(path, group), b"", self._headers("application/json"))
        except Unanswered as error:
            raise Retryable(str(error)) from None  # who only looks has changed nothing
        found = reply.read(type_)
        if found is None:
            raise _refused(
                f"{self.http.where(self.server)} answered {path} with what is no {type_.__name__.strip('_')}"
            )
        return found

    async def _patch(self, path: str, kind: str, patch: Any) -> None:
        url = self._url(path) + ("&" if "?" in path else "?") + "fieldManager=streammon"
        url += "&dryRun=All" if self.dry_run else ""
        headers = self._headers(f"application/{kind}-patch+json")
        await self.http.send("PATCH", url, msgspec.json.encode(patch), headers)

    def _url(self, path: str, group: str = APPS) -> str:
        return f"{self.server}/apis/{group}/v1/namespaces/{self.namespace}/{path}"

    def _headers(self, content_type: str) -> Mapping[str, str | SecretValue]:
        bearer = SecretValue(f"Bearer {self.token.reveal()}")
        return {"Content-Type": content_type, "Accept": "application/json", "Authorization": bearer}

    def _said(self, what: str) -> str:
        return f"the server would have {what}" if self.dry_run else what


def _named(metadata: Mapping[str, Any], name: str, namespace: str, labels: Mapping[str, str]) -> dict[str, Any]:
    kept = {key: value for key, value in metadata.items() if key != "generateName"}
    return {**kept, "name": name, "namespace": namespace, "labels": {**(metadata.get("labels") or {}), **labels}}


def _with_env(spec: Mapping[str, Any], env: Env) -> dict[str, Any]:
    """Every container of the pod is told; what it says of these variables itself is ours to replace."""
    template = spec["template"]
    containers = [
        {**each, "env": [*_others(each.get("env") or [], env), *({"name": k, "value": v} for k, v in env.items())]}
        for each in template["spec"]["containers"]
    ]
    return {**spec, "template": {**template, "spec": {**template["spec"], "containers": containers}}}


def _others(variables: Sequence[Mapping[str, Any]], env: Env) -> list[Mapping[str, Any]]:
    return [each for each in variables if each.get("name") not in env]


def _owned(deployment: _Workload, sets: Sequence[_Workload]) -> list[_Workload]:
    """Labels alone may be another deployment's, too."""
    uid = deployment.metadata.uid
    return [each for each in sets if any(o.controller and o.uid == uid for o in each.metadata.owner_references)]


def _earlier(name: str, sets: Sequence[_Workload], to_revision: int | None) -> _Workload:
    """The replica set of that revision; of the one before the newest if none is given. Raises Rejected."""
    if to_revision is not None:
        found = [each for each in sets if each.revision == to_revision]
        known = ", ".join(str(each) for each in sorted(each.revision for each in sets))
        if not found:
            raise _refused(f"{name} has no revision {to_revision}; it has {known or 'none'}")
        return found[0]
    ordered = sorted((each for each in sets if each.revision), key=lambda each: each.revision)
    if len(ordered) < 2:
        raise _refused(f"{name} has no earlier revision to go back to")
    return ordered[-2]


def _without_hash(template: dict[str, Any]) -> dict[str, Any]:
    """The controller puts its hash into the labels of a replica set's template."""
    metadata = dict(template.get("metadata") or {})
    labels = {key: value for key, value in (metadata.get("labels") or {}).items() if key != _HASH}
    return template | {"metadata": metadata | {"labels": labels}}


def _annotations(now: _Workload, earlier: _Workload) -> dict[str, str]:
    kept = {key: value for key, value in now.metadata.annotations.items() if key in _KEPT}
    return kept | {key: value for key, value in earlier.metadata.annotations.items() if key not in _KEPT}


def _refused(detail: str) -> Rejected:
    return Rejected(Reason.REFUSED, detail)
