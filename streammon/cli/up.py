"""``streammon up``: everything in one process, the page included."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from prometheus_client import Gauge

from streammon.broker import Broker
from streammon.cli.base import app, command, together
from streammon.cli.notify import Callbacks, Notifier, NotifyFile, notifier, with_notify
from streammon.cli.remediate import ActionFile, Remedies, executor_topics, remedies, with_actions
from streammon.cli.roles import RESULTS_FILE, STORED, ModelFile, RuleFiles, opened, with_models, with_rules
from streammon.config import Settings, WebSettings
from streammon.errors import ConfigError
from streammon.ping import Flow, ping_url, pinging
from streammon.telemetry import CONSUMER_LAG, WATERMARK_LAG, health_routes, log, serve_http
from streammon.topics import PROCESSORS

if TYPE_CHECKING:
    from aiohttp import web

    from streammon_processors.task import Processor
    from streammon_sinks.web.overview import Status

PROMPT = "windows"
"""The processor that tells how far behind events are; of what others make, a part stays open for minutes or hours."""
EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@command(app)
async def up(
    settings: Settings,
    stop: asyncio.Event,
    demo: Annotated[
        bool, typer.Option("--demo", help="Also run a model service to watch, with load and trouble.")
    ] = False,
    rules: RuleFiles = None,
    models: ModelFile = None,
    notify: NotifyFile = None,
    actions: ActionFile = None,
    host: Annotated[str | None, typer.Option(help="Address of the page.", show_default="127.0.0.1")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port of the page; 0 takes a free one.", show_default="8080")
    ] = None,
) -> None:
    """Run everything in one process: log, host metrics, HTTP intake, windows, rules, alerts and the page.

    Without --bootstrap nothing else is needed: the log and the results are SQLite files under --data-dir.
    """
    if demo and not EXAMPLES.is_dir():
        raise ConfigError("--demo needs the examples/ of a source checkout; this is an installed package")
    settings = _with_web(settings, host, port)
    settings = with_actions(with_notify(settings, notify), actions)
    settings = with_models(settings, models or (EXAMPLES / "models.yaml" if demo else None))
    settings = with_rules(settings, rules or ([EXAMPLES / "rules.yaml"] if demo else None))
    makers = _makers(settings)
    ours = [make() for make in makers]  # a bad file is found before anything is started
    _say(f"streammon: log in {settings.bootstrap or settings.data_dir}")
    ping_url(settings.ping)
    async with notifier(settings) as telling, remedies(settings) as doing:
        callbacks = Callbacks.of(settings, telling.channels)
        processors = [*ours, *telling.processors, *doing.processors]
        topics = [*telling.topics, *executor_topics(settings)]
        async with opened(settings, stop, processors, role="up", topics=topics) as broker:
            await _run(broker, makers, telling, doing, callbacks, settings, demo, stop)


def _with_web(settings: Settings, host: str | None, port: int | None) -> Settings:
    given = {"host": host, "port": port}
    changed = settings.web.model_dump() | {name: value for name, value in given.items() if value is not None}
    return settings.model_copy(update={"web": WebSettings(**changed)})


def _makers(settings: Settings) -> list[Callable[[], Processor]]:
    """All that turns events into results, but for what the notifier and remediation bring along."""
    from streammon_processors.registry import processor

    return [partial(processor, name, settings) for name in PROCESSORS]


async def _run(
    broker: Broker,
    makers: Sequence[Callable[[], Processor]],
    telling: Notifier,
    doing: Remedies,
    callbacks: Callbacks,
    settings: Settings,
    demo: bool,
    stop: asyncio.Event,
) -> None:
    from aiohttp import web

    from streammon.alert_log import AlertLog, follow
    from streammon_agents.agent import carrier_of, run_agent, sources_of
    from streammon_agents.gateway import cloudevents, events, otlp
    from streammon_processors.runtime import run_reloading
    from streammon_sinks.delivery import deliver
    from streammon_sinks.diagnosis import GROUP, Diagnosis
    from streammon_sinks.sqlite import ResultStore, SqliteSink
    from streammon_sinks.web.commands import Groups, command_routes
    from streammon_sinks.web.page import page_routes

    settings.data_dir.mkdir(parents=True, exist_ok=True)
    path = settings.data_dir / RESULTS_FILE
    store = ResultStore.open(path)
    sink = SqliteSink(store, settings.sqlite)
    page_store = ResultStore.open(path, read_only=True)
    site = web.Application(client_max_size=settings.web.max_body_bytes)
    people, groups = AlertLog(), Groups()
    carrier = carrier_of(broker, settings)
    site.add_routes(
        [
            *events.routes(broker, settings.web),
            *cloudevents.routes(carrier.outlet("cloudevents"), settings.agent.gateway),
            *otlp.routes(carrier.outlet("otlp"), settings),
            *page_routes(page_store, _status, stop=stop, people=people),
            *command_routes(broker, people, settings.web),
            *callbacks.routes(broker, people, groups),
            *health_routes(lambda: None),
        ]
    )
    async with _listening(site, settings.web) as address:
        _say(f"streammon: page at {address}")
        async with _demo(address, demo):
            await together(
                stop,
                run_agent(broker, settings, stop=stop, sources=sources_of(settings), carrier=carrier),
                *(run_reloading(broker, make, settings, stop=stop) for make in makers),
                deliver(broker, store.group, STORED, sink, stop=stop),
                deliver(broker, GROUP, ["alerts"], Diagnosis(broker), stop=stop),
                *telling.parts(broker, stop, f"{store.group}-console"),
                *doing.parts(broker, stop),
                follow(broker, people, stop=stop),
                *callbacks.following(broker, groups, stop),
                pinging(settings.ping, Flow(broker, settings.ping.stale_s), stop=stop),
            )
    page_store.close()


def _status() -> Status:
    """What the page cannot read from the results."""
    from streammon_sinks.web.overview import Status

    lags = [lag for labels, lag in _samples(WATERMARK_LAG) if labels["group"] == PROMPT]
    return Status(
        consumer_lag=int(sum(records for _, records in _samples(CONSUMER_LAG))),
        watermark_lag_s=max(lags, default=None),
    )


def _samples(gauge: Gauge) -> list[tuple[dict[str, str], float]]:
    return [(sample.labels, sample.value) for metric in gauge.collect() for sample in metric.samples]


@asynccontextmanager
async def _listening(site: web.Application, settings: WebSettings) -> AsyncIterator[str]:
    async with serve_http(site, settings.host, settings.port, setting="web.port (--port)") as port:
        yield f"http://{settings.host}:{port}"


@asynccontextmanager
async def _demo(address: str, wanted: bool) -> AsyncIterator[None]:
    """The example model service as a process of its own, which reports to our intake."""
    if not wanted:
        yield
        return
    command_line = [sys.executable, "-m", "examples.model_service", "--events", address]
    process = await asyncio.create_subprocess_exec(*command_line, cwd=EXAMPLES.parent)
    watch = asyncio.create_task(_report_end(process))
    try:
        yield
    finally:
        watch.cancel()
        if process.returncode is None:
            process.terminate()
            try:
                await asyncio.wait_for(process.wait(), 5.0)
            except TimeoutError:
                process.kill()


async def _report_end(process: asyncio.subprocess.Process) -> None:
    status = await process.wait()
    log.error("the demo service ended", status=status)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
