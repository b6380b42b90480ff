"""Groups: the windows of several series as one, for the rules that say ``by:``.

Such a series may be spread over all partitions, so its windows go a way of their own, by the key of their group::

    windows ──regroup──► regrouped ──group──► grouped ──► rules
            a copy of each       added up, 20 s after the first part
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from typing import Final

import msgspec

from streammon.errors import ConfigError, Reason, Rejected
from streammon.results import Window
from streammon.topics import REGROUPED
from streammon.wire import MAX_TIME_UNIX_S, read_message
from streammon_processors.shapes import Shape, tumbling
from streammon_processors.windows import series_key

GROUPED: Final = "grouped"

__all__ = ["GROUPED", "REGROUPED", "GroupWindow", "Grouping", "by_windows", "read_part", "refuse_base_windows"]


class GroupWindow(Window, tag="window", kw_only=True):
    """A window that counts for a group: on `REGROUPED` that of one series, on `GROUPED` that of all of them.

    ``series`` holds only the labels of the group; ``partition`` is that of `windows` it comes from, or of `GROUPED`.
    """

    grouping: str
    """Names what is added up; see `Grouping`."""


@dataclass(frozen=True)
class Grouping:
    """What is added up: windows of one source and shape, of the series that have some labels, by the labels kept."""

    source: str
    shape: Shape
    where: tuple[tuple[str, str], ...]
    by: tuple[str, ...]

    @cached_property
    def name(self) -> str:
        """Equal for all rules that look at the same groups, which are added up once."""
        parts = (self.source, self.shape.name, self.where, self.by)
        return blake2b(msgspec.json.encode(parts), digest_size=8).hexdigest()

    def is_about(self, series: Mapping[str, str]) -> bool:
        return all(series.get(name) == value for name, value in self.where)

    def group(self, series: Mapping[str, str]) -> dict[str, str]:
        """The labels that are left of a series."""
        return {name: series[name] for name in self.by if name in series}

    def key(self, group: Mapping[str, str]) -> bytes:
        """That of its records: all of a group's are in one partition."""
        return self.name.encode() + b" " + series_key(group)


def by_windows(groupings: Iterable[Grouping]) -> Mapping[tuple[str, Shape], Sequence[Grouping]]:
    """The groupings that windows of one source and shape count for."""
    found: dict[tuple[str, Shape], list[Grouping]] = {}
    for grouping in groupings:
        found.setdefault((grouping.source, grouping.shape), []).append(grouping)
    return found


def refuse_base_windows(groupings: Iterable[Grouping], base_s: float) -> None:
    """Raises ConfigError: base windows are too many to be copied, and are not."""
    for grouping in groupings:
        if grouping.shape == tumbling(base_s):
            raise ConfigError(
                f"a rule by [{', '.join(grouping.by)}] looks at windows of {grouping.shape.name}, which are the base "
                f"windows, windows.size_s = {base_s:g}; let it look at longer ones, `window: 1m`"
            )


def read_part(value: bytes) -> GroupWindow:
    """Raises Rejected."""
    part = read_message(_GROUP_WINDOW.decode, value)
    if not 0 <= part.start_unix_s < part.end_unix_s < MAX_TIME_UNIX_S:
        raise Rejected(Reason.BAD_TIME, f"the window is [{part.start_unix_s}, {part.end_unix_s})")
    return part


_GROUP_WINDOW: Final = msgspec.json.Decoder(GroupWindow)
