"""What streammon says about itself: structured logs, Prometheus metrics, health.

Logs go to stderr: coloured lines on a terminal, one JSON object a line elsewhere. Metrics live in the default
registry of `prometheus_client`; each component declares its own beside the code that moves them.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import structlog
from prometheus_client import CONTENT_TYPE_LATEST, Counter, Gauge, Histogram, generate_latest

from streammon.errors import ConfigError

if TYPE_CHECKING:
    from aiohttp import web  # imported where it is needed: most commands serve nothing, and start faster without

log: structlog.stdlib.BoundLogger = structlog.get_logger("streammon")

RECORDS = Counter("streammon_records_read", "Records read from input topics", ["topic"])
DROPPED = Counter("streammon_dropped_events", "Events an agent gave up on, by where", ["where"])
WATERMARK_LAG = Gauge("streammon_watermark_lag_seconds", "Now minus the watermark", ["group", "topic", "partition"])
CONSUMER_LAG = Gauge("streammon_consumer_lag_records", "Records not yet read", ["group", "topic", "partition"])
MALFORMED = Counter("streammon_http_garbage", "Requests of malformed HTTP: answered 400, and closed")
LOOP_DELAY = Histogram(
    "streammon_event_loop_delay_seconds",
    "How late the event loop ran a timer",
    buckets=(0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0),
)


def configure_logging(level: str = "info") -> None:
    """Send all logs, the libraries' included, through structlog to stderr."""
    on_terminal = sys.stderr.isatty()
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="%H:%M:%S" if on_terminal else "iso", utc=not on_terminal),
        structlog.processors.StackInfoRenderer(),
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )
    final: list[structlog.typing.Processor] = (
        [structlog.dev.ConsoleRenderer()]
        if on_terminal
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    )
    handler = logging.StreamHandler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *final],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("streammon").setLevel(level.upper())
    logging.getLogger("aiohttp.server").addFilter(_is_ours)
    logging.getLogger("elastic_transport").setLevel(logging.ERROR)  # the delivery tells it, once


def _is_ours(record: logging.LogRecord) -> bool:
    """Whether an error of the HTTP server is told. Of malformed HTTP it quotes what came, secrets included, and
    once for each connection that sends some; they are counted instead."""
    error = record.exc_info[1] if record.exc_info else None
    if type(error).__module__ != "aiohttp.http_exceptions":
        return True
    MALFORMED.inc()
    return False


Ready = Callable[[], str | None]
"""None when ready, else what is still being waited for."""


def health_routes(ready: Ready) -> list[web.RouteDef]:
    """``/healthz`` (the process runs), ``/readyz`` (it does its work), ``/metrics`` (Prometheus text)."""
    from aiohttp import web

    async def healthz(_: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def readyz(_: web.Request) -> web.Response:
        waiting_for = ready()
        return web.Response(text=f"{waiting_for or 'ready'}\n", status=503 if waiting_for else 200)

    async def metrics(_: web.Request) -> web.Response:
        return web.Response(body=generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    return [web.get("/healthz", healthz), web.get("/readyz", readyz), web.get("/metrics", metrics)]


@asynccontextmanager
async def serve_http(app: web.Application, host: str, port: int, *, setting: str = "port") -> AsyncIterator[int]:
    """Serve ``app`` until the block ends; yields the port (``port`` 0 takes a free one).

    Raises:
        ConfigError: nobody can listen there; names the ``setting`` that said so.
    """
    from aiohttp import web

    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, port)
        try:
            await site.start()
        except OSError as error:
            number = error.errno or 0  # asyncio's own text would repeat the address; a name not found is below 0
            reason = os.strerror(number) if number > 0 else error.strerror or error
            raise ConfigError(
                f"{setting}: cannot listen on {host}:{port}: {reason}; choose another address or port"
            ) from None
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


@asynccontextmanager
async def health_server(port: int | None, ready: Ready, routes: Iterable[web.RouteDef] = ()) -> AsyncIterator[None]:
    """Serve the `health_routes` on ``port``, and more ``routes``; or nothing when it is None."""
    if port is None:
        yield
        return
    from aiohttp import web

    app = web.Application()
    app.add_routes([*health_routes(ready), *routes])
    async with serve_http(app, "0.0.0.0", port, setting="metrics_port") as bound:
        log.info("health and metrics", address=f"http://127.0.0.1:{bound}/metrics")
        yield
