"""kill -9 on the join: each pair is published once, whatever becomes of the processes and of their disks."""

from __future__ import annotations

import asyncio
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from streammon import wire
from streammon.broker import Broker, Outgoing, connect
from streammon.cli.roles import topics_of
from streammon.config import Settings
from streammon.events import EventType
from streammon.outcomes import OUTCOMES, Cohort, Outcomes, decode
from streammon_processors.builtin import join_processor
from streammon_processors.replay import Range
from streammon_processors.verification import Verdict, verify
from tests.faults.judge import read_all
from tests.support import cli, eventually

PREDICTIONS, BATCH = 12_000, 25
LIVES = 5
SHARES = 2 * LIVES + 1
PARTITIONS = 2


@pytest.fixture(params=["embedded", "kafka"])
def settings(request: pytest.FixtureRequest, tmp_path: Path, unique: str) -> Settings:
    where: dict[str, Any] = {"data_dir": tmp_path / "data", "topics": {"partitions": PARTITIONS}}
    if request.param == "kafka":
        kafka = request.getfixturevalue("kafka")
        where |= {"bootstrap": kafka.address, "topics": {"partitions": PARTITIONS, "prefix": f"{unique}."}}
    return Settings(**where)


def sent(now: float) -> tuple[list[Outgoing], list[Outgoing], Counter[tuple[str, str]]]:
    """Predictions, labels of most of them in another order, and the pairs: an id, and what the label says."""
    rng = random.Random(5)
    common = {"time_unix_s": now, "service": "shop"}
    names = [
        {**common, "model": f"model-{number % 5}", "event_id": f"request-{number}"} for number in range(PREDICTIONS)
    ]
    told = {"duration_s": 0.1, "status": "ok", "prediction": 1.0}
    predictions = [{**each, **told} for each in names]
    labels = [{**each, "label": f"truth {number}"} for number, each in enumerate(names)]
    labels = [each for each in labels if rng.random() < 0.9]
    pairs = Counter((str(each["event_id"]), str(each["label"])) for each in labels)
    rng.shuffle(labels)
    return _records(EventType.INFERENCE, predictions), _again(_records(EventType.LABEL, labels)), pairs


def _again(records: Sequence[Outgoing]) -> list[Outgoing]:
    """With some that say the same once more."""
    return [each for record in records for each in [record] * (2 if len(record.value or b"") % 7 == 0 else 1)]


def _records(kind: EventType, events: Sequence[dict[str, Any]]) -> list[Outgoing]:
    topic = "inference" if kind is EventType.INFERENCE else "labels"
    by_model: dict[str, list[dict[str, Any]]] = {}
    found = []
    for event in events:
        own = by_model.setdefault(event["model"], [])
        own.append(event)
        if len(own) == BATCH:
            found.append((event["model"], own))
            by_model[event["model"]] = []
    found += [(model, own) for model, own in by_model.items() if own]
    return [Outgoing(topic, f"shop/{model}".encode(), wire.encode(kind, own)[0]) for model, own in found]


async def published(broker: Broker) -> list[Outcomes | Cohort]:
    return [decode(record.value or b"") for record in await read_all(broker, OUTCOMES)]


def pairs_of(records: Sequence[Outcomes | Cohort]) -> Counter[tuple[str, str]]:
    pairs: Counter[tuple[str, str]] = Counter()
    for record in records:
        if isinstance(record, Outcomes):
            pairs.update((name, str(label)) for name, label in zip(record.event_id, record.label, strict=True))
    return pairs


@pytest.mark.timeout(300)
async def test_killed_processes_and_lost_disks_lose_no_pair_and_repeat_none(settings: Settings, tmp_path: Path) -> None:
    rng = random.Random(11)
    file = tmp_path / "streammon.json"  # JSON is YAML
    file.write_text(settings.model_dump_json(include={"bootstrap", "data_dir", "topics"}))
    broker = await connect(settings)
    await broker.create_topics(topics_of(settings, [join_processor(settings)]))
    began = time.time()
    predictions, labels, pairs = sent(began)
    state = settings.data_dir / "state" / "join"

    async def feed(share: int) -> None:
        parts = [each[share::SHARES] for each in (predictions, labels)]
        await broker.append([record for part in rng.sample(parts, 2) for record in part])

    for life in range(LIVES):
        before = len(await published(broker))
        process = cli("process", "join", "--config", file)
        try:
            await feed(2 * life)
            await eventually(partial(_more_than, broker, before), 60, what=f"outcomes in life {life}")
            await feed(2 * life + 1)
            await asyncio.sleep(rng.uniform(0, 0.5))  # not synchronisation: the moment of the kill is the experiment
        finally:
            process.send_signal(signal.SIGTERM if life == 2 else signal.SIGKILL)
            process.wait(15)
        assert list(state.glob("*/[0-9]*")), "it keeps its memory on disk"
        if life in (1, 2):
            shutil.rmtree(state)
    process = cli("process", "join", "--config", file)
    try:
        await feed(SHARES - 1)
        await eventually(lambda: _all_there(broker, len(pairs)), 90, what="every pair")
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(15) == 0
    assert pairs_of(await published(broker)) == pairs
    verification = await verify(broker, join_processor(settings), Range(began - 60, began + 3600), max_future_s=60.0)
    judged: Counter[Verdict] = Counter()
    for number in range(PARTITIONS):
        judged.update(each.verdict for each in await verification.partition(number))
    assert set(judged) == {Verdict.IDENTICAL}
    assert judged[Verdict.IDENTICAL] >= len(pairs)
    await broker.close()


async def _more_than(broker: Broker, before: int) -> bool:
    return len(await published(broker)) > before


async def _all_there(broker: Broker, count: int) -> bool:
    return sum(pairs_of(await published(broker)).values()) >= count
