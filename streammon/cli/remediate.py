"""Remediation: do something about alerts whose rule names an action, and say yes or no to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from streammon.broker import Broker, connect
from streammon.cli.base import Output, OutputOption, app, command, print_json, print_rows, together
from streammon.cli.data import clock_time
from streammon.cli.notify import Parts
from streammon.cli.people import ByOption, NoteOption, _give, _person
from streammon.cli.roles import RuleFiles, opened
from streammon.config import Settings
from streammon.errors import ConfigError
from streammon.topics import TopicSpec
from streammon.visible import visible

if TYPE_CHECKING:
    from streammon.remediation import Remediation
    from streammon_processors.task import Processor

remediate_app = typer.Typer(
    help="Remediation: what is done about alerts whose rule names an action.", no_args_is_help=True
)
app.add_typer(remediate_app, name="remediate")

ActionFile = Annotated[
    Path | None, typer.Option("--actions", help="YAML file with the actions that rules name.", show_default=False)
]


def with_actions(settings: Settings, file: Path | None) -> Settings:
    """The settings with the file from the command line, if one was given."""
    if file is None:
        return settings
    return settings.model_copy(update={"remediation": settings.remediation.model_copy(update={"file": file})})


def executor_topics(settings: Settings) -> list[TopicSpec]:
    """What whoever executes needs beside the topics of the processors; nothing without a file of actions."""
    if settings.remediation.file is None:
        return []
    from streammon_sinks.remediation.execute import execution_topics

    return execution_topics()


@dataclass(frozen=True)
class Remedies:
    """What decides about remediations and does them; nothing without a file of actions."""

    processors: Sequence[Processor] = ()
    parts: Callable[[Broker, asyncio.Event], Parts] = lambda broker, stop: ()
    """What is to be run."""


@asynccontextmanager
async def remedies(settings: Settings) -> AsyncIterator[Remedies]:
    """What the file of actions asks for; a changed one is taken over, a bad one changes nothing. Raises ConfigError."""
    file = settings.remediation.file
    if file is None:
        yield Remedies()
        return
    import aiohttp

    from streammon_processors.builtin import remedies_processor, remedy_processor
    from streammon_processors.runtime import run_reloading
    from streammon_sinks.remediation.actions import Tools, load_actions
    from streammon_sinks.remediation.execute import execute_remediations

    def make(processor: Callable[[Settings], Processor]) -> Processor:
        load_actions(file)  # with its secrets, which the processor does not need
        return processor(settings)

    made = [partial(make, each) for each in (remedies_processor, remedy_processor)]
    async with aiohttp.ClientSession() as session:

        def parts(broker: Broker, stop: asyncio.Event) -> Parts:
            return [
                *(run_reloading(broker, each, settings, stop=stop) for each in made),
                execute_remediations(broker, lambda: load_actions(file), Tools(session, broker), stop=stop),
            ]

        yield Remedies([each() for each in made], parts)


@command(remediate_app, "run")
async def remediate_run(settings: Settings, stop: asyncio.Event, actions: ActionFile = None) -> None:
    """Decide what is done about alerts, and do it: as a dry run, unless the file of actions says otherwise.

    Run two for one to stand by. A changed file is taken over.
    """
    settings = with_actions(settings, actions)
    if settings.remediation.file is None:
        raise ConfigError("no actions to do: name their file with --actions or in remediation.file")
    async with (
        remedies(settings) as doing,
        opened(settings, stop, doing.processors, role="remediate", topics=executor_topics(settings)) as broker,
    ):
        await together(stop, *doing.parts(broker, stop))


@command(remediate_app, "check")
def remediate_check(
    settings: Settings,
    file: Annotated[Path, typer.Argument(help="File of actions.", show_default=False)],
    rules: RuleFiles = None,
) -> None:
    """Read a file of actions and say what is wrong with it, or what its actions do.

    With --rules: whether the actions that these name are there.
    """
    from streammon_processors.rules import load_rules
    from streammon_sinks.remediation.actions import load_actions

    actions = load_actions(file)
    for rule in load_rules(rules or settings.rules.files, settings.windows.inference_distributions):
        if rule.action is not None and rule.action not in actions:
            known = ", ".join(sorted(actions)) or "none"
            raise ConfigError(f"rule {rule.name!r} names the action {rule.action!r}; {file} has {known}")
    for name, (action, _) in sorted(actions.items()):
        trains = f", trains {action.retrain.key}" if action.retrain else ""
        print(f"{name}: {action.__struct_config__.tag}, mode {action.mode}{trains}")


@command(remediate_app, "list")
async def remediate_list(
    settings: Settings,
    all_: Annotated[bool, typer.Option("--all", help="Also those that have ended.")] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show what waits for approval, is due, or is being done."""
    from streammon.alert_log import short_ids
    from streammon.remediation import ENDS

    async with _reading(settings) as (_, found):
        ids = short_ids(found)
    shown = [each for each in found.values() if all_ or each.state not in ENDS]
    rows: Iterable[dict[str, Any]] = map(msgspec.to_builtins, shown)
    if output is Output.TABLE:
        rows = [_row(each, ids[each.id]) for each in shown]
    columns = ("id", "time", "action", "state", "rule", "labels", "by", "detail")
    print_rows(rows, columns, output, empty="no remediations" if all_ else "nothing to be done")


def _row(remediation: Remediation, short: str) -> dict[str, Any]:
    dry = " (dry run)" if remediation.dry_run else ""
    return {
        "id": short,
        "time": clock_time(remediation.time_unix_s),
        "action": remediation.action,
        "state": remediation.state + dry,
        "rule": remediation.rule,
        "labels": " ".join(f"{name}={value}" for name, value in remediation.labels.items()),
        "by": remediation.approval.by if remediation.approval else "",
        "detail": remediation.detail or remediation.reason or "",
    }


@asynccontextmanager
async def _reading(settings: Settings) -> AsyncIterator[tuple[Broker, dict[str, Remediation]]]:
    from streammon.remediation_log import newest, read_remediations

    broker = await connect(settings)
    try:
        yield broker, newest(await read_remediations(broker))
    finally:
        await broker.close()


@command(app)
async def approve(
    settings: Settings,
    ids: Annotated[list[str], typer.Argument(metavar="ID...", help="Ids, or their first digits.", show_default=False)],
    no: Annotated[bool, typer.Option("--no", help="Refuse them instead.")] = False,
    note: NoteOption = None,
    by: ByOption = None,
    output: OutputOption = Output.TABLE,
) -> int:
    """Say yes, or --no, to remediations that wait for a person. `streammon remediate list` shows the ids."""
    from streammon.remediation_log import approve as order

    person = _person(by, note)
    async with _reading(settings) as (broker, found):
        orders = [order(found, each, person, approved=not no) for each in dict.fromkeys(ids)]
        ready, status = await _give(broker, orders)
    _tell(found, ready, "refused" if no else "approved", output)
    return status


def _tell(found: dict[str, Remediation], ready: Sequence[Any], what: str, output: Output) -> None:
    from streammon.alert_log import short_ids

    ids = short_ids(found)
    for each in ready:
        if output is Output.JSON:
            print_json(each.command)
        else:
            about = found[each.command.target_id]
            print(visible(f"{what} {ids[about.id]} {about.action}: {about.summary}"))
