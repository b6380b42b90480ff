"""CEL read into a tree: Google's library parses and type-checks, and what it says is turned into nodes of our own.

`parse` gives a tree of `Node`. Every number is a double here, so a plain ``10`` may stand for ``10.0``: it is rewritten
before the library sees it, and errors name the column in the text that a person wrote.

The library hands out its checked tree as a protocol buffer, ``cel.expr.CheckedExpr`` (github.com/google/cel-spec,
proto/cel/expr/checked.proto and syntax.proto); the few fields that matter are read here, by their numbers.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Final, TypeAlias

NUMBER: Final = "number"
TRUTH: Final = "truth"
TEXT: Final = "text"
DISTRIBUTION: Final = "distribution"
MAX_LENGTH: Final = 4096
"""Of an expression, in characters; that bounds its tree, which the library keeps at most 32 deep."""


class ExpressionError(ValueError):
    """What is wrong with an expression, and in which column."""


@dataclass(frozen=True)
class Constant:
    value: float | bool | str


@dataclass(frozen=True)
class Variable:
    """A name that was declared, dots included: ``duration_s.p99``."""

    name: str
    kind: str = field(default=NUMBER, compare=False, repr=False)


@dataclass(frozen=True)
class Label:
    """``labels.NAME`` or ``labels["NAME"]``; ``test``: ``has(labels.NAME)``, whether it is there."""

    name: str
    test: bool = False


@dataclass(frozen=True)
class Call:
    """A function or operator, under the name that CEL has for it: ``_>_``, ``_&&_``, ``avg_over``."""

    function: str
    arguments: tuple[Node, ...]


@dataclass(frozen=True)
class Options:
    """A list: what a value may be ``in``."""

    items: tuple[Node, ...]


Node: TypeAlias = Constant | Variable | Label | Call | Options


@dataclass(frozen=True)
class Function:
    """A function of ours, and the types that its overloads take; all of them give a number or a truth."""

    name: str
    overloads: tuple[tuple[str, ...], ...]
    gives: str = NUMBER


def parse(text: str, variables: Mapping[str, str], functions: Collection[Function]) -> tuple[Node, str]:
    """The tree of an expression, and the type of what it gives. ``variables`` are names and their types.

    Raises:
        ExpressionError: it is no CEL, has a wrong type, or uses what rules have no use for; with the column.
    """
    if len(text) > MAX_LENGTH:
        raise ExpressionError(f"it has {len(text)} characters; at most {MAX_LENGTH} are read")
    written = _as_read(text)
    names = {_identifier(name): name for name in variables}
    declared = frozenset((written_as, variables[name]) for written_as, name in names.items())
    environment = _environment(declared, frozenset(functions))
    try:
        checked = environment.compile(written)
    except RuntimeError as error:
        raise ExpressionError(_said(str(error), text, functions)) from None
    return _Tree(checked.serialize(), variables, names).root, {"BOOL": TRUTH, "DOUBLE": NUMBER}.get(
        checked.return_type().name(), TEXT
    )


@cache
def _environment(variables: frozenset[tuple[str, str]], functions: frozenset[Function]) -> Any:
    from cel_expr_python import cel

    types = {
        NUMBER: cel.Type.DOUBLE,
        TRUTH: cel.Type.BOOL,
        TEXT: cel.Type.STRING,
        DISTRIBUTION: cel.Type.AbstractType(DISTRIBUTION),
    }
    declared = {name: types[kind] for name, kind in variables}
    declared["labels"] = cel.Type.Map(cel.Type.STRING, cel.Type.STRING)
    return cel.NewEnv(
        variables=declared,
        functions=[
            cel.FunctionDecl(
                each.name,
                [
                    cel.Overload(f"{each.name}_{number}", types[each.gives], [types[kind] for kind in kinds])
                    for number, kinds in enumerate(each.overloads)
                ],
            )
            for each in sorted(functions, key=lambda each: each.name)
        ],
    )


def matches(text: str, pattern: str) -> bool:
    """Whether a regular expression is found in a text: RE2, which takes time in proportion to the text, whatever it is.

    Raises:
        ExpressionError: it is none.
    """
    found = _matching().eval(data={"text": text, "pattern": pattern}).value()
    if not isinstance(found, bool):
        raise ExpressionError(f"{pattern!r} is no regular expression: {_reason(found)}")
    return found


@cache
def _matching() -> Any:
    from cel_expr_python import cel

    text = cel.Type.STRING
    return cel.NewEnv(variables={"text": text, "pattern": text}).compile("text.matches(pattern)")


def _reason(error: str) -> str:
    return error.rpartition("invalid regular expression: ")[2]


# ---------------------------------------------------------------- the text

_TOKEN: Final = re.compile(
    r"""(?P<text>[rRbB]*(?:\"\"\".*?\"\"\"|'''.*?'''|"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*'))"""
    r"""|(?P<name>[A-Za-z_]\w*(?:\.[A-Za-z_]\w*|(?:(?<=\bgauges)|(?<=\bcounters)|(?<=\bdistributions))\[(?:"[^"\\\n]+"|'[^'\\\n]+')\])*)|(?P<number>(?:\d+\.\d+|\d+|\.\d+)(?:[eE][+-]?\d+)?[uU]?)|(?P<other>.)""",
    re.DOTALL,
)


def names_in(text: str) -> Iterator[str]:
    """The identifiers of an expression, dotted ones as one; those inside texts are none."""
    return (_plain(found["name"]) for found in _TOKEN.finditer(text) if found["name"])


def _plain(name: str) -> str:
    """``gauges.a-b.last``, which was written as ``gauges["a-b"].last``."""
    return re.sub(r"""\[["'](.+?)["']\]""", r".\1", name)


NAMED: Final = ("gauges", "counters", "distributions")
"""Fields of a window that hold others under names of the senders'."""


def as_field(name: str) -> str:
    """How an expression names a field of a window: ``gauges["a-b"].last``, where a dot would not do."""
    first, *middle, last = name.split(".")
    if first not in NAMED or all(map(_IDENTIFIER.fullmatch, [*middle, last])):
        return name
    whole = [*middle, last]
    if _IDENTIFIER.fullmatch(last) and middle:
        return f'{first}["{".".join(middle)}"].{last}'
    return f'{first}["{".".join(whole)}"]'


_IDENTIFIER: Final = re.compile(r"(?!(?:in|true|false|null)$)[A-Za-z_]\w*")


def _identifier(name: str) -> str:
    """A name as the library takes it, which knows dots and no other signs."""
    first, *rest = name.split(".")
    if first not in NAMED or all(map(_IDENTIFIER.fullmatch, rest)):
        return name
    return f"{first}._{name.encode().hex()}"


def _as_written(text: str) -> str:
    """What the library says, with the names that a person wrote."""
    return re.sub(
        rf"(?:{'|'.join(NAMED)})\._([0-9a-f]+)", lambda found: as_field(bytes.fromhex(found[1]).decode()), text
    )


def _as_read(text: str) -> str:
    """The same with ``10`` as ``10.0``, and names as the library takes them."""
    return "".join(map(_token, _TOKEN.finditer(text)))


def _token(token: re.Match[str]) -> str:
    if token["name"]:
        return _identifier(_plain(token[0]))
    return f"{token[0]}.0" if (token["number"] or "").isdecimal() else token[0]


def _column(written: int, text: str) -> int:
    """Where column ``written`` (from 1) of `_as_read` is in the text."""
    at = added = 0
    for token in _TOKEN.finditer(text):
        if at + added >= written - 1:
            break
        at = token.end()
        added += len(_token(token)) - len(token[0])
    return max(1, written - added) if at + added <= written - 1 else at


_ERROR: Final = re.compile(r"<input>:(\d+):(\d+): (.*)")
_TYPES: Final = {"double": "number", "bool": "truth value", "string": "text"}


def _said(message: str, text: str, functions: Collection[Function]) -> str:
    """The library's first complaint, in the terms of rules."""
    if "recursion" in message:
        return "it is nested too deep; 32 levels, or 32 sums in a row, are read"
    found = _ERROR.search(message)
    if not found:
        return message.splitlines()[0]
    line = int(found[1])
    column = _column(int(found[2]), text.split("\n")[line - 1])
    what = re.sub(r" expecting \{.*| \[INVALID_ARGUMENT\]$", "", found[3].replace(" (in container '')", ""))
    for theirs, ours in _TYPES.items():
        what = re.sub(rf"\b{theirs}\b", ours, what)
    what = _as_written(what)
    unknown = re.search(r"undeclared reference to '(.+?)'", what)
    if unknown:
        what = _unknown(unknown[1], text, functions)
    elif "Syntax error" in what:
        what += _slip(text)
    elif ways := _ways(what, functions):
        what += f"; it is called as {ways}"
    return f"column {column}: {what}" if line == 1 else f"line {line}, column {column}: {what}"


def _unknown(name: str, text: str, functions: Collection[Function]) -> str:
    """Of a name that the library does not know, also where it is a function with other arguments."""
    if not re.search(rf"(?<![\w.]){re.escape(name)}\s*\(", text):
        return f"{name!r} is not known here"
    if ways := _ways(repr(name), functions):
        return f"{name!r} is called as {ways}"
    known = ", ".join(sorted(each.name for each in functions))
    return f"{name!r} is no function here; there are {known}{_slip(text)}"


def _ways(what: str, functions: Collection[Function]) -> str:
    """How the function of ours is called that is named there in quotes."""
    named = [each for each in functions if repr(each.name) in what]
    return " or ".join(f"{each.name}({', '.join(kinds)})" for each in named for kinds in each.overloads)


_SLIPS: Final = (
    (re.compile(r"[{}]"), "; labels are asked for in `where`, or as `labels.NAME`"),
    (re.compile(r"\d(?:s|m|h|d)\b"), '; a duration is a text here: "10m"'),
    (re.compile(r"(?<![=!<>])=(?!=)"), "; equal is `==`"),
    (re.compile(r"\b(?:and|or|not|unless)\b"), "; logic is `&&`, `||` and `!`"),
    (re.compile(r"\bby\b"), "; groups are made by the rule's `by`"),
)


def _slip(text: str) -> str:
    """What somebody may have meant who writes other languages of this kind; nothing if nothing comes to mind."""
    plain = "".join(" " if token["text"] else token[0] for token in _TOKEN.finditer(text))
    return next((hint for slip, hint in _SLIPS if slip.search(plain)), "")


# ---------------------------------------------------------------- the tree


class _Tree:
    """Reads a ``google.protobuf.Any`` with a CheckedExpr: field 2 names what identifiers mean, field 4 is the tree."""

    def __init__(self, serialized: bytes, variables: Mapping[str, str], plain: Mapping[str, str]) -> None:
        """``plain``: the names of variables, by those that the library was given."""
        self._kind_of = variables
        [checked] = _fields(serialized)[2]
        fields = _fields(checked)
        entries = [_fields(entry) for entry in fields.get(2, ())]
        told = {_one(entry, 1): _text(_one(_fields(_one(entry, 2)), 1)) for entry in entries}
        self._names = {number: plain.get(name, name) for number, name in told.items()}
        self.root = self._node(_one(fields, 4))

    def _node(self, expression: bytes) -> Node:
        fields = _fields(expression)
        if (name := self._names.get(_one(fields, 2))) and (4 in fields or 5 in fields):
            return Variable(name, self._kind_of.get(name, "map"))
        for number, read in self._kinds().items():
            if number in fields:
                node: Node = read(_fields(_one(fields, number)))
                return node
        raise ExpressionError("lists of things that are looked through, maps and messages have no place in a rule")

    def _kinds(self) -> Mapping[int, Any]:
        return {3: self._constant, 5: self._select, 6: self._call, 7: self._options}

    def _constant(self, fields: _Fields) -> Node:
        if 2 in fields:
            return Constant(bool(_one(fields, 2)))
        if 5 in fields:
            return Constant(struct.unpack("<d", _one(fields, 5))[0])
        if 6 in fields:
            return Constant(_text(_one(fields, 6)))
        raise ExpressionError("only numbers, texts, true and false can stand in a rule")

    def _select(self, fields: _Fields) -> Node:
        if self._node(_one(fields, 1)) != Variable("labels"):
            raise ExpressionError(f"`.{_text(_one(fields, 2))}` of something that has no fields")
        return Label(_text(_one(fields, 2)), test=bool(_one(fields, 3, 0)))

    def _call(self, fields: _Fields) -> Node:
        target = [self._node(each) for each in fields.get(1, ())]
        arguments = [self._node(each) for each in fields.get(3, ())]
        function = _text(_one(fields, 2))
        if function == "_[_]" and arguments[0] == Variable("labels") and isinstance(arguments[1], Constant):
            return Label(str(arguments[1].value))
        if function == "@in" and arguments[1] == Variable("labels") and isinstance(arguments[0], Constant):
            return Label(str(arguments[0].value), test=True)
        if function in ("_==_", "_!=_") and (said := _compared_with_truth(function, *arguments)):
            return said
        return Call(function, (*target, *arguments))

    def _options(self, fields: _Fields) -> Node:
        return Options(tuple(self._node(each) for each in fields.get(1, ())))


def _compared_with_truth(function: str, one: Node, other: Node) -> Node | None:
    """``drifted == true`` is ``drifted``, and ``drifted == false`` is ``!drifted``; None: something else."""
    for side, constant in ((one, other), (other, one)):
        if isinstance(constant, Constant) and isinstance(constant.value, bool):
            return side if constant.value == (function == "_==_") else Call("!_", (side,))
    return None


_Fields = Mapping[int, list[Any]]


def _fields(message: bytes) -> dict[int, list[Any]]:
    """Protocol buffer wire format: numbers (wire type 0), 8 bytes (1), and lengths with bytes (2)."""
    found: dict[int, list[Any]] = {}
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        value: Any
        if tag & 7 == 0:
            value, at = _varint(message, at)
        else:
            size, at = (8, at) if tag & 7 == 1 else _varint(message, at)
            value, at = message[at : at + size], at + size
        found.setdefault(tag >> 3, []).append(value)
    return found


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at


def _one(fields: _Fields, number: int, default: Any = b"") -> Any:
    return fields.get(number, [default])[-1]


def _text(value: bytes) -> str:
    return value.decode() if isinstance(value, bytes) else ""
