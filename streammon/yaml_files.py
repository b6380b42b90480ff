"""YAML files that people write for us: read whole and strictly, and every error names its line and column."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from functools import reduce
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec
import yaml
from msgspec import Struct, inspect

from streammon.errors import ConfigError

T = TypeVar("T", bound=Struct)
MAX_MISTAKES: Final = 20
"""As many are told of one file; who has mended them is told the next."""


def load_yaml(file: Path, type_: type[T]) -> T:
    """The content of a file, as ``type_``.

    Raises:
        ConfigError: naming the file, line and column, the nearest thing with a name, the field, its value, and what is
            allowed there.
    """
    return parse_yaml(text_of(file), type_, str(file))


def parse_yaml(text: str, type_: type[T], name: str) -> T:
    """The same of a text that came from ``name``. Raises ConfigError."""
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        _refuse_repeated_keys(name, root)
        content = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:  # the last: 2027-13-45, and other texts like values
        raise ConfigError(not_yaml(name, error)) from None
    try:  # not strict: YAML 1.1 reads 1e-3 as text
        return msgspec.convert(content, type_, strict=False)
    except msgspec.ValidationError as error:
        raise ConfigError("\n".join(_mistakes(name, root, content, type_, str(error)))) from None


def not_yaml(name: str, error: Exception) -> str:
    """What is wrong with a text from ``name`` that could not be read, in a line, with its place where there is one."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return f"{name} is not valid YAML: {error}"
    said = ", ".join(filter(None, (error.context, error.problem)))
    return f"{_at(name, error.problem_mark)}: this is not valid YAML: {said}"


def place_of(file: Path, keys: Iterable[str | int]) -> str:
    """``FILE:LINE:COLUMN`` of what lies along the keys, as far as they exist; for errors that are found later."""
    nodes = list(_descend(yaml.compose(text_of(file), Loader=yaml.SafeLoader), map(str, keys)))
    return _of_node(str(file), nodes[-1] if nodes else None)


def text_of(file: Path) -> str:
    """The text of a file, for who reads more than one thing in it: at another moment it may hold another text.

    Raises:
        ConfigError: it cannot be read, or is no text.
    """
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
            if not isinstance(key, yaml.ScalarNode):
                raise ConfigError(f"{_of_node(name, key)}: a key is a plain text here, not a list or a mapping")
            if key.value in seen:
                raise ConfigError(f"{_of_node(name, key)}: `{key.value}` is given twice; keep one")
            seen.add(key.value)
            _refuse_repeated_keys(name, value)


def _mistakes(name: str, root: yaml.Node | None, content: Any, type_: type[Any], message: str) -> list[str]:
    """The mistake that the message is about; and where that is in one of many rules, say, the first of each of them."""
    listed = re.search(r" - at `\$\.([\w-]+)\[\d+\]", message)
    pairs = {key.value: (key, value) for key, value in root.value} if isinstance(root, yaml.MappingNode) else {}
    if root is None or not listed or listed[1] not in pairs:  # the last: it comes by `<<`
        return [_explain(name, root, content, type_, message)]
    key, items = pairs[listed[1]]
    found: dict[str, None] = {}  # in order, each once: what is wrong elsewhere is found again with every item
    for item, node in zip(content[listed[1]], items.value, strict=True):
        alone = (key, yaml.SequenceNode(items.tag, [node], items.start_mark, items.end_mark))
        part = yaml.MappingNode(root.tag, [*(pairs | {listed[1]: alone}).values()], root.start_mark, root.end_mark)
        if (said := _message(of_item := content | {listed[1]: [item]}, type_)) and len(found) < MAX_MISTAKES:
            found[_explain(name, part, of_item, type_, said)] = None
    return [*found]


def _explain(name: str, root: yaml.Node | None, content: Any, type_: type[Any], message: str) -> str:
    """The decoder's message, its path (``$.rules[0].above``) turned into a place in the file and a value."""
    problem, _, path = message.partition(" - at ")
    keys = _with_names(_keys(path, problem), content, type_, message)
    nodes = list(_descend(root, keys))
    last = nodes[-1] if nodes else None
    of_named = [f"{keys[0].removesuffix('s')} {named.value!r}" for node in nodes for named in _children(node, "name")]
    field = ".".join(key for key in keys[1 : len(nodes) - 1] if not key.isdecimal())
    types = list(_along(inspect.type_info(type_), keys, nodes))
    secret = any(map(_confidential, types))
    hidden = secret or _may_be_secret(types, keys)
    value = f" = {last.value[:80]!r}" if isinstance(last, yaml.ScalarNode) and not hidden else ""
    at_top = keys[: min(1, len(nodes) - 1)] if value else []
    named = ((field or "".join(at_top)) + value).removeprefix(" = ")
    allowed = _allowed(types, keys)
    problem += "; a secret is not written here, only where it is kept" if secret else ""
    problem += f"; allowed: {', '.join(allowed)}" if allowed else ""
    return ": ".join(part for part in (_of_node(name, last), *of_named[-1:], named, problem) if part)


def _keys(path: str, problem: str) -> list[str]:
    """Of ``$.rules[0].above`` and "unknown field `x`": rules, 0, above, x."""
    return re.findall(r"[\w-]+|\.{3}", path.rpartition("$")[2]) + re.findall(r"`([\w.-]+)`", problem)[:1]


def _with_names(keys: list[str], content: Any, type_: type[Any], message: str) -> list[str]:
    """The decoder writes ``...`` for a key that the file chose; the keys with it in place of that."""
    for depth, key in enumerate(keys):
        if key == "...":
            keys = [*keys[:depth], _culprit(keys[:depth], content, type_, message), *keys[depth + 1 :]]
    return keys


def _culprit(above: list[str], content: Any, type_: type[Any], message: str) -> str:
    """The key of the mapping at ``above`` that alone brings the same message."""
    mapping = reduce(lambda inner, key: inner[_key(inner, key)], above, content)
    return next((str(key) for key in mapping if _message(_only(key, above, content), type_) == message), "...")


def _only(key: Any, above: list[str], content: Any) -> Any:
    """The content with nothing but ``key`` in the mapping at ``above``."""
    if not above:
        return {key: content[key]}
    changed, place = content.copy(), _key(content, above[0])
    changed[place] = _only(key, above[1:], content[place])
    return changed


def _key(content: Any, key: str) -> Any:
    return int(key) if isinstance(content, list) else next(each for each in content if str(each) == key)


def _message(content: Any, type_: type[Any]) -> str:
    try:
        msgspec.convert(content, type_, strict=False)
    except msgspec.ValidationError as error:
        return str(error)
    return ""


def _along(info: inspect.Type | None, keys: list[str], nodes: list[yaml.Node]) -> Iterator[inspect.Type]:
    """The types along the keys, from the root on: one more than keys, or fewer if a key leads nowhere."""
    for depth, key in enumerate(keys):
        if info is None:
            return
        yield (here := _struct(info, nodes[depth] if depth < len(nodes) else None))
        info = _inner(here, key)
    if info is not None:
        yield info


def _inner(here: inspect.Type, key: str) -> inspect.Type | None:
    if isinstance(here, inspect.StructType):
        return next((field.type for field in here.fields if field.encode_name == key), None)
    if isinstance(here, inspect.ListType | inspect.VarTupleType | inspect.SetType):
        return here.item_type
    return here.value_type if isinstance(here, inspect.DictType) else None


def _allowed(types: list[inspect.Type], keys: list[str]) -> Iterable[str]:
    """What is allowed at the end of the keys: values of a choice, or the fields of an object."""
    end = types[-1]
    if len(types) > len(keys):
        return _choices(end)
    if isinstance(end, inspect.StructType):
        tag = [end.tag_field] if end.tag_field else []
        return () if keys[len(types) - 1] in tag else [*tag, *(field.encode_name for field in end.fields)]
    return _tags(end) if isinstance(end, inspect.UnionType) else ()


def _confidential(info: inspect.Type) -> bool:
    """Whether an error must not show what was written there: structs of secrets say so by ``confidential = True``."""
    options = info.types if isinstance(info, inspect.UnionType) else (info,)
    return any(getattr(each.cls, "confidential", False) for each in options if isinstance(each, inspect.StructType))


def _may_be_secret(types: list[inspect.Type], keys: list[str]) -> bool:
    """Whether a secret may stand there in a wrong place: under a name that no field of such a struct has."""
    end = types[-1]
    options = end.types if isinstance(end, inspect.UnionType) else (end,)
    structs = [each for each in options if isinstance(each, inspect.StructType)]
    is_tag = len(types) == len(keys) and any(each.tag_field == keys[-1] for each in structs)
    return not is_tag and any(_confidential(field.type) for each in structs for field in each.fields)


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


def _of_node(name: str, node: yaml.Node | None) -> str:
    return _at(name, node.start_mark) if node else name


def _at(name: str, mark: yaml.Mark) -> str:
    return f"{name}:{mark.line + 1}:{mark.column + 1}"
