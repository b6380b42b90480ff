"""The SDK against a real HTTP server: what arrives, what is dropped, and that the service never notices."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import os
import subprocess
import sys
import threading
import time
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from streammon.broker import Outgoing, connect
from streammon.broker.embedded import EmbeddedBroker
from streammon.config import load
from streammon.errors import ConfigError
from streammon.events import EventType
from streammon.servers import Server
from streammon.topics import MAX_RECORD_BYTES, topic_specs
from streammon.wire import Batch, decode
from streammon_agents import Monitor
from streammon_agents.packing import Packer
from streammon_agents.sdk import traced
from streammon_agents.sdk.courier import Limits
from streammon_agents.sdk.summaries import Embedding, Text
from streammon_agents.sdk.transport import BrokerTransport, HttpTransport
from tests.support import eventually, wait_until

FAST = Limits(flush_interval_s=0.02)


class Answer(NamedTuple):
    status: int = 202
    body: str = '{"accepted": 1}'
    retry_after: str | None = None
    before: Callable[[], object] = bool


class Attempt(NamedTuple):
    at: float
    status: int
    body: bytes


class Intake:
    """Answers as told, 202 when told nothing, and remembers every attempt."""

    def __init__(self, *answers: Answer) -> None:
        self.answers = deque(answers)
        self.attempts: list[Attempt] = []
        self.connections = 0
        self.url = ""

    def answer(self, body: bytes) -> Answer:
        answer = self.answers.popleft() if self.answers else Answer()
        self.attempts.append(Attempt(time.monotonic(), answer.status, body))
        answer.before()
        return answer

    @property
    def batches(self) -> list[Batch]:
        """Accepted batches, each once."""
        accepted = dict.fromkeys(attempt.body for attempt in self.attempts if attempt.status < 300)
        return [batch for body in accepted for batch in decode(EventType(json.loads(body)["type"]), body)]

    @property
    def events(self) -> list[dict[str, Any]]:
        return [batch.rows.event(index) for batch in self.batches for index in range(len(batch.rows))]

    @property
    def reported(self) -> int:
        return sum(batch.dropped for batch in self.batches)


@contextmanager
def intake(*answers: Answer) -> Iterator[Intake]:
    told = Intake(*answers)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            super().setup()
            told.connections += 1

        def do_POST(self) -> None:
            assert self.path == "/v1/events"
            answer = told.answer(self.rfile.read(int(self.headers["Content-Length"])))
            body = answer.body.encode()
            self.send_response(answer.status)
            self.send_header("Content-Length", str(len(body)))
            if answer.retry_after:
                self.send_header("Retry-After", answer.retry_after)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            """A client that gave up on us is part of the tests."""

    server = Server(("127.0.0.1", 0), Handler)
    told.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=partial(server.serve_forever, poll_interval=0.01))
    thread.start()
    try:
        yield told
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextmanager
def monitor(told: Intake, limits: Limits = FAST, **options: Any) -> Iterator[Monitor]:
    """A monitor that has sent everything when the block ends."""
    opened = Monitor(service="shop", model="ranker", url=told.url, limits=limits, **options)
    try:
        yield opened
    finally:
        opened.close(timeout_s=10)


def assert_gapless(batches: list[Batch]) -> None:
    numbers = defaultdict(list)
    for batch in batches:
        assert batch.identity is not None
        numbers[batch.identity.boot].append(batch.identity.seq)
    for boot, found in numbers.items():
        assert found == list(range(len(found))), boot


# --- what is measured -------------------------------------------------------------------------------------


def test_watched_functions_of_every_kind_return_what_they_return_and_are_recorded() -> None:
    with intake() as told, monitor(told, model_version="3", host="h") as watching:

        @watching.watch
        def plain(x: int) -> int:
            return x + 1

        @watching.watch(endpoint="/a")
        async def coroutine(x: int) -> int:
            await asyncio.sleep(0.02)
            return x + 2

        @watching.watch
        def generator(n: int) -> Iterator[int]:
            yield from range(n)

        @watching.watch
        async def stream(n: int) -> AsyncIterator[int]:
            for item in range(n):
                await asyncio.sleep(0.01)
                yield item

        async def both() -> tuple[int, list[int]]:
            return await coroutine(1), [item async for item in stream(3)]

        assert plain(1) == 2
        assert asyncio.run(both()) == (3, [0, 1, 2])
        assert list(generator(3)) == [0, 1, 2]
        assert plain.__name__ == "plain"
        assert asyncio.iscoroutinefunction(coroutine)
    durations = [event["duration_s"] for event in told.events]
    assert len(durations) == 4
    assert 0.02 <= durations[1] < 1
    assert 0.03 <= durations[2] < 1
    assert {(event["service"], event["model"], event["status"]) for event in told.events} == {("shop", "ranker", "ok")}
    assert {(event["model_version"], event["host"]) for event in told.events} == {("3", "h")}
    assert [event.get("endpoint") for event in told.events] == [None, "/a", None, None]


@pytest.mark.parametrize("kind", [ValueError, asyncio.CancelledError, KeyboardInterrupt, SystemExit])
def test_exception_is_recorded_and_comes_out_unchanged(kind: type[BaseException]) -> None:
    error = kind("no")
    with intake() as told, monitor(told) as watching:

        @watching.watch
        def fails() -> None:
            raise error

        with pytest.raises(kind) as caught:
            fails()
        assert caught.value is error
    [event] = told.events
    assert (event["status"], event["error_type"]) == ("error", kind.__name__)


async def test_cancelled_call_is_recorded_as_an_error() -> None:
    with intake() as told:
        watching = Monitor(service="shop", model="ranker", url=told.url, limits=FAST)
        entered = asyncio.Event()

        async def call() -> None:
            async with watching.measure(endpoint="/slow"):
                entered.set()
                await asyncio.Event().wait()

        task = asyncio.create_task(call())
        await entered.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.to_thread(watching.close)
        [event] = told.events
    assert (event["status"], event["error_type"], event["endpoint"]) == ("error", "CancelledError", "/slow")


async def test_stream_left_early_is_not_an_error_and_is_closed() -> None:
    closed = []
    with intake() as told:
        watching = Monitor(service="shop", model="ranker", url=told.url, limits=FAST)

        @watching.watch
        async def stream() -> AsyncIterator[int]:
            try:
                for item in range(10):
                    yield item
            finally:
                closed.append(True)

        items: Any = stream()
        assert await anext(items) == 0
        await items.aclose()
        await asyncio.to_thread(watching.close)
    assert closed == [True]
    assert [event["status"] for event in told.events] == ["ok"]


def test_fields_set_during_the_call_are_in_its_event() -> None:
    with intake() as told, monitor(told, clock=lambda: 1_700_000_000.0) as watching:
        with watching.measure(endpoint="/rank", tenant="a") as call:
            call.set(input_tokens=12, prediction="cat", event_id="e1", features={"age": 3, "new": True})
        with watching.measure() as call:
            call.set(status="error", error_type="Empty")
    first, second = told.events
    assert first.items() >= {
        "endpoint": "/rank", "tenant": "a", "input_tokens": 12.0, "prediction": "cat", "event_id": "e1",
        "features": {"age": 3, "new": True}, "time_unix_s": 1_700_000_000.0,
    }.items()  # fmt: skip
    assert (second["status"], second["error_type"]) == ("error", "Empty")


def test_embeddings_and_texts_are_told_by_their_summaries_and_not_sent() -> None:
    summaries = {"query": Text(), "vector": Embedding([1.0, 0.0])}
    with intake() as told, monitor(told, summaries=summaries) as watching:
        watching.record(duration_s=0.1, features={"price": 2.5, "query": "red shoes", "vector": np.array([0.0, 2.0])})
        watching.record(duration_s=0.1, features={"price": 2.5, "query": 7, "vector": "no vector"})
        watching.record(duration_s=0.1, features="none at all")
    found = [event.get("features") for event in told.events]
    assert found[0] == {"price": 2.5, "query.length": 9.0, "vector.norm": 2.0, "vector.distance": 1.0}
    assert found[1:] == [{"price": 2.5}, None]


def test_a_change_is_an_event_about_the_model() -> None:
    with intake() as told, monitor(told) as watching:
        watching.change("deploy", model_version="4", actor="ann", ref="v4.0")
        watching.change("no such kind")
    [attempt] = told.attempts
    assert json.loads(attempt.body)["type"] == "change"
    [change] = told.events
    expected = {"kind": "deploy", "model_version": "4", "actor": "ann", "ref": "v4.0"}
    assert change.items() >= expected.items()
    assert {"service", "model", "time_unix_s"} <= change.keys()


def test_label_is_an_event_of_its_own_type() -> None:
    with intake() as told, monitor(told) as watching:
        watching.record(duration_s=0.1, event_id="e1")
        watching.label("e1", label="cat", score=0.5, source="review")
    assert [json.loads(attempt.body)["type"] for attempt in told.attempts] == ["inference", "label"]
    [label] = [event for event in told.events if "label" in event]
    assert label.items() >= {"event_id": "e1", "label": "cat", "score": 0.5, "source": "review"}.items()
    assert_gapless(told.batches[:1])
    assert_gapless(told.batches[1:])


def test_feedback_is_a_label_with_a_rating() -> None:
    with intake() as told, monitor(told) as watching:
        watching.feedback("e1", True)
        watching.feedback("e2", 3.5, source="support", model="other")
    first, second = sorted(told.events, key=lambda event: str(event["event_id"]))
    assert first.items() >= {"event_id": "e1", "rating": 1.0, "source": "user", "model": "ranker"}.items()
    assert second.items() >= {"event_id": "e2", "rating": 3.5, "source": "support", "model": "other"}.items()


def test_events_belong_to_the_trace_of_the_request() -> None:
    trace_id, span_id = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    with intake() as told, monitor(told) as watching:
        with traced({"traceparent": f"00-{trace_id}-{span_id}-01"}), watching.measure():
            pass
        watching.record(duration_s=0.2)
        watching.record(duration_s=0.3, trace_id="mine")
    found = [(event.get("trace_id"), event.get("span_id")) for event in told.events]
    assert found == [(trace_id, span_id), (None, None), ("mine", None)]


def test_features_of_a_share_of_the_calls_are_sent() -> None:
    with intake() as told, monitor(told, features=0.25) as watching:
        for _ in range(2000):
            watching.record(duration_s=0.1, features={"x": 1.0}, confidence=0.5)
    assert len(told.events) == 2000
    assert 400 < sum("features" in event for event in told.events) < 600, "a binomial beyond 5 sigma"
    assert all(event["confidence"] == 0.5 for event in told.events)


def test_monitor_without_a_model_takes_the_one_of_the_call() -> None:
    with intake() as told:
        watching = Monitor(service="shop", url=told.url, limits=FAST)
        watching.record(duration_s=0.1, model="a")
        watching.record(duration_s=0.1)
        watching.close(timeout_s=10)
    assert [event["model"] for event in told.events] == ["a"]
    assert watching.stats.dropped == 1


def test_each_model_gets_batches_and_numbers_of_its_own() -> None:
    with intake() as told, monitor(told) as watching:
        for turn in range(3):
            for model in ("a", "b"):
                watching.record(duration_s=0.1, model=model)
            wait_until(lambda turn=turn: len(told.batches) == 2 * (turn + 1))  # type: ignore[misc]  # one flush a turn
    assert {batch.identity.boot.split("/", 1)[1] for batch in told.batches if batch.identity} == {
        "shop/a",
        "shop/b",
    }
    assert_gapless(told.batches)


def test_more_keys_than_are_numbered_at_one_time_start_a_new_life(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streammon_agents.packing.MAX_KEYS", 2)
    packer = Packer("sdk@h")
    fields = {"service": "s", "time_unix_s": 1.0, "duration_s": 0.1, "status": "ok"}
    batches = [
        batch
        for model in ("a", "a", "b", "c", "a")
        for packed in packer.pack(EventType.INFERENCE, [{**fields, "model": model}]).batches
        for batch in decode(EventType.INFERENCE, packed.value)
    ]
    assert [batch.identity.seq for batch in batches if batch.identity] == [0, 1, 0, 0, 0]
    assert_gapless(batches)


# --- nothing is lost, or it is counted --------------------------------------------------------------------


def test_eight_threads_lose_nothing_under_capacity() -> None:
    with intake() as told, monitor(told, Limits()) as watching:

        def calls(thread: int) -> None:
            for call in range(1000):
                watching.record(duration_s=0.001, event_id=f"{thread}-{call}")

        threads = [threading.Thread(target=calls, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    expected = {f"{thread}-{call}" for thread in range(8) for call in range(1000)}
    received = [event["event_id"] for event in told.events]
    assert len(received) == len(expected)
    assert set(received) == expected
    assert watching.stats == (8000, 0, 0, 0)
    assert told.connections == 1  # kept open
    assert_gapless(told.batches)


def test_full_ring_drops_the_newest_and_every_drop_is_counted_and_reported() -> None:
    release = threading.Event()
    limits = Limits(capacity=100, flush_events=10, flush_interval_s=0.02)
    with intake(Answer(before=partial(release.wait, 10))) as told, monitor(told, limits) as watching:
        watching.record(duration_s=0.1, event_id="first")
        wait_until(lambda: told.attempts)
        for call in range(1000):
            watching.record(duration_s=0.1, event_id=str(call))
        release.set()
        wait_until(lambda: watching.stats.waiting == 0)
        watching.record(duration_s=0.1, event_id="last")
    received = [event["event_id"] for event in told.events]
    assert received == ["first", *map(str, range(100)), "last"]
    assert watching.stats == (102, 900, 0, 0)
    assert told.reported == 900
    assert_gapless(told.batches)


def test_drops_of_eight_threads_are_counted_exactly() -> None:
    limits = Limits(capacity=50, flush_events=10, flush_interval_s=0.001)
    with intake() as told, monitor(told, limits) as watching:

        def calls() -> None:
            for _ in range(5000):
                watching.record(duration_s=0.1)

        threads = [threading.Thread(target=calls) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        wait_until(lambda: watching.stats.waiting == 0)
        watching.record(duration_s=0.1)
    sent, dropped, _, _ = watching.stats
    assert dropped > 0
    assert sent == len(told.events)
    assert sent + dropped == 8 * 5000 + 1
    assert told.reported == dropped
    assert_gapless(told.batches)


def test_failed_batch_is_sent_again_with_the_same_bytes() -> None:
    with intake(Answer(503), Answer(500), Answer(404)) as told, monitor(told) as watching:
        watching.record(duration_s=0.1, event_id="a")
        wait_until(lambda: told.events)
    assert len({attempt.body for attempt in told.attempts}) == 1
    assert [attempt.status for attempt in told.attempts] == [503, 500, 404, 202]
    assert watching.stats == (1, 0, 0, 0)


def test_unanswered_batch_is_sent_again_with_the_same_bytes() -> None:
    release = threading.Event()
    with intake(Answer(before=partial(release.wait, 10))) as told:
        transport = partial(HttpTransport, told.url, timeout_s=0.2)
        with monitor(told, transport=transport) as watching:
            watching.record(duration_s=0.1)
            wait_until(lambda: len(told.attempts) == 2)
            release.set()
    assert len({attempt.body for attempt in told.attempts}) == 1
    assert watching.stats == (1, 0, 0, 0)


def test_too_many_requests_waits_as_long_as_asked() -> None:
    with intake(Answer(429, retry_after="1")) as told, monitor(told) as watching:
        watching.record(duration_s=0.1)
        wait_until(lambda: told.events)
    first, second = told.attempts
    assert 1.0 <= second.at - first.at < 3.0


@pytest.mark.parametrize("status", [400, 413])
def test_refused_batch_is_counted_reported_and_logged_with_the_reason(
    status: int, caplog: pytest.LogCaptureFixture
) -> None:
    with intake(Answer(status, "too blue")) as told, monitor(told) as watching:
        for _ in range(7):
            watching.record(duration_s=0.1)
        wait_until(lambda: watching.stats.dropped == 7)
        watching.record(duration_s=0.1)
    assert watching.stats == (1, 7, 0, 0)
    assert told.reported == 7
    assert f"HTTP {status}" in caplog.text
    assert "too blue" in caplog.text


def test_faults_of_all_kinds_lose_nothing_and_count_everything() -> None:
    limits = Limits(capacity=40, flush_events=20, flush_interval_s=0.01)
    answers = [Answer(status) for status in (202, 503, 400, 500, 202) * 3]
    recorded = 0
    with intake(*answers) as told, monitor(told, limits) as watching:
        while told.answers:
            for _ in range(70):
                watching.record(duration_s=0.1)
            recorded += 70
            wait_until(lambda: watching.stats.waiting == 0)
        watching.record(duration_s=0.1)
    sent, dropped, waiting, _ = watching.stats
    assert (sent + dropped, waiting) == (recorded + 1, 0)
    assert len(told.events) == sent
    assert told.reported == dropped > 0


def test_nobody_there_neither_raises_nor_waits_and_the_rest_is_told_at_close(
    caplog: pytest.LogCaptureFixture,
) -> None:
    watching = Monitor(service="shop", model="ranker", url="http://127.0.0.1:9", limits=FAST)
    started = time.monotonic()
    for _ in range(100):
        watching.record(duration_s=0.1)
    wait_until(lambda: "cannot be sent" in caplog.text)
    watching.close(timeout_s=0.2)
    assert time.monotonic() - started < 5
    assert watching.stats == (0, 0, 100, 0)
    assert "100 events were not sent" in caplog.text


def test_close_keeps_its_deadline_while_the_intake_hangs() -> None:
    release = threading.Event()
    with intake(Answer(before=partial(release.wait, 10))) as told:
        watching = Monitor(service="shop", model="ranker", url=told.url, limits=FAST)
        watching.record(duration_s=0.1)
        wait_until(lambda: told.attempts)
        started = time.monotonic()
        watching.close(timeout_s=0.2)
        assert 0.2 <= time.monotonic() - started < 2
        assert watching.stats.waiting == 1
        release.set()


# --- absurd input -----------------------------------------------------------------------------------------


class Hostile:
    """Raises whatever is done with it."""

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(name)


def _circle() -> dict[str, Any]:
    circle: dict[str, Any] = {}
    circle["me"] = circle
    return circle


ABSURD: dict[str, Callable[[], Any]] = {
    "nan": lambda: math.nan,
    "infinity": lambda: -math.inf,
    "huge": lambda: 10**400,
    "negative": lambda: -1,
    "surrogate": lambda: "a\ud800",
    "object": object,
    "hostile": Hostile,
    "circle": _circle,
    "bytes": lambda: b"x",
    "list": lambda: [1],
    "set": lambda: {1},
    "class": lambda: int,
}


@pytest.mark.parametrize("name", ABSURD)
def test_absurd_value_costs_its_field_and_never_raises(name: str) -> None:
    value = ABSURD[name]()
    with intake() as told, monitor(told) as watching:
        watching.record(duration_s=0.1, event_id="a", ttft_s=value, metrics=value)
    [event] = told.events
    assert event["event_id"] == "a"
    assert "ttft_s" not in event
    assert "metrics" not in event
    assert watching.stats == (1, 0, 0, 2)


@pytest.mark.parametrize("name", ABSURD)
def test_absurd_duration_costs_the_event(name: str) -> None:
    with intake() as told, monitor(told) as watching:
        watching.record(duration_s=ABSURD[name]())
        watching.record(duration_s=0.1, status="fine")
        watching.record(duration_s=0.1)
    assert len(told.events) == 1
    assert told.reported == 2
    assert watching.stats[:3] == (1, 2, 0)


def test_bad_field_is_logged_once_by_name(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    with intake() as told, monitor(told) as watching:
        for _ in range(5):
            watching.record(duration_s=0.1, colour="blue")
    assert len(told.events) == 5
    assert watching.stats.bad_fields == 5
    assert caplog.text.count("'colour'") == 1


def test_missing_feature_given_as_nan_leaves_the_others() -> None:
    with intake() as told, monitor(told) as watching:
        watching.record(duration_s=0.1, features={"age": math.nan, "size": 2.0})
    assert told.events[0]["features"] == {"size": 2.0}
    assert watching.stats.bad_fields == 1


def test_numpy_scalars_become_plain_numbers() -> None:
    with intake() as told, monitor(told) as watching:
        watching.record(
            duration_s=np.float64(0.5),
            input_tokens=np.int64(7),
            confidence=np.float32(0.25),
            prediction=np.str_("cat"),
            features={"age": np.float32(1.5), "new": np.bool_(True)},
        )
    [event] = told.events
    assert event.items() >= {
        "duration_s": 0.5, "input_tokens": 7.0, "confidence": 0.25, "prediction": "cat",
        "features": {"age": 1.5, "new": True},
    }.items()  # fmt: skip


def test_events_too_large_for_one_record_are_spread_and_one_too_large_alone_is_dropped() -> None:
    with intake() as told, monitor(told, Limits()) as watching:
        watching.record(duration_s=0.1, prediction="x" * (MAX_RECORD_BYTES + 1))
        for call in range(30):
            watching.record(duration_s=0.1, prediction=str(call % 10) * 100_000)
    assert all(len(attempt.body) <= MAX_RECORD_BYTES for attempt in told.attempts)
    assert len(told.events) == 30
    assert watching.stats[:3] == (30, 1, 0)
    assert told.reported == 1
    assert_gapless(told.batches)


# --- processes --------------------------------------------------------------------------------------------


def test_fork_gets_its_own_boot_and_thread_and_leaves_waiting_events_to_the_parent() -> None:
    with intake() as told, monitor(told, Limits(flush_interval_s=0.5)) as watching:
        watching.record(duration_s=0.1, event_id="parent")
        child = os.fork()
        if child == 0:
            watching.record(duration_s=0.1, event_id="child")
            watching.close(5)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert sorted(event["event_id"] for event in told.events) == ["child", "parent"]
    boots = {batch.identity.boot for batch in told.batches if batch.identity}
    assert len(boots) == 2
    assert_gapless(told.batches)


def run_python(code: str, *arguments: str) -> str:
    process = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60, check=False
    )
    assert process.returncode == 0, process.stderr
    return process.stdout.strip()


def test_script_that_just_ends_still_sends_its_events() -> None:
    code = (
        "import sys; from streammon_agents import Monitor\n"
        "monitor = Monitor(service='shop', model='ranker', url=sys.argv[1])\n"
        "monitor.record(duration_s=0.1)"
    )
    with intake() as told:
        run_python(code, told.url)
        assert len(told.events) == 1


def test_importing_the_sdk_loads_no_heavy_library() -> None:
    heavy = "{'psutil', 'aiohttp', 'aiokafka', 'numpy', 'pydantic', 'structlog'}"
    code = f"import sys; from streammon_agents import Monitor; print({heavy} & set(sys.modules))"
    assert run_python(code) == "set()"


# --- where to ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"url": "localhost:8080"}, "localhost:8080"),
        ({"url": "http://"}, "http://"),
        ({"url": "http://h:port"}, "http://h:port"),
        ({"url": "http://h", "bootstrap": "h:9092"}, "both"),
        ({"model_version": 3}, "model_version is 3"),
        ({"service": ""}, "service is ''"),
    ],
)
def test_wrong_configuration_is_named_at_once(options: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        Monitor(**{"service": "shop", "model": "ranker", **options})


def test_limits_that_allow_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match="capacity is 0"):
        Limits(capacity=0)


def test_address_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    with intake() as told:
        monkeypatch.setenv("STREAMMON_URL", told.url + "/")
        watching = Monitor(service="shop", model="ranker")
        watching.record(duration_s=0.1)
        watching.close()
        assert len(told.events) == 1


async def test_events_reach_the_log_without_http(tmp_path: Path) -> None:
    settings = load(data_dir=tmp_path)
    broker = await EmbeddedBroker.open(settings)
    await broker.create_topics(topic_specs(partitions=2))
    watching = Monitor(
        service="shop",
        model="ranker",
        transport=lambda: BrokerTransport(lambda: EmbeddedBroker.open(settings)),
    )
    watching.record(duration_s=0.1, event_id="a")
    watching.label("a", label=1.0)
    await asyncio.to_thread(watching.close)
    reader = await broker.reader(["inference", "labels"])
    records = [record for polled in (await reader.poll(5)).values() for record in polled]
    records += [record for polled in (await reader.poll(1)).values() for record in polled]
    assert {record.key for record in records} == {b"shop/ranker"}
    assert len(records) == 2
    await reader.close()
    await broker.close()


async def test_log_that_is_away_is_tried_again_with_the_same_bytes() -> None:
    sent: list[Outgoing] = []

    class Flaky:
        async def append(self, records: list[Outgoing]) -> list[int]:
            sent.extend(records)
            if len(sent) < 3:
                raise OSError("away")
            return [0]

        async def close(self) -> None:
            pass

    async def connect() -> Any:
        return Flaky()

    watching = Monitor(service="shop", model="ranker", transport=lambda: BrokerTransport(connect), limits=FAST)
    watching.record(duration_s=0.1)
    await asyncio.to_thread(watching.close)
    assert len(sent) == 3
    assert len(set(sent)) == 1
    assert watching.stats == (1, 0, 0, 0)


@pytest.mark.kafka
async def test_events_reach_a_real_kafka(kafka: Server, unique: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAMMON_TOPICS__PREFIX", f"{unique}.")
    broker = await connect(load(bootstrap=kafka.address))
    await broker.create_topics(topic_specs(partitions=2))
    watching = Monitor(service="shop", model="ranker", bootstrap=kafka.address)
    for call in range(2500):
        watching.record(duration_s=0.1, event_id=str(call))
    await asyncio.to_thread(watching.close, 30)
    assert watching.stats == (2500, 0, 0, 0)
    reader = await broker.reader(["inference"])
    batches: list[Batch] = []

    async def all_read() -> bool:
        for records in (await reader.poll(0.2)).values():
            batches.extend(batch for record in records for batch in decode(EventType.INFERENCE, record.value or b""))
        return sum(len(batch.rows) for batch in batches) == 2500

    await eventually(all_read, 30)
    assert_gapless(batches)
    await reader.close()
    await broker.close()
