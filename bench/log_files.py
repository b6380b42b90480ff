"""What following log files costs: lines a second of one core by kind of line, and the share of a core of idle files."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from streammon.config import LogSettings, load
from streammon.events import EventType
from streammon_agents.logs.positions import Positions, Sending
from streammon_agents.logs.reader import Reader
from streammon_agents.logs.redaction import redactor
from streammon_agents.packing import Packer

LINES = 60_000
IDLE_S = 20
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


def text(at: int) -> str:
    return f"2026-11-29 17:20:29,{at % 1000:03} INFO shop.checkout: order {at} of customer {at % 777} in 0.0345 s"


def structured(at: int) -> str:
    fields = {"timestamp": "2026-11-29T17:20:29.123Z", "level": "info", "event": "order placed", "order": at,
              "request_id": f"r{at}", "customer": at % 777, "duration_s": 0.0345, "trace_id": TRACE}  # fmt: skip
    return json.dumps(fields)


def framed(at: int) -> str:
    return f"2026-11-29T17:20:29.{at % 1000:03}Z stdout F {text(at)}"


def personal(at: int) -> str:
    return f"2026-11-29 17:20:29,{at % 1000:03} INFO shop: mail to ann{at}@example.org password=hunter{at} sent"


def limits(directory: Path) -> LogSettings:
    inputs = [{"paths": [str(directory / "*.log")]}]
    return load(agent={"logs": {"inputs": inputs, "rate_per_s": 1e9, "burst": 10**9}}).agent.logs


def throughput(line: Callable[[int], str]) -> None:
    """From the file to numbered records, positions written, redacted: everything but handing them over."""
    with TemporaryDirectory() as name:
        directory = Path(name)
        size = (directory / "a.log").write_text("".join(f"{line(at)}\n" for at in range(LINES)))
        positions, packer = Positions(directory / "positions"), Packer("bench")
        reader, events = Reader(limits(directory), positions, redactor()), 0
        started = time.process_time()
        while events < LINES - 1:  # the last one waits for what may belong to it
            collected = reader.collect()
            batches, _ = packer.pack(EventType.LOG, collected.events)
            sending = [Sending(batch.key, batch.value, batch.events) for batch in batches]
            positions.commit(collected.files, sending, 0.0)
            positions.sent()
            events += len(collected.events)
        spent = time.process_time() - started
        reader.close()
        positions.close()
    each = f"{size / spent / 1e6:6.1f} MB/s {spent / LINES * 1e6:6.1f} us a line"
    print(f"  {line.__name__:<12} {LINES / spent:8,.0f} lines/s {each}")


def redaction(line: Callable[[int], str]) -> None:
    redact, lines = redactor(), [{"message": line(at)} for at in range(LINES)]
    started = time.process_time()
    for each in lines:
        redact.event(each)
    print(f"  {line.__name__:<12} {(time.process_time() - started) / LINES * 1e6:6.2f} us a line to redact")


def idle(files: int) -> None:
    """Files that do not grow, at the default beats."""
    with TemporaryDirectory() as name:
        directory = Path(name)
        for at in range(files):
            (directory / f"{at}.log").write_text(f"{structured(at)}\n")
        now = 0.0
        wanted = limits(directory)
        reader = Reader(wanted, Positions(None), redactor(), monotonic=lambda: now)
        while reader.collect().more or now < 100:  # by then nothing is hot any more
            now += 10
        started, beats = time.process_time(), int(IDLE_S / wanted.poll_s)
        for _ in range(beats):
            now += wanted.poll_s
            reader.collect()
        spent = time.process_time() - started
        reader.close()
    print(f"  {files:>6} idle files: {spent / IDLE_S:.3%} of a core")


if __name__ == "__main__":
    for kind in (text, structured, framed, personal):
        throughput(kind)
    for kind in (text, personal):
        redaction(kind)
    for number in (100, 1000, 10_000):
        idle(number)
