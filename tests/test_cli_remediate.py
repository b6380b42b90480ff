"""remediate, approve and audit as a person runs them, on the embedded log."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from streammon.cli import remediate  # noqa: F401 - importing registers the commands
from streammon.topics import TopicSpec
from tests.people import opened
from tests.remedies import T0, alert
from tests.support import cli, wait_until
from tests.test_cli_people import Program, logging_of_pytest  # noqa: F401 - a fixture

ACTIONS = """
actions:
  restart:
    type: kafka
    topic: drains
    mode: approve
  look:
    type: kafka
    topic: drains
"""
RULES = """
rules:
  - {name: slow, source: inference, field: duration_s.p99, above: 1, severity: critical, summary: slow, action: ACTION}
"""


class Remedies(Program):
    """The program, and one process that does remediations, beside a log."""

    def __init__(self, directory: Path) -> None:
        super().__init__("--data-dir", directory / "data")
        self.directory, self.file = directory, directory / "actions.yaml"
        self.file.write_text(ACTIONS)

    def fires(self, id_: str, action: str) -> None:
        asyncio.run(self._fires(id_, action))

    async def _fires(self, id_: str, action: str) -> None:
        await (await opened(self.directory / "data", (alert(id_, time.time() - T0, action=action), 0))).close()

    async def _topic(self) -> None:
        broker = await opened(self.directory / "data")
        await broker.create_topics([TopicSpec("drains", 1, 1000.0)])
        await broker.close()

    @contextmanager
    def running(self, *role: str) -> Iterator[None]:
        asyncio.run(self._topic())
        command = (*(role or ("remediate", "run")), "--actions", self.file, *self._options)
        with (self.directory / "log").open("wb") as log:
            process: subprocess.Popen[bytes] = cli(*command, stderr=log)
        try:
            yield
            process.send_signal(signal.SIGTERM)
            assert process.wait(15) == 0, (self.directory / "log").read_text()
        finally:
            process.kill()
            process.wait()

    def states(self) -> dict[str, str]:
        return {each["action"]: each["state"] for each in self.json("remediate", "list", "--all")}

    def comes_to(self, action: str, state: str) -> None:
        wait_until(lambda: self.states().get(action) == state, 30, f"{action} {state}")


@pytest.fixture
def remedies(tmp_path: Path) -> Remedies:
    return Remedies(tmp_path)


@pytest.mark.timeout(120)
@pytest.mark.parametrize("role", [("remediate", "run"), ("up", "--port", "0")], ids=["remediate run", "up"])
def test_an_action_is_proposed_approved_done_and_found_in_the_audit(remedies: Remedies, role: tuple[str, ...]) -> None:
    with remedies.running(*role):
        remedies.fires("a", "restart")
        remedies.fires("b", "look")
        remedies.comes_to("restart", "awaiting_approval")
        remedies.comes_to("look", "done")
        [waiting] = remedies.json("remediate", "list")
        said = remedies.said("approve", waiting["id"][:9], "--by", "ann", "--note", "go on")
        assert said == f"approved {waiting['id'][:7]} restart: shop is slow\n"
        remedies.comes_to("restart", "done")
    assert "does not wait for approval: it is done" in remedies.refused("approve", waiting["id"])
    audit: list[dict[str, Any]] = remedies.json("audit")
    outcomes = [(each["what"], each["by"], each["outcome"]) for each in audit if "look" not in (each["note"] or "")]
    assert outcomes == [
        ("remediation", "streammon", "awaiting_approval"),
        ("approve", "ann", "applied"),
        ("remediation", "ann", "due"),
        ("remediation", "ann", "started"),
        ("remediation", "ann", "done"),
    ]
    assert [each["outcome"] for each in audit if "look" in (each["note"] or "")] == ["due", "started", "done"]
    drains = [json.loads(line) for line in remedies.said("tail", "drains", "--from", "earliest", "--exit").splitlines()]
    assert [each["action"] for each in drains] == ["restart"]  # the other one was a dry run


@pytest.mark.timeout(120)
def test_a_remediation_is_refused_and_ids_are_explained(remedies: Remedies) -> None:
    with remedies.running():
        remedies.fires("a", "restart")
        remedies.comes_to("restart", "awaiting_approval")
        [waiting] = remedies.json("remediate", "list")
        assert "no remediation 'zzz'" in remedies.refused("approve", "zzz")
        assert remedies.said("approve", waiting["id"], "--no").startswith("refused ")
        remedies.comes_to("restart", "refused")


def test_a_file_of_actions_is_checked_alone_and_with_the_rules_that_name_them(remedies: Remedies) -> None:
    assert remedies.said("remediate", "check", remedies.file) == (
        "look: kafka, mode dry_run\nrestart: kafka, mode approve\n"
    )
    train = "  train: {type: kafka, topic: t, retrain: {service: shop, model: ranker}}\n"
    remedies.file.write_text(ACTIONS + train)
    assert "train: kafka, mode dry_run, trains shop/ranker\n" in remedies.said("remediate", "check", remedies.file)
    rules = remedies.directory / "rules.yaml"
    rules.write_text(RULES.replace("ACTION", "restart"))
    assert "restart" in remedies.said("remediate", "check", remedies.file, "--rules", rules)
    rules.write_text(RULES.replace("ACTION", "reboot"))
    wrong = remedies.wrong("remediate", "check", remedies.file, "--rules", rules)
    assert "rule 'slow' names the action 'reboot'" in wrong
    remedies.file.write_text("actions:\n  a: {type: kafka}\n")
    assert f"{remedies.file}:2:" in remedies.wrong("remediate", "check", remedies.file)


def test_nothing_runs_without_a_file_of_actions(remedies: Remedies) -> None:
    assert "no actions to do" in remedies.wrong("remediate", "run")


def test_an_empty_log_has_no_remediations(remedies: Remedies) -> None:
    asyncio.run(remedies._topic())
    assert remedies.said("remediate", "list") == "nothing to be done\n"
