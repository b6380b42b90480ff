"""A webhook: the notification as JSON, signed, to a URL of your own.

The body is the `Notification` as it lies on the topic, with its ``schema``; or the ``body`` of the description, with
its names filled in. A receiver knows a message that it has taken before by ``Idempotency-Key``, the notification's
id, and that a message is ours by ``Streammon-Signature: t=UNIX_SECONDS,v1=HEX``: the HMAC-SHA256, with the shared
secret as its key, of the seconds, a full stop and the body as it was sent. Any 2xx means that it was taken.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Callable, Mapping
from string import Template
from typing import Any, Final

import aiohttp
import msgspec

from streammon_sinks.notify.channel import Channel, Memory, Notification
from streammon_sinks.notify.http import HttpChannel, HttpDescription
from streammon_sinks.notify.secrets import Secret, SecretValue
from streammon_sinks.notify.told import headline, labels_of, line, state_of, story

_OURS: Final = {
    *("authorization", "connection", "content-length", "content-type", "host", "idempotency-key"),
    *("streammon-signature", "transfer-encoding"),
}
_HEADER_NAME: Final = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")


class Webhook(HttpDescription, frozen=True, tag="webhook"):
    """A POST to a URL of your own."""

    url: Secret | str
    """Where to; a `Secret` if whoever knows it may post there."""
    signing_secret: Secret | None = None
    """Key of the signature; without it messages are not signed."""
    token: Secret | None = None
    """Sent as `Authorization: Bearer …`."""
    headers: dict[str, Secret | str] = msgspec.field(default_factory=dict)
    """More headers."""
    body: dict[str, Any] | None = None
    """JSON to send instead of the notification. In its texts `$summary`, `$status`, `$severity`, `$text` and other
    names are filled in; `$$` is a dollar sign."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in self.headers.items():
            _check_header(name, value)
        _map_texts(self.body, _check_template)

    def open(self, name: str, session: aiohttp.ClientSession) -> Channel:
        return WebhookChannel(name, self, session)


class WebhookChannel(HttpChannel[Webhook]):
    """Posts to the URL of a `Webhook`."""

    async def deliver(self, notification: Notification, memory: Memory) -> Memory:
        body = body_of(notification, self._description.body)
        await self._http.post(self._told("url", self._description.url), body, self._headers(notification, body))
        return memory

    def _headers(self, notification: Notification, body: bytes) -> dict[str, str | SecretValue]:
        description = self._description
        headers: dict[str, str | SecretValue] = {"Idempotency-Key": line(notification.id, 200)}
        headers |= {name: self._told(f"headers.{name}", value) for name, value in description.headers.items()}
        if description.token:
            headers["Authorization"] = SecretValue(f"Bearer {self._http.secret('token', description.token).reveal()}")
        if description.signing_secret:
            key = self._http.secret("signing_secret", description.signing_secret)
            headers["Streammon-Signature"] = signature(key, body, int(self._http.clock()))
        return headers

    def _told(self, field: str, value: Secret | str) -> str | SecretValue:
        return self._http.secret(field, value) if isinstance(value, Secret) else value


def signature(key: SecretValue, body: bytes, unix_s: int) -> str:
    """The value of ``Streammon-Signature``."""
    mac = hmac.new(key.reveal().encode(), b"%d." % unix_s + body, hashlib.sha256)
    return f"t={unix_s},v1={mac.hexdigest()}"


def body_of(notification: Notification, template: Mapping[str, Any] | None) -> bytes:
    """The notification as JSON, or the template with its names filled in."""
    if template is None:
        return msgspec.json.encode(notification)
    names = {name: value(notification) for name, value in NAMES.items()}
    return msgspec.json.encode(_map_texts(template, lambda text: Template(text).substitute(names)))


NAMES: Final[Mapping[str, Callable[[Notification], str]]] = {
    "id": lambda n: n.id,
    "channel": lambda n: n.channel,
    "group": lambda n: n.group,
    "cause": lambda n: n.cause,
    "status": lambda n: n.status,
    "state": state_of,
    "severity": lambda n: n.severity,
    "count": lambda n: str(len(n.alerts) + n.omitted),
    "summary": lambda n: headline(n, 300),
    "text": lambda n: "\n".join(story(n)),
    "rule": lambda n: line(n.alerts[0].rule, 200),
    "condition": lambda n: line(n.alerts[0].condition, 1000),
    "labels": lambda n: " ".join(f"{name}={value}" for name, value in labels_of(n.alerts[0], 50, 200).items()),
    "contact": lambda n: line(n.alerts[0].contact or "", 200),
    "runbook_url": lambda n: n.alerts[0].runbook_url or "",
}
"""What a template may name."""


def _map_texts(value: Any, change: Callable[[str], Any]) -> Any:
    """The same JSON value with each of its texts changed; keys stay."""
    if isinstance(value, dict):
        return {name: _map_texts(each, change) for name, each in value.items()}
    if isinstance(value, list):
        return [_map_texts(each, change) for each in value]
    return change(value) if isinstance(value, str) else value


def _check_template(text: str) -> None:
    template = Template(text)
    unknown = sorted(set(template.get_identifiers()) - set(NAMES))
    if unknown or not template.is_valid():
        what = f"`${unknown[0]}` is no name" if unknown else f"{text[:80]!r} has a dollar sign that names nothing"
        raise ValueError(f"body: {what}; write $$ for a dollar sign, or one of {', '.join(f'${n}' for n in NAMES)}")


def _check_header(name: str, value: Secret | str) -> None:
    if not _HEADER_NAME.fullmatch(name) or name.lower() in _OURS:
        raise ValueError(f"headers: {name[:80]!r} cannot be set here")
    if isinstance(value, str) and not value.isprintable():
        raise ValueError(f"headers: the value of {name} holds control characters")
