"""The topics table: what other programs, and the runtime's own promises, rely on."""

from __future__ import annotations

import pytest

from streammon.events import KEYS, EventType
from streammon.topics import (
    DAY_S,
    HEARTBEATS,
    INPUT_TOPICS,
    LOOPS,
    MAX_RECORD_BYTES,
    NOTIFIER,
    REMEDIATION,
    TOPIC_OF,
    state_topic,
    topic_specs,
)

SPECS = {spec.name: spec for spec in topic_specs(partitions=7, processors=("windows", "rules", "drift"))}
IN_ONE_ORDER = (*NOTIFIER, *REMEDIATION, LOOPS)
RESULTS = {
    "windows",
    "regrouped",
    "grouped",
    "profiles",
    "drift",
    "outcomes",
    "quality",
    "runs",
    "alerts",
    "evidence",
    "commands",
    "heartbeats",
    "snapshots",
    "deadletter",
}
RESULT_TOPICS = RESULTS | {"regrouped", "grouped", *IN_ONE_ORDER}
COMPACTED = {
    "alerts",
    "evidence",
    "references",
    "slos",
    "loops",
    "heartbeats",
    "snapshots",
    "state.windows",
    "state.rules",
    "state.drift",
}


def test_the_table_is_complete_and_names_no_topic_twice() -> None:
    assert set(SPECS) == set(INPUT_TOPICS) | RESULT_TOPICS | COMPACTED
    assert len(topic_specs(partitions=1)) == len({spec.name for spec in topic_specs(partitions=1)})


def test_every_event_type_has_one_topic_and_a_key() -> None:
    assert set(INPUT_TOPICS.values()) == set(EventType) == set(KEYS)
    assert all(INPUT_TOPICS[TOPIC_OF[event_type]] == event_type for event_type in EventType)


def test_all_topics_but_those_in_one_order_have_the_same_number_of_partitions() -> None:
    """A result goes to the partition of its input, and a snapshot to the partition it is of; pages are in one order,
    and an inventory sees everybody."""
    others = {name: spec.partitions for name, spec in SPECS.items() if spec.partitions != 7}
    assert others == dict.fromkeys([*IN_ONE_ORDER, HEARTBEATS], 1)


def test_compacted_topics_are_kept_for_ever_and_others_are_not() -> None:
    assert {name for name, spec in SPECS.items() if spec.compact} == COMPACTED
    assert {name for name, spec in SPECS.items() if spec.retention_s is None} == COMPACTED


@pytest.mark.parametrize(
    "name", [*INPUT_TOPICS, "windows", "grouped", "profiles", "drift", "outcomes", "quality", "runs", "commands"]
)
def test_the_broker_stamps_every_input(name: str) -> None:
    """Lateness and ticks are judged by the broker's clock, not by the senders'."""
    assert SPECS[name].log_append_time


@pytest.mark.parametrize(
    ("name", "days"),
    [
        ("inference", 1),
        ("logs", 184),
        ("resources", 30),
        ("labels", 30),
        ("windows", 30),
        ("regrouped", 1),
        ("grouped", 30),
        ("deadletter", 14),
    ],
)
def test_topics_keep_their_records_long_enough(name: str, days: int) -> None:
    assert SPECS[name].retention_s == days * DAY_S


def test_a_dead_letter_has_room_for_the_largest_record_and_its_headers() -> None:
    assert SPECS["deadletter"].max_record_bytes > MAX_RECORD_BYTES + 64 * 1024


def test_every_topic_takes_the_largest_record() -> None:
    assert min(spec.max_record_bytes for spec in SPECS.values()) == MAX_RECORD_BYTES


def test_a_processor_has_a_state_topic_of_its_own() -> None:
    assert SPECS[state_topic("drift")].name == "state.drift"
