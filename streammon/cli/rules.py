"""``streammon rules test`` and ``streammon rules backtest``: what rules would do, before they do it to anybody."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from enum import StrEnum
from math import inf, nan
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from streammon.cli.base import Output, OutputOption, command, print_json
from streammon.cli.data import moment
from streammon.cli.roles import RuleFiles, rules_app
from streammon.config import Settings
from streammon.durations import roughly, seconds
from streammon.errors import ConfigError

if TYPE_CHECKING:
    from streammon.results import Alert
    from streammon_processors.replay import Range
    from streammon_processors.rules import Rule, Rules
    from streammon_processors.rules.backtest.columns import Panel
    from streammon_processors.rules.backtest.judging import Difference, Fired, Incident, Judgement

SAY_EVERY_S = 5.0
WEEK = "/week"


class BacktestSource(StrEnum):
    """Whose windows the numbers of a CSV file are."""

    INFERENCE = "inference"
    RESOURCE = "resource"


@command(rules_app, "test")
def rules_test(
    settings: Settings, files: Annotated[list[Path], typer.Argument(help="Files of unit tests.", show_default=False)]
) -> int:
    """Run unit tests of rules: series that are made up, and the alerts that must be there at some times.

    The exit status is 1 if one fails, and 2 if a file is wrong.
    """
    from streammon_processors.rules.backtest.unit import run_tests

    failed = 0
    for file in files:
        outcome = run_tests(file, settings.windows)
        failed += len(outcome.failures)
        for failure in outcome.failures:
            print(failure)
        verdict = f"{len(outcome.failures)} of {outcome.checks} checks failed" if outcome.failures else "all good"
        print(f"{file}: {_counted(outcome.tests, 'test')}, {_counted(outcome.checks, 'check')}, {verdict}")
    return 1 if failed else 0


@command(rules_app, "backtest")
async def rules_backtest(
    settings: Settings,
    from_: Annotated[
        str | None,
        typer.Option("--from", help="Start of the range: a time, or an age such as 7d.", show_default="of the CSV"),
    ] = None,
    to: Annotated[
        str | None,
        typer.Option("--to", help="Its end, likewise, and not part of it.", show_default="of the CSV, or now"),
    ] = None,
    rules: RuleFiles = None,
    against: Annotated[
        list[Path] | None, typer.Option("--against", help="The rules to compare with.", show_default=False)
    ] = None,
    csv: Annotated[
        list[Path] | None, typer.Option("--csv", help="Numbers of the past, instead of the log.", show_default=False)
    ] = None,
    field: Annotated[str, typer.Option(help="With --csv: what the column `value` is.")] = "gauges.value",
    source: Annotated[
        BacktestSource, typer.Option(help="With --csv: whose windows these are.")
    ] = BacktestSource.RESOURCE,
    label: Annotated[
        list[str] | None, typer.Option(help="With --csv: a label of all series, NAME=VALUE.", show_default=False)
    ] = None,
    window: Annotated[
        str | None, typer.Option(help="With --csv: how long a window is.", show_default="as rows are apart")
    ] = None,
    incidents: Annotated[
        Path | None, typer.Option(help="Known incidents, YAML or JSON, or NAB's windows.", show_default=False)
    ] = None,
    fail_on: Annotated[
        list[str] | None,
        typer.Option(help="Exit with 1 on `diff`, `missed`, or `false-alarms=N/week` a series.", show_default=False),
    ] = None,
    output: OutputOption = Output.TABLE,
) -> int:
    """Say which alerts rules would have fired on the windows of the log, or on numbers in CSV files.

    With --against: what other rules would have done differently. With --incidents: which would have been found, how
    soon, and how many false alarms there would have been. Nothing is written, and nobody is called.
    """
    from streammon_processors.rules import load_rules
    from streammon_processors.rules.backtest.judging import compare, judge

    checks = _checks(fail_on or [], against=bool(against), incidents=incidents)
    new_files = rules or list(settings.rules.files)
    if not new_files:
        raise ConfigError("no rules to test: name a file with --rules or in rules.files")
    distributions = settings.windows.inference_distributions
    sets = {"new": load_rules(new_files, distributions)}
    if against:
        sets["old"] = load_rules(against, distributions)
    given = _given_range(from_, to)
    known = [] if incidents is None else _incidents(incidents, csv or [])
    seen: set[Any] = set()
    if csv:
        size_s = None if window is None else _duration("--window", window)
        panels = _panels(csv, source.value, field, _labels(label or []), size_s)
        _say_what_is_not_there(sets["new"], [*panels.values()])
        sets = {name: _that_may_decide(each, [*panels.values()]) for name, each in sets.items()}
        range_ = _range_of(panels.values(), given)
        found = {name: _on_panels(each, panels, range_, settings, seen) for name, each in sets.items()}
    else:
        range_ = _complete(given)
        found = {name: await _on_log(each, range_, settings, seen) for name, each in sets.items()}
    series = len(seen)
    if not series:
        _say("there was no window that these rules look at")
    judged = {name: judge(each, known, range_, series) for name, each in found.items()} if incidents else {}
    difference = compare(found["new"], found["old"]) if against else None
    if output is Output.JSON:
        print_json(_document(range_, found["new"], difference, judged))
    else:
        print("\n".join(_text(range_, found["new"], difference, judged)))
    return 1 if any(_fails(check, difference, judged.get("new")) for check in checks.items()) else 0


# --- what is asked for ----------------------------------------------------------------------------------------------


def _checks(texts: Sequence[str], *, against: bool, incidents: Path | None) -> dict[str, float]:
    """By what to fail on, how much of it is too much."""
    found: dict[str, float] = {}
    for text in texts:
        name, _, limit = text.partition("=")
        if name not in ("diff", "missed", "false-alarms") or (name == "false-alarms") != bool(limit):
            raise ConfigError(f"--fail-on is {text!r}, expected diff, missed, or false-alarms=N/week")
        if name == "diff" and not against:
            raise ConfigError("--fail-on diff needs --against: the rules to compare with")
        if name != "diff" and incidents is None:
            raise ConfigError(f"--fail-on {name} needs --incidents: what had happened")
        try:
            found[name] = float(limit.removesuffix(WEEK)) if limit else 0.0
        except ValueError:
            found[name] = nan
        if not 0 <= found[name] < inf:
            raise ConfigError(f"--fail-on is {text!r}, expected false-alarms=N/week with a number")
    return found


def _fails(check: tuple[str, float], difference: Difference | None, judged: Judgement | None) -> bool:
    match check:
        case ("diff", _):
            return difference is not None and difference.is_any
        case ("missed", _):
            return judged is not None and judged.missed > 0
        case _:
            return judged is not None and judged.false_alarms_a_week_a_series > check[1]


def _given_range(from_: str | None, to: str | None) -> tuple[float | None, float | None]:
    begin = None if from_ is None else moment("--from", from_)
    end = None if to is None else moment("--to", to)
    if begin is not None and end is not None and begin >= end:
        raise ConfigError(f"--from {from_} is not before --to {to}")
    return begin, end


def _complete(given: tuple[float | None, float | None]) -> Range:
    from streammon_processors.replay import Range

    begin, end = given
    if begin is None:
        raise ConfigError("--from says how far back in the log, such as 7d; only with --csv it may be left out")
    if end is None:
        end = time.time()
        if begin >= end:
            raise ConfigError("--from is in the future, and without --to the range ends now")
    return Range(begin, end)


def _range_of(panels: Any, given: tuple[float | None, float | None]) -> Range:
    from streammon_processors.replay import Range

    # an alert is told of at the end of a window, and a range does not hold its end
    starts = [(float(each.starts[0]), float(each.starts[-1]) + 2 * each.size_s) for each in panels]
    first, last = min(begin for begin, _ in starts), max(end for _, end in starts)
    found = Range(first if given[0] is None else given[0], last if given[1] is None else given[1])
    if found.from_unix_s >= found.to_unix_s:
        raise ConfigError(f"--from and --to leave nothing: the files are from {_time(first)} to {_time(last)}")
    return found


def _duration(option: str, text: str) -> float:
    try:
        found = seconds(text)
    except ValueError as error:
        raise ConfigError(f"{option}: {error}") from None
    if not found:
        raise ConfigError(f"{option} is {text!r}; a window is longer than that")
    return found


def _labels(texts: Sequence[str]) -> dict[str, str]:
    pairs = [text.partition("=") for text in texts]
    if wrong := [text for text, (name, sign, _) in zip(texts, pairs, strict=True) if not (name and sign)]:
        raise ConfigError(f"--label is {wrong[0]!r}, expected NAME=VALUE")
    return {name: value for name, _, value in pairs}


def _incidents(file: Path, csv: Sequence[Path]) -> list[Incident]:
    from streammon_processors.rules.backtest.incidents import load_incidents

    return load_incidents(file, [each.name for each in csv])


# --- running --------------------------------------------------------------------------------------------------------


def _panels(
    files: Sequence[Path], source: str, field: str, labels: Mapping[str, str], size_s: float | None
) -> dict[Path, Panel]:
    from streammon_processors.rules.backtest.numbers_csv import csv_panel

    panels: dict[Path, Panel] = {}
    owners: dict[Any, Path] = {}
    for file in dict.fromkeys(files):
        own = ({"entity": "service"} if source == "resource" else {}) | {"file": file.name} | dict(labels)
        panels[file] = csv_panel(file, source=source, field=field, labels=own, size_s=size_s)  # type: ignore[arg-type]  # the enumeration has its values
        for key in panels[file].keys:
            if key in owners:
                series = " ".join(f"{name}={value}" for name, value in key)
                raise ConfigError(f"{owners[key]} and {file} both have the series {series}: put it into one file")
            owners[key] = file
    return panels


def _say_what_is_not_there(rules: Rules, panels: Sequence[Panel]) -> None:
    """Rules that can decide nothing look as if nothing was wrong."""
    for rule in sorted(rules, key=lambda each: each.source):
        if fields := sorted(_lacking(rule, panels)):
            _say(f"rule {rule.name!r} looks at {', '.join(fields)} of {rule.source} windows, which no file has")


def _that_may_decide(rules: Rules, panels: Sequence[Panel]) -> Rules:
    """Those without a number or silence to go by are left out, so that their windows need not be made, either."""
    from streammon_processors.rules import Rules

    return Rules(tuple(each for each in rules if each.no_data == "fire" or not _knows_nothing(each, panels)))


def _knows_nothing(rule: Rule, panels: Sequence[Panel]) -> bool:
    return bool(rule.fields) and rule.fields == _lacking(rule, panels)


def _lacking(rule: Rule, panels: Sequence[Panel]) -> frozenset[str]:
    """The numbers that a rule looks at and no file has."""
    there = {name for each in panels if each.source == rule.source for name in (*each.numbers, *each.alike)}
    return rule.fields - there


def _on_panels(
    rules: Rules, panels: Mapping[Path, Panel], range_: Range, settings: Settings, seen: set[Any]
) -> list[Fired]:
    from streammon_processors.rules.backtest.by_groups import group_alerts_of, of_series
    from streammon_processors.rules.backtest.judging import fired
    from streammon_processors.rules.backtest.running import about, alerts_of

    transitions: list[Alert] = []
    for file, panel in panels.items():
        if (alone := about(of_series(rules), {panel.source})).rules:
            transitions += alerts_of(alone, panel, settings.windows, progress=_Saying(str(file)))
            seen.update(panel.keys)
    groups = group_alerts_of(rules, [*panels.values()], settings.windows, progress=_Saying("groups"), seen=seen)
    return fired([*transitions, *groups], range_)


async def _on_log(rules: Rules, range_: Range, settings: Settings, seen: set[Any]) -> list[Fired]:
    from streammon_processors.rules.backtest.log import backtest_log

    found = await backtest_log(settings, rules, range_, _SayingByPartition())
    seen |= found.series
    if found.is_cut:
        _say("retention has taken what rules would have looked at: the beginning is an approximation")
    return found.alerts


class _Saying:
    """Tells a person now and then how far it has come."""

    def __init__(self, what: str) -> None:
        self._what, self._due = what, time.monotonic() + SAY_EVERY_S

    def __call__(self, time_unix_s: float) -> None:
        if time.monotonic() >= self._due:
            self._due = time.monotonic() + SAY_EVERY_S
            _say(f"{self._what}: at {_time(time_unix_s)}")


class _SayingByPartition:
    """The same, of several partitions."""

    def __init__(self) -> None:
        self._saying: dict[int, _Saying] = {}

    def __call__(self, partition: int, time_unix_s: float) -> None:
        self._saying.setdefault(partition, _Saying(f"partition {partition}"))(time_unix_s)


def _say(line: str) -> None:
    print(f"backtest: {line}", file=sys.stderr, flush=True)


# --- printing -------------------------------------------------------------------------------------------------------


def _document(
    range_: Range, alerts: Sequence[Fired], difference: Difference | None, judged: Mapping[str, Judgement]
) -> dict[str, Any]:
    return {
        "from_unix_s": range_.from_unix_s,
        "to_unix_s": range_.to_unix_s,
        "alerts": msgspec.to_builtins(alerts),
        "difference": msgspec.to_builtins(difference),
        "incidents": {name: msgspec.to_builtins(each) for name, each in judged.items()},
    }


def _text(
    range_: Range, alerts: Sequence[Fired], difference: Difference | None, judged: Mapping[str, Judgement]
) -> list[str]:
    lines = [_line(" ", each) for each in alerts] if difference is None else _differing(difference)
    lines.append(f"{_counted(len(alerts), 'alert')} from {_time(range_.from_unix_s)} to {_time(range_.to_unix_s)}")
    if difference is not None:
        lines.append(
            f"{len(difference.only_new)} only with the new (+), {len(difference.only_old)} only with the old (-), "
            f"{len(difference.changed)} changed (~), {difference.same} the same"
        )
    for name, each in judged.items():
        lines += _judged(name if len(judged) > 1 else "", each)
    return lines


def _differing(difference: Difference) -> list[str]:
    plain = [(each.from_unix_s, [_line("+", each)]) for each in difference.only_new]
    plain += [(each.from_unix_s, [_line("-", each)]) for each in difference.only_old]
    plain += [
        (each.new.from_unix_s, [_line("~ old", each.old), _line("~ new", each.new)]) for each in difference.changed
    ]
    return [line for _, lines in sorted(plain) for line in lines]


def _line(mark: str, alert: Fired) -> str:
    end = "still firing" if alert.to_unix_s is None else f"for {roughly(alert.to_unix_s - alert.from_unix_s)}"
    labels = " ".join(f"{name}={value}" for name, value in alert.labels.items())
    return f"{mark:1} {_time(alert.from_unix_s)}  {alert.severity:8}  {alert.rule}  {labels}  {end}  {alert.condition}"


def _judged(name: str, found: Judgement) -> list[str]:
    lines = []
    for each in found.incidents:
        told = "MISSED" if each.delay_s is None else f"found after {roughly(each.delay_s)} by {each.rule}"
        what = each.incident.name or " ".join(f"{key}={value}" for key, value in each.incident.labels.items())
        lines.append(f"  incident {_time(each.incident.from_unix_s)}  {what}: {told}")
    prefix = f"{name}: " if name else ""
    delay = "" if found.median_delay_s is None else f", delay {roughly(found.median_delay_s)} (median)"
    caught = len(found.incidents) - found.missed
    lines.append(
        f"{prefix}{caught} of {len(found.incidents)} incidents found (recall {_share(found.recall)}){delay}; "
        f"{_counted(len(found.false_alarms), 'false alarm')} (precision {_share(found.precision)}), "
        f"{found.false_alarms_a_day:.3g} a day, {found.false_alarms_a_week_a_series:.3g} a week a series"
    )
    return lines


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _share(share: float | None) -> str:
    return "-" if share is None else f"{share:.3g}"


def _time(unix_s: float) -> str:
    if abs(unix_s) == inf:
        return "-"
    return datetime.fromtimestamp(unix_s, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
