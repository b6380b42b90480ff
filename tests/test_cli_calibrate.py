"""``streammon drift calibrate``, as people run it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from typer.testing import CliRunner, Result

from streammon.broker import Outgoing, connect
from streammon.cli import register_commands
from streammon.cli.base import app
from streammon.config import Settings
from streammon.errors import ConfigError
from streammon.models import load_models
from streammon.results import Completeness, Window
from streammon.topics import ROLLUP_HEADER, topic_specs
from tests.detecting import distribution

STEP_S = 300.0
DAY = 288
BEGIN_S = 1_700_006_400.0
QUICK = ("--months", "1", "--effects", "4", "--runs", "1")


@pytest.fixture(autouse=True)
def logging_of_pytest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands that run inside this process leave its logging alone."""
    monkeypatch.setattr("streammon.cli.base.configure_logging", lambda level: None)


def run(*arguments: str | Path) -> Result:
    register_commands()
    done = CliRunner().invoke(app, ["drift", "calibrate", *map(str, arguments)])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


def csv(path: Path, days: int = 3, columns: str = "timestamp,value,count") -> Path:
    random = np.random.default_rng(1)
    rows = [
        f"{BEGIN_S + at * STEP_S:.0f},{random.lognormal(-2, 0.2):.6f},{random.poisson(50) + 1}"
        for at in range(days * DAY)
    ]
    path.write_text("\n".join([columns, *rows]) + "\n")
    return path


@pytest.fixture
def budget(tmp_path: Path) -> Path:
    (path := tmp_path / "models.yaml").write_text(
        "models: [{max_false_alarms_per_month: 40, detectors: {cool_down: 12h}}]\n"
    )
    return path


def test_a_file_is_calibrated_and_what_comes_out_is_a_file_of_models(tmp_path: Path, budget: Path) -> None:
    file, written = csv(tmp_path / "latency.csv"), tmp_path / "new.yaml"
    done = run("--from", file, "--target", "duration_s", "--models", budget, "--write", written, *QUICK)
    assert done.exit_code == 0, done.output
    assert "page_hinkley" in done.stdout
    assert "false alarms in 1 months" in done.stderr
    policy = load_models(written).policy("any", "any").detectors
    assert "threshold" in policy.targets["duration_s"][0].settings or policy.targets["duration_s"][0].settings
    assert set(policy.targets) >= {"error", "confidence", "accuracy"}, "the others are still watched"
    assert policy.cool_down == "12h", "what else was said still is"
    assert done.stdout.endswith(written.read_text())


def test_programs_get_one_document(tmp_path: Path, budget: Path) -> None:
    file = csv(tmp_path / "latency.csv")
    done = run("--from", file, "--target", "duration_s", "--models", budget, "--output", "json", *QUICK)
    found = json.loads(done.stdout)
    (target,) = found["targets"]
    assert target["target"] == "duration_s"
    assert {each["detector"] for each in target["candidates"]} == {"page_hinkley", "adwin"}
    assert target["best"] in {"page_hinkley", "adwin"}
    assert found["yaml"].startswith("models:")


def test_a_budget_that_nothing_keeps_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)  # a row in one line
    (tight := tmp_path / "models.yaml").write_text("models: [{max_false_alarms_per_month: 0.0001}]\n")
    file = csv(tmp_path / "latency.csv")
    done = run("--from", file, "--target", "duration_s", "--models", tight, *QUICK)
    assert done.exit_code == 1
    assert "too few months" in done.stdout
    assert "not shown to be kept" in done.stdout, "no alarm in so few months says little"


def window(at: int, random: Any) -> bytes:
    return msgspec.json.encode(
        Window(
            source="inference", part="main", revision=0, start_unix_s=BEGIN_S + at * STEP_S, size_s=STEP_S,
            series={"service": "shop", "model": "ranker"}, end_unix_s=BEGIN_S + (at + 1) * STEP_S, of_s=60.0,
            partition=0, count=20, error_count=int(random.binomial(20, 0.1)), throughput_per_s=1.0,
            completeness=Completeness(), duration_s=distribution(random.lognormal(-2, 0.2, 20)),
        )
    )  # fmt: skip


async def fill(directory: Path) -> None:
    broker, random = await connect(Settings(data_dir=directory)), np.random.default_rng(2)
    await broker.create_topics(topic_specs(partitions=1))
    header = ((ROLLUP_HEADER, b"300s"),)
    await broker.append([Outgoing("windows", b"k", window(at, random), header, 0) for at in range(3 * DAY)])
    await broker.close()


def test_the_history_of_a_model_comes_from_the_log(tmp_path: Path, budget: Path) -> None:
    asyncio.run(fill(tmp_path / "log"))
    arguments = ("--service", "shop", "--model", "ranker", "--from-time", "2023-11-01", "--models", budget, *QUICK)
    done = run(*arguments, "--target", "duration_s", "--data-dir", tmp_path / "log")
    assert done.exit_code == 0, done.output
    assert "service: shop" in done.stdout
    with pytest.raises(
        ConfigError, match="the log has duration_s, error of shop/ranker in that time, and not accuracy"
    ):
        run(*arguments, "--target", "accuracy", "--data-dir", tmp_path / "log")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "say whose history: --service and --model"),
        (("--from", "FILE"), "say which with --target"),
        (("--from", "FILE", "--target", "latency"), "'latency', which is none that can be watched"),
        (("--from", "FILE", "--target", "duration_s", "--effects", "big"), "--effects is 'big'"),
        (("--from", "SHORT", "--target", "duration_s"), "the history has 1.0 days of values, and 3 are needed"),
        (("--from", "NONE", "--target", "duration_s"), "there is no column `timestamp`"),
        (("--from", "FILE", "--target", "duration_s", "--write", "FILE"), "it exists"),
    ],
)
def test_a_wrong_question_is_answered_with_what_to_do(tmp_path: Path, arguments: tuple[str, ...], said: str) -> None:
    files = {"FILE": csv(tmp_path / "a.csv"), "SHORT": csv(tmp_path / "b.csv", days=1)}
    files["NONE"] = csv(tmp_path / "c.csv", columns="when,value,count")
    with pytest.raises(ConfigError) as raised:
        run(*(files.get(each, each) for each in arguments), *(() if "--effects" in arguments else QUICK))
    assert said in str(raised.value)
