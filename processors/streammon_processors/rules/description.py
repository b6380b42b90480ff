"""What a rule is: a condition on the windows of a series, when it is a breach, and what a person should know then."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta, Struct

from streammon.durations import Duration, seconds
from streammon.errors import ConfigError
from streammon.results import Severity
from streammon_processors.rules.conditions import cel
from streammon_processors.rules.conditions.cel import DISTRIBUTION, Call, Constant, ExpressionError, Node, Variable
from streammon_processors.rules.conditions.expression import MATHS, calls_of, check, labels_of, negated, variables_of
from streammon_processors.rules.conditions.learning import Lesson, told_with
from streammon_processors.rules.conditions.past import FUNCTIONS, NAMES, Look, understand
from streammon_processors.rules.groups import GROUPED, Grouping
from streammon_processors.rules.sources import SOURCES, Results, Source, SourceName, sketch_path
from streammon_processors.shapes import MAX_OVERLAP, Asked, Shape, hopping, session, tumbling

NoData = Literal["hold", "fire", "resolve"]
SEVERITIES: Final[tuple[Severity, ...]] = ("info", "warning", "critical")
"""From mild to grave."""
MAX_LOOK_BACK_S: Final = 3600.0
"""Over base windows; what is seen of them is read again from the log at every start."""
MIN_LEARNED_S: Final = 60.0
"""What is learned of series is written again, with the snapshot, after each window: not every two seconds."""
MAX_SLOTS: Final = 400
"""Of longer windows, how many are looked back on; they are kept in the snapshot."""


class WindowOf(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Windows that are not simply so long: ``{size: 10m, every: 1m}`` or ``{session_gap: 30s}``."""

    size: Duration | None = None
    """How long a window is."""
    every: Duration | None = None
    """How often one starts; they overlap."""
    session_gap: Duration | None = None
    """The silence that ends a session; a session is as long as it is."""

    def __post_init__(self) -> None:
        if (self.session_gap is None) == (self.size is None) or (self.session_gap is not None and self.every):
            raise ValueError("`window` is a duration, {size, every} or {session_gap}")


class Worse(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A rung of the ladder: the same alert, at another severity."""

    severity: Severity
    expr: str | None = None
    """When it is that bad; or, of a rule with a ``field``, ``above`` or ``below``."""
    above: float | None = None
    below: float | None = None
    clear: float | str | None = None
    for_: Duration | None = msgspec.field(default=None, name="for")
    """As long as the rule's if not given."""

    def __post_init__(self) -> None:
        _check_finite(self, "above", "below", "clear")


class Rule(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, dict=True):
    """What is wrong when, how bad that is, and what the person who is woken should know."""

    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=100)]
    source: SourceName
    """Which windows, or which results: see `sources`."""
    severity: Severity
    summary: str
    """One line for a person; ``{label}`` and ``{value}`` are filled in."""
    expr: str | None = None
    """When it is a breach, in CEL: ``duration_s.p99 > 0.5 && count > 100``."""
    field: str | None = None
    """Or a number in the window, ``error_rate``, ``duration_s.p99``, ``gauges.utilization.last`` …, with a bound:"""
    above: float | None = None
    below: float | None = None
    """Breached on that side of the number; one of the two."""
    clear: float | str | None = None
    """When firing ends: an expression, or the value of ``field``. Where it is no breach any more if not given."""
    for_: Duration | None = msgspec.field(default=None, name="for")
    """How long, in event time, the breach must last."""
    for_s: Annotated[float, Meta(ge=0)] | None = None
    """The same in seconds."""
    keep_firing_for: Duration = 0.0
    """How long it must be clear until firing ends."""
    ladder: tuple[Worse, ...] = ()
    """Further severities of the same alert."""
    no_data: NoData = "hold"
    """What the silence of a series is: nothing, an alert of its own, or the end of one."""
    no_data_for: Duration = "5m"
    """How long a silence that is."""
    warm_up: Duration = "2m"
    """A series that was never heard for so long may fall silent without an alert."""
    window: Duration | WindowOf | None = None
    """Which windows it looks at: longer ones, ``5m``, overlapping ones or sessions; the base windows if not given."""
    where: dict[str, str] = {}
    """Labels that a series must have; every other label is free."""
    by: tuple[str, ...] | None = None
    """Labels that are kept: it looks at the sum of all series that have the same ones, in all partitions."""
    resolution_steps: tuple[str, ...] = ()
    contact: str | None = None
    escalation: tuple[str, ...] = ()
    runbook_url: str | None = None
    action: Annotated[str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", max_length=100)] | None = None
    """A remediation of the file of actions: see docs/remediation.md."""

    def __post_init__(self) -> None:
        _check_finite(self, "above", "below", "clear", "for_s")
        if self.expr is not None and self.field is not None:
            raise ValueError(
                "`expr` and `field`: keep one; a condition is either an expression or a field with a bound"
            )
        if self.for_ is not None and self.for_s is not None:
            raise ValueError("`for` and `for_s` are the same; keep one")
        if len({self.severity, *(rung.severity for rung in self.ladder)}) <= len(self.ladder):
            raise ValueError("`ladder`: each severity may be there once, that of the rule included")
        if isinstance(self.origin, Results):
            _check_results(self, self.origin)
        _ = self.shape, self.levels, self.keep_firing_s, self.silence_s, self.warm_up_s  # raise ValueError
        if self.shape and self.shape.kind == "session" and self.no_data != "hold":
            raise ValueError(
                "`no_data`: of sessions only `hold`; a series that is busy ends none, and would seem silent"
            )
        if self.is_kept and any(look.keeps_sketches for look in self.looks):
            raise ValueError(
                f"`quantile`: in a rule that looks back on more than {MAX_LOOK_BACK_S / 3600:g} h, be it for silence "
                "or for another function, sketches are not kept; let it look back on less, or make it a rule of its own"
            )
        _check_groups(self)

    # -- which windows or results

    @property
    def origin(self) -> Source:
        """What is known of its source."""
        return SOURCES[self.source]

    @cached_property
    def shape(self) -> Shape | None:
        """The windows it looks at; None: the base windows."""
        match self.window:
            case None:
                return None
            case WindowOf(session_gap=None, size=size, every=every):
                size_s = _length(size)
                return _hopping(size_s, size_s if every is None else _length(every))
            case WindowOf(session_gap=gap):
                return session(_length(gap))
            case length:
                return tumbling(_length(length))

    @cached_property
    def grouping(self) -> Grouping | None:
        """The groups it looks at; None: at each series alone."""
        if self.by is None or self.shape is None:
            return None
        return Grouping(self.source, self.shape, tuple(sorted(self.where.items())), tuple(sorted(self.by)))

    @property
    def topic(self) -> str:
        """Where its windows or results are."""
        return self.origin.topic if self.grouping is None else GROUPED

    @property
    def stream(self) -> str:
        """What its windows are of: a source, or a grouping."""
        return self.source if self.grouping is None else self.grouping.name

    # -- when

    @cached_property
    def levels(self) -> tuple[Level, ...]:
        """Its conditions, by severity; the mildest first."""
        own = [_Bound(self.severity, self.expr, self.above, self.below, self.clear, self._hold)]
        own += [
            _Bound(
                rung.severity,
                rung.expr,
                rung.above,
                rung.below,
                rung.clear,
                self._hold if rung.for_ is None else rung.for_,
            )
            for rung in self.ladder
        ]
        return tuple(_level(self, each) for each in sorted(own, key=lambda each: SEVERITIES.index(each.severity)))

    @property
    def _hold(self) -> Duration:
        return self.for_ if self.for_ is not None else self.for_s or 0.0

    @cached_property
    def keep_firing_s(self) -> float:
        return _named("keep_firing_for", self.keep_firing_for)

    @cached_property
    def silence_s(self) -> float:
        """A silence is at least two windows, or nobody could tell it from the wait for the next."""
        size_s = self.shape.size_s if self.shape else 0.0
        found = max(_named("no_data_for", self.no_data_for), 2 * size_s)
        if not found:
            raise ValueError("`no_data_for` says 0; between two windows every series is silent for a while")
        return found

    @cached_property
    def patience_s(self) -> float:
        """How long after its last window a breach that has not held is given up."""
        return max(self.origin.patience_s, *(level.hold_s for level in self.levels))

    @cached_property
    def warm_up_s(self) -> float:
        return _named("warm_up", self.warm_up)

    @cached_property
    def conditions(self) -> tuple[Node, ...]:
        """Every expression that has to be evaluated."""
        return tuple(node for level in self.levels for node in (level.breach, level.clear))

    @cached_property
    def looks(self) -> tuple[Look, ...]:
        """What it wants to know of the past."""
        calls = (call for node in self.conditions for call in calls_of(node, dict.fromkeys(NAMES)))
        return tuple(understand(each) for call in dict.fromkeys(calls) for each in (call, *told_with(call)))

    @cached_property
    def past_s(self) -> float:
        """How much of the past of a series it asks for."""
        silence_s = 0.0 if self.no_data == "hold" else self.silence_s + self.warm_up_s
        return max([silence_s, *(look.span_s for look in self.looks)])

    @cached_property
    def horizon_s(self) -> float:
        """How long a series is known; of results, also to tell an older one from a newer."""
        return max(self.origin.kept_s, self.past_s)

    @cached_property
    def is_kept(self) -> bool:
        """Whether that past is in the snapshot, because it goes back further than the log is read again."""
        return self.horizon_s > MAX_LOOK_BACK_S or any(look.lesson for look in self.looks)

    @cached_property
    def fields(self) -> frozenset[str]:
        """The fields of a window or result that it reads, and the distributions whose sketches it reads."""
        tracks = (node for look in self.looks for node in look.tracks)
        read = {name for node in (*self.conditions, *tracks) for name in variables_of(node)}
        return frozenset(read | {look.sketches for look in self.looks if look.sketches})

    @cached_property
    def paths(self) -> frozenset[tuple[str, ...]]:
        """The keys in a window that lead to what it reads."""
        plain = {self.origin.path_of(name) for name in self.fields} - {()}
        sketches = {sketch_path(name) for name in self.fields if self.origin.kind_of(name) == DISTRIBUTION}
        return frozenset(plain | sketches)

    @property
    def distributions(self) -> frozenset[str]:
        """The distributions it looks at."""
        return frozenset(name.partition(".")[0] for name in self.fields) & set(self.origin.distributions)

    @cached_property
    def version(self) -> str:
        """Names what decides whether the rule fires; equal for rules that differ in their texts only."""
        windows = () if self.shape is None else (self.shape.name,)
        silence = () if self.no_data == "hold" else (self.no_data, self.silence_s, self.warm_up_s)
        levels = [(level.severity, str(level.breach), str(level.clear), level.hold_s) for level in self.levels]
        groups = () if self.grouping is None else (self.grouping.by,)
        decides = (self.name, self.source, self.where, levels, self.keep_firing_s, *windows, *silence, *groups)
        return digest(decides, size=6)

    @property
    def missing(self) -> list[str]:
        """What a person would miss in an alert of this rule; what is blank says nothing."""
        needed = ("summary", "resolution_steps", "contact", "escalation", "runbook_url")
        return [name for name in needed if not "".join(getattr(self, name) or ()).strip()]


@dataclass(frozen=True)
class Level:
    """A condition, and how bad it is when it holds for ``hold_s``."""

    severity: Severity
    breach: Node
    clear: Node
    hold_s: float


@dataclass(frozen=True)
class _Bound:
    """A level as it is written."""

    severity: Severity
    expr: str | None
    above: float | None
    below: float | None
    clear: float | str | None
    hold: Duration


def _level(rule: Rule, written: _Bound) -> Level:
    hold_s = _named("for", written.hold)
    if written.expr is not None:
        if (written.above, written.below) != (None, None) or isinstance(written.clear, float | int):
            raise ValueError("`above`, `below` and a number as `clear` go with `field`, not with `expr`")
        breach = _parsed(rule, "expr", written.expr)
        clear = negated(breach) if written.clear is None else _parsed(rule, "clear", written.clear)
        return Level(written.severity, breach, clear, hold_s)
    if rule.field is None:
        raise ValueError("`expr`, or `field` with `above` or `below`, must be given")
    if rule.origin.kind_of(rule.field) != cel.NUMBER:
        raise ValueError(f"`field` is not a number in {rule.origin.noun}; {rule.origin.allowed}")
    return Level(written.severity, *_bounds(rule.field, written), hold_s)


def _bounds(field: str, written: _Bound) -> tuple[Node, Node]:
    """The breach and the end of it, of a number with a bound."""
    if (written.above is None) == (written.below is None):
        raise ValueError("`above` or `below`: exactly one of them must be given")
    sign, threshold = (1, written.above) if written.above is not None else (-1, written.below)
    assert threshold is not None
    clear = threshold if written.clear is None else written.clear
    if isinstance(clear, str):
        raise ValueError(  # noqa: TRY004  # shown with its place in the file
            "`clear` must be a number, since `field` is given"
        )
    if sign * clear > sign * threshold:
        side = "at most `above`" if sign > 0 else "at least `below`"
        raise ValueError(f"`clear` lies on the breaching side; it must be {side}, {threshold:g}")
    number, (over, back) = Variable(field), ("_>_", "_<=_") if sign > 0 else ("_<_", "_>=_")
    return Call(over, (number, Constant(float(threshold)))), Call(back, (number, Constant(float(clear))))


def _parsed(rule: Rule, name: str, text: str) -> Node:
    try:
        node, kind = cel.parse(text, _variables(rule.origin, text), (*MATHS, *FUNCTIONS))
        if kind != cel.TRUTH:
            raise ExpressionError(f"it gives a {kind}; a condition is true or false")  # noqa: TRY301  # told with the rest
        check(node, {name: lambda call: _check_look(rule, call) for name in NAMES})
        _check_labels(rule.origin, node)
    except ExpressionError as error:
        known = f"; {rule.origin.allowed}" if "is not known here" in str(error) else ""
        raise ValueError(f"`{name}`: {error}{known}") from None
    return node


def _variables(source: Source, text: str) -> dict[str, str]:
    """The fields that a text names, and their types; of texts, also where a function is called: ``state.contains``."""
    names = set(cel.names_in(text))
    called = {name.rpartition(".")[0] for name in names}
    found = {name: kind for name in sorted(names) if (kind := source.kind_of(name))}
    return found | {name: cel.TEXT for name in sorted(called) if source.kind_of(name) == cel.TEXT}


def _check_look(rule: Rule, call: Call) -> None:
    look = understand(call)
    if not look.span_s:
        return
    if isinstance(rule.origin, Results):
        raise ExpressionError(f"{call.function}: {rule.origin.noun} come when they come, and have no regular past")
    if rule.source != "inference" and call.function in ("burn_rate", "quantile") and len(call.arguments) == 2:
        raise ExpressionError(f"{call.function} is about requests; these windows have none; name a distribution")
    shape = rule.shape
    if look.lesson and (shape is None or shape.kind != "session"):
        _check_lesson(call, look.lesson, shape)
        return
    if shape is None:
        if look.span_s > MAX_LOOK_BACK_S:
            raise ExpressionError(
                f"{call.function}: base windows are looked back on for at most {MAX_LOOK_BACK_S / 3600:g} h; "
                "let the rule look at longer ones, `window: 1m`"
            )
        return
    if shape.kind == "session":
        raise ExpressionError(f"{call.function}: sessions have no regular past")
    if not 1 <= look.span_s / shape.every_s <= MAX_SLOTS:
        raise ExpressionError(
            f"{call.function}: of windows of {shape.name}, 1 to {MAX_SLOTS} can be looked back on, not "
            f"{look.span_s / shape.every_s:g}"
        )


def _check_lesson(call: Call, lesson: Lesson, shape: Shape | None) -> None:
    if shape is None or shape.size_s < MIN_LEARNED_S:
        raise ExpressionError(
            f"{call.function}: it learns from windows of {MIN_LEARNED_S:g} s or longer; "
            "let the rule look at such, `window: 5m`"
        )
    try:
        lesson.method.of_windows(shape.size_s)
    except ConfigError as error:
        raise ExpressionError(f"{call.function}: {error}") from None


@dataclass(frozen=True)
class Rules:
    """Rules with distinct names, in the order of their files."""

    rules: tuple[Rule, ...] = ()

    @cached_property
    def by_name(self) -> Mapping[str, Rule]:
        return {rule.name: rule for rule in self.rules}

    @cached_property
    def asked(self) -> Sequence[Asked]:
        """The rollups that rules look at."""
        return [Asked(rule.shape, rule.source, f"rule {rule.name!r}") for rule in self.rules if rule.shape]

    @property
    def topics(self) -> tuple[str, ...]:
        """What they look at: windows, and if a rule asks for them, those of groups, and results."""
        return tuple(dict.fromkeys(["windows", *sorted({rule.topic for rule in self.rules})]))

    @cached_property
    def groupings(self) -> Sequence[Grouping]:
        """What has to be added up for them."""
        return list(dict.fromkeys(rule.grouping for rule in self.rules if rule.grouping))

    def __iter__(self) -> Iterator[Rule]:
        return iter(self.rules)


def _check_results(rule: Rule, source: Results) -> None:
    """Raises ValueError: results are no windows, and their labels are known."""
    if rule.window is not None:
        raise ValueError(f"`window`: {source.noun} are no windows, each is about the time that it says; leave it out")
    if rule.by is not None:
        raise ValueError(
            f"`by`: {source.noun} do not add up; leave it out, and let the notifier put alerts together, `group_by`"
        )
    allowed = f"{source.noun} have {', '.join(source.labels)}"
    if lost := sorted(rule.where.keys() - set(source.labels)):
        raise ValueError(f"`where` names the label {lost[0]!r}; {allowed}")
    if lost := sorted({*_PLACE.findall(rule.summary)} - {"value", *source.labels}):
        raise ValueError(f"`summary` names {{{lost[0]}}}; {allowed}, and there is {{value}}")


def _check_labels(source: Source, node: Node) -> None:
    """Raises ExpressionError: it asks for a label that no series can have."""
    if source.labels is not None and (lost := sorted({*labels_of(node)} - {*source.labels})):
        raise ExpressionError(f"'labels.{lost[0]}' is not known here")


_PLACE: Final = re.compile(r"\{([\w.-]+)\}")


def _check_groups(rule: Rule) -> None:
    """Raises ValueError: of groups, there are no such windows or labels."""
    if rule.by is None:
        return
    if len(set(rule.by)) < len(rule.by):
        raise ValueError("`by` names a label twice")
    if rule.shape is None or rule.shape.kind != "tumbling":
        raise ValueError(
            "`by` needs a `window` of one length, such as 1m: the windows of all series are copied to be added up, and "
            "base windows are too many for that"
        )
    if lost := sorted({name for node in rule.conditions for name in labels_of(node)} - set(rule.by)):
        raise ValueError(f"`expr` asks for labels.{lost[0]}, which `by` does not keep; ask for it in `where`")
    if lost := sorted({*_PLACE.findall(rule.summary)} - {"value", *rule.by}):
        raise ValueError(f"`summary` names {{{lost[0]}}}, which `by` does not keep")
    if last := sorted(name for name in rule.fields if name.startswith("gauges.") and name.endswith(".last")):
        raise ValueError(f"{last[0]}: of several series, none is the last; take min, max or mean")


def _check_finite(of: Struct, *names: str) -> None:
    for name in names:
        value = getattr(of, name)
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"`{name}` must be a finite number")


def _named(name: str, duration: Duration) -> float:
    try:
        return seconds(duration)
    except ValueError as error:
        raise ValueError(f"`{name}`: {error}") from None


def _length(duration: Duration | None) -> float:
    """Raises ValueError."""
    found = _named("window", duration or 0.0)
    if not found:
        raise ValueError(f"`window` says {duration!r}; a window is longer than that")
    return found


def _hopping(size_s: float, every_s: float) -> Shape:
    overlap = size_s / every_s
    if not 1 <= overlap <= MAX_OVERLAP or abs(overlap - round(overlap)) > 1e-9:
        raise ValueError(f"`window`: `size` must be 1 to {MAX_OVERLAP} times `every`, a whole number of times")
    return hopping(size_s, every_s)


def digest(parts: object, size: int) -> str:
    """A name of ``2 * size`` hex digits for equal parts, whatever the order of their labels."""
    return blake2b(msgspec.json.encode(parts, order="sorted"), digest_size=size).hexdigest()
