"""A rule about a service whose models lie in different partitions, from events to the alert, on both brokers."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from streammon.broker import Broker, connect
from streammon.cli.data import Emitter
from streammon.config import Settings
from streammon.events import EventType
from streammon.topics import topic_specs
from streammon.wire import Density
from streammon_processors import builtin
from streammon_processors.runtime import run_processor
from tests.faults.judge import read_all
from tests.support import eventually

MODELS = 8
PARTITIONS = 4
RULE = {
    "name": "failing",
    "source": "inference",
    "window": "4s",
    "by": ["service"],
    "expr": f"error_rate > 0.4 && error_rate < 0.6 && count > {6 * 4 * 10}",  # of more than six models
    "severity": "critical",
    "summary": "{service} fails: {value}",
}
MAKERS = (
    builtin.windows_processor,
    builtin.rollups_processor,
    builtin.regroup_processor,
    builtin.group_processor,
    builtin.rules_processor,
)


@pytest.fixture(params=["embedded", "kafka"])
def where(request: pytest.FixtureRequest, tmp_path: Path, unique: str) -> dict[str, Any]:
    if request.param == "embedded":
        return {"data_dir": tmp_path / "data", "topics": {"partitions": PARTITIONS}}
    kafka = request.getfixturevalue("kafka")
    return {"bootstrap": kafka.address, "topics": {"prefix": f"{unique}.", "partitions": PARTITIONS}}


def requests(second: float) -> list[bytes]:
    """Ten a second of each model of two services; all of every other model of one of them fail."""
    return [
        json.dumps(
            {
                "time_unix_s": second + number / 10,
                "service": service,
                "model": f"model-{model}",
                "duration_s": 0.1,
                "status": "error" if service == "shop" and model % 2 else "ok",
            }
        ).encode()
        for service in ("shop", "bank")
        for model in range(MODELS)
        for number in range(10)
    ]


@asynccontextmanager
async def traffic(broker: Broker) -> AsyncIterator[None]:
    async def send() -> None:
        emitter = Emitter(EventType.INFERENCE, Density.PACKED, batch=20)
        while True:
            await broker.append([*emitter.take(requests(time.time() - 1)), *emitter.flush()])
            await asyncio.sleep(1)  # not synchronisation: it is the traffic

    sending = asyncio.create_task(send())
    try:
        yield
    finally:
        sending.cancel()
        with suppress(asyncio.CancelledError):
            await sending


@asynccontextmanager
async def processors(broker: Broker, settings: Settings) -> AsyncIterator[None]:
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        for make in MAKERS:
            tasks.create_task(run_processor(broker, make(settings), settings, stop=stop))
        try:
            yield
        finally:
            stop.set()


@pytest.mark.timeout(180)
async def test_one_alert_for_a_service_whose_models_are_in_several_partitions(
    where: dict[str, Any], tmp_path: Path
) -> None:
    (tmp_path / "rules.yaml").write_text(json.dumps({"rules": [RULE]}))
    settings = Settings(**where, windows={"rollups_s": (4,)}, rules={"files": [tmp_path / "rules.yaml"]})
    broker = await connect(settings)
    try:
        await broker.create_topics(topic_specs(partitions=PARTITIONS))
        async with processors(broker, settings), traffic(broker):
            await eventually(partial(has_fired, broker), 120, what="the alert of the service")
        alerts = [json.loads(record.value or b"") for record in await read_all(broker, "alerts")]
        assert {json.dumps(alert["labels"]) for alert in alerts} == {'{"service": "shop"}'}
        assert len({record.partition for record in await read_all(broker, "regrouped")}) <= 2, "two groups"
        copied = [json.loads(record.value or b"") for record in await read_all(broker, "regrouped")]
        parts = {part.get("partition") for part in copied if part.get("series") == {"service": "shop"}}
        assert len(parts) > 1, "its models lie in several partitions"
    finally:
        await broker.close()


async def has_fired(broker: Broker) -> bool:
    return any(b'"firing"' in (record.value or b"") for record in await read_all(broker, "alerts"))
