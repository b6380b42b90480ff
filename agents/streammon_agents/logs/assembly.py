"""From bytes to the texts of events: lines are split, freed of what a runtime put around them, and put together.

A `Pile` is the text of one event with the place in the file where it begins and ends. Piles leave in the order of their
beginnings, so that one number, `Assembly.position`, says how far a file is done: whatever begins before it was handed
out, and nothing else. Where stdout and stderr are mixed in a file, a line of one waits for the open trace of the other;
at most `HELD` wait, and none longer than `Bounds.multiline_s`.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Final, NamedTuple

from streammon_agents.logs.containers import framing, unframed
from streammon_agents.logs.multiline import Joiner

HELD: Final = 1000
"""Events of one file that wait for an older one."""


class Bounds(NamedTuple):
    """How much belongs together, and for how long."""

    line_bytes: int = 65_536
    event_lines: int = 1000
    multiline_s: float = 1.0
    partial_s: float = 5.0


class Raw(NamedTuple):
    """A line, ``[start, end)`` in its file. ``cut``: bytes left out of it."""

    data: bytes
    start: int
    end: int
    cut: int = 0


class Splitter:
    """Bytes to lines. What is longer than allowed is cut, whatever its length: only the beginning is kept."""

    def __init__(self, offset: int, line_bytes: int, *, skip_first: bool = False) -> None:
        self.start = self.end = offset
        """The line that is not yet whole."""
        self._rest = b""
        self._cut = 0
        self._limit = line_bytes
        self._skip = skip_first

    def feed(self, chunk: bytes) -> Iterator[Raw]:
        """The lines that are whole now."""
        *lines, rest = (self._rest + chunk).split(b"\n")
        at, cut = self.start, self._cut
        for line in lines:
            end = at + len(line) + cut + 1
            if not self._skip:
                yield Raw(line[: self._limit].removesuffix(b"\r"), at, end, cut + max(0, len(line) - self._limit))
            self._skip = False
            at, cut = end, 0
        self.start, self.end = at, self.end + len(chunk)
        self._rest, self._cut = rest[: self._limit], cut + max(0, len(rest) - self._limit)

    def flush(self) -> Iterator[Raw]:
        """What is there of the last line, which nobody has ended."""
        if self.end > self.start:
            if not self._skip:
                yield Raw(self._rest, self.start, self.end, self._cut)
            self.start, self._rest, self._cut = self.end, b"", 0


_WORD: Final = 512
_END_OF_WORD: Final = re.compile(r"[\s\"'&;,(){}\[\]<>][^\s\"'&;,(){}\[\]<>]*$")


def whole_words(text: str) -> str:
    """A text that was cut somewhere, without what may be half of a word: half of a secret is not recognised.

    >>> whole_words("password=hunter2 token=swordf")
    'password=hunter2'
    """
    match = _END_OF_WORD.search(text, max(0, len(text) - _WORD))
    return text if match is None else text[: match.start()]


@dataclass(slots=True)
class Pile:
    """The text of one event, as far as it goes."""

    start: int
    end: int
    texts: list[str]
    size: int
    touched: float
    stream: str = ""
    time: str = ""
    cut: int = 0
    closed: bool = False

    @property
    def text(self) -> str:
        return self.texts[0] if len(self.texts) == 1 else "\n".join(self.texts).rstrip()


@dataclass(slots=True)
class _Partial:
    """The pieces of a line that a runtime has cut."""

    raw: Raw
    time: str
    touched: float
    pieces: bytearray = field(default_factory=bytearray)


class Assembly:
    """What is underway of one file, from ``offset`` on."""

    def __init__(
        self,
        offset: int,
        bounds: Bounds,
        *,
        container: str = "none",
        multiline_start: str | None = None,
        skip_first: bool = False,
    ) -> None:
        self._bounds = bounds
        self._anew = partial(Assembly, bounds=bounds, container=container, multiline_start=multiline_start)
        self._splitter = Splitter(offset, bounds.line_bytes, skip_first=skip_first)
        self._container = container
        self._multiline_start = multiline_start
        self._joiners: dict[str, Joiner] = {}
        self._open: dict[str, Pile] = {}
        self._partials: dict[str, _Partial] = {}
        self._queue: deque[Pile] = deque()
        self._touched = 0.0
        self.binary = 0
        """Lines that were no text."""

    def anew(self, offset: int, *, skip_first: bool = False) -> Assembly:
        """Another one for the same kind of lines, with nothing underway."""
        return self._anew(offset, skip_first=skip_first)

    @property
    def position(self) -> int:
        """Everything before it was handed out."""
        begun = [piece.raw.start for piece in self._partials.values()]
        return min([self._splitter.start, *begun, *(pile.start for pile in list(self._queue)[:1])])

    @property
    def read(self) -> int:
        """Everything before it was read."""
        return self._splitter.end

    @property
    def waits(self) -> bool:
        """Whether something is underway."""
        return bool(self._queue or self._partials or self._splitter.end > self._splitter.start)

    def feed(self, chunk: bytes, now: float) -> None:
        """Take what comes next in the file."""
        self._touched = now
        for raw in self._splitter.feed(chunk):
            self._line(raw, now)

    def ready(self, now: float) -> Iterator[Pile]:
        """The events that are whole, in order, each once; ``now`` decides what has waited long enough."""
        if self._touched + self._bounds.partial_s <= now:
            self.end_line(now)
        self._end_partials(now, self._bounds.partial_s)
        while self._queue:
            first, crowded = self._queue[0], len(self._queue) > HELD
            if not first.closed and not crowded and first.touched + self._bounds.multiline_s > now:
                return
            if any(piece.raw.start < first.start for piece in self._partials.values()):
                if not crowded:
                    return
                self._end_partials(now, 0)
                continue
            self._close(first)
            yield self._queue.popleft()

    def end(self, now: float) -> Iterator[Pile]:
        """All that is underway: nothing will follow."""
        self.end_line(now)
        self._end_partials(now, 0)
        for pile in self._queue:
            self._close(pile)
        yield from self.ready(now)

    def end_line(self, now: float) -> None:
        """Take the last line for whole."""
        for raw in self._splitter.flush():
            self._line(raw, now)

    def _end_partials(self, now: float, after_s: float) -> None:
        for stream, piece in [*self._partials.items()]:
            if piece.touched + after_s <= now:
                del self._partials[stream]
                self._text(bytes(piece.pieces), piece.raw, stream, piece.time, now)

    def _line(self, raw: Raw, now: float) -> None:
        data = raw.data.lstrip(b"\0") if raw.data[:1] == b"\0" else raw.data  # a hole: truncated below a writer
        if b"\0" in data:
            self.binary += 1
            return
        if self._container == "auto":
            self._container = framing(data)
        if self._container == "none":
            self._text(data, raw, "", "", now)
            return
        text, stream, time, is_partial = unframed(data, self._container)
        if is_partial or stream in self._partials:
            self._piece(text, raw, stream, time, is_partial, now)
        else:
            self._text(text, raw, stream, time, now)

    def _piece(self, text: bytes, raw: Raw, stream: str, time: str, is_partial: bool, now: float) -> None:
        piece = self._partials.setdefault(stream, _Partial(raw._replace(cut=0), time, now))
        room = max(0, self._bounds.line_bytes - len(piece.pieces))
        piece.pieces += text[:room]
        piece.raw = piece.raw._replace(end=raw.end, cut=piece.raw.cut + raw.cut + max(0, len(text) - room))
        piece.touched = now
        if not is_partial:
            del self._partials[stream]
            self._text(bytes(piece.pieces), piece.raw, stream, piece.time, now)

    def _text(self, data: bytes, raw: Raw, stream: str, time: str, now: float) -> None:
        text = data.decode("utf-8", "replace")
        if raw.start == 0:
            text = text.removeprefix("\ufeff")
        if raw.cut:
            text = whole_words(text)
        pile = self._open.get(stream)
        joiner = self._joiners.get(stream) or self._joiners.setdefault(stream, Joiner(self._multiline_start))
        continues = joiner.continues(text)
        if pile is not None and continues and len(pile.texts) < self._bounds.event_lines:
            self._append(pile, text, raw, now)
        elif not text or text.isspace():
            pass  # an empty line tells nothing
        else:
            self._begin(text, raw, stream, time, now)

    def _append(self, pile: Pile, text: str, raw: Raw, now: float) -> None:
        room = self._bounds.line_bytes - pile.size
        if room > 0:
            pile.texts.append(text if len(text) <= room else whole_words(text[:room]))
            pile.size += len(text) + 1
        pile.cut += raw.cut + max(0, len(text) - max(room, 0))
        pile.end, pile.touched = raw.end, now

    def _begin(self, text: str, raw: Raw, stream: str, time: str, now: float) -> None:
        if (before := self._open.pop(stream, None)) is not None:
            before.closed = True
        pile = Pile(raw.start, raw.end, [text], len(text), now, stream, time, raw.cut)
        if self._multiline_start is None and text[:1] == "{" and text.rstrip()[-1:] == "}":
            pile.closed = True
            self._joiners[stream].finish()
        else:
            self._open[stream] = pile
        self._enqueue(pile)

    def _enqueue(self, pile: Pile) -> None:
        """By its beginning: a line in pieces has begun before those that were whole meanwhile."""
        at = len(self._queue)
        while at and self._queue[at - 1].start > pile.start:
            at -= 1
        self._queue.insert(at, pile)

    def _close(self, pile: Pile) -> None:
        pile.closed = True
        if self._open.get(pile.stream) is pile:
            del self._open[pile.stream]
            self._joiners[pile.stream].finish()
