"""Mail over SMTP: one mail a notification, encrypted unless it is told not to be.

| the mail server | outcome |
|---|---|
| takes it, and refuses no address or some for good | delivered; refused addresses are logged |
| 4xx: busy, greylisting | `Retryable`; addresses that took the mail do not get it again |
| no answer in time, no connection, no TLS, a certificate that is not trusted | `Retryable` |
| 5xx: refuses the mail, every address, or the password | `Rejected`, with its reason |

A server that offers no STARTTLS is not spoken to in the clear: somebody may have taken the offer away. After a
delivery whose answer was lost the same mail goes out again, under the same ``Message-ID``; after a restart that may
also go to an address that had taken it.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping, Sequence
from contextlib import suppress
from email.headerregistry import Address
from email.message import EmailMessage
from email.utils import getaddresses
from typing import TYPE_CHECKING, Annotated, Final, Literal

from msgspec import Meta, Struct, field

from streammon.durations import Duration, seconds
from streammon.errors import ConfigError, Reason, Rejected, Retryable
from streammon.telemetry import log
from streammon_sinks.notify.channel import Channel, Memory, Notification
from streammon_sinks.notify.installed import check_installed
from streammon_sinks.notify.mail_message import mail, remembered
from streammon_sinks.notify.secrets import Secret, SecretValue, scrub
from streammon_sinks.notify.told import line

if TYPE_CHECKING:
    import aiohttp
    from aiosmtplib import SMTPResponse

    from streammon_sinks.notify.smtp import Problem

MAX_REASON_CHARS: Final = 500
_PORTS: Final = {"starttls": 587, "tls": 465, "none": 25}


class Email(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type", tag="email"):
    """A mail server, and whom to write to through it."""

    host: Annotated[str, Meta(min_length=1)]
    """The mail server."""
    port: Annotated[int, Meta(ge=1, le=65_535)] | None = None
    """Its port: 587 with ``starttls``, 465 with ``tls``, 25 with ``none``, unless given."""
    security: Literal["starttls", "tls", "none"] = "starttls"
    """``starttls`` begins in the clear and insists on encryption, ``tls`` is encrypted from the start."""
    verify: bool = True
    """Whether the server's certificate has to be one that this machine, or ``ca_file``, trusts."""
    ca_file: str | None = None
    """PEM file of the authorities to trust instead of this machine's."""
    username: str | None = None
    password: Secret | None = None
    """Of ``username``; goes only over an encrypted connection."""
    sender: str = field(name="from")
    """``alerts@example.org`` or ``ML alerts <alerts@example.org>``."""
    to: Annotated[list[str], Meta(min_length=1, max_length=100)]
    cc: Annotated[list[str], Meta(max_length=100)] = []
    timeout: Duration = 20.0
    """How long one delivery may take."""

    def __post_init__(self) -> None:
        if (self.username is None) != (self.password is None):
            raise ValueError("`username` and `password` need each other")
        if self.password and self.security == "none":
            raise ValueError("a password is not sent in the clear; set `security` to starttls or tls")
        seconds(self.timeout)
        for text in (self.sender, *self.to, *self.cc):
            _address(text)

    def open(self, name: str, _session: aiohttp.ClientSession) -> Channel:
        return EmailChannel(name, self)


def _address(text: str) -> Address:
    """Raises ValueError: it is no mail address."""
    found = getaddresses([text])
    if len(found) == 1 and text.isprintable() and found[0][1].isascii():
        with suppress(ValueError, IndexError):  # what the parser raises on some; its errors have no words for people
            address = Address(display_name=found[0][0], addr_spec=found[0][1])
            if address.username and address.domain:
                return address
    raise ValueError(f"{text!r} is no mail address; write name@example.org or Name <name@example.org>")


class EmailChannel:
    """A `Channel` that sends mails."""

    def __init__(self, name: str, settings: Email) -> None:
        """Raises ConfigError: ``ca_file`` cannot be used, the password is not there, or a library is not installed."""
        check_installed(name, "aiosmtplib")
        self._name = name
        self._settings = settings
        self._sender = _address(settings.sender)
        self._to, self._cc = [[_address(text) for text in texts] for texts in (settings.to, settings.cc)]
        self._tls = _tls(name, settings) if settings.security != "none" else None
        self._timeout_s = seconds(settings.timeout)
        if settings.password:
            settings.password.read(f"channel {name}: password")
        self._unsent: tuple[str, Sequence[str]] = ("", ())  # a notification, and who has not taken it yet

    async def deliver(self, notification: Notification, memory: Memory) -> Memory:
        message = mail(notification, memory, sender=self._sender, to=self._to, cc=self._cc)
        password = self._password()
        recipients = self._recipients(notification)
        problem = await self._send(message, recipients, password) if recipients else None
        if problem:
            text = line(scrub(problem.text, [password] if password else []), MAX_REASON_CHARS)
            told = f"channel {self._name}: mail server {self._settings.host} {text}"
            raise Retryable(told) if problem.may_pass else Rejected(Reason.REFUSED, told)
        return remembered(notification, memory, self._sender.domain)

    async def close(self) -> None:
        """Nothing is kept open between mails."""

    def _password(self) -> SecretValue | None:
        """Raises Retryable: it cannot be read now."""
        where = self._settings.password
        return where.read_later(f"channel {self._name}: password") if where else None

    def _recipients(self, notification: Notification) -> Sequence[str]:
        """Everybody, but for those who took this very notification in an earlier try."""
        if self._unsent[0] != notification.id:
            everybody = dict.fromkeys(address.addr_spec for address in (*self._to, *self._cc))
            self._unsent = (notification.id, list(everybody))
        return self._unsent[1]

    async def _send(
        self, message: EmailMessage, recipients: Sequence[str], password: SecretValue | None
    ) -> Problem | None:
        from streammon_sinks.notify import smtp

        settings = self._settings
        answer = await smtp.send(
            message,
            recipients,
            self._timeout_s,
            sender=self._sender.addr_spec,
            hostname=settings.host,
            port=settings.port or _PORTS[settings.security],
            username=settings.username,
            password=password.reveal() if password else None,
            use_tls=settings.security == "tls",
            start_tls=settings.security == "starttls",
            tls_context=self._tls,
        )
        return answer if isinstance(answer, smtp.Problem) else self._some_refused(answer)

    def _some_refused(self, refused: Mapping[str, SMTPResponse]) -> Problem | None:
        """The others have the mail. Those whom the server refuses for now get it with the next try."""
        from streammon_sinks.notify import smtp

        busy = [address for address, answer in refused.items() if answer.code in smtp.BUSY]
        for address in refused.keys() - set(busy):
            log.warning("mail address refused", channel=self._name, address=address, code=refused[address].code)
        self._unsent = (self._unsent[0], busy)
        return smtp.answered(refused[busy[0]].code, refused[busy[0]].message, busy) if busy else None


def _tls(name: str, settings: Email) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=settings.ca_file)
    except OSError as error:  # ssl.SSLError is one
        why = error.strerror or type(error).__name__
        raise ConfigError(f"channel {name}: ca_file {settings.ca_file} cannot be used: {why}") from None
    if not settings.verify:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context
