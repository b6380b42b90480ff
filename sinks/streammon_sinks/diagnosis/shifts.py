"""Where a series leaves its level, and how alike two series move: robust, and said in the units of its own noise."""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np

from streammon_sinks.diagnosis.tracks import Floats

MIN_Z: Final = 5.0
"""A level that is off by fewer deviations than this has not shifted."""
SPIKE_Z: Final = 15.0
"""One bin that is off by so many is a shift, though the level is not: a kill, a burst."""
RECENT: Final = 6
"""Bins before the alert in which a spike counts."""
MAX_LAG: Final = 18
"""Bins by which one series may go before or after another."""
AROUND: Final = 30
"""Bins before the onset that are compared."""
CLIP: Final = 10.0
"""Deviations beyond which a value is no more unusual."""
MIN_BINS: Final = 8
"""Fewer values than this before the alert are no level."""
_MAD: Final = 1.4826  # the deviation of normal noise, in median absolute deviations
_FLOOR: Final = 0.02  # of the level: what moves by less is not worth telling, however quiet it was


class Shift(NamedTuple):
    """``z``: how far, in deviations of the noise before; below 0: down. ``before`` and ``after`` are medians."""

    onset: int
    z: float
    before: float
    after: float


def baseline_of(values: Floats, alert_bin: int) -> Floats | None:
    """The values before the alert that say what is usual; None: they are too few."""
    baseline = values[: max(1, min(alert_bin, len(values) - 1) // 2)]
    baseline = baseline[np.isfinite(baseline)]
    return None if len(baseline) < MIN_BINS else baseline


def shift_of(values: Floats, alert_bin: int, *, spikes: bool = False) -> Shift | None:
    """Whether the series is off its level when the alert comes, and since which bin.

    ``spikes``: a single bin shortly before counts as well, as of a counter of kills.

    The level is that of the first half of the time before the alert. None: it has none, or has not left it.
    """
    last = min(alert_bin, len(values) - 1)
    baseline = baseline_of(values, alert_bin)
    if baseline is None:
        return None
    level = float(np.median(baseline))
    noise = max(_MAD * float(np.median(np.abs(baseline - level))), float(baseline.std()) / 2, _FLOOR * abs(level))
    largest = float(np.nanmax(np.abs(values)))
    z = (values - level) / max(noise, 1e-3 * largest, 1e-12)
    now = z[max(0, last - 1) : last + 4]
    now = now[np.isfinite(now)]
    off = float(np.median(now)) if len(now) else 0.0
    if abs(off) >= MIN_Z:
        onset = _run_start(z, last, off)
        after = values[onset : last + 4]
        return Shift(onset, off, level, float(np.median(after[np.isfinite(after)][-5:])))
    return _spike(z, values, last, level) if spikes else None


def _run_start(z: Floats, last: int, off: float) -> int:
    """The first bin of the run that leads to the alert; single bins back at the level do not end it."""
    beyond = (z * np.sign(off) > max(3.0, 0.15 * abs(off))) | ~np.isfinite(z)
    later = np.flatnonzero(beyond[last : last + 4])
    at = last + (int(later[0]) if len(later) else 0)
    while at > 0 and (beyond[at - 1] or (at > 1 and beyond[at - 2])):
        at -= 1
    while at < last and not (np.isfinite(z[at]) and beyond[at]):
        at += 1
    return at


def _spike(z: Floats, values: Floats, last: int, level: float) -> Shift | None:
    recent = np.abs(np.nan_to_num(z[max(0, last - RECENT) : last + 2]))
    if not len(recent) or recent.max() < SPIKE_Z:
        return None
    at = max(0, last - RECENT) + int(recent.argmax())
    return Shift(at, float(z[at]), level, float(values[at]))


def clipped(matrix: Floats) -> Floats:
    """Each row in deviations of its noise, none beyond `CLIP`, with mean 0 and length 1: one wild value counts little.

    Gaps are the row's middle, and a row that does not move is all 0.
    """
    if not matrix.size:
        return matrix
    filled = np.where(np.isfinite(matrix), matrix, np.nan)
    filled[np.isnan(filled).all(axis=1)] = 0.0
    middle = np.nanmedian(filled, axis=1, keepdims=True)
    filled = np.where(np.isnan(filled), middle, filled)
    noise = _MAD * np.median(np.abs(filled - middle), axis=1, keepdims=True)
    noise = np.where(noise > 0, noise, 1e-3 * np.abs(filled).max(axis=1, keepdims=True))
    z = np.divide(filled - middle, noise, out=np.zeros_like(filled), where=noise > 0).clip(-CLIP, CLIP)
    z -= z.mean(axis=1, keepdims=True)
    length = np.sqrt((z**2).sum(axis=1, keepdims=True))
    unit: Floats = np.divide(z, length, out=np.zeros_like(z), where=length > 1e-9)
    return unit


def correlations(own: Floats, others: Floats, onset: int, most: int = MAX_LAG) -> tuple[Floats, Floats]:
    """For each row of ``others``: its strongest correlation with ``own``, and by how many bins it goes before it.

    Looks at the bins around ``onset`` alone, and at rows with `MIN_BINS` values or more beside ``own``'s there: of two
    points, every line is a perfect fit. Of lags that are as good, the smallest counts.
    """
    first = max(0, onset - AROUND)
    size = len(own) - first
    best, at = np.zeros(len(others)), np.zeros(len(others))
    if size < MIN_BINS:
        return best, at
    target, rows = clipped(own[None, first:])[0], clipped(others[:, first:])
    for lag in sorted(range(-most, most + 1), key=abs):
        if size - abs(lag) < MIN_BINS:
            continue
        found = rows[:, : size - lag] @ target[lag:] if lag >= 0 else rows[:, -lag:] @ target[:lag]
        better = np.abs(found) > np.abs(best) + 0.02
        best[better], at[better] = found[better], lag
    few = (np.isfinite(others[:, first:]) & np.isfinite(own[first:])).sum(axis=1) < MIN_BINS
    best[few], at[few] = 0.0, 0.0
    return best, at
