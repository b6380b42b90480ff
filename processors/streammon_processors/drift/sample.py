"""What a test looks at: the values of each target of a model version, of one window or of its reference, in counts.

Samples add, as long as they are counted in the bins of one reference. They are read from profiles, from references, and
from what was kept of earlier windows.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt
from typing import Final

from msgspec import Struct

from streammon.profiles import CoMoments, Profile, Reference, TargetProfile, TargetReference

MAX_VALUES: Final = 2000
"""Categories of one target that are told apart in a sample; a profile has far fewer, but each may have others."""


class Side(Struct, array_like=True):
    """The values of one target."""

    present: int = 0
    missing: int = 0
    types: dict[str, int] = {}
    bins: list[int] | None = None
    values: dict[str, int] = {}
    other: int = 0
    """With a category that is not told apart."""

    def add(self, more: Side) -> None:
        self.present += more.present
        self.missing += more.missing
        self.other += more.other
        _add(self.types, more.types)
        if more.bins is not None:
            known = self.bins or [0] * len(more.bins)
            self.bins = [a + b for a, b in zip(known, more.bins, strict=False)]
        for value, count in more.values.items():
            if value in self.values or len(self.values) < MAX_VALUES:
                self.values[value] = self.values.get(value, 0) + count
            else:
                self.other += count

    @property
    def numbers(self) -> int:
        return sum(self.bins or ())


def _add(counts: dict[str, int], more: Mapping[str, int]) -> None:
    for name, count in more.items():
        counts[name] = counts.get(name, 0) + count


class Sample(Struct, array_like=True):
    """All targets of one model version."""

    count: int = 0
    targets: dict[str, Side] = {}
    pairs: dict[str, CoMoments] = {}
    left_out: int = 0
    """Targets that were beyond the cap of some profile: of one that is not here, nothing is known."""

    def add(self, more: Sample) -> None:
        """Take in a sample. Of a target that only one of them has, the events of the other lack it."""
        for name in [name for name in more.targets if name not in self.targets]:
            self.targets[name] = Side(missing=self.count)
        for name, side in self.targets.items():
            side.add(more.targets[name] if name in more.targets else Side(missing=more.count))
        for name, moments in more.pairs.items():
            self.pairs[name] = together(self.pairs[name], moments) if name in self.pairs else moments
        self.count += more.count
        self.left_out = max(self.left_out, more.left_out)

    def of(self, target: str) -> Side:
        return self.targets.get(target) or Side(missing=self.count)


def of_profile(profile: Profile) -> Sample:
    targets = {name: _side_of(target) for name, target in profile.targets.items()}
    return Sample(profile.count, targets, dict(profile.pairs), profile.left_out)


def _side_of(target: TargetProfile) -> Side:
    bins = None if target.numbers is None else target.numbers.bins
    return Side(
        present=sum(target.types.values()),
        missing=target.missing,
        types=dict(target.types),
        bins=None if bins is None else list(bins),
        values=dict(target.values or {}),
        other=target.other,
    )


def of_reference(reference: Reference) -> Sample:
    targets = {name: _side_of_reference(target) for name, target in reference.targets.items()}
    return Sample(reference.sample_size, targets, dict(reference.pairs))


def _side_of_reference(target: TargetReference) -> Side:
    return Side(
        present=sum(target.types.values()),
        missing=target.missing,
        types=dict(target.types),
        bins=None if target.bins is None else list(target.bins),
        values=dict(target.values or {}),
        other=target.other,
    )


def together(first: CoMoments, second: CoMoments) -> CoMoments:
    """Of the values of both (Chan, Golub and LeVeque 1979)."""
    count = first.count + second.count
    if not count:
        return first
    dx, dy = second.mean_x - first.mean_x, second.mean_y - first.mean_y
    share, product = second.count / count, first.count * second.count / count
    return CoMoments(
        count=count,
        mean_x=first.mean_x + dx * share,
        mean_y=first.mean_y + dy * share,
        m2_x=first.m2_x + second.m2_x + dx * dx * product,
        m2_y=first.m2_y + second.m2_y + dy * dy * product,
        c_xy=first.c_xy + second.c_xy + dx * dy * product,
    )


def correlation(moments: CoMoments) -> float | None:
    """None where one of the two does not vary."""
    spread = sqrt(moments.m2_x) * sqrt(moments.m2_y) if moments.m2_x > 0 and moments.m2_y > 0 else 0.0
    return max(-1.0, min(1.0, moments.c_xy / spread)) if spread else None
