"""Alerts and commands of an imaginary week, for tests of what people do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec

from streammon.broker import Broker, Outgoing, connect
from streammon.broker.records import StoredRecord
from streammon.commands import Acknowledge, AnyCommand, Matcher, Silence, Unsilence
from streammon.config import Settings
from streammon.results import Alert
from streammon.topics import topic_specs

NOON = 1_700_000_000.0


def alert(id: str, transition: int = 1, state: str = "firing", at: float = 0.0, **fields: Any) -> Alert:  # noqa: A002
    """A transition ``at`` seconds after noon."""
    defaults: dict[str, Any] = {
        "rule": "slow",
        "rule_version": "1",
        "severity": "warning",
        "labels": {"service": "shop"},
        "value": 0.4,
        "condition": "p99 of duration_s 400 ms > 300 ms",
        "summary": "shop is slow",
        "started_unix_s": NOON,
        "updated_unix_s": NOON + at,
        "ended_unix_s": NOON + at if state == "resolved" else None,
        "evidence": {"window": {"count": 4}},
    }
    return Alert(id=id, transition=transition, state=state, **(defaults | fields))  # type: ignore[arg-type]  # its text


def _said(at: float, fields: dict[str, Any]) -> dict[str, Any]:
    return {"id": f"c{at:g}", "time_unix_s": NOON + at, "by": "ann", "via": "cli"} | fields


def ack(alert_id: str, transition: int = 1, at: float = 0.0, **fields: Any) -> Acknowledge:
    return Acknowledge(alert_id=alert_id, transition=transition, **_said(at, fields))


def quiet(id: str, at: float = 0.0, for_s: float = 3600.0, **fields: Any) -> Silence:  # noqa: A002
    defaults: dict[str, Any] = {"matchers": [Matcher(label="service", operator="=", value="shop")]}
    span = {"starts_unix_s": NOON + at, "ends_unix_s": NOON + at + for_s}
    return Silence(**(defaults | span | _said(at, {"id": id} | fields)))


def loud(silence_id: str, at: float = 0.0, **fields: Any) -> Unsilence:
    return Unsilence(silence_id=silence_id, **_said(at, fields))


def record(
    value: Alert | AnyCommand | bytes | None, offset: int = 0, partition: int = 0, key: str = ""
) -> StoredRecord:
    """As it is read; the broker took a command when it was sent."""
    raw = value if value is None or isinstance(value, bytes) else msgspec.json.encode(value)
    time = getattr(value, "time_unix_s", NOON)
    return StoredRecord(partition, offset, int(time * 1000), key.encode(), raw, ())


def outgoing(topic: str, key: str, value: Alert | AnyCommand, partition: int) -> Outgoing:
    return Outgoing(topic, key.encode(), msgspec.json.encode(value), (), partition)


async def opened(directory: Path, *alerts: tuple[Alert, int]) -> Broker:
    """An embedded broker with these alerts in these partitions."""
    broker = await connect(Settings(data_dir=directory))
    await broker.create_topics(topic_specs(partitions=4))
    if alerts:
        await broker.append([outgoing("alerts", each.id, each, partition) for each, partition in alerts])
    return broker
