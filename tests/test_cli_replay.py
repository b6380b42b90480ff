"""``streammon replay`` as a person runs it: beside a processor that works, and after it."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from streammon.cli import admin, data, replay, roles, up  # noqa: F401 - importing registers the commands
from streammon.cli.base import app
from tests.support import cli, wait_until

START = 1_700_000_000.0
PROGRAM = [sys.executable, "-c", "from streammon.cli import main; main()"]
RANGE = ("--from", str(START), "--to", str(START + 10))


@pytest.fixture(autouse=True)
def logging_of_pytest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands that run inside this process leave its logging alone."""
    monkeypatch.setattr("streammon.cli.base.configure_logging", lambda level: None)


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    """A log with half a minute of events."""
    common = {"service": "shop", "model": "ranker", "duration_s": 0.1, "status": "ok"}
    events = [json.dumps({"time_unix_s": START + 0.1 * number, **common}).encode() for number in range(300)]
    program = [*PROGRAM, "emit", "inference", "--data-dir", str(tmp_path)]
    subprocess.run(program, input=b"\n".join(events), check=True, capture_output=True, timeout=30)
    return tmp_path


@pytest.fixture
def processing(data_dir: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A processor that has published the range, and goes on."""
    process = cli("process", "windows", "--data-dir", data_dir, "--log-level", "error")
    try:
        wait_until(lambda: len(published(data_dir)) >= 14, 30, "windows")
        yield process
    finally:
        process.kill()
        process.wait()


def inside(data_dir: Path, *arguments: str) -> Result:
    return CliRunner().invoke(app, [*arguments, "--data-dir", str(data_dir)], env={"COLUMNS": "200"})


def published(data_dir: Path) -> list[str]:
    return inside(data_dir, "tail", "windows", "--from", "earliest", "--exit").stdout.splitlines()


def of_range(lines: list[str]) -> list[str]:
    return [line for line in lines if START <= json.loads(line)["start_unix_s"] < START + 10]


def stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    assert process.wait(10) == 0


def summary(data_dir: Path, status: int) -> Any:
    done = inside(data_dir, "replay", *RANGE, "--verify", "--output", "json")
    assert done.exit_code == status, done.output
    return json.loads(done.stdout)


@pytest.mark.usefixtures("processing")
def test_beside_a_processor_at_work_it_prints_what_tail_prints(data_dir: Path) -> None:
    done = inside(data_dir, "replay", *RANGE)
    assert done.exit_code == 0
    assert done.stdout.splitlines() == of_range(published(data_dir))
    assert len(done.stdout.splitlines()) == 5
    assert "partition 0: from the start of the log; exact" in done.stderr
    assert "5 results of windows from 2023-11-14T22:13:20.000Z to 2023-11-14T22:13:30.000Z" in done.stderr


@pytest.mark.usefixtures("processing")
def test_beside_a_processor_at_work_it_finds_all_identical(data_dir: Path) -> None:
    found = summary(data_dir, status=0)
    assert (found["identical"], found["exact"], found["differences"]) == (True, True, [])
    assert {verdict: count for verdict, count in found["counts"].items() if count} == {"identical": 5}


def test_after_the_processor_has_stopped_it_says_the_same(data_dir: Path, processing: subprocess.Popen[bytes]) -> None:
    stop(processing)
    assert inside(data_dir, "replay", *RANGE).stdout.splitlines() == of_range(published(data_dir))
    done = inside(data_dir, "replay", "windows", *RANGE, "--verify")
    assert (done.exit_code, done.stdout) == (0, "identical: 5 identical\n")


def test_a_record_that_somebody_changed_is_shown_and_fails(data_dir: Path, processing: subprocess.Popen[bytes]) -> None:
    stop(processing)
    value = of_range(published(data_dir))[2].encode()
    with closing(sqlite3.connect(data_dir / "log.sqlite")) as db, db:
        changed = value.replace(b'"count":20', b'"count":21')
        assert db.execute("UPDATE records SET value = ? WHERE value = ?", (changed, value)).rowcount == 1
    rows = summary(data_dir, status=1)["differences"]
    assert sorted(row["verdict"] for row in rows) == ["missing", "unexpected"]
    assert {row["time_unix_s"] for row in rows} == {START + 4}
    assert {row["key"] for row in rows} == {'{"model":"ranker","service":"shop"}'}
    done = inside(data_dir, "replay", *RANGE, "--verify")
    assert done.exit_code == 1
    assert done.stdout.splitlines()[-1] == "different: 1 missing, 1 unexpected, 4 identical"


def test_the_envelope_tells_topic_partition_and_key(data_dir: Path) -> None:
    [first, *_] = inside(data_dir, "replay", *RANGE, "--envelope").stdout.splitlines()
    envelope = json.loads(first)
    assert list(envelope) == ["topic", "partition", "key", "headers", "value"]
    assert envelope["topic"] == "windows"
    assert json.loads(envelope["value"])["start_unix_s"] == START


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (("--from", "1h", "--to", "2h"), "--from"),
        (("--from", "-1h", "--to", "noon"), "noon"),
        (("--from", "2h", "--to", "1h", "nobody"), "nobody"),
    ],
)
def test_what_cannot_be_meant_is_refused_by_name(data_dir: Path, arguments: tuple[str, ...], names: str) -> None:
    done = subprocess.run(
        [*PROGRAM, "replay", *arguments, "--data-dir", str(data_dir)], check=False, capture_output=True, timeout=30
    )
    assert done.returncode == 2
    assert names in done.stderr.decode()
