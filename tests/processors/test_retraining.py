"""The loop of a retraining: when it is asked for, every state it comes to, and every way in which it ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from msgspec.structs import replace

from streammon.broker import Headers
from streammon.errors import ConfigError
from streammon.remediation import MOST_MODELS, AtMost, Known, Policies, Policy, Requests, Why, load_policies
from streammon.results import Completeness, Distribution, Interval, Loop, Quality, Run, Window
from streammon.retraining import Confirm
from streammon.sketch import Sketch
from streammon.topics import MAX_RECORD_BYTES, ROLLUP_HEADER
from streammon_processors.contract import Stored
from streammon_processors.remediation.comparing import MOST_RECENT
from streammon_processors.remediation.decide import STALE_S
from streammon_processors.remediation.gather import GatherRemediesTask, decode_remedy, inputs
from streammon_processors.remediation.retraining import (
    BUCKETS,
    MOST_ASKING,
    MOST_CLOSED,
    MOST_KNOWN,
    MOST_LOOPS,
    MOST_NAME,
    MOST_REASONS,
    change_time,
)
from tests.loops import LABELS, LOOPING, RETRAIN, Looping, deploy, drifted, labelled, predicted, requested, run, said
from tests.remedies import T0, approval, ended, executed, states

HOUR_S = 3600.0


def policies(**changes: Any) -> Policies:
    return {"retrain": Known(Policy(mode="auto", cool_down=0, retrain=replace(RETRAIN, **changes)), "v1")}


# --- is it asked for? -------------------------------------------------------------------------------------------------


def test_an_alert_asks_for_a_retraining_and_a_change_says_so_once() -> None:
    looping = Looping()
    [loop] = looping.at(0, drifted(), drifted())
    assert (loop.state, loop.service, loop.model, loop.old_version, loop.transition) == (
        "approved",
        *LABELS.values(),
        0,
    )
    [change] = looping.changes
    assert (change.kind, change.service, change.model, change.ref) == ("retrain", "shop", "ranker", loop.id)
    assert change.actor == "rule input-drift"


def test_an_action_trains_the_model_that_the_file_names_whatever_alert_asks() -> None:
    looping = Looping()
    assert looping.at(0, drifted(labels=LABELS | {"model": "other"})) == []
    assert states(looping.remediations) == ["skipped: other_model"]
    assert looping.at(1, drifted("a2", labels={"job": "features"})) != []  # says nothing against it


@pytest.mark.parametrize(
    ("labels", "reason"),
    [(0, "too_few_labels"), (99, "too_few_labels"), (150, "low_coverage")],
)
def test_a_model_without_enough_labels_is_not_trained_anew(labels: int, reason: str) -> None:
    looping = Looping(labels=labels)
    assert looping.at(0, drifted()) == []
    assert states(looping.remediations) == [f"skipped: {reason}"]


def test_labels_count_for_a_while_only() -> None:
    looping = Looping()
    assert looping.at(1.2 * HOUR_S, drifted(after_s=1.2 * HOUR_S)) == []
    looping.at(1.3 * HOUR_S, labelled(1.3 * HOUR_S, 100))
    assert looping.at(1.4 * HOUR_S, drifted("a2", 1.4 * HOUR_S)) != []


def test_labels_count_whatever_the_number_of_versions_that_serve_at_once() -> None:
    looping = Looping(labels=0)
    for number in range(5):
        looping.at(number, *(labelled(number, 5, 0.8, str(version)) for version in range(5)))
    assert looping.at(10, drifted(after_s=10)) != []
    [model] = looping.task._memory.retraining.models.values()
    assert [*model.versions] == ["0", "1", "2"]  # and none of those is forgotten for another


def test_labels_of_a_cohort_are_those_that_come_by_label() -> None:
    looping = Looping(labels=0)
    looping.at(0, predicted(-600, 1000, labelled=900))
    assert looping.at(1, drifted()) == []
    assert states(looping.remediations) == ["skipped: too_few_labels"]


def test_labels_are_counted_anew_when_they_count_for_another_time() -> None:
    before = Looping()
    after = Looping(policies(labels_within="2h"), labels=0)
    after.task.restore(before.task.snapshot())
    after.at(0, labelled(-60, 1))
    assert after.at(1, drifted()) == []
    assert states(after.remediations) == ["skipped: too_few_labels"]


def test_more_than_are_followed_are_not_begun() -> None:
    def named(number: int) -> tuple[str, Known]:
        retrain = replace(RETRAIN, model=f"m{number}", min_labels=0)
        return f"retrain-{number}", Known(Policy(mode="auto", cool_down=0, retrain=retrain), "v")

    looping = Looping(dict(named(number) for number in range(MOST_LOOPS + 1)), labels=0)
    for number in range(MOST_LOOPS + 1):
        looping.at(0, drifted(f"{number}", action=f"retrain-{number}", labels={}))
    assert states(looping.remediations)[-2:] == ["due", "skipped: too_many"]


def test_what_else_asks_meanwhile_is_one_more_reason_for_the_same() -> None:
    looping = Looping()
    looping.at(0, drifted("a"))
    [loop] = looping.at(60, drifted("b", 60, rule="accuracy-falls", action="retrain-asking"))
    assert [each.rule for each in loop.reasons] == ["input-drift", "accuracy-falls"]
    assert states(looping.remediations)[-1] == "skipped: in_progress"
    for number in range(9):
        looping.at(70, drifted(f"c{number}", 70))
    assert [each.alert_id for each in looping.loops[-1].reasons] == ["a", "c6", "c7", "c8"]
    assert len(looping.loops[-1].reasons) == MOST_REASONS
    assert len(looping.changes) == 1


def test_a_limit_keeps_no_reason_from_what_is_open() -> None:
    once = Policy(mode="approve", cool_down=0, at_most=AtMost(count=1), retrain=RETRAIN)
    looping = Looping({"retrain": Known(once, "v1")})
    looping.at(0, drifted("a"))
    [loop] = looping.at(60, drifted("b", 60))
    assert [each.alert_id for each in loop.reasons] == ["a", "b"]


def test_an_alert_that_is_old_news_is_no_reason() -> None:
    looping = Looping()
    looping.at(0, drifted("a"))
    assert looping.at(STALE_S + 1, drifted("old")) == []
    assert states(looping.remediations)[-1] == "skipped: stale"


def test_an_alert_that_gets_worse_is_no_further_reason() -> None:
    looping = Looping()
    looping.at(0, drifted("a"))
    assert looping.at(60, drifted("a", 60, transition=2)) == []


def test_a_retraining_that_has_ended_cools_down_as_any_action() -> None:
    looping = Looping({"retrain": Known(Policy(mode="auto", cool_down="30m", retrain=RETRAIN), "v1")})
    looping.at(0, drifted("a"))
    looping.done(1, "failed")
    assert looping.at(60, drifted("b", 60)) == []
    assert states(looping.remediations)[-1] == "skipped: cool_down"


def test_a_dry_run_says_what_it_would_do_and_no_change_is_told() -> None:
    looping = Looping()
    looping.at(0, drifted(action="retrain-dry"))
    looping.done(1, detail="would post")
    assert looping.states == ["approved", "closed: dry_run"]
    assert looping.changes == []


# --- somebody says yes or no ------------------------------------------------------------------------------------------


def asked() -> Looping:
    looping = Looping()
    looping.at(0, drifted(action="retrain-asking"))
    return looping


def test_a_retraining_waits_for_a_person_and_tells_who_it_was() -> None:
    looping = asked()
    assert (looping.states, looping.changes) == (["awaiting_approval"], [])
    [loop] = looping.at(60, approval(looping.id))
    assert (loop.state, loop.by, looping.changes[0].actor) == ("approved", "ann", "ann")
    assert loop.times == {"awaiting_approval": loop.requested_unix_s, "approved": loop.requested_unix_s + 60}


def test_a_refusal_ends_it_and_nothing_was_asked_of_anybody() -> None:
    looping = asked()
    [loop] = looping.at(60, approval(looping.id, approved=False))
    assert (said(loop), loop.by, looping.changes) == ("closed: refused", "ann", [])
    assert looping.at(70, drifted("b", 70))  # the next may be asked for


def test_what_nobody_approves_expires() -> None:
    looping = asked()
    [loop] = looping.at(HOUR_S)
    assert said(loop) == "closed: expired (unanswered)"


def test_it_is_withdrawn_only_when_none_of_its_reasons_is_left() -> None:
    looping = asked()
    looping.at(10, drifted("b", 10))
    [still] = looping.at(20, ended("a1", 20))
    assert (still.state, [each.ended_unix_s is None for each in still.reasons]) == ("awaiting_approval", [False, True])
    _, closed = looping.at(30, ended("b", 30))
    assert said(closed) == "closed: withdrawn (resolved)"


def test_it_is_wanted_while_any_alert_goes_on_that_asked_for_it_also_one_that_is_not_named_any_more() -> None:
    looping = asked()
    for number in range(2 * MOST_REASONS):
        looping.at(10, drifted(f"b{number}", 10))
    for number in range(1, 2 * MOST_REASONS):
        looping.at(20, ended(f"b{number}", 20))
    looping.at(20, ended("a1", 20))
    assert looping.states[-1] == "awaiting_approval"
    looping.at(30, ended("b0", 30))
    assert looping.states[-1] == "closed: withdrawn (resolved)"


def test_an_alert_that_comes_back_asks_again() -> None:
    looping = asked()
    looping.at(10, drifted("b", 10))
    looping.at(20, ended("b", 20), ended("c", 20))
    [back] = looping.at(30, drifted("b", 30, transition=5))
    assert [each.ended_unix_s for each in back.reasons] == [None, None]
    looping.at(40, ended("a1", 40))
    assert looping.states[-1] == "awaiting_approval"


def test_reasons_that_are_over_are_left_out_before_others() -> None:
    looping = asked()
    looping.at(10, *(drifted(f"b{number}", 10) for number in range(MOST_REASONS - 1)))
    looping.at(20, ended("b1", 20))
    [loop] = looping.at(30, drifted("c", 30))
    assert [each.alert_id for each in loop.reasons] == ["a1", "b0", "b2", "c"]


def test_what_was_approved_goes_on_when_its_alert_ends() -> None:
    looping = Looping()
    looping.at(0, drifted())
    [loop] = looping.at(1, ended(after_s=1))
    assert loop.state == "approved"
    assert states(looping.remediations) == ["due"]


def test_what_was_not_done_for_another_reason_is_told_with_it() -> None:
    looping = asked()
    after = Looping({"retrain-asking": Known(LOOPING["retrain-asking"].policy, "another")}, labels=0)
    after.task.restore(looping.task.snapshot())
    [loop] = after.at(60, approval(looping.id, time_unix_s=T0 + 60))
    assert (said(loop), loop.by) == ("closed: skipped (changed)", "ann")
    late = Looping()
    late.approved()
    due = late.remediations[-1]
    [loop] = late.at(700, executed(due, "expired", 700, reason=Why.LATE, detail="x" * 1000))
    assert (said(loop), len(loop.detail or "")) == ("closed: expired (late)", 300)


# --- hook and run -----------------------------------------------------------------------------------------------------


def test_the_whole_way_to_a_new_version() -> None:
    looping = Looping()
    looping.deployed()
    assert looping.states == ["approved", "started", "training", "trained", "deployed"]
    loop = looping.loops[-1]
    assert (loop.job, loop.run_id, loop.old_version, loop.new_version) == ("train-ranker", "r1", "7", "8")
    assert [each.transition for each in looping.loops] == [0, 1, 2, 3, 4]
    assert [*loop.times] == ["approved", "started", "training", "trained", "deployed"]


def test_a_hook_that_fails_ends_it_and_one_whose_end_nobody_knows_does_not() -> None:
    looping = Looping()
    looping.approved()
    [loop] = looping.done(1, "failed", detail="answered 403")
    assert (said(loop), loop.detail) == ("closed: failed (hook)", "answered 403")
    looping.approved(10, id_="b")
    [loop] = looping.done(11, "unknown", detail="no end within 30 s; it may have been done")
    assert loop.state == "started"


def test_a_run_is_known_by_the_id_of_the_request_or_by_its_job() -> None:
    looping = Looping()
    looping.approved(100)
    assert looping.at(110, run(110, job="another")) == []
    assert looping.at(110, run(50)) == []  # began before it was asked for
    [loop] = looping.at(120, run(120, job="another", run_id=f"manual-{looping.id}"))
    assert (loop.state, loop.job) == ("training", "another")
    assert looping.at(130, run(130, "failed")) == []  # that is another run by now


def test_a_run_that_was_seen_before_the_hook_has_ended_is_not_forgotten_when_it_does() -> None:
    looping = Looping()
    looping.approved()
    looping.at(1, run(1))
    assert looping.done(2) == []
    assert looping.loops[-1].state == "training"


@pytest.mark.parametrize("event", ["failed", "lost"])
def test_a_run_that_fails_ends_it(event: str) -> None:
    looping = Looping()
    looping.approved()
    looping.done(1)
    record = run(60, event) if event == "failed" else b'{"schema":1,"type":"run","job":"train-ranker","run_id":"r1",'
    if isinstance(record, bytes):
        record += b'"state":"lost","started_unix_s":1700000050}'
    found = looping.at(60, record)
    assert said(found[-1]) == "closed: failed (run)"


def test_a_deploy_may_come_without_any_run() -> None:
    looping = Looping()
    looping.approved()
    looping.done(1)
    [loop] = looping.at(60, deploy(60))
    assert loop.state == "deployed"


def test_a_deploy_of_a_version_that_was_there_before_or_of_another_model_is_not_the_new_one() -> None:
    looping = Looping()
    looping.at(0, deploy(-100, "6"), labelled(-60, 10, version="5"))
    looping.approved()
    others = [
        deploy(60, "6"),
        deploy(60, "5"),
        deploy(60, "4", kind="rollback"),
        deploy(-60, "3"),
        deploy(60, "7"),
        deploy(60, "8", model="other"),
        deploy(60, "8", service="x"),
        deploy(60, None),
    ]
    told = looping.at(60, *others)
    assert [(said(each), each.old_version) for each in told] == [("approved", each) for each in "6547"]
    assert looping.at(61, deploy(61, "3"), deploy(61, "4")) != []  # they have served
    [loop] = looping.at(62, deploy(62, "8", model=None))
    assert (loop.state, loop.old_version, loop.new_version) == ("deployed", "4", "8")


def test_what_is_deployed_before_it_is_approved_is_the_old_version() -> None:
    looping = asked()
    looping.at(50, deploy(50, "8"))
    looping.at(100, approval(looping.id, time_unix_s=T0 + 100))
    assert looping.at(150, deploy(150, "8")) == []  # on one more host
    [loop] = looping.at(200, deploy(200, "9"))
    assert (loop.state, loop.old_version, loop.new_version) == ("deployed", "8", "9")


def test_a_deploy_that_says_it_is_of_the_future_is_watched_from_now_on() -> None:
    looping = Looping()
    looping.approved()
    looping.at(60, deploy(1e7))
    looping.at(120, predicted(60, 1000, "8"), labelled(60, 1000, 0.99, "8"))
    assert said(looping.loops[-1]) == "closed: helped (measured)"


def two_models() -> Looping:
    """Both with a training that was approved, by runs of one job."""
    other = replace(RETRAIN, model="other", min_labels=0)
    looping = Looping(dict(policies()) | {"other": Known(Policy(mode="auto", cool_down=0, retrain=other), "v2")})
    looping.at(0, drifted(), drifted("a2", action="other", labels={}))
    return looping


def test_a_run_is_of_one_model_whoever_else_waits_for_one_of_its_job() -> None:
    looping = two_models()
    [first] = looping.at(10, run(10, run_id="one"))
    [second] = looping.at(11, run(11, run_id="two"))
    assert [(each.model, each.state) for each in (first, second)] == [("ranker", "training"), ("other", "training")]
    [failed] = looping.at(20, run(20, "failed", run_id="one"))
    assert (failed.model, said(failed)) == ("ranker", "closed: failed (run)")


def test_a_run_that_was_of_one_is_of_no_other_once_that_has_ended() -> None:
    looping = two_models()
    looping.at(10, run(10, run_id="one"), run(11, "failed", run_id="one"))
    again = Run(job="train-ranker", run_id="one", state="failed", started_unix_s=T0 + 10)
    assert looping.at(12, again) == []
    [other] = looping.at(13, run(13, run_id="two"))
    assert (other.model, other.state) == ("other", "training")


def test_a_run_with_the_id_of_a_request_is_of_that_one() -> None:
    looping = two_models()
    [other] = [each for each in looping.loops if each.model == "other"]
    [loop] = looping.at(10, run(10, run_id=f"train-{other.id}"))
    assert (loop.model, loop.state) == ("other", "training")


# --- every state has its time -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("until", "after_s", "closed"),
    [
        (0, HOUR_S, "timed_out (no_run)"),
        (1, HOUR_S + 1, "timed_out (no_run)"),
        (2, 2 * HOUR_S + 60, "timed_out (no_end)"),
        (3, 3 * HOUR_S + 120, "timed_out (no_deploy)"),
        (4, 4 * HOUR_S + 180, "no_change (too_little_data)"),
    ],
)
def test_every_state_has_its_time(until: int, after_s: float, closed: str) -> None:
    looping = Looping()
    looping.approved()
    steps: list[Callable[[], list[Loop]]] = [
        lambda: looping.done(1),
        lambda: looping.at(60, run(60)),
        lambda: looping.at(120, run(120, "finished")),
        lambda: looping.at(180, deploy(180)),
    ]
    for step in steps[:until]:
        step()
    assert looping.loops[-1].deadline_unix_s is not None
    assert looping.at(after_s - 1) == []
    assert list(looping.task.waiting) == ["remedies"]
    [loop] = looping.at(after_s)
    assert said(loop) == f"closed: {closed}"
    assert list(looping.task.waiting) == []


# --- confirmation -----------------------------------------------------------------------------------------------------


def watched(new: float, *, windows: int = 10, old: float = 0.7, **confirm: Any) -> Looping:
    """A new version whose labels come, 100 a window, after those of the old one."""
    looping = Looping(policies(confirm=replace(RETRAIN.confirm, **confirm)), labels=0)
    looping.at(0, predicted(-60, 1000), labelled(-60, 900, old))
    looping.deployed()
    for number in range(windows):
        if looping.loops[-1].state != "closed":
            start = 420 + 60 * number
            looping.at(start + 60, predicted(start, 500, "8"), labelled(start, 100, new, "8"))
    return looping


def test_a_version_that_is_better_has_helped() -> None:
    loop = watched(0.9).loops[-1]
    assert said(loop) == "closed: helped (measured)"
    found = loop.comparison
    assert found
    assert (found.measure, found.way) == ("accuracy", "before_after")
    assert (found.old, found.new) == pytest.approx((0.7, 0.9))
    assert 0 < found.interval.low < found.difference < found.interval.high
    assert found.old_count == 900


def test_a_version_that_is_worse_is_told() -> None:
    assert said(watched(0.5).loops[-1]) == "closed: worse (measured)"


def test_two_that_are_alike_are_no_change_once_no_difference_that_matters_is_left() -> None:
    looping = watched(0.7, windows=40, smallest=0.15)
    assert said(looping.loops[-1]) == "closed: no_change (equivalent)"


def test_what_the_interval_does_not_decide_in_time_is_no_change() -> None:
    looping = watched(0.71, windows=3)
    assert looping.loops[-1].state == "confirming"
    [loop] = looping.at(5 * HOUR_S)
    assert (said(loop), loop.comparison is None) == ("closed: no_change (undecided)", False)


def test_labels_without_a_prediction_are_no_evidence() -> None:
    looping = watched(0.7, windows=0)
    looping.at(600, predicted(540, 5000, "8"), labelled(540, 5000, 0.75, "8", judged=99))
    looping.at(660, labelled(600, 5000, 0.75, "8", judged=1))
    before, after = (each.comparison for each in looping.loops[-2:])
    assert before is None
    assert after is not None
    assert after.new_count == 100


def test_nobody_looks_before_there_are_enough_labels() -> None:
    looping = watched(1.0, windows=1, min_labels=200)
    assert (looping.loops[-1].state, looping.loops[-1].comparison) == ("confirming", None)
    [loop] = looping.at(5 * HOUR_S)
    assert said(loop) == "closed: no_change (too_little_data)"


def test_versions_that_serve_side_by_side_are_compared_in_the_same_windows() -> None:
    """The old one was worse before; beside the new one, which has an easier time too, it is as good."""
    looping = Looping(labels=0)
    looping.at(0, predicted(-60, 1000), labelled(-60, 900, 0.5))
    looping.deployed()
    for number in range(3):
        start = 420 + 60 * number
        looping.at(start + 60, predicted(start, 200), predicted(start, 200, "8"))
        looping.at(start + 60, labelled(start, 100, 0.9), labelled(start, 100, 0.9, "8"))
    found = looping.loops[-1].comparison
    assert looping.loops[-1].state == "confirming"
    assert found
    assert (found.way, found.windows) == ("side_by_side", 3)
    assert (found.old, found.new) == pytest.approx((0.9, 0.9))
    assert (found.old_count, found.new_count) == (300, 300)


def test_a_deploy_that_goes_bit_by_bit_is_compared_with_before_once_the_old_version_is_silent() -> None:
    """While both serve they are compared side by side; then there is nobody beside it any more."""
    looping = Looping(policies(confirm=replace(RETRAIN.confirm, smallest=0)), labels=0)
    looping.at(0, predicted(-60, 1000), labelled(-60, 900, 0.7))
    looping.deployed()
    looping.at(480, predicted(420, 50_000), predicted(420, 500, "8"))
    looping.at(480, labelled(420, 110, 0.7), labelled(420, 110, 0.71, "8"))
    ways = [found.way for loop in looping.loops if (found := loop.comparison)]
    for number in range(1, 65):
        start = 420 + 60 * number
        looping.at(start + 60, predicted(start, 500, "8"), labelled(start, 100, 0.71, "8"))
        ways += [found.way for loop in looping.loops[-1:] if (found := loop.comparison)]
    assert ways == sorted(ways, reverse=True)
    assert {*ways} == {"side_by_side", "before_after"}
    found = looping.loops[-1].comparison
    assert found
    assert (found.old_count, found.new_count) == (1010, 6510)


def test_it_is_not_decided_who_serves_before_anybody_has_said_so_or_a_while_has_passed() -> None:
    looping = Looping(labels=0)
    looping.at(0, labelled(-60, 900, 0.7))
    looping.deployed()
    looping.at(480, labelled(420, 500, 0.9, "8"))
    assert (looping.loops[-1].state, looping.loops[-1].comparison) == ("confirming", None)
    quarter = 400 + RETRAIN.confirm.within_s / 4
    looping.at(quarter, labelled(quarter - 60, 100, 0.9, "8"))
    assert said(looping.loops[-1]) == "closed: helped (measured)"


def test_errors_are_compared_by_the_mean_of_what_they_are_off_by() -> None:
    looping = Looping(labels=0)
    looping.at(0, predicted(-60, 1000), labelled(-60, 900, None, mae=2.0, rmse=2.5))
    looping.deployed()
    for number in range(5):
        start = 420 + 60 * number
        looping.at(start + 60, predicted(start, 500, "8"), labelled(start, 100, None, "8", mae=1.0, rmse=1.2))
    assert said(looping.loops[-1]) == "closed: helped (measured)"
    assert looping.loops[-1].comparison
    assert looping.loops[-1].comparison.measure == "mae"


def test_an_estimate_counts_only_where_it_is_asked_for() -> None:
    def looks(**confirm: Any) -> Looping:
        looping = Looping(policies(min_labels=0, min_coverage=0, confirm=replace(RETRAIN.confirm, **confirm)), labels=0)
        looping.at(0, predicted(-60, 1000, estimated_accuracy=0.6))
        looping.deployed()
        looping.at(480, predicted(420, 1000, "8", estimated_accuracy=0.9))
        return looping

    assert looks(measure="estimated_accuracy").states[-1] == "closed: helped (measured)"
    assert looks().states[-1] == "deployed"


def test_more_failing_requests_are_worse_however_good_the_answers_are() -> None:
    looping = Looping(labels=0)
    looping.at(0, predicted(-60, 1000), labelled(-60, 900, 0.7), requested(-60, 1000, 5))
    looping.deployed()
    looping.at(480, requested(420, 1000, 200, "8"), labelled(420, 100, 0.72, "8"))
    looping.at(540, requested(480, 1000, 200, "8"))
    loop = looping.loops[-1]
    assert said(loop) == "closed: worse (errors)"
    assert loop.guards[0].measure == "error_rate"


def test_a_few_more_failing_requests_are_not_worse_however_sure_that_is() -> None:
    looping = Looping(labels=0)
    looping.at(0, predicted(-60, 1000), labelled(-60, 900, 0.7), requested(-60, 1_000_000, 1000))
    looping.deployed()
    looping.at(480, requested(420, 1_000_000, 3000, "8"))
    [guard] = looping.loops[-1].guards
    assert guard.interval.low > 0
    assert looping.loops[-1].state == "deployed"


def test_more_slow_requests_are_worse_where_somebody_asks() -> None:
    def looks(**confirm: Any) -> Looping:
        looping = Looping(policies(confirm=replace(RETRAIN.confirm, **confirm)))
        looping.at(0, requested(-60, 1000, 5, slow=10))
        looping.deployed()
        looping.at(480, requested(420, 1000, 5, "8", slow=200))
        return looping

    assert looks(slow="500ms").states[-1] == "closed: worse (slow)"
    assert [each.measure for each in looks(slow="500ms").loops[-1].guards] == ["error_rate", "slow_rate"]
    assert looks().states[-1] == "deployed"


def test_errors_are_seen_before_there_is_any_label() -> None:
    looping = Looping()
    looping.at(0, requested(-60, 1000, 5))
    looping.deployed()
    [loop] = looping.at(480, requested(420, 1000, 200, "8"))
    assert said(loop) == "closed: worse (errors)"


def test_who_does_not_ask_about_errors_is_not_told() -> None:
    looping = watched(0.71, windows=1, errors=False)
    looping.at(500, requested(420, 1000, 900, "8"))
    assert (looping.loops[-1].state, looping.loops[-1].guards) == ("confirming", [])


@pytest.mark.parametrize(
    ("version", "kind", "closed"),
    [
        ("7", "rollback", "failed (rolled_back)"),
        ("7", "deploy", "failed (rolled_back)"),
        ("9", "deploy", "overtaken (another_version)"),
    ],
)
def test_a_version_that_does_not_stay_is_not_judged(version: str, kind: str, closed: str) -> None:
    looping = watched(0.71, windows=1)
    assert looping.at(1000, deploy(1000, "8"), deploy(300, version, kind=kind)) == []  # known; older
    [loop] = looping.at(1000, deploy(1000, version, kind=kind))
    assert said(loop) == f"closed: {closed}"


def test_what_was_approved_holds_to_the_end() -> None:
    before = watched(0.71, windows=1)
    after = Looping({}, labels=0)
    after.task.restore(before.task.snapshot())
    [loop] = after.at(600, labelled(540, 1000, 0.95, "8"))
    assert said(loop) == "closed: helped (measured)"


# --- gathering --------------------------------------------------------------------------------------------------------


def gathered(topic: str, *contents: Any, headers: Headers = (), policies: Policies = LOOPING) -> list[Any]:
    """What of these comes into the one order."""
    task = GatherRemediesTask(3, policies, "60s")
    values = [each if isinstance(each, bytes) else msgspec.json.encode(each) for each in contents]
    records = [Stored(value, n, 0, headers=headers) for n, value in enumerate(values)]
    return [decode_remedy(each.value or b"") for each in task.process(topic, records) if each.topic == "remedies"]


def test_of_quality_whatever_is_new_about_all_predictions_of_these_models_is_gathered() -> None:
    label, cohort = labelled(0, 10, intervals={"accuracy": Interval(0.8, 0.9)}), predicted(0, 10)
    others = [
        labelled(0, 10, slice={"tenant": "a"}),
        predicted(0, 10, revision=1),
        replace(label, model="other"),
        replace(label, service="x"),
    ]
    assert gathered("quality", label, *others, cohort) == [replace(label, intervals={}), cohort]


def test_of_changes_and_runs_it_is_what_tells_how_a_retraining_goes_on() -> None:
    new = deploy(0)
    others = [deploy(0, kind="config"), deploy(0, kind="retrain"), deploy(0, service="x")]
    assert gathered("changes", new, msgspec.json.encode([*others, deploy(1, kind="rollback")]), b"{") == [
        new,
        deploy(1, kind="rollback"),
    ]
    long = run(0, "failed", error={"text": "x" * 1000}, step="fit")
    assert gathered("pipelines", long, run(0, "step_started"), run(0, "skipped")) == [run(0, "failed")]
    told = Run(job="j", run_id="r", state="running")
    assert gathered("runs", told) == [told]


def test_of_windows_it_is_requests_of_these_models_in_rollups_of_one_length() -> None:
    made = Window(
        source="inference",
        part="main",
        revision=0,
        series={"service": "shop", "model": "ranker", "model_version": "8", "endpoint": "/rank"},
        start_unix_s=T0,
        end_unix_s=T0 + 60,
        size_s=60.0,
        partition=3,
        count=100,
        throughput_per_s=1.7,
        completeness=Completeness(),
        error_count=7,
        of_s=2.0,
    )
    empty = [replace(made, count=0), replace(made, source="resource"), replace(made, series={"host": "a"})]
    rollup: Headers = ((ROLLUP_HEADER, b"60s"),)
    assert gathered("windows", made, *empty, headers=rollup) == [requested(0, 100, 7, "8")]
    asking = Known(Policy(retrain=replace(RETRAIN, confirm=replace(RETRAIN.confirm, slow="500ms"))), "v")
    durations = Distribution(
        count=4,
        sum=2.0,
        min=0.1,
        max=0.9,
        mean=0.5,
        p50=0.5,
        p90=0.9,
        p99=0.9,
        sketch=Sketch.of(np.array([0.1, 0.4, 0.6, 0.9])),
    )
    timed = replace(made, duration_s=durations)
    assert gathered("windows", timed, made, headers=rollup, policies={"a": asking}) == [
        requested(0, 100, 7, "8", slow=2),
        requested(0, 100, 7, "8"),
    ]
    assert gathered("windows", made) == gathered("windows", made, headers=((ROLLUP_HEADER, b"300s"),)) == []


def test_topics_are_read_only_where_an_action_needs_them() -> None:
    assert inputs({}) == inputs({"a": Known(Policy(), "v")}) == ("alerts", "commands")
    assert "windows" in inputs(LOOPING)
    assert "windows" not in inputs(policies(confirm=replace(RETRAIN.confirm, errors=False)))


def test_the_changes_of_others_are_not_taken_for_ours_in_a_replay() -> None:
    looping = Looping()
    looping.approved()
    assert change_time(msgspec.json.encode(looping.changes[0])) == T0
    assert change_time(msgspec.json.encode(replace(looping.changes[0], agent=None))) is None
    assert change_time(b"[]") is None


# --- bounds -----------------------------------------------------------------------------------------------------------


def test_names_without_end_are_not_remembered() -> None:
    looping = Looping()
    looping.approved()
    long = "x" * (MOST_NAME + 1)
    others = [run(1, run_id=long + looping.id), run(1, job=long), deploy(1, long), labelled(0, 10, version=long)]
    assert looping.at(1, *others, requested(0, 10, 0, long), predicted(0, 10, long)) == []
    assert long.encode() not in looping.task.snapshot()


def test_those_that_ended_long_ago_are_forgotten_on_the_topic() -> None:
    looping = Looping({"retrain": Known(Policy(mode="auto", cool_down=0, retrain=replace(RETRAIN, min_labels=0)), "v")})
    forgotten = []
    for number in range(2 * (MOST_CLOSED + 1)):
        after_s = 90_000.0 * number
        looping.at(after_s, drifted(f"a{number}", after_s))
        forgotten += [loop.id for loop in looping.done(after_s + 1, "failed") if loop.state == "closed"]
        if len(forgotten) > MOST_CLOSED:
            break
    assert len(msgspec.json.decode(looping.task.snapshot())["retraining"]["closed"]) == MOST_CLOSED


def test_the_largest_snapshot_fits_into_a_record() -> None:
    """Every model with all its versions, and a retraining of each that is watched; with the largest of remediation."""
    confirm = replace(RETRAIN.confirm, slow="500ms")
    models = [replace(RETRAIN, model=f"{n:60d}", job="j" * 100, confirm=confirm) for n in range(MOST_MODELS)]
    policies = {
        f"retrain-{number:50d}": Known(Policy(mode="auto", cool_down=0, retrain=each), "v" * 12)
        for number, each in enumerate(models)
    }
    looping = Looping(policies, labels=0)
    for action, model in zip(policies, models, strict=True):
        looping.at(0, *(replace(each, model=model.model) for each in _lately()))
        labels = LABELS | {"model": model.model, "model_version": "7.1.19"}
        for number in range(MOST_ASKING):
            plain: dict[str, Any] = {"action": action, "labels": labels, "summary": "ü" * 200, "rule": "r" * 100}
            looping.at(1, drifted(f"{action:.20}{number:12d}", 1, **plain))
        looping.at(2, *(deploy(2, f"6.{n:03d}", model=model.model, kind="rollback") for n in range(MOST_KNOWN)))
        looping.at(2, deploy(2, "7.1.19", model=model.model), deploy(2, "8.1.17", model=model.model))
        looping.at(3, *(replace(each, model=model.model) for each in _since()))
    memory = msgspec.json.decode(looping.task.snapshot())["retraining"]
    assert (len(memory["models"]), len(memory["loops"])) == (MOST_MODELS, MOST_LOOPS)
    size = len(msgspec.json.encode(memory))
    assert MAX_RECORD_BYTES / 8 < size < 0.3 * MAX_RECORD_BYTES, size


def _lately() -> Iterator[Quality | Requests]:
    """What fills the memory of a model."""
    for number in range(1, BUCKETS + 1):
        at = 300.0 * number - 3600
        for version in ("7.1.17", "7.1.18", "7.1.19"):
            yield predicted(at, 123_456, version)
            yield labelled(at, 123_456, None, version, mae=1.2345678, rmse=2.3456789)
            yield requested(at, 123_456, 12_345, version, slow=12_345)


def _since() -> Iterator[Quality | Requests]:
    """What fills that of a version that is watched."""
    for number in range(MOST_RECENT + 1):
        for version in ("7.1.19", "8.1.17"):
            yield labelled(60.0 * number, 4, None, version, mae=1.2345678, rmse=2.3456789)
            yield requested(60.0 * number, 4, 1, version, slow=1)


def test_a_model_is_trained_in_one_way_and_one_file_trains_so_many(tmp_path: Path) -> None:
    def loaded(*retrains: str) -> Policies:
        file = tmp_path / "actions.yaml"
        file.write_text("actions:" + "".join(f"\n  a{n}: {{retrain: {each}}}" for n, each in enumerate(retrains)))
        return load_policies(file)

    one = "{service: shop, model: ranker}"
    assert len(loaded(one, one)) == 2
    with pytest.raises(ConfigError, match="actions 'a0' and 'a1' both train shop/ranker: give them the same"):
        loaded(one, "{service: shop, model: ranker, min_labels: 9}")
    with pytest.raises(ConfigError, match=f"trains {MOST_MODELS + 1} models; one file may train {MOST_MODELS}"):
        loaded(*(f"{{service: shop, model: m{number}}}" for number in range(MOST_MODELS + 1)))


def test_confirm_refuses_fewer_labels_than_its_interval_holds_for() -> None:
    with pytest.raises(msgspec.ValidationError, match=">= 100"):
        msgspec.convert({"min_labels": 10}, Confirm)


def test_a_loop_is_what_travels() -> None:
    loop = watched(0.9).loops[-1]
    assert msgspec.json.decode(msgspec.json.encode(loop), type=Loop) == loop
    assert LOOPING["retrain"].policy.retrain == RETRAIN
