"""`streammon process quality` as a person runs it."""

from __future__ import annotations

import json
import os
from pathlib import Path

import msgspec

from streammon.broker import Outgoing, connect
from streammon.config import Settings
from streammon.outcomes import OUTCOMES
from streammon.topics import topic_specs
from tests.quality_pairs import Pair, outcomes
from tests.support import wait_until
from tests.test_cli import program, running


def pairs(minute: int) -> list[Pair]:
    return [
        Pair("fraud" if number % 4 else "fair", "fraud", 0.75, 60.0 * minute, 60.0 * minute) for number in range(40)
    ]


async def test_quality_is_told_by_the_file_of_models(tmp_path: Path) -> None:
    (tmp_path / "models.yaml").write_text("models: [{model: ranker, labels: {window: 1m, positive: fraud}}]")
    settings = Settings(data_dir=tmp_path)
    broker = await connect(settings)
    try:
        await broker.create_topics(topic_specs(partitions=settings.topics.partitions))
        values = [msgspec.json.encode(outcomes(pairs(minute))) for minute in (0, 1)]
        await broker.append([Outgoing(OUTCOMES, b"shop/ranker", value) for value in values])
    finally:
        await broker.close()

    def told() -> list[dict[str, object]]:
        printed = program("tail", "quality", "--from", "earliest", "--exit", "--data-dir", tmp_path).stdout
        return [json.loads(line) for line in printed.splitlines()]

    environment = os.environ | {"STREAMMON_MODELS__FILE": str(tmp_path / "models.yaml")}
    with running("process", "quality", "--data-dir", tmp_path, env=environment):
        wait_until(lambda: bool(told()), 30, "a result")
    [first] = told()
    assert (first["by"], first["labelled"], first["accuracy"], first["recall"]) == ("label", 40, 0.75, 0.75)
    assert (first["average"], first["size_s"]) == ("binary", 60.0)
