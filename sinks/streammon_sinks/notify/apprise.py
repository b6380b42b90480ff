"""Apprise: the hundred services that have no channel of their own here, each by a URL as Apprise documents it.

Each message is sent by a process of its own, see `apprise_process`: that costs about half a second and holds whatever
the service does to that one message.

| Apprise | outcome |
|---|---|
| has sent it | delivered |
| tells of an HTTP status of 4xx, but for 408, 425 and 429 | `Rejected` |
| could not send it for any other reason, or in time; does not know the URL | `Retryable` |

Apprise says whether it has sent a message, and seldom why not: neither how long to wait, nor, of a URL with several
targets, which of them has the message; those get it twice when it is tried again. So give each target a channel. No
service can be asked whether it has taken a message before. Memory says which notification was the last, so that one
that comes again after it was remembered is not sent again; one whose answer was lost is.
"""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

import aiohttp
import msgspec

from streammon.durations import Duration
from streammon.errors import Reason, Rejected, Retryable
from streammon_sinks.notify.apprise_process import MODULE, Kind, Order, Sent
from streammon_sinks.notify.channel import Channel, Memory, Notification
from streammon_sinks.notify.http import HttpDescription, is_passing
from streammon_sinks.notify.installed import check_installed
from streammon_sinks.notify.secrets import Secret, SecretValue, scrub
from streammon_sinks.notify.told import cut, line, state_of, story

MAX_TITLE_CHARS: Final = 250
MAX_BODY_CHARS: Final = 15_000
_MAX_REASON_CHARS: Final = 500
_MIN_PART_CHARS: Final = 4
_KINDS: Final[dict[str, Kind]] = {"critical": "failure", "warning": "warning", "info": "info"}
_STATUS: Final = re.compile(r"error=(\d{3})\b")  # as all its plugins over HTTP say it
_MENTION: Final = re.compile(r"(?<=@)(?=everyone|here|channel|all\b)|(?<=<)(?=[@!#&])", re.IGNORECASE)
_APART: Final = "\u200b"


class Apprise(HttpDescription, frozen=True, kw_only=True, tag="apprise"):
    """A service that Apprise can send to."""

    url: Secret
    """Apprise's URL of it, such as `tgram://TOKEN/CHAT`; all of it is a secret."""
    timeout: Duration = "30s"
    """How long one message may take before it is tried again later, with the start of the process that sends it."""

    def open(self, name: str, _session: aiohttp.ClientSession) -> Channel:
        return AppriseChannel(name, self)


class AppriseChannel:
    """Sends messages to one `Apprise`."""

    def __init__(self, name: str, description: Apprise) -> None:
        """Raises ConfigError: the URL is not there, or Apprise is not installed."""
        check_installed(name, "apprise")
        description.check_secrets(name)
        self._name = name
        self._description = description

    async def deliver(self, notification: Notification, memory: Memory) -> Memory:
        if memory.get("last") == notification.id:
            return memory
        url = self._description.url.read_later(f"channel {self._name}: url")
        sent = await _send(self._name, order(notification, url, self._description.timeout_s))
        _judge(self._name, sent, url)
        return {"last": notification.id}

    async def close(self) -> None:
        """No process outlives its message."""


def order(notification: Notification, url: SecretValue, timeout_s: float) -> Order:
    """The message: a title, and all the rest as plain text."""
    title, *rest = (_nobody_called(each) for each in story(notification))
    rest = rest or [title]  # it takes no message without a body
    state = state_of(notification)
    kind: Kind = "success" if state == "resolved" else _KINDS[notification.severity] if state == "firing" else "info"
    body = cut("\n".join(rest), MAX_BODY_CHARS)
    return Order(url=url.reveal(), title=cut(title, MAX_TITLE_CHARS), body=body, kind=kind, timeout_s=timeout_s)


def _nobody_called(text: str) -> str:
    """What chats take for a call to everybody in the room is torn apart."""
    return _MENTION.sub(_APART, text)


async def _send(name: str, message: Order) -> Sent:
    """Raises Retryable: there was no answer, or not in time."""
    process = await _started(name)
    try:
        async with asyncio.timeout(message.timeout_s):
            answer, _ = await process.communicate(msgspec.json.encode(message))
    except TimeoutError:
        raise Retryable(f"channel {name}: Apprise has not sent the message within {message.timeout_s:g} s") from None
    finally:
        await _ended(process)
    return _read(name, answer, process.returncode)


async def _started(name: str) -> asyncio.subprocess.Process:
    pipe, nowhere = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
    try:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", MODULE),
            stdin=pipe,
            stdout=pipe,
            stderr=nowhere,
            start_new_session=True,  # a Ctrl-C is for us, who finish what is under way
        )
    except OSError as error:
        raise Retryable(f"channel {name}: no process can be started to send by Apprise: {error.strerror}") from None


async def _ended(process: asyncio.subprocess.Process) -> None:
    with suppress(ProcessLookupError):
        process.kill()
    await process.wait()


def _read(name: str, answer: bytes, status: int | None) -> Sent:
    with suppress(msgspec.DecodeError):
        return msgspec.json.decode(answer, type=Sent)
    raise Retryable(f"channel {name}: the process that sends by Apprise ended without an answer, status {status}")


def _judge(name: str, sent: Sent, url: SecretValue) -> None:
    """Raises Retryable or Rejected: it was not taken."""
    if sent.taken:
        return
    if not sent.service:
        raise Retryable(f"channel {name}: Apprise does not understand its URL; `apprise -vv -b test URL` says more")
    said = " ".join(scrub(each, _parts(url)) for each in sent.said)
    told = line(f"channel {name}: {sent.service} did not take the message: {said}", _MAX_REASON_CHARS)
    statuses = [int(status) for each in sent.said for status in _STATUS.findall(each)]
    if statuses and all(400 <= status < 500 and not is_passing(status) for status in statuses):
        raise Rejected(Reason.REFUSED, told)
    raise Retryable(told)


def _parts(url: SecretValue) -> Iterator[SecretValue]:
    """All of the URL, and whatever in it may be a secret by itself: Apprise has tokens where others have hosts."""
    yield url
    _, _, telling = url.reveal().partition("://")
    yield from (SecretValue(each) for each in re.split(r"[/?&=#@:,+]", telling) if len(each) >= _MIN_PART_CHARS)
