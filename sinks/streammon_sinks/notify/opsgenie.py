"""Opsgenie, by its Alert API: an alert a group, created, acknowledged and closed under one alias.

Opsgenie counts another create under the alias of an open alert, and tells nobody again. It takes requests (202) and
works them off later: that it could not, say for an alias that it does not know, it tells nobody who does not ask.
"""

from __future__ import annotations

from typing import Any, Final, Literal
from urllib.parse import quote

import aiohttp
import msgspec
from msgspec import Struct

from streammon.errors import Retryable
from streammon.results import Severity
from streammon_sinks.notify.channel import Channel, Memory, Notification
from streammon_sinks.notify.http import HttpChannel, HttpDescription
from streammon_sinks.notify.pagerduty import dedup_key, source_of
from streammon_sinks.notify.secrets import Secret, SecretValue
from streammon_sinks.notify.told import cut, headline, labels_of, length, line, state_of, story

Priority = Literal["P1", "P2", "P3", "P4", "P5"]

MAX_MESSAGE_CHARS: Final = 130
MAX_DESCRIPTION_CHARS: Final = 15_000
MAX_DETAILS_CHARS: Final = 8_000
_SOURCE: Final = "streammon"


class Opsgenie(HttpDescription, frozen=True, tag="opsgenie"):
    """Alerts of an Opsgenie team."""

    api_key: Secret
    """Key of an *API* integration."""
    url: str = "https://api.opsgenie.com"
    """For accounts in the EU: `https://api.eu.opsgenie.com`."""
    teams: list[str] = msgspec.field(default_factory=list)
    """Teams that respond, by name; none if the integration belongs to one."""
    priorities: dict[Severity, Priority] = msgspec.field(
        default_factory=lambda: {"critical": "P1", "warning": "P3", "info": "P5"}
    )
    """The priority of each severity; one that is not named is P3."""
    tags: list[str] = msgspec.field(default_factory=list)
    """Tags of every alert, besides `streammon` and the rule; at most 18, of 50 characters."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.tags) > 18 or any(not 0 < length(tag) <= 50 for tag in self.tags) or len(self.teams) > 50:
            raise ValueError("Opsgenie takes at most 18 tags, of 1 to 50 characters each, and 50 teams")

    def open(self, name: str, session: aiohttp.ClientSession) -> Channel:
        return OpsgenieChannel(name, self, session)


class _Answer(Struct, rename="camel"):
    request_id: str


class OpsgenieChannel(HttpChannel[Opsgenie]):
    """Sends the requests of one `Opsgenie`."""

    async def deliver(self, notification: Notification, memory: Memory) -> Memory:
        key = self._http.secret("api_key", self._description.api_key)
        path, body = request(notification, self._description)
        headers = {"Authorization": SecretValue(f"GenieKey {key.reveal()}")}
        url = self._description.url.rstrip("/") + path
        reply = await self._http.post(url, msgspec.json.encode(body), headers, secrets=[key])
        if reply.read(_Answer) is None:
            raise Retryable(f"{self._http.where(url)} did not answer as Opsgenie does")
        return memory


def request(notification: Notification, description: Opsgenie) -> tuple[str, dict[str, Any]]:
    """Path and body."""
    state, alias = state_of(notification), dedup_key(notification.group)
    if state == "firing":
        return "/v2/alerts", _create(notification, description, alias)
    action = "close" if state == "resolved" else "acknowledge"
    path = f"/v2/alerts/{quote(alias, safe='')}/{action}?identifierType=alias"
    return path, {"source": _SOURCE, "note": headline(notification, 1000)}


def _create(notification: Notification, description: Opsgenie, alias: str) -> dict[str, Any]:
    first = notification.alerts[0]
    rule = line(first.rule, 50)
    body: dict[str, Any] = {
        "message": headline(notification, MAX_MESSAGE_CHARS),
        "alias": alias,
        "description": cut("\n".join(story(notification)), MAX_DESCRIPTION_CHARS),
        "tags": list(dict.fromkeys([_SOURCE, *([rule] if rule else []), *description.tags])),
        "details": _details(labels_of(first, 50, 500)),
        "entity": source_of(first),
        "source": _SOURCE,
        "priority": description.priorities.get(first.severity, "P3"),
    }
    responders = [{"type": "team", "name": name} for name in description.teams]
    return body | ({"responders": responders} if responders else {})


def _details(labels: dict[str, str]) -> dict[str, str]:
    """As many of the labels, in order, as Opsgenie takes."""
    left, told = MAX_DETAILS_CHARS, dict[str, str]()
    for name, value in labels.items():
        left -= length(name) + length(value)
        if left >= 0:
            told[name] = value
    return told
