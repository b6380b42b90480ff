"""OTLP/JSON: protobuf's JSON mapping, but ids of traces and spans are hexadecimal instead of base64.

Source: OTLP specification 1.5, "JSON Protobuf Encoding".
"""

from __future__ import annotations

import base64
import binascii
from typing import Any

import msgspec
from google.protobuf.json_format import ParseDict, ParseError
from google.protobuf.message import Message

from streammon.errors import Reason, Rejected

MAX_NODES = 200_000
"""Objects, lists and values of one message: each takes some microseconds and a few hundred bytes."""
_IDS = frozenset({"traceId", "spanId", "parentSpanId", "trace_id", "span_id", "parent_span_id"})


def from_json(body: bytes, request: Message) -> Message:
    """Fill a request. Raises Rejected."""
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, RecursionError) as error:
        raise Rejected(Reason.INVALID_JSON, f"not JSON: {error}") from None
    if not isinstance(value, dict):
        raise Rejected(Reason.INVALID_EVENT, f"an object is expected, this is a {type(value).__name__}")
    try:
        _to_base64(value)
        return ParseDict(value, request, ignore_unknown_fields=True)
    except (ParseError, RecursionError, ValueError, TypeError, AttributeError) as error:
        said = " ".join(str(error).split())[:300]
        raise Rejected(Reason.INVALID_EVENT, f"no {request.DESCRIPTOR.name}: {said}") from None


def _to_base64(value: Any) -> None:
    """Ids of every object, wherever it is: no attribute can be taken for one, its name is a value."""
    waiting, nodes = [value], 1
    while waiting:
        node = waiting.pop()
        inner = node.values() if isinstance(node, dict) else node
        nodes += len(node)
        if nodes > MAX_NODES:
            raise Rejected(Reason.TOO_LARGE, f"the message holds more than {MAX_NODES} values")
        if isinstance(node, dict):
            for name in _IDS & node.keys():
                node[name] = _base64(name, node[name])
        waiting += [each for each in inner if isinstance(each, dict | list)]


def _base64(name: str, identifier: Any) -> str:
    try:
        return base64.b64encode(bytes.fromhex(identifier)).decode()
    except (ValueError, TypeError, binascii.Error):
        raise Rejected(Reason.INVALID_EVENT, f"{name} is not hexadecimal") from None
