"""OTLP from the real sender, and from whoever means no good: what is published, what is answered."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from opentelemetry._logs import SeverityNumber
from opentelemetry.metrics import CallbackOptions, Observation
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import SimpleLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.metrics.view import ExponentialBucketHistogramAggregation, View
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind, StatusCode

from streammon.broker.embedded import EmbeddedBroker
from streammon.errors import Backpressure
from streammon.events import EventType, Histogram
from streammon.histograms import from_buckets
from streammon.sketch import Sketch, bucket_index
from streammon.topics import topic_specs
from streammon.wire import decode
from streammon_agents.agent import run_agent
from streammon_agents.gateway.otlp.source import OtlpSource
from streammon_agents.source import Event
from tests.agents.otlp_senders import WAYS, Listening, Way, listening, settings_of
from tests.outlets import Kept
from tests.support import eventually

pytest.importorskip("grpc")

SERVICE = Resource.create({"service.name": "shop", "service.instance.id": "shop-1"})


# --- the real sender ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
async def test_spans_of_the_sdk_become_inference_events(tmp_path: Path, way: Way) -> None:
    async with listening(tmp_path) as here:
        provider = TracerProvider(resource=SERVICE)
        provider.add_span_processor(BatchSpanProcessor(here.exporter("traces", way)))
        sent = await asyncio.to_thread(_trace, provider)
    request, call = (here.out.of(EventType.INFERENCE)[n] for n in (0, 1))
    assert request == {
        "time_unix_s": sent["request"].end_time / 10**9,
        "service": "shop",
        "model": "-",
        "endpoint": "/chat/{id}",
        "host": "here",
        "duration_s": (sent["request"].end_time - sent["request"].start_time) / 10**9,
        "status": "error",
        "error_type": "503",
        "http_status": 503.0,
        "trace_id": f"{sent['request'].context.trace_id:032x}",
        "span_id": f"{sent['request'].context.span_id:016x}",
    }
    assert call == {
        "time_unix_s": sent["call"].end_time / 10**9,
        "service": "shop",
        "model": "gpt-4o",
        "model_version": "gpt-4o-2024-08-06",
        "endpoint": "chat",
        "host": "here",
        "duration_s": (sent["call"].end_time - sent["call"].start_time) / 10**9,
        "status": "error",
        "error_type": "TimeoutError",
        "trace_id": f"{sent['call'].context.trace_id:032x}",
        "span_id": f"{sent['call'].context.span_id:016x}",
        "provider": "openai",
        "event_id": "chatcmpl-1",
        "input_tokens": 310.0,
        "output_tokens": 17.0,
        "cache_read_tokens": 256.0,
        "ttft_s": 0.125,
        "features": {"finish_reason": "length"},
    }
    assert len(here.out.events) == 2, "the inner step and the database are ignored"
    assert not here.out.refused


def _trace(provider: TracerProvider) -> dict[str, Any]:
    tracer = provider.get_tracer("test")
    spans: dict[str, Any] = {}
    with tracer.start_as_current_span("POST /chat/{id}", kind=SpanKind.SERVER) as spans["request"]:
        spans["request"].set_attributes({"http.request.method": "POST", "http.route": "/chat/{id}"})
        with tracer.start_as_current_span("think"):
            pass
        with tracer.start_as_current_span("SELECT", kind=SpanKind.CLIENT) as query:
            query.set_attributes({"db.system": "postgresql"})
        with tracer.start_as_current_span("chat gpt-4o", kind=SpanKind.CLIENT) as spans["call"]:
            spans["call"].set_attributes(
                {
                    "gen_ai.operation.name": "chat",
                    "gen_ai.provider.name": "openai",
                    "gen_ai.request.model": "gpt-4o",
                    "gen_ai.response.model": "gpt-4o-2024-08-06",
                    "gen_ai.response.id": "chatcmpl-1",
                    "gen_ai.response.finish_reasons": ["length", "stop"],
                    "gen_ai.response.time_to_first_chunk": 0.125,
                    "gen_ai.usage.input_tokens": 310,
                    "gen_ai.usage.output_tokens": 17,
                    "gen_ai.usage.cache_read.input_tokens": 256,
                    "gen_ai.input.messages": '[{"role": "user", "content": "a secret"}]',
                }
            )
            spans["call"].record_exception(TimeoutError("after 30 s"))
            spans["call"].set_status(StatusCode.ERROR)
        spans["request"].set_attribute("http.response.status_code", 503)
    provider.shutdown()
    return spans


class Sender:
    """A process with metrics: a counter, two histograms, an up-down counter and a gauge."""

    def __init__(self, here: Listening, way: Way) -> None:
        exponential = View(instrument_name="latency", aggregation=ExponentialBucketHistogramAggregation(max_size=160))
        reader = PeriodicExportingMetricReader(here.exporter("metrics", way), export_interval_millis=3_600_000)
        self.provider = MeterProvider([reader], resource=SERVICE, views=[exponential])
        meter = self.provider.get_meter("test")
        self.requests = meter.create_counter("requests")
        self.size = meter.create_histogram("size", explicit_bucket_boundaries_advisory=[10.0, 100.0])
        self.latency = meter.create_histogram("latency")
        self.queued = meter.create_up_down_counter("queued")
        meter.create_observable_gauge("temperature", [self._temperature])

    def _temperature(self, _: CallbackOptions) -> Iterator[Observation]:
        yield Observation(36.5)

    async def export(self) -> None:
        await asyncio.to_thread(self.provider.force_flush)

    async def end(self) -> None:
        await asyncio.to_thread(self.provider.shutdown)


def added(here: Listening, name: str) -> float:
    found = [event.get("counters", {}).get(name, 0.0) for event in here.out.of(EventType.RESOURCE)]
    return float(sum(found))


def histograms(here: Listening, name: str) -> list[Histogram]:
    events = here.out.of(EventType.RESOURCE)
    return [event["histograms"][name] for event in events if name in (event.get("histograms") or {})]


def total(found: list[Histogram]) -> Sketch:
    whole = Sketch.of_equal(0.0, 0)
    for histogram in found:
        whole = whole.merge(histogram.sketch)
    return whole


@pytest.mark.parametrize("way", WAYS)
async def test_metrics_of_the_sdk_become_resource_events_that_add_up(tmp_path: Path, way: Way) -> None:
    latencies = [0.001 * 1.1**n for n in range(150)]
    async with listening(tmp_path) as here:
        first = Sender(here, way)
        first.requests.add(5, {"route": "/a"})
        first.requests.add(2, {"route": "/b"})
        first.queued.add(3)
        first.queued.add(-1)
        for latency in latencies[:10]:
            first.latency.record(latency)
        first.size.record(7)
        await first.export()
        first.requests.add(1, {"route": "/a"})
        first.queued.add(-2)
        for latency in latencies[10:60]:  # its scale falls as they spread
            first.latency.record(latency)
        first.size.record(70)
        await first.end()
        second = Sender(here, way)  # a restart: its totals begin again
        second.requests.add(4, {"route": "/a"})
        for latency in latencies[60:]:
            second.latency.record(latency)
        second.size.record(700)
        await second.end()
    assert not here.out.refused
    assert added(here, "requests") == 12
    by_route = [
        (event["labels"]["route"], event["counters"]["requests"])
        for event in here.out.of(EventType.RESOURCE)
        if "requests" in (event.get("counters") or {})
    ]
    assert by_route == [("/a", 5.0), ("/b", 2.0), ("/a", 1.0), ("/b", 0.0), ("/a", 4.0)]
    plain = [event["metrics"] for event in here.out.of(EventType.RESOURCE) if event["metrics"]]
    assert plain == [{"queued": 2.0, "temperature": 36.5}, {"queued": 0.0, "temperature": 36.5}, {"temperature": 36.5}]
    found = histograms(here, "latency")
    assert sum(each.sum for each in found) == pytest.approx(sum(latencies), rel=1e-12)
    assert total(found).count == len(latencies)
    assert found[0].min == latencies[0]
    assert found[-1].max == latencies[-1]
    sketch = total(found)
    assert sketch == _at(latencies, sketch.scale)
    sizes = histograms(here, "size")
    assert [each.sum for each in sizes] == [7.0, 70.0, 700.0]
    expected = from_buckets([10.0, 100.0], [1, 1, 1])
    assert total(sizes) == expected
    event = here.out.of(EventType.RESOURCE)[0]
    assert (event["host"], event["entity"], event["id"]) == ("here", "service", "shop")
    assert event["labels"]["instance"] == "shop-1"


def _at(values: list[float], scale: int) -> Sketch:
    """The sketch of values at a coarser scale, made by ourselves from each alone."""
    indices = bucket_index(np.array(values), scale)
    counts = np.bincount(indices - indices.min())
    return Sketch.of_buckets(scale, 0, int(indices.min()), counts.tolist())


@pytest.mark.parametrize("way", WAYS)
async def test_logs_of_the_sdk_become_log_events(tmp_path: Path, way: Way) -> None:
    async with listening(tmp_path) as here:
        provider = LoggerProvider(resource=SERVICE)
        provider.add_log_record_processor(SimpleLogRecordProcessor(here.exporter("logs", way)))
        logger = provider.get_logger("shop.payments")
        emit = partial(
            logger.emit,
            timestamp=1_700_000_000_500_000_000,
            severity_number=SeverityNumber.WARN2,
            body={"what": "refused", "tries": [1, 2.5, None]},
            attributes={
                "event.category": "audit",
                "event.outcome": "failure",
                "user.id": "u7",
                "amount": 12,
                "exception.type": "Declined",
                "exception.message": "no funds",
            },
            event_name="payment",
        )
        await asyncio.to_thread(emit)
        await asyncio.to_thread(provider.shutdown)
    assert here.out.of(EventType.LOG) == [
        {
            "time_unix_s": 1_700_000_000.5,
            "service": "shop",
            "message": '{"what":"refused","tries":[1,2.5,null]}',
            "level": "warn",
            "category": "audit",
            "outcome": "failure",
            "user": "u7",
            "operation": "payment",
            "error": {"type": "Declined", "message": "no funds"},
            "fields": {"host": "here", "instance": "shop-1", "logger": "shop.payments", "amount": 12},
        }
    ]


class FullAtFirst(Kept):
    """Takes nothing the first time."""

    async def send(self, event_type: EventType, events: Sequence[Event]) -> None:
        self.failure, failure = None, self.failure
        if failure is not None:
            raise failure
        await super().send(event_type, events)


@pytest.mark.parametrize("way", WAYS)
async def test_the_sdk_comes_back_when_it_was_told_to(tmp_path: Path, way: Way) -> None:
    async with listening(tmp_path, FullAtFirst(Backpressure("full", 0.02))) as here:
        sender = Sender(here, way)
        sender.requests.add(5)
        await sender.end()
        assert here.out.failure is None, "it was refused once"
    assert added(here, "requests") == 5


async def test_what_was_answered_is_in_the_log(tmp_path: Path) -> None:
    """The whole way: the SDK, the agent as it is, and an embedded log."""
    settings = settings_of(tmp_path)
    broker, stop = await EmbeddedBroker.open(settings), asyncio.Event()
    await broker.create_topics(topic_specs(partitions=2))
    source = OtlpSource(settings)
    running = asyncio.create_task(run_agent(broker, settings, stop=stop, sources=[source]))
    await eventually(lambda: len(source.ports) == 2)
    provider = TracerProvider(resource=SERVICE)
    provider.add_span_processor(BatchSpanProcessor(Listening(source, Kept()).exporter("traces", "gRPC")))
    await asyncio.to_thread(_trace, provider)  # it returns once it has been answered
    reader = await broker.reader(["inference"])
    ends, values = await reader.ends(), list[bytes]()
    while reader.positions() != ends:
        values += [record.value or b"" for records in (await reader.poll()).values() for record in records]
    batches = [batch for value in values for batch in decode(EventType.INFERENCE, value)]
    models = [batch.rows.value("model", row) for batch in batches for row in range(len(batch.rows))]
    stop.set()
    await running
    await broker.close()
    assert sorted(models) == ["-", "gpt-4o"]
    assert all(batch.identity is not None for batch in batches), "numbered, so that it is counted once"
