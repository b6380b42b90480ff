"""The same loop on confluent-kafka, whose consumer and producer are librdkafka's: C, with threads of their own."""

from __future__ import annotations

import sys
from collections import defaultdict

from confluent_kafka import Consumer, Producer

from bench.rivals.programs.by_hand import Windows


def main(bootstrap: str, source: str, target: str) -> None:
    windows: defaultdict[int, Windows] = defaultdict(Windows)
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "hand", "auto.offset.reset": "earliest"})
    producer = Producer({"bootstrap.servers": bootstrap})
    consumer.subscribe([source])
    while True:
        values: defaultdict[int, list[bytes]] = defaultdict(list)
        for message in consumer.consume(10_000, timeout=0.1):
            if not message.error():
                values[message.partition()].append(message.value())
        for partition, batch in values.items():
            for row in windows[partition].add(batch):
                producer.produce(target, row)
        producer.poll(0)


main(*sys.argv[1:])
