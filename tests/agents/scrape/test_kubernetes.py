"""Pods by annotations, from a fake API server that is as strict as the real one about what it is asked.

It checks the token, the path and the selector, pages its lists, forgets old versions (410), and ends its watches.
"""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web

from streammon.backoff import Backoff
from streammon_agents.scrape import kubernetes
from streammon_agents.scrape.discovery import LabelSets, Report
from streammon_agents.scrape.fetching import open_session
from streammon_agents.scrape.jobs import KubernetesSdConfig, Namespaces
from streammon_agents.scrape.kubernetes import Pods, label_sets
from streammon_agents.source import ended
from tests.certificates import Authority
from tests.support import eventually

Pod = dict[str, Any]


def pod(name: str, version: int = 1, *, namespace: str = "n", ip: str = "10.0.0.1", **annotations: str) -> Pod:
    return {
        "metadata": {
            "name": name,
            "namespace": namespace,
            "uid": f"uid-{name}",
            "resourceVersion": str(version),
            "labels": {"app.kubernetes.io/name": "ranker"},
            "annotations": {f"prometheus.io/{key}": value for key, value in annotations.items()},
            "ownerReferences": [{"kind": "ReplicaSet", "name": "r", "controller": True}],
        },
        "spec": {
            "nodeName": "node1",
            "containers": [{"name": "main", "image": "i", "ports": [{"name": "http", "containerPort": 8080}]}],
        },
        "status": {"podIP": ip, "phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]},
    }


class FakeApi:
    """Pods of a node, with the versions of an API server."""

    def __init__(self) -> None:
        self.token = "first"
        self.pods: dict[str, Pod] = {}
        self.version, self.oldest = 1, 1
        self.refusals: list[str] = []
        self.lists = self.watches = self.refused = 0
        self.status: int | None = None
        self.nonsense = b""
        self._changes: list[tuple[int, str, Pod]] = []
        self._changed = asyncio.Event()
        self.ending = asyncio.Event()

    def change(self, kind: str, changed: Pod) -> None:
        self.version += 1
        changed["metadata"]["resourceVersion"] = str(self.version)
        if kind == "DELETED":
            del self.pods[changed["metadata"]["uid"]]
        else:
            self.pods[changed["metadata"]["uid"]] = changed
        self._changes.append((self.version, kind, changed))
        self._changed.set()

    async def serve(self, request: web.Request) -> web.StreamResponse:
        if self.status is not None:
            self.refused += 1
            return web.Response(status=self.status)
        if request.headers.get("Authorization") != f"Bearer {self.token}":
            return web.Response(status=401)
        expected = "/api/v1/pods"
        if request.path != expected or request.query.get("fieldSelector") != "spec.nodeName=node1":
            self.refusals.append(str(request.rel_url))
            return web.Response(status=400)
        return await (self._watch(request) if request.query.get("watch") == "true" else self._list(request))

    async def _list(self, request: web.Request) -> web.Response:
        self.lists += 1
        if self.nonsense:
            return web.Response(body=self.nonsense)
        names, limit = sorted(self.pods), int(request.query["limit"])
        start = int(request.query.get("continue", "0"))
        more = {"continue": str(start + limit)} if start + limit < len(names) else {}
        items = [self.pods[name] for name in names[start : start + limit]]
        return web.json_response({"items": items, "metadata": {"resourceVersion": str(self.version), **more}})

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        self.watches += 1
        version = int(request.query["resourceVersion"])
        answer = web.StreamResponse()
        await answer.prepare(request)
        if version < self.oldest:
            await answer.write(json.dumps({"type": "ERROR", "object": {"code": 410}}).encode() + b"\n")
            return answer
        while not self.ending.is_set():
            for number, kind, changed in self._changes:
                if number > version:
                    text = json.dumps({"type": kind, "object": changed}).encode() + b"\n"
                    await answer.write(text[:20])  # a change may come in pieces
                    await answer.write(text[20:])
                    version = number
            self._changed.clear()
            waiting = [asyncio.create_task(each.wait()) for each in (self._changed, self.ending)]
            await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for each in waiting:
                each.cancel()
        bookmark = {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": str(self.version)}}}
        await answer.write(json.dumps(bookmark).encode() + b"\n")
        return answer


@asynccontextmanager
async def api_server(tmp_path: Path) -> AsyncIterator[tuple[FakeApi, Pods]]:
    """The server, and a discovery that asks it."""
    authority = Authority(tmp_path)
    (tmp_path / "token").write_text("first\n")
    (tmp_path / "ca.crt").write_bytes(authority.file.read_bytes())
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(authority.issue("server"))
    api = FakeApi()
    app = web.Application()
    app.router.add_get("/{path:.*}", api.serve)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
    host, port = runner.addresses[0][:2]
    environment = {"KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": str(port)}
    async with open_session() as session:
        config = KubernetesSdConfig(role="pod")
        yield api, Pods(config, "node1", session, account=tmp_path, environment=environment)
    await runner.cleanup()


@asynccontextmanager
async def following(pods: Pods) -> AsyncIterator[list[Report]]:
    reports = list[Report]()
    task = asyncio.create_task(pods.run(reports.append))
    try:
        yield reports
    finally:
        await ended(task)


def names(reports: list[Report]) -> set[str]:
    found: LabelSets = next((report.found for report in reversed(reports) if report.found is not None), [])
    return {labels["__meta_kubernetes_pod_name"] for labels in found}


async def test_pods_are_listed_and_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kubernetes, "PAGE", 2)
    monkeypatch.setattr(kubernetes, "BACKOFF", Backoff(first_s=0.01, longest_s=0.05))
    async with api_server(tmp_path) as (api, pods):
        for name in "abcde":
            api.change("ADDED", pod(name))
        async with following(pods) as reports:
            await eventually(lambda: names(reports) == {*"abcde"})
            assert api.lists == 3, "page by page"
            api.change("DELETED", api.pods["uid-a"])
            api.change("ADDED", pod("f"))
            await eventually(lambda: names(reports) == {*"bcdef"})
            api.ending.set()
            await eventually(lambda: api.watches > 2)
            api.ending.clear()
            assert api.lists == 3, "a watch that ends is taken up where it was"
            api.oldest = api.version + 1
            api.ending.set()
            await eventually(lambda: api.lists > 3)
            api.oldest = 1
            api.ending.clear()
            api.change("ADDED", pod("g"))
            await eventually(lambda: names(reports) == {*"bcdefg"})
            api.status, lists = 410, api.lists  # as for a list that took too long between its pages
            api.ending.set()
            await eventually(lambda: api.refused > 1)
            api.status = None
            await eventually(lambda: api.lists > lists)
    assert not api.refusals
    assert all(report.failing is None for report in reports)


async def test_what_is_known_holds_while_the_server_fails_and_tokens_are_renewed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubernetes, "BACKOFF", Backoff(first_s=0.01, longest_s=0.05))
    async with api_server(tmp_path) as (api, pods):
        api.change("ADDED", pod("a"))
        async with following(pods) as reports:
            await eventually(lambda: names(reports) == {"a"})
            api.token = "second"
            api.ending.set()
            await eventually(lambda: reports[-1].failing)
            assert reports[-1].found is None
            assert "401: the service account needs list and watch" in (reports[-1].failing or "")
            (tmp_path / "token").write_text("second")
            api.ending.clear()
            await eventually(lambda: reports[-1].failing is None)
            api.status = 500
            api.ending.set()
            await eventually(lambda: "answered 500" in (reports[-1].failing or ""))
            api.status = None
            api.nonsense = b'{"metadata": 5}'
            await eventually(lambda: "does not answer as it should" in (reports[-1].failing or ""))
    assert names(reports) == {"a"}


async def test_outside_of_a_cluster_it_says_so(tmp_path: Path) -> None:
    async with open_session() as session:
        config = KubernetesSdConfig(role="pod", namespaces=Namespaces(names=["n"]))
        pods = Pods(config, "node1", session, account=tmp_path, environment={})
        with pytest.raises(ValueError, match="service account"):
            await pods.once()


def test_a_pod_is_a_label_set_a_port_with_the_labels_of_prometheus() -> None:
    given = pod("p", scrape="true", port="9100")
    given["spec"]["containers"].append({"name": "side", "image": "s"})
    given["spec"]["initContainers"] = [{"name": "init", "image": "x"}]
    main, side, init = label_sets(msgspec.convert(given, kubernetes.Pod))
    assert main == {
        "__address__": "10.0.0.1:8080",
        "__meta_kubernetes_namespace": "n",
        "__meta_kubernetes_pod_name": "p",
        "__meta_kubernetes_pod_uid": "uid-p",
        "__meta_kubernetes_pod_ip": "10.0.0.1",
        "__meta_kubernetes_pod_node_name": "node1",
        "__meta_kubernetes_pod_phase": "Running",
        "__meta_kubernetes_pod_ready": "true",
        "__meta_kubernetes_pod_controller_kind": "ReplicaSet",
        "__meta_kubernetes_pod_controller_name": "r",
        "__meta_kubernetes_pod_label_app_kubernetes_io_name": "ranker",
        "__meta_kubernetes_pod_labelpresent_app_kubernetes_io_name": "true",
        "__meta_kubernetes_pod_annotation_prometheus_io_scrape": "true",
        "__meta_kubernetes_pod_annotationpresent_prometheus_io_scrape": "true",
        "__meta_kubernetes_pod_annotation_prometheus_io_port": "9100",
        "__meta_kubernetes_pod_annotationpresent_prometheus_io_port": "true",
        "__meta_kubernetes_pod_container_name": "main",
        "__meta_kubernetes_pod_container_image": "i",
        "__meta_kubernetes_pod_container_init": "false",
        "__meta_kubernetes_pod_container_port_name": "http",
        "__meta_kubernetes_pod_container_port_number": "8080",
        "__meta_kubernetes_pod_container_port_protocol": "TCP",
    }
    assert (side["__address__"], init["__meta_kubernetes_pod_container_init"]) == ("10.0.0.1", "true")
    assert not list(label_sets(msgspec.convert(pod("q", ip=""), kubernetes.Pod))), "it has no address yet"
