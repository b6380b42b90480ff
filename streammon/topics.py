"""The topics table: which topics exist, what they carry, and how long they keep it.

Names are given without the prefix; the broker adds it (``streammon.`` by default). All input topics have the
same number of partitions, and the record of a result goes to the partition its input came from.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from streammon.events import EventType

DAY_S = 86_400.0
SNAPSHOTS = "snapshots"
"""Snapshots of all processors at certain times, kept for replays: see `streammon_processors.history`."""
MAX_RECORD_BYTES = 1_048_576
"""The largest record value streammon sends or accepts, in bytes (Kafka's own default limit)."""

LARGE_RECORD_BYTES = 2 * MAX_RECORD_BYTES
"""Snapshots, and dead letters with a whole refused record in them, may be larger than any other record."""

ROLLUP_HEADER = "streammon-rollup"
"""Names the shape of a rollup, so that nobody has to decode those that are not needed; base windows do not have it."""


@dataclass(frozen=True)
class TopicSpec:
    """What a topic should be.

    ``retention_s`` None: kept for ever (compacted topics). ``log_append_time``: the broker stamps the records,
    so that lateness and ticks are judged by one clock.
    """

    name: str
    partitions: int
    retention_s: float | None
    compact: bool = False
    log_append_time: bool = False
    max_record_bytes: int = MAX_RECORD_BYTES


INPUT_TOPICS: dict[str, EventType] = {
    "resources": EventType.RESOURCE,
    "inference": EventType.INFERENCE,
    "labels": EventType.LABEL,
    "pipelines": EventType.PIPELINE,
    "logs": EventType.LOG,
    "changes": EventType.CHANGE,
}
TOPIC_OF: dict[EventType, str] = {event: topic for topic, event in INPUT_TOPICS.items()}

_INPUT_RETENTION_S = {"inference": 1 * DAY_S, "logs": 184 * DAY_S}
HEARTBEATS = "heartbeats"
"""Who is there, by component: see `streammon.heartbeat`."""
NOTIFIER = ("pages", "notifications", "deliveries")
"""What the notifier reads in one order, what it decides to deliver, what became of that. One partition each, because
groups, silences and inhibitions are across all alerts."""
REGROUPED = "regrouped"
"""Copies of windows, by the group they count for, until they are added up: see `streammon_processors.rules.groups`."""
MEASURING = ("windows", "rollups", "profiles", "drift", "detectors", "join", "quality")
"""Those that turn events into results, all of which `process` runs when it is not told what."""
PROCESSORS = (*MEASURING, "regroup", "group", "rules", "slos")
"""Those that everybody runs, and `up` in one process; the notifier and remediation add their own."""

REMEDIATION = ("remedies", "remediations")
"""What remediation decides by, in one order, and what it decides and does: the audit of it. One partition each, because
cool-downs and limits are across all alerts."""
LOOPS = "loops"
"""How each retraining is going, by its id. One partition, because the same task decides it."""


def state_topic(processor: str) -> str:
    """The compacted topic in which a processor keeps its snapshots."""
    return f"state.{processor}"


def journal_topic(processor: str) -> str:
    """The topic in which a processor keeps what is too large for its snapshots."""
    return f"journal.{processor}"


def state_topics(processors: Iterable[str], partitions: int) -> list[TopicSpec]:
    return [
        TopicSpec(state_topic(name), partitions, None, compact=True, max_record_bytes=LARGE_RECORD_BYTES)
        for name in processors
    ]


def topic_specs(*, partitions: int, processors: Iterable[str] = PROCESSORS) -> list[TopicSpec]:
    """Every topic streammon uses, with ``partitions`` partitions each, but for those that are in one order."""
    inputs = [
        TopicSpec(name, partitions, _INPUT_RETENTION_S.get(name, 30 * DAY_S), log_append_time=True)
        for name in INPUT_TOPICS
    ]
    results = [
        TopicSpec(name, partitions, 30 * DAY_S, log_append_time=True)
        for name in ("windows", "grouped", "profiles", "drift", "outcomes", "quality", "runs", "commands")
    ]
    results.append(TopicSpec(REGROUPED, partitions, 1 * DAY_S, log_append_time=True))
    pager = [TopicSpec(name, 1, 30 * DAY_S, log_append_time=True) for name in NOTIFIER]
    remedies = [
        TopicSpec(name, 1, retention_s, log_append_time=True)
        for name, retention_s in zip(REMEDIATION, (30 * DAY_S, 184 * DAY_S), strict=True)
    ]
    loops = TopicSpec(LOOPS, 1, None, compact=True, log_append_time=True)
    alerts = [TopicSpec(name, partitions, None, compact=True) for name in ("alerts", "evidence")]
    references = TopicSpec("references", partitions, None, compact=True, log_append_time=True)
    slos = TopicSpec("slos", partitions, None, compact=True, log_append_time=True)
    # One partition, because whoever judges by an inventory has to see everybody; and by the time of one clock.
    heartbeats = TopicSpec(HEARTBEATS, 1, None, compact=True, log_append_time=True)
    large = LARGE_RECORD_BYTES
    history = TopicSpec(SNAPSHOTS, partitions, None, compact=True, log_append_time=True, max_record_bytes=large)
    deadletter = TopicSpec("deadletter", partitions, 14 * DAY_S, max_record_bytes=large)
    return [
        *inputs,
        *results,
        *pager,
        *remedies,
        loops,
        *alerts,
        references,
        slos,
        heartbeats,
        *state_topics(processors, partitions),
        history,
        deadletter,
    ]
