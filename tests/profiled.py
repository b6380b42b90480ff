"""References and profiles made from raw values, a plain second way to them: what the tests of drift are given.

Values of a target are a list: numbers, texts, truths, and None where an event lacks it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from math import nextafter

import numpy as np

from streammon.profiles import (
    CoMoments,
    Numbers,
    Profile,
    Reference,
    TargetKind,
    TargetProfile,
    TargetReference,
)
from streammon.results import Completeness
from streammon.sketch import Sketch

Value = float | str | bool | None
Values = Mapping[str, Sequence[Value]]
NAMES = {float: "number", int: "number", str: "text", bool: "truth"}


def edges_of(numbers: Sequence[float], bins: int) -> list[float]:
    """So many bins of about equal counts between just below the smallest value and the largest."""
    found = np.quantile(np.array(numbers), np.linspace(0, 1, bins + 1)[1:-1], method="inverted_cdf").tolist()
    low, high = min(numbers), max(numbers)
    return sorted({nextafter(low, -np.inf), *(each for each in found if each < high), high})


def counted(numbers: Sequence[float], edges: Sequence[float]) -> list[int]:
    counts = Counter(bisect_left(edges, number) for number in numbers)
    return [counts[at] for at in range(len(edges) + 1)]


def types_of(values: Sequence[Value]) -> dict[str, int]:
    return dict(Counter(NAMES[type(value)] for value in values if value is not None))


def numbers_of(values: Sequence[Value], kind: TargetKind) -> list[float]:
    if kind == "text":
        return [float(len(value)) for value in values if isinstance(value, str)]
    return [float(value) for value in values if isinstance(value, float | int) and not isinstance(value, bool)]


def names_of(values: Sequence[Value]) -> dict[str, int]:
    return dict(
        Counter(str(value).lower() if isinstance(value, bool) else str(value) for value in values if value is not None)
    )


def kind_of(values: Sequence[Value]) -> TargetKind:
    return (
        "numeric"
        if all(isinstance(each, float | int) and not isinstance(each, bool) for each in values if each is not None)
        else "categorical"
    )


def target_reference(values: Sequence[Value], kind: TargetKind | None = None, bins: int = 20) -> TargetReference:
    kind = kind or kind_of(values)
    found = TargetReference(
        kind=kind, count=len(values), missing=sum(each is None for each in values), types=types_of(values)
    )
    if kind == "categorical":
        found.values = names_of(values)
        found.distinct = len(found.values)
    elif numbers := numbers_of(values, kind):
        found.edges = edges_of(numbers, bins)
        found.bins = counted(numbers, found.edges)
        found.min, found.max = min(numbers), max(numbers)
        found.mean = found.center = float(np.mean(numbers))
        found.std = float(np.std(numbers))
    return found


def moments(x: Sequence[Value], y: Sequence[Value]) -> CoMoments:
    both = [
        (float(a), float(b))
        for a, b in zip(x, y, strict=True)
        if isinstance(a, float | int) and isinstance(b, float | int)
    ]
    if not both:
        return CoMoments(count=0, mean_x=0.0, mean_y=0.0, m2_x=0.0, m2_y=0.0, c_xy=0.0)
    array = np.array(both)
    means = array.mean(axis=0)
    (m2_x, c_xy), (_, m2_y) = ((array - means).T @ (array - means)).tolist()
    return CoMoments(count=len(both), mean_x=float(means[0]), mean_y=float(means[1]), m2_x=m2_x, m2_y=m2_y, c_xy=c_xy)


def reference(
    values: Values,
    *,
    name: str = "r1",
    kinds: Mapping[str, TargetKind] | None = None,
    pairs: Sequence[tuple[str, str]] = (),
    bins: int = 20,
    service: str = "shop",
    model: str = "ranker",
) -> Reference:
    return Reference(
        id=name,
        service=service,
        model=model,
        origin="made of values",
        made_unix_s=0.0,
        sample_size=max(map(len, values.values())),
        targets={target: target_reference(each, (kinds or {}).get(target), bins) for target, each in values.items()},
        pairs={f"{x},{y}": moments(values[x], values[y]) for x, y in pairs},
    )


def target_profile(values: Sequence[Value], frame: TargetReference | None) -> TargetProfile:
    kind = frame.kind if frame else kind_of(values)
    found = TargetProfile(missing=sum(each is None for each in values), types=types_of(values))
    if kind == "categorical":
        found.values = names_of(values)
    elif numbers := numbers_of(values, kind):
        found.numbers = Numbers(
            count=len(numbers),
            min=min(numbers),
            max=max(numbers),
            sum=sum(numbers),
            sum_of_squares=sum(each * each for each in numbers),
            sketch=Sketch.of(np.array(numbers)),
            bins=counted(numbers, frame.edges) if frame and frame.edges is not None else None,
        )
    return found


def profile(
    values: Values,
    frame: Reference | None,
    start: float,
    size_s: float = 300.0,
    *,
    revision: int = 0,
    version: str | None = "1",
    pairs: Sequence[tuple[str, str]] = (),
    watermark: float | None = None,
    service: str = "shop",
    model: str = "ranker",
    partition: int = 3,
) -> Profile:
    targets = {
        target: target_profile(each, frame.targets.get(target) if frame else None)
        for target, each in values.items()
        if any(value is not None for value in each)
    }
    return Profile(
        service=service,
        model=model,
        model_version=version,
        part="late" if revision else "main",
        revision=revision,
        start_unix_s=start,
        end_unix_s=start + size_s,
        size_s=size_s,
        partition=partition,
        count=max(map(len, values.values())),
        completeness=Completeness(watermark_unix_s=start + size_s if watermark is None else watermark),
        reference=frame.id if frame else None,
        targets=targets,
        pairs={f"{x},{y}": moments(values[x], values[y]) for x, y in pairs},
    )
