"""What is decided about an action: when it is due, and every reason for which it is not."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from streammon.commands import Acknowledge
from streammon.errors import ConfigError
from streammon.remediation import MOST_IN, AtMost, Known, Policy, Why, load_policies
from streammon.tick import TICK
from streammon.topics import MAX_RECORD_BYTES
from streammon_processors.contract import Stored
from streammon_processors.remediation import GatherRemediesTask, RemedyTask
from streammon_processors.remediation.decide import MOST_OPEN, MOST_SEEN, STALE_S
from tests.remedies import POLICIES, T0, Decision, alert, approval, ended, id_of, states

# --- modes ------------------------------------------------------------------------------------------------------------


def test_an_automatic_action_is_due_at_once() -> None:
    [due] = Decision().at(0, alert())
    assert (due.state, due.dry_run, due.action_version, due.alert_id, due.rule) == ("due", False, "v1", "a1", "slow")
    assert due.id == id_of("restart")


def test_an_action_that_does_not_say_otherwise_is_due_as_a_dry_run() -> None:
    [due] = Decision().at(0, alert(action="scale"))
    assert (due.state, due.dry_run) == ("due", True)
    assert Policy().mode == "dry_run"


def test_an_action_to_be_approved_waits_for_a_person_and_says_who_it_was() -> None:
    decision = Decision()
    assert states(decision.at(0, alert(action="undo"))) == ["awaiting_approval"]
    [due] = decision.at(5, approval(id_of("undo")))
    assert (due.state, due.transition, due.approval and due.approval.by) == ("due", 1, "ann")
    assert decision.at(6, approval(id_of("undo"))) == []


def test_a_person_may_say_no_and_nothing_can_be_approved_after_that() -> None:
    decision = Decision()
    decision.at(0, alert(action="undo"))
    assert states(decision.at(5, approval(id_of("undo"), approved=False))) == ["refused"]
    assert decision.at(6, approval(id_of("undo"))) == []


def test_what_nobody_approves_in_time_expires_as_time_passes() -> None:
    decision = Decision()
    decision.at(0, alert(action="undo"))
    assert list(decision.task.waiting) == ["remedies"]
    assert decision.at(29.9) == []
    assert states(decision.at(30)) == ["expired: unanswered"]
    assert list(decision.task.waiting) == []


def test_a_rule_without_an_action_asks_for_nothing_and_an_unknown_one_is_told() -> None:
    decision = Decision()
    assert decision.at(0, alert(action=None)) == []
    assert states(decision.at(0, alert(action="nonsense"))) == ["skipped: unknown_action"]


def test_an_action_is_asked_for_in_the_state_that_its_policy_names() -> None:
    decision = Decision()
    assert decision.at(0, alert(action="wake")) == []
    assert decision.at(0, alert("b", state="acknowledged")) == []
    assert states(decision.at(0, alert("c", action="wake", state="no_data"))) == ["due"]


# --- reasons against it -----------------------------------------------------------------------------------------------


def test_an_action_cools_down_whichever_alert_asks_for_it() -> None:
    decision = Decision()
    assert states(decision.at(0, alert("a"))) == ["due"]
    assert states(decision.at(4.9, alert("b", 4))) == ["skipped: cool_down"]
    assert states(decision.at(5, alert("c", 5))) == ["due"]
    assert states(decision.at(9.9, alert("d", 9))) == ["skipped: cool_down"]  # since the newest, not the first


def test_an_action_is_due_so_many_times_in_so_long() -> None:
    decision = Decision()
    found = [decision.at(second, alert(f"a{second}", second)) for second in (0, 10, 20, 30, 59, 60)]
    assert [states(each)[0] for each in found] == ["due"] * 3 + ["skipped: rate_limit"] * 2 + ["due"]


def test_actions_have_limits_of_their_own() -> None:
    decision = Decision()
    decision.at(0, alert("a"))
    assert states(decision.at(1, alert("b", action="scale"))) == ["due"]


def test_the_limits_hold_for_what_is_approved_too() -> None:
    decision = Decision()
    decision.at(0, alert("a", action="undo"), alert("b", action="undo"))
    assert states(decision.at(1, approval(id_of("undo", "a")))) == ["due"]
    assert states(decision.at(2, approval(id_of("undo", "b")))) == ["skipped: cool_down"]


def test_an_alert_that_is_old_news_asks_for_nothing() -> None:
    decision = Decision()
    assert states(decision.at(STALE_S + 0.1, alert("old"))) == ["skipped: stale"]
    assert states(decision.at(STALE_S + 0.2, alert("new", STALE_S))) == ["due"]


def test_an_approval_that_is_read_long_after_it_was_given_allows_nothing() -> None:
    """As when the process was away: the alert may have ended since, and its end may lie behind the approval."""
    patient = {"undo": Known(Policy(mode="approve", approve_within="1d"), "v2")}
    decision = Decision(patient)
    decision.at(0, alert("a", action="undo"), alert("b", action="undo"))
    late = STALE_S + 2
    given = approval(id_of("undo", "a"), time_unix_s=T0 + 1)
    assert states(decision.at(late, given)) == ["skipped: stale"]
    refused = approval(id_of("undo", "b"), time_unix_s=T0 + 1, approved=False)
    assert states(decision.at(late, refused)) == ["refused"]  # a no is a no


def test_an_alert_that_gets_worse_while_its_action_is_done_does_not_ask_again() -> None:
    decision = Decision()
    [due] = decision.at(0, alert())
    decision.executed(1, due, "started")
    assert states(decision.at(20, alert(after_s=20, transition=2))) == ["skipped: in_progress"]
    decision.executed(21, due, "done")
    assert states(decision.at(30, alert(after_s=30, transition=3))) == ["due"]


def test_the_same_transition_asks_once_even_when_it_is_read_again() -> None:
    decision = Decision()
    [due] = decision.at(0, alert())
    decision.executed(1, due, "done")
    assert decision.at(100, alert()) == []


def test_an_action_that_has_changed_since_it_was_proposed_is_not_what_was_approved() -> None:
    before = Decision()
    before.at(0, alert(action="undo"))
    for policies in ({}, {"undo": Known(POLICIES["undo"].policy, "another")}):
        after = Decision(policies)
        after.task.restore(before.task.snapshot())
        assert states(after.at(5, approval(id_of("undo")))) == ["skipped: changed"]


def test_more_than_is_remembered_is_not_done() -> None:
    policies = {f"undo{n}": Known(Policy(mode="approve", approve_within="1d"), "v") for n in range(MOST_OPEN)}
    decision = Decision(policies)
    for number in range(MOST_OPEN):
        decision.at(0, alert(f"{number}", action=f"undo{number}"))
    assert states(decision.at(0, alert("one more", action="undo0"))) == ["skipped: too_many"]


def test_a_storm_that_waits_for_a_person_leaves_room_for_other_actions() -> None:
    decision = Decision()
    storm = [decision.at(0, alert(f"{number}", action="undo")) for number in range(MOST_OPEN + 1)]
    assert [states(each)[0] for each in storm[:4]] == ["awaiting_approval"] * 3 + ["skipped: rate_limit"]
    assert states(decision.at(0, alert("another", action="restart"))) == ["due"]
    decision.at(1, approval(id_of("undo", "0"), approved=False))
    assert states(decision.at(1, alert("later", 1, action="undo"))) == ["awaiting_approval"]


# --- the alert ends ---------------------------------------------------------------------------------------------------


def test_an_approval_after_the_alert_has_ended_does_nothing() -> None:
    decision = Decision()
    decision.at(0, alert(action="undo"))
    assert states(decision.at(5, ended(after_s=5))) == ["withdrawn: resolved"]
    assert decision.at(6, approval(id_of("undo"))) == []
    assert list(decision.task.waiting) == []


def test_what_is_due_and_not_begun_is_withdrawn_and_then_forgotten() -> None:
    decision = Decision()
    [due] = decision.at(0, alert())
    assert states(decision.at(5, ended(after_s=5))) == ["withdrawn: resolved"]
    assert decision.executed(6, due, "expired", reason=Why.RESOLVED) == []
    assert b'"open":{}' in decision.task.snapshot()


def test_what_began_in_the_moment_in_which_it_was_withdrawn_is_written_down_as_it_was() -> None:
    decision = Decision()
    [due] = decision.at(0, alert())
    decision.at(5, ended(after_s=5))
    [started] = decision.executed(6, due, "started")
    [done] = decision.executed(7, due, "done", detail="scaled")
    assert [(each.state, each.transition) for each in (started, done)] == [("started", 2), ("done", 3)]
    assert done.detail == "scaled"


def test_what_has_begun_goes_on_when_its_alert_ends() -> None:
    decision = Decision()
    [due] = decision.at(0, alert())
    decision.executed(1, due, "started")
    assert decision.at(5, ended(after_s=5)) == []
    assert states(decision.executed(6, due, "unknown", detail="?")) == ["unknown"]


# --- bounds -----------------------------------------------------------------------------------------------------------


def test_the_largest_snapshot_fits_into_a_record() -> None:
    policy = Policy(mode="approve", approve_within="1d", at_most=AtMost(count=MOST_IN))
    policies = {f"{number:100d}": Known(policy, "v" * 12) for number in range(20)}
    decision = Decision(policies)
    for number in range(MOST_OPEN + MOST_SEEN):
        name = f"{number % 20:100d}"
        large = alert(f"{number:032x}", action=name, summary="ü" * 2000, labels={"service": "x" * 980}, rule="r" * 100)
        decision.at(0, large)
    snapshot = decision.task.snapshot()
    assert MAX_RECORD_BYTES / 4 < len(snapshot) < 0.7 * MAX_RECORD_BYTES  # retrainings may take the rest


def test_labels_that_are_too_long_to_remember_are_left_out() -> None:
    [due] = Decision().at(0, alert(labels={"service": "x" * 2000}))
    assert due.labels == {}


def test_a_bad_record_is_a_dead_letter() -> None:
    task = RemedyTask(POLICIES, 0)
    [letter] = task.process("remedies", [Stored(b"{", 0, 0, 0)])
    assert letter.topic == "deadletter"
    assert dict(task.offsets()) == {"remedies": 1}


# --- gathering --------------------------------------------------------------------------------------------------------


def test_alerts_that_ask_for_something_ends_and_approvals_are_gathered_without_evidence() -> None:
    task = GatherRemediesTask(3)
    asking, end = alert(evidence={"window": {}}), ended(action=None)
    left_out = [alert(action=None), alert(state="pending", transition=0), ended(transition=1, action=None)]
    records = [Stored(msgspec.json.encode(each), n, 0) for n, each in enumerate([asking, *left_out, end])]
    found = task.process("alerts", [*records, Stored(None, 9, 0), Stored(TICK, 10, 0)])
    assert [each.value for each in found] == [msgspec.json.encode(each) for each in (replace(asking, evidence={}), end)]
    assert {(each.topic, each.partition) for each in found} == {("remedies", 0)}
    yes, seen = approval("x"), Acknowledge(id="1", time_unix_s=T0, by="ann", alert_id="a", transition=1)
    commands = [Stored(msgspec.json.encode(each), n, 1_700_000_042_000) for n, each in enumerate([yes, seen])]
    by_the_broker = msgspec.json.encode(replace(yes, time_unix_s=T0 + 42))
    assert [each.value for each in task.process("commands", commands)] == [by_the_broker]


# --- the file ---------------------------------------------------------------------------------------------------------


def test_a_version_is_of_all_that_is_in_the_file_about_an_action(tmp_path: Path) -> None:
    def version(text: str) -> str:
        file = tmp_path / "actions.yaml"
        file.write_text(f"actions: {{a: {text}}}")
        return load_policies(file)["a"].version

    one = version("{type: kafka, topic: t}")
    assert version("{topic: t, type: kafka}") == one
    assert version("{type: kafka, topic: other}") != one
    assert version("{type: kafka, topic: t, mode: auto}") != one


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{mode: automatic}", "Invalid enum value 'automatic'"),
        ("{cool_down: soon}", "'soon' is no duration"),
        ("{timeout: 1h}", "`timeout` has to be more than 0 and at most 5m"),
        ("{at_most: {count: 0}}", "Expected `int` >= 1"),
    ],
)
def test_a_bad_policy_is_refused_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "actions.yaml"
    file.write_text(f"actions:\n  restart: {text}\n")
    with pytest.raises(ConfigError, match=message) as error:
        load_policies(file)
    assert f"{file}:2:" in str(error.value)
