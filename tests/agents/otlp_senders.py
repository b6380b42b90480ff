"""The real sender, OpenTelemetry's SDK for Python, and the source that listens to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

from aiohttp import ClientSession
from opentelemetry.exporter.otlp.proto.grpc import _log_exporter as grpc_logs
from opentelemetry.exporter.otlp.proto.grpc import metric_exporter as grpc_metrics
from opentelemetry.exporter.otlp.proto.grpc import trace_exporter as grpc_spans
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http import _log_exporter as http_logs
from opentelemetry.exporter.otlp.proto.http import metric_exporter as http_metrics
from opentelemetry.exporter.otlp.proto.http import trace_exporter as http_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from streammon.config import Settings, load
from streammon_agents.gateway.otlp.source import OtlpSource
from streammon_agents.source import Outlet, ended
from tests.outlets import Kept
from tests.support import eventually

Way = Literal["gRPC", "HTTP"]
WAYS: tuple[Way, ...] = ("gRPC", "HTTP")


class Listening:
    """A source that listens, and what it has published."""

    def __init__(self, source: OtlpSource, out: Kept) -> None:
        self.source, self.out = source, out

    def port(self, way: Way) -> int:
        return self.source.ports[way]

    def exporter(self, signal: str, way: Way, **more: Any) -> Any:
        """The SDK's exporter of one signal; by HTTP it compresses, so that both ways are taken."""
        if way == "gRPC":
            of = {
                "traces": grpc_spans.OTLPSpanExporter,
                "metrics": grpc_metrics.OTLPMetricExporter,
                "logs": grpc_logs.OTLPLogExporter,
            }
            return of[signal](endpoint=f"http://127.0.0.1:{self.port(way)}", insecure=True, timeout=10, **more)
        of_http = {
            "traces": http_spans.OTLPSpanExporter,
            "metrics": http_metrics.OTLPMetricExporter,
            "logs": http_logs.OTLPLogExporter,
        }
        endpoint = f"http://127.0.0.1:{self.port(way)}/v1/{signal}"
        return of_http[signal](endpoint=endpoint, timeout=10, compression=Compression.Gzip, **more)


class Told:
    """A source that is sent a span, over and over, while it runs."""

    def __init__(self, path: Path) -> None:
        self._source = OtlpSource(settings_of(path))
        self.name, self.check = self._source.name, self._source.check

    async def run(self, out: Outlet) -> None:
        sending = asyncio.create_task(self._send())
        try:
            await self._source.run(out)
        finally:
            await ended(sending)

    async def _send(self) -> None:
        await eventually(lambda: "HTTP" in self._source.ports)
        request = ExportTraceServiceRequest()
        span = request.resource_spans.add().scope_spans.add().spans.add(kind="SPAN_KIND_SERVER")
        span.start_time_unix_nano, span.end_time_unix_nano = 10**18, 2 * 10**18
        span.attributes.add(key="http.request.method").value.string_value = "GET"
        headers = {"Content-Type": "application/x-protobuf"}
        async with ClientSession() as session:
            while True:
                url = f"http://127.0.0.1:{self._source.ports['HTTP']}/v1/traces"
                async with session.post(url, data=request.SerializeToString(), headers=headers) as answer:
                    await answer.read()
                await asyncio.sleep(0.05)


def settings_of(path: Path, **otlp: Any) -> Settings:
    """On free ports."""
    return load(data_dir=path, agent={"host": "here", "otlp": {"grpc_port": 0, "http_port": 0, **otlp}})


@asynccontextmanager
async def listening(path: Path, out: Kept | None = None, **otlp: Any) -> AsyncIterator[Listening]:
    """A source on free ports, until the block ends."""
    source, kept = OtlpSource(settings_of(path, **otlp)), out or Kept()
    running = asyncio.create_task(source.run(kept))
    try:
        await eventually(lambda: running.done() or len(source.ports) == 2)
        assert not running.done(), running.exception()
        yield Listening(source, kept)
    finally:
        running.cancel()
        await asyncio.wait({running}, timeout=2)
        assert running.done()
