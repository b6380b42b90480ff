"""A program that is started, waited for, and judged by its exit status.

It gets no shell, no environment but what is named, and a process group of its own, all of which is killed if it does
not end in time. What it says is read to its end, and the last of it is kept, without secrets.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Final

from streammon.errors import ConfigError, Reason, Rejected
from streammon_sinks.notify.secrets import SecretValue, scrub

INHERITED: Final = ("PATH", "HOME", "USER", "LANG", "LC_ALL", "TZ", "TMPDIR")
"""Of our own environment, nothing else is passed on: there may be secrets."""
KEPT_BYTES: Final = 8192
SAID_CHARACTERS: Final = 500
DRAIN_S: Final = 0.5
"""How long what it has left behind may keep the output open."""


def environment(own: Mapping[str, str]) -> dict[str, str]:
    return {name: os.environ[name] for name in INHERITED if name in os.environ} | dict(own)


def find(program: str, env: Mapping[str, str], cwd: str | None) -> None:
    """Raises ConfigError: there is no such program."""
    where = os.path.join(cwd or "", program) if os.sep in program else program  # noqa: PTH118 - as exec finds it
    if shutil.which(where, path=env.get("PATH")) is None:
        raise ConfigError(f"{program} is not there, or cannot be run; name it with its path")


async def run(
    command: Sequence[str], env: Mapping[str, str], cwd: str | None, stdin: bytes, secrets: Sequence[SecretValue]
) -> str:
    """What it said, when it has ended with 0.

    Raises:
        Rejected: it ended with something else.
        ConfigError: it could not be started.
    """
    find(command[0], env, cwd)
    loop = asyncio.get_running_loop()
    theirs, ours = os.pipe()
    output, _ = await loop.connect_read_pipe(_Tail, os.fdopen(theirs, "rb", 0))
    tail: _Tail = output.get_protocol()  # type: ignore[assignment]  # asyncio does not say of which type it is
    try:
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                env=env,
                cwd=cwd,
                stdin=asyncio.subprocess.PIPE,
                stdout=ours,
                stderr=ours,
                start_new_session=True,
            )
        except OSError as error:
            raise ConfigError(f"{command[0]} could not be started: {error.strerror or type(error).__name__}") from None
        finally:
            os.close(ours)
        status = await _ended(process, stdin)
        await asyncio.wait({tail.over}, timeout=DRAIN_S)
    finally:
        output.close()
    said = f"{command[0]} ended with {status}" + tail.said(secrets)
    if status:
        raise Rejected(Reason.REFUSED, said)
    return said


async def _ended(process: asyncio.subprocess.Process, stdin: bytes) -> int:
    """Its status. Whoever waits no longer kills it, and all that it has started."""
    try:
        assert process.stdin
        with suppress(ConnectionError):  # it does not want to know
            process.stdin.write(stdin)
            await process.stdin.drain()
            process.stdin.close()
        return await process.wait()
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()


class _Tail(asyncio.Protocol):
    """The end of what is said."""

    def __init__(self) -> None:
        self._kept, self._cut = b"", False
        self.over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        kept = self._kept + data
        self._cut = self._cut or len(kept) > KEPT_BYTES
        self._kept = kept[-KEPT_BYTES:]

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.over.done():
            self.over.set_result(None)

    def said(self, secrets: Sequence[SecretValue]) -> str:
        """On one line. A secret of which the beginning is cut off would not be known: its length is left out."""
        text = self._kept.decode("utf-8", "replace")
        if self._cut:
            text = text[max((len(each.reveal()) for each in secrets), default=0) :]
        text = scrub(text, secrets)
        plain = " ".join("".join(each if each.isprintable() else " " for each in text).split())
        return f": {plain[-SAID_CHARACTERS:]}" if plain else ""
