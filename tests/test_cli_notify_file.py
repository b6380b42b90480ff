"""The notifier's file as a person checks it, and the page about it: its example works and its story is true."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import get_args

import pytest
from typer.testing import CliRunner, Result

from streammon.cli import notify_file  # noqa: F401 - importing registers the commands
from streammon.cli.base import app
from streammon.commands import SILENCES_BYTES
from streammon.errors import ConfigError
from streammon.notifications import Cause, Notification
from streammon.reloading import LOOK_S
from streammon_processors.notifier import decide, following, groups, load_plan
from streammon_processors.notifier import description as files
from tests.processors.test_notifier_decide import T0, Desk, alert, silence

PAGE = Path(__file__).parents[1] / "docs" / "notifier.md"
TEXT = PAGE.read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
(EXAMPLE,) = [body for kind, body in BLOCKS if kind == "yaml"]
(STORY,) = [body for _, body in BLOCKS if "chat: new, firing" in body]
(SHOWN,) = [body for _, body in BLOCKS if body.startswith("$ streammon notify routes")]


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands that run inside this process leave its logging alone."""
    monkeypatch.setattr("streammon.cli.base.configure_logging", lambda level: None)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (file := tmp_path / "notify.yaml").write_text(EXAMPLE)
    return file


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["notify", *map(str, arguments)], env={"COLUMNS": "300"})


# --- check ----------------------------------------------------------------------------------------------------------


def test_a_good_file_is_all_good_without_its_secrets(file: Path) -> None:
    done = run("check", file)
    assert (done.exit_code, done.stdout) == (0, "3 channels, 3 routes, all good\n")


def test_a_channel_that_no_route_tells_is_named(file: Path) -> None:
    file.write_text(EXAMPLE.replace("to: [page, chat]", "to: [chat]"))
    assert "told by no route, only when others fail: page\n" in run("check", file).stdout


@pytest.mark.parametrize(
    ("right", "wrong", "said"),
    [
        ("to: [chat]", "to: [chta]", r"notify.yaml:7:8: there is no channel 'chta'; there are: chat, page, boss, cons"),
        ("mute: [nights]", "mute: [days]", r":18:14: there is no time interval 'days'; there are: nights"),
        ("group_wait: 10s", "group_wait: soon", r":9:15: group_wait = 'soon': `group_wait`: 'soon' is no duration"),
        ("type: pagerduty", "type: pager", r":3:16: .*pager.*allowed: .*pagerduty"),
        ("webhook_url:", "webhok_url:", r":2:\d+: .*unknown field `webhok_url`; allowed: .*webhook_url"),
        ('severity="critical"', "severity", r"'severity' is no matcher"),
    ],
)
def test_a_bad_file_says_where_and_why(file: Path, right: str, wrong: str, said: str) -> None:
    file.write_text(EXAMPLE.replace(right, wrong, 1))
    error = run("check", file).exception
    assert isinstance(error, ConfigError)
    assert re.search(said, str(error)), error


# --- routes ---------------------------------------------------------------------------------------------------------


def test_routes_on_the_page_are_explained_as_the_command_does(file: Path) -> None:
    command, expected = SHOWN.split("\n", 1)
    labels = command.split("notify.yaml ")[1].split()
    assert run("routes", file, *labels).stdout == expected


def test_routes_for_programs_are_a_line_each(file: Path) -> None:
    file.write_text(EXAMPLE.replace("      fallback: boss\n", "      fallback: boss\n      continue: true\n"))
    done = run("routes", file, "severity=critical", "service=batch-1", "--output", "json")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(row["route"], row["channels"]) for row in rows] == [
        ('severity="critical"', ["page", "chat"]),
        ('service=~"batch-.*"', ["chat"]),
    ]
    assert rows[0]["escalate"] == [{"after_s": 900.0, "channels": ["boss"]}]


def test_an_alert_that_no_inner_route_takes_stays_at_the_top(file: Path) -> None:
    said = run("routes", file, "service=shop").stdout
    assert "route at the top\n  tells chat (slack)" in said
    assert "no severity=" in said


@pytest.mark.parametrize(("label", "said"), [("shop", "LABEL=VALUE"), ("severity=bad", "critical, warning, info")])
def test_what_is_no_label_of_an_alert_is_refused(file: Path, label: str, said: str) -> None:
    error = run("routes", file, label).exception
    assert isinstance(error, ConfigError)
    assert said in str(error)


# --- the page -------------------------------------------------------------------------------------------------------


def test_what_the_page_says_is_told_is_told(file: Path) -> None:
    desk, told = Desk(load_plan(file)), list[str]()
    transitions: dict[str, int] = {}
    happens = [line.split() for line in STORY.splitlines() if ":" not in line]
    for at, *words in [*happens, ["2000"]]:
        told += map(_line, desk.pass_time(float(at), step=1.0))
        match words:
            case ["silence", matcher]:
                desk.page(silence(matcher, starts=desk.now, ends=1e6))
            case [severity, rule, service, id_, state]:
                transitions[id_] = transitions.get(id_, 0) + 1
                labels, kinds = {"service": service}, {"rule": rule, "severity": severity}
                fired = alert(id_, state, transitions[id_], labels=labels, updated_unix_s=T0 + desk.now, **kinds)
                told += map(_line, desk.page(fired))
    assert told == [line for line in STORY.splitlines() if ":" in line]


def _line(told: Notification) -> str:
    ids = " ".join(each.id for each in told.alerts)
    return f"{told.created_unix_s - T0:5.0f}{'':33}{told.channel}: {told.cause}, {told.status}: {ids}"


def test_every_field_of_a_route_is_explained() -> None:
    for name in files.Route.__struct_encode_fields__:
        assert re.search(rf"^\|[^|]*`{name}`[^|]*\|", TEXT, re.MULTILINE), name
    assert [cause for cause in get_args(Cause) if cause != "test" and f"`{cause}`" not in TEXT] == []


@pytest.mark.parametrize(
    "sentence",
    [
        f"| 10 s | how long a new group gathers{'' if files.DEFAULT_WAIT_S == 10 else '!'}",
        f"| {files.DEFAULT_INTERVAL_S / 60:g} min | the least time between",
        f"| {files.DEFAULT_REPEAT_S / 3600:g} h | how often a group",
        f"| `[{', '.join(files.DEFAULT_GROUP_BY)}]` | alerts with the same values",
        f"more than {groups.MOST_OPENED} groups of a route begin within {groups.STORM_S:g} s",
        f"It names {decide.MOST_TOLD} alerts",
        f"more than {following.STALE_S:g} s after their change",
        f"no more of them has come for {decide.SETTLE_S:g} s",
        f"| {following.ALERTS_BYTES:,} bytes",
        f"| {following.STORIES_BYTES:,} bytes",
        f"| {groups.MAX_GROUPS:,} groups",
        f"| {SILENCES_BYTES:,} bytes",
        f"the last {decide.COPIED} |",
        f"noticed within {LOOK_S:g} s",
    ],
)
def test_numbers_on_the_page_are_those_of_the_code(sentence: str) -> None:
    assert sentence in " ".join(TEXT.split())
