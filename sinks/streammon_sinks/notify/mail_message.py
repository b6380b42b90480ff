"""A notification as a mail: subject, thread, a plain text and the same as HTML.

* The same notification makes the same bytes, delivered whenever and by whomever; its ``Message-ID`` lets mail
  servers drop the second copy.
* The mails about one group are one thread: each later one answers the one before it.
* No text of an alert gets out of its place: headers are one line, HTML is escaped, and only ``http`` and ``https``
  addresses become links. Nothing is loaded from elsewhere, no picture, no font.
* It stays small: the first alerts are told in full, the next in one line each, the others are counted.
* Programs can tell it from a person's mail: ``Auto-Submitted``, ``List-Id``, and ``X-Streammon-*`` to sort by.

It cannot make Gmail keep a thread together: Gmail begins a new one when the subject changes, and the subject says how
bad it is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from email.headerregistry import Address
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime
from html import escape
from typing import Final

from streammon.results import Alert
from streammon_sinks.notify.channel import Memory, Notification
from streammon_sinks.notify.told import address, labels_of, likely_causes, line, steps, title, trace_ids

MAX_SUBJECT_CHARS: Final = 180
MAX_TEXT_CHARS: Final = 1000
MAX_LINK_CHARS: Final = 2000
MAX_LABELS: Final = 30
MAX_STEPS: Final = 20
IN_FULL: Final = 10
IN_BRIEF: Final = 90
_POLICY: Final = SMTP.clone(max_line_length=200)

_LEADS: Final[Mapping[str, str]] = {
    "repeat": "Still firing: ",
    "escalation": "Nobody has acknowledged: ",
    "changed": "",
    "new": "",
    "resolved": "",
    "test": "",
    "explained": "",
}


def mail(
    notification: Notification, memory: Memory, *, sender: Address, to: Sequence[Address], cc: Sequence[Address] = ()
) -> EmailMessage:
    """The whole mail. ``memory`` is what `remembered` returned for the mail before it in this group."""
    message = EmailMessage(policy=_POLICY)
    message["From"] = sender
    message["To"] = to
    if cc:
        message["Cc"] = cc
    message["Subject"] = subject(notification)
    message["Date"] = _date(notification.created_unix_s)
    message["Message-ID"] = own = message_id(notification, sender.domain)
    for name, value in [*_thread(own, memory), *_for_programs(notification, sender.domain)]:
        message[name] = value
    message.set_content("\n".join(text_lines(notification)) + "\n")
    message.add_alternative(html(notification), subtype="html")
    _name_boundary(message, notification)
    return message


def remembered(notification: Notification, memory: Memory, domain: str) -> Memory:
    """What the group's next mail has to know of this one: the first and the last mail of the thread."""
    own = message_id(notification, domain)
    return {"first": memory.get("first", own), "last": own}


def message_id(notification: Notification, domain: str) -> str:
    return f"<streammon.{_digest(notification.id)}@{domain}>"


def subject(notification: Notification) -> str:
    """``[CRITICAL] shop is slow (and 3 more)``."""
    first, more = notification.alerts[0], len(notification.alerts) - 1 + notification.omitted
    tail = f" (and {more} more)" if more else ""
    text = f"[{_status(notification)}] {_LEADS[notification.cause]}{title(first, MAX_SUBJECT_CHARS)}"
    return line(text, MAX_SUBJECT_CHARS - len(tail)) + tail


def _status(notification: Notification) -> str:
    if notification.cause == "test":
        return "TEST"
    return "RESOLVED" if notification.status == "resolved" else notification.severity.upper()


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _thread(own: str, memory: Memory) -> Iterator[tuple[str, str]]:
    last = memory.get("last")
    if last and last != own:  # else it is delivered again
        yield "In-Reply-To", last
        yield "References", " ".join(dict.fromkeys((memory.get("first", last), last)))


def _for_programs(notification: Notification, domain: str) -> Iterator[tuple[str, str]]:
    name = "".join(each if each.isascii() and each.isalnum() else "-" for each in notification.channel).strip("-")
    yield "List-Id", f"<{name or 'channel'}.streammon.{domain}>"
    yield "Auto-Submitted", "auto-generated"
    yield "X-Auto-Response-Suppress", "All"  # Exchange: no out-of-office replies
    yield "X-Streammon-Severity", notification.severity
    yield "X-Streammon-Status", notification.status
    if notification.status == "firing" and notification.severity == "critical":
        yield "Importance", "high"


def _name_boundary(message: EmailMessage, notification: Notification) -> None:
    """The library would draw it at random; a repeated delivery shall be the same bytes."""
    message.set_boundary(f"=-streammon-{_digest(notification.id)}")


def _date(unix_s: float) -> str:
    try:
        return format_datetime(datetime.fromtimestamp(unix_s, UTC))
    except (ValueError, OverflowError, OSError):  # no calendar has it
        return format_datetime(datetime.fromtimestamp(0, UTC))


# ---------------------------------------------------------------- what both bodies say


def _when(unix_s: float) -> str:
    try:
        return f"{datetime.fromtimestamp(unix_s, UTC):%Y-%m-%d %H:%M:%S} UTC"
    except (ValueError, OverflowError, OSError):
        return f"{unix_s:g} s"


def _times(alert: Alert) -> str:
    """Since when; of an alert that is over, until when and how long."""
    since = _when(alert.started_unix_s)
    if alert.ended_unix_s is None:
        return f"since {since}"
    lasted = timedelta(seconds=max(0, round(alert.ended_unix_s - alert.started_unix_s)))
    return f"{since} to {_when(alert.ended_unix_s)} ({lasted})"


def _headline(notification: Notification) -> str:
    """What this mail is, in a few words: ``3 alerts firing``, ``All resolved``."""
    count = len(notification.alerts) + notification.omitted
    if notification.cause == "test":
        return "A test: the channel works"
    if notification.status == "resolved":
        return "The alert is over" if count == 1 else f"All {count} alerts are over"
    firing = sum(alert.state != "resolved" for alert in notification.alerts) + notification.omitted
    told = f"{firing} alert{'s' if firing > 1 else ''} firing"
    return f"{_LEADS[notification.cause].rstrip(': ')}: {told}" if _LEADS[notification.cause] else told


def _state(alert: Alert) -> str:
    return alert.state.replace("_", " ")


def _facts(alert: Alert) -> Iterator[tuple[str, str]]:
    yield "Condition", line(alert.condition, MAX_TEXT_CHARS)
    if alert.value is not None:
        yield "Value", f"{alert.value:g}"
    yield "When", _times(alert)
    yield from labels_of(alert, MAX_LABELS, MAX_TEXT_CHARS).items()
    yield "Rule", line(alert.rule, MAX_TEXT_CHARS)
    if contact := line(alert.contact or "", MAX_TEXT_CHARS):
        yield "Contact", contact
    if alert.state != "resolved":
        yield from (("Likely cause", cause.text) for cause in likely_causes(alert))
        yield from (("Trace", trace) for trace in trace_ids(alert))


def _steps(alert: Alert) -> list[str]:
    return steps(alert, MAX_STEPS, MAX_TEXT_CHARS)


def _brief(alert: Alert) -> str:
    """An alert in one line: ``WARNING firing: GPU 3 is hot · host=gpu-07``."""
    series = " ".join(f"{label}={value}" for label, value in labels_of(alert, 10, 100).items())
    return line(f"{_title(alert)}{f' · {series}' if series else ''}", 300)


def _title(alert: Alert) -> str:
    return f"{alert.severity.upper()} {_state(alert)}: {title(alert, MAX_TEXT_CHARS)}"


def _full_and_brief(notification: Notification) -> tuple[Sequence[Alert], list[str]]:
    """The alerts to tell in full, and a line for each other one, or for how many there are."""
    full, others = notification.alerts[:IN_FULL], notification.alerts[IN_FULL:]
    untold = notification.omitted + max(0, len(others) - IN_BRIEF)
    last = [f"{untold} more alerts are in this group."] if untold else []
    return full, [*map(_brief, others[:IN_BRIEF]), *last]


def _reason(notification: Notification) -> str:
    """Why the reader gets it, for the last line."""
    grouped = ", ".join(f"{label}={value}" for label, value in notification.group_labels.items())
    about = f" about {line(grouped, 200)}" if grouped else ""
    return f"Sent by streammon{about}, through the channel {notification.channel}."


# ---------------------------------------------------------------- the plain text


def text_lines(notification: Notification) -> Iterator[str]:
    full, brief = _full_and_brief(notification)
    yield _headline(notification)
    for alert in full:
        yield ""
        yield from _alert_lines(alert)
    if brief:
        yield from ("", *brief)
    yield from ("", "-- ", _reason(notification))


def _alert_lines(alert: Alert) -> Iterator[str]:
    yield _title(alert)
    yield from (f"  {name}: {value}" for name, value in _facts(alert))
    if alert.runbook_url:
        yield f"  Runbook: {line(alert.runbook_url, MAX_LINK_CHARS)}"
    if to_do := _steps(alert):
        yield "  What to do:"
        yield from (f"    {number}. {step}" for number, step in enumerate(to_do, 1))


# ---------------------------------------------------------------- the HTML


_COLORS: Final = {"critical": "#c62828", "warning": "#b26a00", "info": "#1565c0", "resolved": "#2e7d32"}
"""White on each of them has a contrast of at least 4.2 : 1, and they can be told apart on black."""

_STYLE: Final = """
:root { color-scheme: light dark; supported-color-schemes: light dark; }
a { color: #1565c0; }
@media (prefers-color-scheme: dark) {
  .page { background: #111418 !important; }
  .card { background: #1c2128 !important; border-color: #373e47 !important; }
  .text { color: #e6edf3 !important; }
  .soft { color: #9da7b3 !important; }
  .line { border-color: #373e47 !important; }
  a { color: #6cb6ff !important; }
}
@media (max-width: 480px) { .pad { padding-left: 16px !important; padding-right: 16px !important; } }
"""
_FONT: Final = "font-family:-apple-system,BlinkMacSystemFont,'Segoe UI',Roboto,Helvetica,Arial,sans-serif"


def html(notification: Notification) -> str:
    """A table layout with inline styles, which is what mail programs agree on; they may drop the ``style`` element."""
    color = _COLORS["resolved" if notification.status == "resolved" else notification.severity]
    full, brief = _full_and_brief(notification)
    preview = line(notification.alerts[0].condition, 150)  # what a list of mails shows beside the subject
    alerts = "".join(_alert_html(alert, first=number == 0) for number, alert in enumerate(full))
    return f"""\
<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark"><meta name="supported-color-schemes" content="light dark">
<title>{escape(subject(notification))}</title>
<style>{_STYLE}</style></head>
<body class="page" style="margin:0;padding:0;background:#f3f4f6">
<div style="display:none;max-height:0;overflow:hidden">{escape(preview)}</div>
<table role="presentation" width="100%" cellpadding="0" cellspacing="0" class="page" style="background:#f3f4f6"><tr>
<td align="center" style="padding:24px 8px">
<table role="presentation" width="100%" cellpadding="0" cellspacing="0" class="card" \
style="max-width:640px;background:#ffffff;border:1px solid #d8dee4;border-radius:8px;overflow:hidden;{_FONT}">
<tr><td class="pad" style="background:{color};padding:12px 24px;color:#ffffff;font-size:14px;font-weight:600">\
{escape(_status(notification))} &middot; {escape(_headline(notification))}</td></tr>
{alerts}{_brief_html(brief)}
<tr><td class="pad soft line" \
style="padding:16px 24px;border-top:1px solid #d8dee4;color:#59636e;font-size:12px;line-height:18px">\
{escape(_reason(notification))}</td></tr>
</table></td></tr></table></body></html>
"""


def _alert_html(alert: Alert, *, first: bool) -> str:
    line = "" if first else "border-top:1px solid #d8dee4;"
    color = _COLORS["resolved" if alert.state == "resolved" else alert.severity]
    return (
        f'<tr><td class="pad line" style="{line}padding:20px 24px">'
        f'<div style="font-size:12px;line-height:18px;font-weight:600">'
        f'<span style="display:inline-block;background:{color};color:#ffffff;border-radius:10px;padding:1px 10px">'
        f"{escape(_state(alert))}</span>"
        f'<span class="soft" style="color:#59636e;padding-left:8px">{escape(alert.severity)}</span></div>'
        f'<div class="text" style="color:#1f2328;font-size:18px;line-height:26px;font-weight:600;padding:8px 0 12px;'
        f'overflow-wrap:anywhere">{escape(title(alert, MAX_TEXT_CHARS))}</div>'
        f'<table role="presentation" width="100%" cellpadding="0" cellspacing="0">{_rows(_facts(alert))}</table>'
        f"{_steps_html(alert)}{_runbook_html(alert)}</td></tr>\n"
    )


def _rows(facts: Iterable[tuple[str, str]]) -> str:
    return "".join(
        f'<tr><td class="soft" valign="top" style="color:#59636e;font-size:13px;line-height:20px;'
        f'padding:2px 16px 2px 0;width:112px;overflow-wrap:anywhere">{escape(name)}</td>'
        f'<td class="text" valign="top" style="color:#1f2328;font-size:13px;line-height:20px;padding:2px 0;'
        f'overflow-wrap:anywhere">{_linked(value)}</td></tr>'
        for name, value in facts
    )


def _steps_html(alert: Alert) -> str:
    items = "".join(f'<li style="padding:2px 0">{_linked(step)}</li>' for step in _steps(alert))
    return items and (
        f'<div class="soft" style="color:#59636e;font-size:13px;font-weight:600;padding:12px 0 4px">What to do</div>'
        f'<ol class="text" style="color:#1f2328;font-size:14px;line-height:20px;margin:0;padding-left:20px;'
        f'overflow-wrap:anywhere">'
        f"{items}</ol>"
    )


def _runbook_html(alert: Alert) -> str:
    url = address(alert.runbook_url, MAX_LINK_CHARS)
    if not url:
        told = line(alert.runbook_url or "", MAX_TEXT_CHARS)
        rows = _rows([("Runbook", told)] if told else [])
        return f'<table role="presentation" width="100%" cellpadding="0" cellspacing="0">{rows}</table>'
    return (
        f'<div style="padding-top:16px"><a href="{escape(url)}" style="display:inline-block;border:1px solid #8b949e;'
        f'border-radius:6px;padding:6px 14px;font-size:14px;font-weight:600;text-decoration:none">Open the runbook</a>'
        f"</div>"
    )


def _brief_html(lines: Sequence[str]) -> str:
    items = "".join(f'<div style="padding:2px 0">{escape(text)}</div>' for text in lines)
    style = "padding:16px 24px;border-top:1px solid #d8dee4;font-size:13px;line-height:20px;color:#1f2328"
    return items and f'<tr><td class="pad text line" style="{style};overflow-wrap:anywhere">{items}</td></tr>'


def _linked(text: str) -> str:
    """Escaped; a link if the whole of it is an address."""
    return f'<a href="{escape(text)}">{escape(text)}</a>' if address(text, MAX_LINK_CHARS) else escape(text)
