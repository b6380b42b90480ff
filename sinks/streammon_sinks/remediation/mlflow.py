"""A run of MLflow, made through its REST API, for a training to log to.

The run carries the id of the request as the tag ``streammon.request_id``; where a run has it already, none is made.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar
from urllib.parse import quote

import msgspec
from msgspec import Struct

from streammon.errors import Reason, Rejected, Retryable
from streammon_sinks.notify.http import Http, Unanswered
from streammon_sinks.notify.secrets import SecretValue

T = TypeVar("T")
REQUEST: Final = "streammon.request_id"


class _Experiment(Struct):
    experiment_id: str
    lifecycle_stage: str = "active"


class _ByName(Struct):
    experiment: _Experiment


class _Info(Struct):
    run_id: str


class _Run(Struct):
    info: _Info


class _Created(Struct):
    run: _Run


class _Found(Struct):
    runs: list[_Run] = []


@dataclass(frozen=True)
class Tracking:
    """A tracking server. What its methods return says what was done; what they raise, `Http` says."""

    http: Http
    server: str
    headers: Mapping[str, str | SecretValue]
    dry_run: bool

    async def run(self, experiment: str, request: str, name: str, start_unix_s: float, tags: Mapping[str, str]) -> str:
        """Make the run of a request, unless there is one."""
        id_ = await self._experiment(experiment)
        known = await self._look("POST", "runs/search", _Found, _by_request(id_, request))
        if known.runs:
            return f"run {known.runs[0].info.run_id} of experiment {experiment} is there already"
        if self.dry_run:
            return f"would make a run in experiment {experiment}"
        body = {
            "experiment_id": id_,
            "run_name": name,
            "start_time": round(start_unix_s * 1000),
            "tags": [{"key": key, "value": value} for key, value in {**tags, REQUEST: request}.items()],
        }
        created = await self._send("POST", "runs/create", _Created, body)
        return f"made run {created.run.info.run_id} in experiment {experiment}"

    async def _experiment(self, name: str) -> str:
        path = f"experiments/get-by-name?experiment_name={quote(name, safe='')}"
        found = (await self._look("GET", path, _ByName)).experiment
        if found.lifecycle_stage != "active":
            raise Rejected(Reason.REFUSED, f"experiment {name} is {found.lifecycle_stage}; restore it first")
        return found.experiment_id

    async def _look(self, method: str, path: str, type_: type[T], body: Any = None) -> T:
        try:
            return await self._send(method, path, type_, body)
        except Unanswered as error:
            raise Retryable(str(error)) from None  # who only looks has changed nothing

    async def _send(self, method: str, path: str, type_: type[T], body: Any = None) -> T:
        content = b"" if body is None else msgspec.json.encode(body)
        reply = await self.http.send(method, f"{self.server}/api/2.0/mlflow/{path}", content, self.headers)
        found = reply.read(type_)
        if found is None:
            where = self.http.where(self.server)
            raise Unanswered(f"{where} answered {path.partition('?')[0]} as no MLflow server does")
        return found


def _by_request(experiment_id: str, request: str) -> dict[str, Any]:
    return {"experiment_ids": [experiment_id], "filter": f"tags.`{REQUEST}` = '{request}'", "max_results": 1}
