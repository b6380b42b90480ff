"""The routes by which people act: what they take, from whom, how much, and what is in the log then."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import msgspec
import pytest
from aiohttp import ClientSession, web
from msgspec.structs import replace
from pydantic import SecretStr, ValidationError

from streammon.alert_log import AlertLog, follow
from streammon.broker import Broker, Outgoing
from streammon.broker.reading import read
from streammon.cli.notify import Callbacks
from streammon.commands import AnyCommand, Matcher
from streammon.config import CallbackSettings, Settings, WebSettings
from streammon.errors import Backpressure, ConfigError, Retryable
from streammon.telemetry import serve_http
from streammon_sinks.notify.pagerduty import dedup_key
from streammon_sinks.notify.secrets import Secret, SecretValue
from streammon_sinks.notify.slack import ACKNOWLEDGE, Slack
from streammon_sinks.web import commands
from streammon_sinks.web.commands import BURST, MAX_BODY_BYTES, Groups, Limit, callback_routes, command_routes
from streammon_sinks.web.overview import Board, Cause, Deed, People, Status, shown_alerts
from tests.people import NOON, ack, alert, opened, outgoing, quiet, record
from tests.support import eventually

ACK = {"type": "ack", "alert_id": "a", "transition": 1, "by": "ann", "note": "mine"}
SILENCE = {"type": "silence", "matchers": [{"label": "rule", "operator": "=", "value": "slow"}], "for_s": 3600}
SECRET = "s3cret-of-the-app"


class Site:
    """A server with the routes, over a real embedded log that holds the alert ``a`` in partition 2."""

    def __init__(self, broker: Broker, log: AlertLog, session: ClientSession) -> None:
        self.broker, self.log, self._session = broker, log, session
        self.groups, self.settings, self.now, self.port = Groups(), WebSettings(), time.time(), 0
        self.limit = Limit(lambda: self.now)

    def app(self, broker: Broker | None = None) -> web.Application:
        app, broker = web.Application(), broker or self.broker
        secret = SecretValue(SECRET)
        app.add_routes(command_routes(broker, self.log, self.settings, clock=lambda: self.now, limit=self.limit))
        app.add_routes(
            callback_routes(
                broker, self.log, self.groups, slack=secret, pagerduty=secret, clock=lambda: self.now, limit=self.limit
            )
        )
        return app

    async def post(self, body: Any, path: str = "/v1/commands", **headers: str) -> tuple[int, Any]:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        url = f"http://127.0.0.1:{self.port}{path}"
        sent = {"Content-Type": "application/json"} | {name.replace("_", "-"): value for name, value in headers.items()}
        async with self._session.post(url, data=data, headers=sent) as response:
            self.headers = response.headers
            text = await response.text()
            return response.status, json.loads(text) if text.startswith("{") else text

    async def written(self) -> list[tuple[int, AnyCommand]]:
        return [
            (each.partition, msgspec.json.decode(each.value or b"", type=AnyCommand))
            async for _, records in read(self.broker, ["commands"])
            for each in records
        ]


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    broker, log, stop = await opened(tmp_path, (alert("a"), 2)), AlertLog(), asyncio.Event()
    following = asyncio.create_task(follow(broker, log, stop=stop, poll_s=0.02))
    await eventually(lambda: log.complete, what="reading the alerts")
    async with ClientSession() as session:
        site = Site(broker, log, session)
        async with serve_http(site.app(), "127.0.0.1", 0) as site.port:
            yield site
    stop.set()
    await following
    await broker.close()


# -- commands ------------------------------------------------------------------------------------------


async def test_an_acknowledgement_of_the_page_is_written_beside_its_alert(site: Site) -> None:
    status, answer = await site.post(ACK)
    assert status == 202
    [(partition, command)] = await site.written()
    assert partition == 2
    assert answer == msgspec.to_builtins(command)
    assert command == ack("a", 1, site.now - NOON, id=command.id, via="page", note="mine")


async def test_a_silence_is_made_and_lifted_by_the_page(site: Site) -> None:
    status, made = await site.post(SILENCE | {"by": " ann "})
    assert (status, made["by"], made["via"]) == (202, "ann", "page")
    assert made["ends_unix_s"] - made["starts_unix_s"] == 3600
    await eventually(lambda: site.log.silences(), what="the silence")
    status, _ = await site.post({"type": "unsilence", "silence_id": made["id"], "by": "bob"})
    assert status == 202
    await eventually(lambda: site.log.silences()[0].lifted, what="its end")
    [silence] = site.log.silences()
    assert silence.silence.matchers == [Matcher(label="rule", operator="=", value="slow")]


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        (ACK | {"alert_id": "b"}, 404, "unknown"),
        (ACK | {"transition": 0}, 409, "changed"),
        ({"type": "unsilence", "silence_id": "s", "by": "ann"}, 404, "unknown"),
        (SILENCE | {"by": "ann", "for_s": 1e9}, 400, "too_long"),
        (SILENCE | {"by": "ann", "for_s": -1}, 400, "too_long"),
        (SILENCE | {"by": "ann", "matchers": []}, 400, "invalid_event"),
        (SILENCE | {"by": "ann", "matchers": [{"label": "a", "operator": "=~", "value": "("}]}, 400, "invalid_event"),
        (ACK | {"by": " "}, 400, "invalid_event"),
        (ACK | {"by": "\x1b[2J"}, 400, "invalid_event"),
        (ACK | {"by": "x" * 201}, 400, "invalid_event"),
        (ACK | {"via": "cli"}, 400, "invalid_event"),
        (ACK | {"type": "approve"}, 400, "invalid_event"),
        (b"", 400, "invalid_event"),
        (b"\xff", 400, "invalid_event"),
        (b"[" * 60_000, 400, "invalid_event"),
        (b"x" * (MAX_BODY_BYTES + 1), 413, "too_large"),
    ],
)
async def test_what_is_no_command_or_makes_no_sense_is_refused_and_not_written(
    site: Site, body: Any, status: int, reason: str
) -> None:
    found, answer = await site.post(body)
    assert (found, answer["reason"]) == (status, reason), answer
    assert answer["detail"]
    assert await site.written() == []


async def test_the_second_is_told_who_was_first(site: Site) -> None:
    await site.post(ACK)
    await eventually(lambda: site.log.told, what="the first")
    status, answer = await site.post(ACK | {"by": "bob"})
    assert (status, answer["reason"]) == (409, "acknowledged")
    assert "already by ann" in answer["detail"]


# -- from whom -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 202),  # no browser
        ({"Origin": "http://127.0.0.1:{port}"}, 202),
        ({"Origin": "https://monitor.example.com"}, 202),  # web.origins
        ({"Origin": "http://localhost:{port}", "Host": "localhost:{port}"}, 202),
        ({"Origin": "http://[::1]:{port}", "Host": "[::1]:{port}"}, 202),
        ({"Origin": "http://evil.example.com"}, 403),
        ({"Origin": "http://evil.example.com:{port}", "Host": "evil.example.com:{port}"}, 403),  # made to lead here
        ({"Origin": "http://127.0.0.1:1"}, 403),  # another program's page
        ({"Origin": "null"}, 403),
        ({"Origin": "http://[bad"}, 403),
        ({"Content-Type": "text/plain"}, 415),  # what a form can send
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
    ],
)
async def test_pages_of_others_cannot_act(site: Site, headers: dict[str, str], status: int) -> None:
    site.settings = WebSettings(origins=("https://monitor.example.com",))
    async with serve_http(site.app(), "127.0.0.1", 0) as site.port:
        given = {name: value.format(port=site.port) for name, value in headers.items()}
        found, _ = await site.post(ACK, **given)
    assert found == status
    assert len(await site.written()) == (status == 202)


# -- how much, and when the broker is away -------------------------------------------------------------


async def test_more_than_people_press_is_sent_away_until_later(site: Site) -> None:
    for _ in range(BURST):
        assert (await site.post(ACK | {"alert_id": "none"}))[0] == 404
    assert (await site.post(ACK))[0] == 429
    assert site.headers["Retry-After"] == "1"
    site.now += 0.5
    assert (await site.post(ACK))[0] == 202


async def test_before_the_alerts_are_read_nothing_can_be_said_about_them(site: Site) -> None:
    site.log.complete = False
    assert (await site.post(ACK))[0] == 429
    assert await site.written() == []


@pytest.mark.parametrize(("error", "status"), [(Retryable("away"), 503), (Backpressure("full", 7), 429)])
async def test_a_broker_that_is_away_is_said_with_when_to_come_back(site: Site, error: Exception, status: int) -> None:
    class Away:
        async def append(self, records: list[Outgoing]) -> None:
            raise error

    away: Any = Away()
    async with serve_http(site.app(away), "127.0.0.1", 0) as site.port:
        assert (await site.post(ACK))[0] == status
        assert site.headers["Retry-After"] in ("1", "7")


# -- call-backs ----------------------------------------------------------------------------------------


def slack_press(site: Site, told: list[tuple[str, int]], secret: str = SECRET) -> tuple[bytes, dict[str, str]]:
    action = {"action_id": ACKNOWLEDGE, "action_ts": "1", "value": json.dumps(told)}
    payload = {"type": "block_actions", "user": {"id": "U1", "username": "ann"}, "actions": [action]}
    body = urlencode({"payload": json.dumps(payload)}).encode()
    stamp = str(int(site.now))
    signature = hmac.new(secret.encode(), b"v0:" + stamp.encode() + b":" + body, hashlib.sha256).hexdigest()
    signed = {"X-Slack-Request-Timestamp": stamp, "X-Slack-Signature": f"v0={signature}"}
    return body, signed | {"Content-Type": "application/x-www-form-urlencoded"}


async def test_a_press_in_slack_is_an_acknowledgement(site: Site) -> None:
    body, headers = slack_press(site, [("a", 1), ("forgotten", 1)])
    assert (await site.post(body, "/v1/callbacks/slack", **headers))[0] == 200
    [(partition, command)] = await site.written()
    assert (partition, command.by, command.via) == (2, "ann (U1)", "slack")


async def test_an_acknowledged_incident_acknowledges_what_its_group_holds(site: Site) -> None:
    told = {"group": "g1", "alerts": [{"id": "a"}, {"id": "gone"}]}
    site.groups.add("notifications", record(json.dumps(told).encode()))
    event = {
        "id": "e1", "event_type": "incident.acknowledged", "occurred_at": "2033-01-01T00:00:00Z",
        "agent": {"id": "P1", "summary": "Ann"}, "data": {"incident_key": dedup_key("g1")},
    }  # fmt: skip
    body = json.dumps({"event": event}).encode()
    signed = {"X-PagerDuty-Signature": "v1=" + hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()}
    assert (await site.post(body, "/v1/callbacks/pagerduty", **signed))[0] == 200
    [(partition, command)] = await site.written()
    assert (partition, command.by, command.via) == (2, "Ann (P1)", "pagerduty")


async def test_a_callback_that_is_not_signed_is_refused_and_costs_nobody_his_turn(site: Site) -> None:
    body, headers = slack_press(site, [("a", 1)], secret="another")
    for _ in range(BURST + 1):
        assert (await site.post(body, "/v1/callbacks/slack", **headers))[0] == 401
    assert (await site.post(b"{}", "/v1/callbacks/pagerduty"))[0] == 401
    large = b"x" * (commands.MAX_CALLBACK_BYTES + 1)
    assert (await site.post(large, "/v1/callbacks/slack", **headers))[0] == 413
    assert await site.written() == []
    body, headers = slack_press(site, [("a", 1)])
    assert (await site.post(body, "/v1/callbacks/slack", **headers))[0] == 200


@pytest.mark.parametrize(
    ("path", "header", "status"),
    [
        ("callbacks/pagerduty", "X-PagerDuty-Signature", 401),
        ("callbacks/slack", "X-Slack-Signature", 401),
        ("callbacks/slack", "X-Slack-Request-Timestamp", 401),
        ("commands", "Origin", 403),
    ],
)
async def test_a_header_of_any_bytes_is_answered(site: Site, path: str, header: str, status: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", site.port)
    length = "Host: x\r\nContent-Type: application/json\r\nContent-Length: 2\r\nConnection: close"
    writer.write(f"POST /v1/{path} HTTP/1.1\r\n{length}\r\n{header}: v0=v1=".encode() + b"\xff\xfe\r\n\r\n{}")
    answer = await reader.read()
    writer.close()
    assert answer.startswith(f"HTTP/1.1 {status} ".encode()), answer[:200]


async def test_a_press_about_many_alerts_is_one_and_too_many_presses_are_sent_away(site: Site) -> None:
    many = [(f"a{n}", 1) for n in range(BURST + 1)]
    await site.broker.append([outgoing("alerts", id_, alert(id_), 1) for id_, _ in many])
    await eventually(lambda: len(site.log.alerts) > BURST, what="the alerts")
    body, headers = slack_press(site, many)
    assert (await site.post(body, "/v1/callbacks/slack", **headers))[0] == 200
    assert len(await site.written()) == BURST + 1
    body, headers = slack_press(site, [("a", 1)])
    answers = [(await site.post(body, "/v1/callbacks/slack", **headers))[0] for _ in range(BURST)]
    assert answers == [200] * (BURST - 1) + [429]


async def test_without_a_secret_there_is_no_callback(site: Site) -> None:
    assert callback_routes(site.broker, site.log, site.groups, slack=None, pagerduty=None) == []
    one = callback_routes(site.broker, site.log, site.groups, slack=SecretValue("x"), pagerduty=None)
    assert [route.path for route in one] == ["/v1/callbacks/slack"]


def test_up_and_notify_hear_those_whose_secret_is_configured_in_a_file_too(site: Site, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(f"{SECRET}\n")
    given = {
        (): CallbackSettings(),
        ("/v1/callbacks/slack",): CallbackSettings(slack_signing_secret_file=tmp_path / "secret"),
        ("/v1/callbacks/pagerduty",): CallbackSettings(pagerduty_signing_secret=SecretStr(SECRET)),
    }
    for paths, settings in given.items():
        callbacks = Callbacks.of(Settings(callbacks=settings), {})
        assert tuple(route.path for route in callbacks.routes(site.broker, site.log, site.groups)) == paths
        assert tuple(route.path for route in callbacks.late_routes()) == paths
        assert bool(callbacks.pagerduty) == ("/v1/callbacks/pagerduty" in paths)
    with pytest.raises(ValidationError, match="remove one of them"):
        CallbackSettings(slack_signing_secret=SecretStr(SECRET), slack_signing_secret_file=tmp_path / "secret")
    with pytest.raises(ConfigError, match=r"callbacks\.slack_signing_secret_file"):
        Callbacks.of(Settings(callbacks=CallbackSettings(slack_signing_secret_file=tmp_path / "no")), {})


def test_the_secret_of_a_channel_is_that_of_its_call_backs_and_two_are_refused(tmp_path: Path) -> None:
    for name in ("one", "other"):
        (tmp_path / name).write_text(name)

    def slack(secret: str) -> Slack:
        here = Secret(file=str(tmp_path / "one"))
        return Slack(webhook_url=here, signing_secret=Secret(file=str(tmp_path / secret)))

    callbacks = Callbacks.of(Settings(), {"a": slack("one"), "b": slack("one")})
    assert callbacks.slack
    assert callbacks.slack.reveal() == "one"
    with pytest.raises(ConfigError, match=r"channels a, b have different signing_secrets"):
        Callbacks.of(Settings(), {"a": slack("one"), "b": slack("other")})
    settings = Settings(callbacks=CallbackSettings(slack_signing_secret=SecretStr("this")))
    given = Callbacks.of(settings, {"a": slack("one"), "b": slack("other")}).slack
    assert given
    assert given.reveal() == "this"


def test_groups_are_bounded_and_the_newest_message_about_one_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "MAX_GROUPS", 2)
    groups, log = Groups(), AlertLog()
    for id_ in ("a", "b"):
        log.add("alerts", record(alert(id_)))
    for group, ids in (("g1", "a"), ("g2", "a"), ("g1", "ab"), ("g3", "b")):
        told = {"group": group, "alerts": [{"id": id_} for id_ in ids]}
        groups.add("notifications", record(json.dumps(told).encode()))
    groups.add("notifications", record(b"{"))
    found = {name: [each.id for each in groups.alerts_of(log, dedup_key(name))] for name in ("g1", "g2", "g3")}
    assert found == {"g1": ["a", "b"], "g2": [], "g3": ["b"]}


# -- what the page is told -----------------------------------------------------------------------------


def test_the_page_is_told_who_works_on_what_and_what_is_silenced() -> None:
    log = AlertLog()
    alerts = [alert("a", 2, "acknowledged"), alert("b", labels={"service": "mail"}), alert("c", 2, "resolved")]
    said: list[AnyCommand] = [ack("a", at=5), ack("b", at=9, by="bob", via="slack"), quiet("s", note="deploy")]
    for offset, each in enumerate(said):
        log.add("commands", record(each, offset))
    people = People(log, log.active_silences(NOON + 10), log.version)
    found = Board(900, 2.0).overview(NOON + 10, Status(consumer_lag=0), alerts, people)
    assert found.can_act
    assert found.acknowledged == {
        "a": Deed(by="ann", via="cli", time_unix_s=NOON + 5),
        "b": Deed(by="bob", via="slack", time_unix_s=NOON + 9, waiting=True),
    }
    assert found.silenced == {"a": "s"}
    [silence] = found.silences
    assert (silence.matchers, silence.by, silence.note) == (['service="shop"'], "ann", "deploy")


def test_of_the_evidence_the_page_is_told_the_likely_causes_alone_and_bounded() -> None:
    causes = [{"what": "w" * 600, "why": "a deploy", "score": 0.9, "lag_s": 60.0}, *[{"what": "x", "why": "y"}] * 9]
    [shown] = shown_alerts([alert("a", evidence={"causes": causes, "window": {"count": 1}})])
    [first, *others] = shown.evidence["causes"]
    assert first == Cause("w" * 500, "a deploy", 0.9, 60.0)
    assert len(others) == 4
    odds: list[dict[str, Any]] = [{"causes": "none"}, {"causes": [{"what": 1}]}, {"causes": []}, {}]
    for odd in odds:
        [shown] = shown_alerts([replace(alert("a"), evidence=odd)])
        assert shown.evidence == {}


async def test_an_alert_that_the_log_got_since_can_be_acknowledged(site: Site) -> None:
    await site.broker.append([outgoing("alerts", "new", alert("new"), 3)])
    await eventually(lambda: "new" in site.log.alerts, what="the alert")
    assert (await site.post(ACK | {"alert_id": "new"}))[0] == 202
    assert [partition for partition, _ in await site.written()] == [3]
