"""Results and records for the tests of the sinks."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import msgspec
import numpy as np

from streammon.broker import Headers, TopicPartition
from streammon.results import (
    Alert,
    Completeness,
    Counter,
    Distribution,
    Drift,
    Exemplar,
    Gauge,
    Interval,
    Loop,
    Quality,
    RetrainReason,
    Slo,
    Window,
)
from streammon.sketch import Sketch
from streammon_sinks.delivery import Item

START = 1_700_000_000.0


class StoredRecord(NamedTuple):
    """A record as a broker returns it."""

    partition: int
    offset: int
    value: bytes | None
    key: bytes | None = b"key"
    timestamp: int = 0
    headers: Headers = ()


def item(offset: int, value: Any, *, topic: str = "windows", partition: int = 0, key: bytes = b"key") -> Item:
    """A record of ``value``: a result, bytes as they are, or None for a tombstone."""
    raw = value if value is None or isinstance(value, bytes) else msgspec.json.encode(value)
    return Item(TopicPartition(topic, partition), StoredRecord(partition, offset, raw, key))


@cache
def distribution(*values: float) -> Distribution:
    array = np.array(values)
    sketch = Sketch.of(array)
    p50, p90, p99 = sketch.quantiles((0.5, 0.9, 0.99), min(values), max(values))
    return Distribution(
        count=len(values),
        sum=float(array.sum()),
        min=min(values),
        max=max(values),
        mean=float(array.mean()),
        p50=p50,
        p90=p90,
        p99=p99,
        sketch=sketch,
    )


def window(number: int = 0, **changes: Any) -> Window:
    """The ``number``-th window of a series of inferences, with something in most of its fields."""
    plain = Window(
        source="inference",
        part="main",
        revision=0,
        series={"service": "shop", "model": "ranker", "model_version": "3", "endpoint": "/rank"},
        start_unix_s=START + 2 * number,
        end_unix_s=START + 2 * number + 2,
        size_s=2.0,
        partition=0,
        count=4,
        throughput_per_s=2.0,
        completeness=Completeness(late=1, missing=2, watermark_unix_s=START + 1.5),
        error_count=1,
        error_rate=0.25,
        duration_s=distribution(0.1, 0.2, 0.3, 4.5),
        ttft_s=distribution(0.01, 0.02),
        input_tokens=distribution(100.0, 250.0),
        output_tokens=distribution(10.0, 20.0, 30.0),
        confidence=distribution(0.5, 0.9),
        gauges={"batch_size": Gauge(min=1.0, max=8.0, mean=4.5, last=2.0)},
        exemplars=[Exemplar(duration_s=4.5, trace_id="4bf92f3577b34da6a3ce929d0e0e4736", event_id="e4")],
        cost={"EUR": 0.125},
    )
    return msgspec.structs.replace(plain, **changes)


def rollup(size_s: float = 60.0, **changes: Any) -> Window:
    """A window that is made of windows."""
    return window(0, size_s=size_s, end_unix_s=START + size_s, of_s=2.0, **changes)


def resource_window(number: int = 0) -> Window:
    return window(
        number,
        source="resource",
        series={"host": "web-1", "entity": "cpu", "id": "total"},
        gauges={"utilization": Gauge(min=0.0, max=0.5, mean=0.25, last=0.5)},
        counters={"requests_total": Counter(sum=7.0, per_s=3.5)},
        distributions={"http.request.duration": distribution(0.1, 0.2, 4.0)},
        **dict.fromkeys(("duration_s", "ttft_s", "input_tokens", "output_tokens", "confidence", "cost")),
        **dict.fromkeys(("error_count", "error_rate", "exemplars")),
    )


def alert(transition: int = 0, id: str = "a1", **changes: Any) -> Alert:  # noqa: A002 - the field's name
    plain = Alert(
        id=id,
        rule="slow",
        rule_version="1",
        state="firing",
        severity="critical",
        labels={"service": "shop"},
        value=4.5,
        condition="p99 > 1 s for 10 s",
        summary="shop is slow",
        started_unix_s=START,
        updated_unix_s=START + transition,
        transition=transition,
        evidence={"windows": [{"start_unix_s": START}]},
    )
    return msgspec.structs.replace(plain, **changes)


def budget(number: int = 0, **changes: Any) -> Slo:
    """What is left of an error budget, ``number`` times 5 minutes later."""
    plain = Slo(
        slo="answers",
        series={"service": "shop"},
        objective=0.99,
        indicator="no error",
        window_s=2_592_000.0,
        partition=0,
        start_unix_s=START,
        end_unix_s=START + 300 * number,
        good=99 + number,
        total=100 + number,
        budget_left=0.25,
        burn_rates={"1h": 0.5},
    )
    return msgspec.structs.replace(plain, **changes)


def drift(number: int = 0, **changes: Any) -> Drift:
    """The ``number``-th test of a feature."""
    plain = Drift(
        service="shop",
        model="ranker",
        model_version="3",
        target="features.age",
        detector="psi",
        statistic=0.31,
        threshold=0.2,
        drifted=True,
        sample_size=500,
        start_unix_s=START + 60 * number,
        end_unix_s=START + 60 * number + 60,
        reference="r1",
    )
    return msgspec.structs.replace(plain, **changes)


def quality(number: int = 0, **changes: Any) -> Quality:
    """How good the predictions of the ``number``-th minute were, with something in most fields."""
    plain = Quality(
        service="shop",
        model="ranker",
        model_version="3",
        by="prediction",
        start_unix_s=START + 60 * number,
        end_unix_s=START + 60 * number + 60,
        size_s=60.0,
        partition=0,
        predictions=200,
        labelled=150,
        coverage=0.75,
        label_delay_s=distribution(1.0, 2.0, 4.0),
        accuracy=0.9,
        f1=0.85,
        estimated_accuracy=0.92,
        estimation_error=0.02,
        intervals={"accuracy": Interval(0.85, 0.94)},
    )
    return msgspec.structs.replace(plain, **changes)


def quality_of_slice(number: int = 0, **changes: Any) -> Quality:
    """The same of one group."""
    intervals = {"accuracy": Interval(0.7, 0.8), "disparity.accuracy": Interval(-0.2, -0.1)}
    fields = {"slice": {"tenant": "acme"}, "accuracy": 0.75, "disparity": {"accuracy": -0.15}, "intervals": intervals}
    return quality(number, **(fields | changes))


def loop(transition: int = 0, id: str = "l1", **changes: Any) -> Loop:  # noqa: A002 - the field's name
    """A retraining that was asked for, ``transition`` steps later."""
    plain = Loop(
        id=id,
        service="shop",
        model="ranker",
        action="retrain",
        state="awaiting_approval",
        transition=transition,
        time_unix_s=START + transition,
        requested_unix_s=START,
        times={"awaiting_approval": START},
        reasons=[RetrainReason(alert_id="a1", rule="drifted", summary="age drifted", time_unix_s=START)],
        old_version="3",
    )
    return msgspec.structs.replace(plain, **changes)
