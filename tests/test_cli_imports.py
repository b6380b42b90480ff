"""Importing from Prometheus and Alertmanager: whole files, what is said about them, and the real `amtool`'s routes."""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from streammon.cli import imports, notify_file  # noqa: F401 - importing registers the commands
from streammon.cli.base import app
from streammon.errors import ConfigError
from streammon_processors.notifier import load_plan
from streammon_processors.rules import load_rules

ROOT = Path(__file__).parents[1]
DATA = Path("tests/data/imports")
ALERTS, ALERTMANAGER = DATA / "alerts.yml", DATA / "alertmanager.yml"


@pytest.fixture(autouse=True)
def at_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands that run inside this process leave its logging alone; the files are named as from the project."""
    monkeypatch.setattr("streammon.cli.base.configure_logging", lambda level: None)
    monkeypatch.chdir(ROOT)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, list(map(str, arguments)), env={"COLUMNS": "300"})


# --- rules ----------------------------------------------------------------------------------------------------------


def test_alerts_of_the_world_become_the_rules_that_are_expected() -> None:
    done = run("rules", "import", ALERTS, "--metric", "node_filesystem_readonly=0")
    assert done.exit_code == 0
    assert done.stdout == (DATA / "alerts.expected.yaml").read_text(encoding="utf-8")
    assert "17 alerts: 13 translated, 6 of them with differences; 4 not; 1 recording rule\n" in done.stderr


def test_every_translated_rule_is_one() -> None:
    assert len(load_rules([DATA / "alerts.expected.yaml"]).rules) == 13


def test_each_alert_that_is_not_translated_is_named_with_its_place_and_reason() -> None:
    said = run("rules", "import", ALERTS).stderr
    assert re.search("alerts.yml:63: InstanceDown: not translated: .*inventory", said), said
    assert "NodeFilesystemAlmostOutOfSpace: translated" in said, "which file systems are read-only is measured"


def test_strict_fails_for_what_was_lost_and_for_what_differs(tmp_path: Path) -> None:
    assert run("rules", "import", ALERTS, "--strict").exit_code == 1
    (same := tmp_path / "same.yml").write_text(
        "groups: [{name: a, rules: [{alert: Load, expr: node_load1 > 4, labels: {severity: info}}]}]"
    )
    assert run("rules", "import", same, "--strict").exit_code == 0
    (differs := tmp_path / "differs.yml").write_text(same.read_text().replace("info", "page"))
    assert run("rules", "import", differs, "--strict").exit_code == 1


def test_a_mapping_file_says_what_metrics_and_labels_are(tmp_path: Path) -> None:
    (mapping := tmp_path / "mapping.yaml").write_text(
        """metrics: {DCGM_FI_DEV_GPU_TEMP: 'gauges.temperature{entity="gpu"}'}\nlabels: {job: ""}\n"""
    )
    done = run("rules", "import", ALERTS, "--mapping", mapping)
    assert "GpuHot: translated\n" in done.stderr
    assert "job=" not in done.stderr
    with pytest.raises(ConfigError, match="metric up: 'up' is not a field"):
        raise run("rules", "import", ALERTS, "--metric", "up=up").exception or AssertionError


def test_rules_of_the_prometheus_operator_are_read_too(tmp_path: Path) -> None:
    (file := tmp_path / "crd.yaml").write_text(
        "kind: PrometheusRule\nspec: {groups: [{name: a, rules: [{alert: Load, expr: node_load1 > 4}]}]}\n---\n"
    )
    assert "crd.yaml:2: Load: translated" in run("rules", "import", file).stderr


@pytest.mark.parametrize(
    "text", ["a: 1", "[", "groups: 5\n---\n{{ x }}", "&a [*a]", "groups: [1, {rules: [[], {alert: x}]}]"]
)
def test_a_strange_file_is_refused_or_gives_nothing(tmp_path: Path, text: str) -> None:
    (file := tmp_path / "strange.yml").write_text(text)
    done = run("rules", "import", file)
    assert isinstance(done.exception, ConfigError) or "0 translated" in done.stderr


def test_texts_of_a_group_name_the_labels_that_it_keeps(tmp_path: Path) -> None:
    (file := tmp_path / "sum.yml").write_text(
        "groups: [{rules: [{alert: Load, expr: 'sum by (service) (rate(http_requests_total[5m])) > 9', "
        "annotations: {summary: '{{ $labels.service }} at {{ $labels.endpoint }}'}}]}]"
    )
    done = run("rules", "import", file)
    assert "summary: '{service} at …'" in done.stdout
    assert "# the summary lacks {{ $labels.endpoint }}" in done.stdout
    (written := tmp_path / "rules.yaml").write_text(done.stdout)
    assert [each.by for each in load_rules([written])] == [("service",)]


def test_a_file_that_is_there_is_not_overwritten(tmp_path: Path) -> None:
    (there := tmp_path / "rules.yaml").write_text("worked on")
    assert isinstance(run("rules", "import", ALERTS, "--output", there).exception, ConfigError)
    assert there.read_text() == "worked on"


# --- notifier -------------------------------------------------------------------------------------------------------


def test_a_configuration_becomes_the_notifiers_file_that_is_expected(tmp_path: Path) -> None:
    done = run("notify", "import", ALERTMANAGER, "--output", tmp_path / "notify.yaml")
    assert done.exit_code == 0
    assert (tmp_path / "notify.yaml").read_text() == (DATA / "notify.expected.yaml").read_text(encoding="utf-8")
    assert "all good" in run("notify", "check", tmp_path / "notify.yaml").stdout
    assert run("notify", "import", ALERTMANAGER, "--strict").exit_code == 1


def test_routes_to_the_same_receiver_are_written_out_and_not_by_reference(tmp_path: Path) -> None:
    file = tmp_path / "alertmanager.yml"
    routes = "[{receiver: a, matchers: [x=1]}, {receiver: a, matchers: [x=2]}]"
    file.write_text(
        f"route: {{receiver: a, routes: {routes}}}\nreceivers: [{{name: a, webhook_configs: [{{url: 'http://b/'}}]}}]\n"
    )
    done = run("notify", "import", file)
    assert done.stdout.count("- a\n") == 3
    assert not re.search(r"[&*]id\d", done.stdout)


def test_no_secret_is_copied_or_said(tmp_path: Path) -> None:
    done = run("notify", "import", ALERTMANAGER)
    assert "set NOTIFY_PAGE_ROUTING_KEY" in done.stderr
    assert "SECRET" not in done.stdout + done.stderr
    (broken := tmp_path / "broken.yml").write_text("global: {slack_api_url: SECRET-slack\nroute: [")
    assert "SECRET" not in str(run("notify", "import", broken).exception)


@pytest.mark.parametrize(
    ("part", "said"),
    [
        ("matchers: ['a=~\"(?=b)\"']", "without this route its alerts go on to the next"),
        ("receiver: nobody", "there is no receiver 'nobody'"),
        ("mute_time_intervals: [never]", "'never' could not be used"),
        ("surprise: 1", "`surprise` is not known"),
    ],
)
def test_what_cannot_be_translated_is_told(tmp_path: Path, part: str, said: str) -> None:
    routes = f"route:\n  receiver: a\n  routes:\n    - {part}\n"
    (file := tmp_path / "am.yml").write_text(f"{routes}receivers: [{{name: a}}]\n")
    done = run("notify", "import", file)
    assert done.exit_code == 0, done.exception
    assert said in done.stderr


def test_a_receiver_that_has_no_equal_tells_the_console_and_not_nobody(tmp_path: Path) -> None:
    (file := tmp_path / "am.yml").write_text(
        "route: {receiver: a}\nreceivers: [{name: a, telegram_configs: [{chat_id: 1, bot_token: x}]}]\n"
    )
    done = run("notify", "import", file, "--output", tmp_path / "n.yaml")
    assert "the console is told instead" in done.stderr
    assert load_plan(tmp_path / "n.yaml").root.to == ("console",)


# --- beside the real one --------------------------------------------------------------------------------------------

VALUES = {
    "alertname": ["Watchdog", "slow", ""],
    "severity": ["critical", "warning", "info"],
    "service": ["shop", "search", "shops", ""],
    "host": ["gpu-1", "web-1", ""],
    "team": ["ml", "a b", ""],
}


def random_routes(chance: random.Random, depth: int) -> str:
    pad, routes = "  " * (4 - depth), ""
    for _ in range(chance.randint(1, 3)):
        label = chance.choice(list(VALUES))
        sign = chance.choice(["=", "!=", "=~", "!~"])
        value = chance.choice(VALUES[label])
        value = chance.choice([value, f"{value[:2]}.*", f"{value}|web-1"]) if "~" in sign else value
        routes += f"{pad}- receiver: r{chance.randint(0, 4)}\n{pad}  matchers: ['{label}{sign}\"{value}\"']\n"
        routes += f"{pad}  continue: true\n" if chance.random() < 0.4 else ""
        if depth and chance.random() < 0.6:
            routes += f"{pad}  routes:\n{random_routes(chance, depth - 1)}"
    return routes


@pytest.mark.skipif(
    shutil.which("amtool") is None and not os.environ.get("STREAMMON_REQUIRE_SERVERS"),
    reason="amtool is not installed: apt-get install prometheus-alertmanager",
)
@pytest.mark.parametrize("seed", range(4))
def test_the_same_receivers_get_the_same_alerts_as_by_the_real_alertmanager(tmp_path: Path, seed: int) -> None:
    chance = random.Random(seed)
    receivers = "".join(f'- name: r{n}\n  webhook_configs: [{{url: "http://r{n}/"}}]\n' for n in range(5))
    (theirs := tmp_path / "am.yml").write_text(
        f"route:\n  receiver: r0\n  routes:\n{random_routes(chance, 2)}receivers:\n{receivers}"
    )
    ours = tmp_path / "notify.yaml"
    assert run("notify", "import", theirs, "--output", ours).exit_code == 0
    plan = load_plan(ours)
    for _ in range(25):
        labels = {name: value for name, options in VALUES.items() if (value := chance.choice(options))}
        arguments = [f"{name}={value}" for name, value in labels.items()]
        told = subprocess.run(
            ["amtool", "config", "routes", "test", f"--config.file={theirs}", *arguments],  # on the PATH
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        renamed = {("rule" if name == "alertname" else name): value for name, value in labels.items()}
        found = [leaf.to[0] for leaf in plan.routes_of(renamed)]
        assert found == told.strip().split(","), (arguments, theirs.read_text())


def test_what_looks_like_another_type_is_the_text_that_is_written(tmp_path: Path) -> None:
    (file := tmp_path / "am.yml").write_text(
        "route:\n  receiver: off\n  routes:\n"
        "    - {match: {shard: 01, version: 1.10, canary: yes}, continue: yes, mute_time_intervals: [no]}\n"
        "receivers: [{name: off, webhook_configs: [{url_file: /u, send_resolved: no}]}]\n"
        "time_intervals: [{name: no, time_intervals: [{times: [{start_time: 17:00, end_time: 18:30}]}]}]\n"
    )
    done = run("notify", "import", file)
    assert done.exit_code == 0, done.output
    assert "send_resolved: false left out" in done.stderr
    (written := tmp_path / "notify.yaml").write_text(done.stdout)
    plan = load_plan(written)
    [route] = plan.root.routes
    assert [str(each) for each in route.matchers] == ['shard="01"', 'version="1.10"', 'canary="yes"']
    assert (route.goes_on, route.mute, route.to) == (True, ("no",), ("off",))
    assert plan.is_muted(route, 1_700_000_000 // 86_400 * 86_400 + 17.5 * 3600)
