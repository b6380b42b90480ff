"""`streammon up` takes what services speak already: OTLP and CloudEvents, at the page's address."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import SpanKind

from tests.support import cli, wait_until

SERVICE = Resource({"service.name": "shop", "service.instance.id": "a"})


@contextmanager
def up(data: Path, port: int) -> Iterator[str]:
    process = cli("up", "--data-dir", data, "--port", port, "--log-level", "warning")
    address = f"http://127.0.0.1:{port}"

    def reachable() -> bool:
        try:
            with urllib.request.urlopen(f"{address}/healthz", timeout=1) as response:
                return bool(response.status == 200)
        except OSError:
            return False

    try:
        wait_until(reachable, 40, "the page")
        yield address
    finally:
        process.terminate()
        assert process.wait(15) == 0


def queried(data: Path, *arguments: str) -> list[dict[str, Any]]:
    command = ["-c", "from streammon.cli import main; main()", "query", *arguments, "--output", "json"]
    done = subprocess.run([sys.executable, *command, "--data-dir", str(data)], capture_output=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def count_and_observe(address: str) -> None:
    reader = PeriodicExportingMetricReader(OTLPMetricExporter(f"{address}/v1/metrics"), 60_000)
    provider = MeterProvider([reader], SERVICE)
    counter = provider.get_meter("m").create_counter("refunds")
    sizes = provider.get_meter("m").create_histogram("basket", explicit_bucket_boundaries_advisory=[1, 10])
    for amount in (5, 7):
        counter.add(amount, {"shop": "berlin"})
        sizes.record(amount)
        provider.force_flush()
    provider.shutdown()


def ask_a_model(address: str) -> None:
    provider = TracerProvider(resource=SERVICE)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(f"{address}/v1/traces")))
    said: dict[str, str | int] = {
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "gpt-x",
        "gen_ai.usage.output_tokens": 20,
    }
    for _ in range(3):
        with provider.get_tracer("t").start_as_current_span("chat gpt-x", kind=SpanKind.CLIENT, attributes=said):
            pass
    provider.shutdown()


def send_cloudevents(address: str) -> None:
    for kind, data in (("request", {"instances": [[1.0, 2.0]]}), ("response", {"predictions": [0.5]})):
        headers = {
            "Content-Type": "application/json",
            "ce-specversion": "1.0",
            "ce-id": "r1",
            "ce-type": f"org.kubeflow.serving.inference.{kind}",
            "ce-source": "http://localhost:9081/",
            "ce-inferenceservicename": "sklearn-iris",
            "ce-namespace": "ns",
            "ce-time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        }
        request = urllib.request.Request(f"{address}/v1/cloudevents", json.dumps(data).encode(), headers)
        with urllib.request.urlopen(request, timeout=10) as response:
            assert response.status < 300


def test_what_services_speak_already_becomes_windows_with_the_same_totals(tmp_path: Path, free_port: int) -> None:
    with up(tmp_path, free_port) as address:
        count_and_observe(address)
        ask_a_model(address)
        send_cloudevents(address)

        def windows(**wanted: str) -> list[dict[str, Any]]:
            where = [part for name, value in wanted.items() for part in ("--where", f"{name}={value}")]
            source = "resource" if "entity" in wanted else "inference"
            return queried(tmp_path, "windows", "--since", "10m", "--source", source, *where)

        def counted(name: str, **wanted: str) -> float:
            return sum((each.get(name) or 0) for each in windows(**wanted))

        wait_until(lambda: counted("count", service="shop", model="gpt-x") == 3, 30, "spans")
        wait_until(lambda: counted("count", service="sklearn-iris.ns") == 1, 30, "CloudEvents")

        def totals() -> tuple[float, float, int]:
            mine = windows(entity="service", id="shop")
            refunds = sum((each.get("counters") or {}).get("refunds", {}).get("sum", 0) for each in mine)
            baskets = [
                each["distributions"]["basket"] for each in mine if "basket" in (each.get("distributions") or {})
            ]
            return refunds, sum(each["sum"] for each in baskets), sum(each["count"] for each in baskets)

        wait_until(lambda: totals() == (12, 12.0, 2), 30, "metrics")
