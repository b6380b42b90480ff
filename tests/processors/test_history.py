"""Which snapshots are kept for replays: often enough, and never more than there are slots."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise

import pytest

from streammon.topics import DAY_S
from streammon_processors.history import SLOTS, History, slot_entered

MIDNIGHT = 19_700 * DAY_S
HALF_HOUR_S = 1800.0


@pytest.mark.parametrize(
    ("before_s", "now_s", "slot"),
    [
        (0.0, MIDNIGHT + 5, "day-20"),
        (MIDNIGHT + 5, MIDNIGHT + 1799, None),
        (MIDNIGHT + 1799, MIDNIGHT + 1800, "half-hour-1"),
        (MIDNIGHT + 1800, MIDNIGHT + 5 * 3600, "half-hour-10"),
        (MIDNIGHT - 1, MIDNIGHT, "day-20"),
        (MIDNIGHT + DAY_S - 1, MIDNIGHT + DAY_S, "day-21"),
        (MIDNIGHT + 5, MIDNIGHT - 5, None),
    ],
)
def test_a_slot_is_entered_when_its_half_hour_or_day_begins(before_s: float, now_s: float, slot: str | None) -> None:
    assert slot_entered(before_s, now_s) == slot


def test_a_snapshot_is_kept_once_a_slot_in_the_processors_partition() -> None:
    history = History("windows", 3)
    [first] = history.keep(b"one", MIDNIGHT)
    assert (first.topic, first.key, first.value, first.partition) == ("snapshots", b"windows/day-20", b"one", 3)
    assert history.keep(b"two", MIDNIGHT + 60) == []
    assert [each.key for each in history.keep(b"three", MIDNIGHT + HALF_HOUR_S)] == [b"windows/half-hour-1"]


def test_a_restart_keeps_what_was_kept_before_it() -> None:
    """A new owner that wrote the slot of the day again at noon would leave no snapshot of the morning."""
    history = History("windows", 3, goes_on=True)
    assert history.keep(b"", MIDNIGHT) == [], "of another topic, that is far behind"
    history.begin(MIDNIGHT + 12 * 3600.0 - 10)
    history.begin(MIDNIGHT)
    assert history.keep(b"", MIDNIGHT + 12 * 3600.0 - 5) == []
    assert [each.key for each in history.keep(b"", MIDNIGHT + 12 * 3600.0 + 1)] == [b"windows/half-hour-24"]


def test_a_topic_that_is_behind_does_not_take_slots_again() -> None:
    """Two inputs: one is read live, the other is being caught up."""
    history = History("windows", 3)
    kept = [history.keep(b"", MIDNIGHT + at) for at in (7200.0, 1800.0, 7201.0, 3600.0, 7202.0)]
    assert [len(each) for each in kept] == [1, 0, 0, 0, 0]


def test_a_month_fills_every_slot_and_no_more() -> None:
    rng, history, now_s, kept = random.Random(1), History("windows", 0), MIDNIGHT, dict[bytes | None, float]()
    while now_s < MIDNIGHT + 33 * DAY_S:
        kept |= {each.key: now_s for each in history.keep(b"", now_s)}
        now_s += rng.uniform(0, 900)
    assert len(kept) <= sum(count for _, count in SLOTS.values())
    taken = sorted(kept.values())
    assert taken[0] < now_s - 31 * DAY_S
    assert longest_gap(taken) < DAY_S + HALF_HOUR_S
    assert longest_gap([at for at in taken if at > now_s - 1.9 * DAY_S]) < 2 * HALF_HOUR_S


def longest_gap(times: Sequence[float]) -> float:
    return max(after - before for before, after in pairwise(times))
