"""librdkafka's messages as records. Every record of the log comes by here, so it is done in C throughout."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby, repeat
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
from confluent_kafka import KafkaError, Message

from streammon.broker import Headers, TopicPartition
from streammon.broker.records import Ints, Records

_offset: Any = Message.offset  # typed as if it might be absent


class Error(NamedTuple):
    """What librdkafka tells in the place of a record."""

    place: TopicPartition
    """Topic as the broker knows it; empty for errors of the whole group, such as a lacking permission."""
    error: KafkaError
    offset: int | None
    """At which it came."""


class Fetched:
    """Messages in the order in which they come, as columns by partition."""

    def __init__(self) -> None:
        self.errors: list[Error] = []
        self.count = self.bytes = 0
        self._columns: defaultdict[TopicPartition, _Columns] = defaultdict(_Columns)

    def __bool__(self) -> bool:
        return bool(self._columns or self.errors)

    def add(self, messages: Sequence[Message]) -> None:
        if any(map(Message.error, messages)):
            self.errors += [Error(_place(each), error, each.offset()) for each in messages if (error := each.error())]
            messages = [each for each in messages if not each.error()]
        for place, same in _by_place(messages) if messages else ():
            self.count += len(same)
            self.bytes += self._columns[place].add(same)

    def room(self, most_bytes: int) -> int:
        """About how many more records like these fit into so many bytes."""
        return (most_bytes - self.bytes) * self.count // max(1, self.bytes) if self.count else 1

    def records(self) -> Mapping[TopicPartition, Records]:
        return {place: columns.records(place[1]) for place, columns in self._columns.items()}


def _by_place(messages: Sequence[Message]) -> Iterator[tuple[TopicPartition, Sequence[Message]]]:
    """The messages in order, cut where the place changes."""
    topics, partitions = list(map(Message.topic, messages)), list(map(Message.partition, messages))
    if topics.count(topics[0]) == partitions.count(partitions[0]) == len(messages):  # so it is mostly
        yield _place(messages[0]), messages
        return
    for key, same in groupby(messages, key=_key):
        yield TopicPartition(*key), list(same)


def _key(message: Any) -> tuple[str, int]:
    return message.topic() or "", message.partition()


def _place(message: Any) -> TopicPartition:
    return TopicPartition(*_key(message))


class _Columns:
    """Those of `Records`, while they grow."""

    def __init__(self) -> None:
        self._offsets: list[Ints] = []
        self._timestamps: list[Ints] = []
        self._sizes: list[Ints] = []
        self._keys: list[bytes | None] = []
        self._values: list[bytes | None] = []
        self._headers: list[Headers] = []

    def add(self, messages: Sequence[Any]) -> int:
        """The bytes of their values."""
        count = len(messages)
        self._offsets.append(np.fromiter(map(_offset, messages), np.int64, count))
        self._timestamps.append(np.fromiter(map(itemgetter(1), map(Message.timestamp, messages)), np.int64, count))
        sizes = np.fromiter(map(len, messages), np.int64, count)
        self._sizes.append(sizes)
        self._keys.extend(map(Message.key, messages))
        self._values.extend(map(Message.value, messages))
        headers: list[Any] = list(map(Message.headers, messages))
        self._headers.extend([tuple(each or ()) for each in headers] if any(headers) else repeat((), count))
        return int(sizes.sum())

    def records(self, number: int) -> Records:
        offsets, timestamps, sizes = map(np.concatenate, (self._offsets, self._timestamps, self._sizes))
        return Records(number, offsets, timestamps, sizes, self._keys, self._values, self._headers)
