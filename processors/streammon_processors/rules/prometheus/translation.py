"""A Prometheus expression as a rule of ours, or the reason why it is none.

Nothing is guessed. A construct, metric or label that is not known refuses the whole expression, and where ours means
something slightly different, a `remark` says what. The main difference: Prometheus aggregates any series, while a rule
of streammon looks at one series of windows at a time, or at the sum of several. An aggregation that only removes labels
which we do not have is that series, and a sum of requests over several of ours is a group. Of the rest, ratios and
quantiles are translated with a remark, and everything else is refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from operator import eq, ge, gt, le, lt, ne
from typing import Any, Final, NamedTuple, NoReturn, TypeAlias

import msgspec

from streammon_processors.rules.conditions.cel import ExpressionError, as_field, matches
from streammon_processors.rules.conditions.forecast import BLOCKS
from streammon_processors.rules.prometheus import promql
from streammon_processors.rules.prometheus.metrics import ANY, CPU_MODES, HINTS, KNOWN, LEFT_OUT, UPTIME, Meaning
from streammon_processors.rules.prometheus.promql import (
    Aggregation,
    Binary,
    Expression,
    Function,
    LabelMatcher,
    Matching,
    Negative,
    Number,
    PromqlError,
    Selector,
    Subquery,
    Text,
)

MAX_INLINED: Final = 20
"""How deep recorded expressions are put into those that use them."""
_LOOK_BACKS_S: Final = ((3600.0, None), (24_000.0, "1m"), (120_000.0, "5m"), (1_440_000.0, "1h"))
"""How far is looked back on windows of which length; see `description.MAX_SLOTS`."""
_YEAR_S: Final = 366 * 86_400.0
_ATOM, _PRODUCT, _SUM = 9, 5, 4
_SIGNS: Final = {"+": _SUM, "-": _SUM, "*": _PRODUCT, "/": _PRODUCT}
_ERRORS: Final = (
    "5..",
    "5.*",
    "5.+",
    "5\\d\\d",
    "5[0-9][0-9]",
    "5[0-9]{2}",
    "^5..$",
    "^5.*$",
    "5xx",
    "5[0-9]+",
    "5\\d{2}",
)
_STATUS: Final = ("code", "status", "status_code", "http_status_code", "http_response_status_code", "response_code")


class UntranslatedError(ValueError):
    """Why an expression has no equal."""


def refuse(why: str) -> NoReturn:
    raise UntranslatedError(why)


class Place(NamedTuple):
    """Which series of windows are looked at."""

    source: str
    where: frozenset[tuple[str, str]]
    conditions: frozenset[str]

    @property
    def pinned(self) -> frozenset[str]:
        return frozenset(name for name, _ in self.where)


@dataclass(frozen=True)
class Value:
    """A number of a series, in CEL."""

    text: str
    binding: int = _ATOM
    place: Place | None = None
    """None: a constant."""
    constant: float | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    merges: Mapping[str, str] = field(default_factory=dict)
    """Labels of Prometheus that still have to be put together, and how."""
    kept: tuple[str, ...] | None = None
    """What the labels are there, if it was aggregated: ``by`` or ``without``, and the names."""
    over: frozenset[str] = frozenset()
    """Labels that tell series of ours apart and were aggregated away there."""
    how: str = ""
    """How they were."""
    is_free: bool = False
    """A ratio or a quantile: of some series together it is between those of each."""
    per_s: float = 1.0
    """What ``text`` has to be divided by still: of a rate."""
    adds: bool = False
    """It is made of what is added up for a group: of counts, sums and sketches."""
    by: tuple[str, ...] | None = None
    """It is of a group: the labels of ours that are kept."""


@dataclass(frozen=True)
class Truth:
    """A condition on a series, in CEL."""

    text: str
    binding: int
    place: Place
    kept: tuple[str, ...] | None = None
    constant: bool | None = None
    """Of a comparison of constants, which somebody said that metrics are."""
    by: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Silence:
    """The absence of series."""

    place: Place
    after_s: float


Translated: TypeAlias = Value | Truth | Silence


@dataclass(frozen=True)
class Knowledge:
    """What somebody knows who imports rules, beside what everybody knows."""

    metrics: Mapping[str, Meaning] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)
    """Labels there and here; `LEFT_OUT`: they say nothing."""
    inference_by: tuple[str, ...] = ("service", "model", "model_version", "endpoint")
    recorded: Mapping[str, Expression] = field(default_factory=dict)
    """Recording rules: they are put in where they are used."""


class Condition(NamedTuple):
    """What an expression became: fields of a rule, and what differs."""

    fields: dict[str, Any]
    remarks: tuple[str, ...]
    labels: Mapping[str, str]
    """Labels there and here, as they are in texts."""


def translate(text: str, knowledge: Knowledge = Knowledge()) -> Condition:
    """The rule's ``source``, ``where``, ``window`` and ``expr``.

    Raises:
        UntranslatedError: with the reason.
    """
    try:
        tree = promql.parse(text)
        translation = _Translation(knowledge)
        found = translation.of(tree)
    except PromqlError as error:
        refuse(f"it is no PromQL: {error}")
    except RecursionError:
        refuse("it is too long or nested too deep")
    if isinstance(found, Value):
        refuse("it has no comparison: Prometheus fires for whatever exists, and a rule needs to say what is wrong")
    fields = _silence(found) if isinstance(found, Silence) else translation.rule(found)
    return Condition(fields, tuple(dict.fromkeys(translation.remarks)), translation.names)


def _silence(found: Silence) -> dict[str, Any]:
    if found.place.conditions:
        refuse('absence can be told only of series that label="value" picks out')
    return {
        "source": found.place.source,
        "where": dict(sorted(found.place.where)),
        "expr": "count < 0",
        "no_data": "fire",
        "no_data_for": found.after_s,
    }


class _Translation:
    """Of one expression."""

    def __init__(self, knowledge: Knowledge) -> None:
        self._knows = knowledge
        self._span_s = 0.0
        self._learned_s = math.inf
        self._summed_s: set[float] = set()
        self._inlined = 0
        self.remarks: list[str] = []
        self.names: dict[str, str] = {}

    def rule(self, found: Truth) -> dict[str, Any]:
        if found.constant is not None:
            refuse(f"it is always {found.text}")
        conditions = [*sorted(found.place.conditions)]
        parts = [*conditions, found.text if found.binding >= 2 or not conditions else f"({found.text})"]
        window = next((name for most_s, name in self._look_backs(found) if self._span_s <= most_s), "")
        if window == "":
            short = " in windows that are short enough for predict_linear()" if self._learned_s < math.inf else ""
            refuse(f"it looks back {self._span_s / 86_400:g} d, further than streammon remembers of a series{short}")
        if window and (ragged := [each for each in sorted(self._summed_s) if each % promql.duration_s(window)]):
            refuse(f"its range of {lasting(ragged[0])} is no whole number of windows of {window}")
        return {
            "source": found.place.source,
            **({"where": dict(sorted(found.place.where))} if found.place.where else {}),
            **({"window": window} if window else {}),
            **({"by": list(found.by)} if found.by is not None else {}),
            "expr": " && ".join(parts),
        }

    def _look_backs(self, found: Truth) -> Iterable[tuple[float, str | None]]:
        """Those that will do: groups, and what is learned, are of longer windows, of which there must be enough."""
        if self._learned_s == math.inf and found.by is None:
            return _LOOK_BACKS_S
        longest_s = self._learned_s / BLOCKS
        return [(most_s, name) for most_s, name in _LOOK_BACKS_S if name and promql.duration_s(name) <= longest_s]

    # -- every kind of expression

    def of(self, tree: Expression) -> Translated:
        match tree:
            case Number(value):
                return _constant(value)
            case Selector():
                return self._instant(tree)
            case Negative(of):
                return self._calculated("*", _constant(-1.0), self.number(of), Matching())
            case Function():
                return self._function(tree)
            case Aggregation():
                return self._aggregation(tree)
            case Binary():
                return self._binary(tree)
            case Subquery():
                refuse("subqueries ([5m:1m]) have no equal")
            case Text():
                refuse("a text is no condition")

    def number(self, tree: Expression) -> Value:
        found = self.of(tree)
        if not isinstance(found, Value):
            refuse("a comparison stands where a number is wanted: as a filter of values it has no equal")
        return found

    def truth(self, tree: Expression) -> Truth:
        found = self.of(tree)
        if isinstance(found, Silence):
            refuse("absent() can only stand alone")
        if not isinstance(found, Truth):
            refuse("`and`, `or` and `unless` are translated between comparisons only")
        return found

    # -- metrics

    def _instant(self, tree: Selector) -> Translated:
        if tree.range_s is not None:
            refuse("a range such as [5m] needs a function around it")
        if tree.metric in self._knows.recorded:
            return self._recorded(tree)
        meaning, place = self._found(tree)
        if meaning.kind == "constant":
            return _constant(float(meaning.field))
        if meaning.kind != "gauge":
            refuse(f"{tree.metric} counts since some start, windows what is new: put rate() or increase() around it")
        return self._value(meaning, place, _statistic(meaning, "last"))

    def _recorded(self, tree: Selector) -> Translated:
        if tree.matchers or tree.shifted:
            refuse(f"{tree.metric} is recorded, and here it is filtered or shifted: only as it is can it be put in")
        self._inlined += 1
        if self._inlined > MAX_INLINED:
            refuse(f"{tree.metric}: recorded expressions use each other more than {MAX_INLINED} times")
        return self.of(self._knows.recorded[tree.metric])

    def _found(self, tree: Selector, suffix: str = "") -> tuple[Meaning, Place]:
        """What a metric is to us, and of which series."""
        if tree.shifted:
            refuse(f"`{tree.shifted}` looks at another time, which no function of ours does")
        meaning = self._meaning(tree.metric, suffix)
        if meaning.kind == "constant":
            return meaning, Place("", frozenset(), frozenset())
        meaning, matchers = _with_mode(meaning, tree.matchers)
        if meaning.has_status:
            meaning, matchers = _with_status(meaning, matchers)
        return meaning, self._place(meaning, matchers)

    def _meaning(self, metric: str, suffix: str) -> Meaning:
        known = {**KNOWN, **self._knows.metrics}
        if metric in known and (not suffix or known[metric].kind == "histogram"):
            return known[metric]
        base, _, part = metric.rpartition("_")
        if part in ("sum", "count") and base in known and known[base].kind == "histogram":
            return replace(known[base], field=f"{known[base].field}.{part}", kind="amount")
        if part == "bucket" and base in known and known[base].kind == "histogram":
            return replace(known[base], merges={**known[base].merges, "le": "sum"})
        hint = next(
            (why for name, why in HINTS.items() if metric.startswith(name) and (name[-1] == "_" or name == metric)), ""
        )
        refuse(f"the metric {metric} is not known: {hint or 'say what it is, --metric ' + metric + '=FIELD'}")

    def _place(self, meaning: Meaning, matchers: Iterable[LabelMatcher]) -> Place:
        where, conditions = dict(meaning.where), set()
        for each in matchers:
            if _says_nothing(each):
                continue
            name = self._label(meaning, each)
            if name == LEFT_OUT:
                continue
            if each.operator == "=" and each.value:
                value = _host_of(each.value) if name == "host" and each.label == "instance" else each.value
                if where.setdefault(name, value) != value:
                    refuse(f"{each} contradicts {name}={where[name]!r}")
            else:
                conditions.add(self._condition(each, name))
        return Place(meaning.source, frozenset(where.items()), frozenset(conditions))

    def _label(self, meaning: Meaning, matcher: LabelMatcher) -> str:
        label, said = matcher.label, self._knows.labels
        if label in said:
            return said[label]
        if meaning.where.get("entity") == "filesystem" and label in ("fstype", "device"):
            if matcher.operator in ("=", "=~"):
                refuse(
                    f"{matcher}: the host agent measures all real file systems, and does not say which kind they are"
                )
            self.remarks.append(f"{matcher} is left out: the host agent measures real file systems only")
            return LEFT_OUT
        if label not in meaning.labels:
            refuse(
                f"{matcher}: our series have no label {label!r}; say which of theirs it is, "
                f"--label {label}=NAME, or that it says nothing, --label {label}="
            )
        if meaning.labels[label] == LEFT_OUT:
            self.remarks.append(f"{matcher} is left out: what the host agent measures has no such label")
        return meaning.labels[label]

    def _condition(self, matcher: LabelMatcher, name: str) -> str:
        is_instance = name == "host" and matcher.label == "instance" and "instance" not in self._knows.labels
        if is_instance and matcher.operator in ("=~", "!~"):
            refuse(f"{matcher} may ask for a port, and our hosts have none; if it does not, say --label instance=host")
        quoted = msgspec.json.encode(matcher.value).decode()
        if matcher.operator in ("=", "!="):
            if not matcher.value:
                return f"{'!' if matcher.operator == '=' else ''}has(labels.{name})"
            is_host = name == "host" and matcher.label == "instance"
            value = msgspec.json.encode(_host_of(matcher.value)).decode() if is_host else quoted
            return f"(!has(labels.{name}) || labels.{name} != {value})"
        pattern = f"^(?:{regular(matcher.value)})$"
        said = f"labels.{name}.matches({msgspec.json.encode(pattern).decode()})"
        empty = matches("", pattern)
        if matcher.operator == "=~":
            return f"(!has(labels.{name}) || {said})" if empty else f"(has(labels.{name}) && {said})"
        return f"(has(labels.{name}) && !{said})" if empty else f"(!has(labels.{name}) || !{said})"

    def _value(self, meaning: Meaning, place: Place, text: str, binding: int = _ATOM, per_s: float = 1.0) -> Value:
        labels = {**meaning.labels, **self._knows.labels}
        self.names |= {there: here for there, here in labels.items() if here}
        return Value(text, binding, place, None, labels, meaning.merges, per_s=per_s)

    # -- functions

    def _function(self, tree: Function) -> Translated:
        name, arguments = tree.name, tree.arguments
        if name in ("absent", "absent_over_time") and len(arguments) == 1:
            return self._absent(arguments[0])
        if name == "histogram_quantile" and len(arguments) == 2:
            return self._quantile(*arguments)
        if name in _OVER_TIME and len(arguments) == 1:
            return _OVER_TIME[name](self, *self._ranged(name, arguments[0]))
        if name == "predict_linear" and len(arguments) == 2:
            return self._forecast(*arguments)
        if name == "abs" and len(arguments) == 1:
            return self._around(arguments[0], lambda text: f"abs({text})")
        if name in ("clamp_min", "clamp_max") and len(arguments) == 2:
            bound = self._number_in(name, arguments[1])
            return self._around(
                arguments[0], lambda text: f"{'max' if name == 'clamp_min' else 'min'}({text}, {bound})"
            )
        refuse(_WHY_NOT.get(name, f"{name}() has no equal"))

    def _around(self, tree: Expression, wrap: Callable[[str], str]) -> Value:
        value = self.number(tree)
        if value.constant is not None or value.over or value.merges:
            refuse("abs() and clamp_…() are translated around a number of one series only")
        value = _divided(value)
        return replace(value, text=wrap(value.text), binding=_ATOM)

    def _number_in(self, name: str, tree: Expression) -> str:
        value = self.number(tree)
        if value.constant is None:
            refuse(f"{name}: a number that is written out is wanted there")
        return value.text

    def _ranged(self, name: str, tree: Expression) -> tuple[Selector, float]:
        selector, range_s = self._selected(name, tree)
        self._span_s = max(self._span_s, range_s)
        return selector, range_s

    def _selected(self, name: str, tree: Expression) -> tuple[Selector, float]:
        if isinstance(tree, Subquery):
            refuse("subqueries ([5m:1m]) have no equal")
        if not isinstance(tree, Selector) or tree.range_s is None:
            refuse(f"{name}() is wanted around a metric with a range such as [5m]")
        if tree.metric in self._knows.recorded:
            refuse(f"{tree.metric} is recorded, and here it is looked back on: only as it is can it be put in")
        return tree, tree.range_s

    def _rate(self, tree: Selector, range_s: float) -> Value:
        return self._increase_by(tree, range_s, is_rate=True)

    def _increase(self, tree: Selector, range_s: float) -> Value:
        return self._increase_by(tree, range_s, is_rate=False)

    def _increase_by(self, tree: Selector, range_s: float, *, is_rate: bool) -> Value:
        meaning, place = self._found(tree)
        over = lasting(range_s)
        match meaning.kind:
            case "amount":
                self._summed_s.add(range_s)
                value = self._value(meaning, place, f'sum_over({meaning.field}, "{over}")')
                return replace(value, per_s=range_s if is_rate else 1.0, adds=True)
            case "rate":
                value = self._value(meaning, place, f'avg_over({_statistic(meaning, "mean")}, "{over}")')
            case "gauge" if meaning.is_users:
                value = self._value(meaning, place, f'rate({_statistic(meaning, "last")}, "{over}")')
            case "histogram":
                refuse(f"{tree.metric} has a value for each bucket: translated within histogram_quantile() only")
            case _:
                refuse(f"{tree.metric} is no counter, so that its rate says nothing")
        return value if is_rate else replace(value, text=f"{value.text} * {_shown(range_s)}", binding=_PRODUCT)

    def _irate(self, tree: Selector, range_s: float) -> Value:
        meaning, place = self._found(tree)
        if meaning.kind != "rate":
            refuse("irate() is translated only of what the host agent measures as a rate")
        return self._value(meaning, place, _statistic(meaning, "last"))

    def _delta(self, tree: Selector, range_s: float) -> Value:
        meaning, place = self._gauge("delta", tree)
        return self._value(meaning, place, f'delta({_statistic(meaning, "last")}, "{lasting(range_s)}")')

    def _over(self, function: str, statistic: str) -> Callable[[Selector, float], Value]:
        def over(tree: Selector, range_s: float) -> Value:
            meaning, place = self._gauge(function, tree)
            return self._value(meaning, place, f'{function}({_statistic(meaning, statistic)}, "{lasting(range_s)}")')

        return over

    def _forecast(self, tree: Expression, ahead: Expression) -> Value:
        ahead_s = float(self._number_in("predict_linear", ahead))
        selector, history_s = self._selected("predict_linear", tree)
        meaning, place = self._gauge("predict_linear", selector)
        if not (60 * BLOCKS <= history_s <= _YEAR_S and 60 <= ahead_s <= _YEAR_S):
            refuse(f"predict_linear() is translated of {BLOCKS} min to a year, and for a minute to a year")
        self._learned_s = min(self._learned_s, history_s)
        self.remarks.append(
            "predict_linear() draws its line by least squares, forecast() by the median of slopes, through means; it "
            "knows nothing before half of the range is there, and goes on at the level where there is no trend"
        )
        text = f'forecast({_statistic(meaning, "mean")}, "{lasting(ahead_s)}", "{lasting(history_s)}")'
        return self._value(meaning, place, text)

    def _gauge(self, function: str, tree: Selector) -> tuple[Meaning, Place]:
        meaning, place = self._found(tree)
        if meaning.kind != "gauge":
            refuse(f"{function} of {tree.metric}: that is no gauge")
        return meaning, place

    def _quantile(self, q: Expression, tree: Expression) -> Value:
        quantile = self._number_in("histogram_quantile", q)
        if not 0 <= float(quantile) <= 1:
            refuse(f"histogram_quantile({quantile}): a quantile is from 0 to 1")
        aggregation = tree if isinstance(tree, Aggregation) else None
        inner = aggregation.of if aggregation else tree
        if not isinstance(inner, Function) or inner.name not in ("rate", "increase") or len(inner.arguments) != 1:
            refuse("histogram_quantile() is translated around rate(…_bucket[5m]), or a sum by (le, …) of it")
        selector, range_s = self._ranged(inner.name, inner.arguments[0])
        meaning, place = self._found(selector, "bucket")
        if meaning.kind != "histogram":
            refuse(f"{selector.metric} is no histogram")
        if range_s > 3600:
            refuse("a quantile looks back for at most 1 h")
        over = lasting(range_s)
        text = f'quantile({quantile}, "{over}")'
        if meaning.field != "duration_s":
            text = f'quantile({meaning.field}, {quantile}, "{over}")'
        value = replace(self._value(meaning, place, text), adds=True)
        if aggregation:
            value = self._summed_buckets(aggregation, value)
        return self._freed(replace(value, merges={name: how for name, how in value.merges.items() if name != "le"}))

    def _summed_buckets(self, aggregation: Aggregation, value: Value) -> Value:
        if aggregation.name != "sum":
            refuse(f"histogram_quantile() of a {aggregation.name} of buckets says nothing")
        without_le = "le" in (aggregation.without or ()) or (aggregation.by is not None and "le" not in aggregation.by)
        if without_le and "le" in value.merges:
            refuse("histogram_quantile() needs the label `le`, which is aggregated away")
        by = None if aggregation.by is None else tuple(name for name in aggregation.by if name != "le")
        return self._grouped(replace(aggregation, by=by), replace(value, merges=_but(value.merges, "le")))

    def _freed(self, value: Value) -> Value:
        """A quantile or ratio: what is still apart, or was put together, is a remark and no obstacle."""
        over = value.over | ({ANY} if value.merges.get(ANY) else frozenset())
        return replace(value, over=over, merges=_but(value.merges, ANY), how="", is_free=True)

    def _absent(self, tree: Expression) -> Silence:
        if not isinstance(tree, Selector):
            refuse("absent() is translated around a metric only")
        range_s = tree.range_s or 300.0
        meaning, place = self._found(replace(tree, range_s=None))
        if meaning.kind == "constant":
            refuse("a constant is never absent")
        self.names |= {there: here for there, here in {**meaning.labels, **self._knows.labels}.items() if here}
        self.remarks.append(
            "absent() fires when no such series is left, this rule for each series that falls silent after it was "
            "heard; what was never heard is not missed"
        )
        return Silence(place, range_s)

    # -- aggregations

    def _aggregation(self, tree: Aggregation) -> Value:
        if tree.name not in ("sum", "avg", "min", "max"):
            refuse(f"{tree.name}() looks at several series at once, and a rule at one")
        return self._grouped(tree, self.number(tree.of))

    def _grouped(self, tree: Aggregation, value: Value) -> Value:
        if value.place is None:
            refuse(f"{tree.name}() of a constant")
        if value.over or value.by is not None:
            refuse("an aggregation of what is aggregated already has no equal")
        merges = dict(value.merges)
        gone = [name for name in merges if _is_removed(name, tree)]
        for name in gone:
            if merges.pop(name) != tree.name:
                what = "its series" if name == ANY else f"label {name!r}"
                refuse(
                    f"{tree.name}() puts {what} together in another way than streammon, "
                    f"which does so by {value.merges[name]}()"
                )
        over = self._identity(value.place) - self._kept(tree, value)
        kept = ("by", *sorted(tree.by)) if tree.by is not None else ("without", *sorted(tree.without or ()))
        if ANY in gone and any(not self._here(name, value) for name in tree.by or ()):
            merges[ANY] = "sum"  # still apart by a label that we do not have
        if over and tree.name == "sum" and self._is_group(value, by := tuple(sorted(self._kept(tree, value) - {""}))):
            return replace(value, merges=merges, kept=kept, by=by)
        free = value.is_free and tree.name != "sum"
        if over and value.is_free and not free:
            refuse("a sum of ratios or quantiles has no equal")
        if over and free:
            refuse(f"{tree.name}() of ratios or quantiles of several series has no equal")
        return replace(value, merges=merges, kept=kept, over=over, how=tree.name if over else "", is_free=value.is_free)

    def _is_group(self, value: Value, by: Collection[str]) -> bool:
        """Whether the windows of groups by these labels say it."""
        assert value.place is not None
        asked = re.findall(r"\blabels\.(\w+)", " ".join(value.place.conditions))
        there = self._identity(value.place) | value.place.pinned
        return value.adds and not value.is_free and set(asked) <= set(by) <= there

    def _identity(self, place: Place) -> frozenset[str]:
        """The labels that tell series of ours apart, but those that are given."""
        if place.source == "inference":
            return frozenset(self._knows.inference_by) - place.pinned
        entity = dict(place.where).get("entity")
        return frozenset({"host"} if entity == "host" else {"host", "entity", "id"}) - place.pinned

    def _kept(self, tree: Aggregation, value: Value) -> frozenset[str]:
        place = value.place
        assert place is not None
        if tree.by is not None:
            return frozenset(self._here(name, value) for name in tree.by)
        return self._identity(place) - {self._here(name, value) for name in tree.without or ()}

    def _here(self, label: str, value: Value) -> str:
        """What a label of theirs is called here; nothing if it is not here."""
        return value.labels.get(label, "")

    # -- operators

    def _binary(self, tree: Binary) -> Translated:
        operator = tree.operator
        if tree.returns_bool:
            refuse("`bool` makes a number of a comparison, which has no equal")
        if tree.matching.group:
            refuse(f"{tree.matching.group} joins a series with several others, and a rule looks at one")
        if operator in ("and", "or", "unless"):
            return self._joined(operator, self.truth(tree.left), self.truth(tree.right), tree.matching)
        if (uptime := self._uptime(tree)) is not None:
            return uptime
        left, right = self.number(tree.left), self.number(tree.right)
        if operator in _SIGNS:
            return self._calculated(operator, left, right, tree.matching)
        if operator in promql.COMPARISONS:
            return self._compared(operator, left, right, tree.matching)
        refuse(f"the operator {operator} has no equal")

    def _uptime(self, tree: Binary) -> Value | None:
        if (
            tree.operator != "-"
            or not isinstance(tree.right, Selector)
            or tree.right.metric != "node_boot_time_seconds"
        ):
            return None
        now = Selector("node_time_seconds", tree.right.matchers)
        if tree.left not in (Function("time", ()), now) or tree.right.range_s is not None or tree.right.shifted:
            return None
        return self._value(UPTIME, self._place(UPTIME, tree.right.matchers), f"{UPTIME.field}.last")

    def _calculated(self, operator: str, left: Value, right: Value, matching: Matching) -> Value:
        if left.constant is not None and right.constant is not None:
            return _constant(_computed(operator, left.constant, right.constant))
        if left.place is None or right.place is None:
            return self._with_constant(operator, left, right)
        self._check_same(left, right, matching)
        is_ratio = operator == "/" and left.how == right.how and left.how in ("", "sum") and left.over == right.over
        if is_ratio and left.merges == right.merges and set(left.merges) <= {ANY}:
            merged = self._freed(left) if left.over or left.merges else left
            left, right = (
                (_undivided(left), _undivided(right))
                if left.per_s == right.per_s
                else (_divided(left), _divided(right))
            )
            return _operated("/", merged, left, right)
        free = left.is_free and right.is_free
        if (left.over or right.over) and not free:
            refuse("it calculates with aggregates of several series of ours; only their ratio has an equal")
        if left.over != right.over or left.merges != right.merges:
            refuse("its two sides are aggregated in different ways")
        return _operated(operator, left, _divided(left), _divided(right))

    def _with_constant(self, operator: str, left: Value, right: Value) -> Value:
        value, constant = (right, left.constant) if left.place is None else (left, right.constant)
        assert constant is not None
        if operator == "/" and right.constant == 0:
            refuse("it divides by 0")
        scales = operator == "*" or (operator == "/" and left is value)
        if value.over and not value.is_free and not (scales and constant > 0):
            value = replace(value, how="mixed")
        if any(how != "avg" and name != ANY for name, how in value.merges.items()) and not scales:
            refuse("it adds a constant before all of a sum is put together")
        if ANY in value.merges and not scales and not value.is_free:
            refuse("it adds a constant to each part of what one series of ours is")
        return _operated(operator, value, _divided(left), _divided(right))

    def _compared(self, operator: str, left: Value, right: Value, matching: Matching) -> Truth:
        if left.place is None and right.place is None:
            assert left.constant is not None
            assert right.constant is not None
            holds = _COMPARE[operator](left.constant, right.constant)
            return Truth(str(holds).lower(), _ATOM, Place("", frozenset(), frozenset()), constant=holds)
        if left.place is not None and right.place is not None:
            self._check_same(left, right, matching)
        for value, sign in ((left, operator), (right, _MIRRORED[operator])):
            if value.place is not None:
                self._check_whole(value, sign, is_alone=left.place is None or right.place is None)
        value = left if left.place else right
        assert value.place is not None
        texts = (_inside(_divided(each), 0) for each in (left, right))
        return Truth(f" {operator} ".join(texts), 3, value.place, value.kept, by=value.by)

    def _check_whole(self, value: Value, sign: str, *, is_alone: bool) -> None:
        """Whether what is compared is one series of ours, or may stand for it."""
        apart = [name for name in value.merges if name != ANY]
        if apart:
            refuse(
                f"it is apart by {' and '.join(map(repr, apart))} in Prometheus, and one number in streammon: "
                f"put it together, {value.merges[apart[0]]} by (…)"
            )
        if ANY in value.merges:
            refuse(
                "Prometheus has a value for each of its series here, and streammon adds them up by "
                f"({', '.join(self._knows.inference_by)}): a threshold means another thing"
            )
        if not value.over:
            return
        known = ", ".join(value.by or sorted(value.over - {ANY})) or "its own labels"
        if value.is_free:
            theirs = "each of its own series" if value.kept is None else f"one number {_grouping(value.kept)}"
            self.remarks.append(
                f"Prometheus looks at {theirs}, streammon at each series of its own, here told apart by {known}"
            )
        elif is_alone and (value.how, sign[0]) in (("max", ">"), ("min", "<")):
            self.remarks.append(f"an alert for each series ({known}) instead of one for the {value.how} of all")
        else:
            refuse(
                f"it takes the {value.how if value.how != 'mixed' else 'aggregate'} of series that streammon keeps "
                f"apart by {known}; write a rule with a threshold for a single one, or with `by` for the sum of several"
            )

    def _check_same(self, left: Value, right: Value, matching: Matching) -> None:
        assert left.place is not None
        assert right.place is not None
        _same_place(left.place, right.place)
        _check_kept(left, right, matching)
        self._check_matching(matching, left)

    def _check_matching(self, matching: Matching, value: Value) -> None:
        assert value.place is not None
        identity = self._identity(value.place) - value.over if value.by is None else frozenset(value.by)
        if matching.on is not None and (lost := identity - {self._here(name, value) for name in matching.on}):
            refuse(f"on({', '.join(matching.on)}) pairs series without regard to {', '.join(sorted(lost))}")
        if lost := identity & {self._here(name, value) for name in matching.ignoring}:
            refuse(f"ignoring({', '.join(matching.ignoring)}) pairs series without regard to {', '.join(sorted(lost))}")

    def _joined(self, operator: str, left: Truth, right: Truth, matching: Matching) -> Truth:
        if left.constant is not None or right.constant is not None:
            return _with_known(operator, left, right)
        _same_place(left.place, right.place)
        _check_kept(left, right, matching)
        if matching.on is not None or matching.ignoring:
            labels = {**self.names, **self._knows.labels}
            self._check_matching(matching, Value("", place=left.place, labels=labels, by=left.by))
        negated = f"!({right.text})"
        binding = 1 if operator == "or" else 2
        one = left.text if left.binding >= binding else f"({left.text})"
        other = negated if operator == "unless" else right.text if right.binding >= binding else f"({right.text})"
        return Truth(f"{one} {'||' if operator == 'or' else '&&'} {other}", binding, left.place, left.kept, by=left.by)


_OVER_TIME: Final[Mapping[str, Callable[[_Translation, Selector, float], Value]]] = {
    "rate": _Translation._rate,
    "increase": _Translation._increase,
    "irate": _Translation._irate,
    "delta": _Translation._delta,
    "avg_over_time": lambda self, tree, range_s: self._over("avg_over", "mean")(tree, range_s),
    "min_over_time": lambda self, tree, range_s: self._over("min_over", "min")(tree, range_s),
    "max_over_time": lambda self, tree, range_s: self._over("max_over", "max")(tree, range_s),
}
_WHY_NOT: Final = {
    "sum_over_time": "sum_over_time() adds up scrapes: it depends on how often was scraped; use avg_over_time()",
    "count_over_time": "count_over_time() counts scrapes, and there are none here",
    "quantile_over_time": "quantile_over_time() of a gauge: windows keep its min, max, mean and last, and no quantiles",
    "stddev_over_time": "stddev_over_time(): windows keep min, max, mean and last",
    "deriv": "deriv() has no equal; delta() has",
    "time": "time() is translated in `time() - node_boot_time_seconds` only",
    "vector": "vector() has no series to look at",
    "scalar": "scalar() takes the series of another",
    "changes": "changes() has no equal",
    "resets": "resets() has no equal",
    "label_replace": "label_replace() changes labels, which are what they are here",
    "label_join": "label_join() changes labels, which are what they are here",
}
_COMPARE: Final[Mapping[str, Callable[[float, float], bool]]] = {
    "<": lt, ">": gt, "<=": le, ">=": ge, "==": eq, "!=": ne,
}  # fmt: skip
_MIRRORED: Final = {"<": ">", ">": "<", "<=": ">=", ">=": "<=", "==": "==", "!=": "!="}


def _with_known(operator: str, left: Truth, right: Truth) -> Truth:
    """``and`` and ``or`` where one side is true or false for good."""
    known, other = (left, right) if left.constant is not None else (right, left)
    if operator == "unless":
        refuse("`unless` with a constant says nothing")
    return known if known.constant == (operator == "or") else other


# ---------------------------------------------------------------- numbers


def _constant(value: float) -> Value:
    if not math.isfinite(value):
        refuse("infinity and NaN have no place in a rule")
    return Value(_shown(value), constant=value)


def _computed(operator: str, left: float, right: float) -> float:
    if operator == "/" and not right:
        refuse("it divides by 0")
    try:
        return {"+": left + right, "-": left - right, "*": left * right, "/": left / (right or 1.0)}[operator]
    except OverflowError:
        refuse("a constant is too large")


def _shown(value: float) -> str:
    short = f"{value:.15g}"
    return short if float(short) == value else repr(value)


def _operated(operator: str, kind: Value, left: Value, right: Value) -> Value:
    binding = _SIGNS[operator]
    strictly = binding + (operator in "-/")
    text = f"{_inside(left, binding)} {operator} {_inside(right, strictly)}"
    return replace(kind, text=text, binding=binding, constant=None, per_s=1.0)


def _inside(value: Value, binding: int) -> str:
    is_negative = value.constant is not None and value.constant < 0 and binding > 0
    return f"({value.text})" if value.binding < binding or is_negative else value.text


def _divided(value: Value) -> Value:
    """With the division by the seconds of its range made."""
    if value.per_s == 1.0:
        return value
    return replace(value, text=f"{value.text} / {_shown(value.per_s)}", binding=_PRODUCT, per_s=1.0)


def _undivided(value: Value) -> Value:
    return replace(value, per_s=1.0)


def _statistic(meaning: Meaning, statistic: str) -> str:
    return as_field(f"{meaning.field}.{statistic}") if meaning.field.startswith("gauges.") else meaning.field


def lasting(seconds: float) -> str:
    """``5m``, ``90s``."""
    for unit, size in (("d", 86_400), ("h", 3600), ("m", 60)):
        if seconds >= size and seconds % size == 0:
            return f"{seconds / size:.0f}{unit}"
    return f"{seconds:g}s" if seconds < 1e6 else f"{seconds:.0f}s"


# ---------------------------------------------------------------- labels


def _is_removed(label: str, tree: Aggregation) -> bool:
    if label == ANY:
        return tree.by is not None
    return label not in tree.by if tree.by is not None else label in (tree.without or ())


def _but(merges: Mapping[str, str], name: str) -> dict[str, str]:
    return {each: how for each, how in merges.items() if each != name}


def _grouping(kept: Collection[str]) -> str:
    kind, *names = kept
    if kind == "by" and not names:
        return "for all together"
    return f"{'for each' if kind == 'by' else 'without'} ({', '.join(names)})"


def _same_place(one: Place, other: Place) -> None:
    if one != other:
        refuse("it compares different series of streammon with each other, and a rule looks at one: "
               f"{_told(one)} and {_told(other)}")  # fmt: skip


def _check_kept(one: Value | Truth, other: Value | Truth, matching: Matching) -> None:
    if one.kept != other.kept and matching.on is None and not matching.ignoring:
        refuse("its two sides have different labels, so that Prometheus finds no pairs")
    if one.by != other.by:
        refuse("its two sides are of groups by different labels, and a rule looks at one kind of them")


def _told(place: Place) -> str:
    parts = [*(f'{name}="{value}"' for name, value in sorted(place.where)), *sorted(place.conditions)]
    return f"{place.source}{{{', '.join(parts)}}}"


def _says_nothing(matcher: LabelMatcher) -> bool:
    """Of a label that is always there: ``mountpoint!=""``, ``instance=~".+"``."""
    always = matcher.label in ("mountpoint", "device", "instance", "fstype") and (matcher.operator, matcher.value) in (
        ("!=", ""),
        ("=~", ".+"),
    )
    return always or (matcher.operator, matcher.value) == ("=~", ".*")


def _host_of(instance: str) -> str:
    """``web-1`` of ``web-1:9100``."""
    return re.sub(r":\d+$", "", instance)


def _with_mode(meaning: Meaning, matchers: tuple[LabelMatcher, ...]) -> tuple[Meaning, tuple[LabelMatcher, ...]]:
    """Of CPU time: which part of it."""
    if "{mode}" not in meaning.field:
        return meaning, matchers
    modes = [each for each in matchers if each.label == "mode"]
    rest = tuple(each for each in matchers if each.label != "mode")
    asked = [(each.operator, frozenset(each.value.split("|"))) for each in modes]
    if len(asked) == 1 and asked[0][0] in ("=", "=~") and modes[0].value in CPU_MODES:
        merges = {name: how for name, how in meaning.merges.items() if name != "mode"}
        return replace(meaning, field=meaning.field.format(mode=modes[0].value), merges=merges), rest
    if asked == [("!~", frozenset({"idle", "iowait"}))]:
        return replace(meaning, field="gauges.utilization"), rest
    refuse('of CPU time, mode="…" and mode!~"idle|iowait" are known')


def _with_status(meaning: Meaning, matchers: tuple[LabelMatcher, ...]) -> tuple[Meaning, tuple[LabelMatcher, ...]]:
    """Of requests: the ones that failed."""
    asked = [each for each in matchers if each.label in _STATUS]
    rest = tuple(each for each in matchers if each.label not in _STATUS)
    if not asked:
        return meaning, rest
    if len(asked) == 1 and asked[0].operator in ("=", "=~") and asked[0].value in _ERRORS:
        return replace(meaning, field="error_count"), rest
    if len(asked) == 1 and asked[0].operator == "!~" and asked[0].value in _ERRORS:
        return replace(meaning, field="count - error_count"), rest
    refuse(f'{asked[0]}: windows know failed requests, code=~"5..", and no other status')


def regular(pattern: str) -> str:
    """A regular expression: Prometheus, Alertmanager and we read them with RE2, so it means the same.

    Raises:
        UntranslatedError: it is none.
    """
    try:
        matches("", pattern)
    except ExpressionError as error:
        refuse(str(error))
    return pattern
