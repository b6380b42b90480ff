"""When to stop: told to by a signal, or because whoever started this process is gone."""

from __future__ import annotations

import asyncio
import os
import signal

PARENT_POLL_S = 0.5
PARENT = os.getppid()
"""Looked up as early as this, because it may die while the rest is still being loaded."""


async def until_told_to_stop() -> None:
    """Return on SIGTERM, on SIGINT, or within `PARENT_POLL_S` of the parent's death, kill -9 included."""
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    while not stop.is_set() and os.getppid() == PARENT:
        try:
            await asyncio.wait_for(stop.wait(), PARENT_POLL_S)
        except TimeoutError:
            continue
