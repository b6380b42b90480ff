"""Alerts on a terminal: one line when one fires, one when it is resolved.

The line says when, how bad, the state, what happened, why that is an alert, which series, and whom to ask::

    2025-01-31 14:03:22 CRITICAL firing    Predictions of demo/m are slow: p99 is 0.5 s · p99 of duration_s …

What it promises:

* A firing alert is printed however old it is, because somebody still has to end it. A late line says so.
* An alert that was over ``history_s`` before it was read is history, and nobody's next task: a first start on
  a long log prints one line with their number. An end whose beginning was printed here is printed.
* A record that is delivered again is printed once, as long as it is among the newest ``remember``. After a
  restart it may be printed again: a line twice is better than none.
* Control characters in labels and texts are shown, not obeyed.

It writes as the log does, at once: a terminal that is stopped (Ctrl-S) stops the process. It does not group,
silence or escalate.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, tzinfo
from itertools import islice
from typing import Final, TextIO

from msgspec import Struct

from streammon.clock import Clock, system_clock
from streammon.errors import Retryable
from streammon.results import Alert
from streammon.visible import visible
from streammon_sinks.decoding import decode_all
from streammon_sinks.delivery import Item, Refused
from streammon_sinks.notify.channel import Channel, Memory, Notification

_COLORS: Final = {"critical": 31, "warning": 33, "info": 34, "resolved": 32}
_LATE_S: Final = 60.0


class ConsoleNotifier:
    """A `Sink` of the topic ``alerts`` that writes lines to ``stream``.

    ``color`` None: on a terminal, unless the environment says NO_COLOR. ``zone`` None: the local time zone.
    """

    def __init__(
        self,
        stream: TextIO,
        *,
        clock: Clock = system_clock,
        color: bool | None = None,
        zone: tzinfo | None = None,
        history_s: float = 3600.0,
        remember: int = 10_000,
    ) -> None:
        self._stream = stream
        self._clock = clock
        self._color = stream.isatty() and not os.environ.get("NO_COLOR") if color is None else color
        self._zone = zone
        self._history_s = history_s
        self._remember = remember
        self._done: dict[tuple[str, int], None] = {}  # (id, transition), oldest first

    async def write(self, records: Sequence[Item]) -> list[Refused]:
        """Print what is news among these alerts. Raises `Retryable` when the stream does not take it."""
        decoded, refused = decode_all(records)
        news = {
            _key(alert): alert
            for _, alert in decoded
            if isinstance(alert, Alert) and alert.state != "pending" and _key(alert) not in self._done
        }
        self._print(self._lines(list(news.values()), self._clock()))
        self._remember_all(news)
        return refused

    async def close(self) -> None:
        """The stream stays open: it was given."""

    def print_told(self, notification: Notification) -> None:
        """The alerts of a notification, as they are in it. Raises `Retryable` when the stream does not take it."""
        self._print(self._lines_of(notification, self._clock()))

    def _lines_of(self, notification: Notification, now: float) -> Iterator[str]:
        yield from (self._line(alert, now) for alert in notification.alerts)
        if notification.omitted:
            yield f"and {notification.omitted} more alerts of the same group: `streammon alerts`"

    def _lines(self, alerts: Sequence[Alert], now: float) -> Iterator[str]:
        history = {alert.id for alert in alerts if self._is_history(alert, now)}
        if history:
            yield f"{len(history)} alerts that ended more than {_age(self._history_s)} ago are not shown"
        yield from (self._line(alert, now) for alert in alerts if alert.id not in history)

    def _is_history(self, alert: Alert, now: float) -> bool:
        began_here = (alert.id, alert.transition - 1) in self._done
        return alert.ended_unix_s is not None and now - alert.ended_unix_s > self._history_s and not began_here

    def _line(self, alert: Alert, now: float) -> str:
        late_s = now - alert.updated_unix_s
        late = f" ({_age(late_s)} ago)" if late_s > _LATE_S else ""
        what = self._colored(f"{alert.severity.upper():<8} {alert.state:<8}", alert)
        return f"{_when(alert.updated_unix_s, self._zone)}{late} {what}  {visible(' · '.join(_told(alert)))}"

    def _colored(self, text: str, alert: Alert) -> str:
        color = _COLORS.get(alert.state) or _COLORS[alert.severity]
        return f"\x1b[1;{color}m{text}\x1b[0m" if self._color else text

    def _print(self, lines: Iterable[str]) -> None:
        encoding = self._stream.encoding or "utf-8"
        text = "".join(f"{line}\n" for line in lines)
        try:
            self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
            self._stream.flush()
        except (OSError, ValueError) as error:  # ValueError: the stream is closed
            raise Retryable(f"alerts cannot be printed: {error}") from error

    def _remember_all(self, keys: Iterable[tuple[str, int]]) -> None:
        self._done |= dict.fromkeys(keys)
        for oldest in list(islice(self._done, max(0, len(self._done) - self._remember))):
            del self._done[oldest]


class Console(Struct, frozen=True, omit_defaults=True, tag_field="type", tag="console", forbid_unknown_fields=True):
    """Lines on the standard output of whoever delivers."""

    def open(self, _name: str, _session: object) -> Channel:
        return ConsoleChannel(ConsoleNotifier(sys.stdout))


class ConsoleChannel:
    """A `Channel`: a line for each alert of a notification, and one for how many more there are."""

    def __init__(self, notifier: ConsoleNotifier) -> None:
        self._notifier = notifier

    async def deliver(self, notification: Notification, memory: Memory) -> Memory:
        """Prints it whatever was printed before: the decision knows what is news."""
        self._notifier.print_told(notification)
        return memory

    async def close(self) -> None:
        """The stream stays open: it was given."""


def _key(alert: Alert) -> tuple[str, int]:
    return alert.id, alert.transition


def _told(alert: Alert) -> Iterator[str]:
    yield alert.summary
    yield alert.condition
    if alert.labels:
        yield " ".join(f"{label}={value}" for label, value in alert.labels.items())
    if alert.state != "resolved":
        yield from (text for text in (alert.contact, alert.runbook_url) if text)


def _when(unix_s: float, zone: tzinfo | None) -> str:
    try:
        return f"{datetime.fromtimestamp(unix_s, UTC).astimezone(zone):%Y-%m-%d %H:%M:%S}"
    except (ValueError, OverflowError, OSError):  # no calendar has it, and the alert matters more
        return f"{unix_s:g} s"


def _age(seconds: float) -> str:
    """About how long: 90 s, 5 min, 3 h, 12 d."""
    for unit, size_s in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size_s or seconds == size_s:
            return f"{seconds // size_s:.0f} {unit}"
    return f"{seconds:.0f} s"
