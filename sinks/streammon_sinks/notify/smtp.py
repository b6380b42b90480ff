"""The conversation with a mail server, and what its answers and its troubles mean. Errors become words here.

Apart from `email`, because its library is an extra, and the errors of it may hold a password.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping, Sequence
from email.message import EmailMessage
from typing import Any, Final, NamedTuple

import aiosmtplib

BUSY: Final = range(400, 500)
_REFUSED: Final = range(500, 600)


class Problem(NamedTuple):
    """Why a mail was not taken, and whether another try may help."""

    text: str
    may_pass: bool


async def send(
    message: EmailMessage, recipients: Sequence[str], timeout_s: float, **server: Any
) -> Problem | Mapping[str, aiosmtplib.SMTPResponse]:
    """The recipients that it refused while it took the mail for others; or why it did not take it.

    ``server``: as `aiosmtplib.send` wants it told.
    """
    try:
        async with asyncio.timeout(timeout_s):
            refused, _ = await aiosmtplib.send(message, recipients=recipients, timeout=timeout_s, **server)
    except (aiosmtplib.SMTPException, OSError, ValueError) as error:  # TimeoutError is an OSError
        return _problem(error, timeout_s)
    return refused


def _problem(error: Exception, timeout_s: float) -> Problem:
    if isinstance(error, aiosmtplib.SMTPRecipientsRefused):
        busy = [each for each in error.recipients if each.code in BUSY]
        first = (busy or error.recipients)[0]
        return answered(first.code, first.message, [each.recipient for each in busy or error.recipients])
    if isinstance(error, aiosmtplib.SMTPAuthenticationError):
        return Problem(f"does not accept the username and password: {error.code} {error.message}", error.code in BUSY)
    if isinstance(error, aiosmtplib.SMTPResponseException):
        return answered(error.code, error.message)
    if isinstance(error, TimeoutError):
        return Problem(f"did not answer within {timeout_s:g} s", may_pass=True)
    return _no_answer(error)


def answered(code: int, said: str, addresses: Sequence[str] = ()) -> Problem:
    about = f" about {', '.join(addresses[:3])}" if addresses else ""
    return Problem(f"answered {code}{about}: {said}", may_pass=code not in _REFUSED)


def _no_answer(error: Exception) -> Problem:
    """There was no conversation, or none that both sides understood."""
    behind = error if isinstance(error, ssl.SSLError) else error.__cause__
    if isinstance(behind, ssl.SSLCertVerificationError):
        return Problem(f"has a certificate that is not trusted: {behind.verify_message}", may_pass=True)
    if isinstance(behind, ssl.SSLError):
        return Problem("could not be spoken to over TLS", may_pass=True)
    if isinstance(error, aiosmtplib.SMTPConnectError):
        return Problem(f"cannot be reached: {error.message}", may_pass=True)
    if isinstance(error, aiosmtplib.SMTPServerDisconnected | OSError):
        return Problem("closed the connection before it had answered", may_pass=True)
    if isinstance(error, ValueError | aiosmtplib.SMTPNotSupported):
        return Problem(f"cannot be given this mail: {error}", may_pass=False)
    return Problem(f"lacks what this channel needs: {error}", may_pass=True)
