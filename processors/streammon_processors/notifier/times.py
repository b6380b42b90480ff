"""When somebody is to be told: spans of the week, the month and the year, as Alertmanager has them."""

from __future__ import annotations

import calendar
import re
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from functools import cached_property
from typing import Any, Final
from zoneinfo import ZoneInfo

from msgspec import Struct

WEEKDAYS: Final = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
MONTHS: Final = tuple(name.lower() for name in calendar.month_name[1:])
_TIMES: Final = re.compile(r"(\d\d):(\d\d)\s*-\s*(\d\d):(\d\d)")


class Span(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, dict=True):
    """A time lies in it if it fits all that is given; what is not given fits every time. Ranges include both ends."""

    times: tuple[str, ...] = ()
    """Times of day, ``"09:00-17:00"``, without their end; ``24:00`` is the end of the day."""
    weekdays: tuple[str, ...] = ()
    """``saturday``, or a range, ``monday:friday``."""
    days_of_month: tuple[int | str, ...] = ()
    """``1``, or a range in quotes, ``"1:7"``; -1 is the last day of the month."""
    months: tuple[int | str, ...] = ()
    """``december`` or 12, or a range, ``may:august``."""
    years: tuple[int | str, ...] = ()
    """2027, or a range in quotes, ``"2027:2029"``."""
    location: str = "UTC"
    """Whose clock, by the name in the tz database: ``Europe/Berlin``."""

    def __post_init__(self) -> None:
        _ = self._tests  # raises ValueError

    def holds(self, unix_s: float) -> bool:
        """Whether the time lies in it."""
        local = datetime.fromtimestamp(unix_s, UTC).astimezone(self._zone)
        return all(test(local) for test in self._tests)

    @cached_property
    def _zone(self) -> ZoneInfo:
        try:
            return ZoneInfo(self.location)
        except Exception:  # whatever a strange name may raise there
            raise ValueError(f"`location` {self.location!r} is no time zone; write one such as Europe/Berlin") from None

    @cached_property
    def _tests(self) -> Sequence[Callable[[datetime], bool]]:
        _ = self._zone
        minutes = [_minutes(text) for text in self.times]
        weekdays = [_range(each, "weekdays", WEEKDAYS, 0, 6) for each in self.weekdays]
        days = [_days(each) for each in self.days_of_month]
        months = [_range(each, "months", MONTHS, 1, 12) for each in self.months]
        years = [_range(each, "years", (), 1970, 9999) for each in self.years]
        given: list[tuple[Any, Callable[[datetime], bool]]] = [
            (minutes, lambda at: any(start <= 60 * at.hour + at.minute < end for start, end in minutes)),
            (weekdays, lambda at: _within(at.weekday(), weekdays)),
            (days, lambda at: any(_of_month(a, at) <= at.day <= _of_month(b, at) for a, b in days)),
            (months, lambda at: _within(at.month, months)),
            (years, lambda at: _within(at.year, years)),
        ]
        return [test for wanted, test in given if wanted]


def _within(number: int, ranges: Iterable[tuple[int, int]]) -> bool:
    return any(first <= number <= last for first, last in ranges)


def _minutes(text: str) -> tuple[int, int]:
    """Of the day. Raises ValueError."""
    found = _TIMES.fullmatch(text.strip())
    hour, minute, to_hour, to_minute = map(int, found.groups()) if found else (0, 60, 0, 0)
    start, end = 60 * hour + minute, 60 * to_hour + to_minute
    if minute > 59 or to_minute > 59 or not 0 <= start < end <= 24 * 60:
        raise ValueError(
            f'`times` {text!r} is no time of day; write "09:00-17:00", and what goes past midnight as two: '
            '"22:00-24:00" and "00:00-06:00"'
        )
    return start, end


def _days(each: int | str) -> tuple[int, int]:
    """Raises ValueError."""
    first, last = _range(each, "days_of_month", (), -31, 31)
    if 0 in (first, last) or (first < 0 < last):
        raise ValueError(f"`days_of_month` {each!r}: days are 1 to 31, or -31 to -1 from the end of the month")
    return first, last


def _of_month(day: int, at: datetime) -> int:
    """-1 is the last."""
    return day if day > 0 else calendar.monthrange(at.year, at.month)[1] + 1 + day


def _range(each: int | str, field: str, names: Sequence[str], least: int, most: int) -> tuple[int, int]:
    """Raises ValueError."""
    first, _, last = str(each).lower().partition(":")
    numbers = [_number(part.strip(), names, least) for part in (first, last or first)]
    start, end = numbers
    if start is None or end is None or not least <= start <= end <= most:
        example = f"{names[0]}:{names[4]}" if names else f'"{max(least, 1)}:{max(least, 1) + 4}"'
        raise ValueError(
            f"`{field}` {each!r} is none, or a range that runs backwards; write {example} (numbers with a colon in "
            "quotes: YAML reads 1:5 as 65)"
        )
    return start, end


def _number(text: str, names: Sequence[str], least: int) -> int | None:
    if text in names:
        return names.index(text) + least
    return int(text) if re.fullmatch(r"-?\d+", text) else None
