"""The join: which label goes with which prediction, whichever comes first, and what is told of the others."""

from __future__ import annotations

import itertools
import json
import random
import zlib
from collections import Counter
from typing import Any

import msgspec
import pytest

from streammon import wire
from streammon.broker import Outgoing
from streammon.config import LabelSettings, Settings
from streammon.events import EventType
from streammon.outcomes import MAX_TEXT_BYTES, bounded_text
from streammon.results import OTHER
from streammon.tick import TICK
from streammon.topics import LARGE_RECORD_BYTES, MAX_RECORD_BYTES
from streammon_processors.contract import Stored, run
from streammon_processors.join import cohorts, label_windows
from streammon_processors.join.task import GENERATIONS
from tests.joins import SETTINGS, T0, Joined, expected, join_logs, join_task, joined
from tests.oracle import Event


@pytest.mark.parametrize("seed", range(12))
def test_pairs_and_counts_are_those_of_a_plain_computation_whichever_topic_is_read_first(seed: int) -> None:
    logs = join_logs(seed)
    right = expected(logs)
    assert right.pairs
    for rng, longest in ((None, 0), (random.Random(seed), 1), (random.Random(seed), 9)):
        outputs = run(join_task(), logs, rng, longest)
        found = joined(output for some in outputs.values() for output in some)
        assert found.pairs == right.pairs
        assert found.cohorts == right.cohorts
        assert found.unmatched == right.unmatched
        assert found.relabelled == right.relabelled
        assert not found.forgotten


# --- one thing at a time ----------------------------------------------------------------------------------------------


def prediction(after_s: float, event_id: str = "a", **fields: Any) -> Event:
    common = {"service": "shop", "model": "ranker", "duration_s": 0.1, "status": "ok"}
    return {"time_unix_s": T0 + after_s, **common, "event_id": event_id, **fields}


def label(after_s: float, event_id: str = "a", **said: Any) -> Event:
    return {"time_unix_s": T0 + after_s, "service": "shop", "model": "ranker", "event_id": event_id, **said}


class Partition:
    """One partition of both topics, and a task that reads them."""

    def __init__(self, settings: Settings = SETTINGS) -> None:
        self.task = join_task(settings=settings)
        self._offsets: Counter[str] = Counter()
        self.outputs: list[Outgoing] = []

    def give(self, *events: Event, at: float) -> Joined:
        """Events that come together, so many seconds after `T0`."""
        topic = "inference" if "duration_s" in events[0] else "labels"
        kind = EventType.INFERENCE if topic == "inference" else EventType.LABEL
        [value] = wire.encode(kind, events)
        return self.give_bytes(topic, value, at=at)

    def give_bytes(self, topic: str, value: bytes | None, at: float) -> Joined:
        record = Stored(value, self._offsets[topic], round(1000 * (T0 + at)))
        self._offsets[topic] += 1
        outputs = self.task.process(topic, [record])
        self.outputs += outputs
        return joined(outputs)

    def pass_time(self, to: float) -> Joined:
        """A tick in both."""
        for topic in ("inference", "labels"):
            self.give_bytes(topic, TICK, at=to)
        return joined(self.outputs)


def said(found: Joined) -> list[tuple[Any, ...]]:
    """Label, score and rating of each pair."""
    return [tuple(value for _, value in pair[8:11]) for pair in found.pairs.elements()]


def test_a_pair_is_published_as_soon_as_both_are_known() -> None:
    here = Partition()
    assert not here.give(prediction(0, "a"), prediction(0, "b"), at=0).pairs
    assert said(here.give(label(9, "b", label="x"), at=9)) == [("x", None, None)]
    assert not here.give(label(9, "c", label="y"), at=9).pairs
    assert said(here.give(prediction(10, "c"), at=10)) == [("y", None, None)]


def test_label_score_and_rating_may_come_in_events_of_their_own_each_once() -> None:
    here = Partition()
    here.give(label(0, rating=3.0), at=0)
    assert said(here.give(prediction(1), at=1)) == [(None, None, 3.0)]
    assert said(here.give(label(2, label=True, rating=5.0), at=2)) == [(True, None, None)]
    assert said(here.give(label(3, label=False, score=0.5), at=3)) == [(None, 0.5, None)]
    assert sum(here.pass_time(100).relabelled.values()) == 2


@pytest.mark.parametrize(("apart_s", "pairs"), [(30.0, 1), (30.001, 0)])
@pytest.mark.parametrize("label_first", [False, True])
def test_the_horizon_is_judged_by_the_brokers_time_to_the_millisecond(
    apart_s: float, pairs: int, label_first: bool
) -> None:
    here = Partition()
    events = [prediction(40), label(-1e6, label=1.0)]  # whenever that was
    first, second = reversed(events) if label_first else events
    here.give(first, at=40)
    assert here.give(second, at=40 + apart_s).pairs.total() == pairs
    assert sum(here.pass_time(200).unmatched.values()) == 1 - pairs


def test_a_prediction_is_repeated_within_the_horizon_and_another_one_after_it() -> None:
    here = Partition()
    for at in (0, 30, 30.001):
        here.give(prediction(at), at=at)
    assert said(here.give(label(31, label="first"), at=29.9)) == [("first", None, None)]
    assert here.give(label(32, label="again"), at=40).pairs.total() == 0
    assert said(here.give(label(60, label="second"), at=60)) == [("second", None, None)]
    counts = Counter[Any]()
    for key, count in here.pass_time(200).cohorts.items():
        counts[key[-1]] += count
    assert (counts["count"], counts["with_id"], counts["repeated"]) == (3, 2, 1)


def test_long_texts_are_cut_and_stay_equal() -> None:
    here = Partition()
    here.give(prediction(0, "i" * 500, prediction="p" * 500), at=0)
    [pair] = here.give(label(1, "i" * 500, label="p" * 500), at=1).pairs
    predicted, labelled = pair[7:9]
    assert predicted == labelled
    assert len(predicted[1].encode()) <= MAX_TEXT_BYTES
    assert pair[2] == bounded_text("i" * 500) != bounded_text("i" * 499 + "j")


def test_a_label_that_says_nothing_is_a_dead_letter_and_one_without_an_id_too() -> None:
    here = Partition()
    here.give(label(0), label(0, "", label=1.0), label(0, "b", label=1.0), label(1e5, label=1.0), at=0)
    here.give_bytes("labels", b"{", at=1)
    letters = [output for output in here.outputs if output.topic == "deadletter"]
    assert [dict(letter.headers)["reason"] for letter in letters] == [b"invalid_event", b"future", b"invalid_json"]
    assert len(json.loads(letters[0].value or b"")) == 2
    assert letters[2].value == b"{"


def test_bad_predictions_are_left_to_the_windows_task() -> None:
    here = Partition()
    found = here.give(prediction(1e5), prediction(0, "b", confidence=float("nan")), at=0)
    here.give_bytes("inference", b"{", at=1)
    assert not here.outputs
    assert not found.cohorts


def test_models_of_one_name_in_two_services_do_not_know_each_other() -> None:
    here = Partition()
    here.give(prediction(0), at=0)
    assert not here.give(dict(label(1, label=1.0), service="search"), at=1).pairs
    assert here.give(label(1, label=1.0), at=1).pairs


def test_time_passes_where_something_waits_for_it_and_nowhere_else() -> None:
    here = Partition()
    assert not here.task.waiting
    here.give(label(0, label=1.0), at=0)
    assert list(here.task.waiting) == ["inference"], "a label may be without a prediction"
    here.give_bytes("inference", TICK, at=31)
    assert list(here.task.waiting) == ["inference", "labels"], "others may have come in its window"
    here.give_bytes("labels", TICK, at=31)
    assert not here.task.waiting
    assert sum(joined(here.outputs).unmatched.values()) == 1


def test_a_brokers_clock_that_goes_back_within_a_batch_changes_nothing_about_where_it_is_cut() -> None:
    times = (0, 20, 12, 13)  # of another broker, from the third record on
    [said] = wire.encode(EventType.INFERENCE, [prediction(0, "b")])
    values = [*(wire.encode(EventType.INFERENCE, [prediction(0, name)])[0] for name in "xyz"), said]
    log = [
        Stored(value, at, round(1000 * (T0 + time))) for at, (value, time) in enumerate(zip(values, times, strict=True))
    ]
    found = []
    for cuts in ((0, 4), (0, 3, 4), (0, 1, 2, 3, 4)):
        here = Partition()
        for start, end in itertools.pairwise(cuts):
            here.task.process("inference", log[start:end])
        found.append(len(here.give(label(0, "b", label=1.0), at=45).pairs))
    assert found == [1, 1, 1]  # it came when the newest before it did: 25 s before its label, not 32 s


def test_what_has_expired_is_forgotten_with_its_generation() -> None:
    here = Partition()
    for at in range(200):
        here.give(prediction(at, f"id-{at}"), at=at)
        here.give_bytes("labels", TICK, at=at)
    numbers = [generation.number for generation in here.task._generations]
    assert len(numbers) <= GENERATIONS + 2
    assert numbers[0] > 10
    assert not joined(here.outputs).forgotten


# --- bounds -----------------------------------------------------------------------------------------------------------


def test_series_beyond_their_bounds_are_counted_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cohorts, "MAX_SERIES", 7)
    monkeypatch.setattr(cohorts, "MAX_SLICE_VALUES", 2)
    here = Partition()
    events = [prediction(0, str(number), tenant=f"t{number}", model_version="1") for number in range(5)]
    others = [prediction(0, f"v{number}", model_version=f"v{number}") for number in range(9)]
    here.give(*events, *others, at=0)
    found = here.pass_time(100).cohorts
    counts = {key[2:4]: count for key, count in found.items() if key[-1] == "count"}
    assert counts["1", ()] == 5
    assert counts["1", (("tenant", OTHER),)] == 3
    assert counts[OTHER, ()] == 9 - 3
    assert len(counts) == 1 + 3 + 3 + 1


def test_classes_beyond_their_bounds_are_counted_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cohorts, "MAX_CLASSES", 3)
    here = Partition()
    here.give(*(prediction(0, str(n), prediction=f"c{n}", confidence=0.99) for n in range(8)), at=0)
    classes = {key[-2]: count for key, count in here.pass_time(100).cohorts.items() if key[-1] == 49}
    assert classes == {"c0": 1, "c1": 1, "c2": 1, OTHER: 5}


def test_windows_of_labels_beyond_their_bound_share_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label_windows, "MAX_WINDOWS", 2)
    here = Partition()
    for number in range(6):
        here.give(label(10 * number, str(number), label=1.0), at=10 * number)
    here.give(prediction(50, "5"), at=50)
    assert sorted(here.pass_time(200).unmatched.values()) == [1, 4]


def test_a_snapshot_of_all_that_is_bounded_fits_into_a_record() -> None:
    rng = random.Random(1)
    here = Partition()
    models = [{"service": f"service-{number}", "model": "m" * 40} for number in range(100)]
    for at in range(0, 600, 10):
        fields = ({"model_version": f"v{n % 3}", "prediction": f"c{n}", "confidence": rng.random()} for n in range(400))
        batch = [
            {**prediction(at, f"{at}-{n}", **each), **model}
            for n, (each, model) in enumerate(zip(fields, models * 4, strict=True))
        ]
        here.give(*batch, at=at)
        here.give(*({**label(at, f"x{at}", label=1.0), **each} for each in models), at=at)
    assert len(here.task.snapshot()) < MAX_RECORD_BYTES / 2


def test_whatever_models_are_called_and_however_many_there_are_a_snapshot_fits_into_its_record() -> None:
    rng = random.Random(2)
    here = Partition(SETTINGS.model_copy(update={"labels": LabelSettings(max_predictions=6000)}))

    def names(length: int) -> dict[str, str]:
        return {each: rng.randbytes(length // 2).hex() for each in ("service", "model")}

    for length, models in ((100_000, 10), (1000, 500), (100, 5000)):
        labels = [{**label(0, "x", label=1.0), **names(length)} for _ in range(models)]
        said = ({"model_version": rng.randbytes(90).hex(), "prediction": rng.randbytes(90).hex()} for _ in labels)
        for start in range(0, models, 100):
            here.give(*labels[start : start + 100], at=0)
            some = zip(range(100), said, strict=False)
            here.give(
                *({**prediction(0, f"{at}", confidence=rng.random(), **each), **names(length)} for at, each in some),
                at=0,
            )
        assert len(here.task.snapshot()) < LARGE_RECORD_BYTES
    assert sum(here.pass_time(100).unmatched.values()) == 5000 + 500 + 10


def test_an_event_beyond_all_bounds_is_counted_once_among_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cohorts, "MAX_SERIES", 0)
    here = Partition()
    here.give(*(prediction(0, str(number), tenant=f"t{number}") for number in range(5)), at=0)
    found = here.pass_time(100).cohorts
    assert {key[3]: count for key, count in found.items() if key[-1] == "count"} == {(): 5, (("tenant", OTHER),): 5}


def test_there_is_one_window_for_the_labels_of_all_models_that_have_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label_windows, "MAX_WINDOWS", 2)
    here = Partition()
    for number in range(6):
        here.give({**label(4 * number, "a", label=1.0), "model": f"m{number}"}, at=4 * number)
    assert len(msgspec.msgpack.decode(zlib.decompress(here.task.snapshot()))[4]) == 3
    assert sorted(here.pass_time(200).unmatched.values()) == [1, 1, 4]
