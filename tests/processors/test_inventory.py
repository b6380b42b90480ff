"""Who is absent, and what is told of it: pure decisions on who was heard when."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import pytest

from streammon.commands import Acknowledge
from streammon.errors import ConfigError
from streammon.heartbeat import Heartbeat
from streammon.results import Alert
from streammon.yaml_files import parse_yaml
from streammon_processors.inventory import Expected, load_expected
from streammon_processors.inventory.absence import Book, acknowledged, news, our_alert
from streammon_processors.inventory.roster import Seen, Watch, absences, forgotten, without_anybody

T0 = 1_700_000_000.0
GRACE_S = 60.0


def expected(text: str = "expect: []") -> Expected:
    return parse_yaml(text, Expected, "expected.yaml")


class World:
    """What an inventory has heard and told, on a clock of its own. It beats itself every second."""

    def __init__(self, text: str = "expect: []") -> None:
        self.expected = expected(text)
        self.roster: dict[str, Seen] = {}
        self.alerts: list[Alert] = []
        self.now = T0
        self.restart()

    def restart(self) -> None:
        """The roster comes back from its changelog and what was told from `alerts`; nothing else does."""
        self.watch, self.book = Watch(2.0), Book(self.alerts)

    def beat(self, id_: str, state: Any = "running", **changes: Any) -> None:
        role, _, host = id_.partition("@")
        about: dict[str, Any] = {
            "role": role,
            "host": host.partition("/")[0],
            "version": "1",
            "interval_s": 10.0,
        } | changes
        heartbeat = Heartbeat(id=id_, started_unix_s=T0, time_unix_s=0.0, state=state, **about)
        self.roster[id_] = Seen(heartbeat, self.now)
        self.watch.hear(self.now)

    def passes(self, seconds: int, *alive: str) -> list[str]:
        """Time, in which these beat every ten seconds; the news of it."""
        before = len(self.alerts)
        for second in range(seconds):
            self.now += 1.0
            self.beat("inventory@i")
            for id_ in alive if second % 10 == 0 else ():
                self.beat(id_)
            self._look()
        return [f"{alert.state} {alert.transition}" for alert in self.alerts[before:]]

    def _look(self) -> None:
        absent = absences(self.roster, self.expected, self.now, GRACE_S)
        for alert in list(news(self.book, absent, self.roster, self.expected, self.watch)):
            self.book.note(alert)
            self.alerts.append(msgspec.json.decode(msgspec.json.encode(alert), type=Alert))


def test_one_that_says_nothing_for_three_intervals_is_silent_until_it_is_back() -> None:
    world = World()
    world.beat("agent@a")
    assert world.passes(30) == []
    assert world.passes(5) == ["firing 1"]
    assert world.passes(100) == []
    assert world.passes(5, "agent@a") == ["resolved 2"]
    first, last = world.alerts
    assert (first.id, first.started_unix_s) == (last.id, T0)
    assert last.condition == "its heartbeats are back"


def test_a_second_silence_is_another_alert() -> None:
    world = World()
    world.beat("agent@a")
    assert [*world.passes(40), *world.passes(5, "agent@a"), *world.passes(60)] == ["firing 1", "resolved 2", "firing 1"]
    assert world.alerts[0].id != world.alerts[2].id


def test_who_was_stopped_in_order_is_not_silent() -> None:
    world = World()
    world.beat("agent@a", "stopping")
    assert world.passes(200) == []


def test_a_restart_tells_nothing_twice_and_still_tells_the_end() -> None:
    world = World()
    world.beat("agent@a")
    assert world.passes(40) == ["firing 1"]
    world.restart()
    assert world.passes(100) == []
    assert world.passes(5, "agent@a") == ["resolved 2"]


def test_one_that_was_back_while_nobody_looked_is_absent_anew() -> None:
    world = World()
    world.beat("agent@a")
    assert world.passes(40) == ["firing 1"]
    world.beat("agent@a")
    world.now += 100.0
    world.restart()
    assert world.passes(60) == ["resolved 2", "firing 1"]
    assert world.alerts[0].id == world.alerts[1].id != world.alerts[2].id


def test_the_same_silence_has_the_same_id_whoever_tells_it_and_when() -> None:
    one, other = World(), World()
    for world, later in ((one, 0), (other, 50)):
        world.beat("agent@a")
        world.now += later
        world.passes(100)
    assert [alert.id for alert in one.alerts] == [alert.id for alert in other.alerts]


def test_an_outage_of_the_broker_accuses_nobody() -> None:
    world = World()
    world.beat("agent@a")
    assert world.passes(20, "agent@a") == []
    world.now += 600.0  # in which nothing could be written
    assert world.passes(20) == []
    assert world.passes(60, "agent@a") == []


def test_who_stays_away_after_an_outage_is_silent_after_all() -> None:
    world = World()
    world.beat("agent@a")
    world.now += 600.0
    assert world.passes(30) == []
    assert world.passes(5) == ["firing 1"]


HOSTS = 'contact: "#ops"\nexpect: [{role: agent, hosts: [a, b], severity: critical, stopped_for: 2m}]'


def test_an_expected_host_that_never_came_is_missing_after_the_grace() -> None:
    world = World(HOSTS)
    assert world.passes(int(GRACE_S), "agent@a") == []
    assert world.passes(5, "agent@a") == ["firing 1"]
    [alert] = world.alerts
    assert (alert.labels, alert.severity, alert.contact) == ({"role": "agent", "host": "b"}, "critical", "#ops")
    world.restart()
    assert world.passes(100, "agent@a") == []
    assert world.passes(5, "agent@a", "agent@b") == ["resolved 2"]


def test_an_expected_host_that_was_stopped_for_too_long_is_missing() -> None:
    world = World(HOSTS)
    world.beat("agent@b", "stopping")
    assert world.passes(119, "agent@a") == []
    assert world.passes(10, "agent@a") == ["firing 1"]
    assert "since it was stopped at" in world.alerts[0].summary


def test_a_component_that_came_back_under_another_id_on_its_host_is_replaced() -> None:
    world = World(HOSTS)
    world.beat("agent@b/1")
    assert world.passes(40, "agent@a") == ["firing 1"]
    assert world.passes(5, "agent@a", "agent@b/2") == ["resolved 2"]
    assert world.alerts[-1].condition == "others do its work"


def test_of_enough_others_nobody_is_missed() -> None:
    world = World("expect: [{role: process, at_least: 2}]")
    world.beat("process@c")
    assert world.passes(100, "process@a", "process@b") == []
    assert world.passes(100, "process@a") == ["firing 1", "firing 1"]  # b and c, by their names
    assert sorted(alert.labels["host"] for alert in world.alerts) == ["b", "c"]
    assert world.passes(5, "process@a", "process@d") == ["resolved 2", "resolved 2"]


def test_one_that_is_needed_again_opens_its_alert_again_with_a_higher_transition() -> None:
    world = World("expect: [{role: process, at_least: 1}]")
    world.beat("process@a")
    assert world.passes(40) == ["firing 1"]
    assert world.passes(1, "process@b") == ["resolved 2"]
    again = world.passes(60)
    assert sorted(again) == ["firing 1", "firing 3"]


def test_too_few_are_told_by_their_number() -> None:
    world = World("expect: [{role: sink, where: {destination: elasticsearch}, at_least: 2}]")
    world.beat("sink@a", details={"destination": "sqlite"})
    assert world.passes(70, "sink@a")[:1] == ["firing 1"]
    assert world.alerts[0].summary == "sink: 0 of at least 2 are there"
    assert world.alerts[0].labels == {"destination": "elasticsearch", "role": "sink"}


def test_who_is_expected_nowhere_is_forgotten_after_a_day_and_one_of_an_expected_host_never() -> None:
    world = World(HOSTS)
    world.beat("agent@a")
    world.beat("agent@pod-17")
    world.now += 86_401.0
    assert forgotten(world.roster, world.expected, world.now) == ["agent@pod-17"]


def test_the_end_of_the_forgotten_is_told() -> None:
    world = World()
    world.beat("agent@a")
    world.passes(40)
    del world.roster["agent@a"]  # by its tombstone
    assert world.passes(1) == ["resolved 2"]
    assert "forgotten" in world.alerts[-1].condition


def test_an_acknowledgement_is_of_the_transition_that_was_seen() -> None:
    world = World()
    world.beat("agent@a")
    world.passes(40)
    [alert] = world.alerts
    command = Acknowledge(id="1", time_unix_s=T0 + 50, by="ann", alert_id=alert.id, transition=1)
    found = acknowledged(alert, command)
    assert found is not None
    assert (found.state, found.transition, found.evidence["acknowledged"]["by"]) == ("acknowledged", 2, "ann")
    assert acknowledged(found, command) is None
    world.book.note(found)
    assert world.passes(30) == []
    assert world.passes(1, "agent@a") == ["resolved 3"]


def test_only_alerts_of_absence_are_ours() -> None:
    world = World()
    world.beat("agent@a")
    world.passes(40)
    [alert] = world.alerts
    assert our_alert(msgspec.json.encode(alert)) == alert
    other = msgspec.structs.replace(alert, rule="slow")
    assert [our_alert(value) for value in (msgspec.json.encode(other), b"junk", None)] == [None] * 3


def test_a_role_without_anybody_alive_is_found() -> None:
    world = World()
    world.beat("process@a")
    world.beat("rules@a", "stopping")
    assert without_anybody(world.roster, ("process", "rules", "notify"), world.now) == ["rules", "notify"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("expect: [{role: agent}]", "give either `hosts` or `at_least`"),
        ("expect: [{role: agent, hosts: [a], at_least: 1}]", "give either `hosts` or `at_least`"),
        ("expect: [{role: agent, at_least: 0}]", "at_least"),
        ("expect: [{role: agent, at_least: 1, stopped_for: soon}]", "'soon' is no duration"),
        ("expect: [{role: agent, at_least: 1, severity: bad}]", "critical"),
        ("forget: 5s", "a minute or more"),
        ("expected: []", "expected"),
    ],
)
def test_a_wrong_file_is_explained_with_its_place(text: str, message: str, tmp_path: Path) -> None:
    (file := tmp_path / "expected.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"expected\.yaml") as caught:
        load_expected(file)
    assert message in str(caught.value)
