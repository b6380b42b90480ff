"""The fatigue report: how much each rule asks of people, and how often they find it worth acting on.

Exactly what is counted, for a rule and the time from ``from`` to before ``to``:

* A *firing* is a transition that tells people something they have to look at: into ``firing`` or ``no_data`` from
  another state, or to a worse severity. ``alerts_per_day`` is firings over the days of the range.
* An *episode* is an alert, from its first firing on; it belongs to the range if that lies in it.
* ``flap_score``: the share of firings that began a new episode at most ``flap_s`` after the same series of the same
  rule had resolved. 0: every firing was news; near 1: the rule opens and closes all the time.
* ``firing_s``: from the first firing to the resolve, of the episodes that have resolved.
* ``acknowledge_s``: from the first firing to the first acknowledgement: the command's own time, else the alert's.
* *Acted on*: the episode was acknowledged, a command named it, or a silence that matches was made while it lasted.
* Quantiles are nearest rank: a duration that occurred, never one between two.

Where only the end of an episode is known, because compaction took its firing, ``started_unix_s`` stands for the time of
the firing: earlier by the rule's ``for``. ``guessed`` counts those. Times of alerts are event times.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from math import ceil, inf
from typing import Final, NamedTuple

from msgspec import Struct

from streammon.alert_log import Quiet
from streammon.commands import Acknowledge, AnyCommand, Approve, Silence
from streammon.results import Alert
from streammon.topics import DAY_S

FLAP_S: Final = 600.0
NOISIEST: Final = 3
_TELLING: Final = ("firing", "no_data")
_SEVERITIES: Final = ("info", "warning", "critical")

_Series = tuple[str, tuple[tuple[str, str], ...]]


class Quantiles(Struct, frozen=True):
    """Of some durations, in seconds."""

    median: float
    p90: float


class Noisy(Struct, frozen=True):
    """A series, and how often it fired."""

    labels: dict[str, str]
    firings: int


class RuleFatigue(Struct, frozen=True, kw_only=True):
    """One rule in the range: see the module."""

    rule: str
    firings: int
    episodes: int
    alerts_per_day: float
    flap_score: float
    firing_s: Quantiles | None
    acknowledge_s: Quantiles | None
    acted_on: int
    acted_on_share: float | None
    """None: the range has no episode of it."""
    firing_now: int
    """Episodes that have not ended, whenever they began."""
    guessed: int
    noisiest: list[Noisy]


class Fatigue(Struct, frozen=True, kw_only=True):
    """The report: the rules that fired, the noisiest first."""

    from_unix_s: float
    to_unix_s: float
    known_since_unix_s: float | None
    """The oldest transition that is known: before it, the report knows nothing."""
    flap_s: float
    rules: list[RuleFatigue]


@dataclass(frozen=True)
class Episode:
    """An alert that fired: when it did, how often, and when it ended."""

    alert: Alert
    firings_unix_s: tuple[float, ...]
    acknowledged_unix_s: float | None
    guessed: bool

    @property
    def fired_unix_s(self) -> float:
        return self.firings_unix_s[0]

    @property
    def ended_unix_s(self) -> float | None:
        if self.alert.state != "resolved":
            return None
        return self.alert.updated_unix_s if self.alert.ended_unix_s is None else self.alert.ended_unix_s

    @property
    def series(self) -> _Series:
        return self.alert.rule, tuple(sorted(self.alert.labels.items()))


def fatigue(
    transitions: Iterable[Alert],
    commands: Sequence[AnyCommand],
    from_unix_s: float,
    to_unix_s: float,
    flap_s: float = FLAP_S,
) -> Fatigue:
    """The report on ``transitions``, in any order, each once; those of before the range tell what flaps."""
    known = sorted(transitions, key=lambda alert: (alert.id, alert.transition))
    episodes = sorted(_episodes(known), key=lambda episode: (episode.fired_unix_s, episode.alert.id))
    of_rule: defaultdict[str, list[Episode]] = defaultdict(list)
    for episode in episodes:
        of_rule[episode.alert.rule].append(episode)
    range_ = _Range(from_unix_s, to_unix_s)
    deeds = _Deeds(commands)
    rules = [_of_rule(rule, of_rule[rule], range_, deeds, flap_s) for rule in sorted(of_rule)]
    return Fatigue(
        from_unix_s=from_unix_s,
        to_unix_s=to_unix_s,
        known_since_unix_s=min((alert.updated_unix_s for alert in known), default=None),
        flap_s=flap_s,
        rules=sorted((rule for rule in rules if rule.firings or rule.firing_now), key=lambda rule: -rule.firings),
    )


class _Range(NamedTuple):
    from_unix_s: float
    to_unix_s: float

    def __contains__(self, time_unix_s: object) -> bool:
        return isinstance(time_unix_s, float | int) and self.from_unix_s <= time_unix_s < self.to_unix_s

    @property
    def days(self) -> float:
        return (self.to_unix_s - self.from_unix_s) / DAY_S


def _of_rule(rule: str, episodes: Sequence[Episode], range_: _Range, deeds: _Deeds, flap_s: float) -> RuleFatigue:
    fired = [(episode, time) for episode in episodes for time in episode.firings_unix_s if time in range_]
    inside = [episode for episode in episodes if episode.fired_unix_s in range_]
    acted_on = sum(map(deeds.acted_on, inside))
    flapped = sum(episode.fired_unix_s in range_ for episode in _flapped(episodes, flap_s))
    lasted = [each.ended_unix_s - each.fired_unix_s for each in inside if each.ended_unix_s is not None]
    waited = [time - each.fired_unix_s for each in inside if (time := deeds.acknowledged(each)) is not None]
    return RuleFatigue(
        rule=rule,
        firings=len(fired),
        episodes=len(inside),
        alerts_per_day=len(fired) / range_.days,
        flap_score=flapped / len(fired) if fired else 0.0,
        firing_s=_quantiles(lasted),
        acknowledge_s=_quantiles([max(0.0, seconds) for seconds in waited]),
        acted_on=acted_on,
        acted_on_share=acted_on / len(inside) if inside else None,
        firing_now=sum(episode.ended_unix_s is None for episode in episodes),
        guessed=sum(episode.guessed for episode in inside),
        noisiest=_noisiest([episode for episode, _ in fired]),
    )


def _flapped(episodes: Iterable[Episode], flap_s: float) -> Iterator[Episode]:
    """Those that began soon after the last one of their series had ended. Given in the order of their beginning."""
    ended: dict[_Series, float] = {}
    for episode in episodes:
        if 0 <= episode.fired_unix_s - ended.get(episode.series, -inf) <= flap_s:
            yield episode
        ended[episode.series] = inf if episode.ended_unix_s is None else episode.ended_unix_s


def _noisiest(fired: Iterable[Episode]) -> list[Noisy]:
    counts = Counter(episode.series for episode in fired)
    ordered = sorted(counts.items(), key=lambda each: (-each[1], each[0]))[:NOISIEST]
    return [Noisy(dict(labels), count) for (_, labels), count in ordered]


def _quantiles(seconds: Iterable[float]) -> Quantiles | None:
    ordered = sorted(seconds)
    return Quantiles(_nearest_rank(ordered, 50), _nearest_rank(ordered, 90)) if ordered else None


def _nearest_rank(ordered: Sequence[float], percent: int) -> float:
    return ordered[ceil(percent * len(ordered) / 100) - 1]


# -- episodes ------------------------------------------------------------------------------------------


def _episodes(known: Iterable[Alert]) -> Iterator[Episode]:
    for _, records in groupby(known, key=lambda alert: alert.id):
        transitions = list(records)
        firings = tuple(_firings(transitions))
        guessed = not firings and _must_have_fired(transitions)
        if firings or guessed:
            acknowledged = (each.updated_unix_s for each in transitions if each.state == "acknowledged")
            yield Episode(
                alert=transitions[-1],
                firings_unix_s=firings or (transitions[-1].started_unix_s,),
                acknowledged_unix_s=next(acknowledged, None),
                guessed=guessed,
            )


def _firings(transitions: Sequence[Alert]) -> Iterator[float]:
    before: Alert | None = None
    for alert in transitions:
        if alert.state in _TELLING and (before is None or before.state != alert.state or _is_worse(alert, before)):
            yield alert.updated_unix_s
        before = alert


def _is_worse(alert: Alert, before: Alert) -> bool:
    return _SEVERITIES.index(alert.severity) > _SEVERITIES.index(before.severity)


def _must_have_fired(transitions: Sequence[Alert]) -> bool:
    """Although no firing is left: only what fired is acknowledged, or resolved later than right after pending (0)."""
    newest = transitions[-1]
    return newest.state == "acknowledged" or (newest.state == "resolved" and newest.has_fired)


# -- deeds ---------------------------------------------------------------------------------------------


class _Deeds:
    """What people did, by what it was about."""

    def __init__(self, commands: Iterable[AnyCommand]) -> None:
        self._acknowledged: dict[str, float] = {}
        self._named: set[str] = set()
        self._silences: list[Quiet] = []
        for command in commands:
            match command:
                case Acknowledge(alert_id=id_, time_unix_s=time):
                    self._named.add(id_)
                    self._acknowledged[id_] = min(time, self._acknowledged.get(id_, inf))
                case Approve(target_id=id_):
                    self._named.add(id_)
                case Silence():
                    self._silences.append(Quiet(command))

    def acknowledged(self, episode: Episode) -> float | None:
        return self._acknowledged.get(episode.alert.id, episode.acknowledged_unix_s)

    def acted_on(self, episode: Episode) -> bool:
        named = episode.alert.id in self._named or episode.acknowledged_unix_s is not None
        return named or any(self._answers(quiet, episode) for quiet in self._silences)

    def _answers(self, quiet: Quiet, episode: Episode) -> bool:
        ended = inf if episode.ended_unix_s is None else episode.ended_unix_s
        return episode.fired_unix_s <= quiet.silence.time_unix_s <= ended and quiet.matches(episode.alert)
