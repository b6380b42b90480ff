"""The channels of the notifier's file: read, each opened as what it is, and what is wrong named with its place."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, get_args

import aiohttp
import pytest
from msgspec import inspect

from streammon.errors import ConfigError
from streammon_sinks.notify.channels import Description, described, load_channels, open_channel, secrets_of
from tests.contracts.test_channel import KINDS

FILE = """\
channels:
  alertmanager: {type: alertmanager, urls: ["http://alertmanager:9093"]}
  apprise: {type: apprise, url: {env: HUSH}}
  console: {type: console}
  email: {type: email, host: mail, from: a@example.org, to: [b@example.org]}
  opsgenie: {type: opsgenie, api_key: {env: HUSH}}
  pagerduty: {type: pagerduty, routing_key: {env: HUSH}, webhook_secret: {env: HUSH}}
  slack: {type: slack, webhook_url: {env: HUSH}, signing_secret: {env: HUSH}}
  webhook: {type: webhook, url: "https://example.org/", signing_secret: {env: HUSH}}
route: {to: [email]}
"""
"""One of each type, under its name."""


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


def written(directory: Path, text: str) -> Path:
    file = directory / "notify.yaml"
    file.write_text(text)
    return file


async def test_a_channel_of_each_type_is_read_and_opened(
    tmp_path: Path, session: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HUSH", "https://hush")
    channels = load_channels(written(tmp_path, FILE))
    assert set(map(type, channels.values())) == set(get_args(Description))
    for name, description in channels.items():
        assert described(description) == name
        channel = open_channel(name, description, session)
        assert type(channel).__name__ == f"{type(description).__name__}Channel"
        await channel.close()


def test_every_type_has_the_contract_to_pass(tmp_path: Path) -> None:
    """But the console, which has no other side."""
    types = set(load_channels(written(tmp_path, FILE))) - {"console"}
    assert {name.split()[0] for name in KINDS} >= types


@pytest.mark.parametrize("type_", get_args(Description), ids=lambda type_: str(type_.__name__))
def test_every_description_refuses_what_it_does_not_know(type_: Any) -> None:
    info = inspect.type_info(type_)
    assert isinstance(info, inspect.StructType)
    assert (info.tag_field, info.forbid_unknown_fields) == ("type", True)


def test_there_is_always_a_console(tmp_path: Path) -> None:
    assert list(map(described, load_channels(written(tmp_path, "route: {}\n")).values())) == ["console"]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("a b: {type: console}", "notify.yaml:2:8: .*cannot be named 'a b'"),
        ("ops: {type: pager}", "notify.yaml:2:.*'pager'.*alertmanager, apprise, console, email, opsgenie, pagerduty"),
        ("ops: {url: x}", "notify.yaml:2:.*type"),
        ("ops: {type: apprise, url: 'tgram://hush'}", "notify.yaml:2:.*a secret is not written here"),
        ("ops: {type: email, host: mail, from: a@example.org, to: [], pasword: hush}", "notify.yaml:2:"),
    ],
)
def test_what_is_wrong_is_named_with_its_place_and_no_secret(tmp_path: Path, line: str, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem) as raised:
        load_channels(written(tmp_path, f"channels:\n  {line}\n"))
    assert "hush" not in str(raised.value)


async def test_a_secret_that_is_not_there_names_the_channel_and_the_field(
    tmp_path: Path, session: aiohttp.ClientSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HUSH", raising=False)
    channels = load_channels(written(tmp_path, FILE))
    for name, field in (("apprise", "url"), ("opsgenie", "api_key"), ("pagerduty", "routing_key")):
        with pytest.raises(ConfigError, match=f"channel {name}: {field}: environment variable HUSH is not set"):
            open_channel(name, channels[name], session)


def test_the_secrets_of_those_who_call_back_are_found(tmp_path: Path) -> None:
    channels = load_channels(written(tmp_path, FILE))
    assert [name for name, _ in secrets_of(channels, "signing_secret")] == ["slack"]
    assert [name for name, _ in secrets_of(channels, "webhook_secret")] == ["pagerduty"]


def test_reading_the_file_needs_no_library_of_an_extra() -> None:
    code = "import sys, streammon_sinks.notify.channels as _; print({'apprise', 'aiosmtplib'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("set()\n", "")
