"""What may never answer, and what takes its time: hanging file systems, round trips."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from streammon.config import HostMetricsSettings, load
from streammon.events import EventType
from streammon_agents.host import filesystems
from streammon_agents.host.linux import linux_source
from streammon_agents.host.patience import MOST, Patience
from streammon_agents.host.rtt import RoundTrips
from tests.outlets import Kept
from tests.support import eventually, wait_until


@pytest.fixture
def gate() -> Iterator[threading.Event]:
    """Whoever waits for it hangs until the test is over."""
    opened = threading.Event()
    yield opened
    opened.set()


def test_who_hangs_is_left_out_and_the_others_answer(gate: threading.Event) -> None:
    patience, asked = Patience("test", patience_s=0.2), []

    def hang() -> int:
        asked.append("hung")
        gate.wait()
        return 1

    def fail() -> int:
        raise FileNotFoundError

    questions = {"a": lambda: 1, "nfs": hang, "b": lambda: 2, "gone": fail}
    started = time.monotonic()
    first = patience.ask(questions)
    assert time.monotonic() - started < 2, "nobody is waited for longer than that"
    assert first == {"a": 1}, "those behind it have no time left, once"
    assert patience.hanging == ["nfs"]
    started = time.monotonic()
    assert patience.ask(questions) == {"a": 1, "b": 2}
    assert time.monotonic() - started < 0.2, "it is not waited for again"
    assert asked == ["hung"], "nor asked"
    gate.set()
    wait_until(lambda: patience.ask(questions).get("nfs") == 1)
    assert patience.hanging == []


def test_threads_that_hang_are_bounded(gate: threading.Event) -> None:
    patience, before = Patience("bounded", patience_s=0.01), threading.active_count()
    questions = {str(number): gate.wait for number in range(MOST + 20)}
    for _ in range(MOST + 5):
        patience.ask(questions)
    assert len(patience.hanging) == MOST
    assert threading.active_count() - before <= MOST + 1


def test_hanging_file_system_is_told_of_and_holds_nobody_up(
    tmp_path: Path, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "1").mkdir()
    (tmp_path / "1/mounts").write_text("/dev/vda / ext4 rw 0 0\nnas:/x /mnt/nas nfs4 rw 0 0\n")
    (tmp_path / "filesystems").write_text("\text4\n")
    mounted = filesystems.FileSystems(str(tmp_path), "/", Patience("test", patience_s=0.1))
    usage = mounted._usage
    monkeypatch.setattr(mounted, "_usage", lambda path: gate.wait() if path == "/mnt/nas" else usage(path))
    for _ in range(3):
        assert list(mounted.read()) == ["/"]
    assert mounted.hanging == ["/mnt/nas"]


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


async def test_round_trips_are_timed_and_failures_counted() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        here = f"127.0.0.1:{server.getsockname()[1]}"
        targets = (here, f"127.0.0.1:{closed_port()}", "no-such-host.invalid:80", "127.0.0.1:99999")
        settings = HostMetricsSettings(rtt_targets=targets, rtt_interval_s=0.1, rtt_timeout_s=5)
        out, ticks = Kept(), iter(range(1000))
        trips = RoundTrips("h", settings, precise=lambda: next(ticks) / 1000)
        running = asyncio.create_task(trips.run(out))
        await eventually(lambda: len(out.events) >= 4)
        running.cancel()
    by_target = {event["id"]: event for event in out.of(EventType.RESOURCE)[:4]}
    assert 0.001 <= by_target[here]["metrics"]["round_trip_s"] <= 0.004
    assert by_target[here]["counters"] == {"connects": 1, "failed_connects": 0}
    assert by_target[here]["labels"] == {"target": here}
    for target in targets[1:]:
        assert by_target[target].get("metrics", {}) == {}
        assert by_target[target]["counters"] == {"connects": 1, "failed_connects": 1}


async def test_target_that_does_not_answer_fails_in_time_and_the_beat_goes_on() -> None:
    with socket.socket() as full:  # a queue for none, which is full with one: others wait for ever
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        address = full.getsockname()
        with socket.create_connection(address):
            metrics = {"rtt_targets": [f"127.0.0.1:{address[1]}"], "rtt_interval_s": 0.2, "rtt_timeout_s": 0.2}
            source = linux_source(load(agent={"interval_s": 0.05, "host": "h", "host_metrics": metrics}))
            out = Kept()
            running = asyncio.create_task(source.run(out))

            def failed() -> bool:
                return any(event.get("counters", {}).get("failed_connects") for event in out.of(EventType.RESOURCE))

            await eventually(failed)
            assert len([event for event in out.of(EventType.RESOURCE) if event["entity"] == "cpu"]) >= 1
            running.cancel()
            await asyncio.wait({running})
