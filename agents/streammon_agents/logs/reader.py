"""What a log source does in its thread: finds files, reads them in turn, and makes events of what is in them.

Two beats. Files that changed within `HOT_S`, or have something underway, are looked at every time (`collect`); all
others when files are looked for (`discover`), which also finds out what became of those that are gone. So what an idle
file costs does not depend on how often busy ones are read. The number of files, of those open, of bytes read and of
events made at a time is bounded.
"""

from __future__ import annotations

import os
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from fnmatch import fnmatchcase
from glob import iglob
from typing import Any, Final, NamedTuple

from streammon.clock import Clock, system_clock
from streammon.config import LogInput, LogSettings
from streammon.telemetry import log
from streammon_agents.logs import records
from streammon_agents.logs.assembly import Assembly, Bounds, Pile
from streammon_agents.logs.containers import origin
from streammon_agents.logs.limits import RateLimit
from streammon_agents.logs.positions import Positions, Remembered
from streammon_agents.logs.redaction import Redactor
from streammon_agents.logs.tail import (
    GONE_S,
    Key,
    Skip,
    Skipped,
    Tail,
    inodes,
    key_of,
    named_after,
    open_regular,
    regular,
    shown,
)

HOT_S: Final = 60.0
BATCH_BYTES: Final = 4_000_000
"""Of text in one batch, about."""
SUMMARY_S: Final = 60.0
"""How often a service is told how many of its lines were dropped."""
SERVICES: Final = 1000
"""Services that lines may name; of more, the file's own name stands."""
COPIED: Final = 64
"""What has fewer bytes in common with another file is no copy of it."""
COMPRESSED: Final = (".gz", ".zst", ".bz2", ".xz", ".lz4", ".zip", ".tgz")
"""Rotated files that were read before they were packed."""
LARGEST_PART: Final = 50
"""Looking for files takes no more than such a part of the time."""


class Loss(StrEnum):
    """Why a line was given up. The values are labels: add, never rename."""

    RATE_LIMIT = "rate_limit"
    FAILED = "failed"  # what we did not foresee; nothing leaves that could not be redacted
    UNSENDABLE = "unsendable"  # an event that no record can hold


class Found(NamedTuple):
    """A path that an input names."""

    path: str
    input: LogInput


class Copied(NamedTuple):
    """That a file has what was read of another one, up to ``read``; 0: it may be being copied."""

    read: int
    since: float


def found(settings: LogSettings) -> Iterator[Found]:
    """Every path that the inputs name, those first that are named first. Not every one is a file that can be read."""
    for each in settings.inputs:
        for pattern in each.paths:
            for path in iglob(_expanded(pattern), recursive=True):
                if not path.endswith(COMPRESSED) and not _is_excluded(path, each.exclude):
                    yield Found(path, each)


def _expanded(pattern: str) -> str:
    return os.path.expanduser(pattern)


def _is_excluded(path: str, patterns: Iterable[str]) -> bool:
    return any(fnmatchcase(path if "/" in each else os.path.basename(path), each) for each in patterns)


_USUAL: Final[Mapping[str, tuple[str, ...]]] = {
    "audit": ("*audit*",),
    "authentication": ("auth.log*", "secure", "secure-*", "secure.*", "faillog*", "*authentication*"),
    "authorization": ("*authorization*", "sudo*.log*"),
    "security": ("*security*", "*fail2ban*"),
    "data_access": ("*data_access*", "*data-access*"),
}


def usual_category(path: str) -> str:
    """What the name of a file says of its lines.

    >>> [usual_category(name) for name in ("/var/log/audit/audit.log", "/var/log/auth.log", "/var/log/app.log")]
    ['audit', 'authentication', 'app']
    """
    name = os.path.basename(path).lower()
    for category, patterns in _USUAL.items():
        if any(fnmatchcase(name, pattern) for pattern in patterns):
            return category
    return "app"


@dataclass
class Collected:
    """What was read at one time."""

    events: list[dict[str, Any]] = field(default_factory=list)
    files: list[Remembered] = field(default_factory=list)
    refused: Counter[Skip] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    """By the rate limit, by service."""
    failed: int = 0
    inputs: list[tuple[str, ...]] = field(default_factory=list)
    """The patterns of inputs that are begun now."""
    more: bool = False
    """Whether there is more to be read at once."""


class Reader:
    """Follows the files of the inputs. For one thread."""

    def __init__(
        self,
        settings: LogSettings,
        positions: Positions,
        redactor: Redactor,
        *,
        clock: Clock = system_clock,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings, self._positions, self._redactor = settings, positions, redactor
        self._clock, self._monotonic = clock, monotonic
        self._bounds = Bounds(
            settings.max_line_bytes, settings.max_event_lines, settings.multiline_s, settings.partial_s
        )
        self._limit = RateLimit(settings.rate_per_s, settings.burst)
        self._summaries: Counter[str] = Counter()
        self._summarized = monotonic()
        self._tails: dict[Key, Tail] = {}
        self._paths: dict[str, Tail] = {}
        self._copies: dict[Key, Copied] = {}
        self._inputs: dict[Key, LogInput] = {}
        self._readings: dict[Key, records.Reading] = {}
        self._active: OrderedDict[Key, Tail] = OrderedDict()
        self._open: OrderedDict[Key, Tail] = OrderedDict()
        self._services: dict[str, str] = {}
        self._remembered: dict[Key, Remembered] = {file[:2]: file for file in positions.files()}
        self._from_end = {
            each for each in settings.inputs if each.start == "end" and not positions.is_known(each.paths)
        }
        self._next_discovery = 0.0
        self._next_seen = 0.0
        self._first = True
        self.skipped: dict[str, Skipped] = {}
        """Paths that cannot be read now, and why."""

    @property
    def files(self) -> int:
        """Files that are followed."""
        return len(self._tails)

    # --- finding ---

    def discover(self) -> Counter[Skip]:
        """Look which files there are; returns what is newly not read."""
        started, refused = self._monotonic(), Counter[Skip]()
        skipped: dict[str, Skipped] = {}
        present: set[Key] = set()
        for path, each in found(self._settings):
            try:
                self._discovered(path, each, present)
            except Skipped as why:
                if path not in self.skipped or self.skipped[path].reason is not why.reason:
                    refused[why.reason] += 1
                skipped[path] = why
            except OSError:  # it vanished, or there are no more descriptors: next time
                continue
        self.skipped = skipped
        self._gone(present, started)
        self._copies = {key: copied for key, copied in self._copies.items() if key not in self._tails}
        if self._first:
            self._begun(present)
        self._remember(present, started)
        took = self._monotonic() - started
        self._next_discovery = started + max(self._settings.discover_s, took * LARGEST_PART)
        return refused

    def _discovered(self, path: str, each: LogInput, present: set[Key]) -> None:
        status = regular(path)
        key = key_of(status)
        if key in present:
            return
        tail = self._tails.get(key)
        if tail is None and (tail := self._begin(path, each, key)) is None:
            return
        present.add(key)
        if status.st_size < tail.size:
            tail.refused = None  # written anew, it may be text
        tail.gone_since, tail.path, tail.size = None, path, status.st_size
        self._paths[path] = tail
        if tail.refused is not None:
            raise tail.refused
        if tail.unread or tail.assembly.waits:
            self._opened(tail)
            self._active.setdefault(key, tail)

    def _begin(self, path: str, each: LogInput, key: Key) -> Tail | None:
        """Follow one more file, from where it was left, its end, or its beginning. None: a copy, which waits."""
        if len(self._tails) >= self._settings.max_files:
            raise Skipped(Skip.TOO_MANY_FILES, f"more than {self._settings.max_files} files (agent.logs.max_files)")
        before = self._remembered.get(key)
        tail = self._made(key, before.path if before else path, each)
        tail.path = path
        self._opened(tail)
        if before is not None:
            if not tail.resume(before):
                self._follow_copy(before, path, each)
        elif (copied := self._copied(tail)) is not None:
            if self._monotonic() - copied.since < GONE_S:
                self._closed(tail)
                return None
            tail.skip_to(copied.read)
        elif self._first and each in self._from_end:
            tail.to_its_end()
        return self._follow(tail, each)

    def _made(self, key: Key, path: str, each: LogInput) -> Tail:
        assembly = Assembly(
            0,
            self._bounds,
            container=each.container,
            multiline_start=each.multiline_start,
        )
        return Tail(key, path, assembly)

    def _follow(self, tail: Tail, each: LogInput) -> Tail:
        self._tails[tail.key] = tail
        self._inputs[tail.key] = each
        self._readings[tail.key] = _reading(tail.first_path, each)
        self._active[tail.key] = tail
        return tail

    def _copied(self, tail: Tail) -> Copied | None:
        """Whether this is a copy, as copytruncate makes them: it has the name of another file, and what we read of it.

        It waits for that to be truncated, and then is gone on with (`_follow_copy`). If that was not to be, it is a
        file of its own, of which the beginning was told already.
        """
        before = self._copies.pop(tail.key, Copied(0, self._monotonic()))
        if before.read:
            self._copies[tail.key] = before
            return before
        directory, name = os.path.split(tail.path)
        for length in range(len(name) - 1, 0, -1):
            original = self._paths.get(f"{directory}/{name[:length]}")
            if original is not None and (read := original.assembly.read) >= COPIED:
                if tail.is_same(original.remembered()):
                    self._copies[tail.key] = before._replace(read=read)
                elif tail.begins(original):
                    self._copies[tail.key] = before
        return self._copies.get(tail.key)

    def _pass_over_copies(self, tail: Tail) -> None:
        """What was copied of this one before we had read on in it is no news."""
        for path in named_after(tail.path):
            try:
                copy = self._made(key_of(regular(path)), path, self._inputs[tail.key])
                if copy.key in self._copies:
                    copy.path = path
                    self._opened(copy)
                    if copy.begins(tail):
                        copy.to_its_end()
                        self._follow(copy, self._inputs[tail.key])
            except (Skipped, OSError):
                continue

    def _follow_copy(self, before: Remembered, path: str, each: LogInput) -> bool:
        """Go on in the copy of what was truncated, if there is one: what nobody has read of it is there."""
        for other in named_after(path) if before.read >= COPIED else ():
            try:
                copy = self._made(key_of(regular(other)), before.path, each)
                copy.path = other
                if copy.key[1] == before.inode or copy.key in self._tails:
                    continue
                self._opened(copy)
            except (Skipped, OSError):
                continue
            if copy.resume(before):
                self._follow(copy, each).gone_since = self._monotonic()
                self._copies.pop(copy.key, None)
                return True
            self._closed(copy)
        return False

    def _gone(self, present: set[Key], now: float) -> None:
        for key, tail in self._tails.items():
            if key not in present and tail.gone_since is None:
                tail.gone_since = now
                self._active.setdefault(key, tail)

    def _begun(self, present: set[Key]) -> None:
        """Of what another process has followed: what was renamed meanwhile is read to its end."""
        self._first = False
        directories: dict[str, dict[int, str]] = {}
        for key, before in self._remembered.items():
            if key not in present and key not in self._tails and len(self._tails) < self._settings.max_files:
                directory = os.path.dirname(os.path.realpath(before.path))
                if directory not in directories:
                    directories[directory] = inodes(directory)
                path = directories[directory].get(before.inode)
                if path is not None and (each := self._input_of(before.path)) is not None:
                    self._resume(before, path, each)
        self._remembered = {}

    def _resume(self, before: Remembered, path: str, each: LogInput) -> None:
        """Read a renamed file to its end, unless it was."""
        try:
            if os.stat(path).st_size == before.read == before.position:
                return
            tail = self._made((before.device, before.inode), before.path, each)
            tail.path = path
            self._opened(tail)
        except (Skipped, OSError):
            return
        if tail.resume(before):
            self._follow(tail, each).gone_since = self._monotonic()
        else:
            self._closed(tail)

    def _input_of(self, path: str) -> LogInput | None:
        for each in self._settings.inputs:
            if any(fnmatchcase(path, _expanded(pattern).replace("**/", "*")) for pattern in each.paths):
                return each
        return None

    def _remember(self, present: set[Key], now: float) -> None:
        if now >= self._next_seen:
            self._positions.seen(present, self._clock())
            self._next_seen = now + 3600

    # --- reading ---

    def collect(self) -> Collected:
        """Read from the files in turn, until there is nothing more or the batch is full."""
        now, collected, taken = self._monotonic(), Collected(), 0
        if self._first:
            collected.inputs = [each.paths for each in self._settings.inputs]
        if now >= self._next_discovery:
            collected.refused += self.discover()
        for key in list(self._active):
            if len(collected.events) >= self._settings.batch_events or taken >= BATCH_BYTES:
                break
            if (tail := self._active.get(key)) is None:
                continue
            before = tail.assembly.read
            self._look(tail, now, collected)
            taken += max(0, tail.assembly.read - before)
            if key in self._active:
                self._active.move_to_end(key)
        collected.more = taken > 0 and any(tail.unread for tail in self._active.values())
        collected.files += [tail.remembered() for tail in self._tails.values() if tail.dirty]
        for tail in self._tails.values():
            tail.dirty = False
        collected.dropped = self._limit.take_dropped()
        self._summarize(collected, now)
        return collected

    def _look(self, tail: Tail, now: float, collected: Collected) -> None:
        """One piece of one file; and what is idle is let go."""
        try:
            self._opened(tail)
            piles = self._replaced(tail, now) if tail.was_replaced() else []
            piles += tail.read(now)
        except Skipped as why:
            self._refuse(tail, why, collected)
            return
        except FileNotFoundError:
            self._lost(tail, now, collected)
            return
        except OSError as error:  # a disk that fails, too many open files: it may pass
            if tail.gone_since is None:
                self._refuse(tail, Skipped(Skip.UNREADABLE, error.strerror or repr(error)), collected)
            return
        if tail.refused is not None:
            self._refuse(tail, tail.refused, collected)
            return
        self._events(tail, piles, collected)
        if tail.unread or tail.assembly.waits:
            return
        if tail.gone_since is not None and now - max(tail.gone_since, tail.changed) > GONE_S:
            self._finish(tail, now, collected)
        elif tail.gone_since is None and now - tail.changed > HOT_S:
            del self._active[tail.key]

    def _replaced(self, tail: Tail, now: float) -> list[Pile]:
        """What was truncated begins anew; what was underway goes on in the copy, or is all there is."""
        goes_on = self._follow_copy(tail.remembered(), tail.path, self._inputs[tail.key])
        if not goes_on:
            self._pass_over_copies(tail)
        left = tail.restart(now)
        return [] if goes_on else left

    def _refuse(self, tail: Tail, why: Skipped, collected: Collected) -> None:
        self._closed(tail)
        self._active.pop(tail.key, None)
        if self.skipped.get(tail.path) is None:
            collected.refused[why.reason] += 1
        self.skipped[tail.path] = why

    def _lost(self, tail: Tail, now: float, collected: Collected) -> None:
        """Nowhere to be found: deleted while it was not open."""
        if tail.gone_since is None:
            self._active.pop(tail.key, None)  # looked for again with the others
            return
        if tail.unread:
            collected.refused[Skip.VANISHED] += 1
        self._finish(tail, now, collected)

    def _finish(self, tail: Tail, now: float, collected: Collected) -> None:
        self._closed(tail)
        self._events(tail, tail.finish(now), collected)
        collected.files.append(tail.remembered())
        if self._paths.get(tail.path) is tail:
            del self._paths[tail.path]
        for kept in (self._tails, self._inputs, self._readings, self._active):
            kept.pop(tail.key, None)

    def _opened(self, tail: Tail) -> None:
        """Open it, and close another one if too many are."""
        if not tail.is_open:
            while len(self._open) >= self._settings.max_open_files:
                self._closed(next(iter(self._open.values())))
            tail.open()
        self._open[tail.key] = tail
        self._open.move_to_end(tail.key)

    def _closed(self, tail: Tail) -> None:
        tail.close()
        self._open.pop(tail.key, None)

    # --- events ---

    def _events(self, tail: Tail, piles: Iterable[Pile], collected: Collected) -> None:
        reading, read_unix_s = self._readings[tail.key], self._clock()
        if tail.assembly.binary:
            collected.refused[Skip.BINARY] += tail.assembly.binary
            tail.assembly.binary = 0
        for pile in piles:
            line = records.Line(pile.text, read_unix_s, pile.time, pile.stream, pile.cut)
            try:
                self._event(line, reading, collected)
            except Exception as error:  # one line that we did not foresee must not stop all that follow
                collected.failed += 1
                log.error("a line of a log file is left out", file=shown(tail.path), error=type(error).__name__)

    def _event(self, line: records.Line, reading: records.Reading, collected: Collected) -> None:
        event = records.event(line, reading)
        event["service"] = self._service(event["service"], reading)
        if event["category"] != "app" or self._limit.allows(event["service"], self._monotonic()):
            collected.events.append(self._redactor.event(event))

    def _service(self, named: str, reading: records.Reading) -> str:
        """As a line names it, redacted; of too many names, that of the file."""
        if named == reading.service or len(self._services) >= SERVICES:
            return self._services.get(named, reading.service)
        known = self._services.get(named)
        if known is None:
            known = self._services[named] = self._redactor.text(named)[:200] or reading.service
        return known

    def _summarize(self, collected: Collected, now: float) -> None:
        """Once a minute each service is told what it does not see."""
        self._summaries += collected.dropped
        if now - self._summarized < SUMMARY_S:
            return
        self._summarized = now
        for service, lines in self._summaries.items():
            collected.events.append(self._redactor.event(_summary(service, lines, self._clock())))
        self._summaries.clear()

    def close(self) -> None:
        for tail in list(self._open.values()):
            self._closed(tail)


def _reading(path: str, each: LogInput) -> records.Reading:
    path = shown(path)
    named = origin(path)
    return records.Reading(
        service=each.service or named.service,
        fixed_service=each.service is not None,
        category=each.category,
        usual_category=usual_category(path),
        format=each.format,
        local=each.timezone == "local",
        fields={"log.file.path": path, **named.fields},
    )


def _summary(service: str, lines: int, now_unix_s: float) -> dict[str, Any]:
    return {
        "time_unix_s": now_unix_s,
        "service": service,
        "level": "warn",
        "category": "app",
        "message": f"{lines} lines were dropped by the rate limit",
        "fields": {"log.dropped": lines, "log.dropped_by": Loss.RATE_LIMIT.value},
    }


def looked_at(settings: LogSettings) -> Iterator[tuple[LogInput, int, dict[str, Skipped]]]:
    """For each input: how many files can be read, and which cannot, and why. Changes nothing."""
    files: dict[int, int] = {}
    refused: dict[int, dict[str, Skipped]] = {id(each): {} for each in settings.inputs}
    seen: set[Key] = set()
    for path, each in found(settings):
        try:
            key = key_of(regular(path))
            if key not in seen:
                seen.add(key)
                os.close(open_regular(path))
                files[id(each)] = files.get(id(each), 0) + 1
        except Skipped as why:
            refused[id(each)][path] = why
        except OSError:  # a link to nowhere, or it vanished
            continue
    for each in settings.inputs:
        yield each, files.get(id(each), 0), refused[id(each)]
