"""Metrics of a service's own: added up exactly, bounded, and nothing that is no number."""

from __future__ import annotations

import math
import sys
import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streammon.events import EventType
from streammon.results import OTHER
from streammon.sketch import Sketch
from streammon_agents import Monitor
from streammon_agents.packing import Batch
from streammon_agents.sdk import metrics
from streammon_agents.sdk.metrics import Metrics, Sample
from tests.agents.test_llm import Sent
from tests.support import wait_until


def taken(*samples: Sample) -> list[dict[str, Any]]:
    adding = Metrics()
    for sample in samples:
        assert adding.add(sample)
    return adding.take(1.0, all_=True)


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50))
def test_observations_become_a_sketch_with_an_exact_sum(values: list[float]) -> None:
    [event] = taken(*(Sample("observe", "size", value, {}) for value in values))
    found = event["histograms"]["size"]
    assert found["sum"] == sum(values)
    assert (found["min"], found["max"]) == (min(values), max(values))
    assert Sketch.from_wire(found["sketch"]) == Sketch.of(np.array(values))


def test_more_observations_than_are_kept_make_the_same_sketch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "MAX_VALUES", 7)
    values = [1.5**step for step in range(100)]
    [event] = taken(*(Sample("observe", "size", value, {}) for value in values))
    assert Sketch.from_wire(event["histograms"]["size"]["sketch"]) == Sketch.of(np.array(values))


def test_counts_add_gauges_are_the_last_and_labels_are_kept_apart() -> None:
    events = taken(
        Sample("count", "refunds", 1, {"shop": "berlin"}),
        Sample("count", "refunds", 2.5, {"shop": "berlin"}),
        Sample("count", "refunds", 1, {"shop": "paris"}),
        Sample("gauge", "open", 3, {"shop": "berlin"}),
        Sample("gauge", "open", 2, {"shop": "berlin"}),
    )
    berlin, paris = sorted(events, key=lambda event: event["labels"]["shop"])
    assert (berlin["counters"], berlin["metrics"]) == ({"refunds": 3.5}, {"open": 2})
    assert (paris["counters"], paris["metrics"]) == ({"refunds": 1}, {})


@pytest.mark.parametrize(
    "sample",
    [
        Sample("count", "n", -1, {}),
        Sample("gauge", "n", math.nan, {}),
        Sample("observe", "n", math.inf, {}),
        Sample("gauge", "n", "many", {}),  # type: ignore[arg-type]  # as services do
        Sample("gauge", "\ud800", 1, {}),
        Sample("gauge", "n", 1, {"a": "\ud800"}),
    ],
)
def test_what_is_no_number_is_refused(sample: Sample) -> None:
    adding = Metrics()
    assert not adding.add(sample)
    assert adding.take(1.0, all_=True) == []


def test_sum_beyond_the_largest_float_is_the_largest_float() -> None:
    [event] = taken(*[Sample("count", "n", 1.7e308, {})] * 2, *[Sample("observe", "m", -1.7e308, {})] * 2)
    assert event["counters"]["n"] == sys.float_info.max
    assert event["histograms"]["m"]["sum"] == -sys.float_info.max


def test_beyond_the_bounds_the_rest_is_added_up_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "MAX_SERIES", 2)
    monkeypatch.setattr(metrics, "MAX_NAMES", 1)
    events = taken(*(Sample("count", f"n{number % 3}", 1, {"user": number}) for number in range(9)))
    assert len(events) == 3
    assert sum(sum(event["counters"].values()) for event in events) == 9
    [rest] = [event for event in events if event["labels"] == {"series": OTHER}]
    assert set(rest["counters"]) == {"n2", OTHER}


def test_metrics_of_all_threads_arrive_once_and_exactly() -> None:
    sent = Sent()
    monitor = Monitor(service="shop", host="here", transport=lambda: sent)

    def work() -> None:
        for _ in range(1000):
            monitor.count("requests", route="/")
            monitor.observe("rows", 10)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    monitor.gauge("workers", 4)
    wait_until(lambda: monitor.stats.waiting == 0)
    monitor.close()
    events = sent.events()
    assert sum(event.get("counters", {}).get("requests", 0) for event in events) == 4000
    assert sum(event["histograms"]["rows"].sum for event in events if "histograms" in event) == 40_000
    assert {(event["host"], event["entity"], event["id"]) for event in events} == {("here", "service", "shop")}
    assert monitor.stats.dropped == 0


def test_metric_that_is_no_number_is_counted_as_dropped_and_never_raises() -> None:
    transport = Sent()
    monitor = Monitor(service="shop", transport=lambda: transport)
    monitor.gauge("broken", float("nan"))
    monitor.count("fine")
    monitor.close()
    assert monitor.stats.dropped == 1
    assert sum(batch.dropped for batch in transport.batches) == 1


def test_what_was_counted_while_the_last_events_are_sent_is_sent_too() -> None:
    sending, release = threading.Event(), threading.Event()

    class Slow(Sent):
        def send(self, batch: Batch) -> None:
            if batch.event_type is EventType.INFERENCE:
                sending.set()
                assert release.wait(10)
            super().send(batch)

    sent = Slow()
    watching = Monitor(service="shop", model="ranker", transport=lambda: sent)
    watching.count("n")
    wait_until(lambda: watching.stats.sent == 1)
    watching.count("n")  # added up, and not due for a second
    watching.record(duration_s=0.1)
    assert sending.wait(10)
    ending = threading.Thread(target=watching.close)
    ending.start()
    wait_until(lambda: watching._courier._closing)
    release.set()
    ending.join(10)
    assert sum(event.get("counters", {}).get("n", 0.0) for event in sent.events()) == 2.0
