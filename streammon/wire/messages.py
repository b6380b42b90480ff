"""Messages: records that hold one of our Structs, as results, commands and heartbeats do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

import msgspec

from streammon.errors import Reason, Rejected
from streammon.events import SCHEMA


class Message(Protocol):
    """What has a version."""

    @property
    def schema(self) -> int: ...


T = TypeVar("T", bound=Message)


def read_message(read: Callable[[bytes], T], value: bytes, refusal: str = "") -> T:
    """What ``read``, such as ``msgspec.json.Decoder(…).decode``, makes of a record's value.

    Raises:
        Rejected: it is no JSON; or not such a message, after the words of ``refusal``; or of an unknown schema.
    """
    try:
        message = read(value)
    except msgspec.ValidationError as error:
        raise Rejected(Reason.INVALID_EVENT, f"{refusal}{error}") from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Rejected(Reason.INVALID_JSON, str(error)) from None
    if message.schema != SCHEMA:
        raise Rejected(Reason.UNKNOWN_SCHEMA, f"schema is {message.schema}; this version reads {SCHEMA}")
    return message
