"""The results store: what goes in comes out, once, while others read; it stays small, and bad files are named."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import msgspec
import pytest

from streammon.config import SqliteSettings
from streammon.errors import ConfigError, Fatal, Retryable
from streammon.results import Drift, Loop, Quality
from streammon.tick import TICK
from streammon_sinks import sqlite
from streammon_sinks.ids import window_id
from streammon_sinks.sqlite import ResultStore, SqliteSink
from streammon_sinks.sqlite_models import TABLES, ModelResult
from tests.sinks.builders import (
    START,
    alert,
    budget,
    drift,
    item,
    loop,
    quality,
    quality_of_slice,
    resource_window,
    rollup,
    window,
)

YEAR_S = 365 * 86_400.0


class Clock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / sqlite.FILE


@pytest.fixture
def store(path: Path, clock: Clock) -> Iterator[ResultStore]:
    store = ResultStore.open(path, clock=clock)
    yield store
    store.close()


def query(path: Path, sql: str) -> list[tuple[object, ...]]:
    db = sqlite3.connect(path)
    try:
        return db.execute(sql).fetchall()
    finally:
        db.close()


def test_windows_come_back_as_they_went_in(store: ResultStore) -> None:
    store.write_windows([window(0), resource_window(0)])
    assert store.windows("inference", 0) == [window(0)]
    assert store.windows("resource", 0) == [resource_window(0)]


def test_windows_come_back_by_start_from_since_until_before_until(store: ResultStore) -> None:
    store.write_windows([window(n) for n in (3, 1, 0, 2)])
    assert store.windows("inference", START + 2, START + 6) == [window(1), window(2)]
    assert store.windows("inference", START + 6) == [window(3)]


def test_limit_keeps_the_newest_windows(store: ResultStore) -> None:
    store.write_windows([window(n) for n in range(5)])
    assert store.windows("inference", 0, limit=2) == [window(3), window(4)]


def test_a_window_written_again_changes_nothing(store: ResultStore) -> None:
    store.write_windows([window(0), window(0)])
    store.write_windows([window(0)])
    assert store.windows("inference", 0) == [window(0)]


def test_windows_that_differ_in_part_revision_partition_size_or_series_are_kept_apart(store: ResultStore) -> None:
    different = [
        window(0),
        window(0, part="late", revision=1),
        window(0, part="late", revision=2),
        window(0, partition=1),
        window(0, size_s=4.0),
        window(0, series={"service": "shop", "model": "other"}),
    ]
    store.write_windows(different)
    assert len(store.windows("inference", 0)) == len(different)


ROLLUPS = [
    rollup(60.0),
    rollup(60.0, part="late", revision=1),
    rollup(300.0),
    rollup(60.0, kind="hopping", every_s=30.0),
    rollup(60.0, kind="hopping", every_s=20.0),
    rollup(60.0, kind="session", gap_s=30.0),
    rollup(60.0, kind="session", gap_s=10.0),
]


def test_rollups_are_asked_for_by_their_length_and_never_among_base_windows(store: ResultStore) -> None:
    store.write_windows([window(0), *ROLLUPS])
    assert store.windows("inference", 0) == [window(0)]
    assert sorted(store.windows("inference", 0, rollup_s=60.0), key=lambda each: each.part) == ROLLUPS[1::-1]
    assert store.windows("inference", 0, rollup_s=300.0) == [rollup(300.0)]
    assert store.latest_start("inference") == START


def test_all_kinds_of_rollups_are_kept_apart(store: ResultStore, path: Path) -> None:
    store.write_windows([*ROLLUPS, *ROLLUPS])
    assert query(path, "SELECT source, count(*) FROM windows GROUP BY source ORDER BY source") == [
        ("inference 300s", 1),
        ("inference 60s", 2),
        ("inference hopping 60s 20s", 1),
        ("inference hopping 60s 30s", 1),
        ("inference session 10s", 1),
        ("inference session 30s", 1),
    ]


async def test_ticks_are_no_results(store: ResultStore) -> None:
    assert await SqliteSink(store, SqliteSettings()).write([item(0, TICK)]) == []


def test_the_order_of_labels_does_not_make_another_window(store: ResultStore) -> None:
    store.write_windows([window(0), window(0, series=dict(reversed(window(0).series.items())))])
    assert len(store.windows("inference", 0)) == 1


def test_latest_start_is_of_that_source_alone(store: ResultStore) -> None:
    assert store.latest_start("inference") is None
    store.write_windows([window(7), resource_window(9), window(2)])
    assert store.latest_start("inference") == START + 14


def test_an_older_transition_never_replaces_a_newer_one(store: ResultStore) -> None:
    store.write_alerts([alert(1), alert(2, state="resolved")])
    store.write_alerts([alert(1)])
    assert store.alerts() == [alert(2, state="resolved")]


def test_alerts_come_newest_first_and_as_many_as_asked_for(store: ResultStore) -> None:
    store.write_alerts([alert(n, id=f"a{n}") for n in (2, 0, 1)])
    assert [each.id for each in store.alerts()] == ["a2", "a1", "a0"]
    assert [each.id for each in store.alerts(limit=1)] == ["a2"]


async def test_a_tombstone_forgets_the_alert(store: ResultStore) -> None:
    sink = SqliteSink(store, SqliteSettings())
    forgotten = [item(0, alert(0, id="a1"), topic="alerts"), item(1, None, topic="alerts", key=b"a1")]
    assert await sink.write([*forgotten, item(2, alert(0, id="a2"), topic="alerts")]) == []
    assert [each.id for each in store.alerts()] == ["a2"]


def test_a_batch_is_written_whole_or_not_at_all(store: ResultStore) -> None:
    with pytest.raises(OverflowError):
        store.write(windows=[window(0)], alerts=[alert(transition=2**70)])
    assert store.windows("inference", 0) == []


def test_what_was_written_is_there_after_opening_again(store: ResultStore, path: Path) -> None:
    store.write_windows([window(0)])
    store.close()
    again = ResultStore.open(path)
    assert again.windows("inference", 0) == [window(0)]
    again.close()


def test_others_read_while_one_writes(store: ResultStore, path: Path) -> None:
    reader = ResultStore.open(path, read_only=True)
    seen: list[int] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            seen.append(len(reader.windows("inference", 0)))

    thread = threading.Thread(target=read)
    thread.start()
    for first in range(0, 500, 10):
        store.write_windows([window(n) for n in range(first, first + 10)])
    done.set()
    thread.join()
    assert seen == sorted(seen)
    assert all(count % 10 == 0 for count in seen), "a batch was seen half"
    assert len(reader.windows("inference", 0)) == 500
    reader.close()


def test_windows_written_too_long_ago_are_pruned_in_chunks(store: ResultStore, clock: Clock) -> None:
    store.write_windows([window(n) for n in range(5)])
    clock.now += 100
    store.write_windows([window(9)])
    assert [store.prune(50, 1000, at_most=3) for _ in range(3)] == [3, 2, 0]
    assert store.windows("inference", 0) == [window(9)]


def test_old_data_that_was_just_replayed_is_kept(store: ResultStore) -> None:
    store.write_windows([window(0, start_unix_s=START - YEAR_S)])
    assert store.prune(60, 1000) == 0


def test_the_windows_written_first_are_pruned_beyond_max_rows(store: ResultStore) -> None:
    store.write_windows([window(n) for n in (5, 4, 3, 2, 1)])
    assert [store.prune(YEAR_S, 2, at_most=2) for _ in range(3)] == [2, 1, 0]
    assert store.windows("inference", 0) == [window(1), window(2)]


async def test_the_sink_prunes_faster_than_it_writes(store: ResultStore, path: Path) -> None:
    sink = SqliteSink(store, SqliteSettings(max_rows=1000))
    for first in range(0, 3000, 500):
        await sink.write([item(n, window(n)) for n in range(first, first + 500)])
    assert query(path, "SELECT count(*) FROM windows") == [(1000,)]


async def test_records_that_are_no_results_are_refused_and_the_rest_is_kept(store: ResultStore) -> None:
    sink = SqliteSink(store, SqliteSettings())
    bad = [b"{", b"\xff", b'"\xff"', b"{}", b"[]", b"[" * 100_000, b'{"type":"alert"}', b""]
    newer = item(99, window(0, schema=2))
    records = [*(item(n, value) for n, value in enumerate(bad)), item(50, window(1)), newer]
    refused = await sink.write(records)
    assert [each.item for each in refused] == [*records[: len(bad)], newer]
    assert all(each.error for each in refused)
    assert refused[-1].error == "schema is 2; this version reads 1"
    assert store.windows("inference", 0) == [window(1)]


def test_people_can_query_the_file_with_sql(store: ResultStore, path: Path) -> None:
    store.write(windows=[window(0)], alerts=[alert(3)])
    columns = "datetime(start_unix_s, 'unixepoch'), part, json_extract(series, '$.model'), count, round(p99_s, 1)"
    assert query(path, f"SELECT {columns} FROM windows") == [("2023-11-14 22:13:20", "main", "ranker", 4, 4.5)]
    assert query(path, "SELECT id, state, rule FROM alerts") == [("a1", "firing", "slow")]


def test_reading_windows_of_a_source_uses_the_index(store: ResultStore, path: Path) -> None:
    (plan,) = query(path, f"EXPLAIN QUERY PLAN {sqlite._WINDOWS.replace('?', '1')}")
    assert "SEARCH windows USING INDEX" in str(plan[-1])


def test_a_file_of_another_program_is_refused_and_left_as_it_is(path: Path) -> None:
    path.parent.mkdir()
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE recipes (name)")
    db.close()
    before = path.read_bytes()
    with pytest.raises(ConfigError, match=r"results\.sqlite is an SQLite file of another program"):
        ResultStore.open(path)
    assert path.read_bytes() == before


def test_a_file_that_is_no_database_is_refused(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"name,price\n" * 500)
    with pytest.raises(ConfigError, match=r"results\.sqlite cannot be used.*not a database"):
        ResultStore.open(path)


def test_a_newer_file_is_refused(store: ResultStore, path: Path) -> None:
    store.close()
    query(path, "PRAGMA user_version = 9")
    with pytest.raises(ConfigError, match="has schema 9, this streammon reads 4: update streammon"):
        ResultStore.open(path)


def test_a_missing_file_is_not_made_by_a_reader(path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist: no results"):
        ResultStore.open(path, read_only=True)
    assert not path.exists()


def test_a_file_that_gets_damaged_is_fatal(store: ResultStore, path: Path) -> None:
    store.write_windows([window(n) for n in range(100)])
    query(path, "PRAGMA wal_checkpoint(TRUNCATE)")
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * 4096 * 20)
    with pytest.raises(Fatal, match="replay to fill a new one"):
        store.write_windows([window(n) for n in range(100, 2000)])


def test_a_locked_file_can_be_tried_again(store: ResultStore, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store.close()
    monkeypatch.setattr(sqlite, "BUSY_S", 0.05)
    store = ResultStore.open(path)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(Retryable, match="locked"):
        store.write_windows([window(0)])
    other.execute("COMMIT")
    other.close()
    store.write_windows([window(0)])
    assert store.windows("inference", 0) == [window(0)]
    store.close()


def test_closing_twice_is_allowed(store: ResultStore) -> None:
    store.close()
    store.close()


def test_every_results_file_is_filled_by_a_group_of_its_own(tmp_path: Path) -> None:
    one, other = ResultStore.open(tmp_path / "one.sqlite"), ResultStore.open(tmp_path / "other.sqlite")
    assert one.group != other.group
    assert ResultStore.open(tmp_path / "one.sqlite").group == one.group, "a restart goes on where it was"


# -- the history of alerts -----------------------------------------------------------------------------

VERSION_1 = """
CREATE TABLE windows (
    id TEXT NOT NULL, source TEXT NOT NULL, start_unix_s REAL NOT NULL, written_unix_s REAL NOT NULL,
    body TEXT NOT NULL,
    end_unix_s REAL AS (json_extract(body, '$.end_unix_s')), part TEXT AS (json_extract(body, '$.part')),
    revision INTEGER AS (json_extract(body, '$.revision')), series TEXT AS (json_extract(body, '$.series')),
    count INTEGER AS (json_extract(body, '$.count')), error_rate REAL AS (json_extract(body, '$.error_rate')),
    p99_s REAL AS (json_extract(body, '$.duration_s.p99')), PRIMARY KEY (source, start_unix_s, id)
);
CREATE INDEX windows_by_age ON windows (written_unix_s);
CREATE TABLE alerts (
    id TEXT PRIMARY KEY, "transition" INTEGER NOT NULL, updated_unix_s REAL NOT NULL, body TEXT NOT NULL,
    state TEXT AS (json_extract(body, '$.state')), rule TEXT AS (json_extract(body, '$.rule'))
) WITHOUT ROWID;
CREATE INDEX alerts_by_time ON alerts (updated_unix_s);
CREATE TABLE store (id TEXT NOT NULL);
INSERT INTO store VALUES ('0123456789abcdef');
PRAGMA application_id = 1398033746;
PRAGMA user_version = 1;
"""
"""What the last version without a history made."""


def of_version_1(path: Path) -> None:
    path.parent.mkdir()
    db = sqlite3.connect(path)
    db.executescript(VERSION_1)
    body = msgspec.json.encode(alert(2, state="resolved")).decode()
    db.execute('INSERT INTO alerts (id, "transition", updated_unix_s, body) VALUES (?, 2, ?, ?)', ("a1", START, body))
    old = window(0)
    row = (window_id(old), old.source, old.start_unix_s, START, msgspec.json.encode(old).decode())
    db.execute("INSERT INTO windows (id, source, start_unix_s, written_unix_s, body) VALUES (?, ?, ?, ?, ?)", row)
    db.commit()
    db.close()


def test_every_transition_stays_in_the_history_without_its_evidence(store: ResultStore) -> None:
    changes = [alert(1), alert(2, state="acknowledged"), alert(3, state="resolved")]
    for each in (*changes, *changes):
        store.write_alerts([each])
    store.write(ended=["a1"])
    assert store.alerts() == []
    assert store.alert_history() == [msgspec.structs.replace(each, evidence={}) for each in changes]
    assert [each.transition for each in store.alert_history(limit=2)] == [2, 3]


def test_the_history_is_bounded_by_age_and_number(store: ResultStore, clock: Clock) -> None:
    store.write_alerts([alert(n) for n in range(5)])
    clock.now += 100
    store.write_alerts([alert(n) for n in range(5, 9)])
    assert [store.prune_history(50, 1000, at_most=3) for _ in range(3)] == [3, 2, 0]
    assert [store.prune_history(YEAR_S, 2) for _ in range(2)] == [2, 0]
    assert [each.transition for each in store.alert_history()] == [7, 8]


async def test_the_sink_prunes_the_history_faster_than_it_writes(store: ResultStore, path: Path) -> None:
    sink = SqliteSink(store, SqliteSettings(max_transitions=1000))
    for first in range(0, 3000, 500):
        await sink.write([item(n, alert(n), topic="alerts") for n in range(first, first + 500)])
    assert query(path, "SELECT count(*) FROM alert_history") == [(1000,)]


def test_a_file_of_version_1_is_brought_up_to_date_with_all_that_is_in_it(path: Path) -> None:
    of_version_1(path)
    with pytest.raises(ConfigError, match=r"has schema 1, this streammon reads 4: `streammon up` .* up to date"):
        ResultStore.open(path, read_only=True)
    for _ in range(2):  # the second time there is nothing to do
        store = ResultStore.open(path)
        assert store.group == "sink-sqlite-0123456789abcdef", "it goes on where it was"
        assert store.windows("inference", 0) == [window(0)]
        assert store.alerts() == [alert(2, state="resolved")]
        assert store.alert_history() == [alert(2, state="resolved", evidence={})]
        assert store.newest(Drift) == []
        store.close()
    assert query(path, "PRAGMA user_version") == [(4,)]


def test_an_upgrade_that_fails_leaves_the_file_as_it_was(path: Path) -> None:
    of_version_1(path)
    query(path, "CREATE VIEW alert_history_by_age AS SELECT 1")  # in the way of the index of that name
    with pytest.raises(ConfigError, match="cannot be used"):
        ResultStore.open(path)
    assert query(path, "PRAGMA user_version") == [(1,)]
    query(path, "DROP VIEW alert_history_by_age")  # nobody holds it
    ResultStore.open(path).close()


# ---------------------------------------------------------------- error budgets


async def test_the_newest_state_of_each_error_budget_is_kept(store: ResultStore) -> None:
    sink = SqliteSink(store, SqliteSettings())
    states = [budget(2), budget(3), budget(1), budget(0, slo="other"), budget(1, partition=1)]
    for _ in range(2):  # a repeated delivery changes nothing
        assert await sink.write([item(n, each, topic="slos") for n, each in enumerate(states)]) == []
        found = sorted(store.slos(), key=lambda each: (each.slo, each.partition))
        assert found == [budget(3), budget(1, partition=1), budget(0, slo="other")]


def test_error_budgets_of_which_nothing_is_heard_are_forgotten(store: ResultStore, clock: Clock) -> None:
    store.write(slos=[budget(0)])
    clock.now += 100
    store.write(slos=[budget(1, slo="other")])
    store.prune(50, 1000)
    assert store.slos() == [budget(1, slo="other")]


# ---------------------------------------------------------------- what is about models


async def test_what_was_said_of_a_model_comes_back_as_it_was_however_often_it_is_delivered(store: ResultStore) -> None:
    sink = SqliteSink(store, SqliteSettings())
    drifts = [item(n, drift(n), topic="drift") for n in range(2)]
    qualities = [item(n, each, topic="quality") for n, each in enumerate([quality(0), quality_of_slice(0)])]
    for _ in range(2):
        assert await sink.write([*drifts, *qualities]) == []
        assert store.ended(Drift, 0) == [drift(1), drift(0)]
        assert store.ended(Quality, 0) == [quality_of_slice(0), quality(0)]


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_the_newest_revision_of_a_time_replaces_the_others_whenever_it_comes(
    store: ResultStore, order: tuple[int, ...]
) -> None:
    for revision in order:
        store.write(of_models=[quality(0, revision=revision, labelled=150 + revision), drift(0, sample_size=revision)])
    assert store.ended(Quality, 0) == [quality(0, revision=2, labelled=152)]
    assert store.ended(Drift, 0) == [drift(0, sample_size=2)]


def test_the_newest_of_each_series_comes_first_and_nothing_else(store: ResultStore) -> None:
    store.write(of_models=[drift(n, target=f"features.{name}") for n, name in enumerate("abcabca")])
    store.write(of_models=[drift(1, target="features.a", service=None), drift(9, target="features.b", drifted=False)])
    newest = [(each.target, each.service, each.drifted) for each in store.newest(Drift)]
    assert newest == [
        ("features.b", "shop", False),
        ("features.a", "shop", True),
        ("features.c", "shop", True),
        ("features.a", None, True),
    ]
    assert [each.target for each in store.newest(Drift, notable=True)] == [
        "features.a", "features.c", "features.b", "features.a",
    ], "those that drifted last"  # fmt: skip
    assert store.newest(Drift, limit=1)[0].target == "features.b"
    assert store.newest(Quality) == []


def test_tests_against_other_references_and_slices_and_ways_of_counting_are_kept_apart(store: ResultStore) -> None:
    told: list[ModelResult] = [
        drift(0),
        drift(0, reference="r2"),
        drift(0, detector="ks"),
        quality(0),
        quality(0, by="label"),
        quality_of_slice(0),
        quality_of_slice(0, slice={"tenant": "other"}),
        quality(0, model_version=None),
        quality(0, partition=1),
    ]
    store.write(of_models=told)
    assert len(store.ended(Drift, 0)) + len(store.ended(Quality, 0)) == len(told)


async def test_of_a_retraining_the_newest_state_is_kept_whatever_the_order(store: ResultStore) -> None:
    sink = SqliteSink(store, SqliteSettings())
    states = [loop(1, state="started"), loop(2, state="closed", outcome="helped"), loop(0), loop(0, id="other")]
    records = [item(n, each, topic="loops") for n, each in enumerate([*states, *states])]
    assert await sink.write([*records, item(99, None, topic="loops")]) == []
    assert store.newest(Loop) == [states[1], states[3]]


def test_results_about_models_are_found_by_when_they_ended(store: ResultStore) -> None:
    store.write(of_models=[quality(n) for n in range(5)])
    found = store.ended(Quality, START + 60, START + 240)
    assert found == [quality(3), quality(2), quality(1)]
    assert store.ended(Quality, START + 60, START + 240, limit=1) == [quality(3)]


def test_what_is_about_models_is_bounded_by_age_and_number(store: ResultStore, clock: Clock) -> None:
    store.write(of_models=[quality(n) for n in range(5)])
    clock.now += 100
    store.write(of_models=[quality(n) for n in range(5, 9)])
    store.write(of_models=[drift(n) for n in range(4)])
    assert [store.prune_models(50, 1000, at_most=3) for _ in range(3)] == [3, 2, 0]
    assert [store.prune_models(YEAR_S, 2) for _ in range(2)] == [4, 0], "two of each"
    assert [each.start_unix_s for each in store.ended(Quality, 0)] == [quality(n).start_unix_s for n in (8, 7)]


async def test_the_sink_prunes_what_is_about_models_faster_than_it_writes(store: ResultStore, path: Path) -> None:
    sink = SqliteSink(store, SqliteSettings(max_model_rows=1000))
    for first in range(0, 3000, 500):
        await sink.write([item(n, drift(n), topic="drift") for n in range(first, first + 500)])
    assert query(path, "SELECT count(*) FROM drift") == [(1000,)]


def test_whoever_follows_the_store_sees_that_something_was_said_of_a_model(store: ResultStore) -> None:
    places = []
    told: list[ModelResult] = [quality(0), quality(0, revision=1), quality(0, revision=1), drift(0)]
    for each in told:
        store.write(of_models=[each])
        with store.snapshot() as snapshot:
            places.append(snapshot.place())
    assert places[0] != places[1] == places[2] != places[3]


def test_people_can_query_what_is_about_models_with_sql(store: ResultStore, path: Path) -> None:
    store.write(of_models=[drift(0), quality_of_slice(0)])
    assert query(path, "SELECT service, model, target, statistic, drifted FROM drift") == [
        ("shop", "ranker", "features.age", 0.31, 1)
    ]
    assert query(path, "SELECT model_version, slice, accuracy FROM quality") == [("3", '{"tenant":"acme"}', 0.75)]


def test_the_newest_of_a_series_is_found_without_reading_the_others(store: ResultStore, path: Path) -> None:
    for table, notable in product(TABLES.values(), (False, True)):
        explain = f"EXPLAIN QUERY PLAN {table.newest(notable).replace('?', '1')}"
        plan = " ".join(str(row[-1]) for row in query(path, explain))
        assert f"{table.name}_{'notable' if notable else 'by_series'} (series=?)" in plan
        assert f"SCAN {table.name}" not in plan
        assert "SCAN one" not in plan
        assert "SCAN found" not in plan
