"""A strict fake of the API server of Kubernetes: not the real one, but it refuses what the real one would refuse.

Of ``apps/v1`` and ``batch/v1`` it knows what remediation uses: deployments, their scale, replica sets, jobs and cron
jobs, in one namespace. It takes no request without the token, without a permission, with another content type than the
patch has, or with a query that the real server does not know. A patch is applied to what it keeps, unless it is a dry
run.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aiohttp import web

from tests.sinks.notify.fake_http import FakeHttp, fake_http

TOKEN = "token-of-the-service-account"
ROOT, BATCH = "/apis/apps/v1/namespaces/ml/", "/apis/batch/v1/namespaces/ml/"
EVERYTHING = frozenset(
    {
        ("get", "deployments"),
        ("patch", "deployments"),
        ("patch", "deployments/scale"),
        ("list", "replicasets"),
        ("get", "cronjobs"),
        ("create", "jobs"),
    }
)
NAME = re.compile(r"[a-z0-9]([-a-z0-9.]{0,61}[a-z0-9])?")
LABEL = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")


def template(image: str, **labels: str) -> dict[str, Any]:
    return {
        "metadata": {"labels": {"app": "ranker", **labels}},
        "spec": {"containers": [{"name": "main", "image": image}]},
    }


def replica_set(revision: int, image: str, owner: str = "uid-ranker") -> dict[str, Any]:
    return {
        "metadata": {
            "name": f"ranker-{revision}",
            "uid": f"uid-{revision}-{owner}",
            "labels": {"app": "ranker", "pod-template-hash": f"hash{revision}"},
            "annotations": {
                "deployment.kubernetes.io/revision": str(revision),
                "deployment.kubernetes.io/desired-replicas": "9",
                "change-cause": f"release {revision}",
            },
            "ownerReferences": [{"kind": "Deployment", "name": "ranker", "uid": owner, "controller": True}],
        },
        "spec": {"template": template(image, **{"pod-template-hash": f"hash{revision}"})},
    }


class FakeKubernetes:
    """One deployment, ``ml/ranker``, at its third revision."""

    def __init__(self) -> None:
        self.http: FakeHttp
        self.permitted: frozenset[tuple[str, str]] = EVERYTHING
        self.changes = 0
        self.requests: list[str] = []
        self.deployment: dict[str, Any] = {
            "kind": "Deployment",
            "metadata": {
                "name": "ranker",
                "uid": "uid-ranker",
                "annotations": {"deployment.kubernetes.io/revision": "3", "change-cause": "release 3"},
            },
            "spec": {
                "replicas": 2,
                "selector": {"matchLabels": {"app": "ranker"}},
                "template": template("ranker:3"),
            },
        }
        self.replica_sets = [
            replica_set(3, "ranker:3"),
            replica_set(1, "ranker:1"),
            replica_set(2, "ranker:2"),
            replica_set(7, "another:7", owner="uid-of-another"),
        ]

        self.jobs: dict[str, dict[str, Any]] = {}
        container = {"name": "main", "image": "train:3", "env": [{"name": "EPOCHS", "value": "3"}]}
        pod = {"metadata": {}, "spec": {"containers": [container], "restartPolicy": "Never"}}
        self.cron_job: dict[str, Any] = {
            "kind": "CronJob",
            "metadata": {"name": "train-ranker", "uid": "uid-train"},
            "spec": {
                "schedule": "0 3 * * 0",
                "jobTemplate": {
                    "metadata": {"labels": {"app": "train"}, "annotations": {"team": "ml"}},
                    "spec": {"backoffLimit": 2, "template": pod},
                },
            },
        }

    @property
    def image(self) -> str:
        return str(self.deployment["spec"]["template"]["spec"]["containers"][0]["image"])

    def answer(self, request: web.Request, body: bytes) -> web.Response:  # noqa: PLR0911 - one for each request
        self.requests.append(f"{request.method} {request.path_qs}")
        path, query = request.path.removeprefix(ROOT).removeprefix(BATCH), dict(request.query)
        resource = path.replace("/ranker", "").replace("/train-ranker", "")
        verbs = {"PATCH": "patch", "POST": "create"}
        verb = verbs.get(request.method, "list" if resource == "replicasets" else "get")
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            return _status(401, "Unauthorized")
        if not request.path.startswith((ROOT, BATCH)) or (verb, resource) not in self.permitted:
            return _status(403, f'deployments.apps "ranker" is forbidden: cannot {verb} {resource}')
        match request.method, path:
            case "GET", "deployments/ranker" if not query:
                return web.json_response(self.deployment)
            case "GET", "replicasets" if query == {"labelSelector": "app=ranker"}:
                return web.json_response({"kind": "ReplicaSetList", "items": self.replica_sets})
            case "GET", "cronjobs/train-ranker" if not query:
                return web.json_response(self.cron_job)
            case "POST", "jobs":
                return self._created(query, request.content_type, json.loads(body))
            case "PATCH", "deployments/ranker" | "deployments/ranker/scale":
                return self._patched(path, query, request.content_type, json.loads(body))
        return _status(404, "the server could not find the requested resource")

    def _created(self, query: dict[str, str], content_type: str, job: dict[str, Any]) -> web.Response:
        dry = query.pop("dryRun", "")
        if query != {"fieldManager": "streammon"} or dry not in ("", "All"):
            return _status(400, f"unknown query {query}, dryRun {dry}")
        if content_type != "application/json" or (job.get("apiVersion"), job.get("kind")) != ("batch/v1", "Job"):
            return _status(400, f"no job of batch/v1: {content_type}")
        name, wrong = job["metadata"].get("name", ""), list(_wrong(job))
        if wrong:
            return _status(422, f'Job.batch "{name}" is invalid: {wrong[0]}')
        if name in self.jobs:
            return _status(409, f'jobs.batch "{name}" already exists', "AlreadyExists")
        if not dry:
            self.jobs[name] = job
        return web.json_response(job, status=201)

    def _patched(self, path: str, query: dict[str, str], content_type: str, patch: Any) -> web.Response:
        dry = query.pop("dryRun", "")
        if query != {"fieldManager": "streammon"} or dry not in ("", "All"):
            return _status(400, f"unknown query {query}, dryRun {dry}")
        changed = copy.deepcopy(self.deployment)
        way = (path.removeprefix("deployments/ranker"), content_type)
        if way == ("", "application/json-patch+json"):
            _json_patch(changed, patch)
        elif way in (("/scale", "application/merge-patch+json"), ("", "application/strategic-merge-patch+json")):
            _merge(changed, patch)
        else:
            return _status(415, f"the body of the request was in an unknown format: {content_type}")
        if changed["spec"]["template"]["metadata"]["labels"] != {"app": "ranker"}:
            return _status(422, "selector does not match template labels, or pod-template-hash is set")
        if not dry:
            self.deployment, self.changes = changed, self.changes + 1
        return web.json_response(changed)


def _wrong(job: dict[str, Any]) -> Iterator[str]:
    if job["metadata"].get("namespace") != "ml" or not NAME.fullmatch(job["metadata"].get("name", "")):
        yield "metadata.name"
    if not all(LABEL.fullmatch(each) for each in job["metadata"].get("labels", {}).values()):
        yield "metadata.labels"
    if job["spec"]["template"]["spec"].get("restartPolicy") not in ("Never", "OnFailure"):
        yield "spec.template.spec.restartPolicy: Required value"


def _json_patch(target: dict[str, Any], patch: Any) -> None:
    for each in patch:
        assert each["op"] == "replace"
        *above, last = each["path"].strip("/").split("/")
        here = target
        for key in above:
            here = here[key]
        assert last in here, "replace of what is not there"
        here[last] = each["value"]


def _merge(target: dict[str, Any], patch: dict[str, Any]) -> None:
    for key, value in patch.items():
        if isinstance(value, dict):
            _merge(target.setdefault(key, {}), value)
        else:
            target[key] = value


def _status(code: int, message: str, reason: str = "") -> web.Response:
    said = {"kind": "Status", "status": "Failure", "message": message, "reason": reason, "code": code}
    return web.json_response(said, status=code)


@asynccontextmanager
async def fake_kubernetes(directory: Path) -> AsyncIterator[FakeKubernetes]:
    fake = FakeKubernetes()
    async with fake_http(fake.answer, directory) as fake.http:
        yield fake
