"""Results in one SQLite file: what the page, ``query`` and ``top`` read.

    store = ResultStore.open(settings.data_dir / "results.sqlite")
    store.windows("inference", since_unix_s=time.time() - 900)

What it promises:

* One process writes and any number read beside it, in this or other processes (WAL); readers block nobody.
* A batch is one transaction, on disk when `ResultStore.write` returns. Windows are kept under ids derived
  from their content, and an alert never goes back to an older transition: a repeated delivery changes
  nothing.
* Every transition of an alert stays in ``alert_history``, without its evidence, when the log and ``alerts`` keep only
  the newest; a tombstone does not take it away.
* Of an error budget the newest state is kept, in ``slos``.
* ``drift``, ``quality`` and ``loops`` keep what was said of models, each time and each retraining as it was told last:
  see `streammon_sinks.sqlite_models`.
* Size is bounded: each batch also deletes some of what is older than ``retention_s`` or beyond ``max_rows``; of the
  history, older than ``alert_retention_s`` or beyond ``max_transitions``; and of what is about models, older than
  ``model_retention_s`` or beyond ``max_model_rows``. Age counts from the writing, so that a replay of old data is kept
  like any other. The file keeps the pages that become free and fills them again; it does not shrink.
* A file that is damaged or not ours is refused with its name and what to do.

``body`` is the whole record as JSON; the other columns are there to find it, or computed from it for people. Rollups
have a source of their own, ``inference 60s``, so that whoever adds the windows of ``inference`` adds no event twice::

    SELECT datetime(start_unix_s, 'unixepoch'), series, count, p99_s FROM windows WHERE source = 'inference'
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from math import inf
from pathlib import Path
from threading import Lock
from typing import Any, Final, NamedTuple, Self, TypeVar

import msgspec

from streammon.clock import Clock, system_clock
from streammon.config import SqliteSettings
from streammon.errors import ConfigError, Fatal, Retryable
from streammon.results import Alert, Evidence, Slo, Window
from streammon_sinks.decoding import decode_all
from streammon_sinks.delivery import Item, Refused
from streammon_sinks.ids import budget_id, window_id
from streammon_sinks.sqlite_models import TABLES, M, ModelResult

FILE: Final = "results.sqlite"
"""The name of the file below the data directory."""

SCHEMA_VERSION: Final = 4
APPLICATION_ID: Final = 0x53544D52  # "STMR": tells our file from any other SQLite file
BUSY_S: Final = 5.0
PRUNE_ROWS: Final = 100

_SCHEMA: Final = f"""
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS windows (
    id TEXT NOT NULL,
    source TEXT NOT NULL,
    start_unix_s REAL NOT NULL,
    written_unix_s REAL NOT NULL,
    body TEXT NOT NULL,
    end_unix_s REAL AS (json_extract(body, '$.end_unix_s')),
    part TEXT AS (json_extract(body, '$.part')),
    revision INTEGER AS (json_extract(body, '$.revision')),
    series TEXT AS (json_extract(body, '$.series')),
    count INTEGER AS (json_extract(body, '$.count')),
    error_rate REAL AS (json_extract(body, '$.error_rate')),
    p99_s REAL AS (json_extract(body, '$.duration_s.p99')),
    PRIMARY KEY (source, start_unix_s, id)  -- in the order of reading, and new rows come at its end
);
CREATE INDEX IF NOT EXISTS windows_by_age ON windows (written_unix_s);
CREATE TABLE IF NOT EXISTS alerts (
    id TEXT PRIMARY KEY,
    "transition" INTEGER NOT NULL,
    updated_unix_s REAL NOT NULL,
    body TEXT NOT NULL,
    state TEXT AS (json_extract(body, '$.state')),
    rule TEXT AS (json_extract(body, '$.rule'))
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS alerts_by_time ON alerts (updated_unix_s);
CREATE TABLE IF NOT EXISTS evidence (
    alert_id TEXT PRIMARY KEY,
    "transition" INTEGER NOT NULL,
    body TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS alert_history (
    id TEXT NOT NULL,
    "transition" INTEGER NOT NULL,
    updated_unix_s REAL NOT NULL,
    written_unix_s REAL NOT NULL,
    body TEXT NOT NULL,
    state TEXT AS (json_extract(body, '$.state')),
    severity TEXT AS (json_extract(body, '$.severity')),
    rule TEXT AS (json_extract(body, '$.rule')),
    PRIMARY KEY (id, "transition")
);
CREATE INDEX IF NOT EXISTS alert_history_by_age ON alert_history (written_unix_s);
INSERT INTO alert_history (id, "transition", updated_unix_s, written_unix_s, body)
    SELECT id, "transition", updated_unix_s, strftime('%s', 'now'), json_remove(body, '$.evidence') FROM alerts
    WHERE (SELECT user_version FROM pragma_user_version) = 1;  -- made before there was a history
CREATE TABLE IF NOT EXISTS slos (
    id TEXT PRIMARY KEY,
    end_unix_s REAL NOT NULL,
    written_unix_s REAL NOT NULL,
    body TEXT NOT NULL,
    slo TEXT AS (json_extract(body, '$.slo')),
    series TEXT AS (json_extract(body, '$.series')),
    budget_left REAL AS (json_extract(body, '$.budget_left'))
) WITHOUT ROWID;
{"".join(table.schema for table in TABLES.values())}
CREATE TABLE IF NOT EXISTS store (id TEXT NOT NULL);
INSERT INTO store SELECT lower(hex(randomblob(8))) WHERE NOT EXISTS (SELECT * FROM store);
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {SCHEMA_VERSION};
COMMIT;
"""  # noqa: S608 - built from constants
_INSERT_WINDOW: Final = """
INSERT INTO windows (id, source, start_unix_s, written_unix_s, body) VALUES (?, ?, ?, ?, ?)
ON CONFLICT DO NOTHING
"""
_UPSERT_ALERT: Final = """
INSERT INTO alerts (id, "transition", updated_unix_s, body) VALUES (?, ?, ?, ?)
ON CONFLICT (id) DO UPDATE
SET "transition" = excluded."transition", updated_unix_s = excluded.updated_unix_s, body = excluded.body
WHERE excluded."transition" > alerts."transition"
"""
_UPSERT_EVIDENCE: Final = """
INSERT INTO evidence (alert_id, "transition", body) VALUES (?, ?, ?)
ON CONFLICT (alert_id) DO UPDATE SET "transition" = excluded."transition", body = excluded.body
WHERE excluded."transition" >= evidence."transition"
"""
_ALERTS: Final = """
SELECT alerts.body, evidence.body FROM alerts LEFT JOIN evidence ON evidence.alert_id = alerts.id
ORDER BY updated_unix_s DESC, id LIMIT ?
"""
_INSERT_TRANSITION: Final = """
INSERT INTO alert_history (id, "transition", updated_unix_s, written_unix_s, body) VALUES (?, ?, ?, ?, ?)
ON CONFLICT DO NOTHING
"""
_UPSERT_SLO: Final = """
INSERT INTO slos (id, end_unix_s, written_unix_s, body) VALUES (?, ?, ?, ?)
ON CONFLICT (id) DO UPDATE
SET end_unix_s = excluded.end_unix_s, written_unix_s = excluded.written_unix_s, body = excluded.body
WHERE excluded.end_unix_s >= slos.end_unix_s
"""
_DELETE_OLD: Final = """
DELETE FROM windows WHERE rowid IN
    (SELECT rowid FROM windows WHERE written_unix_s < ? ORDER BY written_unix_s LIMIT ?)
"""
# Row numbers grow in the order of writing, so this keeps at most that many rows, and never fewer by itself.
_DELETE_BEYOND: Final = """
DELETE FROM windows WHERE rowid IN
    (SELECT rowid FROM windows WHERE rowid <= (SELECT max(rowid) FROM windows) - ? ORDER BY rowid LIMIT ?)
"""
_DELETE_TRANSITIONS: Final = """
DELETE FROM alert_history WHERE rowid IN
    (SELECT rowid FROM alert_history WHERE written_unix_s < ? ORDER BY written_unix_s LIMIT ?)
"""
_DELETE_TRANSITIONS_BEYOND: Final = """
DELETE FROM alert_history WHERE rowid IN (
    SELECT rowid FROM alert_history WHERE rowid <= (SELECT max(rowid) FROM alert_history) - ? ORDER BY rowid LIMIT ?
)
"""
_WINDOWS: Final = """
SELECT body FROM windows WHERE source = ? AND start_unix_s >= ? AND start_unix_s < ?
ORDER BY start_unix_s DESC, id DESC LIMIT ?
"""

_SINCE: Final = """
SELECT body FROM windows WHERE source = ? AND start_unix_s >= ? ORDER BY start_unix_s DESC LIMIT ?
"""
_AFTER: Final = "SELECT body FROM windows WHERE rowid > ? AND instr(source, ' ') = 0 ORDER BY rowid"
_PLACE: Final = """
SELECT (SELECT coalesce(max(rowid), 0) FROM windows), count(*), total(updated_unix_s),
    (SELECT total("transition" + 1) FROM evidence), (SELECT total(seq) FROM sqlite_sequence) FROM alerts
"""

T = TypeVar("T")

_WINDOW: Final = msgspec.json.Decoder(Window)
_ALERT: Final = msgspec.json.Decoder(Alert)
_SLO: Final = msgspec.json.Decoder(Slo)
_EVIDENCE: Final = msgspec.json.Decoder(dict[str, Any])


class Place(NamedTuple):
    """How far the store has been written; differs whenever windows or alerts were."""

    row: int = 0
    alerts: int = 0
    alerts_updated_unix_s: float = 0.0
    """The sum of their times, which an index has at hand."""
    evidence: float = 0.0
    """Grows with each that is written."""
    models: float = 0.0
    """Grows with all that is written about models."""


class Snapshot:
    """The store as it is at one moment; windows are read one by one, so any number of them fits."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db

    def place(self) -> Place:
        return Place(*self._db.execute(_PLACE).fetchone())

    def windows_after(self, place: Place) -> Iterator[Window]:
        """The base windows written since, in the order of writing."""
        return self._windows(_AFTER, (place.row,))

    def windows_since(self, source: str, since_unix_s: float, limit: int) -> Iterator[Window]:
        """The base windows that start then or later, the newest first."""
        return self._windows(_SINCE, (source, since_unix_s, limit))

    def _windows(self, query: str, parameters: tuple[Any, ...]) -> Iterator[Window]:
        return (_WINDOW.decode(body) for (body,) in self._db.execute(query, parameters))


class ResultStore:
    """The file: a connection that writes and one that reads. Blocks; may be called from several threads."""

    def __init__(self, path: Path, writer: sqlite3.Connection | None, reader: sqlite3.Connection, clock: Clock) -> None:
        self.path = path
        self._writer, self._reader, self._clock = writer, reader, clock
        self._writing, self._reading = Lock(), Lock()

    @classmethod
    def open(cls, path: Path, *, read_only: bool = False, clock: Clock = system_clock) -> Self:
        """Open the file, and make it unless ``read_only``.

        Raises:
            ConfigError: no such file to read, damaged, not ours, or made by a newer version.
        """
        if read_only and not path.exists():
            raise ConfigError(f"{path} does not exist: no results have been written there yet")
        try:
            writer = None if read_only else _open_for_writing(path)
            return cls(path, writer, _open_for_reading(path), clock)
        except (sqlite3.DatabaseError, OSError) as error:
            raise ConfigError(
                f"{path} cannot be used as the results store: {error}; move it away to start a new one"
            ) from error

    @property
    def group(self) -> str:
        """The consumer group that fills this file, and no other: a file made anew is filled again from the log."""
        ((identity,),) = self._read("SELECT id FROM store", ())
        return f"sink-sqlite-{identity}"

    # ------------------------------------------------------------------ writing

    def write(
        self,
        windows: Iterable[Window] = (),
        alerts: Iterable[Alert] = (),
        ended: Iterable[str] = (),
        slos: Iterable[Slo] = (),
        evidence: Iterable[Evidence] = (),
        of_models: Iterable[ModelResult] = (),
    ) -> None:
        """Keep what is given, and forget the alerts with the ids ``ended``: all or nothing.

        Raises `Retryable` (locked, disk full) or `Fatal` (damaged).
        """
        now = self._clock()
        new = [(window_id(each), _source(each), each.start_unix_s, now, _json(each)) for each in windows]
        changed = list(alerts)
        states = [(each.id, each.transition, each.updated_unix_s, _json(each)) for each in changed]
        passed = [
            (each.id, each.transition, each.updated_unix_s, now, _json(msgspec.structs.replace(each, evidence={})))
            for each in changed
        ]
        budgets = [(budget_id(each), each.end_unix_s, now, _json(each)) for each in slos]
        explained = [(each.alert_id, each.transition, _json(each)) for each in evidence]
        told = list(of_models)
        gone = [(each,) for each in ended]
        with self._transaction() as db:
            db.executemany(_INSERT_WINDOW, new)
            db.executemany(_UPSERT_SLO, budgets)
            db.executemany(_INSERT_TRANSITION, passed)
            db.executemany(_UPSERT_ALERT, states)
            db.executemany(_UPSERT_EVIDENCE, explained)
            for kind, table in TABLES.items():
                db.executemany(table.upsert, [table.values(each, now) for each in told if isinstance(each, kind)])
            db.executemany("DELETE FROM alerts WHERE id = ?", gone)
            db.executemany("DELETE FROM evidence WHERE alert_id = ?", gone)

    def write_windows(self, windows: Iterable[Window]) -> None:
        """`write` windows only."""
        self.write(windows=windows)

    def write_alerts(self, alerts: Iterable[Alert]) -> None:
        """`write` alerts only."""
        self.write(alerts=alerts)

    def prune(self, retention_s: float, max_rows: int, at_most: int = 1000) -> int:
        """Delete windows written more than ``retention_s`` ago, and the oldest beyond ``max_rows``; how many.

        In chunks, so that nobody waits long: there may be more while it returns ``at_most``.
        """
        with self._transaction() as db:
            old = db.execute(_DELETE_OLD, (self._clock() - retention_s, at_most)).rowcount
            db.execute("DELETE FROM slos WHERE written_unix_s < ?", (self._clock() - retention_s,))
            return old + db.execute(_DELETE_BEYOND, (max_rows, at_most - old)).rowcount

    def prune_history(self, retention_s: float, max_transitions: int, at_most: int = 1000) -> int:
        """The same for the transitions of alerts."""
        with self._transaction() as db:
            old = db.execute(_DELETE_TRANSITIONS, (self._clock() - retention_s, at_most)).rowcount
            return old + db.execute(_DELETE_TRANSITIONS_BEYOND, (max_transitions, at_most - old)).rowcount

    def prune_models(self, retention_s: float, max_rows: int, at_most: int = 1000) -> int:
        """The same for what is about models, each kind by itself."""
        deleted = 0
        with self._transaction() as db:
            for table in TABLES.values():
                old = db.execute(table.too_old, (self._clock() - retention_s, at_most)).rowcount
                deleted += old + db.execute(table.too_many, (max_rows, at_most - old)).rowcount
        return deleted

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        assert self._writer is not None, "opened with read_only"
        with self._writing, _explained(self.path), self._writer as db:
            db.execute("BEGIN IMMEDIATE")
            yield db

    # ------------------------------------------------------------------ reading

    def windows(
        self,
        source: str,
        since_unix_s: float,
        until_unix_s: float | None = None,
        limit: int = 10_000,
        rollup_s: float | None = None,
    ) -> list[Window]:
        """Windows that start in ``[since, until)``, main and late, by start; at most the newest ``limit``.

        Base windows, or rollups of ``rollup_s`` seconds: never both, which hold the same events.
        """
        until = inf if until_unix_s is None else until_unix_s
        name = source if rollup_s is None else f"{source} {rollup_s:g}s"
        rows = self._read(_WINDOWS, (name, since_unix_s, until, limit))
        return [_WINDOW.decode(body) for (body,) in reversed(rows)]

    def alerts(self, limit: int = 100) -> list[Alert]:
        """The newest state of each alert, the last changed first, with the evidence that was found for it."""
        return [_with_evidence(_ALERT.decode(body), evidence) for body, evidence in self._read(_ALERTS, (limit,))]

    def evidence(self, alert_id: str) -> Evidence | None:
        """What was found for an alert."""
        rows = self._read("SELECT body FROM evidence WHERE alert_id = ?", (alert_id,))
        return msgspec.json.decode(rows[0][0], type=Evidence) if rows else None

    def slos(self, limit: int = 10_000) -> list[Slo]:
        """The newest state of each error budget, by name and series."""
        rows = self._read("SELECT body FROM slos ORDER BY slo, series LIMIT ?", (limit,))
        return [_SLO.decode(body) for (body,) in rows]

    def newest(self, kind: type[M], limit: int = 10_000, *, notable: bool = False) -> list[M]:
        """Of each series of `Drift` or `Quality`, and each `Loop`, the newest, the last that ended first.

        ``notable``: the newest that drifted, or that was measured, or that is over.
        """
        return self._told(kind, TABLES[kind].newest(notable), (limit,))

    def ended(self, kind: type[M], since_unix_s: float, until_unix_s: float = inf, limit: int = 10_000) -> list[M]:
        """All of a kind that ended in ``(since, until]``, the last first; at most the newest ``limit``."""
        return self._told(kind, TABLES[kind].ended, (since_unix_s, until_unix_s, limit))

    def before(self, result: ModelResult, brief: type[T], since_unix_s: float, limit: int) -> list[T]:
        """What else there is of the series of a result that ended later than ``since``, and itself; the last first.

        ``brief``: a struct of those fields that are wanted; what is not looked at costs little.
        """
        table, decoder = TABLES[type(result)], msgspec.json.Decoder(brief)
        rows = self._read(table.of_series, (table.row(result).series, since_unix_s, limit))
        return [decoder.decode(body) for (body,) in rows]

    def _told(self, kind: type[M], query: str, parameters: tuple[Any, ...]) -> list[M]:
        decoder = msgspec.json.Decoder(kind)
        return [decoder.decode(body) for (body,) in self._read(query, parameters)]

    def alert_history(self, limit: int = 1_000_000) -> list[Alert]:
        """Every transition of every alert that is kept, without evidence, by time; at most the newest ``limit``."""
        query = 'SELECT body FROM alert_history ORDER BY updated_unix_s DESC, id, "transition" DESC LIMIT ?'
        return [_ALERT.decode(body) for (body,) in reversed(self._read(query, (limit,)))]

    def latest_start(self, source: str) -> float | None:
        """When the newest window starts, in Unix seconds; None without any."""
        ((start,),) = self._read("SELECT max(start_unix_s) FROM windows WHERE source = ?", (source,))
        return None if start is None else float(start)

    @contextmanager
    def snapshot(self) -> Iterator[Snapshot]:
        """For following what is written: see `Snapshot`. Raises `Retryable`."""
        with _explained(self.path), closing(_open_for_reading(self.path)) as db:
            db.execute("BEGIN")
            yield Snapshot(db)

    def _read(self, query: str, parameters: tuple[Any, ...]) -> list[tuple[Any, ...]]:
        with self._reading, _explained(self.path):
            return self._reader.execute(query, parameters).fetchall()

    def close(self) -> None:
        """Wait for whoever writes or reads now, and close. Closing twice is allowed."""
        with self._reading:
            self._reader.close()
        with self._writing:
            if self._writer is not None:
                self._writer.close()


def _source(window: Window) -> str:
    """A name shared by windows that may be added."""
    if window.is_base:
        return window.source
    lengths = (window.size_s if window.kind != "session" else None, window.every_s, window.gap_s)
    kind = () if window.kind == "tumbling" else (window.kind,)
    return " ".join([window.source, *kind, *(f"{length:g}s" for length in lengths if length is not None)])


def _with_evidence(alert: Alert, evidence: str | None) -> Alert:
    """Of what was found, what an alert has no words of its own for."""
    if evidence is None:
        return alert
    found = _EVIDENCE.decode(evidence)
    parts = {name: found[name] for name in ("onset_unix_s", "causes", "comoving", "notes") if name in found}
    return msgspec.structs.replace(alert, evidence=alert.evidence | parts)


def _json(result: Window | Alert | Slo | Evidence) -> str:
    return msgspec.json.encode(result).decode()


def _open_for_writing(path: Path) -> sqlite3.Connection:
    path.parent.mkdir(parents=True, exist_ok=True)
    db = _connect(path.resolve().as_uri())
    try:
        if _number(db, "SELECT count(*) FROM sqlite_master"):
            _check_ours(path, db, oldest=1)
        db.execute("PRAGMA journal_mode = WAL")
        # Offsets are committed when a batch is written, so it must be on disk then, power failure included.
        db.execute("PRAGMA synchronous = FULL")
        db.executescript(_SCHEMA)
    except BaseException:
        db.close()  # which undoes what was begun, and lets others in
        raise
    return db


def _open_for_reading(path: Path) -> sqlite3.Connection:
    db = _connect(f"{path.resolve().as_uri()}?mode=ro")
    _check_ours(path, db)
    return db


def _connect(uri: str) -> sqlite3.Connection:
    return sqlite3.connect(uri, uri=True, timeout=BUSY_S, isolation_level=None, check_same_thread=False)


def _check_ours(path: Path, db: sqlite3.Connection, oldest: int = SCHEMA_VERSION) -> None:
    if _number(db, "PRAGMA application_id") != APPLICATION_ID:
        raise ConfigError(f"{path} is an SQLite file of another program; choose another data directory")
    if not oldest <= (version := _number(db, "PRAGMA user_version")) <= SCHEMA_VERSION:
        advice = (
            "update streammon"
            if version > SCHEMA_VERSION
            else "`streammon up` or `streammon sink sqlite` brings it up to date, with all that is in it"
        )
        raise ConfigError(f"{path} has schema {version}, this streammon reads {SCHEMA_VERSION}: {advice}")


def _number(db: sqlite3.Connection, query: str) -> int:
    ((number,),) = db.execute(query)
    return int(number)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """SQLite's errors as ours: what passes (locked, disk full) and what does not (damaged)."""
    try:
        yield
    except sqlite3.OperationalError as error:
        raise Retryable(f"{path}: {error}") from error
    except sqlite3.DatabaseError as error:
        raise Fatal(f"{path}: {error}; stop, move the file away, and replay to fill a new one") from error


class SqliteSink:
    """Results into a `ResultStore` of its own; others open theirs beside it."""

    def __init__(self, store: ResultStore, settings: SqliteSettings) -> None:
        self._store, self._settings = store, settings

    async def write(self, records: Sequence[Item]) -> list[Refused]:
        return await asyncio.to_thread(self._write, records)

    def _write(self, items: Sequence[Item]) -> list[Refused]:
        decoded, refused = decode_all(items)
        self._store.write(
            windows=[each.result for each in decoded if isinstance(each.result, Window)],
            alerts=[each.result for each in decoded if isinstance(each.result, Alert)],
            ended=[
                (each.item.record.key or b"").decode(errors="replace")
                for each in decoded
                if each.result is None and each.item.where.topic == "alerts"
            ],
            slos=[each.result for each in decoded if isinstance(each.result, Slo)],
            evidence=[each.result for each in decoded if isinstance(each.result, Evidence)],
            of_models=[each.result for each in decoded if isinstance(each.result, ModelResult)],
        )
        # More than came in, so that pruning keeps up whatever the load.
        settings, at_most = self._settings, 2 * len(items) + PRUNE_ROWS
        self._store.prune(settings.retention_s, settings.max_rows, at_most)
        self._store.prune_history(settings.alert_retention_s, settings.max_transitions, at_most)
        self._store.prune_models(settings.model_retention_s, settings.max_model_rows, at_most)
        return refused

    async def close(self) -> None:
        await asyncio.to_thread(self._store.close)
