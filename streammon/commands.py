"""What people tell streammon: acknowledge, silence, approve. Each is a record on the topic `commands`, and its audit.

A command about an alert is written into the partition of that alert, so that the task that owns the alert reads it;
any other may lie in any partition. Nothing answers: what a command has done is seen on `alerts`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta, Struct

from streammon.events import _schema

Operator = Literal["=", "!=", "=~", "!~"]


class Matcher(Struct, frozen=True, kw_only=True):
    """A condition on one label, as Alertmanager writes it: ``service="shop"``, ``model=~"rank.*"``.

    A label that is not there is the empty text. A regular expression must match the whole value.
    """

    label: str
    operator: Operator
    value: str

    def __post_init__(self) -> None:
        if self.operator in ("=~", "!~"):
            _pattern(self.value)  # raises ValueError

    def __str__(self) -> str:
        return f"{self.label}{self.operator}{msgspec.json.encode(self.value).decode()}"

    def matches(self, labels: Mapping[str, str]) -> bool:
        value = labels.get(self.label, "")
        equal = value == self.value if self.operator in ("=", "!=") else bool(_pattern(self.value).fullmatch(value))
        return equal == (self.operator in ("=", "=~"))


_MATCHER = re.compile(r"""\s*([A-Za-z_][\w.]*)\s*(=~|!~|!=|=)\s*("(?:[^"\\]|\\.)*"|[^"\s,}][^,}]*)\s*""")


def matcher(text: str) -> Matcher:
    """Read ``label="value"``; the quotes may be left out.

    Raises:
        ValueError: it is no matcher; says what one looks like.
    """
    found = _MATCHER.fullmatch(text)
    if not found:
        raise ValueError(f'{text!r} is no matcher; write label="value", with =, !=, =~ or !~')
    label, operator, value = found.groups()
    plain = msgspec.json.decode(value, type=str) if value.startswith('"') else value.strip()
    return Matcher(label=label, operator=operator, value=plain)  # type: ignore[arg-type]  # the pattern allows no other


@lru_cache(maxsize=1024)
def _pattern(text: str) -> Any:
    """A pattern of RE2, as Alertmanager's: some of Python's take years for a short text, and hold up everybody."""
    import re2  # only who uses regular expressions loads it

    options = re2.Options()
    options.log_errors = False
    try:
        return re2.compile(text, options)
    except re2.error as error:
        said = error.args[0]
        why = said.decode(errors="replace") if isinstance(said, bytes) else said
        raise ValueError(f"{text!r} is no regular expression: {why}") from None


MAX_BY: Final = 200
MAX_NOTE: Final = 10_000
SILENCES_BYTES: Final = 60_000
"""So much of silences that are not over is obeyed: whoever obeys them keeps them in a record."""
_Id = Annotated[str, Meta(max_length=200)]


class Command(Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="type"):
    """What every command says of itself."""

    schema: int = msgspec.field(default_factory=_schema)
    id: Annotated[_Id, Meta(min_length=1)]
    time_unix_s: float
    by: Annotated[str, Meta(min_length=1, max_length=MAX_BY)]
    """Who: a login, a mail address, a Slack user."""
    via: Annotated[str, Meta(max_length=50)] = "cli"
    """By which way: ``cli``, ``page``, ``slack``, ``pagerduty`` …"""
    note: Annotated[str, Meta(max_length=MAX_NOTE)] | None = None


class Acknowledge(Command, frozen=True, tag="ack"):
    """Somebody works on an alert. It acknowledges the transition that the person saw, and none that came after it."""

    alert_id: _Id
    transition: int


class Silence(Command, frozen=True, tag="silence"):
    """No notifications about alerts with these labels for a while; its ``id`` is what `Unsilence` names."""

    matchers: Annotated[list[Matcher], Meta(min_length=1, max_length=50)]
    """All of them have to match. The labels are those of the alert, and ``rule``, ``severity`` and ``alert_id``."""
    starts_unix_s: float
    ends_unix_s: float


class Unsilence(Command, frozen=True, tag="unsilence"):
    """The end of a silence before its time."""

    silence_id: _Id


class Approve(Command, frozen=True, tag="approve"):
    """Yes to something that waits for a person: a remediation of an alert, a retraining."""

    target_id: _Id
    approved: bool = True


AnyCommand = Acknowledge | Silence | Unsilence | Approve
