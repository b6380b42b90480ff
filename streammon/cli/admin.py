"""Commands that prepare, check and explain: topics, setup, doctor, schema, servers."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from streammon.broker import connect
from streammon.cli.base import EXTRAS, Output, OutputOption, app, command, print_json, print_rows
from streammon.cli.notify import notifier_topics
from streammon.cli.remediate import executor_topics
from streammon.cli.roles import RESULTS_FILE, topics_of
from streammon.config import Settings
from streammon.errors import ConfigError, StreammonError
from streammon.telemetry import log
from streammon.topics import TopicSpec

# --- topics ---------------------------------------------------------------------------------------------------

topics_app = typer.Typer(
    help="Create the topics, or say how they differ from what they should be.", no_args_is_help=True
)
app.add_typer(topics_app, name="topics")


@command(topics_app, "create")
async def topics_create(settings: Settings) -> None:
    """Create the topics that do not exist yet; existing ones are left as they are."""
    specs = _specs(settings)
    broker = await connect(settings)
    try:
        created = await broker.create_topics(specs)
    finally:
        await broker.close()
    for name in created:
        print(f"created {settings.topics.prefix}{name}")
    print(f"{len(created)} created, {len(specs) - len(created)} there already")


@command(topics_app, "check")
async def topics_check(settings: Settings, output: OutputOption = Output.TABLE) -> int:
    """Compare the topics with what they should be; exit status 1 if any differs."""
    differences = await _topic_differences(settings)
    print_rows(differences, ("topic", "field", "expected", "actual"), output, empty="all topics are as they should be")
    return 1 if differences else 0


def _specs(settings: Settings) -> list[TopicSpec]:
    """Our topics, those of every processor that is installed, and those of the channels in the notifier's file."""
    from streammon_processors import registry

    installed = [registry.processor(name, settings) for name in registry.installed()]
    return [*topics_of(settings, installed), *notifier_topics(settings), *executor_topics(settings)]


async def _topic_differences(settings: Settings) -> list[dict[str, Any]]:
    broker = await connect(settings)
    try:
        return differences(_specs(settings), await broker.topics(exact=True))
    finally:
        await broker.close()


def differences(expected: list[TopicSpec], actual: Mapping[str, TopicSpec]) -> list[dict[str, Any]]:
    """How topics differ from what they should be, one row a field."""
    rows = []
    for spec in expected:
        if spec.name not in actual:
            rows.append({"topic": spec.name, "field": "exists", "expected": True, "actual": False})
            continue
        found = asdict(actual[spec.name])
        rows += [
            {"topic": spec.name, "field": field, "expected": value, "actual": found[field]}
            for field, value in asdict(spec).items()
            if found[field] != value
        ]
    return rows


# --- setup ----------------------------------------------------------------------------------------------------

setup_app = typer.Typer(help="Prepare the systems that results go to.", no_args_is_help=True)
app.add_typer(setup_app, name="setup")


@command(setup_app, "elasticsearch")
async def setup_elasticsearch(settings: Settings) -> None:
    """Put index templates; says what this cluster cannot do and was therefore left out."""
    from streammon_sinks.elasticsearch import open_client, setup

    client = open_client(settings.elasticsearch)
    try:
        for line in await setup(client, settings.elasticsearch):
            print(line)
    finally:
        await client.close()


# --- doctor ---------------------------------------------------------------------------------------------------


class State(StrEnum):
    """The outcome of a check."""

    OK = "ok"
    WARNING = "warning"
    FAILED = "failed"


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at, and what to do if it is not well."""

    check: str
    state: State
    detail: str


MIN_FREE_BYTES = 1024**3


@command(app)
async def doctor(settings: Settings, output: OutputOption = Output.TABLE) -> int:
    """Check this installation and what it is configured to talk to; exit status 1 if something is broken."""
    findings = [finding async for finding in _findings(settings)]
    print_rows(map(asdict, findings), ("check", "state", "detail"), output, empty="nothing to check")
    return 1 if any(finding.state is State.FAILED for finding in findings) else 0


async def _findings(settings: Settings) -> AsyncIterator[Finding]:
    version = ".".join(map(str, sys.version_info[:3]))
    yield Finding("python", State.OK, version)
    for module, extra in EXTRAS.items():
        found = _is_installed(module)
        detail = "installed" if found else f"not installed; pip install 'streammon[{extra}]' if you need it"
        yield Finding(f"extra {extra}", State.OK if found else State.WARNING, detail)
    yield _data_dir(settings.data_dir)
    yield _disk(settings.data_dir)
    broker = await _attempt("broker", _where(settings), lambda: _broker_answers(settings))
    yield broker
    if broker.state is not State.FAILED:
        yield await _attempt("topics", "", lambda: _topics_are_right(settings))
    yield await _attempt("elasticsearch", settings.elasticsearch.url, lambda: _elasticsearch_answers(settings))
    yield _results(settings.data_dir / RESULTS_FILE)


def _where(settings: Settings) -> str:
    return f"Kafka at {settings.bootstrap}" if settings.bootstrap else f"embedded log in {settings.data_dir}"


def _data_dir(path: Path) -> Finding:
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            return Finding("data directory", State.OK, str(path))
    except OSError as error:
        detail = f"{path}: {error.strerror}; choose another with --data-dir"
        return Finding("data directory", State.FAILED, detail)


def _disk(path: Path) -> Finding:
    existing = next(p for p in (path, *path.parents) if p.exists())
    free = shutil.disk_usage(existing).free
    state = State.OK if free >= MIN_FREE_BYTES else State.WARNING
    return Finding("disk", state, f"{free / 1024**3:.1f} GiB free")


def _results(path: Path) -> Finding:
    if not path.exists():
        return Finding("results", State.OK, f"none yet at {path}")
    from streammon_sinks.sqlite import ResultStore

    try:
        ResultStore.open(path, read_only=True).close()
    except StreammonError as error:
        return Finding("results", State.FAILED, str(error))
    return Finding("results", State.OK, str(path))


async def _attempt(check: str, what: str, attempt: Callable[[], Any]) -> Finding:
    try:
        state, detail = await attempt()
    except (StreammonError, OSError, ImportError) as error:
        return Finding(check, State.FAILED, f"{what}: {error}" if what else str(error))
    return Finding(check, state, detail or what)


async def _broker_answers(settings: Settings) -> tuple[State, str]:
    broker = await connect(settings)
    await broker.close()
    return State.OK, ""


async def _topics_are_right(settings: Settings) -> tuple[State, str]:
    rows = await _topic_differences(settings)
    missing = [row["topic"] for row in rows if row["field"] == "exists"]
    if missing:
        return State.WARNING, f"{len(missing)} missing; `streammon topics create` makes them"
    if rows:
        return State.WARNING, f"{len(rows)} differences; see `streammon topics check`"
    return State.OK, "as they should be"


def _is_installed(module: str) -> bool:
    """Faust, once imported, has no spec."""
    return module in sys.modules or find_spec(module) is not None


async def _elasticsearch_answers(settings: Settings) -> tuple[State, str]:
    if not _is_installed("elasticsearch"):
        return State.WARNING, "not checked, the extra is not installed"
    from streammon_sinks.elasticsearch import open_client

    client = open_client(settings.elasticsearch)
    try:
        health = await client.cluster.health()
    except Exception as error:
        return (
            State.WARNING,
            f"{settings.elasticsearch.url} does not answer ({type(error).__name__}); only the sink needs it",
        )
    finally:
        await client.close()
    return (
        State.OK if health["status"] != "red" else State.FAILED
    ), f"{settings.elasticsearch.url} is {health['status']}"


# --- schema ---------------------------------------------------------------------------------------------------


@command(app)
def schema(
    settings: Settings,
    name: Annotated[
        str | None, typer.Argument(metavar="[TYPE]", help="inference, window, alert …", show_default=False)
    ] = None,
    asyncapi: Annotated[bool, typer.Option("--asyncapi", help="The AsyncAPI document of all topics instead.")] = False,
) -> None:
    """Print JSON Schemas of events and results, or the AsyncAPI document of the topics."""
    from streammon import schema as schemas

    if asyncapi:
        document: Any = schemas.asyncapi(settings.topics.prefix)
    elif name is None:
        document = {each: schemas.json_schema(each) for each in schemas.types()}
    elif name in schemas.types():
        document = schemas.json_schema(name)
    else:
        raise ConfigError(f"TYPE is {name!r}, expected one of {', '.join(schemas.types())}")
    print(json.dumps(document, indent=2))


# --- servers --------------------------------------------------------------------------------------------------

servers_app = typer.Typer(
    help="Real Kafka, Elasticsearch and Alertmanager on this machine, for development.", no_args_is_help=True
)
app.add_typer(servers_app, name="servers")


@command(servers_app, "start")
async def servers_start(
    settings: Settings,
    stop: asyncio.Event,
    names: Annotated[list[str], typer.Argument(help="kafka, elasticsearch, alertmanager", show_default=False)],
    directory: Annotated[
        Path | None, typer.Option(help="Keep their data here; a temporary directory if not given.", show_default=False)
    ] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Download (once), start and keep real servers in the foreground; prints their addresses."""
    from streammon import servers

    def progress(message: str) -> None:
        print(message, file=sys.stderr, flush=True)

    running: list[servers.Server] = []
    root = directory or _temporary_directory()
    try:
        for name in names:
            server = await asyncio.to_thread(servers.start, name, root / name, progress=progress)
            running.append(server)
            if output is Output.JSON:
                print_json({"name": name, "address": server.address, "pid": server.pid, "version": server.version})
            else:
                print(f"{name:<14} {server.address}", flush=True)
            if stop.is_set():
                return
        await _until_stopped(stop, running)
    finally:
        for server in reversed(running):
            await asyncio.to_thread(server.stop)
        if directory is None:
            shutil.rmtree(root, ignore_errors=True)


def _temporary_directory() -> Path:
    """One that may be passed through: started by root, Elasticsearch runs as `nobody`."""
    root = Path(tempfile.mkdtemp(prefix="streammon-servers-"))
    root.chmod(0o711)
    return root


async def _until_stopped(stop: asyncio.Event, running: list[Any]) -> None:
    while not stop.is_set():
        for server in running:
            if not server.running:
                raise StreammonError(f"{server.name} ended by itself; its log is {server.log}")
        try:
            await asyncio.wait_for(stop.wait(), 0.5)
        except TimeoutError:
            continue
    log.info("stopping servers", names=[server.name for server in running])
