"""The reference: what one writes in an afternoon with aiokafka, msgspec and numpy. It guarantees nothing."""

from __future__ import annotations

import asyncio
import sys
from collections import defaultdict

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from bench.rivals.programs.by_hand import Windows


async def main(bootstrap: str, source: str, target: str) -> None:
    windows: defaultdict[int, Windows] = defaultdict(Windows)
    consumer = AIOKafkaConsumer(source, bootstrap_servers=bootstrap, group_id="hand", auto_offset_reset="earliest")
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap)
    await consumer.start()
    await producer.start()
    while True:
        batches = await consumer.getmany(timeout_ms=100)
        for partition, records in batches.items():
            for row in windows[partition.partition].add(record.value for record in records):
                await producer.send(target, row)


asyncio.run(main(*sys.argv[1:]))
