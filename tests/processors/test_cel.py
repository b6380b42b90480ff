"""CEL as rules read it: typed, every number a double, and errors in the columns that a person wrote."""

from __future__ import annotations

import pytest

from streammon_processors.rules.conditions.cel import (
    DISTRIBUTION,
    NUMBER,
    TEXT,
    TRUTH,
    Call,
    Constant,
    ExpressionError,
    Function,
    Label,
    Variable,
    as_field,
    names_in,
    parse,
)
from streammon_processors.rules.conditions.expression import fields_of

VARIABLES = {"duration_s.p99": NUMBER, "error_rate": NUMBER, "count": NUMBER}
AVERAGE = Function("avg_over", ((NUMBER, TEXT),))


def test_whole_numbers_may_be_written_and_dotted_names_are_one_variable() -> None:
    assert parse("duration_s.p99 > 1", VARIABLES, [AVERAGE]) == (
        Call("_>_", (Variable("duration_s.p99"), Constant(1.0))),
        TRUTH,
    )


def test_functions_of_ours_and_labels_are_nodes() -> None:
    tree, _ = parse('avg_over(error_rate, "10m") > 0.1 && labels["a-b"] == "10"', VARIABLES, [AVERAGE])
    average = Call("avg_over", (Variable("error_rate"), Constant("10m")))
    expected = Call("_>_", (average, Constant(0.1))), Call("_==_", (Label("a-b"), Constant("10")))
    assert tree == Call("_&&_", expected)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("error_rat > 0.1", "column 1: 'error_rat' is not known here"),
        ("count > 10 || 1", "column 12: found no matching overload for '_||_' applied to '(truth value, number)'"),
        ('count > 1 && eval("x")', "column 18: 'eval' is no function here; there are avg_over"),
        ("count >", "Syntax error"),
        ("[1, 2].exists(x, x > 1)", "no place in a rule"),
    ],
)
def test_what_is_wrong_is_said_with_its_column(text: str, said: str) -> None:
    with pytest.raises(ExpressionError) as refusal:
        parse(text, VARIABLES, [AVERAGE])
    assert said in str(refusal.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("avg_over(count) > 1", "'avg_over' is called as avg_over(number, text)"),
        ("avg_over(count, 600) > 1", "'(number, number)'; it is called as avg_over(number, text)"),
        ("avg_over(count, 10m) > 1", '; a duration is a text here: "10m"'),
        ("sum(count) > 1", "'sum' is no function here; there are avg_over"),
        ('labels.model = "a"', "; equal is `==`"),
        ("count > 1 and error_rate > 1", "; logic is `&&`, `||` and `!`"),
        ("not (count > 1)", "; logic is `&&`, `||` and `!`"),
        ('count{model="a"} > 1', "; labels are asked for in `where`, or as `labels.NAME`"),
        ("sum by (model) (count) > 1", "; groups are made by the rule's `by`"),
    ],
)
def test_who_writes_another_language_is_told_how_it_is_said_here(text: str, said: str) -> None:
    with pytest.raises(ExpressionError) as refusal:
        parse(text, VARIABLES, [AVERAGE])
    assert str(refusal.value).endswith(said)


def test_what_stands_in_a_text_is_no_slip() -> None:
    with pytest.raises(ExpressionError, match=r"mismatched input '<EOF>'$"):
        parse('labels.model == "1m and {a=b}" &&', VARIABLES, [AVERAGE])


@pytest.mark.parametrize("written", ['gauges["a-b.c d"].last', "gauges['a-b.c d'].last"])
def test_a_gauge_whose_name_is_no_identifier_is_named_in_brackets(written: str) -> None:
    name = "gauges.a-b.c d.last"
    text = f'10 < {written} && labels["a-b"] == \'gauges["x"].last\''
    assert list(names_in(text)) == [name, "labels"]
    node, kind = parse(text, {name: NUMBER}, ())
    compared = Call("_<_", (Constant(10.0), Variable(name)))
    said = Call("_==_", (Label("a-b"), Constant('gauges["x"].last')))
    assert (node, kind) == (Call("_&&_", (compared, said)), TRUTH)


def test_a_gauge_in_brackets_is_told_of_as_it_was_written() -> None:
    with pytest.raises(ExpressionError, match=r"column 38: 'gauges\[\"c-d\"\].lst' is not known"):
        parse('gauges["a-b"].last > gauges["c-d"].lst', {"gauges.a-b.last": NUMBER}, ())


def test_counters_and_distributions_are_named_as_gauges_are() -> None:
    names = {"counters.a-b.per_s": NUMBER, "distributions.c-d.p99": NUMBER, "distributions.e.f-g": DISTRIBUTION}
    written = 'counters["a-b"].per_s > distributions["c-d"].p99 + share(distributions["e.f-g"])'
    assert [*map(as_field, names)] == ['counters["a-b"].per_s', 'distributions["c-d"].p99', 'distributions["e.f-g"]']
    assert [*names_in(written)][:2] == ["counters.a-b.per_s", "distributions.c-d.p99"]
    node, _ = parse(written, names, [Function("share", ((DISTRIBUTION,),))])
    assert [each.name for each in fields_of(node)] == [*names]


@pytest.mark.parametrize("name", ["in", "true", "null", "a", "b.c"])
def test_words_of_the_language_may_be_names_of_gauges(name: str) -> None:
    variables = {f"gauges.{name}.last": NUMBER}
    node, _ = parse(f"gauges.{name}.last > 1", variables, ())
    assert node == parse(f'gauges["{name}"].last > 1', variables, ())[0]
