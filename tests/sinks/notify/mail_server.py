"""A real mail server, aiosmtpd, with TLS and a password; and what goes wrong with mail servers, on demand."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from email import message_from_bytes, policy
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import msgspec
from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

from streammon.errors import Rejected, Retryable
from streammon_sinks.notify.email import Email, EmailChannel
from streammon_sinks.notify.secrets import Secret
from tests.certificates import Authority
from tests.sinks.notify.counterparts import MARKER, PATIENCE_S, Fault, Kind

PASSWORD = f"{MARKER}-pass"
BELOW_SMTP = (Fault.SILENT, Fault.RESET, Fault.SLOW, Fault.ENDLESS)
"""Faults of something that does not speak SMTP at all."""


class MailServer:
    """``answers`` are what it says to a recipient (by address) or to ``DATA``, in place of 250."""

    def __init__(self, directory: Path) -> None:
        self.mails: list[EmailMessage] = []
        self.envelopes: list[Envelope] = []
        self.answers: dict[str, str] = {}
        self.fault: Fault | None = None
        self.authority = Authority(directory)
        self.password_file = directory / "password"
        self.password_file.write_text(PASSWORD)
        self._ports: dict[str, int] = {}
        self._repeated = ""

    def settings(self, **changes: Any) -> Email:
        plain = Email(
            host="127.0.0.1",
            port=self._ports[self._where()],
            ca_file=str(self.authority.file),
            username="streammon",
            password=Secret(file=str(self.password_file)),
            sender="ML alerts <alerts@example.org>",
            to=["oncall@example.org"],
            timeout=PATIENCE_S if self.fault else 10.0,
        )
        return msgspec.structs.replace(plain, **changes)

    def port(self, where: str) -> int:
        return self._ports[where]

    def open(self) -> EmailChannel:
        return EmailChannel("ops", self.settings())

    def misbehave(self, fault: Fault | None) -> None:
        self.fault = fault

    async def messages(self) -> int:
        return len({mail["Message-ID"] for mail in self.mails})

    async def status(self) -> str:
        return str(self.mails[-1]["X-Streammon-Status"]) if self.mails else ""

    def _where(self) -> str:
        if self.fault is Fault.UNTRUSTED:
            return "untrusted"
        return "below" if self.fault in BELOW_SMTP else "starttls"

    # ---------------------------------------------------------------- what aiosmtpd asks

    def authenticate(self, _server: SMTP, _session: Session, _envelope: Envelope, mechanism: str, data: Any) -> Any:
        assert isinstance(data, LoginPassword)
        self._repeated = data.password.decode()
        right = (data.login, data.password) == (b"streammon", self.password_file.read_bytes())
        return AuthResult(success=right, handled=False)

    async def handle_RCPT(
        self, _server: SMTP, _session: Session, envelope: Envelope, address: str, _options: list[str]
    ) -> str:
        if self.fault is Fault.BUSY:
            return "451 4.7.1 greylisted, try again later"
        if answer := self.answers.get(address):
            return answer
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, _server: SMTP, _session: Session, envelope: Envelope) -> str:
        if answer := self.answers.get("DATA") or self._answer():
            return answer
        assert isinstance(envelope.content, bytes)
        self.envelopes.append(envelope)
        self.mails.append(message_from_bytes(envelope.content, policy=policy.default))
        return "250 taken"

    def _answer(self) -> str | None:
        return {
            Fault.REFUSING: f"550 5.7.1 no: {self._repeated} \x1b[31m{'x' * 300}",
            Fault.UNAVAILABLE: "421 4.3.2 closing",
            Fault.BROKEN: "451 4.3.0 internal error",
            Fault.GARBLED: '{"ok": tru',
        }.get(self.fault) if self.fault else None  # fmt: skip

    async def below_smtp(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if self.fault is Fault.RESET:
                writer.transport.abort()
            while self.fault in (Fault.SLOW, Fault.ENDLESS):
                writer.write(b"2" if self.fault is Fault.SLOW else b"220-and so on\r\n" * 1000)
                await writer.drain()
                await asyncio.sleep(0.01)  # the pace of the fault itself
            await reader.read()
        except OSError:
            pass
        finally:
            writer.close()


def _context(file: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    return context


@asynccontextmanager
async def mail_server(directory: Path) -> AsyncIterator[MailServer]:
    """It listens with STARTTLS, with TLS from the start, in the clear, and with a certificate that nobody trusts."""
    server = MailServer(directory)
    trusted = _context(server.authority.issue("mail"))
    untrusted = _context(Authority(directory, "nobody").issue("other"))
    secured = {"authenticator": server.authenticate, "auth_required": True}

    def smtp(**options: Any) -> Callable[[], SMTP]:
        return lambda: SMTP(server, hostname="mail.example.org", loop=loop, **options)

    loop = asyncio.get_running_loop()
    at = "127.0.0.1", 0
    listening = {
        "starttls": await loop.create_server(smtp(tls_context=trusted, require_starttls=True, **secured), *at),
        "untrusted": await loop.create_server(smtp(tls_context=untrusted, require_starttls=True, **secured), *at),
        "tls": await loop.create_server(smtp(auth_require_tls=False, **secured), *at, ssl=trusted),
        "clear": await loop.create_server(smtp(), *at),
        "below": await asyncio.start_server(server.below_smtp, *at),
    }
    server._ports = {name: each.sockets[0].getsockname()[1] for name, each in listening.items()}
    try:
        yield server
    finally:
        for each in listening.values():
            each.close()


_KIND = Kind(
    mail_server,
    {
        Fault.BUSY: Retryable,
        Fault.BROKEN: Retryable,
        Fault.UNAVAILABLE: Retryable,
        Fault.SILENT: Retryable,
        Fault.RESET: Retryable,
        Fault.REFUSING: Rejected,
        Fault.UNTRUSTED: Retryable,
        Fault.SLOW: Retryable,
        Fault.ENDLESS: Retryable,
        Fault.GARBLED: Retryable,
    },
)

KINDS = {"email": _KIND}
