"""The wire: bytes to events and back, in the four densities of one record.

========  =======================================================================================
object    ``{"type":"inference","time_unix_s":…}``: one event
array     ``[{…},{…}]``
columns   ``{"type":…,"count":N,"constant":{field:value},"columns":{field:[N values]}}``
packed    as columns, where a numeric column may be ``{"f8":"<base64>"}`` (also f4 i8 i4 u2 u1, little
          endian) and a string column ``{"dictionary":[…],"index":{"u1":"<base64>"}}``
========  =======================================================================================

`decode` accepts all four for every event type. What it promises:

* A record is accepted or rejected **whole** for its form: broken JSON, an unknown schema, unequal lengths, an index
  past its dictionary, a wrong type. The `Rejected` it raises says which part is wrong.
* A single event is refused for its **values** (`Fault`: NaN or infinity, a negative duration, an impossible time) and
  its neighbours are kept.
* Unknown fields are ignored. Memory is bounded by the record's size: a lying ``count`` is checked before it is used.

Rows stay in columns (numpy) from here on: no Python object per event where a sender packs.

A batch may carry ``agent``, ``boot`` and ``seq``, its `Identity`: ``seq`` counts the batches of one (agent, boot) to
one topic partition, from 0, without gaps. A sender that does not know partitions uses one boot id per record key.
Python's ``json.dumps`` writes ``NaN``, which is not JSON; such records are read all the same, event by event.
"""

from __future__ import annotations

from streammon.wire.batch import (
    MAX_ENTRIES,
    MAX_EVENTS,
    MAX_SPLIT_BYTES,
    MAX_TIME_UNIX_S,
    SCHEMA_HEADER,
    Batch,
    Coded,
    Codes,
    Density,
    Fault,
    Floats,
    Identity,
    Rows,
)
from streammon.wire.columns import FieldSpec
from streammon.wire.decoding import Codec, batch_of, claimed_events, codec_of, decode, well_formed
from streammon.wire.encoding import encode
from streammon.wire.messages import read_message
from streammon.wire.plain import Wanted
from streammon.wire.routing import Routed, route
from streammon.wire.rows import ColumnRows, ObjectRows
from streammon.wire.values import coded_alike, combinations

__all__ = [
    "MAX_ENTRIES",
    "MAX_EVENTS",
    "MAX_SPLIT_BYTES",
    "MAX_TIME_UNIX_S",
    "SCHEMA_HEADER",
    "Batch",
    "Codec",
    "Coded",
    "Codes",
    "ColumnRows",
    "Density",
    "Fault",
    "FieldSpec",
    "Floats",
    "Identity",
    "ObjectRows",
    "Routed",
    "Rows",
    "Wanted",
    "batch_of",
    "claimed_events",
    "codec_of",
    "coded_alike",
    "combinations",
    "decode",
    "encode",
    "read_message",
    "route",
    "well_formed",
]
