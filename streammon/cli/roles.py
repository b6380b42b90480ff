"""Commands that run one component until they are told to stop."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from streammon.backoff import Backoff
from streammon.broker import Broker, connect
from streammon.cli.base import Output, OutputOption, app, command, print_rows, retrying, together
from streammon.config import Settings
from streammon.errors import ConfigError
from streammon.heartbeat import beating
from streammon.telemetry import health_server, log
from streammon.topics import MEASURING, TopicSpec, topic_specs

if TYPE_CHECKING:
    from aiohttp import web

    from streammon_agents.source import Source
    from streammon_agents.uplink import Awaited
    from streammon_processors.task import Processor
    from streammon_sinks.delivery import Sink

RECONNECT = Backoff(first_s=1.0, longest_s=10.0)
"""Of an agent, which may be without Kafka for long, and has to cost nothing then either."""
LONGEST_END_S = 9.5
"""After that the end of an agent is not waited for any more."""
RESULTS_FILE = "results.sqlite"
RESULT_TOPICS = ("windows", "alerts", "slos", "drift", "quality", "loops")
"""What is delivered to stores."""
STORED = (*RESULT_TOPICS, "evidence")
"""What the results file keeps."""


@asynccontextmanager
async def opened(
    settings: Settings,
    stop: asyncio.Event,
    processors: Iterable[Processor] = (),
    *,
    role: str,
    details: Mapping[str, str] | None = None,
    beat_s: float | None = None,
    topics: Iterable[TopicSpec] = (),
    routes: Iterable[web.RouteDef] = (),
) -> AsyncIterator[Broker]:
    """The broker, with all topics there, and the health server; waits for a broker that is still starting.

    As long as the block runs, heartbeats say that somebody in this ``role`` is there; see `beating` for ``beat_s``.
    ``topics`` and ``routes``: more than all have.
    """
    waiting_for: list[str | None] = ["the broker"]
    async with health_server(settings.metrics_port, lambda: waiting_for[0], routes):
        broker = await retrying(lambda: connect(settings), stop)
        try:
            specs = [*topics_of(settings, processors), *topics]
            created = await broker.create_topics(specs, if_permitted=True)
            if created:
                log.info("topics created", topics=created)
            waiting_for[0] = None
            async with beating(broker, settings, role, lambda: waiting_for[0], details=details, every_s=beat_s):
                yield broker
        finally:
            waiting_for[0] = "stopping"
            await broker.close()


def topics_of(settings: Settings, processors: Iterable[Processor] = ()) -> list[TopicSpec]:
    """Every topic of ours, and those that the processors need beside them."""
    partitions = settings.topics.partitions
    specs = {spec.name: spec for processor in processors for spec in processor.topics(partitions)}
    specs |= {spec.name: spec for spec in topic_specs(partitions=partitions)}
    return list(specs.values())


@command(app, watch_s=0.5)  # it holds no partitions; ten looks a second would be a tenth of its work
async def agent(
    settings: Settings,
    stop: asyncio.Event,
    check: Annotated[
        bool, typer.Option("--check", help="Say what would be seen here and what not, and why; observe nothing.")
    ] = False,
    output: OutputOption = Output.TABLE,
) -> None:
    """Observe this node and publish it: what `agent.sources` names, measured once a second, received or read.

    It does not wait for Kafka. What Kafka does not take yet is kept on disk (`agent.spool`), also over a restart, and
    sent beside what is new when Kafka is back. With `agent.url` everything goes through a gateway.

    With `--check` the exit status is 1 if a source that `agent.sources` names would see nothing at all, else 0.
    """
    from streammon_agents.agent import carrier_of, run_agent, sources_of
    from streammon_agents.uplink import Gateway

    sources = sources_of(settings)
    if check:
        await _check(settings, sources, output)
        return
    ending = asyncio.create_task(_end_in_time(stop))
    if settings.agent.url is not None:
        async with Gateway.open(settings.agent.url, settings.agent.spool.after_s) as gateway:
            carrier = carrier_of(gateway, settings)
            async with health_server(settings.metrics_port, lambda: carrier.waiting_for):
                await run_agent(gateway, settings, stop=stop, sources=sources, carrier=carrier)
    else:
        await _agent(settings, sources, stop)
    ending.cancel()


async def _end_in_time(stop: asyncio.Event) -> None:
    """A thread that hangs (in a file system that is away, say) would keep the process for as long."""
    await stop.wait()
    last = threading.Timer(LONGEST_END_S, os._exit, (1,))
    last.daemon = True
    last.start()


async def _agent(settings: Settings, sources: Sequence[Source], stop: asyncio.Event) -> None:
    """Observe at once, and beside it connect to the broker, for as long as that takes."""
    from streammon_agents.agent import carrier_of, details_of, run_agent
    from streammon_agents.uplink import Awaited

    patience_s = settings.agent.spool.after_s
    kafka = settings.kafka
    quick = kafka.model_copy(update={"delivery_timeout_s": min(kafka.delivery_timeout_s, patience_s)})
    uplink = Awaited(patience_s)
    carrier = carrier_of(uplink, settings)
    done = asyncio.Event()

    async def linked() -> None:
        async with _connected(settings.model_copy(update={"kafka": quick}), stop, uplink) as broker:
            uplink.is_there(broker)
            details = lambda: details_of(carrier, settings, broker.clock_offset())  # noqa: E731
            async with beating(broker, settings, "agent", details=details):
                await done.wait()

    async with health_server(settings.metrics_port, lambda: carrier.waiting_for):
        link = asyncio.create_task(linked())
        link.add_done_callback(lambda _: stop.set())
        try:
            await run_agent(uplink, settings, stop=stop, sources=sources, carrier=carrier)
        finally:
            done.set()
            if uplink.broker is None:
                link.cancel()
            await asyncio.wait({link})
    if not link.cancelled():
        link.result()


@asynccontextmanager
async def _connected(settings: Settings, stop: asyncio.Event, uplink: Awaited) -> AsyncIterator[Broker]:
    """The broker with all topics there; who waits for it is told what a person has to change first."""
    try:
        broker = await retrying(lambda: connect(settings), stop, RECONNECT.pauses())
        try:
            await retrying(lambda: broker.create_topics(topics_of(settings), if_permitted=True), stop)
        except BaseException:
            await broker.close()
            raise
    except Exception as error:
        uplink.never_will_be(error)
        raise
    try:
        yield broker
    finally:
        await broker.close()


async def _check(settings: Settings, sources: Sequence[Source], output: Output) -> None:
    from streammon_agents.check import blind, check

    checked = await check(settings, sources)
    rows = [each._asdict() | {"seen": each.seen if output is Output.JSON else _yes(each.seen)} for each in checked]
    print_rows(
        rows, ("source", "what", "seen", "detail", "fix"), output, empty="nothing is observed: see agent.sources"
    )
    named = settings.agent.sources if "sources" in settings.agent.model_fields_set else ()
    if names := blind(checked, named):
        log.error("sources that agent.sources names will see nothing here", sources=names)
        raise typer.Exit(1)


def _yes(seen: bool) -> str:
    return "yes" if seen else "no"


RuleFiles = Annotated[
    list[Path] | None,
    typer.Option("--rules", help="YAML file with rules; may be given several times.", show_default=False),
]


def with_rules(settings: Settings, files: list[Path] | None) -> Settings:
    """The settings with rule files from the command line, if any were given."""
    if not files:
        return settings
    return settings.model_copy(update={"rules": settings.rules.model_copy(update={"files": tuple(files)})})


ModelFile = Annotated[
    Path | None, typer.Option("--models", help="YAML file that says how models are watched.", show_default=False)
]


def with_models(settings: Settings, file: Path | None) -> Settings:
    """The settings with a file of models from the command line, if one was given."""
    if file is None:
        return settings
    return settings.model_copy(update={"models": settings.models.model_copy(update={"file": file})})


@command(app)
async def process(
    settings: Settings,
    stop: asyncio.Event,
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME]...", help="Installed processors, yours too.", show_default=" ".join(MEASURING)),
    ] = None,
    rules: RuleFiles = None,
    models: ModelFile = None,
) -> None:
    """Turn events into windows and rollups, and into drift and quality of models: all that rules look at.

    Run as many as there are partitions; Kafka shares the work. Name some to run only these. Rollups are the windows of
    windows.rollups_s, and those that the rules in --rules or rules.files look at.
    """
    from streammon_processors.registry import processor
    from streammon_processors.runtime import run_reloading

    settings = with_models(with_rules(settings, rules), models)
    made = [partial(processor, name, settings) for name in names or MEASURING]
    processors = [make() for make in made]
    details = {"processors": " ".join(processor.name for processor in processors)}
    async with opened(settings, stop, processors, role="process", details=details) as broker:
        await together(stop, *(run_reloading(broker, make, settings, stop=stop) for make in made))


rules_app = typer.Typer(help="Alert rules: run, check, test and backtest them.", no_args_is_help=True)
app.add_typer(rules_app, name="rules")


@command(rules_app, "run")
async def rules_run(settings: Settings, stop: asyncio.Event, rules: RuleFiles = None) -> None:
    """Evaluate alert rules on the `windows` topic and publish to `alerts`. Rules that change are taken over.

    Where a rule says ``by``, this also brings the windows of each group together and adds them up. What is left of the
    error budgets of service level objectives in the same files is published to `slos`.
    """
    from streammon_processors.builtin import group_processor, regroup_processor, rules_processor, slos_processor
    from streammon_processors.runtime import run_reloading

    settings = with_rules(settings, rules)
    if not settings.rules.files:
        raise ConfigError("no rules to run: name a file with --rules or in rules.files")
    rules_processor(settings)  # a bad rule file is found before anything is started
    if names := _in_need_of_rollups(settings):
        log.warning(
            "these rules look at windows that are made only where `streammon process` is given the same rules",
            rules=names,
            fix="streammon process --rules FILE, or rules.files in its configuration",
        )
    async with opened(settings, stop, role="rules") as broker:
        makers = (regroup_processor, group_processor, rules_processor, slos_processor)
        await together(stop, *(run_reloading(broker, partial(make, settings), settings, stop=stop) for make in makers))


def _in_need_of_rollups(settings: Settings) -> list[str]:
    """The rules whose windows nobody makes who does not know these rules."""
    from streammon_processors.rules import load_rules
    from streammon_processors.shapes import plan, tumbling

    windows = settings.windows
    made = {tumbling(windows.size_s), *(level.shape for level in plan(windows.size_s, windows.rollups_s))}
    rules = load_rules(settings.rules.files, windows.inference_distributions)
    return [name for name, rule in rules.by_name.items() if rule.shape not in {None, *made}]


@command(rules_app, "check")
def rules_check(
    settings: Settings, files: Annotated[list[Path], typer.Argument(help="Rule files.", show_default=False)]
) -> None:
    """Read rule files and say what is wrong with them, or how many rules they hold.

    A rule has to say what a person needs who is woken by it: resolution_steps, contact, escalation, runbook_url.
    """
    from streammon_processors.rules import load_rules, refuse_incomplete
    from streammon_processors.rules.groups import refuse_base_windows
    from streammon_processors.shapes import plan

    rules = load_rules(files, settings.windows.inference_distributions)
    plan(settings.windows.size_s, settings.windows.rollups_s, rules.asked)  # whether their windows can be made
    refuse_base_windows(rules.groupings, settings.windows.size_s)
    refuse_incomplete(files)
    count = len(rules.by_name)
    print(f"{count} rule{'' if count == 1 else 's'}, all good")


@command(rules_app, "default")
def rules_default(settings: Settings) -> None:
    """Print rules to begin with, for any service, host, model and job: `streammon rules default > rules.yaml`."""
    from streammon_processors.rules import DEFAULT_RULES

    print(DEFAULT_RULES.read_text(encoding="utf-8"), end="")


class SinkName(StrEnum):
    """The destinations of results."""

    SQLITE = "sqlite"
    ELASTICSEARCH = "elasticsearch"


@command(app)
async def sink(
    settings: Settings,
    stop: asyncio.Event,
    name: Annotated[SinkName, typer.Argument(help="Where to deliver to.", show_default=False)],
) -> None:
    """Deliver results to a store: at least once, under deterministic ids."""
    from streammon_sinks.delivery import deliver

    async with opened(settings, stop, role="sink", details={"destination": name.value}) as broker:
        group, topics, destination = _sink(name, settings)
        backoff = Backoff(longest_s=settings.elasticsearch.max_backoff_s)
        await deliver(broker, group, topics, destination, stop=stop, backoff=backoff)


def _sink(name: SinkName, settings: Settings) -> tuple[str, Sequence[str], Sink]:
    """A destination, the group that shares the work of filling it, and what it takes."""
    if name is SinkName.SQLITE:
        from streammon_sinks.sqlite import ResultStore, SqliteSink

        store = ResultStore.open(settings.data_dir / RESULTS_FILE)
        return store.group, STORED, SqliteSink(store, settings.sqlite)
    from streammon_sinks.elasticsearch import ElasticsearchSink

    return "sink-elasticsearch", RESULT_TOPICS, ElasticsearchSink.connect(settings.elasticsearch)


@command(app)
async def diagnose(settings: Settings, stop: asyncio.Event) -> None:
    """Find out what may be behind alerts as they fire, from all the log holds, and publish it to `evidence`.

    `streammon why ALERT_ID` shows it, and so does the page. Run as many as there are partitions.
    """
    from streammon_sinks.delivery import deliver
    from streammon_sinks.diagnosis import GROUP, Diagnosis

    async with opened(settings, stop, role="diagnose") as broker:
        await deliver(broker, GROUP, ["alerts"], Diagnosis(broker), stop=stop)
