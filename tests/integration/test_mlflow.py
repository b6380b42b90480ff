"""Runs on MLflow's own tracking server, and that the fake of it answers as it does.

The server takes minutes and 600 MB to install, so it has to be asked for: ``STREAMMON_MLFLOW=/path/to/mlflow``, the
program of an environment with ``pip install mlflow``. Last tried with MLflow 3.17.2.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from streammon.errors import StreammonError
from streammon.retraining import Retrain
from streammon_sinks.notify.secrets import Secret
from streammon_sinks.remediation.actions import Mlflow
from tests.sinks.remediation.fake_mlflow import TOKEN, fake_mlflow
from tests.sinks.remediation.test_actions import due, tools
from tests.support import eventually

PROGRAM = os.environ.get("STREAMMON_MLFLOW")
needs_mlflow = pytest.mark.skipif(PROGRAM is None, reason="STREAMMON_MLFLOW does not name the program mlflow")


@pytest.fixture
async def real(tmp_path: Path, free_port: int) -> AsyncIterator[str]:
    command = [str(PROGRAM), "server", "--host", "127.0.0.1", "--port", str(free_port), "--workers", "1"]
    address = f"http://127.0.0.1:{free_port}"
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(  # noqa: ASYNC220 - forking is all it blocks for
            [*command, "--backend-store-uri", f"sqlite:///{tmp_path}/mlflow.db"], cwd=tmp_path, stdout=log, stderr=log
        )
    try:
        async with aiohttp.ClientSession() as session:

            async def answers() -> bool:
                try:
                    async with session.get(f"{address}/health") as reply:
                        return reply.status == 200
                except aiohttp.ClientError:
                    return False

            await eventually(answers, 180, "MLflow's server")
            for name in ("ranker", "old"):
                body = {"name": name}
                async with session.post(f"{address}/api/2.0/mlflow/experiments/create", json=body) as reply:
                    assert reply.status == 200
            body = {"experiment_id": "2"}
            async with session.post(f"{address}/api/2.0/mlflow/experiments/delete", json=body) as reply:
                assert reply.status == 200
        yield address
    finally:
        process.terminate()
        process.wait(30)


async def exchange(server: str, tmp_path: Path) -> tuple[list[str], dict[str, str]]:
    """What is said of all that can be asked for, and the tags of the run that was made."""
    (tmp_path / "token").write_text(TOKEN)
    plain: dict[str, Any] = {"token": Secret(file=str(tmp_path / "token")), "timeout": "60s", "tags": {"team": "ml"}}
    said = []
    async with aiohttp.ClientSession() as session:
        for experiment, dry in [
            ("ranker", True),
            ("ranker", False),
            ("ranker", False),
            ("none", False),
            ("old", False),
        ]:
            retrain = Retrain(service="shop", model="ranker")
            action = Mlflow(server=server, experiment=experiment, retrain=retrain, **plain)
            try:
                said.append(await action.do(tools(session), due(dry_run=dry)))
            except StreammonError as error:
                said.append(str(error))
        bearer = {"Authorization": f"Bearer {TOKEN}"}
        asked = {"experiment_ids": ["1"], "filter": f"tags.`streammon.request_id` = '{due().id}'", "max_results": 9}
        async with session.post(f"{server}/api/2.0/mlflow/runs/search", json=asked, headers=bearer) as reply:
            [run] = json.loads(await reply.text())["runs"]
    tags = {each["key"]: each["value"] for each in run["data"]["tags"] if not each["key"].startswith("mlflow.")}
    return [_plain(each) for each in said], tags


def _plain(said: str) -> str:
    """Without the id of the run, and what else the server may word as it likes."""
    return re.sub(r"[0-9a-f]{32}", "ID", said).partition('{"error_code"')[0]


@needs_mlflow
@pytest.mark.timeout(300)
async def test_a_real_server_and_the_fake_say_the_same(real: str, tmp_path: Path) -> None:
    async with fake_mlflow(tmp_path) as fake:
        of_fake = await exchange(fake.http.address, tmp_path)
    said, tags = await exchange(real, tmp_path)
    assert (said, tags) == of_fake
    assert said[1:3] == ["made run ID in experiment ranker", "run ID of experiment ranker is there already"]
    assert tags["streammon.request_id"] == due().id
