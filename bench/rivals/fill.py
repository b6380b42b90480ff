"""Fill the topic: ``fill BOOTSTRAP TOPIC EVENTS START_UNIX_S``, in the rivals' environment."""

from __future__ import annotations

import sys

from confluent_kafka import Producer

from bench.rivals.workload import Workload


def main(bootstrap: str, topic: str, events: str, start_unix_s: str) -> None:
    producer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 50, "acks": "all"})
    for message in Workload(int(events), int(start_unix_s)).messages():
        while True:
            try:
                producer.produce(topic, message.value, message.key, message.partition)
                break
            except BufferError:  # its queue is full
                producer.poll(0.1)
    left = producer.flush(60)
    assert left == 0, f"{left} records were not taken"


if __name__ == "__main__":
    main(*sys.argv[1:])
