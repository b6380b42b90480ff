"""What the contract of the channels needs of the other side: it takes, it shows what it has, and it misbehaves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from enum import StrEnum
from typing import NamedTuple, Protocol

from streammon.errors import StreammonError
from streammon_sinks.notify.channel import Channel

MARKER = "mArKeR0123456789sEcReT"
"""Part of every secret of a counterpart: nothing that people can see may hold it."""
PATIENCE_S = 0.5
"""How long a channel under test waits for an answer."""
RETRY_AFTER_S = 7.0


class Fault(StrEnum):
    """What goes wrong, as it was seen at real services."""

    BUSY = "busy: 429 with Retry-After, or 451 in mail"
    BROKEN = "broken: 500"
    UNAVAILABLE = "unavailable: 503, or 421 in mail"
    SILENT = "takes the connection and never answers"
    RESET = "resets the connection"
    REFUSING = "refuses, and repeats what it was sent: 400, or 550 in mail"
    UNTRUSTED = "has a certificate that nobody has signed"
    SLOW = "sends its answer a byte at a time, for ever"
    GARBLED = "answers that it took it, with broken JSON"
    ENDLESS = "answers that it took it, without end"
    REDIRECTING = "redirects to somewhere else"


Verdicts = Mapping[Fault, type[StreammonError] | None]
"""What `deliver` raises at each fault that the counterpart knows; None: it delivers."""


class Counterpart(Protocol):
    """One other side, real or a strict fake: a fake refuses what the real one's documentation does not allow."""

    def open(self) -> Channel:
        """A channel to it, as one that has just started. Its secrets hold `MARKER`."""
        ...

    def misbehave(self, fault: Fault | None) -> None:
        """From now on, for channels opened from now on; None: no more."""
        ...

    async def messages(self) -> int:
        """How many different messages it has taken; one that it can recognise as taken before does not count."""
        ...

    async def status(self) -> str:
        """What somebody who looks there now takes the group for: ``firing``, ``resolved``, or ```` for nothing."""
        ...


class Kind(NamedTuple):
    """A kind of counterpart: how one is started, given a directory for its files, and how its faults have to end."""

    start: Callable[..., AbstractAsyncContextManager[Counterpart]]
    verdicts: Verdicts
    server: str = ""
    """The fixture of the real server that ``start`` is given, too; also the mark of its tests."""
