"""Who is absent, and since when: pure decisions on who was heard when.

The only clock is the broker's time of the heartbeats themselves, so that the answer is the same after a restart, and
a consumer that lags or stands by accuses nobody. Time in which nothing at all was heard, not even the inventory's own
heartbeats, is the broker's silence and not a component's: `Watch` begins anew after it, and whoever watches has to
have watched for the whole patience before somebody newly counts as silent.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from msgspec import Struct

from streammon.durations import seconds
from streammon.heartbeat import PATIENCE, Heartbeat
from streammon_processors.inventory.expected import Expectation, Expected

FASTEST_GAP_S: Final = 2.0
"""Kafka may take this long for anything, so a shorter pause is no gap."""


class Seen(Struct, frozen=True):
    """The newest heartbeat of a component, and the broker's time of it."""

    heartbeat: Heartbeat
    at_unix_s: float

    @property
    def stopped(self) -> bool:
        return self.heartbeat.state == "stopping"

    @property
    def patience_s(self) -> float:
        return PATIENCE * self.heartbeat.interval_s

    def is_alive(self, now: float) -> bool:
        return not self.stopped and now - self.at_unix_s <= self.patience_s

    def is_silent(self, now: float) -> bool:
        return not self.stopped and now - self.at_unix_s > self.patience_s

    def is_present(self, now: float, expectation: Expectation) -> bool:
        """Alive, or stopped in order and not for too long."""
        return self.is_alive(now) or (self.stopped and now - self.at_unix_s <= seconds(expectation.stopped_for))


Roster = Mapping[str, Seen]
"""By component id."""


class Watch:
    """Since when the log has been watched without a gap, and up to when."""

    def __init__(self, gap_s: float) -> None:
        self._gap_s = max(gap_s, FASTEST_GAP_S)
        self.now: float | None = None
        self.since = 0.0

    def hear(self, at_unix_s: float) -> None:
        """Something was written at that time."""
        if self.now is None or at_unix_s - self.now > self._gap_s:
            self.since = at_unix_s
        self.now = at_unix_s if self.now is None else max(self.now, at_unix_s)

    @property
    def watched_s(self) -> float:
        return 0.0 if self.now is None else self.now - self.since


class Kind(StrEnum):
    """How somebody is absent."""

    SILENT = "silent"
    """A component that was there has ended without a word."""
    MISSING = "missing"
    """Nobody of those expected is there, or too few."""


@dataclass(frozen=True)
class Absence:
    """Somebody who should be there and is not.

    ``since_unix_s``: the last heartbeat there was, or 0 for somebody who never was there. ``shown_s``: how long a
    watch has to have been before it is told. ``of`` and ``there``: how many are expected and are there (missing).
    """

    kind: Kind
    role: str
    host: str | None
    id: str | None
    since_unix_s: float
    shown_s: float
    expectation: Expectation | None
    of: int = 1
    there: int = 0
    silent_s: float = 0.0

    @property
    def key(self) -> tuple[str, ...]:
        """Whose absence it is, whenever."""
        where = sorted(self.expectation.where.items()) if self.expectation and self.kind is Kind.MISSING else []
        return (self.kind.value, self.role, self.host or "", self.id or "", *(f"{k}={v}" for k, v in where))


def absences(roster: Roster, expected: Expected, now: float, grace_s: float = 0.0) -> list[Absence]:
    """Everybody who is absent at that time, whether or not that is news."""
    missing = [each for expectation in expected.expect for each in _missing(roster, expectation, now, grace_s)]
    return [*_silent(roster, expected, now), *missing]


def _silent(roster: Roster, expected: Expected, now: float) -> Iterator[Absence]:
    for id_, seen in roster.items():
        if seen.is_silent(now):
            covering = expected.covering(seen.heartbeat)
            if any(_is_met_without(roster, each, seen, now) for each in covering):
                continue
            yield Absence(
                kind=Kind.SILENT,
                role=seen.heartbeat.role,
                host=seen.heartbeat.host,
                id=id_,
                since_unix_s=seen.at_unix_s,
                shown_s=seen.patience_s,
                expectation=covering[0] if covering else None,
                silent_s=now - seen.at_unix_s,
            )


def _is_met_without(roster: Roster, expectation: Expectation, silent: Seen, now: float) -> bool:
    """Whether others do what the silent one did: enough of them, or one on the same host."""
    alive = [each for each in roster.values() if expectation.covers(each.heartbeat) and each.is_alive(now)]
    if expectation.at_least is not None:
        return len(alive) >= expectation.at_least
    return any(each.heartbeat.host == silent.heartbeat.host for each in alive)


def _missing(roster: Roster, expectation: Expectation, now: float, grace_s: float) -> Iterator[Absence]:
    """Those of whom no component tells: who is silent is told already, by its name."""
    known = [each for each in roster.values() if expectation.covers(each.heartbeat)]
    counted = [each for each in known if each.is_present(now, expectation) or each.is_silent(now)]
    if expectation.at_least is not None:
        if len(counted) < expectation.at_least:
            yield _absence(expectation, None, known, now, grace_s, len(counted))
        return
    hosts = {each.heartbeat.host for each in counted}
    for host in expectation.hosts:
        if host not in hosts:
            yield _absence(expectation, host, [e for e in known if e.heartbeat.host == host], now, grace_s)


def _absence(
    expectation: Expectation, host: str | None, known: Collection[Seen], now: float, grace_s: float, there: int = 0
) -> Absence:
    since = max((each.at_unix_s for each in known), default=0.0)
    return Absence(
        kind=Kind.MISSING,
        role=expectation.role,
        host=host,
        id=None,
        since_unix_s=since,
        shown_s=grace_s,
        expectation=expectation,
        of=expectation.at_least or 1,
        there=there,
        silent_s=now - since if since else 0.0,
    )


def forgotten(roster: Roster, expected: Expected, now: float) -> list[str]:
    """Who has been absent for so long that nobody waits any more; one of an expected host never."""
    longest_s = seconds(expected.forget)
    return [
        id_
        for id_, seen in roster.items()
        if now - seen.at_unix_s > max(longest_s, seen.patience_s)
        and not any(each.hosts for each in expected.covering(seen.heartbeat))
    ]


def without_anybody(roster: Roster, roles: Iterable[str], now: float) -> list[str]:
    """Of these roles, those in which nobody is alive."""
    alive = {seen.heartbeat.role for seen in roster.values() if seen.is_alive(now)}
    return [role for role in roles if role not in alive]
