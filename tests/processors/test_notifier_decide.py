"""The notifier's decisions, page by page: what people are told, and what they are spared."""

from __future__ import annotations

import base64
import random
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streammon.broker import Outgoing
from streammon.commands import AnyCommand, Silence, Unsilence, matcher
from streammon.errors import ConfigError
from streammon.notifications import Delivery, Notification
from streammon.results import Alert, Cause, Evidence
from streammon.tick import TICK
from streammon.topics import LARGE_RECORD_BYTES
from streammon_processors.contract import Stored
from streammon_processors.notifier import DecideTask, Plan, load_plan
from streammon_processors.notifier.causes import MOST_CAUSES
from streammon_processors.notifier.groups import Group

T0 = 1_700_000_000.0
RANKS = {"critical": 0, "warning": 1, "info": 2}


def plan(text: str, tmp_path: Path) -> Plan:
    file = tmp_path / "notify.yaml"
    file.write_text(text)
    return load_plan(file)


def alert(id_: str = "a1", state: str = "firing", transition: int | None = None, **fields: Any) -> Alert:
    defaults: dict[str, Any] = {
        "rule": "slow",
        "rule_version": "1",
        "severity": "warning",
        "labels": {"service": "shop"},
        "value": 1.0,
        "condition": "p99 > 1 s",
        "summary": "shop is slow",
        "started_unix_s": T0,
        "updated_unix_s": T0,
    }
    if transition is None:
        transition = {"firing": 1, "acknowledged": 2, "no_data": 2, "resolved": 3}[state]
    return Alert(id=id_, state=state, transition=transition, **(defaults | fields))  # type: ignore[arg-type]


def silence(*matchers: str, starts: float = 0.0, ends: float = 1e6, id_: str = "s1") -> Silence:
    return Silence(
        id=id_,
        time_unix_s=T0,
        by="ann",
        matchers=[matcher(each) for each in matchers],
        starts_unix_s=T0 + starts,
        ends_unix_s=T0 + ends,
    )


def evidence(id_: str = "a1", *causes: str, transition: int = 1, **fields: Any) -> Evidence:
    found = [
        Cause(what=each, why="20 s before the onset", kind="deploy", score=0.9, at_unix_s=T0 - 20, lag_s=20.0)
        for each in causes or ("deploy of shop 3",)
    ]
    defaults: dict[str, Any] = {"onset_unix_s": T0, "made_unix_s": T0 + 3, "causes": found}
    return Evidence(alert_id=id_, transition=transition, **(defaults | fields))


class Desk:
    """A decision task, its clock, and what it has told since it was last asked."""

    def __init__(self, plan_: Plan | None = None) -> None:
        self.plan = plan_ or Plan()
        self.task = DecideTask(self.plan, 0)
        self.now = 0.0
        self.offset = 0
        self.all: list[Notification] = []

    def page(self, *pages: Alert | AnyCommand | Delivery | Evidence, at: float | None = None) -> list[Notification]:
        self.now = self.now if at is None else at
        return self._give([msgspec.json.encode(page) for page in pages])

    def pass_time(self, to: float, step: float = 0.5) -> list[Notification]:
        """With ticks, as the runtime writes them."""
        told: list[Notification] = []
        while self.now < to:
            self.now = min(to, self.now + step)
            told += self._give([TICK])
        return told

    def restart(self, plan_: Plan | None = None) -> None:
        snapshot = self.task.snapshot()
        self.plan = plan_ or self.plan
        self.task = DecideTask(self.plan, 0)
        self.task.restore(snapshot)

    def _give(self, values: Sequence[bytes]) -> list[Notification]:
        records = [Stored(value, self.offset + i, round((T0 + self.now) * 1000)) for i, value in enumerate(values)]
        self.offset += len(values)
        told = decoded(self.task.process("pages", records))
        self.all += told
        return told


def decoded(outputs: Iterable[Outgoing]) -> list[Notification]:
    return [msgspec.json.decode(output.value or b"", type=Notification) for output in outputs]


def gist(told: Iterable[Notification]) -> list[tuple[str, str, str, list[str]]]:
    return [(each.channel, each.cause, each.status, [alert.id for alert in each.alerts]) for each in told]


def why(told: Notification) -> dict[str, list[str]]:
    """The causes in a message, by alert."""
    return {each.id: [cause["what"] for cause in each.evidence.get("causes", ())] for each in told.alerts}


def escalations(told: Iterable[Notification]) -> list[tuple[str, float]]:
    return [(each.channel, each.created_unix_s - T0) for each in told if each.cause == "escalation"]


# --- group, wait, repeat, end ---------------------------------------------------------------------------------------


def test_a_group_gathers_and_is_told_once() -> None:
    desk = Desk()
    assert desk.page(alert("a1"), alert("a2", severity="critical")) == []
    assert desk.pass_time(9.5) == []
    assert gist(desk.pass_time(10.0)) == [("console", "new", "firing", ["a2", "a1"])]
    assert desk.pass_time(3600) == []


def test_without_a_wait_an_alert_is_told_with_the_page_itself(tmp_path: Path) -> None:
    desk = Desk(plan("route: {group_wait: 0}", tmp_path))
    assert gist(desk.page(alert())) == [("console", "new", "firing", ["a1"])]


def test_the_end_is_told_after_the_interval_and_the_next_life_has_another_name() -> None:
    desk = Desk()
    desk.page(alert())
    (first,) = desk.pass_time(12)
    desk.page(alert(state="resolved"), at=20)
    assert desk.pass_time(69) == []
    (ended,) = desk.pass_time(71)
    assert (ended.cause, ended.status, ended.group) == ("resolved", "resolved", first.group)
    desk.pass_time(300)
    desk.page(alert("a2"))
    (second,) = desk.pass_time(320)
    assert second.cause == "new"
    assert second.group != first.group
    assert len({each.id for each in desk.all}) == len(desk.all)


def test_what_ends_before_it_was_told_is_not_told() -> None:
    desk = Desk()
    desk.page(alert(), alert(state="resolved"))
    assert desk.pass_time(600) == []
    assert not desk.task.waiting


def test_a_firing_group_is_repeated_until_somebody_acknowledges() -> None:
    desk = Desk()
    desk.page(alert())
    desk.pass_time(11)
    assert gist(desk.pass_time(4 * 3600 + 15, step=5)) == [("console", "repeat", "firing", ["a1"])]
    desk.page(alert(state="acknowledged"))
    (acknowledged,) = desk.pass_time(desk.now + 61)
    assert (acknowledged.cause, acknowledged.alerts[0].state) == ("changed", "acknowledged")
    assert desk.pass_time(20 * 3600, step=60) == []
    assert gist(desk.page(alert(state="resolved"))) == [("console", "resolved", "resolved", ["a1"])]


def test_a_restart_while_firing_tells_nothing_again_and_the_end_is_still_told() -> None:
    desk = Desk()
    desk.page(alert())
    desk.restart()
    assert len(desk.pass_time(11)) == 1
    desk.restart()
    assert desk.page(alert()) == []
    assert desk.pass_time(100) == []
    desk.restart()
    assert gist(desk.page(alert(state="resolved"))) == [("console", "resolved", "resolved", ["a1"])]
    desk.restart()
    assert desk.page(alert(state="resolved")) == []
    assert desk.pass_time(1000) == []


def test_a_new_alert_in_a_told_group_waits_for_the_interval_and_a_worse_one_does_not() -> None:
    desk = Desk()
    desk.page(alert("a1"))
    desk.pass_time(11)
    desk.page(alert("a2"))
    assert desk.pass_time(69) == []
    assert gist(desk.pass_time(71)) == [("console", "changed", "firing", ["a2", "a1"])]
    assert gist(desk.page(alert("a3", severity="critical"))) == [("console", "changed", "firing", ["a3", "a1", "a2"])]
    assert desk.page(alert("a4", severity="critical")) == []


def test_worse_severity_of_a_told_alert_is_told_at_once_and_ends_its_acknowledgement() -> None:
    desk = Desk()
    desk.page(alert())
    desk.pass_time(11)
    desk.page(alert(state="acknowledged"))
    desk.pass_time(80)
    (worse,) = desk.page(alert(severity="critical", transition=3))
    assert (worse.cause, worse.severity, worse.alerts[0].state) == ("changed", "critical", "firing")
    assert [each.cause for each in desk.pass_time(80 + 4 * 3600 + 60, step=5)] == ["repeat"]


def test_a_flapping_series_opens_and_closes_once_an_interval_at_most() -> None:
    desk = Desk()
    for number in range(120):
        desk.page(alert(f"a{number}"), at=10.0 * number)
        desk.pass_time(desk.now + 5)
        desk.page(alert(f"a{number}", state="resolved"))
    desk.pass_time(1400)
    times = [each.created_unix_s for each in desk.all]
    assert 2 <= len(times) <= 1400 / 60
    assert all(later - earlier >= 60.0 for earlier, later in pairwise(times))
    assert desk.all[-1].status == "resolved"


def test_groups_are_by_the_labels_that_the_route_names(tmp_path: Path) -> None:
    desk = Desk(plan("route: {group_by: [service], group_wait: 1s}", tmp_path))
    desk.page(alert("a1", rule="x"), alert("a2", rule="y"), alert("a3", labels={"service": "bank"}))
    told = desk.pass_time(2)
    assert gist(told) == [("console", "new", "firing", ["a1", "a2"]), ("console", "new", "firing", ["a3"])]
    assert [each.group_labels for each in told] == [{"service": "shop"}, {"service": "bank"}]


def test_by_all_labels_a_flapping_series_is_still_one_group(tmp_path: Path) -> None:
    desk = Desk(plan("route: {group_by: ['...'], group_wait: 1s}", tmp_path))
    for number in range(10):  # each time under another id
        desk.page(alert(f"a{number}"), at=10.0 * number)
        desk.pass_time(desk.now + 5)
        desk.page(alert(f"a{number}", state="resolved"))
    desk.pass_time(300)
    assert len(desk.all) <= 4
    assert "alert_id" not in desk.all[0].group_labels


def test_what_is_pending_is_told_to_nobody_whoever_wrote_it() -> None:
    desk = Desk()
    desk.page(alert(state="pending", transition=0))
    assert desk.pass_time(100) == []
    assert not desk.task.waiting


def test_a_route_to_nobody_tells_nothing_and_forgets_what_has_ended(tmp_path: Path) -> None:
    desk = Desk(plan("route: {to: []}", tmp_path))
    empty = len(desk.task.snapshot())
    for number in range(5):
        desk.page(alert(f"a{number}"))
        desk.pass_time(desk.now + 100)
        desk.page(alert(f"a{number}", state="resolved"))
        desk.pass_time(desk.now + 200)
    assert desk.all == []
    assert not desk.task.waiting
    assert len(desk.task.snapshot()) < empty + 120


@pytest.mark.parametrize("field", ["group_interval", "repeat_interval"])
def test_an_interval_without_end_of_messages_is_refused(tmp_path: Path, field: str) -> None:
    with pytest.raises(ConfigError, match=rf"notify.yaml:2:.*`{field}`: 0"):
        plan(f"route:\n  {field}: 0", tmp_path)


# --- routes ---------------------------------------------------------------------------------------------------------

CHANNELS = "channels: {chat: {type: x}, page: {type: x}, boss: {type: x}, log: {type: x}}"
ROUTES = f"""
{CHANNELS}
route:
  to: [chat]
  group_wait: 1s
  routes:
    - {{matchers: ['service="bank"'], to: [log], continue: true}}
    - matchers: ['severity="critical"']
      to: [page, chat]
      escalate: [{{after: 15m, to: [boss]}}]
"""


def test_routes_are_a_tree_with_what_they_inherit(tmp_path: Path) -> None:
    desk = Desk(plan(ROUTES, tmp_path))
    desk.page(
        alert("a1"), alert("a2", severity="critical"), alert("a3", severity="critical", labels={"service": "bank"})
    )
    told = desk.pass_time(2)
    assert sorted((each.channel, each.alerts[0].id) for each in told) == [
        ("chat", "a1"), ("chat", "a2"), ("chat", "a3"), ("log", "a3"), ("page", "a2"), ("page", "a3"),
    ]  # fmt: skip


def test_escalation_goes_to_more_people_once_and_they_are_told_the_end(tmp_path: Path) -> None:
    desk = Desk(plan(ROUTES, tmp_path))
    desk.page(alert(severity="critical"))
    desk.pass_time(2)
    assert gist(desk.pass_time(3000, step=1)) == [("boss", "escalation", "firing", ["a1"])]
    told = desk.page(alert(severity="critical", state="resolved"))
    assert [(each.channel, each.status) for each in told] == [(name, "resolved") for name in ("page", "chat", "boss")]


def test_acknowledged_in_time_nobody_else_is_told(tmp_path: Path) -> None:
    desk = Desk(plan(ROUTES, tmp_path))
    desk.page(alert(severity="critical"))
    desk.pass_time(600, step=1)
    desk.page(alert(severity="critical", state="acknowledged"))
    assert "boss" not in {each.channel for each in desk.pass_time(4000, step=1)}


def test_worse_after_it_was_acknowledged_escalation_starts_anew_level_by_level(tmp_path: Path) -> None:
    steps = "escalate: [{after: 5m, to: [boss]}, {after: 15m, to: [log]}]"
    desk = Desk(plan(f"{CHANNELS}\nroute: {{to: [chat], group_wait: 1s, {steps}}}", tmp_path))
    desk.page(alert())
    assert escalations(desk.pass_time(1000, step=1)) == [("boss", 301.0), ("log", 901.0)]
    desk.page(alert(state="acknowledged"))
    assert escalations(desk.pass_time(5000, step=1)) == []
    desk.page(alert(severity="critical", transition=3, updated_unix_s=T0 + 5000))
    assert escalations(desk.pass_time(7000, step=1)) == [("boss", 5300.0), ("log", 5900.0)]


def test_an_acknowledgement_counts_even_if_it_is_over_before_it_was_told(tmp_path: Path) -> None:
    desk = Desk(plan(ROUTES, tmp_path))
    desk.page(alert(severity="critical"))
    desk.pass_time(880)
    desk.page(alert(severity="critical", labels={"service": "shop", "n": "2"}, id_="a2"))
    desk.pass_time(890)
    again = alert(severity="critical", state="no_data", transition=3, updated_unix_s=T0 + 890)
    desk.page(alert(severity="critical", state="acknowledged"), again)
    told = desk.pass_time(2500, step=1)
    assert [each.cause for each in told if each.channel == "boss"] == ["escalation"]


def test_an_alert_that_becomes_critical_is_told_to_those_of_its_new_route(tmp_path: Path) -> None:
    desk = Desk(plan(ROUTES, tmp_path))
    desk.page(alert())
    desk.pass_time(100)
    desk.page(alert(severity="critical", transition=2))
    assert {each.channel for each in desk.pass_time(200)} == {"page", "chat"}
    ended = desk.page(alert(severity="critical", state="resolved"))
    assert sorted((each.channel, each.status) for each in ended) == [
        ("chat", "resolved"), ("chat", "resolved"), ("page", "resolved"),
    ]  # fmt: skip


def test_by_a_new_file_who_was_told_is_told_the_end_and_new_people_are_told_now(tmp_path: Path) -> None:
    desk = Desk(plan(ROUTES, tmp_path))
    desk.page(alert())
    desk.pass_time(2)
    desk.restart(plan("channels: {chat: {type: x}, page: {type: x}}\nroute: {to: [page], group_by: [rule]}", tmp_path))
    assert gist(desk.pass_time(20)) == [("page", "new", "firing", ["a1"])]
    desk.page(alert(state="resolved"))
    assert sorted((each.channel, each.status) for each in desk.pass_time(100)) == [
        ("chat", "resolved"), ("page", "resolved"),
    ]  # fmt: skip


def test_a_muted_route_tells_what_still_fires_when_the_time_is_over_and_ends_at_once(tmp_path: Path) -> None:
    text = """
route: {group_wait: 1s, mute: [night]}
time_intervals: {night: [{times: ["22:00-22:30"]}]}
"""
    desk = Desk(plan(text, tmp_path))  # T0 is 22:13:20
    desk.page(alert("a1"), alert("a2", labels={"service": "bank"}))
    desk.page(alert("a2", state="resolved", labels={"service": "bank"}), at=60)
    assert desk.pass_time(999) == []
    assert gist(desk.pass_time(1001)) == [("console", "new", "firing", ["a1"])]


# --- silences -------------------------------------------------------------------------------------------------------


def test_silenced_from_the_start_neither_beginning_nor_end_is_told() -> None:
    desk = Desk()
    desk.page(silence('service="shop"'), alert())
    desk.pass_time(100)
    desk.page(alert(state="resolved"))
    desk.pass_time(300)
    assert desk.all == []


def test_an_alert_that_resolves_under_a_silence_resolves_everywhere() -> None:
    desk = Desk()
    desk.page(alert())
    desk.pass_time(100)
    desk.page(silence('rule="slow"'))
    assert desk.pass_time(5 * 3600, step=30) == []
    assert gist(desk.page(alert(state="resolved"))) == [("console", "resolved", "resolved", ["a1"])]


def test_what_gets_worse_under_a_silence_is_told_when_that_ends() -> None:
    desk = Desk()
    desk.page(alert())
    desk.pass_time(11)
    desk.page(silence('rule="slow"', ends=300.0))
    desk.page(alert(severity="critical", transition=2), at=100)
    assert desk.pass_time(300) == []
    (told,) = desk.pass_time(302)
    assert (told.cause, told.severity) == ("changed", "critical")


def test_what_is_silenced_while_its_group_ends_is_another_group_later() -> None:
    desk = Desk()
    desk.page(alert("a1"))
    desk.pass_time(11)
    desk.page(silence('n="2"', ends=500.0), alert("a2", labels={"service": "shop", "n": "2"}))
    desk.page(alert("a1", state="resolved"), at=100)
    assert [each.status for each in desk.pass_time(499)] == []
    told = desk.pass_time(520)
    assert gist(told) == [("console", "new", "firing", ["a2"])]
    assert told[0].group != desk.all[0].group


def test_silences_of_long_ago_leave_room_for_those_that_hold() -> None:
    desk = Desk()
    for number in range(600):
        desk.page(silence('rule="slow"', starts=-1000.0, ends=-500.0, id_=f"s{number}"))
    desk.page(silence('rule="slow"', id_="new"), alert())
    assert desk.pass_time(100) == []


@pytest.mark.parametrize("early", [True, False])
def test_a_silence_that_ends_while_an_alert_fires_tells_it(early: bool) -> None:
    desk = Desk()
    desk.page(silence('alert_id="a1"', ends=200.0), alert("a1"), alert("a2", rule="other"))
    assert gist(desk.pass_time(100)) == [("console", "new", "firing", ["a2"])]
    if early:
        desk.page(Unsilence(id="u1", time_unix_s=T0, by="ann", silence_id="s1"))
    told = desk.pass_time(102.0 if early else 202.0)
    assert gist(told) == [("console", "new", "firing", ["a1"])]


def test_an_unsilence_that_overtakes_its_silence_counts() -> None:
    desk = Desk()
    desk.page(Unsilence(id="u1", time_unix_s=T0, by="ann", silence_id="s1"), silence('service="shop"'), alert())
    assert len(desk.pass_time(11)) == 1


def test_a_silence_for_later_keeps_quiet_then() -> None:
    desk = Desk()
    desk.page(silence('service="shop"', starts=100.0, ends=200.0))
    desk.pass_time(150)
    desk.page(alert())
    assert desk.pass_time(199) == []
    assert len(desk.pass_time(202)) == 1


# --- inhibition -----------------------------------------------------------------------------------------------------

INHIBIT = """
route: {group_wait: 5s}
inhibit: [{source: ['rule="host-down"'], target: ['severity="warning"'], equal: [host]}]
"""


def test_what_another_alert_explains_is_told_when_that_is_over_and_it_still_fires(tmp_path: Path) -> None:
    desk = Desk(plan(INHIBIT, tmp_path))
    down: dict[str, Any] = {"rule": "host-down", "severity": "critical", "labels": {"host": "h1"}}
    desk.page(alert("w1", labels={"host": "h1"}), alert("w2", labels={"host": "h2"}, rule="other"), alert("d", **down))
    assert sorted(each.alerts[0].id for each in desk.pass_time(100)) == ["d", "w2"]
    told = desk.page(alert("d", state="resolved", **down)) + desk.pass_time(110)
    assert sorted((each.cause, each.alerts[0].id) for each in told) == [("new", "w1"), ("resolved", "d")]


def test_an_alert_told_and_then_inhibited_is_told_its_end(tmp_path: Path) -> None:
    desk = Desk(plan(INHIBIT, tmp_path))
    desk.page(alert("w1", labels={"host": "h1"}))
    desk.pass_time(100)
    desk.page(alert("d", rule="host-down", severity="critical", labels={"host": "h1"}))
    assert [each.alerts[0].id for each in desk.pass_time(5 * 3600, step=30)] == ["d", "d"]  # new, and its repeat
    assert gist(desk.page(alert("w1", state="resolved", labels={"host": "h1"})))[0][1:] == (
        "resolved",
        "resolved",
        ["w1"],
    )


# --- old logs -------------------------------------------------------------------------------------------------------


def test_at_a_first_start_on_an_old_log_what_fires_is_told_and_what_has_ended_is_not() -> None:
    desk = Desk()
    old: dict[str, Any] = {"started_unix_s": T0 - 9000, "updated_unix_s": T0 - 8000}
    for number in range(40):  # longer than a group waits
        desk.page(alert(f"a{number}", labels={"service": f"s{number % 3}"}, **old), at=float(number))
    for number in range(1, 40):
        desk.page(
            alert(f"a{number}", state="resolved", labels={"service": f"s{number % 3}"}, **old), at=40.0 + number / 10
        )
    assert gist(desk.pass_time(120)) == [("console", "new", "firing", ["a0"])]


# --- storms ---------------------------------------------------------------------------------------------------------


def storm(count: int, **fields: Any) -> Iterator[Alert]:
    for number in range(count):
        labels = {"service": f"service-{number}", "model": f"model-{number % 7}"}
        evidence = {"windows": [{"p99": number / 7}] * 30}
        yield alert(
            f"{number:032x}", labels=labels, evidence=evidence, severity=["warning", "critical"][number % 2], **fields
        )


@pytest.mark.parametrize("seconds", [5.0, 300.0])
def test_ten_thousand_alerts_are_at_most_twenty_notifications_and_none_is_lost(seconds: float) -> None:
    desk = Desk()
    count = 10_000
    for number, each in enumerate(storm(count)):
        desk.page(each, at=number / count * seconds)
    desk.pass_time(seconds + 400)
    told_before = {each.group: len(each.alerts) + each.omitted for each in desk.all}
    assert sum(told_before.values()) == count
    for number, each in enumerate(storm(count, state="resolved")):
        desk.page(each, at=seconds + 400 + number / count * seconds)
    desk.pass_time(2 * seconds + 1500)
    assert len(desk.all) <= 20
    assert [each for each in desk.all if each.status == "firing"]
    last = {each.group: each.status for each in desk.all}
    assert set(last.values()) == {"resolved"}
    assert not desk.task.waiting
    assert max(len(msgspec.json.encode(each)) for each in desk.all) < 900_000


def test_a_storm_after_a_storm_that_goes_on_is_told_as_soon_as_another_group() -> None:
    desk = Desk()

    def of_storm() -> list[Notification]:
        return [each for each in desk.all if each.group_labels == {}]

    for each in storm(1000):
        desk.page(each)
    desk.pass_time(100)
    assert len(of_storm()) == 1
    for each in list(storm(1000, state="resolved"))[:-1]:  # one goes on, and the storm with it
        desk.page(each, at=110.0)
    for each in list(storm(2000))[1000:]:
        desk.page(each, at=120.0)
    desk.pass_time(120 + 60)
    grown = of_storm()[1:]
    assert [each.cause for each in grown] == ["changed"]
    assert len(grown[0].alerts) + grown[0].omitted >= 1000
    for each in list(storm(2500))[2000:]:  # people know of more than that: it is told with the next regular message
        desk.page(each, at=190.0)
    told_at = grown[0].created_unix_s - T0
    desk.pass_time(told_at + 5 * 60 - 1)
    assert len(of_storm()) == 2
    desk.pass_time(told_at + 5 * 60 + 1)
    assert len(of_storm()) == 3


def test_a_storm_that_nobody_may_hear_of_costs_no_more_than_another(tmp_path: Path) -> None:
    """Looking at a group takes as long as it is large: with every page, that was the square of it."""
    inhibit = "inhibit: [{source: ['rule=\"down\"'], target: ['rule=\"slow\"']}]"
    desk = Desk(plan(f"route: {{group_by: [], group_wait: 0}}\n{inhibit}", tmp_path))
    desk.page(alert("d", rule="down"))
    desk.pass_time(100)
    looked = 0
    decide = desk.task._decide

    def counted(group: Group) -> Iterator[Notification]:
        nonlocal looked
        looked += 1
        return decide(group)

    desk.task._decide = counted  # type: ignore[method-assign]
    for each in storm(500):
        desk.page(each)
    for each in storm(500, state="resolved"):
        desk.page(each)
    assert looked < 10
    assert len(desk.all) == 1


def test_a_storm_with_heavy_evidence_fits_into_a_snapshot_and_messages() -> None:
    rng = random.Random(1)
    desk = Desk()
    for number in range(12_000):
        noise = rng.randbytes(40 if number > 60 else 45_000).hex()
        labels = {"service": f"s{number}", "path": rng.randbytes(20).hex()}
        id_ = rng.randbytes(16).hex()
        desk.page(alert(id_, labels=labels, evidence={"noise": noise}), at=number / 2000)
        if number % 4 == 0:
            desk.page(evidence(id_, *(rng.randbytes(150).hex() for _ in range(5))))
            desk.page(evidence(rng.randbytes(16).hex(), rng.randbytes(150).hex()))
    desk.pass_time(200)
    assert len(desk.task.snapshot()) < LARGE_RECORD_BYTES
    assert max(len(msgspec.json.encode(each)) for each in desk.all) < 900_000
    sizes = {each.group: len(each.alerts) + each.omitted for each in desk.all}
    assert 10_000 <= sum(sizes.values()) < 12_000
    assert any("more alerts fire than" in each.summary for told in desk.all for each in told.alerts)


# --- channels in trouble --------------------------------------------------------------------------------------------

TWO = """
channels: {chat: {type: x}, page: {type: x}}
route: {to: [chat], group_wait: 1s}
"""


def outcome(told: Notification, what: str, detail: str | None = "HTTP 500") -> Delivery:
    return Delivery(
        id=told.id, channel=told.channel, group=told.group, outcome=what, time_unix_s=T0, detail=detail,  # type: ignore[arg-type]
        notification=None if what == "recovered" else told,
    )  # fmt: skip


@pytest.mark.parametrize("what", ["failing", "refused"])
def test_what_a_channel_does_not_take_is_told_elsewhere_and_so_is_its_trouble(tmp_path: Path, what: str) -> None:
    desk = Desk(plan(TWO, tmp_path))
    desk.page(alert())
    (first,) = desk.pass_time(2)
    told = desk.page(outcome(first, what)) + desk.pass_time(4)
    assert [(each.channel, each.alerts[0].id) for each in told[:1]] == [("page", "a1")]
    assert [(each.channel, each.alerts[0].rule, each.severity) for each in told[1:]] == [
        ("page", "notifier", "critical")
    ]
    assert "chat" in told[1].alerts[0].summary
    assert "HTTP 500" in told[1].alerts[0].summary
    assert desk.page(outcome(first, what)) == []  # the same again, after a crash
    again = desk.page(outcome(first, "recovered", None), at=100)
    assert [(each.channel, each.status, each.alerts[0].rule) for each in again] == [("page", "resolved", "notifier")]
    desk.pass_time(170)
    ended = desk.page(alert(state="resolved"))
    assert sorted((each.channel, each.status) for each in ended) == [("chat", "resolved"), ("page", "resolved")]


def test_a_report_that_comes_again_when_all_is_over_tells_nothing_again(tmp_path: Path) -> None:
    desk = Desk(plan(TWO, tmp_path))
    desk.page(alert())
    desk.pass_time(100)
    (ended,) = desk.page(alert(state="resolved"))
    desk.pass_time(300)
    told = desk.page(outcome(ended, "refused"))
    assert [each.channel for each in told] == ["page", "page"]  # the end, and the trouble
    assert desk.page(outcome(ended, "refused")) == []


def test_while_a_channel_is_in_trouble_what_is_new_is_told_elsewhere_too(tmp_path: Path) -> None:
    desk = Desk(plan(TWO, tmp_path))
    desk.page(alert("a1"))
    (first,) = desk.pass_time(2)
    desk.page(alert("a2", rule="other"))
    desk.pass_time(4)  # behind the first, and told to nobody yet
    told = desk.page(outcome(first, "failing")) + desk.pass_time(6)
    assert {(each.channel, each.alerts[0].id) for each in told if each.alerts[0].rule != "notifier"} == {
        ("page", "a1"), ("page", "a2"),
    }  # fmt: skip
    desk.page(alert("a3", rule="third"))
    assert [each.channel for each in desk.pass_time(10)] == ["chat", "page"]


def test_trouble_is_told_to_the_fallback_of_the_routes_that_tell_the_channel(tmp_path: Path) -> None:
    routes = "[{matchers: ['severity=\"critical\"'], to: [page], fallback: boss}]"
    desk = Desk(plan(f"{CHANNELS}\nroute: {{to: [chat], fallback: log, group_wait: 0, routes: {routes}}}", tmp_path))
    (first,) = desk.page(alert(severity="critical"))
    assert [each.channel for each in desk.page(outcome(first, "failing"))] == ["boss", "boss"]
    (second,) = desk.page(alert("a2", rule="other"))
    assert [each.channel for each in desk.page(outcome(second, "failing"))] == ["log", "log"]


def test_wherever_the_file_names_the_console_it_is_the_last_to_be_told(tmp_path: Path) -> None:
    text = "channels: {console: {type: console}, chat: {type: x}, page: {type: x}}\nroute: {to: [chat], group_wait: 0}"
    desk = Desk(plan(text, tmp_path))
    (first,) = desk.page(alert())
    told = desk.page(outcome(first, "failing"))
    assert {each.channel for each in told} == {"page"}
    assert {each.channel for each in desk.page(outcome(told[0], "failing"))} == {"console"}


def test_the_trouble_of_a_channel_ends_when_the_file_has_it_no_more(tmp_path: Path) -> None:
    desk = Desk(plan(TWO, tmp_path))
    desk.page(alert())
    (first,) = desk.pass_time(2)
    desk.page(outcome(first, "failing"))
    desk.pass_time(100)
    desk.restart(plan("channels: {page: {type: x}}\nroute: {}", tmp_path))
    told = desk.page(alert(state="resolved")) + desk.pass_time(400)
    assert [each.status for each in told if each.alerts[0].rule == "notifier"] == ["resolved"]
    assert not desk.task.waiting


def test_with_one_channel_the_console_is_told(tmp_path: Path) -> None:
    desk = Desk(plan("channels: {chat: {type: x}}\nroute: {group_wait: 0}", tmp_path))
    (first,) = desk.page(alert())
    told = desk.page(outcome(first, "refused"))
    assert {each.channel for each in told} == {"console"}


def test_channels_that_all_fail_do_not_tell_each_other_for_ever(tmp_path: Path) -> None:
    desk = Desk(plan(TWO, tmp_path))
    desk.page(alert())
    waiting = desk.pass_time(2)
    for _ in range(50):
        waiting = [
            told for each in waiting if each.channel != "console" for told in desk.page(outcome(each, "failing"))
        ] + desk.pass_time(desk.now + 1)
    assert waiting == []
    assert "console" in {each.channel for each in desk.all}
    assert len(desk.all) < 15


# --- causes ---------------------------------------------------------------------------------------------------------


def test_evidence_that_comes_while_a_group_gathers_is_in_its_first_message() -> None:
    desk = Desk()
    desk.page(alert(evidence={"window": {"count": 7}}))
    assert desk.page(evidence(), at=4.0) == []
    assert desk.pass_time(9.5) == []
    (told,) = desk.pass_time(10.0)
    assert (told.cause, why(told)) == ("new", {"a1": ["deploy of shop 3"]})
    assert told.alerts[0].evidence["window"] == {"count": 7}
    assert told.alerts[0].evidence["causes"][0]["why"] == "20 s before the onset"
    assert desk.pass_time(3600, step=5) == []


def test_evidence_that_overtakes_its_alert_waits_for_it() -> None:
    desk = Desk()
    desk.page(evidence("a1", "an older guess"), evidence(transition=2), evidence("a1", "an older guess"))
    desk.restart()
    desk.page(alert())
    (told,) = desk.pass_time(10.0)
    assert why(told) == {"a1": ["deploy of shop 3"]}


@pytest.mark.parametrize("wait", [0, 10])
def test_no_message_waits_for_evidence(wait: int, tmp_path: Path) -> None:
    desk = Desk(plan(f"route: {{group_wait: {wait}}}", tmp_path))
    at_once = desk.page(alert())
    (told,) = at_once or desk.pass_time(wait)
    assert told.created_unix_s == T0 + wait
    assert why(told) == {"a1": []}


def test_evidence_that_comes_after_the_message_is_no_second_one_and_in_the_next() -> None:
    desk = Desk()
    desk.page(alert())
    desk.pass_time(11)
    assert desk.page(evidence(), at=15.0) == []
    (explained,) = desk.pass_time(20)
    assert gist([explained]) == [("console", "explained", "firing", ["a1"])]
    assert why(explained) == {"a1": ["deploy of shop 3"]}
    assert explained.created_unix_s == T0 + 17.0
    (repeated,) = desk.pass_time(4 * 3600 + 15, step=5)
    assert (repeated.cause, repeated.created_unix_s) == ("repeat", T0 + 4 * 3600 + 10)
    assert why(repeated) == {"a1": ["deploy of shop 3"]}


def test_evidence_that_comes_twice_is_told_once_and_newer_evidence_takes_its_place() -> None:
    desk = Desk()
    desk.page(alert())
    desk.pass_time(11)
    desk.page(evidence(transition=1))
    assert [each.cause for each in desk.pass_time(15)] == ["explained"]
    desk.page(evidence(transition=1))
    assert desk.pass_time(20) == []
    (worse,) = desk.page(alert(severity="critical", transition=2))
    assert why(worse) == {"a1": ["deploy of shop 3"]}
    desk.page(evidence("a1", "a host is full", transition=2))
    desk.page(evidence(transition=1))
    assert [why(each) for each in desk.pass_time(30)] == [{"a1": ["a host is full"]}]


def test_causes_of_one_trouble_are_added_together() -> None:
    desk = Desk()
    desk.page(*(alert(f"a{number}") for number in range(5)))
    desk.pass_time(11)
    for number in range(5):
        desk.page(evidence(f"a{number}"), at=20.0 + number / 10)
    (explained,) = desk.pass_time(60)
    assert all(why(explained).values())


def test_evidence_of_an_alert_that_has_ended_tells_nothing_by_itself() -> None:
    desk = Desk()
    desk.page(alert())
    desk.pass_time(11)
    desk.page(alert(state="resolved"), at=12.0)
    desk.page(evidence(), at=13.0)
    assert gist(desk.pass_time(80)) == [("console", "resolved", "resolved", ["a1"])]
    desk.page(evidence())
    assert desk.pass_time(300) == []
    assert not desk.task.waiting


def test_causes_are_not_added_where_more_is_about_to_be_told_and_that_has_them() -> None:
    desk = Desk()
    desk.page(alert())
    desk.pass_time(11)
    desk.page(evidence(), alert(state="acknowledged"), at=12.0)
    (told,) = desk.pass_time(100)
    assert (told.cause, told.alerts[0].state, why(told)) == ("changed", "acknowledged", {"a1": ["deploy of shop 3"]})


def test_causes_are_added_in_the_order_of_the_message_that_they_are_added_to() -> None:
    desk = Desk()
    desk.page(alert("a1"))
    desk.pass_time(11)
    desk.page(alert("a2", started_unix_s=T0 + 20), at=20.0)
    (changed,) = desk.pass_time(72)
    desk.page(evidence("a2"))
    (explained,) = desk.pass_time(80)
    assert [each.id for each in changed.alerts] == [each.id for each in explained.alerts] == ["a2", "a1"]


def test_causes_are_not_added_to_a_message_that_told_an_end_which_would_be_gone_then() -> None:
    desk = Desk()
    desk.page(alert("a1"), alert("a2"))
    desk.pass_time(11)
    desk.page(alert("a2", state="resolved"))
    desk.pass_time(75)
    desk.page(evidence("a1"))
    assert desk.pass_time(1000, step=5) == []
    assert [why(each) for each in desk.pass_time(4 * 3600 + 100, step=5)] == [{"a1": ["deploy of shop 3"]}]


def test_causes_that_a_message_has_told_are_not_added_to_it() -> None:
    desk = Desk()
    desk.page(alert())
    desk.pass_time(11)
    desk.page(evidence(), at=15.0)
    (worse,) = desk.page(alert(severity="critical", transition=2), at=16.0)
    assert why(worse) == {"a1": ["deploy of shop 3"]}
    assert desk.pass_time(100) == []


def test_causes_are_added_in_time_whatever_else_is_decided_before(tmp_path: Path) -> None:
    file = "channels: {chat: {type: x}, boss: {type: x}}\nroute: {to: [chat], escalate: [{after: 6s, to: [boss]}]}"
    desk = Desk(plan(file, tmp_path))
    desk.page(alert())
    desk.pass_time(11)
    desk.page(evidence(), at=15.0)
    assert [(each.channel, each.cause, each.created_unix_s - T0) for each in desk.pass_time(60)] == [
        ("boss", "escalation", 16.0),
        ("chat", "explained", 17.0),
        ("boss", "explained", 17.0),
    ]


def test_a_new_alert_that_waits_to_be_told_is_not_told_with_the_causes_of_another() -> None:
    desk = Desk()
    desk.page(alert("a1"))
    desk.pass_time(11)
    desk.page(alert("a2"), evidence("a1"), at=12.0)
    (explained, changed) = desk.pass_time(100)
    assert gist([explained, changed]) == [
        ("console", "explained", "firing", ["a1"]),
        ("console", "changed", "firing", ["a2", "a1"]),
    ]


def test_under_a_silence_nothing_is_explained() -> None:
    desk = Desk()
    desk.page(alert())
    desk.pass_time(11)
    desk.page(silence('service="shop"', ends=40.0), evidence())
    assert desk.pass_time(100) == []


def test_whoever_is_told_because_nobody_acknowledges_is_told_why(tmp_path: Path) -> None:
    file = "channels: {chat: {type: x}, boss: {type: x}}\nroute: {to: [chat], escalate: [{after: 60s, to: [boss]}]}"
    desk = Desk(plan(file, tmp_path))
    desk.page(alert(), evidence())
    (_, escalated) = desk.pass_time(75)
    assert (escalated.channel, why(escalated)) == ("boss", {"a1": ["deploy of shop 3"]})


def test_a_channel_in_trouble_and_who_is_told_instead_are_not_told_causes_alone(tmp_path: Path) -> None:
    desk = Desk(plan(TWO, tmp_path))
    desk.page(alert())
    (told,) = desk.pass_time(2)
    desk.page(alert("a2", labels={"service": "bank"}))
    desk.pass_time(4)
    desk.page(outcome(told, "failing"), at=5.0)
    desk.page(evidence("a2"))
    assert {each.channel for each in desk.pass_time(20) if each.cause == "explained"} == {"page"}


def test_evidence_that_no_alert_comes_for_takes_little_room() -> None:
    desk = Desk()
    rng = random.Random(1)
    for number in range(2000):
        desk.page(evidence(f"x{number}", rng.randbytes(100).hex()))
    desk.page(evidence("x" * 900_000))
    assert desk.pass_time(100) == []
    assert len(desk.task.snapshot()) < 40_000
    desk.page(alert("x1999"), alert("x0"))
    (told,) = desk.pass_time(200)
    assert {id_: len(causes) for id_, causes in why(told).items()} == {"x1999": 1, "x0": 0}


def test_of_evidence_however_large_a_few_short_causes_are_kept() -> None:
    desk = Desk()
    desk.page(alert())
    desk.page(evidence("a1", *(f"{number} " + "x" * 40_000 for number in range(20)), notes=["y" * 10_000]))
    (told,) = desk.pass_time(20)
    assert [len(each["what"]) for each in told.alerts[0].evidence["causes"]] == [300] * MOST_CAUSES
    assert len(msgspec.json.encode(told)) < 4000


@pytest.mark.parametrize(
    "garbage",
    [b'{"type":"evidence"}', b'{"type":"evidence","alert_id":7}', msgspec.json.encode(evidence())[:-9]],
)
def test_what_is_no_evidence_is_a_dead_letter_and_holds_up_nothing(garbage: bytes) -> None:
    desk = Desk()
    desk.page(alert())
    [letter] = desk.task.process("pages", [Stored(garbage, 1, round(T0 * 1000))])
    assert letter.topic == "deadletter"
    assert gist(desk.pass_time(20)) == [("console", "new", "firing", ["a1"])]


BEFORE_CAUSES = (
    "KLUv/WAMA7UVACQoiaRwbGFusGNkMGZkMjdmNjMzNWQ5NDCrbmV4dF9vZmZzZXQZo25vd8tB2VT8QwAAAKVsaXZlcwFudW1iZXIDpmFsZXJ0c5"
    "ObAMQCI6Gkc2xvdwEBgadzZXJ2aWNlpHNob3ABQAAAAMLEtSi1L/1gEABdBQAijCMdcCdqA/AfqEnsmpFABTW2u0RVyfLgcOrfT/3/pQQHdMck"
    "CQffECvcRmRZt4IoANCdjQJVy0CyF5sP62kWk2Tx7XzQCTiDwdKKKOW4FQS650rI3A5fFMKhzCbfcOeUApjUYuH3pnWTSb6dQOnqwO/Z2Hw7+l"
    "0pypuMUVAS/55p7e0If0f09t5M+HsuTd8QCQBxyHRQlsddqBiXZ3WhMBC7QgPHibUjm2SbAcQCI6K2ZQUAIswjHXC3aQPoHcho7dgmgeRV18ya"
    "/v9y3unY0OfU/19KCXTHJA1iUACgOxsFqpaBZC82H9bTLCbJ4tv5oBNwCoWlFVHKcSsG6J4rIXNLfFEMhzKbfMSdUwpgUouH35vWTSb5dgKlqw"
    "O/Z2Pz7eh3pShvMsZBSfx7prW3E/B3RG/vzYS/59L0EQECxAIjo15FY/79pmdyb3Vwc5GKpXJvdXRloKZsYWJlbHOCpHJ1bGWiaWTZIGFlZDNh"
    "OWE5MTMwYjllY2ZmYWUwODE2ODA0ZTQzMzA1qm5vdF9iZWZvcmVRgAAAo2R1p21lbWJlcnODAJUBQoAAAMLCAQKV/wnLAMLCqGNoYW5uZWxzka"
    "djb25zb2xlp3RvbGRfYXSkcmFuawGobWVzc2FnZXMBqHNpbGVuY2VzgqVnaXZlboClZW5kZWSAqG9wZW5pbmdzgaCRy0HZVPxAAAAAEQAYoThc"
    "VmRK01HgBHMNxBMtLJMLBazLMQClFVAd1SacAK0hE75pAyWryIhwC5JB7QE="
)
"""A snapshot as it was before causes were in it: a1 and a2 told, a3 not yet."""


def test_a_snapshot_from_before_there_were_causes_is_gone_on_from() -> None:
    desk = Desk()
    desk.task.restore(base64.b64decode(BEFORE_CAUSES))
    desk.offset, desk.now = 25, 12.0
    desk.page(evidence("a2"))
    (explained, changed) = desk.pass_time(100)
    assert gist([explained]) == [("console", "explained", "firing", ["a1", "a2"])]
    assert gist([changed]) == [("console", "changed", "firing", ["a3", "a1", "a2"])]
    assert why(changed) == {"a1": [], "a2": ["deploy of shop 3"], "a3": []}


# --- any sequence ---------------------------------------------------------------------------------------------------


def bare(told: Alert) -> Alert:
    return msgspec.structs.replace(told, evidence={})


EVENTS = st.lists(
    st.tuples(
        st.sampled_from(
            ["fire", "worse", "ack", "resolve", "explain", "silence", "unsilence", "wait", "long", "restart"]
        ),
        st.integers(0, 4),
    ),
    max_size=60,
)


@given(EVENTS)
@settings(max_examples=150, deadline=None)
def test_whatever_happens_people_know_in_the_end_what_fires_and_nothing_else(events: list[tuple[str, int]]) -> None:
    """An oracle that looks at the end only: whoever reads the messages believes what is true."""
    desk = Desk()
    live: dict[str, Alert] = {}
    silenced: set[int] = set()
    lives = 0
    for what, number in events:
        id_ = next((each for each in live if each.startswith(f"{number}-")), None)
        desk.now += 0.1
        if what == "fire" and id_ is None:
            lives += 1
            fired = alert(f"{number}-{lives}", labels={"service": f"s{number % 2}", "n": str(number)})
            live[fired.id] = fired
            desk.page(fired)
        elif what in ("worse", "ack") and id_:
            changes: dict[str, Any] = {"transition": live[id_].transition + 1}
            changes |= {"state": "acknowledged"} if what == "ack" else {"state": "firing", "severity": "critical"}
            live[id_] = msgspec.structs.replace(live[id_], **changes)
            desk.page(live[id_])
        elif what == "resolve" and id_:
            ended = live.pop(id_)
            desk.page(msgspec.structs.replace(ended, state="resolved", transition=ended.transition + 1))
        elif what == "explain" and id_:
            desk.page(evidence(id_, f"cause {desk.offset}", transition=live[id_].transition))
        elif what == "silence":
            silenced.add(number)
            desk.page(silence(f'n="{number}"', id_=f"s{number}-{lives}-{desk.offset}"))
        elif what == "unsilence":
            for name in [name for name in desk.task._silences.given if name.startswith(f"s{number}-")]:
                desk.page(Unsilence(id=f"u{desk.offset}", time_unix_s=T0, by="x", silence_id=name))
            silenced.discard(number)
        elif what in ("wait", "long"):
            desk.pass_time(desk.now + (7 if what == "wait" else 100))
        elif what == "restart":
            desk.restart()
    desk.pass_time(desk.now + 200)
    believed = {alert_.id: alert_ for told in desk.all for alert_ in told.alerts}
    firing = {id_ for id_, alert_ in believed.items() if alert_.state != "resolved"}
    audible = {id_ for id_ in live if int(id_.split("-")[0]) not in silenced}
    assert audible <= firing, "what fires and is not silenced is known"
    assert firing <= set(live), "what has ended is known to have ended"
    for id_ in audible:
        assert bare(believed[id_]) == bare(live[id_]), "and its newest state"
    groups: dict[str, str] = {}
    for told in desk.all:
        assert groups.get(told.group) != "resolved", "nothing is said of a group after its end"
        groups[told.group] = told.status
    known: dict[tuple[str, str], Alert] = {}
    for told in desk.all:
        for each in told.alerts:
            if told.cause == "explained":
                assert known.get((told.group, each.id)) == bare(each), "causes are added to what people know"
            known[told.group, each.id] = bare(each)
    begun = [told.group for told in desk.all if told.cause == "new"]
    assert len(begun) == len(set(begun)), "a group begins once"


def test_who_is_in_the_file_now_is_told_what_only_a_removed_channel_was_told(tmp_path: Path) -> None:
    desk = Desk(plan("channels: {chat: {type: x}}\nroute: {to: [chat]}", tmp_path))
    desk.page(alert())
    assert gist(desk.pass_time(30)) == [("chat", "new", "firing", ["a1"])]
    desk.restart(plan("channels: {mail: {type: x}}\nroute: {to: [mail]}", tmp_path))
    assert gist(desk.pass_time(100)) == [("mail", "new", "firing", ["a1"])]
    assert gist(desk.page(alert(state="resolved"))) == [("mail", "resolved", "resolved", ["a1"])]


def test_channel_that_the_file_has_added_to_a_route_is_told_what_comes_next(tmp_path: Path) -> None:
    channels = "channels: {chat: {type: x}, mail: {type: x}}\n"
    desk = Desk(plan(channels + "route: {to: [chat]}", tmp_path))
    desk.page(alert())
    desk.pass_time(30)
    desk.restart(plan(channels + "route: {to: [mail]}", tmp_path))
    assert desk.pass_time(35) == []
    desk.page(alert("b2"))
    changed = [("chat", "changed", "firing", ["b2", "a1"]), ("mail", "changed", "firing", ["b2", "a1"])]
    assert gist(desk.pass_time(100)) == changed


def test_channel_that_was_never_told_is_not_told_the_end(tmp_path: Path) -> None:
    channels = "channels: {chat: {type: x}, mail: {type: x}}\n"
    desk = Desk(plan(channels + "route: {to: [chat]}", tmp_path))
    desk.page(alert())
    desk.pass_time(30)
    desk.restart(plan(channels + "route: {to: [mail]}", tmp_path))
    desk.page(alert(state="resolved"))
    assert gist(desk.pass_time(100)) == [("chat", "resolved", "resolved", ["a1"])]


def test_texts_however_long_and_repetitive_make_no_message_that_the_log_refuses() -> None:
    desk = Desk()
    for number in range(20):
        desk.page(alert(f"{number:02}", summary="x" * 900_000, evidence={"window": 1}))
    [told] = desk.pass_time(30)
    assert len(told.alerts) == 20
    assert len(msgspec.json.encode(told)) < LARGE_RECORD_BYTES // 2


def test_long_name_of_a_silence_is_refused_and_not_remembered() -> None:
    desk = Desk()
    unsilence = Unsilence(id="u", time_unix_s=T0, by="ann", silence_id="x" * 201)
    [letter] = desk.task.process("pages", [Stored(msgspec.json.encode(unsilence), 0, round(T0 * 1000))])
    assert letter.topic == "deadletter"


def test_what_has_ended_leaves_nothing_behind(tmp_path: Path) -> None:
    inhibit = "inhibit: [{source: ['rule=\"slow\"'], target: ['severity=\"info\"'], equal: [host]}]\n"
    desk = Desk(plan("channels: {chat: {type: x}}\nroute: {to: [chat], group_by: [host]}\n" + inhibit, tmp_path))
    for number in range(20):
        labels = {"host": f"pod-{number}"}
        desk.page(alert(f"{number}", labels=labels), at=100.0 * number)
        desk.pass_time(100 * number + 15)
        desk.page(alert(f"{number}", state="resolved", labels=labels))
        desk.pass_time(100 * number + 90, step=5)
    assert len(desk.all) == 40
    desk.pass_time(2100, step=5)
    assert desk.task._groups_bytes == 0  # or the limit of groups would mean ever more, and another after a restart
    assert not any(tally for tallies in desk.task._inhibitions._sources for tally in tallies)


def test_group_that_an_unheard_alert_has_left_is_forgotten(tmp_path: Path) -> None:
    routes = "channels: {chat: {type: x}}\nroute: {to: [chat], routes: [{matchers: ['severity=critical']}]}\n"
    desk = Desk(plan(routes, tmp_path))
    desk.page(silence('service="shop"'))
    desk.page(alert())
    desk.pass_time(20)
    desk.page(alert(severity="critical", transition=2))
    desk.page(alert(state="resolved"))
    assert desk.pass_time(100) == []
    assert list(desk.task.waiting) == []


def test_fallback_that_hears_of_an_alert_after_its_end_hears_the_end_too(tmp_path: Path) -> None:
    channels = "channels: {chat: {type: x}, page: {type: x}}\nroute: {to: [chat], group_interval: 20s}"
    desk = Desk(plan(channels, tmp_path))
    desk.page(alert())
    [told] = desk.pass_time(15)
    desk.page(alert(state="resolved"))
    assert gist(desk.pass_time(60)) == [("chat", "resolved", "resolved", ["a1"])]
    failing = Delivery(
        id=told.id, channel="chat", group=told.group, outcome="failing", time_unix_s=T0, notification=told
    )
    instead = [each for each in desk.page(failing, at=70.0) if each.group == told.group]
    assert gist(instead) == [("page", "new", "firing", ["a1"]), ("page", "resolved", "resolved", ["a1"])]
    assert instead[0].id != instead[1].id
    assert instead[1].alerts[0].state == "resolved"
