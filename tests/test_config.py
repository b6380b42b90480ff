"""The configuration: which source wins, and what a person is told about a mistake."""

from __future__ import annotations

import os
import re
import runpy
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from streammon.config import Section, Settings, load
from streammon.errors import ConfigError

SECRET = "hunter2-hunter2"


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment without settings."""
    for name in os.environ:
        if name.startswith("STREAMMON_"):
            monkeypatch.delenv(name)
    return monkeypatch


Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(text: str) -> Path:
        file = tmp_path / "streammon.yaml"
        file.write_text(text)
        return file

    return write


def mistake(file: Path | None = None, **flags: Any) -> str:
    with pytest.raises(ConfigError) as error:
        load(file, **flags)
    return str(error.value)


# --- which source wins ----------------------------------------------------------------------------------------------


def test_everything_has_a_default() -> None:
    settings = load()
    assert (settings.bootstrap, settings.windows.size_s, settings.web.port) == (None, 2.0, 8080)
    assert settings.data_dir.is_absolute()


def test_flags_go_before_the_environment_before_the_file_before_defaults(
    environment: pytest.MonkeyPatch, write: Write
) -> None:
    file = write("bootstrap: file\nlog_level: debug\nmetrics_port: 1\n")
    environment.setenv("STREAMMON_BOOTSTRAP", "environment")
    environment.setenv("STREAMMON_LOG_LEVEL", "error")
    settings = load(file, bootstrap="flag", log_level=None)
    found = (settings.bootstrap, settings.log_level, settings.metrics_port, settings.topics.partitions)
    assert found == ("flag", "error", 1, 4)


def test_one_field_of_a_section_is_overridden_without_the_others(environment: pytest.MonkeyPatch, write: Write) -> None:
    environment.setenv("STREAMMON_WINDOWS__SIZE_S", "10")
    windows = load(write("windows: {size_s: 5, lateness_s: 3}\n")).windows
    assert (windows.size_s, windows.lateness_s, windows.max_series) == (10, 3, 10_000)


def test_lists_in_the_environment_are_json(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("STREAMMON_WINDOWS__INFERENCE_BY", '["service"]')
    assert load().windows.inference_by == ("service",)


def test_a_distribution_that_does_not_exist_is_refused_with_those_that_do(write: Callable[[str], Path]) -> None:
    with pytest.raises(
        ConfigError, match=r"inference_distributions.*'latency' is no distribution; allowed: duration_s, ttft_s"
    ):
        load(write("windows: {inference_distributions: [latency]}\n"))


@pytest.mark.parametrize("names", ["[]", "[colour]", "[service, prediction]"])
def test_a_series_is_made_of_text_fields_of_an_event(names: str, write: Callable[[str], Path]) -> None:
    with pytest.raises(ConfigError, match="inference_by"):
        load(write(f"windows: {{inference_by: {names}}}\n"))


def test_an_empty_variable_counts_as_not_given(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("STREAMMON_BOOTSTRAP", "")
    assert load().bootstrap is None


def test_the_state_directory_follows_the_standard(environment: pytest.MonkeyPatch, tmp_path: Path) -> None:
    environment.setenv("XDG_STATE_HOME", str(tmp_path))
    assert load().data_dir == tmp_path / "streammon"


def test_a_tilde_is_the_home_directory(environment: pytest.MonkeyPatch, tmp_path: Path, write: Write) -> None:
    environment.setenv("HOME", str(tmp_path))
    settings = load(write("data_dir: ~/data\nrules: {files: [~/rules.yaml]}\n"))
    assert (settings.data_dir, settings.rules.files) == (tmp_path / "data", (tmp_path / "rules.yaml",))


def test_an_empty_file_changes_nothing(write: Write) -> None:
    assert load(write("# nothing yet\n")).model_dump() == load().model_dump()


def test_the_tree_is_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load().windows.size_s = 1  # type: ignore[misc]  # that is the test


# --- what a person is told ------------------------------------------------------------------------------------------

WRONG_FILES = {
    "an unknown field": ("windws: {size_s: 1}", ["windws: there is no such field", "did you mean 'windows'?"]),
    "an unknown field of a section": ("windows: {sise_s: 1}", ["windows.sise_s", "did you mean 'size_s'?"]),
    "a field like no other": ("windows: {colour: red}", ["windows.colour", "expected one of size_s, lateness_s"]),
    "a field of a section at the top": ("size_s: 1", ["size_s", "expected one of bootstrap"]),
    "a wrong type": ("windows: {size_s: soon}", ["windows.size_s = 'soon'", "number"]),
    "too small": ("windows: {size_s: 0}", ["windows.size_s = 0", "greater than 0"]),
    "infinite": ("windows: {lateness_s: .inf}", ["windows.lateness_s = inf", "finite"]),
    "a wrong choice": ("log_level: loud", ["log_level = 'loud'", "'debug'"]),
    "no port": ("web: {port: 65536}", ["web.port = 65536", "65535"]),
    "no text": ("bootstrap: 9092", ["bootstrap = 9092", "string"]),
    "an empty section": ("windows:", ["windows: expected a section", "size_s:"]),
    "a list for a section": ("windows: [1]", ["windows: expected a section", "size_s:"]),
    "a list at the top": ("- windows", ["windows:", "list"]),
    "a number as key": ("8080: web", ["windows:", "key 8080"]),
    "secured by half": (
        "kafka: {tls: {ca_file: ca.pem}}",
        ["kafka.tls: ca_file = 'ca.pem' has no effect while enabled = false"],
    ),
    "a key without a certificate": (
        "kafka: {tls: {enabled: true, key_file: k.pem}}",
        ["kafka.tls: key_file = 'k.pem' needs certificate_file"],
    ),
    "a user without a mechanism": (
        "kafka: {sasl: {username: me}}",
        ["kafka.sasl: username = 'me'", "mechanism = None"],
    ),
    "a mechanism without a user": (
        "kafka: {sasl: {mechanism: PLAIN, password: secret}}",
        ["kafka.sasl: mechanism = 'PLAIN' needs username"],
    ),
    "two passwords": (
        "kafka: {sasl: {mechanism: PLAIN, username: me, password: secret, password_file: p}}",
        ["kafka.sasl: mechanism = 'PLAIN' needs only one of password or password_file"],
    ),
    "a token without a source": (
        "kafka: {sasl: {mechanism: OAUTHBEARER}}",
        ["kafka.sasl: mechanism = 'OAUTHBEARER' needs token_endpoint or token_file"],
    ),
    "two sources of tokens": (
        "kafka: {sasl: {mechanism: OAUTHBEARER, token_file: t, client_id: me}}",
        ["kafka.sasl: client_id = 'me' does not fit mechanism = 'OAUTHBEARER', which takes token_file"],
    ),
    "no URL": (
        "kafka: {sasl: {mechanism: OAUTHBEARER, token_endpoint: idp}}",
        ["kafka.sasl.token_endpoint = 'idp'", "https?"],
    ),
    "a mechanism there is not": ("kafka: {sasl: {mechanism: GSSAPI}}", ["kafka.sasl.mechanism = 'GSSAPI'", "'PLAIN'"]),
    "an unknown field of a section in a section": ("kafka: {tls: {cafile: x}}", ["kafka.tls.cafile", "'ca_file'"]),
    "broken": ("windows:\n  size_s: [1\n", ["not valid YAML", "line 3, column 1", "','"]),
    "a tab": ("windows:\n\tsize_s: 1", ["not valid YAML", "line 2, column 1", "\\t"]),
    "a control character": ("\0", ["not valid YAML", "#x0000"]),
}


@pytest.mark.parametrize("case", WRONG_FILES)
def test_a_mistake_in_the_file_names_file_field_and_value(case: str, write: Write) -> None:
    text, expected = WRONG_FILES[case]
    file = write(text)
    message = mistake(file)
    assert [part for part in [str(file), *expected] if part not in message] == []


def test_all_mistakes_are_told_at_once(write: Write) -> None:
    message = mistake(write("log_level: loud\nweb: {port: -1}\n"), metrics_port="none")
    assert [name in message for name in ("log_level", "web.port", "metrics_port = 'none'")] == [True] * 3


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert mistake(tmp_path / "none.yaml").endswith("none.yaml: No such file or directory")


def test_a_directory_is_not_a_file(tmp_path: Path) -> None:
    assert mistake(tmp_path).endswith(f"{tmp_path}: Is a directory")


def test_bytes_that_are_no_text_are_not_valid_yaml(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_bytes(b"bootstrap: \xff")
    assert "not valid YAML" in mistake(tmp_path / "c.yaml")


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("STREAMMON_WINDOWS__SIZE_S", "soon", "windows.size_s = 'soon'"),
        ("STREAMMON_WINDOWS__SISE_S", "1", "windows.sise_s"),
        ("STREAMMON_WINDWS__SIZE_S", "1", "STREAMMON_WINDWS__SIZE_S: no section 'windws'"),
        ("STREAMMON_BOOTSTRAP__PORT", "1", "STREAMMON_BOOTSTRAP__PORT: no section 'bootstrap'"),
        ("STREAMMON_WINDOWS", "{", 'field "windows"'),
        ("STREAMMON_WINDOWS__INFERENCE_BY", "service", '["service", "model"]'),
    ],
)
def test_a_mistake_in_the_environment_is_named(
    environment: pytest.MonkeyPatch, variable: str, value: str, expected: str
) -> None:
    environment.setenv(variable, value)
    assert expected in mistake()


def test_a_variable_that_names_no_field_is_left_alone(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("STREAMMON_REQUIRE_SERVERS", "1")
    assert load()


# --- secrets --------------------------------------------------------------------------------------------------------


def test_a_secret_is_readable_only_on_purpose(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("STREAMMON_ELASTICSEARCH__API_KEY", SECRET)
    settings = load()
    assert settings.elasticsearch.api_key is not None
    assert settings.elasticsearch.api_key.get_secret_value() == SECRET
    for shown in (repr(settings), str(settings), repr(settings.elasticsearch), settings.model_dump_json()):
        assert SECRET not in shown


@pytest.mark.parametrize(
    "text",
    [
        f"elasticsearch: {{api_key: [{SECRET}]}}",
        f"elasticsearch: {{apikey: {SECRET}, password: {SECRET}}}",
        f"elasticsearch: [{{api_key: {SECRET}}}]",
        f"elasticsearch: {SECRET}",
        f"elastic: {{api_key: {SECRET}}}",
        f"kafka: {{sasl: {{password: {SECRET}}}}}",
        f"kafka: {{sasl: {{mechanism: OAUTHBEARER, password: {SECRET}}}}}",
        f"kafka: {{sasl: {{mechanism: PLAIN, username: me, client_secret: {SECRET}}}}}",
        f"kafka: {{sasl: {{mechanism: PLAIN, password: [{SECRET}]}}}}",
        f"kafka: {{tls: {{key_password: {SECRET}}}}}",
        f'elasticsearch: {{api_key: "{SECRET}}}',
        f"elasticsearch:\n  api_key: {SECRET}\n url: x",
    ],
)
def test_no_message_shows_a_secret(text: str, write: Write) -> None:
    message = mistake(write(text))
    assert re.search("elastic|kafka|line", message)
    assert SECRET not in message


@pytest.mark.parametrize("value", [f'{{"api_key": "{SECRET}"', f'"{SECRET}"'])
def test_no_message_about_a_variable_shows_a_secret(environment: pytest.MonkeyPatch, value: str) -> None:
    environment.setenv("STREAMMON_ELASTICSEARCH", value)
    message = mistake()
    assert "elasticsearch" in message
    assert SECRET not in message


# --- the tree reads like documentation ------------------------------------------------------------------------------


GENERATE = Path(__file__).parents[1] / "docs" / "generate.py"
sentences: Callable[[type], dict[str, str]] = runpy.run_path(str(GENERATE))["sentences"]


def every_field(model: type[BaseModel], path: str = "") -> Iterator[tuple[str, str, Any]]:
    for name, field in model.model_fields.items():
        if isinstance(field.default, Section):
            yield from every_field(type(field.default), f"{path}{name}.")
        else:
            yield f"{path}{name}", sentences(model).get(name, ""), field


@pytest.mark.parametrize(
    ("name", "sentence", "field"), [pytest.param(*each, id=each[0]) for each in every_field(Settings)]
)
def test_every_field_is_explained_in_a_sentence(name: str, sentence: str, field: Any) -> None:
    assert sentence, name
    assert sentence[0].isupper()
    assert sentence.endswith(".")
    assert not field.is_required()


def every_section(model: type[BaseModel]) -> Iterator[type[Section]]:
    for field in model.model_fields.values():
        if isinstance(field.default, Section):
            yield type(field.default)
            yield from every_section(type(field.default))


def test_every_section_says_what_it_is() -> None:
    sections = list(every_section(Settings))
    assert sections
    assert [section.__name__ for section in sections if section.__doc__ == Section.__doc__] == []
