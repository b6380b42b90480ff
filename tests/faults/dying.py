"""The ``streammon`` command, which kills itself with -9 at a chosen moment: ``python -m tests.faults.dying MOMENT …``.

A moment is ``before:TOPIC`` or ``after:TOPIC``: the first transaction that writes a record into the topic, as it is
about to begin, or has just been committed.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping, Sequence

from streammon.broker import Outgoing, TopicPartition
from streammon.broker.kafka.transactor import KafkaTransactor
from streammon.cli import main

when, _, topic = sys.argv.pop(1).partition(":")
transact = KafkaTransactor.transact


async def dying(
    self: KafkaTransactor, outputs: Sequence[Outgoing], snapshot: bytes, offsets: Mapping[TopicPartition, int]
) -> None:
    concerns = any(each.topic == topic for each in outputs)
    if concerns and when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    await transact(self, outputs, snapshot, offsets)
    if concerns and when == "after":
        os.kill(os.getpid(), signal.SIGKILL)


KafkaTransactor.transact = dying  # type: ignore[method-assign]
main()
