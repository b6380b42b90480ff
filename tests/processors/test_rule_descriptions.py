"""What a rule may say: each refusal in its words, and what the parts of a rule come to."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

from streammon.durations import seconds
from streammon.errors import ConfigError
from streammon_processors.rules import Rule, load_rules
from streammon_processors.rules.conditions.cel import Call, Constant, Variable
from streammon_processors.rules.description import MAX_LOOK_BACK_S, MAX_SLOTS
from streammon_processors.rules.sources import SOURCES, path_of

BOUND: Final = {"field": "error_rate", "above": 0.1}
BASE: Final = {"name": "r", "source": "inference", "severity": "warning", "summary": "s"}


def rule(**said: Any) -> Rule:
    """As it is read from a file; Python's names may not be ``for``."""
    said = {"for" if name == "for_" else name: value for name, value in said.items()}
    return msgspec.convert(BASE | said, Rule)


def refusal(**said: Any) -> str:
    with pytest.raises(msgspec.ValidationError) as refused:
        rule(**said)
    return str(refused.value)


CRITICAL: Final = {"severity": "critical", "above": 0.5}


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({}, "`expr`, or `field` with `above` or `below`, must be given"),
        ({"above": 1.0}, "`expr`, or `field` with `above` or `below`, must be given"),
        ({"field": "error_rate"}, "`above` or `below`: exactly one of them must be given"),
        ({**BOUND, "below": 0.0}, "`above` or `below`: exactly one of them must be given"),
        (
            {**BOUND, "expr": "count > 1"},
            "`expr` and `field`: keep one; a condition is either an expression or a field",
        ),
        (
            {"expr": "count > 1", "above": 1.0},
            "`above`, `below` and a number as `clear` go with `field`, not with `expr`",
        ),
        (
            {"expr": "count > 1", "below": 1.0},
            "`above`, `below` and a number as `clear` go with `field`, not with `expr`",
        ),
        (
            {"expr": "count > 1", "clear": 1.0},
            "`above`, `below` and a number as `clear` go with `field`, not with `expr`",
        ),
        (
            {"expr": "count > 1", "clear": 1},
            "`above`, `below` and a number as `clear` go with `field`, not with `expr`",
        ),
        ({**BOUND, "clear": "count < 1"}, "`clear` must be a number, since `field` is given"),
        ({**BOUND, "clear": 0.2}, "`clear` lies on the breaching side; it must be at most `above`, 0.1"),
        (
            {"field": "count", "below": 3, "clear": 2},
            "`clear` lies on the breaching side; it must be at least `below`, 3",
        ),
        ({"field": "count", "above": float("inf")}, "`above` must be a finite number"),
        ({"field": "count", "below": float("nan")}, "`below` must be a finite number"),
        ({**BOUND, "clear": float("-inf")}, "`clear` must be a finite number"),
        (
            {"field": "erorr_rate", "above": 1},
            "`field` is not a number in inference windows; allowed: count, throughput",
        ),
        (
            {"field": "duration_s", "above": 1},
            "`field` is not a number in inference windows; allowed: count, throughput",
        ),
        (
            {**BOUND, "source": "resource"},
            "`field` is not a number in resource windows; allowed: count, throughput_per_s, g",
        ),
        # expressions
        ({"expr": ""}, "`expr`: column 1: Syntax error: mismatched input '<EOF>'"),
        ({"expr": "count"}, "`expr`: it gives a number; a condition is true or false"),
        ({"expr": "labels.a"}, "`expr`: it gives a text; a condition is true or false"),
        (
            {"expr": "cuont > 1"},
            "`expr`: column 1: 'cuont' is not known here; allowed: count, throughput_per_s, error_coun",
        ),
        (
            {"expr": "count > 1", "clear": "count <= one"},
            "`clear`: column 10: 'one' is not known here; allowed: count,",
        ),
        ({"expr": "count > 1", "clear": "count"}, "`clear`: it gives a number; a condition is true or false"),
        (
            {"expr": "error_rate > 1", "source": "resource"},
            "'error_rate' is not known here; allowed: count, throughput",
        ),
        (
            {"expr": "quantile(0.9, '5m') > 1", "source": "resource"},
            "`expr`: quantile is about requests; these windows ha",
        ),
        (
            {"expr": "burn_rate(0.9, '5m') > 1", "source": "resource"},
            "`expr`: burn_rate is about requests; these windows h",
        ),
        ({"expr": "share_above(duration_s, 1) > 1", "source": "resource"}, "'duration_s' is not known here"),
        # how far to look back
        (
            {"expr": "avg_over(count, '61m') > 1"},
            "`expr`: avg_over: base windows are looked back on for at most 1 h; let th",
        ),
        (
            {"expr": "count > 1", "clear": "max_over(count, '1d') < 1"},
            "`clear`: max_over: base windows are looked back on",
        ),
        (
            {"expr": "avg_over(count, '1m') > 1", "window": "5m"},
            "of windows of 300s, 1 to 400 can be looked back on, not 0.2",
        ),
        (
            {"expr": "rate(count, '401m') > 1", "window": "1m"},
            "of windows of 60s, 1 to 400 can be looked back on, not 401",
        ),
        (
            {"expr": "rate(count, '30m') > 1", "window": {"size": "1h", "every": "4s"}},
            "`window`: `size` must be 1 to 120 times `every`, a whole number of times",
        ),
        (
            {"expr": "rate(count, '5h') > 1", "window": {"size": "1m", "every": "30s"}},
            "rate: of windows of 60s every 30s, 1 to 400 can be looked back on, not 600",
        ),
        (
            {"expr": "avg_over(count, '5m') > 1", "window": {"session_gap": "30s"}},
            "avg_over: sessions have no regular past",
        ),
        (
            {"expr": "quantile(0.9, '2h') > 1", "window": "1m"},
            "`quantile`: in a rule that looks back on more than 1 h, be it",
        ),
        (
            {"expr": "quantile(0.9, '5m') > 1", "no_data": "fire", "no_data_for": "1h"},
            "`quantile`: in a rule that looks back on more than 1 h, be it for silence or for another function",
        ),
        # how long
        ({**BOUND, "for_": "5m", "for_s": 3.0}, "`for` and `for_s` are the same; keep one"),
        ({**BOUND, "for_": 0.0, "for_s": 0.0}, "`for` and `for_s` are the same; keep one"),
        (
            {**BOUND, "for_": "soon"},
            "`for`: 'soon' is no duration; write a number of seconds, or a text such as 90s, 5m",
        ),
        ({**BOUND, "for_": -1.0}, "`for`: -1.0 is no duration; write a number of seconds"),
        ({**BOUND, "for_s": -1.0}, "Expected `float` >= 0.0"),
        ({**BOUND, "keep_firing_for": "x"}, "`keep_firing_for`: 'x' is no duration"),
        ({**BOUND, "no_data_for": "x"}, "`no_data_for`: 'x' is no duration"),
        ({**BOUND, "no_data_for": 0.0}, "`no_data_for` says 0; between two windows every series is silent for a while"),
        ({**BOUND, "warm_up": "x"}, "`warm_up`: 'x' is no duration"),
        ({**BOUND, "no_data": "page"}, "Invalid enum value 'page' - at `$.no_data`"),
        # which windows
        ({**BOUND, "window": 0.0}, "`window` says 0.0; a window is longer than that"),
        ({**BOUND, "window": "x"}, "`window`: 'x' is no duration"),
        ({**BOUND, "window": {}}, "`window` is a duration, {size, every} or {session_gap}"),
        (
            {**BOUND, "window": {"size": "5m", "session_gap": "1m"}},
            "`window` is a duration, {size, every} or {session_gap}",
        ),
        (
            {**BOUND, "window": {"every": "5m", "session_gap": "1m"}},
            "`window` is a duration, {size, every} or {session_gap}",
        ),
        ({**BOUND, "window": {"session_gap": 0.0}}, "`window` says 0.0; a window is longer than that"),
        ({**BOUND, "window": {"size": "5m", "every": 0.0}}, "`window` says 0.0; a window is longer than that"),
        (
            {**BOUND, "window": {"size": "1m", "every": "2m"}},
            "`window`: `size` must be 1 to 120 times `every`, a whole",
        ),
        (
            {**BOUND, "window": {"size": "90s", "every": "1m"}},
            "`window`: `size` must be 1 to 120 times `every`, a whole",
        ),
        (
            {**BOUND, "window": {"size": 1e308, "every": 1e-300}},
            "`window`: `size` must be 1 to 120 times `every`, a who",
        ),
        (
            {**BOUND, "window": {"session_gap": "30s"}, "no_data": "fire"},
            "`no_data`: of sessions only `hold`; a series that is busy ends none, and would seem silent",
        ),
        # the ladder
        (
            {**BOUND, "ladder": [{"severity": "warning", "above": 0.5}]},
            "`ladder`: each severity may be there once, that of",
        ),
        (
            {**BOUND, "ladder": [CRITICAL, CRITICAL]},
            "`ladder`: each severity may be there once, that of the rule included",
        ),
        ({**BOUND, "ladder": [{"severity": "critical"}]}, "`above` or `below`: exactly one of them must be given"),
        ({**BOUND, "ladder": [{**CRITICAL, "below": 0}]}, "`above` or `below`: exactly one of them must be given"),
        (
            {**BOUND, "ladder": [{**CRITICAL, "expr": "count > 1"}]},
            "`above`, `below` and a number as `clear` go with `field`",
        ),
        (
            {**BOUND, "ladder": [{**CRITICAL, "clear": 0.6}]},
            "`clear` lies on the breaching side; it must be at most `above`",
        ),
        (
            {**BOUND, "ladder": [{"severity": "critical", "above": float("nan")}]},
            "`above` must be a finite number - at `$.la",
        ),
        ({**BOUND, "ladder": [{"severity": "critical", "below": float("-inf")}]}, "`below` must be a finite number"),
        ({**BOUND, "ladder": [{**CRITICAL, "for": "x"}]}, "`for`: 'x' is no duration"),
        (
            {**BOUND, "ladder": [{"severity": "critical", "expr": "coun > 1"}]},
            "`expr`: column 1: 'coun' is not known here",
        ),
        (
            {**BOUND, "ladder": [{"severity": "fatal", "above": 0.5}]},
            "Invalid enum value 'fatal' - at `$.ladder[0].severity`",
        ),
        (
            {**BOUND, "ladder": [{**CRITICAL, "field": "count"}]},
            "Object contains unknown field `field` - at `$.ladder[0]`",
        ),
        ({"expr": "count > 1", "ladder": [CRITICAL]}, "`expr`, or `field` with `above` or `below`, must be given"),
    ],
)
def test_what_a_rule_may_not_say_is_refused_in_plain_words(said: dict[str, Any], expected: str) -> None:
    assert expected in refusal(**said)


def test_a_refusal_names_the_file_the_line_and_the_rule(tmp_path: Path) -> None:
    file = tmp_path / "rules.yaml"
    file.write_text(
        "rules:\n  - name: slow\n    source: inference\n    severity: warning\n    summary: s\n"
        "    expr: |\n      count > 10 &&\n      count > 20 && cuont > 5\n",
        encoding="utf-8",
    )
    with pytest.raises(ConfigError) as refused:
        load_rules([file])
    assert str(refused.value).startswith(f"{file}:6:11: rule 'slow': expr = ")
    assert "`expr`: line 2, column 15: 'cuont' is not known here; allowed: count," in str(refused.value)


# ---------------------------------------------------------------- what it comes to


def test_levels_are_ordered_from_mild_to_grave_and_hold_as_long_as_the_rule_unless_they_say_otherwise() -> None:
    ladder = [{"severity": "critical", "above": 0.5, "for": 0.0}, {"severity": "info", "above": 0.01, "for": "1h"}]
    levels = rule(**BOUND, for_="5m", ladder=ladder).levels
    assert [(each.severity, each.hold_s) for each in levels] == [("info", 3600), ("warning", 300), ("critical", 0)]
    assert [each.hold_s for each in rule(**BOUND, for_s=7.0, ladder=[CRITICAL]).levels] == [7, 7]


@pytest.mark.parametrize("zero", [0.0, 0, "0s", "0"])
def test_a_rung_may_hold_for_no_time_at_all(zero: Any) -> None:
    assert rule(**BOUND, for_="5m", ladder=[CRITICAL | {"for": zero}]).levels[1].hold_s == 0


def test_a_bound_clears_where_it_is_no_breach_any_more_or_where_it_says() -> None:
    [level] = rule(**BOUND).levels
    assert level.breach == Call("_>_", (Variable("error_rate"), Constant(0.1)))
    assert level.clear == Call("_<=_", (Variable("error_rate"), Constant(0.1)))
    [level] = rule(field="count", below=3, clear=5).levels
    assert level.breach == Call("_<_", (Variable("count"), Constant(3.0)))
    assert level.clear == Call("_>=_", (Variable("count"), Constant(5.0)))


def test_an_expression_clears_where_it_is_false_or_where_another_is_true() -> None:
    [level] = rule(expr="count > 1").levels
    assert level.clear == Call("!_", (level.breach,))
    [level] = rule(expr="count > 1", clear="count < 0.5").levels
    assert level.clear == Call("_<_", (Variable("count"), Constant(0.5)))


def test_a_rule_on_a_field_may_have_a_rung_with_an_expression() -> None:
    rung = {"severity": "critical", "expr": "error_rate > 0.5 && count > 10", "clear": "error_rate < 0.4"}
    assert [each.severity for each in rule(**BOUND, ladder=[rung]).levels] == ["warning", "critical"]


@pytest.mark.parametrize(
    ("said", "silence_s", "horizon_s"),
    [
        ({}, 300, 0),
        ({"no_data": "fire"}, 300, 300 + 120),
        ({"no_data": "resolve", "no_data_for": "1m", "warm_up": 0.0}, 60, 60),
        ({"no_data": "fire", "no_data_for": "1m", "window": "5m"}, 600, 600 + 120),
        ({"expr": "avg_over(count, '30m') > rate(count, '5m')"}, 300, 1800),
        ({"expr": "share_above(duration_s, 1) > 0.1"}, 300, 0),
    ],
)
def test_a_rule_looks_as_far_back_as_its_functions_and_its_silence(
    said: dict[str, Any], silence_s: float, horizon_s: float
) -> None:
    found = rule(**({} if "expr" in said else BOUND), **said)
    assert (found.silence_s, found.horizon_s) == (silence_s, horizon_s)


@pytest.mark.parametrize(
    ("expr", "fields", "paths"),
    [
        ("error_rate > 0.1", {"error_rate"}, {("error_rate",)}),
        ("burn_rate(0.99, '5m') > 2", {"error_count", "count"}, {("error_count",), ("count",)}),
        ("quantile(0.9, '5m') > 2", {"duration_s"}, {("duration_s", "sketch")}),
        (
            "burn_rate(ttft_s, 1, 0.9, '5m') > 2",
            {"ttft_s", "ttft_s.count"},
            {("ttft_s", "sketch"), ("ttft_s", "count")},
        ),
        (
            "avg_over(gauges.gpu.memory.last / 2, '5m') > 1",
            {"gauges.gpu.memory.last"},
            {("gauges", "gpu.memory", "last")},
        ),
        (
            "cost.EUR > 1 || completeness.late > 3",
            {"cost.EUR", "completeness.late"},
            {("cost", "EUR"), ("completeness", "late")},
        ),
    ],
)
def test_a_rule_reads_what_its_conditions_and_their_past_read(
    expr: str, fields: set[str], paths: set[tuple[str, ...]]
) -> None:
    found = rule(expr=expr)
    assert found.fields >= fields
    assert found.paths >= paths
    assert {name for name in found.fields if path_of("inference", name)} == {
        each for each in fields if not each.endswith("_s")
    }


def test_the_same_in_other_words_is_the_same_version_and_what_decides_is_in_it() -> None:
    plain = rule(expr="count > 10 && error_rate > 0.1")
    assert rule(expr="(count>10.0)\n&& error_rate > 1e-1", summary="other", contact="c").version == plain.version
    assert rule(expr="count > 10 && error_rate > 0.1", for_=0.0).version == plain.version
    others = [
        rule(expr="count > 10 && error_rate > 0.2"),
        rule(expr="count > 10 && error_rate > 0.1", clear="count < 5"),
        rule(expr="count > 10 && error_rate > 0.1", for_="1s"),
        rule(expr="count > 10 && error_rate > 0.1", keep_firing_for="1s"),
        rule(expr="count > 10 && error_rate > 0.1", no_data="fire"),
        rule(expr="count > 10 && error_rate > 0.1", no_data="resolve"),
        rule(expr="count > 10 && error_rate > 0.1", no_data="fire", warm_up="1s"),
        rule(expr="count > 10 && error_rate > 0.1", window="1m"),
        rule(expr="count > 10 && error_rate > 0.1", where={"a": "b"}),
        rule(expr="count > 10 && error_rate > 0.1", ladder=[{"severity": "critical", "expr": "count > 99"}]),
        rule(expr="count > 10 && error_rate > 0.1", severity="critical"),
        rule(expr="count > 10 && error_rate > 0.1", name="s"),
    ]
    assert len({each.version for each in (plain, *others)}) == 1 + len(others)
    assert rule(**BOUND, for_="5m").version == rule(**BOUND, for_s=300.0).version


def test_the_limits_are_those_that_are_told() -> None:
    assert rule(expr=f"avg_over(count, '{MAX_LOOK_BACK_S:g}s') > 1").horizon_s == MAX_LOOK_BACK_S
    assert rule(expr=f"avg_over(count, '{MAX_SLOTS}m') > 1", window="1m").horizon_s == seconds(f"{MAX_SLOTS}m")
    assert rule(expr="quantile(0.9, '1h') > 1").horizon_s == 3600


@pytest.mark.parametrize("source", ["inference", "resource"])
def test_every_field_that_a_refusal_names_is_one(source: str) -> None:
    for group in SOURCES[source].allowed.removeprefix("allowed: ").split(", "):
        heads, _, tails = group.partition(" with .")
        for head in heads.split("|") if tails else [group.rpartition(".")[0]]:
            for tail in (tails or group.rpartition(".")[2]).split("|"):
                assert path_of(source, f"{head}.{tail}".strip(".")), (head, tail)
