"""What a line of StatsD says: the name, the values, and the tail of type, sample rate and tags.

::

    page.views:3|c|@0.1|#service:shop,env:prod|c:ci-83c0a99c|T1656581400
    └── name   │ └──────────────── tail: the same again and again ──────┘
               └── one value, or several: 1:2:3

Name and tail together are a series, and are parsed once; values are what comes each time. Understood are StatsD's
types ``c`` ``g`` ``ms`` ``s``, and of DogStatsD ``h`` ``d``, tags, packed values, container ids and timestamps, service
checks (``_sc|``) and events (``_e{``). Fields that are not known are left alone, as the protocol asks.

Sources: StatsD, "Metric Types"; Datadog, "DogStatsD datagram format and shell usage".
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

MAX_KEY_BYTES = 1024
"""The most bytes of name and tail: they are kept, values are not."""
MIN_RATE = 1e-6
MAX_TIME_UNIX_S = 1e11
"""As in `streammon.wire`."""


class Kind(StrEnum):
    """What is done with the values."""

    COUNTER = "counter"
    GAUGE = "gauge"
    TIMING = "timing"
    SET = "set"


_KINDS = {
    b"c": Kind.COUNTER,
    b"g": Kind.GAUGE,
    b"ms": Kind.TIMING,
    b"h": Kind.TIMING,
    b"d": Kind.TIMING,
    b"s": Kind.SET,
}


class Refusal(StrEnum):
    """Why a line, or a packet, was not counted."""

    GARBAGE = "garbage"
    TOO_LONG = "too_long"
    OVERSIZED = "oversized_packet"
    SERIES = "too_many_series"
    NAMES = "too_many_names"
    MEMBERS = "too_many_members"
    RATES = "too_many_rates"
    NON_FINITE = "non_finite"
    NEGATIVE = "negative"
    IGNORED = "ignored_event"
    KERNEL = "kernel_dropped_packet"
    CONNECTIONS = "too_many_connections"


class NotUnderstood(ValueError):  # noqa: N818 - a verdict on a line
    """A line that cannot be counted, and why."""

    def __init__(self, reason: Refusal) -> None:
        super().__init__(reason)
        self.reason = reason


class Key(NamedTuple):
    """What a series is: equal keys are added up."""

    name: str
    kind: Kind
    service: str | None
    labels: tuple[tuple[str, str], ...]
    time_unix_s: float | None = None
    """When it was, for values that come with a time; they are not added up over time."""


class Tail(NamedTuple):
    """What follows the values of a line."""

    key: Key
    rate: float


def parse(name: bytes, tail: bytes) -> Tail:
    """The series that the values of such a line belong to. Raises NotUnderstood."""
    if len(name) + len(tail) > MAX_KEY_BYTES:
        raise NotUnderstood(Refusal.TOO_LONG)
    kind, *fields = tail.split(b"|")
    try:
        return _tail(name.decode(), _KINDS[kind], [field.decode() for field in fields])
    except (KeyError, ValueError, OverflowError):
        raise NotUnderstood(Refusal.GARBAGE) from None


def _tail(name: str, kind: Kind, fields: list[str]) -> Tail:
    if not name.strip():
        raise NotUnderstood(Refusal.GARBAGE)
    rate, at, tags = 1.0, None, Tags(None, {})
    for field in fields:
        if field.startswith("@"):
            rate = float(field[1:])
        elif field.startswith("#"):
            tags = tags_of(field[1:])
        elif field.startswith("c:ci-"):
            tags.labels["container"] = field[5:]
        elif field.startswith("T") and kind in (Kind.COUNTER, Kind.GAUGE):
            at = float(int(field[1:]))
    if not MIN_RATE <= rate <= 1.0 or (at is not None and not 0 <= at < MAX_TIME_UNIX_S):
        raise NotUnderstood(Refusal.GARBAGE)
    return Tail(Key(name, kind, tags.service, tuple(sorted(tags.labels.items())), at), rate)


class Tags(NamedTuple):
    """``service`` names whose metrics they are; the others are labels."""

    service: str | None
    labels: dict[str, str]


def tags_of(text: str) -> Tags:
    """``a:b,c``: c is ``true``; the values of a name that comes twice are joined."""
    service, labels = None, dict[str, str]()
    for tag in text.split(","):
        name, colon, value = tag.partition(":")
        if not name:
            continue
        if name == "service" and value:
            service = value
        else:
            value = value if colon else "true"
            labels[name] = f"{labels[name]},{value}" if labels.get(name, value) != value else value
    return Tags(service, labels)


# --- service checks and events --------------------------------------------------------------------------------


class Check(NamedTuple):
    """A service check: its status, 0 (ok) to 3 (unknown), is a gauge of its name."""

    key: Key
    status: float


def check_of(line: bytes) -> Check:
    """``_sc|NAME|STATUS|d:TIME|#TAGS|m:MESSAGE``. Raises NotUnderstood."""
    if len(line) > MAX_KEY_BYTES:
        line = line.partition(b"|m:")[0]  # what comes last, and may be long
    try:
        _, name, status, *fields = line.decode().split("|")
        kept = [field for field in fields if field.startswith(("#", "c:"))]
        key = parse(name.encode(), "|".join(["g", *kept]).encode()).key
        if status not in ("0", "1", "2", "3"):
            raise NotUnderstood(Refusal.GARBAGE)
    except ValueError as error:
        raise error if isinstance(error, NotUnderstood) else NotUnderstood(Refusal.GARBAGE) from None
    return Check(key, float(status))


class Happened(NamedTuple):
    """A DogStatsD event."""

    title: str
    tags: Tags
    time_unix_s: float | None


def happened(line: bytes) -> Happened:
    """``_e{TITLE_BYTES,TEXT_BYTES}:TITLE|TEXT|d:TIME|#TAGS``. Raises NotUnderstood."""
    try:
        head, _, rest = line.partition(b"}:")
        title_bytes, text_bytes = map(int, head.removeprefix(b"_e{").split(b","))
        if title_bytes <= 0 or text_bytes < 0 or rest[title_bytes : title_bytes + 1] != b"|":
            raise NotUnderstood(Refusal.GARBAGE)
        tags, at = Tags(None, {}), None
        for field in rest[title_bytes + 1 + text_bytes :].decode().split("|"):
            if field.startswith("#"):
                tags = tags_of(field[1:])
            elif field.startswith("d:"):
                at = float(int(field[2:]))
        title = rest[:title_bytes].decode()
    except (ValueError, OverflowError) as error:
        raise error if isinstance(error, NotUnderstood) else NotUnderstood(Refusal.GARBAGE) from None
    if at is not None and not 0 <= at < MAX_TIME_UNIX_S:
        raise NotUnderstood(Refusal.GARBAGE)
    return Happened(title, tags, at)
