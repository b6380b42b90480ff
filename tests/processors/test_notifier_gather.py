"""What of the alerts and commands is to be decided, and what is left out."""

from __future__ import annotations

import msgspec
import pytest

from streammon.commands import Acknowledge, AnyCommand, Approve, Unsilence
from streammon.results import Alert
from streammon.tick import TICK
from streammon_processors.contract import Stored
from streammon_processors.notifier import GatherTask
from tests.processors.test_notifier_decide import T0, alert, silence

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


@pytest.mark.parametrize("value", [None, TICK])
def test_tombstones_and_ticks_are_left_out(value: bytes | None) -> None:
    assert gathered("alerts", value) == []


def test_what_is_neither_becomes_a_dead_letter_of_its_own_partition() -> None:
    ((topic, _, partition),) = gathered("commands", b"{")
    assert (topic, partition) == ("deadletter", 3)
