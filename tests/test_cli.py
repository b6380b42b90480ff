"""The program as a person runs it: what it prints, where, and with which status it ends."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from structlog.testing import capture_logs
from typer.testing import CliRunner, Result

from streammon import __version__
from streammon.broker import Outgoing, connect
from streammon.cli import admin, main, query, register_commands
from streammon.cli import up as up_cli
from streammon.cli.base import WATCH_S, app, retrying
from streammon.config import Settings
from streammon.errors import ConfigError, Retryable
from streammon.events import EventType
from streammon.results import RESULTS
from streammon.telemetry import WATERMARK_LAG
from streammon.tick import TICK
from streammon.topics import TopicSpec, topic_specs
from streammon.wire import Density, encode
from streammon_processors.rules import DEFAULT_RULES
from tests.sinks.builders import drift, quality, quality_of_slice, resource_window, rollup, window
from tests.support import wait_until

register_commands()
PROGRAM = [sys.executable, "-c", "from streammon.cli import main; main()"]
EVENT = {"time_unix_s": 1.7e9, "service": "shop", "model": "ranker", "duration_s": 0.5, "status": "ok"}


def program(*arguments: object, stdin: bytes | None = b"", **environment: str) -> subprocess.CompletedProcess[bytes]:
    """The program, run to its end. Who runs the tests has no say in how wide it writes."""
    command = [*PROGRAM, *map(str, arguments)]
    inherited = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    return subprocess.run(
        command, input=stdin, capture_output=True, timeout=30, check=False, env=inherited | environment
    )


@pytest.fixture(autouse=True)
def logging_of_pytest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands that run inside this process leave its logging alone."""
    monkeypatch.setattr("streammon.cli.base.configure_logging", lambda level: None)


def inside(*arguments: object, **environment: str) -> Result:
    """The same inside this process, which saves a second."""
    return CliRunner().invoke(app, [*map(str, arguments)], env={"COLUMNS": "200"} | environment)


@contextmanager
def running(*arguments: object, program: Sequence[str] = PROGRAM, **pipes: Any) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([*program, *map(str, arguments)], **pipes)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def lines(*events: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(event).encode() + b"\n" for event in events)


def tailed(directory: Path, topic: str, *options: str) -> list[Any]:
    """What ``tail`` prints of a topic from its beginning."""
    done = inside("tail", topic, "--from", "earliest", "--exit", "--data-dir", directory, *options)
    assert (done.exit_code, done.stderr) == (0, "")
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture
def empty(tmp_path: Path) -> Path:
    return tmp_path / "data"


def silent() -> socket.socket:
    """A port where somebody listens and says nothing."""
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    return listener


# --- help and mistakes ----------------------------------------------------------------------------------------------

COMMANDS = {
    "up": ["--demo", "--port", "--rules", "--models", "--notify", "--actions"], "agent": ["--check", "--output"],
    "process": ["--rules", "--models"], "notify": ["--notify"], "notify test": ["--notify"], "doctor": ["--output"],
    "rules run": ["--rules"], "rules check": [], "rules default": [], "sink": ["sqlite", "elasticsearch"],
    "inventory run": ["--expect"], "inventory check": [], "inventory list": ["--output"],
    "topics create": [], "topics check": ["--output"], "setup elasticsearch": [], "servers start": ["--directory"],
    "emit": ["--batch", "--density", "--url", "inference", "FIELD=VALUE"],
    "tail": ["--from", "--exit", "--envelope", "--ticks"],
    "query": ["--since", "--until", "--where", "--limit", "--output"], "schema": ["--asyncapi"],
    "replay": ["--from", "--to", "--verify", "--envelope", "--rules", "--output"],
    "ack": ["--note", "--by", "--output"], "silence": ["--for", "--note", "--by", "--output"],
    "unsilence": ["--note", "--by", "--output"], "alerts": ["--all", "--output"], "silences": ["--all", "--output"],
    "audit list": ["--alert", "--by", "--from", "--to", "--output"],
    "approve": ["--no", "--note", "--by", "--output"], "remediate run": [], "remediate check": [],
    "remediate list": ["--output"],
    "slo report": ["--from", "--to", "--rules", "--fail-under", "--output"],
    "drift calibrate": ["--service", "--model", "--from", "--target", "--effects", "--months", "--write", "--output"],
    "diagnose": [], "why": ["--output"],
    "drift reference": ["--from", "--from-time", "--column", "--dry-run", "--models"], "drift show": ["--output"],
    "drift references": ["--output"],
    "rules report": ["--from", "--to", "--flap", "--output"],
}  # fmt: skip
COMMON = ["--config", "--bootstrap", "--data-dir", "--metrics-port", "--log-level"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    result = inside(*command.split(), "--help")
    assert result.exit_code == 0
    assert [option for option in COMMANDS[command] + COMMON if option not in result.output] == []


def test_no_command_is_left_out_here() -> None:
    names = {command.name or (command.callback and command.callback.__name__) for command in app.registered_commands}
    names |= {group.name for group in app.registered_groups}
    assert names == {command.split()[0] for command in COMMANDS}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("emit nonsense", "nonsense"),
        ("emit inference --batch 0", "--batch"),
        ("tail", "topic"),
        ("tail windows --nonsense", "--nonsense"),
        ("up --port 65536", "--port"),
        ("sink paper", "paper"),
        ("nonsense", "nonsense"),
        ("query windows --limit 0", "--limit"),
        ("query windows --source nonsense", "--source"),
    ],
)
def test_a_wrong_argument_is_named_and_the_status_is_2(arguments: str, expected: str) -> None:
    result = inside(*arguments.split())
    assert (result.exit_code, expected in result.output) == (2, True), result.output


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("topics create --config none.yaml", "none.yaml"),
        ("topics create --metrics-port 65536", "metrics_port = 65536"),
        ("topics create --log-level loud", "log_level = 'loud'"),
        ("tail windows --from yesterday", "--from is 'yesterday'"),
        ("tail windows --from nan", "--from is 'nan'"),
        ("query windows --where model", "--where is 'model'"),
        ("query windows", "no results at"),
        ("schema paper", "TYPE is 'paper'"),
        ("rules check none.yaml", "none.yaml"),
        ("rules run", "--rules"),
        ("rules run --rules none.yaml", "none.yaml"),
        ("up --rules none.yaml", "none.yaml"),
    ],
)
def test_a_wrong_value_is_named(arguments: str, expected: str, empty: Path) -> None:
    result = inside(*arguments.split(), "--data-dir", empty)
    assert isinstance(result.exception, ConfigError), result
    assert expected in str(result.exception)


def test_mistakes_are_told_in_one_line_on_stderr_without_a_traceback(empty: Path) -> None:
    usage = program("emit", "nonsense")
    assert (usage.returncode, usage.stdout, b"Traceback" in usage.stderr) == (2, b"", False)
    assert b"nonsense" in usage.stderr
    value = program("process", "--data-dir", empty, STREAMMON_WINDOWS__SIZE_S="soon")
    assert (value.returncode, value.stdout, b"Traceback" in value.stderr) == (2, b"", False)
    assert b"windows.size_s = 'soon'" in value.stderr


def test_a_rule_file_that_is_no_yaml_is_told_where(tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text("rules:\n  - name: [\n")
    done = program("rules", "check", tmp_path / "rules.yaml")
    assert (done.returncode, b"Traceback" in done.stderr) == (2, False)
    assert b"rules.yaml" in done.stderr
    assert b"rules.yaml:3:1: " in done.stderr


def test_rules_to_begin_with_are_printed_and_can_be_used(tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_bytes(program("rules", "default").stdout)
    done = program("rules", "check", tmp_path / "rules.yaml")
    number = DEFAULT_RULES.read_text(encoding="utf-8").count("\n  - name: ")
    assert (done.returncode, done.stdout.decode()) == (0, f"{number} rules, all good\n")


def test_a_rule_on_windows_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    rule = {
        "name": "many", "source": "inference", "field": "count", "severity": "info", "summary": "many", "above": 1,
        "resolution_steps": ["look"], "contact": "#oncall", "escalation": ["lead"], "runbook_url": "https://x.example",
    }  # fmt: skip
    (tmp_path / "rules.yaml").write_text(json.dumps({"rules": [rule | {"window": "3s"}]}))
    done = program("rules", "check", tmp_path / "rules.yaml")
    assert done.returncode == 2
    assert b"windows of 3s cannot be made of the base windows" in done.stderr
    (tmp_path / "rules.yaml").write_text(json.dumps({"rules": [rule | {"window": "4s"}]}))
    assert program("rules", "check", tmp_path / "rules.yaml").returncode == 0
    (tmp_path / "rules.yaml").write_text(json.dumps({"rules": [rule | {"window": "2s", "by": ["service"]}]}))
    done = program("rules", "check", tmp_path / "rules.yaml")
    assert (done.returncode, b"which are the base windows, windows.size_s = 2" in done.stderr) == (2, True)
    (tmp_path / "rules.yaml").write_text(json.dumps({"rules": [rule | {"by": ["service"]}]}))
    done = program("rules", "check", tmp_path / "rules.yaml")
    assert (done.returncode, b"`by` needs a `window` of one length, such as 1m" in done.stderr) == (2, True)
    (tmp_path / "rules.yaml").write_text(json.dumps({"rules": [rule | {"contact": None, "resolution_steps": []}]}))
    done = program("rules", "check", tmp_path / "rules.yaml")
    assert (done.returncode, b"rules.yaml:1:12: rule 'many' lacks resolution_steps, contact" in done.stderr) == (
        2,
        True,
    )
    blank = {"contact": " ", "resolution_steps": [""], "summary": ""}
    (tmp_path / "rules.yaml").write_text(json.dumps({"rules": [rule | blank]}))
    done = program("rules", "check", tmp_path / "rules.yaml")
    assert (done.returncode, b"rule 'many' lacks summary, resolution_steps, contact" in done.stderr) == (2, True)


# --- emit and tail --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("density", Density)
def test_what_is_emitted_in_any_density_can_be_read_back(density: Density, empty: Path) -> None:
    sent = [EVENT | {"duration_s": number / 4, "host": "h\u00e9"} for number in range(5)]
    done = program("emit", "inference", "--density", density, "--batch", 2, "--data-dir", empty, stdin=lines(*sent))
    assert (done.returncode, done.stdout) == (0, b"")
    assert done.stderr == b"5 events sent to inference\n"
    found = tailed(empty, "inference")
    assert len(found) == (5 if density is Density.OBJECT else 3)
    if density is Density.OBJECT:
        assert found == [{"schema": 1, "type": "inference"} | event for event in sent]
    elif density is not Density.ARRAY:
        assert [(batch["count"], batch["seq"]) for batch in found] == [(2, 0), (2, 1), (1, 2)]


def test_results_of_ones_own_are_sent_under_the_key_of_their_series(empty: Path) -> None:
    drift = {
        "service": "shop", "model": "ranker", "target": "age", "detector": "psi", "statistic": 0.31, "threshold": 0.2,
        "drifted": True, "sample_size": 5000, "start_unix_s": 1700000000.0, "end_unix_s": 1700003600.0,
    }  # fmt: skip
    done = program("emit", "drift", "--data-dir", empty, stdin=lines(drift, {"type": "drift", "model": "ranker"}))
    assert (done.returncode, done.stderr.decode().splitlines()[-1]) == (1, "1 result sent to drift, 1 line refused")
    [found] = tailed(empty, "drift", "--envelope")
    assert (found["key"], json.loads(found["value"])) == ("shop/ranker", {"schema": 1, "type": "drift"} | drift)
    [letter] = tailed(empty, "deadletter")
    assert (letter["reason"], letter["topic"]) == ("invalid_event", "drift")
    run = {"type": "run", "job": "train", "run_id": "a", "state": "failed", "ended_unix_s": 1700001200.0}
    assert program("emit", "run", "--data-dir", empty, stdin=lines(run)).stderr == b"1 result sent to runs\n"
    assert [each["key"] for each in tailed(empty, "runs", "--envelope")] == ["train"]


def test_a_change_is_sent_from_ci_in_one_line_with_the_commit_and_who_made_it(empty: Path) -> None:
    fields = ("service=shop", "kind=deploy", "model=ranker", "model_version=4")
    ci = {"GITHUB_SHA": "", "CI_COMMIT_SHA": "c0ffee", "GITLAB_USER_LOGIN": "ann", "GITHUB_ACTOR": ""}
    done = program("emit", "change", *fields, "--data-dir", empty, stdin=b"", **ci)
    assert (done.returncode, done.stderr) == (0, b"1 event sent to changes\n")
    program("emit", "change", *fields, "ref=mine", "time_unix_s=1700000000", "--data-dir", empty, stdin=b"", **ci)
    first, second = tailed(empty, "changes")
    assert first.pop("time_unix_s") == pytest.approx(time.time(), abs=60)
    expected = {"schema": 1, "type": "change", **dict(field.split("=") for field in fields), "actor": "ann"}
    assert first == expected | {"ref": "c0ffee"}
    assert second == expected | {"ref": "mine", "time_unix_s": 1700000000}


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        (["service=shop", "knd=deploy"], b"there is no field 'knd'; allowed: service, kind"),
        (["service=shop", "kind=deply"], b"'kind=deply': Invalid enum value 'deply'"),
        (["service=shop"], b"required field `kind`"),
        (["service"], b"'service' is no FIELD=VALUE"),
        (["service=shop", "kind=deploy", "time_unix_s=noon"], b"time_unix_s=noon"),
    ],
)
def test_a_field_that_cannot_be_is_named(fields: list[str], named: bytes, empty: Path) -> None:
    done = program("emit", "change", *fields, "--data-dir", empty)
    assert done.returncode == 2
    assert named in done.stderr


def test_a_line_that_no_record_can_hold_is_cut_off_in_its_dead_letter_and_the_others_are_sent(empty: Path) -> None:
    huge = b'{"service":"' + b"x" * 3_000_000 + b'"}'
    good = lines(EVENT)
    done = program("emit", "inference", "--data-dir", empty, stdin=good + huge + b"\n" + good)
    assert done.returncode == 1
    assert done.stderr.decode().splitlines()[-1] == "2 events sent to inference, 1 line refused"
    assert len(tailed(empty, "inference")) == 2
    [letter] = tailed(empty, "deadletter")
    assert letter["reason"] == "too_large"
    assert re.match(r"the first \d+ of 3000014 bytes: line 2: ", letter["error"])


def test_broken_lines_go_to_the_dead_letter_and_the_others_are_sent(empty: Path) -> None:
    good = lines(EVENT)
    bad = [b'{"time_unix_s":', lines({"service": "shop"}).strip(), b"\xff\xfe", b'{"a":"\\ud800"}', b"[1]"]
    done = program("emit", "inference", "--data-dir", empty, stdin=good + b"\n".join(bad) + b"\n\n" + good.strip())
    assert (done.returncode, done.stdout) == (1, b"")
    told = done.stderr.decode().splitlines()
    assert [line.split()[2] for line in told[:-1]] == ["2", "3", "4", "5", "6"]
    assert told[-1] == "2 events sent to inference, 5 lines refused"
    assert len(tailed(empty, "inference")) == 2
    letters = tailed(empty, "deadletter")
    assert [letter["reason"] for letter in letters] == [
        "invalid_json", "invalid_event", "invalid_unicode", "invalid_unicode", "invalid_event",
    ]  # fmt: skip
    assert [letter.get("value") for letter in letters] == [
        line.decode() if line[:1] != b"\xff" else None for line in bad
    ]
    assert {letter["topic"] for letter in letters} == {"inference"}
    assert letters[1]["error"].startswith("line 3: ")


def test_a_whole_batch_on_a_line_is_passed_on(empty: Path) -> None:
    [batch] = encode(EventType.INFERENCE, [EVENT, EVENT | {"duration_s": float("nan")}], Density.PACKED)
    done = program("emit", "inference", "--data-dir", empty, stdin=batch)
    assert (done.returncode, done.stderr) == (0, b"2 events sent to inference\n")
    assert tailed(empty, "inference") == [json.loads(batch)]


def test_a_slow_pipe_is_live_although_batches_are_large(empty: Path) -> None:
    """Lines come faster than the flush, so that the pipe is never silent for long."""
    arguments = ("emit", "inference", "--density", "packed", "--batch", 10_000, "--data-dir", empty)
    tailing = ("tail", "inference", "--from", "earliest", "--data-dir", prepared(empty))
    with running(*arguments, stdin=subprocess.PIPE) as emit, running(*tailing, stdout=subprocess.PIPE) as tail:
        assert emit.stdin is not None
        assert tail.stdout is not None
        os.set_blocking(tail.stdout.fileno(), False)
        found = b""
        deadline = time.monotonic() + 15
        while not found.count(b"\n") >= 2:
            assert time.monotonic() < deadline, "nothing came through an open pipe"
            emit.stdin.write(lines(EVENT))
            emit.stdin.flush()
            time.sleep(0.05)  # the slowness is the experiment
            found += tail.stdout.read() or b""
        assert json.loads(found.splitlines()[0])["count"] < 100


def prepared(directory: Path) -> Path:
    """The directory, with the topics in it."""
    assert inside("topics", "create", "--data-dir", directory).exit_code == 0
    return directory


def test_tail_shows_key_place_and_headers_on_request(empty: Path) -> None:
    program("emit", "inference", "--data-dir", empty, stdin=lines(EVENT))
    [record] = tailed(empty, "inference", "--envelope")
    assert (record["topic"], record["key"], record["offset"]) == ("inference", "shop/ranker", 0)
    assert record["headers"] == {"streammon-schema": "1"}
    assert record["time_unix_s"] == pytest.approx(time.time(), abs=60)
    assert json.loads(record["value"])["service"] == "shop"


def test_tail_starts_at_a_time_and_leaves_ticks_out(empty: Path) -> None:
    asyncio.run(appended(empty, b"1", TICK))
    arguments = ("tail", "inference", "--exit", "--data-dir", empty, "--from")
    assert inside(*arguments, time.time() - 3600).stdout == "1\n"
    assert inside(*arguments, time.time() + 3600).stdout == ""
    assert inside(*arguments, "1h", "--ticks").stdout == f"1\n{TICK.decode()}\n"


async def appended(directory: Path, *values: bytes) -> None:
    broker = await connect(Settings(data_dir=directory))
    await broker.create_topics(topic_specs(partitions=1))
    await broker.append([Outgoing("inference", None, value) for value in values])
    await broker.close()


def test_a_topic_that_does_not_exist_is_named(empty: Path) -> None:
    done = program("tail", "nonsense", "--exit", "--data-dir", prepared(empty))
    assert (done.returncode, b"'nonsense'" in done.stderr, b"Traceback" in done.stderr) == (2, True, False)


def test_a_reader_that_has_had_enough_is_no_error(empty: Path) -> None:
    asyncio.run(appended(empty, *[b"1" * 1000] * 1000))
    arguments = ("tail", "inference", "--from", "earliest", "--data-dir", empty)
    with running(*arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as tail:
        assert tail.stdout is not None
        assert tail.stderr is not None
        assert tail.stdout.readline() == b"1" * 1000 + b"\n"
        tail.stdout.close()
        assert (tail.wait(10), tail.stderr.read()) == (0, b"")
        tail.stdout = None


# --- signals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "number", "status"),
    [
        ("process", signal.SIGTERM, 0),
        ("process", signal.SIGINT, 130),
        ("tail inference", signal.SIGINT, 130),
        ("tail inference", signal.SIGTERM, 0),
        ("emit inference", signal.SIGINT, 130),
    ],
)
def test_a_signal_ends_a_long_command(command: str, number: int, status: int, empty: Path, free_port: int) -> None:
    prepared(empty)
    options = ["--data-dir", empty, "--log-level", "debug"]
    if command == "process":
        options += ["--metrics-port", free_port]
    with running(*command.split(), *options, stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        wait_until(lambda: answers(free_port) if command == "process" else has_opened(process, empty), 20, "the start")
        process.send_signal(number)
        assert process.wait(10) == status
        assert process.stderr is not None
        assert b"Traceback" not in process.stderr.read()
        process.stderr = None


STUBBORN = """
import asyncio, time
from streammon.cli.base import app, command
from streammon.telemetry import health_server

@command(app)
async def stubborn(settings, stop, block_s: float):
    async with health_server(settings.metrics_port, lambda: None):
        await asyncio.sleep(0)
        time.sleep(block_s)
        await asyncio.Event().wait()

app()
"""
"""A command that blocks its event loop, and then never ends by itself."""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_at_once_what_does_not_end(number: int) -> None:
    arguments = ("stubborn", 0, "--metrics-port", 0)
    with running(*arguments, program=[sys.executable, "-c", STUBBORN], stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        assert b"health and metrics" in process.stderr.readline()
        process.send_signal(number)
        assert b"stopping" in process.stderr.readline()
        assert process.poll() is None
        process.send_signal(number)
        assert process.wait(5) == 128 + number


def test_a_block_of_the_event_loop_shows_in_the_metrics_long_after_it(free_port: int) -> None:
    name = "streammon_event_loop_delay_seconds"
    arguments = ("stubborn", 1.5, "--metrics-port", free_port)
    with running(*arguments, program=[sys.executable, "-c", STUBBORN]):
        wait_until(lambda: answers(free_port), 20, "the start")
        wait_until(lambda: scraped(free_port)[f"{name}_count"] > 10, 20, "a second after the block")
        found = scraped(free_port)
    assert found[f"{name}_count"] - found[f"{name}_bucket", "1.0"] >= 1
    assert found[f"{name}_sum"] > 1.5 - WATCH_S


def scraped(port: int) -> dict[str | tuple[str, str], float]:
    """Values by name; those of a histogram's buckets by name and upper bound."""
    text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10).read().decode()
    samples = (sample for family in text_string_to_metric_families(text) for sample in family.samples)
    return {(each.name, each.labels["le"]) if "le" in each.labels else each.name: each.value for each in samples}


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def has_opened(process: subprocess.Popen[bytes], directory: Path) -> bool:
    """Whether the process has a file of the directory open, which is when it has long begun to work."""
    with contextlib.suppress(FileNotFoundError):  # files come and go
        opened = Path(f"/proc/{process.pid}/fd")
        return any(str(directory) in str(descriptor.readlink()) for descriptor in opened.iterdir())
    return False


# --- rules ----------------------------------------------------------------------------------------------------------

RULE = {"source": "inference", "field": "count", "above": 1, "severity": "info", "summary": "much"}
MADE_ANYWAY = {"base": None, "even": 2, "minute": "1m", "hour": "1h"}
MADE_FOR_RULES = {
    "odd": "90s",
    "hopping": {"size": "10m", "every": "1m"},
    "session": {"session_gap": "30s"},
}


def started(rules: Path, directory: Path) -> list[dict[str, Any]]:
    """What `rules run` says until it serves its metrics."""
    arguments = ("rules", "run", "--rules", rules, "--data-dir", directory, "--metrics-port", 0)
    with running(*arguments, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        said: list[dict[str, Any]] = []
        while not said or said[-1]["event"] != "health and metrics":
            said.append(json.loads(process.stderr.readline()))
        return said[:-1]


def test_rules_whose_windows_only_they_ask_for_are_named_at_the_start_with_what_to_do(
    tmp_path: Path, empty: Path
) -> None:
    rules = {name: RULE | {"name": name, "window": window} for name, window in (MADE_ANYWAY | MADE_FOR_RULES).items()}
    (file := tmp_path / "rules.yaml").write_text(json.dumps({"rules": list(rules.values())}))
    [warning] = started(file, empty)
    assert (warning["level"], warning["rules"]) == ("warning", list(MADE_FOR_RULES))
    assert "streammon process --rules FILE" in warning["fix"]
    file.write_text(json.dumps({"rules": [rules[name] for name in MADE_ANYWAY]}))
    assert started(file, empty) == []


def test_how_far_up_is_behind_is_how_far_its_windows_are() -> None:
    """Profiles and joins are of the same events, and what they leave open for minutes is not late."""
    places = {("windows", "inference", "90"): 1.5, ("profiles", "inference", "90"): 300.0}
    for place, lag in places.items():
        WATERMARK_LAG.labels(*place).set(lag)
    try:
        assert up_cli._status().watermark_lag_s == 1.5
    finally:
        for place in places:
            WATERMARK_LAG.remove(*place)


# --- topics, doctor, query, schema, ports ---------------------------------------------------------------------------


def test_topics_are_created_once_and_compared(empty: Path) -> None:
    first, again = (inside("topics", "create", "--data-dir", empty).stdout for _ in range(2))
    assert "created streammon.inference\n" in first
    *names, last = first.splitlines()
    assert last == f"{len(names)} created, 0 there already"
    assert again == f"0 created, {len(names)} there already\n"
    same = inside("topics", "check", "--data-dir", empty)
    assert (same.exit_code, same.stdout) == (0, "all topics are as they should be\n")
    differing = inside("topics", "check", "--output", "json", "--data-dir", empty, STREAMMON_TOPICS__PARTITIONS="7")
    assert differing.exit_code == 1
    rows = [json.loads(line) for line in differing.stdout.splitlines()]
    assert {"topic": "inference", "field": "partitions", "expected": 7, "actual": 4} in rows


def test_a_missing_and_a_differing_topic_are_a_row_each() -> None:
    expected = [TopicSpec("a", 4, 60.0), TopicSpec("b", 4, None, compact=True)]
    assert admin.differences(expected, {"a": TopicSpec("a", 2, 60.0)}) == [
        {"topic": "a", "field": "partitions", "expected": 4, "actual": 2},
        {"topic": "b", "field": "exists", "expected": True, "actual": False},
    ]


def test_the_doctor_finds_nothing_broken_on_one_machine(empty: Path) -> None:
    done = inside("doctor", "--output", "json", "--data-dir", empty)
    findings = {row["check"]: row["state"] for row in map(json.loads, done.stdout.splitlines())}
    assert (done.exit_code, findings["broker"], findings["data directory"]) == (0, "ok", "ok")


def test_the_doctor_says_that_nobody_answers(empty: Path, free_port: int) -> None:
    address = f"127.0.0.1:{free_port}"
    done = inside("doctor", "--output", "json", "--data-dir", empty, "--bootstrap", address)
    findings = {row["check"]: row for row in map(json.loads, done.stdout.splitlines())}
    assert (done.exit_code, findings["broker"]["state"]) == (1, "failed")
    assert address in findings["broker"]["detail"]


def test_the_doctor_says_that_the_data_directory_cannot_be_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = inside("doctor", "--output", "json", "--data-dir", tmp_path / "file")
    findings = {row["check"]: row for row in map(json.loads, done.stdout.splitlines())}
    assert (done.exit_code, findings["data directory"]["state"]) == (1, "failed")
    assert "--data-dir" in findings["data directory"]["detail"]


def test_the_doctor_finds_results_that_cannot_be_read(empty: Path) -> None:
    empty.mkdir()
    (empty / "results.sqlite").write_bytes(b"no database " * 1000)
    done = inside("doctor", "--output", "json", "--data-dir", empty)
    findings = {row["check"]: row["state"] for row in map(json.loads, done.stdout.splitlines())}
    assert (done.exit_code, findings["results"]) == (1, "failed")


def test_a_broker_that_does_not_answer_is_named_in_time(free_port: int) -> None:
    with silent() as listener:
        for port in (free_port, listener.getsockname()[1]):
            begun = time.monotonic()
            done = program("tail", "windows", "--exit", "--bootstrap", f"127.0.0.1:{port}")
            assert time.monotonic() - begun < 15
            assert (done.returncode, b"Traceback" in done.stderr) == (1, False)
            assert f"127.0.0.1:{port}".encode() in done.stderr


def test_a_port_in_use_is_named(empty: Path) -> None:
    with silent() as listener:
        port = listener.getsockname()[1]
        for arguments in (("up", "--port", port), ("process", "--metrics-port", port)):
            error = inside(*arguments, "--data-dir", empty).exception
            assert isinstance(error, ConfigError)
            assert re.search(rf"{arguments[1].strip('-').replace('-', '.')}.*{port}", str(error))


def test_results_are_a_table_for_people_and_json_for_programs(empty: Path) -> None:
    from streammon_sinks.sqlite import ResultStore

    empty.mkdir()
    ResultStore.open(empty / "results.sqlite").close()
    for kind in ("windows", "alerts", "drift", "quality"):
        assert inside("query", kind, "--data-dir", empty).stdout.startswith(f"no {kind} here")
        assert inside("query", kind, "--output", "json", "--data-dir", empty).stdout == ""


def test_query_shows_rollups_instead_of_base_windows_when_asked(empty: Path) -> None:
    from streammon_sinks.sqlite import ResultStore

    empty.mkdir()
    store = ResultStore.open(empty / "results.sqlite")
    store.write_windows([window(count=1), rollup(60.0, count=60)])
    store.close()
    arguments = ("query", "windows", "--since", "0", "--output", "json", "--data-dir", empty)
    asked: dict[tuple[str, ...], int] = {(): 1, ("--rollup", "1m"): 60, ("--rollup", "60"): 60}
    for rollup_option, count in asked.items():
        [shown] = map(json.loads, inside(*arguments, *rollup_option).stdout.splitlines())
        assert shown["count"] == count
    assert "--rollup is 'long'" in str(inside(*arguments, "--rollup", "long").exception)


def test_query_shows_what_resources_measured_and_counted(empty: Path) -> None:
    from streammon_sinks.sqlite import ResultStore

    empty.mkdir()
    store = ResultStore.open(empty / "results.sqlite")
    store.write_windows([resource_window()])
    store.close()
    arguments = ("query", "windows", "--source", "resource", "--since", "0", "--data-dir", empty)
    assert "utilization=0.5 requests_total=3.5/s http.request.duration:p50=0.2" in inside(*arguments).stdout
    told = json.loads(inside(*arguments, "--output", "json").stdout)
    assert told["counters"] == {"requests_total": {"sum": 7.0, "per_s": 3.5}}
    assert told["distributions"]["http.request.duration"]["count"] == 3


def test_rows_beyond_the_limit_are_said_to_be_left_out(empty: Path) -> None:
    from streammon_sinks.sqlite import ResultStore

    empty.mkdir()
    store = ResultStore.open(empty / "results.sqlite")
    store.write_windows([window(number) for number in range(5)])
    store.close()
    arguments = ("query", "windows", "--since", "0", "--output", "json", "--data-dir", empty)
    some, whole = inside(*arguments, "--limit", "3"), inside(*arguments)
    assert (len(some.stdout.splitlines()), len(whole.stdout.splitlines())) == (3, 5)
    assert some.stderr == "the newest 3 of 5: --limit N, or a later --since\n"
    assert whole.stderr == ""


def said_of(**test: float) -> str:
    """The state of a test that found no drift; its threshold is 0.2."""
    return str(query._drift_row(drift(drifted=False, **test))["state"])  # type: ignore[arg-type]


def test_query_shows_what_was_found_of_models(empty: Path) -> None:
    from streammon_sinks.sqlite import ResultStore

    empty.mkdir()
    store = ResultStore.open(empty / "results.sqlite")
    store.write(of_models=[drift(0), drift(1, drifted=False, statistic=0.05), drift(0, model="other")])
    store.write(of_models=[quality(0), quality_of_slice(0, accuracy=None, intervals={})])
    store.close()

    def shown(*arguments: str) -> list[list[str]]:
        done = inside("query", *arguments, "--data-dir", empty).stdout
        return [re.split(r"\s{2,}", line.strip()) for line in done.splitlines()[1:]]

    then = "2023-11-14 22:1"
    newest, other = shown("drift")
    assert newest[1:9] == ["shop/ranker", "3", "features.age", "as before", "0.05", "0.2", "psi", "500"]
    assert (other[0][: len(then)], other[1], other[4]) == (then, "shop/other", "drifted")
    assert len(shown("drift", "--since", "0")) == 3
    assert "may be chance" in said_of(effect=0.3, p_value=0.02)
    assert "as before" in said_of(effect=0.1, p_value=1e-9), "sure, and too small to matter"
    assert len(shown("drift", "--since", "0", "--where", "model=ranker", "--limit", "1")) == 1
    everybody, acme = sorted(shown("quality"), key=len)
    assert ("accuracy=90.0% (85.0% to 94.0%)" in everybody, everybody[-1]) == (True, "f1=85.0%")
    assert "92.0%" in everybody
    assert {"tenant=acme", "accuracy -15.0 points"} <= {*acme}
    assert shown("quality", "--where", "tenant=acme") == [acme]
    store = ResultStore.open(empty / "results.sqlite")
    store.write(of_models=[quality(5, labelled=0, accuracy=None, f1=None, intervals={})])
    store.close()
    assert [("0 of 200" in row, "150 of 200" in row) for row in shown("quality", "--where", "by=prediction")] == [
        (True, False), (False, True), (False, True),
    ], "the newest, and the newest with labels"  # fmt: skip
    assert "with model=none" in inside("query", "drift", "--where", "model=none", "--data-dir", empty).stdout
    [told] = inside(
        "query", "quality", "--where", "tenant=acme", "--output", "json", "--data-dir", empty
    ).stdout.split()
    assert json.loads(told)["disparity"] == {"accuracy": -0.15}


def test_a_row_is_a_line_in_a_pipe_and_folded_but_whole_on_a_narrow_screen(empty: Path) -> None:
    from streammon_sinks.sqlite import ResultStore

    empty.mkdir()
    store = ResultStore.open(empty / "results.sqlite")
    series = {"service": "recommendations", "model": "two-tower-candidate-retrieval"}
    store.write_windows([window(series=series)])
    store.close()
    arguments = ("query", "windows", "--since", "0", "--data-dir", empty)
    piped = program(*arguments).stdout.decode()
    assert " ".join(f"{name}={value}" for name, value in series.items()) in piped
    narrow = program(*arguments, COLUMNS="60").stdout.decode()
    assert "…" not in narrow
    assert max(map(len, narrow.splitlines())) <= 60


def test_a_package_that_is_not_installed_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], empty: Path
) -> None:
    for module in [name for name in sys.modules if name.startswith("streammon_sinks.elasticsearch")]:
        monkeypatch.delitem(sys.modules, module)  # imported anew
    monkeypatch.setitem(sys.modules, "elasticsearch", None)
    monkeypatch.setattr(sys, "argv", ["streammon", "sink", "elasticsearch", "--data-dir", str(empty)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "pip install 'streammon[elasticsearch]'" in capsys.readouterr().err


def test_servers_get_a_directory_that_nobody_can_pass_through() -> None:
    directory = admin._temporary_directory()
    try:
        assert directory.stat().st_mode & 0o777 == 0o711
    finally:
        directory.rmdir()


async def test_a_broker_that_is_away_is_complained_about_once() -> None:
    away = iter((True, True, False))

    async def attempt() -> str:
        if next(away):
            raise Retryable("away")
        return "a broker"

    with capture_logs() as logs:
        assert await retrying(attempt, asyncio.Event()) == "a broker"
    assert [entry["error"] for entry in logs] == ["away"]


def test_the_version_is_told() -> None:
    assert inside("--version").stdout == f"streammon {__version__}\n"


@pytest.mark.parametrize("arguments", [["--version"], ["agent", "--log-level", "loud"]])
def test_numpy_leaves_behind_no_threads_for_linear_algebra_and_no_variable_that_forbade_them(
    arguments: list[str],
) -> None:
    names = ("OPENBLAS_NUM_THREADS", "PYDANTIC_DISABLE_PLUGINS")
    look = f"print(len(os.listdir('/proc/self/task')), *map(os.environ.get, {names}), 'rich' in sys.modules)"
    source = f"""
import os, sys
from streammon.cli import main
from streammon.lazy_numpy import np
try: main()
finally: np.ones(1); {look}
"""
    environment = {name: value for name, value in os.environ.items() if name not in names}
    command = [sys.executable, "-c", source, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, env=environment)
    assert done.stdout.splitlines()[-1] == "1 None None False"


def test_every_type_has_a_json_schema() -> None:
    document = json.loads(inside("schema").output)
    assert set(EventType) <= set(document)
    assert len(document) == len(EventType) + len(RESULTS) + len(["heartbeat"])
    for name, schema in document.items():
        assert schema["$schema"].startswith("https://json-schema.org/")
        assert json.loads(inside("schema", name).output) == schema
        assert not unresolved(schema, schema)


def test_the_asyncapi_document_resolves_and_names_every_topic() -> None:
    document = json.loads(inside("schema", "--asyncapi").output)
    assert document["channels"]["inference"]["address"] == "streammon.inference"
    assert {"windows", "alerts", "changes"} <= set(document["channels"])
    assert not unresolved(document, document)


def unresolved(node: Any, root: Any) -> list[str]:
    """References of a JSON document that lead nowhere."""
    if isinstance(node, list):
        return [missing for inner in node for missing in unresolved(inner, root)]
    if not isinstance(node, dict):
        return []
    missing = [
        reference for reference in [node.get("$ref")] if isinstance(reference, str) and not leads(reference, root)
    ]
    return missing + [inner for value in node.values() for inner in unresolved(value, root)]


def leads(reference: str, root: Any) -> bool:
    for part in reference.removeprefix("#/").split("/"):
        if not isinstance(root, dict) or part not in root:
            return False
        root = root[part]
    return True
