"""What is usual: how far the windows of a version lie from an automatic reference while nothing is wrong.

The first events of a version are what came in its first minutes or hours. Inputs that change with the time of day, or
that are like the ones before, are elsewhere most of the time, and that is no chance. How far is learned in the first
days (``learn``, a week), test by test: the largest effect that was no chance and that nobody was told of. A test has to
find *more*: `MARGIN` times as much, or half of what is left to the largest possible.

- *On the first day* nothing is usual yet, so `AT_FIRST` times the threshold is asked for.
- *What was told is not learned*: a drift stays one.
- *What follows from the distribution* (more values are out of range, more are missing, …) is raised with it, in
  proportion, as rare things may not show in a week.
- *Schema is never usual*: a target that is lost or new, and another type.

Of independent values hardly anything is learned. Of a reference that somebody published nothing is: that is what they
want the model held against.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import inf, log, sqrt
from typing import Final

from msgspec import Struct
from prometheus_client import Counter

from streammon.models import DriftPolicy
from streammon.profiles import Reference
from streammon.topics import DAY_S
from streammon_processors.drift.compare import Finding
from streammon_processors.drift.statistics import TESTS

MARGIN: Final = 2.0
AT_FIRST: Final = 5.0
LEARNED: Final = 10.0
"""What is learned may be chance ten times as often as what is told, as it need not be the largest that will come."""
MAX_BYTES: Final = 160 * 1024
"""Of all that is learned in a partition, before it is packed: some 4,000 tests."""
SCHEMA: Final = frozenset({"lost_target", "new_target", "type_change"})
UNBOUNDED: Final = frozenset({"wasserstein", "psi", "kl", "correlation"})

DROPPED = Counter("streammon_drift_usual_dropped", "References of which there was no room to keep what is usual")


class Learned(Struct, array_like=True):
    """The largest effects under one reference, by detector and target."""

    since_unix_s: float
    effects: dict[str, float]

    @property
    def size(self) -> int:
        return sum(len(name.encode()) + 11 for name in self.effects)


class Usual:
    """Of all automatic references of a partition, by their ids."""

    def __init__(self, learned: Mapping[str, Learned] | None = None) -> None:
        self._learned = dict(learned or {})

    def memory(self) -> dict[str, Learned]:
        return {name: Learned(each.since_unix_s, dict(each.effects)) for name, each in sorted(self._learned.items())}

    def forget(self, reference: str) -> None:
        self._learned.pop(reference, None)

    def raised(
        self, tests: Sequence[Finding], frame: Reference, start_unix_s: float, policy: DriftPolicy
    ) -> list[Finding]:
        """The same tests, with the thresholds that they have to reach in a window that starts then."""
        if not _is_learned(frame, policy):
            return list(tests)
        at_first = start_unix_s - frame.since_unix_s < min(DAY_S, policy.reference.learn_s)
        own = [self._own(each, frame.id, AT_FIRST if at_first else 1.0) for each in tests]
        factors = {each.target: own_ / each.threshold for each, own_ in zip(tests, own, strict=True) if _is_whole(each)}
        return [
            replace(each, threshold=max(own_, _at_most(each, each.threshold * factors.get(each.target, 1.0))))
            for each, own_ in zip(tests, own, strict=True)
        ]

    def _own(self, test: Finding, reference: str, at_least: float) -> float:
        """What it has to reach by what was learned of it."""
        if test.detector in SCHEMA:
            return test.threshold
        learned = self._learned.get(reference)
        usual = learned.effects.get(_name(test), 0.0) if learned else 0.0
        at_first = _at_most(test, test.threshold * at_least)
        return max(test.threshold, at_first, min(MARGIN * usual, (usual + _largest(test)) / 2))

    def learn(
        self, judged: Sequence[Finding], frame: Reference, start_unix_s: float, policy: DriftPolicy, alpha: float
    ) -> None:
        """Take in what the tests of a window have found and not told."""
        if not _is_learned(frame, policy) or start_unix_s - frame.since_unix_s >= policy.reference.learn_s:
            return
        found = {_name(each): each.effect for each in judged if each.effect and _is_usual(each, alpha)}
        if found:
            effects = self._learned.setdefault(frame.id, Learned(frame.since_unix_s, {})).effects
            effects.update({name: max(effect, effects.get(name, 0.0)) for name, effect in found.items()})
            self._trim()

    def _trim(self) -> None:
        """Forget what is usual for the oldest references, until the rest fits."""
        while sum(each.size for each in self._learned.values()) > MAX_BYTES:
            del self._learned[min(self._learned, key=lambda name: (self._learned[name].since_unix_s, name))]
            DROPPED.inc()


def _is_learned(frame: Reference, policy: DriftPolicy) -> bool:
    return frame.automatic and policy.reference.learn_s > 0


def _is_whole(test: Finding) -> bool:
    """Whether it is of the whole distribution of a target."""
    return test.detector in TESTS


def _is_usual(test: Finding, alpha: float) -> bool:
    is_no_chance = test.q_value is not None and test.q_value <= LEARNED * alpha
    return is_no_chance and not test.drifted and test.detector not in SCHEMA


def _name(test: Finding) -> str:
    return f"{test.detector} {test.target}"


def _largest(test: Finding) -> float:
    """The largest effect that is possible."""
    return inf if test.detector in UNBOUNDED else sqrt(log(2)) if test.detector == "jensen_shannon" else 1.0


def _at_most(test: Finding, threshold: float) -> float:
    """Half of what is left, so that a total change is always seen; and nothing for schema."""
    return test.threshold if test.detector in SCHEMA else min(threshold, (test.threshold + _largest(test)) / 2)
