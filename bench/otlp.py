"""OTLP: `python -m bench otlp` prints spans per second of CPU time by gRPC and HTTP, and what a sender waits.

The agent is a process of its own: source, carrier and packer as they are, before a log that takes everything at once.
The sender is another one, with requests made before, so that it costs little beside. Spans are model calls with eleven
attributes, as the SDK sends them, in batches of 512 and of 16. What a sender waits is measured at 5,000 spans a second,
half of what the agent is asked to take, and at half of what it can.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any, cast

import grpc
import numpy as np
from aiohttp import ClientSession, TCPConnector
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from streammon.broker import Broker, Outgoing
from streammon.config import load
from streammon_agents.agent import run_agent
from streammon_agents.gateway.otlp.intake import KINDS, Signal
from streammon_agents.gateway.otlp.source import OtlpSource
from tests.support import eventually

BATCH, SMALL = 512, 16
SECONDS = 5.0
SENDERS = 4
ASKED = 10_000

Send = Callable[[bytes], Awaitable[Any]]


class Nowhere:
    """A broker that takes everything, and remembers how large it was."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    async def append(self, records: Sequence[Outgoing]) -> list[int]:
        self.sizes += [len(record.value or b"") for record in records]
        return [0] * len(records)


def request(spans: int) -> bytes:
    """A batch of model calls."""
    message = ExportTraceServiceRequest()
    resource_spans = message.resource_spans.add()
    resource_spans.resource.attributes.add(key="service.name").value.string_value = "shop"
    scope_spans = resource_spans.scope_spans.add()
    now = time.time_ns()
    for number in range(spans):
        span = scope_spans.spans.add(name="chat gpt-4o", kind="SPAN_KIND_CLIENT")
        span.trace_id, span.span_id, span.parent_span_id = os.urandom(16), os.urandom(8), os.urandom(8)
        span.start_time_unix_nano, span.end_time_unix_nano = now - 1_000_000 * (number + 1), now
        texts = {
            "gen_ai.operation.name": "chat",
            "gen_ai.provider.name": "openai",
            "gen_ai.request.model": "gpt-4o",
            "gen_ai.response.model": "gpt-4o-2024-08-06",
            "gen_ai.response.id": f"chatcmpl-{number}",
            "server.address": "api.openai.com",
        }
        for key, text in texts.items():
            span.attributes.add(key=key).value.string_value = text
        numbers = {
            "gen_ai.usage.input_tokens": 300 + number,
            "gen_ai.usage.output_tokens": number,
            "server.port": 443,
            "gen_ai.request.max_tokens": 500,
        }
        for key, value in numbers.items():
            span.attributes.add(key=key).value.int_value = value
        span.attributes.add(key="gen_ai.request.temperature").value.double_value = 0.5
    return message.SerializeToString()


def agent(pipe: Connection) -> None:
    """Runs the source; tells its ports, then its CPU time whenever it is asked."""
    asyncio.run(_agent(pipe))


async def _agent(pipe: Connection) -> None:
    settings = load(agent={"sources": ["otlp"], "otlp": {"grpc_port": 0, "http_port": 0}})
    source, stop = OtlpSource(settings), asyncio.Event()
    running = asyncio.create_task(run_agent(cast(Broker, Nowhere()), settings, stop=stop, sources=[source]))
    await eventually(lambda: len(source.ports) == 2)
    pipe.send(dict(source.ports))
    while await asyncio.to_thread(pipe.recv):
        pipe.send(time.process_time())
    stop.set()
    await running


async def load_of(send: Send, body: bytes, spans: int, rate: float | None) -> tuple[float, list[float]]:
    """Send for `SECONDS`, ``rate`` spans a second or as many as are taken: how many a second, and the waits."""
    started, waits = time.perf_counter(), []

    async def one(number: int) -> None:
        turn = number
        while (due := turn * spans / rate if rate else 0.0) < SECONDS and time.perf_counter() - started < SECONDS:
            if (pause := started + due - time.perf_counter()) > 0:
                await asyncio.sleep(pause)
            before = time.perf_counter()
            await send(body)
            waits.append(time.perf_counter() - before)
            turn += SENDERS

    await asyncio.gather(*(one(number) for number in range(SENDERS)))
    return len(waits) * spans / (time.perf_counter() - started), waits


async def measure(pipe: Connection, way: str, send: Send) -> None:
    for spans in (BATCH, SMALL):
        body = request(spans)
        await send(body)
        cpu = _cpu(pipe)
        rate, _ = await load_of(send, body, spans, None)
        spent = (_cpu(pipe) - cpu) / SECONDS
        per_core = rate / spent
        print(f"{way:<5} batches of {spans:<4} {per_core:9,.0f} spans/s per core ({rate:,.0f}/s at {spent:.0%})")
        for wanted in (ASKED / 2, per_core / 2):
            half, waits = await load_of(send, body, spans, wanted)
            p50, p99 = np.quantile(waits, [0.5, 0.99]) * 1e3
            print(f"{'':>24} at {half:6,.0f}/s a sender waits {p50:4.1f} ms, p99 {p99:4.1f} ms")


def _cpu(pipe: Connection) -> float:
    pipe.send(True)
    return float(pipe.recv())


async def main(pipe: Connection) -> None:
    ports = pipe.recv()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{ports['gRPC']}") as channel:
        export: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
            f"/{KINDS[Signal.TRACES].service}/Export"
        )
        await measure(pipe, "gRPC", export)
    async with ClientSession(connector=TCPConnector(limit=SENDERS)) as session:

        async def post(body: bytes) -> None:
            headers = {"Content-Type": "application/x-protobuf"}
            async with session.post(
                f"http://127.0.0.1:{ports['HTTP']}/v1/traces", data=body, headers=headers
            ) as answer:
                assert answer.status == 200
                await answer.read()

        await measure(pipe, "HTTP", post)
    pipe.send(False)


if __name__ == "__main__":
    here, there = multiprocessing.Pipe()
    process = multiprocessing.get_context("spawn").Process(target=agent, args=(there,))
    process.start()
    asyncio.run(main(here))
    process.join()
