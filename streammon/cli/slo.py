"""``streammon slo``: whether service level objectives were met."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import aclosing
from math import isfinite
from typing import TYPE_CHECKING, Annotated, Any

import typer

from streammon.broker import connect
from streammon.broker.reading import read
from streammon.cli.base import Output, OutputOption, app, command, print_json, print_rows
from streammon.cli.data import clock_time, moment
from streammon.cli.roles import RuleFiles, with_rules
from streammon.config import Settings
from streammon.errors import ConfigError

if TYPE_CHECKING:
    from streammon_processors.rules import ServiceLevel
    from streammon_processors.slos.report import Compliance, Report

slo_app = typer.Typer(help="Service level objectives: whether they were met.", no_args_is_help=True)
app.add_typer(slo_app, name="slo")
COLUMNS = (
    "slo",
    "series",
    "objective",
    "achieved",
    "met",
    "budget left",
    "requests",
    "breaches",
    "minutes",
    "worst hour",
)


@command(slo_app, "report")
async def slo_report(
    settings: Settings,
    from_: Annotated[str, typer.Option("--from", help="Start: a time, or an age such as 30d.")] = "30d",
    to: Annotated[str, typer.Option("--to", help="End, likewise.")] = "0s",
    rules: RuleFiles = None,
    fail_under: Annotated[
        float | None,
        typer.Option(help="Exit with 1 if less of an error budget is left: 0.25 is a quarter.", show_default=False),
    ] = None,
    output: OutputOption = Output.TABLE,
) -> int:
    """Say how well the objectives of the rule files were met, from the windows in the log: by objective and series.

    A breach is a run of minutes with a smaller share of good requests than the objective; minutes is how many in all.
    """
    from streammon_processors.rules import load_rules, load_slos
    from streammon_processors.slos.report import Report

    files = with_rules(settings, rules).rules.files
    load_rules(files, settings.windows.inference_distributions)  # finds what is wrong with them
    levels = load_slos(files)
    if not levels:
        raise ConfigError("no objectives to report on: name a file that has `slos` with --rules or in rules.files")
    if fail_under is not None and not isfinite(fail_under):
        raise ConfigError(f"--fail-under is {fail_under}; it is a share of an error budget, such as 0.25")
    first, last = moment("--from", from_), moment("--to", to)
    if first >= last:
        raise ConfigError(f"--from {from_} is not before --to {to}")
    report = Report(levels, first, last)
    await _take_in(settings, report, first)
    rows = list(report.rows())
    _print(rows, levels, output)
    return 1 if fail_under is not None and any(row.budget_left < fail_under for row in rows) else 0


async def _take_in(settings: Settings, report: Report, from_unix_s: float) -> None:
    """All windows that may be about the range: none is written before events may be stamped so far ahead."""
    broker = await connect(settings)
    try:
        start = max(0.0, from_unix_s - settings.windows.max_future_s)
        async with aclosing(read(broker, ["windows"], start)) as batches:
            async for _, records in batches:
                for record in records:
                    report.take(record)
    finally:
        await broker.close()


def _print(rows: Sequence[Compliance], levels: Sequence[ServiceLevel], output: Output) -> None:
    if output is Output.JSON:
        for row in rows:
            print_json(row)
        return
    print_rows(map(_row, rows), COLUMNS, output, empty=f"no requests that {len(levels)} objectives are about")


def _row(row: Compliance) -> dict[str, Any]:
    return {
        "slo": row.slo,
        "series": " ".join(f"{name}={value}" for name, value in row.series.items()),
        "objective": f"{100 * row.objective:g} %",
        "achieved": f"{100 * row.achieved:.4f} %",
        "met": "yes" if row.met else "no",
        "budget left": f"{100 * row.budget_left:.1f} %",
        "requests": row.total,
        "breaches": row.breaches,
        "minutes": row.breach_minutes,
        "worst hour": f"{clock_time(row.worst_hour.start_unix_s)} {100 * row.worst_hour.achieved:.4g} %",
    }
