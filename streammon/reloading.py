"""Files that people change while we run: read anew, and run by. A bad one changes nothing, and says why.

What is run by a file ends, and begins anew by what the file says now, so that no partial change has to be thought of:
tasks go on from their snapshots as after any restart.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

from prometheus_client import Counter, Gauge

from streammon.errors import ConfigError
from streammon.telemetry import log

T = TypeVar("T")

LOOK_S: Final = 2.0
RELOADS = Counter("streammon_reloads", "Changed files that were read, by what came of it", ["what", "outcome"])
REFUSED = Gauge(
    "streammon_reload_refused", "1 while a changed file is refused, and what it said before holds", ["what"]
)


async def reloading(
    what: str,
    files: Sequence[Path],
    load: Callable[[], T],
    run: Callable[[T, asyncio.Event], Coroutine[Any, Any, None]],
    *,
    stop: asyncio.Event,
    every_s: float = LOOK_S,
) -> None:
    """Run by what the files say until ``stop``, or until it ends by itself; anew when they say something else.

    ``load`` reads the files, in a thread. ``run`` has to end soon after its event is set. ``what`` names the files in
    logs and metrics.

    Raises:
        ConfigError: the files are bad at the start.
    """
    watched = _Watched(what, files, load)
    while not stop.is_set():
        over = asyncio.Event()
        running = asyncio.create_task(run(watched.loaded, over))
        changed, stopped = asyncio.create_task(watched.change(every_s)), asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({running, changed, stopped}, return_when=asyncio.FIRST_COMPLETED)
            over.set()
            await running
            if not changed.done():
                return
            await changed
        finally:
            for task in (running, changed, stopped):
                task.cancel()
            await asyncio.gather(running, changed, stopped, return_exceptions=True)


class _Watched(Generic[T]):
    def __init__(self, what: str, files: Sequence[Path], load: Callable[[], T]) -> None:
        self._what, self._files, self._load = what, files, load
        self._seen = _state(files)
        self.loaded = load()
        REFUSED.labels(what).set(0)

    async def change(self, every_s: float) -> None:
        """Wait until the files say something else than what is `loaded`, and load that."""
        while True:
            await asyncio.sleep(every_s)
            seen = _state(self._files)
            if seen != self._seen:
                self._seen = seen  # from before the reading: what changes meanwhile is read next time
                if await self._read():
                    return

    async def _read(self) -> bool:
        """Whether there is something else to go by."""
        try:
            loaded = await asyncio.to_thread(self._load)
        except ConfigError as error:
            log.error("a changed file is refused; what it said before holds", what=self._what, error=str(error))
            self._note("refused")
            return False
        self._note("taken")
        if loaded == self.loaded:
            return False
        log.info("a file has changed: going by it", what=self._what)
        self.loaded = loaded
        return True

    def _note(self, outcome: str) -> None:
        RELOADS.labels(self._what, outcome).inc()
        REFUSED.labels(self._what).set(1 if outcome == "refused" else 0)


def _state(files: Sequence[Path]) -> list[tuple[int, int, int] | None]:
    """What differs once a file was written, or another put in its place, as Kubernetes does. None: it is not there."""
    return [_stamp(file) for file in files]


def _stamp(file: Path) -> tuple[int, int, int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size
