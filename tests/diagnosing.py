"""From an incident of `tests.incidents` to its diagnosis, through the same code as from the log."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from streammon.broker import Broker, Outgoing, TopicPartition
from streammon.results import Alert, Evidence
from streammon_sinks.diagnosis.diagnose import diagnose
from streammon_sinks.diagnosis.gather import Around
from tests.incidents import Built, build
from tests.sinks.builders import StoredRecord


def records(built: Built) -> dict[str, list[StoredRecord]]:
    """By topic, what the log holds."""
    topics: dict[str, Sequence[Any]] = {
        "windows": built.windows,
        "changes": built.changes,
        "pipelines": built.pipelines,
        "drift": built.drift,
    }
    return {
        topic: [StoredRecord(0, offset, msgspec.json.encode(each)) for offset, each in enumerate(values)]
        for topic, values in topics.items()
    }


async def publish(broker: Broker, built: Built) -> Alert:
    """An incident, over both of two partitions, and its alert in the second."""
    await broker.append(
        [
            Outgoing(topic, b"k", each.value, (), each.offset % 2)
            for topic, found in records(built).items()
            for each in found
        ]
    )
    await broker.append([Outgoing("alerts", built.alert.id.encode(), msgspec.json.encode(built.alert), (), 1)])
    return built.alert


def diagnosed(built: Built) -> Evidence:
    around = Around([built.alert])
    for topic, found in records(built).items():
        around.add_all(TopicPartition(topic, 0), found)
    return diagnose(built.alert, around.surroundings(), built.alert.updated_unix_s)


def rank(name: str, seed: int, *, by_host: bool = True) -> int:
    """The place of the true cause of an incident, from 1 on; 0: it is not among the causes."""
    built = build(name, seed, by_host=by_host)
    causes = diagnosed(built).causes
    return next((place for place, cause in enumerate(causes, 1) if built.is_cause(cause)), 0)
