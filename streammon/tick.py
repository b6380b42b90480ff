"""Tick records: time made visible in the log.

A partition in which nothing arrives would never close its windows. Its processor therefore writes a tick into it,
and a replay sees the same tick at the same place. A tick moves the watermark by the *broker* time that has passed
since the partition's previous record, so that old data that is filled in later is not cut off by the wall clock.
"""

from __future__ import annotations

from streammon.broker import Outgoing
from streammon.wire import SCHEMA_HEADER

TICK = b'{"schema":1,"type":"tick"}'


def tick(topic: str, partition: int) -> Outgoing:
    """The record that lets time pass in an idle partition."""
    return Outgoing(topic, None, TICK, (SCHEMA_HEADER,), partition)
