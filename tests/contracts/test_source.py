"""What every source of an agent has to keep, one body for all of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from streammon.config import load
from streammon_agents.agent import sources_of
from streammon_agents.source import Source
from tests.outlets import Kept
from tests.support import eventually


def by_name(name: str) -> Callable[[Path], Source]:
    """A source as the agent makes it, with the settings it has by default."""

    def make(path: Path) -> Source:
        settings = load(data_dir=path, agent={"sources": [name], "interval_s": 0.05, "host": "here"})
        [source] = sources_of(settings)
        return source

    return make


def logs(path: Path) -> Source:
    """Log files, of which there is one."""
    (path / "app.log").write_text("ready\n")
    inputs = {"inputs": [{"paths": [str(path / "*.log")]}], "multiline_s": 0.05}
    [source] = sources_of(load(data_dir=path, agent={"sources": ["logs"], "host": "here", "logs": inputs}))
    return source


SOURCES: Mapping[str, Callable[[Path], Source]] = {
    "host": by_name("host"),
    "logs": logs,
}
"""By name, a source that publishes soon after it was started, without further help."""


@pytest.fixture(params=SOURCES)
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Source:
    return SOURCES[request.param](tmp_path)


def test_check_says_what_will_be_seen_and_why_not(source: Source) -> None:
    started = time.monotonic()
    findings = list(source.check())
    assert time.monotonic() - started < 5
    assert all(finding.what for finding in findings)
    assert all(finding.detail for finding in findings if not finding.seen), "what is not seen says why"


async def test_publishes_valid_events_until_it_is_cancelled(source: Source) -> None:
    out = Kept()  # takes valid events only
    running = asyncio.create_task(source.run(out))
    try:
        await eventually(lambda: out.events or out.records or running.done(), 20)
        assert not running.done(), "a source runs until it is cancelled"
    finally:
        running.cancel()
        _, late = await asyncio.wait({running}, timeout=2)
        assert not late, "a source ends at once"
