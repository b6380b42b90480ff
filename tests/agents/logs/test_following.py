"""Files that grow, are rotated, truncated and replaced: every line comes once."""

from __future__ import annotations

from pathlib import Path

from tests.agents.logs.running import events, messages, running, settings
from tests.support import eventually


async def test_lines_come_with_service_level_time_and_file(tmp_path: Path) -> None:
    file = tmp_path / "shop.log"
    file.write_text('2026-11-29 17:20:29,500 WARNING slow\n{"message": "ready", "level": "info", "n": 3}\n')
    async with running(settings(tmp_path / "data", {"paths": [str(tmp_path / "*.log")]})) as out:
        await eventually(lambda: len(messages(out)) == 2)
    first, second = events(out)
    assert (first["message"], first["level"]) == ("2026-11-29 17:20:29,500 WARNING slow", "warn")
    assert (first["service"], first["category"]) == ("shop", "app")
    assert first["time_unix_s"] == 1795972829.5
    assert second["fields"] == {"n": 3, "log.file.path": str(file)}
