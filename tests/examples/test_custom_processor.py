"""A processor of somebody else's package: found by its entry point, run, replayed, and proven by the contract suite."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support import wait_until

EXAMPLE = Path(__file__).parents[2] / "examples" / "custom_processor"
MINUTE = 1_700_000_040.0  # a full minute


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A directory into which the example is installed, with its metadata as an installer writes them."""
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    [(group, points)] = project["entry-points"].items()
    metadata = tmp_path / "site" / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: 0.1.0\n")
    lines = [f"[{group}]", *(f"{name} = {value}" for name, value in points.items())]
    (metadata / "entry_points.txt").write_text("\n".join(lines) + "\n")
    for module in EXAMPLE.glob("*.py"):
        shutil.copy(module, tmp_path / "site")
    return tmp_path / "site"


class Installed:
    """The program where the example is installed."""

    def __init__(self, site: Path, data_dir: Path) -> None:
        self._environment = os.environ | {"PYTHONPATH": str(site)}
        self._common = ["--data-dir", str(data_dir), "--log-level", "error"]

    def start(self, *arguments: str, **pipes: Any) -> subprocess.Popen[bytes]:
        program = [sys.executable, "-c", "from streammon.cli import main; main()", *arguments, *self._common]
        return subprocess.Popen(program, env=self._environment, **pipes)

    def done(self, *arguments: str, stdin: bytes = b"", status: int = 0) -> str:
        process = self.start(*arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        output, errors = process.communicate(stdin, timeout=60)
        assert process.returncode == status, errors.decode()
        return output.decode()


@pytest.fixture
def installed(site: Path, tmp_path: Path) -> Installed:
    return Installed(site, tmp_path / "data")


def requests(tenants: Sequence[str], after_s: float = 0.0) -> bytes:
    common = {"service": "shop", "model": "ranker", "duration_s": 0.1, "status": "ok"}
    events = [{"time_unix_s": MINUTE + after_s + n, "tenant": tenant, **common} for n, tenant in enumerate(tenants)]
    return b"".join(json.dumps(event).encode() + b"\n" for event in events)


def test_it_keeps_the_contract(site: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", str(site)]
    done = subprocess.run([*command, str(site)], capture_output=True, timeout=100, check=False, env=os.environ)
    assert done.returncode == 0, done.stdout.decode()
    assert b"13 passed" in done.stdout


def test_it_runs_beside_ours_and_can_be_replayed(installed: Installed) -> None:
    created = installed.done("topics", "create")
    assert "tenant-minutes" in created
    assert "state.tenant-minutes" in created
    installed.done("emit", "inference", stdin=requests(["ann", "ann", "bob"]) + requests(["eve"], after_s=70))

    def published() -> list[Any]:
        return [*map(json.loads, installed.done("tail", "tenant-minutes", "--from", "earliest", "--exit").splitlines())]

    process = installed.start("process", "tenant-minutes")
    try:
        wait_until(lambda: len(published()) >= 2, 30, "two tenants counted")
    finally:
        process.terminate()
        assert process.wait(10) == 0
    results = sorted(published(), key=lambda each: str(each["tenant"]))
    assert [(each["tenant"], each["count"], each["start_unix_s"]) for each in results] == [
        ("ann", 2, MINUTE),
        ("bob", 1, MINUTE),
    ]
    range_ = ("--from", str(MINUTE), "--to", str(MINUTE + 60))
    replayed = installed.done("replay", "tenant-minutes", *range_)
    assert sorted(map(json.loads, replayed.splitlines()), key=lambda each: str(each["tenant"])) == results
    summary = json.loads(installed.done("replay", "tenant-minutes", *range_, "--verify", "--output", "json"))
    assert summary["identical"]
    assert summary["counts"]["identical"] == 2


def test_a_name_that_nobody_offers_is_refused_with_those_that_are(installed: Installed) -> None:
    process = installed.start("process", "tenant-hours", stderr=subprocess.PIPE)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 2
    assert b"'tenant-hours'" in errors
    assert b"rules, tenant-minutes, windows" in errors or b"tenant-minutes" in errors


def test_a_package_that_cannot_be_imported_is_named(installed: Installed, site: Path) -> None:
    (site / "tenant_minutes.py").write_text("import nothing_of_that_name\n")
    process = installed.start("process", "tenant-minutes", stderr=subprocess.PIPE)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 2
    assert b"tenant-minutes" in errors
    assert b"nothing_of_that_name" in errors
