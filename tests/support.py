"""What tests of every room need: waiting for a condition instead of sleeping, always with a deadline."""

from __future__ import annotations

import asyncio
import gc
import inspect
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from typing import IO

import pytest

POLL_S = 0.02


def wait_until(condition: Callable[[], object], deadline_s: float = 10.0, what: str = "the condition") -> None:
    """Return once `condition()` is true; an AssertionError that names `what` after `deadline_s` seconds."""
    deadline = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not come about within {deadline_s:g} s")
        time.sleep(POLL_S)


async def eventually(
    condition: Callable[[], object | Awaitable[object]],
    deadline_s: float = 10.0,
    what: str = "the condition",
) -> None:
    """`wait_until` inside an event loop; `condition` may be a coroutine function, and is then bounded too."""
    try:
        async with asyncio.timeout(deadline_s):
            while not await _value(condition()):  # noqa: ASYNC110 - arbitrary conditions set no event
                await asyncio.sleep(POLL_S)
    except TimeoutError as error:
        raise AssertionError(f"{what} did not come about within {deadline_s:g} s") from error


async def _value(result: object | Awaitable[object]) -> object:
    return await result if inspect.isawaitable(result) else result


def overlooked(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The failures that nobody has looked at, as asyncio reports them once their futures are garbage."""
    gc.collect()
    messages = [record.getMessage() for record in caplog.records if record.name == "asyncio"]
    return [message for message in messages if "never retrieved" in message]


def cli(*arguments: object, stderr: IO[bytes] | None = None) -> subprocess.Popen[bytes]:
    """The ``streammon`` command as a process of its own, as a user runs it."""
    command = [sys.executable, "-c", "from streammon.cli import main; main()", *map(str, arguments)]
    return subprocess.Popen(command, stderr=stderr)
