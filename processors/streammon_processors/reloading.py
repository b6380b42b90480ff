"""Processors that are made from files, such as the rules: made anew when a file changes, and is a good one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from functools import partial
from hashlib import blake2b
from pathlib import Path

import structlog
from prometheus_client import Counter

from streammon.broker import Broker
from streammon.config import Settings
from streammon.errors import ConfigError
from streammon_processors.runtime import run_processor
from streammon_processors.task import Processor

RELOADS = Counter(
    "streammon_reloads", "Files that changed under a running processor, by what became of it", ["processor", "outcome"]
)
LOOK_S = 1.0
"""How often the files are looked at: by their content, since a Kubernetes ConfigMap changes by its links."""

log = structlog.get_logger()


async def run_reloading(
    broker: Broker, make: Callable[[], Processor], settings: Settings, *, stop: asyncio.Event
) -> None:
    """Run the processor that ``make`` gives, and another one whenever its files have changed and it gives one.

    The next goes on from the state of the last, after a clean stop: nothing is lost or decided twice. A bad file is
    logged, with its place, and changes nothing. Raises what `run_processor` does; and ConfigError at the first `make`.
    """
    processor = make()
    held = _content(processor.files)
    while not stop.is_set():
        enough = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(run_processor(broker, processor, settings, stop=enough))
            watching = tasks.create_task(_next(make, processor, held, stop))
            watching.add_done_callback(partial(_set, enough))
        processor, held = watching.result()


async def _next(
    make: Callable[[], Processor], now: Processor, held: bytes, stop: asyncio.Event
) -> tuple[Processor, bytes]:
    """The processor of the next files that are good, and what they held; that of ``now`` when it is time to stop."""
    while not await _is_set(stop, LOOK_S):
        content = await asyncio.to_thread(_content, now.files)
        if content == held:
            continue
        held = content
        try:
            processor = await asyncio.to_thread(make)
        except ConfigError as error:
            RELOADS.labels(now.name, "refused").inc()
            log.error("a changed file is not good; going on with what it held before", error=str(error))  # noqa: TRY400  # it is the file that is wrong
            continue
        RELOADS.labels(now.name, "taken").inc()
        log.info("going on with the changed files", processor=now.name, files=[str(file) for file in now.files])
        return processor, held
    return now, held


def _set(event: asyncio.Event, _: object) -> None:
    event.set()


async def _is_set(event: asyncio.Event, within_s: float) -> bool:
    try:
        await asyncio.wait_for(event.wait(), within_s)
    except TimeoutError:
        return False
    return True


def _content(files: Sequence[Path]) -> bytes:
    """Equal if the files are."""
    found = blake2b()
    for file in files:
        try:
            content = file.read_bytes()
        except OSError as error:
            content = str(error).encode()
        found.update(len(content).to_bytes(8, "big") + content)
    return found.digest()
