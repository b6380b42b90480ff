"""``streammon drift calibrate``: settings of online detectors that keep to a budget of false alarms."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer
import yaml

from streammon.broker import connect
from streammon.broker.reading import read
from streammon.cli.base import Output, OutputOption, command, print_json, print_rows
from streammon.cli.data import moment
from streammon.cli.drift import drift_app
from streammon.cli.roles import ModelFile, with_models
from streammon.config import Settings
from streammon.durations import roughly
from streammon.errors import ConfigError
from streammon.models import DETECTABLE, ONLINE_SHARE, RATES, ModelPolicy, Use, load_models

if TYPE_CHECKING:
    from streammon_processors.detectors.calibration import Calibration, History

COLUMNS = ("target", "detector", "settings", "false alarms a month", "budget", "delays")


@command(drift_app, "calibrate")
async def drift_calibrate(
    settings: Settings,
    service: Annotated[str | None, typer.Option(help="The service of the model.", show_default=False)] = None,
    model: Annotated[str | None, typer.Option(help="The model.", show_default=False)] = None,
    file: Annotated[
        Path | None,
        typer.Option("--from", help="CSV file with timestamp, value and, better, count.", show_default=False),
    ] = None,
    target: Annotated[
        list[str] | None,
        typer.Option(help="What to calibrate; of a file, what its values are.", show_default="all that there is"),
    ] = None,
    from_time: Annotated[str, typer.Option(help="Of the log: since this time, or age.")] = "30d",
    to_time: Annotated[str, typer.Option(help="Of the log: until when.")] = "0s",
    effects: Annotated[str, typer.Option(help="Shifts to measure the delay for, in standard deviations.")] = "0.5,1,2",
    months: Annotated[int, typer.Option(help="How many months to make of the history.", min=1, max=5000)] = 60,
    runs: Annotated[int, typer.Option(help="How often to look for each shift.", min=1, max=1000)] = 20,
    models: ModelFile = None,
    write: Annotated[
        Path | None, typer.Option(help="Write what comes out to this new file, too.", show_default=False)
    ] = None,
    output: OutputOption = Output.TABLE,
) -> int:
    """Say which settings of online detectors keep to the budget of false alarms, and how soon they find a change.

    Many months are made of the history, with its season and its dependence, in which nothing happens; detectors run
    over them. The exit status is 1 if no candidate keeps to the budget. Prints what to put into the file of models.
    """
    from streammon_processors.detectors.calibration import Plan, calibrate
    from streammon_processors.detectors.watching import number_of_detectors, watch_of

    if write is not None and write.exists():
        raise ConfigError(f"--write {write}: it exists; put the lines into it by hand, or name a new file")
    wanted = _targets(target)
    shifts = _effects(effects)
    policy = load_models(with_models(settings, models).models.file).policy(service or "", model or "")
    histories = await _histories(settings, service, model, file, wanted, from_time, to_time)
    allowed = ONLINE_SHARE * policy.max_false_alarms_per_month / number_of_detectors(policy)
    found = []
    for history in histories:
        watch = watch_of(policy, history.name, Use())
        plan = Plan(allowed, shifts, months, runs)
        found.append(calibrate(history, watch, _candidates(history.name), plan, _say))
    lines = _yaml(found, policy, service, model)
    if write is not None:
        write.write_text(lines, encoding="utf-8")
    _print(found, lines, output)
    return 0 if all(each.best.within_budget for each in found) else 1


# --- what is asked for ----------------------------------------------------------------------------------------------


def _targets(given: Sequence[str] | None) -> list[str]:
    if wrong := [each for each in given or () if each not in DETECTABLE]:
        raise ConfigError(f"--target is {wrong[0]!r}, which is none that can be watched: {', '.join(DETECTABLE)}")
    return list(dict.fromkeys(given or ()))


def _effects(text: str) -> tuple[float, ...]:
    try:
        found = tuple(float(each) for each in text.split(","))
    except ValueError:
        found = ()
    if not found or not all(0 < each <= 100 for each in found):
        raise ConfigError(f"--effects is {text!r}, expected standard deviations such as 0.5,1,2")
    return found


def _candidates(target: str) -> list[str]:
    return ["page_hinkley", "adwin", *(["hddm_a"] if target in RATES else [])]


async def _histories(
    settings: Settings,
    service: str | None,
    model: str | None,
    file: Path | None,
    wanted: Sequence[str],
    from_time: str,
    to_time: str,
) -> list[History]:
    if file is not None:
        if len(wanted) != 1:
            raise ConfigError("--from FILE has the values of one target: say which with --target, such as duration_s")
        from streammon_processors.detectors.histories import history_of_csv

        return [history_of_csv(file, wanted[0])]
    if service is None or model is None:
        raise ConfigError("say whose history: --service and --model, for that in the log; or --from FILE")
    first, last = moment("--from-time", from_time), moment("--to-time", to_time)
    if first >= last:
        raise ConfigError(f"--from-time {from_time} is not before --to-time {to_time}")
    found = await _of_log(settings, (service, model), first, last)
    chosen = [each for each in found if not wanted or each.name in wanted]
    if not chosen:
        there = ", ".join(each.name for each in found) or "nothing"
        raise ConfigError(
            f"the log has {there} of {service}/{model} in that time, and not {', '.join(wanted) or 'more'}"
        )
    return chosen


async def _of_log(settings: Settings, of: tuple[str, str], first: float, last: float) -> list[History]:
    from streammon_processors.detectors.histories import Gathering
    from streammon_processors.detectors.lengths import step_s

    gathering = Gathering(*of, step_s(settings.windows.size_s), first, last)
    broker = await connect(settings)
    try:
        topics = sorted({"windows", "quality"} & set(await broker.topics()))
        start = max(0.0, first - settings.windows.max_future_s)
        async with aclosing(read(broker, topics, start)) as batches:
            async for partition, records in batches:
                for record in records:
                    gathering.take(partition.topic, record)
    finally:
        await broker.close()
    return gathering.histories()


# --- what comes out -------------------------------------------------------------------------------------------------


def _say(line: str) -> None:
    print(f"calibrate: {line}", file=sys.stderr, flush=True)


def _yaml(found: Sequence[Calibration], policy: ModelPolicy, service: str | None, model: str | None) -> str:
    """An entry for the file of models; what was not calibrated stays as it is."""
    detectors = _without_defaults(msgspec.to_builtins(policy.detectors), msgspec.to_builtins(type(policy.detectors)()))
    uses = {name: [msgspec.to_builtins(use) for use in uses] for name, uses in policy.detectors.watched.items()}
    for each in found:
        uses[each.target] = [{"detector": each.best.detector, "settings": each.best.settings}]
    usual = {**msgspec.to_builtins(Use()), "detector": None}
    detectors["targets"] = {name: [_without_defaults(use, usual) for use in some] for name, some in uses.items()}
    named = {name: text for name, text in (("service", service), ("model", model)) if text is not None}
    return yaml.safe_dump({"models": [{**named, "detectors": detectors}]}, sort_keys=False, width=120)


def _without_defaults(given: dict[str, Any], usual: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in given.items() if value != usual[name]}


def _print(found: Sequence[Calibration], lines: str, output: Output) -> None:
    if output is Output.JSON:
        print_json(
            {
                "targets": [
                    {**msgspec.to_builtins(each), "best": each.best.detector, "warning": each.warning} for each in found
                ],
                "yaml": lines,
            }
        )
        return
    rows = [_row(each, candidate) for each in found for candidate in each.candidates]
    print_rows(rows, COLUMNS, output, empty="nothing to calibrate")
    for each in found:
        if each.warning:
            print(f"{each.target}: {each.warning}")
    print(f"\n{lines}", end="")


def _row(calibration: Calibration, candidate: Any) -> dict[str, str]:
    delays = ", ".join(
        f"{each.effect:g} sd {roughly(each.median_s) if each.median_s is not None else 'not'} ({each.found:.0%})"
        for each in candidate.delays
    )
    too_many = candidate.low > calibration.allowed_per_month
    kept = "kept" if candidate.within_budget else "exceeded" if too_many else "not shown to be kept"
    return {
        "target": calibration.target + (" *" if candidate is calibration.best else ""),
        "detector": candidate.detector,
        "settings": " ".join(f"{name}={value:g}" for name, value in candidate.settings.items()),
        "false alarms a month": f"{candidate.false_alarms_per_month:.3f} ({candidate.low:.3f} to {candidate.high:.3f})",
        "budget": f"{calibration.allowed_per_month:.3f} {kept}",
        "delays": delays,
    }
