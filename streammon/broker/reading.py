"""Reading topics to where they end now, through any `Broker`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping, Sequence

from streammon.broker import Broker, Reader, Record, Start, TopicPartition

Places = Mapping[TopicPartition, int]


async def read(
    broker: Broker, topics: Sequence[str], start: Start = "earliest", ends: Places | None = None
) -> AsyncGenerator[tuple[TopicPartition, Sequence[Record]]]:
    """The records of some topics from ``start`` to ``ends``, or to where they end now."""
    reader = await broker.reader(topics, start)
    try:
        ends = ends or await reader.ends()
        while unread(reader, ends):
            for partition, records in (await reader.poll()).items():
                yield partition, _before(ends[partition], records)
    finally:
        await reader.close()


def unread(reader: Reader, ends: Places) -> list[TopicPartition]:
    """The partitions whose end has not been reached."""
    return [each for each, position in reader.positions().items() if position < ends[each]]


def _before(end: int, records: Sequence[Record]) -> Sequence[Record]:
    """Those before an offset: as they came, where that is all."""
    if not records or records[-1].offset < end:
        return records
    return [record for record in records if record.offset < end]
