"""Expressions of rules, evaluated for many windows at once.

An expression is a checked CEL tree (`cel`) over columns: a number is an array with NaN where a window does not say, a
truth value is two arrays, `Truth`: what is known to be true, what is known to be false.

**Three values.** What is not known decides nothing, as an error does in CEL (cel-spec, "Logical Operators"):
``a && b`` is false as soon as one of them is, whatever the other; a comparison with a number that is not there is
not known.

`reasons` and `tell` say in words why it came out so for one window; `value_at` is the number that this is about.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from math import isfinite
from types import MappingProxyType
from typing import Final, NamedTuple, Protocol, TypeAlias, TypeGuard

import numpy as np
from numpy.typing import NDArray

from streammon_processors.rules.conditions.cel import (
    NUMBER,
    TEXT,
    TRUTH,
    Call,
    Constant,
    ExpressionError,
    Function,
    Label,
    Node,
    Options,
    Variable,
    matches,
)
from streammon_processors.rules.conditions.learning import told_with
from streammon_processors.rules.conditions.words import UNTIL, quantity_of, shown, words_of

Floats: TypeAlias = NDArray[np.float64]
Bools: TypeAlias = NDArray[np.bool_]
Labels: TypeAlias = Mapping[str, str]
Texts: TypeAlias = Mapping[str, str | None]


class Truth(NamedTuple):
    """Of each window: whether it is known to be true, and whether it is known to be false."""

    yes: Bools
    no: Bools


class Columns(Protocol):
    """What expressions read of some windows."""

    def number(self, name: str) -> Floats:
        """A field of the windows; NaN where a window has none."""
        ...

    def text(self, name: str) -> Sequence[str | None]:
        """A field that is a text; None where there is none."""
        ...

    def of_labels(self, predicate: Node) -> Truth:
        """What `of_labels` says of each window's series, and of the texts in it."""
        ...

    def of_past(self, call: Call) -> Floats:
        """What a function of the past gives for each window; NaN where that is not known."""
        ...


COMPARISONS: Final[Mapping[str, tuple[Callable[[Floats, Floats], Bools], str, str]]] = {
    "_>_": (operator.gt, ">", "≤"),
    "_>=_": (operator.ge, "≥", "<"),
    "_<_": (operator.lt, "<", "≥"),
    "_<=_": (operator.le, "≤", ">"),
    "_==_": (operator.eq, "=", "≠"),
    "_!=_": (operator.ne, "≠", "="),
}
"""How to compare, how to say it, and how to say that it is not so."""
_ARITHMETIC: Final[Mapping[str, Callable[..., Floats]]] = {
    "_+_": np.add,
    "_-_": np.subtract,
    "_*_": np.multiply,
    "_/_": np.divide,
    "-_": np.negative,
    "abs": np.abs,
    "min": np.minimum,
    "max": np.maximum,
}
MATHS: Final = (
    Function("abs", ((NUMBER,),)),
    Function("min", ((NUMBER, NUMBER),)),
    Function("max", ((NUMBER, NUMBER),)),
)


def negated(node: Node) -> Node:
    return Call("!_", (node,))


def both(one: Node, other: Node) -> Node:
    return Call("_&&_", (one, other))


class Evaluation:
    """Of some windows, what expressions say; what several of them share is worked out once."""

    def __init__(self, columns: Columns) -> None:
        self._columns = columns
        self._numbers: dict[Node, Floats] = {}
        self._truths: dict[Node, Truth] = {}

    def number(self, node: Node) -> Floats:
        if isinstance(node, Variable):
            return self._columns.number(node.name)
        if isinstance(node, Constant):
            return np.float64(node.value)  # type: ignore[return-value]  # a scalar is broadcast
        if node not in self._numbers:
            self._numbers[node] = self._number(node)
        return self._numbers[node]

    def text(self, name: str) -> Sequence[str | None]:
        return self._columns.text(name)

    def truth(self, node: Node) -> Truth:
        if node not in self._truths:
            self._truths[node] = self._truth(node)
        return self._truths[node]

    def _number(self, node: Node) -> Floats:
        assert isinstance(node, Call)
        if node.function == "_?_:_":
            condition, *branches = node.arguments
            chosen, (one, other) = self.truth(condition), map(self.number, branches)
            return np.where(chosen.yes, one, np.where(chosen.no, other, np.nan))
        if node.function in _ARITHMETIC:
            with np.errstate(all="ignore"):
                return _ARITHMETIC[node.function](*map(self.number, node.arguments))
        return self._columns.of_past(node)

    def _truth(self, node: Node) -> Truth:  # noqa: PLR0911  # one case a construct of the language
        if is_about_labels(node):
            return self._columns.of_labels(node)
        if isinstance(node, Variable):
            said = self.number(node)
            return Truth(said == 1, said == 0)
        assert isinstance(node, Call)
        match node.function, node.arguments:
            case "_&&_", (one, other):
                a, b = self.truth(one), self.truth(other)
                return Truth(a.yes & b.yes, a.no | b.no)
            case "_||_", (one, other):
                a, b = self.truth(one), self.truth(other)
                return Truth(a.yes | b.yes, a.no & b.no)
            case "!_", (one,):
                a = self.truth(one)
                return Truth(a.no, a.yes)
            case "_?_:_", (condition, one, other):
                c, a, b = map(self.truth, (condition, one, other))
                return Truth((c.yes & a.yes) | (c.no & b.yes), (c.yes & a.no) | (c.no & b.no))
            case function, (left, right) if function in COMPARISONS:
                one_, other_ = self.number(left), self.number(right)
                yes = COMPARISONS[function][0](one_, other_)
                known = ~(np.isnan(one_) | np.isnan(other_))
                return Truth(yes & known, ~yes & known)
            case "@in", (value, Options(items)):
                wanted, *options = map(self.number, (value, *items))
                known = reduce(operator.and_, (~np.isnan(each) for each in options), ~np.isnan(wanted))
                yes = reduce(operator.or_, (wanted == each for each in options), np.zeros_like(known))
                return Truth(yes & known, ~yes & known)
        raise AssertionError(f"{node.function} was let through by `check`")


# ---------------------------------------------------------------- labels


def is_about_labels(node: Node) -> bool:
    """Whether it is decided by the labels of a series, and by texts that are no labels, alone."""
    match node:
        case Label():
            return True
        case Variable(_, kind):
            return kind == TEXT
        case Constant(value):
            return not isinstance(value, float)
        case Options(items):
            return all(map(is_about_labels, items))
        case Call(function, arguments):
            return (function in _TEXT or function in _LOGIC) and all(map(is_about_labels, arguments))


_LOGIC: Final = ("_&&_", "_||_", "!_", "_?_:_", "_==_", "_!=_", "@in")
_TEXT: Final[Mapping[str, Callable[..., object]]] = {
    "startsWith": str.startswith,
    "endsWith": str.endswith,
    "contains": operator.contains,
    "matches": matches,
    "_+_": operator.add,
    "_==_": operator.eq,
    "_!=_": operator.ne,
    "@in": lambda value, options: value in options,
}


def of_labels(node: Node, labels: Labels, texts: Texts = MappingProxyType({})) -> object:  # noqa: PLR0911  # one case a construct of the language
    """What a condition on labels and texts says of these; None if that is not known, because one is missing."""
    match node:
        case Label(name, test):
            return name in labels if test else labels.get(name)
        case Variable(name):
            return texts.get(name)
        case Constant(value):
            return value
        case Options(items):
            options = [of_labels(item, labels, texts) for item in items]
            return None if None in options else options
        case Call("!_", (one,)):
            said = of_labels(one, labels, texts)
            return None if said is None else not said
        case Call("_&&_", parts):
            return _junction([of_labels(part, labels, texts) for part in parts], decides=False)
        case Call("_||_", parts):
            return _junction([of_labels(part, labels, texts) for part in parts], decides=True)
        case Call("_?_:_", (condition, one, other)):
            chosen = of_labels(condition, labels, texts)
            return None if chosen is None else of_labels(one if chosen else other, labels, texts)
        case Call(function, arguments):
            values = [of_labels(argument, labels, texts) for argument in arguments]
            return None if None in values else _TEXT[function](*values)
    raise AssertionError(node)


def _junction(parts: Sequence[object], *, decides: bool) -> object:
    if decides in parts:
        return decides
    return None if None in parts else not decides


# ---------------------------------------------------------------- what is allowed


def check(node: Node, past: Mapping[str, Callable[[Call], object]]) -> None:
    """Refuse of a condition what CEL allows and rules have no use for. ``past`` checks calls of functions of the past.

    Raises:
        ExpressionError: it says what.
    """
    match node:
        case _ if is_about_labels(node):
            _check_labels(node)
        case Variable(_, kind) if kind == TRUTH:
            return
        case Call("_&&_" | "_||_" | "!_" | "_?_:_", arguments):
            for argument in arguments:
                check(argument, past)
        case Call("@in", (value, Options(items))):
            for each in (value, *items):
                _check_number(each, past, "in")
        case Call(function, arguments) if function in COMPARISONS:
            for argument in arguments:
                _check_number(argument, past, function.strip("_"))
        case _:
            raise _misplaced(node)


def _check_number(node: Node, past: Mapping[str, Callable[[Call], object]], by: str) -> None:
    match node:
        case Call(function, arguments) if function in past:
            past[function](node)
            for argument in arguments:
                if not isinstance(argument, Constant | Variable):
                    _check_number(argument, past, function)
        case Call("_?_:_", (condition, *branches)):
            check(condition, past)
            for branch in branches:
                _check_number(branch, past, by)
        case Call(function, arguments) if function in _ARITHMETIC:
            for argument in arguments:
                _check_number(argument, past, function.strip("_"))
        case Constant(float()):
            return
        case Variable(_, kind) if kind == NUMBER:
            return
        case Call(function) if not (function in COMPARISONS or function in _LOGIC or function in _TEXT):
            raise _misplaced(node)
        case _:
            raise ExpressionError(
                f"`{by}` takes numbers here; texts and labels go with each other only, by == != and in"
            )


def _check_labels(node: Node) -> None:
    """Raises ExpressionError: a list that nothing is looked for in, or a pattern that is none."""
    match node:
        case Call("@in", (value, Options(items))):
            arguments: tuple[Node, ...] = (value, *items)
        case Call("matches", (text, pattern)):
            if not isinstance(pattern, Constant):
                raise ExpressionError("matches: the regular expression must be written out")
            matches("", str(pattern.value))
            arguments = (text,)
        case Call(_, arguments):
            pass
        case Options():
            raise ExpressionError("a list has a place in a rule only after `in`")
        case _:
            return
    for argument in arguments:
        _check_labels(argument)


def _misplaced(node: Node) -> ExpressionError:
    name = node.function.strip("_@") if isinstance(node, Call) else "a list"
    return ExpressionError(f"{name!r} has no place in a rule")


def fields_of(node: Node) -> Iterator[Variable]:
    """The fields that it reads, wherever it does."""
    match node:
        case Variable():
            yield node
        case Call(_, arguments) | Options(arguments):
            for argument in arguments:
                yield from fields_of(argument)


def variables_of(node: Node) -> Iterator[str]:
    """Their names."""
    return (field.name for field in fields_of(node))


def labels_of(node: Node) -> Iterator[str]:
    """The labels that it asks for."""
    match node:
        case Label(name):
            yield name
        case Call(_, arguments) | Options(arguments):
            for argument in arguments:
                yield from labels_of(argument)


def calls_of(node: Node, functions: Mapping[str, object]) -> Iterator[Call]:
    """The calls of some functions, those within arguments first."""
    if isinstance(node, Call | Options):
        for argument in node.arguments if isinstance(node, Call) else node.items:
            yield from calls_of(argument, functions)
        if isinstance(node, Call) and node.function in functions:
            yield node


# ---------------------------------------------------------------- in words


@dataclass(frozen=True)
class Said:
    """A field that has decided by what it says, and by no comparison of numbers: a text or a truth value."""

    about: Variable


@dataclass(frozen=True)
class Reason:
    """A comparison that came out as it should not, or should again."""

    left: Node
    sign: str
    right: Node

    @cached_property
    def about(self) -> Node:
        """The side that is measured; where that is how unusual a number is, the number."""
        side = self.right if isinstance(self.left, Constant) else self.left
        return side.arguments[0] if _tells_of_its_argument(side) else side


def reasons(node: Node, came_out: bool, evaluation: Evaluation, row: int) -> Iterator[Reason | Said]:
    """What made it so, of one window; none if it is not so. Labels are no news, and say nothing here."""
    if came_out_of(node, evaluation, row) is not came_out:
        return
    if is_about_labels(node) or not isinstance(node, Call):
        known = (each for each in dict.fromkeys(fields_of(node)) if _is_known(each, evaluation, row))
        yield from map(Said, known)
        return
    match node.function, node.arguments:
        case "!_", (one,):
            yield from reasons(one, not came_out, evaluation, row)
        case (("_&&_" | "_||_"), parts):
            for part in parts:
                yield from reasons(part, came_out, evaluation, row)
        case "_?_:_", (condition, one, other):
            chosen = one if came_out_of(condition, evaluation, row) else other
            yield from reasons(chosen, came_out, evaluation, row)
        case "@in", (value, Options(items)):
            for item in items:
                yield from reasons(Call("_==_", (value, item)), came_out, evaluation, row)
        case function, (left, right) if function in COMPARISONS:
            _, sign, opposite = COMPARISONS[function]
            yield Reason(left, sign if came_out else opposite, right)


def _is_known(field: Variable, evaluation: Evaluation, row: int) -> bool:
    return field.kind != TEXT or evaluation.text(field.name)[row] is not None


def came_out_of(condition: Node, evaluation: Evaluation, row: int) -> bool | None:
    """What a condition says of one window; None: it does not say."""
    yes, no = (known[row] if np.ndim(known) else known for known in evaluation.truth(condition))
    return True if yes else False if no else None


def tell(reason: Reason | Said, evaluation: Evaluation, row: int) -> str:
    """``p99 of duration_s 512 ms > 300 ms``, ``state failed``, ``not drifted``."""
    if isinstance(reason, Said):
        return _tell_what_is_said(reason.about, evaluation, row)
    unit = quantity(reason.right if isinstance(reason.left, Constant) else reason.left)
    sides = (_side(each, unit, evaluation, row) for each in (reason.left, reason.right))
    return f" {reason.sign} ".join(sides)


def _tell_what_is_said(field: Variable, evaluation: Evaluation, row: int) -> str:
    if field.kind == TEXT:
        return f"{field.name} {evaluation.text(field.name)[row]}"
    return field.name if came_out_of(field, evaluation, row) else f"not {field.name}"


def value_at(node: Node, evaluation: Evaluation, row: int) -> float:
    """The number of one window; NaN if it is not known."""
    column = np.asarray(evaluation.number(node), dtype=float)
    return float(column[row] if column.ndim else column)


def _side(node: Node, unit: str, evaluation: Evaluation, row: int) -> str:
    value = shown(unit, value_at(node, evaluation, row))
    if _tells_of_its_argument(node):
        about = node.arguments[0]
        usual = _usual(node, quantity(about), evaluation, row)
        return f"{node.function}({_side(about, quantity(about), evaluation, row)}{usual}) {value}"
    return value if isinstance(node, Constant) else f"{_named(node)} {value}"


def _usual(node: Call, unit: str, evaluation: Evaluation, row: int) -> str:
    """``, usual 90/s to 110/s``; nothing while that is not known."""
    lower, upper = (value_at(each, evaluation, row) for each in told_with(node))
    ends = (shown(unit, lower) if isfinite(lower) else "", shown(unit, upper) if isfinite(upper) else "")
    match ends:
        case ("", ""):
            return ""
        case (low, ""):
            told = f"{low} or more"
        case ("", high):
            told = f"up to {high}"
        case (low, high):
            told = f"{low} to {high}"
    within = lower <= value_at(node.arguments[0], evaluation, row) <= upper
    by_hour = within and value_at(node, evaluation, row) > 1
    return f", usual {told}{', but not for an hour' * by_hour}"


def _tells_of_its_argument(node: Node) -> TypeGuard[Call]:
    """A score without a unit, of which nobody learns how large the number is."""
    return isinstance(node, Call) and node.function == "anomaly"


def _named(node: Node) -> str:
    match node:
        case Variable(name):
            return words_of(name)
        case Constant(value):
            return f"{value:g}" if isinstance(value, float) else str(value)
        case Call(function, (one, other)) if function in ("_+_", "_-_", "_*_", "_/_"):
            return f"({_named(one)} {function.strip('_')} {_named(other)})"
        case Call("-_", (one,)):
            return f"-{_named(one)}"
        case Call(function, arguments):
            return f"{function}({', '.join(map(_named, arguments))})"
    return "…"


def quantity(node: Node) -> str:
    """The name that tells the unit, if there is one."""
    match node:
        case Variable(name):
            return quantity_of(name)
        case Call(function, (one, *_)) if function in _KEEP_UNITS:
            return quantity(one)
        case Call("time_until", _):
            return UNTIL
        case Call("quantile", arguments):
            return quantity(arguments[0]) if len(arguments) > 2 else "duration_s"
    return ""


_KEEP_UNITS: Final = (
    "avg_over", "min_over", "max_over", "sum_over", "delta", "forecast", "abs", "min", "max", "_+_", "_-_", "-_",
)  # fmt: skip
