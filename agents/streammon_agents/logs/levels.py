"""Levels, as everybody writes them, to six: trace debug info warn error fatal."""

from __future__ import annotations

import re
from typing import Any, Final

LEVELS: Final = ("trace", "debug", "info", "warn", "error", "fatal")
_NAMES: Final = {
    name: level
    for level, names in {
        "trace": "trace finest finer verbose trc silly",
        "debug": "debug fine dbg dbug d debug2 debug3",
        "info": "info information informational notice inf i success http default",
        "warn": "warn warning wrn w",
        "error": "error err severe e failure eror",
        "fatal": "fatal critical crit alert emerg emergency panic dpanic f c",
    }.items()
    for name in names.split()
}
_OTEL: Final = re.compile(r"(trace|debug|info|warn|error|fatal)[1-4]")
_WORD: Final = re.compile(
    r"(?<![\w./=-])(?:TRACE|DEBUG|INFO|NOTICE|WARN|WARNING|ERROR|SEVERE|FATAL|CRITICAL|ALERT|EMERG|PANIC)(?![\w./=-])"
    r"|[\[<](?:trace|debug|info|information|notice|warn|warning|error|err|severe|fatal|critical|crit|alert|emerg|panic|inf|wrn|dbg)[\]>]"
    r"|^(?:trace|debug|info|notice|warning|warn|error|critical|fatal):"
    r"|^(?:INFO|DEBUG|WARNING|ERROR|CRITICAL):",
)
_LOOKED_AT: Final = 160
"""A level stands near the beginning; a word further on is part of what is said."""


def named(name: str) -> str | None:
    """
    >>> named("WARNING"), named("crit"), named("INFO2"), named("purple")
    ('warn', 'fatal', 'info', None)
    """
    plain = name.strip().lower()
    if plain in _NAMES:
        return _NAMES[plain]
    match = _OTEL.fullmatch(plain)
    return match[1] if match else None


def numbered(number: float) -> str | None:
    """Of syslog (0–7, 0 the worst) and of bunyan, pino and Python (10–60).

    >>> numbered(3), numbered(7), numbered(30), numbered(60)
    ('error', 'debug', 'info', 'fatal')
    """
    if 0 <= number <= 7:
        return ("fatal", "fatal", "fatal", "error", "warn", "info", "info", "debug")[int(number)]
    return LEVELS[int(number) // 10 - 1] if 10 <= number < 70 else None


def python(number: float) -> str | None:
    """Of ``levelno``: 10 debug … 50 critical."""
    return LEVELS[min(int(number) // 10, 5)] if 0 <= number < 1000 else None


def otel(number: float) -> str | None:
    """Of ``severityNumber``: 1–4 trace … 21–24 fatal."""
    return LEVELS[(int(number) - 1) // 4] if 1 <= number <= 24 else None


def level(value: Any) -> str | None:
    """Of a field called level or severity."""
    if isinstance(value, str):
        return numbered(int(value)) if value.isdecimal() and len(value) < 4 else named(value)
    return numbered(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def in_text(text: str) -> str | None:
    """The first level that stands for itself near the beginning: in capitals, or in brackets.

    >>> in_text("2026-11-29 17:20:29,123 INFO all is well, no ERROR"), in_text("an error of judgement")
    ('info', None)
    """
    match = _WORD.search(text, 0, _LOOKED_AT)
    return named(match[0].strip("[]<>:")) if match else None
