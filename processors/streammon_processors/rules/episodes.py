"""Episodes: what one rule makes of one series over time, decided window by window.

::

                ┌───────────────── silence ──────────────────┐
                │                                            ▼
    inactive ──breach──► pending ──held for `for`──► firing ◄──► no_data ──heard again, clear──► resolved
        ▲                   │                         ▲ │ ▲
        └──no breach────────┘         a graver level ─┘ │ └── acknowledged (by a person)
                                                        └──clear for `keep_firing_for`──► resolved

A rule has a `Level` for each severity, and each level a `Rung` of its own; the alert is as bad as the gravest level
that fires. Nothing here reads a clock or a window: `follow` is given verdicts, and says which state is news.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from streammon.results import AlertState, Severity
from streammon_processors.rules.description import SEVERITIES, Level, Rule, digest

Labels = dict[str, str]
ROUNDING_S: Final = 1e-6
"""Times of today resolve 2.4e-7 s, so ten windows of 0.1 s may seem shorter than 1 s."""


class Verdict(NamedTuple):
    """What a window says of a level. Each may be None: it does not say."""

    breach: bool | None
    clear: bool | None


class Rung(Struct, frozen=True, array_like=True, omit_defaults=True):
    """How far a level has come: not breached, breached since, firing, firing but clear since."""

    since: float | None = None
    firing: bool = False
    clear_since: float | None = None


class Episode(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One rule and one series, from the first breaching window to the end.

    ``through`` is the end of the series' newest window that decided something; ``value``, ``shown`` with
    its unit, and ``condition`` are what the alert last said of the breach.
    """

    rule: str
    version: str
    series: Labels
    since_unix_s: float
    through_unix_s: float
    state: AlertState = "pending"
    severity: Severity
    transition: int = 0
    quiet: bool = False
    """Its series is not heard."""
    value: float | None = None
    shown: str = ""
    condition: str = ""
    rungs: tuple[Rung, ...] = ()

    @property
    def fired(self) -> bool:
        """Whether anybody may have been told."""
        return self.state != "pending"

    @property
    def alert_id(self) -> str:
        return digest((self.rule, self.version, self.series, self.since_unix_s), size=16)


class Step(NamedTuple):
    """What is followed from now on, None: nothing; and the episode as it is to be told, if that is news."""

    episode: Episode | None
    told: Episode | None = None


def follow(
    rule: Rule, before: Episode | None, verdicts: Sequence[Verdict], labels: Labels, start: float, end: float
) -> Step:
    """What a window from ``start`` to ``end`` makes of an episode (None: inactive)."""
    rungs = before.rungs if before and before.rungs else (Rung(),) * len(rule.levels)
    climbed = tuple(
        _rung(level, rung, verdict, start, end, rule.keep_firing_s)
        for level, rung, verdict in zip(rule.levels, rungs, verdicts, strict=True)
    )
    firing = [level.severity for level, rung in zip(rule.levels, climbed, strict=True) if rung.firing]
    pending = [level.severity for level, rung in zip(rule.levels, climbed, strict=True) if rung.since is not None]
    if before is None and not pending:
        return Step(None)
    known = any(verdict != (None, None) for verdict in verdicts)
    now = replace(
        before or _new(rule, labels, start),
        rungs=climbed,
        quiet=False,
        through_unix_s=end if known or before is None else before.through_unix_s,
    )
    if firing:
        return _fires(now, before is not None and before.quiet, firing[-1])
    if not pending:
        return Step(None, _moved(now, "resolved"))
    if now.fired:  # a milder level, breached since then, has not held yet: it goes on waiting, as an alert of its own
        next_one = replace(_new(rule, labels, start), rungs=climbed, through_unix_s=end, severity=pending[-1])
        return Step(next_one, _moved(now, "resolved"))
    waiting = replace(now, severity=pending[-1])
    return Step(waiting, waiting if before is None else None)


def silent(rule: Rule, before: Episode | None, labels: Labels, last_heard: float, now: float) -> Step:
    """What it means that a series has not been heard since ``last_heard``, and it is ``now``."""
    if before is not None and before.quiet:
        return Step(before)
    if rule.no_data == "fire":
        episode = before or _new(rule, labels, last_heard)
        rungs = tuple(rung if rung.firing else Rung() for rung in episode.rungs)
        return _same(_moved(replace(episode, rungs=rungs, quiet=True, through_unix_s=now), "no_data"))
    if rule.no_data == "resolve" and before is not None:
        return Step(None, _moved(replace(before, through_unix_s=now), "resolved"))
    return Step(before)


def given_up(episode: Episode) -> Step:
    """A breach that has not held, and is not heard of any more."""
    return Step(None, _moved(episode, "resolved"))


def acknowledged(episode: Episode, transition: int) -> Step:
    """A person has seen the state with that number; whatever came after it, nobody has seen."""
    if episode.state in ("firing", "no_data") and episode.transition == transition:
        return _same(_moved(episode, "acknowledged"))
    return Step(episode)


def _new(rule: Rule, labels: Labels, start: float) -> Episode:
    return Episode(
        rule=rule.name,
        version=rule.version,
        series=labels,
        since_unix_s=start,
        through_unix_s=start,
        severity=rule.levels[0].severity,
    )


def _rung(level: Level, rung: Rung, verdict: Verdict, start: float, end: float, keep_s: float) -> Rung:
    if rung.firing:
        return _firing_rung(rung, verdict, start, end, keep_s)
    if verdict.breach is None:
        return rung
    if not verdict.breach:
        return Rung()
    since = start if rung.since is None else rung.since
    return Rung(since, end - since >= level.hold_s - ROUNDING_S)


def _firing_rung(rung: Rung, verdict: Verdict, start: float, end: float, keep_s: float) -> Rung:
    if verdict.clear is None:
        return rung
    if not verdict.clear:
        return replace(rung, clear_since=None)
    since = start if rung.clear_since is None else rung.clear_since
    over = not keep_s or end - since >= keep_s - ROUNDING_S
    return Rung() if over else replace(rung, clear_since=since)


def _fires(now: Episode, was_quiet: bool, severity: Severity) -> Step:
    worse = SEVERITIES.index(severity) > SEVERITIES.index(now.severity)
    news = now.state in ("pending", "no_data") or was_quiet or worse
    changed = replace(now, severity=severity)
    if news:
        return _same(_moved(changed, "firing"))
    return Step(changed, None) if severity == now.severity else _same(_moved(changed, now.state))


def _moved(episode: Episode, state: AlertState) -> Episode:
    return replace(episode, state=state, transition=episode.transition + 1)


def _same(episode: Episode) -> Step:
    return Step(episode, episode)
