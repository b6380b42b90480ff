"""The example service: real predictions, real load, labels that come later, and trouble one can see."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from river.neighbors import KNNClassifier, LazySearch

from examples.model_service import detector
from examples.model_service import service as service_module
from examples.model_service.detector import TRAINED_ON, Detector, Example, numbers, phishing_pages
from examples.model_service.load import malformed
from examples.model_service.options import Times, service_parser, tuning
from examples.model_service.service import FIRST_PAGES, MODEL, SERVICE, Service, tune_for_ever
from examples.model_service.world import LESSONS, as_of, lesson
from streammon.broker.embedded import EmbeddedBroker
from streammon.config import load
from streammon.events import EventType
from streammon.telemetry import serve_http
from streammon.topics import INPUT_TOPICS, topic_specs
from streammon.wire import decode
from streammon_agents import Monitor
from streammon_agents.gateway import events as gateway
from streammon_agents.packing import Batch
from streammon_agents.sdk.courier import Limits
from tests.support import eventually, wait_until

ROOT = Path(__file__).parents[2]
PAGES = phishing_pages()
BUDGET_S = 0.3
Client = TestClient[web.Request, web.Application]
Event = dict[str, Any]


class Delivered:
    """A way out that ends here: the events that the service sent."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []

    def send(self, batch: Batch) -> None:
        self.batches.append(batch)

    def close(self) -> None:
        """Nothing to close."""

    def events(self, event_type: EventType) -> list[Event]:
        values = [batch.value for batch in self.batches if batch.event_type is event_type]
        return [event for value in values for event in events_in(event_type, value)]


def events_in(event_type: EventType, value: bytes) -> list[Event]:
    return [batch.rows.event(n) for batch in decode(event_type, value) for n in range(len(batch.rows))]


@pytest.fixture
def delivered() -> Delivered:
    return Delivered()


@pytest.fixture
def service(delivered: Delivered) -> Iterator[Service]:
    limits = Limits(flush_interval_s=0.02)
    monitor = Monitor(service=SERVICE, model=MODEL, limits=limits, transport=lambda: delivered)
    yield Service(monitor, PAGES)
    monitor.close()


@pytest.fixture
async def client(service: Service) -> AsyncIterator[Client]:
    async with TestClient(TestServer(service.app())) as client:
        yield client


async def reported(delivered: Delivered, count: int, event_type: EventType = EventType.INFERENCE) -> list[Event]:
    await eventually(lambda: len(delivered.events(event_type)) >= count, what=f"{count} {event_type} events")
    return delivered.events(event_type)


# --- in this process ------------------------------------------------------------------------------------------


async def test_predictions_are_those_of_rivers_model(client: Client) -> None:
    def trained(memory: int) -> Any:
        model: Any = KNNClassifier(n_neighbors=5, engine=LazySearch(window_size=memory))
        for features, label in PAGES[:FIRST_PAGES]:
            model.learn_one(numbers(features), label)
        return model

    stable, canary = trained(FIRST_PAGES // 2), trained(FIRST_PAGES)
    answers = set()
    for number, page in enumerate(PAGES[500:530], start=1):
        response = await client.post("/predict", json=page.features)
        answer = await response.json()
        odds = (stable if number % 5 else canary).predict_proba_one(numbers(page.features))
        assert answer["phishing"] == max(odds, key=odds.get)
        assert answer["confidence"] == pytest.approx(max(odds.values()))
        answers.add(answer["phishing"])
    assert answers == {True, False}


async def test_an_answer_is_reported_with_all_that_is_known_of_it(client: Client, delivered: Delivered) -> None:
    trace = "0af7651916cd43dd8448eb211c80319c"
    response = await client.post(
        "/predict", json=PAGES[500].features, headers={"traceparent": f"00-{trace}-b7ad6b7169203331-01"}
    )
    answer = await response.json()
    [event] = await reported(delivered, 1)
    told: Event = {"service": "phishing-api", "model": "phishing", "model_version": "knn-1", "endpoint": "/predict"}
    told |= {"status": "ok", "http_status": 200, "trace_id": trace, "features": PAGES[500].features}
    told |= {"event_id": answer["event_id"], "prediction": answer["phishing"], "confidence": answer["confidence"]}
    assert told.items() <= event.items()
    assert event["duration_s"] > 0


@pytest.mark.parametrize("way", range(3))
async def test_a_malformed_request_is_refused_and_reported_as_an_error(
    client: Client, delivered: Delivered, way: int
) -> None:
    response = await client.post("/predict", data=malformed(dict(PAGES[0].features), way))
    assert response.status == 400
    [event] = await reported(delivered, 1)
    assert (event["status"], event["error_type"], event["http_status"]) == ("error", "Malformed", 400)


async def test_feedback_is_reported_as_a_label_and_a_rating(client: Client, delivered: Delivered) -> None:
    answers = [await (await client.post("/predict", json=page.features)).json() for page in PAGES[500:502]]
    known, rated = (answer["event_id"] for answer in answers)
    feedback = [
        {"event_id": known, "phishing": True, "rating": None},
        {"event_id": rated, "phishing": None, "rating": 1},
    ]
    assert (await client.post("/feedback", json=feedback)).status == 204
    label, rating = await reported(delivered, 2, EventType.LABEL)
    assert (label["event_id"], label["label"], label["source"]) == (known, True, "feedback")
    assert (rating["event_id"], rating["rating"], rating.get("label")) == (rated, 1, None)


async def test_a_model_stays_as_it_is_until_a_version_takes_over_that_was_trained_on_the_newest_labels(
    client: Client, service: Service, delivered: Delivered
) -> None:
    async def answers(page: Example) -> Any:
        return await (await client.post("/predict", json=page.features)).json()

    pages = [Example(page.features, not page.label) for page in PAGES[500 : 500 + TRAINED_ON]]  # the world turned over
    before = [service.stable.predict(page.features) for page in pages]
    for page in pages:
        event_id = (await answers(page))["event_id"]
        await client.post("/feedback", json=[{"event_id": event_id, "phishing": page.label, "rating": None}])
    assert [service.stable.predict(page.features) for page in pages] == before
    service.deploy()
    assert service.canary.version == "knn-1", "it keeps a part of the requests"
    assert right(service.stable, pages) > 0.9 > right(service.canary, pages)
    [change] = await reported(delivered, 1, EventType.CHANGE)
    assert (change["kind"], change["service"], change["model"], change["model_version"]) == (
        "deploy", SERVICE, MODEL, "knn-3",
    )  # fmt: skip


def right(model: Detector, pages: Sequence[Example]) -> float:
    return sum(model.predict(page.features).phishing == page.label for page in pages) / len(pages)


@pytest.mark.parametrize("number", range(len(LESSONS)))
def test_what_phishers_learn_moves_one_feature_and_makes_an_old_version_wrong_until_the_next(number: int) -> None:
    times = Times(first_s=10, every_s=5)
    pages = [Example(as_of(page._asdict(), 10 + 5 * number, times), page.label) for page in PAGES]
    both = zip(PAGES, pages, strict=True)
    changed = {name for old, new in both for name in old.features if old.features[name] != new.features[name]}
    assert changed == {LESSONS[number][0]}
    model = Detector("old", PAGES[FIRST_PAGES // 2 : FIRST_PAGES])
    for page in pages[400:]:
        model.take_note(page)
    sample = random.Random(1).sample(range(len(PAGES)), 300)
    before, after = right(model, [PAGES[i] for i in sample]), right(model, [pages[i] for i in sample])
    retrained = right(model.successor("new"), [pages[i] for i in sample])
    assert after < before - 0.04
    assert retrained > after + 0.04


def test_at_first_pages_are_as_they_are_and_lessons_come_one_after_the_other() -> None:
    times = Times(first_s=10, every_s=5)
    assert [lesson(elapsed_s, times) for elapsed_s in (0, 9.9)] == [None, None]
    assert [lesson(10 + 5 * n, times) for n in range(5)] == [*LESSONS, LESSONS[0]]
    assert as_of(PAGES[0]._asdict(), 0, times) == PAGES[0].features


async def test_broken_feedback_is_refused(client: Client) -> None:
    for body in (b"{", b"7", b'[{"event_id":"e"}]'):
        assert (await client.post("/feedback", data=body)).status == 400


async def test_predictions_wait_while_the_model_is_tuned(
    client: Client, service: Service, delivered: Delivered, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = threading.Event()

    def best(known: Sequence[Example], newer: Sequence[Example], budget_s: float) -> int:
        assert ended.wait(30)
        return choose(known, newer, budget_s)

    choose = detector._best
    monkeypatch.setattr(detector, "_best", best)
    tuning_round = asyncio.create_task(service.stable.tune(BUDGET_S))
    await eventually(service.stable.lock.locked, what="the tuning")
    asked = asyncio.gather(*[client.post("/predict", json=page.features) for page in PAGES[:20]])
    await eventually(lambda: service.stable.waiting == 16, what="four in five to wait")
    waiting_since = time.monotonic()
    assert {event["model_version"] for event in await reported(delivered, 4)} == {"knn-2"}, "the canary goes on"
    held_s = time.monotonic() - waiting_since
    ended.set()
    await asyncio.gather(tuning_round, asked)
    waited = [event["duration_s"] for event in await reported(delivered, 20) if event["model_version"] == "knn-1"]
    assert len(waited) == 16
    assert min(waited) >= held_s > 0


async def test_tuning_is_done_at_its_times(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    rounds: list[float] = []

    async def tune(budget_s: float) -> int:
        rounds.append(asyncio.get_running_loop().time())
        return 1

    monkeypatch.setattr(service.stable, "tune", tune)
    options = ["--tuning-first", "0.2", "--tuning-every", "0.5", "--tuning-lasts", "0.1", "--tuning-pause", "0.02"]
    started = asyncio.get_running_loop().time()
    running = asyncio.create_task(tune_for_ever(service, tuning(service_parser().parse_args(options))))
    await eventually(lambda: rounds and rounds[-1] > rounds[0] + 0.4, what="a second phase")
    running.cancel()
    assert rounds[0] - started >= 0.2
    assert max(after - before for before, after in pairwise(rounds)) > 0.3


@pytest.mark.parametrize(("truth", "best"), [(True, 1), (False, 3)])
async def test_tuning_takes_the_number_of_neighbours_that_is_most_often_right(truth: bool, best: int) -> None:
    # At 0 the nearest says True, the nearest three say False: 1/0.1 against 1/0.12 + 1/0.13.
    near = [Example({"x": 0.1}, True), Example({"x": 0.12}, False), Example({"x": 0.13}, False)]
    far = [Example({"x": 100.0 + n}, False) for n in range(17)]
    detector = Detector("v", [*near, *far])
    for _ in range(5):
        detector.take_note(Example({"x": 0.0}, truth))
    assert await detector.tune(budget_s=5.0) == best


async def test_too_many_waiting_requests_are_turned_away(
    client: Client, service: Service, delivered: Delivered, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service_module, "MAX_WAITING", 3)
    async with service.stable.lock:
        asking = [asyncio.create_task(client.post("/predict", json=page.features)) for page in PAGES[:9]]
        await eventually(lambda: sum(task.done() for task in asking) == 9 - 3, what="the refusals")
    statuses = sorted([(await task).status for task in asking])
    assert statuses == [200] * 4 + [503] * 5
    events = await reported(delivered, 9)
    assert sum(event.get("error_type") == "Overloaded" for event in events) == 5


# --- as a process ---------------------------------------------------------------------------------------------


class Log:
    """The events in an embedded log."""

    def __init__(self, broker: EmbeddedBroker, url: str) -> None:
        self._broker = broker
        self.url = url

    async def events(self, topic: str) -> list[Event]:
        reader = await self._broker.reader([topic])
        ends = await reader.ends()
        values = []
        while any(reader.positions()[partition] < end for partition, end in ends.items()):
            values += [record.value or b"" for chunk in (await reader.poll()).values() for record in chunk]
        return [event for value in values for event in events_in(INPUT_TOPICS[topic], value)]


@pytest.fixture
async def log(tmp_path: Path) -> AsyncIterator[Log]:
    settings = load(data_dir=tmp_path)
    broker = await EmbeddedBroker.open(settings)
    await broker.create_topics(topic_specs(partitions=2))
    app = web.Application()
    app.add_routes(gateway.routes(broker, settings.web))
    async with serve_http(app, "127.0.0.1", 0) as port:
        yield Log(broker, f"http://127.0.0.1:{port}")
    await broker.close()


Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start the service, or a process that starts it; whatever is left at the end is killed."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*arguments: str, through: list[str] | None = None) -> subprocess.Popen[bytes]:
        command = [*(through or []), sys.executable, "-m", "examples.model_service", *arguments]
        started.append(subprocess.Popen(command, cwd=ROOT))
        return started[-1]

    yield start
    for process in started:
        for left in family(process.pid):
            with contextlib.suppress(psutil.NoSuchProcess):
                left.kill()
        process.wait()


def family(pid: int) -> list[psutil.Process]:
    try:
        parent = psutil.Process(pid)
        return [parent, *parent.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


async def test_the_process_reports_load_errors_labels_and_trouble_and_ends_when_told(log: Log, start: Start) -> None:
    options = ["--rate", "100", "--label-delay", "1", "--tuning-first", "3", "--tuning-lasts", "60"]
    process = start("--events", log.url, *options)
    await eventually(lambda: log_has_slow_requests(log), deadline_s=60, what="slow requests")
    await eventually(lambda: log_has(log, "labels", 100), deadline_s=30, what="labels")
    members = family(process.pid)
    process.send_signal(signal.SIGTERM)
    told = time.monotonic()
    assert await asyncio.to_thread(process.wait, 10) == 0
    assert time.monotonic() - told < 5
    assert len(members) == 2
    assert not any(member.is_running() for member in members)

    events = {event["event_id"]: event for event in await log.events("inference") if event["status"] == "ok"}
    assert {event["model_version"] for event in events.values()} == {"knn-1", "knn-2"}
    assert len({event["trace_id"] for event in events.values()}) == len(events)
    assert any(event["error_type"] == "Malformed" for event in await log.events("inference") if event["status"] != "ok")
    for label in await log.events("labels"):
        assert label["time_unix_s"] >= events[label["event_id"]]["time_unix_s"] + 0.45


async def log_has(log: Log, topic: str, count: int) -> bool:
    return len(await log.events(topic)) >= count


async def log_has_slow_requests(log: Log) -> bool:
    stable = [e for e in await log.events("inference") if e["model_version"] == "knn-1"]
    return sum(event["duration_s"] > 0.2 for event in stable) >= 5 and any(e["status"] == "error" for e in stable)


@pytest.mark.parametrize("moment", ["loading", "running"])
def test_the_service_and_its_load_end_when_their_parent_is_killed(start: Start, moment: str) -> None:
    # The shell stays the parent, because there is something left to do after the service.
    parent = start("--rate", "10", through=["sh", "-c", '"$@"; true', "sh"])
    wait_until(lambda: len(family(parent.pid)) == 3, 30, "the service and its load")
    orphans = family(parent.pid)[1:]
    if moment == "running":
        wait_until(lambda: connected(orphans[0]), 30, "a connection with the load")
    parent.kill()
    parent.wait()
    wait_until(lambda: not any(map(alive, orphans)), 20, "the end of both")


def connected(process: psutil.Process) -> bool:
    return any(connection.status == psutil.CONN_ESTABLISHED for connection in process.net_connections("tcp4"))


def alive(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.status() != psutil.STATUS_ZOMBIE
    return False


def test_without_its_load_the_service_ends_with_an_error(start: Start) -> None:
    process = start("--rate", "10")
    wait_until(lambda: len(family(process.pid)) == 2, 30, "the load")
    family(process.pid)[1].kill()
    assert process.wait(30) == 1
