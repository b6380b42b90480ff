"""PromQL read into a tree: all of its expressions, strictly; what they mean to us is `prometheus`'s business.

Follows the grammar of Prometheus 2 and 3 (promql/parser): the tree keeps every modifier, so that whoever translates it
can refuse what it does not know, and nothing is passed over.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, TypeAlias

MAX_CHARS: Final = 20_000
MAX_DEPTH: Final = 60
AGGREGATIONS: Final = (
    "sum", "avg", "min", "max", "count", "stddev", "stdvar", "topk", "bottomk", "quantile", "count_values", "group",
    "limitk", "limit_ratio",
)  # fmt: skip
_WITH_PARAMETER: Final = ("topk", "bottomk", "quantile", "count_values", "limitk", "limit_ratio")
COMPARISONS: Final = ("==", "!=", "<=", "<", ">=", ">")
_BINDING: Final[Mapping[str, int]] = {
    "or": 1, "and": 2, "unless": 2, **dict.fromkeys(COMPARISONS, 3), "+": 4, "-": 4, "*": 5, "/": 5, "%": 5, "atan2": 5,
    "^": 7,
}  # fmt: skip
_UNARY: Final = 6


class PromqlError(ValueError):
    """It is no PromQL; says where and why."""


@dataclass(frozen=True)
class LabelMatcher:
    label: str
    operator: str
    value: str

    def __str__(self) -> str:
        return f'{self.label}{self.operator}"{self.value}"'


@dataclass(frozen=True)
class Number:
    value: float


@dataclass(frozen=True)
class Text:
    value: str


@dataclass(frozen=True)
class Selector:
    """``metric{label="value"}``, and ``[5m]`` behind it if there is a range."""

    metric: str
    matchers: tuple[LabelMatcher, ...] = ()
    range_s: float | None = None
    shifted: str = ""
    """``offset`` or ``@``, which look elsewhere than at now."""


@dataclass(frozen=True)
class Subquery:
    of: Expression


@dataclass(frozen=True)
class Function:
    name: str
    arguments: tuple[Expression, ...]


@dataclass(frozen=True)
class Aggregation:
    """``sum by (a) (…)``. ``by`` None: all labels but those in ``without``; neither: into one."""

    name: str
    of: Expression
    parameter: Expression | None = None
    by: tuple[str, ...] | None = None
    without: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Matching:
    """How the series of two sides find each other."""

    on: tuple[str, ...] | None = None
    ignoring: tuple[str, ...] = ()
    group: str = ""
    """``group_left`` or ``group_right``."""


@dataclass(frozen=True)
class Binary:
    operator: str
    left: Expression
    right: Expression
    returns_bool: bool = False
    matching: Matching = field(default_factory=Matching)


@dataclass(frozen=True)
class Negative:
    of: Expression


Expression: TypeAlias = Number | Text | Selector | Subquery | Function | Aggregation | Binary | Negative


def parse(text: str) -> Expression:
    """The tree of an expression.

    Raises:
        PromqlError: it is none.
    """
    if len(text) > MAX_CHARS:
        raise PromqlError(f"it is longer than {MAX_CHARS} characters")
    reader = _Reader(list(_tokens(text)))
    tree = reader.expression(0)
    reader.end()
    return tree


# ---------------------------------------------------------------- tokens

_UNITS_S: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0, "w": 604_800.0, "y": 31_536_000.0}
_DURATION: Final = r"(?:\d+y)?(?:\d+w)?(?:\d+d)?(?:\d+h)?(?:\d+m(?!s))?(?:\d+s)?(?:\d+ms)?"
_TOKEN: Final = re.compile(
    r"""\s+|\#[^\n]*"""
    r"""|(?P<duration>\d+(?:ms|[smhdwy])(?:\d+(?:ms|[smhdwy]))*)(?![\w.])"""
    r"""|(?P<number>0[xX][0-9a-fA-F]+|(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)(?![\w.])"""
    r"""|(?P<name>[A-Za-z_][A-Za-z0-9_:]*|:[A-Za-z_][A-Za-z0-9_:]*)"""
    r"""|(?P<text>"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*'|`[^`]*`)"""
    r"""|(?P<operator>==|!=|=~|!~|<=|>=|[-+*/%^<>=(){}\[\],@:])""",
    re.DOTALL,
)


@dataclass(frozen=True)
class _Token:
    kind: str
    text: str
    at: int


def _tokens(text: str) -> Iterator[_Token]:
    at = 0
    while at < len(text):
        found = _TOKEN.match(text, at)
        if not found:
            raise PromqlError(f"column {at + 1}: {text[at : at + 10]!r} is not understood")
        if found.lastgroup:
            yield _Token(found.lastgroup, found[0], at)
        at = found.end()
    yield _Token("end", "", at)


def duration_s(text: str) -> float:
    """Of ``1h30m``, as Prometheus writes it.

    Raises:
        PromqlError: it is none.
    """
    if not text or not (re.fullmatch(_DURATION, text) or text == "0"):
        raise PromqlError(f"{text[:40]!r} is no duration such as 5m or 1h30m")
    return sum(float(number) * _UNITS_S[unit] for number, unit in re.findall(r"(\d+)(ms|[smhdwy])", text))


_ESCAPES: Final = {
    "a": "\a", "b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v", "\\": "\\", '"': '"', "'": "'",
}  # fmt: skip


def _unquoted(token: _Token) -> str:
    if token.text.startswith("`"):
        return token.text[1:-1]

    def plain(found: re.Match[str]) -> str:
        if found[1] not in _ESCAPES:
            raise PromqlError(f"column {token.at + 1}: the escape {found[0]!r} is not understood")
        return _ESCAPES[found[1]]

    return re.sub(r"\\(.)", plain, token.text[1:-1], flags=re.DOTALL)


# ---------------------------------------------------------------- the tree


class _Reader:
    """Reads tokens by precedence."""

    def __init__(self, tokens: Sequence[_Token]) -> None:
        self._tokens = tokens
        self._at = self._depth = 0

    # -- tokens

    @property
    def _next(self) -> _Token:
        return self._tokens[self._at]

    def _is(self, *texts: str) -> bool:
        return self._next.kind in ("name", "operator") and self._word in texts

    @property
    def _word(self) -> str:
        """Keywords are read in any case."""
        return self._next.text.lower() if self._next.kind == "name" else self._next.text

    def _take(self) -> _Token:
        token = self._next
        self._at += token.kind != "end"
        return token

    def _accept(self, *texts: str) -> bool:
        if self._is(*texts):
            self._take()
            return True
        return False

    def _expect(self, text: str) -> None:
        if not self._accept(text):
            raise self._unexpected(f"{text!r} is wanted")

    def _unexpected(self, wanted: str) -> PromqlError:
        found = repr(self._next.text) if self._next.kind != "end" else "the end"
        return PromqlError(f"column {self._next.at + 1}: {wanted}, not {found}")

    def end(self) -> None:
        if self._next.kind != "end":
            raise self._unexpected("an operator or the end is wanted")

    # -- expressions

    def expression(self, binding: int) -> Expression:
        """What binds at least so tightly."""
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise PromqlError(f"it is nested more than {MAX_DEPTH} deep")
        left = self._unary()
        while self._next.kind in ("name", "operator") and (own := _BINDING.get(self._word, -1)) >= max(binding, 1):
            left = self._binary(left, own)
        self._depth -= 1
        return left

    def _binary(self, left: Expression, own: int) -> Binary:
        operator = self._take().text.lower()
        returns_bool = operator in COMPARISONS and self._accept("bool")
        matching = self._matching()
        right = self.expression(own if operator == "^" else own + 1)  # ^ alone associates to the right
        return Binary(operator, left, right, returns_bool, matching)

    def _matching(self) -> Matching:
        if not self._is("on", "ignoring"):
            return Matching()
        is_on = self._take().text.lower() == "on"
        labels = self._labels()
        group = self._take().text.lower() if self._is("group_left", "group_right") else ""
        if group and self._is("("):
            self._labels()
        return Matching(labels, (), group) if is_on else Matching(None, labels, group)

    def _unary(self) -> Expression:
        if self._accept("+"):
            return self.expression(_UNARY)
        if self._accept("-"):
            of = self.expression(_UNARY)
            return Number(-of.value) if isinstance(of, Number) else Negative(of)
        return self._with_range(self._atom())

    def _atom(self) -> Expression:
        token = self._next
        if self._accept("("):
            inner = self.expression(0)
            self._expect(")")
            return inner
        if token.kind == "number":
            self._take()
            return Number(float(int(token.text, 16)) if token.text[:2].lower() == "0x" else float(token.text))
        if token.kind == "duration":  # Prometheus 3 reads it as seconds
            self._take()
            return Number(duration_s(token.text))
        if token.kind == "text":
            self._take()
            return Text(_unquoted(token))
        if token.kind == "name":
            return self._named()
        if self._is("{"):
            return self._selector("")
        raise self._unexpected("a metric, a number or a function is wanted")

    def _named(self) -> Expression:
        token = self._take()
        word = token.text.lower()
        if word in AGGREGATIONS and self._is("(", "by", "without"):
            return self._aggregation(word)
        if self._is("("):
            return Function(token.text, self._arguments())
        if word in ("inf", "nan"):
            return Number(math.inf if word == "inf" else math.nan)
        if word in _BINDING or word in ("by", "without", "on", "ignoring", "bool", "offset"):
            raise PromqlError(f"column {token.at + 1}: {token.text!r} stands where a metric is wanted")
        return self._selector(token.text)

    def _arguments(self) -> tuple[Expression, ...]:
        self._expect("(")
        found: list[Expression] = []
        while not self._is(")"):
            found.append(self.expression(0))
            if not self._accept(","):
                break
        self._expect(")")
        return tuple(found)

    def _aggregation(self, name: str) -> Expression:
        grouping = self._grouping()
        arguments = self._arguments()
        grouping = grouping or self._grouping()
        if len(arguments) != 1 + (name in _WITH_PARAMETER):
            raise PromqlError(f"{name} takes {1 + (name in _WITH_PARAMETER)} arguments, not {len(arguments)}")
        parameter = arguments[0] if len(arguments) > 1 else None
        kind, labels = grouping or ("by", ())
        by, without = (labels, None) if kind == "by" else (None, labels)
        return Aggregation(name, arguments[-1], parameter, by, without)

    def _grouping(self) -> tuple[str, tuple[str, ...]] | None:
        if not self._is("by", "without"):
            return None
        return self._take().text.lower(), self._labels()

    def _labels(self) -> tuple[str, ...]:
        self._expect("(")
        found: list[str] = []
        while self._next.kind == "name":
            found.append(self._take().text)
            if not self._accept(","):
                break
        self._expect(")")
        return tuple(found)

    # -- selectors

    def _selector(self, metric: str) -> Selector:
        matchers = self._matchers() if self._is("{") else ()
        named = [each for each in matchers if each.label == "__name__"]
        if not metric and len(named) == 1 and named[0].operator == "=":
            metric, matchers = named[0].value, tuple(each for each in matchers if each.label != "__name__")
        elif named or not metric:
            raise PromqlError("a selector has to name its metric")
        return Selector(metric, matchers)

    def _matchers(self) -> tuple[LabelMatcher, ...]:
        self._expect("{")
        found: list[LabelMatcher] = []
        while not self._is("}"):
            found.append(self._matcher())
            if not self._accept(","):
                break
        self._expect("}")
        return tuple(found)

    def _matcher(self) -> LabelMatcher:
        token = self._take()
        if token.kind not in ("name", "text"):
            raise PromqlError(f"column {token.at + 1}: a label is wanted, not {token.text!r}")
        label = token.text if token.kind == "name" else _unquoted(token)
        if token.kind == "text" and self._is(",", "}"):  # Prometheus 3: {"metric.name", …}
            return LabelMatcher("__name__", "=", label)
        if not self._is("=", "!=", "=~", "!~"):
            raise self._unexpected("=, !=, =~ or !~ is wanted")
        operator, value = self._take().text, self._take()
        if value.kind != "text":
            raise PromqlError(f"column {value.at + 1}: a text in quotes is wanted, not {value.text!r}")
        return LabelMatcher(label, operator, _unquoted(value))

    def _with_range(self, of: Expression) -> Expression:
        while self._is("[", "offset", "@"):
            of = self._ranged(of) if self._is("[") else self._shifted(of)
        return of

    def _ranged(self, of: Expression) -> Expression:
        self._expect("[")
        range_s = self._span()
        if self._accept(":"):
            if not self._is("]"):
                self._span()
            self._expect("]")
            return Subquery(of)
        self._expect("]")
        if not isinstance(of, Selector) or of.range_s is not None or of.shifted:
            raise PromqlError("a range such as [5m] belongs right behind a metric")
        return Selector(of.metric, of.matchers, range_s)

    def _span(self) -> float:
        token = self._take()
        if token.kind == "duration" and (found := duration_s(token.text)):
            return found
        raise PromqlError(f"column {token.at + 1}: a duration such as 5m is wanted, not {token.text!r}")

    def _shifted(self, of: Expression) -> Expression:
        word = self._take().text.lower()
        self._accept("-")
        token = self._take()
        if token.kind not in ("duration", "number", "name"):
            raise PromqlError(f"column {token.at + 1}: a time is wanted behind {word}, not {token.text!r}")
        if token.kind == "name":  # @ start()
            self._expect("(")
            self._expect(")")
        if isinstance(of, Subquery):
            return of
        if not isinstance(of, Selector):
            raise PromqlError(f"{word} belongs behind a metric")
        return Selector(of.metric, of.matchers, of.range_s, word)
