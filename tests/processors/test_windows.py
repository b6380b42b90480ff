"""The windows task against an oracle, in every density and cut, and through every crash."""

from __future__ import annotations

import gc
import json
import random
import sys
from collections.abc import Iterable, Iterator, Sequence
from fractions import Fraction
from math import ceil
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streammon import wire
from streammon.broker import Outgoing
from streammon.config import WindowSettings
from streammon.errors import Reason, Rejected
from streammon.events import EventType
from streammon.histograms import from_buckets
from streammon.results import OTHER, Completeness, Counter, Window
from streammon.sketch import Sketch, bucket_bounds, bucket_index
from streammon.topics import MAX_RECORD_BYTES
from streammon.wire import Density, encode
from streammon_processors import aggregate
from streammon_processors import event_windows as module
from streammon_processors import revisions as revisions_module
from streammon_processors.chunk import Chunk
from streammon_processors.contract import run, run_with_crashes
from streammon_processors.windows import WindowTask
from tests.logs import (
    BROKEN,
    INF,
    NAN,
    T0,
    TYPES,
    RandomLog,
    at,
    decoded,
    identity,
    inference,
    packed,
    resource,
    stored,
    tick_at,
)
from tests.oracle import Entry, Event, Expected, Letter, Oracle, Publication, check, read, same_event

SETTINGS = WindowSettings(size_s=2.0, lateness_s=1.0, max_future_s=60.0, max_late_s=60.0)
TIGHT = SETTINGS.model_copy(update={"max_series": 2})
PARTITION = 3

seeds = st.integers(0, 2**32 - 1)
topics = st.sampled_from(["inference", "resources"])
lengths = st.integers(1, 45)
examples = settings(max_examples=25, deadline=None)
few = settings(max_examples=10, deadline=None)


def task(settings: WindowSettings = SETTINGS) -> WindowTask:
    return WindowTask(PARTITION, settings)


def process(log: Sequence[Entry], topic: str = "inference", settings: WindowSettings = SETTINGS) -> list[Outgoing]:
    return task(settings).process(topic, stored(log))


def windows(outputs: Iterable[Outgoing]) -> list[Window]:
    """The window records among the outputs; whatever is not valid JSON of a `Window` fails here."""
    return decoded([output for output in outputs if output.topic == "windows"], Window)


def letters(outputs: Iterable[Outgoing]) -> list[Outgoing]:
    return [output for output in outputs if output.topic == "deadletter"]


def headers(letter: Outgoing) -> dict[str, str]:
    return {name: value.decode() for name, value in letter.headers}


def key(window: Window) -> tuple[Any, ...]:
    number = round(window.start_unix_s / window.size_s)
    return number, window.part, window.revision, tuple(sorted(window.series.items()))


def total(found: Iterable[Window]) -> Completeness:
    """The counters of all windows, and in ``late`` also nothing else than what supplements count."""
    everything = [window.completeness for window in found]
    names = ("late", "duplicate", "missing", "rejected", "dropped")
    return Completeness(**{name: sum(getattr(each, name) for each in everything) for name in names})


def counted(found: Iterable[Window]) -> int:
    return sum(window.count for window in found if window.part == "main")


def agree(outputs: Sequence[Outgoing], wanted: Sequence[Publication], topic: str, s: WindowSettings) -> None:
    """The outputs are what the oracle says: every number of every window, and every dead letter."""
    expected = {each.key: each for publication in wanted for each in publication.windows}
    found = {key(window): window for window in windows(outputs)}
    assert len(found) == len(windows(outputs)), "two windows of one identity"
    assert found.keys() == expected.keys()
    for name, window in found.items():
        check(window, expected[name], topic, s)
    said = [letter for publication in wanted for letter in publication.letters]
    assert len(letters(outputs)) == len(said)
    for output, letter in zip(letters(outputs), said, strict=True):
        check_letter(output, letter, topic)


def check_letter(output: Outgoing, letter: Letter, topic: str) -> None:
    found = headers(output)
    assert (found["reason"], found["topic"]) == (letter.reason.value, topic)
    assert (found["partition"], found["offset"]) == (str(PARTITION), str(letter.offset))
    assert (output.key, output.partition, found["streammon-schema"]) == (topic.encode(), PARTITION, "1")
    assert found["error"]
    if letter.events is None:
        assert output.value == letter.value
        return
    again = [event for batch in read(output.value or b"") for event in batch.events]
    assert len(again) == len(letter.events)
    assert all(map(same_event, again, letter.events))


# --- against the oracle -----------------------------------------------------------------------------------------


@given(seeds, lengths, topics)
@examples
def test_random_logs_give_what_the_oracle_says(seed: int, length: int, topic: str) -> None:
    log = RandomLog(seed, length, topic).entries
    agree(process(log, topic), Oracle(topic, SETTINGS).feed(log), topic, SETTINGS)


@given(seeds, lengths, topics)
@few
def test_no_reference_cycle_keeps_a_record(seed: int, length: int, topic: str) -> None:
    """Garbage is collected seldom, so what hangs on a cycle costs memory: once a third of all."""
    log = RandomLog(seed, length, topic).entries
    process(log, topic)  # decoders are made only once, and leave some
    assert 0 in (garbage_of(log, topic) for _ in range(3)), "threads of other tests may leave some now and then"


def garbage_of(log: Sequence[Any], topic: str) -> int:
    gc.collect()
    gc.disable()
    try:
        process(log, topic)
        return gc.collect()
    finally:
        gc.enable()


@given(seeds, lengths, topics)
@examples
def test_capped_series_and_forced_publications_give_what_the_oracle_says(seed: int, length: int, topic: str) -> None:
    log = RandomLog(seed, length, topic).entries
    with small(PENDING_LIMIT=120):
        outputs = process(log, topic, TIGHT)
    agree(outputs, Oracle(topic, TIGHT, pending_limit=120).feed(log), topic, TIGHT)


@pytest.mark.parametrize(
    "change",
    [
        {"size_s": 0.5, "lateness_s": 10.0},
        {"lateness_s": 0.0},
        {"max_late_s": 0.0},
        {"size_s": 7.0, "lateness_s": 0.3},
        {"max_future_s": 0.0},
        {"inference_by": ("endpoint",)},
        {"inference_distributions": ("duration_s",)},
        {"inference_distributions": ()},
    ],
    ids=str,
)
@pytest.mark.parametrize("seed", range(12))
def test_other_settings_give_what_the_oracle_says(change: dict[str, Any], seed: int) -> None:
    other = SETTINGS.model_copy(update=change)
    log = RandomLog(seed, 60).entries
    agree(process(log, settings=other), Oracle("inference", other).feed(log), "inference", other)


@given(seeds, lengths, topics)
@examples
def test_everything_sent_is_accounted_for_once(seed: int, length: int, topic: str) -> None:
    log = RandomLog(seed, length, topic)
    end_ms = max((entry.timestamp for entry in log.entries), default=0)
    end = [Entry(end_ms + 1000 * after, tick_at(0).value) for after in range(1, 8)]
    end += [Entry(end_ms + 100_000, tick_at(0).value)]  # the farthest future that is accepted passes, too
    found = windows(process([*log.entries, *end], topic))
    sums = total(found)
    assert log.sent == counted(found) + sums.late + sums.duplicate + sums.rejected + sums.dropped
    assert sums.late == sum(window.count for window in found if window.part == "late")


class small:  # noqa: N801 - reads as a phrase: with small(LIMIT=3)
    """Bounds of the module made small for a while; hypothesis and function fixtures do not mix."""

    def __init__(self, **bounds: int) -> None:
        self._bounds = bounds
        self._patch = pytest.MonkeyPatch()

    def __enter__(self) -> None:
        for name, value in self._bounds.items():
            self._patch.setattr(module if hasattr(module, name) else revisions_module, name, value)

    def __exit__(self, *_: object) -> None:
        self._patch.undo()


# --- densities and cuts -----------------------------------------------------------------------------------------


def batches(seed: int) -> Iterator[tuple[float, list[Event], int]]:
    """Random well-formed batches: when the broker gets them, their events, their number."""
    log = RandomLog(seed, 40, density=Density.PACKED).entries
    known = [entry for entry in log if entry.refused is None and not (entry.value or b"").endswith(b'"tick"}')]
    for seq, entry in enumerate(known):
        events = [event for batch in read(entry.value or b"") for event in batch.events]
        yield entry.timestamp / 1000 - T0, events, seq


@pytest.mark.parametrize("seed", range(15))
def test_the_four_densities_give_the_same_windows_and_dead_letters(seed: int) -> None:
    found = []
    for density in Density:
        log = [
            at(after, value)
            for after, events, _ in batches(seed)
            for value in encode(EventType.INFERENCE, events, density)
        ]
        outputs = process(log)
        refused = [
            repr((headers(letter)["reason"], sorted(event.items())))
            for letter in letters(outputs)
            for batch in read(letter.value or b"")
            for event in batch.events
        ]
        found.append(([o for o in outputs if o.topic == "windows"], floats(refused)))
    assert found[0] == found[1] == found[2] == found[3]
    assert found[0][0]


def floats(texts: list[str]) -> list[str]:
    """Packed integers come back as floats, which JSON does not tell apart either."""
    return [text.replace(".0)", ")").replace(".0,", ",") for text in texts]


@pytest.mark.parametrize("seed", range(10))
def test_batches_with_identities_are_the_same_in_three_densities(seed: int) -> None:
    found = []
    for density in (Density.ARRAY, Density.COLUMNS, Density.PACKED):
        log = [
            at(after, packed(*events, density=density, identity=identity(seq - seq % 2)))
            for after, events, seq in batches(seed)
            if events
        ]
        log.append(Entry(log[-1].timestamp + 1, tick_at(0).value))
        found.append([output for output in process(log) if output.topic == "windows"])
    assert found[0] == found[1] == found[2]
    assert total(windows(found[0])).duplicate
    assert total(windows(found[0])).missing


@given(seeds, lengths, topics, st.integers(1, 9))
@examples
def test_any_cut_of_the_log_gives_the_same_bytes(seed: int, length: int, topic: str, longest: int) -> None:
    logs = {topic: stored(RandomLog(seed, length, topic).entries)}
    whole = run(task(TIGHT), logs)
    assert run(task(TIGHT), logs, random.Random(seed), longest) == whole
    with small(CHUNK_RECORDS=3, CHUNK_ROWS=4):
        assert run(task(TIGHT), logs) == whole


@given(seeds)
@few
def test_the_two_topics_do_not_influence_each_other_however_they_interleave(seed: int) -> None:
    logs = {topic: stored(RandomLog(seed + i, 40, topic).entries) for i, topic in enumerate(TYPES)}
    apart = {topic: task().process(topic, records) for topic, records in logs.items()}
    assert run(task(), logs, random.Random(seed)) == apart


# --- recovery ---------------------------------------------------------------------------------------------------


@given(seeds, lengths, st.integers(1, 20))
@examples
def test_crashes_anywhere_change_no_byte_of_what_is_committed(seed: int, length: int, longest: int) -> None:
    logs = {topic: stored(RandomLog(seed + i, length, topic).entries) for i, topic in enumerate(TYPES)}
    uninterrupted = run(task(TIGHT), logs)
    assert run_with_crashes(lambda: task(TIGHT), logs, random.Random(seed), 20, longest) == uninterrupted


@given(seeds, lengths)
@examples
def test_crashes_with_every_bound_reached_change_no_byte(seed: int, length: int) -> None:
    logs = {"inference": stored(RandomLog(seed, length).entries)}
    with small(PENDING_LIMIT=60, MAX_REVISIONS=3, CHUNK_RECORDS=4, CHUNK_ROWS=5):
        uninterrupted = run(task(TIGHT), logs)
        assert run_with_crashes(lambda: task(TIGHT), logs, random.Random(seed), 30, 5) == uninterrupted


@pytest.mark.parametrize("seed", range(6))
def test_a_crash_after_each_single_record_changes_no_byte(seed: int) -> None:
    records = stored(RandomLog(seed, 40).entries)
    uninterrupted = task().process("inference", records)
    committed: list[Outgoing] = []
    snapshot, next_offset = None, 0
    while True:
        restored = task()
        if snapshot is not None:
            restored.restore(snapshot)
        for record in records[next_offset:]:
            outputs = restored.process("inference", [record])
            if outputs:
                committed += outputs
                snapshot, next_offset = restored.snapshot(), restored.offsets()["inference"]
                break
        else:
            break
    assert committed == uninterrupted


def test_publication_within_a_packed_record_is_taken_up_in_the_middle_of_it() -> None:
    steady = [inference(0.1 * i, 0.01 * i, input_tokens=i) for i in range(300)]
    late = [inference(0.1 * i - 5, trace_id=f"t{i}") for i in range(300)]
    long = packed(*(event for pair in zip(steady, late, strict=True) for event in pair), identity=identity(0))
    log = [at(30, long), at(30, long), at(31, packed(*steady, *late, identity=identity(1))), tick_at(40)]
    whole = process(log)
    assert len({window.start_unix_s for window in windows(whole)}) > 14
    subject = task()
    committed = subject.process("inference", stored(log)[:1])
    snapshot, offsets = subject.snapshot(), subject.offsets()
    assert offsets == {"inference": 0}
    again = task()
    again.restore(snapshot)
    assert committed + again.process("inference", stored(log)) == whole


def test_snapshot_says_nothing_about_what_came_after_the_last_output() -> None:
    log = RandomLog(5, 60).entries
    subject, snapshot = task(), task().snapshot()
    for record in stored(log):
        if subject.process("inference", [record]):
            snapshot = subject.snapshot()
        assert subject.snapshot() == snapshot


def test_snapshot_of_a_restored_task_is_the_snapshot() -> None:
    subject = task()
    subject.process("inference", stored(RandomLog(7, 80).entries))
    restored = task()
    restored.restore(subject.snapshot())
    assert restored.snapshot() == subject.snapshot()
    assert restored.offsets() == subject.offsets()
    restored.process("inference", stored([at(0, packed(inference(0), identity=identity(0)))] * 3))
    assert restored.snapshot() == subject.snapshot(), "reading again what is done changes nothing"


def test_snapshot_of_a_restored_task_does_not_change_with_duplicates_after_the_last_output() -> None:
    log = [at(0, batch(0)), at(4, batch(1, inference(4))), at(4, batch(1, inference(4)))]
    subject = task()
    assert subject.process("inference", stored(log)[:2])
    snapshot = subject.snapshot()
    restored = task()
    restored.restore(snapshot)
    assert restored.process("inference", stored(log)[1:]) == []
    assert restored.snapshot() == snapshot


def test_nothing_published_means_no_offsets_and_a_restart_from_the_first_record() -> None:
    subject = task()
    assert subject.process("inference", stored([at(0, packed(inference(0)))])) == []
    assert subject.offsets() == {}
    restored = task()
    restored.restore(subject.snapshot())
    assert restored.offsets() == {}
    log = [at(0, packed(inference(0))), at(4, packed(inference(4)))]
    assert restored.process("inference", stored(log)) == process(log)


# --- event time -------------------------------------------------------------------------------------------------


def numbers(found: Iterable[Window]) -> list[tuple[str, int, float, int]]:
    """Part, revision, start after `T0` and count of each window."""
    return [(w.part, w.revision, w.start_unix_s - T0, w.count) for w in found]


def test_window_closes_when_the_watermark_reaches_its_end_and_not_before() -> None:
    subject = task()
    first, almost, reached = [at(a, packed(inference(t))) for a, t in ((0, 0.0), (2.999, 2.999), (3, 3.0))]
    assert subject.process("inference", stored([first, almost])) == []
    (window,) = windows(subject.process("inference", [stored([first, almost, reached])[2]]))
    assert numbers([window]) == [("main", 0, 0.0, 1)]
    assert (window.end_unix_s - T0, window.size_s, window.partition) == (2.0, 2.0, PARTITION)
    assert (window.throughput_per_s, window.completeness.watermark_unix_s) == (0.5, T0 + 2.0)


def test_event_at_the_border_belongs_to_the_later_window() -> None:
    log = [at(0, packed(inference(1.999), inference(2.0))), tick_at(10)]
    assert numbers(windows(process(log))) == [("main", 0, 0.0, 1), ("main", 0, 2.0, 1)]


def test_late_event_is_counted_in_a_supplement_not_dropped_and_the_closed_window_is_not_repeated() -> None:
    log = [at(5, packed(inference(0), inference(5), inference(1, 7.0))), tick_at(9)]
    found = windows(process(log))
    assert numbers(found) == [("main", 0, 0.0, 1), ("main", 0, 4.0, 1), ("late", 1, 0.0, 1)]
    assert (found[2].completeness.late, found[0].completeness.late) == (1, 0)
    assert found[2].duration_s is not None
    assert found[2].duration_s.max == 7.0


def test_supplements_of_a_series_and_window_are_numbered_from_one_also_after_a_restore() -> None:
    log = [at(5, packed(inference(0), inference(5)))]
    for after in range(6, 12):
        log += [at(after, packed(inference(1.0))), tick_at(after + 0.5)]
    late = [w.revision for w in windows(process(log)) if w.part == "late"]
    assert late == [1, 2, 3, 4, 5, 6]
    subject, outputs = task(), []
    for record in stored(log):
        outputs += subject.process("inference", [record])
        if outputs:
            snapshot, offsets = subject.snapshot(), subject.offsets()
            subject = task()
            subject.restore(snapshot)
            subject.process("inference", stored(log)[offsets["inference"] : record.offset + 1])
    assert [w.revision for w in windows(outputs) if w.part == "late"] == late


def test_supplement_that_is_published_after_a_long_jump_in_time_is_still_numbered_on() -> None:
    """Forgetting the revisions of old windows before their last supplement is out would number it 1 again."""
    late = at(6, packed(inference(1.0)))
    log = [at(5, packed(inference(0), inference(5))), late, tick_at(7), late, at(900, packed(inference(900)))]
    assert [w.revision for w in windows(process(log)) if w.part == "late"] == [1, 2]


def test_revisions_are_kept_as_long_as_supplements_are_possible_with_a_lateness_of_many_windows() -> None:
    slow = SETTINGS.model_copy(update={"lateness_s": 100.0, "max_late_s": 10.0})
    log = [at(0, packed(inference(-400), inference(0)))]
    for after in (1.0, 2.0):
        log += [at(after, packed(inference(-105.0))), tick_at(after + 0.1)]
    assert [w.revision for w in windows(process(log, settings=slow)) if w.part == "late"] == [1, 2]


def test_counters_before_and_after_the_first_event_never_share_a_window_record() -> None:
    broken = b"{"
    log = []
    for after in range(0, 40, 2):
        log += [at(after, broken), tick_at(after + 1)]
    log += [at(40, packed(inference(10)))]
    for after in range(41, 60, 2):
        log += [at(after, broken), tick_at(after + 1)]
    found = windows(process(log))
    assert total(found).rejected == 30
    assert len({key(window) for window in found}) == len(found)


@given(seeds, lengths)
@few
def test_revisions_stay_unique_and_rising_beyond_their_bound(seed: int, length: int) -> None:
    logs = {"inference": stored(RandomLog(seed, length).entries)}
    with small(MAX_REVISIONS=2, PENDING_LIMIT=2):
        outputs = run_with_crashes(task, logs, random.Random(seed), 10)["inference"]
        subject = task()
        subject.process("inference", logs["inference"])
    found = windows(outputs)
    assert len({key(window) for window in found}) == len(found)
    last: dict[Any, int] = {}
    for window in found:
        series = window.start_unix_s, str(window.series)
        assert window.revision > last.get(series, 0) or window.part == "main"
        last[series] = window.revision
    assert len(subject.snapshot()) < 1500


def test_revisions_of_windows_that_nothing_can_be_added_to_are_forgotten() -> None:
    log = [at(5, packed(inference(0), inference(5), inference(0.1)))]
    log += [tick_at(after) for after in range(6, 200, 10)]
    subject = task()
    subject.process("inference", stored(log))
    revision = b'{"850000000":{"'
    assert revision in subject.snapshot()
    more = [*log, at(200, packed(inference(200))), tick_at(204)]
    subject.process("inference", stored(more)[len(log) :])
    assert revision not in subject.snapshot()


def test_revisions_are_bounded_also_when_each_is_in_a_window_of_its_own() -> None:
    revisions = revisions_module.Revisions()
    with small(MAX_REVISIONS=10):
        for number in range(100):
            assert revisions.next(number, b"s") == 1
        assert sum(map(len, revisions.memory.by_window.values())) == 10
        assert [revisions.next(5, b"s"), revisions.next(5, b"s"), revisions.next(99, b"s")] == [2, 3, 2]


def test_windows_forgotten_one_after_the_other_never_number_a_supplement_twice() -> None:
    revisions = revisions_module.Revisions()
    with small(MAX_REVISIONS=1):
        assert [revisions.next(0, b"s") for _ in range(5)] == [1, 2, 3, 4, 5]
        assert [revisions.next(number, b"s") for number in (1, 2)] == [1, 1]  # forgets window 0, then 1
        assert [revisions.next(number, b"s") for number in (0, 1, 0)] == [6, 7, 8]


def test_event_older_than_max_late_is_a_dead_letter_too_late() -> None:
    log = [at(100, packed(inference(100), inference(39), inference(38.9))), tick_at(110)]
    outputs = process(log)
    assert numbers(windows(outputs))[1:] == [("late", 1, 38.0, 1)]
    (letter,) = letters(outputs)
    assert headers(letter)["reason"] == "too_late"
    assert total(windows(outputs)).rejected == 1


def test_future_event_is_a_dead_letter_and_never_moves_the_watermark() -> None:
    log = [at(0, packed(inference(60), inference(60.001, trace_id="x"), inference(0.5)))]
    subject = task()
    outputs = subject.process("inference", stored(log))
    assert outputs == []
    assert subject.process("inference", [stored([*log, tick_at(0.25)])[1]]) != []
    alone = [at(0, packed(inference(1000))), at(0.1, packed(inference(0.1))), tick_at(4)]
    outputs = process(alone)
    assert numbers(windows(outputs))[1:] == [("main", 0, 0.0, 1)]
    assert [headers(letter)["reason"] for letter in letters(outputs)] == ["future"]


def test_idle_partition_closes_its_windows_by_ticks_and_then_waits_for_nothing() -> None:
    subject = task()
    assert list(subject.waiting) == []
    log = [at(0.2, packed(inference(0.1))), *(tick_at(0.25 * i) for i in range(1, 13))]
    assert subject.process("inference", stored(log)) == []
    assert list(subject.waiting) == ["inference"]
    (window,) = windows(subject.process("inference", [stored([*log, tick_at(3.11)])[13]]))
    assert (window.count, list(subject.waiting)) == (1, [])
    assert window.completeness.watermark_unix_s == pytest.approx(T0 + 0.1 + 2.91 - 1)


def test_tick_moves_the_watermark_by_broker_time_so_that_old_data_is_not_cut_off() -> None:
    hour = 3600
    log = [at(10 * hour, packed(inference(0))), tick_at(10 * hour + 0.25)]
    log += [at(10 * hour + 0.5, packed(inference(0.5), inference(1)))]
    outputs = process([*log, tick_at(10 * hour + 4)])
    assert numbers(windows(outputs)) == [("main", 0, 0.0, 3)]


def test_ticks_beside_nothing_open_publish_nothing_and_go_on_moving_the_watermark() -> None:
    ticks = [tick_at(5 + i) for i in range(10)]
    log = [at(0, packed(inference(0))), *ticks, at(15, packed(inference(1))), tick_at(15.5)]
    assert process(ticks) == []
    assert numbers(windows(process(log))) == [("main", 0, 0.0, 1), ("late", 1, 0.0, 1)]


def test_tick_that_is_older_than_the_record_before_it_moves_nothing_back() -> None:
    log = [at(10, packed(inference(10))), tick_at(0), tick_at(2.9)]
    assert process(log) == []
    assert numbers(windows(process([*log, tick_at(3.1)]))) == [("main", 0, 10.0, 1)]


# --- duplicates, gaps, drops --------------------------------------------------------------------------------------


def batch(seq: int, *events: Event, **how: Any) -> bytes:
    return packed(*(events or (inference(0),)), identity=identity(seq), **how)


def test_batch_sent_again_is_a_duplicate_in_any_density_and_its_drops_are_counted_once() -> None:
    log = [
        at(0, batch(0, inference(0), inference(0), dropped=5)),
        at(1, batch(0, inference(0), inference(0), density=Density.ARRAY)),
        at(1, batch(0, inference(0), inference(0), dropped=5)),
        at(2, batch(1, density=Density.OBJECT)),
        at(2, batch(1, density=Density.OBJECT)),
        tick_at(9),
    ]
    found = windows(process(log))
    assert (counted(found), total(found).duplicate, total(found).dropped) == (3, 5, 5)


def test_duplicate_moves_no_watermark_and_its_faults_are_not_refused_again() -> None:
    wrong = batch(0, inference(0), inference(0, NAN), inference(9))
    outputs = process([at(9, wrong), at(9, wrong), tick_at(20)])
    assert len(letters(outputs)) == 1
    assert (total(windows(outputs)).rejected, total(windows(outputs)).duplicate) == (1, 3)


def test_missing_batches_are_counted_and_counted_back_when_they_turn_up() -> None:
    log = [at(0, batch(0)), at(1, batch(3)), tick_at(5), at(6, batch(1)), at(6, batch(1)), tick_at(7)]
    main, late = windows(process(log))
    assert (main.completeness.missing, late.completeness.missing, late.completeness.duplicate) == (2, -1, 1)


def test_sparse_stream_misses_nothing_but_its_duplicates_count() -> None:
    log = [at(0, batch(5, sparse=True)), at(0, batch(9, sparse=True)), at(0, batch(9, sparse=True))]
    (window,) = windows(process([*log, tick_at(9)]))
    assert (window.completeness.missing, window.completeness.duplicate) == (0, 1)


@pytest.mark.parametrize("density", [Density.COLUMNS, Density.PACKED])
def test_batch_without_events_still_says_what_was_dropped_and_takes_its_number(density: Density) -> None:
    empty = packed(density=density, identity=identity(0), dropped=7)
    log = [at(0, empty), at(0, empty), at(0, packed(density=density, dropped=2)), at(0, batch(1)), tick_at(9)]
    outputs = process(log)
    nothing, main = windows(outputs)
    assert letters(outputs) == []
    assert (nothing.series, nothing.count, nothing.completeness.dropped) == ({}, 0, 9)
    assert (main.completeness.missing, main.completeness.duplicate) == (0, 0)


def test_empty_array_is_nothing() -> None:
    assert process([at(0, b"[]"), at(0, b" [ ] "), tick_at(9)]) == []


# --- dead letters -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("value", "refused"), BROKEN)
def test_broken_record_is_kept_whole_with_its_reason(value: bytes | None, refused: Any) -> None:
    log = [at(0, packed(inference(0))), at(0, value or b"", refused)._replace(value=value), tick_at(9)]
    outputs = process(log)
    (letter,) = letters(outputs)
    check_letter(letter, Letter(refused.reason, 1, None, value), "inference")
    assert (counted(windows(outputs)), total(windows(outputs)).rejected) == (1, refused.events)


FAULTS: list[tuple[Event, Reason]] = [
    ({"duration_s": NAN}, Reason.NON_FINITE),
    ({"duration_s": INF}, Reason.NON_FINITE),
    ({"duration_s": -0.1}, Reason.NEGATIVE),
    ({"ttft_s": NAN}, Reason.NON_FINITE),
    ({"input_tokens": -1}, Reason.NEGATIVE),
    ({"confidence": -INF}, Reason.NON_FINITE),
    ({"metrics": {"x": NAN}}, Reason.NON_FINITE),
    ({"features": {"x": INF}}, Reason.NON_FINITE),
    ({"time_unix_s": NAN}, Reason.NON_FINITE),
    ({"time_unix_s": T0 * 1000}, Reason.BAD_TIME),
    ({"time_unix_s": -1.0}, Reason.BAD_TIME),
    ({"time_unix_s": T0 * 1000, "duration_s": NAN}, Reason.NON_FINITE),
    ({"time_unix_s": T0 + 61}, Reason.FUTURE),
    ({"time_unix_s": T0 - 1000}, Reason.TOO_LATE),
]


def test_metrics_beyond_the_cap_share_a_gauge_and_any_cut_gives_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who gets the last name is decided by the order in this window, not in the chunk; and so is what they share."""
    monkeypatch.setattr(aggregate, "MAX_GAUGES", 3)
    several = [
        resource(0, {"a": 1.0, "b": 1.0}),
        resource(2, {"y": 1.0}),
        resource(0, {"x": 1.0}),
        resource(0, {"y": 2.0}),
    ]
    many = [resource(4 + 0.01 * n, {name: 0.1 * n + ord(name) / 7 for name in "gfedcba"}) for n in range(9)]
    log = [at(5, packed(event, topic="resources")) for event in (*several, *many)] + [tick_at(9)]
    whole = process(log, "resources")
    for longest in (1, 3, 5):
        subject, entries = task(), stored(log)
        parts = [
            subject.process("resources", entries[first : first + longest]) for first in range(0, len(log), longest)
        ]
        assert [output for part in parts for output in part] == whole
    first, second, third = windows(whole)
    assert first.gauges is not None
    assert third.gauges is not None
    assert set(first.gauges) == {"a", "b", "x", OTHER}
    assert (first.gauges[OTHER].last, first.gauges[OTHER].count) == (2.0, 1)
    assert set(third.gauges) == {"e", "f", "g", OTHER}
    others = [0.1 * n + ord(name) / 7 for n in range(9) for name in "dcba"]
    assert third.gauges[OTHER].count == len(others)
    assert third.gauges[OTHER].mean * len(others) == pytest.approx(sum(others))
    assert third.gauges[OTHER].last == others[-1]
    assert second.gauges is not None


@pytest.mark.parametrize("density", Density)
@pytest.mark.parametrize(("wrong", "reason"), FAULTS, ids=str)
def test_wrong_event_alone_is_refused_and_its_dead_letter_has_the_same_fault_again(
    density: Density, wrong: Event, reason: Reason
) -> None:
    events = [inference(0), inference(0, ttft_s=0.5, features={"x": 1.0}), {**inference(0.5), **wrong}]
    log = [at(0, value) for value in encode(EventType.INFERENCE, events, density)]
    outputs = process([*log, tick_at(9)])
    (window,) = [window for window in windows(outputs) if window.part == "main"]
    assert (window.count, total(windows(outputs)).rejected) == (2, 1)
    (letter,) = letters(outputs)
    check_letter(letter, Letter(reason, len(log) - 1, [events[2]], None), "inference")
    (again,) = letters(process([at(0, packed(inference(0))), at(0, letter.value or b""), tick_at(9)]))
    check_letter(again, Letter(reason, 1, [events[2]], None), "inference")


def test_constant_that_is_not_finite_refuses_each_event() -> None:
    value = packed(inference(0), inference(0), density=Density.COLUMNS)
    content = json.loads(value)
    del content["columns"]["duration_s"]
    content["constant"]["duration_s"] = NAN
    outputs = process([at(0, json.dumps(content).encode()), tick_at(9)])
    assert [headers(letter)["reason"] for letter in letters(outputs)] == ["non_finite"]
    assert total(windows(outputs)).rejected == 2


def test_refused_events_of_a_record_share_a_letter_by_reason() -> None:
    events = [inference(0, NAN), inference(0, INF), inference(0, -1.0), inference(0, NAN)]
    outputs = process([at(0, packed(*events)), tick_at(1)])
    found = [(headers(letter)["reason"], len(read(letter.value or b"")[0].events)) for letter in letters(outputs)]
    assert found == [("non_finite", 2), ("negative", 1), ("non_finite", 1)]
    assert "2 events" in headers(letters(outputs)[0])["error"]


def test_letters_of_a_record_that_would_swell_keep_the_record_instead() -> None:
    """A constant is once in a packed record, but in every event of an array."""
    events = [inference(0, NAN, endpoint="x" * 200_000) for _ in range(300)]
    value = packed(*events)
    outputs = process([at(0, value), tick_at(1)])
    assert [letter.value for letter in letters(outputs)] == [value]
    assert total(windows(outputs)).rejected == 300
    assert all(len(letter.value or b"") <= MAX_RECORD_BYTES for letter in letters(outputs))


def test_many_faults_in_a_large_record_are_not_published_one_by_one() -> None:
    events = [inference(0, NAN, trace_id=f"t{i:050}") for i in range(2000)]
    (letter,) = letters(process([at(0, packed(*events)), tick_at(1)]))
    assert len(read(letter.value or b"")[0].events) == 2000


def test_too_many_refused_events_are_published_without_waiting_for_a_close() -> None:
    with small(PENDING_LIMIT=40):
        subject = task()
        log = [at(0, packed(inference(0)))] + [at(0, packed(inference(0, NAN)))] * 9
        assert subject.process("inference", stored(log)) == []
        outputs = subject.process("inference", [stored([*log, log[-1]])[10]])
    assert len(letters(outputs)) == 10
    assert numbers(windows(outputs)) == [("late", 1, -4.0, 0)]


# --- what a window says -------------------------------------------------------------------------------------------


def test_series_beyond_the_cap_are_summed_as_other_and_totals_are_right() -> None:
    events = [inference(0, endpoint=f"/{i}") for i in (3, 1, 2, 1, 3, 4)]
    found = windows(process([at(0, packed(*events)), tick_at(9)], settings=TIGHT))
    counts = {window.series["endpoint"]: window.count for window in found}
    assert counts == {"/3": 2, "/1": 2, OTHER: 2}
    overflow = next(window for window in found if window.series["endpoint"] == OTHER)
    assert set(overflow.series.values()) == {OTHER}
    assert overflow.series.keys() == set(TIGHT.inference_by)


def test_resources_beyond_the_cap_are_one_series_too() -> None:
    events = [resource(0, {"x": float(i)}, id=str(i), labels={"a": str(i)}) for i in range(4)]
    found = windows(process([at(0, packed(*events, topic="resources")), tick_at(9)], "resources", TIGHT))
    overflow = found[-1] if found[-1].series["host"] == OTHER else found[0]
    assert overflow.series == {"host": OTHER, "entity": OTHER, "id": OTHER}
    assert overflow.gauges is not None
    assert (overflow.count, overflow.gauges["x"].last, overflow.gauges["x"].mean) == (2, 3.0, 2.5)


def test_gauges_have_extremes_mean_and_the_value_of_the_latest_event_time() -> None:
    samples = [(0.5, 3.0), (1.5, 1.0), (1.0, 8.0), (1.5, 2.0), (0.1, 5.0)]
    log = [at(0, packed(*(resource(t, {"x": v}) for t, v in samples), topic="resources")), tick_at(9)]
    (window,) = windows(process(log, "resources"))
    assert window.gauges is not None
    gauge = window.gauges["x"]
    assert (gauge.min, gauge.max, gauge.mean, gauge.last) == (1.0, 8.0, 3.8, 2.0)
    assert (window.error_count, window.error_rate, window.duration_s) == (None, None, None)


def histogram(values: Sequence[float], **known: float) -> Event:
    return {"sum": sum(values), "sketch": Sketch.of(np.array(values)).to_wire(), **known}


@pytest.mark.parametrize("density", Density)
def test_counters_and_histograms_add_up_and_late_ones_are_in_a_supplement(density: Density) -> None:
    events = [
        resource(0.1, {}, counters={"requests": 3.0, "errors": 0.0}, histograms={"latency_s": histogram([1, 2])}),
        resource(1.9, {"x": 1.0}, counters={"requests": 4.0}),
        resource(1.0, {}, histograms={"latency_s": histogram([0.5, 8.0], min=0.5, max=8.0), "size": histogram([])}),
        resource(4.0, {}),
        resource(0.5, {}, counters={"requests": 5.0}, histograms={"latency_s": histogram([16], max=16)}),
    ]
    log = [*(at(4, value) for value in encode(EventType.RESOURCE, events, density)), tick_at(9)]
    main, late = (window for window in windows(process(log, "resources")) if window.start_unix_s == T0)
    assert main.counters == {"errors": Counter(sum=0.0, per_s=0.0), "requests": Counter(sum=7.0, per_s=3.5)}
    assert late.counters == {"requests": Counter(sum=5.0, per_s=2.5)}
    assert main.distributions is not None
    assert late.distributions is not None
    assert main.distributions.keys() == {"latency_s"}
    latency, more = main.distributions["latency_s"], late.distributions["latency_s"]
    assert latency.sketch == Sketch.of(np.array([1, 2, 0.5, 8]))
    assert (latency.count, latency.sum, latency.mean, latency.min, latency.max) == (4, 11.5, 2.875, 0.5, 8.0)
    assert (more.count, more.sum, more.max) == (1, 16.0, 16.0)
    assert more.p99 == pytest.approx(16.0, rel=0.0055)
    assert more.min == bucket_bounds(bucket_index(np.array([16.0])))[0], "the lower bound of its bucket"


def test_extremes_that_nobody_said_are_those_of_the_buckets_and_of_the_mean() -> None:
    above = {"sum": 500.0, "sketch": from_buckets([1.0], [0, 5]).to_wire()}
    contrary = {"sum": 8.0, "sketch": from_buckets([1.0, 4.0], [0, 2, 0]).to_wire(), "min": 9.0, "max": 2.0}
    events = [resource(0, {}, histograms={"above": above, "contrary": contrary})]
    (window,) = windows(process([at(0, packed(*events, topic="resources")), tick_at(9)], "resources"))
    assert window.distributions is not None
    found = window.distributions["above"]
    assert (found.mean, found.max) == (100.0, 100.0), "the last bucket has no bound, but the sum is known"
    assert 0.98 < found.min <= 1.0
    not_believed = window.distributions["contrary"]
    assert (not_believed.mean, not_believed.max) == (4.0, 4.0)
    assert 1.7 < not_believed.min <= 1.75


@pytest.mark.parametrize("density", Density)
def test_absurd_counters_and_histograms_stop_nobody(density: Density) -> None:
    most = {"scale": 6, "zero_count": 2**53 - 1, "offset": 0, "counts": []}
    wide = Sketch.of(np.array([5e-324, 1.0, 1.7e308, -1.7e308])).to_wire()
    events = [
        resource(
            0,
            {},
            counters={"n": 1e308},
            histograms={"most": {"sum": 1e308, "sketch": most}, "wide": {"sum": -1e308, "sketch": wide}},
        )
    ] * 3
    outputs = process([*(at(0, v) for v in encode(EventType.RESOURCE, events, density)), tick_at(9)], "resources")
    (window,) = windows(outputs)
    assert window.counters == {"n": Counter(sum=sys.float_info.max, per_s=sys.float_info.max / 2)}
    assert window.distributions is not None
    assert window.distributions["most"].count == 2**53 - 1, "more cannot be counted: those are left out"
    found = window.distributions["wide"]
    assert (found.count, found.sum, found.max) == (12, -sys.float_info.max, sys.float_info.max)


def test_names_of_counters_and_histograms_are_bounded_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aggregate, "MAX_GAUGES", 2)
    events = [
        resource(0, {name: 1.0}, counters={name: float(n)}, histograms={name: histogram([2.0**n])})
        for n, name in enumerate("dcba")
    ]
    (window,) = windows(process([at(0, packed(*events, topic="resources")), tick_at(9)], "resources"))
    for named in (window.gauges, window.counters, window.distributions):
        assert named is not None
        assert [*named] == [OTHER, "c", "d"]
    assert window.counters is not None
    assert window.distributions is not None
    assert (window.counters[OTHER].sum, window.distributions[OTHER].sum) == (5.0, 12.0)


def test_window_of_many_histograms_gives_them_up_before_it_outgrows_a_record() -> None:
    wide = histogram(np.geomspace(1e-9, 1e9, 4000).tolist())
    events = [resource(0, {"x": 1.0}, counters={"n": 1.0}, histograms={f"{n}": wide}) for n in range(300)]
    log = [at(0, packed(*some, topic="resources")) for some in (events[:100], events[100:200], events[200:])]
    outputs = process([*log, tick_at(9)], "resources")
    (window,) = windows(outputs)
    assert all(len(output.value or b"") <= MAX_RECORD_BYTES for output in outputs)
    assert window.distributions is None
    assert window.counters == {"n": Counter(sum=300.0, per_s=150.0)}
    assert window.gauges is not None


@pytest.mark.parametrize("density", Density)
def test_labels_are_merged_into_the_series_which_is_one_for_all_that_are_published_alike(
    density: Density,
) -> None:
    labels = [None, {}, {"mount": "/"}, {"host": "other"}, {"mount": "/", "id": "9"}, {"z": "1", "a": "2"}]
    events = [resource(0, {"x": 1.0}, **({} if each is None else {"labels": each})) for each in labels]
    values = encode(EventType.RESOURCE, events, density)
    found = windows(process([*(at(0, value) for value in values), tick_at(9)], "resources"))
    own = {"host": "h1", "entity": "cpu", "id": "0"}
    assert sorted((window.count, str(window.series)) for window in found) == sorted(
        [(3, str(own)), (2, str(own | {"mount": "/"})), (1, str(own | {"a": "2", "z": "1"}))]
    )


def test_record_key_of_a_window_is_its_series_and_it_stays_in_its_partition() -> None:
    (output,) = process([at(0, packed(inference(0, endpoint="/a"))), tick_at(9)])
    assert output.key == b'{"endpoint":"/a","model":"ranker","service":"shop"}'
    assert (output.partition, dict(output.headers)) == (PARTITION, {"streammon-schema": b"1"})


def test_exemplars_are_the_three_slowest_that_can_be_found_again() -> None:
    events = [
        inference(0, duration, **({} if name is None else {"trace_id": name}))
        for duration, name in ((1, "a"), (9, None), (5, "b"), (5, "c"), (3, "d"), (2, "e"))
    ]
    events += [inference(0, 4.0, event_id="f")]
    (window,) = windows(process([at(0, packed(*events)), tick_at(9)]))
    found = [(e.duration_s, e.trace_id, e.event_id) for e in window.exemplars or ()]
    assert found == [(5, "b", None), (5, "c", None), (4, None, "f")]


def test_labels_too_long_for_a_key_are_summed_as_other() -> None:
    events = [inference(0, endpoint="x" * 5000), inference(0, endpoint="y" * 5000), inference(0)]
    outputs = process([at(0, packed(*events)), tick_at(9)])
    assert sorted(window.count for window in windows(outputs)) == [1, 2]
    assert max(len(output.key or b"") for output in outputs) < 200


@pytest.mark.parametrize(
    "excess",
    [
        {"metrics": {f"m{i:05}": 1.0 for i in range(20_000)}},
        {"trace_id": "x" * 900_000},
        {"cost_amount": 1.0, "cost_currency": "x" * 900_000},
    ],
    ids=lambda excess: next(iter(excess)),
)
def test_window_never_outgrows_a_record(excess: Event) -> None:
    """A record that the broker refuses would stop the processor, now and at every restart."""
    log = [at(0, packed(inference(0, 2.0, **{**excess, "event_id": "e" * n}))) for n in (100_000, 90_000)]
    outputs = process([*log, tick_at(9)])
    assert [window.count for window in windows(outputs)] == [2]
    assert all(len(output.value or b"") <= MAX_RECORD_BYTES for output in outputs)


def test_what_senders_claim_to_have_dropped_is_added_up_to_a_bound() -> None:
    most = 2**53
    batches = [packed(inference(0), identity=identity(0, boot=boot), dropped=most) for boot in ("a", "b", "c")]
    log = [*(at(0, batch) for batch in batches), tick_at(9)]
    found = windows(process(log))
    assert [(window.count, window.completeness.dropped) for window in found] == [(0, most), (3, most)]


def test_batches_that_change_nothing_are_not_remembered_without_bound() -> None:
    log = [at(0, packed(inference(0), identity=identity(0)))] * 100
    with small(PENDING_LIMIT=30):
        subject = task()
        outputs = subject.process("inference", stored(log))
    assert total(windows(outputs)).duplicate == 89
    assert len(subject.snapshot()) < 2500


def test_cost_is_summed_by_currency() -> None:
    amounts: list[Event] = [{"cost_amount": amount} for amount in (1.5, 2.0, 4.0, 8.0)]
    for cost, currency in zip(amounts, ("EUR", "EUR", "USD"), strict=False):
        cost["cost_currency"] = currency
    events = [inference(0, **cost) for cost in amounts]
    (window,) = windows(process([at(0, packed(*events, inference(0))), tick_at(9)]))
    assert window.cost == {"EUR": 3.5, "USD": 4.0, "": 8.0}


@pytest.mark.parametrize("density", Density)
def test_absurd_numbers_never_make_invalid_json(density: Density) -> None:
    absurd: Event = {"confidence": -1e308, "ttft_s": 1e308, "input_tokens": 1e308, "cost_amount": 1e308}
    events = [inference(0, 1e308, metrics={"x": -1e308}, **absurd) for _ in range(3)]
    outputs = process([*(at(0, v) for v in encode(EventType.INFERENCE, events, density)), tick_at(9)])
    (window,) = windows(outputs)
    assert window.duration_s is not None
    assert (window.duration_s.max, window.duration_s.sum > 1e308) == (1e308, True)
    assert window.cost == {"": sys.float_info.max}
    tiny = [inference(0, 5e-324), inference(0, 0.0), inference(0, 1e308)]
    assert windows(process([at(0, packed(*tiny)), tick_at(9)]))[0].count == 3


@pytest.mark.parametrize("time", [0.0, 0.5, 1.0, 99_999_999_999.0])
def test_first_and_last_times_there_are_make_windows_that_can_be_read(time: float) -> None:
    event = {**inference(0), "time_unix_s": time}
    broker = max(time, T0) - T0
    log = [at(broker, packed(event)), at(broker, b"{"), tick_at(broker + 1), tick_at(broker + 5)]
    found = windows(process(log))
    assert (counted(found), total(found).rejected) == (1, 1)
    assert all(window.start_unix_s >= 0 for window in found)


def test_few_bytes_cannot_claim_much_memory() -> None:
    """Batches of constants hold 100,000 events in 200 bytes: a call takes in a few of them at a time."""
    constant = {**inference(0), "trace_id": "x"}
    lying = {"type": "inference", "count": 100_000, "constant": constant, "columns": {}}
    sizes: list[int] = []

    def chunk(*args: Any) -> Chunk:
        made = Chunk(*args)
        sizes.append(len(made))
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "Chunk", chunk)
        outputs = process([at(0, json.dumps(lying).encode())] * 12 + [tick_at(9)])
    assert windows(outputs)[0].count == 1_200_000
    assert max(sizes) <= 400_000


def test_backlog_of_single_events_in_thousands_of_windows_is_taken_in() -> None:
    """An agent that catches up on hours of a quiet service; each event is a supplement of its own."""
    patient = SETTINGS.model_copy(update={"max_late_s": 86_400.0})
    late = [inference(2.0 * i - 5000, ttft_s=0.1) for i in range(1210)]
    subject = task(patient)
    log = [at(0, packed(inference(0))), at(1, packed(*late)), tick_at(9)]
    outputs = subject.process("inference", stored(log)[:2])
    assert 0 < total(windows(outputs)).late < 1210, "published in portions that take a second"
    outputs += subject.process("inference", stored(log)[2:])
    assert total(windows(outputs)).late == 1210


def expected_of(log: Sequence[Entry]) -> list[Expected]:
    return [each for publication in Oracle("inference", SETTINGS).feed(log) for each in publication.windows]


def test_oracle_itself_counts_a_hand_made_log_right() -> None:
    log = [at(0, batch(0)), at(4, batch(2, inference(4), inference(1))), at(5, batch(2)), tick_at(9)]
    found = [(each.part, each.number - T0 / 2, len(each.events), each.counters) for each in expected_of(log)]
    none = dict.fromkeys(("late", "duplicate", "missing", "rejected", "dropped"), 0)
    assert found == [
        ("main", 0, 1, none | {"missing": 1}),
        ("main", 2, 1, none | {"duplicate": 1}),
        ("late", 0, 1, none | {"late": 1}),
    ]


def test_dead_letter_can_be_read_by_the_decoder_and_refused_again() -> None:
    (letter,) = letters(process([at(0, packed(inference(0, -1.0))), tick_at(1)]))
    (again,) = wire.decode(EventType.INFERENCE, letter.value or b"")
    assert [fault.reason for fault in again.rows.faults()] == [Reason.NEGATIVE]
    (broken,) = letters(process([at(0, b"{"), tick_at(1)]))
    with pytest.raises(Rejected):
        wire.decode(EventType.INFERENCE, broken.value or b"")


@pytest.mark.parametrize(
    "changed",
    [
        WindowSettings(size_s=5.0, lateness_s=1.0, max_future_s=1e9),
        WindowSettings(size_s=0.5, lateness_s=1.0, max_future_s=1e9),
        WindowSettings(size_s=2.0, lateness_s=9.0, max_future_s=1e9),
        WindowSettings(size_s=2.0, lateness_s=0.0, max_future_s=1e9),
    ],
    ids=["larger windows", "smaller windows", "more lateness", "less lateness"],
)
@pytest.mark.parametrize("cut", range(1, 24, 3))
def test_settings_changed_between_two_runs_lose_and_repeat_nothing(changed: WindowSettings, cut: int) -> None:
    before = WindowSettings(size_s=2.0, lateness_s=1.0, max_future_s=1e9)
    log = [at(n, packed(inference(n), inference(n + 0.5), inference(max(0, n - 2.5)))) for n in range(24)]
    log += [tick_at(after) for after in (30, 60)]
    first = task(before)
    outputs = first.process("inference", stored(log)[:cut])
    second = task(changed)
    second.restore(first.snapshot())
    outputs += second.process("inference", stored(log)[first.offsets().get("inference", 0) :])
    found = windows(outputs)
    assert sum(window.count for window in found) == 3 * 24
    identities = {(w.start_unix_s, w.size_s, w.part, w.revision) for w in found}
    assert len(identities) == len(found)


@pytest.mark.parametrize(
    ("old_s", "new_s"), [(0.1, 0.3), (0.2, 0.6), (0.1, 0.7), (2.0, 10.0), (10.0, 2.0), (60.0, 2.0)]
)
def test_windows_of_another_size_begin_where_the_old_ones_end(old_s: float, new_s: float) -> None:
    """Times of today are large numbers of small windows: a quotient that should be whole is not."""
    old, new = Fraction(str(old_s)), Fraction(str(new_s))
    for number in range(int(Fraction(1_760_000_000) / old), int(Fraction(1_760_000_000) / old) + 1000):
        assert module._renumbered(float(number), old_s / new_s) == ceil(number * old / new)


@given(seeds)
@settings(max_examples=300, deadline=None)  # one in sixty is of the kind that once was counted twice
def test_sizes_changed_and_kept_over_several_runs_lose_and_repeat_nothing(seed: int) -> None:
    """A plain restart after a change knows what the windows of the size before it hold."""
    rng = random.Random(seed)
    times = [max(0.0, 0.7 * n - rng.choice((0.0, rng.uniform(0, 6)))) for n in range(60)]
    records = ((at(0.1 * n, packed(inference(time))), tick_at(0.1 * n)) for n, time in enumerate(times))
    log = [each for pair in records for each in pair[: rng.randint(1, 2)]] + [tick_at(200), tick_at(400)]
    outputs: list[Outgoing] = []
    snapshot: bytes | None = None
    offset, end = 0, 0
    while end < len(log):
        end = len(log) if end >= len(times) else end + rng.randint(1, 9)
        subject = task(WindowSettings(size_s=rng.choice((2.0, 10.0)), lateness_s=1.0, max_future_s=1e9))
        if snapshot is not None:
            subject.restore(snapshot)
        outputs += subject.process("inference", stored(log)[offset:end])
        if subject.offsets():
            snapshot, offset = subject.snapshot(), subject.offsets()["inference"]
    found = windows(outputs)
    assert sum(window.count for window in found) == len(times)
    identities = {(w.start_unix_s, w.size_s, w.part, w.revision) for w in found}
    assert len(identities) == len(found)


def test_what_was_only_refused_is_numbered_on_when_a_size_returns() -> None:
    log = stored([each for n in range(3) for each in (at(10 * n, b"{"), tick_at(10 * n + 9))])
    found: list[Window] = []
    snapshot: bytes | None = None
    for size_s, run_ in zip((3600.0, 2.0, 3600.0), (log[:2], log[2:4], log[4:]), strict=True):
        subject = task(WindowSettings(size_s=size_s, lateness_s=1.0))
        if snapshot is not None:
            subject.restore(snapshot)
        found += windows(subject.process("inference", run_))
        snapshot = subject.snapshot()
    identities = {(w.start_unix_s, w.size_s, w.part, w.revision) for w in found}
    assert len(identities) == len(found) == 3


def test_a_size_that_returns_numbers_supplements_on() -> None:
    """A sink takes two with the same number for one, and keeps the first."""
    small = WindowSettings(size_s=2.0, lateness_s=1.0, max_future_s=1e9)
    large = small.model_copy(update={"size_s": 10.0})
    found: list[Window] = []
    snapshot: bytes | None = None
    log = [
        at(n, packed(inference(10.0 * n), inference(max(0.0, 10.0 * n - 19.0)), inference(1.0))) for n in range(4, 16)
    ]
    offset = 0
    for configured, end in ((small, 3), (large, 6), (small, 9), (large, len(log))):
        subject = task(configured)
        if snapshot is not None:
            subject.restore(snapshot)
        found += windows(subject.process("inference", stored(log)[offset:end]))
        snapshot, offset = subject.snapshot(), subject.offsets()["inference"]
    late = [(w.size_s, w.start_unix_s, w.revision) for w in found if w.part == "late"]
    assert len(late) == len(set(late))
    assert {size_s for size_s, start, _ in late if start == T0} == {2.0, 10.0}


def test_a_flood_of_duplicates_in_an_open_window_leaves_the_snapshot_small() -> None:
    batch = packed(inference(0), identity=identity(0))
    log = [at(0.001 * number, batch) for number in range(25_000)]
    subject = task(WindowSettings(size_s=3600.0))
    outputs = subject.process("inference", stored(log))
    assert 100 < len(subject.snapshot()) < 100_000
    again = task(WindowSettings(size_s=3600.0))
    again.restore(subject.snapshot())
    log.append(tick_at(8000))
    outputs += again.process("inference", stored(log)[again.offsets()["inference"] :])
    assert counted(windows(outputs)) == 1
    assert total(windows(outputs)).duplicate == 24_999


@pytest.mark.parametrize("body", [packed(inference(0)), encode(EventType.INFERENCE, [inference(0)], Density.OBJECT)[0]])
def test_a_schema_version_in_the_header_counts_like_one_in_the_body(body: bytes) -> None:
    records = [each._replace(headers=(("streammon-schema", b"2"),)) for each in stored([at(0, body)])]
    outputs = task().process("inference", [*records, *stored([at(0, body), at(1, body), tick_at(9)])[1:]])
    (letter,) = letters(outputs)
    assert headers(letter)["reason"] == "unknown_schema"
    assert letter.value == body
    assert (counted(windows(outputs)), total(windows(outputs)).rejected) == (1, 1)
