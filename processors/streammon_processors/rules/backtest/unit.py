"""Unit tests of rules, in YAML: series that are made up, and the alerts that must be there at some times.

::

    rules: [rules.yaml]                  # beside this file
    interval: 10s                        # how long a window is
    tests:
      - name: a slow hour pages
        source: inference
        series:
          - labels: {service: shop, model: ranker}
            values:                      # one a window; as promtool writes them
              duration_s.p99: 0.1x20 0.9x10 _x5
              count: 50x31 _x5
        alerts:
          - at: 4m                       # since the first window began
            rule: slow
            expect:                      # all there are; [] for none
              - {state: firing, severity: critical, labels: {model: ranker}}

Rules on results are tested by ``results`` instead, each as it would be on the wire, but for its times: ``at`` is when
it comes and what it is about, and every other time counts from the beginning, too::

      - name: a run that failed pages until one is good
        source: run
        results:
          - {at: 1h, job: train, run_id: a, state: failed}
          - {at: 2h, job: train, run_id: b, state: succeeded}

``0.1x20`` is 0.1 and then 20 times again, as for promtool; ``1+2x3`` is 1 3 5 7; ``_`` is a window without the number,
and ``_x5`` five of them. Where none of its numbers is there, a series has no window. Time goes on after the last one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
from msgspec import UNSET, Struct, UnsetType, field

from streammon.config import WindowSettings
from streammon.durations import Duration, seconds
from streammon.durations import shown as shown_duration
from streammon.errors import ConfigError
from streammon.results import Alert, AlertState, Severity
from streammon.yaml_files import load_yaml, place_of
from streammon_processors.rules.backtest.by_groups import group_alerts_of, of_series
from streammon_processors.rules.backtest.columns import Panel, panel
from streammon_processors.rules.backtest.running import alerts_of, alerts_of_results
from streammon_processors.rules.conditions.expression import Floats
from streammon_processors.rules.description import Rules
from streammon_processors.rules.files import load_rules
from streammon_processors.rules.sources import SOURCES, Results, SourceName, Windows

START_UNIX_S: Final = 1_699_920_000.0
"""When tests begin: midnight, 14 November 2023."""
MAX_VALUES: Final = 1_000_000
_WORD: Final = re.compile(
    r"(?P<number>_|[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)(?P<step>[-+](?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?)?"
    r"(?:x(?P<times>\d+))?"
)


class _Series(Struct, frozen=True, forbid_unknown_fields=True):
    values: dict[str, str | float]
    labels: dict[str, str] = {}


class _Expected(Struct, frozen=True, forbid_unknown_fields=True):
    """An alert; what is not given may be anything."""

    state: AlertState | UnsetType = UNSET
    severity: Severity | UnsetType = UNSET
    labels: dict[str, str] = {}
    condition: str | UnsetType = UNSET
    summary: str | UnsetType = UNSET
    value: float | UnsetType = UNSET


class _At(Struct, frozen=True, forbid_unknown_fields=True):
    at: Duration
    rule: str
    expect: tuple[_Expected, ...]


class _Test(Struct, frozen=True, forbid_unknown_fields=True):
    alerts: tuple[_At, ...]
    series: tuple[_Series, ...] = ()
    results: tuple[dict[str, Any], ...] = ()
    source: SourceName = "inference"
    name: str = ""
    interval: Duration | None = None


class _File(Struct, frozen=True, forbid_unknown_fields=True):
    rules: tuple[str, ...]
    tests: tuple[_Test, ...]
    interval: Duration = field(default="10s")


class Failure(NamedTuple):
    """What was expected of a rule at some time, and what was there."""

    test: str
    at_s: float
    rule: str
    place: str
    expected: list[str]
    found: list[str]

    def __str__(self) -> str:
        lines = [f"{self.place}: {self.test}: {self.rule} at {shown_duration(self.at_s)}"]
        lines += [f"  expected: {each}" for each in self.expected or ["no alert"]]
        lines += [f"  found:    {each}" for each in self.found or ["no alert"]]
        return "\n".join(lines)


class Outcome(NamedTuple):
    tests: int
    checks: int
    failures: list[Failure]


def run_tests(file: Path, settings: WindowSettings) -> Outcome:
    """Run all tests of a file.

    Raises:
        ConfigError: the file, or a file of rules, is wrong; with the place.
    """
    given = load_yaml(file, _File)
    rules = load_rules([file.parent / each for each in given.rules])
    failures: list[Failure] = []
    for number, test in enumerate(given.tests):
        failures += _run(file, number, test, rules, given.interval, settings)
    return Outcome(len(given.tests), sum(len(test.alerts) for test in given.tests), failures)


def _run(
    file: Path, number: int, test: _Test, rules: Rules, interval: Duration, settings: WindowSettings
) -> Iterator[Failure]:
    size_s = _duration(file, ("tests", number, "interval"), test.interval if test.interval is not None else interval)
    if not size_s:
        raise ConfigError(f"{place_of(file, ('tests', number, 'interval'))}: a window is longer than that")
    checks = [_check(file, (number, at), each, rules) for at, each in enumerate(test.alerts)]
    until = START_UNIX_S + max([at_s for at_s, _ in checks], default=0.0)
    transitions = list(_transitions(file, number, test, rules, size_s, until, settings))
    for place, (at_s, check) in enumerate(checks):
        found = _active(transitions, check.rule, START_UNIX_S + at_s)
        if not _fits(check.expect, found):
            where = place_of(file, ("tests", number, "alerts", place))
            name = test.name or f"test {number + 1}"
            yield Failure(
                name,
                at_s,
                check.rule,
                where,
                [*map(_wanted, check.expect)],
                [_shown(each, check.expect) for each in found],
            )


def _transitions(
    file: Path, number: int, test: _Test, rules: Rules, size_s: float, until: float, settings: WindowSettings
) -> Iterator[Alert]:
    source = SOURCES[test.source]
    if isinstance(source, Windows):
        _refuse(file, number, test, "results", f"of {source.noun}, give `series` with `values`")
        given = _panel(file, number, test, size_s)
        alone = alerts_of(of_series(rules), given, settings, until_unix_s=until)
        return chain(alone, group_alerts_of(rules, [given], settings, until_unix_s=until))
    _refuse(file, number, test, "series", f"of {source.noun}, give `results`")
    results = [_result(file, (number, place), source, each, size_s) for place, each in enumerate(test.results)]
    return alerts_of_results(rules, source.topic, sorted(results, key=lambda each: each[0]), settings, until)


def _refuse(file: Path, number: int, test: _Test, name: str, instead: str) -> None:
    if getattr(test, name):
        raise ConfigError(f"{place_of(file, ('tests', number, name))}: {instead}")


def _check(file: Path, place: tuple[int, int], check: _At, rules: Rules) -> tuple[float, _At]:
    keys = ("tests", place[0], "alerts", place[1])
    if check.rule not in rules.by_name:
        known = ", ".join(rules.by_name) or "none"
        raise ConfigError(f"{place_of(file, (*keys, 'rule'))}: there is no rule {check.rule!r}; there are {known}")
    return _duration(file, (*keys, "at"), check.at), check


def _duration(file: Path, keys: Sequence[str | int], given: Duration) -> float:
    try:
        return seconds(given)
    except ValueError as error:
        raise ConfigError(f"{place_of(file, keys)}: {error}") from None


# ---------------------------------------------------------------- series


def _panel(file: Path, number: int, test: _Test, size_s: float) -> Panel:
    columns: dict[str, dict[int, Floats]] = {}
    for place, each in enumerate(test.series):
        for name, text in each.values.items():
            keys = ("tests", number, "series", place, "values", name)
            columns.setdefault(name, {})[place] = _values(file, keys, str(text))
    length = max((len(values) for column in columns.values() for values in column.values()), default=0)
    if not length:
        raise ConfigError(f"{place_of(file, ('tests', number, 'series'))}: no series has a value")
    numbers = {name: np.full((length, len(test.series)), np.nan) for name in columns}
    for name, column in columns.items():
        for place, values in column.items():
            numbers[name][: len(values), place] = values
    starts: Floats = START_UNIX_S + size_s * np.arange(length, dtype=np.float64)
    try:
        return panel(test.source, size_s, [each.labels for each in test.series], starts, numbers)
    except ConfigError as error:
        raise ConfigError(f"{place_of(file, ('tests', number, 'series'))}: {error}") from None


def _values(file: Path, keys: Sequence[str | int], text: str) -> Floats:
    found: list[float] = []
    for word in text.split():
        match = _WORD.fullmatch(word)
        if match is None or (match["number"] == "_" and match["step"]):
            raise ConfigError(f"{place_of(file, keys)}: {word!r} is no value; write 0.5, 0.5x10, 1+2x5, _ or _x10")
        times = int(match["times"] or 0)
        if len(found) + times > MAX_VALUES:
            raise ConfigError(f"{place_of(file, keys)}: more than {MAX_VALUES:,} values")
        if match["number"] == "_":
            found += [np.nan] * (times if match["times"] else 1)
        else:
            first, step = float(match["number"]), float(match["step"] or 0.0)
            found += [first + step * each for each in range(times + 1)]
    return np.array(found)


# ---------------------------------------------------------------- results


def _result(
    file: Path, place: tuple[int, int], source: Results, given: Mapping[str, Any], size_s: float
) -> tuple[float, bytes]:
    """When it comes, and the record. A result of two times is as long as a window, unless it says otherwise."""
    keys = ("tests", place[0], "results", place[1])
    fields = {
        name: START_UNIX_S + _duration(file, (*keys, name), value) if _is_time(name) else value
        for name, value in given.items()
    }
    at = fields.pop("at", None)
    if at is None:
        raise ConfigError(f"{place_of(file, keys)}: `at` must be given: when it comes")
    times = dict(zip(reversed(source.times), (at, at - size_s), strict=False))
    try:
        found = msgspec.convert({"type": source.name} | times | fields, source.type, strict=False)
    except msgspec.ValidationError as error:
        problem, _, path = str(error).partition(" - at `$.")
        raise ConfigError(f"{place_of(file, (*keys, path.rstrip('`')))}: {problem}") from None
    if unknown := sorted(fields.keys() - set(source.type.__struct_fields__)):
        allowed = ", ".join(["at", *source.type.__struct_fields__])
        raise ConfigError(
            f"{place_of(file, (*keys, unknown[0]))}: there is no field {unknown[0]!r}; allowed: {allowed}"
        )
    return at, msgspec.json.encode(found)


def _is_time(name: str) -> bool:
    return name == "at" or name.endswith("unix_s")


# ---------------------------------------------------------------- what is there, and what should be


def _active(transitions: Iterable[Alert], rule: str, now_unix_s: float) -> list[Alert]:
    """The alerts of a rule at a time, as `alerts` would have them; those that are over are none."""
    newest = {each.id: each for each in transitions if each.rule == rule and each.updated_unix_s <= now_unix_s}
    active = [each for each in newest.values() if each.state != "resolved"]
    return sorted(active, key=lambda each: sorted(each.labels.items()))


def _fits(expected: Sequence[_Expected], found: Sequence[Alert]) -> bool:
    """Whether each alert that was expected is one that was found, and none is left; by augmenting paths."""
    owner: dict[int, int] = {}

    def place(number: int, seen: set[int]) -> bool:
        for at, alert in enumerate(found):
            if at not in seen and _is(expected[number], alert):
                seen.add(at)
                if at not in owner or place(owner[at], seen):
                    owner[at] = number
                    return True
        return False

    return len(expected) == len(found) and all(place(number, set()) for number in range(len(expected)))


def _is(expected: _Expected, alert: Alert) -> bool:
    said = {name: getattr(expected, name) for name in _SAID}
    alike = all(each is UNSET or each == getattr(alert, name) for name, each in said.items())
    return alike and expected.labels.items() <= alert.labels.items()


_SAID: Final = ("state", "severity", "condition", "summary", "value")


def _wanted(expected: _Expected) -> str:
    said: dict[str, Any] = {name: getattr(expected, name) for name in _SAID}
    return _text({name: each for name, each in said.items() if each is not UNSET}, expected.labels)


def _shown(alert: Alert, expected: Sequence[_Expected]) -> str:
    """An alert, as far as anybody asked, and its state and severity."""
    names = [name for name in _SAID if name in _SAID[:2] or any(getattr(e, name) is not UNSET for e in expected)]
    return _text({name: getattr(alert, name) for name in names}, alert.labels)


def _text(said: Mapping[str, Any], labels: Mapping[str, str]) -> str:
    shown = ", ".join(f"{name}: {each}" for name, each in said.items())
    return f"{shown or 'an alert'} {{{', '.join(f'{name}={each}' for name, each in sorted(labels.items()))}}}"
