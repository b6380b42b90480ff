"""What the join keeps on disk, and its journal: whatever becomes of the disk, the results are the same."""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any, cast

import pytest
from structlog.testing import capture_logs

from streammon import wire
from streammon.broker import Outgoing
from streammon.config import LabelSettings, Settings, WindowSettings
from streammon.errors import Fatal
from streammon.events import EventType
from streammon_processors.builtin import join_processor
from streammon_processors.contract import JUNK, Journal, Stored, give_journal, run, run_with_crashes
from streammon_processors.join import JoinTask, memory
from streammon_processors.join.task import GENERATIONS
from streammon_processors.journal import BEGINNING, Link, Trail, Turn
from tests.joins import T0, Joined, expected, join_logs, join_task, joined

JOURNAL = join_processor(Settings()).journal
FULL = Settings(windows=WindowSettings(max_late_s=60.0), labels=LabelSettings(max_predictions=1000))


class Disk:
    """A directory in which tasks keep their memory, one after the other, and what may become of it between two."""

    def __init__(self, directory: Path, rng: random.Random) -> None:
        self.directory, self.rng = directory / "state", rng
        self._task: JoinTask | None = None
        self._copies = (directory / f"copy-{number}" for number in count())
        self._old: list[Path] = []

    def task(self) -> JoinTask:
        if self._task is not None:
            self._task.close()
            self.rng.choice((self.keep, self.keep, self.lose, self.go_back, self.spoil))()
        self._task = join_task()
        self._task.keep_in(self.directory)
        return self._task

    def keep(self) -> None:
        if self.directory.exists():
            copy = next(self._copies)
            shutil.copytree(self.directory, copy)
            self._old.append(copy)

    def lose(self) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)

    def go_back(self) -> None:
        if self._old:
            self.lose()
            shutil.copytree(self.rng.choice(self._old), self.directory)

    def spoil(self) -> None:
        files = sorted(path for path in self.directory.rglob("*") if path.is_file() and path.stat().st_size)
        if files:
            self.rng.choice(files).write_bytes(b"nonsense")


@pytest.mark.parametrize("seed", range(3))
def test_whatever_becomes_of_the_disk_between_lives_the_results_are_the_same(seed: int, tmp_path: Path) -> None:
    logs = join_logs(seed)
    disk = Disk(tmp_path, random.Random(seed))
    outputs = run_with_crashes(disk.task, logs, random.Random(seed), crashes=25, journal=JOURNAL)
    found, right = together(outputs.values()), expected(logs)
    assert (found.pairs, found.cohorts) == (right.pairs, right.cohorts)
    assert (found.unmatched, found.relabelled) == (right.unmatched, right.relabelled)


def together(outputs: Iterable[Sequence[Outgoing]]) -> Joined:
    return joined(output for some in outputs for output in some)


def first_half(task: JoinTask, journal: Journal) -> list[Outgoing]:
    """The predictions; as the runtime does it."""
    outputs = task.process("inference", join_logs(1)["inference"])
    journal.take(outputs, 0)
    return outputs


def second_half(task: JoinTask) -> Joined:
    return joined(task.process("labels", join_logs(1)["labels"]))


def test_a_restart_with_its_disk_needs_nothing_of_the_journal(tmp_path: Path) -> None:
    task, journal = join_task(), Journal(JOURNAL)
    task.keep_in(tmp_path)
    assert task.recover_from() is None, "nothing was written yet"
    first_half(task, journal)
    snapshot = task.snapshot()
    task.committed()
    task.close()
    again, without_disk = join_task(), join_task()
    again.keep_in(tmp_path)
    for each in (again, without_disk):
        each.restore(snapshot)
    assert again.recover_from() is None
    assert without_disk.recover_from() == 0.0
    give_journal(without_disk, journal)
    assert second_half(again) == second_half(without_disk)
    again.close()


def test_what_was_not_committed_never_reaches_the_disk(tmp_path: Path) -> None:
    task = join_task()
    task.keep_in(tmp_path)
    first_half(task, Journal(JOURNAL))
    task.snapshot()
    task.close()
    assert memory.Store.kept(tmp_path).mark() is None


def test_what_is_put_while_a_commit_is_under_way_waits_for_the_next(tmp_path: Path) -> None:
    records = join_logs(1)["inference"]
    half = len(records) // 2
    task = join_task()
    task.keep_in(tmp_path)
    first = task.process("inference", records[:half])
    snapshot = task.snapshot()
    task.process("inference", records[half:])
    task.committed()
    task.close()  # here it crashes
    again = join_task()
    again.keep_in(tmp_path)
    again.restore(snapshot)
    assert again.recover_from() is None
    found = joined(
        [*first, *again.process("inference", records[half:]), *again.process("labels", join_logs(1)["labels"])]
    )
    assert found == expected(join_logs(1))
    again.close()


def test_a_disk_that_is_ahead_of_the_snapshot_is_thrown_away(tmp_path: Path) -> None:
    task, journal = join_task(), Journal(JOURNAL)
    task.keep_in(tmp_path)
    records = join_logs(1)["inference"]
    journal.take(task.process("inference", records[: len(records) // 2]), 0)
    snapshot = task.snapshot()
    task.process("inference", records[len(records) // 2 :])
    task.snapshot()
    task.committed()
    task.close()
    again = join_task()
    again.keep_in(tmp_path)
    again.restore(snapshot)
    assert again.recover_from() == 0.0, "all of the journal"
    again.close()


def test_a_directory_that_another_process_uses_is_left_alone(tmp_path: Path) -> None:
    task, journal = join_task(), Journal(JOURNAL)
    task.keep_in(tmp_path)
    first_half(task, journal)
    snapshot = task.snapshot()
    task.committed()
    other = join_task()
    with capture_logs() as said:
        other.keep_in(tmp_path)
    assert "another process keeps its memory there" in said[0]["event"]
    other.restore(snapshot)
    give_journal(other, journal)
    assert second_half(other) == second_half(task)
    for each in (task, other):
        each.close()


def test_what_is_no_page_of_the_journal_is_passed_over() -> None:
    task, journal, again = join_task(), Journal(JOURNAL), join_task()
    first_half(task, journal)
    again.restore(task.snapshot())
    give_journal(again, [*(Stored(junk, 0, 0) for junk in JUNK), *journal])
    assert second_half(again) == second_half(task)


def test_a_directory_whose_contents_belong_to_somebody_else_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "1").write_text("no RocksDB")

    remove = shutil.rmtree

    def refused(path: Path, ignore_errors: bool = False) -> None:
        if tmp_path in path.parents:
            raise PermissionError(13, "Permission denied")
        remove(path, ignore_errors)

    task = join_task()
    with monkeypatch.context() as patch, capture_logs() as said:
        patch.setattr(shutil, "rmtree", refused)
        task.keep_in(tmp_path)
    assert "using a temporary directory for the memory" in said[-1]["event"]
    first_half(task, Journal(JOURNAL))
    task.snapshot()
    task.committed()
    assert second_half(task).pairs == expected(join_logs(1)).pairs
    task.close()


class Full:
    """A database on a full disk."""

    def __getattr__(self, name: str) -> Any:
        raise OSError("No space left on device")


def test_what_has_expired_leaves_a_full_disk(tmp_path: Path) -> None:
    store = memory.Store.kept(tmp_path)
    for generation in (1, 2):
        store.write(generation, {b"key": b"value"}, None)
    store._generations[1].close()
    store._generations[1] = cast("Any", Full())
    store.drop_before(2)
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["2"]
    store.close()


def test_a_full_disk_is_named_and_let_go_of_and_the_next_start_begins_anew(tmp_path: Path) -> None:
    task, journal = join_task(), Journal(JOURNAL)
    task.keep_in(tmp_path)
    first_half(task, journal)
    snapshot = task.snapshot()
    task.committed()
    assert task._memory._store is not None
    task._memory._store._generations = dict.fromkeys(task._memory._store._generations, cast("Any", Full()))
    with pytest.raises(Fatal, match=f"{re.escape(str(tmp_path))} cannot be read or written: No space left on device"):
        second_half(task)
    task.close()
    again = join_task()
    again.keep_in(tmp_path)
    again.restore(snapshot)
    assert again.recover_from() == 0.0, "all of the journal"
    give_journal(again, journal)
    assert second_half(again).pairs == expected(join_logs(1)).pairs
    again.close()


def test_what_another_version_has_left_on_disk_is_thrown_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = join_task()
    task.keep_in(tmp_path)
    first_half(task, Journal(JOURNAL))
    task.snapshot()
    task.committed()
    task.close()
    monkeypatch.setattr(memory, "VERSION", 2)
    assert memory.Store.kept(tmp_path).mark() is None


def test_a_memory_without_a_directory_takes_a_temporary_one_when_it_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "SPILL_ENTRIES", 20)
    logs = join_logs(2)
    task = join_task()
    found = together(run(task, logs, random.Random(2)).values())
    right = expected(logs)
    assert (found.pairs, found.unmatched) == (right.pairs, right.unmatched)
    task.close()


def test_generations_that_are_over_leave_the_disk(tmp_path: Path) -> None:
    (tmp_path / "gone-1").mkdir()  # as a crash leaves it
    task = join_task()
    task.keep_in(tmp_path)
    for topic, records in join_logs(3).items():
        task.process(topic, records)
        task.snapshot()
        task.committed()
    numbers = {generation.number for generation in task._generations}
    there = {path.name for path in tmp_path.iterdir() if path.is_dir()}
    assert there <= set(map(str, numbers))
    assert min(numbers) > 1
    task.close()


# --- bounds -----------------------------------------------------------------------------------------------------


def predictions(number: int, size: int) -> Stored:
    """A record of predictions that all come at once."""
    common = {"time_unix_s": T0, "service": "shop", "model": "m", "duration_s": 0.1, "status": "ok"}
    events = [{**common, "event_id": f"{number}-{at}"} for at in range(size)]
    return Stored(wire.encode(EventType.INFERENCE, events)[0], number, round(1000 * T0))


def test_beyond_the_most_predictions_the_oldest_are_forgotten_and_counted() -> None:
    task = join_task(settings=FULL)
    found = joined(task.process("inference", [predictions(number, 100) for number in range(30)][:1]))
    for number in range(1, 30):
        later = joined(task.process("inference", [predictions(number, 100)]))
        found.forgotten += later.forgotten
    kept = 3000 - found.forgotten["shop", "m"]
    assert 1000 * (GENERATIONS - 1) // GENERATIONS <= kept <= 1000
    labels = [
        {"time_unix_s": T0, "service": "shop", "model": "m", "event_id": f"{number}-{at}", "label": 1.0}
        for number in range(30)
        for at in range(100)
    ]
    value = wire.encode(EventType.LABEL, labels)[0]
    pairs = joined(task.process("labels", [Stored(value, 0, round(1000 * T0))])).pairs
    assert {pair[2] for pair in pairs} == {f"{n}-{at}" for n in range(30 - kept // 100, 30) for at in range(100)}


# --- the chain --------------------------------------------------------------------------------------------------


def chain(*values: bytes) -> Iterator[tuple[Link, bytes]]:
    place = BEGINNING
    for value in values:
        yield place, value
        place = place.next(value)


def test_a_trail_leads_from_wherever_a_chain_begins_to_its_target() -> None:
    links = list(chain(b"a", b"b", b"c", b"d"))
    target = links[3][0]
    trail = Trail(None, target)
    assert [trail.follow(*link) for link in links[1:]] == [Turn.BEGIN, Turn.NEXT, Turn.SKIP]
    assert trail.is_done


def test_a_trail_begins_anew_where_another_chain_does() -> None:
    old, new = list(chain(b"a", b"b", b"c")), list(chain(b"x", b"y", b"z"))
    trail = Trail(None, new[2][0])
    turns = [trail.follow(*link) for link in (*old[:2], *new)]
    assert turns == [Turn.BEGIN, Turn.NEXT, Turn.BEGIN, Turn.NEXT, Turn.SKIP]
    assert trail.is_done


def test_a_trail_with_a_gap_does_not_end() -> None:
    links = list(chain(b"a", b"b", b"c", b"d"))
    trail = Trail(links[1][0], links[3][0])
    assert [trail.follow(*link) for link in links[2:]] == [Turn.SKIP, Turn.SKIP]
    assert not trail.is_done
    assert not trail.is_empty
