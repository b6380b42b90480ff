"""A process that reads log files, to be killed: it appends the records it makes to a file, one a line.

python log_reader.py DATA_DIR PATTERN RECORDS
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from streammon.broker import Outgoing
from streammon_agents.logs.source import LogSource
from tests.agents.logs.running import settings
from tests.outlets import Kept


class Appending(Kept):
    """A log that is a file, at some distance: what is sent arrives later, and the sender hears of it later still."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self._file = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    async def append(self, records: Sequence[Outgoing]) -> None:
        for record in records:
            await asyncio.sleep(0.005)
            os.write(self._file, (record.value or b"") + b"\n")
            await asyncio.sleep(0.005)


if __name__ == "__main__":
    data, pattern, records = sys.argv[1:]
    wanted = settings(Path(data), {"paths": [pattern]}, batch_events=50)
    asyncio.run(LogSource(wanted).run(Appending(Path(records))))
