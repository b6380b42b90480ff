"""The referee of the benchmark beside others: its log, its exact answer, and what it notices in results."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import replace

import msgspec
import pytest

from bench.pipeline import Stored
from bench.rivals.results import Row, Score, read_streammon
from bench.rivals.workload import LATENESS_S, PARTITIONS, WINDOW_S, Truth, Window, Workload
from streammon.config import WindowSettings
from streammon_processors.windows import WindowTask

WORKLOAD = Workload(events=20_000, start_unix_s=1_700_000_000)


@pytest.fixture(scope="module")
def truth() -> dict[Window, Truth]:
    return WORKLOAD.truth()


def row(window: Window, truth: Truth) -> Row:
    (p50, _), (p90, _), (p99, _) = truth.quantiles
    rates = truth.errors / truth.count, truth.count / WINDOW_S
    return Row(*window, truth.count, truth.errors, *rates, p50, p90, p99)


def test_truth_is_what_one_gets_by_counting_the_messages(truth: dict[Window, Truth]) -> None:
    durations = defaultdict(list)
    for message in WORKLOAD.messages():
        event = json.loads(message.value)
        start = int(event["time_unix_s"]) // WINDOW_S * WINDOW_S
        if start < WORKLOAD.end_unix_s:
            durations[Window(event["model"], event["endpoint"], start)].append(event["duration_s"])
    assert {window: len(values) for window, values in durations.items()} == {w: t.count for w, t in truth.items()}
    for window, values in durations.items():
        middle = sorted(values)[(len(values) - 1) // 2]
        assert truth[window].quantiles[0][0] == middle


def test_log_is_out_of_order_but_never_beyond_the_lateness() -> None:
    newest, disordered = [0.0] * PARTITIONS, 0
    for message in WORKLOAD.messages():
        time = json.loads(message.value)["time_unix_s"]
        assert time > newest[message.partition] - LATENESS_S
        disordered += time < newest[message.partition]
        newest[message.partition] = max(newest[message.partition], time)
    assert 0.05 * WORKLOAD.events < disordered < 0.15 * WORKLOAD.events


def test_exact_result_is_complete_and_right(truth: dict[Window, Truth]) -> None:
    score = Score(truth, 0.0)
    for window, expected in truth.items():
        score.add(row(window, expected))
    assert (score.missing, score.wrong, score.duplicate) == (0, 0, 0)


def test_row_that_does_not_come_is_missing_and_one_that_comes_twice_a_duplicate(truth: dict[Window, Truth]) -> None:
    _, *others = truth.items()
    score = Score(truth, 0.0)
    for window, expected in [*others, *others[:3]]:
        score.add(row(window, expected))
    assert (score.missing, score.wrong, score.duplicate) == (1, 0, 3)


@pytest.mark.parametrize(
    "change", [{"count": 1}, {"error_count": 99}, {"error_rate": 0.5}, {"throughput_per_s": 1.0}, {"p99": 9.0}]
)
def test_row_with_one_wrong_figure_is_wrong(truth: dict[Window, Truth], change: dict[str, float]) -> None:
    score = Score(truth, 0.01)
    window, expected = next(iter(truth.items()))
    score.add(msgspec.structs.replace(row(window, expected), **change))
    assert score.wrong == 1


def test_quantile_may_be_off_by_the_error_of_the_sketch_and_no_more(truth: dict[Window, Truth]) -> None:
    window, expected = next(iter(truth.items()))
    exact = row(window, expected)
    within, beyond = Score(truth, 0.01), Score(truth, 0.01)
    within.add(msgspec.structs.replace(exact, p50=exact.p50 * 0.991))
    beyond.add(msgspec.structs.replace(exact, p50=exact.p50 * 0.989))
    assert (within.wrong, beyond.wrong) == (0, 1)


def test_row_of_a_window_that_never_was_is_wrong_and_of_the_closing_events_is_nothing(
    truth: dict[Window, Truth],
) -> None:
    score = Score(truth, 0.01)
    window, expected = next(iter(truth.items()))
    score.add(row(window._replace(endpoint="/v1/other"), expected))
    assert (score.wrong, score.duplicate, score.seen) == (1, 0, 1)
    score.add(row(window._replace(start_unix_s=WORKLOAD.end_unix_s), replace(expected, count=1)))
    assert (score.wrong, score.seen) == (1, 1)


def test_windows_task_gives_the_exact_result(truth: dict[Window, Truth]) -> None:
    settings = WindowSettings(size_s=WINDOW_S, lateness_s=LATENESS_S, inference_by=("model", "endpoint"))
    now_ms = (WORKLOAD.end_unix_s + 3600) * 1000
    score = Score(truth, 0.0055)
    for partition in range(PARTITIONS):
        values = [message.value.encode() for message in WORKLOAD.messages() if message.partition == partition]
        records = [Stored(partition, offset, now_ms, None, value) for offset, value in enumerate(values)]
        for output in WindowTask(partition, settings).process("inference", records):
            score.add(read_streammon(output.value or b""))
    assert (score.missing, score.wrong, score.duplicate) == (0, 0, 0)
