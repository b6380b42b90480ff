"""What dedupe remembers, and what it may forget."""

from __future__ import annotations

import random
from itertools import accumulate
from math import floor

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streammon.config import WindowSettings
from streammon.tick import TICK
from streammon.topics import LARGE_RECORD_BYTES
from streammon.wire import Identity
from streammon_processors import dedupe as module
from streammon_processors.chunk import Position, pack_positions, unpack_positions
from streammon_processors.contract import Stored
from streammon_processors.dedupe import (
    FORGET_AFTER_MS,
    MAX_GAPS,
    MAX_GAPS_TOGETHER,
    MAX_STREAMS,
    Dedupe,
    Stream,
    Verdict,
)
from streammon_processors.event_windows import MAX_DUPLICATES, Published
from streammon_processors.revisions import MAX_REVISIONS, Revisions, RevisionsMemory
from streammon_processors.windows import WindowTask, sources
from tests.logs import T0, inference, packed, resource


def judge(dedupe: Dedupe, *seqs: int, boot: str = "b", now_ms: int = 0) -> list[Verdict]:
    return [dedupe.judge(Identity("a", boot, seq), now_ms) for seq in seqs]


NEW, DUPLICATE = Verdict(duplicate=False, missing=0), Verdict(duplicate=True, missing=0)


def test_numbers_without_gaps_are_new_and_a_second_time_duplicates() -> None:
    assert judge(Dedupe(), 0, 1, 1, 0, 2) == [NEW, NEW, DUPLICATE, DUPLICATE, NEW]


def test_first_number_of_a_stream_tells_what_was_missed_before_it() -> None:
    assert judge(Dedupe(), 3, 0, 0) == [Verdict(duplicate=False, missing=3), Verdict(False, -1), DUPLICATE]


def test_a_gap_is_taken_back_one_by_one_from_any_side() -> None:
    found = judge(Dedupe(), 0, 6, 3, 1, 5, 2, 4, 3)
    assert [verdict.missing for verdict in found] == [0, 5, -1, -1, -1, -1, -1, 0]
    assert found[-1].duplicate


def test_boots_and_agents_are_streams_of_their_own() -> None:
    dedupe = Dedupe()
    assert judge(dedupe, 0, boot="x") == judge(dedupe, 0, boot="y") == [NEW]
    assert dedupe.judge(Identity("other", "x", 0), 0) == NEW


@given(st.lists(st.integers(0, 40), max_size=80))
@settings(deadline=None)
def test_missing_sums_up_to_the_numbers_never_seen(seqs: list[int]) -> None:
    found = judge(Dedupe(), *seqs)
    assert sum(verdict.missing for verdict in found) == max(seqs, default=-1) + 1 - len(set(seqs))
    seen: set[int] = set()
    for seq, verdict in zip(seqs, found, strict=True):
        assert verdict.duplicate == (seq in seen)
        seen.add(seq)


@given(st.lists(st.integers(0, 3000), max_size=300), st.integers(1, 8))
@settings(deadline=None, max_examples=40)
def test_gaps_stay_bounded_and_what_is_forgotten_counts_as_seen(seqs: list[int], bound: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MAX_GAPS", bound)
        dedupe = Dedupe()
        seen: set[int] = set()
        for seq in seqs:
            (verdict,) = judge(dedupe, seq)
            assert verdict.duplicate or seq not in seen, "what was counted is never counted again"
            seen.add(seq)
            (stream,) = dedupe.streams()
            assert len(stream.gaps) <= bound


def test_one_gap_that_is_filled_from_the_middle_does_not_become_many() -> None:
    dedupe = Dedupe()
    judge(dedupe, 0, 1000, *range(2, 900, 2))
    (stream,) = dedupe.streams()
    assert len(stream.gaps) == MAX_GAPS
    assert judge(dedupe, 999) == [Verdict(duplicate=False, missing=-1)]
    assert judge(dedupe, 3) == [DUPLICATE]


def test_stream_silent_for_a_day_of_broker_time_is_forgotten() -> None:
    dedupe = Dedupe()
    judge(dedupe, 0)
    assert judge(dedupe, 0, now_ms=FORGET_AFTER_MS) == [DUPLICATE]
    assert judge(dedupe, 0, now_ms=2 * FORGET_AFTER_MS) == [DUPLICATE]
    assert judge(dedupe, 0, now_ms=3 * FORGET_AFTER_MS + 1) == [NEW]


def test_streams_are_bounded_and_the_longest_silent_is_forgotten_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MAX_STREAMS", 3)
    dedupe = Dedupe()
    for boot in ("x", "y", "z", "x", "w"):
        judge(dedupe, 0, boot=boot)
    assert len(dedupe.streams()) == 3
    assert judge(dedupe, 0, boot="x") == [DUPLICATE]
    assert judge(dedupe, 0, boot="y") == [NEW]


def test_as_many_streams_as_there_is_room_for_do_not_push_each_other_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MAX_STREAMS", 3)
    dedupe = Dedupe()
    for seq in range(5):
        for boot in ("x", "y", "z"):
            assert judge(dedupe, seq, boot=boot) == [NEW]


def test_names_of_any_length_are_remembered_in_little_room() -> None:
    dedupe = Dedupe()
    long = "x" * 500_000
    assert judge(dedupe, 0, boot=long) == judge(dedupe, 0, boot=long + "y") == [NEW]
    assert judge(dedupe, 0, boot=long) == [DUPLICATE]
    assert len(msgspec.json.encode(dedupe.streams())) < 200


def test_streams_given_back_judge_as_before_and_are_not_shared_between_boots() -> None:
    dedupe = Dedupe()
    judge(dedupe, 0, 5, boot="x")
    judge(dedupe, 3, boot="y")
    again = Dedupe([Stream(s.name, s.last_ms, s.highest, list(s.gaps)) for s in dedupe.streams()])
    assert judge(again, 5, 2, boot="x") == [DUPLICATE, Verdict(duplicate=False, missing=-1)]
    assert judge(again, 2, 4, boot="y") == [Verdict(duplicate=False, missing=-1), NEW]


# --- all gaps together ----------------------------------------------------------------------------------------------


def test_beyond_the_bound_the_longest_silent_stream_with_gaps_forgets_its_oldest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MAX_GAPS_TOGETHER", 3)
    dedupe = Dedupe()
    judge(dedupe, 0, boot="without")
    judge(dedupe, 1, 3, boot="x")
    judge(dedupe, 1, boot="y")
    judge(dedupe, 4, boot="x")  # heard of, but no new gap
    judge(dedupe, 1, boot="z")  # one too many: y is the longest silent now
    assert judge(dedupe, 0, boot="y") == [DUPLICATE]
    judge(dedupe, 6, boot="z")  # now it is x
    assert judge(dedupe, 0, 2, boot="x") == [DUPLICATE, Verdict(duplicate=False, missing=-1)]
    assert judge(dedupe, 0, 4, boot="z") == [Verdict(duplicate=False, missing=-1)] * 2


def test_gaps_that_were_filled_or_whose_stream_was_forgotten_leave_room_for_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MAX_GAPS_TOGETHER", 2)
    dedupe = Dedupe()
    for _ in range(10):
        judge(dedupe, 1, 0, boot="filled")
        judge(dedupe, 1, boot="silent", now_ms=0)
        dedupe = Dedupe(dedupe.streams())
        judge(dedupe, 1, boot="kept", now_ms=FORGET_AFTER_MS + 1)
    judge(dedupe, 1, boot="another", now_ms=FORGET_AFTER_MS + 1)
    for boot in ("kept", "another"):
        assert judge(dedupe, 0, boot=boot, now_ms=FORGET_AFTER_MS + 1) == [Verdict(duplicate=False, missing=-1)]


batches = st.lists(st.tuples(st.sampled_from("vwxyz"), st.integers(0, 30)), max_size=120)


@given(batches, st.integers(1, 6), st.integers(0, 120))
@settings(deadline=None, max_examples=60)
def test_gaps_of_all_streams_are_bounded_and_forgotten_alike_after_a_restore(
    batches: list[tuple[str, int]], bound: int, restored_at: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MAX_GAPS_TOGETHER", bound)
        patch.setattr(module, "MAX_STREAMS", 4)
        through, restored = Dedupe(), Dedupe()
        for number, (boot, seq) in enumerate(batches):
            if number == restored_at:
                restored = Dedupe(msgspec.json.decode(msgspec.json.encode(restored.streams()), type=list[Stream]))
            assert judge(through, seq, boot=boot) == judge(restored, seq, boot=boot)
            assert through.streams() == restored.streams()
            assert sum(len(stream.gaps) for stream in through.streams()) <= bound


# --- the largest snapshot -------------------------------------------------------------------------------------------

HIGHEST = 2**53
OFFSET = 2**62


def full_of_gaps() -> list[Stream]:
    """As many streams as there may be, with as many gaps as each may have: more than all may have together."""
    gaps = [(HIGHEST - 2 * n, HIGHEST - 2 * n) for n in range(MAX_GAPS, 0, -1)]
    return [Stream(f"{number:016x}", round(T0 * 1000), HIGHEST, gaps) for number in range(MAX_STREAMS)]


def most_revisions(before: int) -> RevisionsMemory:
    """Each in a window of its own, of those before this one."""
    revisions = Revisions(RevisionsMemory(shared_before=before - MAX_REVISIONS, shared=HIGHEST))
    for number in range(before - MAX_REVISIONS, before):
        revisions.next(number, b"series")
    for known in revisions.memory.by_window.values():
        known.update(dict.fromkeys(known, 99_999))
    return revisions.memory


def irregular(count: int) -> list[Position]:
    """Places between which there is little to compress."""
    rng = random.Random(1)
    return [Position(OFFSET + offset, 0) for offset in accumulate(rng.randint(1, 1000) for _ in range(count))]


def largest(size_s: float) -> Published:
    now = floor(T0 / size_s)
    duplicates = irregular(MAX_DUPLICATES)
    return Published(
        place=Position(duplicates[-1].offset + 1, 0),
        size_s=size_s,
        closed=now - 2 / size_s,
        rewind_to=OFFSET,
        newest=T0,
        broker_ms=round(T0 * 1000),
        streams=full_of_gaps(),
        duplicates=pack_positions(duplicates),
        revisions=most_revisions(now),
    )


def test_largest_snapshot_of_the_windows_task_fits_into_a_record() -> None:
    """Of both topics, with the longest numbers; restored, and published anew with still more to remember."""
    small = WindowSettings(size_s=0.001)  # their numbers are long
    memory = {topic: largest(small.size_s) for topic in sources(small)}
    task = WindowTask(0, small)
    task.restore(msgspec.json.encode(memory))
    for topic, event in {"inference": inference(0), "resources": resource(0, {"x": 1.0})}.items():
        place, now_ms = memory[topic].place.offset, round(T0 * 1000)
        log = [packed(event, topic=topic), packed(event, topic=topic, identity=Identity("a", "b", HIGHEST)), b"?", TICK]
        offsets = [OFFSET, place, place + 1, place + 2]  # the window that the first opens keeps all duplicates
        outputs = task.process(topic, [Stored(value, at, now_ms) for value, at in zip(log, offsets, strict=True)])
        assert {output.topic for output in outputs} == {"deadletter", "windows"}
    snapshot = task.snapshot()
    for published in msgspec.json.decode(snapshot, type=dict[str, Published]).values():
        assert len(published.streams) == MAX_STREAMS
        assert sum(len(stream.gaps) for stream in published.streams) == MAX_GAPS_TOGETHER
        assert sum(map(len, published.revisions.by_window.values())) == MAX_REVISIONS
        assert len(unpack_positions(published.duplicates)) == MAX_DUPLICATES
    assert len(snapshot) < LARGE_RECORD_BYTES
