"""What dedupe remembers, and what it may forget."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streammon.wire import Identity
from streammon_processors import dedupe as module
from streammon_processors.dedupe import FORGET_AFTER_MS, MAX_GAPS, Dedupe, Stream, Verdict


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


def test_stream_silent_for_an_hour_of_broker_time_is_forgotten() -> None:
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
