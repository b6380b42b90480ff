"""A sample: events whose values are held as they are, until a reference is made of them."""

from __future__ import annotations

from collections import Counter
from hashlib import blake2b

import msgspec
import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from streammon.models import DriftPolicy
from streammon.profiles import CoMoments, Reference, TargetKind, TargetReference
from streammon.wire import Floats
from streammon_processors.profiles.edges import bins_of, edges_of
from streammon_processors.profiles.sums import Counts, Moments, Pair, finite
from streammon_processors.profiles.targets import ALWAYS, MAX_NAME_CHARS, MAX_TARGETS, Column, Columns, Events

MAX_DISTINCT = 500
"""Categories of a target that are told apart in a sample."""
MAX_KNOWN = 100
"""Categories of a target that a reference knows: the most frequent."""
MAX_REFERENCE_BYTES = 400_000
"""A larger reference gives up its largest targets: it has to fit into records and snapshots."""


class SampleMemory(Struct, array_like=True):
    """What has to be remembered of a sample. Numbers are float64, little endian, one for each event; NaN: none."""

    count: int
    numbers: dict[str, bytes]
    values: dict[str, tuple[dict[str, int], int]]
    types: dict[str, dict[str, int]]


class Sample:
    """The values of some events of one model version."""

    def __init__(self, policy: DriftPolicy, memory: SampleMemory | None = None) -> None:
        self.policy = policy
        self.count = 0
        self._numbers: dict[str, list[Floats]] = {}
        self._values: dict[str, Counts] = {}
        self._types: dict[str, Counter[str]] = {}
        if memory is not None:
            self._restore(memory)

    def _restore(self, memory: SampleMemory) -> None:
        self.count = memory.count
        self._numbers = {name: [np.frombuffer(numbers, "<f8")] for name, numbers in memory.numbers.items()}
        self._types = {name: Counter(types) for name, types in memory.types.items()}
        for name, (values, other) in memory.values.items():
            self._values[name] = Counts(values, MAX_DISTINCT - len(values))
            self._values[name].values, self._values[name].other = dict(values), other

    def memory(self) -> SampleMemory:
        return SampleMemory(
            self.count,
            {
                name: numbers.astype("<f8").tobytes()
                for name in self._numbers
                if (numbers := self._joined(name)) is not None
            },
            {name: (dict(counts.values), counts.other) for name, counts in self._values.items()},
            {name: dict(types) for name, types in self._types.items()},
        )

    @property
    def lacking(self) -> int:
        """How many events more make a reference of its own accord."""
        return max(0, self.policy.reference.first - self.count)

    @property
    def size(self) -> int:
        """How much is held, in numbers of eight bytes."""
        texts = sum(2 + len(value) // 8 for counts in self._values.values() for value in counts.values)
        return self.count * len(self._numbers) + texts

    def columns(self, events: Events) -> Columns:
        """What `add` would take of these events."""
        known = set(ALWAYS)
        for name in (*self._types, *events.names()):
            if len(known) < MAX_TARGETS + len(ALWAYS) and len(name) <= MAX_NAME_CHARS:
                known.add(name)
        return events.columns(name for name in events.names() if name in known)

    def append(self, other: Sample) -> None:
        """The events of another sample behind these."""
        for name, types in other._types.items():
            self._types.setdefault(name, Counter()).update(types)
        for name, counts in other._values.items():
            self._values.setdefault(name, Counts((), MAX_DISTINCT)).append(counts)
        for name in dict.fromkeys((*self._numbers, *other._numbers)):
            mine = self._numbers.setdefault(name, [np.full(self.count, np.nan)])
            mine += other._numbers.get(name) or [np.full(other.count, np.nan)]
        self.count += other.count

    def add(self, columns: Columns, events: int) -> None:
        """So many events, and their values."""
        for name, column in columns.items():
            self._types.setdefault(name, Counter()).update(column.types)
            if column.texts:
                self._values.setdefault(name, Counts((), MAX_DISTINCT)).add(column.texts)
            if len(column.at) and name not in self._numbers:
                self._numbers[name] = [np.full(self.count, np.nan)]
        for name, numbers in self._numbers.items():
            numbers.append(_spread(columns.get(name), events))
        self.count += events

    def _joined(self, name: str) -> Floats:
        numbers = self._numbers[name]
        if len(numbers) > 1:
            self._numbers[name] = numbers = [np.concatenate(numbers)]
        return numbers[0]

    def _column(self, name: str) -> Column:
        if name not in self._numbers:
            return Column(np.zeros(0, np.int64), np.zeros(0))
        numbers = self._joined(name)
        at = np.flatnonzero(~np.isnan(numbers))
        return Column(at, numbers[at])

    # --- the reference --------------------------------------------------------------------------------------------

    def reference(
        self,
        service: str,
        model: str,
        model_version: str | None,
        *,
        origin: str,
        made_unix_s: float,
        since_unix_s: float = 0.0,
        automatic: bool = False,
    ) -> Reference:
        """How these events are distributed. It lacks targets that no event had, and those that did not fit."""
        reference = Reference(
            id="",
            service=service,
            model=model,
            model_version=model_version,
            origin=origin,
            made_unix_s=made_unix_s,
            since_unix_s=since_unix_s,
            automatic=automatic,
            sample_size=self.count,
            targets={name: self._target(name) for name in sorted(self._types)},
            pairs=self._pairs(),
        )
        return replace(_fitting(reference), id=content_id(reference))

    def _pairs(self) -> dict[str, CoMoments]:
        found = {}
        for x, y in self.policy.pairs:
            pair = Pair(None)
            pair.add(self._column(x), self._column(y))
            if moments := pair.moments():
                found[f"{x},{y}"] = moments
        return found

    def _target(self, name: str) -> TargetReference:
        types, numbers = self._types[name], self._column(name).numbers
        kind: TargetKind = "numeric" if 2 * len(numbers) > types.total() else "categorical"
        target = TargetReference(
            kind="text" if name in self.policy.text else kind,
            count=types.total(),
            missing=self.count - types.total(),
            types=dict(sorted(types.items())),
        )
        counts = self._values.get(name)
        if counts is not None:
            _know(target, counts)
        if target.kind != "categorical":
            _measure(target, numbers)
        return target


def _spread(column: Column | None, events: int) -> Floats:
    numbers = np.full(events, np.nan)
    if column is not None:
        numbers[column.at] = column.numbers
    return numbers


def _know(target: TargetReference, counts: Counts) -> None:
    frequent = sorted(counts.values.items(), key=lambda item: (-item[1], item[0]))
    target.values = dict(sorted(frequent[:MAX_KNOWN]))
    target.other = counts.other + sum(count for _, count in frequent[MAX_KNOWN:])
    target.distinct = len(frequent)


def _measure(target: TargetReference, numbers: Floats) -> None:
    if not len(numbers):
        return
    edges = edges_of(numbers)
    center = float(np.partition(numbers, len(numbers) // 2)[len(numbers) // 2])
    moments = Moments(center)
    moments.add(numbers)
    with np.errstate(over="ignore", invalid="ignore"):
        shift = float((numbers - center).mean())
        std = float(np.sqrt(max(0.0, moments.squares / len(numbers) - shift * shift)))
    target.edges, target.bins, target.center = edges, bins_of(numbers, edges), center
    target.min, target.max = moments.min, moments.max
    target.mean, target.std = finite(center + shift), finite(std)
    target.distinct = len(np.unique(numbers))


def content_id(reference: Reference) -> str:
    """Of what it says, and of whom; not of when and where it was made."""
    of = (reference.service, reference.model, reference.model_version, reference.sample_size)
    content = msgspec.json.encode((of, reference.targets, reference.pairs), order="sorted")
    return blake2b(content, digest_size=8).hexdigest()


def _fitting(reference: Reference) -> Reference:
    sizes = {name: len(msgspec.json.encode(target)) + len(name) for name, target in reference.targets.items()}
    while sum(sizes.values()) > MAX_REFERENCE_BYTES:
        largest = max(sizes, key=lambda name: (sizes[name], name))
        del sizes[largest], reference.targets[largest]
    return reference
