"""Notifications for the tests of the channels."""

from __future__ import annotations

from typing import Any

import msgspec

from streammon.results import Alert
from streammon_sinks.notify.channel import Notification
from tests.sinks.builders import START, alert

TOLD = alert(
    1,
    id="slow-shop-1700000000",
    labels={"service": "shop", "model": "ranker"},
    resolution_steps=["Look at the traces", "Roll back"],
    contact="#ml-oncall",
    escalation=["lead@example.com"],
    runbook_url="https://runbooks.example.com/slow",
    evidence={
        "window": {"exemplars": [{"trace_id": "4bf92f3577b34da6a3ce929d0e0e4736", "duration_s": 4.5}]},
        "causes": [{"what": "deploy of ranker 3", "why": "20 s before the onset"}],
    },
)


def notification(*alerts: Alert, id: str = "n1", **changes: Any) -> Notification:  # noqa: A002 - the field's name
    told = list(alerts) or [TOLD]
    plain = Notification(
        id=id,
        channel="ops",
        group="shop/slow#1",
        group_labels={"service": "shop"},
        cause="new",
        status="firing",
        alerts=told,
        created_unix_s=START + 5,
    )
    return msgspec.structs.replace(plain, **changes)


def changed(alert_: Alert = TOLD, **changes: Any) -> Alert:
    return msgspec.structs.replace(alert_, **changes)


def resolved(*alerts: Alert, **changes: Any) -> Notification:
    ended = [changed(each, state="resolved", ended_unix_s=START + 60, transition=2) for each in alerts or [TOLD]]
    return notification(*ended, **{"id": "n2", "cause": "resolved", "status": "resolved", **changes})
