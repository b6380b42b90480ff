"""Writes the pages that are made from the code: ``configuration.md`` and ``asyncapi.json``, beside this file.

    python docs/generate.py

Run it after a change to `streammon.config`, `streammon.events` or `streammon.results`; `tests/test_docs.py` fails
until the files are committed as this script makes them.
"""

from __future__ import annotations

import ast
import inspect
import json
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from streammon import config
from streammon.config import Settings, TopicSettings
from streammon.schema import asyncapi

DOCS = Path(__file__).parent
COMPUTED = {
    "data_dir": "`$XDG_STATE_HOME/streammon`, else `~/.local/state/streammon`",
    "procfs": "`$PROCFS_PATH`, else `/proc`",
    "jobs": "none",
}
"""Defaults that depend on the machine, or are not shown, in words."""
BOUNDS = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}

Json = Mapping[str, Any]

INTRODUCTION = """\
# Configuration

<!-- Made by docs/generate.py from streammon/config.py. Do not edit: change the code, and run the script. -->

One tree of settings, the same for every command. A value is taken from the first place that has it:

1. a flag: `--bootstrap`, `--data-dir`, `--metrics-port`, `--log-level` on every command, and what `--help` lists;
2. an environment variable: `STREAMMON_` and the path in capitals, levels separated by two underscores. Lists are JSON:
   `STREAMMON_RULES__FILES='["rules.yaml"]'`. An empty variable counts as not given;
3. the YAML file given with `--config`; no file is read without it;
4. the default below.

```yaml
bootstrap: kafka-1:9092,kafka-2:9092
topics:
  partitions: 12
  replication: 3
windows:
  size_s: 10
```

A wrong value or an unknown key ends the command with exit status 2; the message names the field, the value and what is
wrong. (A variable without `__` that names no field is left alone: it may be another program's.) Units are in the names:
`_s` seconds.
"""


def generated() -> dict[Path, str]:
    """Every generated file with its content."""
    document = json.dumps(asyncapi(TopicSettings().prefix), indent=2, ensure_ascii=False)
    return {DOCS / "configuration.md": configuration(), DOCS / "asyncapi.json": f"{document}\n"}


def configuration() -> str:
    """The page on configuration."""
    schema = Settings.model_json_schema()
    for name, section in {Settings.__name__: schema, **schema["$defs"]}.items():
        for field, sentence in sentences(getattr(config, name)).items():
            section["properties"][field]["description"] = sentence
    lines = [INTRODUCTION, "## Top level\n", *_table("", schema["properties"]), *_sections("", schema, schema["$defs"])]
    return "\n".join(lines)


def sentences(section: type) -> dict[str, str]:
    """What stands below each field of a class."""
    [definition] = ast.parse(inspect.getsource(section)).body
    assert isinstance(definition, ast.ClassDef)
    found = {}
    for pair in pairwise(definition.body):
        match pair:
            case ast.AnnAssign(target=ast.Name(name)), ast.Expr(ast.Constant(str(text))):
                found[name] = text
    return found


def _sections(prefix: str, within: Json, definitions: Json) -> Iterator[str]:
    for name, field in within["properties"].items():
        if "$ref" in field:
            section = definitions[field["$ref"].rpartition("/")[2]]
            yield f"## `{prefix}{name}`\n\n{_markdown(section)}\n"
            yield from _table(f"{prefix}{name}.", section["properties"])
            yield from _sections(f"{prefix}{name}.", section, definitions)
        elif "$ref" in field.get("items", {}):
            section = definitions[field["items"]["$ref"].rpartition("/")[2]]
            yield f"## Each of `{prefix}{name}`\n\n{_markdown(section)}\n"
            yield from _table("", section["properties"])


def _table(prefix: str, fields: Mapping[str, Json]) -> Iterator[str]:
    yield "| field | values | default | meaning |"
    yield "|---|---|---|---|"
    for name, field in fields.items():
        if "$ref" in field:  # a section: it has a table of its own
            continue
        cells = f"`{prefix}{name}`", _values(field), _default(name, field), _markdown(field)
        yield f"| {' | '.join(map(_escaped, cells))} |"
    yield ""


def _markdown(described: Json) -> str:
    return str(described["description"]).replace("``", "`")


def _escaped(cell: str) -> str:
    return cell.replace("|", r"\|")


def _values(field: Json) -> str:
    if "anyOf" in field:
        return ", or ".join("none" if each["type"] == "null" else _values(each) for each in field["anyOf"])
    if "$ref" in field:
        return "sections, see below"
    if "enum" in field:
        return ", ".join(f"`{each}`" for each in field["enum"])
    if field["type"] == "array":
        return f"list of {_values(field['items'])}"
    kind = str({"path": "path", "password": "secret"}.get(field.get("format", ""), field["type"]))
    bounds = [f"{sign} {_plain(field[bound])}" for bound, sign in BOUNDS.items() if bound in field]
    pattern = [f"matching `{field['pattern']}`"] if "pattern" in field else []
    return " ".join([kind, ", ".join(bounds + pattern)]).strip()


def _default(name: str, field: Json) -> str:
    if "default" not in field:
        return COMPUTED.get(name, "required")
    return "none" if field["default"] is None else f"`{_plain(field['default'])}`"


def _plain(value: Any) -> str:
    """As it would stand in a YAML file."""
    return f"{value:.15g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)


def main() -> None:
    """Write all files."""
    for path, text in generated().items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
