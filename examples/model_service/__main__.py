"""``python -m examples.model_service --events URL``: the service, its load and its trouble, until told to stop.

The load is a process of its own, so that it does not slow down what it calls. It is started first, and finds a
socket that listens already: it and River are then loaded at the same time. It ends with this process, and this
process ends with whoever started it.
"""

from __future__ import annotations

import argparse
import asyncio
import socket
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from examples.model_service.lifetime import until_told_to_stop
from examples.model_service.options import deploy_times, load_options, service_parser, tuning

SHUTDOWN_S = 0.5
CLOSE_S = 1.0


async def main(given: argparse.Namespace) -> int:
    """Run until told to stop (0), or until the load has ended by itself (1)."""
    with socket.create_server((given.host, given.port), backlog=512) as listener:
        url = f"http://{given.host}:{listener.getsockname()[1]}"
        async with _load(url, given) as load, _service(listener, given):
            print(f"model service at {url}", file=sys.stderr, flush=True)
            return await _until_the_end(load)


@asynccontextmanager
async def _load(url: str, given: argparse.Namespace) -> AsyncIterator[Process]:
    module = "examples.model_service.load"
    load = await asyncio.create_subprocess_exec(sys.executable, "-m", module, url, *load_options(given))
    try:
        yield load
    finally:
        await _stop(load)


@asynccontextmanager
async def _service(listener: socket.socket, given: argparse.Namespace) -> AsyncIterator[None]:
    from aiohttp import web

    from examples.model_service.detector import phishing_pages
    from examples.model_service.service import MODEL, SERVICE, Service, deploy_for_ever, tune_for_ever
    from streammon_agents import Monitor

    monitor = Monitor(service=SERVICE, model=MODEL, url=given.events)
    service = Service(monitor, phishing_pages())
    runner = web.AppRunner(service.app(), access_log=None, shutdown_timeout=SHUTDOWN_S)
    await runner.setup()
    await web.SockSite(runner, listener).start()
    trouble = asyncio.create_task(tune_for_ever(service, tuning(given)))
    news = asyncio.create_task(deploy_for_ever(service, deploy_times(given)))
    try:
        yield
    finally:
        trouble.cancel()
        news.cancel()
        await runner.cleanup()
        monitor.close(CLOSE_S)


async def _until_the_end(load: Process) -> int:
    stopped = asyncio.create_task(until_told_to_stop())
    ended = asyncio.create_task(load.wait())
    await asyncio.wait([stopped, ended], return_when=asyncio.FIRST_COMPLETED)
    if stopped.done():
        await _stop(load)  # before the service, so that no request is cut off
        return 0
    print(f"the load ended by itself, with status {load.returncode}", file=sys.stderr, flush=True)
    return 1


async def _stop(load: Process) -> None:
    with suppress(ProcessLookupError):
        load.terminate()
    await load.wait()


if __name__ == "__main__":
    sys.exit(asyncio.run(main(service_parser().parse_args())))
