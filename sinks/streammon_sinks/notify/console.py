"""Alerts on a terminal: one line when one fires, one when it is resolved.

The line says when, how bad, the state, what happened, why that is an alert, which series, and whom to ask; what may
be behind it is told below, or, when that comes to light later, in lines of their own::

    2025-01-31 14:03:22 CRITICAL firing    Predictions of demo/m are slow: p99 is 0.5 s · p99 of duration_s …
    2025-01-31 14:03:26 CRITICAL why       Predictions of demo/m are slow: p99 is 0.5 s · service=demo model=m
                                 perhaps   deploy of demo 3 by ann: 20 s before the onset, to this service

What it promises:

* A firing alert is printed however old it is, because somebody still has to end it. A late line says so.
* A breach that ended before it had lasted long enough to fire is nobody's business, and not printed.
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
from typing import Any, Final, TextIO

import msgspec
from msgspec import Struct

from streammon.clock import Clock, system_clock
from streammon.errors import Retryable
from streammon.results import Alert, Evidence
from streammon.visible import visible
from streammon_sinks.decoding import decode_all
from streammon_sinks.delivery import Item, Refused
from streammon_sinks.notify.channel import Channel, Memory, Notification
from streammon_sinks.notify.told import after, likely_causes

_COLORS: Final = {"critical": 31, "warning": 33, "info": 34, "resolved": 32}
_LATE_S: Final = 60.0


class ConsoleNotifier:
    """A `Sink` of the topics ``alerts`` and ``evidence`` that writes lines to ``stream``.

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
        self._unexplained: dict[str, Alert] = {}  # by id: printed as firing, without a cause; oldest first

    async def write(self, records: Sequence[Item]) -> list[Refused]:
        """Print what is news among these alerts. Raises `Retryable` when the stream does not take it."""
        decoded, refused = decode_all(records)
        news = {
            _key(alert): alert
            for _, alert in decoded
            if isinstance(alert, Alert) and alert.has_fired and _key(alert) not in self._done
        }
        self._print(self._lines(list(news.values()), self._clock()))
        self._remember_all(news)
        self._remember_unexplained(news.values())
        self._explain(self._explained(each for _, each in decoded if isinstance(each, Evidence)))
        return refused

    async def close(self) -> None:
        """The stream stays open: it was given."""

    def print_told(self, notification: Notification) -> None:
        """The alerts of a notification. Raises `Retryable` when the stream does not take it.

        Of what has changed in a group, a message names the whole group; on a terminal, where the lines about the others
        still stand, only what is new.
        """
        known = self._done if notification.cause in ("changed", "resolved") else {}
        news = [alert for alert in notification.alerts if _key(alert) not in known]
        self._print(self._lines_of(news, notification.omitted, self._clock()))
        self._remember_all(map(_key, news))
        self._remember_unexplained(news)

    def print_why(self, notification: Notification) -> None:
        """What is behind its alerts, of those that were printed without. Raises `Retryable`."""
        self._explain(alert for alert in notification.alerts if alert.id in self._unexplained)

    def _explained(self, evidence: Iterable[Evidence]) -> Iterator[Alert]:
        for each in evidence:
            if alert := self._unexplained.get(each.alert_id):
                yield msgspec.structs.replace(alert, evidence={"causes": msgspec.to_builtins(each.causes)})

    def _explain(self, alerts: Iterable[Alert]) -> None:
        explained = {alert.id: alert for alert in alerts if likely_causes(alert)}
        self._print(line for alert in explained.values() for line in self._why(alert))
        for id_ in explained:
            del self._unexplained[id_]

    def _why(self, alert: Alert) -> Iterator[str]:
        about = visible(" · ".join((alert.summary, _labels(alert))))
        what = self._colored(f"{alert.severity.upper():<8} {'why':<8}", alert)
        yield f"{_when(self._clock(), self._zone)} {what}  {about}"
        yield from _perhaps(alert)

    def _lines_of(self, alerts: Iterable[Alert], omitted: int, now: float) -> Iterator[str]:
        for alert in alerts:
            yield from self._told(alert, now)
        if omitted:
            yield f"and {omitted} more alerts of the same group: `streammon alerts`"

    def _lines(self, alerts: Sequence[Alert], now: float) -> Iterator[str]:
        history = {alert.id for alert in alerts if self._is_history(alert, now)}
        if history:
            yield f"{len(history)} alerts that ended more than {_age(self._history_s)} ago are not shown"
        for alert in alerts:
            if alert.id not in history:
                yield from self._told(alert, now)

    def _is_history(self, alert: Alert, now: float) -> bool:
        began_here = (alert.id, alert.transition - 1) in self._done
        return alert.ended_unix_s is not None and now - alert.ended_unix_s > self._history_s and not began_here

    def _told(self, alert: Alert, now: float) -> Iterator[str]:
        yield self._line(alert, now)
        yield from _perhaps(alert)

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
        _keep_newest(self._done, self._remember)

    def _remember_unexplained(self, printed: Iterable[Alert]) -> None:
        for alert in printed:
            self._unexplained.pop(alert.id, None)
            if alert.state != "resolved" and not likely_causes(alert):
                self._unexplained[alert.id] = msgspec.structs.replace(alert, evidence={})
        _keep_newest(self._unexplained, self._remember)


class Console(Struct, frozen=True, omit_defaults=True, tag_field="type", tag="console", forbid_unknown_fields=True):
    """Lines on the standard output of whoever delivers."""

    def open(self, _name: str, _session: object) -> Channel:
        return ConsoleChannel(ConsoleNotifier(sys.stdout))


class ConsoleChannel:
    """A `Channel`: a line for each alert of a notification, and one for how many more there are."""

    def __init__(self, notifier: ConsoleNotifier) -> None:
        self._notifier = notifier

    async def deliver(self, notification: Notification, memory: Memory) -> Memory:
        """Prints what is news in it; all of it where somebody is reminded, or called because nobody was there."""
        self._notifier.print_told(notification)
        return memory

    async def amend(self, notification: Notification, memory: Memory) -> Memory:
        """Lines on a terminal call nobody."""
        self._notifier.print_why(notification)
        return memory

    async def close(self) -> None:
        """The stream stays open: it was given."""


def _keep_newest(entries: dict[Any, Any], most: int) -> None:
    for oldest in list(islice(entries, max(0, len(entries) - most))):
        del entries[oldest]


def _key(alert: Alert) -> tuple[str, int]:
    return alert.id, alert.transition


def _told(alert: Alert) -> Iterator[str]:
    yield alert.summary
    if lasted := after(alert):
        yield f"over{lasted}"
    yield alert.condition
    if alert.labels:
        yield _labels(alert)
    if alert.state != "resolved":
        yield from (text for text in (alert.contact, alert.runbook_url) if text)


def _labels(alert: Alert) -> str:
    return " ".join(f"{label}={value}" for label, value in alert.labels.items())


def _perhaps(alert: Alert) -> Iterator[str]:
    """Its likely causes, below the state; nothing if it is over."""
    if alert.state != "resolved":
        yield from (f"{'':29}{'perhaps':<8}  {cause.text}" for cause in likely_causes(alert))


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
