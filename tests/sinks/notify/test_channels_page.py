"""The page on channels: its files load, its names and fields are all there are, and its receiver verifies."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import pytest
from msgspec import Struct

from streammon.errors import ConfigError
from streammon.yaml_files import parse_yaml
from streammon_sinks.notify.channels import Description
from streammon_sinks.notify.secrets import SecretValue
from streammon_sinks.notify.webhook import NAMES, signature

PAGE = (Path(__file__).parents[3] / "docs" / "channels.md").read_text(encoding="utf-8")
CHANNELS: dict[str, type[Struct]] = {each.__name__: each for each in get_args(Description)}


class File(Struct, forbid_unknown_fields=True):
    channels: dict[str, Description]


def section(title: str) -> str:
    return PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


@pytest.mark.parametrize("title", CHANNELS)
def test_each_channel_has_an_example_that_loads(title: str) -> None:
    texts = re.findall(r"^```yaml\n(.*?)^```$", section(title), re.MULTILINE | re.DOTALL)
    assert texts
    for text in texts:
        (channel,) = parse_yaml(text, File, "notify.yaml").channels.values()
        assert type(channel) is CHANNELS[title]


@pytest.mark.parametrize("title", CHANNELS)
def test_each_field_is_told(title: str) -> None:
    told = set(re.findall(r"\w+", section(title))) | {"timeout"}
    assert set(CHANNELS[title].__struct_encode_fields__) <= told


def test_the_table_of_types_is_whole() -> None:
    tags = {str(each.__struct_config__.tag) for each in CHANNELS.values()}
    assert set(re.findall(r"^\| \[`(\w+)`\]", PAGE, re.MULTILINE)) == tags


def test_each_name_of_a_template_is_told() -> None:
    assert {f"`${name}`" for name in NAMES} <= set(re.findall(r"`\$\w+`", PAGE))


def test_the_receiver_of_the_page_verifies_what_we_sign() -> None:
    (code,) = re.findall(r"^```python\n(.*?)^```$", section("Webhook"), re.MULTILINE | re.DOTALL)
    page: dict[str, Any] = {}
    exec(code, page)
    header = signature(SecretValue("s"), b"{}", 1_700_000_000)
    assert page["verified"]("s", header, b"{}", 1_700_000_010.0)
    assert not page["verified"]("s", header, b"{ }", 1_700_000_010.0)
    assert not page["verified"]("s", header, b"{}", 1_700_000_310.0)
    assert not page["verified"]("t", header, b"{}", 1_700_000_010.0)


@pytest.mark.parametrize("secret", ["https://hooks.slack.com/services/T0/B0/hush", "{env: xoxb-hush}", "{token: hush}"])
def test_a_secret_that_was_written_into_the_file_is_refused_and_not_repeated(secret: str) -> None:
    text = f"channels:\n  ops:\n    type: slack\n    webhook_url: {secret}\n"
    with pytest.raises(ConfigError, match=r"notify.yaml:4:\d+.*webhook_url") as raised:
        parse_yaml(text, File, "notify.yaml")
    assert "hush" not in str(raised.value)
