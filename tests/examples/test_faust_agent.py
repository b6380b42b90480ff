"""A Faust agent of somebody else, on typed topics of a real Kafka."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from streammon.broker import Outgoing, connect
from streammon.config import Settings
from streammon.errors import Reason
from streammon.servers import Server
from streammon.tick import TICK
from streammon.topics import topic_specs
from tests.faults.judge import read_all
from tests.sinks.builders import window
from tests.support import eventually

EXAMPLE = Path(__file__).parents[2] / "examples" / "faust_agent"
NOT_A_WINDOW = b'{"schema":1,"type":"window","source":7}'


def started(address: str, prefix: str, output: Path) -> subprocess.Popen[bytes]:
    """A worker with the example in it, as its page says."""
    settings = {"BOOTSTRAP": address, "TOPICS__PREFIX": prefix, "TOPICS__PARTITIONS": "2"}
    environment = os.environ | {f"STREAMMON_{name}": value for name, value in settings.items()}
    command = [sys.executable, "-m", "faust", "-A", "slow_models", "--datadir", str(output.parent), "worker"]
    with output.open("wb") as said:
        return subprocess.Popen(command, cwd=EXAMPLE, env=environment, stdout=said, stderr=said)


@pytest.mark.kafka
async def test_an_agent_gets_windows_and_what_is_none_goes_to_the_dead_letter(
    kafka: Server, unique: str, tmp_path: Path
) -> None:
    settings = Settings(bootstrap=kafka.address, topics={"prefix": f"{unique}.", "partitions": 2})
    broker = await connect(settings)
    try:
        await broker.create_topics(topic_specs(partitions=2))
        slow = window(series={"model": "ranker"})
        assert slow.duration_s is not None
        slow.duration_s.p99 = 2.0
        values = [TICK, NOT_A_WINDOW, msgspec.json.encode(slow), None]
        await broker.append([Outgoing("windows", b"k", value, (), 1) for value in values])
        output = tmp_path / "output"
        process = started(kafka.address, f"{unique}.", output)
        try:
            await eventually(lambda: b"ranker was slow 1 times" in output.read_bytes(), 60, "what the agent found")
            letters = await read_all(broker, "deadletter")
            assert [letter.value for letter in letters] == [NOT_A_WINDOW]
            assert dict(letters[0].headers)["reason"] == Reason.INVALID_EVENT.encode()
            assert dict(letters[0].headers)["offset"] == b"1"
        finally:
            process.kill()
            process.wait()
            print(output.read_text())
    finally:
        await broker.close()
