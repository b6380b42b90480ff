"""The fatigue report, against answers computed by hand."""

from __future__ import annotations

import random
from typing import Any

import pytest

from streammon.commands import Approve, Matcher
from streammon.fatigue import Fatigue, Noisy, Quantiles, RuleFatigue, fatigue
from streammon.results import Alert
from tests.people import NOON, ack, alert, quiet

DAY_S = 86_400.0


def report(transitions: list[Alert], *commands: Any, days: float = 1.0, **options: Any) -> Fatigue:
    """From noon on."""
    random.Random(len(transitions)).shuffle(transitions)
    return fatigue(transitions, commands, NOON, NOON + days * DAY_S, **options)


def only(report_: Fatigue) -> RuleFatigue:
    [rule] = report_.rules
    return rule


def episode(id: str, fired: float, resolved: float | None = None, **fields: Any) -> list[Alert]:  # noqa: A002
    end = [] if resolved is None else [alert(id, 2, "resolved", resolved, **fields)]
    return [alert(id, 0, "pending", fired - 30, **fields), alert(id, 1, "firing", fired, **fields), *end]


def test_a_week_of_one_rule_by_hand() -> None:
    """Ten episodes that last 10, 20, … 100 s, an hour apart; three are acknowledged after 4, 6 and 8 s."""
    week = [each for n in range(10) for each in episode(f"a{n}", 3600.0 * n, 3600.0 * n + 10 * (n + 1))]
    acks = [ack("a0", at=4), ack("a1", at=3606), ack("a2", at=7208), ack("a2", at=7209)]
    assert only(report(week, *acks, days=5)) == RuleFatigue(
        rule="slow",
        firings=10,
        episodes=10,
        alerts_per_day=2.0,
        flap_score=0.0,
        firing_s=Quantiles(50.0, 90.0),
        acknowledge_s=Quantiles(6.0, 8.0),
        acted_on=3,
        acted_on_share=0.3,
        firing_now=0,
        guessed=0,
        noisiest=[Noisy({"service": "shop"}, 10)],
    )


def test_firing_again_within_ten_minutes_of_a_resolve_is_flapping() -> None:
    episodes = [
        *episode("a", 0, 60),
        *episode("b", 660, 700),  # 600 s after the resolve: flapped
        *episode("c", 1301, 1400),  # 601 s: did not
        *episode("d", 1500),  # 100 s: flapped, and fires still
        *episode("e", 1450, labels={"service": "mail"}),  # another series
    ]
    found = only(report(episodes))
    assert (found.firings, found.flap_score, found.firing_now) == (5, 0.4, 2)
    assert only(report(episodes, flap_s=601)).flap_score == 0.6
    assert only(report(episodes, flap_s=99)).flap_score == 0.0


def test_an_episode_before_the_range_tells_what_flaps_and_is_not_counted() -> None:
    episodes = [*episode("a", -300, -10), *episode("b", 50, 60), *episode("c", DAY_S, DAY_S + 5)]
    found = only(report(episodes))
    assert (found.firings, found.episodes, found.flap_score) == (1, 1, 1.0)
    assert found.firing_s == Quantiles(10.0, 10.0)


def test_what_fires_since_before_the_range_fires_now() -> None:
    found = only(report(episode("a", -300)))
    assert (found.firings, found.episodes, found.firing_now, found.acted_on_share) == (0, 0, 1, None)
    assert report(episode("a", -300, -200)).rules == []


def test_a_worse_severity_is_another_firing_of_the_same_episode_and_a_better_one_is_not() -> None:
    ladder = [
        alert("a", 1, "firing", 0, severity="warning"),
        alert("a", 2, "acknowledged", 10, severity="warning"),
        alert("a", 3, "firing", 20, severity="critical"),
        alert("a", 4, "firing", 30, severity="warning"),
        alert("a", 5, "resolved", 40, severity="warning"),
    ]
    found = only(report(ladder))
    assert (found.firings, found.episodes, found.flap_score) == (2, 1, 0.0)
    assert (found.firing_s, found.acknowledge_s) == (Quantiles(40.0, 40.0), Quantiles(10.0, 10.0))
    assert found.acted_on == 1


def test_no_data_is_a_firing_too() -> None:
    found = only(report([alert("a", 1, "firing", 0), alert("a", 2, "no_data", 10), alert("b", 1, "no_data", 20)]))
    assert (found.firings, found.episodes, found.firing_now) == (3, 2, 2)


def test_pending_is_no_firing() -> None:
    assert report([alert("a", 0, "pending"), alert("b", 0, "pending"), alert("b", 1, "resolved")]).rules == []


def test_a_command_that_names_the_alert_or_a_silence_that_matches_while_it_lasts_is_acting() -> None:
    episodes = [each for n in range(6) for each in episode(f"a{n}", 1000 * n, 1000 * n + 100)]
    other = Matcher(label="service", operator="=", value="mail")
    commands = [
        Approve(target_id="a0", id="c", by="ann", time_unix_s=NOON),
        quiet("s1", at=1050),  # during a1
        quiet("s2", at=2101),  # after a2
        quiet("s3", at=2999),  # before a3
        quiet("s4", at=4050, matchers=[other]),  # about something else
        ack("a5", at=5090),
    ]
    assert only(report(episodes, *commands)).acted_on == 3


def test_an_acknowledgement_by_a_clock_that_is_behind_took_no_time() -> None:
    assert only(report(episode("a", 10, 20), ack("a", at=9))).acknowledge_s == Quantiles(0.0, 0.0)


def test_what_compaction_left_is_used_and_said_to_be_guessed() -> None:
    found = only(report([alert("a", 3, "resolved", 100), alert("b", 2, "acknowledged", 50)]))
    assert (found.firings, found.episodes, found.guessed, found.firing_now) == (2, 2, 2, 1)
    assert (found.firing_s, found.acknowledge_s) == (Quantiles(100.0, 100.0), Quantiles(50.0, 50.0))


def test_rules_are_kept_apart_and_the_noisiest_comes_first() -> None:
    many = [each for n in range(5) for each in episode(f"m{n}", n, n + 1, rule="many", labels={"host": f"h{n % 4}"})]
    found = report([*episode("a", 0), *many])
    assert [(rule.rule, rule.firings) for rule in found.rules] == [("many", 5), ("slow", 1)]
    assert found.rules[0].noisiest == [Noisy({"host": "h0"}, 2), Noisy({"host": "h1"}, 1), Noisy({"host": "h2"}, 1)]


def test_the_report_says_since_when_it_knows() -> None:
    assert report(episode("a", 100)).known_since_unix_s == NOON + 70
    assert report([]) == Fatigue(
        from_unix_s=NOON, to_unix_s=NOON + DAY_S, known_since_unix_s=None, flap_s=600.0, rules=[]
    )


@pytest.mark.parametrize(("count", "median", "p90"), [(1, 1, 1), (2, 1, 2), (3, 2, 3), (10, 5, 9), (11, 6, 10)])
def test_quantiles_are_nearest_rank(count: int, median: float, p90: float) -> None:
    episodes = [each for n in range(count) for each in episode(f"a{n}", 5000 * n, 5000 * n + n + 1)]
    assert only(report(episodes)).firing_s == Quantiles(median, p90)
