"""How channels talk HTTP: one POST, and one of five outcomes.

| the other side | outcome |
|---|---|
| 2xx | the `Reply` |
| 429, or 503 with Retry-After | `Backpressure`, for as long as it said |
| 408, 5xx, no answer in time | `Unanswered`: whoever says so, as a gateway does, may not know what has become of it |
| 425, a redirect, no connection, no TLS | `Retryable` |
| any other status | `Rejected`, with the first 500 characters of its reason |

Errors name the channel and the host, never the URL: it may be a secret. Redirects are not followed, because they
would carry secrets elsewhere. Of a body, only the first 64 KiB are read, and its time counts as that of the answer.
"""

from __future__ import annotations

import math
import ssl
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import Final, Generic, NamedTuple, TypeVar

import aiohttp
import msgspec
from msgspec import Struct
from yarl import URL

from streammon.clock import Clock, system_clock
from streammon.durations import Duration, seconds
from streammon.errors import Backpressure, Reason, Rejected, Retryable
from streammon_sinks.notify.secrets import Secret, SecretValue, scrub

T = TypeVar("T")

MAX_BODY_BYTES: Final = 65_536
MAX_REASON_CHARS: Final = 500
LONGEST_WAIT_S: Final = 3600.0
SHORTEST_WAIT_S: Final = 1.0
_PASSING: Final = {408, 425, 429}


class HttpDescription(
    Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="type", forbid_unknown_fields=True
):
    """What every channel over HTTP has in the notifier's file."""

    timeout: Duration = "10s"
    """How long one delivery may take before it is tried again later."""

    def __post_init__(self) -> None:
        if not 0 < self.timeout_s <= 300:
            raise ValueError("timeout: has to be more than 0 and at most 5m")

    @property
    def timeout_s(self) -> float:
        return seconds(self.timeout)

    def check_secrets(self, name: str) -> None:
        """Read each secret of the channel once, so that a missing one is found before it is needed.

        Raises:
            ConfigError: naming the channel, the field, and where the secret should be.
        """
        for field in self.__struct_fields__:
            value = getattr(self, field)
            found = value if isinstance(value, dict) else {"": value}
            for part, secret in found.items():
                if isinstance(secret, Secret):
                    secret.read(f"channel {name}: {field}" + f".{part}" * bool(part))


D = TypeVar("D", bound=HttpDescription)


class Reply(NamedTuple):
    """What the other side answered, bounded."""

    status: int
    body: bytes
    retry_after_s: float | None = None

    def read(self, type_: type[T]) -> T | None:
        """The body, decoded; None if it is no JSON of that type."""
        try:
            return msgspec.json.decode(self.body, type=type_)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None


class Unanswered(Retryable):
    """It was sent, and nobody knows what has become of it. For channels it is as any `Retryable`."""


class Failure(NamedTuple):
    """Why there is no reply."""

    problem: str
    sent: bool = True
    """Whether the other side may have got it."""


@dataclass(frozen=True)
class Http:
    """Posts for one channel, on a session that belongs to the caller."""

    channel: str
    session: aiohttp.ClientSession
    timeout_s: float = 10.0
    clock: Clock = system_clock
    kind: str = "channel"
    """What errors call the thing that ``channel`` names."""
    most_bytes: int = MAX_BODY_BYTES
    """How much of a body is read."""

    def secret(self, field: str, secret: Secret) -> SecretValue:
        """The secret as it is now; one that cannot be read now may be there later, as when a file is replaced.

        Raises:
            Retryable: it cannot be read.
        """
        return secret.read_later(f"channel {self.channel}: {field}")

    def where(self, url: str | SecretValue) -> str:
        """The channel and the host, for errors."""
        return f"{self.kind} {self.channel}: {self._address(url).host}"

    async def post(
        self,
        url: str | SecretValue,
        body: bytes,
        headers: Mapping[str, str | SecretValue] | None = None,
        secrets: Sequence[SecretValue] = (),
    ) -> Reply:
        """Post JSON; a 2xx reply. ``secrets``: those in the body; they are known of the URL and the headers.

        Raises:
            Retryable: or `Backpressure`; see above.
            Rejected: see above.
        """
        return await self.send("POST", url, body, headers, secrets)

    async def send(
        self,
        method: str,
        url: str | SecretValue,
        body: bytes,
        headers: Mapping[str, str | SecretValue] | None = None,
        secrets: Sequence[SecretValue] = (),
    ) -> Reply:
        """The same by any method.

        Raises:
            Unanswered: it may have been taken.
            Retryable: or `Backpressure`; see above.
            Rejected: see above.
        """
        given = {"Content-Type": "application/json", **(headers or {})}
        secrets = [*secrets, *(each for each in (url, *given.values()) if isinstance(each, SecretValue))]
        where = self.where(url)
        told = {name: _told(value) for name, value in given.items()}
        reply = await self._exchange(method, self._address(url), body, told)
        if isinstance(reply, Failure):
            raise (Unanswered if reply.sent else Retryable)(f"{where} {scrub(reply.problem, secrets)}")
        judge(where, reply, secrets)
        return reply

    def _address(self, url: str | SecretValue) -> URL:
        address = address_of(_told(url))
        if address is None:
            raise Retryable(f"{self.kind} {self.channel}: its URL does not begin with http:// or https:// and a host")
        return address

    async def _exchange(self, method: str, address: URL, body: bytes, headers: Mapping[str, str]) -> Reply | Failure:
        """The exchange itself. Its errors hold URLs, and become words here."""
        timeout = aiohttp.ClientTimeout(total=self.timeout_s)
        try:
            async with self.session.request(
                method,
                address,
                data=body,
                headers=headers,
                allow_redirects=False,
                timeout=timeout,
                raise_for_status=False,
            ) as response:
                return Reply(
                    response.status,
                    await _first_bytes(response.content, self.most_bytes),
                    retry_after_s(response.headers.get("Retry-After"), self.clock()),
                )
        except TimeoutError:
            return Failure(f"did not answer within {self.timeout_s:g} s")
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return Failure(_why(error), sent=not isinstance(error, aiohttp.ClientConnectorError | ValueError))


class HttpChannel(Generic[D]):
    """What every channel over HTTP holds: its description and the way out. The session is the caller's."""

    def __init__(
        self, name: str, description: D, session: aiohttp.ClientSession, *, clock: Clock = system_clock
    ) -> None:
        """Raises ConfigError: a secret is not there."""
        self._http = Http(name, session, description.timeout_s, clock)
        self._description = description
        description.check_secrets(name)

    async def close(self) -> None:
        """Nothing is held."""


def address_of(url: str) -> URL | None:
    """None: it does not begin with http:// or https:// and a host."""
    with suppress(ValueError):
        address = URL(url)
        if address.scheme in ("http", "https") and address.host:
            return address
    return None


def judge(where: str, reply: Reply, secrets: list[SecretValue]) -> None:
    """Return for 2xx.

    Raises:
        Retryable: or `Backpressure`; see the table above.
        Rejected: see the table above.
    """
    status = reply.status
    if 200 <= status < 300:
        return
    said = f"{where} answered {status}{_reason(reply.body, secrets)}"
    if status == 429 or (status == 503 and reply.retry_after_s is not None):
        raise Backpressure(said, reply.retry_after_s or SHORTEST_WAIT_S)
    if 300 <= status < 400:
        raise Retryable(f"{where} redirects ({status}), which is not followed; give the channel its final address")
    if is_passing(status):
        raise (Retryable if status == 425 else Unanswered)(said)
    raise Rejected(Reason.REFUSED, said)


def is_passing(status: int) -> bool:
    """Whether the same request may be taken later."""
    return status >= 500 or status in _PASSING


def retry_after_s(header: str | None, now: float) -> float | None:
    """Seconds to wait, of a number of seconds or a date; between 1 s and 1 h. None if the header says neither."""
    if header is None:
        return None
    try:
        wait_s = float(header)
    except ValueError:
        try:
            wait_s = parsedate_to_datetime(header).timestamp() - now
        except (ValueError, OverflowError):
            return None
    return None if math.isnan(wait_s) else min(max(wait_s, SHORTEST_WAIT_S), LONGEST_WAIT_S)


async def _first_bytes(content: aiohttp.StreamReader, most: int) -> bytes:
    body = bytearray()
    while len(body) < most and (chunk := await content.read(most - len(body))):
        body += chunk
    return bytes(body)


def _reason(body: bytes, secrets: list[SecretValue]) -> str:
    """What the other side says about it, on one line."""
    text = scrub(body.decode("utf-8", "replace"), secrets)
    plain = " ".join("".join(each if each.isprintable() else " " for each in text).split())
    return f": {plain[:MAX_REASON_CHARS]}" if plain else ""


def _why(error: Exception) -> str:
    if isinstance(error, aiohttp.ClientConnectorCertificateError | ssl.SSLCertVerificationError):
        return "has a certificate that is not trusted"
    if isinstance(error, aiohttp.ClientSSLError | ssl.SSLError):
        return "could not be spoken to over TLS"
    if isinstance(error, aiohttp.ClientConnectorError):
        return f"cannot be reached: {error.os_error.strerror or type(error.os_error).__name__}"
    if isinstance(error, OSError | aiohttp.ServerDisconnectedError | aiohttp.ClientPayloadError):
        return "closed the connection before it had answered"
    return f"did not answer as HTTP: {type(error).__name__}"


def _told(value: str | SecretValue) -> str:
    return value.reveal() if isinstance(value, SecretValue) else value
