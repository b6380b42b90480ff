"""What channels tell people about alerts, in plain words and within bounds. Pure.

Texts come from labels, rules and evidence, so anybody may have written them: `line` and `cut` make them fit, and
nothing in them can move a cursor, turn the direction of writing or begin a line. What quotes them for a medium
(Slack's ``&lt;``, HTML, JSON) is the channel's.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple

from yarl import URL

from streammon.durations import roughly
from streammon.results import Alert
from streammon_sinks.notify.channel import Notification

_JOINER: Final = "\u200d"  # of emoji; not printable by Python's book, and harmless


class LikelyCause(NamedTuple):
    """One of the evidence's likely causes: what happened, and why it is suspected."""

    what: str
    why: str

    @property
    def text(self) -> str:
        return f"{self.what}: {self.why}" if self.why else self.what


def length(text: str) -> int:
    """In UTF-16 units, as Java and JavaScript count, because services do not say how they do: never too few."""
    return len(text.encode("utf-16-le", "surrogatepass")) // 2


def cut(text: str, limit: int) -> str:
    """At most ``limit`` of the text, by `length`; with an ellipsis at the end if there was more."""
    if length(text) <= limit:
        return text
    kept = text[:limit].encode("utf-16-le", "surrogatepass")[: 2 * (limit - 1)]
    return kept.decode("utf-16-le", "ignore") + "…"


def line(text: str, limit: int) -> str:
    """The text on one line, without what cannot be printed, cut to ``limit``."""
    start = text[: 2 * limit + 1]
    visible = "".join(each if each.isprintable() or each == _JOINER else " " for each in start)
    return cut(" ".join(visible.split()) + ("…" if len(text) > len(start) else ""), limit)


def state_of(notification: Notification) -> str:
    """``resolved``, ``acknowledged`` if somebody works on every alert of the group, else ``firing``."""
    active = {alert.state for alert in notification.alerts if alert.state != "resolved"}
    if notification.status == "resolved":
        return "resolved"
    return "acknowledged" if active == {"acknowledged"} and not notification.omitted else "firing"


def headline(notification: Notification, limit: int) -> str:
    """The first alert in one line, and how many more there are: ``CRITICAL: shop is slow (+ 11 more)``.

    Of what is over, how long it lasted: ``RESOLVED after 12 min: shop is slow``.
    """
    more = len(notification.alerts) + notification.omitted - 1
    test, tail = "TEST " * (notification.cause == "test"), f" (+ {more} more)" if more else ""
    state = state_of(notification)
    word = notification.severity.upper() if state == "firing" else f"{state.upper()}{after(notification.alerts[0])}"
    return line(f"{test}{word}: {title(notification.alerts[0], limit - 60)}", limit - len(tail)) + tail


def title(alert: Alert, limit: int) -> str:
    """What happened, in one line, which is never empty."""
    return line(alert.summary, limit) or line(alert.condition, limit) or line(alert.rule, limit) or "an alert"


def after(alert: Alert) -> str:
    """Of an alert that is over, `` after 12 min``; else nothing."""
    if alert.state != "resolved" or alert.ended_unix_s is None:
        return ""
    return f" after {roughly(alert.ended_unix_s - alert.started_unix_s)}"


def over(alert: Alert) -> str:
    """Of an alert that is over, since when that is, and how long it lasted; else nothing."""
    since = when(alert.ended_unix_s) if alert.state == "resolved" and alert.ended_unix_s is not None else None
    return f"Over since {since},{after(alert)}" if since else ""


def labels_of(alert: Alert, most: int, limit: int) -> dict[str, str]:
    """Its labels, at most so many, each at most so long. Those without a visible name or value are left out."""
    told = ((line(name, 100), line(value, limit)) for name, value in list(alert.labels.items())[:most])
    return {name: value for name, value in told if name and value}


def entry(alert: Alert, limit: int) -> str:
    """One alert of many, in one line: severity, what happened, which series."""
    labels = " ".join(f"{name}={value}" for name, value in labels_of(alert, 10, 100).items())
    state = alert.severity if alert.state == "firing" else f"{alert.state}{after(alert)}"
    return line(f"{state}: {title(alert, limit // 2)} ({labels})", limit)


def likely_causes(alert: Alert, most: int = 3) -> list[LikelyCause]:
    """Those of its evidence, most likely first; evidence of another shape has none."""
    causes = alert.evidence.get("causes")
    told = [
        LikelyCause(line(_text(each.get("what")), 300), line(_text(each.get("why")), 300))
        for each in (causes if isinstance(causes, list) else [])[:most]
        if isinstance(each, dict)
    ]
    return [cause for cause in told if cause.what]


def trace_ids(alert: Alert, most: int = 5) -> list[str]:
    """Traces of the slowest requests of the window that tripped the rule."""
    window = alert.evidence.get("window")
    exemplars = window.get("exemplars") if isinstance(window, dict) else None
    found = [
        each.get("trace_id") for each in (exemplars if isinstance(exemplars, list) else []) if isinstance(each, dict)
    ]
    return [told for each in found[:most] if (told := line(_text(each), 64))]


def steps(alert: Alert, most: int = 10, limit: int = 500) -> list[str]:
    """What to do; nothing if it is over."""
    if alert.state == "resolved":
        return []
    return [told for each in alert.resolution_steps[:most] if (told := line(each, limit))]


def address(text: str | None, limit: int = 2000) -> str | None:
    """The text, if it is the address of a web page that can be opened; services refuse a message for another."""
    if (
        not text
        or length(text) > limit
        or not text.isascii()
        or not text.isprintable()
        or set(text) & set(' <>"|\\^`{}')
    ):
        return None
    try:
        url = URL(text)
    except ValueError:
        return None
    return text if url.scheme in ("http", "https") and url.host else None


def when(unix_s: float) -> str | None:
    """ISO 8601, to the second, in UTC; None for a time that no calendar has."""
    try:
        return datetime.fromtimestamp(unix_s, UTC).isoformat(timespec="seconds")
    except (ValueError, OverflowError, OSError):
        return None


def story(notification: Notification) -> Iterator[str]:
    """The whole message as lines of plain text: the first alert in full, then one line for each other."""
    first = notification.alerts[0]
    yield headline(notification, 500)
    yield from (told for told in (over(first), line(first.condition, 500), line(first.contact or "", 200)) if told)
    yield from (f"{name}: {value}" for name, value in labels_of(first, 20, 200).items())
    yield from (f"Likely cause: {cause.text}" for cause in likely_causes(first))
    yield from (f"{number}. {step}" for number, step in enumerate(steps(first), 1))
    yield from ([runbook] if (runbook := address(first.runbook_url)) else [])
    yield from (f"Trace: {trace}" for trace in trace_ids(first))
    yield from others(notification, 20, 300)


def others(notification: Notification, most: int, limit: int) -> Iterator[str]:
    """A line for each alert but the first, and one that counts those that are not told."""
    rest = notification.alerts[1:]
    yield from (entry(alert, limit) for alert in rest[:most])
    if hidden := notification.omitted + len(rest[most:]):
        yield f"… and {hidden:,} more"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
