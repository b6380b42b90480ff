"""slo report as a person runs it, on the log, and its exit status."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from streammon.broker import Outgoing, connect
from streammon.cli import slo  # noqa: F401 - importing registers the commands
from streammon.cli.base import app
from streammon.config import Settings
from streammon.errors import ConfigError
from streammon.topics import topic_specs
from tests.slos import START, stored, window

RULES = """
slos:
  - {name: answers, objective: 0.99, where: {service: shop}}
"""


@pytest.fixture(autouse=True)
def logging_of_pytest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands that run inside this process leave its logging alone."""
    monkeypatch.setattr("streammon.cli.base.configure_logging", lambda level: None)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """An hour with 1 % of the requests failing, and two minutes with 50 %, in the log."""
    (tmp_path / "slos.yaml").write_text(RULES)
    asyncio.run(_write(tmp_path / "data"))
    return tmp_path


async def _write(data_dir: Path) -> None:
    minutes = [window(60.0 * n, 60.0, 50 if n in (7, 30) else 1, 100) for n in range(60)]
    broker = await connect(Settings(data_dir=data_dir))
    await broker.create_topics(topic_specs(partitions=8))
    await broker.append([Outgoing("windows", b"s", each.value, each.headers, 3) for each in stored(minutes)])
    await broker.close()


def report(directory: Path, *options: object) -> Result:
    command = ["slo", "report", "--from", START, "--to", START + 3600, "--data-dir", directory / "data", *options]
    return CliRunner().invoke(app, [str(each) for each in command], env={"COLUMNS": "300"})


def test_the_report_says_how_well_an_objective_was_met(directory: Path) -> None:
    done = report(directory, "--rules", directory / "slos.yaml")
    assert done.exit_code == 0, done
    title, row = done.stdout.splitlines()
    assert title.split()[:4] == ["slo", "series", "objective", "achieved"]
    assert "answers  service=shop model=ranker  99 %       97.3667 %  no" in row
    assert "-163.3 %" in row


def test_the_report_for_programs_has_exact_counts(directory: Path) -> None:
    row = json.loads(report(directory, "--rules", directory / "slos.yaml", "--output", "json").stdout)
    assert (row["good"], row["total"], row["breaches"], row["breach_minutes"]) == (5842, 6000, 2, 2)
    assert row["worst_hour"] == {"start_unix_s": START, "good": 5842, "total": 6000, "achieved": 5842 / 6000}


@pytest.mark.parametrize(("fail_under", "status"), [(0, 1), (-2, 0)])
def test_a_budget_below_the_bound_fails(directory: Path, fail_under: float, status: int) -> None:
    assert report(directory, "--rules", directory / "slos.yaml", "--fail-under", fail_under).exit_code == status


def test_no_objectives_are_a_mistake_that_is_explained(directory: Path) -> None:
    error = report(directory).exception
    assert isinstance(error, ConfigError)
    assert "`slos` with --rules or in rules.files" in str(error)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--fail-under", "nan"), "--fail-under is nan; it is a share"),
        (("--from", "1h", "--to", "2h"), "--from 1h is not before --to 2h"),
    ],
)
def test_what_says_nothing_is_refused(directory: Path, arguments: tuple[str, ...], says: str) -> None:
    done = report(directory, "--rules", directory / "slos.yaml", *arguments)
    assert isinstance(done.exception, ConfigError)
    assert says in str(done.exception)
