"""What earlier windows of a model version were like, to be held against: rolling, or the same hour last week.

Kept in slots: sums of windows, all counted in the bins of one reference, and forgotten when the profiles have another.
A slot is a twenty-eighth of a rolling reference (6 h of 7 d), an hour of the last week, or a window if that is longer.

Slots are in the snapshot of the task, packed, for they are read once an hour and there are few of them. To read a week
of profiles again instead would be gigabytes for a model with a hundred features. `trim` keeps all of a partition within
`MAX_BYTES`, and bins of numbers are kept `COARSER` times as wide as the reference's: enough for some 600 features that
are held against rolling references, or 100 against the same hour last week.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Mapping
from math import floor
from typing import Final

import msgspec
from msgspec import Struct
from msgspec.structs import replace
from prometheus_client import Counter

from streammon.durations import seconds
from streammon.models import DriftPolicy
from streammon.profiles import Reference
from streammon_processors.drift.sample import Sample

MAX_BYTES: Final = 640 * 1024
"""Of all slots of a partition, packed: a snapshot has to fit into a record."""
WEEK_S: Final = 7 * 86_400.0
HOUR_S: Final = 3600.0
SLOTS: Final = 28
COARSER: Final = 4
ROUNDING_S: Final = 1e-3

DROPPED = Counter("streammon_drift_past_dropped", "Slots of earlier windows that there was no room to keep")

_pack = msgspec.msgpack.Encoder().encode
_unpack = msgspec.msgpack.Decoder(Sample).decode


class Kept(Struct, array_like=True):
    """The past of one model version: packed sums by the number of their slot, ascending."""

    reference: str
    slot_s: float
    slots: dict[int, bytes]


def slot_s_of(policy: DriftPolicy) -> float | None:
    """How long a slot is; None if nothing of the past is needed."""
    if policy.reference.same_hour_last_week:
        return max(HOUR_S, policy.window_s)
    if policy.reference.rolling is not None:
        return max(seconds(policy.reference.rolling) / SLOTS, policy.window_s)
    return None


class Past:
    """Of all model versions of a partition that need one."""

    def __init__(self, kept: Mapping[str, Kept] | None = None) -> None:
        self.kept = dict(kept or {})

    def before(self, series: str, start_unix_s: float, reference: str, policy: DriftPolicy) -> Sample | None:
        """What a window that starts there is held against, in `coarse` bins; None if nothing of that time is known."""
        kept = self.kept.get(series)
        if kept is None or kept.reference != reference or kept.slot_s != slot_s_of(policy):
            return None
        if policy.reference.same_hour_last_week:
            wanted = [_slot(start_unix_s - WEEK_S, kept.slot_s)]
        else:
            first = _slot(start_unix_s - seconds(policy.reference.rolling or 0.0), kept.slot_s)
            wanted = [number for number in kept.slots if number > first]
        found = [kept.slots[number] for number in wanted if number in kept.slots]
        return _sum(map(_unpacked, found)) if found else None

    def add(self, series: str, start_unix_s: float, reference: str, sample: Sample, policy: DriftPolicy) -> None:
        """Keep a window that has been tested; and forget what is too old to be asked for."""
        slot_s = slot_s_of(policy)
        if slot_s is None:
            return
        kept = self.kept.get(series)
        if kept is None or (kept.reference, kept.slot_s) != (reference, slot_s):
            kept = self.kept[series] = Kept(reference, slot_s, {})
        number = _slot(start_unix_s, slot_s)
        known = [_unpacked(kept.slots[number])] if number in kept.slots else []
        kept.slots[number] = zlib.compress(_pack(_sum([*known, coarse(sample)])), 1)
        span_s = WEEK_S if policy.reference.same_hour_last_week else seconds(policy.reference.rolling or 0.0)
        oldest = _slot(start_unix_s - span_s, slot_s)
        kept.slots = {slot: packed for slot, packed in sorted(kept.slots.items()) if slot >= oldest}

    def trim(self, now_unix_s: float) -> None:
        """Forget versions that are gone; and, of those who keep most, the oldest slots, until all fits."""
        old = [series for series, kept in self.kept.items() if max(kept.slots) * kept.slot_s < now_unix_s - 2 * WEEK_S]
        for series in old:
            del self.kept[series]
        sizes = {series: sum(map(len, kept.slots.values())) for series, kept in self.kept.items()}
        while sum(sizes.values()) > MAX_BYTES:
            largest = max(sorted(sizes), key=lambda series: sizes[series])
            slots = self.kept[largest].slots
            sizes[largest] -= len(slots.pop(min(slots)))
            DROPPED.inc()
            if not slots:
                del self.kept[largest], sizes[largest]


def coarse(sample: Sample) -> Sample:
    """The same in wider bins; those beyond the range of the reference stay as they are."""
    targets = {name: replace(side, bins=_coarse_bins(side.bins)) for name, side in sample.targets.items()}
    return replace(sample, targets=targets)


def coarse_frame(frame: Reference) -> Reference:
    """The reference whose bins those are."""
    targets = {
        name: replace(target, edges=_coarse_edges(target.edges), bins=_coarse_bins(target.bins))
        for name, target in frame.targets.items()
    }
    return replace(frame, targets=targets)


def _coarse_edges(edges: list[float] | None) -> list[float] | None:
    return edges and [*edges[:-1:COARSER], edges[-1]]


def _coarse_bins(bins: list[int] | None) -> list[int] | None:
    if not bins or len(bins) < 3:
        return bins
    inner = bins[1:-1]
    return [bins[0], *(sum(inner[at : at + COARSER]) for at in range(0, len(inner), COARSER)), bins[-1]]


def _slot(unix_s: float, slot_s: float) -> int:
    return floor((unix_s + ROUNDING_S) / slot_s)


def _unpacked(packed: bytes) -> Sample:
    return _unpack(zlib.decompress(packed))


def _sum(samples: Iterable[Sample]) -> Sample:
    total = Sample()
    for each in samples:
        total.add(each)
    return total
