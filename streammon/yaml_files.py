"""YAML files that people write for us: read whole and strictly, and every error names its line and column."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import yaml
from msgspec import Struct, inspect

from streammon.errors import ConfigError

T = TypeVar("T", bound=Struct)


def load_yaml(file: Path, type_: type[T]) -> T:
    """The content of a file, as ``type_``.

    Raises:
        ConfigError: naming the file, line and column, the nearest thing with a name, the field, its value, and what is
            allowed there.
    """
    return parse_yaml(_text(file), type_, str(file))


def parse_yaml(text: str, type_: type[T], name: str) -> T:
    """The same of a text that came from ``name``. Raises ConfigError."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        _refuse_repeated_keys(name, root)
        content = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{name} is not valid YAML: {error}") from None
    try:  # not strict: YAML 1.1 reads 1e-3 as text
        return msgspec.convert(content, type_, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError(_explain(name, root, type_, str(error))) from None


def place_of(file: Path, keys: Iterable[str | int]) -> str:
    """``FILE:LINE:COLUMN`` of what lies along the keys, as far as they exist; for errors that are found later."""
    nodes = list(_descend(yaml.compose(_text(file), Loader=yaml.SafeLoader), map(str, keys)))
    return _at(str(file), nodes[-1] if nodes else None)


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} is not valid YAML: {error}") from None


def _refuse_repeated_keys(name: str, node: yaml.Node | None) -> None:
    """YAML forbids a key twice in one mapping; PyYAML lets the last one win, silently."""
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _refuse_repeated_keys(name, item)
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if key.value in seen:
                raise ConfigError(f"{_at(name, key)}: `{key.value}` is given twice; keep one")
            seen.add(key.value)
            _refuse_repeated_keys(name, value)


def _explain(name: str, root: yaml.Node | None, type_: type[Any], message: str) -> str:
    """The decoder's message, its path (``$.rules[0].above``) turned into a place in the file and a value."""
    problem, _, path = message.partition(" - at ")
    keys = _keys(path, problem)
    nodes = list(_descend(root, keys))
    last = nodes[-1] if nodes else None
    of_named = [f"{keys[0].removesuffix('s')} {named.value!r}" for node in nodes for named in _children(node, "name")]
    field = ".".join(key for key in keys[1 : len(nodes) - 1] if not key.isdecimal())
    value = f" = {last.value[:80]!r}" if isinstance(last, yaml.ScalarNode) else ""
    allowed = _allowed(inspect.type_info(type_), keys, nodes)
    problem += f"; allowed: {', '.join(allowed)}" if allowed else ""
    return ": ".join(part for part in (_at(name, last), *of_named[-1:], field + value, problem) if part)


def _keys(path: str, problem: str) -> list[str]:
    """Of ``$.rules[0].above`` and "unknown field `x`": rules, 0, above, x."""
    return re.findall(r"[\w-]+", path.rpartition("$")[2]) + re.findall(r"`([\w.-]+)`", problem)[:1]


def _allowed(info: inspect.Type, keys: list[str], nodes: list[yaml.Node]) -> Iterable[str]:
    """What the type allows at the end of the keys: values of a choice, or the fields of an object."""
    for depth, key in enumerate(keys):
        here = _struct(info, nodes[depth] if depth < len(nodes) else None)
        if isinstance(here, inspect.StructType):
            fields = {field.encode_name: field.type for field in here.fields}
            if here.tag_field == key:
                return ()
            if key not in fields:
                return [*([here.tag_field] if here.tag_field else []), *fields]
            info = fields[key]
        elif isinstance(here, inspect.ListType | inspect.VarTupleType | inspect.SetType):
            info = here.item_type
        elif isinstance(here, inspect.DictType):
            info = here.value_type
        else:
            return _tags(here) if isinstance(here, inspect.UnionType) else ()
    return _choices(info)


def _struct(info: inspect.Type, node: yaml.Node | None) -> inspect.Type:
    """Of several structs, the one whose tag the file gives; of something optional, the thing."""
    if not isinstance(info, inspect.UnionType):
        return info
    options = [each for each in info.types if not isinstance(each, inspect.NoneType)]
    tagged = [each for each in options if isinstance(each, inspect.StructType) and each.tag_field]
    for each in tagged:
        if node and any(tag.value == each.tag for tag in _children(node, each.tag_field or "")):
            return each
    fitting = [each for each in options if isinstance(node, yaml.MappingNode) == isinstance(each, inspect.StructType)]
    return fitting[0] if len(fitting) == 1 else options[0] if len(options) == 1 else info


def _choices(info: inspect.Type) -> Iterable[str]:
    options = info.types if isinstance(info, inspect.UnionType) else (info,)
    return [str(value) for each in options if isinstance(each, inspect.LiteralType) for value in each.values]


def _tags(info: inspect.UnionType) -> Iterable[str]:
    return [str(each.tag) for each in info.types if isinstance(each, inspect.StructType) and each.tag]


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


def _at(name: str, node: yaml.Node | None) -> str:
    return f"{name}:{node.start_mark.line + 1}:{node.start_mark.column + 1}" if node else name
