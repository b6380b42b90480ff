"""What an agent would see here, and what not, and why: ``streammon agent --check``. Changes nothing."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from streammon.broker import connect
from streammon.config import Settings
from streammon.errors import ConfigError, Retryable
from streammon_agents.agent import spool_directory
from streammon_agents.source import Finding, Source
from streammon_agents.uplink import PATH, without_user

CARRYING = "carrying"
"""The log and the spool, among the sources."""
TRIED_S = 5.0


class Checked(NamedTuple):
    """One finding, and whose it is."""

    source: str
    what: str
    seen: bool
    detail: str
    fix: str


def check_sources(sources: Iterable[Source]) -> Iterator[Checked]:
    """What each will see, in turn; a check that fails is a finding, too."""
    for source in sources:
        try:
            found = list(source.check())
        except Exception as error:  # it promises not to; a person who asks must not get a traceback all the same
            found = [Finding(source.name, seen=False, detail=f"the check itself failed: {error!r}")]
        for finding in found:
            yield _checked(source.name, finding)


def blind(checked: Sequence[Checked], named: Iterable[str]) -> list[str]:
    """Those of the ``named`` sources that will see nothing at all."""
    return [
        name
        for name in named
        if any(each.source == name for each in checked)
        and not any(each.seen for each in checked if each.source == name)
    ]


async def check_carrying(settings: Settings) -> list[Checked]:
    """Whether the log answers, and what can be kept while it does not."""
    found = [await _log(settings)]
    if (directory := spool_directory(settings)) is not None:
        found.append(_spool(directory, settings.agent.spool.max_bytes))
    return [_checked(CARRYING, finding) for finding in found]


async def _log(settings: Settings) -> Finding:
    if settings.agent.url is not None:
        return await _gateway(settings.agent.url)
    if settings.bootstrap is None:  # to open it would make it
        return Finding("log", seen=True, detail=f"the embedded log in {settings.data_dir}")
    try:
        broker = await connect(settings)
    except (Retryable, ConfigError) as error:
        return Finding(
            "log", seen=False, detail=str(error), fix="until it answers, the agent keeps what it can on disk"
        )
    try:
        topics = await broker.topics()
    except (Retryable, ConfigError) as error:
        return Finding("log", seen=False, detail=str(error))
    finally:
        await broker.close()
    if "resources" not in topics:
        detail = f"{settings.bootstrap}, without our topics yet"
        return Finding("log", seen=True, detail=detail, fix="streammon topics create")
    return Finding("log", seen=True, detail=settings.bootstrap)


async def _gateway(url: str) -> Finding:
    """Asks with a method that a gateway refuses."""
    import aiohttp

    shown = without_user(url)
    try:
        timeout = aiohttp.ClientTimeout(total=TRIED_S)
        async with aiohttp.ClientSession(timeout=timeout) as session, session.get(url.rstrip("/") + PATH) as answer:
            status = answer.status
    except (aiohttp.ClientError, OSError, TimeoutError) as error:
        return Finding("gateway", seen=False, detail=f"{shown}: {error!r}", fix="check agent.url, and that it runs")
    if status == 405:
        return Finding("gateway", seen=True, detail=shown)
    return Finding("gateway", seen=False, detail=f"{shown} answers {status}, as no gateway does", fix="check agent.url")


def _spool(directory: Path, max_bytes: int) -> Finding:
    existing = next(each for each in (directory, *directory.parents) if each.exists())
    if not (existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)):
        detail = f"{directory} cannot be written: memory is all there is while the log is away"
        return Finding(
            "spool", seen=False, detail=detail, fix="set agent.spool.directory to one that this user may write"
        )
    free = shutil.disk_usage(existing).free
    kept = sum(each.stat().st_size for each in directory.glob("[0-9]*.*")) if directory.is_dir() else 0
    detail = f"{directory}: {kept} bytes of at most {max_bytes} wait there, {free} bytes of the disk are free"
    if free + kept < max_bytes:
        return Finding(
            "spool", seen=True, detail=detail, fix="the disk may be full before the spool: lower agent.spool.max_bytes"
        )
    return Finding("spool", seen=True, detail=detail)


def _checked(source: str, finding: Finding) -> Checked:
    return Checked(source, finding.what, finding.seen, finding.detail, finding.fix or "")


async def check(settings: Settings, sources: Sequence[Source]) -> list[Checked]:
    """Everything, sources first; each check may block, and so has a thread."""
    return [*await asyncio.to_thread(lambda: list(check_sources(sources))), *await check_carrying(settings)]
