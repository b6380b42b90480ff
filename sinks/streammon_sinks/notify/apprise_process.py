"""A process that hands one message to Apprise: an `Order` on its standard input, a `Sent` on its standard output.

It is a process, not a thread, because Apprise blocks for as long as the other side likes and reads answers without
bound: a process can be ended, with what it holds, and nothing that it logs or prints gets anywhere. It ends itself
when its time is over, for the case that nobody is left to end it.
"""

from __future__ import annotations

import logging
import os
import resource
import signal
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final, Literal

import msgspec
from msgspec import Struct

from streammon_sinks.notify.told import line

MODULE: Final = __name__ if __name__ != "__main__" else "streammon_sinks.notify.apprise_process"
MAX_MORE_BYTES: Final = 512 * 2**20
MAX_SAID: Final = 3
MAX_SAID_CHARS: Final = 300

Kind = Literal["info", "success", "warning", "failure"]


class Order(Struct, frozen=True, kw_only=True):
    """What to send, and where to."""

    url: str
    title: str
    body: str
    kind: Kind
    timeout_s: float


class Sent(Struct, frozen=True):
    """What became of it."""

    service: str
    """Apprise's name of what the URL leads to; empty if it understands no such URL."""
    taken: bool
    said: list[str]
    """The first of Apprise's warnings."""


class _Said(logging.Handler):
    """Keeps the first few warnings, whoever they are from."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if len(self.lines) < MAX_SAID:
            self.lines.append(line(record.getMessage(), MAX_SAID_CHARS))


def send(order: Order) -> Sent:
    """Hand it to Apprise. To be called in a process of its own: it changes how Apprise and logging behave."""
    from apprise import Apprise, AppriseAsset, NotifyBase
    from apprise.common import OverflowMode

    said = _Said()
    logging.basicConfig(handlers=[said], level=logging.WARNING, force=True)
    NotifyBase.overflow_mode = OverflowMode.TRUNCATE  # rather a part of the message than a refusal of it
    asset = AppriseAsset(app_id="streammon", app_desc="streammon", async_mode=False, storage_mode="memory")
    service = Apprise.instantiate(order.url, asset=asset)
    if service is None:
        return Sent("", taken=False, said=[])
    service.redirects = False  # they would carry secrets elsewhere
    sender = Apprise(asset=asset)
    sender.add(service)
    taken = sender.notify(title=order.title, body=order.body, notify_type=order.kind, body_format="text")
    return Sent(str(service.service_name), taken=bool(taken), said=said.lines)


def main() -> None:
    answer = os.dup(1)
    os.dup2(2, 1)  # what others print is no answer
    order = msgspec.json.decode(sys.stdin.buffer.read(), type=Order)
    signal.setitimer(signal.ITIMER_REAL, order.timeout_s)  # whose signal ends the process
    _bound_memory()
    os.write(answer, msgspec.json.encode(send(order)))


def _bound_memory() -> None:
    """Beyond what it has now, which depends on the number of cores. Where there is no /proc, only time is bounded."""
    with suppress(ValueError, OSError):
        now_bytes = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now_bytes + MAX_MORE_BYTES,) * 2)


if __name__ == "__main__":
    main()
