"""librdkafka's messages as records. Every record of the log comes by here, so it is done in C throughout."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
from confluent_kafka import KafkaError, Message

from streammon.broker.records import Records

_offset: Any = Message.offset  # typed as if it might be absent


class Run(NamedTuple):
    """Messages of one partition that came one after the other. ``topic`` is None for errors of the whole group, such as
    a lacking permission."""

    topic: str | None
    partition: int
    records: Records
    errors: Sequence[tuple[KafkaError, int | None]]
    """With the offset at which each came."""


def runs(messages: Sequence[Message]) -> Iterator[Run]:
    """The messages in order, cut where the partition changes."""
    places: list[Any] = list(zip(map(Message.topic, messages), map(Message.partition, messages), strict=True))
    start = 0
    for (topic, number), same in groupby(places):
        end = start + len(list(same))
        yield _run(topic, number, messages[start:end])
        start = end


def _run(topic: str | None, number: int, messages: Sequence[Message]) -> Run:
    errors = []
    if any(map(Message.error, messages)):
        errors = [(error, message.offset()) for message in messages if (error := message.error())]
        messages = [message for message in messages if not message.error()]
    return Run(topic, number, _records(number, messages), errors)


def _records(number: int, messages: Sequence[Any]) -> Records:
    headers: list[Any] = list(map(Message.headers, messages))
    return Records(
        number,
        np.fromiter(map(_offset, messages), np.int64, len(messages)),
        np.fromiter(map(itemgetter(1), map(Message.timestamp, messages)), np.int64, len(messages)),
        list(map(Message.key, messages)),
        list(map(Message.value, messages)),
        [tuple(each or ()) for each in headers] if any(headers) else [()] * len(headers),
    )
