"""Opsgenie: what is created, acknowledged and closed, and with which priority."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from streammon_sinks.notify.opsgenie import Opsgenie, request
from streammon_sinks.notify.secrets import Secret
from tests.sinks.notify.builders import changed, notification, resolved
from tests.sinks.notify.fake_opsgenie import FakeOpsgenie, opsgenie

PLAIN = Opsgenie(api_key=Secret(env="K"))


@pytest.fixture
async def fake(tmp_path: Path) -> AsyncIterator[FakeOpsgenie]:
    async with opsgenie(tmp_path) as fake:
        yield fake


async def test_an_alert_is_created_acknowledged_and_closed_under_one_alias(fake: FakeOpsgenie) -> None:
    taken = notification(changed(state="acknowledged"), id="n3")
    for told, action in ((notification(), "create"), (taken, "acknowledge"), (resolved(), "close")):
        await fake.open(teams=["ml"], tags=["eu"]).deliver(told, {})
        assert fake.alerts == {"shop/slow#1": action}
    assert fake.bodies[0]["responders"] == [{"type": "team", "name": "ml"}]
    assert fake.bodies[0]["tags"] == ["streammon", "slow", "eu"]


@pytest.mark.parametrize(("severity", "priority"), [("critical", "P1"), ("warning", "P3"), ("info", "P5")])
def test_a_severity_is_a_priority(severity: str, priority: str) -> None:
    assert request(notification(changed(severity=severity)), PLAIN)[1]["priority"] == priority


def test_the_priorities_are_yours_and_p3_where_you_say_none() -> None:
    mine = Opsgenie(api_key=Secret(env="K"), priorities={"critical": "P2"})
    assert request(notification(), mine)[1]["priority"] == "P2"
    assert request(notification(changed(severity="info")), mine)[1]["priority"] == "P3"


def test_an_alias_is_quoted_in_the_path() -> None:
    path, _ = request(resolved(group="a/b?c=d e"), PLAIN)
    assert path == "/v2/alerts/a%2Fb%3Fc%3Dd%20e/close?identifierType=alias"


@pytest.mark.parametrize("given", [{"tags": ["x"] * 19}, {"tags": ["x" * 51]}, {"tags": [""]}, {"teams": ["t"] * 51}])
def test_what_opsgenie_would_refuse_is_refused_at_once(given: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="Opsgenie takes at most"):
        Opsgenie(api_key=Secret(env="K"), **given)
