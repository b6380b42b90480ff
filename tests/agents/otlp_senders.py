"""The real sender, OpenTelemetry's SDK for Python, and the source that listens to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Literal

from opentelemetry.exporter.otlp.proto.grpc import _log_exporter as grpc_logs
from opentelemetry.exporter.otlp.proto.grpc import metric_exporter as grpc_metrics
from opentelemetry.exporter.otlp.proto.grpc import trace_exporter as grpc_spans
from opentelemetry.exporter.otlp.proto.http import Compression
from opentelemetry.exporter.otlp.proto.http import _log_exporter as http_logs
from opentelemetry.exporter.otlp.proto.http import metric_exporter as http_metrics
from opentelemetry.exporter.otlp.proto.http import trace_exporter as http_spans

from streammon.config import load
from streammon_agents.gateway.otlp.source import OtlpSource
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


@asynccontextmanager
async def listening(path: Path, out: Kept | None = None, **otlp: Any) -> AsyncIterator[Listening]:
    """A source on free ports, until the block ends."""
    settings = load(data_dir=path, agent={"host": "here", "otlp": {"grpc_port": 0, "http_port": 0, **otlp}})
    source, kept = OtlpSource(settings), out or Kept()
    running = asyncio.create_task(source.run(kept))
    try:
        await eventually(lambda: running.done() or len(source.ports) == 2)
        assert not running.done(), running.exception()
        yield Listening(source, kept)
    finally:
        running.cancel()
        await asyncio.wait({running}, timeout=2)
        assert running.done()
