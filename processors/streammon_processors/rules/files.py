"""Rules from YAML files; an error names the file, line, column, rule, field and value."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import get_args

import msgspec
import yaml
from msgspec import Struct

from streammon.errors import ConfigError
from streammon.results import DISTRIBUTIONS, Severity
from streammon_processors.rules.description import Rule, Rules, Source, WindowOf


class _File(Struct, frozen=True, forbid_unknown_fields=True):
    rules: tuple[Rule, ...]


def load_rules(files: Iterable[Path], distributions: Collection[str] = DISTRIBUTIONS) -> Rules:
    """The rules of all files. ``distributions``: those that windows have (``windows.inference_distributions``).

    Raises:
        ConfigError: naming the file, line and column, the rule, the field, its value, and what is allowed.
    """
    found: dict[str, tuple[Rule, Path]] = {}
    for file in files:
        for rule in _read(file):
            if rule.name in found:
                raise ConfigError(
                    f"{file}: rule {rule.name!r} is already in {found[rule.name][1]}; names must be distinct"
                )
            if rule.distribution and rule.distribution not in distributions:
                raise ConfigError(
                    f"{file}: rule {rule.name!r} asks for {rule.field!r}, which no window has: "
                    f"windows.inference_distributions lacks {rule.distribution}"
                )
            found[rule.name] = (rule, file)
    return Rules(tuple(rule for rule, _ in found.values()))


def _read(file: Path) -> tuple[Rule, ...]:
    try:
        text = file.read_text(encoding="utf-8")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        _refuse_repeated_keys(file, root)
        content = yaml.safe_load(text)
    except OSError as error:
        raise ConfigError(f"cannot read the rules file {file}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{file} is not valid YAML: {error}") from None
    try:  # not strict: YAML 1.1 reads 1e-3 as text
        return msgspec.convert(content, _File, strict=False).rules
    except msgspec.ValidationError as error:
        raise ConfigError(_explain(file, root, str(error))) from None


def _refuse_repeated_keys(file: Path, node: yaml.Node | None) -> None:
    """YAML forbids a key twice in one mapping; PyYAML lets the last one win, silently."""
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _refuse_repeated_keys(file, item)
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if key.value in seen:
                raise ConfigError(f"{_at(file, key)}: `{key.value}` is given twice; keep one")
            seen.add(key.value)
            _refuse_repeated_keys(file, value)


def _explain(file: Path, root: yaml.Node | None, message: str) -> str:
    """The decoder's message, its path (``$.rules[0].above``) turned into a place in the file and a value."""
    problem, _, path = message.partition(" - at ")
    keys = re.findall(r"\w+", path.rpartition("$")[2]) + re.findall(r"`(\w+)`", problem)[:1]
    nodes = list(_descend(root, keys))
    last = nodes[-1] if nodes else None
    rule = next((f"rule {name.value!r}" for node in nodes for name in _children(node, "name")), "")
    field = ".".join(keys[2 : len(nodes) - 1])
    value = f" = {last.value[:80]!r}" if isinstance(last, yaml.ScalarNode) else ""
    parts = _at(file, last), rule, field + value, problem + _allowed(field, problem)
    return ": ".join(part for part in parts if part)


def _descend(node: yaml.Node | None, keys: Iterable[str]) -> Iterator[yaml.Node]:
    """The nodes along the keys, as far as they exist, from the root on."""
    if node is None:
        return
    yield node
    for key in keys:
        child = next(_children(node, key), None)
        if child is None:
            return
        yield (node := child)


def _children(node: yaml.Node, key: str) -> Iterator[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        yield from (value for name, value in node.value if name.value == key)
    elif isinstance(node, yaml.SequenceNode) and key.isdecimal():
        yield from node.value[int(key) :][:1]


def _at(file: Path, node: yaml.Node | None) -> str:
    return f"{file}:{node.start_mark.line + 1}:{node.start_mark.column + 1}" if node else str(file)


def _allowed(field: str, problem: str) -> str:
    allowed = {"source": get_args(Source), "severity": get_args(Severity)}.get(field, ())
    if "unknown field" in problem:
        within_rule = WindowOf if field.startswith("window.") else Rule
        allowed = within_rule.__struct_fields__ if field else ("rules",)
    return f"; allowed: {', '.join(allowed)}" if allowed else ""
