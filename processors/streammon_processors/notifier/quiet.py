"""What keeps alerts quiet: silences, which people give, and inhibitions, where one alert explains another."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Iterable, Mapping
from typing import Final

import msgspec
from msgspec import Struct

from streammon.commands import SILENCES_BYTES, Silence, Unsilence
from streammon_processors.notifier.description import Inhibition, Labels, matches
from streammon_processors.notifier.following import LIMITED, Followed, Limit

UNSILENCED: Final = 500
"""So many ends of silences are kept for silences that come after them: they lie in other partitions of `commands`."""


class Silences(Struct, kw_only=True):
    """The silences that hold now or will; those that were ended before their time."""

    given: dict[str, Silence] = {}
    ended: dict[str, float] = {}

    def take(self, command: Silence | Unsilence, now_unix_s: float) -> bool:
        """Whether that changes what is quiet. One that is over by now, as in an old log, takes no room."""
        if isinstance(command, Unsilence):
            self.ended[command.silence_id] = command.time_unix_s
            for oldest in list(self.ended)[:-UNSILENCED]:
                del self.ended[oldest]
            return self.given.pop(command.silence_id, None) is not None
        if command.id in self.ended or command.ends_unix_s <= now_unix_s:
            return False
        size = sum(len(msgspec.json.encode(each)) for each in (*self.given.values(), command))
        if size > SILENCES_BYTES:
            LIMITED.labels(Limit.SILENCES).inc()
            return False
        self.given[command.id] = command
        return True

    def next_change(self, now_unix_s: float) -> float:
        """When time alone changes what is quiet."""
        times = (time for each in self.given.values() for time in (each.starts_unix_s, each.ends_unix_s))
        return min((time for time in times if time > now_unix_s), default=float("inf"))

    def forget_past(self, now_unix_s: float) -> None:
        self.given = {name: each for name, each in self.given.items() if each.ends_unix_s > now_unix_s}

    def keep_quiet(self, labels: Labels, now_unix_s: float) -> bool:
        return any(
            each.starts_unix_s <= now_unix_s < each.ends_unix_s and matches(each.matchers, labels)
            for each in self.given.values()
        )


class Inhibitions:
    """Which alerts are explained by one that fires. Counted as alerts come and go, so that asking is cheap.

    As in Alertmanager, an alert that matches both sides is not inhibited by another that does, nor by itself.
    """

    def __init__(self, described: Iterable[Inhibition], alerts: Iterable[Followed]) -> None:
        self._described = tuple(described)
        self._sources = [(Tally[tuple[str, ...]](), Tally[tuple[str, ...]]()) for _ in self._described]
        for alert in alerts:
            self.count(alert, 1)

    def count(self, alert: Followed, by: int) -> bool:
        """Note that an alert fires (1) or does no more (-1); whether it is a source of any."""
        if not alert.active:
            return False
        labels, found = alert.matched, False
        for each, (all_, one_sided) in zip(self._described, self._sources, strict=True):
            if matches(each.sources, labels):
                found = True
                key = _equal(each, labels)
                _add(all_, key, by)
                _add(one_sided, key, by if not matches(each.targets, labels) else 0)
        return found

    def keep_quiet(self, labels: Labels) -> bool:
        for each, (all_, one_sided) in zip(self._described, self._sources, strict=True):
            if matches(each.targets, labels):
                sources: Mapping[tuple[str, ...], int] = one_sided if matches(each.sources, labels) else all_
                if sources.get(_equal(each, labels), 0) > 0:
                    return True
        return False


def _add(tally: Tally[tuple[str, ...]], key: tuple[str, ...], by: int) -> None:
    """Nothing is left of what comes to nothing."""
    tally[key] += by
    if not tally[key]:
        del tally[key]


def _equal(each: Inhibition, labels: Labels) -> tuple[str, ...]:
    return tuple(labels.get(name, "") for name in each.equal)
