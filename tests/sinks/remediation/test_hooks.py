"""What starts a training: a program, a job of Kubernetes, a run of MLflow; once, bounded, and telling no secrets."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from msgspec.structs import replace

from streammon.errors import ConfigError, Rejected, Retryable
from streammon.remediation import Remediation
from streammon.retraining import Retrain
from streammon_processors.rules import load_rules
from streammon_sinks.notify.http import Unanswered
from streammon_sinks.notify.secrets import Secret
from streammon_sinks.remediation.actions import Action, Command, Kubernetes, Mlflow, load_actions
from streammon_sinks.remediation.command import KEPT_BYTES, SAID_CHARACTERS
from tests.sinks.notify.counterparts import Fault
from tests.sinks.remediation.fake_kubernetes import TOKEN, FakeKubernetes, fake_kubernetes
from tests.sinks.remediation.fake_mlflow import TOKEN as MLFLOW_TOKEN
from tests.sinks.remediation.fake_mlflow import FakeMlflow, fake_mlflow
from tests.sinks.remediation.test_actions import due, tools
from tests.support import eventually

RETRAIN = Retrain(service="shop", model="ranker")


async def done(action: Action, *, dry_run: bool = False, remediation: Remediation | None = None) -> str:
    async with aiohttp.ClientSession() as session:
        return await action.do(tools(session), remediation or due(dry_run=dry_run))


# --- a program --------------------------------------------------------------------------------------------------------


def program(source: str, **more: Any) -> Command:
    return Command(command=[sys.executable, "-c", source], **({"retrain": RETRAIN} | more))


async def test_a_program_is_told_what_it_is_about_and_nothing_else_of_our_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("STREAMMON_KAFKA__PASSWORD", "of-the-broker")
    source = "import json, os, sys; print(json.dumps([dict(os.environ), os.getcwd(), json.load(sys.stdin)]))"
    (tmp_path / "key").write_text("k3y-of-the-store")
    env: Any = {"STORE": "s3://models", "KEY": Secret(file=str(tmp_path / "key"))}
    save = f"open({str(tmp_path / 'said')!r}, 'w').write"
    await done(program(source.replace("print", save), env=env, cwd=str(tmp_path)))
    found, cwd, about = json.loads((tmp_path / "said").read_text())
    assert (found["STORE"], found["KEY"], cwd) == ("s3://models", "k3y-of-the-store", str(tmp_path))
    assert {name: value for name, value in found.items() if name.startswith("STREAMMON_")} == {
        "STREAMMON_ACTION": "restart",
        "STREAMMON_REMEDIATION_ID": due().id,
        "STREAMMON_RETRAIN_ID": due().id,
        "STREAMMON_RETRAIN_SERVICE": "shop",
        "STREAMMON_RETRAIN_MODEL": "ranker",
    }
    assert about["id"] == due().id
    assert about["retrain"] == {"id": due().id, "service": "shop", "model": "ranker"}


async def test_its_exit_status_decides_and_the_end_of_what_it_says_is_told() -> None:
    assert await done(program("print('x' * 20); print('queued as 17')")) == (
        f"{sys.executable} ended with 0: xxxxxxxxxxxxxxxxxxxx queued as 17"
    )
    with pytest.raises(Rejected, match=r"ended with 3: no\? such model"):
        await done(
            program("import sys; print('no\\x1b such model', file=sys.stderr); sys.exit(3)".replace("\\x1b", "?"))
        )


async def test_what_it_says_is_bounded_and_its_secrets_are_not_told(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("k3y-of-the-store")
    env: Any = {"KEY": Secret(file=str(tmp_path / "key"))}
    said = await done(program("import os; print((os.environ['KEY'] + ' ') * 100_000)", env=env))
    assert "k3y" not in said
    assert "store" not in said
    assert len(said) < SAID_CHARACTERS + 200


@pytest.mark.parametrize("cut", range(1, 17))
async def test_a_secret_of_which_the_beginning_is_cut_off_is_not_told_either(tmp_path: Path, cut: int) -> None:
    (tmp_path / "key").write_text("k3y-of-the-store")
    env: Any = {"KEY": Secret(file=str(tmp_path / "key"))}
    rest = KEPT_BYTES - cut
    said = await done(program(f"import os; print(os.environ['KEY'] + '\\n' * {rest - 1})", env=env))
    said = said.replace(sys.executable, "")  # wherever that lies
    assert not any(piece in said for piece in ("store", "tore", "re"))


async def test_a_program_that_is_not_there_is_known_not_to_have_run(tmp_path: Path) -> None:
    for name in ("no-such-program", str(tmp_path / "train.sh"), str(tmp_path)):
        for dry_run in (False, True):
            with pytest.raises(ConfigError, match="is not there, or cannot be run"):
                await done(Command(command=[name]), dry_run=dry_run)
    with pytest.raises(ConfigError, match="could not be started: No such file or directory"):
        await done(program("", cwd=str(tmp_path / "gone")))


async def test_a_dry_run_starts_nothing(tmp_path: Path) -> None:
    said = await done(program(f"open({str(tmp_path / 'made')!r}, 'w')"), dry_run=True)
    assert said == f"would run {sys.executable} with 2 arguments"
    assert not (tmp_path / "made").exists()


async def test_arguments_are_no_shell(tmp_path: Path) -> None:
    await done(Command(command=["touch", str(tmp_path / "a; touch b")]))
    assert (tmp_path / "a; touch b").exists()


async def test_whoever_waits_no_longer_kills_it_and_all_that_it_has_started(tmp_path: Path) -> None:
    """As the executor does when its time is over."""
    inner = f"import os, time; open({str(tmp_path / 'pids')!r}, 'a').write(str(os.getpid()) + ' '); time.sleep(60)"
    outer = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {inner!r}]); {inner}"
    running = asyncio.create_task(done(program(outer)))
    await eventually(lambda: len(pids(tmp_path)) == 2)
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
    await eventually(lambda: not any(map(is_alive, pids(tmp_path))))


def pids(directory: Path) -> list[int]:
    file = directory / "pids"
    return [*map(int, file.read_text().split())] if file.exists() else []


def is_alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


async def test_what_it_leaves_behind_goes_on_and_is_not_waited_for(tmp_path: Path) -> None:
    left = f"import os, time; open({str(tmp_path / 'pids')!r}, 'a').write(str(os.getpid())); time.sleep(60)"
    source = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {left!r}]); print('queued')"
    assert (await done(program(source))).endswith("ended with 0: queued")
    await eventually(lambda: len(pids(tmp_path)) == 1)
    assert is_alive(pids(tmp_path)[0])
    os.kill(pids(tmp_path)[0], signal.SIGKILL)


async def test_a_program_that_reads_nothing_and_one_that_is_killed() -> None:
    assert "ended with 0" in await done(Command(command=["true"]))
    with pytest.raises(Rejected, match="ended with -9"):
        await done(program("import os; os.kill(os.getpid(), 9)"))


# --- a job of Kubernetes ----------------------------------------------------------------------------------------------


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[FakeKubernetes]:
    (tmp_path / "token").write_text(TOKEN)
    async with fake_kubernetes(tmp_path) as fake:
        yield fake


def job(cluster: FakeKubernetes, tmp_path: Path, **how: Any) -> Kubernetes:
    plain: dict[str, Any] = {"cron_job": "train-ranker"} if "job" not in how else {}
    return Kubernetes(
        do_="create_job",
        namespace="ml",
        server=cluster.http.address,
        token=Secret(file=str(tmp_path / "token")),
        ca_file=None,
        timeout="2s",
        retrain=RETRAIN,
        **(plain | how),
    )


async def test_a_job_is_made_of_a_cron_job_and_told_what_it_is_for(cluster: FakeKubernetes, tmp_path: Path) -> None:
    name = f"train-ranker-{due().id}"
    assert await done(job(cluster, tmp_path)) == f"made job ml/{name}"
    made = cluster.jobs[name]
    assert made["metadata"]["labels"] == {"app": "train", "streammon/remediation": due().id}
    assert made["metadata"]["annotations"] == {"cronjob.kubernetes.io/instantiate": "manual", "team": "ml"}
    assert made["metadata"]["ownerReferences"][0]["uid"] == "uid-train"
    assert made["spec"]["backoffLimit"] == 2
    env = {each["name"]: each["value"] for each in made["spec"]["template"]["spec"]["containers"][0]["env"]}
    assert (env["EPOCHS"], env["STREAMMON_RETRAIN_ID"], env["STREAMMON_RETRAIN_MODEL"]) == ("3", due().id, "ranker")


async def test_the_same_job_is_not_made_twice(cluster: FakeKubernetes, tmp_path: Path) -> None:
    await done(job(cluster, tmp_path))
    assert (await done(job(cluster, tmp_path))).endswith("is there already")
    assert len(cluster.jobs) == 1


async def test_a_job_is_made_of_a_manifest(cluster: FakeKubernetes, tmp_path: Path) -> None:
    container = {"name": "main", "image": "train:1", "env": [{"name": "STREAMMON_RETRAIN_ID", "value": "old"}]}
    manifest: dict[str, Any] = {
        "metadata": {"name": "train-" + "x" * 60, "generateName": "y-"},
        "spec": {"template": {"spec": {"containers": [container], "restartPolicy": "Never"}}},
    }
    await done(job(cluster, tmp_path, job=manifest))
    [(name, made)] = cluster.jobs.items()
    assert (len(name), "generateName" in made["metadata"]) == (63, False)
    [env] = [each["env"] for each in made["spec"]["template"]["spec"]["containers"]]
    assert [each["value"] for each in env if each["name"] == "STREAMMON_RETRAIN_ID"] == [due().id]
    manifest["spec"]["template"]["spec"]["restartPolicy"] = "Always"
    with pytest.raises(Rejected, match="restartPolicy"):
        await done(job(cluster, tmp_path, job=manifest), remediation=replace(due(), id="b" * 24))


async def test_a_dry_run_of_a_job_asks_the_server_and_makes_none(cluster: FakeKubernetes, tmp_path: Path) -> None:
    assert (await done(job(cluster, tmp_path), dry_run=True)).startswith("the server would have made job ml/")
    assert cluster.jobs == {}
    assert cluster.requests[-1].endswith("dryRun=All")


@pytest.mark.parametrize("verb", ["get", "create"])
async def test_a_permission_that_is_missing_is_told(cluster: FakeKubernetes, tmp_path: Path, verb: str) -> None:
    cluster.permitted = frozenset(each for each in cluster.permitted if each[0] != verb)
    with pytest.raises(Rejected, match=f"answered 403: .*cannot {verb}"):
        await done(job(cluster, tmp_path))


# --- a run of MLflow --------------------------------------------------------------------------------------------------


@pytest.fixture
async def mlflow(tmp_path: Path) -> AsyncIterator[FakeMlflow]:
    (tmp_path / "token").write_text(MLFLOW_TOKEN)
    async with fake_mlflow(tmp_path) as fake:
        yield fake


def logged(mlflow: FakeMlflow, tmp_path: Path, **how: Any) -> Mlflow:
    plain: dict[str, Any] = {"experiment": "ranker", "tags": {"team": "ml"}, "timeout": "2s", "retrain": RETRAIN}
    return Mlflow(server=mlflow.http.address, token=Secret(file=str(tmp_path / "token")), **(plain | how))


async def test_a_run_is_made_once_and_says_what_it_is_for(mlflow: FakeMlflow, tmp_path: Path) -> None:
    assert await done(logged(mlflow, tmp_path)) == f"made run {1:032x} in experiment ranker"
    assert await done(logged(mlflow, tmp_path)) == f"run {1:032x} of experiment ranker is there already"
    [run] = mlflow.runs
    assert {each["key"]: each["value"] for each in run["data"]["tags"]} == {
        "team": "ml",
        "streammon.action": "restart",
        "streammon.rule": "slow",
        "streammon.service": "shop",
        "streammon.model": "ranker",
        "streammon.request_id": due().id,
    }


async def test_a_dry_run_of_mlflow_looks_and_makes_nothing(mlflow: FakeMlflow, tmp_path: Path) -> None:
    assert await done(logged(mlflow, tmp_path), dry_run=True) == "would make a run in experiment ranker"
    assert mlflow.runs == []


@pytest.mark.parametrize(
    ("experiment", "said"), [("none", "Could not find experiment"), ("old", "old is deleted; restore it first")]
)
async def test_an_experiment_that_is_not_there_is_told(
    mlflow: FakeMlflow, tmp_path: Path, experiment: str, said: str
) -> None:
    with pytest.raises(Rejected, match=said):
        await done(logged(mlflow, tmp_path, experiment=experiment))


async def test_a_server_that_was_only_asked_has_made_nothing(mlflow: FakeMlflow, tmp_path: Path) -> None:
    mlflow.http.fault = Fault.RESET
    with pytest.raises(Retryable) as error:
        await done(logged(mlflow, tmp_path))
    assert not isinstance(error.value, Unanswered)


async def test_the_token_and_the_password_are_in_no_error(mlflow: FakeMlflow, tmp_path: Path) -> None:
    mlflow.http.fault = Fault.REFUSING
    with pytest.raises(Rejected) as error:
        await done(logged(mlflow, tmp_path))
    assert MLFLOW_TOKEN not in str(error.value)
    (tmp_path / "password").write_text("pass-of-the-server")
    secret = Secret(file=str(tmp_path / "password"))
    by_password = Mlflow(server=mlflow.http.address, experiment="ranker", username="ann", password=secret)
    with pytest.raises(Rejected) as error:
        await done(by_password)
    assert "Authorization" in str(error.value)
    assert "YW5u" not in str(error.value)  # "ann:…", as it is sent


# --- the file ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("action", "message"),
    [
        ("{type: command, command: []}", "length >= 1"),
        ("{type: command, command: train.sh}", "Expected `array`"),
        ("{type: command, command: [a], env: {a b: c}}", "matching regex"),
        ("{type: kubernetes, do: create_job, namespace: ml}", "either `cron_job` or `job` goes with `do: create_job`"),
        ("{type: kubernetes, do: restart, namespace: ml}", "`deployment` goes with all but `do: create_job`"),
        ("{type: kubernetes, do: restart, deployment: a, cron_job: b, namespace: ml}", "goes with `do: create_job`"),
        ("{type: kubernetes, do: create_job, namespace: ml, job: {spec: {}}}", "spec.template.spec.containers"),
        ("{type: mlflow, server: here, experiment: a}", "`server` has to begin with http"),
        ("{type: mlflow, server: 'http://a', experiment: a, username: b}", "either `token`, or `username`"),
        ("{type: kafka, topic: t, retrain: {service: a}}", "missing required field `model`"),
        ("{type: kafka, topic: t, retrain: {service: a, model: b, run_within: 1y}}", "'1y' is no duration"),
        (
            "{type: kafka, topic: t, retrain: {service: a, model: b, confirm: {within: 0}}}",
            "`confirm.within` has to be",
        ),
        ("{type: kafka, topic: t, retrain: {service: a, model: b, confirm: {slow: soon}}}", "'soon' is no duration"),
    ],
)
def test_a_bad_hook_is_refused_with_its_place(tmp_path: Path, action: str, message: str) -> None:
    (file := tmp_path / "actions.yaml").write_text(f"actions:\n  one: {action}\n")
    with pytest.raises(ConfigError, match=message) as error:
        load_actions(file)
    assert str(error.value).startswith(f"{file}:2:")


def test_the_examples_on_the_page_are_good_files(tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs" / "retraining.md").read_text(encoding="utf-8")
    found = []
    for text in page.split("```yaml\nactions:")[1:]:
        (file := tmp_path / "actions.yaml").write_text("actions:" + text.split("```")[0])
        found += [(type(action).__name__, action.retrain is not None) for action, _ in load_actions(file).values()]
    assert found == [("Kubernetes", True), ("Command", True), ("Mlflow", False)]
    (rules := tmp_path / "rules.yaml").write_text("rules:" + page.split("```yaml\nrules:")[1].split("```")[0])
    assert [rule.action for rule in load_rules([rules], ())] == ["retrain-ranker"]
