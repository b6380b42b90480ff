"""Expressions over columns, held against the evaluator of cel-expr-python, window by window."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, Final, NamedTuple

import numpy as np
import pytest
from cel_expr_python import cel
from hypothesis import given, settings
from hypothesis import strategies as st

from streammon_processors.rules.conditions.cel import (
    DISTRIBUTION,
    MAX_LENGTH,
    NUMBER,
    TEXT,
    TRUTH,
    Call,
    Constant,
    ExpressionError,
    Node,
    Variable,
    parse,
)
from streammon_processors.rules.conditions.expression import (
    MATHS,
    Evaluation,
    Floats,
    Reason,
    Said,
    Truth,
    both,
    calls_of,
    check,
    negated,
    of_labels,
    reasons,
    tell,
    value_at,
    variables_of,
)
from streammon_processors.rules.conditions.past import FUNCTIONS, NAMES, understand
from streammon_processors.rules.conditions.words import quantity_of, shown, words_of

FIELDS: Final = ("a", "b", "c.d")
LABELS: Final = ("x", "y")
KINDS: Final = {
    **dict.fromkeys((*FIELDS, "duration_s.p99", "error_rate", "count", "output_tokens.sum"), NUMBER),
    "duration_s": DISTRIBUTION,
    "said": TEXT,
    "flag": TRUTH,
}


class Seen(NamedTuple):
    """A window or result: the numbers and labels that it has, and what else it says."""

    numbers: Mapping[str, float]
    labels: Mapping[str, str]
    said: str | None = None
    flag: bool | None = None


class Windows:
    """Some windows as columns (`expression.Columns`)."""

    def __init__(self, windows: Sequence[Seen], past: Mapping[str, float] | None = None) -> None:
        self._windows, self._past = windows, past or {}

    def number(self, name: str) -> Floats:
        if name == "flag":
            return np.array([each.flag for each in self._windows], dtype=float)
        return np.array([each.numbers.get(name, np.nan) for each in self._windows])

    def text(self, name: str) -> Sequence[str | None]:
        return [each.said for each in self._windows]

    def of_labels(self, predicate: Node) -> Truth:
        said = [of_labels(predicate, each.labels, {"said": each.said}) for each in self._windows]
        yes, no = ([each is known for each in said] for known in (True, False))
        return Truth(np.array(yes, dtype=bool), np.array(no, dtype=bool))

    def of_past(self, call: Call) -> Floats:
        return np.full(len(self._windows), self._past[call.function])


def tree(text: str) -> Node:
    """A condition that is allowed."""
    node, kind = parse(text, KINDS, (*MATHS, *FUNCTIONS))
    if kind != TRUTH:
        raise ExpressionError(f"it gives a {kind}")
    check(node, dict.fromkeys(NAMES, understand))
    return node


def judged(node: Node, windows: Sequence[Seen]) -> list[bool | None]:
    truth = Evaluation(Windows(windows)).truth(node)
    yes, no = (np.broadcast_to(each, len(windows)).tolist() for each in truth)
    assert not any(a and b for a, b in zip(yes, no, strict=True))
    return [True if a else False if b else None for a, b in zip(yes, no, strict=True)]


# ---------------------------------------------------------------- the oracle


def _defined(value: float) -> float:
    """What is no number is an error: the one thing that the oracle has to be told."""
    if math.isnan(value):
        raise ValueError("not a number")
    return value


@cache
def oracle() -> Any:
    """CEL with the names of the tests; ``defined`` marks where our arithmetic would not know."""
    double = cel.Type.DOUBLE
    impls: dict[str, tuple[Callable[..., float], int]] = {
        "defined": (_defined, 1),
        "abs": (abs, 1),
        "min": (min, 2),
        "max": (max, 2),
    }
    return cel.NewEnv(
        variables=dict.fromkeys(FIELDS, double)
        | {"labels": cel.Type.Map(cel.Type.STRING, cel.Type.STRING), "said": cel.Type.STRING, "flag": cel.Type.BOOL},
        functions=[
            cel.FunctionDecl(name, [cel.Overload(f"{name}_of", double, [double] * arity, impl=impl)])
            for name, (impl, arity) in impls.items()
        ],
    )


def by_cel(text: str, window: Seen) -> bool | None:
    """What CEL says of a window; None for an error, of which the text must say where it is one."""
    fields = {name: value for name, value in (("said", window.said), ("flag", window.flag)) if value is not None}
    value = oracle().compile(text).eval(data={**window.numbers, **fields, "labels": dict(window.labels)})
    said = value.value()
    assert isinstance(said, bool) or value.type().name() == "ERROR"
    return said if isinstance(said, bool) else None


class Written(NamedTuple):
    """The same expression for us and for the oracle."""

    ours: str
    cel: str


def _written(form: str, *parts: Written, defined: bool = False) -> Written:
    theirs = form.format(*(part.cel for part in parts))
    return Written(form.format(*(part.ours for part in parts)), f"defined{theirs}" if defined else theirs)


def _constant(value: float) -> Written:
    ours = f"{value:g}"
    return Written(ours, ours if "." in ours or "e" in ours else f"{ours}.0")


NUMBERS: Final = st.sampled_from([0.0, 1.0, 2.0, -1.0, 0.5, 3.0, -2.5, 1e3])
leaves: Final = st.sampled_from(FIELDS).map(lambda name: Written(name, name)) | NUMBERS.map(_constant)
texts: Final = st.sampled_from(["labels.x", 'labels["y"]', '"u"', '"v"', '""', "(labels.x + labels.y)", "said"]).map(
    lambda text: Written(text, text)
)
SIGNS: Final = st.sampled_from([">", ">=", "<", "<=", "==", "!="])


def _calculations(inner: st.SearchStrategy[Written]) -> st.SearchStrategy[Written]:
    two = st.tuples(inner, inner)
    return st.one_of(
        st.tuples(st.sampled_from("+-*/"), two).map(
            lambda each: _written(f"({{0}} {each[0]} {{1}})", *each[1], defined=True)
        ),
        st.tuples(st.sampled_from(["min", "max"]), two).map(
            lambda each: _written(f"{each[0]}({{0}}, {{1}})", *each[1])
        ),
        inner.map(lambda each: _written("abs({0})", each)),
        inner.map(lambda each: _written("(-({0}))", each)),
        st.tuples(conditions_on(inner), two).map(lambda each: _written("({0} ? {1} : {2})", each[0], *each[1])),
    )


def conditions_on(numbers: st.SearchStrategy[Written]) -> st.SearchStrategy[Written]:
    """Comparisons, and conditions on labels."""
    few = st.lists(numbers, max_size=3)
    return st.one_of(
        st.tuples(SIGNS, numbers, numbers).map(lambda each: _written(f"({{0}} {each[0]} {{1}})", *each[1:])),
        st.tuples(numbers, few).map(lambda each: _listed(each[0], each[1])),
        st.tuples(st.sampled_from(["==", "!="]), texts, texts).map(
            lambda each: _written(f"({{0}} {each[0]} {{1}})", *each[1:])
        ),
        st.tuples(st.sampled_from(["startsWith", "endsWith", "contains"]), texts, texts).map(
            lambda each: _written(f"{{0}}.{each[0]}({{1}})", *each[1:])
        ),
        st.tuples(texts, st.lists(texts, max_size=3)).map(lambda each: _listed(each[0], each[1])),
        st.sampled_from(
            ["true", "false", "has(labels.x)", '"y" in labels', 'labels.x.matches("^u+$")', 'labels.y.matches("v")']
        ).map(lambda text: Written(text, text)),
        st.sampled_from(
            ["flag", "(flag == true)", "(false == flag)", "(flag != true)", "(('u' == said) != false)"]
        ).map(lambda text: Written(text, text)),
    )


def _listed(value: Written, items: Sequence[Written]) -> Written:
    places = ", ".join(f"{{{place}}}" for place in range(1, len(items) + 1))
    return _written(f"({{0}} in [{places}])", value, *items)


def _logic(inner: st.SearchStrategy[Written]) -> st.SearchStrategy[Written]:
    return st.one_of(
        st.tuples(st.sampled_from(["&&", "||"]), inner, inner).map(
            lambda each: _written(f"({{0}} {each[0]} {{1}})", *each[1:])
        ),
        inner.map(lambda each: _written("!({0})", each)),
        st.tuples(inner, inner, inner).map(lambda each: _written("({0} ? {1} : {2})", *each)),
    )


calculations: Final = st.recursive(leaves, _calculations, max_leaves=5)
conditions: Final = st.recursive(conditions_on(calculations), _logic, max_leaves=6)
seen: Final = st.builds(
    Seen,
    numbers=st.dictionaries(st.sampled_from(FIELDS), NUMBERS),
    labels=st.dictionaries(st.sampled_from(LABELS), st.sampled_from(["", "u", "uu", "v", "uv"])),
    said=st.sampled_from([None, "", "u", "v"]),
    flag=st.sampled_from([None, True, False]),
)


@settings(max_examples=1000, deadline=None)
@given(conditions, st.lists(seen, min_size=1, max_size=6))
def test_columns_say_of_each_window_what_cel_says_and_do_not_know_where_it_errs(
    written: Written, windows: list[Seen]
) -> None:
    assert judged(tree(written.ours), windows) == [by_cel(written.cel, each) for each in windows]


@settings(deadline=None)
@given(conditions, st.lists(seen, min_size=1, max_size=6))
def test_negated_is_the_other_way_round_and_what_is_not_known_stays_so(written: Written, windows: list[Seen]) -> None:
    node = tree(written.ours)
    turned = [None if each is None else not each for each in judged(node, windows)]
    assert judged(negated(node), windows) == turned
    assert judged(negated(negated(node)), windows) == judged(node, windows)


@settings(deadline=None)
@given(conditions, conditions, st.lists(seen, min_size=1, max_size=4))
def test_both_is_true_where_both_are(one: Written, other: Written, windows: list[Seen]) -> None:
    found = judged(both(tree(one.ours), tree(other.ours)), windows)
    assert found == [by_cel(f"{one.cel} && {other.cel}", each) for each in windows]


# ---------------------------------------------------------------- what is not known


EMPTY, FULL = Seen({}, {}), Seen({"a": 2.0, "b": 0.0}, {"x": "u"}, "u", flag=True)


@pytest.mark.parametrize(
    ("text", "of_empty", "of_full"),
    [
        ("a > 1", None, True),
        ("a == a", None, True),
        ("a != a", None, False),
        ("a > 1 || true", True, True),
        ("a > 1 && false", False, False),
        ("a > 1 || b > 1", None, True),
        ("!(a > 1)", None, False),
        ("a > 1 ? true : true", None, True),
        ("a > 1 ? labels.x == 'u' : b > 1", None, True),
        ("a in [1, 2]", None, True),
        ("2 in [2, a]", None, True),
        ("a in []", None, False),
        ("1 in [1, c.d]", None, None),
        ("labels.x in ['u', labels.y]", None, None),
        ("labels.x == 'u'", None, True),
        ("labels.x != 'u'", None, False),
        ("has(labels.x)", False, True),
        ("'x' in labels", False, True),
        ("!has(labels.x) || labels.x == 'u'", True, True),
        ("a / b > 1e300", None, True),
        ("-a / b < -1e300", None, True),
        ("b / b == 1", None, None),
        ("min(a, b) == 0", None, True),
        ("max(a, c.d) > 1", None, None),
        ("abs(b - a) == 2", None, True),
        ("(has(labels.x) ? a : 5) == 5", True, False),
        ("2 > 1", True, True),
        ("1 in [2, 3]", False, False),
        ("flag", None, True),
        ("!flag || a > 1", None, True),
        ("flag && false", False, False),
        ("flag == false", None, False),
        ("said in ['u', 'v']", None, True),
        ("said == labels.x", None, True),
        ("said != 'u' || has(labels.x)", None, True),
    ],
)
def test_what_is_missing_decides_nothing(text: str, of_empty: bool | None, of_full: bool | None) -> None:
    assert judged(tree(text), [EMPTY, FULL]) == [of_empty, of_full]


def test_a_quotient_of_nothing_by_nothing_is_not_known_where_cel_has_a_number_that_is_none() -> None:
    """The difference to CEL besides numbers being doubles: there NaN compares as false, or, with !=, as true."""
    zero = Seen({"a": 0.0}, {})
    assert by_cel("a / a != 1.0", zero) is True
    assert judged(tree("a / a != 1"), [zero]) == [None]


def test_whole_numbers_are_doubles_so_that_they_divide_with_a_rest() -> None:
    assert judged(tree("7 / 2 == 3.5"), [EMPTY]) == [True]


def test_no_windows_are_evaluated_as_well() -> None:
    assert judged(tree("a > 1 && labels.x == 'u' || 2 > 1"), []) == []


def test_a_label_takes_no_time_to_match_whatever_it_is() -> None:
    begun = time.process_time()
    assert of_labels(tree('labels.x.matches("^(u+)+$")'), {"x": "u" * 5000 + "v"}) is False
    assert time.process_time() - begun < 1.0


# ---------------------------------------------------------------- what is refused

NO_NUMBER = "takes numbers here; texts and labels go with each other only, by == != and in"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("foo > 1", "column 1: 'foo' is not known here"),
        ("count > 10 && count > 20 && fo.o > 1", "column 32: 'fo.o' is not known here"),
        ("count > 1 &&\n  count > 20 && foo > 1", "line 2, column 17: 'foo' is not known here"),
        ("count > 1 &&", "column 13: Syntax error: mismatched input '<EOF>'"),
        ("", "column 1: Syntax error: mismatched input '<EOF>'"),
        ("count % 2 == 1", "column 7: found no matching overload for '_%_' applied to '(number, number)'"),
        ("count > 1u", "column 7: found no matching overload for '_>_' applied to '(number, uint)'"),
        ("size(labels) > 1", "column 14: found no matching overload for '_>_' applied to '(int, number)'"),
        ("double(labels.x) > 1", "'double' has no place in a rule"),
        ("double(int(count) / int(2)) > 1", "'double' has no place in a rule"),
        ("string(count) == '1'", "'string' has no place in a rule"),
        ("min(1, 2, 3) > 1", "'min'"),
        ("duration_s > 1", "column 12: found no matching overload for '_>_' applied to '(distribution, number)'"),
        ("duration_s == duration_s", f"`==` {NO_NUMBER}"),
        ("duration_s in [duration_s]", f"`in` {NO_NUMBER}"),
        ("labels == labels", f"`==` {NO_NUMBER}"),
        ("labels.x > 'a'", f"`>` {NO_NUMBER}"),
        ("(count > 1) == (count > 2)", f"`==` {NO_NUMBER}"),
        ("(count > 1) in [true]", f"`in` {NO_NUMBER}"),
        ("labels.x == (count > 1 ? 'a' : 'b')", f"`==` {NO_NUMBER}"),
        ("count > 1 && [1] == [1]", f"`==` {NO_NUMBER}"),
        ("[labels.x] == ['a']", "a list has a place in a rule only after `in`"),
        ("[labels.x] in [['a']]", "a list has a place in a rule only after `in`"),
        ("[count] in [[1]]", "`in` takes numbers here"),
        ("labels.x in labels", "'in' has no place in a rule"),
        ("labels[labels.x] == 'a'", "'[_]' has no place in a rule"),
        ("(count > 1 ? labels.x : 'a').startsWith('b')", "'startsWith' has no place in a rule"),
        ("labels.x.matches('(')", "'(' is no regular expression: missing ): ("),
        ("labels.x.matches('(?=a)')", "'(?=a)' is no regular expression: invalid perl operator: (?="),
        ("labels.x.matches(labels.y)", "matches: the regular expression must be written out"),
        ("labels.x.y == 'a'", "column 10: expression of type 'text' cannot be the operand of a select operation"),
        ("[1, 2].exists(x, x > 1)", "have no place in a rule"),
        ("{'a': 1} == {}", "have no place in a rule"),
        ("null == null", "only numbers, texts, true and false can stand in a rule"),
        ("(" * 100 + "true" + ")" * 100, "it is nested too deep; 32 levels"),
        ("1" + " + 1" * 100 + " > 1", "it is nested too deep; 32 levels, or 32 sums in a row, are read"),
        ("count > 1" + " " * MAX_LENGTH, f"it has {MAX_LENGTH + 9} characters; at most {MAX_LENGTH} are read"),
        ("avg_over(avg_over(count, '1m'), '1m') > 1", "avg_over: its argument may not hold a function of the past"),
        ("avg_over(count, labels.x) > 1", 'avg_over: how far to look back must be written out, as "10m"'),
        (
            "avg_over(count, 'soon') > 1",
            "avg_over: 'soon' is no duration; write a number of seconds, or a text such as",
        ),
        ("avg_over(count, '0s') > 1", "avg_over: it looks back on nothing"),
        ("quantile(1.5, '1m') > 1", "quantile(1.5): a quantile is from 0 to 1"),
        ("quantile(count > 1 ? 0.5 : 0.9, '1m') > 1", "quantile: a number that is written out is wanted here"),
        ("quantile(count, '1m') > 1", "quantile: a number that is written out is wanted here"),
        ("burn_rate(1, '1m') > 1", "burn_rate: the objective is a fraction such as 0.999, not 1"),
        ("share_above(duration_s, count) > 1", "share_above: a number that is written out is wanted here"),
        ("avg_over(count > 1 ? 1 : [1] == [1] ? 2 : 3, '1m') > 1", f"`==` {NO_NUMBER}"),
    ],
)
def test_what_has_no_place_in_a_rule_is_refused_and_said(text: str, said: str) -> None:
    with pytest.raises(ExpressionError) as refusal:
        tree(text)
    assert said in str(refusal.value)


@pytest.mark.parametrize(("text", "kind"), [("count", NUMBER), ("labels.x", TEXT), ("1 + 1", NUMBER), ("true", TRUTH)])
def test_what_an_expression_gives_is_known(text: str, kind: str) -> None:
    assert parse(text, KINDS, MATHS)[1] == kind


PIECES: Final = st.sampled_from(
    [
        "a", "count", "duration_s", "labels", "labels.x", 'labels["x"]', "1", "2.5", "true", '"u"', "'", '"', "[", "]",
        "(", ")", "{", "}", ",", ":", "?", "&&", "||", "!", "-", "+", "*", "/", "%", ">", "==", "!=", " in ", ".", "\n",
        "abs(", "min(", "avg_over(", "share_above(", "quantile(", "burn_rate(", "has(", ".matches(", ".exists(x, ",
        "size(", "dyn(", "null", "//", "0x1", "1u", "1e999", "\\", "é", "🙂", "'1m'", "`a`",
    ]
)  # fmt: skip


@settings(max_examples=1500, deadline=None)
@given(st.lists(PIECES, max_size=14).map("".join) | st.text(max_size=40))
def test_any_text_is_an_expression_that_can_be_evaluated_or_is_refused(text: str) -> None:
    try:
        node = tree(text)
    except ExpressionError:
        return
    past = dict.fromkeys(NAMES, 1.0)
    evaluation = Evaluation(Windows([EMPTY, FULL], past))
    truth = evaluation.truth(node)
    for row in range(2):
        for came_out in (True, False):
            assert all(tell(each, evaluation, row) for each in reasons(node, came_out, evaluation, row))
    assert {np.broadcast_to(each, 2).shape for each in truth} == {(2,)}


JOINED: Final[Mapping[str, Callable[[int], str]]] = {
    "or": lambda n: " || ".join(["a > 1"] * n),
    "sum": lambda n: " + ".join(["a"] * n) + " > 1",
    "parentheses": lambda n: "(" * n + "a > 1" + ")" * n,
    "negations": lambda n: "!(" * n + "a > 1" + ")" * n,
    "minus": lambda n: "-(" * n + "a" + ")" * n + " > 1",
    "choice": lambda n: "a > 1 ? true : " * n + "false",
    "calls": lambda n: "abs(" * n + "a" + ")" * n + " > 1",
    "list": lambda n: "a in [" + ", ".join(["1"] * n) + "]",
    "text": lambda n: "labels.x == '" + "u" * n + "'",
    "lists": lambda n: "[" * n + "]" * n + " == []",
    "comparisons": lambda n: "a > 1 == " * n + "true",
    "quotes": lambda n: '"""' + '"' * n,
}


@pytest.mark.parametrize("kind", JOINED)
def test_an_expression_of_any_size_is_evaluated_or_refused_in_no_time(kind: str) -> None:
    begun = time.process_time()
    for n in (5, 15, 25, 31, 50, 100, 340, 1000, 2000, 10_000):
        try:
            node = tree(JOINED[kind](n))
        except ExpressionError:
            continue
        assert len(judged(node, [FULL])) == 1
        [*_] = reasons(node, True, Evaluation(Windows([FULL])), 0)
    assert time.process_time() - begun < 5.0


words: Final = st.sampled_from(["count > 10", "a < 2.5", "labels.x == '10'", "b in [1, 2]", "3 > a"])


@given(st.lists(words, max_size=5), st.lists(st.sampled_from([" ", "\n", "  \n "]), min_size=5, max_size=5))
def test_an_error_names_the_line_and_column_that_a_person_wrote(parts: list[str], gaps: list[str]) -> None:
    text = "".join(f"{part} &&{gap}" for part, gap in zip(parts, gaps, strict=False)) + "nowhere > 1 && a > 5"
    before = text[: text.index("nowhere")]
    line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
    with pytest.raises(ExpressionError) as refusal:
        tree(text)
    place = f"column {column}: " if line == 1 else f"line {line}, column {column}: "
    assert str(refusal.value) == f"{place}'nowhere' is not known here"


# ---------------------------------------------------------------- trees


def test_the_fields_and_calls_of_a_tree_are_found_wherever_they_are() -> None:
    node = tree("a in [b, avg_over(min(c.d, 1), '1m')] || !(max(sum_over(a, '2m'), 3) > 1 ? a > 1 : b > 1)")
    assert set(variables_of(node)) == {"a", "b", "c.d"}
    assert [each.function for each in calls_of(node, dict.fromkeys(NAMES))] == ["avg_over", "sum_over"]


def test_what_two_conditions_share_is_read_once() -> None:
    class Counting(Windows):
        calls = 0

        def of_past(self, call: Call) -> Floats:
            self.calls += 1
            return super().of_past(call)

    columns = Counting([FULL], {"avg_over": 3.0})
    evaluation = Evaluation(columns)
    evaluation.truth(tree("avg_over(a, '1m') > 1"))
    evaluation.truth(tree("avg_over(a, '1m') > 2 && avg_over(a, '1m') < 4"))
    assert columns.calls == 1


# ---------------------------------------------------------------- in words

SLOW = Seen(
    {"duration_s.p99": 0.512, "error_rate": 0.25, "count": 12.0, "output_tokens.sum": 12345.0},
    {"x": "u"},
    "failed",
    True,
)


@pytest.mark.parametrize(
    ("text", "came_out", "said"),
    [
        ("duration_s.p99 > 0.3", True, ["p99 of duration_s 512 ms > 300 ms"]),
        ("duration_s.p99 > 0.6", False, ["p99 of duration_s 512 ms ≤ 600 ms"]),
        ("duration_s.p99 >= 0.6", False, ["p99 of duration_s 512 ms < 600 ms"]),
        ("duration_s.p99 < 0.3", False, ["p99 of duration_s 512 ms ≥ 300 ms"]),
        ("duration_s.p99 <= 2", True, ["p99 of duration_s 512 ms ≤ 2 s"]),
        ("0.3 < duration_s.p99", True, ["300 ms < p99 of duration_s 512 ms"]),
        ("error_rate != 0", True, ["error_rate 25 % ≠ 0 %"]),
        ("error_rate == 0", False, ["error_rate 25 % ≠ 0 %"]),
        ("count == 12", True, ["count 12 = 12"]),
        ("output_tokens.sum > 1e4", True, ["sum of output_tokens 12,345 > 10,000"]),
        ("error_rate > 0.1 && count > 10", True, ["error_rate 25 % > 10 %", "count 12 > 10"]),
        ("error_rate > 0.1 && count > 20", False, ["count 12 ≤ 20"]),
        ("error_rate > 0.3 || count > 10", True, ["count 12 > 10"]),
        ("error_rate > 0.3 || count > 20", False, ["error_rate 25 % ≤ 30 %", "count 12 ≤ 20"]),
        ("!(count > 20)", True, ["count 12 ≤ 20"]),
        ("!(count > 10 && error_rate > 0.1)", False, ["count 12 > 10", "error_rate 25 % > 10 %"]),
        ("labels.x == 'u' && count > 10", True, ["count 12 > 10"]),
        ("labels.x == 'u' ? count > 10 : count > 100", True, ["count 12 > 10"]),
        ("count > 20 ? error_rate > 0.9 : error_rate > 0.1", True, ["error_rate 25 % > 10 %"]),
        ("2 > 1 ? count > 10 : count > 100", True, ["count 12 > 10"]),
        ("count > 10 || 1 > 2", True, ["count 12 > 10"]),
        ("count > 10 || a > 1", True, ["count 12 > 10"]),
        ("count in [11, 12]", True, ["count 12 = 12"]),
        ("count in [11, 13]", False, ["count 12 ≠ 11", "count 12 ≠ 13"]),
        ("true || labels.x == 'u'", True, []),
        ("error_rate * count > 2", True, ["(error_rate * count) 3 > 2"]),
        ("duration_s.p99 - 0.012 > 0.3", True, ["(p99 of duration_s - 0.012) 500 ms > 300 ms"]),
        ("-duration_s.p99 < 0", True, ["-p99 of duration_s -512 ms < 0 s"]),
        ("max(duration_s.p99, 1) > 0.5", True, ["max(p99 of duration_s, 1) 1 s > 500 ms"]),
        ("avg_over(error_rate, '5m') > 0.2", True, ["avg_over(error_rate, 5m) 75 % > 20 %"]),
        ("quantile(0.99, '5m') > 0.2", True, ["quantile(0.99, 5m) 750 ms > 200 ms"]),
        ("rate(output_tokens.sum, '5m') > 0.2", True, ["rate(sum of output_tokens, 5m) 0.75 > 0.2"]),
        ("burn_rate(0.99, '5m') > 0.2", True, ["burn_rate(0.99, 5m) 0.75 > 0.2"]),
        ("share_above(duration_s, 0.3) > 0.2", True, ["share_above(duration_s, 0.3) 0.75 > 0.2"]),
        ("duration_s.p99 / 0 > 1", True, ["(p99 of duration_s / 0) inf > 1"]),
        ("flag", True, ["flag"]),
        ("!flag", False, ["flag"]),
        ("flag && count > 10", True, ["flag", "count 12 > 10"]),
        ("said == 'failed'", True, ["said failed"]),
        ("said in ['lost', 'failed'] && labels.x == 'u'", True, ["said failed"]),
        ("said != 'failed' || count > 20", False, ["said failed", "count 12 ≤ 20"]),
    ],
)
def test_why_it_came_out_is_told_in_the_units_of_the_fields(text: str, came_out: bool, said: list[str]) -> None:
    node, windows = tree(text), Windows([EMPTY, SLOW], dict.fromkeys(NAMES, 0.75))
    evaluation = Evaluation(windows)
    truth = evaluation.truth(node)
    assert np.broadcast_to(truth.yes if came_out else truth.no, 2)[1]
    assert [tell(each, evaluation, 1) for each in reasons(node, came_out, evaluation, 1)] == said


@settings(deadline=None)
@given(conditions, st.lists(seen, min_size=1, max_size=3))
def test_every_reason_that_is_told_is_true_of_the_window(written: Written, windows: list[Seen]) -> None:
    node = tree(written.ours)
    evaluation = Evaluation(Windows(windows))
    compare = {">": "_>_", "≥": "_>=_", "<": "_<_", "≤": "_<=_", "=": "_==_", "≠": "_!=_"}
    for row, said in enumerate(judged(node, windows)):
        for came_out in (True, False):
            found = list(reasons(node, came_out, evaluation, row))
            assert said is came_out or not found
            for reason in found:
                if isinstance(reason, Said):
                    assert getattr(windows[row], reason.about.name) is not None
                    continue
                assert judged(Call(compare[reason.sign], (reason.left, reason.right)), windows)[row]
                assert f" {reason.sign} " in tell(reason, evaluation, row)


def test_a_text_that_is_not_there_is_no_reason() -> None:
    windows = [Seen({}, {"x": "u"})]
    evaluation = Evaluation(Windows(windows))
    assert list(reasons(tree("said == 'v' || labels.x == 'u'"), True, evaluation, 0)) == []


def test_the_number_of_one_window_is_read_also_where_it_is_the_same_for_all() -> None:
    evaluation = Evaluation(Windows([EMPTY, SLOW]))
    assert value_at(Variable("count"), evaluation, 1) == 12
    assert math.isnan(value_at(Variable("count"), evaluation, 0))
    assert value_at(Constant(3.0), evaluation, 1) == 3
    [reason] = reasons(tree("10 < count"), True, evaluation, 1)
    assert isinstance(reason, Reason)
    assert value_at(reason.about, evaluation, 1) == 12


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("duration_s.p99", 0.0005, "0.5 ms"),
        ("duration_s.p99", 0.0, "0 s"),
        ("duration_s.p99", 90.0, "90 s"),
        ("duration_s.count", 0.5, "0.5"),
        ("throughput_per_s", 0.5, "0.5/s"),
        ("gauges.gpu.memory_bytes.last", 8e9, "8,000,000,000 B"),
        ("gauges.cpu.utilization.mean", 0.973, "97.3 %"),
        ("gauges.throttled_fraction.mean", 0.7, "70 %"),
        ("gauges.temperature_celsius.last", 91.0, "91 °C"),
        ("gauges.power_w.max", 612.3, "612.3 W"),
        ("gauges.energy_j.max", 12.345, "12.35 J"),
        ("cost.EUR", 1234.5, "1,234"),
        ("completeness.late", 3.0, "3"),
        ("count", 1e300, "1e+300"),
        ("count", -math.inf, "-inf"),
        ("count", 999.99, "1000"),
    ],
)
def test_a_number_is_said_with_the_unit_of_its_name_and_never_endless(field: str, value: float, said: str) -> None:
    assert shown(quantity_of(field), value) == said


@pytest.mark.parametrize(
    ("field", "said"),
    [
        ("error_rate", "error_rate"),
        ("duration_s.p99", "p99 of duration_s"),
        ("gauges.gpu.memory_bytes.last", "last of gpu.memory_bytes"),
        ("completeness.late", "late"),
        ("cost.EUR", "EUR"),
    ],
)
def test_a_field_is_named_as_a_person_would(field: str, said: str) -> None:
    assert words_of(field) == said
