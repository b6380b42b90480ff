"""Times as logs write them, to Unix seconds. What names no zone is in UTC or in the local one, as an input says."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

_MONTHS: Final = {"JanFebMarAprMayJunJulAugSepOctNovDec"[at : at + 3]: at // 3 + 1 for at in range(0, 36, 3)}
_ISO: Final = re.compile(
    r"(\d{4})-(\d\d)-(\d\d)[T ](\d\d):(\d\d):(\d\d)(?:[.,](\d{1,9}))?(?: ?(Z|UTC|GMT|[+-]\d\d:?\d\d)(?![\w:]))?"
)
_SLASHED: Final = re.compile(r"(\d{4})/(\d\d)/(\d\d)[T ](\d\d):(\d\d):(\d\d)(?:[.,](\d{1,9}))?")
_ACCESS: Final = re.compile(r"(\d\d)/([A-Z][a-z]{2})/(\d{4}):(\d\d):(\d\d):(\d\d) ([+-]\d{4})")
_SYSLOG: Final = re.compile(r"([A-Z][a-z]{2}) {1,2}(\d{1,2}) (\d\d):(\d\d):(\d\d)(?:[.](\d{1,9}))?")
_APACHE: Final = re.compile(
    r"[A-Z][a-z]{2} ([A-Z][a-z]{2}) {1,2}(\d{1,2}) (\d\d):(\d\d):(\d\d)(?:[.](\d{1,9}))? (\d{4})"
)
_KLOG: Final = re.compile(r"[IWEF](\d\d)(\d\d) (\d\d):(\d\d):(\d\d)\.(\d{1,9})")
_EARLIEST: Final = 631_152_000.0
"""1990: before that, a number is no time of a log."""
_LATEST: Final = 4_102_444_800.0


class Zone(NamedTuple):
    """How to read what names no zone or no year: ``local`` or UTC, at about ``now_unix_s``."""

    local: bool = False
    now_unix_s: float = 0.0


def in_text(text: str, zone: Zone) -> float | None:
    """The time at or near the beginning of a line, None if there is none.

    >>> in_text("2026-11-29 17:20:29,500 INFO ready", Zone())
    1795972829.5
    """
    first = text[:1]
    try:
        if first in "IWEF" and (match := _KLOG.match(text)):
            month, day, hour, minute, second, fraction = match.groups()
            return _of_this_year(int(month), int(day), (hour, minute, second, fraction), zone)
        return _found(text[:80], zone)
    except (ValueError, OverflowError, OSError, KeyError):
        return None


def _found(head: str, zone: Zone) -> float | None:
    if match := _ISO.search(head):
        *parts, fraction, offset = match.groups()
        return _unix_s(tuple(map(int, parts)), fraction, offset, zone)
    if match := _SLASHED.search(head):
        *parts, fraction = match.groups()
        return _unix_s(tuple(map(int, parts)), fraction, None, zone)
    if match := _ACCESS.search(head):
        day, month, year, *clock, offset = match.groups()
        return _unix_s((int(year), _MONTHS[month], int(day), *map(int, clock)), None, offset, zone)
    if match := _APACHE.search(head):
        month, day, *clock, fraction, year = match.groups()
        return _unix_s((int(year), _MONTHS[month], int(day), *map(int, clock)), fraction, None, zone)
    if match := _SYSLOG.search(head):
        month, day, hour, minute, second, fraction = match.groups()
        return _of_this_year(_MONTHS[month], int(day), (hour, minute, second, fraction), zone)
    return None


def _unix_s(parts: tuple[int, ...], fraction: str | None, offset: str | None, zone: Zone) -> float:
    year, month, day, hour, minute, second = parts
    moment = datetime(
        year, month, day, hour, minute, min(second, 59), tzinfo=None if zone.local and not offset else UTC
    )
    return moment.timestamp() + (second - min(second, 59)) + _fraction(fraction) - _offset_s(offset)


def _fraction(digits: str | None) -> float:
    return float(f"0.{digits}") if digits else 0.0


def _offset_s(offset: str | None) -> int:
    if not offset or offset[0] not in "+-":
        return 0
    digits = offset[1:].replace(":", "")
    seconds = int(digits[:2]) * 3600 + int(digits[2:]) * 60
    return seconds if offset[0] == "+" else -seconds


def _of_this_year(month: int, day: int, clock: tuple[str, str, str, str | None], zone: Zone) -> float:
    """The year in which it is nearest to now: a December read in January is last year's."""
    year = datetime.fromtimestamp(zone.now_unix_s, UTC).year
    *hms, fraction = clock
    moments = []
    for each in (year - 1, year, year + 1):
        try:
            moments.append(_unix_s((each, month, day, *map(int, hms)), fraction, None, zone))
        except ValueError:  # 29 February
            continue
    return min(moments, key=lambda moment: abs(moment - zone.now_unix_s))


def of_value(value: Any, zone: Zone) -> float | None:
    """The time in a field: text, or a number of seconds, milli-, micro- or nanoseconds since 1970.

    >>> of_value(1795972829500, Zone()), of_value("1795972829.5", Zone())
    (1795972829.5, 1795972829.5)
    """
    if isinstance(value, str):
        found = in_text(value, zone)
        return found if found is not None else _number(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        return _scaled(value)
    return None


def _number(text: str) -> float | None:
    try:
        return _scaled(float(text)) if len(text) <= 32 else None
    except ValueError:
        return None


def _scaled(number: float) -> float | None:
    for scale in (1.0, 1e3, 1e6, 1e9):
        if _EARLIEST <= (scaled := number / scale) <= _LATEST:
            return scaled
    return None
