"""The spool: what is written is given back, once, whatever happens to the process and to the disk."""

from __future__ import annotations

import errno
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from io import FileIO
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streammon.broker import Outgoing
from streammon.errors import Backpressure
from streammon.events import EventType
from streammon.wire import Batch, decode
from streammon_agents.spool import KEPT_SHARE, Entry, Spool

MIB = 1024**2


def event(number: int, host: str = "h", size: int = 0) -> dict[str, Any]:
    tags = {"labels": {"tag": "x" * size}} if size else {}
    return {"time_unix_s": float(number), "host": host, "entity": "host", "id": "h", "metrics": {}, **tags}


def open_spool(directory: Path, max_bytes: int = MIB, **options: Any) -> Spool:
    return Spool.open(directory, max_bytes, "agent@h", clock=lambda: 100.0, **options)


def put(spool: Spool, *events: dict[str, Any], kept: bool = False) -> None:
    size = sum(len(each.get("labels", {}).get("tag", "")) + 100 for each in events)
    assert spool.put(EventType.RESOURCE, events, size, kept=kept) == 0


def taken(spool: Spool, max_bytes: int = 1) -> Iterator[list[Entry]]:
    """Everything, by what one append would send."""
    while entries := spool.take(max_bytes):
        yield entries
        spool.done()


def drained(spool: Spool) -> list[Entry]:
    return [entry for entries in taken(spool) for entry in entries]


def batches(entries: list[Entry]) -> list[Batch]:
    return [batch for entry in entries for batch in decode(EventType.RESOURCE, entry.value)]


def numbers(entries: list[Entry]) -> list[int]:
    return [int(batch.rows.event(row)["time_unix_s"]) for batch in batches(entries) for row in range(len(batch.rows))]


def dropped(entries: list[Entry]) -> int:
    return sum(batch.dropped for batch in batches(entries))


def crashed(spool: Spool, directory: Path, to: Path) -> Path:
    """What a process that was killed now leaves behind."""
    shutil.copytree(directory, to)
    spool.close()
    return to


def foreign(number: int, size: int = 0) -> Entry:
    value = b'{"time_unix_s":%d,"host":"s","entity":"service","id":"s","metrics":{},"labels":{"t":"%s"}}'
    return Entry.of(Outgoing("resources", b"s", value % (number, b"x" * size)))


def test_what_was_put_is_given_in_order_and_numbered_without_gaps(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    for number in range(5):
        put(spool, event(number))
    entries = drained(spool)
    assert numbers(entries) == [0, 1, 2, 3, 4]
    identities = [batch.identity for batch in batches(entries) if batch.identity]
    assert [identity.seq for identity in identities] == [0, 1, 2, 3, 4]
    assert len({identity.boot for identity in identities}) == 1
    assert spool.status[:4] == (0, 0, 0, None)
    spool.close()


def test_records_of_others_stay_as_they_are(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    record = Outgoing("inference", b"a/b", b"\x00\xff\xf5smf", (("streammon-schema", b"1"), ("traceparent", b"00-1")))
    spool.keep([Entry.of(record)])
    [entry] = drained(spool)
    assert entry.outgoing == record._replace(headers=list(record.headers))
    spool.close()


def test_what_is_not_done_is_given_again_and_survives_a_kill(tmp_path: Path) -> None:
    spool = open_spool(tmp_path / "a")
    for number in range(4):
        put(spool, event(number))
    first = spool.take(1)
    spool.done()
    second = spool.take(1)
    assert (numbers(first), numbers(second)) == ([0], [1])
    assert spool.take(1) == second
    after = open_spool(crashed(spool, tmp_path / "a", tmp_path / "b"))
    entries = drained(after)
    assert entries[0] == second[0], "the same bytes under the same number"
    assert numbers(entries) == [1, 2, 3]
    after.close()


def test_a_new_life_numbers_under_a_boot_id_of_its_own(tmp_path: Path) -> None:
    for number in range(2):
        spool = open_spool(tmp_path)
        put(spool, event(number))
        spool.close()
    spool = open_spool(tmp_path)
    boots = [batch.identity.boot for batch in batches(drained(spool)) if batch.identity]
    assert len(set(boots)) == 2
    spool.close()


def test_place_in_a_segment_that_is_gone_is_not_taken_for_one_in_another(tmp_path: Path) -> None:
    for life in range(2):
        spool = open_spool(tmp_path)
        for number in range(3):
            put(spool, event(number))
        if life == 0:
            spool.take(1)
            spool.done()
            drained(spool)
        spool.close()
    spool = open_spool(tmp_path)
    assert numbers(drained(spool)) == [0, 1, 2]
    spool.close()


def times_until(refusal: type[Exception], act: Callable[[int], None]) -> int:
    """How often it could be done."""
    for number in range(10_000):
        try:
            act(number)
        except refusal:
            return number
    raise AssertionError("it is never refused")


def one_segment(directory: Path) -> tuple[Path, list[int]]:
    """A segment of four frames, and where they end."""
    spool, ends = open_spool(directory), []
    for number in range(4):
        put(spool, event(number))
        ends.append(spool.status.bytes)
    spool.close()
    [path] = directory.glob("*.free")
    return path, ends


def test_torn_tail_costs_the_frame_that_was_being_written_wherever_it_is_torn(tmp_path: Path) -> None:
    path, ends = one_segment(tmp_path / "a")
    whole = path.read_bytes()
    for length in range(len(whole)):
        directory = tmp_path / str(length)
        directory.mkdir()
        (directory / path.name).write_bytes(whole[:length])
        spool = open_spool(directory)
        put(spool, event(9))
        assert numbers(drained(spool)) == [*range(sum(end <= length for end in ends)), 9]
        assert spool.status.damaged_bytes == length - max((end for end in ends if end <= length), default=0)
        spool.close()


def test_flipped_bit_costs_one_frame_wherever_it_is(tmp_path: Path) -> None:
    path, ends = one_segment(tmp_path / "a")
    whole = path.read_bytes()
    for place in range(len(whole)):
        directory = tmp_path / str(place)
        directory.mkdir()
        (directory / path.name).write_bytes(whole[:place] + bytes([whole[place] ^ 16]) + whole[place + 1 :])
        spool = open_spool(directory)
        hit = sum(end <= place for end in ends)
        assert numbers(drained(spool)) == [number for number in range(4) if number != hit]
        assert spool.status.damaged_bytes == ends[hit] - ([0, *ends][hit])
        spool.close()


@settings(max_examples=60)
@given(
    garbage=st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=40)), max_size=6), position=st.binary(max_size=30)
)
def test_garbage_in_a_segment_is_stepped_over(
    tmp_path_factory: pytest.TempPathFactory, garbage: list[tuple[float, bytes]], position: bytes
) -> None:
    path, _ = one_segment(tmp_path_factory.mktemp("spool"))
    content = path.read_bytes()
    for place, junk in garbage:
        at = int(place * len(content))
        content = content[:at] + junk + content[at:]
    path.write_bytes(content)
    (path.parent / "position").write_bytes(position)
    spool = open_spool(path.parent)
    found = numbers(drained(spool))
    assert found == sorted(set(found))
    assert set(found) <= {0, 1, 2, 3}
    assert len(found) >= 4 - len(garbage)
    spool.close()


def test_oldest_gives_way_and_every_event_is_counted(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    for number in range(600):
        put(spool, event(number, host=f"h{number % 3}", size=8000))
    assert spool.status.bytes <= MIB
    entries = drained(spool)
    found = numbers(entries)
    assert found == list(range(600 - len(found), 600)), "the newest are there"
    assert 60 < len(found) < 140
    by_key = Counter(entry.key for entry in entries for batch in batches([entry]) for _ in range(batch.dropped))
    assert by_key.keys() == {b"h0", b"h1", b"h2"}, "losses are told by record key"
    assert len(found) + dropped(entries) == 600
    assert spool.status.dropped >= dropped(entries)
    spool.close()


def test_dropped_segments_leave_no_gap_in_the_numbers(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    for number in range(300):
        put(spool, event(number, size=8000))
    streams: dict[str, list[int]] = {}
    for batch in batches(drained(spool)):
        assert batch.identity is not None
        streams.setdefault(batch.identity.boot, []).append(batch.identity.seq)
    assert all(seqs == list(range(len(seqs))) for seqs in streams.values())
    spool.close()


def test_killed_between_the_report_of_a_drop_and_the_drop_counts_it_once(tmp_path: Path) -> None:
    directory = tmp_path / "a"
    spool = open_spool(directory)
    left_behind = tmp_path / "b"
    delete: Callable[[Any], None] = spool._delete

    def killed(segment: Any) -> None:
        if not left_behind.exists():
            shutil.copytree(directory, left_behind)
        delete(segment)

    spool._delete = killed  # type: ignore[method-assign]  # the moment of death
    count = 0
    while not left_behind.exists():
        put(spool, event(count, size=8000))
        count += 1
    spool.close()
    after = open_spool(left_behind)
    entries = drained(after)
    assert dropped(entries) > 0
    assert len(numbers(entries)) + dropped(entries) == count - 1, "all but the event that was about to be written"
    after.close()


def test_what_was_acknowledged_is_never_dropped_but_refused(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    accepted = times_until(Backpressure, lambda number: spool.keep([foreign(number, 8000)]))
    assert accepted * 8000 > MIB * KEPT_SHARE * 0.9
    for number in range(300):
        put(spool, event(1000 + number, size=8000))
    entries = drained(spool)
    found = numbers(entries)
    assert [number for number in found if number < 1000] == list(range(accepted))
    assert len(found) - accepted + dropped(entries) == 300
    spool.close()


def test_what_may_have_arrived_before_a_kill_does_not_give_way(tmp_path: Path) -> None:
    """Else it would be counted, and reported as dropped, too."""
    spool = open_spool(tmp_path / "a")
    for number in range(20):
        put(spool, event(number, size=20_000))
    tried = spool.take(1)
    spool = open_spool(crashed(spool, tmp_path / "a", tmp_path / "b"))
    for number in range(20, 100):
        put(spool, event(number, size=20_000))
    assert spool.status.dropped > 0
    left = drained(spool)
    assert left[: len(tried)] == tried
    assert len(numbers(left)) + dropped(left) == 100


def test_file_that_is_in_the_way_is_stepped_over(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    (tmp_path / "0000000001.free").touch()
    with pytest.raises(FileExistsError):
        put(spool, event(1))
    put(spool, event(2))
    assert numbers(drained(spool)) == [2]
    spool.close()


def test_batches_that_may_have_arrived_are_kept_beyond_the_share_while_there_is_room(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    times_until(Backpressure, lambda number: spool.keep([foreign(number, 8000)]))
    spool.keep([foreign(1, 8000)], within_share=False)
    times_until(Backpressure, lambda number: spool.keep([foreign(number, 8000)], within_share=False))
    with pytest.raises(Backpressure, match="must not be dropped"):
        put(spool, event(5, size=60_000))
    spool.close()


class Full(FileIO):
    """A file on a disk that becomes full in the middle of a write."""

    room = 0

    def write(self, data: Any, /) -> int:
        if len(data) > Full.room:
            if Full.room:
                written = super().write(bytes(data)[: Full.room])
                Full.room = 0
                return written
            raise OSError(errno.ENOSPC, "No space left on device")
        Full.room -= len(data)
        return super().write(data)


def test_full_disk_takes_nothing_and_spoils_nothing(tmp_path: Path) -> None:
    spool = open_spool(tmp_path, create=lambda path: Full(path, "x"))
    Full.room = 1000
    written = times_until(OSError, lambda number: put(spool, event(number)))
    assert written >= 2
    Full.room = 10_000
    put(spool, event(written))
    spool.keep([foreign(written + 1)])
    assert numbers(drained(spool)) == list(range(written + 2))
    assert spool.status.damaged_bytes == 0
    spool.close()


def test_a_spool_has_one_owner(tmp_path: Path) -> None:
    spool = open_spool(tmp_path)
    with pytest.raises(OSError, match="another process"):
        open_spool(tmp_path)
    spool.close()
    open_spool(tmp_path).close()


def test_no_other_user_can_read_what_is_in_it(tmp_path: Path) -> None:
    spool = open_spool(tmp_path / "spool")
    put(spool, event(1))
    assert all(path.stat().st_mode & 0o077 == 0 for path in (tmp_path / "spool").glob("*.free"))
    assert (tmp_path / "spool").stat().st_mode & 0o077 == 0
    spool.close()


OPERATIONS = st.lists(st.sampled_from(["put", "put", "put", "keep", "send", "done", "kill", "restart"]), max_size=60)


@settings(max_examples=40)
@given(OPERATIONS)
def test_every_event_arrives_or_is_reported_whatever_happens(
    tmp_path_factory: pytest.TempPathFactory, operations: list[str]
) -> None:
    """The log takes what it is given again only once."""
    home = tmp_path_factory.mktemp("lives")
    directory = home / "0"
    spool = open_spool(directory)
    given, sent, log = 0, list[Entry](), dict[bytes, Entry]()
    for life, operation in enumerate(operations):
        if operation == "put":
            put(spool, *(event(given + extra, size=25_000) for extra in range(3)))
            given += 3
        elif operation == "keep":
            try:
                spool.keep([foreign(given, 25_000)])
            except Backpressure:
                continue
            given += 1
        elif operation == "send":
            sent = spool.take(1)
            log |= {entry.value: entry for entry in sent}
        elif operation == "done" and sent:
            spool.done()
            sent = []
        elif operation == "kill":
            spool = open_spool(directory := crashed(spool, directory, home / str(life + 1)))
            sent = []
        elif operation == "restart":
            spool.close()
            spool = open_spool(directory)
            sent = []
    log |= {entry.value: entry for entry in drained(spool)}
    entries = list(log.values())
    assert len(set(numbers(entries))) == len(numbers(entries))
    assert len(numbers(entries)) + dropped(entries) == given
    spool.close()
