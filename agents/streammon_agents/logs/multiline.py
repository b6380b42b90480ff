"""Which lines are one event: stack traces of Python, Java and Go, PEM blocks, or what a person's pattern says.

A `Joiner` looks at one line after the other and says whether it goes on where the last one ended. It remembers which
kind of block it is in, and how the event began; how much may be put together, and for how long, its caller bounds.
A trace goes with the line before it where that tells of trouble, else it is an event of its own.
"""

from __future__ import annotations

from typing import Any, Final

import re2


def _compiled(pattern: str) -> Any:
    options = re2.Options()
    options.log_errors = False
    options.never_capture = True
    return re2.compile(pattern, options)


_CHAINED: Final = (
    "During handling of the above exception, another exception occurred:",
    "The above exception was the direct cause of the following exception:",
)
_TRACEBACK: Final = "Traceback (most recent call last):"
_CAUSE: Final = _compiled(r"Caused by: |Suppressed: ")
_JAVA: Final = _compiled(r"(?:[a-z_][\w$]*\.)+[A-Z][\w$]*(?:Exception|Error|Throwable)(?::|\s|$)")
_GO: Final = _compiled(
    r"$|goroutine \d+|\s|\[signal |created by |exit status \d|(?:[\w.*()\[\]{}/~-]|…)+\(.*\)$|panic: |runtime stack:"
    r"|goroutine running on other thread"
)
_PEM: Final = _compiled(r"-----BEGIN [A-Z0-9 ]+-----\s*$")
_PEM_BODY: Final = _compiled(r"\s*[A-Za-z0-9+/=]*\s*$|[A-Z][A-Za-z-]*: ")
_TROUBLE: Final = _compiled(r"(?i)error|exception|critical|fatal|warn|fail|severe")
_STARTERS: Final = frozenset("TCSE") | frozenset("abcdefghijklmnopqrstuvwxyz_")
"""First letters of lines that may go on without being indented."""


def _begins_pem(line: str) -> bool:
    """Whatever stands before it: a key is logged behind a time and a level, and its lines must not leave one by one."""
    return "-----BEGIN " in line and _PEM.search(line) is not None


class Joiner:
    """The rules for one stream of lines. ``start``: an RE2 pattern that alone decides where an event begins."""

    def __init__(self, start: str | None = None) -> None:
        self._start = _compiled(start) if start else None
        self._block = ""
        self._first = ""

    def continues(self, line: str) -> bool:
        """Whether this line belongs to the event of the one before."""
        if self._start is not None:
            return self._start.search(line) is None
        continues = self._in_block(line) if self._block else self._begins_block(line)
        if not continues:
            self._first = line
        return continues

    def _begins_block(self, line: str) -> bool:
        """Outside of a block, what is indented goes on, and so do the first lines of some blocks."""
        first = line[:1]
        if _begins_pem(line):
            return self._enter("pem", first in {" ", "\t"})
        if first in {" ", "\t"}:
            return not self._is_traceback(line) or self._told()
        if first not in _STARTERS:
            return False
        if self._is_traceback(line):
            return self._told()
        if line.startswith(("panic: ", "fatal error: ")):
            return self._enter("go", False)
        return _CAUSE.match(line) is not None or (_JAVA.match(line) is not None and self._told())

    def _told(self) -> bool:
        """Whether the event before tells of trouble: then the trace is its, else somebody else's."""
        return _TROUBLE.search(self._first) is not None

    def _is_traceback(self, line: str) -> bool:
        return line.strip() == _TRACEBACK and self._enter("python", True)

    def _enter(self, block: str, continues: bool) -> bool:
        self._block = block
        return continues

    def _in_block(self, line: str) -> bool:
        if self._block == "python":
            if line[:1] not in {" ", "\t"}:  # the exception itself ends it, unless another one follows
                self._block = "pem" if _begins_pem(line) else "raised"
            return True
        if self._block == "raised":
            return self._after_exception(line)
        if self._block == "pem":
            return self._in_pem(line)
        if _GO.match(line):
            return True
        self._block = ""
        return self._begins_block(line)

    def _in_pem(self, line: str) -> bool:
        """What cannot be part of a key ends it, too: the words of its beginning may stand in a sentence."""
        if "-----END " in line:
            self._block = ""
            return True
        if _PEM_BODY.match(line):
            return True
        self._block = ""
        return self._begins_block(line)

    def _after_exception(self, line: str) -> bool:
        """After ``ValueError: …`` there may come more of its text, indented, or an exception that it led to."""
        text = line.strip()
        if not text or text in _CHAINED or text.startswith("| "):
            return True
        self._block = ""
        return self._begins_block(line)

    def finish(self) -> None:
        """The event is over: whatever comes next begins one."""
        self._block = self._first = ""
