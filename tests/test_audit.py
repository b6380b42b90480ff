"""The audit: what people did, and what became of it."""

from __future__ import annotations

from typing import Any

import pytest

from streammon.alert_log import AlertLog
from streammon.audit import Outcome, audit, states_of
from streammon.commands import AnyCommand, Approve
from streammon.results import Alert
from tests.people import NOON, ack, alert, loud, quiet, record


def outcomes(*entries: Alert | AnyCommand) -> list[str]:
    log = AlertLog(keep_transitions=True)
    for offset, entry in enumerate(entries):
        log.add("alerts" if isinstance(entry, Alert) else "commands", record(entry, offset))
    return [entry.outcome for entry in audit(log, states_of(log.transitions or {}))]


@pytest.mark.parametrize(
    ("entries", "outcome"),
    [
        ([alert("a", 1), ack("a", 1)], Outcome.WAITING),
        ([alert("a", 1), ack("a", 1), alert("a", 2, "acknowledged")], Outcome.APPLIED),
        ([ack("a", 1), alert("a", 2, "acknowledged"), alert("a", 3, "resolved")], Outcome.APPLIED),
        ([alert("a", 1), ack("a", 1), alert("a", 2, severity="critical")], Outcome.OVERTAKEN),
        ([alert("a", 1), ack("a", 1), alert("a", 2, "resolved")], Outcome.OVERTAKEN),
        ([ack("a", 1), alert("a", 3, "resolved")], Outcome.UNKNOWN),
        ([ack("a", 2), alert("a", 2, "resolved")], Outcome.NO_EFFECT),
        ([ack("gone", 1)], Outcome.UNKNOWN),
        ([quiet("s")], Outcome.APPLIED),
        ([quiet("s", for_s=0)], Outcome.NO_EFFECT),
        ([loud("never")], Outcome.NO_EFFECT),
        ([Approve(target_id="a", id="c", by="ann", time_unix_s=NOON)], Outcome.UNKNOWN),
    ],
)
def test_what_became_of_a_command(entries: list[Any], outcome: Outcome) -> None:
    assert outcomes(*entries) == [outcome.value]


def test_the_faster_of_two_is_applied_and_the_other_repeats() -> None:
    acked = outcomes(alert("a", 1), ack("a", at=1, by="ann"), ack("a", at=2, by="bob"), alert("a", 2, "acknowledged"))
    assert acked == ["applied", "repeated"]
    assert outcomes(quiet("s"), loud("s", at=1), loud("s", at=2)) == ["applied", "applied", "repeated"]


def test_lifting_a_silence_that_is_over_has_no_effect() -> None:
    assert outcomes(quiet("s", for_s=60), loud("s", at=61)) == ["applied", "no_effect"]


def test_an_entry_says_who_when_by_which_way_what_and_about_what() -> None:
    log = AlertLog()
    log.add("alerts", record(alert("a")))
    log.add("commands", record(quiet("s", at=5, by="bob", via="page"), 1))
    log.add("commands", record(ack("a", at=3, note="mine"), 0))
    first, second = audit(log, {})
    assert (first.by, first.via, first.what, first.target, first.rule) == ("ann", "cli", "ack", "a", "slow")
    assert (first.note, first.time_unix_s, first.taken_unix_s) == ("mine", NOON + 3, NOON + 3)
    assert (second.by, second.via, second.what, second.target) == ("bob", "page", "silence", 'service="shop"')
