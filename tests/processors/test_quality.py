"""The quality task: what is told when, against a plain computation over all pairs."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from math import floor
from statistics import fmean
from typing import Any

import msgspec
import numpy as np
import pytest
from prometheus_client import REGISTRY

from streammon.broker import Outgoing
from streammon.models import LabelPolicy, ModelPolicy, Models
from streammon.outcomes import Cohort, Outcomes, Value
from streammon.results import OTHER, Quality
from streammon.tick import TICK
from streammon_processors.quality import QualityTask
from streammon_processors.quality.models import MAX_SERIES, MAX_VALUES
from tests.quality_pairs import T0, Pair, cohort, log, outcomes, random_pairs

Message = Outcomes | Cohort | bytes | None
MINUTE = 60.0


def task(**policy: Any) -> QualityTask:
    """Windows of a minute, and a horizon that leaves cohorts as long, unless said otherwise."""
    told = {"window": "1m", "horizon": "30m"} | policy
    return QualityTask(Models((ModelPolicy(labels=LabelPolicy(**told)),)), 3)


def outputs(subject: QualityTask, messages: Iterable[tuple[float, Message]]) -> list[Outgoing]:
    return subject.process("outcomes", log(messages, subject._next))


def told(subject: QualityTask, *messages: tuple[float, Message]) -> list[Quality]:
    found = outputs(subject, messages)
    return [msgspec.json.decode(each.value or b"", type=Quality) for each in found if each.topic == "quality"]


def whole(results: Iterable[Quality], by: str = "label") -> list[Quality]:
    return [each for each in results if each.by == by and not each.slice]


def minutes(result: Quality) -> tuple[float, float]:
    return ((result.start_unix_s - T0) / MINUTE, (result.end_unix_s - T0) / MINUTE)


def skipped(reason: str) -> float:
    return REGISTRY.get_sample_value("streammon_quality_skipped_total", {"reason": reason}) or 0.0


def right(at_s: float, **fields: Any) -> Pair:
    return Pair(True, True, 0.9, fields.pop("predicted_s", at_s), at_s, **fields)


def wrong(at_s: float, **fields: Any) -> Pair:
    return Pair(True, False, 0.9, fields.pop("predicted_s", at_s), at_s, **fields)


# --- by label


def test_a_window_of_labels_is_told_once_when_a_label_of_a_later_one_comes() -> None:
    subject = task()
    assert told(subject, (30, outcomes([right(10), wrong(20), right(30)]))) == []
    [first] = told(subject, (70, outcomes([right(70)])))
    assert (first.by, minutes(first), first.labelled, first.size_s) == ("label", (0, 1), 3, 60)
    assert first.accuracy == pytest.approx(2 / 3)
    assert (first.service, first.model, first.model_version, first.partition) == ("shop", "ranker", "v1", 3)


def test_windows_of_labels_are_those_of_a_plain_computation() -> None:
    pairs = random_pairs(800, random.Random(1), over_s=900, delay_s=100)
    messages: list[tuple[float, Message]] = [
        (part[-1].labelled_s, outcomes(part)) for part in _parts(pairs, random.Random(2))
    ]
    end = pairs[-1].labelled_s
    found = told(task(), *messages, *((end + 15 * number, TICK) for number in range(1, 12)))
    by_window: dict[int, list[Pair]] = {}
    for pair in pairs:
        by_window.setdefault(floor(pair.labelled_s / MINUTE), []).append(pair)
    results = whole(found)
    assert [minutes(each)[0] for each in results] == sorted(by_window)
    for result, mine in zip(results, map(by_window.__getitem__, sorted(by_window)), strict=True):
        assert result.labelled == len(mine)
        assert result.accuracy == pytest.approx(fmean(pair.prediction == pair.label for pair in mine))
        delays = [pair.labelled_s - pair.predicted_s for pair in mine]
        assert result.label_delay_s is not None
        assert result.label_delay_s.count == len(mine)
        assert result.label_delay_s.mean == pytest.approx(fmean(delays))
        assert result.label_delay_s.p50 == pytest.approx(np.quantile(delays, 0.5, method="inverted_cdf"), rel=0.006)
        for name, value in (("tenant", "acme"), ("country", "b")):
            part = [pair for pair in mine if pair.slices[name] == value]
            others = [pair for pair in mine if pair.slices[name] != value]
            [sliced] = (
                [
                    each
                    for each in found
                    if each.start_unix_s == result.start_unix_s and each.by == "label" and each.slice == {name: value}
                ]
                if part
                else [None]
            )
            if sliced is None:
                continue
            mean = fmean(pair.prediction == pair.label for pair in part)
            assert sliced.accuracy == pytest.approx(mean)
            if others:
                away = mean - fmean(pair.prediction == pair.label for pair in others)
                assert sliced.disparity["accuracy"] == pytest.approx(away)
                where = sliced.intervals["disparity.accuracy"]
                assert where.low <= away <= where.high


def _parts(pairs: Sequence[Pair], rng: random.Random) -> Iterable[Sequence[Pair]]:
    """In records that hold a few seconds of labels each, as they come from a join."""
    at = 0
    while at < len(pairs):
        until = pairs[at].labelled_s + rng.uniform(0, 6)
        end = next((number for number in range(at, len(pairs)) if pairs[number].labelled_s > until), len(pairs))
        yield pairs[at:end]
        at = end


def test_a_label_that_comes_late_counts_when_it_comes() -> None:
    subject = task()
    told(subject, (70, outcomes([right(70)])))
    [first] = told(subject, (75, outcomes([wrong(20)])), (130, outcomes([right(130)])))
    assert (minutes(first), first.labelled, first.accuracy) == ((1, 2), 2, 0.5)


def test_where_labels_fall_silent_the_brokers_time_ends_the_window() -> None:
    subject = task()
    told(subject, (30, outcomes([right(5), right(30)])))
    assert subject.waiting == ["outcomes"]
    assert told(subject, (65, TICK)) == []
    [first] = told(subject, (72, TICK))
    assert minutes(first) == (0, 1)
    assert task().waiting == []


def test_a_gap_in_which_nobody_wrote_is_a_minute_at_most() -> None:
    subject = task(window="1h", horizon="7d")
    told(subject, (30, outcomes([right(30)])))
    assert told(subject, (7 * 86_400, TICK)) == []


def test_a_clock_ahead_moves_nobody() -> None:
    subject = task()
    before = skipped("future")
    told(subject, (30, outcomes([right(1e9, predicted_s=1e9)])))
    [first] = told(subject, (50, outcomes([right(50)])), (190, outcomes([right(190)])))
    assert (minutes(first), first.labelled) == ((1, 2), 2)  # as if it had been max_future_s ahead
    assert skipped("future") == before + 1


def test_it_is_told_of_how_many_pairs_measures_and_estimates_are() -> None:
    pairs = [Pair(True, True, 0.9), Pair(True, True), Pair(None, True, 0.9), Pair(True, True, 1.5)]
    [first] = whole(told(task(), (1, outcomes(pairs)), (70, outcomes([right(70)]))))
    assert (first.labelled, first.judged, first.confident) == (4, 3, 1)


def test_a_label_that_is_no_number_makes_no_classes_of_numbers() -> None:
    missing: list[Value] = ["NaN", "null", " N/A", ""]
    pairs = [Pair(1.5, 1.0), *(Pair(2.5, each) for each in missing), *(Pair(each, 2.5) for each in missing)]
    [first] = whole(told(task(), (1, outcomes(pairs)), (70, outcomes([right(70, version="v2")]))))
    assert (first.mae, first.judged, first.accuracy) == (0.5, 1, None)


def test_versions_are_told_apart() -> None:
    subject = task()
    pairs = [right(1), wrong(2, version="v2"), wrong(3, version="v2"), right(4, version=None)]
    found = told(subject, (5, outcomes(pairs)), (65, outcomes([right(65)])))
    assert {each.model_version: (each.labelled, each.accuracy) for each in found} == {
        "v1": (1, 1.0),
        "v2": (2, 0.0),
        None: (1, 1.0),
    }


def test_scores_and_ratings_are_told_without_labels() -> None:
    pairs = [Pair(predicted_s=1, labelled_s=2, score=0.5), Pair(predicted_s=1, labelled_s=3, rating=4.0)]
    [first] = told(task(), (5, outcomes(pairs)), (65, outcomes([right(65)])))
    assert (first.labelled, first.scored, first.rated) == (0, 1, 1)
    assert (first.score, first.rating, first.accuracy, first.label_delay_s) == (0.5, 4.0, None, None)


# --- by prediction


def test_a_cohort_is_told_when_its_time_is_over_and_for_the_last_time_at_the_horizon() -> None:
    subject = task()
    assert told(subject, (62, cohort(0, count=10, size_s=60))) == []
    [first] = told(subject, (122, cohort(60, count=10, size_s=60)))
    assert (minutes(first), first.revision, first.final, first.predictions) == ((0, 1), 0, False, 10)
    assert (first.coverage, first.labelled) == (0.0, 0)
    told(subject, (200, outcomes([right(200 + number / 10, predicted_s=30) for number in range(4)])))
    late = told(subject, *((240 + 15 * number, TICK) for number in range(200)))
    [last] = [each for each in whole(late, "prediction") if minutes(each)[0] == 0 and each.final]
    assert (last.labelled, last.coverage, last.accuracy) == (4, 0.4, 1.0)
    assert subject.waiting == []
    assert told(subject, (4000, TICK)) == []


def test_cohorts_are_those_of_a_plain_computation() -> None:
    pairs = random_pairs(600, random.Random(3), over_s=900, delay_s=100)
    messages: list[tuple[float, Message]] = [
        (part[-1].labelled_s, outcomes(part)) for part in _parts(pairs, random.Random(4))
    ]
    for start in range(0, 900, 60):
        mine = [pair for pair in pairs if start <= pair.predicted_s < start + 60]
        messages.append((start + 62, cohort(start, mine, size_s=60)))
    messages.sort(key=lambda each: each[0])
    found = told(task(), *messages, *((2000 + 15 * number, TICK) for number in range(250)))
    finals = [each for each in whole(found, "prediction") if each.final]
    assert [minutes(each)[0] for each in finals] == list(range(15))
    for result in finals:
        mine = [pair for pair in pairs if minutes(result)[0] * 60 <= pair.predicted_s < minutes(result)[1] * 60]
        assert (result.predictions, result.labelled, result.coverage) == (len(mine), len(mine), 1.0)
        assert result.accuracy == pytest.approx(fmean(pair.prediction == pair.label for pair in mine))
    revisions: dict[tuple[float, str], list[int]] = {}
    for each in found:
        if each.by == "prediction":
            revisions.setdefault((each.start_unix_s, str(each.slice)), []).append(each.revision)
    assert all(each == list(range(len(each))) for each in revisions.values())


def test_revisions_are_one_in_the_time_of_a_cohort_and_only_where_coverage_has_moved() -> None:
    subject = task()
    told(subject, (62, cohort(0, count=1000, size_s=60)), (122, cohort(60, count=1, size_s=60)))
    found = []
    for second in range(130, 730, 10):  # a label each 10 s, then 5: half a point, and half as much again
        labels = [right(second, predicted_s=30)] * (1 if second < 430 else 5)
        found += told(subject, (second, outcomes(labels)))
    mine = [each.coverage or 0.0 for each in whole(found, "prediction") if minutes(each)[0] == 0]
    assert 5 <= len(mine) <= 8
    assert min(np.diff([0.0, *mine])) >= 0.01


def test_however_fast_labels_come_there_is_one_revision_in_the_length_of_a_cohort() -> None:
    subject = task(horizon="7d")  # cohorts of an hour, windows of a minute
    told(subject, (3602, cohort(0, count=1000)), (3902, cohort(3600, count=1)))
    found = []
    for minute in range(66, 246):
        found += told(subject, (60 * minute, outcomes([right(60 * minute, predicted_s=30)] * 20)))
    assert [each.revision for each in whole(found, "prediction") if minutes(each) == (0, 60)] == [1, 2, 3]


def test_a_prediction_ahead_of_the_brokers_clock_is_in_no_cohort() -> None:
    subject = task()
    told(subject, (30, outcomes([right(30, predicted_s=60), right(30, predicted_s=119)])))
    found = told(subject, (122, cohort(60, count=1, size_s=60)), (182, cohort(120, count=1, size_s=60)))
    assert [each.labelled for each in whole(found, "prediction") if minutes(each) == (1, 2)] == [1]


def test_a_cohort_is_as_long_as_168_of_them_fill_the_horizon() -> None:
    assert LabelPolicy().cohort_s == 3600
    assert LabelPolicy(window="5m", horizon="12h").cohort_s == 300
    assert LabelPolicy(window="7m", horizon="7d").cohort_s == 63 * 60


def test_labels_that_found_no_prediction_are_counted() -> None:
    subject = task()
    lost = cohort(0, size_s=60, count=0, part="late", revision=1, unmatched_labels=7, version=None)
    found = told(
        subject,
        (62, cohort(0, count=10, size_s=60)),
        (1900, cohort(1860, count=10, size_s=60)),
        (1901, lost),
        *((1910 + 15 * number, TICK) for number in range(30)),
    )
    [last] = [each for each in found if each.final and each.model_version is None]
    assert (last.unmatched_labels, last.predictions, last.coverage) == (7, 0, None)


def test_what_comes_after_the_horizon_counts_by_label_only() -> None:
    subject = task()
    told(subject, (62, cohort(0, count=10, size_s=60)), (5000, cohort(4940, count=10, size_s=60)))
    before = skipped("too_late")
    told(subject, (5001, outcomes([right(5001, predicted_s=30)])))
    found = told(subject, (5100, outcomes([right(5100, predicted_s=5090)])))
    assert [each.labelled for each in whole(found)] == [1]
    assert skipped("too_late") == before + 1


# --- estimates


def test_an_estimate_comes_before_labels_and_its_error_after_them() -> None:
    rng = random.Random(8)
    pairs = random_pairs(3000, rng, over_s=3000, delay_s=1)
    old, new = pairs[:2500], pairs[2500:]
    messages: list[tuple[float, Message]] = [(part[-1].labelled_s, outcomes(part)) for part in _parts(old, rng)]
    subject = task(horizon="1h")
    for start in range(0, 2460, 60):
        mine = [pair for pair in pairs if start <= pair.predicted_s < start + 60]
        messages.append((start + 62, cohort(start, mine, size_s=60)))
    told(subject, *sorted(messages, key=lambda each: each[0]))
    today = [pair for pair in pairs if 2520 <= pair.predicted_s < 2580]
    [first] = [
        each
        for each in told(subject, (2582, cohort(2520, today, size_s=60)), (2650, cohort(2580, count=1, size_s=60)))
        if minutes(each)[0] == 42
    ]
    assert (first.labelled, first.accuracy, first.estimation_error) == (0, None, None)
    assert first.estimated_accuracy is not None
    truth = fmean(pair.prediction == pair.label for pair in today)
    where = first.intervals["estimated_accuracy"]
    assert where.low <= truth <= where.high
    assert {"precision", "recall", "f1", "auc"} == first.estimates.keys()
    assert first.mean_estimation_error is not None
    later = told(
        subject,
        *((pair.labelled_s + 200, outcomes([pair])) for pair in new),
        (3400, outcomes([right(3400)])),
        (3500, outcomes([right(3500)])),
    )
    judged = [each for each in whole(later, "prediction") if minutes(each)[0] == 42 and each.accuracy is not None]
    assert judged[-1].estimated_accuracy == first.estimated_accuracy
    assert judged[-1].accuracy == pytest.approx(truth)
    assert judged[-1].estimation_error == pytest.approx(first.estimated_accuracy - truth)


def test_without_past_labels_nothing_is_estimated() -> None:
    pairs = random_pairs(50, random.Random(1), over_s=60, delay_s=1)
    found = told(task(), (62, cohort(0, pairs, size_s=60)), (122, cohort(60, count=1, size_s=60)))
    assert [each.estimated_accuracy for each in found] == [None]


# --- what is bounded, and what is refused


def test_values_of_a_slice_beyond_the_cap_are_one() -> None:
    pairs = [right(number / 10, slices={"user": f"u{number}"}) for number in range(MAX_VALUES + 10)]
    found = told(task(), (5, outcomes(pairs)), (65, outcomes([right(65)])))
    by_value = {each.slice["user"]: each.labelled for each in found if each.slice}
    assert len(by_value) == MAX_VALUES + 1
    assert by_value[OTHER] == 10


def test_series_beyond_the_cap_are_counted_as_skipped() -> None:
    before = skipped("too_many_series")
    pairs = [right(1, version=f"v{number}") for number in range(MAX_SERIES + 5)]
    found = told(task(), (5, outcomes(pairs)), (65, outcomes([right(65, version="v0")])))
    assert len(found) == MAX_SERIES
    assert skipped("too_many_series") == before + 5


def test_cohorts_that_do_not_fit_are_told_for_the_last_time_before_their_horizon() -> None:
    """30 series, in which everything there is to count is counted."""
    rng = random.Random(1)
    policy = LabelPolicy(window="1h", horizon="7d")
    subject = QualityTask(Models((ModelPolicy(labels=policy),)), 3, max_bytes=60_000)
    before = skipped("closed_early")
    finals = []
    for hour in range(12):
        pairs = [
            Pair(
                prediction=rng.choice("abcdefgh"),
                label=rng.choice("abcdefgh"),
                confidence=rng.random(),
                predicted_s=hour * 3600,
                labelled_s=hour * 3600 + 1,
                score=rng.random(),
                slices={"tenant": rng.choice("abcdefghijklmn"), "country": rng.choice("opqrstuvwxyz123")},
            )
            for _ in range(300)
        ]
        at = (hour + 1) * 3600.0
        found = told(subject, (at, cohort(hour * 3600, count=300, size_s=3600)), (at, outcomes(pairs)))
        finals += [each for each in whole(found, "prediction") if each.final]
        assert len(subject.snapshot()) < 60_000
    assert [minutes(each)[0] for each in finals] == [60 * hour for hour in range(len(finals))]
    assert len(finals) == skipped("closed_early") - before > 0
    assert all(each.labelled == 300 for each in finals)


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (b"{", "invalid_json"),
        (b'{"schema":7,"type":"outcomes"}', "invalid_event"),
        (msgspec.structs.replace(outcomes([right(1)]), count=2), "unequal_lengths"),
        (msgspec.structs.replace(outcomes([right(1)]), slices={"tenant": []}), "unequal_lengths"),
        (msgspec.structs.replace(outcomes([right(1)]), labelled_unix_s=[-1.0]), "bad_time"),
        (cohort(0, count=1, size_s=-5), "bad_time"),
        (cohort(0, count=1, confidence={"a": [1, 2]}), "invalid_event"),
        (cohort(0, count=1, confidence={"a": [-1] * 50}), "invalid_event"),
    ],
)
def test_what_is_none_becomes_a_dead_letter(message: Message, reason: str) -> None:
    subject = task()
    [letter] = outputs(subject, [(1, message)])
    assert letter.topic == "deadletter"
    assert dict(letter.headers)["reason"] == reason.encode()
    assert outputs(subject, [(2, outcomes([]))]) == []


def test_another_policy_tells_what_there_is_and_begins_anew() -> None:
    subject = task()
    told(subject, (62, cohort(0, count=2, size_s=60)), (70, outcomes([wrong(70, predicted_s=30), right(70)])))
    told(subject, *((75 + number, TICK) for number in range(0, 40, 5)))
    again = task(window="2m")
    again.restore(subject.snapshot())
    found = told(again, (150, outcomes([right(150)])))
    assert {(each.by, each.size_s) for each in found} <= {("label", 60), ("prediction", 60)}
    assert any(each.final for each in found)
    [first] = told(again, (250, outcomes([right(250)])))
    assert (minutes(first), first.size_s) == ((2, 4), 120)


# --- anything at all

ABSURD: tuple[Any, ...] = (
    None,
    True,
    0.0,
    -0.0,
    1e308,
    -1e308,
    5e-324,
    0.1,
    "",
    "nan",
    "1e400",
    "x" * 300,
    "true",
    "1",
)
TIMES = (-1e9, -1000.0, -1.0, 0.0, 1.0, 50.0, 1e6)


def absurd(rng: random.Random, now: float) -> Outcomes | Cohort:
    count = rng.choice((0, 1, 3, 20))
    values = rng.choice((ABSURD, (0.0, 1.0), ("a", "b"), tuple(map(float, range(40))), (1e308, -1e308, 0.5)))

    def some(among: Sequence[Any]) -> list[Any]:
        return [rng.choice(among) for _ in range(count)]

    times = [[max(0.0, now + away) for away in some(TIMES)] for _ in range(2)]
    if rng.random() < 0.6:
        return Outcomes(
            service=rng.choice("st"), model="m", partition=3, count=count, event_id=some("e"),
            model_version=some((None, "v", "w" * 500)), predicted_unix_s=times[0], labelled_unix_s=times[1],
            prediction=some(values), confidence=some((None, 0.0, 1.0, -1.0, 1e308)), label=some(values),
            score=some((None, 1.0, 1e308)), rating=some((None, -1e300)), slices={"a": some((None, "x", "z" * 500))},
        )  # fmt: skip
    confidence = rng.choice(({}, {"1": [2**40] * 50}, {OTHER: [0] * 50}))
    return Cohort(
        service="s", model="m", slice=rng.choice(({}, {"a": "x"})), part="main", revision=0, start_unix_s=now,
        end_unix_s=now + 60, size_s=60.0, partition=3, count=rng.choice((0, 2**53 - 1)), with_id=rng.choice((0, 5)),
        confidence=confidence,
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(12))
def test_whatever_comes_is_told_in_numbers_that_can_be_read(seed: int) -> None:
    rng = random.Random(seed)
    policy: dict[str, Any] = {
        "window": rng.choice(("1s", "1m")),
        "task": rng.choice((None, "classification", "regression")),
        "positive": rng.choice((None, "a", 1.0, True)),
    }
    subject, now, found = task(**policy), T0, list[Quality]()
    for _ in range(40):
        now += rng.choice((0.0, 0.001, 5.0, 400.0, 1e5))
        found += told(subject, (now - T0, absurd(rng, now)))
    assert found
    again = task(**policy)
    again.restore(subject.snapshot())
    assert again.snapshot() == subject.snapshot()
