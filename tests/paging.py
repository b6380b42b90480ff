"""What tests of paging need: a receiver that counts what it takes, the notifier's file, and alerts on the log."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import web

from streammon.broker import Broker, Outgoing
from streammon.notifications import Notification
from streammon.results import Alert, Cause, Evidence
from streammon.wire import SCHEMA_HEADER
from tests.sinks.builders import alert
from tests.sinks.notify.fake_http import FakeHttp, fake_http


class Receiver:
    """The other side of a webhook: how often each notification came, by its idempotency key, and what it said."""

    def __init__(self) -> None:
        self.http: FakeHttp
        self.counts: Counter[str] = Counter()
        self.taken: dict[str, Notification] = {}
        self.at: dict[str, float] = {}
        self.before_answer: Callable[[Notification], None] = lambda _: None

    def answer(self, request: web.Request, body: bytes) -> web.Response:
        notification = msgspec.json.decode(body, type=Notification)
        assert request.headers["Idempotency-Key"] == notification.id
        self.counts[notification.id] += 1
        self.taken[notification.id] = notification
        self.at.setdefault(notification.id, time.time())
        self.before_answer(notification)
        return web.Response(status=204)

    @property
    def told(self) -> list[tuple[str, str]]:
        """Every change of an alert that a message was about, once for each of its messages: rule and state."""
        return [(each.rule, each.state) for message in self.taken.values() for each in message.alerts]

    def messages_about(self, alert_id: str, state: str) -> list[str]:
        """The ids of the messages in which this alert was in this state, of those that were no repetition."""
        return [
            id_
            for id_, message in self.taken.items()
            if message.cause != "repeat"
            for each in message.alerts
            if (each.id, each.state) == (alert_id, state)
        ]

    @property
    def repeated(self) -> dict[str, int]:
        return {id_: count for id_, count in self.counts.items() if count > 1}


@asynccontextmanager
async def receiver(directory: Path) -> AsyncIterator[Receiver]:
    """``directory``: for its certificate that nobody trusts."""
    one = Receiver()
    async with fake_http(one.answer, directory) as one.http:
        yield one


def notifier_file(directory: Path, channels: dict[str, dict[str, Any]], **route: Any) -> Path:
    """A file by which every alert is told at once and by itself."""
    plain = {"group_wait": 0, "group_interval": 0.5, "group_by": ["..."], "to": list(channels)[:1]}
    file = directory / "notify.yaml"
    file.write_text(json.dumps({"channels": channels, "route": plain | route}))  # JSON is YAML
    return file


def hook(url: str | dict[str, str], **changes: Any) -> dict[str, Any]:
    return {"type": "webhook", "url": url, "timeout": 1} | changes


def fired(name: str, transition: int = 1, **changes: Any) -> Alert:
    now = time.time()
    started = {"started_unix_s": now, "updated_unix_s": now, "labels": {"service": name}, "evidence": {}}
    return alert(transition, id=name, rule=f"slow-{name}", **(started | changes))


def ended(name: str) -> Alert:
    return fired(name, 2, state="resolved", ended_unix_s=time.time())


def behind(alert_: Alert) -> Evidence:
    now = time.time()
    cause = Cause(what=f"deploy of {alert_.id}", why="just before", kind="deploy", score=1.0, at_unix_s=now, lag_s=1.0)
    return Evidence(alert_id=alert_.id, transition=alert_.transition, onset_unix_s=now, made_unix_s=now, causes=[cause])


async def raise_alerts(broker: Broker, alerts: Sequence[Alert], partitions: int = 1) -> None:
    """As the rules write them: each alert always into the same partition."""
    await broker.append([_record("alerts", each.id, each, partitions) for each in alerts])


async def explain_alerts(broker: Broker, alerts: Sequence[Alert], partitions: int = 1) -> None:
    """As `diagnose` does: evidence lies in the partition of its alert."""
    await broker.append([_record("evidence", each.id, behind(each), partitions) for each in alerts])


def _record(topic: str, id_: str, value: Alert | Evidence, partitions: int) -> Outgoing:
    return Outgoing(topic, id_.encode(), msgspec.json.encode(value), (SCHEMA_HEADER,), len(id_) % partitions)
