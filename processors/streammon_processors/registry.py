"""Which processors there are: built-in ones and yours, found in one way.

A distribution offers a processor as an entry point of the group `GROUP`: under its name, a function that makes the
`Processor` from the settings. Ours are in this project's own ``pyproject.toml``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from streammon.config import Settings
from streammon.errors import ConfigError
from streammon_processors.task import Processor

GROUP = "streammon.processors"


def installed() -> Mapping[str, EntryPoint]:
    """The entry points by name; none of them is loaded."""
    return {point.name: point for point in sorted(entry_points(group=GROUP))}


def processor(name: str, settings: Settings) -> Processor:
    """The processor of that name.

    Raises:
        ConfigError: there is none, or its package does not work; the message says which.
    """
    points = installed()
    if name not in points:
        raise ConfigError(f"there is no processor {name!r}; installed: {', '.join(points) or 'none'}")
    made = _factory(points[name])(settings)
    if not isinstance(made, Processor) or made.name != name:
        raise ConfigError(f"{points[name].value} made {made!r}, expected Processor({name!r}, …)")
    return made


def _factory(point: EntryPoint) -> Callable[[Settings], Any]:
    try:
        factory: Callable[[Settings], Any] = point.load()
    except Exception as error:  # whatever the import of somebody's module may raise
        where = f"{point.value} of {point.dist.name}" if point.dist else point.value
        raise ConfigError(f"processor {point.name!r} ({where}) cannot be imported: {error!r}") from error
    return factory
