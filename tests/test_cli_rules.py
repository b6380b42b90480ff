"""``streammon rules test`` and ``streammon rules backtest`` as a person, and a CI job, run them."""

from __future__ import annotations

import json
import re
import shlex
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from streammon.cli import admin, roles, rules  # noqa: F401 - importing registers the commands
from streammon.cli.base import app
from streammon.errors import ConfigError

ROOT = Path(__file__).parents[1]
DATA = ROOT / "tests" / "data"
LATENCY = DATA / "nab_ec2_request_latency_system_failure.csv"
PAGE = ROOT / "docs" / "backtest.md"
SLOW = """
rules:
  - {name: slow, source: inference, expr: duration_s.p99 > 0.5, for: 30s, severity: critical, summary: "{model} {value}"}
  - {name: gone, source: inference, expr: count < 0, severity: info, summary: gone, no_data: fire, no_data_for: 1m, warm_up: 0s}
  - {name: tail, source: inference, window: 1m, expr: 'quantile(0.99, "2m") > 0.8', severity: info, summary: x}
"""  # noqa: E501
TESTS = """
rules: [rules.yaml]
tests:
  - name: a slow minute pages
    series:
      - labels: {service: shop, model: ranker}
        values: {duration_s: 0.1x9 0.9x11 _x5}
    alerts:
      - {at: 100s, rule: slow, expect: []}
      - {at: 110s, rule: slow, expect: [{state: pending}]}
      - at: 130s
        rule: slow
        expect: [{state: firing, severity: critical, labels: {model: ranker}, summary: ranker 900 ms}]
      - {at: 4m, rule: tail, expect: [{state: firing}]}
      - {at: 260s, rule: gone, expect: []}
      - {at: 5m, rule: gone, expect: [{state: no_data, condition: no data for 1 min}]}
"""


@pytest.fixture(autouse=True)
def logging_of_pytest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streammon.cli.base.configure_logging", lambda level: None)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "rules.yaml").write_text(SLOW)
    (tmp_path / "tests.yaml").write_text(TESTS)
    return tmp_path / "tests.yaml"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, [*map(str, arguments)], env={"COLUMNS": "200"})


def test_good_rules_pass_their_tests(file: Path) -> None:
    done = run("rules", "test", file)
    assert done.exit_code == 0, done.output
    assert done.stdout == f"{file}: 1 test, 6 checks, all good\n"


def test_a_rule_that_does_otherwise_fails_and_says_what_was_found(file: Path) -> None:
    (file.parent / "rules.yaml").write_text(SLOW.replace("for: 30s", "for: 40s"))
    done = run("rules", "test", file)
    assert done.exit_code == 1
    assert f"{file}:11:9: a slow minute pages: slow at 130 s\n" in done.stdout
    assert "  expected: state: firing, severity: critical, summary: ranker 900 ms {model=ranker}\n" in done.stdout
    assert "  found:    state: pending, severity: critical, summary: ranker 900 ms {model=ranker, service=shop}\n" in (
        done.stdout
    )
    assert "1 of 6 checks failed" in done.stdout


@pytest.mark.parametrize("later", ["", "      - {at: 20m, rule: gone, expect: [{state: no_data}]}\n"])
def test_what_a_check_finds_does_not_depend_on_the_others(file: Path, later: str) -> None:
    head, _ = TESTS.split("    alerts:")
    file.write_text(f"{head}    alerts:\n      - {{at: 280s, rule: gone, expect: [{{state: no_data}}]}}\n{later}")
    done = run("rules", "test", file)
    assert done.exit_code == 0, done.output
    assert f"{1 + bool(later)} check{'s' if later else ''}, all good" in done.stdout


def test_rules_about_groups_have_unit_tests(file: Path) -> None:
    (file.parent / "rules.yaml").write_text(
        "rules: [{name: many, source: inference, by: [service], window: 1m, expr: count > 11, severity: info, "
        "summary: '{service}'}]"
    )
    file.write_text(
        "rules: [rules.yaml]\ntests:\n  - series:\n"
        "      - {labels: {service: shop, model: a}, values: {duration_s: 0.1x11}}\n"
        "      - {labels: {service: shop, model: b}, values: {duration_s: _x6 0.1x5}}\n"
        "    alerts:\n      - {at: 1m, rule: many, expect: []}\n"
        "      - {at: 2m, rule: many, expect: [{state: firing, labels: {service: shop}, summary: shop}]}\n"
    )
    done = run("rules", "test", file)
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize(
    ("right", "wrong", "says"),
    [
        ("0.9x11", "0.9*11", r"tests.yaml:7:30: '0.9\*11' is no value"),
        ("rule: tail", "rule: tale", "tests.yaml:14:24: there is no rule 'tale'"),
        ("at: 4m", "at: soon", "tests.yaml:14:14: 'soon' is no duration"),
        ("duration_s:", "durations:", "tests.yaml:6:7: inference windows have no number 'durations'"),
        ("state: pending", "state: waiting", r"tests.yaml:10:\d+: .*waiting"),
    ],
)
def test_a_wrong_file_is_named_with_its_place(file: Path, right: str, wrong: str, says: str) -> None:
    file.write_text(TESTS.replace(right, wrong))
    done = run("rules", "test", file)
    assert isinstance(done.exception, ConfigError)  # exit status 2
    assert re.search(says, str(done.exception)), str(done.exception)


ON_RESULTS = """
rules:
  - {name: failed, source: run, expr: 'state in ["failed", "lost"]', clear: state == "succeeded",
     severity: warning, summary: "{job}: {value}"}
  - {name: drifted, source: drift, expr: drifted && sample_size > 1000, severity: info, summary: "{target} {value}",
     no_data: fire, no_data_for: 3h}
"""
TESTS_OF_RESULTS = """
rules: [rules.yaml]
tests:
  - name: a failed run pages until one is good
    source: run
    results:
      - {at: 4h, job: train, run_id: b, state: succeeded}
      - {at: 2h, job: train, run_id: a, state: failed, started_unix_s: 1h, ended_unix_s: 2h}
      - {at: 3h, job: train, run_id: b, state: running, started_unix_s: 3h}
    alerts:
      - {at: 119m, rule: failed, expect: []}
      - at: 2h
        rule: failed
        expect: [{state: firing, labels: {job: train}, summary: "train: failed", condition: state failed}]
      - {at: 3h, rule: failed, expect: [{state: firing}]}
      - {at: 4h, rule: failed, expect: []}
  - name: drift fires, is over, and is missed
    source: drift
    interval: 1h
    results:
      - &first {at: 1h, model: m, target: age, detector: psi, statistic: 0.1, threshold: 0.2, drifted: no, sample_size: 5000}
      - {<<: *first, at: 2h, statistic: 0.3, drifted: yes}
      - {<<: *first, at: 3h}
    alerts:
      - at: 2h
        rule: drifted
        expect: [{state: firing, value: 0.3, summary: age 0.3}]
      - {at: 3h, rule: drifted, expect: []}
      - {at: 5h59m, rule: drifted, expect: []}
      - {at: 6h1m, rule: drifted, expect: [{state: no_data}]}
"""  # noqa: E501


@pytest.fixture
def results_file(tmp_path: Path) -> Path:
    (tmp_path / "rules.yaml").write_text(ON_RESULTS)
    (tmp_path / "tests.yaml").write_text(TESTS_OF_RESULTS)
    return tmp_path / "tests.yaml"


def test_results_that_no_rule_looks_at_make_no_alert(results_file: Path) -> None:
    tests = results_file.with_name("others.yaml")
    results_file.with_name("rules.yaml").write_text(
        "rules: [{name: failed, source: inference, expr: count > 1, severity: info, summary: x}]"
    )
    tests.write_text(
        TESTS_OF_RESULTS.partition("    alerts:")[0] + "    alerts: [{at: 3h, rule: failed, expect: []}]\n"
    )
    done = run("rules", "test", tests)
    assert done.stdout == f"{tests}: 1 test, 1 check, all good\n", done.output


def test_rules_on_results_have_unit_tests_too(results_file: Path) -> None:
    done = run("rules", "test", results_file)
    assert done.stdout == f"{results_file}: 2 tests, 8 checks, all good\n", done.output


@pytest.mark.parametrize(
    ("right", "wrong", "says"),
    [
        ("source: run", "source: inference", "tests.yaml:7:7: of inference windows, give `series` with `values`"),
        (
            "results:",
            "series: [{labels: {job: train}, values: {a: 1}}]\n    results:",
            ":6:13: of runs, give `results`",
        ),
        ("at: 4h, job", "job", "tests.yaml:7:9: `at` must be given: when it comes"),
        ("at: 4h, job", "at: soon, job", "tests.yaml:7:14: 'soon' is no duration"),
        ("ended_unix_s: 2h", "ended_unix_s: soon", "tests.yaml:8:90: 'soon' is no duration"),
        ("run_id: b, state: succeeded", "state: succeeded", "tests.yaml:7:9: Object missing required field `run_id`"),
        ("state: succeeded}", "state: [succeeded]}", "tests.yaml:7:48: Expected `str`, got `array`"),
        ("state: succeeded}", "stat: x, state: succeeded}", "tests.yaml:7:47: there is no field 'stat'; allowed: at, "),
    ],
)
def test_a_wrong_result_is_named_with_its_place(results_file: Path, right: str, wrong: str, says: str) -> None:
    results_file.write_text(TESTS_OF_RESULTS.replace(right, wrong, 1))
    done = run("rules", "test", results_file)
    assert isinstance(done.exception, ConfigError)
    assert says in str(done.exception)


# ---------------------------------------------------------------- backtest


def rule(tmp_path: Path, name: str, bound: float) -> Path:
    path = tmp_path / f"{name}.yaml"
    path.write_text(
        f"rules:\n  - {{name: high, source: resource, field: gauges.value.last, above: {bound}, clear: 45, "
        'keep_firing_for: 1h, severity: warning, summary: "{value}"}\n'
    )
    return path


def backtest(*arguments: object) -> Result:
    known = ("--csv", LATENCY, "--incidents", DATA / "nab_windows.json")
    return run("rules", "backtest", *known, *arguments)


def test_incidents_of_nab_are_found_and_false_alarms_counted(tmp_path: Path) -> None:
    done = backtest("--rules", rule(tmp_path, "new", 60), "--fail-on", "missed", "--output", "json")
    found: Any = json.loads(done.stdout)
    judged = found["incidents"]["new"]
    assert [each["delay_s"] is not None for each in judged["incidents"]].count(False) == judged["missed"]
    assert done.exit_code == (1 if judged["missed"] else 0)
    assert judged["alerts"] == len(found["alerts"]) > 0


def test_the_same_file_gives_the_same_bytes(tmp_path: Path) -> None:
    arguments = ("--rules", rule(tmp_path, "new", 50), "--against", rule(tmp_path, "old", 55), "--output", "json")
    assert backtest(*arguments).stdout == backtest(*arguments).stdout != ""


def test_what_is_different_fails_where_it_should(tmp_path: Path) -> None:
    old, new = rule(tmp_path, "old", 55), rule(tmp_path, "new", 50)
    differing = backtest("--rules", new, "--against", old, "--fail-on", "diff")
    assert differing.exit_code == 1
    assert re.search(r"^\d+ only with the new \(\+\), ", differing.stdout, re.MULTILINE)
    assert backtest("--rules", new, "--against", new, "--fail-on", "diff").exit_code == 0


def test_the_log_is_read_where_no_file_is_given(tmp_path: Path) -> None:
    path = rule(tmp_path, "new", 50)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STREAMMON_LOG_LEVEL", "error")
        assert run("topics", "create", "--data-dir", tmp_path / "log").exit_code == 0
        arguments = ("--rules", path, "--from", "2h", "--to", "1h", "--data-dir", tmp_path / "log")
        done = run("rules", "backtest", *arguments)
        assert done.exit_code == 0, done.output
        assert done.stdout.startswith("0 alerts from ")
        refused = run("rules", "backtest", "--rules", path, "--data-dir", tmp_path / "log")
        assert "--from says how far back in the log" in str(refused.exception)


def test_of_the_log_a_range_ends_now_unless_something_else_is_said(tmp_path: Path) -> None:
    known = ("--rules", rule(tmp_path, "new", 50), "--data-dir", tmp_path / "log")
    assert run("topics", "create", "--data-dir", tmp_path / "log").exit_code == 0
    done = run("rules", "backtest", *known, "--from", "2h")
    assert done.exit_code == 0, done.output
    begin, end = re.findall(r"[\dT:-]{19}Z", done.stdout)[:2]
    assert datetime.fromisoformat(end) - datetime.fromisoformat(begin) == pytest.approx(
        timedelta(hours=2), abs=timedelta(seconds=2)
    )
    ahead = run("rules", "backtest", *known, "--from", "2100-01-01T00:00:00Z")
    assert "--from is in the future" in str(ahead.exception)


def test_too_many_false_alarms_fail(tmp_path: Path) -> None:
    path = rule(tmp_path, "new", 50)
    assert backtest("--rules", path, "--fail-on", "false-alarms=0/week").exit_code == 1
    assert backtest("--rules", path, "--fail-on", "false-alarms=1000/week").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--fail-on", "anything"), "--fail-on is 'anything'"),
        (("--fail-on", "diff"), "needs --against"),
        (("--label", "host"), "expected NAME=VALUE"),
        (("--field", "gauges"), "have no such number"),
        (("--window", "0s"), "a window is longer"),
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path: Path, arguments: tuple[str, ...], says: str) -> None:
    done = backtest("--rules", rule(tmp_path, "new", 50), *arguments)
    assert isinstance(done.exception, ConfigError)
    assert says in str(done.exception)


def test_the_examples_of_the_page_work(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    text = PAGE.read_text(encoding="utf-8")
    for name, content in re.findall(r"^```yaml\n# (\S+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        (tmp_path / name).write_text(content)
    (tmp_path / "latency.csv").write_bytes(LATENCY.read_bytes())
    (tmp_path / "incidents.json").write_text(
        json.dumps(
            {"latency.csv": json.loads((DATA / "nab_windows.json").read_text())[LATENCY.name.removeprefix("nab_")]}
        )
    )
    commands = re.findall(r"^\$ streammon (.*?)\n(.*?)(?=^\$|^```)", text, re.MULTILINE | re.DOTALL)
    assert len(commands) >= 3
    for command, printed in commands:
        done = run(*shlex.split(command))
        assert done.stdout == printed, done.output


def test_a_rule_about_groups_is_told_of_the_sum_of_all_files(tmp_path: Path) -> None:
    for name, value in (("a", 1), ("b", 3)):
        rows = [f"2026-01-31T12:{minute:02}:00Z,{value}" for minute in range(10)]
        (tmp_path / f"{name}.csv").write_text("\n".join(["timestamp,value", *rows, ""]))
    path = tmp_path / "rules.yaml"
    path.write_text(
        "rules: [{name: mean, source: resource, by: [], window: 5m, expr: gauges.value.mean == 2.0, severity: info, "
        "summary: '{value}'}]"
    )
    files = ("--csv", tmp_path / "a.csv", "--csv", tmp_path / "b.csv")
    done = run("rules", "backtest", "--rules", path, *files)
    assert done.exit_code == 0, done.output
    assert "2026-01-31T12:05:00Z  info      mean    still firing  mean of value 2 = 2\n1 alert from" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--from", "2030-01-01T00:00:00Z"), "--from and --to leave nothing: the files are from 2014-03-07T03:40:00Z"),
        (("--fail-on", "false-alarms=nan/week"), "with a number"),
        (("--fail-on", "false-alarms=-1/week"), "with a number"),
        (
            ("--csv", "COPY"),
            "both have the series entity=service file=nab_ec2_request_latency_system_failure.csv: put it into one",
        ),
    ],
)
def test_what_would_be_misunderstood_is_refused(tmp_path: Path, arguments: tuple[str, ...], says: str) -> None:
    copy = tmp_path / LATENCY.name
    copy.write_bytes(LATENCY.read_bytes())
    done = backtest(
        "--rules", rule(tmp_path, "new", 50), *(str(copy) if each == "COPY" else each for each in arguments)
    )
    assert isinstance(done.exception, ConfigError)
    assert says in str(done.exception)


def test_it_is_said_that_a_rule_looks_at_what_no_file_has(tmp_path: Path) -> None:
    done = backtest("--rules", rule(tmp_path, "new", 50), "--field", "gauges.latency")
    assert done.exit_code == 0
    assert "rule 'high' looks at gauges.value.last of resource windows, which no file has" in done.stderr


def test_it_is_said_that_there_was_nothing_to_look_at(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("timestamp,value\n1,2\n2,3\n")
    files = ("--csv", tmp_path / "x.csv", "--source", "inference", "--field", "duration_s.p99")
    done = run("rules", "backtest", "--rules", rule(tmp_path, "new", 50), *files)
    assert "there was no window that these rules look at" in done.stderr
    assert "0 alerts from" in done.stdout


def test_the_shipped_rules_find_every_incident_of_the_files_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "default.yaml").write_text(run("rules", "default").stdout)
    files = [text for file in sorted(DATA.glob("nab_*.csv")) for text in ("--csv", file)]
    known = ("--incidents", DATA / "nab_windows.json", "--fail-on", "missed", "--fail-on", "false-alarms=1/week")
    done = run("rules", "backtest", "--rules", tmp_path / "default.yaml", *files, *known)
    assert done.exit_code == 0, done.output
    assert "6 of 6 incidents found (recall 1)" in done.stdout
    assert "rule 'disk-nearly-full' looks at gauges.utilization.last of resource windows" in done.stderr


def test_a_rule_whose_windows_cannot_be_made_is_refused_only_if_it_could_decide(tmp_path: Path) -> None:
    (tmp_path / "latency.csv").write_bytes(LATENCY.read_bytes())
    for field, code in (("other", 0), ("value", 2)):
        path = tmp_path / f"{field}.yaml"
        path.write_text(
            f"rules:\n  - {{name: high, source: resource, window: 1m, expr: gauges.{field}.last > 1000, "
            'severity: warning, summary: "{value}"}\n'
        )
        done = run("rules", "backtest", "--rules", path, "--csv", tmp_path / "latency.csv")
        assert isinstance(done.exception, ConfigError) == (code == 2), done.output
