"""What the log says about alerts and people: folded, found by abbreviated ids, and refused with a reason."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streammon import alert_log
from streammon.alert_log import (
    MIN_ID,
    AlertLog,
    Kept,
    Person,
    Ready,
    Refusal,
    Why,
    acknowledge,
    follow,
    if_obeyed,
    read_alert_log,
    record_of,
    short_ids,
    silence,
    silence_labels,
    unsilence,
)  # fmt: skip
from streammon.broker import Broker
from streammon.commands import Acknowledge, AnyCommand, Matcher, Silence, Unsilence
from streammon.errors import Retryable
from streammon.results import Alert
from tests.people import NOON, ack, alert, loud, opened, outgoing, quiet, record
from tests.support import eventually

ANN = Person(by="ann", via="cli", now_unix_s=NOON + 200, note="mine", new_id=lambda: "c1")


def log_of(*entries: Alert | AnyCommand | tuple[Alert, int]) -> AlertLog:
    log = AlertLog()
    for offset, entry in enumerate(entries):
        value, partition = entry if isinstance(entry, tuple) else (entry, 0)
        log.add("alerts" if isinstance(value, Alert) else "commands", record(value, offset, partition))
    return log


def why(order: Ready | Refusal | Kept | Any) -> tuple[Why, str]:
    assert isinstance(order, Refusal), order
    return order.why, order.detail


# -- folding -------------------------------------------------------------------------------------------


def test_the_newest_record_of_each_alert_counts_and_its_partition_is_known() -> None:
    log = log_of((alert("a", 1), 3), (alert("b", 1), 1), (alert("a", 2, "resolved"), 3), (alert("a", 1), 3))
    assert log.alerts["a"] == Kept(alert("a", 2, "resolved", evidence={}), 3)
    assert [each.id for each in log.active()] == ["b"]


def test_a_tombstone_forgets_the_alert() -> None:
    log = log_of(alert("a"))
    log.add("alerts", record(None, 1, key="a"))
    assert log.alerts == {}


def test_what_cannot_be_read_is_passed_over() -> None:
    log = AlertLog()
    for topic in ("alerts", "commands"):
        for value in (b"{", b"\xff", b"[" * 100_000, b'{"type":"tick","schema":1}', b'{"type":"ack"}'):
            log.add(topic, record(value))
    log.add("commands", record(None))
    log.add("alerts", record(None, key=""))
    assert (log.alerts, log.told) == ({}, {})


def test_the_same_command_read_again_is_one_command() -> None:
    log = log_of(ack("a"), loud("s"))
    version = log.version
    log.add("commands", record(ack("a"), 0))
    assert (len(log.told), log.version) == (2, version)


def test_ended_alerts_and_commands_are_bounded_and_active_alerts_are_all_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alert_log, "MAX_ENDED", 3)
    monkeypatch.setattr(alert_log, "MAX_COMMANDS", 2)
    ended = [alert(f"e{n}", 2, "resolved") for n in range(5)]
    log = log_of(*ended, *(alert(f"a{n}") for n in range(5)), *(quiet(f"s{n}") for n in range(5)))
    assert sorted(log.alerts) == ["a0", "a1", "a2", "a3", "a4", "e2", "e3", "e4"]
    assert [each.silence.id for each in log.silences()] == ["s3", "s4"]
    assert len(log.told) == 2


def test_a_silence_is_active_until_it_expires_or_is_lifted() -> None:
    log = log_of(quiet("one", for_s=100), quiet("two", for_s=100), loud("two", at=50, by="bob"))
    states = {at: {each.silence.id: each.state(NOON + at) for each in log.silences()} for at in (60, 100)}
    assert states == {60: {"one": "active", "two": "lifted"}, 100: {"one": "expired", "two": "lifted"}}
    assert [each.silence.id for each in log.active_silences(NOON + 60)] == ["one"]
    [lifted] = [each for each in log.silences() if each.lifted]
    assert lifted.ends_unix_s == NOON + 50


def test_a_silence_matches_labels_rule_severity_and_id() -> None:
    of = {"service": "shop", "rule": "slow", "severity": "warning", "alert_id": "a"}
    assert silence_labels(alert("a")) == of
    for label, value in of.items():
        matcher = Matcher(label=label, operator="=", value=value)
        other = Matcher(label=label, operator="!=", value=value)
        assert log_of(quiet("s", matchers=[matcher])).silences()[0].matches(alert("a"))
        assert not log_of(quiet("s", matchers=[matcher, other])).silences()[0].matches(alert("a"))


# -- abbreviated ids -----------------------------------------------------------------------------------


@given(st.sets(st.text("ab", min_size=12, max_size=12), min_size=1))
def test_an_abbreviation_means_its_alert_and_no_other(ids: set[str]) -> None:
    log = log_of(*(alert(id_) for id_ in ids))
    for id_, short in short_ids(ids).items():
        assert len(short) >= MIN_ID
        found = log.find(short)
        assert isinstance(found, Kept)
        assert found.alert.id == id_


def test_an_id_that_is_another_ones_beginning_is_found_by_itself() -> None:
    log = log_of(alert("abc"), alert("abcd"))
    found = log.find("abc")
    assert isinstance(found, Kept)
    assert found.alert.id == "abc"


def test_ids_that_mean_nothing_or_too_much_are_answered_with_what_may_be_meant() -> None:
    log = log_of(alert("aaaa111122"), alert("aaaa222233"), alert("ffff000011", rule="failing"))
    assert why(log.find("aaaa")) == (
        Why.AMBIGUOUS,
        "'aaaa' begins 2 ids (aaaa111, aaaa222 …): give more of it",
    )
    assert why(log.find("aaaa1112")) == (Why.UNKNOWN, "no alert 'aaaa1112'; did you mean aaaa111 or aaaa222?")
    assert why(log.find("failing"))[1] == (
        "no alert 'failing'; that is a rule, of which these alerts are active: ffff000"
    )
    assert why(log.find("zzzzzzz"))[1] == "no alert 'zzzzzzz'; `streammon alerts` lists those there are"
    assert why(log.find(""))[0] is Why.UNKNOWN


def test_in_a_storm_an_unknown_id_is_not_compared_with_all_there_are() -> None:
    """A page is served by the same loop: it took a quarter of a second each."""
    storm = log_of(*((alert(f"{number:07d}"), 0) for number in range(1001)))
    assert why(storm.find("x" * 200)) == (
        Why.UNKNOWN,
        f"no alert {'x' * 80!r}; `streammon alerts` lists those there are",
    )


# -- orders --------------------------------------------------------------------------------------------


def test_an_acknowledgement_names_the_newest_transition_and_goes_where_the_alert_lies() -> None:
    order = acknowledge(log_of((alert("a", 1), 2), (alert("a", 3), 2)), "a", ANN)
    assert isinstance(order, Ready)
    wanted = Acknowledge(alert_id="a", transition=3, id="c1", by="ann", via="cli", note="mine", time_unix_s=NOON + 200)
    assert order.command == wanted
    assert (order.record.topic, order.record.key, order.record.partition) == ("commands", b"a", 2)
    assert msgspec.json.decode(order.record.value or b"", type=AnyCommand) == wanted


@pytest.mark.parametrize(
    ("entries", "reason", "said"),
    [
        ([alert("a", 2, "resolved", at=80)], Why.RESOLVED, "a (slow) is resolved already, since 2 min"),
        ([alert("a", 0, "pending")], Why.PENDING, "a (slow) is pending: it has not fired, and nobody has been told"),
        ([alert("a", 2, "acknowledged")], Why.ACKNOWLEDGED, "a (slow) is acknowledged already"),
        (
            [alert("a", 2, "acknowledged"), ack("a", 1, at=20, by="bob")],
            Why.ACKNOWLEDGED,
            "a (slow) is acknowledged already by bob, 3 min ago",
        ),
        (
            [alert("a", 1), ack("a", 1, at=195, by="bob")],
            Why.ACKNOWLEDGED,
            "a (slow) is acknowledged already by bob, 5 s ago; the rules have yet to take note of it",
        ),
        (
            [alert("a", 2, severity="critical")],
            Why.CHANGED,
            "a (slow) has changed since you looked: it is critical now; look again",
        ),
        ([], Why.UNKNOWN, "no alert 'a'; `streammon alerts` lists those there are"),
    ],
)
def test_an_acknowledgement_that_makes_no_sense_is_refused_with_the_reason(
    entries: list[Any], reason: Why, said: str
) -> None:
    assert why(acknowledge(log_of(*entries), "a", ANN, transition=1)) == (reason, said)


def test_an_acknowledgement_without_effect_may_be_given_again_after_a_minute() -> None:
    assert isinstance(acknowledge(log_of(alert("a"), ack("a", at=139)), "a", ANN), Ready)
    assert isinstance(acknowledge(log_of(alert("a"), ack("a", at=141)), "a", ANN), Refusal)
    again = log_of(alert("a"), ack("a", at=20), ack("a", at=180, by="bob"))
    assert "already by bob, 20 s ago" in why(acknowledge(again, "a", ANN))[1]


def test_of_two_the_first_has_acknowledged() -> None:
    log = log_of(alert("a", 2, "acknowledged"), ack("a", 1, at=20), ack("a", 1, at=30, by="bob"))
    given = log.acknowledgement(log.alerts["a"].alert)
    assert given is not None
    assert given.by == "ann"


def test_an_alert_that_fired_anew_can_be_acknowledged_anew() -> None:
    worse = alert("a", 3, severity="critical")
    assert isinstance(acknowledge(log_of(alert("a", 2, "acknowledged"), ack("a", 1, at=20), worse), "a", ANN), Ready)


def test_a_silence_has_a_short_id_which_is_its_key() -> None:
    matcher = Matcher(label="service", operator="=", value="shop")
    order = silence([matcher], 7200, ANN)
    assert isinstance(order, Ready)
    assert isinstance(order.command, Silence)
    assert (order.command.starts_unix_s, order.command.ends_unix_s) == (NOON + 200, NOON + 7400)
    assert len(order.command.id) == 6
    assert order.record.key == order.command.id.encode()
    assert msgspec.json.decode(order.record.value or b"", type=AnyCommand) == order.command


@pytest.mark.parametrize("for_s", [0.0, 30 * 86_400 + 1.0])
def test_a_silence_of_no_time_or_longer_than_commands_are_kept_is_refused(for_s: float) -> None:
    assert why(silence([Matcher(label="a", operator="=", value="b")], for_s, ANN))[0] is Why.TOO_LONG


def test_a_silence_for_which_the_notifier_has_no_room_is_refused() -> None:
    wide = [Matcher(label="service", operator="=", value="x" * 9_000)]
    log = log_of(*(quiet(f"abc{number}", matchers=wide) for number in range(6)))
    order = silence(wide, 3600.0, ANN)
    assert why(if_obeyed(log, order, ANN.now_unix_s)) == (
        Why.TOO_MANY,
        "6 silences hold already, and no more than 60,000 bytes of them are obeyed; "
        "lift some with `streammon unsilence`",
    )
    assert isinstance(order, Ready)
    assert isinstance(record_of(log, order.command), Refusal)
    small = silence([Matcher(label="a", operator="=", value="b")], 3600.0, ANN)
    assert if_obeyed(log, small, ANN.now_unix_s) is small
    assert if_obeyed(log, order, ANN.now_unix_s + 30 * 86_400) is order  # theirs are over
    assert why(silence([Matcher(label="a", operator="=", value="b" * 10_000)], 60.0, ANN))[0] is Why.TOO_LARGE


def test_a_silence_is_lifted_once_and_while_it_lasts() -> None:
    log = log_of(quiet("abc234"), quiet("xyz567", for_s=60), quiet("xyz999"), loud("xyz999", at=50, by="bob"))
    order = unsilence(log, "abc", ANN)
    assert isinstance(order, Ready)
    assert isinstance(order.command, Unsilence)
    assert (order.command.silence_id, order.record.key) == ("abc234", b"abc234")
    assert why(unsilence(log, "xyz5", ANN)) == (Why.OVER, "xyz567 is over since 2 min")
    assert why(unsilence(log, "xyz9", ANN)) == (Why.OVER, "xyz999 was lifted by bob, 2 min ago")
    assert why(unsilence(log, "xyz", ANN)) == (Why.AMBIGUOUS, "'xyz' begins xyz567, xyz999: give more of it")
    assert why(unsilence(log, "abd234", ANN)) == (Why.UNKNOWN, "no silence 'abd234'; did you mean abc234?")


# -- reading -------------------------------------------------------------------------------------------


async def test_both_topics_are_read_to_their_end(tmp_path: Path) -> None:
    broker = await opened(tmp_path, (alert("a"), 1), (alert("b"), 3))
    await broker.append([outgoing("commands", "a", ack("a"), 1)])
    log = await read_alert_log(broker, keep_transitions=True)
    assert {id_: kept.partition for id_, kept in log.alerts.items()} == {"a": 1, "b": 3}
    assert [told.command for told in log.told.values()] == [ack("a")]
    assert set(log.transitions or {}) == {("a", 1), ("b", 1)}
    assert log.complete
    await broker.close()


async def test_reading_that_takes_too_long_can_be_tried_again() -> None:
    class Stuck:
        async def reader(self, *_: object) -> None:
            await asyncio.Event().wait()

    stuck: Any = Stuck()
    with pytest.raises(Retryable, match=r"not read to their end within 0\.01 s"):
        await read_alert_log(stuck, within_s=0.01)


async def test_a_follower_sees_what_is_written_and_goes_on_after_a_broker_was_away(tmp_path: Path) -> None:
    broker = await opened(tmp_path, (alert("a"), 1))
    log, stop = AlertLog(), asyncio.Event()
    failures = iter([Retryable("away")])

    class Away:
        async def reader(self, topics: Any) -> Any:
            for failure in failures:
                raise failure
            return await broker.reader(topics)

    away: Any = Away()
    following = asyncio.create_task(follow(away, log, stop=stop, poll_s=0.02))
    await eventually(lambda: log.complete, what="reading what there was")
    await append_later(broker)
    await eventually(lambda: log.acknowledgement(log.alerts["a"].alert), what="the acknowledgement")
    stop.set()
    await asyncio.wait_for(following, 5)
    await broker.close()


async def append_later(broker: Broker) -> None:
    noted = alert("a", 2, "acknowledged")
    await broker.append([outgoing("commands", "a", ack("a"), 1), outgoing("alerts", "a", noted, 1)])
