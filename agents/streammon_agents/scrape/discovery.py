"""Discovery: label sets of what may be scraped, from the job itself, from files, and from Kubernetes.

Each way is a `Discovery`: it reports all that it knows whenever that has changed, and why it knows nothing newer while
it fails. What it knew before holds until then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

import msgspec
import yaml

from streammon.durations import seconds
from streammon_agents.scrape.jobs import FileSdConfig, StaticConfig

LabelSets = list[dict[str, str]]
MAX_FILE_BYTES: Final = 4 * 1024**2
MAX_FILES: Final = 1000
SHORTEST_LOOK_S: Final = 0.05
LONGEST_LOOK_S: Final = 5.0
"""Prometheus is told by the system when a file changes; we look."""


class Report(NamedTuple):
    """``found``: None while nothing newer is known than before. ``failing``: why."""

    found: LabelSets | None
    failing: str | None = None


Reporter = Callable[[Report], None]


class Discovery(Protocol):
    async def run(self, report: Reporter) -> None:
        """Report whenever something has changed, until cancelled."""
        ...

    async def once(self) -> LabelSets:
        """What is there now. Raises ValueError or OSError that says why that is not known."""
        ...


class Static:
    """What the job lists itself."""

    def __init__(self, configs: Sequence[StaticConfig]) -> None:
        self._found = of_groups(configs)

    async def run(self, report: Reporter) -> None:
        report(Report(self._found))

    async def once(self) -> LabelSets:
        return self._found


class Files:
    """Files, looked at again and again. One that cannot be read keeps the targets that it had."""

    def __init__(self, config: FileSdConfig) -> None:
        self._config = config
        self._read: dict[Path, tuple[tuple[int, int], LabelSets]] = {}

    async def run(self, report: Reporter) -> None:
        last: Report | None = None
        while True:
            if (now := await asyncio.to_thread(self._look)) != last:
                report(now)
                last = now
            await asyncio.sleep(max(SHORTEST_LOOK_S, min(LONGEST_LOOK_S, seconds(self._config.refresh_interval))))

    async def once(self) -> LabelSets:
        report = await asyncio.to_thread(self._look)
        if report.failing is not None:
            raise ValueError(report.failing)
        return report.found or []

    def _look(self) -> Report:
        found = {pattern: _matching(Path(pattern)) for pattern in self._config.files}
        paths = sorted({path for matching in found.values() for path in matching})[:MAX_FILES]
        self._read = {path: known for path, known in self._read.items() if path in paths}
        failing = [f"{pattern}: there is no such file" for pattern, matching in found.items() if not matching]
        failing += [why for path in paths if (why := self._reread(path)) is not None]
        labels = [each for path in paths if path in self._read for each in self._read[path][1]]
        return Report(labels, "; ".join(failing[:3]) or None)

    def _reread(self, path: Path) -> str | None:
        """Read a file that has changed; why it could not be read."""
        try:
            status = path.stat()
            version = status.st_mtime_ns, status.st_size
            if path not in self._read or self._read[path][0] != version:
                self._read[path] = version, of_file(path)
        except (OSError, ValueError) as error:
            return f"{path}: {getattr(error, 'strerror', None) or error}"
        return None


def _matching(pattern: Path) -> list[Path]:
    return [path for path in pattern.parent.glob(pattern.name) if path.is_file()]


def of_file(path: Path) -> LabelSets:
    """The targets that a file lists. Raises OSError, ValueError."""
    with path.open("rb") as file:
        content = file.read(MAX_FILE_BYTES + 1)
    if len(content) > MAX_FILE_BYTES:
        raise ValueError(f"has more than {MAX_FILE_BYTES} bytes")
    try:
        given: Any = msgspec.json.decode(content) if path.suffix == ".json" else yaml.safe_load(content)
        groups = msgspec.convert(given or [], list[StaticConfig], strict=False)
    except (msgspec.DecodeError, msgspec.ValidationError, yaml.YAMLError, RecursionError) as error:
        raise ValueError(f"holds no list of targets and labels: {error}") from None
    return [{**labels, "__meta_filepath": str(path)} for labels in of_groups(groups)]


def of_groups(groups: Sequence[StaticConfig]) -> LabelSets:
    """A label set a target."""
    return [{**group.labels, "__address__": target} for group in groups for target in group.targets]
