"""A strict fake of MLflow's tracking server: not the real one, but it refuses what the real one refuses.

`tests/integration/test_mlflow.py` makes the same requests of a real server where there is one, and compares.
"""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aiohttp import web

from tests.sinks.notify.fake_http import FakeHttp, fake_http

ROOT = "/api/2.0/mlflow/"
TOKEN = "token-of-the-server"
FILTER = re.compile(r"tags\.`([^`]+)` = '([^']+)'")


class FakeMlflow:
    """Two experiments: ``ranker``, and ``old``, which was deleted."""

    def __init__(self) -> None:
        self.http: FakeHttp
        self.runs: list[dict[str, Any]] = []
        self.experiments = {"ranker": ("1", "active"), "old": ("2", "deleted")}

    def answer(self, request: web.Request, body: bytes) -> web.Response:
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            return _error(401, "UNAUTHENTICATED", "no token")
        match request.method, request.path.removeprefix(ROOT):
            case "GET", "experiments/get-by-name":
                return self._experiment(request.query.get("experiment_name", ""))
            case "POST", "runs/search" if request.content_type == "application/json":
                return self._search(json.loads(body))
            case "POST", "runs/create" if request.content_type == "application/json":
                return self._create(json.loads(body))
        return web.Response(status=404)

    def _experiment(self, name: str) -> web.Response:
        if name not in self.experiments:
            message = f"Could not find experiment with name '{name}'"
            return _error(404, "RESOURCE_DOES_NOT_EXIST", message)
        id_, stage = self.experiments[name]
        return web.json_response({"experiment": {"experiment_id": id_, "name": name, "lifecycle_stage": stage}})

    def _search(self, asked: dict[str, Any]) -> web.Response:
        found = FILTER.fullmatch(asked["filter"])
        if not found or asked.keys() != {"experiment_ids", "filter", "max_results"}:
            return _error(400, "INVALID_PARAMETER_VALUE", f"bad search {asked}")
        wanted = {"key": found[1], "value": found[2]}
        runs = [each for each in self.runs if wanted in each["data"]["tags"]]
        return web.json_response({"runs": runs[: asked["max_results"]]} if runs else {})

    def _create(self, asked: dict[str, Any]) -> web.Response:
        tags = asked.get("tags", [])
        good = isinstance(asked.get("start_time"), int) and all(
            each.keys() == {"key", "value"} and isinstance(each["value"], str) for each in tags
        )
        if not good or asked.get("experiment_id") not in {id_ for id_, _ in self.experiments.values()}:
            return _error(400, "INVALID_PARAMETER_VALUE", f"bad run {asked}")
        info = {"run_id": f"{len(self.runs) + 1:032x}", "experiment_id": asked["experiment_id"], "status": "RUNNING"}
        run = {"info": info | {"run_name": asked["run_name"]}, "data": {"tags": tags}}
        self.runs.append(run)
        return web.json_response({"run": run})


def _error(status: int, code: str, message: str) -> web.Response:
    return web.json_response({"error_code": code, "message": message}, status=status)


@asynccontextmanager
async def fake_mlflow(directory: Path) -> AsyncIterator[FakeMlflow]:
    fake = FakeMlflow()
    async with fake_http(fake.answer, directory) as fake.http:
        yield fake
