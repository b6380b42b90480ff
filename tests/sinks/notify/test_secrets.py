"""Secrets of the channels: found where they are said to be, read anew, and never shown."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from streammon.errors import ConfigError, Retryable
from streammon_sinks.notify.secrets import Secret, SecretValue, scrub


def test_a_secret_of_the_environment_is_read_when_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    secret = Secret(env="SLACK_URL")
    monkeypatch.setenv("SLACK_URL", "one")
    assert secret.read("f").reveal() == "one"
    monkeypatch.setenv("SLACK_URL", "two")
    assert secret.read("f").reveal() == "two"


def test_a_file_that_was_rotated_is_read_again_without_the_white_space_around_it(tmp_path: Path) -> None:
    file = tmp_path / "key"
    for value in ("one", "two"):
        file.write_text(f" {value}\n")
        assert Secret(file=str(file)).read("f").reveal() == value


@pytest.mark.parametrize("text", ["{}", '{"env":"A","file":"b"}', '{"env":"xoxb-1-2"}', '"inline"', '{"value":"x"}'])
def test_a_secret_is_in_exactly_one_place_and_never_inline(text: str) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(text, type=Secret)


@pytest.mark.parametrize(
    ("content", "problem"),
    [(b"  \n", "is empty"), (b"a\nb", "line breaks"), (b"\xff\xfemarker", "not text in UTF-8"), (None, "No such file")],
)
def test_a_file_without_a_secret_is_named_with_its_field(tmp_path: Path, content: bytes | None, problem: str) -> None:
    file = tmp_path / "key"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError, match=f"channel ops: token: file {file} .*{problem}") as raised:
        Secret(file=str(file)).read("channel ops: token")
    assert raised.value.__context__ is None
    assert "marker" not in str(raised.value)


def test_a_variable_that_is_not_set_is_named_with_its_field(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_SUCH", raising=False)
    with pytest.raises(ConfigError, match="channel ops: token: environment variable NO_SUCH is not set"):
        Secret(env="NO_SUCH").read("channel ops: token")


def test_a_secret_that_is_gone_later_may_come_back(tmp_path: Path) -> None:
    file = tmp_path / "key"
    with pytest.raises(Retryable, match=f"channel ops: token: file {file} cannot be read: No such file"):
        Secret(file=str(file)).read_later("channel ops: token")
    file.write_text("hush")
    assert Secret(file=str(file)).read_later("channel ops: token").reveal() == "hush"


def test_a_secret_shows_itself_as_stars() -> None:
    value = SecretValue("hush")
    assert {str(value), repr(value), f"{value}", f"{value!r:>3}", "%s" % value, repr([value])} == {"***", "[***]"}  # noqa: UP031


def test_secrets_are_taken_out_of_what_others_say() -> None:
    url = SecretValue("https://hooks.example.com/services/T0/B0/abcdefghijklmnop?sig=a%2Fbcdefghijklm")
    said = "no /services/T0/B0/abcdefghijklmnop here, nor a%2Fbcdefghijklm, a/bcdefghijklm or p%2Fq"
    assert scrub(said, [url, SecretValue("p/q")]) == "no /services/T0/B0/*** here, nor ***, *** or ***"
    assert scrub("the token hush is not known", [SecretValue("Bearer hush")]) == "the token *** is not known"
