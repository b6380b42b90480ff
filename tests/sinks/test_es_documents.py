"""Documents: everything a result says is in its document, under the documented names."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from streammon.results import DISTRIBUTIONS, Gauge, Quality
from streammon_sinks.es_documents import (
    ALERTS,
    DISTRIBUTION_NAMES,
    DRIFT,
    LOOPS,
    MEASURES,
    QUALITY,
    RESOURCES,
    ROLLUPS,
    SLOS,
    WINDOWS,
    alert_document,
    budget_document,
    drift_document,
    index_template,
    loop_document,
    quality_document,
    stream_of,
    window_document,
)
from streammon_sinks.ids import budget_record_id, drift_record_id, quality_record_id
from tests.sinks.builders import (
    START,
    alert,
    budget,
    distribution,
    drift,
    loop,
    quality,
    quality_of_slice,
    resource_window,
    rollup,
    window,
)

FULL = window(0, part="late", revision=2, **{name: distribution(1.0, 2.0, 3.5) for name in DISTRIBUTIONS})

FULL_QUALITY = msgspec.structs.replace(quality_of_slice(unmatched_labels=1), **dict.fromkeys(MEASURES, 0.5))

FULL_DRIFT = drift(p_value=0.01, effect=0.3, q_value=0.02, weight=1.0, reference_size=1000, reason="too_few_samples")
FULL_LOOP = loop(
    state="closed", outcome="helped", by="ann", new_version="4", job="j", run_id="r", why="better", detail="by 4 %",
    deadline_unix_s=START,
)  # fmt: skip


def test_every_field_of_a_window_is_in_its_document_unchanged() -> None:
    document = window_document(FULL)
    for field, value in msgspec.to_builtins(FULL).items():
        if field == "series":
            assert document["labels"] == value
        elif field in DISTRIBUTION_NAMES:
            assert document[DISTRIBUTION_NAMES[field]] == value
        else:
            assert document["streammon"][field] == value


def test_what_has_a_conventional_name_is_under_it() -> None:
    document = window_document(window())
    assert (
        document
        | {
            "@timestamp": START * 1000,
            "ecs.version": "8.17.0",
            "event.kind": "metric",
            "event.category": ["api"],
            "event.module": "streammon",
            "event.dataset": "streammon.window",
            "event.start": START * 1000,
            "event.end": (START + 2) * 1000,
            "event.duration": 2_000_000_000,
            "service.name": "shop",
            "http.route": "/rank",
            "gen_ai.request.model": "ranker",
            "gen_ai.usage.input_tokens": 350,
            "gen_ai.usage.output_tokens": 60,
            "trace.id": ["4bf92f3577b34da6a3ce929d0e0e4736"],
        }
        == document
    )
    assert document["gen_ai.server.request.duration"]["p99"] == window().duration_s.p99  # type: ignore[union-attr] # set
    assert document["streammon"]["semconv"] == "1.37.0"


def test_a_resource_window_belongs_to_its_host() -> None:
    document = window_document(resource_window())
    assert document["host.name"] == "web-1"
    assert document["event.category"] == ["host"]
    assert document["event.dataset"] == "streammon.resource"
    assert document["streammon"]["gauges"]["utilization"] == {"min": 0.0, "max": 0.5, "mean": 0.25, "last": 0.5}


def test_rollups_are_in_a_data_stream_of_their_own() -> None:
    assert [stream_of(each) for each in (window(), rollup(), rollup(source="resource"))] == [WINDOWS, ROLLUPS, ROLLUPS]
    assert window_document(rollup())["event.dataset"] == "streammon.rollup"


def test_a_window_of_no_series_is_a_document_too() -> None:
    document = window_document(window(series={}, count=0))
    assert document["labels"] == {}
    assert "service.name" not in document


def test_every_field_of_an_alert_is_in_its_document() -> None:
    document = alert_document(alert(2))
    fields = msgspec.to_builtins(alert(2))
    assert document["labels"] == fields.pop("labels")
    assert document["streammon"] == fields | {"semconv": "1.37.0"}
    assert document["event.action"] == "firing"
    assert document["@timestamp"] == (START + 2) * 1000


@pytest.mark.parametrize(
    ("stream", "documents"),
    [
        (WINDOWS, [window_document(FULL), window_document(window())]),
        (RESOURCES, [window_document(resource_window())]),
        (ROLLUPS, [window_document(rollup(kind="hopping", every_s=30.0)), window_document(rollup(gap_s=9.0))]),
        (DRIFT, [drift_document(FULL_DRIFT)]),
        (QUALITY, [quality_document(FULL_QUALITY)]),
        (LOOPS, [loop_document(FULL_LOOP)]),
        (ALERTS, [alert_document(alert(contact="ops", escalation=["boss"], resolution_steps=["restart"]))]),
    ],
)
def test_every_field_of_a_document_is_mapped(stream: str, documents: list[dict[str, Any]]) -> None:
    properties = index_template(stream)["template"]["mappings"]["properties"]
    for document in documents:
        assert [name for name in leaves(document) if not mapped(name.split("."), properties)] == []


def leaves(value: Any, path: str = "") -> list[str]:
    if not isinstance(value, dict):
        return [path]
    return [leaf for key, inner in value.items() for leaf in leaves(inner, f"{path}.{key}" if path else key)]


def mapped(name: list[str], properties: dict[str, Any]) -> bool:
    """Whether a field is mapped by name, or lies in an object that takes any."""
    for length in range(1, len(name) + 1):
        field = properties.get(".".join(name[:length]))
        if field and ("properties" not in field or mapped(name[length:], field["properties"])):
            return True
    return False


@pytest.mark.parametrize(("name", "path"), [("", "_"), ("a..b", "a._.b"), (" ", "_"), (".", "_._"), ("a.b", "a.b")])
def test_a_gauge_of_any_name_is_a_field_that_elasticsearch_takes(name: str, path: str) -> None:
    gauge = Gauge(min=1.0, max=1.0, mean=1.0, last=1.0)
    document = window_document(msgspec.structs.replace(resource_window(), gauges={name: gauge}))
    assert list(document["streammon"]["gauges"]) == [path]


def test_a_sum_of_tokens_beyond_a_long_is_still_a_long() -> None:
    assert FULL.input_tokens is not None
    tokens = msgspec.structs.replace(FULL.input_tokens, sum=2.0**70)
    document = window_document(msgspec.structs.replace(FULL, input_tokens=tokens))
    assert document["gen_ai.usage.input_tokens"] == 2**63 - 1


def test_an_error_budget_is_a_document_of_its_own_stream() -> None:
    document = budget_document(budget(1))
    assert document["event.dataset"] == "streammon.slo"
    assert (document["labels"], document["service.name"]) == ({"service": "shop"}, "shop")
    assert (document["@timestamp"], document["streammon"]["budget_left"]) == (round((START + 300) * 1000), 0.25)
    mapped = index_template(SLOS)["template"]["mappings"]["properties"]["streammon"]["properties"]
    assert set(document["streammon"]) == set(mapped)


def test_each_record_about_an_error_budget_has_an_id_of_its_own() -> None:
    told = [budget(0), budget(1), budget(1, total=200), budget(1, slo="other"), budget(1, partition=1)]
    assert len({budget_record_id(each) for each in told}) == len(told)
    assert budget_record_id(budget(1)) == budget_record_id(budget(1))


def test_drift_is_a_document_of_its_model() -> None:
    document = drift_document(drift())
    assert document["labels"] == {
        "service": "shop", "model": "ranker", "model_version": "3", "target": "features.age", "detector": "psi",
    }  # fmt: skip
    assert (document["service.name"], document["gen_ai.request.model"]) == ("shop", "ranker")
    assert (document["@timestamp"], document["event.duration"]) == (START * 1000, 60_000_000_000)
    assert document["streammon"].items() >= msgspec.to_builtins(drift()).items()


def test_a_quality_is_a_document_of_its_model_and_slice() -> None:
    told = quality_of_slice(revision=2)
    document = quality_document(told)
    assert document["labels"] == {
        "service": "shop", "model": "ranker", "model_version": "3", "by": "prediction", "tenant": "acme",
    }  # fmt: skip
    assert document["streammon"]["intervals"]["disparity.accuracy"] == {"low": -0.2, "high": -0.1}
    fields = msgspec.to_builtins(told)
    del fields["intervals"]
    assert document["streammon"].items() >= fields.items()


def test_revisions_are_documents_of_one_event() -> None:
    told = [quality(0), quality(0, revision=1)]
    assert len({quality_record_id(each) for each in told}) == 2
    assert len({quality_document(each)["event.id"] for each in told}) == 1
    assert drift_record_id(drift(0)) != drift_record_id(drift(0, sample_size=600))


def test_a_transition_of_a_retraining_is_a_document_with_its_outcome() -> None:
    document = loop_document(FULL_LOOP)
    assert (document["event.id"], document["event.action"], document["event.outcome"]) == ("l1", "closed", "success")
    assert document["labels"] == {"service": "shop", "model": "ranker"}
    assert document["streammon"].items() >= msgspec.to_builtins(FULL_LOOP).items()
    assert "event.outcome" not in loop_document(loop())


def test_every_measure_is_named() -> None:
    floats = {name for name, kind in Quality.__annotations__.items() if kind == "float | None"}
    assert floats - {"coverage"} == set(MEASURES)
