"""The memory of the join: by key, the bytes of what is known of an id; on disk, in generations.

A *generation* is a RocksDB of its own. Only the newest is written; a key is looked for in the newest first. What has
expired goes with its generation, whole: no deletion by key, no compaction of what is gone, and the disk is bounded by
how many generations there are and what one may hold. The task decides that, from the log.

The disk is a copy of what the journal says, and behind on purpose: what is not committed is in memory only, and
RocksDB keeps no write-ahead log, for the journal is one. What a crash takes is read again from there. With the last
write of a commit goes its place in the journal, in the same batch. RocksDB flushes batches whole and in their order,
and a generation is flushed before the next is written, so a store always knows how far it is at least; what it holds
beyond that is written over by the same. Whatever is wrong with it, it is thrown away.

What it costs, for all stores of a process together: `CACHE_BYTES`, `WRITE_BUFFERS_BYTES`, and about 2.5 bytes a key for
filters and indices. Looking for a key that is nowhere, as nearly every prediction does, asks the filters only.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import finalize

import msgspec
from msgspec import Struct

from streammon.errors import Fatal
from streammon.file_lock import FileLock
from streammon.telemetry import log
from streammon_processors.journal import Link

if TYPE_CHECKING:
    from rocksdict import Options, Rdict

CACHE_BYTES = 16 * 1024**2
WRITE_BUFFERS_BYTES = 48 * 1024**2
"""Beyond this, what is in the buffers of all stores is written out early."""
WRITE_BUFFER_BYTES = 8 * 1024**2
"""Of one store: what a crash leaves to be read again from the journal, at most twice over."""
BLOOM_BITS = 10
"""One in a hundred keys that are not there is looked for on disk."""
SPILL_ENTRIES = 100_000
"""Kept in memory by one that has no directory of its own, before it takes a temporary one."""
VERSION = 1
_MARK = b"mark"  # shorter than any key
_SPOILT, _GONE = "spoilt", "gone-"


class Mark(Struct, array_like=True):
    """How far a store is: the last record of the journal that it holds all of, and the broker time when it was made."""

    version: int
    place: Link
    came_s: float


@dataclass
class _Layer:
    """What was put and is not on disk yet, of one generation."""

    generation: int
    entries: dict[bytes, bytes] = field(default_factory=dict)
    sealed: bool = False
    """The snapshot that was taken last knows of it."""


class Memory:
    """What is known, by key: what was put is found at once, and reaches the disk when it is committed."""

    def __init__(self) -> None:
        self._layers: list[_Layer] = []  # the newest last
        self._oldest = self._oldest_sealed = 0  # generations before it are forgotten
        self._directory: Path | None = None
        self._store: Store | None = None

    def keep_in(self, directory: Path) -> None:
        """Keep it there, and begin with what is there."""
        self._directory = directory
        self._store = Store.kept(directory)

    def known(self) -> Mark | None:
        """How far the disk is, where it is of any use."""
        return None if self._store is None else self._store.mark()

    def get(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """What is known of each; None if nothing is."""
        found: list[bytes | None] = [None] * len(keys)
        missing: Sequence[int] = range(len(keys))
        for look_up in self._look_ups():
            some = look_up([keys[index] for index in missing] if len(missing) < len(keys) else keys)
            for index, value in zip(missing, some, strict=True):
                found[index] = value
            missing = [index for index, value in zip(missing, some, strict=True) if value is None]
            if not missing:
                break
        return found

    def _look_ups(self) -> Iterator[Any]:
        """Where to look, the newest first."""
        for layer in reversed(self._layers):
            if layer.generation >= self._oldest:
                yield lambda keys, get=layer.entries.get: list(map(get, keys))
        if self._store is not None:
            yield from self._store.look_ups(self._oldest)

    def put(self, entries: Mapping[bytes, bytes], generation: int) -> None:
        """Know this instead of what was known of these keys."""
        last = self._layers[-1] if self._layers else None
        if last is None or last.sealed or last.generation != generation:
            last = _Layer(generation)
            self._layers.append(last)
        last.entries.update(entries)

    def forget(self, oldest: int) -> None:
        """Nothing that was put into a generation before this one is known any more."""
        self._oldest = max(self._oldest, oldest)

    def seal(self) -> None:
        """A snapshot is taken of all this."""
        self._oldest_sealed = self._oldest
        layers: list[_Layer] = []
        for layer in self._layers:
            if layers and layers[-1].generation == layer.generation:
                layers[-1].entries.update(layer.entries)
            else:
                layers.append(layer)
                layer.sealed = True
        self._layers = layers

    def settle(self, place: Link, came_s: float) -> None:
        """What was sealed is committed: it may go to the disk."""
        sealed = [layer for layer in self._layers if layer.sealed and layer.generation >= self._oldest_sealed]
        if self._directory is None:
            return
        self._layers = [layer for layer in self._layers if not layer.sealed]
        self._write(sealed, Mark(VERSION, place, came_s))

    def spill(self, place: Link, came_s: float) -> None:
        """Without a directory of its own, nobody waits for commits, but until it is too much for the memory."""
        if self._directory is None and sum(len(layer.entries) for layer in self._layers) > SPILL_ENTRIES:
            layers, self._layers = self._layers, []
            self._oldest_sealed = self._oldest
            self._write([layer for layer in layers if layer.generation >= self._oldest], Mark(VERSION, place, came_s))

    def _write(self, layers: Sequence[_Layer], mark: Mark) -> None:
        if self._store is None:
            self._store = Store.temporary()
        for layer in layers:
            self._store.write(layer.generation, layer.entries, mark if layer is layers[-1] else None)
        self._store.drop_before(self._oldest_sealed)

    def clear(self) -> None:
        """Know nothing; on disk, too."""
        self._layers, self._oldest, self._oldest_sealed = [], 0, 0
        if self._store is not None:
            self._store.clear()

    def close(self) -> None:
        """Let go of the disk; what is there stays, if it is to be kept."""
        if self._store is not None:
            self._store.close()
            self._store = None


class Store:
    """The generations on disk, below one directory that is ours alone."""

    def __init__(self, directory: Path, lock: FileLock | None) -> None:
        self._directory = directory
        self._lock = lock
        self._generations: dict[int, Rdict] = {}  # ascending

    @classmethod
    def kept(cls, directory: Path) -> Store:
        """With what is there already, unless another process uses it, or we may not: then a temporary one."""
        try:
            directory.mkdir(parents=True, exist_ok=True)
            lock = FileLock(directory / "lock")
            if lock.take():
                store = cls(directory, lock)
                store._open()
                return store
            lock.release()
            log.warning("another process keeps its memory there, using a temporary directory", directory=str(directory))
        except OSError as error:
            log.warning("using a temporary directory for the memory", directory=str(directory), error=str(error))
        return cls.temporary()

    @classmethod
    def temporary(cls) -> Store:
        """One that is gone with the process."""
        directory = Path(tempfile.mkdtemp(prefix="streammon-join-"))
        store = cls(directory, None)
        finalize(store, shutil.rmtree, directory, ignore_errors=True)
        return store

    def _open(self) -> None:
        try:
            if (self._directory / _SPOILT).exists():
                self._clear()
            for gone in self._directory.glob(f"{_GONE}*"):
                shutil.rmtree(gone, ignore_errors=True)
            for number in sorted(int(path.name) for path in self._directory.iterdir() if path.name.isdigit()):
                self._generations[number] = self._database(number)
            self.mark()
        except Exception as error:  # whatever RocksDB makes of what is there: the journal has it all
            log.warning("a memory on disk is thrown away", directory=str(self._directory), error=str(error))
            self._clear()

    def _database(self, number: int) -> Rdict:
        from rocksdict import Rdict, WriteOptions

        database = Rdict(str(self._directory / str(number)), _options())
        without_log = WriteOptions()
        without_log.disable_wal = True  # type: ignore[method-assign, assignment]  # an attribute, whatever the stubs say
        database.set_write_options(without_log)
        return database

    def mark(self) -> Mark | None:
        """How far it is; None if it holds nothing, or what another version wrote."""
        found = [value for database in self._generations.values() if (value := database.get(_MARK)) is not None]
        marks = [msgspec.msgpack.decode(value, type=Mark) for value in found]
        if any(mark.version != VERSION for mark in marks):
            raise ValueError("another version wrote it")
        return max(marks, key=lambda mark: mark.place.number, default=None)

    def look_ups(self, oldest: int) -> Iterator[Any]:
        for number in reversed(self._generations):
            if number >= oldest:
                yield self._reading(self._generations[number])

    def _reading(self, database: Rdict) -> Any:
        def look_up(keys: Sequence[bytes]) -> Any:
            with self._spoiling():
                return database.get(list(keys))

        return look_up

    def write(self, generation: int, entries: Mapping[bytes, bytes], mark: Mark | None) -> None:
        """Put entries into a generation, and how far the store is with them."""
        from rocksdict import WriteBatch

        with self._spoiling():
            if generation not in self._generations:
                for database in self._generations.values():
                    database.flush()
                self._generations[generation] = self._database(generation)
            batch = WriteBatch(raw_mode=True)
            put = batch.put
            for key, value in entries.items():
                put(key, value)
            if mark is not None:
                put(_MARK, msgspec.msgpack.encode(mark))
            self._generations[generation].write(batch)

    @contextmanager
    def _spoiling(self) -> Iterator[None]:
        """Who cannot be read or written now is not tried again.

        Raises:
            Fatal: that; without it there is no going on.
        """
        try:
            yield
        except Exception as error:
            with suppress(OSError):
                (self._directory / _SPOILT).touch()
            raise Fatal(
                f"the memory of the join in {self._directory} cannot be read or written: {error}; see to the disk, "
                "and start again: nothing is lost, what is missing there is read from the journal"
            ) from error

    def drop_before(self, oldest: int) -> None:
        for number in [number for number in self._generations if number < oldest]:
            self._let_go(self._generations.pop(number))
            with self._spoiling():
                gone = (self._directory / str(number)).rename(self._directory / f"{_GONE}{number}")
            shutil.rmtree(gone, ignore_errors=True)  # under another name: half a generation is none

    def clear(self) -> None:
        with self._spoiling():
            self._clear()

    def _clear(self) -> None:
        self._close_all()
        for path in self._directory.iterdir():
            if path.name.isdigit():
                shutil.rmtree(path)
        (self._directory / _SPOILT).unlink(missing_ok=True)

    def close(self) -> None:
        """Write out what is in buffers, so that nothing has to be read again."""
        self._close_all()
        if self._lock is not None:
            self._lock.release()

    def _close_all(self) -> None:
        for database in self._generations.values():
            self._let_go(database)
        self._generations = {}

    def _let_go(self, database: Rdict) -> None:
        """What cannot be written out any more is read from the journal again."""
        try:
            database.close()
        except Exception as error:  # whatever RocksDB says
            log.warning("a memory on disk was not written out", directory=str(self._directory), error=str(error))


@cache
def _shared() -> tuple[Any, Any]:
    """The cache and the limit of write buffers of all stores of the process."""
    from rocksdict import Cache, WriteBufferManager

    return Cache(CACHE_BYTES), WriteBufferManager(WRITE_BUFFERS_BYTES, False)


def _options() -> Options:
    from rocksdict import BlockBasedOptions, DBCompressionType, Options

    blocks_cache, write_buffers = _shared()
    blocks = BlockBasedOptions()
    blocks.set_bloom_filter(BLOOM_BITS, False)
    blocks.set_block_cache(blocks_cache)
    blocks.set_cache_index_and_filter_blocks(False)  # in the cache, a filter costs five times as much to ask
    blocks.set_block_size(8192)
    options = Options(raw_mode=True)
    options.create_if_missing(True)
    options.set_block_based_table_factory(blocks)
    options.set_write_buffer_size(WRITE_BUFFER_BYTES)
    options.set_max_write_buffer_number(2)
    options.set_write_buffer_manager(write_buffers)
    options.set_compression_type(DBCompressionType.lz4())
    options.set_max_background_jobs(2)
    options.set_keep_log_file_num(1)
    options.set_max_log_file_size(1024**2)
    return options
