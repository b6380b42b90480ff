"""Log files, and a process that is killed while it reads them: no line is lost, and none counts twice."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from streammon.events import EventType
from streammon.wire import decode
from tests.support import wait_until

KILLS = 6
READER = Path(__file__).with_name("log_reader.py")


def started(*arguments: object) -> subprocess.Popen[bytes]:
    root = str(READER.parents[2])
    return subprocess.Popen([sys.executable, str(READER), *map(str, arguments)], cwd=root, env={"PYTHONPATH": root})


def counted(records: Path) -> Counter[str]:
    """The messages, those under a number that was seen before left out, as every reader of the log does."""
    seen, messages = set(), Counter[str]()
    for value in records.read_bytes().splitlines() if records.exists() else []:
        [batch] = decode(EventType.LOG, value)
        if batch.identity not in seen:
            seen.add(batch.identity)
            messages.update(batch.rows.event(row)["message"] for row in range(len(batch.rows)))
    return messages


def test_killed_at_any_moment_no_line_is_lost_and_none_counts_twice(tmp_path: Path) -> None:
    chance = random.Random(11)
    file, records = tmp_path / "app.log", tmp_path / "records"
    expected: list[str] = []

    def write(lines: int) -> None:
        new = [f"ERROR line {len(expected) + at}\n  with its detail" for at in range(lines)]
        expected.extend(new)
        with file.open("ab", buffering=0) as out:  # all at once: a pause within a line would make it two
            out.write("".join(f"{line}\n" for line in new).encode())

    write(1000)
    for kill in range(KILLS):
        process = started(tmp_path / "data", tmp_path / "app.log", records)
        size = records.stat().st_size if records.exists() else 0
        wait_until(lambda before=size: records.exists() and records.stat().st_size > before, 30)  # type: ignore[misc]
        write(1000)
        time.sleep(chance.uniform(0, 0.15))  # into whatever it does then
        process.kill()
        process.wait()
        write(500)
        if kill % 2:
            file.rename(tmp_path / f"app.log.{kill}")
            write(200)
    process = started(tmp_path / "data", tmp_path / "app.log", records)
    try:
        wait_until(lambda: counted(records)[expected[-1]], 30, "the last line")
        wait_until(lambda: counted(records).total() >= len(expected), 10, f"the rest of {len(expected)} lines")
    finally:
        process.kill()
        process.wait()
    came = counted(records)
    assert came - Counter(expected) == Counter(), "what comes twice"
    assert Counter(expected) - came == Counter(), "what is lost"
