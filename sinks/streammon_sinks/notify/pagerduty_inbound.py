"""Who acknowledges an incident in PagerDuty has acknowledged its alerts here. Pure; the HTTP route is somebody else's.

PagerDuty signs its webhooks (v3) with the secret of the subscription, and knows incidents by our `dedup_key`, not
alerts by their ids: the caller says which alerts the group holds. Only what was there when the person pressed the
button is acknowledged, so that a delivery that comes late, or again, acknowledges nothing new.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Final, TypeVar

import msgspec
from msgspec import Struct

from streammon.commands import Acknowledge, Command
from streammon.errors import Reason, Rejected
from streammon.results import Alert
from streammon_sinks.notify.secrets import SecretValue
from streammon_sinks.notify.told import line

T = TypeVar("T")

AlertsOf = Callable[[str], Iterable[Alert]]
"""The newest record of each alert of the group with that `dedup_key`; nothing for a group that is not ours."""

MAX_BODY_BYTES: Final = 1_048_576


class _Agent(Struct):
    id: str = ""
    summary: str = ""


class _Incident(Struct):
    incident_key: str | None = None


class _Event(Struct):
    id: str
    event_type: str
    occurred_at: datetime
    agent: _Agent | None = None
    data: _Incident | None = None


class _Delivery(Struct):
    event: _Event


class _AnyEvent(Struct):
    event_type: str


class _AnyDelivery(Struct):
    event: _AnyEvent


def pagerduty_commands(
    headers: Mapping[str, str], body: bytes, secret: SecretValue, now: float, *, alerts_of: AlertsOf
) -> list[Command]:
    """The commands of one webhook of PagerDuty; none for an event of another type.

    Raises:
        Rejected: it is not signed, or nothing that PagerDuty sends.
    """
    if len(body) > MAX_BODY_BYTES:
        raise Rejected(Reason.TOO_LARGE, "PagerDuty sends less than 1 MiB")
    if not _signed(headers, body, secret):
        raise Rejected(Reason.REFUSED, "not signed with the channel's webhook_secret")
    if _decode(body, _AnyDelivery).event.event_type != "incident.acknowledged":
        return []
    return _acknowledged(_decode(body, _Delivery).event, now, alerts_of)


def _signed(headers: Mapping[str, str], body: bytes, secret: SecretValue) -> bool:
    """One of the signatures has to fit: while a secret is changed there are two."""
    given = {name.lower(): value for name, value in headers.items()}.get("x-pagerduty-signature", "")
    expected = "v1=" + hmac.new(secret.reveal().encode(), body, hashlib.sha256).hexdigest()
    told = [each.strip().encode(errors="replace") for each in given.split(",")[:10]]  # a header may hold any byte
    return any(hmac.compare_digest(expected.encode(), each) for each in told)


def _decode(body: bytes, type_: type[T]) -> T:
    try:
        return msgspec.json.decode(body, type=type_)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise Rejected(Reason.INVALID_EVENT, "not an event as PagerDuty sends them") from None


def _acknowledged(event: _Event, now: float, alerts_of: AlertsOf) -> list[Command]:
    key = event.data.incident_key if event.data else None
    agent = event.agent or _Agent()
    by = line(f"{agent.summary} ({agent.id})" if agent.summary else agent.id, 200) or "somebody"
    pressed = event.occurred_at.timestamp()
    return [
        Acknowledge(
            id=f"pagerduty-{line(event.id, 100)}-{hashlib.blake2b(alert.id.encode(), digest_size=8).hexdigest()}",
            time_unix_s=now,
            by=by,
            via="pagerduty",
            alert_id=alert.id,
            transition=alert.transition,
        )
        for alert in (alerts_of(key) if key else ())
        if alert.state in ("firing", "no_data") and alert.updated_unix_s <= pressed
    ]
