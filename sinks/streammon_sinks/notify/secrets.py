"""Secrets of the channels: named in the notifier's file, read when they are used, never shown.

    slack:
      webhook_url: {env: SLACK_WEBHOOK_URL}
    pager:
      routing_key: {file: /run/secrets/pagerduty}

A `Secret` says where to look; what lies there is read anew at each use, so that a rotated file needs no restart. A
`SecretValue` shows itself as ``***`` wherever it is printed, and `scrub` takes secrets out of what others have said.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated, ClassVar, Final
from urllib.parse import quote, unquote

from msgspec import Meta, Struct

from streammon.errors import ConfigError, Retryable

MASK: Final = "***"
_MAX_BYTES: Final = 65_536
_TELLING_LENGTH: Final = 12  # a part of a URL that is shorter is a word, such as `services`


class SecretValue:
    """A secret in memory. Only `reveal` tells it."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        return self._value

    def __str__(self) -> str:
        return MASK

    __repr__ = __str__

    def __format__(self, _spec: str) -> str:
        return MASK


class Secret(Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """Where a secret is kept: exactly one of an environment variable and a file."""

    confidential: ClassVar = True
    """Errors about the YAML file do not repeat what stands here: it may be the secret, in the wrong place."""
    env: Annotated[str, Meta(pattern="^[A-Za-z_][A-Za-z0-9_]*$")] | None = None
    """Name of an environment variable."""
    file: str | None = None
    """Path of a file that holds the secret and nothing else; white space around it is left out."""

    def __post_init__(self) -> None:
        if (self.env is None) == (self.file is None):
            raise ValueError("a secret needs exactly one of `env: NAME` and `file: PATH`")

    def read(self, field: str) -> SecretValue:
        """The secret as it is now. ``field`` names it in errors: ``channel ops: webhook_url``.

        Raises:
            ConfigError: there is none, or it is more than one line.
        """
        value = (self._of_environment(field) if self.env else self._of_file(field)).strip()
        if not value:
            raise ConfigError(f"{field}: {self} is empty; put the secret there")
        if not value.isprintable():
            raise ConfigError(f"{field}: {self} holds line breaks or control characters; a secret is one line of text")
        return SecretValue(value)

    def read_later(self, field: str) -> SecretValue:
        """The same, of a secret that was there at the start: it may be there again soon, as when a file is replaced.

        Raises:
            Retryable: there is none now.
        """
        try:
            return self.read(field)
        except ConfigError as error:
            raise Retryable(str(error)) from None

    def __str__(self) -> str:
        return f"environment variable {self.env}" if self.env else f"file {self.file}"

    def _of_environment(self, field: str) -> str:
        try:
            return os.environ[str(self.env)]
        except KeyError:
            raise ConfigError(f"{field}: {self} is not set") from None

    def _of_file(self, field: str) -> str:
        problem = ""
        try:
            with Path(str(self.file)).open("rb") as file:
                return file.read(_MAX_BYTES).decode()
        except OSError as error:
            problem = error.strerror or type(error).__name__
        except ValueError:  # of decoding, whose error holds the bytes; or a path with a NUL
            problem = "it is not text in UTF-8"
        raise ConfigError(f"{field}: {self} cannot be read: {problem}")  # outside, so that no error hangs on to it


def scrub(text: str, secrets: Iterable[SecretValue]) -> str:
    """The text without the secrets, however they are quoted, and without the telling parts of URLs and of headers."""
    for piece in sorted({piece for secret in secrets for piece in _pieces(secret.reveal())}, key=len, reverse=True):
        text = text.replace(piece, MASK)
    return text


def _pieces(secret: str) -> Iterator[str]:
    parts = [part for part in re.split(r"[/?&=#@]", secret) if len(part) >= _TELLING_LENGTH] if "/" in secret else []
    for piece in (secret, *parts, secret.rpartition(" ")[2]):  # of "Bearer TOKEN", others may tell the token alone
        yield from (piece, quote(piece, safe=""), unquote(piece))
