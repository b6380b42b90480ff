r"""Pages in Prometheus' text format (0.0.4 and 1.0.0) and in OpenMetrics' (0.0.1 and 1.0.0).

::

    # TYPE http_requests_total counter
    http_requests_total{path="/",code="200"} 1027 1700000000000
    {"http.requests",path="/"} 3 # {trace_id="…"} 0.2

`parse` reads what Prometheus reads and refuses what it refuses: names in quotes, blanks and tabs, a trailing comma are
all right; a bad escape stays as it is; a name without a value, an unknown type or a label given twice ends the page.
``HELP``, ``UNIT`` and exemplars are passed over. A ``TYPE`` holds for its family wherever on the page it stands, and
the first one counts.

A target shows the same series again and again. Their text is looked up, not parsed: `parse` wants back what the parse
before has ``known``. This is what `prometheus_client.parser` cannot do, nor has it any bounds (docs/adr/0038).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from io import BytesIO
from math import isfinite
from typing import Final, NoReturn

from streammon_agents.scrape.pages import LIMITS, Fault, Limits, Page, PageError, Sample, Series, Type

_NAME: Final = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
_QUOTED: Final = r'"[^"\\]*+(?:\\.[^"\\]*+)*+"'  # possessive: never backtracks
_SERIES: Final = re.compile(rf'(?:{_NAME})?[ \t]*(?:\{{[^"}}]*+(?:{_QUOTED}[^"}}]*+)*+\}})?'.encode())
"""The part of a line that names a series, up to its closing brace."""
_LABEL: Final = re.compile(rf"[ \t]*(?:({_NAME})|({_QUOTED}))[ \t]*(?:=[ \t]*({_QUOTED})[ \t]*)?(,[ \t]*|(?=\}}))")
_END: Final = re.compile(r"[ \t]*\}")
_TYPE: Final = re.compile(rf"#[ \t]+TYPE[ \t]+(?:({_NAME})|({_QUOTED}))[ \t]+(\S+)[ \t]*".encode())
_EOF: Final = b"# EOF"
_ESCAPE: Final = re.compile(r'\\([\\"n])')
_SYNONYMS: Final = {"untyped": "unknown"}
_SHOWN: Final = 80
LINES_A_SAMPLE: Final = 8
"""Lines that a page may have for each sample that it may have; three tell of a family."""
_NOTHING: Final[Mapping[bytes, Series]] = {}


def parse(
    page: bytes,
    *,
    openmetrics: bool = False,
    limits: Limits = LIMITS,
    known: Mapping[bytes, Series] = _NOTHING,
) -> Page:
    """The types and samples of a page, in its order. It may hold a sample twice; what that means is not said here.

    ``limits`` are those under which ``known`` came about, too.

    Raises:
        PageError: the page is not taken.
    """
    return _Parser(openmetrics, limits, known).page(page)


class _Parser:
    def __init__(self, openmetrics: bool, limits: Limits, known: Mapping[bytes, Series]) -> None:
        self._openmetrics, self._before = openmetrics, known
        self._most = limits.or_none()
        self._most_lines = LINES_A_SAMPLE * self._most.samples
        self._types: dict[str, Type] = {}
        self._samples: list[Sample] = []
        self._known: dict[bytes, Series] = {}
        self._number = 0

    def page(self, page: bytes) -> Page:
        lines = BytesIO(page)  # one line at a time: a list of sixteen million empty ones takes 128 MB
        for line in lines:
            self._number += 1
            if self._number > self._most_lines:
                raise PageError(Fault.TOO_MANY_SAMPLES, f"the page has more than {self._most_lines} lines")
            if not self._seen_before(line) and not self._line(line.strip(b" \t\r\n")):
                break
        else:
            if self._openmetrics:
                raise PageError(Fault.TRUNCATED, "the page ends without `# EOF`")
        if lines.read(1):
            self._fail("the page goes on behind `# EOF`")
        return Page(self._types, self._samples, self._known)

    def _seen_before(self, line: bytes) -> bool:
        """Take a line of a known series, value, nothing else: nearly all lines are. Others are left to `_line`."""
        text = line[: line.rfind(b"}") + 1 or line.find(b" ")]
        series = self._before.get(text)
        if series is None:
            return False
        try:
            (value,) = line[len(text) :].split()
            number = float(value)
        except ValueError:
            return False
        if b"_" in value:
            return False
        self._take(text, Sample(series, number))
        return True

    def _line(self, line: bytes) -> bool:
        """Take any line; whether the page goes on behind it."""
        if line.startswith(b"#"):
            self._comment(line)
            return line != _EOF or not self._openmetrics
        if line:
            self._sample(line)
        return True

    def _comment(self, line: bytes) -> None:
        found = _TYPE.fullmatch(line)
        if found is None:
            if re.match(rb"#[ \t]+TYPE[ \t]", line):
                self._fail(f"{_shown(line)} is no type")
            return
        name, kind = self._text(found[1]) or _unquoted(self._text(found[2])), self._text(found[3])
        try:
            self._types.setdefault(name, Type(_SYNONYMS.get(kind, kind)))
        except ValueError:
            self._fail(f"{_shown(line)} is of no type that there is; known are {', '.join(Type)}")
        self._count(len(self._types), "families")

    def _sample(self, line: bytes) -> None:
        found = _SERIES.match(line)
        text = found[0].rstrip(b" \t") if found else b""
        series = self._before.get(text) or self._known.get(text) or self._series(text, line)
        rest = line[len(text) :]
        if self._openmetrics:
            rest = rest.partition(b" # ")[0]  # an exemplar
        value, *time = rest.split() or [b""]
        if len(time) > 1 or (rest[:1] not in (b" ", b"\t") and not text.endswith(b"}")):
            self._fail(f"{_shown(line)} has more than a value and a time")
        self._take(text, Sample(series, self._float(value), self._time(time[0]) if time else None))

    def _take(self, text: bytes, sample: Sample) -> None:
        self._known[text] = sample.series
        self._samples.append(sample)
        self._count(len(self._samples), "samples")

    def _count(self, number: int, what: str) -> None:
        if number > self._most.samples:
            raise PageError(Fault.TOO_MANY_SAMPLES, f"the page has more than {self._most.samples} {what}")

    def _series(self, text: bytes, line: bytes) -> Series:
        name, brace, inside = self._text(text).partition("{")
        name, labels = name.rstrip(" \t"), dict[str, str]()
        at, separated = 0, True
        while brace and not _END.fullmatch(inside, at):
            found = _LABEL.match(inside, at) if separated else None
            if found is None:
                self._fail(f"the labels in {_shown(line)} cannot be read")
            key = found[1] or _unquoted(found[2])
            if found[3] is None:
                if name or found[1]:
                    self._fail(f"the label {key!r} has no value")
                name = key
            else:
                self._label(labels, key, _unquoted(found[3]))
            at, separated = found.end(), bool(found[4])
        if not name:
            self._fail(f"{_shown(line)} names no metric")
        self._most.check(labels, f"line {self._number}")
        return Series(name, labels)

    def _label(self, labels: dict[str, str], key: str, value: str) -> None:
        if not key or key in labels or key == "__name__" or ":" in key:
            self._fail(f"the label {_shown(key.encode())} is given twice, or cannot be one")
        labels[key] = value

    def _float(self, text: bytes) -> float:
        try:
            if b"_" not in text:  # Python would take it for a separator of thousands
                return float(text)
            self._fail(f"{_shown(text)} is no number")
        except ValueError:
            self._fail(f"{_shown(text)} is no number" if text else "there is no value")

    def _time(self, text: bytes) -> float:
        number = self._float(text)
        if not isfinite(number) or not (self._openmetrics or number.is_integer()):
            self._fail(f"{_shown(text)} is no time")
        return number if self._openmetrics else number / 1000  # milliseconds

    def _text(self, text: bytes | None) -> str:
        try:
            return (text or b"").decode()
        except UnicodeDecodeError:
            raise PageError(Fault.NOT_UTF8, f"line {self._number}: {_shown(text or b'')} is not UTF-8") from None

    def _fail(self, what: str) -> NoReturn:
        raise PageError(Fault.MALFORMED, f"line {self._number}: {what}")


def _unquoted(text: str) -> str:
    inner = text[1:-1]
    return _ESCAPE.sub(lambda found: "\n" if found[1] == "n" else found[1], inner) if "\\" in inner else inner


def _shown(text: bytes) -> str:
    shown = text[:_SHOWN].decode(errors="replace")
    return repr(f"{shown}…" if len(text) > _SHOWN else shown)
