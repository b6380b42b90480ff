"""What of the alerts and commands is to be decided, and what is left out."""

from __future__ import annotations

import msgspec
import pytest

from streammon.commands import Acknowledge, AnyCommand, Approve, Unsilence
from streammon.results import Alert, Evidence, Point
from streammon.tick import TICK
from streammon_processors.contract import Stored
from streammon_processors.notifier import GatherTask
from tests.processors.test_notifier_decide import T0, alert, evidence, silence

BY = {"id": "c1", "time_unix_s": T0, "by": "ann"}


def gathered(topic: str, value: bytes | None) -> list[tuple[str, bytes | None, int | None]]:
    record = Stored(value, 7, round(T0 * 1000), partition=3, key=b"a1")
    return [(each.topic, each.value, each.partition) for each in GatherTask(3).process(topic, [record])]


@pytest.mark.parametrize(
    "page",
    [
        alert(),
        alert(state="acknowledged"),
        alert(state="no_data"),
        alert(state="no_data", transition=1),
        alert(state="resolved", transition=2),
        silence('service="shop"'),
        Unsilence(silence_id="s1", **BY),  # type: ignore[arg-type]
    ],
)
def test_what_is_to_be_decided_goes_as_it_is_to_the_one_partition_of_pages(page: Alert | AnyCommand) -> None:
    value = msgspec.json.encode(page)
    assert gathered("alerts", value) == [("pages", value, 0)]


@pytest.mark.parametrize(
    "page",
    [
        alert(state="pending", transition=0),
        alert(state="resolved", transition=1),  # it was only pending
        Acknowledge(alert_id="a1", transition=1, **BY),  # type: ignore[arg-type]  # comes as an alert
        Approve(target_id="a1", **BY),  # type: ignore[arg-type]
    ],
)
def test_what_never_fired_and_what_is_no_business_of_the_notifier_is_left_out(page: Alert | AnyCommand) -> None:
    assert gathered("alerts", msgspec.json.encode(page)) == []


def test_of_evidence_the_first_causes_are_gathered_in_short() -> None:
    large = evidence(
        "a1",
        *(f"{number} " + "x" * 5000 for number in range(10)),
        window={"count": 7},
        history=[Point(start_unix_s=T0, count=1)] * 30,
        notes=["y" * 1000],
    )
    [(topic, value, partition)] = gathered("evidence", msgspec.json.encode(large))
    assert (topic, partition) == ("pages", 0)
    assert len(value or b"") < 2500
    page = msgspec.json.decode(value or b"", type=Evidence)
    assert [each.what[:3] for each in page.causes] == ["0 x", "1 x", "2 x"]
    assert (page.alert_id, page.transition, page.made_unix_s) == ("a1", 1, T0 + 3)
    assert (page.window, page.history, page.notes) == ({}, [], [])


def test_evidence_without_a_cause_is_left_out() -> None:
    assert gathered("evidence", msgspec.json.encode(evidence(causes=[], notes=["not diagnosed: a storm"]))) == []


@pytest.mark.parametrize("value", [None, TICK])
def test_tombstones_and_ticks_are_left_out(value: bytes | None) -> None:
    assert gathered("alerts", value) == []


def test_what_is_neither_becomes_a_dead_letter_of_its_own_partition() -> None:
    ((topic, _, partition),) = gathered("commands", b"{")
    assert (topic, partition) == ("deadletter", 3)
