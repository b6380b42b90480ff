"""What the notifier's file says of whom to tell, when and how often; the channels in it are the sinks' to read.

::

    channels: {page: {type: pagerduty, …}, chat: {type: slack, …}}
    route:
      to: [chat]
      routes:
        - matchers: ['severity="critical"']
          to: [page, chat]
          escalate: [{after: 15m, to: [boss]}]
        - matchers: ['service=~"batch-.*"']
          mute: [nights]
    time_intervals: {nights: [{times: ["22:00-24:00", "00:00-06:00"], location: Europe/Berlin}]}
    inhibit:
      - {source: ['rule="host-down"'], target: ['severity="warning"'], equal: [host]}
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Final, NamedTuple

import msgspec
from msgspec import Meta, Struct

from streammon.commands import Matcher, matcher
from streammon.durations import Duration, seconds
from streammon.errors import ConfigError
from streammon.yaml_files import load_yaml, place_of
from streammon_processors.notifier.times import Span

CONSOLE: Final = "console"
"""A channel that is always there, whether the file names it or not."""
ALL_LABELS: Final = "..."
DEFAULT_GROUP_BY: Final = ("rule", "service")
DEFAULT_WAIT_S, DEFAULT_INTERVAL_S, DEFAULT_REPEAT_S = 10.0, 60.0, 4 * 3600.0

Matchers = Annotated[tuple[str, ...], Meta(max_length=50)]
Labels = Mapping[str, str]


class Step(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whom to tell as well, when nobody has acknowledged for so long."""

    after: Duration
    to: Annotated[tuple[str, ...], Meta(min_length=1)]

    def __post_init__(self) -> None:
        _seconds("after", self.after)


class Route(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Whom to tell about some alerts. What a route does not say, it has from the one it is in."""

    matchers: Matchers = ()
    """All of them have to match, as Alertmanager writes them: ``severity="critical"``, ``service=~"batch-.*"``."""
    to: tuple[str, ...] | None = None
    """Names of channels."""
    group_by: tuple[str, ...] | None = None
    """Alerts with the same values of these labels are told together; ``[]``: all, ``["..."]``: none."""
    group_wait: Duration | None = None
    """How long a new group gathers before it is told."""
    group_interval: Duration | None = None
    """The least time between two messages about a group."""
    repeat_interval: Duration | None = None
    """A group that fires unacknowledged is told again this often."""
    escalate: tuple[Step, ...] | None = None
    """Whom to tell as well when nobody acknowledges."""
    fallback: str | None = None
    """Who is told when a channel cannot be reached; every other one if not given."""
    mute: tuple[str, ...] = ()
    """Time intervals in which nobody is told; what still fires is told after them."""
    active: tuple[str, ...] = ()
    """Time intervals outside of which nobody is told."""
    goes_on: bool = msgspec.field(name="continue", default=False)
    """Whether the routes after this one are looked at, too."""
    routes: tuple[Route, ...] = ()
    """The first of them that matches takes the alert; none: this one keeps it."""

    def __post_init__(self) -> None:
        _parsed("matchers", self.matchers)
        for name in ("group_wait", "group_interval", "repeat_interval"):
            _seconds(name, getattr(self, name) or 0.0)
        for name in ("group_interval", "repeat_interval"):
            if (given := getattr(self, name)) is not None and not seconds(given):
                raise ValueError(f"`{name}`: {given!r} would be messages without end; give a time, such as 1m")


class Inhibition(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, dict=True):
    """While an alert fires that matches ``source``, those that match ``target`` are no news."""

    source: Matchers
    target: Matchers
    equal: tuple[str, ...] = ()
    """Labels in which the two must be equal; one that neither has is equal."""

    def __post_init__(self) -> None:
        _ = self.sources, self.targets

    @cached_property
    def sources(self) -> tuple[Matcher, ...]:
        return _parsed("source", self.source)

    @cached_property
    def targets(self) -> tuple[Matcher, ...]:
        return _parsed("target", self.target)


class _File(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All of the file, the channels as they are."""

    channels: dict[str, dict[str, Any]] = {}
    route: Route = msgspec.field(default_factory=Route)
    time_intervals: dict[str, tuple[Span, ...]] = {}
    inhibit: tuple[Inhibition, ...] = ()


@dataclass(frozen=True)
class Leaf:
    """A route with all that it has from the ones above it. ``name``: where in the tree, as it is remembered."""

    name: str
    matchers: tuple[Matcher, ...] = ()
    to: tuple[str, ...] = (CONSOLE,)
    group_by: tuple[str, ...] = DEFAULT_GROUP_BY
    group_wait_s: float = DEFAULT_WAIT_S
    group_interval_s: float = DEFAULT_INTERVAL_S
    repeat_interval_s: float = DEFAULT_REPEAT_S
    escalate: tuple[tuple[float, tuple[str, ...]], ...] = ()
    fallback: str | None = None
    mute: tuple[str, ...] = ()
    active: tuple[str, ...] = ()
    goes_on: bool = False
    routes: tuple[Leaf, ...] = ()

    def matching(self, labels: Labels) -> Iterator[Leaf]:
        """The routes that take an alert with these labels, which matches this one."""
        return (leaf for leaf, unmatched in self.looked_at(labels) if not unmatched)

    def looked_at(self, labels: Labels) -> Iterator[LookedAt]:
        """The routes that take it, and, in between, those that are passed over."""
        found = False
        for route in self.routes:
            unmatched = tuple(each for each in route.matchers if not each.matches(labels))
            if unmatched:
                yield LookedAt(route, unmatched)
                continue
            found = True
            yield from route.looked_at(labels)
            if not route.goes_on:
                return
        if not found:
            yield LookedAt(self, ())

    def group_labels(self, labels: Labels) -> dict[str, str]:
        """What alerts with these labels are grouped by."""
        every = (name for name in sorted(labels) if name != "alert_id")  # which is another each time a series fires
        names = every if ALL_LABELS in self.group_by else self.group_by
        return {name: labels[name] for name in names if labels.get(name)}

    def tells(self, channel: str) -> bool:
        return channel in self.to or any(channel in to for _, to in self.escalate)

    def all(self) -> Iterator[Leaf]:
        yield self
        for route in self.routes:
            yield from route.all()


class LookedAt(NamedTuple):
    """A route, and what does not match of it: nothing, if it takes the alert."""

    leaf: Leaf
    unmatched: tuple[Matcher, ...]


@dataclass(frozen=True)
class Plan:
    """Whom to tell about what, when, and how often."""

    channels: tuple[str, ...] = (CONSOLE,)
    root: Leaf = Leaf("")
    time_intervals: Mapping[str, Sequence[Span]] = field(default_factory=dict)
    inhibit: tuple[Inhibition, ...] = ()

    @cached_property
    def by_name(self) -> Mapping[str, Leaf]:
        return {leaf.name: leaf for leaf in self.root.all()}

    def routes_of(self, labels: Labels) -> list[Leaf]:
        return list(self.root.matching(labels))

    def inhibited_by(self, labels: Labels) -> list[Inhibition]:
        """What may keep an alert with these labels quiet."""
        return [each for each in self.inhibit if matches(each.targets, labels)]

    def is_muted(self, leaf: Leaf, unix_s: float) -> bool:
        """Whether nobody is to be told by this route at that time."""
        outside = leaf.active and not any(self._holds(name, unix_s) for name in leaf.active)
        return bool(outside) or any(self._holds(name, unix_s) for name in leaf.mute)

    def _holds(self, name: str, unix_s: float) -> bool:
        return any(span.holds(unix_s) for span in self.time_intervals.get(name, ()))

    def fallbacks_of(self, channel: str) -> tuple[str, ...]:
        """Who is told that a channel cannot be reached: the same, by any route that tells it."""
        routes = [leaf for leaf in self.root.all() if leaf.tells(channel)] or [self.root]
        return tuple(dict.fromkeys(other for leaf in routes for other in self.fallbacks(channel, leaf)))

    def fallbacks(self, channel: str, leaf: Leaf) -> tuple[str, ...]:
        """Who is told instead of a channel that cannot be reached."""
        if leaf.fallback and leaf.fallback != channel:
            return (leaf.fallback,)
        others = tuple(each for each in self.channels if each not in (channel, CONSOLE))
        return others or ((CONSOLE,) if channel != CONSOLE else ())


def matches(matchers: Sequence[Matcher], labels: Labels) -> bool:
    return all(each.matches(labels) for each in matchers)


def load_plan(file: Path | None) -> Plan:
    """What the file says; without one, everything goes to the console.

    Raises:
        ConfigError: naming the place in the file and what is wrong there.
    """
    return Plan() if file is None else _plan(file, load_yaml(file, _File))


def _plan(file: Path, content: _File) -> Plan:
    channels = tuple(dict.fromkeys((*content.channels, CONSOLE)))
    top = Leaf("", to=tuple(content.channels) or (CONSOLE,))
    if content.route.matchers or content.route.goes_on:
        raise ConfigError(f"{place_of(file, ['route'])}: the first route takes every alert: give it no matchers")
    root = _leaf(top, content.route, "")
    plan = Plan(channels, root, content.time_intervals, content.inhibit)
    for keys, name, known, what in _names(content, channels):
        if name not in known:
            raise ConfigError(
                f"{place_of(file, keys)}: there is no {what} {name!r}; there are: {', '.join(known) or 'none'}"
            )
    return plan


def _leaf(above: Leaf, route: Route, name: str) -> Leaf:
    own = replace(
        above,
        name=name,
        matchers=_parsed("matchers", route.matchers),
        to=above.to if route.to is None else route.to,
        group_by=above.group_by if route.group_by is None else route.group_by,
        group_wait_s=_inherited(route.group_wait, above.group_wait_s),
        group_interval_s=_inherited(route.group_interval, above.group_interval_s),
        repeat_interval_s=_inherited(route.repeat_interval, above.repeat_interval_s),
        escalate=above.escalate
        if route.escalate is None
        else tuple(sorted((seconds(step.after), step.to) for step in route.escalate)),
        fallback=above.fallback if route.fallback is None else route.fallback,
        mute=route.mute,
        active=route.active,
        goes_on=route.goes_on,
        routes=(),
    )
    named = [f"{name}/{','.join(map(str, _parsed('matchers', each.matchers)))}" for each in route.routes]
    unique = [f"{each}#{named[:i].count(each)}" if named[:i].count(each) else each for i, each in enumerate(named)]
    return replace(own, routes=tuple(_leaf(own, each, label) for each, label in zip(route.routes, unique, strict=True)))


def _names(content: _File, channels: Sequence[str]) -> Iterator[tuple[list[str | int], str, Sequence[str], str]]:
    """Every name in the routes, where it stands, and what there is."""

    def of(route: Route, keys: list[str | int]) -> Iterator[tuple[list[str | int], str, Sequence[str], str]]:
        yield from (([*keys, "to", i], name, channels, "channel") for i, name in enumerate(route.to or ()))
        if route.fallback:
            yield [*keys, "fallback"], route.fallback, channels, "channel"
        for number, step in enumerate(route.escalate or ()):
            where = [*keys, "escalate", number, "to"]
            yield from (([*where, i], name, channels, "channel") for i, name in enumerate(step.to))
        for what in ("mute", "active"):
            names = enumerate(getattr(route, what))
            yield from (([*keys, what, i], name, list(content.time_intervals), "time interval") for i, name in names)
        for number, inner in enumerate(route.routes):
            yield from of(inner, [*keys, "routes", number])

    yield from of(content.route, ["route"])


def _inherited(duration: Duration | None, above_s: float) -> float:
    return above_s if duration is None else seconds(duration)


def _seconds(field: str, duration: Duration) -> float:
    try:
        return seconds(duration)
    except ValueError as error:
        raise ValueError(f"`{field}`: {error}") from None


def _parsed(field: str, texts: Sequence[str]) -> tuple[Matcher, ...]:
    try:
        return tuple(map(matcher, texts))
    except ValueError as error:
        raise ValueError(f"`{field}`: {error}") from None
