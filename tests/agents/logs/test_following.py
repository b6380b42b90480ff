"""Files that grow, are rotated, truncated and replaced: every line comes once."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from streammon.broker import Outgoing
from streammon.broker.embedded import EmbeddedBroker
from streammon.errors import Backpressure, Reason, Rejected, Retryable
from streammon.events import EventType
from streammon.topics import topic_specs
from streammon.wire import Batch, decode
from streammon_agents.logs import log_source
from streammon_agents.logs.positions import Positions
from streammon_agents.logs.reader import Loss, Reader
from streammon_agents.logs.redaction import SECRETS, Redactor, redactor
from streammon_agents.logs.tail import Skip
from tests.agents.logs.running import Refusing, events, messages, running, settings
from tests.outlets import Kept
from tests.support import eventually


async def test_lines_come_with_service_level_time_and_file(tmp_path: Path) -> None:
    file = tmp_path / "shop.log"
    file.write_text('2026-11-29 17:20:29,500 WARNING slow\n{"message": "ready", "level": "info", "n": 3}\n')
    async with running(settings(tmp_path / "data", {"paths": [str(tmp_path / "*.log")]})) as out:
        await eventually(lambda: len(messages(out)) == 2)
    first, second = events(out)
    assert (first["message"], first["level"]) == ("2026-11-29 17:20:29,500 WARNING slow", "warn")
    assert (first["service"], first["category"]) == ("shop", "app")
    assert second["fields"] == {"n": 3, "log.file.path": str(file)}


async def test_without_inputs_nothing_is_touched(tmp_path: Path) -> None:
    async with running(settings(tmp_path / "data")) as out:
        await asyncio.sleep(0)
    assert not out.records
    assert not (tmp_path / "data").exists()
    [finding] = log_source(settings(tmp_path / "data")).check()
    assert (finding.seen, finding.fix) == (False, "set agent.logs.inputs")


class Writer:
    """Writes numbered lines as fast as it may, in a thread, as a service does: its file is rotated beneath it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.written = 0
        self._stop = threading.Event()
        self.lock = threading.Lock()
        self._file = path.open("ab", buffering=0)
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        while not self._stop.is_set():
            with self.lock:
                for _ in range(20):
                    self._file.write(b"line %d of this file, and some more of it\n" % self.written)
                    self.written += 1
            time.sleep(0.001)

    def reopen(self) -> None:
        """As a service does when logrotate tells it to."""
        with self.lock:
            self._file.close()
            self._file = self.path.open("ab", buffering=0)

    @contextmanager
    def writing(self) -> Iterator[None]:
        self._thread.start()
        try:
            yield
        finally:
            self._stop.set()
            self._thread.join()
            self._file.close()


def rename(path: Path, number: int, writer: Writer) -> None:
    """logrotate's ``create``: the service goes on writing into the renamed file until it is told."""
    path.rename(path.with_name(f"{path.name}.{number}"))
    path.touch()
    time.sleep(0.02)
    writer.reopen()


def copytruncate(path: Path, number: int, writer: Writer) -> None:
    with writer.lock:  # what is written meanwhile, logrotate itself would lose
        shutil.copyfile(path, path.with_name(f"{path.name}.{number}"))
        os.truncate(path, 0)


@pytest.mark.parametrize("rotate", [rename, copytruncate])
@pytest.mark.parametrize("pattern", ["app.log", "app.log*"])
async def test_every_line_comes_once_through_rotation(
    tmp_path: Path, rotate: Callable[[Path, int, Writer], None], pattern: str
) -> None:
    path = tmp_path / "app.log"
    writer = Writer(path)
    async with running(settings(tmp_path / "data", {"paths": [str(tmp_path / pattern)]})) as out:
        with writer.writing():
            for number in range(1, 6):
                now = writer.written  # a file that nobody has seen before it is rotated is nobody's
                await eventually(lambda now=now: len(messages(out)) > now + 100, 20)  # type: ignore[misc]
                await asyncio.to_thread(rotate, path, number, writer)
        expected = [f"line {at} of this file, and some more of it" for at in range(writer.written)]
        await eventually(lambda: len(messages(out)) >= len(expected), 20)
        await asyncio.sleep(0.2)
    came = Counter(messages(out))
    assert [line for line in expected if line not in came] == []
    assert {line: times for line, times in came.items() if times > 1} == {}


def test_a_copy_of_a_file_that_goes_on_is_not_told_again(tmp_path: Path) -> None:
    file = tmp_path / "app.log"
    file.write_text("".join(f"line {at}\n" for at in range(50)))
    wanted = settings(tmp_path, {"paths": [f"{tmp_path}/app.log*"]}, discover_s=1, multiline_s=0.1)
    now, lines = 0.0, list[str]()
    reader = Reader(wanted.agent.logs, Positions(None), redactor(), monotonic=lambda: now)
    for step in range(50):
        now += 1.0
        lines += [event["message"] for event in reader.collect().events]
        if step == 3:
            shutil.copyfile(file, tmp_path / "app.log.bak")
        with file.open("a") as append:
            append.write(f"more {step}\n")
    assert lines == [*(f"line {at}" for at in range(50)), *(f"more {step}" for step in range(len(lines) - 50))]
    assert len(lines) > 95
    reader.close()


@pytest.mark.parametrize("read_on", [False, True])
def test_a_copy_that_is_seen_while_it_is_made_is_told_from_where_it_is_new(tmp_path: Path, read_on: bool) -> None:
    """``read_on``: the original grows, and is read, between its copy and its truncation."""
    file, copy = tmp_path / "app.log", tmp_path / "app.log.1"
    wanted = settings(tmp_path, {"paths": [f"{tmp_path}/app.log*"]}, discover_s=1, multiline_s=0.1)
    now, lines, written = 0.0, list[str](), list[str]()
    reader = Reader(wanted.agent.logs, Positions(None), redactor(), monotonic=lambda: now)

    def write(count: int) -> None:
        new = [f"line {len(written) + at} of all" for at in range(count)]
        written.extend(new)
        with file.open("a") as append:
            append.writelines(f"{line}\n" for line in new)

    def look() -> None:
        nonlocal now
        for _ in range(3):
            now += 1.0
            lines.extend(event["message"] for event in reader.collect().events)

    write(100)
    look()
    for size in (0, 300, 1200):
        copy.write_bytes(file.read_bytes()[:size])
        look()
    write(5)  # that nobody has read yet
    shutil.copyfile(file, copy)
    if read_on:
        write(5)
        look()
    os.truncate(file, 0)
    write(10)
    for _ in range(20):
        look()
    assert Counter(lines) == Counter(written)
    reader.close()


async def test_truncation_without_a_copy_begins_anew(tmp_path: Path) -> None:
    file = tmp_path / "app.log"
    file.write_text("one\ntwo\n")
    async with running(settings(tmp_path / "data", {"paths": [str(file)]})) as out:
        await eventually(lambda: messages(out) == ["one", "two"])
        file.write_text("tri\n")
        await eventually(lambda: messages(out) == ["one", "two", "tri"])
        file.write_text("new and longer than before\n")  # truncated, and grown beyond the place, between two looks
        await eventually(lambda: messages(out)[3:] == ["new and longer than before"])
        file.write_text("just as long as that before\n"[:26] + "\n")
        await eventually(lambda: len(messages(out)) == 5)


async def test_a_deleted_file_is_read_to_its_end(tmp_path: Path) -> None:
    file = tmp_path / "app.log"
    file.write_text("one\n")
    async with running(settings(tmp_path / "data", {"paths": [str(tmp_path / "*.log")]})) as out:
        await eventually(lambda: messages(out) == ["one"])
        with file.open("a") as still_open:
            file.unlink()
            still_open.write("two\n")
            still_open.flush()
            await eventually(lambda: messages(out) == ["one", "two"])
            file.write_text("another file\n")
            still_open.write("three\n")
            still_open.flush()
            await eventually(lambda: set(messages(out)) == {"one", "two", "another file", "three"})


def test_what_was_not_held_open_is_found_under_its_new_name_or_counted(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.log").write_text('{"message": "first"}\n')
    wanted = settings(tmp_path, {"paths": [f"{tmp_path}/*.log"]}, max_open_files=1)
    now = 0.0
    reader = Reader(wanted.agent.logs, Positions(None), redactor(), monotonic=lambda: now)
    assert len(reader.collect().events) == 3
    for name in ("a", "b", "c"):
        with (tmp_path / f"{name}.log").open("a") as file:
            file.write(f'{{"message": "more of {name}"}}\n')
    (tmp_path / "a.log").rename(tmp_path / "a.log.1")
    (tmp_path / "b.log").unlink()
    more, refused = set(), Counter[Skip]()
    for _ in range(5):
        now += 10.0
        collected = reader.collect()
        more |= {event["message"] for event in collected.events}
        refused += collected.refused
    assert {"more of a", "more of c"} <= more
    assert reader.files == 1
    reader.close()


async def test_links_are_followed_and_a_file_with_two_names_is_read_once(tmp_path: Path) -> None:
    pods = tmp_path / "pods" / "shop_ranker-6d4b75cb6d-x2x7k_0f1e-22" / "web"
    pods.mkdir(parents=True)
    (pods / "0.log").write_text("2026-11-29T17:20:29.5Z stderr F hello\n")
    links = tmp_path / "containers"
    links.mkdir()
    link = links / f"ranker-6d4b75cb6d-x2x7k_shop_web-{'a' * 64}.log"
    link.symlink_to(pods / "0.log")
    (links / "broken.log").symlink_to(pods / "nothing.log")
    inputs = {"paths": [f"{links}/*.log", f"{tmp_path}/pods/*/*/*.log"]}
    async with running(settings(tmp_path / "data", inputs)) as out:
        await eventually(lambda: len(messages(out)) == 1)
        (pods / "0.log").rename(pods / "0.log.20261129-172030")  # as the kubelet rotates
        (pods / "0.log").write_text("2026-11-29T17:20:31.5Z stdout F again\n")
        await eventually(lambda: len(messages(out)) == 2)
    first, second = events(out)
    assert (first["service"], first["message"], first["time_unix_s"]) == ("ranker", "hello", 1795972829.5)
    assert first["fields"] == {
        "kubernetes.pod.name": "ranker-6d4b75cb6d-x2x7k", "kubernetes.namespace": "shop", "container.id": "a" * 64,
        "kubernetes.container.name": "web", "log.iostream": "stderr", "log.file.path": str(link),
    }  # fmt: skip
    assert second["message"] == "again"


async def test_from_the_end_means_what_was_there_at_first(tmp_path: Path) -> None:
    (tmp_path / "old.log").write_text("long ago\nwithout an en")
    wanted = settings(tmp_path / "data", {"paths": [str(tmp_path / "*.log")], "start": "end"})
    async with running(wanted) as out:
        await eventually(lambda: (tmp_path / "data" / "logs" / "positions.sqlite").exists())
        await eventually(lambda: out.states)
        with (tmp_path / "old.log").open("a") as file:
            file.write("d\nnow\n")
        (tmp_path / "new.log").write_text("from the beginning\n")
        await eventually(lambda: sorted(messages(out)) == ["from the beginning", "now"])
    (tmp_path / "while-away.log").write_text("meanwhile\n")
    async with running(wanted) as out:
        await eventually(lambda: messages(out) == ["meanwhile"])


async def test_after_a_restart_it_goes_on_where_it_was_even_in_a_renamed_file(tmp_path: Path) -> None:
    file = tmp_path / "app.log"
    file.write_text("one\n")
    wanted = settings(tmp_path / "data", {"paths": [str(file)]})
    async with running(wanted) as out:
        await eventually(lambda: messages(out) == ["one"])
        await eventually(lambda: out.states)
    with file.open("a") as append:
        append.write("two\n")
    file.rename(tmp_path / "app.log.1")
    file.write_text("three\n")
    async with running(wanted) as out:
        await eventually(lambda: sorted(messages(out)) == ["three", "two"])


async def test_a_last_line_without_an_end_waits_but_not_for_ever(tmp_path: Path) -> None:
    file = tmp_path / "app.log"
    file.write_text("one\nhal")
    async with running(settings(tmp_path / "data", {"paths": [str(file)]}, partial_s=0.6)) as out:
        await eventually(lambda: messages(out) == ["one"])
        with file.open("a") as append:
            append.write("f\nthe re")
        await eventually(lambda: messages(out) == ["one", "half"])
        await eventually(lambda: messages(out) == ["one", "half", "the re"])


# --- what lies about ----------------------------------------------------------------------------------------


async def test_whatever_is_no_readable_text_file_is_counted_once_and_harms_nobody(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.log")
    (tmp_path / "directory.log").mkdir()
    (tmp_path / "device.log").symlink_to("/dev/zero")
    (tmp_path / "binary.log").write_bytes(random.Random(1).randbytes(5000))
    (tmp_path / "packed.log").write_bytes(b"\x1f\x8b\x08\0gzip")
    (tmp_path / "app.log.2.gz").write_bytes(b"\x1f\x8b\x08\0gzip")
    (tmp_path / "left.log").write_text("left out\n")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "s.log"))
        (tmp_path / "app.log").write_bytes(b"good\n" * 60 + b"with \0 zeros\n\xff\xfe bad\n\n   \nlast\n")
        wanted = settings(tmp_path / "data", {"paths": [f"{tmp_path}/*.log*"], "exclude": ["left.*"]})
        async with running(wanted) as out:
            await eventually(lambda: messages(out) == [*["good"] * 60, "�� bad", "last"])
            await eventually(lambda: out.states and out.states[-1])
            await asyncio.sleep(0.2)  # files are looked for several times
    assert out.refused == {Skip.NOT_A_FILE: 4, Skip.BINARY: 3}
    told = out.states[-1]
    assert told is not None
    assert "FIFO" in told
    findings = {finding.seen: finding for finding in log_source(wanted).check()}
    assert findings[True].detail == "3 files"
    assert "fifo.log: it is a FIFO" in findings[False].detail


def append(path: bytes, text: str) -> None:
    with open(path, "a") as file:  # noqa: PTH123 - names that are no text
        file.write(text)


async def test_names_of_files_that_are_no_text_harm_nobody(tmp_path: Path) -> None:
    raw = os.fsencode(tmp_path)
    os.mkfifo(raw + b"/fifo \xff.log")
    for name, text in ((b"/bad \xff.log", "one\n"), (b"/new\nline.log", "two\n"), (b"/good.log", "three\n")):
        append(raw + name, text)
    wanted = settings(tmp_path / "data", {"paths": [f"{tmp_path}/*.log"]})
    async with running(wanted) as out:
        await eventually(lambda: {*messages(out)} == {"one", "two", "three"})
        await eventually(lambda: "fifo ?.log" in str(out.states))
    assert any("bad ?.log" in event["fields"]["log.file.path"] for event in events(out))
    assert str(list(log_source(wanted).check())).isascii()
    append(raw + b"/bad \xff.log", "four\n")
    async with running(wanted) as out:
        await eventually(lambda: messages(out) == ["four"])


async def test_an_unreadable_file_is_read_once_it_may_be(tmp_path: Path) -> None:
    file = tmp_path / "app.log"
    file.symlink_to(file)  # permissions are nothing to root, who may run this
    async with running(settings(tmp_path / "data", {"paths": [str(file)]})) as out:
        await eventually(lambda: out.refused == {Skip.UNREADABLE: 1})
        await eventually(lambda: "symbolic links" in str(out.states))
        file.unlink()
        file.write_text("one\n")
        await eventually(lambda: messages(out) == ["one"])
        await eventually(lambda: out.states[-1] is None)


async def test_a_line_of_100_mb_is_cut_in_bounded_memory(tmp_path: Path) -> None:
    file = tmp_path / "app.log"
    with file.open("wb") as out_file:
        out_file.truncate(0)
        for _ in range(100):
            out_file.write(b"x" * 1_000_000)
        out_file.write(b"\nnext\n")
    before = resident()
    async with running(settings(tmp_path / "data", {"paths": [str(file)], "format": "text"})) as out:
        await eventually(lambda: len(messages(out)) == 2, 60)
    cut, after = events(out)
    assert len(cut["message"]) == 65_536
    assert cut["fields"]["log.cut_bytes"] == 100_000_000 - 65_536
    assert after["message"] == "next"
    assert resident() - before < 50_000_000


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def test_ten_thousand_files_are_followed_with_few_open(tmp_path: Path) -> None:
    for number in range(10_000):
        (tmp_path / f"{number}.log").write_text(f'{{"message": "of {number}"}}\n')
    wanted = settings(tmp_path, {"paths": [f"{tmp_path}/*.log"]}, max_open_files=100, max_files=9_990, discover_s=1000)
    now = 0.0
    reader = Reader(wanted.agent.logs, Positions(None), redactor(), monotonic=lambda: now)
    before = open_files()
    lines: set[str] = set()
    refused: Counter[Skip] = Counter()
    while len(lines) < 9_990:
        collected = reader.collect()
        lines |= {event["message"] for event in collected.events}
        refused += collected.refused
        assert open_files() - before <= 101
        now += 1.0
        assert now < 100
    assert refused == {Skip.TOO_MANY_FILES: 10}
    with (tmp_path / f"{lines.pop().removeprefix('of ')}.log").open("a") as file:
        file.write('{"message": "more"}\n')
    now += 1000.0
    assert [event["message"] for event in [*reader.collect().events, *reader.collect().events]] == ["more"]
    reader.close()


# --- handing over -------------------------------------------------------------------------------------------


async def test_while_there_is_no_room_lines_wait_in_their_files(tmp_path: Path) -> None:
    (tmp_path / "audit.log").write_text("".join(f"line {at}\n" for at in range(1000)))
    out = Refusing(*[Backpressure("full", 0.01)] * 5, Retryable("away"))
    wanted = settings(tmp_path / "data", {"paths": [f"{tmp_path}/*.log"]}, batch_events=100, rate_per_s=1, burst=1)
    async with running(wanted, out):
        await eventually(lambda: len(messages(out)) == 1000)
    assert messages(out) == [f"line {at}" for at in range(1000)]
    assert {event["category"] for event in events(out)} == {"audit"}
    assert not out.dropped, "what is not of category app is never dropped"
    assert any(state and "wait" in state for state in out.states)


class Picky(Kept):
    """Never takes records of one service."""

    async def append(self, records: Sequence[Outgoing]) -> None:
        if any(record.key == b"bad" for record in records):
            raise Rejected(Reason.TOO_LARGE, "no")
        await super().append(records)


async def test_one_record_that_is_refused_takes_no_other_with_it(tmp_path: Path) -> None:
    for name in ("a", "bad", "c"):
        (tmp_path / f"{name}.log").write_text('{"message": "one"}\n{"message": "two"}\n')
    out = Picky()
    async with running(settings(tmp_path / "data", {"paths": [f"{tmp_path}/*.log"]}), out):
        await eventually(lambda: out.dropped == {Reason.TOO_LARGE: 2})
        await eventually(lambda: len(messages(out)) == 4)


def test_a_line_that_nobody_foresaw_stops_no_other_and_is_not_quoted(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    class Failing(Redactor):
        def event(self, event: dict[str, Any]) -> dict[str, Any]:
            if "swordfish" in event["message"]:
                raise ValueError(event["message"])
            return super().event(event)

    (tmp_path / "a.log").write_text('{"message": "one"}\n{"message": "swordfish"}\n{"message": "two"}\n')
    wanted = settings(tmp_path, {"paths": [f"{tmp_path}/*.log"]})
    reader = Reader(wanted.agent.logs, Positions(None), Failing(SECRETS))
    collected = reader.collect()
    assert [event["message"] for event in collected.events] == ["one", "two"]
    assert collected.failed == 1
    assert "swordfish" not in str(capfd.readouterr())
    reader.close()


async def test_what_the_log_never_takes_is_counted(tmp_path: Path) -> None:
    (tmp_path / "a.log").write_text('{"message": "one"}\n{"message": "two"}\n')
    out = Refusing(Rejected(Reason.TOO_LARGE, "no"))
    async with running(settings(tmp_path / "data", {"paths": [f"{tmp_path}/*.log"]}), out):
        await eventually(lambda: out.dropped)
        with (tmp_path / "a.log").open("a") as file:
            file.write("three\n")
        await eventually(lambda: messages(out) == ["three"])
    assert out.dropped == {Reason.TOO_LARGE: 2}


class IntoLog(Kept):
    """Hands over to a real log, as the carrier does while that answers."""

    def __init__(self, broker: EmbeddedBroker) -> None:
        super().__init__()
        self.broker = broker

    async def append(self, records: Sequence[Outgoing]) -> None:
        await self.broker.append(records)


async def test_events_of_services_arrive_in_the_log_under_numbers_without_gaps(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.log").write_text("".join(f'{{"message": "{at}"}}\n' for at in range(500)))
    wanted = settings(tmp_path / "data", {"paths": [f"{tmp_path}/*.log"]}, batch_events=100)
    broker = await EmbeddedBroker.open(wanted)
    await broker.create_topics(topic_specs(partitions=2))
    reader, came = await broker.reader(["logs"]), list[Batch]()

    async def arrived() -> bool:
        for record in [record for polled in (await reader.poll(0.1)).values() for record in polled]:
            came.extend(decode(EventType.LOG, record.value or b""))
        return sum(len(batch.rows) for batch in came) >= 1000

    async with running(wanted, IntoLog(broker)):
        await eventually(arrived)
    numbers: dict[tuple[str, str], list[int]] = {}
    for batch in came:
        assert batch.identity is not None
        numbers.setdefault((batch.identity.agent, batch.identity.boot), []).append(batch.identity.seq)
    assert {agent for agent, _ in numbers} == {"agent@here"}
    assert all(seqs == list(range(len(seqs))) for seqs in numbers.values())
    await reader.close()
    await broker.close()


async def test_where_nothing_can_be_written_it_reads_all_the_same(tmp_path: Path) -> None:
    (tmp_path / "a.log").write_text("\ufeffone\n")
    (tmp_path / "data").write_text("no directory")
    async with running(settings(tmp_path / "data", {"paths": [f"{tmp_path}/*.log"]})) as out:
        await eventually(lambda: messages(out) == ["one"])
        await eventually(lambda: "read again" in str(out.states))
    told = list(log_source(settings(tmp_path / "data", {"paths": [f"{tmp_path}/*.log"]})).check())
    assert [(finding.what, finding.seen) for finding in told] == [
        (f"log files {tmp_path}/*.log", True),
        ("positions of log files", False),
    ]


async def test_broken_positions_are_put_aside(tmp_path: Path) -> None:
    (tmp_path / "a.log").write_text("one\n")
    file = tmp_path / "data" / "logs" / "positions.sqlite"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"no database at all, however long one looks at it" * 100)
    async with running(settings(tmp_path / "data", {"paths": [f"{tmp_path}/*.log"]})) as out:
        await eventually(lambda: messages(out) == ["one"])
    assert file.with_suffix(".broken").exists()


async def test_two_sources_do_not_read_for_one_directory(tmp_path: Path) -> None:
    (tmp_path / "a.log").write_text("one\n")
    wanted = settings(tmp_path / "data", {"paths": [f"{tmp_path}/*.log"]})
    async with running(wanted) as first:
        await eventually(lambda: messages(first) == ["one"])
        async with running(wanted) as second:
            await eventually(lambda: second.states)
            assert "another process" in str(second.states)
            assert not second.records


def test_the_rate_limit_drops_app_lines_only_and_counts_exactly(tmp_path: Path) -> None:
    for service in ("a", "b"):
        lines = [f'{{"msg":"{at}","category":"{"audit" if at % 4 == 0 else "app"}"}}\n' for at in range(400)]
        (tmp_path / f"{service}.log").write_text("".join(lines))
    wanted = settings(tmp_path, {"paths": [f"{tmp_path}/*.log"]}, rate_per_s=10, burst=50, discover_s=1000)
    now = 0.0
    reader = Reader(wanted.agent.logs, Positions(None), redactor(), monotonic=lambda: now, clock=lambda: 1.8e9 + now)
    first = reader.collect()
    assert Counter((each["service"], each["category"]) for each in first.events) == {
        ("a", "audit"): 100, ("a", "app"): 50, ("b", "audit"): 100, ("b", "app"): 50,
    }  # fmt: skip
    assert first.dropped == {"a": 250, "b": 250}
    now = 3.0
    with (tmp_path / "a.log").open("a") as file:
        file.write('{"msg":"x"}\n' * 40)
    second = reader.collect()
    assert len(second.events) == 30, "three seconds at ten a second"
    assert second.dropped == {"a": 10}
    now = 61.0
    third = reader.collect().events
    assert {(each["service"], each["message"], each["fields"]["log.dropped"]) for each in third} == {
        ("a", "260 lines were dropped by the rate limit", 260),
        ("b", "250 lines were dropped by the rate limit", 250),
    }
    now = 122.0
    assert not reader.collect().events
    reader.close()


async def test_drops_of_the_rate_limit_are_told_to_the_outlet(tmp_path: Path) -> None:
    (tmp_path / "a.log").write_text("x\n" * 500)
    wanted = settings(tmp_path / "data", {"paths": [f"{tmp_path}/*.log"]}, rate_per_s=0.001, burst=200)
    async with running(wanted) as out:
        await eventually(lambda: out.dropped == {Loss.RATE_LIMIT: 300})
    assert len(messages(out)) == 200
