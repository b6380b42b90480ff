"""``streammon rules import`` and ``notify import``: from Prometheus and Alertmanager, with a list of what was lost."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from msgspec import Struct

from streammon.cli.base import command
from streammon.cli.notify import notify_app
from streammon.cli.roles import rules_app
from streammon.config import Settings
from streammon.errors import ConfigError
from streammon.yaml_files import load_yaml

if TYPE_CHECKING:
    from streammon_processors.rules.prometheus.translation import Knowledge

Target = Annotated[
    Path | None,
    typer.Option("--output", help="The file to write; the standard output if not given.", show_default=False),
]
Strict = Annotated[bool, typer.Option(help="Exit with 1 if anything was lost or means something else.")]
LabelOption = Annotated[
    list[str] | None,
    typer.Option(
        "--label",
        metavar="THEIRS=OURS",
        help="What a label is called here; `job=`: it says nothing.",
        show_default=False,
    ),
]


class _Mapping(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A file with what would otherwise be many options."""

    metrics: dict[str, str] = {}
    labels: dict[str, str] = {}


@command(rules_app, "import")
def rules_import(
    settings: Settings,
    files: Annotated[list[Path], typer.Argument(help="Rule files of Prometheus.", show_default=False)],
    output: Target = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=FIELD", help="What a metric is in windows: X=gauges.x, Y=ttft_s, Z=0.", show_default=False
        ),
    ] = None,
    label: LabelOption = None,
    mapping: Annotated[
        Path | None, typer.Option(help="YAML file with `metrics` and `labels`, as those options.", show_default=False)
    ] = None,
    contact: Annotated[str | None, typer.Option(help="The contact of every rule.", show_default=False)] = None,
    strict: Strict = False,
) -> int:
    """Turn Prometheus alerting rules into rules of streammon, and list what was not translated."""
    from streammon_processors.rules.prometheus.importing import as_yaml, import_rules, summary_of

    outcomes = import_rules(files, _knowledge(settings, metric or (), label or (), mapping))
    _write(as_yaml(outcomes, contact=contact), output)
    for each in outcomes:
        if not each.written.is_record:
            print(each, file=sys.stderr)
    print(summary_of(outcomes), file=sys.stderr)
    lost = any(each.differences or each.rule is None for each in outcomes if not each.written.is_record)
    return int(strict and lost)


@command(notify_app, "import")
def notify_import(
    settings: Settings,
    file: Annotated[Path, typer.Argument(help="Alertmanager's configuration.", show_default=False)],
    output: Target = None,
    label: LabelOption = None,
    strict: Strict = False,
) -> int:
    """Turn Alertmanager's routes and receivers into a notifier's file; secrets are not copied."""
    from streammon_processors.notifier.importing import import_alertmanager

    imported = import_alertmanager(file, dict(_pairs(label or (), "--label")))
    text = imported.as_yaml()
    _check_notifier(text)
    _write(text, output)
    for each in imported.lost:
        print(f"{file}: {each}", file=sys.stderr)
    for name, what in imported.secrets.items():
        print(f"set {name}: {what}", file=sys.stderr)
    channels = len(imported.content.get("channels", ()))
    print(f"{channels} channels; {len(imported.lost)} things not translated or not the same", file=sys.stderr)
    return int(strict and bool(imported.lost))


def _check_notifier(text: str) -> None:
    """Whether the notifier takes the file. Raises ConfigError."""
    from streammon_processors.notifier import load_plan
    from streammon_sinks.notify.channels import load_channels

    with tempfile.TemporaryDirectory() as directory:
        (written := Path(directory, "imported.yaml")).write_text(text, encoding="utf-8")
        try:
            load_plan(written)
            load_channels(written)
        except ConfigError as error:
            raise ConfigError(f"the result would not be taken: {str(error).replace(f'{directory}/', '')}") from None


def _knowledge(settings: Settings, metrics: Iterable[str], labels: Iterable[str], mapping: Path | None) -> Knowledge:
    from streammon_processors.rules.prometheus.metrics import meaning_of
    from streammon_processors.rules.prometheus.translation import Knowledge

    content = load_yaml(mapping, _Mapping) if mapping else _Mapping()
    fields = content.metrics | dict(_pairs(metrics, "--metric"))
    meanings = {}
    for name, field in fields.items():
        try:
            meanings[name] = meaning_of(field)
        except ValueError as error:
            raise ConfigError(f"metric {name}: {error}") from None
    said = content.labels | dict(_pairs(labels, "--label"))
    return Knowledge(meanings, said, tuple(settings.windows.inference_by))


def _pairs(texts: Iterable[str], option: str) -> Iterable[tuple[str, str]]:
    for text in texts:
        name, equals, value = text.partition("=")
        if not (name and equals):
            raise ConfigError(f"{option} {text}: write NAME=VALUE")
        yield name, value


def _write(text: str, output: Path | None) -> None:
    """Nothing is overwritten: a person may have worked on it."""
    if output is None:
        sys.stdout.write(text)
        return
    try:
        with output.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise ConfigError(f"{output} is there already; give another name, or remove it first") from None
    except OSError as error:
        raise ConfigError(f"cannot write {output}: {error.strerror}") from None
