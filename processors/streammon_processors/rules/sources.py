"""Sources: what a rule may look at, where it is in the log, whose it is, when it was, and what it says.

=============  ==========  ==============================================  ===========================================
source         topic       series                                          time
=============  ==========  ==============================================  ===========================================
``inference``  `windows`   as the window says                              from its start to its end
``resource``   `windows`   as the window says                              from its start to its end
``drift``      `drift`     service, model, model_version, target, detector  that of the values that were tested
``run``        `runs`      job                                             since when the run is in its state
``quality``    `quality`   service, model, model_version, slice, by        that of the predictions, or of the labels
=============  ==========  ==============================================  ===========================================

*Windows* are numbers, of equal length, and come in order of their starts; they have a past, and add up. *Results* are
facts that come when they come: a test of a day after one of an hour, a run that fails while another is under way. They
are in order only within a series, by their ends; see `lanes`. What a `Result` holds is known from its type: a field
that is added to `results.Drift` or `results.Run` is one that rules may read.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final, Literal, TypeAlias

import msgspec

from streammon.errors import Reason, Rejected
from streammon.results import COUNTERS, DISTRIBUTIONS, Counter, Distribution, Drift, Gauge, Quality, Run
from streammon.topics import DAY_S
from streammon.wire import MAX_TIME_UNIX_S
from streammon_processors.rules.conditions.cel import DISTRIBUTION, NUMBER, TEXT, TRUTH

SourceName = Literal["inference", "resource", "drift", "run", "quality"]
_STATISTICS: Final = tuple(name for name in Distribution.__struct_fields__ if name != "sketch")
_GAUGE: Final = Gauge.__struct_fields__
_NAMED: Final = {"gauges": _GAUGE, "counters": Counter.__struct_fields__, "distributions": _STATISTICS}
_RESULT: Final = "result"
"""Where a `lanes.Told` has the record."""


@dataclass(frozen=True)
class Windows:
    """Windows of requests or of a host."""

    name: SourceName
    numbers: tuple[str, ...]
    distributions: tuple[str, ...] = ()
    has_cost: bool = False
    has_named: bool = False
    """Whether it has counters and distributions under names of the senders'."""
    topic: str = "windows"
    labels: tuple[str, ...] | None = None
    """Those a series may have; None: any."""
    kept_s: float = 0.0
    patience_s: float = 300.0
    """How long nothing is heard of a breach that has not held until it is given up: as long as Prometheus takes a
    silent series to be there still."""
    evidence: str = "window"
    """Under which name the record that decided is in an alert."""
    tells: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Fields that are no numbers, and the numbers that go with them where a person is told."""

    @property
    def noun(self) -> str:
        return f"{self.name} windows"

    def kind_of(self, name: str) -> str | None:
        """The type of a field; None: there is none of that name."""
        if self.path_of(name):
            return NUMBER
        return DISTRIBUTION if name in self.distributions or self._is_named(name) else None

    @property
    def _named(self) -> Mapping[str, tuple[str, ...]]:
        """What it has under names of the senders', and the statistics of each."""
        return _NAMED if self.has_named else {"gauges": _GAUGE}

    def _is_named(self, name: str) -> bool:
        """Whether it is one of the distributions that senders name; which there are is seen in windows only."""
        return self.has_named and name.startswith("distributions.")

    def path_of(self, name: str) -> tuple[str, ...]:
        """The keys that lead to a number, or none if such windows cannot have it. Names of senders may hold dots."""
        match name.split("."):
            case [number] if number in self.numbers:
                return (number,)
            case [distribution, statistic] if distribution in self.distributions and statistic in _STATISTICS:
                return (distribution, statistic)
            case [kind, *inner, statistic] if inner and statistic in self._named.get(kind, ()):
                return (kind, ".".join(inner), statistic)
            case ["completeness", number] if number in COUNTERS:
                return ("completeness", number)
            case ["cost", *currency] if currency and self.has_cost:
                return ("cost", ".".join(currency))
        return ()

    @property
    def allowed(self) -> str:
        """Its fields, for a person who has named another."""
        named = [f"{kind}.NAME.{'|'.join(statistics)}" for kind, statistics in self._named.items()]
        numbers = [*self.numbers, *named, f"completeness.{'|'.join(COUNTERS)}"]
        if self.distributions:
            numbers.append(f"{'|'.join(self.distributions)} with .{'|'.join(_STATISTICS)}")
        return f"allowed: {', '.join(numbers + ['cost.CURRENCY'] * self.has_cost)}"


@dataclass(frozen=True)
class Results:
    """Results of which each says what it is about, and when that was."""

    name: SourceName
    noun: str
    topic: str
    type: type[Any]
    labels: tuple[str, ...]
    """The fields that tell its series, as far as a result has them."""
    span_of: Callable[[Any], tuple[float, float]]
    """From when to when. Raises Rejected: it does not say."""
    times: tuple[str, ...]
    """The fields that say so: of one time or of two."""
    derived: tuple[str, ...] = ()
    """Numbers that follow from its fields."""
    within: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Numbers within its fields, and the keys that lead there."""
    within_told: tuple[str, ...] = ()
    """The same for a person."""
    labelled: Mapping[str, Callable[[Any], str | None]] = field(default_factory=dict)
    """What is said of a label that is no field of its own."""
    is_told: Callable[[Any], bool] = lambda result: True
    """Whether rules look at such a result at all."""
    tells: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    kept_s: float = 30 * DAY_S
    """How long after its last result a series is known, that an older one is told from a newer: as long as the log."""
    patience_s: float = 30 * DAY_S
    distributions: tuple[str, ...] = ()

    @property
    def evidence(self) -> str:
        return self.name

    @cached_property
    def kinds(self) -> Mapping[str, str]:
        """Its fields and their types. Times are not among them: `span_of` says when it was."""
        told = {each.name: _kind_of(each.type) for each in _fields_of(self.type) if each.name not in self.labels}
        plain = {name: kind for name, kind in told.items() if kind and name != "schema" and not name.endswith("unix_s")}
        return plain | dict.fromkeys((*self.derived, *self.within), NUMBER)

    def kind_of(self, name: str) -> str | None:
        return self.kinds.get(name)

    def path_of(self, name: str) -> tuple[str, ...]:
        return (_RESULT, *self.within.get(name, (name,))) if name in self.kinds else ()

    @property
    def allowed(self) -> str:
        says = {NUMBER: "", TRUTH: " (true or false)", TEXT: " (a text)"}
        fields = [f"{name}{says[kind]}" for name, kind in self.kinds.items() if name not in self.within]
        return "allowed: " + ", ".join([*fields, *self.within_told, "labels." + "|".join(self.labels)])

    def series_of(self, result: Any) -> dict[str, str]:
        said = self.labelled
        named = {name: said[name](result) if name in said else getattr(result, name) for name in self.labels}
        return {name: value for name, value in named.items() if value is not None}


Source: TypeAlias = Windows | Results


def _fields_of(type_: type[Any]) -> tuple[msgspec.inspect.Field, ...]:
    info = msgspec.inspect.type_info(type_)
    assert isinstance(info, msgspec.inspect.StructType)
    return info.fields


def _kind_of(info: msgspec.inspect.Type) -> str | None:
    if isinstance(info, msgspec.inspect.UnionType):
        kinds = {_kind_of(each) for each in info.types if not isinstance(each, msgspec.inspect.NoneType)}
        return kinds.pop() if len(kinds) == 1 else None
    return next((kind for types, kind in _KINDS.items() if isinstance(info, types)), None)


_KINDS: Final[Mapping[tuple[type, ...], str]] = {
    (msgspec.inspect.IntType, msgspec.inspect.FloatType): NUMBER,
    (msgspec.inspect.BoolType,): TRUTH,
    (msgspec.inspect.StrType,): TEXT,
}


# ---------------------------------------------------------------- when it was


def _when_tested(drift: Drift) -> tuple[float, float]:
    return _checked(drift.start_unix_s, drift.end_unix_s)


def _when_so(run: Run) -> tuple[float, float]:
    """A moment: before it, the run was in another state, and nothing was wrong yet."""
    if (time := run.time_unix_s) is None:
        names = "updated_unix_s, ended_unix_s, started_unix_s or nominal_time_unix_s"
        raise Rejected(Reason.BAD_TIME, f"the run does not say since when it is {run.state!r}: {names}")
    return _checked(time, time)


def _when_good(quality: Quality) -> tuple[float, float]:
    return _checked(quality.start_unix_s, quality.end_unix_s)


def _checked(start: float, end: float) -> tuple[float, float]:
    if not 0 <= start <= end < MAX_TIME_UNIX_S:
        raise Rejected(Reason.BAD_TIME, f"it is about [{start:.15g}, {end:.15g}], which is no time")
    return start, end


# ---------------------------------------------------------------- quality


def _slice(quality: Quality) -> str | None:
    """``tenant=acme``; None of all predictions."""
    return ", ".join(f"{name}={value}" for name, value in quality.slice.items()) or None


def _by(quality: Quality) -> str:
    return "horizon" if quality.final else quality.by


def _is_first_or_last(quality: Quality) -> bool:
    """Revisions in between are of a time that later ones were told of: rules have gone on."""
    return quality.final or not quality.revision


_MEASURES: Final = (
    "accuracy", "precision", "recall", "f1", "log_loss", "calibration_error", "auc", "mae", "rmse", "bias", "score",
    "rating",
)  # fmt: skip
_ESTIMATED: Final = ("precision", "recall", "f1", "auc")
_WITHIN_QUALITY: Final[Mapping[str, tuple[str, ...]]] = (
    {
        f"intervals.{name}.{end}": ("intervals", name, end)
        for measure in _MEASURES
        for name in (measure, f"disparity.{measure}")
        for end in ("low", "high")
    }
    | {f"intervals.estimated_accuracy.{end}": ("intervals", "estimated_accuracy", end) for end in ("low", "high")}
    | {f"disparity.{name}": ("disparity", name) for name in _MEASURES}
    | {f"estimates.{name}": ("estimates", name) for name in _ESTIMATED}
    | {f"label_delay_s.{name}": ("label_delay_s", name) for name in _STATISTICS}
)


SOURCES: Final[Mapping[str, Source]] = {
    each.name: each
    for each in (
        Windows("inference", ("count", "throughput_per_s", "error_count", "error_rate"), DISTRIBUTIONS, has_cost=True),
        Windows("resource", ("count", "throughput_per_s"), has_named=True),
        Results(
            "drift",
            "drift results",
            "drift",
            Drift,
            ("service", "model", "model_version", "target", "detector"),
            _when_tested,
            ("start_unix_s", "end_unix_s"),
            tells={"drifted": ("statistic", "threshold")},
        ),
        Results("run", "runs", "runs", Run, ("job",), _when_so, ("updated_unix_s",), derived=("duration_s",)),
        Results(
            "quality",
            "quality results",
            "quality",
            Quality,
            ("service", "model", "model_version", "slice", "by"),
            _when_good,
            ("start_unix_s", "end_unix_s"),
            within=_WITHIN_QUALITY,
            within_told=(
                "intervals.MEASURE.low|high",
                "intervals.disparity.MEASURE.low|high",
                "disparity.MEASURE with a MEASURE such as accuracy",
                f"estimates.{'|'.join(_ESTIMATED)}",
                f"label_delay_s.{'|'.join(_STATISTICS)}",
            ),
            labelled={"slice": _slice, "by": _by},
            is_told=_is_first_or_last,
        ),
    )
}


def sketch_path(distribution: str) -> tuple[str, ...]:
    """The keys that lead to the sketch of a distribution in a window."""
    field, _, name = distribution.partition(".")
    return (field, name, "sketch") if name else (field, "sketch")


def path_of(source: str, name: str) -> tuple[str, ...]:
    """The keys that lead to a field, or none if there is none of that name."""
    return SOURCES[source].path_of(name)
