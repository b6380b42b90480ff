"""What the tests of log files share: a source that runs on a directory, and what it has said so far."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from streammon.config import Settings, load
from streammon.errors import StreammonError
from streammon.events import EventType
from streammon.wire import decode
from streammon_agents.logs import log_source
from streammon_agents.source import ended
from tests.outlets import Kept

QUICK = {"poll_s": 0.02, "discover_s": 0.05, "multiline_s": 0.1, "partial_s": 0.3, "rate_per_s": 1e9, "burst": 10**9}


class Refusing(Kept):
    """Takes nothing for a while, with such an error."""

    def __init__(self, *errors: StreammonError) -> None:
        super().__init__()
        self.errors = [*errors]

    async def append(self, records: object) -> None:
        if self.errors:
            raise self.errors.pop(0)
        await super().append(records)  # type: ignore[arg-type]


def settings(data: Path, *inputs: dict[str, Any], **more: Any) -> Settings:
    """Settings with these inputs, and little patience."""
    return load(data_dir=data, agent={"host": "here", "logs": {**QUICK, **more, "inputs": list(inputs)}})


def events(out: Kept) -> list[dict[str, Any]]:
    """The events in the records that came, each of them valid."""
    found = []
    for record in out.records:
        assert record.value is not None
        [batch] = decode(EventType.LOG, record.value)
        assert not batch.rows.faults()
        found += [batch.rows.event(row) for row in range(len(batch.rows))]
    return found


def messages(out: Kept) -> list[str]:
    return [event["message"] for event in events(out)]


@asynccontextmanager
async def running(wanted: Settings, out: Kept | None = None) -> AsyncIterator[Kept]:
    """The source runs until the block ends; yields what it has said."""
    kept = Kept() if out is None else out
    task = asyncio.create_task(log_source(wanted).run(kept))
    try:
        yield kept
        if task.done():
            task.result()
    finally:
        await ended(task)
