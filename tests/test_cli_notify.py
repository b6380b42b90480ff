"""``streammon notify`` as people run it: with a file, with a wrong one, and to try a channel."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from typer.testing import CliRunner

from streammon.cli import notify, up  # noqa: F401 - up registers a command
from streammon.cli.base import app
from streammon.cli.notify import notifier, notifier_topics, with_notify
from streammon.config import Settings
from streammon.errors import ConfigError
from streammon_sinks.notify.channels import load_channels
from tests.sinks.notify.counterparts import Fault
from tests.sinks.notify.fake_http import FakeHttp, fake_http


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands that run inside this process leave its logging alone."""
    monkeypatch.setattr("streammon.cli.base.configure_logging", lambda level: None)


def written(directory: Path, **content: Any) -> Path:
    file = directory / "notify.yaml"
    file.write_text(json.dumps(content))  # JSON is YAML
    return file


class Hook:
    """Takes what it is sent."""

    def __init__(self, http: FakeHttp, taken: list[Any]) -> None:
        self.http, self.taken = http, taken

    def file(self, directory: Path, **changes: Any) -> Path:
        channel = {"type": "webhook", "url": f"{self.http.address}/hook", "timeout": 0.5}
        return written(directory, channels={"ops": channel | changes})


@pytest.fixture
async def hook(tmp_path: Path) -> AsyncIterator[Hook]:
    taken: list[Any] = []

    def take(_: web.Request, body: bytes) -> web.Response:
        taken.append(json.loads(body))
        return web.Response(status=204)

    async with fake_http(take, tmp_path) as http:
        yield Hook(http, taken)


async def tried(hook: Hook, file: Path, capsys: pytest.CaptureFixture[str], channel: str = "ops") -> tuple[int, str]:
    async with notifier(with_notify(Settings(), file)) as telling:
        status = await notify._try_out(telling, channel)
    return status, capsys.readouterr().out


async def test_a_test_says_what_arrived(hook: Hook, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, said = await tried(hook, hook.file(tmp_path), capsys)
    assert (status, len(hook.taken)) == (0, 1)
    assert said.startswith('ops (webhook) took it: look for "TEST of channel ops: nothing is wrong"')
    assert (hook.taken[0]["cause"], hook.taken[0]["status"]) == ("test", "firing")
    assert "TEST" in hook.taken[0]["alerts"][0]["summary"]


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (Fault.REFUSING, "ops (webhook) refused it: channel ops: 127.0.0.1 answered 400"),
        (Fault.BROKEN, "ops (webhook) did not take it: channel ops: 127.0.0.1 answered 500"),
        (Fault.SILENT, "ops (webhook) did not take it: channel ops: 127.0.0.1 did not answer within 0.5 s"),
        (Fault.UNTRUSTED, "ops (webhook) did not take it: channel ops: 127.0.0.1 has a certificate"),
    ],
)
async def test_a_test_that_fails_says_why_and_the_status_is_1(
    hook: Hook, tmp_path: Path, capsys: pytest.CaptureFixture[str], fault: Fault, says: str
) -> None:
    hook.http.fault = fault
    status, said = await tried(hook, hook.file(tmp_path), capsys)
    assert (status, says in said) == (1, True), said


async def test_the_console_can_be_tested_in_every_file(
    hook: Hook, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, said = await tried(hook, hook.file(tmp_path), capsys, "console")
    assert status == 0
    assert "INFO     firing    TEST of channel console: nothing is wrong" in said


def inside(*arguments: object) -> Any:
    return CliRunner().invoke(app, [*map(str, arguments)], env={"COLUMNS": "200"})


def test_a_channel_that_is_not_in_the_file_is_named_with_those_there_are(tmp_path: Path) -> None:
    file = written(tmp_path, channels={"ops": {"type": "webhook", "url": "http://127.0.0.1:1/"}})
    result = inside("notify", "test", "opps", "--notify", file)
    assert isinstance(result.exception, ConfigError)
    assert str(result.exception) == "there is no channel 'opps'; there are: console, ops"


def test_a_test_needs_the_secrets_of_its_channel_and_of_no_other(tmp_path: Path) -> None:
    page = {"type": "pagerduty", "routing_key": {"env": "NO_SUCH_KEY"}}
    file = written(tmp_path, channels={"page": page})
    assert "TEST of channel console" in inside("notify", "test", "console", "--notify", file).stdout
    result = inside("notify", "test", "page", "--notify", file)
    assert isinstance(result.exception, ConfigError)
    assert "NO_SUCH_KEY is not set" in str(result.exception)


def test_a_test_without_a_file_says_where_to_name_it() -> None:
    result = inside("notify", "test", "ops")
    assert isinstance(result.exception, ConfigError)
    assert "--notify" in str(result.exception)


def test_an_option_before_the_name_of_a_command_is_not_passed_over(tmp_path: Path) -> None:
    result = inside("notify", "--notify", tmp_path / "notify.yaml", "test", "ops")
    assert result.exit_code == 2
    assert "--notify belongs behind it" in result.output


@pytest.mark.parametrize("role", ["notify", "up"])
@pytest.mark.parametrize(
    ("channels", "says"),
    [
        ({"ops": {"type": "carrier-pigeon"}}, "carrier-pigeon"),
        ({"ops": {"type": "webhook", "url": {"env": "NOT_THERE_1"}}}, "NOT_THERE_1"),
        ({"my ops": {"type": "console"}}, "'my ops'"),
        ({"ops": {"type": "webhook", "url": "http://127.0.0.1:1/", "colour": "red"}}, "colour"),
    ],
)
def test_a_wrong_file_is_found_before_anything_is_started(
    role: str, channels: dict[str, Any], says: str, tmp_path: Path
) -> None:
    file = written(tmp_path, channels=channels)
    result = inside(role, "--notify", file, "--data-dir", tmp_path / "data")
    assert isinstance(result.exception, ConfigError), result
    assert says in str(result.exception)
    assert not (tmp_path / "data").exists()


def test_each_channel_has_a_topic_to_remember_in(tmp_path: Path) -> None:
    file = written(tmp_path, channels={"ops": {"type": "webhook", "url": "http://127.0.0.1:1/"}})
    specs = notifier_topics(with_notify(Settings(), file))
    assert [(spec.name, spec.partitions, spec.compact) for spec in specs] == [
        ("state.notify.console", 1, True),
        ("state.notify.ops", 1, True),
    ]
    assert notifier_topics(Settings()) == []


def test_a_file_may_give_the_name_console_to_another_channel(tmp_path: Path) -> None:
    file = written(tmp_path, channels={"console": {"type": "webhook", "url": "http://127.0.0.1:1/"}})
    assert type(load_channels(file)["console"]).__name__ == "Webhook"
