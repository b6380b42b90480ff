"""PagerDuty, by its Events API v2: an incident a group, triggered, acknowledged and resolved under one ``dedup_key``.

A group is acknowledged there once every alert of it is acknowledged here. PagerDuty takes an event under a known
``dedup_key`` as news about the same incident, so a delivery that is repeated pages nobody twice; it drops an
acknowledgement or an end of what it does not know. 202 means that it has accepted the event, and will process it.
"""

from __future__ import annotations

import hashlib
from typing import Any, Final

import aiohttp
import msgspec
from msgspec import Struct

from streammon.errors import Retryable
from streammon.results import Alert
from streammon_sinks.notify.channel import Channel, Memory, Notification
from streammon_sinks.notify.http import HttpChannel, HttpDescription
from streammon_sinks.notify.secrets import Secret
from streammon_sinks.notify.told import (
    address,
    entry,
    headline,
    labels_of,
    likely_causes,
    line,
    others,
    state_of,
    steps,
    trace_ids,
    when,
)

MAX_KEY_CHARS: Final = 255
MAX_SUMMARY_CHARS: Final = 1024
_ACTIONS: Final = {"firing": "trigger", "acknowledged": "acknowledge", "resolved": "resolve"}
_SOURCES: Final = ("host", "service", "job", "instance")
_MOST_TOLD: Final = 20
"""So many alerts, labels, lines: with the bounds of each the event stays far below the 512 kB that PagerDuty takes."""


class PagerDuty(HttpDescription, frozen=True, tag="pagerduty"):
    """Incidents of a PagerDuty service."""

    routing_key: Secret
    """The integration key of an *Events API v2* integration of the service."""
    url: str = "https://events.pagerduty.com"
    """For accounts in the EU: `https://events.eu.pagerduty.com`."""
    webhook_secret: Secret | None = None
    """Secret of a *generic webhook (v3)* subscription to `incident.acknowledged`: who acknowledges there has then
    acknowledged here."""

    def open(self, name: str, session: aiohttp.ClientSession) -> Channel:
        return PagerDutyChannel(name, self, session)


class _Answer(Struct):
    status: str


class PagerDutyChannel(HttpChannel[PagerDuty]):
    """Sends the events of one `PagerDuty`."""

    async def deliver(self, notification: Notification, memory: Memory) -> Memory:
        key = self._http.secret("routing_key", self._description.routing_key)
        body = msgspec.json.encode({**event(notification), "routing_key": key.reveal()})
        reply = await self._http.post(self._description.url.rstrip("/") + "/v2/enqueue", body, secrets=[key])
        answer = reply.read(_Answer)
        if answer is None or answer.status != "success":
            raise Retryable(f"{self._http.where(self._description.url)} did not answer as PagerDuty does")
        return memory


def event(notification: Notification) -> dict[str, Any]:
    """The event, but for its routing key."""
    action = _ACTIONS[state_of(notification)]
    known = {"event_action": action, "dedup_key": dedup_key(notification.group)}
    return known if action != "trigger" else known | _trigger(notification)


def dedup_key(group: str) -> str:
    """The group, or a digest of one that is longer than PagerDuty's keys are."""
    short = len(group.encode()) <= MAX_KEY_CHARS and group.isprintable()
    return group if short else hashlib.blake2b(group.encode(), digest_size=32).hexdigest()


def _trigger(notification: Notification) -> dict[str, Any]:
    first = notification.alerts[0]
    payload = {
        "summary": headline(notification, MAX_SUMMARY_CHARS),
        "source": source_of(first),
        "severity": first.severity,
        "timestamp": when(first.started_unix_s),
        "component": line(first.labels.get("model", ""), 255),
        "group": line(first.labels.get("service", ""), 255),
        "class": line(first.rule, 255),
        "custom_details": _details(notification),
    }
    links = [{"href": href, "text": "Runbook"} for href in (address(first.runbook_url),) if href]
    return {"payload": _without_empty(payload), "client": "streammon"} | ({"links": links} if links else {})


def source_of(alert: Alert) -> str:
    """Where it hurts: the host, else the service, the job; PagerDuty asks for one always."""
    return next((told for name in _SOURCES if (told := line(alert.labels.get(name, ""), 255))), "streammon")


def _details(notification: Notification) -> dict[str, Any]:
    first = notification.alerts[0]
    return _without_empty(
        {
            "condition": line(first.condition, 1000),
            "labels": labels_of(first, _MOST_TOLD, 500),
            "likely_causes": [cause.text for cause in likely_causes(first)],
            "resolution_steps": steps(first),
            "contact": line(first.contact or "", 200),
            "trace_ids": trace_ids(first),
            "alerts": [entry(first, 300), *others(notification, _MOST_TOLD, 300)],
            "cause": notification.cause,
        }
    )


def _without_empty(mapping: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in mapping.items() if value}
